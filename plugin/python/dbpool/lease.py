# SPDX-License-Identifier: MIT
"""What a user of the pool holds: a proxy connection that ends with its lease, and cursors that end with it.

After the return every use raises the driver's InterfaceError and writes nothing: the session may be another process's
by then. close() returns the lease; close() again is harmless. The driver object behind is never given out.

A lease that is not closed is returned when its greenlet or its thread ends (src/owner.c), at the latest when the proxy is
collected (Django's wrapper is a reference cycle, so that can be late). These backstops never wait and never write.
"""

import sys
import weakref

from . import _dbpool

# Calls that change what the session is for everybody after. They are allowed, and the session is reset at the end of the
# lease; with a reset_on_return that does not do that, it ends with the lease.
_ALTERS = frozenset("select_db set_charset set_character_set set_sql_mode".split())
# No reset undoes these.
_ENDS = frozenset(("set_server_option",))
# Calls that would take the session away from the pool.
_REFUSED = frozenset("change_user connect shutdown adopt".split())


class LeasedConnection(_dbpool.Proxy):
    """Base of the drivers' proxies. Made by pool.py and src/checkout.c only.

    One greenlet or thread at a time: a second one gets ProgrammingError. Errors are those of the driver. What it holds,
    _open(), _call(), open and close() are in src/proxy.c; the methods that are called at each query in src/methods.c."""

    __slots__ = ("__weakref__",)
    Database = None  # the driver's module

    # ---- use ----

    def cursor(self, cursorclass=None):
        target = self._open()
        wanted = cursorclass or target.cursorclass
        cursor = (_cursor_classes.get(wanted) or _cursor_class(wanted))(self)
        cursor._dbpool_proxy = self
        return cursor

    commit = _dbpool.command("commit")
    rollback = _dbpool.command("rollback")
    autocommit = _dbpool.command("autocommit")
    next_result = _dbpool.command("next_result")
    literal = _dbpool.ask("literal")
    insert_id = _dbpool.ask("insert_id")
    encoding = _dbpool.value("encoding")

    def __getattr__(self, name):
        # Only for what is not defined above. Private names of the driver object are its own business.
        if name.startswith("_"):
            raise AttributeError(name)
        if name in _REFUSED:
            raise self.Database.NotSupportedError("dbpool: %s() is not possible on a pooled session" % name)
        value = getattr(self._open(), name)
        if not callable(value) or isinstance(value, type):
            if isinstance(value, (dict, list)):
                self._driver.lend(value)
            return value

        def call(*args, **kwargs):
            self._open()
            if name in _ENDS or (name in _ALTERS and self._profile.pool.policy.reset in ("rollback", "commit")):
                self._driver.broken = True
            self._driver.before(name)
            return self._call(getattr(self._open(), name), *args, **kwargs)

        call.__name__ = name
        return call

    def __enter__(self):
        self._open()
        return self

    def __exit__(self, exc_type, *exc_info):
        self.close(commit=exc_type is None)

    # ---- the end ----

    @property
    def users(self):
        """How many times it was given and not closed yet: more than 1 only with use_threadlocal."""
        return self._users if self._lease is not None else 0

    def _unwatch(self):
        watched, self._watched = self._watched, None
        sys.modules["dbpool.leaks"].forget(watched)

    def __repr__(self):
        lease = self._lease
        where = "session %d" % lease.session if lease is not None else "returned"
        return "<%s of pool %r, %s>" % (type(self).__name__, self._profile.pool.alias, where)


class Shared:
    """use_threadlocal: the connection that each greenlet or thread has of one profile."""

    def __init__(self):
        self._proxies = weakref.WeakKeyDictionary()  # greenlet or thread's Owner -> weak reference

    @staticmethod
    def _holder():
        greenlet = sys.modules.get("greenlet")
        return greenlet.getcurrent() if greenlet is not None else _dbpool.thread_owner()

    def get(self):
        """The caller's, counted once more; None when it has none now."""
        ref = self._proxies.get(self._holder())
        proxy = ref() if ref is not None else None
        if proxy is None or not proxy.open:
            return None
        proxy._users += 1
        return proxy

    def put(self, proxy):
        self._proxies[self._holder()] = weakref.ref(proxy)


# ---- cursors ----

# What a cursor does, or may do, without asking its connection: hand out rows that it has already. execute(),
# executemany() and nextset() ask the proxy.
_CHECKED = ("callproc", "fetchone", "fetchmany", "fetchall", "scroll", "mogrify", "fetchall_unbuffered", "__next__", "next",
            "__enter__")
# The one step of an unbuffered cursor that reads the wire behind the connection's back: mysqlclient's and PyMySQL's.
_READS_WIRE = ("_fetch_row", "read_next")

_cursor_classes = {}


def _rows(proxy, rows):
    for row in rows:
        proxy._open()
        yield row


def _iterates(method):
    def iterates(self):
        self._dbpool_proxy._open()
        rows = method(self)
        # An iterator over rows that are here already would outlive the lease.
        return self if rows is self else _rows(self._dbpool_proxy, rows)

    iterates.__name__ = method.__name__
    return iterates


def _finishes_first(close):
    def finishes_first(self):
        # PyMySQL reads what is left of an unbuffered result, behind the connection's back.
        result = getattr(self, "_result", None)
        if getattr(result, "unbuffered_active", False) and self.connection is not None:
            self._dbpool_proxy._call(result._finish_unbuffered_query)
        close(self)

    finishes_first.__name__ = close.__name__
    return finishes_first


def _cursor_class(base):
    """base, stopped when the lease ends. A subclass, so that isinstance() and the user's own methods work."""
    made = _cursor_classes.get(base)
    if made is None:
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}

        close = _finishes_first(base.close) if hasattr(base, "read_next") else base.close
        names["close"] = _dbpool.closing(close)
        names["_dbpool_proxy"] = None  # while it is made
        if hasattr(base, "__del__"):
            names["__del__"] = lambda self: None  # PyMySQL's would read the rest of the rows in a finaliser
        for name in _CHECKED:
            if hasattr(base, name):
                names[name] = _dbpool.checked(getattr(base, name))
        if hasattr(base, "__iter__"):
            names["__iter__"] = _iterates(base.__iter__)
        for name in _READS_WIRE:
            if hasattr(base, name):
                names[name] = _dbpool.guarded(getattr(base, name))
        made = _cursor_classes[base] = type(base.__name__, (base,), names)
    return made
