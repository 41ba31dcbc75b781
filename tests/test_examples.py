"""If one of these fails, the project can't be used from Python as README shows it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from spanet_lightning import SPANetV2, Trainer
from spanet_lightning.errors import ConfigError

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.filterwarnings("ignore:.*number of training batches")
def test_training_from_python() -> None:
    main = runpy.run_path(str(EXAMPLES / "train_digits.py"))["main"]
    assert 0 <= main(max_epochs=1) <= 1
    assert [path.name for path in Path("runs").rglob("*.ckpt")] == ["last.ckpt"]


def test_wrong_arguments_are_one_line() -> None:
    with pytest.raises(ConfigError, match=r"max_epoch: got 3, .* did you mean 'max_epochs'"):
        Trainer(max_epoch=3)
    with pytest.raises(ConfigError, match=r"Trainer: .*abacus"):
        Trainer(accelerator="abacus")
    with pytest.raises(ConfigError, match=r"variant: got 's18_pur'.* did you mean 's18_pure'"):
        SPANetV2("s18_pur")
