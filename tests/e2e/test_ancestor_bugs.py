# SPDX-License-Identifier: MIT
"""The eleven bugs and limits of django-db-conn-pool that we know of (found by running it and by reading its source,
github.com/shzhao17/django-db-conn-pool at 9fc1721c6dee): that each is not here.
"""

import os
import unittest

from tests.e2e.base import matrix
from tests.e2e.test_policy_forms import WithSettings
from tests.support import in_background, wait_until

PRESETS = ('slow_and_safe', 'fast_and_sane', 'fast_and_wild')


@matrix(modes=['gevent'])
class Bugs(WithSettings):
    def test_1_a_forked_child_has_no_connection_of_its_parent(self):
        """There a process forked after the first use spoke on its parent's socket. Here the application queries while
        it is imported in the master; then every worker has others, and so has a worker's own child."""
        uwsgi = self.run_pool({'pool_size': 4, 'max_overflow': 0}, 2, given={'import_query': True})
        imported, used = set(), {}

        def both():
            answer = uwsgi.get('/imported').json()
            imported.add(answer['imported']['id'])
            used.setdefault(answer['worker'], set()).add(answer['id'])
            return len(used) == 2

        wait_until(both, 60, 'both workers answered')
        self.assertEqual(len(imported), 1)
        for ids in used.values():
            self.assertFalse(imported & ids)
        answer = uwsgi.get('/child', how='fork').json()
        self.assertEqual(answer['before'], answer['after'])

    def test_2_each_alias_has_its_own_parameters(self):
        """There the first alias's POOL was everybody's."""
        uwsgi = self.run_pool(None, databases={'default': self.database({'pool_size': 3, 'max_overflow': 0}),
                                               'other': self.database({'pool_size': 99, 'max_overflow': 1})})
        for alias, cap in [('default', 3), ('other', 100)]:
            self.run_sql(uwsgi, 'SELECT 1', alias=alias)
            self.assertEqual(uwsgi.pool(alias)['max'], cap)

    def test_3_abandoned_work_is_not_committed(self):
        """There a transaction left open with autocommit off went back open with the fast presets, and the next
        connect() committed it by switching autocommit on."""
        for preset in PRESETS:
            with self.subTest(preset):
                uwsgi = self.run_pool({'preset': preset, 'pool_size': 1, 'max_overflow': 0, 'django_core_pool_size': 1})
                before = self.counter()
                for how in ('close', 'dropped', 'atomic', 'error'):
                    self.assertEqual(uwsgi.get('/left', how=how).status, 200)
                    self.assertEqual(self.run_sql(uwsgi, 'SELECT @@autocommit, @@in_transaction')['results'], [[[1, 0]]])
                self.assertEqual(self.counter(), before)
                uwsgi.close()

    def test_4_a_dead_connection_does_not_come_back(self):
        """There one whose rollback failed at its return was handed out again."""
        uwsgi = self.run_pool({'preset': 'fast_and_sane', 'pool_size': 1, 'max_overflow': 0})
        name = self.new_name()
        page = in_background(self.run_sql, uwsgi, 'UPDATE counters SET n = n + 1 WHERE id = 1', atomic=True, meet=name)
        self.here(name)
        dead, = self.sessions()
        self.server.kill_session(dead)
        self.go(name)
        self.assertIn('error', page.result())
        for _ in range(5):
            answer = self.run_sql(uwsgi, 'SELECT 1')
            self.assertEqual(answer.get('results'), [[[1]]], answer)
            self.assertNotEqual(answer['id'], dead)

    def test_5_a_server_restart_costs_no_idle_session_an_error(self):
        """There each pooled connection failed one request afterwards."""
        uwsgi = self.run_pool({'pool_size': 6, 'max_overflow': 0, 'timeout': 30})
        before = {answer.json()['id'] for answer in self.burst(uwsgi, 6)}
        self.whole(uwsgi)
        self.server.restart()
        answers = [self.run_sql(uwsgi, 'SELECT 1') for _ in range(12)]
        self.assertEqual([answer.get('error') for answer in answers], [None] * 12, answers)
        self.assertEqual(len(before), 6)

    def test_6_exhaustion_is_djangos_error(self):
        """There it was SQLAlchemy's TimeoutError, which `except OperationalError` does not catch."""
        uwsgi = self.run_pool({'pool_size': 1, 'max_overflow': 0, 'timeout': 0.3})
        name = self.new_name()
        holder = in_background(uwsgi.get, '/hold', meet=name)
        self.here(name)
        answer = self.run_sql(uwsgi, 'SELECT 1')
        self.assertEqual((answer.get('module'), answer.get('error'), answer.get('cause', '').rpartition('.')[2]),
                         ('django.db.utils', 'OperationalError', 'OperationalError'), answer)
        self.go(name)
        self.assertEqual(holder.result().status, 200)

    def test_7_retirement_takes_nobodys_session(self):
        """There the retiring thread queued with the users, took their connections, opened some only to close them, and
        never stopped. Here no worker has such a thread, and with busy users nothing is opened or waited for."""
        django = {'preset': 'fast_and_wild', 'django_core_pool_size': 1, 'django_retire_interval': 0.01,
                  'django_retire_quantity': 50, 'django_unload_timeout': None, 'pool_size': 4}
        threads = []
        for pool in ({'pool_size': 4, 'max_overflow': 0}, django):
            if threads:
                uwsgi.close()
            uwsgi = self.run_pool(pool)
            self.burst(uwsgi, 4)
            threads.append([len(os.listdir('/proc/%d/task' % pid)) for pid in uwsgi.worker_pids().values()])
        self.assertEqual(threads[0], threads[1])
        with self.gate():
            pages = [in_background(uwsgi.get, '/gate') for _ in range(4)]
            wait_until(lambda: len(self.waiting_at_gate()) == 4, 30, 'four are used')
            opened, waits = uwsgi.pool()['opened'], uwsgi.pool()['waits']
            held = set(self.waiting_at_gate())
            in_time = [in_background(self.run_sql, uwsgi, 'SELECT 1') for _ in range(20)]
            wait_until(lambda: uwsgi.pool()['waiting'] == 20, 30, 'twenty wait: all sessions wanted')
            self.assertEqual(set(self.sessions()), held)
        for page in pages:
            self.assertEqual(page.result().status, 200)
        for page in in_time:
            self.assertIn(page.result()['id'], held)  # none went while one was waited for
        self.assertEqual(uwsgi.pool()['opened'], opened)
        self.assertEqual(uwsgi.pool()['waits'], waits + 20)
        self.shrinks_to(uwsgi, 1)

    def test_8_nobody_barges_past_those_who_wait(self):
        """There a newcomer could take what was returned to a waiter."""
        uwsgi = self.run_pool({'pool_size': 1, 'max_overflow': 0, 'timeout': 60}, 2)
        self.server.query('CREATE TABLE IF NOT EXISTS app.arrivals (id INT AUTO_INCREMENT PRIMARY KEY, n INT)')
        self.server.query('TRUNCATE app.arrivals')
        name = self.new_name()
        holder = in_background(uwsgi.get, '/hold', meet=name)
        self.here(name)
        waiters = []
        for n in range(8):
            waiters.append(in_background(self.run_sql, uwsgi, 'INSERT INTO arrivals (n) VALUES (%d)' % n))
            wait_until(lambda: uwsgi.pool()['waiting'] == n + 1, 30, '%d wait' % (n + 1))
        self.go(name)
        self.assertEqual(holder.result().status, 200)
        workers = {waiter.result()['worker'] for waiter in waiters}
        self.assertEqual([n for n, in self.server.query('SELECT n FROM app.arrivals ORDER BY id')], list(range(8)))
        self.assertLessEqual(workers, {1, 2})

    def test_9_parameters_need_not_be_hashable(self):
        """There a dict with a list in it was "unhashable type: 'list'"; and queries of mysqlclient stop the hub."""
        uwsgi = self.run_settings('''
from MySQLdb.constants import FIELD_TYPE
from django.db.backends.mysql.base import django_conversions
conv = dict(django_conversions)
conv['lists may be here'] = [1, [2, {3}]]
DATABASES['default']['OPTIONS'] = {'conv': conv}
''')
        self.burst(uwsgi, 4)  # of one worker, at the same time
        self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])

    def test_10_a_killed_greenlet_leaves_nothing_behind(self):
        """There its connection came back by garbage collection, in the middle of an answer. And the cap was one for
        each process; here all of them have one."""
        uwsgi = self.run_pool({'preset': 'fast_and_sane', 'pool_size': 2, 'max_overflow': 1}, 2)
        for _ in range(3):
            answer = uwsgi.get('/gevent_timeout').json()
            self.assertEqual(answer['outcome'], 'Timeout')
            wait_until(lambda: answer['id'] not in self.sessions(), 30, 'that session is killed')
            self.assertEqual(uwsgi.get('/rows', ids='1,2', token='x').json()['rows'],
                             [[1, self.nonces[1], 'x'], [2, self.nonces[2], 'x']])
        with self.gate():
            pages = [in_background(uwsgi.get, '/gate') for _ in range(9)]
            wait_until(lambda: len(self.waiting_at_gate()) == 3 and uwsgi.pool()['waiting'] == 6, 30, 'three, six wait')
            self.assertEqual(len(self.sessions()), 3)
        self.assertEqual({page.result().status for page in pages}, {200})

    def test_11_the_core_is_exact(self):
        """There the core was looked at without a lock, so a burst went past it."""
        uwsgi = self.run_pool({'preset': 'fast_and_wild', 'django_core_pool_size': 2, 'pool_size': 9, 'timeout': 60,
                               'django_unload_timeout': 86400}, 2)
        with self.gate():
            pages = [in_background(uwsgi.get, '/gate') for _ in range(9)]
            wait_until(lambda: len(self.waiting_at_gate()) == 2 and uwsgi.pool()['waiting'] == 7, 30, 'two, seven wait')
            self.assertEqual(len(self.sessions()), 2)
        self.assertEqual({page.result().status for page in pages}, {200})
        self.assertEqual(uwsgi.pool()['opened'], 2)


if __name__ == '__main__':
    unittest.main()
