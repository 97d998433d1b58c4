# SPDX-License-Identifier: MIT
"""The pool without its Django backend: a DB-API module whose connect() takes a pooled session.

    Database = dbpool.manage(MySQLdb, pool_size=10)     # Flask, peewee, a script in a mule
    dbpool.init_pool(pool_size=10)                      # Django with its own MySQL ENGINE; in the settings, say

A pool is what the server can see of connect()'s arguments. Its alias is made of them, the same in every process:
user@host:port/database#hash, the hash over the rest (flags, charset, init statements, autocommit), never the password.
The rest (conv, cursorclass, time limits) belongs to this process's driver objects. No charset means utf8mb4.

The password opens sessions; it is not checked at each connect(). So in one process all who use a pool must say the same
one, and the pool is no place to try out the passwords of others.
"""

import hashlib
import importlib
import types

from . import _dbpool, drivers, host, settings
from . import pool as pools
from .once import Once
from .settings import ConfigurationError

FACTS_SQL = "SELECT 1"  # nobody asks for facts here

ALIAS_BYTES = 63  # core/dbpool.h: DBP_ALIAS_MAX, with its NUL
HASH_DIGITS = 8

# A conv= or cursorclass= that is made anew for each call would make driver objects, and fds, without end.
VARIANTS_MAX = 64

_POSITIONAL = ("host", "user", "password", "database", "port")
_OTHER_NAMES = {"passwd": "password", "db": "database"}
_POLICY_KEYS = frozenset(
    "connect_timeout_s pool_size max_overflow recycle_s max_lifetime_s idle_timeout_s keepalive_s min_size max_waiting "
    "overflow_grace_ms core_size unload_timeout_ms retire_interval_ms retire_quantity".split()
)
_DEFAULT_PORTS = (None, 0, 3306)  # said or not, it is one pool
_NAME = "dbpool.manage"  # stands for an alias in the texts of settings.py until there is one

_met = {}  # alias -> (Policy, password): what this process said of it first


def alias_of(spec, kind=""):
    """The name of the pool for such sessions. kind keeps users apart who leave other things behind in a session."""

    def text(name):
        return spec[name].decode("utf-8", "replace")

    digest = hashlib.sha256(kind.encode())
    for key in sorted(set(spec) - _POLICY_KEYS - {"alias", "password"}):
        digest.update(repr((key, spec[key])).encode())
    where = text("unix_socket") or "%s:%d" % (text("host") or "127.0.0.1", spec["port"] or 3306)
    name = "%s@%s/%s" % (text("user"), where, text("database"))
    short = name.encode()[: ALIAS_BYTES - 1 - HASH_DIGITS].decode("utf-8", "ignore")
    return "%s#%s" % (short, digest.hexdigest()[:HASH_DIGITS])


def _policy(what, pool):
    problems = []
    policy = settings.policy(_NAME, pool, problems)
    if problems:
        raise ConfigurationError(_said("\n".join(problems), _NAME, what))
    return policy


def _said(text, alias, what):
    """settings.py speaks to those who have DATABASES; here there are arguments."""
    text = text.replace("DATABASES[%r]['POOL']" % alias, what).replace("DATABASES[%r]['OPTIONS']" % alias, "connect()")
    return text.replace("DATABASES[%r]" % alias, "connect()").replace("into DATABASES", "into the call")


