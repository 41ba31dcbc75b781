"""The parts of the engine: storage, space, samplers, records, folders, commands, one real trial."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
import torch
from optuna.storages._rdb import models

from spanet_lightning import app, tracking
from spanet_lightning.errors import ConfigError, NotFiniteError
from spanet_lightning.sweep import failures, folders, space, storage, supervisor
from spanet_lightning.sweep.child import Link, Spec
from spanet_lightning.sweep.records import Progress, TrialRecord, read_events, value
from spanet_lightning.sweep.statistics import cannot_win
from spanet_lightning.sweep.store import StudyStore
from spanet_lightning.sweep.study import Objective
from tests.helpers import CONFIGS, SHORT, UNTRACKED, refused
from tests.sweeps import STUDY, TOP1, URL, ablation, complete, run, search, started, store, trials

SPACE = {
    "kernels": {"key": "model.backbone.kernel_sizes", "choices": {"3": [3], "3+5": [3, 5]}},
    "mixer": {"key": "model.mixer", "choices": ["spam", "attention"]},
    "heads": {"key": "model.heads", "int": [1, 4], "when": {"mixer": "spam"}},
    "balance": {"key": "model.balance", "float": [0.1, 0.3], "step": 0.1},
}
OBJECTIVE = Objective(metric="val/top1", direction="maximize")


# -- storage


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sweeps.db", "expected sqlite:///sweeps.db or postgresql://"),
        ("sqlite://", "is no file"),
        ("sqlite:///no/such/folder/sweeps.db", "there is no folder no/such/folder"),
        ("mysql://me:s3cret@host/base", "expected sqlite:///sweeps.db or postgresql://"),
        ("postgresql://me:s3cret@127.0.0.1:1/base", "can't be used"),
        ("postgresql://me@127.0.0.1:1/base?password=s3cret", "can't be used"),
        ("sqlite:///sweeps.db", "does not exist"),
        ("sqlite:///text.db", "is damaged"),
    ],
)
def test_bad_storage(url: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("text.db").write_text("a text, no database")
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    error = refused(["sweep", "status", "x", "--storage", url], capsys, app.main)
    assert expected in error
    assert "s3cret" not in error
    assert "--storage" in error


def test_no_driver(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(storage.importlib.util, "find_spec", lambda name: None)
    args = ["sweep", "status", "x", "--storage", "postgresql://me:s3cret@host/base"]
    assert "pip install 'spanet-lightning[postgresql]'" in refused(args, capsys, app.main)


def test_trackers_database_is_refused() -> None:
    """By its address, however it is spelled, and by its tables; and nothing is written into it."""
    with pytest.raises(ConfigError, match="MLflow"):
        storage.refuse_tracker(URL, f"sqlite:///{Path('sweeps.db').absolute()}")
    storage.refuse_tracker(URL, "sqlite:///mlflow.db")
    with sqlite3.connect("mlflow.db") as base:
        for table in ("experiments", "runs", "latest_metrics", "alembic_version"):
            base.execute(f"CREATE TABLE {table} (id INTEGER)")
    before = Path("mlflow.db").read_bytes()
    with pytest.raises(ConfigError, match="MLflow's database"):
        storage.open_storage("sqlite:///mlflow.db")
    assert Path("mlflow.db").read_bytes() == before


def test_storage_that_another_command_is_creating_is_waited_for() -> None:
    """Its tables are there, but not yet the version that comes last."""
    engine = sa.create_engine(f"sqlite:///{Path('half.db').absolute()}")
    models.BaseModel.metadata.create_all(engine)
    opened = storage.open_storage("sqlite:///half.db")
    assert storage.names(opened) == []
    engine.dispose()


# -- the study in its storage


def test_other_definition_is_refused() -> None:
    """The difference is shown; what changes no trial may change."""
    study = ablation({"a": {}, "b": {"top1": 0.5}})
    StudyStore(URL, study).create({"trainer.max_epochs": 3})
    with pytest.raises(ConfigError) as error:
        StudyStore(URL, ablation({"a": {}, "b": {"top1": 0.75}})).create()
    assert "fake.top1 was 0.5, is 0.75" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs was 3, is 4"):
        StudyStore(URL, study).create({"trainer.max_epochs": 4})
    noted = study.model_copy(update={"note": "see Table 5"})
    found = StudyStore(URL, noted).create({"trainer.max_epochs": 3}).study
    assert storage.definition_of(found).note == "see Table 5"
    assert len(found.get_trials()) == 2


def test_study_of_the_first_version_is_refused_with_what_to_do() -> None:
    study = ablation({"a": {}, "b": {"top1": 0.5}})
    StudyStore(URL, study).create().study.set_user_attr("format", 1)
    with pytest.raises(ConfigError, match=r"begun by version 1.*spanet report fake.*another name"):
        run(study)


def test_study_without_attributes_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    StudyStore(URL, ablation({"a": {}, "b": {}})).create()
    with sqlite3.connect("sweeps.db") as base:
        base.execute("DELETE FROM study_user_attributes")
    for action in ("status", "show", "retry --failed"):
        words = ["sweep", *action.split()[:1], "fake", *action.split()[1:]]
        assert "has no definition" in refused(words, capsys, app.main)


def test_status_show_list_and_retry(capsys: pytest.CaptureFixture[str]) -> None:
    study = ablation({"a [x]": {}, "b": {"mode": "raise"}}, epochs=2)
    run(study)
    app.main(["sweep", "status", "fake", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"complete": 1, "failed": 1}
    assert found["declared"] == 2
    assert found["trials"][0]["metric"] == pytest.approx(0.502)
    for words in (["show", "fake"], ["status", "fake"]):
        app.main(["sweep", *words])
        table = capsys.readouterr().out
        assert "a [x]" in table
        assert "a made-up error" in table
    for trial in (["1"], ["b", "0"]):
        app.main(["sweep", "show", "fake", *trial])
        command = "lightning fit --config=none.yaml --fake.epochs=2 --fake.mode=raise"
        assert command in capsys.readouterr().out
    assert "from 0 to 1" in refused(["sweep", "show", "fake", "7"], capsys, app.main)
    assert "did you mean 'a [x]'" in refused(
        ["sweep", "show", "fake", "a [y]", "0"], capsys, app.main
    )
    assert "one of the seeds 0" in refused(["sweep", "show", "fake", "b", "3"], capsys, app.main)
    assert "--failed" in refused(["sweep", "retry", "fake"], capsys, app.main)
    assert "did you mean 'fake'" in refused(["sweep", "status", "fakes"], capsys, app.main)
    app.main(["sweep", "list"])
    listed = capsys.readouterr().out
    assert "fake" in listed
    assert "1 complete, 1 failed" in listed


def test_objective_that_no_run_logs() -> None:
    """It is noticed at the first validation of the first trial, and is the study's mistake."""
    wrong = Objective(metric="val/topl", direction="maximize")
    study = ablation({"a": {}, "b": {}}, epochs=50)
    with pytest.raises(ConfigError, match=r"'val/topl', which no run logs.*mean 'val/top1'"):
        run(study.model_copy(update={"objectives": (wrong,)}))
    assert len(started()) == 1


