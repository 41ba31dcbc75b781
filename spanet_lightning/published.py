"""What the official repositories publish about each model, for the tables beside ours.

Sources: the READMEs of SPANet-official and SPANetV2-official. Where README and official code
differ, `note` says how; the exact figures that we hold ourselves to are those of the code (see the
tests).
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Published(NamedTuple):
    """One row of the official README.

    Attributes:
        parameters: In millions. V1's include the frozen masks, which ours builds instead.
        macs: At 224×224 px, in G, as the README rounds it.
        top1: ImageNet-1K validation accuracy, in percent.
        note: What to know before comparing.
    """

    parameters: float
    macs: float
    top1: float
    note: str = ""


_V1 = "published count includes frozen masks"
_V2 = "README's parameters are not what its code builds"

PUBLISHED: dict[str, Published] = {
    "spanet_s": Published(28.7, 4.6, 83.1, _V1),
    "spanet_m": Published(41.8, 6.8, 83.5, _V1),
    "spanet_mx": Published(54.9, 9.0, 83.8, _V1),
    "spanet_b": Published(75.9, 12.0, 84.0, _V1),
    "spanet_bx": Published(99.8, 15.8, 84.4, _V1),
    "spanetv2_s18_pure": Published(29, 4.2, 83.4),
    "spanetv2_s18_hybrid": Published(27, 4.2, 83.9),
    "spanetv2_s36_pure": Published(44, 8.1, 84.4),
    "spanetv2_s36_hybrid": Published(41, 8.1, 84.7),
    "spanetv2_m36_pure": Published(61, 13.7, 84.9, _V2),
    "spanetv2_m36_hybrid": Published(58, 13.6, 85.3),
    "spanetv2_b36_pure": Published(100, 24.3, 85.0, _V2),
    "spanetv2_b36_hybrid": Published(100, 23.9, 85.6, _V2),
}


Convention = Literal["A", "B"]
DenseKind = Literal["detection", "segmentation"]


class PublishedDense(NamedTuple):
    """One row of the official tables of dense prediction.

    Attributes:
        task: Which table.
        head: Name of the head here.
        variant: timm's name of the backbone.
        parameters: In millions, where published. V2's include a classifier of 1,000 classes, which
            is never called.
        macs: In G at `size`, where published.
        convention: How the MACs were counted: "A" without attention products, "B" with them.
        quality: Box AP / mask AP (COCO), or mIoU (ADE20K), in percent.
        note: What to know before comparing.
    """

    task: DenseKind
    head: str
    variant: str
    parameters: float | None
    macs: float | None
    convention: Convention
    quality: str
    note: str = ""


_NO_FILE = "its configuration is not published"
_WIDTH = "published cost is that of width 512; the published configuration says 320"

PUBLISHED_DENSE: tuple[PublishedDense, ...] = (
    PublishedDense("detection", "RetinaNet", "spanet_s", 38, None, "A", "43.3"),
    PublishedDense("detection", "RetinaNet", "spanet_m", 51, None, "A", "44.0"),
    PublishedDense("detection", "MaskRCNN", "spanet_s", 48, None, "A", "44.7/40.6"),
    PublishedDense("detection", "MaskRCNN", "spanet_m", 61, None, "A", "45.2/41.0"),
    PublishedDense("detection", "MaskRCNN", "spanetv2_s18_pure", None, 255, "A", "48.0/42.9"),
    PublishedDense("detection", "MaskRCNN", "spanetv2_s18_hybrid", None, 251, "A", "49.6/44.3"),
    PublishedDense(
        "detection", "CascadeMaskRCNN", "spanetv2_s18_pure", None, 734, "A", "51.6/44.7"
    ),
    PublishedDense(
        "detection", "CascadeMaskRCNN", "spanetv2_s18_hybrid", None, 729, "A", "52.8/45.7"
    ),
    PublishedDense(
        "detection", "CascadeMaskRCNN", "spanetv2_s36_pure", None, 814, "A", "53.1/45.9", _NO_FILE
    ),
    PublishedDense(
        "detection", "CascadeMaskRCNN", "spanetv2_s36_hybrid", None, 806, "A", "53.8/46.4", _NO_FILE
    ),
    PublishedDense("segmentation", "SemanticFPN", "spanet_s", 32, 46, "A", "45.4", _NO_FILE),
    PublishedDense("segmentation", "SemanticFPN", "spanet_m", 45, 57, "A", "46.2", _NO_FILE),
    PublishedDense("segmentation", "SemanticFPN", "spanetv2_s18_pure", 33, 43, "B", "46.7"),
    PublishedDense("segmentation", "SemanticFPN", "spanetv2_s18_hybrid", 31, 48, "B", "47.8"),
    PublishedDense("segmentation", "SemanticFPN", "spanetv2_s36_pure", 48, 64, "B", "47.9"),
    PublishedDense("segmentation", "SemanticFPN", "spanetv2_s36_hybrid", 45, 74, "B", "48.6"),
    PublishedDense("segmentation", "UPerNet", "spanetv2_s18_pure", 60, 930, "A", "48.7", _WIDTH),
    PublishedDense("segmentation", "UPerNet", "spanetv2_s18_hybrid", 58, 925, "A", "49.1", _WIDTH),
    PublishedDense("segmentation", "UPerNet", "spanetv2_s36_pure", 75, 1012, "A", "49.8", _WIDTH),
    PublishedDense("segmentation", "UPerNet", "spanetv2_s36_hybrid", 71, 1004, "A", "51.6", _WIDTH),
)
