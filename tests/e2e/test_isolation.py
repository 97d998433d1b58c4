# SPDX-License-Identifier: MIT
"""I6: what one lease leaves behind is not there for the next, in another process or in the same.

Each row of LEAKS is what one lease does. The next one describes all that it can see (views.py: portrait), and that must be
what the first lease of the new session saw. Nothing is ever committed that was not.
"""

import os
import tempfile
import unittest

from tests.e2e.base import DRIVERS, USER, WithServer, WithUwsgi
from tests.support import wait_until

NAMES = "SELECT DATABASE(), CURRENT_ROLE(), @leak, @leak2, @init_leak, COLLATION(_utf8mb4'x')"
INSERT = "INSERT INTO leaks (n) VALUES (1)"

# name -> steps of views.leave. A name that ends with "(new)" is of a session that is not handed on.
LEAKS = {
    'uncommitted rows': [['sql', 'BEGIN'], ['sql', INSERT]],
    'uncommitted rows and a savepoint': [['sql', 'START TRANSACTION'], ['sql', INSERT], ['sql', 'SAVEPOINT a']],
    'autocommit off by the driver': [['call', 'autocommit', False], ['sql', INSERT]],
    'autocommit off by SQL': [['sql', 'SET autocommit = 0'], ['sql', INSERT]],
    'autocommit off among others': [['sql', 'SET @leak = 1, autocommit = 0'], ['sql', INSERT]],
    'a chain of transactions': [['sql', 'SET completion_type = CHAIN'], ['sql', 'BEGIN'], ['sql', INSERT],
                                ['sql', 'ROLLBACK'], ['sql', INSERT]],
    'an XA transaction (new)': [['sql', "XA START 'leak'"], ['sql', INSERT]],
    'an XA transaction that was ended (new)': [['sql', "XA START 'leak'"], ['sql', INSERT], ['sql', "XA END 'leak'"]],
    'a transaction that a procedure began before it failed': [['sql', 'CALL leak_begins()']],
    'a transaction among statements of which the last failed': [['sql', 'BEGIN; %s; SELECT * FROM not_there' % INSERT]],
    'a transaction of a procedure that failed after a result': [['sql', 'CALL leak_begins_late()']],
    'autocommit off in a procedure that failed': [['sql', 'CALL leak_autocommit()']],
    'a transaction of a statement that took too long': [
        ['sql', 'SET max_statement_time = 0.05'], ['sql', 'CALL leak_begins_long()']],
    'isolation level': [['sql', 'SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE']],
    'isolation level of the next transaction': [['sql', 'SET TRANSACTION ISOLATION LEVEL SERIALIZABLE']],
    'read only': [['sql', 'SET SESSION TRANSACTION READ ONLY']],
    'read only for the next transaction': [['sql', 'SET TRANSACTION READ ONLY']],
    'sql_mode': [['sql', "SET SESSION sql_mode = 'ANSI'"]],
    'NO_BACKSLASH_ESCAPES': [['sql', "SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'"]],
    'NO_BACKSLASH_ESCAPES, and used': [['sql', "SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'"],
                                       ['sql', 'SELECT %s', ["\\'"]], ['sql', 'SELECT 1']],
    'time_zone': [['sql', "SET time_zone = '+03:00'"]],
    'charset': [['sql', 'SET NAMES latin1']],
    'charset by the driver': [['charset', 'latin1']],
    'collation': [['sql', 'SET NAMES utf8mb4 COLLATE utf8mb4_bin']],
    'collation_connection': [['sql', "SET collation_connection = 'utf8mb4_bin'"]],
    'foreign_key_checks': [['sql', 'SET foreign_key_checks = 0']],
    'sql_select_limit': [['sql', 'SET sql_select_limit = 1']],
    'a variable for one statement': [['sql', 'SET STATEMENT sql_select_limit = 1 FOR SELECT 1']],
    'max_statement_time': [['sql', 'SET max_statement_time = 0.5']],
    'profiling': [['sql', 'SET profiling = 1']],
    'what the pool itself set': [['sql', 'SET session_track_state_change = OFF'], ['sql', 'SELECT @leak := 1']],
    'init_command': [['sql', "SET @init_leak = 'other'"]],
    'a role': [['sql', 'SET ROLE leaky']],
    'user variable, SET': [['sql', 'SET @leak = 1']],
    'user variable, :=': [['sql', 'SELECT @leak := 1']],
    'user variable, := and much after it': [['sql', 'SELECT @leak := 1'], ['sql', 'SELECT 2'], ['call', 'commit'],
                                            ['sql', 'SELECT 3']],
    'user variable, INTO': [['sql', 'SELECT 1 INTO @leak']],
    'user variable, INTO with a comment': [['sql', 'SELECT 1 INTO /* a */ -- b\n @leak']],
    'user variable in a write': [['sql', 'UPDATE counters SET n = n + 0 * (@leak := 1) WHERE id = 1']],
    'user variable, EXECUTE IMMEDIATE': [['sql', "EXECUTE IMMEDIATE 'SELECT 1 INTO @leak'"]],
    'user variable, first of several statements': [['sql', 'SET @leak = 1; SELECT 1']],
    'user variable, BEGIN NOT ATOMIC': [['sql', 'BEGIN NOT ATOMIC SELECT 1 INTO @leak; END']],
    'user variable, executable comment': [['sql', 'SELECT /*! @leak := */ 1']],
    'temporary table': [['sql', 'CREATE TEMPORARY TABLE leak_temporary (a INT)']],
    'LOCK TABLES': [['sql', 'LOCK TABLES leaks WRITE']],
    'FLUSH TABLES WITH READ LOCK': [['sql', 'FLUSH TABLES WITH READ LOCK']],
    'GET_LOCK, SELECT': [['sql', "SELECT GET_LOCK('leak', 0)"]],
    'GET_LOCK, DO': [['sql', "DO GET_LOCK('leak', 0)"]],
    'GET_LOCK by its quoted name': [['sql', "SELECT `get_lock`('leak', 0)"]],
    'HANDLER': [['sql', 'HANDLER leaks OPEN']],
    'USE': [['sql', 'USE elsewhere']],
    'select_db': [['call', 'select_db', 'elsewhere']],
    'prepared statement': [['sql', "PREPARE leak_prepared FROM 'SELECT 1'"]],
    'unread rows (new)': [['unbuffered', 'SELECT id, REPEAT(nonce, 1000) FROM nonces']],
    'unread results (new)': [['first', 'SELECT 1; SELECT 2; SET @leak = 1; SELECT 3']],
    'unread results of a procedure (new)': [['first', 'CALL leak_results()']],
    'all results of a procedure': [['sql', 'CALL leak_results()']],
    'a procedure that sets a variable': [['sql', 'CALL leak_sets()']],
    'a procedure with INTO': [['sql', 'CALL leak_into()']],
    'a procedure that locks': [['sql', 'CALL leak_locks()']],
    'arguments of callproc()': [['callproc', 'leak_argument', [5]], ['sql', 'SELECT @_leak_argument_0 + 0 INTO @leak']],
    'a procedure that fails after it has set a variable': [['sql', 'CALL leak_fails()']],
    'a function that sets a variable': [['sql', 'SELECT leak_function()']],
    'a function that sets a variable, and other results after it': [['sql', 'SELECT leak_function()'], ['sql', 'SELECT 1'],
                                                                    ['call', 'commit']],
    'a function that sets a variable, for the optimizer': [['sql', 'SELECT id FROM nonces WHERE id = leak_function()']],
    'a function that makes a temporary table': [['sql', 'SELECT leak_makes()']],
    'a trigger that sets a variable': [['sql', 'UPDATE triggered SET n = 2']],
    'a trigger that sets a variable before an error': [['sql', 'UPDATE triggered SET n = -1']],
    'a packet that is too large (new)': [['sql', 'SET @leak = 1'], ['sql', 'SELECT LENGTH(%s)', ['x' * 2000000]]],
    'LOAD DATA LOCAL': [['sql', 'LOAD DATA LOCAL INFILE %s INTO TABLE loaded', ['FILE']]],
    'LOAD DATA LOCAL of a file that is not there': [['sql', "LOAD DATA LOCAL INFILE '/not/there' INTO TABLE loaded"]],
    "the driver object's encoders": [['encoder']],
}

