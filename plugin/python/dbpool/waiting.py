# SPDX-License-Identifier: MIT
"""Waiting, in the one way that the caller's mode allows.

For a session's socket, or for the broker (`wait`, which _dbpool calls from inside a driver, or core), and for a lease
(`acquire`): a greenlet waits on its hub, a thread blocks without the GIL. gevent is never imported here, only used when the application has it.

The hub never sees a session's fd. It watches one private epoll (`Reactor`), where each wait is armed once; and one
eventfd (`Dispatcher`), by which other processes say that waiters of this process are served. After a wait nothing is
left armed, also when it ends by an exception (gevent.Timeout, kill): the fd's description is shared with other
processes, and a leftover would wake this one for their replies.

A signal handler's exception may come out at any step of this file, in a greenlet (which it ends) or in the hub (which
reports it and goes on). No step may leave another greenlet without its wake-up; src/hub.c has what the hub calls.
"""

import sys
from collections import deque
from time import monotonic

from . import _dbpool

# Drivers cannot say "no limit" to libmariadb without losing the wait hook, so they say this (drivers/mysqlclient.py).
FOREVER_S = 2000000
FOREVER_MS = FOREVER_S * 1000

# A timer of one's own is a good part of what a wait costs. So time-outs from here on, the default of 300 s among them,
# are looked after by one timer for all, and may be late by its interval.
LONG_MS = 20000
PATROL_S = 1.0

_TIMED_OUT = object()


class HubBlocked(RuntimeError):
    """A query or check-out, or the first use of a pool, was tried in the gevent hub itself, where waiting would stop
    every greenlet."""

    def __init__(self):
        super().__init__(
            "dbpool: this runs in the gevent hub (a callback of the event loop), where waiting for the database would "
            "stop every greenlet; run it in a greenlet, e.g. gevent.spawn()"
        )


def current_hub():
    """The hub of this thread when there is one, else None."""
    local = sys.modules.get("gevent._hub_local")
    return local.get_hub_if_exists() if local is not None else None


def _in_hub(hub):
    return sys.modules["greenlet"].getcurrent() is hub


def enable():
    """Lets _dbpool ask `wait` before it polls, once gevent is there. Cheap; called before whatever may wait."""
    global enable
    if "gevent._hub_local" in sys.modules:
        _dbpool.set_wait_hook(wait)
        enable = _enabled


def _enabled():
    pass


def wait(fd, reading, timeout_ms):
    """True when fd is ready (-1: never), False after timeout_ms (-1: no limit), None when this thread has no hub: block
    it."""
    hub = current_hub()
    if hub is None:
        return None
    if _in_hub(hub):
        raise HubBlocked()
    if fd < 0:
        sys.modules["gevent.hub"].sleep(timeout_ms / 1000.0)
        return False
    return Reactor.of(hub).wait(fd, reading, timeout_ms)


def forget(fd):
    """Nothing of fd is left in this thread's epoll. Before the fd is re-pointed or closed by us. A greenlet that waits
    for it goes on, and finds that it is gone."""
    hub = current_hub()
    reactor = getattr(hub, "_dbpool_reactor", None)
    if reactor is not None and reactor.epoch == _dbpool.epoch():
        reactor.forget(fd)


class Reactor:
    """The private epoll of one hub. Used only in that hub's thread."""

    def __init__(self, hub):
        self.hub = hub
        self.epoch = _dbpool.epoch()
        self.epoll = _dbpool.Epoll()
        self.waiters = {}  # fd -> Waiter
        self.long = {}  # fd -> (Waiter, deadline): what patrol looks at; also waits that are over
        self.patrol = hub.loop.timer(PATROL_S, PATROL_S, ref=False)
        self.make_waiter = sys.modules["gevent.hub"].Waiter
        # Unreferenced while nobody waits: it must not keep a loop alive that has nothing else to do.
        self.watcher = hub.loop.io(self.epoll.fileno(), 1, ref=False)
        self.watcher.start(_dbpool.wake_ready, self.epoll, self.waiters, self.watcher, self.epoch)

    @classmethod
    def of(cls, hub):
        reactor = getattr(hub, "_dbpool_reactor", None)
        if reactor is None or reactor.epoch != _dbpool.epoch():
            reactor = hub._dbpool_reactor = cls(hub)
        return reactor

    def wait(self, fd, reading, timeout_ms):
        waiters = self.waiters
        if fd in waiters:
            raise RuntimeError("dbpool: two greenlets wait for one session")
        waiter = self.make_waiter(self.hub)
        timer = None
        try:
            waiters[fd] = waiter
            if len(waiters) == 1:
                self.watcher.ref = True
            self.epoll.arm(fd, reading)
            if LONG_MS <= timeout_ms < FOREVER_MS:
                self.long[fd] = waiter, monotonic() + timeout_ms / 1000.0
                if not self.patrol.active:
                    self.patrol.start(self._look)
            elif 0 <= timeout_ms < LONG_MS:
                timer = self.hub.loop.timer(timeout_ms / 1000.0)
                timer.start(waiter.switch, _TIMED_OUT)
            return waiter.get() is not _TIMED_OUT
        finally:
            if timer is not None:
                timer.stop()
                timer.close()
            if waiters.get(fd) is waiter:  # it did not fire
                del waiters[fd]
                self.epoll.forget(fd)
            if not waiters:
                self.watcher.ref = False

    def _look(self):
        if self.epoch != _dbpool.epoch():
            self.patrol.stop()
            return
        now = monotonic()
        for fd, entry in list(self.long.items()):
            waiter, deadline = entry
            waits = self.waiters.get(fd) is waiter
            if now >= deadline and waits:
                waiter.switch(_TIMED_OUT)
                waits = False
            if not waits and self.long.get(fd) is entry:
                del self.long[fd]
        if not self.long:
            self.patrol.stop()

    def forget(self, fd):
        self.epoll.forget(fd)
        waiter = self.waiters.get(fd)
        if waiter is not None:
            self.hub.loop.run_callback(waiter.switch, True)
            del self.waiters[fd]


