"""Who may talk to the server over HTTP: programs of this machine that know the token, and no web page.

A page in a browser can send requests to loopback, and by rebinding its own name to 127.0.0.1 also read the answers:
so Host and Origin must be this server's own, and every request carries the token.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from localmem import files
from localmem.errors import InvalidInputError, StorageError

TOKEN_CHARS_MIN = 16
HTTP_PATH = "/mcp"
NAMES = ("127.0.0.1", "localhost", "[::1]")  # loopback, as a Host header has it

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class Guard:
    """An ASGI application before another: 421 for another Host, 403 for another Origin, 401 without the token, and for
    who has it 404 at another path."""

    def __init__(self, app: App, token: str, authorities: frozenset[str], path: str) -> None:
        self._app = app
        self._path = path
        self._token = _digest(token.encode())
        self._hosts = {each.encode() for each in authorities}
        self._origins = {f"http://{each}".encode() for each in authorities}

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] == "http":
            refused = self._refusal(scope["headers"]) or self._elsewhere(scope["path"])
            if refused is not None:
                await _answer(send, *refused)
                return
        if scope["type"] in ("http", "lifespan"):
            await self._app(scope, receive, send)

    def _refusal(self, headers: list[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        """Status and words for a request that is not let through. Every header of a name has to be right."""

        def of(name: bytes) -> list[bytes]:
            return [value.strip() for key, value in headers if key.lower() == name]

        hosts, tokens = of(b"host"), of(b"authorization")
        if not hosts or any(each.lower() not in self._hosts for each in hosts):
            return 421, "this server answers to its own loopback address only"
        if any(each.lower() not in self._origins for each in of(b"origin")):
            return 403, "web pages are not let in"
        if len(tokens) != 1 or not self._is_token(tokens[0]):
            return 401, "send the header Authorization: Bearer and the token that the server was started with"
        return None

    def _elsewhere(self, path: str) -> tuple[int, str] | None:
        """Status and words for another path than the server's."""
        return None if path.rstrip("/") == self._path else (404, f"the MCP server is at {self._path}")

    def _is_token(self, value: bytes) -> bool:
        kind, _, given = value.partition(b" ")
        right = hmac.compare_digest(_digest(given.strip()), self._token)  # of equal length, in constant time
        return right and kind.lower() == b"bearer"


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


async def _answer(send: Send, status: int, words: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": words.encode()})


# -------------------------------------------------------------------- where


def loopback(host: str) -> str:
    """A loopback address without brackets. Other addresses: InvalidInputError."""
    address = "127.0.0.1" if host == "localhost" else host.strip("[]")
    try:
        is_loopback = ipaddress.ip_address(address).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise InvalidInputError(f"the server is for this machine alone: {host!r:.60} is no loopback address")
    return address


def listen(host: str, port: int) -> socket.socket:
    """A listening socket on a loopback address; port 0 is any that is free. Other addresses: InvalidInputError."""
    address = loopback(host)
    made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen(128)
    except OSError as error:
        made.close()
        raise InvalidInputError(
            f"port {port} of {address} can't be had ({error.strerror}); give another one with --port"
        ) from None
    return made


def authority(listening: socket.socket) -> str:
    """Address and port as a URL has them."""
    address, port = listening.getsockname()[:2]
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def authorities(listening: socket.socket) -> frozenset[str]:
    """What the Host header of a request to this server may be."""
    port = listening.getsockname()[1]
    names = {authority(listening), *(f"{name}:{port}" for name in NAMES)}
    return frozenset(names | {each.removesuffix(":80") for each in names if each.endswith(":80")})


# -------------------------------------------------------------------- the token


def new_token() -> str:
    """256 random bits."""
    return secrets.token_urlsafe(32)


def token_of(path: Path) -> str:
    """The token in a file; where there is no file, a new one is written into it, for its owner alone to read."""
    try:
        if not path.exists():
            files.write_new(path, f"{new_token()}\n".encode())
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise StorageError(f"the token file {path} can't be used: {why}") from None
    return checked_token(text.strip(), f"the token in {path}")


def checked_token(token: str, what: str) -> str:
    """A token that can't be guessed and goes into a header."""
    if len(token) < TOKEN_CHARS_MIN or not token.isascii() or any(not 33 <= ord(char) <= 126 for char in token):
        raise InvalidInputError(f"{what} must have at least {TOKEN_CHARS_MIN} ASCII characters and no spaces")
    return token
