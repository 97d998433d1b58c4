# SPDX-License-Identifier: MIT
"""Where the figures were taken."""

import os
import platform
import subprocess
import time

PACKAGES = ('uwsgi-core', 'python3', 'python3-django', 'python3-gevent', 'python3-mysqldb', 'python3-pymysql',
            'python3-sqlalchemy', 'libmariadb3', 'mariadb-server', 'haproxy', 'wrk', 'gcc')


def _first(path, start):
    with open(path) as f:
        return next((line.partition(':')[2].strip() for line in f if line.startswith(start)), '?')


def _version(package):
    done = subprocess.run(['dpkg-query', '-W', '-f', '${Version}', package], stdout=subprocess.PIPE,
                          stderr=subprocess.DEVNULL, universal_newlines=True)
    return done.stdout or 'not installed'


def describe():
    return {
        'date': time.strftime('%Y-%m-%d', time.gmtime()),
        'processor': _first('/proc/cpuinfo', 'model name'),
        'processors': len(os.sched_getaffinity(0)),
        'memory': '%.1f GiB' % (int(_first('/proc/meminfo', 'MemTotal').split()[0]) / 2 ** 20),
        'kernel': platform.release(),
        'system': platform.freedesktop_os_release().get('PRETTY_NAME', '?'),
        'load before': '%.1f' % os.getloadavg()[0],
        'versions': {package: _version(package) for package in PACKAGES},
    }
