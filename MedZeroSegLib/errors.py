"""The errors whose text is the sentence that the user reads; each knows its exit status and its code."""

from __future__ import annotations


class MedZeroSegError(Exception):
    """Base of the errors that a user can act on; the text is one sentence with the remedy."""

    exit_code: int = 3
    code: str = "installation"  # in messages to the Slicer module


class InputError(MedZeroSegError):
    """The input file or the request is wrong."""

    exit_code = 2
    code = "input"


class SessionLost(InputError):
    """The correction that a request is about isn't known any more; it has to be opened again with the mask as it is."""

    code = "session"


class InstallationError(MedZeroSegError):
    """The machine or the installation is at fault: weights, device, memory, a missing package."""


class MemoryShortage(InstallationError):
    """The machine, or its graphics card, has too little memory for the run."""

    code = "memory"


MEMORY_RAN_OUT = "The memory ran out: close other programs, crop the image or ask for fewer names."
