"""BiomedCLIP and open_clip's own towers are built from local files alone and are the library's to the last number."""

from __future__ import annotations

import hashlib
import re
import socket

import pytest
import torch
import torch.nn.functional as F
from clip_samples import pictures
from torch import Tensor
from word_list import write_words

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.text_image.clip_model import BIOMEDCLIP, POSITIONS, ClipModel, biomedclip, native_clip
from MedZeroSegLib.text_image.dense_attention import Attention, last_block, projected
from MedZeroSegLib.text_image.key_map import is_hugging_face_layout, to_open_clip
from MedZeroSegLib.weights_catalogue import read_catalogue

TEXTS = ["CT image showing the liver", "spleen", "a much longer text about the kidney and the heart of a bone"]


def hugging_face_layout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """open_clip's names → Hugging Face's, as MedCLIP-SAMv2 stores its weights; written the other way round."""
    foreign: dict[str, Tensor] = {}
    for name, value in state.items():
        if joined := re.fullmatch(r"visual\.trunk\.blocks\.(\d+)\.attn\.qkv\.(\w+)", name):
            for part, piece in zip("qkv", value.chunk(3), strict=True):
                foreign[f"vision_model.encoder.layers.{joined[1]}.self_attn.{part}_proj.{joined[2]}"] = piece
            continue
        name = name.replace("visual.trunk.cls_token", "vision_model.embeddings.class_embedding")
        name = name.replace("visual.trunk.pos_embed", "vision_model.embeddings.position_embedding.weight")
        name = name.replace("visual.trunk.patch_embed.proj", "vision_model.embeddings.patch_embedding")
        name = name.replace("visual.trunk.norm", "vision_model.post_layernorm").replace(
            "visual.head.proj", "visual_projection"
        )
        if name.startswith("visual.trunk.blocks"):
            name = name.replace("visual.trunk.blocks", "vision_model.encoder.layers").replace(
                "attn.proj", "self_attn.out_proj"
            )
            name = name.replace(".norm1", ".layer_norm1").replace(".norm2", ".layer_norm2")
        name = name.replace("text.proj.0", "text_projection.fc1").replace("text.proj.2", "text_projection.fc2")
        for ours, theirs in (
            ("embeddings.word_embeddings", "embeddings.token_embedding"),
            ("embeddings.position_embeddings", "embeddings.position_embedding"),
            ("embeddings.token_type_embeddings", "embeddings.token_type_embedding"),
            ("embeddings.LayerNorm", "embeddings.layer_norm"),
            ("attention.self.query", "self_attn.q_proj"),
            ("attention.self.key", "self_attn.k_proj"),
            ("attention.self.value", "self_attn.v_proj"),
            ("attention.output.dense", "self_attn.out_proj"),
            ("attention.output.LayerNorm", "layer_norm1"),
            ("intermediate.dense", "mlp.fc1"),
            ("output.LayerNorm", "layer_norm2"),
            ("output.dense", "mlp.fc2"),
            ("encoder.layer.", "encoder.layers."),
            ("text.transformer.", "text_model."),
        ):
            if name.startswith(("text.", "text_model.")):
                name = name.replace(ours, theirs)
        if name.endswith("class_embedding"):
            value = value.reshape(-1)
        elif name.endswith("vision_model.embeddings.position_embedding.weight"):
            value = value[0]
        foreign[name] = value
    return foreign


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    return write_words(tmp_path_factory.mktemp("Wörter 肺") / "vocab.txt", 30_522)


@pytest.fixture(scope="module")
def clip(words) -> ClipModel:
    """BiomedCLIP's true architecture with random weights, built while no connection can be made."""

    def no_connection(*_: object) -> None:
        raise AssertionError("a connection was made")

    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", no_connection)
        return biomedclip(None, words)


def test_the_configuration_is_the_published_file():
    listed = next(file for file in read_catalogue()["biomedclip"].files if file.name == "open_clip_config.json")
    content = BIOMEDCLIP.read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (listed.size, listed.sha256)


def test_biomedclip_has_its_published_shape(clip):
    assert sum(p.numel() for p in clip.model.parameters()) == 195_902_721
    assert (clip.tower.grid, clip.tower.picture_size, len(clip.tower.blocks), clip.width) == (14, 224, 12, 768)
    assert clip.model.text.proj[0].out_features == 640
    assert clip.tokenizer.length_max == 256
    assert clip.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])


@torch.no_grad()
def test_vanilla_is_biomedclips_own_embedding(clip):
    shown = pictures(2, 224)
    entering = clip.tower.tokens_after(shown, 11)
    whole = clip.tower.finish(clip.tower.blocks[-1].run(entering))
    assert torch.allclose(whole[:, 0], clip.model.encode_image(shown), atol=1e-5)
    patches = projected(clip.tower, last_block(clip.tower, entering, Attention.VANILLA))
    assert torch.allclose(patches.flatten(2).mT, whole[:, 1:], atol=1e-5)


