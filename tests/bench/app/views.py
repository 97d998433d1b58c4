# SPDX-License-Identifier: MIT
"""The pages that are asked for many at a time: what an application does."""

from django.db import connection
from django.http import JsonResponse
from django.urls import path

import pools
import probes
import stacks


def ping(request):
    return JsonResponse({})


def one(request):
    with connection.cursor() as cursor:
        cursor.execute('SELECT name FROM item WHERE id = %s', [7])
        return JsonResponse({'name': cursor.fetchone()[0]})


def slow(request):
    with connection.cursor() as cursor:
        cursor.execute('SELECT SLEEP(0.02)')
        cursor.fetchone()
    return JsonResponse({})


urlpatterns = [path('ping', ping), path('one', one), path('slow', slow), path('hold', pools.hold), path('stacks', stacks.stacks),
               *(path(name, view) for name, view in probes.VIEWS.items())]
