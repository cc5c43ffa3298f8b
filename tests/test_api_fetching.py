from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from dreambooth_core.api import fetching
from dreambooth_core.api.answers import Refused
from dreambooth_core.api.fetching import fetch, is_public


class _Pages(BaseHTTPRequestHandler):
    """A small site: a picture, redirections, and what should not be taken."""

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        elif self.path == "/large":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x" * 10_000)
        else:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(f"picture {self.path}".encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[ThreadingHTTPServer]:
    """A web server of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def _address(site: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{site.server_address[1]}"


def _anyone(address: str) -> bool:
    return True


def _refusal(url: str, **options: object) -> Refused:
    with pytest.raises(Refused) as error:
        fetch(url, **options)
    return error.value


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("::127.0.0.1", False),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
        ("2001:0:7f00:1::", False),
    ],
)
def test_which_addresses_are_public(address: str, public: bool) -> None:
    assert is_public(address) is public


def test_a_picture_is_fetched(site: ThreadingHTTPServer) -> None:
    assert fetch(f"{_address(site)}/a.png?size=1#x", _anyone) == b"picture /a.png?size=1"
    assert fetch(_address(site), _anyone) == b"picture /"


def test_the_own_network_is_refused_before_anything_is_asked(site: ThreadingHTTPServer) -> None:
    for host in ("127.0.0.1", "localhost", "0", "2130706433", "127.1"):
        problem = _refusal(f"http://{host}:{site.server_address[1]}/a.png")
        assert problem.status in (403, 502)
    assert site.asked == []


def test_a_name_with_one_private_address_is_refused(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = site.server_address[1]

    def resolve(*_: object, **__: object) -> list[tuple[object, ...]]:
        return [(0, 0, 0, "", (address, port)) for address in ("8.8.8.8", "127.0.0.1")]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert _refusal("http://pictures.example/a.png").status == 403
    assert site.asked == []


def test_the_checked_address_is_the_one_connected_to(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = site.server_address[1]
    looked_up = []

    def resolve(host: str, *_: object, **__: object) -> list[tuple[object, ...]]:
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda h, *a, **k: real(h, *a, **k) if h[0] == "1" else resolve(h)
    )
    assert fetch(f"http://pictures.example:{port}/a", _anyone) == b"picture /a"
    assert looked_up == ["pictures.example"]


def test_redirections_are_checked_too(site: ThreadingHTTPServer) -> None:
    here = _address(site)
    assert fetch(f"{here}/to//a.png", _anyone) == b"picture /a.png"
    assert fetch(f"{here}/to/{here}/b", _anyone) == b"picture /b"
    assert _refusal(f"{here}/to/file:///etc/passwd", allowed=_anyone).status == 422
    assert _refusal(f"{here}/to/ftp://x/y", allowed=_anyone).status == 422
    only_here = {"127.0.0.1"}.__contains__
    problem = _refusal(f"{here}/to/http://127.0.0.2/secret", allowed=only_here)
    assert problem.status == 403


def test_redirections_end(site: ThreadingHTTPServer) -> None:
    url = _address(site) + "/to/" * 5
    assert "leads on" in _refusal(url, allowed=_anyone).message
    assert len(site.asked) == fetching.MOST_REDIRECTS + 1


def test_what_is_too_large_is_left(site: ThreadingHTTPServer) -> None:
    problem = _refusal(f"{_address(site)}/large", allowed=_anyone, most_bytes=200_000)
    assert problem.status == 413


def test_what_takes_too_long_is_left(
    site: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "TOTAL_SECONDS", -1.0)
    assert "longer" in _refusal(f"{_address(site)}/large", allowed=_anyone).message


def test_failures_are_told(site: ThreadingHTTPServer) -> None:
    assert "404" in _refusal(f"{_address(site)}/missing", allowed=_anyone).message
    site.shutdown()
    site.server_close()
    assert _refusal(f"{_address(site)}/a", allowed=_anyone).status == 502


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a.png",
        "file:///etc/passwd",
        "ftp://example.org/a.png",
        "http://",
        "http://user:pw@example.org/",
        "http://example.org:0/",
        "http://example.org:99999/",
        "http://[::1/",
        "data:image/png;base64,AAAA",
    ],
)
def test_what_is_no_address(url: str) -> None:
    assert _refusal(url).status == 422


@pytest.mark.parametrize("url", ["http://127.0.0.1/a\r\nX: y", "http://127.0.0.1/a b"])
def test_addresses_that_would_smuggle_lines(url: str) -> None:
    assert _refusal(url, allowed=_anyone).status in (422, 502)
