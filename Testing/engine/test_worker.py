"""The engine's process: real processes, cancelled, killed and left alone, mostly with a stand-in for the models."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "MedZeroSeg"))

from MedZeroSegSlicer import engine_process  # noqa: E402
from MedZeroSegSlicer.engine_process import EngineProcess, cause_of_death  # noqa: E402

from MedZeroSegLib import read_volume, segment  # noqa: E402
from MedZeroSegLib.extent import mask_extent, mask_sha256  # noqa: E402
from MedZeroSegLib.protocol import ERROR_CODES, FINAL_EVENTS, ProtocolError, encode_line  # noqa: E402
from MedZeroSegLib.volume import Volume  # noqa: E402

STAND_IN = Path(__file__).with_name("stand_in_worker.py")
CANCEL_S = 0.3  # within which "cancelled" has to come
PATIENCE_S = 20.0  # that a test has
posix = pytest.mark.skipif(os.name == "nt", reason="signals are POSIX's")


class Engine(EngineProcess):
    """An engine process that remembers what it was told."""

    def __init__(self, folder: Path, *arguments: str, command: list[str] | None = None, **environment: str) -> None:
        self.folder, self.events, self.log = folder, [], []
        command = command or [sys.executable, str(STAND_IN), *arguments]
        super().__init__(command, self.events.append, self.log.append, {**os.environ, **environment})

    def ask(self, *steps: list[Any], names: tuple[str, ...] = ("liver", "spleen")) -> int:
        """Submit a request with these steps."""
        matrix = np.eye(4).tolist()
        volume = {"voxels": str(self.folder / "volume.npy"), "ijk_to_lps": matrix, "dimension": 3, "calibrated": True}
        common = {"preset": "lite", "device": "cpu", "folder": str(self.folder)}
        return self.submit({"cmd": "segment", "volume": volume, "names": list(names), "steps": steps, **common})

    def spin(self, until: Callable[[], bool]) -> None:
        """Poll until something is so."""
        end = time.monotonic() + PATIENCE_S
        while not until():
            self.poll()
            time.sleep(0.002)
            assert time.monotonic() < end, self.events

    def finish(self) -> None:
        """Poll until nothing more is to come."""
        self.spin(lambda: not self.poll())

    def of(self, number: int) -> list[dict[str, Any]]:
        """The events of a request."""
        return [event for event in self.events if event["id"] == number]

    def codes(self, number: int) -> list[str]:
        """Codes of the progress of a request."""
        return [event["code"] for event in self.of(number) if event["event"] == "progress"]

    def end_of(self, number: int) -> dict[str, Any]:
        """The last event of a request; there is one such, and nothing comes after it."""
        events = self.of(number)
        assert [event["event"] in FINAL_EVENTS for event in events] == [False] * (len(events) - 1) + [True], events
        return events[-1]

    def pid(self) -> int:
        """Of the process, which is asked for it."""
        number = self.ask()
        self.finish()
        return self.end_of(number)["pid"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder such as users have."""
    path = tmp_path / "Sättiger 肺 (1) & co"
    path.mkdir()
    return path


