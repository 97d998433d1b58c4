# SPDX-License-Identifier: MIT
"""What a user reads when something is wrong: Django's classes, the server's own words, names of what to change."""

import unittest

from tests.e2e.base import DATABASE, DRIVERS, MODES, PASSWORD, STOCK, USER, WithServer, WithUwsgi, matrix
from tests.support import in_background, wait_until

ONE = {'pool_size': 1, 'max_overflow': 0, 'timeout': 20}
TWO = {'pool_size': 2, 'max_overflow': 0, 'timeout': 20}

WRONG = [
    'SELECT * FROM no_such_table',
    'SELECT no_such_column FROM nonces',
    'SELEKT 1',
    "INSERT INTO nonces VALUES (1, 'twice')",
    'INSERT INTO nonces VALUES (9999, NULL)',
    "INSERT INTO counters VALUES (77, 'not a number')",
    'SELECT 1 FROM no_such_database.t',
    "SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = 'mine'",
]


@matrix()
class Errors(WithUwsgi):
    pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 2}

    def test_pool_timeout(self):
        """OperationalError that names pool, cap, holders and the wait; the next request is served as if nothing was."""
        name = self.new_name()
        holder = in_background(self.uwsgi.get, '/hold', meet=name)
        worker = self.worker_here(name)
        before = self.uwsgi.metric('dbpool.default.timeouts')
        answer = self.sql('SELECT 1')
        self.assertEqual((answer.get('module'), answer.get('error')), ('django.db.utils', 'OperationalError'), answer)
        for part in ('default', '1', 'worker %d' % worker, '2'):
            self.assertIn(part, answer['text'])
        self.assertEqual(self.uwsgi.metric('dbpool.default.timeouts'), before + 1)
        self.go(name)
        self.assertEqual(holder.result().status, 200)
        self.assertEqual(self.sql('SELECT 1')['results'], [[[1]]])

    def test_a_session_returned_in_time_is_handed_over(self):
        name = self.new_name()
        holder = in_background(self.uwsgi.get, '/hold', meet=name)
        self.here(name)
        waiter = in_background(self.sql, 'SELECT 1')
        wait_until(lambda: self.uwsgi.metric('dbpool.default.waiting') == 1 or waiter.done(), 30, 'one waits')
        self.go(name)
        session = holder.result().json()['id']
        answer = waiter.result()
        # The waiter may have given up on a slow machine: then it says so, and that is the other test.
        if 'error' not in answer:
            self.assertEqual(answer['id'], session)


@matrix(modes=['prefork'])
@matrix(modes=('gevent',))
class AfterAnError(WithUwsgi):
    pool = {'pool_size': 1, 'max_overflow': 0}

    def test_an_error_of_a_statement_does_not_cost_the_session(self):
        """The wire is idle after it. Also through Django's own import order, which copies pymysql's error module."""
        self.sql('SELECT 1')
        sessions, before = set(self.sessions()), self.uwsgi.pool()
        for statement in ('SELECT * FROM no_such_table', 'SELEC', "INSERT INTO counters VALUES (1, 5)"):
            for atomic in (False, True):
                self.assertIn('error', self.sql(statement, atomic=atomic))
        self.assertEqual(set(self.sessions()), sessions)
        self.assertEqual(self.uwsgi.pool()['kills'], before['kills'])
        self.assertEqual(self.uwsgi.pool()['opened'], before['opened'])


class SameAsStock(WithServer):
    def test_errors_are_the_drivers_own(self):
        seen = {}
        for name, entry in [('pool', self.database()), ('stock', self.database(engine=STOCK))]:
            with self.make_uwsgi(self.driver, self.mode, {'default': entry}) as uwsgi:
                seen[name] = [{key: value for key, value in self.run_sql(uwsgi, statement, atomic=atomic).items()
                               if key not in ('worker', 'pid', 'id')} for statement in WRONG for atomic in (0, 1)]
        for pool, stock in zip(seen['pool'], seen['stock']):
            self.assertEqual(pool, stock)
            self.assertIn('error', pool)


class Timeouts(WithServer, unittest.TestCase):
    def test_read_timeout(self):
        """The driver's own error, as long as the option says; the session is ended at the server."""
        for driver in DRIVERS:
            for mode in MODES:
                with self.subTest(driver=driver, mode=mode):
                    entry = self.database(ONE, options={'read_timeout': 1})
                    with self.make_uwsgi(driver, mode, {'default': entry}) as uwsgi:
                        answer = self.run_sql(uwsgi, 'SELECT SLEEP(30)')
                        self.assertEqual((answer.get('error'), answer.get('code')), ('OperationalError', 2013), answer)
                        wait_until(lambda: not [c for c in self.sessions().values() if c == 'Query'], 20,
                                   'the interrupted query ends at the server')
                        self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])


