# SPDX-License-Identifier: MIT
"""The benchmark's Django project: the database entry and the driver come from the environment."""

import json
import os

GIVEN = json.loads(os.environ['DBPOOL_BENCH'])

if GIVEN['driver'] == 'pymysql':
    import pymysql
    pymysql.version_info = (1, 4, 6, 'final', 0)  # Django 3.2 asks for mysqlclient 1.4
    pymysql.install_as_MySQLdb()

SECRET_KEY = 'bench'
ALLOWED_HOSTS = ['*']
ROOT_URLCONF = 'views'
DATABASES = {'default': GIVEN['database']}
INSTALLED_APPS = []
MIDDLEWARE = []
USE_TZ = True
DEBUG_PROPAGATE_EXCEPTIONS = True  # into uWSGI's log
