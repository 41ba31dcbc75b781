"""The report of a study: what counts, what is refused, what it says, and its files."""

from __future__ import annotations

import csv
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from spanet_lightning import app
from spanet_lightning.errors import ConfigError
from spanet_lightning.report.arms import arm_results
from spanet_lightning.report.build import build_report, report_files
from spanet_lightning.report.results import Results, load_results
from spanet_lightning.sweep.study import Arm, Study
from tests import sweep_studies as made
from tests.helpers import refused
from tests.sweep_studies import add_cell, fill_ablation, fill_search, store

optuna.logging.set_verbosity(optuna.logging.WARNING)


def stored(study: Study, url: str | None = None) -> optuna.Study:
    directions = [o.direction for o in study.objectives]
    return optuna.create_study(study_name=study.name, storage=url, directions=directions)


def ablation(study: Study | None = None, **kwargs: float) -> Results:
    study = study or made.ablation()
    found = stored(study)
    fill_ablation(study, found, **kwargs)
    return load_results(found, study)


def search(*, several: bool = False) -> Results:
    study = made.search(several=several)
    found = stored(study)
    fill_search(study, found)
    return load_results(found, study)


def with_margin(margin: float) -> Study:
    study = made.ablation()
    objective = study.objectives[0].model_copy(update={"margin": margin})
    return study.model_copy(update={"objectives": (objective,)})


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    results = ablation()
    return report_files(results, build_report(results))


# -- what counts, and what is refused


def test_arms_are_what_one_computes_by_hand() -> None:
    results = ablation()
    control, without, *_ = arm_results(results)
    values = {(t.record.arm, t.record.seed): t.values[0] for t in results.complete}
    ours = np.array([values["without SRF", seed] for seed in range(8)])
    theirs = np.array([values["with SRF", seed] for seed in range(8)])
    assert without.quantities["val/top1"].mean == pytest.approx(ours.mean())
    assert without.quantities["val/top1"].sd == pytest.approx(ours.std(ddof=1))
    assert without.comparison is not None
    assert without.comparison.differences == pytest.approx(ours - theirs)
    assert without.comparison.verdict == "worse"
    assert control.comparison is None


def test_only_complete_trials_enter_a_mean() -> None:
    study = made.ablation(range(3))
    found = stored(study)
    fill_ablation(study, found)
    before = [arm.quantities for arm in arm_results(load_results(found, study))]
    for state in (TrialState.PRUNED, TrialState.FAIL):
        for arm in study.ablation.arms.values():  # type: ignore[union-attr]
            add_cell(study, found, arm, 0, 1000.0, state=state, failure="error", reason="x")
    found.enqueue_trial({"arm": "with SRF", "seed": 0})
    found.ask()
    after = load_results(found, study)
    assert [arm.quantities for arm in arm_results(after)] == before
    assert (after.budget.pruned, after.budget.failed, after.budget.running) == (4, 4, 1)
    text = report_files(after, build_report(after))["report.md"].decode()
    assert "| error | x |" in text


def test_an_arm_without_a_seed_is_not_compared_and_the_seed_is_named() -> None:
    study = made.ablation(range(6))
    found = stored(study)
    for arm in study.ablation.arms.values():  # type: ignore[union-attr]
        for seed in range(6):
            failed = (arm.name, seed) == ("kernels = 9", 4)
            state = TrialState.FAIL if failed else TrialState.COMPLETE
            value = 0.9 + 0.001 * seed + made.EFFECT.get(arm.name, 0.0) + 0.0001 * (seed % 2)
            add_cell(study, found, arm, seed, value, state=state)
    results = load_results(found, study)
    *_, last = arm_results(results)
    assert last.comparison is None
    assert "lacks seed 4" in last.refusal
    report = build_report(results)
    assert any("'kernels = 9' lacks seed 4" in warning for warning in report.warnings)
    assert any(warning.startswith("Unfinished: 23 of 24") for warning in report.warnings)
    # It still counts as one of three comparisons: 3 × 2 / 2^6, and not 2 × 2 / 2^6.
    without = arm_results(results)[1].comparison
    assert without is not None
    assert without.min_holm_p == pytest.approx(3 * 2 / 2**6)


