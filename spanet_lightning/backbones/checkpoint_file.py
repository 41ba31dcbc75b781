"""Read any file that holds weights, without importing or calling anything that it names.

`torch.load` reads the formats; the unpickler that it is given makes an inert stand-in for each name
in a pickle, which keeps what was pickled (an `argparse.Namespace`, mmengine's `HistoryBuffer`, a
numpy scalar, a `Path`) and does nothing. Tensors alone are made. A pickle that calls a function is
refused: the call would have no effect, but whoever made the file meant it to have one.

torch's own `weights_only` reader is not enough: it refuses every class that was not imported and
listed for it, every `defaultdict` and pickle protocols above 2, and compares no checksums.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import re
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self
from unittest.mock import patch

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from spanet_lightning.errors import CheckpointError

_MAGIC = re.compile(  # how torch.save's older format begins, in pickle's protocols
    rb"\x80.(\x95.{8})?\x8a\x0a" + (0x1950A86A20F9469CFC6C).to_bytes(10, "little"), re.DOTALL
)
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
# Calls that make a value and do no more: of the standard library, and of other packages. There, a
# class has a capital, and pickle's own helpers say what they are.
_VALUES = re.compile(
    r"argparse\.Namespace|types\.SimpleNamespace|copyreg\._reconstructor|functools\.partial"
    r"|collections\.(OrderedDict|defaultdict|deque|Counter)|datetime\.\w+|decimal\.Decimal"
    r"|fractions\.Fraction|pathlib\.(_local\.)?\w*Path|uuid\.UUID|random\.Random|re\._compile"
    r"|builtins\.(object|set|frozenset|list|dict|tuple|slice|range|complex|bytearray|bytes)"
)
_OTHERS = re.compile(
    r"(.*\.)?([A-Z]\w*|\w*(reconstruct|rebuild|unpickle|_ctor)\w*)"
    r"|torch\.device|numpy\.(dtype|ndarray)|numpy\..*\.(scalar|_frombuffer)"
)


class StandIn(dict[Any, Any]):
    """An object whose class stays unknown: what was pickled of it, without effect.

    Attributes:
        path: Dotted name of the class.
        args: What it was built with.
        state: What was to become its attributes.
    """

    path: ClassVar[str] = ""
    args: tuple[Any, ...] = ()
    state: Any = None

    def __new__(cls, *args: Any, **_: Any) -> Self:
        """Keep the arguments."""
        new = super().__new__(cls)
        new.args = args
        return new

    def __init__(self, *args: Any, **_: Any) -> None:  # of a call; a mere object has none
        library = self.path.partition(".")[0] in sys.stdlib_module_names
        if not (_VALUES if library else _OTHERS).fullmatch(self.path):
            raise _CallError(self.path)
        items = args[0] if args else None
        if isinstance(items, dict):  # of a Counter
            super().__init__(items)
        elif isinstance(items, list):  # of Python 2's OrderedDict
            pairs = [i for i in items if isinstance(i, list | tuple) and len(i) == 2]
            super().__init__((key, value) for key, value in pairs if isinstance(key, str))

    def __call__(self, *_: Any, **__: Any) -> Any:
        """Refuse: what is called acts."""
        raise _CallError(self.path)

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def append(self, item: Any) -> None:
        """Leave an item of a list or a set out: nothing reads them."""

    extend = add = append
    __eq__ = object.__eq__
    __hash__ = object.__hash__  # type: ignore[assignment]


class _CallError(pickle.UnpicklingError):
    """A pickle calls a function."""


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """Return a tensor of a storage, if it lies within: torch would enlarge the storage."""
    dtype = next(value for value in (*rest, storage.dtype) if isinstance(value, torch.dtype))
    memory: torch.UntypedStorage = storage._untyped_storage  # its public name warns
    count = memory.nbytes() // dtype.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    # One that repeats its elements takes more memory than the file: small ones alone do so.
    outside = last >= count or math.prod(size) > max(count, 1 << 20)
    if min((offset, *size, *stride), default=0) < 0 or (0 not in size and outside):
        raise pickle.UnpicklingError(f"a tensor of size {tuple(size)} has {count} elements")
    return torch.empty(0, dtype=dtype).set_(memory, offset, tuple(size), tuple(stride))


def _attribute(owner: Any, name: Any) -> type[StandIn]:
    """Return a stand-in for `getattr`, by which members of an enum are pickled."""
    return _stand_in(f"{getattr(owner, 'path', type(owner).__name__)}.{name}")


def _stand_in(name: str) -> type[StandIn]:
    class Named(StandIn):
        path = name

    return Named


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, _, args, *__: rebuild(*args),
    "torch.serialization._get_layout": str,
    "torch.Size": lambda size=(): tuple(size),
    "_codecs.encode": lambda text, *_: text.encode("latin1"),  # how protocol 2 has bytes
    "builtins.getattr": _attribute,
}


class Unpickler(pickle._Unpickler):
    """Makes stand-ins; with `load`, what `torch.load` asks a `pickle_module` for.

    In Python, as the one in C lets a file of ten bytes take gigabytes for its list of references.

    Args:
        file: Where the pickle is.
        options: torch's; strings of Python 2 are read whatever their encoding.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    if TYPE_CHECKING:
        proto: int
        stack: list[Any]

    def __init__(self, file: Any, **options: Any) -> None:
        del options
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._names: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name, or what makes a part of a tensor."""
        if self.proto < 3:  # it has the names of Python 2
            module, name = NAME_MAPPING.get(
                (module, name), (IMPORT_MAPPING.get(module, module), name)
            )
        path = f"{module}.{name}"
        if path in _DTYPES:
            return _DTYPES[path]
        if path == "torch.storage.UntypedStorage":
            return torch.UntypedStorage
        if path not in self._names:
            self._names[path] = _FUNCTIONS.get(path) or _stand_in(path)
        return self._names[path]

    def load_build(self) -> None:
        """Set an object's state; not a function's or a class's, which are here to stay."""
        if not isinstance(self.stack[-2], StandIn):
            raise pickle.UnpicklingError(f"it changes a {type(self.stack[-2]).__name__}")
        pickle._Unpickler.load_build(self)  # type: ignore[attr-defined]

    dispatch[pickle.BUILD[0]] = load_build


