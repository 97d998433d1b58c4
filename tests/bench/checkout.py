# SPDX-License-Identifier: MIT
"""Taking a connection and giving it back from Python, nothing else, in one uWSGI worker: dbpool at each of its levels,
SQLAlchemy's QueuePool with and without its reset, a fresh MySQLdb.connect(). And the system calls that each makes."""

import signal
import subprocess
import tempfile

from tests.bench.figures import ratios, turns
from tests.bench.serving import server, uwsgi
from tests.support import wait_until

CANDIDATES = {  # name: (in app/probes.py, how many times)
    'dbpool: manage(MySQLdb).connect() + close()': ('managed', 20000),
    'dbpool: Profile.connect() + close()': ('profile', 20000),
    'dbpool: Django backend, get_new_connection() + close()': ('backend', 20000),
    'QueuePool, no reset': ('queuepool', 20000),
    'QueuePool, rollback reset': ('queuepool_rollback', 2000),
    'MySQLdb.connect() + close()': ('private', 200),
}
OURS, PLAIN, ROLLBACK = (list(CANDIDATES)[at] for at in (0, 3, 4))


def _tracer(pid):
    with open('/proc/%d/status' % pid) as f:
        return next(int(line.split()[1]) for line in f if line.startswith('TracerPid'))


def system_calls(pid, do):
    """How many all threads of the process make while do() runs."""
    with tempfile.NamedTemporaryFile('r') as counted:
        strace = subprocess.Popen(['strace', '-f', '-c', '-o', counted.name, '-p', str(pid)], stderr=subprocess.DEVNULL)
        wait_until(lambda: _tracer(pid) == strace.pid, 20, 'strace has attached')
        do()
        strace.send_signal(signal.SIGINT)
        strace.wait()
        last = [line.split() for line in counted.read().splitlines() if line.endswith(' total')]
    return int(last[0][3]) if last else 0


def _calls_of_one(instance, what, times):
    """Without those of the request itself."""
    pid = instance.get('/checkout', what=what, times=1).json()['pid']
    idle, much = (system_calls(pid, lambda: instance.get('/checkout', what=what, times=n)) for n in (0, times))
    return max(0, much - idle) / (times + min(times, 1000))


def checkout(figures, rounds):
    with server() as running:
        for mode in ('gevent', 'prefork'):
            with uwsgi(running, mode=mode, processes=1, pool={'pool_size': 4, 'max_overflow': 0}) as instance:
                samples = turns(rounds, {
                    name: lambda what=what, times=times: instance.get('/checkout', what=what, times=times).json()['us']
                    for name, (what, times) in CANDIDATES.items()})
                figures.table('connection taken and given back, %s worker' % mode, 'us', samples, OURS)
                if mode == 'gevent':  # the dearer one of ours
                    figures.reach('checkout', samples[OURS], 'gevent worker')
                    figures.reach('checkout.plain', ratios(samples, PLAIN, OURS))
                    figures.reach('checkout.rollback', ratios(samples, ROLLBACK, OURS))
                    calls = {name: [_calls_of_one(instance, what, min(times, 2000))]
                             for name, (what, times) in CANDIDATES.items()}
                    figures.table('system calls of one', 'calls', calls)
                    figures.reach('checkout.syscalls', calls[OURS])
