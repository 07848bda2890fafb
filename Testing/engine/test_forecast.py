"""The time that is left is known from what was measured, never runs backwards as a share, and is remembered."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from MedZeroSegLib.forecast import Forecast, remember_rates, remembered_rates

KNOWN = {"planned": 0.0, "encoding": 2.0, "segmenting": 0.5}
PLAN: dict[str, Any] = {"encodings": 1, "slices": 10, "names": 3}


class Run:
    """A run on a clock of its own."""

    def __init__(self, remembered: dict[str, float], megavoxels: float = 0.0) -> None:
        self.now = 0.0
        self.forecast = Forecast(megavoxels, remembered, lambda: self.now)

    def tell(self, after: float, stage: str, share: float, **values: Any) -> tuple[float, float | None]:
        self.now += after
        return self.forecast.tell(stage, share, values)


def slices_encoded(run: Run, seconds: float, count: int = 10) -> tuple[float, float | None]:
    told = run.tell(0, "encoding", 0.0, slice=0, slices=count)
    for number in range(1, count + 1):
        told = run.tell(seconds, "encoding", number / count, slice=number, slices=count)
    return told


def test_a_run_that_takes_what_earlier_ones_took_is_predicted_to_the_second():
    run = Run(KNOWN)
    assert run.tell(0, "loading", 0.0) == (0.0, None)
    assert run.tell(0, "planned", 1.0, **PLAN) == (0.0, 35.0)  # 10 slices at 2 s, 3 names on 10 slices at 0.5 s
    assert slices_encoded(run, 2.0) == (pytest.approx(20 / 35), 15.0)
    assert run.tell(0, "scoring", 0.0, slices=10)[1] == 15.0
    fraction, left = run.tell(5.0, "segmenting", 1 / 3, name="liver")
    assert (fraction, left) == (pytest.approx(25 / 35), pytest.approx(10.0))


def test_on_an_unknown_machine_the_time_left_is_told_once_slices_have_been_measured():
    run = Run({})
    run.tell(0, "loading", 0.0)
    assert run.tell(9.0, "planned", 1.0, **PLAN)[1] is None
    run.tell(0, "encoding", 0.0, slice=0, slices=10)
    assert run.tell(6.0, "encoding", 0.1, slice=1, slices=10)[1] is None  # the first one builds the graph as well
    fraction, left = run.tell(1.0, "encoding", 0.2, slice=2, slices=10)
    assert left is not None and 8.0 < left < 15.0
    assert fraction >= 16 / (16 + left)


def test_a_slower_machine_than_remembered_is_noticed_at_the_second_slice():
    run = Run(KNOWN)
    run.tell(0, "planned", 1.0, **PLAN)
    run.tell(0, "encoding", 0.0, slice=0, slices=10)
    run.tell(4.0, "encoding", 0.1, slice=1, slices=10)
    assert run.tell(4.0, "encoding", 0.2, slice=2, slices=10)[1] == pytest.approx(8 * 4.0 + 15.0)


def test_a_volume_that_is_kept_from_before_costs_no_encoding():
    run = Run(KNOWN)
    assert run.tell(0, "planned", 1.0, **{**PLAN, "encodings": 0})[1] == 15.0
    assert Run({}).tell(0, "planned", 1.0, **{**PLAN, "encodings": 0})[1] is None


def test_slices_without_the_patient_shorten_what_is_left():
    run = Run(KNOWN)
    run.tell(0, "planned", 1.0, **{**PLAN, "names": 0})
    assert run.tell(0, "encoding", 0.0, slice=0, slices=4)[1] == 8.0


def test_two_windows_are_two_encodings():
    run = Run(KNOWN)
    assert run.tell(0, "planned", 1.0, **{**PLAN, "encodings": 2, "names": 0})[1] == 40.0
    run.tell(0, "encoding", 0.0, slice=0, slices=10)
    assert run.tell(20.0, "encoding", 0.5, slice=10, slices=10)[1] == 20.0


@given(
    st.dictionaries(st.sampled_from(["planned", "encoding", "segmenting"]), st.floats(1e-6, 100)),
    st.lists(
        st.tuples(
            st.floats(0, 50),
            st.sampled_from(["loading", "encoding", "scoring", "segmenting"]),
            st.floats(0, 1),
            st.integers(1, 400),
        ),
        max_size=30,
    ),
    st.integers(0, 2),
)
def test_the_fraction_never_falls_and_never_says_that_it_is_over(remembered, steps, encodings):
    run = Run(remembered, 50.0)
    fractions = [run.tell(1, "planned", 1.0, encodings=encodings, slices=20, names=2)[0]]
    for after, stage, share, slices in steps:
        fraction, left = run.tell(after, stage, share, slice=1, slices=slices, name="liver")
        assert left is None or left >= 0
        fractions.append(fraction)
    assert fractions == sorted(fractions) and fractions[0] >= 0 and fractions[-1] <= 0.99


def test_what_was_measured_is_seconds_a_unit_without_the_first_slices():
    run = Run({}, megavoxels=10.0)
    run.tell(0, "planned", 1.0, **PLAN)
    run.tell(5.0, "encoding", 0.0, slice=0, slices=10)
    run.tell(30.0, "encoding", 0.1, slice=1, slices=10)
    run.tell(18.0, "encoding", 1.0, slice=10, slices=10)
    run.tell(0, "scoring", 0.0, slices=10)
    run.tell(6.0, "segmenting", 1.0, name="liver")
    assert run.forecast.measured() == {"planned": 0.5, "encoding": 2.0, "segmenting": pytest.approx(0.2)}


# Memory


def test_rates_are_remembered_by_setting_and_move_halfway_to_new_ones(tmp_path):
    file = tmp_path / "new folder" / "seconds.json"
    assert remembered_rates(file, "lite on cpu") == {}
    remember_rates(file, "lite on cpu", {"encoding": 2.0})
    remember_rates(file, "lite on cuda", {"encoding": 0.01})
    remember_rates(file, "lite on cpu", {"encoding": 1.0, "segmenting": 0.1})
    assert remembered_rates(file, "lite on cpu") == {"encoding": 1.5, "segmenting": 0.1}
    assert remembered_rates(file, "lite on cuda") == {"encoding": 0.01}
    assert [path.name for path in file.parent.iterdir()] == ["seconds.json"]


def test_rates_of_another_machine_with_the_same_home_folder_are_not_used(tmp_path, monkeypatch):
    file = tmp_path / "seconds.json"
    remember_rates(file, "lite on cpu", {"encoding": 2.0})
    monkeypatch.setattr("platform.node", lambda: "another")
    assert remembered_rates(file, "lite on cpu") == {}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]", b'{"x": 1}', b"null"])
def test_a_damaged_file_is_as_good_as_none_and_is_replaced(tmp_path, content):
    file = tmp_path / "seconds.json"
    file.write_bytes(content)
    assert remembered_rates(file, "lite on cpu") == {}
    remember_rates(file, "lite on cpu", {"encoding": 2.0})
    assert remembered_rates(file, "lite on cpu") == {"encoding": 2.0}


def test_senseless_rates_in_the_file_are_left_out(tmp_path):
    file = tmp_path / "seconds.json"
    remember_rates(file, "lite on cpu", {"encoding": 2.0})
    (key,) = json.loads(file.read_text())
    file.write_text(json.dumps({key: {"encoding": -1, "planned": "long", "segmenting": 0.5, "other": 1}}))
    assert remembered_rates(file, "lite on cpu") == {"segmenting": 0.5}


def test_a_file_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "folder").write_text("a file")
    remember_rates(tmp_path / "folder" / "seconds.json", "lite on cpu", {"encoding": 2.0})
