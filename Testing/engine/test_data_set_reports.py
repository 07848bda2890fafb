"""Evaluations of downloaded data sets: known errors give known figures, frozen prompts, tiers, pages, comparisons,
figures measured again, and runs that are killed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from data_set_trees import (
    ABSENT,
    SHARED,
    Oracle,
    abdomen,
    add_ct,
    add_patient,
    add_radiograph,
    chest,
    half,
    half_dice,
    heart,
    real_acdc,
)
from scipy import stats

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.acdc import LABELS as ACDC
from MedZeroSegLib.evaluation.answers import read_answers, write_answers
from MedZeroSegLib.evaluation.comparison import compare_folders
from MedZeroSegLib.evaluation.datasets import DATA_SETS
from MedZeroSegLib.evaluation.figures import holm
from MedZeroSegLib.evaluation.prompt_sets import SHIPPED, Prompts, read_prompts
from MedZeroSegLib.evaluation.published import published_figures, published_sources
from MedZeroSegLib.evaluation.reproduce import judge, read_recipe
from MedZeroSegLib.evaluation.run import evaluate
from MedZeroSegLib.evaluation.scores import read_scores
from MedZeroSegLib.evaluation.synapse import LABELS as SYNAPSE
from MedZeroSegLib.evaluation.tiers import TIERS, tier_of

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "Testing" / "benchmarks" / "reproduce"
MYOCARDIUM, RIGHT = "left ventricular myocardium", "right ventricle"


@pytest.fixture
def acdc(tmp_path: Path) -> Path:
    """Three patients of the official test."""
    root = tmp_path / "ACDC"
    for number in (101, 102, 103):
        add_patient(root / "testing", number, pair=lambda phase, n=number: heart(n - 102 + (phase == "ES")))
    return root


def measure(root: Path, name: str = "acdc", output: str = "out", **options) -> tuple[Oracle, str]:
    """Evaluate an oracle on a data set; ``spoil``, ``texts`` and ``trained_sources`` are the oracle's."""
    split = options.pop("split", "test")
    target = DATA_SETS[name].target(root, split)
    own = {key: options.pop(key) for key in ("spoil", "texts", "trained_sources", "log") if key in options}
    oracle = Oracle(target, **own)
    return oracle, evaluate(target, oracle, root.parent / output, "oracle", progress=False, **options)


def cells_of(text: str, start: str) -> list[str]:
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# Known errors


def test_a_segmenter_with_known_errors_gets_the_dice_that_they_have(acdc):
    _, text = measure(acdc, spoil={MYOCARDIUM: half, RIGHT: lambda mask: mask & False})
    rows = read_scores(acdc.parent / "out" / "cases.csv")
    for row in rows:
        number, frame = int(row.patient[-3:]), int(row.case[-2:])
        labels = heart(number - 102 + (frame == 12))[1]
        expected = {"left ventricle": 1.0, MYOCARDIUM: half_dice((labels == 2).sum()), RIGHT: 0.0}
        if row.structure in expected:
            assert row.dice == pytest.approx(expected[row.structure], abs=1e-5)
    mean = np.mean([np.mean([row.dice for row in rows if row.structure == name]) for name in ACDC.values()])
    assert cells_of(text, "three heart structures (ACDC as downloaded)")[5].startswith(f"{mean:.3f}")
    missed = next(row for row in rows if row.structure == RIGHT)
    assert missed.hd95 == pytest.approx(np.linalg.norm((4 * 10, 32 * 1.4, 40 * 1.5)))
    assert missed.slice_dice == 0.0


