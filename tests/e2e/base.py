# SPDX-License-Identifier: MIT
"""What all end-to-end tests share: a server with known rows, uWSGI with the application under test, the matrix."""

import contextlib
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import unittest

from tests.support import Server, Uwsgi, concurrently, in_background, wait_until

APP = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'app')
DRIVERS = ('mysqlclient', 'pymysql')
MODES = ('gevent', 'prefork', 'threads')
USER, PASSWORD, DATABASE = 'app', 'open sesame', 'app'
ROWS = 500
POOLED = 'dbpool.mysql'
STOCK = 'django.db.backends.mysql'


def matrix(drivers=DRIVERS, modes=MODES):
    """Makes one test class per driver and mode out of a class; they stand in its module as Name_driver_mode."""
    def decorate(cls):
        module = sys.modules[cls.__module__]
        for driver, mode in itertools.product(drivers, modes):
            name = '%s_%s_%s' % (cls.__name__, driver, mode.replace('-', '_'))
            setattr(module, name, type(name, (cls, unittest.TestCase), {'driver': driver, 'mode': mode,
                                                                        '__module__': cls.__module__}))
        return cls
    return decorate


class WithServer:
    """One MariaDB per class: table nonces (ROWS rows, the expected ones in cls.nonces) and counters."""

    server_options = ()
    names = 0

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.meet = tempfile.mkdtemp(prefix='dbpool-meet-')
        cls.addClassCleanup(shutil.rmtree, cls.meet, True)
        cls.server = cls.enter(Server(options=cls.server_options))
        server = cls.server
        server.create(DATABASE, USER, PASSWORD)
        server.query('USE ' + DATABASE)
        server.query('CREATE TABLE nonces (id INT PRIMARY KEY, nonce VARCHAR(32) NOT NULL)')
        server.query('CREATE TABLE counters (id INT PRIMARY KEY, n INT NOT NULL) ENGINE=InnoDB')
        server.query('CREATE TABLE gate (id INT PRIMARY KEY)')
        server.query('INSERT INTO counters VALUES (1, 0), (2, 0)')
        cls.nonces = {pk: '%032x' % random.getrandbits(128) for pk in range(1, ROWS + 1)}
        server.query('INSERT INTO nonces VALUES ' + ', '.join("(%d, '%s')" % row for row in cls.nonces.items()))

    @classmethod
    def enter(cls, manager):
        """Enters a context manager for the whole class."""
        value = manager.__enter__()
        cls.addClassCleanup(manager.__exit__, None, None, None)
        return value

    def entered(self, manager):
        """Enters a context manager for this test."""
        value = manager.__enter__()
        self.addCleanup(manager.__exit__, None, None, None)
        return value

    @classmethod
    def database(cls, pool=None, engine=POOLED, options=None, **more):
        entry = {'ENGINE': engine, 'HOST': cls.server.host, 'PORT': cls.server.port, 'USER': USER,
                 'PASSWORD': PASSWORD, 'NAME': DATABASE, 'OPTIONS': options or {}, **more}
        if engine == POOLED:
            entry['POOL'] = {'pool_size': 4, 'max_overflow': 0, 'timeout': 30} if pool is None else pool
        return entry

    @classmethod
    def environment(cls, databases, driver, **more):
        given = dict(more, databases=databases, driver=driver, meet=cls.meet, python=sys.executable)
        fd, path = tempfile.mkstemp('.json', dir=cls.meet)
        with open(fd, 'w') as f:
            json.dump(given, f)
        return {'DBPOOL_TEST': path, 'DJANGO_SETTINGS_MODULE': 'settings'}

    @classmethod
    def make_uwsgi(cls, driver, mode, databases=None, processes=2, options=None, given=None, environ=None, **more):
        """An instance that is not started yet."""
        databases = databases or {'default': cls.database()}
        return Uwsgi('wsgi:application', [APP], mode, processes, options,
                     dict(cls.environment(databases, driver, **(given or {})), **(environ or {})), **more)

    @classmethod
    def without_privileges(cls):
        """The pool's user is no administrator: limits hold for it."""
        cls.server.query("REVOKE ALL, GRANT OPTION FROM `%s`@'%%'" % USER)
        cls.server.query("GRANT ALL ON %s.* TO `%s`@'%%'" % (DATABASE, USER))

    def counter(self, pk=1):
        return self.server.query('SELECT n FROM counters WHERE id = %s', (pk,))[0][0]

    def run_sql(self, uwsgi, *statements, **more):
        answer = uwsgi.get('/sql', dict(more, statements=statements))
        self.assertEqual(answer.status, 200, answer)
        return answer.json()

    # ---- the meeting point: views.py's _meet() ----

    def here(self, name):
        wait_until(lambda: os.path.exists(os.path.join(self.meet, name + '.here')), 30, '%s arrives' % name)

    def worker_here(self, name):
        """The worker that arrived."""
        self.here(name)
        with open(os.path.join(self.meet, name + '.here')) as f:
            return int(f.read())

    def new_name(self):
        """A meeting point that nobody used yet."""
        WithServer.names += 1
        return 'meeting-%d' % WithServer.names

    def go(self, name):
        open(os.path.join(self.meet, name + '.go'), 'w').close()

    @contextlib.contextmanager
    def gate(self):
        """While it is closed, each page /gate waits in the server: queries that surely overlap."""
        keeper = self.server.connect(database=DATABASE)
        try:
            with keeper.cursor() as cursor:
                cursor.execute('LOCK TABLES gate WRITE')
                yield
                cursor.execute('UNLOCK TABLES')
        finally:
            keeper.close()

    def waiting_at_gate(self):
        """Connection ids of the sessions that wait at the closed gate now."""
        return [row[0] for row in self.server.query(
            "SELECT id FROM information_schema.processlist WHERE user = %s AND state LIKE 'Waiting for table%%'",
            (USER,))]

    def sessions(self):
        return self.server.sessions(USER)

    def whole(self, uwsgi, alias='default'):
        """I2: nothing is leased, waited for or on its way any more."""
        def quiet():
            pool = uwsgi.pool(alias)
            return pool and pool['leased'] == 0 and pool['waiting'] == 0 and pool['idle'] == pool['size'] and pool
        return wait_until(quiet, 30, 'all sessions are idle again')


