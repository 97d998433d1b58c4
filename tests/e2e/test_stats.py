# SPDX-License-Identifier: MIT
"""uWSGI's own stats show the pool, at once and without --enable-metrics."""

import unittest

from tests.e2e.base import WithServer, WithUwsgi
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


class NotUsed(WithServer, unittest.TestCase):
    def test_an_unused_plugin_is_quiet(self):
        """Loaded but never asked: no session, no error."""
        with self.make_uwsgi('mysqlclient', 'gevent') as uwsgi:
            self.assertEqual(uwsgi.get('/ping').status, 200)
            self.assertEqual(self.sessions(), {})
