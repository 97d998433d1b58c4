# SPDX-License-Identifier: MIT
"""leak_threshold: a lease that is out for longer is logged, once, with the place in the program that took it.

With gevent a timer of the hub looks at the lease; without it one thread per process looks at all of them, a few times
per threshold. In a process whose interpreter does not run between requests (uWSGI without enable-threads) that thread
runs during requests only. With the parameter off nothing of this is loaded or run.

The request's URI is best effort: uWSGI does not tell it outside the application, so it is looked for where WSGI
applications have it, in a variable named environ of the functions that led to the check-out.
"""

import logging
import os
import sys
import threading
import time
import traceback
import weakref

from . import _dbpool, waiting

log = logging.getLogger("dbpool")


class Watched:
    """A lease's check-out. Holds the proxy weakly: what is collected is no leak, its session is back."""

    __slots__ = ("proxy", "alias", "since", "threshold", "places", "uri", "timer")

    def __init__(self, proxy, alias, threshold):
        self.proxy = weakref.ref(proxy)
        self.alias = alias
        self.since = time.monotonic()
        self.threshold = threshold
        frame = sys._getframe(2)
        self.uri = _uri(frame)
        # Places only, no frames: those would keep alive what the program has in its variables.
        self.places = [(one.f_code, line) for one, line in traceback.walk_stack(frame)]
        self.timer = None

    def stack(self):
        places = [traceback.FrameSummary(code.co_filename, line, code.co_name) for code, line in reversed(self.places)]
        return "".join(traceback.StackSummary.from_list(places).format()).rstrip()

    def held(self):
        proxy = self.proxy()
        return proxy is not None and proxy.open

    def say(self):
        if not self.held():
            return
        worker = getattr(sys.modules.get("uwsgi"), "worker_id", lambda: 0)()
        log.warning(
            "dbpool: pool '%s': a session has been leased for %.1f s (leak_threshold %g s) by worker %d (pid %d)%s; "
            "it was taken here:\n%s",
            self.alias,
            time.monotonic() - self.since,
            self.threshold,
            worker,
            os.getpid(),
            ", request %s" % self.uri if self.uri else "",
            self.stack(),
        )


def _uri(frame):
    while frame is not None:
        if "environ" in frame.f_code.co_varnames:
            environ = frame.f_locals.get("environ")
            if isinstance(environ, dict):
                uri = environ.get("REQUEST_URI") or environ.get("PATH_INFO")
                if uri:
                    return "%s %s" % (environ.get("REQUEST_METHOD", ""), uri)
        frame = frame.f_back
    return None


def watch(proxy, alias, threshold):
    """From here on until the lease ends. What it gives back is for forget()."""
    watched = Watched(proxy, alias, threshold)
    hub = waiting.current_hub()
    if hub is None:
        _Thread.of().add(watched)
        return watched
    watched.timer = timer = hub.loop.timer(threshold, ref=False)
    # A greenlet of its own: a log handler may want to wait, which the hub cannot.
    timer.start(sys.modules["gevent"].spawn, watched.say)
    return watched


def forget(watched):
    timer, watched.timer = watched.timer, None
    if timer is not None:
        timer.stop()
        timer.close()
    elif _Thread.instance is not None:
        _Thread.instance.leases.pop(id(watched), None)


class _Thread:
    """Looks at the leases of the threads of this process."""

    instance = None
    lock = threading.Lock()

    def __init__(self):
        self.epoch = _dbpool.epoch()
        self.leases = {}  # id -> Watched
        self.new = threading.Event()
        threading.Thread(target=self.run, name="dbpool-leaks", daemon=True).start()

    @classmethod
    def of(cls):
        if cls.instance is None or cls.instance.epoch != _dbpool.epoch():
            with cls.lock:
                if cls.instance is None or cls.instance.epoch != _dbpool.epoch():
                    cls.instance = cls()
        return cls.instance

    def add(self, watched):
        self.leases[id(watched)] = watched
        self.new.set()

    def run(self):
        while True:
            if not self.leases:
                self.new.wait()
            self.new.clear()
            now = time.monotonic()
            next_look = 60.0
            for key, watched in list(self.leases.items()):
                left = watched.since + watched.threshold - now
                if left > 0 and watched.held():
                    next_look = min(next_look, left)
                elif self.leases.pop(key, None) is not None:
                    try:
                        watched.say()
                    except Exception:  # at interpreter exit anything may be gone
                        return
            if self.leases:
                # Bounded: one with a shorter threshold may come meanwhile.
                time.sleep(min(max(next_look, 0.01), 1.0))