@pytest.mark.skipif(not SHARED.is_dir(), reason=ABSENT)
def test_real_acdc_measured_with_a_page(tmp_path):
    real_acdc(tmp_path / "ACDC", {101: 1, 102: 3})
    output = tmp_path / "out"
    _, text = measure(tmp_path / "ACDC", spoil={MYOCARDIUM: half}, page=True)
    page = (output / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 4  # spread, worst, median, best
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert str(tmp_path) not in page
    for words in ("against published figures", "patient101", "MedZeroSeg (the paper)", "nnU-Net", "Tier Z0"):
        assert words in page
    assert text == (output / "summary.md").read_text(encoding="utf-8")
    with (output / "patients.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 and {row["cases"] for row in rows} == {"2"}
    assert {row["dice"] for row in rows if row["structure"] == RIGHT} == {"1.0000"}


def test_infection_is_absent_where_its_mask_is_black_and_false_finds_are_counted(tmp_path):
    image, lungs, infection = chest()
    for group, mask in (("COVID-19", infection), ("Normal", infection * 0)):
        add_radiograph(tmp_path / "covid", "Infection", "Test", group, group, (image, lungs, mask))
    _, text = measure(tmp_path / "covid", "covidqu", spoil={"lung infection": lambda mask: mask | True})
    line = cells_of(text, "lung infection |")
    assert (line[1], line[-1]) == ("1", "100 % of 1")
    dice = 2 * (infection > 0).sum() / ((infection > 0).sum() + infection.size)
    assert line[3] == f"{dice:.3f}" and line[4] == f"{dice / 2:.3f}"


def test_masks_are_kept_exactly(tmp_path):
    rng = np.random.default_rng(0)
    masks = {"a": rng.random((3, 5, 7)) > 0.5, "b": np.zeros((3, 5, 7), bool), "c": np.zeros((3, 5, 7), bool)}
    masks["c"][1:2, 2:4, 3:6] = True
    write_answers(tmp_path / "m.npz", masks)
    read = read_answers(tmp_path / "m.npz", (3, 5, 7))
    assert all(np.array_equal(read[name], masks[name]) for name in masks) and read.keys() == masks.keys()
    (tmp_path / "m.npz").write_bytes(b"no")
    with pytest.raises(InputError, match="holds no masks"):
        read_answers(tmp_path / "m.npz", (3, 5, 7))


# Tiers


def test_tiers_tell_training_from_other_data_from_none():
    data = DATA_SETS["acdc"]
    assert tier_of(data, (), ["patient101"]).letter == "Z0"
    assert tier_of(data, None, ["patient101"]).letter == "?"
    assert tier_of(data, ("btcv_abdomen_ct",), ["patient101"]).letter == "T"
    supervised = tier_of(data, ("acdc_cardiac_mr",), ["patient101"])
    assert supervised.letter == "S" and "other patients" in supervised.remarks[0]
    assert "these very patients: 1, 22" in tier_of(data, ("acdc_cardiac_mr",), ["patient001", "patient022"]).remarks[0]
    assert tier_of(DATA_SETS["covidqu"], ("covid_lung_xray",), ["x_1"]).letter == "T"


@pytest.mark.skipif(not SHARED.is_dir(), reason=ABSENT)
def test_patients_that_tiers_know_are_those_of_the_training_images():
    with (SHARED / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for data in (DATA_SETS["acdc"], DATA_SETS["synapse"]):
        (kin,) = data.kin
        for split, numbers in (("train", kin.trained), ("val", kin.settings)):
            there = {row["patient_id"] for row in rows if (row["source"], row["split"]) == (kin.source, split)}
            assert {int(patient[-3:]) for patient in there} == numbers


def test_figures_of_patients_on_whom_settings_were_chosen_stand_apart(tmp_path):
    for number in (1, 32):
        add_ct(tmp_path / "raw", number, *abdomen(SYNAPSE))
    spoil = {"liver": lambda mask: mask & False}
    _, text = measure(tmp_path / "raw", "synapse", trained_sources=("btcv_abdomen_ct",), spoil=spoil)
    assert "Tier S" in text and "among others: 32" in text
    lines = [line for line in text.splitlines() if "that neither training nor settings saw" in line]
    assert len(lines) == 3 and all("| tier S | 1 | 1 |" in line for line in lines)
    assert cells_of(text, "**this run")[1] == "S"


def test_every_published_figure_has_a_source_and_a_tier_that_is_explained():
    for data, least in (("acdc", 8), ("synapse", 8), ("covidqu_lungs", 8)):
        rows = published_figures(data)
        assert len(rows) >= least
        assert all(row.source in published_sources() and row.tier in TIERS and 0 < row.dice < 100 for row in rows)
    assert published_figures("synapse_h5") == published_figures("synapse")


# Prompts

FROZEN = "d6903e87f6d65b80"


@pytest.mark.parametrize("data", list(DATA_SETS))
@pytest.mark.parametrize("level", ["P0", "P1", "P2", "P3"])
def test_shipped_prompts_cover_every_structure(data, level):
    prompts = read_prompts(level, data)
    assert set(prompts.texts) == {name for names in DATA_SETS[data].structures.values() for name in names}
    assert prompts.sha256 == hashlib.sha256((SHIPPED / f"{data}-{level}.json").read_bytes()).hexdigest()


def test_shipped_prompts_are_frozen():
    """Whoever changes a set gives it another name: figures are quoted by it."""
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(SHIPPED.glob("*.json"))))
    assert digest.hexdigest()[:16] == FROZEN


def test_prompts_are_typed_printed_with_their_hash_and_start_anew(acdc, tmp_path):
    prompts = read_prompts("P3", "acdc")
    texts = {text: name for name, wordings in prompts.texts.items() for text in wordings}
    _, plain = measure(acdc)
    oracle, text = measure(acdc, prompts=prompts, texts=texts)
    assert len(oracle.calls) == 6 and prompts.sha256 in text and prompts.sha256 not in plain
    rows = [row for row in read_scores(acdc.parent / "out" / "cases.csv") if row.kind == "marked"]
    assert {texts[row.typed] == row.structure for row in rows} == {True}
    assert {row.dice for row in rows} == {1.0}
    assert len({row.typed for row in rows if row.structure == RIGHT}) > 1  # not always the same
    again, _ = measure(acdc, prompts=prompts, texts=texts)
    assert len(again.calls) == 1


def test_the_text_depends_on_the_name_of_the_image_alone():
    prompts = Prompts("p", "0" * 64, {"liver": tuple("abcdefgh")})
    chosen = [prompts.text(f"case{n}", "liver") for n in range(200)]
    assert chosen == [prompts.text(f"case{n}", "liver") for n in range(200)]
    assert {chosen.count(letter) > 10 for letter in "abcdefgh"} == {True}
    assert prompts.text("case1", "spleen") == "spleen"


def test_prompts_may_be_json_toml_or_yaml(tmp_path):
    (tmp_path / "p.json").write_text('{"name": "mine", "structures": {"liver": ["Leber", "liver"]}}')
    (tmp_path / "p.toml").write_text('name = "mine"\n[structures]\nliver = ["Leber", "liver"]\n')
    (tmp_path / "p.yaml").write_text("name: mine\nstructures:\n  liver:\n  - Leber\n  - liver\n")
    read = [read_prompts(tmp_path / f"p.{suffix}", "acdc") for suffix in ("json", "toml", "yaml")]
    assert {(prompts.name, *prompts.texts["liver"]) for prompts in read} == {("mine", "Leber", "liver")}


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "isn't valid JSON"),
        ("[]", "holds no structures"),
        ('{"liver": []}', "no list of texts for 'liver'"),
        ('{"liver": ["  "]}', "empty or longer"),
        ('{"liver": ["' + "x" * 300 + '"]}', "empty or longer"),
        ('{"liver": ["organ"], "spleen": ["Organ "]}', "types 'Organ ' for 'liver' and 'spleen'"),
    ],
)
def test_prompts_that_are_at_fault_say_where(tmp_path, content, told):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(InputError, match=re.escape(told)):
        read_prompts(tmp_path / "p.json", "acdc")


