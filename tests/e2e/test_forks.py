# SPDX-License-Identifier: MIT
"""fork and exec inside a worker that holds a lease (I11): the child never uses or ends the parent's session, gets one of
its own when it asks, and no session's fd is in a child that executes something else, nor in what the master forks."""

import os
import signal
import time
import unittest
import uuid

from tests.e2e.base import DATABASE, DRIVERS, MODES, WithServer
from tests.support import fd_census, in_background, session_sockets, start_time, wait_until
from tests.support.procs import children

POOL = {'pool_size': 3, 'max_overflow': 0, 'timeout': 30}

IDLE = """
import time
while True:
    time.sleep(60)
"""

SPOOLER = """
import uwsgi
uwsgi.spooler = lambda environ: uwsgi.SPOOL_OK
"""

# (how, what the child does, how it ends)
CHILDREN = [(how, what, end) for how in ('fork', 'original') for what, end in (
    ('', '_exit'), ('', 'exit'), ('', 'exec'), ('steal', '_exit'), ('drop', '_exit'), ('steal,close,drop', 'exit'),
    ('own,close', '_exit'), ('own', '_exit'), ('own', 'exit'), ('steal,own,close,drop', 'exit'))]
CHILDREN += [('multiprocessing', what, '') for what in ('', 'steal,drop', 'own', 'own,close')]
CHILDREN += [('spawn', 'own', ''), ('subprocess', '', '')]

# What a child hears that uses its parent's: never a result.
REFUSALS = {'InterfaceError', 'OperationalError', 'ProgrammingError'}


class Forks(WithServer, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.query('CREATE TABLE %s.forks (nonce CHAR(32) PRIMARY KEY) ENGINE=InnoDB' % DATABASE)

    def serve(self, driver, mode, options=None, **more):
        return self.make_uwsgi(driver, mode, {'default': self.database(POOL)}, 2,
                               {'module': 'forks:application', **(options or {})}, **more)

    def sessions_of_master(self, uwsgi):
        return set(session_sockets(uwsgi.pid, self.server.port).values())

    def fork(self, uwsgi, how, what='', end=''):
        nonce = uuid.uuid4().hex
        answer = uwsgi.get('/fork', how=how, what=what, end=end, nonce=nonce)
        self.assertEqual(answer.status, 200, answer)
        answer = answer.json()
        self.assertEqual((answer['before'], answer['mine'], answer['rows']), (answer['after'], nonce, 1),
                         "the parent's session and its transaction are untouched")
        self.assertEqual(self.server.query('SELECT COUNT(*) FROM %s.forks WHERE nonce = %%s' % DATABASE, (nonce,)),
                         ((1,),))
        return answer['child'], answer['before']

    def judge(self, uwsgi, child, session):
        self.assertIsNotNone(child, 'the child did what it was told')
        self.assertEqual(self.sessions_of_master(uwsgi) & set(child['sockets']), set(), 'no session was inherited')
        for outcome in child.get('steal', ()):
            self.assertIn(outcome, REFUSALS)
        if 'own' in child:
            found, mine, _ = child['own']
            self.assertNotEqual(found, session)
            self.assertIsNone(mine)

    def test_children(self):
        for driver in DRIVERS:
            for mode in MODES:
                with self.serve(driver, mode) as uwsgi:
                    for how, what, end in CHILDREN:
                        with self.subTest(driver=driver, mode=mode, how=how, what=what, end=end):
                            self.judge(uwsgi, *self.fork(uwsgi, how, what, end))
                            uwsgi.note_processes()
                    self.whole(uwsgi)
                    self.assertLessEqual(len(self.sessions()), POOL['pool_size'])
