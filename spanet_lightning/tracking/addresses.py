"""Addresses of stores, and how they are shown and kept: without what is secret in them."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

DEFAULT_URI = "sqlite:///mlflow.db"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
USER_VARIABLE = "MLFLOW_TRACKING_USERNAME"
PASSWORD_VARIABLE = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105  # the name of a variable
_HIDDEN = "***"
_SECRET_KEY = re.compile(r"pass|pwd|token|secret|credential|key|auth", re.IGNORECASE)
# To the last @: an unescaped one in a password would leave its end behind.
_LOGIN = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://(?P<login>[^\s'\"]+)@")
_OPTION = re.compile(
    r"(?P<key>[?&](?:[\w.-]*(?:pass|pwd|token|secret|credential|key|auth)[\w.-]*)=)[^&\s'\"#]+",
    re.IGNORECASE,
)


def without_secret(uri: str) -> str:
    """Return an address without password, token or other credentials.

    A web server's address loses the user too, whose place may hold a token; a database's keeps it.

    Args:
        uri: The address.
    """
    match = _LOGIN.match(uri)
    if match:
        user = match["login"].partition(":")[0]
        keep = not is_web(uri) and "/" not in user
        uri = f"{match['scheme']}://{f'{user}@' if keep else ''}{uri[match.end() :]}"
    if "?" in uri:
        parts = urlsplit(uri)
        kept = [(k, v) for k, v in parse_qsl(parts.query) if not _SECRET_KEY.search(k)]
        # Only where something goes: what is rebuilt may be spelt in another way.
        if len(kept) != len(parse_qsl(parts.query)):
            uri = urlunsplit(parts._replace(query=urlencode(kept)))
    return uri


def redact(text: str, *secrets: str) -> str:
    """Return a text with the credentials of all addresses in it hidden.

    Args:
        text: Any text, such as a command line, a configuration or a message.
        secrets: Addresses whose passwords are hidden wherever they are.
    """
    for uri in secrets:
        for secret in _passwords(uri):
            text = text.replace(secret, _HIDDEN)
    text = _LOGIN.sub(lambda m: f"{m['scheme']}://{_HIDDEN}@", text)
    return _OPTION.sub(lambda m: f"{m['key']}{_HIDDEN}", text)


def complete(uri: str) -> str:
    """Return an address with the credentials that the environment has for it, if any.

    Args:
        uri: The address as a configuration states it, perhaps without credentials.
    """
    given = os.environ.get(URI_VARIABLE, "")
    return given if given and without_secret(given) == uri else uri


def login(uri: str) -> tuple[str, dict[str, str]]:
    """Take the login out of a web server's address, as variables that MLflow reads.

    MLflow then puts it into no message, and gives it to the server of artifacts as well.

    Args:
        uri: The address of any store; another kind's is returned as it is.
    """
    parts = urlsplit(uri) if is_web(uri) else None
    if parts is None or "@" not in parts.netloc:
        return uri, {}
    user, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return without_secret(uri), {USER_VARIABLE: unquote(user), PASSWORD_VARIABLE: unquote(password)}


def is_web(uri: str) -> bool:
    """Whether an address is that of a server that speaks HTTP."""
    return uri.lower().startswith(("http://", "https://"))


def absolute(uri: str) -> str:
    """Return a store's address with a full path: MLflow keeps stores open by their address."""
    path = uri.removeprefix("sqlite:///")
    if path == uri or path.startswith((":memory:", "file:")) or not path:
        return uri
    return f"sqlite:///{Path(path).absolute().as_posix()}"


def _passwords(uri: str) -> list[str]:
    found = []
    match = _LOGIN.match(uri)
    if match:
        user, colon, password = match["login"].partition(":")
        found.append(password if colon else user)
    if "?" in uri:
        found += [v for k, v in parse_qsl(urlsplit(uri).query) if _SECRET_KEY.search(k)]
    # A short one is part of ordinary words.
    return [form for one in found if len(one) > 3 for form in {one, unquote(one)}]
