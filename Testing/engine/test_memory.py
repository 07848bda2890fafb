"""What a run needs grows with voxels and names, and a run that can't fit is refused with both figures."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from MedZeroSegLib import memory
from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.memory import free_bytes, needed_bytes, require_memory
from MedZeroSegLib.volume import Volume


def volume(*shape: int) -> Volume:
    return Volume(np.zeros(shape, np.uint8), np.eye(4), "CT", "given")


def test_needs_grow_with_voxels_and_names_and_not_with_slices_beyond_those_kept():
    assert needed_bytes((100, 512, 512), 3) > needed_bytes((100, 512, 512), 1) > needed_bytes((50, 512, 512), 1)
    assert 2.2e9 < needed_bytes((100, 512, 512), 3) < 3.2e9
    thin, thick = needed_bytes((4000, 8, 8), 1), needed_bytes((400, 8, 8), 1)
    assert thin - thick == pytest.approx(3600 * 8 * 8 * 3.3)


def test_many_names_in_a_long_volume_fit_into_a_small_computer():
    assert 3.0e9 < needed_bytes((1000, 512, 512), 10) < 4.5e9  # measured: 3.0 GB


def test_a_run_that_does_not_fit_is_refused_with_needed_and_free_memory(monkeypatch):
    monkeypatch.setattr(memory, "free_bytes", lambda: 1_200_000_000)
    with pytest.raises(InstallationError, match=r"about 2\.\d GB .* 1\.2 GB are free.*crop the image"):
        require_memory(volume(4, 8, 8), 1)
    monkeypatch.setattr(memory, "free_bytes", lambda: 64_000_000_000)
    require_memory(volume(4, 8, 8), 1)


def test_free_memory_is_that_of_this_machine():
    assert 1e8 < free_bytes() < 1e14


@pytest.mark.skipif(sys.platform != "linux", reason="huge pages are Linux's")
def test_a_mask_takes_memory_where_something_was_written_only():
    code = """
import MedZeroSegLib, numpy, psutil
before = psutil.Process().memory_info().rss
mask = numpy.zeros((1000, 512, 512), bool)
mask[300:600, 200:260, 200:260] = True
print(psutil.Process().memory_info().rss - before)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 30_000_000  # 80 MB in pages of 2 MB
