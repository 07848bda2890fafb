"""The first-use set-up: what is missing, what the user agrees to, and the installation, as a guest of Slicer's Python:
under constraints that forbid touching what Slicer ships, and never without a click."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.requirements import Requirement

from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.weights_catalogue import Weights, choose_weights, read_catalogue

from .translation import _

REQUIREMENTS_FILE = Path(__file__).parents[1] / "Resources" / "requirements.txt"
TORCH = ("torch>=2.2", "torchvision>=0.17")
SHIPPED_BY_SLICER = ("numpy", "scipy", "SimpleITK", "vtk", "pydicom")
SAME_WEIGHTS = {"lite-research": "lite"}  # presets that differ in what the package itself holds
# Sizes as measured with the wheels of 2026: download, and disk space when unpacked. PyTorch with NVIDIA support is
# the largest, and what the machine needs is only known when its extension has looked at the graphics card.
PACKAGES_GB, TORCH_GB, TORCH_NVIDIA_GB = 0.2, 0.2, 3.0
UNPACKED = 2.5  # times the download
OLDEST_SLICER = "5.12"


@dataclass(frozen=True)
class Setup:
    """What is missing before the engine can run.

    Attributes
    ----------
    torch, packages : requirements that aren't met, as pip reads them.
    weights : models whose files aren't here.
    fault : sentence on weights that are here and wrong, or on the folder for them.
    """

    torch: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    weights: tuple[Weights, ...] = ()
    fault: str = ""

    @property
    def installable(self) -> bool:
        """Whether there is something that an installation would bring."""
        return bool(self.torch or self.packages or self.carried)

    @property
    def carried(self) -> tuple[Weights, ...]:
        """The missing weights that a package carries; the others have to be brought in a folder."""
        return tuple(weights for weights in self.weights if weights.carrier)

    @property
    def fetchable(self) -> bool:
        """Whether the engine can download the missing weights: nothing else is missing that it would need for that."""
        return bool(self.weights) and not (self.torch or self.packages or self.carried or self.fault)

    @property
    def ready(self) -> bool:
        """Whether the engine has all that it needs."""
        return not (self.installable or self.weights or self.fault)

    @property
    def download_gb(self) -> tuple[float, float]:
        """Least and most to download, in GB."""
        least = sum(weights.size for weights in self.carried) / 1e9 + (PACKAGES_GB if self.packages else 0.0)
        return least + (TORCH_GB if self.torch else 0.0), least + (TORCH_NVIDIA_GB if self.torch else 0.0)


def examine(weights_folder: str = "", preset: str = "lite") -> Setup:
    """What is missing on this machine for the models of a preset.

    A look at names, versions and file sizes, which imports none of the packages.
    """
    packages = unmet(read_requirements(REQUIREMENTS_FILE))
    if "platformdirs" in names_of(packages):  # what looks for weights needs it
        weights, fault = weights_of(preset), ""
    else:
        weights, fault = _missing_weights(weights_folder, preset)
    return Setup(torch=unmet(TORCH), packages=packages, weights=weights, fault=fault)


def weights_of(preset: str) -> tuple[Weights, ...]:
    """The weights that a preset needs."""
    return tuple(choose_weights(read_catalogue(), SAME_WEIGHTS.get(preset, preset)))


def read_requirements(path: Path) -> tuple[str, ...]:
    """The requirements of a requirements.txt, without comments."""
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return tuple(line for line in lines if line and not line.startswith(("#", "-")))


def unmet(requirements: Sequence[str]) -> tuple[str, ...]:
    """Those of the requirements that apply to this machine and that no installed version meets."""
    return tuple(text for text in requirements if not _is_met(Requirement(text)))


def _is_met(requirement: Requirement) -> bool:
    if requirement.marker is not None and not requirement.marker.evaluate():
        return True
    found = installed_version(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)


def installed_version(package: str) -> str | None:
    """Version of an installed package, without importing it; None where pip knows of none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def names_of(requirements: Sequence[str]) -> set[str]:
    return {Requirement(text).name for text in requirements}


