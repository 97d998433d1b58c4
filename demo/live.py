#!/usr/bin/python3
# SPDX-License-Identifier: MIT
"""The demo itself, after demo/run has built: one server, one shop, first without the pool and then with it."""

import argparse
import os
import signal
import subprocess
import sys
import time

HERE = os.path.dirname(os.path.abspath(__file__))
SHOP = os.path.join(HERE, 'shop')
sys.path.insert(0, os.path.dirname(HERE))

from load import Load  # noqa: E402

WORKERS = 4
POOL_SIZE = 10
USER = PASSWORD = DATABASE = 'shop'

STOCK = 'django.db.backends.mysql'
POOLED = 'dbpool.mysql'


def interrupted(signum, frame):
    """The first signal unwinds everything; a second one must not stop the cleaning up."""
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, signal.SIG_IGN)
    raise KeyboardInterrupt


def environment(server, engine, driver):
    return {'SHOP_ENGINE': engine, 'SHOP_DRIVER': driver, 'SHOP_HOST': server.host, 'SHOP_PORT': str(server.port),
            'SHOP_USER': USER, 'SHOP_PASSWORD': PASSWORD, 'SHOP_NAME': DATABASE, 'SHOP_POOL_SIZE': str(POOL_SIZE),
            'DJANGO_SETTINGS_MODULE': 'shop.settings'}


