"""Image-caption pairs as data sets come, whatever their columns are called; what is wrong with a file in a sentence."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from clip_training_samples import picture_pairs, write_pairs
from PIL import Image
from pydicom.data import get_testdata_file

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.training.captions import context_of, same_words
from MedZeroSegLib.training.pair_pictures import read_slice, read_square, varied
from MedZeroSegLib.training.pairs import read_pairs, same_context, twins_of


def picture(file: Path, value: int = 100) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), value, np.uint8)).save(file)
    return file


def refused(file: Path, **settings) -> str:
    with pytest.raises(InputError) as caught:
        read_pairs(file, **settings)
    sentence = str(caught.value)
    assert "\n" not in sentence and sentence.endswith(".")
    return sentence


def test_rocos_columns_and_folders_are_known(tmp_path):
    picture(tmp_path / "images" / "PMC1_g002.jpg")
    picture(tmp_path / "train" / "ROCOv2_000001.png")
    first = write_pairs(
        tmp_path / "radiologytraindata.csv",
        [("ROCO_00002", "PMC1_g002.jpg", " Chest CT. \n")],
        ("id", "name", "caption"),
    )
    second = write_pairs(tmp_path / "captions.csv", [("ROCOv2_000001", "MRI of the knee")], ("ID", "Caption"))
    (one,), (two,) = read_pairs(first).all, read_pairs(second).all
    assert (one.image.name, one.caption, one.context) == ("PMC1_g002.jpg", "Chest CT.", ("CT", "chest"))
    assert (two.image.name, two.context) == ("ROCOv2_000001.png", ("MR", "limb"))


def test_tab_separated_files_byte_order_marks_and_other_scripts_are_read(tmp_path):
    folder = tmp_path / "Bilder 肺 (1)"
    picture(folder / "çt.png")
    file = folder / "pairs.tsv"
    file.write_bytes('\ufeffImage\tCaption\nçt.png\t左肺, links; "oben"\n'.encode())
    assert read_pairs(file).all[0].caption.startswith("左肺, links")


def test_what_is_left_out_is_counted_and_said(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    rows = [("a.png", "A liver."), ("b.png", "  "), ("c.png", "a  LIVER"), ("c.png", "A spleen."), ("d.png", "Gone.")]
    file = write_pairs(tmp_path / "pairs.csv", rows, ("image", "caption"))
    assert "1 of the images" in (sentence := refused(file)) and "'d.png'" in sentence and "--skip-missing" in sentence
    pairs = read_pairs(file, skip_missing=True)
    assert [pair.image.name for pair in pairs.all] == ["a.png", "c.png", "c.png"]
    said = " ".join(pairs.remarks)
    assert "1 rows with an empty caption" in said and "1 rows with a missing image" in said
    assert "1 captions repeat another" in said


def test_pairs_that_show_or_say_the_same_are_twins(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    rows = [("a.png", "A liver."), ("b.png", "a  LIVER"), ("c.png", "A spleen."), ("c.png", "A kidney.")]
    pairs = read_pairs(write_pairs(tmp_path / "pairs.csv", rows, ("image", "caption"))).all
    expected = np.eye(4, dtype=bool)
    expected[0, 1] = expected[1, 0] = expected[2, 3] = expected[3, 2] = True
    assert np.array_equal(twins_of(pairs), expected)


def test_a_context_is_shared_only_where_both_halves_are_named(tmp_path):
    captions = ["CT of the liver", "abdominal CT", "CT", "a liver", "MRI of the liver", "computed tomography, spleen"]
    rows = [(f"{n}.png", caption) for n, caption in enumerate(captions)]
    for name, _ in rows:
        picture(tmp_path / name)
    shared = same_context(read_pairs(write_pairs(tmp_path / "p.csv", rows, ("image", "caption"))).all)
    alike = {(n, m) for n, m in zip(*np.nonzero(shared), strict=True) if n < m}
    assert alike == {(0, 1), (0, 5), (1, 5)}


@pytest.mark.parametrize(
    ("caption", "context"),
    [
        ("Echocardiography: apical view", ("ultrasound", "")),
        ("Axial T2-weighted image of the brain", ("MR", "head")),
        ("Chest radiograph before, CT after", ("X-ray", "chest")),
        ("The effect of petting", ("", "")),
        ("Panoramic view", ("", "")),
    ],
)
def test_modality_and_region_are_read_from_whole_words(caption, context):
    assert context_of(caption) == context


def test_case_spaces_and_final_stops_make_no_difference():
    assert same_words("  A\tLiver. ") == same_words("a liver")
    assert same_words("left lung") != same_words("right lung")


def test_without_a_split_an_image_falls_on_one_side_and_always_the_same(tmp_path):
    rows = []
    for n in range(40):
        picture(tmp_path / f"{n}.png")
        rows += [(f"{n}.png", f"one {n}"), (f"{n}.png", f"two {n}")]
    pairs = read_pairs(write_pairs(tmp_path / "p.csv", rows, ("image", "caption")))
    for image in {pair.image for pair in pairs.all}:
        assert len({pair.split for pair in pairs.all if pair.image == image}) == 1
    assert 2 <= len(pairs.of("val")) <= 24
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path, moved, ignore=shutil.ignore_patterns("elsewhere"))
    assert read_pairs(moved / "p.csv").digest == pairs.digest


def test_splits_by_other_names_are_known_and_unknown_ones_refused(tmp_path):
    for name in "abc":
        picture(tmp_path / f"{name}.png")
    rows = [("a.png", "x", "Training"), ("b.png", "y", "valid"), ("c.png", "z", "TEST")]
    assert [pair.split for pair in read_pairs(write_pairs(tmp_path / "p.csv", rows)).all] == ["train", "val", "test"]
    assert "'seven'" in refused(write_pairs(tmp_path / "q.csv", [("a.png", "x", "seven")]))


def test_files_that_hold_no_pairs_are_refused_in_one_sentence(tmp_path):
    picture(tmp_path / "a.png")
    assert "no such file" in refused(tmp_path / "missing.csv")
    assert "can't be read" in refused(tmp_path)
    assert "column 'caption'" in refused(write_pairs(tmp_path / "p.csv", [("a.png", "x")], ("image", "words")))
    assert "column 'image'" in refused(write_pairs(tmp_path / "e.csv", [], ()))
    assert "no pair" in refused(write_pairs(tmp_path / "n.csv", [("a.png", "")], ("image", "caption")))
    (tmp_path / "utf16.csv").write_bytes("image,caption\na.png,x\n".encode("utf-16"))
    assert "UTF-8" in refused(tmp_path / "utf16.csv")
    good = write_pairs(tmp_path / "g.csv", [("a.png", "x")], ("image", "caption"))
    assert "not there" in refused(good, images=tmp_path / "nowhere")
    assert refused(write_pairs(tmp_path / "l.csv", [("x" * 5000, "x")], ("image", "caption")))


def test_a_dicom_radiograph_is_a_picture_and_a_volume_is_not(tmp_path):
    import SimpleITK as sitk

    file = get_testdata_file("CT_small.dcm")
    shown, spacing = read_slice(Path(str(file)))
    assert shown.shape == (128, 128) and shown.dtype == np.uint8 and len(spacing) == 2
    volume = tmp_path / "volume.nii.gz"
    sitk.WriteImage(
        sitk.GetImageFromArray(np.random.default_rng(0).integers(0, 99, (3, 8, 9)).astype(np.int16)), volume
    )
    with pytest.raises(InputError, match="3 slices"):
        read_slice(volume)


def test_pictures_keep_their_proportions_and_are_varied_without_a_mirror_image(tmp_path):
    folder = tmp_path / "p"
    picture_pairs(folder, 4, 0)
    square = read_square(folder / "000.png", 64)  # the disc at the left
    assert square.shape == (1, 1, 64, 64) and float(square[..., :, 60:].max()) < 0.5
    centre = float((square[0, 0].sum(0).numpy() * np.arange(64)).sum() / square.sum())
    for seed in range(20):
        other = varied(square, np.random.default_rng(seed))
        assert float(other.min()) >= 0 and float(other.max()) <= 1
        bright = np.argwhere(other[0, 0].numpy() > 0.45)
        assert bright[:, 1].mean() < 32 and centre < 32
    assert not np.array_equal(varied(square, np.random.default_rng(1)), varied(square, np.random.default_rng(2)))
