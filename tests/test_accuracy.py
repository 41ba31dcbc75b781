"""If one of these fails, the embedded experiments no longer train to what their headers promise."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanet_lightning import cli

CONFIGS = Path(__file__).parent.parent / "configs" / "digits"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spanet", "spanetv2"])
def test_digits_reach_97_percent_on_the_test_split(name):
    experiment = cli.run(["fit", "--config", str(CONFIGS / f"{name}.yaml")], show_results=False)
    (tested,) = experiment.trainer.test(
        experiment.model,
        datamodule=experiment.datamodule,
        ckpt_path="best",
        weights_only=True,
        verbose=False,
    )
    assert tested["test/top1"] >= 0.97
