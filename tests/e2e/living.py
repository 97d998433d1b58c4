# SPDX-License-Identifier: MIT
"""What the tests of uWSGI's life share: statements that wait for a row lock, so that what became of a dead request's is
seen; the server's own count meanwhile; and which process has which fds."""

import collections
import contextlib
import json
import os
import re
import tempfile

from tests.e2e.base import APP, WithServer
from tests.e2e.storming import BROKEN, Census
from tests.support import concurrently, fd_census, in_background, session_sockets, wait_until

# Waits while row_locked(). The comment says whose it is.
BLOCKED = 'UPDATE counters SET n = n + 1 WHERE id = 1 /* %s */'


class Living(WithServer):
    driver = 'mysqlclient'
    mode = 'prefork'

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        # No statement that waits for a row goes by itself while a test looks.
        cls.server.query('SET GLOBAL innodb_lock_wait_timeout = 3600')

    def short_lived(self, **options):
        """Options with which what is asked to end ends soon, and self.command() works."""
        self.fifo = os.path.join(self.meet, self.new_name())
        return {'master-fifo': self.fifo, 'worker-reload-mercy': 1, 'reload-mercy': 1, 'mule-reload-mercy': 1,
                'min-worker-lifetime': 0, **{name.replace('_', '-'): value for name, value in options.items()}}

    def command(self, letter):
        with open(self.fifo, 'w') as f:
            f.write(letter)

    # ---- statements that wait ----

    @contextlib.contextmanager
    def row_locked(self):
        keeper = self.server.connect(database='app', autocommit=False)
        try:
            with keeper.cursor() as cursor:
                cursor.execute('UPDATE counters SET n = 0 WHERE id = 1')
            yield
            keeper.rollback()
        finally:
            keeper.close()

    def blocked(self, by=None):
        """Whose statements wait at the server now, by an administrator's look: ['worker', 'worker', 'mule']."""
        found = []
        for row in self.server.query('SHOW FULL PROCESSLIST'):
            match = re.fullmatch(re.escape(BLOCKED).replace('%s', r'(\w+)'), row[7] or '')
            if match and by in (None, match.group(1)):
                found.append(match.group(1))
        return sorted(found)

    def ask_in_vain(self, uwsgi, harakiri=0, alias='default', by='worker'):
        """A request that waits for the row: its answer, or what its client meets when its worker ends."""
        try:
            return uwsgi.get('/sql', {'statements': [BLOCKED % by], 'alias': alias, 'harakiri': harakiri, 'id': False})
        except BROKEN as error:
            return error

    def all_blocked(self, uwsgi, n, harakiri=0):
        """n requests that wait for the row now, or whose worker has ended already."""
        pages = [in_background(self.ask_in_vain, uwsgi, harakiri) for _ in range(n)]
        wait_until(lambda: len(self.blocked('worker')) + sum(page.done() for page in pages) >= n, 60,
                   'all wait for the row')
        if not harakiri:
            self.assertEqual([page.result() for page in pages if page.done()], [])
        return pages

    # ---- the server's count ----

    @contextlib.contextmanager
    def watched(self, cap):
        """The server never has more of the pool's sessions than the cap, all the time."""
        census = Census(self.server, cap)
        census.start()
        try:
            yield census
        finally:
            census.stop()
        self.assertIsNone(census.failed)
        self.assertGreater(census.samples, 0)
        self.assertLessEqual(census.peak, cap, 'more sessions at the server than the cap')

    # ---- whose fds ----

    def files_options(self, background=False):
        """The application opens files in each process; with background also in a mule and a spooler that work."""
        options = {'shared-import': 'files'}
        if background:
            options.update({'mule': os.path.join(APP, 'mule.py'), 'spooler': tempfile.mkdtemp(dir=self.meet),
                            'spooler-frequency': 1})
        return options

    def in_background_process(self, uwsgi, to, statement):
        """Has the mule or the spooler say it; the name by which done() knows it."""
        name = self.new_name()
        self.assertEqual(uwsgi.get('/background', {'to': to, 'statement': statement, 'name': name}).status, 200)
        return name

    def done(self, name):
        """What the process said when it had done it, or None."""
        with contextlib.suppress(FileNotFoundError), open(os.path.join(self.meet, name + '.done')) as f:
            return json.load(f)

    def its_own(self, report):
        self.assertEqual((report['opened'], report['strangers']), (24, []), 'the files of the application are its own')

    def settled(self, uwsgi, background=False):
        """Every process works, by a session of the pool, and all its files are its own; then nothing is on its way."""
        seen = set()

        def all_seen():
            for answer in concurrently(lambda _: uwsgi.get('/strangers'), [None] * 8, 4):
                if isinstance(answer, BROKEN):
                    continue  # it was in the backlog of a worker that had been told to end
                self.assertEqual(getattr(answer, 'status', answer), 200, answer)
                self.its_own(answer.json())
                seen.add((answer.json()['worker'], answer.json()['pid']))
            return set(uwsgi.worker_pids().items()) <= seen

        wait_until(all_seen, 60, 'every worker answers')
        for to in ('mule', 'spooler') if background else ():
            name = self.in_background_process(uwsgi, to, 'SELECT 1')
            wait_until(lambda: self.done(name), 30, 'the %s works' % to)
            self.its_own(self.done(name))
        wait_until(lambda: len(uwsgi.helper_pids()) == (3 if background else 1), 30, 'one connector')
        uwsgi.note_processes()
        self.whole(uwsgi)

    def fds_of_master(self, uwsgi):
        """{kind: how many} without the sessions, of which it has as many as the pool."""
        sessions = session_sockets(uwsgi.pid, self.server.port)
        return collections.Counter(target.partition(':[')[0] for fd, target in fd_census(uwsgi.pid).items()
                                   if fd not in sessions)
