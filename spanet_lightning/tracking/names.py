"""Names as MLflow takes them: one-to-one, so that `<5mm` and `>5mm` stay two metrics.

A character that MLflow refuses becomes `_xHEX_`, its code point in hexadecimal: `C+` is `C_x2b_`.
`decode` gives the name back. Names that MLflow takes as they are stay as they are, unless they
look like an escape themselves.
"""

from __future__ import annotations

import hashlib
import re

_ESCAPE = re.compile(r"_x([0-9a-f]*)_")
_LONGEST = 250  # characters of a metric's, parameter's or tag's name that MLflow takes


def encode(name: str) -> str:
    """Return the name of a metric, parameter or tag in the characters that MLflow takes.

    Args:
        name: Any text. Beyond 250 characters its end is replaced by a digest.
    """
    return _encode(name, r"\w./ \-")


def encode_path(file: str) -> str:
    """Return the path of an artifact as one below the root of the artifacts.

    Args:
        file: Any text; `..`, a root and backslashes are escaped like all that leads elsewhere.
    """
    return _encode(file, r"\w./ +\-")


def encode_file(name: str) -> str:
    """Return a name as one file's, which MLflow lists by its beginning: `a/b` is `a_x2f_b`."""
    return _encode(name, r"\w. \-")


def decode(name: str) -> str:
    """Return the name that was encoded, but for the end of a very long one."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else "", name)


def _encode(name: str, plain: str) -> str:
    # What looks like an escape, or would together with one that follows.
    text = re.sub(rf"_(?=x[0-9a-f]*(?:_|[^{plain}]))", "_x5f_", name)
    text = re.sub(rf"[^{plain}]", lambda match: _escape(match[0]), text)
    # MLflow takes a name only if it is a path in its shortest form.
    parts = text.split("/")
    text = "/".join(
        (re.sub(".", lambda match: _escape(match[0]), part) or "_x_") if part in bad else part
        for part in parts
        for bad in [("", ".", "..")]
    )
    if text.startswith(".."):
        text = _escape(".") + text[1:]
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 17]}_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    return text


def _escape(character: str) -> str:
    return f"_x{ord(character):x}_"
