# SPDX-License-Identifier: MIT
"""Taking a connection and giving it back, nothing else: in C, from Python through dbpool, SQLAlchemy's QueuePool with and
without its reset, a fresh MySQLdb.connect(). The Python ones run in one uWSGI worker, in turns."""

import os
import subprocess

from tests.bench import table
from tests.bench.requests import server, uwsgi
from tests.support.uwsgi import BUILD

CANDIDATES = {
    'dbpool: check-out + return': ('dbpool', 20000),
    'QueuePool, no reset': ('queuepool', 20000),
    'QueuePool, rollback reset': ('queuepool_rollback', 3000),
    'MySQLdb.connect() + close()': ('connect', 300),
}
ITERATIONS = 1000000


def in_c(running, rounds):
    done = subprocess.run([os.path.join(BUILD, 'tests/bench_acquire'), running.host, str(running.port), 'bench', 'secret',
                           'bench', str(rounds), str(ITERATIONS)], stdout=subprocess.PIPE, check=True, universal_newlines=True)
    pairs = [tuple(map(float, line.split())) for line in done.stdout.splitlines()]
    return {'acquire + release': [pair[0] for pair in pairs], 'two compare-and-swaps': [pair[1] for pair in pairs]}


def run(rounds):
    with server() as running:
        figures = {'c': table.show('checkout in C, uncontended', 'ns', in_c(running, rounds), 'acquire + release', 1)}
        with uwsgi(running, 'dbpool.mysql', 'mysqlclient', 'prefork', 1) as instance:
            samples = {name: [] for name in CANDIDATES}
            for turn in range(rounds + 1):
                for name, (what, times) in CANDIDATES.items():
                    microseconds = instance.get('/checkout', what=what, times=times).json()['us']
                    if turn:  # the first one warms up
                        samples[name].append(microseconds)
            figures['python'] = table.show('checkout from Python', 'microseconds', samples, 'dbpool: check-out + return')
    return figures
