# SPDX-License-Identifier: MIT
"""read_default_file and read_default_group: what the stock drivers make of a file is what the pool makes of it.

Each case of Same is read twice: by the stock driver, which logs in to a private server with it, and by optionfile.py,
whose result the stock driver gets as arguments. The server must see the same.
"""

import os
import shutil
import tempfile
import textwrap
import unittest
from types import SimpleNamespace
from unittest import mock

from tests.python import BUILD  # noqa: F401 (finds the package)
from tests.support import Server

import MySQLdb
import pymysql

import dbpool
from dbpool import drivers, host, managed, optionfile, settings
from dbpool import pool as pools

DRIVERS = {'mysqlclient': MySQLdb, 'pymysql': pymysql}
SEEN = ('SELECT USER(), DATABASE(), @@character_set_client, @first, @second, @@interactive_timeout = @@wait_timeout, '
        '@@port')


class WithFiles(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix='dbpool-cnf-')
        self.addCleanup(shutil.rmtree, self.directory)

    def file(self, text, name='my.cnf'):
        path = os.path.join(self.directory, name)
        with open(path, 'w') as f:
            f.write(textwrap.dedent(text))
        return path

    def merged(self, text, driver='mysqlclient', **params):
        path = self.file(text) if text is not None else None
        return optionfile.merged(dict(params, read_default_file=path), drivers.of(DRIVERS[driver]).OPTION_FILE)


