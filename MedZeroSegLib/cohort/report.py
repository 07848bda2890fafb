"""The cohort on one page: what was found and how sure that is, unusual sizes, failures, and how it was made."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from MedZeroSegLib.cohort.case_record import CaseRecord
from MedZeroSegLib.cohort.outliers import CASES_MIN, OUTLIER_Z, robust_z, size_of, sizes_by_structure
from MedZeroSegLib.cohort.review import concerns_of
from MedZeroSegLib.cohort.statistics import SegmentStatistics
from MedZeroSegLib.cohort.verdicts import kept_taught
from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.writers import NOTICE, replacing

REPORT_FILE = "report.html"
HISTOGRAM_MIN = 3  # sizes; fewer are read from the table
BINS_MAX = 24
CHART_LEFT, CHART_WIDTH, CHART_TOP, CHART_BOTTOM = 10.0, 280.0, 8.0, 85.0  # of the drawing in report.html
COLUMNS = (
    ("case", "Case", False),
    ("name", "Structure", False),
    ("size", "Size", True),
    ("z", "Robust z", True),
    ("score", "Score", True),
    ("dice", "Expected Dice", True),
    ("doubt", "Doubt", True),
    ("reviewed", "Review", False),
    ("warnings", "Remarks", False),
)


def write_cohort_report(records: Sequence[CaseRecord], folder: Path) -> Path:
    """Write ``folder/report.html``, one file that needs nothing else and asks nothing of the network.

    Thumbnails are taken from the records' files under ``folder``; a case without one has none on the page. Of a case
    it shows the name, the numbers and the sentences, nothing else that the image or the input table says of a patient.

    Raises
    ------
    InputError, InstallationError
        When the page can't be written, or Jinja2 is missing.
    """
    page = _page(records, folder)
    path = folder / REPORT_FILE
    with replacing(path) as file:
        file.write(page.encode("utf-8", "replace"))
    return path


def _page(records: Sequence[CaseRecord], folder: Path) -> str:
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as problem:
        raise InstallationError("The cohort's page needs Jinja2; install it with `pip install jinja2`.") from problem
    script = _resource("report.js")
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(_resource("report.html"))
    sizes = sizes_by_structure(records)
    scores = _robust_scores(sizes)
    rows = sorted(_rows(records, scores, folder), key=lambda row: (-row["doubt"], row["case"]))
    return template.render(
        notice=NOTICE,
        counts=_counts(records, scores),
        provenance=_provenance(records),
        failures=[record for record in records if record.status == "failed"],
        remarks=_remarks(records),
        taught=kept_taught(folder),
        histograms=[
            _histogram(name, unit, measured)
            for (name, unit), measured in sorted(sizes.items())
            if len(measured) >= HISTOGRAM_MIN
        ],
        outlier_z=OUTLIER_Z,
        cases_min=CASES_MIN,
        structures=sorted({segment.name for record in records for segment in record.segments}),
        columns=[{"key": key, "title": title, "number": number} for key, title, number in COLUMNS],
        rows=rows,
        pictures={
            str(number): picture for number, record in enumerate(records) if (picture := _picture(record, folder))
        },
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _resource(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _picture(record: CaseRecord, folder: Path) -> str | None:
    """The case's thumbnail as a data URI."""
    if "thumbnail" not in record.files:
        return None
    try:
        content = (folder / record.files["thumbnail"]).read_bytes()
    except OSError:
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(content).decode()}"


# Table


def _robust_scores(sizes: Mapping[tuple[str, str], Sequence[tuple[str, float]]]) -> dict[tuple[str, str], float]:
    """(case, structure) → robust z of its size."""
    scores: dict[tuple[str, str], float] = {}
    for (name, _unit), measured in sizes.items():
        if len(measured) >= CASES_MIN:
            zs = robust_z([size for _, size in measured])
            scores |= {(case, name): z for (case, _), z in zip(measured, zs, strict=True)}
    return scores


def _rows(
    records: Sequence[CaseRecord], scores: Mapping[tuple[str, str], float], folder: Path
) -> Iterator[dict[str, Any]]:
    for number, (record, concerns) in enumerate(zip(records, concerns_of(records), strict=True)):
        link = quote(record.files.get("mosaic", record.files.get("thumbnail", "")))
        picture = "thumbnail" in record.files and (folder / record.files["thumbnail"]).is_file()
        for segment, concern in zip(record.segments, concerns, strict=True):
            z = scores.get((record.case, segment.name))
            remarks = (*([concern.reason] if concern.unusual else []), *segment.warnings)
            yield {
                "number": number,
                "picture": picture,
                "link": link,
                "case": record.case,
                "name": segment.name,
                **_size_cells(segment),
                "z": "" if z is None else f"{z:+.1f}",
                "z_value": "" if z is None else f"{z:.4f}",
                "score": segment.score,
                "score_text": f"{segment.score:.2f}",
                "dice": "" if segment.expected_dice is None else segment.expected_dice,
                "dice_text": "" if segment.expected_dice is None else f"{segment.expected_dice:.2f}",
                "doubt": concern.doubt,
                "doubt_text": f"{concern.doubt:.2f}",
                "reviewed": record.reviewed,
                "warnings": " ".join(remarks),
                "kinds": _kinds(record, segment, z),
            }


