# SPDX-License-Identifier: MIT
"""The pages that the end-to-end tests ask for. They only do what an application may do; the tests judge.

Waiting for a test is done by files in the directory DBPOOL_TEST names: a page says "I am there" by making NAME.here and
waits for NAME.go, so that no test depends on time.
"""

import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time

from django.conf import settings
from django.db import connection, connections, transaction
from django.http import JsonResponse, StreamingHttpResponse

try:
    import uwsgi
except ImportError:  # manage.py
    uwsgi = None

IMPORTED = {}
KEPT = {}


def _who(**more):
    return dict(more, worker=uwsgi.worker_id(), pid=os.getpid())


def _connection_id(alias='default'):
    with connections[alias].cursor() as cursor:
        cursor.execute('SELECT CONNECTION_ID()')
        return cursor.fetchone()[0]


def _arrive(name):
    base = os.path.join(settings.GIVEN['meet'], name)
    with open(base + '.new', 'w') as f:
        f.write(str(uwsgi.worker_id()))
    os.rename(base + '.new', base + '.here')
    return base


def _meet(name):
    """Tells the test that this page is here and waits until the test lets it go on."""
    base = _arrive(name)
    while not os.path.exists(base + '.go'):
        time.sleep(0.01)


def at_import():
    IMPORTED.update(id=_connection_id(), pid=os.getpid())


def ping(request):
    return JsonResponse(_who())


def busy(request):
    """?meet=: takes a worker's time, without database."""
    _meet(request.GET['meet'])
    return JsonResponse(_who())


def gate(request):
    """A query that waits in the server while the test keeps the gate closed."""
    with connection.cursor() as cursor:
        cursor.execute('SELECT COUNT(*), CONNECTION_ID() FROM gate')
        _, found = cursor.fetchone()
    return JsonResponse(_who(id=found))


def leases(request):
    """?n=: so many leases one after the other, a query in each."""
    ids = set()
    for _ in range(int(request.GET['n'])):
        ids.add(_connection_id())
        connection.close()
    return JsonResponse(_who(ids=sorted(ids)))


def leases_after(request):
    """The same once the test says go."""
    _meet(request.GET['meet'])
    return leases(request)


def metric(request):
    """What uWSGI says to the application itself, in this worker."""
    return JsonResponse(_who(value=uwsgi.metric_get(request.GET['name'])))


def imported(request):
    return JsonResponse(_who(imported=IMPORTED, id=_connection_id()))


def rows(request):
    """?ids=1,2,3&token=...: each id's nonce, by one query each, with the token that came along."""
    found = []
    for pk in request.GET['ids'].split(','):
        with connection.cursor() as cursor:
            cursor.execute('SELECT id, nonce, %s FROM nonces WHERE id = %s', [request.GET['token'], int(pk)])
            found.append(cursor.fetchone())
    return JsonResponse(_who(rows=found, id=_connection_id()))


def arrived(request):
    """Tells the test that it is here, and goes on to its query: nothing else of a gevent worker runs in between."""
    _arrive(request.GET['meet'])
    try:
        return JsonResponse(_who(id=_connection_id(request.GET.get('alias', 'default'))))
    except Exception as error:
        return JsonResponse(_who(**_describe(error)))


def many(request):
    """?first=&last=: a result set of many packets."""
    with connection.cursor() as cursor:
        cursor.execute('SELECT id, nonce, REPEAT(nonce, 200) FROM nonces WHERE id BETWEEN %s AND %s ORDER BY id',
                       [int(request.GET['first']), int(request.GET['last'])])
        found = [(pk, nonce, long == nonce * 200) for pk, nonce, long in cursor.fetchall()]
    return JsonResponse(_who(rows=found))


