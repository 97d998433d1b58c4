# SPDX-License-Identifier: MIT
"""fork and exec inside a worker that holds a lease (I11): the child never uses or ends the parent's session, gets one of
its own when it asks, and no session's fd is in a child that executes something else, nor in what the master forks."""

import collections
import json
import os
import signal
import sys
import threading
import time
import unittest
import uuid

from tests.e2e.base import DATABASE, DRIVERS, MODES, WithServer
from tests.support import concurrently, fd_census, in_background, is_alive, session_sockets, wait_until
from tests.support.procs import children

POOL = {'pool_size': 3, 'max_overflow': 0, 'timeout': 30}

# Says which files it has open, in FILE-PID; then it ends or stays.
FDS = """
import json, os, sys, time
found = []
for name in os.listdir('/proc/self/fd'):
    try:
        found.append(os.readlink('/proc/self/fd/' + name))
    except OSError:
        pass
path = %r + '-%%d' %% os.getpid()
with open(path + '.new', 'w') as f:
    json.dump(found, f)
os.rename(path + '.new', path)
while %r:
    time.sleep(60)
"""

# (how, what the child does, how it ends)
CHILDREN = [(how, what, end) for how in ('fork', 'original') for what, end in (
    ('', '_exit'), ('', 'exit'), ('', 'exec'), ('steal', '_exit'), ('drop', '_exit'), ('steal,close,drop', 'exit'),
    ('own,close', '_exit'), ('own', '_exit'), ('own', 'exit'), ('steal,own,close,drop', 'exit'))]
CHILDREN += [('multiprocessing', what, '') for what in ('', 'steal,drop', 'own', 'own,close')]
CHILDREN += [('spawn', 'own', ''), ('subprocess', '', '')]

# What a child hears that uses its parent's: never a result.
REFUSALS = {'InterfaceError', 'OperationalError', 'ProgrammingError'}


class WithForks(WithServer):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.query('CREATE TABLE %s.forks (nonce CHAR(32) PRIMARY KEY) ENGINE=InnoDB' % DATABASE)

    @classmethod
    def serve(cls, driver, mode, options=None, pool=None, **more):
        return cls.make_uwsgi(driver, mode, {'default': cls.database(pool or POOL)}, 2,
                              {'module': 'forks:application', **(options or {})}, **more)

    def sessions_of_master(self, uwsgi):
        return set(session_sockets(uwsgi.pid, self.server.port).values())

    def committed(self, nonce='%'):
        return self.server.query('SELECT COUNT(*) FROM %s.forks WHERE nonce LIKE %%s' % DATABASE, (nonce,))[0][0]

    def fork(self, uwsgi, how, **more):
        nonce = uuid.uuid4().hex
        answer = uwsgi.get('/fork', how=how, nonce=nonce, **more)
        self.assertEqual(answer.status, 200, answer)
        answer = answer.json()
        self.assertEqual((answer['before'], answer['mine'], answer['rows']), (answer['after'], nonce, 1),
                         "the parent's session and its transaction are untouched")
        self.assertEqual(self.committed(nonce), 1)
        return answer


