"""If one of these fails, `spanet ui` shows runs to strangers, leaves processes, or says nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from spanet_lightning import app
from spanet_lightning.cli import ui
from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking import addresses
from tests.helpers import refused


@pytest.fixture
def store() -> Path:
    """The file of a store: whether it is one, MLflow's server has to say."""
    Path("mlflow.db").touch()
    return Path("mlflow.db")


def error(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    return refused(["ui", *args], capsys, app.main)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_without_runs_there_is_nothing_to_show(capsys: pytest.CaptureFixture[str]):
    assert "found no file at" in error(capsys)


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "example.org"])  # noqa: S104
def test_others_are_let_in_only_by_name(host: str, capsys: pytest.CaptureFixture[str]):
    assert "which others reach, expected 127.0.0.1, or --auth" in error(capsys, "--host", host)


@pytest.mark.usefixtures("store")
def test_authentication_needs_its_package_and_a_password(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = __import__("importlib.util").util.find_spec
    for installed, words in ((None, "pip install 'mlflow[auth]'"), (True, "there is no user yet")):
        monkeypatch.setattr(
            "importlib.util.find_spec",
            lambda name, *a, i=installed: i if name == "flask_wtf" else found(name, *a),
        )
        monkeypatch.delenv("MLFLOW_AUTH_ADMIN_PASSWORD", raising=False)
        assert words in error(capsys, "--auth", "--host", "example.org")
    monkeypatch.setenv("MLFLOW_AUTH_ADMIN_PASSWORD", "short")
    text = error(capsys, "--auth")
    assert "fewer than 12" in text
    assert "short" not in text


@pytest.mark.usefixtures("store")
def test_a_taken_port_is_said_at_once(capsys: pytest.CaptureFixture[str]):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port: got {port}, which can't be had" in error(capsys, "--port", str(port))
    assert "expected a port" in error(capsys, "--port", "70000")


@pytest.mark.usefixtures("store")
def test_optuna_needs_its_package_and_a_database(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    found = __import__("importlib.util").util.find_spec

    def find(name: str, *args: str | None):
        if name == "optuna_dashboard":
            return present
        return found(name, *args)

    monkeypatch.setattr("importlib.util.find_spec", find)
    port = ["--port", str(free_port())]
    present = None
    assert "optuna-dashboard" in error(capsys, *port, "--optuna")
    present = True
    assert "--storage: got 'sqlite:///sweeps.db'" in error(capsys, *port, "--optuna")


def test_a_server_elsewhere_is_only_named(capsys: pytest.CaptureFixture[str]):
    app.main(["ui", "--tracking-uri", "https://me:hunter2@mlflow.example"])
    text = capsys.readouterr().out
    assert "https://mlflow.example" in text
    assert "hunter2" not in text


@pytest.mark.parametrize(
    ("host", "mine"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("::", False)]
)
def test_loopback_is_told_from_the_rest(host: str, mine: bool):
    assert addresses.is_loopback(host) == mine


def test_a_server_that_ends_says_why():
    code = "print('noise'); raise SystemExit('no such table')"
    with ui.Server("it", [sys.executable, "-c", code], "http://127.0.0.1:9") as server:
        server.process.wait()
        with pytest.raises(ConfigError, match="it ended: no such table"):
            server.wait_until_ready()


def alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are looked up in /proc")
@pytest.mark.parametrize("ends", [signal.SIGTERM, signal.SIGKILL])
def test_servers_end_with_a_command_that_is_killed(ends: signal.Signals):
    """And so does what a server has started."""
    server = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(os.getpid(), child.pid, flush=True)
time.sleep(600)
"""
    code = f"""
import sys, time
from spanet_lightning.cli import ui
command = [sys.executable, "-c", {server!r}]
with ui._signals_as_interrupt(), ui.Server("it", command, "http://127.0.0.1:9") as server:
    while not server.log.seek(0) and not (text := server.log.read().decode()):
        time.sleep(0.05)
    print(text, flush=True)
    time.sleep(600)
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as process:
        pids = [int(word) for word in process.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(alive, pids))
        process.send_signal(ends)
    for _ in range(300):
        if not any(map(alive, pids)):
            break
        time.sleep(0.05)
    assert not any(map(alive, pids))


@pytest.mark.slow
@pytest.mark.usefixtures("store")
def test_both_dashboards_answer_and_end_with_ctrl_c():
    pytest.importorskip("optuna_dashboard")
    from spanet_lightning.sweep.storage import open_storage

    open_storage("sqlite:///sweeps.db")
    ports = {"--port": free_port(), "--optuna-port": free_port()}
    command = [sys.executable, "-m", "spanet_lightning.app", "ui", "--optuna"]
    command += [str(word) for pair in ports.items() for word in pair]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as ui:
        try:
            told: list[str] = []
            for line in ui.stdout:
                told.append(line.strip())
                if line.startswith("Ctrl-C"):
                    break
            assert any(f"MLflow: http://127.0.0.1:{ports['--port']}/" in line for line in told)
            assert f"Optuna: http://127.0.0.1:{ports['--optuna-port']}" in told
            for port in ports.values():
                with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=60) as answer:
                    assert answer.status == 200
        finally:
            ui.send_signal(signal.SIGINT)
        rest = ui.communicate(timeout=120)[0]
    assert (ui.returncode, rest.strip()) == (0, "Stopped.")
    for port in ports.values():
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