class Same(WithFiles):
    @classmethod
    def setUpClass(cls):
        cls.server = Server().__enter__()
        cls.addClassCleanup(cls.server.__exit__, None, None, None)
        for user, password in [('app', 'secret'), ('other', 'another'), ('odd', 'a#b;c "d" \\\\ e'), ('bare', '')]:
            cls.server.create('app', user, password)
        cls.server.create('shop', 'app', 'secret')

    def seen(self, module, **params):
        try:
            connection = module.connect(connect_timeout=10, **params)
        except module.OperationalError as error:
            return error.args[0]
        cursor = connection.cursor()
        cursor.execute(SEEN)
        row = cursor.fetchone()
        cursor.execute('UPDATE app.matched SET n = 1')  # 1 with FOUND_ROWS, else 0
        connection.close()
        return row + (cursor.rowcount,)

    def test_cases(self):
        self.server.query('CREATE TABLE IF NOT EXISTS app.matched (n INT)')
        self.server.query('REPLACE INTO app.matched VALUES (1)')
        here = 'host = 127.0.0.1\nport = %d\n' % self.server.port
        self.file('[client]\n%suser = other\npassword = another\n' % here, 'included.cnf')
        included = os.path.join(self.directory, 'included.cnf')
        os.mkdir(os.path.join(self.directory, 'd'))
        self.file('[shop]\ndatabase = app\n', 'd/my.cnf')
        self.file('[shop]\ndatabase = mysql\n', 'd/other.cnf')
        app = here + 'user = app\npassword = secret\n'
        shop = {'read_default_group': 'shop'}
        cases = [
            ('plain', '[client]\n%sdatabase = shop\n' % app, {}),
            ('comments, blanks, other groups', '# x\n; y\n\n[mysqld]\nuser = nobody\n[client]\n  %s\n'
             % app.replace('\n', '\n  '), {}),
            ('an argument wins', '[client]\n%sdatabase = shop\n' % app,
             {'user': 'other', 'password': 'another', 'database': 'app'}),
            ('named after client', '[client]\n%s[shop]\nuser = other\npassword = another\n' % app, shop),
            ('named before client', '[shop]\nuser = other\npassword = another\n[client]\n%s' % app, shop),
            ('all in the named one', '[client]\nuser = nobody\n[shop]\n%sdatabase = app\n' % app, shop),
            ('group that is not there', '[client]\n%s' % app, {'read_default_group': 'nothing'}),
            ('groups of libmariadb', '[client-server]\n%s[client-mariadb]\ndatabase = shop\n' % app, {}),
            ('quotes', '[client]\n%sdatabase = "shop"\n' % app.replace('secret', "'secret'"), {}),
            ('a password of signs', '[client]\n%suser = odd\npassword = a#b;c "d" \\\\ e\n' % here, {}),
            ('the same in quotes', '[client]\n%suser = odd\npassword = \'a#b;c \\"d\\" \\\\ e\'\n' % here, {}),
            ('underlines', '[client]\n%sdefault_character_set = latin1\n' % app, {}),
            ('dashes', '[client]\n%sdefault-character-set = latin1\n' % app, {}),
            ('charset of the argument', '[client]\n%sdefault-character-set = latin1\n' % app, {'charset': 'utf8'}),
            ('init-command', '[client]\n%sinit-command = SET @first = 1\n' % app, {}),
            ('several', '[client]\n%sinit-command = SET @first = 1\n[shop]\ninit-command = SET @second = 2\n' % app,
             dict(shop, init_command='SET @first = 3')),
            ('flags', '[client]\n%sreturn-found-rows = 1\ninteractive-timeout = 1\n' % app, {}),
            ('keys nobody knows', '[client]\n%sno-such-key = 5\nprompt = "x> "\nskip-column-names\n' % app, {}),
            ('socket for localhost', '[client]\nsocket = %s\nuser = app\npassword = secret\n' % self.server.socket, {}),
            ('socket and another host', '[client]\nsocket = %s\n%s' % (self.server.socket, app), {}),
            ('host of the argument', '[client]\nhost = 192.0.2.1\n%s' % app.replace('host = 127.0.0.1\n', ''),
             {'host': '127.0.0.1'}),
            ('empty values', '[client]\n%sdatabase =\npassword = secret\nuser=app\n'
             % here.replace(' = ', '='), {}),
            ('no password wanted', '[client]\n%s' % app, {'user': 'bare', 'password': ''}),
            ('key without value', '[client]\n%spassword\n' % app.replace('password = secret\n', ''), {}),
            ('include', '[client]\n%s!include %s\n' % (app, included), {}),
            ('include first', '!include %s\n[client]\n%s' % (included, app), {}),
            ('includedir', '[client]\n%s!includedir %s\n' % (app, os.path.join(self.directory, 'd')), shop),
        ]
        logins = set()
        for name, text, params in cases:
            for driver, module in DRIVERS.items():
                with self.subTest(name, driver=driver):
                    path = self.file(text)
                    try:
                        expected = self.seen(module, read_default_file=path, **params)
                    except pymysql.err.MySQLError:
                        raise
                    except Exception as error:  # what PyMySQL's parser cannot read
                        self.assertEqual(driver, 'pymysql')
                        self.assertEqual(type(error).__module__, 'configparser', error)
                        with self.assertRaises(optionfile.Unusable):
                            self.merged(text, driver, **params)
                        continue
                    found = self.merged(text, driver, **params)
                    self.assertFalse({'read_default_file', 'read_default_group'} & set(found))
                    if not isinstance(expected, int):
                        logins.add((driver, expected[0].partition('@')[0]))
                    self.assertEqual(self.seen_with(module, found), expected)
        # The cases do log in: else they would all agree that nothing works.
        self.assertLessEqual({(driver, user) for driver in DRIVERS for user in ('app', 'other')}
                             | {('mysqlclient', 'odd'), ('mysqlclient', 'bare')}, logins)

    def seen_with(self, module, params):
        """As the pool's connector would use them: it runs several init statements one after the other."""
        params = {key: value.decode() if isinstance(value, bytes) else value for key, value in params.items()}
        statements = params.pop('init_command', ())
        statements = statements if isinstance(statements, tuple) else (statements,)
        statements = [one.decode() if isinstance(one, bytes) else one for one in statements]
        with mock.patch.object(module, 'connect', self.running(module.connect, statements)):
            return self.seen(module, **params)

    @staticmethod
    def running(connect, statements):
        def connected(**params):
            connection = connect(**params)
            for statement in statements:
                connection.cursor().execute(statement)
            return connection

        return connected


