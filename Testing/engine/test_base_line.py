"""The preset without training in the whole line: with models that work by arithmetic, and with small true towers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import phantoms
import pytest
import torch
from analytic import BrightnessModel, EllipseDecoder, dice, ellipsoid
from clip_samples import tiny_timm
from safetensors.torch import save_file
from sam_samples import small_sam
from test_open_clip_dense import TinyClip
from torch import Tensor
from word_list import write_words

from MedZeroSegLib import encoding, pipeline
from MedZeroSegLib.base_preset import BASE, DENSE_VARIANTS, VARIANTS, text_image_of
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.mask_decoder.sam import MedSamModel, SamModel
from MedZeroSegLib.presets import PRESETS, Engine, load_engine, preset_named
from MedZeroSegLib.segment import Segment
from MedZeroSegLib.text_image.clip_model import ClipModel, Tokenizer
from MedZeroSegLib.text_image.model import HeadCard, Scene
from MedZeroSegLib.vocabulary import confusions, vocabulary
from MedZeroSegLib.volume import Volume

# Canonical phantom [i, j, k] in LPS, in HU; the soft-tissue window shows HU h as (h + 160) / 400.
SHAPE, SPACING = (44, 36, 14), (2.0, 2.2, 6.0)
AIR, BODY, KIDNEY, LIVER = -1000, -60, 80, 160
LEFT_KIDNEY = ellipsoid(SHAPE, (33, 22, 6), (5.5, 6, 3.4))
RIGHT_KIDNEY = ellipsoid(SHAPE, (10, 22, 6.5), (5, 6.5, 3.4))
LIVER_PLACE = ellipsoid(SHAPE, (13, 9, 7.5), (8, 5.5, 3.2))
BRIGHTNESS = {"liver": 0.8, "kidney": 0.6}
ABSENT = 3.0  # brightness of every other name
NEGATIVES = (0.25, 0.0)  # of the body and of air

Load = Callable[[Engine], Engine]


class BrightnessCosines(BrightnessModel):
    """Cosines that fall with the distance between a cell's brightness and the text's, without a background at 0."""

    calibrated, contrastive, scale = False, True, 40.0

    def __init__(self, brightness: dict[str, float], negatives: tuple[float, ...]) -> None:
        super().__init__(brightness, {})
        self.others = negatives
        self.card = HeadCard((), {}, {})

    def encode_text(self, wordings, scene: Scene) -> Tensor:
        self.asked.append(tuple(wordings))
        return torch.tensor([self.brightness.get(wordings[0], ABSENT)])

    def negatives(self, kind: str, scene: Scene) -> Tensor:
        return torch.tensor(self.others)[:, None]

    def maps(self, pixels: Tensor, texts: Tensor) -> Tensor:
        noise = 0.01 * torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
        return (0.5 - (pixels.float() + noise - texts[None, :, :1, None]).abs())[None]

    def encode_slices(self, slices, canvas, embedding):
        features = super().encode_slices(slices, canvas, embedding)
        return replace(features, summary=torch.zeros(len(slices), 1))


class BoxDecoder(EllipseDecoder):
    """The analytic decoder on the line's own canvas."""

    def decode(self, coarse: Tensor, boxes: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        from analytic import ellipse_logits, without_margin

        self.boxes_decoded += len(boxes)
        return ellipse_logits(without_margin(boxes), 256), torch.ones(len(boxes))


def cosine_engine(brightness: dict[str, float] = BRIGHTNESS, negatives: tuple[float, ...] = NEGATIVES) -> Engine:
    model = BrightnessCosines(brightness, negatives)
    return Engine(PRESETS["base"], model, BoxDecoder(), "cpu", (), ("Zero-shot.",))  # type: ignore[arg-type]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    encoding.forget_volumes()

    def use(engine: Engine) -> Engine:
        monkeypatch.setattr(pipeline, "load_engine", lambda *_: engine)
        return engine

    yield use
    encoding.forget_volumes()


def abdomen(liver: bool = True) -> np.ndarray:
    voxels = np.full(SHAPE, AIR, np.int16)
    voxels[ellipsoid(SHAPE, (21.5, 17.5, 6.5), (21.8, 17.8, 20))] = BODY
    voxels[LEFT_KIDNEY | RIGHT_KIDNEY] = KIDNEY
    if liver:
        voxels[LIVER_PLACE] = LIVER
    return voxels


def stored(canonical: np.ndarray, storage: phantoms.Storage | None = None, rotation=None) -> Volume:
    storage = storage or next(phantoms.storages())
    matrix = storage.matrix(canonical.shape, phantoms.lps_matrix(SPACING, (-43.0, -38.5, -21.0), rotation))
    return Volume(storage.store(canonical).T, matrix, "CT")


def run(volume: Volume, names: str) -> dict[str, Segment]:
    return {segment.typed: segment for segment in pipeline.segment(volume, names, "base").segments}


# The line


def test_structures_are_found_on_their_sides_and_absent_ones_are_not(load):
    engine = load(cosine_engine())
    found = run(stored(abdomen()), "liver; left kidney; right kidney; spleen")
    for name, truth in {"liver": LIVER_PLACE, "left kidney": LEFT_KIDNEY, "right kidney": RIGHT_KIDNEY}.items():
        assert found[name].found, name
        assert dice(found[name].mask.T, truth) > 0.8, name
    assert not found["spleen"].found and found["spleen"].score < 0.5
    assert not (found["left kidney"].mask & found["right kidney"].mask).any()
    assert engine.decoder.boxes_decoded > 0


@pytest.mark.parametrize("storage", list(phantoms.storages())[1::13], ids=str)
def test_masks_cover_the_same_places_however_the_file_is_stored(load, storage):
    load(cosine_engine())
    rotation = phantoms.rotation_about((0.3, 0.2, 1.0), 20)
    plain, volume = stored(abdomen(), None, rotation), stored(abdomen(), storage, rotation)
    first, second = run(plain, "left kidney; liver"), run(volume, "left kidney; liver")
    for name in first:
        assert first[name].found
        places = [
            phantoms.world_points(one[name].mask.T, v.ijk_to_lps) for one, v in ((first, plain), (second, volume))
        ]
        assert np.array_equal(*places), name


def test_a_name_gets_alone_what_it_gets_in_a_list(load):
    load(cosine_engine())
    together = run(stored(abdomen()), "liver; kidney; spleen; a thing")
    for name in together:
        alone = run(stored(abdomen()), name)[name]
        assert np.array_equal(alone.mask, together[name].mask) and alone.score == together[name].score


def test_air_slices_change_nothing_elsewhere(load):
    load(cosine_engine())
    taller = np.concatenate((abdomen(), np.full((*SHAPE[:2], 3), AIR, np.int16)), axis=2)
    plain, with_air = run(stored(abdomen()), "liver")["liver"], run(stored(taller), "liver")["liver"]
    assert np.array_equal(with_air.mask[: SHAPE[2]], plain.mask) and not with_air.mask[SHAPE[2] :].any()


@pytest.mark.parametrize("dimension", [2, 3])
def test_in_a_constant_volume_nothing_is_found(load, dimension):
    load(cosine_engine())
    shape = (1, 24, 20) if dimension == 2 else (10, 24, 24)
    volume = Volume(np.full(shape, 40, np.int16), np.eye(4), "CT", dimension=dimension)
    for segment in run(volume, "liver; a thing").values():
        assert not segment.found and segment.score == 0 and segment.mask.shape == shape


def test_a_volume_of_equal_spacing_is_looked_at_along_all_its_axes(load):
    shape = (40, 36, 32)
    truth = ellipsoid(shape, (24, 15, 17), (8, 7, 6))
    voxels = np.full(shape, AIR, np.int16)
    voxels[ellipsoid(shape, (20, 18, 16), (19, 17, 15))] = BODY
    voxels[truth] = LIVER
    volume = Volume(voxels.T, phantoms.lps_matrix((3.0, 3.0, 3.0)), "CT")
    engine = load(cosine_engine())
    (liver,) = pipeline.segment(volume, "liver", "base").segments
    assert dice(liver.mask.T, truth) > 0.8
    (encoded,) = encoding._encoded.values()
    assert {encoded.frame.plane, *(other.frame.plane for other in encoded.others)} == {"axial", "coronal", "sagittal"}
    assert all(len(other.coarse) == 0 for other in encoded.others)
    encoding.forget_volumes()
    once = replace(engine.preset, zero_shot=VARIANTS["one-axis"])
    load(replace(engine, preset=once))
    assert dice(pipeline.segment(volume, "liver", "base").segments[0].mask.T, truth) > 0.8
    assert not next(iter(encoding._encoded.values())).others


def test_a_picture_is_segmented(load):
    load(cosine_engine({"lung": 0.25}, (0.55, 0.9)))
    shown = np.full((60, 80), 110, np.uint8)
    shown[:4], shown[-4:] = 0, 200
    truth = ellipsoid((60, 80), (30, 20), (18, 12)) | ellipsoid((60, 80), (30, 58), (17, 10))
    shown[truth] = 50
    shown = shown + np.random.default_rng(0).integers(0, 2, shown.shape, np.uint8)
    volume = Volume(shown[None], np.eye(4), "X-ray", dimension=2, calibrated=False)
    assert dice(run(volume, "lungs")["lungs"].mask[0], truth) > 0.8


def test_rivals_are_what_the_vocabulary_would_confuse_and_each_is_the_others(load):
    engine = load(cosine_engine())
    run(stored(abdomen()), "spleen")
    asked = {words[0] for words in engine.text_image.asked}
    assert {"spleen", "liver", "kidney", "pancreas"} <= asked
    assert not {"liver segment 2", "femur", "left ventricle"} & asked
    known = vocabulary()
    for one, other in (("spleen", "liver"), ("kidney", "stomach")):
        assert other in confusions(known[one]) and one in confusions(known[other])


def test_zero_shot_is_said_once_for_the_whole_result(load):
    load(cosine_engine())
    result = pipeline.segment(stored(abdomen()), "liver; spleen", "base")
    assert result.warnings == ("Zero-shot.",)
    assert not any("not trained" in warning for segment in result.segments for warning in segment.warnings)
    assert result.segments[0].provenance["trained"] is False


# True towers, small


def small_clip() -> ClipModel:
    torch.manual_seed(1)
    tokenizer = Tokenizer(lambda text: [2, *text.encode("latin-1", "replace"), 3], 60, 3, 0)
    return ClipModel(TinyClip(tiny_timm()), tokenizer, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))


