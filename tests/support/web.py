# SPDX-License-Identifier: MIT
"""A small HTTP client: one connection per request, as uWSGI's http-socket wants it, and many at a time."""

import http.client
import json
import threading
import urllib.parse


class Response:
    """status, headers (lower-case names), body; json() of the body."""

    def __init__(self, status, headers, body):
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self):
        return '<%s %r>' % (self.status, self.body[:400])

    def json(self):
        return json.loads(self.body)


def fetch(address, path, data=None, timeout=60, **parameters):
    """GET, or POST when data (sent as JSON) is given. Raises OSError or HTTPException when there is no answer."""
    if parameters:
        path += '?' + urllib.parse.urlencode(parameters)
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        if data is None:
            connection.request('GET', path)
        else:
            connection.request('POST', path, json.dumps(data), {'Content-Type': 'application/json'})
        answer = connection.getresponse()
        return Response(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def concurrently(function, arguments, threads=16):
    """[function(a) for a in arguments], by so many threads; an exception stands in its result's place."""
    results = [None] * len(arguments)
    numbers = iter(range(len(arguments)))
    lock = threading.Lock()

    def work():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                results[number] = function(arguments[number])
            except Exception as error:  # the caller judges it, in the main thread
                results[number] = error

    workers = [threading.Thread(target=work, daemon=True) for _ in range(min(threads, len(arguments)))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def in_background(function, *args, **kwargs):
    """Runs function in a thread; the returned object's result() waits and gives its value or raises its exception."""
    return _Background(function, args, kwargs)


class _Background:
    def __init__(self, function, args, kwargs):
        self._value = self._error = None

        def run():
            try:
                self._value = function(*args, **kwargs)
            except Exception as error:
                self._error = error

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def done(self):
        return not self._thread.is_alive()

    def result(self, timeout=60):
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise AssertionError('still running after %s s' % timeout)
        if self._error is not None:
            raise self._error
        return self._value
