"""Small CLIP models in folders as open_clip keeps them, and small pictures with captions, for tests of training."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from word_list import write_words

from MedZeroSegLib.text_image.clip_model import ClipDescription, described_clip

EMBEDDING = 24
NATIVE = {
    "embed_dim": EMBEDDING,
    "vision_cfg": {"layers": 2, "width": 64, "head_width": 16, "patch_size": 16, "image_size": 64},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
BERT = {
    "embed_dim": EMBEDDING,
    "vision_cfg": {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 64,
    },
    "text_cfg": {
        "hf_model_name": "a BERT",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 60,
    },
}
BERT_SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
PICTURES = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
PLACES = ("left", "right", "upper", "lower")


def native_folder(folder: Path, seed: int = 0, width: int = 64) -> Path:
    """open_clip's own towers of two layers, with random weights."""
    architecture = json.loads(json.dumps(NATIVE))
    architecture["vision_cfg"]["width"] = width
    return _folder(folder, ClipDescription({"model_cfg": architecture, "preprocess_cfg": PICTURES}), seed)


def bert_folder(folder: Path, seed: int = 0) -> Path:
    """BiomedCLIP's family: a timm trunk and a BERT with its words."""
    words = write_words(folder / "vocab.txt").read_text(encoding="utf-8")
    settings = {"model_cfg": BERT, "preprocess_cfg": PICTURES, "bert_cfg": BERT_SIZES}
    (folder / "config.json").write_text(json.dumps(BERT_SIZES), encoding="utf-8")
    return _folder(folder, ClipDescription(settings, words), seed)


def _folder(folder: Path, description: ClipDescription, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    model = described_clip(description, None).model
    settings = {name: value for name, value in description.settings.items() if name != "bert_cfg"}
    (folder / "open_clip_config.json").write_text(json.dumps(settings), encoding="utf-8")
    state = {name: value.contiguous().clone() for name, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def picture_pairs(folder: Path, count: int = 12, val: int = 4) -> Path:
    """Grey pictures of a bright disc before a darker half, whose captions say where it is and how large.

    The last ``val`` are for val.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for n in range(count):
        place, radius = PLACES[n % len(PLACES)], 4 + n // len(PLACES)
        centre = {"left": (20, 10), "right": (20, 38), "upper": (8, 24), "lower": (32, 24)}[place]
        row, column = np.mgrid[:40, :48]
        inside = (row - centre[0]) ** 2 + (column - centre[1]) ** 2 < radius**2
        noise = np.random.default_rng(n).integers(0, 8, inside.shape)
        Image.fromarray((160 * inside + 60 * (column < 24) + noise).astype(np.uint8)).save(folder / f"{n:03}.png")
        split = "val" if n >= count - val else "train"
        rows.append((f"{n:03}.png", f"CT image of the liver with a disc at the {place}, size {radius}.", split))
    return write_pairs(folder / "pairs.csv", rows)


def write_pairs(
    file: Path, rows: Sequence[Sequence[str]], header: Sequence[str] = ("image", "caption", "split")
) -> Path:
    with file.open("w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([header, *rows])
    return file
