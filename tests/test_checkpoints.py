"""Checkpoints can't be lost, and a run goes on from where it was, or says why it does not."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from spanet_lightning import checkpoints, cli, run_dir
from spanet_lightning.cli import faults, resume
from spanet_lightning.errors import CheckpointError, ConfigError, NoMemoryError, NoSpaceError
from tests.helpers import UNTRACKED, refused

RUN = Path("runs/digits-spanetv2")
STATE = {"weights": torch.arange(5000.0), "note": ["kept", 1]}


# -- files


def test_damaged_file_is_named_and_not_read():
    reader = checkpoints.SafeCheckpointIO()
    reader.save_checkpoint(STATE, "a/whole.ckpt")
    assert [path.name for path in Path("a").iterdir()] == ["whole.ckpt"]
    assert torch.equal(reader.load_checkpoint("a/whole.ckpt")["weights"], STATE["weights"])
    whole = Path("a/whole.ckpt").read_bytes()
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 1  # torch reads it without a word
    for content in (b"", whole[:100], whole[: len(whole) // 2], whole[:-1], changed):
        Path("bad.ckpt").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"bad.ckpt.* is damaged"):
            reader.load_checkpoint("bad.ckpt")


@pytest.mark.parametrize("after", [0, 20_000])
def test_full_disk_leaves_the_old_file(after, monkeypatch):
    checkpoints.save({"old": 1}, "last.ckpt")
    before = Path("last.ckpt").read_bytes()
    open_file = Path.open

    class Full:
        def __init__(self, file):
            self.file, self.size = file, 0
            self.flush, self.fileno = file.flush, file.fileno

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, block):
            self.size += len(block)
            if self.size > after:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(block)

    def opened(path, mode="r", *args, **kwargs):
        file = open_file(path, mode, *args, **kwargs)
        return Full(file) if "x" in mode else file

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(NoSpaceError, match=r"last.ckpt: can't be written.*full.*bytes are free"):
        checkpoints.save(STATE, "last.ckpt")
    assert Path("last.ckpt").read_bytes() == before
    assert [path.name for path in Path().iterdir()] == ["last.ckpt"]


def test_file_is_on_disk_before_it_has_its_name(monkeypatch):
    order = []
    monkeypatch.setattr(os, "fsync", lambda _: order.append("sync"))
    replace = Path.replace
    monkeypatch.setattr(
        Path, "replace", lambda a, b: (order.append(f"{a.parent == b.parent}"), replace(a, b))[1]
    )
    checkpoints.save(STATE, "last.ckpt")
    assert order == ["sync", "True", "sync"]  # file, rename within its folder, folder


def test_partial_files_are_removed_and_no_others():
    Path("run").mkdir()
    partial = Path("run/.last.ckpt.0123456789ab.partial")
    others = [Path("run") / name for name in (".config.yaml.partial", "x.partial", "last.ckpt")]
    for path in (partial, *others):
        path.touch()
    assert checkpoints.remove_partial_files(Path("run")) == [partial]
    assert all(path.exists() for path in others)


class Code:
    def __reduce__(self):
        return (open, ("ran", "w"))


def test_hostile_checkpoint_is_refused_not_called_damaged(trained, capsys):
    reader = checkpoints.SafeCheckpointIO()
    torch.save({"state_dict": Code()}, trained / "last.ckpt")
    with pytest.raises(CheckpointError, match="is refused"):
        reader.load_checkpoint(trained / "last.ckpt", weights_only=False)
    with pytest.raises(CheckpointError, match="expected a local file"):
        reader.load_checkpoint("http://localhost/x.ckpt", weights_only=False)
    error = refused(["fit", *UNTRACKED, "--resume=auto"], capsys)
    assert "last.ckpt: is refused" in error
    assert "damaged" not in error
    assert not Path("ran").exists()


def test_disk_space_is_checked_before_it_is_needed(monkeypatch, capsys):
    model = torch.nn.Linear(1000, 1000, bias=False)
    adam, sgd = torch.optim.AdamW(model.parameters()), torch.optim.SGD(model.parameters(), lr=1)
    assert checkpoints.estimate_size(model, [adam]) == 3 * 4_000_000
    assert checkpoints.estimate_size(model, [sgd]) == 4_000_000
    usage = shutil.disk_usage(".")._replace(free=6_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SystemExit):
        cli.main(["fit", *UNTRACKED])
    assert "has 6,000,000 bytes free; 3 files of about " in capsys.readouterr().err
    assert not RUN.exists()  # no trace of a run that was refused


# -- names


@pytest.mark.parametrize("name", [".", "a/../b", "/x", "x" * 300, "sweeps", ".tracking", ""])
def test_name_of_no_folder_is_refused_in_one_line(name, capsys):
    error = refused(["fit", *UNTRACKED, f"--name={name}"], capsys)
    assert error.startswith("error: name: got ")


def test_line_break_in_a_name_is_refused():
    with pytest.raises(ConfigError, match="printable characters"):
        run_dir.check_name("a\nb")


# -- going on


@pytest.fixture(scope="module")
def run_of_one_epoch(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    cli.run(["fit", *UNTRACKED, f"--trainer.default_root_dir={root}", "--name=digits-spanetv2"])
    return root / "digits-spanetv2"


@pytest.fixture
def trained(run_of_one_epoch) -> Path:
    """The folder of a run of one epoch, as this test's own."""
    shutil.copytree(run_of_one_epoch, RUN)
    for name in ("config.yaml",):
        text = (RUN / name).read_text()
        (RUN / name).write_text(text.replace(str(run_of_one_epoch.parent), "runs"))
    return RUN