class Forks(WithForks, unittest.TestCase):
    """One instance holds every session until its cron job has run, which takes up to a minute; other tests meanwhile."""

    names = ()
    pages = ()

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        spool = os.path.join(cls.meet, 'spool')
        os.mkdir(spool)
        # The next minute, unless that begins before the sessions can be there.
        minute = time.localtime(time.time() + 20 + 60).tm_min
        cls.uwsgi = cls.enter(cls.serve('mysqlclient', 'gevent', {
            'mule': cls.script('mule', True), 'spooler': spool, 'import': 'forks',
            'attach-daemon': 'exec %s %s' % (sys.executable, cls.script('daemon', True)),
            'cron': '%d -1 -1 -1 -1 %s %s' % (minute, sys.executable, cls.script('cron', False))}))

    @classmethod
    def script(cls, name, stays):
        path = os.path.join(cls.meet, name + '.py')
        with open(path, 'w') as f:
            f.write(FDS % (os.path.join(cls.meet, name), stays))
        return path

    def reports(self, name):
        """{pid: what it had open} of a script's processes so far."""
        found = {}
        for entry in os.listdir(self.meet):
            head, _, pid = entry.rpartition('-')
            if head == name and pid.isdigit():
                with open(os.path.join(self.meet, entry)) as f:
                    found[int(pid)] = json.load(f)
        return found

    def judge(self, uwsgi, answer, committed):
        child = answer['child']
        self.assertIsNotNone(child, 'the child did what it was told')
        self.assertEqual(self.sessions_of_master(uwsgi) & set(child['sockets']), set(), 'no session was inherited')
        for outcome in child.get('steal', ()):
            self.assertIn(outcome, REFUSALS)
        if 'own' in child:
            found, mine, seen = child['own']
            self.assertNotEqual(found, answer['before'])
            self.assertEqual((mine, seen), (None, committed), "another session, outside of the parent's transaction")

    def test_children(self):
        """Forked by the application itself."""
        self.hold_all()
        for driver in DRIVERS:
            for mode in MODES:
                with self.serve(driver, mode) as uwsgi:
                    for how, what, end in CHILDREN:
                        if how == 'original' and mode != 'gevent':
                            continue  # there it is the same
                        with self.subTest(driver=driver, mode=mode, how=how, what=what, end=end):
                            committed = self.committed()
                            self.judge(uwsgi, self.fork(uwsgi, how, what=what, end=end), committed)
                            uwsgi.note_processes()
                    self.whole(uwsgi)
                    self.assertLessEqual(len(self.sessions_of_master(uwsgi)), POOL['pool_size'])

    def hold_all(self):
        """Each session of the instance is in the middle of a transaction, until release_all()."""
        cls = type(self)
        if not cls.names:
            cls.names = [self.new_name() for _ in range(POOL['pool_size'])]
            cls.pages = [in_background(self.fork, self.uwsgi, 'meet', meet=name, timeout=300) for name in cls.names]
            for name in cls.names:
                self.addClassCleanup(self.go, name)
                self.here(name)
            self.assertEqual(self.reports('cron'), {}, 'the cron job came before there were sessions')
        sessions = self.sessions_of_master(self.uwsgi)
        self.assertEqual(len(sessions), POOL['pool_size'])
        return sessions

    def release_all(self):
        for name in self.names:
            self.go(name)
        for page in self.pages:
            page.result()  # has checked that its transaction was not disturbed
        type(self).names = ()
        self.whole(self.uwsgi)

    def test_respawned(self):
        """Mule, spooler, daemon and connector, each killed and started again by a master that holds sessions."""
        sessions = self.hold_all()
        workers = set(self.uwsgi.worker_pids().values())
        others = set(children(self.uwsgi.pid)) - workers
        self.assertEqual(len(others), 4)
        for pid in others:
            os.kill(pid, signal.SIGKILL)

        def all_again():
            pids = set(children(self.uwsgi.pid)) - workers - others
            # Both scripts run: by then every handler of the fork has run too.
            return len(pids) == 4 and all(pids & set(self.reports(name)) for name in ('mule', 'daemon')) and pids

        for pid in wait_until(all_again, 60, 'all are there again'):
            wait_until(lambda: not session_sockets(pid, self.server.port), 30, '%d has no session' % pid)
        self.uwsgi.note_processes()
        for name in ('mule', 'daemon'):
            for report in self.reports(name).values():
                self.assertEqual(sessions & set(report), set())

    def test_respawned_while_sessions_come_and_go(self):
        """The mule, again and again, while sessions are opened and ended all the time."""
        with self.serve('pymysql', 'gevent', {'mule': self.script('churned', True)},
                        {'pool_size': 1, 'max_overflow': 9, 'timeout': 60, 'overflow_grace': 0}) as uwsgi:
            stop = threading.Event()

            def ask():
                while not stop.is_set():
                    self.assertEqual(uwsgi.get('/rows', ids='1,2', token='t').status, 200)

            clients = [in_background(ask) for _ in range(8)]
            try:
                seen = []
                for n in range(1, 6):
                    mules = wait_until(lambda: len(self.reports('churned')) >= n and self.reports('churned'), 60, 'a mule')
                    mule, = (pid for pid in mules if is_alive(pid))
                    seen.append({target for target in mules[mule] if target.startswith('socket:')})
                    os.kill(mule, signal.SIGKILL)
                    wait_until(lambda: not is_alive(mule), 30, 'it is gone')
            finally:
                stop.set()
            for client in clients:
                client.result()
            # The first one was forked before there were sessions. (A session's fd would stay a socket after its end.)
            for sockets in seen:
                self.assertEqual(sockets - seen[0], set())
            wait_until(lambda: len(self.reports('churned')) == 6, 60, 'the last mule')
            uwsgi.note_processes()
            self.assertGreater(uwsgi.pool()['closed'], 10)

    def test_the_cron(self):
        sessions = self.hold_all()
        report, = wait_until(lambda: self.reports('cron'), 120, 'the cron job').values()
        self.assertEqual(sessions & set(report), set())
        self.release_all()


