# SPDX-License-Identifier: MIT
"""POOL's parameters as an application sees them. Sizes and ages are waited for in the stats, never timed."""

import json
import os
import signal
import textwrap
import unittest

from tests.e2e.base import APP, DATABASE, PASSWORD, USER, WithServer, matrix
from tests.support import in_background, wait_until
from tests.support.uwsgi import BUILD

PAGES = '''
    """Pages that only these tests need, beside those of the application under test."""
    import urls
    from django.db import connections
    from django.http import JsonResponse
    from django.urls import path
    from wsgi import application


    def twice(request):
        """A second wrapper of each alias in the same thread or greenlet: whose session it gets."""
        def ask(wrapper):
            with wrapper.cursor() as cursor:
                cursor.execute('SELECT CONNECTION_ID()')
                return cursor.fetchone()[0]

        found = {}
        for alias in connections:
            first = connections[alias]
            second = first.copy(alias)
            found[alias] = ask(first), ask(second)
            first.close()
            found[alias] += ask(second),
            second.close()
        return JsonResponse(found)


    def joined(request):
        """A second user within a transaction of the first: it must not end it."""
        from django.db import transaction
        first = connections['default']
        try:
            with transaction.atomic():
                with first.cursor() as cursor:
                    cursor.execute('UPDATE counters SET n = n + 1 WHERE id = 1')
                second = first.copy('default')
                with second.cursor() as cursor:
                    cursor.execute('SELECT @@in_transaction')
                    inside, = cursor.fetchone()
                second.close()
                raise KeyError
        except KeyError:
            return JsonResponse({'inside': inside})


    def left(request):
        """?how=: ends a lease in the middle of a transaction, by close(), dropped, in an atomic block, after an error."""
        import gc
        how = request.GET['how']
        first = connections['default']
        if how == 'atomic':
            from django.db import transaction
            with transaction.atomic():
                with first.cursor() as cursor:
                    cursor.execute('UPDATE counters SET n = n + 1 WHERE id = 1')
                first.close()
        else:
            first.set_autocommit(False)
            with first.cursor() as cursor:
                cursor.execute('UPDATE counters SET n = n + 1 WHERE id = 1')
            if how == 'error':
                try:
                    with first.cursor() as cursor:
                        cursor.execute('SELECT * FROM no_such_table')
                except Exception:
                    pass
            if how == 'dropped':
                first.connection = None
                gc.collect()
            else:
                first.close()
        return JsonResponse({})


    urls.urlpatterns += [path(page.__name__, page) for page in (twice, joined, left)]
'''


class Case(WithServer):
    driver = 'mysqlclient'
    mode = 'gevent'

    def run_pool(self, pool, processes=1, databases=None, options=None, **more):
        with open(os.path.join(self.meet, 'policy_pages.py'), 'w') as f:
            f.write(textwrap.dedent(PAGES))
        options = {'module': 'policy_pages:application', 'pythonpath': [os.path.join(BUILD, 'python'), APP, self.meet],
                   **(options or {})}
        databases = databases or {'default': self.database(pool)}
        return self.entered(self.make_uwsgi(self.driver, self.mode, databases, processes, options, **more))

    def burst(self, uwsgi, n):
        """n pages that surely hold a session each at the same time; what they answered."""
        with self.gate():
            pages = [in_background(uwsgi.get, '/gate') for _ in range(n)]
            wait_until(lambda: len(self.waiting_at_gate()) == n, 30, '%d at the gate' % n)
        answers = [page.result() for page in pages]
        self.assertEqual({answer.status for answer in answers}, {200}, answers)
        return answers

    def shrinks_to(self, uwsgi, n):
        wait_until(lambda: uwsgi.pool()['size'] == n and len(self.sessions()) == n, 30, 'the pool is %d sessions' % n)
        self.assertEqual(self.server.query("SHOW GLOBAL STATUS LIKE 'Aborted_clients'")[0][1], '0')