class _Place:
    """A greenlet's place in the queue of a pool."""

    __slots__ = ("wait", "waiter", "result")

    def __init__(self, wait, waiter):
        self.wait = wait
        self.waiter = waiter
        self.result = None  # a Lease or E_* once the wait is over


class Dispatcher:
    """Serves the greenlets of one hub that wait for a lease. One per process: the eventfd has one reader."""

    def __init__(self, hub):
        self.hub = hub
        self.epoch = _dbpool.epoch()
        self.eventfd = _dbpool.wait_eventfd()
        self.queues = {}  # pool -> deque of _Place in order of tickets
        self.places = set()  # those whose greenlet is still in acquire()
        self.make_waiter = sys.modules["gevent.hub"].Waiter
        self.watcher = None
        self._watch()

    def _watch(self):
        self.watcher = self.hub.loop.io(self.eventfd, 1, ref=False)
        self.watcher.start(_dbpool.wake_granted, self.eventfd, self.queues, self.watcher, self.epoch)

    def _follow(self, eventfd):
        """The process was attached anew and has another eventfd. Whoever waited before that waits no more."""
        self.watcher.stop()
        self.watcher.close()
        self.eventfd = eventfd
        self._watch()
        self.watcher.ref = bool(self.places)
        self.hub.loop.run_callback(_dbpool.wake_granted, eventfd, self.queues, self.watcher, self.epoch)

    _instance = None

    @classmethod
    def of(cls, hub):
        """The dispatcher when it is (or can become) this hub's, else None: another thread's hub has it."""
        self = cls._instance
        if self is None or self.epoch != _dbpool.epoch() or self.hub.dead or self.hub.loop is None:
            self = cls._instance = cls(hub)
        if self.hub is not hub:
            return None
        eventfd = _dbpool.wait_eventfd()
        if eventfd != self.eventfd:
            self._follow(eventfd)
        return self

    def acquire(self, pool, seconds):
        wait = _dbpool.wait_begin(pool)
        if type(wait) is int:
            return wait
        result = wait.poll()
        if result != _dbpool.E_BUSY:
            return result
        place = _Place(wait, self.make_waiter(self.hub))
        timer = self.hub.loop.timer(seconds)
        try:
            queue = self.queues.setdefault(pool, deque())
            while queue and queue[0].result is not None:
                queue.popleft()
            queue.append(place)
            self.places.add(place)
            if len(self.places) == 1:
                self.watcher.ref = True
            timer.start(place.waiter.switch, _TIMED_OUT)
            if place.waiter.get() is _TIMED_OUT and place.result is None:
                place.result = wait.cancel()
            return place.result
        except BaseException:
            # Killed while waiting. What was granted meanwhile was never touched.
            if place.result is None:
                place.result = wait.cancel()
            if type(place.result) is _dbpool.Lease:
                place.result.release(place.result.status(), _dbpool.CLEAN)
            raise
        finally:
            timer.stop()
            timer.close()
            self.places.discard(place)
            if not self.places:
                self.watcher.ref = False


def acquire(pool, seconds):
    """A Lease, or the E_* that ended the wait. The caller tried acquire_now already."""
    hub = current_hub()
    if hub is not None:
        if _in_hub(hub):
            raise HubBlocked()
        dispatcher = Dispatcher.of(hub)
        if dispatcher is not None:
            return dispatcher.acquire(pool, seconds)
        # A second hub, in another thread: it blocks. uWSGI has one hub in a process.
    return _dbpool.acquire(pool, seconds)
