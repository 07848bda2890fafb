"""The device is one that works; what doesn't is named with its reason; models take their inputs to their own device."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from MedZeroSegLib import presets
from MedZeroSegLib.device import DEVICES, choose_device, limit_memory
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.mask_decoder import cpu_graph
from MedZeroSegLib.mask_decoder.cpu_graph import fastest_form
from MedZeroSegLib.mask_decoder.lite_medsam import LiteMedSamModel
from MedZeroSegLib.mask_decoder.lite_medsam_network import LiteMedSam, rename_published_keys

needs_openvino = pytest.mark.skipif(find_spec("openvino") is None, reason="openvino isn't installed")
WITHOUT_KERNELS = RuntimeError("CUDA error: no kernel image is available\nCompile with TORCH_USE_CUDA_DSA")


class Machine:
    """A machine with the given devices; each device computes ``outcome``: a number, or an exception that it raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **outcomes: float | Exception) -> None:
        self.tried: list[tuple[str, torch.dtype]] = []
        self.outcomes = outcomes
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in outcomes)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in outcomes)
        plain = torch.ones

        def ones(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> torch.Tensor:
            self.tried.append((device, dtype))
            outcome = self.outcomes[device]
            if isinstance(outcome, Exception):
                raise outcome
            return plain(*shape, dtype=dtype) * outcome

        monkeypatch.setattr(torch, "ones", ones)
        self.shares: list[float] = []  # of the card's memory that PyTorch may take
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (6 << 30, 8 << 30))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1 << 30)
        monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", self.shares.append)


def test_the_cpu_serves_where_there_is_nothing_else(monkeypatch):
    Machine(monkeypatch)
    assert choose_device("auto") == ("cpu", ())
    assert choose_device("cpu") == ("cpu", ())


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_a_device_that_works_is_used(monkeypatch, name):
    machine = Machine(monkeypatch, **{name: 1.0})
    assert choose_device("auto") == (name, ())
    assert choose_device(name) == (name, ())
    assert all(dtype == torch.float32 for _, dtype in machine.tried)  # float64 doesn't exist on mps


def test_of_a_cards_free_memory_a_fifth_is_left_to_others(monkeypatch):
    machine = Machine(monkeypatch, cuda=1.0, mps=1.0)
    for device in DEVICES[1:]:
        limit_memory(device)
    assert machine.shares == [pytest.approx((1 + 0.8 * 6) / 8)]


def test_cuda_comes_before_mps(monkeypatch):
    Machine(monkeypatch, cuda=1.0, mps=1.0)
    assert choose_device()[0] == "cuda"


def test_a_card_whose_first_kernel_fails_is_passed_over_and_named(monkeypatch):
    Machine(monkeypatch, cuda=WITHOUT_KERNELS)
    chosen, (sentence,) = choose_device("auto")
    assert chosen == "cpu"
    assert "cuda" in sentence and "no kernel image" in sentence
    assert "\n" not in sentence and sentence.endswith(".")


def test_failure_moves_to_the_next_device(monkeypatch):
    Machine(monkeypatch, cuda=WITHOUT_KERNELS, mps=1.0)
    chosen, (sentence,) = choose_device("auto")
    assert chosen == "mps" and "cuda" in sentence


def test_a_card_that_computes_wrongly_is_passed_over(monkeypatch):
    Machine(monkeypatch, cuda=0.5)
    chosen, (sentence,) = choose_device("auto")
    assert chosen == "cpu" and "wrong result" in sentence


def test_an_error_without_text_still_gives_a_sentence(monkeypatch):
    Machine(monkeypatch, cuda=AssertionError())
    chosen, (sentence,) = choose_device("auto")
    assert chosen == "cpu" and "AssertionError" in sentence


@pytest.mark.parametrize("outcomes", [{}, {"cuda": WITHOUT_KERNELS}])
def test_a_device_asked_for_by_name_that_fails_is_the_installations_fault(monkeypatch, outcomes):
    Machine(monkeypatch, **outcomes)
    with pytest.raises(InstallationError, match="cuda.*--device cpu") as refusal:
        choose_device("cuda")
    assert refusal.value.exit_code == 3
    assert "\n" not in str(refusal.value)


