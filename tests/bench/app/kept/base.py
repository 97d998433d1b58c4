# SPDX-License-Identifier: MIT
"""The ceiling: Django's own backend with connections that are opened once and kept in a list of the process. No cap, no
queue, no reset, no check: what a pool could at best come near to."""

from django.db.backends.mysql import base


class DatabaseWrapper(base.DatabaseWrapper):
    kept = []
    server_data = None

    def get_new_connection(self, conn_params):
        self.fresh = not self.kept
        return self.open(conn_params) if self.fresh else self.kept.pop()

    def open(self, conn_params):
        return super().get_new_connection(conn_params)

    def init_connection_state(self):
        if self.fresh:
            super().init_connection_state()

    def _close(self):
        self.kept.append(self.connection)

    @property
    def mysql_server_data(self):
        cls = type(self)
        if cls.server_data is None:
            cls.server_data = base.DatabaseWrapper.mysql_server_data.func(self)
        return cls.server_data
