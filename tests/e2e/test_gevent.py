# SPDX-License-Identifier: MIT
"""Nothing blocks the hub (I8): queries of one worker overlap, waits end when asked, idle workers sleep on (I11)."""

import contextlib
import os
import signal
import unittest

from tests.e2e.base import WithUwsgi, matrix
from tests.support import all_threads_stopped, concurrently, in_background, unix_sockets, voluntary_switches, wait_until


@matrix(modes=['gevent'])
class Overlap(WithUwsgi):
    pool = {'pool_size': 20, 'max_overflow': 0, 'timeout': 30}

    def test_twenty_queries_of_one_worker_overlap(self):
        """All twenty wait in the server at the same time while one worker alone is running, and it still answers.

        Both workers used the sessions before: nothing that a former holder left may disturb the waits of this one.
        """
        used = {}

        def all_shared():
            with self.gate():
                pages = [in_background(self.uwsgi.get, '/gate') for _ in range(20)]
                wait_until(lambda: len(self.waiting_at_gate()) == 20, 30, 'twenty queries at the gate')
            for page in pages:
                answer = page.result().json()
                used.setdefault(answer['id'], set()).add(answer['worker'])
            return len(used) >= 20 and all(len(workers) == 2 for workers in used.values())

        wait_until(all_shared, 60, 'each session is used by both workers')
        self.whole(self.uwsgi)
        pids = self.uwsgi.worker_pids()
        os.kill(pids[1], signal.SIGSTOP)
        try:
            # Connections that the kernel had given to the stopped one already would wait with it: none are open.
            with self.gate():
                pages = [in_background(self.uwsgi.get, '/gate') for _ in range(20)]
                wait_until(lambda: len(self.waiting_at_gate()) == 20, 30, 'twenty queries of one worker at the gate')
                self.assertEqual(self.uwsgi.get('/ping').json()['worker'], 2)
            answers = [page.result() for page in pages]
        finally:
            os.kill(pids[1], signal.SIGCONT)
        self.assertEqual({answer.status for answer in answers}, {200})
        self.assertEqual({answer.json()['worker'] for answer in answers}, {2})
        self.assertEqual(len({answer.json()['id'] for answer in answers}), 20)

    def test_idle_worker_is_not_woken(self):
        """300 leases and queries elsewhere cost an idle worker next to nothing: its share of the accept at most."""
        self.use_all()
        self.whole(self.uwsgi)
        pids = self.uwsgi.worker_pids()
        name = self.new_name()
        # The page runs in one worker, known before it starts its queries.
        page = in_background(self.uwsgi.get, '/leases_after', n=300, meet=name)
        idle = ({1, 2} - {self.worker_here(name)}).pop()
        before = voluntary_switches(pids[idle])
        self.go(name)
        self.assertEqual(page.result().status, 200)
        self.assertLess(voluntary_switches(pids[idle]) - before, 30)

    def test_timeout_thrown_into_a_query(self):
        """gevent.Timeout comes out as itself; its session is ended, not handed on in the middle of a reply (I5)."""
        answer = self.uwsgi.get('/gevent_timeout').json()
        self.assertEqual(answer['outcome'], 'Timeout', answer)
        wait_until(lambda: answer['id'] not in self.sessions(), 30, 'the interrupted session leaves the server')
        self.assertEqual(self.uwsgi.get('/rows', ids='9', token='t').json()['rows'], [[9, self.nonces[9], 't']])

    def test_two_greenlets_on_one_connection(self):
        self.assertEqual(self.uwsgi.get('/shared_object').json()['outcomes'], ['first: ok', 'second: ProgrammingError'])


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        wait_until(lambda: all_threads_stopped(pid), 30, 'each of its threads stands still')
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


class SlowBroker(WithUwsgi):
    """The master stands still while a worker asks it for a session: only those who need the answer wait for it."""

    processes = 1
    pool = {'pool_size': 4, 'max_overflow': 0, 'timeout': 60, 'min_size': 4}

    def arrive(self, **parameters):
        name = self.new_name()
        page = in_background(self.uwsgi.get, '/arrived', meet=name, **parameters)
        self.here(name)
        return page