def tenant(request):
    """?name=: from now on the default alias is another database."""
    connection.close()
    connection.settings_dict['NAME'] = request.GET['name']
    with connection.cursor() as cursor:
        cursor.execute('SELECT DATABASE(), id FROM here')
        database, number = cursor.fetchone()
    return JsonResponse(_who(database=database, number=number, fds=len(os.listdir('/proc/self/fd'))))


def sql(request):
    """POST {"statements": [...], "alias": ..., "atomic": bool, "meet": name, "harakiri": seconds}: each statement's rows.

    meet waits between the last statement and the end of the lease. An exception is reported, not raised.
    """
    wanted = json.loads(request.body)
    if wanted.get('harakiri'):
        uwsgi.set_user_harakiri(wanted['harakiri'])
    alias = wanted.get('alias', 'default')
    answer = {'results': []}
    try:
        if wanted.get('atomic'):
            with transaction.atomic(using=alias):
                _execute(alias, wanted, answer)
        else:
            _execute(alias, wanted, answer)
    except Exception as error:
        answer.update(_describe(error))
    return JsonResponse(_who(**answer))


def _execute(alias, wanted, answer):
    for statement in wanted['statements']:
        with connections[alias].cursor() as cursor:
            cursor.execute(statement)
            answer['results'].append([[_plain(value) for value in row] for row in cursor.fetchall()]
                                     if cursor.description else cursor.rowcount)
    if wanted.get('id', True):
        answer['id'] = _connection_id(alias)
    if wanted.get('meet'):
        _meet(wanted['meet'])


def _plain(value):
    return value.decode('latin-1') if isinstance(value, bytes) else value if value is None else str(value) \
        if not isinstance(value, (int, str)) else value


def _describe(error):
    cause = error.__cause__
    return {'error': type(error).__name__, 'module': type(error).__module__, 'text': str(error),
            'code': error.args[0] if error.args else None,
            'cause': cause and '%s.%s' % (type(cause).__module__, type(cause).__name__)}


def sleep(request):
    with connection.cursor() as cursor:
        cursor.execute('SELECT SLEEP(%s), CONNECTION_ID()', [float(request.GET['s'])])
        slept, found = cursor.fetchone()
    return JsonResponse(_who(slept=slept, id=found))


def autocommit_off(request):
    """Leaves the lease with autocommit off and a change that nobody committed."""
    connection.set_autocommit(False)
    with connection.cursor() as cursor:
        cursor.execute('UPDATE counters SET n = n + 1 WHERE id = 1')
    return JsonResponse(_who(id=_connection_id()))


def autocommit_seen(request):
    """What the server and the driver object each say of autocommit."""
    with connection.cursor() as cursor:
        cursor.execute('SELECT @@autocommit, CONNECTION_ID()')
        server, found = cursor.fetchone()
    return JsonResponse(_who(server=server, driver=bool(connection.connection.get_autocommit()), id=found))


def escaped(request):
    """What a quote and a backslash look like to the server after the driver has escaped them."""
    wanted = "it's a \\ \\' \" trap"
    with connection.cursor() as cursor:
        cursor.execute('SELECT %s, @@sql_mode, CONNECTION_ID()', [wanted])
        seen, mode, found = cursor.fetchone()
    return JsonResponse(_who(same=seen == wanted, seen=seen, mode=mode, id=found))


def atomic_raise(request):
    """A change and an exception inside a transaction: a 500 to the client, nothing at the server."""
    with transaction.atomic():
        with connection.cursor() as cursor:
            cursor.execute('UPDATE counters SET n = n + 1 WHERE id = 1')
        raise RuntimeError('on purpose')


def stream(request):
    """?n=&meet=: n rows, a query each, while the response is being sent."""
    def produce():
        for number in range(int(request.GET['n'])):
            with connection.cursor() as cursor:
                cursor.execute('SELECT nonce, CONNECTION_ID() FROM nonces WHERE id = %s', [number + 1])
                yield '%s %d\n' % cursor.fetchone()
            if number == 0 and 'meet' in request.GET:
                _meet(request.GET['meet'])
    return StreamingHttpResponse(produce())


