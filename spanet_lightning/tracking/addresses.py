"""Addresses of stores: shown and stored without their credentials."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from spanet_lightning.errors import ConfigError

DEFAULT_URI = "sqlite:///mlflow.db"
URI_VARIABLE = "MLFLOW_TRACKING_URI"
USER_VARIABLE = "MLFLOW_TRACKING_USERNAME"
PASSWORD_VARIABLE = "MLFLOW_TRACKING_PASSWORD"  # noqa: S105  # the name of a variable
TOKEN_VARIABLE = "MLFLOW_TRACKING_TOKEN"  # noqa: S105
CREDENTIALS = (
    USER_VARIABLE,
    PASSWORD_VARIABLE,
    TOKEN_VARIABLE,
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_AWS_SIGV4",
)
_PORTS = {"http": 80, "https": 443}
_HIDDEN = "***"
_IN_JSON = re.compile(r"tracking_uri['\"]?\s*:\s*['\"]?([^\s'\",}]+)")
_CREDENTIALS_FILE = Path("~/.mlflow/credentials")
WITHHELD = (
    f"https or this machine, and the address in {URI_VARIABLE} or typed as --tracking-uri or "
    "--trainer.logger.tracking_uri"
)
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


def accept_typed(args: Sequence[str]) -> None:
    """Treat a tracker's address on the command line as if `MLFLOW_TRACKING_URI` held it.

    Args:
        args: The command line, such as `--tracking-uri https://host`.
    """
    for arg, following in zip(args, [*args[1:], ""], strict=False):
        name, equals, value = arg.partition("=")
        if re.fullmatch(r"-[\w.-]*tracking.uri", name):
            typed = value if equals else following
        else:  # perhaps a logger that is given as JSON
            match = _IN_JSON.search(arg)
            typed = "" if match is None else match[1]
        if is_web(typed):
            os.environ[URI_VARIABLE] = complete(typed)


def is_trusted(uri: str) -> bool:
    """Whether the credentials of the environment may be sent to an address.

    They are for the server of `MLFLOW_TRACKING_URI`, and for no other that a configuration or the
    log of a run names; nor do they leave this machine unencrypted.

    Args:
        uri: The address of a server.
    """
    given = os.environ.get(URI_VARIABLE, "")
    return is_private(uri) and is_web(given) and _origin(uri) == _origin(given)


def is_private(uri: str) -> bool:
    """Whether nobody reads on the way what is sent to a server: https, or this machine."""
    parts = urlsplit(uri)
    return parts.scheme.lower() == "https" or is_loopback(parts.hostname or "")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a host of that name or address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def credentials(uri: str) -> dict[str, str]:
    """Return the variables by which MLflow logs in at an address.

    A login in the address goes to that address alone; else it is that of the environment, where
    the address is trusted with it.

    Args:
        uri: The address of a server.

    Raises:
        ConfigError: If a login would be sent unencrypted, or where it does not belong.
    """
    netloc = urlsplit(uri).netloc
    if "@" in netloc:
        if not is_private(uri):
            raise ConfigError(
                f"trainer.logger.tracking_uri: got {without_secret(uri)!r} with a login, which "
                "plain http would send unencrypted; expected https, or a tunnel to 127.0.0.1"
            )
        user, _, password = netloc.rpartition("@")[0].partition(":")
        return {USER_VARIABLE: unquote(user), PASSWORD_VARIABLE: unquote(password)}
    if is_trusted(uri):
        return {key: os.environ[key] for key in CREDENTIALS if os.environ.get(key)}
    if _CREDENTIALS_FILE.expanduser().exists():  # MLflow sends it wherever it is told to
        raise ConfigError(
            f"trainer.logger.tracking_uri: got {without_secret(uri)!r}, where MLflow would send "
            f"the login in {_CREDENTIALS_FILE}; expected {WITHHELD}"
        )
    return {}


def use_credentials(uri: str) -> str:
    """Leave in the environment, where MLflow reads them, only the credentials for an address.

    Args:
        uri: The address of any store.

    Returns:
        The address without its login, as MLflow takes it: it then puts it into no message, and
        gives it to the server of artifacts as well.

    Raises:
        ConfigError: If a login would be sent unencrypted, or where it does not belong.
    """
    if not is_web(uri):
        return uri
    allowed = credentials(uri)
    for key in CREDENTIALS:
        value = allowed.get(key)
        if value is None:
            os.environ.pop(key, None)
        elif os.environ.get(key) != value:
            os.environ[key] = value
    return without_secret(uri)


def withheld(uri: str) -> str:
    """Return why a server that refuses a login was sent none; empty where it was, or there is none.

    Args:
        uri: The address of a server.
    """
    there = any(os.environ.get(key) for key in CREDENTIALS)
    return (
        f"the environment's login was not sent: expected {WITHHELD}"
        if (there and not credentials(uri))
        else ""
    )


def is_web(uri: str) -> bool:
    """Whether an address is that of a server that speaks HTTP."""
    return uri.lower().startswith(("http://", "https://"))


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite store; None for a store of another kind."""
    path = absolute(uri).partition("?")[0].removeprefix("sqlite:///")
    return None if not absolute(uri).startswith("sqlite:///") or ":" in path[2:] else Path(path)


def absolute(uri: str) -> str:
    """Return a store's address with a full path: MLflow keeps stores open by their address."""
    path = uri.removeprefix("sqlite:///")
    if path == uri or path.startswith((":memory:", "file:")) or not path:
        return uri
    return f"sqlite:///{Path(path).absolute().as_posix()}"


def _origin(uri: str) -> tuple[str, str, int | None]:
    parts = urlsplit(uri)
    scheme = parts.scheme.lower()
    try:
        port = parts.port
    except ValueError:
        port = -1
    return scheme, (parts.hostname or "").lower(), port or _PORTS.get(scheme)


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