def load(file: Any, **options: Any) -> Any:
    """Read one pickle."""
    return Unpickler(file, **options).load()


def read(path: str | Path) -> tuple[Any, dict[str, str]]:
    """Read a file that holds weights.

    Args:
        path: A file of `torch.save`, `pickle` or safetensors, whatever it is called.

    Returns:
        What was saved, with `StandIn` for what has an unknown class, and the metadata of a
        safetensors file. Tensors of a zip archive are mapped, and so read where they are used.

    Raises:
        CheckpointError: If it is not there, not such a file, damaged, or calls a function.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if start[8:9] == b"{":
            with safe_open(path, "pt") as tensors:
                found = {key: tensors.get_tensor(key) for key in tensors.keys()}  # noqa: SIM118
                return found, tensors.metadata() or {}
        if (cause := _no_checkpoint(start)) is not None:
            raise CheckpointError(f"{path}: {cause}")
        if start[:2] != b"PK" and not _MAGIC.match(start):
            return load(io.BytesIO(path.read_bytes())), {}
        verify(path)
        zipped = start[:2] == b"PK"
        with patch.dict(os.environ):
            os.environ.pop("TORCH_FORCE_WEIGHTS_ONLY_LOAD", None)  # by torch's reader, it means
            content = torch.load(
                path if zipped else io.BytesIO(path.read_bytes()),
                map_location="cpu",
                pickle_module=sys.modules[__name__],
                weights_only=False,
                mmap=zipped,
            )
    except _CallError as error:
        raise CheckpointError(
            f"{path}: refused, reading it would call {str(error)!r}, which could run code; save "
            "its state_dict alone where it was made"
        ) from None
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint file") from None
    except IsADirectoryError:
        raise CheckpointError(
            f"{path}: is a folder, expected one file (sharded checkpoints are joined by "
            "python -m lightning.pytorch.utilities.consolidate_checkpoint FOLDER)"
        ) from None
    except Exception as error:  # all that ran is here and inert: it is the file's
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"{path}: not a readable checkpoint ({reason})") from None
    return content, {}


def verify(path: str | Path) -> None:
    """Compare the checksums of a zip archive with its content; other formats have none.

    Raises:
        CheckpointError: If it is cut off, not what was written, or not what `torch.save` writes.
    """
    path = Path(path)
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
            # torch compresses nothing: what unpacks to more than it is, it did not write.
            compressed = sum(i.file_size for i in archive.infolist()) > path.stat().st_size
            part = None if compressed else archive.testzip()
    except Exception:  # of many kinds, as lists of parts point anywhere
        raise CheckpointError(f"{path}: is damaged: it is cut off, or was changed") from None
    if compressed:
        raise CheckpointError(f"{path}: a compressed zip archive, which torch.save does not write")
    if part is not None:
        raise CheckpointError(f"{path}: is damaged: its part {part} is not what was written")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path}: a zip archive that torch.save did not write")
    if "constants.pkl" in names:
        raise CheckpointError(
            f"{path}: a TorchScript model, which is code; save torch.jit.load(FILE).state_dict()"
        )


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, or an array of numpy's as one; `None` for anything else."""
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, StandIn) or not value.path.startswith("numpy."):
        return None
    try:  # by protocol 5, then by the others: version, shape, type, Fortran's order, bytes
        if value.path.endswith("._frombuffer"):
            data, kind, shape, order = value.args
        else:
            _, shape, kind, fortran, data = value.state
            order = "F" if fortran else "C"
        numbers = re.fullmatch("[fiub][1248]", kind.args[0]) and kind.state[1] != ">"
        array = np.frombuffer(data, kind.args[0]).reshape(shape, order=order) if numbers else None
    except (AttributeError, LookupError, TypeError, ValueError):
        return None
    return None if array is None else torch.from_numpy(array.copy())


def module_state(value: Any, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield the names and tensors of a module that was pickled whole."""
    state = getattr(value, "state", None)
    if not isinstance(state, dict) or depth > 32:
        return
    for part in ("_parameters", "_buffers"):
        for name, tensor in (state.get(part) or {}).items():
            yield f"{prefix}{name}", tensor
    for name, module in (state.get("_modules") or {}).items():
        yield from module_state(module, f"{prefix}{name}.", depth + 1)


def _no_checkpoint(start: bytes) -> str | None:
    """Return what a file is by its first bytes, where that is no checkpoint."""
    text = start.lstrip().lower()
    for begin, what in (
        (b"<", "a web page, not a checkpoint: the download needs a log-in or another address"),
        (b"version https://git-lfs", "a pointer of Git LFS, not the file: run git lfs pull"),
        (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    ):
        if text.startswith(begin):
            return what
    return None if start else "is empty"
