# SPDX-License-Identifier: MIT
"""Pools of an instance beside each other: made when the settings are loaded, under one cap, and one after the other when
the settings change."""

import json
import os
import unittest

from tests.e2e.base import DATABASE, PASSWORD, USER, WithServer, matrix
from tests.support import concurrently, in_background, wait_until

OTHER = 'other_user'


class AtStart(WithServer):
    """min_size is open before the first request, of every alias."""

    def floors(self, lazy):
        databases = {'default': self.database({'pool_size': 4, 'min_size': 3}),
                     'other': self.database({'pool_size': 4, 'min_size': 2})}
        uwsgi = self.entered(self.make_uwsgi(self.driver, self.mode, databases, given={'apps': ['shelf']},
                                             options={'lazy-apps': lazy}, ready=None))
        wait_until(lambda: (uwsgi.metric('dbpool.default.idle'), uwsgi.metric('dbpool.other.idle')) == (3, 2), 30,
                   'the floors are open')
        self.assertEqual(len(self.sessions()), 5)
        self.assertEqual(uwsgi.metric('dbpool.default.acquires'), 0)
        self.assertEqual(sum(worker['requests'] for worker in uwsgi.stats()['workers']), 0)
        # It is the pool that the requests use then.
        for alias in databases:
            answer = self.run_sql(uwsgi, 'SELECT CONNECTION_ID()', alias=alias)
            self.assertIn(answer['results'][0][0][0], self.sessions())
        self.assertEqual(uwsgi.metric('dbpool.default.opened') + uwsgi.metric('dbpool.other.opened'), 5)

    def test_application_loaded_in_the_master(self):
        self.floors(False)

    def test_application_loaded_in_the_workers(self):
        self.floors(True)

    def test_what_is_wrong_is_said_when_the_application_is_loaded(self):
        databases = {'default': self.database({'pool_size': 4, 'min_size': 3})}
        uwsgi = self.entered(self.make_uwsgi(self.driver, self.mode, databases, given={'apps': ['shelf']},
                                             options={'dbpool-max-sessions': 2}, ready=None))
        wait_until(lambda: 'min_size is 3' in uwsgi.log(), 30, 'the log names it')
        self.assertIn("pool 'default'", uwsgi.log())


matrix(modes=('gevent', 'prefork'))(AtStart)


class MaxSessions(WithServer):
    """dbpool-max-sessions over two pools that would both like to have all of it."""

    most = 4

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.create(DATABASE, OTHER, PASSWORD)

    def both(self):
        return list(self.server.sessions(USER)) + list(self.server.sessions(OTHER))

    def start(self):
        pool = {'pool_size': self.most, 'max_overflow': 0, 'timeout': 30}
        databases = {'default': self.database(pool), 'other': self.database(pool, **{'USER': OTHER})}
        return self.entered(self.make_uwsgi(self.driver, self.mode, databases,
                                            options={'dbpool-max-sessions': self.most}))

    def test_I3_two_pools_share_the_cap(self):
        uwsgi = self.start()
        looks = []

        def watch():
            """The server's list shows a session for some milliseconds after its connection was closed."""
            while not done:
                found = len(self.both())
                if found > self.most:
                    wait_until(lambda: len(self.both()) <= self.most, 10, 'no more sessions than the cap')
                else:
                    looks.append(found)

        done = []
        watcher = in_background(watch)
        try:
            answers = concurrently(lambda n: uwsgi.get('/sql', {'statements': ['SELECT SLEEP(0.005)'],
                                                                'alias': ('default', 'other')[n % 2]}),
                                   range(300), 16)
        finally:
            done.append(True)
        watcher.result()
        for answer in answers:
            self.assertEqual(answer.status, 200, answer)
            self.assertNotIn('error', answer.json())
        self.assertEqual(max(looks), self.most)
        for alias in ('default', 'other'):
            pool = self.whole(uwsgi, alias)
            self.assertEqual(pool['timeouts'], 0)

    def test_a_busy_pool_gives_up_sessions_to_another(self):
        """All sessions are leased by one pool, and one of its own waits: a returned one goes to the other pool."""
        uwsgi = self.start()
        names = [self.new_name() for _ in range(self.most)]
        holders = [in_background(self.run_sql, uwsgi, 'SELECT 1', meet=name) for name in names]
        for name in names:
            self.here(name)
        late = in_background(self.run_sql, uwsgi, 'SELECT 1')
        wait_until(lambda: uwsgi.metric('dbpool.default.waiting') == 1, 30, 'one of its own waits')
        other = in_background(self.run_sql, uwsgi, 'SELECT 1', alias='other')
        wait_until(lambda: uwsgi.metric('dbpool.other.waiting') == 1, 30, 'one of the other pool waits')
        wait_until(lambda: self.first_let_go(uwsgi, names), 30, 'the other pool has its session')
        self.assertNotIn('error', other.result())
        for name in names:
            self.go(name)
        for holder in holders + [late]:
            self.assertNotIn('error', holder.result())
        self.assertEqual(uwsgi.metric('dbpool.default.kills'), 0)

    def first_let_go(self, uwsgi, names):
        # One is enough once it is marked, which takes up to 50 ms; the mark is on any of them.
        if names:
            self.go(names.pop())
        return uwsgi.metric('dbpool.other.acquires') == 1


