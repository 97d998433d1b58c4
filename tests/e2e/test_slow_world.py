# SPDX-License-Identifier: MIT
"""What becomes of dead requests' statements, and of the living, in a slow world (worlds.py): a server far away, one
without a connection left, servers that never say a word, a stopped master, a log that stands still, a full disk.
"""

import os
import signal
import socket
import unittest

from tests.e2e.base import STOCK
from tests.e2e.living import BLOCKED, Living
from tests.e2e.worlds import Crowded, Far, FullDisk, StillLog, stopped
from tests.support import Proxy, in_background, is_alive, wait_until


def is_served(uwsgi):
    try:
        return uwsgi.get('/sql', {'statements': ['SELECT 7']}).json().get('results') == [[[7]]]
    except (OSError, ValueError):
        return False


class ManyStatements(Living):
    """A worker ends with many sessions, each within a statement that waits for a row lock."""

    N = 60

    def ends(self, end, ended=None, idle=0, said=''):
        pool = {'pool_size': self.N + idle, 'max_overflow': 0, 'timeout': 60,
                'min_size': self.N + idle if idle else 0}
        uwsgi = self.make_uwsgi('mysqlclient', 'gevent', {'default': self.database(pool)}, 1,
                                self.short_lived(gevent=self.N + 10))
        with self.row_locked(), self.watched(self.N + idle), uwsgi:
            pages = self.all_blocked(uwsgi, self.N)
            if idle:
                wait_until(lambda: len(self.sessions()) == self.N + idle, 30, 'some are idle')
            self.worker = uwsgi.worker_pids()[1]
            end(uwsgi)
            wait_until(lambda: not self.blocked(), 60, 'no statement of a dead request is at the server')
            for page in pages:
                page.result()
            self.assertEqual(self.counter(), 0)
            self.assertNotIn('is reused', uwsgi.log(), 'none is given up')
            wait_until(lambda: said in uwsgi.log(), 30, 'the log says ' + said)
            if ended is not None:
                self.assertEqual(uwsgi.wait_exit(), ended)
            else:
                wait_until(lambda: is_served(uwsgi), 60, 'the next worker serves')
                uwsgi.note_processes()
                self.whole(uwsgi)
        wait_until(lambda: not self.sessions(), 30, 'no session is left')
        self.assertEqual(self.counter(), 0, 'nothing of a dead request was executed')

    def kill(self, uwsgi):
        os.kill(self.worker, signal.SIGKILL)
        wait_until(lambda: not is_alive(self.worker), 30, 'it has ended')


class KilledReloadedStopped(ManyStatements):
    def test_killed(self):
        self.ends(self.kill)

    def test_full_reload(self):
        self.ends(lambda uwsgi: os.kill(uwsgi.pid, signal.SIGHUP))

    def test_stop(self):
        self.ends(lambda uwsgi: os.kill(uwsgi.pid, signal.SIGINT), ended=0)


class FarAway(Far, FullDisk, KilledReloadedStopped, unittest.TestCase):
    delay = 0.0  # until all wait, for they need some time to log in

    def ends(self, end, **more):
        def far(uwsgi):
            self.proxy.delay = 0.05
            end(uwsgi)

        try:
            super().ends(far, **more)
        finally:
            self.proxy.delay = 0.0


class StoppedMaster(KilledReloadedStopped, unittest.TestCase):
    """It stands still when it is told to reload or to stop, and goes on."""

    def ends(self, end, **more):
        def stopped_meanwhile(uwsgi):
            with stopped(uwsgi.pid):
                end(uwsgi)

        super().ends(stopped_meanwhile, **more)

    def test_idle_sessions_serve_on(self):
        """And whoever needs a new one has it when the master goes on."""
        pool = {'pool_size': 3, 'max_overflow': 0, 'min_size': 2, 'timeout': 60}
        with self.make_uwsgi('mysqlclient', 'prefork', {'default': self.database(pool)}, 3) as uwsgi, self.watched(3):
            self.run_sql(uwsgi, 'SELECT 1')
            wait_until(lambda: len(self.sessions()) == 2, 30, 'the floor is open')
            # One at a time, a worker takes the session that it had last, which it need not ask the master for.
            known = set()
            wait_until(lambda: known.add(self.run_sql(uwsgi, 'SELECT 1')['worker']) or len(known) == 3, 60,
                       'each worker has had one')
            with stopped(uwsgi.pid):
                for _ in range(20):
                    self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])
                names = [self.new_name() for _ in range(3)]
                pages = [in_background(uwsgi.get, '/hold', meet=name) for name in names]
            for name in names:
                self.here(name)
            self.assertEqual(len(self.sessions()), 3)
            for name, page in zip(names, pages):
                self.go(name)
                self.assertEqual(page.result().status, 200)
            self.whole(uwsgi)


class NoConnectionLeft(Crowded, KilledReloadedStopped, unittest.TestCase):
    """One idle session makes room for the login that kills the others."""

    N = 8

    def ends(self, end, **more):
        super().ends(end, idle=1, said='failed: (1040)', **more)


