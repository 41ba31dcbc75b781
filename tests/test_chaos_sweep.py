"""Sweeps under fire: commands that race, are killed, cut off, and trials that die in every way."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial, TrialState

from spanet_lightning import tracking
from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep.records import TrialRecord
from tests.helpers import CONFIGS
from tests.sweeps import (
    STUDY,
    URL,
    ablation,
    command,
    complete,
    run,
    search,
    started,
    store,
    trials,
    wait,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")
CELLS = [("a", 0), ("a", 1), ("b", 0), ("b", 1)]


def test_racing_commands_run_each_cell_once() -> None:
    """Of two commands that create one study at once in a file, one runs it, one is refused."""
    study = ablation({"a": {}, "b": {"top1": 0.6}}, (0, 1), epochs=3, seconds=0.3)
    commands = [command(study) for _ in range(2)]
    for one in commands:
        one.join(60)
    assert sorted(one.exitcode or 0 for one in commands) == [0, 1]
    assert complete(study) == CELLS
    assert len(started()) == 4
    assert run(study).counts == {"complete": 4}
    assert len(started()) == 4


def test_killed_trial() -> None:
    """SIGKILL of a trial: it resumes once from its checkpoint; a second time it has failed."""
    study = ablation({"a": {}, "b": {}}, (0, 1), epochs=6, seconds=0.25)
    process = command(study, workers=2)
    victim = wait(lambda: _running(study, epoch=2))
    os.kill(_process(victim), signal.SIGKILL)
    process.join(60)
    assert complete(study) == CELLS
    found = trials(study)[victim.number]
    assert len(trials(study)) == 4
    assert found.user_attrs["attempt"] == 2
    assert found.user_attrs.get("failure") is None
    begins = [int(first) for name, first, _ in started() if name == _cell(found)]
    assert len(begins) == 2
    assert begins[0] == 1
    assert begins[1] > 2  # not from the start
    assert sorted(found.intermediate_values) == list(range(1, 7))  # of both attempts


def test_killed_command_and_server() -> None:
    """SIGKILL of the command, and of the server of its trials: every cell is complete, once."""
    study = ablation({"a": {}, "b": {}}, epochs=25, seconds=0.2)
    process = command(study, workers=2)
    wait(lambda: _running(study, epoch=2))
    process.kill()
    process.join()
    wait(lambda: not any(_lives(int(pid)) for _, _, pid in started()))  # by themselves
    assert [trial.state for trial in trials(study)] == [TrialState.RUNNING] * 2
    process = command(study, workers=2)
    wait(lambda: len(started()) == 4)
    server = Path(f"/proc/{started()[3][2]}/stat").read_text().split(") ")[1].split()[1]
    os.kill(int(server), signal.SIGKILL)
    process.join(60)
    assert complete(study) == [("a", 0), ("b", 0)]
    assert len(trials(study)) == 2
    assert all(first != "1" for _, first, _ in started()[2:])
    assert run(study).counts == {"complete": 2}


def test_result_of_a_trial_that_outlived_its_command() -> None:
    """It is in the trial's folder, from which the next command takes it."""
    study = ablation({"a": {}, "b": {}})
    run(study, trials=1)
    opened = store(study)
    cell = opened.trials()[0]
    folder = opened.folder() / "trials" / str(cell.user_attrs["cell"])
    other = opened.folder() / "trials" / "b-seed0"
    shutil.copytree(folder, other)  # as if trial 1 had ended after its supervisor
    run(study)
    assert complete(study) == [("a", 0), ("b", 0)]
    assert len(started()) == 1


def test_failing_trials() -> None:
    """Each way to fail has its kind and its reason, and the others are run all the same."""
    modes = {"raise": "error", "nan": "nan", "memory": "out-of-memory", "kernel": "killed"}
    modes |= {"exit": "error"}
    arms = {"control": {}, **{mode: {"mode": mode} for mode in modes}, "last": {}}
    study = ablation(arms)
    outcome = run(study, failures=10)
    assert outcome.counts == {"complete": 2, "failed": 5}
    records = {t.params["arm"]: TrialRecord.from_attrs(t.user_attrs) for t in trials(study)}
    assert {mode: records[mode].failure for mode in modes} == modes
    assert records["raise"].reason == "RuntimeError: a made-up error"
    assert "nan at step 1" in records["nan"].reason
    assert "SIGKILL" in records["kernel"].reason
    assert "code 7 and no result; its last line: the last words" in records["exit"].reason
    assert [records[mode].attempt for mode in modes] == [1, 1, 1, 2, 2]  # those that died
    # Failed trials are not run again by themselves, but on request: all of them, once.
    assert run(study).counts == outcome.counts
    assert len(store(study).retry()) == 5
    assert store(study).retry() == []
    run(study, failures=10)
    assert len(trials(study)) == 12


