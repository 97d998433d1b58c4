# SPDX-License-Identifier: MIT
"""Proxies end with their lease (I7), and a lease ends whatever becomes of its proxy."""

import errno
import gc
import threading
import unittest
from unittest import mock

import pymysql

from tests.python import fakes

from dbpool import _dbpool, waiting
from dbpool.pool import Pool, Profile
from dbpool.settings import Policy


class Case(unittest.TestCase):
    def setUp(self):
        pool = Pool('default', 0, Policy(5, 10, 30, 0), True, pymysql.err.OperationalError)
        self.profile = Profile(pool, fakes, {}, {}, None)
        self.lease = fakes.Lease()
        self.driver = fakes.Driver()
        self.profile.objects[1] = self.driver
        self.target = self.driver.connection

    def connect(self):
        return fakes.Connection(self.profile, self.lease, self.driver)


class AfterTheReturn(Case):
    def test_every_use_raises_and_writes_nothing(self):
        connection = self.connect()
        cursor = connection.cursor()
        cursor.execute('SELECT 1')
        self.assertEqual(cursor.fetchone(), (1,))
        connection.close()
        written = list(self.target.commands)
        uses = [connection.commit, connection.rollback, connection.cursor, lambda: connection.ping(),
                lambda: connection.show_warnings(),
                connection.__enter__, lambda: connection.autocommit(True), lambda: connection.query('x'),
                lambda: connection.encoding, lambda: connection.literal(1), lambda: connection.cursor(pymysql.cursors.Cursor),
                lambda: cursor.execute('x'), lambda: cursor.executemany('x', [(1,)]), lambda: cursor.callproc('p'),
                cursor.fetchone, cursor.fetchmany, cursor.fetchall, cursor.nextset, lambda: cursor.scroll(0),
                lambda: cursor.mogrify('x'), lambda: list(cursor)]
        for number, use in enumerate(uses):
            with self.subTest(number), self.assertRaises(pymysql.err.InterfaceError) as caught:
                use()
            self.assertIn('returned to the pool', str(caught.exception))
        self.assertEqual(self.target.commands, written)
        self.assertFalse(connection.open)

    def test_methods_of_others(self):
        """They are C: whatever they are called on, they raise."""
        connection = self.connect()
        cursor = connection.cursor()
        for call in (lambda: fakes.Connection.query(object()), lambda: fakes.Connection.query(),
                     lambda: fakes.Connection.literal(cursor, 1), lambda: type(cursor).fetchone(),
                     lambda: fakes.Connection._result.__get__(cursor, None), lambda: connection.close(1, 2),
                     lambda: connection.close(wrong=True), lambda: connection.commit(*range(20)),
                     lambda: _dbpool.command(1), lambda: _dbpool.query().__get__(connection)('x')):
            with self.assertRaises(TypeError):
                call()
        with self.assertRaises(AttributeError):
            type(cursor).fetchone(object())
        with self.assertRaises(AttributeError):
            connection._result = None
        self.assertEqual((connection.query.__name__, cursor.fetchone.__name__), ('query', 'fetchone'))
        self.assertIn('query()', connection.query.__doc__)
        self.assertFalse(connection._busy)
        self.assertEqual(self.lease.released, [])
        connection.close()

    def test_closing_again_is_harmless(self):
        connection = self.connect()
        cursor = connection.cursor()
        connection.close()
        connection.close()
        cursor.close()
        cursor.close()
        self.assertEqual(self.lease.released, [(2, _dbpool.CLEAN)])

    def test_a_lease_that_the_broker_ended(self):
        connection = self.connect()
        self.lease.held = False
        with self.assertRaises(pymysql.err.InterfaceError):
            connection.query('x')
        self.assertEqual(self.target.commands, [])

    def test_refused_and_private_names(self):
        connection = self.connect()
        with self.assertRaises(pymysql.err.NotSupportedError):
            connection.change_user
        with self.assertRaises(AttributeError):
            connection._sock
        with self.assertRaises(AttributeError):
            connection.no_such_thing
        with self.assertRaises(AttributeError):
            connection.anything = 1


