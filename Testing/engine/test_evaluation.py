"""Evaluation of a manifest end to end: real files, and a stand-in segmenter that tells structures by grey values."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.evaluation import figures
from MedZeroSegLib.evaluation.manifest import COLUMNS, Case, annotation_scheme, read_manifest
from MedZeroSegLib.evaluation.overlays import write_overlay
from MedZeroSegLib.evaluation.questions import IN_VIEW, Questionnaire, images_of
from MedZeroSegLib.evaluation.run import evaluate
from MedZeroSegLib.evaluation.scores import Score, read_scores
from MedZeroSegLib.evaluation.target import manifest_target
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.segment import Segment, Segmentation
from MedZeroSegLib.vocabulary import vocabulary
from MedZeroSegLib.volume import Volume

MANIFEST = Path(__file__).parents[3] / "shared" / "data" / "manifest.csv"
real_manifest = pytest.mark.skipif(
    not MANIFEST.parent.is_dir(), reason="the folder shared/data with real images isn't beside the checkout"
)

GREY = {
    "liver": 60, "spleen": 90, "right lung": 120, "left lung": 150, "consolidation": 180,
    "anterior hippocampus": 200, "posterior hippocampus": 220,
}  # fmt: skip
WHOLES = {"lung": ("right lung", "left lung"), "hippocampus": ("anterior hippocampus", "posterior hippocampus")}
BACKGROUND = 20


@dataclass
class StandIn:
    """Finds the voxels of a structure's grey value; ``shift`` moves every mask by columns, ``false_finds`` is found
    everywhere, ``blind`` nowhere."""

    shift: int = 0
    false_finds: tuple[str, ...] = ()
    blind: tuple[str, ...] = ()
    weights_hash: str = "0" * 64
    threshold: float = 0.5
    calls: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)

    def mask(self, volume: Volume, name: str) -> np.ndarray:
        if name in self.blind:
            return np.zeros(volume.shape, bool)
        if name in self.false_finds:
            return np.ones(volume.shape, bool)
        values = [GREY[part] for part in WHOLES.get(name, (name,)) if part in GREY]
        return np.roll(np.isin(volume.voxels, values), self.shift, axis=2)

    def __call__(self, volume: Volume, names: Sequence[str]) -> Segmentation:
        self.calls.append((volume.path.name, tuple(names)))
        segments = []
        for query in resolve(names):
            mask = self.mask(volume, query.typed)
            segments.append(
                Segment(
                    typed=query.typed, name=query.name, found=bool(mask.any()), score=float(mask.any()), mask=mask,
                    code=query.code, category=query.category, modifier=query.modifier, color=query.color, slices=1,
                )  # fmt: skip
            )
        return Segmentation(
            volume=volume, segments=tuple(segments), preset="stand-in",
            weights=({"name": "head", "file": "head.safetensors", "sha256": self.weights_hash, "licence": "-"},),
            device="cpu", seconds={}, version="0",
            settings={"trained_sources": ["btcv_abdomen_ct"], "choice": (self.threshold,)},
        )  # fmt: skip

    def naive(self, volume: Volume, names: Sequence[str]) -> dict[str, np.ndarray]:
        return {name: np.ones(volume.shape, bool) for name in names}


def squares(*names: str) -> tuple[np.ndarray, np.ndarray, str]:
    """A picture [24, 30] with a square of 6 × 4 pixels for each name, its labels, and the manifest's label text."""
    image, labels = np.full((24, 30), BACKGROUND, np.uint8), np.zeros((24, 30), np.uint8)
    for number, name in enumerate(names, start=1):
        place = (slice(4, 10), slice(8 * number - 4, 8 * number))
        image[place], labels[place] = GREY[name], number
    return image, labels, ";".join(f"{number}={name}" for number, name in enumerate(names, start=1))


