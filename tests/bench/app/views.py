# SPDX-License-Identifier: MIT
import json
import time

import MySQLdb
from django.conf import settings
from django.db import connection
from django.http import JsonResponse
from django.urls import path

_pools = {}


def ping(request):
    return JsonResponse({})


def one(request):
    with connection.cursor() as cursor:
        cursor.execute('SELECT name FROM item WHERE id = %s', [7])
        return JsonResponse({'name': cursor.fetchone()[0]})


def slow(request):
    with connection.cursor() as cursor:
        cursor.execute('SELECT SLEEP(0.02)')
        cursor.fetchone()
    return JsonResponse({})


def _private():
    given = settings.DATABASES['default']
    return MySQLdb.connect(host=given['HOST'], port=given['PORT'], user=given['USER'], passwd=given['PASSWORD'],
                           db=given['NAME'], charset='utf8mb4', autocommit=True)


def _queuepool(reset, pool_size=4, max_overflow=10):
    from sqlalchemy.pool import QueuePool
    if reset not in _pools:
        _pools[reset] = QueuePool(_private, pool_size=pool_size, max_overflow=max_overflow, reset_on_return=reset)
    return _pools[reset].connect


def _dbpool():
    """What the backend does when Django connects, without Django: the DB-API level."""
    connection.ensure_connection()
    connection.close()
    return lambda parameters=connection.get_connection_params(): connection.get_new_connection(parameters)


def checkout(request):
    what, times = request.GET['what'], int(request.GET['times'])
    connect = {'dbpool': _dbpool, 'queuepool': lambda: _queuepool(None), 'connect': lambda: _private,
               'queuepool_rollback': lambda: _queuepool('rollback')}[what]()
    for _ in range(times // 10):
        connect().close()
    began = time.perf_counter()
    for _ in range(times):
        connect().close()
    return JsonResponse({'us': (time.perf_counter() - began) / times * 1e6})


def spike(request):
    """One lease of the way that is asked for, held for a query of 2 ms; how long it took to get it."""
    how, began = request.GET['how'], time.perf_counter()
    if how == 'dbpool':
        connection.ensure_connection()
        taken = connection.connection
    elif how == 'queuepool':
        taken = _queuepool('rollback', pool_size=5, max_overflow=45)()
    else:
        taken = _private()
    waited = time.perf_counter() - began
    cursor = taken.cursor()
    cursor.execute('SELECT SLEEP(0.002)')
    cursor.fetchall()
    cursor.close()
    if how == 'dbpool':
        connection.close()
    else:
        taken.close()
    return JsonResponse({'ms': waited * 1000})


urlpatterns = [path('ping', ping), path('one', one), path('slow', slow), path('checkout', checkout),
               path('spike', spike)]
