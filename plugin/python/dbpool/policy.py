# SPDX-License-Identifier: MIT
"""POOL: its keys, what each may be, and the presets.

The names are those of SQLAlchemy's QueuePool and of django-db-conn-pool, so that settings written for them work; but
here they count for the whole uWSGI instance, all workers together. All are optional.

    pool_size       sessions that are kept, default 5; 0: all that were opened, and max_overflow alone is the cap
    max_overflow    further sessions while they are needed; default 10. pool_size + max_overflow is the cap; -1: as many
                    as the table has
    overflow_grace  seconds without use after which a session above pool_size is ended, default 5; 0: it is ended when
                    it comes back and nobody waits, as QueuePool does
    min_size        sessions that are open also when nobody asks, default 0
    timeout         seconds that a request waits for a session, default 30; 0: does not wait; None: a day
    max_waiting     with so many waiting, the next is refused at once; 0 (default): no limit but the queue's
    recycle         seconds after which a session is ended instead of handed out; None (default) or -1: no limit
    max_lifetime    the same, but each session a random part earlier and replaced before; None (default): no limit
    idle_timeout    seconds without use after which a session above min_size is ended; None (default): none is
    keepalive       seconds of silence after which an idle session is pinged; None (default): never
    pre_ping, django_pre_ping (one for the other)
                    ping at each check-out; a session that does not answer is replaced. Default False
    reset_on_return what is undone before a session is handed on. An open transaction is, always (but 'commit' commits
                    it). 'auto' (default): and all else that the lease changed, if it changed anything. 'full': all,
                    after each lease. 'rollback', True, 'commit', None and False: only transactions and autocommit
    django_reset_on_return
                    accepted: roll back only where there is something to, which is what the pool does anyway
    use_threadlocal the same greenlet or thread gets the same connection of an alias again, counted. Default False
    leak_threshold  seconds after which a lease that is still out is logged, once; None (default): never
    dialect         accepted, not needed

    django_pool_class   'queue' (default) or 'django'; the ancestors' classes are known by their names. The next four
                        act with 'django' only, and each may be a callable: evaluated when the pool is registered.
    django_core_pool_size    idle sessions above it are retired; None (default): pool_size; 0 counts as 1
    django_unload_timeout    with that many leased, a random part of so many seconds passes before one more is opened
    django_retire_interval   seconds between two retirements; None (default): never
    django_retire_quantity   sessions per retirement, default 1
"""

from collections import namedtuple

from ._dbpool import SESSIONS_MAX, WAITERS_MAX


class ConfigurationError(Exception):
    """Settings that cannot work; the text is for the person who wrote them."""


NOT_USED = "not used"  # with the class 'queue'

# Times are seconds, 0 where there is no limit. The last four are as the user wrote them until evaluate().
Policy = namedtuple(
    "Policy",
    "pool_size max_overflow timeout recycle min_size max_lifetime idle_timeout keepalive max_waiting reset pre_ping "
    "use_threadlocal leak_threshold overflow_grace core_size unload_timeout retire_interval retire_quantity",
    defaults=(0, 0, 0, 0, 0, "auto", False, False, 0, 5) + (NOT_USED,) * 4,
)

PRESETS = {
    "slow_and_safe": {
        "django_pool_class": "queue",
        "django_pre_ping": True,
        "django_reset_on_return": False,
        "pool_size": 5,
        "max_overflow": 0,
        "timeout": 30,
        "recycle": 120,
        "dialect": None,
        "pre_ping": False,
        "use_threadlocal": True,
        "reset_on_return": "auto",
    },
    "fast_and_sane": {
        "django_pool_class": "queue",
        "django_pre_ping": False,
        "django_reset_on_return": True,
        "pool_size": 5,
        "max_overflow": 10,
        "timeout": 30,
        "recycle": 3600,
        "dialect": None,
        "pre_ping": False,
        "use_threadlocal": False,
        "reset_on_return": "auto",
    },
    "fast_and_wild": {
        "django_pool_class": "django",
        "django_pre_ping": False,
        "django_reset_on_return": True,
        "django_core_pool_size": 5,
        "django_unload_timeout": 2,
        "django_retire_interval": 5,
        "django_retire_quantity": 1,
        "pool_size": 30,
        "max_overflow": 0,
        "timeout": 30,
        "recycle": 3600,
        "dialect": None,
        "pre_ping": False,
        "use_threadlocal": False,
        "reset_on_return": "auto",
    },
}

_SECONDS_MAX = 2**31 - 1
_WAIT_MAX = 86400  # seconds


# ---- what a value may be: functions that return it, or raise ValueError(what was expected) ----


def _number(kinds, low, high, what):
    def check(value):
        if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
            raise ValueError(what)
        return value

    return check


def _integer(low, high):
    return _number(int, low, high, "an integer from %d to %d" % (low, high))


