# SPDX-License-Identifier: MIT
"""The spike case of HikariCP's "Welcome to the Jungle": 5 idle sessions, 50 clients at once, 150 ms to connect, 2 ms a query.
A pool that opens a session for each waiter ends with 50; one that hands a returned session to the oldest waiter needs few.

Four gevent workers share the spike, which is 50 requests; PyMySQL, so that no candidate blocks. The 150 ms come
from a proxy in this process that waits before it connects to the server; every candidate goes through it.
"""

import contextlib
import json
import selectors
import socket
import statistics
import threading
import time

from tests.bench.requests import APP, server
from tests.support import Uwsgi, concurrently

CLIENTS = 50
WORKERS = 4
CONNECT_S = 0.150
CAP = 50
CANDIDATES = {'dbpool': 'dbpool', "QueuePool in each process": 'queuepool', 'no pool': 'none'}


class SlowDoor:
    """A TCP proxy that waits CONNECT_S before it connects; one thread for all that is connected."""

    def __init__(self, address):
        self._address = address
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.opened = 0
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._end = False
        for work in (self._accept, self._pump):
            threading.Thread(target=work, daemon=True).start()

    def _accept(self):
        while not self._end:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Timer(CONNECT_S, self._join, [client]).start()

    def _join(self, client):
        with contextlib.suppress(OSError):
            upstream = socket.create_connection(self._address)
            for end in (client, upstream):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.opened += 1
            self._selector.register(client, selectors.EVENT_READ, upstream)
            self._selector.register(upstream, selectors.EVENT_READ, client)

    def _pump(self):
        while not self._end:
            for key, _ in self._selector.select(0.05) if self._selector.get_map() else time.sleep(0.01) or []:
                with contextlib.suppress(OSError, KeyError, ValueError):
                    data = key.fileobj.recv(65536)
                    if data:
                        key.data.sendall(data)
                        continue
                for end in (key.fileobj, key.data):
                    with contextlib.suppress(KeyError, ValueError):
                        self._selector.unregister(end)
                    end.close()

    def close(self):
        self._end = True
        self._listener.close()


def serve(door):
    entry = {'ENGINE': 'dbpool.mysql', 'HOST': '127.0.0.1', 'PORT': door.port, 'USER': 'bench', 'PASSWORD': 'secret',
             'NAME': 'bench', 'OPTIONS': {'charset': 'utf8mb4'},
             'POOL': {'pool_size': CAP, 'max_overflow': 0, 'min_size': 5}}
    given = json.dumps({'driver': 'pymysql', 'database': entry})
    return Uwsgi('wsgi:application', [APP], 'gevent', WORKERS, {'listen': 128},
                 environ={'DBPOOL_BENCH': given, 'DJANGO_SETTINGS_MODULE': 'settings'})


def spike(instance, candidate):
    answers = concurrently(lambda _: instance.get('/spike', how=candidate), range(CLIENTS), CLIENTS)
    waits = [answer.json()['ms'] for answer in answers if getattr(answer, 'status', None) == 200]
    return sorted(waits), CLIENTS - len(waits)


def run(rounds):
    print('\nburst: %d clients at once, %d workers, 5 idle sessions, %d ms to connect, 2 ms a query' % (
        CLIENTS, WORKERS, CONNECT_S * 1000))
    print('  %-28s %18s %14s %14s %9s' % ('', 'sessions opened', 'wait p50 ms', 'wait p99 ms', 'refused'))
    figures = {}
    for name, candidate in CANDIDATES.items():
        rows = []
        for _ in range(rounds):
            with server() as running:
                door = SlowDoor((running.host, running.port))
                try:
                    with serve(door) as instance:
                        for _ in range(WORKERS):
                            concurrently(lambda _: instance.get('/spike', how=candidate), range(5), 5)  # the idle ones
                        before = door.opened
                        waits, refused = spike(instance, candidate)
                        time.sleep(4 * CONNECT_S)  # logins that are under way still count
                        rows.append((door.opened - before, waits[len(waits) // 2], waits[int(len(waits) * 0.99) - 1], refused))
                finally:
                    door.close()
        median = [statistics.median(column) for column in zip(*rows)]
        figures[name] = dict(zip(('opened', 'p50_ms', 'p99_ms', 'refused'), median))
        print('  %-28s %18d %14.1f %14.1f %9d' % (name, *median))
    return figures
