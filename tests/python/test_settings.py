# SPDX-License-Identifier: MIT
"""POOL and OPTIONS: what is refused, in which words, and what becomes of the rest."""

import unittest
from types import SimpleNamespace

from tests.python import BUILD  # noqa: F401 (finds the package)

from dbpool import DjangoPoolParams, settings
from dbpool import policy as policies

DRIVER = SimpleNamespace(PASSWORD_ENCODING='latin1', EMPTY_SQL_MODE_IS_SENT=True, OPTION_FILE='libmariadb',
                         address=lambda host, path: ('', path) if path else (host or 'localhost', ''),
                         client_flags=lambda params: (params.get('client_flag') or 0) | 1 << 30,
                         KNOWS_COLLATION=False,
                         set_up=lambda charset, collation, init_command, set_mode: (charset or b'utf8mb4',
                                                                                    init_command + set_mode),
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
            ('pool_size', -1, 'an integer from 0 to 1024'),
            ('pool_size', 1025, '1024'), ('pool_size', '5', 'an integer'), ('pool_size', 5.0, 'an integer'),
            ('pool_size', True, 'an integer'), ('pool_size', None, 'an integer'),
            ('max_overflow', -2, 'an integer from 0 to 1024, or -1'), ('timeout', -1, 'a number of seconds from 0 to 86400'),
            ('timeout', 'soon', 'a number'), ('timeout', float('nan'), 'a number'),
            ('timeout', float('inf'), 'a number'), ('recycle', 0, 'at least 1'), ('recycle', 0.5, 'at least 1'),
            ('recycle', float('nan'), 'at least 1'), ('recycle', float('inf'), 'at least 1'),
            ('recycle', True, 'at least 1'), ('recycle', -2, 'at least 1'),
        ]:
            with self.subTest(key=key, value=value):
                found, (problem,) = problems_of({key: value})
                self.assertIsNone(found)
                self.assertIn("DATABASES['default']['POOL'][%r] must be" % key, problem)
                self.assertIn(expected, problem)
                self.assertIn('not %r' % (value,), problem)

    def test_all_problems_come_in_one_message(self):
        _, problems = problems_of({'pool_size': -1, 'timeout': 'x', 'nonsense': 1})
        self.assertEqual(len(problems), 3)
        with self.assertRaises(settings.ConfigurationError) as caught:
            settings.raise_problems(problems)
        for word in ('pool_size', 'timeout', 'nonsense'):
            self.assertIn(word, str(caught.exception))

    def test_the_new_ones_are_taken_and_off_by_default(self):
        found, _ = problems_of({})
        self.assertEqual((found.min_size, found.max_lifetime, found.idle_timeout, found.keepalive, found.max_waiting,
                          found.leak_threshold, found.pre_ping, found.use_threadlocal), (0,) * 8)
        found, problems = problems_of({'min_size': 2, 'max_lifetime': 60, 'idle_timeout': 50, 'keepalive': 40,
                                       'max_waiting': 30, 'leak_threshold': 0.5, 'dialect': object(),
                                       'use_threadlocal': True, 'django_reset_on_return': True})
        self.assertEqual(problems, [])
        self.assertEqual((found.min_size, found.max_lifetime, found.idle_timeout, found.keepalive, found.max_waiting,
                          found.leak_threshold, found.use_threadlocal), (2, 60, 50, 40, 30, 0.5, True))
        for off in (None, 0):
            self.assertEqual(problems_of({'max_lifetime': off, 'idle_timeout': off, 'keepalive': off})[0][5:8], (0, 0, 0))

    def test_overflow_without_limit_is_the_tables(self):
        found, _ = problems_of({'pool_size': 24, 'max_overflow': -1})
        self.assertEqual(found.max_overflow, 1000)

    def test_pool_size_0_keeps_what_max_overflow_allows(self):
        """QueuePool's queue without limit: nothing that comes back is ended, and max_overflow is the cap."""
        for overflow, cap in [(7, 7), (-1, 1024)]:
            found, problems = problems_of({'pool_size': 0, 'max_overflow': overflow})
            self.assertEqual((problems, found.pool_size, found.max_overflow), ([], cap, 0))
        found, (problem,) = problems_of({'pool_size': 0, 'max_overflow': 0})
        self.assertIsNone(found)
        for word in ("'default'", 'pool_size 0', 'max_overflow 0', '-1'):
            self.assertIn(word, problem)
        for preset in ('slow_and_safe', 'fast_and_wild'):
            self.assertIn('max_overflow 0', problems_of({'preset': preset, 'pool_size': 0})[1][0])
        self.assertEqual(problems_of({'preset': 'fast_and_sane', 'pool_size': 0})[0][:2], (10, 0))
        self.assertEqual(problems_of({'pool_size': 0, 'max_overflow': 4, 'min_size': 4})[0].min_size, 4)
        self.assertIn('min_size', problems_of({'pool_size': 0, 'max_overflow': 4, 'min_size': 5})[1][0])

    def test_what_the_ancestor_took(self):
        """Forms that SQLAlchemy and the ancestor accept: no limit in time, part seconds, keys that are None."""
        self.assertEqual(problems_of({'timeout': None})[0].timeout, 86400)
        self.assertEqual([problems_of({'recycle': value})[0].recycle for value in (1.5, 3600.0, -1.0)], [1, 3600, 0])
        for key in ('pre_ping', 'django_pre_ping', 'use_threadlocal', 'django_reset_on_return'):
            self.assertEqual(problems_of({key: None}), problems_of({}))

    def test_reset_on_return(self):
        for value, reset in [('commit', 'commit'), ('rollback', 'rollback'), (None, 'rollback'), (True, 'rollback'),
                             (False, 'rollback'), ('auto', 'auto'), ('full', 'full')]:
            self.assertEqual(problems_of({'reset_on_return': value})[0].reset, reset, value)
        self.assertEqual(problems_of({})[0].reset, 'auto')
        for name in policies.PRESETS:
            self.assertEqual(problems_of(name)[0].reset, 'auto', name)

    def test_either_pre_ping(self):
        for pool in ({'pre_ping': True}, {'django_pre_ping': True}, {'pre_ping': False, 'django_pre_ping': True}):
            self.assertTrue(problems_of(pool)[0].pre_ping, pool)

    def test_wrong_values_of_the_new_ones(self):
        for key, value, expected in [
            ('min_size', -1, 'an integer from 0'), ('min_size', None, 'an integer'), ('max_lifetime', 0.5, 'at least 1'),
            ('idle_timeout', -1, 'at least 1'), ('keepalive', True, 'at least 1'), ('max_waiting', 16385, '16384'),
            ('max_waiting', None, 'an integer'), ('reset_on_return', 'off', "'full', 'rollback', 'commit' or None"),
            ('reset_on_return', 1, "'auto'"), ('pre_ping', 1, 'True or False'), ('django_pre_ping', 'x', 'True or'),
            ('use_threadlocal', 0, 'True or'), ('django_reset_on_return', 0, 'True or'), ('django_reset_on_return', 0, 'True or'),
            ('leak_threshold', 0, 'above 0'), ('leak_threshold', 'x', 'above 0'), ('django_pool_class', 'lifo', 'QueuePool'),
            ('django_pool_class', int, 'QueuePool'), ('django_core_pool_size', -1, 'a callable'),
            ('django_core_pool_size', 2.0, 'an integer'), ('django_unload_timeout', -1, 'a callable'),
            ('django_retire_interval', 'x', 'a callable'), ('django_retire_quantity', -1, 'a callable'),
        ]:
            with self.subTest(key=key, value=value):
                found, (problem,) = problems_of({key: value})
                self.assertIsNone(found)
                self.assertIn("DATABASES['default']['POOL'][%r] must be" % key, problem)
                self.assertIn(expected, problem)

    def test_contradictions(self):
        for pool, words in [({'pool_size': 2, 'min_size': 3}, ('min_size', 'pool_size (2)', '3')),
                            ({'pool_size': 2, 'max_overflow': 1, 'django_pool_class': 'django',
                              'django_core_pool_size': 4}, ('django_core_pool_size', '(3)', '4'))]:
            found, (problem,) = problems_of(pool)
            self.assertIsNone(found)
            for word in ("'default'",) + words:
                self.assertIn(word, problem)

    def test_not_a_dict(self):
        for pool in (5, [], True):
            self.assertIn('must be a dict', problems_of(pool)[1][0])

    def test_the_cap_has_a_limit(self):
        self.assertIn('at most 1024, not 1100', problems_of({'pool_size': 1000, 'max_overflow': 100})[1][0])