@dataclass
class Builder:
    """Writes images, masks and the manifest that lists them."""

    folder: Path
    rows: list[dict[str, str]] = field(default_factory=list)

    def save(self, name: str, array: np.ndarray) -> str:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
        return name

    def case(
        self, case: str, patient: str, source: str, modality: str, split: str, files: tuple[str, str], labels: str
    ) -> None:
        values = (case, patient, source, modality, *files, labels, "CC0", split)
        self.rows.append(dict(zip(COLUMNS, values, strict=True)))

    def ct(self, case: str, patient: str, split: str, *names: str) -> None:
        """A slice whose scheme marks liver and spleen."""
        image, labels, text = squares(*names)
        files = self.save(f"images/{case}.png", image), self.save(f"masks/{case}.png", labels)
        self.case(case, patient, "btcv_abdomen_ct", "CT", split, files, text)

    def radiograph(self, image_name: str, patient: str) -> None:
        """One image with a mask file for the lungs and one for findings."""
        image, labels, text = squares("right lung", "left lung")
        findings = np.zeros_like(labels)
        image[14:17, 5:9], findings[14:17, 5:9] = GREY["consolidation"], 1
        file = self.save(f"images/{image_name}.png", image)
        for kind, mask, names in (("lungs", labels, text), ("findings", findings, "1=consolidation")):
            files = file, self.save(f"masks/{image_name}_{kind}.png", mask)
            self.case(f"{image_name}_{kind}", patient, "covid_chest_xray", "X-ray", "val", files, names)

    def volume(self, case: str, patient: str) -> None:
        """Six slices; anterior and posterior hippocampus in the middle four."""
        image, labels = np.full((6, 20, 20), BACKGROUND, np.int16), np.zeros((6, 20, 20), np.uint8)
        image += np.arange(20, dtype=np.int16)  # so that no part of it is constant
        for number, name in enumerate(("anterior hippocampus", "posterior hippocampus"), start=1):
            place = (slice(1, 5), slice(6 * number, 6 * number + 5), slice(5, 12))
            image[place], labels[place] = GREY[name], number
        files = self.save(f"images/{case}.nii.gz", image), self.save(f"masks/{case}.nii.gz", labels)
        names = "1=anterior hippocampus;2=posterior hippocampus"
        self.case(case, patient, "msd_hippocampus_mr", "MR", "val", files, names)

    def manifest(self) -> Path:
        path = self.folder / "manifest.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        return path


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Four images of val (two CT slices, a radiograph with two masks, a volume) and one CT slice of train."""
    builder = Builder(tmp_path)
    builder.ct("ct_1", "p1", "val", "liver", "spleen")
    builder.ct("ct_2", "p2", "val", "liver")
    builder.ct("ct_3", "p3", "train", "spleen")
    builder.radiograph("xr_1", "p4")
    builder.volume("mr_1", "p5")
    return builder.manifest()


def run(manifest: Path, segmenter: StandIn, **options: object) -> tuple[list[Score], str]:
    output = manifest.parent / "out"
    text = evaluate(manifest_target(manifest, "val"), segmenter, output, "stand-in", progress=False, **options)
    return read_scores(output / "cases.csv"), text


def rows_of(scores: Sequence[Score], case: str, kind: str | None = None) -> dict[str, Score]:
    return {row.structure: row for row in scores if row.case == case and kind in (None, row.kind)}


def line_of(text: str, start: str) -> list[str]:
    """Cells of the first table row that begins with ``start``."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {start}"))
    return [cell.strip() for cell in line.strip("|").split("|")]


# Questions


def test_absent_names_of_the_scheme_are_asked_and_other_splits_tell_them(manifest):
    scores, _ = run(manifest, StandIn())
    assert rows_of(scores, "ct_2", "marked").keys() == {"liver", "spleen"}
    assert not rows_of(scores, "ct_2")["spleen"].present
    assert {row.case for row in scores} == {"ct_1", "ct_2", "xr_1_lungs", "xr_1_findings", "mr_1"}


def test_an_image_with_several_masks_is_asked_once_with_all_their_names(manifest):
    segmenter = StandIn()
    scores, _ = run(manifest, segmenter)
    (names,) = [names for image, names in segmenter.calls if image == "xr_1.png"]
    assert len(names) == len(set(names))
    assert {"right lung", "left lung", "consolidation", "lung"} <= set(names)
    assert rows_of(scores, "xr_1_findings").keys() == {"consolidation"}
    assert rows_of(scores, "xr_1_lungs", "whole").keys() == {"lung"}


