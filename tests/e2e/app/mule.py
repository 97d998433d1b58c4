# SPDX-License-Identifier: MIT
"""A mule that does what it is sent."""

import json

import files
import uwsgi

while True:
    message = uwsgi.mule_get_msg()
    if message:
        files.work(**json.loads(message))
