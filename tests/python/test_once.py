# SPDX-License-Identifier: MIT
"""Two first uses at one moment make one: threads, greenlets on patched and unpatched locks, and forked children."""

import os
import subprocess
import sys
import textwrap
import threading
import time
import unittest
from types import SimpleNamespace
from unittest import mock

from tests.python import BUILD

import MySQLdb

import dbpool
from dbpool import _dbpool, host, managed, settings
from dbpool import pool as pools
from dbpool.once import Once

ARGUMENTS = {'host': 'db.example', 'user': 'app', 'password': 'x', 'database': 'shop'}
N = 8


def in_threads(work, n=N):
    """work() in n threads that all begin before the first one ends; their results."""
    results = []
    threads = [threading.Thread(target=lambda: results.append(work())) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results


class Profiles(unittest.TestCase):
    """pool.profile() with a broker that answers when all have asked, or would have."""

    def setUp(self):
        self.registered = []
        self.arrived = threading.Semaphore(0)
        for patch in (mock.patch.dict(Once._groups, clear=True), mock.patch.object(_dbpool, 'register', self.register)):
            patch.start()
            self.addCleanup(patch.stop)

    def register(self, spec, timeout):
        self.registered.append(spec['alias'])
        # Long enough for every other thread to come to the same place, were there nothing to hold it back.
        until = time.monotonic() + 0.5
        for _ in range(N):
            self.arrived.acquire(timeout=max(0, until - time.monotonic()))
        return 0, len(self.registered), ''

    def profile(self, alias='default'):
        policy = settings.policy(alias, {}, [])
        self.arrived.release()
        return pools.profile(MySQLdb, alias, policy, dict(ARGUMENTS), True, None, 'SELECT 1')

    def test_threads_share_one(self):
        found = in_threads(self.profile)
        self.assertEqual(len(found), N)
        self.assertEqual(len({id(profile) for profile in found}), 1)
        self.assertEqual(self.registered, [b'default'])
        self.assertIs(self.profile(), found[0])

    def test_one_alias_does_not_wait_for_another(self):
        """Each registration waits until both are there."""
        both = threading.Barrier(2, timeout=30)

        def register(spec, timeout):
            both.wait()
            return 0, 1, ''

        with mock.patch.object(_dbpool, 'register', register):
            names = iter(('one', 'other'))
            self.assertEqual(len({id(found) for found in in_threads(lambda: self.profile(next(names)), 2)}), 2)

    def test_a_failure_is_not_kept(self):
        def register(spec, timeout):
            raise ValueError('not today')

        with mock.patch.object(_dbpool, 'register', register), self.assertRaises(settings.ConfigurationError):
            self.profile()
        self.assertEqual(self.registered, [])
        self.profile()
        self.assertEqual(self.registered, [b'default'])

    def test_a_child_starts_anew_though_a_thread_of_its_parent_held_the_lock(self):
        mine = self.profile()
        held, go = threading.Event(), threading.Event()

        def hold():
            with Once.of('profiles').lock('default'):
                held.set()
                go.wait(60)

        holder = threading.Thread(target=hold)
        holder.start()
        held.wait(60)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                code = 0 if self.profile() is not mine and len(self.registered) == 2 else 2
            finally:
                os._exit(code)
        try:
            self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), 0)
        finally:
            go.set()
            holder.join(60)
        self.assertIs(self.profile(), mine)


class Managed(unittest.TestCase):
    def test_more_threads_than_sets_of_arguments(self):
        """All say the same thing: that is one set, however many say it first at one moment."""
        all_here = threading.Barrier(2 * managed.VARIANTS_MAX, timeout=60)
        proxy = dbpool.manage(MySQLdb)
        resolve = proxy._dbpool_resolve
        resolved = []

        def noted(params):
            resolved.append(1)
            time.sleep(0.2)  # the others come to the same place, were there nothing to hold them back
            return resolve(params)

        object.__setattr__(proxy, '_dbpool_resolve', noted)

        def connect():
            all_here.wait()
            try:
                return proxy.connect(**ARGUMENTS)
            except Exception as error:
                return error

        with mock.patch.object(host, 'where', lambda: host.POOLED), mock.patch.dict(managed._met, clear=True), \
                mock.patch.object(pools, 'profile', lambda *args: SimpleNamespace(connect=lambda: 'connected')):
            self.assertEqual(in_threads(connect, 2 * managed.VARIANTS_MAX), ['connected'] * 2 * managed.VARIANTS_MAX)
        self.assertEqual(len(resolved), 1)


GREENLETS = """
    import sys
    sys.path.insert(0, {build!r})
    import gevent
    if {patch}:
        from gevent import monkey
        monkey.patch_all()
    import MySQLdb
    from dbpool import _dbpool, pool, settings

    registered = []
    _dbpool.register = lambda spec, timeout: registered.append(spec) or (0, 1, '')

    def core():
        gevent.sleep(0.1)  # a callable of POOL that asks somebody
        return 3

    policy = settings.policy('default', {{'django_pool_class': 'django', 'django_core_pool_size': core}}, [])

    def first():
        return pool.profile(MySQLdb, 'default', policy, {arguments!r}, True, None, 'SELECT 1')

    greenlets = [gevent.spawn(first) for _ in range(5)]
    gevent.joinall(greenlets, timeout=60)
    found = [greenlet.get(block=False) for greenlet in greenlets]
    assert len(set(map(id, found))) == 1, found
    assert {patch} is False or len(registered) == 1, registered
    print('one')
"""


class Greenlets(unittest.TestCase):
    def run_greenlets(self, patch):
        code = textwrap.dedent(GREENLETS.format(build=os.path.join(BUILD, 'python'), patch=patch, arguments=ARGUMENTS))
        done = subprocess.run([sys.executable, '-c', code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        self.assertEqual((done.returncode, done.stdout.decode().strip()), (0, 'one'))

    def test_on_patched_locks(self):
        self.run_greenlets(True)

    def test_on_unpatched_locks(self):
        """The lock belongs to the thread: nobody may wait for ever, and the first one made is everybody's."""
        self.run_greenlets(False)


if __name__ == '__main__':
    unittest.main()
