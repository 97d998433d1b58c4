# SPDX-License-Identifier: MIT
"""Samples of what the worker's processor does: Python's stack, each few milliseconds of processor time (the kernel's
tick is 4). What C code and the kernel do for a Python function counts as that function's."""

import signal
from collections import Counter

from django.http import JsonResponse

EVERY = 0.001  # seconds of processor time; the kernel rounds it up

_taken = Counter()
_names = {}  # code -> 'module:function'


def _take(number, frame):
    stack = []
    while frame is not None:
        code = frame.f_code
        if code not in _names:
            _names[code] = '%s:%s' % (frame.f_globals.get('__name__'), code.co_name)
        stack.append(_names[code])
        frame = frame.f_back
    _taken[tuple(reversed(stack))] += 1


def stacks(request):
    """?on=1: begins. Else ends, and answers [[stack, samples], ...]."""
    if 'on' in request.GET:
        signal.signal(signal.SIGPROF, _take)
        signal.setitimer(signal.ITIMER_PROF, EVERY, EVERY)
        return JsonResponse({})
    signal.setitimer(signal.ITIMER_PROF, 0)
    found = [[list(stack), n] for stack, n in _taken.items()]
    _taken.clear()
    return JsonResponse({'stacks': found})