def leak(request):
    """?n=: n greenlets or threads (what threading gives) that query, never close, and end."""
    ids = []

    def work():
        ids.append(_connection_id())

    workers = [threading.Thread(target=work) for _ in range(int(request.GET['n']))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return JsonResponse(_who(ids=ids))


def kept(request):
    """Uses a cursor and a driver connection after their lease was returned."""
    cursor = connection.cursor()
    cursor.execute('SELECT CONNECTION_ID()')
    cursor.fetchall()
    raw = connection.connection
    raw_cursor = raw.cursor()
    connection.close()
    outcomes = {}
    for name, attempt in [('django cursor', lambda: cursor.execute('SELECT 1')),
                          ('driver cursor', lambda: raw_cursor.execute('SELECT 1')),
                          ('driver commit', lambda: raw.commit()),
                          ('driver cursor()', lambda: raw.cursor().execute('SELECT 1')),
                          ('driver ping', lambda: raw.ping())]:
        try:
            attempt()
            outcomes[name] = 'no error'
        except Exception as error:
            outcomes[name] = type(error).__name__
    return JsonResponse(_who(outcomes=outcomes))


def unread(request):
    """Returns a lease whose driver still has rows to read."""
    _connection_id()
    raw = connection.connection
    found = _connection_id()
    cursor = raw.cursor(_unbuffered())
    cursor.execute('SELECT id, REPEAT(nonce, 1000) FROM nonces')
    cursor.fetchone()
    KEPT['unread'] = cursor
    return JsonResponse(_who(id=found))


def _unbuffered():
    import MySQLdb
    return MySQLdb.cursors.SSCursor


def hold(request):
    """?meet=: leases a session and keeps it until the test says go."""
    found = _connection_id()
    _meet(request.GET['meet'])
    return JsonResponse(_who(id=found))


def late(request):
    """?meet=: asks the database only when the test says go."""
    _meet(request.GET['meet'])
    return JsonResponse(_who(id=_connection_id()))


def strangers(request):
    """After a query: of the files that files.py has opened, those that are others now."""
    import files

    found = _connection_id()
    return JsonResponse(_who(id=found, opened=len(files.OPENED), strangers=files.strangers()))


def background(request):
    """POST {"to": "mule" | "spooler", "statement": ..., "name": ...}: work for files.py there."""
    wanted = json.loads(request.body)
    work = json.dumps({name: wanted[name] for name in ('statement', 'name')})
    if wanted['to'] == 'mule':
        uwsgi.mule_msg(work)
    else:
        uwsgi.spool({b'work': work.encode()})
    return JsonResponse(_who())


def die(request):
    """?how=kill|segv|exit&only=&meet=: leases, waits, and takes the whole process along if it is worker `only`."""
    if uwsgi.worker_id() != int(request.GET['only']):
        _meet(request.GET['meet'])
        return JsonResponse(_who())
    with connection.cursor() as cursor:
        cursor.execute('SELECT GET_LOCK(%s, 0)', ['held by the dead'])
        cursor.fetchall()
    _meet(request.GET['meet'])
    how = request.GET['how']
    if how == 'exit':
        os._exit(1)
    os.kill(os.getpid(), signal.SIGSEGV if how == 'segv' else signal.SIGKILL)
    while True:  # another thread may be the one that the signal reaches
        time.sleep(1)


def child(request):
    """?how=fork|subprocess: the fds that a child of a worker with a lease has, and that the lease still works."""
    before = _connection_id()
    if request.GET['how'] == 'fork':
        # The plain fork: gevent's own restarts its hub in the child, which is not what is looked at here.
        monkey = sys.modules.get('gevent.monkey')
        fork, waitpid = ((monkey.get_original('os', 'fork'), monkey.get_original('os', 'waitpid')) if monkey else
                         (os.fork, os.waitpid))
        reader, writer = os.pipe()
        pid = fork()
        if pid == 0:
            try:
                os.write(writer, json.dumps(_sockets()).encode())
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader) as f:
            sockets = json.loads(f.read())
        waitpid(pid, 0)
    else:
        source = 'import json, os\n%s\nprint(json.dumps(_sockets()))' % inspect.getsource(_sockets)
        sockets = json.loads(subprocess.run([settings.GIVEN['python'], '-c', source], stdout=subprocess.PIPE,
                                            close_fds=False, check=True).stdout)
    return JsonResponse(_who(before=before, after=_connection_id(), sockets=sockets))


