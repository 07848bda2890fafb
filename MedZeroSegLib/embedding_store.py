"""Embeddings of slices on disk, so that an image that was segmented before needs no encoder the next time.

A file is named by a hash of what the model sees and of the model, holds nothing of the patient's identity, and may be
read by its owner only. What was used least recently goes when the room is full.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.embeddings import EncodedSlices, EncodedVolume, SliceEncoder
from MedZeroSegLib.errors import InputError, MedZeroSegError
from MedZeroSegLib.weights import cache_folder
from MedZeroSegLib.writers import replacing

ROOM_VARIABLE = "MEDZEROSEG_EMBEDDINGS_GB"
ROOM_GB = 4.0  # about a thousand slices
SHARE_OF_FREE = 0.5  # of the disk's free space at most
HASH_BYTES = hashlib.sha256().digest_size  # at the head of a file; what doesn't match it is made anew
SUFFIX = ".slice"


@dataclass(frozen=True)
class EmbeddingStore:
    """A folder of encoded slices.

    Attributes
    ----------
    room
        Bytes that the folder may hold.
    """

    folder: Path
    room: int

    def give(self, encoded: EncodedVolume, rows: np.ndarray, made_by: str) -> None:
        """Fill those rows of a volume that are kept here.

        ``made_by`` names the models with their weights and settings; together with their code, that is all that the
        embeddings of a slice depend on.
        """
        for row in rows[~encoded.filled[rows]]:
            one = self._read(self._file(made_by, encoded.shown[row], encoded.canvas))
            if one is not None:
                encoded.put(np.array([row]), one)

    def keeping(self, encode: SliceEncoder, made_by: str) -> SliceEncoder:
        """The encoder, and what it makes is kept here."""

        def encode_and_keep(slices: np.ndarray, canvas: Canvas) -> EncodedSlices:
            made = encode(slices, canvas)
            for n, section in enumerate(slices):
                self._write(self._file(made_by, section, canvas), made.at(slice(n, n + 1)))
            self._make_room()
            return made

        return encode_and_keep

    def _file(self, made_by: str, section: np.ndarray, canvas: Canvas) -> Path:
        digest = hashlib.sha256(f"{made_by}\n{_code_digest()}\n{canvas}\n".encode())
        digest.update(np.ascontiguousarray(section).data)
        return self.folder / f"{digest.hexdigest()[:40]}{SUFFIX}"

    def _read(self, file: Path) -> EncodedSlices | None:
        """The slice, None where it isn't kept or its file is damaged."""
        try:
            content = file.read_bytes()
            if hashlib.sha256(memoryview(content)[HASH_BYTES:]).digest() != content[:HASH_BYTES]:
                return None
            arrays = load(content[HASH_BYTES:])
            os.utime(file)  # used now
            return EncodedSlices(arrays["coarse"], arrays["pixels"], arrays["summary"])
        except (OSError, SafetensorError, KeyError):
            return None

    def _write(self, file: Path, one: EncodedSlices) -> None:
        """Keep a slice; a store that can't be written costs time, not results."""
        arrays = {"coarse": one.coarse, "pixels": one.pixels, "summary": one.summary}
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        with suppress(OSError, MedZeroSegError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with replacing(file) as out:
                os.chmod(out.name, 0o600)
                out.write(hashlib.sha256(content).digest())
                out.write(content)

    def _make_room(self) -> None:
        """Remove what was used least recently until the rest has room."""
        with suppress(OSError):
            states = [(entry.stat(), entry.path) for entry in os.scandir(self.folder) if entry.name.endswith(SUFFIX)]
            held = sum(state.st_size for state, _ in states)
            room = min(self.room, held + int(SHARE_OF_FREE * shutil.disk_usage(self.folder).free))
            for state, path in sorted(states, key=lambda one: one[0].st_mtime_ns):
                if held <= room:
                    break
                with suppress(OSError):
                    os.unlink(path)
                held -= state.st_size


def embedding_store() -> EmbeddingStore | None:
    """This user's store; None where MEDZEROSEG_EMBEDDINGS_GB says 0.

    Raises
    ------
    InputError
        When the variable is no number.
    """
    stated = os.environ.get(ROOM_VARIABLE, "").strip() or str(ROOM_GB)
    try:
        room = int(float(stated) * 1e9)
    except (ValueError, OverflowError) as problem:
        raise InputError(f"{ROOM_VARIABLE} is {stated!r}; set it to a number of GB, 0 for none.") from problem
    return EmbeddingStore(cache_folder() / "embeddings", room) if room > 0 else None


@cache
def _code_digest() -> str:
    """SHA-256 in hex of the models' code: what other code has computed is not taken."""
    library, digest = Path(__file__).parent, hashlib.sha256()
    models = [file for folder in ("mask_decoder", "text_image") for file in sorted((library / folder).glob("*.py"))]
    for file in (library / "canvas.py", *models):
        digest.update(file.read_bytes())
    return digest.hexdigest()
