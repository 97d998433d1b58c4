# SPDX-License-Identifier: MIT
"""POOL's sizes and waits that test_policy.py has not, and what JSON cannot say: callables, classes, a dialect. Then what
OPTIONS may hold besides plain values: dicts, and an option file."""

import os
import unittest

from tests.e2e.base import APP, DATABASE, PASSWORD, USER, WithServer, matrix
from tests.e2e.test_policy import Case
from tests.support import in_background, wait_until
from tests.support.uwsgi import BUILD

SETTINGS = '''
from settings import *
%s
'''


class WithSettings(Case):
    def run_settings(self, text, pool=None, **more):
        """uWSGI whose settings are those of the application under test, and then text."""
        directory = os.path.join(self.meet, self.new_name())
        os.mkdir(directory)
        with open(os.path.join(directory, 'form_settings.py'), 'w') as f:
            f.write(SETTINGS % text)
        options = {'pythonpath': [os.path.join(BUILD, 'python'), APP, directory]}
        return self.entered(self.make_uwsgi(self.driver, self.mode, {'default': self.database(pool)}, 1, options,
                                            environ={'DJANGO_SETTINGS_MODULE': 'form_settings'}, **more))


@matrix(modes=['gevent'])
class Sizes(Case):
    def test_overflow_goes_and_the_pool_stays(self):
        uwsgi = self.run_pool({'pool_size': 2, 'max_overflow': 3, 'timeout': 30})
        with self.gate():
            pages = [in_background(uwsgi.get, '/gate') for _ in range(7)]
            wait_until(lambda: len(self.waiting_at_gate()) == 5 and uwsgi.pool()['waiting'] == 2, 30, 'five, two wait')
            self.assertEqual(len(self.sessions()), 5)
        self.assertEqual({page.result().status for page in pages}, {200})
        self.shrinks_to(uwsgi, 2)

    def test_pool_size_0_keeps_all(self):
        """QueuePool's queue without limit: max_overflow is the cap, and nothing that comes back is ended."""
        uwsgi = self.run_pool({'pool_size': 0, 'max_overflow': 4, 'timeout': 30})
        with self.gate():
            pages = [in_background(uwsgi.get, '/gate') for _ in range(5)]
            wait_until(lambda: len(self.waiting_at_gate()) == 4 and uwsgi.pool()['waiting'] == 1, 30, 'four, one waits')
            held = set(self.waiting_at_gate())
        self.assertEqual({page.result().status for page in pages}, {200})
        self.whole(uwsgi)
        for _ in range(20):
            self.run_sql(uwsgi, 'SELECT SLEEP(0.05)')
        self.assertEqual((set(self.sessions()), uwsgi.pool()['max']), (held, 4))

    def test_pool_size_0_without_limit(self):
        uwsgi = self.run_pool({'pool_size': 0, 'max_overflow': -1, 'timeout': 30})
        self.burst(uwsgi, 12)
        self.whole(uwsgi)
        self.assertEqual((uwsgi.pool()['size'], uwsgi.pool()['max']), (12, 1024))

    def test_unload_timeout(self):
        """With the core leased a waiter is served by a return, not by one more session, while there is time."""
        # Of a day a random part is drawn: below the test's few seconds once in ten thousand.
        uwsgi = self.run_pool({'django_pool_class': 'django', 'pool_size': 5, 'max_overflow': 0, 'timeout': 60,
                               'django_core_pool_size': 2, 'django_unload_timeout': 86400})
        with self.gate():
            pages = [in_background(uwsgi.get, '/gate') for _ in range(2)]
            wait_until(lambda: len(self.waiting_at_gate()) == 2, 30, 'the core is leased')
            core = set(self.waiting_at_gate())
            pages += [in_background(uwsgi.get, '/gate') for _ in range(2)]
            wait_until(lambda: uwsgi.pool()['waiting'] == 2, 30, 'two wait')
            self.assertEqual(set(self.sessions()), core)
        self.assertLessEqual({page.result().json()['id'] for page in pages}, core)
        self.assertEqual(uwsgi.pool()['opened'], 2)

    def test_preset_with_changes(self):
        uwsgi = self.run_pool({'preset': 'fast_and_sane', 'pool_size': 3, 'max_overflow': 1, 'min_size': 2})
        self.run_sql(uwsgi, 'SELECT 1')
        wait_until(lambda: uwsgi.pool()['idle'] == 2, 30, 'the floor is open')
        self.assertEqual(uwsgi.pool()['max'], 4)


