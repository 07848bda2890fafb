"""Messages get through whatever is in them, and wrong ones are refused with the name of what is wrong."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from MedZeroSegLib.protocol import (
    EVENTS,
    ProtocolError,
    check_request,
    decode_event,
    decode_line,
    encode_line,
    read_check,
    read_segment,
)

NOT_UTF8 = st.integers(0xDC80, 0xDCFF).map(chr)  # what Python makes of bytes in the name of a file that aren't UTF-8
PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")  # halves of one character, which JSON joins
ANY_TEXT = st.text(st.characters() | NOT_UTF8).filter(lambda text: not PAIR.search(text))
ANY_VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_TEXT, inner, max_size=3),
    max_leaves=8,
)
SEGMENT: dict[str, Any] = {
    "id": 3,
    "cmd": "segment",
    "volume": {
        "voxels": "/tmp/Sättiger 肺 (1)/volume.npy",
        "ijk_to_lps": [[0.0, -0.7, 0, 12.5], [0.7, 0, 0, -3], [0, 0, 5, 100], [0, 0, 0, 1]],
        "modality": "CT",
        "modality_source": "dicom",
        "dimension": 3,
        "calibrated": True,
    },
    "names": ["liver", "左心房"],
    "preset": "lite",
    "device": "auto",
    "weights_folder": None,
    "folder": "/tmp/results",
}


@given(st.dictionaries(ANY_TEXT, ANY_VALUE, max_size=5))
def test_any_message_comes_back_from_its_line(message):
    line = encode_line(message)
    assert line.isascii() and line.endswith(b"\n") and line.count(b"\n") == 1 and b"\r" not in line
    assert decode_line(line) == message


def test_two_halves_of_one_character_come_back_as_the_character():
    assert decode_line(encode_line({"\ud800\udc00": "\udc80"})) == {"\U00010000": "\udc80"}


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_json_lacks_are_refused_where_they_are_sent(number):
    with pytest.raises(ValueError):
        encode_line({"score": number})


@given(st.binary())
def test_any_bytes_are_a_message_or_none(line):
    assert decode_line(line) is None or isinstance(decode_line(line), dict)
    assert decode_event(line) is None or decode_event(line)["event"] in EVENTS


@pytest.mark.parametrize("line", [b"", b"loaded weights", b"7", b"[1, 2]", b"[" * 100_000, b"\xff\xfe{}", b'"text"'])
def test_what_a_library_prints_is_no_message(line):
    assert decode_line(line) is None


@pytest.mark.parametrize(
    "line", [b'{"loss": 0.5}', b'{"id": 1}', b'{"event": "finished"}', b'{"id": "1", "event": "finished"}']
)
def test_json_that_a_library_prints_is_no_event(line):
    assert decode_line(line) is not None and decode_event(line) is None


def test_a_request_arrives_as_it_was_sent():
    request = read_segment(decode_line(encode_line(SEGMENT)) or {})
    assert (request.id, request.preset, request.device, request.weights_folder) == (3, "lite", "auto", None)
    assert request.names == ("liver", "左心房")
    assert str(request.volume.voxels) == SEGMENT["volume"]["voxels"] and str(request.folder) == "/tmp/results"
    assert [list(row) for row in request.volume.ijk_to_lps] == SEGMENT["volume"]["ijk_to_lps"]
    assert (request.volume.dimension, request.volume.calibrated) == (3, True)
    assert str(read_check({**SEGMENT, "weights_folder": "/weights"}).weights_folder) == "/weights"


def test_a_modality_that_nobody_states_is_a_guess():
    message = copy.deepcopy(SEGMENT)
    message["volume"]["modality"] = None
    request = read_segment(message)
    assert (request.volume.modality, request.volume.modality_source) == (None, "guess")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("id", None), ("id", "3"), ("id", True), ("names", "liver"), ("names", ["liver", 3]), ("folder", None),
        ("preset", None), ("device", 0), ("weights_folder", 7), ("volume", None), ("volume.voxels", None),
        ("volume.ijk_to_lps", [[1, 0], [0, 1]]), ("volume.ijk_to_lps", [["a"] * 4] * 4), ("volume.ijk_to_lps", None),
        ("volume.dimension", "3"), ("volume.calibrated", None), ("volume.modality", 1), ("volume.modality_source", 1),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_named(key, value):
    message = copy.deepcopy(SEGMENT)
    *outer, last = key.split(".")
    (message["volume"] if outer else message)[last] = value
    with pytest.raises(ProtocolError, match=last):
        check_request(message)


@pytest.mark.parametrize("command", [None, "dance", "cancel"])
def test_only_requests_are_requests(command):
    with pytest.raises(ProtocolError, match="no request"):
        check_request({**SEGMENT, "cmd": command})
    check_request({"id": 1, "cmd": "forget"})
