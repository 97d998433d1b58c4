# SPDX-License-Identifier: MIT
"""uWSGI's life around the pool: its processes end and begin again, each in its way, while statements wait for a row.

After each, no statement of a dead request is at the server or was executed, and nobody else's was hurt; the server
never had more of the pool's sessions than the cap; the files of the application are its own; no process of before is
left, and the master has as many fds as before. The lives below share the events among modes and options; each goes
through its own in one instance, whose master so lives through many.
"""

import contextlib
import os
import signal
import tempfile
import unittest

from tests.e2e.base import matrix
from tests.e2e.living import BLOCKED, Living
from tests.e2e.storming import BROKEN
from tests.support import in_background, is_alive, start_time, wait_until
from tests.support.procs import children

MAX_REQUESTS = 200
# Requests that wait for the row: a worker with threads has one that does not, whichever worker takes them.
BUSY = {'prefork': 2, 'threads': 3, 'gevent': 4}

NOBODY = ()
WORKERS = ('worker',)
EVERYBODY = ('worker', 'mule', 'spooler')


class OneLife(Living):
    CAP = 8
    processes = 2
    background = False  # a mule and a spooler
    options = {}
    events = ()  # names of methods below
    end = None  # another, after which nothing is left

    # ---- events: each returns whose statements end by it, NOBODY's, WORKERS' or EVERYBODY's, or a mule's alone ----

    def workers_killed(self):
        for pid in self.uwsgi.worker_pids().values():
            os.kill(pid, signal.SIGKILL)
        return WORKERS

    def workers_told_to_end(self):
        for pid in self.uwsgi.worker_pids().values():
            os.kill(pid, signal.SIGTERM)
        return WORKERS

    def harakiri(self):
        """Each of the requests has asked for it."""
        return WORKERS

    def max_requests(self):
        """Where a worker serves one request at a time, only those reach the limit that are not waiting."""
        busy = self.mode == 'prefork'
        before = self.workers

        def reached():
            for _ in range(20):
                with contextlib.suppress(BROKEN):
                    self.uwsgi.get('/ping')
            gone = [pid for pid, started in before.items() if not is_alive(pid, started)]
            return gone if busy else len(gone) == len(before)

        wait_until(reached, 60, 'workers end by max-requests')
        return NOBODY if busy else WORKERS

    def chain_reload(self):
        self.command('c')
        return WORKERS

    def workers_reloaded(self):
        self.command('w')
        return WORKERS

    # ---- of those with a mule and a spooler ----

    def mule_killed(self):
        os.kill(self.started_last('uWSGI mule'), signal.SIGKILL)
        return ('mule',)

    def spooler_killed(self):
        os.kill(self.started_last('the uWSGI spooler'), signal.SIGKILL)
        return ('spooler',)

    def connector_killed(self):
        known = {self.started_last('uWSGI mule'), self.started_last('the uWSGI spooler')}
        connector, = set(self.uwsgi.helper_pids()) - known
        os.kill(connector, signal.SIGKILL)
        return NOBODY

    # ---- of those with cheaper ----

    def fewer_and_more_workers(self):
        """cheaper: those that wait for the row are not idle, so another one goes."""
        workers = self.uwsgi.worker_pids()
        self.command('-')
        wait_until(lambda: len(self.uwsgi.worker_pids()) < len(workers), 30, 'a worker is cheaped')
        self.command('+')
        wait_until(lambda: len(self.uwsgi.worker_pids()) == len(workers), 30, 'and another one is there')
        return NOBODY

    # ---- of all processes ----

    def full_reload(self):
        os.kill(self.uwsgi.pid, signal.SIGHUP)
        return EVERYBODY

    def brutal_reload(self):
        self.command('R')
        return EVERYBODY

    def touch_reload(self):
        later = os.stat(self.touched).st_mtime + 10
        os.utime(self.touched, (later, later))
        return EVERYBODY

    def stop(self):
        os.kill(self.uwsgi.pid, signal.SIGINT)
        return EVERYBODY

    def terminal_stop(self):
        """Ctrl-C goes to all processes of the terminal at once, the connector too."""
        for pid in [self.uwsgi.pid] + children(self.uwsgi.pid):
            os.kill(pid, signal.SIGINT)
        return EVERYBODY

    def graceful_stop(self):
        self.command('q')
        return EVERYBODY

    def brutal_stop(self):
        os.kill(self.uwsgi.pid, signal.SIGTERM)
        return EVERYBODY

    # ---- a life ----

    def started_last(self, what):
        """Its pid, from the log: uWSGI's stats have no mules."""
        line = [line for line in self.uwsgi.log().splitlines() if line.startswith('spawned ' + what)][-1]
        return int(line.replace(')', ' ').split()[-1])

    def goes_through(self, event):
        before = self.counter()
        with self.row_locked():
            pages = self.all_blocked(self.uwsgi, BUSY[self.mode], 2 if event == 'harakiri' else 0)
            waiting, work = ['worker'] * len(pages), {}
            for to in ('mule', 'spooler') if self.background else ():
                work[to] = self.in_background_process(self.uwsgi, to, BLOCKED % to)
                wait_until(lambda: self.blocked(to), 30, 'the %s waits' % to)
                waiting.append(to)
            self.uwsgi.note_processes()
            self.workers = {pid: start_time(pid) for pid in self.uwsgi.worker_pids().values()}
            everybody = {pid: start_time(pid) for pid in children(self.uwsgi.pid)}

            dead = getattr(self, event)()
            living = sorted(whose for whose in waiting if whose not in dead)
            wait_until(lambda: len(self.blocked()) <= len(living), 30, 'no statement of a dead request is there')
            if 'worker' in dead:
                for page in pages:
                    self.assertIsInstance(page.result(), BROKEN, 'an answer from the dead')
            # Harakiri ends those workers only that had such a request.
            ended = everybody if dead == EVERYBODY else self.workers if dead == WORKERS and event != 'harakiri' else {}
            wait_until(lambda: not any(is_alive(pid, started) for pid, started in ended.items()), 30,
                       'no process of before is left')
            self.assertEqual(self.blocked(), living, 'and nobody else is hurt')
        if 'worker' not in dead:
            self.assertEqual([page.result().json()['results'] for page in pages], [[1]] * len(pages))
        for to in set(work) - set(dead):
            wait_until(lambda: self.done(work[to]), 30, 'the %s goes on' % to)
        self.assertEqual(self.counter(), before + len(living), 'nothing of a dead request was executed')

    def begin(self):
        handle, self.touched = tempfile.mkstemp(dir=self.meet)
        os.close(handle)
        pool = {'pool_size': self.CAP, 'max_overflow': 0, 'timeout': 30}
        options = dict(self.files_options(self.background), **self.short_lived(**{
            'max-requests': MAX_REQUESTS, 'touch-reload': self.touched, **self.options}))
        if 'metrics-dir' in options:
            options['metrics-dir'] = tempfile.mkdtemp(dir=self.meet)
        self.uwsgi = self.entered(self.make_uwsgi(self.driver, self.mode, {'default': self.database(pool)},
                                                  self.processes, options))

    def test_life(self):
        self.begin()
        with self.watched(self.CAP):
            self.settled(self.uwsgi, self.background)
            fds = self.fds_of_master(self.uwsgi)
            for event in self.events:
                with self.subTest(event):
                    self.goes_through(event)
                    wait_until(self.all_there, 60, 'all workers are there again')
                    self.settled(self.uwsgi, self.background)
                    with contextlib.suppress(AssertionError):  # the next line says what it has instead
                        wait_until(lambda: self.fds_of_master(self.uwsgi) == fds, 30)
                    self.assertEqual(self.fds_of_master(self.uwsgi), fds)
            with self.subTest(self.end):
                self.goes_through(self.end)
                self.assertEqual(self.uwsgi.wait_exit(), 0)
                wait_until(lambda: not self.uwsgi.left_over(), 30, 'no process is left')
                wait_until(lambda: not self.sessions(), 30, 'no session is left')

    def all_there(self):
        try:
            workers = self.uwsgi.stats()['workers']
        except (OSError, ValueError):  # between two lives
            return False
        return all(worker['accepting'] and worker['apps'] and is_alive(worker['pid']) for worker in workers
                   if worker['status'] != 'cheap')


