"""Data as people have it: what the commands read, and what they refuse by name."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import shlex
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from PIL import Image

import spanet_lightning
from spanet_lightning import app, cli
from spanet_lightning.data import CocoDataModule, SegmentationFoldersDataModule
from spanet_lightning.data.batches import Collate
from spanet_lightning.data.coco import _unannotated
from spanet_lightning.data.normalize import Normalize
from tests import dense_sets, helpers

SMALL = ["--data.num_workers=0", "--data.batch_size=2"]
FIT = ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]


def faults(root: Path, capsys: pytest.CaptureFixture[str]) -> Counter[str]:
    """Return how many faults of each kind the check of a folder finds."""
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        app.main(["data", "check", str(root), "--json"])
    return Counter(json.loads(capsys.readouterr().out)["counts"])


def error_of(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return the line by which a command is refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        cli.main(list(args))
    assert end.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def masked(root: Path, values: tuple[int, ...], splits: Any = ("training", "validation")) -> Path:
    """Write two images a split, with masks of bands of some values."""
    shutil.rmtree(root, ignore_errors=True)
    band = np.repeat(np.array(values, np.uint8), 32 * 32 // len(values)).reshape(32, -1)
    for split in splits:
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i in range(2):
            noise = np.random.default_rng(i).integers(0, 255, (*band.shape, 3), np.uint8)
            Image.fromarray(noise).save(root / "images" / split / f"{i}.png")
            Image.fromarray(band).save(root / "annotations" / split / f"{i}.png")
    return root


def folders(root: Path) -> list[str]:
    data = ["--data", "ImageClassificationDataModule", "--data.root", str(root)]
    return ["--config", helpers.DIGITS, *data, "--data.image_size=32", *SMALL]


def test_what_has_nothing_to_learn_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = masked(tmp_path / "streets", (0, 255))
    (root / "classes.txt").write_text("ground\nfigure\n")
    assert faults(root, capsys) == {"nothing to learn or score": 1}  # figure is 1, not 255
    (root / "classes.txt").unlink()
    (root / "palette.yaml").write_text("ground: 0\nfigure: 255\n")
    assert not faults(root, capsys)
    data = SegmentationFoldersDataModule(str(root), crop_size=32)
    data.setup("fit")
    assert set(data.evaluated("val")[0].mask.unique().tolist()) == {0, 1}
    shop = dense_sets.coco(tmp_path / "shop")
    for file in (shop / "annotations").iterdir():
        file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    assert faults(shop, capsys) == {"nothing to learn or score": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2, 3]\na: [4, 5, 6]\n", "the name 'a' twice"),
        ("a: [1, 2, 3]\nb: '#010203'\n", r"the colour \[1, 2, 3\] twice"),
        ("a: [1, 2]\n", r"a: got \['1', '2'\]"),
    ],
)
def test_palettes_that_are_ambiguous(text: str, message: str, tmp_path: Path) -> None:
    (masked(tmp_path, (0, 1)) / "palette.yaml").write_text(text)
    with pytest.raises(Exception, match=message):
        SegmentationFoldersDataModule(str(tmp_path)).class_names  # noqa: B018


def test_a_split_is_held_out_where_there_is_none(tmp_path: Path) -> None:
    coco = dense_sets.coco(tmp_path / "coco", train=6)
    given = {k: v for k, v in dense_sets.COCO_FOLDERS.items() if k.startswith("train")}
    ids = []
    for fold in ("3/0", "3/1", "3/2"):
        data = CocoDataModule(str(coco), **given, kfold=fold, augmentation="none")
        data.setup("fit")
        val = data.evaluated("val").paths
        assert not set(val) & set(data._images("train", data.train_transform).paths)
        ids += val
    assert len(ids) == len(set(ids)) == 6
    streets = masked(tmp_path / "streets", (0, 1), ["train"])
    digests = set()
    for seed in (0, 1):
        masks = SegmentationFoldersDataModule(str(streets), split=0.5, split_seed=seed)
        masks.setup("fit")
        assert masks.identity().images == {"train": 1, "val": 1}
        digests.add(masks.identity().digest)
    assert len(digests) == 2


def test_a_checkpoint_brings_its_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Predict without the training data; score a split alone that lacks a class."""
    root = tmp_path / "set"
    for split in ("train", "val", "alone/test"):
        for name in ("ant", "bee", "cow") if split != "alone/test" else ("ant", "cow"):
            (root / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (32, 32), (i, 80, 9)).save(root / split / name / f"{i}.png")
    cli.main(["fit", *folders(root), *FIT, "--name=a"])
    saved = "--ckpt_path=runs/a/last.ckpt"
    base = folders(tmp_path / "nowhere")
    photos = f"--data.predict_root={root / 'alone'}"
    cli.main(["predict", *base, photos, saved, "--name=p", "--trainer.logger=false"])
    with Path("runs/p/predictions/predictions.csv").open(newline="") as stream:
        assert {row["class_1"] for row in csv.DictReader(stream)} <= {"ant", "bee", "cow"}
    test = [*folders(root / "alone"), "--data.test_split=test", saved, "--trainer.logger=false"]
    cli.main(["test", *test])
    assert "unknown class: 'bee'" not in capsys.readouterr().err
    message = error_of(capsys, "test", *test, "--data.classes=[cow,bee,ant]")
    assert "label 0 is 'cow' in the data, 'ant' in the checkpoint" in message


