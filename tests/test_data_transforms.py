"""The published augmentation against literal versions of what it does to numbers."""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from spanet_lightning.data import transforms
from spanet_lightning.data.batches import Collate, DetectionTarget
from spanet_lightning.data.normalize import MEAN, STD, Normalize


def target(boxes: list[list[float]], size: tuple[int, int]) -> DetectionTarget:
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, corners.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    return DetectionTarget(
        boxes=corners,
        labels=torch.arange(len(boxes)) + 1,
        masks=masks,
        iscrowd=torch.zeros(len(boxes), dtype=torch.bool),
        area=torch.ones(len(boxes)),
        image_id=1,
    )


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (480, 640, (800, 1067)),  # 1066.67: the nearest, where cutting off would give 1066
        (640, 480, (1067, 800)),
        (375, 1242, (402, 1333)),  # the long side limits: 402.47
        (100, 100, (800, 800)),
        (427, 640, (800, 1199)),
    ],
)
def test_sizes_fit_into_1333_by_800(height: int, width: int, expected: tuple[int, int]) -> None:
    assert transforms.fit(height, width, 1333, 800) == expected


def test_boxes_and_masks_are_resized_with_their_image() -> None:
    image = torch.zeros(3, 48, 64, dtype=torch.uint8)
    found, moved = transforms.transform_detection(
        transforms.Fit(128, [96]), image, target([[8, 4, 24, 20]], (48, 64))
    )
    assert found.shape == (3, 96, 128)
    assert moved["boxes"].tolist() == [[16, 8, 48, 40]]
    assert moved["masks"].sum() == 32 * 32
    assert moved["masks"][0, 8:40, 16:48].all()


def test_a_flip_mirrors_boxes_about_the_middle() -> None:
    image = torch.arange(64, dtype=torch.uint8).expand(3, 32, 64)
    flip = transforms.detection_training("flip", 64, 32, (32,), hflip=1.0)
    found, moved = transforms.transform_detection(flip, image, target([[8, 4, 24, 20]], (32, 64)))
    assert torch.equal(found, image.flip(-1))
    assert moved["boxes"].tolist() == [[40, 4, 56, 20]]
    assert moved["masks"][0, 4:20, 40:56].all()


def test_crops_have_the_published_sides_and_clip_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    crop = transforms.CropBetween(384, 600)
    image = torch.zeros(3, 400, 900, dtype=torch.uint8)
    sides = set()
    for seed in range(300):
        torch.manual_seed(seed)
        params = crop.make_params([image])
        assert 384 <= params["height"] <= 400
        assert 384 <= params["width"] <= 600
        assert 0 <= params["top"] <= 400 - params["height"]
        assert 0 <= params["left"] <= 900 - params["width"]
        sides.add((params["height"], params["width"]))
    heights, widths = zip(*sides, strict=True)
    assert {384, 400} <= set(heights)  # both ends, each side by itself
    assert min(widths) < 390
    assert max(widths) > 594
    part = {"top": 10, "left": 20, "height": 30, "width": 40}
    monkeypatch.setattr(crop, "make_params", lambda _: part)
    boxes = [[0, 0, 30, 20], [100, 100, 140, 140], [25, 15, 35, 25]]
    found, moved = transforms.transform_detection(crop, image, target(boxes, (400, 900)))
    assert found.shape == (3, 30, 40)
    assert moved["boxes"].tolist() == [[0, 0, 10, 10], [5, 5, 15, 15]]
    assert moved["labels"].tolist() == [1, 3]
    assert moved["masks"].shape == (2, 30, 40)


def test_a_crop_may_be_left_without_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    part = {"top": 0, "left": 0, "height": 10, "width": 10}
    crop = transforms.CropBetween(10, 10)
    monkeypatch.setattr(crop, "make_params", lambda _: part)
    both = v2.Compose([crop, transforms.Fit(20, [20])])
    image = torch.zeros(3, 40, 40, dtype=torch.uint8)
    _, moved = transforms.transform_detection(both, image, target([[20, 20, 30, 30]], (40, 40)))
    assert moved["boxes"].shape == (0, 4)
    assert moved["masks"].shape == (0, 20, 20)


def test_many_scales_are_the_published_ones_half_of_them_after_a_crop() -> None:
    shorts = tuple(range(480, 801, 32))
    transform = transforms.detection_training("multi_scale_crop", 1333, 800, shorts, hflip=0.5)
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    whole, sizes = 0, set()
    for seed in range(60):
        torch.manual_seed(seed)
        found, _ = transforms.transform_detection(transform, image, target([], (60, 80)))
        height, width = found.shape[1:]
        assert min(height, width) in shorts or max(height, width) == 1333
        whole += abs(width / height - 4 / 3) < 0.002
        sizes.add(min(height, width))
    assert 20 <= whole <= 42
    assert len(sizes) > 6