ROUTINES = [
    'CREATE PROCEDURE leak_results() BEGIN SELECT 1; SELECT 2; SET @leak = 1; SELECT 3; END',
    'CREATE PROCEDURE leak_sets() SET @leak = 1',
    'CREATE PROCEDURE leak_into() SELECT 1 INTO @leak',
    "CREATE PROCEDURE leak_locks() DO GET_LOCK('leak', 0)",
    'CREATE PROCEDURE leak_argument(IN a INT) SET @leak2 = a',
    'CREATE PROCEDURE leak_fails() BEGIN SET @leak = 1; SELECT * FROM not_there; END',
    "CREATE PROCEDURE leak_begins() BEGIN START TRANSACTION; %s; SIGNAL SQLSTATE '45000'; END" % INSERT,
    "CREATE PROCEDURE leak_begins_late() BEGIN SELECT 1; START TRANSACTION; %s; SELECT 2; SIGNAL SQLSTATE '45000'; END"
    % INSERT,
    'CREATE PROCEDURE leak_autocommit() BEGIN SET autocommit = 0; %s; SELECT * FROM not_there; END' % INSERT,
    'CREATE PROCEDURE leak_begins_long() BEGIN START TRANSACTION; %s; SELECT COUNT(*) FROM nonces a, nonces b, nonces c; END'
    % INSERT,
    'CREATE FUNCTION leak_function() RETURNS INT DETERMINISTIC BEGIN SET @leak = 1; RETURN 1; END',
    'CREATE FUNCTION leak_makes() RETURNS INT BEGIN CREATE TEMPORARY TABLE leak_temporary (a INT); RETURN 1; END',
    'CREATE TABLE triggered (n INT CHECK (n > 0)) ENGINE=InnoDB',
    'INSERT INTO triggered VALUES (1)',
    'CREATE TRIGGER leak_trigger BEFORE UPDATE ON triggered FOR EACH ROW SET @leak = 1',
]


