# SPDX-License-Identifier: MIT
"""The MYSQL behind a stock mysqlclient object, on a private connection to a private server: what the pool does to it."""

import gc
import os
import signal
import threading
import unittest
from unittest import mock

from tests.python import BUILD  # noqa: F401 (finds the package)
from tests.support import Server

import gevent
import MySQLdb
import MySQLdb.connections
import MySQLdb.cursors

from dbpool import _dbpool, waiting
from dbpool.drivers import mysqlclient, pymysql

AUTOCOMMIT, IN_TRANS, NO_BACKSLASH = 2, 1, 512


class WithServer(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server().__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)
        cls.server.create('app', 'app', 'secret')

    def setUp(self):
        waiting.enable()

    def connect(self, make=MySQLdb.connections.Connection, **more):
        more.setdefault('read_timeout', waiting.FOREVER_S)
        more.setdefault('write_timeout', waiting.FOREVER_S)
        return make(host=self.server.host, port=self.server.port, user='app', passwd='secret', db='app',
                    charset='utf8mb4', autocommit=True, **more)

    def native(self, connection, adopt=True):
        native = _dbpool.Native(connection, MySQLdb._mysql.__file__)
        if adopt:
            spare = os.dup(native.socket())
            native.adopt(spare, native.socket())
            os.close(spare)
        self.addCleanup(self.let_go, native)
        return native

    def let_go(self, native):
        native.fence()
        native.drop()


class Layout(WithServer):
    def test_checked_against_the_library(self):
        connection = self.connect()
        native = self.native(connection)
        self.assertTrue(native.layout)
        self.assertEqual(native.socket(), connection.fileno())

    def test_checkout_renews_what_the_object_believes(self):
        connection = self.connect()
        native = self.native(connection)
        cursor = connection.cursor()
        cursor.execute('CREATE TEMPORARY TABLE t (id INT AUTO_INCREMENT PRIMARY KEY, n TINYINT)')
        cursor.execute('INSERT INTO t (n) VALUES (1), (2)')
        self.assertEqual((connection.affected_rows(), connection.insert_id()), (2, 1))
        self.assertTrue(connection.info())
        native.checkout(AUTOCOMMIT | NO_BACKSLASH)
        self.assertEqual((connection.affected_rows(), connection.insert_id(), connection.info(),
                          connection.warning_count(), connection.errno()), (0, 0, None, 0, 0))
        self.assertEqual(connection.escape_string(b"it's \\"), b"it''s \\")
        native.checkout(AUTOCOMMIT)
        self.assertEqual(connection.escape_string(b"it's \\"), b"it\\'s \\\\")
        # autocommit() sends only what it believes to be a change.
        native.checkout(0)
        self.assertFalse(connection.get_autocommit())
        connection.autocommit(True)
        self.assertTrue(connection.get_autocommit())

    def test_settle(self):
        connection = self.connect()
        native = self.native(connection)
        cursor = connection.cursor()

        def settle():
            how, status, grown, _ = native.settle(True)
            self.assertFalse(grown)
            return how, status & (AUTOCOMMIT | IN_TRANS)

        self.assertEqual(settle(), (_dbpool.CLEAN, AUTOCOMMIT))
        cursor.execute('BEGIN')
        self.assertEqual(settle(), (_dbpool.RESET, AUTOCOMMIT | IN_TRANS))
        connection.rollback()
        connection.autocommit(False)
        self.assertEqual(settle(), (_dbpool.RESET, 0))
        self.assertEqual(native.settle(False)[0], _dbpool.CLEAN)
        connection.autocommit(True)
        connection.query('SELECT 1')
        self.assertEqual(settle()[0], _dbpool.DOOM)
        connection.store_result()
        self.assertEqual(settle()[0], _dbpool.CLEAN)

    def test_unread_rows(self):
        connection = self.connect()
        native = self.native(connection)
        cursor = connection.cursor(MySQLdb.cursors.SSCursor)
        cursor.execute('SELECT seq FROM seq_1_to_3')
        cursor.fetchone()
        self.assertEqual(native.settle(True)[0], _dbpool.DOOM)
        cursor.fetchall()
        self.assertEqual(native.settle(True)[0], _dbpool.CLEAN)

    def test_a_large_row_makes_it_unfit_to_keep(self):
        connection = self.connect()
        native = self.native(connection)
        connection.cursor().execute("SELECT REPEAT('x', 2000000)")
        self.assertEqual(native.settle(True), (_dbpool.CLEAN, AUTOCOMMIT, True, False))

    def test_killed_session(self):
        connection = self.connect()
        native = self.native(connection)
        fd = native.socket()
        self.assertFalse(_dbpool.peek_end(fd))
        self.server.kill_session(connection.thread_id())
        gevent.get_hub()
        waiting.wait(fd, True, 60000)
        with self.assertRaises(MySQLdb.OperationalError):
            connection.cursor().execute('SELECT 1')
        self.assertEqual((native.socket(), native.settle(True)[0]), (-1, _dbpool.DOOM))
        native.lost()

    def test_another_object_is_refused(self):
        with self.assertRaises(AttributeError):
            _dbpool.Native(object(), MySQLdb._mysql.__file__)


