# SPDX-License-Identifier: MIT
"""Ways to a connection at the DB-API level, all with whichever driver MySQLdb is: what candidates are made of."""

import time

import dbpool
import MySQLdb
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, connection, connections
from django.http import JsonResponse
from sqlalchemy.pool import QueuePool

_pools = {}


def parameters(**changes):
    given = settings.DATABASES['default']
    return dict({'host': given['HOST'], 'port': given['PORT'], 'user': given['USER'], 'passwd': given['PASSWORD'],
                 'db': given['NAME'], 'charset': 'utf8mb4', 'autocommit': True}, **changes)


def private(**changes):
    return MySQLdb.connect(**parameters(**changes))


def queuepool(size, reset=None, overflow=0):
    """One in each process: that is what it is."""
    key = size, reset, overflow
    if key not in _pools:
        _pools[key] = QueuePool(private, pool_size=size, max_overflow=overflow, reset_on_return=reset, timeout=60)
    return _pools[key].connect


def managed(size, **changes):
    """One for all processes; a size other than 4 needs a database of its own name, since that makes another pool."""
    key = size, *changes.items()
    if key not in _pools:
        _pools[key] = dbpool.manage(MySQLdb, pool_size=size, max_overflow=0, timeout=60)
    connect, arguments = _pools[key].connect, parameters(**changes)
    return lambda: connect(**arguments)


def profile():
    """Below manage() and the backend: what both call."""
    from dbpool.once import Once
    managed(4)().close()
    (have,) = [made for alias, known in Once.of('profiles')._found.items() for _, made in known if alias != DEFAULT_DB_ALIAS]
    return have.connect


def backend():
    """What Django's wrapper does when it connects, without Django. Of the wrapper itself, since `connection` is only a
    proxy that looks for it each time."""
    connection.ensure_connection()
    connection.close()
    wrapper = connections[connection.alias]
    return lambda given=wrapper.get_connection_params(): wrapper.get_new_connection(given)


def hold(request):
    """A session of a pool of so many, held for a query of so many ms: how long it took to get one."""
    how, size, ms = request.GET['how'], int(request.GET['size']), float(request.GET['ms'])
    take = managed(size, db='bench%d' % size) if how == 'dbpool' else queuepool(size)
    began = time.perf_counter()
    taken = take()
    waited = time.perf_counter() - began
    cursor = taken.cursor()
    cursor.execute('SELECT SLEEP(%s)', [ms / 1000])
    cursor.fetchall()
    cursor.close()
    taken.close()
    return JsonResponse({'ms': waited * 1000})
