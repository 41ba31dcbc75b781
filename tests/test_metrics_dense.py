"""If one of these fails, the AP or mIoU that we report is not COCO's, or not that of the set."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as rle
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from spanet_lightning.tasks.metrics import COCO_NUMBERS, CocoMetric, SegmentationMetric

SIZE = (240, 320)


def scene(seed: int, objects: int, found: int, crowd: bool):
    """An image's targets and detections: jittered objects of all sizes, and false ones."""
    rng = np.random.default_rng(seed)

    def boxes(n: int) -> np.ndarray:
        side = rng.choice([12.0, 50.0, 130.0], n)[:, None] * rng.uniform(0.7, 1.3, (n, 2))
        corner = rng.uniform(0, 1, (n, 2)) * (np.array([320, 240]) - side - 1).clip(1)
        return np.concatenate([corner, corner + side], 1)

    def masks(corners: np.ndarray) -> torch.Tensor:
        out = torch.zeros(len(corners), *SIZE, dtype=torch.bool)
        for mask, (x1, y1, x2, y2) in zip(out, corners.astype(int), strict=True):
            mask[y1 : y2 + 1, x1 : x2 + 1] = True
            mask[y1 : (y1 + y2) // 2, x1 : (x1 + x2) // 2] = False  # not the box itself
        return out

    real = boxes(objects)
    hits = real[rng.integers(0, objects, found // 2)] if objects else boxes(0)
    shown = np.concatenate([hits + rng.normal(0, 2, hits.shape), boxes(found - len(hits))])
    shown[:, 2:] = np.maximum(shown[:, 2:], shown[:, :2] + 1)
    shown = shown.clip(0, [320, 240, 320, 240]).astype(np.float32)
    real = real.astype(np.float32)
    real_masks = masks(real)
    target = {
        "boxes": torch.from_numpy(real),
        "labels": torch.from_numpy(rng.integers(1, 4, objects)),
        "masks": real_masks,
        "iscrowd": torch.from_numpy(rng.random(objects) < 0.3)
        if crowd
        else torch.zeros(objects).bool(),
        # The annotated area is that of the mask, as in COCO, and decides on the ranges.
        "area": real_masks.sum((1, 2)).float(),
        "image_id": seed,
    }
    labels = rng.integers(1, 4, found)
    if objects:
        labels[: len(hits)] = rng.choice(target["labels"].numpy(), len(hits))
    detections = {
        "boxes": torch.from_numpy(shown),
        "scores": torch.from_numpy(rng.permutation(found).astype(np.float32) / max(found, 1)),
        "labels": torch.from_numpy(labels),
        "masks": masks(shown),
    }
    return target, detections


SCENES = [
    scene(1, 6, 12, False),
    scene(2, 8, 20, True),
    scene(3, 0, 5, False),  # nothing there
    scene(4, 5, 0, False),  # nothing found
    scene(5, 0, 0, False),
    scene(6, 9, 130, True),  # more than 100 detections
    scene(7, 3, 6, False),
]


def pycoco(kind: str) -> list[float]:
    """COCO's own evaluation of the scenes: its twelve numbers."""

    def encoded(mask: torch.Tensor) -> dict:
        return rle.encode(np.asfortranarray(mask.numpy().astype(np.uint8)))

    annotations, results = [], []
    for target, found in SCENES:
        for i, box in enumerate(target["boxes"].tolist()):
            x1, y1, x2, y2 = box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": target["image_id"],
                    "category_id": int(target["labels"][i]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(target["area"][i]),
                    "iscrowd": int(target["iscrowd"][i]),
                    "segmentation": encoded(target["masks"][i]),
                }
            )
        for i, (x1, y1, x2, y2) in enumerate(found["boxes"].tolist()):
            where = {"bbox": [x1, y1, x2 - x1, y2 - y1]}
            if kind == "segm":
                where = {"segmentation": encoded(found["masks"][i])}
            results.append(
                {
                    "image_id": target["image_id"],
                    "category_id": int(found["labels"][i]),
                    "score": float(found["scores"][i]),
                    **where,
                }
            )
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": t["image_id"], "height": 240, "width": 320} for t, _ in SCENES],
            "annotations": annotations,
            "categories": [{"id": i, "name": str(i)} for i in (1, 2, 3)],
            "info": {},
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return list(evaluation.stats)


def test_all_twelve_numbers_of_boxes_and_masks_are_those_of_pycocotools() -> None:
    metric = CocoMetric(masks=True)
    for start in (0, 1, 4):  # uneven batches
        part = SCENES[start : {0: 1, 1: 4, 4: 7}[start]]
        metric.add([found for _, found in part], [target for target, _ in part])
    ours = metric.numbers()
    for kind, name in (("bbox", "box"), ("segm", "mask")):
        theirs = pycoco(kind)
        found = [float(ours[f"{name}_{number}"]) for number in COCO_NUMBERS.values()]
        assert found == pytest.approx(theirs, abs=1e-6)
        assert 0.01 < theirs[0] < 0.95  # neither hopeless nor perfect


def test_boxes_alone_give_the_same_and_classes_on_demand() -> None:
    metric = CocoMetric(per_class=True)
    metric.add([found for _, found in SCENES], [target for target, _ in SCENES])
    ours = metric.numbers(("cat", "dog"))
    assert float(ours["box_ap"]) == pytest.approx(pycoco("bbox")[0], abs=1e-6)
    by_class = [float(ours[f"box_ap/{name}"]) for name in ("cat", "dog", "3")]
    assert np.mean(by_class) == pytest.approx(float(ours["box_ap"]), abs=1e-6)
    assert not any(name.startswith("mask") for name in ours)


def test_order_of_images_changes_nothing() -> None:
    """Two processes see other images each; gathered, they are the same set in another order."""
    results = []
    for order in (SCENES, SCENES[::2] + SCENES[1::2]):
        metric = CocoMetric(masks=True)
        metric.add([found for _, found in order], [target for target, _ in order])
        results.append({name: float(v) for name, v in metric.numbers().items()})
    assert results[0] == pytest.approx(results[1], abs=1e-6)


def numpy_miou(pairs, classes):
    """mIoU, mean accuracy and pixel accuracy from one big confusion matrix."""
    matrix = np.zeros((classes, classes), int)
    for predicted, true in pairs:
        keep = true != 255
        np.add.at(matrix, (true[keep], predicted[keep]), 1)
    hit, true, predicted = np.diag(matrix), matrix.sum(1), matrix.sum(0)
    union = true + predicted - hit
    iou = hit[union > 0] / union[union > 0]
    return iou.mean(), (hit[true > 0] / true[true > 0]).mean(), hit.sum() / matrix.sum()


def test_miou_agrees_with_numpy_and_is_not_the_mean_over_images() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for shape in ((5, 9), (31, 17), (8, 8), (3, 40), (12, 12)):
        true = rng.integers(0, 5, shape)
        predicted = np.where(rng.random(shape) < 0.6, true, rng.integers(0, 6, shape))
        true[rng.random(shape) < 0.2] = 255
        pairs.append((predicted, true))
    # Class 6 of 7 occurs nowhere, class 5 only in predictions.
    parts = [SegmentationMetric(7), SegmentationMetric(7)]
    for i, (predicted, true) in enumerate(pairs):  # an odd number over two processes
        parts[i % 2].update(torch.from_numpy(predicted), torch.from_numpy(true))
    whole = SegmentationMetric(7)
    for name in ("intersection", "predicted", "labelled"):
        setattr(whole, name, sum(getattr(part, name) for part in parts))
    whole._update_count = len(pairs)
    found = whole.compute()
    expected = numpy_miou(pairs, 7)
    names = ("miou", "mean_accuracy", "pixel_accuracy")
    assert [float(found[name]) for name in names] == pytest.approx(expected, abs=1e-6)
    one_by_one = np.mean([numpy_miou([pair], 7)[0] for pair in pairs])
    assert abs(one_by_one - expected[0]) > 1e-3


def _process(rank: int, folder: str) -> None:
    """One of two processes: every other image, 4 for the first and 3 for the second."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=2)
    metric, segmentation = CocoMetric(masks=True), SegmentationMetric(4)
    for number, (target, found) in enumerate(SCENES):
        if number % 2 == rank:
            metric.add([found], [target])
            segmentation.update(*_label_maps(number))
    numbers = {**metric.numbers(), **segmentation.compute()}
    torch.save({name: float(v) for name, v in numbers.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def _label_maps(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    size = (10 + number, 20)
    return tuple(torch.randint(0, 4, size, generator=generator) for _ in range(2))


@pytest.mark.slow
def test_two_processes_at_an_odd_number_of_images_report_what_one_does(tmp_path) -> None:
    torch.multiprocessing.spawn(_process, args=(str(tmp_path),), nprocs=2)
    metric, segmentation = CocoMetric(masks=True), SegmentationMetric(4)
    for number, (target, found) in enumerate(SCENES):
        metric.add([found], [target])
        segmentation.update(*_label_maps(number))
    alone = {name: float(v) for name, v in {**metric.numbers(), **segmentation.compute()}.items()}
    for rank in (0, 1):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(alone, abs=1e-6)