def test_too_many_failures_in_a_row() -> None:
    study = ablation({name: {"mode": "raise"} for name in "abcdef"})
    outcome = run(study, failures=3)
    assert outcome.stopped == "3 trials failed in a row"
    assert outcome.counts == {"failed": 3, "waiting": 3}


def test_stop_and_resume() -> None:
    """What is stopped goes back into the queue without counting as an attempt, and is resumed."""
    study = ablation({"a": {}, "b": {}}, epochs=12, seconds=0.2)
    process = command(study)
    wait(lambda: _running(study, epoch=2))
    store(study).stop(now=True)
    process.join(30)
    assert [trial.state for trial in trials(study)] == [TrialState.WAITING] * 2
    assert run(study).counts == {"complete": 2}
    assert [first != "1" for _, first, _ in started()].count(True) == 1
    assert all(trial.user_attrs.get("attempt", 1) == 1 for trial in trials(study))


def test_pruning() -> None:
    """Optuna's pruner ends a trial; the number that ends is the declared one all the same."""
    study = search(
        {"top1": {"key": "fake.top1", "float": [0.0, 0.9]}},
        sampler="random",
        pruner="median",
        trials=12,
        fake={"epochs": 6, "seconds": 0.25},
    )
    outcome = run(study, workers=3)
    assert sum(outcome.counts.values()) == 12
    assert set(outcome.counts) == {"complete", "pruned"}
    pruned = [t for t in trials(study) if t.state == TrialState.PRUNED]
    assert all(len(t.intermediate_values) < 6 for t in pruned)


def test_damaged_storage_is_no_outage() -> None:
    """It is one line, at once, when a command begins and when one is running."""
    study = ablation({"a": {}, "b": {}}, epochs=100, seconds=0.1)
    seen: list[str] = []

    def damage(line: str) -> None:
        if not seen:
            Path("sweeps.db").write_bytes(b"not a database at all" * 1000)
        seen.append(line)

    with pytest.raises(ConfigError, match="is damaged"):
        run(study, damage)
    with pytest.raises(ConfigError, match=r"sweeps.db is damaged: it is not an SQLite database"):
        run(study)
    wait(lambda: not any(_lives(int(pid)) for _, _, pid in started()))


# -- the real experiment


@pytest.mark.slow
def test_interrupted_command_resumes() -> None:
    """Ctrl-C: the trial is put back, the command to resume is printed, and does resume."""
    file = Path("sweeps/interrupted.yaml")
    file.parent.mkdir()
    file.write_text(STUDY.format(config=CONFIGS / "digits" / "spanetv2.yaml"))
    Path("yaml.py").write_text("raise SystemExit('the working directory is on the path')\n")
    first = _installed("sweep", "run", str(file))
    events = Path("runs/sweeps/interrupted/trials/with-srf-seed0/events.jsonl")
    wait(lambda: events.exists() and '"epoch"' in events.read_text(), 180)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output
    assert "resume: spanet sweep run sweeps/interrupted.yaml" in output
    assert "Traceback" not in output
    second = _installed("sweep", "run", str(file))
    output, _ = second.communicate(timeout=400)
    assert second.returncode == 0, output
    assert "2 complete" in output
    text = events.read_text()
    assert text.count('"event": "process"') == 2
    assert text.count('"event": "epoch"') <= 7  # at most the one that was cut is done again
    assert not list(Path("runs/sweeps/interrupted").glob("with-srf-seed0.*"))
    _check_tracker()


def _check_tracker() -> None:
    """Every trial's run is a child of the study's, and each knows of the other."""
    from spanet_lightning.sweep.storage import load

    study = load(URL, "interrupted")
    client = tracking.connect("sqlite:///mlflow.db")
    parent = study.user_attrs["run_id"]
    assert client.get_run(parent).info.status == "FINISHED"
    for trial in study.get_trials():
        child = client.get_run(trial.user_attrs["run_id"])
        assert child.info.status == "FINISHED"
        assert child.data.tags["mlflow.parentRunId"] == parent
        assert child.data.tags["trial"] == str(trial.number)
        assert child.data.tags["arm"] == trial.params["arm"]
        assert child.data.metrics["best/val/top1"] == trial.values[0]
        assert trial.user_attrs["test"]["test/top1"] > 0
        assert trial.user_attrs["parameters"] > 0


