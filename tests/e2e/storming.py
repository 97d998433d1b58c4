# SPDX-License-Identifier: MIT
"""What the storms and the server's faults share: clients that never pause, the server's count of sessions, and what an
answer of the page /storm (app/storm.py) may be."""

import http.client
import random
import threading
import time
import uuid
from functools import cached_property

from tests.e2e.base import DATABASE, USER
from tests.support import connected_ports, in_background

BROKEN = (OSError, http.client.HTTPException)  # what a client sees of a worker that died with its request


class Census(threading.Thread):
    """The server's own count, all the time: never more of the pool's sessions at one moment than the cap (I3).

    A session that has ended stays in the server's list for a moment, so each that is listed must be there for the kernel
    as well: those that were listed, and are connected after that, were all alive at the moment in between. Logins that
    carry a KILL name no database and are not counted."""

    def __init__(self, server, cap):
        super().__init__(daemon=True)
        self.server = server
        self.connection = server.connect()
        self.cap = cap
        self.peak = 0
        self.samples = 0
        self.failed = None
        self._enough = threading.Event()

    def run(self):
        try:
            with self.connection.cursor() as cursor:
                while not self._enough.wait(0.01):
                    cursor.execute('SELECT host FROM information_schema.processlist WHERE user = %s AND db = %s',
                                   (USER, DATABASE))
                    listed = {int(host.rpartition(':')[2]) for host, in cursor.fetchall()}
                    self.peak = max(self.peak, len(listed & connected_ports(self.server.port)))
                    self.samples += 1
        except Exception as error:
            self.failed = error
        finally:
            self.connection.close()

    def stop(self):
        self._enough.set()
        self.join(30)


class Asked:
    """A question to the page /storm and what came of it."""

    def __init__(self, question):
        self.question = question
        self.nonce = question['nonce']
        self.answer = None  # a Response, or the exception that was raised instead
        self.started = time.monotonic()
        self.ended = None

    @cached_property
    def page(self):
        """What the page said, or None."""
        return self.answer.json() if getattr(self.answer, 'status', 0) == 200 else None

    @property
    def error(self):
        return self.page and self.page.get('error')

    def __repr__(self):
        return '<%r, %.3f to %.3f: %r>' % (self.question, self.started, self.ended, self.page or self.answer)


class Load:
    """So many clients that ask without a pause. Each answer is kept with its question, to be judged afterwards."""

    def __init__(self, uwsgi, seed, clients, hows, slow=0.1):
        self.uwsgi = uwsgi
        self.hows = hows
        self.slow = slow
        self.done = []  # Asked
        self._changed = threading.Condition()  # guards the next three
        self._paused = self._over = False
        self._asking = 0
        self._threads = [threading.Thread(target=self._run, args=(random.Random(seed + n),), daemon=True)
                         for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, chance):
        while self._begin():
            question = {'nonce': uuid.uuid4().hex, 'how': chance.choice(self.hows),
                        'ids': ','.join(str(chance.randint(1, 500)) for _ in range(3)), 'mark': chance.randint(0, 1),
                        'pause': 0.1 * chance.random() if chance.random() < self.slow else 0}
            asked = Asked(question)
            try:
                asked.answer = self.uwsgi.get('/storm', **question)
            except Exception as error:
                asked.answer = error
            asked.ended = time.monotonic()
            self.done.append(asked)
            with self._changed:
                self._asking -= 1
                self._changed.notify_all()
            if isinstance(asked.answer, ConnectionRefusedError):
                time.sleep(0.01)

    def _begin(self):
        with self._changed:
            self._changed.wait_for(lambda: self._over or not self._paused)
            self._asking += not self._over
            return not self._over

    def _set(self, paused, over):
        """Once no request is under way."""
        with self._changed:
            self._paused, self._over = paused, over
            self._changed.notify_all()
            if (paused or over) and not self._changed.wait_for(lambda: self._asking == 0, 90):
                raise AssertionError('requests without an answer')

    def pause(self):
        self._set(True, False)

    def go_on(self):
        self._set(False, False)

    def stop(self):
        self._set(False, True)


class Storming:
    """For test classes with a server."""

    def make_storm_table(self):
        self.server.query('CREATE TABLE %s.storm (nonce CHAR(32), step INT, PRIMARY KEY (nonce, step)) ENGINE=InnoDB'
                          % DATABASE)

    def wrong(self, asked):
        """Why this answer can never be right, or None. An error of the database is the caller's to judge."""
        page = asked.page
        if page is None:
            return 'no answer'
        if page['nonce'] != asked.nonce:
            return "another request's answer"
        if page['crosstalk'] or page['double']:
            return "another request's rows"
        if page.get('error') not in (None, 'OperationalError', 'InterfaceError'):
            return 'an error of another kind'
        if not asked.error and page['rows'] != [[int(pk), self.nonces[int(pk)]]
                                                for pk in asked.question['ids'].split(',')]:
            return 'wrong rows'
        return None

    def check_transactions(self, done):
        """I6: all of a transaction or nothing."""
        steps = {}
        for nonce, step in self.server.query('SELECT nonce, step FROM %s.storm' % DATABASE):
            steps.setdefault(nonce, []).append(step)
        for asked in done:
            found = sorted(steps.get(asked.nonce, []))
            finished = asked.page and not asked.error
            if asked.question['how'] != 'commit':
                allowed = [[]]
            else:  # killed between the COMMIT and its answer: nobody can know
                allowed = [[1, 2]] if finished else [[], [1, 2]]
            self.assertIn(found, allowed, asked)

    def all_at_once(self, uwsgi, cap):
        """I2: as many pages as the cap hold a session each, at the same time."""
        names = [self.new_name() for _ in range(cap)]
        pages = [in_background(uwsgi.get, '/hold', meet=name) for name in names]
        try:
            for name in names:
                self.here(name)
        finally:
            for name in names:
                self.go(name)
        ids = {page.result().json()['id'] for page in pages}
        self.assertEqual(len(ids), cap)
