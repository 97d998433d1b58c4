# SPDX-License-Identifier: MIT
"""dbpool.manage() and init_pool() without a pool: the alias, the module's face, what is refused and in which words."""

import os
import subprocess
import sys
import types
import unittest
from unittest import mock

from tests.python import BUILD

import MySQLdb
import pymysql

import dbpool
from dbpool import host, managed
from dbpool import pool as pools

ARGUMENTS = {'host': 'db.example', 'user': 'app', 'password': 'open sesame', 'database': 'shop'}
MODULES = (MySQLdb, pymysql)


class Inside(unittest.TestCase):
    """As in a worker: what would be registered is noted, and a connection is a number."""

    def setUp(self):
        self.profiles = []

        def profile(*args):
            self.profiles.append(args)
            return types.SimpleNamespace(connect=lambda: len(self.profiles))

        for patch in (mock.patch.object(host, 'where', lambda: host.POOLED),
                      mock.patch.object(pools, 'profile', profile), mock.patch.dict(managed._met, clear=True)):
            patch.start()
            self.addCleanup(patch.stop)

    def alias(self, module=MySQLdb, pool=(), **arguments):
        dbpool.manage(module, **dict(pool)).connect(**dict(ARGUMENTS, **arguments))
        return self.profiles[-1][1]

    def refused(self, module, pool=(), **arguments):
        with self.assertRaises(managed.ConfigurationError) as caught:
            dbpool.manage(module, **dict(pool)).connect(**dict(ARGUMENTS, **arguments))
        self.assertNotIn('DATABASES', str(caught.exception))
        self.assertNotIn('sesame', str(caught.exception))
        return str(caught.exception)


class Alias(Inside):
    def test_is_readable_and_says_no_password(self):
        for module in MODULES:
            self.assertRegex(self.alias(module), r'^app@db\.example:3306/shop#[0-9a-f]{8}$')
            self.assertRegex(self.alias(module, port=3307), r'^app@db\.example:3307/shop#')
            local = self.alias(module, host='localhost', unix_socket='/run/x.sock')
            self.assertRegex(local, r'^app@/run/x\.sock/shop#')

    def test_is_the_same_in_every_process(self):
        code = ('import MySQLdb, dbpool; from dbpool import managed, settings\n'
                'from dbpool.drivers import mysqlclient\n'
                'spec, _ = settings.split("x", %r, settings.policy("x", {}, []), mysqlclient, False, False, '
                'managed.FACTS_SQL)\n'
                'print(managed.alias_of(spec))' % ARGUMENTS)
        for seed in ('1', '2'):
            environ = dict(os.environ, PYTHONPATH=os.path.join(BUILD, 'python'), PYTHONHASHSEED=seed)
            found = subprocess.run([sys.executable, '-c', code], env=environ, check=True, stdout=subprocess.PIPE)
            self.assertEqual(found.stdout.decode().strip(), self.alias())

    def test_differs_in_what_the_server_sees(self):
        kinds = [{}, {'autocommit': True}, {'charset': 'latin1'}, {'init_command': 'SET @a = 1'}, {'client_flag': 2},
                 {'sql_mode': 'ANSI'}, {'host': 'other.example'}, {'user': 'b'}, {'database': 'b'}, {'local_infile': 1}]
        for module in MODULES:
            aliases = [self.alias(module, **kind) for kind in kinds]
            self.assertEqual(len(set(aliases)), len(kinds), aliases)

    def test_does_not_differ_in_what_only_this_process_sees(self):
        plain = self.alias()
        for more in ({'conv': {1: [int]}}, {'cursorclass': MySQLdb.cursors.DictCursor}, {'read_timeout': 5},
                     {'autocommit': False}, {'connect_timeout': 3}, {'port': 3306}):
            self.assertEqual(self.alias(**more), plain, more)

    def test_names_of_one_argument(self):
        """passwd and db, and MySQLdb's positional arguments."""
        plain = self.alias()
        module = dbpool.manage(MySQLdb)
        module.connect('db.example', 'app', 'open sesame', 'shop')
        module.connect(host='db.example', user='app', passwd='open sesame', db='shop')
        self.assertEqual([self.profiles[-2][1], self.profiles[-1][1]], [plain, plain])
        self.assertEqual(self.profiles[-2][3], self.profiles[-1][3])
        for args, kwargs in [(('h',), {'host': 'h'}), ((), {'db': 'a', 'database': 'a'}), (('h',) * 6, {})]:
            with self.assertRaises(TypeError):
                module.connect(*args, **kwargs)

    def test_is_no_longer_than_the_table_takes(self):
        for name in ('x' * 100, 'ä' * 100):
            one, other = self.alias(user=name), self.alias(user=name, host='other.example')
            self.assertLessEqual(len(one.encode()), 63)
            self.assertNotEqual(one, other)

    def test_django_and_others_do_not_share(self):
        """Django leaves an isolation level in its sessions."""
        one = managed.Managed(MySQLdb, managed._policy('x', {}), 'django')
        one.connect(**ARGUMENTS)
        self.assertNotEqual(self.profiles[-1][1], self.alias())


