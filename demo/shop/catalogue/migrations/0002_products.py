# SPDX-License-Identifier: MIT
"""Something to look at: 200 products."""

from django.db import migrations


def add(apps, schema_editor):
    product = apps.get_model('catalogue', 'Product')
    product.objects.bulk_create(
        product(name='Product %d' % n, price_cents=100 + 7 * n, stock=1000) for n in range(1, 201))


class Migration(migrations.Migration):
    dependencies = [('catalogue', '0001_initial')]
    operations = [migrations.RunPython(add, migrations.RunPython.noop)]
