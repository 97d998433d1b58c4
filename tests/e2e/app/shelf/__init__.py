# SPDX-License-Identifier: MIT
"""A Django app with one model: what makes Django look at its backend while it loads an application."""
