"""If one of these fails, a user's mistake is a traceback or a riddle, or leaves something behind.

Each refusal is one line that names the file or key, the value and what is accepted; the exit code
is 2 and nothing is written.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from spanet_lightning import app, cli
from spanet_lightning.cache import CACHE_VARIABLE
from spanet_lightning.exit import TRACEBACK_VARIABLE
from spanet_lightning.trust import TRUSTED_VARIABLE
from tests import dense_sets
from tests.helpers import DIGITS, UNTRACKED, files, images, refused


def assert_refused(row: str, args: list[str], capsys, main=cli.main) -> None:
    """Run what must be refused, in a line that holds each of the texts of a row."""
    error = refused(args, capsys, main)
    for words in row.split(" | "):
        assert words in error


def rows(table: str) -> list[str]:
    return [row for row in table.strip().splitlines() if not row.startswith("#")]


# -- keys and values

# What is typed | what the line has to hold | …
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
--trainer.callbacks+=EarlyStoping | trainer.callbacks[0]: got 'EarlyStoping' | EarlyStopping
--trainer.callbacks+=other.Thing | callbacks[0]: got 'other.Thing' | TRUSTED_PACKAGES=other
--trainer.callbacks+=Timer --trainer.callbacks.x=1 | callbacks[0].x: got 1 | of Timer
--model.backbone.class_path=os.system | got 'os.system', expected a class of spanet
--model.backbone.class_path=torch.hub.load | got 'torch.hub.load', expected
--checkpoint.mode=up | checkpoint.mode: got 'up', expected one of 'min', 'max' or null
--data=ImageClassificationDataModule --data.on_bad_sample=x | expected one of 'fail', 'skip'
--model.backbone.num_classes=5 | num_classes: got 5 | taken from data.num_classes
extra | unrecognized arguments: extra
--trainer.max_epochs | --trainer.max_epochs: expected one argument
--config | --config: is given without a value
--config=nowhere.yaml | --config: got 'nowhere.yaml', which does not exist
# keys of the first version
--global_batch=8 | global_batch: got 8 | it is called 'global_batch_size' now
--pictures=3 | it is called 'num_visualizations' now
--tracking.pictures_every=2 | it is called 'tracking.log_images_every_n_epochs' now
# what constructors refuse
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
--trainer.accelerator=abacus | trainer.accelerator: got 'abacus'
--trainer.strategy=magic | trainer.strategy: got 'magic'
--trainer.accumulate_grad_batches=0 | accumulate_grad_batches: got 0 | at least 1
--trainer.max_epochs=-3 | trainer.max_epochs: got '-3'
--trainer.max_epochs=0 | trainer.max_epochs: got 0, expected at least 1
--trainer.callbacks+=EMAWeightAveraging --trainer.callbacks.decay=2 | callbacks[0].decay: got 2.0
--trainer.strategy=fsdp2 --trainer.callbacks+=EMAWeightAveraging | got 'fsdp2', expected ddp
--trainer.logger=lightning.pytorch.loggers.CometLogger | needs another package
# addresses
--ckpt_path=https://x.org/a.ckpt | ckpt_path: got 'https://x.org/a.ckpt' | local
--model.weights=http://x.org/a.pth | got 'http://x.org/a.pth', expected a local file, or https:
--model.weights=https://x.org/a.pth | got 'https://x.org/a.pth', which states no hash; expected
"""
V1 = ["--model.backbone=SPANet", "--model.backbone.variant=test"]


@pytest.mark.parametrize("row", rows(MISTAKES))
def test_mistake_on_the_command_line(row, capsys):
    typed, _, says = row.partition(" | ")
    args = [*(V1 if typed.startswith("V1 ") else []), *typed.removeprefix("V1 ").split()]
    assert_refused(says, ["fit", *UNTRACKED, *args], capsys)


