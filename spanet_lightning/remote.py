"""Weights at an address: only over https, and only with the hash that they have to have.

`https://HOST/PATH#sha256=HASH` is downloaded once into the cache folder. A hash in the address says
which file is meant, whoever serves it later; without one, nobody could tell it from another.
"""

from __future__ import annotations

import hashlib
import os
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from spanet_lightning.cache import cache_folder
from spanet_lightning.errors import CheckpointError

MOST_BYTES = 8 << 30
"""A larger file is no checkpoint of these models."""
_ACCEPTED = "a local file, or https://…#sha256=HASH with the file's 64 hexadecimal digits"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one letter is a drive of Windows
_CHUNK = 1 << 20
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".tar")
_TIMEOUT = 30.0  # seconds without a byte


def is_address(text: str) -> bool:
    """Whether a text names no local file but something to fetch."""
    return _ADDRESS.match(text) is not None


def fetched(address: str, key: str = "weights") -> Path:
    """Return the local file of an address, downloaded where it is not in the cache.

    Args:
        address: `https://HOST/PATH#sha256=HASH`.
        key: What named it, for the message.

    Raises:
        CheckpointError: If it is not https, states no hash, can't be had, or is another file.
    """
    address = re.sub(r"^(https?):/(?!/)", r"\1://", address)  # a Path leaves one slash of two
    parts = urlsplit(address)
    shown = address.partition("#")[0]
    if parts.scheme.lower() != "https" or not parts.hostname:
        raise CheckpointError(f"{key}: got {address!r}, expected {_ACCEPTED}")
    stated = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", parts.fragment)
    if stated is None:
        raise CheckpointError(f"{key}: got {address!r}, which states no hash; expected {_ACCEPTED}")
    suffix = PurePosixPath(parts.path).suffix
    name = stated[1].lower() + (suffix if suffix in _SUFFIXES else ".pth")
    file = cache_folder() / "weights" / name
    if not (file.is_file() and _hash(file) == stated[1].lower()):
        _download(shown, file, stated[1].lower(), key)
    return file


def _download(address: str, file: Path, stated: str, key: str) -> None:
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        found, size = hashlib.sha256(), 0
        with _open(address) as answer, partial.open("wb") as target:
            while chunk := answer.read(_CHUNK):
                size += len(chunk)
                if size > MOST_BYTES:
                    raise CheckpointError(f"{key}: {address} is larger than {MOST_BYTES} bytes")
                found.update(chunk)
                target.write(chunk)
        if found.hexdigest() != stated:
            raise CheckpointError(
                f"{key}: {address} is another file: its sha256 is {found.hexdigest()}, expected "
                f"{stated}; it was deleted"
            )
        partial.replace(file)
    except (OSError, HTTPException) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        raise CheckpointError(f"{key}: {address} can't be downloaded: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


class _OnlyHttps(urllib.request.HTTPRedirectHandler):
    """Follows a redirection to https alone: the default goes down to http as well."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme.lower() != "https":
            raise urllib.error.URLError(f"it leads on to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(address: str) -> Any:
    opener = urllib.request.build_opener(_OnlyHttps())
    return opener.open(address, timeout=_TIMEOUT)


def _hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
