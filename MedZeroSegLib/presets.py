"""Presets: which models with which settings. The pipeline knows presets; nothing else knows a model by name."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedZeroSegLib.base_preset import BASE, VARIANTS, ZeroShot, load_zero_shot
from MedZeroSegLib.calibration import Calibration, calibration_file, calibration_of
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.propagation import Choice
from MedZeroSegLib.sensitivity import NEUTRAL, check_sensitivity, threshold_at
from MedZeroSegLib.trained_preset import STUDENT, TrainedPreset, read_trained_preset
from MedZeroSegLib.vocabulary import Structure, structure_of
from MedZeroSegLib.weights import WeightsStore, cache_folder, load_state, weights_store
from MedZeroSegLib.weights_catalogue import sha256_of
from MedZeroSegLib.zero_shot import PRESENT_MIN

if TYPE_CHECKING:
    from MedZeroSegLib.mask_decoder.decoder import MaskDecoder
    from MedZeroSegLib.mask_decoder.lite_medsam import LiteMedSamModel
    from MedZeroSegLib.mask_decoder.lite_medsam_network import LiteMedSam
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
    trained
        The user's own folder that it was read from; None for those that ship.
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
    trained: TrainedPreset | None = None

    @property
    def is_student(self) -> bool:
        """Whether a student draws: it looks at whole stacks of slices, and no decoder stands behind it."""
        return self.trained is not None and self.trained.kind == STUDENT

    @property
    def judges_slices_alone(self) -> bool:
        """Whether what it says of a slice doesn't depend on the other slices."""
        return self.zero_shot is None and not self.is_student

    @property
    def catalogued(self) -> str:
        """The preset of `weights.json` whose files it needs, "" for none."""
        if self.trained is not None:
            return "" if self.is_student else EXTENDED_FROM
        return self.name.partition("/")[0]

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
EXTENDED_FROM = "lite"  # the preset that users' own names are added to
# Between its classes a student has no doubt to be calibrated: what it holds likelier than all else is there.
STUDENT_PRESET = Preset("", "", "", 0.5, 0.5, slice_min=0.5, smooth_mm=0.0, choice=Choice(area_max=0.0))
ZERO_SHOT_NOTE = "The preset {name} was never shown masks: every result is a try, look at it closely."


@dataclass(frozen=True)
class Engine:
    """A preset's models, loaded on a device, the files that they came from, what their answers are worth, and in which
    numbers, "float32" or "bfloat16", the large networks compute there."""

    preset: Preset
    text_image: TextImageModel
    decoder: MaskDecoder
    device: str
    weights: tuple[dict[str, str], ...]
    warnings: tuple[str, ...]
    calibration: Calibration | None = None
    precision: str = "float32"

    @property
    def settings(self) -> dict[str, Any]:
        """What a report says of the preset."""
        sources = sorted(self.text_image.card.sources)
        return {**asdict(self.preset), "trained_sources": sources, "precision": self.precision}

    def at(self, sensitivity: float) -> Engine:
        """The engine at a sensitivity 0..1; raises InputError for another number."""
        if check_sensitivity(sensitivity) == NEUTRAL:
            return self
        calibration = self.calibration
        if calibration is not None:
            calibration = replace(calibration, found_min=threshold_at(calibration.found_min, sensitivity))
        return replace(self, preset=self.preset.at(sensitivity), calibration=calibration)


def preset_named(name: str) -> Preset:
    """The preset of a name, such as "lite", of a name and a variant, such as "base/naclip", or of a folder's path.

    Raises
    ------
    InputError
        For an unknown name or variant, or a folder that holds no preset.
    """
    main, slash, variant = name.partition("/")
    if main not in PRESETS:
        if not is_folder(name):
            raise InputError(
                f"The preset {name!r} is unknown; use one of {', '.join(PRESETS)}, or the path of a folder that "
                "`medzeroseg train weak` or `lite` wrote."
            )
        trained = read_trained_preset(name)
        like = STUDENT_PRESET if trained.kind == STUDENT else PRESETS[EXTENDED_FROM]
        return replace(like, name=trained.name, trained=trained)
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
    from MedZeroSegLib.mask_decoder.lite_medsam import LiteMedSamModel

    file = store.locate("lite-medsam")

    def build() -> LiteMedSam:
        try:
            from MedZeroSegLib.mask_decoder.lite_medsam_network import LiteMedSam, rename_published_keys
        except Exception as problem:  # a broken torchvision raises anything
            reason = str(problem).partition("\n")[0] or type(problem).__name__
            raise InstallationError(
                f"A package that the engine needs can't be loaded ({reason}); reinstall medzeroseg[lite]."
            ) from problem
        network = LiteMedSam()
        network.load_state_dict(rename_published_keys(load_state(file)))
        return network

    return LiteMedSamModel(build, device, _graph_folder(store.record("lite-medsam")["sha256"]))


