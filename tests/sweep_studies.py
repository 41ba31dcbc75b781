"""Studies with made-up results, stored as the engine stores them, for the tests of the report."""

from __future__ import annotations

import datetime
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from spanet_lightning.sweep.records import TrialRecord
from spanet_lightning.sweep.study import Arm, Parameter, Study

BEGIN = datetime.datetime(2026, 11, 20, 9, 0, 0)
SRF = "model.backbone.srf"
KERNELS = "model.backbone.kernel_sizes"


def ablation(
    seeds: Sequence[int] = range(8), arms: Sequence[Arm] | None = None, name: str = "digits-srf"
) -> Study:
    arms = arms or (
        Arm(name="with SRF", published=83.4),
        Arm(name="without SRF", overrides={SRF: False}, published=82.2),
        Arm(name="kernels = 3+5+7, SRF = on", overrides={KERNELS: [3, 5, 7]}, published=83.5),
        Arm(name="kernels = 9", overrides={KERNELS: [9]}),
    )
    plain = {
        "name": name,
        "question": "Does the learned re-scaling of spectra (SRF) pay, and for which kernels?",
        "config": "configs/digits/spanetv2.yaml",
        "objective": {"metric": "val/top1", "direction": "maximize"},
        "ablation": {
            "control": arms[0].name,
            "arms": {arm.name: arm.model_dump() for arm in arms},
            "seeds": list(seeds),
        },
        "overrides": {"trainer.max_epochs": 8},
        "test": "test/top1",
        "note": "Published figures: arXiv:2503.23947, Table 5, Top-1 on ImageNet-1K in percent.",
    }
    return Study.model_validate(plain)


EFFECT = {"without SRF": -0.02, "kernels = 3+5+7, SRF = on": 0.004, "kernels = 9": 0.015}
MACS = {"kernels = 3+5+7, SRF = on": 1.08, "kernels = 9": 1.02}


def fill_ablation(
    study: Study,
    stored: optuna.Study,
    *,
    sd: float = 0.006,
    skip: Callable[[str, int], bool] = lambda arm, seed: False,
) -> None:
    """Store a result for each cell; arm effects as in `EFFECT`."""
    assert study.ablation is not None
    rng = np.random.default_rng(7)
    stored.set_user_attr("definition", json.dumps(study.as_dict()))
    stored.set_user_attr("run_id", "5d1c0ffee")
    for seed in study.ablation.seeds:
        of_seed = rng.normal(0, 0.012)
        for arm in study.ablation.arms.values():
            value = 0.93 + of_seed + EFFECT.get(arm.name, 0.0) + rng.normal(0, sd)
            if not skip(arm.name, seed):
                add_cell(study, stored, arm, seed, float(round(value, 4)), noise=rng)


def add_cell(
    study: Study,
    stored: optuna.Study,
    arm: Arm,
    seed: int,
    value: float | None,
    *,
    state: TrialState = TrialState.COMPLETE,
    noise: np.random.Generator | None = None,
    **more: Any,
) -> int:
    rng = noise or np.random.default_rng(seed)
    curve = {
        e: float(round((value or 0.5) - 0.5 * math.exp(-e / 1.8) + rng.normal(0, 0.006), 4))
        for e in range(1, 9)
    }
    macs = round(4_193_000 * MACS.get(arm.name, 1.0))
    record = TrialRecord(
        overrides={**study.overrides, **arm.overrides},
        seed=seed,
        arm=arm.name,
        command=("lightning", "fit", "--config", study.configs[0], f"--seed_everything={seed}"),
        config_hash="ab12cd34ef5678",
        folder=f"runs/sweeps/{study.name}/{arm.name}-seed{seed}",
        run_id=f"{len(arm.name):04x}c0de{seed:04x}",
        worker="host:1",
        hardware="AMD EPYC, 2 cores",
        commit="1b67c32a9f0c",
        data="digits, 1,797 images",
        parameters=1_234_567 if macs == 4_193_000 else 1_300_001,
        macs=macs,
        images_per_second=812.0 + 10 * rng.normal(),
        train_seconds=41.0 + rng.normal(),
        best_epoch=8,
        best={"val/top1": value} if value is not None else {},
        test={"test/top1": float(round(value - 0.011 + rng.normal(0, 0.004), 4))} if value else {},
    )
    values = (value,) if value is not None and state == TrialState.COMPLETE else None
    params = {"arm": arm.name, "seed": seed}
    assert study.ablation is not None
    distributions: dict[str, BaseDistribution] = {
        "arm": CategoricalDistribution(list(study.ablation.arms)),
        "seed": CategoricalDistribution(list(study.ablation.seeds)),
    }
    return store(stored, replace(record, **more), state, values, params, distributions, curve)


