# SPDX-License-Identifier: MIT
"""Check-out and check-in.

A Pool is an alias registered with the broker; a Profile is a pool together with the options of this process's driver
objects. The policy is the broker's: here is only the way from a lease to a connection and back. A driver object is kept
for (session, incarnation, profile) and made again when the session in the slot is another.
"""

import errno
import logging
import resource
import time

from . import _dbpool, drivers, settings, waiting
from .lease import Shared
from .once import Once
from .settings import ConfigurationError

log = logging.getLogger("dbpool")

PING_TIMEOUT = 2.0  # seconds; who does not answer by then is given up while there is time for another
PING_LEAST = 0.25  # also where the pool's timeout is over (or 0): an answer takes some ten microseconds to milliseconds

OBJECTS_MOST = 128  # driver objects that one profile keeps in this process, each with an fd of its session

SWEEP_ABOVE = 16  # see Profile.sweep_above

# seconds; the broker answers in some ten microseconds, unless the master is still starting, or stands still
REGISTER_TIMEOUT = 10.0
FETCH_LEAST = 5.0  # where the pool's timeout is longer, as long as that

# ER_ACCESS_DENIED_ERROR, ER_ACCESS_DENIED_NO_PASSWORD_ERROR
_OF_THE_PASSWORD = (1045, 1698)
SAY_AGAIN_PAUSE = 5.0  # seconds; the broker counts what is refused, and lets one and the same wait longer

# The broker has let go of this process, which held nothing, or of the pool: register() makes both anew.
_LET_GO = (_dbpool.E_CLOSED, _dbpool.E_INVALID)
RENEWALS_MOST = 5  # of one acquire: whoever is let go of again and again is told so