class HowItGoesBack(Case):
    def test_as_the_driver_says(self):
        for how, keep in [(_dbpool.CLEAN, True), (_dbpool.RESET, True), (_dbpool.CLEAN, False), (_dbpool.DOOM, False)]:
            with self.subTest(how=how, keep=keep):
                self.setUp()
                self.driver.verdict = (how, 3, keep)
                self.connect().close()
                self.assertEqual(self.lease.released, [(3, how)])
                self.assertEqual(self.driver.destroyed, 0 if keep else 1)
                self.assertEqual(1 in self.profile.objects, keep)

    def returned(self, how, commit, close):
        """How a lease goes back whose driver object says `how`, with reset_on_return 'commit' or not."""
        self.setUp()
        self.set_reset('commit' if commit else 'rollback')
        self.driver.verdict = (how, 3, True)
        close(self.connect())
        (_, seen), = self.lease.released
        return seen

    def test_commit_on_return(self):
        def with_error(connection):
            with self.assertRaises(KeyError), connection:
                raise KeyError

        closes = fakes.Connection.close
        for how in (_dbpool.CLEAN, _dbpool.DOOM):
            self.assertEqual(self.returned(how, True, closes), how)
        self.assertEqual(self.returned(_dbpool.RESET, True, closes), _dbpool.COMMIT)
        self.assertEqual(self.returned(_dbpool.RESET, False, closes), _dbpool.RESET)
        self.assertEqual(self.returned(_dbpool.RESET, True, lambda c: c.close(commit=False)), _dbpool.RESET)
        self.assertEqual(self.returned(_dbpool.RESET, True, lambda c: c.__exit__(None, None, None)), _dbpool.COMMIT)
        self.assertEqual(self.returned(_dbpool.RESET, True, with_error), _dbpool.RESET)
        self.assertEqual(self.returned(_dbpool.RESET, True, lambda c: c._abandon()), _dbpool.RESET)

    def set_reset(self, reset):
        self.profile.pool.policy = self.profile.pool.policy._replace(reset=reset)

    def test_calls_that_change_the_session_end_it(self):
        """Unless the session is reset as a whole; what no reset undoes ends it in any case."""
        for name, reset, how in [('select_db', 'rollback', _dbpool.DOOM), ('select_db', 'commit', _dbpool.DOOM),
                                 ('select_db', 'auto', _dbpool.FULL), ('select_db', 'full', _dbpool.FULL),
                                 ('set_server_option', 'auto', _dbpool.DOOM),
                                 ('set_server_option', 'full', _dbpool.DOOM)]:
            with self.subTest(name=name, reset=reset):
                self.setUp()
                self.set_reset(reset)
                self.driver.verdict = (_dbpool.FULL, 2, True)
                connection = self.connect()
                getattr(connection, name)('other')
                connection.close()
                self.assertEqual(self.lease.released[0][1], how)
                self.assertEqual((self.driver.before_calls, self.driver.resets), ([name], [reset]))

    def test_containers_of_the_driver_object_are_lent(self):
        connection = self.connect()
        self.assertIs(connection.encoders, self.target.encoders)
        self.assertEqual(self.driver.lent, [self.target.encoders])

    def test_what_ended_the_wait_is_raised_instead(self):
        class Killed(BaseException):
            pass

        def fail():
            raise pymysql.err.OperationalError(2013, 'lost')

        connection = self.connect()
        self.target.during = fail
        self.driver.instead = Killed()
        with self.assertRaises(Killed):
            connection.query('x')
        self.target.during = self.driver.instead = None
        connection.query('y')  # not busy any more

    def test_used_by_two(self):
        connection = self.connect()
        cursor = connection.cursor()
        seen = []

        def second():
            for use in (lambda: connection.query('y'), connection.close, lambda: cursor.execute('z')):
                try:
                    use()
                except pymysql.err.ProgrammingError as error:
                    seen.append('another greenlet or thread' in str(error))

        self.target.during = second
        connection.query('x')
        self.assertEqual(seen, [True] * 3)
        self.assertEqual(self.target.commands, ['x'])
        self.assertEqual(self.lease.released, [])


