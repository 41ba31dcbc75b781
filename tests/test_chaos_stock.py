"""What plain Lightning and torch do where docs/reliability.md promises something else.

These are measurements of theirs, not tests of ours: if one fails, they have mended it, and the page
and perhaps what we have against it should go.
"""

from __future__ import annotations

import functools
import http.server
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where there is one, another file system

MODEL = """
import os, signal, sys, warnings
import lightning as L, torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.simplefilter("ignore")

class Model(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 1))
    def training_step(self, batch, index):
        loss = self.net(batch[0]).square().mean()
        act(self, index)
        if NAN and self.global_step == 5:
            loss = loss * float("nan")
        print("step", self.global_step, float(loss).hex(), flush=True)
        return loss
    def validation_step(self, batch, index):
        self.log("val", self.net(batch[0]).square().mean())
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

NAN = False
act = lambda model, index: None
data = TensorDataset(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))

def fit(workers=0, ckpt_path=None, **options):
    L.seed_everything(1, workers=True, verbose=False)
    every = options.pop("every", None)
    saver = ModelCheckpoint("saved", save_last=True, save_top_k=-1, filename="{step}",
                            auto_insert_metric_name=False, every_n_train_steps=every)
    trainer = L.Trainer(**{"max_epochs": 4} | options, accelerator="cpu", devices=1, logger=False,
                        callbacks=[saver], enable_progress_bar=False, enable_model_summary=False)
    loader = DataLoader(data, 8, shuffle=True, num_workers=workers)
    trainer.fit(Model(), loader, DataLoader(data, 8), ckpt_path=ckpt_path)
    return trainer
"""


def stock(script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of plain Lightning in a process and a session of its own."""
    return subprocess.run(
        [sys.executable, "-c", MODEL + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        start_new_session=True,
    )


def steps(done: subprocess.CompletedProcess[str]) -> dict[int, str]:
    """Return the loss of each step, every bit of it."""
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("step ")]
    return {int(step): loss for _, step, loss in lines}


def told(case: str, what: str) -> None:
    sys.stdout.write(f"\nstock, {case}: {what}\n")  # `nox -s chaos` shows it


def test_resumed_run_is_another():
    whole = steps(stock("fit(every=12)"))
    resumed = steps(stock("fit(ckpt_path='saved/12.ckpt')"))
    same = sum(whole.get(step) == loss for step, loss in resumed.items())
    told("resumed amid an epoch, shuffled, with dropout", f"{same} of {len(resumed)} steps equal")
    assert min(resumed) == 12
    assert same == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_sigterm_saves_nothing(workers):
    done = stock(
        f"""
        def act(model, index):
            if model.global_step == 5:
                os.killpg(0, signal.SIGTERM)
        fit(workers={workers})
        """
    )
    saved = [path.name for path in Path("saved").glob("*")]
    told(f"SIGTERM, {workers} workers", f"exit code {done.returncode}, saved: {saved or 'nothing'}")
    assert not saved
    assert done.returncode != 143


def test_nan_is_saved_and_the_run_ends_well():
    done = stock("NAN = True\nfit()")
    weights = torch.load("saved/last.ckpt", weights_only=False)["state_dict"]
    lost = sum(not bool(tensor.isfinite().all()) for tensor in weights.values())
    told("NaN", f"exit code {done.returncode}, {lost} of {len(weights)} tensors of last.ckpt lost")
    assert done.returncode == 0
    assert lost == len(weights)


def test_changed_byte_is_loaded_without_a_word():
    assert stock("fit(max_epochs=1)").returncode == 0
    content = bytearray(Path("saved/last.ckpt").read_bytes())
    weight = torch.load("saved/last.ckpt", weights_only=False)["state_dict"]["net.0.weight"]
    at = content.index(weight.numpy().tobytes())
    content[at + 3] ^= 0x40  # the exponent of the first weight
    Path("saved/last.ckpt").write_bytes(content)
    done = stock("fit(ckpt_path='saved/last.ckpt', max_epochs=2)")
    told("a flipped bit", f"exit code {done.returncode}")
    assert done.returncode == 0
    assert "damage" not in done.stderr


def test_write_that_is_killed_leaves_half_a_file():
    """Lightning writes into the temporary folder, which often is another file system, and moves."""
    if not SHARED_MEMORY.is_dir():
        pytest.skip("there is no second file system to have temporary files on")
    script = """
    from lightning.fabric.plugins import TorchCheckpointIO
    state = {"weights": torch.randn(25_000_000)}  # 100 MB
    while True:
        TorchCheckpointIO().save_checkpoint(state, "last.ckpt")
        print("saved", flush=True)
    """
    chance = random.Random(0)
    temporary = SHARED_MEMORY / f"spanet-{os.getpid()}"
    temporary.mkdir()
    kills = half = 0
    try:
        while kills < 8 or (not half and kills < 40):
            process = subprocess.Popen(
                [sys.executable, "-c", MODEL + textwrap.dedent(script)],
                env={**os.environ, "TMPDIR": str(temporary)},
                stdout=subprocess.PIPE,
            )
            process.stdout.readline()
            whole = Path("last.ckpt").stat().st_size
            time.sleep(chance.uniform(0.05, 0.6))
            process.kill()
            kills += 1
            process.wait()
            process.stdout.close()
            half += Path("last.ckpt").stat().st_size != whole
        left = sum(path.is_file() for path in temporary.iterdir())
    finally:
        shutil.rmtree(temporary)
    told(
        "killed while writing",
        f"{half} of {kills} files cut off, {left} left in the temporary folder",
    )
    assert half > 0


class Payload:
    """Makes a file of that name where it is unpickled."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __reduce__(self):
        return os.mkdir, (self.name,)


@contextmanager
def served(folder: Path) -> Iterator[str]:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_address_of_a_checkpoint_runs_its_code(tmp_path):
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "a.ckpt").write_bytes(pickle.dumps({"state_dict": Payload("ran")}))
    with served(evil) as address:
        stock(f"fit(ckpt_path='{address}/a.ckpt')")
    told("a checkpoint behind http", "its code ran" if Path("ran").exists() else "refused")
    assert Path("ran").exists()


