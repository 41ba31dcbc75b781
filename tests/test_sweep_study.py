"""If one fails, a study is not what its file says, or a mistake in it is not found or not clear."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from spanet_lightning.errors import ConfigError, DataError, SpanetError
from spanet_lightning.sweep import plan
from spanet_lightning.sweep.check import check_study
from spanet_lightning.sweep.command import fit_command, resolve
from spanet_lightning.sweep.space import points
from spanet_lightning.sweep.study import Study, from_stored, read_study
from tests.helpers import CONFIGS, files, images

V2 = CONFIGS / "digits" / "spanetv2.yaml"
HEAD = f"""question: Does it matter?
config: {V2}
objective: {{metric: val/top1, direction: maximize}}
"""
ARMS = """ablation:
  seeds: [0, 1]
  control: with
  arms:
    with: {}
    without: {overrides: {model.backbone.srf: false}, published: 82.2}
"""
SPACE = """search:
  sampler: tpe
  trials: 4
  space:
    mixer:
      key: model.backbone.mixers
      choices:
        pure: [spam, spam, spam, spam]
        late: [spam, spam, spam, attention]
    lr: {key: model.optimizer.lr, float: [1e-4, 1e-2], log: true}
    heads: {key: model.backbone.num_heads, int: [1, 4], when: {size: "3"}}
"""
SPACE = SPACE.replace(
    "    lr:",
    '    size: {key: model.backbone.kernel_sizes, choices: {"3": [3], "3+5": [3, 5]}}\n    lr:',
)


@pytest.fixture(autouse=True)
def _in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(text: str, path: str = "sweeps/tiny/study.yaml") -> str:
    """Write a study; return its path."""
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return path


def study(text: str) -> Study:
    """Return the study of a text."""
    return read_study(written(text))


def refused(text: str, check: bool = False) -> str:
    """Return the error of a text, in one line, with nothing written."""
    path = written(text)
    before = files()
    if check:
        found = read_study(path)
        with pytest.raises(SpanetError) as info:
            check_study(found)
    else:
        with pytest.raises(SpanetError) as info:
            read_study(path)
    error = str(info.value)
    assert "\n" not in error
    assert files() == before
    return error


# -- what a file says


def test_ablation_is_what_its_file_says() -> None:
    text = (
        HEAD + "test: test/top1\noverrides: {trainer: {max_epochs: 8}, model.backbone.srf: true}\n"
    )
    found = study(text + ARMS)
    assert found.name == "tiny-study"
    assert [objective.metric for objective in found.objectives] == ["val/top1"]
    assert found.overrides == {"trainer.max_epochs": 8, "model.backbone.srf": True}
    assert found.ablation is not None
    assert (found.ablation.control, found.ablation.seeds) == ("with", (0, 1))
    arms = [(a.name, a.overrides, a.published) for a in found.ablation.arms.values()]
    assert arms == [("with", {}, None), ("without", {"model.backbone.srf": False}, 82.2)]


def test_grid_of_an_ablation_has_every_point_as_an_arm() -> None:
    grid = """ablation:
  seeds: [0]
  control: kernels=3, srf=on
  grid:
    kernels: {key: model.backbone.kernel_sizes, values: {"3": [3], "3+5": [3, 5]}}
    srf: {key: model.backbone.srf, values: {on: true, off: false}}
