# SPDX-License-Identifier: MIT
"""Workers that die or end, with leases and while waiting; sessions and servers that go; a connector that is killed."""

import http.client
import os
import signal
import unittest

from tests.e2e.base import MODES, WithServer, WithUwsgi, matrix
from tests.support import in_background, is_alive, session_sockets, start_time, wait_until

POOL = {'pool_size': 3, 'max_overflow': 0, 'timeout': 60}


LOST = (OSError, http.client.HTTPException)  # what a client sees of a worker that died with its request


class NoAnswer:
    def no_answer(self, page):
        """The page's client must have lost its connection."""
        try:
            answer = page.result()
        except LOST:
            return
        self.fail('an answer from the dead: %r' % answer)


class Deaths(NoAnswer, WithUwsgi):
    pool = POOL
    processes = 2

    def other_holds(self):
        """A page that holds a session, anywhere: (worker, meeting, page)."""
        name = self.new_name()
        page = in_background(self.uwsgi.get, '/hold', meet=name)
        self.addCleanup(self.go, name)
        return self.worker_here(name), name, page

    def respawned(self, worker, old):
        def new():
            pid = self.uwsgi.worker_pids().get(worker)
            return pid and pid != old and pid
        return wait_until(new, 60, 'worker %d is respawned' % worker)

    def after_death(self, worker, old, dead_session):
        """What must be true after any death: the session is gone, the new worker has no session fd, all is whole."""
        wait_until(lambda: dead_session not in self.sessions(), 30, "the dead worker's session leaves the server")
        free = self.server.query("SELECT IS_FREE_LOCK('held by the dead')")[0][0]
        self.assertEqual(free, 1, 'what the dead held at the server is free')
        return self.respawned(worker, old)


@matrix()
class Killed(Deaths):
    def die(self, how):
        """A page in the worker that the first page did not take; if both are in one, its partner dies with it."""
        other, held, holder = self.other_holds()
        victim = 3 - other
        pids = self.uwsgi.worker_pids()
        name, dying = self.on_worker_other_than(other, how)
        session = self.sessions_of(pids[victim])
        self.go(name)
        self.no_answer(dying)
        pid = self.after_death(victim, pids[victim], session)
        self.assertEqual(session_sockets(pid, self.server.port), {}, 'the respawned worker inherited no session fd')
        self.go(held)
        answer = holder.result()
        self.assertEqual(answer.status, 200, answer)
        self.assertIn(answer.json()['id'], self.sessions(), "nobody else's session is hurt")
        self.whole(self.uwsgi)
        for n in range(6):
            self.assertEqual(self.uwsgi.get('/rows', ids='3', token='t').json()['rows'], [[3, self.nonces[3], 't']])

    def sessions_of(self, pid):
        """The session that holds the lock: only the dying page has it."""
        return wait_until(lambda: self.server.query("SELECT IS_USED_LOCK('held by the dead')")[0][0], 30,
                          'the dying page holds its lock')

    def on_worker_other_than(self, other, how):
        """Asks for the dying page until it arrives at another worker than `other`: (its meeting, its page).

        Those that arrive at `other` wait there meanwhile, so that it runs out of threads in the end.
        """
        elsewhere = []
        try:
            while len(elsewhere) < 60:
                name = self.new_name()
                page = in_background(self.uwsgi.get, '/die', how=how, meet=name, only=3 - other)
                if self.worker_here(name) != other:
                    return name, page
                elsewhere.append((name, page))
            raise AssertionError('no request reached another worker')
        finally:
            for name, page in elsewhere:
                self.go(name)
                page.result()

    def test_sigkill_while_holding(self):
        self.die('kill')

    def test_segfault_while_holding(self):
        self.die('segv')

    def test_exit_while_holding(self):
        self.die('exit')


@matrix()
class KilledWaiting(Deaths):
    """Three workers, one session: one holds it, another one's waiters die with it."""

    pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 60}
    processes = 3

    def test_killed_while_waiting(self):
        """I2, I4: a dead waiter is never handed the session, and those behind it are served."""
        holding, held, holder = self.other_holds()
        # Prefork workers wait one request each; elsewhere a few waiters are in every process.
        wanted = 2 if self.mode == 'prefork' else 8
        waiters = [in_background(self.uwsgi.get, '/rows', ids='4', token='w') for _ in range(wanted)]
        wait_until(lambda: self.uwsgi.metric('dbpool.default.waiting') == wanted, 30, 'all wait')
        victim = next(worker for worker in (1, 2, 3) if worker != holding)
        old = self.uwsgi.worker_pids()[victim]
        os.kill(old, signal.SIGKILL)
        self.respawned(victim, old)
        self.go(held)
        self.assertEqual(holder.result().status, 200)
        for page in waiters:
            try:
                answer = page.result()
            except LOST:
                continue
            self.assertEqual(answer.status, 200, answer)
            self.assertEqual(answer.json()['rows'], [[4, self.nonces[4], 'w']])
        self.whole(self.uwsgi)
        self.assertEqual(self.uwsgi.get('/rows', ids='4', token='z').json()['rows'], [[4, self.nonces[4], 'z']])


