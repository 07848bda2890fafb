"""The `base` text-image model: CLIP's patch features, finer through views and the dual path, against CLIP's texts.

Each slice is seen whole at the tower's size, and in overlapping tiles at twice that size. What is kept of a slice are
features on 64 × 64 cells of its square whose product with a text is their cosine, so any number of texts costs little.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from MedZeroSegLib.canvas import Canvas
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.text_image.clip_model import ClipModel
from MedZeroSegLib.text_image.clip_prompts import Wording, negative_sentences, sentences
from MedZeroSegLib.text_image.dense_attention import Attention, last_block, projected
from MedZeroSegLib.text_image.model import HeadCard, Scene, SliceFeatures
from MedZeroSegLib.text_image.patch_dpfem import PatchDpfem
from MedZeroSegLib.writers import replacing

CELLS = 64  # a side of the maps; that of the mask decoder's embedding
PICTURES_AT_ONCE = 10  # in a pass through the image tower: the views of one slice
TILE_WEIGHT = 0.5  # of the tiles' features against the whole view's
TILE_STRIDES = {1: None, 5: 1.0, 10: 0.5}  # views of a slice → stride of its tiles, in tiles
COSINE_SCALE = 40.0  # from cosines to logits, as SCLIP and NACLIP have it
NO_MASKS_SEEN = HeadCard((), {}, {})


@dataclass(frozen=True)
class Tile:
    """One tile: its first row and column in pixels of the square of twice the tower's size."""

    row: int
    column: int


class ClipTexts:
    """Concepts → unit vectors: every sentence encoded, averaged, normalised; kept in memory and, where told, on disk.

    Parameters
    ----------
    key
        Names the weights, so that vectors of others are never found.
    folder
        Where vectors are kept between runs, or None.
    """

    def __init__(
        self, clip: ClipModel, key: str, wording: Wording = Wording.ENSEMBLE, folder: Path | None = None
    ) -> None:
        self.clip, self.key, self.wording, self.folder = clip, key, wording, folder
        self._known: dict[tuple[str, ...], Tensor] = {}

    def concept(self, wordings: Sequence[str], scene: Scene) -> Tensor:
        """Unit vector [e] of one concept."""
        return self.mean(sentences(wordings, scene, self.wording))

    def mean(self, texts: tuple[str, ...]) -> Tensor:
        """Unit vector [e] of the mean of strings, whose order doesn't matter."""
        texts = tuple(sorted(texts))
        if texts not in self._known:
            self._known[texts] = self._stored(texts)
        return self._known[texts]

    def _stored(self, texts: tuple[str, ...]) -> Tensor:
        digest = hashlib.sha256(json.dumps([self.key, texts], ensure_ascii=False).encode()).hexdigest()
        file = None if self.folder is None else self.folder / f"{digest}.npy"
        if file is not None and file.is_file():
            try:
                return torch.from_numpy(np.load(file, allow_pickle=False)).to(self.clip.device)
            except (OSError, ValueError, EOFError):  # a damaged file is written anew
                pass
        vector = F.normalize(self.clip.encode(texts).mean(0), dim=-1)
        if file is not None:
            with replacing(file) as handle:
                np.save(handle, vector.cpu().numpy(), allow_pickle=False)
        return vector


