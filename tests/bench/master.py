# SPDX-License-Identifier: MIT
"""What the pool costs its owner while 100 sessions are busy: processor time of the uWSGI master (broker included) and
of the connector, and of the master alone when nothing happens."""

import time

from tests.bench.serving import cpu_seconds, server, uwsgi
from tests.support import in_background

SESSIONS, SECONDS = 100, 5


def _percent(pids, seconds):
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(seconds)
    return [100 * (cpu_seconds(pid) - was) / seconds for pid, was in zip(pids, before)]


def master(figures, rounds):
    samples = {'master, 100 sessions busy': [], 'connector, 100 sessions busy': [], 'master, idle': []}
    leases = []
    with server() as running, uwsgi(running, processes=1, pool={'pool_size': SESSIONS}) as instance:
        (connector,) = instance.helper_pids()
        instance.get('/fill', sessions=SESSIONS)
        for _ in range(min(rounds, 3)):
            idle = _percent([instance.pid], SECONDS / 2)
            request = in_background(instance.get, '/busy', sessions=SESSIONS, seconds=SECONDS)
            busy = _percent([instance.pid, connector], SECONDS * 0.9)
            leases.append(request.result().json()['leases'] / SECONDS)
            for name, value in zip(samples, busy + idle):
                samples[name].append(value)
    figures.table('processor time, %.0f leases of 10 ms a second' % (sum(leases) / len(leases)), '%', samples)
    figures.reach('master.cpu', samples['master, 100 sessions busy'])
