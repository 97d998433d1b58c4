# SPDX-License-Identifier: MIT
"""An application that opens files of its own in uWSGI's post-fork hook, as many do for logs and sockets: are they still
the same files?"""

import os

import uwsgi

OPENED = {}  # fd -> (device, inode)


def _open_some():
    OPENED.clear()
    for n in range(24):
        fd = os.memfd_create('of-the-application-%d' % n)
        found = os.fstat(fd)
        OPENED[fd] = found.st_dev, found.st_ino


def strangers():
    """[fd, what it is now] of each that is another file by now."""
    wrong = []
    for fd, expected in OPENED.items():
        try:
            found = os.fstat(fd)
            if (found.st_dev, found.st_ino) != expected:
                wrong.append([fd, os.readlink('/proc/self/fd/%d' % fd)])
        except OSError as error:
            wrong.append([fd, str(error)])
    return wrong


uwsgi.post_fork_hook = _open_some