class Fence(WithServer):
    def test_nothing_reaches_the_server(self):
        """Fenced, the object says COM_QUIT to nobody; another holder of the same socket goes on."""
        connection = self.connect()
        number = connection.thread_id()
        native = _dbpool.Native(connection, MySQLdb._mysql.__file__)
        shared = os.dup(native.socket())
        self.addCleanup(os.close, shared)
        native.adopt(shared, native.socket())
        with self.assertRaises(RuntimeError):
            native.drop()
        native.fence()
        native.drop()
        del connection
        gc.collect()
        self.assertIn(number, self.server.sessions('app'))
        self.assertFalse(_dbpool.peek_end(shared))

    def test_an_object_that_nobody_dropped_lives(self):
        connection = self.connect()
        number = connection.thread_id()
        native = _dbpool.Native(connection, MySQLdb._mysql.__file__)
        del connection, native
        gc.collect()
        self.assertEqual(self.server.query('SELECT id FROM information_schema.processlist WHERE id = %s', (number,)),
                         ((number,),))

    def test_abandoned_in_a_child(self):
        for make, abandon in ((self.connect, mysqlclient.abandon), (self.connect_pymysql, pymysql.abandon)):
            connection = make()
            number = connection.thread_id()
            pid = os.fork()
            if pid == 0:
                try:
                    abandon(connection)
                    del connection
                    gc.collect()
                    os._exit(0)
                except BaseException:
                    os._exit(1)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)
            cursor = connection.cursor()
            cursor.execute('SELECT CONNECTION_ID()')
            self.assertEqual(cursor.fetchone(), (number,))
            connection.close()

    def connect_pymysql(self):
        return self.server.connect(host=self.server.host, port=self.server.port, user='app', password='secret')


