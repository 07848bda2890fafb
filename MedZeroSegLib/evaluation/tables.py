"""Numbers as text, and tables in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from MedZeroSegLib.evaluation.figures import Estimate


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def with_interval(estimate: Estimate) -> str:
    """The mean with its interval; one patient gives none."""
    if estimate.patients < 2:
        return number(estimate.mean)
    return f"{estimate.mean:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]"


def number(value: float | None, digits: int = 3) -> str:
    """A number, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def points(difference: float) -> str:
    """A difference of shares in points; no minus before zero."""
    return f"{round(100 * difference, 1) + 0.0:+.1f}"


def percent(estimate: Estimate) -> str:
    """A share in per cent."""
    return "-" if math.isnan(estimate.mean) else f"{100 * estimate.mean:.0f} %"


def probability(p: float) -> str:
    """A p value."""
    return "-" if math.isnan(p) else f"{p:.2g}"
