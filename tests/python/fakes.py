# SPDX-License-Identifier: MIT
"""Stand-ins for what the pool hands out: a lease, a driver object, a profile that remembers how it all came back."""

from types import SimpleNamespace

import pymysql

from dbpool import _dbpool
from dbpool.lease import LeasedConnection


class Lease:
    def __init__(self, session=1, incarnation=1):
        self.session = session
        self.incarnation = incarnation
        self.held = True
        self.released = []

    def valid(self):
        return self.held

    def status(self):
        return 2

    def release(self, status, how):
        self.held = False
        self.released.append((status, how))


class Target:
    """A driver's connection that counts what would reach the wire."""

    def __init__(self):
        self.cursorclass = pymysql.cursors.Cursor
        self.encoding = 'utf8'
        self.encoders = {}
        self.commands = []
        self.during = None
        self._result = None

    def command(self, text):
        self.commands.append(text)
        if self.during is not None:
            self.during()

    def query(self, sql, unbuffered=False):
        self.command(sql)
        self._result = SimpleNamespace(affected_rows=1, description=(('a',),), insert_id=0, rows=((1,), (2,)),
                                       has_next=False, warning_count=0, unbuffered_active=False)
        return 1

    def commit(self):
        self.command('COMMIT')

    def rollback(self):
        self.command('ROLLBACK')

    def autocommit(self, on):
        self.command('autocommit')

    def ping(self):
        self.command('ping')

    def select_db(self, name):
        self.command('select_db')

    def set_server_option(self, option):
        self.command('set_server_option')

    def show_warnings(self):
        self.command('SHOW WARNINGS')
        return ()


class Driver:
    def __init__(self, session=1, incarnation=1):
        self.session = session
        self.incarnation = incarnation
        self.connection = Target()
        self.broken = self.leased = False
        self.instead = None
        self.verdict = (_dbpool.CLEAN, 2, True)
        self.destroyed = 0
        self.statuses = []
        self.facts_row = [b'1']
        self.ended = False
        self.answers = True
        self.pings = []
        self.resets = []
        self.before_calls = []
        self.lent = []

    def before(self, name):
        self.before_calls.append(name)

    def lend(self, value):
        self.lent.append(value)

    def checkout(self, status):
        self.statuses.append(status)

    def ping(self, timeout_ms):
        self.pings.append(timeout_ms)
        return self.answers

    def settle(self, autocommit, reset):
        self.resets.append(reset)
        return (_dbpool.DOOM, 0, False) if self.broken else self.verdict

    def failed(self, error):
        return self.instead

    def gone(self):
        return self.ended

    def destroy(self):
        self.destroyed += 1


class Connection(LeasedConnection):
    __slots__ = ()
    Database = pymysql

    query = _dbpool.command('query')
    _result = _dbpool.value('_result')
