# SPDX-License-Identifier: MIT
"""uWSGI's own stats show the pool, at once and without --enable-metrics."""

import os
import shutil
import signal
import tempfile
import unittest

from tests.e2e.base import STOCK, WithServer, WithUwsgi
from tests.support import in_background, wait_until

NAMES = {'size', 'max', 'idle', 'leased', 'waiting', 'opened', 'closed', 'acquires', 'timeouts', 'wait_us'}


class Stats(WithUwsgi, unittest.TestCase):
    pool = {'pool_size': 2, 'max_overflow': 1, 'timeout': 30}

    def setUp(self):
        # A pool is there from its first use on.
        self.uwsgi.get('/rows', ids='1', token='x')
        self.whole(self.uwsgi)

    def test_names_and_first_values(self):
        self.uwsgi.get('/rows', ids='1', token='x')
        pool = self.whole(self.uwsgi)
        self.assertLessEqual(NAMES, set(pool))
        self.assertEqual(pool['max'], 3)
        self.assertGreaterEqual(pool['opened'], 1)
        self.assertEqual(pool['size'], len(self.sessions()))

    def test_the_present_and_not_a_second_ago(self):
        """A page that is known to hold a lease is seen in the very next reading; so are waiters."""
        meetings = []
        for held in range(1, 4):
            name = self.new_name()
            meetings.append((name, in_background(self.uwsgi.get, '/hold', meet=name)))
            self.here(name)
            self.assertEqual(self.uwsgi.metric('dbpool.default.leased'), held)
        waiter = in_background(self.uwsgi.get, '/rows', ids='1', token='x')
        wait_until(lambda: self.uwsgi.metric('dbpool.default.waiting') == 1, 30, 'a waiter is shown')
        before = self.uwsgi.metric('dbpool.default.wait_us')
        for name, page in meetings:
            self.go(name)
            page.result()
        waiter.result()
        self.assertGreater(self.uwsgi.metric('dbpool.default.wait_us'), before)
        self.whole(self.uwsgi)

    def test_acquires_count_leases(self):
        before = self.uwsgi.metric('dbpool.default.acquires')
        self.assertEqual(self.uwsgi.get('/leases', n=7).status, 200)
        self.assertEqual(self.uwsgi.metric('dbpool.default.acquires') - before, 7)

    def test_overflow_is_ended_when_nobody_waits(self):
        meetings = []
        for _ in range(3):
            name = self.new_name()
            meetings.append((name, in_background(self.uwsgi.get, '/hold', meet=name)))
            self.here(name)
        self.assertEqual(len(self.sessions()), 3)
        for name, page in meetings:
            self.go(name)
            page.result()
        wait_until(lambda: len(self.sessions()) == 2, 30, 'the overflow session is ended')


class Grace(WithServer, unittest.TestCase):
    def run_bursts(self, grace, bursts):
        pool = {'pool_size': 1, 'max_overflow': 3, 'timeout': 30, 'overflow_grace': grace}
        with self.make_uwsgi('mysqlclient', 'gevent', {'default': self.database(pool)}, 1) as uwsgi:
            for _ in range(bursts):
                meetings = []
                for _ in range(4):
                    name = self.new_name()
                    meetings.append((name, in_background(uwsgi.get, '/hold', meet=name)))
                    self.here(name)
                for name, page in meetings:
                    self.go(name)
                    page.result()
                self.whole(uwsgi)
                if grace == 0:
                    wait_until(lambda: uwsgi.pool()['size'] == 1, 30, 'the overflow has gone')
            return uwsgi.pool()

    def test_overflow_that_is_needed_again_stays(self):
        pool = self.run_bursts(3600, 5)
        self.assertEqual((pool['opened'], pool['size']), (4, 4))

    def test_without_a_grace_it_goes_at_its_return(self):
        pool = self.run_bursts(0, 3)
        self.assertEqual((pool['opened'], pool['size']), (10, 1))


class Apart(WithServer, unittest.TestCase):
    def test_aliases_that_become_the_same_name(self):
        """uWSGI's names have no dots and spaces of the alias: two aliases must not take each other's figures."""
        databases = {'default': self.database(engine=STOCK)}
        sizes = {'a_b': 1, 'a.b': 2, 'a b': 3}
        for alias, size in sizes.items():
            databases[alias] = self.database({'pool_size': size, 'max_overflow': 0})
        with self.make_uwsgi('pymysql', 'prefork', databases, 1) as uwsgi:
            for n, alias in enumerate(sizes):
                for _ in range(n + 1):
                    self.run_sql(uwsgi, 'SELECT 1', alias=alias)
            metrics = {name: entry['value'] for name, entry in uwsgi.stats()['metrics'].items()}
            shown = {name[:-len('.max')]: value for name, value in metrics.items() if name.startswith('dbpool.')
                     and name.endswith('.max')}
            self.assertEqual(sorted(shown.values()), [1, 2, 3])
            for name, size in shown.items():
                self.assertEqual(metrics[name + '.acquires'], size, name)
            for name in set(shown) - {'dbpool.a_b'}:
                self.assertIn('are %s.*' % name, uwsgi.log())

    def test_a_directory_for_metrics_that_takes_no_files(self):
        """A full disk, or one that somebody tidied up: a pool that is registered later must not end the instance."""
        directory = tempfile.mkdtemp(dir=self.meet)
        with self.make_uwsgi('pymysql', 'prefork', options={'metrics-dir': directory, 'lazy-apps': True}) as uwsgi:
            shutil.rmtree(directory)
            master = uwsgi.pid
            for _ in range(3):
                self.run_sql(uwsgi, 'SELECT 1')
            self.assertGreaterEqual(uwsgi.metric('dbpool.default.acquires'), 3)
            os.kill(master, 0)
            self.assertEqual(self.run_sql(uwsgi, 'SELECT 1')['results'], [[[1]]])


