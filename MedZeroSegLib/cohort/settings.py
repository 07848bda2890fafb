"""What a cohort is run with, and the marks by which a change of it is known."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from MedZeroSegLib import __version__
from MedZeroSegLib.cohort.case import Case
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.queries import resolve, split_names
from MedZeroSegLib.vocabulary import Structure

FORMATS = ("seg.nrrd", "nii.gz", "nii")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """The same for all cases of a run.

    Attributes
    ----------
    preset, device, weights_folder
        As `pipeline.segment` takes them.
    format
        One of ``FORMATS``.
    dicom_seg
        Whether cases that come from DICOM also get a DICOM SEG object.
    uncertainty
        Whether cases also get a map of doubtful voxels and a table of slices' doubts.
    use_corrections
        Whether accepted and corrected cases help with the rest, see `cohort.corrections`.
    """

    preset: str = "lite"
    device: str = "auto"
    weights_folder: Path | None = None
    format: str = "seg.nrrd"
    dicom_seg: bool = False
    uncertainty: bool = False
    use_corrections: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(
                f"The format '{self.format}' isn't one that masks are written in; use {', '.join(FORMATS)}."
            )


@dataclass(frozen=True)
class EngineMarks:
    """Hashes of the preset with its settings, and of its weights."""

    preset: str
    weights: str


def engine_marks(settings: RunSettings) -> EngineMarks:
    """Marks of the engine as it is installed here; raises InputError for a preset that is unknown or can't be used."""
    from MedZeroSegLib.presets import preset_named
    from MedZeroSegLib.weights import weights_store
    from MedZeroSegLib.weights_catalogue import choose_weights, sha256_of

    preset = preset_named(settings.preset)
    if settings.use_corrections and (preset.zero_shot is not None or preset.is_student):
        raise InputError(f"Corrections can't be used with the preset '{settings.preset}'; use lite or lite-research.")
    catalogue = weights_store(settings.weights_folder).catalogue
    entries = choose_weights(catalogue, preset.catalogued) if preset.catalogued else []
    weights = [[entry.name, file.name, file.sha256] for entry in entries for file in entry.files]
    shipped = Path(str(files("MedZeroSegLib").joinpath("heads")))
    heads = [[file.name, sha256_of(file)] for file in sorted(shipped.iterdir()) if file.is_file()]
    return EngineMarks(hash_of([__version__, asdict(preset)]), hash_of([weights, heads]))


@dataclass(frozen=True)
class CaseMarks:
    """Hashes of all that a case's result depends on besides its image.

    The device is left out: a machine with another one may go on where the first has stopped, and each result says
    which it was.
    """

    settings: str
    weights: str


def case_marks(case: Case, settings: RunSettings, engine: EngineMarks, corrections: str = "") -> CaseMarks:
    """The marks of a case that is computed now; ``corrections`` as ``Learned.mark_of`` gives them."""
    files = [settings.format, settings.dicom_seg, *(["uncertainty"] if settings.uncertainty else [])]
    asked = [split_names(case.structures), case.modality, case.frame, *files]
    used = [corrections] if corrections else []
    return CaseMarks(hash_of([engine.preset, asked, *used]), engine.weights)


def check_structures(cases: tuple[Case, ...], allow_unknown: bool, own: Sequence[Structure] = ()) -> tuple[str, ...]:
    """Look at all names once, before anything runs; ``own`` are structures that the preset adds.

    Returns
    -------
    tuple of str
        Sentences on how names were understood.

    Raises
    ------
    InputError
        When a case asks for nothing, or for a name that isn't known and ``allow_unknown`` is off.
    """
    told: dict[str, None] = {}
    for structures in dict.fromkeys(case.structures for case in cases):
        if not structures.strip():
            case = next(case for case in cases if case.structures == structures)
            raise InputError(
                f"No structure is named for the case '{case.name}'; give --structures or fill the table's column."
            )
        for query in resolve(structures, own):
            if query.status == "unknown" and not allow_unknown:
                meant = f" (did you mean {' or '.join(query.suggestions)}?)" if query.suggestions else ""
                raise InputError(
                    f"'{query.typed}' isn't a known name{meant}; correct it, or add --allow-unknown to try it as it is."
                )
            told.update(dict.fromkeys(query.warnings))
    return tuple(told)


def hash_of(content: object) -> str:
    """SHA-256 in hex of what JSON can say of a content."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False, default=str).encode()).hexdigest()
