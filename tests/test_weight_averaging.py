"""Moving averages of the weights: what is validated, saved and left at the end of a run."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from copy import deepcopy

import pytest
import torch
from lightning import seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, LambdaCallback
from torch import Tensor

from spanet_lightning import ClassificationTask, DigitsDataModule, Trainer, cli
from tests.helpers import UNTRACKED

Weights = Mapping[str, Tensor]


def fit(**average: int) -> tuple[list[Weights], Weights, Weights]:
    """Train two epochs of two steps.

    Returns:
        The weights of each validation, those that `last.ckpt` holds, those at the end.
    """
    seed_everything(0, verbose=False)
    task = ClassificationTask("test_spanetv2", num_classes=10)
    seen: list[Weights] = []
    watch = LambdaCallback(on_validation_batch_end=lambda *_: seen.append(weights(task)))
    trainer = Trainer(
        callbacks=[watch, EMAWeightAveraging(decay=0.5, **average)] if average else [watch],
        accelerator="cpu",
        max_epochs=2,
        limit_train_batches=2,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(task, datamodule=DigitsDataModule(batch_size=8))
    saved = torch.load(trainer.checkpoint_callback.last_model_path, weights_only=True)
    return seen, saved["state_dict"], weights(task)


def weights(task: ClassificationTask) -> Weights:
    return deepcopy(dict(task.named_parameters()))


def same(one: Weights, other: Weights) -> bool:
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Weights], Weights, Weights]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("plain"))
        return fit()


@pytest.mark.parametrize("key", ["update_starting_at_step", "update_starting_at_epoch"])
def test_average_that_never_begins_leaves_the_trained_weights_and_is_announced(plain, key, caplog):
    seen, saved, end = fit(**{key: 4})
    assert re.search(rf"got {key}=4, expected less than .* never begins", caplog.text)
    assert all(same(ours, theirs) for ours, theirs in zip(seen, plain[0], strict=True))
    assert same(end, plain[2])
    assert same(end, saved)


@pytest.mark.parametrize("delay", [{"update_starting_at_step": 2}, {"update_starting_at_epoch": 1}])
def test_average_begins_with_the_second_epoch(plain, delay, caplog):
    seen, saved, end = fit(**delay)
    assert "never begins" not in caplog.text
    assert same(seen[0], plain[0][0])
    assert not same(seen[1], plain[0][1])
    # Two updates: the weights after step 3, and halfway to those after step 4.
    _, _, after_three = fit(update_starting_at_step=2, update_every_n_steps=2)
    for name, value in end.items():
        torch.testing.assert_close(value, (after_three[name] + plain[2][name]) / 2)
    assert same(seen[1], end)
    assert same(end, saved)


def test_average_by_epoch(plain):
    seen, _, _ = fit(update_every_n_steps=0, update_starting_at_epoch=0)
    assert same(seen[1], plain[0][0])  # an epoch is averaged after its validation


def test_average_of_a_configuration_is_delayed_too(caplog):
    spec = {"class_path": "EMAWeightAveraging", "init_args": {"update_starting_at_step": 1000}}
    cli.run(["fit", *UNTRACKED, f"--trainer.callbacks+={json.dumps(spec)}"])
    assert "the average never begins" in caplog.text