class Refused(WithFiles):
    def refused(self, text, driver='mysqlclient', **params):
        with self.assertRaises(optionfile.Unusable) as caught:
            self.merged(text, driver, **params)
        self.assertIn('my.cnf', str(caught.exception))
        self.assertNotIn('sesame', str(caught.exception))
        return str(caught.exception)

    def test_what_cannot_be_pooled(self):
        for key in ('ssl-ca = /x', 'ssl_cert=/x', 'tls-version = 1', 'ssl-fp = x', 'bind-address = 127.0.0.1', 'compress = 1',
                    'reconnect=1', 'ssl-verify-server-cert = 1', 'default-auth = x', 'server_public_key = x', 'protocol = 1',
                    'connection = host=x'):
            name = key.partition('=')[0].strip().replace('_', '-')
            self.assertIn(name, self.refused('[client]\npassword = open sesame\n%s\n' % key))
        for key in ('ssl-ca', 'ssl-cert', 'bind-address'):
            self.assertIn(key, self.refused('[client]\npassword = open sesame\n%s = /x\n' % key, 'pymysql'))

    def test_switched_off_or_elsewhere_is_no_problem(self):
        for text in ('[client]\ncompress = 0\nssl-verify-server-cert = 0\nssl-ca =\nprotocol = tcp\n',
                     '[mysqld]\nssl-ca = /x\n[client]\n'):
            self.assertEqual(self.merged(text), {})
            self.assertEqual(self.merged(text.replace('ssl-verify', 'x'), 'pymysql'), {})

    def test_files_that_cannot_be_read(self):
        self.refused('user = app\npassword = open sesame\n')
        self.refused('[client\npassword = open sesame\n')
        self.refused('password = open sesame\n', 'pymysql')
        self.refused('[client]\npassword = open sesame\nport = sesame\n', 'pymysql')
        self.refused('[client]\n!include %s\n' % os.path.join(self.directory, 'my.cnf'))
        for driver in DRIVERS:
            for path in ('/nowhere/my.cnf', self.directory):
                with self.assertRaises(optionfile.Unusable) as caught:
                    optionfile.merged({'read_default_file': path}, drivers.of(DRIVERS[driver]).OPTION_FILE)
                self.assertIn(path, str(caught.exception))

    def test_types(self):
        for params in ({'read_default_file': 5}, {'read_default_group': b'x'}):
            with self.assertRaises(optionfile.Unusable):
                optionfile.merged(params, optionfile.LIBMARIADB)


class Found(WithFiles):
    def test_nothing_is_asked_for(self):
        params = {'host': 'h', 'read_default_file': None, 'read_default_group': ''}
        self.assertEqual(optionfile.merged(params, optionfile.LIBMARIADB), {'host': 'h'})

    def test_tilde(self):
        path = self.file('[client]\nuser = tilde\n')
        with mock.patch.dict(os.environ, HOME=os.path.dirname(path)):
            for driver in DRIVERS.values():
                found = optionfile.merged({'read_default_file': '~/my.cnf'}, drivers.of(driver).OPTION_FILE)
                self.assertIn(found['user'], ('tilde', b'tilde'))

    def test_default_files(self):
        """A group alone: libmariadb's places. Which of /etc's are there is the machine's business."""
        self.file('[client]\nuser = first\nsocket = /x\n[dbpool-test]\ndatabase = first\n', '.my.cnf')
        self.file('[dbpool-test]\nuser = home\ndatabase = home\n')
        with mock.patch.dict(os.environ, HOME=self.directory, MARIADB_HOME=self.directory):
            found = optionfile.merged({'read_default_group': 'dbpool-test', 'host': 'h'}, optionfile.LIBMARIADB)
        self.assertEqual((found['user'], found['database'], found['host']), (b'first', b'first', 'h'))
        self.assertNotIn('unix_socket', found)  # it is for localhost

    def test_local_infile_and_numbers(self):
        text = '[client]\nlocal-infile = 1\nconnect-timeout = 7\nport = 3307\n'
        self.assertEqual(self.merged(text), {'local_infile': 1, 'connect_timeout': 7, 'port': 3307})
        self.assertEqual(self.merged(text, local_infile=False, port=1), {'local_infile': False, 'connect_timeout': 7,
                                                                        'port': 1})
        self.assertEqual(self.merged(text, 'pymysql'), {'port': 3307})


