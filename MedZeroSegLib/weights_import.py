"""Weight files carried by hand, from any folder into the store: known by size and SHA-256, whatever they are called."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from .errors import InputError, InstallationError
from .weights import STORE, WeightRow, WeightsStore, weight_row
from .weights_catalogue import BLOCK, WeightFile, Weights, check_hashes, sha256_of, state_hash, stated_hashes
from .writers import replacing

REFUSED_NAMED_MAX = 3  # files that the sentence about an import without success still names


def import_folder(store: WeightsStore, folder: str | Path, stated: Mapping[str, str] | None = None) -> list[WeightRow]:
    """Copy the catalogue's files out of a folder, and the folders in it, into the store.

    A file whose hash the catalogue does not know is taken by its name if its hash is stated.

    Parameters
    ----------
    stated : SHA-256 by file name; a file SHA256SUMS beside the files states them as well.

    Returns
    -------
    list of WeightRow
        One for each file copied, and one with ``ok`` False for each that has a known name and another content.

    Raises
    ------
    InputError
        When the folder is not there, or holds none of the files.
    InstallationError
        When a file can't be read, or the store not be written to.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"'{folder}' is not a folder; give the one in which the weight files were carried.")
    stated = check_hashes(stated or {})
    rows = [row for path in _files_below(folder, store.root) for row in _import_file(store, path, stated)]
    if not any(row.ok for row in rows):
        refused = "".join(f"; {row.note}" for row in rows[:REFUSED_NAMED_MAX])
        raise InputError(
            f"'{folder}' holds none of the files that `medzeroseg weights list` names, going by size and SHA-256"
            f"{refused}; get them again."
        )
    return rows


def _files_below(folder: Path, root: Path) -> Iterator[Path]:
    for base, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(base, name) != root)
        for name in sorted(names):
            if (path := Path(base, name)).is_file():
                yield path


def _import_file(store: WeightsStore, path: Path, stated: Mapping[str, str]) -> Iterator[WeightRow]:
    """Copy one file to each place for which the catalogue lists a file of its size and hash."""
    size, digest = path.stat().st_size, None
    beside = {**stated_hashes(path.parent), **stated}
    entries = [(weights, file) for weights in store.catalogue.values() for file in weights.files]
    taken = False
    for weights, file in entries:
        sha256 = file.sha256 or (beside.get(file.name) if path.name == file.name else None)
        if sha256 is None and file.words is not None and path.name == file.name:
            digest = digest or _readable_hash(path)
            sha256 = digest if file.words.difference(path) is None else None
        if sha256 is None or file.size not in (None, size):
            continue
        digest = digest or _readable_hash(path)
        if digest == sha256:
            target = store.root / weights.name / file.name
            _copy(path, target, sha256)
            if file.sha256 is None:
                state_hash(target, sha256)
            taken = True
            yield weight_row(weights, file, STORE, target, True, f"copied from '{path}'")
    if not taken:
        yield from _refusals(entries, path)


def _refusals(entries: list[tuple[Weights, WeightFile]], path: Path) -> Iterator[WeightRow]:
    """The rows of models whose main file has this name; lesser names, like config.json, are everywhere."""
    for weights, file in entries:
        if file.name == path.name and file is weights.files[0]:
            yield weight_row(weights, file, "", path, False, f"'{path}' is not the file listed under that name")


def _readable_hash(path: Path) -> str:
    try:
        return sha256_of(path)
    except OSError as error:
        reason = (error.strerror or "no reason given").lower()
        raise InstallationError(f"'{path}' can't be read ({reason}); give a folder that you may read.") from error


def _copy(path: Path, target: Path, sha256: str) -> None:
    """A copy under its final name, if what was copied has the hash."""
    if target.is_file() and sha256_of(target) == sha256:
        return
    digest = hashlib.sha256()
    with path.open("rb") as file, replacing(target) as out:
        while block := file.read(BLOCK):
            digest.update(block)
            out.write(block)
        if digest.hexdigest() != sha256:
            raise InstallationError(f"'{path}' changed while it was copied; import it again.")
