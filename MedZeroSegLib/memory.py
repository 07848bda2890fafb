"""Memory that a run needs and memory that is free: a run that can't fit is refused before it starts, and one that runs
out of memory ends with a sentence.

Importable without torch, whose own libraries don't fit into a small address space.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from MedZeroSegLib.errors import MEMORY_RAN_OUT, MemoryShortage
from MedZeroSegLib.volume import Volume

# Measured peaks of the preset `lite` on a CPU: a radiograph 2.0 GB, 512 × 512 × 100 voxels with three names 2.6 GB,
# 512 × 512 × 1,000 with ten names 3.0 GB.
MODELS_BYTES = 2_000_000_000  # libraries, weights, one slab of slices
LOADED_BYTES = 1_200_000_000  # of these, what a process with loaded models holds already
VOXEL_BYTES = 3  # body, and work copies of one mask
MASK_BYTES = 0.3  # of a name's mask, whose pages take memory where something is drawn; ten organs of a trunk: less
SLICE_BYTES, SLICES_KEPT = 4_200_000, 128  # embeddings kept in memory; more go to a temporary file
BASE_MODELS_BYTES, BASE_SLICE_BYTES = 5_000_000_000, 10_500_000  # the same of the preset `base` with SAM ViT-B


def require_memory(volume: Volume, names: int, loaded: bool = False, preset: str = "lite") -> None:
    """Raises MemoryShortage where segmenting ``names`` structures of the volume needs more memory than is free.

    ``loaded`` says that this process has loaded the models before.
    """
    needed, free = needed_bytes(volume.shape, names, preset) - LOADED_BYTES * loaded, free_bytes()
    if needed > free:
        raise MemoryShortage(
            f"Segmenting {names} structure{'s' if names != 1 else ''} in this image needs about {needed / 1e9:.1f} GB "
            f"of memory and {free / 1e9:.1f} GB are free: close other programs, crop the image or ask for fewer names."
        )


def needed_bytes(shape: tuple[int, ...], names: int, preset: str = "lite") -> int:
    """Estimate for a volume of ``shape`` [k, j, i]; the voxels themselves are in memory already."""
    voxels = shape[0] * shape[1] * shape[2]
    is_base = preset.partition("/")[0] == "base"
    models, kept = (BASE_MODELS_BYTES, BASE_SLICE_BYTES) if is_base else (MODELS_BYTES, SLICE_BYTES)
    return models + round(voxels * (VOXEL_BYTES + MASK_BYTES * names)) + kept * min(max(shape), SLICES_KEPT)


def free_bytes() -> int:
    """Memory that this process may still take, within the limit of its address space where one is set."""
    free = int(psutil.virtual_memory().available)
    if sys.platform == "win32":
        return free
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return free
    return min(free, max(0, limit - psutil.Process().memory_info().vms))


@contextmanager
def telling_shortage() -> Iterator[None]:
    """Turn what libraries raise when memory runs out into MemoryShortage with the sentence for the user."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if not ran_out_of_memory(problem):
            raise
        if _is_of_a_card(problem):
            raise MemoryShortage(
                "The graphics card ran out of memory: choose the CPU as device, close other programs that use the "
                "card, or crop the image."
            ) from problem
        raise MemoryShortage(MEMORY_RAN_OUT) from problem


def ran_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception of Python, numpy, PyTorch or OpenVINO says that memory ran out."""
    if isinstance(problem, MemoryError) or _is_of_a_card(problem):
        return True
    text = str(problem).lower()
    return isinstance(problem, RuntimeError) and any(words in text for words in ("cpuallocator", "bad_alloc"))


def _is_of_a_card(problem: BaseException) -> bool:
    """PyTorch's own exception (of CUDA) is known by its name, so that PyTorch needn't be imported."""
    if type(problem).__name__ == "OutOfMemoryError":
        return True
    return isinstance(problem, RuntimeError) and "out of memory" in str(problem).lower()