class Isolation(WithUwsgi):
    """Two prefork workers and one session, so that the test decides who has it when."""

    mode = 'prefork'
    server_options = ('--max-allowed-packet=1M', '--local-infile=1')
    pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30}
    ended = ()  # these too end their session

    @classmethod
    def database(cls, pool=None, **more):
        multi = 1 << 16
        return super().database(pool, options={'local_infile': True, 'client_flag': multi,
                                               'init_command': "SET @init_leak = 'kept'"}, **more)

    @classmethod
    def make_uwsgi(cls, *args, **more):
        server = cls.server
        server.query("CREATE TABLE leaks (id INT AUTO_INCREMENT PRIMARY KEY, n INT, text TEXT) ENGINE=InnoDB")
        server.query('CREATE TABLE loaded (line TEXT) ENGINE=InnoDB')
        server.query('CREATE DATABASE elsewhere')
        server.query('CREATE ROLE leaky')
        server.query("GRANT leaky TO `%s`@'%%'" % USER)
        for routine in ROUTINES:
            server.query(routine)
        with tempfile.NamedTemporaryFile('w', dir=cls.meet, delete=False) as f:
            f.write('a line\n')
            os.fchmod(f.fileno(), 0o644)
        cls.file = f.name
        return super().make_uwsgi(*args, **more)

    def by(self, worker, path, *args, **parameters):
        with self.only_worker(worker):
            answer = self.uwsgi.get(path, *args, **parameters)
        self.assertEqual(answer.status, 200, answer)
        answer = answer.json()
        self.assertEqual(answer['worker'], worker)
        return answer

    def test_leaks(self):
        # Of a session that nobody had before, by each worker's driver.
        fresh = {}
        for worker in (1, 2):
            ended = self.by(worker, '/leave', {'steps': LEAKS['unread rows (new)']})['id']
            fresh[worker] = self.by(worker, '/portrait')
            self.assertNotEqual(fresh[worker]['id'], ended)
        for driver in fresh.values():
            self.assertEqual(driver['seen']['SELECT n FROM leaks ORDER BY n, id'], [])
            self.assertEqual(driver['seen'][NAMES], [['app', None, None, None, 'kept', 'utf8mb4_general_ci']])
            self.assertTrue(driver['driver']['trap'] and driver['driver']['thread'] and driver['driver']['autocommit'])
        for name, steps in LEAKS.items():
            steps = [[[self.file] if part == ['FILE'] else part for part in step] for step in steps]
            for first, second in ((1, 2), (2, 1), (1, 1)):
                with self.subTest(name, first=first, second=second):
                    left = self.by(first, '/leave', {'steps': steps})
                    seen = self.by(second, '/portrait')
                    for what in ('seen', 'driver', 'variables'):
                        self.assertEqual(seen[what], fresh[second][what], (name, left))
                    self.assertEqual(seen['id'] != left['id'], name.endswith('(new)') or name in self.ended, left)
                    self.assertEqual(self.server.query('SELECT COUNT(*) FROM leaks'), ((0,),))
                    self.assertEqual(self.server.query("SELECT GET_LOCK('leak', 0), RELEASE_LOCK('leak')"), ((1, 1),))

    def test_the_rows_do_what_they_say(self):
        """A row whose statement fails for another reason than it should would prove nothing."""
        # No session is pooled with LOAD DATA LOCAL but by the user's own settings: these are his.
        expected = {'a transaction that a procedure began before it failed': 1644,
                    'a transaction among statements of which the last failed': 1146,
                    'a transaction of a procedure that failed after a result': 1644,
                    'autocommit off in a procedure that failed': 1146,
                    'a transaction of a statement that took too long': 1969,
                    'a procedure that fails after it has set a variable': 1146, 'a packet that is too large (new)': None,
                    'a trigger that sets a variable before an error': 4025,
                    'LOAD DATA LOCAL of a file that is not there': None}
        for name, steps in LEAKS.items():
            steps = [[[self.file] if part == ['FILE'] else part for part in step] for step in steps]
            with self.subTest(name):
                outcomes = self.by(1, '/leave', {'steps': steps})['outcomes']
                failed = [outcome for outcome in outcomes if isinstance(outcome, dict)]
                if name in expected:
                    self.assertEqual(len(failed), 1, outcomes)
                    self.assertIn(expected[name], (None, failed[0]['code']), outcomes)
                else:
                    self.assertEqual(failed, [])

    def resets(self):
        return self.uwsgi.metric('dbpool.default.resets')

    def test_an_ordinary_request_costs_no_reset(self):
        for worker in (1, 2):
            self.by(worker, '/django_work')  # Django's own questions about the server, and the driver's objects
        before = self.resets()
        for worker in (1, 2, 1, 1):
            self.by(worker, '/django_work')
            self.by(worker, '/rows', ids='1,2,3', token="x'; SET @a=1 -- ")
        self.assertEqual(self.resets(), before)
        self.by(1, '/leave', {'steps': [['sql', 'SET @leak = 1']]})
        self.whole(self.uwsgi)
        self.assertEqual(self.resets(), before + 1)