class Connect(Inside):
    def test_autocommit_is_off_unless_asked_for(self):
        module = dbpool.manage(MySQLdb)
        module.connect(**ARGUMENTS)
        module.connect(autocommit=True, **ARGUMENTS)
        self.assertEqual([args[4] for args in self.profiles], [False, True])
        self.assertIn('autocommit', self.refused(MySQLdb, autocommit=None))

    def test_dicts_are_taken_as_they_are_at_the_call(self):
        conv = {1: [int], 2: str}
        module = dbpool.manage(MySQLdb)
        module.connect(conv=conv, **ARGUMENTS)
        conv[3] = float
        module.connect(conv=conv, **ARGUMENTS)
        self.assertEqual([len(args[3]['conv']) for args in self.profiles], [2, 3])
        self.assertEqual(self.profiles[0][1], self.profiles[1][1])

    def test_refused_arguments(self):
        for module in MODULES:
            for more in ({'ssl': {'ca': 'x'}}, {'ssl_ca': 'x'}, {'compress': 1}, {'port': 'x'},
                         {'compress': True}):
                text = self.refused(module, **more)
                self.assertIn(next(iter(more)), text)
                self.assertIn('connect()', text)
        self.assertEqual(self.profiles, [])

    def test_arguments_without_end(self):
        module = dbpool.manage(MySQLdb)
        for n in range(managed.VARIANTS_MAX):
            module.connect(conv={1: n}, **ARGUMENTS)
        with self.assertRaisesRegex(managed.ConfigurationError, 'conv'):
            module.connect(conv={1: -1}, **ARGUMENTS)
        module.connect(conv={1: 0}, **ARGUMENTS)

    def test_one_policy_and_one_password_for_a_pool(self):
        self.alias(pool={'pool_size': 3})
        self.alias(pool={'pool_size': 3})
        self.assertIn('other values', self.refused(MySQLdb, {'pool_size': 4}))
        self.assertIn('another password', self.refused(MySQLdb, {'pool_size': 3}, password='guess'))

    def test_pool_keywords_are_checked_at_manage(self):
        with self.assertRaises(managed.ConfigurationError) as caught:
            dbpool.manage(MySQLdb, pool_size=-1, pool_sise=4)
        for word in ("dbpool.manage()['pool_size'] must be", "'pool_sise'", 'max_overflow'):
            self.assertIn(word, str(caught.exception))
        self.assertEqual(dbpool.manage(MySQLdb, preset='fast_and_sane', pool_size=7)._dbpool_policy[:3], (7, 10, 30))

    def test_pool_that_cannot_be_reached_yet(self):
        for module in MODULES:
            with mock.patch.object(host, 'where', side_effect=host.NotReady('not yet')):
                with self.assertRaisesRegex(module.OperationalError, 'not yet'):
                    dbpool.manage(module).connect(**ARGUMENTS)


class Face(unittest.TestCase):
    def test_is_the_module_but_for_connect(self):
        for module in MODULES:
            proxy = dbpool.manage(module)
            for name in dir(module):
                if name not in ('connect', 'Connect', 'Connection', '__dict__', '__class__'):
                    self.assertIs(getattr(proxy, name), getattr(module, name), name)
            self.assertEqual(dir(proxy), dir(module))
            self.assertEqual((proxy.apilevel, proxy.connect, proxy.Connect), ('2.0', proxy.Connect, proxy.connect))
            with self.assertRaises(AttributeError):
                proxy.nonsense
        self.assertIs(dbpool.manage(pymysql).Connection, pymysql.connections.Connection)
        self.assertNotEqual(dbpool.manage(MySQLdb).Connection, MySQLdb.Connection)

    def test_outside_uwsgi_the_driver_connects(self):
        for module in MODULES:
            with mock.patch.object(module, 'connect', side_effect=lambda *args, **kwargs: (args, kwargs)):
                self.assertEqual(dbpool.manage(module).connect('h', ssl={'ca': 'x'}), (('h',), {'ssl': {'ca': 'x'}}))

    def test_other_modules_are_refused(self):
        import sqlite3
        with self.assertRaises(managed.ConfigurationError):
            dbpool.manage(sqlite3)

    def test_of_a_managed_one(self):
        self.assertIs(dbpool.manage(dbpool.manage(MySQLdb))._dbpool_module, MySQLdb)


class Django(unittest.TestCase):
    def setUp(self):
        from django.db.backends.mysql import base
        self.base = base
        for owner in (base, base.DatabaseWrapper):
            patch = mock.patch.object(owner, 'Database', MySQLdb)
            patch.start()
            self.addCleanup(patch.stop)

    def test_one_line_and_again(self):
        found = dbpool.init_pool(pool_size=3)
        self.assertIsInstance(found, managed.Managed)
        self.assertIs(self.base.Database, found)
        self.assertIs(self.base.DatabaseWrapper.Database, found)
        self.assertIs(dbpool.init_pool(pool_size=3), found)
        with self.assertRaisesRegex(managed.ConfigurationError, 'already'):
            dbpool.init_pool(pool_size=4)
        self.assertIs(self.base.Database, found)

    def test_what_stock_django_cannot_have(self):
        with self.assertRaisesRegex(managed.ConfigurationError, 'commit'):
            dbpool.init_pool(reset_on_return='commit')
        with self.assertRaisesRegex(managed.ConfigurationError, r"init_pool\(\)\['timeout'\]"):
            dbpool.init_pool(timeout='x')
        self.assertIs(self.base.Database, MySQLdb)
        self.assertFalse(dbpool.init_pool(preset='slow_and_safe')._dbpool_policy.use_threadlocal)


if __name__ == '__main__':
    unittest.main()
