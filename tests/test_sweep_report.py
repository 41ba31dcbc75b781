"""The report of a study: what it counts, what it refuses, and that it is the same each time."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from spanet_lightning import app
from spanet_lightning.errors import EXIT_USER_ERROR, ConfigError
from spanet_lightning.sweep.definition import Ablation, Arm, Search, Study
from spanet_lightning.sweep.ledger import Budget, Claim, Ledger
from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.report import arms, build, png
from spanet_lightning.sweep.report.gather import Gathered, gather
from spanet_lightning.sweep.report.importance import importances
from spanet_lightning.sweep.report.scene import axis
from spanet_lightning.sweep.report.search_figures import pareto_front
from spanet_lightning.sweep.stored_trial import write_record
from tests import sweep_studies as made
from tests.sweep_studies import add_cell, fill_ablation, fill_search, store

URL = "sqlite:///sweeps.db"
SEARCH = made.search()


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Draw figures as PNG only where the test is about them: it takes most of the time."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if "png" not in request.node.name:
        monkeypatch.setattr(png, "available", lambda: False)


@pytest.fixture(scope="session")
def databases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of databases with a study each, to be copied."""
    folder = tmp_path_factory.mktemp("databases")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for study, fill in ((made.ablation(range(2)), fill_ablation), (SEARCH, fill_search)):
        fill(study, stored(study, f"sqlite:///{folder}/{study.name}.db"))
    return folder


def stored(study: Study, url: str | None = None) -> optuna.Study:
    return optuna.create_study(
        study_name=study.name,
        storage=url,
        directions=["maximize" if o.goal == "max" else "minimize" for o in study.objectives],
    )


def ablation(study: Study | None = None, **kwargs: float) -> Gathered:
    study = study or made.ablation()
    found = stored(study)
    fill_ablation(study, found, **kwargs)
    return gather(found, study)


def search(*, several: bool = False) -> Gathered:
    study = made.search(several=several)
    found = stored(study)
    fill_search(study, found)
    return gather(found, study)


def method(study: Study) -> Ablation:
    assert isinstance(study.method, Ablation)
    return study.method


# -- what is counted


def test_rows_are_what_one_computes_by_hand() -> None:
    found = ablation()
    control, without, *_ = arms.rows(found)
    values = {
        (t.record.arm, t.record.seed): t.values[0] for t in found.trials if t.state == "COMPLETE"
    }
    ours = np.array([values["without SRF", seed] for seed in range(8)])
    theirs = np.array([values["with SRF", seed] for seed in range(8)])
    assert without.quantities["val/top1"].mean == pytest.approx(ours.mean())
    assert without.quantities["val/top1"].sd == pytest.approx(ours.std(ddof=1))
    assert without.comparison is not None
    assert without.comparison.differences == pytest.approx(ours - theirs)
    assert without.comparison.verdict == "worse"
    assert control.comparison is None


def test_pruned_failed_and_running_trials_never_enter_a_mean() -> None:
    study = made.ablation()
    found = stored(study)
    fill_ablation(study, found)
    before = build.document(gather(found, study)).sections[0].blocks[0]
    for state in (TrialState.PRUNED, TrialState.FAIL):
        for arm in method(study).arms:
            add_cell(study, found, arm, 0, 1000.0, state=state, failure="error", reason="x")
    found.enqueue_trial({"arm": "with SRF", "seed": 0})
    found.ask()
    after = gather(found, study)
    assert build.document(after).sections[0].blocks[0] == before
    assert (after.budget.pruned, after.budget.failed, after.budget.running) == (4, 4, 1)


def test_an_arm_without_a_seed_is_not_compared_and_the_seed_is_named() -> None:
    study = made.ablation(range(6))
    found = stored(study)
    for arm in method(study).arms:
        for seed in range(6):
            state = TrialState.FAIL if (arm.name, seed) == ("kernels = 9", 4) else None
            value = 0.9 + 0.001 * seed + made.EFFECT.get(arm.name, 0.0) + 0.0001 * (seed % 2)
            add_cell(study, found, arm, seed, value, state=state or TrialState.COMPLETE)
    report = gather(found, study)
    *_, last = arms.rows(report)
    assert last.comparison is None
    assert "lacks seed 4" in last.refused
    told = build.document(report)
    assert any("'kernels = 9' lacks seed 4" in warning for warning in told.warnings)
    assert any(warning.startswith("Unfinished: 23 of 24") for warning in told.warnings)
    # It still counts as one of three comparisons: 3 × 2 / 2^6, and not 2 × 2 / 2^6.
    without = arms.rows(report)[1].comparison
    assert without is not None
    assert without.least_holm_p == pytest.approx(3 * 2 / 2**6)


