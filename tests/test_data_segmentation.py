"""Masks: where they lie, which classes they have, and one error for whatever is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from spanet_lightning.data import SegmentationFoldersDataModule, class_lists
from spanet_lightning.errors import ConfigError, DataError
from tests import dense_sets


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return dense_sets.masks(tmp_path / "set")


def module(root: Path, **arguments: Any) -> SegmentationFoldersDataModule:
    small: dict[str, Any] = {"crop_size": 64, "long_side": 256, "short_side": 64, "num_workers": 0}
    return SegmentationFoldersDataModule(str(root), **{**small, **arguments})


def striped(root: Path, *values: Any) -> Path:
    """Write a data set whose masks are vertical stripes of some values or colours."""
    for split, count in (("training", 2), ("validation", 1)):
        for i in range(count):
            stripes = np.repeat(np.array(values, dtype=np.uint8), 8, axis=0)
            mask = Image.fromarray(np.repeat(stripes[None], 48, axis=0))
            image = torch.full((48, 8 * len(values), 3), 90, dtype=torch.uint8)
            dense_sets.save(image, root / "images" / split / f"{i}.png")
            path = root / "annotations" / split / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            mask.save(path)
    return root


def first_labels(data: SegmentationFoldersDataModule) -> list[int]:
    data.setup("validate")
    labels: list[int] = next(iter(data.val_dataloader())).masks[0][0, ::8].tolist()
    return labels


def test_classes_come_from_the_list(root: Path) -> None:
    data = module(root)
    assert data.num_classes == 10  # its 0 is void
    assert data.class_names == tuple(f"digit {i}" for i in range(10))
    assert data.palette[2] == (40, 0, 9)
    assert data.info.ids == tuple(range(1, 11))


def test_evaluation_keeps_the_stored_mask(root: Path) -> None:
    data = module(root, short_side=40)
    data.setup("validate")
    for batch in data.val_dataloader():
        file = Path(batch.paths[0].replace("images", "annotations")).with_suffix(".png")
        stored = dense_sets.as_array(file).astype(int)
        assert np.array_equal(batch.masks[0].numpy(), np.where(stored == 0, 255, stored - 1))
        assert batch.sizes == [(40, 48)]
        assert batch.images.shape == (1, 3, 40, 48)  # no padding


def test_training_batches_have_one_size_whatever_the_images_have(root: Path) -> None:
    data = module(root, scale=(0.5, 0.6))
    data.setup("fit")
    (batch,) = map(data.normalized, data.train_dataloader())
    assert batch.images.shape == (4, 3, 64, 64)
    assert torch.stack(batch.masks).shape == (4, 64, 64)
    for image, mask, (height, width) in zip(batch.images, batch.masks, batch.sizes, strict=True):
        assert height < 64
        assert image[:, height:].eq(0).all()
        assert mask[:, width:].eq(255).all()


def test_images_depend_on_seed_epoch_and_number_alone(root: Path) -> None:
    def pixels(epoch: int) -> torch.Tensor:
        data = module(root)
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]  # as Lightning does
        torch.rand(3)  # what a process has drawn before must not matter
        return torch.cat([batch.images for batch in loader])

    assert torch.equal(pixels(0), pixels(0))
    assert not torch.equal(pixels(0), pixels(1))


# -- values


@pytest.mark.parametrize(
    ("values", "arguments", "labels"),
    [
        ((0, 1, 2, 255), {}, [0, 1, 2, 255]),
        ((1, 2, 255), {}, [0, 1, 255]),  # 0 occurs nowhere
        ((0, 1, 2), {"reduce_zero_label": True}, [255, 0, 1]),
        ((1, 2), {"num_classes": 2}, [0, 1]),
        ((1, 2), {"num_classes": 3}, [0, 1]),
        ((0, 5), {"num_classes": 9}, [0, 5]),
    ],
)
def test_values_without_a_list(values: Any, arguments: Any, labels: Any, tmp_path: Path) -> None:
    assert first_labels(module(striped(tmp_path, *values), **arguments)) == labels


@pytest.mark.parametrize(
    ("values", "arguments", "message"),
    [
        ((0, 255), {}, r"values 0, 255 \(255 does not count\): 1 of 1 classes .*palette\.yaml"),
        ((0, 255), {"reduce_zero_label": True}, r"0, 255 .*\(0 does not count"),
        ((0, 128, 254), {}, r"values 0, 128, 254: 3 of 255 classes"),
        ((0, 1, 2, 3, 252, 253, 254, 255), {}, r"values 0 to 3, 252 to 255 "),
        ((0, 1, 2), {"num_classes": 2}, r"0 to 2, expected 0 to 1.*num_classes: 3, or reduce_zero"),
        ((0, 9), {"num_classes": 4}, r"values 0, 9, expected 0 to 3"),
        ((255, 255), {"num_classes": 4}, r"no pixel of a class: the values are 255"),
    ],
)
def test_values_that_are_no_classes_are_refused(
    values: Any, arguments: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        module(striped(tmp_path, *values), **arguments).setup("fit")


def test_classes_without_a_pixel_are_named_before_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "classes.txt").write_text("sky\nroad\nsea\n")
    with caplog.at_level("INFO"):
        module(striped(tmp_path, 0, 1, 255)).setup("fit")
    assert "1 of 3 classes have no pixel in 2 masks of training: sea." in caplog.text
    assert "Values that do not count in 1 masks of validation: 255 (33.3%)." in caplog.text


@pytest.mark.parametrize(
    ("palette", "values", "mode"),
    [
        ("background: 0\nobject: 255\n", (0, 255), "L"),
        ("sky: [0, 0, 9]\noff: [250, 0, 0]\n", ((0, 0, 9), (250, 0, 0)), "RGB"),
        ("sky: [0, 0, 9]\noff: [250, 0, 0]\n", ((0, 0, 9), (250, 0, 0)), "P"),
        ("background: [0, 0, 0]\nobject: [255, 255, 255]\n", (0, 255), "L"),
        ("background: [0, 0, 0]\nobject: [255, 255, 255]\n", (0, 255), "1"),
    ],
)
def test_a_palette_file_names_values_or_colours(
    palette: str, values: Any, mode: str, tmp_path: Path
) -> None:
    striped(tmp_path, *values)
    for file in tmp_path.glob("annotations/*/*.png"):
        with Image.open(file) as mask:
            mask.load()
        (mask.quantize(8) if mode == "P" else mask.convert(mode)).save(file)
    void = "[7, 7, 7]" if "[" in palette else "7"
    (tmp_path / "palette.yaml").write_text(f"{palette}void: {void}\n")
    data = module(tmp_path)
    assert first_labels(data) == [0, 1]
    assert data.class_names == tuple(line.split(":")[0] for line in palette.splitlines())


def test_colours_without_a_palette_file_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    striped(tmp_path, (0, 0, 9), (250, 0, 0))
    with pytest.raises(DataError, match=r"colours such as \[0, 0, 9\].*palette\.yaml"):
        module(tmp_path).setup("fit")
    (tmp_path / "palette.yaml").write_text("sky: [0, 0, 9]\nroad: [9, 9, 9]\n")
    with pytest.raises(DataError, match=r"0\.png \(index 0\): got the colour \[250, 0, 0\] at 384"):
        module(tmp_path).setup("fit")


def test_palettes_that_differ_are_refused_or_read_by_colour(tmp_path: Path) -> None:
    striped(tmp_path, 0, 1)
    for i, colours in enumerate(([60, 0, 0, 0, 90, 0], [0, 90, 0, 60, 0, 0])):
        file = tmp_path / f"annotations/training/{i}.png"
        mask = Image.fromarray(dense_sets.as_array(file))
        mask.putpalette(colours)
        mask.save(file)
    with pytest.raises(DataError, match=r"palettes of masks differ: index 0 is \[60, 0, 0\] in"):
        module(tmp_path).setup("fit")
    (tmp_path / "palette.yaml").write_text("a: [60, 0, 0]\nb: [0, 90, 0]\n")
    data = module(tmp_path, val_split="training")
    data.setup("validate")
    assert [b.masks[0][0, ::8].tolist() for b in data.val_dataloader()] == [[0, 1], [1, 0]]


def test_a_mask_of_another_size_is_resized_where_asked(tmp_path: Path) -> None:
    striped(tmp_path, 0, 1)
    file = tmp_path / "annotations/validation/0.png"
    Image.fromarray(dense_sets.as_array(file)).resize((8, 24), Image.Resampling.NEAREST).save(file)
    with pytest.raises(DataError, match=r"got 8×24 px, expected 16×48 .*masks: resize"):
        first_labels(module(tmp_path))
    assert first_labels(module(tmp_path, masks="resize")) == [0, 1]
    Image.new("L", (8, 48)).save(file)
    with pytest.raises(DataError, match=r"got 8×48 px, expected 16×48 as \S+$"):
        first_labels(module(tmp_path, masks="resize", num_classes=2))


# -- folders and lists


def test_voc_folders_are_read_as_they_come(tmp_path: Path) -> None:
    striped(tmp_path / "flat", 0, 1, 2, 255)
    for kind, name in (("images", "JPEGImages"), ("annotations", "SegmentationClass")):
        (tmp_path / name).mkdir()
        for i, file in enumerate(sorted((tmp_path / "flat" / kind).rglob("*.png"))):
            file.rename(tmp_path / name / f"2007_{i}.png")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_2\n")
    (lists / "val.txt").write_text("2007_1\n")
    colours = (("background", "0,0,0"), ("a", "1,1,1"), ("b", "2,2,2"), ("ignored", "255,255,255"))
    lines = ["# label:color_rgb:parts:actions", *(f"{name}:{rgb}::" for name, rgb in colours)]
    (tmp_path / "labelmap.txt").write_text("\n".join(lines))
    data = module(tmp_path, batch_size=2)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert sorted(Path(path).stem for path in batch.paths) == ["2007_0", "2007_2"]
    assert data.class_names == ("background", "a", "b")
    assert first_labels(data) == [0, 1, 2, 255]
    (lists / "val.txt").write_text("2007_1\n2007_9\n")
    with pytest.raises(DataError, match=r"2007_9: missing image: \S+val\.txt names it"):
        module(tmp_path).setup("fit")


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("l.txt", "Idx\tRatio\tName\n1\t0.1\twall\n2\t0.2\ta, b\n", {1: "wall", 2: "a, b"}),
        ("l.csv", "id,name\n0,sky\n1,road\n", {0: "sky", 1: "road"}),
        ("l.txt", "sky\nroad\n", {0: "sky", 1: "road"}),
        ("l.yaml", "off: 3\n007: 4\n", {3: "off", 4: "007"}),
        ("l.yaml", "sky: [0, 1, 2]\n", {258: "sky"}),
    ],
)
def test_forms_of_class_lists(name: str, text: str, names: Any, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    assert class_lists.read(tmp_path / name).names == names


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.csv", ""),
        ("classes.csv", "id,name\nx,sky\n"),
        ("classes.csv", "id,name\n1,a\n1,b\n"),
        ("classes.txt", "sky\nsky\n"),
        ("palette.yaml", "a: [1, 2, 3]\nb: [1, 2, 3]\n"),
        ("palette.yaml", "a: [1, 2]\n"),
        ("palette.yaml", "a: [1, 2, 3]\nb: 4\n"),
    ],
)
def test_a_faulty_list_is_refused(name: str, text: str, root: Path) -> None:
    (root / "classes.csv").unlink()
    (root / name).write_text(text)
    with pytest.raises(DataError, match=name.replace(".", r"\.")):
        _ = module(root).num_classes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("crop_size", 8),
        ("long_side", 32),
        ("num_classes", 300),
        ("scale", (0.0, 1.0)),
        ("masks", "crop"),
    ],
)
def test_arguments_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{key}: got"):
        module(Path(), **{key: value})


def test_missing_folders_are_named(root: Path) -> None:
    with pytest.raises(DataError, match=r"train_split: got 'trianing'.*did you mean 'training'"):
        module(root, train_split="trianing").setup("fit")
    with pytest.raises(DataError, match="images: found no folder at"):
        module(root, images="imgs").setup("fit")
    with pytest.raises(ConfigError, match="num_classes: got 12, expected 10, as many as"):
        _ = module(root, num_classes=12).num_classes


def test_pairs_with_one_name_twice_are_refused(root: Path) -> None:
    image = root / "images/training/1.jpg"
    image.with_suffix(".png").write_bytes(image.read_bytes())
    with pytest.raises(DataError, match="duplicate image name"):
        module(root).setup("fit")
