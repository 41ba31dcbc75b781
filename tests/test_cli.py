"""If one of these fails, `lightning` does not do what a configuration says."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning import LightningDataModule
from lightning.pytorch.callbacks import (
    EarlyStopping,
    LearningRateMonitor,
    RichModelSummary,
    RichProgressBar,
    Timer,
    TQDMProgressBar,
)
from lightning.pytorch.callbacks import ModelCheckpoint as StockCheckpoint

import spanet_lightning
from spanet_lightning import ClassificationTask, SPANet, SPANetV2, __version__, cli
from spanet_lightning.callbacks.model_checkpoint import ModelCheckpoint
from spanet_lightning.callbacks.progress import ImagesPerSecond, PlainProgress, progress_bar
from spanet_lightning.cli import config_files, keys, signatures
from spanet_lightning.cli import error_messages as messages
from spanet_lightning.cli.arguments import Arguments
from spanet_lightning.errors import ConfigError
from spanet_lightning.heads import DetectionHead, SegmentationHead
from spanet_lightning.run_dir import default_name, reserve
from spanet_lightning.tasks.base import Task
from tests.helpers import CONFIGS, DIGITS, UNTRACKED, files

DRY = (*UNTRACKED, "--trainer.fast_dev_run=true")


def printed(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Return what a command prints before it exits with success."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(args)
    assert exit_info.value.code in (0, None)
    return capsys.readouterr().out


# -- configurations


def test_later_files_and_keys_win(capsys):
    """And what is printed is a configuration that prints the same."""
    Path("a.yaml").write_text("trainer: {max_epochs: 7, max_steps: 9}\n")
    Path("b.yaml").write_text("model: {init_args: {backbone: {init_args: {srf: false}}}}\n")
    Path("c.yaml").write_text("model: {backbone: {drop_rate: 0.2}}\ntrainer.num_nodes: 1\n")
    args = ["fit", "--config", DIGITS, "-c", "a.yaml", "--config=b.yaml", "--config=c.yaml"]
    args += ["--trainer.max_steps", "11", "--model.backbone.drop_path_rate=0.1"]
    args += ["--model.init_args.backbone.init_args.kernel_sizes=[3,5]", "--print_config"]
    first = printed(capsys, *args)
    config = yaml.safe_load(first)
    backbone = config["model"]["init_args"]["backbone"]["init_args"]
    assert (config["trainer"]["max_epochs"], config["trainer"]["max_steps"]) == (7, 11)
    assert (backbone["srf"], backbone["drop_path_rate"], backbone["drop_rate"]) == (False, 0.1, 0.2)
    assert (backbone["kernel_sizes"], backbone["variant"]) == ([3, 5], "test")
    assert config["checkpoint"]["monitor"] == "val/loss"
    assert "num_classes" not in first  # linked: a configuration can't contradict the data
    Path("printed.yaml").write_text(first)
    assert printed(capsys, "fit", "--config=printed.yaml", "--print_config") == first


def test_another_class_takes_the_place_of_the_configured_one(capsys):
    args = ["--model.backbone=SPANet", "--model.backbone.radius=[1,1,1,1]"]
    experiment = cli.run(["fit", *DRY, *args])
    assert isinstance(experiment.model.backbone, SPANet)
    assert experiment.model.backbone.num_classes == experiment.datamodule.num_classes == 10
    assert files() == set()  # a dry run leaves nothing
    capsys.readouterr()
    # Naming the same class again changes nothing; arguments that the new one lacks are named.
    args = ["fit", "--config=digits/spanet", *args, "--model.backbone=SPANetV2", "--print_config"]
    with pytest.raises(SystemExit):
        cli.main([*args, "--model=ClassificationTask", "--model.backbone=SPANetV2"])
    shown = capsys.readouterr()
    (note,) = shown.err.splitlines()
    assert note.startswith("note: model.backbone: SPANetV2 replaces SPANet; dropped")
    assert "radius=[1, 1, 1, 1]" in note
    backbone = yaml.safe_load(shown.out)["model"]["init_args"]["backbone"]
    assert backbone["class_path"] == "spanet_lightning.SPANetV2"
    assert backbone["init_args"]["variant"] == "test"


@pytest.mark.parametrize("text", ["off", "007", "1e3", "12:30:45", "no"])
def test_scalars_mean_what_their_key_expects(text):
    """Names stay as written, where YAML would make numbers, truth values or durations of them."""
    Path("a.yaml").write_text(f"name: {text}\ntrainer: {{max_time: 00:01:00:00}}\n")
    for args in (["--config=a.yaml"], [f"--name={text}"]):
        config = Arguments.parse(["fit", *UNTRACKED, *args]).config
        assert config["name"] == text
        assert config["model"]["init_args"]["optimizer"]["lr"] == 2e-3


def test_files_merge_with_anchors_and_aliases():
    Path("a.yaml").write_text(
        "base: &b {lr: 1e-3, name: '5', day: 2026-01-02}\nrun: {<<: *b, lr: 2, none: }\n"
        "list: [1, x, 1.5e3]\none: &x {k: 1}\ntwo: *x\n"
    )
    tree = config_files.collect(["--config=a.yaml", "--one.k=2"], config_files.Tree())
    assert config_files.plain(tree) == {
        "base": {"lr": 1e-3, "name": "5", "day": "2026-01-02"},
        "run": {"lr": 2, "name": "5", "day": "2026-01-02", "none": None},
        "list": [1, "x", 1500.0],
        "one": {"k": 2},
        "two": {"k": 1},
    }


# -- help


def test_help_is_short_and_names_every_part(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = printed(capsys, "fit", "--help")
    assert len(text.splitlines()) < 200
    assert max(map(len, text.splitlines())) <= 80
    for backbone in (SPANet, SPANetV2):
        for name in set(inspect.signature(backbone).parameters) - {"num_classes"}:
            assert re.search(rf"\b{name}\b", text), name
    parts = (Task, DetectionHead, SegmentationHead, LightningDataModule)
    public = (getattr(spanet_lightning, name) for name in spanet_lightning.__all__)
    names = {cls.__name__ for cls in public if isinstance(cls, type) and issubclass(cls, parts)}
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()
    # The commands that it gives work, and explain each argument.
    commands = re.findall(r"^  (?:lightning|python -m spanet_lightning) (fit --.*)", text, re.M)
    assert len(commands) == 6
    for line in commands:
        assert "--" in printed(capsys, *line.split())
    described = printed(capsys, "fit", "--model.backbone.help=SPANetV2")
    for name in set(inspect.signature(SPANetV2).parameters) - {"num_classes"}:
        assert f"--model.backbone.{name}" in described
    assert __version__ in printed(capsys, "--version")
    overview = printed(capsys, "--help")
    assert all(f"    {command} " in overview for command in ("fit", "validate", "test", "predict"))
    assert "digits/spanet" in printed(capsys, "--complete", "fit", "--config", "digits/").split()
    assert "--trainer.devices" in printed(capsys, "--complete", "fit", "--trainer.d").split()


@pytest.mark.parametrize("args", [["--help"], ["fit", "--help"], ["fit", "--data.batch_sise=3"]])
def test_help_and_refusals_do_not_wait_for_torch(args):
    code = f"""import sys