def _sockets():
    found = []
    for name in os.listdir('/proc/self/fd'):
        try:
            target = os.readlink('/proc/self/fd/' + name)
        except OSError:
            continue
        if target.startswith('socket:'):
            found.append(target)
    return found


def monitors(request):
    """How often connection_created came within one request that leases twice."""
    from django.db.backends.signals import connection_created
    seen = []

    def note(sender, connection, **kwargs):
        seen.append(connection.alias)

    connection_created.connect(note)
    try:
        _connection_id()
        _connection_id()
        connection.close()
        _connection_id()
    finally:
        connection_created.disconnect(note)
    return JsonResponse(_who(seen=seen))


def alarmed(request):
    """Whether a signal's handler runs while a query waits: an exception from it must end the wait.

    The query is much longer than the test's patience, so a handler that runs only after it fails the test.
    """
    class Alarmed(Exception):
        pass

    def handler(signum, frame):
        raise Alarmed

    found = _connection_id()
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with connection.cursor() as cursor:
            cursor.execute('SELECT SLEEP(300)')
            outcome = 'no error'
    except Alarmed:
        outcome = 'Alarmed'
    except Exception as error:
        outcome = type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return JsonResponse(_who(id=found, outcome=outcome))


def gevent_timeout(request):
    """The same with gevent.Timeout thrown into the waiting greenlet."""
    import gevent
    found = _connection_id()
    try:
        with gevent.Timeout(0.3):
            with connection.cursor() as cursor:
                cursor.execute('SELECT SLEEP(300)')
            outcome = 'no error'
    except gevent.Timeout:
        outcome = 'Timeout'
    except Exception as error:
        outcome = type(error).__name__
    return JsonResponse(_who(id=found, outcome=outcome))


def in_vain(request):
    """?statement=&s=: a statement for which gevent.Timeout comes too early."""
    import gevent
    outcome = 'no error'
    try:
        with gevent.Timeout(float(request.GET['s'])), connection.cursor() as cursor:
            cursor.execute(request.GET['statement'])
    except gevent.Timeout:
        outcome = 'Timeout'
    connection.close()
    return JsonResponse(_who(outcome=outcome))


def shared_object(request):
    """Two greenlets or threads on one driver connection at the same time."""
    _connection_id()
    raw = connection.connection
    outcomes = []

    def slow():
        try:
            cursor = raw.cursor()
            cursor.execute('SELECT SLEEP(1)')
            outcomes.append('first: ok')
        except Exception as error:
            outcomes.append('first: ' + type(error).__name__)

    first = threading.Thread(target=slow)
    first.start()
    time.sleep(0.2)
    try:
        raw.cursor().execute('SELECT 1')
        outcomes.append('second: ok')
    except Exception as error:
        outcomes.append('second: ' + type(error).__name__)
    first.join()
    return JsonResponse(_who(outcomes=sorted(outcomes)))


def versions(request):
    import MySQLdb
    return JsonResponse(_who(python=sys.version, driver=MySQLdb.__name__, file=MySQLdb.__file__))


# ---- isolation (test_isolation.py) ----


def _raw():
    connection.ensure_connection()
    return connection.connection


