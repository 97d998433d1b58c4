# SPDX-License-Identifier: MIT
"""mysqlclient: a stock MySQLdb object on a session of the pool.

It only knows how to connect, so it logs in to a thread of ours that plays the server with the session's facts; then the
session's fd is put under its fd number. The object lives as long as the session and is used by one lease at a time.

With MariaDB's client library every wait goes through our hook (MARIADB_OPT_IO_WAIT), in greenlets on the hub. Where the
library has no such option (Oracle's) a Fallback object sends, waits and then reads: the wait for the first byte of an
answer is cooperative, the rest of a long answer is not. Such an object's cached status can be neither written nor read
either, so each lease begins with a round trip (DO 0) and ends with a reset, of all of the session with 'auto'.
"""

import os

import MySQLdb
import MySQLdb.connections

from .. import _dbpool, optionfile, waiting
from ..lease import LeasedConnection
from ..settings import LOCAL_FILES, ConfigurationError
from . import QUIET, Lent, SessionUnavailable, charset_after, from_server, may_change_names, opaque

PASSWORD_ENCODING = "utf-8"
EMPTY_SQL_MODE_IS_SENT = False
OPTION_FILE = optionfile.LIBMARIADB

# For tests: behaves as if the client library had no I/O wait option.
FORCE_FALLBACK = bool(os.environ.get("DBPOOL_FORCE_FALLBACK"))

REPLAY_TIMEOUT = 5.0  # seconds; a replayed login takes about a millisecond

_STATUS_IN_TRANS = 1
_STATUS_AUTOCOMMIT = 2

# Where servers' packages put the socket that libmysqlclient calls "localhost"; Debian's first.
_DEFAULT_SOCKETS = (
    "/run/mysqld/mysqld.sock",
    "/var/run/mysqld/mysqld.sock",
    "/var/lib/mysql/mysql.sock",
    "/tmp/mysql.sock",
)


KNOWS_COLLATION = MySQLdb.version_info >= (2, 2)

# From 2.1 on the stock class says SET NAMES at each connect; before, only where the library's name of its character set
# is not the one that is wanted (set_character_set): "utf8" is "utf8mb3" to libmariadb since 3.2.
_ALWAYS_NAMES = MySQLdb.version_info >= (2, 1)
_DEFAULT_CHARSET = b"utf8mb4"


def _library_name(charset):
    """None: a library that cannot be asked, which does not follow what the server tells of its character set either."""
    name = _dbpool.Native.charset(MySQLdb._mysql.__file__, charset.decode("ascii", "replace"))
    return name and name.encode()


def set_up(charset, collation, init_command, set_mode):
    """init_command within the library's login, then the character set, then sql_mode (MySQLdb.connections). The library
    follows SET NAMES in init_command, and with no charset given the stock class takes what it has then."""
    login = charset or _DEFAULT_CHARSET
    known = charset_after(init_command, login) if _library_name(login) else login
    if not charset and known is None:
        return None, []
    has = known and (_library_name(known) or known)
    wanted = charset or (login if known == login else has)
    names = [b"SET NAMES " + (_library_name(wanted) or wanted) + (b" COLLATE " + collation if collation else b"")]
    if not any(map(may_change_names, init_command)):
        # The order makes no difference; this one is PyMySQL's too, so that both can share a pool.
        return wanted, (names if _ALWAYS_NAMES else []) + init_command + set_mode
    if has == wanted and not _ALWAYS_NAMES:
        names = []
    # The pool logs in with what is wanted in the end.
    before = [] if wanted == login else [b"SET NAMES " + login]
    return wanted, before + init_command + names + set_mode


def address(host, unix_socket):
    """libmysqlclient takes no host and "localhost" for a unix socket, given or its default one; any other host is TCP,
    whatever socket is given (mysql_real_connect). Here too, where the default socket exists; else 127.0.0.1."""
    if host not in ("", "localhost"):
        return host, ""
    if unix_socket:
        return "", unix_socket
    for path in (os.environ.get("MYSQL_UNIX_PORT"),) + _DEFAULT_SOCKETS:
        if path and os.path.exists(path):
            return "", path
    return "127.0.0.1", ""


class _Asked(Exception):
    pass


class _LibraryLogin(MySQLdb._mysql.connection):
    def __init__(self, *args, **kwargs):
        raise _Asked(kwargs.get("client_flag", 0))


