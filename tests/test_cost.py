"""If one of these fails, the MACs or parameters that we report are not what the model computes."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from spanet_lightning import SPANet, SPANetV2
from spanet_lightning.cost import model_cost, spectral_macs, variant_costs

# G MACs at 224 px of the official models (attention products counted, FFT not). The counter behind
# them adds five operations per normalised value, which ours leaves out.
OFFICIAL = {
    "spanet_s": 4.627,
    "spanet_m": 6.824,
    "spanet_mx": 9.021,
    "spanet_b": 11.983,
    "spanet_bx": 15.833,
    "spanetv2_s18_pure": 4.193,
    "spanetv2_s18_hybrid": 4.192,
    "spanetv2_s36_pure": 8.145,
    "spanetv2_s36_hybrid": 8.179,
    "spanetv2_m36_pure": 13.725,
    "spanetv2_m36_hybrid": 13.676,
    "spanetv2_b36_pure": 24.251,
    "spanetv2_b36_hybrid": 23.934,
}


def test_macs_of_all_variants_are_within_one_percent_of_the_official_ones():
    rows = {row.name: row for row in variant_costs()}
    assert rows.keys() == OFFICIAL.keys()
    for name, official in OFFICIAL.items():
        assert rows[name].cost.macs / 1e9 == pytest.approx(official, rel=0.01), name
        assert rows[name].published_macs == pytest.approx(official, abs=0.1)


def test_macs_equal_a_count_by_shapes_on_a_plain_network():
    model = timm.create_model("test_resnet").eval()
    by_shape = 0

    def count(module, args, out):
        nonlocal by_shape
        by_shape += out.numel() * module.weight[0].numel()

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    model(torch.zeros(1, 3, 64, 64))
    assert model_cost(model, 64).macs == by_shape > 0


def test_spectral_cost_is_the_stated_formula_and_goes_with_the_operator():
    assert spectral_macs(4, 4, 3) == 3 * (2.5 * 16 * 4 + 16)
    model = SPANet("test", dims=(24, 24, 24, 24), depths=(1, 1, 1, 1))
    expected = sum(spectral_macs(s, s, 24) for s in (56, 28, 14, 7))
    assert model_cost(model).spectral_macs == expected
    assert model_cost(SPANet("test", spf=False)).spectral_macs == 0
    assert model_cost(SPANetV2("test", srf=False)).spectral_macs == 0


def test_attention_products_are_counted_by_hand():
    model = SPANetV2("test", mixers=("spam", "spam", "spam", "attention"))
    tokens, width = 7 * 7, 96
    assert model_cost(model).attention_macs == 2 * tokens * tokens * width


def test_counting_leaves_the_model_alone():
    model = SPANet("test", num_classes=3).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model_cost(model)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
