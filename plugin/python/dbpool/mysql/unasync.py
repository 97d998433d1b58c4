# SPDX-License-Identifier: MIT
"""Django's async_unsafe at a lower price.

Django decorates connect(), cursor(), close() and others so that they refuse to run where an asyncio event loop runs. It
finds that out by an exception (and, before 4.0, reads the environment first), at each of the six or so of a request:
some 2 % of a short one. Here the loop is looked for by asyncio's own quiet look; only where there is one is the decorated
method called, to refuse as it does. https://docs.djangoproject.com/en/stable/topics/async/#async-safety
"""

import functools
import inspect
from asyncio import _get_running_loop

from django.db.backends.mysql import base as stock


def _quiet(method):
    unchecked = getattr(method, "__wrapped__", None)
    if unchecked is None:
        return method  # not decorated in this Django

    def quiet(self):  # the usual ones; a call with *args would cost twice as much
        return (unchecked if _get_running_loop() is None else method)(self)

    def quiet_with_arguments(*args, **kwargs):
        return (unchecked if _get_running_loop() is None else method)(*args, **kwargs)

    bare = len(inspect.signature(unchecked).parameters) == 1
    return functools.wraps(method)(quiet if bare else quiet_with_arguments)


class DatabaseWrapper(stock.DatabaseWrapper):
    """The stock wrapper, asking less."""


for _name in "connect ensure_connection cursor create_cursor commit rollback close".split():
    setattr(DatabaseWrapper, _name, _quiet(getattr(stock.DatabaseWrapper, _name)))
