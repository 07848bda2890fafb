"""Retrieval of a CLIP model on image-caption pairs, alone or before and after its fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from MedZeroSegLib.device import choose_device
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.retrieval import mcnemar, ranks_of, retrieval, retrieval_table
from MedZeroSegLib.text_image.clip_model import ClipModel
from MedZeroSegLib.training.clip_weights import open_clip_model
from MedZeroSegLib.training.pair_pictures import plain_pictures
from MedZeroSegLib.training.pairs import Pair, Pairs, read_pairs, twins_of
from MedZeroSegLib.training.processes import Processes
from MedZeroSegLib.weights import weights_store
from MedZeroSegLib.writers import replacing

PICTURES_AT_ONCE, THREADS = 64, 2
START = "start.npz"  # the measured pairs' vectors before training


@dataclass(frozen=True)
class Measured:
    """The pairs that retrieval is measured on, the model, and their vectors before training."""

    clip: ClipModel
    pairs: tuple[Pair, ...]
    split: str
    threads: int
    images: np.ndarray
    texts: np.ndarray

    @classmethod
    def of(cls, clip: ClipModel, pairs: Pairs, folder: Path, threads: int, processes: Processes) -> Measured:
        """Encodes the pairs before the first step; a resumed run takes them from its folder."""
        split = "test" if pairs.of("test") else "val"
        chosen, file = pairs.of(split), folder / START
        none = np.zeros((0, clip.embedding), np.float32)
        images, texts = none, none
        if processes.leading and chosen:
            if not file.is_file():
                images, texts = encode_pairs(clip, chosen, threads)
                with replacing(file) as handle:
                    np.savez(handle, images=images, texts=texts)
            stored = np.load(file, allow_pickle=False)
            images, texts = stored["images"], stored["texts"]
        processes.wait()
        return cls(clip, chosen, split, threads, images, texts)

    def report(self) -> str:
        """Retrieval before and after training, in Markdown."""
        if not self.pairs:
            return "Retrieval was not measured: no pair belongs to the split val or test."
        twins = twins_of(self.pairs)
        images, texts = encode_pairs(self.clip, self.pairs, self.threads)
        table = retrieval_table(
            [("start", retrieval(self.images, self.texts, twins)), ("fine-tuned", retrieval(images, texts, twins))]
        )
        changes = []
        for direction, before, after, same in (
            ("image to text", self.images @ self.texts.T, images @ texts.T, twins),
            ("text to image", self.texts @ self.images.T, texts @ images.T, twins.T),
        ):
            p = mcnemar(ranks_of(before, same) == 0, ranks_of(after, same) == 0)
            changes.append(f"{direction} p = {p:.3g}")
        return (
            f"Retrieval on {len(self.pairs):,} pairs of the split {self.split}:\n\n{table}\n\n"
            f"McNemar's test of top-1 among all {len(self.pairs):,}: {', '.join(changes)}."
        )


def encode_pairs(clip: ClipModel, pairs: Sequence[Pair], threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors float32 [n, d] of pictures and captions, by the model as it is now."""
    training = clip.model.training
    clip.model.eval()
    pieces, waiting = [], []
    with torch.inference_mode():
        for number, shown in enumerate(plain_pictures(clip, pairs, threads), 1):
            waiting.append(shown)
            if len(waiting) == PICTURES_AT_ONCE or number == len(pairs):
                vectors = clip.model.encode_image(torch.cat(waiting).to(clip.device))
                pieces.append(F.normalize(vectors.float(), dim=-1).cpu().numpy())
                waiting = []
    texts = clip.encode([pair.caption for pair in pairs]).float().cpu().numpy()
    clip.model.train(training)
    return np.concatenate(pieces), texts


def measure_retrieval(
    file: Path, model: str, images: Path | None, skip_missing: bool, device: str, weights_folder: Path | None
) -> str:
    """Retrieval of a model on a file of pairs (its split test, else val), as a sentence and a table in Markdown."""
    pairs = read_pairs(file, images, skip_missing)
    split = "test" if pairs.of("test") else "val"
    chosen = pairs.of(split)
    if not chosen:
        raise InputError(f"'{file}' has no pair of the split val or test; add a column split that says so.")
    place, _ = choose_device(device)
    clip = open_clip_model(model, weights_store(weights_folder), place)
    vectors = encode_pairs(clip, chosen, THREADS)
    table = retrieval_table([(Path(model).name, retrieval(*vectors, twins_of(chosen)))])
    remarks = "\n".join((*pairs.remarks, *cut_captions(clip, chosen)))
    return f"{remarks}\n\nRetrieval on {len(chosen):,} pairs of the split {split}:\n\n{table}".lstrip()


def cut_captions(clip: ClipModel, pairs: Sequence[Pair]) -> tuple[str, ...]:
    """A sentence where the text tower reads only the beginning of some captions."""
    cut = sum(clip.tokenizer.cuts(pair.caption) for pair in pairs)
    limit = clip.tokenizer.length_max
    if not cut:
        return ()
    return (
        f"{cut} of {len(pairs)} captions are longer than the {limit} tokens that the model reads; their ends are cut.",
    )
