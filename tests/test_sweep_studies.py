"""If one of these fails, a study that the project ships would not start, or is not what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from spanet_lightning.sweep import plan
from spanet_lightning.sweep.check import check_study
from spanet_lightning.sweep.study import read_study

ROOT = Path(__file__).parent.parent
STUDIES = sorted((ROOT / "sweeps").rglob("*.yaml"))
# Trials that each one declares: arms × seeds, or what the search may spend.
TRIALS = {
    "v1_table5": 9 * 3,
    "v1_radius_balance": 3 * 3 * 3,
    "v1_radius_balance_search": 40,
    "v2_kernels": 11 * 3,
    "v2_srf": 3 * 3,
    "v2_heads": 4 * 3,
    "v2_mixers": 6 * 3,
    "v2_pareto": 100,
    "srf_kernels": 8 * 3,
    "backbones": 4 * 3,
}
# On digits a trial is cheap: seeds enough for a verdict, which three are not.
DIGITS_TRIALS = {
    "v1_table5": 9 * 9,
    "v2_kernels": 11 * 9,
    "v2_srf": 3 * 7,
    "v2_heads": 4 * 7,
    "v2_pareto": 40,
}
TABLE5 = [82.8, 82.2, 82.7, 82.7, 82.6, 82.7, 83.1, 82.7, 82.6]


def name(path: Path) -> str:
    return path.relative_to(ROOT / "sweeps").with_suffix("").as_posix()


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_every_question_has_three_sizes() -> None:
    folders = {path.parent.name for path in STUDIES}
    assert folders == {"imagenet", "cifar10", "digits"}
    for question in TRIALS.keys() - {"srf_kernels", "backbones"}:
        assert sum(path.stem == question for path in STUDIES) == 3, question


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_study_declares_its_trials(path: Path) -> None:
    study = read_study(path)
    assert study.name == name(path).replace("/", "-")
    expected = TRIALS[path.stem]
    if path.parent.name == "digits":
        expected = DIGITS_TRIALS.get(path.stem, expected)
    assert study.declared == expected
    assert study.ablation is None or len(study.ablation.seeds) >= 3
    # Only the digits have a test split of their own.
    assert (study.test is not None) == (path.parent.name == "digits")


@pytest.mark.parametrize("path", STUDIES, ids=name)
def test_header_has_the_command(path: Path) -> None:
    header = path.read_text(encoding="utf-8").split("question:")[0]
    assert f"spanet sweep run {path.relative_to(ROOT).as_posix()}" in header
    assert "Cost: " in header


# The others are the same arms on other configurations.
@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=() if p.parent.name == "digits" else pytest.mark.slow) for p in STUDIES],
    ids=name,
)
def test_every_trial_of_the_study_could_start(path: Path) -> None:
    check_study(read_study(path), data=False)


@pytest.mark.parametrize("size", ["imagenet", "cifar10", "digits"])
def test_table_5_has_the_published_figures(size: str) -> None:
    study = read_study(f"sweeps/{size}/v1_table5.yaml")
    assert study.ablation is not None
    assert [arm.published for arm in study.ablation.arms.values()] == TABLE5
    assert "ImageNet" in study.note


@pytest.mark.parametrize(
    "size", [pytest.param(s, marks=pytest.mark.slow) for s in ("imagenet", "cifar10")] + ["digits"]
)
def test_arms_that_say_so_have_the_macs_of_the_control(size: str) -> None:
    rows = plan.plan(read_study(f"sweeps/{size}/v2_kernels.yaml"), timed=False).rows
    matched = [row for row in rows if row.name.endswith("MACs matched")]
    assert len(matched) == 4
    for row in matched:
        assert row.relative == pytest.approx(1, abs=0.01), row.name
    # None of the kernel sets is so dear that the report would flag it.
    assert not any(row.is_flagged for row in rows)


def test_readme_shows_studies_that_are_sound(tmp_path: Path) -> None:
    text = (ROOT / "sweeps" / "README.md").read_text(encoding="utf-8")
    whole, grid, search = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    head, _ = whole.split("  control:")
    only_grid = f"{head}  control: kernels=3, srf=on\n{grid}"
    only_search = head.split("ablation:")[0] + search
    for i, study in enumerate((whole, only_grid, only_search)):
        path = tmp_path / f"{i}.yaml"
        path.write_text(study, encoding="utf-8")
        check_study(read_study(path))
    listed = re.findall(r"^\| `(?:digits/|cifar10/)?(\w+)` \| (\d+)", text, flags=re.MULTILINE)
    assert {name: int(count) for name, count in listed} == TRIALS