class LazyPreforkWithMuleAndSpooler(OneLife, unittest.TestCase):
    processes = 3
    background = True
    options = {'lazy-apps': True, 'metrics-dir': True, 'need-app': True}
    events = ('workers_killed', 'mule_killed', 'harakiri', 'chain_reload', 'spooler_killed', 'connector_killed',
              'full_reload', 'workers_killed', 'mule_killed')
    end = 'stop'


class PreforkThatCheapens(OneLife, unittest.TestCase):
    processes = 4
    options = {'lazy-apps': None, 'need-app': None, 'cheaper': 1, 'cheaper-initial': 3, 'cheaper-algo': 'manual'}
    events = ('fewer_and_more_workers', 'max_requests', 'workers_reloaded', 'touch_reload', 'fewer_and_more_workers')
    end = 'brutal_stop'


class Threads(OneLife, unittest.TestCase):
    mode = 'threads'
    options = {'lazy-apps': None, 'metrics-dir': True, 'need-app': None, 'offload-threads': 2}
    events = ('workers_killed', 'harakiri', 'max_requests', 'brutal_reload', 'workers_told_to_end')
    end = 'graceful_stop'


class LazyGevent(OneLife, unittest.TestCase):
    mode = 'gevent'
    options = {'lazy-apps': True, 'need-app': True}
    events = ('workers_told_to_end', 'harakiri', 'max_requests', 'chain_reload', 'full_reload', 'workers_killed')
    end = 'terminal_stop'