"""
    found = study(HEAD + grid).ablation
    assert found is not None
    names = [
        "kernels=3, srf=on",
        "kernels=3, srf=off",
        "kernels=3+5, srf=on",
        "kernels=3+5, srf=off",
    ]
    assert list(found.arms) == names
    assert found.arms["kernels=3+5, srf=off"].overrides == {
        "model.backbone.kernel_sizes": [3, 5],
        "model.backbone.srf": False,
    }


def test_study_over_others() -> None:
    """Keys merge; the overrides of an arm are replaced whole; a mistake names its own file."""
    written(HEAD + "overrides: {a.b: 1, a.c: 2}\n" + ARMS, "sweeps/all.yml")
    text = "base: ../all.yml\noverrides: {a.b: 3}\nablation:\n  seeds: [4]\n"
    found = study(text + "  arms: {without: {overrides: {a.d: 1}}, third: {overrides: {a.e: 1}}}\n")
    assert found.overrides == {"a.b": 3, "a.c": 2}
    assert found.ablation is not None
    assert found.ablation.seeds == (4,)
    assert list(found.ablation.arms) == ["with", "without", "third"]
    assert found.ablation.arms["without"].overrides == {"a.d": 1}
    assert found.ablation.arms["without"].published == 82.2
    assert "study.yaml:1: base: got 'nowhere" in refused("base: nowhere.yml\n").replace(
        "sweeps/tiny/", ""
    )


def test_names_are_the_text_that_was_written() -> None:
    """`off` is no boolean and `007` no number where a name is expected."""
    text = (
        "ablation:\n  seeds: [0]\n  control: off\n  arms: {off: {}, 007: {overrides: {a.b: 1}}}\n"
    )
    found = study(HEAD + text).ablation
    assert found is not None
    assert (found.control, list(found.arms)) == ("off", ["off", "007"])
    space = SPACE.replace('"3": [3], "3+5": [3, 5]', "on: [3], off: [3, 5]").replace('"3"', "on")
    search = study(HEAD + space).search
    assert search is not None
    assert search.space["heads"].when == {"size": ["on"]}


def test_search_is_what_its_file_says() -> None:
    search = study(HEAD + SPACE).search
    assert search is not None
    assert (search.sampler, search.pruner, search.trials, search.hours) == ("tpe", "none", 4, None)
    mixer, size, lr, heads = search.space.values()
    assert list(mixer.choices or ()) == ["pure", "late"]
    assert size.choices == {"3": [3], "3+5": [3, 5]}
    assert (lr.low, lr.high, lr.log) == (1e-4, 1e-2, True)
    assert heads.when == {"size": ["3"]}
    assert search.points is None  # without end
    less = study(HEAD + SPACE.replace("float: [1e-4, 1e-2], log: true", "choices: [1e-3]")).search
    assert less is not None
    assert less.points == 2 * (4 + 1)


@pytest.mark.parametrize("body", [ARMS, SPACE])
def test_definition_comes_back_from_storage(body: str) -> None:
    found = study(HEAD + body)
    again = from_stored(json.loads(json.dumps(found.as_dict())))
    assert again.as_dict() == found.as_dict()
    assert again.digest() == found.digest()


def test_definition_of_the_first_version_is_read() -> None:
    objective = {"metric": "val/top1", "goal": "min", "at": "best"}
    old = {"name": "a", "question": "b", "configs": ["c"], "objectives": [objective],
           "overrides": {}, "test": None, "note": "", "kind": "ablation", "where": {}}  # fmt: skip
    arms = [{"name": n, "overrides": {}, "published": None} for n in "xy"]
    found = from_stored({**old, "method": {"control": "x", "arms": arms, "seeds": [0]}})
    assert found.ablation is not None
    assert list(found.ablation.arms) == ["x", "y"]
    assert found.objectives[0].direction == "minimize"
    space = [{"name": "k", "key": "a.k", "values": {"3": [3]}, "when": None},
             {"name": "h", "key": "a.h", "kind": "int", "low": 1, "high": 4, "step": None,
              "log": False, "when": {"parameter": "k", "values": ["3"]}}]  # fmt: skip
    method = {"space": space, "sampler": "tpe", "pruner": "none", "trials": 4, "hours": None,
              "seed": 0, "train_seed": 0}  # fmt: skip
    search = from_stored({**old, "kind": "search", "method": method}).search
    assert search is not None
    assert search.space["h"].when == {"k": ["3"]}
    with pytest.raises(ConfigError, match=r"definition: .* can't read"):
        from_stored({**old, "method": {}})


def test_configuration_may_be_beside_the_study() -> None:
    path = written(HEAD.replace(str(V2), "own.yaml") + ARMS)
    Path("sweeps/tiny/own.yaml").write_text(V2.read_text(encoding="utf-8"), encoding="utf-8")
    assert read_study(path).configs == ("sweeps/tiny/own.yaml",)


def test_command_line_adds_overrides_for_every_trial() -> None:
    path = written(HEAD + ARMS)
    found = read_study(path, ["--data.batch_size=8", "--data.augment=false"])
    assert found.overrides == {"data.batch_size": 8, "data.augment": False}
    with pytest.raises(ConfigError, match="--KEY=VALUE"):
        read_study(path, ["extra"])
    with pytest.raises(ConfigError, match="seed_everything is not for a study to set"):
        read_study(path, ["--seed_everything=1"])


# -- mistakes in the file alone


def swapped(old: str, new: str, text: str = HEAD + ARMS) -> str:
    assert old in text
    return text.replace(old, new, 1)


TWO = "[{metric: val/top1, direction: maximize}, {metric: cost/macs, direction: minimize}]"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            swapped("question", "qestion"),
            ":1: qestion: there is no such key; expected one of name,",
        ),
        (swapped("question", "qestion"), "did you mean 'question'?"),
        (swapped("question: Does it matter?\n", ""), "study.yaml: question: is missing"),
        (swapped(str(V2), "nowhere.yaml"), ":2: config: got 'nowhere.yaml', which does not exist"),
        (HEAD + ARMS + "question: again\n", "question: given twice in one mapping (first in line"),
        (HEAD, "got neither of ablation and search, expected one of them"),
        (HEAD + ARMS + "name: a/b\n", ":10: name: got 'a/b', expected 1 to 100 letters"),
        (HEAD + ARMS + "test: val/top1\n", ":10: test: got 'val/top1', expected a metric of the"),
        # keys of the first version
        (HEAD + "set: {a.b: 1}\n" + ARMS, ":4: set: was renamed; write overrides"),
        (swapped("overrides:", "set:"), ":9: ablation.arms.without.set: was renamed; write overri"),
        (
            swapped("direction: maximize", "goal: max"),
            ":3: objective.goal: was renamed; write direct",
        ),
        # objectives
        (swapped("maximize", "maximum"), ":3: objective.direction: got 'maximum', expected one of"),
        (swapped("maximize", "maximum"), "did you mean 'maximize'?"),
        (swapped("val/top1", "test/top1"), "got 'test/top1', expected a validation metric"),
        (swapped("val/top1", "cost/macs"), "got 'cost/macs', expected a metric that runs log"),
        (swapped("val/top1", "cost/mac"), "got 'cost/mac', expected one of 'cost/parameters', 'co"),
        # overrides
        (HEAD + "overrides: 3\n" + ARMS, ":4: overrides: got 3, expected overrides by dotted key"),
        (HEAD + "overrides: {lr!: 1}\n" + ARMS, "got 'lr!', expected a dotted key"),
        (HEAD + "overrides: {a.b: .inf}\n" + ARMS, "got inf, expected a finite number"),
        (HEAD + "overrides: {a.b: 1, a.init_args.b: 2}\n" + ARMS, "a.b is set twice"),
        # ablations
        (swapped("control: with", "control: wth"), ":6: ablation.control: got 'wth', expected one"),
        (swapped("  control: with\n", ""), "ablation.control: is missing"),
        (swapped("[0, 1]", "[0, 0]"), ":5: ablation.seeds: got the seed 0 twice"),
        (swapped("[0, 1]", "[0, -1]"), ":5: ablation.seeds: got -1, expected greater than"),
        (swapped("[0, 1]", "[0, 0.5]"), ":5: ablation.seeds: got 0.5, expected a valid integer"),
        (swapped("without:", "with:"), ":9: with: given twice in one mapping (first in line 8)"),
        (swapped("{overrides: {m", "{override: {m"), "without.override: there is no such key"),
        (swapped("{overrides: {m", "{model.a: 1, overrides: {m"), "overrides go under 'overrides'"),
        (swapped("82.2", "good"), ":9: ablation.arms.without.published: got 'good', expected a va"),
        (HEAD + ARMS[: ARMS.index("    without")], "expected the control and at least one other"),
        # searches
        (swapped("tpe", "tpee", HEAD + SPACE), ":5: search.sampler: got 'tpee', expected one of"),
        (swapped("  trials: 4\n", "", HEAD + SPACE), "search.trials: is missing; expected trials,"),
        (swapped("[1e-4, 1e-2]", "[1e-2, 1e-4]", HEAD + SPACE), "lr.float: got [0.01, 0.0001]"),
        (swapped("[1e-4, 1e-2]", "[0, 1e-2]", HEAD + SPACE), "bounds above 0, as log is true"),
        (swapped("log: true", "step: 0.004", HEAD + SPACE), "got 0.004, expected a step that lea"),
        (swapped("int: [1, 4]", "choices: []", HEAD + SPACE), "heads.choices: got [], expected v"),
        (swapped("int: [1, 4]", "choices: [1, 1]", HEAD + SPACE), "'1' is the same value as '1'"),
        (
            swapped("int: [1, 4]", "float: [1, 2], int: [3, 4]", HEAD + SPACE),
            "got int and float of",
        ),
        (swapped("{size:", "{sise:", HEAD + SPACE), "got 'sise', expected a parameter that prece"),
        (swapped('{size: "3"}', '{size: "5"}', HEAD + SPACE), "when: got '5', expected one of '3'"),
        (swapped("tpe", "grid", HEAD + SPACE), "search.space.lr: got a parameter without a grid"),
        (
            swapped("model.optimizer.lr", "model.backbone.mixers", HEAD + SPACE),
            "search.space.lr: model.backbone.mixers is varied by 'mixer' already",
        ),
        (
            swapped("trials: 4", "trials: 4\n  pruner: median", HEAD + SPACE).replace(
                "{metric: val/top1, direction: maximize}", TWO
            ),
            "search.pruner: got 'median', expected 'none' with several objectives",
        ),
        ("a: [\n", "not valid YAML"),
        ("a: !!python/object:os.system {}\n", "the tag"),
    ],
)
def test_mistake_in_the_file_is_one_line_with_its_place(text: str, says: str) -> None:
    error = refused(text)
    assert says in error
    assert "sweeps/tiny/study.yaml" in error


def test_file_that_is_not_there_names_the_nearest_one() -> None:
    written(HEAD + ARMS)
    with pytest.raises(ConfigError, match=r"which does not exist.*did you mean .*study.yaml"):
        read_study("sweeps/tiny/stdy.yaml")


# -- mistakes that only the experiment can tell


@pytest.mark.parametrize(
    ("text", "says"),
    [
        # keys and types, as `lightning fit` checks them
        (swapped("backbone.srf: f", "backbone.sfr: f"), ":9: arm 'without': model.backbone.sfr: g"),
        (swapped("backbone.srf: f", "backbone.sfr: f"), "did you mean 'model.backbone.srf'?"),
        (
            HEAD + "overrides: {trainer.max_epoch: 3}\n" + ARMS,
            ":4: overrides: trainer.max_epoch: got 3, but",
        ),
        # values, as the constructors check them
        (swapped("srf: false", "kernel_sizes: [4]"), "kernel_sizes: got 4, expected an odd"),
        (
            swapped("model.backbone.srf: false", "trainer.max_epochs: -5"),
            "'without': trainer.max_epochs: ",
        ),
        # a difference that is none
        (swapped("srf: false", "srf: true"), "the arms 'with' and 'without' train the same"),
        # metrics
        (swapped("val/top1", "val/top"), ":3: objective.metric: got 'val/top', expected one of"),
        (swapped("val/top1", "val/top"), "did you mean 'val/top5'?"),
        (HEAD + ARMS + "test: test/tpo1\n", ":10: test: got 'test/tpo1', expected one of 'test"),
        (
            HEAD + "overrides: {checkpoint.monitor: val/los}\n" + ARMS,
            "overrides: checkpoint.monitor: got 'val",
        ),
        # searches: every choice, both ends
        (swapped("attention]", "atention]", HEAD + SPACE), "search.space.mixer: model.backbone.mi"),
        (swapped("int: [1, 4]", "int: [0, 4]", HEAD + SPACE), ":15: search.space.heads: model.ba"),
        (swapped("int: [1, 4]", "int: [1, 3]", HEAD + SPACE), ":15: trial with heads=3: model.ba"),
    ],
)
def test_mistake_in_the_experiment_is_one_line_with_its_place(text: str, says: str) -> None:
    assert says in refused(text, check=True)


def test_sound_studies_pass_and_leave_nothing() -> None:
    ablation, search = study(HEAD + ARMS), study(HEAD + SPACE)
    before, seed = files(), os.environ.get("PL_GLOBAL_SEED")
    state = torch.get_rng_state()
    check_study(ablation)
    check_study(search)
    assert files() == before
    assert os.environ.get("PL_GLOBAL_SEED") == seed
    assert torch.equal(torch.get_rng_state(), state)


def test_every_value_of_a_space_is_checked() -> None:
    found = points(study(HEAD + SPACE))
    seen = {(key, json.dumps(value)) for point in found for key, value in point.overrides.items()}
    assert {
        ("model.backbone.kernel_sizes", "[3, 5]"),
        ("model.backbone.num_heads", "1"),
        ("model.backbone.num_heads", "4"),
        ("model.optimizer.lr", "0.0001"),
        ("model.optimizer.lr", "0.01"),
    } <= seen
    # What exists only with one kernel size is not set beside two.
    two = [point for point in found if point.overrides["model.backbone.kernel_sizes"] == [3, 5]]
    assert two
    assert all("model.backbone.num_heads" not in point.overrides for point in two)


def test_data_that_is_not_here_is_refused_unless_it_may_be_missing(tmp_path: Path) -> None:
    config = CONFIGS / "cifar10" / "spanetv2.yaml"
    found = study(HEAD.replace(str(V2), str(config)) + ARMS)
    with pytest.raises(DataError, match="data/cifar10"):
        check_study(found)
    check_study(found, data=False)
    root = images(tmp_path / "few")
    here = found.model_copy(update={"overrides": {"data.root": str(root)}})
    check_study(here)


# -- commands


def test_command_says_the_trial() -> None:
    found = study(
        HEAD + "overrides: {trainer.max_epochs: 8, model.backbone.variant: test}\n" + ARMS
    )
    overrides = {"model.backbone.kernel_sizes": [3, 5], "model.backbone": "SPANetV2"}
    argv = fit_command(found, overrides, 7, folder_root="runs/sweeps/x", name="a-seed7")
    assert argv == [
        "fit",
        f"--config={V2}",
        "--trainer.max_epochs=8",
        "--model.backbone=SPANetV2",
        "--model.backbone.variant=test",
        "--model.backbone.kernel_sizes=[3, 5]",
        "--seed_everything=7",
        "--trainer.default_root_dir=runs/sweeps/x",
        "--name=a-seed7",
    ]
    flat, _ = resolve(argv)
    assert flat["model.backbone.kernel_sizes"] == [3, 5]
    assert (flat["trainer.max_epochs"], flat["seed_everything"]) == (8, 7)
    assert flat["name"] == "a-seed7"


def test_fingerprint_is_of_the_training_alone() -> None:
    found = study(HEAD + ARMS)

    def fingerprint(seed: int = 0, root: str = "runs", **overrides: Any) -> str:
        return resolve(fit_command(found, overrides, seed, folder_root=root))[1]

    same = fingerprint()
    assert len(same) == 64
    assert fingerprint(root="elsewhere") == same
    assert fingerprint(**{"trainer.logger": False}) == same
    assert fingerprint(seed=1) != same
    assert fingerprint(**{"model.backbone.srf": False}) != same


# -- plans


def test_plan_has_costs_and_flags_unequal_ones(capsys: pytest.CaptureFixture[str]) -> None:
    arms = ARMS + "    wide: {overrides: {model.backbone.dims: [32, 64, 96, 128]}}\n"
    found = study(HEAD + arms)
    before = files()
    planned = plan.plan(found, timed=False)
    assert planned.trials == 6
    control, without, wide = planned.rows
    assert (control.parameters, control.relative, control.is_flagged) == (383_348, 1.0, False)
    # Spectral operators count: without them, both arms would cost the same.
    assert control.macs == 1_470_816 + 25_184
    assert without.macs == 1_470_816
    assert not without.is_flagged
    assert wide.is_flagged
    assert planned.hours is None
    plan.show(planned)
    shown = capsys.readouterr().out
    assert "with (control)" in shown
    assert "82.2" in shown
    assert "6 trials" in shown
    assert "%  !" not in shown.split("wide")[0]
    assert "% !" in shown.split("wide")[1]
    assert files() == before


def test_plan_times_a_few_steps_and_writes_nothing() -> None:
    text = HEAD + "overrides: {trainer.max_epochs: 3, trainer.limit_train_batches: 4}\n" + ARMS
    found = study(text)
    before, seed = files(), os.environ.get("PL_GLOBAL_SEED")
    planned = plan.plan(found)
    assert files() == before
    assert os.environ.get("PL_GLOBAL_SEED") == seed
    assert planned.hours is not None
    # 3 epochs of 4 steps and 3 batches of validation: well over a millisecond, under a minute.
    assert all(row.seconds is not None and 1e-3 < row.seconds < 60 for row in planned.rows)


def test_plan_of_an_accelerator_that_is_not_here_says_so() -> None:
    found = study(HEAD + "overrides: {trainer.accelerator: gpu, trainer.devices: 64}\n" + ARMS)
    planned = plan.plan(found)
    assert planned.rows[0].macs is not None
    assert planned.rows[0].seconds is None
    assert any("Not timed: " in note and "accelerator" in note for note in planned.notes)
