# SPDX-License-Identifier: MIT
"""The drivers that the pool knows. Each module has the same face, used by pool.py and settings.py:

    PASSWORD_ENCODING, EMPTY_SQL_MODE_IS_SENT   what the stock driver does with such a setting
    OPTION_FILE                                 how the stock driver reads one (optionfile.py)
    KNOWS_COLLATION                             the stock driver has an option of that name
    set_up(charset, collation, init_command, set_mode) -> (charset, statements): the character set that the stock driver
                                                comes to (None: it cannot be told), and what it says after its login, in
                                                its order. Names are bytes, b"" where none is given; the rest are lists
    address(host, unix_socket)                  -> (host, unix_socket) as the stock driver would reach them
    client_flags(params)                        -> the protocol flags that the stock driver would log in with
    same_in_both(params)                        -> server-visible options that a driver object must be told too
    Driver(lease, spec, local, seconds)         builds a driver object on a leased session; .connection is it. Waits so
                                                long for the broker. Its base (src/checkout.c) says when checkout() and
                                                settle() are not asked
        .checkout(status)                       before each lease: the object knows nothing of its last use
        .settle(autocommit, reset) -> (how, status, keep)   after it: CLEAN, RESET, FULL or DOOM; reads memory only.
                                                reset is the pool's reset_on_return
        .before(name)                           before the user calls a method of that name that lease.py does not know
        .lend(value)                            the user was given a container of the object's
        .failed(error) -> exception or None     after each call that raised: what to raise in its place
        .facts_row                              the session's row of facts_sql
        .ping(timeout_ms) -> bool               the server answers; between two leases only, the object does not notice
        .gone() -> bool                         the server has closed the session; never waits
        .destroy()                              takes the session away from the object, writes nothing to it
    Connection                                  the proxy for a lease (lease.py)
    abandon(connection)                         a private connection inherited through a fork: unused, no COM_QUIT
"""

import re


# Calls that change nothing of the session that the server or scan.c would not see. Others count as a change.
QUIET = frozenset(
    "affected_rows begin character_set_name errno error escape escape_string field_count fileno get_autocommit "
    "get_character_set_info get_host_info get_proto_info get_server_info host_info info insert_id kill literal "
    "next_result ping show_warnings sqlstate stat store_result string_literal thread_id use_result warning_count".split()
)

# In these no byte of a longer character looks like ASCII, so that src/scan.c can read a statement.
_READABLE = frozenset((b"utf8mb4", b"utf8mb3", b"utf8", b"latin1", b"ascii", b"binary"))


def opaque(spec):
    """True where statements cannot be read: then each counts as a change of the session."""
    if spec["charset"] not in _READABLE:
        return True
    for statement in spec.get("init_sql", ()):
        if re.search(rb"(?i)charset|character", statement):
            return True
        for name in re.findall(rb"(?i)\bnames\b\W*(\w*)", statement):
            if name.lower() not in _READABLE:
                return True
    return False


def may_change_names(statement):
    """False for a SET that has nothing of character sets and collations."""
    return not re.match(rb"(?i)\s*set\b", statement) or bool(re.search(rb"(?i)names|char|collat", statement))


# Blanks and comments, and literals: what they contain is no part of the statement.
_BLANK = rb"\s+|/\*(?!M?!).*?\*/|#[^\n]*|--(?=[\x00-\x20\x7f]|$)[^\n]*"
_PARTS = re.compile(rb"""(?s)(%s)|'(?:[^'\\]|\\.|'')*'|"(?:[^"\\]|\\.|"")*\"""" % _BLANK)
# SET NAMES and its kin, at the beginning of a statement or among the assignments of one.
_CHOICE = re.compile(
    rb"(?:(?:^|;) ?set |, ?)(?:(?:session |local |@@session ?\. ?|@@local ?\. ?|@@)?"
    rb"`?character_set_client`? ?:?= ?|(?:names|charset|char(?:acter)? set) ?)['\"]?(\w*)"
)


def _bare(part):
    text = part.group()
    return b" " if part.group(1) else text if text[1:-1].isalnum() else b"''"


def charset_after(statements, charset):
    """character_set_client of a session that began with charset and was told these; None where their text does not tell
    (DEFAULT, a number, a variable). What a procedure sets, it sets back at its end."""
    for statement in statements:
        text = _PARTS.sub(_bare, statement).strip().lower()
        if re.match(rb"execute\b|begin\b|/\*", text) and may_change_names(text):
            charset = None
        for name in _CHOICE.findall(text):
            charset = None if name in (b"", b"default") or name.isdigit() else name
    return charset


class Lent:
    """Containers of a driver object (encoders, decoders, ...) that the user was given: were they changed?"""

    __slots__ = ("pairs",)

    def __init__(self):
        self.pairs = []

    @staticmethod
    def _copy(value):
        if isinstance(value, dict):
            return {key: list(one) if isinstance(one, list) else one for key, one in value.items()}
        return list(value)

    def add(self, value):
        if not any(value is lent for lent, _ in self.pairs):
            self.pairs.append((value, self._copy(value)))

    def changed(self):
        """True when one is not what it was. Asked once: the next lease begins with none."""
        changed = any(value != copy for value, copy in self.pairs)
        self.pairs.clear()
        return changed


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