def test_deleted_and_chosen_trials_are_run_again() -> None:
    """From scratch, exactly those; the results that they had count no more."""
    study = ablation({"a": {}, "b": {}}, (0, 1), epochs=2)
    run(study)
    opened = store(study)
    folder = Path(opened.trials()[2].user_attrs["folder"])
    folder.rename("elsewhere")
    assert opened.retry(deleted=True) == [2]
    assert opened.retry([1]) == [1]
    with pytest.raises(ConfigError, match="TRIAL: got 9"):
        opened.retry([9])
    outcome = run(study)
    assert outcome.counts == {"complete": 4, "retried": 2}
    assert [first for _, first, _ in started()] == ["1"] * 6
    assert run(study).counts == outcome.counts


def test_seeds_are_added() -> None:
    """The file of the study still runs it, with the seeds that it lists or with all."""
    study = ablation({"a": {}, "b": {}})
    run(study)
    assert store(study).extend(2) == (1, 2)
    assert run(study).counts == {"complete": 6}
    assert complete(study) == [(arm, seed) for arm in "ab" for seed in (0, 1, 2)]
    run(ablation({"a": {}, "b": {}}, (0, 1, 2)))
    with pytest.raises(ConfigError, match=r"ablation\.seeds"):
        run(ablation({"a": {}, "b": {}}, (0, 5)))


