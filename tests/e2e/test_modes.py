# SPDX-License-Identifier: MIT
"""The ways of running uWSGI that the matrix does not have, and life outside of it."""

import os
import subprocess
import sys
import unittest

from tests.e2e.base import APP, DRIVERS, MODES, WithServer
from tests.support import concurrently, session_sockets, wait_until
from tests.support.uwsgi import BUILD

POOL = {'pool_size': 2, 'max_overflow': 0, 'timeout': 30}

MULE = """
import os
from wsgi import application
from django.db import connection
import uwsgi
with connection.cursor() as cursor:
    cursor.execute('SELECT CONNECTION_ID(), nonce FROM nonces WHERE id = 7')
    row = cursor.fetchone()
path = os.path.join(%(meet)r, 'mule')
with open(path + '.new', 'w') as f:
    f.write('%%d %%s %%s' %% (row[0], row[1], type(connection.connection).__module__))
os.rename(path + '.new', path + '.here')
while not os.path.exists(path + '.go'):
    uwsgi.mule_get_msg(timeout=1)
connection.close()
while True:
    uwsgi.mule_get_msg()
"""

SPOOLER = """
import os
from wsgi import application
from django.db import connection
import uwsgi

def spooled(environ):
    with connection.cursor() as cursor:
        cursor.execute('SELECT CONNECTION_ID(), nonce FROM nonces WHERE id = 7')
        row = cursor.fetchone()
    path = os.path.join(%(meet)r, 'spooler')
    with open(path + '.new', 'w') as f:
        f.write('%%d %%s %%s' %% (row[0], row[1], type(connection.connection).__module__))
    os.rename(path + '.new', path + '.here')
    connection.close()
    return uwsgi.SPOOL_OK

uwsgi.spooler = spooled
uwsgi.spool({b'anything': b'at all'})  # imported once, in the master; the spooler is forked from it
"""


class Modes(WithServer, unittest.TestCase):
    def serve(self, driver, mode, options=None, **more):
        return self.make_uwsgi(driver, mode, {'default': self.database(POOL)}, options=options, **more)

    def works(self, uwsgi, path='/rows'):
        def ask(n):
            return uwsgi.get(path, ids='%d' % (n + 1), token='t%d' % n)

        for n, answer in enumerate(concurrently(ask, range(30), 6)):
            self.assertEqual(getattr(answer, 'status', answer), 200, answer)
            self.assertEqual(answer.json()['rows'], [[n + 1, self.nonces[n + 1], 't%d' % n]])
        self.assertTrue(0 < len(self.sessions()) <= POOL['pool_size'])
        self.whole(uwsgi)

    def gone(self):
        wait_until(lambda: not self.sessions(), 30, 'the sessions end with the instance')

    def test_lazy_apps_and_early_patching(self):
        for driver in DRIVERS:
            for mode in (*MODES, 'gevent-early'):
                for lazy in (True, False):
                    if not lazy and mode != 'gevent-early':
                        continue  # the matrix of the other files
                    with self.subTest(driver=driver, mode=mode, lazy=lazy):
                        with self.serve(driver, mode, {'lazy-apps': lazy}) as uwsgi:
                            self.works(uwsgi)
                        self.gone()

    def test_query_at_import(self):
        """In the master, before the fork: a private connection, which the workers drop without ending it."""
        for driver in DRIVERS:
            for mode in MODES:
                with self.subTest(driver=driver, mode=mode):
                    before = self.server.status('Aborted_clients')
                    with self.serve(driver, mode, given={'import_query': True}) as uwsgi:
                        answer = uwsgi.get('/imported').json()
                        self.assertTrue(answer['imported'])
                        self.assertNotEqual(answer['imported']['pid'], answer['pid'])
                        self.assertNotEqual(answer['imported']['id'], answer['id'])
                        for n in range(10):
                            self.assertEqual(uwsgi.get('/rows', ids='2', token='x').json()['rows'],
                                             [[2, self.nonces[2], 'x']])
                        self.assertEqual(self.server.status('Aborted_clients'), before)
                        self.assertIn(answer['imported']['id'], self.sessions(), 'the master has it still')
                        self.whole(uwsgi)
                    self.gone()

    def test_several_apps(self):
        """Two apps in sub-interpreters: either they work, or the refusal names single-interpreter.

        Not under gevent: there uWSGI 2.0.21 itself crashes on the second app, with the stock backend too.
        """
        wsgi = os.path.join(APP, 'wsgi.py')
        options = {'module': None, 'mount': ['/one=' + wsgi, '/two=' + wsgi], 'manage-script-name': True}
        for driver in DRIVERS:
            for mode in MODES:
                with self.subTest(driver=driver, mode=mode):
                    if mode != 'gevent':
                        self.works_or_refuses(driver, mode, options)
                    single = dict(options, **{'single-interpreter': True})
                    with self.serve(driver, mode, single, ready='/one/ping') as uwsgi:
                        self.works(uwsgi, '/one/rows')
                        self.works(uwsgi, '/two/rows')
                    self.gone()

    def works_or_refuses(self, driver, mode, options):
        with self.serve(driver, mode, options, ready='/one/ping') as uwsgi:
            for path in ('/one/sql', '/two/sql'):
                answer = uwsgi.get(path, {'statements': ['SELECT 1']})
                self.assertEqual(answer.status, 200, answer)
                answer = answer.json()
                if 'error' in answer:
                    self.assertEqual(answer['error'], 'ImproperlyConfigured')
                    self.assertIn('single-interpreter', answer['text'])
                else:
                    self.assertEqual(answer['results'], [[[1]]])
        self.gone()

    def test_mule_leases_from_the_same_pool(self):
        script = os.path.join(self.meet, 'mule.py')
        with open(script, 'w') as f:
            f.write(MULE % {'meet': self.meet})
        with self.serve('mysqlclient', 'gevent', {'mule': script}) as uwsgi:
            self.here('mule')
            with open(os.path.join(self.meet, 'mule.here')) as f:
                session, nonce, _ = f.read().split()
            self.assertEqual(nonce, self.nonces[7])
            self.assertIn(int(session), self.sessions())
            wait_until(lambda: uwsgi.metric('dbpool.default.leased') == 1, 30, 'the mule holds a lease of the one pool')
            self.go('mule')
            self.works(uwsgi)

    def test_spooler_leases_from_the_same_pool(self):
        with open(os.path.join(self.meet, 'spooled_app.py'), 'w') as f:
            f.write(SPOOLER % {'meet': self.meet})
        spool = os.path.join(self.meet, 'spool')
        os.mkdir(spool)
        options = {'spooler': spool, 'spooler-frequency': 1, 'shared-import': 'spooled_app'}
        with self.serve('mysqlclient', 'prefork', options, environ={'PYTHONPATH': self.meet}) as uwsgi:
            self.here('spooler')
            with open(os.path.join(self.meet, 'spooler.here')) as f:
                session, nonce, module = f.read().split()
            self.assertEqual(nonce, self.nonces[7])
            self.assertTrue(module.startswith('dbpool.'), module)
            self.assertIn(int(session), self.sessions())
            self.works(uwsgi)

    def test_no_fd_of_a_session_in_the_master_of_a_fresh_worker(self):
        """Workers that lease nothing have no session fd, whatever the master holds at the fork."""
        with self.serve('mysqlclient', 'prefork') as uwsgi:
            self.works(uwsgi)
            old = uwsgi.worker_pids()
            os.kill(old[1], 9)
            wait_until(lambda: uwsgi.worker_pids().get(1) not in (None, old[1]), 60, 'respawn')
            uwsgi.note_processes()
            self.assertTrue(session_sockets(uwsgi.pid, self.server.port), 'the master has the sessions')
            self.assertEqual(session_sockets(uwsgi.worker_pids()[1], self.server.port), {})