def _limit(none, what):
    """Whole seconds; the values in none stand for no limit."""
    check_number = _number(int, 1, _SECONDS_MAX, what)

    def check(value):
        if not isinstance(value, bool) and value in none:
            return 0
        return check_number(value)

    return check


def _recycle(value):
    """Part seconds are dropped: nobody is handed a session past its age."""
    whole = int(value) if isinstance(value, float) and abs(value) <= _SECONDS_MAX else value
    return _limit((None, -1), "a number of seconds, at least 1, or None or -1 for no limit")(whole)


def _timeout(value):
    """QueuePool's None waits for ever. Nothing does here."""
    check = _number((int, float), 0, _WAIT_MAX, "a number of seconds from 0 to %d, or None for so many" % _WAIT_MAX)
    return _WAIT_MAX if value is None else check(value)


_period = _limit((None, 0), "a whole number of seconds, at least 1, or None or 0 for never")


def _max_overflow(value):
    check = _number(int, -1, SESSIONS_MAX, "an integer from 0 to %d, or -1 for no limit but the table's" % SESSIONS_MAX)
    return check(value)


_grace = _number((int, float), 0, 86400, "a number of seconds from 0 to 86400")


def _bool(value):
    """None is what the ancestor has for a key that is not there."""
    if value is not None and not isinstance(value, bool):
        raise ValueError("True or False")
    return bool(value)


def _anything(value):
    return value


def _reset(value):
    """None of the ancestors' values hands an open transaction on; None and False are 'rollback' here."""
    if value is None or isinstance(value, bool):
        return "rollback"
    if value not in ("auto", "full", "rollback", "commit"):
        raise ValueError("'auto', 'full', 'rollback', 'commit' or None (or True for 'rollback', False for None)")
    return value


def _leak_threshold(value):
    check = _number((int, float), 0.001, _SECONDS_MAX, "a number of seconds above 0, or None for never")
    return 0 if value is None else check(value)


def _pool_class(value):
    """True for the class that retires. A subclass is what it is a subclass of."""
    if value in ("queue", "django"):
        return value == "django"
    for ancestor in getattr(value, "__mro__", ()):
        if ancestor.__name__ in ("QueuePool", "DjangoQueuePool"):
            return ancestor.__name__ == "DjangoQueuePool"
    raise ValueError("'queue' or 'django', or the class QueuePool or DjangoQueuePool")


def _seconds(value):
    what = "a number of seconds from 0 to %d, None, or a callable that returns one" % _WAIT_MAX
    return 0 if value is None else _number((int, float), 0, _WAIT_MAX, what)(value)


def _core_size(value):
    # 0 is none at all for the ancestor. Here one stays: the broker's 0 is "no core".
    what = "an integer from 0 to %d, None, or a callable that returns one" % SESSIONS_MAX
    return None if value is None else _number(int, 0, SESSIONS_MAX, what)(value) or 1


def _quantity(value):
    # The ancestor says `or 1`.
    what = "an integer from 0 to %d, None, or a callable that returns one" % SESSIONS_MAX
    return 1 if value is None else _number(int, 0, SESSIONS_MAX, what)(value) or 1


_KEYS = {
    "pool_size": (5, _integer(0, SESSIONS_MAX)),
    "max_overflow": (10, _max_overflow),
    "overflow_grace": (5, _grace),
    "timeout": (30, _timeout),
    "recycle": (None, _recycle),
    "min_size": (0, _integer(0, SESSIONS_MAX)),
    "max_lifetime": (None, _period),
    "idle_timeout": (None, _period),
    "keepalive": (None, _period),
    "max_waiting": (0, _integer(0, WAITERS_MAX)),
    "reset_on_return": ("auto", _reset),
    "pre_ping": (False, _bool),
    "use_threadlocal": (False, _bool),
    "leak_threshold": (None, _leak_threshold),
    "dialect": (None, _anything),
    "django_pool_class": ("queue", _pool_class),
    "django_pre_ping": (False, _bool),
    "django_reset_on_return": (False, _bool),
}

# Those that may be callables: Policy's name of each, and the check.
_CALLABLE = {
    "django_core_pool_size": ("core_size", _core_size),
    "django_unload_timeout": ("unload_timeout", _seconds),
    "django_retire_interval": ("retire_interval", _seconds),
    "django_retire_quantity": ("retire_quantity", _quantity),
}

NAMES = sorted(set(_KEYS) | set(_CALLABLE))


def expand(alias, pool, problems):
    """POOL as a dict of its keys, presets taken in. Appends to problems what is wrong; None then."""
    where = "DATABASES[%r]['POOL']" % alias
    if pool is None:
        return {}
    if isinstance(pool, str):
        pool = {"preset": pool}
    if not isinstance(pool, dict):
        problems.append("%s must be a dict or the name of a preset (%s), not %r" % (where, ", ".join(PRESETS), pool))
        return None
    if "preset" not in pool:
        return pool
    changes = dict(pool)
    name = changes.pop("preset")
    if not isinstance(name, str) or name not in PRESETS:
        problems.append("%s: there is no preset %r; there are %s" % (where, name, ", ".join(PRESETS)))
        return None
    return {**PRESETS[name], **changes}


