"""What is known of one case of a cohort when its turn is over: the segments with their numbers, the files written,
or the sentence that says why there are none. Goes through JSON and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal

from MedZeroSegLib.cohort.statistics import SegmentStatistics, statistics_of

if TYPE_CHECKING:
    from MedZeroSegLib.segment import Segmentation

CaseStatus = Literal["done", "failed"]


@dataclass(frozen=True, kw_only=True)
class CaseRecord:
    """One case, done or failed.

    Attributes
    ----------
    case : str
        Its name, the only one of its kind in the cohort.
    image : str
        The image's path as the input names it.
    frame : int or None
        Of an image that holds several, from 0.
    status : "done" or "failed"
        Done also where nothing was found.
    sentence : str
        Why it failed; empty when it didn't.
    seconds : float
        From reading to writing.
    carried : dict of str
        Further columns of the input table, untouched.
    segments : tuple of SegmentStatistics
        One for each name asked for, in that order.
    warnings : tuple of str
        Sentences about the image as a whole.
    files : dict of str
        Kind → path relative to the cohort's folder, with "/" between its parts: "labels", "mosaic", "thumbnail",
        "dicom_seg", "report", "uncertainty", "uncertainty_table".
    provenance : dict
        How it was made, see ``provenance_of``; empty for a failed case.
    masks_sha256 : str
        Of the masks' file that a person changed and that segments and pictures are of; empty for computed masks.
    reviewed : str
        "open", "accepted" or "corrected", as the review list has it.
    """

    case: str
    image: str
    frame: int | None = None
    status: CaseStatus
    sentence: str = ""
    seconds: float = 0.0
    carried: Mapping[str, str] = field(default_factory=dict)
    segments: tuple[SegmentStatistics, ...] = ()
    warnings: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    masks_sha256: str = ""
    reviewed: str = "open"

    def to_json(self) -> dict[str, Any]:
        """Plain values that ``json`` writes as they are."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> CaseRecord:
        """The record of which ``to_json`` made ``content``."""
        segments = tuple(SegmentStatistics.from_json(row) for row in content["segments"])
        return cls(**{**content, "segments": segments, "warnings": tuple(content["warnings"])})


def done_record(
    segmentation: Segmentation,
    case: str,
    image: str,
    seconds: float,
    carried: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
    frame: int | None = None,
) -> CaseRecord:
    """The record of a case that was segmented."""
    return CaseRecord(
        case=case,
        image=image,
        frame=frame,
        status="done",
        seconds=seconds,
        carried=dict(carried or {}),
        segments=statistics_of(segmentation),
        warnings=segmentation.warnings,
        files=dict(files or {}),
        provenance=provenance_of(segmentation),
    )


def failed_record(
    case: str, image: str, sentence: str, seconds: float = 0.0, carried: Mapping[str, str] | None = None
) -> CaseRecord:
    """The record of a case that could not be segmented, with the sentence that says why."""
    return CaseRecord(
        case=case, image=image, status="failed", sentence=sentence, seconds=seconds, carried=dict(carried or {})
    )


def provenance_of(segmentation: Segmentation) -> dict[str, Any]:
    """Version, preset, settings, weights with hashes, device, and date; JSON-able."""
    weights: Sequence[Mapping[str, str]] = segmentation.weights
    return {
        "version": segmentation.version,
        "preset": segmentation.preset,
        "settings": segmentation.settings,
        "weights": [dict(record) for record in weights],
        "device": segmentation.device,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
