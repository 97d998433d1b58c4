# SPDX-License-Identifier: MIT
"""Builds dbpool._dbpool. The rest is in pyproject.toml.

In the checkout the sources find core's header by its relative path. A source distribution gets a copy beside them
(src/core.h looks for both).
"""

import glob
import os
import shutil

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

HERE = os.path.dirname(os.path.abspath(__file__))
HEADER = os.path.join(HERE, "..", "..", "core", "dbpool.h")


class SdistWithHeader(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        shutil.copyfile(HEADER, os.path.join(base_dir, "src", "dbpool.h"))


os.chdir(HERE)
setup(
    ext_modules=[
        Extension(
            "dbpool._dbpool",
            sources=sorted(glob.glob("src/*.c")),
            depends=sorted(glob.glob("src/*.h")) + ([HEADER] if os.path.exists(HEADER) else []),
            extra_compile_args=["-std=gnu11", "-fvisibility=hidden", "-Wall", "-Wextra"],
            libraries=["dl", "pthread"],
        )
    ],
    cmdclass={"sdist": SdistWithHeader},
)
