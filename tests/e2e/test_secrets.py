# SPDX-License-Identifier: MIT
"""I9: the password is where it is needed, in the memory of the processes that log in, and nowhere else: not in shared
memory, command lines, environments, stats, logs or errors, not in core dumps of the master, and not in a worker that
has not read the settings yet."""

import contextlib
import json
import os
import re
import signal
import socket
import struct
import tempfile
import unittest

from tests.e2e.base import APP, PASSWORD, WithServer, WithUwsgi, matrix
from tests.support import Uwsgi, descendants, in_background, wait_until

NEEDLE = PASSWORD.encode()
PART = 1 << 20

def greeting(plugin):
    return (b'\x0a8.0.36\0' + struct.pack('<I', 7) + b'abcdefgh\0' + struct.pack('<H', 0xf7df) + b'\x2d'
            + struct.pack('<H', 2) + struct.pack('<H', 0xff) + bytes([21]) + b'\0' * 10 + b'ijklmnopqrst\0' + plugin + b'\0')


def packet(number, payload):
    return struct.pack('<I', len(payload))[:3] + bytes([number]) + payload


SLOW_WSGI = '''
import os
import time

base = os.path.join(os.path.dirname(os.environ['DBPOOL_TEST']), 'load')
open('%s.%d' % (base, os.getpid()), 'w').close()
while not os.path.exists(base + '.go'):
    time.sleep(0.01)

from wsgi import application  # reads the settings
'''


def mappings(pid):
    """(low, high, mode, set of VmFlags) of each readable mapping of a process."""
    found = []
    with open('/proc/%d/smaps' % pid) as f:
        for line in f:
            span = re.match('([0-9a-f]+)-([0-9a-f]+) (....) ', line)
            if span:
                found.append([int(span[1], 16), int(span[2], 16), span[3], set(), line])
            elif line.startswith('VmFlags:'):
                found[-1][3].update(line.split()[1:])
    return [m for m in found if m[2].startswith('r') and '[v' not in m[4]]


def holds(memory, low, high, needle):
    """Whether the needle lies there; pages that cannot be read have nothing."""
    tail = b''
    for at in range(low, high, PART):
        try:
            memory.seek(at)
            part = memory.read(min(PART, high - at))
        except OSError:
            tail = b''
            continue
        if needle in tail + part:
            return True
        tail = part[-len(needle):]
    return False


def where(pid, needle):
    """The mappings of a process that hold the needle."""
    with open('/proc/%d/mem' % pid, 'rb', 0) as memory:
        return [m for m in mappings(pid) if holds(memory, m[0], m[1], needle)]


class Looking:
    def assert_nowhere_outside(self, uwsgi, secret=PASSWORD):
        needle = secret.encode()
        self.assertNotIn(secret, json.dumps(uwsgi.stats()))
        self.assertNotIn(secret, uwsgi.log())
        shared = 0
        for pid in [uwsgi.pid, *descendants(uwsgi.pid)]:
            for name in ('cmdline', 'environ'):
                with open('/proc/%d/%s' % (pid, name), 'rb') as f:
                    self.assertNotIn(needle, f.read(), '%s of %d' % (name, pid))
            with open('/proc/%d/mem' % pid, 'rb', 0) as memory:
                for low, high, mode, _, line in mappings(pid):
                    if mode.endswith('s'):
                        shared += 'dbpool-table' in line
                        self.assertFalse(holds(memory, low, high, needle), '%d: %s' % (pid, line))
        self.assertGreater(shared, 2, 'the table is found in the master, the connector and a worker')


@matrix(modes=['gevent'])
class InSight(Looking, WithUwsgi):
    pool = {'pool_size': 2, 'max_overflow': 1, 'timeout': 30, 'keepalive': 1}

    def test_nothing_in_use(self):
        """After leases, errors, a session that is killed and one that is reset."""
        self.uwsgi.get('/rows', ids='1', token='x')
        self.sql('SELECT nonsense')
        self.sql('BEGIN', "INSERT INTO nonces VALUES (9000, 'x')")
        for pk in self.sessions():
            self.server.query('KILL %d' % pk)
        self.sql('SELECT 1')
        self.whole(self.uwsgi)
        self.assert_nowhere_outside(self.uwsgi)


