"""Image folders: what is read, in which form, and one line for everything that can be wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import seed_everything
from lightning.fabric.utilities.data import has_len
from lightning.pytorch.plugins.precision import HalfPrecision, Precision
from PIL import Image
from timm.data.transforms_factory import create_transform
from torch.utils.data import IterableDataset, get_worker_info
from torchvision import transforms

from spanet_lightning.data import ImageClassificationDataModule
from spanet_lightning.data.checks import UnreadableImageError
from spanet_lightning.data.loaders import exact_loader
from spanet_lightning.data.posterize import posterize
from spanet_lightning.errors import ConfigError, DataError

CLASSES = ("cat", "dog", "owl")


def write_image(path: Path, value: int = 128, size: tuple[int, int] = (40, 36)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 4), ("val", 2)):
        for label, name in enumerate(CLASSES):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.png", value=50 * label + i)
    return tmp_path


def module(root: Path, **arguments: Any) -> ImageClassificationDataModule:
    defaults: dict[str, Any] = {"image_size": 32, "batch_size": 4, "num_workers": 0}
    return ImageClassificationDataModule(str(root), **{**defaults, **arguments})


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


# What is read


def test_nothing_is_read_before_it_is_asked_for() -> None:
    module(Path("no/such/folder"))


def test_classes_come_from_the_folders(root: Path) -> None:
    data = module(root)
    assert data.class_names == CLASSES
    assert data.num_classes == 3


def test_classes_are_known_with_either_split_alone(root: Path) -> None:
    assert module(root, val_split="train").num_classes == 3
    (root / "val").rename(root / "held_out")
    assert module(root).num_classes == 3


def test_every_image_is_loaded_with_its_label(root: Path) -> None:
    data = module(root)
    data.setup("fit")
    train = [labels for _, labels in data.train_dataloader()]
    assert torch.cat(train).bincount().tolist() == [4, 4, 4]
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 0, 1, 1]


def test_test_split_is_val_unless_named(root: Path) -> None:
    data = module(root)
    data.setup("test")
    assert len(data.test_dataloader().dataset) == 6  # type: ignore[arg-type]
    named = module(root, test_split="train")
    named.setup("test")
    assert len(named.test_dataloader().dataset) == 12  # type: ignore[arg-type]


def test_predicts_a_folder_without_classes(root: Path, tmp_path: Path) -> None:
    for i in range(3):
        write_image(tmp_path / "unsorted" / f"{i}.jpg")
    data = module(root, predict_root=str(tmp_path / "unsorted"))
    data.setup("predict")
    images, _ = next(iter(data.predict_dataloader()))
    assert len(images) == 3
    assert [Path(file).name for file in data.predict_files] == ["0.jpg", "1.jpg", "2.jpg"]


def test_other_sources_of_timm_work(root: Path) -> None:
    data = module(root, dataset="torch/image_folder")
    data.setup("fit")
    assert data.class_names == CLASSES
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)


class Shards(IterableDataset[int]):
    """Ten numbers, shared out among the workers, as a reader of shards does it."""

    def __iter__(self) -> Iterator[int]:
        worker = get_worker_info()
        yield from range(10) if worker is None else range(worker.id, 10, worker.num_workers)

    def __len__(self) -> int:
        return 10


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_is_evaluated_to_its_end(workers: int) -> None:
    """Lightning stops at the length of a loader, and two workers make one batch more than it."""
    loader = exact_loader(Shards(), batch_size=4, num_workers=workers)
    assert sorted(torch.cat(list(loader)).tolist()) == list(range(10))
    assert not has_len(loader)


# In which form


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre(root: Path) -> None:
    for crop_pct, side in ((0.9, 248), (0.95, 235), (1.0, 224)):  # as the published runs
        steps = module(root, image_size=224, crop_pct=crop_pct).eval_transform.transforms
        assert isinstance(steps[0], transforms.Resize)
        assert steps[0].size == side
        assert steps[0].interpolation == transforms.InterpolationMode.BICUBIC
        assert steps[1].size == (224, 224)


def test_a_grey_image_is_normalised_by_channel(root: Path) -> None:
    data = module(root, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.4))
    data.setup("validate")
    images, _ = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    grey = torch.zeros(3)  # the first image of the first class is black
    expected = (grey - torch.tensor([0.5, 0.4, 0.3])) / torch.tensor([0.1, 0.2, 0.4])
    torch.testing.assert_close(images[0, :, 16, 16], expected)


def test_defaults_are_the_published_augmentation() -> None:
    data = ImageClassificationDataModule("root")
    crop, flip, policy, _tensor = data.train_transform.transforms
    erase = data.erasing
    assert crop.scale == (0.08, 1.0)
    assert crop.ratio == (3 / 4, 4 / 3)
    assert {mode.name for mode in crop.interpolation} == {"BILINEAR", "BICUBIC"}
    assert flip.p == 0.5
    assert policy.num_layers == 2
    assert len(policy.ops) == 15
    assert {(op.prob, op.magnitude, op.magnitude_std) for op in policy.ops} == {(0.5, 9, 0.5)}
    assert (data.re_prob, erase.mode, erase.max_count) == (0.25, "pixel", 1)


def noise(root: Path, count: int = 4, size: tuple[int, int] = (50, 44)) -> Path:
    """Write images of noise, which any wrong place, channel or scale changes."""
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in CLASSES:
            for i in range(count):
                path = root / "noise" / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    return root / "noise"


def stage(
    data: ImageClassificationDataModule,
    *,
    training: bool,
    precision: Any = None,
    world_size: int = 1,
    rank: int = 0,
) -> None:
    """Attach what the data module asks of a trainer."""
    names = {"training": training, "precision_plugin": precision or Precision()}
    names |= {"current_epoch": 0, "world_size": world_size, "global_rank": rank}
    names["fit_loop"] = type("Loop", (), {"batch_idx": -1})()  # no batch has been counted yet
    data.trainer = type("Trainer", (), names)()


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_step_gets_what_timm_normalises_image_by_image(tmp_path: Path, split: str) -> None:
    """Workers send uint8 and the hook normalises whole batches: the numbers stay the same."""
    scales: dict[str, Any] = {"mean": (0.5, 0.4, 0.3), "std": (0.1, 0.2, 0.4)}
    data = module(noise(tmp_path), **scales, re_prob=0.0, train_interpolation="bicubic")
    data.setup("fit")
    stage(data, training=split == "train")
    whole = create_transform(
        *(32, split == "train"),
        **{**scales, "interpolation": "bicubic", "crop_pct": 0.9, "color_jitter": 0.4},
        **({"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0} if split == "train" else {}),
    )
    loader = data.train_dataloader() if split == "train" else data.val_dataloader()
    dataset: Any = loader.dataset
    order = list(loader.sampler)
    stored, labels = next(iter(loader))
    assert stored.dtype == torch.uint8
    (dataset.dataset if split == "train" else dataset).transform = whole
    expected = [dataset[i] for i in order[:4]]
    images, same = data.on_after_batch_transfer((stored, labels), 0)
    torch.testing.assert_close(
        images, torch.stack([image for image, _ in expected]), rtol=0, atol=5e-6
    )
    assert images.is_contiguous()
    assert labels.dtype == torch.int64
    assert same.tolist() == [label for _, label in expected]


def test_random_erasing_is_of_training_alone(tmp_path: Path) -> None:
    data = module(noise(tmp_path), re_prob=1.0)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    plain = data.normalize(batch[0])
    erased = []
    for seed in (0, 0, 1):
        stage(data, training=True)
        seed_everything(seed, verbose=False)
        torch.rand(5)  # what a process has drawn before must not matter
        erased.append(data.on_after_batch_transfer(batch, 0)[0])
    changed = (erased[0] != plain).any(dim=1)
    assert changed.any(dim=(1, 2)).all()
    assert 0.02 <= changed.float().mean() <= 0.4  # of a box's area
    assert torch.equal(erased[0], erased[1])  # the seed decides
    assert not torch.equal(erased[0], erased[2])
    stage(data, training=False)
    assert torch.equal(data.on_after_batch_transfer(batch, 0)[0], plain)


def test_erasing_is_the_same_in_one_process_or_two(tmp_path: Path) -> None:
    """By the place of an image in the epoch's order, whoever has it."""
    whole = module(noise(tmp_path), re_prob=0.5, batch_size=8)
    whole.setup("fit")
    images, labels = next(iter(whole.val_dataloader()))
    stage(whole, training=True)
    expected = whole.on_after_batch_transfer((images, labels), 0)[0]
    assert 0 < (expected != whole.normalize(images)).flatten(1).any(dim=1).sum() < 8
    data = module(noise(tmp_path), re_prob=0.5, batch_size=4)
    parts = []
    for rank, part in enumerate(images.split(4)):
        stage(data, training=True, world_size=2, rank=rank)
        parts.append(data.on_after_batch_transfer((part, labels), 0)[0])
    assert torch.equal(torch.cat(parts), expected)


