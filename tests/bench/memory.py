# SPDX-License-Identifier: MIT
"""What a session costs in memory: the master that owns it, a worker that has used it; and what a large row leaves."""

from tests.bench.serving import server, uwsgi

SOME, ALL = 20, 220
LARGE = 8 << 20


def _kib(pid):
    """Resident, shared or not: a page that a fork shared stays the same when one of the two writes to it."""
    with open('/proc/%d/smaps_rollup' % pid) as f:
        return next(int(line.split()[1]) for line in f if line.startswith('Rss:'))


def _round(driver):
    with server() as running, uwsgi(running, driver=driver, processes=1, pool={'pool_size': ALL}) as instance:
        worker = instance.get('/fill', sessions=SOME).json()['pid']  # modules, pools of the allocator
        instance.get('/fill', sessions=SOME)
        before = _kib(instance.pid), _kib(worker)
        instance.get('/fill', sessions=ALL)
        after = _kib(instance.pid), _kib(worker)
        master, used = ((b - a) / (ALL - SOME) for a, b in zip(before, after))
        large = {}
        for how in ('dbpool', 'kept'):
            instance.get('/large', how=how, bytes=1)
            before = _kib(worker)
            instance.get('/large', how=how, bytes=LARGE)
            large[how] = _kib(worker) - before
    return max(0, master), max(0, used), large['dbpool'], large['kept']


def memory(figures, rounds):
    names = ('master, per session', 'worker, per session used', 'worker, after a row of 8 MiB on a lease',
             'worker, after the same on a private connection that is kept')
    ours = None
    for driver in ('mysqlclient', 'pymysql'):
        samples = dict(zip(names, zip(*(_round(driver) for _ in range(min(rounds, 3))))))
        figures.table('memory, %s (resident)' % driver, 'KiB', samples)
        ours = ours or samples
    for key, name in zip(('memory.master', 'memory.worker', 'memory.large'), names):
        figures.reach(key, ours[name], 'mysqlclient')
