"""Trials of classification experiments, in the CSV format of Geirhos et al.'s toolbox.

A row is one trial: the subject (`subj`), its answer (`object_response`, or `na`), the correct class
(`category`) and the image (`imagename`, whose last `_` field names the stimulus). Rows come in any
order, and lines may end in CRLF. In cue-conflict trials the stimulus shows the shape of one class
and the texture of another, such as `airplane1-bicycle2.png`, and the category is the shape.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from spanet_lightning.errors import DataError, did_you_mean

CLASSES = (
    *("airplane", "bear", "bicycle", "bird", "boat", "bottle", "car", "cat"),
    *("chair", "clock", "dog", "elephant", "keyboard", "knife", "oven", "truck"),
)
"""The 16 classes, in alphabetical order (arXiv:1811.12231)."""

NO_ANSWER = "na"
COLUMNS = ("subj", "object_response", "category", "imagename")

_STIMULUS = re.compile(r"([a-z]+)(\d+)-([a-z]+)(\d+)", re.IGNORECASE)


@dataclass(frozen=True)
class Trial:
    """One decision of one subject.

    Attributes:
        subject: Who decided.
        image: The stimulus, such as `airplane1-bicycle2`.
        category: The correct class; of a cue-conflict stimulus, that of its shape.
        answer: One of the 16 classes, or `NO_ANSWER`.
    """

    subject: str
    image: str
    category: str
    answer: str

    @property
    def texture(self) -> str | None:
        """Class of the texture of a cue-conflict stimulus, else `None`."""
        return conflict(self.image)[1]


def conflict(image: str) -> tuple[str | None, str | None]:
    """Return the classes of shape and texture of a cue-conflict stimulus, or (`None`, `None`)."""
    found = _STIMULUS.fullmatch(image)
    if found is None or not {found[1].lower(), found[3].lower()} <= set(CLASSES):
        return None, None
    return found[1].lower(), found[3].lower()


def stimulus_name(imagename: str) -> str:
    """Return the last `_` field of an image's name, without its suffix, in lower case."""
    return Path(imagename.strip().rpartition("_")[2]).stem.lower()


def read_csv(path: str | Path, *, cue_conflict: bool = True) -> list[Trial]:
    """Read the trials of a file.

    Args:
        path: The file.
        cue_conflict: Require cue-conflict stimuli, whose shape is the category.

    Raises:
        DataError: Naming file and line, if a field is missing or unknown, or a subject decided
            twice about an image.
    """
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return _read_rows(path, file, cue_conflict)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV file ({error})") from None


def _read_rows(path: Path, file: Iterable[str], cue_conflict: bool) -> list[Trial]:
    reader = csv.DictReader(file, skipinitialspace=True)
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise DataError(
            f"{path}: lacks the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
            f"it has {', '.join(names) or 'none'}; expected a CSV with {', '.join(COLUMNS)}"
        )
    found: list[Trial] = []
    seen: dict[tuple[str, str], int] = {}
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        if None in row or any(row[name] is None for name in COLUMNS):
            raise DataError(f"{where}: has another number of fields than the header's {len(names)}")
        subject, answer, category, imagename = (row[name].strip() for name in COLUMNS)
        if not subject:
            raise DataError(f"{where}: subj is empty, expected the name of a subject")
        image, category = stimulus_name(imagename), category.lower()
        shape, _ = conflict(image)
        if cue_conflict and shape is None:
            raise DataError(
                f"{where}: imagename is {imagename!r}, whose last '_' field is no stimulus of two "
                "of the 16 classes; expected one such as '…_airplane1-bicycle2.png'"
            )
        if cue_conflict and category != shape:
            raise DataError(
                f"{where}: category is {category!r}, but the shape of {image} is {shape!r}"
            )
        answer = answer.lower()
        if answer in ("", "nan"):
            answer = NO_ANSWER
        if answer not in (*CLASSES, NO_ANSWER):
            raise DataError(
                f"{where}: object_response is {row['object_response']!r}, expected one of the 16 "
                f"classes or {NO_ANSWER!r}{did_you_mean(answer, CLASSES)}"
            )
        first = seen.setdefault((subject, image), reader.line_num)
        if first != reader.line_num:
            raise DataError(f"{where}: {subject} decided about {image} in line {first} already")
        found.append(Trial(subject, image, category, answer))
    if not found:
        raise DataError(f"{path}: has no row")
    return found


def read_all(places: Sequence[str | Path], *, cue_conflict: bool = True) -> list[Trial]:
    """Read the trials of CSV files, and of all below folders, together.

    Raises:
        DataError: As `read_csv`; if a place does not exist, a folder has no CSV file, or a subject
            decided about an image in two files.
    """
    files: dict[Path, None] = {}
    for place in map(Path, places):
        if not place.exists():
            raise DataError(f"{place}: no such file or folder")
        inside = sorted(place.rglob("*.csv")) if place.is_dir() else [place]
        if not inside:
            raise DataError(f"{place}: no .csv file below it")
        files |= dict.fromkeys(inside)
    found: list[Trial] = []
    seen: dict[tuple[str, str], Path] = {}
    for file in files:
        for one in read_csv(file, cue_conflict=cue_conflict):
            other = seen.setdefault((one.subject, one.image), file)
            if other != file:
                raise DataError(
                    f"{file}: {one.subject} decided about {one.image} in {other} already; give "
                    "each trial once"
                )
            found.append(one)
    return found


def write_csv(path: Path, trials: Sequence[Trial]) -> Path:
    """Write trials in the same format, which `read_csv` and other tools read."""
    columns = ("subj", "session", "trial", "rt", "object_response", "category", "condition")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*columns, "imagename"))
        for i, one in enumerate(trials, 1):
            name = f"{i:04d}_cue_{one.subject.replace('_', '-')}_0_{one.category}_00_"
            fields = (one.subject, 1, i, "NaN", one.answer, one.category, 0)
            writer.writerow((*fields, f"{name}{one.image}.png"))
    return path
