"""The house as a whole: what lies where, which part may know which, and that nothing is missing from a package."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = "MedZeroSegLib"
TOP_LEVEL = {
    "MedZeroSeg", "MedZeroSegLib", "Testing", "CMakeLists.txt", "MedZeroSeg.png", "README.md", "pyproject.toml",
    "Makefile", "LICENSE.txt", ".ci", ".gitignore",
}  # fmt: skip
STAGES = (
    "saliency", "zero_shot", "slice_presence", "edges", "prompts", "point_prompts", "candidates",
    "propagation", "tracking", "assembly",
)  # fmt: skip
CALLERS = ("pipeline", "presets", "editing", "worker", "cohort", "cli", "evaluation", "training")
# Part of the library: what it may not know.
FORBIDDEN = {
    "text_image": (*STAGES, *CALLERS),
    "mask_decoder": (*STAGES, *CALLERS),
    **dict.fromkeys(STAGES, CALLERS),
    **dict.fromkeys(
        ("volume", "modality", "outside", "volume_io", "intensity", "slices", "vocabulary", "queries"),
        (*STAGES, *CALLERS),
    ),
    **dict.fromkeys(("segment", "extent", "segment_tags", "writers", "seg_nrrd", "nifti_labels"), (*STAGES, *CALLERS)),
    "axes": ("concepts", *CALLERS),
    "concepts": ("pipeline", "editing", "worker", "cohort", "cli", "evaluation", "training"),
    "encoding": ("pipeline", "editing", "worker", "cohort", "cli", "evaluation", "training"),
    "pipeline": ("editing", "worker", "cohort", "cli", "evaluation", "training"),
    "presets": ("pipeline", "editing", "worker", "cohort", "cli", "evaluation", "training"),
    **dict.fromkeys(("protocol", "request_loop", "delivery", "forecast"), (*STAGES, *CALLERS)),
}
WITH_TORCH = (
    "canvas",
    "text_image",
    "mask_decoder",
    "training",
    "saliency",
    "zero_shot",
    "tracking",
    "embeddings",
    "encoding",
    "concepts",
    "text_prior",
    "slice_embeddings",
    "editing_slice",
    "spreading",
    "editing",
    "propagation",
    "assembly",
    "pipeline",
    "prototypes",
    "evaluation.baseline",
    "evaluation.localisation",
)
LIGHT = (
    "", ".queries", ".vocabulary", ".protocol", ".modality", ".segment_tags", ".volume_io", ".writers", ".delivery",
    ".worker", ".forecast", ".cohort.review",
)  # fmt: skip
HEAVY = ("torch", "torchvision", "timm", "transformers", "open_clip", "matplotlib", "slicer", "qt", "ctk", "vtk")


def tracked(*paths: str) -> list[str]:
    listing = subprocess.run(
        ["git", "-c", "core.quotePath=off", "ls-files", "-z", "--", *paths], cwd=ROOT, check=True, capture_output=True
    )
    return [name for name in listing.stdout.decode().split("\0") if name]


def test_top_level_holds_the_known_entries_and_no_other():
    assert {name.split("/")[0] for name in tracked()} == TOP_LEVEL


# Packages


def listed_in_cmake(folder: str) -> set[str]:
    """What the set(..._SCRIPTS ...) and set(..._RESOURCES ...) of a folder's CMakeLists.txt name."""
    text = re.sub(r"#.*", "", (ROOT / folder / "CMakeLists.txt").read_text(encoding="utf-8"))
    text = text.replace("${MODULE_NAME}", folder)
    return set(" ".join(re.findall(r"set\(\w+_(?:SCRIPTS|RESOURCES)\s([^)]*)\)", text)).split())


@pytest.mark.parametrize("folder", ["MedZeroSeg", "MedZeroSegLib"])
def test_cmake_lists_every_file_of_the_slicer_package(folder):
    files = {name.removeprefix(f"{folder}/") for name in tracked(folder)} - {"CMakeLists.txt"}
    listed = listed_in_cmake(folder)
    assert sorted(files - listed) == [], f"add these to {folder}/CMakeLists.txt"
    assert sorted(listed - files) == [], f"{folder}/CMakeLists.txt names files that are not there"


def test_extension_metadata_fill_one_line_each():
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    for key in ("HOMEPAGE", "CONTRIBUTORS", "DESCRIPTION", "ICONURL", "DEPENDS"):
        assert re.search(rf'^set\(EXTENSION_{key} "[^"\n]+"\)$', text, re.MULTILINE), key


