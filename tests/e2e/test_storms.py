# SPDX-License-Identifier: MIT
"""Kill storms: workers, the connector and sessions die all the time under load, and every answer is checked.

DBPOOL_STORM_SECONDS (per configuration) and DBPOOL_SEED steer it; each prints one line of what it did. What must hold:

  I1, I5  no reply of another request's (crosstalk), no session with two holders (double)
  I2      afterwards every place of the pool can be leased at once, nobody waits
  I3      the server never counts more of the pool's sessions than the cap
  I6      of each transaction all is there or nothing, and nothing of one that was not committed
  errors  only for requests whose worker or session was killed
"""

import http.client
import os
import random
import re
import signal
import threading
import time
import unittest
from contextlib import suppress

from tests.e2e.base import DATABASE, USER, WithServer
from tests.support import in_background, start_time, wait_until

SECONDS = float(os.environ.get('DBPOOL_STORM_SECONDS') or 12)
SEED = int(os.environ.get('DBPOOL_SEED') or random.SystemRandom().randrange(10**9))

BROKEN = (OSError, http.client.HTTPException)  # what a client sees of a worker that died with its request
HARAKIRI_S = 2
# A session that the server still lists after it has hung up: it leaves the list a moment later, on a busy machine some
# moments. Only sessions that all stay for so long together are more than the cap.
LAG_S = 0.5


class Census(threading.Thread):
    """The server's own count, all the time: the pool's sessions are in DATABASE, the logins that carry a KILL are not."""

    def __init__(self, server, cap):
        super().__init__(daemon=True)
        self.connection = server.connect()
        self.cap = cap
        self.peak = 0
        self.samples = 0
        self.over = None  # sessions that were more than the cap together for LAG_S
        self.failed = None
        self._seen = []  # (when, set of ids) of the last LAG_S
        self._enough = threading.Event()

    def run(self):
        try:
            with self.connection.cursor() as cursor:
                while not self._enough.wait(0.01):
                    cursor.execute("SELECT id FROM information_schema.processlist WHERE user = %s AND db = %s AND "
                                   "command <> 'Killed'", (USER, DATABASE))
                    self._note(time.monotonic(), {row[0] for row in cursor.fetchall()})
        except Exception as error:
            self.failed = error
        finally:
            self.connection.close()

    def _note(self, now, ids):
        self.samples += 1
        self.peak = max(self.peak, len(ids))
        self._seen.append((now, ids))
        while len(self._seen) > 2 and self._seen[1][0] < now - LAG_S:
            del self._seen[0]
        if now - self._seen[0][0] >= LAG_S:
            together = set.intersection(*(seen for _, seen in self._seen))
            if len(together) > self.cap:
                self.over = sorted(together)

    def stop(self):
        self._enough.set()
        self.join(30)


class Load:
    """So many clients that ask without a pause. Each answer is kept with its question, to be judged afterwards."""

    def __init__(self, uwsgi, seed, clients, hows, slow=0.1):
        self.uwsgi = uwsgi
        self.hows = hows
        self.slow = slow
        self.done = []  # (question, answer or exception)
        self._changed = threading.Condition()  # guards the next three
        self._paused = self._over = False
        self._asking = 0
        self._threads = [threading.Thread(target=self._run, args=(random.Random(seed + n),), daemon=True)
                         for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, chance):
        while self._begin():
            question = {'nonce': '%032x' % chance.getrandbits(128), 'how': chance.choice(self.hows),
                        'ids': ','.join(str(chance.randint(1, 500)) for _ in range(3)), 'mark': chance.randint(0, 1),
                        'pause': 0.1 * chance.random() if chance.random() < self.slow else 0}
            try:
                answer = self.uwsgi.get('/storm', **question)
            except Exception as error:
                answer = error
            self.done.append((question, answer))
            with self._changed:
                self._asking -= 1
                self._changed.notify_all()
            if isinstance(answer, ConnectionRefusedError):
                time.sleep(0.01)

    def _begin(self):
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self._paused)
            self._asking += not self._over
            return not self._over

    def _set(self, paused, over):
        """Once no request is under way."""
        with self._changed:
            self._paused, self._over = paused, over
            self._changed.notify_all()
            if (paused or over) and not self._changed.wait_for(lambda: self._asking == 0, 90):
                raise AssertionError('requests without an answer')

    def pause(self):
        self._set(True, False)

    def go_on(self):
        self._set(False, False)

    def stop(self):
        self._set(False, True)


