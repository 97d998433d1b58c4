# SPDX-License-Identifier: MIT
"""One session, many processes: drivers alternate on it, nothing of one lease shows in the next (I6), fds stay put."""

import unittest

from tests.e2e.base import MODES, WithServer, WithUwsgi, matrix
from tests.support import session_sockets


@matrix()
class Shared(WithUwsgi):
    pool = {'pool_size': 2, 'max_overflow': 0, 'timeout': 30}

    def test_each_session_serves_several_workers(self):
        used = self.use_all()
        self.assertLessEqual(len(used), 2)

    def test_children_get_no_session(self):
        """I11: neither fork nor exec passes a session's fd on; the parent's lease goes on working."""
        self.use_all()
        for how in ('fork', 'subprocess'):
            with self.subTest(how):
                answer = self.uwsgi.get('/child', how=how).json()
                own = set()
                for pid in self.uwsgi.worker_pids().values():
                    own.update(session_sockets(pid, self.server.port).values())
                self.assertTrue(own, 'the workers themselves have session fds')
                self.assertEqual(own & set(answer['sockets']), set())
                self.assertEqual(answer['before'], answer['after'])


class OneSession(WithUwsgi):
    """Two prefork workers and one session, so that the test decides who has it when."""

    mode = 'prefork'
    pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30}

    def by(self, worker, path, *args, **parameters):
        with self.only_worker(worker):
            answer = self.uwsgi.get(path, *args, **parameters)
        self.assertEqual(answer.status, 200, answer)
        answer = answer.json()
        self.assertEqual(answer['worker'], worker)
        return answer

    def test_autocommit_left_off(self):
        """The change is gone, and the next holder's driver and session agree that autocommit is on."""
        before = self.counter()
        for first, second in [(1, 2), (2, 1), (1, 1)]:
            self.by(first, '/autocommit_off')
            seen = self.by(second, '/autocommit_seen')
            self.assertEqual((seen['server'], seen['driver']), (1, True))
        self.assertEqual(self.counter(), before)

    def test_autocommit_changed_by_sql(self):
        """The driver object of the other worker never saw this SET; the lease's status word tells it."""
        for first, second in [(1, 2), (2, 1)]:
            self.by(second, '/autocommit_seen')
            self.by(first, '/sql', {'statements': ['SET autocommit = 0']})
            seen = self.by(second, '/autocommit_seen')
            self.assertEqual((seen['server'], seen['driver']), (1, True))

    def test_sql_mode_and_escaping(self):
        """NO_BACKSLASH_ESCAPES set by one holder must never meet another's backslash escaping."""
        for first, second in [(1, 2), (2, 1)]:
            self.by(second, '/escaped')
            self.by(first, '/sql', {'statements': ["SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'"]})
            seen = self.by(second, '/escaped')
            self.assertTrue(seen['same'], seen)

    def test_open_transaction_by_sql(self):
        before = self.counter()
        self.by(1, '/sql', {'statements': ['BEGIN', 'UPDATE counters SET n = n + 1 WHERE id = 1']})
        self.by(2, '/autocommit_seen')
        self.assertEqual(self.counter(), before)

    def test_unread_rows_end_the_session(self):
        """I5: a session with unread rows is ended at the server, not handed on."""
        first = self.by(1, '/unread')['id']
        second = self.by(2, '/rows', ids='5', token='t')
        self.assertEqual(second['rows'], [[5, self.nonces[5], 't']])
        self.assertNotEqual(second['id'], first)
        self.assertNotIn(first, self.sessions())


class OneSession_mysqlclient(OneSession, unittest.TestCase):
    driver = 'mysqlclient'


class OneSession_pymysql(OneSession, unittest.TestCase):
    driver = 'pymysql'


class OneSession_alternating(OneSession, unittest.TestCase):
    """Worker 1 has mysqlclient, worker 2 PyMySQL: the same server session serves both in turn."""

    uwsgi_options = {'lazy-apps': True}
    given = {'per_worker': {'1': {'driver': 'mysqlclient'}, '2': {'driver': 'pymysql'}}}

    def test_both_drivers_on_one_connection_id(self):
        self.assertIn('pymysql', self.by(2, '/versions')['file'])
        self.assertIn('MySQLdb', self.by(1, '/versions')['file'])
        ids = set()
        for turn in range(6):
            answer = self.by(turn % 2 + 1, '/rows', ids='%d,2,3' % (turn + 1), token='turn %d' % turn)
            self.assertEqual(answer['rows'],
                             [[pk, self.nonces[pk], 'turn %d' % turn] for pk in (turn + 1, 2, 3)])
            ids.add(answer['id'])
        self.assertEqual(len(ids), 1)


class Isolated(WithServer, unittest.TestCase):
    """Two aliases are two pools, each with its own cap."""

    def test_two_pools(self):
        databases = {'default': self.database({'pool_size': 1, 'max_overflow': 0, 'timeout': 30}),
                     'other': self.database({'pool_size': 2, 'max_overflow': 0, 'timeout': 30}, NAME='mysql')}
        for mode in MODES:
            with self.subTest(mode), self.make_uwsgi('mysqlclient', mode, databases) as uwsgi:
                one = self.run_sql(uwsgi, 'SELECT DATABASE()')
                other = self.run_sql(uwsgi, 'SELECT DATABASE()', alias='other')
                self.assertEqual((one['results'], other['results']), ([[['app']]], [[['mysql']]]))
                self.assertNotEqual(one['id'], other['id'])
                self.assertEqual((self.whole(uwsgi)['max'], self.whole(uwsgi, 'other')['max']), (1, 2))
