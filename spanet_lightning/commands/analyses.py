"""What each analysis of `spanet analyze` does with its arguments: measure, print, write figures."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from spanet_lightning.errors import ConfigError, invalid, invalid_choice
from spanet_lightning.summary import console

DEFAULT_MODEL = "spanetv2_s18_pure"


def response(args: argparse.Namespace) -> list[Path]:
    """Draw random mixers, or measure the mixers of models."""
    from spanet_lightning.analysis import random_mixers
    from spanet_lightning.analysis.figures import response as drawing
    from spanet_lightning.analysis.figures import save

    folder = Path(args.output)
    if args.model:
        return _own_mixers(args, folder)
    kernels = _integers("--kernels", args.kernels)
    choices = _choices(args.choose)
    found = random_mixers.draw_responses(kernels, args.side, args.draws, choices, args.seed)
    title = f"Graph frequency response, {args.side}×{args.side} tokens, {args.draws} random draws"
    data = drawing.data(found, choices, title)
    keys = {
        "mixer": "mixer",
        "cut-off, half power": "cut_off_half_power_median",
        "cut-off, -3 dB": "cut_off_minus_3_db_median",
        "high / low energy": "high_over_low_median",
    }
    rows = [{name: row[key] for name, key in keys.items()} for row in data.table]
    _show(f"medians over {args.draws} draws", rows)
    written = save(folder, "response", data)
    few = min(args.draws, 8)
    names = [one.name for one in found]
    matrices = [
        random_mixers.mean_full_response(kernel, args.side, few, choices, args.seed)
        for kernel in (*kernels, None)
    ]
    title = f"|UᵀCU|, mean of {few} draws; modes in ascending frequency"
    written += save(folder, "matrices", drawing.matrix_data(matrices, names, title))
    if args.claims:
        rows = []
        for one in random_mixers.claims(None, kernels, args.side, args.draws, args.seed):
            rows.append(_claim_row(one, names))
            _say(f"{one.label}: {'holds' if one.towards_attention else 'does not hold'}")
        _say("")
        _show("does the cut-off grow with the kernel, towards attention's?", rows)
        from spanet_lightning.analysis.figures.store import write_csv

        written.append(write_csv(folder / "claims.csv", rows))
    return written


def _claim_row(one: Any, names: Sequence[str]) -> dict[str, Any]:
    cuts = {
        name.replace("convolution ", "").replace("self-", ""): cut
        for name, cut in zip(names, one.cut_offs, strict=True)
    }
    return {"choice": one.label, **cuts, "holds": "yes" if one.towards_attention else "no"}


def _choices(given: Sequence[str]) -> Any:
    """Read KEY=VALUE pairs into the choices of random mixers."""
    from spanet_lightning.analysis.random_mixers import Choices

    defaults = Choices()
    known = {field.name: getattr(defaults, field.name) for field in fields(Choices)}
    changes: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals:
            raise invalid("--choose", pair, "KEY=VALUE, such as boundary=torus")
        if key not in known:
            raise invalid_choice("--choose", key, known)
        if isinstance(known[key], bool):
            if value not in ("true", "false"):
                raise invalid(f"--choose {key}", value, "true or false")
            changes[key] = value == "true"
        else:
            changes[key] = _integers(key, value)[0] if key == "channels" else value
    return replace(defaults, **changes)


def _own_mixers(args: argparse.Namespace, folder: Path) -> list[Path]:
    from spanet_lightning.analysis.figures import response as drawing
    from spanet_lightning.analysis.figures import save
    from spanet_lightning.analysis.images import batches, list_images
    from spanet_lightning.analysis.mixers import mixer_responses

    if args.claims or args.choose:
        raise ConfigError("--claims, --choose: are about random mixers; leave --model out")
    images = list_images(args.images, args.limit)
    found = []
    for one in _subjects(args):
        _say(one.label)
        batch = next(iter(batches(images, one.image_size(args.size), len(images))))
        how = "jacobian" if args.jacobian else "auto"
        found += mixer_responses(one, batch, args.modes, args.seed, how)  # type: ignore[arg-type]
    _say("")
    title = f"Frequency response of token mixers at {len(images)} images"
    data = drawing.mixers_data(found, title)
    _show("token mixers", data.table)
    return save(folder, "mixers", data)


def spectrum(args: argparse.Namespace) -> list[Path]:
    """Measure feature maps."""
    from spanet_lightning.analysis.figures import save
    from spanet_lightning.analysis.figures import spectrum as drawing
    from spanet_lightning.analysis.images import batches, list_images
    from spanet_lightning.analysis.spectrum import spectra

    images = list_images(args.images, args.limit)
    found = []
    for one in _subjects(args):
        _say(one.label)
        stream = batches(images, one.image_size(args.size), args.batch)
        found.append(spectra(one, stream, mixers=args.mixers))
    _say("")
    what = "token mixers" if args.mixers else "blocks"
    title = f"Relative log amplitude of the outputs of {what}, {len(images)} images"
    data = drawing.data(found, radial=args.radial, title=title)
    ends = [row for row in data.table if row["frequency"] == 1]
    _show("at the highest frequency", ends)
    folder = Path(args.output)
    title = f"Fourier spectra of the outputs of {what}, last of each stage, {len(images)} images"
    return save(folder, "spectrum", data) + save(folder, "maps", drawing.maps_data(found, title))


def filters(args: argparse.Namespace) -> list[Path]:
    """Draw filters and context maps."""
    import numpy as np

    from spanet_lightning.analysis.figures import filters as drawing
    from spanet_lightning.analysis.figures import overlays, save
    from spanet_lightning.analysis.filters import context_maps, filters
    from spanet_lightning.analysis.images import as_tensor, list_images, open_image, square

    subjects = _subjects(args)
    measured = [filters(one, args.size) for one in subjects]
    images = list_images(args.images, args.limit)
    tensors = [as_tensor(square(open_image(i), args.size, args.fit)) for i in images]
    folder, written = Path(args.output), []
    for i, (one, found) in enumerate(zip(subjects, measured, strict=True)):
        part = folder if len(subjects) == 1 else folder / f"{i + 1}-{_file_name(one.label)}"
        data = drawing.data(found, f"Spectral filters of {one.label}")
        keys = (
            "stage",
            "head",
            "filter",
            "grid",
            "gain_at_0",
            "gain_low",
            "gain_high",
            "low_share",
        )
        rows = [{key: row[key] for key in keys} for row in _last(data.table)]
        _show(f"{one.label}: balance of the last block of each stage", rows)
        written += save(part, "gates", data)
        title = f"Gain by radius, {one.label}"
        written += save(part, "profiles", drawing.profiles_data(found, title))
        maps = [context_maps(one, tensor[None]) for tensor in tensors]
        pictures = [np.asarray(tensor.permute(1, 2, 0)) for tensor in tensors]
        title = f"Context maps of {one.label}"
        written += save(part, "context", overlays.context_data(pictures, maps, title))
    return written


def _last(rows: Sequence[Any]) -> list[Any]:
    last = {row["stage"]: row["block"] for row in rows}
    return [row for row in rows if row["block"] == last[row["stage"]]]


def shape_bias(args: argparse.Namespace) -> list[Path]:
    """Count decisions, read or made."""
    from spanet_lightning.analysis import decisions, stimuli
    from spanet_lightning.analysis.figures import save
    from spanet_lightning.analysis.figures import shape_bias as drawing
    from spanet_lightning.analysis.shape_bias import by_subject

    if not args.decisions and not args.model:
        raise ConfigError("shape-bias: got neither CSV files nor --model with --stimuli")
    if args.model and not (args.stimuli and args.indices):
        raise ConfigError("--model: needs --stimuli FOLDER and --indices FILE")
    if args.stimuli and not args.model:
        raise ConfigError("--stimuli: needs --model")
    trials = decisions.read_all(decisions.csv_files(args.decisions)) if args.decisions else []
    folder, own, written = Path(args.output), [], []
    if args.model:
        indices = stimuli.read_indices(args.indices)
        shown = stimuli.find_stimuli(args.stimuli)
        for one in _subjects(args):
            _say(one.label)
            size = one.image_size(args.size)
            own += stimuli.decide(one, shown, indices, size, args.batch)
        _say("")
    found = by_subject([*trials, *own], pool_humans=not args.each)
    data = drawing.data(found, "Shape bias on cue-conflict images")
    keys = ("name", "subjects", "trials", "shape", "texture", "shape_bias", "standard_error")
    _show("shape bias", [{key: row[key] for key in keys} for row in data.table])
    written += save(folder, "shape_bias", data)
    if own:
        path = folder / "decisions.csv"
        decisions.write_csv(path, own)
        written.append(path)
    return written


def cam(args: argparse.Namespace) -> list[Path]:
    """Draw class activation maps."""
    import numpy as np

    from spanet_lightning.analysis.cam import class_map
    from spanet_lightning.analysis.figures import overlays, save
    from spanet_lightning.analysis.images import as_tensor, list_images, open_image, square

    images = list_images(args.images, args.limit)
    subjects = _subjects(args)
    pictures, found = [], []
    for i, image in enumerate(images):
        opened = open_image(image)
        tensor = as_tensor(square(opened, args.size))
        pictures.append(np.asarray(tensor.permute(1, 2, 0)))
        row = []
        for one in subjects:
            _say(f"image {i + 1} of {len(images)}, {one.label}")
            one.image_size(args.size)
            options = (args.method, args.target, args.batch, args.channels)
            row.append(class_map(one, tensor[None], *options))
        found.append(row)
    _say("")
    title = "Score-CAM" if args.method == "score" else "Grad-CAM"
    data = overlays.cam_data(pictures, found, title)
    _show(title, data.table)
    return save(Path(args.output), "cam", data)


def robustness(args: argparse.Namespace) -> list[Path]:
    """Measure accuracy by frequency."""
    import torch

    from spanet_lightning.analysis.figures import robustness as drawing
    from spanet_lightning.analysis.figures import save
    from spanet_lightning.analysis.images import batches, labelled, list_images
    from spanet_lightning.analysis.robustness import Batch, robustness

    root = Path(args.images[0])
    pairs, classes = labelled(root, args.limit) if len(args.images) == 1 else ([], [])
    images: Any = [path for path, _ in pairs] or list_images(args.images, args.limit)
    labels = torch.tensor([index for _, index in pairs])
    radii = [float(value) for value in _numbers("--radii", args.radii)]
    corruptions: Any = [part.strip() for part in args.corruptions.split(",") if part.strip()]
    found = []
    for one in _subjects(args, len(classes) or None):
        outputs = getattr(one.model, "num_classes", None)
        if classes and outputs not in (None, len(classes)):
            raise ConfigError(
                f"{one.label}: has {outputs} classes, {root} has {len(classes)} folders of classes"
            )

        def stream(size: int = one.image_size(args.size)) -> Any:
            start = 0
            for part in batches(images, size, args.batch):
                known = labels[start : start + len(part)] if len(labels) else None
                start += len(part)
                batch: Batch = (part, known)
                yield batch

        _say(one.label)
        found += robustness(one, stream(), corruptions, radii, args.noise, args.seed)
    _say("")
    data = drawing.data(found, f"Robustness by frequency, {len(images)} images")
    _show("robustness", data.table)
    return save(Path(args.output), "robustness", data)


def redraw(args: argparse.Namespace) -> list[Path]:
    """Draw figures again."""
    from spanet_lightning.analysis.figures import redraw

    return redraw(Path(args.folder))


def _subjects(args: argparse.Namespace, num_classes: int | None = None) -> list[Any]:
    """Build the models; random weights are said, since no figure shows them."""
    import spanet_lightning  # noqa: F401  (registers our models with timm)
    from spanet_lightning.analysis.models import subject

    if args.size < 32:
        raise invalid("--size", args.size, "at least 32 pixels")
    options = {"size": args.size, "seed": args.seed, "pretrained": args.pretrained}
    names = args.model or [DEFAULT_MODEL]
    found = [subject(name, num_classes=num_classes, **options) for name in names]
    random = [one.label for one in found if not one.trained]
    if random:
        print(f"random weights: {', '.join(random)}")
    return found


def _show(title: str, rows: Sequence[Any]) -> None:
    """Print rows of equal columns."""
    table = Table(title=title, title_justify="left")
    for key in rows[0]:
        numeric = isinstance(rows[0][key], (int, float))
        table.add_column(key, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    console(100).print(table)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _file_name(label: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "-" for c in label)


def _integers(key: str, text: str) -> list[int]:
    numbers = _numbers(key, text)
    if any(value != int(value) for value in numbers):
        raise invalid(key, text, "integers, separated by commas")
    return [int(value) for value in numbers]


def _numbers(key: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or any(value != value or abs(value) == float("inf") for value in values):
        raise invalid(key, text, "one number or more, separated by commas")
    return values


def _say(line: str) -> None:
    """Tell a person at a terminal how far it is."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}")
        sys.stderr.flush()
