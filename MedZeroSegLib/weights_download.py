"""One weight file from the network: resumed, checked by SHA-256, and under its final name only when it is whole.

Proxies come from the environment as usual (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .errors import InstallationError
from .weights_catalogue import WORDS_SIZE_MAX, WeightFile, looks_like_web_page

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, "int | None"], None]  # bytes there, bytes in all (None: not known)

ATTEMPTS = 4  # in a row without a byte gained, then the next source
PAUSE = 0.5  # seconds before the second attempt, twice that before the third, ...
TIMEOUT = 30.0  # seconds without a connection or a byte
UNSTATED_SIZE_MAX = 4 << 30  # bytes of a file whose size nobody states


class _Refused(Exception):
    """A source is of no use; the text says why."""


class _Interrupted(Exception):
    """The transfer ended early; asking again may help. The text says what happened."""


def download(
    file: WeightFile, sha256: str | None, target: Path, ca_file: Path | None = None, progress: Progress | None = None
) -> None:
    """Fetch a file to ``target``, going on with TARGET.part if an earlier attempt left one.

    Parameters
    ----------
    sha256 : what the file must hash to; None where the catalogue knows its words instead.
    ca_file : certificates (PEM) to trust beside the usual ones.
    progress : told the bytes that are there and the bytes in all.

    Raises
    ------
    InstallationError
        When no source gave the file; the sentence says why and how to carry the file by hand.
    """
    remedy = f"get {file.sources[0]} (SHA-256 {sha256 or 'not known'}) by other means and put it into '{target.parent}'"
    part = target.with_name(target.name + ".part")
    reasons = []
    try:
        _check_room(file, part)
        with _client(ca_file, remedy) as client:
            for url in file.sources:
                try:
                    _fetch_whole(client, url, file, sha256, part, progress)
                    os.replace(part, target)
                    return
                except _Refused as reason:
                    reasons.append(f"{urlsplit(url).hostname}: {reason}")
    except OSError as error:
        problem = (error.strerror or type(error).__name__).lower()
        raise InstallationError(
            f"'{target}' can't be written ({problem}); make room or give a folder that you may write to, or {remedy}."
        ) from error
    raise InstallationError(f"'{file.name}' could not be downloaded ({'; '.join(reasons)}); {remedy}.")


def _check_room(file: WeightFile, part: Path) -> None:
    part.parent.mkdir(parents=True, exist_ok=True)
    needed = (file.size or 0) - _size(part)
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise InstallationError(
            f"'{file.name}' needs {needed / 1e6:,.0f} MB and '{part.parent}' has {free / 1e6:,.0f} MB left; make room."
        )


def _client(ca_file: Path | None, remedy: str) -> httpx.Client:
    try:
        import httpx
    except ImportError as error:
        raise InstallationError(f"Downloading needs the package httpx: `pip install httpx`, or {remedy}.") from error
    try:
        context = httpx.create_ssl_context()
        context.load_default_certs()  # the system's store, where a hospital keeps its own authority
        if ca_file is not None:
            context.load_verify_locations(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        named = ca_file or os.environ.get("SSL_CERT_FILE") or os.environ.get("SSL_CERT_DIR")
        raise InstallationError(
            f"The certificates in '{named}' can't be read; name a file with certificates in PEM form, or {remedy}."
        ) from error
    try:
        return httpx.Client(verify=context, follow_redirects=True, timeout=TIMEOUT)
    except (ValueError, ImportError, httpx.InvalidURL) as error:
        raise InstallationError(
            f"The proxy that the environment names can't be used ({error}); correct HTTPS_PROXY, or {remedy}."
        ) from error


def _fetch_whole(
    client: httpx.Client, url: str, file: WeightFile, sha256: str | None, part: Path, progress: Progress | None
) -> None:
    """Fill ``part`` from one address until it is the file; begin anew once if an older part spoilt it."""
    problem: str | None = None
    for resumed in (_size(part) > 0, False):
        _fetch_patiently(client, url, file, part, progress)
        problem = file.difference(part, sha256)
        if problem is None:
            return
        part.unlink()
        if not resumed:
            break
    raise _Refused(f"of what it sends is said: {problem}")


def _fetch_patiently(client: httpx.Client, url: str, file: WeightFile, part: Path, progress: Progress | None) -> None:
    """Ask again after a closed connection, going on where it stopped, while that gains bytes."""
    import httpx

    furthest, failures = _size(part), 0
    while True:
        try:
            _receive(client, url, file, part, progress)
            return
        except (httpx.ConnectError, httpx.ProxyError, httpx.UnsupportedProtocol) as error:
            raise _Refused(_connection_problem(error)) from error
        except (httpx.TooManyRedirects, httpx.InvalidURL) as error:
            raise _Refused("it redirects without end") from error
        except (httpx.TransportError, _Interrupted) as error:
            gained = _size(part) > furthest
            furthest, failures = max(furthest, _size(part)), 1 if gained else failures + 1
            if failures == ATTEMPTS:
                reason = str(error) if isinstance(error, _Interrupted) else "the connection keeps breaking"
                raise _Refused(f"{reason}, {furthest:,} bytes are kept for the next time") from error
            time.sleep(PAUSE * failures)


def _connection_problem(error: Exception) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return (
            "its certificate is not trusted; if your network has its own certificate authority, "
            "name that file with --ca-file or MEDZEROSEG_CA_FILE"
        )
    return f"no connection, {error}".lower()


def _receive(client: httpx.Client, url: str, file: WeightFile, part: Path, progress: Progress | None) -> None:
    """One request; what arrives is in ``part`` also when it raises."""
    limit = file.size or (WORDS_SIZE_MAX if file.words else UNSTATED_SIZE_MAX)
    have = _size(part)
    if have == file.size:
        return  # only the renaming was missing
    if have > limit:
        part.unlink()
        have = 0
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with client.stream("GET", url, headers=headers) as response:
        have, total = _accept(response, have, part)
        arriving = response.iter_raw()  # as it comes: a buffer would be lost when the connection closes
        block = next(arriving, b"")
        if have == 0 and looks_like_web_page(block):
            raise _Refused("it sends a web page, so the network may want a login first")
        if file.size is not None and total not in (None, file.size):
            raise _Refused(f"it offers {total:,} bytes instead of {file.size:,}")
        with part.open("ab" if have else "wb") as out:
            while block:
                out.write(block)
                have += len(block)
                if have > limit:
                    raise _Refused(f"it sends more than {limit:,} bytes")
                if progress is not None:
                    progress(have, file.size or total)
                block = next(arriving, b"")
    if have < (file.size or total or 0):
        raise _Interrupted("the connection is closed too early")


def _accept(response: httpx.Response, have: int, part: Path) -> tuple[int, int | None]:
    """How many bytes stay when this response is appended to ``part``, and how many there will be (None: not said)."""
    status = response.status_code
    if status == 206:
        start = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if start and int(start[1]) == have:
            return have, None if start[2] == "*" else int(start[2])
    if status in (206, 416):  # another piece than the one asked for, or the part is longer than the file there
        part.unlink(missing_ok=True)
        raise _Interrupted("it can't go on with the part that is here")
    if status == 429 or status >= 500:
        raise _Interrupted(f"it answers {status} {response.reason_phrase}".rstrip())
    if status != 200:
        raise _Refused(f"it answers {status} {response.reason_phrase}".rstrip())
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
