# SPDX-License-Identifier: MIT
"""The Django backend where there is no pool: outside uWSGI as stock, and what it refuses inside."""

import asyncio
import logging
import os
import sys
import types
import unittest
import warnings
from unittest import mock

from tests.python import BUILD  # noqa: F401 (finds the package)
from tests.support import Server

import django
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation

settings.configure(DATABASES={'default': {'ENGINE': 'dbpool.mysql'}}, USE_TZ=True)
django.setup()

from django.db import connections, utils  # noqa: E402
from django.db.backends.mysql import base as stock  # noqa: E402
from django.db.backends.signals import connection_created  # noqa: E402

from dbpool import _dbpool, host  # noqa: E402
from dbpool.mysql import base  # noqa: E402


def uwsgi(**more):
    return mock.patch.dict(sys.modules, uwsgi=types.SimpleNamespace(**dict({'masterpid': lambda: 1, 'opt': {}}, **more)))


def wrapper(alias='default', **more):
    entry = dict(connections['default'].settings_dict, **more)
    return base.DatabaseWrapper(entry, alias)


class Outside(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.server = Server().__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)
        cls.server.create('app', 'app', 'secret')

    def wrapper(self, **more):
        return wrapper(HOST=self.server.host, PORT=self.server.port, USER='app', PASSWORD='secret', NAME='app', **more)

    def test_an_ordinary_private_connection(self):
        connection = self.wrapper(POOL={'pool_size': 3})
        created = []
        connection_created.connect(lambda **kwargs: created.append(kwargs['connection']), weak=False)
        with connection.cursor() as cursor:
            cursor.execute('SELECT 1, @@autocommit, @@tx_isolation')
            self.assertEqual(cursor.fetchone(), (1, 1, 'READ-COMMITTED'))
        self.assertEqual(created, [connection])
        self.assertIs(type(connection.connection), stock.Database.connections.Connection)
        connection.close()
        self.assertIsNone(connection.connection)

    def test_no_attribute_more_than_stocks(self):
        """They are near to the number above which each wrapper, one per request under gevent, is dearer (base.py)."""
        self.wrapper()  # the first of an alias remembers for the others
        connection = self.wrapper()
        self.assertEqual(set(vars(connection)), set(vars(stock.DatabaseWrapper(connection.settings_dict, 'default'))))

    def test_server_data_is_stocks(self):
        connection = self.wrapper()
        expected = stock.DatabaseWrapper(connection.settings_dict, 'default')
        self.assertEqual(connection.mysql_server_data, expected.mysql_server_data)
        expected.close()
        # From a row of bytes, as the pool keeps it.
        with expected.cursor() as cursor:
            cursor.execute(base.FACTS_SQL)
            row = [None if value is None else str(value).encode() for value in cursor.fetchone()]
        expected.close()
        pool = types.SimpleNamespace(facts=row, server_data=(None, None))
        with mock.patch.object(base.DatabaseWrapper, '_pool', pool):
            self.assertEqual(connection._server_data(), expected.mysql_server_data)

    def test_parameters_follow_the_settings(self):
        """They are remembered, but not longer than the settings are the same, to the depth of OPTIONS."""
        connection = self.wrapper(OPTIONS={'isolation_level': 'serializable', 'init_command': 'DO 1', 'ssl': {}})
        for change in (lambda: None, lambda: connection.settings_dict.update(PASSWORD='other'),
                       lambda: connection.settings_dict['OPTIONS'].update(isolation_level='read uncommitted'),
                       lambda: connection.settings_dict['OPTIONS']['ssl'].update(ca='/a')):
            change()
            expected = stock.DatabaseWrapper(connection.settings_dict, 'default')
            for _ in range(2):
                connection.isolation_level = None
                params = connection.get_connection_params()
                self.assertEqual(params, expected.get_connection_params())
                self.assertEqual(connection.isolation_level, expected.isolation_level)
                params['host'] = 'changed by a subclass'

    def test_refused_where_an_event_loop_runs(self):
        """By the same methods, in the same way, as Django's: async_unsafe."""
        calls = {'connect': (), 'ensure_connection': (), 'cursor': (), 'create_cursor': (), 'commit': (), 'rollback': (),
                 'close': (), 'savepoint': (), 'savepoint_commit': ('a',), 'savepoint_rollback': ('a',)}
        ours, theirs = self.wrapper(), stock.DatabaseWrapper(self.wrapper().settings_dict, 'default')
        self.assertIsNone(ours.ensure_connection())

        async def refused(connection, name):
            try:
                getattr(connection, name)(*calls[name])
            except SynchronousOnlyOperation as error:
                return str(error)

        for name in calls:
            with self.subTest(name):
                said = asyncio.run(refused(ours, name))
                self.assertIsNotNone(said)
                self.assertEqual(said, asyncio.run(refused(theirs, name)))
        with mock.patch.dict(os.environ, DJANGO_ALLOW_ASYNC_UNSAFE='1'):
            self.assertIsNone(asyncio.run(refused(ours, 'close')))
        self.assertIsNone(ours.connection)

    def test_options_that_only_the_pool_refuses(self):
        connection = self.wrapper(OPTIONS={'compress': True})
        connection.ensure_connection()
        connection.close()

    def test_a_forked_child_leaves_the_parents_connection(self):
        connection = self.wrapper()
        with connection.cursor() as cursor:
            cursor.execute('SELECT CONNECTION_ID()')
            parent, = cursor.fetchone()
        for first_use in (connection.ensure_connection, connection.close, connection.close_if_unusable_or_obsolete,
                          connection.commit, connection.rollback):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    first_use()
                    with connection.cursor() as cursor:
                        cursor.execute('SELECT CONNECTION_ID()')
                        os.write(writer, b'%d' % cursor.fetchone()[0])
                    connection.close()
                finally:
                    os._exit(0)
            os.close(writer)
            with open(reader) as f:
                child = int(f.read())
            os.waitpid(pid, 0)
            self.assertNotEqual(child, parent)
        with connection.cursor() as cursor:
            cursor.execute('SELECT CONNECTION_ID()')
            self.assertEqual(cursor.fetchone(), (parent,))
        connection.close()