def test_losers_get_no_more_seeds() -> None:
    arms = {"control": {}, "worse": {"top1": 0.2}, "better": {"top1": 0.7}}
    study = ablation(arms, tuple(range(5)), stop_losers=True)
    outcome = run(study)
    assert outcome.counts == {"complete": 13, "dropped": 2}
    assert store(study).study.user_attrs["dropped"] == {"worse": 3}
    assert run(study).counts == outcome.counts


def test_rule_for_losers() -> None:
    assert not cannot_win([-1.0, -1.0])  # too few
    assert cannot_win([-1.0, -1.1, -0.9])
    assert not cannot_win([-1.0, 1.0, -0.5])
    assert not cannot_win([-0.1, -0.11, -0.09], margin=0.5)  # may be equivalent


# -- space and samplers


def test_grid_has_each_point_once() -> None:
    study = search({"top1": {"key": "fake.top1", "float": [0.1, 0.3], "step": 0.1}}, sampler="grid")
    run(study, workers=2)
    assert sorted(trial.params["top1"] for trial in trials(study)) == [0.1, 0.2, 0.3]
    assert run(study).counts == {"complete": 3}


def test_equal_points_are_trained_once() -> None:
    """Of a space with two points, two are trained, though four were asked for."""
    space_ = {"top1": {"key": "fake.top1", "choices": [0.1, 0.2]}}
    study = search(space_, sampler="random", trials=4)
    assert study.declared == 2
    counts = run(study, workers=2).counts
    assert counts["complete"] == 2
    assert len(started()) == 2


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsga2"])
def test_samplers_stay_within_the_space(sampler: str) -> None:
    study = search(SPACE, sampler=sampler, trials=6)
    points = []
    for number in range(6):
        opened = optuna.create_study(sampler=space.make_sampler(study, number))
        params = space.suggest(opened.ask(), study)
        assert ("heads" in params) == (params["mixer"] == "spam")
        points.append(json.dumps(params, sort_keys=True))
    assert points[:6] == points  # of one trial, each supervisor samples the same
    chosen = {"kernels": "3+5", "mixer": "attention", "balance": 0.2}
    expected = {"model.backbone.kernel_sizes": [3, 5], "model.mixer": "attention"}
    assert space.overrides(study, chosen) == {**expected, "model.balance": 0.2}


def test_seed_of_a_trial_derives_from_its_number() -> None:
    """Supervisors with one seed would sample one point; of one trial, each samples the same."""
    study = search({"x": {"key": "fake.x", "float": [0, 1]}}, trials=4, sampler="random")
    sampled = [
        optuna.create_study(sampler=space.make_sampler(study, n)).ask().suggest_float("x", 0, 1)
        for n in (0, 1, 0)
    ]
    assert sampled[0] == sampled[2] != sampled[1]


def test_several_objectives() -> None:
    """Costs are objectives like metrics; curves are stored although Optuna has none of several."""
    objectives = [
        TOP1,
        {"metric": "cost/macs", "direction": "minimize"},
        {"metric": "val/loss", "direction": "minimize"},
    ]
    space_ = {"top1": {"key": "fake.top1", "float": [0.1, 0.3]}}
    study = search(space_, objectives, sampler="nsga2", trials=3)
    run(study)
    for trial in trials(study):
        assert trial.values[1] == 100
        assert trial.values[2] == pytest.approx(1 - trial.values[0])
        assert len(trial.intermediate_values) == 3


