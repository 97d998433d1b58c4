# SPDX-License-Identifier: MIT
"""An ordinary Django application on the pool: right data under concurrency, transactions, streams, the cap (I3)."""

import http.client
import threading

from tests.e2e.base import ROWS, WithUwsgi, matrix
from tests.support import concurrently, in_background, wait_until


class Watch:
    """Samples the server's own list of the user's sessions until it is left; most: the longest list seen."""

    def __init__(self, count):
        self._count = count
        self._end = threading.Event()
        self.most = 0

    def __enter__(self):
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def _run(self):
        while not self._end.is_set():
            self.most = max(self.most, len(self._count()))

    def __exit__(self, *exc):
        self._end.set()
        self._thread.join()


@matrix()
class Basic(WithUwsgi):
    pool = {'pool_size': 3, 'max_overflow': 0, 'timeout': 30}

    def test_right_rows_under_concurrency(self):
        """Every reply belongs to the request that asked: id, nonce and token all match, several replies per lease."""
        wanted = [([(7 * n + k) % ROWS + 1 for k in range(6)], 'token-%d' % n) for n in range(150)]

        def ask(one):
            ids, token = one
            return self.uwsgi.get('/rows', ids=','.join(map(str, ids)), token=token)

        with Watch(self.sessions) as watch:
            answers = concurrently(ask, wanted, 12)
        for (ids, token), answer in zip(wanted, answers):
            self.assertEqual(getattr(answer, 'status', answer), 200, answer)
            self.assertEqual(answer.json()['rows'], [[pk, self.nonces[pk], token] for pk in ids])
        self.assertGreater(watch.most, 0)
        self.assertLessEqual(watch.most, 3, 'the cap, by the server\'s own list')

    def test_result_of_many_packets(self):
        answers = concurrently(lambda n: self.uwsgi.get('/many', first=1, last=ROWS), range(12), 6)
        for answer in answers:
            self.assertEqual(getattr(answer, 'status', answer), 200, answer)
            self.assertEqual(answer.json()['rows'], [[pk, nonce, True] for pk, nonce in self.nonces.items()])

    def test_transaction_commits(self):
        before = self.counter()
        answers = concurrently(lambda n: self.sql('UPDATE counters SET n = n + 1 WHERE id = 1', atomic=True),
                               range(40), 8)
        self.assertEqual([a for a in answers if isinstance(a, Exception) or 'error' in a], [])
        self.assertEqual(self.counter(), before + 40)

    def test_exception_in_transaction_rolls_back(self):
        before = self.counter()
        for _ in range(4):
            self.assertEqual(self.uwsgi.get('/atomic_raise').status, 500)
        self.whole(self.uwsgi)
        self.assertEqual(self.counter(), before)
        self.assertEqual(self.server.query('SELECT COUNT(*) FROM information_schema.innodb_trx')[0][0], 0)

    def test_connection_created_comes_with_each_lease(self):
        self.assertEqual(self.uwsgi.get('/monitors').json()['seen'], ['default', 'default'])

    def test_streaming_response_keeps_its_session(self):
        name = self.new_name()
        stream = in_background(self.uwsgi.get, '/stream', n=20, meet=name)
        self.here(name)
        wait_until(lambda: self.uwsgi.metric('dbpool.default.leased') == 1, 30, 'the stream holds a lease')
        self.go(name)
        lines = [line.split() for line in stream.result().body.decode().splitlines()]
        self.assertEqual([nonce for nonce, _ in lines], [self.nonces[pk] for pk in range(1, 21)])
        self.assertEqual(len({pk for _, pk in lines}), 1, 'one session for the whole stream')

    def test_stream_whose_client_goes_away(self):
        name = self.new_name()
        client = http.client.HTTPConnection(*self.uwsgi.address, timeout=30)
        client.request('GET', '/stream?n=400&meet=' + name)
        self.here(name)
        client.sock.close()
        client.close()
        self.go(name)
        self.whole(self.uwsgi)

    def test_used_after_its_return(self):
        """I7: InterfaceError, and nothing reaches the server."""
        self.uwsgi.get('/ping')
        outcomes = self.uwsgi.get('/kept').json()['outcomes']
        self.assertEqual(set(outcomes.values()), {'InterfaceError'}, outcomes)
        questions = self.server.questions()
        self.uwsgi.get('/kept')
        self.assertEqual(self.server.questions() - questions, 1, 'only the query before the return')
