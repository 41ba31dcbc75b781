"""If one of these fails, what was logged is lost, sent twice, or leaves its folder."""

from __future__ import annotations

import http.server
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from spanet_lightning import app, tracking
from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking import addresses, client, event_log, names
from spanet_lightning.tracking.sender import find_logs, status, sync

LOGIN = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "geheim"}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for the tests here: MLflow takes seconds to create its tables."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('database')}/mlflow.db"
    tracking.connect(uri)
    return uri


def write(uri: str, *events: dict, folder: str = "runs/a", end: bool = True) -> Path:
    """Write the record of a run as a training does that has ended."""
    log = event_log.EventLog(Path(folder, event_log.NAME).absolute())
    if not log.sessions:
        run = {"uid": folder + str(Path.cwd()), "experiment": "spanet", "name": "a", "run_id": ""}
        log.append("run", uri=uri, tags={"a": "b"}, pid=0, host="elsewhere", **run)
    for event in events:
        log.append(**event)
    if end:
        log.append("end", status="FINISHED")
    log.close()
    return log.path


def points(count: int) -> list[dict]:
    values = [{"loss": 1 / (1 + step), "nan": "nan"} for step in range(count)]
    return [
        {"kind": "metrics", "step": step, "metrics": value} for step, value in enumerate(values)
    ]


def stored(log: Path, count: int):
    """Check that MLflow has each point once; return the run."""
    opened = tracking.connect(status(log).uri)
    run = opened.get_run(status(log).run_id)
    for key in ("loss", "nan"):
        steps = [point.step for point in opened.get_metric_history(run.info.run_id, key)]
        assert sorted(steps) == list(range(count)), key
    return run


def test_steps_that_are_trained_again_after_a_crash_are_recorded_once(database):
    log = write(database, *points(5))
    logger = tracking.MLflowLogger(tracking_uri=database)
    logger.set_folder(log.parent)
    for step in range(3, 7):
        logger.log_metrics({"loss": 1.0 / (1 + step), "nan": float("nan")}, step)
    logger.log_metrics({"loss": 0.5}, 4)  # not what it was
    logger.finalize("success")
    found = [
        (event["step"], event["metrics"]["loss"])
        for event, _ in event_log.read(log)
        if event["kind"] == "metrics"
    ]
    assert found == [(step, 1.0 / (1 + step)) for step in range(7)] + [(4, 0.5)]


def test_line_that_a_killed_process_did_not_finish_is_skipped_and_nothing_else(database):
    log = write(database, *points(3))
    with log.open("ab") as file:
        file.write(b'{"kind":"metr')
    assert len(list(event_log.read(log))) == 5
    write(database, *points(1))
    *_, (event, end) = event_log.read(log)
    assert (event["kind"], end) == ("end", log.stat().st_size)
    for line in log.read_text().splitlines()[:5]:
        json.loads(line, parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))


def test_sending_everything_again_changes_nothing(database):
    """An answer that was lost, or a process that was killed before it noted what it had sent."""
    log = write(database, *points(1500))
    row = sync(log)
    assert (row.pending, row.refused, row.points, row.state) == (0, 0, 3000, "sent")
    run = stored(log, 1500)
    assert run.info.status == "FINISHED"
    event_log.Progress().save(log)
    assert sync(log).pending == 0
    assert stored(log, 1500).info.run_id == run.info.run_id


def test_events_that_mlflow_refuses_hold_up_no_others(database):
    log = write(
        database,
        *points(1),
        {"kind": "params", "params": {"x": "1"}},
        {"kind": "params", "params": {"x": "2", "y": "3"}},
        {"kind": "artifact", "folder": "", "file": "artifacts/missing.txt"},
        {"kind": "metrics", "step": "no number", "metrics": {}},
        {"kind": "tags", "tags": {"t": "u"}},
    )
    row = sync(log)
    assert (row.pending, row.refused) == (0, 2)
    run = stored(log, 1)
    assert (run.data.params, run.data.tags["t"]) == ({"x": "1", "y": "3"}, "u")


