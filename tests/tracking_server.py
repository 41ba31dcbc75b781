"""A tracking server of the tests' own, which can be killed, stopped and made to answer badly."""

from __future__ import annotations

import http
import http.client
import http.server
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from contextlib import suppress
from pathlib import Path


class Server:
    """`mlflow server` on SQLite, on 127.0.0.1.

    Args:
        folder: Where it keeps everything.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = {
            "backend-store-uri": f"sqlite:///{self.folder}/server.db",
            "artifacts-destination": str(self.folder / "artifacts"),
            "host": "127.0.0.1",
            "port": str(self.port),
            "workers": "1",
        }
        words = [f"--{key}={value}" for key, value in options.items()]
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "mlflow",
                    "server",
                    *words,
                ],
                cwd=self.folder,
                env={
                    **os.environ,
                    "MLFLOW_DISABLE_TELEMETRY": "true",
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # ten more processes
                },
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until = time.monotonic() + 600
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
                there = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
                there.request("GET", "/health")
                if there.getresponse().status == http.HTTPStatus.OK:
                    return
            log_text = (self.folder / "server.log").read_text()
            assert self.process.poll() is None, log_text
            assert time.monotonic() < until, log_text
            time.sleep(0.2)

    def signal(self, number: int) -> None:
        """Send a signal to it and its workers."""
        assert self.process is not None
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """End it at once."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


class Proxy:
    """Stands in front of a server, and spoils what it answers.

    Args:
        port: Port of the server.

    Attributes:
        mode: "pass"; "500" answers so itself; "lose" has the server do it and answers 500.
        login: Name and password without which it answers 401.
        spoilt: Number of requests that were answered badly.
    """

    def __init__(self, port: int) -> None:
        self.mode = "pass"
        self.login: tuple[str, str] | None = None
        self.spoilt = 0
        proxy = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if proxy.login is not None:
                    expected = b64encode(":".join(proxy.login).encode()).decode()
                    if self.headers.get("Authorization") != f"Basic {expected}":
                        self.reply(401, b"{}")
                        return
                if proxy.mode == "500":
                    proxy.spoilt += 1
                    self.reply(500, b"{}")
                    return
                there = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
                skip = ("host", "authorization", "transfer-encoding")
                headers = {k: v for k, v in self.headers.items() if k.lower() not in skip}
                there.request(self.command, self.path, body, headers)
                found = there.getresponse()
                text = found.read()
                there.close()
                if proxy.mode == "lose":
                    proxy.spoilt += 1
                    self.reply(500, b"{}")
                else:
                    self.reply(found.status, text, found.getheader("Content-Type"))

            do_GET = do_POST = do_PUT = do_PATCH = answer  # noqa: N815

            def reply(self, code: int, text: bytes, kind: str | None = None) -> None:
                with suppress(OSError):
                    self.send_response(code)
                    self.send_header("Content-Type", kind or "application/json")
                    self.send_header("Content-Length", str(len(text)))
                    self.end_headers()
                    self.wfile.write(text)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """End it."""
        self._server.shutdown()
        self._server.server_close()
