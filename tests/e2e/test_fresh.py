# SPDX-License-Identifier: MIT
"""A lease begins as a fresh connection of its driver would, in every variable: the first one of a session, and one after
many resets. The stock driver (or Django's stock backend) with the same arguments in the same process is the measure.
"""

import os
import re
import select
import socket
import threading
import unittest

import MySQLdb
import pymysql

from tests.e2e.base import DATABASE, PASSWORD, STOCK, USER, WithServer

RESETS = 200
POOLS = 10  # in one instance

# Of one connection, or of this moment; and what the pool asks for to know what a lease changed.
VOLATILE = {'rand_seed1', 'rand_seed2', 'timestamp', 'pseudo_thread_id', 'last_insert_id', 'insert_id', 'identity',
            'error_count', 'warning_count', 'in_transaction'}
THE_POOLS_OWN = {'session_track_state_change', 'session_track_system_variables'}

# More than the drivers agree on: what is set twice, in which order, and what one statement does to another. Django's
# default for charset is utf8, which libmariadb calls utf8mb3.
OPTIONS = {
    'plain': {},
    'utf8': {'charset': 'utf8'},
    'utf8mb4': {'charset': 'utf8mb4'},
    'latin1': {'charset': 'latin1'},
    'names': {'charset': 'utf8mb4', 'init_command': 'SET NAMES latin1'},
    'names that differ in nothing': {'charset': 'latin1', 'init_command': "SET NAMES 'latin1' COLLATE latin1_bin"},
    'collation': {'charset': 'utf8mb4', 'init_command': 'SET NAMES utf8mb4 COLLATE utf8mb4_bin'},
    'collation of the default': {'init_command': 'SET NAMES utf8 COLLATE utf8_bin'},
    'collation, alone': {'init_command': 'SET collation_connection = utf8mb4_bin'},
    'results': {'charset': 'utf8mb4',
                'init_command': "SET character_set_results = NULL, collation_connection = 'utf8mb4_bin'"},
    'a character set by its number': {'charset': 'utf8mb4', 'init_command': 'SET character_set_client = 8'},
    'the default names': {'charset': 'utf8mb4', 'init_command': 'SET NAMES DEFAULT'},
    'SET CHARACTER SET': {'charset': 'latin1', 'init_command': 'SET CHARACTER SET latin1'},
    'a word in a text': {'charset': 'utf8mb4', 'init_command': "SET @mode = 'SET NAMES latin1' /* charset latin1 */"},
    'a procedure': {'charset': 'utf8mb4', 'init_command': 'CALL sets_names()'},
    'a statement in a text': {'charset': 'utf8mb4', 'init_command': "EXECUTE IMMEDIATE 'SET NAMES latin1'"},
    'mode': {'sql_mode': 'ANSI', 'init_command': "SET SESSION sql_mode = 'STRICT_ALL_TABLES'"},
    'mode from mode': {'sql_mode': 'TRADITIONAL', 'init_command': "SET @mode = @@sql_mode, wait_timeout = 1234"},
    'no mode': {'sql_mode': ''},
    'no backslashes': {'init_command': "SET sql_mode = 'NO_BACKSLASH_ESCAPES,ANSI_QUOTES'"},
    'level': {'isolation_level': 'serializable', 'init_command': 'SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED'},
    'no level': {'isolation_level': None, 'init_command': 'SET SESSION TRANSACTION READ ONLY'},
    'autocommit': {'init_command': 'SET autocommit = 0, time_zone = "+03:00"'},
    'bytes': {'use_unicode': False, 'charset': 'utf8mb4'},
    'several': {'init_command': 'SET SESSION lock_wait_timeout = 7, group_concat_max_len = 2048, completion_type = CHAIN,'
                                ' max_statement_time = 9.5, unique_checks = 0, lc_time_names = de_DE'},
}
# For connections without Django.
ARGUMENTS = {
    'plain': {},
    'autocommit': {'autocommit': True, 'init_command': 'SET autocommit = 0'},
    'utf8': {'charset': 'utf8', 'init_command': 'SET NAMES utf8 COLLATE utf8_bin'},
    'names': {'init_command': 'SET NAMES latin1'},
    'client': {'init_command': 'SET character_set_client = latin1'},
    'CHARACTER SET': {'init_command': 'SET CHARACTER SET latin1'},
    'mode': {'sql_mode': 'ANSI', 'init_command': "SET sql_mode = ''", 'autocommit': True},
}
ASK = ['SHOW SESSION VARIABLES', "SELECT @mode, COLLATION('x'), CHARSET('x'), @@collation_connection, @@autocommit"]

