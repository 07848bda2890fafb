"""What a user sees: the radiograph that pydicom-data ships, and a phantom, with their segments in Slicer's views."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from MedZeroSegSlicer.segment_io import add_result, create_segmentation
from pictures import draw_3d, draw_slice, offscreen_window, pixels
from pydicom.data import get_testdata_file
from scans import LPS_TO_RAS, found, grid, slicer
from skimage.draw import polygon
from skimage.transform import resize

from MedZeroSegLib.queries import resolve
from MedZeroSegLib.volume_io import read_volume

pytestmark = pytest.mark.skipif(
    offscreen_window() is None, reason="no OpenGL without a screen here; install libosmesa6 to draw the pictures"
)
SIZE = (640, 640)  # pixels of a picture
# Outlines of the lungs on the radiograph, drawn by hand: column and row as per mille of its width and height.
RIGHT_LUNG = (
    (309, 73), (235, 102), (168, 164), (130, 250), (102, 406), (85, 594), (72, 758), (85, 769), (151, 727),
    (234, 716), (334, 722), (350, 675), (392, 667), (404, 562), (413, 453), (428, 312), (445, 172), (425, 102),
)  # fmt: skip
LEFT_LUNG = (
    (624, 66), (566, 102), (536, 172), (541, 281), (549, 406), (563, 531), (583, 641), (624, 703), (632, 758),
    (699, 753), (790, 747), (865, 773), (906, 802), (919, 781), (898, 594), (878, 406), (860, 266), (823, 172),
    (765, 109), (699, 73),
)  # fmt: skip


def radiograph() -> Path:
    """The chest radiograph of the package pydicom-data."""
    return Path(str(get_testdata_file("RG1_UNCR.dcm", download=False)))


def outlined(outline: tuple[tuple[int, int], ...], shape: tuple[int, int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    columns, rows = np.array(outline).T / 1000 * [[shape[2]], [shape[1]]]
    mask[(0, *polygon(rows, columns, shape[1:]))] = True
    return mask


def tinted(picture: np.ndarray) -> np.ndarray:
    """Pixels that are not grey."""
    return np.ptp(picture.astype(int), axis=2) > 8


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Dice."""
    return 2 * np.count_nonzero(one & other) / (np.count_nonzero(one) + np.count_nonzero(other))


def test_lungs_lie_on_the_lungs_of_the_radiograph(application_scene, scene, tmp_path):
    image = read_volume(radiograph())
    volume = slicer.util.addVolumeFromArray(image.voxels.copy(), LPS_TO_RAS @ image.ijk_to_lps, "radiograph")
    volume.CreateDefaultDisplayNodes()
    node = create_segmentation(volume)
    right, left = outlined(RIGHT_LUNG, image.shape), outlined(LEFT_LUNG, image.shape)
    for query, mask in zip(resolve(["right lung", "left lung"]), (right, left), strict=True):
        add_result(node, volume, found(tmp_path, query.name, mask, color=list(query.color)))
    middle = (LPS_TO_RAS @ image.ijk_to_lps @ [image.shape[2] / 2, image.shape[1] / 2, 0, 1])[:3]
    picture = pixels(draw_slice(application_scene, volume, tuple(middle), tmp_path / "radiograph.png"))
    # The view fits the image's height, and its middle lies in the middle.
    width = round(SIZE[0] * image.shape[2] / image.shape[1])
    margin = (SIZE[0] - width) // 2
    expected = np.zeros(SIZE[::-1], bool)
    expected[:, margin : margin + width] = resize((right | left)[0].astype(float), (SIZE[1], width)) > 0.5
    assert agreement(tinted(picture), expected) > 0.985
    # The anatomy shows through: lungs are darker than the spine between them, and ribs cross them.
    inside = expected & tinted(picture)
    assert picture[inside].std() > 15
    assert picture[inside].mean() < picture[200:400, 300:330].mean() - 30


def ellipsoid(shape: tuple[int, int, int], centre: tuple[int, ...], radii: tuple[int, ...], bend: float) -> np.ndarray:
    """Bent ellipsoid; centre and radii along i, j, k in voxels."""
    k, j, i = np.ogrid[tuple(slice(n) for n in shape)]
    x, y, z = ((index - c) / r for index, c, r in zip((i, j, k), centre, radii, strict=True))
    return (x + bend * z * z) ** 2 + y**2 + z**2 < 1


