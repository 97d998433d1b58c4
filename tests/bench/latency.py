# SPDX-License-Identifier: MIT
"""The same query on a leased session, on a private connection that waits in the same way, and on a private one through
a TCP proxy (haproxy), each in a worker of its own, one query after another in one greenlet."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile

from tests.bench.figures import ratios, turns
from tests.bench.serving import apart, server, uwsgi
from tests.support import wait_until
from tests.support.procs import die_with_parent, free_port

QUERIES = 2000
LEASED, PRIVATE = 'leased session', 'private connection'
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
        ports = {LEASED: 0, PRIVATE: running.port, 'another private connection': running.port,
                 'private connection through haproxy': proxy}
        for driver in ('mysqlclient', 'pymysql'):
            with contextlib.ExitStack() as stack:
                instances = {name: stack.enter_context(uwsgi(running, driver=driver, processes=1, pool={'pool_size': 4}))
                             for name in ports}
                for instance in instances.values():
                    instance.get('/ping')
                    apart(running.pid, *instance.worker_pids().values())
                answers = turns(rounds, {
                    name: lambda one=one, port=ports[name]: one.get('/latency', times=QUERIES, port=port).json()
                    for name, one in instances.items()})
            for what in ('p50', 'p99'):
                samples = {name: [answer[what] for answer in given] for name, given in answers.items()}
                figures.table('one short query, %s, gevent worker: %s' % (driver, what), 'us', samples, PRIVATE)
                if driver == 'mysqlclient':
                    figures.reach('latency.' + what, ratios(samples, LEASED, PRIVATE))
