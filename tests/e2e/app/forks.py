# SPDX-License-Identifier: MIT
"""Pages whose process forks while it holds a lease, in the middle of a transaction."""

import ctypes
import gc
import inspect
import json
import multiprocessing
import os
import socket
import subprocess
import sys

import urls
import views
from django.conf import settings
from django.db import connection
from django.http import JsonResponse
from django.urls import path
from wsgi import application  # noqa: F401 (module = forks:application)

KEPT = {}  # what a child finds of its parent's


def _attempt(function):
    try:
        return repr(function())
    except Exception as error:
        return type(error).__name__


def _steal():
    """Uses all that the parent has; each attempt must fail and none may reach the parent's session."""
    cursor, raw = KEPT['cursor'], KEPT['raw']
    delete = 'DELETE FROM forks'
    return [_attempt(function) for function in (
        lambda: cursor.execute(delete), lambda: cursor.cursor.execute(delete), lambda: raw.cursor().execute(delete),
        lambda: raw.query(delete), raw.commit, raw.rollback, raw.ping)]


def _own():
    """A lease of the child's own, taken as its parent took its own."""
    with connection.cursor() as cursor:
        cursor.execute('SELECT CONNECTION_ID(), @mine')
        found, mine = cursor.fetchone()
        cursor.execute('SELECT COUNT(*) FROM forks')  # the parent's row is not committed
        seen, = cursor.fetchone()
    return [found, views._plain(mine), seen]


def _close():
    connection.close()
    return 'closed'


def _drop():
    """As an interpreter that ends would: everything of the parent's dies here."""
    KEPT.clear()
    connection.connection = None
    gc.collect()
    return 'dropped'


ACTS = {'steal': _steal, 'own': _own, 'close': _close, 'drop': _drop}


def _act(what):
    """In the child: {act: what came of it}, and the sockets that it was born with."""
    found = {'sockets': views._sockets(), 'pid': os.getpid()}
    for act in what.split(','):
        if act:
            found[act] = ACTS[act]()
    return json.dumps(found).encode()


def _see_children():
    """gevent's fork installs its handler for SIGCHLD after the first fork of a process: a child that is quicker than
    that is never seen to end, and gevent's waitpid waits for ever (gevent 22.10, also without us)."""
    if 'gevent.monkey' in sys.modules:
        sys.modules['gevent'].get_hub().loop.install_sigchld()


def _forked(fork, waitpid, what, end):
    _see_children()
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.write(writer, _act(what))
            if end == 'exit':  # runs what is registered with the C library's atexit, uWSGI's handlers included
                ctypes.CDLL(None).exit(0)
            if end == 'exec':
                os.execv('/bin/true', ['true'])
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, 'rb') as f:
        text = f.read()
    waitpid(pid, 0)
    return text


def _in_process(what, writer):
    os.write(writer, _act(what))
    os.close(writer)
    sys.exit(0)


def _multiprocessing(what):
    _see_children()
    reader, writer = os.pipe()
    child = multiprocessing.get_context('fork').Process(target=_in_process, args=(what, writer))
    child.start()
    os.close(writer)
    with open(reader, 'rb') as f:
        text = f.read()
    child.join()
    return text


def _spawned(what, target):
    """An interpreter of its own, outside uWSGI: a private connection."""
    import django
    django.setup()
    with open(target, 'wb') as f:
        f.write(_act(what))
    connection.close()


def _spawn(what):
    multiprocessing.set_executable(settings.GIVEN['python'])  # else it would be uWSGI's
    target = os.path.join(settings.GIVEN['meet'], 'spawned-%d' % os.getpid())
    child = multiprocessing.get_context('spawn').Process(target=_spawned, args=(what, target))
    child.start()
    child.join()
    with open(target, 'rb') as f:
        return f.read()


def _subprocess(what):
    source = 'import json, os\n%s\nprint(json.dumps({"sockets": _sockets(), "pid": os.getpid()}))'
    return subprocess.run([settings.GIVEN['python'], '-c', source % inspect.getsource(views._sockets)], close_fds=False,
                          stdout=subprocess.PIPE, check=True).stdout


