"""The review of typed names, made anew at every key: what each was understood as, and what else it may have meant.
Plain text in, plain rows out; the list of structures is `MedZeroSegLib.vocabulary`'s."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from MedZeroSegLib.errors import InputError
from MedZeroSegLib.field_of_view import BODY_PART, ENDS_AT_LUNGS, HEAD_OR_LIMB, NO_LUNGS, TOO_WIDE, FieldOfView
from MedZeroSegLib.queries import PART, SEPARATORS, SIDE_WORDS, Query, resolve, split_names
from MedZeroSegLib.vocabulary import Structure, vocabulary, wordings

from .translation import _

UNDERSTOOD, DOUBTFUL, ASKED, UNKNOWN = "✓", "!", "?", "✗"
EVERYTHING = FieldOfView()  # what an image may show of which nothing is known
OFFERED_MOST = 4  # names offered for one that isn't known
SHORTEST_BEGINNING = 3  # letters; fewer begin too many names


@dataclass(frozen=True)
class ReviewRow:
    """One line of the review list.

    Attributes
    ----------
    mark : one of the marks above; "" for a further offer to the line before.
    text : the line as shown.
    tooltip : the remarks in full.
    typed, replacement : a click puts ``replacement`` in place of ``typed``; None where nothing is offered.
    """

    mark: str
    text: str
    tooltip: str
    typed: str
    replacement: str | None = None


@dataclass(frozen=True)
class Review:
    """All lines, all names as typed, those of them that nobody knows, and what is wrong with the text as a whole."""

    rows: tuple[ReviewRow, ...] = ()
    names: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()
    problem: str = ""

    @property
    def known(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name not in self.unknown)


def name_lists() -> dict[str, tuple[str, ...]]:
    """Lists of names to start from, by title; each name is one that the preset `lite` was trained on."""
    return {
        _("Abdomen (CT)"): (
            "liver", "spleen", "right kidney", "left kidney", "pancreas", "gallbladder", "stomach", "aorta",
            "inferior vena cava",
        ),
        _("Chest (X-ray)"): ("right lung", "left lung", "heart and mediastinum"),
        _("Chest (CT)"): ("right lung", "left lung", "aorta", "pulmonary artery", "esophagus", "spinal cord"),
        _("Heart (MR)"): (
            "left ventricle", "left ventricular myocardium", "right ventricle", "left atrium", "right atrium",
        ),
        _("Lumbar spine (MR)"): ("vertebrae", "intervertebral discs", "spinal canal"),
        _("Hippocampus (MR)"): ("right hippocampus", "left hippocampus"),
        _("Pelvis (CT)"): ("urinary bladder", "prostate", "right femur", "left femur", "sacrum"),
    }  # fmt: skip


@lru_cache(64)
def review_names(text: str, modality: str | None = None, shown: FieldOfView = EVERYTHING) -> Review:
    """Review a list of names as typed.

    Parameters
    ----------
    text : names between separators or line ends, see ``queries.split_names``.
    modality : member of ``volume.MODALITIES`` that the image is understood as; None or "other" where nobody knows.
    shown : which parts of the body the image cannot show.
    """
    if not split_names(text):
        return Review()
    try:
        queries = resolve(text)
    except InputError as error:
        return Review(problem=str(error))
    return Review(
        rows=tuple(row for query in queries for row in _rows(query, modality, shown)),
        names=tuple(query.typed for query in queries),
        unknown=tuple(query.typed for query in queries if not query.structure),
    )


def _rows(query: Query, modality: str | None, shown: FieldOfView) -> Iterator[ReviewRow]:
    if query.structure:
        yield _row_of_known(query, query.structure, modality, shown)
        return
    offered = tuple(dict.fromkeys((*query.suggestions, *completions(query.typed))))[:OFFERED_MOST]
    tooltip = "\n".join(query.warnings)
    if not offered:
        text = _("{typed} – not a known structure").format(typed=query.typed)
        yield ReviewRow(UNKNOWN, f"{UNKNOWN} {text}", tooltip, query.typed)
        return
    text = _("{typed} – did you mean {name}?").format(typed=query.typed, name=offered[0])
    click = _("Click to use “{name}”.")
    remarks = [*query.warnings, click.format(name=offered[0])]
    yield ReviewRow(ASKED, f"{ASKED} {text}", "\n".join(remarks), query.typed, offered[0])
    for name in offered[1:]:
        text = _("or {name}?").format(name=name)
        yield ReviewRow("", f"       {text}", click.format(name=name), query.typed, name)


def _row_of_known(query: Query, structure: Structure, modality: str | None, shown: FieldOfView) -> ReviewRow:
    same = query.typed.casefold() == query.name.casefold()
    text = query.typed if same else _("{typed} → {name}").format(typed=query.typed, name=query.name)
    remarks = list(query.warnings)
    if reason := shown.reason(structure):
        remarks.append(_outside_sentence(reason).format(name=query.name))
        text = _("{name} – outside this scan?").format(name=text)
    elif modality not in (None, "other", *structure.modalities):
        remarks.append(_("{name} is seldom seen in {modality} images.").format(name=query.name, modality=modality))
        text = _("{name} – seldom seen in {modality} images").format(name=text, modality=modality)
    elif remarks:
        text = _("{name} – {remark}").format(name=text, remark=remarks[0])
    mark = DOUBTFUL if remarks else UNDERSTOOD
    return ReviewRow(mark, f"{mark} {text}", "\n".join(remarks), query.typed)


def _outside_sentence(reason: str) -> str:
    """Why a name is taken to lie outside the scan; it may be run all the same."""
    return {
        HEAD_OR_LIMB: _("The scan looks like one of a head, which does not reach to the {name}."),
        TOO_WIDE: _("Every slice is wider than a head, so that the {name} is most likely not in this scan."),
        ENDS_AT_LUNGS: _("The scan ends at the lungs, above the {name}."),
        NO_LUNGS: _("No slice shows lungs, so that the {name} is most likely not in this scan."),
        BODY_PART: _("By what DICOM says of the body part, the {name} is most likely not in this scan."),
    }[reason]


def completions(typed: str) -> tuple[str, ...]:
    """Names that begin with what was typed, or that hold a word that does; a side in front is kept.

    "kidn" gives kidney, "left kidn" left kidney, "left ven" left ventricle. At most ``OFFERED_MOST``, shortest first.
    """
    words = typed.casefold().split()
    sides = [SIDE_WORDS[word] for word in words if word in SIDE_WORDS]
    beginning, rest = " ".join(words), " ".join(word for word in words if word not in SIDE_WORDS)
    found: dict[str, tuple[int, int]] = {}
    for name, paired, folded in _beginnings():
        rank = _rank(folded, beginning)
        if rank is None and paired and len(sides) == 1:
            rank, name = _rank(folded, rest), f"{sides[0]} {name}"
        if rank is not None:
            found.setdefault(name, (rank, len(name)))
    return tuple(sorted(found, key=lambda name: found[name])[:OFFERED_MOST])


@cache
def _beginnings() -> tuple[tuple[str, bool, tuple[str, ...]], ...]:
    """Canonical name, whether it has sides, and all its wordings folded."""
    return tuple(
        (structure.name, structure.side == "paired", tuple(words.casefold() for words in wordings(structure)))
        for structure in vocabulary().values()
    )


def _rank(folded: Sequence[str], beginning: str) -> int | None:
    """0 where the name begins so, 1 where a synonym does, 2 where a word in the name does, else None."""
    if len(beginning) < SHORTEST_BEGINNING:
        return None
    for rank, wording in enumerate(folded):
        if wording.startswith(beginning):
            return min(rank, 1)
    return 2 if f" {beginning}" in folded[0] else None


# Changes to the text


def replace_name(text: str, typed: str, replacement: str) -> str:
    """The text with one name, wherever it stands, replaced; the rest stays as it was typed."""
    spans = [span for span in _spans(text) if span[2].casefold() == typed.casefold()]
    if not spans:  # "kidney, left" is one name of two parts
        names = [replacement if name.casefold() == typed.casefold() else name for name in split_names(text)]
        return _joined(names, text)
    for start, end, _part in reversed(spans):
        text = f"{text[:start]}{replacement}{text[end:]}"
    return text


def insert_names(text: str, names: Sequence[str]) -> str:
    """The text with those of the names that it lacks added at the end, one a line."""
    present = {name.casefold() for name in split_names(text)}
    lacking = [name for name in names if name.casefold() not in present]
    return "\n".join([*([text.rstrip(" \n;,")] if text.strip() else []), *lacking])


def name_at(text: str, position: int) -> str | None:
    """The name in which, or right behind which, a position in the text lies."""
    return next((part for start, end, part in _spans(text) if start <= position <= end), None)


def _spans(text: str) -> Iterator[tuple[int, int, str]]:
    """Start, end and trimmed text of each part between separators, as ``split_names`` finds them."""
    for match in PART.finditer(text):
        part = match.group(match.lastindex or 0)
        start = match.start(match.lastindex or 0) + len(part) - len(part.lstrip())
        if part.strip():
            yield start, start + len(part.strip()), part.strip()


def _joined(names: Sequence[str], like: str) -> str:
    quoted = [f'"{name}"' if any(mark in name for mark in SEPARATORS) else name for name in names]
    return ("\n" if "\n" in like else "; ").join(quoted)
