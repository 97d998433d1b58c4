# SPDX-License-Identifier: MIT
"""The socket-like object under PyMySQL: what it reads, how it times out, how it ends."""

import fcntl
import os
import socket
import struct
import threading
import unittest

from tests.python import BUILD  # noqa: F401 (finds the package)

import gevent

from dbpool import _dbpool, waiting


class Gone(Exception):
    pass


def packet(payload, number=0):
    return struct.pack('<I', len(payload))[:3] + bytes([number]) + payload


class Wire(unittest.TestCase):
    def setUp(self):
        ours, self.peer = socket.socketpair()
        self.addCleanup(self.peer.close)
        ours.setblocking(False)
        self.wire = _dbpool.Wire.over(ours.detach(), Gone)
        self.addCleanup(self.wire.close)
        waiting.enable()

    def read_packet(self):
        length = self.wire.read(4)
        return self.wire.read(length[0] | length[1] << 8 | length[2] << 16)

    def test_reads_exactly(self):
        self.peer.sendall(b'abcdefgh')
        self.assertEqual([self.wire.read(n) for n in (1, 0, 3, 4)], [b'a', b'', b'bcd', b'efgh'])
        self.assertEqual(self.wire.pending(), 0)
        self.peer.sendall(b'xyz')
        self.assertEqual(self.wire.read(1), b'x')
        self.assertEqual(self.wire.pending(), 2)

    def test_large_ones_both_ways(self):
        data = os.urandom(3000000)
        echoed = []

        def echo():
            got = b''
            while len(got) < len(data):
                got += self.peer.recv(65536)
            echoed.append(got)
            self.peer.sendall(got)

        thread = threading.Thread(target=echo)
        thread.start()
        self.wire.sendall(memoryview(data))
        self.assertEqual(self.wire.read(5) + self.wire.read(len(data) - 5), data)
        thread.join()
        self.assertEqual(echoed, [data])

    def test_end_of_stream_is_short(self):
        self.peer.sendall(b'ab')
        self.peer.close()
        self.assertEqual(self.wire.read(4), b'ab')
        self.assertEqual(self.wire.read(4), b'')

    def test_status_comes_from_every_eof(self):
        self.wire.status = 2
        self.peer.sendall(packet(b'\xfe\0\0\x03\x40'))
        self.read_packet()
        self.assertEqual((self.wire.status, self.wire.changed), (3, True))
        self.wire.begin(2)
        self.assertEqual((self.wire.status, self.wire.changed), (2, False))

    def test_what_only_looks_like_an_eof(self):
        self.wire.status = 2
        # A row that begins with a huge column, an OK packet, five bytes that no header announced.
        for payload in (b'\xfe' + b'\1' * 20, b'\0\0\0\3\0\0\0', b'\xfa\0\0\3\0'):
            self.peer.sendall(packet(payload))
            self.read_packet()
        self.peer.sendall(packet(b'\xfe\0\0\3\0'))
        self.wire.read(3)
        self.wire.read(1)
        self.wire.read(5)
        self.assertEqual(self.wire.status, 2)

    def test_timeout_is_not_the_sockets(self):
        flags = fcntl.fcntl(self.wire.fileno(), fcntl.F_GETFL)
        self.wire.settimeout(0.01)
        with self.assertRaises(TimeoutError):
            self.wire.read(1)
        self.wire.settimeout(None)
        self.peer.sendall(b'x')
        self.assertEqual(self.wire.read(1), b'x')
        self.assertEqual(fcntl.fcntl(self.wire.fileno(), fcntl.F_GETFL), flags)
        self.assertTrue(flags & os.O_NONBLOCK)

    def test_write_timeout(self):
        self.wire.settimeout(0.01)
        with self.assertRaises(TimeoutError):
            self.wire.sendall(b'x' * 10000000)

    def test_dead_after_an_exception_ended_a_wait(self):
        """PyMySQL's own clean-up must neither go on nor take the exception's place."""
        class Interrupted(BaseException):
            pass

        def interrupt(fd, reading, timeout_ms):
            raise Interrupted

        self.addCleanup(_dbpool.set_wait_hook, waiting.wait)
        for use in (lambda: self.wire.read(1), lambda: self.wire.sendall(b'x' * 10000000)):
            self.setUp()
            self.assertIsNone(self.wire.ended())
            _dbpool.set_wait_hook(interrupt)
            with self.assertRaises(Interrupted) as caught:
                use()
            _dbpool.set_wait_hook(waiting.wait)
            self.assertIs(self.wire.ended(), caught.exception)
            self.peer.setblocking(False)
            try:
                while self.peer.recv(65536):  # so that there is room
                    pass
            except BlockingIOError:
                pass
            self.peer.setblocking(True)
            self.peer.sendall(b'y')
            for later in (lambda: self.wire.read(1), lambda: self.wire.sendall(b'z'), lambda: self.wire.settimeout(1)):
                with self.assertRaises(OSError):
                    later()

    def test_what_commands_and_answers_say_of_the_session(self):
        for sql, status, changed in [(b'SELECT 1', 2, False), (b'SELECT 1', 0x4002, True), (b'SET @a=1', 2, True),
                                     (b'SET autocommit=0', 0x4000, False), (b'SELECT @a', 2, True)]:
            self.wire.begin(2)
            self.wire.sendall(packet(b'\3' + sql))
            self.wire.status = status  # as PyMySQL does with an OK packet
            self.assertEqual((self.wire.changed, self.wire.status), (changed, status & ~0x4000), sql)
        self.wire.begin(2)
        self.wire.sendall(packet(b'\3SET autocommit=0'))
        self.wire.sendall(packet(b'\3SELECT 1'))
        self.wire.status = 0x4002
        self.assertTrue(self.wire.changed, 'only the answer to SET autocommit is no change')
        for command, changed in [(b'\x0e', False), (b'\x02other', True), (b'\x11', True), (b'\x1bxx', True), (b'', True)]:
            self.wire.begin(2)
            self.wire.sendall(packet(command))
            self.assertEqual(self.wire.changed, changed, command)
        self.wire.opaque = True
        self.wire.begin(2)
        self.wire.sendall(packet(b'\3SELECT 1'))
        self.assertTrue(self.wire.changed)
        self.wire.opaque = False
        self.wire.begin(0x202)
        self.wire.sendall(packet(b"\3SELECT '\\', GET_LOCK('a', 0)"))
        self.assertTrue(self.wire.changed, 'NO_BACKSLASH_ESCAPES is in the status word')

    def test_peer_is_gone(self):
        self.peer.close()
        with self.assertRaises(OSError):
            self.wire.sendall(b'x')

    def test_after_close(self):
        self.wire.close()
        self.wire.close()
        for use in (lambda: self.wire.read(1), lambda: self.wire.sendall(b'x'), lambda: self.wire.settimeout(1)):
            with self.assertRaises(Gone):
                use()
        self.assertEqual(self.wire.fileno(), -1)
        self.assertEqual(self.peer.recv(1), b'')

    def test_closed_while_a_greenlet_waits(self):
        greenlet = gevent.spawn(self.wire.read, 1)
        gevent.sleep(0)
        fd = self.wire.fileno()
        self.wire.close()
        # Nobody closes a busy one; if it happened, the wait must not go on with somebody else's fd.
        hub = gevent.get_hub()
        hub.loop.run_callback(waiting.Reactor.of(hub).waiters[fd].switch, True)
        greenlet.join()
        self.assertIsInstance(greenlet.exception, Gone)

    def test_a_forked_child_does_not_close(self):
        """The number may be anybody's there: core has closed the session's fd at the fork."""
        pid = os.fork()
        if pid == 0:
            fd = self.wire.fileno()
            self.wire.close()
            try:
                os.fstat(fd)
                os._exit(0)
            except OSError:
                os._exit(1)
        self.assertEqual(os.waitpid(pid, 0)[1], 0)

    def test_wrong_arguments(self):
        for use in (lambda: self.wire.read(-1), lambda: self.wire.read('x'), lambda: self.wire.sendall('text'),
                    lambda: self.wire.settimeout('x'), lambda: self.wire.adopt(0)):
            with self.assertRaises((TypeError, ValueError, RuntimeError)):
                use()


if __name__ == '__main__':
    unittest.main()
