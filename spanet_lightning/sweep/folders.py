"""Where the trials of a study are: a folder for the study, one for each trial's run.

    runs/sweeps/STUDY/with-srf-seed0/       the run, as `lightning fit` leaves it
    runs/sweeps/STUDY/trials/with-srf-seed0/
        claim            who has it: locked while a worker or its trial's process lives
        spec.json        what the trial's process was told
        events.jsonl     what it told
        log.txt          what it printed
        prune            there once it is to end early

The folder belongs to one study in one storage, by an id in the file `.study`: a trial resumes from
a checkpoint that it finds, so it must never find one of another study with the same name.
"""

from __future__ import annotations

import os
import re
import socket
import unicodedata
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path

from spanet_lightning.errors import ConfigError
from spanet_lightning.sweep import lock
from spanet_lightning.sweep.definition import Ablation, Study

ROOT = "runs/sweeps"
_OWNER = ".study"


@dataclass(frozen=True)
class TrialFolder:
    """The files of one trial, whatever its attempt.

    Attributes:
        run: Folder of the run.
        files: Folder of what worker and process tell each other.
    """

    run: Path
    files: Path

    @property
    def claim(self) -> Path:
        """Who has the trial."""
        return self.files / "claim"

    @property
    def spec(self) -> Path:
        """What the process is told."""
        return self.files / "spec.json"

    @property
    def events(self) -> Path:
        """What the process tells."""
        return self.files / "events.jsonl"

    @property
    def log(self) -> Path:
        """What the process prints."""
        return self.files / "log.txt"

    @property
    def prune(self) -> Path:
        """There once the trial is to end early."""
        return self.files / "prune"

    @property
    def checkpoint(self) -> Path | None:
        """The last checkpoint, where there is a whole one."""
        last = self.run / "last.ckpt"
        return last if zipfile.is_zipfile(last) else None

    def clear(self) -> None:
        """Put what an earlier attempt left aside, so that the next one begins anew."""
        for path in (self.run, self.events):
            if path.exists():
                number = 1
                while (aside := path.with_name(f"{path.name}.{number}")).exists():
                    number += 1
                path.rename(aside)


def study_folder(name: str, owner: str, root: str | Path = ROOT) -> Path:
    """Return the folder of a study on this machine; it is made where there is none.

    Args:
        name: Name of the study.
        owner: Id of the study: a folder of another one gets a number added to its name.
        root: Folder of all studies.

    Raises:
        ConfigError: If it can't be made.
    """
    number = 1
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        while True:
            folder = Path(root) / (name if number == 1 else f"{name}-{number}")
            if not folder.exists():
                # Made whole under another name: it never exists without its owner.
                made = Path(root) / f".{name}-{uuid.uuid4().hex[:8]}"
                made.mkdir()
                (made / _OWNER).write_text(owner, encoding="ascii")
                try:
                    made.rename(folder)
                except OSError:  # another worker was faster
                    (made / _OWNER).unlink()
                    made.rmdir()
            if (folder / _OWNER).is_file() and (folder / _OWNER).read_text("ascii") == owner:
                return folder
            number += 1
    except OSError as error:
        raise ConfigError(
            f"study: no folder can be made in {root} ({error.strerror or error})"
        ) from None


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
    if not isinstance(study.method, Ablation):
        return f"trial-{number:04d}"
    slugs = [slug(arm.name) for arm in study.method.arms]
    at = [arm.name for arm in study.method.arms].index(str(params["arm"]))
    same = slugs[:at].count(slugs[at])  # "A+" and "A" come to the same
    return f"{slugs[at]}{f'_{same + 1}' if same else ''}-seed{params['seed']}"


def slug(text: str) -> str:
    """Return a text in letters, digits and dashes, as a folder's name.

    Args:
        text: Such as the name of an arm.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9.]+", "-", plain.lower()).strip("-.")[:60] or "arm"


class ClaimFile:
    """The lock of a trial's folder, which the trial's process holds as well.

    It is free only when neither lives: whoever finds it so may take the trial over at once, with no
    need to wait for a heartbeat to stop.

    Args:
        path: The file.
        token: What the storage says of the claim; it tells that this is the file that is meant.
    """

    def __init__(self, path: Path, token: str) -> None:
        self.path = path
        self.token = token
        self.descriptor: int | None = None

    def take(self) -> bool:
        """Take the lock, unless somebody has it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if not lock.held(descriptor):
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{socket.gethostname()} {self.token}".encode())
        self.descriptor = descriptor
        return True

    def release(self) -> None:
        """Let go of it."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def lives(path: Path, token: str) -> bool | None:
    """Whether the holder of a claim lives; None where this machine can't tell.

    Args:
        path: File of the claim.
        token: What the storage says of it.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # A shared file system may keep locks to each machine: only its own says anything.
        if os.read(descriptor, 4096).decode() != f"{socket.gethostname()} {token}":
            return None
        return not lock.held(descriptor)
    except OSError:
        return None
    finally:
        os.close(descriptor)
