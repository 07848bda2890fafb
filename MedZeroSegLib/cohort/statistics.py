"""Numbers about each segment: size, place, intensity, side and doubt; and the table of them, as CSV and Parquet.

Places are those of voxels on the image's own grid (IJK) and, where that is known, in the patient (LPS, mm)."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.extent import Extent, crop, mask_extent, mask_sha256
from MedZeroSegLib.intensity import in_hounsfield_units
from MedZeroSegLib.writers import replacing

if TYPE_CHECKING:
    from MedZeroSegLib.cohort.case_record import CaseRecord
    from MedZeroSegLib.segment import Segment, Segmentation
    from MedZeroSegLib.volume import Volume

# Column → type; the attributes of SegmentStatistics that hold several numbers are spread over several columns.
SPREAD = {
    "box_ijk": ("i_first", "i_last", "j_first", "j_last", "k_first", "k_last"),
    "box_lps": ("l_least", "l_greatest", "p_least", "p_greatest", "s_least", "s_greatest"),
    "centroid_ijk": ("centroid_i", "centroid_j", "centroid_k"),
    "centroid_lps": ("centroid_l", "centroid_p", "centroid_s"),
}
COLUMNS: Mapping[str, type] = {
    **dict.fromkeys(("case", "image"), str),
    "frame": int,
    **dict.fromkeys(("typed", "name"), str),
    "found": bool,
    **dict.fromkeys(("side", "code"), str),
    "score": float,
    "voxels": int,
    **dict.fromkeys(("volume_ml", "area_mm2", "mean", "sd"), float),
    "unit": str,
    **dict.fromkeys(SPREAD["box_ijk"], int),
    **dict.fromkeys((*SPREAD["box_lps"], *SPREAD["centroid_ijk"], *SPREAD["centroid_lps"]), float),
    "slices": int,
    **dict.fromkeys(("expected_dice", "doubt"), float),
    **dict.fromkeys(("warnings", "mask_sha256"), str),
}
UNTRAINED_DOUBT = 0.5  # at least, of what the model was not trained on
NOT_FOUND_DOUBT = 0.5  # of a structure without any evidence: it may be absent, or have been missed


@dataclass(frozen=True, kw_only=True)
class SegmentStatistics:
    """One segment in numbers. What doesn't apply, or isn't known, is None.

    Attributes
    ----------
    typed, name : str
        As asked for, and as understood, with side.
    found : bool
    side : "left", "right" or None
    code : str or None
        Scheme and value, such as "SCT 10200004".
    score : float
        Evidence, 0..1.
    voxels : int
    volume_ml : float or None
        Of volumes whose spacing is known.
    area_mm2 : float or None
        Of pictures whose spacing is known.
    mean, sd : float or None
        Of the image inside the segment, without padding; in ``unit``.
    unit : "HU" or ""
    box_ijk : six int or None
        First and last index along i, j, k, inclusive.
    box_lps : six float or None
        Least and greatest coordinate in mm along L, P, S, to the outer edge of the voxels; of calibrated volumes.
    centroid_ijk : three float or None
    centroid_lps : three float or None
        In mm, of calibrated volumes.
    slices : int
        Canonical slices that hold it.
    expected_dice : float or None
        0..1; where the engine says how sure it is.
    doubt : float
        0..1, see ``doubt_of``.
    warnings : tuple of str
        Sentences.
    mask_sha256 : str
        Fingerprint of the mask, as ``extent.mask_sha256``.
    """

    typed: str
    name: str
    found: bool
    side: str | None
    code: str | None
    score: float
    voxels: int
    volume_ml: float | None
    area_mm2: float | None
    mean: float | None
    sd: float | None
    unit: str
    box_ijk: tuple[int, int, int, int, int, int] | None
    box_lps: tuple[float, float, float, float, float, float] | None
    centroid_ijk: tuple[float, float, float] | None
    centroid_lps: tuple[float, float, float] | None
    slices: int
    expected_dice: float | None
    doubt: float
    warnings: tuple[str, ...]
    mask_sha256: str

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SegmentStatistics:
        """The statistics of which ``dataclasses.asdict`` and ``json`` made ``content``."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return cls(**values)


def statistics_of(segmentation: Segmentation) -> tuple[SegmentStatistics, ...]:
    """Numbers of each segment, in the order of the segments."""
    unit = "HU" if segmentation.volume.modality == "CT" and in_hounsfield_units(segmentation.volume) else ""
    return tuple(_statistics(segment, segmentation, unit) for segment in segmentation.segments)


def _statistics(segment: Segment, segmentation: Segmentation, unit: str) -> SegmentStatistics:
    volume, extent = segmentation.volume, mask_extent(segment.mask)
    inside = crop(segment.mask, extent)
    in_patient = volume.calibrated and volume.dimension == 3
    mean, sd = _intensity(volume, inside, extent)
    centroid = _centroid(inside, extent)
    return SegmentStatistics(
        typed=segment.typed,
        name=segment.name,
        found=segment.found,
        side=segment.modifier.meaning.lower() if segment.modifier else None,
        code=f"{segment.code.scheme} {segment.code.value}" if segment.code else None,
        score=segment.score,
        voxels=int(np.count_nonzero(inside)),
        volume_ml=segmentation.volume_ml(segment),
        area_mm2=segmentation.area_mm2(segment),
        mean=mean,
        sd=sd,
        unit=unit,
        box_ijk=extent if segment.found else None,
        box_lps=_box_lps(volume, inside, extent) if segment.found and in_patient else None,
        centroid_ijk=centroid,
        centroid_lps=_lps(volume, centroid) if centroid and in_patient else None,
        slices=segment.slices,
        expected_dice=_expected_dice(segment),
        doubt=doubt_of(segment),
        warnings=segment.warnings,
        mask_sha256=mask_sha256(inside, extent),
    )


