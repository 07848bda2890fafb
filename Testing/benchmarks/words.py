"""Words: does every wording of a structure lead to the same mask, and what does text bring that no name is?

Run     .venv/bin/python Testing/benchmarks/words.py --manifest MANIFEST [--split val] [--limit 3] [--preset lite]
Prints  1. how many wordings (synonym, abbreviation, word order, spelling, other languages) resolve to their structure,
           and how many misspelt ones are offered it first. Equal concepts give equal masks: models read the concept.
        2. one structure asked for in all its wordings on one image: whether all masks are the same, voxel for voxel.
        3. Dice of free texts, which the vocabulary lacks, beside that of the name, on images that show the structure.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from MedZeroSegLib.evaluation.manifest import read_manifest
from MedZeroSegLib.evaluation.metrics import dice_of
from MedZeroSegLib.evaluation.questions import Questionnaire, images_of
from MedZeroSegLib.pipeline import segment
from MedZeroSegLib.queries import resolve
from MedZeroSegLib.vocabulary import Structure, vocabulary, wordings

# Texts that people might type and that are no names: by words of the trade, by place, by looks.
FREE_TEXTS = {
    "liver": ["large hepatic organ", "biggest organ in the right upper belly", "liver tissue in portal venous phase"],
    "spleen": ["splenic tissue on this slice", "organ behind the stomach on the left", "bean shaped organ on the left"],
    "kidney": ["renal tissue with cortex and medulla", "organ that makes urine", "kidneys with contrast medium"],
    "aorta": ["big round artery in front of the spine", "main artery of the body trunk", "aortic lumen with contrast"],
    "stomach": ["stomach filled with fluid", "gastric region of the abdomen", "hollow organ for food"],
    "lung": ["both lungs on this radiograph", "air filled chest organs", "lung parenchyma without the heart"],
    "left ventricle": ["cavity of the left heart", "left chamber that pumps into the aorta", "LV lumen in short axis"],
    "hippocampus": ["hippocampal region", "seahorse shaped part of the temporal lobe", "memory structure of the brain"],
    "vertebrae": ["bony blocks of the lower back", "all vertebral blocks", "lumbar bones on a sagittal slice"],
    "breast tumor": ["dark irregular mass in the breast", "suspicious lump", "hypoechoic breast finding"],
}
SHORTEST_MISSPELT = 6  # letters of a word of which one is left out


def spellings(structure: Structure) -> list[tuple[str, str]]:
    """(sort of wording, text) of everything that has to mean the structure."""
    found = [("name", structure.name), ("upper case", structure.name.upper())]
    found += [("synonym", wording) for wording in structure.synonyms]
    found += [("word order", " ".join(reversed(text.split()))) for text in wordings(structure) if " " in text]
    found += [(language, name) for language, names in structure.names.items() for name in names]
    return list(dict.fromkeys(found))


def misspelt(text: str) -> str | None:
    """The text with a letter of its longest word left out; None where it has no long word."""
    longest = max(text.split(), key=len)
    if len(longest) < SHORTEST_MISSPELT:
        return None
    place = len(longest) // 2
    return text.replace(longest, longest[:place] + longest[place + 1 :], 1)


def resolving() -> None:
    """Part 1."""
    right: dict[str, list[bool]] = defaultdict(list)
    fewest, wrong = min(len(spellings(structure)) for structure in vocabulary().values()), []
    for structure in vocabulary().values():
        for sort, text in spellings(structure):
            query = resolve([text])[0]
            right[sort].append(query.structure is structure)
            if query.structure is not structure:
                wrong.append(f"{text} -> {query.name}")
        if text := misspelt(structure.name):
            query = resolve([text])[0]
            offered = query.suggestions[:1] == (structure.name,) or query.structure is structure
            right["misspelt, offered first"].append(offered)
    print(f"{len(vocabulary())} structures, at least {fewest} wordings each")
    for sort, hits in right.items():
        print(f"  {sort:24} {sum(hits)} of {len(hits)}")
    print(f"  not resolved: {', '.join(wrong) or 'none'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True)
    parser.add_argument("--split", default="val")
    parser.add_argument("--limit", type=int, default=3, help="images of each source")
    parser.add_argument("--preset", default="lite")
    arguments = parser.parse_args()
    resolving()
    questionnaire = Questionnaire(read_manifest(arguments.manifest))
    images = images_of(read_manifest(arguments.manifest, arguments.split), arguments.limit)
    dices: dict[str, dict[str, list[tuple[bool, float]]]] = defaultdict(lambda: defaultdict(list))
    shown = False
    for image in images:
        volume, labels = image[0].read()
        for question in questionnaire.of(image):
            structure = resolve([question.name])[0].structure
            if question.kind == "far" or structure is None or question.name not in FREE_TEXTS:
                continue
            truth = question.reference(question.case.read_labels(volume) if question.case is not image[0] else labels)
            if not truth.any():
                continue
            if not shown:
                shown = True
                texts = [text for _, text in spellings(structure)]
                masks = [one.mask for one in segment(volume, texts, arguments.preset).segments]
                same = sum(np.array_equal(mask, masks[0]) for mask in masks)
                print(f"{structure.name} on {image[0].case_id}: {same} of {len(masks)} wordings give the same mask")
            asked = (question.name, *FREE_TEXTS[question.name])
            for text, one in zip(asked, segment(volume, asked, arguments.preset).segments, strict=True):
                dices[question.name][text].append((one.found, dice_of(one.mask, truth)))
    print(f"{'text':46} {'images':>6} {'found':>6} {'Dice':>6}")
    for name, by_text in dices.items():
        for text, results in by_text.items():
            found, dice = np.array(results).mean(0)
            print(f"{text if text == name else '  ' + text:46} {len(results):6} {found:6.0%} {dice:6.3f}")


if __name__ == "__main__":
    main()
