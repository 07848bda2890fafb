"""The image in Slicer's Sample Data module, with a stand-in of that module's call as Slicer 5.12 has it."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from pathlib import Path

import pytest
from MedZeroSegSlicer.sample_data import register_sample_data


@pytest.fixture
def registered(monkeypatch):
    """What the Sample Data module was told."""
    told = []

    class SampleDataLogic:
        @staticmethod
        def registerCustomSampleDataSource(
            category="Custom", sampleName=None, uris=None, fileNames=None, nodeNames=None, customDownloader=None,
            thumbnailFileName=None, loadFileType="VolumeFile", loadFiles=None, loadFileProperties=None, checksums=None,
        ):  # fmt: skip
            told.append(dict(locals()))

    monkeypatch.setitem(sys.modules, "SampleData", types.SimpleNamespace(SampleDataLogic=SampleDataLogic))
    return told


def test_radiograph_is_registered_when_slicer_has_started(module, registered):
    slicer = pytest.importorskip("slicer")
    module.MedZeroSeg(types.SimpleNamespace())
    assert registered == [], "not while Slicer is still starting"
    slicer.app.emit("startupCompleted()")
    (source,) = registered
    assert source["category"] == "MedZeroSeg" and source["loadFileType"] == "VolumeFile"
    assert Path(source["thumbnailFileName"]).read_bytes().startswith(b"\x89PNG")


def test_checksum_is_that_of_the_file_that_pydicom_data_ships(registered):
    from pydicom.data import get_testdata_file

    register_sample_data()
    (source,) = registered
    path = get_testdata_file(source["fileNames"], download=False)
    assert source["checksums"] == f"SHA256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}"


def test_address_is_the_one_that_pydicom_states(registered):
    import pydicom

    register_sample_data()
    urls = json.loads((Path(pydicom.__file__).parent / "data" / "urls.json").read_text(encoding="utf-8"))
    assert registered[0]["uris"] == urls[registered[0]["fileNames"]]
    assert registered[0]["uris"].startswith("https://")


def test_slicer_without_sample_data_is_no_fault(monkeypatch):
    monkeypatch.setitem(sys.modules, "SampleData", None)
    register_sample_data()
