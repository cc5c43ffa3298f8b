"""Who may call: the WebUI's own API password or a key, and no page of another site."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from dreambooth_core.api.answers import Refused
from dreambooth_core.job import disk
from dreambooth_core.job.workspace import Workspace

KEY_NAME = "api_key"
KEY_HEADERS = ("x-api-key", "api_key", "api-key")
KEY_VARIABLE = "API_KEY"
KEY_FILE = "secret.txt"


@dataclass(frozen=True)
class Access:
    """The names with their passwords, and the keys; without either, everybody may call."""

    credentials: Mapping[str, str]
    keys: tuple[str, ...] = ()

    @property
    def is_open(self) -> bool:
        """Whether no password is asked for."""
        return not self.credentials and not self.keys

    def admits(self, headers: Mapping[str, str], given_keys: Iterable[str]) -> bool:
        """Whether a request's basic authorization or one of its keys is right."""
        if self.is_open:
            return True
        keys = [key for key in given_keys if key]
        keys += [headers[name] for name in KEY_HEADERS if headers.get(name)]
        return self._knows(headers.get("authorization", "")) or any(
            _is_among(key, self.keys) for key in keys
        )

    def refusal(self, key_given: bool) -> Refused:
        """Return the answer to a request that was not admitted."""
        if key_given:
            return Refused(403, "The api_key is wrong.", remedy="Check it.", field=KEY_NAME)
        headers = {"WWW-Authenticate": "Basic"} if self.credentials else {}
        return Refused(
            401,
            "This needs a user name and password, or an api_key.",
            remedy="Use those that the WebUI was started with (--api-auth), or the key that was"
            f" set in the variable {KEY_VARIABLE} or in models/dreambooth/{KEY_FILE}.",
            headers=headers,
        )

    def _knows(self, authorization: str) -> bool:
        given = _basic(authorization)
        if given is None:
            return False
        # Every pair is compared, so that the time taken does not tell which names there are.
        matches = [
            _same(given[0], name) & _same(given[1], password)
            for name, password in self.credentials.items()
        ]
        return any(matches)


def access_for(
    credentials: Mapping[str, str],
    workspace: Workspace,
    environment: Mapping[str, str] = os.environ,
) -> Access:
    """Return who may call: with no passwords, a key from the environment or the key file counts."""
    if credentials:
        return Access(dict(credentials), tuple(credentials.values()))
    key = environment.get(KEY_VARIABLE, "").strip() or _key_in_file(workspace)
    return Access({}, (key,) if key else ())


def refuse_other_sites(headers: Mapping[str, str], is_allowed: Callable[[str], bool]) -> None:
    """Raise Refused for a request that a page of another site made a browser send.

    `is_allowed` tells of an origin ("https://a.example") whether its pages may do so.
    """
    site = headers.get("sec-fetch-site", "")
    origin = headers.get("origin", "")
    foreign = site == "cross-site"
    if not site and origin:
        foreign = urlsplit(origin).netloc != headers.get("host", "")
    if foreign and not (origin and is_allowed(origin)):
        raise Refused(
            403,
            f"A page of another site ({origin or 'unknown'}) may not do this.",
            remedy="Call it from a program or from a page of this server, or start the WebUI with"
            " --cors-allow-origins and that site's address.",
        )


def _key_in_file(workspace: Workspace) -> str:
    try:
        text = disk.read(workspace.models_dir / KEY_FILE).decode("utf-8")
    except FileNotFoundError:
        return ""
    return text.strip()


def _basic(authorization: str) -> tuple[str, str] | None:
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        return None
    name, colon, password = text.partition(":")
    return (name, password) if colon else None


def _is_among(key: str, keys: Iterable[str]) -> bool:
    return any([_same(key, known) for known in keys])


def _same(one: str, other: str) -> bool:
    """Compare in a time that does not depend on where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))
