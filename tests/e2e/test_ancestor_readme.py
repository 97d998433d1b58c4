# SPDX-License-Identifier: MIT
"""The README of django-db-conn-pool, the ancestor, sentence by sentence: that each holds here, or how it differs.

Source: README.rst of github.com/shzhao17/django-db-conn-pool at 9fc1721c6dee. Each test's docstring says in our words
what a sentence, or the comment on a parameter, promises there. Not tested because nothing can fail: the thanks to
SQLAlchemy (not used here), the versions (other ones here: this README names them), the pip command (ours: test_install).

The three settings are read by Python as the ancestor's users wrote them, imports included: stand-ins of the two
packages give the classes their names. What is the broker's business alone is shown with one driver; each parameter is
tested with both in test_policy.py and test_policy_forms.py.
"""

import os
import textwrap
import unittest

from tests.e2e.base import APP, matrix
from tests.e2e.test_policy import PAGES, Case
from tests.support import in_background, wait_until
from tests.support.uwsgi import BUILD

# A second user in the same greenlet, the loop that the README recommends, and what a lease leaves behind.
MORE_PAGES = '''
    def done(request):
        """A task with a query in each alias, then the README's loop."""
        found = []
        for alias in connections:
            with connections[alias].cursor() as cursor:
                cursor.execute('SELECT CONNECTION_ID()')
                found.append(cursor.fetchone()[0])
        for conn in connections.all():
            conn.close_if_unusable_or_obsolete()
        return JsonResponse({'ids': found, 'open': [alias for alias in connections
                                                    if connections[alias].connection is not None]})


    urls.urlpatterns += [path('done', done)]
'''

SETTINGS = '''
from settings import *
from sqlalchemy.pool import QueuePool
from django_db_conn_pool.mysqlalchemy.pool import DjangoQueuePool

slow_and_safe = {
    'django_pool_class': QueuePool,
    'django_pre_ping': True,
    'django_reset_on_return': False,
    'pool_size': 5,
    'max_overflow': 0,
    'timeout': 30,
    'recycle': 120,
    'dialect': None,
    'pre_ping': False,
    'use_threadlocal': True,
    'reset_on_return': 'rollback',
}
fast_and_sane = {
    'django_pool_class': QueuePool,
    'django_pre_ping': False,
    'django_reset_on_return': True,
    'pool_size': 5,
    'max_overflow': 10,
    'timeout': 30,
    'recycle': 3600,
    'dialect': None,
    'pre_ping': False,
    'use_threadlocal': False,
    'reset_on_return': None,
}
fast_and_wild = {
    'django_pool_class': DjangoQueuePool,
    'django_pre_ping': False,
    'django_reset_on_return': True,
    'django_core_pool_size': 5,
    'django_unload_timeout': 2,
    'django_retire_interval': 5,
    'django_retire_quantity': 1,
    'pool_size': 30,
    'max_overflow': 0,
    'timeout': 30,
    'recycle': 3600,
    'dialect': None,
    'pre_ping': False,
    'use_threadlocal': False,
    'reset_on_return': None,
}
for alias in DATABASES:
    DATABASES[alias]['CONN_MAX_AGE'] = %(age)r
    DATABASES[alias]['POOL'] = dict(%(name)s, **%(changes)r)
'''

PACKAGES = {'sqlalchemy/__init__.py': '', 'sqlalchemy/pool.py': 'class QueuePool:\n    pass\n',
            'django_db_conn_pool/__init__.py': '', 'django_db_conn_pool/mysqlalchemy/__init__.py': '',
            'django_db_conn_pool/mysqlalchemy/pool.py': 'from sqlalchemy.pool import QueuePool\n\n\n'
                                                        'class DjangoQueuePool(QueuePool):\n    pass\n'}


