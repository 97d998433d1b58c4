# SPDX-License-Identifier: MIT
"""POOL and OPTIONS: what is refused, in which words, and what becomes of the rest."""

import unittest
from types import SimpleNamespace

from tests.python import BUILD  # noqa: F401 (finds the package)

from dbpool import settings

DRIVER = SimpleNamespace(PASSWORD_ENCODING='latin1', EMPTY_SQL_MODE_IS_SENT=True,
                         address=lambda host, path: ('', path) if path else (host or 'localhost', ''),
                         client_flags=lambda params: (params.get('client_flag') or 0) | 1 << 30,
                         same_in_both=lambda params: {'local_infile': bool(params.get('local_infile'))})


def problems_of(pool):
    problems = []
    found = settings.policy('default', pool, problems)
    return found, problems


class Pool(unittest.TestCase):
    def test_defaults(self):
        for pool in (None, {}):
            found, problems = problems_of(pool)
            self.assertEqual(problems, [])
            self.assertEqual(found, settings.Policy(pool_size=5, max_overflow=10, timeout=30, recycle=0))

    def test_values_are_taken(self):
        found, problems = problems_of({'pool_size': 7, 'max_overflow': 0, 'timeout': 0.5, 'recycle': 3600})
        self.assertEqual((found, problems), (settings.Policy(7, 0, 0.5, 3600), []))
        for no_limit in (None, -1):
            self.assertEqual(problems_of({'recycle': no_limit})[0].recycle, 0)

    def test_unknown_key_is_named_with_the_known_ones(self):
        found, (problem,) = problems_of({'pool_sise': 7})
        self.assertIsNone(found)
        for word in ("'default'", 'POOL', "'pool_sise'", 'pool_size', 'max_overflow', 'timeout', 'recycle'):
            self.assertIn(word, problem)

    def test_wrong_values_are_named_with_what_was_expected(self):
        for key, value, expected in [
            ('pool_size', 0, 'an integer from 1 to 1024'), ('pool_size', -1, 'an integer'),
            ('pool_size', 1025, '1024'), ('pool_size', '5', 'an integer'), ('pool_size', 5.0, 'an integer'),
            ('pool_size', True, 'an integer'), ('pool_size', None, 'an integer'),
            ('max_overflow', -1, 'an integer from 0 to 1024'), ('timeout', -1, 'a number of seconds from 0 to 86400'),
            ('timeout', 'soon', 'a number'), ('timeout', None, 'a number'), ('timeout', float('nan'), 'a number'),
            ('timeout', float('inf'), 'a number'), ('recycle', 0, 'at least 1'), ('recycle', 1.5, 'at least 1'),
            ('recycle', True, 'at least 1'), ('recycle', -2, 'at least 1'),
        ]:
            with self.subTest(key=key, value=value):
                found, (problem,) = problems_of({key: value})
                self.assertIsNone(found)
                self.assertIn("DATABASES['default']['POOL'][%r] must be" % key, problem)
                self.assertIn(expected, problem)
                self.assertIn('not %r' % (value,), problem)

    def test_all_problems_come_in_one_message(self):
        _, problems = problems_of({'pool_size': 0, 'timeout': 'x', 'nonsense': 1})
        self.assertEqual(len(problems), 3)
        with self.assertRaises(settings.ConfigurationError) as caught:
            settings.raise_problems(problems)
        for word in ('pool_size', 'timeout', 'nonsense'):
            self.assertIn(word, str(caught.exception))

    def test_not_a_dict(self):
        for pool in (5, [], 'yes', True):
            self.assertIn('must be a dict', problems_of(pool)[1][0])

    def test_the_cap_has_a_limit(self):
        self.assertIn('at most 1024, not 1100', problems_of({'pool_size': 1000, 'max_overflow': 100})[1][0])


class Options(unittest.TestCase):
    def test_what_cannot_be_pooled(self):
        for key, value in [('read_default_file', '/etc/my.cnf'), ('read_default_group', 'x'), ('compress', True),
                           ('named_pipe', True), ('ssl', {'ca': 'x'}), ('ssl_mode', 'REQUIRED'), ('ssl_ca', '/x'),
                           ('auth_plugin', 'x'), ('ssl_verify_cert', True)]:
            problems = []
            settings.check_options('default', {key: value}, problems)
            self.assertEqual(len(problems), 1, key)
            self.assertIn("['OPTIONS'][%r] cannot be pooled yet" % key, problems[0])

    def test_switched_off_ones_are_no_problem(self):
        problems = []
        settings.check_options('default', {'compress': False, 'ssl': None, 'read_default_file': ''}, problems)
        self.assertEqual(problems, [])


class Split(unittest.TestCase):
    def split(self, params, autocommit=True, level='read committed'):
        return settings.split('default', params, settings.Policy(5, 10, 30, 0), DRIVER, autocommit, level, 'SELECT 1')

    def test_server_visible_and_local(self):
        conv = {1: int}
        spec, local = self.split({'user': 'u', 'password': 'p\xe4', 'database': 'd', 'host': 'h', 'port': 3307,
                                  'charset': 'utf8mb4', 'client_flag': 2 | 1 << 16 | 1 << 19, 'conv': conv,
                                  'read_timeout': 3, 'connect_timeout': 4, 'use_unicode': True, 'autocommit': False,
                                  'init_command': 'SET @a = 1', 'sql_mode': 'STRICT_ALL_TABLES'})
        self.assertEqual(spec, {
            'alias': b'default', 'host': b'h', 'unix_socket': b'', 'port': 3307, 'user': b'u', 'password': b'p\xe4',
            'database': b'd', 'charset': b'utf8mb4', 'facts_sql': b'SELECT 1', 'client_flags': 2 | 1 << 16,
            'autocommit': 1, 'connect_timeout_s': 4, 'pool_size': 5, 'max_overflow': 10, 'recycle_s': 0,
            'init_sql': [b'SET @a = 1', b"SET SESSION sql_mode='STRICT_ALL_TABLES'",
                         b'SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED', b'SET SQL_AUTO_IS_NULL = 0']})
        self.assertEqual(local, {'conv': conv, 'read_timeout': 3, 'use_unicode': True, 'local_infile': False})

    def test_older_names(self):
        spec, local = self.split({'db': 'd', 'passwd': 'p', 'unix_socket': '/s'})
        self.assertEqual((spec['database'], spec['password'], spec['unix_socket'], spec['host']),
                         (b'd', b'p', b'/s', b''))
        self.assertEqual(spec['connect_timeout_s'], 10)

    def test_no_isolation_level_and_no_autocommit(self):
        spec, _ = self.split({'charset': 'utf8'}, autocommit=False, level=None)
        self.assertEqual((spec['autocommit'], spec['init_sql']), (0, [b'SET SQL_AUTO_IS_NULL = 0']))

    def test_refused(self):
        for params, word in [({'port': 99999}, 'port'), ({'port': True}, 'port'), ({'user': 5}, 'user'),
                             ({'charset': "utf8'; DROP"}, 'charset'), ({'sql_mode': "x'; DROP"}, 'sql_mode'),
                             ({'connect_timeout': 0}, 'connect_timeout'), ({'ssl': {'ca': 'x'}}, 'ssl')]:
            with self.subTest(params), self.assertRaises(settings.ConfigurationError) as caught:
                self.split(params)
            self.assertIn(word, str(caught.exception))

    def test_no_secret_in_a_refusal(self):
        with self.assertRaises(settings.ConfigurationError) as caught:
            self.split({'password': 'secret', 'port': -1, 'user': 3})
        self.assertNotIn('secret', str(caught.exception))


if __name__ == '__main__':
    unittest.main()