class Managed(types.ModuleType):
    """The driver's module but for connect(). Made by manage() and init_pool().

    A Connection that is a class (PyMySQL's) is the driver's own, for isinstance(); calling it bypasses the pool."""

    def __init__(self, module, policy, kind=""):
        super().__init__(module.__name__, module.__doc__)
        for name in ("__spec__", "__loader__", "__package__"):
            setattr(self, name, getattr(module, name, None))
        self._dbpool_module = module
        self._dbpool_driver = drivers.of(module)
        self._dbpool_policy = policy
        self._dbpool_kind = kind
        self._dbpool_known = []  # [(arguments, (arguments with the option file's, alias)), ...]
        self._dbpool_last = None  # (args, kwargs, epoch, Profile) of the last call: most programs have one
        self.Connect = self.connect
        if not isinstance(module.Connection, type):
            self.Connection = self.connect

    def __getattr__(self, name):
        # Only for what is not the proxy's own.
        if name.startswith("_dbpool_"):
            raise AttributeError(name)
        return getattr(self._dbpool_module, name)

    def __dir__(self):
        return dir(self._dbpool_module)

    def __repr__(self):
        return "<dbpool.manage(%r)>" % self._dbpool_module

    def connect(self, *args, **kwargs):
        """A connection of the driver's kind on a session of the pool; close() returns it, and what was not committed is
        rolled back (but see reset_on_return). autocommit is off unless the arguments say autocommit=True.

        Outside uWSGI, and in its master before the fork: a private connection of the driver."""
        last = self._dbpool_last
        if last is not None and last[1] == kwargs and last[0] == args and last[2] == _dbpool.epoch():
            return last[3].connect()
        module = self._dbpool_module
        try:
            if host.where() != host.POOLED:
                return module.connect(*args, **kwargs)
        except host.NotReady as why:
            raise module.OperationalError(0, str(why)) from None
        params, alias = self._dbpool_resolved(_named(args, kwargs))
        try:
            profile = pools.profile(
                module, alias, self._dbpool_policy, params, bool(params.get("autocommit", False)), False, FACTS_SQL
            )
        except ConfigurationError as wrong:
            raise ConfigurationError(_said(str(wrong), alias, _NAME + "()")) from None
        self._dbpool_last = args, _copied(kwargs), _dbpool.epoch(), profile
        return profile.connect()

    def _dbpool_resolved(self, params):
        """(arguments with what an option file adds, the pool's alias)"""
        for have, found in self._dbpool_known:
            if have == params:
                return found
        once = Once.of("managed")
        with once.lock(_NAME):  # else the first ones in many threads would each count as another set of arguments
            for have, found in self._dbpool_known:
                if have == params:
                    return found
            found = self._dbpool_resolve(params)
            self._dbpool_known.append((params, found))
            return found

    def _dbpool_resolve(self, params):
        autocommit = params.get("autocommit", False)
        if autocommit is None:
            raise ConfigurationError(
                "connect(): autocommit=None (whatever the server has) cannot be pooled: say True or False"
            )
        try:
            params = settings.with_option_file(_NAME, params, self._dbpool_driver)
            if params.get("port") in _DEFAULT_PORTS:
                params.pop("port", None)
            spec, _ = settings.split(
                _NAME, params, self._dbpool_policy, self._dbpool_driver, autocommit, False, FACTS_SQL
            )
        except ConfigurationError as wrong:
            raise ConfigurationError(_said(str(wrong), _NAME, _NAME + "()")) from None
        alias = alias_of(spec, self._dbpool_kind)
        policy, password = _met.setdefault(alias, (self._dbpool_policy, spec["password"]))
        if policy != self._dbpool_policy:
            raise ConfigurationError(
                "dbpool: pool '%s' is in use in this process with other values of %s()" % (alias, _NAME)
            )
        if password != spec["password"]:
            raise ConfigurationError("dbpool: pool '%s' is in use in this process with another password" % alias)
        if sum(known == alias for _, (_, known) in self._dbpool_known) >= VARIANTS_MAX:
            raise ConfigurationError(
                "dbpool: connect() to pool '%s' was called with %d different sets of arguments; conv, cursorclass and "
                "the like must be the same objects each time" % (alias, VARIANTS_MAX)
            )
        return params, alias


def _copied(kwargs):
    """What the caller does to his dicts later is another call's."""
    return {key: dict(value) if isinstance(value, dict) else value for key, value in kwargs.items()}


def _named(args, kwargs):
    """connect()'s arguments, each under one name, dicts copied."""
    if len(args) > len(_POSITIONAL):
        raise TypeError("connect() of a pool takes %d positional arguments at most" % len(_POSITIONAL))
    params = dict(zip(_POSITIONAL, args))
    for key, value in _copied(kwargs).items():
        name = _OTHER_NAMES.get(key, key)
        if name in params:
            raise TypeError("connect() got multiple values for argument %r" % name)
        params[name] = value
    return params


def manage(module, **pool):
    """MySQLdb or pymysql with a connect() that takes pooled sessions. pool: POOL's keys (policy.py), preset='...' too.

    The same exceptions, constants, types and attributes. Inside uWSGI without the plugin or a master, connect() raises
    ConfigurationError."""
    policy = _policy(_NAME + "()", pool)
    if isinstance(module, Managed):
        module = module._dbpool_module
    return Managed(module, policy)


def init_pool(**pool):
    """Pools the connections of django.db.backends.mysql, ENGINE unchanged. One line, before or after Django loads it
    (with PyMySQL: after install_as_MySQLdb()); again with the same values it does nothing. Returns the managed module.

    The price against ENGINE = "dbpool.mysql": stock Django takes each lease for a new connection and says its SET
    statements to it (autocommit, isolation level). The pool's baseline is autocommit off, so each lease begins without
    a transaction that SET autocommit=1 could commit, and a return with autocommit on is put right by the pool's reset.
    With 'rollback' that is ROLLBACK and SET autocommit=0, and the isolation level stays in the session, so these pools
    are not shared with manage()'s. Two DATABASES that differ in nothing but isolation_level share sessions; then give both a level.

    use_threadlocal has no effect: Django keeps a connection for each thread anyway, and two aliases must not share one.
    reset_on_return 'commit' is refused: stock Django cannot tell the pool that an atomic block was left half done."""
    policy = _policy("dbpool.init_pool()", pool)
    if policy.reset == "commit":
        raise ConfigurationError("dbpool.init_pool(): reset_on_return 'commit' needs ENGINE 'dbpool.mysql'")
    policy = policy._replace(use_threadlocal=False)
    base = importlib.import_module("django.db.backends.mysql.base")
    managed = base.Database
    if not isinstance(managed, Managed):
        managed = Managed(managed, policy, "django")
    elif managed._dbpool_policy != policy or managed._dbpool_kind != "django":
        raise ConfigurationError("dbpool.init_pool(): Django's backend is managed already, with other values")
    base.Database = base.DatabaseWrapper.Database = managed
    return managed
