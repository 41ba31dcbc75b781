"""What the official repositories publish about each ImageNet variant, for the tables beside ours.

Sources: the READMEs of SPANet-official and SPANetV2-official. Where README and official code
differ, `note` says how; the exact figures that we hold ourselves to are those of the code (see the
tests).
"""

from __future__ import annotations

from typing import NamedTuple


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
