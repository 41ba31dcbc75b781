"""If one of these fails, an analysis is of another model, image or class than was asked for."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from spanet_lightning import SPANetV2
from spanet_lightning.analysis import cam, images, models, robustness
from spanet_lightning.errors import CheckpointError, ConfigError, DataError
from tests.reference import analysis as literal


def _checkpoint(path: Path, in_chans: int = 3) -> SPANetV2:
    """Write what a run saves of a small model."""
    torch.manual_seed(3)
    arguments = {"variant": "test", "num_classes": 5, "img_size": 32, "in_chans": in_chans}
    net = SPANetV2(**arguments).eval()
    state = {f"backbone.{key}": value for key, value in net.state_dict().items()}
    described = {"class_path": "spanet_lightning.SPANetV2", "init_args": arguments}
    torch.save({"state_dict": state, "hyper_parameters": {"backbone": described}}, path)
    return net


def test_a_runs_checkpoint_knows_its_model(tmp_path):
    net = _checkpoint(tmp_path / "best.ckpt")
    found = models.subject(str(tmp_path / "best.ckpt"))
    assert found.trained
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), net(x))


def test_images_are_normalised_as_the_run_s_were(tmp_path):
    _checkpoint(tmp_path / "best.ckpt")
    assert models.subject(str(tmp_path / "best.ckpt")).mean == (0.485, 0.456, 0.406)
    stated = "data: {init_args: {mean: [0.1, 0.2, 0.3], std: [1, 2, 3]}}"
    (tmp_path / "config.yaml").write_text(stated)
    found = models.subject(str(tmp_path / "best.ckpt"))
    assert (found.mean, found.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    (tmp_path / "config.yaml").write_text("data: [")
    assert models.subject(str(tmp_path / "best.ckpt")).std == (0.229, 0.224, 0.225)


def test_a_run_on_images_of_one_channel_is_told(tmp_path):
    _checkpoint(tmp_path / "grey.ckpt", in_chans=1)
    with pytest.raises(CheckpointError, match=r"grey.ckpt: takes images of 1 channels"):
        models.subject(str(tmp_path / "grey.ckpt"))


def test_a_backbone_without_a_classifier_sees_no_classes():
    """Its pooled features look like logits."""
    bare = models.subject("test_spanetv2", size=64, num_classes=0)
    image = torch.rand(1, 3, 64, 64)
    for analyse in (
        lambda: cam.class_map(bare, image, "grad"),
        lambda: cam.class_map(bare, image, "score", channels=1),
        lambda: robustness.robustness(bare, [(image, None)], ("low",), (2,)),
    ):
        with pytest.raises(ConfigError, match="no logits of classes; this analysis needs a class"):
            analyse()


def test_weights_after_an_at_sign(tmp_path):
    _checkpoint(tmp_path / "best.ckpt")
    with pytest.raises(CheckpointError, match=r"do not fit the model: .*best.ckpt alone"):
        models.subject(f"test_spanetv2@{tmp_path / 'best.ckpt'}")  # 1,000 classes, not 5
    plain = models.subject("test_spanetv2")
    torch.save(plain.model.state_dict(), tmp_path / "plain.pth")
    again = models.subject(f"test_spanetv2@{tmp_path / 'plain.pth'}", seed=1)
    for one, other in zip(plain.model.parameters(), again.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("spanet_ss", "did you mean 'spanet_s'"),
        ("vit_smal", "did you mean 'vit_small'"),
        ("spanet_s@", "expected 'NAME@FILE'|NAME@FILE"),
    ],
)
def test_a_wrong_name_is_told(name, told):
    with pytest.raises(ConfigError, match=told):
        models.subject(name)


def test_a_missing_file_is_told():
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        models.subject("none.ckpt")


def test_a_model_of_one_size_refuses_another():
    found = models.subject("vit_small")
    assert found.image_size(224) == 224
    assert models.subject("test_spanet").image_size(96) == 96
    with pytest.raises(ConfigError, match="--size"):
        found.image_size(96)


def test_images_are_listed_and_resized(tmp_path):
    for i in range(5):
        Image.new("RGB", (60, 40), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
    listed = images.list_images([tmp_path], limit=2)
    assert [path.name for path in listed] == ["0.png", "2.png"]
    assert len(images.list_images(["sample"])) == 2
    batches = list(images.batches(images.list_images([tmp_path]), 32, 2))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert float(batches[0][1, 0].mean()) == pytest.approx(40 / 255)
    wide = images.square(Image.new("RGB", (60, 40)), 64, "aspect")
    assert wide.size == (96, 64)
    assert images.square(Image.new("RGB", (60, 40)), 64, "crop", 0.9).size == (64, 64)
    with pytest.raises(DataError, match="does not exist"):
        images.list_images(["none"])
    (tmp_path / "bad.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"bad.png: not a readable image"):
        images.open_image(tmp_path / "bad.png")
    (tmp_path / "classes" / "a").mkdir(parents=True)
    with pytest.raises(DataError, match="no image below"):
        images.labelled(tmp_path / "classes")


# Class activation maps


def test_score_cam_is_the_literal_one():
    torch.manual_seed(0)
    one = models.subject("test_spanetv2", size=64, num_classes=7)
    image = torch.rand(1, 3, 64, 64)
    found = cam.class_map(one, image, "score", batch=5)
    x = images.normalised(image, one)
    with torch.no_grad():
        logits = one.model(x)
        features = one.model.forward_features(x)
        expected = literal.score_cam(one.model, x, features, int(logits.argmax()))
    assert found.target == int(logits.argmax())
    assert found.probability == pytest.approx(float(logits.softmax(1).max()), abs=1e-6)
    expected = cam.finish(expected, (64, 64)).numpy()
    np.testing.assert_allclose(found.heat, expected, atol=1e-4)
    assert found.heat.shape == (64, 64)
    assert found.heat.max() == pytest.approx(1, abs=1e-4)


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
    one = models.Subject("x", net, (0.0,) * 3, (1.0,) * 3, None, 1, False)
    image = torch.rand(1, 3, 32, 32)
    found = cam.class_map(one, image, "grad", target=2)
    field = (net.head.weight[2][:, None, None] * net.features(image)[0]).sum(0).relu()
    np.testing.assert_allclose(found.heat, cam.finish(field, (32, 32)).numpy(), atol=1e-4)
    with pytest.raises(ConfigError, match="--target: got 3, expected a class from 0 to 2"):
        cam.class_map(one, image, "grad", target=3)


@pytest.mark.parametrize("method", ["score", "grad"])
@pytest.mark.parametrize(("name", "size"), [("test_spanet", 64), ("test_vit", 160)])
def test_maps_of_models_of_both_layouts(name, size, method):
    one = models.subject(name, size=size)
    found = cam.class_map(one, torch.rand(1, 3, size, size), method, channels=4)
    assert found.heat.shape == (size, size)
    assert np.isfinite(found.heat).all()
    assert found.heat.max() > 0.5


# Robustness


def _cosine(side: int, v: int) -> torch.Tensor:
    x = torch.cos(2 * math.pi * v * torch.arange(side, dtype=torch.float64) / side)
    return (0.5 + 0.25 * x).expand(1, 3, side, side)


def test_a_filter_passes_what_it_should():
    low, high = _cosine(32, 3), _cosine(32, 9)
    torch.testing.assert_close(robustness.passed(low, 3, "low"), low, rtol=0, atol=1e-10)
    torch.testing.assert_close(
        robustness.passed(high, 8, "low"), torch.full_like(high, 0.5), rtol=0, atol=1e-10
    )
    torch.testing.assert_close(robustness.passed(high, 8, "high"), high, rtol=0, atol=1e-10)
    x = torch.rand(2, 3, 24, 32).double()
    both = robustness.passed(x, 5, "low") + robustness.passed(x, 5, "high")
    torch.testing.assert_close(both, x + x.mean((2, 3), keepdim=True), rtol=0, atol=1e-10)


def test_noise_is_in_its_band_and_as_strong_as_said():
    noise = robustness.band_noise((3, 3, 32, 32), 8, 2, 0.1, torch.Generator().manual_seed(0))
    np.testing.assert_allclose(noise.square().mean((1, 2, 3)).sqrt(), 0.1, rtol=1e-5)
    outside = robustness.passed(noise.double(), 6.9, "low").abs().max()
    beyond = robustness.passed(noise.double(), 9.1, "high").abs().max()
    assert float(outside) < 1e-6
    assert float(beyond) < 1e-6
    with pytest.raises(ConfigError, match="--radii: got 90"):
        robustness.band_noise((1, 3, 32, 32), 90, 2, 0.1, torch.Generator())


class _SeesStripes(nn.Module):
    """Class 1 where there is anything but the mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        level = x.std((1, 2, 3))
        return torch.stack([torch.full_like(level, 0.05), level], 1)


def test_accuracy_falls_where_what_is_seen_is_filtered_out():
    one = models.Subject("x", _SeesStripes(), (0.0,) * 3, (1.0,) * 3, None, 1, False)
    image = _cosine(32, 6).float()
    labels = torch.tensor([1])
    low, high = robustness.robustness(one, [(image, labels)], ("low", "high"), (2, 8))
    assert (low.clean, low.accuracy, high.accuracy) == (1, (0, 1), (1, 0))
    assert not low.agreement
    (own,) = robustness.robustness(one, [(image, None)], ("low",), (2, 8))
    assert own.agreement
    assert own.accuracy == (0, 1)
    for arguments, told in (
        ({"radii": (8, 2)}, "--radii"),
        ({"noise": 0}, "--noise"),
    ):
        with pytest.raises(ConfigError, match=told):
            robustness.robustness(one, [(image, labels)], **arguments)