@matrix(modes=['gevent'])
class Forms(WithSettings):
    def test_callables_classes_and_a_dialect(self):
        """As the ancestor took them: classes of these names, callables for the four django_* figures, any dialect."""
        uwsgi = self.run_settings('''
class QueuePool: pass
class DjangoQueuePool(QueuePool): pass
DATABASES['default']['POOL'] = {
    'django_pool_class': DjangoQueuePool, 'pool_size': 6, 'max_overflow': 0, 'timeout': 30, 'dialect': object(),
    'django_core_pool_size': lambda: 2, 'django_unload_timeout': lambda: 0.1, 'django_retire_interval': lambda: 0.2,
    'django_retire_quantity': lambda: 2}
''')
        self.burst(uwsgi, 6)
        self.shrinks_to(uwsgi, 2)

    def test_a_callable_that_fails_is_named(self):
        uwsgi = self.run_settings('''
DATABASES['default']['POOL'] = {'django_pool_class': 'django', 'django_core_pool_size': lambda: 1 // 0}
''')
        answer = self.run_sql(uwsgi, 'SELECT 1')
        self.assertEqual(answer.get('error'), 'ImproperlyConfigured', answer)
        for word in ("'default'", 'django_core_pool_size', 'ZeroDivisionError'):
            self.assertIn(word, answer['text'])

    def test_params_of_the_ancestors_presets(self):
        uwsgi = self.run_settings('''
import dbpool
DATABASES['default']['POOL'] = dbpool.DjangoPoolParams.new_slow_safe(pool_size=2, max_overflow=1)
''')
        self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])
        self.assertEqual(uwsgi.pool()['max'], 3)

    def test_dicts_in_options(self):
        """The ancestor's users met "unhashable type: 'dict'"."""
        uwsgi = self.run_settings('''
import MySQLdb
from MySQLdb.converters import conversions
conv = dict(conversions)
conv[3] = lambda value: 'converted %s' % int(value)  # FIELD_TYPE.LONG
DATABASES['default']['OPTIONS'] = {'conv': conv, 'init_command': 'SET @greeting = 42'}
''')
        for _ in range(3):
            self.assertEqual(self.run_sql(uwsgi, 'SELECT CAST(7 AS INT), @greeting', id=False)['results'][0][0][1], 42)
            self.assertEqual(self.run_sql(uwsgi, 'SELECT n FROM counters WHERE id = 2', id=False)['results'],
                             [[['converted %d' % self.counter(2)]]])
        self.assertEqual(uwsgi.pool()['opened'], 1)


@matrix(modes=['gevent', 'prefork'])
class OptionFile(WithServer):
    """read_default_file, the form that Django's own documentation recommends."""

    def write(self, name, **more):
        lines = {'host': self.server.host, 'port': self.server.port, 'user': USER, 'password': PASSWORD,
                 'database': DATABASE, **more}
        path = os.path.join(self.meet, name)
        with open(path, 'w') as f:
            f.write('[client]\n' + ''.join('%s = %s\n' % line for line in lines.items()))
        os.chmod(path, 0o600)
        return path

    def entry(self, path, **more):
        entry = self.database({'pool_size': 2, 'max_overflow': 0, 'timeout': 30}, options={'read_default_file': path},
                              **more)
        for key in ('HOST', 'PORT', 'USER', 'PASSWORD', 'NAME'):
            if key not in more:
                entry[key] = ''
        return entry

    def test_all_from_the_file(self):
        with self.make_uwsgi(self.driver, self.mode, {'default': self.entry(self.write('all.cnf'))}) as uwsgi:
            for _ in range(6):
                answer = self.run_sql(uwsgi, 'SELECT CURRENT_USER(), DATABASE()')
                self.assertEqual(answer.get('results'), [[[USER + '@%', DATABASE]]], answer)
            self.assertLessEqual(uwsgi.pool()['opened'], 2)
            self.assertGreaterEqual(uwsgi.pool()['acquires'], 6)
            self.assertNotIn(PASSWORD, uwsgi.log())

    def test_settings_count_before_the_file(self):
        entry = self.entry(self.write('wrong.cnf', user='nobody', password='wrong'), USER=USER, PASSWORD=PASSWORD,
                           NAME='mysql')
        with self.make_uwsgi(self.driver, self.mode, {'default': entry}) as uwsgi:
            self.assertEqual(self.run_sql(uwsgi, 'SELECT CURRENT_USER(), DATABASE()').get('results'),
                             [[[USER + '@%', 'mysql']]])

    def test_what_cannot_work_is_named(self):
        files = {'missing': '/nowhere/my.cnf', 'tls': self.write('tls.cnf', **{'ssl-ca': '/x'})}
        databases = {alias: self.entry(path) for alias, path in files.items()}
        with self.make_uwsgi(self.driver, self.mode, dict(databases, default=self.database())) as uwsgi:
            for alias, words in [('missing', ['/nowhere/my.cnf', 'No such file']), ('tls', ['tls.cnf', 'ssl-ca'])]:
                answer = self.run_sql(uwsgi, 'SELECT 1', alias=alias)
                self.assertEqual((answer.get('module'), answer.get('error')),
                                 ('django.core.exceptions', 'ImproperlyConfigured'), answer)
                for word in words + [repr(alias)]:
                    self.assertIn(word, answer['text'])
            self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])


if __name__ == '__main__':
    unittest.main()
