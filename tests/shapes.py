"""The checker of annotations that `conftest.py` puts around the package's functions."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

from beartype import BeartypeConf, beartype

Function = TypeVar("Function", bound=Callable[..., Any])

_SHAPED = re.compile(r"\b(Shaped|Num|Real|Inexact|Float|Complex|Integer|Int|UInt|Bool)\d*\[")
# An int is welcome where a float is, as it is for mypy.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def checked(function: Function) -> Function:
    """Check the arguments and results of functions whose annotations give shapes, of no others.

    Constructors check their own arguments and raise errors for users; those have to come up in
    tests as they do in use.
    """
    shaped = any(_SHAPED.search(str(hint)) for hint in function.__annotations__.values())
    return _check(function) if shaped else function
