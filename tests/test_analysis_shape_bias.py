"""If one of these fails, a shape bias is not the published one, or a bad file is believed."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from spanet_lightning.analysis import decisions, stimuli
from spanet_lightning.analysis.decisions import CLASSES, read_csv
from spanet_lightning.analysis.models import Subject
from spanet_lightning.analysis.shape_bias import by_subject, shape_bias
from spanet_lightning.errors import ConfigError, DataError

DATA = Path(__file__).parents[2] / "shared" / "data" / "shape_bias"
PUBLISHED = {
    "humans": 0.959,
    "resnet50": 0.221,
    "alexnet": 0.429,
    "googlenet": 0.312,
    "vgg": 0.172,
}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the published decisions are not here")

HEADER = "subj,session,trial,rt,object_response,category,condition,imagename"


@needs_data
def test_the_published_values_come_from_the_published_decisions():
    found = by_subject(decisions.read_all(decisions.csv_files([DATA / "decisions"])))
    values = {one.name: one.value for one in found}
    assert set(values) == set(PUBLISHED)
    for name, value in PUBLISHED.items():
        assert values[name] == pytest.approx(value, abs=1e-3), name
    humans = next(one for one in found if one.name == "humans")
    assert (humans.subjects, humans.shape, humans.texture) == (10, 9236, 398)
    for one in found:
        assert one.dropped == 80 * one.subjects
        assert one.trials == 1200 * one.subjects


def _row(answer: str, image: str, who: str = "net") -> str:
    shape = image.split("-")[0].rstrip("0123456789")
    return f"{who},1,1,NaN,{answer},{shape},0,0001_s5n_{who}_0_{shape}_00_{image}.png"


ROWS = [
    _row("cat", "cat1-dog2"),  # shape
    _row("dog", "cat2-dog2"),  # texture
    _row("bear", "cat3-dog2"),  # neither
    _row("na", "cat4-dog2"),  # no answer
    _row("cat", "cat5-cat2"),  # no conflict
    _row("oven", "oven1-dog2"),  # shape
]


def _write(folder: Path, rows: list[str], end: str = "\n", header: str = HEADER) -> Path:
    path = folder / "some.csv"
    path.write_bytes((end.join([header, *rows]) + end).encode())
    return path


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_counts_whatever_the_lines_end_with_and_their_order(tmp_path, end):
    rows = list(ROWS)
    random.Random(0).shuffle(rows)
    (one,) = by_subject(read_csv(_write(tmp_path, rows, end)))
    assert (one.shape, one.texture, one.trials, one.dropped) == (2, 1, 5, 1)
    assert one.value == pytest.approx(2 / 3)
    assert one.of_class("cat") == 0.5
    assert one.of_class("oven") == 1
    assert np.isnan(one.of_class("bear"))
    assert one.mean_over_classes == pytest.approx(0.75)
    assert one.cue_accuracy == pytest.approx(3 / 5)


def test_columns_may_come_in_another_order_and_more_may_be_there(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("imagename,category,more,object_response,subj\ncat1-dog2.png,cat,,CAT,a\n")
    assert shape_bias("a", read_csv(path)).value == 1


def test_people_are_pooled_or_not(tmp_path):
    rows = [_row("cat", "cat1-dog2", "subject-01"), _row("dog", "cat1-dog2", "subject-02")]
    trials = read_csv(_write(tmp_path, rows))
    (pooled,) = by_subject(trials)
    assert (pooled.name, pooled.subjects, pooled.value) == ("humans", 2, 0.5)
    assert [one.value for one in by_subject(trials, pool_humans=False)] == [1, 0]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "has no row"),
        ([_row("catt", "cat1-dog2")], "line 2: object_response is 'catt'.*did you mean 'cat'"),
        ([_row("cat", "cat1-tree2")], "line 2: imagename is .*no stimulus"),
        ([_row("cat", "cat1-dog2").replace(",cat,0", ",dog,0")], "category is 'dog', but the sha"),
        ([_row("cat", "cat1-dog2")] * 2, "line 3: net decided about cat1-dog2 in line 2 already"),
        ([_row("cat", "cat1-dog2", "")], "line 2: subj is empty"),
        (["net,1,1,NaN,cat"], "line 2: has another number of fields"),
        ([_row("cat", "cat1-dog2") + ",more"], "line 2: has another number of fields"),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path, rows, told):
    with pytest.raises(DataError, match=told):
        read_csv(_write(tmp_path, rows))


def test_a_bad_file_is_told(tmp_path):
    with pytest.raises(DataError, match="lacks the column object_response; it has subj"):
        read_csv(_write(tmp_path, [], header=HEADER.replace("object_response", "answer")))
    with pytest.raises(DataError, match="no such file"):
        read_csv(tmp_path / "none.csv")
    binary = tmp_path / "b.csv"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="not a readable CSV"):
        read_csv(binary)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no \.csv file below"):
        decisions.csv_files([tmp_path / "empty"])
    one = _write(tmp_path, ROWS)
    two = tmp_path / "two.csv"
    two.write_bytes(one.read_bytes())
    with pytest.raises(DataError, match=r"decided about cat1-dog2 in .*some\.csv already"):
        decisions.read_all([one, two])


def test_what_is_written_is_read(tmp_path):
    trials = read_csv(_write(tmp_path, ROWS))
    decisions.write_csv(tmp_path / "again.csv", trials)
    assert read_csv(tmp_path / "again.csv") == trials


def _indices() -> dict[str, list[int]]:
    return {name: [2 * i, 2 * i + 1] + ([900] if i == 0 else []) for i, name in enumerate(CLASSES)}


def test_a_class_has_the_mean_of_its_indices_not_the_sum():
    logits = torch.zeros(1, 1000)
    logits[0, [0, 1, 900]] = 1.0  # three indices: the larger sum
    logits[0, [2, 3]] = 1.2  # two: the larger mean
    found = stimuli.class_probabilities(logits, _indices())
    p = logits.double().softmax(1)[0]
    torch.testing.assert_close(found[0, 1], (p[2] + p[3]) / 2)
    torch.testing.assert_close(found[0, 0], (p[0] + p[1] + p[900]) / 3)
    assert found.argmax() == 1
    assert p[[0, 1, 900]].sum() > p[[2, 3]].sum()


class _Brightness(torch.nn.Module):
    """Decides for the first class where an image is bright, for the last where it is dark."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(x), 1000)
        logits[:, :2] = x.mean((1, 2, 3))[:, None] * 9
        logits[:, 30:32] = -x.mean((1, 2, 3))[:, None] * 9
        return logits


