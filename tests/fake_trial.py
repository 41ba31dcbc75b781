"""A trial that trains nothing: it reports to its supervisor as `sweep.trial` does.

What it does is in the overrides of its command: `--fake.mode`, `--fake.epochs`, `--fake.seconds`
(of an epoch) and `--fake.top1`. Each start is a line in the file `started.txt`: the folder of the
run, the epoch that it begins with, and its process.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import zipfile
from pathlib import Path
from types import FrameType

from spanet_lightning.errors import NotFiniteError
from spanet_lightning.sweep.child import Link, Spec


def run(spec: Spec, link: Link) -> None:
    words = dict(w[2:].split("=", 1) for w in spec.command if w.startswith("--"))
    signal.signal(signal.SIGTERM, _stop)
    folder, first = Path(spec.run), 1
    if link.checkpoint is not None:
        with zipfile.ZipFile(link.checkpoint) as saved:
            first = int(saved.read("epoch")) + 1
    with Path("started.txt").open("a") as file:
        file.write(f"{folder.name} {first} {os.getpid()}\n")
    folder.mkdir(parents=True, exist_ok=True)
    mode, epochs = words.get("fake.mode", "train"), int(words.get("fake.epochs", "1"))
    link.send("model", epochs=epochs, parameters=10, macs=100, data="none")
    if mode == "memory":
        raise MemoryError
    if mode == "kernel" or (mode == "once" and first == 1 and epochs == 0):
        os.kill(os.getpid(), signal.SIGKILL)
    if mode == "exit":
        sys.stdout.write("the last words\n")
        sys.stdout.flush()
        os._exit(7)
    link.send("step")
    for epoch in range(first, epochs + 1):
        time.sleep(float(words.get("fake.seconds", "0")))
        if link.prune.is_set():
            link.send("pruned")
            return
        if mode == "raise":
            raise RuntimeError("a made-up\nerror")
        if mode == "nan":
            raise NotFiniteError("the loss was nan at step 1, epoch 1")
        top1 = float(words.get("fake.top1", "0.5")) + epoch / 1000
        with zipfile.ZipFile(folder / "new.ckpt", "w") as saved:
            saved.writestr("epoch", str(epoch))
        (folder / "new.ckpt").replace(folder / "last.ckpt")
        metrics = {"val/top1": top1, "val/loss": 1 - top1, "train/loss": 2 - top1}
        link.send("epoch", epoch=epoch, seconds=0.1, images_per_second=100.0, metrics=metrics)
    link.send("test", metrics={"test/top1": 0.4})
    link.send("end")


def _stop(number: int, _: FrameType | None) -> None:
    raise SystemExit(128 + number)
