"""If one of these fails, a run can't start from weights as the guide says."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from spanet_lightning import ClassificationTask, app, cli, export
from tests.helpers import UNTRACKED, images, refused

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "configs" / "finetune" / "images.yaml"
GUIDE = (ROOT / "docs" / "finetuning.md").read_text(encoding="utf-8")
RUN = Path("runs/digits-spanetv2/best.ckpt")


@pytest.fixture(scope="module")
def run_of_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained")
    cli.run(["fit", *UNTRACKED, f"--trainer.default_root_dir={root}", "--name=digits-spanetv2"])
    return root / "digits-spanetv2"


@pytest.fixture(autouse=True)
def _run(run_of_digits: Path) -> None:
    shutil.copytree(run_of_digits, RUN.parent)


def test_the_recipe_starts_from_a_run_and_says_how(caplog: pytest.LogCaptureFixture) -> None:
    root = images(Path("own"), classes=("a", "b", "c"))
    command = re.search(r"lightning (fit .*variant=test.*)", GUIDE)
    assert command
    args = (
        command[1].replace("configs/finetune/images.yaml", str(RECIPE)).replace("PATH", str(root))
    )
    small = [
        "--data.batch_size=4",
        "--trainer.fast_dev_run=true",
        "--trainer.accelerator=cpu",
        "--data.num_workers=0",
    ]
    experiment = cli.run([*args.split(), *small])
    shown = GUIDE.split("```\nmodel.weights: ")[1].split("```")[0]
    for line in shown.splitlines():
        assert line in caplog.text
    rates = {group["lr"] for group in experiment.trainer.optimizers[0].param_groups}
    assert len(rates) > 2


def test_the_recipe_does_not_train_from_random_weights(capsys: pytest.CaptureFixture[str]) -> None:
    root = images(Path("own"))
    error = refused(["fit", "--config", str(RECIPE), f"--data.root={root}"], capsys)
    assert "spanetv2_s18_pure.pth: no such checkpoint file" in error


def test_python_of_the_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    found: dict[str, object] = {}
    for block in blocks:
        exec(block, found)  # noqa: S102
    assert "head re-initialised, 10 → 3 classes" in capsys.readouterr().out
    assert isinstance(found["task"], ClassificationTask)


def test_resuming_at_another_size_or_with_other_classes_names_the_way_out(
    capsys: pytest.CaptureFixture[str],
) -> None:
    resumed = [f"--ckpt_path={RUN}", "--model.backbone.img_size=48"]
    error = refused(["test", *UNTRACKED, *resumed], capsys)
    assert "filters for images of 32 px, the configured model for 48 px" in error
    assert f"--model.weights={RUN}" in error
    own = ["test", "--config", str(RECIPE), f"--data.root={images(Path('own'))}",
           "--trainer.logger=false", "--model.backbone.variant=test",
           "--model.backbone.img_size=32", "--data.image_size=32",
           "--data.num_workers=0"]  # fmt: skip
    error = refused([*own, f"--ckpt_path={RUN}"], capsys)
    assert "class 'cat', 'dog' is not known to" in error
    assert "which was trained on '0', '1'" in error
    resumed[1] = "--model.backbone.kernel_sizes=[3,5,7,11]"
    assert "backbone.kernel_sizes differs" in refused(["test", *UNTRACKED, *resumed], capsys)


def test_averaged_weights_are_chosen_on_the_command_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    content = torch.load(RUN, weights_only=True)
    averaged = {key: value + 1 for key, value in content["state_dict"].items()}
    torch.save(content | {"state_dict_ema": averaged}, "two.ckpt")
    head = content["state_dict"]["backbone.head.fc2.bias"]
    shutil.copy(RUN.parent / "config.yaml", "config.yaml")
    for name, source in (
        ("test_spanetv2", ["--weights=two.ckpt", "--num-classes=10"]),
        ("two.ckpt", []),
    ):
        target = ["--format=safetensors", "--output=ema.safetensors", "--overwrite"]
        app.main(["export", name, *source, *target, "--weights-set=ema"])
        found = export.from_safetensors(Path("ema.safetensors")).model.head.fc2.bias
        assert torch.equal(found, head + 1)
    app.main(["convert", "two.ckpt", "out.safetensors", "--weights-set=ema"])
    assert "state_dict_ema (EMA)" in capsys.readouterr().out
    experiment = cli.run(["fit", *UNTRACKED, "--model.weights=two.ckpt", "--model.weights_set=ema",
                          "--trainer.fast_dev_run=true", "--model.optimizer.lr=1e-12"])  # fmt: skip
    assert torch.allclose(experiment.model.backbone.head.fc2.bias, head + 1)


def test_export_names_the_number_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["test_spanetv2", f"--weights={RUN}", "--format=safetensors", "--output=x.safetensors"]
    assert "add --num-classes 10" in refused(["export", *args], capsys, app.main)
