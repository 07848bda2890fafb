"""Segment Anything (ViT-B, L, H) and MedSAM (ViT-B) through the package segment_anything, each as it was trained.

Their pictures must not be mixed up, the commonest silent error: SAM sees the slice with its proportions, padded, in
ImageNet's units; MedSAM sees it stretched to a square, from 0 to 1, and answers boxes only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from torch import Tensor

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.device import precision_of
from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.mask_decoder.decoder import BOX, MASK, POINTS, Embedding, draw_prompts, require_prompts

PICTURE_SIZE = 1024  # pixels; the side of the encoder's square picture
LOGITS_SIZE = 256  # pixels a side of mask prompts and answers
EMBEDDING_SIZE = 64  # cells a side
OUTSIDE_LOGIT = -20.0  # beyond the slice
PROBABILITY_EDGE = 1e-6  # least distance of a probability from 0 and 1 when it becomes a logit again
STRETCHED_RANGE_MIN = 1e-8  # least range of a slice that is stretched to 0..1, as in MedSAM's release

Points = tuple[Tensor, Tensor]


class SamModel:
    """SAM: encode once, decode many.

    Parameters
    ----------
    network
        With its weights loaded.
    device
        A torch device.
    """

    name = "SAM"
    prompts: tuple[str, ...] = (BOX, MASK, POINTS)

    def __init__(self, network: Sam, device: str = "cpu") -> None:
        self.device = torch.device(device)
        self.network = network.eval().requires_grad_(False).to(self.device)

    def on(self, canvas: Canvas) -> SamModel:
        """Itself: SAM's frame is the canvas."""
        return self

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        """Grey slices uint8 [n, h, w] → embedding; its detail is the embedding itself."""
        coarse = self._encode(self.pictures(slices, canvas))
        return Embedding(coarse, coarse)

    def pictures(self, slices: np.ndarray, canvas: Canvas) -> Tensor:
        """As SAM wants them, [n, 3, 1024, 1024]: 0..255, ImageNet's mean and deviation, padding 0 afterwards."""
        wide = canvas.at(PICTURE_SIZE)
        colour = (wide.place(slices) * 255).expand(-1, 3, -1, -1)
        normed = (colour - self.network.pixel_mean.cpu()) / self.network.pixel_std.cpu()
        normed[:, :, wide.rows :], normed[..., wide.columns :] = 0, 0
        return normed

    @torch.inference_mode()
    def decode(
        self, coarse: Tensor, boxes: Tensor | None, masks: Tensor | None, points: Points | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masks of m prompts, any combination of a box, a mask and points.

        Parameters
        ----------
        coarse
            [m, 256, 64, 64], the embedding of each prompt's slice.
        boxes
            [m, 4], x0 y0 x1 y1 in canvas pixels, 0..256.
        masks
            [m, 1, 256, 256] logits on the canvas.
        points
            Positions [m, p, 2] as x y in canvas pixels, and labels [m, p]: 1 inside, 0 outside, −1 no point.

        Returns
        -------
        Three candidates' logits [m, 3, 256, 256] on the canvas and the network's own estimates of their IoU [m, 3].

        Raises
        ------
        InputError
            For prompts that this decoder wasn't made for.
        """
        given = {BOX: boxes, MASK: masks, POINTS: points}
        require_prompts(self.name, self.prompts, [kind for kind, value in given.items() if value is not None])
        scale = PICTURE_SIZE / LOGITS_SIZE
        return self._decode(
            coarse.to(self.device),
            None if boxes is None else boxes.to(self.device).float() * scale,
            None if masks is None else masks.to(self.device).float(),
            None if points is None else (points[0].to(self.device).float() * scale, points[1].to(self.device)),
            several=True,
        )

    @torch.inference_mode()
    def _encode(self, pictures: Tensor) -> Tensor:
        reduced = precision_of(self.device.type) == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16) if reduced else contextlib.nullcontext():
            return torch.cat([self.network.image_encoder(one.to(self.device)).float() for one in pictures.split(1)])

    def _decode(
        self, coarse: Tensor, boxes: Tensor | None, masks: Tensor | None, points: Points | None, several: bool
    ) -> tuple[Tensor, Tensor]:
        network = self.network
        return draw_prompts(network.prompt_encoder, network.mask_decoder, coarse, boxes, masks, points, several)


class MedSamModel(SamModel):
    """MedSAM: SAM's network fine-tuned on boxes around structures in stretched slices, with one candidate."""

    name = "MedSAM"
    prompts = (BOX,)

    def __init__(self, network: Sam, device: str = "cpu", canvas: Canvas | None = None) -> None:
        super().__init__(network, device)
        self.canvas = canvas

    def on(self, canvas: Canvas) -> MedSamModel:
        """The same network for slices on this canvas: boxes and masks go through its proportions."""
        return MedSamModel(self.network, str(self.device), canvas)

    def embed_slices(self, slices: np.ndarray, canvas: Canvas) -> Embedding:
        """Grey slices uint8 [n, h, w] → embedding of the stretched slice; its detail lies on the canvas."""
        coarse = self._encode(self.pictures(slices, canvas))
        return Embedding(coarse, _on_canvas(coarse, canvas))

    def pictures(self, slices: np.ndarray, canvas: Canvas) -> Tensor:
        """As MedSAM wants them, [n, 3, 1024, 1024]: stretched with a cubic spline, each slice from 0 to 1."""
        from skimage.transform import resize

        size = (PICTURE_SIZE, PICTURE_SIZE)
        stretched = [
            resize(section, size, order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
            for section in slices
        ]
        grey = torch.from_numpy(np.stack(stretched))[:, None].float()
        low, high = grey.amin((2, 3), keepdim=True), grey.amax((2, 3), keepdim=True)
        return ((grey - low) / (high - low).clamp_min(STRETCHED_RANGE_MIN)).expand(-1, 3, -1, -1)

    @torch.inference_mode()
    def decode(
        self, coarse: Tensor, boxes: Tensor | None, masks: Tensor | None, points: Points | None = None
    ) -> tuple[Tensor, Tensor]:
        """Masks of m boxes [m, 4] in canvas pixels: logits [m, 1, 256, 256] on the canvas and estimated IoU [m, 1].

        Raises
        ------
        InputError
            For masks or points.
        """
        given = {BOX: boxes, MASK: masks, POINTS: points}
        require_prompts(self.name, self.prompts, [kind for kind, value in given.items() if value is not None])
        if boxes is None or self.canvas is None:
            raise ValueError("MedSAM decodes boxes on a canvas: use MedSamModel.on(canvas)")
        canvas = self.canvas.at(LOGITS_SIZE)
        sides = torch.tensor([canvas.columns, canvas.rows] * 2, dtype=torch.float32, device=self.device)
        stretched = boxes.to(self.device).float() / sides * PICTURE_SIZE
        logits, quality = self._decode(coarse.to(self.device), stretched, None, None, several=False)
        return _logits_on_canvas(logits, canvas), quality


def build_sam(size: str, state: Mapping[str, Tensor] | None = None) -> Sam:
    """The network "vit_b", "vit_l" or "vit_h", with random weights or with exactly those of ``state``.

    The package's own loader opens pickles unsafely and on the device that wrote them; ours has opened them before.

    Raises
    ------
    InstallationError
        When the weights are not of this network.
    """
    network: Any = sam_model_registry[size](checkpoint=None)
    if state is not None:
        try:
            network.load_state_dict(state)
        except RuntimeError as problem:
            raise InstallationError(
                f"These weights aren't those of SAM {size}; run `medzeroseg weights verify` to see which file is wrong."
            ) from problem
    return network


def _on_canvas(stretched: Tensor, canvas: Canvas) -> Tensor:
    """Maps [n, c, s, s] over a stretched slice → the same over the square canvas, 0 beyond the slice."""
    cells = stretched.shape[-1]
    centre = (torch.arange(cells, device=stretched.device, dtype=stretched.dtype) + 0.5) / cells * canvas.size
    row, column = centre / canvas.rows * 2 - 1, centre / canvas.columns * 2 - 1
    y, x = torch.meshgrid(row, column, indexing="ij")
    grid = torch.stack((x, y), -1)[None].expand(len(stretched), -1, -1, -1)
    placed = F.grid_sample(stretched, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return placed * ((row < 1)[:, None] & (column < 1)[None, :])


def _logits_on_canvas(stretched: Tensor, canvas: Canvas) -> Tensor:
    """Logits [m, 1, s, s] over a stretched slice → logits on the canvas; enlarged as probabilities, as MedSAM does."""
    probability = torch.sigmoid(stretched)
    shown = F.interpolate(probability, (canvas.rows, canvas.columns), mode="bilinear", align_corners=False)
    logits = torch.logit(shown, PROBABILITY_EDGE)
    edges = (0, canvas.size - canvas.columns, 0, canvas.size - canvas.rows)
    return F.pad(logits, edges, value=OUTSIDE_LOGIT)
