# SPDX-License-Identifier: MIT
"""What is to be reached: one line for each figure that has a bound. The benchmarks name them by their key."""

import collections
import math

Target = collections.namedtuple('Target', 'what sense bound unit')

AT_MOST, AT_LEAST = '<=', '>='

TARGETS = {
    'acquire': Target('acquire + release in C, uncontended, across processes', AT_MOST, 250, 'ns'),
    'acquire.syscalls': Target('system calls of such an acquire + release', AT_MOST, 0, ''),
    'checkout': Target('checkout + return from Python, DB-API level', AT_MOST, 1.5, 'us'),
    'checkout.syscalls': Target('system calls of such a checkout + return', AT_MOST, 0, ''),
    'checkout.plain': Target("SQLAlchemy's QueuePool without reset / dbpool", AT_LEAST, 3, 'x'),
    'checkout.rollback': Target("SQLAlchemy's QueuePool with rollback reset / dbpool", AT_LEAST, 25, 'x'),
    'share': Target("Django request with one query: time in the pool's code", AT_MOST, 3, '%'),
    'commands': Target("server commands per request beyond the application's own", AT_MOST, 0, ''),
    'latency.p50': Target('query latency, leased / private session, p50', AT_MOST, 1.03, 'x'),
    'latency.p99': Target('query latency, leased / private session, p99', AT_MOST, 1.1, 'x'),
    'requests.ceiling': Target('requests/s, one query, gevent, mysqlclient: of the ceiling', AT_LEAST, 0.98, 'x'),
    'requests.stock': Target('requests/s, one query: of the stock backend with PyMySQL', AT_LEAST, 3.5, 'x'),
    'slow.stock': Target('requests/s, 20 ms query, 32 clients: of PyMySQL with a fresh connection', AT_LEAST, 2.3, 'x'),
    'handoff.thread': Target('hand-off to a waiting thread / eventfd wake-up', AT_MOST, 1.5, 'x'),
    'handoff.loop': Target('hand-off to a waiting event loop / eventfd wake-up', AT_MOST, 1.5, 'x'),
    'overload.inversions': Target('4 times overload: order inversions', AT_MOST, 0, ''),
    'overload.tail': Target('4 times overload: wait p99.9 / mean', AT_MOST, 3, 'x'),
    'flat.processes': Target('cost of an acquire, 1 process to as many as there are cores', AT_MOST, 1.2, 'x'),
    'flat.sessions': Target('cost of an acquire, 10 to 1,000 sessions', AT_MOST, 1.2, 'x'),
    'flat.waiters': Target('cost of a hand-off, 10 to 10,000 waiters', AT_MOST, 1.2, 'x'),
    'wakeups': Target("wake-ups of an idle worker per 1,000 queries of others", AT_MOST, 0, ''),
    'skew': Target('sessions needed at skewed load / by per-process pools, 8 workers', AT_MOST, 0.25, 'x'),
    'memory.master': Target('memory of the master per session', AT_MOST, 4, 'KiB'),
    'memory.worker': Target('memory of a worker per session used, small rows', AT_MOST, 64, 'KiB'),
    'memory.large': Target('memory that stays in a worker after a row of 8 MiB', AT_MOST, 512, 'KiB'),
    'master.cpu': Target('CPU of the master with 100 busy sessions', AT_MOST, 1, '%'),
}


# What stands in the way of those that were not reached here: by experiments (one thing taken out at a time), cProfile and
# the tables of the report.
LIMITS = {
    'requests.ceiling': 'Both make the same system calls, and dbpool fewer calls of Python functions. The rounds are further '
                        'apart than the two are.',
    'requests.stock': "The ceiling is not there either: of a request's processor time some 60 % is Django's and uWSGI's without "
                      'any query (the flame graph below), and the server, the load generator and two workers share two '
                      'cores.',
    'slow.stock': '32 clients that wait 20 ms each make 1,600 requests/s at most, and the stock backend with PyMySQL makes '
                  '1,100 here. With mysqlclient, which blocks the worker, it makes 90.',
}


def is_met(target, value):
    """Rounded as it is printed: a figure that reads as the bound has met it."""
    value = float(text_of(value)) if math.isfinite(value) else value
    return value <= target.bound if target.sense == AT_MOST else value >= target.bound


def text_of(value):
    if not math.isfinite(value):
        return '-' if math.isnan(value) else 'without end'
    if value == int(value):
        return '%d' % value
    return '%.0f' % value if abs(value) >= 100 else '%.1f' % value if abs(value) >= 10 else '%.2f' % value
