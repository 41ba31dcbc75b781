"""If one of these fails, a curve of the log-amplitude figure is not what the papers drew."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import timm
import torch

import spanet_lightning  # noqa: F401  (registers our models with timm)
from spanet_lightning.analysis import models, taps
from spanet_lightning.analysis.images import normalised
from spanet_lightning.analysis.spectrum import log_amplitude, relative_radial, spectra
from spanet_lightning.errors import ConfigError, DataError
from tests.reference import analysis as literal

SKIPPED = [0, 4, 8, 18]  # of the S18 depths, as RECIPES states them


def _images(number: int, size: int = 64) -> torch.Tensor:
    return torch.rand(number, 3, size, size, generator=torch.Generator().manual_seed(0))


def test_s18_has_22_maps_and_a_numpy_computation_agrees():
    one = models.subject("spanetv2_s18_pure", size=64)
    images = _images(2)
    found = spectra(one, [images])
    assert [m.index for m in found.maps] == list(range(22))
    assert [m.index for m in found.maps if m.tap.kind == "down"] == SKIPPED
    assert [m.index for m in found.drawn()] == [i for i in range(22) if i not in SKIPPED]

    net, features = one.model, []
    with torch.no_grad():
        x = net.stem(normalised(images, one))
        for i, stage in enumerate(net.stages):
            x = stage.downsample(x)  # the first stage's is an identity: the stem's output
            features.append(x.numpy())
            for block in stage.blocks:
                x = block(x)
                features.append(x.numpy())
            assert x.shape[-1] == 64 // 2 ** (i + 2)
    assert len(features) == 22
    for one_map, expected in zip(found.maps, features, strict=True):
        reference = literal.relative_log_amplitude(expected)
        np.testing.assert_allclose(one_map.relative, reference, rtol=0, atol=1e-5)
        assert one_map.relative[0] == 0


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 7), (6, 9), (5, 8), (1, 1)])
def test_half_a_spectrum_mirrored_is_the_whole(height, width):
    x = torch.randn(2, 3, height, width)
    expected = np.log(np.abs(np.fft.fft2(x.numpy().astype(float))) + 1e-6).mean(1).sum(0)
    expected = np.roll(expected, (height // 2, width // 2), (0, 1))
    np.testing.assert_allclose(log_amplitude(x).numpy(), expected, atol=1e-10)


def test_batches_do_not_matter_and_features_are_not_kept():
    one = models.subject("test_spanetv2", size=64)
    images = _images(3)
    alive: list[weakref.ref[torch.Tensor]] = []

    def remember(_: object, __: object, output: torch.Tensor) -> None:
        assert all(ref() is None for ref in alive), "features of an earlier batch are still there"
        alive.append(weakref.ref(output))

    handle = one.model.stages[0].blocks[0].mlp.register_forward_hook(remember)
    single = spectra(one, images.split(1))
    handle.remove()
    assert len(alive) == 3
    together = spectra(one, [images])
    assert single.images == together.images == 3
    for a, b in zip(single.maps, together.maps, strict=True):
        np.testing.assert_allclose(a.log_amplitude, b.log_amplitude, atol=1e-5)


def test_rings_average_what_is_equally_far():
    v, u = np.mgrid[-4:4, -4:4]
    field = np.rint(np.hypot(v, u)) * 2.0 + 7
    np.testing.assert_allclose(relative_radial(field), [0, 2, 4, 6, 8], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "size", "blocks", "downs"),
    [
        ("test_spanet", 64, 5, 4),
        ("test_spanetv2", 64, 5, 4),
        ("test_convnext", 64, 9, 4),
        ("test_vit", 160, 6, 1),
    ],
)
@pytest.mark.parametrize("mixers", [False, True])
def test_small_models_of_every_layout(name, size, blocks, downs, mixers):
    one = models.subject(name, size=size)
    found = spectra(one, [_images(1, size)], mixers=mixers)
    kinds = [m.tap.kind for m in found.maps]
    assert kinds.count("mixer" if mixers else "block") == len(found.drawn())
    assert len(found.drawn()) == blocks
    assert kinds.count("down") == downs
    for m in found.drawn():
        assert m.log_amplitude.shape[0] == m.log_amplitude.shape[1] > 1


@pytest.mark.slow
@pytest.mark.parametrize("mixers", [False, True])
@pytest.mark.parametrize("name", ["convnext_tiny", "caformer_s18", "swin_tiny", "vit_small"])
def test_models_of_the_papers(name, mixers):
    found = spectra(models.subject(name), [_images(1, 224)], mixers=mixers)
    number = {"swin_tiny": 12, "vit_small": 12}.get(name, 18)
    assert len(found.drawn()) == number
    sides = [m.log_amplitude.shape[0] for m in found.drawn()]
    assert set(sides) == ({14} if name == "vit_small" else {56, 28, 14, 7})


def test_tokens_become_the_grid_they_came_from():
    net = timm.create_model("test_vit", num_classes=0)
    grid = torch.arange(2 * 3 * 10 * 10, dtype=torch.float32).view(2, 3, 10, 10)
    tokens = grid.flatten(2).transpose(1, 2)
    torch.testing.assert_close(taps.as_grid(net, tokens, (160, 160)), grid)
    prefix = net.num_prefix_tokens
    assert prefix > 0
    more = torch.cat([torch.zeros(2, prefix, 3), tokens], 1)
    torch.testing.assert_close(taps.as_grid(net, more, (160, 160)), grid)
    wide = torch.arange(2 * 3 * 5 * 20.0).view(2, 3, 5, 20)
    seen = taps.as_grid(net, wide.flatten(2).transpose(1, 2), (80, 320))
    torch.testing.assert_close(seen, wide)


def test_where_it_does_not_apply_it_says_so():
    plain = models.Subject("plain", torch.nn.Conv2d(3, 4, 3), (0,) * 3, (1,) * 3, None, 1, False)
    with pytest.raises(ConfigError, match="no blocks found"):
        spectra(plain, [_images(1)])
    with pytest.raises(ConfigError, match="no mixers found"):
        spectra(models.subject("resnet10t"), [_images(1)], mixers=True)
    with pytest.raises(ConfigError, match="return no features on one grid"):
        spectra(models.subject("crossvit_tiny_240", size=240), [_images(1, 240)])
    with pytest.raises(DataError, match="got none"):
        spectra(models.subject("test_spanetv2"), [])