class Ancestor(Case):
    def run_as(self, name, processes=2, aliases=('default',), age=0, **changes):
        """uWSGI with one of the README's three settings, changed."""
        directory = os.path.join(self.meet, self.new_name())
        files = dict(PACKAGES, **{
            'policy_pages.py': textwrap.dedent(PAGES) + textwrap.dedent(MORE_PAGES),
            'readme_settings.py': SETTINGS % {'name': name, 'changes': changes, 'age': age}})
        for path, text in files.items():
            path = os.path.join(directory, path)
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, 'w') as f:
                f.write(text)
        options = {'module': 'policy_pages:application', 'pythonpath': [os.path.join(BUILD, 'python'), APP, directory]}
        return self.entered(self.make_uwsgi(self.driver, self.mode, {alias: self.database() for alias in aliases},
                                            processes, options, environ={'DJANGO_SETTINGS_MODULE': 'readme_settings'}))

    def held(self, uwsgi, asked, held):
        """asked pages come at once: held of them get a session each, the others wait until these go."""
        with self.gate():
            pages = [in_background(uwsgi.get, '/gate') for _ in range(asked)]
            wait_until(lambda: len(self.waiting_at_gate()) == held and uwsgi.pool()['waiting'] == asked - held, 40,
                       '%d hold a session, %d wait' % (held, asked - held))
            self.assertEqual(len(self.sessions()), held)
        self.assertEqual({page.result().status for page in pages}, {200})

    def left_open(self, uwsgi):
        """How much of a transaction that was open at close() is there afterwards."""
        before = self.counter()
        self.assertEqual(uwsgi.get('/left', how='close').status, 200)
        self.whole(uwsgi)
        return self.counter() - before


@matrix(drivers=['pymysql'], modes=['gevent'])
class Introduction(Ancestor):
    def test_connections_are_pooled_with_gevents_monkey_patching(self):
        """One can pool the connections while gevent's patching is on. Here also across workers."""
        uwsgi = self.run_as('fast_and_sane')
        first = {answer.json()['id'] for answer in self.burst(uwsgi, 5)}
        self.whole(uwsgi)
        self.assertEqual({answer.json()['id'] for answer in self.burst(uwsgi, 5)}, first)
        self.assertEqual(uwsgi.pool()['opened'], 5)

    def test_djangoqueuepool_reuses_what_a_burst_opened(self):
        """Connections that burst traffic opened beyond the core are used again."""
        uwsgi = self.run_as('fast_and_wild', django_retire_interval=3600)
        first = {answer.json()['id'] for answer in self.burst(uwsgi, 12)}
        self.whole(uwsgi)
        self.assertEqual({answer.json()['id'] for answer in self.burst(uwsgi, 12)}, first)
        self.assertEqual(uwsgi.pool()['opened'], 12)

    def test_djangoqueuepool_retires_the_unused_ones_gradually(self):
        """Those that nobody uses go, little by little, and the core stays."""
        uwsgi = self.run_as('fast_and_wild', django_retire_interval=0.3)
        before = {answer.json()['id'] for answer in self.burst(uwsgi, 9)}
        sizes = []

        def shrunk():
            sizes.append(len(self.sessions()))
            return sizes[-1] == 5

        wait_until(shrunk, 40, 'the core is left')
        self.assertEqual(sizes, sorted(sizes, reverse=True))
        self.shrinks_to(uwsgi, 5)
        self.assertLess(set(self.sessions()), before)
        for _ in range(10):
            self.run_sql(uwsgi, 'SELECT SLEEP(0.1)')  # three intervals, and more
        self.assertEqual(len(self.sessions()), 5)

    def test_closed_connections_return_to_the_pool(self):
        """Closing gives a connection back to the pool."""
        uwsgi = self.run_as('fast_and_sane')
        answer = uwsgi.get('/leases', n=10).json()
        self.assertEqual(len(answer['ids']), 1)
        self.assertEqual((uwsgi.pool()['opened'], uwsgi.pool()['acquires']), (1, 10))

    def test_the_loop_at_the_end_of_a_task(self):
        """Close when a task is done, by a loop over all connections. With CONN_MAX_AGE 0 each is obsolete then."""
        uwsgi = self.run_as('fast_and_sane', aliases=('default', 'other'))
        answer = uwsgi.get('/done').json()
        self.assertEqual((len(answer['ids']), answer['open']), (2, []))
        for alias in ('default', 'other'):
            self.whole(uwsgi, alias)

    def test_another_age_keeps_them(self):
        """CONN_MAX_AGE 0 is recommended: with another value the connection is not obsolete, and not given back."""
        uwsgi = self.run_as('fast_and_sane', age=600)
        self.assertEqual(uwsgi.get('/done').json()['open'], ['default'])
        uwsgi = self.run_as('fast_and_sane', age=0)
        self.assertEqual(uwsgi.get('/done').json()['open'], [])

    def test_pool_is_a_key_of_the_database(self):
        """ENGINE, CONN_MAX_AGE and POOL are all there is to say. Differs: ENGINE is 'dbpool.mysql'."""
        for name, cap in [('slow_and_safe', 5), ('fast_and_sane', 15), ('fast_and_wild', 30)]:
            with self.subTest(name):
                uwsgi = self.run_as(name)
                self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])
                self.assertEqual(uwsgi.pool()['max'], cap)
                uwsgi.close()


