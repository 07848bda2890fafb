"""One case of a cohort before its turn: which image, which names, and marks by which a changed image is known."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.weights_catalogue import sha256_of


@dataclass(frozen=True, kw_only=True)
class Case:
    """One image of a cohort and what is asked of it.

    Attributes
    ----------
    name
        The only one of its kind in the cohort, whatever the letters' case; fit for a folder's name.
    image
        Image file, or the folder of a DICOM series, or one of its files where others lie in its folder.
    files
        The files of the DICOM series; empty where ``image`` is the only file, or all in the folder belong to it.
    structures
        Names as typed, separated by ";" or ",".
    modality, frame
        As `read_volume` takes them.
    carried
        Further columns of the input table, and the split; untouched.
    problem
        Sentence on why it can't be read at all; empty otherwise.
    """

    name: str
    image: Path
    structures: str
    files: tuple[Path, ...] = ()
    modality: str | None = None
    frame: int | None = None
    carried: Mapping[str, str] = field(default_factory=dict)
    problem: str = ""

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that hold the image."""
        return self.files or (self.image,)

    def signature(self) -> str:
        """Sizes and times of the files as one hash: equal while nobody touched them, and quick to find out."""
        digest = hashlib.sha256()
        for file in self._whole_sources():
            try:
                state = file.stat()
                digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\n".encode(errors="surrogateescape"))
            except OSError:
                digest.update(f"{file}\0missing\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def content_sha256(self) -> str:
        """Hash of what the files hold, whatever their names and times.

        Raises
        ------
        InputError
            When a file can't be read.
        """
        hashes = []
        for file in self._whole_sources():
            try:
                hashes.append(sha256_of(file))
            except OSError as error:
                reason = (error.strerror or "cannot be opened").lower()
                raise InputError(f"'{file}' cannot be read ({reason}); check its path and permissions.") from error
        return hashlib.sha256("".join(sorted(hashes)).encode()).hexdigest()

    def _whole_sources(self) -> tuple[Path, ...]:
        """The files, with those in a folder that was given as the image."""
        if self.files or not self.image.is_dir():
            return self.sources
        return tuple(sorted(file for file in self.image.rglob("*") if file.is_file()))