def test_a_study_without_results_has_a_report() -> None:
    for study in (made.ablation(range(2)), made.search()):
        results = load_results(stored(study), study)
        report = build_report(results)
        assert report.verdict.startswith("No answer yet")
        assert report_files(results, report)["report.html"]


def test_two_results_of_one_cell_and_undeclared_cells_are_refused() -> None:
    study = made.ablation(range(2))
    found = stored(study)
    fill_ablation(study, found)
    arm = list(study.ablation.arms.values())[1]  # type: ignore[union-attr]
    add_cell(study, found, arm, 1, 0.95)
    with pytest.raises(ConfigError, match=r"trials \d and 8 are both arm 'without SRF', seed 1"):
        load_results(found, study)
    other = stored(study)
    add_cell(made.ablation(range(8)), other, arm, 7, 0.95)
    with pytest.raises(ConfigError, match="seed 7, which the study does not declare"):
        load_results(other, study)


# -- what it says


def test_the_verdict_says_what_is_better_worse_equivalent_and_undecided() -> None:
    said = build_report(ablation()).verdict
    assert re.search(r"kernels = 9 \(\+0\.0\d+, 95% CI .*\) is better than the control", said)
    assert re.search(r"without SRF \(−0\.0\d+, .*\) is worse than", said)
    assert re.search(r"SRF = on is undecided .*8 seeds detect a difference of 0\.00\d", said)
    assert re.search(r"\d+ further seeds would decide with 80% power", said)
    said = build_report(ablation(with_margin(0.02))).verdict
    assert "equivalent to the control (with SRF) within ±0.02 in val/top1" in said


def test_too_few_seeds_and_identical_arms_are_said() -> None:
    said = build_report(ablation(made.ablation(range(3)), sd=1e-5)).verdict
    assert "3 comparisons cannot reach p ≤ 0.05 with 3 seeds; at least 7 are required" in said
    study = made.ablation(range(4), [Arm(name="a"), Arm(name="b", overrides={"x": 1})])
    found = stored(study)
    for arm in study.ablation.arms.values():  # type: ignore[union-attr]
        for seed in range(4):
            add_cell(study, found, arm, seed, 0.9 + 0.01 * seed)
    said = build_report(load_results(found, study)).verdict
    assert "b agrees with the control exactly in all 4 seeds" in said


def test_a_test_split_that_disagrees_is_said_and_decides_nothing() -> None:
    study = made.ablation(range(6), [Arm(name="a"), Arm(name="b", overrides={"x": 1})])
    found = stored(study)
    for i, arm in enumerate(study.ablation.arms.values()):  # type: ignore[union-attr]
        for seed in range(6):
            noise = 0.01 * (-1) ** (seed + i) + 0.0001 * seed
            tested = {"test/top1": 0.9 - 0.02 * i + 0.0002 * seed * i}
            add_cell(study, found, arm, seed, 0.9 + noise, test=tested)
    report = build_report(load_results(found, study))
    assert "b is undecided" in report.verdict
    (warning,) = [w for w in report.warnings if "disagree" in w]
    assert "b: undecided by val/top1" in warning
    assert "no basis of the verdict" in warning


def test_arms_of_other_cost_are_flagged() -> None:
    flagged = {arm.arm.name: arm.differs_in_cost for arm in arm_results(ablation())}
    assert flagged.pop("kernels = 3+5+7, SRF = on")  # 8 % more MACs
    assert not any(flagged.values())  # 2 %
    assert any("108% of the control's" in w for w in build_report(ablation()).warnings)


def test_a_search_names_its_best_trial_and_its_pareto_front() -> None:
    results = search()
    best = max(results.complete, key=lambda t: t.values[0])
    report = build_report(results)
    assert f"trial {best.number} with val/top1" in report.verdict
    assert {f.name for f in report.figures} == {
        f"figures/{name}" for name in ("history", "importance", "slices")
    }
    results = search(several=True)
    report = build_report(results)
    assert f"{len(results.stored.best_trials)} on the Pareto front" in report.verdict
    assert report.figures[0].name == "figures/pareto"


