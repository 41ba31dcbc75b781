"""If one of these fails, a stranger's file or address runs code here, or reads what it likes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from spanet_lightning import ClassificationTask, app
from spanet_lightning.cache import CACHE_VARIABLE
from spanet_lightning.data import (
    CocoDataModule,
    ImageClassificationDataModule,
    SegmentationFoldersDataModule,
)
from spanet_lightning.data.listing import LINKS_VARIABLE, name_fault
from spanet_lightning.errors import DataError
from spanet_lightning.trust import TRUSTED_VARIABLE, is_trusted
from tests import dense_sets
from tests.helpers import UNTRACKED, images, refused


@pytest.fixture(autouse=True)
def _nothing_ran(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail whatever test of these ran code of a stranger's; keep downloads out of the home."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
    yield
    assert not [name for name in ("pwned", "built", "called") if Path(name).exists()]
    assert "hostile" not in sys.modules


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that leaves a file wherever it is imported, built or called."""
    Path("hostile.py").write_text(
        "open('pwned', 'w')\n"
        "class Thing:\n    def __init__(self, *a, **k): open('built', 'w')\n"
        "def fun(*a, **k): open('called', 'w')\n"
    )
    Path("nested.yaml").write_text("class_path: hostile.Thing\n")
    Path("listed.yaml").write_text("- class_path: hostile.Thing\n")
    monkeypatch.syspath_prepend(".")


# -- configurations

POPEN = "lightning.pytorch.strategies.launchers.subprocess_script.subprocess.Popen"
RUN = f"{{class_path: {POPEN}, init_args: {{args: touch pwned, shell: true}}}}"
# The option and its value; CALL is a function that a callback would call.
PLACES = f"""
model hostile.Thing
model nested.yaml
data hostile.Thing
data nested.yaml
model.backbone hostile.Thing
model.backbone nested.yaml
model.backbone {{class_path: hostile.Thing}}
model.backbone.class_path __main__.os.system
model.backbone.class_path spanet_lightning.machine.subprocess.Popen
model.help hostile.Thing
trainer.callbacks listed.yaml
trainer.callbacks+ nested.yaml
trainer.callbacks.help hostile.Thing
CALL hostile.fun
CALL os.system
CALL lightning.fabric.utilities.seed.os.system
CALL torch.nn.modules.module.torch.hub.load
CALL {{class_path: hostile.Thing}}
CALL {RUN}
trainer.callbacks {RUN}
trainer.strategy {{class_path: hostile.Thing}}
HOOK ddp_comm_hook: hostile.fun
trainer.accelerator {{class_path: hostile.Thing}}
trainer.profiler {{class_path: hostile.Thing}}
trainer.plugins [{{class_path: hostile.Thing}}]
trainer.logger [{{class_path: hostile.Thing}}]
checkpoint.class_path hostile.Thing
data lightning.pytorch.demos.mnist_datamodule.MNISTDataModule
model lightning.pytorch.demos.boring_classes.BoringModel
"""
CALLBACK = "{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {on_fit_start: %s}}"
STRATEGY = "{class_path: lightning.pytorch.strategies.DDPStrategy, init_args: {%s}}"


@pytest.mark.parametrize("row", PLACES.strip().splitlines())
def test_no_place_of_a_configuration_imports_a_stranger(
    row: str, hostile: None, capsys: pytest.CaptureFixture[str]
) -> None:
    key, _, value = row.partition(" ")
    if key == "CALL":
        key, value = "trainer.callbacks", CALLBACK % value
    if key == "HOOK":
        key, value = "trainer.strategy", STRATEGY % value
    for further in ([], ["--print_config"]):
        refused(["fit", *UNTRACKED, f"--{key}={value}", *further], capsys)
    assert "lightning.pytorch.demos" not in sys.modules


