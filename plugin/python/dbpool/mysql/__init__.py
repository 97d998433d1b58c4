# SPDX-License-Identifier: MIT
"""The Django backend: ENGINE = "dbpool.mysql"."""
