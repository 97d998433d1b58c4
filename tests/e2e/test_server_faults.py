# SPDX-License-Identifier: MIT
"""The server or the network goes, under load and idle: killed, restarted, frozen, cut, stalled, half closed.

After each the pool recovers by itself and its capacity is whole. A request that starts when the fault is over never
sees it; one that met it gets an error within its time-outs, never another's data."""

import os
import random
import signal
import time
import unittest

from tests.e2e.base import DATABASE, WithServer, matrix
from tests.e2e.storming import Load, Storming
from tests.support import Proxy, all_threads_stopped, concurrently, in_background, wait_until

IDLE = 20
TIMEOUT_S = 2  # of each read, write and login: long enough for a busy machine, and a freeze is waited out several times


class Faults(Storming, WithServer):
    processes = 2
    clients = 5  # fewer than the threads of two workers: a frozen server must leave some for /ping
    pool = {'pool_size': IDLE, 'max_overflow': 0, 'timeout': 60, 'min_size': IDLE}
    hows = ('commit', 'commit', 'rollback', 'leave')

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.make_storm_table(cls)
        entry = cls.database(cls.pool, options=dict.fromkeys(('connect_timeout', 'read_timeout', 'write_timeout'),
                                                             TIMEOUT_S))
        entry['PORT'] = cls.port()
        cls.uwsgi = cls.enter(cls.make_uwsgi(cls.driver, cls.mode, {'default': entry}, cls.processes,
                                             {'module': 'storm:application'}))

    @classmethod
    def port(cls):
        return cls.server.port

    def setUp(self):
        self.fill()

    def tearDown(self):
        self.fill()
        wait_until(lambda: len(self.sessions()) <= IDLE, 30, 'the server has no more sessions than the cap')

    def fill(self):
        """All sessions are there and idle; the first request of an instance brings the floor."""
        def full():
            pool = self.uwsgi.pool()
            return pool.get('idle') == IDLE and pool['leased'] == pool['waiting'] == 0
        if not full():
            self.works()
            wait_until(full, 60, 'the pool is whole: %r' % self.uwsgi.pool())

    def works(self, n=2 * IDLE):
        """Zero errors."""
        for answer in concurrently(lambda _: self.uwsgi.get('/rows', ids='1,2,3', token='t'), [None] * n, 8):
            self.assertEqual(getattr(answer, 'status', answer), 200, answer)
            self.assertEqual(answer.json()['rows'], [[pk, self.nonces[pk], 't'] for pk in (1, 2, 3)])

    def load(self):
        load = Load(self.uwsgi, random.randrange(2**32), self.clients, self.hows)
        self.addCleanup(load.stop)
        wait_until(lambda: len(load.done) > 4 * self.clients, 60, 'requests run')
        return load

    def goes_on(self, load):
        """The load runs well now; ends it."""
        before = len(load.done)
        wait_until(lambda: len(load.done) > before + 8 * self.clients, 60, 'requests run again')
        load.stop()
        self.assertGreater(sum(bool(asked.page) for asked in load.done), 4 * self.clients)

    def judge(self, load, began, over):
        """Errors only where a request was under way between the two moments."""
        for asked in load.done:
            self.assertIsNone(self.wrong(asked), asked)
            if asked.error and not (asked.started <= over and asked.ended >= began):
                self.fail('an error outside of %.3f to %.3f: %r' % (began, over, asked))
        self.check_transactions(load.done)

    def failing(self, load, n):
        """Waits until so many more requests have failed."""
        before = sum(asked.error is not None for asked in load.done)
        wait_until(lambda: sum(asked.error is not None for asked in load.done) >= before + n, 60, 'requests fail')

    def settled(self, load):
        """A login or a KILL that was under way when the fault ended may still time out."""
        wait_until(lambda: load.done[-1].page and not load.done[-1].error, 60, 'an answer')
        wait_until(lambda: self.uwsgi.pool()['closing'] == self.uwsgi.pool()['opening'] == 0, 60, 'nothing is left over')