class RequestsUnderWay(Living):
    """A graceful end lets requests end; those that only now need a session are served too."""

    def serves_who_comes_late(self, begin, begun, options=None, ends=False):
        pool = {'pool_size': 4, 'max_overflow': 0, 'timeout': 30}
        options = self.short_lived(**{'worker-reload-mercy': 40, 'reload-mercy': 40, **(options or {})})
        with self.make_uwsgi('mysqlclient', self.mode, {'default': self.database(pool)}, 2, options) as uwsgi, \
                self.watched(4):
            holding, late = self.new_name(), self.new_name()
            pages = [in_background(uwsgi.get, '/hold', meet=holding)]
            self.here(holding)
            pages.append(in_background(uwsgi.get, '/late', meet=late))
            self.here(late)
            self.assertEqual(len(self.sessions()), 1, 'the second request needs a session that is not there yet')
            before = {pid: start_time(pid) for pid in children(uwsgi.pid)}
            begin(uwsgi)
            wait_until(lambda: begun in uwsgi.log(), 30, 'it has begun')
            self.go(late)
            answer = pages[1].result()
            self.assertEqual(answer.status, 200, answer)
            self.go(holding)
            pages[0].result()
            wait_until(lambda: not any(is_alive(pid, started) for pid, started in before.items()), 30,
                       'no process of before is left')
            if ends:
                self.assertEqual(uwsgi.wait_exit(), 0)
            else:  # uWSGI forgets a signal that comes while it executes itself anew
                self.assertEqual(wait_until(lambda: self.patient(uwsgi, '/ping'), 60, 'the next life').status, 200)

    def patient(self, uwsgi, path):
        try:
            return uwsgi.get(path)
        except BROKEN:
            return None

    def test_full_reload(self):
        self.serves_who_comes_late(lambda uwsgi: os.kill(uwsgi.pid, signal.SIGHUP), 'killing workers',
                                   {'metrics-dir': tempfile.mkdtemp(dir=self.meet)})

    def test_full_reload_without_a_connector(self):
        """It is killed in the middle of the reload, and started again."""
        def begin(uwsgi):
            connector, = uwsgi.helper_pids()
            os.kill(uwsgi.pid, signal.SIGHUP)
            wait_until(lambda: 'killing workers' in uwsgi.log(), 30, 'the reload has begun')
            os.kill(connector, signal.SIGKILL)

        self.serves_who_comes_late(begin, 'killing workers', {'lazy-apps': True})

    def test_graceful_stop(self):
        self.serves_who_comes_late(lambda uwsgi: self.command('q'), 'graceful shutdown triggered', ends=True)


# Not threads: there the signal's handler may keep Python's lock until the mercy is over (see test_reload.py).
matrix(drivers=('mysqlclient',), modes=('gevent', 'prefork'))(RequestsUnderWay)


if __name__ == '__main__':
    unittest.main()