class Pool(WithFiles):
    """The content makes the pool, not the path."""

    def setUp(self):
        super().setUp()
        self.profiles = []

        def profile(*args):
            self.profiles.append(args)
            return SimpleNamespace(connect=lambda: None)

        for patch in (mock.patch.object(host, 'where', lambda: host.POOLED),
                      mock.patch.object(pools, 'profile', profile), mock.patch.dict(managed._met, clear=True)):
            patch.start()
            self.addCleanup(patch.stop)

    def test_same_content_same_pool(self):
        text = '[client]\nhost = h\nuser = u\npassword = open sesame\ndatabase = d\nport = 3306\n'
        one, other = self.file(text, 'one.cnf'), self.file(text, 'other.cnf')
        changed = self.file(text.replace('= d', '= e'), 'changed.cnf')
        for module in DRIVERS.values():
            proxy = dbpool.manage(module)
            for arguments in ({'read_default_file': one}, {'read_default_file': other},
                              {'host': 'h', 'user': 'u', 'password': 'open sesame', 'database': 'd'},
                              {'read_default_file': changed}):
                proxy.connect(**arguments)
            *same, different = [args[1] for args in self.profiles[-4:]]
            self.assertEqual(len(set(same)), 1, same)
            self.assertRegex(same[0], '^u@h:3306/d#')
            self.assertNotEqual(different, same[0])

    def test_is_read_once(self):
        proxy = dbpool.manage(MySQLdb)
        path = self.file('[client]\nhost = h\nuser = u\n')
        proxy.connect(read_default_file=path)
        os.unlink(path)
        proxy.connect(read_default_file=path)
        proxy.connect(host='other')  # what was called last is remembered by itself
        proxy.connect(read_default_file=path)
        self.assertEqual(self.profiles[0], self.profiles[2])
        self.assertEqual(self.profiles[0][3], {'host': b'h', 'user': b'u'})

    def test_a_missing_one_is_named(self):
        for module in DRIVERS.values():
            with self.assertRaises(managed.ConfigurationError) as caught:
                dbpool.manage(module).connect(read_default_file='/nowhere/my.cnf')
            for word in ('connect()', '/nowhere/my.cnf', 'No such file'):
                self.assertIn(word, str(caught.exception))

    def test_in_django(self):
        path = self.file('[client]\nhost = h\nuser = u\npassword = open sesame\ninit-command = SET @a = 1\n'
                         'init-command = SET @b = 2\nreturn-found-rows\n')
        driver = drivers.of(MySQLdb)
        policy = settings.policy('default', {}, [])
        spec, local = settings.split('default', {'charset': 'utf8', 'init_command': 'SET @c = 3',
                                                 'read_default_file': path}, policy, driver, True, None, 'SELECT 1')
        self.assertEqual((spec['host'], spec['user'], spec['password']), (b'h', b'u', b'open sesame'))
        self.assertEqual(spec['init_sql'][:3], [b'SET @c = 3', b'SET @a = 1', b'SET @b = 2'])
        self.assertTrue(spec['client_flags'] & settings.FOUND_ROWS)
        self.assertEqual(set(local), {'client_flag', 'local_infile', 'read_timeout', 'write_timeout'})
        with self.assertRaises(settings.ConfigurationError) as caught:
            settings.split('default', {'read_default_file': '/nowhere'}, policy, driver, True, None, 'SELECT 1')
        self.assertIn("DATABASES['default']['OPTIONS']: cannot read the option file /nowhere", str(caught.exception))


if __name__ == '__main__':
    unittest.main()
