"""The folder in which voxels and masks lie between Slicer and the engine: private, gone with the module, and what a
crash of Slicer has left is removed by the next one."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

PREFIX = "medzeroseg-files-"
LOCK_FILE = "in-use"  # locked while its process lives; the system lets go of it whichever way the process ends
YOUNGEST_S = 60.0  # a folder that has just been made may not have its lock yet


class ScratchFolder:
    """A new folder; making one removes those whose process has gone."""

    def __init__(self) -> None:
        remove_abandoned()
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        self._lock = (self.path / LOCK_FILE).open("wb")
        _try_to_lock(self._lock)

    @property
    def path(self) -> Path:
        return Path(self._folder.name)

    def close(self) -> None:
        """Remove it with all that is in it."""
        self._lock.close()
        self._folder.cleanup()


def remove_abandoned() -> None:
    """Remove this user's folders of processes that are gone; what cannot be removed stays."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with suppress(OSError):
            if _is_own(folder) and _is_unlocked(folder / LOCK_FILE):
                shutil.rmtree(folder)


def _is_own(folder: Path) -> bool:
    state = folder.lstat()
    mine = os.name == "nt" or state.st_uid == os.getuid()
    return mine and not folder.is_symlink() and time.time() - state.st_mtime > YOUNGEST_S


def _is_unlocked(path: Path) -> bool:
    with path.open("rb+") as file:
        return _try_to_lock(file)


def _try_to_lock(file: Any) -> bool:
    """Lock an open file for as long as it is open; False where another process holds the lock."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
