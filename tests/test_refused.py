"""If one of these fails, a user's mistake is a traceback or a riddle, or leaves something behind.

Each refusal is one line that names the file or key, what was found and what is accepted; the exit
code is 2 and nothing is written.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from spanet_lightning import app, cli
from spanet_lightning.cache import CACHE_VARIABLE
from spanet_lightning.exit import TRACEBACK_VARIABLE
from spanet_lightning.trust import TRUSTED_VARIABLE
from tests import dense_sets
from tests.helpers import DIGITS, UNTRACKED, files, images, refused


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
        run("--checkpoint.mode=up"),
        ("checkpoint.mode: got 'up', expected one of 'min', 'max' or null",),
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


# -- the command line and files


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


MISTAKES = r"""
--model.backbone.kernel_sizess=[3] | kernel_sizess: got [3] | backbone.kernel_sizes'?
--trainer.max_epoch=3 | trainer.max_epoch: got 3 | did you mean 'trainer.max_epochs'?
--model.lr=1 | model.lr: got 1 | ClassificationTask | 'model.optimizer.lr'?
--modle.x=1 | modle | did you mean 'model'?
--model.optimizer.zzz=1 | model.optimizer.zzz | accepted: name, lr, weight_decay
--checkpoint.monitr=x | did you mean 'checkpoint.monitor'?
--trainer.logger.tracking_ur=x | did you mean 'trainer.logger.tracking_uri'?
--weights_only=false | weights_only: got False | no such key
--trainer.max_epochs=x | trainer.max_epochs: got 'x', expected an integer or null
--model.backbone.srf=maybe | backbone.srf: got 'maybe', expected true or false
--model.optimizer.lr=fast | model.optimizer.lr: got 'fast', expected a number
--model.optimizer.betas=[0.9] | betas: got [0.9] | a list of 2 values
--model.backbone.kernel_sizes=3,x | kernel_sizes: got '3,x' | a list of integers
--model.backbone.kernel_sizes=[3,x] | kernel_sizes[1]: got 'x', expected an integer
--model.optimizer=5 | model.optimizer: got 5 | keys and values (name, lr
--model.backbone.variant=s19_pure | variant: got 's19_pure' | did you mean 's18_pure'?
--model.backbone.mixers=[spam,spam,spam,spa] | mixers[3]: got 'spa' | 'spam'?
--model.backbone.srf_gate=sigmoyd | srf_gate: got 'sigmoyd' | 'sigmoid'?
--model.backbone=SPANetV3 | model.backbone: got 'SPANetV3' | spanet_lightning.SPANet
--model=spanet_lightning.Clasification | 'spanet_lightning.ClassificationTask'?
--data=spanet_lightning.SPANet | data: got 'spanet_lightning.SPANet' | subclass of
--trainer.callbacks=EarlyStoping | 'lightning.pytorch.callbacks.EarlyStopping'?
--model.backbone.class_path=os.system | got 'os.system', expected a class of spanet
--model.backbone.class_path=torch.hub.load | got 'torch.hub.load', expected
V1 --model.backbone.radius=[1,2] | model.backbone.radius: got [1.0, 2.0] | four
V1 --model.backbone.balance=[0.5,1.5] | balance[1]: got 1.5, expected | [0, 1]
V1 --model.backbone.kernel_size=4 | backbone.kernel_size: got 4, expected an odd
V1 --model.backbone.kernel_size=301 | backbone.kernel_size: got 301 | to 31
--model.backbone.kernel_sizes=[3,4] | kernel_sizes[1]: got 4, expected an odd integer
--model.backbone.dims=[30,60,90,120] | model.backbone.dims: got [30 | 4 heads
--model.optimizer.lr=-1 | model.optimizer.lr: got -1.0, expected a number above 0
--model.label_smoothing=2 | model.label_smoothing: got 2.0, expected
--model.weights=no.pth | no.pth
--data.batch_size=0 | data.batch_size: got 0, expected at least 1
--model.backbone.num_classes=5 | num_classes: got 5 | taken from data.num_classes
--trainer.accelerator=abacus | trainer.accelerator: got 'abacus'
--trainer.strategy=magic | trainer.strategy: got 'magic'
--trainer.accumulate_grad_batches=0 | accumulate_grad_batches: got 0 | at least 1
--trainer.max_epochs=-3 | trainer.max_epochs: got '-3'
--trainer.max_epochs=0 | trainer.max_epochs: got 0, expected at least 1
extra | unrecognized arguments: extra
--trainer.max_epochs | --trainer.max_epochs: expected one argument
--config | --config: is given without a value
--config=nowhere.yaml | --config: got 'nowhere.yaml', which does not exist
# renamed keys of the first version
--global_batch=8 | global_batch: got 8 | it is called 'global_batch_size' now
--pictures=3 | it is called 'num_visualizations' now
--tracking.pictures_every=2 | it is called 'tracking.log_images_every_n_epochs' now
"""
"""What is typed | what the line has to hold | …"""
V1 = ["--model.backbone=SPANet", "--model.backbone.variant=test"]


@pytest.mark.parametrize("row", [r for r in MISTAKES.strip().splitlines() if r[0] != "#"])
def test_mistake_on_the_command_line(row, capsys):
    typed, *says = row.split(" | ")
    args = [*(V1 if typed.startswith("V1 ") else []), *typed.removeprefix("V1 ").split()]
    error = refused(["fit", *UNTRACKED, *args], capsys)
    for words in says:
        assert words in error


FILES = [
    ("trainer:\n  max_epochs: 3\n  max_epoch: 4\n", "bad.yaml:3: trainer.max_epoch: got 4"),
    ("trainer:\n  max_epochs: x\n", "bad.yaml:2: trainer.max_epochs: got 'x', expected an int"),
    (
        "model:\n  init_args:\n    backbone:\n      init_args:\n        variant: s19\n",
        "bad.yaml:5: model.backbone.variant: got 's19'",
    ),
    (
        "model:\n  init_args:\n    backbone:\n      init_args:\n        kernel_sizes: [2]\n",
        "bad.yaml:5: model.backbone.kernel_sizes: got 2, expected an odd",
    ),
    ("model:\n  label_smoothin: 0\n", "bad.yaml:2: model.label_smoothin: got 0, but there"),
    ("trainer:\n  max_epochs: 3\n x: [\n", "bad.yaml:3:2: not valid YAML"),
    ("\ttrainer: {}\n", "bad.yaml:1:1: not valid YAML"),
    ("trainer:\n  max_epochs: 1\n  max_epochs: 2\n", "bad.yaml:3: max_epochs: given twice"),
    ("- fit\n", "bad.yaml: expected keys and values"),
    ("trainer: &t\n  x: *t\n", "the value contains itself"),
    ("a: !!python/object/apply:os.system [touch pwned]\n", "bad.yaml:1: the tag !!python/obj"),
]


@pytest.mark.parametrize(("text", "says"), FILES)
def test_mistake_in_a_file_is_found_with_its_line(text, says, capsys):
    Path("bad.yaml").write_text(text)
    assert says in refused(["fit", *UNTRACKED, "--config", "bad.yaml"], capsys)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "expected one of fit, validate, test, predict"),
        (
            ["fot"],
            "command: got 'fot', expected one of 'fit', 'validate', 'test', 'predict'; did you",
        ),
        (["fit"], "model: is missing; give it in a file (--config FILE) or as --model CLASS"),
        (["fit", "--data=DigitsDataModule"], "model: is missing"),
        (
            ["fit", "--model=ClassificationTask", "--data=DigitsDataModule"],
            "model.backbone: is missing; expected a class_path of Backbone",
        ),
        (["fit", "--config=" + DIGITS, "--data=null"], "data"),
    ],
)
def test_incomplete_command_line(args, says, capsys):
    assert says in refused(args, capsys)


def test_missing_file_suggests_the_nearest(capsys):
    Path("digits.yaml").write_text("seed_everything: 1\n")
    assert "did you mean 'digits.yaml'?" in refused(["fit", "--config=digit.yaml"], capsys)
    Path("latin.yaml").write_bytes(b"name: \xe9t\xe9\n")
    assert "latin.yaml can't be read as text" in refused(["fit", "--config=latin.yaml"], capsys)


def test_module_outside_the_trusted_packages_is_never_imported(capsys, monkeypatch):
    Path("hostile.py").write_text("open('pwned', 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(".")
    for args in (
        ["--model.backbone.class_path=hostile.Thing"],
        ["--model=hostile.Thing"],
        ["--trainer.callbacks=hostile.Thing"],
        ["--trainer.callbacks=[hostile.Thing]"],
        ["--trainer.logger+=hostile.Thing"],
        ["--trainer.plugins=hostile.Thing"],
    ):
        with pytest.raises(SystemExit):
            cli.main(["fit", *UNTRACKED, *args, "--print_config"])
        assert capsys.readouterr().err.startswith("error: ")
    with pytest.raises(
        SystemExit
    ):  # a name among the texts that a key takes: printed, not imported
        cli.main(["fit", *UNTRACKED, "--trainer.strategy=hostile.Thing", "--print_config"])
    assert "hostile" not in sys.modules
    assert not Path("pwned").exists()


def test_own_package_may_be_named_once_it_is_trusted(capsys, monkeypatch):
    Path("my_research.py").write_text(
        "from spanet_lightning import SPANetV2\nclass Variant(SPANetV2):\n    pass\n"
    )
    monkeypatch.syspath_prepend(".")
    args = [
        "fit",
        *UNTRACKED,
        "--model.backbone=my_research.Variant",
        "--trainer.fast_dev_run=true",
    ]
    assert f"set {TRUSTED_VARIABLE}=my_research" in refused(args, capsys)
    monkeypatch.setenv(TRUSTED_VARIABLE, "my_research")
    assert type(cli.run(args).model.backbone).__name__ == "Variant"


# -- data


def image_args(root: str = "data") -> list[str]:
    return [
        *UNTRACKED,
        "--data=ImageClassificationDataModule",
        f"--data.root={root}",
        "--data.image_size=32",
        "--data.batch_size=2",
        "--data.num_workers=1",
    ]


def test_data_that_is_not_there(capsys):
    assert "data.root: found nothing at data" in refused(["fit", *image_args()], capsys)
    Path("data/train").mkdir(parents=True)
    Path("data/val").mkdir()
    assert "folder data/train: found none" in refused(["fit", *image_args()], capsys)


@pytest.mark.filterwarnings("ignore:.*number of training batches")  # there are only four
def test_truncated_image_in_the_middle_of_training(capsys):
    images(Path("data"))
    for file in Path("data/train/dog").iterdir():
        file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["fit", *image_args(), "--trainer.limit_train_batches=1.0"])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert last.startswith("error: image data/train/dog/")
    assert "truncated" in last
    assert not list(Path("runs").rglob("*.ckpt"))


# -- checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a tiny SPANetV2."""
    root = tmp_path_factory.mktemp("trained")
    cli.run(["fit", *UNTRACKED, f"--trainer.default_root_dir={root}", "--name=tiny"])
    return str(root / "tiny" / "last.ckpt")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_checkpoint_of_another_architecture(command, trained, capsys):
    error = refused([command, *UNTRACKED, *V1, f"--ckpt_path={trained}"], capsys)
    assert f"ckpt_path: {trained} (SPANetV2 test) is of another architecture" in error
    assert "configured SPANet: of" in error
    error = refused(
        [command, *UNTRACKED, "--model.backbone.img_size=64", f"--ckpt_path={trained}"], capsys
    )
    assert "spectral filters for images of 32 px, the configured model for 64 px" in error
    assert f"--model.weights={trained}" in error


def test_checkpoint_that_names_a_class_does_not_choose_what_is_imported(trained, capsys):
    content = torch.load(trained, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "hostile.Thing"
    content["hyper_parameters"]["_instantiator"] = "hostile.thing"
    torch.save(content, "named.ckpt")
    cli.main(["test", *UNTRACKED, "--ckpt_path=named.ckpt"])
    assert "hostile" not in sys.modules


def test_unreadable_checkpoints(trained, capsys):
    whole = Path(trained).read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("empty.ckpt").touch()
    torch.save({"weight": torch.zeros(1)}, "foreign.ckpt")
    for path, says in (
        ("cut.ckpt", "cut.ckpt: is damaged: it is cut off"),
        ("empty.ckpt", "empty.ckpt: is empty"),
        ("foreign.ckpt", "is not a checkpoint of a run; to start from official weights"),
        ("nowhere.ckpt", "which does not exist"),
        (".", "which is a folder; expected a checkpoint file; there is 'foreign.ckpt'"),
        ("http://localhost/x.ckpt", "expected a local file, not an address"),
        ("last", "which does not exist"),
    ):
        assert says in refused(["fit", *UNTRACKED, f"--ckpt_path={path}"], capsys)


# -- `spanet`


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["model"], "command: got 'model', expected one of 'models'"),
        (["models", "s99"], "pattern: got 's99', which matches no variant"),
        (["models", "--jsn"], "spanet models: unrecognized arguments: --jsn"),
        (["convert"], "spanet convert: the following arguments are required: OFFICIAL, OUT"),
        (["convert", "no.pth", "out.safetensors"], "no.pth: no such checkpoint file"),
        (["convert", "no.pth", "out.pth"], "OUT: got 'out.pth', expected a name that ends in"),
        (["convert", "no.pth", "no/out.safetensors"], "there is no folder no"),
        (["demo", "--config=no.yaml"], "--config: got 'no.yaml', which does not exist"),
        (["demo", "--config=" + DIGITS, "--trainer.max_epoch=1"], "'trainer.max_epochs'?"),
    ],
)
def test_mistake_in_a_subcommand(args, says, capsys):
    error = refused(args, capsys, app.main)
    assert says in error


# -- processes and bugs


@pytest.mark.parametrize(
    "command",
    [
        ["spanet_lightning", "fit", "--config", DIGITS, "--trainer.max_epoch=3"],
        ["spanet_lightning.app", "models", "s99"],
    ],
)
def test_process_ends_with_code_2_and_one_line(command):
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert files() == set()


def test_bug_keeps_its_traceback(monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    monkeypatch.setattr(
        "spanet_lightning.tasks.classification.ClassificationTask.training_step", broken
    )
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["fit", *UNTRACKED])
    monkeypatch.setattr("spanet_lightning.tasks.classification.MeanMetric", broken)
    with pytest.raises(Exception, match="a bug") as info:  # as jsonargparse passes it on
        cli.main(["fit", *UNTRACKED])
    assert isinstance(info.value.__cause__, RuntimeError)


def test_developer_may_see_where_a_mistake_was_found(monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="odd integer"):
        cli.main(["fit", *UNTRACKED, "--model.backbone.kernel_sizes=[4]"])