def doubt_of(segment: Segment) -> float:
    """How much a segment wants looking at, 0..1.

    Found: what the expected Dice lacks to 1, or where none is known, what the score lacks, and no less than
    ``UNTRAINED_DOUBT`` where the model was not trained on the name, since scores mean little then. Not found: from
    ``NOT_FOUND_DOUBT`` without any evidence up to 1, the more there was, since then it was nearly taken for present.
    """
    if not segment.found:
        return NOT_FOUND_DOUBT + (1 - NOT_FOUND_DOUBT) * segment.score
    expected = _expected_dice(segment)
    if expected is not None:
        return 1.0 - expected
    return max(1.0 - segment.score, UNTRAINED_DOUBT if segment.provenance.get("trained") is False else 0.0)


def _expected_dice(segment: Segment) -> float | None:
    confidence = segment.confidence
    return None if confidence is None else float(confidence.expected_dice)


def _intensity(volume: Volume, inside: np.ndarray, extent: Extent) -> tuple[float | None, float | None]:
    """Mean and standard deviation of the voxels ``inside`` [k, j, i] of an extent that aren't padding."""
    kept = inside if volume.outside is None else inside & ~crop(volume.outside, extent)
    values = crop(volume.voxels, extent)[kept].astype(np.float64)
    return (float(values.mean()), float(values.std())) if values.size else (None, None)


def _centroid(inside: np.ndarray, extent: Extent) -> tuple[float, float, float] | None:
    """Mean i, j, k of the voxels ``inside`` [k, j, i] of an extent."""
    count = np.count_nonzero(inside)
    if not count:
        return None
    means = []
    for axis in range(3):
        sums = inside.sum(axis=tuple(other for other in range(3) if other != axis), dtype=np.int64)
        means.append(float(sums @ np.arange(len(sums)) / count))
    k, j, i = means
    return i + extent[0], j + extent[2], k + extent[4]


def _lps(volume: Volume, point: tuple[float, float, float]) -> tuple[float, float, float]:
    left, posterior, superior = volume.ijk_to_world_lps(np.array([point]))[0].tolist()
    return left, posterior, superior


def _box_lps(volume: Volume, inside: np.ndarray, extent: Extent) -> tuple[float, float, float, float, float, float]:
    """Smallest box along the axes of the patient that holds the voxels with their edges; exact for oblique grids too.

    On a line of voxels a coordinate is greatest at one of its ends, so the ends of each line are enough.
    """
    k, j = np.nonzero(inside.any(axis=2))
    first = inside.argmax(axis=2)[k, j]
    last = inside.shape[2] - 1 - inside[:, :, ::-1].argmax(axis=2)[k, j]
    ends = np.concatenate([np.stack([i, j, k], axis=1) for i in (first, last)])
    points = volume.ijk_to_world_lps(ends + np.array([extent[0], extent[2], extent[4]]))
    reach = np.abs(volume.ijk_to_lps[:3, :3]).sum(axis=1) / 2  # from a voxel's centre to its corners
    low, high = points.min(axis=0) - reach, points.max(axis=0) + reach
    left, left_end, posterior, posterior_end, superior, superior_end = np.stack([low, high], axis=1).ravel().tolist()
    return left, left_end, posterior, posterior_end, superior, superior_end


def write_statistics(records: Sequence[CaseRecord], table: Path, parquet: Path | None = None) -> tuple[Path, ...]:
    """Write one row for each case and structure, with the input's further columns, as CSV and, where asked, Parquet.

    Failed cases have no rows. A further column whose name is taken is called ``input_NAME``. Returns the files written.

    Raises
    ------
    InputError, InstallationError
        When a file can't be written, or Parquet is asked for without pyarrow.
    """
    rows, columns = list(_rows(records)), _columns(records)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with replacing(table) as file:
        file.write(text.getvalue().encode("utf-8"))
    if parquet is None:
        return (table,)
    _write_parquet(rows, columns, parquet)
    return table, parquet


def _write_parquet(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, type], path: Path) -> None:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as problem:
        raise InstallationError("Parquet needs pyarrow; install it with `pip install pyarrow`.") from problem
    kinds = {str: pyarrow.string(), bool: pyarrow.bool_(), int: pyarrow.int64(), float: pyarrow.float64()}
    content = {name: pyarrow.array([row.get(name) for row in rows], type=kinds[kind]) for name, kind in columns.items()}
    with replacing(path) as file:
        parquet.write_table(pyarrow.table(content), file)


def _columns(records: Sequence[CaseRecord]) -> dict[str, type]:
    """Name and type of each column."""
    carried = {name: str for record in records for name in _carried(record)}
    return {**COLUMNS, **carried}


def _rows(records: Sequence[CaseRecord]) -> Iterator[dict[str, Any]]:
    for record in records:
        for segment in record.segments:
            row: dict[str, Any] = {"case": record.case, "image": record.image, "frame": record.frame}
            row |= {name: value for name, value in asdict(segment).items() if name in COLUMNS}
            row["warnings"] = " ".join(segment.warnings)
            for name, parts in SPREAD.items():
                values = getattr(segment, name)
                row |= dict(zip(parts, values if values is not None else [None] * len(parts), strict=True))
            yield {**row, **_carried(record)}


def _carried(record: CaseRecord) -> dict[str, str]:
    """The input's further columns, under names that this table leaves free."""
    return {f"input_{name}" if name in COLUMNS else name: value for name, value in record.carried.items()}