def test_repeated_points_of_a_search_are_no_further_evidence() -> None:
    study = made.search()
    found = stored(study)
    trial = search().complete[0]
    for _ in range(3):
        distributions = {k: v for k, v in _distributions(search()).items() if k in trial.params}
        store(found, trial.record, TrialState.COMPLETE, (0.9,), trial.params, distributions, {})
    warnings = build_report(load_results(found, study)).warnings
    assert any("2 trials repeat a point" in warning for warning in warnings)


def _distributions(results: Results) -> dict[str, optuna.distributions.BaseDistribution]:
    return {k: v for t in results.stored.trials for k, v in t.distributions.items()}


# -- the files


class Page(HTMLParser):
    """Open tags, ids and addresses of a page."""

    VOID = ("meta", "br", "img")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            assert not name.startswith("on")
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src"):
                self.addresses.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_the_page_is_whole_and_needs_no_other_file(files: dict[str, bytes]) -> None:
    page = Page()
    page.feed(files["report.html"].decode())
    assert page.open == []
    links = [a[1:] for a in page.addresses if a.startswith("#")]
    assert links == page.ids
    images = [a for a in page.addresses if not a.startswith("#")]
    assert len(images) == 2
    assert all(a.startswith("data:image/svg+xml;base64,") for a in images)


def test_names_never_become_markup() -> None:
    name = "<script>alert(1)</script>|`*$_&#%{}\\~^"
    study = made.ablation(range(2), (Arm(name="control"), Arm(name=name, overrides={"a.b": name})))
    results = ablation(study)
    files = report_files(results, build_report(results))
    page = Page()
    page.feed(files["report.html"].decode())
    assert any(name in text for text in page.texts)
    markdown = files["report.md"].decode()
    outside_code = re.sub(r"(`+).*?\1", "", markdown.replace("\\`", ""))
    assert not re.search(r"(?<!\\)<script", outside_code)
    columns = next(li for li in markdown.splitlines() if li.startswith("| control | 2 |"))
    row = next(li for li in markdown.splitlines() if "alert" in li and li.startswith("| "))
    assert len(re.split(r"(?<!\\)\|", row)) == len(columns.split("|"))
    assert r"$\_\&\#\%\{\}\textbackslash{}".replace("$", r"\$") in files["tables.tex"].decode()


def test_csv_and_json_hold_the_same_numbers(files: dict[str, bytes]) -> None:
    rows = list(csv.DictReader(files["arms.csv"].decode().splitlines()))
    document = json.loads(files["report.json"], parse_constant=pytest.fail)
    assert [row["arm"] for row in rows] == [arm["arm"] for arm in document["arms"]]
    for row, arm in zip(rows[1:], document["arms"][1:], strict=True):
        assert float(row["p holm"]) == arm["p holm"]
        assert row["verdict"] == arm["verdict"]
        assert arm["test/top1 ci low"] < arm["test/top1 ci high"]
    trials = list(csv.DictReader(files["trials.csv"].decode().splitlines()))
    assert len(trials) == 32


def test_a_cell_is_no_formula_of_a_spreadsheet() -> None:
    study = made.ablation(range(2), (Arm(name="control"), Arm(name="=1+1")))
    results = ablation(study)
    rows = report_files(results, build_report(results))["arms.csv"].decode()
    assert "\n'=1+1," in rows


@pytest.mark.parametrize("results", [ablation, search], ids=["ablation", "search"])
def test_the_same_trials_give_the_same_bytes(results) -> None:
    first, second = (results() for _ in range(2))
    one = report_files(first, build_report(first))
    assert one == report_files(second, build_report(second))


# -- the command


@pytest.fixture
def database(tmp_path: Path) -> Study:
    study = made.ablation(range(2))
    fill_ablation(study, stored(study, "sqlite:///sweeps.db"))
    return study


