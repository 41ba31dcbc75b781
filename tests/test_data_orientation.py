"""EXIF-rotated images: pixels, boxes and masks of one image have the same side up."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from spanet_lightning import app
from spanet_lightning.data import CocoDataModule, SegmentationFoldersDataModule, rle
from spanet_lightning.data.images import read_image
from spanet_lightning.data.orientation import meaning
from spanet_lightning.errors import DataError
from tests import dense_sets

ORIENTATION = 0x0112


def picture(width: int = 48, height: int = 32) -> Image.Image:
    """Return a picture whose four corners differ, so that no turn of it looks like another."""
    pixels = np.full((height, width, 3), 40, dtype=np.uint8)
    pixels[: height // 2, : width // 2] = (250, 0, 0)
    pixels[: height // 2, width // 2 :] = (0, 250, 0)
    pixels[height // 2 :, : width // 2] = (0, 0, 250)
    return Image.fromarray(pixels)


def stored_turned(upright: Image.Image, orientation: int, path: Path) -> Path:
    """Write what viewers show as `upright`: the first of the eight ways that turns out so."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    for way in (None, *Image.Transpose):
        pixels = upright if way is None else upright.transpose(way)
        file = io.BytesIO()
        pixels.save(file, "PNG", exif=exif.tobytes())
        with Image.open(file) as image:
            if np.array_equal(ImageOps.exif_transpose(image), upright):
                path.write_bytes(file.getvalue())
                return path
    raise AssertionError(orientation)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_read_as_viewers_show_it(orientation: int, tmp_path: Path) -> None:
    upright = picture()
    path = stored_turned(upright, orientation, tmp_path / "a.png")
    expected = torch.from_numpy(np.array(upright)).permute(2, 0, 1)
    assert torch.equal(read_image(path), expected)
    assert torch.equal(read_image(path, (32, 48)), expected)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_an_image_annotated_as_stored_is_left_so(orientation: int, tmp_path: Path) -> None:
    path = stored_turned(picture(), orientation, tmp_path / "a.png")
    with Image.open(path) as image:
        stored = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert stored.shape == (3, 48, 32)
    assert torch.equal(read_image(path, (48, 32)), stored)


@pytest.mark.parametrize(
    ("orientation", "stored", "stated", "expected"),
    [
        (1, (4, 3), (4, 3), "plain"),
        (1, (4, 3), (3, 4), "neither"),
        (6, (4, 3), (3, 4), "upright"),
        (6, (4, 3), (4, 3), "stored"),
        (6, (4, 3), (4, 4), "neither"),
        (6, (4, 4), (4, 4), "unclear"),
        (6, (4, 3), None, "unclear"),
        (3, (4, 3), (4, 3), "unclear"),
        (3, (4, 3), (3, 4), "neither"),
    ],
)
def test_the_stated_size_decides(orientation: int, stored: Any, stated: Any, expected: str) -> None:
    assert meaning(orientation, stored, stated) == expected


def test_a_tiff_which_pillow_turns_by_itself_is_not_turned_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    picture().save(path, tiffinfo={ORIENTATION: 6})
    expected = np.array(picture().transpose(Image.Transpose.ROTATE_270))
    assert torch.equal(read_image(path), torch.from_numpy(expected).permute(2, 0, 1))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of the broken EXIF