def test_wholes_are_the_union_of_their_marked_parts(manifest):
    scores, _ = run(manifest, StandIn(blind=("posterior hippocampus",)))
    of_case = rows_of(scores, "mr_1")
    assert of_case["hippocampus"].kind == "whole"
    assert of_case["hippocampus"].dice == of_case["anterior hippocampus"].dice == 1.0
    assert of_case["posterior hippocampus"].dice == 0.0


def test_findings_inside_a_lung_do_not_make_a_lung():
    findings = Case("x_findings", "p", "covid_chest_xray", "X-ray", Path("x.png"), Path("x_findings.png"),
                    {1: "consolidation"}, "CC0", "val")  # fmt: skip
    assert annotation_scheme(findings) == "covid_chest_xray:findings"
    assert {question.name for question in Questionnaire([findings]).of([findings]) if question.kind != "far"} == {
        "consolidation"
    }


def test_far_names_are_four_always_the_same_and_of_regions_out_of_view(manifest):
    questionnaire = Questionnaire(read_manifest(manifest))
    for image in images_of(read_manifest(manifest, "val")):
        far = [question for question in questionnaire.of(image) if question.kind == "far"]
        again = [question for question in Questionnaire(read_manifest(manifest)).of(image) if question.kind == "far"]
        assert far == again
        assert all(question.values == () for question in far)
        assert len(far) >= 2
    (ct, *_) = images_of(read_manifest(manifest, "val"))
    regions = {vocabulary()[q.name].region for q in questionnaire.of(ct) if q.kind == "far"}
    assert regions and not regions & {*IN_VIEW["abdomen"], "whole"}


# Scores


def test_the_table_has_the_columns_in_their_order(manifest):
    run(manifest, StandIn())
    header = (manifest.parent / "out" / "cases.csv").read_text().splitlines()[0].split(",")
    assert header[:9] == ["case", "source", "structure", "present", "found", "dice", "iou", "nsd", "seconds"]
    assert header[9:] == ["patient", "modality", "kind", "hd95", "slice_dice", "typed", "auc"]


def test_a_perfect_segmenter_gets_one_and_true_negatives_have_no_dice(manifest):
    scores, text = run(manifest, StandIn())
    assert {row.dice for row in scores if row.present} == {1.0}
    assert {row.dice for row in scores if not row.present} == {None}
    assert line_of(text, "all structures of all sources")[5].startswith("1.000")
    assert line_of(text, "found, of structures")[2].startswith("100.0 %")
    assert line_of(text, "false finds, all")[2].startswith("0.0 %")


def test_measures_of_a_mask_moved_by_a_column(manifest):
    scores, text = run(manifest, StandIn(shift=1))
    liver = rows_of(scores, "ct_1")["liver"]  # 6 × 4 pixels
    assert liver.dice == pytest.approx(2 * 18 / 48)
    assert liver.iou == pytest.approx(18 / 30)
    assert liver.nsd == 1.0
    anterior = rows_of(scores, "mr_1")["anterior hippocampus"]  # 7 columns in three dimensions
    assert anterior.dice == pytest.approx(6 / 7, abs=1e-5)
    assert line_of(text, "liver (BTCV)")[1:6] == ["1", "other patients", "2", "2", "0.750 [0.750, 0.750]"]


def test_a_false_find_counts_zero_beside_the_dice_of_present_structures(manifest):
    scores, text = run(manifest, StandIn(false_finds=("spleen",)))
    false_find = rows_of(scores, "ct_2")["spleen"]
    assert (false_find.present, false_find.found, false_find.dice, false_find.nsd) == (False, True, 0.0, 0.0)
    spleen = rows_of(scores, "ct_1")["spleen"].dice
    assert spleen == pytest.approx(2 * 24 / (24 + 720), abs=1e-5)
    line = line_of(text, "spleen |")
    assert line[1:5] == ["1", "1", f"{spleen:.3f}", f"{spleen / 2:.3f}"]
    assert line[-2:] == ["100 %", "100 % of 1"]
    assert line_of(text, "false finds, of absent")[1:] == ["1", "100.0 % [100.0, 100.0]"]
    far = [row.found for row in scores if row.kind == "far"]
    assert line_of(text, "false finds, of structures of other")[1] == str(len(far)) == "16"
    assert line_of(text, "false finds, of structures of other")[2].startswith(f"{100 * np.mean(far):.1f} %")


