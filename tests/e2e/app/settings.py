# SPDX-License-Identifier: MIT
"""Settings of the application under test, all from the JSON file that the harness wrote. Not from the environment:
a test looks there for secrets."""

import json
import os

with open(os.environ['DBPOOL_TEST']) as f:
    GIVEN = json.load(f)

if GIVEN.get('per_worker'):
    # With lazy-apps each worker reads its own settings: another driver, or settings that disagree.
    import uwsgi
    GIVEN.update(GIVEN['per_worker'].get(str(uwsgi.worker_id()), {}))

if GIVEN['driver'] == 'pymysql':
    import pymysql
    pymysql.install_as_MySQLdb()

SECRET_KEY = 'tests'
ALLOWED_HOSTS = ['*']
ROOT_URLCONF = 'urls'
INSTALLED_APPS = GIVEN.get('apps', [])
USE_TZ = True
DEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'
DATABASES = GIVEN['databases']
LOGGING_CONFIG = None