@pytest.fixture
def engine(folder: Path) -> Iterator[Engine]:
    engine = Engine(folder)
    yield engine
    engine.close()


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until_gone(pid: int, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_gone(pid):
        assert time.monotonic() < end, f"process {pid} is still there"
        time.sleep(0.01)


# Requests


def test_a_request_is_acknowledged_worked_on_and_finished(engine):
    number = engine.ask(["work", "encoding", 0.05], ["deliver", 0], ["deliver", 1])
    engine.finish()
    assert engine.codes(number) == ["starting", "encoding"]
    segments = [event for event in engine.of(number) if event["event"] == "segment"]
    assert [event["name"] for event in segments] == ["liver", "spleen"]
    assert all(np.load(event["mask"]).shape == (2, 3, 4) for event in segments)
    assert engine.end_of(number)["event"] == "finished"


def test_results_come_while_the_request_still_runs(engine):
    number = engine.ask(["deliver", 0], ["work", "segmenting", 30])
    engine.spin(lambda: any(event["event"] == "segment" for event in engine.of(number)))
    assert engine.busy
    engine.cancel()
    engine.finish()
    assert engine.end_of(number)["event"] == "cancelled"


def test_the_process_stays_for_the_next_request(engine):
    assert not engine.running
    first = engine.pid()
    assert engine.running and not engine.busy
    assert engine.pid() == first


def test_a_newer_request_replaces_the_one_that_waits(engine):
    first, second, third = (engine.ask(["work", "encoding", 0.1]) for _ in range(3))
    engine.finish()
    assert [engine.end_of(number)["event"] for number in (first, second, third)] == [
        "finished",
        "cancelled",
        "finished",
    ]
    assert engine.codes(second) == []


def test_a_wrong_message_is_refused_at_once(engine):
    with pytest.raises(ProtocolError, match="names"):
        engine.submit({"cmd": "segment", "preset": "lite", "device": "cpu", "names": None})
    assert not engine.busy and not engine.running


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0"}], ids=["usual", "C"])
def test_names_and_paths_in_any_script_arrive_whole(folder, environment):
    engine = Engine(folder, **environment)
    names = ("Vorhof (Ö)", "左手指", "lung \N{LUNGS}", 'a "quoted"\nname')
    number = engine.ask(["tell"], ["deliver", 1], names=names)
    engine.finish()
    told, segment, end = (event for event in engine.of(number) if event["event"] != "progress")
    assert tuple(told["got"]["names"]) == names and told["got"]["folder"] == str(folder)
    assert segment["name"] == "左手指" and Path(segment["mask"]).parent == folder and Path(segment["mask"]).is_file()
    assert end["event"] == "finished"
    engine.close()


def test_the_process_is_told_to_use_neither_network_nor_telemetry(engine):
    number = engine.ask(["tell"])
    engine.finish()
    (told,) = (event for event in engine.of(number) if event["event"] == "result")
    for key in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "PYTHONUTF8"):
        assert told["environment"][key] == "1"


def test_progress_is_thinned_out(engine):
    number = engine.ask(["many", 3000])
    engine.finish()
    assert 1 <= engine.codes(number).count("encoding") <= 20


def test_a_callback_that_lets_the_window_live_gets_no_event_twice_or_out_of_order(folder):
    order: list[int] = []

    def on_event(event: dict[str, Any]) -> None:
        engine.poll()
        order.append(event["index"] if event["event"] == "segment" else -1)

    engine = Engine(folder)
    engine._on_event = on_event
    engine.ask(["deliver", 0], ["deliver", 1])
    engine.finish()
    assert [index for index in order if index >= 0] == [0, 1] and order[-1] == -1
    engine.close()


# Cancel


@pytest.mark.parametrize(
    ("stage", "steps"),
    [
        ("new", [["work", "encoding", 30]]),
        ("starting", [["native", 0.8], ["work", "encoding", 30]]),
        ("native", [["native", 0.8], ["deliver", 0]]),
        ("encoding", [["work", "encoding", 30]]),
        ("segment", [["deliver", 0], ["native", 0.8], ["deliver", 1]]),
    ],
)
def test_cancel_is_answered_at_once_at_every_stage_and_the_models_stay(engine, folder, stage, steps):
    pid = engine.pid()
    number = engine.ask(*steps)
    engine.spin(lambda: stage == "new" or stage in [*engine.codes(number), *(e["event"] for e in engine.of(number))])
    time.sleep(0.05 if stage == "segment" else 0)
    engine.cancel()
    asked = time.monotonic()
    engine.spin(lambda: not engine.busy)
    assert time.monotonic() - asked < CANCEL_S
    assert engine.end_of(number)["event"] == "cancelled"
    following = engine.ask(["deliver", 1])
    engine.spin(lambda: "starting" in engine.codes(following))
    assert time.monotonic() - asked < CANCEL_S + 0.2  # acknowledged, though the native call still runs
    engine.finish()
    assert engine.end_of(following)["event"] == "finished"
    assert engine.end_of(number)["event"] == "cancelled"  # and nothing came after it
    assert engine.pid() == pid
    assert sorted(file.name for file in folder.iterdir()) == (["0.npy", "1.npy"] if stage == "segment" else ["1.npy"])


