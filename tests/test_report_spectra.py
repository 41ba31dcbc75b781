"""If one of these fails, a report lacks the spectra of its arms, or shows another checkpoint's."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
import torch

from spanet_lightning import SPANetV2, app
from spanet_lightning.analysis.figures import load
from spanet_lightning.report.results import Trial, load_results
from spanet_lightning.sweep.study import Study
from tests import sweep_studies as made
from tests.helpers import refused
from tests.sweep_studies import fill_ablation

pytest.importorskip("matplotlib")

URL = "sqlite:///sweeps.db"


def _stored() -> Study:
    study = made.ablation(range(2))
    fill_ablation(study, optuna.create_study(study_name=study.name, storage=URL))
    return study


@pytest.fixture
def checkpoints(tmp_path: Path) -> Study:
    """A stored study two of whose arms have the checkpoint of their best seed."""
    study = _stored()
    best: dict[str, Trial] = {}
    for trial in load_results(optuna.load_study(study_name=study.name, storage=URL), study).trials:
        arm = trial.record.arm
        best[arm] = max(best.get(arm, trial), trial, key=lambda one: one.values)
    for arm, srf in (("with SRF", True), ("without SRF", False)):
        arguments = {"variant": "test", "num_classes": 4, "img_size": 64, "srf": srf}
        net = SPANetV2(**arguments)
        folder = tmp_path / best[arm].record.folder
        folder.mkdir(parents=True)
        state = {f"backbone.{key}": value for key, value in net.state_dict().items()}
        described = {"class_path": "spanet_lightning.SPANetV2", "init_args": arguments}
        content = {"state_dict": state, "hyper_parameters": {"backbone": described}}
        torch.save(content, folder / "best.ckpt")
        (folder / "config.yaml").write_text("data: {init_args: {image_size: 64}}")
    return study


def test_a_report_has_the_spectra_of_the_best_checkpoints_when_asked(
    tmp_path: Path, checkpoints: Study, capsys: pytest.CaptureFixture[str]
) -> None:
    app.main(["report", checkpoints.name, "--output", "plain"])
    app.main(["report", checkpoints.name, "--output", "out", "--analysis"])
    assert not (tmp_path / "plain" / "analysis").exists()
    names = {path.name for path in (tmp_path / "out" / "analysis").iterdir()}
    assert names == {f"spectrum.{suffix}" for suffix in ("npz", "csv", "svg", "png")}
    plain, page = ((tmp_path / f / "report.html").read_text() for f in ("plain", "out"))
    assert "Spectra of features" not in plain
    assert page.count('<img src="data:image/svg+xml;base64,') == 3  # two of the trials
    told = (tmp_path / "out" / "report.md").read_text()
    assert "](analysis/spectrum.svg)" in told
    assert "Excluded, without a checkpoint: kernels = 3+5+7, SRF = on" in told
    data = load(tmp_path / "out" / "analysis" / "spectrum.npz")
    (panels,) = data.panels
    assert [one.title.partition(",")[0] for one in panels] == ["with SRF", "without SRF"]
    # At the size that the run was trained at, down to 2×2.
    assert (panels[0].curves[0].group, panels[0].curves[-1].group) == ("16×16", "2×2")


def test_spectra_without_checkpoints_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    report = ["report", _stored().name]
    told = refused([*report, "--analysis"], capsys, app.main)
    assert "--analysis: found no checkpoint" in told
    told = refused([*report, "--images", "x"], capsys, app.main)
    assert "--images: requires --analysis" in told
    assert not Path("reports").exists()
