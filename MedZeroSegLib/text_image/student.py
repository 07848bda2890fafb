"""A student as a text-image model: what it keeps of each pixel are the logits of its classes, and a text picks one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.mask_decoder.lite_medsam import IMAGE_SIZE
from MedZeroSegLib.text_image.model import HeadCard, Scene, SliceFeatures
from MedZeroSegLib.text_image.student_network import Architecture, architecture_of, build_network, normalized
from MedZeroSegLib.trained_preset import TrainedPreset

OVERLAP = 0.5  # of the windows that slide over a slice or a stack
WINDOWS_AT_ONCE = 4


class StudentTextImage:
    """Class logits against the background; a text's vector has a one where its class stands.

    Parameters
    ----------
    network
        Gives logits of the background and of the structures in the card's order.
    """

    cells = IMAGE_SIZE
    calibrated = True

    def __init__(self, network: nn.Module, architecture: Architecture, card: HeadCard, device: str = "cpu") -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.architecture, self.card, self.device = architecture, card, torch.device(device)

    @torch.inference_mode()
    def encode_slices(self, slices: np.ndarray, canvas: Canvas, embedding: Embedding) -> SliceFeatures:
        """Logits [n, classes, 256, 256] over that of the background; the decoder's embedding isn't looked at."""
        shown = normalized(canvas.place(slices)).to(self.device)
        logits = self._through(shown) if self.architecture.dimension == 2 else self._through_stack(shown)
        return SliceFeatures(logits[:, 1:] - logits[:, :1], torch.zeros(len(shown), 0))

    def _through_stack(self, shown: Tensor) -> Tensor:
        """Slices [n, 1, s, s] as one stack → [n, c, s, s]."""
        missing = max(0, self.architecture.patch[0] - len(shown))
        stack = F.pad(shown.transpose(0, 1)[None], (0, 0, 0, 0, 0, missing), mode="replicate")
        return self._through(stack)[0, :, : len(shown)].transpose(0, 1)

    def _through(self, inputs: Tensor) -> Tensor:
        """Logits of inputs [n, 1, ...] through windows of the size that was trained on."""
        from monai.inferers.utils import sliding_window_inference

        logits = sliding_window_inference(
            inputs, self.architecture.patch, WINDOWS_AT_ONCE, self.network, overlap=OVERLAP, mode="gaussian"
        )
        assert isinstance(logits, Tensor)
        return logits

    def encode_text(self, wordings: Sequence[str], scene: Scene) -> Tensor:
        """Unit vector [classes]; only the card's concepts have one."""
        return F.one_hot(torch.tensor(self.card.concepts.index(wordings[0])), len(self.card.concepts)).float()

    def text_remarks(self, wordings: Sequence[str], scene: Scene) -> tuple[str, ...]:
        """Nothing: no words are read."""
        return ()

    def structure_like(self, text: str) -> str | None:
        """None: no words are read."""
        return None

    @torch.inference_mode()
    def score(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Logits [n, k, 256, 256] of the classes that the vectors [k, classes] pick."""
        return torch.einsum("nchw,kc->nkhw", pixels.float(), texts)


def student_card(architecture: Architecture, structures: Sequence[str], sources: dict[str, int]) -> dict[str, Any]:
    """What the engine must know of a student, JSON-able."""
    return {"concepts": list(structures), "sources": sources, "architecture": asdict(architecture)}


def load_student(trained: TrainedPreset, device: str = "cpu") -> StudentTextImage:
    """A student from its folder; raises InputError where that isn't one, InstallationError without MONAI."""
    card = trained.card
    try:
        architecture = architecture_of(card["architecture"])
        concepts = tuple(str(name) for name in card["concepts"])
        if len(concepts) != architecture.classes:
            raise ValueError("classes and names differ")
        network = build_network(architecture)
        network.load_state_dict(load_file(trained.weights))
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as problem:
        raise InputError(
            f"'{trained.folder}' holds weights of another architecture than its card describes, or damaged ones; "
            "train the student again."
        ) from problem
    competitors = {name: tuple(other for other in concepts if other != name) for name in concepts}
    return StudentTextImage(network, architecture, HeadCard(concepts, competitors, dict(card["sources"]), True), device)