@matrix(modes=['gevent'])
class Sizes(Case):
    def test_floor(self):
        uwsgi = self.run_pool({'pool_size': 5, 'max_overflow': 0, 'min_size': 3})
        self.run_sql(uwsgi, 'SELECT 1')
        wait_until(lambda: uwsgi.pool()['idle'] == 3, 30, 'three are open though one was asked for')
        self.burst(uwsgi, 5)
        self.whole(uwsgi)
        self.assertEqual(uwsgi.pool()['size'], 5)

    def test_idle_timeout_ends_what_is_above_the_floor(self):
        uwsgi = self.run_pool({'pool_size': 5, 'max_overflow': 0, 'min_size': 2, 'idle_timeout': 1})
        self.burst(uwsgi, 5)
        self.shrinks_to(uwsgi, 2)

    def test_overflow_without_limit(self):
        uwsgi = self.run_pool({'pool_size': 2, 'max_overflow': -1, 'timeout': 30})
        self.burst(uwsgi, 20)
        self.shrinks_to(uwsgi, 2)

    def test_retirement_towards_the_core(self):
        """The django class: a burst grows to pool_size, afterwards all but the core are ended, few at a time."""
        uwsgi = self.run_pool({'django_pool_class': 'django', 'pool_size': 8, 'max_overflow': 0, 'timeout': 30,
                               'django_core_pool_size': 3, 'django_unload_timeout': 0.2, 'django_retire_interval': 0.3,
                               'django_retire_quantity': 2})
        self.burst(uwsgi, 8)
        self.shrinks_to(uwsgi, 3)

    def test_queue_class_keeps_what_it_has(self):
        """The same keys do not act with the class 'queue': after more than one interval and tick all are there."""
        uwsgi = self.run_pool({'pool_size': 6, 'max_overflow': 0, 'django_core_pool_size': 1,
                               'django_retire_interval': 0.1, 'django_retire_quantity': 5})
        before = {answer.json()['id'] for answer in self.burst(uwsgi, 6)}
        self.whole(uwsgi)
        for _ in range(30):
            self.run_sql(uwsgi, 'SELECT SLEEP(0.1)')
        self.assertEqual(set(self.sessions()), before)

    def test_presets(self):
        for preset, cap in [('slow_and_safe', 5), ('fast_and_sane', 15), ('fast_and_wild', 30)]:
            with self.subTest(preset):
                uwsgi = self.run_pool(preset)
                self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])
                self.assertEqual(uwsgi.pool()['max'], cap)
                uwsgi.close()

    def test_max_lifetime_replaces(self):
        uwsgi = self.run_pool({'pool_size': 1, 'max_overflow': 1, 'max_lifetime': 2, 'timeout': 30})
        first = self.run_sql(uwsgi, 'SELECT 1')['id']
        wait_until(lambda: first not in self.sessions() and len(self.sessions()) == 1, 30, 'another has taken its place')
        self.assertNotEqual(self.run_sql(uwsgi, 'SELECT 1')['id'], first)

    def test_recycle(self):
        uwsgi = self.run_pool({'pool_size': 1, 'max_overflow': 0, 'recycle': 1, 'timeout': 30})
        first = self.run_sql(uwsgi, 'SELECT 1')['id']
        wait_until(lambda: self.run_sql(uwsgi, 'SELECT 1')['id'] != first, 30, 'another session is handed out')

    def test_keepalive(self):
        """The server counts the pings of a session that nobody uses."""
        def pings():
            return int(self.server.query("SHOW GLOBAL STATUS LIKE 'Com_admin_commands'")[0][1])

        uwsgi = self.run_pool({'pool_size': 1, 'max_overflow': 0, 'keepalive': 1, 'timeout': 30})
        first = self.run_sql(uwsgi, 'SELECT 1')['id']
        before = pings()
        wait_until(lambda: pings() >= before + 2, 30, 'pinged twice')
        self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['id'], first)


@matrix(modes=['gevent', 'threads'])
class Waiting(Case):
    def test_max_waiting(self):
        uwsgi = self.run_pool({'pool_size': 1, 'max_overflow': 0, 'timeout': 30, 'max_waiting': 1})
        name = self.new_name()
        holder = in_background(uwsgi.get, '/hold', meet=name)
        self.here(name)
        waiter = in_background(self.run_sql, uwsgi, 'SELECT 1')
        wait_until(lambda: uwsgi.pool()['waiting'] == 1, 30, 'one waits')
        answer = self.run_sql(uwsgi, 'SELECT 1')
        self.assertEqual((answer.get('module'), answer.get('error')), ('django.db.utils', 'OperationalError'), answer)
        self.assertIn('max_waiting (1)', answer['text'])
        self.go(name)
        self.assertEqual(holder.result().status, 200)
        self.assertEqual(waiter.result()['results'], [[[1]]])


