"""Figures of a search: its history, what mattered, where the good points are, the Pareto front."""

from __future__ import annotations

from collections.abc import Sequence

from spanet_lightning.sweep.definition import Choice, Objective, Parameter
from spanet_lightning.sweep.report import words
from spanet_lightning.sweep.report.gather import Trial
from spanet_lightning.sweep.report.importance import EVALUATOR, Importance
from spanet_lightning.sweep.report.scene import (
    NORMAL,
    SMALL,
    Anchor,
    Axis,
    Box,
    Canvas,
    Dot,
    Line,
    Scene,
    Text,
    axis,
    horizontal,
    text_width,
    tick_writer,
    vertical,
    wrapped,
)

_WIDTH = 1040.0
_LEFT = 72.0
_BEST = 0.1
"""Share of the trials that parallel coordinates draw in front."""


def history(trials: Sequence[Trial], objective: Objective) -> Scene:
    """Draw each trial's first objective in the order of the trials, and the best so far.

    Args:
        trials: All of the study; only complete and pruned ones are drawn.
        objective: The first one.
    """
    complete = [t for t in trials if t.complete]
    pruned = [t for t in trials if t.state == "PRUNED" and t.curve]
    top, bottom, right = 18.0, 300.0, _WIDTH - 12
    up = axis([t.values[0] for t in complete] + [t.curve[-1][1] for t in pruned], bottom, top)
    across = axis([t.number for t in (*complete, *pruned)], _LEFT, right, pad=0.02)
    canvas = Canvas()
    canvas.add(*vertical(up, _LEFT, right, objective.metric, tick_writer(up, 5), 5))
    for tick in across.ticks(8):
        if tick == round(tick):
            x = across(tick)
            canvas.add(Text(x, bottom + 16, words.plain(tick), "muted", SMALL, "middle"))
    middle = (_LEFT + right) / 2
    canvas.add(Text(middle, bottom + 35, "trial", "text", NORMAL, "middle"))
    for trial in pruned:
        title = f"trial {trial.number}: pruned at epoch {trial.curve[-1][0]}"
        x, y = across(trial.number), up(trial.curve[-1][1])
        canvas.add(Dot(x, y, 3.2, "muted", "cross", opacity=0.8, title=title))
    best: list[tuple[int, float]] = []
    for trial in complete:
        value = trial.values[0]
        if not best or _better(value, best[-1][1], objective):
            best.append((trial.number, value))
        title = f"trial {trial.number}: {words.plain(value)}"
        canvas.add(Dot(across(trial.number), up(value), 3.8, "main", opacity=0.75, title=title))
    if best:
        steps: list[tuple[float, float]] = []
        for (number, value), (after, _) in zip(best, [*best[1:], (across.high, 0.0)], strict=True):
            y = up(value)
            steps += [(across(number), y), (min(right, across(after)), y)]
        canvas.add(Line(tuple(steps), "better", 2.2, 1, (), "best so far"))
    return Scene(
        name="history",
        width=_WIDTH,
        height=bottom + 48,
        title=f"{objective.metric} of each trial",
        alt=(
            f"{objective.metric} of {words.counted(len(complete), 'complete trial')} and "
            f"{len(pruned)} pruned in their order. Best: "
            + (f"trial {best[-1][0]} with {words.plain(best[-1][1])}." if best else "none.")
        ),
        caption=(
            "Dots: complete trials. Crosses: pruned ones, at their last value. Line: the best "
            "so far."
        ),
        marks=tuple(canvas.marks),
    )


def importance(found: Sequence[Importance], metric: str) -> Scene:
    """Draw the importance of each parameter with its interval.

    Args:
        found: The parameters, in order.
        metric: What they are important for.
    """
    label = min(260.0, max(90.0, *(text_width(one.name) for one in found))) + 14
    height, top, right = 34.0, 12.0, _WIDTH - 24
    bottom = top + height * len(found)
    across = Axis(0.0, 1.0, label, right)
    canvas = Canvas()
    write = tick_writer(across, 5)
    canvas.add(*horizontal(across, top, bottom, f"share of {EVALUATOR}", write, 5))
    for i, one in enumerate(found):
        y = top + height * (i + 0.5)
        name = wrapped(one.name, label - 14, NORMAL, 1)[0]
        title = f"{one.name}: {one.share:.2f} ({one.low:.2f} to {one.high:.2f})"
        canvas.add(Text(label - 10, y + 4, name, "text", NORMAL, "end"))
        width = across(one.share) - label
        canvas.add(Box(label, y - 9, width, 18, "main", 0.45, title))
        low, high = across(one.low), across(one.high)
        canvas.add(Line(((low, y), (high, y)), "text", 1.6, 1, (), title))
        canvas.add(*(Line(((x, y - 5), (x, y + 5)), "text", 1.6) for x in (low, high)))
    shares = "; ".join(f"{one.name}: {one.share:.2f}" for one in found)
    return Scene(
        name="importance",
        width=_WIDTH,
        height=bottom + 48,
        title=f"Importance of each parameter for {metric}",
        alt=f"Importance by {EVALUATOR}. {shares}.",
        caption=(
            f"{EVALUATOR} (Optuna's): what sets the best tenth of the trials apart from all of "
            "them; the shares add up to 1. Lines: 95 % of 100 bootstraps over trials. A wide line "
            "means that this many trials do not tell."
        ),
        marks=tuple(canvas.marks),
    )