def objects_most():
    """OBJECTS_MOST, but no more than a share of the fds that this process may have."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OBJECTS_MOST if most == resource.RLIM_INFINITY else max(4, min(OBJECTS_MOST, most // 8))


def objects_of_all_most():
    """Of all profiles of this process together."""
    return 4 * objects_most()


class Pool:
    """An alias, as this process registered it."""

    __slots__ = (
        "alias",
        "id",
        "policy",
        "autocommit",
        "facts",
        "server_data",
        "operational_error",
        "_tell",
        "_again_at",
    )

    def __init__(self, alias, pool_id, policy, autocommit, operational_error, tell=None):
        self.alias = alias
        self.id = pool_id
        self.policy = policy
        self.autocommit = autocommit
        self.facts = None  # row of facts_sql of the session that was met last
        self.server_data = None, None  # (facts, what Django makes of them): the backend's
        self.operational_error = operational_error
        self._tell = tell  # (timeout): says to the broker what this process knows of the pool, with its password
        self._again_at = 0.0  # not before then once more

    @property
    def cap(self):
        return self.policy.pool_size + self.policy.max_overflow

    def acquire(self, deadline=None):
        """A Lease. Waits as the mode allows, until the deadline (None: for the pool's timeout); the driver's
        OperationalError when none comes."""
        lease = _dbpool.acquire_now(self.id)
        if type(lease) is _dbpool.Lease:
            return lease
        started = time.monotonic()
        if deadline is None:
            deadline = started + self.policy.timeout
        for _ in range(RENEWALS_MOST):
            if lease == _dbpool.E_BUSY:
                lease = waiting.acquire(self.id, max(0.0, deadline - time.monotonic()))
                if lease == _dbpool.E_FAILED and self._said_again():
                    lease = waiting.acquire(self.id, max(0.0, deadline - time.monotonic()))
            if lease not in _LET_GO:
                break
            self.register(max(REGISTER_TIMEOUT, deadline - time.monotonic()))
            lease = _dbpool.acquire_now(self.id)
        if type(lease) is _dbpool.Lease:
            return lease
        raise self.error(lease, time.monotonic() - started)

    def register(self, timeout=REGISTER_TIMEOUT):
        """Also again, where the broker has let go of it or of this process, which is attached anew then.

        Raises ConfigurationError."""
        started = time.monotonic()
        try:
            code, pool_id, text = self._tell(timeout)
        except OSError as wrong:
            what = wrong.strerror if wrong.errno != errno.EBADF else "this process has closed the pool's file descriptors"
            raise self.operational_error(0, "dbpool: pool '%s': %s" % (self.alias, what)) from wrong
        except ValueError as wrong:
            raise ConfigurationError("dbpool: DATABASES[%r]: %s" % (self.alias, wrong)) from None
        if code == _dbpool.E_INVALID:
            raise ConfigurationError("dbpool: DATABASES[%r]: %s" % (self.alias, text))
        if code == _dbpool.E_FULL:
            raise self.operational_error(0, "dbpool: pool '%s': %s" % (self.alias, text))
        if code:
            raise self.error(_dbpool.E_CLOSED, time.monotonic() - started)
        self.id = pool_id

    def _said_again(self):
        """The server refuses the password that the pool has. What this process has may be another one, which was wrong
        when the broker heard it, or which another process has replaced: it is said again, now and then."""
        now = time.monotonic()
        if self._tell is None or now < self._again_at or _dbpool.error(self.id)[0] not in _OF_THE_PASSWORD:
            return False
        self._again_at = now + SAY_AGAIN_PAUSE
        code, pool_id, _ = self._tell(REGISTER_TIMEOUT)
        if code == 0:
            self.id = pool_id
        return code == 0

    def error(self, code, waited):
        if code == _dbpool.E_FAILED:
            number, text = _dbpool.error(self.id)
            return self.operational_error(number, text or "dbpool: pool '%s' cannot open a session" % self.alias)
        if code == _dbpool.E_FULL:
            most = self.policy.max_waiting
            full = "max_waiting (%d) wait already" % most if most else "its queue is full"
            return self.operational_error(0, "dbpool: pool '%s': %s; %s" % (self.alias, full, self.situation()))
        if code in (_dbpool.E_TIMEOUT, _dbpool.E_BUSY):
            return self.operational_error(
                0,
                "dbpool: pool '%s': no session came free within %g s (waited %.1f s); %s"
                % (self.alias, self.policy.timeout, waited, self.situation()),
            )
        if code == _dbpool.E_STALE:
            return self.operational_error(
                2013, "dbpool: pool '%s': the session was ended in the moment in which it was taken" % self.alias
            )
        return self.operational_error(
            0,
            "dbpool: pool '%s': the pool's broker in the uWSGI master does not answer (%d, waited %.1f s)"
            % (self.alias, code, waited),
        )

    def situation(self):
        """Who holds what, for an error text."""
        stats = _dbpool.stats(self.id)
        count, holders = _dbpool.holders(self.id)
        text = "cap %d (pool_size %d + max_overflow %d), %d leased, %d waiting" % (
            self.cap,
            self.policy.pool_size,
            self.policy.max_overflow,
            stats["leased"],
            stats["waiting"],
        )
        for state in ("opening", "resetting", "closing"):
            if stats[state]:
                text += ", %d %s" % (stats[state], state)
        if stats["all_size"] >= stats["all_max"]:
            text += "; all pools together have %d sessions, which is all they may (dbpool-max-sessions)" % stats["all_max"]
        if holders:
            text += "; held by " + ", ".join("%s (pid %d): %d" % holder for holder in holders)
            if count > len(holders):
                text += ", and %d more" % (count - len(holders))
        return text


class Profile(_dbpool.Checkout):
    """A pool, and driver objects made with one set of options. Any thread.

    connect() is in src/checkout.c, and the return of most leases: the quick way, for sessions whose object is here. The
    rest is here, and all that the policy may add to a checkout."""

    __slots__ = ("pool", "driver", "spec", "local", "prepare", "most", "trash", "shared", "leak_threshold", "plain")

    sweep_above = SWEEP_ABOVE  # with more objects of other profiles, those whose session has ended are looked for

    def __init__(self, pool, driver, spec, local, prepare):
        policy = pool.policy
        super().__init__(pool.id, {}, driver.Connection, pool.autocommit, policy.reset)  # {}: session slot -> Driver
        self.pool = pool
        self.driver = driver
        self.spec = {key: value for key, value in spec.items() if key != "password"}
        self.local = local
        self.prepare = prepare
        self.most = objects_most()
        self.trash = []  # driver objects that a finaliser took out of use
        self.leak_threshold = policy.leak_threshold
        self.shared = Shared() if policy.use_threadlocal else None
        self.quick = self.plain = not (policy.pre_ping or policy.leak_threshold or policy.use_threadlocal)

    def _connect(self):
        """The long way: acquires, waits if it must, and makes or refreshes the object."""
        waiting.enable()
        self.quick = self.plain
        if self.trash:
            self._empty_trash()
        if self.shared is None:
            return self._pinged() if self.pool.policy.pre_ping else self._checkout(self._lease())
        connection = self.shared.get()
        if connection is None:
            connection = self._pinged() if self.pool.policy.pre_ping else self._checkout(self._lease())
            self.shared.put(connection)
        return connection

    def _lease(self, deadline=None):
        lease = self.pool.acquire(deadline)
        self.pool_id = self.pool.id  # for the quick way
        return lease

    def _pinged(self):
        """A connection whose session answered just now. One that does not is ended and another taken, all within the
        pool's timeout (and PING_LEAST)."""
        started = time.monotonic()
        deadline = started + self.pool.policy.timeout
        while True:
            connection = self._checkout(self._lease(deadline), deadline + PING_LEAST)
            if connection is not None:
                return connection
            if time.monotonic() >= deadline + PING_LEAST:
                raise self.pool.error(_dbpool.E_TIMEOUT, time.monotonic() - started)

    def _checkout(self, lease, ping_until=None):
        """The connection; None where its session does not answer a ping, and then the lease has ended."""
        driver = self.objects.get(lease.session)
        if driver is None or driver.incarnation != lease.incarnation:
            driver = self._make(lease)
            fresh = True
        else:
            fresh = False
        driver.leased = True
        try:
            if fresh and self.prepare is not None:
                self.prepare(driver.connection)
            if ping_until is not None:
                left = min(PING_TIMEOUT, ping_until - time.monotonic())
                if not driver.ping(max(1, int(1000 * left))):
                    self._discard(driver)
                    lease.release(0, _dbpool.DOOM)
                    return None
            driver.checkout(lease.status())
            connection = self.driver.Connection(self, lease, driver)
            if self.leak_threshold:
                self._watch(connection)
            return connection
        except BaseException:
            self._discard(driver)
            lease.release(0, _dbpool.DOOM)
            raise

    def _watch(self, connection):
        from . import leaks

        connection._watched = leaks.watch(connection, self.pool.alias, self.leak_threshold)

    def _make(self, lease):
        stale = self.objects.pop(lease.session, None)
        if stale is not None:
            stale.destroy()
        self._sweep()
        self._make_room()
        started = time.monotonic()
        try:
            driver = self._driver(lease, max(FETCH_LEAST, self.pool.policy.timeout))
        except drivers.SessionUnavailable as unavailable:
            (code,) = unavailable.args
            lease.release(lease.status(), _dbpool.CLEAN if code == _dbpool.E_TIMEOUT else _dbpool.DOOM)
            stale = code == _dbpool.E_STALE
            raise self.pool.error(code if stale else _dbpool.E_CLOSED, time.monotonic() - started) from unavailable
        except BaseException as error:
            # Not a byte was written to the session yet.
            lease.release(lease.status(), _dbpool.CLEAN)
            if isinstance(error, OSError) and error.errno == errno.EMFILE:
                raise self.pool.operational_error(
                    0,
                    "dbpool: pool '%s': this process has as many files open as it may (RLIMIT_NOFILE, uWSGI's max-fd)"
                    % self.pool.alias,
                ) from error
            raise
        self.pool.facts = driver.facts_row
        if self.objects.setdefault(lease.session, driver) is not driver:
            # While this one waited for the broker its session ended, and another thread or greenlet met the next one.
            driver.destroy()
            lease.release(0, _dbpool.DOOM)
            raise self.pool.error(_dbpool.E_STALE, 0.0)
        return driver

    def _driver(self, lease, timeout):
        try:
            return self.driver.Driver(lease, self.spec, self.local, timeout)
        except drivers.SessionUnavailable as unavailable:
            if unavailable.args != (_dbpool.E_INVALID,):
                raise
        self.pool.register()  # attached anew for another pool's sake
        return self.driver.Driver(lease, self.spec, self.local, timeout)

    def _sweep(self):
        """Objects whose session has ended: their fds would stay open until the slot is met again. What is leased is its
        user's, who may be waiting on the fd: he finds out by himself."""
        for driver in list(self.objects.values()):
            if not driver.leased and driver.gone():
                self._discard(driver)

    def _make_room(self):
        """With too many objects those go whose sessions will be met again last: sessions are leased lowest slot first."""
        for session in sorted(self.objects, reverse=True):
            if len(self.objects) < self.most:
                break
            if not self.objects[session].leased:
                self._discard(self.objects[session])
        # And those of other pools: a process that goes from tenant to tenant keeps the last ones'.
        others = [one for one in Once.of("profiles").all() if one is not self]
        if sum(len(one.objects) for one in others) > Profile.sweep_above:
            for one in others:
                one._sweep()
            Profile.sweep_above = SWEEP_ABOVE + 2 * sum(len(one.objects) for one in others)
        spare = objects_of_all_most() - len(self.objects) - sum(len(one.objects) for one in others)
        for one in others:
            if spare > 0:
                break
            spare += one.let_go()

    def let_go(self):
        """Drops the objects that are in nobody's use; how many."""
        idle = [driver for driver in list(self.objects.values()) if not driver.leased]
        for driver in idle:
            self._discard(driver)
        return len(idle)

    def _discard(self, driver):
        if self.objects.get(driver.session) is driver:
            del self.objects[driver.session]
        driver.destroy()

    def _empty_trash(self):
        while self.trash:
            self.trash.pop().destroy()

    def give_back(self, lease, driver, commit):
        """The lease was closed by its user. commit: as far as the policy says so too."""
        how, status, keep = driver.settle(self.pool.autocommit, self.pool.policy.reset)
        if how == _dbpool.RESET and commit and self.pool.policy.reset == "commit":
            how = _dbpool.COMMIT
        if not keep:
            # Before the return: until then the session is nobody else's.
            self._discard(driver)
        driver.leased = False
        lease.release(status, how)

    def give_up(self, lease, driver, busy):
        """The lease was lost. Called where nothing may wait and nothing may be written."""
        driver.leased = False
        if not lease.valid():
            return
        how, status, keep = driver.settle(self.pool.autocommit, self.pool.policy.reset)
        if busy:
            how, keep = _dbpool.DOOM, False
        elif how == _dbpool.CLEAN:
            how = _dbpool.RESET
        if not keep:
            if self.objects.get(driver.session) is driver:
                del self.objects[driver.session]
            self.trash.append(driver)
            self.quick = False
        lease.release(status, how)


# ---- finding them ----


def profile(database, alias, policy, params, autocommit, isolation_level, facts_sql, prepare=None):
    """The Profile for these settings; registers the pool when this process meets it first.

    Raises ConfigurationError."""
    profiles = Once.of("profiles")  # what a parent process made is the parent's (native.c, wire.c)
    key = (params, policy, autocommit, isolation_level)
    found = profiles.get(alias, key)
    if found is not None:
        return found
    with profiles.lock(alias):
        found = profiles.get(alias, key)
        if found is None:
            made = _make_profile(database, alias, policy, params, autocommit, isolation_level, facts_sql, prepare)
            found = profiles.put(alias, key, made)
        return found


def _make_profile(database, alias, policy, params, autocommit, isolation_level, facts_sql, prepare):
    driver = drivers.of(database)
    spec, local = settings.split(alias, params, policy, driver, autocommit, isolation_level, facts_sql)
    waiting.enable()

    def tell(timeout):  # a closure: its repr() does not show the password
        return _dbpool.register(spec, timeout)

    pool = Pool(alias, None, policy, bool(autocommit), database.OperationalError, tell)
    pool.register()
    return Profile(pool, driver, spec, local, prepare)


def announce(database, alias, policy, params, autocommit, isolation_level, facts_sql):
    """In the uWSGI master before its fork: the pool is made when the broker starts, with its floor.

    Raises ConfigurationError; what is found only then is in uWSGI's log."""
    spec, _ = settings.split(alias, params, policy, drivers.of(database), autocommit, isolation_level, facts_sql)
    try:
        _dbpool.announce(spec)  # where there are too many it is made with its first use
    except ValueError as wrong:
        raise ConfigurationError("dbpool: DATABASES[%r]: %s" % (alias, wrong)) from None
