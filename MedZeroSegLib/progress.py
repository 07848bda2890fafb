"""How a run tells where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called often, with a stage's name, its share done (0..1) and what it is at; may raise to end the run."""

    def __call__(self, stage: str, share: float, /, **values: str | int) -> None: ...


def tell_nobody(_stage: str, _share: float, /, **_values: str | int) -> None:
    """Progress that nobody wants to know."""


def part_of(tell: Progress, number: int, count: int, name: str | None = None) -> Progress:
    """Progress of part ``number`` of ``count`` equal parts as progress of the whole; ``name`` is that of the part."""
    common: dict[str, str | int] = {} if name is None else {"name": name}

    def tell_part(stage: str, share: float, /, **values: str | int) -> None:
        tell(stage, (number + share) / count, **common, **values)

    return tell_part
