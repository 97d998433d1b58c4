# SPDX-License-Identifier: MIT
"""The overload of core.overload() as requests meet it: 32 clients, 8 sessions, a query of 5 ms, 4 gevent workers. How
long each request waits for its session; a QueuePool has two sessions in each worker."""

from tests.bench.figures import turns
from tests.bench.serving import Load, server, uwsgi

SESSIONS, CLIENTS, WORKERS, MS, SECONDS = 8, 32, 4, 5, 2
CANDIDATES = {'dbpool': ('dbpool', SESSIONS), 'QueuePool in each process': ('queuepool', SESSIONS // WORKERS)}


def crowd(figures, rounds):
    def waits(instance, how, size):
        path = '/hold?how=%s&size=%d&ms=%d' % (how, size, MS)
        found = sorted(Load(instance.address, path, SECONDS, CLIENTS, 'waits.lua').values())
        return sum(found) / len(found), found[len(found) // 2], found[int(len(found) * 0.999)]

    with server() as running:
        running.create('bench%d' % SESSIONS, 'bench', 'secret')
        with uwsgi(running, driver='pymysql', processes=WORKERS) as instance:
            samples = turns(min(rounds, 3), {name: lambda given=given: waits(instance, *given)
                                             for name, given in CANDIDATES.items()})
    figures.table('4 times as many requests as sessions: wait for one', 'ms', {
        '%s, %s' % (name, what): [of_round[at] for of_round in values]
        for name, values in samples.items() for at, what in enumerate(('mean', 'p50', 'p99.9'))})