def test_record_of_the_first_version_is_sent_from_where_it_stopped(database):
    """`tracking/spool.jsonl`, of which MLflow has the start of the run and one point."""
    old = Path("runs/old/tracking")
    (old / "payload/3").mkdir(parents=True)
    (old / "payload/3/config.yaml").write_text("a: 1\n")
    run = tracking.connect(database).create_run("0", run_name="old")
    records = [
        {"op": "run", "uri": database, "uid": "u", "experiment": "Default", "tags": {}},
        {"op": "metrics", "step": 0, "metrics": {"loss": 1.0, "nan": "nan"}},
        {"op": "metrics", "step": 1, "metrics": {"loss": 0.5, "nan": "nan"}},
        {"op": "artifact", "folder": "", "payload": "payload/3/config.yaml"},
        {"op": "end", "status": "FINISHED"},
    ]
    lines = [json.dumps({"n": n, "t": 1000 + n, **r}) + "\n" for n, r in enumerate(records)]
    (old / "spool.jsonl").write_text("".join(lines))
    sent = {"offset": len(lines[0]), "run_id": run.info.run_id, "state": "away", "error": ""}
    (old / "sent.json").write_text(json.dumps(sent))
    (log,) = find_logs([Path("runs")])
    assert status(log).pending == 4
    assert sync(log).state == "sent"
    assert status(log).run_id == run.info.run_id
    found = stored(log, 2)
    assert found.info.status == "FINISHED"
    artifacts = tracking.connect(database).list_artifacts(run.info.run_id)
    assert [one.path for one in artifacts] == ["config.yaml"]
    assert find_logs([Path("runs")]) == [log]


def test_status_and_sync_of_everything_below_a_folder(database, capsys):
    log = write(database, *points(4))
    app.run(["track"])
    assert "6 events pending" in capsys.readouterr().out
    app.run(["track", "sync"])
    assert "6 events sent (8 points)" in capsys.readouterr().out
    stored(log, 4)
    app.run(["track", "sync", "runs/a"])
    assert "No pending events." in capsys.readouterr().out
    app.run(["track", "status", "--all"])
    assert "0 events pending" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="PATH: there is no folder nowhere"):
        find_logs([Path("nowhere")])


def test_folder_that_was_moved_is_sent_from_where_it_is(database):
    write(database, {"kind": "artifact", "folder": "x", "file": "artifacts/a.txt"}, *points(2))
    Path("runs/a/artifacts").mkdir()
    Path("runs/a/artifacts/a.txt").write_text("a")
    log = Path("runs/a").rename("elsewhere") / event_log.NAME
    assert sync(log).state == "sent"
    found = tracking.connect(database).list_artifacts(status(log).run_id, "x")
    assert [item.path for item in found] == ["x/a.txt"]


def test_two_do_not_send_one_run_at_once(database, capsys):
    log = write(database, *points(2))
    with FileLock(log.with_name(f".{log.name}.lock")):
        assert status(log).state == "running"
        assert sync(log, patience=0.1).pending > 0
    assert "another process is sending it" in capsys.readouterr().out
    assert sync(log).state == "sent"


def test_run_of_one_store_is_not_continued_in_another(database):
    log = write(database, *points(1))
    sync(log)
    with pytest.raises(ConfigError, match=r"--tracking-uri: got 'sqlite:///other.db', but the"):
        sync(log, "sqlite:///other.db")
    assert not Path("other.db").exists()


def test_run_whose_process_was_killed_is_so_in_mlflow(database):
    log = write(database, *points(1), end=False)
    assert sync(log).pending == 0
    assert stored(log, 1).info.status == "KILLED"


