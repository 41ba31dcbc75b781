"""Where the trials of a study are: a folder for the study, one for each trial's run.

    runs/sweeps/STUDY/with-srf-seed0/       the run, as `lightning fit` leaves it
    runs/sweeps/STUDY/trials/with-srf-seed0/
        lock             held by the trial's process and its children
        spec.json        what the supervisor asked for
        events.jsonl     what the trial reported (see `records`)
        log.txt          what it printed

The folder belongs to one study in one storage, by an id in the file `.study`: a trial resumes from
the checkpoint that it finds, so it must never find one of another study with the same name.
"""

from __future__ import annotations

import re
import unicodedata
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep.study import Study

ROOT = "runs/sweeps"
_OWNER = ".study"


@dataclass(frozen=True)
class TrialFolder:
    """The files of one trial, whatever its attempt.

    Attributes:
        run: Folder of the run.
        files: Folder of the engine's files.
    """

    run: Path
    files: Path

    @property
    def events(self) -> Path:
        """What the trial reported."""
        return self.files / "events.jsonl"

    @property
    def log(self) -> Path:
        """What it printed."""
        return self.files / "log.txt"

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint, where there is a whole one, with the epochs that led to it."""
        last = self.run / "last.ckpt"
        return last if zipfile.is_zipfile(last) and self.events.exists() else None

    def clear(self) -> None:
        """Put what an earlier attempt left aside, so that the next one starts from scratch."""
        for path in (self.run, self.events):
            if path.exists():
                number = 1
                while (aside := path.with_name(f"{path.name}.{number}")).exists():
                    number += 1
                path.rename(aside)


def study_folder(name: str, owner: str, root: str | Path = ROOT) -> Path:
    """Return the folder of a study on this machine; it is created where there is none.

    Args:
        name: Name of the study.
        owner: Id of the study: a folder of another one gets a number added to its name.
        root: Folder of all studies.

    Raises:
        ConfigError: If it can't be created.
    """
    number = 1
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        while True:
            folder = Path(root) / (name if number == 1 else f"{name}-{number}")
            if not folder.exists():
                # Completed under another name: it never exists without its owner.
                made = Path(root) / f".{name}-{uuid.uuid4().hex[:8]}"
                made.mkdir()
                (made / _OWNER).write_text(owner, encoding="ascii")
                try:
                    made.rename(folder)
                except OSError:  # another process was faster
                    (made / _OWNER).unlink()
                    made.rmdir()
            if (folder / _OWNER).is_file() and (folder / _OWNER).read_text("ascii") == owner:
                return folder
            number += 1
    except OSError as error:
        text = f"no folder can be created in {root} ({error.strerror or error})"
        raise ConfigError(f"study: {text}") from None


def trial_folder(study: Path, cell: str) -> TrialFolder:
    """Return the folder of a trial.

    Args:
        study: Folder of the study.
        cell: Name of the trial's folder.
    """
    return TrialFolder(run=study / cell, files=study / "trials" / cell)


def cell_name(study: Study, params: dict[str, object], number: int) -> str:
    """Return the name of a trial's folder: `with-srf-seed0`, or `trial-0007` in a search.

    Args:
        study: The definition.
        params: Optuna's parameters of the trial.
        number: Number of its first attempt.
    """
    if study.ablation is None:
        return f"trial-{number:04d}"
    arms = list(study.ablation.arms)
    slugs, at = [slug(arm) for arm in arms], arms.index(str(params["arm"]))
    same = slugs[:at].count(slugs[at])  # "A+" and "A" have one slug
    return f"{slugs[at]}{f'_{same + 1}' if same else ''}-seed{params['seed']}"


def slug(text: str) -> str:
    """Return a text in letters, digits and dashes, as a folder's name."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9.]+", "-", plain.lower()).strip("-.")[:60] or "arm"