def test_resume_goes_on_by_name(trained, caplog):
    args = ["fit", *UNTRACKED, "--trainer.max_epochs=2"]
    trainer = cli.run([*args, "--resume=must"]).trainer
    assert (trainer.current_epoch, trainer.global_step) == (2, 4)
    assert [path.name for path in Path("runs").iterdir()] == [RUN.name]
    assert f"resume: {RUN}/last.ckpt, epoch 1, step 2" in caplog.text
    # The folder is a copy: the best score came with it, and the best file is still the best.
    assert len(trainer.checkpoint_callback.best_k_models) == 1
    assert Path(trainer.checkpoint_callback.best_model_path) == (RUN / "best.ckpt").absolute()
    assert "trainer.max_epochs: 1 → 2" in caplog.text
    # What it was asked is no part of what the next one compares.
    assert resume.choose("auto", RUN).checkpoint == f"{RUN}/last.ckpt"


def test_resume_where_nothing_is(capsys, caplog):
    error = refused(["fit", *UNTRACKED, "--resume=must"], capsys)
    assert f"resume: got 'must', but {RUN} has no checkpoint" in error
    trainer = cli.run(["fit", *UNTRACKED, "--resume=auto"]).trainer
    assert trainer.global_step == 2
    assert f"{RUN} has no checkpoint: starting fresh" in caplog.text
    assert (RUN / "last.ckpt").is_file()


def test_run_killed_before_its_first_checkpoint_keeps_its_folder(trained):
    for path in trained.glob("*.ckpt"):
        path.unlink()
    choice = resume.choose("auto", trained)
    assert (choice.checkpoint, choice.folder) == (None, trained)
    with pytest.raises(CheckpointError, match="has no checkpoint"):
        resume.choose("must", trained)
    assert resume.choose("never", trained) == resume.Resume()


def test_damaged_last_checkpoint_is_replaced_only_when_told(trained, capsys):
    last = trained / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])
    offered = f"best.ckpt of epoch 1 loads: --ckpt_path={RUN}/best.ckpt"
    error = refused(["fit", *UNTRACKED, "--resume=auto"], capsys)
    assert f"resume: {RUN}/last.ckpt: is damaged: it is cut off" in error
    assert offered in error
    assert offered in refused(["fit", *UNTRACKED, f"--ckpt_path={last}"], capsys)
    assert offered in refused(["test", *UNTRACKED, f"--ckpt_path={last}"], capsys)
    choice = resume.choose("auto", trained, fallback=True)
    assert choice.checkpoint == f"{RUN}/best.ckpt"
    assert "is damaged" in choice.says
    for name in ("best.ckpt", "last.ckpt"):
        (trained / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="no other checkpoint to resume from"):
        resume.choose("auto", trained, fallback=True)


def test_changed_configuration_is_refused_key_by_key(trained, capsys, caplog):
    changed = ["fit", *UNTRACKED, "--resume=must", "--model.optimizer.lr=0.5",
               "--data.batch_size=32", "--trainer.max_epochs=2"]  # fmt: skip
    error = refused(changed, capsys)
    assert "data.batch_size: 64 → 32; model.optimizer.lr: 0.002 → 0.5" in error
    assert "--allow_changes=true" in error
    assert "max_epochs" not in error  # more of the same is what resuming is for
    cli.run([*changed, "--allow_changes=true"])
    assert "resume, changed: model.optimizer.lr: 0.002 → 0.5" in caplog.text
    # From now on, that is the configuration of the run.
    assert yaml.safe_load((RUN / "config.resumed.yaml").read_text())["data"]["init_args"][
        "batch_size"
    ] == (32)
    with pytest.raises(ConfigError, match="batch_size: 32 → 64"):
        cli.run(["fit", *UNTRACKED, f"--ckpt_path={RUN}/last.ckpt"])