matrix(modes=('gevent',))(MaxSessions)


class Option(WithServer, unittest.TestCase):
    def test_a_bad_value_is_refused_by_name(self):
        for value in ('many', '0', '-3', '5 sessions', '100000'):
            uwsgi = self.make_uwsgi('mysqlclient', 'prefork', options={'dbpool-max-sessions': value})
            try:
                uwsgi.launch()
                self.assertEqual(uwsgi.wait_exit(), 1)
                self.assertIn("dbpool-max-sessions is '%s': expected a number from 1 to 1024" % value, uwsgi.log())
            finally:
                uwsgi.close()


class Identity(WithServer, unittest.TestCase):
    def test_changed_settings_and_chain_reload_make_another_pool(self):
        """Old and new workers side by side, each with its own database: no request fails, and the old sessions go."""
        self.server.create('second', USER, PASSWORD)
        fifo = os.path.join(self.meet, 'fifo-identity')
        pool = {'pool_size': 3, 'max_overflow': 0, 'min_size': 2}
        with self.make_uwsgi('mysqlclient', 'prefork', {'default': self.database(pool)},
                             options={'lazy-apps': True, 'master-fifo': fifo}) as uwsgi:
            self.run_sql(uwsgi, 'SELECT 1')
            old, workers = set(self.sessions()), set(uwsgi.worker_pids().values())
            answers, done = [], []

            def ask():
                while not done:
                    answers.append(uwsgi.get('/sql', {'statements': ['SELECT DATABASE()']}))

            asking = in_background(ask)
            path = uwsgi._environ['DBPOOL_TEST']
            with open(path) as f:
                given = json.load(f)
            given['databases']['default']['NAME'] = 'second'
            given['databases']['default']['POOL'] = dict(pool, pool_size=5)
            with open(path, 'w') as f:
                json.dump(given, f)
            with open(fifo, 'w') as f:
                f.write('c')
            try:
                wait_until(lambda: not workers & set(uwsgi.worker_pids().values()), 60, 'new workers')
                uwsgi.note_processes()
                wait_until(lambda: answers[-1].json()['results'] == [[['second']]], 30, 'the new settings')
            finally:
                done.append(True)
            asking.result()
            for answer in answers:
                self.assertEqual(answer.status, 200, answer)
                self.assertIn(answer.json().get('results'), ([[[DATABASE]]], [[['second']]]), answer.json())
            wait_until(lambda: not old & set(self.sessions()), 30, 'the old sessions are gone')
            wait_until(lambda: uwsgi.metric('dbpool.default.max') == 5, 30, 'the metrics are the new pool\'s')
            self.whole(uwsgi)
            self.assertEqual(self.server.status('Aborted_clients')['Aborted_clients'], 0)
            self.assertIn("database was 'app', is 'second'", uwsgi.log())


class Many(WithServer, unittest.TestCase):
    """More aliases than a site has, and more databases than the table has places."""

    TENANTS = 300

    def test_twenty_aliases(self):
        databases = {alias: self.database({'pool_size': 1, 'max_overflow': 0})
                     for alias in ['default'] + ['alias%d' % n for n in range(1, 20)]}
        for mode in ('gevent', 'prefork', 'threads'):
            for lazy in (False, True):
                with self.subTest(mode=mode, lazy=lazy), \
                        self.make_uwsgi('pymysql', mode, databases, options={'lazy-apps': lazy}) as uwsgi:
                    ids = {self.run_sql(uwsgi, 'SELECT 1', alias=alias)['id'] for alias in databases}
                    self.assertEqual(len(ids), 20)
                    for alias in databases:
                        self.whole(uwsgi, alias)
                    self.assertNotIn('error', uwsgi.log())

    def test_one_alias_for_many_tenants(self):
        for n in range(self.TENANTS):
            self.server.query('CREATE DATABASE tenant%d' % n)
            self.server.query('CREATE TABLE tenant%d.here (id INT PRIMARY KEY)' % n)
            self.server.query('INSERT INTO tenant%d.here VALUES (%d)' % (n, n))
        databases = {'default': self.database({'pool_size': 2, 'max_overflow': 0})}
        for driver, mode in (('mysqlclient', 'prefork'), ('pymysql', 'gevent')):
            with self.subTest(driver=driver, mode=mode), \
                    self.make_uwsgi(driver, mode, databases, processes=1,
                                    options={'dbpool-max-sessions': 100}) as uwsgi:
                for n in [*range(self.TENANTS), *range(20), *range(self.TENANTS - 20, self.TENANTS)]:
                    answer = uwsgi.get('/tenant', name='tenant%d' % n)
                    self.assertEqual(answer.status, 200, answer)
                    answer = answer.json()
                    self.assertEqual((answer['database'], answer['number']), ('tenant%d' % n, n))
                self.assertLess(answer['fds'], 300)
                self.assertLessEqual(len(self.sessions()), 100)
                # Those that nobody is at any more are not kept.
                wait_until(lambda: len(self.sessions()) <= 2, 60, 'the sessions of other tenants are gone')
                self.whole(uwsgi)
                self.assertEqual(uwsgi.metric('dbpool.default.kills'), 0)
                self.assertNotIn('damaged', uwsgi.log())
