# SPDX-License-Identifier: MIT
"""Settings of the demo shop. Where the database is, and through which backend, comes from the environment."""

import os

if os.environ.get('SHOP_DRIVER') == 'pymysql':
    import pymysql
    pymysql.install_as_MySQLdb()

SECRET_KEY = 'only for a demo on loopback'
ALLOWED_HOSTS = ['*']
ROOT_URLCONF = 'shop.urls'
WSGI_APPLICATION = 'shop.wsgi.application'
INSTALLED_APPS = ['catalogue']
USE_TZ = True
DEFAULT_AUTO_FIELD = 'django.db.models.BigAutoField'
TEMPLATES = [{'BACKEND': 'django.template.backends.django.DjangoTemplates', 'APP_DIRS': True}]

DATABASES = {
    'default': {
        'ENGINE': os.environ.get('SHOP_ENGINE', 'dbpool.mysql'),
        'HOST': os.environ.get('SHOP_HOST', '127.0.0.1'),
        'PORT': os.environ.get('SHOP_PORT', '3306'),
        'USER': os.environ.get('SHOP_USER', 'shop'),
        'PASSWORD': os.environ.get('SHOP_PASSWORD', ''),
        'NAME': os.environ.get('SHOP_NAME', 'shop'),
    }
}
# One pool for the whole uWSGI instance: at most this many sessions, whatever the number of workers.
if DATABASES['default']['ENGINE'].startswith('dbpool.'):
    DATABASES['default']['POOL'] = {
        'pool_size': int(os.environ.get('SHOP_POOL_SIZE', '10')),
        'max_overflow': 0,
        'timeout': 30,
    }
