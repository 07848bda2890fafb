"""SAM and MedSAM answer as their releases do, each from its own picture, and refuse prompts they weren't made for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sam_samples import small_sam
from segment_anything import SamPredictor
from skimage.transform import resize

from MedZeroSegLib.canvas import fit_canvas
from MedZeroSegLib.errors import InputError, InstallationError
from MedZeroSegLib.mask_decoder.lite_medsam import LiteMedSamModel
from MedZeroSegLib.mask_decoder.sam import MedSamModel, SamModel, _logits_on_canvas, build_sam

HEIGHT, WIDTH = 150, 200  # on the canvas of 256: 192 rows, all columns
CANVAS = fit_canvas((HEIGHT, WIDTH), (1.0, 1.0), 256)
BOXES = torch.tensor([[30.0, 40.0, 120.0, 150.0], [100.0, 20.0, 240.0, 90.0], [5.0, 5.0, 60.0, 60.0]])


def slices(count: int = 2) -> np.ndarray:
    rng = np.random.default_rng(0)
    smooth = torch.from_numpy(rng.random((count, 1, 12, 16)).astype(np.float32))
    return (F.interpolate(smooth, (HEIGHT, WIDTH), mode="bicubic")[:, 0].clamp(0, 1) * 200 + 20).byte().numpy()


@pytest.fixture(scope="module")
def network():
    return small_sam()


@pytest.fixture(scope="module")
def sam(network) -> SamModel:
    return SamModel(network)


@pytest.fixture(scope="module")
def medsam(network) -> MedSamModel:
    return MedSamModel(network)


def test_sams_picture_is_the_releases(sam):
    predictor = SamPredictor(sam.network)
    predictor.set_image(np.repeat(slices()[0][..., None], 3, 2))
    ours = sam.pictures(slices()[:1], CANVAS)
    assert ours.shape == (1, 3, 1024, 1024)
    assert not ours[:, :, 768:].any()  # padding, after normalisation
    levels = ours * sam.network.pixel_std + sam.network.pixel_mean
    wide = predictor.transform.apply_image(np.repeat(slices()[0][..., None], 3, 2))
    assert wide.shape == (768, 1024, 3)
    assert np.abs(levels[0, 0, :768].numpy() - wide[..., 0]).max() <= 1.0  # the release rounds to whole grey levels


def test_sam_answers_a_box_as_the_releases_predictor(sam):
    predictor = SamPredictor(sam.network)
    predictor.set_image(np.repeat(slices()[0][..., None], 3, 2))
    predictor.features = sam.embed_slices(slices()[:1], CANVAS).coarse
    _, quality, low = predictor.predict(box=(BOXES[0] * WIDTH / 256).numpy(), multimask_output=True)
    ours, our_quality = sam.decode(predictor.features, BOXES[:1], None)
    assert ours.shape == (1, 3, 256, 256)
    assert np.allclose(ours[0].numpy(), low, atol=1e-3)
    assert np.allclose(our_quality[0].numpy(), quality, atol=1e-4)


def test_box_mask_and_points_together_are_the_predictors(sam):
    predictor = SamPredictor(sam.network)
    predictor.set_image(np.repeat(slices()[0][..., None], 3, 2))
    predictor.features = sam.embed_slices(slices()[:1], CANVAS).coarse
    mask = torch.randn(1, 1, 256, 256)
    points, labels = torch.tensor([[[60.0, 80.0], [20.0, 150.0]]]), torch.tensor([[1, 0]])
    low = predictor.predict(
        point_coords=(points[0] * WIDTH / 256).numpy(),
        point_labels=labels[0].numpy(),
        box=(BOXES[0] * WIDTH / 256).numpy(),
        mask_input=mask[0].numpy(),
    )[2]
    ours, _ = sam.decode(predictor.features, BOXES[:1], mask, (points, labels))
    assert np.allclose(ours[0].numpy(), low, atol=1e-3)


def test_points_alone_get_the_padding_point(sam):
    coarse = sam.embed_slices(slices()[:1], CANVAS).coarse
    points, labels = torch.tensor([[[60.0, 80.0], [0.0, 0.0]]]), torch.tensor([[1, -1]])
    plain, _ = sam.decode(coarse, None, None, (points[:, :1], labels[:, :1]))
    assert plain.shape == (1, 3, 256, 256)
    padded, _ = sam.decode(coarse, None, None, (points, labels))
    assert not torch.allclose(plain, sam.decode(coarse, BOXES[:1], None)[0])
    assert padded.shape == plain.shape


@pytest.mark.parametrize("kind", ["sam", "medsam"])
def test_prompts_on_many_slices_at_once_are_those_one_by_one(kind, request):
    model = request.getfixturevalue(kind)
    coarse = model.embed_slices(slices(2), CANVAS).coarse[[0, 1, 0]]
    decoder = model.on(CANVAS)
    together, quality = decoder.decode(coarse, BOXES, None)
    for n in range(3):
        alone, its_quality = decoder.decode(coarse[n : n + 1], BOXES[n : n + 1], None)
        assert torch.allclose(alone[0], together[n], atol=1e-3)
        assert torch.allclose(its_quality[0], quality[n], atol=1e-4)


def test_slices_embedded_together_are_those_alone(sam):
    together = sam.embed_slices(slices(2), CANVAS)
    assert torch.allclose(sam.embed_slices(slices(2)[1:], CANVAS).coarse[0], together.coarse[1], atol=1e-5)
    assert torch.equal(together.detail, together.coarse)


def test_a_box_goes_through_sams_frame_and_back(sam):
    """Its corners in slice pixels, through the canvas and the release's own scaling, differ by less than one."""
    corners = np.array([[12.0, 30.0, 77.0, 140.0]])
    on_canvas = corners * np.array([CANVAS.columns / WIDTH, CANVAS.rows / HEIGHT] * 2)
    in_picture = on_canvas * 1024 / 256
    expected = SamPredictor(sam.network).transform.apply_boxes(corners, (HEIGHT, WIDTH))
    assert np.abs(in_picture - expected).max() <= 1.0