class Backstops(Case):
    def check_returned(self, how):
        self.assertEqual([how for _, how in self.lease.released], [how])
        self.assertEqual(self.target.commands, [])

    def test_dropped(self):
        connection = self.connect()
        connection.query  # used
        del connection
        self.check_returned(_dbpool.RESET)
        self.assertEqual(self.driver.destroyed, 0)

    def test_dropped_in_a_cycle(self):
        class Wrapper:
            pass

        wrapper = Wrapper()
        wrapper.self, wrapper.connection = wrapper, self.connect()
        del wrapper
        self.assertEqual(self.lease.released, [])
        gc.collect()
        self.check_returned(_dbpool.RESET)

    def test_dropped_unfit(self):
        """The driver object is not destroyed in a finaliser, but at the next check-out."""
        self.driver.verdict = (_dbpool.DOOM, 0, False)
        self.connect()
        self.check_returned(_dbpool.DOOM)
        self.assertEqual((self.driver.destroyed, self.profile.objects, self.profile.trash), (0, {}, [self.driver]))
        self.profile._empty_trash()
        self.assertEqual((self.driver.destroyed, self.profile.trash), (1, []))

    def test_end_of_a_thread(self):
        kept = []
        thread = threading.Thread(target=lambda: kept.append(self.connect()))
        thread.start()
        thread.join()
        # The thread's locals go after join() may return: another thread's start and end comes later than that.
        self.assertTrue(wait_for(lambda: self.lease.released))
        self.check_returned(_dbpool.RESET)
        with self.assertRaises(pymysql.err.InterfaceError):
            kept[0].query('x')

    def test_end_of_a_greenlet(self):
        import gevent
        kept = []

        def closes():
            other = fakes.Connection(self.profile, fakes.Lease(2), fakes.Driver(2))
            kept.append(other._lease)
            other.close()

        def forgets():
            kept.append(self.connect())

        gevent.joinall([gevent.spawn(closes), gevent.spawn(forgets)], raise_error=True)
        gevent.sleep(0)
        self.check_returned(_dbpool.RESET)
        self.assertEqual(kept[0].released, [(2, _dbpool.CLEAN)])

    def test_nothing_stays_with_a_greenlet_that_goes_on(self):
        """Closed or dropped: a greenlet that lives long does not gather what it has to do at its end."""
        import gevent
        counts = []

        class Counting(gevent.Greenlet):
            links = 0

            def rawlink(self, callback):
                self.links += 1
                super().rawlink(callback)

            def unlink(self, callback):
                self.links -= 1
                super().unlink(callback)

        def works():
            before = gevent.getcurrent().links
            for _ in range(3):
                fakes.Connection(self.profile, fakes.Lease(2), fakes.Driver(2)).close()
                fakes.Connection(self.profile, fakes.Lease(2), fakes.Driver(2))
            kept = fakes.Connection(self.profile, self.lease, self.driver)
            counts.append(gevent.getcurrent().links - before)
            kept.close()
            counts.append(gevent.getcurrent().links - before)

        greenlet = Counting(works)
        greenlet.start()
        greenlet.get()
        self.assertEqual(counts, [1, 0])

    def test_ended_by_another_greenlet(self):
        import gevent
        connection = []

        def works():
            connection.append(self.connect())
            gevent.sleep(60)

        greenlet = gevent.spawn(works)
        gevent.sleep(0)
        connection[0].close()
        greenlet.kill()
        self.check_returned(_dbpool.CLEAN)

    def test_killed_greenlet(self):
        import gevent
        kept = []

        def works():
            kept.append(self.connect())
            self.target.during = lambda: gevent.sleep(60)
            kept[0].query('x')

        greenlet = gevent.spawn(works)
        gevent.sleep(0)
        self.driver.verdict = (_dbpool.DOOM, 0, False)
        greenlet.kill()
        gevent.sleep(0)
        self.assertEqual([how for _, how in self.lease.released], [_dbpool.DOOM])