def _missing_weights(folder: str, preset: str) -> tuple[tuple[Weights, ...], str]:
    """Models with files missing or of the wrong size, and the sentence on what is here and wrong. Hashes are not
    looked at: the engine does that when it opens the files."""
    from MedZeroSegLib.weights import weights_store

    try:
        store = weights_store(folder or None)
        rows = store.rows(SAME_WEIGHTS.get(preset, preset))
    except (InputError, InstallationError) as error:
        return (), str(error)
    text = _("{path} is not the file that is needed: {reason}.")
    faults = [text.format(path=row.path, reason=row.note) for row in rows if row.ok is False]
    lacking = {row.weights for row in rows if row.path is None or row.ok is False}
    return tuple(store.catalogue[name] for name in sorted(lacking)), faults[0] if faults else ""


# What the user reads


def banner_sentence(setup: Setup) -> str:
    """The one sentence above the panel while something is missing; empty when all is in place."""
    if setup.fault:
        return setup.fault
    if setup.torch or setup.packages:
        least, most = setup.download_gb
        text = _("The models are not set up yet: {least} to {most} GB to download, once.")
        same = _("The models are not set up yet: {least} GB to download, once.")
        return (text if most > least else same).format(least=f"{least:.1f}", most=f"{most:.1f}")
    if setup.weights:
        text = _("Model files are missing ({names}): {size} MB to download, once, or to take from a folder.")
        names = ", ".join(file.name for weights in setup.weights for file in weights.files[:1])
        return text.format(names=names, size=round(sum(weights.size for weights in setup.weights) / 1e6))
    return ""


def consent_text(setup: Setup) -> str:
    """What will be installed, from where, how much and under which licence; the user agrees to this or not."""
    least, most = setup.download_gb
    folder = sysconfig.get_paths()["purelib"]
    paragraphs = [_("MedZeroSeg will install the following into Slicer's Python:")]
    if setup.torch:
        paragraphs.append(_torch_paragraph())
    if setup.packages:
        names = ", ".join(sorted(names_of(setup.packages)))
        paragraphs.append(_("• Packages from PyPI: {names}.").format(names=names))
    for weights in setup.carried:
        text = _("• Model weights: {title}, {size} MB, licence {licence}.")
        paragraphs.append(text.format(title=weights.title, size=round(weights.size / 1e6), licence=weights.licence))
    size = _("Download: {least} to {most} GB. Disk space: up to {space} GB in {folder} ({free} GB are free).")
    paragraphs += [
        size.format(
            least=f"{least:.1f}",
            most=f"{most:.1f}",
            space=f"{UNPACKED * most:.1f}",
            folder=folder,
            free=f"{free_gb(folder):.0f}",
        ),
        _("numpy, scipy, SimpleITK and vtk, which Slicer ships, are not changed."),
        _("No image leaves this computer, now or later."),
    ]
    return "\n\n".join(paragraphs)


def fetch_text(setup: Setup) -> str:
    """What will be downloaded, from where, how much, where to, and under which licence, for the user to agree to."""
    from MedZeroSegLib.weights import weights_store

    folder = weights_store().root
    paragraphs = [_("MedZeroSeg will download the following model files:")]
    for weights in setup.weights:
        hosts = ", ".join(sorted({urlsplit(file.sources[0]).hostname or "" for file in weights.files}))
        text = _("• {title}, {size} MB, licence {licence}, from {hosts}.")
        size = round(weights.size / 1e6)
        paragraphs.append(text.format(title=weights.title, size=size, licence=weights.licence, hosts=hosts))
    near = next(path for path in (folder, *folder.parents) if path.is_dir())
    text = _("Download: {size} MB, into {folder} ({free} GB are free). You can cancel and go on later.")
    total = round(sum(weights.size for weights in setup.weights) / 1e6)
    paragraphs += [
        text.format(size=total, folder=folder, free=f"{free_gb(str(near)):.0f}"),
        _("Every file is checked against its known content before it is used."),
        _("No image leaves this computer, now or later."),
    ]
    return "\n\n".join(paragraphs)


