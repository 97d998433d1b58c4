# SPDX-License-Identifier: MIT
"""dbpool.manage() without Django, and dbpool.init_pool() under Django's own backend, inside uWSGI."""

import itertools
import os
import unittest

from tests.e2e.base import DATABASE, DRIVERS, PASSWORD, STOCK, USER, WithServer
from tests.support import concurrently, wait_until

MODES = ('gevent', 'prefork')
MATRIX = tuple(itertools.product(DRIVERS, MODES))
CAP = 2

# A WSGI application of a driver and nothing else. Answers are JSON; a page's error is part of its answer.
PLAIN = """
import json, os
import uwsgi
import dbpool
import %(driver)s as stock
import %(driver)s.converters

Database = dbpool.manage(stock, pool_size=%(cap)d, max_overflow=0, timeout=30)

def connect(**more):
    return Database.connect(host=%(host)r, port=%(port)d, user=%(user)r, password=%(password)r, database=%(database)r,
                            conv=dict(stock.converters.conversions), init_command='SET @greeting = 42', **more)

def state(connection):
    cursor = connection.cursor()
    cursor.execute('SELECT CONNECTION_ID(), @@autocommit, @greeting')
    return cursor.fetchone()

def ping():
    return {}

def leased():
    connection = connect()
    try:
        found, autocommit, greeting = state(connection)
        return {'id': found, 'autocommit': autocommit, 'greeting': int(greeting), 'type': type(connection).__module__}
    finally:
        connection.close()

def committing():
    connection = connect(autocommit=True)
    found, autocommit, _ = state(connection)
    connection.close()
    return {'id': found, 'autocommit': autocommit}

def left_open():
    connection = connect()
    connection.cursor().execute('UPDATE counters SET n = n + 1 WHERE id = 1')
    connection.close()
    return leased()

def committed():
    connection = connect()
    connection.cursor().execute('UPDATE counters SET n = n + 1 WHERE id = 2')
    connection.commit()
    connection.close()
    return leased()

def read_after_commit():
    connection = connect()
    connection.cursor().execute('UPDATE counters SET n = n + 1 WHERE id = 2')
    connection.commit()
    connection.cursor().execute('SELECT * FROM counters')
    connection.close()

def rolled_back():
    connection = connect()
    connection.cursor().execute('UPDATE counters SET n = n + 1 WHERE id = 2')
    connection.rollback()
    connection.cursor().execute('SELECT * FROM counters')
    connection.close()

def nothing_changed():
    connection = connect()
    connection.cursor().execute('UPDATE counters SET n = n + 1 WHERE id = 77')
    connection.close()

def duplicate():
    connection = connect()
    try:
        connection.cursor().execute("INSERT INTO nonces VALUES (1, 'again')")
    except Database.IntegrityError as error:
        return {'code': error.args[0]}
    finally:
        connection.close()

def tls():
    connect(ssl={'ca': '/nowhere'}).close()

PAGES = {'/' + page.__name__: page for page in (ping, leased, committing, left_open, committed, read_after_commit,
                                               rolled_back, nothing_changed, duplicate, tls)}

def application(environ, start_response):
    try:
        answer = PAGES[environ['PATH_INFO']]()
    except Exception as error:
        answer = {'error': type(error).__name__, 'text': str(error)}
    start_response('200 OK', [('Content-Type', 'application/json')])
    return [json.dumps(dict(answer or {}, worker=uwsgi.worker_id())).encode()]
"""

INIT = 'import dbpool; dbpool.init_pool(pool_size=%d, max_overflow=0, timeout=30)\n' % CAP
LOAD = 'from wsgi import application; from django.db import connection; connection.features\n'
# settings makes PyMySQL be MySQLdb; twice does as once.
DJANGO = {'before': 'import settings\n' + INIT + INIT + LOAD, 'after': LOAD + INIT}


