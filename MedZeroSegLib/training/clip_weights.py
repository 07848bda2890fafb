"""Which weights of a CLIP model learn, how fast, with adapters or in full, and the file that they are kept in."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from MedZeroSegLib.base_preset import NATIVE, load_clip
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.text_image.clip_model import ClipModel, native_clip
from MedZeroSegLib.trained_weights import FINE_TUNED_CLIP, clip_of_file, clip_of_folder
from MedZeroSegLib.weights import WeightsStore
from MedZeroSegLib.writers import replacing

CATALOGUED = ("biomedclip", "medclip-samv2", *NATIVE, FINE_TUNED_CLIP)
PROJECTIONS = ("visual.head.", "visual.proj", "text.proj.", "text_projection", "text.text_projection")
ENTRANCES = (  # of the image tower, before its blocks, and the texts' word vectors
    "visual.trunk.cls_token", "visual.trunk.pos_embed", "visual.trunk.patch_embed.", "visual.class_embedding",
    "visual.positional_embedding", "visual.conv1.", "visual.ln_pre.", "token_embedding.", "text.token_embedding.",
    "text.transformer.embeddings.word_embeddings.",
)  # fmt: skip
BLOCKS = ("visual.trunk.blocks", "visual.transformer.resblocks")
PROJECTION_RATE, ADAPTER_RATE = 10.0, 100.0  # learning rates as multiples of the towers'
ADAPTER_GAIN = 2  # peft's alpha over the rank


def open_clip_model(name: str, store: WeightsStore, device: str) -> ClipModel:
    """A CLIP model to train or to measure.

    Parameters
    ----------
    name
        A name of the weights' catalogue, a folder or file with a model, one of open_clip's architectures (random
        weights), or one with the tag of its weights, such as "ViT-B-16/laion2b_s34b_b88k", which open_clip downloads.

    Raises
    ------
    InputError, InstallationError
        When there is no such model, or it can't be had.
    """
    import open_clip

    if Path(name).is_dir():
        return clip_of_folder(Path(name), device)
    if Path(name).is_file():
        return clip_of_file(Path(name), device)
    if name in CATALOGUED:
        return load_clip(name, store, device)
    architecture, _, tag = name.partition("/")
    if architecture not in open_clip.list_models():
        raise InputError(
            f"The model '{name}' is unknown; give {', '.join(CATALOGUED)}, a folder, or one of open_clip's "
            "architectures, such as ViT-B-16."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if tag and tag not in tags:
        raise InputError(f"open_clip has no weights '{tag}' of {architecture}; use one of {', '.join(tags) or 'none'}.")
    try:
        state = open_clip.create_model(architecture, pretrained=tag).state_dict() if tag else None
        return native_clip(architecture, state, device)
    except InstallationError:
        raise
    except Exception as problem:  # a download's many faults, and architectures that ask a hub for their text tower
        raise InstallationError(
            f"open_clip's {name} can't be built or had here ({type(problem).__name__}); put it into a folder as "
            "open_clip keeps it and give that."
        ) from problem


def choose_trainable(model: nn.Module) -> None:
    """Everything learns but what the towers begin with: word vectors, patches, the first half of the image's blocks.

    The temperature is the loss's own and stays where it is.
    """
    names = [name for name, _ in model.named_parameters()]
    count = len(
        {name.split(".")[len(block.split("."))] for block in BLOCKS for name in names if name.startswith(block)}
    )
    frozen = (*ENTRANCES, "logit_scale", *(f"{block}.{n}." for block in BLOCKS for n in range(count // 2)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))


def add_adapters(model: nn.Module, rank: int) -> Any:
    """Low-rank adapters on all layers that learn (Hu et al., ICLR 2022); besides these only the projections do.

    Returns
    -------
    peft's model around ``model``, which now holds the adapters.

    Raises
    ------
    InstallationError
        Without peft.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as problem:
        raise InstallationError("--lora needs the package peft; run `pip install peft`.") from problem
    layers = [
        name
        for name, module in model.named_modules()
        if not name.startswith(PROJECTIONS)
        if isinstance(module, nn.MultiheadAttention) or (type(module) is nn.Linear and module.weight.requires_grad)
        if all(parameter.requires_grad for parameter in module.parameters())
    ]
    inside = tuple(f"{name}." for name in layers)  # a multi-head attention brings its own layers
    config = LoraConfig(
        r=rank, lora_alpha=ADAPTER_GAIN * rank, target_modules=[name for name in layers if not name.startswith(inside)]
    )
    adapted = get_peft_model(model, config)
    for name, parameter in model.named_parameters():
        if name.startswith(PROJECTIONS):
            parameter.requires_grad_(True)
    return adapted


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights that learn, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def optimiser_of(model: nn.Module, rate: float, decay: float) -> torch.optim.AdamW:
    """AdamW with the rates of towers, projections and adapters; norms and biases don't decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in trainable(model).items():
        times = PROJECTION_RATE if name.startswith(PROJECTIONS) else ADAPTER_RATE if "lora_" in name else 1.0
        groups.setdefault((rate * times, decay if parameter.ndim > 1 else 0.0), []).append(parameter)
    described = [
        {"params": part, "lr": lr, "full_lr": lr, "weight_decay": weight} for (lr, weight), part in groups.items()
    ]
    return torch.optim.AdamW(described, betas=(0.9, 0.98))


def architecture_of(model: nn.Module) -> str:
    """Names the architecture by its tensors' names and shapes: "CLIP 151,277,313 weights, ...1f3a"."""
    shapes = json.dumps([[name, list(value.shape)] for name, value in model.state_dict().items()])
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{type(model).__name__} of {count:,} weights ({hashlib.sha256(shapes.encode()).hexdigest()[:6]})"


def write_clip(clip: ClipModel, state: Mapping[str, Tensor], file: Path, card: Mapping[str, Any]) -> None:
    """Weights, configuration, words and card in one safetensors file, written atomically."""
    if clip.description is None:
        raise ValueError("a model without a description can't be written")
    metadata = {
        "medzeroseg": json.dumps(card),
        "open_clip_config": json.dumps(clip.description.settings),
        "words": clip.description.words,
    }
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    with replacing(file) as handle:
        handle.write(save(tensors, metadata=metadata))


def card_text(card: Mapping[str, Any], output: Path) -> str:
    """The card as people read it, in Markdown."""
    training, pairs = card["training"], card["pairs"]
    use = f"--preset base/fine-tuned --weights-folder {output}"
    lines = [
        "# Fine-tuned CLIP model",
        "",
        f"Started from {card['started_from']['name']}, trained on {pairs['train']:,} image-caption pairs with the loss "
        f"{training['loss']} by MedZeroSeg {card['version']}. No mask was used. For research only.",
        "",
        f"Licence: {card['licence']}.",
        "",
        f"Use: `medzeroseg segment IMAGE --structures NAMES --output FILE {use}`.",
        "",
        card["retrieval"],
        "",
        "Settings:",
        "",
        *(f"- {name}: {value}" for name, value in training.items()),
    ]
    return "\n".join(lines) + "\n"