class Storm(WithServer):
    processes = 3
    cap = 6
    clients = 24
    hows = ('commit', 'commit', 'commit', 'rollback', 'leave')
    driver = 'mysqlclient'
    options = {}
    given = {}

    def setUp(self):
        self.server.query('CREATE TABLE %s.storm (nonce CHAR(32), step INT, PRIMARY KEY (nonce, step)) ENGINE=InnoDB'
                          % DATABASE)
        self.chance = random.Random(SEED)
        self.killed = set()  # processes
        self.ended = set()  # sessions that the test killed at the server
        self.stuck = 0
        self.counts = dict.fromkeys(('worker', 'session', 'stop', 'connector', 'harakiri'), 0)
        size = self.cap - self.cap // 3
        pool = {'pool_size': size, 'max_overflow': self.cap - size, 'timeout': 60}
        options = {'module': 'storm:application', 'harakiri': HARAKIRI_S, **self.options}
        self.uwsgi = self.entered(self.make_uwsgi(self.driver, self.mode, {'default': self.database(pool)},
                                                  self.processes, options, self.given))

    # ---- the faults ----

    def workers(self):
        pids = self.uwsgi.worker_pids()
        return [pid for pid in pids.values() if start_time(pid)]

    def kill_worker(self):
        pids = self.workers()
        if len(pids) < 2:
            return  # somebody must be there to take the connections
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

    def kill_sessions(self):
        ids = [row[0] for row in self.server.query(
            'SELECT id FROM information_schema.processlist WHERE user = %s AND db = %s', (USER, DATABASE))]
        for pk in self.chance.sample(ids, min(len(ids), self.chance.randint(1, 3))):
            self.ended.add(pk)
            with suppress(Exception):  # it has just gone by itself
                self.server.kill_session(pk)
                self.counts['session'] += 1

    def get_stuck(self):
        """Requests that only harakiri ends, and nothing else kills workers until it came; but the connector dies.

        uWSGI 2.0.21 has one harakiri for all requests of a worker, and any that ends cancels it: so the others pause.
        A prefork worker has one request."""
        if self.stuck > SECONDS / 20 or self.end - time.monotonic() < 2 * HARAKIRI_S:
            return
        self.stuck += 1
        if self.mode != 'prefork':
            self.load.pause()
        pages = [in_background(self.uwsgi.get, '/stuck', nonce='%032x' % self.chance.getrandbits(128), s=300)
                 for _ in range(1 if self.mode == 'prefork' else self.cap)]
        time.sleep(HARAKIRI_S * self.chance.random())
        self.kill_connector()
        for page in pages:
            with self.assertRaises(BROKEN) as ended:
                page.result(90)
            self.assertNotIsInstance(ended.exception, TimeoutError)
        self.load.go_on()

    def storm(self):
        self.end = time.monotonic() + SECONDS
        faults = [self.kill_worker, self.kill_worker, self.kill_sessions, self.kill_sessions, self.stop_worker,
                  self.stop_worker, self.kill_connector, self.get_stuck]
        bag = []
        while time.monotonic() < self.end:
            if not bag:
                bag = self.chance.sample(faults, len(faults))
            time.sleep(0.3 * self.chance.random())
            bag.pop()()

    # ---- the verdict ----

    def of_harakiri(self):
        return {int(pid) for pid in re.findall(r'HARAKIRI ON WORKER \d+ \(pid: (\d+)', self.uwsgi.log())}

    def judge(self, question, answer):
        """Why this answer may not be, or None."""
        if isinstance(answer, BROKEN) and not isinstance(answer, TimeoutError):
            pid = self.noted.get(question['nonce'])
            # Without a note the request never began: it was in the accepted connections of a worker that died.
            return None if pid is None or pid in self.killed else 'no answer from %d, which was not killed' % pid
        if isinstance(answer, Exception):
            return repr(answer)
        if answer.status != 200:
            return repr(answer)
        answer = answer.json()
        if answer['nonce'] != question['nonce']:
            return "another request's answer"
        if 'error' in answer:
            mine = answer.get('id') in self.ended
            return None if mine and answer['error'] in ('OperationalError', 'InterfaceError') else 'an error'
        if answer['rows'] != [[int(pk), self.nonces[int(pk)]] for pk in question['ids'].split(',')]:
            return 'wrong rows'
        return None

    def read_notes(self):
        self.noted = {}
        with open(os.path.join(self.meet, 'notes')) as f:
            for line in f:
                nonce, pid = line.split()
                self.noted[nonce] = int(pid)

    def check_transactions(self, done):
        steps = {}
        for nonce, step in self.server.query('SELECT nonce, step FROM %s.storm' % DATABASE):
            steps.setdefault(nonce, []).append(step)
        for question, answer in done:
            found = sorted(steps.get(question['nonce'], []))
            finished = not isinstance(answer, Exception) and 'error' not in answer.json()
            if question['how'] != 'commit':
                allowed = [[]]
            else:  # killed between the COMMIT and its answer: nobody can know
                allowed = [[1, 2]] if finished else [[], [1, 2]]
            self.assertIn(found, allowed, 'of %r, answered by %r' % (question, answer))

    def all_at_once(self):
        """I2: as many pages as the cap hold a session each, at the same time."""
        names = [self.new_name() for _ in range(self.cap)]
        pages = [in_background(self.uwsgi.get, '/hold', meet=name) for name in names]
        try:
            for name in names:
                self.here(name)
        finally:
            for name in names:
                self.go(name)
        ids = {page.result().json()['id'] for page in pages}
        self.assertEqual(len(ids), self.cap)

    def test_storm(self):
        try:
            self.run_storm()
        except BaseException:
            print('storm: DBPOOL_SEED=%d' % SEED, flush=True)
            raise

    def run_storm(self):
        census = Census(self.server, self.cap)
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
        census.stop()

        self.killed |= self.of_harakiri()
        self.counts['harakiri'] = len(self.of_harakiri())
        self.read_notes()
        good = [answer.json() for _, answer in load.done if getattr(answer, 'status', 0) == 200]
        crosstalk = [answer for answer in good if answer['crosstalk']]
        double = [answer for answer in good if answer['double']]
        wrong = [(why, question, getattr(answer, 'body', answer)) for question, answer in load.done
                 for why in [self.judge(question, answer)] if why]
        print('storm: leases=%d kills=%d lost=%d double=%d crosstalk=%d (%s; %d requests, %d cut off, %d errors; server '
              'sessions: peak %d, cap %d)'
              % (whole['acquires'], sum(self.counts.values()) - self.counts['stop'], whole['size'] - whole['idle'],
                 len(double), len(crosstalk), ', '.join('%s %d' % item for item in sorted(self.counts.items())),
                 len(load.done), sum(isinstance(answer, Exception) for _, answer in load.done),
                 sum('error' in answer for answer in good), census.peak, self.cap), flush=True)
        self.assertEqual(crosstalk, [])
        self.assertEqual(double, [])
        self.assertEqual(wrong, [])
        self.assertIsNone(census.failed)
        self.assertGreater(census.samples, SECONDS)
        self.assertIsNone(census.over, 'more sessions than the cap')
        # So that nothing of this is about an idle machine.
        self.assertGreater(len(good), 10 * SECONDS)
        self.assertGreater(min(self.counts.values()), 0, self.counts)
        self.check_transactions(load.done)
        self.all_at_once()
        self.assertLessEqual(len(self.whole(self.uwsgi) and self.sessions()), self.cap)


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