def abdomen() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """A phantom in HU [k, j, i] with five organs where they lie in a patient, and their masks."""
    shape = (48, 120, 120)
    k, j, i = np.ogrid[tuple(slice(n) for n in shape)]
    organs = {
        "liver": ellipsoid(shape, (39, 52, 30), (25, 24, 13), 0.25),
        "spleen": ellipsoid(shape, (92, 69, 31), (9, 15, 10), -0.3),
        "right kidney": ellipsoid(shape, (40, 77, 18), (9, 8, 11), -0.25),
        "left kidney": ellipsoid(shape, (80, 75, 19), (9, 8, 11), 0.25),
        "aorta": np.broadcast_to((i - 64) ** 2 + (j - 70) ** 2 < 20, shape),
    }
    body = np.broadcast_to(((i - 60) / 54) ** 2 + ((j - 60) / 39) ** 2 < 1, shape)
    spine = np.broadcast_to(((i - 60) / 7) ** 2 + ((j - 84) / 8) ** 2 < 1, shape)
    voxels = np.where(body, 20.0, -1000.0) + 400 * spine
    taken = np.zeros(shape, bool)
    for (name, mask), level in zip(organs.items(), (90, 120, 160, 160, 220), strict=True):
        organs[name] = mask & ~taken
        taken |= mask
        voxels[organs[name]] = level
    voxels += np.random.default_rng(1).normal(0, 14, shape) * body
    return voxels.astype(np.int16), organs


@pytest.fixture
def phantom(scene, tmp_path):
    """The phantom in a tilted scan, its segmentation, and its grid."""
    voxels, organs = abdomen()
    ijk_to_ras = grid((2.5, 2.5, 5.3), (9, -6, 5), (150, 150, -60), np.diag([-1.0, -1.0, 1.0]))
    volume = slicer.util.addVolumeFromArray(voxels, ijk_to_ras, "phantom")
    volume.CreateDefaultDisplayNodes()
    volume.GetDisplayNode().AutoWindowLevelOff()
    volume.GetDisplayNode().SetWindowLevel(400, 40)
    node = create_segmentation(volume)
    for query in resolve(list(organs)):
        add_result(node, volume, found(tmp_path, query.name, organs[query.name], color=list(query.color)))
    return volume, node, ijk_to_ras


def like(picture: np.ndarray, name: str) -> np.ndarray:
    """Pixels of about the hue of a structure, in whatever light."""
    (query,) = resolve([name])
    colours, wanted = picture.astype(float) + 1, np.array(query.color, float)
    cosine = colours @ wanted / np.linalg.norm(colours, axis=2) / np.linalg.norm(wanted)
    return (cosine > 0.995) & (picture.max(axis=2) > 60)


def column(mask: np.ndarray) -> float:
    """Mean column of a mask's pixels."""
    return float(np.argwhere(mask)[:, 1].mean())


def test_axial_slice_shows_each_organ_on_its_side(application_scene, phantom, tmp_path):
    volume, _node, ijk_to_ras = phantom
    middle = (ijk_to_ras @ [60, 66, 25, 1])[:3]
    picture = pixels(draw_slice(application_scene, volume, tuple(middle), tmp_path / "axial.png", zoom=1.25))
    tint = tinted(picture)
    spine = (picture.min(axis=2) > 240) & ~tint
    assert column(like(picture, "spleen") & tint) > 400  # radiological: the patient's left is at image right
    assert np.count_nonzero(tint[:, :300]) > 2 * np.count_nonzero(tint[:, 340:])  # the liver is the largest
    assert 270 < column(spine) < 370 and np.argwhere(spine)[:, 0].mean() > 320  # and posterior is down


def test_3d_view_shows_the_organs_from_the_front_and_keeps_them_during_a_rerun(application_scene, phantom, tmp_path):
    volume, node, _ijk_to_ras = phantom
    node.CreateClosedSurfaceRepresentation()
    before = pixels(draw_3d(application_scene, tmp_path / "before.png"))
    assert column(like(before, "liver")) < column(like(before, "aorta")) < column(like(before, "spleen"))
    smaller = ellipsoid((48, 120, 120), (39, 52, 30), (12, 12, 8), 0.25)
    add_result(node, volume, found(tmp_path, "liver", smaller))
    after = pixels(draw_3d(application_scene, tmp_path / "after.png"))
    assert np.count_nonzero(like(after, "spleen")) > 0.5 * np.count_nonzero(like(before, "spleen")) > 500
    assert 0 < np.count_nonzero(like(after, "liver")) < np.count_nonzero(like(before, "liver"))
