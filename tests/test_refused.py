"""Everything that is refused of data, files and configurations, through the command line.

Each is one line that names the file or key, what was found and what is accepted; the exit code is 2
and nothing is written. If one of these fails, a user gets a trace, a riddle, or leftovers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from spanet_lightning import app, cli
from spanet_lightning.cache import CACHE_VARIABLE
from tests import dense_sets
from tests.helpers import DIGITS, UNTRACKED, images, refused


class Refusal(NamedTuple):
    """What is refused.

    Attributes:
        args: The command line.
        says: What its line has to hold: the file or key, what was found, what to do.
        before: Makes what it is about.
        main: The command.
    """

    args: list[str]
    says: tuple[str, ...]
    before: Callable[[], object] = lambda: None
    main: Callable[[list[str]], None] = cli.main


def file(name: str, text: str | bytes) -> Callable[[], object]:
    content = text.encode() if isinstance(text, str) else text
    return lambda: Path(name).write_bytes(content)


def bad_folders() -> None:
    """Spoil the first validation image: the check before training comes upon it."""
    images(Path("set"))
    Path("set/val/cat/0.png").write_bytes(b"<html>404</html>")
    Path("set/val/cat/1.png").write_bytes(b"")


def bad_coco(name: str) -> Callable[[], object]:
    def write() -> None:
        root = dense_sets.coco(Path("set"))
        dense_sets.edit(root, "train", lambda d: d["images"][0].update(file_name=name))

    return write


def linked() -> None:
    images(Path("set"))
    Path("set/train/cat/0.png").unlink()
    Path("set/train/cat/0.png").symlink_to("/etc/hostname")


def flipped(half: bool = False) -> None:
    """Write weights with one bit that is another one, which torch reads without a word."""
    torch.save({"state_dict": {"weight": torch.zeros(4096)}}, "a.pth")
    content = bytearray(Path("a.pth").read_bytes())
    content[len(content) // 2] ^= 1
    Path("a.pth").write_bytes(content[: len(content) // 2] if half else content)


def too_large() -> None:
    images(Path("set"))
    Image.new("1", (12000, 12000)).save("set/val/cat/0.png")


def run(*args: str) -> list[str]:
    return ["fit", *UNTRACKED, *args]


def config(text: str, *says: str) -> Refusal:
    return Refusal(run("--config=own.yaml"), ("own.yaml:", *says), file("own.yaml", text))


FOLDERS = [
    "--data=ImageClassificationDataModule",
    "--data.root=set",
    "--data.image_size=32",
    "--data.batch_size=2",
    "--data.num_workers=0",
]
COCO = [
    "fit",
    "--config=" + str(Path(DIGITS).with_name("retinanet.yaml")),
    "--trainer.logger=false",
    "--data=CocoDataModule",
    "--data.root=set",
    *(f"--data.{key}={value}" for key, value in dense_sets.COCO_FOLDERS.items()),
]
ADD_EARLY_STOPPING = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
EVIL = b"cos\nsystem\n(S'touch pwned'\ntR."  # a pickle that runs a command

REFUSALS: dict[str, Refusal] = {
    # images
    "a page as an image": Refusal(
        run(*FOLDERS), ("set/val/cat/0.png (index 0)", "a page of HTML", "expected"), bad_folders
    ),
    "a bomb": Refusal(
        run(*FOLDERS), ("set/val/cat/0.png", "12000×12000 px", "SPANET_MAX_PIXELS"), too_large
    ),
    "more than may be skipped": Refusal(
        run(*FOLDERS, "--data.on_bad_sample=skip"),
        ("data.max_bad_samples: got 0.01, at most 1 of the 8 samples of val", "0.png (index 0)"),
        bad_folders,
    ),
    "another policy": Refusal(
        run(*FOLDERS, "--data.on_bad_sample=replace"),
        ("data.on_bad_sample: got 'replace', expected one of 'fail', 'skip'",),
    ),
    "a share of two": Refusal(
        run(*FOLDERS, "--data.max_bad_samples=2"), ("data.max_bad_samples: got 2.0, expected",)
    ),
    # names
    "a link out": Refusal(
        run(*FOLDERS), ("set/train/cat/0.png: link out of", "SPANET_FOLLOW_LINKS=1"), linked
    ),
    "a name above": Refusal(
        COCO,
        ("instances_train.json: image 10", "'../../etc/passwd', expected a name below"),
        bad_coco("../../etc/passwd"),
    ),
    "a name from the root": Refusal(
        COCO, ("instances_train.json: image 10", "'/etc/passwd', expected"), bad_coco("/etc/passwd")
    ),
    # checkpoints and addresses
    "code to resume from": Refusal(
        run("--ckpt_path=a.ckpt"), ("ckpt_path: a.ckpt: refused",), file("a.ckpt", EVIL)
    ),
    "code as weights": Refusal(
        run("--model.weights=a.pth"),
        ("a.pth: refused, reading it would call",),
        file("a.pth", EVIL),
    ),
    "weights that are not what was written": Refusal(
        run("--model.weights=a.pth"), ("a.pth: is damaged: its part",), flipped
    ),
    "half of the weights": Refusal(
        ["convert", "a.pth", "b.safetensors"],
        ("a.pth: is damaged: it is cut off",),
        lambda: flipped(half=True),
        app.main,
    ),
    "code to convert": Refusal(
        ["convert", "a.pth", "b.safetensors"], ("a.pth: refused",), file("a.pth", EVIL), app.main
    ),
    "an address to resume from": Refusal(
        run("--ckpt_path=https://x.org/a.ckpt"), ("ckpt_path: got 'https://x.org/a.ckpt'", "local")
    ),
    "http": Refusal(
        run("--model.weights=http://x.org/a.pth"),
        ("weights: got 'http://x.org/a.pth', expected a local file, or https://…#sha256=HASH",),
    ),
    "no hash": Refusal(
        run("--model.weights=https://x.org/a.pth"),
        ("weights: got 'https://x.org/a.pth', which states no hash; expected",),
    ),
    "published weights": Refusal(
        ["analyze", "spectrum", "--model=spanet_s", "--pretrained", "--images=sample"],
        ("weights of spanet_s: got https://", "states no hash", "model.weights=FILE"),
        main=app.main,
    ),
    # configurations
    "a foreign class": config(
        "model: other.Thing\n", "1: model", "got 'other.Thing'", "SPANET_TRUSTED_PACKAGES=other"
    ),
    "a demo's class": config(
        "data: lightning.pytorch.demos.mnist_datamodule.MNISTDataModule\n", "1: data", "expected"
    ),
    "a tag": config("name: !!python/name:os.system x\n", "1: the tag !!python/name", "is refused"),
    "a tag in a study": Refusal(
        ["sweep", "plan", "own.yaml"],
        ("own.yaml:1: the tag !!python/object/apply:os.system is refused",),
        file("own.yaml", "question: !!python/object/apply:os.system [ls]\n"),
        app.main,
    ),
    "too deep": Refusal(
        run("--config=own.yaml"),
        ("own.yaml: is nested too deeply, expected",),
        file("own.yaml", "a: " + "[" * 5000),
    ),
    "a null for a group": config("trainer: null\n", "1: trainer: got None, expected keys"),
    "a null for a number": config(
        "data:\n  init_args:\n    batch_size: null\n", "3: data.batch_size: got None, expected an"
    ),
    "a list of arguments": config(
        "model:\n  class_path: ClassificationTask\n  init_args: [1]\n",
        "3: model.init_args: got [1], expected keys and values of ClassificationTask",
    ),
    "an item that is no class": config(
        "trainer:\n  callbacks: [3]\n", "2: trainer.callbacks[0]: got 3, expected a class_path"
    ),
    "an item without its class": config(
        "trainer:\n  callbacks:\n  - monitor: x\n", "3: trainer.callbacks[0]: got {'monitor': 'x'}"
    ),
    "a mistake in a nested list": config(
        "trainer:\n  callbacks:\n  - class_path: EarlyStopping\n    init_args: {monitr: x}\n",
        "4: trainer.callbacks[0].monitr: got 'x'",
        "did you mean 'trainer.callbacks[0].monitor'?",
    ),
    "a mistake that a later file overrides": Refusal(
        run("--config=own.yaml", "--trainer.max_epochs=1"),
        ("own.yaml:2: trainer.max_epochs: got 'two', expected an integer or null",),
        file("own.yaml", "trainer:\n  max_epochs: two\n"),
    ),
    "a key that an earlier file has wrong": Refusal(
        run("--config=own.yaml", "--config=" + DIGITS),
        ("own.yaml:2: trainer.max_epoch: got 2", "did you mean 'trainer.max_epochs'?"),
        file("own.yaml", "trainer:\n  max_epoch: 2\n"),
    ),
    "a mistake in a class that was added": Refusal(
        run("--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitr=val/loss"),
        ("callbacks[0].monitr: got 'val/loss'", "did you mean 'trainer.callbacks[0].monitor'?"),
    ),
    "no such class to add": Refusal(
        run("--trainer.callbacks+=EarlyStoping"),
        ("trainer.callbacks[0]: got 'EarlyStoping'", "lightning.pytorch.callbacks.EarlyStopping"),
    ),
    "a class to add that is none of ours": Refusal(
        run("--trainer.callbacks+=other.Thing"),
        ("trainer.callbacks[0]: got 'other.Thing'", "SPANET_TRUSTED_PACKAGES=other"),
    ),
    "a value that Lightning's class refuses": Refusal(
        run(*ADD_EARLY_STOPPING, "--trainer.callbacks.mode=up"),
        ("trainer.callbacks[0].mode: got 'up': `mode` can be min, max",),
    ),
    "a value that torch refuses, below Lightning's class": Refusal(
        run("--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=2"),
        ("trainer.callbacks[0].decay: got 2.0: Invalid decay value",),
    ),
    "a value of the checkpoints' group": Refusal(
        run("--checkpoint.mode=up"), ("checkpoint.mode: got 'up': `mode` can be min, max",)
    ),
    "arguments that are not named": config(
        "model:\n  class_path: ClassificationTask\n  dict_kwargs: {foo: 3}\n",
        "3: model.dict_kwargs: got {'foo': 3}, expected nothing",
    ),
    "arguments that are passed on to nobody": Refusal(
        run("--config=own.yaml"),
        ("trainer.callbacks[0].foo: got 3: ", "unexpected keyword argument 'foo'"),
        file(
            "own.yaml",
            "trainer:\n  callbacks+:\n  - class_path: EMAWeightAveraging\n"
            "    dict_kwargs: {foo: 3}\n",
        ),
    ),
    "averaged weights in parts": Refusal(
        run("--trainer.strategy=fsdp2", "--trainer.callbacks+=EMAWeightAveraging"),
        ("trainer.strategy: got 'fsdp2', expected ddp, or no EMAWeightAveraging",),
    ),
    "a logger of a package that is not there": Refusal(
        run("--trainer.logger=lightning.pytorch.loggers.CometLogger"), ("needs another package",)
    ),
    # the commands around it
    "a doctor without a file": Refusal(
        ["doctor", "--config=no.yaml"],
        ("--config: got 'no.yaml', which does not exist; expected",),
        main=app.main,
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_one_line_names_it(
    name: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
    refusal = REFUSALS[name]
    refusal.before()
    line = refused(refusal.args, capsys, refusal.main)  # exit 2, one line, nothing on disk
    assert "Traceback" not in line
    for words in refusal.says:
        assert words in line
