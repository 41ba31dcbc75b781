"""If one of these fails, a class map, an accuracy, a shape bias or an eigenvalue is wrong."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from spanet_lightning.analysis import cam, hessian, images, robustness, shape_bias
from spanet_lightning.analysis.models import LoadedModel, load_model
from spanet_lightning.analysis.trials import CLASSES, Trial, read_all, read_csv, write_csv
from spanet_lightning.errors import ConfigError, DataError
from tests.reference import analysis as literal

DATA = Path(__file__).parents[2] / "shared" / "data" / "shape_bias"
PUBLISHED = {"humans": 0.959, "resnet50": 0.221, "alexnet": 0.429, "googlenet": 0.312, "vgg": 0.172}
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the published decisions are not here")

HEADER = "subj,session,trial,rt,object_response,category,condition,imagename"
PLAIN = {"mean": (0.0,) * 3, "std": (1.0,) * 3}


# Class activation maps


def test_score_cam_is_the_literal_one():
    one = load_model("test_spanetv2", size=64, num_classes=7)
    image = torch.rand(1, 3, 64, 64)
    found = cam.class_map(one, image, "score", batch=5)
    x = images.normalise(image, one)
    with torch.no_grad():
        logits = one.model(x)
        features = one.model.forward_features(x)
        expected = literal.score_cam(one.model, x, features, int(logits.argmax()))
    assert found.target == int(logits.argmax())
    assert found.probability == pytest.approx(float(logits.softmax(1).max()), abs=1e-6)
    expected = cam.normalise_map(expected, (64, 64)).numpy()
    np.testing.assert_allclose(found.heat, expected, atol=1e-4)


class _Linear(nn.Module):
    """Pools features and weighs their channels: Grad-CAM's weights are the classifier's / N."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 4, 8, 8)
        self.feature_info = [{"module": "features", "num_chs": 4}]
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.features(x).mean((2, 3)))
        return y


def test_grad_cam_of_a_linear_classifier_is_its_weighted_sum():
    torch.manual_seed(1)
    net = _Linear().eval().requires_grad_(False)
    one, image = LoadedModel("x", net, **PLAIN), torch.rand(1, 3, 32, 32)
    found = cam.class_map(one, image, "grad", target=2)
    field = (net.head.weight[2][:, None, None] * net.features(image)[0]).sum(0).relu()
    np.testing.assert_allclose(found.heat, cam.normalise_map(field, (32, 32)).numpy(), atol=1e-4)
    with pytest.raises(ConfigError, match="--target: got 3, expected a class from 0 to 2"):
        cam.class_map(one, image, "grad", target=3)


@pytest.mark.parametrize("method", ["score", "grad"])
@pytest.mark.parametrize(("name", "size"), [("test_spanet", 64), ("test_vit", 160)])
def test_maps_of_models_of_both_layouts(name, size, method):
    one = load_model(name, size=size)
    found = cam.class_map(one, torch.rand(1, 3, size, size), method, channels=4)
    assert found.heat.shape == (size, size)
    assert np.isfinite(found.heat).all()
    assert found.heat.max() > 0.5


def test_imputation_continues_a_plane_and_keeps_the_rest():
    """Symmetric weights: the values of a plane are the means of their neighbours."""
    y, x = np.mgrid[:12, :10]
    image = torch.tensor(np.stack([y + 2 * x, 3 * y - x, 0 * x]), dtype=torch.float64)
    removed = np.zeros((12, 10), dtype=bool)
    removed[3:8, 2:7] = removed[9, 4] = True
    found = cam.impute(image, removed, noise=0)
    torch.testing.assert_close(found, image, rtol=0, atol=1e-9)
    noisy = cam.impute(image, removed, noise=0.1) - image
    assert float(noisy[:, torch.from_numpy(~removed)].abs().max()) == 0
    assert 0.05 < float(noisy[:, torch.from_numpy(removed)].std()) < 0.15
    removed[:] = True
    removed[0, 0] = False  # one pixel left: all become it
    torch.testing.assert_close(cam.impute(image, removed, 0), image[:, :1, :1].expand_as(image))


