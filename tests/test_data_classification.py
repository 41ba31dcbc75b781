"""Image folders: what is read, in which form, and one line for everything that can be wrong."""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Callable, Iterator
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
from torch.utils.data import IterableDataset, SequentialSampler, get_worker_info
from torchvision import transforms

from spanet_lightning.data import ImageClassificationDataModule
from spanet_lightning.data.faults import UnreadableImageError
from spanet_lightning.data.loaders import exact_loader
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


def test_every_image_is_loaded_with_its_label(root: Path) -> None:
    data = module(root)
    data.setup("fit")
    assert data.class_names == CLASSES
    train = [labels for _, labels in data.train_dataloader()]
    assert torch.cat(train).bincount().tolist() == [4, 4, 4]
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 0, 1, 1]


def labels_of(data: ImageClassificationDataModule, stage: str) -> list[int]:
    data.setup(stage)
    loader = {"validate": data.val_dataloader, "test": data.test_dataloader}[stage]()
    return [label for _, labels in loader for label in labels.tolist()]


def test_labels_are_those_of_the_training_split_in_all_of_them(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A split that lacks a class scored a perfect model 0.5, once."""
    shutil.rmtree(root / "val" / "dog")
    with caplog.at_level("INFO"):
        assert labels_of(module(root), "validate") == [0, 0, 2, 2]
    assert "'val' has no image of 'dog'" in caplog.text
    (root / "train").rename(root / "gone")
    assert module(root).class_names == ("cat", "owl")
    assert labels_of(module(root, classes=list(CLASSES)), "validate") == [0, 0, 2, 2]
    assert labels_of(module(root, train_split="gone", test_split="val"), "test") == [0, 0, 2, 2]


def test_a_class_is_the_first_folder_below_the_split(root: Path) -> None:
    write_image(root / "train" / "cat" / "indoor" / "dark" / "1.png")
    write_image(root / "train" / "cat" / ".ipynb_checkpoints" / "1.png")
    write_image(root / "train" / ".ipynb_checkpoints" / "1.png")
    data = module(root)
    data.setup("fit")
    assert data.class_names == CLASSES
    assert len(data.train_dataloader().dataset) == 13  # type: ignore[arg-type]


def test_names_of_classes_are_compared_in_one_unicode_form(root: Path) -> None:
    for split, form in (("train", "NFC"), ("val", "NFD")):
        (root / split / "owl").rename(root / split / unicodedata.normalize(form, "é"))  # type: ignore[arg-type]
    assert labels_of(module(root), "validate") == [0, 0, 1, 1, 2, 2]


def test_classes_are_numbered_by_value(root: Path) -> None:
    for split in ("train", "val"):
        for old, new in zip(CLASSES, ("10", "9", "B"), strict=True):
            (root / split / old).rename(root / split / new)
    assert module(root).class_names == ("9", "10", "B")


def test_predicts_a_folder_without_classes(root: Path, tmp_path: Path) -> None:
    for name in ("10.jpg", "9.JPG", "x.webp", "sub/a.bmp"):
        write_image(tmp_path / "unsorted" / name)
    data = module(root, predict_root=str(tmp_path / "unsorted"))
    data.setup("predict")
    images, _ = next(iter(data.predict_dataloader()))
    assert len(images) == 4
    assert [Path(file).name for file in data.predict_files] == [
        "9.JPG",
        "10.jpg",
        "a.bmp",
        "x.webp",
    ]


def test_other_sources_of_timm_work(root: Path) -> None:
    data = module(root, dataset="torch/image_folder")
    data.setup("fit")
    assert data.class_names == CLASSES
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (4, 3, 32, 32)


# Splits that are made, and uneven classes


def files_of(data: ImageClassificationDataModule) -> tuple[list[str], list[str]]:
    data.setup("fit")
    return tuple(  # type: ignore[return-value]
        [str(Path(file).relative_to(data.root)) for file in loader.reader.files]
        for loader in (data._datasets["train_split"], data._datasets["val_split"])
    )


def test_a_share_of_each_class_is_held_out_by_seed(root: Path) -> None:
    train, val = files_of(module(root, split=0.25))
    assert [name.split("/")[1] for name in val] == list(CLASSES)
    assert len({*train, *val}) == 12
    assert files_of(module(root, split=0.25)) == (train, val)
    assert files_of(module(root, split=0.25, split_seed=1)) != (train, val)
    write_image(root / "train" / "cat" / "new.png")  # moves none of the others out of training
    assert {*val} >= {name for name in files_of(module(root, split=0.2))[1] if "cat" not in name}


def test_folds_hold_out_every_image_once(root: Path) -> None:
    held_out = [name for i in range(4) for name in files_of(module(root, kfold=f"4/{i}"))[1]]
    assert len(held_out) == len(set(held_out)) == 12


def test_class_folders_without_splits_are_read(root: Path) -> None:
    data = module(root / "train", train_split=".", split=0.5)
    assert [len(part) for part in files_of(data)] == [6, 6]
    assert data.class_names == CLASSES


def test_the_split_is_part_of_the_digest(root: Path) -> None:
    digests = set()
    for arguments in ({"split": 0.25}, {"split": 0.25, "split_seed": 1}, {"kfold": "2/0"}):
        data = module(root, **arguments)
        data.setup("fit")
        digests.add(data.identity().digest)
        assert data.identity().images["val"] > 0
    assert len(digests) == 3


def test_uneven_classes_can_be_weighted_or_drawn_evenly(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(4, 40):
        write_image(root / "train" / "cat" / f"{i}.png")
    data = module(root)
    with caplog.at_level("INFO"):
        data.setup("fit")
    assert "4 to 40 training images; data.class_weights or data.sampling" in caplog.text
    assert data.loss_weights() is None
    weights = module(root, class_weights="balanced").loss_weights()
    assert weights is not None
    torch.testing.assert_close(weights, torch.tensor([0.4, 4.0, 4.0]))
    data = module(root, sampling="balanced", batch_size=16)
    data.setup("fit")
    loader = data.train_dataloader()
    draws = list(loader.sampler)
    counts = torch.cat([labels for _, labels in loader]).bincount()
    assert counts.sum() == 48
    assert counts.min() >= 8
    assert len(set(draws)) == len(draws)  # the same image, but not the same augmentation
    assert [draw.number for draw in loader.sampler] == [draw.number for draw in draws]


def test_overfit_batches_see_all_classes_in_a_fixed_order(root: Path) -> None:
    """Lightning puts a sampler in the place of ours that begins with one class alone."""
    data = module(root, batch_size=6)
    data.setup("fit")
    loader = data.train_dataloader()
    fixed = type(loader)(
        loader.dataset, batch_size=6, sampler=SequentialSampler(loader.dataset), num_workers=0
    )
    first = [labels.tolist() for _, labels in fixed]
    assert len(set(first[0])) > 1
    fixed.sampler.set_epoch(3)  # type: ignore[attr-defined]
    assert [labels.tolist() for _, labels in fixed] == first


def test_grey_images_for_a_network_of_one_channel(root: Path) -> None:
    data = module(root, in_chans=1)
    data.setup("fit")
    for images, _ in (next(iter(data.train_dataloader())), next(iter(data.val_dataloader()))):
        assert images.shape == (4, 1, 32, 32)
    assert (data.info.channels, len(data.info.mean)) == (1, 1)
    assert data.normalize(images).shape == (4, 1, 32, 32)


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
        erased.append(data.erase(data.normalize(batch[0])))
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
    images, _ = next(iter(whole.val_dataloader()))
    stage(whole, training=True)
    expected = whole.erase(whole.normalize(images))
    assert 0 < (expected != whole.normalize(images)).flatten(1).any(dim=1).sum() < 8
    data = module(noise(tmp_path), re_prob=0.5, batch_size=4)
    parts = []
    for rank, part in enumerate(images.split(4)):
        stage(data, training=True, world_size=2, rank=rank)
        parts.append(data.erase(data.normalize(part)))
    assert torch.equal(torch.cat(parts), expected)


def test_a_run_in_half_precision_gets_its_images_in_it(root: Path) -> None:
    """Lightning converts floats before the hook, where there were none."""
    data = module(root)
    data.setup("validate")
    stage(data, training=False, precision=HalfPrecision("bf16-true"))
    images, labels = data.on_after_batch_transfer(next(iter(data.val_dataloader())), 0)
    assert (images.dtype, labels.dtype) == (torch.bfloat16, torch.int64)


def test_policy_survives_its_largest_magnitude(root: Path) -> None:
    """Pillow 13 refuses 0 bits, which the published policy draws for one image in some hundred."""
    policy = module(root, auto_augment="rand-m10-inc1-n15").train_transform.transforms[2]
    for op in policy.ops:
        if op.name.startswith("Posterize"):
            op.prob = 1.0
            assert op(Image.new("RGB", (4, 4), (200, 100, 50))).getextrema() == ((0, 0),) * 3


# What can be wrong


def stray(root: Path) -> None:
    write_image(root / "train" / "stray.png")


def no_image(root: Path) -> None:
    for file in (root / "train" / "dog").iterdir():
        file.unlink()
        file.with_suffix(".cr2").write_bytes(b"raw")


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "split": (
        lambda root: (root / "val").rename(root / "valid"),
        r"val_split: got 'val'.*expected one of 'train', 'valid'; did you mean 'valid'\?",
    ),
    "images": (
        lambda root: [f.rename(f.with_suffix(".txt")) for f in (root / "val").rglob("*.png")],
        r"val_split: found no images in .*val \(only 6 \.txt\)",
    ),
    "class": (no_image, r"train/dog: class without images: found no images \(only 4 \.cr2\)"),
    "stray": (stray, r"train: images beside the classes: found stray\.png"),
    "extra class": (
        lambda root: (root / "val" / "owl").rename(root / "val" / "owls"),
        r"val/owls: unknown class: 'owls' is not among .*; did you mean 'owl'\?",
    ),
    "one class": (
        lambda root: [shutil.rmtree(root / "train" / name) for name in ("cat", "dog")],
        r"train: found only 'owl', expected a folder for each of two or more classes",
    ),
    "root": (lambda root: root.rename(root.with_name("x")), r"root: found nothing at "),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_faulty_folder_is_named(name: str, root: Path) -> None:
    root = root.rename(root.parent / "set") if name == "root" else root
    change, message = FAULTS[name]
    change(root)
    with pytest.raises(DataError, match=message) as error:
        module(root).setup("fit")
    one_line(error)


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
    assert line.endswith("expected an image that Pillow decodes")


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
        ({"split": 1.0}, r"split: got 1.0, expected a share in \(0, 1\)"),
        ({"kfold": "5/5"}, "kfold: got '5/5', expected 'K/I'"),
        ({"kfold": "5/0", "split": 0.2}, "kfold: got '5/0', expected null beside split=0.2"),
        ({"split": 0.2, "dataset": "wds/x"}, "split: got 0.2, expected None with dataset"),
        ({"in_chans": 4}, "in_chans: got 4, expected 1 or 3"),
        ({"in_chans": 1, "mean": (0.1, 0.2, 0.3)}, "mean: .* expected 1 numbers"),
        ({"class_weights": "even"}, "class_weights: got 'even'"),
        ({"sampling": "balance"}, "sampling: got 'balance'.* did you mean 'balanced'"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        module(Path("root"), **arguments)
