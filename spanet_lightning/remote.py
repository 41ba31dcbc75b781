"""Weights at an address: only over https, and only with the hash that they have to have.

`https://HOST/PATH#sha256=HASH` is downloaded once into the cache folder. A hash in the address says
which file is meant, whoever serves it later; without one, nobody could tell it from another.
"""

from __future__ import annotations

import hashlib
import re
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from spanet_lightning.cache import cache_folder
from spanet_lightning.errors import CheckpointError

_ACCEPTED = "a local file, or https://…#sha256=HASH with the file's 64 hexadecimal digits"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one letter is a drive of Windows
_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".tar")


def is_address(text: str) -> bool:
    """Whether a text names no local file but something to download."""
    return _ADDRESS.match(text) is not None


def download(address: str, key: str = "weights") -> Path:
    """Return the local file of an address, downloaded where it is not in the cache.

    Args:
        address: `https://HOST/PATH#sha256=HASH`.
        key: What named it, for the message.

    Raises:
        CheckpointError: If it is not https, states no hash, can't be had, or is another file.
    """
    address = re.sub(r"^(https?):/(?!/)", r"\1://", address)  # a Path leaves one slash of two
    parts = urlsplit(address)
    url, _, _ = address.partition("#")
    if parts.scheme.lower() != "https" or not parts.hostname:
        raise CheckpointError(f"{key}: got {address!r}, expected {_ACCEPTED}")
    stated = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", parts.fragment)
    if stated is None:
        raise CheckpointError(f"{key}: got {address!r}, which states no hash; expected {_ACCEPTED}")
    sha256, suffix = stated[1].lower(), PurePosixPath(parts.path).suffix
    file = cache_folder() / "weights" / (sha256 + (suffix if suffix in _SUFFIXES else ".pth"))
    if file.is_file():
        with file.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() == sha256:
                return file
    import torch

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        # Written beside its place, and moved there once its hash is right.
        torch.hub.download_url_to_file(url, str(file), hash_prefix=sha256, progress=False)
    except (OSError, HTTPException, RuntimeError) as error:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())
        if "invalid hash value" in reason:
            reason = f"it is another file ({reason})"
        raise CheckpointError(f"{key}: {url} can't be downloaded: {reason}") from error
    return file
