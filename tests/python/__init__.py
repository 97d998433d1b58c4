# SPDX-License-Identifier: MIT
"""The Python package without uWSGI: its extension from the build directory, no pool, at most a private server."""

import os
import sys

TOP = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BUILD = os.environ.get('DBPOOL_BUILD') or os.path.join(TOP, 'build')
sys.path.insert(0, os.path.join(BUILD, 'python'))