def test_nothing_can_be_compared_with_a_control_that_has_no_result() -> None:
    study = made.ablation(range(2))
    found = stored(study)
    add_cell(study, found, method(study).arms[1], 0, 0.9)
    told = build.document(gather(found, study))
    assert told.verdict.startswith("No answer yet")
    assert stored(study).trials == []
    assert build.files(gather(stored(study), study))["report.html"]  # and of no trials at all


def test_arms_of_other_cost_are_flagged() -> None:
    found = ablation()
    flagged = {row.arm.name: row.costly for row in arms.rows(found)}
    assert flagged == {
        "with SRF": False,
        "without SRF": False,
        "kernels = 3+5+7, SRF = on": True,  # 8 % more MACs
        "kernels = 9": False,  # 2 %
    }
    assert any("108 % of the control's" in w for w in build.document(found).warnings)


def test_three_seeds_are_inconclusive_and_the_report_says_why() -> None:
    told = build.document(ablation(made.ablation(range(3)), sd=1e-5))
    assert told.verdict.startswith("Inconclusive: 3 seeds can't tell 3 arms")
    assert "at least 7 seeds" in told.verdict
    text = build.files(ablation(made.ablation(range(3))))["report.md"].decode()
    assert "too few seeds" in text
    assert "†: of fewer than 5 seeds" in text


def test_a_verdict_says_what_is_better_and_what_is_worse() -> None:
    said = build.document(ablation()).verdict
    assert re.search(r"\*\*kernels = 9\*\* \(\+0\.0\d+, .*\) is better than the control", said)
    assert re.search(r"\*\*without SRF\*\* \(−0\.0\d+, .*\) is worse", said)
    assert "1 arm stays inconclusive" in said


# -- what is refused


def tampered(databases: Path, study: Study, *statements: str) -> str:
    """Return what is said of a study after somebody changed the database."""
    shutil.copy(databases / f"{study.name}.db", "sweeps.db")
    gather(optuna.load_study(study_name=study.name, storage=URL), study)  # is in order so far
    with closing(sqlite3.connect("sweeps.db")) as database, database:
        for statement in statements:
            assert database.execute(statement).rowcount > 0
    with pytest.raises(ConfigError) as caught:
        gather(optuna.load_study(study_name=study.name, storage=URL), study)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("DELETE FROM trials WHERE number = 3", "trial 3 was deleted"),
        (
            "UPDATE trial_values SET value = 0.99 WHERE trial_id = 2",
            "trial 1 (arm 'without SRF', seed 0) was changed",
        ),
        ("UPDATE trials SET state = 'FAIL' WHERE number = 1", "trial 1 (arm"),
        ("UPDATE trials SET state = 'RUNNING' WHERE number = 1", "trial 1 (arm"),
        (
            "UPDATE trial_user_attributes SET value_json = '5' WHERE trial_id = 2 AND key = 'seed'",
            "trial 1 (arm 'without SRF', seed 5) was changed",
        ),
        (
            "UPDATE trial_user_attributes SET value_json = '{\"test/top1\": 1.0}' "
            "WHERE trial_id = 1 AND key = 'test'",
            "trial 0 (arm 'with SRF', seed 0) was changed",
        ),
        (
            "UPDATE trial_params SET param_value = 3 WHERE trial_id = 1 AND param_name = 'arm'",
            "trial 0 (arm 'with SRF', seed 0) was changed after it ended: its parameters",
        ),
        (
            "DELETE FROM study_user_attributes WHERE key = 'ended:1'",
            "trial 1 (arm 'without SRF', seed 0) is complete, but was not ended by",
        ),
    ],
)
def test_a_trial_that_was_changed_or_deleted_is_refused_by_name(
    statement: str, said: str, databases: Path
) -> None:
    assert said in tampered(databases, made.ablation(range(2)), statement)


def test_parameters_of_a_search_that_were_changed_are_refused(databases: Path) -> None:
    statement = "UPDATE trial_params SET param_value = 0.7 WHERE trial_id = 1 AND param_name = 'lr'"
    assert "trial 0 was changed" in tampered(databases, SEARCH, statement)


