"""If one of these fails, what was logged is lost, sent twice, or leaves its folder."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from spanet_lightning import app, tracking
from spanet_lightning.errors import ConfigError
from spanet_lightning.tracking import addresses, names, spool
from spanet_lightning.tracking.probe import probe
from spanet_lightning.tracking.sync import find, sync
from spanet_lightning.tracking.watch import Watch

HEAD = {
    "uid": "u1",
    "uri": "sqlite:///mlflow.db",
    "experiment": "spanet",
    "name": "a run",
    "run_id": "",
    "tags": {"a": "b"},
}


def written(points: int, folder: str = "runs/a/tracking") -> Path:
    """Write a spool of one metric as a training does that ended."""
    uri = f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"
    writer = spool.Writer(Path(folder))
    writer.append("run", **{**HEAD, "uri": uri, "cwd": str(Path.cwd())})
    for step in range(points):
        writer.append("metrics", step=step, metrics={"loss": 1.0 / (1 + step), "nan": float("nan")})
    writer.append("end", status="FINISHED")
    writer.close()
    return Path(folder)


def stored(points: int):
    """Check that the store has each point once; return the run."""
    client = tracking.connect("sqlite:///mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("spanet").experiment_id])
    for key in ("loss", "nan"):
        steps = [point.step for point in client.get_metric_history(run.info.run_id, key)]
        assert sorted(steps) == list(range(points)), key
    return run


def test_steps_that_are_trained_again_after_a_crash_are_recorded_once():
    written(5)
    logger = tracking.MLflowLogger(tracking_uri="sqlite:///mlflow.db")
    logger.place(Path("runs/a/tracking").absolute())  # as a process does that resumes
    for step in range(3, 7):
        logger.log_metrics({"loss": 1.0 / (1 + step), "nan": float("nan")}, step)
    logger.log_metrics({"loss": 0.5}, 4)  # not what it was: seen by whoever looks
    logger.finalize("success")
    points = [
        (record["step"], record["metrics"]["loss"])
        for record, _ in spool.read(Path("runs/a/tracking"))
        if record["op"] == "metrics"
    ]
    assert points == [(step, 1.0 / (1 + step)) for step in range(7)] + [(4, 0.5)]


def test_line_that_a_killed_process_did_not_finish_is_skipped_and_nothing_else():
    folder = written(3)
    with (folder / spool.SPOOL).open("ab") as file:
        file.write(b'{"n":5,"op":"metr')
    assert [record["n"] for record, _ in spool.read(folder)] == [0, 1, 2, 3, 4]
    writer = spool.Writer(folder)
    writer.append("metrics", step=9, metrics={"x": 1.0})
    assert [record["n"] for record, _ in spool.read(folder)] == [0, 1, 2, 3, 4, 5]
    *_, (_, end) = spool.read(folder)
    assert end == spool.size(folder)
    assert writer.sessions == 1
    writer.close()


def test_run_whose_process_is_gone_without_a_word_was_killed():
    writer = spool.Writer(Path("s"))
    writer.append("run", **HEAD)
    assert not spool.close_dead(Path("s"))  # it lives
    writer.close()
    assert spool.close_dead(Path("s"))
    *_, (record, _) = spool.read(Path("s"))
    assert (record["op"], record["status"]) == ("end", "KILLED")
    assert not spool.close_dead(Path("s"))  # once


def test_sending_everything_again_changes_nothing():
    """An answer that was lost, or a sender killed before it noted what it had sent."""
    folder = written(1500)
    row = sync(folder)
    assert (row.waiting, row.refused, row.points, row.state) == (0, 0, 3000, "sent")
    run = stored(1500)
    assert run.info.status == "FINISHED"
    before = Path.cwd()
    for forgotten in (spool.Sent(run_id=run.info.run_id), spool.Sent()):
        forgotten.save(folder)
        assert sync(folder).waiting == 0
        assert stored(1500).info.run_id == run.info.run_id
    assert Path.cwd() == before


def test_records_that_the_store_refuses_hold_up_no_others():
    folder = written(1)
    writer = spool.Writer(folder)
    writer.append("params", params={"x": "1"})
    writer.append("params", params={"x": "2", "y": "3"})
    writer.append("artifact", folder="", payload="payload/99/gone.txt")
    writer.append("tags", tags={"t": "u"})
    writer.close()
    row = sync(folder)
    assert (row.waiting, row.refused) == (0, 2)
    run = stored(1)
    assert run.data.params == {"x": "1", "y": "3"}
    assert run.data.tags["t"] == "u"


@pytest.mark.parametrize("payload", ["{secret}", "../../../home/key", "payload/0/link"])
def test_log_of_a_stranger_sends_and_deletes_no_file_outside_its_folder(payload, capsys):
    home = Path("home").absolute()
    home.mkdir()
    (home / "key").write_text("secret")
    folder = Path("runs/a/tracking")
    (folder / "payload" / "0").mkdir(parents=True)
    (folder / "payload" / "0" / "link").symlink_to(home / "key")
    (folder / "payload" / "1").symlink_to(home)
    (folder / ".sent.json.partial").symlink_to(home / "key")
    (folder / "sender.lock").symlink_to(home / "made")
    Path("runs/b").symlink_to(home)
    uri = f"sqlite:///{Path('mlflow.db').absolute().as_posix()}"
    writer = spool.Writer(folder)
    writer.append("run", **{**HEAD, "uri": uri, "cwd": str(Path.cwd())})
    for name in (payload.format(secret=home / "key"), "payload/1/key"):
        writer.append("artifact", folder="../x", payload=name)
    writer.close()
    with suppress(SystemExit):
        app.run(["track", "sync", "runs", "--patience", "0.1"])
    (folder / "sender.lock").unlink()
    with suppress(SystemExit):
        app.run(["track", "sync", "runs"])
    assert "2 refused" in capsys.readouterr().out
    assert [path.name for path in home.iterdir()] == ["key"]
    assert (home / "key").read_text() == "secret"
    assert not list(Path().rglob("mlruns/**/key"))
    assert not list(Path().rglob("mlruns/**/link"))


def test_status_and_sync_of_everything_below_a_folder(capsys):
    written(4)
    app.run(["track", "status"])
    assert "6 records waiting" in capsys.readouterr().out
    app.run(["track", "sync"])
    assert "6 records sent, 0 left" in capsys.readouterr().out
    stored(4)
    app.run(["track", "sync", "runs/a"])
    assert "Nothing waits." in capsys.readouterr().out
    app.run(["track", "status", "--all"])
    assert "0 records waiting" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="PATH: found no folder at nowhere"):
        find([Path("nowhere")])


def test_run_of_one_store_is_not_continued_in_another():
    folder = written(1)
    sync(folder)
    with pytest.raises(ConfigError, match=r"--tracking-uri: got 'sqlite:///other.db', but the"):
        sync(folder, "sqlite:///other.db")
    assert not Path("other.db").exists()


def test_store_that_is_away_is_told_of_once_and_when_it_is_back(capsys):
    folder = Path("s")
    folder.mkdir()
    watch = Watch(folder, "http://me:secret@tracker.example")
    for beat, state in enumerate(("away", "away", "sending", "away", "sending"), start=1):
        spool.Sent(state=state, beat=beat, error="no answer").save(folder)
        watch.look_now()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0].split(";")[0] for line in lines] == [
        "Tracking: http://tracker.example is away",
        "Tracking: http://tracker.example is back",
    ]


def test_disk_that_takes_nothing_ends_no_training(monkeypatch, capsys):
    logger = tracking.MLflowLogger()
    logger.log_metrics({"x": 1.0}, 0)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("spanet_lightning.tracking.spool.os.write", full)
        logger.log_metrics({"x": 2.0}, 1)
        logger.log_metrics({"x": 3.0}, 2)
    assert capsys.readouterr().err.count("No space left on device") == 1
    logger.log_metrics({"x": 4.0}, 3)
    logger.finalize("success")
    history = logger.client.get_metric_history(logger.run_id, "x")
    assert [point.value for point in history] == [1.0, 4.0]


def test_without_mlflow_a_run_waits_for_a_machine_that_has_it(monkeypatch, capsys):
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "mlflow", None)
        logger = tracking.MLflowLogger()
        logger.log_metrics({"loss": 1.0, "nan": float("nan")}, 0)
        logger.log_text("text", "a.txt")
        logger.finalize("success")
        assert capsys.readouterr().err.count("MLflow is not installed") == 1
        assert (logger.version, logger.run_id) == ("", "")
        with pytest.raises(ConfigError, match="mlflow: is not installed here"):
            sync(logger.spool)
    assert not Path("mlflow.db").exists()
    assert sync(logger.spool).waiting == 0
    assert stored(1).info.status == "FINISHED"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("config.yaml", "config.yaml"),
        ("pictures/a.png", "pictures/a.png"),
        ("../../etc/passwd", "etc/passwd"),
        ("/etc/passwd", "etc/passwd"),
        ("a/../../b", "a/b"),
        ("C:\\x\\..\\y", "C_/x/y"),
        ("..", "unnamed"),
        ("", "unnamed"),
    ],
)
def test_artifacts_stay_below_their_root(name, expected):
    assert names.inside(name) == expected


def test_artifacts_with_hostile_names_land_in_the_run():
    logger = tracking.MLflowLogger(run_name="../../evil")
    logger.log_text("x", "../../../evil.txt")
    Path("model.ckpt").write_text("weights")
    logger.log_file("model.ckpt", "/../../models")
    logger.finalize("success")
    client = logger.client
    found = {item.path for item in client.list_artifacts(logger.run_id)}
    assert found == {"evil.txt", "models"}
    assert [item.path for item in client.list_artifacts(logger.run_id, "models")] == [
        "models/model.ckpt"
    ]
    assert list(Path().rglob("evil.txt")) == list(Path("mlruns").rglob("artifacts/evil.txt"))
    assert not list(logger.spool.rglob("payload/*/*"))  # not kept twice


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlflow.db", "sqlite:///mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("https://me:geheim@host:5000/mlflow", "https://host:5000/mlflow"),
        ("https://geheim@host", "https://host"),
        ("https://me:ge@heim@host", "https://host"),
        ("postgresql://me:geheim@host/db", "postgresql://me@host/db"),
        ("postgresql+psycopg://host/db?password=geheim&a=b", "postgresql+psycopg://host/db?a=b"),
        ("postgresql://me:ge/heim@host/db", "postgresql://me@host/db"),
    ],
)
def test_address_is_kept_without_its_password(uri, expected):
    assert addresses.without_secret(uri) == expected
    shown = addresses.redact(f"--tracking_uri='{uri}' failed", uri)
    assert "heim" not in shown
    assert "failed" in shown
    assert addresses.redact("geheim, said the server", uri) != "geheim, said the server" or (
        "geheim" not in uri
    )


def test_password_of_the_environment_comes_back_for_its_own_address_alone(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:p%40ss@host")
    assert addresses.complete("https://host") == "https://me:p%40ss@host"
    assert addresses.complete("https://other") == "https://other"
    variables = addresses.credentials("https://me:p%40ss@host")
    assert variables == {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "p@ss"}
    assert tracking.default_logger()["init_args"]["tracking_uri"] == "https://host"


LOGIN = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "geheim"}


@pytest.mark.parametrize(
    ("variable", "typed", "address", "sent"),
    [
        ("https://mine", (), "https://mine/mlflow", True),
        ("https://mine", (), "https://mine:443", True),
        ("https://mine", (), "https://evil", False),
        ("https://mine", (), "https://mine.evil", False),
        ("https://mine", (), "http://mine", False),
        ("https://mine", (), "https://mine:8443", False),
        ("http://mine", (), "http://mine", False),
        ("http://127.0.0.1:5000", (), "http://127.0.0.1:5000", True),
        ("http://127.0.0.1:5000", (), "http://127.0.0.1:5001", False),
        ("", (), "https://evil", False),
        ("", ("--tracking-uri", "https://mine"), "https://mine", True),
        ("", ("--trainer.logger.tracking_uri=https://mine",), "https://mine", True),
        (
            "",
            ('--trainer.logger={"init_args": {"tracking_uri": "https://mine"}}',),
            "https://mine",
            True,
        ),
        ("", ("--trainer.logger.tracking_uri=http://mine",), "http://mine", False),
        ("", ("--model.weights=https://evil/a.pth",), "https://evil", False),
    ],
)
def test_login_is_for_one_server_and_goes_nowhere_unencrypted(
    variable, typed, address, sent, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", variable)
    for key, value in LOGIN.items():
        monkeypatch.setenv(key, value)
    addresses.accept_typed(["fit", *typed])
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


def test_server_of_a_configuration_is_sent_no_login(monkeypatch):
    """All that a run and `sync` send to an address in a file, by whatever code of MLflow's."""
    seen: list[str | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.headers.get("Authorization"))
            self.send_error(500)

        do_POST = do_PUT = do_GET  # noqa: N815

        def log_message(self, *_):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    uri = f"http://127.0.0.1:{found.server_port}"
    for key, value in {**LOGIN, "MLFLOW_TRACKING_TOKEN": "geheim"}.items():
        monkeypatch.setenv(key, value)
    logger = tracking.MLflowLogger(tracking_uri=uri)
    logger.log_metrics({"x": 1.0}, 0)
    logger.finalize("success")
    sync(logger.spool, patience=0.1)
    found.shutdown()
    found.server_close()
    assert len(seen) > 1
    assert set(seen) == {None}


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[int, object]]]]:
    """A server that gives the next of some answers; none left is silence."""
    answers: list[tuple[int, object]] = []
    silence = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if not answers:
                silence.wait(10)
                return
            code, body = answers.pop(0)
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    found = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads = True
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}", answers
    silence.set()
    found.shutdown()
    found.server_close()


