"""Analyse what a model does to frequencies: figures, and the numbers in them.

  response     graph frequency response of convolutions and attention, or of a model's own mixers
  spectrum     log amplitude and variance of feature maps, of blocks or of any layer
  filters      SRF gates and SPF masks, their balance of low and high, context maps
  shape-bias   decisions on cue-conflict images: from CSV files, or of models on stimuli
  consistency  error consistency of models, or of models and humans
  cam          Score-CAM and Grad-CAM over photographs, and their faithfulness (ROAD)
  robustness   accuracy on low-pass and high-pass filtered images, and under noise in a band
  heatmap      error rate under each Fourier basis perturbation
  hessian      largest eigenvalues of the Hessian of the loss

Models go by timm's name ('spanetv2_s18_pure', 'vit_small'), 'NAME@WEIGHTS', a run's '.ckpt' alone,
or 'python:MODULE:FUNCTION'. Each figure is written as SVG and PNG, its numbers as CSV, its data as
NPZ; --log adds them to the MLflow run that wrote the checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from spanet_lightning.cli.convert import WEIGHTS_SET
from spanet_lightning.errors import ConfigError, invalid
from spanet_lightning.summary import console

if TYPE_CHECKING:
    from spanet_lightning.analysis.figures import Figure
    from spanet_lightning.analysis.models import LoadedModel
    from spanet_lightning.tracking.attach import Target

DEFAULT_MODEL = "spanetv2_s18_pure"

Figures = dict[str, "Figure"]
"""Figures by the name of their files, below --output."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the analyses and their arguments."""
    parsers = parser.add_subparsers(dest="analysis", metavar="ANALYSIS", required=True)

    def add(name: str, text: str, run_it: Callable[[argparse.Namespace], Figures]) -> Any:
        one = parsers.add_parser(name, help=text, description=text, allow_abbrev=False)
        one.set_defaults(analyse=run_it)
        text = f"folder to write (default: analysis/{name})"
        one.add_argument("--output", metavar="FOLDER", default=f"analysis/{name}", help=text)
        text = "add the figures and their data to the MLflow runs of the models' checkpoints"
        one.add_argument("--log", action="store_true", help=text)
        text = "add them to this run: its id, the beginning of it, or its name"
        one.add_argument("--run", metavar="RUN", help=text)
        text = "store of --run (default: the environment's, or mlflow.db)"
        one.add_argument("--tracking-uri", metavar="URI", help=text)
        return one

    one = add("response", "frequency response of mixers on the graph of their tokens", _response)
    _add_models(one, "whose own mixers are measured (default: random mixers instead)")
    _add_images(one, limit=2)
    one.add_argument("--kernels", default="3,7,11,15", metavar="A,B", help="(default: %(default)s)")
    one.add_argument("--side", type=int, default=16, help="rows of tokens (default: %(default)s)")
    one.add_argument("--draws", type=int, default=64, help="random draws (default: %(default)s)")
    text = "test the claim of SPANetV2's Fig. 1 under each reading of its caption"
    one.add_argument("--claims", action="store_true", help=text)
    text = "random kernels: average|kernel|signed (default: %(default)s); see docs/analysis.md"
    one.add_argument("--operator", default="average", help=text)
    text = "whose frequencies: own|grid (default: %(default)s)"
    one.add_argument("--window", default="own", help=text)
    text = "of tokens: zero|torus|zero_no_loops|torus_no_loops (default: %(default)s)"
    one.add_argument("--connectivity", default="zero", help=text)
    one.add_argument("--modes", type=int, default=48, help="per grid, of models (default: 48)")
    text = "linearise attention too, instead of reading its weights"
    one.add_argument("--jacobian", action="store_true", help=text)

    one = add("spectrum", "log amplitude and variance of feature maps", _spectrum)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one)
    text = "layer, or pattern such as 'stages.*.mixer', instead of blocks; repeatable"
    one.add_argument("--layer", action="append", default=[], metavar="PATTERN", help=text)
    one.add_argument("--mixers", action="store_true", help="outputs of token mixers, not of blocks")
    one.add_argument("--radial", action="store_true", help="average over rings, not the diagonal")
    text = "frequency response of convolutions' weights as well, of --layer or of all"
    one.add_argument("--weights", action="store_true", help=text)
    text = "second --model less the first, such as two checkpoints of one architecture"
    one.add_argument("--difference", action="store_true", help=text)
    text = "curves over epochs: all checkpoints below a run's folder, instead of --model"
    one.add_argument("--epochs", metavar="RUN_FOLDER", help=text)

    one = add("filters", "SRF gates, SPF masks and context maps", _filters)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, limit=4)
    text = "stretch: a square; aspect: shorter side resized, nothing cropped (default: %(default)s)"
    one.add_argument("--fit", default="stretch", metavar="stretch|aspect", help=text)

    for name, text, run_it in (
        ("shape-bias", "shape bias from decisions, or of models on stimuli", _shape_bias),
        ("consistency", "error consistency of models and humans", _consistency),
    ):
        one = add(name, text, run_it)
        text = "CSV files of decisions, or folders of them"
        one.add_argument("decisions", nargs="*", metavar="CSV", help=text)
        _add_models(one, "which decide about --stimuli")
        one.add_argument("--stimuli", metavar="FOLDER", help="cue-conflict images")
        text = "JSON: the ImageNet indices of each of the 16 classes"
        one.add_argument("--indices", metavar="FILE", help=text)
        one.add_argument("--size", type=int, default=224, help="pixels per side (default: 224)")
        one.add_argument("--batch", type=int, default=32, help="images at once (default: 32)")
        if name == "shape-bias":
            one.add_argument("--each", action="store_true", help="humans one by one, not pooled")
        else:
            text = "folder with a folder per class, about which the models decide instead"
            one.add_argument("--images", nargs="+", metavar="PATH", help=text)
            text = "take this many, evenly spread (default: all)"
            one.add_argument("--limit", type=int, help=text)

    one = add("cam", "class activation maps over photographs", _cam)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, limit=2)
    one.add_argument("--method", default="score", metavar="score|grad", help="(default: score)")
    one.add_argument("--target", type=int, help="index of the class (default: the most probable)")
    text = "Score-CAM over this many channels, those of the largest activations (default: all)"
    one.add_argument("--channels", type=int, help=text)
    text = "measure their faithfulness: remove the most, and the least, relevant pixels"
    one.add_argument("--road", action="store_true", help=text)

    images = "a folder with a folder per class, or any photographs"
    one = add("robustness", "accuracy by the frequencies of the input", _robustness)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, text=images)
    text = "cycles per image side (default: %(default)s)"
    one.add_argument("--radii", default="2,4,8,16,32,64", metavar="A,B", help=text)
    one.add_argument("--corruptions", default="low,high,noise", help="(default: %(default)s)")
    text = "standard deviation, of values in [0, 1] (default: %(default)s)"
    one.add_argument("--noise", type=float, default=0.1, help=text)

    one = add("heatmap", "error rate under each Fourier basis perturbation", _heatmap)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, text=images)
    text = "frequencies per side, odd (default: %(default)s)"
    one.add_argument("--side", type=int, default=31, help=text)
    text = "L2 norm of the perturbation (default: 15.7 at 224 px, in proportion to the size)"
    one.add_argument("--norm", type=float, help=text)

    one = add("hessian", "largest eigenvalues of the Hessian of the loss", _hessian)
    _add_models(one, f"(default: {DEFAULT_MODEL})")
    _add_images(one, text=images)
    one.add_argument("--top", type=int, default=5, help="per mini-batch (default: 5)")
    one.add_argument("--iterations", type=int, default=100, help="at most (default: 100)")
    text = "of the L2 term of the loss (default: %(default)s)"
    one.add_argument("--weight-decay", type=float, default=0.0, help=text)


