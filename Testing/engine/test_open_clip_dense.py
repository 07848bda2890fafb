"""Maps lie where their text lies in the slice, whatever the views; texts are ensembles; the explainers fit the line."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from clip_samples import EMBEDDING, GRID, PATCH, SIZE, WIDTH, tiny_native, tiny_timm
from torch import Tensor, nn

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.mask_decoder.decoder import Embedding
from MedZeroSegLib.text_image.clip_model import ClipModel, Tokenizer
from MedZeroSegLib.text_image.clip_prompts import TEMPLATES, Wording, negative_sentences, sentences
from MedZeroSegLib.text_image.dense_attention import Attention, last_block, projected
from MedZeroSegLib.text_image.explainers import Bottleneck, gscorecam, m2ib
from MedZeroSegLib.text_image.model import Scene
from MedZeroSegLib.text_image.open_clip_dense import CELLS, COSINE_SCALE, ClipTexts, OpenClipDense
from MedZeroSegLib.text_image.open_clip_explained import OpenClipExplained
from MedZeroSegLib.text_image.patch_dpfem import PatchDpfem

SCENE = Scene("CT", "axial", "abdomen")


class TinyClip(nn.Module):
    """A tiny image tower with a text tower that spreads letters over the space; counts the strings it reads."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual
        self.logit_scale = nn.Parameter(torch.tensor(3.0))
        self.letters = nn.Embedding(256, EMBEDDING)
        self.read = 0

    def encode_text(self, ids: Tensor) -> Tensor:
        self.read += len(ids)
        return (self.letters(ids) * (ids > 0)[..., None]).sum(1)


