"""What `lightning predict` leaves behind: tables, COCO's results, or masks, in the run's folder."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from spanet_lightning import summary
from spanet_lightning.data import rle
from spanet_lightning.data.class_lists import palette
from spanet_lightning.data.listing import stem
from spanet_lightning.errors import ConfigError
from spanet_lightning.run_dir import reserve, write_text
from spanet_lightning.tables import csv_cell
from spanet_lightning.tasks import ClassificationTask, DetectionTask, SegmentationTask

FOLDER = "predictions"


class PredictionWriter(BasePredictionWriter):
    """Writes predictions as they are made, so that none has to stay in memory.

    Classification: `predictions.csv` with the path of each image, its most probable classes and
    their probabilities. Detection: `results.json` in COCO's format of results, category ids and
    image ids being those of the data, and `images.json` with the file of each id. Segmentation:
    `masks/NAME.png`, the class of each pixel from 0 as the index of a palette; NAME is the path of
    the image without its ending, with it where two images differ in that alone.

    Args:
        run: Folder of the run; predictions get a new one in it.

    Attributes:
        folder: Where they are, once prediction has started.
    """

    def __init__(self, run: Path) -> None:
        super().__init__(write_interval="batch")
        self.run = run
        self.folder = run / FOLDER
        self._written = 0
        self.names = OutputNames()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reserve the folder."""
        folder = reserve(self.run / FOLDER) if trainer.is_global_zero else self.folder
        self.folder = Path(trainer.strategy.broadcast(str(folder)))
        self._written = 0

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write what was found in a batch."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        rows: list[Any] = []
        if isinstance(pl_module, ClassificationTask):
            rows = list(_classified(prediction, batch_indices, self._written, data))
        elif isinstance(pl_module, DetectionTask):
            rows = [_detected(found, data) for found in prediction]
        elif isinstance(pl_module, SegmentationTask):
            for found in prediction:
                self._write_mask(found, trainer)
                rows.append({"path": found["path"]})
        self._written += len(rows)
        with self._part(trainer.global_rank).open("a", encoding="utf-8") as part:
            part.writelines(f"{json.dumps(row)}\n" for row in rows)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the parts of all processes together, and tell where they are."""
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        parts = [self._part(rank) for rank in range(trainer.world_size)]
        rows = [
            json.loads(line)
            for part in parts
            if part.exists()
            for line in part.read_text(encoding="utf-8").splitlines()
        ]
        if isinstance(pl_module, ClassificationTask):
            self._write_table(rows)
        elif isinstance(pl_module, DetectionTask):
            rows.sort(key=lambda row: row["image"]["id"])
            results = [found for row in rows for found in row["found"]]
            write_text(self.folder / "results.json", json.dumps(results))
            write_text(self.folder / "images.json", json.dumps([row["image"] for row in rows]))
        for part in parts:
            part.unlink(missing_ok=True)
        summary.show("Predictions", {"images": str(len(rows)), "folder": str(self.folder)})

    def _part(self, rank: int) -> Path:
        return self.folder / f".part-{rank}.jsonl"

    def _write_table(self, rows: list[Any]) -> None:
        rows.sort(key=lambda row: row["index"])
        most = max((len(row["classes"]) for row in rows), default=0)
        path = self.folder / "predictions.csv"
        # Names of files are bytes; those that are no UTF-8 are written as they are.
        with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as stream:
            table = csv.writer(stream)
            numbers = range(1, most + 1)
            names = [f"{name}_{i}" for i in numbers for name in ("class", "probability")]
            table.writerow(["path", *names])
            for row in rows:
                pairs = zip(row["classes"], row["probabilities"], strict=True)
                cells = (row["path"], *(value for pair in pairs for value in pair))
                table.writerow(map(csv_cell, cells))

    def _write_mask(self, found: Any, trainer: Trainer) -> None:
        labels = found["labels"].cpu().numpy().astype(np.uint8)
        target = self.folder / "masks" / f"{self.names(found['path'], trainer)}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(labels)  # of mode L, which a palette makes P
        data = trainer.datamodule  # type: ignore[attr-defined]
        image.putpalette([channel for colour in colours_of(data) for channel in colour])
        image.save(target)


class OutputNames:
    """Names of what is written for each image: its path without the ending.

    With it for all of them, where two differ in that alone, or in upper and lower case, which some
    file systems ignore.

    Args:
        separator: What stands between folders; "/" for all images where another one would give two
            of them the same name.
    """

    def __init__(self, separator: str = "/") -> None:
        self._separator = separator
        self._unique: bool | None = None

    def __call__(self, path: str, trainer: Trainer) -> str:
        """Return the name for an image.

        Args:
            path: The image.
            trainer: Predicts or evaluates; its loader has all of them.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self._unique is None:
            loader: Any = trainer.predict_dataloaders
            paths = getattr(getattr(loader, "dataset", None), "paths", ())
            stems = [stem(name_of(str(one), data).as_posix()).casefold() for one in paths]
            self._unique = len(set(stems)) == len(stems)
            if len({one.replace("/", self._separator) for one in stems}) < len(set(stems)):
                self._separator = "/"
        name = name_of(path, data).as_posix()
        return (stem(name) if self._unique else name).replace("/", self._separator)


def name_of(path: str, data: Any) -> Path:
    """Return what a prediction is called: the image's path below the folder that is predicted."""
    base = getattr(data, "predict_base", None)
    if base is not None and Path(path).is_relative_to(base):
        return Path(path).relative_to(base)
    return Path(path).relative_to(Path(path).anchor) if base is None else Path(Path(path).name)


def colours_of(data: Any) -> list[tuple[int, int, int]]:
    """Return a colour for each class of the data, its own where it has them."""
    own: list[tuple[int, int, int]] | None = getattr(data, "palette", None)
    return palette(int(getattr(data, "num_classes", 255))) if own is None else own


def _classified(
    prediction: Any, indices: Sequence[int] | None, start: int, data: Any
) -> Iterator[dict[str, Any]]:
    names = getattr(data, "class_names", None)
    try:
        files = getattr(data, "predict_files", None)
    except ConfigError:  # a source that does not tell the names of its files
        files = None
    tops = zip(prediction["top_classes"], prediction["top_probabilities"], strict=True)
    for i, (classes, probabilities) in enumerate(tops):
        index = start + i if indices is None else int(indices[i])
        yield {
            "index": index,
            "path": str(index) if files is None else files[index],
            "classes": [str(c) if names is None else names[c] for c in classes.tolist()],
            "probabilities": [round(p, 6) for p in probabilities.tolist()],
        }


def _detected(found: Any, data: Any) -> dict[str, Any]:
    ids = getattr(data, "category_ids", None)
    image_id = int(found["image_id"])
    results = []
    for i, (box, score, label) in enumerate(
        zip(
            found["boxes"].tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True
        )
    ):
        x1, y1, x2, y2 = box
        result: dict[str, Any] = {
            "image_id": image_id,
            "category_id": label if ids is None else ids[label - 1],
            "bbox": [round(value, 3) for value in (x1, y1, x2 - x1, y2 - y1)],
            "score": score,
        }
        if "masks" in found:
            result["segmentation"] = rle.encode(found["masks"][i])
        results.append(result)
    file = str(name_of(found["path"], data))
    return {"image": {"id": image_id, "file_name": file}, "found": results}