def store(
    stored: optuna.Study,
    record: TrialRecord,
    state: TrialState,
    values: tuple[float, ...] | None,
    params: Mapping[str, Any],
    distributions: Mapping[str, BaseDistribution],
    curve: Mapping[int, float],
) -> int:
    """Store an ended trial as the engine does."""
    number = len(stored.get_trials(deepcopy=False))
    begin = BEGIN + datetime.timedelta(seconds=50 * number)
    # Optuna gives a pruned trial its last value.
    if state == TrialState.PRUNED and values is None and len(stored.directions) == 1:
        values = (curve[max(curve)],)
    stored.add_trial(
        FrozenTrial(
            number=number,
            state=state,
            value=None,
            values=values,
            datetime_start=begin,
            datetime_complete=begin + datetime.timedelta(seconds=44),
            params=dict(params),
            distributions=dict(distributions),
            user_attrs=record.as_attrs(),
            system_attrs={},
            intermediate_values=dict(curve) if len(stored.directions) == 1 else {},
            trial_id=number,
        )
    )
    return number


def search(*, several: bool = False) -> Study:
    objectives = [{"metric": "val/top1", "direction": "maximize"}]
    if several:
        objectives.append({"metric": "cost/macs", "direction": "minimize"})
    space = {
        "kernels": {"key": KERNELS, "choices": {"3": [3], "3+5": [3, 5], "3+5+7": [3, 5, 7]}},
        "balance": {"key": "model.backbone.balance", "float": [0.5, 0.95]},
        "lr": {"key": "optimizer.lr", "float": [1e-4, 1e-2], "log": True},
        "srf": {"key": SRF, "choices": {"on": True, "off": False}},
        "heads": {"key": "model.backbone.num_heads", "int": [1, 8], "when": {"kernels": "3"}},
    }
    sampler = {"sampler": "nsga2"} if several else {"sampler": "tpe", "pruner": "median"}
    plain = {
        "name": "digits-v2",
        "question": "Which V2 knobs matter on digits, and what do they cost?",
        "config": "configs/digits/spanetv2.yaml",
        "objective": objectives,
        "search": {"space": space, "trials": 40, **sampler},
        "test": "test/top1",
    }
    return Study.model_validate(plain)


def fill_search(study: Study, stored: optuna.Study) -> None:
    assert study.search is not None
    rng = np.random.default_rng(11)
    stored.set_user_attr("definition", json.dumps(study.as_dict()))
    for number in range(40):
        params: dict[str, Any] = {
            "kernels": str(rng.choice(["3", "3+5", "3+5+7"])),
            "balance": float(rng.uniform(0.5, 0.95)),
            "lr": float(10 ** rng.uniform(-4, -2)),
            "srf": str(rng.choice(["on", "off"])),
        }
        if params["kernels"] == "3":
            params["heads"] = int(rng.integers(1, 9))
        size = {"3": 1.0, "3+5": 1.15, "3+5+7": 1.4}[params["kernels"]]
        value = 0.94 - 0.04 * abs(math.log10(params["lr"]) + 3) + 0.01 * (size - 1)
        value += 0.01 * (params["srf"] == "on") + rng.normal(0, 0.006)
        pruned = not several_of(study) and number > 8 and rng.random() < 0.3
        curve = {e: float(value - 0.5 * math.exp(-e / 1.8)) for e in range(1, 4 if pruned else 9)}
        macs = round(4_193_000 * size * (1 + 0.01 * params.get("heads", 0)))
        record = TrialRecord(
            overrides={p.key: p.value(params[p.name]) for p in _space(study) if p.name in params},
            command=("lightning", "fit", "--config", study.configs[0]),
            config_hash=f"{number:010d}",
            run_id=f"run{number:04d}",
            hardware="AMD EPYC, 2 cores",
            commit="1b67c32a9f0c",
            data="digits, 1,797 images",
            parameters=1_234_567,
            macs=macs,
            images_per_second=800.0,
            train_seconds=40.0,
            test={"test/top1": float(value - 0.012)},
        )
        distributions: dict[str, BaseDistribution] = {
            "kernels": CategoricalDistribution(["3", "3+5", "3+5+7"]),
            "balance": optuna.distributions.FloatDistribution(0.5, 0.95),
            "lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
            "srf": CategoricalDistribution(["on", "off"]),
            "heads": IntDistribution(1, 8),
        }
        values = (float(value), float(macs)) if several_of(study) else (float(value),)
        store(
            stored,
            record,
            TrialState.PRUNED if pruned else TrialState.COMPLETE,
            None if pruned else values,
            params,
            {name: distributions[name] for name in params},
            curve,
        )


def several_of(study: Study) -> bool:
    return len(study.objectives) > 1


def _space(study: Study) -> list[Parameter]:
    return list(study.search.space.values()) if study.search else []