@pytest.fixture(params=["native", "timm"])
def clip(request) -> ClipModel:
    visual = {"native": tiny_native, "timm": tiny_timm}[request.param]()
    torch.manual_seed(1)
    tokenizer = Tokenizer(lambda text: [2, *text.encode("latin-1", "replace"), 3], 60, 3, 0)
    return ClipModel(TinyClip(visual), tokenizer, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def model_of(clip: ClipModel, *attentions: Attention, views: int = 1, **settings) -> OpenClipDense:
    return OpenClipDense(clip, ClipTexts(clip, "tiny"), attentions or (Attention.NACLIP,), views, **settings)


def slices_of(shape: tuple[int, int], count: int = 2, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((count, 1, 9, 9)).astype(np.float32))
    return (F.interpolate(coarse, shape, mode="bilinear")[:, 0] * 200 + 30).byte().numpy()


def detail_of(count: int) -> Embedding:
    features = torch.randn(count, 5, CELLS, CELLS, generator=torch.Generator().manual_seed(0))
    return Embedding(features, features)


# Pictures


def test_a_slice_is_padded_with_its_own_minimum_and_never_cut(clip):
    slices = slices_of((40, 100))
    canvas = fit_canvas((40, 100), (1.0, 1.0), SIZE)
    shown = model_of(clip).pictures(slices, canvas) * clip.std + clip.mean
    assert shown.shape == (2, 3, SIZE, SIZE) and canvas.columns == SIZE
    inside = shown[:, :, : canvas.rows]
    for n in range(2):
        assert torch.allclose(
            shown[n, :, canvas.rows :], inside[n].min().expand(3, SIZE - canvas.rows, SIZE), atol=1e-5
        )
    right_edge = torch.from_numpy(slices[0, :, -3:].astype(np.float32)).mean() / 255
    assert inside[0, 0, :, -2:].mean().item() == pytest.approx(right_edge.item(), abs=0.03)


# Maps


@pytest.mark.parametrize("views", [1, 5, 10])
@pytest.mark.parametrize("shape", [(96, 96), (40, 100), (90, 50)])
def test_a_changed_place_changes_the_map_there(clip, views, shape):
    """Through letterbox, views and tiles, to half a patch: the place of a change is the place of its answer.

    The patches of this tower don't look at each other, so that what is seen is the geometry alone.
    """
    through = dataclasses.replace(clip.tower.blocks[0], run=lambda tokens: tokens)
    clip.tower = dataclasses.replace(clip.tower, blocks=(through,))
    model, slices = model_of(clip, Attention.VANILLA, views=views), slices_of(shape, 1)
    canvas = fit_canvas(shape, (1.0, 1.0), 256)
    plain = model.encode_slices(slices, canvas, detail_of(1)).pixels
    row, column, half = int(shape[0] * 0.3), int(shape[1] * 0.7), max(shape) // 12
    changed = slices.copy()
    changed[0, row - half : row + half, column - half : column + half] = 255
    weights = (model.encode_slices(changed, canvas, detail_of(1)).pixels - plain).norm(dim=1)[0]
    centre = [float((weights.sum(1 - axis) * (torch.arange(CELLS) + 0.5)).sum() / weights.sum()) for axis in (0, 1)]
    scale = max(shape) / CELLS  # slice pixels per cell
    patch = max(shape) / GRID
    assert abs(centre[0] * scale - row) <= patch / 2
    assert abs(centre[1] * scale - column) <= patch / 2


@pytest.mark.parametrize("attention", list(Attention))
def test_one_text_lights_one_patch(clip, attention, monkeypatch):
    """Features that are a text's own vector in one patch give a map that is 1 there and lower elsewhere."""
    model, texts = model_of(clip, attention), torch.eye(EMBEDDING)[:3]
    pixels = F.normalize(torch.randn(1, EMBEDDING, CELLS, CELLS), dim=1)
    pixels[0, :, 20, 33] = texts[1]
    maps = model.maps(pixels, texts)
    assert maps.shape == (1, 1, 3, CELLS, CELLS)
    assert divmod(int(maps[0, 0, 1].argmax()), CELLS) == (20, 33)
    assert maps[0, 0, 1, 20, 33].item() == pytest.approx(1.0, abs=1e-6)
    assert maps[0, 0, 0, 20, 33].abs() < 1e-6
    assert torch.allclose(model.score(pixels, texts), COSINE_SCALE * maps[0], atol=1e-4)


@torch.no_grad()
def test_the_whole_view_is_the_towers_cosine(clip):
    model, slices = model_of(clip), slices_of((SIZE, SIZE))
    canvas = fit_canvas((SIZE, SIZE), (1.0, 1.0), 256)
    features = model.encode_slices(slices, canvas, detail_of(2))
    shown = model.pictures(slices, canvas.at(SIZE))
    entering = clip.tower.tokens_after(shown, 2)
    patches = F.normalize(projected(clip.tower, last_block(clip.tower, entering, Attention.NACLIP)), dim=1)
    text = F.normalize(torch.randn(1, EMBEDDING), dim=1)
    expected = F.interpolate(torch.einsum("nchw,kc->nkhw", patches, text), (CELLS, CELLS), mode="bilinear")
    assert torch.allclose(model.maps(features.pixels, text)[0], expected, atol=1e-5)
    assert torch.allclose(features.summary, F.normalize(clip.model.visual(shown), dim=-1), atol=1e-5)


@torch.no_grad()
def test_tiles_count_half_of_the_whole_view_and_their_overlap_its_mean(clip):
    model, slices = model_of(clip, views=10), slices_of((2 * SIZE, 2 * SIZE), 1)
    canvas = fit_canvas((2 * SIZE, 2 * SIZE), (1.0, 1.0), 256)
    found = model.encode_slices(slices, canvas, detail_of(1)).pixels
    wide = model.pictures(slices, canvas.at(2 * SIZE))
    step = GRID // 2
    total, seen = torch.zeros(EMBEDDING, 2 * GRID, 2 * GRID), torch.zeros(2 * GRID, 2 * GRID)
    for row in range(3):
        for column in range(3):
            y, x = row * SIZE // 2, column * SIZE // 2
            entering = clip.tower.tokens_after(wide[..., y : y + SIZE, x : x + SIZE], 2)
            patches = projected(clip.tower, last_block(clip.tower, entering, Attention.NACLIP))
            place = (slice(row * step, row * step + GRID), slice(column * step, column * step + GRID))
            total[(slice(None), *place)] += F.normalize(patches, dim=1)[0]
            seen[place] += 1
    whole = model_of(clip).encode_slices(slices, canvas, detail_of(1))
    entering = clip.tower.tokens_after(model.pictures(slices, canvas.at(SIZE)), 2)
    alone = F.normalize(projected(clip.tower, last_block(clip.tower, entering, Attention.NACLIP)), dim=1)
    alone = F.interpolate(alone, (2 * GRID, 2 * GRID), mode="bilinear")[0]
    expected = F.interpolate(((alone + 0.5 * total / seen) / 1.5)[None], (CELLS, CELLS), mode="bilinear")
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, whole.pixels, atol=1e-3)


