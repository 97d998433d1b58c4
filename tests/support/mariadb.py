# SPDX-License-Identifier: MIT
"""A private MariaDB server: its own data directory, socket and loopback port, an administrator's connection."""

import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import threading

import pymysql

from .procs import die_with_parent, free_port, is_alive, signals_held, wait_until

# Small files and no binary log: a start takes well under a second. Sessions are tiny, so many are allowed.
SMALL = ['--no-defaults', '--innodb-log-file-size=4M', '--innodb-buffer-pool-size=32M', '--skip-log-bin']
RUNNING = ['--performance-schema=OFF', '--max-connections=500', '--bind-address=127.0.0.1', '--skip-name-resolve',
           '--innodb-flush-log-at-trx-commit=2', '--character-set-server=utf8mb4']


def _install(datadir):
    with tempfile.TemporaryDirectory(prefix='dbpool-mariadb-') as tmpdir:  # see _launch
        done = subprocess.run(['mariadb-install-db', *SMALL, '--datadir=' + datadir, '--tmpdir=' + tmpdir, '--user=root',
                               '--skip-test-db', '--auth-root-authentication-method=normal'], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=dict(os.environ, TMPDIR=tmpdir))
    if done.returncode != 0:
        raise RuntimeError('mariadb-install-db failed:\n' + done.stdout.decode('utf-8', 'replace'))


def _pristine(cache):
    """A fresh data directory below cache, made once: installing takes seconds, copying does not."""
    os.makedirs(cache, exist_ok=True)
    ready = os.path.join(cache, 'pristine')
    with open(os.path.join(cache, 'lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not os.path.isdir(ready):
            partial = ready + '.partial'
            shutil.rmtree(partial, ignore_errors=True)
            _install(partial)
            os.rename(partial, ready)
    return ready


class Server:
    """with Server() as server: ... Attributes host, port, socket, pid; root has no password on the socket."""

    host = '127.0.0.1'

    def __init__(self, directory=None, cache=None, options=()):
        """cache (or $DBPOOL_BUILD) keeps a pristine data directory for the next one; without it, each is installed."""
        self._own_directory = directory is None
        with signals_held():
            self.directory = directory or tempfile.mkdtemp(prefix='dbpool-mariadb-')
        self.datadir = os.path.join(self.directory, 'data')
        self.socket = os.path.join(self.directory, 'mysqld.sock')
        self.log = os.path.join(self.directory, 'mariadbd.log')
        self.general_log = os.path.join(self.directory, 'general.log')
        self.options = list(options)
        self.port = None
        self._cache = cache or os.environ.get('DBPOOL_BUILD') and os.path.join(os.environ['DBPOOL_BUILD'], 'mariadb')
        self._process = None
        self._admin = None
        self._lock = threading.Lock()
        self._own_questions = 0

    def __enter__(self):
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exc):
        self.close()

    @property
    def pid(self):
        return self._process.pid

    def start(self):
        if not os.path.isdir(self.datadir):
            if self._cache:
                shutil.copytree(_pristine(self._cache), self.datadir)
            else:
                _install(self.datadir)
        if self.port is None:
            self.port = free_port()
        if self._launch():
            return self
        with open(self.log, errors='replace') as f:
            raise RuntimeError('mariadbd does not start:\n' + f.read()[-4000:])

    def _launch(self):
        # A directory of its own for temporary tables: a server that starts removes all that it finds in a shared one, and
        # another server, whose they are, dies of it (seen in 10.11: ha_maria::drop_table).
        tmpdir = os.path.join(self.directory, 'tmp')
        os.makedirs(tmpdir, exist_ok=True)
        command = ['mariadbd', *SMALL, *RUNNING, '--user=root', '--datadir=' + self.datadir, '--socket=' + self.socket,
                   '--tmpdir=' + tmpdir,
                   '--port=%d' % self.port, '--pid-file=' + os.path.join(self.directory, 'pid'),
                   '--general-log-file=' + self.general_log, *self.options]
        with open(self.log, 'ab') as log, signals_held():
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                             preexec_fn=die_with_parent)

        def up():
            if self._process.poll() is not None:
                return 'ended'
            try:
                self._admin = self.connect()
            except pymysql.err.OperationalError:
                return None
            return 'up'

        return wait_until(up, 60, 'mariadbd accepts connections') == 'up'

    def _ended(self):
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        self._process.wait(60)

    def stop(self):
        """An orderly shutdown: sessions get a FIN. start() continues with the same data and port."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        self._ended()

    def kill(self):
        self._process.kill()
        self._ended()

    def restart(self):
        self.stop()
        return self.start()

    def close(self):
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self.stop()
        if self._own_directory:
            shutil.rmtree(self.directory, ignore_errors=True)

    def is_running(self):
        return self._process is not None and is_alive(self._process.pid)

    # ---- asking it ----

    def connect(self, **options):
        """A connection of its own for the caller, root on the socket unless options say otherwise."""
        if 'host' not in options:
            options.setdefault('unix_socket', self.socket)
        options.setdefault('user', 'root')
        options.setdefault('autocommit', True)
        return pymysql.connect(**options)

    def query(self, sql, args=None):
        """All rows, on the administrator's connection. Any thread."""
        with self._lock:
            self._own_questions += 1
            with self._admin.cursor() as cursor:
                cursor.execute(sql, args)
                return cursor.fetchall()

    def status(self, *names):
        """{name: value} of SHOW GLOBAL STATUS; numbers as int. All of them without names."""
        rows = self.query('SHOW GLOBAL STATUS')
        wanted = {name.lower() for name in names}
        return {name: int(value) if value.isdigit() else value
                for name, value in rows if not wanted or name.lower() in wanted}

    def questions(self):
        """Commands that clients other than this administrator sent so far. Only differences mean something."""
        return self.status('Questions')['Questions'] - self._own_questions

    def sessions(self, user):
        """{connection id: command} of the user's sessions that the server has now."""
        rows = self.query('SELECT id, command FROM information_schema.processlist WHERE user = %s', (user,))
        return dict(rows)

    def kill_session(self, connection_id):
        self.query('KILL CONNECTION %d' % connection_id)

    def create(self, database, user, password):
        self.query('CREATE DATABASE IF NOT EXISTS `%s`' % database)
        self.query("CREATE OR REPLACE USER `%s`@'%%' IDENTIFIED BY '%s'" % (user, password))
        self.query("GRANT ALL ON *.* TO `%s`@'%%'" % user)

    def log_commands(self, on):
        """Writes each command of every session to the general log, for commands()."""
        self.query('SET GLOBAL general_log = %d' % bool(on))

    def commands(self):
        """(connection id, command, text) of each logged command, e.g. (7, 'Query', 'SELECT 1'), oldest first."""
        found = []
        with open(self.general_log, errors='replace') as f:
            for line in f:
                # "date time<TAB>    7 Query<TAB>text": the time only where the second changed; other lines go on
                # with the text of the one before.
                parts = line.rstrip('\n').split('\t')
                head = parts[2] if len(parts) > 2 and parts[0] == '' else parts[1] if len(parts) > 1 else ''
                words = head.split(None, 1)
                if len(words) == 2 and words[0].isdigit():
                    found.append((int(words[0]), words[1], '\t'.join(parts[parts.index(head) + 1:])))
                elif found:
                    found[-1] = found[-1][:2] + (found[-1][2] + '\n' + line.rstrip('\n'),)
        return found
