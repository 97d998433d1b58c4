# SPDX-License-Identifier: MIT
"""Ordinary Django views: nothing in here knows of a pool."""

from django.db import connection, transaction
from django.db.models import F
from django.http import HttpResponse, JsonResponse
from django.shortcuts import get_object_or_404, render

from catalogue.models import Order, Product

INDEX = """<!doctype html><title>dbpool demo</title><h1>dbpool demo shop</h1><ul>
<li><a href="/products/">/products/</a> a page of twenty products
<li><a href="/products/1/">/products/1/</a> one product: one query
<li><a href="/products/1/visit/">/products/1/visit/</a> one write
<li><a href="/products/1/buy/">/products/1/buy/</a> a transaction: lock, change, insert
<li><a href="/slow/">/slow/</a> a query of 20 ms
<li><a href="/who/">/who/</a> which worker, which server session: reload it a few times
<li><a href="/about/">/about/</a> no database at all</ul>"""


def worker_id():
    try:
        import uwsgi
    except ImportError:
        return 0
    return uwsgi.worker_id()


def index(request):
    return HttpResponse(INDEX)


def about(request):
    return JsonResponse({'worker': worker_id()})


def products(request):
    return render(request, 'products.html', {'products': Product.objects.order_by('pk')[:20]})


def product(request, pk):
    found = get_object_or_404(Product, pk=pk)
    return JsonResponse({'name': found.name, 'price_cents': found.price_cents, 'stock': found.stock})


def visit(request, pk):
    return JsonResponse({'changed': Product.objects.filter(pk=pk).update(visits=F('visits') + 1)})


def buy(request, pk):
    with transaction.atomic():
        wanted = get_object_or_404(Product.objects.select_for_update(), pk=pk)
        Product.objects.filter(pk=pk).update(stock=wanted.stock - 1)
        order = Order.objects.create(product=wanted, quantity=1)
    return JsonResponse({'order': order.pk})


def slow(request):
    with connection.cursor() as cursor:
        cursor.execute('SELECT SLEEP(0.02)')
        cursor.fetchall()
    return JsonResponse({'slept': 0.02})


def who(request):
    with connection.cursor() as cursor:
        cursor.execute('SELECT CONNECTION_ID()')
        session, = cursor.fetchone()
    return JsonResponse({'worker': worker_id(), 'session': session})