class NotUsed(WithServer, unittest.TestCase):
    def test_an_unused_plugin_is_quiet(self):
        """Loaded but never asked: no session, no error."""
        with self.make_uwsgi('mysqlclient', 'gevent') as uwsgi:
            self.assertEqual(uwsgi.get('/ping').status, 200)
            self.assertEqual(self.sessions(), {})


class OfUwsgi(WithServer, unittest.TestCase):
    """uWSGI's own users of metrics: thresholds with their alarms, and uwsgi.metric_get() in a worker."""

    pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30}

    def make(self, databases=None, mode='prefork', **options):
        options = {name.replace('_', '-'): value for name, value in options.items()}
        return self.make_uwsgi('mysqlclient', mode, databases or {'default': self.database(self.pool)}, 2, options=options)

    def test_a_threshold_on_waiting_raises_its_alarm(self):
        for lazy in (False, True):
            with self.subTest(lazy=lazy):
                alarms = os.path.join(self.meet, 'alarms-%s' % lazy)
                with self.make(alarm='queue cmd:cat >> %s; echo >> %s' % (alarms, alarms), lazy_apps=lazy,
                               metric_threshold='key=dbpool.default.waiting,value=1,alarm=queue') as uwsgi:
                    name = self.new_name()
                    page = in_background(uwsgi.get, '/hold', meet=name)
                    self.here(name)
                    self.assertFalse(os.path.exists(alarms))
                    waiter = in_background(uwsgi.get, '/rows', ids='1', token='x')
                    wait_until(lambda: os.path.exists(alarms) and os.path.getsize(alarms), 30, 'the alarm is raised')
                    self.go(name)
                    page.result()
                    waiter.result()
                    with open(alarms) as f:
                        self.assertIn('dbpool.default.waiting', f.read())
                    self.assertEqual(uwsgi.metric('dbpool.default.acquires'), 2)

    def test_a_threshold_before_there_is_a_pool_of_that_alias(self):
        entry = dict(self.database(self.pool))
        with self.make({'default': self.database(engine=STOCK), 'a.b': entry},
                       metric_threshold='key=dbpool.a_b.leased,value=1000') as uwsgi:
            self.run_sql(uwsgi, 'SELECT 1', alias='a.b')
            self.assertEqual(uwsgi.metric('dbpool.a_b.acquires'), 1)
            self.assertEqual([name for name in uwsgi.stats()['metrics'] if name.endswith('.max')], ['dbpool.a_b.max'])

    def test_a_threshold_that_cannot_be_is_refused_by_name(self):
        for threshold, text in (('key=dbpool.default.weight,value=1', 'there is no such metric'),
                                ('key=dbpool.waiting,value=1', 'there is no such metric'),
                                ('key=dbpool.a.b.waiting,value=1', 'no alias has metrics of that name'),
                                ('value=1,key=dbpool.default.leased,reset=0', "'reset' would change")):
            with self.subTest(threshold=threshold):
                uwsgi = self.make(metric_threshold=threshold)
                try:
                    uwsgi.launch()
                    self.assertEqual(uwsgi.wait_exit(), 1)
                    self.assertIn('metric-threshold = %s: %s' % (threshold, text), uwsgi.log())
                    self.assertIn('leased', uwsgi.log())
                finally:
                    uwsgi.close()

    def test_a_worker_sees_the_metrics_of_its_pools(self):
        for mode, lazy in (('prefork', False), ('prefork', True), ('gevent', True), ('threads', False)):
            with self.subTest(mode=mode, lazy=lazy), self.make(mode=mode, lazy_apps=lazy) as uwsgi:
                workers = set()

                def both():
                    page = uwsgi.get('/rows', ids='1', token='x').json()
                    found = uwsgi.get('/metric', name='dbpool.default.acquires').json()
                    workers.add(page['worker'])
                    if found['worker'] in workers:
                        self.assertEqual(found['value'], uwsgi.metric('dbpool.default.acquires'))
                        found = uwsgi.get('/metric', name='dbpool.default.max').json()
                        self.assertTrue(found['value'] == 1 or found['worker'] not in workers)
                    return len(workers) == 2
                wait_until(both, 60, 'both workers answer')
                # A respawned one, too.
                os.kill(uwsgi.worker_pids()[1], signal.SIGKILL)
                workers.clear()
                wait_until(both, 60, 'both workers answer again')

    def test_one_that_nobody_asked_for_is_none(self):
        """uWSGI has seven for each core of each worker; who wants these says so."""
        for options, wanted in (({}, False), ({'enable-metrics': True}, True)):
            with self.subTest(options=options), self.make(mode='gevent', **options) as uwsgi:
                metrics = uwsgi.stats()['metrics']
                self.assertIn('worker.1.requests', metrics)
                self.assertEqual('worker.1.core.49.requests' in metrics, wanted)