def small_engine(variant: str | None = None, decoder: type[SamModel] = SamModel) -> Engine:
    settings = VARIANTS[variant] if variant else BASE
    preset = replace(PRESETS["base"], zero_shot=settings, found_min_untrained=0.0)
    text_image = text_image_of(settings, small_clip(), "")
    text_image.dual_path = None  # made for patches of 16 pixels
    return Engine(preset, text_image, decoder(small_sam()), "cpu", (), ())


@pytest.mark.parametrize(
    ("variant", "decoder"), [(None, SamModel), ("surgery", MedSamModel), ("m2ib", SamModel), ("paper", SamModel)]
)
def test_the_line_runs_on_true_towers_with_random_weights(load, variant, decoder):
    engine = load(small_engine(variant, decoder))
    if variant == "m2ib":
        engine.text_image.bottleneck = replace(engine.text_image.bottleneck, layer=1, steps=2, samples=2)
    volume = stored(abdomen()[:, :, 5:8])
    result = pipeline.segment(volume, "liver; a thing", "base")
    for segment in result.segments:
        assert segment.mask.shape == volume.shape and 0 <= segment.score <= 1
    settings = json.loads(json.dumps(result.settings))
    assert settings["zero_shot"]["decoder"] == "sam-vit-b" and settings["trained_sources"] == []
    encoded = [0]
    engine.decoder.embed_slices = lambda *_: encoded.append(1)  # type: ignore[method-assign]
    again = pipeline.segment(volume, "liver", "base").segments[0]
    assert encoded == [0] and np.array_equal(again.mask, result.segments[0].mask)


