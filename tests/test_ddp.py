"""If one of these fails, training or evaluating on several devices is not that on one."""

from __future__ import annotations

from pathlib import Path

import pytest

from spanet_lightning import cli
from tests import ranks
from tests.steps import Step, log_of, read, step_log

TWO = ("--trainer.devices=2", "--trainer.strategy=ddp")


def evaluated_alone(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Return the figures that one process finds for the weights that a run ended with."""
    monkeypatch.setenv("SPANET_TRUSTED_PACKAGES", "tests")
    alone = folder.with_name(f"{folder.name}-alone")
    given = f"--ckpt_path={folder / 'last.ckpt'}"
    cli.run(ranks.command(name, alone, "validate", given, f"--data.batch_size={ranks.IMAGES}"))
    return ranks.figures(alone)


def check_two_train_as_one(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPANET_TRUSTED_PACKAGES", "tests")
    one, two = folder / "one", folder / "two"
    cli.run(ranks.command(name, one, "fit", f"--data.batch_size={ranks.IMAGES}"))
    half = f"--data.batch_size={ranks.IMAGES // 2}"
    ranks.run(ranks.command(name, two, "fit", half, *TWO))
    assert ranks.distance(one, two) < 1e-6
    # The same weights, evaluated by two processes and by one; a loss is a sum in another order.
    by_two, by_one = ranks.figures(two), evaluated_alone(name, two, monkeypatch)
    assert by_two.keys() == by_one.keys()
    assert by_two.keys() & {"val/top1", "val/box_ap", "val/miou"}
    for figure, value in by_one.items():
        margin = 1e-6 * value if figure in ("val/loss", "val/ece") else 0.0
        assert abs(by_two[figure] - value) <= margin, figure


def test_two_processes_classify_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_two_train_as_one("spanetv2", tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ranks.TASKS if name != "spanetv2"])
def test_two_processes_train_and_evaluate_as_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_two_train_as_one(name, tmp_path, monkeypatch)


@pytest.mark.slow
def test_a_global_batch_is_the_same_on_two(tmp_path: Path) -> None:
    """One device accumulates four batches where two accumulate two; a layer makes it two."""
    folders = tmp_path / "one", tmp_path / "two"
    layer = f"--config={ranks.CONFIGS / 'trainer' / 'ddp.yaml'}"
    more = ("--global_batch_size=8", "--data.batch_size=2")
    kept = ranks.snapshots(tmp_path / "kept", ["3"])  # after four batches of two devices: two steps
    for folder, devices in zip(folders, ((), (layer, "--trainer.devices=2")), strict=True):
        # A limit of one's own means batches: five steps.
        limit = f"--trainer.limit_train_batches={10 if devices else 20}"
        saves = (kept,) if devices else ()
        args = ranks.command("spanetv2", folder, "fit", *more, limit, *devices, *saves)
        said = ranks.run(args)
        count = "2 devices x 2 images x 2" if devices else "1 device x 2 images x 4"
        assert said.count(f"global batch 8 = {count} accumulated") == 1
    assert ranks.distance(*folders) < 1e-6
    # Broken off on two amid the epoch, one device goes on with the next image.
    last = tmp_path / "last"
    onwards = ("--trainer.limit_train_batches=20", f"--ckpt_path={tmp_path / 'kept' / '3.ckpt'}")
    ranks.run(ranks.command("spanetv2", last, "fit", *more, *onwards))
    assert ranks.distance(folders[0], last) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spanetv2", "retinanet", "semantic_fpn"])
def test_sharded_training_is_the_same_and_each_goes_on_with_the_others(
    name: str, tmp_path: Path
) -> None:
    """FSDP2: the weights of one device, and checkpoints that one device and several read."""
    one, two, more = tmp_path / "one", tmp_path / "two", tmp_path / "more"
    more.mkdir()
    alone = f"--data.batch_size={ranks.IMAGES}"
    half = f"--data.batch_size={ranks.IMAGES // 2}"
    sharded = (half, "--trainer.devices=2", "--trainer.strategy=fsdp2")
    ranks.run(ranks.command(name, one, "fit", alone))
    ranks.run(ranks.command(name, two, "fit", *sharded))
    assert ranks.distance(one, two) < 1e-6
    # One device goes on with what several saved, as with its own, and several with what one saved.
    # Fewer images on each of more devices are the same training, which is not for the run to know.
    on = ("--trainer.max_epochs=2", "--allow_changes=true")
    from_sharded = f"--ckpt_path={two / 'last.ckpt'}"
    ranks.run(ranks.command(name, more / "a", "fit", alone, *on, from_sharded))
    from_one = f"--ckpt_path={one / 'last.ckpt'}"
    ranks.run(ranks.command(name, more / "b", "fit", alone, *on, from_one))
    ranks.run(ranks.command(name, more / "c", "fit", *sharded, *on, from_one))
    assert ranks.distance(more / "a", more / "b") < 1e-6
    assert ranks.distance(more / "b", more / "c") < 1e-6


@pytest.mark.slow
def test_sharded_run_that_is_resumed_is_the_unbroken_one(tmp_path: Path) -> None:
    """Bit for bit, in both processes: losses, and each one's part of the weights."""
    args = (
        *("--trainer.devices=2", "--trainer.strategy=fsdp2", "--data.batch_size=4"),
        *("--trainer.limit_train_batches=5", "--trainer.accumulate_grad_batches=2"),
        *("--trainer.max_epochs=2", "--trainer.limit_val_batches=1"),
    )

    def steps(run: str, *more: str) -> list[list[Step]]:
        log = tmp_path / f"{run}.jsonl"
        ranks.run(ranks.command("spanetv2", tmp_path / run, "fit", *args, *step_log(log), *more))
        return [read(log_of(log, rank)) for rank in range(2)]

    # Between two updates, within one, and at the end of the epoch.
    kept, places = tmp_path / "kept", {"1": 2, "2": 3, "end": 5}
    unbroken = steps("unbroken", ranks.snapshots(kept, places))
    assert all(len(one) == 10 for one in unbroken)
    for place, done in places.items():
        resumed = steps(f"from-{place}", f"--ckpt_path={kept / place}.ckpt")
        for one, whole in zip(resumed, unbroken, strict=True):
            assert [step.found for step in one] == [step.found for step in whole[done:]], place
