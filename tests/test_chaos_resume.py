"""`kill -9` at random steps, again and again: the log of steps is that of the unbroken run.

Each process is a child, `lightning fit`, as a user starts it; it goes on from `last.ckpt`.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.helpers import DIGITS, images
from tests.steps import Step, differences, environment, read, step_log

EPOCH = 5  # steps
LONGEST = 120  # seconds that a child may take
LAST = Path("runs/run/last.ckpt")
Args = tuple[str, ...]


def common(epochs: int) -> Args:
    """Mixup, CutMix, drop path and an average of the weights, of the smallest network."""
    return (
        *("--config", DIGITS, "--name=run", f"--trainer.max_epochs={epochs}"),
        *("--model.mixup_alpha=0.8", "--model.cutmix_alpha=1.0"),
        "--model.backbone.drop_path_rate=0.2",
        '--trainer.callbacks+={"class_path": "EMAWeightAveraging", "init_args": {"decay": 0.9}}',
        *("--trainer.logger=false", "--trainer.enable_progress_bar=false"),
        *("--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0"),
        *("--trainer.limit_val_batches=1", "--checkpoint.monitor=null"),
    )


def digits(epochs: int) -> Args:
    return (*common(epochs), "--data.train_per_class=8", "--data.batch_size=16")


def folder(epochs: int, workers: int) -> Args:
    """Crops, RandAugment and erasing, by workers or without."""
    if not Path("images").exists():
        images(Path("images"), per_class=10)
    return (
        *common(epochs),
        "--data=ImageClassificationDataModule",
        *("--data.root=images", "--data.image_size=32", "--data.batch_size=4"),
        f"--data.num_workers={workers}",
    )


def fit(args: Args, log: Path, kill: Callable[[list[Step]], bool] = lambda _: False) -> bool:
    """Run a child and kill it as soon as what it has logged says so.

    Args:
        args: Its arguments.
        log: Its steps.
        kill: Is asked after each step, with those of this child.

    Returns:
        Whether it was killed, not done before.
    """
    before = len(read(log)) if log.exists() else 0
    command = [sys.executable, "-m", "spanet_lightning", "fit", *args, *step_log(log)]
    output = Path(f"{log}.txt")
    with output.open("w") as stream:
        child = subprocess.Popen(command, env=environment(), stdout=stream, stderr=stream)
    try:
        end, known = time.monotonic() + LONGEST, 0
        while child.poll() is None and time.monotonic() < end:
            lines = log.read_text() if log.exists() else ""
            done = lines.count("\n") - before
            if done > known and lines.endswith("\n"):
                known = done
                if kill(read(log)[before:]):
                    break
            time.sleep(0.002)
        killed = child.poll() is None
    finally:
        child.kill()
        code = child.wait()
    assert killed or code == 0, output.read_text()
    return killed


def killed_again_and_again(args: Args, kills: int, seed: int) -> tuple[list[Step], list[int]]:
    """Train with so many kills; every fourth falls after an epoch's last step, in what ends it.

    Returns:
        All that was logged, and after how many steps of the run each kill fell.
    """
    draw, log = random.Random(seed), Path("broken.jsonl")
    fell = []
    for number in range(kills):
        boundary, wait, steps = number % 4 == 1, draw.uniform(0, 0.1), draw.randint(1, 4)

        def kill(
            done: list[Step], boundary: bool = boundary, wait: float = wait, steps: int = steps
        ) -> bool:
            now = done[-1].batch == EPOCH - 1 if boundary else len(done) >= steps
            if now:
                time.sleep(wait)
            return now

        every = f"--checkpoint.every_n_train_steps={draw.choice((1, 1, 2, 3))}"
        resumed = (f"--ckpt_path={LAST}",) if LAST.exists() else ()
        if not fit((*args, every, *resumed), log, kill):
            return read(log), fell  # it was too quick
        fell.append(read(log)[-1].global_step)
    resumed = (f"--ckpt_path={LAST}",) if LAST.exists() else ()
    fit((*args, "--checkpoint.every_n_train_steps=3", *resumed), log)
    return read(log), fell


def compare(args: Args, kills: int, seed: int, whole_args: Args = ()) -> list[int]:
    """Compare a run that is killed with the one that is not; return where the kills fell."""
    print(f"seed of the kills: {seed}")  # noqa: T201 - to do it once more
    root = "--trainer.default_root_dir=whole"
    fit((*(whole_args or args), root, "--checkpoint.every_n_train_steps=7"), Path("whole.jsonl"))
    whole = read("whole.jsonl")
    broken, fell = killed_again_and_again(args, kills, seed)
    print(f"killed after {fell} of {len(whole)} steps")  # noqa: T201
    assert differences(whole, broken) == []
    return fell


def test_killed_twice() -> None:
    fell = compare(digits(epochs=2), kills=2, seed=0)
    assert fell
    assert EPOCH in fell  # in what ends the first epoch


@pytest.mark.slow
def test_killed_at_random_steps() -> None:
    seed = random.SystemRandom().randrange(10**6)
    fell = compare(digits(epochs=6), kills=10, seed=seed)
    assert len(fell) > 5
    assert any(step % EPOCH == 0 for step in fell)


@pytest.mark.slow
def test_killed_at_random_steps_with_workers() -> None:
    """Beside an unbroken run without workers, which are to change nothing."""
    seed = random.SystemRandom().randrange(10**6)
    data = partial(folder, 3)
    assert compare(data(2), kills=4, seed=seed, whole_args=data(0))
