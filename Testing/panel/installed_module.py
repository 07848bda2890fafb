"""Run by the tests in an interpreter of its own: imports the module where it was laid out, shows its panel, and prints
what that took.

    python installed_module.py MODULE_FOLDER [EXTRA_PATH ...]
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

TESTING = Path(__file__).parents[1]

module_folder = Path(sys.argv[1])
# Neither the working copy nor an editable installation may help out.
sys.path[:] = [path for path in sys.path if Path(path or ".").resolve() != TESTING.parent]
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:0] = [str(TESTING / "panel"), str(TESTING / "scene"), str(module_folder)]

import application  # noqa: E402
from mrml_scene import new_scene  # noqa: E402

environment = new_scene(tempfile.mkdtemp())
application.install(environment, module_folder / "MedZeroSeg.py")
before = set(sys.modules)
import MedZeroSeg  # noqa: E402

imported = sorted(set(sys.modules) - before)
import MedZeroSegSlicer  # noqa: E402
from MedZeroSegSlicer import logic  # noqa: E402

import MedZeroSegLib  # noqa: E402

parent = application.panel_parent()
widget = MedZeroSeg.MedZeroSegWidget(parent)
widget.setup()
widget.enter()
print(
    json.dumps(
        {
            "files": [str(Path(module.__file__)) for module in (MedZeroSeg, MedZeroSegLib, MedZeroSegSlicer)],
            "imported": imported,
            "worker": logic.worker_command()[1],
            "status": widget.ui.statusLabel.text,
            "resources": [widget.resourcePath(name) for name in ("UI/MedZeroSeg.ui", "requirements.txt")],
        }
    )
)
widget.cleanup()
sys.stdout.flush()
application.leave()