def test_a_model_decides_about_stimuli(tmp_path):
    indices = tmp_path / "i.json"
    indices.write_text(json.dumps(_indices()))
    for name, value in (("airplane1-truck1", 250), ("airplane2-truck1", 5)):
        (tmp_path / "airplane").mkdir(exist_ok=True)
        Image.new("RGB", (224, 224), (value,) * 3).save(tmp_path / "airplane" / f"{name}.png")
    one = Subject("net", _Brightness(), (0.5,) * 3, (0.25,) * 3, None, 1.0, False)
    shown = stimuli.find_stimuli(tmp_path)
    made = stimuli.decide(one, shown, stimuli.read_indices(indices), 64)
    assert [d.answer for d in made] == ["airplane", "truck"]
    assert shape_bias("net", made).value == 0.5
    small = Subject("ten", torch.nn.Flatten(), (0,) * 3, (1,) * 3, None, 1.0, False)
    with pytest.raises(ConfigError, match="expected the logits of ImageNet's 1000 classes"):
        stimuli.decide(small, shown, _indices(), 64)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"cat": [1000]}, "cat: expected a list of integers from 0 to 999"),
        ({"cat": [0]}, "index 0 is in two classes"),
        ({"tree": [5]}, "expected an object with the keys"),
        ({"cat": []}, "cat: expected a list"),
    ],
)
def test_bad_indices_are_told(tmp_path, change, told):
    path = tmp_path / "i.json"
    path.write_text(json.dumps({**_indices(), **change}))
    with pytest.raises(DataError, match=told):
        stimuli.read_indices(path)


@needs_data
def test_the_index_map_and_the_stimuli_are_read():
    indices = stimuli.read_indices(DATA / "imagenet_to_16class_indices.json")
    assert sum(map(len, indices.values())) == 207
    shown = stimuli.find_stimuli(DATA / "stimuli")
    assert len(shown) == 160