def test_cancel_takes_what_waits_along(engine):
    running, waiting = engine.ask(["work", "encoding", 30]), engine.ask(["deliver", 0])
    engine.cancel()
    engine.finish()
    assert [engine.end_of(number)["event"] for number in (running, waiting)] == ["cancelled", "cancelled"]


def test_cancel_of_nothing_does_nothing(engine):
    engine.cancel()
    assert not engine.poll() and engine.events == []
    pid = engine.pid()
    engine.cancel()
    assert not engine.poll() and engine.pid() == pid


@posix
def test_a_process_that_does_not_come_to_its_end_is_killed_with_its_children(engine, monkeypatch):
    monkeypatch.setattr(engine_process, "GRACE_S", 0.5)
    pid = engine.pid()
    number = engine.ask(["child"], ["native", 60])
    engine.spin(lambda: "native" in engine.codes(number))
    (child,) = (int(event["line"]) for event in engine.of(number) if event["event"] == "result")
    engine.cancel()
    following = engine.ask(["deliver", 0])
    engine.finish()
    assert (engine.end_of(number)["event"], engine.end_of(following)["event"]) == ("cancelled", "finished")
    wait_until_gone(pid, 1)
    wait_until_gone(child, 1)
    assert engine.pid() != pid


# Faults


@pytest.mark.parametrize(
    ("kind", "text", "code", "sentence"),
    [
        ("input", "'x.nii' is empty; copy it again.", "input", "'x.nii' is empty; copy it again."),
        ("installation", "Weights are missing; fetch them.", "installation", "Weights are missing; fetch them."),
        ("shortage", "Too large; crop it.", "memory", "Too large; crop it."),
        ("memory", "", "memory", "The memory ran out: close other programs, crop the image or ask for fewer names."),
        ("value", "Patient Doe", "internal", "The engine failed inside (ValueError)"),
        ("exit", "1", "internal", "The engine failed inside (SystemExit)"),
    ],
)
def test_what_goes_wrong_is_a_code_and_a_sentence_and_the_process_stays(engine, kind, text, code, sentence):
    pid = engine.pid()
    number = engine.ask(["deliver", 0], ["throw", kind, text])
    engine.finish()
    end = engine.end_of(number)
    assert (end["event"], end["code"]) == ("error", code) and end["message"].startswith(sentence)
    assert "Doe" not in end["message"]
    assert any("Traceback" in line for line in engine.log) == (code == "internal")
    assert engine.pid() == pid


@posix
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SIGKILL", "memory ran out: close other programs"),
        ("SIGTERM", "try again"),
        ("SIGABRT", "fault inside a library"),
        ("SIGSEGV", "fault inside a library"),
        ("SIGILL", "processor lacks an instruction"),
    ],
)
def test_a_process_that_is_killed_or_crashes_fails_its_request_only(engine, folder, name, words):
    pid = engine.pid()
    number = engine.ask(["deliver", 0], ["end", name])
    waiting = engine.ask(["deliver", 1])
    engine.finish()
    assert [event["name"] for event in engine.of(number) if event["event"] == "segment"] == ["liver"]
    end = engine.end_of(number)
    assert (end["event"], end["code"]) == ("error", "worker-died")
    assert name in end["message"] and words in end["message"]
    assert engine.end_of(waiting)["event"] == "finished"
    assert engine.pid() != pid
    assert sorted(file.name for file in folder.iterdir()) == ["0.npy", "1.npy"]


@posix
def test_a_process_that_is_killed_from_outside_in_native_code_is_noticed(engine):
    pid = engine.pid()
    number = engine.ask(["native", 60])
    engine.spin(lambda: "native" in engine.codes(number))
    os.kill(pid, signal.SIGKILL)
    engine.finish()
    assert engine.end_of(number)["code"] == "worker-died"