def leave(request):
    """POST {"steps": [[verb, ...], ...]}: does them with one lease and leaves all as it is then."""
    raw = _raw()
    found = raw.thread_id()
    cursors = KEPT.setdefault('cursors', [])
    outcomes = []
    for verb, *args in json.loads(request.body)['steps']:
        cursor = raw.cursor(_unbuffered() if verb in ('unbuffered', 'row by row') else None)
        cursors.append(cursor)  # nothing is tidied up by being dropped
        try:
            if verb == 'call':
                outcomes.append(repr(getattr(raw, args[0])(*args[1:])))
            elif verb == 'charset':
                getattr(raw, 'set_charset' if hasattr(raw, 'set_charset') else 'set_character_set')(*args)
            elif verb == 'encoder':
                raw.encoders[complex] = str
            elif verb == 'callproc':
                cursor.callproc(*args)
            elif verb == 'result':
                # mysqlclient's own result object, whose methods the connection does not see.
                raw.query(*args)
                result = raw.use_result()
                try:
                    while result.fetch_row(1):
                        pass
                except Exception as error:
                    outcomes.append(_describe(error))
            else:
                sql, *parameters = args
                cursor.execute(sql, *parameters)
                if verb == 'unbuffered':
                    cursor.fetchone()
                elif verb == 'row by row':
                    cursor.fetchall()
                elif verb == 'sql':
                    cursor.fetchall()
                    while cursor.nextset():
                        cursor.fetchall()
                outcomes.append('ok')
        except Exception as error:
            outcomes.append(_describe(error))
    del cursors[:-20]
    return JsonResponse(_who(id=found, outcomes=outcomes))


# The first one writes: SET TRANSACTION is for the next statement only.
_PORTRAIT = [
    'DELETE FROM leaks WHERE id = -1', 'SELECT COUNT(*) FROM nonces', 'SELECT COUNT(*) FROM leak_temporary',
    'HANDLER leaks READ FIRST', 'EXECUTE leak_prepared', "SELECT IS_USED_LOCK('leak')", 'SELECT @@in_transaction',
    "SELECT DATABASE(), CURRENT_ROLE(), @leak, @leak2, @init_leak, COLLATION(_utf8mb4'x')", 'SELECT n FROM leaks ORDER BY n, id',
]
_VOLATILE = {'rand_seed1', 'rand_seed2', 'timestamp', 'pseudo_thread_id', 'last_insert_id', 'insert_id', 'identity',
             'error_count', 'warning_count', 'in_transaction'}


def portrait(request):
    """All that a lease can see of its session and of its driver object, the session's number aside."""
    raw = _raw()
    seen = {}
    for sql in _PORTRAIT:
        cursor = raw.cursor()
        try:
            cursor.execute(sql)
            seen[sql] = [[_plain(value) for value in row] for row in cursor.fetchall()]
        except Exception as error:
            seen[sql] = error.args[0] if error.args else repr(error)
    cursor = raw.cursor()
    cursor.execute('SHOW SESSION VARIABLES')
    variables = {name: value for name, value in cursor.fetchall()
                 if name not in _VOLATILE and not name.startswith('gtid')}
    trap = "it's a \\ \\' \" trap \u20ac"
    cursor.execute('SELECT %s, CONNECTION_ID()', [trap])
    came, number = cursor.fetchone()
    driver = {'autocommit': bool(raw.get_autocommit()), 'encoding': raw.encoding, 'charset': raw.character_set_name(),
              'thread': raw.thread_id() == number, 'trap': came == trap, 'encoders': sorted(map(str, raw.encoders))}
    return JsonResponse(_who(id=number, seen=seen, variables=variables, driver=driver))


