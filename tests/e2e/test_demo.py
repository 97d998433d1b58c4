# SPDX-License-Identifier: MIT
"""demo/run as a newcomer runs it: a summary and status 0; stopped at any moment, nothing is left."""

import glob
import os
import signal
import subprocess
import tempfile
import unittest

from tests.support import descendants, is_alive, start_time, wait_until
from tests.support.uwsgi import TOP

DEMO = os.path.join(TOP, 'demo', 'run')


class Demo(unittest.TestCase):
    def start(self, *arguments):
        self.output = tempfile.TemporaryFile('a+')  # appending: reading must not move the child's place
        self.addCleanup(self.output.close)
        process = subprocess.Popen([DEMO, *arguments], stdin=subprocess.DEVNULL, stdout=self.output,
                                   stderr=subprocess.STDOUT)
        self.addCleanup(process.wait)
        self.addCleanup(process.terminate)
        return process

    def directories(self):
        return set(glob.glob(os.path.join(tempfile.gettempdir(), 'dbpool-demo-*')))

    def text(self):
        self.output.seek(0)
        return self.output.read()

    def test_once(self):
        before = self.directories()
        process = self.start('--once', '--requests', '400')
        status = process.wait(300)
        text = self.text()
        self.assertEqual(status, 0, text)
        for part in ('requests per second', 'allowed (the cap)', 'No errors.', 'The cap held'):
            self.assertIn(part, text)
        self.assertEqual(self.directories() - before, set())

    def test_stopped(self):
        """While the servers start, under load, and when all is up: no process and no file stays behind."""
        for moment in ('2. A private', 'Django, mysqlclient', 'Still up'):
            for sig in (signal.SIGINT, signal.SIGTERM):
                with self.subTest(moment=moment, signal=sig):
                    before = self.directories()
                    process = self.start('--requests', '400')
                    wait_until(lambda: moment in self.text() or process.poll() is not None, 300, moment)
                    self.assertIsNone(process.poll(), self.text())
                    family = {pid: start_time(pid) for pid in descendants(process.pid)}
                    process.send_signal(sig)
                    process.wait(120)
                    wait_until(lambda: not [p for p, started in family.items() if started and is_alive(p, started)],
                               30, 'every process ends')
                    self.assertEqual(self.directories() - before, set())
