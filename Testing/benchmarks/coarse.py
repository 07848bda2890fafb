"""What it costs in Dice that long volumes are looked at in every second key slice first, and how much it saves.

Run     .venv/bin/python Testing/benchmarks/coarse.py MANIFEST [--split val] [--keys-min 5] [--preset lite]
Prints  a line for each source: its volumes and the structures that they mark, the share of slices left out for a name,
        mean Dice of the look at all key slices and of the coarse one, and the largest fall of one structure.
        The product leaves slices out from 40 key slices on; --keys-min asks for it in shorter volumes, whose slices
        differ as much from one to the next, for few volumes with masks are that long.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from MedZeroSegLib import coarse_pass, encoding, pipeline
from MedZeroSegLib.embedding_store import EmbeddingStore
from MedZeroSegLib.embeddings import expected_slices
from MedZeroSegLib.evaluation.manifest import Case, read_manifest
from MedZeroSegLib.evaluation.metrics import dice_of
from MedZeroSegLib.volume import Volume
from MedZeroSegLib.volume_io import read_volume

NEVER = sys.maxsize  # key slices from which some are left out
ROOM = 4_000_000_000  # bytes for one volume's embeddings


@dataclass(frozen=True)
class Measured:
    """Dice of one structure, dense and coarse, and the share of its key slices that were left out."""

    source: str
    case: str
    dense: float
    coarse: float
    left_out: float


def masks(volume: Volume, name: str, preset: str, keys_min: int, store: EmbeddingStore) -> tuple[np.ndarray, float]:
    """The mask of a name, and the share of the key slices that were looked at once it is drawn."""
    coarse_pass.KEYS_MIN = keys_min
    result = pipeline.segment(volume, [name], preset, "cpu", store=store)
    kept = next(reversed(encoding._encoded.values()))
    return result.segments[0].mask, float(kept.filled.mean())


def measured(case: Case, preset: str, keys_min: int, store: EmbeddingStore) -> Iterator[Measured]:
    """Each structure that the case marks; slices are encoded once for all of them."""
    volume = read_volume(case.image, modality=case.modality)
    labels = case.read_labels(volume)
    for value, name in case.labels.items():
        truth = labels == value
        if not truth.any():
            continue
        encoding.forget_volumes()
        coarse, looked_at = masks(volume, name, preset, keys_min, store)
        dense, _ = masks(volume, name, preset, NEVER, store)
        yield Measured(case.source, case.case_id, dice_of(truth, dense), dice_of(truth, coarse), 1 - looked_at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", default="val")
    parser.add_argument("--sources", nargs="+", help="by default all")
    parser.add_argument("--keys-min", type=int, default=coarse_pass.KEYS_MIN)
    parser.add_argument("--preset", default="lite")
    arguments = parser.parse_args()
    by_source: dict[str, list[Measured]] = defaultdict(list)
    for case in read_manifest(arguments.manifest, arguments.split):
        if arguments.sources and case.source not in arguments.sources:
            continue
        if expected_slices(read_volume(case.image, modality=case.modality)) >= arguments.keys_min:
            with tempfile.TemporaryDirectory() as folder:
                store = EmbeddingStore(Path(folder), ROOM)
                by_source[case.source] += measured(case, arguments.preset, arguments.keys_min, store)
    print("| source | volumes, structures | left out | Dice dense | coarse | largest fall |\n" + "| --- " * 6 + "|")
    together = [row for rows in by_source.values() for row in rows]
    for source, rows in [*by_source.items(), ("all", together)]:
        dense, coarse, left_out = (np.mean([getattr(r, key) for r in rows]) for key in ("dense", "coarse", "left_out"))
        volumes, fall = len({row.case for row in rows}), max(row.dense - row.coarse for row in rows)
        print(f"| {source} | {volumes}, {len(rows)} | {left_out:.0%} | {dense:.4f} | {coarse:.4f} | {fall:.3f} |")


if __name__ == "__main__":
    main()