# -- records, failures, folders, devices


def test_progress_of_two_attempts() -> None:
    """The second attempt continues the first one's curve; an epoch that is repeated counts once."""
    path = Path("events.jsonl")
    link, progress = Link(path, None), Progress()
    for epoch, top1 in ((1, 0.3), (2, 0.9)):
        link.send("epoch", epoch=epoch, seconds=1.0, metrics={"val/top1": top1})
    link.send("failed", failure="error", reason="x")
    with path.open("a") as file:
        file.write('{"event": "epo')  # torn by a kill
    link.send("process")
    for epoch, top1 in ((2, 0.5), (3, 0.5), (4, float("nan"))):
        link.send("epoch", epoch=epoch, seconds=1.0, metrics={"val/top1": top1})
    for event in read_events(path):
        progress.add(event)
    assert progress.failure is None
    assert progress.curve("val/top1") == {1: 0.3, 2: 0.5, 3: 0.5}
    record = progress.fill(TrialRecord(), (OBJECTIVE,))
    assert (record.best_epoch, record.train_seconds) == (2, 4.0)
    assert value(record, OBJECTIVE) == 0.5
    assert value(record, OBJECTIVE.model_copy(update={"at": "last"})) is None  # not a number
    assert value(record, Objective(metric="cost/train_seconds", direction="minimize")) == 4.0
    assert value(record, Objective(metric="cost/macs", direction="minimize")) is None


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out-of-memory"),
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "out-of-memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you"), "out-of-memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."), "out-of-memory"),
        (NotFiniteError("the loss was nan"), "nan"),
        (RuntimeError("a\nb"), "error"),
        (ConfigError("x: got 1, expected 2"), "error"),
    ],
)
def test_failures(error: BaseException, kind: str) -> None:
    found, reason = failures.of_error(error)
    assert found == kind
    assert reason
    assert "\n" not in reason
    assert failures.of_exit(-6, "terminate called: std::bad_alloc")[0] == "out-of-memory"


def test_folder_of_another_study_is_never_used() -> None:
    """A study of the same name in another storage has a folder of its own, and its checkpoints."""
    first = folders.study_folder("x", "one")
    assert first == Path("runs/sweeps/x")
    assert folders.study_folder("x", "two") == Path("runs/sweeps/x-2")
    assert folders.study_folder("x", "one") == first
    study = ablation({"A+": {}, "a": {}, "ü": {}})
    names = {folders.cell_name(study, {"arm": a, "seed": 1}, 0) for a in ("A+", "a", "ü")}
    assert len(names) == 3


def test_devices_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def visible(**settings: int) -> list[str]:
        found = supervisor.shares(supervisor.Settings(**settings))
        return [one.get("CUDA_VISIBLE_DEVICES", "") for one in found]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    assert visible(workers=2) == ["4,5", "6,7"]
    assert visible(workers=5) == ["4", "5", "6", "7", "4"]
    assert visible(workers_per_device=2) == ["4", "5", "6", "7"] * 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible(workers=2) == visible(workers_per_device=2) == ["", ""]
    one = supervisor.on_one_device
    assert one({"trainer.devices": "auto", "trainer.strategy": "auto"}, 1)
    assert not one({"trainer.devices": "auto", "trainer.strategy": "auto"}, 2)
    assert not one({"trainer.devices": 2, "trainer.strategy": "auto"}, 2)
    assert not one({"trainer.devices": 1, "trainer.num_nodes": 2}, 1)
    assert not one({"trainer.devices": 1, "trainer.strategy": "fsdp"}, 1)


# -- commands