class Refused(unittest.TestCase):
    def setUp(self):
        logging.getLogger('dbpool').setLevel(logging.CRITICAL)
        self.addCleanup(logging.getLogger('dbpool').setLevel, logging.NOTSET)

    def refusal(self, connection):
        with self.assertRaises(ImproperlyConfigured) as caught:
            connection.ensure_connection()
        return str(caught.exception)

    def test_pool_settings(self):
        text = self.refusal(wrapper(POOL={'pool_sise': 3, 'timeout': 'soon'}))
        for word in ("'default'", 'pool_sise', 'timeout', 'a number of seconds'):
            self.assertIn(word, text)

    def test_options(self):
        with uwsgi():
            self.assertIn('ssl_ca', self.refusal(wrapper(OPTIONS={'ssl_ca': '/x'})))

    def test_said_in_the_log_once(self):
        logging.getLogger('dbpool').setLevel(logging.NOTSET)
        with self.assertLogs('dbpool', 'ERROR') as logged:
            wrapper('once', POOL={'nothing_like': 3})
            wrapper('once', POOL={'nothing_like': 3})
        self.assertEqual(len(logged.output), 1)

    def test_uwsgi_without_the_plugin(self):
        with uwsgi():
            self.assertIn('need-plugin = dbpool', self.refusal(wrapper()))

    def unavailable(self, reason, text, **module):
        def attach():
            raise _dbpool.Unavailable(reason, text)

        with uwsgi(**module), mock.patch.object(_dbpool, 'attach', attach):
            return wrapper(), self.refusal(wrapper())

    def test_without_a_master(self):
        _, text = self.unavailable('client', 'there is none', masterpid=lambda: 0)
        self.assertIn('master = true', text)

    def test_of_another_build(self):
        _, text = self.unavailable('version', 'interface 1 and 2')
        self.assertIn('interface 1 and 2', text)

    def test_in_a_sub_interpreter(self):
        with uwsgi(), mock.patch.object(_dbpool, 'main_interpreter', lambda: False):
            self.assertIn('single-interpreter = true', self.refusal(wrapper()))

    def test_a_broker_that_does_not_answer_is_an_operational_error(self):
        def attach():
            raise _dbpool.Unavailable('client', 'the broker does not answer')

        with uwsgi(), mock.patch.object(_dbpool, 'attach', attach):
            with self.assertRaises(utils.OperationalError) as caught:
                wrapper().ensure_connection()
            self.assertIn('the broker does not answer', str(caught.exception))


class Host(unittest.TestCase):
    def test_concurrency(self):
        self.assertIsNone(host.concurrency())
        for options, numproc, expected in [({b'gevent': b'100'}, 4, 400), ({b'threads': b'8', b'processes': b'2'}, None, 16),
                                           ({}, 3, 3), ({'workers': '5'}, None, 5), ({b'gevent': True}, 2, 2)]:
            with uwsgi(opt=options, numproc=numproc):
                self.assertEqual(host.concurrency(), expected, options)

    def test_kept_leases_are_warned_of_once(self):
        base._warned.clear()
        pool = types.SimpleNamespace(cap=10)
        with uwsgi(opt={b'gevent': b'100'}, numproc=2), warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter('always')
            wrapper(CONN_MAX_AGE=0)._warn_of_kept_leases(pool)
            wrapper(CONN_MAX_AGE=60)._warn_of_kept_leases(pool)
            wrapper(CONN_MAX_AGE=None)._warn_of_kept_leases(pool)
        self.assertEqual(len(seen), 1)
        for word in ('default', 'CONN_MAX_AGE 60', '200', '10'):
            self.assertIn(word, str(seen[0].message))


if __name__ == '__main__':
    unittest.main()
