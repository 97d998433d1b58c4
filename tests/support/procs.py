# SPDX-License-Identifier: MIT
"""What /proc says of processes, their children and their file descriptors."""

import contextlib
import ctypes
import os
import random
import signal
import socket
import time

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def wait_until(condition, timeout=30, what='condition'):
    """The first true value of condition(); AssertionError with its last value after timeout seconds.

    The timeout only bounds a failure: no test may depend on how long something takes.
    """
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError('%s: not within %s s (last value: %r)' % (what, timeout, value))
        time.sleep(0.02)


_reserved = []  # kept until this process ends, however it does


def free_port():
    """A loopback port that no other test is given while this process lives, and that the kernel gives to no connection.

    Tests run beside each other: a port that is only looked for can be another one's a moment later.
    """
    with open('/proc/sys/net/ipv4/ip_local_port_range') as f:
        first_of_kernel = int(f.read().split()[0])
    for port in random.sample(range(10000, first_of_kernel if first_of_kernel > 11000 else 65536), 1000):
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind('\0dbpool-tests-port-%d' % port)  # a name of this network namespace, as the port is
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(('127.0.0.1', port))
        except OSError:
            mark.close()
            continue
        _reserved.append(mark)
        return port
    raise RuntimeError('no loopback port is free')


@contextlib.contextmanager
def signals_held():
    """Around making something that must be noted before Ctrl-C may unwind: else nobody would clean it up."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent():
    """For preexec_fn: a test that is killed takes its servers along. Bound to the forking thread: use the main one.

    A terminal's Ctrl-C goes to the whole foreground group; a session of its own keeps the server for an orderly end.
    """
    os.setsid()
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM})


def _stat(pid):
    """Fields of /proc/PID/stat from the state on (index 0), or None. The name before them may hold spaces."""
    try:
        with open('/proc/%d/stat' % pid) as f:
            return f.read().rpartition(')')[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def start_time(pid):
    """With the pid, this names one process for ever: pids are used again. None: there is no such process."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def _has_ended(fields):
    """A zombie has ended, but not one whose main thread alone is gone: the others keep its fds."""
    return not fields or fields[0] in 'ZX' and int(fields[17]) <= 1


def is_alive(pid, started=None):
    """True unless the process ended or, with started, its pid is another's now."""
    fields = _stat(pid)
    return not _has_ended(fields) and (started is None or int(fields[19]) == started)


def all_threads_stopped(pid):
    """SIGSTOP reaches each thread in its own time."""
    for task in os.listdir('/proc/%d/task' % pid):
        with open('/proc/%d/task/%s/stat' % (pid, task)) as f:
            if f.read().rpartition(')')[2].split()[0] != 'T':
                return False
    return True


def in_signal_handler(pid):
    """True for a process whose main thread handles SIGHUP, SIGINT or SIGTERM: the signal is blocked meanwhile."""
    try:
        with open('/proc/%d/status' % pid) as f:
            blocked = next(int(line.split()[1], 16) for line in f if line.startswith('SigBlk:'))
    except OSError:
        return False
    return any(blocked >> number - 1 & 1 for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))


def children(pid):
    found = []
    for name in os.listdir('/proc'):
        if name.isdigit():
            fields = _stat(int(name))
            if not _has_ended(fields) and int(fields[1]) == pid:
                found.append(int(name))
    return sorted(found)


def descendants(pid):
    found = []
    for child in children(pid):
        found.append(child)
        found.extend(descendants(child))
    return found


def fd_census(pid):
    """{fd: what it is} of a process, e.g. {5: 'socket:[1234]'}."""
    census = {}
    directory = '/proc/%d/fd' % pid
    for name in os.listdir(directory):
        try:
            census[int(name)] = os.readlink(os.path.join(directory, name))
        except FileNotFoundError:
            continue
    return census


def _inodes_to_port(port):
    """Inodes of this machine's TCP sockets whose peer is 127.0.0.1:port."""
    inodes = set()
    with open('/proc/net/tcp') as f:
        next(f)
        for line in f:
            fields = line.split()
            if int(fields[2].rpartition(':')[2], 16) == port and fields[9] != '0':
                inodes.add('socket:[%s]' % fields[9])
    return inodes


def connected_ports(port):
    """Remote ports of the connections that a local server at port has not closed yet, whoever is at the other end."""
    with open('/proc/net/tcp') as f:
        next(f)
        rows = [line.split()[1:4] for line in f]
    return {int(remote.rpartition(':')[2], 16) for local, remote, state in rows
            if state in ('01', '08') and int(local.rpartition(':')[2], 16) == port}


def session_sockets(pid, port):
    """{fd: socket} of a process's TCP connections to a server's port: the sessions that it can reach."""
    inodes = _inodes_to_port(port)
    return {fd: target for fd, target in fd_census(pid).items() if target in inodes}


def unix_sockets(pid):
    """{fd: socket} of a process's unix sockets."""
    with open('/proc/net/unix') as f:
        next(f)
        inodes = {'socket:[%s]' % line.split()[6] for line in f}
    return {fd: target for fd, target in fd_census(pid).items() if target in inodes}


def voluntary_switches(pid):
    """How often the process's threads went to sleep so far: each wake-up adds one."""
    total = 0
    for task in os.listdir('/proc/%d/task' % pid):
        with open('/proc/%d/task/%s/status' % (pid, task)) as f:
            for line in f:
                if line.startswith('voluntary_ctxt_switches'):
                    total += int(line.split()[1])
    return total