def test_commands_import_optuna_only_when_called() -> None:
    code = "import sys, spanet_lightning.app, spanet_lightning.cli.sweep as s, argparse; "
    code += "s.add_arguments(argparse.ArgumentParser()); "
    code += "print([n for n in ('optuna', 'mlflow', 'lightning') if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    app.main(["bench", "sweep", "--rounds", "1", "--trials", "2", "--json", "bench.json"])
    assert "to its first step" in capsys.readouterr().out
    rows = {row["subject"]: row for row in json.loads(Path("bench.json").read_text())["results"]}
    first = rows["trial to its first step"]["seconds"][0]
    assert 0 < first < rows["server and first trial"]["seconds"][0]
    assert rows["book-keeping"]["trials_per_minute"] > 0


def test_plan_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("study.yaml")
    file.write_text(STUDY.format(config=CONFIGS / "digits" / "spanetv2.yaml"))
    app.main(["sweep", "plan", "study.yaml", "--untimed"])
    assert "nothing was written" in capsys.readouterr().out
    assert list(Path().iterdir()) == [file]


# -- the real experiment


def _spec(*command: str, test: str | None = None) -> Spec:
    where = {"run": "r/cell", "files": "f"}
    Path("f").mkdir(exist_ok=True)
    words = ("fit", *command, "--name=cell", "--trainer.default_root_dir=r")
    return Spec("", words, **where, objectives=(TOP1,), test=test, tags={"arm": "a"})


def test_trial_reports_and_is_tested_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real experiment, in this process: events, the best weights tested once, tags."""
    from spanet_lightning.sweep import trial

    words = [word for word in SHORT if not word.startswith("--trainer.max_epochs")]
    spec = _spec(*words, "--trainer.max_epochs=2", test="test/top1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(2)  # as the server did that the trial was forked from
    trial.run(spec, Link(spec.folder.events, None))
    assert torch.get_num_threads() == 1
    events = list(read_events(spec.folder.events))
    (ran,) = (e for e in events if e["event"] == "run")  # once MLflow has an id
    events.remove(ran)
    assert [e["event"] for e in events] == ["model", "step", "epoch", "epoch", "test", "end"]
    model = events[0]
    assert model["parameters"] > 0
    assert model["epochs"] == 2
    assert model["data"].startswith("digits-0-")
    assert len(model["config_hash"]) == 64
    assert set(events[2]["metrics"]) >= {"val/top1", "val/loss", "train/loss"}
    assert "test/top1" in events[4]["metrics"]
    # By its full path: MLflow caches a store by its address, another test's `mlflow.db` too.
    found = tracking.connect("sqlite:///mlflow.db").get_run(ran["run_id"])
    assert found.data.tags["arm"] == "a"
    assert found.data.metrics["best/val/top1"] == max(e["metrics"]["val/top1"] for e in events[2:4])
    # Pruned: it ends at the next batch, and is not tested.
    again = replace(spec, files="p", command=(*spec.command, "--trainer.logger=false"))
    Path("p").mkdir()
    link = Link(again.folder.events, None)
    link.prune.set()
    trial.run(again, link)
    assert [e["event"] for e in read_events(link.events)] == ["model", "step", "pruned"]


def test_trial_ends_at_a_loss_that_is_not_finite() -> None:
    from spanet_lightning.sweep import trial

    words = (*UNTRACKED, "--model.optimizer.lr=1e38", "--trainer.limit_train_batches=6")
    spec = _spec(*words)
    with pytest.raises(NotFiniteError, match=r"the loss was nan|weights were not finite"):
        trial.run(spec, Link(spec.folder.events, None))


@pytest.mark.parametrize("given", [None, "3"])
def test_trials_share_the_cores(given: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trials with a thread for each core took ten times as long, on two cores."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    run(ablation({"a": {}, "b": {}}), workers=2)
    environments = [json.loads(f.read_text())["environment"] for f in Path().rglob("spec.json")]
    expected = given or str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == [expected] * 2