def test_a_structure_that_is_missed_counts_zero(manifest):
    scores, text = run(manifest, StandIn(blind=("liver",)))
    assert rows_of(scores, "ct_1")["liver"].dice == 0.0
    assert line_of(text, "liver (BTCV)")[-1] == "0 %"


def test_quoted_lungs_are_both_lungs_and_sources_say_whether_they_were_trained_on(manifest):
    _, text = run(manifest, StandIn(blind=("left lung",)))
    assert line_of(text, "lungs on X-ray")[1:6] == ["2", "unseen source", "1", "1", "0.500"]
    assert re.search(r"## btcv_abdomen_ct\n\nCT, 2 patients: trained structures on unseen patients", text)
    assert re.search(r"## covid_chest_xray\n\nX-ray, 1 patient: an unseen source", text)


def test_comparison_with_the_naive_reference_is_paired_on_present_structures(manifest):
    segmenter = StandIn()
    _, text = run(manifest, segmenter, baseline=segmenter.naive)
    naive = read_scores(manifest.parent / "out" / "baseline.csv")
    assert all(row.found for row in naive)
    comparison = figures.compare(read_scores(manifest.parent / "out" / "cases.csv"), naive)
    assert comparison.ours.mean == 1.0
    assert comparison.patients == 4
    assert comparison.p == pytest.approx(2 / 2**4)  # all four patients differ in one direction
    cells = figures.cells(row for row in naive if row.present)
    expected = np.mean([np.mean([row.dice for row in rows]) for rows in cells.values()])
    assert comparison.difference.mean == pytest.approx(1 - expected)
    assert line_of(text, "**all structures")[1].startswith("1.000")
    assert f"{100 * (1 - expected):+.1f}" in line_of(text, "**all structures")[3]


def test_interval_is_over_patients_not_cases_and_repeats_itself():
    def score(patient: str, case: str, dice: float) -> Score:
        return Score(case, "s", "liver", True, True, dice, dice, dice, 0.0, patient, "CT", "marked")

    one_patient = [score("p", f"c{n}", n / 10) for n in range(10)]
    estimate = figures.Bootstrap(one_patient).estimate([one_patient], figures.dice)
    assert estimate.low == estimate.high == pytest.approx(0.45)
    many = [score(f"p{n}", f"c{n}", n / 10) for n in range(10)]
    first, second = (figures.Bootstrap(many).estimate([many], figures.dice) for _ in range(2))
    assert first == second
    assert 0.2 < first.low < 0.35 < first.mean < 0.55 < first.high < 0.7


# Going on


def test_a_rerun_measures_one_image_and_takes_the_others_from_the_folder(manifest):
    before, text = run(manifest, StandIn())
    again = StandIn()
    after, same = run(manifest, again)
    assert len(again.calls) == 1
    without_seconds = [sorted((r.case, r.structure, r.dice is None, r.found) for r in rows) for rows in (before, after)]
    assert without_seconds[0] == without_seconds[1]
    assert line_of(text, "all structures") == line_of(same, "all structures")


def test_an_interrupted_run_goes_on_where_it_stopped(manifest):
    class Broken(StandIn):
        def __call__(self, volume: Volume, names: Sequence[str]) -> Segmentation:
            if len(self.calls) == 2:
                raise InputError("stop")
            return super().__call__(volume, names)

    with pytest.raises(InputError, match="stop"):
        run(manifest, Broken())
    rest = StandIn()
    scores, _ = run(manifest, rest)
    assert len(rest.calls) == 2
    assert len({(row.case, row.structure) for row in scores}) == len(scores)
    assert {row.case for row in scores} == {"ct_1", "ct_2", "xr_1_lungs", "xr_1_findings", "mr_1"}


