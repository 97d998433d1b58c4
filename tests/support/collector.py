# SPDX-License-Identifier: MIT
"""A log collector that can stand still: whoever logs finds its pipe full then."""

import contextlib
import fcntl
import os
import selectors
import threading


class Collector:
    """with Collector(path) as log: ... What is written to its pipe (fileno()) is added to the file at path."""

    def __init__(self, path):
        self.path = path
        open(path, 'wb').close()
        self._reader, self._writer = os.pipe()
        fcntl.fcntl(self._writer, fcntl.F_SETPIPE_SZ, 4096)
        # Opened anew: whether a write may block belongs to the open file, and writers must find that theirs do.
        self._filler = os.open('/proc/self/fd/%d' % self._writer, os.O_WRONLY | os.O_NONBLOCK)
        os.set_blocking(self._reader, False)
        self._reads = threading.Lock()  # held by whoever may read
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self.close()

    def fileno(self):
        return self._writer

    def _run(self):
        selector = selectors.DefaultSelector()
        selector.register(self._reader, selectors.EVENT_READ)
        with selector, open(self.path, 'ab') as f:
            while not self._over.is_set():
                if selector.select(0.05):
                    with self._reads:
                        self._take(f)

    def _take(self, f):
        with contextlib.suppress(BlockingIOError):
            f.write(os.read(self._reader, 65536))
            f.flush()

    @contextlib.contextmanager
    def standing_still(self):
        """Meanwhile nothing is read, and no byte fits into the pipe."""
        with self._reads:
            for size in (4096, 1):
                with contextlib.suppress(BlockingIOError):
                    while True:
                        os.write(self._filler, b'\n' * size)
            yield

    def close(self):
        self._over.set()
        if self._thread.is_alive():
            self._thread.join(30)
        for fd in (self._reader, self._writer, self._filler):
            os.close(fd)
