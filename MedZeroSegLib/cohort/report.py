"""The cohort on one page: what was found and how sure that is, unusual sizes, failures, and how it was made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from MedZeroSegLib.cohort.case_record import CaseRecord


def write_cohort_report(records: Sequence[CaseRecord], folder: Path) -> Path:
    """Write ``folder/report.html``, one file that needs nothing else and asks nothing of the network.

    Thumbnails are taken from the records' files under ``folder``; a case without one has none on the page. Of a case
    it shows the name, the numbers and the sentences, nothing else that the image or the input table says of a patient.

    Raises
    ------
    InputError, InstallationError
        When the page can't be written, or Jinja2 is missing.
    """
    raise NotImplementedError
