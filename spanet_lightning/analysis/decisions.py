"""Decisions on cue-conflict images, read from the CSV files of Geirhos et al.'s toolbox.

A row is one trial: who (`subj`), which of 16 classes was answered (`object_response`, or `na` for
no answer), the shape's class (`category`) and the stimulus (`imagename`). The last `_` field of the
name, such as `airplane1-bicycle2.png`, is the stimulus whatever came before: shape first, texture
second. Rows come in any order, and lines may end as Windows has them.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanet_lightning.errors import DataError, did_you_mean

CLASSES = (
    "airplane",
    "bear",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "car",
    "cat",
    "chair",
    "clock",
    "dog",
    "elephant",
    "keyboard",
    "knife",
    "oven",
    "truck",
)
"""The 16 classes, in alphabetical order (arXiv:1811.12231)."""

NO_ANSWER = "na"
COLUMNS = ("subj", "object_response", "category", "imagename")

_STIMULUS = re.compile(r"([a-z]+)(\d+)-([a-z]+)(\d+)\.(?:png|jpe?g)", re.IGNORECASE)


@dataclass(frozen=True)
class Stimulus:
    """An image with the shape of one thing and the texture of another.

    Attributes:
        name: `airplane1-bicycle2`.
        shape: Class of the shape.
        texture: Class of the texture.
    """

    name: str
    shape: str
    texture: str

    @property
    def conflict(self) -> bool:
        """Whether shape and texture differ."""
        return self.shape != self.texture


@dataclass(frozen=True)
class Decision:
    """One trial.

    Attributes:
        subject: Who decided.
        stimulus: About which image.
        answer: One of the 16 classes, or `NO_ANSWER`.
    """

    subject: str
    stimulus: Stimulus
    answer: str


def stimulus(imagename: str) -> Stimulus | None:
    """Read the stimulus from the last `_` field of a name; `None` where there is none."""
    found = _STIMULUS.fullmatch(imagename.strip().rpartition("_")[2])
    if found is None:
        return None
    shape, texture = found[1].lower(), found[3].lower()
    if shape not in CLASSES or texture not in CLASSES:
        return None
    return Stimulus(f"{shape}{found[2]}-{texture}{found[4]}", shape, texture)


def read_csv(path: str | Path) -> list[Decision]:
    """Read the decisions of a file.

    Raises:
        DataError: With the file and line, if it is no such file, a subject, stimulus, class or
            answer is unknown, the shape is not the category, or a subject decided twice about an
            image.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _rows(path, file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file ({error})") from None


def _rows(path: Path, file: Iterable[str]) -> list[Decision]:
    reader = csv.DictReader(file, skipinitialspace=True)
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DataError(
            f"{path}: lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(names) or 'none'}; expected a CSV with "
            f"{', '.join(COLUMNS)}"
        )
    found: list[Decision] = []
    seen: dict[tuple[str, str], int] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or any(row[name] is None for name in COLUMNS):
            raise DataError(f"{where}: has another number of fields than the header's {len(names)}")
        subject, answer, category, image = (row[name].strip() for name in COLUMNS)
        if not subject:
            raise DataError(f"{where}: subj is empty, expected who decided")
        shown = stimulus(image)
        if shown is None:
            raise DataError(
                f"{where}: imagename is {image!r}, whose last '_' field is no stimulus of two of "
                "the 16 classes; expected one such as '…_airplane1-bicycle2.png'"
            )
        if category.lower() != shown.shape:
            raise DataError(
                f"{where}: category is {category!r}, but the shape of {shown.name} is "
                f"{shown.shape!r}"
            )
        answer = answer.lower()
        if answer in ("", "nan"):
            answer = NO_ANSWER
        if answer not in (*CLASSES, NO_ANSWER):
            raise DataError(
                f"{where}: object_response is {row['object_response']!r}, expected one of the 16 "
                f"classes or {NO_ANSWER!r}{did_you_mean(answer, CLASSES)}"
            )
        key = (subject, shown.name)
        if key in seen:
            raise DataError(
                f"{where}: {subject} decided about {shown.name} in line {seen[key]} already"
            )
        seen[key] = reader.line_num
        found.append(Decision(subject, shown, answer))
    if not found:
        raise DataError(f"{path}: has no row")
    return found


def read_all(files: Sequence[Path]) -> list[Decision]:
    """Read the decisions of several files together.

    Raises:
        DataError: As `read_csv`; or if a subject decided about an image in two files.
    """
    found: list[Decision] = []
    seen: dict[tuple[str, str], Path] = {}
    for file in files:
        for one in read_csv(file):
            other = seen.setdefault((one.subject, one.stimulus.name), file)
            if other != file:
                raise DataError(
                    f"{file}: {one.subject} decided about {one.stimulus.name} in {other} already; "
                    "give each trial once"
                )
            found.append(one)
    return found


def csv_files(places: Sequence[str | Path]) -> list[Path]:
    """List CSV files: those given, and all of folders given.

    Raises:
        DataError: If one is not there, or a folder has none.
    """
    files: list[Path] = []
    for place in places:
        path = Path(place)
        if path.is_dir():
            inside = sorted(path.rglob("*.csv"))
            if not inside:
                raise DataError(f"{path}: no .csv file below it")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise DataError(f"{path}: no such file or folder")
    return list(dict.fromkeys(files))


def write_csv(path: Path, decisions: Sequence[Decision], session: int = 1) -> None:
    """Write decisions as a file of the same kind, which `read_csv` and others' tools read."""
    columns = ("subj", "session", "trial", "rt", "object_response", "category", "condition")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*columns, "imagename"))
        for i, one in enumerate(decisions, 1):
            shape = one.stimulus.shape
            image = f"{i:04d}_cue_{one.subject.replace('_', '-')}_0_{shape}_00_"
            image += f"{one.stimulus.name}.png"
            writer.writerow((one.subject, session, i, "NaN", one.answer, shape, 0, image))
