# SPDX-License-Identifier: MIT
"""The ceiling with dbpool's way of waiting: a greenlet whose query is not answered yet lets the others run."""

import MySQLdb
from dbpool import _dbpool, waiting

from kept import base


class DatabaseWrapper(base.DatabaseWrapper):
    natives = []  # they hold the hooks of connections that are kept for ever

    def open(self, conn_params):
        waiting.enable()
        connection = super().open(dict(conn_params, read_timeout=waiting.FOREVER_S, write_timeout=waiting.FOREVER_S))
        native = _dbpool.Native(connection, MySQLdb._mysql.__file__)
        if not native.install():
            raise RuntimeError('the client library has no I/O wait hook')
        self.natives.append(native)
        return connection