def test_a_run_in_half_precision_gets_its_images_in_it(root: Path) -> None:
    """Lightning converts floats before the hook, where there were none."""
    data = module(root)
    data.setup("validate")
    stage(data, training=False, precision=HalfPrecision("bf16-true"))
    images, labels = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert (images.dtype, labels.dtype) == (torch.bfloat16, torch.int64)


def test_strongest_posterization_is_black() -> None:
    """Pillow 13 refuses 0 bits, which the published policy draws for one image in some hundred."""
    image = Image.new("RGB", (4, 4), (200, 100, 50))
    assert posterize(image, 0).getextrema() == ((0, 0),) * 3
    assert posterize(image, 1).getpixel((0, 0)) == (128, 0, 0)
    assert posterize(image, 8) is image


def test_policy_survives_its_largest_magnitude(root: Path) -> None:
    policy = module(root, auto_augment="rand-m10-inc1-n15").train_transform.transforms[2]
    posterizing = [op for op in policy.ops if op.name.startswith("Posterize")]
    assert posterizing
    for op in posterizing:
        op.prob = 1.0
        op(Image.new("RGB", (4, 4)))


# What can be wrong


def test_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"root: found nothing at .*missing") as error:
        module(tmp_path / "missing").setup("fit")
    one_line(error)