def test_a_process_that_leaves_without_a_word_fails_its_request(engine):
    number = engine.ask(["end", "3"])
    engine.finish()
    end = engine.end_of(number)
    assert end["code"] == "worker-died" and "exit code 3" in end["message"]


@posix
def test_a_process_that_died_while_idle_is_replaced_without_a_word(engine):
    pid = engine.pid()
    os.kill(pid, signal.SIGKILL)
    wait_until_gone(pid, 2)
    assert engine.pid() != pid
    assert all(event["event"] != "error" for event in engine.events)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/no/such/python", "worker.py"], "No such file"),
        ([sys.executable, "-c", "import no_such_module"], "No module named 'no_such_module'"),
        ([sys.executable, "-c", "raise SystemExit(7)"], "exit code 7"),
    ],
)
def test_a_process_that_cannot_start_is_a_matter_of_installation(folder, command, reason):
    engine = Engine(folder, command=command)
    number, waiting = engine.ask(), engine.ask()
    engine.finish()
    for end in (engine.end_of(number), engine.end_of(waiting)):
        assert (end["event"], end["code"]) == ("error", "installation")
        assert reason in end["message"] and "set up the module again" in end["message"]


@pytest.mark.parametrize(
    ("returncode", "has_answered", "code", "words"),
    [
        (-9, True, "worker-died", "SIGKILL.*memory"),
        (128 + 9, True, "worker-died", "SIGKILL.*memory"),  # through a launcher
        (-11, False, "worker-died", "SIGSEGV.*library"),
        (0xC0000005, True, "worker-died", "access violation.*library"),
        (0xC0000005 - 2**32, True, "worker-died", "access violation.*library"),
        (0xC0000017, True, "worker-died", "out of memory.*crop the image"),
        (0xC000001D, False, "worker-died", "illegal instruction.*set up"),
        (1, False, "installation", "last words.*set up"),
        (1, True, "worker-died", "exit code 1"),
        (0, True, "worker-died", "exit code 0"),
    ],
)
@posix
def test_the_cause_of_death_is_known_by_signal_or_windows_code(returncode, has_answered, code, words):
    import re

    found, sentence = cause_of_death(returncode, has_answered, "last words")
    assert found == code in ERROR_CODES and re.search(words, sentence) and sentence.endswith(".")


def test_what_libraries_print_goes_to_the_log(engine):
    number = engine.ask(["talk"], ["deliver", 0])
    engine.finish()
    assert engine.end_of(number)["event"] == "finished"
    for line in ("printed", "written to the descriptor", "printed by a child", '{"id": 1, "event": "finished"}'):
        assert line in engine.log


def test_garbage_on_stdin_is_left_out(folder):
    process = subprocess.Popen([sys.executable, STAND_IN], stdin=-1, stdout=-1, stderr=-1)
    garbage = [
        b"hello",
        b"",
        b"[1, 2]",
        b"\xff\xfe\x00",
        b"{" * 5000,
        b'{"cmd": "segment"}',
        b'{"id": "x"}',
        b'{"id": 3}',
    ]
    requests = [{"id": 4, "cmd": "dance"}, {"id": 5, "cmd": "segment", "steps": []}, {"cmd": "cancel"}, {"cmd": "exit"}]
    out, err = process.communicate(b"\n".join(garbage) + b"\n" + b"".join(map(encode_line, requests[:2])), timeout=20)
    events = [json.loads(line) for line in out.splitlines()]
    assert err.count(b"no message") == 7 and process.returncode == 0
    assert {event["id"] for event in events} <= {3, 4, 5}
    assert all(event["code"] in ("starting", "internal") for event in events if event["id"] in (3, 4))


# Life and death


def test_an_idle_process_leaves_and_the_next_request_starts_another(folder):
    engine = Engine(folder, "0.2")
    pid = engine.pid()
    wait_until_gone(pid, 3)
    engine.spin(lambda: not engine.running)
    assert engine.pid() != pid
    engine.close()