def policy(alias, pool, problems):
    """POOL as a Policy. Appends to problems all that is wrong; None then."""
    before = len(problems)
    pool = expand(alias, pool, problems)
    if pool is None:
        return None
    values = {}
    for key in sorted(set(pool) - set(NAMES), key=str):
        problems.append(
            "DATABASES[%r]['POOL'][%r] is not an option; there are %s" % (alias, key, ", ".join(NAMES + ["preset"]))
        )
    for key, (default, check) in _KEYS.items():
        values[key] = _checked(alias, key, check, pool.get(key, default), problems)
    later = {}
    for key, (name, check) in _CALLABLE.items():
        later[name] = value = pool.get(key)
        if not callable(value):
            _checked(alias, key, check, value, problems)
    if len(problems) > before:
        return None
    where = "DATABASES[%r]['POOL']: " % alias
    if values["max_overflow"] == -1:
        values["max_overflow"] = SESSIONS_MAX - values["pool_size"]
    if values["pool_size"] == 0:
        _keep_all(where, values, later, problems)
    size, cap = values["pool_size"], values["pool_size"] + values["max_overflow"]
    if cap > SESSIONS_MAX:
        problems.append(where + "pool_size + max_overflow must be at most %d, not %d" % (SESSIONS_MAX, cap))
    if values["min_size"] > size:
        problems.append(where + "min_size must be at most pool_size (%d), not %d" % (size, values["min_size"]))
    values.update(reset=values["reset_on_return"], pre_ping=values["pre_ping"] or values["django_pre_ping"])
    if values["django_pool_class"]:
        values.update(later)
        if not callable(later["core_size"]):
            _check_core(alias, cap, later["core_size"], problems)
    if len(problems) > before:
        return None
    return Policy(**{name: values[name] for name in Policy._fields if name in values})


def _keep_all(where, values, later, problems):
    """pool_size 0, as QueuePool has it: its queue is without limit, so that each session that comes back is kept, and
    its count of sessions starts at 0, so that max_overflow is the cap. The core is pool_size, where it is not said."""
    if values["max_overflow"] == 0:
        problems.append(
            where + "pool_size 0 keeps as many sessions as max_overflow allows, and max_overflow 0 allows none: "
            "say how many in one of them (max_overflow -1: as many as the table has)"
        )
    values["pool_size"], values["max_overflow"] = values["max_overflow"], 0
    if later["core_size"] is None:
        later["core_size"] = 0


def evaluate(alias, policy, problems):
    """The policy with its callables called, and None in place of what they should not have returned: see problems."""
    found = {}
    for key, (name, check) in _CALLABLE.items():
        value = getattr(policy, name)
        if value is NOT_USED:
            found[name] = 0
            continue
        if callable(value):
            try:
                value = value()
            except Exception as error:
                problems.append("DATABASES[%r]['POOL'][%r] raised %s: %s" % (alias, key, type(error).__name__, error))
                found[name] = None
                continue
        found[name] = _checked(alias, key, check, value, problems)
    if policy.core_size is not NOT_USED:
        _check_core(alias, policy.pool_size + policy.max_overflow, found["core_size"], problems)
        if found["core_size"] is None:
            found["core_size"] = policy.pool_size
    return policy._replace(**found)


def _checked(alias, key, check, value, problems):
    try:
        return check(value)
    except ValueError as expected:
        problems.append("DATABASES[%r]['POOL'][%r] must be %s, not %r" % (alias, key, expected, value))
        return None


def _check_core(alias, cap, size, problems):
    if size is not None and size > cap:
        problems.append(
            "DATABASES[%r]['POOL']: django_core_pool_size must be at most pool_size + max_overflow (%d), not %d"
            % (alias, cap, size)
        )


def _changed(name, default, updated):
    params = {**default, **updated}
    problems = [
        "%s: %r is not an option; there are %s" % (name, key, ", ".join(NAMES))
        for key in sorted(params)
        if key not in NAMES
    ]
    if problems:
        raise ConfigurationError("\n".join(problems))
    return params


def _preset(name):
    def make(**updated):
        return _changed(name, PRESETS[name], updated)

    make.__doc__ = "A new POOL: the preset '%s' with changes; ConfigurationError for an unknown key." % name
    return staticmethod(make)


class DjangoPoolParams:
    """The presets, by the names that they have in django-db-conn-pool."""

    @staticmethod
    def new(default, **updated):
        """A POOL of one's own with changes; ConfigurationError for an unknown key."""
        return _changed("DjangoPoolParams", default, updated)

    new_slow_safe = _preset("slow_and_safe")
    new_fast_sane = _preset("fast_and_sane")
    new_fast_wild = _preset("fast_and_wild")
