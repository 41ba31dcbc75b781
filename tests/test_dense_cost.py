"""If one of these fails, the dense models are not those whose cost the authors published."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from spanet_lightning import app, heads
from spanet_lightning.dense_cost import UNUSED_CLASSIFIER, dense_cost, dense_costs
from spanet_lightning.published import PUBLISHED_DENSE

# (head, backbone): exact parameters of the official model, V2's unused classifier included, and
# recomputed G MACs under conventions A and B where known.
OFFICIAL = {
    ("RetinaNet", "spanet_s"): (38_343_092, 245.5, 245.5),
    ("RetinaNet", "spanet_m"): (51_424_948, 290.1, 290.1),
    ("MaskRCNN", "spanet_s"): (48_260_528, 264.1, 264.1),
    ("MaskRCNN", "spanet_m"): (61_342_384, 308.7, 308.7),
    ("MaskRCNN", "spanetv2_s18_pure"): (49_331_324, 255.2, 254.9),
    ("MaskRCNN", "spanetv2_s18_hybrid"): (47_160_380, 250.7, 345.9),
    ("CascadeMaskRCNN", "spanetv2_s18_pure"): (87_166_526, 733.8, None),
    ("CascadeMaskRCNN", "spanetv2_s18_hybrid"): (84_995_582, 729.3, 824.5),
    ("CascadeMaskRCNN", "spanetv2_s36_pure"): (102_102_242, 814.1, None),
    ("CascadeMaskRCNN", "spanetv2_s36_hybrid"): (98_672_738, 805.9, 993.2),
    ("SemanticFPN", "spanet_s"): (32_359_766, 45.5, 45.5),
    ("SemanticFPN", "spanet_m"): (45_441_622, 56.9, 56.9),
    ("SemanticFPN", "spanetv2_s18_pure"): (33_430_562, None, 43.4),
    ("SemanticFPN", "spanetv2_s18_hybrid"): (31_259_618, None, 48.5),
    ("SemanticFPN", "spanetv2_s36_pure"): (48_366_278, None, 64.1),
    ("SemanticFPN", "spanetv2_s36_hybrid"): (44_936_774, None, 74.2),
    ("UPerNet", "spanetv2_s18_pure"): (59_651_768, 929.9, None),
    ("UPerNet", "spanetv2_s18_hybrid"): (57_480_824, 925.2, 1025.0),
    ("UPerNet", "spanetv2_s36_pure"): (74_587_484, 1012.1, None),
    ("UPerNet", "spanetv2_s36_hybrid"): (71_157_980, 1003.6, 1200.1),
}
ROWS = {(row.head, row.variant): row for row in PUBLISHED_DENSE}


def test_every_published_row_is_known() -> None:
    assert ROWS.keys() == OFFICIAL.keys()


@pytest.mark.parametrize("key", OFFICIAL, ids="-".join)
def test_parameters_are_exact_and_macs_within_one_percent(key: tuple[str, str]) -> None:
    parameters, macs_a, macs_b = OFFICIAL[key]
    row = dense_cost(ROWS[key])
    unused = UNUSED_CLASSIFIER if "v2" in key[1] else 0
    assert row.cost.parameters == parameters - unused
    assert row.unused_classifier == unused
    if macs_a is not None:
        assert row.macs_a / 1e9 == pytest.approx(macs_a, rel=0.01)
    if macs_b is not None:
        assert row.macs_b / 1e9 == pytest.approx(macs_b, rel=0.01)
    if row.published.macs is not None:
        ours = row.macs_a if row.published.convention == "A" else row.macs_b
        # 1 % and what the table's rounding hides.
        assert ours / 1e9 == pytest.approx(row.published.macs, rel=0.01, abs=0.5)


def test_the_unused_classifier_is_that_of_the_imagenet_model() -> None:
    with torch.device("meta"):
        whole = timm.create_model("spanetv2_s18_pure")
    parts = (whole.norm, whole.head)
    assert sum(p.numel() for part in parts for p in part.parameters()) == UNUSED_CLASSIFIER


@pytest.mark.parametrize(("width", "decode"), [(320, 12_487_190), (512, 29_711_510)])
def test_upernet_of_both_widths(width: int, decode: int) -> None:
    with torch.device("meta"):
        layers = heads.UPerNet(channels=width).build((64, 128, 320, 512), 150)
    auxiliary = sum(p.numel() for p in layers.auxiliary_head.parameters())
    assert auxiliary == 776_342
    assert sum(p.numel() for p in layers.parameters()) - auxiliary == decode


def test_command_lists_a_task(capsys: pytest.CaptureFixture[str]) -> None:
    app.main(["models", "Semantic*", "--task", "segmentation", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 6
    assert {row["head"] for row in rows} == {"SemanticFPN"}
    app.main(["models", "spanet_s", "--task", "detection"])
    shown = capsys.readouterr().out
    assert "38,343,092" in shown
    assert "48,260,528" in shown
    assert len(dense_costs("detection", "spanet_s")) == 2


def test_command_names_what_it_does_not_know(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        app.main(["models", "MaskRCN_", "--task", "detection"])
    assert "did you mean 'MaskRCNN'?" in capsys.readouterr().err
