# SPDX-License-Identifier: MIT
"""The same query on a leased session, on a private connection that waits in the same way, and on a private one through
a TCP proxy (haproxy), query by query in one greenlet of one worker."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile

from tests.bench.serving import server, uwsgi
from tests.support import wait_until
from tests.support.procs import die_with_parent, free_port

QUERIES = 2000
NAMES = {'private': 'private connection', 'private_too': 'another private connection', 'leased': 'leased session',
         'proxied': 'private connection through haproxy'}
CONFIG = """
defaults
    mode tcp
    timeout connect 10s
    timeout client 600s
    timeout server 600s
listen mysql
    bind 127.0.0.1:%d
    server one %s:%d
"""


@contextlib.contextmanager
def haproxy(running):
    """The port that leads to the server."""
    directory, port = tempfile.mkdtemp(prefix='dbpool-haproxy-'), free_port()
    path = os.path.join(directory, 'haproxy.cfg')
    with open(path, 'w') as f:
        f.write(CONFIG % (port, running.host, running.port))
    process = subprocess.Popen(['/usr/sbin/haproxy', '-db', '-f', path], preexec_fn=die_with_parent,
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def up():
        with contextlib.suppress(OSError):
            socket.create_connection(('127.0.0.1', port), 5).close()
            return True

    try:
        wait_until(up, 20, 'haproxy answers')
        yield port
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)
        shutil.rmtree(directory, ignore_errors=True)


def latency(figures, rounds):
    with server() as running, haproxy(running) as proxy:
        for driver in ('mysqlclient', 'pymysql'):
            with uwsgi(running, driver=driver, processes=1, pool={'pool_size': 4}) as instance:
                instance.get('/latency', times=200, proxy=proxy)
                answers = [instance.get('/latency', times=QUERIES, proxy=proxy).json() for _ in range(rounds)]
            for what in ('p50', 'p99'):
                samples = {text: [answer[name][what] for answer in answers] for name, text in NAMES.items()}
                figures.table('one short query, %s, gevent worker: %s' % (driver, what), 'us', samples,
                              NAMES['private'])
                if driver == 'mysqlclient':
                    figures.reach('latency.' + what, [a['leased'][what] / a['private'][what] for a in answers])
