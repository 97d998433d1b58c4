# SPDX-License-Identifier: MIT
"""Made once in this process, also when two threads or greenlets want it at the same moment, and anew after a fork.

The things of a group are kept by a name and a key. There is a lock for each name, made at its first use: by then
gevent's patching is done, and a patched lock lets the other greenlets of its thread run. The locks are reentrant, so
that an unpatched one, which belongs to the thread and not to the greenlet, cannot stop a greenlet that comes in while
another one waits inside (a callable of POOL may do so). Those two may both make the thing; the first to put it wins.
"""

import threading

from . import _dbpool


class Once:
    __slots__ = ("_found", "_locks")

    _groups = {}  # (group, epoch) -> Once

    def __init__(self):
        self._found = {}  # name -> [(key, thing), ...]; the lists only grow
        self._locks = {}

    @classmethod
    def of(cls, group):
        """This process's. A forked child has its own, so a lock that a thread of its parent held stops nobody."""
        wanted = group, _dbpool.epoch()
        found = cls._groups.get(wanted)
        if found is None:
            found = cls._groups.setdefault(wanted, cls())
            for other in list(cls._groups):
                if other[0] == group and other != wanted:
                    cls._groups.pop(other, None)
        return found

    def lock(self, name):
        found = self._locks.get(name)
        return found if found is not None else self._locks.setdefault(name, threading.RLock())

    def get(self, name, key):
        """What was put there, or None. Without the lock, too."""
        for have, thing in self._found.get(name, ()):
            if have == key:
                return thing
        return None

    def all(self):
        """The things of all names, each name's in the order in which they were put."""
        return [thing for things in list(self._found.values()) for _, thing in list(things)]

    def put(self, name, key, thing):
        """Within lock(name). What is there now: thing, or what another put there first."""
        have = self.get(name, key)
        if have is not None:
            return have
        self._found.setdefault(name, []).append((key, thing))
        return thing