from spanet_lightning import cli
try:
    cli.main({[*args, "--config=digits/spanetv2"]!r})
except SystemExit:
    print([name for name in ("torch", "timm", "lightning", "mlflow") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_signatures_read_from_source_are_those_of_the_classes():
    for name, module in spanet_lightning.LAZY.items():
        cls = getattr(spanet_lightning, name)
        if isinstance(cls, type) and name != "Trainer":  # takes what Lightning's takes
            read = signatures.known(f"{module}.{name}")
            assert list(read.parameters) == list(inspect.signature(cls).parameters)


def test_a_classifier_imports_no_detector():
    code = """import sys
from spanet_lightning import ClassificationTask, DigitsDataModule, SPANetV2, Trainer
print(sorted({n.split(".")[1] for n in sys.modules if n.startswith("spanet_lightning.")}),
      [n for n in ("mlflow", "optuna") if n in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    for part in ("sweep", "report", "analysis", "export", "bench", "mlflow", "optuna", "cli"):
        assert f"'{part}'" not in done.stdout


# -- runs


def test_run_leaves_its_configuration_and_two_checkpoints(capsys):
    experiment = cli.run(["fit", *UNTRACKED, "--model.backbone.kernel_sizes=[3,7]"])
    run = Path("runs/digits-spanetv2")
    names = (".lock", "best.ckpt", "last.ckpt", "config.yaml")
    assert files() == {"runs", str(run), *(f"{run}/{name}" for name in names)}
    out = capsys.readouterr().out
    for words in ("epoch 1/1 done", "val/top1", "best val/loss", f"{run}/best.ckpt"):
        assert words in out
    assert f"{experiment.cost.parameters:,}" in out
    # The saved configuration is that of the run, and one that can be run again.
    again = printed(capsys, "fit", f"--config={run}/config.yaml", "--print_config")
    assert yaml.safe_load(again) == yaml.safe_load((run / "config.yaml").read_text())
    # The checkpoint rebuilds its model.
    loaded = ClassificationTask.load_from_checkpoint(run / "last.ckpt", weights_only=True)
    for name, tensor in experiment.model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])
    # It is validated, tested and predicted from.
    saved = [f"--config={run}/config.yaml", f"--ckpt_path={run}/best.ckpt"]
    before = files()
    assert "val/top1" in cli.run(["validate", *saved]).trainer.callback_metrics
    assert "test/top1" in cli.run(["test", *saved]).trainer.callback_metrics
    assert files() == before
    cli.run(["predict", *saved, "--trainer.limit_predict_batches=1"])
    assert files() - before == {f"{run}/predictions", f"{run}/predictions/predictions.csv"}


def test_runs_do_not_share_a_folder():
    cli.run(["fit", *UNTRACKED])
    cli.run(["fit", "--config=runs/digits-spanetv2/config.yaml"])
    cli.run(["fit", *UNTRACKED, "--name=mine", "--trainer.default_root_dir=elsewhere"])
    names = {path.name for path in Path("runs").iterdir()}
    assert names == {"digits-spanetv2", "digits-spanetv2-2"}
    assert Path("elsewhere/mine/best.ckpt").is_file()
    assert [reserve(Path("a/b")).as_posix() for _ in range(3)] == ["a/b", "a/b-2", "a/b-3"]
    assert default_name([]) == "run"
    assert default_name([str(CONFIGS / "digits/spanet.yaml"), "other.yaml"]) == "digits-spanet"
    assert default_name(["configs/alone.yaml"]) == "alone"
    assert default_name(["runs/digits-spanetv2/config.yaml"]) == "digits-spanetv2"


def test_resumed_run_continues_in_its_folder():
    cli.run(["fit", *UNTRACKED])
    folder = Path("runs/digits-spanetv2")
    config = (folder / "config.yaml").read_text()
    args = ["fit", *UNTRACKED, "--trainer.max_epochs=2", f"--ckpt_path={folder}/last.ckpt"]
    resumed = cli.run(args)
    assert (resumed.trainer.current_epoch, resumed.trainer.global_step) == (2, 4)
    assert [path.name for path in Path("runs").iterdir()] == [folder.name]
    assert (folder / "config.yaml").read_text() == config
    assert "max_epochs: 2" in (folder / "config.resumed.yaml").read_text()
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 4
    # Into another root, it starts a folder of its own, and leaves this one as it is.
    before = (folder / "last.ckpt").stat().st_mtime_ns
    with pytest.warns(UserWarning, match="dirpath has changed"):
        cli.run([*args, "--trainer.max_epochs=3", "--trainer.default_root_dir=other"])
    assert (folder / "last.ckpt").stat().st_mtime_ns == before
    assert torch.load("other/digits-spanetv2/last.ckpt", weights_only=True)["global_step"] == 6


# -- callbacks and loggers


def callbacks_of(*args: str) -> list[object]:
    return cli.run(["fit", *UNTRACKED, *args]).trainer.callbacks


def test_default_callbacks_give_way_to_the_users_own():
    default = callbacks_of()
    for kind in (ImagesPerSecond, PlainProgress, ModelCheckpoint):
        assert sum(isinstance(callback, kind) for callback in default) == 1
    Path("own.yaml").write_text(
        "trainer: {callbacks: [{class_path: ModelCheckpoint, init_args: {monitor: val/loss, "
        "filename: lowest}}, {class_path: TQDMProgressBar}, "
        "{class_path: EarlyStopping, init_args: {monitor: val/loss}}]}\n"
    )
    own = callbacks_of("--config=own.yaml", "--name=own")
    assert [c.filename for c in own if isinstance(c, StockCheckpoint)] == ["lowest"]
    assert [p.name for p in Path("runs/own").glob("*.ckpt")] == ["lowest.ckpt"]
    bars = [type(c) for c in own if isinstance(c, TQDMProgressBar | PlainProgress)]
    assert bars == [TQDMProgressBar]
    assert any(isinstance(c, EarlyStopping) for c in own)
    assert any(isinstance(c, RichModelSummary) for c in own)
    parts = ("checkpointing", "progress_bar", "model_summary")
    off = callbacks_of(*(f"--trainer.enable_{name}=false" for name in parts))
    shown = (StockCheckpoint, PlainProgress, RichModelSummary)
    assert not any(isinstance(callback, shown) for callback in off)


def test_callbacks_are_added_one_by_one_with_the_arguments_of_each(capsys):
    # Lightning's own way to say it on a command line.
    Path("own.yaml").write_text("trainer: {callbacks: [{class_path: TQDMProgressBar}]}\n")
    added = "--trainer.callbacks+=EarlyStopping --trainer.callbacks.monitor=val/loss"
    added += " --trainer.callbacks.patience=5 --trainer.callbacks+=Timer"
    added += " --trainer.callbacks.duration=00:00:05:00"
    own = callbacks_of("--config=own.yaml", *added.split())
    (stopping,) = [c for c in own if isinstance(c, EarlyStopping)]
    assert (stopping.monitor, stopping.patience) == ("val/loss", 5)
    # A default of its is of a type that YAML does not know, and a run saves its configuration.
    (timer,) = [c for c in own if isinstance(c, Timer)]
    assert timer._duration == 300
    assert any(isinstance(c, TQDMProgressBar) for c in own)
    timer = "--trainer.callbacks+=Timer"
    assert "interval: step" in printed(capsys, "fit", *UNTRACKED, timer, "--print_config")
    replaced = [timer, "--trainer.callbacks=RichProgressBar", "--print_config"]
    assert "Timer" not in printed(capsys, "fit", *UNTRACKED, *replaced)


def test_checkpoint_options_are_keys():
    args = ["--checkpoint.monitor=val/loss", "--checkpoint.save_last=false"]
    cli.run(["fit", *UNTRACKED, *args])
    assert [p.name for p in Path("runs/digits-spanetv2").glob("*.ckpt")] == ["best.ckpt"]


def test_learning_rate_is_monitored_where_it_is_logged():
    own = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=csv"]
    experiment = cli.run(["fit", *UNTRACKED, *own])
    assert any(isinstance(c, LearningRateMonitor) for c in experiment.trainer.callbacks)
    (metrics,) = Path("csv").rglob("metrics.csv")
    assert "lr-AdamW" in metrics.read_text().splitlines()[0]


@pytest.mark.filterwarnings("ignore:You are trying to `self.log")
def test_bare_run_has_no_callbacks_of_ours():
    bare = ["--trainer.barebones=true", "--trainer.log_every_n_steps=null", "--trainer.max_steps=1"]
    trainer = cli.run(["fit", *UNTRACKED, *bare]).trainer
    assert not any(type(c).__module__.startswith("spanet_lightning") for c in trainer.callbacks)


def test_progress_is_a_bar_on_a_terminal_and_lines_in_a_file(monkeypatch, capsys):
    assert isinstance(progress_bar(ImagesPerSecond()), PlainProgress)
    monkeypatch.setenv("FORCE_COLOR", "1")  # what makes Rich take any output for a terminal
    assert isinstance(progress_bar(ImagesPerSecond()), RichProgressBar)
    monkeypatch.delenv("FORCE_COLOR")
    cli.run(["fit", *UNTRACKED, "--trainer.limit_train_batches=3"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch")]
    steps = [line.split("  ")[0].removeprefix("epoch 1/1 ") for line in lines]
    assert steps == ["step 1/3", "step 2/3", "done"]
    assert all(re.search(r"\d+ images/s$", line) for line in lines)


# -- keys and errors


def test_flat_keys_are_those_of_the_command_line():
    net = {"class_path": "Net", "init_args": {"sizes": [3, 5]}}
    model = {"class_path": "Task", "init_args": {"backbone": net, "lr": 1.0}}
    callbacks = [{"class_path": "C", "init_args": {"x": 1}}]
    config = {"model": model, "trainer": {"callbacks": callbacks, "plugins": {}}}
    assert keys.flatten(config) == {
        "model": "Task",
        "model.backbone": "Net",
        "model.backbone.sizes": [3, 5],
        "model.lr": 1.0,
        "trainer.callbacks.0": "C",
        "trainer.callbacks.0.x": 1,
        "trainer.plugins": {},
    }


def test_error_keeps_a_key_that_is_ambiguous_or_no_key():
    flat = {"a.size": 1, "b.size": 2, "a.rate": 3}
    for text in ("size: got 1", "runs/x.ckpt: broken", "no key at all"):
        assert str(messages.with_full_key(ConfigError(text), flat, {})) == text
    full = messages.with_full_key(ConfigError("rate[2]: got 3"), flat, {"a.rate": "x.yaml:4"})
    assert str(full) == "x.yaml:4: a.rate[2]: got 3"


def test_only_what_a_library_says_of_its_arguments_is_the_users_error():
    class Ours:
        def __init__(self):
            raise ValueError("got rate 3")

    class Theirs(Ours):
        pass

    flat = {"x": "some.Ours", "x.rate": 3, "y": "some.Theirs", "y.rate": 3}
    Theirs.__module__ = "torchmetrics"
    for top in ("spanet_lightning.data", "somebodys_own"):
        Ours.__module__ = top
        with pytest.raises(ValueError, match="rate") as ours:
            Ours()
        assert messages.of_constructor(ours.value, flat, {}) is None
    with pytest.raises(ValueError, match="rate") as theirs:
        Theirs()
    said = messages.of_constructor(theirs.value, flat, {"y.rate": "a.yaml:2"})
    assert str(said) == "a.yaml:2: y.rate: got 3: got rate 3"