class Cooperative:
    """With the library's hook, and with the fallback: the same tests."""

    def test_queries_overlap(self):
        objects = [self.make() for _ in range(5)]
        self.server.query('CREATE TABLE IF NOT EXISTS app.gate (id INT)')
        keeper = self.server.connect(database='app')
        keeper.cursor().execute('LOCK TABLES gate WRITE')
        answers = []

        def ask(connection):
            cursor = connection.cursor()
            cursor.execute('SELECT COUNT(*), CONNECTION_ID() FROM gate')
            answers.append(cursor.fetchone()[1])

        greenlets = [gevent.spawn(ask, connection) for connection, _ in objects]
        # All wait in the server at once, while this greenlet goes on.
        while self.waiting() < 5:
            gevent.sleep(0.005)
        self.assertEqual(answers, [])
        keeper.cursor().execute('UNLOCK TABLES')
        gevent.joinall(greenlets, raise_error=True)
        self.assertEqual(sorted(answers), sorted(connection.thread_id() for connection, _ in objects))
        keeper.close()

    def waiting(self):
        return len(self.server.query("SELECT 1 FROM information_schema.processlist WHERE user = 'app' AND "
                                     "state LIKE 'Waiting for table%%'"))

    def test_transactions_and_results(self):
        connection, _ = self.make()
        cursor = connection.cursor()
        cursor.execute('CREATE TEMPORARY TABLE t (n INT)')
        connection.autocommit(False)
        cursor.executemany('INSERT INTO t VALUES (%s)', [(n,) for n in range(100)])
        connection.commit()
        cursor.execute('DELETE FROM t')
        connection.rollback()
        cursor.execute('SELECT COUNT(*), SUM(n) FROM t')
        self.assertEqual([int(value) for value in cursor.fetchone()], [100, 4950])
        with self.assertRaises(MySQLdb.ProgrammingError):
            cursor.execute('SELEKT')
        connection.ping()
        cursor.execute("SELECT REPEAT('x', 3000000)")
        self.assertEqual(len(cursor.fetchone()[0]), 3000000)
        connection.autocommit(True)
        cursor.execute('SELECT @@autocommit')
        self.assertEqual(cursor.fetchone(), (1,))

    def test_thrown_into_the_wait(self):
        """gevent.Timeout comes out as itself, and nothing is left armed."""
        connection, native = self.make()
        with self.assertRaises(gevent.Timeout):
            with gevent.Timeout(0.05):
                self.run_query(connection, native, 'SELECT SLEEP(600)')
        self.assertEqual(waiting.Reactor.of(gevent.get_hub()).waiters, {})


class Hooked(Cooperative, WithServer):
    def make(self, **more):
        connection = self.connect(**more)
        native = self.native(connection)
        self.assertTrue(native.install())
        return connection, native

    def run_query(self, connection, native, sql):
        """As the proxy does it."""
        try:
            return connection.query(sql)
        except MySQLdb.Error:
            kept = native.take_exception()
            native.lost()
            if kept is None:
                raise
        raise kept

    def test_not_in_the_hub(self):
        connection, native = self.make()
        caught = []

        def callback():
            try:
                self.run_query(connection, native, 'SELECT SLEEP(600)')
            except BaseException as error:
                caught.append(type(error))

        gevent.get_hub().loop.run_callback(callback)
        gevent.sleep(0)
        self.assertEqual(caught, [waiting.HubBlocked])

    def test_signals_in_a_process_without_gevent(self):
        class Alarmed(Exception):
            pass

        def handler(number, frame):
            raise Alarmed()

        connection, native = self.make()
        self.addCleanup(_dbpool.set_wait_hook, waiting.wait)
        _dbpool.set_wait_hook(None)
        self.addCleanup(signal.signal, signal.SIGALRM, signal.signal(signal.SIGALRM, handler))
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with self.assertRaises(Alarmed):
            self.run_query(connection, native, 'SELECT SLEEP(600)')
        self.assertEqual(native.settle(True)[0], _dbpool.DOOM)

    def test_read_timeout(self):
        connection, native = self.make(read_timeout=1)
        with self.assertRaises(MySQLdb.OperationalError) as caught:
            self.run_query(connection, native, 'SELECT SLEEP(600)')
        self.assertEqual(caught.exception.args[0], 2013)

    def test_threads_run_meanwhile(self):
        objects = [self.make() for _ in range(3)]
        self.server.query('CREATE TABLE IF NOT EXISTS app.gate (id INT)')
        keeper = self.server.connect(database='app')
        keeper.cursor().execute('LOCK TABLES gate WRITE')
        threads = [threading.Thread(target=connection.query, args=('SELECT * FROM gate',)) for connection, _ in objects]
        for thread in threads:
            thread.start()
        while self.waiting() < 3:
            pass
        keeper.cursor().execute('UNLOCK TABLES')
        for thread in threads:
            thread.join()
        keeper.close()

    def test_a_dropped_unread_result_reads_on_in_a_finaliser_of_the_library(self):
        """The GIL is held then: the wait must not deadlock, nor lose an exception that is on its way."""
        connection, native = self.make()
        connection.query('SELECT seq, SLEEP(0.02) FROM seq_1_to_3')
        result = connection.use_result()
        result.fetch_row()
        try:
            raise KeyError('on its way')
        except KeyError as error:
            result = None
            self.assertEqual(error.args, ('on its way',))
        self.assertEqual(native.settle(True)[0], _dbpool.CLEAN)