@pytest.mark.parametrize("exif", [b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_a_broken_exif_is_none(exif: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture().save(path, exif=exif)
    assert read_image(path).shape == (3, 32, 48)


# -- COCO


def coco(tmp_path: Path, orientation: int, annotated: str) -> tuple[Path, CocoDataModule]:
    """Write a validation set whose first image is turned, annotated upright or as stored.

    Its one object is the left upper, red quarter of the image that was annotated.
    """
    root = dense_sets.coco(tmp_path / "set")
    width, height = (32, 48)  # as annotated
    path = root / "val" / "007.jpg"
    if annotated == "upright":
        stored_turned(picture(width, height), orientation, path)
    else:
        picture(width, height).save(path, "PNG")
        turn_png(path, orientation)

    def change(document: Any) -> None:
        image = document["images"][0]
        image.update(width=width, height=height)
        mask = torch.zeros(height, width, dtype=torch.bool)
        mask[: height // 2, : width // 2] = True
        rest = [a for a in document["annotations"] if a["image_id"] != image["id"]]
        object_ = {"id": 1, "image_id": image["id"], "category_id": 3, "iscrowd": 0}
        object_ |= {"bbox": [0, 0, width // 2, height // 2], "area": 384.0}
        document["annotations"] = [*rest, {**object_, "segmentation": rle.encode(mask)}]

    dense_sets.edit(root, "val", change)
    data = CocoDataModule(
        str(root),
        **dense_sets.COCO_FOLDERS,
        long_side=48,
        short_side=48,
        short_sides=(48,),
        masks=True,
    )
    return root, data


def turn_png(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    with Image.open(path) as image:
        image.load()
    image.save(path, "PNG", exif=exif.tobytes())


def checked(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> Any:
    with contextlib.suppress(SystemExit):
        app.main(["data", "check", str(root), "--json", *options])
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("orientation", "annotated"),
    [(3, "upright"), (6, "upright"), (8, "upright"), (6, "stored"), (8, "stored")],
)
def test_coco_objects_lie_on_their_pixels(
    orientation: int, annotated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, data = coco(tmp_path, orientation, annotated)
    data.setup("validate")
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert batch.sizes == batch.original_sizes == [(48, 32)]
    (mask,) = batch.targets[0]["masks"]
    red = batch.images[0, 0, :48, :32] > 1
    blue = batch.images[0, 2, :48, :32] > 1
    assert torch.equal(mask, red & ~blue)
    found = checked(root, capsys)
    assert found["faults"] == []
    upright, stored = annotated == "upright", annotated == "stored"
    unclear = orientation == 3
    (note,) = [note for note in found["notes"] if "EXIF" in note]
    assert note == (
        f"EXIF-rotated images: {upright - unclear:d} annotated upright, "
        f"{stored:d} as stored, and {unclear:d} whose size does not tell: those are read upright"
    )


def test_a_size_that_fits_neither_way_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, data = coco(tmp_path, 6, "upright")
    dense_sets.edit(root, "val", lambda d: d["images"][0].update(width=40))
    data.masks = False  # whose sizes would be refused before the image is read
    data.setup("validate")
    with pytest.raises(
        DataError, match=r"007\.jpg \(index 0, id 70\): got 32×48 px, expected 40×48"
    ):
        next(iter(data.val_dataloader()))
    (fault,) = [f for f in checked(root, capsys)["faults"] if f["kind"] == "size mismatch"]
    assert fault["detail"] == (
        "got 48×32 px (EXIF-rotated, orientation 6), expected 40×48 px as annotated"
    )


def test_a_predicted_image_is_upright(tmp_path: Path) -> None:
    stored_turned(picture(32, 48), 6, tmp_path / "a.png")
    for data in (
        CocoDataModule(".", predict_root=str(tmp_path), num_workers=0),
        SegmentationFoldersDataModule(".", predict_root=str(tmp_path), num_workers=0),
    ):
        data.setup("predict")
        (batch,) = data.predict_dataloader()
        ((height, width),) = batch.sizes
        assert height > width


# -- images and masks


@pytest.mark.parametrize("annotated", ["upright", "stored"])
def test_the_size_of_the_mask_decides(
    annotated: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = dense_sets.masks(tmp_path / "set")
    path, mask = root / "images/validation/5.jpg", root / "annotations/validation/5.png"
    if annotated == "upright":
        stored_turned(picture(32, 48), 6, path)
    else:
        picture(32, 48).save(path, "PNG")
        turn_png(path, 6)
    labels = np.ones((48, 32), dtype=np.uint8)
    labels[:24, :16] = 2  # red
    Image.fromarray(labels).save(mask)
    data = SegmentationFoldersDataModule(str(root), short_side=32, long_side=64, num_workers=0)
    data.setup("validate")
    batch = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    red = (batch.images[0, 0] > 1) & (batch.images[0, 2] < 1)
    assert torch.equal(batch.masks[0] == 1, red)
    assert checked(root, capsys)["faults"] == []
    Image.fromarray(labels[:40]).save(mask)
    (fault,) = checked(root, capsys)["faults"]
    assert fault["kind"] == "size mismatch"
    assert "(EXIF-rotated, orientation 6)" in fault["detail"]
