"""The naive reference on the same weights, as text-to-box pipelines do it: the map of the typed name in each slice,
min-max, Otsu's threshold, one box around all of it, the decoder's mask; no presence test, no sides, no choice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from MedZeroSegLib.text_image.model import Scene
from MedZeroSegLib.volume import Volume

if TYPE_CHECKING:
    from torch import Tensor

    from MedZeroSegLib.canvas import Canvas
    from MedZeroSegLib.embeddings import EncodedVolume
    from MedZeroSegLib.presets import Engine

Box = tuple[float, float, float, float]


def naive_segment(engine: Engine, volume: Volume, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Mask bool [k, j, i] of each name, from the same embeddings as the pipeline's.

    Slices between two encoded ones are interpolated as in the pipeline, so that the two differ only in what they do
    with the maps.
    """
    from MedZeroSegLib.encoding import encode

    encoded = encode(volume, None, engine, None)
    masks = {}
    scene = Scene(volume.modality, encoded.frame.plane)
    for name in names:
        text = engine.text_image.encode_text((name,), scene)
        masks[name] = encoded.frame.inverse(_mask(engine, encoded, text))
    return masks


def box_of(similarity: np.ndarray, canvas: Canvas) -> Box | None:
    """One box x0, y0, x1, y1 in canvas pixels around all cells above Otsu's threshold of the min-max scaled map [s, s];
    None for a map without contrast. Padding doesn't count."""
    from skimage.filters import threshold_otsu

    rows, columns = canvas.covered(similarity.shape[-1])
    seen = similarity[:rows, :columns].astype(np.float64)
    low, high = float(seen.min()), float(seen.max())
    if high <= low:
        return None
    scaled = (seen - low) / (high - low)
    above = scaled > threshold_otsu(scaled)
    y, x = np.flatnonzero(above.any(axis=1)), np.flatnonzero(above.any(axis=0))
    scale = canvas.size / similarity.shape[-1]
    return float(x[0] * scale), float(y[0] * scale), float((x[-1] + 1) * scale), float((y[-1] + 1) * scale)


def _mask(engine: Engine, encoded: EncodedVolume, text: Tensor) -> np.ndarray:
    """bool [n, h, w] on all canonical slices."""
    import torch

    from MedZeroSegLib.assembly import restore_mask

    count = len(encoded.keys.indices)
    canvas = encoded.canvas
    drawn = np.zeros((count, canvas.size, canvas.size), np.float16)
    for row in range(count):
        pixels = torch.from_numpy(np.ascontiguousarray(encoded.pixels[row : row + 1]))
        similarity = engine.text_image.score(pixels, text[None])[0, 0].cpu().numpy()
        box = box_of(similarity, canvas)
        if box is not None:
            boxes = torch.tensor([box], dtype=torch.float32, device=engine.decoder.device)
            coarse = encoded.coarse_of([row]).to(engine.decoder.device)
            logits, quality = engine.decoder.on(canvas).decode(coarse, boxes, None)
            drawn[row] = (logits[0, int(quality.reshape(-1).argmax())] > 0).cpu().numpy()
    return restore_mask(drawn, np.ones(count, bool), encoded.keys, canvas, 0.5)
