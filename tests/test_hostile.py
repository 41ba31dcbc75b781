"""If one of these fails, a stranger's file or address runs code here, or reads what it likes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import sys
import threading
import urllib.error
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image

import spanet_lightning
from spanet_lightning import ClassificationTask, app, cli, remote
from spanet_lightning.cache import CACHE_VARIABLE
from spanet_lightning.cli.check import TRUSTED_VARIABLE
from spanet_lightning.data import (
    CocoDataModule,
    ImageClassificationDataModule,
    SegmentationFoldersDataModule,
)
from spanet_lightning.data.listing import LINKS_VARIABLE, name_fault
from spanet_lightning.errors import CheckpointError, ConfigError, DataError
from spanet_lightning.sweep.parse import read_study
from spanet_lightning.trust import is_trusted
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


def zipped(value: Any, path: str) -> None:
    torch.save(value, path)


def plain(value: Any, path: str) -> None:
    Path(path).write_bytes(pickle.dumps(value))


def legacy(value: Any, path: str) -> None:
    torch.save(value, path, _use_new_zipfile_serialization=False)


CHECKPOINT = {
    "state_dict": {"head.weight": torch.zeros(2, 2)},
    "pytorch-lightning_version": "2.6.6",
    "hyper_parameters": {"x": Code()},
}
READERS: dict[str, Callable[[str], tuple[list[str], Any]]] = {
    "fit --ckpt_path": lambda f: (["fit", *UNTRACKED, f"--ckpt_path={f}"], cli.main),
    "test": lambda f: (["test", *UNTRACKED, f"--ckpt_path={f}"], cli.main),
    "predict": lambda f: (["predict", *UNTRACKED, f"--ckpt_path={f}"], cli.main),
    "model.weights": lambda f: (["fit", *UNTRACKED, f"--model.weights={f}"], cli.main),
    "convert": lambda f: (["convert", f, "out.safetensors"], app.main),
    "export": lambda f: (
        ["export", f, "--output=out.safetensors", "--format=safetensors"],
        app.main,
    ),
    "export --weights": lambda f: (
        [
            "export",
            "test_spanet",
            "--output=out.safetensors",
            "--format=safetensors",
            f"--weights={f}",
        ],
        app.main,
    ),
    "analyze": lambda f: (["analyze", "spectrum", "--model", f, "--images=sample"], app.main),
    "analyze NAME@": lambda f: (
        ["analyze", "spectrum", "--model", f"test_spanet@{f}", "--images=sample"],
        app.main,
    ),
}


@pytest.mark.parametrize(
    ("reader", "write"),
    [
        *((reader, zipped) for reader in READERS),
        *((reader, write) for reader in list(READERS)[::4] for write in (plain, legacy)),
    ],
)
def test_no_reader_of_checkpoints_runs_their_code(
    reader: str, write: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    write(CHECKPOINT, "evil.ckpt")
    args, main = READERS[reader](str(Path("evil.ckpt")))
    error = refused(args, capsys, main)
    assert "evil.ckpt" in error
    assert "could run code" in error
    assert "weights_only" not in error  # no advice to load it all the same


@pytest.mark.parametrize("write", [zipped, plain, legacy])
def test_a_task_is_not_rebuilt_from_code(write: Any) -> None:
    write(CHECKPOINT, "evil.ckpt")
    with pytest.raises(CheckpointError, match=r"evil\.ckpt: refused"):
        ClassificationTask.load_from_checkpoint("evil.ckpt")
    with pytest.raises(ConfigError, match="weights_only: got False"):
        ClassificationTask.load_from_checkpoint("evil.ckpt", weights_only=False)


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
    torch.save({**CHECKPOINT, "hyper_parameters": named}, "named.ckpt")
    with pytest.raises(Exception, match="hostile"):
        ClassificationTask.load_from_checkpoint("named.ckpt")


# -- addresses


class Bad(BaseHTTPRequestHandler):
    """Sends a pickle, whatever is asked for, and remembers that it was."""

    asked: list[str] = []  # noqa: RUF012 - cleared by the fixture

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(pickle.dumps(Code()))

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Bad.asked.clear()
    found = HTTPServer(("127.0.0.1", 0), Bad)
    thread = threading.Thread(target=found.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{found.server_port}/evil.pth"
    found.shutdown()
    thread.join()
    found.server_close()
    assert Bad.asked == []


@pytest.mark.parametrize("reader", READERS)
def test_nothing_is_fetched_over_http(
    reader: str, server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args, main = READERS[reader](server + "#sha256=" + "0" * 64)
    error = refused(args, capsys, main)
    assert "expected" in error


def test_a_task_is_not_rebuilt_from_an_address(server: str) -> None:
    with pytest.raises(CheckpointError, match="expected a local file"):
        ClassificationTask.load_from_checkpoint(server)


@pytest.fixture
def weights() -> bytes:
    model = timm.create_model("test_spanet", num_classes=10, img_size=32)
    return safetensors.torch.save(dict(model.state_dict()))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, weights: bytes) -> list[str]:
    """Serve the weights at every address of https; list what is asked for."""
    asked: list[str] = []

    def answer(address: str) -> io.BytesIO:
        asked.append(address)
        return io.BytesIO(weights)

    monkeypatch.setattr(remote, "_open", answer)
    return asked


V1 = ["--model.backbone=SPANet", "--model.backbone.variant=test"]
ADDRESS = "https://example.org/w.safetensors"


def test_weights_come_over_https_with_their_hash_once(served: list[str], weights: bytes) -> None:
    address = f"{ADDRESS}#sha256={hashlib.sha256(weights).hexdigest()}"
    model = timm.create_model("test_spanet", num_classes=10, img_size=32)
    spanet_lightning.load_official(model, address)
    assert served == [ADDRESS]
    assert torch.equal(
        model.state_dict()["head.weight"], safetensors.torch.load(weights)["head.weight"]
    )
    (file,) = (Path(os.environ[CACHE_VARIABLE]) / "weights").iterdir()
    spanet_lightning.load_official(model, address)
    assert served == [ADDRESS]
    file.write_bytes(b"another")  # what lies there has to have the hash as well
    spanet_lightning.load_official(model, address)
    assert served == [ADDRESS, ADDRESS]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        (ADDRESS, "which states no hash"),
        (f"{ADDRESS}#sha256=12", "which states no hash"),
        (f"{ADDRESS}#md5={'0' * 32}", "which states no hash"),
        (f"http://example.org/w.pth#sha256={'0' * 64}", "expected a local file, or https://"),
        (f"ftp://example.org/w.pth#sha256={'0' * 64}", "expected a local file, or https://"),
        (f"file:///etc/passwd#sha256={'0' * 64}", "expected a local file, or https://"),
        (f"s3://bucket/w.pth#sha256={'0' * 64}", "expected a local file, or https://"),
        (f"{ADDRESS}#sha256={'0' * 64}", "is another file: its sha256 is"),
    ],
)
def test_an_address_that_is_refused(
    address: str, says: str, served: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(["fit", *UNTRACKED, *V1, f"--model.weights={address}"], capsys)
    assert says in error
    assert address.partition("#")[0] in error
    assert not list(Path(os.environ[CACHE_VARIABLE]).rglob("*.*"))
    assert len(served) == ("another file" in says)


def test_a_redirection_must_not_leave_https() -> None:
    follow = remote._OnlyHttps()
    request = urllib.request.Request(ADDRESS)
    onward = follow.redirect_request(request, None, 302, "", {}, "https://example.org/other")
    assert onward is not None
    with pytest.raises(urllib.error.URLError, match="not https"):
        follow.redirect_request(request, None, 302, "", {}, "http://example.org/other")


def test_a_download_that_breaks_off_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken(io.BytesIO):
        def read(self, *_: Any) -> bytes:
            if self.tell():
                raise ConnectionResetError("connection reset")
            return super().read(2)

    monkeypatch.setattr(remote, "_open", lambda _: Broken(b"abcdef"))
    address = f"{ADDRESS}#sha256={'0' * 64}"
    error = refused(["fit", *UNTRACKED, f"--model.weights={address}"], capsys)
    assert "can't be downloaded: connection reset" in error
    assert not list(Path(os.environ[CACHE_VARIABLE]).rglob("*.*"))
    monkeypatch.setattr(remote, "_open", lambda _: io.BytesIO(b"abcdef"))
    monkeypatch.setattr(remote, "MOST_BYTES", 5)
    assert "larger than 5 bytes" in refused(
        ["fit", *UNTRACKED, f"--model.weights={address}"], capsys
    )


def test_published_weights_need_their_hash(served: list[str]) -> None:
    with pytest.raises(CheckpointError, match=r"weights of spanet_s: got https://.* no hash"):
        timm.create_model("spanet_s", pretrained=True)
    assert served == []


def test_published_weights_with_their_hash(served: list[str], weights: bytes) -> None:
    url = f"{ADDRESS}#sha256={hashlib.sha256(weights).hexdigest()}"
    model = timm.create_model(
        "test_spanet",
        pretrained=True,
        num_classes=10,
        img_size=32,
        pretrained_cfg_overlay={"url": url, "num_classes": 10},
    )
    assert served == [ADDRESS]
    expected = safetensors.torch.load(weights)["head.weight"]
    assert torch.equal(model.state_dict()["head.weight"], expected)


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
    assert "laughs.yaml:5: its aliases stand for more than 100000 values" in error
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
