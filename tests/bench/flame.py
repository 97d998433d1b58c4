# SPDX-License-Identifier: MIT
"""Where the processor time of a request goes: Python's stacks in a worker under load, as a flame graph and by whose code
is running. It is the limit of what any pool could save."""

from collections import Counter

from tests.bench.serving import load, server, uwsgi

SECONDS = 5
CLIENTS = 8
# By the module of the innermost function. What a C function does is its caller's.
WHOSE = (('waiting for the answer', 'dbpool.waiting'),  # any driver that lets others run meanwhile has that
         ('dbpool', 'dbpool.'), ('the driver', 'MySQLdb.'), ('Django', ('django.', 'asgiref.')), ('the view', 'views'))
REST = "gevent, uWSGI's part and the standard library"


def whose(stack):
    return next((name for name, beginning in WHOSE if stack and stack[-1].startswith(beginning)), REST)


def profile(figures, rounds):
    total, samples = Counter(), {}
    with server() as running, uwsgi(running, processes=1) as instance:
        load(instance, '/one', 1, CLIENTS)
        for _ in range(rounds):
            instance.get('/stacks', on=1)
            load(instance, '/one', SECONDS, CLIENTS)
            found = instance.get('/stacks').json()['stacks']
            of_round = Counter()
            for stack, n in found:
                total[tuple(stack)] += n
                of_round[whose(stack)] += n
            for name in of_round:
                samples.setdefault(name, []).append(100 * of_round[name] / sum(of_round.values()))
    samples = {name: values for name, values in samples.items() if len(values) == rounds}
    samples = dict(sorted(samples.items(), key=lambda item: -sum(item[1])))
    figures.table("one request, one query: processor time of the worker by whose Python code runs, its C calls included",
                  '%', samples)
    figures.flame('request', 'One request with one query: where the worker is, by processor time',
                  [[list(stack), n] for stack, n in total.items()])
