# SPDX-License-Identifier: MIT
"""What the benchmarks run against: a server with a small table, uWSGI with app/, wrk as the load."""

import contextlib
import json
import os
import re
import subprocess
import sys

from tests.support import Server, Uwsgi
from tests.support.procs import free_port

HERE = os.path.dirname(os.path.abspath(__file__))
APP = os.path.join(HERE, 'app')
CLIENTS = 32
WORKERS = 2


@contextlib.contextmanager
def server(*options):
    with Server(options=options) as running:
        running.create('bench', 'bench', 'secret')
        running.query('USE bench')
        running.query('CREATE TABLE item (id INT PRIMARY KEY, name VARCHAR(40) NOT NULL)')
        running.query('INSERT INTO item SELECT seq, CONCAT("item ", seq) FROM seq_1_to_1000')
        yield running


class WorkersApart(Uwsgi):
    """Each worker has a socket of its own besides the one of all: .addresses, by worker id less one."""

    def _write_ini(self):
        self.addresses = [('127.0.0.1', free_port()) for _ in range(self.processes)]
        first = self._lines['http-socket']
        self._lines['http-socket'] = [first] + ['%s:%d' % address for address in self.addresses]
        self._lines['map-socket'] = ['%d:%d' % (number + 1, number + 1) for number in range(self.processes)]
        return super()._write_ini()


def uwsgi(running, engine='dbpool.mysql', driver='mysqlclient', mode='gevent', processes=WORKERS, pool=None,
          kind=Uwsgi):
    entry = {'ENGINE': engine, 'HOST': running.host, 'PORT': running.port, 'USER': 'bench', 'PASSWORD': 'secret',
             'NAME': 'bench', 'OPTIONS': {'charset': 'utf8mb4'}}
    if engine in ('dbpool.mysql', 'timed'):
        entry['POOL'] = pool or {'pool_size': CLIENTS, 'max_overflow': 0}
    given = json.dumps({'driver': driver, 'database': entry})
    options = {'listen': 128}
    if mode == 'gevent':
        options['gevent'] = 200
    return kind('wsgi:application', [APP], mode, processes, options,
                environ={'DBPOOL_BENCH': given, 'DJANGO_SETTINGS_MODULE': 'settings'})


def begun_in_turn(rounds, candidates):
    """{name: [a figure per round]} of {name: (begin, measure)}: a context manager, and a function of what it gives.

    In each round all are begun anew, in another order, and measured in that order from the middle on: on some machines
    who was begun first is slower by some percent for as long as he lives."""
    samples = {name: [] for name in candidates}
    names = list(candidates)
    for number in range(rounds):
        first = number * 3 % len(names)
        names = names[first:] + names[:first]
        with contextlib.ExitStack() as stack:
            begun = {name: stack.enter_context(candidates[name][0]()) for name in names}
            for warm_up in (True, False):
                for name in names[len(names) // 2:] + names[:len(names) // 2]:
                    value = candidates[name][1](begun[name])
                    if not warm_up:
                        samples[name].append(value)
                    sys.stderr.write('.')
                    sys.stderr.flush()
    return {name: samples[name] for name in candidates}


class Load:
    """wrk, started at once; rate() and values() wait for its end and raise when a request failed."""

    def __init__(self, address, path, seconds, clients=CLIENTS, script=None):
        command = ['wrk', '-t1', '-c%d' % clients, '-d%ds' % seconds, '--timeout', '20s']
        self._process = subprocess.Popen(command + (['-s', os.path.join(HERE, script)] if script else [])
                                         + ['http://%s:%d%s' % (*address, path)],
                                         stdout=subprocess.PIPE, universal_newlines=True)

    def _output(self):
        text, _ = self._process.communicate()
        # uWSGI ends each connection, which wrk calls a read error.
        if self._process.returncode != 0 or 'Non-2xx' in text or re.search(r'(connect|timeout) [1-9]', text):
            raise RuntimeError('wrk: ' + text)
        return text

    def rate(self):
        return float(re.search(r'Requests/sec:\s*([\d.]+)', self._output()).group(1))

    def values(self):
        """What the script printed: one line of numbers."""
        return [float(word) for word in self._output().rpartition('VALUES')[2].split()]


def load(instance, path, seconds=2, clients=CLIENTS):
    """Requests per second."""
    return Load(instance.address, path, seconds, clients).rate()


def cpu_seconds(pid):
    """Processor time of the process's threads so far, to the nanosecond (/proc/PID/stat counts in hundredths)."""
    total = 0
    for task in os.listdir('/proc/%d/task' % pid):
        with open('/proc/%d/task/%s/schedstat' % (pid, task)) as f:
            total += int(f.read().split()[0])
    return total / 1e9


def apart(server_pid, *worker_pids):
    """The server on the first processor, the workers on the last: else each run is fast or slow (twice the time of a short
    query) by where the scheduler happens to wake the server's threads."""
    processors = sorted(os.sched_getaffinity(0))
    for pid, processor in [(server_pid, processors[0])] + [(pid, processors[-1]) for pid in worker_pids]:
        for task in os.listdir('/proc/%d/task' % pid):
            os.sched_setaffinity(int(task), {processor})