def test_other_weights_start_anew(manifest, capsys):
    run(manifest, StandIn(blind=("liver",)))
    other = StandIn(weights_hash="1" * 64)
    output = manifest.parent / "out"
    evaluate(manifest_target(manifest, "val"), other, output, "stand-in")
    assert len(other.calls) == 4
    assert "measured anew" in capsys.readouterr().err
    assert rows_of(read_scores(output / "cases.csv"), "ct_1")["liver"].dice == 1.0
    assert json.loads((output / "run.json").read_text())["weights"][0]["sha256"] == "1" * 64


def test_other_settings_start_anew(manifest):
    run(manifest, StandIn())
    other = StandIn(threshold=0.4)
    run(manifest, other)
    assert len(other.calls) == 4


def test_a_baseline_or_pictures_asked_for_later_are_made_up_for(manifest):
    run(manifest, StandIn())
    later = StandIn()
    pictures = manifest.parent / "pictures"
    run(manifest, later, baseline=later.naive, overlays=pictures)
    assert len(later.calls) == 4
    assert sorted(path.name for path in pictures.iterdir()) == [
        "btcv_abdomen_ct_ct_1.png", "btcv_abdomen_ct_ct_2.png", "covid_chest_xray_xr_1_lungs.png",
        "msd_hippocampus_mr_mr_1.png",
    ]  # fmt: skip


def test_limit_is_per_source(manifest):
    segmenter = StandIn()
    run(manifest, segmenter, limit=1)
    assert sorted(image for image, _ in segmenter.calls) == ["ct_1.png", "mr_1.nii.gz", "xr_1.png"]


# Bad input


def test_a_mask_of_another_size_is_named(manifest):
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((5, 5), np.uint8)), str(manifest.parent / "masks" / "ct_1.png"))
    with pytest.raises(InputError, match=r"ct_1\.png has \(5, 5, 1\) voxels, its image \(30, 24, 1\)"):
        run(manifest, StandIn())


def test_labels_that_are_no_pairs_are_named(manifest):
    manifest.write_text(manifest.read_text().replace("1=liver;2=spleen", "liver, spleen"))
    with pytest.raises(InputError, match="write them as 1=liver;2=spleen"):
        run(manifest, StandIn())


def test_an_unknown_split_is_told_the_splits_there_are(manifest):
    with pytest.raises(InputError, match="its splits are train, val"):
        evaluate(manifest_target(manifest, "test"), StandIn(), manifest.parent / "out", "stand-in", progress=False)


def test_an_output_that_is_a_file_is_refused_before_the_work(manifest):
    segmenter = StandIn()
    (manifest.parent / "out").write_text("a file")
    with pytest.raises(InputError, match="out"):
        run(manifest, segmenter)
    assert segmenter.calls == []


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="this user may write everywhere")
def test_an_output_that_cannot_be_written_is_refused_before_the_work(manifest):
    segmenter = StandIn()
    (manifest.parent / "out").mkdir(mode=0o500)
    with pytest.raises(InstallationError, match="cannot be written"):
        run(manifest, segmenter)
    assert segmenter.calls == []


def test_a_foreign_table_in_the_output_folder_is_refused(manifest):
    (manifest.parent / "out").mkdir()
    (manifest.parent / "out" / "cases.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="isn't a table of scores"):
        run(manifest, StandIn())


# Pictures


def test_overlay_shows_the_slice_in_which_the_segments_are_largest(tmp_path):
    voxels = np.full((5, 40, 40), 10.0)
    voxels[3, 5:30, 5:30] = GREY["liver"]
    voxels[1, 5:10, 5:10] = GREY["liver"]
    volume = Volume(voxels, np.diag([1.0, 1.0, 4.0, 1.0]), "CT", path=tmp_path / "ct.nii.gz")
    segmentation = StandIn()(volume, ["liver", "spleen"])
    largest = write_overlay(segmentation, tmp_path / "pictures" / "largest.png")
    asked = [write_overlay(segmentation, tmp_path / f"{n}.png", slice_index=n) for n in (1, 3)]
    pixels = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (largest, *asked)]
    assert np.array_equal(pixels[0], pixels[2])
    assert not np.array_equal(pixels[0], pixels[1])
    red, green, blue = pixels[0][..., :3].astype(int).transpose(2, 0, 1)
    assert (abs(red - green) + abs(green - blue) > 60).any(), "the segment has a color"


# The naive reference