def test_what_is_trusted(
    hostile: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own.yaml").write_text(f"{TRUSTED_VARIABLE}: hostile\nmodel: hostile.Thing\n")
    refused(["fit", *UNTRACKED, "--config=own.yaml"], capsys)  # a file may not trust itself
    demo = "lightning.pytorch.demos.boring_classes.BoringModel"
    assert is_trusted("lightning.pytorch.callbacks.Timer")
    assert not any(map(is_trusted, (demo, "lightning_fake.X", "torch.hub.load", "own.X")))
    monkeypatch.setenv(TRUSTED_VARIABLE, "hostile_not, lightning.pytorch.demos, own")
    assert all(map(is_trusted, (demo, "own.X")))  # the longer name decides
    refused(["fit", *UNTRACKED, "--model=hostile.Thing"], capsys)  # only begins alike


TAGS = [
    "!!python/object/apply:os.system [touch pwned]",
    "!!python/name:hostile.Thing",
    "!!python/module:hostile",
    "!hostile x",
]


@pytest.mark.parametrize("tag", TAGS)
def test_no_tag_builds_an_object(
    tag: str, hostile: None, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bad.yaml").write_text(f"name: {tag}\n")
    assert "bad.yaml:1: the tag !" in refused(["fit", *UNTRACKED, "--config=bad.yaml"], capsys)
    Path("bad.yaml").write_text(f"question: {tag}\nablation: {{}}\n")
    assert "bad.yaml:1: the tag !" in refused(["sweep", "run", "bad.yaml"], capsys, app.main)
    Path("nested.yaml").write_text(f"class_path: {tag}\n")
    Path("outer.yaml").write_text("model: nested.yaml\n")
    assert "nested.yaml:1: the tag !" in refused(["fit", "--config=outer.yaml"], capsys)
    # What stands on the command line is read by the same rules.
    refused(["fit", *UNTRACKED, f"--model.backbone.variant={tag}"], capsys)
    # The configuration beside a checkpoint.
    torch.save({"state_dict": {"x": torch.zeros(2)}, "hyper_parameters": {}}, "a.ckpt")
    Path("config.yaml").write_text(f"model: {tag}\n")
    export = ["export", "a.ckpt", "--output=out.safetensors", "--format=safetensors"]
    refused(export, capsys, app.main)


def test_aliases_and_depth_do_not_fill_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(12)]
    Path("laughs.yaml").write_text("\n".join(lines))
    error = refused(["fit", "--config=laughs.yaml"], capsys)
    assert "its aliases stand for more than 20000 values" in error
    Path("deep.yaml").write_text("a: " + "[" * 1500)
    assert "deep.yaml: is nested too deeply" in refused(["fit", "--config=deep.yaml"], capsys)


MAKE = "lightning.pytorch.cli.instantiate_module"
BACKBONE = {"class_path": "hostile.Thing"}


@pytest.mark.parametrize(
    "names",
    [
        {"_instantiator": "hostile.make", "_class_path": "hostile.Thing"},
        {"_instantiator": MAKE, "_class_path": "hostile.Thing"},
        {
            "_instantiator": MAKE,
            "_class_path": "spanet_lightning.ClassificationTask",
            "backbone": BACKBONE,
        },
    ],
)
def test_a_task_is_not_rebuilt_by_what_the_checkpoint_names(
    names: dict[str, Any], hostile: None
) -> None:
    saved = {"state_dict": {}, "pytorch-lightning_version": "2.6.6", "hyper_parameters": names}
    torch.save(saved, "named.ckpt")
    with pytest.raises(Exception, match="hostile"):
        ClassificationTask.load_from_checkpoint("named.ckpt")


# -- names and links of data sets

OUTSIDE = ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "..\\x.jpg", "\\\\host\\x", "C:\\x.jpg"]


def counted(root: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, int]:
    """Return the faults that `spanet data check` counts."""
    with pytest.raises(SystemExit) as exit_info:
        app.main(["data", "check", str(root), "--json"])
    assert exit_info.value.code == 1
    counts: dict[str, int] = json.loads(capsys.readouterr().out)["counts"]
    return counts


def test_a_name_out_of_the_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert all(name_fault(name) for name in (*OUTSIDE, "C:x", ""))
    assert not any(map(name_fault, ["a.jpg", "b/a.jpg", "a..b.jpg", "...jpg", "./a.jpg"]))
    root = dense_sets.coco(tmp_path / "set")
    Image.new("RGB", (96, 80)).save(tmp_path / "set" / "x.jpg")
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda path, *a, **k: (opened.append(str(path)), real(path, *a, **k))[1]
    )
    for name in OUTSIDE[:3]:
        dense_sets.edit(root, "train", lambda d, n=name: d["images"][0].update(file_name=n))
        with pytest.raises(DataError, match="name out of the folder"):
            CocoDataModule(str(root), **dense_sets.COCO_FOLDERS).setup("fit")
    assert counted(root, capsys)["name out of the folder"] == 1
    assert all(Path(path).resolve().is_relative_to(root) for path in opened)


@pytest.mark.parametrize("kind", ["folders", "coco", "masks"])
def test_a_link_out_of_the_data_set(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "private.png"
    Image.new("RGB", (36, 40)).save(outside)
    if kind == "folders":
        root = images(tmp_path / "set")
        link = root / "train" / "cat" / "1.png"
        data: Any = ImageClassificationDataModule(str(root), image_size=32)
    elif kind == "coco":
        root = dense_sets.coco(tmp_path / "set")
        link = root / "train" / "002.jpg"
        data = CocoDataModule(str(root), **dense_sets.COCO_FOLDERS)
    else:
        root = dense_sets.masks(tmp_path / "set")
        link = root / "images" / "training" / "2.jpg"
        data = SegmentationFoldersDataModule(str(root))
    link.unlink()
    link.symlink_to(outside)
    with pytest.raises(DataError) as error:
        data.setup("fit")
    assert str(error.value).startswith(f"{link}: link out of the data set: leads to ")
    assert counted(root, capsys)["link out of the data set"] == 1
    monkeypatch.setenv(LINKS_VARIABLE, "1")
    data.setup("fit")
    monkeypatch.delenv(LINKS_VARIABLE)
    # One that stays inside, and a data set that is a link as a whole, are nobody's harm.
    link.unlink()
    link.symlink_to(sorted(set(link.parent.iterdir()) - {link})[0].name)
    whole = tmp_path / "whole"
    whole.symlink_to(data.root)
    data.root = str(whole)
    vars(data).get("_readers", {}).clear()
    data.setup("fit")


@pytest.mark.parametrize(
    "module",
    [
        lambda root: ImageClassificationDataModule(".", predict_root=root, image_size=32),
        lambda root: CocoDataModule(".", predict_root=root),
        lambda root: SegmentationFoldersDataModule(".", predict_root=root),
    ],
)
def test_a_link_out_of_what_is_predicted(module: Any, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "private.png")
    (root / "a.png").symlink_to(tmp_path / "private.png")
    data = module(str(root))
    with pytest.raises(DataError, match="link out of the data set"):  # noqa: PT012
        data.setup("predict")
        data.predict_dataloader()
