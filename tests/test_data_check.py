"""`spanet data check`: every fault planted is found by its name, and stops training as well."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from spanet_lightning import app, cli
from spanet_lightning.data import CocoDataModule, SegmentationFoldersDataModule
from spanet_lightning.errors import DataError
from tests import dense_sets

Record = dict[str, Any]


def checked(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, Any]:
    """Return the exit code of a check and what it printed for scripts."""
    code = 0
    try:
        app.main(["data", "check", str(root), "--json", *options])
    except SystemExit as exit_info:
        code = int(exit_info.code or 0)
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return dense_sets.coco(tmp_path / "coco")


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    return dense_sets.masks(tmp_path / "masks")


def first(document: Any) -> Record:
    record: Record = document["annotations"][0]
    return record


def setting(**values: Any) -> Callable[[Any], None]:
    return lambda document: first(document).update(values)


def twice(records: str, **values: Any) -> Callable[[Any], None]:
    return lambda document: document[records].append({**document[records][0], **values})


def runs(**values: Any) -> Callable[[Any], None]:
    return lambda document: first(document)["segmentation"].update(values)


RECORDS: dict[str, tuple[str, Callable[[Any], None]]] = {
    "unknown category": ("unknown category", setting(category_id=4)),
    "category id twice": ("duplicate category", twice("categories", name="other")),
    "category name twice": ("duplicate category", twice("categories", id=99)),
    "category without name": ("malformed category", lambda d: d["categories"][0].pop("name")),
    "image id twice": ("duplicate image id", twice("images", file_name="001.jpg")),
    "image file twice": ("duplicate image file", twice("images", id=5)),
    "image of text size": ("malformed image", lambda d: d["images"][0].update(width="wide")),
    "image without pixels": ("malformed image", lambda d: d["images"][1].update(width=0)),
    "annotation id twice": ("duplicate annotation id", twice("annotations")),
    "orphan": ("unknown image", setting(image_id=11)),
    "no annotation": ("malformed annotation", lambda d: d["annotations"].append(3)),
    "crowd of 2": ("malformed annotation", setting(iscrowd=2)),
    "area below 0": ("malformed annotation", setting(area=-1)),
    "no box": ("empty box", setting(bbox=None, segmentation=None)),
    "box of nothing": ("empty box", setting(bbox=[], segmentation=[])),
    "box of three": ("malformed box", setting(bbox=[1, 2, 3])),
    "NaN box": ("box not finite", setting(bbox=[1, 2, float("nan"), 4])),
    "endless box": ("box not finite", setting(bbox=[1, 2, float("inf"), 4])),
    "box of text": ("box not finite", setting(bbox=[1, 2, "3", 4])),
    "no width": ("degenerate box", setting(bbox=[1, 2, 0, 4])),
    "negative height": ("degenerate box", setting(bbox=[1, 2, 3, -4])),
    "beyond": ("box outside the image", setting(bbox=[90, 2, 30, 4])),
    "all beyond": ("box outside the image", setting(bbox=[500, 500, 3, 4])),
    "before": ("box outside the image", setting(bbox=[-5, 2, 30, 4])),
    "no segmentation": ("empty segmentation", setting(segmentation=[])),
    "two points": ("empty segmentation", setting(segmentation=[[1, 1, 2, 2]])),
    "odd polygon": ("bad segmentation", setting(segmentation=[[1, 1, 2, 2, 3, 3, 4]])),
    "NaN polygon": ("bad segmentation", setting(segmentation=[[1, 1, 2, 2, 3, float("nan")]])),
    "flat text": ("bad segmentation", setting(segmentation="rle")),
    "runs of another size": ("bad segmentation", runs(size=[3, 3])),
    "short runs": ("bad segmentation", runs(counts=[7, 3])),
    "negative runs": ("bad segmentation", runs(counts=[80 * 96 + 3, -3])),
    "cut text": ("bad segmentation", runs(counts="o")),
    "wild text": ("bad segmentation", runs(counts="~~")),
}


@pytest.mark.parametrize("name", RECORDS)
def test_faults_of_annotations_are_found_and_stop_training(
    name: str, coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, change = RECORDS[name]
    dense_sets.edit(coco, "train", change)
    code, found = checked(coco, capsys)
    assert code == 1
    assert found["layout"] == "coco"
    faults = [fault for fault in found["faults"] if fault["kind"] == kind]
    assert faults, found["faults"]
    assert faults[0]["file"].endswith("instances_train.json")
    assert faults[0]["item"]
    data = CocoDataModule(str(coco), **dense_sets.COCO_FOLDERS, masks=True)
    with pytest.raises(DataError, match=kind) as error:
        data.setup("fit")
    assert "\n" not in str(error.value)
    assert faults[0]["item"] in str(error.value)


def test_a_polygon_that_covers_nothing_is_found(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense_sets.edit(coco, "val", setting(segmentation=[[5, 5, 5, 5, 5, 5]]))
    assert checked(coco, capsys)[1]["counts"] == {"empty segmentation": 1}


def test_boxes_alone_are_no_fault(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def change(document: Any) -> None:
        for annotation in document["annotations"]:
            annotation["segmentation"] = []

    for split in ("train", "val"):
        dense_sets.edit(coco, split, change)
    assert checked(coco, capsys)[0] == 0


def test_faults_of_image_files_are_all_listed(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = checked(coco, capsys)
    assert (code, found["layout"], found["counts"]) == (0, "coco", {})
    assert found["notes"] == ["classes without boxes: digit 5"]
    splits = found["splits"].values()
    assert sum(split["images"] for split in splits) == 9
    assert sum(sum(split["classes"].values()) for split in splits) == annotations(coco)
    (coco / "train" / "001.jpg").unlink()
    cut(coco / "train" / "002.jpg")
    (coco / "train" / "003.jpg").write_text("no image")
    Image.new("RGB", (50, 40)).save(coco / "val" / "008.jpg")
    code, found = checked(coco, capsys)
    assert code == 1
    assert {(Path(f["file"]).name, f["kind"]) for f in found["faults"]} == {
        ("001.jpg", "missing image"),
        ("002.jpg", "unreadable image"),
        ("003.jpg", "unreadable image"),
        ("008.jpg", "size mismatch"),
    }
    assert {f["item"] for f in found["faults"]} == {"image 10", "image 20", "image 30", "image 80"}
    data = CocoDataModule(str(coco), **dense_sets.COCO_FOLDERS)
    with pytest.raises(DataError, match=r"001\.jpg: image 10: missing image"):
        data.setup("fit")


def test_a_truncated_image_stops_training(coco: Path) -> None:
    cut(coco / "train" / "002.jpg")
    data = CocoDataModule(str(coco), **dense_sets.COCO_FOLDERS)
    data.setup("fit")
    with pytest.raises(DataError, match=r"image .*002\.jpg \(index 1\): .*truncated"):
        list(data.train_dataloader())


def test_other_categories_and_broken_json_are_found(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dense_sets.edit(coco, "val", lambda document: document["categories"][9].update(name="10"))
    (coco / "annotations" / "instances_test.json").write_text("{")
    (coco / "annotations" / "captions.json").write_text("{}")
    found = checked(coco, capsys)[1]
    assert found["counts"]["different categories"] == 1
    assert found["counts"]["unreadable annotations"] == 1
    assert any("captions.json" in note for note in found["notes"])


def test_faults_of_masks_are_all_listed(masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked(masks, capsys)[0] == 0
    folder = masks / "annotations" / "training"
    (folder / "1.png").unlink()
    Image.new("RGB", (96, 80), "red").save(folder / "2.png")
    Image.new("L", (96, 81)).save(folder / "3.png")
    plant(folder / "4.png", 11)
    cut(masks / "images" / "validation" / "5.jpg")
    cut(masks / "annotations" / "validation" / "6.png")
    Image.new("L", (96, 80)).save(folder / "9.png")
    code, found = checked(masks, capsys)
    assert code == 1
    assert {(Path(f["file"]).name, f["kind"]) for f in found["faults"]} == {
        ("1.jpg", "missing mask"),
        ("2.png", "mask of colours"),
        ("3.png", "size mismatch"),
        ("4.png", "value beyond the classes"),
        ("5.jpg", "unreadable image"),
        ("6.png", "unreadable mask"),
        ("9.png", "missing image"),
    }


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "1.png").unlink(), r"1\.jpg: missing mask: image without a mask"),
        (
            lambda f: Image.new("RGB", (96, 80), "red").save(f / "1.png"),
            r"1\.png \(index 0\): got colours such as",
        ),
        (
            lambda f: Image.new("L", (9, 9)).save(f / "1.png"),
            r"1\.png \(index 0\): got 9×9 px, expected 96×80",
        ),
        (
            lambda f: plant(f / "1.png", 11),
            r"1\.png \(index 0\): got the value 11 at 1 px, expected 1 to 10",
        ),
        (
            lambda f: plant(f / "1.png", 256),
            r"1\.png \(index 0\): got the value 256 at 1 px, expected 1 to 10",
        ),
    ],
)
def test_faulty_masks_stop_training_by_name(masks: Path, damage: Any, message: str) -> None:
    damage(masks / "annotations" / "training")
    data = SegmentationFoldersDataModule(str(masks), crop_size=32, num_workers=0)

    def read() -> None:
        data.setup("fit")
        list(data.train_dataloader())

    with pytest.raises(DataError, match=message):
        read()


def test_classes_may_be_given_by_number(masks: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (masks / "classes.csv").unlink()
    code, found = checked(masks, capsys)
    assert code == 0
    assert found["notes"] == ["classes without pixels: 2, 6"]
    code, found = checked(masks, capsys, "--num-classes", "2")
    assert code == 1
    assert set(found["counts"]) == {"value beyond the classes"}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    for number, name in enumerate(f"{s}/{c}/{i}.png" for s in SPLITS for c in "ab" for i in "12"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 40), (number, 0, 0)).save(root / name)
    return root


SPLITS = ("train", "val")


def test_class_folders_are_checked(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(photos / "val" / "b")
    (photos / "val" / "c").mkdir()
    (photos / "train" / "a" / "1.png").write_text("no image")
    (photos / "train" / "a" / "notes.txt").touch()
    code, found = checked(photos, capsys)
    assert code == 1
    assert found["counts"] == {"unreadable image": 1, "unknown class": 1}
    assert found["splits"]["val"]["classes"] == {"a": 2, "b": 0}
    assert any("not images: 1 .txt" in note for note in found["notes"])


def test_an_image_in_two_splits_or_under_two_labels_is_named(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(photos / "train" / "a" / "1.png", photos / "val" / "a" / "same.png")
    with Image.open(photos / "train" / "b" / "1.png") as image:
        image.save(photos / "train" / "a" / "again.bmp")  # other bytes, the same pixels
    code, found = checked(photos, capsys)
    assert code == 0
    splits, labels = (note for note in found["notes"] if "the same pixels" in note)
    assert splits.startswith("1 image is in two splits")
    assert splits.endswith("train/a/1.png and val/a/same.png")
    assert labels.endswith("train/a/again.bmp and train/b/1.png")


def test_the_check_of_an_experiment_sees_its_keys(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "val").rename(photos / "held")
    file = photos.parent / "own.yaml"
    file.write_text(
        "model: {class_path: Any}\ndata:\n  class_path: ImageClassificationDataModule\n"
        f"  init_args: {{root: {photos}, val_split: held, classes: [a, b]}}\n"
    )
    app.main(["data", "check", "--config", str(file)])
    assert re.search(r"held\s+4 images", capsys.readouterr().out)
    with pytest.raises(SystemExit) as exit_info:
        app.main(["data", "check", "--config", str(file), "--data.val_split=gone"])
    assert exit_info.value.code == 1
    assert "missing folder" in capsys.readouterr().out
    with pytest.raises(SystemExit) as exit_info:
        app.main(["data", "check", "--config", str(file), "--data.roof=x"])
    assert exit_info.value.code == 2
    assert "roof" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["photos", "flat", "coco", "masks"])
def test_init_writes_a_configuration_that_runs(
    kind: str,
    photos: Path,
    coco: Path,
    masks: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root = {"photos": photos, "flat": photos / "train", "coco": coco, "masks": masks}[kind]
    for name in ("coco", "masks"):
        (photos.parent / name).rename(photos.parent / f"{name}_set")
    root = root if root.exists() else root.with_name(f"{root.name}_set")
    monkeypatch.chdir(photos.parent)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    app.main(["init", str(root), "--output", "own.yaml"])
    assert "lightning fit --config own.yaml" in capsys.readouterr().out
    cli.main(
        [
            *("fit", "--config", "own.yaml", "--trainer.fast_dev_run=1", "--trainer.logger=false"),
            *("--data.num_workers=0", "--trainer.accelerator=cpu"),
        ]
    )
    with pytest.raises(SystemExit):
        app.main(["init", str(root), "--output", "own.yaml"])
    assert "own.yaml exists" in capsys.readouterr().err


def test_a_person_gets_a_table_and_a_verdict(
    coco: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    app.main(["data", "check", str(coco)])
    assert "No faults." in capsys.readouterr().out
    dense_sets.edit(coco, "train", setting(bbox=[1, 2, 0, 4]))
    with pytest.raises(SystemExit) as exit_info:
        app.main(["data", "check", str(coco)])
    assert exit_info.value.code == 1
    out = capsys.readouterr().out
    assert "1 fault: 1 degenerate box." in out
    assert "annotations/instances_train.json" in out.replace("\n", "")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nowhere"], "ROOT: found no folder at nowhere"),
        (["."], r"none of the known layouts"),
        ([".", "--layout", "coc"], "did you mean 'coco'?"),
    ],
)
def test_a_check_that_can_not_be_made_exits_with_2(
    args: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        app.main(["data", "check", *args])
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def annotations(root: Path) -> int:
    files = (root / "annotations").glob("*.json")
    return sum(len(json.loads(file.read_text())["annotations"]) for file in files)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def plant(path: Path, value: int) -> None:
    mask = dense_sets.as_array(path).astype(np.uint8 if value < 256 else np.uint16)
    mask[3, 4] = value
    Image.fromarray(mask).save(path)