def test_two_results_of_one_cell_are_refused() -> None:
    study = made.ablation(range(2))
    found = stored(study)
    fill_ablation(study, found)
    number = add_cell(study, found, method(study).arms[1], 1, 0.95)
    with pytest.raises(ConfigError, match=rf"trials 5 and {number} are both arm 'without SRF'"):
        gather(found, study)


def test_a_killed_worker_s_trial_without_a_fingerprint_is_a_failure_like_others() -> None:
    study = made.ablation(range(2))
    found = stored(study)
    fill_ablation(study, found)
    found.enqueue_trial({"arm": "with SRF", "seed": 0})
    trial = found.ask()
    found.tell(trial, state=TrialState.FAIL)
    assert gather(found, study).budget.failed == 1


# -- the files


def test_the_same_trials_give_the_same_bytes_in_png_too(databases: Path) -> None:
    study = made.ablation(range(2))
    url = f"sqlite:///{databases}/{study.name}.db"
    again = optuna.load_study(study_name=study.name, storage=url)
    assert build.files(gather(again, study)) == build.files(ablation(study))


def test_another_process_writes_the_same_bytes(tmp_path: Path, databases: Path) -> None:
    study = SEARCH
    shutil.copy(databases / f"{study.name}.db", "sweeps.db")
    build.write(tmp_path / "here", build.files(search()))
    subprocess.run(
        [sys.executable, "-m", "spanet_lightning.app", "report", study.name, "--output", "there"],
        check=True,
        env={**os.environ, "PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo"},
        stdout=subprocess.DEVNULL,
    )
    for path in (tmp_path / "here").rglob("*.*"):
        other = tmp_path / "there" / path.relative_to(tmp_path / "here")
        assert path.read_bytes() == other.read_bytes(), path.name
    assert not list(tmp_path.rglob(".*"))  # nothing unfinished is left


class Page(HTMLParser):
    """What the tests ask of a page: open tags, ids, and attributes that fetch something."""

    VOID = ("meta", "br", "hr", "img", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.append(name)
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href"):
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("kind", ["ablation", "search", "several"])
def test_the_page_needs_nothing_but_itself_and_can_be_read_aloud(kind: str) -> None:
    found = ablation() if kind == "ablation" else search(several=kind == "several")
    files = build.files(found)
    text = files["report.html"].decode()
    page = Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not {"script", "link", "iframe", "object", "embed"} & set(page.tags)
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "url(" not in text
    assert "@import" not in text
    # Each figure has a title and a description; each table a caption and headed rows and columns.
    figures = re.findall(r'<svg[^>]*role="img"[^>]*aria-labelledby="(\S+) (\S+)"', text)
    assert len(figures) == text.count("<svg") >= 2
    assert {name for pair in figures for name in pair} <= set(page.ids)
    assert page.tags.count("caption") == page.tags.count("table")
    assert text.count("<th ") == text.count('<th scope="col"') + text.count('<th scope="row"')
    for name, content in files.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(content)  # well-formed on its own  # noqa: S314
    for name in re.findall(r"\]\((figures/\w+\.svg)\)", files["report.md"].decode()):
        assert name in files


def test_names_of_a_study_can_t_become_markup() -> None:
    evil = "<script>alert(1)</script> | x ![a](http://b)"
    study = made.ablation(range(2), (Arm("control"), Arm(evil, {"a.b": evil})))
    study = replace(study, question=f"Is {evil} safe?", note=f"{evil} `{evil}")
    files = build.files(ablation(study))
    html = files["report.html"].decode()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 5
    markdown = files["report.md"].decode()
    outside_code = re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.DOTALL)
    assert "<script" not in outside_code
    assert "](http" not in outside_code
    header, _, first = re.search(r"(\| arm \|.*)\n(\|.*)\n(\|.*)\n", markdown).groups()  # type: ignore[union-attr]
    cells = [line.replace("\\|", "").count("|") for line in (header, first)]
    assert cells[0] == cells[1]
    for name, content in files.items():
        if name.endswith(".svg"):
            ElementTree.fromstring(content)  # noqa: S314


