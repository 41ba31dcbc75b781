"""Time the backbones of this checkout against those of another one, in one run, alternating.

    python benchmarks/compare_checkouts.py ../other-checkout --python ../other-venv/bin/python

Each checkout has a process of its own. They take turns, so that whatever else the machine does
slows both; the table has the median and the minimum of the ratios of neighbouring times: the other
checkout's time over this one's, above 1 where this one is faster. Times are wall-clock seconds of
one batch: a forward pass in evaluation, a forward and backward pass in training, each eager or
compiled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

MODELS = ("spanet_s", "spanetv2_s18_pure", "spanetv2_s18_hybrid")
MODES = ("eval", "train", "compiled-eval", "compiled-train")


def serve(args: argparse.Namespace) -> None:
    """Time one batch for each line on standard input, "MODEL MODE"; answer seconds."""
    import time

    import timm
    import torch

    import spanet_lightning  # noqa: F401  # registers the variants

    torch.set_num_threads(args.threads)
    runs = {}

    def prepare(name: str, mode: str):
        torch.manual_seed(0)
        model = timm.create_model(name).to(memory_format=torch.channels_last)
        training = mode.endswith("train")
        model.train(training)
        step = torch.compile(model) if mode.startswith("compiled") else model
        images = torch.randn(args.batch, 3, args.size, args.size)

        def run() -> None:
            if not training:
                with torch.inference_mode():
                    step(images)
                return
            model.zero_grad()
            step(images).square().mean().backward()

        for _ in range(2):
            run()
        return run

    for line in sys.stdin:
        key = tuple(line.split())
        if key not in runs:
            runs.clear()
            torch.compiler.reset()
            runs[key] = prepare(*key)
        start = time.perf_counter()
        runs[key]()
        print(json.dumps(time.perf_counter() - start), flush=True)


class Checkout:
    """A process that times the models of one checkout."""

    def __init__(self, folder: Path, python: str, args: argparse.Namespace) -> None:
        env = dict(os.environ, PYTHONPATH=str(folder.resolve()), OMP_WAIT_POLICY="passive")
        env["OMP_NUM_THREADS"] = str(args.threads)
        command = [python, str(Path(__file__).resolve()), "--serve"]
        for key in ("batch", "size", "threads"):
            command += [f"--{key}", str(getattr(args, key))]
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def time(self, name: str, mode: str) -> float:
        """Return the seconds of one batch."""
        self.process.stdin.write(f"{name} {mode}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"{self.process.args}: ended with {self.process.wait()}")
        return float(answer)


def main() -> None:
    """Print one line for each model and mode."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", nargs="?", type=Path, help="the other checkout")
    parser.add_argument("--python", default=sys.executable, help="its Python")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--modes", nargs="+", default=MODES, choices=MODES)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the images in pixels")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)
    ours = Checkout(Path(__file__).resolve().parents[1], sys.executable, args)
    other = Checkout(args.other, args.python, args)
    print(f"{'model':22} {'mode':15} {'other':>8} {'this':>8} {'ratio':>6} {'of minima':>9}")
    for name in args.models:
        for mode in args.modes:
            pairs = [(other.time(name, mode), ours.time(name, mode)) for _ in range(args.rounds)]
            theirs, mine = ([p[i] for p in pairs] for i in (0, 1))
            ratio = statistics.median(a / b for a, b in pairs)
            print(
                f"{name:22} {mode:15} {statistics.median(theirs):8.3f} "
                f"{statistics.median(mine):8.3f} {ratio:6.2f} {min(theirs) / min(mine):9.2f}",
                flush=True,
            )
    return None


if __name__ == "__main__":
    main()