def _original(name):
    monkey = sys.modules.get('gevent.monkey')
    return monkey.get_original('os', name) if monkey else getattr(os, name)


def fork(request):
    """?how=&what=&end=&nonce=: in the middle of a transaction, a child that does `what`; then the transaction goes on."""
    how, what, end = (request.GET.get(name, '') for name in ('how', 'what', 'end'))
    nonce = request.GET['nonce']
    connection.set_autocommit(False)
    with connection.cursor() as cursor:
        cursor.execute('SET @mine = %s', [nonce])
        cursor.execute('INSERT INTO forks VALUES (%s)', [nonce])
        cursor.execute('SELECT CONNECTION_ID()')
        before, = cursor.fetchone()
        KEPT.update(cursor=cursor, raw=connection.connection)
        if how == 'fork':
            text = _forked(os.fork, os.waitpid, what, end)
        elif how == 'meet':  # others fork meanwhile
            views._meet(request.GET['meet'])
            text = None
        elif how == 'original':
            text = _forked(_original('fork'), _original('waitpid'), what, end)
        else:
            text = {'multiprocessing': _multiprocessing, 'spawn': _spawn, 'subprocess': _subprocess}[how](what)
        KEPT.clear()
        cursor.execute('SELECT CONNECTION_ID(), @mine, (SELECT COUNT(*) FROM forks WHERE nonce = %s)', [nonce])
        after, mine, rows = cursor.fetchone()
    connection.commit()
    connection.set_autocommit(True)
    return JsonResponse(views._who(before=before, after=after, mine=views._plain(mine), rows=rows,
                                   child=json.loads(text) if text else None))


urls.urlpatterns += [path('fork', fork)]


def _ask():
    """One query through the ORM's connection, and the lease goes back."""
    try:
        with connection.cursor() as cursor:
            cursor.execute('SELECT CONNECTION_ID()')
            cursor.fetchone()
        return 'answered'
    except Exception as error:
        return '%s: %s' % (type(error).__name__, error)
    finally:
        connection.close()


def _one_of_many(writer, gate):
    """Asks, stays, and asks again when all have asked."""
    os.write(writer, (_ask() + '\n').encode())
    os.read(gate, 1)  # the end of file
    os.write(writer, (_ask() + '\n').encode())


def crowd(request):
    """?n=: so many children at a time, each of which asks twice and holds nothing in between."""
    n = int(request.GET['n'])
    _ask()  # the parent has a session's object, and leaves it to each of them
    _see_children()
    reader, writer = os.pipe()
    gate, closing = os.pipe()
    fork, waitpid = _original('fork'), _original('waitpid')
    pids = []
    for _ in range(n):
        pid = fork()
        if pid == 0:
            try:
                os.close(closing)
                os.close(reader)
                _one_of_many(writer, gate)
            finally:
                os._exit(0)
        pids.append(pid)
    os.close(writer)
    os.close(gate)
    answers = []
    with open(reader) as lines:
        for line in lines:
            answers.append(line.strip())
            if len(answers) == n:
                os.close(closing)
    for pid in pids:
        waitpid(pid, 0)
    return JsonResponse(views._who(answers=answers, parent=_ask()))


def lose(request):
    """Closes what is not its own: this process's channel to the broker. (The master has the other end of no such one.)"""
    masters = {os.readlink(entry.path) for entry in os.scandir('/proc/%d/fd' % os.getppid())}
    lost = []
    for name in os.listdir('/proc/self/fd'):
        try:
            target = os.readlink('/proc/self/fd/' + name)
            if target.startswith('socket:') and target not in masters:
                with socket.socket(fileno=os.dup(int(name))) as found:
                    if found.type == socket.SOCK_SEQPACKET:
                        lost.append(int(name))
        except OSError:
            pass
    for fd in lost:
        os.close(fd)
    return JsonResponse(views._who(lost=len(lost)))


urls.urlpatterns += [path('crowd', crowd), path('lose', lose)]
