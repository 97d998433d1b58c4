# SPDX-License-Identifier: MIT
"""read_default_file and read_default_group: an option file (my.cnf), as the stock driver would have read it.

It is read here, in the process that connects and when it first needs the pool, and what it says counts as if it stood
in the arguments: host, user and so on make the pool, not the file's path. It cannot be left to the driver: libmariadb
reads the file inside mysql_real_connect(), and of our drivers only the pool's connector connects to the server, which
has neither the application's rights nor its working directory; a worker's driver logs in to a replay. So each driver
has its reader here:

    libmariadb (read from its sources, 3.3 and 3.4: ma_default.c, and mariadb_defaults in mariadb_lib.c)
        the groups client, client-server, client-mariadb and the named one, in the order of the file, the last one
        counts; '_' is '-'; quotes and backslashes in values; !include and !includedir. Without a file: the default ones.
    PyMySQL (its own parser, pymysql.optionfile, does the work)
        one group only, the named one or else client; few keys; no !include. Without a file: /etc/my.cnf.

An argument that is given and not empty counts before the file, but for init-command, which libmariadb runs after the
argument's. Keys that a driver does not know are ignored, as it does. Different from both: a file that cannot be read is
an error that names it (they go on without it), '~' is expanded with both, and what cannot be pooled is refused by name.
"""

import configparser
import os

LIBMARIADB = "libmariadb"
PYMYSQL = "pymysql"

_FOUND_ROWS = 1 << 1
_INTERACTIVE = 1 << 10
_MULTI_STATEMENTS = 1 << 16

# Names of DB-API arguments that mean the same.
_SAME = {"password": ("password", "passwd"), "database": ("database", "db")}

_GROUPS = (b"client", b"client-server", b"client-mariadb")
_INCLUDES_MAX = 64  # ma_default.c: recursion_stop

_ESCAPED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"b": b"\b", b"s": b" ", b'"': b'"', b"'": b"'", b"\\": b"\\"}

# libmariadb's keys: the argument that each stands for.
_TEXTS = {
    "host": "host",
    "servername": "host",
    "socket": "unix_socket",
    "unix-socket": "unix_socket",
    "user": "user",
    "password": "password",
    "passwd": "password",
    "database": "database",
    "db": "database",
    "default-character-set": "charset",
}
_NUMBERS = {
    "port": "port",
    "connect-timeout": "connect_timeout",
    "timeout": "connect_timeout",
}
_FLAGS = {"return-found-rows": _FOUND_ROWS, "interactive-timeout": _INTERACTIVE}
_REFUSED = frozenset("bind-address default-auth restricted-auth server-public-key connection".split())
_REFUSED_TLS = ("ssl-", "tls-")
_REFUSED_IF_TRUE = frozenset(
    "compress pipe reconnect protocol ssl-verify-server-cert ssl-enforce tls-enforce tls-verify-peer".split()
)


class Unusable(Exception):
    """The text names file and key, never a value."""


def merged(params, kind):
    """The arguments with what the option file adds, and without the two that name it. kind: LIBMARIADB or PYMYSQL.

    init_command becomes a tuple of statements where the file has some. Raises Unusable."""
    params = dict(params)
    path = params.pop("read_default_file", None)
    group = params.pop("read_default_group", None)
    if not path and not group:
        return params
    for name, value in (("read_default_file", path), ("read_default_group", group)):
        if value and not isinstance(value, (str, os.PathLike) if name == "read_default_file" else str):
            raise Unusable("%s must be a string, not %r" % (name, type(value).__name__))
    path = os.path.expanduser(os.fspath(path)) if path else None
    if kind == PYMYSQL:
        _merge_pymysql(params, path or "/etc/my.cnf", group or "client")
    else:
        _merge_libmariadb(params, path, group)
    return params


def _given(params, name, empty=False):
    """Whether the argument is there, by any of its names. empty: also when it is empty."""
    values = [params.get(same) for same in _SAME.get(name, (name,))]
    return any(value is not None if empty else value for value in values)


def _opened(path, mode, **how):
    try:
        return open(path, mode, **how)
    except OSError as error:
        raise Unusable("cannot read the option file %s: %s" % (path, error.strerror)) from None


def _refuse(path, key):
    raise Unusable("%s has '%s', which cannot be pooled yet" % (path, key))


# ---- libmariadb's ----


