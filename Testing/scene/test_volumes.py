"""What the panel says of a volume node, and what the engine gets of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from MedZeroSegSlicer.volumes import describe_volume, export_volume, prepare_export
from scans import SHAPE, grid, scan, slicer, transform, turned, vtk, warp

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.field_of_view import FieldOfView
from MedZeroSegLib.vocabulary import vocabulary
from MedZeroSegLib.volume_io import read_volume

ROOT = Path(__file__).parents[2]


def volume_of(voxels: np.ndarray, ijk_to_ras: np.ndarray | None = None, kind: str = "vtkMRMLScalarVolumeNode"):
    return slicer.util.addVolumeFromArray(voxels, grid() if ijk_to_ras is None else ijk_to_ras, "CT chest", kind)


def ct(dtype: type = np.int16) -> np.ndarray:
    """Air, fat, tissue and bone in HU."""
    return np.random.default_rng(0).integers(-1000, 800, SHAPE).astype(dtype)


# Refused, and what to do


def test_no_volume_asks_for_an_image():
    assert "Load an image first" in describe_volume(None).sentence


def no_voxels(scene):
    return scene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "CT chest")


def label_map(_scene):
    return volume_of(np.ones(SHAPE, np.int16), kind="vtkMRMLLabelMapVolumeNode")


def displacement_field(_scene):
    return volume_of(np.ones((*SHAPE, 3), np.float32), kind="vtkMRMLVectorVolumeNode")


def six_values_a_voxel(_scene):
    return volume_of(np.ones((*SHAPE, 6), np.uint8), kind="vtkMRMLVectorVolumeNode")


def sequence(scene):
    return scene.AddNewNodeByClass("vtkMRMLSequenceNode", "CT chest")


def model(scene):
    return scene.AddNewNodeByClass("vtkMRMLModelNode", "CT chest")


def no_spacing(_scene):
    node = volume_of(ct())
    node.SetSpacing(0.7, 0, 2.5)
    return node


def sheared(_scene):
    matrix = np.diag([0.8, 0.8, 2.5, 1.0])
    matrix[0, 2] = 0.1
    return volume_of(ct(), matrix)


def flat_axes(_scene):
    node = volume_of(ct())
    directions = vtk.vtkMatrix4x4()
    directions.SetElement(0, 1, 1)
    directions.SetElement(1, 1, 0)
    node.SetIJKToRASDirectionMatrix(directions)
    return node


def nothing_but_nan(_scene):
    return volume_of(np.full(SHAPE, np.nan, np.float32))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (no_voxels, "has no voxels yet; wait until it is loaded"),
        (label_map, "is a label map .* choose the image"),
        (displacement_field, "several numbers a voxel; extract one"),
        (six_values_a_voxel, "several numbers a voxel; extract one"),
        (sequence, "is a sequence; choose the volume that shows its current frame"),
        (model, "is not an image; choose a volume"),
        (no_spacing, "has an axis without length; correct its spacing"),
        (flat_axes, "have the same direction"),
        (sheared, r"sheared grid, \d\.\d\d degrees off the right angle; resample it"),
        (nothing_but_nan, "nothing but padding, NaN or infinity"),
    ],
)
def test_what_cannot_be_segmented_gets_one_sentence_with_the_remedy(scene, tmp_path, make, said):
    node = make(scene)
    state = describe_volume(node)
    assert not state.usable and state.modality is None
    assert re.search(said, state.sentence), state.sentence
    assert "CT chest" in state.sentence and state.sentence.endswith(".")
    with pytest.raises(InputError, match=said):
        export_volume(node, tmp_path)
    assert list(tmp_path.iterdir()) == []


# Usable, and what is said


def test_size_line_tells_voxels_and_spacing(scene):
    state = describe_volume(volume_of(ct(), np.diag([-0.7, -0.704, 5.0, 1.0])))
    assert state.usable and state.sentence == ""
    assert state.size_line == "17 x 14 x 9 voxels, 0.70 x 0.70 x 5.00 mm"
    assert state.warnings == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.float32, np.float64])
def test_every_type_of_number_reaches_the_engine_as_it_is(scene, tmp_path, dtype):
    voxels = np.abs(ct() % 100).astype(dtype)
    message = export_volume(volume_of(voxels), tmp_path)
    mapped = np.load(message["voxels"], mmap_mode="r")
    assert mapped.dtype == dtype and mapped.flags.c_contiguous
    assert np.array_equal(mapped, voxels)


def test_engine_gets_the_grid_without_the_parent_transform(scene, tmp_path):
    volume = scan()
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turned((0, 0, 30)), (12, -7, 3)
    volume.SetAndObserveTransformNodeID(transform(moved).GetID())
    state = describe_volume(volume)
    assert state.usable and state.warnings == ()
    message = export_volume(volume, tmp_path)
    assert np.allclose(message["ijk_to_lps"], np.diag([-1, -1, 1, 1]) @ grid(), rtol=1e-12, atol=1e-9)
    assert message["dimension"] == 3 and message["calibrated"]


def test_volume_under_a_warp_says_that_its_own_grid_is_used(scene):
    volume = scan()
    volume.SetAndObserveTransformNodeID(warp().GetID())
    state = describe_volume(volume)
    assert state.usable
    (warning,) = state.warnings
    assert "non-linear transform" in warning and "own grid" in warning


def test_frame_of_a_sequence_says_which_and_is_segmented(scene, tmp_path):
    frames = scene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    for number in range(4):
        frame = volume_of(np.full(SHAPE, 10 * number, np.int16))
        frames.SetDataNodeAtValue(frame, str(number))
        scene.RemoveNode(frame)
    browser = scene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode")
    browser.SetAndObserveMasterSequenceNodeID(frames.GetID())
    browser.SetSelectedItemNumber(2)
    slicer.modules.sequences.logic().UpdateProxyNodesFromSequences(browser)
    proxy = browser.GetProxyNode(frames)
    state = describe_volume(proxy)
    assert state.usable and state.warnings == ("Frame 3 of 4 of a sequence.",)
    assert np.all(np.load(export_volume(proxy, tmp_path)["voxels"]) == 20)


def test_few_voxels_that_are_not_finite_are_counted(scene):
    voxels = ct(np.float64)
    voxels[0, 0, :3] = np.nan
    voxels[1, 0, 0] = np.inf
    state = describe_volume(volume_of(voxels))
    assert state.usable and state.modality == "CT"
    assert state.warnings == ("4 voxels are NaN or infinite and are treated as outside the image.",)


def test_huge_values_are_not_mistaken_for_infinity(scene):
    assert describe_volume(volume_of(np.full(SHAPE, 1e38, np.float32))).warnings == ()


def test_very_small_voxels_are_mentioned(scene):
    state = describe_volume(volume_of(ct(), np.diag([0.0007, 0.0007, 0.005, 1.0])))
    assert state.usable and "0.0007 mm is very small" in state.warnings[0]
    assert "0.0007 x 0.0007 x 0.005 mm" in state.size_line


# Modality


def test_modality_is_taken_from_the_subject_hierarchy(scene, tmp_path):
    volume = scan()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    item = hierarchy.CreateItem(hierarchy.GetSceneItemID(), volume)
    hierarchy.SetItemAttribute(item, "DICOM.Modality", "PT")
    state = describe_volume(volume)
    assert (state.modality, state.modality_source) == ("PET", "dicom")
    message = export_volume(volume, tmp_path)
    assert (message["modality"], message["modality_source"]) == ("PET", "dicom")


def test_modality_of_a_series_holds_for_what_lies_below_it(scene):
    volume = scan()
    hierarchy = slicer.vtkMRMLSubjectHierarchyNode.GetSubjectHierarchyNode(scene)
    series = hierarchy.CreateFolderItem(hierarchy.GetSceneItemID(), "series")
    hierarchy.SetItemAttribute(series, "DICOM.Modality", "MR")
    hierarchy.CreateItem(series, volume)
    assert describe_volume(volume).modality == "MR"


def test_modality_is_looked_up_in_the_dicom_database(scene, monkeypatch):
    tags = {("1.2.3", "0008,0060"): "DX"}
    database = types.SimpleNamespace(instanceValue=lambda uid, tag: tags.get((uid, tag), ""))
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    volume = scan(shape=(1, 14, 17))
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.3 1.2.4")
    state = describe_volume(volume)
    assert (state.modality, state.modality_source, state.dimension) == ("X-ray", "dicom", 2)


def test_body_part_is_looked_up_in_the_dicom_database(scene, monkeypatch):
    tags = {("1.2.3", "0008,0060"): "MR", ("1.2.3", "0018,0015"): "BRAIN"}
    database = types.SimpleNamespace(instanceValue=lambda uid, tag: tags.get((uid, tag), ""))
    monkeypatch.setattr(slicer, "dicomDatabase", database, raising=False)
    volume = scan()
    volume.SetAttribute("DICOM.instanceUIDs", "1.2.3")
    shown = describe_volume(volume).field_of_view
    assert shown.reason(vocabulary()["prostate"]) == "dicom" and not shown.reason(vocabulary()["brain"])


def test_what_a_scan_shows_is_looked_at_once_for_each_state_of_it(scene, monkeypatch):
    volume, looked = scan(), []
    monkeypatch.setattr("MedZeroSegSlicer.voxel_look.field_of_view", lambda *_: looked.append(1) or FieldOfView())
    for _ in range(3):
        describe_volume(volume)
        volume.SetName(volume.GetName() + "x")
    assert len(looked) == 1
    slicer.util.arrayFromVolume(volume)[0] += 1
    slicer.util.arrayFromVolumeModified(volume)
    describe_volume(volume)
    assert len(looked) == 2


def test_what_the_user_says_wins(scene, tmp_path):
    state = describe_volume(volume_of(ct()), given="MR")
    assert (state.modality, state.modality_source) == ("MR", "given")
    assert export_volume(volume_of(ct()), tmp_path, given="MR")["modality_source"] == "given"


def guesses() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    holed = ct(np.float32)
    holed[4, 3, 2] = np.nan
    padded = rng.integers(0, 900, SHAPE).astype(np.int16)
    padded[:, :3] = -32768
    return {
        "CT": ct(),
        "CT without air": rng.integers(-120, 300, SHAPE).astype(np.float64),
        "MR with negative values": rng.normal(0, 300, SHAPE).astype(np.float32),
        "MR": rng.integers(0, 900, SHAPE).astype(np.uint16),
        "hole": holed,
        "padding": padded,
        "white": np.where(rng.random(SHAPE) < 0.1, 65535, 100).astype(np.uint16),
        "all the same": np.full(SHAPE, 7, np.int16),
    }


@pytest.mark.parametrize("case", sorted(guesses()))
def test_panel_and_command_line_guess_the_same(scene, tmp_path, case):
    voxels = guesses()[case]
    path = tmp_path / "a.nrrd"
    sitk.WriteImage(sitk.GetImageFromArray(voxels), str(path))
    read = read_volume(path)
    state = describe_volume(volume_of(voxels))
    assert (state.modality, state.modality_source) == (read.modality, read.modality_source)


def test_grey_levels_are_looked_at_again_when_voxels_change(scene):
    volume = volume_of(ct())
    assert describe_volume(volume).modality == "CT"
    slicer.util.arrayFromVolume(volume)[...] = 5
    slicer.util.arrayFromVolumeModified(volume)
    assert describe_volume(volume).modality == "MR"


# While the window lives


def test_large_volume_is_looked_at_while_the_window_lives(scene, monkeypatch):
    monkeypatch.setattr("MedZeroSegSlicer.voxel_look.FEW_VOXELS", 0)
    volume, may_end = scan(), threading.Event()
    monkeypatch.setattr("MedZeroSegSlicer.voxel_look.field_of_view", lambda *_: may_end.wait(30) and FieldOfView())
    state = describe_volume(volume, wait=False)
    assert state.looking and not state.usable and "Looking at" in state.sentence
    assert describe_volume(volume, wait=False).looking
    may_end.set()
    until = time.monotonic() + 30
    while (state := describe_volume(volume, wait=False)).looking and time.monotonic() < until:
        time.sleep(0.001)
    assert state == describe_volume(volume) and state.usable


def test_what_fails_while_the_window_lives_is_told_to_who_asked(scene, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr("MedZeroSegSlicer.voxel_look.FEW_VOXELS", 0)
    monkeypatch.setattr("MedZeroSegSlicer.voxel_look.field_of_view", fail)
    monkeypatch.setattr(threading, "excepthook", lambda _arguments: None)
    volume, until = scan(), time.monotonic() + 30
    with pytest.raises(MemoryError):
        while describe_volume(volume, wait=False).looking and time.monotonic() < until:
            time.sleep(0.001)


# Pictures


def picture_file(folder: Path, pixels: np.ndarray) -> Path:
    path = folder / "radiograph.png"
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=pixels.ndim == 3), str(path))
    return path


def loaded(path: Path, pixels: np.ndarray):
    """A picture as Slicer loads it: one slice, spacing 1, its file known."""
    colours = pixels.ndim == 3
    kind = "vtkMRMLVectorVolumeNode" if colours else "vtkMRMLScalarVolumeNode"
    node = volume_of(pixels[np.newaxis], np.diag([-1.0, -1.0, 1.0, 1.0]), kind)
    storage = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLVolumeArchetypeStorageNode")
    storage.SetFileName(str(path))
    node.SetAndObserveStorageNodeID(storage.GetID())
    return node


@pytest.mark.parametrize("colour", ["grey", "equal channels", "colours"])
def test_picture_reaches_the_engine_as_the_command_line_reads_it(scene, tmp_path, colour):
    grey = np.random.default_rng(2).integers(0, 256, (14, 17)).astype(np.uint8)
    pixels = (
        grey if colour == "grey" else np.stack([grey, grey, grey if colour == "equal channels" else grey[::-1]], -1)
    )
    path = picture_file(tmp_path, pixels)
    read, node = read_volume(path), loaded(path, pixels)
    state, message = describe_volume(node), export_volume(node, tmp_path)
    assert np.array_equal(np.load(message["voxels"]), read.voxels)
    assert np.allclose(message["ijk_to_lps"], read.ijk_to_lps)
    assert (message["modality"], message["dimension"], message["calibrated"]) == ("X-ray", 2, False)
    assert (read.modality, read.dimension, read.calibrated) == ("X-ray", 2, False)
    assert state.size_line == "17 x 14 pixels, size in mm unknown"
    assert bool(state.warnings) == (colour == "colours")


def test_single_slice_of_unknown_kind_is_a_picture_and_one_of_ct_is_a_slice(scene):
    slice_of_mr = scan(np.diag([-0.8, -0.8, 5.0, 1.0]), (1, 14, 17))
    slicer.util.updateVolumeFromArray(slice_of_mr, np.ones((1, 14, 17), np.int16))
    state = describe_volume(slice_of_mr)
    assert (state.usable, state.modality, state.dimension) == (True, "X-ray", 2)
    assert state.size_line == "17 x 14 pixels, 0.80 x 0.80 mm"
    assert describe_volume(slice_of_mr, given="CT").dimension == 3


# The file


def test_unchanged_volume_is_written_once_and_old_states_go(scene, tmp_path):
    volume = volume_of(ct())
    first = Path(export_volume(volume, tmp_path)["voxels"])
    written = first.stat().st_mtime_ns
    assert Path(export_volume(volume, tmp_path)["voxels"]) == first and first.stat().st_mtime_ns == written
    paths = []
    for value in range(4):
        slicer.util.arrayFromVolume(volume)[0, 0, 0] = value
        slicer.util.arrayFromVolumeModified(volume)
        paths.append(Path(export_volume(volume, tmp_path)["voxels"]))
        assert np.load(paths[-1])[0, 0, 0] == value
    assert sorted(tmp_path.iterdir()) == sorted(paths[-2:])


def test_writing_needs_no_scene(scene, tmp_path):
    """So that a thread can do it: the node may go meanwhile."""
    volume = volume_of(ct())
    expected = slicer.util.arrayFromVolume(volume).copy()
    export = prepare_export(volume, tmp_path)
    scene.Clear()
    del volume
    export.write()
    assert np.array_equal(np.load(export.message["voxels"]), expected)


def test_what_a_first_volume_needs_is_loaded_beside_the_window():
    script = (
        "import sys; from MedZeroSegSlicer.volumes import load_ahead; assert 'scipy' not in sys.modules;"
        "load_ahead().join(); assert 'scipy.ndimage' in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "MedZeroSeg")))}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
