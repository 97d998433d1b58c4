# SPDX-License-Identifier: MIT
"""A uWSGI instance with the built plugin: ini file, log, stats, and the census of its processes."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile

from .procs import (children, descendants, die_with_parent, free_port, in_signal_handler, is_alive, signals_held,
                    start_time, wait_until)
from .web import fetch

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get('DBPOOL_BUILD') or os.path.join(TOP, 'build')

MODES = {
    'gevent': {'gevent': 50, 'gevent-monkey-patch': True},
    'gevent-early': {'gevent': 50, 'gevent-early-monkey-patch': True},
    'threads': {'threads': 4},
    'prefork': {},
}


class Uwsgi:
    """with Uwsgi(module='wsgi', pythonpath=[...], mode='gevent') as uwsgi: uwsgi.get('/') ...

    options: further ini lines (True, a value, a list of values; None removes one of the defaults).
    environ: for the instance only; plugin: what to load as ours, None for none; ready: the page that must answer
    before it counts as started, None where no request may come before the test's; log: a Collector that takes what the
    instance says, instead of a file.
    """

    def __init__(self, module, pythonpath=(), mode='prefork', processes=2, options=None, environ=None,
                 plugin=os.path.join(BUILD, 'dbpool_plugin.so'), ready='/ping', directory=None, log=None):
        self._own_directory = directory is None
        self.directory = directory or tempfile.mkdtemp(prefix='dbpool-uwsgi-')
        self.log_path = log.path if log else os.path.join(self.directory, 'uwsgi.log')
        self._log = log
        self.processes = processes
        self.pid = None
        self._process = None
        self._ready = ready
        self._seen = {}
        self._stats = (options or {}).get('stats', True)
        self._lines = {
            'plugin': ['python3'] + (['gevent_python3'] if 'gevent' in mode else []),
            'need-plugin': plugin,
            'master': True,
            'processes': processes,
            'die-on-term': True,
            'need-app': True,
            # Without a bound, each reload and cron walks over all fds that the container's huge limit allows.
            'max-fd': 4096,
            'listen': 100,
            'log-5xx': True,
            'disable-logging': True,
            'pythonpath': [os.path.join(BUILD, 'python'), *pythonpath],
            'module': module,
        }
        self._lines.update(MODES[mode])
        self._lines.update(options or {})
        self._environ = dict(os.environ, PYTHONDONTWRITEBYTECODE='1', **(environ or {}))

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, exc_type, *rest):
        if exc_type is not None:
            print('---- %s\n%s' % (self.log_path, self.log()[-6000:]))
        self.close()

    def _write_ini(self):
        path = os.path.join(self.directory, 'uwsgi.ini')
        with open(path, 'w') as f:
            f.write('[uwsgi]\n')
            for key, value in self._lines.items():
                for one in value if isinstance(value, list) else [value]:
                    if one is not None and one is not False:
                        f.write('%s = %s\n' % (key, 'true' if one is True else one))
        return path

    def launch(self):
        """Starts it and returns at once, for instances that are expected to refuse."""
        self.address = ('127.0.0.1', free_port())
        self.stats_address = ('127.0.0.1', free_port())
        self._lines['http-socket'] = '%s:%d' % self.address
        if self._stats:
            self._lines['stats'] = '%s:%d' % self.stats_address
        with contextlib.ExitStack() as stack:
            log = self._log or stack.enter_context(open(self.log_path, 'wb'))
            stack.enter_context(signals_held())
            self._process = subprocess.Popen([os.environ.get('UWSGI') or 'uwsgi', '--ini', self._write_ini()],
                                             cwd=self.directory, env=self._environ, stdin=subprocess.DEVNULL,
                                             stdout=log, stderr=log, preexec_fn=die_with_parent)
        self.pid = self._process.pid
        return self

    def start(self):
        self.launch()
        try:
            if wait_until(self._is_ready, 60, 'uWSGI answers') == 'ready':
                self.note_processes()
                return self
        except AssertionError:
            pass
        raise RuntimeError('uWSGI does not start:\n' + self.log()[-6000:])

    def _is_ready(self):
        if self._process.poll() is not None:
            return 'ended'
        try:
            workers = [w for w in self.stats()['workers'] if w['status'] != 'cheap']
            if workers and all(w['pid'] and w['accepting'] and w['apps'] for w in workers):
                return (self._ready is None or self.get(self._ready).status == 200) and 'ready'
        except (OSError, ValueError):
            pass
        return None

    def wait_exit(self, timeout=60):
        """The exit status of an instance that ends by itself."""
        return self._process.wait(timeout)

    def log(self):
        with open(self.log_path, errors='replace') as f:
            return f.read()

    # ---- asking it ----

    def get(self, path, data=None, timeout=60, **parameters):
        return fetch(self.address, path, data, timeout, **parameters)

    def stats(self):
        with socket.create_connection(self.stats_address, 10) as s:
            if self._lines.get('stats-http'):
                s.sendall(b'GET / HTTP/1.0\r\n\r\n')
            parts = []
            while True:
                part = s.recv(65536)
                if not part:
                    break
                parts.append(part)
        text = b''.join(parts)
        if self._lines.get('stats-http'):
            text = text.partition(b'\r\n\r\n')[2]
        return json.loads(text)

    def metric(self, name):
        """The value of one metric, or None where stats have no such metric."""
        entry = self.stats().get('metrics', {}).get(name)
        return None if entry is None else entry['value']

    def pool(self, alias='default'):
        """{'size': ..., 'idle': ...}: the metrics of one pool."""
        prefix = 'dbpool.%s.' % alias
        return {name[len(prefix):]: entry['value'] for name, entry in self.stats().get('metrics', {}).items()
                if name.startswith(prefix)}

    def worker_pids(self):
        """{worker id: pid} of the workers that live now."""
        return {w['id']: w['pid'] for w in self.stats()['workers'] if w['pid'] and w['status'] != 'cheap'}

    def helper_pids(self):
        """Children of the master that are no workers: the connector (and mules, where there are any)."""
        return sorted(set(children(self.pid)) - set(self.worker_pids().values()))

    # ---- ending it ----

    def note_processes(self):
        """Remembers every process of the instance, so that close() can tell that all of them went."""
        for pid in descendants(self.pid):
            started = start_time(pid)
            if started is not None:
                self._seen[pid] = started

    def left_over(self):
        return [pid for pid, started in self._seen.items() if is_alive(pid, started)]

    def stop(self, sig=signal.SIGTERM):
        """Ends the master and waits for it and all its descendants; AssertionError where one stays."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self.note_processes()
            self._process.send_signal(sig)
            for _ in range(12):
                try:
                    self._process.wait(5)
                    break
                except subprocess.TimeoutExpired:
                    # A worker that has just been forked has the master's handlers for a moment, and what the master
                    # passes on to it is lost there (uWSGI 2.0.21, also without our plugin): tell it again.
                    self.note_processes()
                    for pid in set(children(self.pid)) & set(self._seen):
                        # Its handler calls exit(), which waits for ever for a lock of malloc's if it came at the wrong
                        # moment: the signal is blocked then, as in any handler.
                        os.kill(pid, signal.SIGKILL if in_signal_handler(pid) else signal.SIGINT)
            else:
                raise AssertionError('the uWSGI master did not end on signal %d' % sig)
        wait_until(lambda: not self.left_over(), 20, 'every process of uWSGI ends with its master')

    def close(self):
        try:
            self.stop()
        finally:
            if self._process is not None and self._process.poll() is None:
                self._process.kill()
                self._process.wait()
            for pid in self.left_over():
                os.kill(pid, signal.SIGKILL)
            if self._own_directory:
                shutil.rmtree(self.directory, ignore_errors=True)
