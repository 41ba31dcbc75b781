"""If one of these fails, a stranger's file or address runs code here, or reads what it likes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
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
from spanet_lightning.errors import ConfigError, DataError
from spanet_lightning.sweep.study import read_study
from spanet_lightning.trust import TRUSTED_VARIABLE, is_trusted
from tests import dense_sets
from tests.helpers import UNTRACKED, images, refused

TRACES = ("pwned", "built", "called")


@pytest.fixture(autouse=True)
def _nothing_ran(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Fail whatever test of these ran code of a stranger's; keep downloads out of the home."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
    yield
    assert not [name for name in TRACES if Path(name).exists()]
    assert "hostile" not in sys.modules


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("touch pwned",)


# -- checkpoints


CHECKPOINT = {"state_dict": {"x": torch.zeros(2)}, "pytorch-lightning_version": "2.6.6"}


@pytest.mark.parametrize(
    "names",
    [
        {"_instantiator": "hostile.make", "_class_path": "hostile.Thing"},
        {"_instantiator": "lightning.pytorch.cli.instantiate_module"},
        {
            "_instantiator": "lightning.pytorch.cli.instantiate_module",
            "_class_path": "spanet_lightning.ClassificationTask",
            "backbone": {"class_path": "hostile.Thing"},
        },
    ],
)
def test_a_task_is_not_rebuilt_by_what_the_checkpoint_names(
    names: dict[str, Any], hostile: None
) -> None:
    named = {"_class_path": "hostile.Thing", **names}
    torch.save(
        {"state_dict": {}, "pytorch-lightning_version": "2.6.6", "hyper_parameters": named},
        "named.ckpt",
    )
    with pytest.raises(Exception, match="hostile"):
        ClassificationTask.load_from_checkpoint("named.ckpt")


# -- configurations


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


LAMBDA = "{class_path: lightning.pytorch.callbacks.LambdaCallback, init_args: {on_fit_start: %s}}"
POPEN = "lightning.pytorch.strategies.launchers.subprocess_script.subprocess.Popen"
RUN = f"{{class_path: {POPEN}, init_args: {{args: touch pwned, shell: true}}}}"
PLACES = [
    "--model=hostile.Thing",
    "--model=nested.yaml",
    "--data=hostile.Thing",
    "--data=nested.yaml",
    "--model.backbone=hostile.Thing",
    "--model.backbone=nested.yaml",
    "--model.backbone={class_path: hostile.Thing}",
    "--model.backbone.class_path=__main__.os.system",
    "--model.backbone.class_path=spanet_lightning.machine.subprocess.Popen",
    "--model.help=hostile.Thing",
    "--trainer.callbacks=listed.yaml",
    "--trainer.callbacks+=nested.yaml",
    "--trainer.callbacks.help=hostile.Thing",
    f"--trainer.callbacks={LAMBDA % 'hostile.fun'}",
    f"--trainer.callbacks={LAMBDA % 'os.system'}",
    f"--trainer.callbacks={LAMBDA % 'lightning.fabric.utilities.seed.os.system'}",
    f"--trainer.callbacks={LAMBDA % 'torch.nn.modules.module.torch.hub.load'}",
    f"--trainer.callbacks={LAMBDA % '{class_path: hostile.Thing}'}",
    f"--trainer.callbacks={LAMBDA % RUN}",
    f"--trainer.callbacks={RUN}",
    "--trainer.strategy={class_path: hostile.Thing}",
    "--trainer.strategy={class_path: lightning.pytorch.strategies.DDPStrategy, "
    "init_args: {ddp_comm_hook: hostile.fun}}",
    "--trainer.strategy={class_path: lightning.pytorch.strategies.FSDPStrategy, "
    "init_args: {auto_wrap_policy: hostile.Thing}}",
    "--trainer.accelerator={class_path: hostile.Thing}",
    "--trainer.profiler={class_path: hostile.Thing}",
    "--trainer.plugins=[{class_path: hostile.Thing}]",
    "--trainer.logger=[{class_path: hostile.Thing}]",
    "--checkpoint.class_path=hostile.Thing",
    # Trusted as a whole, but this part downloads without a hash.
    "--data=lightning.pytorch.demos.mnist_datamodule.MNISTDataModule",
    "--model=lightning.pytorch.demos.boring_classes.BoringModel",
]


@pytest.mark.parametrize(
    ("place", "print_config"),
    [*((place, False) for place in PLACES), *((place, True) for place in PLACES[::3])],
)
def test_no_place_of_a_configuration_imports_a_stranger(
    place: str, print_config: bool, hostile: None, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(["fit", *UNTRACKED, place, *["--print_config"] * print_config], capsys)
    assert "lightning.pytorch.demos" not in sys.modules


def test_a_file_may_not_trust_itself(
    hostile: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own.yaml").write_text(f"{TRUSTED_VARIABLE}: hostile\nmodel: hostile.Thing\n")
    refused(["fit", *UNTRACKED, "--config=own.yaml"], capsys)
    monkeypatch.setenv(TRUSTED_VARIABLE, "hostile_not")  # a name that only begins alike
    refused(["fit", *UNTRACKED, "--model=hostile.Thing"], capsys)


def test_the_longer_name_decides_what_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_trusted("lightning.pytorch.callbacks.Timer")
    assert not is_trusted("lightning.pytorch.demos.boring_classes.BoringModel")
    assert not is_trusted("lightning_fake.X")
    assert not is_trusted("torch.hub.load")
    monkeypatch.setenv(TRUSTED_VARIABLE, "lightning.pytorch.demos, own")
    assert is_trusted("lightning.pytorch.demos.boring_classes.BoringModel")
    assert is_trusted("own.X")


TAGS = [
    "!!python/object/apply:os.system [touch pwned]",
    "!!python/object/new:os.system [touch pwned]",
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
    with pytest.raises(ConfigError, match="the tag"):
        read_study("bad.yaml")
    Path("nested.yaml").write_text(f"class_path: {tag}\n")
    Path("outer.yaml").write_text("model: nested.yaml\n")
    assert "nested.yaml:1: the tag !" in refused(["fit", "--config=outer.yaml"], capsys)
    # What stands on the command line is read by the same rules.
    refused(["fit", *UNTRACKED, f"--model.backbone.variant={tag}"], capsys)
    # The configuration beside a checkpoint.
    torch.save({**CHECKPOINT, "hyper_parameters": {}}, "a.ckpt")
    Path("config.yaml").write_text(f"model: {tag}\n")
    assert "config.yaml: is not the configuration of a run" in refused(
        ["export", "a.ckpt", "--output=out.safetensors", "--format=safetensors"], capsys, app.main
    )


def test_aliases_and_depth_do_not_fill_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 10)}]" for i in range(12)]
    Path("laughs.yaml").write_text("\n".join(lines))
    error = refused(["fit", *UNTRACKED, "--config=laughs.yaml"], capsys)
    assert "its aliases stand for more than 100000 values" in error
    Path("deep.yaml").write_text("a: " + "[" * 5000 + "]" * 5000)
    assert "deep.yaml: is nested too deeply" in refused(
        ["fit", *UNTRACKED, "--config=deep.yaml"], capsys
    )


# -- names and links of data sets


@pytest.mark.parametrize(
    "name",
    [
        "../x.jpg",
        "a/../../x.jpg",
        "/etc/passwd",
        "..\\x.jpg",
        "\\\\host\\x",
        "C:\\x.jpg",
        "C:x",
        "",
    ],
)
def test_a_name_out_of_the_folder(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name_fault(name) is not None
    root = dense_sets.coco(tmp_path / "set")
    dense_sets.edit(root, "train", lambda d: d["images"][0].update(file_name=name))
    Image.new("RGB", (96, 80)).save(tmp_path / "set" / "x.jpg")
    with pytest.raises(DataError, match="name out of the folder"):
        CocoDataModule(str(root), **dense_sets.COCO_FOLDERS).setup("fit")
    opened: list[str] = []
    real = Image.open
    monkeypatch.setattr(
        Image, "open", lambda path, *a, **k: (opened.append(str(path)), real(path, *a, **k))[1]
    )
    with pytest.raises(SystemExit) as exit_info:
        app.main(["data", "check", str(root), "--json"])
    assert exit_info.value.code == 1
    counts = json.loads(capsys.readouterr().out)["counts"]
    assert counts["name out of the folder"] == 1
    assert all(Path(path).resolve().is_relative_to(root) for path in opened)


@pytest.mark.parametrize("name", ["a.jpg", "b/a.jpg", "a..b.jpg", "...jpg", "./a.jpg"])
def test_a_name_within_the_folder(name: str) -> None:
    assert name_fault(name) is None


def linked(kind: str, tmp_path: Path) -> tuple[Any, Path]:
    """Return a data module with an image that is a link out of its root, and that image."""
    outside = tmp_path / "private.png"
    Image.fromarray(np.zeros((40, 36, 3), np.uint8)).save(outside)
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
    return data, link


@pytest.mark.parametrize("kind", ["folders", "coco", "masks"])
def test_a_link_out_of_the_data_set(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, link = linked(kind, tmp_path)
    with pytest.raises(DataError) as error:
        data.setup("fit")
    assert str(error.value).startswith(f"{link}: link out of the data set: leads to ")
    with pytest.raises(SystemExit):
        app.main(["data", "check", data.root, "--json"])
    assert json.loads(capsys.readouterr().out)["counts"]["link out of the data set"] == 1
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
    "data",
    [
        lambda root: ImageClassificationDataModule(".", predict_root=root, image_size=32),
        lambda root: CocoDataModule(".", predict_root=root),
        lambda root: SegmentationFoldersDataModule(".", predict_root=root),
    ],
)
def test_a_link_out_of_what_is_predicted(data: Any, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    Image.new("RGB", (40, 40)).save(tmp_path / "private.png")
    (root / "a.png").symlink_to(tmp_path / "private.png")

    def read() -> None:
        module = data(str(root))
        module.setup("predict")
        module.predict_dataloader()

    with pytest.raises(DataError, match="link out of the data set"):
        read()
