"""The errors whose text is the sentence that the user reads; each knows its exit status."""

from __future__ import annotations


class MedZeroSegError(Exception):
    """Base of the errors that a user can act on; the text is one sentence with the remedy."""

    exit_code: int = 3


class InputError(MedZeroSegError):
    """The input file or the request is wrong."""

    exit_code = 2


class InstallationError(MedZeroSegError):
    """The machine or the installation is at fault: weights, device, memory, a missing package."""

    exit_code = 3