@matrix(modes=['gevent'])
class SlowAndSafe(Ancestor):
    def test_pre_ping_by_django(self):
        """django_pre_ping pings without a dialect. Differs: a failed one never reaches the application, it raised there;
        here another session is handed out."""
        uwsgi = self.run_as('slow_and_safe')
        for _ in range(3):
            found = self.run_sql(uwsgi, 'SELECT 1')['id']
            self.server.kill_session(found)
            answer = self.run_sql(uwsgi, 'SELECT 1')
            self.assertEqual(answer.get('results'), [[[1]]], answer)
            self.assertNotEqual(answer['id'], found)

    def test_sqlalchemys_reset_is_by_rollback(self):
        """reset_on_return 'rollback' (and django_reset_on_return off): each return rolls back."""
        self.assertEqual(self.left_open(self.run_as('slow_and_safe')), 0)

    def test_daily_traffic_reuses_long_connections(self):
        """pool_size: the traffic of the day lives on a few connections."""
        uwsgi = self.run_as('slow_and_safe')
        used = {self.run_sql(uwsgi, 'SELECT 1')['id'] for _ in range(30)}
        self.assertLessEqual(len(used), 5)
        self.assertEqual(len(used), uwsgi.pool()['opened'])

    def test_a_burst_does_not_overload_the_database(self):
        """max_overflow 0: five for all workers together, the rest waits. Differs: five in each process there."""
        self.held(self.run_as('slow_and_safe'), 9, 5)

    def test_timeout(self):
        """timeout: how long one waits in a burst. Differs: what is raised is Django's OperationalError."""
        uwsgi = self.run_as('slow_and_safe', pool_size=1, timeout=0.5)
        name = self.new_name()
        holder = in_background(uwsgi.get, '/hold', meet=name)
        self.here(name)
        answer = self.run_sql(uwsgi, 'SELECT 1')
        self.assertEqual((answer.get('module'), answer.get('error')), ('django.db.utils', 'OperationalError'), answer)
        self.go(name)
        self.assertEqual(holder.result().status, 200)

    def test_recycle_before_the_server_hangs_up(self):
        """recycle, smaller than the server's time-out: nobody is given a connection that the server has closed."""
        uwsgi = self.run_as('slow_and_safe', recycle=1, django_pre_ping=False)
        self.server.query('SET GLOBAL wait_timeout = 3')
        self.addCleanup(self.server.query, 'SET GLOBAL wait_timeout = DEFAULT')
        used = set()

        def seen():
            answer = self.run_sql(uwsgi, 'SELECT SLEEP(0.2)')
            self.assertNotIn('error', answer)
            used.add(answer['id'])
            return len(used) > 3

        wait_until(seen, 60, 'four sessions one after the other')

    def test_sqlalchemys_pre_ping_needs_no_dialect(self):
        """Its pre_ping requires a dialect. Differs: here it does not, and a dialect is accepted and not used."""
        uwsgi = self.run_as('slow_and_safe', django_pre_ping=None, pre_ping=True, pool_size=1)
        found = self.run_sql(uwsgi, 'SELECT 1')['id']
        self.server.kill_session(found)
        self.assertEqual(self.run_sql(uwsgi, 'SELECT 1').get('results'), [[[1]]])

    def test_every_thread_gets_its_same_connection(self):
        """use_threadlocal: always the same one within a thread. Here within a greenlet, and for each alias its own."""
        uwsgi = self.run_as('slow_and_safe', aliases=('default', 'other'))
        found = uwsgi.get('/twice').json()
        self.assertEqual({alias: len(set(ids)) for alias, ids in found.items()}, {'default': 1, 'other': 1})
        self.assertNotEqual(found['default'][0], found['other'][0])


