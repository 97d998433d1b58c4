# SPDX-License-Identifier: MIT
"""Exceptions from outside at every moment of a query: gevent.Timeout, kill(), a signal handler's, KeyboardInterrupt.

They come out as themselves; that session is ended at the server, so that no query goes on and no row stays locked; the
pool is whole afterwards, and nothing was committed.
"""

import tempfile
import unittest

from tests.e2e.base import DATABASE, USER, WithUwsgi, matrix
from tests.support import wait_until

STEPS = 12
UNTIL = 0.25  # seconds: a query takes some 50 ms when the machine has nothing else to do


class Moments(WithUwsgi):
    pool = {'pool_size': 2, 'max_overflow': 0, 'timeout': 60}
    processes = 1
    hows = {}
    least = 1
    server_options = ('--local-infile=1', '--innodb-lock-wait-timeout=3000')

    def test_at_any_moment(self):
        before = self.counter()
        for how, name in self.hows.items():
            with self.subTest(how):
                answer = self.uwsgi.get('/moments', how=how, steps=STEPS, until=UNTIL, timeout=300)
                self.assertEqual(answer.status, 200, answer)
                outcomes = [tuple(outcome) for outcome in answer.json()['outcomes']]
                # Nothing else came out, and the steps went through the whole query on this machine, or nearly.
                self.assertEqual(set(outcomes) - {(name,), ('finished',)}, set())
                self.assertGreaterEqual(outcomes.count((name,)), self.least)
                self.ended()
        self.assertEqual(self.counter(), before)

    @classmethod
    def make_uwsgi(cls, *args, **more):
        cls.server.query('CREATE TABLE held (id INT PRIMARY KEY) ENGINE=InnoDB')
        with tempfile.NamedTemporaryFile('w', dir=cls.meet, delete=False) as f:
            f.writelines('%d\n' % number for number in range(3000000))  # more than all buffers on the way
        databases = {'default': cls.database(cls.pool, options={'local_infile': True})}
        return super().make_uwsgi(cls.driver, cls.mode, databases, cls.processes, given={'load': f.name},
                                  environ=cls.environ)

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


class Loading(Moments):
    def test_while_load_data_local_waits(self):
        """The server waits for a lock that the test holds; the exception ends the sending all the same."""
        for how, name in self.hows.items():
            with self.subTest(how):
                kills = self.uwsgi.pool().get('kills', 0)
                keeper = self.server.connect(database=DATABASE)
                try:
                    cursor = keeper.cursor()
                    cursor.execute('BEGIN')
                    cursor.execute('INSERT INTO held VALUES (0)')
                    answer = self.uwsgi.get('/load', how=how, timeout=60)
                    self.assertEqual(answer.json()['outcome'], [name])
                    # By us. Where the driver waits on, TCP gives the connection up in the end, and nobody kills it.
                    wait_until(lambda: self.uwsgi.pool()['kills'] > kills, 30, 'the session is killed')
                finally:
                    keeper.close()
                self.ended()
                self.assertEqual(self.server.query('SELECT COUNT(*) FROM held'), ((0,),))


@matrix(modes=['gevent'])
class InGreenlets(Loading):
    hows = {'timeout': 'Timeout', 'kill': 'GreenletExit'}


@matrix(modes=['prefork'])
class BySignals(Loading):
    """Python runs signal handlers in the main thread only: not in the mode threads."""

    hows = {'alarm': 'Alarmed', 'interrupt': 'KeyboardInterrupt'}


@matrix(modes=['gevent'])
class BySignalsInGreenlets(Moments):
    """A handler that runs while the hub waits raises there, not in a greenlet (gevent reports it): the query goes on."""

    least = 0
    hows = {'alarm': 'Alarmed', 'interrupt': 'KeyboardInterrupt'}


class Fallback(Moments, unittest.TestCase):
    """Without the client library's help the query's answer is waited for outside of it, and read in one piece."""

    driver = 'mysqlclient'
    mode = 'gevent'
    environ = {'DBPOOL_FORCE_FALLBACK': '1'}
    hows = {'timeout': 'Timeout', 'kill': 'GreenletExit'}


if __name__ == '__main__':
    unittest.main()
