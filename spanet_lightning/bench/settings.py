"""What all subjects of a comparison share: device, precision, layout, compilation, rounds."""

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
# Dynamo runs a function eagerly once it has compiled it this often, without a word: every model
# and size counts.
_RECOMPILE_LIMIT = 256

Placed = TypeVar("Placed", Tensor, nn.Module)


@dataclass(frozen=True)
class Settings:
    """How subjects are measured.

    Args:
        device: "auto" (CUDA where available), "cpu", "cuda" or "cuda:N".
        dtype: "float32" without TF32, "tf32" (CUDA only), or "bfloat16" or "float16": autocast
            over float32 weights.
        layout: Memory format of images and weights.
        compile: Mode of `torch.compile`; "none" runs eagerly.
        dynamic: Compile for any batch size, height and width.
        freeze: Fold weights into the compiled graph as constants; evaluation only.
        batch: Images per batch.
        size: Width of the images, in pixels.
        height: Height of the images, in pixels; `None` makes them square.
        threads: Intra-op threads; `None` leaves torch's default.
        rounds: How often each subject is measured.
        seconds: Minimum time of a measurement, after a warm-up call.
        seed: Seed of weights and images.

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
    height: int | None = None
    threads: int | None = None
    rounds: int = 7
    seconds: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.device == "auto":
            object.__setattr__(self, "device", "cuda" if torch.cuda.is_available() else "cpu")
        if not re.fullmatch(r"cpu|cuda(:\d+)?", self.device):
            raise invalid("--device", self.device, "'auto', 'cpu', 'cuda' or 'cuda:N'")
        count = torch.cuda.device_count()
        if self.on_cuda and (self.torch_device.index or 0) >= count:
            raise invalid("--device", self.device, f"a device that torch finds ({count} here)")
        for key, value, choices in (
            ("--dtype", self.dtype, get_args(Dtype)),
            ("--layout", self.layout, get_args(Layout)),
            ("--compile", self.compile, get_args(Compile)),
        ):
            if value not in choices:
                raise invalid_choice(key, value, choices)
        if self.dtype == "tf32" and not self.on_cuda:
            raise ConfigError("--dtype: got 'tf32', which only CUDA devices support")
        for flag in ("freeze", "dynamic"):
            if getattr(self, flag) and self.compile == "none":
                raise ConfigError(f"--{flag}: requires --compile")
        for key, number, least in (
            ("--batch", self.batch, 1),
            ("--size", min(self.size, self.height or self.size), 32),
            ("--threads", 1 if self.threads is None else self.threads, 1),
            ("--rounds", self.rounds, 1),
            ("--seconds", self.seconds, 0),
        ):
            if number < least:
                raise invalid(key, number, f"at least {least}")

    @property
    def torch_device(self) -> torch.device:
        """The device."""
        return torch.device(self.device)

    @property
    def on_cuda(self) -> bool:
        """Whether the device is a CUDA device."""
        return self.torch_device.type == "cuda"

    @property
    def matmul_dtype(self) -> torch.dtype:
        """The dtype in which matrix products run."""
        return _AUTOCAST.get(self.dtype, torch.float32)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of the images, in pixels."""
        return self.height or self.size, self.size

    def place(self, value: Placed) -> Placed:
        """Return a model or tensor on the device, in the memory format."""
        moved: Any = value.to(self.torch_device)
        if not isinstance(moved, Tensor) or moved.dim() == 4:
            moved = moved.to(memory_format=_FORMATS[self.layout])
        placed: Placed = moved
        return placed

    def noise(self, *shape: int) -> Tensor:
        """Return normal noise of this shape on the device, the same for the same seed."""
        generator = torch.Generator().manual_seed(self.seed)
        return self.place(torch.randn(shape, generator=generator))

    def images(self) -> Tensor:
        """Return a batch of noise images (B, 3, H, W)."""
        return self.noise(self.batch, 3, *self.image_size)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self.dtype not in _AUTOCAST:
            return contextlib.nullcontext()
        return torch.autocast(self.torch_device.type, _AUTOCAST[self.dtype])

    def compiled(self, module: nn.Module) -> nn.Module:
        """Return the module, or the wrapper that compiles it on its first call."""
        if self.compile == "none":
            return module
        wrapper: Any = torch.compile(module, mode=self.compile, dynamic=self.dynamic)
        return wrapper  # type: ignore[no-any-return]

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Set threads and precision for the process, and restore them afterwards."""
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
    def compiling(self, *, evaluation: bool) -> Iterator[None]:
        """Start with empty compilation caches, and fail rather than fall back to eager mode."""
        if self.compile == "none":
            yield
            return
        import torch._dynamo
        import torch._inductor.config as inductor

        torch._dynamo.reset()
        dynamo: Any = torch._dynamo.config
        with (
            dynamo.patch(recompile_limit=_RECOMPILE_LIMIT, fail_on_recompile_limit_hit=True),
            inductor.patch(freezing=self.freeze and evaluation),
        ):
            yield
        torch._dynamo.reset()
