"""Read any file that holds weights, without importing or calling anything that it names.

A pickle names classes and functions. Here each name becomes an inert stand-in, which keeps what was
pickled (an `argparse.Namespace`, mmengine's `HistoryBuffer`, a numpy scalar, a `Path`) and does
nothing; tensors alone are made, here. A pickle that calls a function is refused: the call would
have no effect, but whoever made the file meant it to have one.

torch's own `weights_only` reader is not enough: it refuses every class that was not imported and
listed for it, every `defaultdict` and pickle protocols above 2, and compares no checksums.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from spanet_lightning.errors import CheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first object in torch.save's older format
_DTYPES = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
_STORAGES = {
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
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


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: its bytes are read when they are asked for.

    Attributes:
        shape: Its shape.
        dtype: Its type.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    _stride: tuple[int, ...] = field(repr=False)
    _offset: int = field(repr=False)
    _read: Callable[[], bytes] = field(repr=False)

    def load(self) -> Tensor:
        """Read it.

        Raises:
            CheckpointError: If the file does not hold the bytes that were written.
        """
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=self.dtype)
        flat = torch.frombuffer(bytearray(self._read()), dtype=self.dtype)
        return flat.as_strided(self.shape, self._stride, self._offset).contiguous()


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


@dataclass(frozen=True)
class _StorageType:
    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    count: int
    read: Callable[[], bytes]


class _Function:
    """A function that a pickle may call; not a function, so that BUILD can't change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("a function's attributes are set")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> StoredTensor:
    """Return a tensor of a storage, if it lies within."""
    dtype = next((value for value in rest if isinstance(value, torch.dtype)), storage.dtype)
    numbers = (offset, *size, *stride)
    if not all(type(n) is int and n >= 0 for n in numbers) or not (len(size) == len(stride) < 17):
        raise pickle.UnpicklingError(f"a tensor has size {size} and stride {stride}")
    count = storage.count * storage.dtype.itemsize // dtype.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    # One that repeats its elements takes more memory than the file: small ones alone do so.
    if 0 not in size and (last >= count or math.prod(size) > max(count, 1 << 20)):
        raise pickle.UnpicklingError(f"a tensor of size {tuple(size)} has {count} elements")
    return StoredTensor(tuple(size), dtype, tuple(stride), offset, storage.read)


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


class _Unpickler(pickle._Unpickler):
    """Makes stand-ins.

    In Python, as the one in C lets a file of ten bytes take gigabytes for its list of references.

    Args:
        file: Where the pickle is.
        storage: Returns the bytes of a storage: key, type, number of elements.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    if TYPE_CHECKING:  # the machine, as pickle's own implementation names it
        stack: list[Any]
        append: Callable[[Any], None]
        proto: int
        read: Callable[[int], bytes]
        pop_mark: Callable[[], list[Any]]

    def __init__(self, file: Any, storage: Callable[[str, torch.dtype, int], _Storage]) -> None:
        super().__init__(file, encoding="utf-8", errors="surrogateescape")
        self._storage = storage
        self._names: dict[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        if self.proto < 3:  # it has the names of Python 2
            module, name = NAME_MAPPING.get(
                (module, name), (IMPORT_MAPPING.get(module, module), name)
            )
        path = f"{module}.{name}"
        if path in _DTYPES:
            return _DTYPES[path]
        if module.partition(".")[0] == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if path not in self._names:
            call = _FUNCTIONS.get(path)
            self._names[path] = _stand_in(path) if call is None else _Function(call)
        return self._names[path]

    def persistent_load(self, pid: Any) -> _Storage:
        """Return the storage that a tensor refers to."""
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] not in ("storage", b"storage"):
            raise pickle.UnpicklingError("it refers to something that is no storage of a tensor")
        _, kind, key, _, count, *view = pid
        if not isinstance(kind, _StorageType) or type(count) is not int or any(view):
            raise pickle.UnpicklingError("a tensor is quantized, or of a version before torch 0.4")
        return self._storage(str(key), kind.dtype, count)

    def _set(self, target: Any, pairs: Sequence[Any]) -> None:
        """Set items of a dictionary, by keys that are cheap to hash."""
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            plain = key if type(key) is tuple else (key,)
            if not all(isinstance(k, str | bytes | int | float | StandIn | None) for k in plain):
                raise pickle.UnpicklingError(f"a dictionary has a key of type {type(key).__name__}")
            if not isinstance(target, dict):
                raise pickle.UnpicklingError("items are set of what is no dictionary")
            dict.__setitem__(target, key, value)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set(self.stack[-1], (key, value))

    def _set_items(self) -> None:
        pairs = self.pop_mark()
        self._set(self.stack[-1], pairs)

    def _make_set(self) -> None:
        self.append(_stand_in("builtins.set")())

    def _make_frozen_set(self) -> None:
        self.pop_mark()
        self._make_set()

    def _read_bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(size))  # not prepared at the size that is claimed

    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.EMPTY_SET[0]] = _make_set
    dispatch[pickle.FROZENSET[0]] = _make_frozen_set
    dispatch[pickle.BYTEARRAY8[0]] = _read_bytearray
    for _opcode in (pickle.EXT1, pickle.EXT2, pickle.EXT4):
        del dispatch[_opcode[0]]


def read(path: str | Path) -> tuple[Any, dict[str, str]]:
    """Read a file that holds weights.

    Args:
        path: A file of `torch.save`, `pickle` or safetensors, whatever it is called.

    Returns:
        What was saved, with `StoredTensor` for tensors and `StandIn` for what has an unknown class,
        and the metadata of a safetensors file.

    Raises:
        CheckpointError: If it is not there, not such a file, damaged, or calls a function.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if start[:2] == b"PK":
            return _read_zip(path), {}
        if start[8:9] == b"{":
            return _read_safetensors(path)
        if (cause := _no_checkpoint(start)) is not None:
            raise CheckpointError(f"{path}: {cause}")
        return _read_pickles(path), {}
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
    except zipfile.BadZipFile:
        raise CheckpointError(f"{path}: is damaged: it is cut off, or was changed") from None
    except Exception as error:  # all that ran is here and inert: it is the file's
        raise CheckpointError(f"{path}: not a readable checkpoint ({_reason(error)})") from None