def parallel(
    trials: Sequence[Trial], space: Sequence[Parameter], objectives: Sequence[Objective]
) -> Scene:
    """Draw each trial as a line through its parameters and objectives.

    Args:
        trials: Complete ones.
        space: The parameters, each an axis.
        objectives: Each an axis after those of the parameters.
    """
    top, bottom = 64.0, 380.0
    count = len(space) + len(objectives)
    left, right = 60.0, _WIDTH - 60
    step = (right - left) / max(1, count - 1)
    ranked = sorted(trials, key=lambda t: t.values[0], reverse=objectives[0].goal == "max")
    front = {t.number for t in ranked[: max(1, round(_BEST * len(ranked)))]}
    canvas = Canvas()
    columns = [_Column(one, trials, bottom, top) for one in space]
    goals = [axis([t.values[i] for t in trials], bottom, top) for i in range(len(objectives))]
    for trial in (*reversed(ranked[len(front) :]), *reversed(ranked[: len(front)])):
        points: list[tuple[float, float]] = []
        for i, column in enumerate(columns):
            points.append((left + i * step, column.at(trial)))
        for i, goal in enumerate(goals):
            points.append((left + (len(columns) + i) * step, goal(trial.values[i])))
        title = f"trial {trial.number}: {words.plain(trial.values[0])}"
        if trial.number in front:
            canvas.add(Line(tuple(points), "better", 2.2, 0.95, (), title))
        else:
            canvas.add(Line(tuple(points), "main", 1.2, 0.28, (), title))
    for i, one in enumerate((*space, *objectives)):
        x = left + i * step
        name = one.metric if isinstance(one, Objective) else one.name
        bold = isinstance(one, Objective)
        heading = wrapped(name, step - 8, NORMAL)
        for j, text in enumerate(heading):
            y = top - 18 - 16 * (len(heading) - 1 - j)
            canvas.add(Text(x, y, text, "text", NORMAL, "middle", bold=bold))
        canvas.add(Line(((x, top - 6), (x, bottom + 6)), "muted", 1))
        if i < len(columns):
            ticks = columns[i].ticks(step)
        else:
            goal = goals[i - len(columns)]
            write = tick_writer(goal, 5)
            ticks = [(goal(t), write(t)) for t in goal.ticks(5)]
        for y, text in ticks:
            canvas.add(Line(((x - 3, y), (x + 3, y)), "muted", 1))
            # On a patch of paper, because lines run there too.
            canvas.add(Box(x + 5, y - 8, text_width(text, SMALL) + 3, 16, "paper", 0.8))
            canvas.add(Text(x + 7, y + 4, text, "text", SMALL))
    return Scene(
        name="parallel",
        width=_WIDTH,
        height=bottom + 48,
        title="Parameters and objectives of each trial",
        alt=(
            f"{words.counted(len(trials), 'trial')} as lines through "
            f"{words.listed([p.name for p in space])}; best by {objectives[0].metric}: "
            f"trials {', '.join(str(n) for n in sorted(front))}."
        ),
        caption=(
            "A line for each complete trial; the best tenth by the first objective is in front. "
            "“None” below an axis: the trial does not have this parameter."
        ),
        marks=tuple(canvas.marks),
    )


