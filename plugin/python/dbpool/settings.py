# SPDX-License-Identifier: MIT
"""From DATABASES[alias] to a pool. POOL itself is policy.py's.

The parameters of a connection fall in two: what the server can see makes the pool, so all processes must agree in it;
the rest belongs to the driver objects of one process.
"""

import math
import re

from . import optionfile
from . import policy as policies
from .policy import ConfigurationError, Policy, policy  # noqa: F401 (for those who look for them here)

DEFAULT_CONNECT_TIMEOUT = 10  # seconds, as PyMySQL; libmysqlclient waits for ever

# Seconds without a byte from (or to) the server. The drivers wait for ever: a server that stands still without closing
# its connections would hold every request that met it, and with them the pool. Far beyond what a request may take, and
# what proxies in front of uWSGI wait for; a statement that is longer than this is a batch job's, which can say so.
DEFAULT_IO_TIMEOUT = 300

# Protocol flags that are part of a pool's identity (core/dbpool.h: client_flags).
FOUND_ROWS = 1 << 1
LOCAL_FILES = 1 << 7
IGNORE_SPACE = 1 << 8
INTERACTIVE = 1 << 10
MULTI_STATEMENTS = 1 << 16
IDENTITY_FLAGS = FOUND_ROWS | LOCAL_FILES | IGNORE_SPACE | INTERACTIVE | MULTI_STATEMENTS

_NOT_POOLED = {
    "compress": "sessions are not compressed",
    "named_pipe": "use HOST",
    "ssl": "sessions have no TLS to the server",
    "ssl_mode": "sessions have no TLS to the server",
    "auth_plugin": "the pool's connector follows the server's choice",
    "auth_plugin_map": "the pool's connector follows the server's choice",
    "server_public_key": "the pool's connector asks the server",
    "bind_address": "sessions are opened by the pool's connector",
    "program_name": "sessions are opened by the pool's connector",
    "reconnect": "a lost session is replaced by the pool",
    "defer_connect": "use the connection when it is needed",
    "charset_collation": "use charset",
}


def check_options(alias, options, problems):
    """Appends to problems each entry of OPTIONS that cannot be pooled."""
    for key in sorted(options, key=str):
        why = _NOT_POOLED.get(key)
        if why is None and str(key).startswith("ssl_"):
            why = _NOT_POOLED["ssl"]
        if why is not None and options[key] not in (None, False, "", 0) and options[key] != {}:
            problems.append("DATABASES[%r]['OPTIONS'][%r] cannot be pooled yet: %s" % (alias, key, why))


def raise_problems(problems):
    """All of them in one ConfigurationError; returns when there are none."""
    if problems:
        raise ConfigurationError("\n".join(problems))


# What the server sees. Everything else in the parameters goes to the driver object as it is.
_SERVER_VISIBLE = frozenset(
    "host port unix_socket user password passwd database db charset collation client_flag multi_statements sql_mode "
    "init_command local_infile autocommit connect_timeout".split()
) | frozenset(_NOT_POOLED)


def with_option_file(alias, params, driver):
    """The parameters with what the file of read_default_file says (optionfile.py), and without its name."""
    try:
        return optionfile.merged(params, driver.OPTION_FILE)
    except optionfile.Unusable as wrong:
        raise ConfigurationError("DATABASES[%r]['OPTIONS']: %s" % (alias, wrong)) from None