def test_printing_a_configuration_imports_what_it_names():
    Path("evil.py").write_text("open('ran', 'w').close()\n")
    stock(
        """
        sys.path.insert(0, "")
        from lightning.pytorch.cli import LightningCLI
        LightningCLI(Model, args=["fit", "--trainer.callbacks=evil.Thing", "--print_config"])
        """
    )
    told("--print_config", "what a class_path names was imported" if Path("ran").exists() else "-")
    assert Path("ran").exists()


def test_last_step_has_smaller_gradients():
    """Of what is left over: three batches in steps of two."""
    done = stock(
        """
        trainer = fit(max_epochs=1, limit_train_batches=3, accumulate_grad_batches=2)
        print("updates", trainer.global_step)
        """
    )
    told("3 batches, 2 accumulated", done.stdout.splitlines()[-1])
    assert "updates 2" in done.stdout


def test_evaluation_of_two_processes_repeats_a_sample():
    Path("two.py").write_text(
        MODEL
        + textwrap.dedent(
            """
            import json
            from torchmetrics import SumMetric
            class Counts(Model):
                def on_validation_epoch_start(self):
                    self.seen = SumMetric()
                def validation_step(self, batch, index):
                    self.seen.update(len(batch[0]))
                def on_validation_epoch_end(self):
                    count = int(self.seen.compute())
                    if self.global_rank == 0:
                        open("count.json", "w").write(json.dumps(count))
            if __name__ == "__main__":
                trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False,
                                    enable_progress_bar=False)
                trainer.validate(Counts(), DataLoader(TensorDataset(torch.randn(5, 8)), 2))
            """
        )
    )
    subprocess.run(
        [sys.executable, "two.py"], check=True, capture_output=True, timeout=300, env=os.environ
    )
    count = json.loads(Path("count.json").read_text())
    told("5 samples evaluated by two processes", f"{count} counted")
    assert count == 6


def test_one_process_of_two_killed_is_not_named():
    Path("two.py").write_text(
        MODEL
        + textwrap.dedent(
            """
            def act(model, index):
                if model.global_rank == 1 and model.global_step == 5:
                    os.kill(os.getpid(), signal.SIGKILL)
            if __name__ == "__main__":
                trainer = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False,
                                    enable_progress_bar=False, max_epochs=9)
                trainer.fit(Model(), DataLoader(data, 8))
            """
        )
    )
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "two.py"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    try:
        said, _ = process.communicate(timeout=90)
        ended = f"ended after {time.monotonic() - began:.0f} s, exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        ended = "was still waiting after 90 s"
    last = said.strip().splitlines()[-1]
    told("one process of two killed", f"{ended}, its last line: {last}")
    assert "SIGKILL" not in last
