"""The module as a part of Slicer: it imports wherever it is laid out, quickly, and the extension keeps the rules of the
Extensions Index as far as a script can tell."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What Slicer loads itself when it starts, and what this module may bring beside its own files and Python's.
ALLOWED = {"packaging", "slicer"}
HEAVY = {
    "torch", "torchvision", "timm", "transformers", "open_clip", "segment_anything", "openvino", "SimpleITK", "scipy",
    "skimage", "pydicom", "safetensors", "platformdirs", "httpx", "matplotlib",
}  # fmt: skip
OWN = {"MedZeroSeg", "MedZeroSegLib", "MedZeroSegSlicer"}
MOST_MODULES = 150  # all of them together; under 0.2 s on any machine that Slicer runs on
LARGEST_FILE = 10 << 20  # bytes of one file
LARGEST_COPY = 100 << 20  # bytes of a working copy, by the rules of the Extensions Index


def tracked(*paths: str) -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z", "--", *paths], cwd=ROOT, check=True, capture_output=True)
    return [Path(name) for name in listing.stdout.decode().split("\0") if name and (ROOT / name).exists()]


def listed_in_cmake(folder: str) -> list[str]:
    text = re.sub(r"#.*", "", (ROOT / folder / "CMakeLists.txt").read_text(encoding="utf-8"))
    text = text.replace("${MODULE_NAME}", folder)
    return " ".join(re.findall(r"set\(\w+_(?:SCRIPTS|RESOURCES)\s([^)]*)\)", text)).split()


# Where it lies


def lay_out_installed(folder: Path) -> Path:
    """As CMake installs it: the module's files and the library side by side; exactly the files that are listed."""
    scripts = folder / "Slicer 5.12 ä" / "lib" / "qt-scripted-modules"
    for source, target in (("MedZeroSeg", scripts), ("MedZeroSegLib", scripts / "MedZeroSegLib")):
        for name in listed_in_cmake(source):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / source / name, target / name)
    return scripts


def lay_out_working_copy(folder: Path) -> Path:
    """As it is checked out: the library one level above the module's file."""
    for path in tracked("MedZeroSeg", "MedZeroSegLib"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / path)
    return folder / "MedZeroSeg"


def load(module_folder: Path, cwd: Path) -> dict:
    program = Path(__file__).with_name("installed_module.py")
    run = subprocess.run([sys.executable, program, module_folder], capture_output=True, text=True, cwd=cwd)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize("lay_out", [lay_out_installed, lay_out_working_copy])
def test_module_loads_where_it_was_laid_out(lay_out, tmp_path):
    pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
    pytest.importorskip("PySide6")
    told = load(lay_out(tmp_path / "copy"), tmp_path)
    for path in (*told["files"], told["worker"], *told["resources"]):
        assert path.startswith(str(tmp_path)) and Path(path).exists(), path
    assert told["status"]
    foreign = {name.partition(".")[0] for name in told["imported"]}
    assert foreign & HEAVY == set()
    assert foreign - OWN - ALLOWED - set(sys.stdlib_module_names) == set()
    assert len(told["imported"]) < MOST_MODULES


def test_what_the_module_takes_from_the_library_needs_no_torch():
    names = set()
    for path in tracked("MedZeroSeg"):
        if path.suffix == ".py":
            text = (ROOT / path).read_text(encoding="utf-8")
            names |= set(re.findall(r"^\s*from (MedZeroSegLib[\w.]*) import", text, re.MULTILINE))
    code = f"import sys, {', '.join(sorted(names))}; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, "False"), run.stderr
    assert len(names) > 5


# The rules of the Extensions Index


def cmake_value(key: str) -> str:
    """The value of set(EXTENSION_KEY "..."), which has to stand on one line."""
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    found = re.findall(rf'^set\(EXTENSION_{key} "([^"\n]+)"\)$', text, re.MULTILINE)
    assert len(found) == 1, key
    return found[0]


def catalogue_entry() -> dict:
    """MedZeroSeg.json as the README shows it; the index keeps the real one."""
    blocks = re.findall(r"```json\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    return next(entry for entry in map(json.loads, blocks) if "scm_url" in entry)


def test_extension_has_the_name_of_its_catalogue_file():
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    assert re.search(r"^project\(MedZeroSeg\)$", text, re.MULTILINE)
    assert "MedZeroSeg.json" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_repository_name_begins_with_slicer():
    assert cmake_value("HOMEPAGE").rpartition("/")[2] == "SlicerMedZeroSeg"


def test_icon_and_screenshots_are_raw_files_of_this_repository():
    start = cmake_value("HOMEPAGE").replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/"
    urls = [cmake_value("ICONURL"), *cmake_value("SCREENSHOTURLS").split()]
    assert len(urls) > 1
    for url in urls:
        assert url.startswith(start), url
        assert (ROOT / url.removeprefix(start)).read_bytes().startswith(b"\x89PNG"), url


def test_description_is_one_or_two_sentences():
    sentences = re.split(r"(?<=\.)\s", cmake_value("DESCRIPTION"))
    assert 1 <= len(sentences) <= 2 and all(sentence.endswith(".") for sentence in sentences)


def test_catalogue_entry_agrees_with_cmake():
    entry = catalogue_entry()
    assert entry["build_dependencies"] == cmake_value("DEPENDS").split() == ["PyTorch"]
    assert entry["scm_url"] == cmake_value("HOMEPAGE") + ".git"
    assert entry["category"] == "Segmentation" and entry["scm_revision"] == "main"
    assert entry["build_subdirectory"] == "." and entry["tier"] in (1, 3, 5) and "$schema" in entry


def test_licence_lies_in_the_root_and_the_readme_names_it():
    assert "Apache License" in (ROOT / "LICENSE.txt").read_text(encoding="utf-8")[:500]
    assert "Apache-2.0" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_readme_shows_the_module_and_names_the_publication():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert len(pictures) > 1 and all((ROOT / picture).is_file() for picture in pictures)
    assert "PLOS ONE" in text and "For research" in text


def test_working_copy_is_small_and_holds_no_stray_files():
    sizes = {path: (ROOT / path).stat().st_size for path in tracked()}
    assert sum(sizes.values()) < LARGEST_COPY
    assert [path for path, size in sizes.items() if size > LARGEST_FILE] == []
    stray = [path for path in sizes if path.suffix in (".s4ext", ".pyc", ".pth") or path.name in (".DS_Store", "MedZeroSeg.json")]  # fmt: skip  # noqa: E501
    assert stray == []


def test_module_file_is_short_enough_to_read():
    lines = (ROOT / "MedZeroSeg" / "MedZeroSeg.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 600


def test_texts_are_translated_whole():
    """No f-string inside _(), and placeholders have names, so that a translator can move them."""
    for path in tracked("MedZeroSeg"):
        if path.suffix == ".py":
            text = (ROOT / path).read_text(encoding="utf-8")
            assert re.findall(r"\b_\(\s*f[\"']", text) == [], path
            assert re.findall(r"\b_\(\s*\"[^\"]*\{\}[^\"]*\"", text) == [], path
