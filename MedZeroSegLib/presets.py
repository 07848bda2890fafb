"""Presets: which models with which settings. The pipeline knows presets; nothing else knows a model by name."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedZeroSegLib.base_preset import BASE, VARIANTS, ZeroShot, load_zero_shot
from MedZeroSegLib.calibration import Calibration, calibration_file, calibration_of
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.propagation import Choice
from MedZeroSegLib.sensitivity import NEUTRAL, check_sensitivity, threshold_at
from MedZeroSegLib.weights import WeightsStore, cache_folder, load_state, weights_store
from MedZeroSegLib.weights_catalogue import sha256_of
from MedZeroSegLib.zero_shot import PRESENT_MIN

if TYPE_CHECKING:
    from MedZeroSegLib.mask_decoder.decoder import MaskDecoder
    from MedZeroSegLib.mask_decoder.lite_medsam import LiteMedSamModel
    from MedZeroSegLib.text_image.model import TextImageModel


@dataclass(frozen=True)
class Preset:
    """Settings of one preset; all of them are recorded with each result.

    Attributes
    ----------
    head
        File of the trained head inside the package.
    licence
        Of the head's weights.
    found_min
        Least evidence in the best slice for a trained structure to be found; once loaded, where the preset is
        calibrated, the least probability of being there.
    found_min_untrained
        The same for text that the head was never trained with.
    slice_min
        Least evidence in a slice for the structure to be present there.
    smooth_mm
        Gaussian across slices, σ in mm.
    choice
        When the decoder's mask is believed.
    zero_shot
        What a preset without a trained head is made of; None for those with one.
    sensitivity
        At which the thresholds stand, see `sensitivity`.
    """

    name: str
    head: str
    licence: str
    found_min: float = 0.88
    found_min_untrained: float = 0.97
    slice_min: float = 0.7
    smooth_mm: float = 2.0
    choice: Choice = Choice()
    zero_shot: ZeroShot | None = None
    sensitivity: float = NEUTRAL

    def at(self, sensitivity: float) -> Preset:
        """The preset with its thresholds at a sensitivity."""
        return replace(
            self,
            found_min=threshold_at(self.found_min, sensitivity),
            found_min_untrained=threshold_at(self.found_min_untrained, sensitivity),
            slice_min=threshold_at(self.slice_min, sensitivity),
            sensitivity=sensitivity,
        )


PRESETS = {
    "lite": Preset("lite", "lite.safetensors", "Apache-2.0"),
    "lite-research": Preset("lite-research", "lite-research.safetensors", "CC BY-NC-SA 4.0"),
    # Found where the text wins against all others; slices were chosen and smoothed on the way.
    "base": Preset("base", "", "", 0.5, 0.5, slice_min=PRESENT_MIN, smooth_mm=0.0, zero_shot=BASE),
}
ZERO_SHOT_NOTE = "The preset {name} was never shown masks: every result is a try, look at it closely."


@dataclass(frozen=True)
class Engine:
    """A preset's models, loaded on a device, the files that they came from, and what their answers are worth."""

    preset: Preset
    text_image: TextImageModel
    decoder: MaskDecoder
    device: str
    weights: tuple[dict[str, str], ...]
    warnings: tuple[str, ...]
    calibration: Calibration | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What a report says of the preset."""
        return {**asdict(self.preset), "trained_sources": sorted(self.text_image.card.sources)}

    def at(self, sensitivity: float) -> Engine:
        """The engine at a sensitivity 0..1; raises InputError for another number."""
        if check_sensitivity(sensitivity) == NEUTRAL:
            return self
        calibration = self.calibration
        if calibration is not None:
            calibration = replace(calibration, found_min=threshold_at(calibration.found_min, sensitivity))
        return replace(self, preset=self.preset.at(sensitivity), calibration=calibration)


def preset_named(name: str) -> Preset:
    """The preset of a name, such as "lite", or of a name and a variant, such as "base/naclip".

    Raises
    ------
    InputError
        For an unknown name or variant.
    """
    main, slash, variant = name.partition("/")
    if main not in PRESETS:
        raise InputError(f"The preset {main!r} is unknown; use one of {', '.join(PRESETS)}.")
    preset = PRESETS[main]
    if not slash:
        return preset
    if preset.zero_shot is None:
        raise InputError(f"The preset {main!r} has no variants; leave {variant!r} out, or use the preset base.")
    if variant not in VARIANTS:
        raise InputError(f"The preset base has no variant {variant!r}; use one of {', '.join(VARIANTS)}.")
    return replace(preset, name=name, zero_shot=VARIANTS[variant])


def load_lite_medsam(store: WeightsStore, device: str = "cpu") -> LiteMedSamModel:
    """LiteMedSAM with its checked weights; raises InstallationError."""
    from MedZeroSegLib.mask_decoder.lite_medsam import LiteMedSam, LiteMedSamModel, rename_published_keys

    network = LiteMedSam()
    network.load_state_dict(rename_published_keys(load_state(store.locate("lite-medsam"))))
    return LiteMedSamModel(network, device, cache_folder())


@lru_cache(maxsize=2)
def load_engine(name: str, device: str = "auto", weights_folder: Path | None = None) -> Engine:
    """Load a preset once; raises InputError or InstallationError."""
    from MedZeroSegLib.device import choose_device

    preset = preset_named(name)
    chosen, passed_over = choose_device(device)
    store = weights_store(weights_folder)
    if preset.zero_shot is None:
        return _load_lite(preset, chosen, store, passed_over)
    models = load_zero_shot(preset.zero_shot, store, chosen)
    warnings = (*passed_over, *models.warnings, ZERO_SHOT_NOTE.format(name=preset.name))
    return Engine(preset, models.text_image, models.decoder, chosen, models.records, warnings)


def _load_lite(preset: Preset, device: str, store: WeightsStore, passed_over: tuple[str, ...]) -> Engine:
    from MedZeroSegLib.text_image.lite import LiteTextImage, read_head
    from MedZeroSegLib.text_image.minilm import MiniLmTextTower
    from MedZeroSegLib.text_image.text_vectors import TextVectors

    tower_folder = store.locate("minilm")
    head_file = Path(str(files("MedZeroSegLib").joinpath("heads", preset.head)))
    decoder = load_lite_medsam(store, device)
    head, card = read_head(head_file)
    text_image = LiteTextImage(head, TextVectors(lambda: MiniLmTextTower(tower_folder)), card, device)
    records = [store.record("lite-medsam"), store.record("minilm"), _shipped(f"{preset.name} head", head_file, preset)]
    calibration = calibration_of(preset.name)
    if calibration is not None:
        records.append(_shipped(f"{preset.name} confidence", calibration_file(preset.name), preset))
        preset = replace(preset, found_min=calibration.found_min)
    return Engine(preset, text_image, decoder, device, tuple(records), passed_over, calibration)


def _shipped(name: str, file: Path, preset: Preset) -> dict[str, str]:
    """The record of a file that came with the package."""
    return {"name": name, "file": file.name, "sha256": sha256_of(file), "licence": preset.licence}
