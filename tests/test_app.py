"""If one of these fails, a `spanet` command does not do what its help says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spanet_lightning import SPANet, __version__, app, launcher, load_official
from spanet_lightning.cli import config_files, demo
from spanet_lightning.cli.app import COMMANDS
from spanet_lightning.published import PUBLISHED
from tests.helpers import DIGITS, files, refused
from tests.parity import rule, schema


def test_overview_lists_every_command(capsys):
    app.main([])
    text = capsys.readouterr().out
    app.main(["--help"])
    assert capsys.readouterr().out == text
    for name, command in COMMANDS.items():
        assert f"  {name} " in text
        assert command.help in text
        with pytest.raises(SystemExit) as exit_info:
            app.main([name, "--help"])
        assert exit_info.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: spanet {name}")
    app.main(["--version"])
    assert __version__ in capsys.readouterr().out


def test_overview_needs_neither_lightning_nor_mlflow():
    code = (
        "import sys; from spanet_lightning import app; app.main(['--help']); "
        "sys.exit(any(name in sys.modules for name in ('lightning', 'mlflow', 'optuna')))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env)


def test_models_for_scripts(capsys):
    app.main(["models", "spanet_*", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [
        name for name in PUBLISHED if name.startswith("spanet_")
    ]
    assert rows[0]["parameters"] == rows[0]["trainable_parameters"] == 28_605_096
    assert rows[0]["published_macs"] == 4.6
    assert rows[0]["spectral_macs"] > 0


def test_models_for_readers(capsys):
    app.main(["models", "m36"])
    text = capsys.readouterr().out
    for words in ("spanetv2_m36_pure", "62,934,832", "58,334,896", "13.642", "+3.2", "84.9"):
        assert words in text
    assert "2.5·n·log2(n) + n" in text
    assert PUBLISHED["spanetv2_m36_pure"].note in text
    assert "s18" not in text


def test_convert_writes_what_loads(capsys):
    depths, dims = (1, 1, 2, 1), (24, 36, 48, 60)
    state = rule.weights(schema.v1(depths, dims, 10, (16, 8, 4, 2)))
    torch.save({"state_dict": state}, "official.pth")
    app.main(["convert", "official.pth", "ours.safetensors"])
    out = capsys.readouterr().out
    assert "tensors loaded" in out
    assert "wrote ours.safetensors" in out
    assert files() == {"official.pth", "ours.safetensors"}

    def build():
        return SPANet(depths=depths, dims=dims, num_classes=10, img_size=64)

    direct, converted = build(), build()
    load_official(direct, "official.pth")
    load_official(converted, "ours.safetensors")
    for name, tensor in direct.state_dict().items():
        assert torch.equal(tensor, converted.state_dict()[name])
    before = load_file("ours.safetensors")
    assert "exists; --overwrite replaces it" in refused(
        ["convert", "official.pth", "ours.safetensors"], capsys, app.main
    )
    app.main(["convert", "official.pth", "ours.safetensors", "--overwrite"])
    assert load_file("ours.safetensors").keys() == before.keys()


def test_demo_trains_tests_and_says_where_everything_is(capsys):
    short = [
        "--trainer.max_epochs=2",
        "--trainer.limit_train_batches=2",
        "--trainer.log_every_n_steps=1",
    ]
    app.main(["demo", *short])
    out = capsys.readouterr().out
    results = out[out.index("Results") :]
    for words in (
        "test accuracy",
        "parameters",
        "MACs",
        "images/s",
        "runs/digits-spanetv2/best.ckpt",
        "spanet ui",
    ):
        assert words in results
    assert out.count("best val/loss") == 1
    assert Path("mlflow.db").is_file()


def test_demo_configuration_is_found_from_anywhere(monkeypatch):
    for name in (demo.CONFIG, "configs/digits/spanetv2.yaml"):
        assert config_files.find(name).resolve() == Path(DIGITS).resolve()
    mine = Path("configs/digits/spanetv2.yaml")
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert config_files.find(str(mine)) == mine


@pytest.mark.skipif(os.name == "nt", reason="a script needs another suffix there")
def test_foreign_lightning_command_is_named(monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(Path.cwd()))
    assert launcher.lightning_command() == "python -m spanet_lightning"
    assert launcher.foreign_lightning() is None
    script = Path("lightning")
    script.write_text("#!/usr/bin/python\nfrom somebody_else.cli import main\n")
    script.chmod(0o755)
    assert launcher.lightning_command() == "python -m spanet_lightning"
    app.main([])
    out = capsys.readouterr().out
    assert f"another package's command here ({script.resolve()})" in out
    assert "Use `python -m spanet_lightning`" in out
    script.write_text("#!/usr/bin/python\nfrom spanet_lightning.cli import main\n")
    assert launcher.lightning_command() == "lightning"
    assert launcher.foreign_lightning() is None