@torch.no_grad()
def test_texts_are_what_open_clip_makes_of_them_padded_to_the_full_length(clip):
    vectors = clip.encode(TEXTS)
    assert vectors.shape == (3, 512)
    assert torch.allclose(vectors.norm(dim=-1), torch.ones(3), atol=1e-5)
    ids = clip.tokenizer.batch(TEXTS)
    padded = F.pad(ids, (0, 64 - ids.shape[1]))
    assert torch.allclose(F.normalize(clip.model.encode_text(padded), dim=-1), vectors, atol=1e-5)
    for n, text in enumerate(TEXTS):
        assert torch.allclose(clip.encode([text])[0], vectors[n], atol=1e-5)


def test_tokens_are_those_of_transformers_own_tokenizer(clip, words):
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(words), do_lower_case=True)
    for text in ("CT image of the Liver", "ventrículo (left), 3 mm", "", "肺 lung"):
        assert clip.tokenizer.ids(text) == theirs(text)["input_ids"]


def test_a_text_that_is_too_long_is_cut_and_keeps_its_end(clip):
    long = "liver " * 400
    ids = clip.tokenizer.batch([long, "spleen"])
    assert ids.shape == (2, 256)
    assert ids[0, 0] == clip.tokenizer.ids("")[0] and ids[0, -1] == clip.tokenizer.last
    assert clip.tokenizer.cuts(long) and not clip.tokenizer.cuts("spleen")


@torch.no_grad()
def test_hugging_faces_layout_loads_to_the_same_embeddings(clip, words):
    foreign = hugging_face_layout(clip.model.state_dict())
    assert is_hugging_face_layout(foreign) and not is_hugging_face_layout(clip.model.state_dict())
    assert "vision_model.encoder.layers.11.self_attn.k_proj.bias" in foreign
    assert not any(name.startswith(("visual.", "text.")) for name in foreign)
    foreign["text_model.embeddings.position_ids"] = torch.arange(512)
    other = biomedclip(foreign, words)
    shown = pictures(1, 224)
    assert torch.equal(other.model.encode_image(shown), clip.model.encode_image(shown))
    assert torch.equal(other.encode(TEXTS), clip.encode(TEXTS))


def tiny_state() -> dict[str, Tensor]:
    names = ["visual.trunk.blocks.0.attn.qkv.weight", "visual.trunk.blocks.0.attn.qkv.bias", "visual.trunk.norm.bias"]
    return {name: torch.randn(6) for name in names} | {
        "visual.trunk.cls_token": torch.randn(1, 1, 2),
        "visual.trunk.pos_embed": torch.randn(1, 5, 2),
        "text.transformer.encoder.layer.3.attention.output.LayerNorm.weight": torch.randn(2),
        "text.transformer.encoder.layer.3.output.LayerNorm.weight": torch.randn(2),
        "text.proj.2.weight": torch.randn(2, 2),
        "logit_scale": torch.tensor(4.4454),
    }


def test_names_and_shapes_come_back_from_the_other_layout():
    state = tiny_state()
    back = to_open_clip(hugging_face_layout(state))
    assert set(back) == set(state)
    for name, value in state.items():
        assert torch.equal(back[name], value), name


def test_unknown_names_and_missing_thirds_are_refused():
    foreign = hugging_face_layout(tiny_state())
    with pytest.raises(ValueError, match="vision_model.something"):
        to_open_clip({**foreign, "vision_model.something": torch.zeros(1)})
    del foreign["vision_model.encoder.layers.0.self_attn.k_proj.bias"]
    with pytest.raises(ValueError, match="layer 0"):
        to_open_clip(foreign)


def test_partial_weights_and_other_files_are_refused(clip, words, tmp_path):
    state = dict(clip.model.state_dict())
    state[POSITIONS] = torch.arange(512)[None]
    del state["visual.trunk.norm.bias"]
    with pytest.raises(InstallationError, match="medzeroseg weights verify"):
        biomedclip(state, words)
    for bad in (tmp_path / "missing.txt", write_words(tmp_path / "shuffled.txt")):
        if bad.is_file():
            bad.write_text("liver\n" + bad.read_text(), encoding="utf-8")
        with pytest.raises(InstallationError, match="medzeroseg weights fetch biomedclip"):
            biomedclip(None, bad)


@torch.no_grad()
def test_open_clips_own_tower_and_tokenizer():
    import open_clip

    clip = native_clip("ViT-B-16-quickgelu", None)
    shown = pictures(1, 224)
    entering = clip.tower.tokens_after(shown, 11)
    own = clip.tower.finish(clip.tower.blocks[-1].run(entering))[:, 0]
    assert torch.allclose(own, clip.model.encode_image(shown), atol=1e-5)
    theirs = open_clip.get_tokenizer("ViT-B-16-quickgelu")
    assert torch.equal(clip.tokenizer.batch(TEXTS), theirs(TEXTS))
    long = "a liver and a spleen " * 40
    assert torch.equal(clip.tokenizer.batch([long]), theirs([long]))
    assert clip.tokenizer.cuts(long) and clip.width == 768