def test_naive_box_holds_all_that_is_above_the_threshold_and_no_padding():
    from MedZeroSegLib.canvas import Canvas
    from MedZeroSegLib.evaluation.baseline import box_of

    canvas = Canvas(height=100, width=200, rows=128, columns=256, size=256)
    similarity = np.full((128, 128), -0.2, np.float32)
    similarity[10:20, 30:40] = 0.3
    similarity[50:52, 90:93] = 0.25
    similarity[100:, :] = 0.9  # in the padding
    assert box_of(similarity, canvas) == (60.0, 20.0, 186.0, 104.0)
    assert box_of(np.zeros((128, 128), np.float32), canvas) is None


def test_naive_reference_boxes_noise_in_every_slice():
    torch = pytest.importorskip("torch")
    from MedZeroSegLib.evaluation.baseline import naive_segment
    from MedZeroSegLib.mask_decoder.decoder import Embedding
    from MedZeroSegLib.presets import PRESETS, Engine
    from MedZeroSegLib.text_image.model import SliceFeatures

    class TextImage:
        """Scores a pixel by its grey value."""

        cells = 128

        def encode_slices(self, slices, canvas, embedding):
            detail = embedding.detail
            return SliceFeatures(torch.cat((detail, 1 - detail), 1), torch.zeros(len(slices), 0))

        def encode_text(self, wordings, scene):
            return torch.tensor([1.0, 0.0])

        def score(self, pixels, texts):
            return torch.einsum("nchw,kc->nkhw", pixels.float(), texts)

    class Decoder:
        """Fills every box."""

        device = torch.device("cpu")

        def on(self, canvas):
            return self

        def embed_slices(self, slices, canvas):
            detail = torch.nn.functional.avg_pool2d(canvas.place(slices), 2)
            return Embedding(torch.nn.functional.avg_pool2d(detail, 2), detail)

        def decode(self, coarse, boxes, masks):
            assert masks is None
            logits = torch.full((1, 1, 256, 256), -1.0)
            x0, y0, x1, y1 = boxes[0].int().tolist()
            logits[..., y0:y1, x0:x1] = 1.0
            return logits, torch.ones(1)

    rng = np.random.default_rng(0)
    voxels = rng.uniform(60, 100, (3, 64, 64)).astype(np.float32)  # body without anything to find ...
    voxels[1, 16:32, 8:40] = 400.0  # ... but in one slice
    volume = Volume(voxels, np.diag([1.0, 1.0, 10.0, 1.0]), "MR")
    engine = Engine(PRESETS["lite"], TextImage(), Decoder(), "stand-in", (), ())
    mask = naive_segment(engine, volume, ["anything"])["anything"]
    assert mask.shape == voxels.shape
    expected = np.zeros((64, 64), bool)
    expected[16:32, 8:40] = True
    assert 2 * (mask[1] & expected).sum() / (mask[1].sum() + expected.sum()) > 0.9
    assert mask[0].mean() > 0.9  # the flaw of scaling slice by slice
    assert mask[2].mean() > 0.9


# The real manifest


@real_manifest
def test_every_image_of_the_real_manifest_gets_its_questions():
    cases = read_manifest(MANIFEST)
    questionnaire = Questionnaire(cases)
    images = images_of(cases)
    assert sum(len(image) for image in images) == len(cases)
    for image in images:
        questions = questionnaire.of(image)
        marked = {name for case in image for name in case.labels.values()}
        assert marked <= {question.name for question in questions if question.values}
        assert sum(question.kind == "far" for question in questions) == 4, image[0].case_id
    wholes = {(q.case.source, q.name) for image in images for q in questionnaire.of(image) if q.kind == "whole"}
    assert {name for _, name in wholes} == {
        "vertebrae", "intervertebral discs", "hippocampus", "breast tumor", "brain tumor", "lung",
    }  # fmt: skip


@real_manifest
def test_a_real_case_is_read_on_its_own_grid():
    case = next(case for case in read_manifest(MANIFEST, "val") if case.source == "msd_hippocampus_mr")
    volume, labels = case.read()
    assert labels.shape == volume.shape
    assert set(np.unique(labels)) - {0} == set(case.labels)