@matrix(modes=['prefork'])
class InErrors(Looking, WithServer):
    WRONG = 'not the Password of anybody'

    def error_of(self, entry):
        with self.make_uwsgi(self.driver, self.mode, {'default': entry}) as uwsgi:
            answer = self.run_sql(uwsgi, 'SELECT 1')
            self.assertIn('error', answer)
            return json.dumps(answer) + uwsgi.log()

    def test_a_wrong_password(self):
        entry = dict(self.database(), PASSWORD=self.WRONG)
        with self.make_uwsgi(self.driver, self.mode, {'default': entry}) as uwsgi:
            answer = self.run_sql(uwsgi, 'SELECT 1')
            self.assertEqual(answer['code'], 1045, answer)
            self.assertNotIn(self.WRONG, json.dumps(answer))
            self.assert_nowhere_outside(uwsgi, self.WRONG)

    def test_settings_that_are_refused(self):
        for entry in (self.database({'pool_size': 'many', 'no_such': 1}),
                      dict(self.database(), PASSWORD=self.WRONG * 30),
                      self.database(options={'init_command': 'SET @token = "%s", nonsense' % self.WRONG}),
                      self.database(options={'charset': 'no such'})):
            text = self.error_of(entry)
            self.assertNotIn(PASSWORD, text)
            if entry['PASSWORD'] != PASSWORD:
                self.assertNotIn(self.WRONG, text)


class BeforeTheSettings(WithServer, unittest.TestCase):
    """With lazy-apps the master never reads them. What its broker was told, no child may inherit."""

    def setUp(self):
        self.go_path = os.path.join(self.meet, 'load.go')
        open(self.go_path, 'w').close()
        directory = self.entered(tempfile.TemporaryDirectory())
        with open(os.path.join(directory, 'slow_wsgi.py'), 'w') as f:
            f.write(SLOW_WSGI)
        self.uwsgi = self.entered(Uwsgi('slow_wsgi:application', [directory, APP], 'prefork', 2, {'lazy-apps': True},
                                        self.environment({'default': self.database()}, 'mysqlclient')))
        for _ in range(4):
            self.uwsgi.get('/rows', ids='1', token='x')

    def loading(self):
        return {int(name.split('.')[1]) for name in os.listdir(self.meet) if re.fullmatch(r'load\.\d+', name)}

    def test_the_master_keeps_it_in_one_place(self):
        """Wiped in every child (wf) and left out of core dumps (dd); no message buffer, stack or heap has it."""
        found = where(self.uwsgi.pid, NEEDLE)
        self.assertEqual(len(found), 1, found)
        self.assertLessEqual({'dd', 'wf'}, found[0][3], found)

    def test_a_respawned_worker_does_not_have_it(self):
        before = self.loading()
        os.remove(self.go_path)
        victim = self.uwsgi.worker_pids()[1]
        self.assertTrue(where(victim, NEEDLE), 'one that has read the settings has it')
        os.kill(victim, signal.SIGKILL)
        newcomer, = wait_until(lambda: self.loading() - before, 60, 'a new worker begins to load')
        try:
            self.assertEqual(where(newcomer, NEEDLE), [])
        finally:
            open(self.go_path, 'w').close()
        wait_until(lambda: where(newcomer, NEEDLE), 60, 'it has it once it has read the settings')

class CuriousServer(WithServer, unittest.TestCase):
    """Whoever stands in for the server, or listens on the way, must not get the password by asking for it."""

    def test_the_password_is_not_told(self):
        told = []

        def serve(listener, first, plugin):
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:  # closed: the test is over
                    return
                with client:
                    client.settimeout(10)
                    try:
                        client.sendall(packet(0, greeting(first)))
                        told.append(client.recv(4096))
                        client.sendall(packet(2, b'\xfe' + plugin + b'\0Password: '))
                        told.append(client.recv(4096))
                    except OSError:
                        continue

        usual, asked = b'mysql_native_password', (b'mysql_clear_password', b'dialog', b'mysql_old_password', b'what_is_that')
        # In the greeting, the password is wanted with the login's first packet.
        for first, plugin in [(usual, plugin) for plugin in asked] + [(plugin, plugin) for plugin in asked]:
            with self.subTest(first=first, plugin=plugin), contextlib.closing(socket.create_server(('127.0.0.1', 0))) as listener:
                del told[:]
                serving = in_background(serve, listener, first, plugin)
                entry = dict(self.database({'pool_size': 1, 'max_overflow': 0}), PORT=listener.getsockname()[1])
                with self.make_uwsgi('mysqlclient', 'prefork', {'default': entry}, 1) as uwsgi:
                    answer = uwsgi.get('/sql', {'statements': ['SELECT 1']}).json()
                    self.assertIn('error', answer)
                    if plugin in (b'mysql_clear_password', b'dialog'):
                        self.assertIn('clear text', answer['text'])
                listener.shutdown(socket.SHUT_RDWR)
                serving.result()
                self.assertTrue(told, 'it was asked')
                self.assertNotIn(NEEDLE, b'|'.join(told))
