# SPDX-License-Identifier: MIT
"""Exceptions from outside at every moment of a query: gevent.Timeout, kill(), a signal handler's, KeyboardInterrupt.

They come out as themselves; that session is ended at the server, so that no query goes on and no row stays locked; the
pool is whole afterwards, and nothing was committed.
"""

import unittest

from tests.e2e.base import USER, WithUwsgi, matrix
from tests.support import wait_until

STEPS = 40
UNTIL = 0.25  # seconds: a query takes some 50 ms when the machine has nothing else to do


class Moments(WithUwsgi):
    pool = {'pool_size': 2, 'max_overflow': 0, 'timeout': 60}
    processes = 1
    hows = {}

    def test_at_any_moment(self):
        before = self.counter()
        for how, name in self.hows.items():
            with self.subTest(how):
                answer = self.uwsgi.get('/moments', how=how, steps=STEPS, until=UNTIL, timeout=300)
                self.assertEqual(answer.status, 200, answer)
                outcomes = [tuple(outcome) for outcome in answer.json()['outcomes']]
                # Nothing else came out, and the steps went through the whole query on this machine, or nearly.
                self.assertEqual(set(outcomes) - {(name,), ('finished',)}, set())
                self.assertGreater(outcomes.count((name,)), STEPS // 20)
                self.ended()
        self.assertEqual(self.counter(), before)

    def ended(self):
        pool = self.whole(self.uwsgi)
        self.assertEqual(pool['closing'], 0)
        # What the server has is what the pool has, and it does nothing.
        wait_until(lambda: sorted(self.sessions().values()) == ['Sleep'] * pool['size'], 30, 'no query goes on')
        self.server.query('SET SESSION innodb_lock_wait_timeout = 1')
        self.server.query('UPDATE counters SET n = n WHERE id = 1')
        self.assertEqual(self.server.query(
            'SELECT COUNT(*) FROM information_schema.innodb_trx t JOIN information_schema.processlist p ON '
            't.trx_mysql_thread_id = p.id WHERE p.user = %s', (USER,)), ((0,),))
        nonces = [[pk, self.nonces[pk], 't'] for pk in (1, 2, 3)]
        for _ in range(4):
            self.assertEqual(self.uwsgi.get('/rows', ids='1,2,3', token='t').json()['rows'], nonces)


@matrix(modes=['gevent'])
class InGreenlets(Moments):
    hows = {'timeout': 'Timeout', 'kill': 'GreenletExit'}


@matrix(modes=['prefork', 'gevent'])
class BySignals(Moments):
    """Python runs signal handlers in the main thread only: not in the mode threads."""

    hows = {'alarm': 'Alarmed', 'interrupt': 'KeyboardInterrupt'}


class Fallback(Moments, unittest.TestCase):
    """Without the client library's help the query's answer is waited for outside of it, and read in one piece."""

    driver = 'mysqlclient'
    mode = 'gevent'
    environ = {'DBPOOL_FORCE_FALLBACK': '1'}
    hows = {'timeout': 'Timeout', 'kill': 'GreenletExit'}


if __name__ == '__main__':
    unittest.main()
