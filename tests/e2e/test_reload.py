# SPDX-License-Identifier: MIT
"""Reloads while requests come: what uWSGI does to a request by itself (a refused or cut connection, which pages without
a database meet as well) is its own; that the pool is between two lives must not cost one.

With threads uWSGI 2.0.21 may stop a worker for good: its signal handler joins the other threads while the thread that it
interrupted has Python's lock, until worker-reload-mercy is over and the master kills it. The pool lives through that too.
"""

import http.client
import os
import signal
import unittest

from tests.e2e.base import WithServer, matrix
from tests.support import in_background, wait_until

NO_ANSWER = OSError, http.client.HTTPException


class UnderLoad(WithServer):
    clients = 6
    enough = 50  # answers that show the load

    def ask(self, uwsgi, done, answers):
        while not done:
            try:
                answers.append(uwsgi.get('/rows', ids='1,2,3', token='load'))
            except NO_ANSWER as error:  # uWSGI's listening socket, or a worker that ended with the connection open
                answers.append(error)

    def reloads(self, options, reload):
        with self.make_uwsgi(self.driver, self.mode, options=dict(options, **{'reload-mercy': 10, 'worker-reload-mercy': 10})) as uwsgi:
            self.assertEqual(uwsgi.get('/rows', ids='1', token='x').status, 200)
            workers, done, answers = set(uwsgi.worker_pids().values()), [], []
            clients = [in_background(self.ask, uwsgi, done, answers) for _ in range(self.clients)]

            def reloaded():
                try:
                    pids = set(uwsgi.worker_pids().values())
                    return pids and not pids & workers and uwsgi.get('/ping').status == 200
                except (OSError, ValueError):  # the stats server is between two lives
                    return False

            try:
                wait_until(lambda: len(answers) > self.enough, 30, 'the load is on')
                reload(uwsgi)
                wait_until(reloaded, 60, 'the workers are others')
                uwsgi.note_processes()
                n = len(answers)
                wait_until(lambda: len(answers) > n + self.enough, 30, 'the load goes on')
            finally:
                done.append(True)
            for client in clients:
                client.result()
            bad = [a for a in answers if not isinstance(a, NO_ANSWER) and a.status != 200]
            self.assertEqual(bad, [], '%d of %d' % (len(bad), len(answers)))
            for answer in answers:
                if not isinstance(answer, NO_ANSWER):
                    self.assertEqual([tuple(row) for row in answer.json()['rows']],
                                     [(pk, self.nonces[pk], 'load') for pk in (1, 2, 3)])
            self.whole(uwsgi)

    def test_full_reload(self):
        self.reloads({}, lambda uwsgi: os.kill(uwsgi.pid, signal.SIGHUP))

    def test_chain_reload(self):
        fifo = os.path.join(self.meet, 'fifo-%s-%s' % (self.driver, self.mode))

        def chain(uwsgi):
            with open(fifo, 'w') as f:
                f.write('c')

        self.reloads({'lazy-apps': True, 'master-fifo': fifo}, chain)


matrix(drivers=('mysqlclient',))(UnderLoad)


class UnderLoadPyMySQL(UnderLoad, unittest.TestCase):
    driver = 'pymysql'
    mode = 'gevent'
