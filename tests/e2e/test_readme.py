# SPDX-License-Identifier: MIT
"""The code that the README shows for use without the Django backend: extracted from it, and run as it stands.

Only the address, user, password and database are put in, the other driver's name, and a shorter time for the timer.
"""

import itertools
import os
import re
import unittest

from tests.e2e.base import DATABASE, DRIVERS, PASSWORD, STOCK, USER, WithServer
from tests.support import concurrently, wait_until
from tests.support.uwsgi import TOP

CAP = 20  # pool_size 10 and the default max_overflow
PING = '''
from %s import application as inner
import uwsgi

def application(environ, start_response):
    if environ['PATH_INFO'] == '/ping':
        start_response('200 OK', [])
        return [b'']
    return inner(environ, start_response)
'''
# As peewee from 3.17 on, which says COMMIT for transactions only and leaves single statements to the driver.
LATER_PEEWEE = '''
import peewee_app

peewee_app.db.commit = lambda: None
'''
MULE_APP = '''
import uwsgi

def application(environ, start_response):
    if environ['PATH_INFO'] != '/ping':
        uwsgi.mule_msg(environ['PATH_INFO'])
    start_response('200 OK', [])
    return [b'told']
'''
TIMER_APP = '''
import timer

def application(environ, start_response):
    start_response('200 OK', [])
    return [b'']
'''
DJANGO_APP = '''
import settings
import init
from wsgi import application
'''


def blocks():
    """{first word of a python block's first line, a comment: the block}"""
    with open(os.path.join(TOP, 'README.md')) as f:
        text = f.read()
    return {block.split()[1].rstrip(':'): block for block in re.findall(r'^```python\n(# .*?)^```$', text, re.M | re.S)}


class Readme(WithServer, unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.server.query('USE ' + DATABASE)
        cls.server.query('CREATE TABLE visits (id INT AUTO_INCREMENT PRIMARY KEY, page VARCHAR(100) NOT NULL)')
        cls.blocks = blocks()

    def write(self, directory, name, text):
        with open(os.path.join(directory, name), 'w') as f:
            f.write(text)

    def serve(self, driver, mode, names, app, **more):
        """uWSGI with these blocks as files of their names, and app as its application."""
        directory = os.path.join(self.meet, self.new_name())
        os.mkdir(directory)
        for name in names:
            text = self.blocks[name]
            for shown, meant in [("passwd='...'", 'passwd=%r' % PASSWORD), ("user='shop'", 'user=%r' % USER),
                                 ("db='shop'", 'db=%r' % DATABASE), ("PooledMySQL('shop'", 'PooledMySQL(%r' % DATABASE),
                                 ("host='127.0.0.1'", "host='127.0.0.1', port=%d" % self.server.port),
                                 ('add_timer(17, 60)', 'add_timer(17, 1)')]:
                text = text.replace(shown, meant)
            if driver == 'pymysql':
                text = text.replace('MySQLdb', 'pymysql')
            self.write(directory, name if name.endswith('.py') else 'init.py', text)
        self.write(directory, 'under_test.py', app)
        options = dict({'module': 'under_test:application', 'enable-threads': True}, **more.pop('options', {}))
        return self.make_uwsgi(driver, mode, {'default': self.database(engine=STOCK)}, 2, options,
                               environ={'PYTHONPATH': directory}, directory=directory, **more)

    def visits(self, page):
        return self.server.query('SELECT COUNT(*) FROM app.visits WHERE page = %s', (page,))[0][0]

    def pooled(self, uwsgi, leases):
        """So many leases were taken at least, of one pool, which gave all of them back."""
        def metric(name):
            return [entry['value'] for key, entry in uwsgi.stats()['metrics'].items()
                    if key.startswith('dbpool.') and key.endswith('.' + name)]

        wait_until(lambda: metric('leased') == [0], 30, 'all leases of one pool are back')
        self.assertGreaterEqual(metric('acquires')[0], leases)
        self.assertEqual(metric('max'), [CAP])
        self.assertLessEqual(len(self.sessions()), CAP)

    def gone(self):
        wait_until(lambda: not self.sessions(), 30, 'the sessions end with the instance')

    def test_applications(self):
        for name, driver, mode in itertools.product(('plain_app.py', 'flask_app.py', 'peewee_app.py'), DRIVERS,
                                                    ('gevent', 'threads')):
            if (name, mode) == ('peewee_app.py', 'gevent'):
                mode = 'gevent-early'  # as the README says
            page = '/%s-%s-%s' % (name, driver, mode)
            app = PING % name[:-3] + (LATER_PEEWEE if name == 'peewee_app.py' else '')
            with self.subTest(page), self.serve(driver, mode, ('database.py', name), app) as uwsgi:
                answers = concurrently(lambda _: uwsgi.get(page), [None] * 30, 6)
                self.assertEqual([(answer.status, answer.body) for answer in answers], [(200, b'noted')] * 30)
                self.assertEqual(self.visits(page), 30)
                self.pooled(uwsgi, 30)
                self.assertNotIn(PASSWORD, uwsgi.log())
            self.gone()

    def test_mule(self):
        for driver in DRIVERS:
            with self.subTest(driver), self.serve(driver, 'prefork', ('database.py', 'mule.py'), MULE_APP,
                                                  options={'mule': 'mule.py'}) as uwsgi:
                page = '/mule-' + driver
                for _ in range(5):
                    self.assertEqual(uwsgi.get(page).status, 200)
                wait_until(lambda: self.visits(page) == 5, 30, 'the mule has noted all')
                self.pooled(uwsgi, 5)
            self.gone()

    def test_timer(self):
        for driver, mode in itertools.product(DRIVERS, ('prefork', 'gevent')):
            with self.subTest(driver=driver, mode=mode), \
                    self.serve(driver, mode, ('database.py', 'timer.py'), TIMER_APP) as uwsgi:
                for _ in range(2):
                    self.server.query("INSERT INTO app.visits (page) VALUES ('/favicon.ico')")
                    wait_until(lambda: self.visits('/favicon.ico') == 0, 30, 'the timer has tidied')
                self.pooled(uwsgi, 2)
            self.gone()

    def test_django(self):
        for driver in DRIVERS:
            with self.subTest(driver), self.serve(driver, 'gevent', ('in',), DJANGO_APP) as uwsgi:
                for answer in concurrently(lambda _: uwsgi.get('/rows', ids='1', token='x'), [None] * 30, 6):
                    self.assertEqual(answer.json()['rows'], [[1, self.nonces[1], 'x']])
                page = '/django-' + driver
                concurrently(lambda _: self.run_sql(uwsgi, "INSERT INTO visits (page) VALUES ('%s')" % page), [None] * 30, 6)
                self.assertEqual(self.visits(page), 30)
                self.pooled(uwsgi, 60)
            self.gone()


if __name__ == '__main__':
    unittest.main()