def _torch_paragraph() -> str:
    if find_spec("PyTorchUtils") is not None:
        return _("• PyTorch, in the build for this computer's graphics card, by the PyTorch extension.")
    return _(
        "• PyTorch from PyPI, because the PyTorch extension is not installed. On Windows this build does not use "
        "graphics cards; to use one, cancel, install the PyTorch extension in the Extensions Manager, restart Slicer "
        "and come back here."
    )


def free_gb(folder: str) -> float:
    """Free disk space in GB where a folder lies."""
    return shutil.disk_usage(folder).free / 1e9


# Installing


def install(
    setup: Setup, repair: bool = False, preset: str = "lite", requirements_file: Path = REQUIREMENTS_FILE
) -> None:
    """Install what is missing; the user has agreed. Blocks with Slicer's own progress window.

    Parameters
    ----------
    repair : install PyTorch and the packages that carry the weights anew, because they are here and don't work.

    Raises
    ------
    InstallationError
        With the reason; what Slicer ships is as it was.
    """
    packaging = _slicer_packaging()
    weights = weights_of(preset) if repair else setup.weights
    carriers = [item.carrier.package for item in weights if item.carrier]
    try:
        if repair:
            packaging.pip_uninstall(" ".join(sorted(names_of(TORCH))))
        if repair or setup.torch:
            with _constraints_file(SHIPPED_BY_SLICER) as path:
                _install_torch(packaging, path)
        with _constraints_file((*SHIPPED_BY_SLICER, *sorted(names_of(TORCH)))) as path:
            wanted = packaging.load_requirements(REQUIREMENTS_FILE)
            packaging.pip_ensure(wanted, constraints=path, prompt_install=False, requester="MedZeroSeg")
        if carriers:  # their files are all we want of them; what they require would replace packages of Slicer's
            packaging.pip_install(["--no-deps", "--force-reinstall", *carriers], requester="MedZeroSeg")
    except (subprocess.CalledProcessError, RuntimeError, OSError) as error:
        text = _(
            "The packages could not be installed ({reason}); check the network connection and Slicer's log. "
            "numpy, scipy, SimpleITK and vtk are as they were."
        )
        raise InstallationError(text.format(reason=_reason(error))) from error


def _slicer_packaging() -> Any:
    try:
        import slicer.packaging
    except ImportError as error:
        text = _("The set-up needs Slicer {version} or newer; install it and open MedZeroSeg there.")
        raise InstallationError(text.format(version=OLDEST_SLICER)) from error
    return slicer.packaging


def _install_torch(packaging: Any, constraints_file: Path) -> None:
    """By the PyTorch extension, which knows the build for the graphics card; by pip where it isn't installed."""
    try:
        from PyTorchUtils import PyTorchUtilsLogic
    except ImportError:
        packaging.pip_install(list(TORCH), constraints=constraints_file, requester="MedZeroSeg")
        return
    versions = {Requirement(text).name: str(Requirement(text).specifier) for text in TORCH}
    with _environment("PIP_CONSTRAINT", str(constraints_file)):  # the extension's installer takes no constraints
        PyTorchUtilsLogic().installTorch(
            askConfirmation=False,
            torchVersionRequirement=versions["torch"],
            torchvisionVersionRequirement=versions["torchvision"],
        )


def constraints(protected: Sequence[str]) -> list[str]:
    """Lines that keep pip from replacing packages that are here.

    What is here without a record for pip, such as Slicer's own build of vtk, is excluded altogether: pip would see
    nothing installed and put its own beside it.
    """
    pinned = {name: installed_version(name) for name in protected}
    return [f"{name}=={found}" if found else f"{name}<0" for name, found in pinned.items() if found or find_spec(name)]


@contextmanager
def _constraints_file(protected: Sequence[str]) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="medzeroseg-") as folder:
        path = Path(folder) / "constraints.txt"
        path.write_text("".join(f"{line}\n" for line in constraints(protected)), encoding="utf-8")
        yield path


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _reason(error: Exception) -> str:
    if isinstance(error, subprocess.CalledProcessError):
        return _("pip ended with status {status}").format(status=error.returncode)
    return str(error) or type(error).__name__
