"""What a network has to know about its data: classes and their order, colours, normalisation.

Every data module offers a `DataInfo` as its `info`. Tasks store it in each checkpoint (under
`KEY`), as plain values, and compare it with the data that the checkpoint is used on: a label is
only a number, and the names behind it must be the ones it was trained with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from typing import Any

from spanet_lightning.errors import DataError, did_you_mean, invalid

evaluated: ContextVar[DataInfo | None] = ContextVar("evaluated", default=None)
"""The statement of the checkpoint that a command evaluates or predicts with. Data modules take the
classes from it where the training data, which state them, are not there."""
KEY = "data_info"
"""Key of the statement in a checkpoint."""
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class DataInfo:
    """What a network has to know about its data.

    Attributes:
        classes: Names of the classes in the order of labels, without background.
        ids: Their ids in the annotations: categories of COCO, values of masks; None if they count
            as labels do.
        palette: A colour (R, G, B) for each class; None without any.
        mean: Mean of each channel, of values in [0, 1], that was subtracted.
        std: Standard deviation of each channel that was divided by.
        channels: Channels of the images.

    Raises:
        DataError: If a name is there twice.
    """

    classes: tuple[str, ...]
    ids: tuple[int, ...] | None = None
    palette: tuple[Colour, ...] | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    channels: int = 3

    def __post_init__(self) -> None:
        check_unique(self.classes, "classes")

    @property
    def num_classes(self) -> int:
        """Number of classes, without background."""
        return len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists and numbers, for a checkpoint or JSON."""
        values = asdict(self)
        return {
            key: [list(one) if isinstance(one, tuple) else one for one in value]
            if isinstance(value, tuple)
            else value
            for key, value in values.items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataInfo:
        """Return the statement that `to_dict` wrote."""
        palette, ids = values.get("palette"), values.get("ids")
        return cls(
            classes=tuple(map(str, values["classes"])),
            ids=None if ids is None else tuple(map(int, ids)),
            palette=None if palette is None else tuple((r, g, b) for r, g, b in palette),
            mean=tuple(map(float, values.get("mean", ()))),
            std=tuple(map(float, values.get("std", ()))),
            channels=int(values.get("channels", 3)),
        )


def check_unique(names: Sequence[str], where: str) -> None:
    """Refuse names of classes that are given twice: one of them could never be told apart.

    Args:
        names: The names.
        where: Key or file that gives them, for the message.

    Raises:
        DataError: With the first of them.
    """
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        places = [str(i) for i, one in enumerate(names) if one == name]
        raise DataError(
            f"{where}: got the name {name!r} for {count} classes (labels {', '.join(places)}), "
            "expected each name once"
        )


def info_of(data: Any) -> DataInfo | None:
    """Return the statement of a data module; None of one that makes none.

    Args:
        data: Any data module; one of a user's own is asked for `class_names` where it has no
            `info`.
    """
    info = getattr(data, "info", None)
    if isinstance(info, DataInfo):
        return info
    names = getattr(data, "class_names", None)
    return None if names is None else DataInfo(tuple(map(str, names)))


def stored_info(checkpoint: Mapping[str, Any]) -> DataInfo | None:
    """Return the statement in a checkpoint; None in one of another program or version."""
    values = checkpoint.get(KEY)
    return None if values is None else DataInfo.from_dict(values)


def check_same(stored: DataInfo, current: DataInfo, checkpoint: str = "the checkpoint") -> None:
    """Refuse data on which a checkpoint's labels, or its normalisation, would mean something else.

    Ids and colours may differ: they name labels outwards, the network never sees them.

    Args:
        stored: What the checkpoint was trained on.
        current: What it is to be used on.
        checkpoint: What to call it.

    Raises:
        DataError: With the first difference.
    """
    names, known = current.classes, stored.classes
    extra = [name for name in names if name not in set(known)]
    missing = [name for name in known if name not in set(names)]
    if extra:
        hint = did_you_mean(extra[0], missing)
        raise DataError(
            f"data: class {_named(extra)} is not known to {checkpoint}, which was trained on "
            f"{_named(known)}{hint}"
        )
    if missing:
        raise DataError(
            f"data: class {_named(missing)} of {checkpoint} is not among the classes of the data, "
            f"{_named(names)}"
        )
    for label, (name, before) in enumerate(zip(names, known, strict=True)):
        if name != before:
            raise DataError(
                f"data: classes are in another order than in {checkpoint}: label {label} is "
                f"{name!r} in the data, {before!r} in the checkpoint"
            )
    if current.channels != stored.channels:
        raise DataError(
            f"data: images have {current.channels} channels, {checkpoint} was trained on "
            f"{stored.channels}"
        )
    for key in ("mean", "std"):
        value, before_ = getattr(current, key), getattr(stored, key)
        if (
            value
            and before_
            and any(abs(a - b) > 1e-4 for a, b in zip(value, before_, strict=True))
        ):
            raise DataError(
                f"data.{key}: got {list(value)}, expected {list(before_)}, which {checkpoint} was "
                "trained with"
            )


def check_channels(model: Any, data: Any) -> None:
    """Refuse a backbone for another number of channels than the data has.

    Args:
        model: A task, or any other module; without a backbone that states `in_chans` it passes.
        data: Any data module.

    Raises:
        ConfigError: If they differ.
    """
    wanted = getattr(getattr(model, "backbone", None), "in_chans", None)
    channels = getattr(getattr(data, "info", None), "channels", None)
    if wanted is not None and channels is not None and wanted != channels:
        key = f", or data.in_chans={wanted}" if hasattr(data, "in_chans") else ""
        raise invalid(
            "model.backbone.in_chans", wanted, f"{channels}, the channels of the data{key}"
        )


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return f"{', '.join(map(repr, names[:5]))}{more}"
