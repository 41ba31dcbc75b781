"""Compare how fast two checkouts load images: alternating, in a process each.

    python benchmarks/data_loaders.py OLD NEW --old-python OLD/bin/python --classes DIR --coco DIR

Each round loads the same batches of a folder of classes, of a COCO set and of masks, with 0 and 2
workers. Printed are images/s of both and the ratio NEW / OLD of the medians. The exit code is 1
where a ratio is below 0.95. On a busy machine take more rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

LEAST = 0.95
CODE = """
import json, sys, time, warnings
warnings.filterwarnings("ignore")
import spanet_lightning as s
kind, root, workers, images = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
common = dict(num_workers=workers, batch_size=8)
if kind == "classes":
    data = s.ImageClassificationDataModule(root, image_size=224, **common)
elif kind == "coco":
    given = dict(train_images="train", train_annotations="annotations/instances_train.json",
                 val_images="val", val_annotations="annotations/instances_val.json")
    data = s.CocoDataModule(root, **given, masks=True, bad_boxes="drop", **common)
else:
    data = s.SegmentationFoldersDataModule(
        root, train_split="training", val_split="validation", reduce_zero_label=True,
        num_classes=11, **common)
data.setup("fit")
loader = iter(data.train_dataloader())
next(loader)
start, seen = time.perf_counter(), 0
while seen < images:
    batch = next(loader, None)
    if batch is None:
        loader = iter(data.train_dataloader())
        continue
    seen += len(batch[0])
print(json.dumps(seen / (time.perf_counter() - start)))
"""


def speed(python: str, checkout: Path, *args: str) -> float:
    """Return images per second of one loader in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    command = [python, "-c", CODE, *args]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if found.returncode:
        raise SystemExit(f"{checkout}: {found.stderr.strip().splitlines()[-1]}")
    return float(json.loads(found.stdout.strip().splitlines()[-1]))


def main() -> int:
    """Measure, print a line for each loader, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("old", type=Path, help="checkout to compare with")
    parser.add_argument("new", type=Path, help="checkout to judge")
    parser.add_argument("--old-python", default=sys.executable)
    for kind in ("classes", "coco", "masks"):
        parser.add_argument(f"--{kind}", help="folder of such a data set; none is skipped")
    parser.add_argument("--images", type=int, default=160, help="images per measurement")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    slow = False
    for kind in ("classes", "coco", "masks"):
        root = getattr(args, kind)
        for workers in (0, 2) if root else ():
            rates: dict[str, list[float]] = defaultdict(list)
            for _ in range(args.rounds):
                for name, python in (("old", args.old_python), ("new", sys.executable)):
                    checkout = getattr(args, name).resolve()
                    options = (kind, root, str(workers), str(args.images))
                    rates[name].append(speed(python, checkout, *options))
            old, new = (statistics.median(rates[name]) for name in ("old", "new"))
            slow |= new < LEAST * old
            print(f"{kind}, {workers} workers: {old:.0f} → {new:.0f} images/s, {new / old:.2f}")
    return int(slow)


if __name__ == "__main__":
    raise SystemExit(main())
