"""Device and memory: the only place that decides where tensors live and how many slices fit at once."""

from __future__ import annotations

from typing import Any

from MedZeroSegLib.errors import InputError, InstallationError

DEVICES = ("auto", "cpu", "cuda", "mps")
CARD_SHARE_MAX = 0.8  # of the memory that is free on a card at the start; the rest is left to the display and to others
SLAB_SLICES = 16  # slices encoded before their maps are computed; bounds memory to the slab


def choose_device(wanted: str = "auto") -> tuple[str, tuple[str, ...]]:
    """The device to use and sentences on devices that were passed over.

    A device counts only after a small computation on it has given the right result: drivers report cards as available
    whose first kernel then fails.

    Raises
    ------
    InputError
        For a name that isn't one of ``DEVICES``.
    InstallationError
        For a device asked for by name that doesn't work here.
    """
    if wanted not in DEVICES:
        raise InputError(f"The device {wanted!r} is unknown; use one of {', '.join(DEVICES)}.")
    passed_over: list[str] = []
    for name in ("cuda", "mps") if wanted == "auto" else (wanted,):
        problem = _problem_of(name)
        if problem is None:
            return name, tuple(passed_over)
        if wanted != "auto":
            raise InstallationError(f"The device {name} can't be used here: {problem}; use --device cpu.")
        if problem != "it isn't available":
            passed_over.append(f"{name} was not used: {problem}.")
    return "cpu", tuple(passed_over)


def slices_at_once(device: str) -> int:
    """Slices that are encoded in one call: on a CPU one, which is no slower and can be stopped after each."""
    return 1 if device == "cpu" else SLAB_SLICES


def limit_memory(device: str) -> None:
    """Keep PyTorch to ``CARD_SHARE_MAX`` of what is free on a card, beside what it holds there already; beyond that it
    says that memory has run out, and fewer slices are taken at once. Not tried on a card yet."""
    import torch

    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        held = torch.cuda.memory_reserved()
        torch.cuda.set_per_process_memory_fraction(min(1.0, (held + CARD_SHARE_MAX * free) / total))


def release_memory(device: str) -> None:
    """Give back the memory of a device that PyTorch holds for later."""
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()


def precision_of(device: str) -> str:
    """In which numbers LiteMedSAM's networks compute on a device: "bfloat16" on NVIDIA's cards, else "float32".

    On CPUs with AVX-512 BF16 instructions bfloat16 takes .6 of the time but moves validation figures by −.013 to +.036,
    while in float32 all CPUs draw the same masks.
    """
    return "bfloat16" if device == "cuda" else "float32"


def cpu_computes_bfloat16() -> bool:
    """Whether bfloat16 is faster than float32 here: AMX or AVX-512 BF16 instructions, or their Arm counterpart."""
    import torch

    capability: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capability.get("amx_bf16") or capability.get("avx512_bf16") or capability.get("bf16"))


def device_line(device: str) -> str:
    """What the device is, for people: "CPU only", or the card's name with its memory."""
    import torch

    if device != "cuda":
        return "CPU only" if device == "cpu" else "Apple GPU"
    card = torch.cuda.get_device_properties(0)
    return f"{card.name}, {card.total_memory / 2**30:.0f} GB"


def _problem_of(name: str) -> str | None:
    import torch

    if name == "cpu":
        return None
    available = torch.cuda.is_available() if name == "cuda" else torch.backends.mps.is_available()
    if not available:
        return "it isn't available"
    try:
        ones = torch.ones(8, 8, device=name)
        correct = bool(((ones @ ones).cpu() == 8).all())
    except (RuntimeError, AssertionError) as failure:
        reason = str(failure).partition("\n")[0] or type(failure).__name__
        return f"its first computation failed ({reason})"
    return None if correct else "its first computation gave a wrong result"
