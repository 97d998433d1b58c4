# SPDX-License-Identifier: MIT
"""uWSGI's life around the pool: respawns, reloads, stops. After each, nothing of a dead request runs at the server, the
cap holds by the server's own count, and the application's files are its own.
"""

import contextlib
import glob
import os
import signal
import socket
import tempfile
import threading
import unittest

from tests.e2e.base import STOCK, USER, WithServer, matrix
from tests.support import Proxy, in_background, wait_until

BLOCKED = 'UPDATE counters SET n = n + 1 WHERE id = 1'


class Life(WithServer):
    driver = 'mysqlclient'
    mode = 'prefork'

    @contextlib.contextmanager
    def row_locked(self):
        """Whoever updates row 1 of counters waits meanwhile."""
        keeper = self.server.connect(database='app', autocommit=False)
        try:
            with keeper.cursor() as cursor:
                cursor.execute('UPDATE counters SET n = 0 WHERE id = 1')
            yield
            keeper.rollback()
        finally:
            keeper.close()

    def blocked(self):
        return [row[0] for row in self.server.query('SHOW FULL PROCESSLIST') if row[7] == BLOCKED]

    @contextlib.contextmanager
    def watched(self, cap):
        """The server never has more sessions of the pool's user than this, and one login that says KILL."""
        done, most = threading.Event(), [0]

        def look():
            eye = self.server.connect()
            with contextlib.closing(eye), eye.cursor() as cursor:
                while not done.wait(0.01):
                    cursor.execute("SELECT COUNT(*) FROM information_schema.processlist WHERE user = 'app'")
                    most[0] = max(most[0], cursor.fetchone()[0])

        looking = in_background(look)
        try:
            yield
        finally:
            done.set()
            looking.result()
        self.assertLessEqual(most[0], cap + 1)

    def ask_in_vain(self, uwsgi):
        """A request whose worker ends under it."""
        try:
            return uwsgi.get('/sql', {'statements': [BLOCKED]}).status
        except (OSError, ValueError) as error:
            return error


class StatementsOfTheDead(Life, unittest.TestCase):
    """A statement waits for a lock when its request is ended. It must not go on, and be executed when the lock is free."""

    CAP = 3

    def ends(self, end, options=(), ended=None):
        fifo = os.path.join(self.meet, self.new_name())
        options = dict({'master-fifo': fifo, 'worker-reload-mercy': 1, 'reload-mercy': 1,
                        'metrics-dir': tempfile.mkdtemp(dir=self.meet)}, **dict(options))
        pool = {'pool_size': self.CAP, 'max_overflow': 0, 'timeout': 30}
        before = self.counter()
        with self.make_uwsgi(self.driver, self.mode, {'default': self.database(pool)}, 2, options) as uwsgi, \
                self.watched(self.CAP):
            with self.row_locked():
                requests = [in_background(self.ask_in_vain, uwsgi) for _ in range(2)]
                wait_until(lambda: len(self.blocked()) == 2, 30, 'both wait for the lock')
                workers = set(uwsgi.worker_pids().values())
                uwsgi.note_processes()

                def command(letter):
                    with open(fifo, 'w') as f:
                        f.write(letter)

                end(uwsgi, command)
                wait_until(lambda: not self.blocked(), 30, 'the statements have ended')
                for request in requests:
                    self.assertNotEqual(request.result(), 200)
            self.assertEqual(self.counter(), before, 'nothing of a dead request is executed')
            if ended is not None:
                self.assertEqual(uwsgi.wait_exit(), ended)
            else:
                def others():
                    try:
                        return not set(uwsgi.worker_pids().values()) & workers
                    except (OSError, ValueError):  # between two lives
                        return False

                wait_until(others, 30, 'the workers are others')
                uwsgi.note_processes()
                self.run_sql(uwsgi, 'SELECT 1')
                self.whole(uwsgi)
        wait_until(lambda: not self.sessions(), 30, 'no session is left')

    def test_workers_killed(self):
        self.ends(lambda uwsgi, command: [os.kill(pid, signal.SIGKILL) for pid in uwsgi.worker_pids().values()])

    def test_harakiri(self):
        self.ends(lambda uwsgi, command: None, {'harakiri': 2})

    def test_full_reload(self):
        self.ends(lambda uwsgi, command: os.kill(uwsgi.pid, signal.SIGHUP))

    def test_full_reload_with_lazy_apps(self):
        self.ends(lambda uwsgi, command: command('r'), {'lazy-apps': True})

    def test_brutal_reload(self):
        self.ends(lambda uwsgi, command: command('R'))

    def test_chain_reload(self):
        self.ends(lambda uwsgi, command: command('c'), {'lazy-apps': True})

    def test_touch_reload(self):
        path = os.path.join(self.meet, self.new_name())
        open(path, 'w').close()

        def touch(uwsgi, command):
            later = os.stat(path).st_mtime + 10
            os.utime(path, (later, later))

        self.ends(touch, {'touch-reload': path})

    def test_stop(self):
        self.ends(lambda uwsgi, command: os.kill(uwsgi.pid, signal.SIGINT), ended=0)

    def test_stop_with_the_terminal(self):
        """Ctrl-C goes to all processes of the terminal at once, the connector too."""
        def interrupt(uwsgi, command):
            for pid in [uwsgi.pid] + uwsgi.helper_pids():
                os.kill(pid, signal.SIGINT)

        self.ends(interrupt, ended=0)

    def test_graceful_stop(self):
        self.ends(lambda uwsgi, command: command('q'), ended=0)