@matrix(modes=['gevent', 'threads'])
class MeetsSessions(SlowBroker):
    @classmethod
    def make_uwsgi(cls, driver, mode, databases, *args, **more):
        hasty = {'pool_size': 2, 'max_overflow': 0, 'timeout': 1, 'min_size': 2}
        databases = dict(databases, hasty=cls.database(hasty))
        return super().make_uwsgi(driver, mode, databases, *args, **more)

    @contextlib.contextmanager
    def stands_still(self, alias):
        """The master does, and all sessions are there, of which the worker knows one, which is in use."""
        name = self.new_name()
        held = in_background(self.sql, 'SELECT CONNECTION_ID()', alias=alias, meet=name)
        self.here(name)
        size = self.uwsgi.pool(alias)['max']
        wait_until(lambda: self.uwsgi.pool(alias)['idle'] == size - 1, 30, 'all sessions are open')
        try:
            with stopped(self.uwsgi.pid):
                yield
        finally:
            self.go(name)
            held.result()

    def test_others_go_on(self):
        with self.stands_still('default'):
            pages = [self.arrive() for _ in range(3 if self.mode == 'gevent' else 2)]
            for _ in range(3):
                self.assertEqual(self.uwsgi.get('/ping').status, 200)
            self.assertEqual([page.done() for page in pages], [False] * len(pages))
        answers = [page.result().json() for page in pages]
        self.assertEqual([answer.get('error') for answer in answers], [None] * len(pages), answers)

    def test_a_time_out_names_the_cause(self):
        with self.stands_still('hasty'):
            answer = self.arrive(alias='hasty').result().json()
        self.assertEqual(answer.get('error'), 'OperationalError', answer)
        self.assertIn("the pool's broker in the uWSGI master does not answer", answer['text'])
        self.assertIn('id', self.arrive(alias='hasty').result().json())


@matrix(modes=['gevent'])
class FirstUse(SlowBroker):
    """The first requests of a worker attach it, and register its pools: each request does, as Django makes the wrappers
    of all aliases at its start."""

    pool = {'pool_size': 4, 'max_overflow': 0, 'timeout': 60}

    @classmethod
    def make_uwsgi(cls, *args, **more):
        with open(os.path.join(cls.meet, 'file'), 'w') as f:
            f.write('of the worker, without Django')
        args = args[:4] + ({'static-map': '/file=' + os.path.join(cls.meet, 'file')},) + args[5:]
        return super().make_uwsgi(*args, ready=None, **more)

    def test_others_go_on(self):
        worker = self.uwsgi.worker_pids()[1]
        before = set(unix_sockets(worker).values())
        with stopped(self.uwsgi.pid):
            pages = [in_background(self.uwsgi.get, '/rows', ids='1', token='t') for _ in range(3)]
            wait_until(lambda: set(unix_sockets(worker).values()) - before, 30, 'the worker asks for its channel')
            for _ in range(3):
                self.assertEqual(self.uwsgi.get('/file').status, 200)
            self.assertEqual([page.done() for page in pages], [False] * 3)
            self.assertEqual(len(set(unix_sockets(worker).values()) - before), 1)  # one asks for all
        self.assertEqual([page.result().status for page in pages], [200] * 3)


class WithoutWaitHook(WithUwsgi, unittest.TestCase):
    """mysqlclient on a client library that has no I/O wait option (Oracle's): the fallback overlaps queries too."""

    pool = {'pool_size': 10, 'max_overflow': 0, 'timeout': 30}
    processes = 1
    environ = {'DBPOOL_FORCE_FALLBACK': '1'}

    def test_queries_overlap(self):
        with self.gate():
            pages = [in_background(self.uwsgi.get, '/gate') for _ in range(10)]
            wait_until(lambda: len(self.waiting_at_gate()) == 10, 30, 'ten queries at the gate')
            self.assertEqual(self.uwsgi.get('/ping').status, 200)
        self.assertEqual({page.result().status for page in pages}, {200})

    def test_right_rows(self):
        answers = concurrently(lambda n: self.uwsgi.get('/rows', ids='%d,%d' % (n + 1, n + 2), token=n), range(60), 12)
        for n, answer in enumerate(answers):
            self.assertEqual(getattr(answer, 'status', answer), 200, answer)
            self.assertEqual(answer.json()['rows'], [[pk, self.nonces[pk], str(n)] for pk in (n + 1, n + 2)])


@matrix(modes=['gevent', 'threads'])
class Forgotten(WithUwsgi):
    """Greenlets and threads that end without close(): their end returns the lease, no garbage collection needed."""

    pool = {'pool_size': 2, 'max_overflow': 0, 'timeout': 30}
    processes = 1

    def test_ended_without_close(self):
        for _ in range(5):
            answer = self.uwsgi.get('/leak', n=6)
            self.assertEqual(answer.status, 200, answer)
            self.assertEqual(len(answer.json()['ids']), 6)
        self.whole(self.uwsgi)
        self.assertLessEqual(len(self.sessions()), 2)


@matrix(modes=['prefork'])
class Signals(WithUwsgi):
    processes = 1

    def test_alarm_interrupts_a_query(self):
        """SIGALRM's handler runs while a query waits, its exception comes out as itself, the session is ended."""
        answer = self.uwsgi.get('/alarmed').json()
        self.assertEqual(answer['outcome'], 'Alarmed', answer)
        wait_until(lambda: answer['id'] not in self.sessions(), 30, 'the interrupted session leaves the server')
        self.assertEqual(self.uwsgi.get('/rows', ids='9', token='t').json()['rows'], [[9, self.nonces[9], 't']])
