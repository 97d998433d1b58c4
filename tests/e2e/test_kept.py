# SPDX-License-Identifier: MIT
"""I7: what was kept past its return raises InterfaceError and writes nothing, also when the same process has the same
session again. A raw close() returns the lease and does not close."""

from tests.e2e.base import MODES, WithUwsgi, matrix


@matrix(modes=MODES)
class Kept(WithUwsgi):
    pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30}
    processes = 1

    def test_used_while_the_session_is_leased_again(self):
        self.uwsgi.get('/rows', ids='1', token='t')  # what Django and the driver ask once
        for how in ('close', 'raw', 'with'):
            with self.subTest(how):
                self.server.log_commands(True)
                before = len(self.server.commands())
                answer = self.uwsgi.get('/kept_again', how=how).json()
                self.server.log_commands(False)
                self.assertGreater(len(answer['outcomes']), 25)
                self.assertEqual(set(answer['outcomes'].values()), {'InterfaceError'}, answer['outcomes'])
                self.assertEqual(answer['harmless'], [])
                self.assertEqual((answer['first'], answer['found']), (answer['second'], [[0]]))
                self.assertEqual(answer['seen'], [answer['first'], 1, 0])
                said = [text for number, command, text in self.server.commands()[before:] if number == answer['first']]
                self.assertEqual(len(said), 4, said)
                self.whole(self.uwsgi)
                self.assertIn(answer['first'], self.sessions())
                self.assertEqual(self.server.query('SELECT COUNT(*) FROM counters'), ((2,),))


@matrix(drivers=('mysqlclient',), modes=('gevent',))
class Grown(WithUwsgi):
    pool = {'pool_size': 1, 'max_overflow': 0, 'timeout': 30}
    processes = 1

    def test_an_object_that_a_large_row_has_grown_does_not_stay(self):
        """Its network buffer would be kept as large as that."""
        for size, same in ((1000, True), (3 << 20, False), (1000, True)):
            self.assertIs(self.uwsgi.get('/grown', bytes=size).json()['same'], same, size)
