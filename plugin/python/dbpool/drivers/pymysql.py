# SPDX-License-Identifier: MIT
"""PyMySQL: a stock object whose socket is a _dbpool.Wire.

The Wire plays the login in memory and then is the session's fd; it waits as the mode asks for and never touches the
fd's flags. Three things of the stock class are changed: server_status is what the Wire heard last (PyMySQL 1.0 does not
take it from the end of a result), and neither connect() nor ping() opens a connection outside the pool.
"""

import pymysql
from pymysql.charset import charset_by_name
from pymysql.connections import Connection as StockConnection
from pymysql.constants import CLIENT

from .. import _dbpool, optionfile, waiting
from ..lease import LeasedConnection
from ..settings import LOCAL_FILES, ConfigurationError
from . import QUIET, Lent, SessionUnavailable, from_server, opaque

PASSWORD_ENCODING = "latin1"
EMPTY_SQL_MODE_IS_SENT = True
OPTION_FILE = optionfile.PYMYSQL

_IN_TRANS = 1
_AUTOCOMMIT = 2
_MORE_RESULTS = 8

_NAMES = "charset", "encoding", "collation"  # what set_character_set() changes; the last from 1.1 on


# Both from 1.1 on.
KNOWS_COLLATION = _ALWAYS_NAMES = hasattr(StockConnection, "set_character_set")


def set_up(charset, collation, init_command, set_mode):
    """The character set, sql_mode, then init_command (pymysql.connections.Connection.connect). From 1.1 on "utf8" logs in
    as utf8mb4, and then says SET NAMES utf8."""
    charset = charset or b"utf8mb4"
    names = [b"SET NAMES " + charset + (b" COLLATE " + collation if collation else b"")] if _ALWAYS_NAMES else []
    known = charset_by_name(charset.decode())
    return known.name.encode() if known else charset, names + set_mode + init_command


def address(host, unix_socket):
    """PyMySQL takes no host for "localhost", and that for TCP."""
    return ("", unix_socket) if unix_socket else (host or "localhost", "")


def client_flags(params):
    flags = (params.get("client_flag") or 0) | CLIENT.CAPABILITIES
    return flags | LOCAL_FILES if params.get("local_infile") else flags


def same_in_both(params):
    same = {"client_flag": params.get("client_flag") or 0, "local_infile": bool(params.get("local_infile"))}
    if params.get("collation"):
        same["collation"] = params["collation"]
    return same


class PooledConnection(StockConnection):
    """The stock class on a Wire."""

    _dbpool_wire = None

    @property
    def server_status(self):
        return self._dbpool_wire.status

    @server_status.setter
    def server_status(self, status):
        self._dbpool_wire.status = status

    def connect(self, sock=None):
        if sock is None or self._dbpool_wire is not None:
            raise pymysql.InterfaceError(0, "dbpool: this connection's session is the pool's; it cannot reconnect")
        self._dbpool_wire = sock
        super().connect(sock)

    def ping(self, reconnect=False):
        super().ping(False)


class Driver(_dbpool.Driver):
    __slots__ = ("wire", "facts_row", "lent", "_names")

    def __init__(self, lease, spec, local, seconds):
        fetched = _dbpool.fetch(lease, seconds)
        if type(fetched) is int:
            raise SessionUnavailable(fetched)
        fd, facts = fetched
        self.facts_row = facts.row
        self.session = lease.session
        self.incarnation = lease.incarnation
        self.tracked = facts.tracked
        self.lent = Lent()
        self.wire = _dbpool.Wire(facts, spec["charset"].decode(), lease.status(), pymysql.InterfaceError)
        try:
            self.connection = self._login(spec, local)
            if self.connection.thread_id() != facts.connection_id:
                raise ConfigurationError("dbpool: the replayed login gave PyMySQL another session's number")
            self._names = {name: getattr(self.connection, name) for name in _NAMES if hasattr(self.connection, name)}
            self.wire.opaque = opaque(spec)
            self.wire.adopt(fd)
        except BaseException:
            self.wire.close()
            _dbpool.close(fd)
            raise

    def _login(self, spec, local):
        connection = PooledConnection(
            host=spec["host"].decode() or "localhost",
            unix_socket=spec["unix_socket"].decode() or None,
            port=spec["port"],
            user=spec["user"].decode(),
            database=spec["database"].decode() or None,
            charset=spec["charset"].decode(),
            autocommit=None,
            defer_connect=True,
            **local
        )
        refusal = None
        try:
            connection.connect(self.wire)
        except pymysql.MySQLError:
            refusal = self.wire.refusal()
            if not refusal:
                raise
        if refusal:
            raise ConfigurationError("dbpool: PyMySQL cannot use this pool's sessions: %s" % refusal)
        return connection

    # ---- a lease's life ----

    def checkout(self, status):
        self.wire.begin(status)
        connection = self.connection
        vars(connection).update(self._names)
        connection._result = None
        connection._affected_rows = 0
        connection.autocommit_mode = None

    def settle(self, autocommit, reset):
        connection = self.connection
        status = self.wire.status
        result = connection._result
        if (
            self.broken
            or connection._sock is None
            or (result is not None and result.unbuffered_active)
            or status & _MORE_RESULTS
            or self.wire.pending()
        ):
            return _dbpool.DOOM, status, False
        if self.wire.doubt:
            status |= _IN_TRANS
        elif self.wire.wrote:
            status |= _dbpool.STATUS_WROTE
        keep = not (self.lent.pairs and self.lent.changed())
        if reset == "full" or (reset == "auto" and (self.wire.changed or not self.tracked)):
            return _dbpool.FULL, status, keep
        if status & _IN_TRANS or bool(status & _AUTOCOMMIT) != autocommit:
            return _dbpool.RESET, status, keep
        return _dbpool.CLEAN, status, keep

    def failed(self, error):
        self.wire.mark()
        ended = self.wire.ended()
        if ended is not None or not from_server(error, pymysql.MySQLError):
            self.broken = True
        return None if ended is error else ended

    def before(self, name):
        if name not in QUIET:
            self.wire.mark()

    def lend(self, value):
        self.lent.add(value)

    def ping(self, timeout_ms):
        fd = self.wire.fileno()
        return fd >= 0 and _dbpool.ping(fd, timeout_ms)

    def gone(self):
        fd = self.wire.fileno()
        return fd < 0 or _dbpool.peek_end(fd)

    def destroy(self):
        fd = self.wire.fileno()
        if fd >= 0:
            waiting.forget(fd)
        self.wire.close()
        # An unread result that dies would read on.
        result = self.connection._result
        if result is not None:
            result.unbuffered_active = False


class Connection(LeasedConnection):
    """A lease of a session, as a PyMySQL connection."""

    __slots__ = ()
    Database = pymysql

    query = _dbpool.command("query")
    escape = _dbpool.ask("escape")
    _result = _dbpool.value("_result")

    def ping(self, reconnect=False):
        """Never reconnects: that would be a connection outside the pool."""
        return self._call(self._target.ping)

    def cursor(self, cursor=None):
        return super().cursor(cursor)

    def connect(self, sock=None):
        raise self.Database.InterfaceError(0, "dbpool: a leased connection cannot reconnect; close it and take another")


def abandon(connection):
    """A private connection of the parent process: PyMySQL says COM_QUIT only in close(), so its fd is all there is."""
    connection._force_close()
