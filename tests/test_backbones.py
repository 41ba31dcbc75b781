"""If one of these fails, a variant is not the published one, or timm's habits do not hold."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from spanet_lightning import SPANet, SPANetV2
from spanet_lightning.backbones.spectral import SRF_GATES, SpectralFilter, SpectralRescaling
from spanet_lightning.errors import ConfigError
from tests.reference import mixers

# Exact figures of the official code. V1's exclude its frozen masks (28,659,780 with them for "s").
PARAMETERS = {
    "spanet_s": 28_605_096,
    "spanet_m": 41_686_952,
    "spanet_mx": 54_768_808,
    "spanet_b": 75_856_168,
    "spanet_bx": 99_718_312,
    "spanetv2_s18_pure": 29_162_892,
    "spanetv2_s18_hybrid": 26_991_948,
    "spanetv2_s36_pure": 44_098_608,
    "spanetv2_s36_hybrid": 40_669_104,
    "spanetv2_m36_pure": 62_934_832,
    "spanetv2_m36_hybrid": 58_334_896,
    "spanetv2_b36_pure": 109_557_808,
    "spanetv2_b36_hybrid": 101_802_544,
}
TINY = ["test_spanet", "test_spanetv2"]
HYBRID = ("spam", "spam", "mixed", "attention")


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_exactly_the_official_ones(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert all(p.requires_grad for p in model.parameters())


def test_all_variants_are_listed():
    assert set(timm.list_models("spanet*")) == set(PARAMETERS)
    assert set(timm.list_models("test_spanet*")) == set(TINY)


def leaves_of(model):
    """The modules without children; logits of the SRF are in a list, a module to torch."""
    return {
        name: module
        for name, module in model.named_modules()
        if (not list(module.children()) or isinstance(module, SpectralRescaling))
        and not isinstance(module, torch.nn.ParameterList)
    }


@pytest.mark.parametrize("name", [*PARAMETERS, *TINY])
def test_each_parameter_is_trained_each_leaf_runs_once_and_levels_are_stated(name, tmp_path):
    short = {} if name in TINY else {"depths": (1, 1, 1, 1)}
    model = timm.create_model(name, num_classes=5, img_size=64, **short)
    calls = []
    for leaf, module in leaves_of(model).items():
        module.register_forward_hook(lambda *_, leaf=leaf: calls.append(leaf))
    x = torch.randn(1, 3, 64, 64)
    last, levels = model.forward_intermediates(x)
    logits = model.forward_head(last)
    assert sorted(calls) == sorted(leaves_of(model))
    assert logits.shape == (1, 5)
    assert [level.shape[1] for level in levels] == [i["num_chs"] for i in model.feature_info]
    assert [64 // level.shape[2] for level in levels] == [4, 8, 16, 32]
    logits.square().sum().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.any(), key
    if name in TINY:
        save_file(model.state_dict(), tmp_path / "model.safetensors")
        again = load_file(tmp_path / "model.safetensors")
        assert all(torch.equal(again[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", TINY)
def test_timm_interface(name):
    model = timm.create_model(name, num_classes=3, in_chans=1, drop_path_rate=0.2)
    x = torch.randn(2, 1, 48, 64)
    last, stages = model.eval().forward_intermediates(x)
    assert torch.equal(last, stages[-1])
    assert torch.allclose(model.forward_head(last), model(x), atol=1e-6)
    assert model.forward_head(last, pre_logits=True).shape == (2, model.num_features)
    only = model.forward_intermediates(x, indices=[1], stop_early=True, intermediates_only=True)
    assert torch.equal(only[0], stages[1])

    some = timm.create_model(name, features_only=True, out_indices=(1, 3), in_chans=1)
    assert [f.shape[1] for f in some(x)] == [model.feature_info[i]["num_chs"] for i in (1, 3)]
    assert not [k for k in dict(some.named_parameters()) if "head" in k]

    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    assert model(x).shape == (2, 7)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    assert model.no_weight_decay() == set()
    assert model.default_cfg["crop_pct"] == (0.9 if name == "test_spanet" else 1.0)
    assert model.default_cfg["interpolation"] == "bicubic"


def test_default_cfgs_hold_crop_and_weights():
    crop = {"spanet_s": 0.9, "spanet_m": 0.9, "spanet_mx": 0.9, "spanet_b": 0.95, "spanet_bx": 0.95}
    for name in PARAMETERS:
        assert timm.get_pretrained_cfg(name).crop_pct == crop.get(name, 1.0)
    assert timm.get_pretrained_cfg("spanet_s").url.endswith("/spanet-small.pth")


@pytest.mark.parametrize("name", TINY)
def test_layer_groups_cover_all_parameters_in_order(name):
    from timm.models import group_parameters

    model = timm.create_model(name)
    for coarse in (False, True):
        groups = group_parameters(model, model.group_matcher(coarse), reverse=True)
        assert set(groups) == {key for key, _ in model.named_parameters()}
        assert groups["stem.conv.weight"] == 0
        assert groups["head.weight" if name == "test_spanet" else "head.fc2.weight"] == max(
            groups.values()
        )


@pytest.mark.parametrize("name", TINY)
def test_gradient_checkpointing_changes_no_gradient(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3)
    x = torch.randn(2, 3, 64, 64)
    grads = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (224, 224), (63, 180)])
def test_any_size_runs_and_leaves_no_trace_in_the_state(name, size):
    model = timm.create_model(name, num_classes=3).eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(first)
        out = model(torch.randn(1, 3, *size))
        again = model(first)
    assert out.isfinite().all()
    assert torch.equal(expected, again)  # the official detection code's mask would have drifted
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize("name", TINY)
def test_a_model_cast_to_bfloat16_runs_and_stays_near(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    x = torch.randn(2, 3, 64, 48)
    with torch.no_grad():
        exact = model(x)
        half = model.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() <= 0.1 * exact.abs().max()


@pytest.mark.parametrize("name", TINY)
def test_models_can_be_copied_and_pickled(name):
    model = timm.create_model(name)
    copy.deepcopy(model)
    pickle.loads(pickle.dumps(model)).reset_classifier(3)


# The mixers against the papers' equations.

SIZES = [(8, 8), (7, 7), (9, 6), (5, 8)]


def features(channels, size):
    g = torch.Generator().manual_seed(0)
    return torch.randn(2, channels, *size, generator=g, dtype=torch.float64)


def randomised(module):
    g = torch.Generator().manual_seed(1)
    for p in module.parameters():
        p.data = torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.3
    return module.double()


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"ring": None},
        {"spf": False},
        {"aggregation": "hadamard"},
        {"aggregation": "hadamard", "spf": False},
        {"aggregation": "hadamard", "balance": (0.6, 0.9)},
        {"kernel_size": 3, "radius": (4, 3, 2, 1.5)},
        {"balance": (0.6,)},
        {"balance": (0.5, 0.6, 0.7, 0.8, 1.0)},
    ],
    ids=str,
)
def test_v1_mixer_is_the_papers(size, knobs):
    model = SPANet("test", **knobs)
    mixer = randomised(model.stages[0].blocks[0].mixer)
    x = features(24, size)
    expected = mixers.spam_v1(
        x,
        mixer,
        radius=knobs.get("radius", (2,))[0] if knobs.get("spf", True) else None,
        balance=knobs.get("balance", (0.7, 0.8, 0.9)),
        ring=knobs.get("ring", 1 / 3),
        aggregation=knobs.get("aggregation", "add"),
    )
    assert torch.allclose(mixer(x), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"head_layout": "concatenated"},
        {"srf": False},
        {"srf_gate": "scaled_sigmoid"},
        {"kernel_sizes": (5, 3)},
        {"kernel_sizes": 7, "num_heads": 8},
    ],
    ids=str,
)
def test_v2_mixer_is_the_papers(size, knobs):
    model = SPANetV2("test", img_size=32, **knobs)
    mixer = randomised(model.stages[0].blocks[0].mixer)
    x = features(16, size)
    expected = mixers.spam_v2(x, mixer, head_layout=knobs.get("head_layout", "interleaved"))
    assert torch.allclose(mixer(x), expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("kind", ["attention", "mixed"])
def test_attention_is_the_papers(kind):
    model = SPANetV2("test", mixers=("spam", "spam", kind, kind))
    mixer = randomised(model.stages[2].blocks[0].mixer)
    x = features(64, (5, 7))
    assert torch.allclose(mixer(x), mixers.attention(x, mixer), atol=1e-10, rtol=1e-10)


def test_mlp_is_the_papers():
    mlp = randomised(SPANetV2("test").stages[0].blocks[0].mlp)
    x = features(16, (4, 5))
    assert torch.allclose(mlp(x), mixers.star_relu_mlp(x, mlp), atol=1e-10, rtol=1e-10)


# Submodules run, so that hooks, adapters, pruning and quantisation see every layer.


def randomised_model(cls, **knobs):
    """A tiny model in evaluation mode whose every parameter matters."""
    torch.manual_seed(0)
    model = cls("test", num_classes=3, **knobs)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model.eval()


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize(
    ("cls", "knobs"),
    [
        (SPANet, {}),
        (SPANet, {"aggregation": "hadamard", "branch_scale": "layer", "radius": (20, 9, 2, 1)}),
        (SPANetV2, {}),
        (SPANetV2, {"srf": False, "head_layout": "concatenated"}),
        (SPANetV2, {"mixers": HYBRID, "srf_gate": "scaled_sigmoid"}),
        (SPANetV2, {"mixers": ("sepconv", "pooling", "identity", "spam")}),
    ],
    ids=str,
)
def test_each_leaf_runs_once_and_a_hook_keeps_what_it_returned(cls, knobs, grad):
    model = randomised_model(cls, **knobs)
    leaves = leaves_of(model)
    calls = []
    for name, module in leaves.items():
        module.register_forward_hook(lambda _, args, out, n=name: calls.append((n, args, out)))
    with torch.set_grad_enabled(grad):
        model(torch.randn(2, 3, 96, 96))
    assert sorted(name for name, *_ in calls) == sorted(leaves)
    for name, args, out in calls:
        leaves[name]._forward_hooks.clear()
        with torch.no_grad():
            torch.testing.assert_close(leaves[name](*args), out.detach(), msg=name)
    # Beside leaves, only StarReLU has parameters of its own: no layer is left unseen.
    owners = {n for n, m in model.named_modules() if list(m.parameters(recurse=False))}
    unseen = {type(model.get_submodule(n)).__name__ for n in owners - set(leaves)}
    assert unseen <= {"StarReLU", "ParameterList"}


@pytest.mark.parametrize("knobs", [{}, {"mixers": HYBRID}])
@pytest.mark.parametrize("cls", [SPANet, SPANetV2])
def test_weights_written_through_data_take_effect(cls, knobs):
    """As Lightning's EMAWeightAveraging swaps the averaged weights in."""
    if cls is SPANet and knobs:
        return
    model, other = randomised_model(cls, **knobs), randomised_model(cls, **knobs)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(0.8)
        before = model(x)
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            p.data.copy_(q.data)
        assert not torch.allclose(model(x), before)
        assert torch.equal(model(x), other(x))