def _merge_libmariadb(params, path, group):
    found, flags, statements = {}, 0, []
    groups = _GROUPS + ((group.encode(),) if group else ())
    for where in (path,) if path else _default_files():
        for origin, key, value in _lines(where, groups):
            number = _number(value)
            if key in _FLAGS:
                flags |= _FLAGS[key]
            elif value is None:
                continue  # libmariadb takes the end of the line for a part of the key
            elif key in _TEXTS:
                found[_TEXTS[key]] = value
            elif key in _NUMBERS:
                found[_NUMBERS[key]] = number
            elif key in ("multi-statements", "multi-queries"):
                flags |= _MULTI_STATEMENTS  # whatever the value
            elif key == "local-infile":
                found["local_infile"] = number
            elif key == "init-command" and value:
                statements.append(value)
            elif key in _REFUSED_IF_TRUE:
                if number:
                    _refuse(origin, key)
            elif (key in _REFUSED or key.startswith(_REFUSED_TLS)) and value:
                _refuse(origin, key)
    for name, value in found.items():
        # No password and no LOCAL INFILE can be what the arguments want.
        if value and not _given(params, name, empty=name in ("password", "local_infile")):
            params[name] = value
    if params.get("host") not in (None, "", "localhost", b"localhost"):
        params.pop("unix_socket", None)  # libmariadb looks at it for localhost only; Debian's my.cnf always has one
    if flags:
        params["client_flag"] = (params.get("client_flag") or 0) | flags
    if statements:
        first = params.get("init_command")
        params["init_command"] = ((first,) if first else ()) + tuple(statements)


def _default_files():
    """Those that are there, in libmariadb's order; $HOME's is the last. Nobody named them, so none must be."""
    home = os.environ.get("MARIADB_HOME") or os.environ.get("MYSQL_HOME")
    paths = ["/etc/my.cnf", "/etc/mysql/my.cnf"] + ([os.path.join(home, "my.cnf")] if home else [])
    if os.environ.get("HOME"):
        paths.append(os.path.join(os.environ["HOME"], ".my.cnf"))
    return [path for path in paths if os.access(path, os.R_OK)]


def _lines(path, groups, depth=0):
    """(file, key, value or None) of each option in one of the groups, in order. A file's groups end with it."""
    if depth >= _INCLUDES_MAX:
        raise Unusable("%s: !include goes round in a circle" % path)
    group = None
    with _opened(path, "rb") as lines:
        for line in lines:
            line = line.strip()
            if not line or line[:1] in b"#;":
                continue
            if line[:1] == b"!":
                yield from _included(line, groups, depth + 1)
            elif line[:1] == b"[":
                group, closed, _ = line[1:].partition(b"]")
                if not closed:
                    raise Unusable("%s: a group's name without its ']'" % path)
                group = group.rstrip()
            elif group is None:
                raise Unusable("%s: an option before the first [group]" % path)
            elif group in groups:
                key, given, value = line.partition(b"=")
                key = key.rstrip().decode("utf-8", "replace").replace("_", "-")
                yield path, key, _unquoted(value.lstrip()) if given else None


def _included(line, groups, depth):
    word, _, target = line[1:].partition(b" ")
    target = os.fsdecode(target.strip())
    if word == b"include" and target:
        yield from _lines(target, groups, depth)
    elif word == b"includedir" and target:
        # Not every file in it as for the server: libmariadb looks for a my.cnf.
        target = os.path.join(target, "my.cnf")
        if os.access(target, os.R_OK):
            yield from _lines(target, groups, depth)


def _unquoted(value):
    if value[:1] in (b"'", b'"'):
        value = value[1:]
        if value[-1:] in (b"'", b'"'):
            value = value[:-1]
    if b"\\" not in value:
        return value
    parts, at = [], 0
    while at < len(value):
        one = value[at : at + 1]
        if one == b"\\" and at + 1 < len(value):
            at += 1
            one = value[at : at + 1]
            one = _ESCAPED.get(one, b"\\" + one)
        parts.append(one)
        at += 1
    return b"".join(parts)


def _number(value):
    """As atoi() has it."""
    text = (value or b"").strip()
    sign, digits = (text[:1], text[1:]) if text[:1] in (b"-", b"+") else (b"", text)
    count = len(digits) - len(digits.lstrip(b"0123456789"))
    return int(sign + digits[:count]) if count else 0


# ---- PyMySQL's ----

_PYMYSQL = {
    "user": "user",
    "password": "password",
    "host": "host",
    "database": "database",
    "socket": "unix_socket",
    "default-character-set": "charset",
}
_PYMYSQL_REFUSED = ("bind-address", "ssl-ca", "ssl-capath", "ssl-cert", "ssl-key", "ssl-cipher")


def _merge_pymysql(params, path, group):
    from pymysql.optionfile import Parser

    parser = Parser()
    try:
        with _opened(path, "r") as lines:
            parser.read_file(lines, path)
    except (configparser.Error, UnicodeDecodeError) as error:
        # Its text may quote a line, and a line may be the password's.
        raise Unusable("%s is not an option file: %s" % (path, type(error).__name__)) from None

    def said(key):
        try:
            return parser.get(group, key)
        except (configparser.Error, TypeError):  # it is not there, or has no value
            return None

    for key in _PYMYSQL_REFUSED:
        if said(key):
            _refuse(path, key)
    for key, name in _PYMYSQL.items():
        if said(key) and not _given(params, name):
            params[name] = said(key)
    if said("port") and not params.get("port"):
        try:
            params["port"] = int(said("port"))
        except ValueError:
            raise Unusable("%s: port is not a number" % path) from None
