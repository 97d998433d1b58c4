# SPDX-License-Identifier: MIT
"""The pages that measure something in their worker, asked for one at a time."""

import os
import statistics
import time

import MySQLdb
from django.db import connection
from django.http import JsonResponse

import pools

CANDIDATES = {
    'managed': lambda: pools.managed(4), 'profile': pools.profile, 'backend': pools.backend,
    'queuepool': lambda: pools.queuepool(4), 'queuepool_rollback': lambda: pools.queuepool(4, 'rollback'),
    'private': lambda: pools.private,
}


def checkout(request):
    """Taking a connection and giving it back, so many times: the median of short blocks, which others on the processor
    seldom interrupt."""
    connect, times = CANDIDATES[request.GET['what']](), int(request.GET['times'])
    for _ in range(min(times, 1000)):
        connect().close()
    block, took = max(1, times // 200), []
    for _ in range(times // block):
        began = time.perf_counter_ns()
        for _ in range(block):
            connect().close()
        took.append(time.perf_counter_ns() - began)
    return JsonResponse({'us': statistics.median(took or [0]) / block / 1000, 'pid': os.getpid()})


def _cooperative(port):
    """A private connection that waits as dbpool's do: on the hub, where its driver blocks by itself."""
    if MySQLdb.__name__ == 'pymysql':
        return pools.private(port=port), None
    from dbpool import _dbpool, waiting
    waiting.enable()
    made = pools.private(port=port, read_timeout=waiting.FOREVER_S, write_timeout=waiting.FOREVER_S)
    native = _dbpool.Native(made, MySQLdb._mysql.__file__)
    if not native.install():
        raise RuntimeError('the client library has no I/O wait hook')
    return made, native


FOUR = 4
_kept = {}


def latency(request):
    """A query, so many times, on four connections by turns: which of the server's threads runs where makes more of a
    difference than anything that is compared. One kind of connection in a process: CPython fits the drivers' functions
    to the class that it meets most often."""
    times, port = int(request.GET['times']), int(request.GET['port'])
    if port == 0:
        connections = [pools.managed(FOUR)() for _ in range(FOUR)]
    else:
        connections = [one for one, _ in _kept.setdefault('four', [_cooperative(port) for _ in range(FOUR)])]
    took = []
    for turn in range(times):
        taken = connections[turn % FOUR]
        began = time.perf_counter_ns()
        cursor = taken.cursor()
        cursor.execute('SELECT name FROM item WHERE id = 7')
        cursor.fetchall()
        cursor.close()
        took.append(time.perf_counter_ns() - began)
    if port == 0:
        for taken in connections:
            taken.close()
    took.sort()
    return JsonResponse({'p50': took[times // 2] / 1000, 'p99': took[times * 99 // 100] / 1000})


def loop(request):
    """So many leases with a query each, one after another."""
    for _ in range(int(request.GET['times'])):
        with connection.cursor() as cursor:
            cursor.execute('SELECT name FROM item WHERE id = 7')
            cursor.fetchone()
        connection.close()
    return JsonResponse({'pid': os.getpid()})


def _use(connection, sql='SELECT name FROM item WHERE id = 7'):
    cursor = connection.cursor()
    cursor.execute(sql)
    cursor.fetchall()
    cursor.close()


def fill(request):
    """So many sessions at the same time, each with a query."""
    connect = pools.backend()
    taken = [connect() for _ in range(int(request.GET['sessions']))]
    for one in taken:
        _use(one)
    for one in taken:
        one.close()
    return JsonResponse({'pid': os.getpid()})


def large(request):
    connect = pools.backend() if request.GET['how'] == 'dbpool' else _keep_one
    taken = connect()
    _use(taken, "SELECT REPEAT('x', %d)" % int(request.GET['bytes']))
    if request.GET['how'] == 'dbpool':
        taken.close()
        connect().close()
    return JsonResponse({'pid': os.getpid()})


def _keep_one():
    if 'one' not in _kept:
        _kept['one'] = pools.private()
    return _kept['one']


def busy(request):
    """So many greenlets, each with one lease after another for queries of 10 ms."""
    import gevent
    connect, until = pools.backend(), time.monotonic() + float(request.GET['seconds'])

    def work():
        n = 0
        while time.monotonic() < until:
            taken = connect()
            _use(taken, 'SELECT SLEEP(0.01)')
            taken.close()
            n += 1
        return n

    greenlets = [gevent.spawn(work) for _ in range(int(request.GET['sessions']))]
    gevent.joinall(greenlets, raise_error=True)
    return JsonResponse({'leases': sum(one.value for one in greenlets)})


def spike(request):
    """One lease of the way that is asked for, held for a query of 2 ms; how long it took to get it."""
    how, began = request.GET['how'], time.perf_counter()
    if how == 'dbpool':
        connection.ensure_connection()
        taken = connection.connection
    elif how == 'queuepool':
        taken = pools.queuepool(5, 'rollback', 45)()
    else:
        taken = pools.private()
    waited = time.perf_counter() - began
    _use(taken, 'SELECT SLEEP(0.002)')
    if how == 'dbpool':
        connection.close()
    else:
        taken.close()
    return JsonResponse({'ms': waited * 1000})


def clock(request):
    """What timed/base.py measured since it was last asked: the sum of the medians of its calls."""
    from timed.base import took
    us = sum(statistics.median(times or [0]) for times in took.values()) / 1000
    for times in took.values():
        times.clear()
    return JsonResponse({'us': us})


VIEWS = {view.__name__: view for view in (checkout, latency, loop, fill, large, busy, spike, clock)}