@pytest.mark.parametrize("config", ["retinanet", "semantic_fpn"])
def test_channels_of_dense_tasks_are_compared(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if config == "retinanet":
        root = dense_sets.coco(tmp_path / "shop")
        data = ["--data=CocoDataModule", "--data.short_side=64", "--data.long_side=96"]
        data += ["--data.augmentation=flip"]
        data += [f"--data.{key}={value}" for key, value in dense_sets.COCO_FOLDERS.items()]
    else:
        root = masked(tmp_path / "streets", (0, 1, 2, 3))
        data = ["--data=SegmentationFoldersDataModule", "--data.crop_size=32"]
    base = ["--config", f"{helpers.CONFIGS}/digits/{config}.yaml", *data, f"--data.root={root}"]
    message = error_of(capsys, "fit", *base, *SMALL, *FIT, "--model.backbone.in_chans=1")
    assert "model.backbone.in_chans: got 1, expected 3" in message
    grey = ["--model.backbone.in_chans=1", "--data.in_chans=1"]
    cli.main(["fit", *base, *SMALL, *FIT, *grey, "--trainer.fast_dev_run=1"])


def test_images_that_fill_no_batch_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    helpers.images(tmp_path / "set")
    cli.main(["fit", *folders(tmp_path / "set"), *FIT, "--data.batch_size=3"])
    assert "each epoch trains on 6 of 8 images" in caplog.text


def test_names_that_are_not_utf8_are_predicted(tmp_path: Path) -> None:
    helpers.images(tmp_path / "set")
    odd = os.fsencode(tmp_path / "set" / "val" / "cat") + b"/\xff.png"
    try:
        shutil.copy(tmp_path / "set" / "val" / "cat" / "0.png", odd)
    except OSError:
        pytest.skip("this file system takes no such name")
    cli.main(["predict", *folders(tmp_path / "set"), "--name=p", "--trainer.logger=false"])
    assert b"\xff.png" in Path("runs/p/predictions/predictions.csv").read_bytes()


def test_detections_do_not_depend_on_the_batch() -> None:
    lightning.seed_everything(0)
    head = spanet_lightning.RetinaNet(score_threshold=0.0)
    task = spanet_lightning.DetectionTask("test_spanetv2", head, num_classes=3).eval()
    sizes = [(64, 96), (96, 64), (60, 90), (64, 64)]
    images = [torch.randint(0, 255, (3, *size), dtype=torch.uint8) for size in sizes]
    samples = [_unannotated(image, size, 0, "") for image, size in zip(images, sizes, strict=True)]
    batches: list[Any] = [Collate()(samples), *(Collate()([sample]) for sample in samples)]
    normalize = Normalize()
    with torch.no_grad():
        together, *alone = (
            task.detections(b._replace(images=normalize(b.images, b.sizes))) for b in batches
        )
    for one, (other,) in zip(together, alone, strict=True):
        torch.testing.assert_close(one["boxes"], other["boxes"])
        torch.testing.assert_close(one["scores"], other["scores"])


@pytest.mark.parametrize("name", ["off", "007", "it's a $HOME"])
def test_folders_of_any_name_are_initialised(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    helpers.images(tmp_path / name)
    with contextlib.chdir(tmp_path):
        app.main(["init", name])
        shown = capsys.readouterr().out.splitlines()
        command = next(line for line in shown if "data check" in line)
        app.main(shlex.split(command)[1:])
    assert "No faults." in capsys.readouterr().out