def test_going_on_under_another_name_leaves_the_source_alone(trained):
    before = {path.name: path.read_bytes() for path in trained.iterdir()}
    with pytest.warns(UserWarning, match="dirpath has changed"):
        cli.run(["fit", *UNTRACKED, "--trainer.max_epochs=2", "--name=other",
                 f"--ckpt_path={RUN}/last.ckpt"])  # fmt: skip
    assert {path.name: path.read_bytes() for path in trained.iterdir()} == before
    assert torch.load("runs/other/last.ckpt", weights_only=True)["global_step"] == 4


def test_resume_and_a_file_at_once_are_refused(trained, capsys):
    error = refused(["fit", *UNTRACKED, "--resume=auto", f"--ckpt_path={RUN}/best.ckpt"], capsys)
    assert "resume: got 'auto', expected 'never' beside ckpt_path" in error


def test_run_that_is_being_trained_is_not_resumed(trained, monkeypatch, capsys):
    monkeypatch.setattr("spanet_lightning.run_dir.PATIENCE", 0.0)
    held = run_dir.lock(trained)
    with pytest.raises(ConfigError, match="is in use: another process trains there"):
        cli.run(["fit", *UNTRACKED, "--resume=must", "--trainer.max_epochs=2"])
    held.release()


def test_second_of_two_that_begin_one_run_is_told(monkeypatch):
    """Both find no checkpoint; the first trains, and the second must not begin beside it."""
    args = ["fit", *UNTRACKED, "--resume=auto", "--trainer.max_epochs=1"]
    lock = run_dir.lock

    def after_the_first(folder, patience):
        monkeypatch.setattr(run_dir, "lock", lock)
        cli.run(args)
        return lock(folder, patience)

    monkeypatch.setattr(run_dir, "lock", after_the_first)
    with pytest.raises(ConfigError, match=r"another process has begun .* the same command again"):
        cli.run(args)
    assert [path.name for path in Path("runs").iterdir()] == [RUN.name]


def test_resume_command_is_the_run_again():
    with_all = ["fit", "--config", "a b.yaml", "--ckpt_path", "x", "--resume=auto", "--name=n",
                "--allow_changes=true", "--data.batch_size=8"]  # fmt: skip
    said = resume.command(with_all, "n-2")
    assert said.endswith("fit --config 'a b.yaml' --data.batch_size=8 --name=n-2 --resume=must")


def test_keys_that_are_not_compared_exist():
    experiment = cli.run(["fit", *UNTRACKED, "--trainer.fast_dev_run=true"])
    keys = set(experiment.flat_config())
    prefixes = {key[: i + 1] for key in keys for i in range(len(key))}
    # A name that the trainer no longer has would be compared in vain, or never.
    own = {name for name in resume._ASIDE if not name.startswith("data.")}
    assert own <= prefixes


# -- what is saved, and when

PLATEAU = ("fit", *UNTRACKED, "--checkpoint.monitor=val/loss", "--checkpoint.mode=max")


def _steps() -> dict[str, int]:
    """Return the step of each checkpoint of the run."""
    return {
        path.stem: torch.load(path, weights_only=True)["global_step"] for path in RUN.glob("*.ckpt")
    }


@pytest.mark.parametrize("more", [(), ("--trainer.check_val_every_n_epoch=2",)])
def test_last_checkpoint_is_of_the_last_epoch(more):
    cli.run([*PLATEAU, "--trainer.max_epochs=3", *more])  # a loss that only gets better is no best
    assert _steps()["last"] == 6
    trainer = cli.run([*PLATEAU, "--trainer.max_epochs=4", "--resume=must", *more]).trainer
    assert trainer.global_step == _steps()["last"] == 8


def test_checkpoints_within_an_epoch_and_the_weights_that_were_measured(monkeypatch):
    """`last` is written every three steps and at the end, `best` right after its validation."""
    saved = []

    def save(trainer, path, *args, **kwargs):
        saved.append((Path(path).stem, trainer.global_step))

    monkeypatch.setattr(Trainer, "save_checkpoint", save)
    cli.run([*PLATEAU, "--trainer.max_epochs=2", "--trainer.limit_train_batches=4",
             "--checkpoint.every_n_train_steps=3"])  # fmt: skip
    assert saved == [("last", 3), ("best", 4), ("last", 4), ("last", 6), ("last", 8)]


def test_slash_in_a_file_name_makes_no_folder():
    name = "--checkpoint.filename={epoch}-{val/loss:.0f}"
    cli.run([*PLATEAU, name, "--checkpoint.auto_insert_metric_name=true"])
    names = {path.name for path in RUN.iterdir()} - {"config.yaml", ".lock"}
    assert names == {"last.ckpt", "epoch=0-val-loss=2.ckpt"}


# -- losses and weights that are no numbers


