# SPDX-License-Identifier: MIT
"""A mule that writes down what files.py says, again and again: into $FILES_MULE.<pid>."""

import os
import time

import files

path = '%s.%d' % (os.environ['FILES_MULE'], os.getpid())
for rounds in range(1000000):
    with open(path + '.new', 'w') as f:
        f.write('%d %d %r' % (rounds, len(files.OPENED), files.strangers()))
    os.rename(path + '.new', path)
    time.sleep(0.05)
