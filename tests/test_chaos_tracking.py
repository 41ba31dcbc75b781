"""If one of these fails, a tracker that is down, hanging or wrong ends or falsifies a training."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from spanet_lightning import app, cli, tracking
from spanet_lightning.tracking.spool import read
from spanet_lightning.tracking.sync import find, look, sync
from tests.helpers import SHORT
from tests.tracking_server import Proxy, Server

STEPS = 400
PATIENCE = 600  # seconds, on a machine that has much else to do
KEYS = [f"train/metric_{i}" for i in range(5)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests here; each leaves it as it likes, and starts it if it needs it."""
    found = Server(tmp_path_factory.mktemp("server"))
    yield found
    found.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    found = Proxy(server.port)
    yield found
    found.close()


def log(logger: tracking.MLflowLogger, first: int, last: int) -> float:
    """Log some steps; return the longest that one took, in seconds."""
    longest = 0.0
    for step in range(first, last):
        began = time.perf_counter()
        logger.log_metrics({key: i + 1 / (1 + step) for i, key in enumerate(KEYS)}, step)
        longest = max(longest, time.perf_counter() - began)
        time.sleep(0.002)
    return longest


def all_there(logger: tracking.MLflowLogger, uri: str, status: str = "FINISHED") -> None:
    """Wait until the spool is sent; check that there is one run, and each point in it once."""
    until = time.monotonic() + PATIENCE
    while look(logger.spool).waiting:
        assert time.monotonic() < until, look(logger.spool)
        time.sleep(0.2)
    client = tracking.connect(uri)
    experiment = client.get_experiment_by_name(logger.experiment_name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == logger.version
    assert run.info.status == status
    for key in KEYS:
        history = client.get_metric_history(run.info.run_id, key)
        assert sorted(point.step for point in history) == list(range(STEPS)), key
    (artifact,) = client.list_artifacts(run.info.run_id)
    assert artifact.path == "notes.txt"


def begun(uri: str, name: str) -> tracking.MLflowLogger:
    return tracking.MLflowLogger(experiment_name=name, tracking_uri=uri)


def ended(logger: tracking.MLflowLogger) -> None:
    logger.log_text("a text", "notes.txt")
    logger.finalize("success")


def test_training_with_a_server_that_is_down_goes_on_and_is_sent_later(capsys):
    args = ["fit", *SHORT, "--trainer.logger.tracking_uri=http://127.0.0.1:9"]
    experiment = cli.run([*args, "--trainer.max_epochs=2"])
    assert experiment.trainer.current_epoch == 2
    errors = capsys.readouterr().err
    assert errors.count("is away") == 1
    assert errors.count("spanet track sync") == 1
    (folder,) = find([Path("runs")])
    assert folder == Path("runs/digits-spanetv2/tracking")
    kinds = [record["op"] for record, _ in read(folder)]
    assert kinds[0] == "run"
    assert kinds[-1] == "end"
    # Nothing was begun there, so that it may be sent anywhere.
    row = sync(folder, "sqlite:///mlflow.db")
    assert (row.waiting, row.refused) == (0, 0)
    client = tracking.connect("sqlite:///mlflow.db")
    run = client.get_run(row.run_id)
    assert run.info.status == "FINISHED"
    assert len(client.get_metric_history(row.run_id, "val/top1")) == 2
    assert client.list_artifacts(row.run_id)[0].path == "config.yaml"


@pytest.mark.slow
def test_server_that_is_killed_and_restarted(server, capsys):
    server.kill()
    logger = begun(server.uri, "killed")
    log(logger, 0, 100)  # it was never there
    server.start()
    log(logger, 100, 200)
    until = time.monotonic() + PATIENCE
    while not logger.version:
        assert time.monotonic() < until
        time.sleep(0.1)
    server.kill()
    log(logger, 200, 300)
    server.start()
    log(logger, 300, STEPS)
    ended(logger)
    all_there(logger, server.uri)
    assert capsys.readouterr().err.count("is away") == 1


@pytest.mark.slow
def test_server_that_hangs_and_goes_on(server):
    server.start() if server.process is None else None
    logger = begun(server.uri, "hung")
    log(logger, 0, 100)
    assert logger.flush()
    server.signal(signal.SIGSTOP)
    try:
        longest = log(logger, 100, 300)
        logger.log_metrics(dict.fromkeys(KEYS, 0.5), 300)
        time.sleep(8)  # longer than a request gets
        logger._watch.look_now()
        assert longest < 5
        assert look(logger.spool).waiting > 0
    finally:
        server.signal(signal.SIGCONT)
    log(logger, 301, STEPS)
    ended(logger)
    all_there(logger, server.uri)


@pytest.mark.slow
def test_run_that_is_created_while_the_server_hangs_is_one(server):
    server.start() if server.process is None else None
    server.signal(signal.SIGSTOP)
    try:
        logger = begun(server.uri, "hung at start")
        log(logger, 0, STEPS)
        time.sleep(12)
    finally:
        server.signal(signal.SIGCONT)
    ended(logger)
    all_there(logger, server.uri)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["500", "lose"])