def test_an_unknown_device_is_refused_with_the_choices():
    with pytest.raises(InputError) as refusal:
        choose_device("gpu")
    assert all(name in str(refusal.value) for name in (*DEVICES, "gpu"))


def test_the_decoder_takes_prompts_to_its_own_device():
    """On the device "meta", tensors have shapes only; mixing it with the CPU fails as a card would."""
    with torch.device("meta"):
        network = LiteMedSam()
    model = LiteMedSamModel(lambda: network, "meta")
    masks = torch.zeros(2, 1, 256, 256)
    logits, quality = model.decode(torch.zeros(2, 256, 64, 64), torch.tensor([[10.0, 10, 90, 80]] * 2), masks)
    assert (logits.shape, quality.shape) == ((2, 1, 256, 256), (2,))
    assert logits.device.type == "meta"
    without_masks, _ = model.decode(torch.zeros(1, 256, 64, 64), torch.tensor([[10.0, 10, 90, 80]]), None)
    assert without_masks.shape == (1, 1, 256, 256)


def test_the_encoder_takes_pictures_to_its_own_device():
    with torch.device("meta"):
        network = LiteMedSam()
    embedding = LiteMedSamModel(lambda: network, "meta").embed(torch.zeros(1, 1, 256, 256))
    assert embedding.coarse.shape == (1, 256, 64, 64)
    assert embedding.detail.shape == (1, 128, 128, 128)
    assert embedding.coarse.device.type == "meta"


class Doubling(torch.nn.Module):
    """Stands in for an encoder; two outputs of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return pictures[:, :, ::64, ::64] * self.factor, pictures[:, :1, ::32, ::32] + 1


def graph_of_doubling(stored: Path) -> tuple[bool, Path | None]:
    """Whether the network had to be built for a graph that computes rightly, and the file in which it is kept."""
    built = []

    def build() -> Doubling:
        built.append(True)
        return Doubling()

    pictures = torch.rand(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    coarse, detail = fastest_form(build, (pictures[:1],), torch.device("cpu"), stored)(pictures)
    assert torch.allclose(coarse, pictures[:, :, ::64, ::64] * 2, atol=1e-5)
    assert torch.allclose(detail, pictures[:, :1, ::32, ::32] + 1, atol=1e-5)
    return bool(built), next(iter(stored.parent.glob("*.graph")), None) if stored.parent.is_dir() else None


def spoil(content: bytes, how: str) -> bytes:
    half = len(content) // 2
    flipped = bytes(byte ^ 0xFF for byte in content[-8:])
    return {"empty": b"", "cut off": content[:half], "changed": content[:-8] + flipped, "other": b"graph" * 99}[how]


@needs_openvino
def test_a_stored_graph_spares_building_the_network(tmp_path):
    built, file = graph_of_doubling(tmp_path / "new folder" / "doubling")
    assert built and file is not None
    assert graph_of_doubling(tmp_path / "new folder" / "doubling") == (False, file)
    assert sys.modules["openvino_telemetry"] is None  # converting reported over the network otherwise


@needs_openvino
@pytest.mark.parametrize("how", ["empty", "cut off", "changed", "other"])
def test_a_damaged_graph_is_built_again(tmp_path, how):
    _, file = graph_of_doubling(tmp_path / "doubling")
    assert file is not None
    file.write_bytes(spoil(file.read_bytes(), how))
    assert graph_of_doubling(tmp_path / "doubling") == (True, file)
    assert graph_of_doubling(tmp_path / "doubling") == (False, file)


@needs_openvino
def test_a_graph_that_cannot_be_kept_costs_no_result(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for _ in range(2):
        assert graph_of_doubling(tmp_path / "file" / "doubling") == (True, None)


class Blurring(torch.nn.Module):
    """Its sums differ visibly in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = torch.nn.Conv2d(3, 16, 5, padding=2)

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        blurred = self.convolution(pictures)
        return blurred, blurred.mean((2, 3))


