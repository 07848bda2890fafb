"""The engine's process as the module sees it: started when needed, asked one thing at a time, cancelled at once, and
replaced when it dies. Needs neither Slicer nor Qt; every callback runs in the thread that calls ``poll``."""

from __future__ import annotations

import itertools
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from MedZeroSegLib.protocol import ENVIRONMENT, FINAL_EVENTS, check_request, decode_event, encode_line

GRACE_S = (
    15.0  # for a cancelled request to come to its end; a slice takes 2 s on a slow computer, loading the models more
)
EXIT_S = 0.5  # for the process to leave by itself
DRAIN_S = 1.0  # for what a dead process has written to be read
POLL_S = 0.02  # that one poll may take; the window has to stay alive
NICENESS = 10  # of the process; the window comes first
LOG_TAIL = 20  # lines that may tell why the process didn't start

# Why a process was ended, and the way out, by signal; Windows has exit codes instead.
KILLED = "most likely because the memory ran out: close other programs, crop the image or ask for fewer names"
CRASHED = "by a fault inside a library: try again; if it comes back, choose the CPU as device and send the report"
WRONG_BUILD = "because this processor lacks an instruction that a package was built with: set up the module again"
ENDED = "by another program or by the system: try again"
SIGNALS = {
    "SIGKILL": KILLED,
    "SIGTERM": ENDED,
    "SIGINT": ENDED,
    "SIGHUP": ENDED,
    "SIGILL": WRONG_BUILD,
    "SIGSEGV": CRASHED,
    "SIGABRT": CRASHED,
    "SIGBUS": CRASHED,
    "SIGFPE": CRASHED,
}
WINDOWS_CODES = {
    0xC0000017: ("out of memory", KILLED),
    0xC000012D: ("out of memory", KILLED),
    0xC0000005: ("access violation", CRASHED),
    0xC00000FD: ("stack overflow", CRASHED),
    0xC0000409: ("fail-fast", CRASHED),
    0xC000001D: ("illegal instruction", WRONG_BUILD),
}


@dataclass
class _Request:
    """A request, how often it has been sent, and whether the process has answered anything to it."""

    message: dict[str, Any]
    sent: int = 0
    answered: bool = False

    @property
    def id(self) -> int:
        return int(self.message["id"])


