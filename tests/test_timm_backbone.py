"""Any timm model has to be an arm beside ours: the same tasks, costs, checkpoints and analyses."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from spanet_lightning import (
    ClassificationTask,
    DetectionTask,
    RetinaNet,
    SegmentationTask,
    SemanticFPN,
    SPANet,
    TimmBackbone,
)
from spanet_lightning.analysis.models import load_model
from spanet_lightning.cli import run
from spanet_lightning.cost import model_cost, variant_costs
from spanet_lightning.errors import ConfigError
from spanet_lightning.heads import DenseModel
from spanet_lightning.tasks.optim import LayerDecay, OptimizerConfig
from tests.helpers import UNTRACKED

SMALL = "convnext_atto"


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18", "caformer_s18"])
def test_pyramid_of_four_levels_whatever_the_model_calls_them(name: str) -> None:
    model = DenseModel(TimmBackbone(name), SemanticFPN(8, 8), 3, frozen_stages=2).train()
    levels = model.features(torch.randn(1, 3, 64, 96))
    assert [tuple(x.shape[2:]) for x in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    sum(x.sum() for x in levels).backward()
    frozen = [not p.requires_grad for p in model.backbone.parameters()]
    assert 0 < sum(frozen) < len(frozen)
    # The first parameters alone, and each of the others is trained.
    assert frozen == sorted(frozen, reverse=True)
    unused = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(n.startswith("head.") for n in unused)


def test_models_without_the_four_levels_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"backbone: got 'vit_tiny.*strides 4, 8, 16 and 32"):
        DetectionTask("vit_tiny_patch16_224", RetinaNet(8), 3)
    with pytest.raises(ConfigError, match=r"backbone.name: got 'convnext_tinny'.*did you mean"):
        TimmBackbone("convnext_tinny")
    with pytest.raises(ConfigError, match="'hf-hub:a/b', expected a model that timm knows"):
        TimmBackbone("hf-hub:a/b")
    with pytest.raises(ConfigError, match=r"convnext_atto does not take .*'rope'"):
        TimmBackbone(SMALL, model_args={"rope": 1})


def test_a_name_stands_for_a_backbone() -> None:
    task = ClassificationTask(SMALL, num_classes=7)
    assert isinstance(task.backbone, TimmBackbone)
    assert task.backbone.num_classes == 7
    assert isinstance(ClassificationTask("spanet_s").backbone, SPANet)
    assert isinstance(SegmentationTask(SMALL, SemanticFPN(8, 8), 3).backbone, TimmBackbone)


def test_costs_are_those_of_the_plain_model() -> None:
    (row,) = variant_costs(SMALL)
    with torch.device("meta"):
        assert model_cost(TimmBackbone(SMALL)) == row.cost
    assert 3.5e6 < row.cost.parameters < 3.8e6


def test_trains_reloads_and_is_analysed_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning"])
    chosen = ["--model.backbone=spanet_lightning.TimmBackbone", f"--model.backbone.name={SMALL}"]
    trained = run(["fit", *UNTRACKED, *chosen, "--name=timm"]).model.eval()
    (checkpoint,) = tmp_path.rglob("best.ckpt")
    loaded = ClassificationTask.load_from_checkpoint(checkpoint).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded.backbone(images), trained.backbone(images))
        found = load_model(str(checkpoint), size=32)
        assert torch.equal(found.model(images), trained.backbone(images))


def test_a_checkpoint_does_not_need_the_download_again(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    downloads = []

    def offline(name: str, pretrained: bool, **options):
        downloads.append(pretrained)
        return create(name, **options)

    monkeypatch.setattr("timm.create_model", offline)
    settings = ["--model.backbone=TimmBackbone", f"--model.backbone.name={SMALL}"]
    run(["fit", *UNTRACKED, *settings, "--model.backbone.pretrained=true", "--name=timm"])
    (checkpoint,) = Path().rglob("best.ckpt")
    ClassificationTask.load_from_checkpoint(checkpoint)
    assert downloads[0] is True
    assert downloads[-1] is False


@pytest.mark.parametrize("name", ["convnext_atto", "caformer_s18", "resnet18", "test_vit"])
def test_layer_decay_lowers_the_rates_towards_the_image(name: str) -> None:
    config = OptimizerConfig(lr=1.0, layer_decay=LayerDecay(0.5, num_layers=11))
    model = TimmBackbone(name, num_classes=10)
    optimizer = config.build(model)
    rates = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    in_order = [rates[id(p)] for n, p in model.named_parameters() if n.endswith(".weight")]
    assert in_order[0] == 0.5**12
    assert in_order[-1] == 1.0
    assert in_order == sorted(in_order)
    assert len(set(in_order)) > 5


def test_layer_decay_is_refused_where_a_model_states_no_groups() -> None:
    with pytest.raises(ConfigError, match=r"backbone.name: got 'csatv2'.*layer_decay=null"):
        OptimizerConfig(layer_decay=LayerDecay(0.5)).build(TimmBackbone("csatv2"))
