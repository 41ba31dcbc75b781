"""If one of these fails, a tracker that is down, hanging or wrong ends or falsifies a training."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from spanet_lightning import cli, tracking
from spanet_lightning.tracking.event_log import read
from spanet_lightning.tracking.sender import find_logs, status, sync
from tests.helpers import SHORT
from tests.tracking_server import Proxy, Server

STEPS = 400
PATIENCE = 600  # seconds, on a machine that has much else to do
KEYS = [f"train/metric_{i}" for i in range(5)]
LOG = Path("runs/digits-spanetv2/metrics.jsonl")


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


def until(condition, failure=lambda: "") -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, failure()
        time.sleep(0.1)


def all_there(logger: tracking.MLflowLogger, uri: str) -> None:
    """End the run; check that it is the only one, and has each point once."""
    logger.log_text("a text", "notes.txt")
    logger.finalize("success")
    assert sync(logger.path, patience=PATIENCE).pending == 0
    client = tracking.connect(uri)
    experiment = client.get_experiment_by_name(logger.experiment_name)
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (logger.version, "FINISHED")
    for key in KEYS:
        history = client.get_metric_history(run.info.run_id, key)
        assert sorted(point.step for point in history) == list(range(STEPS)), key
    assert [one.path for one in client.list_artifacts(run.info.run_id)] == ["notes.txt"]


def begun(uri: str, name: str) -> tracking.MLflowLogger:
    return tracking.MLflowLogger(experiment_name=name, tracking_uri=uri)


def test_training_with_a_server_that_is_down_continues_and_is_sent_later(capsys):
    args = ["fit", *SHORT, "--trainer.logger.tracking_uri=http://127.0.0.1:9"]
    experiment = cli.run([*args, "--trainer.max_epochs=2"])
    assert experiment.trainer.current_epoch == 2
    errors = capsys.readouterr().err
    assert errors.count("is unavailable") == errors.count("spanet track sync") == 1
    assert find_logs([Path("runs")]) == [LOG]
    kinds = [event["kind"] for event, _ in read(LOG)]
    assert (kinds[0], kinds[-1]) == ("run", "end")
    # Nothing was begun there, so that it may be sent anywhere.
    row = sync(LOG, "sqlite:///mlflow.db")
    assert (row.pending, row.refused) == (0, 0)
    client = tracking.connect("sqlite:///mlflow.db")
    assert client.get_run(row.run_id).info.status == "FINISHED"
    assert len(client.get_metric_history(row.run_id, "val/top1")) == 2
    assert client.list_artifacts(row.run_id)[0].path == "config.yaml"


@pytest.mark.slow
def test_server_that_is_killed_and_restarted(server, capsys):
    server.kill()
    logger = begun(server.uri, "killed")
    log(logger, 0, 100)  # it was never there
    server.start()
    log(logger, 100, 200)
    until(lambda: logger.version)
    server.kill()
    log(logger, 200, 300)
    time.sleep(4)
    server.start()
    log(logger, 300, STEPS)
    all_there(logger, server.uri)
    assert 1 <= capsys.readouterr().err.count("is unavailable") <= 2


@pytest.mark.slow
def test_server_that_hangs_and_resumes(server):
    server.start() if server.process is None else None
    logger = begun(server.uri, "hung")
    log(logger, 0, 100)
    assert logger.flush()
    server.signal(signal.SIGSTOP)
    try:
        assert log(logger, 100, 300) < 5
        time.sleep(25)  # longer than a request gets
        assert status(logger.path).pending > 0
    finally:
        server.signal(signal.SIGCONT)
    log(logger, 300, STEPS)
    all_there(logger, server.uri)


@pytest.mark.slow
def test_run_that_is_created_while_the_server_hangs_is_one(server):
    server.start() if server.process is None else None
    server.signal(signal.SIGSTOP)
    try:
        logger = begun(server.uri, "hung at start")
        log(logger, 0, STEPS)
        time.sleep(45)
    finally:
        server.signal(signal.SIGCONT)
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
    until(lambda: proxy.spoilt >= 3)
    proxy.mode = "pass"
    log(logger, 100, 200)
    until(lambda: logger.version)
    proxy.mode, spoilt = mode, proxy.spoilt
    log(logger, 200, STEPS)
    until(lambda: proxy.spoilt >= spoilt + 2)
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
    assert sync(Path("runs/digits-spanetv2-4/metrics.jsonl"), uri, PATIENCE).pending == 0
    client = tracking.connect(server.uri)
    found = client.search_runs([client.get_experiment_by_name("secret").experiment_id])
    assert [run.info.status for run in found] == ["FINISHED"] * 4
    assert secret not in "".join(capfd.readouterr())
    for root in (Path(), server.folder):
        for path in root.rglob("*"):
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


def _start(*args: str) -> subprocess.Popen[bytes]:
    with Path("out.txt").open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "spanet_lightning", "fit", *SHORT, *args],
            stdout=out,
            stderr=out,
            env=dict(os.environ),
            start_new_session=True,
            # In the background, as CI may be, SIGINT is ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )


def _said() -> str:
    return Path("out.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_training_that_is_killed_is_so_in_mlflow_and_its_run_can_be_resumed(number):
    process = _start("--trainer.max_epochs=100000")
    saved = LOG.with_name("last.ckpt")
    until(lambda: saved.exists() and any(e["kind"] == "metrics" for e, _ in read(LOG)), _said)
    until(lambda: status(LOG).run_id, _said)
    os.kill(process.pid, number)
    process.wait(PATIENCE)
    assert sync(LOG).pending == 0
    client = tracking.connect("sqlite:///mlflow.db")
    run_id = status(LOG).run_id
    assert client.get_run(run_id).info.status == "KILLED"
    if number == signal.SIGKILL:
        epochs = torch.load(saved, weights_only=True)["epoch"] + 2
        again = _start(f"--ckpt_path={saved}", f"--trainer.max_epochs={epochs}")
        assert again.wait(PATIENCE) == 0, _said()
        (run,) = client.search_runs([client.get_experiment_by_name("spanet").experiment_id])
        assert (run.info.run_id, run.info.status) == (run_id, "FINISHED")


@pytest.mark.slow
def test_two_processes_make_one_run():
    args = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=2")
    assert _start(*args).wait(PATIENCE) == 0, _said()
    client = tracking.connect("sqlite:///mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("spanet").experiment_id])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "val/top1")
    assert len(history) == len({point.step for point in history}) == 2
    assert len(find_logs([Path("runs")])) == 1
