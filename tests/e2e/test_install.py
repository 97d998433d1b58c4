# SPDX-License-Identifier: MIT
"""Building and installing in each documented way, from a copy of the tree: nothing is written outside of it."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

from tests.e2e.base import WithServer
from tests.support.uwsgi import BUILD, TOP


def run(command, **more):
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          universal_newlines=True, **more)
    if done.returncode != 0:
        raise AssertionError('%s: status %d\n%s' % (' '.join(command), done.returncode, done.stdout[-6000:]))
    return done.stdout


def exported(library):
    """Names that a shared object offers to others."""
    lines = run(['nm', '-D', '--defined-only', library]).splitlines()
    return {line.split()[-1] for line in lines if line.split()[-2] not in 'AVW'}


def files_below(directory):
    return {os.path.relpath(os.path.join(where, name), directory)
            for where, _, names in os.walk(directory) for name in names}


class Install(WithServer, unittest.TestCase):
    def setUp(self):
        self.copy = tempfile.mkdtemp(prefix='dbpool-install-')
        self.addCleanup(shutil.rmtree, self.copy)
        self.tree = os.path.join(self.copy, 'tree')
        os.mkdir(self.tree)
        for name in ('core', 'plugin', 'cmake', 'CMakeLists.txt', 'uwsgiplugin.py'):
            source, target = os.path.join(TOP, name), os.path.join(self.tree, name)
            if os.path.isdir(source):
                shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', 'build', '*.egg-info'))
            else:
                shutil.copy2(source, target)

    def serves(self, plugin, package):
        with self.make_uwsgi('mysqlclient', 'gevent', plugin=plugin,
                             options={'pythonpath': [package, os.path.join(TOP, 'tests', 'e2e', 'app')]}) as uwsgi:
            answer = self.run_sql(uwsgi, 'SELECT 1')
            self.assertEqual(answer.get('results'), [[[1]]], answer)
            self.assertEqual(uwsgi.metric('dbpool.default.size'), 1)

    def test_exported_symbols(self):
        self.assertEqual(exported(os.path.join(BUILD, 'dbpool_plugin.so')), {'dbpool_plugin', 'dbpool_api'})

    def test_uwsgi_build_plugin_from_anywhere(self):
        """The same sources, the same exports, and it works."""
        where = os.path.join(self.copy, 'elsewhere')
        os.mkdir(where)
        run(['uwsgi', '--build-plugin', self.tree], cwd=where, env=dict(os.environ, PYTHON=sys.executable))
        plugin = os.path.join(where, 'dbpool_plugin.so')
        self.assertEqual(exported(plugin), {'dbpool_plugin', 'dbpool_api'})
        self.serves(plugin, os.path.join(BUILD, 'python'))

    def test_cmake_install(self):
        """As root without options to Debian's places (seen through DESTDIR), elsewhere below a given prefix."""
        build = os.path.join(self.copy, 'build')
        run(['cmake', '-S', self.tree, '-B', build, '-DDBPOOL_TESTS=OFF'])
        run(['cmake', '--build', build, '-j2'])
        root = os.path.join(self.copy, 'root')
        run(['cmake', '--install', build], env=dict(os.environ, DESTDIR=root))
        files = files_below(root)
        self.assertIn('usr/lib/uwsgi/plugins/dbpool_plugin.so', files)
        self.assertIn('usr/lib/python3/dist-packages/dbpool/mysql/base.py', files)
        self.assertTrue([f for f in files if f.startswith('usr/lib/python3/dist-packages/dbpool/_dbpool')], files)
        prefix = os.path.join(self.copy, 'prefix')
        run(['cmake', '--install', build, '--prefix', prefix])
        self.assertEqual({os.path.join('usr', f) for f in files_below(prefix)}, files)
        self.serves(os.path.join(prefix, 'lib/uwsgi/plugins/dbpool_plugin.so'),
                    os.path.join(prefix, 'lib/python3/dist-packages'))

    def test_pip_install(self):
        venv = os.path.join(self.copy, 'venv')
        run([sys.executable, '-m', 'venv', '--system-site-packages', venv])
        python = os.path.join(venv, 'bin', 'python')
        # --no-build-isolation: setuptools is there already; the index is not asked for it.
        run([python, '-m', 'pip', 'install', '--no-index', '--no-deps', '--no-build-isolation',
             os.path.join(self.tree, 'plugin', 'python')])
        where = run([python, '-c', 'import dbpool._dbpool as d; print(d.__file__)'], cwd=self.copy).strip()
        self.assertTrue(where.startswith(venv), where)
        self.serves(os.path.join(BUILD, 'dbpool_plugin.so'), os.path.dirname(os.path.dirname(where)))

    def test_plugin_of_another_uwsgi(self):
        """Built for a uWSGI with another layout of its structures: refused with a message, not loaded in silence."""
        where = os.path.join(self.copy, 'alien')
        os.mkdir(where)
        run(['uwsgi', '--build-plugin', self.tree], cwd=where,
            env=dict(os.environ, PYTHON=sys.executable, CFLAGS='-UUWSGI_SSL'))
        instance = self.make_uwsgi('mysqlclient', 'gevent', plugin=os.path.join(where, 'dbpool_plugin.so'))
        instance.launch()
        self.addCleanup(instance.close)
        self.assertNotEqual(instance.wait_exit(), 0)
        self.assertRegex(instance.log(), 'dbpool.*(another|different|built)')
