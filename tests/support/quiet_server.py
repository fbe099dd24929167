"""An HTTP server of the standard library, for other ends that tests make up: it says nothing of clients that left."""

import sys
from http.server import ThreadingHTTPServer
from typing import Any


class QuietServer(ThreadingHTTPServer):
    """The library's own prints such ends to stderr, in a thread that may outlive its test: where the next one reads."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)
