"""If one of these fails, a recipe means another training on other hardware."""

from __future__ import annotations

import pytest
import torch
import yaml

from spanet_lightning import cli
from spanet_lightning.callbacks.global_batch import GlobalBatch, split
from spanet_lightning.errors import ConfigError
from tests.helpers import UNTRACKED, refused


@pytest.mark.parametrize(
    ("images", "devices", "at_most", "expected"),
    [
        (1024, 8, 128, (8, 128, 1)),
        (1024, 8, 64, (8, 64, 2)),
        (1024, 1, 128, (1, 128, 8)),
        (4096, 4, 100, (4, 64, 16)),  # 100 is no divisor of a device's 1024
        (16, 16, 4, (16, 1, 1)),
        (7, 1, 4, (1, 1, 7)),
        (6, 2, 2, (2, 1, 3)),
        (1, 1, 1, (1, 1, 1)),
    ],
)
def test_images_are_shared_out_exactly(
    images: int, devices: int, at_most: int, expected: tuple[int, int, int]
) -> None:
    found = split(images, devices, at_most)
    assert found == GlobalBatch(*expected)
    assert found.images == images


def test_every_share_is_exact_and_the_largest() -> None:
    for images in range(1, 65):
        for devices in (d for d in range(1, 9) if images % d == 0):
            for at_most in range(1, 20):
                found = split(images, devices, at_most)
                assert found.images == images
                assert found.per_device <= at_most
                larger = range(found.per_device + 1, at_most + 1)
                assert not any(images % (devices * n) == 0 for n in larger)


@pytest.mark.parametrize(("images", "devices"), [(10, 4), (3, 4), (0, 1), (-4, 2)])
def test_what_cannot_be_shared_out_is_refused(images: int, devices: int) -> None:
    with pytest.raises(ConfigError, match=rf"^global_batch_size: got {images}, expected"):
        split(images, devices, 8)


def test_the_line_says_what_follows() -> None:
    assert str(split(1024, 8, 64)) == "global batch 1024 = 8 devices x 64 images x 2 accumulated"
    assert str(split(2, 1, 1)) == "global batch 2 = 1 device x 1 image x 2 accumulated"


def fit(*args: str) -> cli.Experiment:
    return cli.run(["fit", *UNTRACKED, "--trainer.limit_train_batches=1.0", *args])


def test_a_run_takes_whole_steps_alone(caplog: pytest.LogCaptureFixture) -> None:
    """1258 digits are 25 batches of 50, 6 steps of 200: what is left over is no step of its own."""
    run = fit("--global_batch_size=200", "--data.batch_size=60", "--trainer.val_check_interval=2")
    assert run.trainer.accumulate_grad_batches == 4
    assert run.datamodule.batch_size == 50
    assert run.trainer.global_step == 6
    assert run.trainer.val_check_interval == 8  # batches, which are 2 steps
    line = "global batch 200 = 1 device x 50 images x 4 accumulated"
    assert caplog.messages.count(line) == 1
    # The statement is what a repeat goes by; the numbers are beside it.
    assert run.record is not None
    written = (run.record.folder / "config.yaml").read_text()
    assert written.startswith(f"# {line}\n")
    config = yaml.safe_load(written)
    assert config["global_batch_size"] == 200
    assert config["trainer"]["accumulate_grad_batches"] == 1
    assert config["data"]["init_args"]["batch_size"] == 60
    assert run.record.params["batch.accumulated"] == 4
    assert run.record.params["batch.per_device"] == 50


def test_accumulated_and_at_once_are_one_training() -> None:
    """Weights after four steps of 32, whatever fits at once, and images of a step all the same."""
    weights = []
    for at_most in (32, 8):
        run = fit(
            "--global_batch_size=32",
            f"--data.batch_size={at_most}",
            "--trainer.max_steps=4",
            "--trainer.enable_checkpointing=false",
            "--trainer.precision=64-true",
        )
        assert run.trainer.global_step == 4
        weights.append(torch.cat([p.flatten() for p in run.model.parameters()]).detach())
    assert torch.allclose(weights[0], weights[1], rtol=0, atol=1e-9)


def test_a_run_goes_on_with_another_share_of_the_same_step() -> None:
    """Broken off amid an epoch where a device takes 32 images at once, resumed where it takes 8."""
    args = ("--global_batch_size=32", "--trainer.precision=64-true")
    args += (
        "--trainer.limit_val_batches=1",
        "--checkpoint.monitor=step",
        "--checkpoint.every_n_train_steps=2",
    )
    weights = []
    for name, first, then in (("unbroken", 32, 32), ("broken", 32, 8)):
        fit(*args, f"--name={name}", f"--data.batch_size={first}", "--trainer.max_steps=2")
        more = (f"--data.batch_size={then}", "--trainer.max_steps=4", "--resume=must")
        run = fit(*args, f"--name={name}", *more)
        assert run.trainer.global_step == 4
        assert run.trainer.accumulate_grad_batches == 32 // then
        weights.append(torch.cat([p.flatten() for p in run.model.parameters()]).detach())
    assert torch.allclose(weights[0], weights[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--global_batch_size=0"], "global_batch_size: got 0, expected at least 1 image, or null"),
        (["--global_batch_size=2000"], "global_batch_size: got 2000, expected at most 1240"),
        (
            ["--global_batch_size=64", "--trainer.accumulate_grad_batches=2"],
            "trainer.accumulate_grad_batches: got 2, expected 1 (leave it out)",
        ),
        (["--global_batch_size=many"], "global_batch_size: got 'many', expected an integer"),
    ],
)
def test_errors_name_the_key(
    args: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["fit", *UNTRACKED, "--data.batch_size=20", "--trainer.limit_train_batches=1.0", *args]
    assert expected in refused(args, capsys)


def test_devices_that_do_not_divide_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["fit", *UNTRACKED, "--global_batch_size=7", "--trainer.devices=2"]
    assert "global_batch_size: got 7, expected a multiple of 2" in refused(args, capsys)


def test_evaluation_takes_the_batch_that_is_stated() -> None:
    run = cli.run(["validate", *UNTRACKED, "--global_batch_size=48", "--data.batch_size=20"])
    assert run.datamodule.batch_size == 20
    assert run.trainer.accumulate_grad_batches == 1