def test_a_request_that_meets_a_leaving_process_is_not_lost(folder):
    engine = Engine(folder, "0.15")
    for pause in (0.13, 0.145, 0.15, 0.155, 0.16):
        number = engine.ask(["work", "encoding", 0.01])
        engine.finish()
        assert engine.end_of(number)["event"] == "finished"
        time.sleep(pause)
    engine.close()


@pytest.mark.parametrize("steps", [[], [["native", 60]]], ids=["idle", "in native code"])
def test_close_ends_the_process_at_once_and_a_later_request_starts_another(engine, steps):
    pid = engine.pid()
    number = engine.ask(*steps)
    engine.spin(lambda: "native" in engine.codes(number) if steps else not engine.poll())
    started = time.monotonic()
    engine.close()
    assert time.monotonic() - started < 1 and is_gone(pid) and not engine.running
    engine.finish()
    assert engine.end_of(number)["event"] == ("cancelled" if steps else "finished")
    assert engine.pid() != pid


PARENT = """
import sys, time
sys.path[:0] = sys.argv[1:3]
from test_worker import Engine
from pathlib import Path
engine = Engine(Path(sys.argv[3]))
pid = engine.pid()
if sys.argv[4] == "busy":
    number = engine.ask(["native", 60])
    engine.spin(lambda: "native" in engine.codes(number))
print(pid, flush=True)
time.sleep(60)
"""


@posix
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_no_process_is_left_when_the_parent_is_killed(folder, state):
    arguments = [str(ROOT), str(Path(__file__).parent), str(folder), state]
    parent = subprocess.Popen([sys.executable, "-c", PARENT, *arguments], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert not is_gone(pid)
    parent.kill()
    parent.wait()
    wait_until_gone(pid, 2)


# With the models


RADIOGRAPH = "RG1_UNCR.dcm"  # of the package pydicom-data


class RealEngine(Engine):
    """The engine with its models."""

    def __init__(self, folder: Path) -> None:
        worker = [sys.executable, str(ROOT / "MedZeroSegLib" / "worker.py")]
        super().__init__(folder, command=worker, XDG_STATE_HOME=str(folder))

    def segment(self, volume: Volume, *names: str) -> int:
        """Submit a real request."""
        file = self.folder / f"{volume.fingerprint[:8]}.npy"
        np.save(file, volume.voxels)
        entry = {
            "voxels": str(file),
            "ijk_to_lps": volume.ijk_to_lps.tolist(),
            "modality": volume.modality,
            "modality_source": volume.modality_source,
            "dimension": volume.dimension,
            "calibrated": volume.calibrated,
        }
        common = {"preset": "lite", "device": "cpu", "folder": str(self.folder)}
        return self.submit({"cmd": "segment", "volume": entry, "names": list(names), **common})

    def masks(self, number: int, volume: Volume) -> dict[str, np.ndarray]:
        """The masks that came, put back on the volume's grid."""
        masks = {}
        for event in self.of(number):
            if event["event"] == "segment":
                masks[event["typed"]] = np.zeros(volume.shape, bool)
                if event["found"]:
                    i0, i1, j0, j1, k0, k1 = event["box"]
                    inside = np.load(event["mask"])
                    assert inside.dtype == bool and mask_extent(inside) == (0, i1 - i0, 0, j1 - j0, 0, k1 - k0)
                    masks[event["typed"]][k0 : k1 + 1, j0 : j1 + 1, i0 : i1 + 1] = inside
        return masks


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealEngine]:
    engine = RealEngine(tmp_path_factory.mktemp("Sättiger 肺 (1) & co"))
    yield engine
    engine.close()