class RequestsUnderWay(Life):
    """A graceful reload lets requests end; those that only now need a session are served too."""

    def test_a_new_session_in_a_reload(self):
        pool = {'pool_size': 4, 'max_overflow': 0, 'timeout': 30}
        with self.make_uwsgi('mysqlclient', self.mode, {'default': self.database(pool)}, 2,
                             {'worker-reload-mercy': 30, 'reload-mercy': 30}) as uwsgi:
            holding, late = self.new_name(), self.new_name()
            pages = [in_background(uwsgi.get, '/hold', meet=holding)]
            self.here(holding)
            pages.append(in_background(uwsgi.get, '/late', meet=late))
            self.here(late)
            self.assertEqual(len(self.sessions()), 1, 'the second request needs a session that is not there yet')
            os.kill(uwsgi.pid, signal.SIGHUP)
            wait_until(lambda: 'killing workers' in uwsgi.log(), 30, 'the reload has begun')
            self.go(late)
            answer = pages[1].result()
            self.assertEqual(answer.status, 200, answer)
            self.go(holding)
            pages[0].result()
            wait_until(lambda: uwsgi.log().count('[dbpool] pool ') >= 2 or uwsgi.get('/rows', ids='1', token='x'), 30,
                       'the next life')


matrix(drivers=('mysqlclient',), modes=('gevent', 'prefork'))(RequestsUnderWay)


class FilesOfTheApplication(Life, unittest.TestCase):
    """What the application opens in post_fork_hook gets the lowest numbers, those that were closed just before."""

    def test_respawned_processes(self):
        fifo, mule = os.path.join(self.meet, self.new_name()), os.path.join(self.meet, self.new_name())
        with self.make_uwsgi('mysqlclient', 'prefork', options={
                'import': 'files', 'mule': os.path.join(os.path.dirname(__file__), 'app', 'files_mule.py'),
                'master-fifo': fifo, 'max-requests': 200, 'cheaper': 1, 'cheaper-initial': 2},
                environ={'FILES_MULE': mule}) as uwsgi:
            def all_its_own():
                for _ in range(10):
                    self.run_sql(uwsgi, 'SELECT 1')
                    answer = uwsgi.get('/strangers').json()
                    self.assertEqual((answer['opened'], answer['strangers']), (24, []))

            def mules():
                found = {}
                for path in glob.glob(mule + '.*'):
                    if not path.endswith('.new'):
                        with open(path) as f:
                            found[int(path.rpartition('.')[2])] = f.read().split(None, 2)
                return found

            all_its_own()
            for _ in range(3):
                before = uwsgi.worker_pids()
                for pid in before.values():
                    os.kill(pid, signal.SIGKILL)
                wait_until(lambda: not set(uwsgi.worker_pids().values()) & set(before.values()), 30, 'others are there')
                uwsgi.note_processes()
                all_its_own()
            first = wait_until(mules, 30, 'the mule has looked')
            for pid in first:
                os.kill(pid, signal.SIGKILL)
            second = wait_until(lambda: {pid: seen for pid, seen in mules().items() if pid not in first}, 30, 'another mule')
            wait_until(lambda: all(int(mules()[pid][0]) > 2 for pid in second), 30, 'which looks again and again')
            for seen in mules().values():
                self.assertEqual(seen[1:], ['24', '[]'])
            with open(fifo, 'w') as f:
                f.write('c')
            wait_until(lambda: 'chain' in uwsgi.log(), 30, 'a chain reload')
            for _ in range(10):
                all_its_own()