@matrix(modes=['gevent', 'threads'])
class PrePing(Case):
    def test_a_dead_session_never_reaches_the_application(self):
        """All sessions but one are killed while the broker stands still, so that it cannot find out before the page."""
        uwsgi = self.run_pool({'pool_size': 3, 'max_overflow': 0, 'timeout': 30, 'pre_ping': True})
        self.run_sql(uwsgi, 'SELECT 1')  # so that the burst's threads do not each register the pool for themselves
        for survivor in range(3):
            alive = sorted(answer.json()['id'] for answer in self.burst(uwsgi, 3))
            self.whole(uwsgi)
            os.kill(uwsgi.pid, signal.SIGSTOP)
            try:
                for session in alive[:survivor] + alive[survivor + 1:]:
                    self.server.query('KILL %d' % session)
                wait_until(lambda: list(self.sessions()) == [alive[survivor]], 30, 'the others are gone')
                answer = self.run_sql(uwsgi, 'SELECT 1')
            finally:
                os.kill(uwsgi.pid, signal.SIGCONT)
            self.assertEqual((answer.get('error'), answer.get('id')), (None, alive[survivor]), answer)

    def test_all_of_them_dead(self):
        uwsgi = self.run_pool({'pool_size': 3, 'max_overflow': 0, 'timeout': 30, 'django_pre_ping': True})
        dead = {answer.json()['id'] for answer in self.burst(uwsgi, 3)}
        self.whole(uwsgi)
        os.kill(uwsgi.pid, signal.SIGSTOP)
        try:
            for session in dead:
                self.server.query('KILL %d' % session)
            pages = [in_background(self.run_sql, uwsgi, 'SELECT 1') for _ in range(2)]
        finally:
            os.kill(uwsgi.pid, signal.SIGCONT)
        for page in pages:
            self.assertEqual(page.result().get('results'), [[[1]]])
            self.assertNotIn(page.result()['id'], dead)


@matrix(modes=['gevent', 'prefork'])
class Reset(Case):
    def after(self, uwsgi, how):
        """How much the counter grew when a lease ended so in the middle of a transaction."""
        before = self.counter()
        self.assertEqual(uwsgi.get('/left', how=how).status, 200)
        self.whole(uwsgi)
        return self.counter() - before

    def test_commit(self):
        uwsgi = self.run_pool({'pool_size': 1, 'max_overflow': 0, 'reset_on_return': 'commit'})
        self.assertEqual({how: self.after(uwsgi, how) for how in ('close', 'dropped', 'atomic', 'error')},
                         {'close': 1, 'dropped': 0, 'atomic': 0, 'error': 0})
        # And the next one is not in a transaction.
        self.assertEqual(self.run_sql(uwsgi, 'SELECT @@in_transaction, @@autocommit')['results'], [[[0, 1]]])

    def test_all_others_roll_back(self):
        for value in ('rollback', None, True, False):
            with self.subTest(value):
                uwsgi = self.run_pool({'pool_size': 1, 'max_overflow': 0, 'reset_on_return': value,
                                       'django_reset_on_return': bool(value)})
                self.assertEqual(self.after(uwsgi, 'close'), 0)
                uwsgi.close()


@matrix(modes=['gevent', 'threads'])
class ThreadLocal(Case):
    def run_two(self, use):
        pool = {'pool_size': 6, 'max_overflow': 0, 'timeout': 10, 'use_threadlocal': use}
        return self.run_pool(None, databases={'default': self.database(pool), 'other': self.database(pool)})

    def test_same_connection_per_alias(self):
        uwsgi = self.run_two(True)
        for _ in range(3):
            found = uwsgi.get('/twice').json()
            self.assertEqual({alias: len(set(ids)) for alias, ids in found.items()}, {'default': 1, 'other': 1})
            self.assertNotEqual(found['default'][0], found['other'][0], 'two aliases never share one')
        self.whole(uwsgi)
        self.whole(uwsgi, 'other')

    def test_off(self):
        found = self.run_two(False).get('/twice').json()
        self.assertNotEqual(found['default'][0], found['default'][1])

    def test_a_second_user_does_not_end_the_transaction(self):
        uwsgi = self.run_two(True)
        before = self.counter()
        self.assertEqual(uwsgi.get('/joined').json(), {'inside': 1})
        self.assertEqual(self.counter(), before)

    def test_requests_at_the_same_time_have_their_own(self):
        answers = self.burst(self.run_two(True), 3)
        self.assertEqual(len({answer.json()['id'] for answer in answers}), 3)


