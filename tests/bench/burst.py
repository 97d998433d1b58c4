# SPDX-License-Identifier: MIT
"""The spike case of HikariCP's "Welcome to the Jungle": 5 idle sessions, 50 clients at once, 150 ms to connect, 2 ms a
query. A pool that opens a session for each waiter ends with 50; one that hands a returned session to the oldest waiter
needs few.

Four gevent workers share the spike, which is 50 requests; PyMySQL, so that no candidate blocks. The 150 ms come
from a proxy in this process that waits before it connects to the server; every candidate goes through it.
"""

import contextlib
import selectors
import socket
import threading
import time

from tests.bench.serving import server, uwsgi
from tests.support import concurrently

CLIENTS = 50
WORKERS = 4
CONNECT_S = 0.150
CAP = 50
SHOWN_MS = 500
CANDIDATES = {'dbpool': 'dbpool', 'QueuePool in each process': 'queuepool', 'no pool': 'none'}


class SlowDoor:
    """A TCP proxy that waits CONNECT_S before it connects; one thread for all that is connected."""

    def __init__(self, address):
        self._address = address
        self._listener = socket.create_server(('127.0.0.1', 0), backlog=256)
        self.port = self._listener.getsockname()[1]
        self.opened = []  # when each was
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
                self.opened.append(time.monotonic())
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


def _spike(instance, candidate):
    answers = concurrently(lambda _: instance.get('/spike', how=candidate), range(CLIENTS), CLIENTS)
    waits = sorted(answer.json()['ms'] for answer in answers if getattr(answer, 'status', None) == 200)
    return waits, CLIENTS - len(waits)


def _round(candidate):
    """Sessions opened, wait p50 and p99, requests refused; and when each session was opened, in ms of the spike."""
    with server() as running:
        door = SlowDoor((running.host, running.port))
        running.port = door.port  # what the application is told
        try:
            pool = {'pool_size': CAP, 'max_overflow': 0, 'min_size': 5}
            with uwsgi(running, driver='pymysql', processes=WORKERS, pool=pool) as instance:
                for _ in range(WORKERS):
                    concurrently(lambda _: instance.get('/spike', how=candidate), range(5), 5)  # the idle ones
                before, began = len(door.opened), time.monotonic()
                waits, refused = _spike(instance, candidate)
                time.sleep(4 * CONNECT_S)  # logins that are under way still count
                times = [1000 * (at - began) for at in door.opened[before:]]
                return len(times), waits[len(waits) // 2], waits[int(len(waits) * 0.99) - 1], refused, times
        finally:
            door.close()


def burst(figures, rounds):
    rows = {name: [_round(candidate) for _ in range(min(rounds, 3))] for name, candidate in CANDIDATES.items()}
    title = 'spike: %d clients at once, %d workers, 5 idle sessions, %d ms to connect, 2 ms a query: ' % (
        CLIENTS, WORKERS, CONNECT_S * 1000)
    for at, (what, unit) in enumerate((('sessions opened', 'sessions'), ('wait p50', 'ms'), ('wait p99', 'ms'),
                                       ('requests refused', 'requests'))):
        figures.table(title + what, unit, {name: [row[at] for row in of_name] for name, of_name in rows.items()})
    curves = {}
    for name, of_name in rows.items():
        times = sorted((row[4] for row in of_name), key=len)[len(of_name) // 2]  # of the median round
        curves[name] = [(0, 0), *((at, number) for number, at in enumerate(times, 1)), (SHOWN_MS, len(times))]
    figures.curve('sessions-by-time', 'Sessions opened in a spike of %d requests' % CLIENTS, 'ms since the spike began',
                  'sessions opened', curves, steps=True)
