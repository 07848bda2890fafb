"""Where the weights lie: finds, checks and fetches the files that weights.json lists, and opens them safely.

Looked up in order: the user's folder, the Python package that carries them, the store's own folder, the network."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from .errors import InputError, InstallationError
from .weights_catalogue import (
    STATED_HASHES,
    Carrier,
    WeightFile,
    Weights,
    by_hand,
    check_hashes,
    choose_weights,
    read_catalogue,
    sha256_of,
    state_hash,
    stated_hashes,
)
from .weights_download import Progress, download
from .writers import replacing

if TYPE_CHECKING:
    from torch import Tensor

FOLDER_VARIABLE = "MEDZEROSEG_WEIGHTS"
CA_FILE_VARIABLE = "MEDZEROSEG_CA_FILE"
VERIFIED = "verified.json"  # in the store: large files whose hash was right, with size and time of change
ALWAYS_HASHED_MAX = 200 << 20  # bytes; up to here hashing costs less than half a second
YOUR_FOLDER, STORE = "your folder", "store"  # labels of places; a carrier's is "package NAME"


@dataclass(frozen=True)
class Place:
    """A folder in which weights may lie, and what kind of place it is, in words."""

    label: str
    folder: Path


@dataclass(frozen=True)
class WeightRow:
    """A line of `medzeroseg weights list|verify|import`: one file. ``ok`` is None where its hash was not looked at."""

    weights: str
    file: str
    presets: tuple[str, ...]
    licence: str
    size: int | None
    sha256: str | None
    source: str
    place: str  # "" where the file is missing
    path: Path | None
    ok: bool | None = None
    note: str = ""


@dataclass(frozen=True)
class WeightsStore:
    """The weights of this machine.

    Attributes
    ----------
    root : Path
        The store's own folder; each model has a folder of its name in it.
    folder : Path or None
        The user's folder, looked at first: it holds the files themselves or one folder for each model.
    ca_file : Path or None
        Certificates to trust beside the usual ones.
    """

    root: Path
    folder: Path | None = None
    ca_file: Path | None = None
    catalogue: Mapping[str, Weights] = field(default_factory=read_catalogue)

    def locate(self, name: str, allow_download: bool = False, progress: Progress | None = None) -> Path:
        """The checked file of a model, or the folder of a model of several files; nothing is opened unchecked.

        Raises
        ------
        InputError
            When the name is not in the catalogue, or the user's folder does not exist.
        InstallationError
            When the files are missing, incomplete or not those that the catalogue lists; the sentence says what to do.
        """
        weights = self._weights(name)
        place, faults = self._find(weights)
        if place is not None:
            return place.folder / weights.files[0].name if len(weights.files) == 1 else place.folder
        if allow_download:
            self.fetch(name, progress=progress)
            return self.locate(name)
        raise InstallationError(faults[0] if faults else self._absence(weights))

    def record(self, name: str) -> dict[str, str]:
        """What a result tells of the weights it was made with: name, main file, its SHA-256, licence."""
        weights = self._weights(name)
        main = weights.files[0]
        return {"name": name, "file": main.name, "sha256": main.sha256 or "", "licence": weights.licence}

    def rows(self, *names: str) -> list[WeightRow]:
        """One row for each file of the models or presets named (of all, without names), and where it lies; unread."""
        return [row for weights in self._choice(names) for row in self._rows(weights)]

    def verify(self, *names: str) -> list[WeightRow]:
        """As `rows`, and every file that is here is hashed, whatever an earlier check found."""
        return [row for weights in self._choice(names) for row in self._rows(weights, check=True)]

    def fetch(self, *names: str, stated: Mapping[str, str] | None = None, progress: Progress | None = None) -> None:
        """Download what is missing of the models or presets named; what is here already is left as it is.

        Parameters
        ----------
        stated : SHA-256 by file name, for files whose hash the catalogue does not know.
        progress : told the bytes fetched and the bytes in all, over all files.

        Raises
        ------
        InputError
            When a name is not in the catalogue.
        InstallationError
            When a file can't be had, or its hash is neither known nor stated; the others have been fetched then.
        """
        stated = check_hashes(stated or {})
        wanted = [(weights, file) for weights in self._choice(names) for file in self._lacking(weights, stated)]
        total = sum(file.size or 0 for _, file in wanted)
        done, unknown = 0, []
        for weights, file in wanted:
            own = self.root / weights.name
            sha256 = file.sha256 or stated.get(file.name) or stated_hashes(own).get(file.name)
            if sha256 is None and file.words is None:
                unknown.append(self._hash_not_known(weights, file))
                continue
            report = None if progress is None else _shifted(progress, done, total)
            download(file, sha256, own / file.name, self.ca_file, report)
            if file.sha256 is None:  # from now on it may not change
                state_hash(own / file.name, sha256 or sha256_of(own / file.name))
            done += file.size or 0
        if unknown:
            raise InstallationError(unknown[0])

    # Looking up

    def _weights(self, name: str) -> Weights:
        weights = self.catalogue.get(name)
        if weights is None:
            raise InputError(f"No weights are called '{name}'; known are {', '.join(self.catalogue)}.")
        return weights

    def _choice(self, names: tuple[str, ...]) -> list[Weights]:
        return choose_weights(self.catalogue, names) if names else list(self.catalogue.values())

    def _places(self, weights: Weights) -> Iterator[Place]:
        """The places that hold the weights, at least in part, in the order of the search."""
        main = weights.files[0].name
        if self.folder is not None:
            if not self.folder.is_dir():
                raise InputError(
                    f"The weights folder '{self.folder}' is not there; give one that is, or unset {FOLDER_VARIABLE}."
                )
            if (self.folder / weights.name).is_dir():
                yield Place(YOUR_FOLDER, self.folder / weights.name)
            elif (self.folder / main).is_file() and self._is_meant(weights, self.folder / main):
                yield Place(YOUR_FOLDER, self.folder)
        carried = weights.carrier and carrier_folder(weights.carrier)
        if weights.carrier and carried and (carried / main).is_file():
            yield Place(f"package {weights.carrier.package}", carried)
        own = self.root / weights.name
        if any((own / file.name).is_file() for file in weights.files):
            yield Place(STORE, own)

    def _is_meant(self, weights: Weights, path: Path) -> bool:
        """Whether a file is these weights', where several models' main files have its name: by its size."""
        same = [other for other in self.catalogue.values() if other.files[0].name == path.name]
        size = path.stat().st_size
        fitting = [other for other in same if other.files[0].size == size]
        return len(same) == 1 or weights in fitting or (not fitting and weights is same[0])

    def _find(self, weights: Weights) -> tuple[Place | None, list[str]]:
        """The first place that holds the weights whole and right, and what is wrong with the places before it."""
        faults: list[str] = []
        for place in self._places(weights):
            fault = self._fault(weights, place)
            if fault is None:
                return place, faults
            if place.label == YOUR_FOLDER:  # who names a folder means that one
                raise InstallationError(fault)
            faults.append(fault)
        return None, faults

    def _fault(self, weights: Weights, place: Place) -> str | None:
        """The sentence about the first file in a place that is missing or wrong, or None."""
        missing = [file for file in weights.files if not (place.folder / file.name).is_file()]
        if missing:
            names = ", ".join(file.name for file in missing)
            remedy = self._remedy(weights, missing, place)
            return f"The weights '{weights.name}' in '{place.folder}' are incomplete ({names} missing); {remedy}."
        for file in weights.files:
            path = place.folder / file.name
            sha256 = file.sha256 or stated_hashes(place.folder).get(file.name)
            if sha256 is None and file.words is None:
                return self._hash_not_known(weights, file, path)
            problem = self._difference(path, file, sha256)
            if problem:
                return f"'{path}' is not the file expected: {problem}; {self._remedy(weights, [file], place)}."
        return None

    def _difference(self, path: Path, file: WeightFile, sha256: str | None, always: bool = False) -> str | None:
        """As `WeightFile.difference`; a large file that was right, and has not changed since, is not hashed again."""
        try:
            state = path.stat()
            mark = [state.st_size, state.st_mtime_ns, sha256]
            if not always and state.st_size > ALWAYS_HASHED_MAX and self._verified().get(str(path)) == mark:
                return None
            problem = file.difference(path, sha256)
        except OSError as error:
            return f"it can't be read ({(error.strerror or 'no reason given').lower()})"
        if problem is None and state.st_size > ALWAYS_HASHED_MAX:
            with suppress(InputError, InstallationError), replacing(self.root / VERIFIED) as out:
                out.write(json.dumps({**self._verified(), str(path): mark}, indent=1).encode())
        return problem

    def _verified(self) -> dict[str, list]:
        try:
            marks = json.loads((self.root / VERIFIED).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return marks if isinstance(marks, dict) else {}

    # Sentences

    def _remedy(self, weights: Weights, files: list[WeightFile], place: Place) -> str:
        if weights.carrier and place.label not in (YOUR_FOLDER, STORE):
            return f"reinstall it with `{weights.carrier.install} --force-reinstall`"
        fetch = f"run `medzeroseg weights fetch {weights.name}` or " if place.label == STORE else ""
        return f"{fetch}{by_hand(weights, files, place.folder)}"

    def _absence(self, weights: Weights) -> str:
        looked = [f"'{self.folder}'"] if self.folder else []
        install = ""
        if weights.carrier:
            looked.append(f"the package {weights.carrier.package}")
            install = f"`{weights.carrier.install}`, "
        own = self.root / weights.name
        looked.append(f"'{own}'")
        return (
            f"The weights '{weights.name}' ({weights.size / 1e6:,.0f} MB) are not on this machine, looked for in "
            f"{', '.join(looked)}; run {install}`medzeroseg weights fetch {weights.name}`, or "
            f"{by_hand(weights, weights.files, own)}."
        )

    def _hash_not_known(self, weights: Weights, file: WeightFile, path: Path | None = None) -> str:
        where = f"'{path}'" if path else f"'{file.name}' of '{weights.name}'"
        return (
            f"The SHA-256 of {where} is not known, so the file is not used unless you state it: get "
            f"{file.sources[0]}, put it and the output of `sha256sum {file.name}` as {STATED_HASHES} into one folder, "
            f"and run `medzeroseg weights import FOLDER`."
        )

    # Rows, fetching

    def _rows(self, weights: Weights, check: bool = False) -> Iterator[WeightRow]:
        places = list(self._places(weights))
        for file in weights.files:
            place = next((place for place in places if (place.folder / file.name).is_file()), None)
            if place is None:
                yield weight_row(weights, file, "", None, note="missing")
                continue
            path = place.folder / file.name
            sha256 = file.sha256 or stated_hashes(place.folder).get(file.name)
            problem = None
            if sha256 is None and file.words is None:
                problem = "its SHA-256 is neither known nor stated"
            elif check:
                problem = self._difference(path, file, sha256, always=True)
            elif file.size is not None and path.stat().st_size != file.size:
                problem = f"it has {path.stat().st_size:,} bytes instead of {file.size:,}"
            ok = False if problem else True if check else None
            yield weight_row(weights, file, place.label, path, ok, problem or "")

    def _lacking(self, weights: Weights, stated: Mapping[str, str]) -> Iterator[WeightFile]:
        """The files that the store lacks, or has wrong, of weights that no place holds in full."""
        if self._find(weights)[0] is not None:
            return
        own = self.root / weights.name
        for file in weights.files:
            path = own / file.name
            sha256 = file.sha256 or stated.get(file.name) or stated_hashes(own).get(file.name)
            if not (path.is_file() and self._difference(path, file, sha256) is None):
                yield file


def weights_store(folder: str | Path | None = None, ca_file: str | Path | None = None) -> WeightsStore:
    """The store of this user; without arguments as MEDZEROSEG_WEIGHTS and MEDZEROSEG_CA_FILE say, if they are set."""
    folder = folder or os.environ.get(FOLDER_VARIABLE)
    ca_file = ca_file or os.environ.get(CA_FILE_VARIABLE)
    return WeightsStore(
        root=platformdirs.user_data_path("MedZeroSeg", appauthor=False) / "weights",
        folder=Path(folder).expanduser() if folder else None,
        ca_file=Path(ca_file).expanduser() if ca_file else None,
    )


def locate(name: str, folder: str | Path | None = None, allow_download: bool = False) -> Path:
    """The checked file, or folder of several files, of one model: `WeightsStore.locate` of this user's store."""
    return weights_store(folder).locate(name, allow_download)