@matrix(modes=['gevent', 'threads', 'prefork'])
class Leaks(Case):
    def test_a_lease_held_too_long_is_logged_once(self):
        uwsgi = self.run_pool({'pool_size': 2, 'max_overflow': 0, 'leak_threshold': 0.5},
                              options={'enable-threads': True})
        for _ in range(5):
            self.run_sql(uwsgi, 'SELECT 1')
        name = self.new_name()
        holder = in_background(uwsgi.get, '/hold', meet=name)
        worker = self.worker_here(name)
        wait_until(lambda: 'leak_threshold' in uwsgi.log(), 30, 'the leak is logged')
        self.go(name)
        self.assertEqual(holder.result().status, 200)
        self.run_sql(uwsgi, 'SELECT 1')
        log = uwsgi.log()
        self.assertEqual(log.count('leak_threshold 0.5 s'), 1, log)
        for word in ("pool 'default'", 'worker %d' % worker, 'GET /hold?meet=%s' % name, 'views.py', 'in hold',
                     '_connection_id()'):
            self.assertIn(word, log)


class Reload(WithServer, unittest.TestCase):
    def test_chain_reload_takes_a_new_policy_and_password_over(self):
        """Old and new workers side by side: the living pool grows and keeps its sessions, no request fails."""
        fifo = os.path.join(self.meet, 'fifo-policy')
        pool = {'pool_size': 2, 'max_overflow': 0, 'min_size': 1}
        options = {'lazy-apps': True, 'master-fifo': fifo}
        with self.make_uwsgi('mysqlclient', 'prefork', {'default': self.database(pool)}, options=options) as uwsgi:
            self.assertEqual(uwsgi.get('/rows', ids='1', token='x').status, 200)
            kept, workers = set(self.sessions()), set(uwsgi.worker_pids().values())
            self.assertEqual(uwsgi.metric('dbpool.default.max'), 2)

            self.server.create(DATABASE, USER, 'another one')
            self.addCleanup(self.server.create, DATABASE, USER, PASSWORD)
            path = uwsgi._environ['DBPOOL_TEST']
            with open(path) as f:
                given = json.load(f)
            given['databases']['default']['PASSWORD'] = 'another one'
            given['databases']['default']['POOL'] = {'pool_size': 6, 'max_overflow': 0, 'min_size': 4}
            with open(path, 'w') as f:
                json.dump(given, f)
            with open(fifo, 'w') as f:
                f.write('c')
            wait_until(lambda: not workers & set(uwsgi.worker_pids().values()), 60, 'new workers')
            uwsgi.note_processes()

            def grown():
                self.assertEqual(uwsgi.get('/rows', ids='1', token='x').status, 200)
                return uwsgi.metric('dbpool.default.max') == 6 and uwsgi.metric('dbpool.default.idle') == 4

            wait_until(grown, 30, 'the new policy')  # its logins need the new password
            self.assertLessEqual(kept, set(self.sessions()))
            self.assertEqual(uwsgi.metric('dbpool.default.failures'), 0)
            self.assertEqual(uwsgi.metric('dbpool.default.closed'), 0)


class Refused(Case, unittest.TestCase):
    def test_all_problems_in_one_message(self):
        uwsgi = self.run_pool({'pool_size': 2, 'min_sise': 1, 'keepalive': 'often', 'reset_on_return': 'off'})
        answer = self.run_sql(uwsgi, 'SELECT 1')
        self.assertEqual(answer.get('error'), 'ImproperlyConfigured', answer)
        for word in ("'default'", 'min_sise', 'keepalive', 'reset_on_return'):
            self.assertIn(word, answer['text'])
