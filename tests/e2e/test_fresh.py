# SPDX-License-Identifier: MIT
"""A lease begins as a fresh connection of its driver would, in every variable: the first one of a session, and one after
many resets. The stock backend, with the same OPTIONS in the same process, is the measure.
"""

import unittest

from tests.e2e.base import STOCK, WithServer

RESETS = 200

# Of one connection, or of this moment; and what the pool asks for to know what a lease changed.
VOLATILE = {'rand_seed1', 'rand_seed2', 'timestamp', 'pseudo_thread_id', 'last_insert_id', 'insert_id', 'identity',
            'error_count', 'warning_count', 'in_transaction'}
THE_POOLS_OWN = {'session_track_state_change', 'session_track_system_variables'}

# More than the drivers agree on: what is set twice, in which order, and what one statement does to another.
OPTIONS = {
    'plain': {},
    'utf8mb4': {'charset': 'utf8mb4'},
    'latin1': {'charset': 'latin1'},
    'names': {'charset': 'utf8mb4', 'init_command': 'SET NAMES latin1'},
    'collation': {'charset': 'utf8mb4', 'init_command': 'SET NAMES utf8mb4 COLLATE utf8mb4_bin'},
    'results': {'charset': 'utf8mb4', 'init_command': "SET character_set_results = NULL, collation_connection = 'utf8mb4_bin'"},
    'mode': {'sql_mode': 'ANSI', 'init_command': "SET SESSION sql_mode = 'STRICT_ALL_TABLES'"},
    'mode from mode': {'sql_mode': 'TRADITIONAL', 'init_command': "SET @mode = @@sql_mode, wait_timeout = 1234"},
    'level': {'isolation_level': 'serializable', 'init_command': 'SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED'},
    'autocommit': {'init_command': 'SET autocommit = 0, time_zone = "+03:00"'},
}
ASK = ['SHOW SESSION VARIABLES', "SELECT @mode, COLLATION('x'), CHARSET('x'), @@collation_connection, @@autocommit"]


class Fresh(WithServer):
    # Defaults that no client has by itself.
    server_options = ('--character-set-server=latin1', '--collation-server=latin1_german2_ci')

    def portrait(self, alias):
        answer = self.run_sql(self.uwsgi, *ASK, alias=alias)
        variables, rest = answer['results']
        variables = {name: value for name, value in variables if name not in VOLATILE and not name.startswith('gtid')}
        return dict(variables, rest=rest[0]), answer['id']

    def test_every_variable(self):
        pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30}
        databases = {'default': self.database(engine=STOCK)}
        for name, options in OPTIONS.items():
            databases['stock ' + name] = self.database(engine=STOCK, options=options)
            databases['pool ' + name] = self.database(pool, options=options)
        self.uwsgi = self.entered(self.make_uwsgi(self.driver, 'prefork', databases, processes=1))
        for name in OPTIONS:
            with self.subTest(name):
                stock, _ = self.portrait('stock ' + name)
                first, number = self.portrait('pool ' + name)
                for _ in range(RESETS):
                    self.run_sql(self.uwsgi, 'SET @leak = 1', alias='pool ' + name)
                last, same = self.portrait('pool ' + name)
                self.assertEqual(same, number, 'the session was reset, not replaced')
                differ = {key for key in set(stock) | set(first) | set(last)
                          if not stock.get(key) == first.get(key) == last.get(key)}
                self.assertEqual({key: (stock.get(key), first.get(key), last.get(key))
                                  for key in differ - THE_POOLS_OWN}, {}, 'stock, first lease, last lease')

    def test_the_bytes_that_are_stored(self):
        self.server.query('CREATE TABLE app.words (word VARCHAR(10) CHARACTER SET utf8mb4)')
        options = {name: one for name, one in OPTIONS.items() if name in ('plain', 'latin1', 'names')}
        databases = {'default': self.database(engine=STOCK)}
        for name, one in options.items():
            databases['stock ' + name] = self.database(engine=STOCK, options=one)
            databases['pool ' + name] = self.database(options=one)
        self.uwsgi = self.entered(self.make_uwsgi(self.driver, 'prefork', databases, processes=1))
        for name in options:
            stored = []
            for kind in ('stock ', 'pool '):
                self.run_sql(self.uwsgi, "INSERT INTO words VALUES ('caf\u00e9')", alias=kind + name)
                stored.append(self.server.query('SELECT HEX(word) FROM app.words'))
                self.server.query('DELETE FROM app.words')
            self.assertEqual(stored[0], stored[1], name)


class Fresh_mysqlclient(Fresh, unittest.TestCase):
    driver = 'mysqlclient'


class Fresh_pymysql(Fresh, unittest.TestCase):
    driver = 'pymysql'
