"""Variants side by side: each in its own folder, one table, the first as the measure of the others."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from MedZeroSegLib.base_preset import DENSE_VARIANTS
from MedZeroSegLib.errors import InputError
from MedZeroSegLib.evaluation.ablation import chosen_presets, comparison_table, evaluate_variants
from MedZeroSegLib.evaluation.scores import Score, ScoreTable

ROOT = Path(__file__).parents[2]


def scores(dice: float, found: bool = True) -> list[Score]:
    row = Score("a", "s", "liver", True, found, dice, dice, dice, 2.0, "p", "CT", "marked")
    absent = replace(row, structure="spleen", present=False, found=False, dice=None, iou=None, nsd=None)
    return [replace(one, case=f"c{n}", patient=f"p{n}") for n in range(6) for one in (row, absent)]


def test_dense_stands_for_the_preset_and_all_its_dense_variants():
    assert chosen_presets("base", ["dense"]) == ["base", *(f"base/{name}" for name in DENSE_VARIANTS)]
    assert chosen_presets("base", ["medsam", "dense", "naclip"])[:2] == ["base/medsam", "base"]
    assert len(chosen_presets("base", ["dense", "naclip"])) == 1 + len(DENSE_VARIANTS)


@pytest.mark.parametrize(("preset", "variant"), [("base", "frobnicate"), ("lite", "naclip"), ("heavy", "naclip")])
def test_unknown_variants_are_refused_before_anything_is_measured(preset, variant):
    with pytest.raises(InputError):
        chosen_presets(preset, ["dense" if preset == "base" else variant, variant])


def test_each_variant_gets_its_folder_and_the_table_compares_with_the_first(tmp_path):
    dice = {"base": 0.6, "base/naclip": 0.5}

    def measure(name: str, folder: Path) -> str:
        table = ScoreTable(folder / "cases.csv")
        table.put(scores(dice[name]))
        return ""

    text = evaluate_variants(list(dice), measure, tmp_path)
    assert (tmp_path / "base-naclip" / "cases.csv").is_file()
    assert (tmp_path / "variants.md").read_text() == text
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert [line[0] for line in lines[2:]] == list(dice)
    assert lines[2][1].startswith("0.600") and lines[3][2].startswith("-0.100")
    assert lines[2][2] == "" and float(lines[3][3]) < 0.05
    assert lines[3][4].startswith("1.000") and lines[3][5].startswith("0.000") and lines[3][6] == "4.0"


def test_nothing_present_is_a_dash():
    absent = [row for row in scores(0.5) if not row.present]
    assert "| - |" in comparison_table({"base": absent})


def test_the_command_refuses_an_unknown_variant_with_the_choices(tmp_path):
    code = "from MedZeroSegLib.cli import main; main()"
    arguments = [
        "evaluate",
        "manifest",
        "none.csv",
        "--output",
        str(tmp_path),
        "--preset",
        "base",
        "--variant",
        "nclip",
    ]
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 2
    assert "'nclip'" in run.stderr and "naclip" in run.stderr and len(run.stderr.strip().splitlines()) == 1
