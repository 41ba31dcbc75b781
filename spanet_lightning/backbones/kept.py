"""Keep what is computed from a module's parameters alone while the module evaluates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch
from torch import nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

T = TypeVar("T")


class Kept(Generic[T]):
    """The last result of a function of parameters, kept until a parameter changes.

    It is kept only where it cannot be wrong or in the way: in evaluation mode with gradients off,
    for ordinary parameters, outside of compilers and tracers. torch counts the changes of a tensor,
    by optimizers, `load_state_dict` or any other in-place operation; a parameter that moves to
    another device or dtype has another address. Only writes through the deprecated `.data` escape
    the count.

    Copies and pickles of a module start empty.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._result: T | None = None

    def __reduce__(self) -> tuple[type[Kept[T]], tuple[()]]:
        """Leave the result out of copies and pickles."""
        return type(self), ()

    def clear(self) -> None:
        """Drop the result."""
        self._key = self._result = None

    def __call__(self, module: nn.Module, build: Callable[[], T], *arguments: object) -> T:
        """Return `build()`, or its result of before if nothing has changed.

        Args:
            module: Whose parameters `build` reads.
            build: The function.
            arguments: Whatever else the result depends on.
        """
        if module.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            self.clear()
            return build()
        parameters = list(module.parameters())
        ordinary = all(
            type(p) is nn.Parameter and not p.is_meta and not p.is_inference() for p in parameters
        )
        if not ordinary or is_in_torch_dispatch_mode() or torch._C._get_tracing_state():
            return build()
        # A result of inference mode would not do outside of it.
        state = [(p.data_ptr(), p._version, p.dtype, p.device) for p in parameters]
        key = (*arguments, torch.is_inference_mode_enabled(), tuple(state))
        if self._key != key or self._result is None:
            self._key, self._result = key, build()
        return self._result