# What bad.yaml holds | what the line has to hold | …
FILES = r"""
trainer:\n  max_epochs: 3\n  max_epoch: 4 | bad.yaml:3: trainer.max_epoch: got 4
trainer:\n  max_epochs: x | bad.yaml:2: trainer.max_epochs: got 'x', expected an int
model: {init_args: {backbone:\n {init_args: {variant: s19}}}} | bad.yaml:2: model.backbone.variant
model: {init_args: {backbone:\n {kernel_sizes: [2]}}} | bad.yaml:2: model.backbone.kernel_sizes: got
trainer:\n  max_epochs: 3\n x: [ | bad.yaml:3:2: not valid YAML
\ttrainer: {} | bad.yaml:1:1: not valid YAML
trainer:\n  max_epochs: 1\n  max_epochs: 2 | bad.yaml:3: max_epochs: given twice
- fit | bad.yaml: expected keys and values
trainer: &t\n  x: *t | the value contains itself
a: !!python/object/apply:os.system [touch pwned] | bad.yaml:1: the tag !!python/obj | is refused
model: other.Thing | 1: model | got 'other.Thing' | SPANET_TRUSTED_PACKAGES=other
data: lightning.pytorch.demos.mnist_datamodule.MNISTDataModule | 1: data | expected
trainer: null | 1: trainer: got None, expected keys
data:\n  init_args:\n    batch_size: null | 3: data.batch_size: got None, expected an
model:\n  class_path: ClassificationTask\n  init_args: [1] | 3: model.init_args: got [1] | keys and
trainer:\n  callbacks: [3] | 2: trainer.callbacks[0]: got 3, expected a class_path
trainer:\n  callbacks:\n  - monitor: x | 3: trainer.callbacks[0]: got {'monitor': 'x'}
trainer: {callbacks: [{class_path: Timer,\n init_args: {x: 1}}]} | 2: trainer.callbacks[0].x: got 1
model:\n  class_path: ClassificationTask\n  dict_kwargs: {foo: 3} | 3: model.dict_kwargs: got {'foo'
"""


@pytest.mark.parametrize("row", rows(FILES))
def test_mistake_in_a_file(row, capsys):
    text, _, says = row.partition(" | ")
    Path("bad.yaml").write_text(text.replace(r"\n", "\n").replace(r"\t", "\t"))
    assert_refused(says, ["fit", *UNTRACKED, "--config=bad.yaml"], capsys)
    # What is overridden, or configured before its class, is to be right, too.
    if "max_epoch" in says:
        assert_refused(says, ["fit", "--config=bad.yaml", *UNTRACKED], capsys)


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("", "expected one of fit, validate, test, predict"),
        ("fot", "command: got 'fot', expected one of 'fit', 'validate', 'test', 'predict'; did"),
        ("--config=digits/spanet fit", "fit comes first, as in: lightning fit --config FILE"),
        ("fit", "model: is missing; give it in a file (--config FILE) or as --model CLASS"),
        ("fit --data=DigitsDataModule", "model: is missing"),
        (
            "fit --model=ClassificationTask --data=DigitsDataModule",
            "model.backbone: is missing; expected a class_path of Backbone",
        ),
        ("fit --config=digits/spanet --data=null", "data"),
        ("fit --config=digits/spanit", "did you mean 'digits/spanet'?"),
    ],
)
def test_incomplete_command_line(typed, says, capsys):
    assert_refused(says, typed.split(), capsys)


def test_files_that_are_not_there_or_no_text(capsys):
    Path("digits.yaml").write_text("seed_everything: 1\n")
    assert_refused("did you mean 'digits.yaml'?", ["fit", "--config=digit.yaml"], capsys)
    Path("latin.yaml").write_bytes(b"name: \xe9t\xe9\n")
    assert_refused("latin.yaml can't be read as text", ["fit", "--config=latin.yaml"], capsys)


def test_keyword_that_is_passed_on_to_nobody(capsys):
    Path("own.yaml").write_text(
        "trainer: {callbacks+: [{class_path: EMAWeightAveraging, dict_kwargs: {foo: 3}}]}"
    )
    says = "trainer.callbacks[0].foo: got 3:  | unexpected keyword argument 'foo'"
    assert_refused(says.replace(":  |", ": |"), ["fit", *UNTRACKED, "--config=own.yaml"], capsys)


@pytest.mark.parametrize(
    "arguments",
    [
        "model.backbone.class_path",
        "model",
        "trainer.callbacks",
        "trainer.logger+",
        "trainer.plugins",
    ],
)
def test_untrusted_module_is_never_imported(arguments, capsys, monkeypatch):
    Path("hostile.py").write_text("open('pwned', 'w')\nclass Thing: pass\n")
    monkeypatch.syspath_prepend(".")
    for value in ("hostile.Thing", "[hostile.Thing]"):
        refused(["fit", *UNTRACKED, f"--{arguments}={value}", "--print_config"], capsys)
    assert "hostile" not in sys.modules
    assert not Path("pwned").exists()