class QueuePool:
    pass


class DjangoQueuePool(QueuePool):
    pass


class OfTheUser(DjangoQueuePool):
    pass


class AnotherQueue(QueuePool):
    pass


class PoolClass(unittest.TestCase):
    KEYS = {'django_core_pool_size': 3, 'django_unload_timeout': 0.5, 'django_retire_interval': 1.5,
            'django_retire_quantity': 2}

    def spec(self, pool, problems=None):
        found, wrong = problems_of(pool)
        self.assertEqual(wrong, [])
        spec, _ = settings.split('default', {}, found, DRIVER, True, None, 'SELECT 1')
        return [spec[key] for key in ('core_size', 'unload_timeout_ms', 'retire_interval_ms', 'retire_quantity')]

    def test_only_the_django_class_retires(self):
        for kind in ('django', DjangoQueuePool, OfTheUser):
            self.assertEqual(self.spec(dict(self.KEYS, django_pool_class=kind)), [3, 500, 1500, 2], kind)
        for kind in ('queue', QueuePool, AnotherQueue):
            self.assertEqual(self.spec(dict(self.KEYS, django_pool_class=kind)), [0, 0, 0, 0], kind)
        self.assertEqual(self.spec(self.KEYS), [0, 0, 0, 0])

    def test_its_defaults(self):
        self.assertEqual(self.spec({'django_pool_class': 'django', 'pool_size': 7}), [7, 0, 0, 1])
        self.assertEqual(self.spec({'django_pool_class': 'django', 'django_retire_quantity': 0})[3], 1)
        self.assertEqual(self.spec({'django_pool_class': 'django', 'django_retire_interval': 0.0001})[2], 1)

    def test_no_core_is_one(self):
        """0 is none for the ancestor, and also its default where pool_size is 0; the broker's 0 would be "no core"."""
        for pool in ({'pool_size': 6, 'django_core_pool_size': 0}, {'pool_size': 0, 'max_overflow': 6},
                     {'pool_size': 6, 'django_core_pool_size': lambda: 0}):
            self.assertEqual(self.spec(dict(pool, django_pool_class='django'))[0], 1)
        self.assertEqual(self.spec({'pool_size': 0, 'max_overflow': 6, 'django_core_pool_size': 4,
                                    'django_pool_class': 'django'})[0], 4)

    def test_callables_are_called_at_registration_only(self):
        calls = []

        def core():
            calls.append(1)
            return 4

        pool = dict(self.KEYS, django_pool_class='django', django_core_pool_size=core,
                    django_unload_timeout=lambda: 1.25, django_retire_interval=lambda: None,
                    django_retire_quantity=lambda: 5)
        found, _ = problems_of(pool)
        self.assertEqual(calls, [])
        self.assertEqual(found, problems_of(pool)[0])
        self.assertEqual(self.spec(pool), [4, 1250, 0, 5])
        self.assertEqual(calls, [1])

    def test_what_callables_must_return(self):
        def fail():
            raise RuntimeError('not today')

        found, problems = problems_of({'pool_size': 2, 'max_overflow': 0, 'django_pool_class': 'django',
                                       'django_core_pool_size': lambda: 3, 'django_unload_timeout': lambda: 'x',
                                       'django_retire_interval': fail, 'django_retire_quantity': lambda: -1})
        self.assertEqual(problems, [])
        with self.assertRaises(settings.ConfigurationError) as caught:
            settings.split('default', {'port': -1}, found, DRIVER, True, None, 'SELECT 1')
        lines = str(caught.exception).split('\n')
        self.assertEqual(len(lines), 5)
        for word in ('django_core_pool_size must be at most', "['django_unload_timeout'] must be", 'not today',
                     "['django_retire_quantity'] must be", 'port'):
            self.assertIn(word, str(caught.exception))


