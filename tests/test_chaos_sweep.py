"""Sweeps under fire: workers that race, are killed, cut off, and trials that fail in every way."""

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
from spanet_lightning.sweep.definition import Ablation, Arm, Range, Study
from spanet_lightning.sweep.ledger import Ledger
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.worker import RUNNER
from tests.helpers import CONFIGS
from tests.sweeps import STUDY, ablation, command, complete, run, search, started, trials, wait

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork")


def test_racing_commands_run_each_cell_once() -> None:
    """Four commands that create and run one study at once: 12 cells, 12 trials; then none."""
    study = ablation({"a": {}, "b": {"top1": 0.6}, "c": {}}, seeds=(0, 1, 2, 3))
    commands = [command(study) for _ in range(4)]
    for one in commands:
        one.join(60)
    assert [one.exitcode for one in commands] == [0] * 4
    expected = sorted((arm, seed) for arm in "abc" for seed in range(4))
    assert sorted(complete(study)) == expected
    assert len(trials(study)) == len(started()) == 12
    assert run(study, workers=4).counts == {"complete": 12}
    assert len(trials(study)) == len(started()) == 12


def test_killed_worker() -> None:
    """SIGKILL of a worker: its trial is gone on with by another one, once, where it was."""
    study = ablation({"a": {}, "b": {}}, seeds=(0, 1), epochs=8, seconds=0.25)
    process = command(study, workers=2)
    victim = wait(lambda: _running(study, epoch=2))
    os.kill(_worker(victim), signal.SIGKILL)
    process.join(60)
    assert sorted(complete(study)) == [(arm, seed) for arm in "ab" for seed in (0, 1)]
    found = trials(study)
    assert len(found) == 5
    dead = found[victim.number]
    assert dead.state == TrialState.FAIL
    assert dead.user_attrs["failure"] == "killed"
    again = TrialRecord.from_attrs(found[4].user_attrs)
    assert (again.attempt, again.retry_of) == (2, victim.number)
    assert again.failure is None
    folder = Path(again.folder).name
    begins = [int(first) for name, first, _ in started() if name == folder]
    assert begins[0] == 1
    assert begins[1] > 2  # not from the start
    assert len(begins) == 2
    # The curve of the second attempt has the epochs of both.
    assert sorted(found[4].intermediate_values) == list(range(1, 9))


def test_killed_twice_is_failed() -> None:
    """A trial whose worker dies each time is not tried for ever."""
    study = ablation({"a": {}}, epochs=40, seconds=0.2)
    for attempt in (1, 2):
        process = command(study)
        victim = wait(lambda n=attempt: _running(study, epoch=1, number=n - 1))
        os.kill(_worker(victim), signal.SIGKILL)
        process.join(30)
    assert run(study).counts == {"retried": 1, "failed": 1}
    assert len(started()) == 2


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
    assert "as it was told" in records["raise"].reason
    assert "nan at step 1" in records["nan"].reason
    assert "SIGKILL" in records["kernel"].reason
    assert "code 7" in records["exit"].reason
    assert "the last words" in records["exit"].reason
    assert all("\n" not in record.reason for record in records.values())
    # Failed trials are not run again by themselves, but on request: all of them, once.
    assert run(study).counts == outcome.counts
    ledger = Ledger("sqlite:///sweeps.db", study)
    ledger.attach()
    assert len(ledger.retry_failed()) == 5
    assert ledger.retry_failed() == []
    run(study, failures=10)
    assert len(trials(study)) == 12


def test_sick_worker() -> None:
    """After so many failures in a row a worker ends, and leaves the rest to healthy ones."""
    study = ablation({name: {"mode": "raise"} for name in "abcdef"})
    outcome = run(study, failures=3)
    assert outcome.sick
    assert outcome.unfinished
    assert outcome.counts == {"failed": 3, "waiting": 3}


@pytest.mark.slow
def test_stop_and_resume() -> None:
    """What is stopped goes back into the queue without counting as an attempt, and is resumed."""
    study = ablation({"a": {}, "b": {}}, epochs=25, seconds=0.2)
    process = command(study)
    wait(lambda: _running(study, epoch=2))
    ledger = Ledger("sqlite:///sweeps.db", study)
    ledger.attach()
    ledger.stop(now=True)
    process.join(30)
    states = [(t.state.name, t.user_attrs.get("failure")) for t in trials(study)]
    assert states == [("FAIL", "stopped"), ("WAITING", None), ("WAITING", "stopped")]
    assert run(study).counts == {"complete": 2, "stopped": 1}
    assert [first != "1" for _, first, _ in started()].count(True) == 1
    assert all(t.user_attrs.get("attempt", 1) == 1 for t in trials(study))


