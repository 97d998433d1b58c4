# SPDX-License-Identifier: MIT
"""No extra round trip: a request costs the server what the application asked for, by the server's own count."""

import unittest

from tests.e2e.base import STOCK, USER, WithServer, WithUwsgi, matrix


def own_commands(server, since):
    """(kind, text) of what the application's sessions sent after so many logged commands."""
    mine = set(server.sessions(USER))
    return [(kind, text) for pk, kind, text in server.commands()[since:] if pk in mine]


class Counted:
    """Counts what the server sees of some requests."""

    def cost(self, requests):
        """(questions, administrative commands, texts) that requests() cost the server."""
        server = self.server
        server.log_commands(True)
        try:
            before = server.status('Com_admin_commands')['Com_admin_commands']
            questions, logged = server.questions(), len(server.commands())
            requests()
            questions = server.questions() - questions
            admin = server.status('Com_admin_commands')['Com_admin_commands'] - before
            return questions, admin, own_commands(server, logged)
        finally:
            server.log_commands(False)


@matrix()
class Commands(Counted, WithUwsgi):
    pool = {'pool_size': 2, 'max_overflow': 0, 'timeout': 30}

    def setUp(self):
        # Each session was used by two workers at least: nothing that happens once is left to happen.
        self.use_all()
        self.sql('UPDATE counters SET n = n + 1 WHERE id = 1', atomic=True)
        self.whole(self.uwsgi)

    def test_queries_only(self):
        def requests():
            for n in range(20):
                self.assertEqual(self.uwsgi.get('/rows', ids='1,2,3', token='x').status, 200)

        questions, admin, texts = self.cost(requests)
        # Three rows and the page's own CONNECTION_ID().
        self.assertEqual((questions, admin), (20 * 4, 0), texts[:12])

    def test_transaction(self):
        def requests():
            for n in range(10):
                answer = self.sql('UPDATE counters SET n = n + 1 WHERE id = 1', atomic=True, id=False)
                self.assertNotIn('error', answer)

        questions, admin, texts = self.cost(requests)
        self.assertEqual((questions, admin), (10 * 4, 0), texts[:12])
        self.assertEqual([text.lower().replace(' ', '') for _, text in texts[:4]],
                         ['setautocommit=0', 'updatecounterssetn=n+1whereid=1', 'commit', 'setautocommit=1'])

    def test_nothing_without_queries(self):
        questions, admin, texts = self.cost(lambda: [self.uwsgi.get('/ping') for _ in range(10)])
        self.assertEqual((questions, admin), (0, 0), texts)

    def test_no_login_per_request(self):
        before = self.server.status('Connections')['Connections']
        for n in range(20):
            self.uwsgi.get('/rows', ids='1', token='x')
        self.assertEqual(self.server.status('Connections')['Connections'], before)


@matrix(modes=['prefork'])
class AsStock(Counted, WithServer):
    """The yardstick of the above: the stock backend on a connection that it keeps asks for just the same."""

    def test_same_commands_as_a_kept_stock_connection(self):
        seen = {}
        for name, entry in [('pool', self.database({'pool_size': 1, 'max_overflow': 0, 'timeout': 30})),
                            ('stock', self.database(engine=STOCK, CONN_MAX_AGE=None))]:
            with self.make_uwsgi(self.driver, self.mode, {'default': entry}, processes=1) as uwsgi:
                def requests():
                    self.assertEqual(uwsgi.get('/rows', ids='1,2', token='x').status, 200)
                    self.run_sql(uwsgi, 'SELECT 1', atomic=True)
                    self.assertEqual(uwsgi.get('/atomic_raise').status, 500)
                requests()
                seen[name] = self.cost(requests)
        self.assertEqual(seen['pool'], seen['stock'])


class FullCount(WithServer, unittest.TestCase):
    """What a whole instance costs: no statement is sent for a session beyond those that open it."""

    def test_opening_is_paid_once(self):
        entry = self.database({'pool_size': 1, 'max_overflow': 0, 'timeout': 30})
        for driver in ('mysqlclient', 'pymysql'):
            with self.subTest(driver), self.make_uwsgi(driver, 'prefork', {'default': entry}) as uwsgi:
                uwsgi.get('/rows', ids='1', token='x')
                before = self.server.questions()
                for n in range(10):
                    uwsgi.get('/rows', ids='1', token='x')
                self.assertEqual(self.server.questions() - before, 20)