class Presets(unittest.TestCase):
    def test_values(self):
        slow, sane, wild = (problems_of(name)[0] for name in ('slow_and_safe', 'fast_and_sane', 'fast_and_wild'))
        self.assertEqual(slow, settings.Policy(5, 0, 30, 120, pre_ping=True, use_threadlocal=True))
        self.assertEqual(sane, settings.Policy(5, 10, 30, 3600))
        self.assertEqual(wild, settings.Policy(30, 0, 30, 3600, core_size=5, unload_timeout=2, retire_interval=5,
                                               retire_quantity=1))

    def test_with_changes(self):
        found, problems = problems_of({'preset': 'fast_and_wild', 'pool_size': 9, 'keepalive': 5})
        self.assertEqual(problems, [])
        self.assertEqual((found.pool_size, found.keepalive, found.core_size), (9, 5, 5))

    def test_unknown(self):
        for pool in ('fast', {'preset': 'fast'}, {'preset': None}, {'preset': ['x']}):
            found, (problem,) = problems_of(pool)
            self.assertIsNone(found)
            for word in ("'default'", 'preset', 'slow_and_safe', 'fast_and_sane', 'fast_and_wild'):
                self.assertIn(word, problem)

    def test_pool_params(self):
        for make, name in [(DjangoPoolParams.new_slow_safe, 'slow_and_safe'),
                           (DjangoPoolParams.new_fast_sane, 'fast_and_sane'),
                           (DjangoPoolParams.new_fast_wild, 'fast_and_wild')]:
            self.assertEqual(problems_of(make()), problems_of(name))
            changed = make(pool_size=17)
            self.assertEqual(problems_of(changed)[0].pool_size, 17)
            self.assertNotEqual(problems_of(name)[0].pool_size, 17)
            with self.assertRaises(settings.ConfigurationError) as caught:
                make(pool_sise=1, timeouts=2)
            for word in ('pool_sise', 'timeouts', 'pool_size'):
                self.assertIn(word, str(caught.exception))