def verify(path: str | Path) -> None:
    """Compare the checksums of a zip archive with its content; other formats have none.

    Raises:
        CheckpointError: If it is cut off, or not what was written.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(2)
    if start != b"PK":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(path, archive)
            part = archive.testzip()
    except CheckpointError:
        raise
    except Exception:  # of many kinds, as lists of parts point anywhere
        raise CheckpointError(f"{path}: is damaged: it is cut off, or was changed") from None
    if part is not None:
        raise CheckpointError(f"{path}: is damaged: its part {part} is not what was written")


def as_tensor(value: Any) -> Tensor | StoredTensor | None:
    """Return a tensor, or an array of numpy's as one; `None` for anything else."""
    if isinstance(value, Tensor | StoredTensor):
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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def _read_zip(path: Path) -> Any:
    archive = zipfile.ZipFile(path)  # open as long as tensors refer to it
    _check_sizes(path, archive)
    names = archive.namelist()
    pickled = next((name for name in names if name.endswith("data.pkl")), None)
    if pickled is None:
        raise CheckpointError(f"{path}: a zip archive that torch.save did not write")
    root = pickled.removesuffix("data.pkl")
    if f"{root}constants.pkl" in names:
        raise CheckpointError(
            f"{path}: a TorchScript model, which is code; save torch.jit.load(FILE).state_dict()"
        )
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise CheckpointError(f"{path}: was written on a big-endian machine")

    def storage(key: str, dtype: torch.dtype, count: int) -> _Storage:
        name = f"{root}data/{key}"
        if archive.getinfo(name).file_size < count * dtype.itemsize:
            raise pickle.UnpicklingError(f"its part {name} is too short")

        def content() -> bytes:
            try:
                return archive.read(name)
            except Exception:  # of many kinds
                part = f"its part {name} is not what was written"
                raise CheckpointError(f"{path}: is damaged: {part}") from None

        return _Storage(dtype, count, content)

    return _Unpickler(io.BytesIO(archive.read(pickled)), storage).load()


def _check_sizes(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuse an archive that unpacks to more than it is: torch compresses nothing."""
    if sum(info.file_size for info in archive.infolist()) > path.stat().st_size:
        raise CheckpointError(f"{path}: a compressed zip archive, which torch.save does not write")


def _read_pickles(path: Path) -> Any:
    """Read a plain pickle, or torch's older format: five pickles, then all storages."""
    data = path.read_bytes()
    file = io.BytesIO(data)
    places: dict[str, int] = {}
    sizes: dict[str, int] = {}

    def storage(key: str, dtype: torch.dtype, count: int) -> _Storage:
        sizes[key] = dtype.itemsize
        wanted = count * dtype.itemsize

        def content() -> bytes:
            return data[places[key] : places[key] + wanted]

        return _Storage(dtype, count, content)

    first = _Unpickler(file, storage).load()
    if first != _MAGIC:
        return first
    _, system, content, keys = (_Unpickler(file, storage).load() for _ in range(4))
    if system.get("little_endian") is False:
        raise CheckpointError(f"{path}: was written on a big-endian machine")
    for key in keys:
        (count,) = struct.unpack("<q", file.read(8))
        places[key] = file.tell()
        end = places[key] + count * sizes[key]
        if not places[key] <= end <= len(data):
            raise pickle.UnpicklingError("it is cut off")
        file.seek(end)
    if missing := sizes.keys() - places.keys():
        raise pickle.UnpicklingError(f"it lacks the storage {min(missing)}")
    return content


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


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
