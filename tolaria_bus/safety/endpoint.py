"""Metrics and health over HTTP, for whoever watches a program from outside.

``/metrics`` in Prometheus' text format; ``/healthz`` (shall it be started again?) and ``/readyz``
(does it do what it is for?): 200, or 503 with one line that says why.
Served by a thread of its own: an event loop that stands still can't say so itself. It needs no
password, so it listens to this machine alone unless told otherwise, and shows numbers and names
of streams, nothing that was sent.
"""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import TracebackType
from typing import Any, Final, Self

import structlog
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import CollectorRegistry

_PLAIN: Final = "text/plain; charset=utf-8"


class Endpoint:
    """An HTTP server; a context manager that closes it.

    Args:
        host: Where to listen.
        port: On which port; 0: any that is free.
        registry: What ``/metrics`` shows.

    Attributes:
        health: Says in one line why the program isn't healthy; nothing if it is. Called from
            several threads.
        ready: Likewise why it doesn't do what it is for; by default what ``health`` says.

    Raises:
        OSError: It can't listen there.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.health: Callable[[], str] = lambda: "starting"
        self.ready: Callable[[], str] = lambda: self.health()
        self._registry = registry
        endpoint = self

        class Bound(_Handler):
            owner = endpoint

        self._server = _Server((host, port), Bound)
        self._thread = Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Where it is."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        """What is said to a request: status, type and body."""
        match path.partition("?")[0]:
            case "/metrics":
                return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)
            case "/healthz":
                return _said(self.health())
            case "/readyz":
                return _said(self.ready())
            case _:
                return HTTPStatus.NOT_FOUND, _PLAIN, b"there are /metrics, /healthz, /readyz\n"


def _said(reason: str) -> tuple[HTTPStatus, str, bytes]:
    status = HTTPStatus.SERVICE_UNAVAILABLE if reason else HTTPStatus.OK
    return status, _PLAIN, f"{reason or 'ok'}\n".encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    # Not waited for at the end: a reader that never finishes keeps nobody.
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Of a reader that went away, mostly. The standard library would print a traceback.
        structlog.get_logger().debug("a request for metrics failed", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    owner: Endpoint
    timeout = 5  # seconds for a request to come
    server_version = "tolaria-bus"
    sys_version = ""

    def do_GET(self) -> None:
        status, kind, body = self.owner.answer(self.path)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """Say nothing: a scrape every few seconds is no news."""
