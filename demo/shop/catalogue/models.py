# SPDX-License-Identifier: MIT
"""A very small shop."""

from django.db import models


class Product(models.Model):
    name = models.CharField(max_length=80, unique=True)
    price_cents = models.PositiveIntegerField()
    stock = models.IntegerField()
    visits = models.PositiveIntegerField(default=0)


class Order(models.Model):
    product = models.ForeignKey(Product, on_delete=models.PROTECT)
    quantity = models.PositiveIntegerField()
    created = models.DateTimeField(auto_now_add=True)