def wait_for(condition):
    for _ in range(1000):
        if condition():
            return True
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
    return False


class LetGo(Case):
    """Acquires of a process that the broker has let go of, or whose pool it has."""

    def setUp(self):
        super().setUp()
        self.said = []  # what acquire_now says, in turn
        self.registered = []
        self.answer = 0, 9, ''
        for name, value in [('acquire_now', self.acquire_now), ('Lease', fakes.Lease)]:
            patch = mock.patch.object(_dbpool, name, value)
            patch.start()
            self.addCleanup(patch.stop)
        self.pool = Pool('default', 0, Policy(5, 10, 30, 0), True, pymysql.err.OperationalError, self.register)

    def acquire_now(self, pool):
        return self.said.pop(0)(pool)

    def register(self, timeout):
        self.registered.append(timeout)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def test_it_registers_again(self):
        for code in (_dbpool.E_CLOSED, _dbpool.E_INVALID):
            with self.subTest(code=code):
                lease = fakes.Lease()
                self.pool.id = 0
                self.said = [lambda pool: code, lambda pool: lease if pool == 9 else None]
                self.assertIs(self.pool.acquire(), lease)
                self.assertEqual(len(self.registered), 1)
                self.registered.clear()

    def test_let_go_of_while_it_waits(self):
        lease = fakes.Lease()
        waits = [_dbpool.E_CLOSED, lease]
        with mock.patch.object(waiting, 'acquire', lambda pool, seconds: waits.pop(0)):
            self.said = [lambda pool: _dbpool.E_BUSY] * 2
            self.assertIs(self.pool.acquire(), lease)

    def test_not_for_ever(self):
        self.said = [lambda pool: _dbpool.E_CLOSED] * 100
        with self.assertRaises(pymysql.err.OperationalError):
            self.pool.acquire()
        self.assertLess(len(self.registered), 10)

    def test_what_is_wrong_is_said(self):
        for answer, text in (((_dbpool.E_FULL, 0, 'no process slot is free'), 'no process slot is free'),
                             ((_dbpool.E_CLOSED, 0, ''), 'does not answer'),
                             (OSError(errno.EBADF, 'Bad file descriptor'), "closed the pool's file descriptors")):
            with self.subTest(text=text):
                self.answer = answer
                self.said = [lambda pool: _dbpool.E_CLOSED]
                with self.assertRaises(pymysql.err.OperationalError) as raised:
                    self.pool.acquire()
                self.assertIn(text, str(raised.exception))


class GivenPool(Pool):
    """Whose leases the test brings."""

    __slots__ = ('leases', 'deadline')

    def acquire(self, deadline=None):
        self.deadline = deadline
        if not self.leases:
            raise self.error(_dbpool.E_TIMEOUT, 0)
        return self.leases.pop(0)

    def error(self, code, waited):
        return pymysql.err.OperationalError(0, str(code))


