# SPDX-License-Identifier: MIT
"""An application that opens files of its own in uWSGI's post-fork hook, as many do for logs and sockets: are they still
the same files? Also what mules and spoolers do here. Needs uWSGI's option shared-import = files."""

import json
import os

import uwsgi

OPENED = {}  # fd -> (device, inode, what was written into it)
MEET = json.load(open(os.environ['DBPOOL_TEST']))['meet']


def _open_some():
    OPENED.clear()
    try:
        os.fstat(0)
    except OSError:
        # uWSGI bears a spooler without number 0 now and then (1 of 61 on a busy machine, with no plugin but its Python
        # one), and takes the number for /dev/null later, whose ever it is by then.
        os.open(os.devnull, os.O_RDONLY)
    for n in range(24):
        text = b'%d of %d' % (n, os.getpid())
        fd = os.memfd_create('of-the-application-%d' % n)
        os.write(fd, text)
        found = os.fstat(fd)
        OPENED[fd] = found.st_dev, found.st_ino, text


def strangers():
    """[fd, what it is now] of each that is another file by now."""
    wrong = []
    for fd, (device, inode, text) in OPENED.items():
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != (device, inode) or os.pread(fd, 100, 0) != text:
                wrong.append([fd, os.readlink('/proc/self/fd/%d' % fd)])
        except OSError as error:
            wrong.append([fd, str(error)])
    return wrong


# ---- mules and spoolers ----


def work(statement, name):
    """Says it, and how the files are, in NAME.done. A spooler's task that was begun is there for the next spooler too:
    each is begun once only."""
    base = os.path.join(MEET, name)
    if os.path.exists(base + '.begun'):
        return
    open(base + '.begun', 'w').close()
    import wsgi  # noqa: F401 with lazy-apps nobody else has loaded it here
    from django.db import connection
    try:
        with connection.cursor() as cursor:
            cursor.execute(statement)
    finally:
        connection.close()
    with open(base + '.new', 'w') as f:
        json.dump({'pid': os.getpid(), 'opened': len(OPENED), 'strangers': strangers()}, f)
    os.rename(base + '.new', base + '.done')


def spooled(task):
    work(**json.loads(task[b'work']))
    return uwsgi.SPOOL_OK


uwsgi.post_fork_hook = _open_some
uwsgi.spooler = spooled
