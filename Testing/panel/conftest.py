"""The module in a panel of its own, over a real scene; and the engine's process with a stand-in behind it."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "MedZeroSeg"), str(ROOT / "Testing" / "scene")]
