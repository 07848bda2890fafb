"""The loop of the engine's process: one request after the other, while a second thread listens, so that a request can
be cancelled, and the process ends with its parent, even in the midst of native code."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO, NoReturn

from MedZeroSegLib.errors import MEMORY_RAN_OUT, MedZeroSegError, MemoryShortage
from MedZeroSegLib.protocol import ProtocolError, decode_line, encode_line, request_id

IDLE_S = 600.0  # seconds without a request after which the process leaves, with the memory that it holds
PROGRESS_S = 0.1  # between two events of progress of one kind

Handler = Callable[[Mapping[str, Any], "Report"], Mapping[str, Any]]
Inbox = queue.SimpleQueue[dict[str, Any]]


class Cancelled(Exception):
    """The request isn't wanted any more."""


class Report:
    """What a handler tells of its request; each call ends the handler with `Cancelled` once that has been cancelled."""

    def __init__(self, number: int, channel: Channel) -> None:
        self._number, self._channel = number, channel
        self._last = ("", "", 0.0)

    def check(self) -> None:
        """To be called often."""
        self._channel.check(self._number)

    def event(self, event: str, **fields: Any) -> None:
        """Send an event of the request."""
        self._channel.tell(self._number, event, fields)

    def progress(self, code: str, fraction: float = 0.0, seconds_left: float | None = None, **values: Any) -> None:
        """Send progress, unless some of the same kind has just been sent."""
        self.check()
        kind, name, now = code, str(values.get("name", "")), time.monotonic()
        if self._last[:2] == (kind, name) and now - self._last[2] < PROGRESS_S:
            return
        self._last = (kind, name, now)
        left = None if seconds_left is None else round(seconds_left, 1)
        self.event("progress", fraction=round(fraction, 4), seconds_left=left, code=code, values=values)


class Channel:
    """The way to the parent. After a request is cancelled nothing of it is sent, but that."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._lock = stream, threading.Lock()
        self._cancelled: set[int] = set()

    def cancel(self, number: int) -> None:
        """Called by the thread that listens, while the other one may be deep in native code."""
        with self._lock:
            self._cancelled.add(number)

    def check(self, number: int) -> None:
        """Raises Cancelled."""
        if number in self._cancelled:
            raise Cancelled

    def tell(self, number: int, event: str, fields: Mapping[str, Any]) -> None:
        """Send an event; raises Cancelled."""
        line = encode_line({"id": number, "event": event, **fields})
        with self._lock:
            self.check(number)
            self._write(line)

    def acknowledge(self, message: dict[str, Any], inbox: Inbox) -> None:
        """Say that a request has come, though the one before it may still have to come to its end."""
        head: dict[str, Any] = {"id": message["id"], "event": "progress"}
        with self._lock:
            self._write(encode_line({**head, "fraction": 0.0, "seconds_left": None, "code": "starting", "values": {}}))
            inbox.put(message)

    def leave_if_idle(self, inbox: Inbox) -> None:
        """End the process, unless a request has just been acknowledged."""
        with self._lock:
            if inbox.empty():
                os._exit(0)

    def end(self, number: int, event: str, fields: Mapping[str, Any]) -> None:
        """Send the last event of a request, or that it was cancelled."""
        line = encode_line({"id": number, "event": event, **fields})
        with self._lock:
            if number in self._cancelled:
                line = encode_line({"id": number, "event": "cancelled"})
            self._write(line)

    def _write(self, line: bytes) -> None:
        try:
            self._stream.write(line)
            self._stream.flush()
        except OSError:  # the parent is gone
            os._exit(0)


def serve(handlers: Mapping[str, Handler], idle_s: float = IDLE_S) -> NoReturn:
    """Answer requests until the parent is gone, says "exit", or has asked nothing for ``idle_s`` seconds.

    Parameters
    ----------
    handlers
        By command: takes the message and a report, returns the fields of "finished".
    """
    stdin, stdout = claim_streams()
    channel, inbox = Channel(stdout), Inbox()
    threading.Thread(target=_listen, args=(stdin, inbox, channel), daemon=True).start()
    while True:
        try:
            message = inbox.get(timeout=idle_s)
        except queue.Empty:
            channel.leave_if_idle(inbox)
            continue
        event, fields = _answer(message, handlers, Report(message["id"], channel))
        channel.end(message["id"], event, fields)


def claim_streams() -> tuple[BinaryIO, BinaryIO]:
    """stdin and stdout for messages alone: what others print goes to stderr, and who reads finds nothing."""
    stdin, stdout = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdin, sys.stdout = os.fdopen(0, encoding="utf-8", closefd=False), sys.stderr
    return stdin, stdout


def _listen(stdin: BinaryIO, inbox: Inbox, channel: Channel) -> None:
    """Take in messages while the main thread works; ends the process with the parent."""
    for line in stdin:
        message = decode_line(line)
        if message is not None and message.get("cmd") == "exit":
            break
        try:
            number = request_id(message or {})
        except ProtocolError:
            print("a line that is no message was left out", file=sys.stderr)
            continue
        if message is not None and message.get("cmd") == "cancel":
            channel.cancel(number)
        elif message is not None:
            channel.acknowledge(message, inbox)
    os._exit(0)


def _answer(
    message: Mapping[str, Any], handlers: Mapping[str, Handler], report: Report
) -> tuple[str, Mapping[str, Any]]:
    """The last event of a request; whatever goes wrong in it is a sentence there and a traceback in the log."""
    try:
        report.check()
        handler = handlers.get(str(message.get("cmd")))
        if handler is None:
            raise ProtocolError(f"{message.get('cmd')!r} is no request")
        return "finished", handler(message, report)
    except Cancelled:
        return "cancelled", {}
    except MedZeroSegError as problem:
        return "error", {"code": problem.code, "message": str(problem)}
    except MemoryError:
        return "error", {"code": MemoryShortage.code, "message": MEMORY_RAN_OUT}
    except (Exception, SystemExit) as problem:
        traceback.print_exc()
        sentence = f"The engine failed inside ({type(problem).__name__}); its log says where. Try again, and report it."
        return "error", {"code": "internal", "message": sentence}