class _Corner(nn.Module):
    """Class 1 by the mean of the upper left corner alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corner = x[:, :, :8, :8].mean((1, 2, 3)) * 4
        return torch.stack([torch.zeros_like(corner), corner], 1)


def test_road_prefers_the_map_of_what_is_seen():
    image = torch.zeros(1, 3, 16, 16)
    image[:, :, :8, :8] = 1
    heat = image[0, 0].numpy()
    one = LoadedModel("x", _Corner(), **PLAIN)
    good, bad = (cam.ClassMap("x", 1, 0.9, h) for h in (heat, 1 - heat))
    curves = cam.road(one, image, good, shares=(0.25, 0.5))
    expected = torch.tensor([0.0, 4.0]).softmax(0)[1]  # as long as the corner is there
    np.testing.assert_allclose(curves["least"], float(expected), atol=1e-6)
    assert curves["most"][0] == pytest.approx(0.5, abs=0.01)  # filled with the zeros around it
    assert cam.road_score(curves) > 0.2
    assert cam.road_score(cam.road(one, image, bad, shares=(0.25, 0.5))) < -0.2


# Robustness


def _cosine(side: int, v: int) -> torch.Tensor:
    x = torch.cos(2 * math.pi * v * torch.arange(side, dtype=torch.float64) / side)
    return (0.5 + 0.25 * x).expand(1, 3, side, side)


def test_a_filter_passes_what_it_should():
    low, high, exact = _cosine(32, 3), _cosine(32, 9), {"rtol": 0, "atol": 1e-10}
    passed = robustness.filter_images
    torch.testing.assert_close(passed(low, 3, "low"), low, **exact)
    torch.testing.assert_close(passed(high, 8, "low"), torch.full_like(high, 0.5), **exact)
    torch.testing.assert_close(passed(high, 8, "high"), high, **exact)
    x = torch.rand(2, 3, 24, 32).double()
    both = passed(x, 5, "low") + passed(x, 5, "high")
    torch.testing.assert_close(both, x + x.mean((2, 3), keepdim=True), **exact)


def test_noise_is_in_its_band_and_of_its_strength():
    noise = robustness.band_noise((3, 3, 32, 32), 8, 2, 0.1, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(noise.square().mean((1, 2, 3)).sqrt(), 0.1, rtol=1e-5)
    assert float(robustness.filter_images(noise.double(), 6.9, "low").abs().max()) < 1e-6
    assert float(robustness.filter_images(noise.double(), 9.1, "high").abs().max()) < 1e-6
    with pytest.raises(ConfigError, match="--radii: got 90"):
        robustness.band_noise((1, 3, 32, 32), 90, 2, 0.1, torch.Generator())


class _Stripes(nn.Module):
    """Class 1 where there is anything but the mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.std((1, 2, 3))
        return torch.stack([torch.full_like(level, 0.05), level], 1)


def test_accuracy_falls_where_what_is_seen_is_filtered_out():
    one, image = LoadedModel("x", _Stripes(), **PLAIN), _cosine(32, 6).float()
    labels = torch.tensor([1])
    low, high = robustness.robustness(one, [(image, labels)], ("low", "high"), (2, 8))
    assert (low.clean, low.accuracy, high.accuracy) == (1, (0, 1), (1, 0))
    (own,) = robustness.robustness(one, [(image, None)], ("low",), (2, 8))
    assert (low.agreement, own.agreement, own.accuracy) == (False, True, (0, 1))
    for arguments, message in (({"radii": (8, 2)}, "--radii"), ({"noise": 0}, "--noise")):
        with pytest.raises(ConfigError, match=message):
            robustness.robustness(one, [(image, labels)], **arguments)


class _OneWave(nn.Module):
    """A linear detector: errs where the image has the wave of one frequency, of either sign."""

    def __init__(self, u: int, v: int) -> None:
        super().__init__()
        self.wave = robustness.fourier_basis(16, 16, u, v)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        seen = (x * self.wave).sum((2, 3)).abs().amax(1)
        return torch.stack([torch.ones_like(seen), seen], 1)


