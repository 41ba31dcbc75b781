"""How the time of an image grows with its pixels, beside what the operators predict.

Each model is built once, for 224 px, as a trained one would be; other sizes resize its SRF logits
on the way. Batches shrink as images grow, so that no call gets long.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spanet_lightning.bench.growth import Fit, Point, fit, predicted_terms
from spanet_lightning.bench.models import WARM_UP_CALLS, Row, eval_call, ratio
from spanet_lightning.bench.settings import Settings
from spanet_lightning.bench.subjects import Subject, build_all
from spanet_lightning.bench.timing import Say, alternate, spread, timed

SIZES = (112, 160, 192, 224, 288, 320, 384, 448, 512, 640, 768, 896)
_TRAINED_SIZE = 224


def batch_at(size: int, batch: int) -> int:
    """Return how many images of a size have about as many pixels as `batch` of 224 px."""
    return max(1, round(batch * (_TRAINED_SIZE / size) ** 2))


def measure_resolution(
    subjects: Sequence[Subject],
    pairs: Sequence[tuple[Subject, Subject]],
    sizes: Sequence[int],
    settings: Settings,
    say: Say,
) -> tuple[list[Row], list[Row], list[Row]]:
    """Measure all models at all sizes in alternation, in evaluation.

    Args:
        subjects: The models; what `pairs` compares with is added.
        pairs: Which to compare, at each size.
        sizes: Sides of the images, in pixels.
        settings: How; `batch` is that of 224 px.
        say: Is told how far it is.

    Returns:
        The `results`, `ratios` and `fits` of the JSON document.
    """
    everyone = dict.fromkeys([*subjects, *(other for _, other in pairs)])
    models = build_all(list(everyone), _TRAINED_SIZE, settings.seed)
    terms = {subject: predicted_terms(model, subject) for subject, model in models.items()}
    turns = {}
    with settings.compiling(frozen=True):
        for subject, model in models.items():
            runnable = settings.compiled(settings.place(model).eval())
            for size in sizes:
                say(f"warm-up of {subject.label} at {size} px")
                images = settings.images(batch_at(size, settings.batch), size)
                call = eval_call(runnable, images, settings)
                for _ in range(WARM_UP_CALLS - 1):
                    call()
                turns[subject, size] = timed(call, settings.seconds)
        seconds = alternate(turns, settings.rounds, say)
    results = []
    for (subject, size), values in seconds.items():
        batch = batch_at(size, settings.batch)
        results.append(
            {
                "subject": subject.label,
                "mode": "eval",
                "seconds": [value / batch for value in values],
                "size": size,
                "pixels": size**2,
                "batch": batch,
                "ms_per_image": 1e3 * spread(values).median / batch,
            }
        )
    ratios = [
        {
            **ratio(a.label, b.label, "eval", seconds[a, size], seconds[b, size]),
            "size": size,
        }
        for a, b in pairs
        for size in sizes
    ]
    fits = []
    for subject in models:
        measured = points(results, subject.label)
        found = fit(measured, terms[subject])
        shares = found.shares(max(point.pixels for point in measured))
        fits.append({"subject": subject.label, **asdict(found), "shares": shares})
    return results, ratios, fits


def points(results: Sequence[Row], label: str) -> list[Point]:
    """Return the measurements of a subject."""
    return [
        Point(row["pixels"], row["ms_per_image"] / 1e3)
        for row in results
        if row["subject"] == label
    ]


def as_fit(row: Row) -> Fit:
    """Return the fit that an entry of `fits` holds."""
    return Fit(row["terms"], row["largest_error"], row["held_out_error"])


def write_csv(path: Path, results: Sequence[Row], fits: Sequence[Row]) -> None:
    """Write the measurements and the fitted times, one line for each subject and size."""
    found = {row["subject"]: as_fit(row) for row in fits}
    with path.open("w", newline="", encoding="utf-8") as file:
        lines: Any = csv.writer(file)
        lines.writerow(
            ["subject", "size", "pixels", "batch", "ms_per_image", "low_ms", "high_ms", "fit_ms"]
        )
        for row in results:
            around = spread(row["seconds"])
            predicted = found[row["subject"]].seconds(row["pixels"])
            times = (around.median, around.low, around.high, predicted)
            lines.writerow(
                [row["subject"], row["size"], row["pixels"], row["batch"]]
                + [f"{1e3 * t:.4f}" for t in times]
            )