def test_medsams_picture_is_stretched_and_goes_from_0_to_1(medsam):
    ours = medsam.pictures(slices()[:1], CANVAS)
    three = np.repeat(slices()[0][..., None], 3, 2)
    stretched = resize(three, (1024, 1024), order=3, preserve_range=True, anti_aliasing=True).astype(np.uint8)
    expected = (stretched - stretched.min()) / max(stretched.max() - stretched.min(), 1e-8)
    assert np.allclose(ours[0].permute(1, 2, 0).numpy(), expected, atol=1e-6)
    assert (ours.min(), ours.max()) == (0, 1)


def test_a_constant_slice_gives_medsam_no_nan(medsam):
    assert not medsam.pictures(np.full((1, HEIGHT, WIDTH), 40, np.uint8), CANVAS).any()


def test_medsam_answers_as_its_release_does(medsam):
    """Box scaled for each axis, one mask, sigmoid before it is enlarged."""
    network = medsam.network
    coarse = medsam.embed_slices(slices()[:1], CANVAS).coarse
    box = BOXES[0].numpy() * WIDTH / 256
    with torch.no_grad():
        scaled = torch.from_numpy(box / np.array([WIDTH, HEIGHT] * 2) * 1024).float()[None]
        sparse, dense = network.prompt_encoder(points=None, boxes=scaled, masks=None)
        low, _ = network.mask_decoder(coarse, network.prompt_encoder.get_dense_pe(), sparse, dense, False)
        expected = F.interpolate(torch.sigmoid(low), (CANVAS.rows, CANVAS.columns), mode="bilinear")
    found, _ = medsam.on(CANVAS).decode(coarse, BOXES[:1], None)
    assert found.shape == (1, 1, 256, 256)
    assert torch.allclose(torch.sigmoid(found[..., : CANVAS.rows, :]), expected, atol=1e-4)
    assert (found[..., CANVAS.rows :, :] < -10).all()


def test_medsams_mask_comes_back_on_the_slice_where_its_release_puts_it():
    y, x = torch.meshgrid(torch.arange(256.0), torch.arange(256.0), indexing="ij")
    low = (60 - ((x - 90) ** 2 + ((y - 150) / 1.5) ** 2).sqrt())[None, None] / 4
    expected = F.interpolate(torch.sigmoid(low), (HEIGHT, WIDTH), mode="bilinear", align_corners=False)[0, 0] > 0.5
    restored = CANVAS.restore(_logits_on_canvas(low, CANVAS))[0, 0] > 0
    assert (restored == expected).float().mean() > 0.998


def test_medsams_detail_lies_on_the_canvas(medsam):
    embedding = medsam.embed_slices(slices()[:1], CANVAS)
    assert embedding.detail.shape == embedding.coarse.shape
    assert not embedding.detail[..., 48:, :].any()  # 192 of 256 rows are slice
    stretched_back = F.interpolate(embedding.detail[..., :48, :], (64, 64), mode="bilinear", align_corners=False)
    likeness = F.cosine_similarity(stretched_back, embedding.coarse, dim=1)
    assert likeness.median() > 0.9


@pytest.mark.parametrize("prompts", [{"masks": torch.zeros(1, 1, 256, 256)}, {"points": (BOXES[None, :1, :2], None)}])
def test_medsam_refuses_what_it_was_not_made_for(medsam, prompts):
    given = {"boxes": BOXES[:1], "masks": None, "points": None} | prompts
    with pytest.raises(InputError) as caught:
        medsam.on(CANVAS).decode(torch.zeros(1, 256, 64, 64), **given)
    assert "MedSAM was made for box prompts" in str(caught.value) and "base" in str(caught.value)
    assert str(caught.value).count(".") == 1


def test_decoders_declare_their_prompts():
    assert SamModel.prompts == ("box", "mask", "points")
    assert MedSamModel.prompts == ("box",)
    assert "points" not in LiteMedSamModel.prompts


def test_weights_of_another_network_are_refused(network):
    with pytest.raises(InstallationError, match="medzeroseg weights verify"):
        build_sam("vit_b", network.state_dict())


def test_the_true_sam_b_has_its_published_shape():
    network = build_sam("vit_b")
    assert sum(p.numel() for p in network.parameters()) == 93_735_472
    build_sam("vit_b", network.state_dict())