def test_prompts_of_other_structures_or_missing_sets_are_refused(acdc):
    with pytest.raises(InputError, match="'liver', which isn't measured here"):
        measure(acdc, prompts=Prompts("p", "0" * 64, {"liver": ("liver",)}))
    with pytest.raises(InputError, match="use one of P0, P1, P2, P3, or a file"):
        read_prompts("P9", "acdc")
    with pytest.raises(InputError, match="can't be read"):
        read_prompts("absent.json", "acdc")


# Two runs


def test_two_runs_are_compared_by_both_tests_over_patients(acdc):
    kept = iter(range(1, 100))

    def worse(mask: np.ndarray) -> np.ndarray:  # each time by another share
        places = np.flatnonzero(mask)
        mask = mask.copy()
        mask.reshape(-1)[places[: next(kept) * 20]] = False
        return mask

    measure(acdc, output="first", spoil={MYOCARDIUM: worse})
    measure(acdc, output="second")
    text = compare_folders(acdc.parent / "first", acdc.parent / "second")
    tables = [read_scores(acdc.parent / name / "cases.csv") for name in ("first", "second")]
    means = [
        [np.mean([row.dice for row in rows if row.structure == MYOCARDIUM and row.patient == f"patient{n}"])
         for n in (101, 102, 103)]
        for rows in tables
    ]  # fmt: skip
    line = cells_of(text, f"acdc: {MYOCARDIUM}")
    assert line[1] == "3"
    assert line[5] == f"{stats.ttest_rel(means[1], means[0]).pvalue:.2g}"
    assert line[6] == f"{stats.wilcoxon(np.subtract(means[1], means[0])).pvalue:.2g}" == "0.25"
    assert float(line[7]) == 0.75  # of three structures
    assert line[4].startswith("+")
    assert cells_of(text, f"acdc: {RIGHT}")[5:7] == ["1", "1"]


def test_runs_on_other_images_are_not_compared(acdc, tmp_path):
    measure(acdc)
    add_ct(tmp_path / "raw", 1, *abdomen(SYNAPSE))
    measure(tmp_path / "raw", "synapse", output="other")
    with pytest.raises(InputError, match="share no case"):
        compare_folders(tmp_path / "out", tmp_path / "other")
    with pytest.raises(InputError, match="holds no cases.csv"):
        compare_folders(tmp_path / "out", acdc)


