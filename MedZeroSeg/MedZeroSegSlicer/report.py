"""The text of "Copy report": what a developer needs to understand a fault, and nothing of the patient.
Names that aren't in the vocabulary are left out, for they can be anything."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from MedZeroSegLib import __version__
from MedZeroSegLib.vocabulary import vocabulary

from .install import REQUIREMENTS_FILE as REQUIREMENTS
from .install import SHIPPED_BY_SLICER, TORCH, installed_version, names_of, read_requirements
from .run_state import RunState
from .segmentation_run import Settings


def report_text(application: str, settings: Settings, volume_line: str, run: RunState, log: Iterable[str]) -> str:
    """Versions, settings, what the run came to, and the last lines of the engine's log."""
    packages = (*SHIPPED_BY_SLICER, *sorted(names_of((*TORCH, *read_requirements(REQUIREMENTS)))))
    facts = {
        "MedZeroSeg": __version__,
        "application": application,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: installed_version(name) for name in packages},
        "settings": asdict(settings),
        "image": volume_line,
        "run": {
            "phase": run.phase.value,
            "at": run.code,
            "seconds": round(run.seconds, 1),
            "failure": run.failure,
            "message": run.message,
            "warnings": run.warnings,
            "outcomes": [
                {"name": _name(outcome.name), "found": outcome.found, "score": outcome.score, "ml": outcome.volume_ml}
                for outcome in run.outcomes
            ],
        },
        "log": list(log),
    }
    return json.dumps(facts, indent=1, ensure_ascii=False).replace(str(Path.home()), "~")


def _name(name: str) -> str:
    """A name of the vocabulary, with or without its side; anything else is only called unknown."""
    bare = name.removeprefix("left ").removeprefix("right ")
    return name if name in vocabulary() or bare in vocabulary() else "(unknown name)"
