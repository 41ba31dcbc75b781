"""A trial's process that trains nothing: it speaks to its worker as `sweep.trial` does.

What it does is in the overrides of its command: `--fake.mode`, `--fake.epochs`, `--fake.seconds`
(of an epoch) and `--fake.top1`. It imports nothing of the project, and so starts at once. Each
start is a line in the file `started.txt`: the folder of the run, the epoch that it begins with, and
its process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time
import zipfile
from pathlib import Path


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text())
    words = dict(w[2:].split("=", 1) for w in spec["command"] if w.startswith("--"))
    threading.Thread(target=end_with_worker, daemon=True).start()
    folder = Path(words["trainer.default_root_dir"], words["name"])
    first = 1
    if "ckpt_path" in words:
        with zipfile.ZipFile(words["ckpt_path"]) as saved:
            first = int(saved.read("epoch")) + 1
    with Path("started.txt").open("a") as file:
        file.write(f"{folder.name} {first} {os.getpid()}\n")
    folder.mkdir(parents=True, exist_ok=True)

    def tell(event: str, **values: object) -> None:
        with Path(spec["events"]).open("a") as events:
            events.write(json.dumps({"event": event, "time": time.time(), **values}) + "\n")

    mode = words.get("fake.mode", "train")
    epochs = int(words.get("fake.epochs", "1"))
    tell("model", epochs=epochs, parameters=10, macs=100, data="none")
    if mode == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
        bytearray(1 << 30)
    if mode == "kernel":  # how a process looks that the kernel ended for want of memory
        os.kill(os.getpid(), 9)
    if mode == "exit":
        sys.stdout.write("the last words\n")
        sys.exit(7)
    tell("step")
    for epoch in range(first, epochs + 1):
        time.sleep(float(words.get("fake.seconds", "0")))
        if Path(spec["prune"]).exists():
            tell("pruned")
            return
        if mode == "raise":
            tell("failed", failure="error", reason="RuntimeError: as it was told")
            sys.exit(1)
        if mode == "nan":
            tell("failed", failure="nan", reason="the loss was nan at step 1, epoch 1")
            sys.exit(1)
        top1 = float(words.get("fake.top1", "0.5")) + epoch / 1000
        with zipfile.ZipFile(folder / "new.ckpt", "w") as saved:
            saved.writestr("epoch", str(epoch))
        (folder / "new.ckpt").replace(folder / "last.ckpt")
        metrics = {"val/top1": top1, "val/loss": 1 - top1, "train/loss": 2 - top1}
        tell("epoch", epoch=epoch, seconds=0.1, images_per_second=100.0, metrics=metrics)
    tell("test", metrics={"test/top1": 0.4})
    tell("end")


def end_with_worker() -> None:
    while os.read(0, 1024):
        pass
    os._exit(3)


if __name__ == "__main__":
    main()
