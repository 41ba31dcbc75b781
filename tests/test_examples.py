"""If one of these fails, the project can't be used from Python as README shows it."""

from __future__ import annotations

import copy
import pickle
import runpy
from pathlib import Path

import pytest

from spanet_lightning import (
    ClassificationTask,
    CocoDataModule,
    DigitsDataModule,
    RetinaNet,
    SPANetV2,
    Trainer,
)
from spanet_lightning.errors import ConfigError

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.filterwarnings("ignore:.*number of training batches")
def test_training_from_python() -> None:
    main = runpy.run_path(str(EXAMPLES / "train_digits.py"))["main"]
    assert 0 <= main(max_epochs=1) <= 1
    assert [path.name for path in Path("runs").rglob("*.ckpt")] == ["last.ckpt"]


def test_wrong_arguments_are_one_line() -> None:
    for call, says in (
        (lambda: Trainer(max_epoch=3), r"max_epoch: got 3, .* did you mean 'max_epochs'"),
        (lambda: Trainer(accelerator="abacus"), r"Trainer: .*abacus"),
        (lambda: SPANetV2("s18_pur"), r"variant: got 's18_pur'.* did you mean 's18_pure'"),
        (lambda: SPANetV2("test", kernel_size=[3]), r"got \[3\].* did you mean 'kernel_sizes'"),
        (lambda: DigitsDataModule(batch_sise=3), r"DigitsDataModule; did you mean 'batch_size'"),
        (lambda: CocoDataModule("x", zzz=1), r"argument of CocoDataModule; accepted: root, "),
        (lambda: RetinaNet(fc=1), r"no such argument of RetinaNet"),
        (lambda: ClassificationTask(None, lr=1), r"no such argument of ClassificationTask"),
    ):
        with pytest.raises(ConfigError, match=says):
            call()


def test_checked_classes_are_copied_and_pickled() -> None:
    model = SPANetV2("test", img_size=32)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.state_dict().keys() == model.state_dict().keys()
