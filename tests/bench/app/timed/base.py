# SPDX-License-Identifier: MIT
"""dbpool's backend with a clock around the calls that Django makes of it in a request, and those alone: connecting, what
follows a new connection, and closing. While nobody waits, nothing in them gives way to another greenlet."""

import time

from dbpool.mysql import base


def _timed(name):
    inner = getattr(base.DatabaseWrapper, name)

    def measured(self, *args, **kwargs):
        began = time.perf_counter_ns()
        try:
            return inner(self, *args, **kwargs)
        finally:
            DatabaseWrapper.ns += time.perf_counter_ns() - began
            DatabaseWrapper.calls += 1

    return measured


class DatabaseWrapper(base.DatabaseWrapper):
    calls = ns = 0
    get_new_connection = _timed('get_new_connection')
    init_connection_state = _timed('init_connection_state')
    _close = _timed('_close')