def _size_cells(segment: SegmentStatistics) -> dict[str, Any]:
    measured = size_of(segment)
    if measured is None:
        return {"size": "not found", "size_value": ""}
    size, unit = measured
    return {"size": f"{_number(size)} {unit}", "size_value": size}


def _kinds(record: CaseRecord, segment: SegmentStatistics, z: float | None) -> str:
    """Words that the page's filter knows."""
    kinds = {
        "found": segment.found,
        "missing": not segment.found,
        "outlier": z is not None and abs(z) > OUTLIER_Z,
        "warned": bool(segment.warnings),
        "open": record.reviewed == "open",
    }
    return " ".join(kind for kind, holds in kinds.items() if holds)


def _number(value: float) -> str:
    """With three significant digits, all of them before the point where there are more."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


# Head


def _counts(records: Sequence[CaseRecord], scores: Mapping[tuple[str, str], float]) -> dict[str, int]:
    segments = [segment for record in records for segment in record.segments]
    return {
        "done": sum(record.status == "done" for record in records),
        "failed": sum(record.status == "failed" for record in records),
        "structures": len(segments),
        "missing": sum(not segment.found for segment in segments),
        "outliers": sum(abs(z) > OUTLIER_Z for z in scores.values()),
        "reviewed": sum(record.reviewed != "open" for record in records),
    }


def _provenance(records: Sequence[CaseRecord]) -> list[dict[str, Any]]:
    """Each way in which cases were made, with the number of them; one where all were made alike."""
    groups: dict[str, list[CaseRecord]] = {}
    for record in records:
        if record.provenance:
            how = {key: value for key, value in record.provenance.items() if key != "date"}
            groups.setdefault(json.dumps(how, sort_keys=True, ensure_ascii=False), []).append(record)
    made = []
    for alike in groups.values():
        first = alike[0].provenance
        dates = sorted(str(record.provenance.get("date", ""))[:10] for record in alike)
        made.append(
            {
                **first,
                "cases": len(alike),
                "dates": dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}",
                "settings_text": json.dumps(first["settings"], ensure_ascii=False, default=str),
            }
        )
    return made


def _remarks(records: Sequence[CaseRecord]) -> list[tuple[str, list[str]]]:
    """Sentence about images as wholes → the cases it holds for; what holds for most cases comes first."""
    cases: dict[str, list[str]] = {}
    for record in records:
        for sentence in record.warnings:
            cases.setdefault(sentence, []).append(record.case)
    return sorted(cases.items(), key=lambda item: -len(item[1]))


# Histograms


def _histogram(name: str, unit: str, measured: Sequence[tuple[str, float]]) -> dict[str, Any]:
    """Bars of the sizes of one structure on a log scale, since sizes spread by factors."""
    sizes = [size for _, size in measured]
    low, high = min(sizes), max(sizes)
    bins = min(BINS_MAX, max(4, round(math.sqrt(len(sizes)) * 1.5))) if high > low else 1

    def position(size: float) -> float:
        return math.log(size / low) / math.log(high / low) if high > low else 0.5

    counts = [0] * bins
    for size in sizes:
        counts[min(bins - 1, int(position(size) * bins))] += 1
    width, height = CHART_WIDTH / bins, CHART_BOTTOM - CHART_TOP
    edges = [low * (high / low) ** (n / bins) for n in range(bins + 1)]
    bars = [
        {
            "x": round(CHART_LEFT + n * width, 1),
            "width": round(width - 1, 1),
            "y": round(CHART_BOTTOM - height * count / max(counts), 1),
            "height": round(height * count / max(counts), 1),
            "told": f"{_number(edges[n])} to {_number(edges[n + 1])} {unit}: {count}",
        }
        for n, count in enumerate(counts)
        if count
    ]
    middle, zs = median(sizes), robust_z(sizes)
    outliers = [
        {
            "x": round(CHART_LEFT + CHART_WIDTH * position(size), 1),
            "told": f"{case}: {_number(size)} {unit}, robust z {z:+.1f}",
        }
        for (case, size), z in zip(measured, zs, strict=True)
        if abs(z) > OUTLIER_Z
    ]
    return {
        "name": name,
        "unit": unit,
        "count": len(sizes),
        "bars": bars,
        "outliers": outliers,
        "median": _number(middle),
        "median_x": round(CHART_LEFT + CHART_WIDTH * position(middle), 1),
        "low": _number(low),
        "high": _number(high),
        "spoken": f"{name}: {_number(low)} to {_number(high)} {unit}, median {_number(middle)}, "
        f"{len(outliers)} of unusual size",
    }