def _add_models(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--model", action="append", metavar="MODEL", help=f"repeatable; {text}")
    parser.add_argument("--pretrained", action="store_true", help="download timm's weights")
    parser.add_argument("--weights-set", choices=("model", "ema"), help=WEIGHTS_SET)
    parser.add_argument("--seed", type=int, default=0, help="of random numbers (default: 0)")


def _add_images(
    parser: argparse.ArgumentParser, limit: int | None = None, text: str = "files or folders"
) -> None:
    text = f"{text} (default: two photographs of scikit-learn's)"
    parser.add_argument("--images", nargs="+", default=["sample"], metavar="PATH", help=text)
    text = f"take this many, evenly spread (default: {limit or 'all'})"
    parser.add_argument("--limit", type=int, default=limit, help=text)
    parser.add_argument("--size", type=int, default=224, help="pixels per side (default: 224)")
    parser.add_argument("--batch", type=int, default=8, help="images at once (default: 8)")


def run(args: argparse.Namespace) -> None:
    """Analyse, print the numbers, and write the figures.

    Raises:
        SpanetError: If an argument, an image or a file is wrong, or there is no such run.
    """
    import spanet_lightning  # noqa: F401  (registers our models with timm)
    from spanet_lightning.analysis.figures import save
    from spanet_lightning.tracking.attach import attach

    output = Path(args.output)
    if output.is_file():
        raise invalid("--output", args.output, "a folder, not a file")
    targets = _find_targets(args)  # before anything is measured
    written = []
    for name, figure in args.analyse(args).items():
        path = output / name
        written += save(path.parent, path.name, figure)
    extra = getattr(args, "trials", None)
    if extra:
        from spanet_lightning.analysis.trials import write_csv

        written.append(write_csv(output / "decisions.csv", extra))
    for path in written:
        print(f"wrote {path}")
    for target in targets:
        folder = attach(target, written, output, output.resolve().name)
        print(f"logged {folder} to run {target.name} ({target.run_id[:8]}) in {target.uri}")


def _find_targets(args: argparse.Namespace) -> list[Target]:
    """Return the MLflow runs that receive the figures."""
    if not args.log and args.run is None:
        return []
    from spanet_lightning.tracking.attach import of_checkpoint, of_name

    found = []
    if args.run is not None:
        found.append(of_name(args.run, args.tracking_uri))
    if args.log:
        # NAME@FILE too: the weights of a run, whoever builds the model.
        files = [name.rpartition("@")[2] for name in args.model or ()]
        checkpoints = [Path(file) for file in files if file.endswith(".ckpt")]
        if not checkpoints:
            raise ConfigError(
                "--log: none of the models is a run's .ckpt; name the run for the figures: "
                "--run RUN"
            )
        found += [of_checkpoint(file) for file in checkpoints]
    return list({target.run_id: target for target in found}.values())


# The analyses


def _response(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis import response

    if args.model:
        return _model_mixers(args)
    kernels = _integers("--kernels", args.kernels)
    reading = response.Reading(args.operator, args.window, args.connectivity)
    options = (kernels, args.side, args.draws)
    found = response.draw_responses(*options, reading, args.seed)
    title = f"Graph frequency response, {args.side}×{args.side} tokens, {args.draws} random draws"
    figures = {"response": response.response_figure(found, title)}
    shown = ("mixer", "cut_off_half_power_median", "high_over_low_median")
    _show(f"medians over {args.draws} draws", figures["response"].table, shown)
    few = min(args.draws, 8)
    matrices = [
        response.mean_full_response(kernel, args.side, few, reading, args.seed)
        for kernel in (*kernels, None)
    ]
    title = f"|UᵀCU|, mean of {few} draws; modes in ascending frequency"
    names = [one.name for one in found]
    figures["matrices"] = response.matrix_figure(matrices, names, title)
    if args.claims:
        rows = []
        for label, other in response.READINGS.items():
            _progress(label)
            drawn = response.draw_responses(*options, other, args.seed)
            rows.append(response.test_claim(label, drawn))
        keys = tuple(k for k in rows[0] if "interpolated" not in k or k.startswith("holds"))
        _show("does the cut-off grow with the kernel, up to that of attention?", rows, keys)
        figures["claims"] = response.claims_figure(rows)
    return figures


def _model_mixers(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis.figures import count
    from spanet_lightning.analysis.images import batches, list_images
    from spanet_lightning.analysis.mixers import mixer_responses, mixers_figure

    if args.claims:
        raise ConfigError("--claims: is about random mixers; leave --model out")
    images = list_images(args.images, args.limit)
    found = []
    for model in _models(args):
        batch = next(iter(batches(images, model.image_size(args.size), len(images))))
        found += mixer_responses(model, batch, args.modes, args.seed, linearise=args.jacobian)
    figure = mixers_figure(
        found, f"Frequency response of token mixers at {count(len(images), 'image')}"
    )
    _show("token mixers", figure.table, tuple(k for k in figure.table[0] if k != "number"))
    return {"mixers": figure}


def _spectrum(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis import spectrum
    from spanet_lightning.analysis.figures import count
    from spanet_lightning.analysis.images import batches, list_images
    from spanet_lightning.analysis.models import checkpoints_by_epoch

    images = list_images(args.images, args.limit)
    epochs: list[int] = []
    if args.epochs:
        if args.model or args.difference:
            raise ConfigError("--epochs: reads the checkpoints of a folder; leave --model out")
        checkpoints = checkpoints_by_epoch(Path(args.epochs))
        epochs, args.model = list(checkpoints), [str(file) for file in checkpoints.values()]
    models = _models(args)
    if args.difference and len(models) != 2:
        raise ConfigError(f"--difference: got {len(models)} models, expected two: --model twice")
    found = []
    for model in models:
        _progress(model.label)
        stream = batches(images, model.image_size(args.size), args.batch)
        found.append(spectrum.spectra(model, stream, mixers=args.mixers, patterns=args.layer))
    what = "layers" if args.layer else "token mixers" if args.mixers else "blocks"
    many = count(len(images), "image")
    figures = {}
    if epochs:
        title = f"Relative log amplitude of {what} over epochs, {many}"
        series = list(zip(epochs, found, strict=True))
        figures["epochs"] = spectrum.epochs_figure(series, title)
        found = [found[0], found[-1]]
    if args.difference:
        found = [spectrum.difference(*found)]
    title = f"Relative log amplitude of {what}, {many}"
    figures["spectrum"] = spectrum.spectrum_figure(found, title, radial=args.radial)
    ends = [row for row in figures["spectrum"].table if row["frequency"] == 1]
    keys = ("model", "layer", "stage", "size", "delta")
    _show("at the highest frequency", ends, keys)
    if not args.difference:
        title = f"Fourier spectra of {what}, {many}"
        figures["maps"] = spectrum.maps_figure(found, title)
    figures["variance"] = spectrum.variance_figure(found, f"Variance of feature maps, {many}")
    if args.weights:
        responses = [(one.label, spectrum.weight_responses(one, args.layer)) for one in models]
        title = "Frequency response of convolution weights"
        figures["weights"] = spectrum.weights_figure(responses, title)
    return figures


def _filters(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis import filters
    from spanet_lightning.analysis.images import list_images, read_image

    models = _models(args)
    measured = [filters.filters(model, args.size) for model in models]
    listed = list_images(args.images, args.limit)
    images = [read_image(one, args.size, args.fit) for one in listed]
    figures = {}
    for i, (model, found) in enumerate(zip(models, measured, strict=True), 1):
        safe = "".join(c if c.isalnum() or c in "-_." else "-" for c in model.label)
        prefix = "" if len(models) == 1 else f"{i}-{safe}/"
        rows = [filters.balance_row(one) for one in filters.last_blocks(found)]
        keys = tuple(k for k in rows[0] if k not in ("model", "block", "channel_spread"))
        _show(f"{model.label}: balance of the last block of each stage", rows, keys)
        figure = filters.gates_figure(found, f"Spectral filters of {model.label}")
        figures[f"{prefix}gates"] = figure
        figure = filters.profiles_figure(found, f"Gain by radius, {model.label}")
        figures[f"{prefix}profiles"] = figure
        maps = [filters.context_maps(model, image[None]) for image in images]
        figure = filters.context_figure(images, maps, f"Context maps of {model.label}")
        figures[f"{prefix}context"] = figure
    return figures


def _shape_bias(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis import shape_bias

    found = shape_bias.shape_biases(_trials(args), pool_humans=not args.each)
    figure = shape_bias.shape_bias_figure(found, "Shape bias on cue-conflict images")
    keys = ("name", "subjects", "trials", "shape", "texture", "shape_bias", "standard_error")
    _show("shape bias", figure.table, keys)
    number = {one.trials // max(one.subjects, 1) for one in found}
    if len(number) > 1:
        print(
            f"note: subjects decided about {min(number)} to {max(number)} images of conflicting "
            "cues each; compare values over different sets of images with care"
        )
    return {"shape_bias": figure}


def _consistency(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis import shape_bias

    trials = _decisions(args) if args.images else _trials(args, cue_conflict=False)
    found = shape_bias.error_consistency(trials)
    figure = shape_bias.consistency_figure(found, "Error consistency")
    _show("error consistency", figure.table)
    return {"consistency": figure}


def _trials(args: argparse.Namespace, *, cue_conflict: bool = True) -> list[Any]:
    """Return decisions from CSV files, and those of models about stimuli."""
    from spanet_lightning.analysis import shape_bias
    from spanet_lightning.analysis.trials import read_all

    if not args.decisions and not args.model:
        raise ConfigError(f"{args.analysis}: got neither CSV files nor --model with --stimuli")
    if args.model and not (args.stimuli and args.indices):
        raise ConfigError("--model: requires --stimuli FOLDER and --indices FILE")
    if args.stimuli and not args.model:
        raise ConfigError("--stimuli: requires --model")
    read = read_all(args.decisions, cue_conflict=cue_conflict) if args.decisions else []
    args.trials = []
    if args.model:
        indices = shape_bias.read_indices(args.indices)
        stimuli = shape_bias.list_stimuli(args.stimuli)
        for model in _models(args):
            _progress(model.label)
            size = model.image_size(args.size)
            args.trials += shape_bias.decide(model, stimuli, indices, size, args.batch)
    return [*read, *args.trials]


def _decisions(args: argparse.Namespace) -> list[Any]:
    """Return decisions of models about labelled images."""
    import torch

    from spanet_lightning.analysis.images import normalise
    from spanet_lightning.analysis.trials import Trial

    trials = []
    for model, stream, labels in _labelled(args):
        if not labels:
            raise invalid("--images", args.images[0], "a folder with a folder per class")
        with torch.no_grad():
            answers = [
                answer
                for images, _ in stream
                for answer in model.logits(normalise(images, model)).argmax(1).tolist()
            ]
        trials += [
            Trial(model.label, str(i), str(label), str(answer))
            for i, (label, answer) in enumerate(zip(labels, answers, strict=True))
        ]
    return trials


def _cam(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis import cam
    from spanet_lightning.analysis.figures import count
    from spanet_lightning.analysis.images import list_images, read_image

    listed = list_images(args.images, args.limit)
    models = _models(args)
    images = [read_image(one, args.size) for one in listed]
    found = []
    curves: dict[str, list[Any]] = {model.label: [] for model in models}
    for i, image in enumerate(images, 1):
        row = []
        for model in models:
            _progress(f"image {i} of {len(images)}, {model.label}")
            model.image_size(args.size)
            options = (args.method, args.target, args.batch, args.channels)
            row.append(cam.class_map(model, image[None], *options))
            if args.road:
                curves[model.label].append(cam.road(model, image[None], row[-1], seed=args.seed))
        found.append(row)
    title = "Score-CAM" if args.method == "score" else "Grad-CAM"
    figures = {"cam": cam.cam_figure(images, found, title)}
    _show(title, figures["cam"].table)
    if args.road:
        title = f"Faithfulness of {title} (ROAD), {count(len(images), 'image')}"
        figures["road"] = cam.road_figure(curves, title)
        _show(title, figures["road"].table)
    return figures


def _robustness(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis import robustness
    from spanet_lightning.analysis.figures import count

    radii = _numbers("--radii", args.radii)
    corruptions = [part.strip() for part in args.corruptions.split(",") if part.strip()]
    found = []
    for model, stream, _ in _labelled(args):
        options = (corruptions, radii, args.noise, args.seed)
        found += robustness.robustness(model, stream, *options)
    title = f"Robustness by frequency, {count(found[0].images, 'image')}"
    figure = robustness.robustness_figure(found, title)
    _show("robustness", figure.table)
    return {"robustness": figure}


def _heatmap(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis import robustness
    from spanet_lightning.analysis.figures import count

    found = [
        robustness.heat_map(model, stream, args.side, args.norm, args.seed)
        for model, stream, _ in _labelled(args)
    ]
    title = f"Fourier heat map, ε = {found[0].norm:.3g}, {count(found[0].images, 'image')}"
    rows = [
        {"model": one.model, "clean error": one.clean, "mean error": float(one.error.mean())}
        for one in found
    ]
    _show(title, rows)
    return {"heatmap": robustness.heat_map_figure(found, title)}


def _hessian(args: argparse.Namespace) -> Figures:
    from spanet_lightning.analysis import hessian
    from spanet_lightning.analysis.figures import count

    found = []
    for model, stream, _ in _labelled(args):
        options = (args.top, args.iterations)
        found.append(
            hessian.hessian_spectrum(
                model, stream, *options, weight_decay=args.weight_decay, seed=args.seed
            )
        )
    rows = [
        {
            "model": one.model,
            "largest": float(one.eigenvalues.max()),
            "smallest": float(one.eigenvalues.min()),
            "negative": float((one.eigenvalues < 0).mean()),
            "converged": one.converged,
        }
        for one in found
    ]
    title = f"Top {args.top} Hessian eigenvalues per mini-batch of {args.batch}"
    _show(title, rows)
    return {"hessian": hessian.hessian_figure(found, f"{title}, {count(found[0].images, 'image')}")}


# What they share


def _models(args: argparse.Namespace, num_classes: int | None = None) -> list[LoadedModel]:
    """Build the models, and mention random weights, which no figure shows."""
    from spanet_lightning.analysis.models import load_model

    if args.size < 32:
        raise invalid("--size", args.size, "at least 32 pixels")
    found = [
        load_model(
            name,
            size=args.size,
            seed=args.seed,
            pretrained=args.pretrained,
            num_classes=num_classes,
            weights_set=args.weights_set,
            allow_code=True,
        )
        for name in args.model or [DEFAULT_MODEL]
    ]
    random = [one.label for one in found if not one.trained]
    if random:
        print(f"random weights: {', '.join(random)}")
    return found


def _labelled(args: argparse.Namespace) -> list[tuple[LoadedModel, Any, list[int]]]:
    """Return each model with batches of its images, and their labels where there are any."""
    from spanet_lightning.analysis.images import labelled_batches, list_images, list_labelled

    root = Path(args.images[0])
    single = len(args.images) == 1
    images, labels, classes = list_labelled(root, args.limit) if single else ([], [], [])
    images = images or list_images(args.images, args.limit)
    found = []
    for model in _models(args, len(classes) or None):
        outputs = getattr(model.model, "num_classes", None)
        if classes and outputs not in (None, len(classes)):
            raise ConfigError(
                f"{model.label}: has {outputs} classes, but {root} {len(classes)} class folders"
            )
        size = model.image_size(args.size)
        found.append((model, labelled_batches(images, labels, size, args.batch), labels))
    return found


def _show(title: str, rows: Sequence[Any], keys: Sequence[str] = ()) -> None:
    """Print rows of equal columns, or some of their columns."""
    _progress("")
    keys = keys or list(rows[0])
    table = Table(title=title, title_justify="left")
    for key in keys:
        numeric = isinstance(rows[0][key], (int, float))
        heading = key.replace("_", " ")
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        cells = (row[key] for key in keys)
        table.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in cells))
    console(100).print(table)


def _integers(key: str, text: str) -> list[int]:
    values = _numbers(key, text)
    if any(value != int(value) for value in values):
        raise invalid(key, text, "integers, separated by commas")
    return [int(value) for value in values]


def _numbers(key: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = []
    if not values or any(value != value or abs(value) == float("inf") for value in values):
        raise invalid(key, text, "one number or more, separated by commas")
    return values


def _progress(line: str) -> None:
    """Show at a terminal what is being measured; an empty line removes it."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{line}")
        sys.stderr.flush()
