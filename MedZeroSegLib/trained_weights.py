"""Weights that users train themselves: CLIP models and the dual path on its features, as the preset `base` finds them.

They are looked for by name in the user's weights folder, then in the store; no list knows their hash, so it is recorded
with each result. A safetensors file can't run code when it is opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.weights import WeightsStore, load_state
from MedZeroSegLib.weights_catalogue import sha256_of

if TYPE_CHECKING:
    from MedZeroSegLib.text_image.clip_model import ClipDescription, ClipModel

FINE_TUNED_CLIP, DUAL_PATH = "fine-tuned-clip", "dpfem"  # names of the weights, and of their files without suffix
CONFIG, WORDS, BERT_SIZES = "open_clip_config.json", "vocab.txt", "config.json"
TENSORS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors", "pytorch_model.bin")
NOT_MADE = (
    "There is no '{name}.safetensors' in the weights folder; make it with `medzeroseg train {command}` and give the "
    "folder that it was written to with --weights-folder."
)


def find_trained(store: WeightsStore, name: str) -> Path | None:
    """The file of weights that the user trained, or None."""
    places = [store.root] if store.folder is None else [store.folder, store.root]
    return next((place / f"{name}.safetensors" for place in places if (place / f"{name}.safetensors").is_file()), None)


def locate_clip(store: WeightsStore) -> Path:
    """The fine-tuned CLIP model; raises InstallationError where there is none."""
    found = find_trained(store, FINE_TUNED_CLIP)
    if found is None:
        raise InstallationError(NOT_MADE.format(name=FINE_TUNED_CLIP, command="clip"))
    return found


def trained_record(file: Path) -> dict[str, str]:
    """What a result tells of such weights: name, file, SHA-256, licence."""
    licence = str(read_card(file).get("licence", "not stated"))
    return {"name": file.stem, "file": file.name, "sha256": sha256_of(file), "licence": licence}


def read_card(file: Path) -> dict[str, Any]:
    """What training wrote about the weights into their file.

    Raises
    ------
    InstallationError
        When the file is damaged or wasn't written by `medzeroseg train`.
    """
    return json.loads(_metadata(file)["medzeroseg"])


def clip_of_file(file: Path, device: str = "cpu") -> ClipModel:
    """A CLIP model that `medzeroseg train clip` wrote; raises InstallationError."""
    from MedZeroSegLib.text_image.clip_model import ClipDescription

    metadata = _metadata(file)
    if "open_clip_config" not in metadata:
        raise InstallationError(f"'{file}' holds no CLIP model; give a file that `medzeroseg train clip` wrote.")
    description = ClipDescription(json.loads(metadata["open_clip_config"]), metadata.get("words", ""))
    return _built(description, file, file, device)


def clip_of_folder(folder: Path, device: str = "cpu") -> ClipModel:
    """A CLIP model as open_clip keeps it in a folder: its configuration, its weights, and vocab.txt for a BERT.

    Raises
    ------
    InstallationError
        When a file is missing, damaged or of another architecture.
    """
    from MedZeroSegLib.text_image.clip_model import ClipDescription

    tensors = next((folder / name for name in TENSORS if (folder / name).is_file()), None)
    if tensors is None:
        raise InstallationError(f"'{folder}' holds no weights; put one of {', '.join(TENSORS)} there.")
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        bert = "hf_model_name" in settings["model_cfg"]["text_cfg"]
        words = (folder / WORDS).read_text(encoding="utf-8") if bert else ""
        if bert and (folder / BERT_SIZES).is_file():
            settings["bert_cfg"] = json.loads((folder / BERT_SIZES).read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, TypeError) as problem:
        missing = f"'{Path(problem.filename).name}' is missing" if isinstance(problem, FileNotFoundError) else "damaged"
        raise InstallationError(
            f"'{folder}' is no CLIP model of open_clip ({missing}); it needs {CONFIG}, the weights and, for a BERT "
            f"as text tower, {WORDS}."
        ) from problem
    return _built(description=ClipDescription(settings, words), named=folder, tensors=tensors, device=device)


def _built(description: ClipDescription, named: Path, tensors: Path, device: str) -> ClipModel:
    from MedZeroSegLib.text_image.clip_model import described_clip

    try:
        return described_clip(description, load_state(tensors), device)
    except InstallationError as problem:
        raise InstallationError(
            f"The weights in '{tensors}' aren't those of the architecture that '{named}' describes, or are damaged; "
            "get both from one place."
        ) from problem
    except (KeyError, TypeError, ValueError, RuntimeError, OSError, AttributeError) as problem:
        raise InstallationError(
            f"'{named}' describes no CLIP model with a vision transformer that can be built here "
            f"({type(problem).__name__}); give another model."
        ) from problem


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "pt") as opened:
            metadata = opened.metadata() or {}
        json.loads(metadata["medzeroseg"])
    except (SafetensorError, OSError, KeyError, ValueError) as problem:
        raise InstallationError(
            f"'{file}' is damaged or wasn't written by `medzeroseg train`; train it again or take it away."
        ) from problem
    return metadata