def test_the_command_writes_the_files_and_prints_the_verdict(
    tmp_path: Path, database: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    app.main(["report", database.name])
    folder = tmp_path / "reports" / database.name
    names = {path.name for path in folder.iterdir()}
    texts = {"report.md", "report.html", "tables.tex"}
    assert names == {*texts, "report.json", "arms.csv", "trials.csv", "figures"}
    assert "report.html" in capsys.readouterr().out
    shutil.rmtree(folder)
    app.main(["report", database.name, "--format", "latex"])
    assert texts & {path.name for path in folder.iterdir()} == {"tables.tex"}


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["digits-sfr"], "did you mean 'digits-srf'"),
        (["digits-srf", "--output", "file"], "--output: got 'file'"),
        (["digits-srf", "--format", "docx"], "--format: got 'docx'"),
        (["digits-srf", "--images", "x"], "--images: requires --analysis"),
        (["digits-srf", "--storage", "sqlite:///none.db"], "none.db"),
    ],
)
def test_a_mistake_is_one_line(
    args: list[str], expected: str, database: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").touch()
    assert expected in refused(["report", *args], capsys, app.main)


FILE = """\
name: digits-srf
question: Does SRF pay off?
note: A new note.
config: configs/digits/spanetv2.yaml
overrides: {trainer.max_epochs: 8}
objective: {metric: val/top1, direction: maximize}
test: test/top1
ablation:
  seeds: [0, 1]
  control: with SRF
  arms:
    with SRF: {published: 82.9}
    without SRF: {overrides: {model.backbone.srf: false}}
"""


def test_a_file_reports_what_was_run_with_its_data_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = [
        Arm(name="with SRF", published=83.4),
        Arm(name="without SRF", overrides={"model.backbone.srf": False}),
    ]
    study = made.ablation(range(2), arms)
    elsewhere = {**study.overrides, "data.root": "/there", "trainer.log_every_n_steps": 1}
    study = study.model_copy(update={"overrides": elsewhere})
    fill_ablation(study, stored(study, "sqlite:///sweeps.db"))
    (tmp_path / "configs/digits").mkdir(parents=True)
    (tmp_path / "configs/digits/spanetv2.yaml").touch()
    Path("study.yaml").write_text(FILE)
    app.main(["report", "study.yaml"])
    text = (tmp_path / "reports" / study.name / "report.md").read_text()
    assert "A new note." in text
    assert "Does SRF pay off?" in text
    assert "82.9" in text
    changes = {
        "trainer.max_epochs: 8": ("trainer.max_epochs: 9", "trainer.max_epochs was 8, is 9"),
        "direction: maximize}": (
            "direction: maximize, margin: 0.01}",
            "margin was absent, is 0.01",
        ),
    }
    for old, (new, said) in changes.items():
        Path("study.yaml").write_text(FILE.replace(old, new))
        assert said in refused(["report", "study.yaml"], capsys, app.main)


def test_added_seeds_and_dropped_arms_are_told_apart() -> None:
    """Verdicts after a look are exploratory; a dropped arm has none, and the study is complete."""
    study = made.ablation(range(8))
    opened = stored(study)
    fill_ablation(study, opened)
    assert "xploratory" not in build_report(load_results(opened, study)).verdict
    opened.set_user_attr("extended", [6])
    report = build_report(load_results(opened, study))
    assert report.verdict.startswith("Exploratory, as seeds were added after 6:")
    assert any("error rate of 5% does not hold" in warning for warning in report.warnings)
    opened = stored(study)
    fill_ablation(study, opened, skip=lambda arm, seed: arm == "without SRF" and seed > 2)
    opened.set_user_attr("dropped", {"without SRF": 3})
    for seed in range(3, 8):
        arm = study.ablation.arms["without SRF"]  # type: ignore[union-attr]
        made.add_cell(study, opened, arm, seed, None, state=TrialState.FAIL, failure="dropped")
    results = load_results(opened, study)
    report = build_report(results)
    assert "without SRF (after 3 seeds); 5 trials saved" in report.verdict
    assert "could not be compared" not in report.verdict
    assert not results.budget.unfinished


@pytest.mark.parametrize("left", [{"with SRF"}, {"without SRF"}, set()])
def test_arms_without_any_result_are_reported(left: set[str]) -> None:
    """As when a study has just begun, or all trials of an arm failed."""
    study = made.ablation(range(2))
    opened = stored(study)
    fill_ablation(study, opened, skip=lambda arm, seed: arm not in left or seed > 0)
    results = load_results(opened, study)
    report = build_report(results)
    assert "No answer yet" in report.verdict
    assert {"report.html", "arms.csv"} <= report_files(results, report).keys()