def django_work(request):
    """What a request of an ordinary application does: reads, writes, transactions, savepoints, a lock on a row."""
    for commit in (True, False):
        with connection.cursor() as cursor:
            cursor.execute('SELECT n FROM counters WHERE id = %s', [2])
            cursor.fetchone()
            cursor.execute("INSERT INTO leaks (n, text) VALUES (%s, %s)", [0, "it's; @a := 1 -- GET_LOCK('x')"])
        with transaction.atomic():
            with connection.cursor() as cursor:
                cursor.execute('SELECT n FROM counters WHERE id = %s FOR UPDATE', [2])
                cursor.fetchone()
            with transaction.atomic():
                with connection.cursor() as cursor:
                    cursor.execute('DELETE FROM leaks WHERE n = %s', [0])
            if not commit:
                transaction.set_rollback(True)
        connection.set_autocommit(False)
        connection.rollback()
        connection.set_autocommit(True)
        with connection.cursor() as cursor:
            cursor.executemany('INSERT INTO leaks (n) VALUES (%s)', [(0,), (0,)])
            cursor.execute('DELETE FROM leaks WHERE n = 0')
    connection.close()
    return JsonResponse(_who())


# ---- exceptions at any moment (test_moments.py) ----


class Alarmed(Exception):
    pass


def _load(arm, outcome):
    """LOAD DATA LOCAL of more than the server will take now."""
    disarm = None
    try:
        with connection.cursor() as cursor:
            disarm = arm()
            cursor.execute('LOAD DATA LOCAL INFILE %s INTO TABLE held', [settings.GIVEN['load']])
            disarm()
        outcome.append('finished')
    except BaseException as error:
        if disarm is not None:
            disarm()
        outcome.append(type(error).__name__)
        if type(error).__name__ == 'GreenletExit':
            raise
    finally:
        connection.close()


def _long_work(arm, outcome):
    """A transaction with a row lock, then a query that sends much, waits and reads much; arm() is called before it."""
    disarm = None
    try:
        with connection.cursor() as cursor:
            cursor.execute('BEGIN')
            cursor.execute('UPDATE counters SET n = n + 1 WHERE id = 1')
            text = 'x' * 2000000
            disarm = arm()
            cursor.execute("SELECT LENGTH(%s), SLEEP(0.02), REPEAT('y', 6000000)", [text])
            cursor.fetchall()
            disarm()
        outcome.append('finished')
    except BaseException as error:
        if disarm is not None:
            disarm()
        outcome.append(type(error).__name__)
        if not isinstance(error, Exception) and type(error).__name__ == 'GreenletExit':
            raise
    finally:
        connection.close()


def _by_signal(error, delay, work=_long_work):
    armed = []

    def handler(signum, frame):
        if armed:
            armed.clear()
            raise error

    def arm():
        armed.append(True)
        signal.setitimer(signal.ITIMER_REAL, delay)
        return armed.clear

    outcome = []
    before = signal.signal(signal.SIGALRM, handler)
    try:
        work(arm, outcome)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return outcome


def _by_timeout(error, delay, work=_long_work):
    import gevent
    timeout, outcome = gevent.Timeout(delay), []

    def arm():
        timeout.start()
        return timeout.close

    work(arm, outcome)
    return outcome


def _by_kill(error, delay, work=_long_work):
    import gevent
    armed, outcome = gevent.event.Event(), []

    def arm():
        armed.set()
        return lambda: None

    greenlet = gevent.spawn(work, arm, outcome)
    armed.wait()
    gevent.sleep(delay)
    greenlet.kill()
    return outcome


_HOWS = {'alarm': (_by_signal, Alarmed), 'interrupt': (_by_signal, KeyboardInterrupt),
         'timeout': (_by_timeout, None), 'kill': (_by_kill, None)}


def load(request):
    """?how=: the exception while LOAD DATA LOCAL can send no more, for as long as the test likes."""
    how, error = _HOWS[request.GET['how']]
    return JsonResponse(_who(outcome=how(error, 1.0, _load)))