@pytest.mark.slow
def test_real_trials_on_one_and_two_processes() -> None:
    """A trial may be a DDP run, a command of its own; a failure ends all of its processes."""
    plain = {"trainer.max_epochs": 1, "trainer.limit_train_batches": 4, "trainer.logger": False}
    two = {"trainer.devices": 2, "trainer.strategy": "ddp"}
    arms = {"control": {}, "two": two, "nan": {**two, "model.optimizer.lr": 1e38}}
    study = ablation(arms).model_copy(
        update={
            "configs": (str(CONFIGS / "digits" / "spanetv2.yaml"),),
            "overrides": plain,
        }
    )
    method = study.ablation
    assert method is not None
    real = {
        name: arm.model_copy(
            update={"overrides": {k.removeprefix("fake."): v for k, v in arm.overrides.items()}}
        )
        for name, arm in method.arms.items()
    }
    study = study.model_copy(update={"ablation": method.model_copy(update={"arms": real})})
    entry, preload = "spanet_lightning.sweep.trial", "spanet_lightning.sweep.preload"
    outcome = run(study, entry=entry, preload=preload)
    records = {t.params["arm"]: TrialRecord.from_attrs(t.user_attrs) for t in trials(study)}
    assert outcome.counts == {"complete": 2, "failed": 1}, records
    assert records["two"].hardware.startswith("2 × ")
    assert "val/top1" in records["two"].best
    assert records["nan"].failure == "nan"


def _installed(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("spanet")), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


# -- PostgreSQL


class Server:
    """A PostgreSQL server of this test's own."""

    def __init__(self, folder: Path) -> None:
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        which = shutil.which("initdb")
        binary = found[-1] if found else Path(which) if which else None
        if binary is None:
            pytest.skip("no PostgreSQL here; Debian's package is postgresql-15")
        self.bin = binary.parent
        self.data = folder / "data"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        password = folder / "password"
        password.write_text("s3cret-word")
        self.user = None
        if os.geteuid() == 0:  # the server refuses to run as root
            self.user = "postgres" if _user_exists("postgres") else "nobody"
            shutil.chown(folder, self.user)
            shutil.chown(password, self.user)
        self._run("initdb", "-D", self.data, "-A", "scram-sha-256", "-U", "sweeper",
                  "--pwfile", password, "-N")  # fmt: skip
        self.start()

    @property
    def url(self) -> str:
        return f"postgresql://sweeper:s3cret-word@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -k '' -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", self.data, "-o", options, "-l", self.data / "log", "-w", "start")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.data, "-m", "immediate", "-w", "stop")

    def _run(self, program: str, *args: object) -> None:
        subprocess.run(
            [str(self.bin / program), *map(str, args)],
            check=True,
            user=self.user,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )


def _user_exists(name: str) -> bool:
    import pwd

    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    import tempfile

    pytest.importorskip("psycopg")
    folder = Path(tempfile.mkdtemp(prefix="spanet-postgresql-"))  # others may enter it
    try:
        server = Server(folder)
        yield server
        server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_postgresql_goes_away(server: Server) -> None:
    """A server that is stopped for 5 s in mid-trial: nothing is lost, and nothing is run twice."""
    study = ablation({"a": {}, "b": {}}, (0, 1), epochs=12, seconds=0.25)
    process = command(study, workers=2, url=server.url)
    wait(lambda: len(started()) == 2)
    time.sleep(1.0)
    server.stop()
    time.sleep(5.0)
    server.start()
    process.join(90)
    assert process.exitcode == 0
    assert complete(study, server.url) == CELLS
    assert len(started()) == 4
    found = trials(study, server.url)
    assert len(found) == 4
    assert all(sorted(t.intermediate_values) == list(range(1, 13)) for t in found)


@pytest.mark.slow
def test_postgresql_shares_one_queue(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """Three commands on one address, one of them killed: each cell is run to its end once."""
    from spanet_lightning import app

    study = ablation({"a": {}, "b": {}, "c": {}}, (0, 1, 2), epochs=4, seconds=0.3)
    commands = [command(study, url=server.url) for _ in range(3)]
    wait(lambda: len(started()) >= 3)
    commands[0].kill()
    for one in commands:
        one.join(90)
    assert [one.exitcode for one in commands[1:]] == [0, 0]
    found = complete(study, server.url)
    assert found == [(arm, seed) for arm in "abc" for seed in (0, 1, 2)]
    assert len(trials(study, server.url)) == 9
    assert len(started()) <= 10  # one of them was resumed
    # A wrong password is refused, not shown.
    wrong = server.url.replace("s3cret-word", "wr0ng-word")
    with pytest.raises(SystemExit) as ended:
        app.main(["sweep", "status", "fake", "--storage", wrong])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert "wr0ng-word" not in error
    assert re.search("password authentication failed", error)


def _running(study: object, epoch: int) -> FrozenTrial | None:
    """Return a trial that runs and has reported an epoch."""
    if not Path("sweeps.db").exists() or not started():
        return None
    for trial in trials(study):  # type: ignore[arg-type]
        if trial.state == TrialState.RUNNING and len(trial.intermediate_values) >= epoch:
            return trial
    return None


def _cell(trial: FrozenTrial) -> str:
    return str(trial.user_attrs["cell"])


def _process(trial: FrozenTrial) -> int:
    return next(int(pid) for name, _, pid in reversed(started()) if name == _cell(trial))


def _lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split(") ")[1][0] != "Z"