def test_tiles_of_padding_are_not_made(clip):
    model = model_of(clip, views=10)
    assert len(model.tiles(fit_canvas((96, 96), (1.0, 1.0), 256))) == 9
    assert {tile.row for tile in model.tiles(fit_canvas((20, 96), (1.0, 1.0), 256))} == {0}
    assert len(model_of(clip, views=5).tiles(fit_canvas((96, 96), (1.0, 1.0), 256))) == 4


@pytest.mark.parametrize("views", [1, 10])
def test_a_slice_is_the_same_alone_and_in_a_batch(clip, views):
    model = model_of(clip, Attention.NACLIP, Attention.PROXY, views=views)
    slices, canvas, detail = slices_of((60, 90), 3), fit_canvas((60, 90), (1.0, 1.0), 256), detail_of(3)
    together = model.encode_slices(slices, canvas, detail)
    for n in range(3):
        alone = model.encode_slices(
            slices[n : n + 1], canvas, Embedding(detail.coarse[n : n + 1], detail.detail[n : n + 1])
        )
        assert torch.allclose(alone.pixels[0], together.pixels[n], atol=1e-5)
        assert torch.allclose(alone.summary[0], together.summary[n], atol=1e-5)


def test_each_attention_has_a_map_of_its_own(clip):
    slices, canvas = slices_of((60, 90)), fit_canvas((60, 90), (1.0, 1.0), 256)
    both = model_of(clip, Attention.NACLIP, Attention.PROXY)
    text = F.normalize(torch.randn(2, EMBEDDING), dim=1)
    together = both.maps(both.encode_slices(slices, canvas, detail_of(2)).pixels, text)
    assert together.shape == (2, 2, 2, CELLS, CELLS)
    for row, attention in enumerate((Attention.NACLIP, Attention.PROXY)):
        one = model_of(clip, attention)
        alone = one.maps(one.encode_slices(slices, canvas, detail_of(2)).pixels, text)[0]
        assert torch.allclose(together[row], alone, atol=1e-5)


def test_a_new_dual_path_gives_the_plain_features_on_twice_the_grid(clip):
    """PATCH is half of what the dual path's strides are made for, so the picture is enlarged for it here."""
    path = PatchDpfem(WIDTH, EMBEDDING)
    plain_forward = path.forward
    path.forward = lambda tokens, pictures, plain: plain_forward(  # type: ignore[method-assign]
        tokens, F.interpolate(pictures, scale_factor=16 / PATCH), plain
    )
    slices, canvas = slices_of((60, 90)), fit_canvas((60, 90), (1.0, 1.0), 256)
    with_path = model_of(clip, dual_path=path).encode_slices(slices, canvas, detail_of(2)).pixels
    without = model_of(clip).encode_slices(slices, canvas, detail_of(2)).pixels
    assert F.cosine_similarity(with_path, without, dim=1).min() > 0.9


# Texts


def test_every_wording_comes_in_every_template():
    made = sentences(("liver", "hepatic parenchyma"), SCENE)
    assert len(made) == 2 * len(TEMPLATES) == len(set(made))
    assert "axial CT slice through the hepatic parenchyma" in made and "liver" in made
    assert "CT image of the abdomen showing the liver" in made