def pareto(
    trials: Sequence[Trial], front: frozenset[int], objectives: Sequence[Objective]
) -> Scene:
    """Draw two objectives against each other, with the trials that no other one beats.

    Args:
        trials: Complete ones.
        front: Numbers of the trials that no other one beats in all objectives.
        objectives: Of which the first two are drawn.
    """
    first, second = objectives[:2]
    top, bottom, right = 18.0, 400.0, _WIDTH - 24
    up = axis([t.values[0] for t in trials], bottom, top)
    values = [t.values[1] for t in trials]
    wide = bool(values) and min(values) > 0 and max(values) / min(values) > 20
    across = axis(values, _LEFT, right, log=wide)
    canvas = Canvas()
    canvas.add(*vertical(up, _LEFT, right, first.metric, tick_writer(up, 5), 5))
    large = bool(values) and max(values) >= 1e4

    def write(value: float) -> str:
        return words.scaled(value) if large else words.plain(value)

    canvas.add(*horizontal(across, top, bottom, second.metric, write, 6))
    best = sorted((t for t in trials if t.number in front), key=lambda t: t.values[1])
    if len(objectives) == 2:
        points = _steps([(across(t.values[1]), up(t.values[0])) for t in best], second)
        canvas.add(Line(points, "better", 1.8, 0.8, (6, 4)))
    for trial in trials:
        ahead = trial.number in front
        title = f"trial {trial.number}: " + ", ".join(
            f"{o.metric} {words.plain(v)}" for o, v in zip(objectives, trial.values, strict=True)
        )
        x, y = across(trial.values[1]), up(trial.values[0])
        if ahead:
            canvas.add(Dot(x, y, 6, "better", "diamond", title=title))
            # On the side of the front where no trial is.
            left = second.goal == "min"
            aside: Anchor = "end" if left else "start"
            canvas.add(
                Text(x + (-8 if left else 8), y - 6, str(trial.number), "text", SMALL, aside)
            )
        else:
            canvas.add(Dot(x, y, 3.6, "main", opacity=0.5, title=title))
    numbers = words.listed([str(t.number) for t in best]) if best else "none"
    return Scene(
        name="pareto",
        width=_WIDTH,
        height=bottom + 48,
        title=f"{first.metric} against {second.metric}",
        alt=f"{len(trials)} trials; on the Pareto front: {numbers}.",
        caption=(
            "Diamonds, with their numbers: no other trial is at least as good in every objective "
            "and better in one. Each is one training: neighbours may swap places with another seed."
        ),
        marks=tuple(canvas.marks),
    )


def pareto_front(trials: Sequence[Trial], objectives: Sequence[Objective]) -> frozenset[int]:
    """Return the numbers of the trials that no other one beats.

    Args:
        trials: Complete ones.
        objectives: Which of their values are good.
    """
    signs = [1 if objective.goal == "max" else -1 for objective in objectives]
    points = {t.number: [s * v for s, v in zip(signs, t.values, strict=True)] for t in trials}

    def beaten(mine: list[float], other: list[float]) -> bool:
        return other != mine and all(o >= m for o, m in zip(other, mine, strict=True))

    return frozenset(
        number
        for number, mine in points.items()
        if not any(beaten(mine, other) for other in points.values())
    )


class _Column:
    """An axis of parallel coordinates: labels of a choice, or numbers.

    Args:
        parameter: Of the space.
        trials: Complete ones.
        bottom: Pixel of its lower end.
        top: Pixel of its upper end.
    """

    def __init__(
        self, parameter: Parameter, trials: Sequence[Trial], bottom: float, top: float
    ) -> None:
        self.name = parameter.name
        self.below = bottom + 28
        self.missing = any(self.name not in t.params for t in trials)
        self.labels = list(parameter.values) if isinstance(parameter, Choice) else []
        if isinstance(parameter, Choice):
            self.axis = Axis(-0.5, len(self.labels) - 0.5, bottom, top)
        else:
            self.axis = axis(
                [parameter.low, parameter.high], bottom, top, pad=0.04, log=parameter.log
            )
        self.order = {t.number: i for i, t in enumerate(trials)}
        self.count = max(1, len(trials))

    def at(self, trial: Trial) -> float:
        """Return where a trial's line passes."""
        value = trial.params.get(self.name)
        # Lines of the same label are spread, so that their number is to be seen.
        spread = (self.order[trial.number] + 0.5) / self.count - 0.5
        if value is None:
            return self.below + 14 * spread
        if not self.labels:
            return self.axis(value)
        return self.axis(self.labels.index(value) + 0.35 * spread)

    def ticks(self, room: float) -> list[tuple[float, str]]:
        """Return where a label is, and what it says."""
        none = [(self.below, "none")] if self.missing else []
        if self.labels:
            return none + [
                (self.axis(i), wrapped(str(label), room - 14, SMALL, 1)[0])
                for i, label in enumerate(self.labels)
            ]
        write = tick_writer(self.axis, 5)
        return none + [(self.axis(t), write(t)) for t in self.axis.ticks(5)]


def _steps(points: list[tuple[float, float]], second: Objective) -> tuple[tuple[float, float], ...]:
    """Return the edge of what the front beats: level until the next point is better."""
    steps: list[tuple[float, float]] = []
    late = second.goal == "min"
    for i, (x, y) in enumerate(points):
        if i:
            before = points[i - 1]
            steps.append((x, before[1]) if late else (before[0], y))
        steps.append((x, y))
    return tuple(steps)


def _better(value: float, than: float, objective: Objective) -> bool:
    return value > than if objective.goal == "max" else value < than