class EngineProcess:
    """One process, one request at a time.

    Parameters
    ----------
    command
        Starts the process: Python and the path of MedZeroSegLib/worker.py.
    on_event
        Called with each event of the request that is wanted, as `MedZeroSegLib.protocol` describes them. The last one
        of each request is "finished", "cancelled" or "error"; nothing comes after it.
    on_log
        Called with each line that the process or a library in it prints.
    environment
        Of the process; None takes this process's own.
    """

    def __init__(
        self,
        command: Sequence[str],
        on_event: Callable[[dict[str, Any]], None],
        on_log: Callable[[str], None] = lambda line: None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command, self._on_event, self._on_log = list(command), on_event, on_log
        self._environment = {**(os.environ if environment is None else environment), **ENVIRONMENT}
        self._ids = itertools.count(1)
        self._process: _Process | None = None
        self._current: _Request | None = None
        self._waiting: _Request | None = None
        self._ending: dict[int, float] = {}  # cancelled requests that the process is still at, and when patience ends
        self._events: deque[dict[str, Any]] = deque()  # made here, to be delivered at the next poll
        self._delivering = False

    @property
    def running(self) -> bool:
        """Whether the process is there, with the memory that it holds."""
        return self._process is not None and self._process.alive

    @property
    def busy(self) -> bool:
        """Whether a request waits for its last event."""
        return bool(self._current or self._waiting or self._events)

    def submit(self, message: Mapping[str, Any]) -> int:
        """Send a request; one at a time runs and one waits, which a newer one replaces.

        Returns
        -------
        The id that the request's events will have.

        Raises
        ------
        ProtocolError
            When the message is not as agreed.
        """
        request = _Request({**message, "id": next(self._ids)})
        check_request(request.message)
        if self._current is None:
            self._send(request)
        else:
            self._drop_waiting()
            self._waiting = request
        return request.id

    def cancel(self) -> None:
        """End what runs and what waits. "cancelled" comes with the next poll; the process ends its slice and stays."""
        self._drop_waiting()
        if self._current is not None:
            number, self._current = self._current.id, None
            self._events.append({"id": number, "event": "cancelled"})
            if self._process is not None:
                self._ending[number] = time.monotonic() + GRACE_S
                self._process.send({"id": number, "cmd": "cancel"})

    def poll(self) -> bool:
        """Deliver what has come; to be called from a timer for as long as the answer is True."""
        if self._delivering:  # a callback let the window live, and its timer called
            return True
        self._delivering = True
        try:
            self._deliver()
            self._look_after_process()
            self._deliver_own()
        finally:
            self._delivering = False
        return self.busy or bool(self._ending)

    def close(self, wait: bool = True) -> None:
        """End the process, and what it is at; a later request starts a new one. It takes up to a second to go."""
        self.cancel()
        self._ending.clear()
        if self._process is not None:
            process, self._process = self._process, None
            leaving = threading.Thread(target=process.leave)
            leaving.start()
            if wait:
                leaving.join()

    # What has come

    def _deliver(self) -> None:
        """Take in lines until there are none, a segment has been delivered, or the time for one poll is over."""
        end = time.monotonic() + POLL_S
        self._deliver_own()
        while self._process is not None and time.monotonic() < end:
            line = self._process.next_line()
            if line is None:
                return
            event = decode_event(line.text) if line.is_message else None
            if event is None:
                self._on_log(line.text.decode("utf-8", "replace"))
                continue
            self._process.has_answered = True
            if self._take_in(event) and event["event"] == "segment":
                return

    def _take_in(self, event: dict[str, Any]) -> bool:
        """Deliver an event of the current request; others are of cancelled ones."""
        final = event["event"] in FINAL_EVENTS
        if final:
            self._ending.pop(event["id"], None)
        request = self._current
        if request is None or event["id"] != request.id:
            return False
        request.answered = True
        if final:
            self._finish()
        self._on_event(event)
        return True

    def _finish(self) -> None:
        """The current request is over; the waiting one begins."""
        self._current = None
        if self._waiting is not None:
            request, self._waiting = self._waiting, None
            self._send(request)

    def _deliver_own(self) -> None:
        while self._events:
            self._on_event(self._events.popleft())

    def _drop_waiting(self) -> None:
        if self._waiting is not None:
            self._events.append({"id": self._waiting.id, "event": "cancelled"})
            self._waiting = None

    # The process

    def _send(self, request: _Request) -> None:
        self._current = request
        if self._process is not None and not self._process.alive:
            return  # it is sent to the next one, when this one has been taken leave of
        if self._process is None:
            try:
                self._process = _Process(self._command, self._environment)
            except OSError as problem:
                reason = problem.strerror or type(problem).__name__
                self._fail("installation", f"The engine can't be started ({reason}); set up the module again.")
                return
        request.sent += 1
        self._process.send(request.message)

    def _look_after_process(self) -> None:
        """Notice that it has died; end it when a cancelled request doesn't come to its end."""
        process = self._process
        if process is None:
            return
        if process.is_over():
            self._process = None
            process.end_group()
            self._take_leave(process)
        elif self._ending and time.monotonic() > min(self._ending.values()):
            process.end_group()

    def _take_leave(self, process: _Process) -> None:
        """The process is gone: say what that means for the request."""
        was_at_another = bool(self._ending)  # a cancelled one that it was still at
        self._ending.clear()
        request = self._current
        if request is None:
            return
        left = process.has_answered or process.returncode == 0  # having had nothing to do for long
        not_begun = was_at_another or (left and not request.answered)
        if not request.sent or (not_begun and request.sent == 1):
            self._send(request)
        else:
            self._fail(*cause_of_death(process.returncode, process.has_answered, process.last_words))

    def _fail(self, code: str, sentence: str) -> None:
        assert self._current is not None
        self._events.append({"id": self._current.id, "event": "error", "code": code, "message": sentence})
        self._finish()


def cause_of_death(returncode: int, has_answered: bool, last_words: str) -> tuple[str, str]:
    """Code and sentence, with the likely cause and the way out, for a process that has ended unasked.

    Parameters
    ----------
    returncode
        As `subprocess` gives it; a launcher in between passes signal n on as 128 + n.
    has_answered
        Whether it ever got as far as to answer.
    last_words
        The last line that it printed.
    """
    name, cause = _signal(returncode)
    if cause:
        return "worker-died", f"The engine was stopped ({name}) {cause}."
    if not has_answered:
        reason = last_words or f"exit code {returncode}"
        return "installation", f"The engine can't be started ({reason}); set up the module again."
    return "worker-died", f"The engine stopped by itself (exit code {returncode}): try again, and report it."


def _signal(returncode: int) -> tuple[str, str]:
    """Name of the signal or of the Windows code, and what it means; empty where it is an ordinary exit code."""
    if returncode & 0xFFFFFFFF in WINDOWS_CODES:
        return WINDOWS_CODES[returncode & 0xFFFFFFFF]
    number = -returncode if returncode < 0 else returncode - 128
    try:
        name = signal.Signals(number).name
    except ValueError:
        return "", ""
    return name, SIGNALS.get(name, ENDED)


@dataclass(frozen=True)
class _Line:
    text: bytes
    is_message: bool  # from stdout


class _Process:
    """A child with its own process group; two threads read what it writes into a queue and do nothing else."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        options: dict[str, Any] = {"start_new_session": True}
        if sys.platform == "win32":
            flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
            options = {"creationflags": flags | subprocess.BELOW_NORMAL_PRIORITY_CLASS}
        self._child = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, **options
        )
        if sys.platform != "win32":
            with suppress(OSError):  # it may have died already
                own = os.getpriority(os.PRIO_PROCESS, 0)
                os.setpriority(os.PRIO_PGRP, self._child.pid, max(own, NICENESS))
        self._lines: queue.SimpleQueue[_Line] = queue.SimpleQueue()
        self._tail: deque[bytes] = deque(maxlen=LOG_TAIL)
        self.has_answered = False
        self._ended = False
        self._died: float | None = None
        self._readers = [
            threading.Thread(target=self._read, args=(stream, is_message), daemon=True)
            for stream, is_message in ((self._child.stdout, True), (self._child.stderr, False))
        ]
        for reader in self._readers:
            reader.start()

    @property
    def alive(self) -> bool:
        return self._child.poll() is None

    @property
    def returncode(self) -> int:
        return self._child.returncode

    @property
    def last_words(self) -> str:
        """The last line on stderr that isn't empty."""
        lines = [line.decode("utf-8", "replace").strip() for line in self._tail]
        return next((line for line in reversed(lines) if line), "")

    def send(self, message: Mapping[str, Any]) -> None:
        """To a child that has died it goes nowhere; that will show."""
        assert self._child.stdin is not None
        with suppress(OSError, ValueError):
            self._child.stdin.write(encode_line(message))
            self._child.stdin.flush()

    def next_line(self) -> _Line | None:
        """The next line that has been read, without waiting."""
        try:
            return self._lines.get_nowait()
        except queue.Empty:
            return None

    def is_over(self) -> bool:
        """Whether it has died and all that it wrote has been taken; children of its own may keep the pipes open."""
        if self.alive:
            return False
        self._died = self._died or time.monotonic()
        reading = any(reader.is_alive() for reader in self._readers) and time.monotonic() < self._died + DRAIN_S
        return not reading and self._lines.empty()

    def end_group(self) -> None:
        """Kill it with all that it has started: Slicer's Python is a launcher of the real one."""
        self._close_stdin()
        if self._ended:
            return
        self._ended = True
        if sys.platform == "win32":
            subprocess.Popen(
                ["taskkill", "/T", "/F", "/PID", str(self._child.pid)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                creationflags=subprocess.CREATE_NO_WINDOW,
            )
        else:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)

    def leave(self) -> None:
        """Ask it to go, and kill it when it doesn't."""
        self.send({"id": 0, "cmd": "exit"})
        self._close_stdin()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(EXIT_S)
        self.end_group()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(EXIT_S)

    def _close_stdin(self) -> None:
        assert self._child.stdin is not None
        with suppress(OSError):
            self._child.stdin.close()

    def _read(self, stream: Any, is_message: bool) -> None:
        with suppress(OSError, ValueError):
            for line in stream:
                text = line.rstrip(b"\r\n")
                if not is_message:
                    self._tail.append(text)
                self._lines.put(_Line(text, is_message))