@pytest.mark.parametrize("file", ["{home}/key", "../../home/key", "artifacts/link", "linked/key"])
def test_record_of_a_stranger_sends_and_deletes_no_file_outside_its_folder(file, database, capsys):
    home = Path("home").absolute()
    home.mkdir()
    (home / "key").write_text("secret")
    event = {"kind": "artifact", "folder": "../x", "file": file.format(home=home)}
    log = write(database, event, *points(1), folder="runs/strange")
    (log.parent / "artifacts").mkdir()
    (log.parent / "artifacts" / "link").symlink_to(home / "key")
    (log.parent / "linked").symlink_to(home)
    (log.parent / f".{log.name}.sent.partial").symlink_to(home / "key")
    (log.parent / f".{log.name}.lock").symlink_to(home / "key")
    Path("runs/b").symlink_to(home)
    Path("runs/metrics.jsonl").symlink_to(log)
    with pytest.raises(SystemExit):
        app.run(["track", "sync", "runs"])
    assert "1 refused" in capsys.readouterr().out
    assert [path.name for path in home.iterdir()] == ["key"]
    assert (home / "key").read_text() == "secret"
    assert not tracking.connect(database).list_artifacts(stored(log, 1).info.run_id)


def test_disk_that_takes_nothing_ends_no_training(database, monkeypatch, capsys):
    logger = tracking.MLflowLogger(tracking_uri=database)
    logger.log_metrics({"x": 1.0}, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("spanet_lightning.tracking.event_log.os.write", full)
        logger.log_metrics({"x": 2.0}, 1)
        logger.log_metrics({"x": 3.0}, 2)
    assert capsys.readouterr().err.count("No space left on device") == 1
    logger.log_metrics({"x": 4.0}, 3)
    logger.finalize("success")
    history = logger.client.get_metric_history(logger.run_id, "x")
    assert [point.value for point in history] == [1.0, 4.0]


def test_without_mlflow_a_run_is_recorded_for_a_machine_that_has_it(database, monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setattr("spanet_lightning.tracking.client.installed", lambda: False)
        logger = tracking.MLflowLogger(tracking_uri=database)
        logger.log_metrics({"loss": 1.0, "nan": float("nan")}, 0)
        logger.log_text("text", "a.txt")
        logger.finalize("success")
        assert capsys.readouterr().err.count("MLflow is not installed") == 1
        assert (logger.version, logger.run_id) == ("", "")
        with pytest.raises(ConfigError, match="mlflow: is not installed"):
            sync(logger.path)
    assert sync(logger.path).pending == 0
    assert stored(logger.path, 1).info.status == "FINISHED"


def test_commands_that_create_one_database_at_once_all_succeed():
    code = (
        "import sys; from spanet_lightning import tracking\n"
        "logger = tracking.MLflowLogger(tracking_uri='sqlite:///new.db', run_name=sys.argv[1])\n"
        "logger.log_metrics({'x': 1.0}, 0); logger.finalize('success')\n"
        "sys.exit(not logger.version)"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", code, str(i)], stderr=subprocess.PIPE, text=True)
        for i in range(3)
    ]
    said = [process.communicate(timeout=600)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], said
    assert said == ["", "", ""]


def test_database_that_can_not_be_written_costs_two_lines_and_no_time(monkeypatch, capsys):
    """As every error of a store that may pass: training ends well and keeps its record."""

    def read_only(*_):
        raise RuntimeError("attempt to write a readonly database")

    monkeypatch.setenv("SPANET_TRACKING_WAIT", "5")
    monkeypatch.setattr("spanet_lightning.tracking.client.open_store", read_only)
    logger = tracking.MLflowLogger()
    began = time.perf_counter()
    logger.log_metrics({"x": 1.0}, 0)
    logger.finalize("success")
    assert time.perf_counter() - began < 8
    first, second = capsys.readouterr().err.splitlines()
    assert "is unavailable (attempt to write a readonly database). Training continues" in first
    assert "spanet track sync runs/.tracking/" in second


def test_names_are_one_to_one_and_mlflow_takes_them(database):
    from mlflow.utils.validation import _validate_metric_name

    pairs = ["<5mm", ">5mm", "C+", "C#", "a:b", "a_b", "a/b", "a//b", "/a/b", "..", ".", "", "a/.."]
    pairs += ["_x3c_", "_x5f_x3c_", "_x3<", "é", "猫", "a\\b", "a\nb", "val/top1", "train_x", "_x_"]
    generator = random.Random(0)
    pairs += ["".join(generator.choices("_x3c<>/.5", k=6)) for _ in range(3000)]
    for encode in (names.encode, names.encode_path, names.encode_file):
        for name in pairs:
            assert names.decode(encode(name)) == name
    for name in pairs:
        _validate_metric_name(names.encode(name))
    assert names.encode("val/top1") == "val/top1"
    long = [names.encode("a" * 300 + end) for end in "bc"]
    assert len(set(long)) == 2
    _validate_metric_name(long[0])
    logger = tracking.MLflowLogger(tracking_uri=database)
    logger.log_metrics({f"val/iou/{name}": i for i, name in enumerate(pairs[:6])}, 1)
    for name in pairs[:6]:
        logger.log_text(name, f"{name}.txt")
    logger.finalize("success")
    metrics = logger.client.get_run(logger.run_id).data.metrics
    shown = {names.decode(key): value for key, value in metrics.items()}
    assert shown == {f"val/iou/{name}": i for i, name in enumerate(pairs[:6])}
    assert len(logger.client.list_artifacts(logger.run_id)) == 6


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "a/../../b", "C:\\x", "..", ""]
)
def test_artifacts_stay_below_their_root(name):
    parts = names.encode_path(name).split("/")
    assert not {"", ".", ".."} & set(parts)
    assert not set("\\:") & set("".join(parts))