def test_holms_adjustment():
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])


# Figures measured again


def recipe(path: Path, files: str, value: float, weights: str = "5" * 64, found_min: float = 0.5) -> Path:
    path.write_text(
        f'printed = "a paper"\n[run]\ndata = "acdc"\nsplit = "test"\npreset = "oracle"\nfiles = "{files}"\n'
        f'[weights]\nhead = "{weights}"\n[settings]\nfound_min = {found_min}\n'
        f'[[figure]]\ntitle = "three heart structures (ACDC as downloaded)"\nvalue = {value}\ntolerance = 0.01\n'
        "cases = 6\n"
    )
    return path


def test_figures_are_reproduced_or_it_is_said_what_differs(acdc, tmp_path):
    measure(acdc)
    files = DATA_SETS["acdc"].target(acdc, "test").identity["files"]
    folder = tmp_path / "out"
    assert judge(read_recipe(recipe(tmp_path / "r.toml", files, 1.0)), folder).reproduced
    for changed, told in (
        ({"value": 0.9}, "**not reproduced**"),
        ({"files": "0" * 64}, "The run's files is"),
        ({"weights": "6" * 64}, "The weights head are 555555555555"),
        ({"found_min": 0.6}, "The preset's found_min is 0.5"),
    ):
        verdict = judge(read_recipe(recipe(tmp_path / "r.toml", **{"files": files, "value": 1.0, **changed})), folder)
        assert not verdict.reproduced and told in verdict.text
    (tmp_path / "r.toml").write_text("printed = 1")
    with pytest.raises(InputError, match="isn't a file of figures"):
        read_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("preset", ["lite", "lite-research"])
def test_every_figure_of_the_readme_has_its_file(preset):
    """A figure that changes in README.md changes in Testing/benchmarks/reproduce too, and the other way round."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    part = text[text.index(f"\n`{preset}` (found") :]
    head, _, rest = part.partition("| figure |")
    rows = [line.strip("|").split("|") for line in rest.partition("\n\n")[0].splitlines()[2:]]
    printed = {row[0].strip(): (float(row[4].split()[0]), int(row[3])) for row in rows}
    rates = [round(float(share) / 100, 3) for share in re.findall(r"(?:found|false finds) ([\d.]+) %", head)]
    wanted = read_recipe(RECIPES / f"{preset}.toml")
    assert wanted.preset == preset
    expected = {figure.title: (figure.value, figure.cases) for figure in wanted.expected}
    assert [expected.pop("found")[0], expected.pop("false finds")[0]] == rates
    assert expected == printed


# Killed


def test_a_killed_evaluation_goes_on_and_measures_no_image_twice(acdc, tmp_path):
    code = (
        "import os, signal, sys\nfrom pathlib import Path\n"
        f"sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "from data_set_trees import Oracle\n"
        "from MedZeroSegLib.evaluation.datasets import DATA_SETS\n"
        "from MedZeroSegLib.evaluation.run import evaluate\n"
        f"target = DATA_SETS['acdc'].target(Path({str(acdc)!r}), 'test')\n"
        "class Killed(Oracle):\n"
        "    def __call__(self, volume, names):\n"
        "        if len(self.calls) == 3:\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return super().__call__(volume, names)\n"
        f"evaluate(target, Killed(target, log=Path({str(tmp_path / 'log')!r})), {str(tmp_path / 'out')!r}, 'oracle', "
        "progress=False)\n"
    )
    if os.name == "nt":
        pytest.skip("Windows has no SIGKILL")
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert run.returncode == -signal.SIGKILL, run.stderr.decode()
    assert not (tmp_path / "out" / "summary.md").exists()
    _, text = measure(acdc, log=tmp_path / "log")
    asked = (tmp_path / "log").read_text().split()
    assert len(asked) == len(set(asked)) == 6
    assert cells_of(text, "three heart structures (ACDC as downloaded)")[3:5] == ["3", "6"]


# The command


def test_the_command_refuses_with_one_sentence(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", "from MedZeroSegLib.cli import main; main()", "evaluate", "acdc", str(tmp_path),
         "--output", str(tmp_path / "out")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "holds no folder patientNNN" in run.stderr
    assert not (tmp_path / "out").exists()


def test_run_json_tells_the_data_set_and_the_prompts(acdc):
    measure(acdc, prompts=Prompts("mine", "7" * 64, {"left ventricle": ("left ventricle",)}))
    content = json.loads((acdc.parent / "out" / "run.json").read_text())
    assert (content["data"], content["split"], content["prompts"]["sha256"]) == ("acdc", "test", "7" * 64)
