# SPDX-License-Identifier: MIT
"""Django's MySQL backend on the pool: only the place where connections come from is changed.

Outside uWSGI (manage.py, cron jobs, tests) it is the stock backend: a private connection, POOL is checked and not used.
Inside uWSGI a connection is a lease; close(), and with CONN_MAX_AGE 0 the end of the request, returns it. Nothing is
asked of the server for it: what Django says to a new connection was said once to the session.

HOST "localhost" (or none) means what it means to the driver: the default unix socket with mysqlclient, TCP with PyMySQL.
"""

import logging
import warnings
from contextlib import contextmanager

import django
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.mysql import base as stock
from django.utils.functional import cached_property

from .. import _dbpool, drivers, host, settings, waiting
from .. import pool as pools
from . import unasync

log = logging.getLogger("dbpool")

Database = stock.Database


class _Recorder:
    """Stands for a wrapper and its cursor in stock's mysql_server_data: notes the query, or answers it."""

    class Asked(Exception):
        pass

    def __init__(self, row=None):
        self.row = row
        self.sql = None

    @contextmanager
    def temporary_connection(self):
        yield self

    def execute(self, sql, params=None):
        self.sql = sql

    def fetchone(self):
        if self.row is None:
            raise self.Asked()
        return self.row


def _facts_sql():
    """The query that this Django asks of each new connection; the pool asks it once per session."""
    recorder = _Recorder()
    try:
        stock.DatabaseWrapper.mysql_server_data.func(recorder)
    except _Recorder.Asked:
        pass
    return " ".join(recorder.sql.split())


FACTS_SQL = _facts_sql()


def _value(column):
    """A column of the facts row as a driver would give it: they are numbers and names."""
    if column is None:
        return None
    text = column.decode("utf-8", "replace")
    return int(text) if text.isdigit() else text


def _prepare(connection):
    # As stock does with a new mysqlclient connection; see https://github.com/PyMySQL/mysqlclient/issues/489.
    if connection.encoders.get(bytes) is bytes:
        connection.encoders.pop(bytes)


_warned = set()  # aliases that the log was told about CONN_MAX_AGE
_said = set()  # problems that the log was told


_introduced = set()  # aliases whose pool the broker was told of


def _introduce(wrapper, settings_dict):
    """Tells the broker of the pools of all aliases when the first wrapper is made, so that their floors are open before
    the first request. Django makes it while the application is loaded, when a model asks what the backend can do."""
    if wrapper.alias in _introduced or connections.databases.get(wrapper.alias) is not settings_dict:
        return
    first = not _introduced
    _introduced.add(wrapper.alias)
    wrapper.introduce()
    for alias, other in connections.databases.items() if first else ():
        if alias != wrapper.alias and other.get("ENGINE") == "dbpool.mysql":
            connections[alias]  # its constructor comes here


# Django makes the wrappers of all aliases at every request (gevent): what depends on their settings is done once.
_policies = {}  # alias -> (POOL, OPTIONS, Policy): settings that had no problem, and whose pool was introduced
_params = {}  # alias -> (settings, what get_connection_params() made of them, isolation level)
_profiles = {}  # alias -> (epoch, parameters, autocommit, isolation level, Profile)

_LOOKS_AT_VERSION = django.VERSION >= (4, 2)  # BaseDatabaseWrapper.init_connection_state() does


def _copied(value):
    return {key: _copied(one) for key, one in value.items()} if isinstance(value, dict) else value


def _known_policy(wrapper, settings_dict):
    have = _policies.get(wrapper.alias)
    if have is not None and have[0] is settings_dict.get("POOL") and have[1] is settings_dict.get("OPTIONS"):
        return have[2]
    return None