def test_look_at_a_server_tells_a_mistake_from_an_outage(server):
    uri, answers = server
    answers += [
        (200, {"experiment": {"lifecycle_stage": "active"}}),
        (404, {"error_code": "RESOURCE_DOES_NOT_EXIST"}),
        (500, {}),
    ]
    assert probe(uri, "spanet") == ""
    assert probe(uri, "spanet") == ""
    assert probe(uri, "spanet").startswith("500")
    assert "no answer" in probe(uri, "spanet")
    assert "refused" in probe("http://127.0.0.1:9", "spanet")
    answers += [
        (200, {"experiment": {"lifecycle_stage": "deleted"}}),
        (401, {}),
        (404, {"detail": "Not Found"}),
    ]
    with pytest.raises(ConfigError, match="'spanet', which was deleted"):
        probe(uri, "spanet")
    login = uri.replace("//", "//me:geheim@")
    with pytest.raises(ConfigError, match="refuses the login: 401") as refused:
        probe(login, "spanet")
    assert "geheim" not in str(refused.value)
    with pytest.raises(ConfigError, match="not MLflow's"):
        probe(uri, "spanet")
    Path("text.db").write_text("no database " * 100)
    with pytest.raises(ConfigError, match="not a database"):
        probe("sqlite:///text.db", "spanet")