def test_own_package_may_be_named_once_it_is_trusted(capsys, monkeypatch):
    Path("my_research.py").write_text(
        "from spanet_lightning import SPANetV2\nclass Variant(SPANetV2):\n    pass\n"
    )
    monkeypatch.syspath_prepend(".")
    args = ["fit", *UNTRACKED, "--model.backbone=my_research.Variant", "--trainer.fast_dev_run=1"]
    assert_refused(f"set {TRUSTED_VARIABLE}=my_research", args, capsys)
    monkeypatch.setenv(TRUSTED_VARIABLE, "my_research")
    assert type(cli.run(args).model.backbone).__name__ == "Variant"


# -- data


def spoilt() -> None:
    images(Path("set"))
    Path("set/val/cat/0.png").write_bytes(b"<html>404</html>")
    Path("set/val/cat/1.png").write_bytes(b"")


def too_large() -> None:
    images(Path("set"))
    Image.new("1", (12000, 12000)).save("set/val/cat/0.png")


def linked() -> None:
    images(Path("set"))
    Path("set/train/cat/0.png").unlink()
    Path("set/train/cat/0.png").symlink_to("/etc/hostname")


def coco(name: str) -> Callable[[], object]:
    def write() -> None:
        root = dense_sets.coco(Path("set"))
        dense_sets.edit(root, "train", lambda d: d["images"][0].update(file_name=name))

    return write


FOLDERS = ["--data=ImageClassificationDataModule", "--data.root=set", "--data.image_size=32"]
FOLDERS = ["fit", *UNTRACKED, *FOLDERS, "--data.batch_size=2", "--data.num_workers=0"]
COCO = ["fit", "--config=digits/retinanet", "--trainer.logger=false", "--data=CocoDataModule"]
COCO += ["--data.root=set", *(f"--data.{k}={v}" for k, v in dense_sets.COCO_FOLDERS.items())]
SKIP = "--data.on_bad_sample=skip"
DATA = [
    (FOLDERS, spoilt, "set/val/cat/0.png (index 0) | a page of HTML | expected"),
    (FOLDERS, too_large, "set/val/cat/0.png | 12000×12000 px | SPANET_MAX_PIXELS"),
    ([*FOLDERS, SKIP], spoilt, "data.max_bad_samples: got 0.01, at most 1 of the 8 samples of val"),
    ([*FOLDERS, "--data.max_bad_samples=2"], spoilt, "data.max_bad_samples: got 2.0, expected"),
    (FOLDERS, linked, "set/train/cat/0.png: link out of | SPANET_FOLLOW_LINKS=1"),
    (COCO, coco("../../etc/passwd"), "image 10 | '../../etc/passwd', expected a name below"),
    (COCO, coco("/etc/passwd"), "instances_train.json: image 10 | '/etc/passwd', expected"),
    (FOLDERS, lambda: None, "data.root: found nothing at set"),
]


@pytest.mark.parametrize(("args", "before", "says"), DATA)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_data(args, before, says, capsys, monkeypatch, tmp_path_factory):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
    before()
    assert_refused(says, args, capsys)


@pytest.mark.filterwarnings("ignore:.*number of training batches")  # there are only four
def test_truncated_image_in_the_middle_of_training(capsys):
    images(Path("set"))
    for file in Path("set/train/dog").iterdir():
        file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(SystemExit) as exit_info:
        cli.main([*FOLDERS, "--trainer.limit_train_batches=1.0", "--data.num_workers=1"])
    error = capsys.readouterr().err
    assert exit_info.value.code == 2
    assert "Traceback" not in error
    last = error.splitlines()[-1]
    assert last.startswith("error: image set/train/dog/")
    assert "truncated" in last
    assert not list(Path("runs").rglob("*.ckpt"))


# -- checkpoints