def _graph_folder(weights: str) -> Path:
    """Where LiteMedSAM's graphs are kept: each folder's are of the same weights, given by their SHA-256, and of the
    same network by the same packages."""
    made_by = [version(package) for package in ("torch", "timm", "segment-anything")]
    sources = [Path(__file__).with_name("mask_decoder") / f"{name}.py" for name in ("lite_medsam_network", "decoder")]
    digest = hashlib.sha256(repr((weights, made_by)).encode())
    for source in sources:
        digest.update(source.read_bytes())
    return cache_folder() / "graphs" / f"lite-medsam-{digest.hexdigest()[:16]}"


def own_structures(name: str) -> tuple[Structure, ...]:
    """The structures that a preset adds to the vocabulary; raises InputError as `preset_named`."""
    trained = preset_named(name).trained
    if trained is None:
        return ()
    try:
        return tuple(structure_of(row) for row in trained.card.get("structures", ()))
    except (KeyError, TypeError, ValueError) as problem:
        raise InputError(f"The card of '{trained.folder}' is damaged; train the preset again.") from problem


def is_folder(name: str) -> bool:
    """Whether a preset's name can only be that of a folder."""
    return name.partition("/")[0] not in PRESETS and (Path(name).name != name or Path(name).is_dir())


def load_engine(name: str, device: str = "auto", weights_folder: Path | None = None) -> Engine:
    """Load a preset, once for as long as its files stay the same; raises InputError or InstallationError."""
    return _loaded(preset_named(name), device, weights_folder)


def forget_engines() -> None:
    """Free the models that are kept for the next question."""
    _loaded.cache_clear()


@lru_cache(maxsize=2)
def _loaded(preset: Preset, device: str, weights_folder: Path | None) -> Engine:
    from MedZeroSegLib.device import choose_device, limit_memory, precision_of

    chosen, passed_over = choose_device(device)
    limit_memory(chosen)
    if preset.is_student:
        return _load_student(preset, chosen, passed_over)
    if preset.trained is not None:
        return _extended(preset, device, weights_folder)
    store = weights_store(weights_folder)
    if preset.zero_shot is None:
        return _load_lite(preset, chosen, store, passed_over)
    models = load_zero_shot(preset.zero_shot, store, chosen)
    warnings = (*passed_over, *models.warnings, ZERO_SHOT_NOTE.format(name=preset.name))
    made_in = precision_of(chosen)
    return Engine(preset, models.text_image, models.decoder, chosen, models.records, warnings, precision=made_in)


def _load_student(preset: Preset, device: str, passed_over: tuple[str, ...]) -> Engine:
    from MedZeroSegLib.mask_decoder.no_decoder import NoDecoder
    from MedZeroSegLib.text_image.student import load_student

    trained = preset.trained
    assert trained is not None
    student = load_student(trained, device)
    warnings = (*passed_over, str(trained.card["note"]))
    return Engine(preset, student, NoDecoder(device), device, trained.records, warnings)


def _extended(preset: Preset, device: str, weights_folder: Path | None) -> Engine:
    """The shipped preset's engine with a user's own names; what both hold is loaded once."""
    from MedZeroSegLib.text_image.lite import LiteTextImage
    from MedZeroSegLib.text_image.own_names import extend

    trained, shipped = preset.trained, _loaded(PRESETS[EXTENDED_FROM], device, weights_folder)
    assert trained is not None and isinstance(shipped.text_image, LiteTextImage)
    text_image = extend(shipped.text_image, sha256_of(head_file()), trained)
    return replace(
        shipped,
        preset=replace(shipped.preset, name=preset.name, trained=trained),
        text_image=text_image,
        weights=(*shipped.weights, *trained.records),
        warnings=(*shipped.warnings, str(trained.card["note"])),
    )


def head_file(preset: str = EXTENDED_FROM) -> Path:
    """The file of a shipped head; by default of that to which users' own names are added."""
    return Path(str(files("MedZeroSegLib").joinpath("heads", PRESETS[preset].head)))


def _load_lite(preset: Preset, device: str, store: WeightsStore, passed_over: tuple[str, ...]) -> Engine:
    from MedZeroSegLib.device import precision_of
    from MedZeroSegLib.text_image.lite import LiteTextImage, read_head
    from MedZeroSegLib.text_image.minilm import MiniLmTextTower
    from MedZeroSegLib.text_image.text_vectors import TextVectors

    tower_folder = store.locate("minilm")
    file = head_file(preset.name)
    decoder = load_lite_medsam(store, device)
    head, card = read_head(file)
    text_image = LiteTextImage(head, TextVectors(lambda: MiniLmTextTower(tower_folder)), card, device)
    records = [store.record("lite-medsam"), store.record("minilm"), _shipped(f"{preset.name} head", file, preset)]
    calibration = calibration_of(preset.name)
    if calibration is not None:
        records.append(_shipped(f"{preset.name} confidence", calibration_file(preset.name), preset))
        preset = replace(preset, found_min=calibration.found_min)
    made_in = precision_of(device)
    return Engine(preset, text_image, decoder, device, tuple(records), passed_over, calibration, made_in)


def _shipped(name: str, file: Path, preset: Preset) -> dict[str, str]:
    """The record of a file that came with the package."""
    return {"name": name, "file": file.name, "sha256": sha256_of(file), "licence": preset.licence}