@pytest.mark.slow
def test_pruning() -> None:
    """Optuna's pruner ends a trial; the number that ends is the declared one all the same."""
    study = search(
        (Range("top1", "fake.top1", "float", 0.0, 0.9),),
        sampler="random",
        pruner="median",
        trials=14,
    )
    study = Study(**{**vars(study), "overrides": {"fake.epochs": 4, "fake.seconds": 0.25}})
    outcome = run(study, workers=4)
    assert sum(outcome.counts.values()) == 14
    assert set(outcome.counts) == {"complete", "pruned"}
    pruned = [t for t in trials(study) if t.state == TrialState.PRUNED]
    assert all(len(t.intermediate_values) < 4 for t in pruned)


@pytest.mark.slow
def test_orphans_end_with_their_command() -> None:
    """SIGKILL of the command: workers and trials end by themselves, and nothing is lost."""
    study = ablation({"a": {}, "b": {}}, epochs=100, seconds=0.1)
    process = command(study, workers=2, method="forkserver")
    wait(lambda: len(started()) == 2)
    pids = [int(pid) for _, _, pid in started()]
    process.kill()
    process.join()
    wait(lambda: not any(_lives(pid) for pid in pids))
    wait(lambda: not any(t.state == TrialState.RUNNING for t in trials(study)))


# -- the real experiment