EVIL = b"cos\nsystem\n(S'touch pwned'\ntR."  # a pickle that runs a command


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of a tiny SPANetV2."""
    root = tmp_path_factory.mktemp("trained")
    cli.run(["fit", *UNTRACKED, f"--trainer.default_root_dir={root}", "--name=tiny"])
    return str(root / "tiny" / "last.ckpt")


@pytest.mark.parametrize("command", ["fit", "test"])
def test_checkpoint_of_another_architecture(command, trained, capsys):
    ckpt = f"--ckpt_path={trained}"
    says = f"ckpt_path: {trained} (SPANetV2 test) is of another architecture | SPANet: of"
    assert_refused(says, [command, *UNTRACKED, *V1, ckpt], capsys)
    says = f"spectral filters for images of 32 px, the configured model for 64 px | {trained}"
    assert_refused(says, [command, *UNTRACKED, "--model.backbone.img_size=64", ckpt], capsys)


def test_checkpoint_that_names_a_class_does_not_choose_what_is_imported(trained):
    content = torch.load(trained, weights_only=True)
    content["hyper_parameters"]["_class_path"] = "hostile.Thing"
    content["hyper_parameters"]["_instantiator"] = "hostile.thing"
    torch.save(content, "named.ckpt")
    cli.main(["test", *UNTRACKED, "--ckpt_path=named.ckpt"])
    assert "hostile" not in sys.modules


def test_unreadable_checkpoints_and_weights(trained, capsys):
    whole = Path(trained).read_bytes()
    Path("cut.ckpt").write_bytes(whole[: len(whole) // 2])
    Path("empty.ckpt").touch()
    Path("evil.ckpt").write_bytes(EVIL)
    torch.save({"weight": torch.zeros(4096)}, "foreign.ckpt")
    flipped = bytearray(Path("foreign.ckpt").read_bytes())
    flipped[len(flipped) // 2] ^= 1
    Path("flipped.pth").write_bytes(flipped)
    for option, path, says in (
        ("ckpt_path", "cut.ckpt", "cut.ckpt: is damaged: it is cut off"),
        ("ckpt_path", "empty.ckpt", "empty.ckpt: is empty"),
        ("ckpt_path", "evil.ckpt", "ckpt_path: evil.ckpt: refused"),
        ("ckpt_path", "foreign.ckpt", "not a checkpoint of a run; to start from official weights"),
        ("ckpt_path", "nowhere.ckpt", "which does not exist"),
        ("ckpt_path", ".", "which is a folder; expected a checkpoint file"),
        ("ckpt_path", "last", "which does not exist"),
        ("model.weights", "evil.ckpt", "evil.ckpt: refused, reading it would call"),
        ("model.weights", "flipped.pth", "flipped.pth: is damaged: its part"),
    ):
        assert_refused(says, ["fit", *UNTRACKED, f"--{option}={path}"], capsys)
    for path, says in (("cut.ckpt", "is damaged: it is cut off"), ("evil.ckpt", "refused")):
        assert_refused(says, ["convert", path, "b.safetensors"], capsys, app.main)


# -- `spanet`

COMMANDS = r"""
model | command: got 'model', expected one of 'models'
models s99 | pattern: got 's99', which matches no variant
models --jsn | spanet models: unrecognized arguments: --jsn
convert | spanet convert: the following arguments are required: OFFICIAL, OUT
convert no.pth out.safetensors | no.pth: no such checkpoint file
convert no.pth out.pth | OUT: got 'out.pth', expected a name that ends in
convert no.pth no/out.safetensors | there is no folder no
demo --config=no.yaml | --config: got 'no.yaml', which does not exist
demo --config=digits/spanet --trainer.max_epoch=1 | 'trainer.max_epochs'?
doctor --config=no.yaml | --config: got 'no.yaml', which does not exist; expected
doctor --data.root=x | --data.root=x: is given without --config
analyze spectrum --model=spanet_s --pretrained --images=sample | got https:// | states no hash
configs show nothing | NAME: got 'nothing', expected a packaged configuration or study
sweep plan tag.yaml | tag.yaml:1: the tag !!python/object/apply:os.system is refused
"""


@pytest.mark.parametrize("row", rows(COMMANDS))
def test_mistake_in_a_subcommand(row, capsys):
    typed, _, says = row.partition(" | ")
    if "tag.yaml" in typed:
        Path("tag.yaml").write_text("question: !!python/object/apply:os.system [ls]\n")
    assert_refused(says, typed.split(), capsys, app.main)


# -- processes and bugs


@pytest.mark.parametrize(
    "command",
    ["spanet_lightning fit --config digits/spanet --trainer.max_epoch=3", "spanet_lightning.app x"],
)
def test_process_ends_with_code_2_and_one_line(command):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", *command.split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert files() == set()


def test_bug_keeps_its_traceback(monkeypatch):
    def broken(*_):
        raise RuntimeError("a bug")

    task = "spanet_lightning.tasks.classification"
    monkeypatch.setattr(f"{task}.ClassificationTask.training_step", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main(["fit", *UNTRACKED])
    monkeypatch.setattr(f"{task}.MeanMetric", broken)
    with pytest.raises(Exception, match="a bug") as info:  # as jsonargparse passes it on
        cli.main(["fit", *UNTRACKED])
    assert isinstance(info.value.__cause__, RuntimeError)


def test_developer_may_see_where_a_mistake_was_found(monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(ValueError, match="odd integer"):
        cli.main(["fit", "--config", DIGITS, "--model.backbone.kernel_sizes=[4]"])