@pytest.mark.parametrize("cls", [SPANet, SPANetV2])
def test_each_convolution_can_be_pruned_and_linear_layers_quantised(cls):
    from torch.nn.utils import prune

    model = randomised_model(cls)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for module in [
            m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
        ]:
            before, weight = model(x), module.weight.clone()
            prune.ln_structured(module, "weight", amount=0.5, n=1, dim=0)
            assert not torch.equal(model(x), before), module
            prune.remove(module, "weight")
            module.weight.copy_(weight)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about itself
            small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
        assert [m for m in small.modules() if "quantized" in type(m).__module__]
        assert not torch.equal(small(x), model(x))


@pytest.mark.parametrize("cls", [SPANet, SPANetV2])
def test_lora_adapts_every_linear_layer_and_1x1_convolution(cls):
    peft = pytest.importorskip("peft")
    model = randomised_model(cls)
    targets = [
        name
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear)
        or (isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1) and m.groups == 1)
    ]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets)).eval()
        torch.testing.assert_close(adapted(x), expected)
        for name, p in adapted.named_parameters():
            if "lora_B" in name:
                before = adapted(x)
                p.fill_(0.1)
                assert not torch.equal(adapted(x), before), name


# The ablation knobs.


@pytest.mark.parametrize("size", [50, 97, (33, 180)])
def test_srf_logits_are_stored_at_the_size_of_the_features(size):
    model = SPANetV2("test", img_size=size, num_classes=3)
    image = torch.randn(1, 3, *(size if isinstance(size, tuple) else (size, size)))
    for stage, x in zip(model.stages, model.forward_intermediates(image)[1], strict=True):
        logits = stage.blocks[0].mixer.srf.logits[0]
        assert logits.shape[1:] == (x.shape[2], x.shape[3] // 2 + 1)


def test_only_the_mixer_differs_between_the_arms_of_a_metaformer():
    """SPANetV2's Figures 3 and 4; PoolFormer's mixer is avg_pool(x) - x, ConvFormer's SepConv."""
    shared = None
    x = torch.randn(1, 16, 6, 5)
    for kind in ("spam", "sepconv", "pooling", "identity"):
        model = SPANetV2("test", mixers=(kind,) * 4, num_classes=3).eval()
        names = {k for k, _ in model.named_parameters() if ".mixer." not in k}
        shared = shared or names
        assert names == shared
        assert model(torch.randn(1, 3, 64, 64)).isfinite().all()
        mixer = model.stages[0].blocks[0].mixer
        if kind == "pooling":
            ones = torch.ones(1, 1, 3, 3)
            sums = torch.nn.functional.conv2d(x.transpose(0, 1), ones, padding=1).transpose(0, 1)
            counts = torch.nn.functional.conv2d(torch.ones(1, 1, 6, 5), ones, padding=1)
            torch.testing.assert_close(mixer(x), sums / counts - x)
        if kind == "sepconv":
            shapes = {n: tuple(p.shape) for n, p in mixer.named_parameters()}
            assert shapes["pwconv1.weight"] == (32, 16, 1, 1)
            assert shapes["dwconv.weight"] == (32, 1, 7, 7)
        if kind == "identity":
            assert torch.equal(mixer(x), x)


class GaussianFilter(SpectralFilter):
    """exp(-(u² + v²) / 2σ²) with one learned width σ a head, in cycles per side."""

    def __init__(self, channels, heads, size):
        super().__init__()
        self.channels = channels
        self.width = torch.nn.Parameter(torch.linspace(1, 4, heads))

    def gain(self, height, width):
        device = self.width.device
        u = torch.fft.fftfreq(height, 1 / height, device=device)[:, None]
        squared = u**2 + torch.fft.rfftfreq(width, 1 / width, device=device) ** 2
        sigma = self.width.repeat_interleave(self.channels // len(self.width))
        return (-squared / (2 * sigma[:, None, None] ** 2)).exp()


def test_a_third_spectral_gate_is_one_class_trained_exported_costed_and_drawn(monkeypatch):
    from spanet_lightning.analysis import filters, models
    from spanet_lightning.cost import model_cost
    from spanet_lightning.export.fixed import fixed
    from spanet_lightning.tracking import pictures

    monkeypatch.setitem(SRF_GATES, "gaussian", GaussianFilter)
    model = randomised_model(SPANetV2, srf_gate="gaussian", img_size=64)
    x = torch.randn(2, 3, 64, 64)
    model(x).sum().backward()
    assert all(p.grad.any() for n, p in model.named_parameters() if "srf" in n)
    with torch.no_grad():
        exported = fixed(model, (64, 64))
        assert not [m for m in exported.modules() if isinstance(m, SpectralFilter)]
        torch.testing.assert_close(exported(x), model(x), rtol=1e-4, atol=1e-5)
    assert model_cost(model, 64).spectral_macs == model_cost(SPANetV2("test"), 64).spectral_macs
    subject = models.LoadedModel("x", model)
    shown = filters.filters(subject, 64)
    sigma = model.stages[0].blocks[0].mixer.srf.width[0].item()
    assert shown[0].gain[8, 9] == pytest.approx(np.exp(-1 / (2 * sigma**2)))
    assert pictures.draw_filters(model, "now", 64) is not None


def test_variant_rows_can_be_overridden():
    model = SPANetV2("s18_hybrid", depths=(1, 1, 1, 1), dims=(32, 32, 64, 64))
    assert [len(stage.blocks) for stage in model.stages] == [1, 1, 1, 1]
    assert type(model.stages[3].blocks[0].mixer).__name__ == "Attention"
    pure = SPANetV2("s18_hybrid", depths=(1, 1, 1, 1), mixers=("spam",) * 4)
    assert type(pure.stages[3].blocks[0].mixer).__name__ == "SPAM"


@pytest.mark.parametrize(
    ("scale", "res", "layer"), [("res", 6, 0), ("layer", 0, 10), ("none", 0, 0)]
)
def test_branch_scale(scale, res, layer):
    for cls in (SPANet, SPANetV2):
        keys = dict(cls("test", branch_scale=scale).named_parameters())
        assert sum("res_scale" in k for k in keys) == res
        assert sum("layer_scale" in k for k in keys) == layer


def test_drop_path_grows_linearly_from_zero():
    model = SPANet("s", depths=(2, 1, 1, 1), drop_path_rate=0.4)
    rates = [
        getattr(block.drop_path1, "drop_prob", 0.0)
        for stage in model.stages
        for block in stage.blocks
    ]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_head_dropout_is_really_applied():
    for cls in (SPANet, SPANetV2):
        model = cls("test", num_classes=3, drop_rate=0.9).train()
        x = torch.randn(1, 3, 32, 32)
        assert not torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("cls", "knobs", "words"),
    [
        (SPANet, {"variant": "small"}, ("variant", "'small'", "'s'")),
        (SPANetV2, {"variant": "s18_hybird"}, ("variant", "did you mean 's18_hybrid'?")),
        (SPANet, {"radius": (2, 2, 1)}, ("radius", "(2, 2, 1)", "one per stage")),
        (SPANet, {"radius": (2, 2, 1, -1)}, ("radius", "-1", "at least 0")),
        (SPANet, {"kernel_size": 4}, ("kernel_size", "4", "odd")),
        (SPANet, {"kernel_size": 99}, ("kernel_size", "99", "1 to 31")),
        (SPANet, {"balance": (0.7, 1.2)}, ("balance[1]", "1.2", "[0, 1]")),
        (SPANet, {"balance": ()}, ("balance", "()")),
        (SPANet, {"balance": (0.5,) * 40}, ("balance", "24 channels")),
        (SPANet, {"aggregation": "sum"}, ("aggregation", "'sum'", "'add'")),
        (SPANet, {"ring": 2}, ("ring", "2", "[0, 1]")),
        (SPANet, {"depths": (1, 2)}, ("depths", "(1, 2)", "four")),
        (SPANet, {"img_size": 16}, ("img_size", "16", "32")),
        (SPANet, {"num_classes": -1}, ("num_classes", "-1")),
        (SPANet, {"drop_path_rate": 1.0}, ("drop_path_rate", "1.0", "[0, 1)")),
        (SPANetV2, {"kernel_sizes": (3, 4)}, ("kernel_sizes[1]", "4", "odd")),
        (SPANetV2, {"kernel_sizes": ()}, ("kernel_sizes", "()")),
        (SPANetV2, {"kernel_sizes": (3, 5), "num_heads": 4}, ("num_heads", "4", "2")),
        (SPANetV2, {"kernel_sizes": (3, 5, 7)}, ("dims", "3 heads")),
        (
            SPANetV2,
            {"mixers": ("spam", "conv", "spam", "spam")},
            ("mixers[1]", "'conv'", "'mixed'"),
        ),
        (SPANetV2, {"mixers": ("mixed",) * 4}, ("dims", "32")),
        (SPANetV2, {"head_layout": "concat"}, ("head_layout", "did you mean 'concatenated'?")),
        (SPANetV2, {"srf_gate": "tanh"}, ("srf_gate", "'tanh'", "'scaled_sigmoid'")),
        (SPANetV2, {"branch_scale": "both"}, ("branch_scale", "'both'", "'layer'")),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else str(v)[:40],
)
def test_bad_arguments_are_named_with_value_and_what_is_accepted(cls, knobs, words):
    with pytest.raises(ConfigError) as error:
        cls(**{"variant": "test"} | knobs)
    message = str(error.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_too_small_an_image_is_one_clear_error():
    with pytest.raises(ConfigError, match=r"image size: got \(31, 64\)"):
        SPANet("test")(torch.randn(1, 3, 31, 64))


COMPILE = """
import torch
from torch._dynamo.utils import counters
from spanet_lightning import SPANet, SPANetV2
hybrid = ("spam", "spam", "mixed", "attention")
for model in (SPANet("test", num_classes=3), SPANetV2("test", num_classes=3, mixers=hybrid)):
    for training in (True, False):
        torch._dynamo.reset()
        counters.clear()
        compiled = torch.compile(model.train(training), fullgraph=True, backend="aot_eager")
        for batch in (2, 3):
            x = torch.randn(batch, 3, 64, 64)
            torch._dynamo.maybe_mark_dynamic(x, 0)
            with torch.set_grad_enabled(training):
                y = compiled(x)
                torch.testing.assert_close(y, model(x), rtol=1e-4, atol=1e-5)
            if training:
                y.square().sum().backward()
        graphs = counters["stats"]["unique_graphs"]
        assert graphs == 1, f"{graphs} graphs for two sizes of batch"
print("compiled")
"""

EXPORT = """
import torch
from spanet_lightning import SPANet, SPANetV2
hybrid = ("spam", "spam", "mixed", "attention")
for model in (SPANet("test", num_classes=3), SPANetV2("test", num_classes=3, mixers=hybrid)):
    model.eval()
    exported = torch.export.export(
        model,
        (torch.randn(2, 3, 64, 64),),
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    for batch in (1, 7):
        x = torch.randn(batch, 3, 64, 64)
        torch.testing.assert_close(exported.module()(x), model(x), rtol=1e-4, atol=1e-5)
print("exported")
"""


@pytest.mark.parametrize(("code", "word"), [(COMPILE, "compiled"), (EXPORT, "exported")])
def test_compile_without_graph_breaks_and_export_for_any_batch(code, word):
    """In a process of its own: the shape checks of this test run are not part of the models."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == word, done.stderr[-2000:]


def test_import_needs_neither_lightning_nor_mlflow_nor_optuna():
    code = (
        "import sys, spanet_lightning; "
        "print([m for m in ('lightning', 'mlflow', 'optuna', 'torchvision') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() in ("[]", "['torchvision']"), done.stderr  # timm's data imports it
