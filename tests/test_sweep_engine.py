"""The parts of the engine, each alone: storage, space, samplers, events, failures, folders."""

from __future__ import annotations

import json
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
import torch
from optuna.storages._rdb import models
from optuna.trial import TrialState

from spanet_lightning import app, tracking
from spanet_lightning.errors import ConfigError, NotFiniteError
from spanet_lightning.sweep import failures, folders, run, samplers, space, status, storage
from spanet_lightning.sweep.definition import Choice, Condition, Objective, Range, Search
from spanet_lightning.sweep.events import EventReader, EventWriter, Progress, value
from spanet_lightning.sweep.ledger import Budget, Claim, Idle, Ledger, LostError
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.storage import Pulse
from tests.helpers import CONFIGS, refused
from tests.sweeps import STUDY, URL, ablation, search, started, trials, wait
from tests.sweeps import run as run_study

SPACE = (
    Choice("kernels", "model.backbone.kernel_sizes", {"3": [3], "3+5": [3, 5]}),
    Choice("mixer", "model.mixer", {"spam": "spam", "attention": "attention"}),
    Range("heads", "model.heads", "int", 1, 4, when=Condition("mixer", ("spam",))),
    Range("balance", "model.balance", "float", 0.1, 0.3, step=0.1),
)


# -- storage


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sweeps.db", "expected sqlite:///sweeps.db or postgresql://"),
        ("sqlite://", "is no file"),
        ("sqlite:///no/such/folder/sweeps.db", "there is no folder no/such/folder"),
        ("mysql://me:s3cret@host/base", "expected sqlite:///sweeps.db or postgresql://"),
        ("postgresql://me:s3cret@127.0.0.1:1/base", "can't be opened"),
        ("postgresql://me@127.0.0.1:1/base?password=s3cret", "can't be opened"),
        ("sqlite:///sweeps.db", "does not exist"),
    ],
)
def test_bad_storage(url: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    error = refused(["sweep", "status", "x", "--storage", url], capsys, app.main)
    assert said in error
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


def test_missing_study_names_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    Ledger(URL, ablation({"a": {}})).create()
    error = refused(["sweep", "status", "fakes"], capsys, app.main)
    assert "'fake'; did you mean 'fake'?" in error


# -- the study in its storage


def test_other_definition_is_refused() -> None:
    """The difference is shown; what changes no trial may change."""
    study = ablation({"a": {}, "b": {"top1": 0.5}})
    Ledger(URL, study).create({"trainer.max_epochs": 3})
    other = ablation({"a": {}, "b": {"top1": 0.75}})
    with pytest.raises(ConfigError) as error:
        Ledger(URL, other).create()
    assert "fake.top1 was 0.5, is 0.75" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs was 3, is 4"):
        Ledger(URL, study).create({"trainer.max_epochs": 4})
    found = Ledger(URL, replace(study, note="see Table 5")).create({"trainer.max_epochs": 3})
    assert storage.definition_of(found).note == "see Table 5"
    assert len(found.get_trials()) == 2


def test_endless_search_is_refused() -> None:
    study = search((Range("x", "fake.x", "float", 0, 1),))
    with pytest.raises(ConfigError, match=r"search\.trials"):
        run.budget(study, run.Settings())
    assert run.budget(study, run.Settings(hours=2)) == Budget(None, 2)


def test_lost_trial_is_not_told() -> None:
    """A worker that was given up can't overwrite what its successor does."""
    study = ablation({"a": {}})
    one = _ledger(study)
    claim = one.claim("here:1", Budget())
    assert isinstance(claim, Claim)
    other = _ledger(study)
    assert other.claim("here:2", Budget()) is Idle.WAIT  # it lives: it holds the folder
    claim.file.release()
    again = other.claim("here:2", Budget())
    assert isinstance(again, Claim)
    assert (again.record.attempt, again.record.retry_of) == (2, 0)
    with pytest.raises(LostError):
        one.finish(claim, claim.record, TrialState.COMPLETE, [0.5])
    with pytest.raises(LostError):
        one.report(claim, 1, 0.5)
    done = replace(again.record, failure=None, reason="")
    other.finish(again, done, TrialState.COMPLETE, [0.5])
    other.finish(again, done, TrialState.COMPLETE, [0.5])  # the first answer may have been lost
    again.file.release()
    assert other.claim("here:3", Budget()) is Idle.OVER


def test_worker_of_another_machine_is_given_up_after_its_grace() -> None:
    """Where no lock tells, Optuna's heartbeat does; and not before it had the time to."""
    study = ablation({"a": {}})
    claim = _ledger(study).claim("there:1", Budget())
    assert isinstance(claim, Claim)
    claim.folder.claim.unlink()  # as seen from a machine that does not share the disk
    other = Ledger(URL, study, Pulse(1, 2))
    other.create()
    assert other.claim("here:2", Budget()) is Idle.WAIT
    again = wait(lambda: _taken(other.claim("here:2", Budget())), 15)
    assert (again.record.attempt, again.record.retry_of) == (2, 0)
    book = other.attach()
    assert book.get_trials()[0].user_attrs["failure"] == "killed"
    assert book.user_attrs["ended:0"] == book.get_trials()[0].user_attrs["digest"]


def test_interrupted_claim_is_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that dies between Optuna's claim and ours leaves a trial that nobody runs."""
    study = ablation({"a": {}})
    dying = _ledger(study)
    with monkeypatch.context() as patch:
        patch.setattr(folders, "cell_name", _die)
        with pytest.raises(KeyboardInterrupt):
            dying.claim("here:1", Budget())
    assert dying.study.get_trials()[0].state == TrialState.RUNNING
    claim = _ledger(study).claim("here:2", Budget())
    assert isinstance(claim, Claim)
    assert claim.record.attempt == 1
    assert claim.params == {"arm": "a", "seed": 0}


def test_digests_match_what_is_stored() -> None:
    """Of each trial that ended, complete or not, the study keeps the fingerprint of its record."""
    study = ablation({"a": {}, "b": {"mode": "raise"}})
    run_study(study)
    found = Ledger(URL, study).attach()
    for trial in found.get_trials():
        record = TrialRecord.from_attrs(trial.user_attrs)
        values = None if trial.values is None else tuple(trial.values)
        digest = record.digest(trial.number, trial.state.name, values)
        assert found.user_attrs[f"ended:{trial.number}"] == digest == trial.user_attrs["digest"]


def test_status_and_show(capsys: pytest.CaptureFixture[str]) -> None:
    study = ablation({"a [x]": {}, "b": {"mode": "raise"}}, epochs=2)
    run_study(study)
    app.main(["sweep", "status", "fake", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["counts"] == {"complete": 1, "failed": 1}
    assert found["declared"] == 2
    assert found["trials"][0]["metric"] == pytest.approx(0.502)
    app.main(["sweep", "status", "fake"])
    table = capsys.readouterr().out
    assert "a [x]" in table
    assert "as it was told" in table
    app.main(["sweep", "show", "fake", "1"])
    assert "lightning fit --config=none.yaml --fake.epochs=2 --fake.mode=raise" in (
        capsys.readouterr().out
    )
    assert "from 0 to 1" in refused(["sweep", "show", "fake", "7"], capsys, app.main)
    assert "--failed" in refused(["sweep", "retry", "fake"], capsys, app.main)


def test_objective_that_no_run_logs() -> None:
    """It is noticed at the first validation of the first trial, and is the study's mistake."""
    study = replace(ablation({"a": {}, "b": {}}, epochs=50), objectives=(Objective("val/topl"),))
    outcome = run_study(study)
    assert "'val/topl', which no run logs" in outcome.mistake
    assert "did you mean 'val/top1'?" in outcome.mistake
    assert len(started()) == 1


def test_time_left() -> None:
    assert status.clock(3723) == "1:02:03"
    assert status.clock(None) == ""


# -- space and samplers


def test_grid_has_each_point_once() -> None:
    """A parameter that does not exist multiplies nothing."""
    points = space.grid(Search(SPACE, sampler="grid"))
    assert len(points) == 2 * (4 + 1) * 3
    assert len({json.dumps(point, sort_keys=True) for point in points}) == len(points)
    assert all(("heads" in point) == (point["mixer"] == "spam") for point in points)
    assert {point["balance"] for point in points} == {0.1, 0.2, 0.3}
    study = search((Range("top1", "fake.top1", "float", 0.1, 0.3, step=0.1),), sampler="grid")
    run_study(study, workers=2)
    assert sorted(trial.params["top1"] for trial in trials(study)) == [0.1, 0.2, 0.3]
    assert run_study(study).counts == {"complete": 3}


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc", "nsga2"])
def test_samplers_draw_within_the_space(sampler: str) -> None:
    study = search(SPACE, sampler=sampler, trials=6)
    book = _ledger(study)
    drawn = []
    while isinstance(claim := book.claim("here:1", Budget(6)), Claim):
        drawn.append(json.dumps(claim.params, sort_keys=True))
        assert ("heads" in claim.params) == (claim.params["mixer"] == "spam")
        done = replace(claim.record, failure=None, reason="")
        book.finish(claim, done, TrialState.COMPLETE, [claim.params["balance"]])
        claim.file.release()
    assert len(drawn) == 6
    assert len(set(drawn)) > 3  # not one point again and again


def test_seed_of_a_trial_does_not_depend_on_its_worker() -> None:
    """Workers with one seed would draw one point; of one trial, each draws the same."""
    study = search((Range("x", "fake.x", "float", 0, 1),), trials=4, sampler="random")
    drawn = []
    for number in (0, 1, 0):
        sampler = samplers.make_sampler(study, number)
        one = optuna.create_study(sampler=sampler).ask()
        drawn.append(one.suggest_float("x", 0, 1))
    assert drawn[0] == drawn[2] != drawn[1]


def test_choices_become_their_values() -> None:
    study = search(SPACE)
    found = space.overrides(study, {"kernels": "3+5", "mixer": "attention", "balance": 0.2})
    assert found == {
        "model.backbone.kernel_sizes": [3, 5],
        "model.mixer": "attention",
        "model.balance": 0.2,
    }


def test_several_objectives() -> None:
    """Costs are objectives like metrics; curves are kept although Optuna has none of several."""
    study = search(
        (Range("top1", "fake.top1", "float", 0.1, 0.3),),
        (Objective("val/top1"), Objective("cost/macs", "min"), Objective("val/loss", "min")),
        sampler="nsga2",
        trials=3,
    )
    run_study(study)
    for trial in trials(study):
        assert trial.values[1] == 100
        assert trial.values[2] == pytest.approx(1 - trial.values[0])
        assert len(trial.intermediate_values) == 3


# -- events, failures, folders


def test_events_survive_a_torn_line() -> None:
    path = Path("events.jsonl")
    writer, reader = EventWriter(path), EventReader(path)
    assert list(reader.read()) == []
    writer.write("process")
    with path.open("a") as file:
        file.write('{"event": "epo')
    assert [event["event"] for event in reader.read()] == ["process"]
    writer.write("end")
    assert [event["event"] for event in reader.read()] == ["end"]


def test_progress_of_two_attempts() -> None:
    """The second attempt goes on with the curve of the first; an epoch done again counts once."""
    progress = Progress()
    for epoch, top1 in ((1, 0.3), (2, 0.9)):
        progress.add(_epoch(epoch, top1))
    progress.add({"event": "failed", "failure": "error", "reason": "x"})
    progress.add({"event": "process"})
    assert progress.failure is None
    for epoch, top1 in ((2, 0.5), (3, 0.5), (4, float("nan"))):
        progress.add(_epoch(epoch, top1))
    assert progress.curve("val/top1") == {1: 0.3, 2: 0.5, 3: 0.5}
    record = progress.fill(TrialRecord(), (Objective("val/top1"),))
    assert (record.best_epoch, record.train_seconds) == (2, 4.0)
    assert value(record, Objective("val/top1")) == 0.5
    assert value(record, Objective("val/top1", at="last")) is None  # not a number
    assert value(record, Objective("cost/train_seconds", "min")) == 4.0
    assert value(record, Objective("cost/macs", "min")) is None


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


def test_exits_without_a_word() -> None:
    assert failures.of_exit(-9, "")[0] == "killed"
    assert failures.of_exit(-9, "", out_of_memory=True)[0] == "out-of-memory"
    assert failures.of_exit(-6, "terminate called after: std::bad_alloc")[0] == "out-of-memory"
    assert failures.of_exit(3, "bye") == (
        "error",
        "ended with code 3 and no result; its last line: bye",
    )


def test_folder_of_another_study_is_never_used() -> None:
    """A study of the same name in another storage has a folder of its own, and its checkpoints."""
    first = folders.study_folder("x", "one")
    assert first == Path("runs/sweeps/x")
    assert folders.study_folder("x", "two") == Path("runs/sweeps/x-2")
    assert folders.study_folder("x", "one") == first
    study = ablation({"A+": {}, "a": {}, "ü": {}})
    names = {folders.cell_name(study, {"arm": a, "seed": 1}, 0) for a in ("A+", "a", "ü")}
    assert len(names) == 3


def test_claim_file() -> None:
    """Who holds it lives; who does not is dead; of another's, nothing is known."""
    path = Path("claim")
    claim = folders.ClaimFile(path, "token")
    assert folders.lives(path, "token") is None
    assert claim.take()
    assert folders.lives(path, "token") is True
    assert folders.lives(path, "other") is None
    assert not folders.ClaimFile(path, "token").take()
    claim.release()
    assert folders.lives(path, "token") is False


def test_shares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [dict(one)["CUDA_VISIBLE_DEVICES"] for one in run.shares(2)] == ["4,5", "6,7"]
    assert [dict(one)["CUDA_VISIBLE_DEVICES"] for one in run.shares(5)] == ["4", "5", "6", "7", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert all("CUDA_VISIBLE_DEVICES" not in dict(one) for one in run.shares(2))
    assert int(dict(run.shares(1)[0])["OMP_NUM_THREADS"]) >= 1


def test_commands_import_optuna_only_when_called() -> None:
    code = "import sys, spanet_lightning.app, spanet_lightning.cli.sweep as s, argparse; "
    code += "s.add_arguments(argparse.ArgumentParser()); "
    code += "print([n for n in ('optuna', 'mlflow', 'lightning') if n in sys.modules])"
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.slow
def test_bench(capsys: pytest.CaptureFixture[str]) -> None:
    """The parts of a start add up, and imports are most of it."""
    app.main(["bench", "sweep", "--rounds", "1", "--trials", "2", "--json", "bench.json"])
    assert "to the first step" in capsys.readouterr().out
    rows = {row["subject"]: row for row in json.loads(Path("bench.json").read_text())["results"]}
    total, imports, rest = (
        rows[name]["seconds"][0] for name in ("to the first step", "imports", "the rest")
    )
    assert total == pytest.approx(imports + rest)
    assert imports > rest > 0
    assert rows["book-keeping"]["trials_per_minute"] > 0


def test_plan_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    file = Path("study.yaml")
    file.write_text(STUDY.format(config=CONFIGS / "digits" / "spanetv2.yaml"))
    app.main(["sweep", "plan", "study.yaml", "--untimed"])
    assert "nothing was written" in capsys.readouterr().out
    assert list(Path().iterdir()) == [file]


# -- the trial's process


def test_trial_tells_what_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real experiment, in this process: events, the best weights tested once, tags."""
    from spanet_lightning.sweep.spec import Spec
    from spanet_lightning.sweep.trial import TrialExperiment
    from tests.helpers import SHORT

    words = [word for word in SHORT if not word.startswith("--trainer.max_epochs")]
    command = (
        "fit",
        *words,
        "--trainer.max_epochs=2",
        "--name=cell",
        "--trainer.default_root_dir=r",
    )
    spec = Spec(command, "e.jsonl", "prune", (Objective("val/top1"),), "test/top1", {"arm": "a"})
    spec.save(Path("spec.json"))
    assert Spec.load(Path("spec.json")) == spec
    TrialExperiment(spec)
    events = list(EventReader(Path("e.jsonl")).read())
    # The tracker tells the id of its run when it has one.
    (run,) = (e for e in events if e["event"] == "run")
    events.remove(run)
    assert [e["event"] for e in events] == ["model", "step", "epoch", "epoch", "test", "end"]
    model = events[0]
    assert model["parameters"] > 0
    assert model["epochs"] == 2
    assert model["data"].startswith("digits-0-")
    assert len(model["config_hash"]) == 64
    assert set(events[2]["metrics"]) >= {"val/top1", "val/loss", "train/loss"}
    assert "test/top1" in events[4]["metrics"]
    # By its full path: MLflow keeps a store open by its address, another test's `mlflow.db` too.
    client = tracking.connect("sqlite:///mlflow.db")
    found = client.get_run(run["run_id"])
    assert found.data.tags["arm"] == "a"
    assert found.data.metrics["best/val/top1"] == max(e["metrics"]["val/top1"] for e in events[2:4])
    # Pruned: it ends at the next batch, and is not tested.
    Path("prune").touch()
    TrialExperiment(replace(spec, events="p.jsonl", command=(*command, "--trainer.logger=false")))
    events = list(EventReader(Path("p.jsonl")).read())
    assert [e["event"] for e in events] == ["model", "step", "pruned"]


def test_trial_stops_at_a_loss_that_is_no_number() -> None:
    from spanet_lightning.sweep.spec import Spec
    from spanet_lightning.sweep.trial import TrialExperiment
    from tests.helpers import UNTRACKED

    command = ("fit", *UNTRACKED, "--name=cell", "--trainer.default_root_dir=r",
               "--model.optimizer.lr=1e38", "--trainer.limit_train_batches=6")  # fmt: skip
    spec = Spec(command, "e.jsonl", "prune", (Objective("val/top1"),), None, {})
    with pytest.raises(NotFiniteError, match=r"the loss was nan|weights were not finite"):
        TrialExperiment(spec)


def _ledger(study) -> Ledger:
    book = Ledger(URL, study)
    book.create()
    return book


def _taken(claim: Claim | Idle) -> Claim | None:
    return claim if isinstance(claim, Claim) else None


def _die(*args: object) -> str:
    raise KeyboardInterrupt


def _epoch(number: int, top1: float) -> dict[str, object]:
    metrics = {"val/top1": top1, "val/loss": 1.0}
    return {"event": "epoch", "epoch": number, "seconds": 1.0, "metrics": metrics}


def test_storage_that_another_one_is_still_creating_is_waited_for() -> None:
    """Seen once in four commands at a time: tables, but not yet the version that comes last."""
    engine = sa.create_engine(f"sqlite:///{Path('half.db').absolute()}")
    models.BaseModel.metadata.create_all(engine)
    assert not storage._complete(engine, set(sa.inspect(engine).get_table_names()))
    storage.open_storage("sqlite:///half.db")
    assert storage._complete(engine, set(sa.inspect(engine).get_table_names()))
    engine.dispose()