class FarAway(Life, unittest.TestCase):
    """A server that is a tenth of a second away."""

    N = 40

    def test_a_worker_dies_with_many_statements(self):
        with Proxy((self.server.host, self.server.port)) as proxy:
            entry = dict(self.database({'pool_size': self.N, 'max_overflow': 0, 'timeout': 60}), PORT=proxy.port)
            with self.make_uwsgi('mysqlclient', 'threads', {'default': entry}, 1, {'threads': self.N}) as uwsgi, \
                    self.watched(self.N):
                with self.row_locked():
                    requests = [in_background(self.ask_in_vain, uwsgi) for _ in range(self.N)]
                    wait_until(lambda: len(self.blocked()) == self.N, 60, 'all wait for the lock')
                    proxy.delay = 0.05
                    os.kill(uwsgi.worker_pids()[1], signal.SIGKILL)
                    wait_until(lambda: not self.blocked(), 60, 'all are killed')
                    proxy.delay = 0.0
                    for request in requests:
                        request.result()
                self.assertEqual(self.counter(), 0)
                self.assertNotIn('is reused', uwsgi.log())
                wait_until(lambda: uwsgi.pool()['closing'] == 0, 30, 'all have ended')
                self.assertEqual(uwsgi.pool()['kills'], self.N)


class NoLoginLeft(Life, unittest.TestCase):
    """A KILL needs a login, and the server takes none: one of the pool's idle sessions makes room."""

    server_options = ('--max-connections=12',)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # An administrator would have a connection more.
        cls.server.query("REVOKE ALL, GRANT OPTION FROM `%s`@'%%'" % USER)
        cls.server.query("GRANT ALL ON app.* TO `%s`@'%%'" % USER)

    def test_the_server_is_full(self):
        self.server.query("CREATE USER other@'%' IDENTIFIED BY 'x'")
        pool = {'pool_size': 3, 'max_overflow': 0, 'min_size': 3, 'timeout': 30}
        with self.make_uwsgi('mysqlclient', 'prefork', {'default': self.database(pool)}, 1) as uwsgi:
            self.run_sql(uwsgi, 'SELECT 1')
            wait_until(lambda: len(self.sessions()) == 3, 30, 'the floor is open')
            with self.row_locked(), contextlib.ExitStack() as others:
                request = in_background(self.ask_in_vain, uwsgi)
                wait_until(self.blocked, 30, 'it waits for the lock')
                with self.assertRaises(Exception) as full:
                    for _ in range(20):
                        connection = self.server.connect(host=self.server.host, port=self.server.port, user='other',
                                                         password='x')
                        others.callback(connection.close)
                self.assertEqual(full.exception.args[0], 1040)
                os.kill(uwsgi.worker_pids()[1], signal.SIGKILL)
                wait_until(lambda: not self.blocked(), 30, 'it is killed')
                self.assertIn('failed: (1040)', uwsgi.log())
                request.result()
            self.assertEqual(self.counter(), 0)
            self.run_sql(uwsgi, 'SELECT 1')


class DeadServers(Life, unittest.TestCase):
    """Two servers take connections and never say a word: a third is served as if it were alone."""

    def test_a_living_one_is_served(self):
        silent = [self.enter(socket.create_server(('127.0.0.1', 0), backlog=64)) for _ in range(2)]
        pool = {'pool_size': 4, 'max_overflow': 0, 'timeout': 30}
        databases = {'default': self.database(engine=STOCK), 'alive': self.database(pool)}
        for n, listener in enumerate(silent):
            databases['silent %d' % n] = dict(self.database(pool, options={'connect_timeout': 6}),
                                              PORT=listener.getsockname()[1])
        with self.make_uwsgi('mysqlclient', 'threads', databases, 1, {'threads': 16}) as uwsgi:
            def ask(alias):
                return uwsgi.get('/sql', {'statements': ['SELECT 1'], 'alias': alias})

            pages = [in_background(ask, 'silent %d' % n) for n in (0, 1) for _ in range(4)]
            wait_until(lambda: sum(uwsgi.pool('silent_%d' % n).get('opening', 0) for n in (0, 1)) == 8, 30,
                       'they wait for a greeting')
            self.assertEqual(ask('alive').json()['results'], [[[1]]])
            self.assertEqual([page.done() for page in pages], [False] * 8, 'and do so still')
            for page in pages:
                self.assertIn('2013', page.result().body.decode(), 'the silence is what is told')


class StoppedMaster(Life, unittest.TestCase):
    def test_idle_sessions_serve_on(self):
        pool = {'pool_size': 2, 'max_overflow': 0, 'min_size': 2, 'timeout': 30}
        with self.make_uwsgi('mysqlclient', 'prefork', {'default': self.database(pool)}, 2) as uwsgi:
            for _ in range(20):  # each worker knows each session
                self.run_sql(uwsgi, 'SELECT 1')
            wait_until(lambda: len(self.sessions()) == 2, 30, 'the floor is open')
            os.kill(uwsgi.pid, signal.SIGSTOP)
            try:
                for _ in range(20):
                    self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])
            finally:
                os.kill(uwsgi.pid, signal.SIGCONT)
            self.run_sql(uwsgi, 'SELECT 1')
            self.whole(uwsgi)


if __name__ == '__main__':
    unittest.main()
