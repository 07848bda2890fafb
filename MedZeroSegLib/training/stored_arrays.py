"""Arrays on disk that are filled item by item; an interrupted run goes on where it stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from MedZeroSegLib.writers import replacing


class StoredArrays:
    """A folder of arrays and the number of items that they hold; begun anew where it was begun with another plan.

    Parameters
    ----------
    plan
        Names what the arrays will hold.
    """

    def __init__(self, folder: Path, plan: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.journal = folder, folder / "done.txt"
        file = folder / "plan.txt"
        if file.is_file() and file.read_text(encoding="utf-8") != plan:
            self.journal.unlink(missing_ok=True)
        _write_text(file, plan)

    def array(self, name: str, kind: type, shape: tuple[int, ...]) -> np.ndarray:
        """The array of that name, open for writing; to be asked for before `done`."""
        file = self.folder / f"{name}.npy"
        if file.is_file():
            stored = np.load(file, mmap_mode="r+")
            if stored.shape == shape:
                return stored
            del stored
            self.journal.unlink(missing_ok=True)  # what was done is not in the new array
        return np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=shape)

    @property
    def done(self) -> int:
        """Items that are stored."""
        return int(self.journal.read_text()) if self.journal.is_file() else 0

    def mark(self, items: int) -> None:
        """So many items are stored now."""
        _write_text(self.journal, str(items))


def _write_text(file: Path, text: str) -> None:
    with replacing(file) as handle:
        handle.write(text.encode())