def migrate(server, build, driver):
    """manage.py with the pool's own engine: outside uWSGI it is an ordinary connection."""
    environ = dict(os.environ, PYTHONPATH=os.path.join(build, 'python'), PYTHONDONTWRITEBYTECODE='1',
                   **environment(server, POOLED, driver))
    done = subprocess.run([sys.executable, 'manage.py', 'migrate', '--verbosity', '0'], cwd=SHOP, env=environ,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        raise RuntimeError('manage.py migrate failed:\n' + done.stdout.decode('utf-8', 'replace'))


class Progress:
    """A bar on a terminal, a line at each quarter elsewhere."""

    def __init__(self, title):
        self.title = title
        self.quarter = 0

    def show(self, load, sessions):
        text = '   %-22s %5d/%d requests, %d errors, %2d sessions at the server' % (
            self.title, load.done, load.requests, load.errors, sessions)
        if sys.stdout.isatty():
            filled = 20 * load.done // load.requests
            sys.stdout.write('\r[%s%s]%s ' % ('#' * filled, '.' * (20 - filled), text))
        elif 4 * load.done // load.requests > self.quarter:
            self.quarter = 4 * load.done // load.requests
            sys.stdout.write(text + '\n')
        sys.stdout.flush()

    def end(self):
        if sys.stdout.isatty():
            sys.stdout.write('\n')


def measure(title, server, uwsgi, arguments):
    """One column of the table: the load's figures and what the server counted meanwhile."""
    load = Load(uwsgi.address, arguments.requests, arguments.clients)
    progress = Progress(title)
    server.query('FLUSH STATUS')  # Max_used_connections starts again
    questions, logins = server.questions(), server.status('Connections')['Connections']
    load.start()
    try:
        while load.running():
            progress.show(load, len(server.sessions(USER)))
            time.sleep(0.1)
        progress.show(load, len(server.sessions(USER)))
    finally:
        load.stop()
        progress.end()
    after = server.status('Connections', 'Max_used_connections')
    sharing = [len(workers) for workers in load.workers_by_session.values()]
    return {
        'title': title,
        'requests': load.done,
        'errors': load.errors,
        'first_error': load.first_error,
        'rate': load.done / load.seconds,
        'now': len(server.sessions(USER)),
        # The server's own high-water mark counts the connection that asks.
        'most': after['Max_used_connections'] - 1,
        'logins': after['Connections'] - logins,
        'extra': (server.questions() - questions - load.statements) / load.done,
        'sessions_seen': len(sharing),
        'shared': sum(1 for count in sharing if count > 1),
        'average': sum(sharing) / len(sharing) if sharing else 0,
    }


def table(columns, cap):
    rows = [
        ('requests', lambda c: '%d' % c['requests']),
        ('errors', lambda c: '%d' % c['errors']),
        ('requests per second', lambda c: '%.0f' % c['rate']),
        ('sessions at the server now', lambda c: '%d' % c['now']),
        ('  at most', lambda c: '%d' % c['most']),
        ('  allowed (the cap)', lambda c: '%d' % cap if c.get('capped') else 'no cap'),
        ('logins at the server', lambda c: '%d' % c['logins']),
        ('commands per request that the app', lambda c: ''),
        ('  did not ask for', lambda c: '%.2f' % c['extra']),
        ('workers that used a session (of %d)' % WORKERS, lambda c: '%.1f' % c['average']),
        ('  sessions used by more than one', lambda c: '%d of %d' % (c['shared'], c['sessions_seen'])),
    ]
    width = max(len(c['title']) for c in columns) + 3
    lines = [' ' * 38 + ''.join(c['title'].rjust(width) for c in columns)]
    for name, cell in rows:
        lines.append('   ' + name.ljust(35) + ''.join(cell(c).rjust(width) for c in columns))
    return '\n'.join(lines)


def start_shop(arguments, server, name, engine, driver):
    from tests.support import Uwsgi
    directory = os.path.join(arguments.directory, name)
    os.mkdir(directory)
    plugin = os.path.join(arguments.build, 'dbpool_plugin.so') if engine == POOLED else None
    return Uwsgi('shop.wsgi:application', [SHOP], 'gevent', WORKERS, ready='/about/', directory=directory,
                 plugin=plugin, environ=environment(server, engine, driver),
                 options={'gevent': 100, 'stats-http': True})


def run(arguments):
    from tests.support import Server
    print('2. A private MariaDB server, and manage.py migrate')
    directory = os.path.join(arguments.directory, 'mariadb')
    os.mkdir(directory)
    with Server(directory) as server:
        server.create(DATABASE, USER, PASSWORD)
        migrate(server, arguments.build, arguments.driver)
        print('3. The shop under uWSGI: %d gevent workers, %d clients at once, %d requests each way' %
              (WORKERS, arguments.clients, arguments.requests))
        columns = []
        for driver in ('mysqlclient', 'pymysql'):
            with start_shop(arguments, server, 'stock-' + driver, STOCK, driver) as uwsgi:
                columns.append(measure('Django, ' + driver, server, uwsgi, arguments))
        with start_shop(arguments, server, 'pooled', POOLED, arguments.driver) as uwsgi:
            pooled = measure('dbpool, ' + arguments.driver, server, uwsgi, arguments)
            pooled['capped'] = True
            columns.insert(0, pooled)
            return report(arguments, server, uwsgi, columns)


def report(arguments, server, uwsgi, columns):
    cap = uwsgi.metric('dbpool.default.max')
    print('\n4. What happened: with the pool, and with the stock backend (a new connection for each request)\n')
    print(table(columns, POOL_SIZE))
    pooled = columns[0]
    held = pooled['most'] <= POOL_SIZE and cap == POOL_SIZE
    print('\n   %s %s' % (
        'No errors.' if not pooled['errors'] else '%(errors)d requests failed, the first: %(first_error)s.' % pooled,
        'The cap held: never more than %d sessions, all %d workers together.' % (POOL_SIZE, WORKERS) if held else
        'THE CAP DID NOT HOLD: %s sessions at most, %s allowed by the pool.' % (pooled['most'], cap)))
    sys.stdout.flush()
    if not arguments.once:
        print('\n5. Still up, until Ctrl-C. Where to look:')
        print('   the shop      http://%s:%d/' % uwsgi.address)
        print('   uWSGI stats   http://%s:%d/  (the metrics dbpool.default.*)' % uwsgi.stats_address)
        print('   the server    mariadb --socket=%s -e "SHOW PROCESSLIST"' % server.socket)
        sys.stdout.flush()
        try:
            while True:
                signal.pause()
        except KeyboardInterrupt:
            print('\nStopping.')
    return 0 if held and not pooled['errors'] else 1


def main():
    parser = argparse.ArgumentParser(prog='demo/run')
    parser.add_argument('--once', action='store_true')
    parser.add_argument('--requests', type=int, default=4000)
    parser.add_argument('--clients', type=int, default=48)
    parser.add_argument('--driver', choices=['mysqlclient', 'pymysql'], default='mysqlclient')
    parser.add_argument('--directory', required=True, help=argparse.SUPPRESS)
    parser.add_argument('--build', required=True, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    os.environ['DBPOOL_BUILD'] = arguments.build
    for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(sig, interrupted)
    try:
        return run(arguments)
    except KeyboardInterrupt:
        return 130
    except (RuntimeError, AssertionError) as error:
        print('demo/run: %s' % error, file=sys.stderr)
        return 1


if __name__ == '__main__':
    sys.exit(main())