def _spanet(*args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "spanet_lightning.app", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_interrupted_command_resumes() -> None:
    """Ctrl-C: the trial is put back, the command to resume is printed, and does resume."""
    file = Path("sweeps/interrupted.yaml")
    file.parent.mkdir()
    file.write_text(STUDY.format(config=CONFIGS / "digits" / "spanetv2.yaml"))
    first = _spanet("sweep", "run", str(file))
    events = Path("runs/sweeps/interrupted/trials/with-srf-seed0/events.jsonl")
    wait(lambda: events.exists() and '"epoch"' in events.read_text(), 180)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert "resume: spanet sweep run sweeps/interrupted.yaml" in said
    assert "Traceback" not in said
    second = _spanet("sweep", "run", str(file))
    said, _ = second.communicate(timeout=400)
    assert second.returncode == 0, said
    assert "2 complete" in said
    text = events.read_text()
    assert text.count('"event": "process"') == 2
    assert text.count('"event": "epoch"') <= 7  # of 6, at most the one that was cut is done again
    assert not list(Path("runs/sweeps/interrupted").glob("with-srf-seed0.*"))
    _check_tracker()


def _check_tracker() -> None:
    """Every trial's run is a child of the study's, and each knows of the other."""
    from spanet_lightning.sweep.storage import load

    study = load("sqlite:///sweeps.db", "interrupted")
    client = tracking.connect("sqlite:///mlflow.db")
    parent = study.user_attrs["run_id"]
    assert client.get_run(parent).info.status == "FINISHED"
    for trial in study.get_trials():
        if trial.state == TrialState.COMPLETE:
            child = client.get_run(trial.user_attrs["run_id"])
            assert child.info.status == "FINISHED"
            assert child.data.tags["mlflow.parentRunId"] == parent
            assert child.data.tags["trial"] == str(trial.number)
            assert child.data.tags["arm"] == trial.params["arm"]
            assert child.data.metrics["best/val/top1"] == trial.values[0]
            assert trial.user_attrs["test"]["test/top1"] > 0
            assert trial.user_attrs["parameters"] > 0


@pytest.mark.slow
def test_real_trials_that_fail() -> None:
    """A loss that is no number, and a limit of memory, in the real experiment."""
    limited = Path("limited.py")
    limited.write_text(
        "import resource, runpy, sys\n"
        "from pathlib import Path\n"
        "spec = Path(sys.argv[1]).read_text()\n"
        "import spanet_lightning.sweep.trial\n"
        "import mlflow.tracking\n"
        'if \'"arm": "memory"\' in spec:\n'
        "    used = int(Path('/proc/self/statm').read_text().split()[0]) * 4096\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20), used + (300 << 20)))\n"
        "spanet_lightning.sweep.trial.main()\n"
    )
    base = ablation({"a": {}})
    study = Study(
        **{
            **vars(base),
            "configs": (str(CONFIGS / "digits" / "spanetv2.yaml"),),
            "overrides": {
                "trainer.max_epochs": 1,
                "trainer.limit_train_batches": 6,
                "trainer.logger": False,
            },
            "method": Ablation(
                control="control",
                arms=(
                    Arm("memory", {"data.batch_size": 1400, "model.backbone.img_size": 256,
                                   "data.image_size": 256}),
                    Arm("nan", {"model.optimizer.lr": 1e38}),
                    Arm("control", {}),
                ),
                seeds=(0,),
            ),
        }
    )  # fmt: skip
    outcome = run(study, runner=(sys.executable, str(limited.resolve())))
    records = {t.params["arm"]: TrialRecord.from_attrs(t.user_attrs) for t in trials(study)}
    assert outcome.counts == {"complete": 1, "failed": 2}, records
    assert records["nan"].failure == "nan"
    assert records["memory"].failure == "out-of-memory"


@pytest.mark.slow
def test_trial_on_two_processes() -> None:
    """A trial may be a DDP run: metrics are computed together, and a failure ends both."""
    base = ablation({"a": {}})
    study = Study(
        **{
            **vars(base),
            "configs": (str(CONFIGS / "digits" / "spanetv2.yaml"),),
            "overrides": {
                "trainer.max_epochs": 1,
                "trainer.limit_train_batches": 4,
                "trainer.devices": 2,
                "trainer.strategy": "ddp",
                "trainer.logger": False,
            },
            "method": Ablation(
                control="control",
                arms=(Arm("control"), Arm("nan", {"model.optimizer.lr": 1e38})),
                seeds=(0,),
            ),
        }
    )
    assert run(study, runner=RUNNER).counts == {"complete": 1, "failed": 1}
    control, nan = (TrialRecord.from_attrs(t.user_attrs) for t in trials(study))
    assert control.hardware.startswith("2 × ")
    assert "val/top1" in control.best
    assert nan.failure == "nan"


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
    study = ablation({"a": {}, "b": {}, "c": {}}, seeds=(0, 1), epochs=12, seconds=0.25)
    process = command(study, workers=2, url=server.url)
    wait(lambda: len(started()) == 2)
    time.sleep(1.0)
    server.stop()
    time.sleep(5.0)
    server.start()
    process.join(90)
    assert process.exitcode == 0
    assert sorted(complete(study, server.url)) == [(arm, s) for arm in "abc" for s in (0, 1)]
    assert len(started()) == 6
    found = trials(study, server.url)
    assert len(found) == 6
    assert all(sorted(t.intermediate_values) == list(range(1, 13)) for t in found)


@pytest.mark.slow
def test_postgresql_races_and_wrong_passwords(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Commands race on a server as on a file; a wrong password is refused, not shown."""
    from spanet_lightning import app

    study = ablation({"a": {}, "b": {}, "c": {}}, seeds=(0, 1, 2, 3))
    commands = [command(study, url=server.url) for _ in range(4)]
    for one in commands:
        one.join(90)
    assert len(set(complete(study, server.url))) == len(started()) == 12
    wrong = server.url.replace("s3cret-word", "wr0ng-word")
    with pytest.raises(SystemExit) as ended:
        app.main(["sweep", "status", "fake", "--storage", wrong])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert error.count("\n") == 1
    assert "wr0ng-word" not in error
    assert re.search("password authentication failed", error)


def _running(study: Study, epoch: int, number: int | None = None) -> FrozenTrial | None:
    """Return a trial that runs and has reported an epoch."""
    if not Path("sweeps.db").exists() or not started():
        return None
    for trial in trials(study):
        if (
            trial.state == TrialState.RUNNING
            and len(trial.intermediate_values) >= epoch
            and number in (None, trial.number)
        ):
            return trial
    return None


def _worker(trial: FrozenTrial) -> int:
    return int(trial.user_attrs["worker"].split(":")[1])


def _lives(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split(") ")[1][0] != "Z"
