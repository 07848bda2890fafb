"""Options that several commands share, and the sentence with which they end; no PyTorch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

RESEARCH_NOTE = "For research use; every result has to be reviewed by a qualified person."

PresetOption = Annotated[str, typer.Option(help="lite, lite-research (non-commercial), base, base/VARIANT, or a PATH.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
WeightsOption = Annotated[Optional[Path], typer.Option(help="Folder in which weights are looked for first.")]  # noqa: UP045
