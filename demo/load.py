# SPDX-License-Identifier: MIT
"""The demo's visitors: many clients at once, each asking for one page after the other, and what they saw."""

import itertools
import json
import socket
import threading
import time

# One round of what visitors do: address and how many statements the app itself sends for it (a transaction's three
# are SET autocommit=0, COMMIT and SET autocommit=1). `product` stands for a number that changes each time.
ROUND = [
    ('/products/{product}/', 1),
    ('/who/', 1),
    ('/products/', 1),
    ('/products/{product}/', 1),
    ('/slow/', 1),
    ('/products/{product}/visit/', 1),
    ('/who/', 1),
    ('/about/', 0),
    ('/products/{product}/buy/', 6),
    ('/products/{product}/', 1),
]


def ask(address, path, timeout=60):
    """(status, body). A bare socket: the clients share the machine with what they measure."""
    with socket.create_connection(address, timeout) as s:
        s.sendall(('GET %s HTTP/1.0\r\nHost: demo\r\n\r\n' % path).encode())
        parts = []
        while True:
            part = s.recv(65536)
            if not part:
                break
            parts.append(part)
    head, _, body = b''.join(parts).partition(b'\r\n\r\n')
    return int(head.split(None, 2)[1]), body


class Load:
    """Sends `requests` requests by `clients` threads. While it runs: done, errors; afterwards: all attributes."""

    def __init__(self, address, requests, clients):
        self.address = address
        self.requests = requests
        self.clients = clients
        self.done = 0
        self.errors = 0
        self.first_error = None
        self.statements = 0
        self.workers_by_session = {}
        self.seconds = 0.0
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._stopping = False
        self._threads = []

    def start(self):
        self._started = time.monotonic()
        self._threads = [threading.Thread(target=self._client, daemon=True) for _ in range(self.clients)]
        for thread in self._threads:
            thread.start()

    def running(self):
        return any(thread.is_alive() for thread in self._threads)

    def stop(self):
        self._stopping = True
        for thread in self._threads:
            thread.join()

    def _client(self):
        while not self._stopping:
            with self._lock:
                number = next(self._numbers)
            if number >= self.requests:
                return
            template, statements = ROUND[number % len(ROUND)]
            error = seen = None
            try:
                status, body = ask(self.address, template.format(product=number % 200 + 1))
                if status != 200:
                    error = '%s: status %d' % (template, status)
                elif template == '/who/':
                    seen = json.loads(body)
            except (OSError, ValueError, IndexError) as failure:
                error = '%s: %s' % (template, failure)
            with self._lock:
                self.done += 1
                self.statements += statements
                self.seconds = time.monotonic() - self._started
                if error:
                    self.errors += 1
                    self.first_error = self.first_error or error
                if seen:
                    self.workers_by_session.setdefault(seen['session'], set()).add(seen['worker'])