class WithUwsgi(WithServer):
    """Also one uWSGI per class, of the class's driver and mode."""

    driver = 'mysqlclient'
    mode = 'gevent'
    processes = 2
    pool = None
    uwsgi_options = None
    given = None
    environ = None

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.uwsgi = cls.enter(cls.make_uwsgi(cls.driver, cls.mode, {'default': cls.database(cls.pool)}, cls.processes,
                                             cls.uwsgi_options, cls.given, cls.environ))

    def tearDown(self):
        super().tearDown()
        self.whole(self.uwsgi)

    def sql(self, *statements, **more):
        return self.run_sql(self.uwsgi, *statements, **more)

    @contextlib.contextmanager
    def only_worker(self, wanted):
        """Prefork: keeps the other one of two workers busy with a page without database."""
        pages = {}
        while set(pages) != {1, 2} - {wanted}:
            name = self.new_name()
            page = in_background(self.uwsgi.get, '/busy', meet=name)
            pages[self.worker_here(name)] = name, page
            if wanted in pages and len(pages) == 2:
                name, page = pages.pop(wanted)
                self.go(name)
                page.result()
        try:
            yield
        finally:
            for name, page in pages.values():
                self.go(name)
                page.result()

    def use_all(self, path='/rows', **parameters):
        """Asks until every session of the pool was used by at least two workers; returns {id: workers}."""
        used = {}
        if path == '/rows':
            parameters = {'ids': '1,2,3', 'token': 'warm'}

        def shared():
            for answer in concurrently(lambda _: self.uwsgi.get(path, **parameters), [None] * 24, 8):
                self.assertEqual(getattr(answer, 'status', answer), 200, answer)
                answer = answer.json()
                used.setdefault(answer['id'], set()).add(answer['worker'])
            alive = set(self.sessions())
            return alive and all(len(used.get(pk, ())) > 1 for pk in alive) and alive

        return {pk: used[pk] for pk in wait_until(shared, 60, 'each session is used by two workers')}