def test_artifacts_with_hostile_names_land_in_the_run(database):
    logger = tracking.MLflowLogger(tracking_uri=database, run_name="../../evil")
    logger.log_text("x", "../../../evil.txt")
    Path("model.ckpt").write_text("weights")
    logger.log_artifact("model.ckpt", "/../../models")
    logger.finalize("success")
    opened = logger.client
    (escaped,) = opened.list_artifacts(logger.run_id)
    assert escaped.path == names.encode_path("..")
    assert not list(Path().rglob("evil.txt"))[1:]  # that of the run's folder
    assert [path for path in Path().rglob("model.ckpt") if "artifacts" not in path.parts] == [
        Path("model.ckpt")
    ]


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("https://me:geheim@host:5000/mlflow", "https://host:5000/mlflow"),
        ("https://geheim@host", "https://host"),
        ("https://me:ge@heim@host", "https://host"),
        ("postgresql://me:geheim@host/db", "postgresql://me@host/db"),
        ("postgresql+psycopg://host/db?password=geheim&a=b", "postgresql+psycopg://host/db?a=b"),
        ("postgresql://me:ge/heim@host/db", "postgresql://me@host/db"),
    ],
)
def test_address_is_stored_without_its_password(uri, expected):
    assert addresses.without_secret(uri) == expected
    shown = addresses.redact(f"--tracking_uri='{uri}' failed", uri)
    assert "heim" not in shown
    assert "failed" in shown


