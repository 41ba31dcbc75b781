"""A run that goes on with another number of images in a batch goes on with the next image."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from lightning import Trainer, seed_everything

from spanet_lightning import ClassificationTask, DigitsDataModule, SPANetV2
from spanet_lightning.tasks.resume import Batch, position
from tests.test_resume import STEPWISE, Kill, KilledError

ONCE_MORE = "trained on again"
EPOCHS = 2  # of 80 images, 5 steps of 16


def train(
    folder: Path, batch: int, kill: tuple[int, int] | None = None, resume: bool = False
) -> tuple[torch.Tensor, int]:
    """Return the weights and the steps at the end; where `kill` names a batch, stop after it."""
    seed_everything(3, verbose=False)
    file = folder / "killed.ckpt"
    task = ClassificationTask(
        SPANetV2("test", num_classes=10, img_size=32),
        schedule=STEPWISE,
        mixup_alpha=0.0,
        cutmix_alpha=0.0,
    )
    trainer = Trainer(
        accelerator="cpu",
        precision="64-true",
        max_epochs=EPOCHS,
        accumulate_grad_batches=16 // batch,
        limit_val_batches=0,
        default_root_dir=folder,
        callbacks=[] if kill is None else [Kill("on_train_batch_end", *kill, file)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DigitsDataModule(batch_size=batch, train_per_class=8)
    try:
        trainer.fit(task, datamodule=data, ckpt_path=file if resume else None)
    except KilledError:
        assert kill is not None
    return torch.cat([p.detach().flatten() for p in task.parameters()]), trainer.global_step


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> torch.Tensor:
    weights, steps = train(tmp_path_factory.mktemp("whole"), 16)
    assert steps == EPOCHS * 5
    return weights


@pytest.mark.parametrize(
    ("first", "epoch", "after", "then", "exact"),
    [
        (16, 0, 2, 4, True),
        (4, 1, 7, 16, True),
        (4, 0, 5, 8, True),  # amid an update: half of its gradients are there
        (4, 1, 4, 8, False),  # a quarter of its gradients: the half that is to come has that, too
        (4, 0, 6, 16, False),
        (16, 0, 4, 8, True),  # all of the epoch
        (8, 1, 9, 16, True),
    ],
)
def test_goes_on_with_the_next_image(
    first: int, epoch: int, after: int, then: int, exact: bool, tmp_path: Path,
    unbroken: torch.Tensor,
) -> None:  # fmt: skip
    train(tmp_path, first, kill=(epoch, after))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        weights, steps = train(tmp_path, then, resume=True)
    assert steps == EPOCHS * 5
    assert (weights - unbroken).abs().max() < 1e-5  # other images: 1e-3 and more
    assert any(ONCE_MORE in str(one.message) for one in said) is not exact


@pytest.mark.parametrize(
    ("count", "then", "now", "expected"),
    [
        (6, (8, 4), Batch(8, 1), (6, True)),
        (6, (8, 4), Batch(16, 2), (3, True)),
        (6, (8, 4), Batch(32, 1), (1, False)),  # the update after four
        (8, (8, 4), Batch(32, 1), (2, True)),
        (3, (8, 1), Batch(10, 1), (2, False)),  # 24 images are no batches of 10: four come again
        (6, None, Batch(32, 1), (6, True)),  # a checkpoint of before it was written down
        (6, (8, 4), None, (6, True)),  # data of somebody's own
    ],
)
def test_position(
    count: int, then: tuple[int, int] | None, now: Batch | None, expected: tuple[int, bool]
) -> None:
    noted = None if then is None else Batch(*then)._asdict()
    assert position(count, noted, now) == expected
