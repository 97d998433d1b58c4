# SPDX-License-Identifier: MIT
"""Waiting for a socket and for a lease: the right one wakes, and nothing is left behind, however a wait ends."""

import contextlib
import os
import signal
import socket
import threading
import unittest
from collections import deque
from unittest import mock

from tests.python import BUILD  # noqa: F401 (finds the package)

import gevent
from gevent.event import Event

from dbpool import _dbpool, waiting

LONG = 60000  # ms: a wait that only the tested event may end


def pairs(case, n):
    made = [socket.socketpair() for _ in range(n)]
    for pair in made:
        for one in pair:
            one.setblocking(False)
            case.addCleanup(one.close)
    return made


def in_epoll(epoll):
    """What the kernel says of an epoll: {fd: events}."""
    with open('/proc/self/fdinfo/%d' % epoll.fileno()) as f:
        lines = [line.split() for line in f if line.startswith('tfd:')]
    return {int(line[1]): int(line[3], 16) for line in lines}


WANTED = 0x1 | 0x4  # EPOLLIN, EPOLLOUT


class Epoll(unittest.TestCase):
    def test_one_event_per_arming(self):
        epoll = _dbpool.Epoll()
        (a, b), = pairs(self, 1)
        epoll.arm(a.fileno(), True)
        self.assertEqual(epoll.ready(), [])
        b.send(b'x')
        self.assertEqual(epoll.ready(), [a.fileno()])
        b.send(b'y')
        self.assertEqual(epoll.ready(), [])
        epoll.arm(a.fileno(), True)
        self.assertEqual(epoll.ready(), [a.fileno()])
        epoll.arm(a.fileno(), False)
        self.assertEqual(epoll.ready(), [a.fileno()])
        epoll.forget(a.fileno())
        epoll.forget(a.fileno())
        self.assertEqual(in_epoll(epoll), {})

    def test_a_number_that_came_back(self):
        epoll = _dbpool.Epoll()
        (a, b), (c, d) = pairs(self, 2)
        epoll.arm(a.fileno(), True)
        shared = os.dup(a.fileno())
        self.addCleanup(os.close, shared)
        os.dup2(c.fileno(), a.fileno())
        epoll.arm(a.fileno(), True)
        d.send(b'x')
        self.assertEqual(epoll.ready(), [a.fileno()])

    def test_errors(self):
        epoll = _dbpool.Epoll()
        with self.assertRaises(OSError):
            epoll.arm(9999, True)
        epoll.forget(9999)
        epoll.close()
        epoll.close()


@contextlib.contextmanager
def signals_in_the_hub(hub, enough=200):
    """A signal now and then, whose handler raises where it finds waiting.py in the hub, which gevent reports and goes
    on. Yields a function: False once there were enough."""
    seen = []

    def handler(number, frame):
        seen.append(number)
        if gevent.getcurrent() is hub and frame.f_code.co_filename == waiting.__file__:
            raise KeyError('of a signal handler')

    before = signal.signal(signal.SIGALRM, handler)
    with mock.patch.object(hub, 'handle_error'):
        signal.setitimer(signal.ITIMER_REAL, 0.0003, 0.0003)
        try:
            yield lambda: len(seen) < enough
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


