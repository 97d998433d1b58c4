# SPDX-License-Identifier: MIT
"""Worlds in which things are slow, full or stand still, for test classes with a server: each uWSGI that such a class
makes lives in its world, or worlds: class X(Far, FullDisk, SomeTest).
"""

import contextlib
import errno
import os
import signal
import subprocess
import tempfile
import unittest

from tests.e2e.base import USER
from tests.support import Collector, Proxy, wait_until


class World:
    @classmethod
    def and_then(cls, uwsgi, function):
        """Has function() called once the instance has started, before anybody asks it."""
        start = uwsgi.start

        def start_and_then():
            start()
            function()
            return uwsgi

        uwsgi.start = start_and_then
        return uwsgi


class Far(World):
    """The server is a tenth of a second away."""

    delay = 0.05  # each way
    proxy = None

    @classmethod
    def make_uwsgi(cls, driver, mode, databases=None, *args, **more):
        if cls.proxy is None:
            cls.proxy = cls.enter(Proxy((cls.server.host, cls.server.port)))
            cls.proxy.delay = cls.delay
        databases = {alias: dict(entry, PORT=cls.proxy.port)
                     for alias, entry in (databases or {'default': cls.database()}).items()}
        return super().make_uwsgi(driver, mode, databases, *args, **more)


class FullDisk(World):
    """metrics-dir has no room left for the metrics of a pool that comes after uWSGI's own."""

    @classmethod
    def small_disk(cls):
        path = tempfile.mkdtemp(dir=cls.meet)
        done = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16m', 'tmpfs', path], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        if done.returncode != 0:
            raise unittest.SkipTest('no small disk can be mounted here: ' + done.stdout.strip())
        cls.addClassCleanup(subprocess.run, ['umount', path], check=True)
        return path

    @staticmethod
    def use_up(path):
        with open(os.path.join(path, 'filler'), 'wb', buffering=0) as f:
            try:
                while True:
                    f.write(b'x' * 4096)
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    @classmethod
    def make_uwsgi(cls, driver, mode, databases=None, processes=2, options=None, *args, **more):
        disk = cls.small_disk()
        options = dict(options or {}, **{'metrics-dir': disk, 'lazy-apps': True})
        uwsgi = super().make_uwsgi(driver, mode, databases, processes, options, *args, **more)
        return cls.and_then(uwsgi, lambda: cls.use_up(disk))


class StillLog(World):
    """The log is a pipe to a collector, which can stand still: `with self.collector.standing_still()`."""

    collector = None

    @classmethod
    def make_uwsgi(cls, *args, **more):
        path = tempfile.mkdtemp(dir=cls.meet)
        cls.collector = cls.enter(Collector(os.path.join(path, 'collected.log')))
        return super().make_uwsgi(*args, log=cls.collector, **more)

    @staticmethod
    def waits_for_the_log(pid):
        """The process's main thread is inside a write to its standard error."""
        with open('/proc/%d/syscall' % pid) as f:
            words = f.read().split()
        return words[0] in ('1', '64') and words[1] in ('0x1', '0x2')  # write(): x86-64, arm64


class Crowded(World):
    """Others hold all connections that the server allows and the pool has not."""

    server_options = ('--max-connections=40',)
    others = None

    @classmethod
    def crowd(cls):
        """Takes each connection that is left."""
        if cls.others is None:
            cls.others = cls.enter(contextlib.ExitStack())
            cls.server.query("CREATE OR REPLACE USER other@'%' IDENTIFIED BY 'x'")
        for _ in range(41):
            try:
                connection = cls.server.connect(host=cls.server.host, port=cls.server.port, user='other', password='x')
            except Exception as error:
                if error.args[0] != 1040:
                    raise
                return
            cls.others.callback(connection.close)
        raise AssertionError('the server is never full')

    @classmethod
    def make_uwsgi(cls, driver, mode, databases=None, *args, **more):
        cls.without_privileges()  # an administrator would have one connection more
        databases = databases or {'default': cls.database()}
        cap = sum(databases['default']['POOL'][name] for name in ('pool_size', 'max_overflow'))
        databases['default']['POOL'].update(pool_size=cap, max_overflow=0, min_size=cap)
        uwsgi = super().make_uwsgi(driver, mode, databases, *args, **more)

        def fill_up():
            uwsgi.get('/rows', ids='1', token='x')
            wait_until(lambda: len(cls.server.sessions(USER)) == cap, 30, 'the pool has all its sessions')
            cls.crowd()

        return cls.and_then(uwsgi, fill_up)


@contextlib.contextmanager
def stopped(pid):
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