class LostChannel(WithForks, unittest.TestCase):
    """A worker whose channel to the broker was closed by its own application goes on, as another process to the broker."""

    @staticmethod
    def control_sockets(uwsgi):
        """How many of the master's sockets are of the kind that channels are (SOCK_SEQPACKET)."""
        with open('/proc/net/unix') as f:
            next(f)
            kinds = {'socket:[%s]' % fields[6]: fields[4] for fields in map(str.split, f)}
        return sum(kinds.get(target) == '0005' for target in fd_census(uwsgi.pid).values())

    def test_it_attaches_anew(self):
        for driver in DRIVERS:
            for mode in MODES:
                with self.subTest(driver=driver, mode=mode), \
                        self.make_uwsgi(driver, mode, {'default': self.database(POOL)}, 1,
                                        {'module': 'forks:application'}) as uwsgi:
                    for _ in range(3):
                        answers = concurrently(lambda n: uwsgi.get('/rows', ids='1,2', token='t'), range(12), 6)
                        self.assertEqual([answer.status for answer in answers], [200] * 12)
                        ends = self.control_sockets(uwsgi)
                        self.assertEqual(uwsgi.get('/lose').json()['lost'], 1)
                        # What is leased before the broker has seen it, it takes for a dead process's.
                        wait_until(lambda: self.control_sockets(uwsgi) == ends - 1, 30, 'the broker sees the end')
                    self.assertEqual(uwsgi.get('/rows', ids='1,2', token='t').status, 200)
                    self.whole(uwsgi)
                    self.assertEqual(uwsgi.pool()['kills'], 0)


class Crowd(WithForks, unittest.TestCase):
    """More children than there are slots for them: who holds nothing makes room, and comes back by itself."""

    def crowd(self, driver, mode, n):
        with self.serve(driver, mode) as uwsgi:
            answer = uwsgi.get('/crowd', n=n, timeout=300)
            self.assertEqual(answer.status, 200, answer)
            answer = answer.json()
            self.assertEqual(collections.Counter(answer['answers']), {'answered': 2 * n})
            self.assertEqual(answer['parent'], 'answered')
            self.whole(uwsgi)
            self.assertNotIn('damaged', uwsgi.log())

    def test_forty(self):
        for driver in DRIVERS:
            for mode in MODES:
                with self.subTest(driver=driver, mode=mode):
                    self.crowd(driver, mode, 40)

    def test_four_hundred(self):
        self.crowd('mysqlclient', 'prefork', 400)