def test_answers_that_are_wrong_or_lost(server, proxy, mode):
    """`lose`: the server has done what was asked, and the sender is told that it has not."""
    server.start() if server.process is None else None
    uri = f"http://{proxy.address}"
    proxy.mode = mode
    logger = begun(uri, f"answers {mode}")
    log(logger, 0, 100)
    until = time.monotonic() + PATIENCE
    while proxy.spoilt < 3:
        assert time.monotonic() < until
        time.sleep(0.1)
    proxy.mode = "pass"
    log(logger, 100, 200)
    logger.run_id  # noqa: B018  # waits for it
    proxy.mode, spoilt = mode, proxy.spoilt
    log(logger, 200, STEPS)
    while proxy.spoilt < spoilt + 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    logger.log_text("a text", "notes.txt")
    logger.finalize("success")
    proxy.mode = "pass"
    all_there(logger, uri)


@pytest.mark.slow
def test_password_is_in_no_file_message_or_database(server, proxy, capfd, monkeypatch):
    server.start() if server.process is None else None
    secret = "hunter2-geheim"  # noqa: S105  # planted
    proxy.login = ("me", secret)
    uri = f"http://me:{secret}@{proxy.address}"
    name = "--trainer.logger.experiment_name=secret"
    cli.run(["fit", *SHORT, name, f"--trainer.logger.tracking_uri={uri}"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    cli.run(["fit", *SHORT, name, "--trainer.logger.tags={address: '" + uri + "'}"])
    cli.run(["fit", "--config", "runs/digits-spanetv2/config.yaml", name])
    proxy.mode = "500"
    cli.run(["fit", *SHORT, name])
    proxy.mode = "pass"
    assert sync(Path("runs/digits-spanetv2-4/tracking"), uri, PATIENCE).waiting == 0
    client = tracking.connect(server.uri)
    found = client.search_runs([client.get_experiment_by_name("secret").experiment_id])
    assert len(found) == 4
    assert {run.info.status for run in found} == {"FINISHED"}
    said = "".join(capfd.readouterr())
    assert secret not in said
    for root in (Path(), server.folder):
        for path in root.rglob("*"):
            if path.is_file():
                assert secret.encode() not in path.read_bytes(), path


def _start(*args: str, **environment: str) -> subprocess.Popen[bytes]:
    with Path("out.txt").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "spanet_lightning", "fit", *SHORT, *args],
            stdout=out,
            stderr=out,
            env={**os.environ, **environment},
            start_new_session=True,
            # In the background, as CI may be, SIGINT is ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def _first_epoch(folder: Path) -> None:
    """Wait until something was logged, and there is something to resume from."""
    until = time.monotonic() + PATIENCE
    saved = folder.with_name("last.ckpt")
    while not (saved.exists() and any(r["op"] == "metrics" for r, _ in read(folder))):
        assert time.monotonic() < until, Path("out.txt").read_text()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_training_that_is_killed_is_so_in_the_store_and_its_run_can_go_on(number):
    folder = Path("runs/digits-spanetv2/tracking")
    process = _start("--trainer.max_epochs=100000")
    _first_epoch(folder)
    os.kill(process.pid, number)
    process.wait(PATIENCE)
    until = time.monotonic() + PATIENCE
    while look(folder).state != "sent" or look(folder).waiting:
        assert time.monotonic() < until, look(folder)
        time.sleep(0.2)
    client = tracking.connect("sqlite:///mlflow.db")
    run_id = look(folder).run_id
    assert client.get_run(run_id).info.status == "KILLED"
    if number == signal.SIGKILL:
        checkpoint = "runs/digits-spanetv2/last.ckpt"
        epochs = torch.load(checkpoint, weights_only=True)["epoch"] + 2
        again = _start(f"--ckpt_path={checkpoint}", f"--trainer.max_epochs={epochs}")
        assert again.wait(PATIENCE) == 0, Path("out.txt").read_text()
        (run,) = client.search_runs([client.get_experiment_by_name("spanet").experiment_id])
        assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")


@pytest.mark.slow
def test_two_processes_make_one_run():
    args = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=2")
    assert _start(*args).wait(PATIENCE) == 0, Path("out.txt").read_text()
    client = tracking.connect("sqlite:///mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("spanet").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "val/top1")
    assert len(history) == len({point.step for point in history}) == 2
    assert len(find([Path("runs")])) == 1


@pytest.mark.slow
def test_cost_of_logging_is_measured_beside_a_step_without(capsys):
    app.main(["bench", "tracking", "--rounds=2", "--epochs=1", "--json=found.json"])
    found = json.loads(Path("found.json").read_text(encoding="utf-8"))
    kinds = [(row["subject"], row["mode"], len(row["seconds"])) for row in found["results"]]
    trackers = ("SQLite", "server down", "server hanging")
    assert kinds == [(name, "step", 2) for name in ("no tracker", *trackers)] + [
        (name, "call", 2) for name in trackers
    ]
    assert all(min(row["seconds"]) > 0 for row in found["results"])
    assert [row["subject"] for row in found["ratios"]] == list(trackers)
    assert "server hanging" in capsys.readouterr().out