def small_ct() -> Volume:
    """Three slices of an oval body with two bright ovals, in HU with noise."""
    k, j, i = np.indices((3, 96, 112))
    voxels = np.random.default_rng(0).normal(0, 10, k.shape) - 1000
    voxels[((i - 56) / 50) ** 2 + ((j - 48) / 42) ** 2 < 1] += 1040
    voxels[((i - 32) / 18) ** 2 + ((j - 45) / 15) ** 2 < 1] += 70
    voxels[((i - 84) / 10) ** 2 + ((j - 52) / 14) ** 2 < 1] += 110
    return Volume(voxels.astype(np.int16), np.diag([3.1, 2.9, 6.0, 1.0]), "CT", "dicom")


def test_models_give_the_masks_of_the_command_line_and_encode_a_volume_once(real):
    from pydicom.data import get_testdata_file

    volume = read_volume(get_testdata_file(RADIOGRAPH, download=False))
    first = real.segment(volume, "left lung")
    second = real.segment(volume, "right lung", "hippocampus", "lungs")  # waits for the first
    real.finish()
    assert "encoding" in real.codes(first)
    assert {"starting", "segmenting"} <= set(real.codes(second)) and "encoding" not in real.codes(second)
    masks = real.masks(first, volume) | real.masks(second, volume)
    expected = segment(volume, ["left lung", "right lung", "hippocampus", "lungs"], device="cpu")
    assert masks.keys() == {item.typed for item in expected.segments}
    events = {event["typed"]: event for event in real.events if event["event"] == "segment"}
    for item in expected.segments:
        event, extent = events[item.typed], mask_extent(item.mask)
        assert np.array_equal(masks[item.typed], item.mask), item.typed
        assert (event["found"], event["score"], event["name"]) == (item.found, item.score, item.name)
        assert event["provenance"]["mask_sha256"] == mask_sha256(
            item.mask[extent[4] : extent[5] + 1, extent[2] : extent[3] + 1, extent[0] : extent[1] + 1], extent
        )
        assert event["volume_ml"] is None and tuple(event["color"]) == item.color
    assert masks["left lung"].any() and not masks["hippocampus"].any()
    end = real.end_of(second)
    assert end["event"] == "finished" and end["weights"] == list(expected.weights) and end["device"] == "cpu"


def test_a_run_with_models_is_cancelled_between_slices_and_the_next_is_whole(real):
    volume = small_ct()
    number = real.segment(volume, "liver")
    real.spin(lambda: any((event.get("values") or {}).get("slice", 0) >= 1 for event in real.of(number)))
    pid = real._process._child.pid
    real.cancel()
    asked = time.monotonic()
    real.spin(lambda: not real.busy)
    assert time.monotonic() - asked < CANCEL_S and real.end_of(number)["event"] == "cancelled"
    again = real.segment(volume, "liver", "aorta")
    real.finish()
    assert real.end_of(again)["event"] == "finished" and real._process._child.pid == pid
    fractions = [event["fraction"] for event in real.of(again) if event["event"] == "progress"]
    assert fractions == sorted(fractions)
    assert any(event.get("seconds_left") for event in real.of(again))


def test_check_answers_with_one_plain_line_and_forget_frees_the_models(real):
    number = real.submit({"cmd": "check", "preset": "lite", "device": "cpu", "weights_folder": None})
    real.finish()
    (result,) = (event for event in real.of(number) if event["event"] == "result")
    assert result["line"].startswith("Ready, CPU only: ") and result["line"].endswith(" for ten slices.")
    assert real.end_of(number)["event"] == "finished"
    number = real.submit({"cmd": "forget"})
    real.finish()
    assert real.end_of(number)["event"] == "finished"


@pytest.mark.parametrize(
    ("preset", "device", "code", "words"),
    [
        ("heavy", "cpu", "input", "heavy"),
        ("lite", "toaster", "input", "toaster"),
        ("lite", "mps", "installation", "cpu"),
    ],
)
def test_what_cannot_be_had_is_said_in_a_sentence(real, preset, device, code, words):
    number = real.submit({"cmd": "check", "preset": preset, "device": device, "weights_folder": None})
    real.finish()
    end = real.end_of(number)
    assert (end["event"], end["code"]) == ("error", code) and words in end["message"]
