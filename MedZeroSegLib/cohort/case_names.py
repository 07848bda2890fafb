"""Names of cases: fit for a folder on every system, and each the only one of its kind."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence

LONGEST_BYTES = 100  # of a name in UTF-8; file systems allow 255 with what is put behind it
FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]+')
RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)  # names of devices on Windows
UNNAMED = "case"


def safe_name(text: str) -> str:
    """A name for a folder that says what ``text`` says: composed Unicode, no separators, at most ``LONGEST_BYTES``."""
    whole = "".join(character for character in text if unicodedata.category(character) not in ("Cs", "Cf"))
    name = FORBIDDEN.sub("-", unicodedata.normalize("NFC", whole)).strip(" .-") or UNNAMED
    if RESERVED.match(name):
        name = f"{UNNAMED}-{name}"
    if len(name.encode()) <= LONGEST_BYTES:
        return name
    mark = hashlib.sha256(name.encode()).hexdigest()[:8]
    shortened = name.encode()[: LONGEST_BYTES - len(mark) - 1].decode(errors="ignore")
    return f"{shortened}-{mark}"


def distinct_names(wanted: Sequence[str]) -> tuple[list[str], list[str]]:
    """Safe names, each the only one of its kind also where letters' case doesn't count, and the doubled ones.

    Of equal names the first stays, the others get "-2", "-3" in the given order.
    """
    taken: set[str] = set()
    names, doubled = [], []
    for text in wanted:
        name = first = safe_name(text)
        number = 1
        while _folded(name) in taken:
            number += 1
            name = f"{first}-{number}"
        if name != first and first not in doubled:
            doubled.append(first)
        taken.add(_folded(name))
        names.append(name)
    return names, doubled


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name.casefold())