class LogThatStandsStill(StillLog, Living, unittest.TestCase):
    def test_all_but_the_log_goes_on(self):
        """uWSGI's own lines wait for the log, and the master with them: it starts no worker meanwhile. The pool's do
        not: leases, new sessions and KILLs."""
        pool = {'pool_size': 4, 'max_overflow': 0, 'timeout': 60}
        databases = {'default': self.database(pool), 'refused': dict(self.database(pool), PASSWORD='not this one')}
        with self.row_locked(), self.watched(4), self.make_uwsgi('mysqlclient', 'prefork', databases, 4) as uwsgi:
            self.run_sql(uwsgi, 'SELECT 1')
            pages = self.all_blocked(uwsgi, 1)
            victims = uwsgi.worker_pids()
            with self.collector.standing_still():
                answer = uwsgi.get('/sql', {'statements': ['SELECT 1'], 'alias': 'refused'}).json()
                self.assertEqual(answer['code'], 1045, 'which the pool would log')
                names = [self.new_name() for _ in range(3)]
                holders = [in_background(uwsgi.get, '/hold', meet=name) for name in names]
                for name in names:
                    self.here(name)
                self.assertEqual(len(self.sessions()), 4, 'new sessions have been opened')
                free = {self.worker_here(name) for name in names}
                worker, = set(victims) - free
                os.kill(victims[worker], signal.SIGKILL)
                wait_until(lambda: not self.blocked(), 30, 'the statement of the dead request is gone')
                for name, page in zip(names, holders):
                    self.go(name)
                    self.assertEqual(page.result().status, 200)
                self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])
            for page in pages:
                page.result()
            wait_until(lambda: len(set(uwsgi.worker_pids().values()) - {victims[worker]}) == 4, 30, 'a new worker')
            uwsgi.note_processes()
            self.whole(uwsgi)
            wait_until(lambda: '1045' in uwsgi.log(), 30, 'what the pool had to say is said')
        self.assertEqual(self.counter(), 0)


class DeadServers(Living, unittest.TestCase):
    """Two servers take connections and never say a word: a third is served as if it were alone."""

    def setUp(self):
        silent = [self.entered(socket.create_server(('127.0.0.1', 0), backlog=64)) for _ in range(2)]
        pool = {'pool_size': 4, 'max_overflow': 0, 'timeout': 30}
        databases = {'default': self.database(pool), 'stock': self.database(engine=STOCK)}
        for n, listener in enumerate(silent):
            databases['silent %d' % n] = dict(self.database(pool, options={'connect_timeout': 20}),
                                              PORT=listener.getsockname()[1])
        self.uwsgi = self.entered(self.make_uwsgi('mysqlclient', 'gevent', databases, 1))
        # The instance goes first, then those that wait for it.
        self.pages = [in_background(self.ask, 'silent %d' % n) for n in (0, 1) for _ in range(4)]
        wait_until(lambda: sum(self.uwsgi.pool('silent_%d' % n).get('opening', 0) for n in (0, 1)) == 8, 30,
                   'they wait for a greeting')

    def ask(self, alias):
        try:
            return self.uwsgi.get('/sql', {'statements': ['SELECT 1'], 'alias': alias})
        except OSError as error:
            return error

    def still_waiting(self):
        self.assertEqual([page.done() for page in self.pages], [False] * 8, 'the silent ones are waited for still')

    def test_the_living_one_opens_sessions(self):
        names = [self.new_name() for _ in range(4)]
        pages = [in_background(self.uwsgi.get, '/hold', meet=name) for name in names]
        for name in names:
            self.here(name)
        self.still_waiting()
        for name, page in zip(names, pages):
            self.go(name)
            self.assertEqual(page.result().status, 200)

    def test_the_living_one_is_told_to_kill(self):
        with self.row_locked():
            page = in_background(self.uwsgi.get, '/in_vain', statement=BLOCKED % 'worker', s=1)
            wait_until(self.blocked, 30, 'it waits for the row')
            self.assertEqual(page.result().json()['outcome'], 'Timeout')
            wait_until(lambda: not self.blocked(), 15, 'it is killed')
        self.still_waiting()


class StalledServer(Living, unittest.TestCase):
    """A server that said a word once: what is to be killed there does not keep another one's KILLs waiting."""

    N = 6

    def test_a_worker_dies_with_sessions_of_both(self):
        with Proxy((self.server.host, self.server.port)) as proxy:
            pool = {'pool_size': self.N, 'max_overflow': 0, 'timeout': 60}
            databases = {'default': self.database(pool), 'stalled': dict(self.database(pool), PORT=proxy.port)}
            with self.row_locked(), self.make_uwsgi('mysqlclient', 'gevent', databases, 1) as uwsgi:
                pages = [in_background(self.ask_in_vain, uwsgi, alias=alias, by=by)
                         for alias, by in (('default', 'worker'), ('stalled', 'stalled')) for _ in range(self.N)]
                wait_until(lambda: len(self.blocked()) == 2 * self.N, 30, 'all wait for the row')
                proxy.stall()
                os.kill(uwsgi.worker_pids()[1], signal.SIGKILL)
                wait_until(lambda: not self.blocked('worker'), 15, "the living server's are gone")
                self.assertEqual(len(self.blocked('stalled')), self.N)
                proxy.heal()
                wait_until(lambda: not self.blocked(), 60, 'and so are the others when it speaks again')
                for page in pages:
                    page.result()
                wait_until(lambda: is_served(uwsgi), 30, 'a new worker')
                uwsgi.note_processes()
                for alias in databases:
                    self.whole(uwsgi, alias)
        self.assertEqual(self.counter(), 0)


if __name__ == '__main__':
    unittest.main()
