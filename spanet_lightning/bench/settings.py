"""How something is measured: device, precision, layout, compilation, and how often."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from spanet_lightning.errors import ConfigError, invalid, invalid_choice

Dtype = Literal["float32", "tf32", "bfloat16", "float16"]
Layout = Literal["channels_last", "contiguous"]
Compile = Literal["none", "default", "max-autotune"]

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# Graphs that torch keeps of one function before it gives up and runs it eagerly, which must not
# happen unseen: every subject and size has its own.
_MAX_GRAPHS = 256

Thing = TypeVar("Thing", Tensor, nn.Module)


@dataclass(frozen=True)
class Settings:
    """What all subjects of a comparison have in common.

    Args:
        device: "auto" (CUDA where there is one), "cpu", "cuda" or "cuda:N".
        dtype: "float32" without TF32, "tf32" (float32 whose products may use TF32; CUDA alone), or
            "bfloat16" or "float16": autocast over float32 weights.
        layout: Memory format of images and weights. Our models work on channels-last features
            whatever they get.
        compile: Mode of `torch.compile`; "none" runs eagerly.
        dynamic: Compile for any batch size, height and width; otherwise for the shapes at hand.
        freeze: Fold weights into the compiled graph as constants; evaluation alone.
        batch: Images in a batch.
        size: Side of the images, in pixels.
        threads: Threads of an operator; `None` leaves torch's default.
        rounds: How often each subject is measured.
        seconds: A subject's least share of a round, after a warm-up call.
        seed: Of weights and images.

    Raises:
        ConfigError: If a value is not accepted.
    """

    device: str = "auto"
    dtype: Dtype = "float32"
    layout: Layout = "channels_last"
    compile: Compile = "none"
    dynamic: bool = False
    freeze: bool = False
    batch: int = 8
    size: int = 224
    threads: int | None = None
    rounds: int = 7
    seconds: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.device == "auto":
            found = "cuda" if torch.cuda.is_available() else "cpu"
            object.__setattr__(self, "device", found)
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise invalid("--device", self.device, "'auto', 'cpu', 'cuda' or 'cuda:N'")
        if self.on_cuda:
            count = torch.cuda.device_count()
            if (self.torch_device.index or 0) >= count:
                raise invalid("--device", self.device, f"a device that torch finds ({count} here)")
        for key, value, choices in (
            ("--dtype", self.dtype, get_args(Dtype)),
            ("--layout", self.layout, get_args(Layout)),
            ("--compile", self.compile, get_args(Compile)),
        ):
            if value not in choices:
                raise invalid_choice(key, value, choices)
        if self.dtype == "tf32" and not self.on_cuda:
            raise ConfigError("--dtype: got 'tf32', which is a precision of CUDA devices alone")
        for flag in ("freeze", "dynamic"):
            if getattr(self, flag) and self.compile == "none":
                raise ConfigError(f"--{flag}: needs --compile default or max-autotune")
        for key, number, least in (
            ("--batch", self.batch, 1),
            ("--size", self.size, 32),
            ("--threads", 1 if self.threads is None else self.threads, 1),
            ("--rounds", self.rounds, 1),
            ("--seconds", self.seconds, 0),
        ):
            if number < least:
                raise invalid(key, number, f"at least {least}")

    @property
    def torch_device(self) -> torch.device:
        """The device as torch names it."""
        return torch.device(self.device)

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a CUDA one."""
        return self.torch_device.type == "cuda"

    @property
    def product_dtype(self) -> torch.dtype:
        """Type in which matrix products run."""
        return _AUTOCAST.get(self.dtype, torch.float32)

    def place(self, thing: Thing) -> Thing:
        """Return a model or images on the device, in the layout.

        Our literal models (`spectral_impl: fft`) keep the official code's own layout.
        """
        moved: Any = thing.to(self.torch_device)
        is_images = isinstance(moved, Tensor)
        literal = getattr(thing, "channels_last", True) is False
        if moved.dim() == 4 if is_images else not literal:
            moved = moved.to(memory_format=_FORMATS[self.layout])
        placed: Thing = moved
        return placed

    def images(
        self, batch: int | None = None, size: int | None = None, channels: int = 3
    ) -> Tensor:
        """Return normal noise (B, C, S, S), the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        side = size or self.size
        shape = (batch or self.batch, channels, side, side)
        return self.place(torch.randn(shape, generator=generator))

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context that a forward pass runs in."""
        if self.dtype not in _AUTOCAST:
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, _AUTOCAST[self.dtype])

    def compiled(self, model: nn.Module) -> nn.Module:
        """Return `model`, or what will compile it when it is called first."""
        if self.compile == "none":
            return model
        module: Any = torch.compile(model, mode=self.compile, dynamic=self.dynamic)
        return module  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Set threads and precision for the process, and put back what was there before."""
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = torch.get_num_threads(), matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
        try:
            if self.threads is not None:
                torch.set_num_threads(self.threads)
            matmul.allow_tf32 = cudnn.allow_tf32 = self.dtype == "tf32"
            cudnn.benchmark = True  # shapes are static: cuDNN may choose by trial
            yield
        finally:
            torch.set_num_threads(before[0])
            matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before[1:]

    @contextlib.contextmanager
    def compiling(self, *, frozen: bool) -> Iterator[None]:
        """Compile within: afresh, without falling back to eager mode, `frozen` where asked for."""
        if self.compile == "none":
            yield
            return
        import torch._dynamo
        import torch._inductor.config as inductor

        torch._dynamo.reset()
        limits: Any = torch._dynamo.config
        with (
            limits.patch(recompile_limit=_MAX_GRAPHS, fail_on_recompile_limit_hit=True),
            inductor.patch(freezing=self.freeze and frozen),
        ):
            yield
        torch._dynamo.reset()
