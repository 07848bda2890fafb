"""Memory that a run needs and memory that is free: a run that can't fit is refused before it starts.

Importable without torch, whose own libraries don't fit into a small address space.
"""

from __future__ import annotations

import sys

import psutil

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.volume import Volume

# Measured peaks of the preset `lite` on a CPU: a radiograph 2.0 GB, 512 × 512 × 100 voxels with three names 2.6 GB.
MODELS_BYTES = 2_000_000_000  # libraries, weights, one slab of slices
VOXEL_BYTES, MASK_BYTES = 3, 3  # grey level, body and work copies of each voxel; the same of each name
SLICE_BYTES, SLICES_KEPT = 4_200_000, 128  # embeddings kept in memory; more go to a temporary file


def require_memory(volume: Volume, names: int) -> None:
    """Raises InstallationError where segmenting ``names`` structures of the volume needs more memory than is free."""
    needed, free = needed_bytes(volume.shape, names), free_bytes()
    if needed > free:
        raise InstallationError(
            f"Segmenting {names} structure{'s' if names != 1 else ''} in this image needs about {needed / 1e9:.1f} GB "
            f"of memory and {free / 1e9:.1f} GB are free: close other programs, crop the image or ask for fewer names."
        )


def needed_bytes(shape: tuple[int, ...], names: int) -> int:
    """Estimate for a volume of ``shape`` [k, j, i]; the voxels themselves are in memory already."""
    voxels = shape[0] * shape[1] * shape[2]
    return MODELS_BYTES + voxels * (VOXEL_BYTES + MASK_BYTES * names) + SLICE_BYTES * min(max(shape), SLICES_KEPT)


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
