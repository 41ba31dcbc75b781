"""Every published recipe has the learning rates, groups and weight decay of the first version."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningDataModule, Trainer

import spanet_lightning
from spanet_lightning.tasks import Task

ROOT = Path(__file__).parent.parent
RECORDED = json.loads((ROOT / "tests" / "fixtures" / "recipes.json").read_text())
CLASSES = {"coco": 80, "ade20k": 150}
BATCH = ("global_batch", "global_batch_size")  # before and after the key was renamed


def build(path: Path, folder: str) -> tuple[Task, Any]:
    """Return the task of a configuration, on the meta device, and the configuration."""
    for name in spanet_lightning.__all__:
        getattr(spanet_lightning, name)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--seed_everything", type=int)
    for key in BATCH:
        parser.add_argument(f"--{key}", type=int)
    parser.add_argument("--checkpoint.monitor", type=str)
    parser.add_argument("--checkpoint.mode", type=str)
    parser.add_class_arguments(Trainer, "trainer", fail_untyped=False)
    parser.add_subclass_arguments(Task, "model", skip={"num_classes"})
    parser.add_subclass_arguments(LightningDataModule, "data")
    config = parser.parse_path(str(path))
    model = {"class_path": config.model.class_path, "init_args": config.model.init_args.as_dict()}
    if folder in CLASSES:
        model["init_args"]["num_classes"] = CLASSES[folder]
    builder = ArgumentParser(exit_on_error=False)
    builder.add_subclass_arguments(Task, "model")
    with torch.device("meta"):
        task: Task = builder.instantiate(builder.parse_object({"model": model})).model
    return task, config


@pytest.mark.parametrize("name", RECORDED)
def test_learning_rates_and_groups_are_the_recorded_ones(name: str) -> None:
    recorded = RECORDED[name]
    folder, _, stem = name.partition("/")
    path = next((ROOT / "configs").rglob(f"{folder}/{stem}.yaml"))
    task, config = build(path, folder)
    batch = next(config[key] for key in BATCH if config.get(key))
    steps, epochs, max_steps = (recorded[k] for k in ("steps_per_epoch", "epochs", "max_steps"))
    total = max_steps if max_steps > 0 else steps * epochs
    task._trainer = SimpleNamespace(  # type: ignore[assignment]
        max_epochs=config.trainer.max_epochs,
        max_steps=config.trainer.max_steps,
        estimated_stepping_batches=total,
        num_training_batches=steps,
        accumulate_grad_batches=1,
        world_size=1,
        datamodule=SimpleNamespace(batch_size=batch),
        train_dataloader=None,
    )
    assert (config.trainer.max_epochs or -1, config.trainer.max_steps) == (epochs, max_steps)
    found: Any = task.configure_optimizers()
    optimizer, scheduler = found["optimizer"], found["lr_scheduler"]["scheduler"]
    assert found["lr_scheduler"]["interval"] == recorded["interval"]
    assert type(optimizer).__name__ == recorded["optimizer"]
    for key, value in recorded["defaults"].items():
        assert optimizer.defaults[key] == (tuple(value) if isinstance(value, list) else value)

    def row(count: int, numel: int, lr: float, weight_decay: float) -> tuple[Any, ...]:
        return count, numel, float(f"{lr:.6g}"), weight_decay

    groups = [
        row(
            len(group["params"]),
            sum(p.numel() for p in group["params"]),
            group["initial_lr"],
            group["weight_decay"],
        )
        for group in optimizer.param_groups
    ]
    wanted = [
        row(group["count"], group["numel"], group["lr"], group["weight_decay"])
        for group in recorded["groups"]
    ]
    assert sorted(groups) == sorted(wanted)
    peak = optimizer.defaults["lr"]
    curve = {step: peak * scheduler.lr_lambdas[0](int(step)) for step in recorded["curve"]}
    assert curve == pytest.approx(recorded["curve"], rel=1e-7)