def moments(request):
    """?how=&steps=&until=: the exception after each of so many delays; what came out of the query each time."""
    how, error = _HOWS[request.GET['how']]
    steps, until = int(request.GET['steps']), float(request.GET['until'])
    began = time.monotonic()
    outcomes = [how(error, 1e-5 + until * step / steps) for step in range(steps)]
    return JsonResponse(_who(outcomes=outcomes, seconds=time.monotonic() - began))


# ---- what was kept past the return (test_kept.py) ----


def _attempts(raw, cursor, unbuffered, iterators):
    for name in ('execute', 'executemany', 'callproc', 'fetchone', 'fetchmany', 'fetchall', 'nextset', '__enter__',
                 '__iter__', 'scroll', 'mogrify'):
        arguments = {'execute': ["INSERT INTO counters VALUES (7, 7)"], 'callproc': ['kept'], 'scroll': [0],
                     'executemany': ['INSERT INTO counters (id, n) VALUES (%s, 7)', [(8,), (9,)]],
                     'mogrify': ['SELECT 1']}.get(name, [])
        for kind, one in (('cursor', cursor), ('unbuffered', unbuffered)):
            if hasattr(one, name):
                yield '%s.%s' % (kind, name), lambda one=one, name=name, arguments=arguments: getattr(one, name)(*arguments)
    for number, iterator in enumerate(iterators):
        yield 'iterator %d' % number, lambda iterator=iterator: next(iterator)
    for name, arguments in [('commit', []), ('rollback', []), ('ping', []), ('cursor', []), ('autocommit', [False]),
                            ('select_db', ['mysql']), ('__enter__', []), ('show_warnings', []), ('begin', []),
                            ('query', ['INSERT INTO counters VALUES (10, 7)']), ('escape_string', ['x']),
                            ('get_autocommit', []), ('thread_id', []), ('literal', ['x']), ('kill', [1])]:
        yield 'connection.%s' % name, lambda name=name, arguments=arguments: getattr(raw, name)(*arguments)


def grown(request):
    """?bytes=: is the driver object the same again after a row of so many?"""
    driver = _raw()._driver
    with connection.cursor() as cursor:
        cursor.execute("SELECT REPEAT('x', %s)", [int(request.GET['bytes'])])
        cursor.fetchall()
    connection.close()
    return JsonResponse({'same': _raw()._driver is driver})


def kept_again(request):
    """?how=: what was kept of one lease is used while this very process has the same session again."""
    raw = _raw()
    first = raw.thread_id()
    cursor = raw.cursor()
    cursor.execute('SELECT id, nonce FROM nonces ORDER BY id LIMIT 5')
    unbuffered = raw.cursor(_unbuffered())
    unbuffered.execute('SELECT id, nonce FROM nonces ORDER BY id LIMIT 5')
    unbuffered.fetchall()
    iterators = [iter(cursor), iter(unbuffered)]
    next(iterators[0])
    outcomes = {}
    if request.GET['how'] == 'raw':
        raw.close()
        connection.connection = None
    elif request.GET['how'] == 'with':
        with raw:
            pass
        connection.connection = None
    else:
        connection.close()
    again = _raw()
    with connection.cursor() as inner:
        inner.execute('SELECT n FROM counters WHERE id = 2')
        for name, attempt in _attempts(raw, cursor, unbuffered, iterators):
            try:
                attempt()
                outcomes[name] = 'no error'
            except Exception as error:
                outcomes[name] = type(error).__name__
        harmless = []
        for close in (raw.close, raw.close, cursor.close, cursor.close, unbuffered.close, unbuffered.close):
            try:
                close()
            except Exception as error:
                harmless.append(type(error).__name__)
        found = inner.fetchall()
    mine = again.cursor()
    mine.execute('SELECT CONNECTION_ID(), @@autocommit, @@in_transaction')
    return JsonResponse(_who(first=first, second=again.thread_id(), outcomes=outcomes, harmless=harmless, found=found,
                             seen=mine.fetchone()))
