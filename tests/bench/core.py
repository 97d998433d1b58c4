# SPDX-License-Identifier: MIT
"""The pool in C, without Python: core/*.c, against a server of its own."""

import os
import statistics
import subprocess
import sys

from tests.bench.serving import server
from tests.support.uwsgi import BUILD

FEW = 64  # sessions, where their number does not matter
MANY = 1000
LOADS = (1, 2, 4, 8)
PROCESSES = (1, 2, 4, 8, 16)


def measure(bench, sessions, rounds):
    """{name: [a figure per round]} of one C benchmark."""
    samples = {}
    with server('--max-connections=%d' % (MANY + 200)) as running:
        process = subprocess.Popen(
            [os.path.join(BUILD, 'tests/bench_core'), bench, running.host, str(running.port), 'bench', 'secret',
             'bench', str(sessions), str(rounds)], stdout=subprocess.PIPE, universal_newlines=True)
        for line in process.stdout:
            name, value = line.split()
            samples.setdefault(name, []).append(float(value))
        if process.wait() != 0:
            raise RuntimeError('bench_core %s ended with status %d' % (bench, process.returncode))
    sys.stderr.write('.' * rounds)
    return samples


def acquire(figures, rounds):
    samples = measure('uncontended', FEW, rounds)
    free = samples.pop('free_of_system_calls')
    names = {'acquire + release': samples['pair'], 'two compare-and-swaps on memory of its own': samples['swaps']}
    figures.table('acquire in C, uncontended', 'ns', names, 'two compare-and-swaps on memory of its own')
    figures.reach('acquire', samples['pair'])
    figures.reach('acquire.syscalls', [0 if all(free) else 1],
                  '500,000 times under a seccomp filter that kills at the first')


def _growth(samples, name, steps):
    """Of each round: the dearest step against the first one."""
    return [max(values) / values[0] for values in zip(*(samples[name % step] for step in steps))]


def flat(figures, rounds):
    samples = measure('processes', FEW, rounds)
    figures.table('acquire + release by processes, each uses its session for 10 us, and does without for 10', 'ns',
                  {'%d' % n: samples['paced_ns_%d' % n] for n in PROCESSES}, '1')
    figures.table('leases of an instant, and 20 us of work between: all take turns with the same session', 'ns',
                  {'%d' % n: samples['instant_ns_%d' % n] for n in PROCESSES}, '1')
    figures.table('nothing but leases of an instant: CPU time of one', 'ns',
                  {'%d' % n: samples['cpu_ns_%d' % n] for n in PROCESSES}, '1')
    cores = [n for n in PROCESSES if n <= len(os.sched_getaffinity(0))]
    figures.reach('flat.processes', _growth(samples, 'paced_ns_%d', cores), '%d cores' % cores[-1])
    points = {'nothing but the pool': [(n, statistics.median(samples['per_second_%d' % n]) / 1e6) for n in PROCESSES]}
    figures.curve('acquires-by-workers', 'Acquires and releases by worker processes', 'worker processes',
                  'million per second, all together', points, log_x=True)
    figures.curve('cost-by-workers', 'Cost of an acquire and its release by worker processes', 'worker processes', 'ns',
                  {'10 us of use in 20': [(n, statistics.median(samples['paced_ns_%d' % n])) for n in PROCESSES],
                   'an instant in 20 us': [(n, statistics.median(samples['instant_ns_%d' % n]))
                                                           for n in PROCESSES],
                   'instants without a pause': [(n, statistics.median(samples['cpu_ns_%d' % n])) for n in PROCESSES]},
                  log_x=True)

    samples = measure('sessions', MANY, rounds)
    steps = (1, 10, 100, MANY)
    figures.table('acquire + release of the k-th session while all before it are leased', 'ns',
                  {'%d' % n: samples['ns_%d' % n] for n in steps}, '10')
    figures.reach('flat.sessions', _growth(samples, 'ns_%d', steps[1:]))

    samples = measure('waiters', FEW, rounds)
    steps = (1, 10, 100, 1000, 10000)
    figures.table('hand-off with so many in the queue: return, claim, new place at the end', 'ns',
                  {'%d' % n: samples['ns_%d' % n] for n in steps}, '10')
    figures.reach('flat.waiters', _growth(samples, 'ns_%d', steps[1:]))


def handoff(figures, rounds):
    samples = measure('handoff', FEW, rounds)
    names = {'ping_read': 'eventfd: write to read()', 'to_thread': 'dbpool: return to a waiting thread',
             'ping_poll': 'eventfd: write to poll() + read()', 'to_loop': 'dbpool: return to a waiting event loop'}
    figures.table('from one process to another, one way', 'us', {text: samples[name] for name, text in names.items()},
                  names['ping_read'])
    figures.reach('handoff.thread', [a / b for a, b in zip(samples['to_thread'], samples['ping_read'])])
    figures.reach('handoff.loop', [a / b for a, b in zip(samples['to_loop'], samples['ping_poll'])])


def overload(figures, rounds):
    samples = measure('overload', FEW, min(rounds, 3))
    figures.table('8 sessions held for 1 ms each, 32 processes: wait', 'ms', {
        '%s, %s' % (peer, what): samples['%s_%s_ms_4' % (name, what)]
        for name, peer in (('pool', 'dbpool'), ('semaphore', 'a semaphore shared by processes'))
        for what in ('mean', 'p50', 'p99.9')})
    figures.reach('overload.inversions', [sum(sum(samples['inversions_%d' % load]) for load in LOADS)], 'at all loads')
    figures.reach('overload.tail', [a / b for a, b in zip(samples['pool_p99.9_ms_4'], samples['pool_mean_ms_4'])])

    def line(name):
        return [(load, statistics.median(samples[name % load])) for load in LOADS]

    title = 'Waiting by load: 8 sessions held for 1 ms each'
    figures.curve('waiting-by-load', title, 'processes per session', 'wait, ms', {
        'dbpool, mean': line('pool_mean_ms_%d'), 'dbpool, p99.9': line('pool_p99.9_ms_%d'),
        'a semaphore, p99.9': line('semaphore_p99.9_ms_%d')}, log_x=True)