@needs_openvino
def test_graphs_compute_in_float32_whatever_the_processor_would_choose_also_read_from_their_file(tmp_path):
    network, pictures = Blurring(), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        blurred, _ = fastest_form(lambda: network, (pictures,), torch.device("cpu"), tmp_path / "blurring")(pictures)
        assert torch.allclose(blurred, network(pictures)[0], atol=1e-5)


@needs_openvino
def test_graphs_of_other_precisions_are_kept_apart(monkeypatch, tmp_path):
    assert graph_of_doubling(tmp_path / "doubling")[0]
    monkeypatch.setattr(cpu_graph, "precision_of", lambda _: "bfloat16")
    assert graph_of_doubling(tmp_path / "doubling")[0]  # built anew
    assert len(list(tmp_path.glob("*.graph"))) == 2


def test_graphs_of_other_weights_are_kept_apart():
    assert presets._graph_folder("a" * 64) == presets._graph_folder("a" * 64) != presets._graph_folder("b" * 64)


def test_many_prompts_on_many_pictures_give_what_each_gives_alone():
    torch.manual_seed(0)
    network = LiteMedSam().eval()
    model = LiteMedSamModel(lambda: network)
    coarse = torch.randn(2, 256, 64, 64)
    boxes = torch.tensor([[20.0, 30, 120, 140], [150, 60, 190, 200]])
    masks = torch.randn(2, 1, 256, 256)
    for prompts in (masks, None):
        logits, quality = model.decode(coarse, boxes, prompts)
        for n in range(2):
            sparse, dense = network.prompt_encoder(
                points=None, boxes=boxes[n : n + 1], masks=None if prompts is None else prompts[n : n + 1]
            )
            position = network.prompt_encoder.get_dense_pe()
            alone, alone_quality = network.mask_decoder(
                coarse[n : n + 1], position, sparse, dense, multimask_output=False
            )
            assert torch.allclose(logits[n], alone[0], atol=1e-4)
            assert torch.allclose(quality[n], alone_quality[0, 0], atol=1e-4)


def test_published_keys_become_the_networks_keys():
    published = {
        "image_encoder.patch_embed.seq.0.c.weight": "image_encoder.trunk.patch_embed.conv1.conv.weight",
        "image_encoder.patch_embed.seq.2.bn.running_mean": "image_encoder.trunk.patch_embed.conv2.bn.running_mean",
        "image_encoder.layers.0.blocks.1.conv2.c.weight": "image_encoder.trunk.stages.0.blocks.1.conv2.conv.weight",
        "image_encoder.layers.0.downsample.conv3.bn.bias": "image_encoder.trunk.stages.1.downsample.conv3.bn.bias",
        "image_encoder.layers.1.blocks.0.attn.qkv.bias": "image_encoder.trunk.stages.1.blocks.0.attn.qkv.bias",
        "image_encoder.layers.2.downsample.conv2.c.weight": "image_encoder.trunk.stages.3.downsample.conv2.conv.weight",
        "image_encoder.layers.3.blocks.1.local_conv.c.weight": (
            "image_encoder.trunk.stages.3.blocks.1.local_conv.conv.weight"
        ),
        "image_encoder.neck.0.weight": "image_encoder.neck.0.weight",
        "prompt_encoder.mask_downscaling.3.weight": "prompt_encoder.mask_downscaling.3.weight",
        "mask_decoder.transformer.layers.1.mlp.lin1.bias": "mask_decoder.transformer.layers.1.mlp.lin1.bias",
    }
    renamed = rename_published_keys({key: torch.tensor(float(n)) for n, key in enumerate(published)})
    assert list(renamed) == list(published.values())
    assert [value.item() for value in renamed.values()] == list(range(len(published)))
    with torch.device("meta"):
        network = LiteMedSam()
    assert set(renamed) <= set(network.state_dict())