def test_data_files_hold_what_the_tables_round() -> None:
    found = ablation()
    files = build.files(found)
    whole = json.loads(files["report.json"])
    lines = list(csv.DictReader(io.StringIO(files["arms.csv"].decode())))
    row = next(r for r in arms.rows(found) if r.arm.name == "kernels = 9")
    line = next(one for one in lines if one["arm"] == "kernels = 9")
    entry = next(one for one in whole["arms"] if one["arm"] == "kernels = 9")
    assert row.comparison is not None
    assert float(line["p holm"]) == entry["p holm"] == row.comparison.holm_p
    assert entry["differences"] == list(row.comparison.differences)
    assert whole["study"] == found.study.as_dict()
    trials = list(csv.DictReader(io.StringIO(files["trials.csv"].decode())))
    assert [int(one["trial"]) for one in trials] == list(range(32))
    assert json.loads(trials[0]["command"])[:2] == ["lightning", "fit"]
    json.loads(files["report.json"], parse_constant=lambda name: pytest.fail(name))


def test_provenance_names_what_differs_and_warns_of_it() -> None:
    study = made.ablation(range(2))
    found = stored(study)
    for arm in method(study).arms:
        for seed in range(2):
            dirty = arm.name == "kernels = 9"
            add_cell(study, found, arm, seed, 0.9, dirty=dirty, commit="aaa" if dirty else "bbb")
    told = build.document(gather(found, study))
    assert any("2 trials was not committed (trials 6, 7)" in w for w in told.warnings)
    assert any("more than one commit: bbb and aaa" in w for w in told.warnings)
    text = build.files(gather(found, study))["report.md"].decode()
    assert "The same for every row: data digits, 1,797 images; hardware AMD EPYC, 2 cores" in text
    assert "| `aaa` + |" in text
    assert "lightning fit --config configs/digits/spanetv2.yaml --seed_everything=1" in text


def test_failures_are_told_with_their_reason_and_their_retry() -> None:
    study = made.ablation(range(1))
    found = stored(study)
    control = method(study).arms[0]
    first = add_cell(
        study, found, control, 0, None, state=TrialState.FAIL, failure="killed", reason="by SIGKILL"
    )
    second = add_cell(study, found, control, 0, 0.9, attempt=2, retry_of=first)
    report = gather(found, study)
    assert (report.budget.failed, report.budget.retried) == (1, 1)
    row = next(
        line
        for line in build.files(report)["report.md"].decode().splitlines()
        if "by SIGKILL" in line
    )
    assert row == f"| {first} | with SRF, seed 0 | killed | by SIGKILL | {second} |"


# -- searches


def test_importance_finds_the_parameter_that_matters_and_repeats() -> None:
    found = search()
    shares = importances(found.complete, 0, "max")
    assert shares[0].name == "lr"
    assert sum(one.share for one in shares) == pytest.approx(1)
    assert all(one.low <= one.high for one in shares)
    assert importances(found.complete, 0, "max") == shares
    assert importances(found.complete[:9], 0, "max") == ()


def test_the_test_split_is_told_of_the_selected_trial_alone() -> None:
    found = search()
    best = max(found.complete, key=lambda t: t.values[0])
    text = build.files(found)["report.md"].decode()
    table = text[text.index("The best 10 trials") : text.index("## History")]
    lines = [line for line in table.splitlines() if re.match(r"\| \**\d", line)]
    assert len(lines) == 10
    assert lines[0].startswith(f"| **{best.number}** |")
    assert lines[0].endswith(f"| {best.record.test['test/top1']:.4f} |")
    assert all(line.endswith("| – |") for line in lines[1:])
    assert "confirm it by an ablation" in text


def test_the_pareto_front_is_what_no_other_trial_beats() -> None:
    found = search(several=True)
    front = pareto_front(found.complete, found.study.objectives)
    for mine in found.complete:
        beaten = any(
            o.values[0] >= mine.values[0]
            and o.values[1] <= mine.values[1]
            and o.values != mine.values
            for o in found.complete
        )
        assert (mine.number in front) != beaten
    assert "figures/pareto.svg" in build.files(found)
    best = optuna.study.study.Study.best_trials.fget  # type: ignore[attr-defined]
    study = made.search(several=True)
    again = stored(study)
    fill_search(study, again)
    assert {t.number for t in best(again)} == front


def test_a_search_of_few_trials_says_what_it_can_t_tell() -> None:
    study = made.search()
    found = stored(study)
    store(found, TrialRecord(), TrialState.COMPLETE, (0.5,), {}, {}, {1: 0.4})
    assert isinstance(study.method, Search)
    text = build.files(gather(found, study))["report.md"].decode()
    assert "Importance is not told of fewer than 10 complete trials" in text


# -- figures