class Isolation_mysqlclient(Isolation, unittest.TestCase):
    driver = 'mysqlclient'


class Isolation_pymysql(Isolation, unittest.TestCase):
    driver = 'pymysql'


class Isolation_alternating(Isolation, unittest.TestCase):
    """Worker 1 has mysqlclient, worker 2 PyMySQL."""

    uwsgi_options = {'lazy-apps': True}
    given = {'per_worker': {'1': {'driver': 'mysqlclient'}, '2': {'driver': 'pymysql'}}}


class Isolation_fallback(Isolation, unittest.TestCase):
    """mysqlclient on a library that can tell nothing of the session: each lease ends with a reset."""

    driver = 'mysqlclient'
    environ = {'DBPOOL_FORCE_FALLBACK': '1'}
    ended = ('LOAD DATA LOCAL of a file that is not there',)  # the object cannot say that its wire is idle

    def test_an_ordinary_request_costs_no_reset(self):
        before = self.resets() or 0  # None: nobody has used the pool yet
        self.by(1, '/rows', ids='1', token='x')
        self.whole(self.uwsgi)
        self.assertEqual(self.resets(), before + 1)


class RollbackOnly(WithServer, unittest.TestCase):
    """An XA transaction that its server has rolled back: the status word says that there is none, and yet all but XA
    ROLLBACK is refused."""

    server_options = ('--innodb-rollback-on-timeout=1',)

    def test_its_session_ends(self):
        self.server.query('USE app')
        self.server.query('CREATE TABLE work (n INT PRIMARY KEY) ENGINE=InnoDB')
        holder = self.server.connect(database='app', autocommit=False)
        self.addCleanup(holder.close)
        holder.cursor().execute('SELECT * FROM counters WHERE id = 2 FOR UPDATE')
        locked = 'SET STATEMENT innodb_lock_wait_timeout = 0 FOR UPDATE counters SET n = 1 WHERE id = 2'
        steps = [['sql', one] for one in ("XA START 'left'", 'INSERT INTO work VALUES (77)', locked, 'SELECT 1')]
        for driver in DRIVERS:
            for reset in ('auto', False):
                with self.subTest(driver=driver, reset=reset):
                    pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30, 'reset_on_return': reset}
                    uwsgi = self.entered(self.make_uwsgi(driver, 'prefork', {'default': self.database(pool)}, 1))
                    left = uwsgi.get('/leave', {'steps': steps}).json()
                    self.assertEqual(left['outcomes'][2]['code'], 1205, left)
                    seen = self.run_sql(uwsgi, 'INSERT INTO work VALUES (88)')
                    self.assertEqual(seen['results'], [1])
                    self.whole(uwsgi)
                    self.assertEqual(self.server.query('SELECT n FROM work'), ((88,),))
                    self.server.query('DELETE FROM work')
                    uwsgi.close()


