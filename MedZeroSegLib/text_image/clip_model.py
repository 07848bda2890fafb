"""CLIP models through open_clip, from files that are on this machine: image tower, text tower, tokenizer.

No hub is asked for anything: the architecture is built from the configuration beside the weights, PubMedBERT's from its
published sizes, and its tokenizer from its list of words.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.text_image.dense_attention import ImageTower, image_tower
from MedZeroSegLib.text_image.key_map import is_hugging_face_layout, to_open_clip

TEXTS_AT_ONCE = 32  # in a pass through the text tower
POSITIONS = "text.transformer.embeddings.position_ids"  # counting numbers that older versions stored with the weights
BIOMEDCLIP = Path(__file__).with_name("biomedclip.json")  # its own configuration, for weights that come without


@dataclass(frozen=True)
class Tokenizer:
    """Strings → token ids.

    Attributes
    ----------
    ids
        Ids of one string, not cut.
    length_max
        Ids that the tower reads.
    last
        The id that ends a string.
    padding
        The id after the end.
    """

    ids: Callable[[str], list[int]]
    length_max: int
    last: int
    padding: int

    def batch(self, texts: Sequence[str]) -> Tensor:
        """Ids [n, t], cut to what the tower reads, their end kept; t is the longest text's length."""
        rows = [self.ids(text) for text in texts]
        rows = [row if len(row) <= self.length_max else [*row[: self.length_max - 1], self.last] for row in rows]
        longest = max(len(row) for row in rows)
        return torch.tensor([row + [self.padding] * (longest - len(row)) for row in rows])

    def cuts(self, text: str) -> bool:
        """Whether the tower reads only the beginning of a text."""
        return len(self.ids(text)) > self.length_max


class ClipModel:
    """Both towers, for inference.

    Parameters
    ----------
    model
        open_clip's model with its weights loaded.
    mean, std
        Of the pictures that its image tower was trained on.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer, mean: Sequence[float], std: Sequence[float], device: str = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.model: Any = model.eval().requires_grad_(False).to(self.device)
        self.tokenizer = tokenizer
        self.tower: ImageTower = image_tower(self.model.visual)
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.std = torch.tensor(std).view(1, 3, 1, 1)

    @property
    def scale(self) -> float:
        """The model's own inverse temperature."""
        return float(self.model.logit_scale.exp())

    @property
    def width(self) -> int:
        """Channels of the image tower's tokens."""
        visual = self.model.visual
        return visual.trunk.embed_dim if hasattr(visual, "trunk") else visual.conv1.out_channels

    @property
    def embedding(self) -> int:
        """Length of the vectors that pictures and texts share."""
        visual = self.model.visual
        return visual.head.proj.out_features if hasattr(visual, "trunk") else visual.proj.shape[1]

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [n, e] on the device."""
        pieces = [texts[start : start + TEXTS_AT_ONCE] for start in range(0, len(texts), TEXTS_AT_ONCE)]
        vectors = [self.model.encode_text(self.tokenizer.batch(piece).to(self.device)) for piece in pieces]
        return F.normalize(torch.cat(vectors), dim=-1)


def biomedclip(
    state: Mapping[str, Tensor] | None, words: Path, config: Path = BIOMEDCLIP, device: str = "cpu"
) -> ClipModel:
    """BiomedCLIP, or weights fine-tuned from it.

    Parameters
    ----------
    state
        Its tensors in open_clip's or in Hugging Face's layout; None leaves random ones.
    words
        PubMedBERT's vocab.txt.
    config
        The open_clip_config.json that belongs to the weights.

    Raises
    ------
    InstallationError
        When a file isn't what it should be.
    """
    try:
        settings = json.loads(config.read_text(encoding="utf-8"))
        architecture, pictures = settings["model_cfg"], settings["preprocess_cfg"]
        model = _with_bert(architecture)
        tokenizer = _word_pieces(words, int(architecture["text_cfg"]["context_length"]))
        mean, std = pictures["mean"], pictures["std"]
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise InstallationError(
            f"'{config}' and '{words}' don't describe BiomedCLIP ({type(problem).__name__}); "
            "get both again with `medzeroseg weights fetch biomedclip`."
        ) from problem
    if state is not None:
        _load(model, state)
    return ClipModel(model, tokenizer, mean, std, device)


def native_clip(name: str, state: Mapping[str, Tensor] | None, device: str = "cpu") -> ClipModel:
    """One of open_clip's own architectures, such as "ViT-B-16-quickgelu", with its bundled tokenizer.

    Raises
    ------
    InstallationError
        When the weights are not of this architecture.
    """
    import open_clip

    model = open_clip.create_model(name, pretrained=None)
    if state is not None:
        _load(model, state)
    bpe = open_clip.SimpleTokenizer()

    def ids(text: str) -> list[int]:
        return [bpe.sot_token_id, *bpe.encode(text), bpe.eot_token_id]

    tokenizer = _Fixed(ids, int(model.context_length), bpe.eot_token_id, 0)
    return ClipModel(model, tokenizer, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD, device)


class _Fixed(Tokenizer):
    """Ids padded to the tower's full length, which open_clip's own text towers want."""

    def batch(self, texts: Sequence[str]) -> Tensor:
        rows = super().batch(texts)
        return F.pad(rows, (0, self.length_max - rows.shape[1]), value=self.padding)


def _with_bert(architecture: Mapping[str, Any]) -> nn.Module:
    """open_clip's model around a BERT of PubMedBERT's sizes, which are transformers' own defaults."""
    from open_clip import CustomTextCLIP
    from transformers import BertConfig

    with tempfile.TemporaryDirectory(prefix="medzeroseg-") as folder:
        BertConfig().save_pretrained(folder)
        text = {**architecture["text_cfg"], "hf_model_name": folder, "hf_model_pretrained": False}
        return CustomTextCLIP(int(architecture["embed_dim"]), dict(architecture["vision_cfg"]), text)


def _word_pieces(words: Path, length_max: int) -> Tokenizer:
    from tokenizers import BertWordPieceTokenizer

    lines = words.read_text(encoding="utf-8").rstrip("\n").split("\n")
    if not {"[PAD]", "[UNK]", "[CLS]", "[SEP]"} <= set(lines):
        raise ValueError("no list of BERT's words")
    pieces = BertWordPieceTokenizer({word: number for number, word in enumerate(lines)}, lowercase=True)
    if pieces.token_to_id("[PAD]") != 0:
        raise ValueError("its padding isn't the first word")
    return Tokenizer(lambda text: pieces.encode(text).ids, length_max, pieces.token_to_id("[SEP]"), 0)


def _load(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    try:
        tensors = to_open_clip(state) if is_hugging_face_layout(state) else dict(state)
        if POSITIONS not in model.state_dict():
            tensors.pop(POSITIONS, None)
        model.load_state_dict(tensors)
    except (ValueError, RuntimeError) as problem:
        raise InstallationError(
            f"These weights aren't those of {type(model).__name__} that the preset is made of; "
            "run `medzeroseg weights verify` to see which file is wrong."
        ) from problem