class Fallback(Cooperative, WithServer):
    def make(self):
        connection = self.connect(mysqlclient.Fallback)
        native = self.native(connection)
        fd = connection.fileno()

        def wait():
            if not _dbpool.wait(fd, True, 60000):
                raise TimeoutError()

        connection._dbpool_wait = wait
        return connection, native

    def run_query(self, connection, native, sql):
        return connection.query(sql)


class Flags(unittest.TestCase):
    def test_as_the_stock_class_asks(self):
        base = mysqlclient.client_flags({})
        self.assertEqual(mysqlclient.client_flags({'client_flag': 2}), base | 2)
        self.assertEqual(mysqlclient.client_flags({'client_flag': 2 | 128}), base | 2)
        self.assertEqual(mysqlclient.client_flags({'local_infile': 1}), base | 128)
        self.assertEqual(pymysql.client_flags({'local_infile': True}) & 128, 128)
        self.assertEqual(pymysql.client_flags({}) & 128, 0)


class SetUp(unittest.TestCase):
    """What is said after the login, as each version of the stock drivers orders it."""

    MODE = [b"SET SESSION sql_mode='ANSI'"]

    def both(self, always, charset, init, mode=(), collation=b''):
        with mock.patch.object(mysqlclient, '_ALWAYS_NAMES', always), mock.patch.object(pymysql, '_ALWAYS_NAMES', always):
            return [driver.set_up(charset, collation, init, list(mode)) for driver in (mysqlclient, pymysql)]

    def older(self, charset, *init):
        return self.both(False, charset, list(init))[0]

    def test_an_init_command_that_leaves_the_names_alone(self):
        for always, names in ((False, []), (True, [b'SET NAMES latin1'])):
            expected = b'latin1', names + [b'SET @a = 1']
            self.assertEqual(self.both(always, b'latin1', [b'SET @a = 1']), [expected, expected])

    def test_an_init_command_that_sets_the_names(self):
        names, init = [b'SET NAMES utf8mb4'], [b'SET NAMES latin1']
        self.assertEqual(self.both(True, b'utf8mb4', init, self.MODE),
                         [(b'utf8mb4', init + names + self.MODE), (b'utf8mb4', names + self.MODE + init)])
        self.assertEqual(self.both(False, b'utf8mb4', init, self.MODE),
                         [(b'utf8mb4', init + names + self.MODE), (b'utf8mb4', self.MODE + init)])

    def test_one_that_may_set_anything(self):
        for init in ([b'CALL prepare_me()'], [b'SET @a = 1', b'SET collation_connection = utf8mb4_bin'],
                     [b'/* a */ SET NAMES utf8mb4']):
            self.assertEqual(self.both(True, b'utf8mb4', init)[0], (b'utf8mb4', init + [b'SET NAMES utf8mb4']))

    def test_the_older_class_says_it_where_the_library_has_another_name(self):
        for init, said in [(b'SET CHARACTER SET latin1', False), (b"SET NAMES 'latin1' COLLATE latin1_bin", False),
                           (b'SET NAMES utf8', True), (b'SET @a = 1, character_set_client = utf8mb4', True),
                           (b'SET NAMES DEFAULT', True), (b'SET @@character_set_client = 8', True),
                           (b"EXECUTE IMMEDIATE 'SET NAMES utf8'", True), (b'CALL prepare_me()', False),
                           (b'SET collation_connection = latin1_bin', False),
                           (b'set names utf8; SET NAMES  "latin1"', False)]:
            with self.subTest(init):
                self.assertEqual(self.older(b'latin1', init), (b'latin1', [init] + [b'SET NAMES latin1'] * said))
        # "utf8" is not what the library calls it.
        self.assertEqual(self.older(b'utf8', b'SET collation_connection = utf8_bin'),
                         (b'utf8', [b'SET collation_connection = utf8_bin', b'SET NAMES utf8mb3']))

    def test_without_a_character_set(self):
        for init, charset in [(b'SET @a = 1', b'utf8mb4'), (b"SET @a = 'SET NAMES latin1' # , names latin1", b'utf8mb4'),
                              (b'SET @names = 1, GLOBAL character_set_client = latin1', b'utf8mb4'),
                              (b'SET NAMES utf8mb4 COLLATE utf8mb4_bin', b'utf8mb4')]:
            self.assertEqual(self.older(b'', init), (charset, [init]))
        for init, charset in [(b'SET/**/NAMES Latin1;', b'latin1'),
                              (b'SET session character_set_client := "latin1"', b'latin1'),
                              (b"SET @a = ', names utf8', charset utf8", b'utf8mb3')]:
            # The pool logs in with that one, the stock driver with its default.
            self.assertEqual(self.older(b'', init), (charset, [b'SET NAMES utf8mb4', init]))
        self.assertEqual(self.both(False, b'', [b'SET NAMES latin1'])[1], (b'utf8mb4', [b'SET NAMES latin1']))

    def test_pymysql_that_takes_utf8_for_utf8mb4_says_utf8_after_its_login(self):
        utf8mb4 = pymysql.charset_by_name('utf8mb4')
        with mock.patch.object(pymysql, '_ALWAYS_NAMES', True), \
                mock.patch.object(pymysql, 'charset_by_name', lambda name: utf8mb4):
            self.assertEqual(pymysql.set_up(b'utf8', b'', [], []), (b'utf8mb4', [b'SET NAMES utf8']))
        self.assertEqual(pymysql.set_up(b'latin1', b'', [], [])[0], b'latin1')
        self.assertEqual(pymysql.set_up(b'no_such', b'', [], [])[0], b'no_such')

    def test_a_character_set_that_cannot_be_told(self):
        for init in (b'SET NAMES DEFAULT', b'SET character_set_client = 8', b'SET character_set_client = @a',
                     b"EXECUTE IMMEDIATE CONCAT('SET NAMES ', 'latin1')", b'/*!40101 SET NAMES latin1 */'):
            self.assertEqual(self.older(b'', init), (None, []))

    def test_a_collation(self):
        names = [b'SET NAMES utf8mb4 COLLATE utf8mb4_bin']
        for known in self.both(True, b'utf8mb4', [b'SET @a = 1'], collation=b'utf8mb4_bin'):
            self.assertEqual(known, (b'utf8mb4', names + [b'SET @a = 1']))


class Address(unittest.TestCase):
    def test_localhost(self):
        self.assertEqual(mysqlclient.address('db', ''), ('db', ''))
        self.assertEqual(mysqlclient.address('db', '/s'), ('db', ''))
        self.assertEqual(mysqlclient.address('', '/s'), ('', '/s'))
        self.assertEqual(mysqlclient.address('localhost', '/s'), ('', '/s'))
        self.assertEqual(pymysql.address('', ''), ('localhost', ''))
        self.assertEqual(pymysql.address('db', '/s'), ('', '/s'))
        before = os.environ.get('MYSQL_UNIX_PORT')
        os.environ['MYSQL_UNIX_PORT'] = __file__
        try:
            self.assertEqual(mysqlclient.address('localhost', ''), ('', __file__))
        finally:
            del os.environ['MYSQL_UNIX_PORT']
            if before is not None:
                os.environ['MYSQL_UNIX_PORT'] = before


if __name__ == '__main__':
    unittest.main()