class Hub(unittest.TestCase):
    def setUp(self):
        self.hub = gevent.get_hub()
        self.reactor = waiting.Reactor.of(self.hub)

    def tearDown(self):
        self.assertEqual(self.reactor.waiters, {})
        self.assertFalse(self.reactor.watcher.ref)
        armed = {fd: events for fd, events in in_epoll(self.reactor.epoll).items() if events & WANTED}
        self.assertEqual(armed, {}, 'nothing is left armed')

    def test_each_is_woken_by_its_own(self):
        made = pairs(self, 20)
        woken = []

        def wait(number):
            self.assertIs(waiting.wait(made[number][0].fileno(), True, LONG), True)
            woken.append(number)

        greenlets = [gevent.spawn(wait, number) for number in range(20)]
        gevent.sleep(0)
        self.assertEqual(len(self.reactor.waiters), 20)
        order = [7, 3, 19, 0]
        for number in order:
            made[number][1].send(b'x')
            greenlets[number].join()
        self.assertEqual(woken, order)
        for number in set(range(20)) - set(order):
            made[number][1].send(b'x')
        gevent.joinall(greenlets, raise_error=True)

    def test_timeout(self):
        (a, _), = pairs(self, 1)
        self.assertIs(waiting.wait(a.fileno(), True, 1), False)
        self.assertIs(waiting.wait(a.fileno(), True, 0), False)
        self.assertIs(waiting.wait(a.fileno(), False, LONG), True)

    def test_no_fd_lets_time_pass(self):
        other = gevent.spawn(gevent.getcurrent)
        self.assertIs(waiting.wait(-1, True, 1), False)
        self.assertTrue(other.ready())
        self.assertIs(gevent.get_hub().threadpool.apply(waiting.wait, (-1, True, 1)), None)
        self.assertIs(_dbpool.wait(-1, True, 1), False)

    def test_long_timeouts(self):
        """One timer looks after all of them, and rests when there are none."""
        made = pairs(self, 3)
        reactor = self.reactor
        with mock.patch.object(waiting, 'LONG_MS', 5), mock.patch.object(waiting, 'PATROL_S', 0.01):
            reactor.patrol = self.hub.loop.timer(0.01, 0.01, ref=False)
            answers = []
            for (a, b), ms in zip(made, (5, 50, LONG)):
                gevent.spawn(lambda fd, ms: answers.append((ms, waiting.wait(fd, True, ms))), a.fileno(), ms)
            gevent.sleep(0)
            self.assertTrue(reactor.patrol.active)
            while len(answers) < 2:
                gevent.sleep(0.01)
            self.assertEqual(answers, [(5, False), (50, False)])
            made[2][1].send(b'x')
            while reactor.patrol.active:
                gevent.sleep(0.01)
            self.assertEqual(answers[2:], [(LONG, True)])
            self.assertEqual(reactor.long, {})
            # A wait that is over leaves no deadline to the next one on the same fd.
            self.assertIs(waiting.wait(made[2][0].fileno(), True, 5), True)
            made[2][0].recv(1)
            greenlet = gevent.spawn(waiting.wait, made[2][0].fileno(), True, -1)
            gevent.sleep(0.05)
            self.assertFalse(greenlet.ready())
            made[2][1].send(b'x')
            self.assertIs(greenlet.get(), True)

    def test_exceptions_leave_nothing(self):
        (a, b), = pairs(self, 1)
        with self.assertRaises(gevent.Timeout):
            with gevent.Timeout(0.01):
                waiting.wait(a.fileno(), True, LONG)
        greenlet = gevent.spawn(waiting.wait, a.fileno(), True, -1)
        gevent.sleep(0)
        greenlet.kill()
        self.assertNotIn(a.fileno(), in_epoll(self.reactor.epoll))
        # What arrives now is nobody's, and does not turn the loop.
        b.send(b'x')
        self.assertEqual(self.reactor.epoll.ready(), [])

    def test_signals_in_the_hub(self):
        """A handler's exception there costs nobody his wake-up."""
        (a, b), = pairs(self, 1)
        outcomes = set()
        with signals_in_the_hub(self.hub) as more:
            while more() and outcomes <= {True}:
                self.hub.loop.run_callback(b.send, b'x')
                outcomes.add(waiting.wait(a.fileno(), True, 5000))
                a.recv(100)
        self.assertEqual(outcomes, {True})

    def test_two_greenlets_on_one_session(self):
        (a, b), = pairs(self, 1)
        first = gevent.spawn(waiting.wait, a.fileno(), True, LONG)
        gevent.sleep(0)
        with self.assertRaises(RuntimeError):
            waiting.wait(a.fileno(), True, LONG)
        b.send(b'x')
        self.assertIs(first.get(), True)

    def test_forgotten_while_a_greenlet_waits(self):
        """It goes on at once, and the number is free for another session."""
        (a, b), (c, d) = pairs(self, 2)
        first = gevent.spawn(waiting.wait, a.fileno(), True, LONG)
        gevent.sleep(0)
        waiting.forget(a.fileno())
        os.dup2(c.fileno(), a.fileno())
        second = gevent.spawn(waiting.wait, a.fileno(), True, LONG)
        self.assertIs(first.get(), True)
        self.assertFalse(second.ready())
        d.send(b'x')
        self.assertIs(second.get(), True)

    def test_in_the_hub_itself(self):
        (a, _), = pairs(self, 1)
        caught = []

        def callback():
            for attempt in (lambda: waiting.wait(a.fileno(), True, LONG), lambda: waiting.acquire(0, 60)):
                try:
                    attempt()
                except waiting.HubBlocked as error:
                    caught.append('gevent hub' in str(error))

        self.hub.loop.run_callback(callback)
        gevent.sleep(0)
        self.assertEqual(caught, [True, True])

    def test_other_greenlets_run_meanwhile(self):
        (a, b), = pairs(self, 1)
        greenlet = gevent.spawn(waiting.wait, a.fileno(), True, LONG)
        ran = Event()
        gevent.spawn(ran.set)
        ran.wait()
        self.assertFalse(greenlet.ready())
        b.send(b'x')
        self.assertTrue(greenlet.get())

    def test_a_forked_child_takes_nothing_of_the_parents(self):
        (a, b), = pairs(self, 1)
        greenlet = gevent.spawn(waiting.wait, a.fileno(), True, LONG)
        gevent.sleep(0)
        pid = os.fork()
        if pid == 0:
            try:
                b.send(b'x')
                _dbpool.wake_ready(self.reactor.epoll, self.reactor.waiters, self.reactor.watcher, self.reactor.epoch)
                os._exit(0 if greenlet.started and not greenlet.ready() else 1)
            finally:
                os._exit(2)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)
        self.assertIs(greenlet.get(), True)

    def test_an_arming_that_fails(self):
        with self.assertRaises(OSError):
            waiting.wait(9999, True, LONG)