# Answers with all that a connection can see. POST {"pooled": ..., "arguments": {...}, "dirty": how many leases before}.
APP = """
import json
import dbpool
import %(driver)s as stock

Database = dbpool.manage(stock, pool_size=1, max_overflow=0, timeout=30)

def plain(value):
    return value.decode('utf-8', 'replace') if isinstance(value, bytes) else value

def application(environ, start_response):
    asked = json.loads(environ['wsgi.input'].read() or b'{}')
    answer = {}
    if asked:
        module = Database if asked['pooled'] else stock
        for _ in range(asked['dirty']):
            connection = module.connect(**asked['arguments'])
            connection.cursor().execute('SET @leak = 1')
            connection.close()
        connection = module.connect(**asked['arguments'])
        cursor = connection.cursor()
        answer['results'] = []
        for sql in %(ask)r:
            cursor.execute(sql)
            answer['results'].append([[plain(value) for value in row] for row in cursor.fetchall()])
        cursor.execute('SELECT CONNECTION_ID()')
        answer['id'] = cursor.fetchone()[0]
        connection.close()
    start_response('200 OK', [('Content-Type', 'application/json')])
    return [json.dumps(answer).encode()]
"""


class Forgetful:
    """A server with MySQL 8's habits in front of MariaDB: COM_RESET_CONNECTION loses the login's character set, and SET
    NAMES without a collation takes another one than a login does. One thread for each connection."""

    OWN = b'utf8mb4', b'utf8mb4_unicode_ci'

    def __init__(self, target):
        self.target = target
        self.resets = 0
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._open = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for one in list(self._open):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # its peer has gone

    def _accept(self):
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, near):
        with near, socket.create_connection(self.target) as far:
            self._open |= {near, far}
            try:
                while True:
                    for ready in select.select([near, far], [], [])[0]:
                        data = ready.recv(65536)
                        if not data:
                            return
                        if ready is far:
                            near.sendall(data)
                        elif data == b'\x01\0\0\0\x1f':
                            self.resets += 1
                            answer = self._ask(far, data)
                            self._ask(far, self._query(b'SET NAMES %s COLLATE %s' % self.OWN))
                            near.sendall(answer)
                        else:
                            far.sendall(self._completed(data))
            except OSError:
                pass  # one of both has gone
            finally:
                self._open -= {near, far}

    @staticmethod
    def _ask(far, command):
        """One command that is answered by one packet."""
        far.sendall(command)
        with far.makefile('rb', buffering=0) as answer:
            head = answer.read(4)
            return head + answer.read(int.from_bytes(head[:3], 'little'))

    @staticmethod
    def _query(sql):
        return (len(sql) + 1).to_bytes(3, 'little') + b'\0\x03' + sql

    def _completed(self, data):
        if re.fullmatch(rb"(?is)...\0\x03set names '?utf8mb4'?", data):
            return self._query(data[5:] + b' COLLATE ' + self.OWN[1])
        return data


