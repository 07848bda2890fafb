"""The preset `base` and its variants: which towers, which maps, which decoder; a table, and how an entry is loaded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.text_image.clip_prompts import Wording
from MedZeroSegLib.text_image.dense_attention import Attention
from MedZeroSegLib.trained_weights import (
    DUAL_PATH,
    FINE_TUNED_CLIP,
    clip_of_file,
    find_trained,
    locate_clip,
    read_card,
    trained_record,
)
from MedZeroSegLib.weights import WeightsStore, cache_folder, load_state
from MedZeroSegLib.zero_shot import ZeroShotRules

if TYPE_CHECKING:
    from MedZeroSegLib.mask_decoder.sam import SamModel
    from MedZeroSegLib.text_image.clip_model import ClipModel
    from MedZeroSegLib.text_image.open_clip_dense import OpenClipDense
    from MedZeroSegLib.text_image.patch_dpfem import PatchDpfem


@dataclass(frozen=True)
class ZeroShot:
    """What a preset without training is made of.

    Attributes
    ----------
    clip, decoder
        Names in the weights' catalogue; the clip may be "fine-tuned-clip", which the user trained.
    attentions, views
        Maps that are made, and views of each slice: 1, 5 or 10.
    explainer
        "gscorecam" or "m2ib" in place of these maps, or "".
    literal
        Whether the dual path has the paper's literal form.
    wording
        How a name is put into words.
    several_axes
        Whether volumes of nearly equal spacing are sliced along all their axes.
    rules
        How maps become saliency.
    """

    clip: str = "biomedclip"
    decoder: str = "sam-vit-b"
    attentions: tuple[Attention, ...] = (Attention.NACLIP, Attention.PROXY)
    views: int = 10
    explainer: str = ""
    literal: bool = False
    wording: Wording = Wording.ENSEMBLE
    several_axes: bool = True
    rules: ZeroShotRules = ZeroShotRules()


BASE = ZeroShot()
DENSE_VARIANTS = ("vanilla", "clearclip", "naclip", "proxy", "surgery")
VARIANTS: dict[str, ZeroShot] = {
    **{one.value: replace(BASE, attentions=(one,)) for one in Attention},
    "surgery": replace(BASE, rules=ZeroShotRules(surgery=True)),
    "gscorecam": replace(BASE, explainer="gscorecam", views=1),
    "m2ib": replace(BASE, explainer="m2ib", views=1),
    "paper": replace(BASE, explainer="gscorecam", views=1, rules=ZeroShotRules(edges="crf")),
    "literal-dpfem": replace(BASE, literal=True),
    "one-view": replace(BASE, views=1),
    "five-views": replace(BASE, views=5),
    "one-axis": replace(BASE, several_axes=False),
    "all-slices": replace(BASE, rules=ZeroShotRules(gated=False)),
    "crf": replace(BASE, rules=ZeroShotRules(edges="crf")),
    "no-edges": replace(BASE, rules=ZeroShotRules(edges="none")),
    "otsu": replace(BASE, rules=ZeroShotRules(threshold="otsu")),
    "bare-name": replace(BASE, wording=Wording.NAME),
    "name-and-modality": replace(BASE, wording=Wording.MODALITY),
    "sam-l": replace(BASE, decoder="sam-vit-l"),
    "sam-h": replace(BASE, decoder="sam-vit-h"),
    "medsam": replace(BASE, decoder="medsam-vit-b"),
    "medclip-samv2": replace(BASE, clip="medclip-samv2"),
    "openai": replace(BASE, clip="clip-vit-b-16-openai"),
    "laion": replace(BASE, clip="clip-vit-b-16-laion2b"),
    "fine-tuned": replace(BASE, clip=FINE_TUNED_CLIP),
}
# Catalogue name → open_clip's architecture, for towers that aren't laid out as BiomedCLIP's.
NATIVE = {"clip-vit-b-16-openai": "ViT-B-16-quickgelu", "clip-vit-b-16-laion2b": "ViT-B-16"}


def load_clip(name: str, store: WeightsStore, device: str) -> ClipModel:
    """A CLIP model of the catalogue, from checked files, or the user's own; raises InstallationError."""
    from MedZeroSegLib.text_image.clip_model import BIOMEDCLIP, biomedclip, native_clip

    if name == FINE_TUNED_CLIP:
        return clip_of_file(locate_clip(store), device)
    place = store.locate(name)
    if name in NATIVE:
        return native_clip(NATIVE[name], load_state(place), device)
    main = store.catalogue[name].files[0].name
    config = place / "open_clip_config.json"
    return biomedclip(load_state(place / main), place / "vocab.txt", config if config.is_file() else BIOMEDCLIP, device)


