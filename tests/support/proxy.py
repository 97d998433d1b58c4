# SPDX-License-Identifier: MIT
"""A TCP proxy between the pool and its server: a network that can be cut, stalled, half closed and delayed."""

import selectors
import socket
import struct
import threading
import time

_CHUNK = 65536
_RESET = struct.pack('ii', 1, 0)  # SO_LINGER 0: close() sends RST instead of FIN


class _Pair:
    """One connection: near is the client's end, far the server's."""

    def __init__(self, near, far):
        self.near, self.far = near, far
        self.buffers = {near: [], far: []}  # socket -> [(due, bytes)] that go to it
        self.eof = set()  # sockets that sent their end

    def other(self, sock):
        return self.far if sock is self.near else self.near


class Proxy:
    """with Proxy(('127.0.0.1', port)) as proxy: ... proxy.port is where clients go.

    Everything happens in one thread; the methods below return once it has been done.
    """

    host = '127.0.0.1'

    def __init__(self, target):
        self.target = target
        self.delay = 0.0  # seconds that each chunk stays, each way
        self._stalled = False
        self._refusing = False
        self._pairs = set()
        self._todo = []  # (function, done event)
        self._lock = threading.Lock()
        self._wake, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._listener = socket.create_server((self.host, 0), backlog=128)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self._running = True
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.close()

    # ---- what the network does ----

    def cut(self):
        """Resets every connection, and each new one, until heal()."""
        def do():
            self._refusing = True
            self._drop_all()
        self._do(do)

    def drop(self):
        """Resets every connection; new ones go through."""
        self._do(self._drop_all)

    def stall(self):
        """Takes connections and bytes and passes none on, until heal()."""
        def do():
            self._stalled = True
        self._do(do)

    def heal(self):
        """Everything passes again; what was stalled goes on where it stood."""
        def do():
            self._stalled = self._refusing = False
        self._do(do)

    def half_close(self, towards):
        """Ends one direction of every connection: towards 'client' or 'server'. The other one stays open."""
        def do():
            for pair in self._pairs:
                sock = pair.near if towards == 'client' else pair.far
                try:
                    sock.shutdown(socket.SHUT_WR)
                except OSError:
                    pass  # gone meanwhile
                pair.eof.add(pair.other(sock))
        self._do(do)

    def connections(self):
        return len(self._pairs)

    # ---- the thread ----

    def _do(self, function):
        done = threading.Event()
        with self._lock:
            self._todo.append((function, done))
        self._wake.send(b'x')
        if not done.wait(30):
            raise AssertionError('the proxy does not answer')

    def _run(self):
        while self._running:
            selector = selectors.DefaultSelector()
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(self._listener, selectors.EVENT_READ)
            soonest = 1.0
            for pair in list(self._pairs):
                soonest = min(soonest, self._register(selector, pair))
            ready = selector.select(max(0.0, soonest))
            selector.close()
            for key, events in ready:
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    self._woken.recv(_CHUNK)
                elif key.data in self._pairs:
                    self._serve(key.data, key.fileobj, events)
            with self._lock:
                todo, self._todo = self._todo, []
            for function, done in todo:
                function()
                done.set()
        self._drop_all()
        self._listener.close()

    def _register(self, selector, pair):
        """Watches what can go on in a pair; returns the seconds until a delayed chunk is due."""
        soonest = 1.0
        for sock in (pair.near, pair.far):
            events = 0
            if sock not in pair.eof and not self._stalled and len(pair.buffers[pair.other(sock)]) < 64:
                events |= selectors.EVENT_READ
            buffer = pair.buffers[sock]
            if buffer and not self._stalled:
                wait = buffer[0][0] - time.monotonic()
                if wait <= 0:
                    events |= selectors.EVENT_WRITE
                else:
                    soonest = min(soonest, wait)
            if events:
                selector.register(sock, events, pair)
        return soonest

    def _accept(self):
        try:
            near, _ = self._listener.accept()
        except OSError:
            return
        if self._refusing:
            self._reset(near)
            return
        try:
            # The backlog of a listening socket takes it, also when the server itself is stopped.
            far = socket.create_connection(self.target, 10)
        except OSError:
            self._reset(near)
            return
        for sock in (near, far):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pairs.add(_Pair(near, far))

    def _serve(self, pair, sock, events):
        try:
            if events & selectors.EVENT_WRITE:
                due, data = pair.buffers[sock][0]
                sent = sock.send(data)
                if sent == len(data):
                    del pair.buffers[sock][0]
                else:
                    pair.buffers[sock][0] = due, data[sent:]
            if events & selectors.EVENT_READ:
                data = sock.recv(_CHUNK)
                if data:
                    pair.buffers[pair.other(sock)].append((time.monotonic() + self.delay, data))
                else:
                    pair.eof.add(sock)
            self._pass_end(pair)
        except BlockingIOError:
            pass
        except OSError:
            self._forget(pair, True)

    def _pass_end(self, pair):
        """An end of one side goes on to the other once all before it has; with both, the pair is over."""
        for sock in pair.eof:
            other = pair.other(sock)
            if not pair.buffers[other]:
                try:
                    other.shutdown(socket.SHUT_WR)
                except OSError:
                    pass
        if len(pair.eof) == 2 and not any(pair.buffers.values()):
            self._forget(pair, False)

    def _forget(self, pair, reset):
        self._pairs.discard(pair)
        for sock in (pair.near, pair.far):
            if reset:
                self._reset(sock)
            else:
                sock.close()

    def _drop_all(self):
        for pair in list(self._pairs):
            self._forget(pair, True)

    @staticmethod
    def _reset(sock):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        sock.close()

    def close(self):
        if self._thread.is_alive():
            self._running = False
            self._wake.send(b'x')
            self._thread.join(30)
        self._wake.close()
        self._woken.close()