class OpenClipDense:
    """Encode slices once, score any number of texts against them.

    Parameters
    ----------
    clip
        Both towers.
    texts
        Their texts.
    attentions
        The variants of the last block whose maps are made; each gives a map of its own.
    views
        1 (whole), 5 (and four tiles) or 10 (and nine overlapping tiles).
    dual_path
        The module on patch tokens, or None for none. Proxy maps are fine already and pass it by.
    """

    card = NO_MASKS_SEEN
    cells = CELLS
    calibrated = False
    contrastive = True
    scale = COSINE_SCALE

    def __init__(
        self,
        clip: ClipModel,
        texts: ClipTexts,
        attentions: Sequence[Attention] = (Attention.NACLIP, Attention.PROXY),
        views: int = 10,
        dual_path: PatchDpfem | None = None,
    ) -> None:
        self.clip, self.texts, self.attentions, self.views = clip, texts, tuple(attentions), views
        self.stride = TILE_STRIDES[views]
        self.dual_path = None if dual_path is None else dual_path.eval().requires_grad_(False).to(clip.device)

    def encode_text(self, wordings: Sequence[str], scene: Scene) -> Tensor:
        """Unit vector [e] of one concept from all its wordings in all templates."""
        return self.texts.concept(wordings, scene)

    def negatives(self, kind: str, scene: Scene) -> Tensor:
        """Unit vectors [b, e] of what a structure of this kind competes with everywhere."""
        return torch.stack([self.texts.mean((text,)) for text in negative_sentences(kind, scene)])

    def structure_like(self, text: str) -> str | None:
        """None: it reads any text."""
        return None

    def text_remarks(self, wordings: Sequence[str], scene: Scene) -> tuple[str, ...]:
        """A sentence for each wording of which the text tower reads only the beginning."""
        limit = self.clip.tokenizer.length_max
        return tuple(
            f"The text model reads the first {limit} tokens of {words[:40]!r}... and not the rest."
            for words in wordings
            if self.clip.tokenizer.cuts(sentences((words,), scene)[0])
        )

    @torch.inference_mode()
    def encode_slices(self, slices: np.ndarray, canvas: Canvas, embedding: Embedding) -> SliceFeatures:
        """Grey slices → features float32 [n, maps · e, 64, 64] and the class token's embedding [n, e]."""
        size = self.clip.tower.picture_size
        whole = self.pictures(slices, canvas.at(size))
        summary, maps = self._whole_maps(whole, embedding.detail, canvas)
        tiles = self.tiles(canvas)
        if tiles and any(attention is not Attention.PROXY for attention in self.attentions):
            wide = self.pictures(slices, canvas.at(2 * size))
            for row, attention in enumerate(self.attentions):
                if attention is not Attention.PROXY:
                    maps[row] = self._with_tiles(maps[row], wide, tiles, attention)
        return SliceFeatures(torch.cat([_resized(one, CELLS) for one in maps], 1), summary)

    def pictures(self, slices: np.ndarray, canvas: Canvas) -> Tensor:
        """Slices on their square as the tower wants them, [n, 3, size, size]; the padding has the slice's minimum."""
        return self.clip.normed(canvas.place_on_minimum(slices))

    def tiles(self, canvas: Canvas) -> list[Tile]:
        """Tiles of the square of twice the tower's size that show some of the slice."""
        if self.stride is None:
            return []
        size = self.clip.tower.picture_size
        wide = canvas.at(2 * size)
        starts = [round(place * self.stride * size) for place in range(round(1 / self.stride) + 1)]
        return [Tile(row, column) for row in starts for column in starts if row < wide.rows and column < wide.columns]

    @torch.inference_mode()
    def maps(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Cosines [maps, n, k, 64, 64] of kept features against unit texts [k, e]."""
        separate = pixels.to(self.clip.device).float().unflatten(1, (len(self.attentions), -1))
        return torch.einsum("nmchw,kc->mnkhw", separate, texts.to(self.clip.device))

    @torch.inference_mode()
    def multi_view_map(self, whole: Tensor, wide: Tensor, tiles: list[Tile], attention: Attention) -> Tensor:
        """One attention's features [n, e, 2g, 2g] of square pictures: the whole view's and the tiles' of the same
        square at twice the size."""
        return self._with_tiles(self._normed_view(whole, attention), wide, tiles, attention)

    def score(self, pixels: Tensor, texts: Tensor) -> Tensor:
        """Logits [n, k, 64, 64]: the mean of the maps, scaled; only their differences mean something."""
        return COSINE_SCALE * self.maps(pixels, texts).mean(0)

    def _whole_maps(self, whole: Tensor, detail: Tensor, canvas: Canvas) -> tuple[Tensor, list[Tensor]]:
        """Class token's embedding [n, e] and one map [n, e, g, g] for each attention, of the whole view."""
        summaries, maps = [], [[] for _ in self.attentions]  # type: ignore[var-annotated]
        inside = canvas.inside(detail.shape[-1])
        for start in range(0, len(whole), PICTURES_AT_ONCE):
            piece = slice(start, start + PICTURES_AT_ONCE)
            shown = whole[piece].to(self.clip.device)
            entering = self.clip.tower.tokens_after(shown, len(self.clip.tower.blocks) - 1)
            own = self.clip.tower.finish(self.clip.tower.blocks[-1].run(entering)[:, 0])
            summaries.append(F.normalize(own, dim=-1))
            for row, attention in enumerate(self.attentions):
                if attention is Attention.PROXY:
                    proxy = detail[piece].to(self.clip.device).float()
                    maps[row].append(projected(self.clip.tower, last_block(
                        self.clip.tower, entering, attention, proxy, inside)))  # fmt: skip
                else:
                    maps[row].append(self._view(shown, entering, attention))
        return torch.cat(summaries), [F.normalize(torch.cat(pieces), dim=1) for pieces in maps]

    def _with_tiles(self, whole: Tensor, wide: Tensor, tiles: list[Tile], attention: Attention) -> Tensor:
        """Weighted mean of the whole view's map and the tiles', of which the mean counts where they overlap."""
        size, grid = self.clip.tower.picture_size, 2 * whole.shape[-1]
        added = torch.zeros((*whole.shape[:2], grid, grid), device=whole.device)
        seen = torch.zeros(grid, grid, device=whole.device)
        for tile in tiles:
            shown = wide[:, :, tile.row : tile.row + size, tile.column : tile.column + size]
            row, column = (start * grid // (2 * size) for start in (tile.row, tile.column))
            place = (slice(row, row + grid // 2), slice(column, column + grid // 2))
            added[(slice(None), slice(None), *place)] += self._normed_view(shown, attention)
            seen[place] += 1
        seen_by_both = 1 + TILE_WEIGHT * (seen > 0)
        return (_resized(whole, grid) + TILE_WEIGHT * added / seen.clamp_min(1)) / seen_by_both

    def _normed_view(self, pictures: Tensor, attention: Attention) -> Tensor:
        pieces = []
        for piece in pictures.split(PICTURES_AT_ONCE):
            shown = piece.to(self.clip.device)
            entering = self.clip.tower.tokens_after(shown, len(self.clip.tower.blocks) - 1)
            pieces.append(F.normalize(self._view(shown, entering, attention), dim=1))
        return torch.cat(pieces)

    def _view(self, shown: Tensor, entering: Tensor, attention: Attention) -> Tensor:
        """One view's features through the dual path, where there is one; [n, e, g, g] or [n, e, 2g, 2g]."""
        tokens = last_block(self.clip.tower, entering, attention)
        plain = projected(self.clip.tower, tokens)
        return plain if self.dual_path is None else self.dual_path(tokens, shown, plain)


def _resized(maps: Tensor, cells: int) -> Tensor:
    return F.interpolate(maps, (cells, cells), mode="bilinear", align_corners=False)
