"""The digest of a checkpoint, within its file.

It is in the comment with which a zip archive may end, and torch's checkpoints are zip archives. So
file and digest can't be parted by a kill, a copy or a move, and every other program reads the file
as before.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import IO

END_SIZE = 22
"""Bytes with which an archive without a comment ends."""
_END = b"PK\x05\x06"  # begins them
_COMMENT = re.compile(rb"spanet sha256=([0-9a-f]{64}) size=(\d+)\Z")
_BLOCK = 1 << 22


class DamagedError(ValueError):
    """A file is not what was written: cut off, or changed."""


def put(out: IO[bytes], end: bytes, size: int, digest: str) -> None:
    """Write a digest into the comment of the archive that a file holds.

    Args:
        out: The file, open for writing.
        end: Its last bytes, `END_SIZE` of them.
        size: Its bytes.
        digest: Their SHA-256, in hexadecimal digits.
    """
    if end[:4] != _END or end[-2:] != b"\0\0":
        return  # not the format that torch writes since 1.6: without a digest it is as good
    comment = b"spanet sha256=%s size=%d" % (digest.encode(), size)
    out.seek(-2, os.SEEK_END)
    out.write(len(comment).to_bytes(2, "little") + comment)


def verify(path: str | Path) -> bool:
    """Check that a checkpoint is what was written.

    Args:
        path: The file.

    Returns:
        Whether it has a digest. Without one, such as a file of plain Lightning, only the checksums
        of the archive are compared.

    Raises:
        DamagedError: If it is not.
        OSError: If it can't be read.
    """
    file = Path(path)
    size = file.stat().st_size
    if size == 0:
        raise DamagedError("it is empty")
    with file.open("rb") as data:
        if data.read(2) != b"PK":
            return False  # what that is, its reader says
        try:
            if not zipfile.is_zipfile(data):
                raise DamagedError("it is cut off: the end of the archive is missing")
            with zipfile.ZipFile(data) as archive:
                found = _COMMENT.fullmatch(archive.comment)
                broken = None if found else archive.testzip()
        except DamagedError:
            raise
        # What zipfile makes of lists whose entries point nowhere, or say "encrypted", "deflated".
        except (
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            ValueError,
            EOFError,
            OSError,
        ) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            raise DamagedError("the archive's list of its parts is not what was written") from None
        if found is None:
            if broken is not None:
                raise DamagedError(f"its part {broken} is not what was written")
            return False
        expected = int(found[2])
        if size != expected + len(found[0]):
            raise DamagedError(f"it has {size:,} bytes, {expected + len(found[0]):,} were written")
        data.seek(0)
        digest = hashlib.sha256()
        left = expected - 2  # then the length of the comment, which was 0 when this was counted
        while left > 0 and (block := data.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
        digest.update(b"\0\0")
    if digest.hexdigest().encode() != found[1]:
        raise DamagedError("its content is not what was written (SHA-256)")
    return True