class Thread(unittest.TestCase):
    """Without a hub: poll(2)."""

    def setUp(self):
        waiting.enable()

    def in_thread(self, function, *arguments):
        answer = []

        def run():
            try:
                answer.append(function(*arguments))
            except BaseException as error:
                answer.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        return thread, answer

    def test_ready_timeout_and_hang_up(self):
        (a, b), = pairs(self, 1)
        thread, answer = self.in_thread(lambda: (waiting.wait(a.fileno(), True, 0), _dbpool.wait(a.fileno(), True, 0),
                                                 _dbpool.wait(a.fileno(), False, LONG)))
        thread.join()
        self.assertEqual(answer, [(None, False, True)])
        thread, answer = self.in_thread(_dbpool.wait, a.fileno(), True, -1)
        b.close()
        thread.join()
        self.assertEqual(answer, [True])

    def test_a_signal_ends_the_wait(self):
        """Also when the kernel gives it to another thread than the one that waits."""
        class Alarmed(Exception):
            pass

        def handler(number, frame):
            raise Alarmed()

        (a, _), = pairs(self, 1)
        before = signal.signal(signal.SIGUSR1, handler)
        self.addCleanup(signal.signal, signal.SIGUSR1, before)
        self.addCleanup(_dbpool.set_wait_hook, waiting.wait)
        _dbpool.set_wait_hook(None)  # this thread may have a hub from the tests above
        started = threading.Event()
        sender = threading.Thread(target=lambda: (started.wait(), signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)))
        sender.start()
        with self.assertRaises(Alarmed):
            started.set()
            _dbpool.wait(a.fileno(), True, LONG)
        sender.join()