class CheckOut(Case):
    """The way from a lease to a driver object, with the pool and the driver replaced; not the quick one, which asks the
    broker by itself."""

    def setUp(self):
        super().setUp()
        self.made = []
        self.meanwhile = None  # what others do while a driver object is made: its session is asked of the broker
        self.configure()

    def configure(self, **policy):
        self.pool = GivenPool('default', 0, Policy(5, 10, 30, 0)._replace(**policy), True,
                              pymysql.err.OperationalError)
        self.pool.leases = []
        self.profile = Profile(self.pool, self, {}, {}, None)
        self.profile.quick = self.profile.plain = False

    # the driver module
    Connection = fakes.Connection

    def Driver(self, lease, spec, local, seconds):
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile is not None:
            meanwhile()
        driver = fakes.Driver(lease.session, lease.incarnation)
        self.made.append(driver)
        return driver

    def take(self, session, incarnation):
        lease = fakes.Lease(session, incarnation)
        self.pool.leases.append(lease)
        return self.profile.connect(), lease

    def test_one_object_per_session(self):
        for _ in range(3):
            connection, lease = self.take(1, 1)
            connection.close()
        self.assertEqual(len(self.made), 1)
        self.assertEqual(self.made[0].statuses, [2, 2, 2])
        self.assertEqual(self.pool.facts, [b'1'])

    def test_another_session_in_the_slot(self):
        self.take(1, 1)[0].close()
        self.take(1, 2)[0].close()
        self.assertEqual([driver.destroyed for driver in self.made], [1, 0])

    def test_another_session_in_the_slot_while_the_broker_is_asked(self):
        """The object of the session that is there now stays; the other one would say COM_QUIT when it is forgotten."""
        others = []
        self.meanwhile = lambda: others.append(self.take(1, 2)[0])
        with self.assertRaises(pymysql.err.OperationalError):
            self.take(1, 1)
        newer, older = self.made
        self.assertEqual((newer.incarnation, newer.destroyed), (2, 0))
        self.assertEqual((older.incarnation, older.destroyed), (1, 1))
        self.assertIs(self.profile.objects[1], newer)
        others[0].close()
        self.assertIs(self.profile.objects[1], newer)

    def test_ended_sessions_are_swept(self):
        self.take(1, 1)[0].close()
        self.made[0].ended = True
        self.take(2, 1)[0].close()
        self.assertEqual(self.made[0].destroyed, 1)
        self.assertEqual(sorted(self.profile.objects), [2])

    def test_one_that_is_leased_is_not_swept(self):
        """Its greenlet may be waiting on the fd, whose number the next session would get."""
        connection, lease = self.take(1, 1)
        self.made[0].ended = True
        self.take(2, 1)[0].close()
        self.assertEqual(self.made[0].destroyed, 0)
        connection.close()
        self.take(3, 1)[0].close()
        self.assertEqual(self.made[0].destroyed, 1)

    def test_only_so_many_objects_are_kept(self):
        """Those of the highest slots go, which are leased last, but never one that is leased."""
        self.profile.most = 3
        for session in (1, 2, 3, 4):
            self.take(session, 1)[0].close()
        self.assertEqual(sorted(self.profile.objects), [1, 2, 4])
        kept, _ = self.take(4, 1)
        self.take(5, 1)[0].close()
        self.assertEqual(sorted(self.profile.objects), [1, 4, 5])
        self.assertTrue(kept.open)
        held = [self.take(session, 1)[0] for session in (1, 5, 6, 7)]
        self.assertEqual(sorted(self.profile.objects), [1, 4, 5, 6, 7])  # all in use: as many as there are leases
        for connection in [kept] + held:
            connection.close()
        self.take(2, 1)[0].close()
        self.assertEqual(sorted(self.profile.objects), [1, 2, 4])
        self.assertEqual([driver.session for driver in self.made if driver.destroyed], [2, 3, 5, 6, 7])

    def test_no_file_descriptor_left(self):
        def refuse(*arguments):
            raise OSError(errno.EMFILE, 'Too many open files')

        self.Driver = refuse
        lease = fakes.Lease(1, 1)
        self.pool.leases.append(lease)
        with self.assertRaisesRegex(pymysql.err.OperationalError, 'RLIMIT_NOFILE'):
            self.profile.connect()
        self.assertEqual(lease.released, [(2, _dbpool.CLEAN)])

    def test_a_driver_that_cannot_be_made_gives_the_lease_back(self):
        def refuse(*arguments):
            raise pymysql.err.OperationalError(0, 'no')

        self.Driver = refuse
        with self.assertRaises(pymysql.err.OperationalError):
            lease = fakes.Lease(1, 1)
            self.pool.leases.append(lease)
            self.profile.connect()
        self.assertEqual(lease.released, [(2, _dbpool.CLEAN)])

    # ---- pre_ping ----

    def test_not_pinged_unless_asked_for(self):
        self.take(1, 1)[0].close()
        self.assertEqual(self.made[0].pings, [])
        self.assertIsNone(self.pool.deadline)

    def test_one_that_does_not_answer_is_ended_and_another_taken(self):
        self.configure(pre_ping=True)
        for session in (1, 2):
            self.take(session, 1)[0].close()
        self.made[0].answers = self.made[1].answers = False
        dead = [fakes.Lease(1, 1), fakes.Lease(2, 1)]
        self.pool.leases += dead
        connection, lease = self.take(3, 1)
        self.assertTrue(connection.open)
        self.assertEqual(connection._lease, lease)
        self.assertEqual([one.released for one in dead], [[(0, _dbpool.DOOM)]] * 2)
        self.assertEqual([driver.destroyed for driver in self.made], [1, 1, 0])
        self.assertEqual([len(driver.pings) for driver in self.made], [2, 2, 1])
        self.assertEqual(sorted(self.profile.objects), [3])

    def test_pinging_ends_with_the_timeout(self):
        self.configure(pre_ping=True, timeout=0)
        self.take(1, 1)[0].close()
        self.made[0].answers = False
        lease = fakes.Lease(1, 1)
        self.pool.leases.append(lease)
        with self.assertRaises(pymysql.err.OperationalError):
            self.profile.connect()
        self.assertEqual(lease.released, [(0, _dbpool.DOOM)])
        self.assertLessEqual(self.made[0].pings[-1], 250)

    # ---- use_threadlocal ----

    def test_the_same_connection_again(self):
        self.configure(use_threadlocal=True)
        first, lease = self.take(1, 1)
        again = self.profile.connect()
        self.assertIs(first, again)
        self.assertEqual(again.users, 2)
        again.close()
        self.assertTrue(first.open)
        self.assertEqual(lease.released, [])
        first.close()
        self.assertEqual(lease.released, [(2, _dbpool.CLEAN)])
        other, _ = self.take(1, 1)
        self.assertIsNot(other, first)
        self.assertEqual((first.users, other.users), (0, 1))

    def test_one_of_its_users_wants_no_commit(self):
        self.configure(use_threadlocal=True, reset='commit')
        first, lease = self.take(1, 1)
        self.made[0].verdict = (_dbpool.RESET, 3, True)
        self.profile.connect().close(commit=False)
        first.close()
        self.assertEqual(lease.released, [(3, _dbpool.RESET)])

    def test_each_profile_has_its_own(self):
        self.configure(use_threadlocal=True)
        first, _ = self.take(1, 1)
        self.configure(use_threadlocal=True)
        self.assertIsNot(self.take(2, 1)[0], first)

    def test_each_thread_and_greenlet_has_its_own(self):
        import gevent
        self.configure(use_threadlocal=True)
        seen = [self.take(1, 1)[0]]

        def work():
            seen.append(self.take(len(seen) + 1, 1)[0])
            self.assertIs(self.profile.connect(), seen[-1])

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        gevent.spawn(work).get()
        self.assertEqual(len({id(one) for one in seen}), 3)
        self.assertIs(self.profile.connect(), seen[0])

    def test_a_dropped_or_ended_one_is_not_given_again(self):
        self.configure(use_threadlocal=True)
        first, lease = self.take(1, 1)
        lease.held = False
        second, _ = self.take(2, 1)
        self.assertIsNot(second, first)
        del second
        self.assertEqual(self.take(3, 1)[0].users, 1)

    def test_a_checkout_that_fails_ends_the_session(self):
        self.take(1, 1)[0].close()
        self.made[0].checkout = None
        lease = fakes.Lease(1, 1)
        self.pool.leases.append(lease)
        with self.assertRaises(TypeError):
            self.profile.connect()
        self.assertEqual(lease.released, [(0, _dbpool.DOOM)])
        self.assertEqual((self.made[0].destroyed, self.profile.objects), (1, {}))


if __name__ == '__main__':
    unittest.main()
