# SPDX-License-Identifier: MIT
# The build recipe for `uwsgi --build-plugin DIR`, and the one list of the plugin's C sources: CMake reads GCC_LIST from
# here. uWSGI executes this file without __file__ and compiles with the caller's working directory, so there is no -I
# of ours: the sources include each other by relative paths.

import os
import subprocess

NAME = 'dbpool'

CORE = [
    'asking',
    'attach',
    'broker',
    'client',
    'clock',
    'connector',
    'ending',
    'endpoint',
    'failure',
    'handoff',
    'handshake',
    'inspect',
    'janitor',
    'keeper',
    'kept',
    'kills',
    'logger',
    'login',
    'opening',
    'parking',
    'queue',
    'ration',
    'rationing',
    'recent',
    'registry',
    'relay',
    'replay',
    'replay_server',
    'reset',
    'resetting',
    'share',
    'table',
    'thread',
    'wire',
]

GCC_LIST = ['core/' + name for name in CORE] + ['plugin/connector_process', 'plugin/dbpool_plugin', 'plugin/log', 'plugin/metrics']


def client_library(flag):
    """Flags for the MySQL client library that the connector logs in with: MariaDB's, or what mysql_config names."""
    for command in (['pkg-config', flag, 'libmariadb'], [os.environ.get('MYSQL_CONFIG', 'mysql_config'), flag]):
        try:
            return subprocess.check_output(command, stderr=subprocess.DEVNULL, universal_newlines=True).split()
        except (OSError, subprocess.CalledProcessError):
            continue
    raise SystemExit('dbpool: neither "pkg-config libmariadb" nor mysql_config works: install libmariadb-dev')


CFLAGS = ['-std=gnu11', '-D_GNU_SOURCE', '-pthread', '-fvisibility=hidden'] + client_library('--cflags')
LDFLAGS = []
LIBS = client_library('--libs') + ['-pthread']
