"""What can't be imported because of other packages, said in one line where something is asked for.

A torchvision that is not torch's own breaks timm and lightning, and with them this package.
Importing it works all the same, so that `spanet doctor` can say what is wrong.
"""

from __future__ import annotations

from spanet_lightning.errors import SpanetError

REASON: list[BaseException] = []
"""The error of the import of timm or torch; empty where they work."""


class BrokenPackageError(SpanetError, ImportError):
    """A package that this one needs can't be imported."""


def is_others(error: BaseException) -> bool:
    """Whether an error of an import comes from another package, not from a mistake in this one."""
    name = getattr(error, "name", None)
    return not (isinstance(name, str) and name.partition(".")[0] == "spanet_lightning")


def found(error: BaseException) -> BrokenPackageError:
    """Return the user's error for one of an import."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return BrokenPackageError(
        f"a package that is needed can't be imported ({reason}); 'spanet doctor' says what to do"
    )


def refuse() -> None:
    """Stop where a package that is needed is broken.

    Raises:
        BrokenPackageError: That says which.
    """
    if REASON:
        raise found(REASON[0]) from REASON[0]
