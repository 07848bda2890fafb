"""A small catalogue of weights, and a local HTTP or HTTPS server that hands its files out in good and bad ways."""

from __future__ import annotations

import hashlib
import json
import random
import select
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from MedZeroSegLib.weights import WeightsStore
from MedZeroSegLib.weights_catalogue import read_catalogue

ODD_NAME = "Sättiger 肺 (1) & co"
PAGE = b"\n<!DOCTYPE html><html><title>Hospital network: please log in</title></html>"
BODY = random.Random(0).randbytes(200_000)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(files: dict[str, bytes], sources: dict[str, list[str]] | None = None, **changes: object) -> dict:
    """A catalogue entry with the true size and hash of each file."""
    listed = [
        {
            "name": name,
            "size": len(content),
            "sha256": sha256(content),
            "sources": (sources or {}).get(name, [f"https://weights.invalid/{name}"]),
        }
        for name, content in files.items()
    ]
    return {"title": "sample", "licence": "CC0-1.0", "presets": ["tiny"], "carrier": None, "files": listed} | changes


def store_of(home: Path, entries: dict[str, dict], **changes: object) -> WeightsStore:
    """A store in a folder of ``home`` with a catalogue of its own."""
    home.mkdir(parents=True, exist_ok=True)
    catalogue = home / "weights.json"
    catalogue.write_text(json.dumps(entries), encoding="utf-8")
    settings = {"root": home / ODD_NAME / "store", "catalogue": read_catalogue.__wrapped__(catalogue)} | changes
    return WeightsStore(**settings)


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


# Servers

Answer = Callable[["Handler", bytes], None]


@dataclass
class Server:
    """What it hands out, how (an answer for each request in turn, the last one for all further), and what was asked."""

    address: str
    files: dict[str, bytes]
    answers: list[Answer]
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, target, Range

    @property
    def ranges(self) -> list[str | None]:
        return [ask[2] for ask in self.asked]


class Handler(BaseHTTPRequestHandler):
    server_state: Server
    tunnel_to: int | None = None

    def do_GET(self) -> None:
        state = self.server_state
        turn = len(state.asked)
        state.asked.append(("GET", self.path, self.headers.get("Range")))
        body = state.files.get(urlsplit(self.path).path.lstrip("/"))
        if body is None:
            refuse(404)(self, b"")
            return
        with suppress(ConnectionError):
            state.answers[min(turn, len(state.answers) - 1)](self, body)

    def do_CONNECT(self) -> None:
        self.server_state.asked.append(("CONNECT", self.path, None))
        if self.tunnel_to is None:
            refuse(407)(self, b"")
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.flush()
        with socket.create_connection(("127.0.0.1", self.tunnel_to)) as far, suppress(ConnectionError):
            relay(self.connection, far)
        self.close_connection = True

    def send_headers(self, status: int, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def relay(near: socket.socket, far: socket.socket) -> None:
    while True:
        for end in select.select([near, far], [], [], 5)[0] or [None]:
            block = end.recv(65536) if end else b""
            if not block:
                return
            (far if end is near else near).sendall(block)


def requested_start(handler: Handler) -> int:
    wanted = handler.headers.get("Range")
    return int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0


def whole(handler: Handler, body: bytes, share: float = 1.0) -> None:
    """As a good server does, with Range; ``share`` < 1 closes the connection early."""
    start = requested_start(handler)
    rest = body[start:]
    if start and not rest:
        handler.send_headers(416, Content_Range=f"bytes */{len(body)}")
        return
    span = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if start else {}
    handler.send_headers(206 if start else 200, Content_Length=len(rest), **span)
    handler.wfile.write(rest[: int(len(rest) * share)])


def half(handler: Handler, body: bytes) -> None:
    whole(handler, body, 0.5)


def whole_without_range(handler: Handler, body: bytes, share: float = 1.0) -> None:
    handler.send_headers(200, Content_Length=len(body))
    handler.wfile.write(body[: int(len(body) * share)])


def half_without_range(handler: Handler, body: bytes) -> None:
    whole_without_range(handler, body, 0.5)


def without_length(content: Callable[[bytes], bytes], kind: str = "application/octet-stream") -> Answer:
    """The end of the body is the end of the connection, so nobody can tell early whether all has come."""

    def answer(handler: Handler, body: bytes) -> None:
        handler.send_headers(200, Content_Type=kind)
        handler.wfile.write(content(body))

    return answer


def with_length(content: Callable[[bytes], bytes], kind: str = "application/octet-stream") -> Answer:
    def answer(handler: Handler, body: bytes) -> None:
        sent = content(body)
        handler.send_headers(200, Content_Type=kind, Content_Length=len(sent))
        handler.wfile.write(sent)

    return answer


def refuse(status: int) -> Answer:
    return lambda handler, body: handler.send_headers(status, Content_Length=0)


@contextmanager
def serving(
    files: dict[str, bytes], *answers: Answer, certificate: Path | None = None, tunnel_to: int | None = None
) -> Iterator[Server]:
    """A server on this machine while the block lasts; with ``certificate`` (PEM with key) it speaks HTTPS."""
    handler = type("BoundHandler", (Handler,), {"tunnel_to": tunnel_to})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http.daemon_threads = True
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        http.socket = context.wrap_socket(http.socket, server_side=True)
        http.handle_error = lambda *_: None  # a client that distrusts the certificate hangs up
    scheme = "http" if certificate is None else "https"
    state = Server(f"{scheme}://127.0.0.1:{http.server_port}", files, list(answers) or [whole])
    handler.server_state = state
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield state
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def port_without_server() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def self_signed_certificate(folder: Path) -> Path:
    """A certificate with its key, for 127.0.0.1 and weights.invalid, made by the openssl program."""
    folder.mkdir(parents=True, exist_ok=True)
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        + ["-days", "2", "-subj", "/CN=Hospital authority", "-keyout", str(key), "-out", str(certificate)]
        + ["-addext", "subjectAltName=IP:127.0.0.1,DNS:weights.invalid"],
        check=True,
        capture_output=True,
    )
    with certificate.open("a") as file:
        file.write(key.read_text())
    return certificate
