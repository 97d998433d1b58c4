# SPDX-License-Identifier: MIT
"""Where this process stands.

Inside uWSGI the pool is used or the configuration is refused: never a silent private connection, with one exception,
an application that queries while it is imported in the master, before the workers are forked.
"""

import sys

from . import _dbpool, waiting
from .settings import ConfigurationError

OUTSIDE = "outside uWSGI"
BEFORE_FORK = "in the uWSGI master, before the fork"
POOLED = "with the pool"


class NotReady(Exception):
    """The pool is configured, but this process cannot attach to it now; the text says why."""


def uwsgi():
    """The uwsgi module when this process is uWSGI's, else None. uWSGI puts it there before any application."""
    return sys.modules.get("uwsgi")


def where():
    """OUTSIDE, BEFORE_FORK or POOLED; attaches the process when it is the first call in it.

    Raises ConfigurationError when the pool can never be used with this ini, NotReady when it cannot be now."""
    module = uwsgi()
    if module is None:
        return OUTSIDE
    if not _dbpool.main_interpreter():
        raise ConfigurationError(
            "dbpool: this application runs in a sub-interpreter, where driver objects cannot be shared safely. "
            "Put 'single-interpreter = true' in the uWSGI ini."
        )
    waiting.enable()
    try:
        _dbpool.attach()
    except _dbpool.Unavailable as unavailable:
        reason, text = unavailable.args
    else:
        return POOLED
    if reason == "before-fork":
        return BEFORE_FORK
    if reason == "plugin":
        raise ConfigurationError(
            "dbpool: %s. Put 'need-plugin = dbpool' in the uWSGI ini (and 'master = true')." % text
        )
    if reason == "version":
        raise ConfigurationError("dbpool: %s. Build and install both from one checkout." % text)
    if not module.masterpid():
        raise ConfigurationError(
            "dbpool: the pool lives in the uWSGI master, and there is none. Put 'master = true' in the uWSGI ini."
        )
    raise NotReady("dbpool: %s" % text)


def concurrency():
    """How many requests this instance can serve at a time (workers x threads or greenlets); None outside uWSGI."""
    module = uwsgi()
    if module is None:
        return None
    options = getattr(module, "opt", {})

    def number(*names):
        for name in names:
            value = options.get(name.encode(), options.get(name))
            if isinstance(value, list):
                value = value[-1] if value else None
            try:
                return max(1, int(value))
            except (TypeError, ValueError):
                continue
        return 1

    workers = getattr(module, "numproc", None) or number("processes", "workers")
    return workers * max(number("threads"), number("gevent", "async"))