class Outside(WithServer, unittest.TestCase):
    """The same settings elsewhere."""

    def run_python(self, driver, *arguments):
        environ = dict(os.environ, PYTHONPATH=os.path.join(BUILD, 'python'), PYTHONDONTWRITEBYTECODE='1',
                       **self.environment({'default': self.database(POOL)}, driver))
        return subprocess.run([sys.executable, *arguments], cwd=APP, env=environ, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)

    def test_management_commands_have_a_private_connection(self):
        code = ("from django.db import connection as c; k = c.cursor(); k.execute('SELECT nonce FROM nonces WHERE "
                "id = 5'); print(k.fetchone()[0])")
        for driver in DRIVERS:
            with self.subTest(driver):
                done = self.run_python(driver, 'manage.py', 'shell', '-c', code)
                self.assertEqual((done.returncode, done.stdout.strip()), (0, self.nonces[5]), done.stderr)
                done = self.run_python(driver, 'manage.py', 'migrate')
                self.assertEqual(done.returncode, 0, done.stderr)
                done = self.run_python(driver, 'manage.py', 'check', '--database', 'default')
                self.assertEqual(done.returncode, 0, done.stderr)

    def test_uwsgi_without_the_plugin_or_without_a_master(self):
        """No silent private connection: ImproperlyConfigured at first use."""
        for name, plugin, options in [('plugin', None, {}),
                                      # stats would bring a master of its own.
                                      ('master', 'default', {'master': None, 'stats': None})]:
            for mode in MODES:
                with self.subTest(missing=name, mode=mode):
                    more = {} if plugin else {'plugin': None}
                    databases = {'default': self.database(POOL)}
                    instance = self.make_uwsgi('mysqlclient', mode, databases, 1, options, **more)
                    instance.launch()
                    self.addCleanup(instance.close)
                    answer = wait_until(lambda: self.answer(instance), 30, 'an answer').json()
                    self.assertEqual((answer.get('module'), answer.get('error')),
                                     ('django.core.exceptions', 'ImproperlyConfigured'), answer)
                    self.assertIn(name, answer['text'])
                    self.assertEqual(self.sessions(), {})
                    instance.close()

    def answer(self, instance):
        try:
            return instance.get('/sql', {'statements': ['SELECT 1']})
        except OSError:
            return None
