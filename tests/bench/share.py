# SPDX-License-Identifier: MIT
"""What part of a request with one query is the pool's: a clock around what Django calls of the backend (app/timed),
and the worker's processor time per request, beside the ceiling's, the stock backend's and that of a view without a
query."""

from tests.bench.serving import begun_in_turn, cpu_seconds, load, server, uwsgi

SECONDS = 2
CLIENTS = 8
CEILING, POOL, NO_QUERY = 'ceiling (cooperative)', 'dbpool', 'no query'
ENGINES = {POOL: 'timed', CEILING: 'kept_cooperative', 'stock, mysqlclient': 'django.db.backends.mysql'}


def _cpu_us(instance, path):
    """Of the worker, per request."""
    (pid,) = instance.worker_pids().values()
    before = cpu_seconds(pid)
    requests = load(instance, path, SECONDS, CLIENTS) * SECONDS
    return (cpu_seconds(pid) - before) / requests * 1e6


def share(figures, rounds):
    counted = []

    def pool(instance):
        instance.get('/clock')
        cpu = _cpu_us(instance, '/one')
        counted.append(instance.get('/clock').json()['us'])
        return cpu

    with server() as running:
        def begin(engine):
            return lambda: uwsgi(running, engine, processes=1)

        samples = begun_in_turn(rounds, {
            POOL: (begin(ENGINES[POOL]), pool),
            **{name: (begin(engine), lambda one: _cpu_us(one, '/one')) for name, engine in ENGINES.items() if name != POOL},
            NO_QUERY: (begin(ENGINES[CEILING]), lambda one: _cpu_us(one, '/ping'))})
    ours = counted[1::2]  # without the warm-ups
    samples['of dbpool: connecting and closing, by the clock'] = ours
    figures.table('one request, one query: processor time of the worker', 'us', samples, POOL)
    difference = sorted(100 * (a - b) / a for a, b in zip(samples[POOL], samples[CEILING]))[rounds // 2]
    figures.reach('share', [100 * part / cpu for part, cpu in zip(ours, samples[POOL])],
                  'against the ceiling, proxies of connection and cursor included: %.1f %%' % difference)
