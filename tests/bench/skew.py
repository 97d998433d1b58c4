# SPDX-License-Identifier: MIT
"""How many sessions it takes to serve a load that falls on one worker and moves on: 8 workers, 16 clients, a query of
50 ms; one worker has 14 of the clients, the next one has the other 2, and then it is another's turn. dbpool's cap is
for all workers, a QueuePool is one in each (PyMySQL under gevent for both)."""

import itertools
import statistics

from tests.bench.figures import turns
from tests.bench.serving import Load, WorkersApart, server, uwsgi

WORKERS, HOT, COOL, MS = 8, 14, 2, 50
PHASES = 2  # of a second each
OURS, THEIRS = (2, 4, 8, 16), (1, 2, 4, 8, 14)  # sessions of the pool; of each of the 8
ENOUGH = 0.95  # of the most that pools in each process serve, with as many sessions as they like


_turn = itertools.count(0, 3)  # 3 and 8: each worker has its turn


def _rate(instance, how, size):
    path = '/hold?how=%s&size=%d&ms=%d' % (how, size, MS)
    total = 0
    for _ in range(PHASES):
        first = next(_turn)
        hot, cool = (instance.addresses[(first + step) % WORKERS] for step in (0, 1))
        total += sum(each.rate() for each in (Load(hot, path, 1, HOT), Load(cool, path, 1, COOL)))
    return total / PHASES


def _needed(points, wanted):
    """Of (sessions, requests/s): the fewest that serve so much; infinitely many where none of them does."""
    return min((sessions for sessions, rate in points if rate >= wanted), default=float('inf'))


def skew(figures, rounds):
    with server() as running:
        for size in OURS:
            running.create('bench%d' % size, 'bench', 'secret')
        with uwsgi(running, driver='pymysql', processes=WORKERS, kind=WorkersApart) as instance:
            for size in OURS:  # driver objects are made before it counts
                path = '/hold?how=dbpool&size=%d&ms=1' % size
                for each in [Load(address, path, 1, HOT) for address in instance.addresses]:
                    each.rate()
            samples = turns(min(rounds, 3), {
                ('dbpool', size): lambda size=size: _rate(instance, 'dbpool', size) for size in OURS} | {
                ('QueuePool in each process', size * WORKERS): lambda size=size: _rate(instance, 'queuepool', size)
                for size in THEIRS}, warm_up=False)
    figures.table('requests/s at a skewed load, by sessions allowed in all', 'requests/s',
                  {'%s, %d' % key: values for key, values in samples.items()}, better='higher')
    curves = {}
    for (name, sessions), values in samples.items():
        curves.setdefault(name, []).append((sessions, statistics.median(values)))
    ours, theirs = curves.values()
    wanted = ENOUGH * max(rate for _, rate in theirs)
    ours, theirs = _needed(ours, wanted), _needed(theirs, wanted)
    figures.reach('skew', [ours / theirs], '%g against %g sessions' % (ours, theirs))
    figures.curve('sessions-at-skewed-load', 'Requests by sessions allowed, the load on one of 8 workers',
                  'sessions in all', 'requests per second', curves, log_x=True)
