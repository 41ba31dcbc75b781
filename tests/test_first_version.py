"""What the first version wrote has to load, or end in one line that says what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from spanet_lightning import ClassificationTask, DetectionTask, SPANetV2
from spanet_lightning.backbones import load_official
from tests.helpers import CONFIGS, UNTRACKED, refused
from tests.test_heads_recorded import RECORDED, fill

BACKBONE = {"variant": "test", "img_size": 32, "spectral_impl": "auto"}


def write(task: str, tensors: dict[str, torch.Tensor], **parts: Any) -> Path:
    """Write a checkpoint as the first version did, classes and arguments by their names of then."""
    arguments = {
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "_class_path": f"spanet_lightning.{task}",
        "backbone": {"class_path": "spanet_lightning.SPANetV2", "init_args": BACKBONE},
    }
    content = {
        "pytorch-lightning_version": "2.6.6",
        "state_dict": tensors,
        "hyper_parameters": arguments | parts,
    }
    torch.save(content, "old.ckpt")
    return Path("old.ckpt")


def detector() -> tuple[Path, dict[str, torch.Tensor]]:
    """Write a Mask R-CNN's checkpoint; return its backbone's tensors as well."""
    backbone = SPANetV2("test", img_size=32, num_classes=0)
    own = backbone.state_dict()
    tensors = {f"model.backbone.{k}": v for k, v in own.items() if not k.startswith("norm.")}
    tensors |= {
        f"model.output_norms.{i}.weight": torch.ones(c) for i, c in enumerate((16, 32, 64, 96))
    }
    channels = dict(zip((8, 16, 24, 32), (16, 32, 64, 96), strict=True))
    for name, shape in RECORDED["MaskRCNN"]["state"].items():
        if name.startswith("neck.laterals") and len(shape) == 4:
            shape = [shape[0], channels[shape[1]], *shape[2:]]
        tensors[f"model.head.{name}"] = fill(name, shape)
    head = {
        "class_path": "spanet_lightning.MaskRCNN",
        "init_args": {"width": 16, "hidden": 32, "samples": 32, "max_detections": 7},
    }
    return write("DetectionTask", tensors, head=head, num_classes=3), tensors


def test_a_classifier_is_rebuilt() -> None:
    backbone = SPANetV2("test", img_size=32, num_classes=4).eval()
    named = {**BACKBONE, "num_classes": 4}
    path = write(
        "ClassificationTask",
        {f"backbone.{k}": v for k, v in backbone.state_dict().items()},
        backbone={"class_path": "spanet_lightning.SPANetV2", "init_args": named},
    )
    images = torch.randn(2, 3, 32, 32)
    task = ClassificationTask.load_from_checkpoint(path).eval()
    with torch.no_grad():
        torch.testing.assert_close(task(images), backbone(images))


def test_a_detector_is_rebuilt_and_its_tensors_have_their_new_places() -> None:
    path, tensors = detector()
    task = DetectionTask.load_from_checkpoint(path)
    head: Any = task.model.head
    assert head.config.detections_per_img == 7
    logits = "model.head.box_head.classes.weight"
    assert torch.equal(head.box_head.cls_logits.weight, tensors[logits])
    task.model.head.box_head.cls_logits.weight.data.zero_()
    assert len(load_official(task.model, path).used) == len(tensors)
    assert torch.equal(head.box_head.cls_logits.weight, tensors[logits])


def test_a_detector_is_evaluated_from_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    path, _ = detector()
    config = ["--config", str(CONFIGS / "digits" / "mask_rcnn.yaml"), f"--ckpt_path={path}"]
    small = ["out_channels=16", "fc_dim=32"]
    args = [*config, *(f"--model.head.{key}" for key in small), "--model.backbone.img_size=32"]
    # Its names are no difference; ten classes instead of three are the only one.
    error = refused(["test", *args, *UNTRACKED[2:]], capsys)
    assert "another shape" in error or "classes" in error
    assert "lacks" not in error


@pytest.mark.parametrize(
    ("config", "key", "words"),
    [
        ("spanetv2", "model.backbone.spectral_impl=real", "one implementation; delete the key"),
        ("upernet", "model.head.norm=sync", "trainer.sync_batchnorm=true"),
        ("upernet", "model.head.width=64", "it is called 'model.head.channels' now"),
        ("mask_rcnn", "model.head.width=64", "it is called 'model.head.out_channels' now"),
    ],
)
def test_keys_of_a_configuration_name_what_to_write_instead(
    config: str, key: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(CONFIGS / "digits" / f"{config}.yaml")
    error = refused(["fit", "--config", file, f"--{key}", *UNTRACKED[2:]], capsys)
    assert key.partition("=")[0] in error
    assert words in error
