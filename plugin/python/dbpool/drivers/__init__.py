# SPDX-License-Identifier: MIT
"""The drivers that the pool knows. Each module has the same face, used by pool.py and settings.py:

    PASSWORD_ENCODING, EMPTY_SQL_MODE_IS_SENT   what the stock driver does with such a setting
    OPTION_FILE                                 how the stock driver reads one (optionfile.py)
    address(host, unix_socket)                  -> (host, unix_socket) as the stock driver would reach them
    client_flags(params)                        -> the protocol flags that the stock driver would log in with
    same_in_both(params)                        -> server-visible options that a driver object must be told too
    Driver(lease, spec, local)                  builds a driver object on a leased session; .connection is it
        .checkout(status)                       before each lease: the object knows nothing of its last use
        .settle(autocommit) -> (how, status, keep)    after it: CLEAN, RESET or DOOM; reads memory only
        .failed(error) -> exception or None     after each call that raised: what to raise in its place
        .facts_row                              the session's row of facts_sql
        .ping(timeout_ms) -> bool               the server answers; between two leases only, the object does not notice
        .gone() -> bool                         the server has closed the session; never waits
        .destroy()                              takes the session away from the object, writes nothing to it
    Connection                                  the proxy for a lease (lease.py)
    abandon(connection)                         a private connection inherited through a fork: unused, no COM_QUIT
"""


class SessionUnavailable(Exception):
    """The broker did not hand out the session: (E_*,)."""


def from_server(error, base):
    """True for an error that the server reported: the wire is idle after it. base is the driver's MySQLError."""
    if not isinstance(error, base) or not error.args:
        return False
    code = error.args[0]
    return isinstance(code, int) and code >= 1000 and not 2000 <= code < 3000


def of(database):
    """The driver module for what `import MySQLdb` gave; ConfigurationError when it is neither of the two."""
    from ..settings import ConfigurationError

    name = getattr(database, "__name__", "")
    if name == "pymysql":
        from . import pymysql

        return pymysql
    if name == "MySQLdb" and hasattr(getattr(database, "_mysql", None), "connection"):
        from . import mysqlclient

        return mysqlclient
    raise ConfigurationError(
        "dbpool works with mysqlclient and with PyMySQL (pymysql.install_as_MySQLdb()); MySQLdb is %r here" % database
    )
