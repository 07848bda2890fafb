"""What belongs to this user on this machine and not to the scene: kept in Slicer's own settings."""

from __future__ import annotations

LISTS_KEPT = 5  # lists of names used last
SEPARATOR = "\x1e"  # between lists; no name holds it


def preference(name: str) -> str:
    """A preference of this user; "" where none is set."""
    import qt

    return str(qt.QSettings().value(f"MedZeroSeg/{name}") or "")


def set_preference(name: str, value: str) -> None:
    """Keep a preference."""
    import qt

    qt.QSettings().setValue(f"MedZeroSeg/{name}", value)


def recent_lists() -> list[str]:
    """The lists of names that were used last, the newest first."""
    return [text for text in preference("recentLists").split(SEPARATOR) if text]


def remember_list(text: str) -> None:
    """Keep a list of names that was used; Qt waits for the disk meanwhile."""
    before = recent_lists()
    kept = [text.strip(), *(other for other in before if other != text.strip())][:LISTS_KEPT]
    if kept != before:
        set_preference("recentLists", SEPARATOR.join(kept))