def test_missing_split_is_named_with_the_likely_one(root: Path) -> None:
    (root / "val").rename(root / "valid")
    with pytest.raises(DataError) as error:
        module(root).setup("fit")
    line = one_line(error)
    assert "val_split: got 'val', which is no folder of" in line
    assert "expected one of 'train', 'valid'; did you mean 'valid'?" in line


def test_folder_without_images_is_named(root: Path) -> None:
    for file in (root / "val").rglob("*.png"):
        file.rename(file.with_suffix(".txt"))
    with pytest.raises(
        DataError, match=r"folder .*val: found no images, expected .*\.png"
    ) as error:
        module(root).setup("fit")
    one_line(error)


def test_class_without_images_is_named(root: Path) -> None:
    for file in (root / "val" / "dog").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"folder .*val/dog: found no images") as error:
        module(root).setup("fit")
    one_line(error)


@pytest.mark.parametrize(("fewer", "more"), [("val", "train"), ("train", "val")])
def test_class_of_one_split_only_is_named(root: Path, fewer: str, more: str) -> None:
    (root / fewer / "owl").rename(root / "elsewhere")
    with pytest.raises(DataError) as error:
        module(root).setup("fit")
    assert f"{fewer}: found no images of 'owl', expected the classes of" in one_line(error)
    assert str(root / more) in str(error.value)


def test_misspelt_class_gets_a_suggestion(root: Path) -> None:
    (root / "val" / "owl").rename(root / "val" / "owls")
    with pytest.raises(DataError, match=r"no images of 'owl'.*did you mean 'owls'"):
        module(root).setup("fit")


def test_images_beside_the_classes_are_refused(root: Path) -> None:
    write_image(root / "train" / "stray.png")
    with pytest.raises(
        DataError, match=r"train: found stray.png, expected a folder for each class"
    ):
        module(root).setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_unreadable_image_is_named_in_one_line(root: Path, damage: str, workers: int) -> None:
    """From a worker process too, whose whole traceback torch puts into the message."""
    path = root / "val" / "dog" / "1.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        path
    )
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:3000], "text": b"not an image", "empty": b""}[damage])
    data = module(root, num_workers=workers)
    data.setup("validate")
    with pytest.raises(UnreadableImageError) as error:
        list(data.val_dataloader())
    line = one_line(error)
    assert line.startswith(f"image {path} (index 3): ")
    assert line.endswith("expected an image that Pillow can decode")


def test_set_smaller_than_a_batch_is_refused(root: Path) -> None:
    data = module(root, batch_size=13)
    data.setup("fit")
    with pytest.raises(DataError, match="batch_size: got 13, expected at most 12"):
        data.train_dataloader()


def test_source_that_does_not_open_is_named(root: Path) -> None:
    data = module(root, dataset="torch/cifar10")
    with pytest.raises(DataError, match="dataset: can't open 'torch/cifar10'") as error:
        data.setup("fit")
    one_line(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "wdss/x"}, r"dataset: got 'wdss/x'.* did you mean 'wds/'"),
        ({"crop_pct": 1.2}, r"crop_pct: got 1.2, expected a number in \(0, 1\]"),
        ({"scale": (0.0, 1.0)}, r"scale: got \(0.0, 1.0\)"),
        ({"ratio": (2.0, 1.0)}, r"ratio: got"),
        ({"hflip": 1.5}, "hflip: got 1.5"),
        ({"re_prob": -1.0}, "re_prob: got -1.0"),
        ({"std": (0.0, 1.0, 1.0)}, "std: got"),
        ({"interpolation": "cubic"}, "interpolation: got 'cubic'.* did you mean 'bicubic'"),
        ({"train_interpolation": "rnadom"}, "train_interpolation: .* did you mean 'random'"),
        ({"auto_augment": "rand-q9"}, "auto_augment: got 'rand-q9'"),
        ({"auto_augment": "best"}, "auto_augment: got 'best'"),
        ({"image_size": 31}, "image_size: got 31, expected at least 32"),
        ({"num_workers": -1}, "num_workers: got -1"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"num_classes": 1}, "num_classes: got 1"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(Path("root"), **arguments)


def test_of_two_classes_the_one_missing_in_val_is_named(tmp_path: Path) -> None:
    for folder in ("train/cat", "train/dog", "val/cat"):
        (tmp_path / folder).mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / folder / "0.png")
    with pytest.raises(DataError, match="dog"):
        _ = ImageClassificationDataModule(root=str(tmp_path)).num_classes
