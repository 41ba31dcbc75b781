"""`spanet analyze response`: random mixers, or those of models."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from spanet_lightning.cli.analyses.common import integers, say, show, subjects
from spanet_lightning.errors import ConfigError, invalid, invalid_choice


def response(args: argparse.Namespace) -> list[Path]:
    """Draw random mixers, or measure the mixers of models."""
    from spanet_lightning.analysis import random_mixers
    from spanet_lightning.analysis.figures import response as drawing
    from spanet_lightning.analysis.figures import save

    folder = Path(args.output)
    if args.model:
        return _own_mixers(args, folder)
    kernels = integers("--kernels", args.kernels)
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
    show(f"medians over {args.draws} draws", rows)
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
            say(f"{one.label}: {'holds' if one.towards_attention else 'does not hold'}")
        say("")
        show("does the cut-off grow with the kernel, towards attention's?", rows)
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
            changes[key] = integers(key, value)[0] if key == "channels" else value
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
    for one in subjects(args):
        say(one.label)
        batch = next(iter(batches(images, one.image_size(args.size), len(images))))
        how = "jacobian" if args.jacobian else "auto"
        found += mixer_responses(one, batch, args.modes, args.seed, how)  # type: ignore[arg-type]
    say("")
    title = f"Frequency response of token mixers at {len(images)} images"
    data = drawing.mixers_data(found, title)
    keys = {
        "model": "model",
        "mixer": "mixer",
        "how": "how",
        "grid": "grid",
        "at 0": "response_at_0",
        "cut-off": "cut_off_half_power",
        "high/low": "high_over_low",
        "leakage": "leakage",
    }
    show("token mixers", [{name: row[key] for name, key in keys.items()} for row in data.table])
    return save(folder, "mixers", data)
