"""Figures of a report, by matplotlib: the same data give the same bytes.

Those of a search are Optuna's own (`optuna.visualization.matplotlib`).
"""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from spanet_lightning.report import formatting as fmt
from spanet_lightning.report.arms import ArmResult
from spanet_lightning.report.document import Figure
from spanet_lightning.report.results import Results, Trial
from spanet_lightning.sweep.study import Objective

_STYLE: Any = {
    "svg.hashsalt": "spanet report",
    "svg.fonttype": "path",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e8ee",
    "axes.axisbelow": True,
}
# Readable in greyscale and by colour-blind readers; verdicts also have their own symbol.
_COLORS = {
    "control": "#4b5563",
    "better": "#00735c",
    "worse": "#b3410b",
    "equivalent": "#2563a8",
    "undecided": "#6b7280",
}
_WIDTH = 9.0  # inches


def draw_seeds(arms: Sequence[ArmResult], objective: Objective) -> Figure:
    """Draw every seed of every arm, and its difference to the control.

    Args:
        arms: The arms, in order.
        objective: What they are compared by.
    """
    metric = objective.metric
    with _styled():
        figure = Canvas(figsize=(_WIDTH, 1.2 + 0.42 * len(arms)), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        control = next((a for a in arms if a.is_control and a.trials), None)
        if control is not None:
            left.axvline(control.quantities[metric].mean, color=_COLORS["control"], ls="--", lw=1)
        right.axvline(0, color=_COLORS["control"], ls="--", lw=1)
        if objective.margin is not None:
            right.axvspan(-objective.margin, objective.margin, color="#2563a8", alpha=0.08, lw=0)
        reach = 0.0
        for y, arm in enumerate(arms):
            color = _color(arm)
            values = list(arm.quantities[metric].values.values())
            spread = 0.25 if len(values) > 1 else 0.0
            offsets = np.linspace(-spread, spread, len(values))
            left.plot(values, y + offsets, "o", ms=3.5, color=color, alpha=0.7)
            if values:
                left.plot(
                    [arm.quantities[metric].mean] * 2, [y - 0.33, y + 0.33], color=color, lw=2
                )
            if arm.comparison is None:
                continue
            differences = arm.comparison.differences
            reach = max(reach, *(abs(d) for d in differences))
            right.plot(differences, y + offsets, "o", ms=3.5, mfc="none", color=color)
            if arm.comparison.interval is not None:
                bounds = [arm.comparison.interval.low, arm.comparison.interval.high]
                right.plot(bounds, [y, y], "-|", color=color, lw=1.8, ms=8)
            right.plot(arm.comparison.mean, y, "D", ms=6, color=color)
        if reach:  # intervals of two or three seeds would squeeze the differences into a line
            limits = right.get_xlim()
            right.set_xlim(max(limits[0], -3 * reach), min(limits[1], 3 * reach))
        left.set_yticks(range(len(arms)), [_shorten(arm.arm.name) for arm in arms])
        left.invert_yaxis()
        better = "→" if objective.sign > 0 else "←"
        left.set_xlabel(f"{metric} ({better} better)")
        right.set_xlabel("difference to the control")
        for axes in (left, right):
            axes.grid(visible=False, axis="y")
            axes.locator_params(axis="x", nbins=5)
        described = "; ".join(f"{a.arm.name}: {_describe(a, metric)}" for a in arms)
        return _figure(
            figure,
            "seeds",
            alt=f"{metric} of every seed. {described}.",
            caption="Left: one dot per seed, the bar is their mean, the dashed line the control's. "
            "Right: difference to the control with the same seed; the diamond is the mean, the "
            "line its 95% confidence interval"
            + ("." if objective.margin is None else ", the band the margin of equivalence."),
        )


def draw_curves(arms: Sequence[ArmResult], objective: Objective) -> Figure:
    """Draw the learning curves, one panel per arm with the control's mean in each.

    Args:
        arms: The arms, in order.
        objective: What the curves show.
    """
    shown = [arm for arm in arms if any(trial.curve for trial in arm.trials)]
    columns = min(len(shown), 3)
    rows = math.ceil(len(shown) / columns)
    control = next((arm for arm in shown if arm.is_control), None)
    with _styled():
        figure = Canvas(figsize=(_WIDTH, 2.1 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes, arm in zip(panels.flat, shown, strict=False):
            for trial in arm.trials:
                axes.plot(*zip(*trial.curve, strict=True), color=_color(arm), lw=0.7, alpha=0.45)
            axes.plot(*_mean_curve(arm.trials), color=_color(arm), lw=1.8)
            if control is not None and not arm.is_control:
                axes.plot(*_mean_curve(control.trials), color=_COLORS["control"], ls="--", lw=1.2)
            axes.set_title(_shorten(arm.arm.name, 34), fontsize=9, loc="left")
        for axes in list(panels.flat)[len(shown) :]:
            axes.set_visible(False)
        figure.supxlabel("epoch", fontsize=9)
        figure.supylabel(objective.metric, fontsize=9)
        names = fmt.listed([arm.arm.name for arm in shown])
        return _figure(
            figure,
            "curves",
            alt=f"Learning curves of {objective.metric}, one panel for each of {names}.",
            caption="Thin: one line per seed. Thick: their mean, up to the last epoch that all "
            "seeds reached. Dashed: the control's mean.",
        )


def draw_history(results: Results) -> Figure:
    """Draw the first objective of each trial in the order of the trials, and the best so far."""
    metric = results.study.objectives[0].metric
    return _by_optuna(
        results,
        "history",
        lambda study, target: optuna.visualization.matplotlib.plot_optimization_history(
            study, target=target, target_name=metric
        ),
        alt=f"{metric} of {len(results.complete)} complete trials in order.",
        caption="One dot per complete trial; the line is the best value so far.",
    )


def draw_importance(results: Results) -> Figure:
    """Draw how much each parameter distinguishes the best trials."""
    metric = results.study.objectives[0].metric
    return _by_optuna(
        results,
        "importance",
        lambda study, target: optuna.visualization.matplotlib.plot_param_importances(
            study, target=target, target_name=metric
        ),
        alt=f"Importance of each parameter for {metric}.",
        caption="PED-ANOVA, as Optuna computes it; the shares add up to 1.",
    )


def draw_slices(results: Results) -> Figure:
    """Draw the first objective against each parameter."""
    metric = results.study.objectives[0].metric
    return _by_optuna(
        results,
        "slices",
        lambda study, target: optuna.visualization.matplotlib.plot_slice(
            study, target=target, target_name=metric
        ),
        alt=f"{metric} against each parameter.",
        caption="One dot per complete trial, coloured by its number. A trial without a conditional "
        "parameter is missing from that panel.",
    )


def draw_pareto(results: Results) -> Figure:
    """Draw the first two objectives against each other, with the Pareto front."""
    names = [objective.metric for objective in results.study.objectives]
    front = ", ".join(str(trial.number) for trial in results.stored.best_trials)
    return _by_optuna(
        results,
        "pareto",
        lambda study, _target: optuna.visualization.matplotlib.plot_pareto_front(
            study, target_names=names
        ),
        alt=f"{names[1]} against {names[0]}; on the Pareto front: trials {front}.",
        caption="Red: trials that no other trial dominates. Each is a single training, and "
        "neighbours may swap places with another seed.",
    )


def _by_optuna(
    results: Results, name: str, plot: Callable[..., Any], alt: str, caption: str
) -> Figure:
    several = len(results.study.objectives) > 1
    target = (lambda trial: trial.values[0]) if several else None
    with _styled(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its plots are experimental, and warn of few trials
        axes = plot(results.stored, target)
        first = axes if isinstance(axes, Axes) else np.asarray(axes).flat[0]
        figure: Any = first.get_figure()
        axes_of_figure = [one for one in figure.axes if one.get_label() != "<colorbar>"]
        figure.set_size_inches(max(_WIDTH, 1.9 * len(axes_of_figure)), 3.6)
        if len(axes_of_figure) > 1:  # labels of choices would overlap
            for one in axes_of_figure:
                one.tick_params(axis="x", labelrotation=30)
        figure.suptitle("")
        found = _figure(figure, name, alt=alt, caption=caption)
        plt.close(figure)
        return found


def _figure(figure: Any, name: str, alt: str, caption: str) -> Figure:
    svg, png = io.BytesIO(), io.BytesIO()
    figure.savefig(svg, format="svg", metadata={"Date": None}, bbox_inches="tight")
    figure.savefig(png, format="png", dpi=150, metadata={"Software": None}, bbox_inches="tight")
    return Figure(f"figures/{name}", svg.getvalue(), png.getvalue(), alt, caption)


def _styled() -> Any:
    return matplotlib.rc_context(_STYLE)


def _mean_curve(trials: Sequence[Trial]) -> tuple[list[int], list[float]]:
    """Return epochs and means of the seeds, where all of them have a value."""
    curves = [dict(trial.curve) for trial in trials if trial.curve]
    epochs = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    return epochs, [math.fsum(curve[e] for curve in curves) / len(curves) for e in epochs]


def _color(arm: ArmResult) -> str:
    if arm.is_control or arm.comparison is None:
        return _COLORS["control"]
    return _COLORS[arm.comparison.verdict]


def _describe(arm: ArmResult, metric: str) -> str:
    quantity = arm.quantities[metric]
    if not quantity.values:
        return "no complete trial"
    places = fmt.decimals([quantity.sd], [quantity.mean])
    text = fmt.spread(quantity.mean, quantity.sd, places)
    return text if arm.comparison is None else f"{text}, {arm.comparison.verdict}"


def _shorten(name: str, length: int = 30) -> str:
    # A dollar sign would start mathematics.
    text = name if len(name) <= length else f"{name[: length - 1]}…"
    return text.replace("$", r"\$")