class Options(unittest.TestCase):
    def test_what_cannot_be_pooled(self):
        for key, value in [('compress', True), ('named_pipe', True), ('ssl', {'ca': 'x'}), ('ssl_mode', 'REQUIRED'), ('ssl_ca', '/x'),
                           ('auth_plugin', 'x'), ('ssl_verify_cert', True)]:
            problems = []
            settings.check_options('default', {key: value}, problems)
            self.assertEqual(len(problems), 1, key)
            self.assertIn("['OPTIONS'][%r] cannot be pooled yet" % key, problems[0])

    def test_switched_off_ones_are_no_problem(self):
        problems = []
        settings.check_options('default', {'compress': False, 'ssl': None, 'named_pipe': ''}, problems)
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
            'max_lifetime_s': 0, 'idle_timeout_s': 0, 'keepalive_s': 0, 'min_size': 0, 'max_waiting': 0, 'core_size': 0,
            'overflow_grace_ms': 5000,
            'unload_timeout_ms': 0, 'retire_interval_ms': 0, 'retire_quantity': 0,
            'init_sql': [b'SET @a = 1', b"SET SESSION sql_mode='STRICT_ALL_TABLES'",
                         b'SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED', b'SET SQL_AUTO_IS_NULL = 0']})
        self.assertEqual(local, {'conv': conv, 'read_timeout': 3, 'write_timeout': 300, 'use_unicode': True,
                                 'local_infile': False})

    def test_reads_and_writes_are_bounded_unless_told_otherwise(self):
        _, local = self.split({})
        self.assertEqual((local['read_timeout'], local['write_timeout']), (300, 300))
        _, local = self.split({'read_timeout': None, 'write_timeout': 7})
        self.assertEqual((local['read_timeout'], local['write_timeout']), (None, 7))

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
                             ({'charset': "utf8'; DROP"}, 'charset'), ({'charset': 'utf8\0'}, 'charset'),
                             ({'collation': 'latin1_bin'}, 'no option collation'),
                             ({'sql_mode': "x'; DROP"}, 'sql_mode'),
                             ({'connect_timeout': 0}, 'connect_timeout'), ({'ssl': {'ca': 'x'}}, 'ssl')]:
            with self.subTest(params), self.assertRaises(settings.ConfigurationError) as caught:
                self.split(params)
            self.assertIn(word, str(caught.exception))

    def test_a_collation(self):
        knows = SimpleNamespace(**dict(vars(DRIVER), KNOWS_COLLATION=True, set_up=lambda charset, collation, *rest: (
            charset, [b'SET NAMES %s COLLATE %s' % (charset, collation)])))
        spec, local = settings.split('default', {'charset': 'utf8mb4', 'collation': 'utf8mb4_bin'},
                                     settings.Policy(5, 10, 30, 0), knows, True, None, 'SELECT 1')
        self.assertEqual(spec['init_sql'][0], b'SET NAMES utf8mb4 COLLATE utf8mb4_bin')
        self.assertNotIn('collation', local)

    def test_a_character_set_that_cannot_be_told(self):
        blind = SimpleNamespace(**dict(vars(DRIVER), set_up=lambda *arguments: (None, [])))
        with self.assertRaisesRegex(settings.ConfigurationError, 'init_command sets the character set .* give charset too'):
            settings.split('default', {}, settings.Policy(5, 10, 30, 0), blind, True, None, 'SELECT 1')

    def test_without_django(self):
        spec, _ = self.split({'charset': 'utf8'}, autocommit=False, level=False)
        self.assertEqual(spec['init_sql'], [])

    def test_no_secret_in_a_refusal(self):
        with self.assertRaises(settings.ConfigurationError) as caught:
            self.split({'password': 'secret', 'port': -1, 'user': 3})
        self.assertNotIn('secret', str(caught.exception))


if __name__ == '__main__':
    unittest.main()