@matrix(modes=['gevent'])
class FastAndSane(Ancestor):
    def test_reset_only_when_necessary(self):
        """django_reset_on_return rolls back only where there is something to; reset_on_return None does not at all.
        Differs: an open transaction is always rolled back, inside and outside of an atomic block."""
        uwsgi = self.run_as('fast_and_sane')
        self.assertEqual(self.left_open(uwsgi), 0)
        before = self.counter()
        self.assertEqual(uwsgi.get('/left', how='atomic').status, 200)
        self.whole(uwsgi)
        self.assertEqual(self.counter(), before)
        # Not necessary: no reset, and no command for it.
        resets = uwsgi.pool()['resets']
        self.server.log_commands(True)
        self.addCleanup(self.server.log_commands, False)
        for _ in range(5):
            self.run_sql(uwsgi, 'SELECT 1', id=False)
        self.whole(uwsgi)
        self.assertEqual(uwsgi.pool()['resets'], resets)
        mine = set(self.sessions())
        self.assertEqual([text for pk, _, text in self.server.commands() if pk in mine], ['SELECT 1'] * 5)

    def test_overflow_is_bounded_too(self):
        """max_overflow 10: a burst gets so many more, and no more than that."""
        self.held(self.run_as('fast_and_sane'), 18, 15)

    def test_no_ping(self):
        """django_pre_ping and pre_ping off: nothing is asked of the server at a check-out."""
        uwsgi = self.run_as('fast_and_sane')
        self.run_sql(uwsgi, 'SELECT 1')
        before = self.server.questions()
        for _ in range(10):
            self.run_sql(uwsgi, 'SELECT 1', id=False)
        self.assertEqual(self.server.questions() - before, 10)

    def test_different_threads_share_the_connections(self):
        """use_threadlocal off: not bound to a thread. A second user in one greenlet has another one, and greenlets of
        both workers use them in turn."""
        uwsgi = self.run_as('fast_and_sane')
        first, second, _ = uwsgi.get('/twice').json()['default']
        self.assertNotEqual(first, second)
        used = {}

        def shared():
            for answer in self.burst(uwsgi, 4):
                answer = answer.json()
                used.setdefault(answer['id'], set()).add(answer['worker'])
            return any(len(workers) == 2 for workers in used.values())

        wait_until(shared, 60, 'one was used by both workers')


@matrix(drivers=['mysqlclient'], modes=['gevent'])
class FastAndWild(Ancestor):
    def test_waits_before_overload(self):
        """django_unload_timeout: some random time passes before the pool grows beyond the core. Differs: random, as the
        sentence says; fixed in its code. Of a day a part below the test's patience is drawn once in ten thousand."""
        uwsgi = self.run_as('fast_and_wild', django_unload_timeout=86400, timeout=60)
        with self.gate():
            pages = [in_background(uwsgi.get, '/gate') for _ in range(8)]
            wait_until(lambda: len(self.waiting_at_gate()) == 5 and uwsgi.pool()['waiting'] == 3, 30, 'the core, 3 wait')
            self.assertEqual(len(self.sessions()), 5)
        self.assertEqual({page.result().status for page in pages}, {200})
        self.assertEqual(uwsgi.pool()['opened'], 5)

    def test_grows_when_that_time_has_passed(self):
        """And then it does grow, up to pool_size; burst traffic puts its overflow into the pool (max_overflow 0)."""
        uwsgi = self.run_as('fast_and_wild', pool_size=8, django_retire_interval=3600)
        self.held(uwsgi, 10, 8)
        self.whole(uwsgi)
        self.assertEqual(uwsgi.pool()['size'], 8)

    def test_none_is_retired_at_the_core(self):
        """django_core_pool_size: at that size no connection is retired."""
        uwsgi = self.run_as('fast_and_wild', django_retire_interval=0.1, django_retire_quantity=5)
        used = {answer.json()['id'] for answer in self.burst(uwsgi, 5)}
        for _ in range(10):
            self.run_sql(uwsgi, 'SELECT SLEEP(0.1)')
        self.assertEqual(set(self.sessions()), used)

    def test_few_per_interval(self):
        """django_retire_interval and django_retire_quantity: so many, once in so long. An hour: nothing goes yet."""
        uwsgi = self.run_as('fast_and_wild', django_retire_interval=3600, django_retire_quantity=5, pool_size=7)
        used = {answer.json()['id'] for answer in self.burst(uwsgi, 7)}
        for _ in range(10):
            self.run_sql(uwsgi, 'SELECT SLEEP(0.1)')
        self.assertEqual(set(self.sessions()), used)


if __name__ == '__main__':
    unittest.main()
