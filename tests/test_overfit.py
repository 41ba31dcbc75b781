"""If one fails, a head can't even learn eight photographs by heart.

Then its targets, its losses or what it makes of its outputs disagree with each other on real
annotations. Training takes minutes for each head, hence the mark; random weights, a small backbone,
no augmentation but crops, evaluated on the images that were learnt.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lightning import LightningDataModule, Trainer, seed_everything

from spanet_lightning import (
    CascadeMaskRCNN,
    CocoDataModule,
    DetectionTask,
    FasterRCNN,
    MaskRCNN,
    RetinaNet,
    SegmentationFoldersDataModule,
    SegmentationTask,
    SemanticFPN,
    SPANetV2,
    UPerNet,
)
from spanet_lightning.tasks.optim import OptimizerConfig, ScheduleConfig

SHARED = Path(__file__).parents[2] / "shared" / "data"
NEEDED = "real photographs, which the project can't ship for their licences, are not beside it"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=NEEDED),
]

COUNT = 8
CROP = 360  # pixels: the height of CamVid's frames, which are 480 wide
SMALLEST = 48  # pixels; what is smaller is no more than a few once the image is made smaller
RCNN = {
    "out_channels": 64,
    "fc_dim": 256,
    "anchor_scale": 4.0,
    "box_batch_size_per_image": 64,
    "rpn_post_nms_top_n_train": 200,
}
# The head, its rate, and how often it sees the eight.
DETECTORS = {
    "RetinaNet": (RetinaNet(out_channels=64, anchor_scale=3.0), 1e-3, 250),
    "FasterRCNN": (FasterRCNN(**RCNN), 1e-3, 150),
    "MaskRCNN": (MaskRCNN(**RCNN), 1e-3, 150),
    "CascadeMaskRCNN": (CascadeMaskRCNN(**RCNN), 1e-3, 100),
}
SEGMENTERS = {
    "SemanticFPN": (SemanticFPN(out_channels=64, channels=64, dropout_ratio=0.0), 3e-3, 800),
    "UPerNet": (UPerNet(channels=64, auxiliary_channels=32, dropout_ratio=0.0), 3e-3, 800),
}


def recipe(lr: float) -> dict:
    return {
        "optimizer": OptimizerConfig(lr=lr, weight_decay=0.0),
        "schedule": ScheduleConfig(
            name="cosine", update="step", warmup_images=20 * COUNT, cooldown_epochs=0
        ),
    }


def learn_by_heart(task: DetectionTask | SegmentationTask, data: LightningDataModule, epochs: int):
    trainer = Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        limit_val_batches=0,
    )
    trainer.fit(task, data)
    (numbers,) = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    ).validate(task, data, verbose=False)
    return numbers


@pytest.fixture
def eight_people(tmp_path: Path) -> CocoDataModule:
    """The first photographs without a crowd and without a person of less than 48 px a side."""
    root = SHARED / "coco_person"
    whole = json.loads((root / "annotations" / "instances_train.json").read_text())
    by_image = {image["id"]: [] for image in whole["images"]}
    for one in whole["annotations"]:
        by_image[one["image_id"]].append(one)
    kept = [
        image
        for image in whole["images"]
        if by_image[image["id"]]
        and not any(a["iscrowd"] or min(a["bbox"][2:]) < SMALLEST for a in by_image[image["id"]])
    ][:COUNT]
    assert len(kept) == COUNT
    annotations = [a for image in kept for a in by_image[image["id"]]]
    few = {**whole, "images": kept, "annotations": annotations}
    (tmp_path / "eight.json").write_text(json.dumps(few))
    (tmp_path / "eight").symlink_to(root / "train")
    return CocoDataModule(
        root=str(tmp_path),
        train_images="eight",
        train_annotations="eight.json",
        val_images="eight",
        val_annotations="eight.json",
        masks=True,
        augmentation="none",
        long_side=400,
        short_side=256,
        group_by_aspect=False,
        batch_size=2,
        num_workers=0,
    )


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_learn_eight_photographs(name, eight_people):
    seed_everything(0)
    head, lr, epochs = DETECTORS[name]
    task = DetectionTask(SPANetV2(variant="test"), head, 1, **recipe(lr))
    numbers = learn_by_heart(task, eight_people, epochs)
    assert numbers["val/box_ap"] >= 0.8
    assert numbers.get("val/mask_ap", 1.0) >= 0.8


@pytest.fixture
def eight_streets(tmp_path: Path) -> SegmentationFoldersDataModule:
    """The first eight frames for training."""
    root = SHARED / "camvid"
    for kind, ending in (("images", "*"), ("annotations", "*.png")):
        for split in ("training", "validation"):
            folder = tmp_path / kind / split
            folder.mkdir(parents=True)
            for file in sorted((root / kind / "training").glob(ending))[:COUNT]:
                (folder / file.name).symlink_to(file)
    return SegmentationFoldersDataModule(
        root=str(tmp_path),
        num_classes=11,
        crop_size=CROP,
        long_side=480,
        short_side=360,
        scale=(1.0, 1.0),
        hflip=0.0,
        photometric=False,
        batch_size=2,
        num_workers=0,
    )


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmentation_heads_learn_eight_street_scenes(name, eight_streets):
    seed_everything(0)
    head, lr, epochs = SEGMENTERS[name]
    task = SegmentationTask(
        SPANetV2(variant="test"),
        head,
        11,
        # A spectral mixer sees another spectrum at another size: evaluated as it was trained.
        inference="slide",
        window=CROP,
        window_stride=CROP // 2,
        **recipe(lr),
    )
    numbers = learn_by_heart(task, eight_streets, epochs)
    assert numbers["val/miou"] >= 0.9