def record(name: str) -> dict[str, str]:
    """`WeightsStore.record`: name, main file, its SHA-256 and licence."""
    return weights_store().record(name)


def cache_folder() -> Path:
    """This user's folder for what can be computed anew; it need not exist yet."""
    return platformdirs.user_cache_path("MedZeroSeg", appauthor=False)


def carrier_folder(carrier: Carrier) -> Path | None:
    """The folder of an installed carrier that holds its weight files; the package itself is not imported."""
    try:
        spec = importlib.util.find_spec(carrier.module)
    except (ImportError, ValueError):
        return None
    locations = (spec.submodule_search_locations if spec else None) or []
    return next((folder for folder in (Path(base, carrier.path) for base in locations) if folder.is_dir()), None)


def weight_row(
    weights: Weights, file: WeightFile, place: str, path: Path | None, ok: bool | None = None, note: str = ""
) -> WeightRow:
    """The row of one catalogued file."""
    return WeightRow(
        weights=weights.name, file=file.name, presets=weights.presets, licence=weights.licence, size=file.size,
        sha256=file.sha256, source=file.sources[0], place=place, path=path, ok=ok, note=note,
    )  # fmt: skip


def _shifted(progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: progress(before + done, total)


def load_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name from a .safetensors file, or from a PyTorch file that holds nothing but tensors; on the CPU.

    Raises
    ------
    InstallationError
        When the file is damaged, or would run code when opened, which is then not done.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InstallationError(
            f"'{path}' holds more than tensors and could run code when opened, so it is not opened; "
            "convert it to safetensors where it comes from, or get the file that `medzeroseg weights list` names."
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise InstallationError(f"'{path}' is damaged or no weights ({type(error).__name__}); get it again.") from error
    if not (isinstance(state, dict) and state and all(isinstance(value, torch.Tensor) for value in state.values())):
        raise InstallationError(f"'{path}' holds other things than tensors by name; get the file that is listed.")
    return state
