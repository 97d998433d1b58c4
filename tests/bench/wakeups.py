# SPDX-License-Identifier: MIT
"""How often an idle worker is woken by the queries that another makes, on a session whose socket both have."""

import time

from tests.bench.serving import server, uwsgi
from tests.support import voluntary_switches, wait_until

QUERIES = 5000


def _round(instance):
    pids = set(instance.worker_pids().values())
    began, before = time.monotonic(), {pid: voluntary_switches(pid) for pid in pids}
    busy = instance.get('/loop', times=QUERIES).json()['pid']
    (idle,) = pids - {busy}
    during, took = voluntary_switches(idle) - before[idle], time.monotonic() - began
    # Less what it does by itself, and for the knock of a request that the other one takes.
    while True:
        before = voluntary_switches(idle)
        taken_by = instance.get('/loop', times=0).json()['pid']
        time.sleep(took)
        if taken_by != idle:
            break
    alone = voluntary_switches(idle) - before
    return max(0, during - alone) / QUERIES * 1000


def wakeups(figures, rounds):
    samples = {}
    with server() as running:
        for driver in ('mysqlclient', 'pymysql'):
            with uwsgi(running, driver=driver, pool={'pool_size': 1, 'max_overflow': 0}) as instance:
                both = set(instance.worker_pids().values())
                met = set()
                wait_until(lambda: met.add(instance.get('/loop', times=3).json()['pid']) or met == both, 60,
                           'both workers were used')
                samples[driver] = [_round(instance) for _ in range(min(rounds, 3))]
    figures.table('wake-ups of an idle worker by 1,000 queries of another on the same session', 'wake-ups', samples)
    figures.reach('wakeups', [max(values) for values in zip(*samples.values())])