def load_decoder(name: str, store: WeightsStore, device: str) -> SamModel:
    """SAM or MedSAM of the catalogue, from its checked file; raises InstallationError."""
    from MedZeroSegLib.mask_decoder.sam import MedSamModel, SamModel, build_sam

    family, _, size = name.partition("-")
    network = build_sam(size.replace("-", "_"), load_state(store.locate(name)))
    return MedSamModel(network, device) if family == "medsam" else SamModel(network, device)


@dataclass(frozen=True)
class ZeroShotModels:
    """What `load_zero_shot` loads, what a result tells of the weights, and sentences on what was passed over."""

    text_image: OpenClipDense
    decoder: SamModel
    records: tuple[dict[str, str], ...]
    warnings: tuple[str, ...] = ()


def load_zero_shot(settings: ZeroShot, store: WeightsStore, device: str) -> ZeroShotModels:
    """Text-image model and decoder; raises InstallationError where weights are missing or wrong."""
    record = clip_record(settings.clip, store)  # both are looked for before either is opened
    store.locate(settings.decoder)
    clip = load_clip(settings.clip, store, device)
    text_image = text_image_of(settings, clip, record["sha256"])
    trained, warnings = take_trained_dual_path(text_image, settings, record, store)
    records = (record, store.record(settings.decoder), *trained)
    return ZeroShotModels(text_image, load_decoder(settings.decoder, store, device), records, warnings)


def take_trained_dual_path(
    text_image: OpenClipDense, settings: ZeroShot, record: dict[str, str], store: WeightsStore
) -> tuple[tuple[dict[str, str], ...], tuple[str, ...]]:
    """Give the model the dual path that the user trained for these towers, if there is one.

    Returns
    -------
    What a result tells of its weights, and a sentence where there is one for other towers, which isn't used.

    Raises
    ------
    InstallationError
        When the file is damaged.
    """
    file = find_trained(store, DUAL_PATH)
    if file is None or text_image.dual_path is None:
        return (), ()
    if read_card(file).get("made_for") != dual_path_key(settings, record):
        return (), (f"'{file}' was trained for other towers or another form and is not used.",)
    load_dual_path(text_image.dual_path, file)
    return (trained_record(file),), ()


def clip_record(name: str, store: WeightsStore) -> dict[str, str]:
    """What a result tells of a CLIP model, whose files are there and right; raises InstallationError."""
    if name == FINE_TUNED_CLIP:
        return trained_record(locate_clip(store))
    store.locate(name)
    return store.record(name)


def dual_path_key(settings: ZeroShot, record: dict[str, str]) -> dict[str, str | bool]:
    """What a trained dual path belongs to: the towers whose features it refines, and its own form."""
    return {"clip": record["sha256"] or record["name"], "literal": settings.literal}


def load_dual_path(module: PatchDpfem, file: Path) -> None:
    """Take trained weights in place; raises InstallationError."""
    try:
        module.load_state_dict(load_state(file))
    except RuntimeError as problem:
        raise InstallationError(
            f"'{file}' holds no dual path of this form; train it again or take it away."
        ) from problem


def text_image_of(settings: ZeroShot, clip: ClipModel, key: str) -> OpenClipDense:
    """The text-image model that the settings ask for, around towers whose weights ``key`` names."""
    from MedZeroSegLib.text_image.open_clip_dense import ClipTexts, OpenClipDense
    from MedZeroSegLib.text_image.open_clip_explained import OpenClipExplained
    from MedZeroSegLib.text_image.patch_dpfem import PatchDpfem

    texts = ClipTexts(clip, key, settings.wording, cache_folder() / "texts" if key else None)
    if settings.explainer:
        explainer: Any = settings.explainer
        return OpenClipExplained(clip, texts, explainer)
    dual_path = PatchDpfem(clip.width, clip.embedding, settings.literal)
    return OpenClipDense(clip, texts, settings.attentions, settings.views, dual_path)
