"""An HTTP proxy in front of an S3 server that does to requests what a test says."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DROPPED = {"connection", "transfer-encoding", "content-length", "keep-alive", "date", "server"}


@dataclass
class Fault:
    """What is done to requests of ``method`` whose path contains ``part``, ``times`` times (-1: always).

    ``what``: drop (half of the body, then the connection ends), truncate (half of the body, and a length that says so),
    flip (one bit of the body), slow (``seconds`` before the answer), call (``then``), or a status such as 503.
    """

    what: str
    part: str = ""
    method: str = "GET"
    times: int = -1
    seconds: float = 0.0
    then: Callable[[], None] = lambda: None

    def takes(self, method: str, path: str) -> bool:
        if self.method != method or self.part not in path or not self.times:
            return False
        self.times -= 1
        return True


@dataclass
class Proxy:
    """Listens on ``port``; ``requests`` are the "METHOD path" seen, ``most`` how many were open at one time."""

    target: int
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    open: int = 0
    most: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        proxy = self

        class Handler(_Handler):
            of = proxy

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()

    def fault_for(self, method: str, path: str) -> Fault | None:
        with self.guard:
            self.requests.append(f"{method} {path}")
            return next((fault for fault in self.faults if fault.takes(method, path)), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    of: Proxy

    def log_message(self, *_: object) -> None:
        """Says nothing."""

    def serve(self) -> None:
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        except OSError:  # who sent it was killed
            self.close_connection = True
            return
        fault = self.of.fault_for(self.command, self.path)
        with self.of.guard:
            self.of.open += 1
            self.of.most = max(self.of.most, self.of.open)
        try:
            if fault and fault.what == "slow":
                time.sleep(fault.seconds)
            if fault and fault.what == "call":
                fault.then()
            if fault and fault.what.isdigit():
                self.answer(
                    int(fault.what), {}, b"<Error><Code>AccessDenied</Code></Error>" if "403" in fault.what else b""
                )
            else:
                self.forward(body, fault.what if fault else "")
        except OSError:
            self.close_connection = True
        finally:
            with self.of.guard:
                self.of.open -= 1

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = serve

    def forward(self, body: bytes, fault: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.of.target)
        headers = {k: v for k, v in self.headers.items() if k.lower() != "connection"}
        connection.request(self.command, self.path, body, headers)
        response = connection.getresponse()
        data, length = response.read(), response.getheader("Content-Length", "0")
        connection.close()
        headers = {k: v for k, v in response.getheaders() if k.lower() not in DROPPED}
        if self.command == "HEAD":
            self.answer(response.status, headers, b"", length)
        elif fault == "drop":
            self.answer(response.status, headers, data[: len(data) // 2], str(len(data)))
            self.close_connection = True
        elif fault == "truncate":
            self.answer(response.status, headers, data[: len(data) // 2])
        elif fault == "flip":
            self.answer(response.status, headers, bytes([data[0] ^ 1]) + data[1:])
        else:
            self.answer(response.status, headers, data)

    def answer(self, status: int, headers: dict[str, str], body: bytes, length: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", length or str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
