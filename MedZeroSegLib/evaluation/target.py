"""What is measured on: the cases of one split, those that tell which names are marked, and what identifies them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.weights_catalogue import sha256_of


@dataclass(frozen=True)
class Target:
    """Images to measure on.

    Attributes
    ----------
    cases
        Of the split.
    annotated
        Cases whose masks tell which names are marked together; more than ``cases`` where other splits show more.
    identity
        What ``run.json`` keeps, so that scores of other images are never mixed with these; has "split".
    """

    cases: tuple[Case, ...]
    annotated: tuple[Case, ...]
    identity: Mapping[str, str] = field(default_factory=dict)


def manifest_target(manifest: Path | str, split: str) -> Target:
    """One split of a manifest; raises InputError."""
    return Target(
        tuple(read_manifest(manifest, split)),
        tuple(read_manifest(manifest)),
        {"manifest": sha256_of(Path(manifest)), "split": split},
    )


def files_fingerprint(root: Path, cases: Iterable[Case]) -> str:
    """SHA-256 in hex over the names and sizes of all image and mask files, relative to their root."""
    files = sorted({file for case in cases for file in (case.image, case.mask)})
    lines = (f"{file.relative_to(root).as_posix()} {file.stat().st_size}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
