"""Packages of others that can't be imported, in one line instead of a traceback.

A torchvision that does not match torch breaks timm and lightning, and with them this package.
`spanet doctor` then still runs, and explains what to install.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from spanet_lightning.errors import SpanetError


class BrokenPackageError(SpanetError, ImportError):
    """A package that this one needs can't be imported."""


@contextmanager
def explained() -> Iterator[None]:
    """Turn what another package raises while it is imported into the user's error.

    Raises:
        BrokenPackageError: That quotes it.
    """
    try:
        yield
    except SpanetError:
        raise
    except (ImportError, RuntimeError, OSError) as error:
        name = getattr(error, "name", None)
        frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
        imports = any(frame.f_code.co_name == "<module>" for frame in frames)
        missing = isinstance(error, ModuleNotFoundError)
        ours = isinstance(name, str) and name.partition(".")[0] == "spanet_lightning"
        if ours or not (imports or missing):
            raise  # a mistake in this package, or nothing of an import
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise BrokenPackageError(
            f"a package that is needed can't be imported ({reason}); 'spanet doctor' explains it"
        ) from error
