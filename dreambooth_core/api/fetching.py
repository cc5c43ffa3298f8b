"""Fetching a picture from the web for someone else, without being led into the own network."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from dreambooth_core.api.answers import Refused, unprocessable

MIB = 1024 * 1024
MOST_BYTES = 32 * MIB
MOST_REDIRECTS = 3
TIMEOUT_SECONDS = 10.0
TOTAL_SECONDS = 60.0
CHUNK_BYTES = 64 * 1024
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
# Addresses in these networks stand for an IPv4 address, which may be a private one.
TRANSLATED = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "2002::/16", "2001::/32", "::/96")))

AddressCheck = Callable[[str], bool]


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked: the name is not looked up a second time."""

    def __init__(self, host: str, port: int, address: str, encrypted: bool) -> None:
        super().__init__(host, port, timeout=TIMEOUT_SECONDS)
        self.address = address
        self.encrypted = encrypted

    def connect(self) -> None:
        """Connect to the checked address; the certificate must be of the name."""
        connected = socket.create_connection((self.address, self.port), TIMEOUT_SECONDS)
        if self.encrypted:
            context = ssl.create_default_context()
            connected = context.wrap_socket(connected, server_hostname=self.host)
        self.sock = connected


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in TRANSLATED):
            return False
    return ip.is_global and not ip.is_multicast


def fetch(url: str, allowed: AddressCheck = is_public, most_bytes: int = MOST_BYTES) -> bytes:
    """Return what lies at a web address; raises Refused if it is private, too large or fails."""
    deadline = time.monotonic() + TOTAL_SECONDS
    for _ in range(MOST_REDIRECTS + 1):
        parts = _checked(url)
        try:
            data, following = _get(parts, allowed, most_bytes, deadline)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise _failed(url, str(error) or type(error).__name__) from error
        if data is not None:
            return data
        url = urljoin(url, following)
    raise _failed(url, f"it leads on more than {MOST_REDIRECTS} times")


def _checked(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in PORTS and parts.hostname and parts.port != 0
    except ValueError:
        usable = None
    if not usable or parts.username is not None or parts.password is not None:
        raise unprocessable(f"{url[:200]!r} is no address of a picture.", "Give an http address.")
    return parts


def _get(
    parts: SplitResult, allowed: AddressCheck, most_bytes: int, deadline: float
) -> tuple[bytes | None, str]:
    """Return the answer's bytes, or None and the address that it leads on to."""
    host = (parts.hostname or "").encode("idna").decode("ascii")
    port = parts.port or PORTS[parts.scheme]
    address = _resolve(host, port, allowed)
    connection = _Connection(host, port, address, parts.scheme == "https")
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", target, headers={"Accept": "image/*", "Connection": "close"})
        response = connection.getresponse()
        if response.status in REDIRECTS:
            return None, response.getheader("Location") or ""
        if response.status != 200:
            raise _failed(parts.geturl(), f"it answers {response.status}")
        return _read(response, parts.geturl(), most_bytes, deadline), ""
    finally:
        connection.close()


def _resolve(host: str, port: int, allowed: AddressCheck) -> str:
    """Return an address of the host; raises Refused if any of them is not allowed."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    private = next((address for address in addresses if not allowed(address)), None)
    if private is not None or not addresses:
        raise Refused(
            403,
            f"{host} is not on the public internet.",
            remedy="Send the picture itself with /dreambooth/upload.",
            field="data",
        )
    return addresses[0]


def _read(response: http.client.HTTPResponse, url: str, most_bytes: int, deadline: float) -> bytes:
    data = bytearray()
    while chunk := response.read(CHUNK_BYTES):
        data += chunk
        if len(data) > most_bytes:
            raise Refused(
                413, f"What lies at {url} is larger than {most_bytes // MIB} MiB.", field="data"
            )
        if time.monotonic() > deadline:
            raise _failed(url, f"it takes longer than {TOTAL_SECONDS:g} seconds")
    return bytes(data)


def _failed(url: str, reason: str) -> Refused:
    return Refused(
        502,
        f"{url} cannot be fetched: {reason}.",
        remedy="Send the picture itself with /dreambooth/upload.",
        field="data",
    )
