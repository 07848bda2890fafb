"""The table of states: which controls are on in each, and the sentence that each shows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from MedZeroSegSlicer.install import Setup, weights_of
from MedZeroSegSlicer.names_review import review_names
from MedZeroSegSlicer.panel_state import Facts, panel_state
from MedZeroSegSlicer.run_state import Phase, RunState, advanced, failed
from MedZeroSegSlicer.volumes import VolumeState

CT = VolumeState(True, "", "CT", "dicom", "64 x 64 x 24 voxels, 3.00 x 3.00 x 5.00 mm")
READY = Facts(Setup(), CT, review_names("liver; spleen; right kidney"), RunState())
RUNNING = replace(READY, run=RunState(phase=Phase.RUNNING))


def segment(name: str, found: bool = True, ml: float | None = 1523.4, **values) -> dict:
    """A "segment" event."""
    return {
        "event": "segment", "typed": name, "name": name, "found": found, "score": 0.97 if found else 0.21,
        "color": [221, 130, 101], "volume_ml": ml, "slices": 12, "warnings": [], **values,
    }  # fmt: skip


def after(*events: dict, start: RunState = RUNNING.run, seconds: float = 41.0) -> Facts:
    """The facts after a run got these events."""
    for event in events:
        start = advanced(start, event, seconds)
    return replace(READY, run=start)


def progress(seconds_left: float | None = None, code: str = "segmenting", fraction: float = 0.4, **values) -> dict:
    """A "progress" event."""
    return {"event": "progress", "fraction": fraction, "seconds_left": seconds_left, "code": code, "values": values}


def off(facts: Facts) -> str:
    """The reason why Segment is off, in its tooltip and in the status line alike; "" when it is on."""
    look = panel_state(facts)
    if look["runButton"].enabled:
        return ""
    assert look["runButton"].toolTip == look["statusLabel"].text
    return look["runButton"].toolTip


def status(facts: Facts) -> str:
    return panel_state(facts)["statusLabel"].text


# Before a run


def test_ready_panel_offers_segment_and_says_nothing():
    look = panel_state(READY)
    assert look["runButton"].enabled and look["runButton"].visible
    assert "Ctrl+Enter" in look["runButton"].toolTip
    assert not look["statusLabel"].visible and not look["setupBanner"].visible and not look["progressBar"].visible


def test_missing_packages_show_the_banner_with_the_size():
    facts = replace(READY, setup=Setup(torch=("torch>=2.2",), packages=("timm>=1.0",), weights=weights_of("lite")))
    look = panel_state(facts)
    assert off(facts) == "Set up the models first."
    assert look["setupBanner"].visible
    assert look["setupLabel"].text == "The models are not set up yet: 0.5 to 3.3 GB to download, once."
    assert look["setupButton"].visible and look["setupButton"].text == "Set up..."


def test_missing_weights_alone_can_also_come_from_a_folder():
    facts = replace(READY, setup=Setup(weights=weights_of("lite")))
    assert off(facts) == "Set up the models first."
    assert panel_state(facts)["setupLabel"].text == (
        "Model files are missing (lite_medsam.pth, model.safetensors): 131 MB to download, once, or to take from a "
        "folder."
    )
    assert panel_state(facts)["folderButton"].visible


def test_no_volume():
    assert off(replace(READY, volume=None)) == "Load an image first (drag a DICOM folder or a file here)."


def test_volume_that_cannot_be_used_says_why():
    sentence = "MR has no voxels yet; wait until it is loaded, or load it again."
    assert off(replace(READY, volume=VolumeState(False, sentence))) == sentence


def test_no_names():
    assert off(replace(READY, review=review_names(""))) == "Type at least one structure."


def test_only_unknown_names():
    sentence = "Correct the names marked with a question mark, or remove them."
    assert off(replace(READY, review=review_names("hart; hello world"))) == sentence


def test_unknown_names_are_tried_only_after_they_were_confirmed():
    facts = replace(READY, review=review_names("hello world"))
    look = panel_state(facts)["tryUnknownBox"]
    assert look.visible and look.checked is False and "“hello world”" in look.toolTip
    assert off(replace(facts, confirmed=("hello world",))) == ""
    assert off(replace(facts, confirmed=("something else",))) != ""


def test_known_names_run_beside_unknown_ones():
    assert off(replace(READY, review=review_names("liver; hello world"))) == ""


def test_unaccepted_licence_of_the_chosen_models():
    facts = replace(READY, licence_asked=True)
    assert off(facts) == "Accept the licence of the chosen models first (Advanced)."
    assert panel_state(facts)["licenceBox"].visible
    assert off(replace(facts, licence_accepted=True)) == ""


@pytest.mark.parametrize(
    ("source", "line"),
    [("dicom", "MR, from DICOM"), ("guess", "probably MR, please check"), ("given", "MR, as you chose")],
)
def test_modality_line_says_who_says_so(source, line):
    facts = replace(READY, volume=replace(CT, modality="MR", modality_source=source))
    assert panel_state(facts)["modalityLabel"].text == line


def test_warnings_on_the_image_stand_under_its_size():
    warning = "Frame 3 of 20 of a sequence."
    facts = replace(READY, volume=replace(CT, warnings=(warning,)))
    assert panel_state(facts)["volumeLabel"].text.splitlines() == [CT.size_line, warning]


def test_every_control_that_is_off_says_why():
    cancelling = replace(RUNNING, run=replace(RUNNING.run, phase=Phase.CANCELLING))
    for facts in (READY, RUNNING, cancelling, replace(READY, setup=Setup(weights=weights_of("lite")))):
        look = panel_state(facts)
        assert [name for name, control in look.items() if control.enabled is False and not control.toolTip] == []
    assert panel_state(cancelling)["cancelButton"].toolTip == "Stopping..."


# During a run


def test_running_panel_offers_cancel_and_rests_its_inputs():
    look = panel_state(RUNNING)
    assert not look["runButton"].visible
    assert look["cancelButton"].visible and look["cancelButton"].enabled and look["progressBar"].visible
    for name in ("inputVolumeSelector", "promptsEdit", "segmentationSelector", "deviceSelector", "tryUnknownBox"):
        assert look[name].enabled is False, name


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (progress(41, name="spleen", slice=9, slices=24), "spleen: slice 9 of 24, about 40 s left"),
        (progress(name="spleen", slice=9, slices=24), "spleen: slice 9 of 24"),
        (progress(200, "encoding", slice=3, slices=24), "Reading slice 3 of 24, about 3 min left"),
        (progress(4, name="spleen"), "Segmenting spleen, a few seconds left"),
        (progress(code="loading"), "Loading the models..."),
        (progress(12, "loading"), "Loading the models, about 10 s left"),
        (progress(30, "scoring", slices=24), "Looking for the structures, about 30 s left"),
        (progress(code="preparing"), "Preparing the image..."),
        (progress(12, "something new"), "Working, about 10 s left"),
    ],
)
def test_progress_is_a_sentence_with_the_time_left(event, sentence):
    facts = after(event)
    assert status(facts) == sentence
    assert panel_state(facts)["progressBar"].value == 400


def test_progress_never_goes_back():
    assert panel_state(after(progress(fraction=0.6), progress(fraction=0.5)))["progressBar"].value == 600


def test_cancelling_switches_cancel_off():
    facts = replace(READY, run=RunState(phase=Phase.CANCELLING))
    assert status(facts) == "Stopping..."
    assert panel_state(facts)["cancelButton"].visible and not panel_state(facts)["cancelButton"].enabled


def test_self_check_is_told():
    assert status(replace(READY, run=RunState(phase=Phase.CHECKING))) == "Checking the models and the device..."


# After a run


def test_done_names_what_was_not_found():
    facts = after(
        segment("liver"), segment("spleen"), segment("aorta"), segment("right kidney", False), {"event": "finished"}
    )
    assert status(facts) == "3 segments, 41 s. Not found in this image: right kidney."
    assert off(facts) == ""


def test_done_with_one_and_with_no_segment():
    assert status(after(segment("liver"), {"event": "finished"}, seconds=0.2)) == "1 segment, 1 s."
    facts = after(segment("liver", False), {"event": "finished"}, seconds=125)
    assert status(facts) == "No segment, 2 min 5 s. Not found in this image: liver."


def test_done_names_what_was_left_out():
    start = RunState(phase=Phase.RUNNING, left_out=("hello world",))
    facts = after(segment("liver"), {"event": "finished"}, start=start)
    assert status(facts) == "1 segment, 41 s. Not known and left out: hello world."


def test_cancelled_keeps_what_was_ready():
    facts = after(segment("liver"), {"event": "cancelled"})
    assert status(facts) == "Cancelled. Segments that were ready have been kept."
    assert "liver" in panel_state(facts)["measurementsLabel"].text


def test_failure_is_the_engines_sentence():
    sentence = "The GPU has 4.0 GB, this volume needs about 7.4 GB: choose CPU or a smaller region."
    facts = after({"event": "error", "code": "memory", "message": sentence})
    assert status(facts) == sentence
    assert off(facts) == ""


@pytest.mark.parametrize("code", ["memory", "worker-died", "internal"])
def test_failure_without_a_sentence_still_says_what_to_do(code):
    assert status(after({"event": "error", "code": code})).endswith(".")


def test_broken_installation_is_told_and_can_be_repaired_and_the_panel_stays_on():
    sentence = "PyTorch cannot be loaded (libc10.so is missing); install it again."
    facts = after({"event": "error", "code": "installation", "message": sentence})
    look = panel_state(facts)
    assert look["setupLabel"].text == look["statusLabel"].text == sentence
    assert look["setupButton"].text == "Repair..." and off(facts) == ""


def test_answer_of_the_self_check_is_one_plain_line():
    facts = after({"event": "result", "line": "Ready, CPU only: about 4 s per slice."}, {"event": "finished"},
                  start=RunState(phase=Phase.CHECKING))  # fmt: skip
    assert status(facts) == "Ready, CPU only: about 4 s per slice."


# Measurements


def test_each_structure_has_its_score_and_size():
    text = panel_state(after(segment("liver"), segment("spleen", ml=15.37), segment("cyst", ml=0.5)))[
        "measurementsLabel"
    ].text
    for part in ("liver", "score 0.97", "1523 ml", "15.4 ml", "0.50 ml", "#dd8265"):
        assert part in text


def test_size_of_a_picture_is_not_in_ml():
    text = panel_state(after(segment("lung", ml=None, slices=1)))["measurementsLabel"].text
    assert "score 0.97" in text and "ml" not in text and "slice" not in text
    assert "12 slices" in panel_state(after(segment("lung", ml=None)))["measurementsLabel"].text


def test_warnings_stand_under_their_structure_and_cannot_be_markup():
    text = panel_state(after(segment("<b>x</b>", warnings=["Look at it <closely>."])))["measurementsLabel"].text
    assert "&lt;b&gt;x&lt;/b&gt;" in text and "Look at it &lt;closely&gt;." in text


def test_failed_run_tells_the_reason_that_was_found_here():
    facts = replace(READY, run=failed(RunState(), "input", "The image was changed."))
    assert status(facts) == "The image was changed."
