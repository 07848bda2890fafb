"""The panel under a user's hands: what is chosen, typed, clicked and pressed, and what the scene remembers of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from MedZeroSegSlicer.install import Setup, weights_of

slicer = pytest.importorskip("slicer", reason="slicer-core has no wheel for this Python")
pytest.importorskip("PySide6", reason="PySide6 shows the panel")

from phantoms_of_panel import body, phantom  # noqa: E402
from PySide6 import QtCore, QtTest, QtWidgets  # noqa: E402
from stand_ins import qMRMLSegmentEditorWidget  # noqa: E402


def press(panel, key, modifier=QtCore.Qt.NoModifier, widget=None) -> None:
    """Press a key where the user is."""
    panel.parent.show()
    panel.parent.activateWindow()
    target = widget or panel.ui.promptsEdit
    target.setFocus()
    panel.qapp.processEvents()
    QtTest.QTest.keyClick(target, key, modifier)
    panel.qapp.processEvents()


def rows(panel) -> list[str]:
    return [panel.ui.reviewList.item(number).text().strip() for number in range(panel.ui.reviewList.count)]


# The image


def test_panel_without_an_image_says_to_load_one(panel):
    assert panel.status == panel.ui.runButton.toolTip == "Load an image first (drag a DICOM folder or a file here)."
    assert not panel.ui.runButton.enabled
    panel.picture("empty")


def test_image_in_the_scene_is_chosen_on_entering(volume, panel):
    assert panel.widget.parameters.inputVolume is volume
    assert panel.ui.inputVolumeSelector.currentNode() is volume
    assert panel.ui.volumeLabel.text == "64 x 56 x 24 voxels, 3.10 x 2.70 x 5.00 mm"


def test_first_image_that_is_loaded_is_chosen(panel):
    volume = phantom("CT")
    assert panel.widget.parameters.inputVolume is volume and panel.ui.volumeLabel.text.startswith("64 x 56 x 24")


def test_image_that_the_slice_views_show_is_preferred(module, application, plan, monkeypatch, request):
    phantom("first")
    shown = phantom("second")
    slicer.app.applicationLogic().GetSelectionNode().SetActiveVolumeID(shown.GetID())
    panel = request.getfixturevalue("panel")
    assert panel.widget.parameters.inputVolume is shown


def test_image_without_voxels_is_told_and_used_when_they_come(panel):
    node = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLScalarVolumeNode", "MR")
    panel.type("liver")
    assert panel.status == "MR has no voxels yet; wait until it is loaded, or load it again."
    assert panel.ui.runButton.toolTip == panel.status and not panel.ui.runButton.enabled
    slicer.util.updateVolumeFromArray(node, np.zeros((4, 5, 6), np.int16) + np.arange(6, dtype=np.int16))
    assert panel.ui.runButton.enabled and not panel.status


def test_large_image_is_looked_at_while_the_window_lives(panel, volume, monkeypatch):
    monkeypatch.setattr("MedZeroSegSlicer.voxel_look.FEW_VOXELS", 0)
    other = phantom("other")
    panel.type("liver")
    panel.widget.parameters.inputVolume = other
    assert "Looking at" in panel.status and not panel.ui.runButton.enabled
    panel.spin(lambda: panel.ui.runButton.enabled)
    assert "voxels" in panel.ui.volumeLabel.text and "Looking" not in panel.status


def test_label_map_is_refused_with_a_sentence(panel):
    slicer.util.addVolumeFromArray(np.ones((3, 4, 5), np.uint8), None, "labels", "vtkMRMLLabelMapVolumeNode")
    assert panel.status.startswith("labels is a label map and not an image") and not panel.ui.runButton.enabled


def test_frame_of_a_sequence_is_told(panel, volume):
    sequence = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceNode", "cine")
    for number in range(4):
        sequence.SetDataNodeAtValue(volume, str(number))
    browser = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSequenceBrowserNode", "browser")
    browser.AddProxyNode(volume, sequence, False)
    browser.SetAndObserveMasterSequenceNodeID(sequence.GetID())
    browser.SetSelectedItemNumber(2)
    panel.widget.parameters.inputVolume = volume
    assert "Frame 3 of 4 of a sequence" in panel.ui.volumeLabel.text


def test_panel_that_is_ready(volume, panel):
    panel.type("liver; spleen\nRt kidney")
    assert panel.ui.runButton.enabled and not panel.status
    panel.picture("ready", height=520)


def test_modality_can_be_corrected(volume, panel):
    assert panel.ui.modalityLabel.text == "probably CT, please check"
    panel.ui.modalitySelector.setCurrentIndex(2)
    assert panel.ui.modalityLabel.text == "MR, as you chose"
    panel.run("liver")
    assert (panel.asked()[-1]["volume"]["modality"], panel.asked()[-1]["volume"]["modality_source"]) == ("MR", "given")


def test_names_are_reviewed_for_the_modality(volume, panel):
    panel.type("prostate")
    assert rows(panel) == ["✓ prostate"]
    panel.ui.modalitySelector.setCurrentIndex(3)
    assert rows(panel) == ["! prostate – seldom seen in X-ray images"]


def test_warp_over_the_image_is_told_when_it_comes(volume, panel):
    warp = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLBSplineTransformNode", "warp")
    volume.SetAndObserveTransformNodeID(warp.GetID())
    assert "non-linear transform" in panel.ui.volumeLabel.text


# The names


def test_review_follows_every_key(volume, panel):
    panel.parent.show()
    QtTest.QTest.keyClicks(panel.ui.promptsEdit, "liver; hart")
    assert rows(panel) == ["✓ liver", "? hart – did you mean heart?"]
    assert panel.widget.parameters.prompts == "liver; hart"


def test_cursor_stays_where_the_user_types(volume, panel):
    panel.type("lver; spleen")
    cursor = panel.ui.promptsEdit.textCursor()
    cursor.setPosition(1)
    panel.ui.promptsEdit.setTextCursor(cursor)
    panel.parent.show()
    QtTest.QTest.keyClicks(panel.ui.promptsEdit, "i")
    assert panel.ui.promptsEdit.toPlainText() == "liver; spleen"
    assert panel.ui.promptsEdit.textCursor().position() == 2


def test_click_on_an_offer_takes_it(volume, panel):
    panel.type("liver; left kidn; hello world")
    panel.picture("names", height=520)
    panel.ui.reviewList.itemClicked.emit(panel.ui.reviewList.item(2))
    assert panel.ui.promptsEdit.toPlainText().startswith("liver; left kidney ")
    assert panel.widget.parameters.prompts == panel.ui.promptsEdit.toPlainText()


def test_click_on_an_understood_name_changes_nothing(volume, panel):
    panel.type("liver")
    panel.ui.reviewList.itemClicked.emit(panel.ui.reviewList.item(0))
    assert panel.ui.promptsEdit.toPlainText() == "liver"


def test_tab_takes_the_first_offer_for_the_name_at_the_cursor(volume, panel):
    panel.type("hart; spl")
    cursor = panel.ui.promptsEdit.textCursor()
    cursor.movePosition(cursor.MoveOperation.End)
    panel.ui.promptsEdit.setTextCursor(cursor)
    press(panel, QtCore.Qt.Key_Tab)
    assert panel.ui.promptsEdit.toPlainText() == "hart; spleen"


def test_tab_without_an_offer_goes_on_to_the_next_control(volume, panel):
    panel.type("liver")
    press(panel, QtCore.Qt.Key_Tab)
    assert panel.ui.promptsEdit.toPlainText() == "liver"
    assert QtWidgets.QApplication.focusWidget() is not panel.ui.promptsEdit


def test_taken_offer_can_be_taken_back_in_the_field(volume, panel):
    panel.type("hart")
    panel.ui.reviewList.itemClicked.emit(panel.ui.reviewList.item(0))
    panel.ui.promptsEdit.undo()
    assert panel.ui.promptsEdit.toPlainText() == "hart"


def test_lists_insert_what_is_lacking(volume, panel):
    panel.type("liver")
    panel.widget.fillListsMenu()
    next(action for action in panel.widget._listsMenu.actions() if action.text() == "Abdomen (CT)").trigger()
    names = panel.widget.parameters.prompts.splitlines()
    assert names[:2] == ["liver", "spleen"] and names.count("liver") == 1
    panel.picture("list")


def test_lists_used_last_are_offered_again(volume, panel):
    panel.run("liver; spleen")
    panel.type("")
    panel.widget.fillListsMenu()
    next(action for action in panel.widget._listsMenu.actions() if action.text() == "liver, spleen").trigger()
    assert panel.widget.parameters.prompts.splitlines() == ["liver", "spleen"]


def test_unknown_name_is_sent_only_after_a_second_confirmation(volume, panel):
    panel.type("liver; hello world")
    assert panel.ui.tryUnknownBox.visible and not panel.ui.tryUnknownBox.checked
    panel.click("runButton")
    panel.finish()
    assert panel.asked()[-1]["names"] == ["liver"]
    assert panel.status.endswith("Not known and left out: hello world.")
    panel.ui.tryUnknownBox.click()
    panel.click("runButton")
    panel.finish()
    assert panel.asked()[-1]["names"] == ["liver", "hello world"]


def test_confirmation_does_not_hold_for_other_names(volume, panel):
    panel.type("hello world")
    panel.ui.tryUnknownBox.click()
    assert panel.ui.runButton.enabled
    panel.type("something else")
    assert not panel.ui.tryUnknownBox.checked and not panel.ui.runButton.enabled


# Keys


def test_control_enter_runs(volume, panel):
    panel.type("liver")
    press(panel, QtCore.Qt.Key_Return, QtCore.Qt.ControlModifier)
    assert panel.phase == "running"
    panel.finish()
    assert panel.ui.promptsEdit.toPlainText() == "liver", "the key wrote nothing into the field"


def test_escape_cancels(volume, panel):
    panel.plan(seconds_per_slice=0.5)
    panel.type("liver")
    panel.click("runButton")
    press(panel, QtCore.Qt.Key_Escape, widget=panel.parent)
    assert panel.phase in ("cancelling", "cancelled")
    panel.finish()
    assert panel.phase == "cancelled"


def test_keys_are_given_back_on_leaving_the_module(volume, panel):
    panel.type("liver")
    panel.widget.exit()
    press(panel, QtCore.Qt.Key_Return, QtCore.Qt.ControlModifier)
    assert panel.phase == "idle"


# The result


def test_result_can_be_shown_in_3d_and_edited_by_hand(volume, panel, monkeypatch):
    panel.type("liver")
    assert not panel.ui.resultsSection.visible
    panel.click("runButton")
    panel.finish()
    node = panel.widget.parameters.segmentation
    assert panel.ui.show3DButton.segmentationNode() is node
    panel.click("show3DButton")
    assert node.GetSegmentation().ContainsRepresentation("Closed surface")
    seen, editor = [], qMRMLSegmentEditorWidget()
    monkeypatch.setattr(slicer.util, "selectModule", seen.append)
    monkeypatch.setattr(slicer.modules, "SegmentEditorWidget", type("W", (), {"editor": editor}), raising=False)
    panel.click("editButton")
    assert seen == ["SegmentEditor"] and (editor.segmentationNode(), editor.sourceVolumeNode()) == (node, volume)


def test_click_on_a_segment_shows_it_in_the_slices(volume, panel):
    view = slicer.mrmlScene.AddNode(slicer.vtkMRMLSliceNode())
    view.SetLayoutName("Red")
    panel.run("spleen")
    panel.ui.segmentsTable.selectRow(0)
    center = [view.GetSliceToRAS().GetElement(axis, 3) for axis in range(3)]
    node = panel.widget.parameters.segmentation
    wanted = node.GetSegmentCenterRAS(node.GetSegmentation().GetNthSegmentID(0))
    assert abs(center[2] - wanted[2]) < 0.01


def test_measurements_stay_beside_the_segments(volume, panel):
    panel.run("liver; right kidney")
    text = panel.ui.measurementsLabel.text
    ml = body("liver").sum() * 3.1 * 2.7 * 5 / 1000
    assert f"{ml:.0f} ml" in text and "not found" in text
    panel.picture("results")


def test_undo_takes_the_whole_run_back(volume, panel):
    panel.run("liver")
    panel.run("spleen; aorta")
    assert panel.segments == ["liver", "spleen", "aorta"]
    panel.click("undoButton")
    assert panel.segments == ["liver"] and not panel.ui.measurementsLabel.visible


def test_other_image_gets_its_own_result(volume, panel):
    panel.run("liver")
    first = panel.widget.parameters.segmentation
    other = phantom("Second CT")
    panel.widget.parameters.inputVolume = other
    assert panel.widget.parameters.segmentation is None
    panel.run("spleen")
    second = panel.widget.parameters.segmentation
    assert second is not first
    assert second.GetNodeReference(second.GetReferenceImageGeometryReferenceRole()) is other
    panel.widget.parameters.inputVolume = volume
    assert panel.widget.parameters.segmentation is first


# What is remembered


def test_settings_stay_after_a_run_and_return_with_the_scene(volume, panel, module, tmp_path):
    panel.ui.modalitySelector.setCurrentIndex(1)
    panel.ui.deviceSelector.setCurrentIndex(1)
    panel.ui.stayOutBox.click()
    panel.run("Liver; spleen")
    assert panel.ui.promptsEdit.toPlainText() == "Liver; spleen"
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear()
    assert panel.ui.promptsEdit.toPlainText() == ""
    assert slicer.mrmlScene.Import()
    parameters = panel.widget.parameters
    assert parameters.prompts == panel.ui.promptsEdit.toPlainText() == "Liver; spleen"
    assert parameters.modality is module.Modality.CT and parameters.device is module.Device.CPU and parameters.stayOut
    assert panel.ui.stayOutBox.checked and panel.ui.deviceSelector.currentText == "CPU"


def test_scene_brings_its_own_choice_of_image_and_result(volume, panel, tmp_path):
    other = phantom("Other")
    mine = slicer.mrmlScene.AddNewNodeByClass("vtkMRMLSegmentationNode", "drawn by hand")
    mine.SetReferenceImageGeometryParameterFromVolumeNode(other)
    panel.widget.parameters.inputVolume = other
    panel.widget.parameters.segmentation = mine
    slicer.mrmlScene.SetURL(str(tmp_path / "scene.mrml"))
    assert slicer.mrmlScene.Commit()
    slicer.mrmlScene.Clear()
    assert slicer.mrmlScene.Import()
    assert panel.widget.parameters.inputVolume.GetName() == "Other"
    assert panel.widget.parameters.segmentation.GetName() == "drawn by hand"


def test_weights_folder_is_remembered_for_the_machine(volume, panel, module, monkeypatch):
    looked = []
    monkeypatch.setattr("MedZeroSegSlicer.logic.examine", lambda folder, preset: looked.append(folder) or Setup())
    panel.ui.weightsFolderEdit.currentPath = "/data/Gewichte ä"
    assert looked == ["/data/Gewichte ä"]
    panel.run("liver")
    assert panel.asked()[-1]["weights_folder"] == "/data/Gewichte ä"
    assert module.preference("weightsFolder") == "/data/Gewichte ä"


def test_models_for_research_ask_for_their_licence(volume, panel):
    panel.type("liver")
    assert not panel.ui.licenceBox.visible
    panel.ui.modelsSelector.setCurrentIndex(1)
    assert panel.ui.licenceBox.visible and not panel.ui.runButton.enabled and "licence" in panel.status
    panel.ui.advancedSection.collapsed = False
    panel.picture("advanced", height=900)
    panel.ui.licenceBox.click()
    assert panel.ui.runButton.enabled
    panel.click("runButton")
    panel.finish()
    assert panel.asked()[-1]["preset"] == "lite-research"


def test_other_models_are_looked_for_when_they_are_chosen(volume, panel, module, monkeypatch):
    looked = []
    monkeypatch.setattr("MedZeroSegSlicer.logic.examine", lambda folder, preset: looked.append(preset) or Setup())
    panel.ui.modelsSelector.setCurrentIndex(2)
    panel.ui.modelsSelector.setCurrentIndex(0)
    assert looked == ["base", "lite"]


# The set-up


@pytest.fixture
def bare(panel, module, monkeypatch):
    """A panel on a machine where nothing is installed yet; the list of installations that were asked for."""
    state = {
        "setup": Setup(torch=("torch>=2.2",), packages=("timm>=1.0",), weights=weights_of("lite")),
        "installed": [],
    }

    def install(setup, repair, preset):
        state["installed"].append((setup, repair))
        state["setup"] = Setup()

    monkeypatch.setattr("MedZeroSegSlicer.logic.examine", lambda folder, preset: state["setup"])
    monkeypatch.setattr("MedZeroSegSlicer.logic.install", install)
    panel.logic.examine()
    panel.widget.refresh()
    return state


def test_panel_that_is_not_set_up_shows_the_banner(volume, panel, bare):
    panel.type("liver")
    assert panel.ui.setupBanner.visible and panel.status == panel.ui.runButton.toolTip == "Set up the models first."
    panel.picture("setup")


def test_set_up_asks_first_and_then_checks_the_engine(volume, panel, bare, monkeypatch):
    asked = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, *_a, **_k: asked.append(text) or True)
    panel.click("setupButton")
    assert "No image leaves this computer" in asked[0]
    assert [repair for _setup, repair in bare["installed"]] == [False]
    panel.finish()
    assert panel.asked()[-1]["cmd"] == "check" and panel.status.startswith("Ready")
    assert not panel.ui.setupBanner.visible


def test_declined_set_up_installs_nothing(volume, panel, bare, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_a, **_k: False)
    panel.click("setupButton")
    assert bare["installed"] == [] and panel.ui.setupBanner.visible


def test_failed_set_up_says_why_and_the_panel_stays(volume, panel, bare, module, monkeypatch):
    from MedZeroSegLib.errors import InstallationError

    def fail(_setup, repair, preset):
        raise InstallationError("The packages could not be installed (pip ended with status 1).")

    monkeypatch.setattr("MedZeroSegSlicer.logic.install", fail)
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_a, **_k: True)
    panel.click("setupButton")
    assert "status 1" in panel.status and panel.ui.setupBanner.visible and panel.ui.setupButton.enabled


def test_folder_with_the_models_completes_the_set_up(volume, panel, bare, monkeypatch, tmp_path):
    bare["setup"] = Setup(weights=weights_of("lite"))
    panel.logic.examine()
    panel.widget.refresh()
    assert panel.ui.folderButton.visible
    import qt

    monkeypatch.setattr(qt.QFileDialog, "getExistingDirectory", lambda *_a: str(tmp_path))
    bare["setup"] = Setup()
    panel.click("folderButton")
    assert not panel.ui.setupBanner.visible
    assert panel.ui.weightsFolderEdit.currentPath == str(tmp_path)


def test_fault_of_the_installation_is_told_and_can_be_repaired(volume, panel, bare, monkeypatch):
    bare["setup"] = Setup()
    panel.logic.examine()
    panel.plan(fault="installation")
    panel.run("liver")
    assert panel.ui.setupLabel.text == panel.status == "PyTorch can't be loaded; install it again."
    assert panel.ui.runButton.enabled and panel.ui.setupButton.text == "Repair..."
    panel.picture("repair")
    panel.plan()
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_a, **_k: True)
    panel.click("setupButton")
    assert [repair for _setup, repair in bare["installed"]] == [True]
    panel.finish()
    assert not panel.ui.setupBanner.visible


# Model files from the network


@pytest.fixture
def without_base(panel, bare):
    """A panel that has all but the model files of `base`."""
    bare["setup"] = Setup(weights=weights_of("base"))
    panel.logic.examine()
    panel.widget.refresh()
    return bare


def test_missing_model_files_are_downloaded_after_the_user_has_agreed(volume, panel, without_base, monkeypatch):
    asked = []
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda text, *_a, **_k: asked.append(text) or True)
    assert panel.ui.fetchButton.visible and panel.ui.folderButton.visible and not panel.ui.setupButton.visible
    assert "1159 MB to download, once, or to take from a folder" in panel.ui.setupLabel.text
    panel.picture("download")
    panel.plan(seconds_per_slice=0.03)
    panel.click("fetchButton")
    assert "SAM ViT-B, 375 MB, licence Apache-2.0, from dl.fbaipublicfiles.com" in asked[0]
    assert "MIT" in asked[0] and "No image leaves this computer" in asked[0] and "1159 MB" in asked[0]
    panel.spin(lambda: "MB" in panel.status)
    assert panel.status.startswith("Downloading model files: ") and panel.ui.cancelButton.enabled
    panel.picture("downloading")
    without_base["setup"] = Setup()
    panel.finish()
    assert panel.asked()[-1]["cmd"] == "fetch" and panel.asked()[-1]["preset"] == "lite"
    assert panel.status == "The model files are here (1,000 MB)." and not panel.ui.setupBanner.visible


def test_declined_download_fetches_nothing(volume, panel, without_base, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_a, **_k: False)
    panel.click("fetchButton")
    assert panel.asked() == [] and panel.phase == "idle"


def test_cancelled_download_can_go_on_later(volume, panel, without_base, monkeypatch):
    monkeypatch.setattr(slicer.util, "confirmOkCancelDisplay", lambda *_a, **_k: True)
    panel.plan(seconds_per_slice=0.5)
    panel.click("fetchButton")
    panel.spin(lambda: panel.logic.run.state.fraction > 0)
    panel.click("cancelButton")
    panel.finish()
    assert panel.status == "Cancelled. What was downloaded is kept for the next time."
    assert panel.ui.fetchButton.visible and panel.ui.fetchButton.enabled


def test_packages_come_before_model_files_from_the_network(volume, panel, bare):
    bare["setup"] = Setup(packages=("timm>=1.0",), weights=weights_of("base"))
    panel.logic.examine()
    panel.widget.refresh()
    assert panel.ui.setupButton.visible and not panel.ui.fetchButton.visible


# Advanced


def test_check_tells_what_the_models_run_on(volume, panel):
    panel.click("checkButton")
    assert panel.status == "Checking the models and the device..." and not panel.ui.runButton.visible
    panel.finish()
    assert panel.status.startswith("Ready")


def test_memory_is_freed_by_ending_the_engine(volume, panel):
    assert not panel.ui.freeButton.enabled and "holds no memory" in panel.ui.freeButton.toolTip
    panel.run("liver")
    panel.click("freeButton")
    assert not panel.logic.run.warm and not panel.ui.freeButton.enabled


def test_report_tells_of_versions_and_outcomes_and_nothing_of_the_patient(volume, panel):
    volume.SetName("Müller^Jörg")
    panel.type("liver; Frau Meier")
    panel.ui.tryUnknownBox.click()
    panel.click("runButton")
    panel.finish()
    panel.click("reportButton")
    text = QtWidgets.QApplication.clipboard().text()
    report = json.loads(text)
    assert report["packages"]["numpy"] == np.__version__
    assert [outcome["name"] for outcome in report["run"]["outcomes"]] == ["liver", "(unknown name)"]
    assert "Müller" not in text and "Meier" not in text