def test_a_heat_map_is_hot_at_the_frequency_that_the_model_sees():
    one = LoadedModel("x", _OneWave(2, -3), **PLAIN)
    x = torch.full((2, 3, 16, 16), 0.5)
    found = robustness.heat_map(one, [(x, torch.tensor([0, 0]))], side=7, norm=1.5)
    expected = np.zeros((7, 7))
    expected[3 + 2, 3 - 3] = expected[3 - 2, 3 + 3] = 1
    np.testing.assert_array_equal(found.error, expected)
    assert (found.clean, found.images) == (0, 2)
    quiet = robustness.heat_map(one, [(x, None)], side=7, norm=0.5)  # below the detector's 1
    assert quiet.agreement
    assert quiet.error.max() == 0
    for u, v in ((0, 0), (2, -3), (8, 8), (0, 8)):
        wave = robustness.fourier_basis(16, 16, u, v)
        spectrum = torch.fft.fft2(wave).abs()
        assert float(wave.norm()) == pytest.approx(1, abs=1e-6)
        at = {(u % 16, v % 16), (-u % 16, -v % 16)}
        assert {tuple(i) for i in (spectrum > 1e-3).nonzero().tolist()} == at
    with pytest.raises(ConfigError, match="--side: got 4, expected an odd number"):
        robustness.heat_map(one, [(x, None)], side=4)
    with pytest.raises(ConfigError, match="--side: got 31, expected at most 17"):
        robustness.heat_map(one, [(x, None)], side=31)


# Curvature


