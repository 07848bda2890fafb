"""Correcting by hand through the engine's real process with the real models."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from editing_samples import OBLIQUE, organ, scan

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "MedZeroSeg"))

from MedZeroSegSlicer.engine_process import EngineProcess  # noqa: E402

from MedZeroSegLib.edit_protocol import read_edit, read_edit_start  # noqa: E402
from MedZeroSegLib.protocol import FINAL_EVENTS, ProtocolError, check_request  # noqa: E402

SHAPE = (6, 64, 80)
TRUTH = organ(SHAPE)
PATIENCE_S = 180.0


class Corrections:
    """The process, and a folder in which it finds and leaves arrays."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.events = folder, []
        worker = str(ROOT / "MedZeroSegLib" / "worker.py")
        self.engine = EngineProcess([sys.executable, worker], self.events.append)
        self.volume = self.volume_entry("volume", scan(TRUTH).voxels)

    def volume_entry(self, name: str, voxels: np.ndarray) -> dict[str, Any]:
        np.save(self.folder / f"{name}.npy", voxels)
        common = {"modality": "MR", "modality_source": "given", "dimension": 3, "calibrated": True}
        return {"voxels": str(self.folder / f"{name}.npy"), "ijk_to_lps": OBLIQUE.tolist(), **common}

    def mask_entry(self, mask: np.ndarray, k0: int) -> dict[str, Any]:
        """Slices from ``k0`` on, handed over as box."""
        np.save(self.folder / "mask.npy", mask.astype(np.uint8))
        k, j, i = mask.shape
        return {"file": str(self.folder / "mask.npy"), "box": [0, i - 1, 0, j - 1, k0, k0 + k - 1]}

    def start(self, mask: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        number = self.engine.submit(
            {
                "cmd": "edit-start",
                "volume": self.volume,
                "name": "",
                "mask": mask,
                "others": [],
                "stay_out": False,
                "through": None,
                "preset": "lite",
                "device": "cpu",
                "weights_folder": None,
                **more,
            }  # fmt: skip
        )
        self.finish()
        return self.of(number, "editing")

    def edit(self, session: int, revision: int, *actions: dict[str, Any], spread: bool = False, **more: Any) -> int:
        return self.engine.submit(
            {
                "cmd": "edit",
                "session": session,
                "revision": revision,
                "volume": self.volume,
                "actions": list(actions),
                "spread": spread,
                "folder": str(self.folder),
                **more,
            }  # fmt: skip
        )

    def finish(self) -> None:
        end = time.monotonic() + PATIENCE_S
        while self.engine.poll():
            time.sleep(0.005)
            assert time.monotonic() < end, self.events

    def of(self, number: int, kind: str, **values: Any) -> dict[str, Any]:
        """The one event of a request of this kind."""
        found = [e for e in self.events if e["id"] == number and e["event"] == kind and values.items() <= e.items()]
        assert len(found) == 1, [event for event in self.events if event["id"] == number]
        return found[0]

    def end_of(self, number: int) -> dict[str, Any]:
        (last,) = [e for e in self.events if e["id"] == number and e["event"] in FINAL_EVENTS]
        return last


@pytest.fixture(scope="module")
def corrections(tmp_path_factory) -> Iterator[Corrections]:
    corrections = Corrections(tmp_path_factory.mktemp("Sättiger 肺"))
    yield corrections
    corrections.engine.close()


@pytest.fixture(scope="module")
def session(corrections) -> int:
    answer = corrections.start(corrections.mask_entry(TRUTH[2:5] & (np.arange(SHAPE[2]) < 48), 2))
    assert (answer["revision"], answer["slices"], answer["through"]) == (0, 6, 2)
    return answer["session"]


def include(i: int, j: int, k: int) -> dict[str, Any]:
    return {"kind": "include", "points": [[i, j, k]]}


def test_a_click_is_answered_with_the_changed_box_and_its_mask(corrections, session):
    number = corrections.edit(session, 0, include(52, 26, 3))
    corrections.finish()
    edited = corrections.of(number, "edited", stage="slice")
    i0, i1, j0, j1, k0, k1 = edited["box"]
    mask = np.load(edited["mask"])
    assert mask.dtype == bool and mask.shape == (k1 - k0 + 1, j1 - j0 + 1, i1 - i0 + 1) and k0 == k1 == 3
    assert edited["slices"] == [3] and mask[0, 26 - j0, 52 - i0]
    assert corrections.end_of(number)["event"] == "finished"


def test_actions_of_one_message_are_applied_in_order_and_spread(corrections, session):
    drawn = {"kind": "stroke", "include": False, "points": [[5, 5, 3], [6, 5, 3]]}
    number = corrections.edit(session, 0, include(52, 26, 3), drawn, {"kind": "confirm", "slice": 3}, spread=True)
    corrections.finish()
    stages = [event["stage"] for event in corrections.events if event["id"] == number and event["event"] == "edited"]
    assert stages == ["slice", "volume"]
    assert 3 not in corrections.of(number, "edited", stage="volume")["slices"]


def test_an_earlier_revision_is_gone_back_to_by_naming_it(corrections, session):
    first = corrections.edit(session, 0, include(52, 26, 3))
    corrections.finish()
    second = corrections.edit(session, 0, include(52, 26, 3))
    corrections.finish()
    one, other = (corrections.of(number, "edited") for number in (first, second))
    assert one["box"] == other["box"] and np.array_equal(np.load(one["mask"]), np.load(other["mask"]))


def test_a_cancelled_spread_leaves_the_revision_before_it(corrections, session):
    number = corrections.edit(session, 0, {"kind": "confirm", "slice": 3}, spread=True)
    corrections.engine.cancel()
    corrections.finish()
    assert corrections.end_of(number)["event"] == "cancelled"
    number = corrections.edit(session, 0, include(52, 26, 3))
    corrections.finish()
    assert corrections.of(number, "edited")["slices"] == [3]


def test_of_waiting_clicks_the_newest_is_answered(corrections, session):
    numbers = [corrections.edit(session, 0, include(50, 20 + n, 3)) for n in range(3)]
    corrections.finish()
    assert [corrections.end_of(number)["event"] for number in numbers] == ["finished", "cancelled", "finished"]


def test_bad_input_is_refused_with_a_sentence_and_changes_nothing(corrections, session):
    outside = corrections.edit(session, 0, include(52, 26, 3), include(500, 26, 3))
    corrections.finish()
    end = corrections.end_of(outside)
    assert end["code"] == "input" and "outside the image of 80 × 64 × 6 voxels" in end["message"]
    other = corrections.volume_entry("other", scan(TRUTH, seed=3).voxels)
    changed = corrections.edit(session, 0, include(52, 26, 3), volume=other)
    corrections.finish()
    assert "image has changed" in corrections.end_of(changed)["message"]


def test_a_session_that_is_not_known_has_a_code_of_its_own(corrections, session):
    for number in (corrections.edit(9999, 0, include(1, 1, 1)), corrections.edit(session, 777, include(1, 1, 1))):
        corrections.finish()
        if corrections.end_of(number)["event"] != "cancelled":
            assert corrections.end_of(number)["code"] == "session"


def test_a_mask_on_another_grid_is_resampled_and_that_is_said(corrections):
    np.save(corrections.folder / "half.npy", TRUTH[:, ::2, ::2].astype(np.uint8))
    matrix = (OBLIQUE @ np.diag([2, 2, 1, 1])).tolist()
    answer = corrections.start({"file": str(corrections.folder / "half.npy"), "ijk_to_lps": matrix}, name="liver")
    assert "another grid" in answer["sentences"][0] and answer["trained"]


def test_a_closed_correction_is_not_known_any_more(corrections):
    number = corrections.start()["session"]
    corrections.engine.submit({"cmd": "edit-end", "session": number})
    corrections.finish()
    after = corrections.edit(number, 0, include(1, 1, 1))
    corrections.finish()
    assert corrections.end_of(after)["code"] == "session"


# Messages

EDIT = {
    "id": 1, "cmd": "edit", "session": 1, "revision": 0, "actions": [], "spread": False, "folder": "x",
    "volume": {"voxels": "v.npy", "ijk_to_lps": np.eye(4).tolist(), "dimension": 3, "calibrated": True},
}  # fmt: skip


@pytest.mark.parametrize(
    "action",
    [
        {"kind": "include", "points": []},
        {"kind": "include", "points": [[1, 2]]},
        {"kind": "stroke", "points": [[1, 2, 3]]},
        {"kind": "box", "box": [1, 2, 3]},
        {"kind": "confirm"},
        {"kind": "erase"},
        "include",
    ],
)
def test_an_action_that_is_not_as_agreed_is_refused_on_both_sides(action):
    check_request(EDIT)
    with pytest.raises(ProtocolError):
        check_request({**EDIT, "actions": [action]})
    with pytest.raises(ProtocolError):
        read_edit({**EDIT, "actions": [action]})


def test_a_correction_is_opened_along_an_axis_that_exists():
    start = {
        **EDIT, "cmd": "edit-start", "name": "", "mask": None, "others": [], "stay_out": False, "through": 3,
        "preset": "lite", "device": "cpu",
    }  # fmt: skip
    with pytest.raises(ProtocolError, match="through"):
        read_edit_start(start)