def test_padding_is_zero_after_normalisation_at_the_right_and_the_bottom() -> None:
    images = [torch.full((3, 40, 30), 200, dtype=torch.uint8), torch.zeros(3, 20, 50).byte()]
    normalize = Normalize()
    batch = normalize(Collate().pad(images), [(40, 30), (20, 50)])
    assert batch.shape == (2, 3, 64, 64)
    expected = (200 - 255 * np.array(normalize.mean)) / (255 * np.array(normalize.std))
    assert torch.allclose(batch[0, :, 39, 29].double(), torch.from_numpy(expected), atol=1e-5)
    assert batch[0, :, 40:].eq(0).all()
    assert batch[0, :, :, 30:].eq(0).all()
    assert batch[1, :, 20:].eq(0).all()
    assert batch[1, :, :, 50:].eq(0).all()
    assert Collate(multiple=1, min_size=70).pad(images).shape == (2, 3, 70, 70)


def test_normalising_a_batch_is_normalising_each_image_to_the_last_bit() -> None:
    """Figures of runs were measured on images that workers normalised one by one, in float32."""
    generator = torch.Generator().manual_seed(0)
    sizes = [(40, 30), (64, 50), (1, 64)]
    images = [
        torch.randint(256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes
    ]
    mean, std = (255 * torch.tensor(values).reshape(3, 1, 1) for values in (MEAN, STD))
    expected = torch.zeros(3, 3, 64, 64)
    for slot, image, (height, width) in zip(expected, images, sizes, strict=True):
        slot[:, :height, :width] = (image.float() - mean) / std
    assert torch.equal(Normalize()(Collate().pad(images), sizes), expected)


# -- segmentation


def test_one_class_may_not_have_three_quarters_of_a_crop() -> None:
    mask = torch.zeros(10, 10, dtype=torch.int64)
    mask[:, 7:] = 1
    assert not transforms.is_dominated(mask)  # 70 %
    mask[:, 7:] = 255
    assert transforms.is_dominated(mask)  # of the labelled pixels it has all
    mask[:, 7:9] = 1
    assert transforms.is_dominated(mask)  # 70 of 90
    assert transforms.is_dominated(torch.full((4, 4), 255))


def test_a_crop_is_drawn_again_ten_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def dominated(part: Any) -> bool:
        tries.append(tuple(part.shape))
        return True

    monkeypatch.setattr(transforms, "is_dominated", dominated)
    top, left, bottom, right = transforms.random_crop(torch.zeros(20, 12, dtype=torch.int64), 16)
    assert tries == [(16, 12)] * 10
    assert (bottom - top, left, right) == (16, 0, 12)
    monkeypatch.setattr(
        transforms, "is_dominated", lambda part: len(tries) < 12 and dominated(part)
    )
    transforms.random_crop(torch.zeros(20, 12, dtype=torch.int64), 16)
    assert len(tries) == 12


def test_saturation_is_that_of_hsv() -> None:
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, 6, 7), dtype=np.uint8))
    image[:, 0, 0] = 0
    image[:, 0, 1] = 90  # grey stays grey
    for share in (0.5, 1.0, 1.5):
        found = transforms.scale_saturation(image, share)
        for y in range(6):
            for x in range(7):
                h, s, v = colorsys.rgb_to_hsv(*(image[:, y, x] / 255).tolist())
                rgb = colorsys.hsv_to_rgb(h, min(1.0, share * s), v)
                for channel, value in zip(found[:, y, x].tolist(), rgb, strict=True):
                    assert abs(channel - 255 * value) <= 0.51


def test_distortions_stay_in_their_ranges_and_are_off_as_often_as_on() -> None:
    image = torch.full((3, 4, 4), 100, dtype=torch.uint8)  # grey: saturation and hue do nothing
    values = []
    for seed in range(400):
        torch.manual_seed(seed)
        found = transforms.distort(image)
        assert len(found.unique()) == 1
        values.append(int(found[0, 0, 0]))
    assert sum(value == 100 for value in values) == pytest.approx(100, abs=30)  # a quarter
    assert min(values) >= 34  # (100 - 32) / 2
    assert max(values) <= 198  # (100 + 32) · 1.5
    assert min(values) < 50
    assert max(values) > 165


def test_an_augmented_mask_stays_on_its_image() -> None:
    """The mask is the image's own red channel: it has to be after every step as well."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 4, (6, 9))).repeat_interleave(16, 0)
    mask = coarse.repeat_interleave(16, 1)
    image = (60 * mask).to(torch.uint8).expand(3, -1, -1)
    augment = transforms.SegmentationAugmentation(96, 256, 64, (0.5, 2.0), 0.5, photometric=False)
    shapes = set()
    for seed in range(20):
        torch.manual_seed(seed)
        found, labels = augment(image, mask)
        height, width = found.shape[1:]
        shapes.add((height, width))
        assert labels.shape == (96, 96)
        assert max(height, width) <= 96
        assert labels[height:].eq(255).all()
        assert labels[:, width:].eq(255).all()
        inside = labels[:height, :width]
        assert inside.max() <= 3
        # Bilinear edges differ from nearest ones; inside of a patch they agree.
        assert ((found[0].float() / 60).round() == inside).float().mean() > 0.75
    assert len(shapes) > 5