def test_wheel_takes_every_kind_of_file_that_the_library_holds():
    taken = {".py", ".json", ".safetensors", ".md", ".html", ".js"}
    files = [Path(name) for name in tracked(LIBRARY)]
    assert {file.suffix for file in files if file.name != "CMakeLists.txt"} <= taken
    packages = {file.parent for file in files if file.suffix == ".py"}
    assert [str(package) for package in packages if package / "__init__.py" not in files] == []


def test_every_package_that_is_imported_is_declared():
    declared = {re.match(r"[\w.-]+", line).group().lower().replace("_", "-") for line in requires("medzeroseg")}
    owners = packages_distributions()
    undeclared = {
        top
        for module in modules()
        for top in imported_tops(module)
        if top not in sys.stdlib_module_names and top != LIBRARY
        if not declared & {owner.lower().replace("_", "-") for owner in owners.get(top, ())}
    }
    assert undeclared == set()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no executable bit")
def test_continuous_integration_script_can_be_run():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_readme_gives_both_commands_and_what_they_stand_for_on_the_first_screen():
    first_screen = "\n".join((ROOT / "README.md").read_text(encoding="utf-8").splitlines()[:45])
    for text in ("make demo", "make test", ".venv/bin/medzeroseg demo", ".venv/bin/pytest"):
        assert text in first_screen


# Arrows


def modules() -> dict[str, Path]:
    """Dotted name inside the library ("" is the package itself) and file of each of its modules."""
    files = [Path(name) for name in tracked(LIBRARY) if name.endswith(".py")]
    return {".".join(file.with_suffix("").parts[1:]).removesuffix("__init__").strip("."): ROOT / file for file in files}


def imported_names(module: str, at_import_time: bool = False) -> set[str]:
    """Absolute dotted names that a module imports; `from a import b` counts as a and a.b."""
    path = modules()[module]
    package = [LIBRARY, *module.split(".")] if module else [LIBRARY]
    if path.name != "__init__.py":
        package = package[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = set()
    for node in run_at_import(tree) if at_import_time else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            names |= {source, *(f"{source}.{alias.name}" for alias in node.names)}
    return names


def run_at_import(tree: ast.AST) -> list[ast.AST]:
    """The nodes outside functions and outside `if TYPE_CHECKING`."""
    nodes = []
    for node in ast.iter_child_nodes(tree):
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        if not typing_only and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            nodes += [node, *run_at_import(node)]
    return nodes


def imported_tops(module: str, at_import_time: bool = False) -> set[str]:
    return {name.split(".")[0] for name in imported_names(module, at_import_time)}


def in_part(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


def test_no_part_knows_what_it_may_not_know():
    broken = [
        f"{module} imports {name}"
        for part, forbidden in FORBIDDEN.items()
        for module in modules()
        if in_part(module, part)
        for name in sorted(imported_names(module))
        if any(in_part(name, f"{LIBRARY}.{other}") for other in forbidden)
    ]
    assert broken == []


def test_engine_never_imports_slicer():
    assert [module for module in modules() if imported_tops(module) & {"slicer", "qt", "ctk", "MedZeroSeg"}] == []


def test_torch_is_imported_at_the_top_of_model_files_only():
    others = [module for module in modules() if not any(in_part(module, part) for part in WITH_TORCH)]
    assert [module for module in others if "torch" in imported_tops(module, at_import_time=True)] == []


def test_what_the_panel_imports_pulls_no_torch():
    names = [LIBRARY + suffix for suffix in LIGHT if suffix.strip(".") in modules()]
    code = f"import sys, {', '.join(names)}; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "[]"


def test_the_help_is_shown_before_anything_slow_is_imported():
    code = (
        f"import sys; from {LIBRARY}.cli import app; app(['--help'], standalone_mode=False); "
        f"print([name for name in {(*HEAVY, 'numpy', 'rich', 'SimpleITK')} if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "Usage" in run.stdout and run.stdout.strip().endswith("[]")


@pytest.mark.parametrize("first", ["writers", "segment"])
def test_segment_is_the_function_whatever_was_imported_before(first):
    code = (
        f"import {LIBRARY}.{first}; from {LIBRARY} import read_volume, segment, __version__; "
        "print(callable(read_volume), callable(segment), __version__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("True True ")