class DatabaseWrapper(unasync.DatabaseWrapper):
    # In the usual case a wrapper gets no attribute that stock's has not. Stock's are near to the number (30 in CPython
    # 3.11, SHARED_KEYS_MAX_SIZE) above which objects of a class do not share their dicts' keys, and each then costs
    # some microseconds more, at every request under gevent. So what belongs to a lease is asked of the lease.
    _pool_problems = ()  # what is wrong with the settings
    _pool_policy = None  # None: _known_policy() has it
    _connected_in = None  # epoch (forks above this process) of a private self.connection

    def __init__(self, settings_dict, *args, **kwargs):
        super().__init__(settings_dict, *args, **kwargs)
        if _known_policy(self, settings_dict) is None:
            self._read_pool(settings_dict)

    @property
    def _pool(self):
        """The Pool of self.connection; None: it is private."""
        return self.connection._profile.pool if isinstance(self.connection, _dbpool.Proxy) else None

    def _read_pool(self, settings_dict):
        # Said in the log now, raised at the first use: Django makes the wrappers of all aliases at every request, and
        # one bad alias is no reason to refuse pages that use another.
        pool, options = settings_dict.get("POOL"), settings_dict.get("OPTIONS")
        problems = []
        self._pool_policy = settings.policy(self.alias, pool, problems)
        if host.uwsgi() is not None:
            settings.check_options(self.alias, options or {}, problems)
        if problems:
            self._pool_problems = tuple(problems)
            if self._pool_problems not in _said:
                _said.add(self._pool_problems)
                log.error("\n".join(problems))
            return
        if host.uwsgi() is not None:
            _introduce(self, settings_dict)
            if self.alias not in _introduced:
                return
        _policies[self.alias] = pool, options, self._pool_policy

    # ---- connecting ----
    #
    # None of these needs async_unsafe of its own: Django calls them from methods that have it, or they call one.

    def get_connection_params(self):
        have = _params.get(self.alias)
        if have is not None and have[0] == self.settings_dict:
            _, params, self.isolation_level = have
            return dict(params)
        params = super().get_connection_params()
        _params[self.alias] = _copied(self.settings_dict), dict(params), self.isolation_level
        return params

    def _identity(self, conn_params):
        autocommit = self.settings_dict["AUTOCOMMIT"]
        policy = self._pool_policy or _known_policy(self, self.settings_dict)
        if policy is None:  # another wrapper of this alias has other settings
            self._read_pool(self.settings_dict)
            policy = self._pool_policy
        return Database, self.alias, policy, conn_params, autocommit, self.isolation_level, FACTS_SQL

    def introduce(self):
        """Makes the pool known to the broker; takes no session. What is wrong is said in the log here, and raised at
        the first use."""
        try:
            where = host.where()
            if where == host.POOLED:
                pools.profile(*self._identity(self.get_connection_params()), _prepare)
            elif where == host.BEFORE_FORK:
                pools.announce(*self._identity(self.get_connection_params()))
        except (
            ImproperlyConfigured,
            settings.ConfigurationError,
            host.NotReady,
            waiting.HubBlocked,
            Database.Error,
        ) as problem:
            log.error("%s", problem)

    def get_new_connection(self, conn_params):
        if self._pool_problems:
            raise ImproperlyConfigured("\n".join(self._pool_problems))
        epoch = _dbpool.epoch()
        autocommit = self.settings_dict["AUTOCOMMIT"]
        have = _profiles.get(self.alias)
        if have is not None and have[:4] == (epoch, conn_params, autocommit, self.isolation_level):
            profile = have[4]
        else:
            profile = self._profile(conn_params)
            if profile is None:
                self._connected_in = epoch
                return super().get_new_connection(conn_params)
            _profiles[self.alias] = epoch, conn_params, autocommit, self.isolation_level, profile
        connection = profile.connect()
        connection._fresh = True
        return connection

    def _profile(self, conn_params):
        """None: a private connection."""
        # Django's way to a server without a database is for creating test databases: private.
        if self.alias == NO_DB_ALIAS:
            return None
        try:
            if host.where() != host.POOLED:
                return None
            profile = pools.profile(*self._identity(conn_params), _prepare)
        except settings.ConfigurationError as error:
            raise ImproperlyConfigured(str(error)) from None
        except host.NotReady as why:
            raise Database.OperationalError(0, str(why)) from None
        self._warn_of_kept_leases(profile.pool)
        return profile

    def set_autocommit(self, autocommit, *args, **kwargs):
        # Django says it to each new connection, and ours has it. (On one that is shared, by use_threadlocal, it would
        # commit the other user's transaction.)
        connection = self.connection
        if isinstance(connection, _dbpool.Proxy) and connection._fresh:
            connection._fresh = False
            if autocommit == self.settings_dict["AUTOCOMMIT"]:
                self.autocommit = autocommit
                return
        super().set_autocommit(autocommit, *args, **kwargs)

    def _close(self):
        # Half an atomic block, or what came after an error, is nothing to commit, whatever reset_on_return says.
        if not isinstance(self.connection, _dbpool.Proxy):
            return super()._close()
        try:
            return self.connection.close(not (self.in_atomic_block or self.errors_occurred))
        except Database.Error:
            with self.wrap_database_errors:
                raise

    def init_connection_state(self):
        if not isinstance(self.connection, _dbpool.Proxy):
            super().init_connection_state()
        elif _LOOKS_AT_VERSION:
            # Only looks at the server's version; what stock goes on to SET, the session has already.
            BaseDatabaseWrapper.init_connection_state(self)

    @cached_property
    def mysql_server_data(self):
        if self.connection is None:
            with self.temporary_connection():
                return self._server_data()
        return self._server_data()

    def _server_data(self):
        pool = self._pool
        if pool is None:
            return stock.DatabaseWrapper.mysql_server_data.func(self)
        facts, data = pool.server_data
        if facts is not pool.facts:
            row = tuple(_value(column) for column in pool.facts)
            facts, data = pool.facts, stock.DatabaseWrapper.mysql_server_data.func(_Recorder(row))
            pool.server_data = facts, data
        return dict(data)

    def _warn_of_kept_leases(self, pool):
        if self.settings_dict["CONN_MAX_AGE"] == 0 or self.alias in _warned:
            return
        _warned.add(self.alias)
        concurrency = host.concurrency()
        if concurrency and concurrency > pool.cap:
            warnings.warn(
                "dbpool: DATABASES[%r] has CONN_MAX_AGE %r, so each thread or greenlet keeps its session between requests; "
                "%d of them share %d sessions, and those that come late will wait in vain. Use CONN_MAX_AGE 0."
                % (self.alias, self.settings_dict["CONN_MAX_AGE"], concurrency, pool.cap),
                RuntimeWarning,
                stacklevel=2,
            )

    # ---- a connection that came through a fork ----
    #
    # An application that queries while it is imported in the master, or that forks by itself, leaves its connection
    # object to the child. It is the parent's: the child drops it unused, without COM_QUIT, and connects for itself.

    def _is_inherited(self):
        connection = self.connection
        if isinstance(connection, _dbpool.Proxy):
            return connection._inherited
        return connection is not None and self._connected_in != _dbpool.epoch()

    def _forget_inherited(self):
        if not isinstance(self.connection, _dbpool.Proxy) and self._connected_in is not None:
            drivers.of(Database).abandon(self.connection)
        self.connection = None
        self.in_atomic_block = False
        self.savepoint_ids = []
        self.needs_rollback = False
        self.closed_in_transaction = False
        self.run_on_commit = []

    def ensure_connection(self):
        if self.connection is not None and self._is_inherited():
            self._forget_inherited()
        super().ensure_connection()

    def close(self):
        if self.connection is not None and self._is_inherited():
            self._forget_inherited()
        super().close()

    def close_if_unusable_or_obsolete(self):
        if self.connection is None:
            return
        if self._is_inherited():
            self._forget_inherited()
        elif self.settings_dict["CONN_MAX_AGE"] == 0 and self.close_at is not None:
            self.close()  # as stock in the end, which has some looks before, and a ping after an error
        else:
            super().close_if_unusable_or_obsolete()

    def _commit(self):
        if self._is_inherited():
            self._forget_inherited()
        return super()._commit()

    def _rollback(self):
        if self._is_inherited():
            self._forget_inherited()
        return super()._rollback()