def split(alias, params, policy, driver, autocommit, isolation_level, facts_sql):
    """(spec, local): spec is a dict of dbp_pool_spec's fields, local the keyword arguments of this process's objects.

    params is what Django would give to the driver's connect(); driver is a module of dbpool.drivers. isolation_level is
    Django's; False: without Django, whose own statements are then left out. Raises ConfigurationError. The spec holds the
    password: do not log it."""
    problems = []
    params = with_option_file(alias, params, driver)
    check_options(alias, params, problems)

    def text(*names):
        for name in names:
            value = params.get(name)
            if value is not None and value != "":
                return encoded(name, value)
        return b""

    def encoded(name, value):
        if isinstance(value, str):
            return value.encode(driver.PASSWORD_ENCODING if name in ("password", "passwd") else "utf-8")
        if isinstance(value, bytes):
            return value
        problems.append("DATABASES[%r]: %s must be a string, not %r" % (alias, name, type(value).__name__))
        return b""

    def number(name, default, low, high):
        value = params.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            problems.append("DATABASES[%r]: %s must be an integer from %d to %d, not %r" % (alias, name, low, high, value))
            return default
        return value

    # More than one only where an option file has some.
    init_command = params.get("init_command") or ()
    if not isinstance(init_command, tuple):
        init_command = (init_command,)
    init_command = [encoded("init_command", one) for one in init_command]
    names = {name: text(name) for name in ("charset", "collation")}
    for name, value in names.items():
        if not re.fullmatch(rb"[A-Za-z0-9_]*", value):
            problems.append("DATABASES[%r]: %s %r is not a name" % (alias, name, params[name]))
            names[name] = b""
    if names["collation"] and not driver.KNOWS_COLLATION:
        problems.append(
            "DATABASES[%r]: this version of the driver has no option collation: put SET collation_connection into "
            "init_command" % alias
        )
    sql_mode = params.get("sql_mode")
    set_mode = []
    if sql_mode:
        if isinstance(sql_mode, str) and re.fullmatch(r"[A-Za-z0-9_, -]+", sql_mode):
            set_mode.append(b"SET SESSION sql_mode='%s'" % sql_mode.encode())
        else:
            problems.append("DATABASES[%r]: sql_mode %r is not a list of modes" % (alias, sql_mode))
    elif sql_mode == "" and driver.EMPTY_SQL_MODE_IS_SENT:
        set_mode.append(b"SET SESSION sql_mode=''")
    charset, statements = driver.set_up(names["charset"], names["collation"], init_command, set_mode)
    if charset is None:
        problems.append(
            "DATABASES[%r]: init_command sets the character set to one that its text does not tell: give charset too"
            % alias
        )
    if isolation_level:
        statements.append(b"SET SESSION TRANSACTION ISOLATION LEVEL " + isolation_level.upper().encode())
    # Django sends it only where the server's default is 1; to a session of ours it is said once, and costs nothing then.
    if isolation_level is not False:
        statements.append(b"SET SQL_AUTO_IS_NULL = 0")

    host, unix_socket = driver.address(text("host").decode(), text("unix_socket").decode())
    spec = {
        "alias": alias.encode(),
        "host": host.encode(),
        "unix_socket": unix_socket.encode(),
        "port": number("port", 0, 0, 65535),
        "user": text("user"),
        "password": text("password", "passwd"),
        "database": text("database", "db"),
        "charset": charset,
        "init_sql": statements,
        "facts_sql": facts_sql.encode(),
        "client_flags": driver.client_flags(params) & IDENTITY_FLAGS,
        "autocommit": int(bool(autocommit)),
        "connect_timeout_s": number("connect_timeout", DEFAULT_CONNECT_TIMEOUT, 1, 3600),
        "pool_size": policy.pool_size,
        "max_overflow": policy.max_overflow,
        "recycle_s": policy.recycle,
        "max_lifetime_s": policy.max_lifetime,
        "idle_timeout_s": policy.idle_timeout,
        "keepalive_s": policy.keepalive,
        "min_size": policy.min_size,
        "max_waiting": policy.max_waiting,
        "overflow_grace_ms": round(1000 * policy.overflow_grace),
    }
    policy = policies.evaluate(alias, policy, problems)
    raise_problems(problems)
    spec.update(
        core_size=policy.core_size,
        unload_timeout_ms=round(1000 * policy.unload_timeout),
        retire_interval_ms=math.ceil(1000 * policy.retire_interval),
        retire_quantity=policy.retire_quantity,
    )
    local = {key: value for key, value in params.items() if key not in _SERVER_VISIBLE}
    local.update(driver.same_in_both(params))
    for name in ("read_timeout", "write_timeout"):
        local.setdefault(name, DEFAULT_IO_TIMEOUT)  # None is the driver's: no limit
    return spec, local
