# SPDX-License-Identifier: MIT
"""Requests per second of a one-query Django view under uWSGI with gevent: dbpool and the stock backend, with both drivers,
and the ceiling: private connections that are opened once and kept in each process (app/kept/base.py)."""

import contextlib
import json
import os
import re
import subprocess

from tests.bench import table
from tests.support import Server, Uwsgi

APP = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'app')
CLIENTS = 32
SECONDS = 3
WORKERS = 2
CANDIDATES = {
    'dbpool, mysqlclient': ('dbpool.mysql', 'mysqlclient'),
    'dbpool, PyMySQL': ('dbpool.mysql', 'pymysql'),
    'stock, mysqlclient': ('django.db.backends.mysql', 'mysqlclient'),
    'stock, PyMySQL': ('django.db.backends.mysql', 'pymysql'),
    'ceiling, mysqlclient (blocks)': ('kept', 'mysqlclient'),
    'ceiling, mysqlclient (cooperative)': ('kept_cooperative', 'mysqlclient'),
    'ceiling, PyMySQL': ('kept', 'pymysql'),
}


@contextlib.contextmanager
def server():
    with Server() as running:
        running.create('bench', 'bench', 'secret')
        running.query('USE bench')
        running.query('CREATE TABLE item (id INT PRIMARY KEY, name VARCHAR(40) NOT NULL)')
        running.query('INSERT INTO item SELECT seq, CONCAT("item ", seq) FROM seq_1_to_1000')
        yield running


def database(running, engine):
    entry = {'ENGINE': engine, 'HOST': running.host, 'PORT': running.port, 'USER': 'bench', 'PASSWORD': 'secret',
             'NAME': 'bench', 'OPTIONS': {'charset': 'utf8mb4'}}
    if engine == 'dbpool.mysql':
        entry['POOL'] = {'pool_size': CLIENTS, 'max_overflow': 0}
    return entry


def uwsgi(running, engine, driver, mode='gevent', processes=WORKERS):
    given = json.dumps({'driver': driver, 'database': database(running, engine)})
    return Uwsgi('wsgi:application', [APP], mode, processes, environ={'DBPOOL_BENCH': given, 'DJANGO_SETTINGS_MODULE': 'settings'})


def load(instance, path, seconds):
    """Requests per second; raises when a request failed."""
    done = subprocess.run(['wrk', '-t1', '-c%d' % CLIENTS, '-d%ds' % seconds, 'http://%s:%d%s' % (*instance.address, path)],
                          stdout=subprocess.PIPE, check=True, universal_newlines=True).stdout
    if 'Non-2xx' in done:
        raise RuntimeError(done + instance.log()[-2000:])
    return float(re.search(r'Requests/sec:\s*([\d.]+)', done).group(1))


def run(rounds):
    figures = {}
    with server() as running, contextlib.ExitStack() as stack:
        instances = {name: stack.enter_context(uwsgi(running, *candidate)) for name, candidate in CANDIDATES.items()}
        for title, path in (('one short query', '/one'), ('one query of 20 ms', '/slow')):
            samples = {name: [] for name in instances}
            for name, instance in instances.items():
                load(instance, path, 1)
            for _ in range(rounds):
                for name, instance in instances.items():
                    samples[name].append(load(instance, path, SECONDS))
            figures[path] = table.show('requests: %s, %d clients, %d gevent workers' % (title, CLIENTS, WORKERS),
                                       'requests/s', samples, 'stock, PyMySQL', 0, 'higher')
    return figures