class Fresh(WithServer):
    # Defaults that no client has by itself.
    server_options = ('--character-set-server=latin1', '--collation-server=latin1_german2_ci')

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.query("CREATE PROCEDURE app.sets_names() BEGIN SET NAMES latin1; SET @mode = 'called'; END")

    def serve(self, databases):
        databases['default'] = self.database(engine=STOCK)
        self.uwsgi = self.entered(self.make_uwsgi(self.driver, 'prefork', databases, processes=1))

    def both(self, name, **more):
        pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30}
        return {'stock ' + name: self.database(engine=STOCK, **more), 'pool ' + name: self.database(pool, **more)}

    def portrait(self, answer):
        self.assertEqual(len(answer['results']), len(ASK), answer)
        variables, rest = answer['results']
        variables = {name: value for name, value in variables if name not in VOLATILE and not name.startswith('gtid')}
        return dict(variables, rest=rest[0]), answer['id']

    def ask(self, alias):
        return self.portrait(self.run_sql(self.uwsgi, *ASK, alias=alias))

    def compare(self, stock, first, last):
        differ = {key for key in set(stock) | set(first) | set(last)
                  if not stock.get(key) == first.get(key) == last.get(key)}
        self.assertEqual({key: (stock.get(key), first.get(key), last.get(key)) for key in differ - THE_POOLS_OWN}, {},
                         'stock, first lease, last lease')

    def compare_aliases(self, names):
        for name in names:
            with self.subTest(name):
                stock, _ = self.ask('stock ' + name)
                first, number = self.ask('pool ' + name)
                for _ in range(RESETS if name == 'plain' else 3):
                    self.run_sql(self.uwsgi, 'SET @leak = 1, NAMES cp1251', alias='pool ' + name)
                last, same = self.ask('pool ' + name)
                self.assertEqual(same, number, 'the session was reset, not replaced')
                self.compare(stock, first, last)

    def test_every_variable(self):
        aliases = {name: {'options': options} for name, options in OPTIONS.items()}
        if self.knows_collation:
            aliases['option'] = {'options': {'charset': 'utf8mb4', 'collation': 'utf8mb4_bin', 'init_command': 'DO 1'}}
        aliases['AUTOCOMMIT'] = {'AUTOCOMMIT': False, 'options': {'init_command': 'SELECT n FROM counters'}}
        names = list(aliases)
        for some in (names[at:at + POOLS] for at in range(0, len(names), POOLS)):
            databases = {}
            for name in some:
                databases.update(self.both(name, **aliases[name]))
            self.serve(databases)
            self.compare_aliases(some)
            self.uwsgi.close()

    def test_every_variable_where_a_reset_loses_the_character_set(self):
        proxy = self.entered(Forgetful((self.server.host, self.server.port)))
        databases = {}
        for name in ('plain', 'utf8mb4', 'latin1', 'names', 'collation'):
            databases.update(self.both(name, options=OPTIONS[name], PORT=proxy.port))
        self.serve(databases)
        self.compare_aliases(['plain', 'utf8mb4', 'latin1', 'names', 'collation'])
        self.assertGreater(proxy.resets, RESETS)

    def test_every_variable_without_django(self):
        # What Django says to each connection, nobody says here. (Stock Django cannot connect to such a server at all.)
        self.server.query('SET GLOBAL sql_auto_is_null = 1')
        self.addCleanup(self.server.query, 'SET GLOBAL sql_auto_is_null = 0')
        directory = os.path.join(self.meet, self.new_name())
        os.mkdir(directory)
        module = {'mysqlclient': 'MySQLdb'}.get(self.driver, self.driver)
        with open(os.path.join(directory, 'under_test.py'), 'w') as f:
            f.write(APP % {'driver': module, 'ask': ASK})
        uwsgi = self.entered(self.make_uwsgi(
            self.driver, 'prefork', {'default': self.database(engine=STOCK)}, 1,
            {'module': 'under_test:application', 'enable-threads': True}, environ={'PYTHONPATH': directory}))
        where = {'host': self.server.host, 'port': self.server.port, 'user': USER, 'password': PASSWORD,
                 'database': DATABASE}
        for name, arguments in ARGUMENTS.items():
            with self.subTest(name):
                def portrait(pooled, dirty=0):
                    answer = uwsgi.get('/', {'pooled': pooled, 'arguments': dict(where, **arguments), 'dirty': dirty})
                    self.assertEqual(answer.status, 200, uwsgi.log())
                    return self.portrait(answer.json())

                stock, _ = portrait(False)
                first, number = portrait(True)
                last, same = portrait(True, 3)
                self.assertEqual(same, number, 'the session was reset, not replaced')
                self.compare(stock, first, last)

    def test_no_transaction_is_left_of_the_set_up(self):
        """What init_command did is committed, and no other transaction begins with that."""
        self.server.query('SET GLOBAL completion_type = CHAIN')
        self.addCleanup(self.server.query, 'SET GLOBAL completion_type = DEFAULT')
        self.serve(self.both('left', AUTOCOMMIT=False, options={'init_command': 'SELECT n FROM counters'}))
        seen = []
        for _ in range(3):
            answer = self.run_sql(self.uwsgi, 'SELECT @@in_transaction', 'SET @leak = 1', alias='pool left')
            seen.append((answer['results'][0], answer['id']))
        self.assertEqual(seen, [([[0]], seen[0][1])] * 3)

    def test_the_bytes_that_are_stored(self):
        self.server.query('CREATE TABLE app.words (word VARCHAR(10) CHARACTER SET utf8mb4)')
        names = ('plain', 'latin1', 'names')
        databases = {}
        for name in names:
            databases.update(self.both(name, options=OPTIONS[name]))
        self.serve(databases)
        for name in names:
            stored = []
            for kind in ('stock ', 'pool '):
                self.run_sql(self.uwsgi, "INSERT INTO words VALUES ('caf\u00e9')", alias=kind + name)
                stored.append(self.server.query('SELECT HEX(word) FROM app.words'))
                self.server.query('DELETE FROM app.words')
            self.assertEqual(stored[0], stored[1], name)


class Fresh_mysqlclient(Fresh, unittest.TestCase):
    driver = 'mysqlclient'
    knows_collation = MySQLdb.version_info >= (2, 2)


class Fresh_pymysql(Fresh, unittest.TestCase):
    driver = 'pymysql'
    knows_collation = hasattr(pymysql.connections.Connection, 'set_character_set')  # 1.1
