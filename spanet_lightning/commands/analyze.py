"""See what a model does to frequencies: figures, the numbers in them, and how to draw them again.

  response     graph frequency response of convolutions and attention, or of a model's own mixers
  spectrum     log-amplitude of feature maps by block, and their two-dimensional spectra
  filters      SRF gates and SPF masks, their balance of low and high, context maps
  shape-bias   decisions on cue-conflict images: from CSV files, or of models on stimuli
  cam          Score-CAM and Grad-CAM over photographs
  robustness   accuracy on low-pass and high-pass filtered images, and under noise in a band
  redraw       draw the figures of a folder again, from their data alone

Models go by timm's name ('spanetv2_s18_pure', 'vit_small'), 'NAME@WEIGHTS', or a run's '.ckpt'
alone. Each figure is written as SVG and PNG, beside its data as NPZ and CSV.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from spanet_lightning.errors import ConfigError, invalid, invalid_choice
from spanet_lightning.summary import console

DEFAULT_MODEL = "spanetv2_s18_pure"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the analyses and their arguments."""
    analyses = parser.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)

    def add(name: str, text: str, run_it: Callable[[argparse.Namespace], list[Path]]) -> Any:
        one = analyses.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(analyse=run_it)
        if name != "redraw":
            text = f"folder to write (default: analysis/{name})"
            one.add_argument("--output", metavar="FOLDER", default=f"analysis/{name}", help=text)
        return one

    one = add("response", "what mixers do to the frequencies of their graph", _response)
    _add_models(one, "of which the own mixers are measured (default: random mixers instead)")
    _add_images(one, limit=2)
    one.add_argument("--kernels", default="3,7,11,15", metavar="A,B", help="(default: %(default)s)")
    one.add_argument("--side", type=int, default=16, help="rows of tokens (default: %(default)s)")
    one.add_argument("--draws", type=int, default=64, help="random draws (default: %(default)s)")
    text = "test the figure's claim under every alternative to what its caption leaves open"
    one.add_argument("--claims", action="store_true", help=text)
    text = "one such choice, such as boundary=torus; see docs/analysis.md"
    one.add_argument("--choose", action="append", default=[], metavar="KEY=VALUE", help=text)
    one.add_argument("--modes", type=int, default=48, help="of a grid, of models (default: 48)")
    text = "linearise attention too, instead of taking its weights as they are"
    one.add_argument("--jacobian", action="store_true", help=text)

    one = add("spectrum", "relative log-amplitude of feature maps by block", _spectrum)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one)
    one.add_argument("--radial", action="store_true", help="average over rings, not the diagonal")
    one.add_argument("--mixers", action="store_true", help="outputs of token mixers, not of blocks")

    one = add("filters", "SRF gates, SPF masks and context maps", _filters)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, limit=4)
    text = "stretch: a square; aspect: shorter side resized, nothing cut (default: %(default)s)"
    one.add_argument("--fit", default="stretch", metavar="stretch|aspect", help=text)

    one = add("shape-bias", "shape bias from decisions, or of models on stimuli", _shape_bias)
    text = "CSV files of decisions, or folders of them"
    one.add_argument("decisions", nargs="*", metavar="CSV", help=text)
    _add_models(one, "which decide about --stimuli")
    one.add_argument("--stimuli", metavar="FOLDER", help="cue-conflict images")
    text = "JSON: the ImageNet indices of each of the 16 classes"
    one.add_argument("--indices", metavar="FILE", help=text)
    one.add_argument("--each", action="store_true", help="each person alone, not pooled")
    one.add_argument("--size", type=int, default=224, help="pixels of a side (default: 224)")
    one.add_argument("--batch", type=int, default=32, help="images at once (default: 32)")

    one = add("cam", "class activation maps over photographs", _cam)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, limit=2)
    one.add_argument("--method", default="score", metavar="score|grad", help="(default: score)")
    one.add_argument("--target", type=int, help="index of the class (default: the most probable)")
    text = "Score-CAM over this many channels, those of the largest activations (default: all)"
    one.add_argument("--channels", type=int, help=text)

    one = add("robustness", "accuracy by the frequencies of the input", _robustness)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, text="a folder with a folder for each class, or any photographs")
    text = "cycles per image side (default: %(default)s)"
    one.add_argument("--radii", default="2,4,8,16,32,64", metavar="A,B", help=text)
    one.add_argument("--corruptions", default="low,high,noise", help="(default: %(default)s)")
    text = "standard deviation, of values in [0, 1] (default: %(default)s)"
    one.add_argument("--noise", type=float, default=0.1, help=text)

    one = add("redraw", "draw figures again from their data", _redraw)
    one.add_argument("folder", metavar="FOLDER", help="with .npz files, or one such file")


def _add_models(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--model", action="append", metavar="MODEL", help=f"any number {text}")
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")


def _add_images(
    parser: argparse.ArgumentParser, limit: int | None = None, text: str = "files or folders"
) -> None:
    text = f"{text} (default: two photographs of scikit-learn's)"
    parser.add_argument("--images", nargs="+", default=["sample"], metavar="PATH", help=text)
    shown = "all" if limit is None else limit
    text = f"take this many, evenly spread (default: {shown})"
    parser.add_argument("--limit", type=int, default=limit, help=text)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default: 224)")
    parser.add_argument("--batch", type=int, default=8, help="images at once (default: 8)")


def run(args: argparse.Namespace) -> None:
    """Analyse, print the numbers, and write the figures.

    Raises:
        SpanetError: If an argument, an image or a file is wrong.
    """
    from spanet_lightning.analysis.figures import require_matplotlib

    require_matplotlib()
    if hasattr(args, "output") and Path(args.output).is_file():
        raise invalid("--output", args.output, "a folder, not a file")
    written: list[Path] = args.analyse(args)
    for path in written:
        print(f"wrote {path}")


def _response(args: argparse.Namespace) -> list[Path]:
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


def _spectrum(args: argparse.Namespace) -> list[Path]:
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


def _filters(args: argparse.Namespace) -> list[Path]:
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
        _show(f"{one.label}: balance of the last block of each stage", _last(data.table))
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


def _shape_bias(args: argparse.Namespace) -> list[Path]:
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


def _cam(args: argparse.Namespace) -> list[Path]:
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


def _robustness(args: argparse.Namespace) -> list[Path]:
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


def _redraw(args: argparse.Namespace) -> list[Path]:
    from spanet_lightning.analysis.figures import redraw

    return redraw(Path(args.folder))


def _subjects(args: argparse.Namespace, num_classes: int | None = None) -> list[Any]:
    """Build the models; random weights are said, since no figure shows them."""
    import spanet_lightning  # noqa: F401  (registers our models with timm)
    from spanet_lightning.analysis.models import subject

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
