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
OPENAI_PICTURES = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
}  # of the pictures that CLIP was trained on


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


@dataclass(frozen=True)
class ClipDescription:
    """All that is needed beside the tensors to build a model.

    Attributes
    ----------
    settings
        The content of an open_clip_config.json; "bert_cfg" in it holds the sizes of a BERT that isn't PubMedBERT's.
    words
        The content of BERT's vocab.txt; "" for open_clip's own text towers and tokenizer.
    """

    settings: Mapping[str, Any]
    words: str = ""


class ClipModel:
    """Both towers, for inference.

    Parameters
    ----------
    model
        open_clip's model with its weights loaded.
    mean, std
        Of the pictures that its image tower was trained on.
    description
        What it was built from; needed where the model is to be written to a file.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        mean: Sequence[float],
        std: Sequence[float],
        device: str = "cpu",
        description: ClipDescription | None = None,
    ) -> None:
        self.description = description
        self.device = torch.device(device)
        self.model: Any = model.eval().requires_grad_(False).to(self.device)
        self.tokenizer = tokenizer
        self.tower: ImageTower = image_tower(self.model.visual)
        self.mean = torch.tensor(mean).view(1, 3, 1, 1)
        self.std = torch.tensor(std).view(1, 3, 1, 1)

    def normed(self, squares: Tensor) -> Tensor:
        """Grey squares [n, 1, s, s] in 0..1 → pictures [n, 3, s, s] as the image tower wants them."""
        return (squares - self.mean) / self.std

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
        return described_clip(ClipDescription(settings, words.read_text(encoding="utf-8")), state, device)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as problem:
        raise InstallationError(
            f"'{config}' and '{words}' don't describe BiomedCLIP ({type(problem).__name__}); "
            "get both again with `medzeroseg weights fetch biomedclip`."
        ) from problem


def native_clip(name: str, state: Mapping[str, Tensor] | None, device: str = "cpu") -> ClipModel:
    """One of open_clip's own architectures, such as "ViT-B-16-quickgelu", with its bundled tokenizer.

    Raises
    ------
    InstallationError
        When the weights are not of this architecture.
    """
    import open_clip

    settings = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": OPENAI_PICTURES}
    return described_clip(ClipDescription(settings), state, device)


def described_clip(description: ClipDescription, state: Mapping[str, Tensor] | None, device: str = "cpu") -> ClipModel:
    """The model of a description; without ``state`` its weights are random.

    Raises
    ------
    InstallationError
        When the weights are not of this architecture.
    OSError, KeyError, TypeError, ValueError, RuntimeError
        When the description describes no model that can be built here.
    """
    settings = description.settings
    architecture, pictures = dict(settings["model_cfg"]), settings.get("preprocess_cfg", OPENAI_PICTURES)
    if "hf_model_name" in architecture["text_cfg"]:
        model = _with_bert(architecture, settings.get("bert_cfg", {}))
        tokenizer = _word_pieces(description.words, int(architecture["text_cfg"]["context_length"]))
    else:
        model = _native(architecture)
        tokenizer = _byte_pairs(int(model.context_length))
    if state is not None:
        _load(model, state)
    return ClipModel(model, tokenizer, pictures["mean"], pictures["std"], device, description)


class _Fixed(Tokenizer):
    """Ids padded to the tower's full length, which open_clip's own text towers want."""

    def batch(self, texts: Sequence[str]) -> Tensor:
        rows = super().batch(texts)
        return F.pad(rows, (0, self.length_max - rows.shape[1]), value=self.padding)


def _native(architecture: dict[str, Any]) -> Any:
    """open_clip's model with a text tower of its own."""
    from open_clip.model import CLIP, CustomTextCLIP

    custom = architecture.pop("custom_text", False)
    return (CustomTextCLIP if custom else CLIP)(**architecture)


def _byte_pairs(length_max: int) -> Tokenizer:
    import open_clip

    pieces = open_clip.SimpleTokenizer()

    def ids(text: str) -> list[int]:
        return [pieces.sot_token_id, *pieces.encode(text), pieces.eot_token_id]

    return _Fixed(ids, length_max, pieces.eot_token_id, 0)


def _with_bert(architecture: Mapping[str, Any], sizes: Mapping[str, Any]) -> nn.Module:
    """open_clip's model around a BERT; PubMedBERT's sizes are transformers' own defaults."""
    from open_clip import CustomTextCLIP
    from transformers import BertConfig

    with tempfile.TemporaryDirectory(prefix="medzeroseg-") as folder:
        BertConfig(**sizes).save_pretrained(folder)
        text = {**architecture["text_cfg"], "hf_model_name": folder, "hf_model_pretrained": False}
        return CustomTextCLIP(int(architecture["embed_dim"]), dict(architecture["vision_cfg"]), text)


def _word_pieces(words: str, length_max: int) -> Tokenizer:
    from tokenizers import BertWordPieceTokenizer

    lines = words.rstrip("\n").split("\n")
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
            f"These weights aren't those of the {type(model).__name__} that was asked for; "
            "run `medzeroseg weights verify` to see which file is wrong."
        ) from problem
