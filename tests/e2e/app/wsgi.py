# SPDX-License-Identifier: MIT
"""The application under test. DBPOOL_TEST's import_query makes it query while it is imported."""

import os

os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'settings')

from django.conf import settings  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402

application = get_wsgi_application()

if settings.GIVEN.get('import_query'):
    import views
    views.at_import()