def test_words_fit_the_image():
    assert "X-ray slice through the lung" in sentences(("lung",), Scene("X-ray", "picture", "chest"))
    assert "a MRI image with the heart visible" in sentences(("heart",), Scene("MR", "axial", "heart"))
    assert "medical image of the body showing the thing" in sentences(("thing",), Scene("other", "axial"))
    assert sentences(("liver", "hepar"), SCENE, Wording.NAME) == ("liver",)
    assert sentences(("liver",), SCENE, Wording.MODALITY) == ("CT image of the liver",)


def test_a_structure_never_competes_with_what_it_is():
    assert "bone" in negative_sentences("organ", SCENE) and "bone" not in negative_sentences("bone", SCENE)
    assert "muscle" not in negative_sentences("heart", SCENE)
    assert negative_sentences("organ", SCENE)[-1] == "a CT image"


def test_a_concept_is_the_mean_of_its_sentences_in_any_order(clip):
    texts = ClipTexts(clip, "tiny")
    made = sentences(("liver", "hepar"), SCENE)
    expected = F.normalize(clip.encode(made).mean(0), dim=0)
    assert torch.allclose(texts.concept(("liver", "hepar"), SCENE), expected, atol=1e-6)
    assert torch.equal(texts.mean(made[::-1]), texts.mean(made))


def test_vectors_are_kept_in_memory_and_on_disk_for_these_weights_only(clip, tmp_path):
    folder = tmp_path / "Vektoren 肺"
    fresh = ClipTexts(clip, "weights A", folder=folder)
    vector = fresh.concept(("liver",), SCENE)
    read = clip.model.read
    assert torch.equal(fresh.concept(("liver",), SCENE), vector) and clip.model.read == read
    assert torch.equal(ClipTexts(clip, "weights A", folder=folder).concept(("liver",), SCENE), vector)
    assert clip.model.read == read
    ClipTexts(clip, "weights B", folder=folder).concept(("liver",), SCENE)
    assert clip.model.read > read


def test_a_damaged_stored_vector_is_made_anew(clip, tmp_path):
    vector = ClipTexts(clip, "weights", folder=tmp_path).concept(("liver",), SCENE)
    (file,) = Path(tmp_path).glob("*.npy")
    file.write_bytes(file.read_bytes()[:70])
    assert torch.allclose(ClipTexts(clip, "weights", folder=tmp_path).concept(("liver",), SCENE), vector)


def test_a_text_of_which_only_the_beginning_is_read_is_told(clip):
    model = model_of(clip)
    (sentence,) = model.text_remarks(("liver", "a liver " * 20), SCENE)
    assert "60 tokens" in sentence and "a liver a liver" in sentence


# Explainers


@pytest.mark.parametrize("explainer", ["gscorecam", "m2ib"])
def test_explainers_give_one_map_of_the_towers_grid_for_each_text(clip, explainer):
    bottleneck = Bottleneck(layer=0, steps=2, samples=2)
    model = OpenClipExplained(clip, ClipTexts(clip, "tiny"), explainer, bottleneck)
    slices, canvas = slices_of((60, 90)), fit_canvas((60, 90), (1.0, 1.0), 256)
    features = model.encode_slices(slices, canvas, detail_of(2))
    texts = torch.stack([model.encode_text((name,), SCENE) for name in ("liver", "spleen", "lung")])
    maps = model.maps(features.pixels, texts)
    assert maps.shape == (1, 2, 3, GRID, GRID) and not model.contrastive
    shown = model.pictures(slices, canvas.at(SIZE))
    if explainer == "m2ib":
        expected = m2ib(clip.tower, clip.tower.tokens_after(shown, 1), texts[[1, 1]], bottleneck)
    else:
        entering = clip.tower.tokens_after(shown, 2)
        expected = torch.stack([gscorecam(clip.tower, shown[n], entering[n], texts[1], clip.scale) for n in (0, 1)])
    assert torch.allclose(maps[0, :, 1], expected, rtol=1e-2, atol=1e-4)
    assert torch.allclose(
        features.summary, model_of(clip).encode_slices(slices, canvas, detail_of(2)).summary, atol=1e-5
    )