@matrix(drivers=('mysqlclient',), modes=('gevent',))
@matrix(drivers=('pymysql',), modes=('threads',))
class Server(Faults):
    hows_of_down = ('stop', 'kill')

    def down(self, how):
        self.server.stop() if how == 'stop' else self.server.kill()

    def test_idle_sessions_and_a_restart(self):
        """Not one error to requests that start after the server is back."""
        for how in self.hows_of_down:
            with self.subTest(how):
                before = set(self.sessions())
                self.assertEqual(len(before), IDLE)
                self.down(how)
                self.server.start()
                self.works()
                self.fill()

    def test_restart_under_load(self):
        for how in self.hows_of_down:
            with self.subTest(how):
                load = self.load()
                began = time.monotonic()
                self.down(how)
                self.failing(load, self.clients)
                self.server.start()
                over = time.monotonic()
                self.goes_on(load)
                self.judge(load, began, over)
                self.fill()

    def freeze(self):
        pid = self.server.pid
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: all_threads_stopped(pid), 30, 'the server stands still')

    def thaw(self):
        os.kill(self.server.pid, signal.SIGCONT)

    def tearDown(self):
        if self.server.is_running():
            self.thaw()  # a test that failed has left it as it was, and what follows asks it
        super().tearDown()

    def test_frozen(self):
        """Requests end by their time-outs, pages without database go on, and all is well when the server goes on."""
        load = self.load()
        began = time.monotonic()
        self.freeze()
        for _ in range(2):
            self.failing(load, self.clients)
            self.assertEqual(self.uwsgi.get('/ping').status, 200)
        self.thaw()
        self.settled(load)
        over = time.monotonic()
        self.goes_on(load)
        self.judge(load, began, over)

    def test_frozen_then_restarted(self):
        load = self.load()
        began = time.monotonic()
        self.freeze()
        self.failing(load, self.clients)
        self.server.kill()
        self.server.start()
        over = time.monotonic()
        self.goes_on(load)
        self.judge(load, began, over)

    def sum(self):
        return self.server.query('SELECT SUM(n) FROM %s.counters' % DATABASE)[0][0]

    def test_frozen_while_resetting(self):
        """The lease ends without waiting for the server; its transaction is undone when the server goes on."""
        before = self.sum()
        name = self.new_name()
        page = in_background(self.uwsgi.get, '/sql', {
            'statements': ['BEGIN', 'UPDATE counters SET n = n + 1 WHERE id = 1'], 'meet': name})
        self.here(name)
        self.freeze()
        self.go(name)
        self.assertNotIn('error', page.result().json())
        wait_until(lambda: self.uwsgi.pool()['resetting'] == 1, 30, 'the reset waits for the server')
        self.thaw()
        self.fill()
        self.assertEqual(self.sum(), before)


@matrix(drivers=('pymysql',), modes=('gevent',))
class Network(Faults):
    @classmethod
    def port(cls):
        cls.proxy = cls.enter(Proxy((cls.server.host, cls.server.port)))
        return cls.proxy.port

    def setUp(self):
        super().setUp()
        self.addCleanup(self.proxy.heal)

    def closed(self, n):
        """n more sessions have been seen to end."""
        before = self.uwsgi.pool()['closed']
        return lambda: wait_until(lambda: self.uwsgi.pool()['closed'] >= before + n, 60, 'the pool notices')

    def test_idle_sessions_cut(self):
        """In each of the ways in which a connection ends; the next request sees nothing of it."""
        for what in (self.proxy.drop, lambda: self.proxy.half_close('client'), lambda: self.proxy.half_close('server')):
            notices = self.closed(IDLE)
            what()
            notices()
            self.works()
            self.fill()
            wait_until(lambda: len(self.sessions()) <= IDLE, 30, 'the server lets go of them too')

    def test_dropped_under_load(self):
        """Every connection is reset at once: errors only to those that were on one."""
        for _ in range(2):
            load = self.load()
            notices = self.closed(IDLE)
            began = time.monotonic()
            self.proxy.drop()
            notices()
            over = time.monotonic()
            self.goes_on(load)
            self.judge(load, began, over)

    def test_cut_under_load(self):
        load = self.load()
        began = time.monotonic()
        self.proxy.cut()
        self.failing(load, 2 * self.clients)
        self.proxy.heal()
        over = time.monotonic()
        self.goes_on(load)
        self.judge(load, began, over)

    def test_stalled(self):
        """Nothing comes through, and nobody says so: the same as a frozen server, but with new connections accepted."""
        load = self.load()
        began = time.monotonic()
        self.proxy.stall()
        self.failing(load, self.clients)
        self.assertEqual(self.uwsgi.get('/ping').status, 200)
        self.proxy.heal()
        self.settled(load)
        over = time.monotonic()
        self.goes_on(load)
        self.judge(load, began, over)

    def test_stalled_and_restarted(self):
        """What waits to be killed at the old server is not killed at the next one, whose numbers are the same again."""
        self.server.restart()  # numbers from the beginning, both times
        self.fill()
        load = self.load()
        began = time.monotonic()
        self.proxy.stall()
        # Till all have met it: the proxy keeps the end of an idle one back as well, and would pass it on after the fault.
        wait_until(lambda: self.uwsgi.pool()['idle'] == 0, 60, 'every session has failed a request')
        self.server.restart()
        self.proxy.heal()
        over = time.monotonic()
        self.goes_on(load)
        self.judge(load, began, over)

    def test_stalled_then_cut(self):
        load = self.load()
        began = time.monotonic()
        self.proxy.stall()
        self.failing(load, self.clients)
        self.proxy.cut()
        self.failing(load, self.clients)
        self.proxy.heal()
        over = time.monotonic()
        self.goes_on(load)
        self.judge(load, began, over)

    def test_slow(self):
        """A long way to the server costs time and nothing else."""
        self.proxy.delay = 0.005
        self.addCleanup(setattr, self.proxy, 'delay', 0.0)
        load = self.load()
        self.goes_on(load)
        self.judge(load, 0, 0)