def test_figures_are_there_without_matplotlib() -> None:
    files = build.files(ablation())
    assert not [name for name in files if name.endswith(".png")]
    assert "figures/seeds.svg" in files


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="needs matplotlib")
def test_png_has_the_size_of_the_figure_and_no_date() -> None:
    content = build.files(ablation())["figures/seeds.png"]
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(content[16:20]) == 2 * 1040
    assert b"tEXt" not in content


@pytest.mark.parametrize("values", [[0.5], [0.0], [1e-7, 2e-7], [-3.0, 1e6], [float("nan"), 1.0]])
def test_an_axis_has_room_for_any_values(values: list[float]) -> None:
    found = axis(values, 0, 100)
    finite = [v for v in values if v == v]
    assert all(0 <= found(v) <= 100 for v in finite)
    assert 1 <= len(found.ticks(5)) <= 12


# -- the command


def test_the_command_writes_the_report_and_tells_the_verdict(
    tmp_path: Path, databases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = made.ablation(range(2))
    shutil.copy(databases / f"{study.name}.db", "sweeps.db")
    app.main(["report", study.name])
    folder = tmp_path / "reports" / study.name
    assert {"report.md", "report.html", "report.json", "arms.csv", "trials.csv"} <= {
        path.name for path in folder.iterdir()
    }
    assert "report.html" in capsys.readouterr().out


FILE = """\
name: digits-srf
question: Does SRF pay off?
note: A new note.
config: configs/digits/spanetv2.yaml
set: {trainer.max_epochs: 8}
objective: {metric: val/top1, goal: max}
test: test/top1
ablation:
  seeds: [0, 1]
  control: with SRF
  arms:
    with SRF: {published: 82.9}
    without SRF: {set: {model.backbone.srf: false}}
"""


def test_a_file_reports_what_was_run_with_its_data_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = [Arm("with SRF", {}, 83.4), Arm("without SRF", {"model.backbone.srf": False})]
    study = made.ablation(range(2), arms)
    elsewhere = {**study.overrides, "data.root": "/there", "trainer.log_every_n_steps": 1}
    study = replace(study, overrides=elsewhere)
    (tmp_path / "configs/digits").mkdir(parents=True)
    (tmp_path / "configs/digits/spanetv2.yaml").touch()
    fill_ablation(study, stored(study, "sqlite:///sweeps.db"))
    Path("study.yaml").write_text(FILE)
    app.main(["report", "study.yaml"])
    text = (tmp_path / "reports" / study.name / "report.md").read_text()
    assert "A new note." in text
    assert "Does SRF pay off?" in text
    assert "82.9" in text
    Path("study.yaml").write_text(FILE.replace("trainer.max_epochs: 8", "trainer.max_epochs: 9"))
    assert "trainer.max_epochs was 8, is 9" in refused(capsys, "study.yaml")


def refused(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    with pytest.raises(SystemExit) as caught:
        app.main(["report", *args])
    assert caught.value.code == EXIT_USER_ERROR
    said = capsys.readouterr().err.strip()
    assert "\n" not in said
    return said


def test_mistakes_are_one_line(
    tmp_path: Path, databases: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "sweeps.db" in refused(capsys, "digits-srf")
    shutil.copy(databases / "digits-srf.db", "sweeps.db")
    assert "did you mean 'digits-srf'" in refused(capsys, "digits-sfr")
    (tmp_path / "file").touch()
    assert "--output: got 'file'" in refused(capsys, "digits-srf", "--output", "file")


def test_a_worker_killed_while_it_wrote_how_its_trial_ended_spoils_no_report() -> None:
    study = made.ablation(range(1))
    for kept_too in (False, True):
        study = replace(study, name=f"killed-{kept_too}")
        ledger = Ledger(URL, study)
        found = ledger.create()
        claim = ledger.claim("worker", Budget())
        assert isinstance(claim, Claim)
        record = replace(claim.record, failure=None, reason="")
        digest = record.digest(claim.number, "COMPLETE", (0.9,))
        write_record(ledger.storage, claim.trial._trial_id, claim.number, record, digest)
        if kept_too:  # all but that it is complete
            found.set_user_attr(f"ended:{claim.number}", digest)
        assert gather(found, study).budget.running == 1
        claim.file.release()
        ledger.recovery.settle()
        report = gather(optuna.load_study(study_name=study.name, storage=URL), study)
        assert (report.budget.complete, report.budget.failed) == (0, 1)