class _Probe(MySQLdb.connections.Connection, _LibraryLogin):
    """Stands between the stock class and its C base: which flags a version adds is its own business (1.4 adds
    MULTI_STATEMENTS by the library's version number, 2.1 by an argument)."""


def client_flags(params):
    """As the stock class would ask for, but LOCAL_FILES only when the settings say so: the library's own default
    depends on its build."""
    try:
        _Probe(**{key: params[key] for key in ("client_flag", "multi_statements") if key in params})
    except _Asked as asked:
        (flags,) = asked.args
    flags &= ~LOCAL_FILES
    return flags | LOCAL_FILES if params.get("local_infile") else flags


def same_in_both(params):
    same = {
        "client_flag": (params.get("client_flag") or 0) & ~LOCAL_FILES,
        "local_infile": 1 if params.get("local_infile") else 0,
    }
    if "multi_statements" in params:
        same["multi_statements"] = params["multi_statements"]
    return same


class Fallback(MySQLdb.connections.Connection):
    """A connection that waits cooperatively without help from its library."""

    _dbpool_wait = None  # set once the session is under it

    def query(self, query):
        if self._dbpool_wait is None:
            return super().query(query)
        self.send_query(bytes(query) if isinstance(query, bytearray) else query)
        self._dbpool_wait()
        self.read_query_result()

    def _command(self, text):
        self.query(text)
        self.store_result()

    def commit(self):
        self._command(b"COMMIT")

    def rollback(self):
        self._command(b"ROLLBACK")

    def ping(self, *reconnect):
        self._command(b"DO 0")

    def autocommit(self, on):
        if self._dbpool_wait is None:
            return super().autocommit(on)
        if bool(on) != bool(self.get_autocommit()):
            self._command(b"SET autocommit=%d" % bool(on))