class _Softmax(nn.Module):
    def __init__(self, classes: int, zero: bool) -> None:
        super().__init__()
        self.head = nn.Linear(12, classes, bias=False)
        if zero:
            nn.init.zeros_(self.head.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(x.flatten(1))
        return logits


def test_hessian_eigenvalues_of_a_linear_classifier():
    """At zero weights, of one image: ‖x‖²/K, K - 1 times, plus the weight decay."""
    x = torch.rand(1, 3, 2, 2)
    one = LoadedModel("x", _Softmax(4, zero=True), **PLAIN)
    options = {"top": 4, "iterations": 500, "tolerance": 1e-7}
    found = hessian.hessian_spectrum(one, [(x, torch.tensor([2]))], **options, weight_decay=0.1)
    value = float(x.square().sum()) / 4 + 0.1
    np.testing.assert_allclose(found.eigenvalues[0], [value] * 3 + [0.1], rtol=1e-4)
    assert found.converged == 1
    assert not any(p.requires_grad for p in one.model.parameters())


def test_hessian_eigenvalues_are_those_of_the_dense_matrix():
    torch.manual_seed(0)
    net = _Softmax(3, zero=False)
    x, labels = torch.rand(5, 3, 2, 2), torch.tensor([0, 1, 2, 0, 1])

    def loss(weight: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(x.flatten(1) @ weight.view(3, 12).t(), labels)

    dense = torch.autograd.functional.hessian(loss, net.head.weight.detach().flatten())
    expected = torch.linalg.eigvalsh(dense).flip(0)[:3].numpy()
    options = {"top": 3, "iterations": 3000, "tolerance": 1e-9}
    one = LoadedModel("x", net, **PLAIN)
    found = hessian.hessian_spectrum(one, [(x, labels), (x, labels)], **options)
    np.testing.assert_allclose(found.eigenvalues, [expected] * 2, rtol=1e-3)


def test_hessian_of_a_network_with_attention():
    one = load_model("test_vit", size=160, num_classes=3)
    found = hessian.hessian_spectrum(one, [(torch.rand(1, 3, 160, 160), None)], 1, iterations=2)
    assert np.isfinite(found.eigenvalues).all()
    with pytest.raises(DataError, match="got none"):
        hessian.hessian_spectrum(one, [])


def test_a_backbone_without_a_classifier_has_no_classes():
    """Its pooled features look like logits."""
    bare = load_model("test_spanetv2", size=64, num_classes=0)
    image = torch.rand(1, 3, 64, 64)
    for analyse in (
        lambda: cam.class_map(bare, image, "grad"),
        lambda: cam.class_map(bare, image, "score", channels=1),
        lambda: robustness.robustness(bare, [(image, None)], ("low",), (2,)),
        lambda: hessian.hessian_spectrum(bare, [(image, None)]),
    ):
        with pytest.raises(ConfigError, match="no logits of classes; this analysis needs a class"):
            analyse()


# Shape bias


@needs_data
def test_published_values_come_from_the_published_decisions():
    trials = read_all([DATA / "decisions"])
    found = shape_bias.shape_biases(trials)
    assert {one.name for one in found} == set(PUBLISHED)
    for one in found:
        assert one.value == pytest.approx(PUBLISHED[one.name], abs=1e-3), one.name
        assert (one.dropped, one.trials) == (80 * one.subjects, 1200 * one.subjects)
    humans = next(one for one in found if one.name == "humans")
    assert (humans.subjects, humans.shape, humans.texture) == (10, 9236, 398)
    pairs = shape_bias.error_consistency(trials)
    people = [p.kappa for p in pairs if p.first.startswith("sub") and p.second.startswith("sub")]
    mixed = [p.kappa for p in pairs if p.first.startswith("sub") != p.second.startswith("sub")]
    assert len(people) == 45
    assert np.mean(people) > 0.3 > 0.15 > np.mean(mixed)  # Geirhos et al. 2020, Fig. 2


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
def test_counts_do_not_depend_on_line_ends_or_order(tmp_path, end):
    rows = list(ROWS)
    random.Random(0).shuffle(rows)
    (one,) = shape_bias.shape_biases(read_csv(_write(tmp_path, rows, end)))
    assert (one.shape, one.texture, one.trials, one.dropped) == (2, 1, 5, 1)
    assert one.value == pytest.approx(2 / 3)
    assert (one.of_class("cat"), one.of_class("oven")) == (0.5, 1)
    assert np.isnan(one.of_class("bear"))
    assert one.mean_over_classes == pytest.approx(0.75)
    assert one.cue_accuracy == pytest.approx(3 / 5)


def test_columns_may_come_in_another_order_and_humans_are_pooled(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("imagename,category,more,object_response,subj\ncat1-dog2.png,cat,,CAT,a\n")
    assert shape_bias.shape_bias("a", read_csv(path)).value == 1
    rows = [_row("cat", "cat1-dog2", "subject-01"), _row("dog", "cat1-dog2", "subject-02")]
    trials = read_csv(_write(tmp_path, rows))
    (pooled,) = shape_bias.shape_biases(trials)
    assert (pooled.name, pooled.subjects, pooled.value) == ("humans", 2, 0.5)
    each = shape_bias.shape_biases(trials, pool_humans=False)
    assert [one.value for one in each] == [1, 0]


@pytest.mark.parametrize(
    ("rows", "message"),
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
def test_a_bad_row_is_named_with_its_line(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read_csv(_write(tmp_path, rows))


def test_a_bad_file_is_named(tmp_path):
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
        read_all([tmp_path / "empty"])
    one = _write(tmp_path, ROWS)
    two = tmp_path / "two.csv"
    two.write_bytes(one.read_bytes())
    with pytest.raises(DataError, match=r"decided about cat1-dog2 in .*some\.csv already"):
        read_all([one, two])
    trials = read_csv(one)
    assert read_csv(write_csv(tmp_path / "again.csv", trials)) == trials


def _indices() -> dict[str, list[int]]:
    return {name: [2 * i, 2 * i + 1] + ([900] if i == 0 else []) for i, name in enumerate(CLASSES)}


def test_a_class_has_the_mean_of_its_indices_not_the_sum():
    logits = torch.zeros(1, 1000)
    logits[0, [0, 1, 900]] = 1.0  # three indices: the larger sum
    logits[0, [2, 3]] = 1.2  # two: the larger mean
    found = shape_bias.class_probabilities(logits, _indices())
    p = logits.double().softmax(1)[0]
    torch.testing.assert_close(found[0, 1], (p[2] + p[3]) / 2)
    torch.testing.assert_close(found[0, 0], (p[0] + p[1] + p[900]) / 3)
    assert found.argmax() == 1
    assert p[[0, 1, 900]].sum() > p[[2, 3]].sum()


class _Brightness(nn.Module):
    """Decides for the first class where an image is bright, for the last where it is dark."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(x), 1000)
        logits[:, :2] = x.mean((1, 2, 3))[:, None] * 9
        logits[:, 30:32] = -x.mean((1, 2, 3))[:, None] * 9
        return logits


def test_a_model_decides_about_stimuli(tmp_path):
    (tmp_path / "i.json").write_text(json.dumps(_indices()))
    (tmp_path / "airplane").mkdir()
    for name, value in (("airplane1-truck1", 250), ("airplane2-truck1", 5)):
        Image.new("RGB", (64, 64), (value,) * 3).save(tmp_path / "airplane" / f"{name}.png")
    one = LoadedModel("net", _Brightness(), (0.5,) * 3, (0.25,) * 3)
    shown = shape_bias.list_stimuli(tmp_path / "airplane")
    made = shape_bias.decide(one, shown, shape_bias.read_indices(tmp_path / "i.json"), 64)
    assert [d.answer for d in made] == ["airplane", "truck"]
    assert shape_bias.shape_bias("net", made).value == 0.5
    with pytest.raises(ConfigError, match="expected the logits of ImageNet's 1000 classes"):
        shape_bias.decide(LoadedModel("ten", nn.Flatten()), shown, _indices(), 64)
    Image.new("RGB", (8, 8)).save(tmp_path / "airplane" / "cat.png")
    with pytest.raises(DataError, match=r"cat.png: not named as a stimulus"):
        shape_bias.list_stimuli(tmp_path / "airplane")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cat": [1000]}, "cat: expected a list of integers from 0 to 999"),
        ({"cat": [0]}, "cat: index 0 is in two classes"),
        ({"tree": [5]}, "expected an object with the keys"),
        ({"cat": []}, "cat: expected a list"),
    ],
)
def test_bad_indices_are_named(tmp_path, change, message):
    path = tmp_path / "i.json"
    path.write_text(json.dumps({**_indices(), **change}))
    with pytest.raises(DataError, match=message):
        shape_bias.read_indices(path)


# Error consistency


def _trials(subject: str, correct: str) -> list[Trial]:
    return [
        Trial(subject, f"cat{i}-dog1", "cat", "cat" if one == "1" else "dog")
        for i, one in enumerate(correct)
    ]


def test_error_consistency_is_cohens_kappa():
    (same,) = shape_bias.error_consistency(_trials("a", "1100") + _trials("b", "1100"))
    assert (same.kappa, same.accuracies, same.images) == (1, (0.5, 0.5), 4)
    (independent,) = shape_bias.error_consistency(_trials("a", "1100") + _trials("b", "1010"))
    assert independent.kappa == 0
    (opposite,) = shape_bias.error_consistency(_trials("a", "1100") + _trials("b", "0011"))
    assert opposite.kappa == -1
    # p = 0.8, q = 0.6: c_exp = 0.48 + 0.08, c_obs = 0.8
    (some,) = shape_bias.error_consistency(_trials("a", "11110") + _trials("b", "11100"))
    assert some.kappa == pytest.approx((0.8 - 0.56) / (1 - 0.56))
    (perfect,) = shape_bias.error_consistency(_trials("a", "11") + _trials("b", "11"))
    assert math.isnan(perfect.kappa)  # nothing is left to agree about
    with pytest.raises(DataError, match="got 1 subject, expected at least two"):
        shape_bias.error_consistency(_trials("a", "11"))