@pytest.mark.parametrize("what", ["loss", "weight"])
def test_run_ends_at_what_is_no_number(what, monkeypatch, capsys):
    from spanet_lightning import ClassificationTask

    step = ClassificationTask.training_step

    def spoilt(task, batch, index):
        found = step(task, batch, index)
        if task.global_step == 3 and what == "loss":
            return found * float("nan")
        if task.global_step == 3:
            next(task.parameters()).data.fill_(float("inf"))
        return found

    monkeypatch.setattr(ClassificationTask, "training_step", spoilt)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["fit", *UNTRACKED, "--trainer.max_epochs=3"])
    error = capsys.readouterr().err.splitlines()[-1]
    assert exit_info.value.code == 2
    assert error.startswith("error: the loss was nan at step 4, epoch 2") or (
        what == "weight" and "error: weights were not finite after step 4, epoch 2" in error
    )
    assert "the last finite checkpoint is" in error
    assert f"{RUN}/last.ckpt" in error
    # What was saved before is as it was; the stock callback saves NaN as best and last.
    for name in ("last.ckpt", "best.ckpt"):
        state = torch.load(RUN / name, weights_only=True)
        assert state["global_step"] == 2
        assert all(t.isfinite().all() for t in state["state_dict"].values())


def test_weight_that_is_no_number_is_not_saved_amid_an_epoch(monkeypatch, capsys):
    from spanet_lightning import ClassificationTask

    update = ClassificationTask.optimizer_step

    def spoilt(task, epoch, index, *args):  # the loss of that step was still a number
        update(task, epoch, index, *args)
        if index == 1:
            next(task.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(ClassificationTask, "optimizer_step", spoilt)
    each = ["--checkpoint.monitor=step", "--checkpoint.every_n_train_steps=1"]
    with pytest.raises(SystemExit):
        cli.main(["fit", *UNTRACKED, "--trainer.limit_train_batches=4", *each])
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: weights were not finite after step 2, epoch 1")
    for name in ("last.ckpt", "best.ckpt"):
        state = torch.load(RUN / name, weights_only=True)
        assert state["global_step"] == 1
        assert all(t.isfinite().all() for t in state["state_dict"].values())


def test_tracker_is_told_of_a_loss_that_is_no_number():
    from spanet_lightning import tracking
    from spanet_lightning.errors import NotFiniteError
    from tests.helpers import SHORT

    with pytest.raises(NotFiniteError, match="the loss was nan"):
        cli.run(["fit", *SHORT, "--model.optimizer.lr=1e38", "--trainer.limit_train_batches=6"])
    client = tracking.connect(f"sqlite:///{Path('mlflow.db').absolute()}")
    (run,) = client.search_runs([client.get_experiment_by_name("spanet").experiment_id])
    assert run.info.status == "FAILED"
    assert "the loss was nan" in run.data.tags["failure"]


# -- faults from outside


FLAT = {
    "data.batch_size": 256,
    "data.image_size": 224,
    "data.num_workers": 8,
    "trainer.precision": "16-mixed",
    "model.optimizer.lr": 0.1,
}


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            NoMemoryError,
            ("cuda:0", "2.00 GiB", "data.batch_size=256", "data.image_size=224",
             "trainer.accumulate_grad_batches", "trainer.precision=16-mixed"),
        ),
        (
            RuntimeError("DataLoader worker (pid 77) is killed by signal: Killed. "),
            NoMemoryError,
            ("pid 77", "ran out of memory", "data.num_workers=8"),
        ),
        (
            RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
            NoMemoryError,
            ("7, 8", "data.num_workers=8"),
        ),
        (
            RuntimeError(
                "DataLoader worker (pid 9) is killed by signal: Bus error. It is possible that "
                "dataloader's workers are out of shared memory."
            ),
            NoMemoryError,
            ("shared memory", "df -h", "data.num_workers=8"),
        ),
        (OSError(errno.ENOSPC, "No space left", "runs/x/f"), NoSpaceError, ("runs/x/f", "full")),
        (OSError(errno.EROFS, "Read-only", "runs/x"), NoSpaceError, ("runs/x", "read-only")),
        (MemoryError(), NoMemoryError, ("the machine", "data.batch_size=256")),
    ],
)  # fmt: skip
def test_fault_is_one_line_that_names_what_to_change(error, kind, words):
    found = faults.explain(error, FLAT, "cuda:0")
    assert type(found) is kind
    assert "\n" not in str(found)
    assert all(word in str(found) for word in words), found
    assert faults.explain(RuntimeError("a bug"), FLAT) is None


def test_device_out_of_memory_ends_with_one_line(monkeypatch, capsys):
    def step(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("spanet_lightning.ClassificationTask.training_step", step)
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["fit", *UNTRACKED])
    error = capsys.readouterr().err.splitlines()[-1]
    assert exit_info.value.code == 2
    assert error.startswith("error: out of memory on cpu (another 2.00 GiB were asked for) with ")
    assert "data.batch_size=64" in error
