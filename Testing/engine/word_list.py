"""A small vocab.txt in the form of BERT's, for tests: special tokens first, then letters, pieces and a few words."""

from __future__ import annotations

import string
from pathlib import Path

WORDS = (
    "liver",
    "spleen",
    "lung",
    "kidney",
    "heart",
    "the",
    "of",
    "a",
    "image",
    "showing",
    "slice",
    "with",
    "ct",
    "bone",
)


def write_words(file: Path, count: int | None = None) -> Path:
    """``count`` fills the list up with words that no text has."""
    lines = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase, *string.digits, *string.punctuation]
    lines += [f"##{letter}" for letter in string.ascii_lowercase] + list(WORDS)
    lines += [f"[unused{n}]" for n in range((count or 0) - len(lines))]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file