class Driver(_dbpool.Driver):
    __slots__ = ("cooperative", "facts_row", "_wait_ms", "renew", "lent")

    def __init__(self, lease, spec, local, seconds):
        fetched = _dbpool.fetch(lease, seconds)
        if type(fetched) is int:
            raise SessionUnavailable(fetched)
        fd, facts = fetched
        try:
            self._build(lease, spec, local, fd, facts)
        finally:
            _dbpool.close(fd)

    def _build(self, lease, spec, local, fd, facts):
        self.session = lease.session
        self.incarnation = lease.incarnation
        self.facts_row = facts.row
        self.tracked = facts.tracked
        self.renew = False  # another object is made for the next lease
        self.lent = Lent()
        arguments = dict(local)
        read_timeout = arguments.get("read_timeout") or waiting.FOREVER_S
        # Without a limit libmariadb would block in recv() and never come to the hook. Set before the session is under
        # it: they are also socket options, and those are the session's.
        arguments["read_timeout"] = read_timeout
        arguments["write_timeout"] = arguments.get("write_timeout") or waiting.FOREVER_S
        arguments["charset"] = spec["charset"].decode()
        if spec["database"]:
            arguments["db"] = spec["database"].decode()
        self._wait_ms = int(read_timeout * 1000)
        status = lease.status()
        make = Fallback if FORCE_FALLBACK else MySQLdb.connections.Connection
        self.native = self.connection = None
        while self.native is None:
            connection, native = self._login(make, facts, spec, arguments, status)
            hooked = make is not Fallback and native.layout and native.install()
            if hooked or make is Fallback:
                self.connection, self.native, self.cooperative = connection, native, hooked
            else:
                make = Fallback
                native.fence()
                native.drop()
        # The driver's own number, not the session's: the object stays on it until it is destroyed.
        self.native.adopt(fd, self.connection.fileno())
        self.native.opaque = opaque(spec)
        if not self.cooperative:
            number = self.connection.fileno()
            self.connection._dbpool_wait = lambda: self._wait(number)
        if self.connection.thread_id() != facts.connection_id:
            self.destroy()
            raise ConfigurationError("dbpool: the replayed login gave mysqlclient another session's number")
        self.quick = self.cooperative

    @staticmethod
    def _login(make, facts, spec, arguments, status):
        server = _dbpool.ReplayServer(facts, spec["charset"].decode(), status, REPLAY_TIMEOUT)
        error = None
        try:
            connection = make(
                host="localhost",
                user=spec["user"].decode() or "dbpool",
                passwd="",
                unix_socket=server.name,
                connect_timeout=int(REPLAY_TIMEOUT),
                autocommit=None,
                **arguments
            )
        except MySQLdb.Error as failed:
            error = failed
        finally:
            refusal = server.stop()
        if refusal:
            raise ConfigurationError("dbpool: mysqlclient cannot use this pool's sessions: %s" % refusal)
        if error is not None:
            raise error
        return connection, _dbpool.Native(connection, MySQLdb._mysql.__file__)

    def _wait(self, fd):
        if not _dbpool.wait(fd, True, self._wait_ms):
            self.broken = True
            raise MySQLdb.OperationalError(2013, "Lost connection to MySQL server during query (timed out)")

    # ---- a lease's life ----

    def checkout(self, status):
        if self.cooperative:
            self.native.checkout(status)
        else:
            # The object cannot be told what the session's status is, so it asks: one round trip.
            self.connection.ping()

    def settle(self, autocommit, reset):
        if self.cooperative:
            how, status, grown, changed = self.native.settle(autocommit)
            if self.broken or how == _dbpool.DOOM:
                return _dbpool.DOOM, status, False
            self.native.unread = None
            self.odd = False
            if reset == "full" or (reset == "auto" and (changed or not self.tracked)):
                how = _dbpool.FULL
            return how, status, not (grown or self.renew or self.lent.pairs and self.lent.changed())
        if self.broken or self.native.unread is not None or self.native.more_results():
            return _dbpool.DOOM, 0, False
        how = _dbpool.FULL if reset in ("auto", "full") else _dbpool.RESET
        # Not known, so it may be in a transaction.
        status = _STATUS_IN_TRANS | (_STATUS_AUTOCOMMIT if autocommit else 0)
        return how, status, not (self.renew or self.lent.changed())

    def failed(self, error):
        self.native.fail()
        kept = self.native.take_exception()
        if kept is not None or not isinstance(error, MySQLdb.MySQLError):
            self.broken = True  # a signal's exception may come between the parts of a query
        elif not self.cooperative and not from_server(error, MySQLdb.MySQLError):
            self.broken = True
        if self.native.socket() < 0 or (self.broken and not self.cooperative):
            self.native.lost()
        return kept

    def before(self, name):
        self.native.note()
        if name not in QUIET:
            self.native.mark()
        if name == "set_character_set":
            self.renew = self.odd = True  # its idea of the character set is in the library

    def lend(self, value):
        self.lent.add(value)
        self.odd = True

    def autocommit(self, on):
        self.native.expect_autocommit()
        self.connection.autocommit(on)

    def ping(self, timeout_ms):
        fd = self.native.socket()
        return fd >= 0 and _dbpool.ping(fd, timeout_ms)

    def gone(self):
        fd = self.native.socket()
        return fd < 0 or _dbpool.peek_end(fd)

    def destroy(self):
        fd = self.native.socket()
        if fd >= 0:
            waiting.forget(fd)
        self.native.fence()
        self.native.unread = None
        self.native.drop()
        if not self.cooperative and self.connection is not None:
            self.connection._dbpool_wait = None
        self.connection = None


class Connection(LeasedConnection):
    """A lease of a session, as a mysqlclient connection."""

    __slots__ = ()
    Database = MySQLdb

    query = _dbpool.query()
    store_result = _dbpool.command("store_result")
    affected_rows = _dbpool.ask("affected_rows")

    def autocommit(self, on):
        return self._call(self._driver.autocommit, on)

    def use_result(self):
        """The result is kept by the object: one that dies unread reads the rest of its rows, which no finaliser may."""
        result = self._driver.native.unread = self._call(self._target.use_result)
        self._driver.odd = True
        return result

    def ping(self, reconnect=None):
        """Never reconnects: that would be a connection outside the pool."""
        return self._ping()

    _ping = _dbpool.command("ping")


for _name in ("Warning", "Error", "InterfaceError", "DatabaseError", "DataError", "OperationalError", "IntegrityError",
              "InternalError", "ProgrammingError", "NotSupportedError"):
    setattr(Connection, _name, getattr(MySQLdb, _name))


_abandoned = []


def abandon(connection):
    """A private connection of the parent process. The object is kept for ever: it must not say COM_QUIT."""
    native = _dbpool.Native(connection, MySQLdb._mysql.__file__)
    _abandoned.append((connection, native))
    fd = native.socket()
    if fd < 0:
        fd = connection.fileno()
    if fd >= 0:
        _dbpool.fence(fd)
