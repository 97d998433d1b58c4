# SPDX-License-Identifier: MIT
"""Requests per second of a Django view under uWSGI with gevent: dbpool and the stock backend, with both drivers, and
the ceiling: private connections that are opened once and kept in each process (app/kept/base.py)."""

import statistics

from tests.bench.figures import ratios
from tests.bench.serving import CLIENTS, WORKERS, begun_in_turn, load, server, uwsgi

CANDIDATES = {
    'dbpool, mysqlclient': ('dbpool.mysql', 'mysqlclient'),
    'dbpool, PyMySQL': ('dbpool.mysql', 'pymysql'),
    'stock, mysqlclient': ('django.db.backends.mysql', 'mysqlclient'),
    'stock, PyMySQL': ('django.db.backends.mysql', 'pymysql'),
    'ceiling, mysqlclient (blocks)': ('kept', 'mysqlclient'),
    'ceiling, mysqlclient (cooperative)': ('kept_cooperative', 'mysqlclient'),
    'ceiling, PyMySQL': ('kept', 'pymysql'),
}
OURS, STOCK, CEILING = 'dbpool, mysqlclient', 'stock, PyMySQL', 'ceiling, mysqlclient (cooperative)'


def _measure(figures, rounds, path, title, names):
    with server() as running:
        samples = begun_in_turn(rounds, {
            name: (lambda name=name: uwsgi(running, *CANDIDATES[name]), lambda one: load(one, path)) for name in names})
        figures.table('%s: %d clients, %d gevent workers' % (title, CLIENTS, WORKERS), 'requests/s', samples, STOCK,
                      'higher')
    return samples


def requests(figures, rounds):
    samples = _measure(figures, rounds, '/one', 'a view with one short query', CANDIDATES)
    figures.reach('requests.ceiling', ratios(samples, OURS, CEILING))
    best = statistics.median(ratios(samples, CEILING, STOCK))
    figures.reach('requests.stock', ratios(samples, OURS, STOCK),
                  'the ceiling, which opens nothing and checks nothing: %.2f x' % best)


def slow(figures, rounds):
    names = [name for name in CANDIDATES if 'blocks' not in name]
    samples = _measure(figures, rounds, '/slow', 'a view with one query of 20 ms', names)
    figures.reach('slow.stock', ratios(samples, OURS, STOCK))
