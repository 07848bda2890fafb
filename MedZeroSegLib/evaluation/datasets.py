"""The public data sets that are read as downloaded: how each is read, what is quoted of it, and what is to be known."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from MedZeroSegLib.evaluation import acdc, covidqu, synapse
from MedZeroSegLib.evaluation.manifest import Case
from MedZeroSegLib.evaluation.target import Target, files_fingerprint


@dataclass(frozen=True)
class Kin:
    """A training source that holds patients of a data set, by their numbers there; None where they aren't known."""

    source: str
    trained: frozenset[int] | None
    settings: frozenset[int] | None  # patients on which presence and choice were set


@dataclass(frozen=True)
class DataSet:
    """One data set.

    Attributes
    ----------
    read
        Cases of a split under a folder, and of a task where the data set has several.
    sources
        Names that its cases have in the tables, and what stands in a heading for each.
    structures
        Of each source.
    kin
        Training sources of the shipped heads that hold some of its patients.
    notes
        Sentences for the report.
    """

    name: str
    title: str
    splits: Collection[str]
    read: Callable[[Path, str, str], list[Case]]
    sources: Mapping[str, str]
    structures: Mapping[str, tuple[str, ...]]
    kin: tuple[Kin, ...] = ()
    notes: tuple[str, ...] = ()
    tasks: Collection[str] = field(default=())

    def target(self, root: Path, split: str, task: str = "all") -> Target:
        """The cases of a split; raises InputError."""
        root = root.resolve()
        cases = tuple(self.read(root, split, task))
        files = files_fingerprint(root, cases)
        return Target(cases, cases, {"data": self.name, "split": split, "task": task, "files": files})


DATA_SETS: Mapping[str, DataSet] = {
    data.name: data
    for data in (
        DataSet(
            "acdc",
            "ACDC",
            acdc.SPLITS,
            lambda root, split, _task: acdc.read_acdc(root, split),
            {"acdc": "ACDC"},
            {"acdc": tuple(acdc.LABELS.values())},
            (
                Kin(
                    "acdc_cardiac_mr",
                    frozenset((*range(1, 7), *range(21, 27), *range(41, 47), *range(61, 66), *range(81, 86))),
                    frozenset((8, 28, 48, 68, 88)),
                ),
            ),
            (
                "The split test is the official one (patients 101 to 150); list-test, list-val and list-train are the "
                "70/10/20 lists of semi-supervised papers, all from the official training patients.",
            ),
        ),
        DataSet(
            "synapse",
            "Synapse (BTCV abdomen)",
            synapse.SPLITS,
            lambda root, split, _task: synapse.read_synapse(root, split),
            {"synapse": "Synapse", "synapse_h5": "Synapse, TransUNet's volumes"},
            {
                "synapse": tuple(synapse.LABELS.values()),
                "synapse_h5": tuple(synapse.H5_LABELS.values()),
            },
            (
                Kin(
                    "btcv_abdomen_ct",
                    frozenset((5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 34, 37, 39)),
                    frozenset((32, 35, 36, 38)),
                ),
            ),
            (
                "The split test is TransUNet's 12 cases, train its 18.",
                "TransUNet's volumes hold neither spacing nor orientation: distances are in voxels, and the patient's "
                "axes are told by where the reference organs lie.",
            ),
        ),
        DataSet(
            "covidqu",
            "COVID-QU-Ex",
            covidqu.SPLITS,
            covidqu.read_covidqu,
            {"covidqu_lungs": "COVID-QU-Ex, lungs", "covidqu_infection": "COVID-QU-Ex, infection"},
            {source: (covidqu.TASKS[task][1],) for source, task in
             (("covidqu_lungs", "lungs"), ("covidqu_infection", "infection"))},
            (Kin("covid_chest_xray", None, None), Kin("covid_lung_xray", None, None)),
            (
                "Patients aren't published, so each image counts as one.",
                "Many of its lung masks were made by a model and then checked by people.",
                "Both this data set and the radiographs of the training come in part from one public collection, so "
                "single images may be the same.",
            ),
            covidqu.TASKS,
        ),
    )
}  # fmt: skip


def data_set_of(source: str) -> DataSet | None:
    """The data set that has a source of this name."""
    return next((data for data in DATA_SETS.values() if source in data.sources), None)
