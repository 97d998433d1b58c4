# SPDX-License-Identifier: MIT
"""Real processes for tests and the demo: a private MariaDB, a uWSGI with the built plugin, and ways to look at both.

Standard library and PyMySQL only. Everything lives in a temporary directory and is a context manager.
"""

from .collector import Collector
from .mariadb import Server
from .procs import (all_threads_stopped, connected_ports, descendants, fd_census, free_port, is_alive, session_sockets,
                    start_time, unix_sockets, voluntary_switches, wait_until)
from .proxy import Proxy
from .uwsgi import Uwsgi
from .web import Response, concurrently, fetch, in_background

__all__ = ['Collector', 'Proxy', 'Response', 'Server', 'Uwsgi', 'all_threads_stopped', 'concurrently', 'connected_ports',
           'descendants', 'fd_census', 'fetch', 'free_port', 'in_background', 'is_alive', 'session_sockets', 'start_time',
           'unix_sockets', 'voluntary_switches', 'wait_until']