class Grant(unittest.TestCase):
    """The dispatcher, with the queue of core replaced by one that this test serves."""

    class FakeLease:
        def __init__(self):
            self.released = []

        def status(self):
            return 2

        def release(self, status, how):
            self.released.append((status, how))

    class Wait:
        def __init__(self, queue):
            self.queue = queue
            self.granted = None
            self.polls = self.cancels = 0
            queue.append(self)

        def poll(self):
            self.polls += 1
            return _dbpool.E_BUSY if self.granted is None else self.granted

        def cancel(self):
            self.cancels += 1
            if self.granted is not None:
                return self.granted
            self.queue.remove(self)
            return _dbpool.E_TIMEOUT

    def setUp(self):
        self.queue = deque()
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.addCleanup(os.close, self.reader)
        self.addCleanup(os.close, self.writer)
        for name, value in [('wait_begin', lambda pool: self.begin()), ('wait_eventfd', lambda: self.reader),
                            ('Lease', self.FakeLease)]:
            patch = mock.patch.object(_dbpool, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        waiting.Dispatcher._instance = None
        self.dispatcher = waiting.Dispatcher.of(gevent.get_hub())
        self.addCleanup(setattr, waiting.Dispatcher, '_instance', None)
        self.addCleanup(self.dispatcher.watcher.stop)

    def tearDown(self):
        self.assertEqual((self.dispatcher.places, self.dispatcher.watcher.ref), (set(), False))

    def begin(self):
        return self.Wait(self.queue)

    def grant(self, n=1, result=None):
        """Serves the first n that wait, as another process does; one write for all."""
        granted = []
        for _ in range(n):
            place = self.queue.popleft()
            place.granted = result or self.FakeLease()
            granted.append(place)
        os.write(self.writer, b'12345678')
        return granted

    def start(self, n, seconds=60):
        self.order = []

        def wait(number):
            lease = waiting.acquire(0, seconds)
            self.order.append(number)
            return lease

        greenlets = [gevent.spawn(wait, number) for number in range(n)]
        gevent.sleep(0)
        return greenlets

    def test_in_order(self):
        greenlets = self.start(5)
        places = self.grant(3)
        gevent.joinall(greenlets[:3])
        self.assertEqual(self.order, [0, 1, 2])
        self.assertEqual([g.value for g in greenlets[:3]], [place.granted for place in places])
        self.grant(2)
        gevent.joinall(greenlets)
        self.assertEqual(self.order, [0, 1, 2, 3, 4])

    def test_granted_before_it_sleeps(self):
        def begin():
            wait = self.Wait(self.queue)
            wait.granted = self.FakeLease()
            return wait

        self.begin = begin
        self.assertIsInstance(waiting.acquire(0, 60), self.FakeLease)

    def test_failure_is_passed_on(self):
        greenlet, = self.start(1)
        self.grant(1, _dbpool.E_FAILED)
        self.assertEqual(greenlet.get(), _dbpool.E_FAILED)

    def test_queue_full(self):
        self.begin = lambda: _dbpool.E_FULL
        self.assertEqual(waiting.acquire(0, 60), _dbpool.E_FULL)

    def test_timeout_leaves_the_queue(self):
        self.assertEqual(waiting.acquire(0, 0.001), _dbpool.E_TIMEOUT)
        self.assertEqual(len(self.queue), 0)

    def test_granted_at_the_last_moment(self):
        def begin():
            wait = self.Wait(self.queue)
            gevent.get_hub().loop.run_callback(lambda: setattr(wait, 'granted', self.FakeLease()))
            return wait

        self.begin = begin
        self.assertIsInstance(waiting.acquire(0, 0.001), self.FakeLease)

    def test_killed(self):
        first, second = self.start(2)
        first.kill()
        self.assertEqual(len(self.queue), 1)
        self.grant()
        self.assertIsInstance(second.get(), self.FakeLease)

    def test_killed_after_the_grant(self):
        """The session was never touched: it goes back as it is."""
        greenlet, = self.start(1)
        place = self.queue.popleft()
        place.granted = self.FakeLease()
        greenlet.kill()
        self.assertEqual(place.granted.released, [(2, _dbpool.CLEAN)])

    def test_the_process_was_attached_anew(self):
        """It has another eventfd then, and the places that it had are gone."""
        before, = self.start(1)
        place, = self.queue
        place.granted = _dbpool.E_CLOSED  # nobody says so
        self.queue.clear()
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.addCleanup(os.close, self.reader)
        self.addCleanup(os.close, self.writer)
        after, = self.start(1)
        self.assertEqual(before.get(timeout=30), _dbpool.E_CLOSED)
        self.grant()
        self.assertIsInstance(after.get(timeout=30), self.FakeLease)

    def test_signals_in_the_hub(self):
        """A handler's exception there costs nobody his wake-up."""
        outcomes = set()
        with signals_in_the_hub(gevent.get_hub()) as more:
            while more() and outcomes <= {(self.FakeLease, 0)}:
                greenlet, = self.start(1, 5)
                place, = self.grant()
                outcomes.add((type(greenlet.get()), place.cancels))
        self.assertEqual(outcomes, {(self.FakeLease, 0)}, 'granted, and not found so at the time-out')

    def test_ten_thousand(self):
        """A grant costs the same however many wait: it looks at those that are served and at one more."""
        greenlets = self.start(10000)
        polls = sum(place.polls for place in self.queue)
        everybody = list(self.queue)
        for _ in range(10):
            self.grant()
            while not greenlets[0].ready():
                gevent.sleep(0)
            greenlets.pop(0)
        self.assertLessEqual(sum(place.polls for place in everybody) - polls, 20)
        gevent.killall(greenlets)
        self.assertEqual(len(self.queue), 0)


class Ping(unittest.TestCase):
    """_dbpool.ping on a socket whose other end is the test."""

    OK = b'\x07\0\0\x01\0\0\0\x02\0\0\0'

    def setUp(self):
        self.ours, self.server = socket.socketpair()
        self.addCleanup(self.ours.close)
        self.addCleanup(self.server.close)

    def ping(self, timeout_ms=5000):
        return _dbpool.ping(self.ours.fileno(), timeout_ms)

    def test_answered(self):
        self.server.sendall(self.OK)
        self.assertTrue(self.ping())
        self.assertEqual(self.server.recv(100), b'\x01\0\0\0\x0e')
        # Nothing of the answer is left for the driver.
        with self.assertRaises(BlockingIOError):
            self.ours.recv(1, socket.MSG_DONTWAIT)

    def test_an_answer_in_pieces(self):
        def answer():
            self.server.recv(100)
            for byte in self.OK:
                self.server.sendall(bytes([byte]))

        thread = threading.Thread(target=answer)
        thread.start()
        self.assertTrue(self.ping())
        thread.join()

    def test_no_answer(self):
        self.assertFalse(self.ping(20))
        self.server.sendall(self.OK[:6])
        self.assertFalse(self.ping(20))

    def test_the_server_has_gone(self):
        self.server.close()
        self.assertFalse(self.ping())

    def test_it_goes_while_we_wait(self):
        def leave():
            self.server.recv(100)
            self.server.close()

        thread = threading.Thread(target=leave)
        thread.start()
        self.assertFalse(self.ping())
        thread.join()

    def test_anything_else_is_no_answer(self):
        for answer in (b'\x07\0\0\x01\xff\0\0\x02\0\0\0',  # an error
                       b'\x07\0\0\x02\0\0\0\x02\0\0\0',  # of another command
                       b'\0\0\0\x01', b'\xff\xff\xff\x01'):
            with self.subTest(answer):
                self.server.sendall(answer)
                self.assertFalse(self.ping())
                self.setUp()


if __name__ == '__main__':
    unittest.main()