class Managed(WithServer, unittest.TestCase):
    def module(self, name, text):
        with open(os.path.join(self.meet, name + '.py'), 'w') as f:
            f.write(text)
        return {'module': name + ':application'}

    def serve(self, driver, mode, name, text, options=None, **more):
        options = dict(self.module('%s_%s_%s' % (name, driver, mode), text), **(options or {}))
        databases = {'default': self.database(engine=STOCK)}
        return self.make_uwsgi(driver, mode, databases, 2, options, environ={'PYTHONPATH': self.meet}, **more)

    def plain(self, driver):
        return PLAIN % {'driver': 'MySQLdb' if driver == 'mysqlclient' else 'pymysql', 'cap': CAP,
                        'host': self.server.host, 'port': self.server.port, 'user': USER, 'password': PASSWORD,
                        'database': DATABASE}

    def shared(self, uwsgi, path, data=None):
        """Asks until two workers have used one session; all answers."""
        answers = []

        def met():
            answers.extend(answer.json() for answer in concurrently(lambda _: uwsgi.get(path, data), [None] * 24, 8))
            workers = {}
            for answer in answers:
                self.assertNotIn('error', answer)
                workers.setdefault(answer['id'], set()).add(answer['worker'])
            return any(len(both) == 2 for both in workers.values())

        wait_until(met, 60, 'a session is used by two workers')
        self.assertLessEqual(len({answer['id'] for answer in answers}), CAP)
        return answers

    def kept(self, sessions):
        """None was lost, and there are no more than the pool may have."""
        now = set(self.sessions())
        self.assertLessEqual(sessions, now)
        self.assertLessEqual(len(now), CAP)

    def gone(self):
        wait_until(lambda: not self.sessions(), 30, 'the sessions end with the instance')

    def test_without_django(self):
        for driver, mode in MATRIX:
            with self.subTest(driver=driver, mode=mode), \
                    self.serve(driver, mode, 'plain', self.plain(driver)) as uwsgi:
                for answer in self.shared(uwsgi, '/leased'):
                    self.assertEqual((answer['autocommit'], answer['greeting']), (0, 42))
                    self.assertTrue(answer['type'].startswith('dbpool.'), answer)
                sessions = set(self.sessions())
                before = self.counter(1), self.counter(2)
                for _ in range(6):
                    self.assertEqual(uwsgi.get('/left_open').json()['autocommit'], 0)
                    self.assertEqual(uwsgi.get('/committed').json()['autocommit'], 0)
                self.assertEqual((self.counter(1), self.counter(2)), (before[0], before[1] + 6))
                self.assertEqual(uwsgi.get('/duplicate').json()['code'], 1062)
                for page in ('/read_after_commit', '/rolled_back', '/nothing_changed'):
                    self.assertNotIn('error', uwsgi.get(page).json())

                def undone():
                    return [entry['value'] for name, entry in uwsgi.stats()['metrics'].items() if name.endswith('.undone')]

                wait_until(lambda: undone() == [6], 30, 'the rows that were left open are counted')
                self.assertEqual(uwsgi.log().count("counted as 'undone'"), 1)
                answer = uwsgi.get('/tls').json()
                self.assertEqual(answer['error'], 'ConfigurationError')
                self.assertIn('ssl', answer['text'])
                self.kept(sessions)
                sessions = set(self.sessions())
                # The other baseline is another pool.
                other = uwsgi.get('/committing').json()
                self.assertEqual(other['autocommit'], 1)
                self.assertNotIn(other['id'], sessions)
                self.assertIn('app_127_0_0_1_%d_app_' % self.server.port, ' '.join(uwsgi.stats()['metrics']))
                self.assertNotIn(PASSWORD, uwsgi.log())
            self.gone()

    def test_without_the_plugin(self):
        with self.serve('pymysql', 'prefork', 'no_plugin', self.plain('pymysql'), plugin=None,
                        options={'need-plugin': None}) as uwsgi:
            answer = uwsgi.get('/leased').json()
            self.assertEqual(answer.get('error'), 'ConfigurationError', answer)
            self.assertIn('plugin', answer['text'])
            self.assertEqual(self.sessions(), {})

    def test_djangos_own_backend(self):
        level = {'statements': ['SELECT @@autocommit, @@tx_isolation']}
        for driver, mode, when in itertools.product(DRIVERS, MODES, DJANGO):
            with self.subTest(driver=driver, mode=mode, when=when):
                with self.serve(driver, mode, 'django_' + when, DJANGO[when]) as uwsgi:
                    for answer in self.shared(uwsgi, '/sql', level):
                        self.assertEqual(answer['results'], [[[1, 'READ-COMMITTED']]])
                    sessions = set(self.sessions())
                    before = self.counter(1), self.counter(2)
                    for _ in range(6):
                        # A lease ends within a transaction: the next one's SET autocommit=1 must not commit it.
                        self.assertEqual(uwsgi.get('/autocommit_off').status, 200)
                        self.assertEqual(self.run_sql(uwsgi, *level['statements'])['results'],
                                         [[[1, 'READ-COMMITTED']]])
                        answer = self.run_sql(uwsgi, 'UPDATE counters SET n = n + 1 WHERE id = 2', atomic=True)
                        self.assertNotIn('error', answer)
                    self.kept(sessions)
                    answer = self.run_sql(uwsgi, 'UPDATE counters SET n = n + 1 WHERE id = 1', 'SELECT nonsense',
                                          atomic=True)
                    self.assertEqual((answer['error'], answer['module']), ('OperationalError', 'django.db.utils'))
                    self.assertEqual((self.counter(1), self.counter(2)), (before[0], before[1] + 6))
                self.gone()


if __name__ == '__main__':
    unittest.main()