class SameProcesses(WithServer, unittest.TestCase):
    """Ends that uWSGI itself brings about; more of them, with requests under way, in test_life.py."""

    def ends_well(self, mode, options, end, processes=2):
        with self.make_uwsgi('mysqlclient', mode, {'default': self.database(POOL)}, processes, options) as uwsgi:
            before = uwsgi.worker_pids()
            for n in range(8):
                self.assertEqual(uwsgi.get('/rows', ids='1', token='x').status, 200)
            end(uwsgi)
            wait_until(lambda: set(uwsgi.worker_pids().values()) - set(before.values()), 60, 'a new worker')
            uwsgi.note_processes()
            for n in range(8):
                answer = wait_until(lambda: self.patiently(uwsgi), 30, 'an answer')
                self.assertEqual(answer.json()['rows'], [[2, self.nonces[2], 'y']])
            self.whole(uwsgi)
            self.assertLessEqual(len(self.sessions()), POOL['pool_size'])
        wait_until(lambda: not self.sessions(), 30, 'the sessions end with the instance')

    def patiently(self, uwsgi):
        try:
            answer = uwsgi.get('/rows', ids='2', token='y')
        except LOST:
            return None  # a request that a dying worker had accepted is lost with it, pool or not
        self.assertEqual(answer.status, 200, answer)
        return answer

    def test_worker_is_asked_to_end(self):
        for mode in MODES:
            for sig in (signal.SIGTERM, signal.SIGHUP):
                with self.subTest(mode=mode, signal=sig):
                    self.ends_well(mode, {}, lambda uwsgi: os.kill(uwsgi.worker_pids()[1], sig))

    def test_chain_reload_keeps_the_sessions(self):
        """The master lives on, and so do its sessions."""
        for mode in MODES:
            with self.subTest(mode):
                fifo = os.path.join(self.meet, 'fifo-' + mode)
                kept = []

                def end(uwsgi):
                    kept.extend(self.sessions())
                    with open(fifo, 'w') as f:
                        f.write('c')

                self.ends_well(mode, {'lazy-apps': True, 'master-fifo': fifo}, end)
                self.assertTrue(kept)

    def test_full_reload_starts_fresh(self):
        """SIGHUP: the master executes itself anew. The old sessions end, the new workers find a new pool."""
        for mode in MODES:
            with self.subTest(mode=mode), self.make_uwsgi('mysqlclient', mode) as uwsgi:
                self.assertEqual(uwsgi.get('/rows', ids='1', token='x').status, 200)
                sessions, workers = set(self.sessions()), set(uwsgi.worker_pids().values())

                def reloaded():
                    try:
                        pids = set(uwsgi.worker_pids().values())
                        return pids and not pids & workers and uwsgi.get('/ping').status == 200
                    except (OSError, ValueError):  # the stats server is between two lives
                        return False

                os.kill(uwsgi.pid, signal.SIGHUP)
                wait_until(reloaded, 60, 'the workers are others')
                uwsgi.note_processes()
                answer = uwsgi.get('/rows', ids='1', token='x')
                self.assertEqual(answer.status, 200, answer)
                self.assertNotIn(answer.json()['id'], sessions)
                wait_until(lambda: not sessions & set(self.sessions()), 30, 'the old sessions end')
                self.whole(uwsgi)

    def test_cheaper(self):
        """Workers come with load and go again: sessions stay with the master, capacity stays whole."""
        options = {'cheaper': 1, 'cheaper-initial': 1, 'cheaper-step': 1, 'cheaper-overload': 1}
        with self.make_uwsgi('mysqlclient', 'prefork', {'default': self.database(POOL)}, 4, options) as uwsgi:
            meetings = []
            for n in range(3):
                name = self.new_name()
                meetings.append((name, in_background(uwsgi.get, '/hold', meet=name)))
                self.here(name)
            uwsgi.note_processes()
            self.assertEqual(len({self.worker_here(name) for name, _ in meetings}), 3)
            self.assertEqual(uwsgi.pool()['leased'], 3)
            for name, page in meetings:
                self.go(name)
                self.assertEqual(page.result().status, 200)
            wait_until(lambda: len(uwsgi.worker_pids()) == 1, 120, 'the others are cheaped')
            self.whole(uwsgi)
            self.assertEqual(uwsgi.get('/rows', ids='1', token='x').status, 200)


class ServerEnds(WithUwsgi, unittest.TestCase):
    """Sessions that the server ends, and a connector that dies."""

    pool = {'pool_size': 2, 'max_overflow': 0, 'timeout': 60}

    def test_idle_session_killed_by_the_server(self):
        self.uwsgi.get('/rows', ids='1', token='x')
        self.whole(self.uwsgi)
        victims = set(self.sessions())
        for pk in victims:
            self.server.kill_session(pk)
        wait_until(lambda: not victims & set(self.sessions()) and
                   self.uwsgi.metric('dbpool.default.closed') >= len(victims), 30, 'the pool notices')
        for _ in range(10):
            self.assertEqual(self.uwsgi.get('/rows', ids='1', token='x').json()['rows'], [[1, self.nonces[1], 'x']])

    def test_restart_of_the_server(self):
        self.uwsgi.get('/rows', ids='1', token='x')
        self.server.restart()
        answer = self.uwsgi.get('/rows', ids='1', token='x')
        self.assertEqual(answer.status, 200, answer)

    def test_connector_killed(self):
        """It is respawned and logs in again: the pool grows after its death as before it."""
        self.uwsgi.get('/rows', ids='1', token='x')
        connector, = self.uwsgi.helper_pids()
        started = start_time(connector)
        os.kill(connector, signal.SIGKILL)
        wait_until(lambda: not is_alive(connector, started), 30, 'the connector is gone')
        for pk in self.sessions():
            self.server.kill_session(pk)
        wait_until(lambda: len(self.uwsgi.helper_pids()) == 1, 30, 'a new connector')
        self.uwsgi.note_processes()
        answer = self.uwsgi.get('/rows', ids='1', token='x')
        self.assertEqual(answer.status, 200, answer)