class Unreachable(WithServer, unittest.TestCase):
    """Servers that refuse; other pools are not disturbed."""

    def both(self, entry, mode='gevent', driver='mysqlclient'):
        return self.make_uwsgi(driver, mode, {'default': self.database(TWO),
                                              'other': entry})

    def test_access_denied(self):
        for driver in DRIVERS:
            for mode in MODES:
                with self.subTest(driver=driver, mode=mode):
                    entry = self.database(ONE, PASSWORD='not it')
                    with self.both(entry, mode, driver) as uwsgi:
                        answer = self.run_sql(uwsgi, 'SELECT 1', alias='other')
                        self.assertEqual((answer.get('module'), answer.get('error'), answer.get('code')),
                                         ('django.db.utils', 'OperationalError', 1045), answer)
                        self.assertIn("Access denied for user '%s'" % USER, answer['text'])
                        self.assertNotIn('not it', answer['text'] + uwsgi.log())
                        self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])

    def test_no_such_database(self):
        with self.both(self.database(ONE, NAME='nowhere')) as uwsgi:
            answer = self.run_sql(uwsgi, 'SELECT 1', alias='other')
            self.assertEqual(answer.get('code'), 1049, answer)

    def test_server_down_and_up_again(self):
        """The error of the network, then data once the server is there: the pool keeps trying."""
        for driver in DRIVERS:
            with self.subTest(driver), self.make_uwsgi(
                    driver, 'gevent', {'default': self.database(TWO)}) as uwsgi:
                self.server.stop()
                answer = self.run_sql(uwsgi, 'SELECT 1')
                self.assertEqual((answer.get('error'), answer.get('code')), ('OperationalError', 2003), answer)
                self.assertIn(self.server.host, answer['text'])
                self.server.start()
                wait_until(lambda: self.run_sql(uwsgi, 'SELECT 1').get('results') == [[[1]]], 60, 'data again')


class Configuration(WithServer, unittest.TestCase):
    """Mistakes in settings are named at the first use, whichever page meets it."""

    def refused(self, entry, *words, **more):
        with self.make_uwsgi('mysqlclient', 'prefork', {'default': entry}, 1, **more) as uwsgi:
            answer = self.run_sql(uwsgi, 'SELECT 1')
            self.assertEqual((answer.get('module'), answer.get('error')),
                             ('django.core.exceptions', 'ImproperlyConfigured'), answer)
            for word in words:
                self.assertIn(word, answer['text'])
            self.assertNotIn(PASSWORD, answer['text'])
        self.assertEqual(self.sessions(), {})

    def test_unknown_key(self):
        self.refused(self.database({'pool_sise': 3}), 'pool_sise', 'POOL')

    def test_impossible_values(self):
        good = {'pool_size': 2, 'max_overflow': 0, 'timeout': 30}
        for key, value in [('pool_size', 0), ('pool_size', -1), ('pool_size', 100000), ('pool_size', 'many'),
                           ('pool_size', True), ('max_overflow', -2), ('max_overflow', 1.5), ('timeout', -1),
                           ('timeout', 'soon')]:
            with self.subTest(key=key, value=value):
                self.refused(self.database(dict(good, **{key: value})), key)

    def test_options_that_cannot_be_pooled(self):
        for key, value in [('ssl', {'ca': '/etc/ssl/x'}), ('compress', True)]:
            with self.subTest(key):
                self.refused(self.database(options={key: value}), key)

    def test_a_password_that_is_right_too_early(self):
        """The settings of the second worker change before the server does: what was refused then is said again."""
        new = PASSWORD + ', new'
        given = {'per_worker': {'2': {'databases': {'default': dict(self.database(), PASSWORD=new)}}}}
        with self.make_uwsgi('mysqlclient', 'prefork', {'default': self.database()}, 2, {'lazy-apps': True},
                             given) as uwsgi:
            def both_are_served():
                """By new sessions, so all that is known of passwords has been tried."""
                for session in self.sessions():
                    self.server.query('KILL %d' % session)
                served = set()

                def both():
                    answer = self.run_sql(uwsgi, 'SELECT 1')
                    if answer['results']:
                        served.add(answer['worker'])
                    return len(served) == 2

                wait_until(both, 60, 'both workers are served')

            both_are_served()
            both_are_served()
            self.addCleanup(self.server.create, DATABASE, USER, PASSWORD)
            self.server.create(DATABASE, USER, new)
            both_are_served()

    def test_two_settings_of_one_alias(self):
        """Each has a pool of its own: nobody gets the other's sessions; the log says which field differs."""
        other = {'default': self.database(TWO, NAME='mysql')}
        given = {'per_worker': {'2': {'databases': other}}}
        with self.make_uwsgi('mysqlclient', 'prefork', {'default': self.database()}, 2, {'lazy-apps': True},
                             given) as uwsgi:
            seen = {}

            def both():
                answer = self.run_sql(uwsgi, 'SELECT DATABASE()')
                seen[answer['worker']] = answer
                return len(seen) == 2

            wait_until(both, 60, 'both workers answered')
            self.assertEqual({worker: answer.get('results') for worker, answer in seen.items()},
                             {1: [[[DATABASE]]], 2: [[['mysql']]]}, seen)
            wait_until(lambda: "pool 'default': other settings than before (database was" in uwsgi.log(), 30, 'the log')
