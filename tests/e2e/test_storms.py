# SPDX-License-Identifier: MIT
"""Kill storms: workers, the connector and sessions die all the time under load, and every answer is checked.

DBPOOL_STORM_SECONDS (per configuration) and DBPOOL_SEED steer it; each prints one line of what it did. What must hold:

  I1, I5  no reply of another request's (crosstalk), no session with two holders (double)
  I2      afterwards every place of the pool can be leased at once, nobody waits
  I3      the server never counts more of the pool's sessions than the cap
  I6      of each transaction all is there or nothing, and nothing of one that was not committed
  errors  only for requests whose worker or session was killed, or that waited for a connector that was
"""

import os
import random
import re
import signal
import time
import unittest
import uuid
from contextlib import suppress

from tests.e2e.base import DATABASE, USER, WithServer
from tests.e2e.storming import BROKEN, Census, Load, Storming
from tests.support import in_background, start_time, wait_until

SECONDS = float(os.environ.get('DBPOOL_STORM_SECONDS') or 12)
SEED = int(os.environ.get('DBPOOL_SEED') or random.SystemRandom().randrange(10**9))

class Storm(Storming, WithServer):
    processes = 3
    cap = 6
    clients = 24
    hows = ('commit', 'commit', 'commit', 'rollback', 'leave')
    driver = 'mysqlclient'
    options = {}
    given = {}
    seconds = SECONDS
    harakiri_s = 2
    enough = 50  # good answers
    enough_samples = 20  # looks at the server's list

    def setUp(self):
        self.make_storm_table()
        self.chance = random.Random(SEED)
        self.killed = set()  # processes
        self.ended = set()  # sessions that the test killed at the server
        self.connector_ended = []  # when it killed the connector
        self.counts = dict.fromkeys(('worker', 'session', 'stop', 'connector', 'harakiri'), 0)
        self.census = Census(self.server, self.cap)  # logs in before a crowd takes all connections (worlds.py)
        size = self.cap - self.cap // 3
        pool = {'pool_size': size, 'max_overflow': self.cap - size, 'timeout': 60}
        options = {'module': 'storm:application', 'harakiri': self.harakiri_s, **self.options}
        self.uwsgi = self.entered(self.make_uwsgi(self.driver, self.mode, {'default': self.database(pool)},
                                                  self.processes, options, self.given))

    # ---- the faults ----

    def workers(self):
        """Those that serve now."""
        return [w['pid'] for w in self.uwsgi.stats()['workers']
                if w['pid'] and w['accepting'] and w['apps'] and start_time(w['pid'])]

    def kill_worker(self):
        pids = self.workers()
        if len(pids) < 2:
            return  # somebody must be there to go on, also where a new one needs seconds to start
        pid = self.chance.choice(pids)
        self.killed.add(pid)
        os.kill(pid, signal.SIGKILL)
        self.counts['worker'] += 1

    def stop_worker(self):
        pid = self.chance.choice(self.workers() or [0])
        if not pid:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(0.05 + 0.7 * self.chance.random())
            finally:
                os.kill(pid, signal.SIGCONT)
            self.counts['stop'] += 1

    def kill_connector(self):
        for pid in self.uwsgi.helper_pids():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
                self.counts['connector'] += 1
                self.connector_ended.append(time.monotonic())

    def kill_sessions(self):
        """Those that somebody has had: a login that fails is told to all that wait for it, whose id nobody knows."""
        had = {asked.page.get('id') for asked in self.load.done if asked.page}
        ids = [pk for pk, in self.server.query(
            'SELECT id FROM information_schema.processlist WHERE user = %s AND db = %s', (USER, DATABASE)) if pk in had]
        for pk in self.chance.sample(ids, min(len(ids), self.chance.randint(1, 3))):
            self.ended.add(pk)
            with suppress(Exception):  # it has just gone by itself
                self.server.kill_session(pk)
                self.counts['session'] += 1

    def get_stuck(self):
        """Requests that only harakiri ends, and nothing else kills workers until it came; but the connector dies.

        uWSGI 2.0.21 has one harakiri for all requests of a worker, and any that ends cancels it: so the others pause.
        A prefork worker has one request."""
        if self.counts['harakiri'] and (self.counts['harakiri'] > self.seconds / 20 or
                                        self.end - time.monotonic() < 2 * self.harakiri_s):
            return
        if self.mode != 'prefork':
            self.load.pause()
        pages = [in_background(self.uwsgi.get, '/stuck', nonce=uuid.uuid4().hex, s=300)
                 for _ in range(1 if self.mode == 'prefork' else self.cap)]
        time.sleep(self.harakiri_s * self.chance.random())
        self.kill_connector()
        for page in pages:
            with self.assertRaises(BROKEN) as ended:
                page.result(90)
            self.assertNotIsInstance(ended.exception, TimeoutError)
        self.load.go_on()
        self.counts['harakiri'] += 1

    def faults(self):
        return [self.kill_worker, self.kill_worker, self.kill_sessions, self.kill_sessions, self.stop_worker,
                self.stop_worker, self.kill_connector, self.get_stuck]

    def storm(self):
        self.end = time.monotonic() + self.seconds
        faults = self.faults()
        bag = []
        # Each kind at least once, and enough looks, however slow the machine is.
        while (time.monotonic() < self.end or not all(self.counts.values()) or
               self.census.samples <= self.enough_samples and self.census.is_alive()):
            self.assertLess(time.monotonic(), self.end + 90, 'the storm does not come about: %r' % self.counts)
            if not bag:
                bag = self.chance.sample(faults, len(faults))
            time.sleep(0.3 * self.chance.random())
            bag.pop()()

    # ---- the verdict ----

    def of_harakiri(self):
        return {int(pid) for pid in re.findall(r'HARAKIRI ON WORKER \d+ \(pid: (\d+)', self.uwsgi.log())}

    def judge(self, asked):
        """Why this answer may not be, or None."""
        if isinstance(asked.answer, BROKEN) and not isinstance(asked.answer, TimeoutError):
            pid = self.noted.get(asked.nonce)
            # Without a note the request never began: it was in the accepted connections of a worker that died.
            return None if pid is None or pid in self.killed else 'no answer from %d, which was not killed' % pid
        why = self.wrong(asked)
        if why is None and asked.error and asked.page.get('id') not in self.ended and not self.of_connector(asked):
            why = 'an error, and nobody killed its session'
        return why

    def of_connector(self, asked):
        """The answer says what came of the connector's death, and that is so."""
        if 'the connector process died while it logged in' in asked.page['text']:
            return len(self.connector_ended) > 1  # the first time the login is begun again
        # A master that stands still, or has no processor, starts no other. It has three seconds.
        return ('the connector process, a child of the uWSGI master, does not run' in asked.page['text'] and
                any(ended + 3 <= asked.ended for ended in self.connector_ended))

    def read_notes(self):
        self.noted = {}
        with open(os.path.join(self.meet, 'notes')) as f:
            for line in f:
                nonce, pid = line.split()
                self.noted[nonce] = int(pid)

    def test_storm(self):
        try:
            self.run_storm()
        except BaseException:
            print('storm: DBPOOL_SEED=%d' % SEED, flush=True)
            raise

    def run_storm(self):
        census = self.census
        census.start()
        self.load = load = Load(self.uwsgi, SEED, self.clients, self.hows)
        try:
            self.storm()
        finally:
            load.stop()
        wait_until(lambda: len(self.workers()) == self.processes, 60, 'all workers are there again')
        wait_until(lambda: len(self.uwsgi.helper_pids()) == 1, 60, 'and the connector')
        self.uwsgi.note_processes()
        whole = self.whole(self.uwsgi)
        self.all_at_once(self.uwsgi, self.cap)
        census.stop()

        self.killed |= self.of_harakiri()
        self.read_notes()
        good = [asked.page for asked in load.done if asked.page]
        crosstalk = [page for page in good if page['crosstalk']]
        double = [page for page in good if page['double']]
        wrong = [(why, asked) for asked in load.done for why in [self.judge(asked)] if why]
        print('storm: leases=%d kills=%d lost=%d double=%d crosstalk=%d (%s; %d requests, %d cut off, %d errors; server '
              'sessions: peak %d, cap %d)'
              % (whole['acquires'], sum(self.counts.values()) - self.counts['stop'], whole['size'] - whole['idle'],
                 len(double), len(crosstalk), ', '.join('%s %d' % item for item in sorted(self.counts.items())),
                 len(load.done), len(load.done) - len(good), sum(asked.error is not None for asked in load.done),
                 census.peak, self.cap), flush=True)
        self.assertEqual(crosstalk, [])
        self.assertEqual(double, [])
        self.assertEqual(wrong, [])
        self.assertIsNone(census.failed)
        self.assertLessEqual(census.peak, self.cap, 'more sessions than the cap')
        self.assertGreater(sum(not page.get('error') for page in good), self.enough,
                           'too little happened for this to mean anything')
        self.check_transactions(load.done)


class Gevent(Storm, unittest.TestCase):
    """Worker 2 has another driver than its siblings: both use the same sessions in turn."""

    mode = 'gevent'
    hows = Storm.hows + ('timeout',)
    options = {'lazy-apps': True}
    given = {'per_worker': {'2': {'driver': 'pymysql'}}}


class Threads(Storm, unittest.TestCase):
    mode = 'threads'
    driver = 'pymysql'


class Prefork(Storm, unittest.TestCase):
    mode = 'prefork'
    processes = 6
    cap = 4