# Presets, weights


def test_every_variant_has_a_name_and_settings_that_a_report_can_hold():
    for name in VARIANTS:
        preset = preset_named(f"base/{name}")
        assert preset.name == f"base/{name}" and preset.zero_shot != BASE
        json.dumps(Engine(preset, BrightnessCosines({}, ()), BoxDecoder(), "cpu", (), ()).settings)
    assert set(DENSE_VARIANTS) <= set(VARIANTS)
    assert preset_named("base").zero_shot == BASE


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("heavy", ("heavy", "lite", "base")),
        ("base/frobnicate", ("frobnicate", "naclip", "medsam")),
        ("lite/naclip", ("lite", "naclip", "base")),
    ],
)
def test_unknown_presets_and_variants_are_refused_with_the_choices(name, words):
    with pytest.raises(InputError) as caught:
        load_engine(name)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_an_incomplete_weights_folder_is_told_before_anything_is_opened(tmp_path):
    folder = tmp_path / "Gewichte 肺"
    write_words(folder / "biomedclip" / "vocab.txt")
    save_file({"a": torch.zeros(1)}, folder / "biomedclip" / "open_clip_pytorch_model.bin")
    with pytest.raises(InstallationError) as caught:
        load_engine("base", "cpu", folder)
    assert "open_clip_config.json" in str(caught.value) and str(folder / "biomedclip") in str(caught.value)


def test_a_weights_file_of_another_hash_is_refused(tmp_path):
    from MedZeroSegLib.text_image.clip_model import BIOMEDCLIP

    folder = tmp_path / "biomedclip"
    write_words(folder / "vocab.txt")
    (folder / "open_clip_config.json").write_bytes(BIOMEDCLIP.read_bytes())
    (folder / "open_clip_pytorch_model.bin").write_bytes(b"\0" * 1000)
    with pytest.raises(InstallationError, match="783,705,670"):
        load_engine("base", "cpu", Path(tmp_path))


def test_missing_weights_name_the_command_that_gets_them(tmp_path, monkeypatch):
    monkeypatch.setattr("MedZeroSegLib.weights.platformdirs.user_data_path", lambda *_, **__: tmp_path)
    with pytest.raises(InstallationError, match="medzeroseg weights fetch biomedclip"):
        load_engine("base", "cpu")
