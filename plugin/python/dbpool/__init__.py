# SPDX-License-Identifier: MIT
"""One pool of live MySQL sessions in the uWSGI master, leased to every worker.

Django uses it as ENGINE = "dbpool.mysql". From the backend down, one idea a module:

    mysql/base.py   the Django backend: stock but for where its connections come from
    mysql/unasync.py Django's async_unsafe at a lower price
    settings.py     DATABASES[alias] -> what makes a pool, what stays in this process
    optionfile.py   read_default_file: an option file, as the stock driver would have read it
    managed.py      without that backend: a DB-API module whose connect() takes a pooled session
    policy.py       POOL: its keys and the presets
    host.py         where are we: outside uWSGI, in its master before the fork, in a process with the pool
    pool.py         check-out and check-in: a lease, and a driver object that speaks on its session; the quick way of most
                    is src/checkout.c
    once.py         made once in a process, by however many threads and greenlets
    lease.py        the proxies that a user gets: they end with the lease
    leaks.py        leak_threshold: who has kept a lease for too long
    drivers/        mysqlclient and PyMySQL: making, refreshing and destroying a driver object
    waiting.py      waiting for a session's socket and for a lease, on the gevent hub or on the thread
    _dbpool         the C side (src/)
"""

__version__ = "0.1.0"


def __getattr__(name):
    # Not imported with the package: setup reads the version here, where there is no extension yet.
    if name == "DjangoPoolParams":
        from .policy import DjangoPoolParams

        return DjangoPoolParams
    if name in ("manage", "init_pool"):
        from . import managed

        return getattr(managed, name)
    raise AttributeError("module 'dbpool' has no attribute %r" % name)
