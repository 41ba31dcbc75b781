"""If one of these fails, a layer of `configs/trainer` breaks a recipe or does not as it says."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from spanet_lightning import cli
from spanet_lightning.backbones.metaformer import MetaFormerBlock
from tests.helpers import CONFIGS, DIGITS, UNTRACKED, refused
from tests.steps import environment

LAYERS = sorted((CONFIGS / "trainer").glob("*.yaml"))
RECIPES = sorted(path for path in CONFIGS.rglob("*.yaml") if "trainer" not in path.parts)
RECIPE = CONFIGS / "imagenet" / "spanetv2_s18_pure.yaml"
# What each layer sets, and nothing else.
SETS: dict[str, dict[str, Any]] = {
    "single": {"trainer.devices": 1, "trainer.num_nodes": 1, "trainer.strategy": "auto"},
    "ddp": {"trainer.devices": "auto", "trainer.strategy": "ddp"},
    "ddp_nodes": {"trainer.devices": "auto", "trainer.num_nodes": 2, "trainer.strategy": "ddp"},
    "slurm": {"trainer.devices": "auto", "trainer.num_nodes": 2, "trainer.strategy": "ddp"},
    "fsdp": {"trainer.devices": "auto", "trainer.strategy": "fsdp2"},
    "bf16": {"trainer.precision": "bf16-mixed"},
    "fp16": {"trainer.precision": "16-mixed"},
    "fp32": {"trainer.precision": "32-true"},
    "compile": {"compute.compile": "default"},
    "channels_last": {"compute.channels_last": True},
    "checkpointing": {"compute.grad_checkpointing": True},
    "sync_bn": {"trainer.sync_batchnorm": True},
}


class Parsed(cli.Experiment):
    """An experiment that is parsed and checked, not built."""

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def _run_subcommand(self, subcommand: str) -> None:
        """Run nothing."""


@cache
def parse(*configs: Path) -> dict[str, Any]:
    """Return the values of configurations on top of each other, by dotted keys."""
    return Parsed(["fit", *(f"--config={path}" for path in configs)]).flat_config()


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).with_suffix("").as_posix()


def test_every_layer_is_here() -> None:
    assert {path.stem for path in LAYERS} == set(SETS)


@pytest.mark.parametrize("layer", LAYERS, ids=name)
def test_a_layer_changes_what_it_says_and_nothing_else(layer: Path) -> None:
    plain, layered = parse(RECIPE), parse(RECIPE, layer)
    assert {key: layered[key] for key in SETS[layer.stem]} == SETS[layer.stem]
    changed = {key for key in plain if layered[key] != plain[key]}
    assert changed <= set(SETS[layer.stem])
    assert layered["name"] == name(RECIPE).replace("/", "-")


@pytest.mark.parametrize("recipe", RECIPES, ids=name)
def test_layers_compose_on_every_recipe(recipe: Path) -> None:
    """All at once; of those that set the same keys, the last one counts."""
    flat = parse(recipe, *LAYERS)
    expected: dict[str, Any] = {}
    for layer in LAYERS:
        expected |= SETS[layer.stem]
    assert {key: flat[key] for key in expected} == expected


@pytest.mark.parametrize("layer", LAYERS, ids=name)
def test_a_layer_says_how_to_use_it(layer: Path) -> None:
    header = layer.read_text(encoding="utf-8").split("trainer:\n")[0].split("compute:\n")[0]
    assert header.startswith("# Layer: ")
    assert all(line.startswith("#") for line in header.splitlines())
    assert "--config " in header or "sbatch" in header


def test_the_slurm_script_is_a_script() -> None:
    script = CONFIGS / "trainer" / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    used = subprocess.run(["bash", str(script)], capture_output=True, text=True, check=False)
    assert used.returncode == 2
    assert used.stderr.startswith("usage: sbatch")


# -- what the keys do


def fit(*args: str) -> cli.Experiment:
    return cli.run(["fit", *UNTRACKED, "--data.batch_size=8", *args])


def weights(run: cli.Experiment) -> Tensor:
    return torch.cat([p.detach().flatten() for p in run.model.parameters()])


def test_grad_checkpointing_computes_blocks_twice_and_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = [0]
    forward = MetaFormerBlock.forward

    def counted(self: MetaFormerBlock, x: Tensor) -> Tensor:
        count[0] += self.training
        return forward(self, x)

    monkeypatch.setattr(MetaFormerBlock, "forward", counted)
    plain = fit()
    once, count[0] = count[0], 0
    saving = fit("--compute.grad_checkpointing=true")
    assert count[0] == 2 * once > 0
    assert saving.model.backbone.grad_checkpointing
    assert torch.allclose(weights(plain), weights(saving), rtol=0, atol=1e-6)


def test_channels_last_lays_out_weights_and_changes_no_result() -> None:
    plain, laid_out = fit(), fit("--compute.channels_last=true")
    for run, expected in ((plain, False), (laid_out, True)):
        conv = run.model.backbone.stem.conv.weight
        assert conv.is_contiguous(memory_format=torch.channels_last) is expected
    assert torch.allclose(weights(plain), weights(laid_out), rtol=0, atol=1e-5)


_COMPILED = """
import sys, torch
from torch._dynamo.utils import counters
from spanet_lightning import cli
from spanet_lightning.callbacks import compute
build = compute.Compute.__init__
compute.Compute.__init__ = lambda self, options: build(self, options, sys.argv[1])
args = sys.argv[2:]
plain = cli.run(["fit", *args, "--name=plain"])
run = cli.run(["fit", *args, "--name=compiled", "--compute.compile=default"])
assert all(m._compiled_call_impl is not None for m in run.model.backbone.stages)
assert counters["stats"]["unique_graphs"] >= 4, counters["stats"]
assert not counters["graph_break"], counters["graph_break"]
a, b = plain.model.state_dict(), run.model.state_dict()
assert a.keys() == b.keys()
assert max(float((a[k] - b[k]).abs().max()) for k in a if a[k].numel()) < 1e-5
saved = torch.load("runs/compiled/last.ckpt", weights_only=True)
assert saved["state_dict"].keys() == a.keys()
# A plain run goes on with it.
cli.run(["fit", *args, "--ckpt_path=runs/compiled/last.ckpt", "--trainer.max_epochs=2"])
"""


def compiled(backend: str) -> None:
    args = [sys.executable, "-c", _COMPILED, backend, *UNTRACKED, "--data.batch_size=8"]
    run = subprocess.run(
        args, env=environment(), capture_output=True, text=True, timeout=900, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]


def test_compilation_keeps_names_and_results() -> None:
    """Traced and called as traced; what inductor makes of it is the next test."""
    compiled("eager")


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    compiled("inductor")


@pytest.mark.parametrize("key", ["compile=default", "grad_checkpointing=true"])
def test_a_model_of_somebody_elses_is_refused(key: str) -> None:
    """`setup` raises before training for what has no backbone of this project."""
    from lightning.pytorch.demos.boring_classes import BoringModel

    from spanet_lightning.callbacks.compute import Compute, ComputeOptions
    from spanet_lightning.errors import ConfigError

    name, value = key.split("=")
    options = ComputeOptions(**{name: True if value == "true" else value})
    with pytest.raises(ConfigError, match=rf"^compute\.{name}: got .* BoringModel has no backbone"):
        Compute(options).setup(None, BoringModel(), "fit")  # type: ignore[arg-type]


def test_an_unknown_mode_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(["fit", *UNTRACKED, "--compute.compile=fast"], capsys)
    assert "compute.compile: got 'fast', expected one of 'none', 'default'" in error


# -- lists that layers add to


def test_files_and_command_line_add_callbacks(tmp_path: Path) -> None:
    """Each `callbacks+` adds to those before it, in files and on the command line."""
    files = []
    for i, step in enumerate(("step", "epoch")):
        file = tmp_path / f"{i}.yaml"
        file.write_text(
            "trainer:\n  callbacks+:\n"
            "  - class_path: lightning.pytorch.callbacks.LearningRateMonitor\n"
            f"    init_args: {{logging_interval: {step}}}\n"
        )
        files.append(f"--config={file}")
    last = "--trainer.callbacks+=lightning.pytorch.callbacks.TQDMProgressBar"
    flat = Parsed(["fit", f"--config={DIGITS}", *files, last]).flat_config()
    found = [flat[f"trainer.callbacks.{i}"].rpartition(".")[2] for i in range(3)]
    assert found == ["LearningRateMonitor", "LearningRateMonitor", "TQDMProgressBar"]
    assert flat["trainer.callbacks.0.logging_interval"] == "step"
    assert flat["trainer.callbacks.1.logging_interval"] == "epoch"


def test_what_is_added_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "layer.yaml"
    file.write_text(
        "trainer:\n  callbacks+:\n"
        "  - class_path: lightning.pytorch.callbacks.LearningRateMonitor\n"
        "    init_args: {logging_intervall: step}\n"
    )
    error = refused(["fit", *UNTRACKED, f"--config={file}"], capsys)
    assert "layer.yaml:4: trainer.callbacks[0].logging_intervall: got 'step'" in error
    file.write_text("trainer:\n  precision+: [16-mixed]\n  max_epoch+: 3\n")
    error = refused(["fit", *UNTRACKED, f"--config={file}"], capsys)
    assert "trainer.precision" in error or "trainer.max_epoch" in error
