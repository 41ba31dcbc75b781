"""Help texts: which keys a configuration has beyond those that the main help lists."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

from jsonargparse import DefaultHelpFormatter

from spanet_lightning import data, heads, tasks
from spanet_lightning.backbones import SPANet, SPANetV2
from spanet_lightning.cli.check import class_keys
from spanet_lightning.launcher import MODULE

# The heads and the data modules of each task.
PARTS: dict[type, tuple[tuple[type, ...], tuple[type, ...]]] = {
    tasks.ClassificationTask: (
        (),
        (data.ImageClassificationDataModule, data.DigitsDataModule),
    ),
    tasks.DetectionTask: (
        (heads.RetinaNet, heads.FasterRCNN, heads.MaskRCNN, heads.CascadeMaskRCNN),
        (data.CocoDataModule, data.DigitScenesDataModule),
    ),
    tasks.SegmentationTask: (
        (heads.SemanticFPN, heads.UPerNet),
        (data.SegmentationFoldersDataModule, data.DigitScenesDataModule),
    ),
}


class LineHelpFormatter(DefaultHelpFormatter):
    """Leaves the line breaks of an epilog as they are: its lines are commands to copy."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if "\n" not in text:
            return super()._fill_text(text, width, indent)
        return "".join(f"{indent}{line}\n" for line in text.splitlines())


def program() -> str:
    """Return what the user typed to get here, for the help texts."""
    called = Path(sys.argv[0]).stem
    return called if called == "lightning" else MODULE


def knobs(command: str) -> str:
    """Return the end of a command's help: the keys of the backbones, and how to list all others.

    With the heads and the data modules of each task, whose keys are listed by their names.

    Args:
        command: A subcommand, such as "fit".
    """
    lines = ["A backbone's arguments are keys of the form --model.backbone.KEY VALUE:"]
    for backbone in (SPANet, SPANetV2):
        keys = [key for key in class_keys(backbone) if key != "num_classes"]  # the data's to tell
        names = f"{backbone.__name__}: {', '.join(keys)}"
        lines += _wrapped(names)
    lines.append("The tasks, with their heads and data:")
    for task, (its_heads, its_data) in PARTS.items():
        names = "; ".join(
            f"{what} {', '.join(cls.__name__ for cls in classes)}"
            for what, classes in (("heads", its_heads), ("data", its_data))
            if classes
        )
        lines += _wrapped(f"{task.__name__}: {names}")
    start = f"  {program()} {command}"
    lines += [
        "What the keys mean, of each of these by its name:",
        f"{start} --model ClassificationTask --model.backbone.help SPANetV2",
        f"{start} --model.help ClassificationTask",
        f"{start} --model DetectionTask --model.head.help MaskRCNN",
        f"{start} --data.help CocoDataModule",
        "Wherever a class_path is expected, so is the name of a class of spanet_lightning alone.",
    ]
    return "\n".join(lines)


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=78, initial_indent="  ", subsequent_indent="    ")
