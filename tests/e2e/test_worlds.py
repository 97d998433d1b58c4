# SPDX-License-Identifier: MIT
"""The kill storms, the server's faults and the reloads again, each in the slow worlds of worlds.py."""

import os
import signal
import time
import unittest
from contextlib import suppress

from tests.e2e import test_reload, test_server_faults, test_storms
from tests.e2e.worlds import Crowded, Far, FullDisk, StillLog, stopped
from tests.support import in_background, wait_until

SECONDS = float(os.environ.get('DBPOOL_STORM_SECONDS') or 6)


# ---- kill storms ----


class Storm(test_storms.Storm):
    seconds = SECONDS
    enough_samples = 5


class FarStorm(Far, FullDisk, Storm, unittest.TestCase):
    """A request of ten statements takes more than a second: fewer of them, and a later harakiri."""

    mode = 'gevent'
    hows = Storm.hows + ('timeout',)
    clients = 8
    harakiri_s = 5
    enough = 5


class StandingStorm(StillLog, Storm, unittest.TestCase):
    """The master and the log stand still again and again."""

    mode = 'threads'
    driver = 'pymysql'

    def faults(self):
        return super().faults() + [self.stop_master, self.stop_log] * 2

    def stop_master(self):
        self.counts['master'] = self.counts.get('master', 0) + 1
        with stopped(self.uwsgi.pid):
            time.sleep(0.1 + 0.5 * self.chance.random())

    def stop_log(self):
        self.counts['log'] = self.counts.get('log', 0) + 1
        with self.collector.standing_still():
            # Workers log as well, and stand still with it.
            for fault in self.chance.sample([self.kill_worker, self.kill_sessions, self.kill_connector], 2):
                with suppress(OSError):  # the stats server is the master's, which may wait for the log
                    fault()
            time.sleep(0.1 + 0.5 * self.chance.random())


class CrowdedStorm(Crowded, Storm, unittest.TestCase):
    mode = 'prefork'
    processes = 6
    cap = 4


# ---- the server goes ----


class FarServer(Far, FullDisk, test_server_faults.Faults, unittest.TestCase):
    driver = 'mysqlclient'
    mode = 'gevent'
    clients = 3
    hows_of_down = ('kill',)
    down = test_server_faults.Server.down
    test_restart_under_load = test_server_faults.Server.test_restart_under_load


class ServerWithStillLog(StillLog, test_server_faults.Faults, unittest.TestCase):
    """What the pool has to say of the server's end and of its own failures finds no room."""

    driver = 'pymysql'
    mode = 'threads'

    def test_restart_under_load(self):
        load = self.load()
        began = time.monotonic()
        with self.collector.standing_still():
            self.server.kill()
            self.failing(load, self.clients)
            self.server.start()
            over = time.monotonic()
            wait_until(lambda: load.done[-1].page and not load.done[-1].error, 60, 'requests run again')
        self.goes_on(load)
        self.judge(load, began, over)


class ServerWithStoppedMaster(test_server_faults.Faults, unittest.TestCase):
    """Nobody but the requests notices the restart before the master goes on."""

    driver = 'mysqlclient'
    mode = 'gevent'

    def test_restart_under_load(self):
        load = self.load()
        began = time.monotonic()
        with stopped(self.uwsgi.pid):
            self.server.kill()
            self.server.start()
        self.settled(load)
        over = time.monotonic()
        self.goes_on(load)
        self.judge(load, began, over)


# ---- reloads ----


class Reloads(test_reload.UnderLoad):
    driver = 'mysqlclient'
    mode = 'gevent'


class FarReloads(Far, FullDisk, Reloads, unittest.TestCase):
    enough = 12


class CrowdedReloads(Crowded, Reloads, unittest.TestCase):
    mode = 'prefork'


class ReloadsWithStillLog(StillLog, Reloads, unittest.TestCase):
    """uWSGI says what it begins, and waits for that."""

    def reloads(self, options, reload):
        def meanwhile(uwsgi):
            with self.collector.standing_still():
                reload(uwsgi)
                wait_until(lambda: self.waits_for_the_log(uwsgi.pid), 30, 'the master waits for the log')

        super().reloads(options, meanwhile)


class ReloadsWithStoppedMaster(Reloads, unittest.TestCase):
    mode = 'prefork'

    def reloads(self, options, reload):
        def meanwhile(uwsgi):
            with stopped(uwsgi.pid):
                reload(uwsgi)
                pages = [in_background(uwsgi.get, '/rows', ids='1', token='x') for _ in range(20)]
                with suppress(AssertionError):  # one that meets a session which is new to its worker waits for the master
                    wait_until(lambda: all(page.done() for page in pages), 3)
            for page in pages:
                with suppress(*test_reload.NO_ANSWER):  # the reload's, which begins now
                    self.assertEqual(page.result().status, 200)

        super().reloads(options, meanwhile)


if __name__ == '__main__':
    unittest.main()