def test_password_of_the_environment_comes_back_for_its_own_address_alone(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:p%40ss@host")
    assert addresses.complete("https://host") == "https://me:p%40ss@host"
    assert addresses.complete("https://other") == "https://other"
    variables = addresses.credentials("https://me:p%40ss@host")
    assert variables == {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "p@ss"}
    assert tracking.default_logger()["init_args"]["tracking_uri"] == "https://host"


@pytest.mark.parametrize(
    ("variable", "typed", "address", "sent"),
    [
        ("https://mine", "", "https://mine/mlflow", True),
        ("https://mine", "", "https://mine:443", True),
        ("https://mine", "", "https://evil", False),
        ("https://mine", "", "https://mine.evil", False),
        ("https://mine", "", "http://mine", False),
        ("https://mine", "", "https://mine:8443", False),
        ("http://mine", "", "http://mine", False),
        ("http://127.0.0.1:5000", "", "http://127.0.0.1:5000", True),
        ("http://127.0.0.1:5000", "", "http://127.0.0.1:5001", False),
        ("", "", "https://evil", False),
        ("", "--tracking-uri https://mine", "https://mine", True),
        ("", "--trainer.logger.tracking_uri=https://mine", "https://mine", True),
        (
            "",
            '--trainer.logger={"init_args":{"tracking_uri":"https://mine"}}',
            "https://mine",
            True,
        ),
        ("", "--trainer.logger.tracking_uri=http://mine", "http://mine", False),
        ("", "--model.weights=https://evil/a.pth", "https://evil", False),
    ],
)
def test_login_is_for_one_server_and_goes_nowhere_unencrypted(
    variable, typed, address, sent, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    for key, value in LOGIN.items():
        monkeypatch.setenv(key, value)
    addresses.accept_typed(["fit", *typed.split()])
    assert addresses.credentials(address) == (LOGIN if sent else {})


def test_login_in_an_address_and_in_mlflows_own_file(monkeypatch):
    with pytest.raises(ConfigError, match="with a login, which plain http would send") as refused:
        addresses.credentials("http://me:geheim@mine")
    assert "geheim" not in str(refused.value)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert addresses.credentials("https://evil") == {}
    Path(".mlflow").mkdir()
    Path(".mlflow/credentials").touch()
    with pytest.raises(ConfigError, match=r"where MLflow would send the login in ~/\.mlflow"):
        addresses.credentials("https://evil")


@pytest.fixture
def server() -> Iterator[tuple[str, list[int], list[str | None]]]:
    """A server that answers with one of some codes, the last one for ever, and notes logins."""
    codes: list[int] = []
    seen: list[str | None] = []
    silence = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            if not codes:
                silence.wait(60)
                return
            self.send_error(codes[0] if len(codes) == 1 else codes.pop(0))

        do_POST = do_PUT = do_PATCH = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}", codes, seen
    silence.set()
    found.shutdown()
    found.server_close()


def test_server_of_a_configuration_is_sent_no_login(server, monkeypatch, capsys):
    """All that a run and `sync` send to an address in a file, by whatever code of MLflow's."""
    uri, codes, seen = server
    codes.append(401)
    for key, value in {**LOGIN, "MLFLOW_TRACKING_TOKEN": "geheim"}.items():
        monkeypatch.setenv(key, value)
    logger = tracking.MLflowLogger(tracking_uri=uri)
    logger.log_metrics({"x": 1.0}, 0)
    logger.finalize("success")
    row = sync(logger.path, patience=0.1)
    assert seen
    assert set(seen) == {None}
    assert "the environment's login was not sent" in row.error
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not accept this run (it refuses the login" in line


def test_server_that_never_answers_delays_the_end_by_its_bound(server, monkeypatch, capsys):
    uri, _, _ = server
    monkeypatch.setenv("SPANET_TRACKING_WAIT", "1")
    logger = tracking.MLflowLogger(tracking_uri=uri)
    longest = 0.0
    for step in range(200):
        began = time.perf_counter()
        logger.log_metrics({"x": 1.0}, step)
        longest = max(longest, time.perf_counter() - began)
    assert longest < 1
    began = time.perf_counter()
    logger.finalize("success")
    assert time.perf_counter() - began < 4
    assert "202 events not sent" in capsys.readouterr().err


def test_addresses_that_are_none_are_the_users_error():
    Path("text.db").write_text("no database " * 100)
    for uri, reason in (
        ("magic:///x", "no store of kind 'magic'"),
        ("sqlite:///text.db", "not a database"),
        ("http://", "no host"),
    ):
        with pytest.raises(ConfigError, match=rf"tracking_uri: got .* \(.*{reason}"):
            client.check_address(uri)
