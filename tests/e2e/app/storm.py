# SPDX-License-Identifier: MIT
"""Pages for the storms and the server's faults: leases that can tell whether each reply was theirs.

Everything that such a page writes or asks for carries the request's own nonce, through several replies of one lease. So
a reply that belongs to another request is seen in the page, and what became of a transaction is seen in the table.
"""

import os

import urls
import views
from django.conf import settings
from django.db import connection, transaction
from django.http import JsonResponse
from django.urls import path
from wsgi import application  # noqa: F401 (module = storm:application)


class Undo(Exception):
    pass


def _note(request):
    """Which process has this request, for the client whose connection breaks. One write, so lines do not mix."""
    line = '%s %d\n' % (request.GET['nonce'], os.getpid())
    fd = os.open(os.path.join(settings.GIVEN['meet'], 'notes'), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC)
    try:
        os.write(fd, line.encode())
    finally:
        os.close(fd)


def storm(request):
    """?nonce=&ids=1,2,3&how=commit|rollback|leave|timeout&pause=seconds&mark=0|1: one lease, many replies.

    Answers the rows, the session's number and what was not this request's own (crosstalk, double)."""
    _note(request)
    answer = {'nonce': request.GET['nonce'], 'rows': [], 'crosstalk': [], 'double': []}
    try:
        connection.ensure_connection()
        # Known without asking the server: an error of the first statement must say which session it was.
        answer['id'] = connection.connection.thread_id()
        with connection.cursor() as cursor:
            _lease(request.GET, cursor, answer)
    except Exception as error:
        answer.update(views._describe(error))
    return JsonResponse(views._who(**answer))


def _lease(wanted, cursor, answer):
    nonce, how = wanted['nonce'], wanted['how']
    number = 0

    def ask(sql, *args):
        """Rows without their first two columns, which are the nonce and the number of the question."""
        nonlocal number
        number += 1
        cursor.execute('SELECT %s, %s, ' + sql, [nonce, number, *args])
        rows = cursor.fetchall()
        for row in rows:
            if row[0] != nonce or int(row[1]) != number:
                answer['crosstalk'].append([number, list(map(str, row))])
        return [row[2:] for row in rows]

    def mine():
        if wanted['mark'] == '1':
            (holder, found), = ask('@holder, CONNECTION_ID()')
            if views._plain(holder) != nonce or found != answer['id']:
                answer['double'].append([views._plain(holder), found])

    if wanted['mark'] == '1':
        cursor.execute('SET @holder = %s', [nonce])
    for pk in wanted['ids'].split(','):
        answer['rows'] += [[int(i), n] for i, n in ask('id, nonce FROM nonces WHERE id = %s', int(pk))]
    mine()
    long = ask('REPEAT(%s, 20) FROM nonces WHERE id <= 40', nonce)
    if [row[0] for row in long] != [nonce * 20] * 40:
        answer['crosstalk'].append(['long', len(long)])
    if how == 'timeout':
        _timed_out(cursor, nonce)
        return
    _transaction(wanted, cursor, answer, how, nonce, ask)
    mine()
    if wanted['mark'] == '1':
        cursor.execute('SET @holder = NULL')


def _transaction(wanted, cursor, answer, how, nonce, ask):
    def write(step):
        cursor.execute('INSERT INTO storm VALUES (%s, %s)', [nonce, step])

    def steps():
        return sorted(row[0] for row in ask('step FROM storm WHERE nonce = %s', nonce))

    expected = [1, 2] if how == 'commit' else []
    if how == 'leave':  # the request ends in the middle of a transaction
        connection.set_autocommit(False)
        write(1)
        write(2)
        expected = [1, 2]
    else:
        try:
            with transaction.atomic():
                write(1)
                if steps() != [1]:
                    answer['crosstalk'].append(['steps', steps()])
                ask('SLEEP(%s)', float(wanted['pause']))
                write(2)
                if how == 'rollback':
                    raise Undo
        except Undo:
            pass
    found = steps()
    if found != expected:
        answer['crosstalk'].append(['steps', found])


def _timed_out(cursor, nonce):
    """A greenlet's time is over in the middle of a statement: its session goes, and its transaction with it."""
    import gevent
    connection.set_autocommit(False)
    cursor.execute('INSERT INTO storm VALUES (%s, 1)', [nonce])
    try:
        with gevent.Timeout(0.05):
            cursor.execute('SELECT SLEEP(20), %s', [nonce])
    except gevent.Timeout:
        connection.close()
        return
    raise AssertionError('a gevent.Timeout was lost')


def stuck(request):
    """?nonce=&s=: a statement that takes longer than harakiri allows."""
    _note(request)
    with connection.cursor() as cursor:
        cursor.execute('SELECT SLEEP(%s)', [float(request.GET['s'])])
        cursor.fetchall()
    return JsonResponse(views._who(nonce=request.GET['nonce']))


urls.urlpatterns += [path('storm', storm), path('stuck', stuck)]
