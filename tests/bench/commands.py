# SPDX-License-Identifier: MIT
"""What the server is asked per request beyond the application's own query, from its general log."""

from tests.bench.serving import server, uwsgi

REQUESTS = 100
CANDIDATES = {'dbpool, mysqlclient': ('dbpool.mysql', 'mysqlclient'), 'dbpool, PyMySQL': ('dbpool.mysql', 'pymysql'),
              'stock, mysqlclient': ('django.db.backends.mysql', 'mysqlclient'),
              'stock, PyMySQL': ('django.db.backends.mysql', 'pymysql')}


def _count(running):
    return sum('general_log' not in text for _, _, text in running.commands())


def commands(figures, rounds):
    samples = {}
    with server() as running:
        for name, candidate in CANDIDATES.items():
            with uwsgi(running, *candidate) as instance:
                for _ in range(20):  # every worker has met its sessions
                    instance.get('/one')
                running.log_commands(True)
                before = _count(running)
                for _ in range(REQUESTS):
                    instance.get('/one')
                running.log_commands(False)
                samples[name] = [(_count(running) - before - REQUESTS) / REQUESTS]
    figures.table('server commands per request beyond its query', 'commands', samples)
    figures.reach('commands', samples['dbpool, mysqlclient'] + samples['dbpool, PyMySQL'])