class Resets(WithServer, unittest.TestCase):
    """The other values of reset_on_return, and a server that cannot be reset."""

    def run_pool(self, reset, driver='mysqlclient', **more):
        pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30}
        if reset != 'unset':
            pool['reset_on_return'] = reset
        return self.entered(self.make_uwsgi(driver, 'prefork', {'default': self.database(pool, **more)}, processes=1))

    def test_what_each_promises(self):
        leave = ['SET @leak = 1', 'BEGIN', 'UPDATE counters SET n = n + 1 WHERE id = 1']
        for driver in ('mysqlclient', 'pymysql'):
            for reset, kept, committed in [('unset', None, 0), ('auto', None, 0), ('full', None, 0), ('rollback', 1, 0),
                                           (None, 1, 0), ('commit', 1, 1)]:
                with self.subTest(driver=driver, reset=reset):
                    uwsgi = self.run_pool(reset, driver)
                    before = self.counter()
                    first = self.run_sql(uwsgi, *leave)
                    second = self.run_sql(uwsgi, 'SELECT @leak', 'SELECT @@in_transaction')
                    self.assertEqual(second['results'], [[[kept]], [[0]]])
                    self.assertEqual((first['id'], self.counter() - before), (second['id'], committed))
                    self.whole(uwsgi)
                    uwsgi.close()

    def test_the_transaction_of_a_failed_statement_ends_with_its_lease(self):
        """An error packet tells nothing of the session. Neither does the next lease lose its rows with that transaction,
        nor does it commit it."""
        self.server.query('USE app')
        self.server.query('CREATE TABLE failed (n INT PRIMARY KEY) ENGINE=InnoDB')
        self.server.query("CREATE PROCEDURE fails() BEGIN START TRANSACTION; INSERT INTO failed VALUES (77);"
                          " UPDATE counters SET n = n + 1 WHERE id = 1; SIGNAL SQLSTATE '45000'; END")
        ways = ['CALL fails()', 'START TRANSACTION; INSERT INTO failed VALUES (77); SELECT * FROM not_there']
        for driver in ('mysqlclient', 'pymysql'):
            for reset in ('auto', 'full', 'rollback', None, 'commit'):
                uwsgi = self.run_pool(reset, driver, options={'client_flag': 1 << 16})
                for way in ways:
                    for then in ([], [['sql', 'SELECT * FROM not_there']], [['sql', 'SELECT 1']]):
                        with self.subTest(driver=driver, reset=reset, way=way, then=then):
                            answer = uwsgi.get('/leave', {'steps': [['sql', way]] + then})
                            self.assertEqual(answer.status, 200, answer)
                            self.assertIn('code', answer.json()['outcomes'][0])
                            self.run_sql(uwsgi, 'INSERT INTO failed VALUES (88)')
                            self.whole(uwsgi)
                            seen = self.server.query('SELECT n FROM failed ORDER BY n')
                            # With 'commit' it is the lease's own return that commits it, before anybody else.
                            self.assertEqual(seen, ((77,), (88,)) if reset == 'commit' else ((88,),))
                            self.server.query('DELETE FROM failed')
                uwsgi.close()

    def test_however_it_fails(self):
        """The same for other errors, and other ways to meet them. What begins the transaction and fails is one answer."""
        server = self.server
        server.query('USE app')
        server.query('CREATE TABLE work (n INT PRIMARY KEY) ENGINE=InnoDB')
        # Fails at its 400th row, when others were sent already.
        rows = 'SELECT id, IF(id = 400, (SELECT 1 UNION SELECT 2), REPEAT("x", 999)) FROM nonces ORDER BY id'
        endings = {
            'deadlock': (1213, "SIGNAL SQLSTATE '40001' SET MYSQL_ERRNO = 1213"),
            'not_there': (1305, 'CALL is_not_there()'),
            'locked': (1205, 'SET STATEMENT innodb_lock_wait_timeout = 0 FOR SELECT * FROM counters WHERE id = 2 FOR UPDATE'),
            'duplicate': (1062, 'INSERT INTO work VALUES (77)'),
            'slow': (1969, 'SELECT COUNT(*) FROM nonces a, nonces b, nonces c, nonces d'),
            'rows': (1242, rows),
        }
        for name, (_, statement) in endings.items():
            server.query('CREATE PROCEDURE fails_%s() BEGIN START TRANSACTION; INSERT INTO work VALUES (77); %s; END'
                         % (name, statement))
        ways = {}
        for name, (code, _) in endings.items():
            limited = 'SET STATEMENT max_statement_time = 0.05 FOR ' if name == 'slow' else ''
            ways['CALL, ' + name] = code, [['sql', limited + 'CALL fails_%s()' % name]]
            if not limited:
                ways['callproc, ' + name] = code, [['callproc', 'fails_' + name]]
        ways['row by row'] = 1242, [['row by row', 'CALL fails_rows()']]
        ways['a result object'] = 1242, [['result', 'CALL fails_rows()']]
        # libmariadb takes no status word from the answer to this command.
        ways['a ping after it'] = 1213, [['sql', 'CALL fails_deadlock()'], ['call', 'ping']]
        ways['after others that worked'] = 1305, [['sql', 'SELECT 1'], ['sql', 'DO 1'], ['sql', 'CALL fails_not_there()']]
        ways['with autocommit off and on again'] = 1305, [['call', 'autocommit', False], ['call', 'autocommit', True],
                                                          ['sql', 'CALL fails_not_there()']]
        ways['COMMIT that fails'] = 1399, [['sql', "XA START 'work'; INSERT INTO work VALUES (77)"], ['call', 'commit']]
        ways['ROLLBACK that fails'] = 1399, [['sql', "XA START 'work'; INSERT INTO work VALUES (77)"], ['call', 'rollback']]

        holder = server.connect(database='app', autocommit=False)
        self.addCleanup(holder.close)
        holder.cursor().execute('SELECT * FROM counters WHERE id = 2 FOR UPDATE')
        for driver, environ in (('mysqlclient', {}), ('mysqlclient', {'DBPOOL_FORCE_FALLBACK': '1'}), ('pymysql', {})):
            pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30, 'reset_on_return': False}
            uwsgi = self.entered(self.make_uwsgi(
                driver, 'prefork', {'default': self.database(pool, options={'client_flag': 1 << 16})}, 1, environ=environ))
            for way, (code, steps) in ways.items():
                if driver == 'pymysql' and steps[0][0] == 'result':
                    continue
                with self.subTest(driver=driver, way=way, **environ):
                    outcomes = uwsgi.get('/leave', {'steps': steps}).json()['outcomes']
                    self.assertIn(code, [one['code'] for one in outcomes if isinstance(one, dict)], outcomes)
                    self.run_sql(uwsgi, 'INSERT INTO work VALUES (88)')
                    self.whole(uwsgi)
                    self.assertEqual(server.query('SELECT n FROM work ORDER BY n'), ((88,),))
                    server.query('DELETE FROM work')
            uwsgi.close()

    def test_what_a_result_object_met(self):
        """mysqlclient's result objects raise without the connection's knowing, and the next command makes the library forget
        its error. What the statement changed before was not reported."""
        uwsgi = self.run_pool('auto')
        self.server.query('USE app')
        self.server.query('CREATE FUNCTION leak_sets() RETURNS INT BEGIN SET @leak = 1; RETURN 1; END')
        sql = "SELECT leak_sets(), IF(id = 400, (SELECT 1 UNION SELECT 2), REPEAT('x', 999)) FROM nonces ORDER BY id"
        for then in [], [['call', 'ping']], [['sql', 'SELECT 1']]:
            with self.subTest(then=then):
                outcomes = uwsgi.get('/leave', {'steps': [['result', sql]] + then}).json()['outcomes']
                self.assertEqual(outcomes[0]['code'], 1242, outcomes)
                self.assertEqual(self.run_sql(uwsgi, 'SELECT @leak')['results'], [[[None]]])

    def test_a_prepared_xa_transaction_ends_its_session_and_stays(self):
        """The server answers OK to the reset and leaves the transaction attached: each later statement on a table would
        fail. A disconnect leaves it prepared, for whoever commits it."""
        self.server.query('USE app')
        self.server.query('CREATE TABLE prepared (n INT PRIMARY KEY) ENGINE=InnoDB')
        begin = "XA START 'left'; INSERT INTO prepared VALUES (1); XA END 'left'; XA PREPARE 'left'"
        ways = [[['sql', one] for one in begin.split('; ')], [['sql', begin]], [['sql', begin + '; SELECT * FROM not_there']],
                [['sql', '/* a */ EXECUTE IMMEDIATE "XA START \'left\'"']] + [['sql', one] for one in begin.split('; ')[1:]]]
        ways.append(ways[0] + [['sql', 'SELECT * FROM prepared']])  # which fails
        for driver in ('mysqlclient', 'pymysql'):
            for reset in ('auto', 'full', 'rollback', 'commit'):
                uwsgi = self.run_pool(reset, driver, options={'client_flag': 1 << 16})
                for way in ways:
                    with self.subTest(driver=driver, reset=reset, way=way):
                        left = uwsgi.get('/leave', {'steps': way}).json()
                        self.assertEqual(len(self.server.query('XA RECOVER')), 1, left)
                        seen = self.run_sql(uwsgi, 'SELECT COUNT(*) FROM prepared')
                        self.assertEqual(seen['results'], [[[0]]])
                        self.assertNotEqual(seen['id'], left['id'])
                        self.server.query("XA COMMIT 'left'")
                        self.assertEqual(self.server.query('SELECT COUNT(*) FROM prepared'), ((1,),))
                        self.server.query('DELETE FROM prepared')
                uwsgi.close()

    def test_full_resets_after_each_lease(self):
        uwsgi = self.run_pool('full')
        for _ in range(3):
            self.run_sql(uwsgi, 'SELECT 1')
        self.whole(uwsgi)
        self.assertEqual(uwsgi.metric('dbpool.default.resets'), 3)

    def test_without_a_database(self):
        """Nothing leads back to no database after USE: that session ends, others are reset."""
        uwsgi = self.run_pool('auto', NAME='')
        first = self.run_sql(uwsgi, 'SET @leak = 1')
        second = self.run_sql(uwsgi, 'SELECT @leak, DATABASE()', 'USE app')
        self.assertEqual((second['id'], second['results'][0]), (first['id'], [[None, None]]))
        third = self.run_sql(uwsgi, 'SELECT DATABASE()')
        self.assertEqual(third['results'], [[[None]]])
        self.assertNotEqual(third['id'], first['id'])

    def test_a_reset_that_fails_ends_the_session(self):
        """Its database is gone."""
        server = self.server
        server.query('CREATE DATABASE soon')
        uwsgi = self.run_pool('auto', NAME='soon')
        first = self.run_sql(uwsgi, 'SET @leak = 1')
        self.whole(uwsgi)
        server.query('DROP DATABASE soon')
        self.run_sql(uwsgi, 'SET @leak = 2')
        wait_until(lambda: first['id'] not in self.sessions(), 30, 'the session ends')
        server.query('CREATE DATABASE soon')
        third = self.run_sql(uwsgi, 'SELECT @leak, DATABASE()')
        self.assertEqual(third['results'], [[[None, 'soon']]])


class InitConnect(WithServer, unittest.TestCase):
    """init_connect runs at a login and at no reset: changed sessions are replaced, and the log says so, once."""

    server_options = ("--init-connect=SET @from_init_connect = 'kept'",)

    def test_changed_sessions_are_replaced(self):
        pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30}
        uwsgi = self.entered(self.make_uwsgi('mysqlclient', 'prefork', {'default': self.database(pool)}, processes=1))
        self.server.query("REVOKE ALL, GRANT OPTION FROM `%s`@'%%'" % USER)  # init_connect is not for administrators
        self.server.query("GRANT ALL ON app.* TO `%s`@'%%'" % USER)
        seen = []
        for _ in range(3):
            seen.append(self.run_sql(uwsgi, 'SELECT @leak, @from_init_connect', 'SET @leak = 1'))
        self.assertEqual([one['results'][0] for one in seen], [[[None, 'kept']]] * 3)
        self.assertEqual(len({one['id'] for one in seen}), 3)
        quiet = self.run_sql(uwsgi, 'SELECT 1')['id']
        self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['id'], quiet)
        self.assertEqual(uwsgi.log().count('changed sessions are replaced'), 1)


if __name__ == '__main__':
    unittest.main()
