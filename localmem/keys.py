"""What an encrypted file is opened with: a passphrase or 32 bytes, from an argument, a file or the system's keychain.

The only importer of keyring (extra "keychain"). A key is never shown: not by repr, not in an error.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import unicodedata
from pathlib import Path
from typing import Any

from localmem import files
from localmem.errors import InvalidInputError, InvalidTypeError, KeyRefusedError, MissingExtraError, StorageError

KEY_BYTES, SALT_BYTES = 32, 16
# scrypt (RFC 7914) with 32 MB: 90 ms on one core of 2 GHz; each guess of an attacker costs as much memory.
_SCRYPT = {"n": 2**15, "r": 8, "p": 1, "maxmem": 2**26}
_SERVICE = "localmem"  # of entries in the keychain
_RAW = re.compile(r"(?:raw:)?([0-9a-fA-F]{64})")

_stretched: dict[bytes, bytes] = {}  # under a hash with a secret of this process
_process_secret = secrets.token_bytes(32)


class Key:
    """A passphrase, or 32 raw bytes. Made by `key_of`, `from_file` or `from_keychain`."""

    __slots__ = ("_passphrase", "_raw")

    def __init__(self, *, raw: bytes | None = None, passphrase: str | None = None) -> None:
        self._raw = raw
        self._passphrase = passphrase

    def raw(self, salt: bytes) -> bytes:
        """The 32 bytes that open a file with this salt (16 bytes). A passphrase is stretched once per process."""
        if self._raw is not None:
            return self._raw
        assert self._passphrase is not None
        words = unicodedata.normalize("NFC", self._passphrase).encode()
        place = hmac.digest(_process_secret, salt + words, "sha256")
        if place not in _stretched:
            _stretched[place] = hashlib.scrypt(words, salt=salt, dklen=KEY_BYTES, **_SCRYPT)
        return _stretched[place]

    def __repr__(self) -> str:
        return f"Key({'raw' if self._raw is not None else 'passphrase'})"

    def __reduce__(self) -> Any:
        raise TypeError("a key is not to be pickled")


def key_of(given: Any) -> Key | None:
    """A key from what a caller may hand in: None, a Key, 32 bytes, a passphrase, or "raw:" and 64 hex digits."""
    if given is None or isinstance(given, Key):
        return given
    if isinstance(given, bytes | bytearray):
        if len(given) != KEY_BYTES:
            raise InvalidInputError(f"key as bytes must have {KEY_BYTES} of them, not {len(given)}")
        return Key(raw=bytes(given))
    if not isinstance(given, str):
        raise InvalidTypeError(f"key must be a str, bytes or a localmem.keys.Key, not {type(given).__name__}")
    if given.startswith("raw:"):
        found = _RAW.fullmatch(given)
        if found is None:
            raise InvalidInputError("a key that begins with raw: must go on with 64 hex digits")
        return Key(raw=bytes.fromhex(found[1]))
    if not given.strip():
        raise InvalidInputError("key is empty; give a passphrase, 32 bytes, or leave it out for a file without a key")
    return Key(passphrase=given)


def from_file(path: str | os.PathLike[str]) -> Key:
    """The key in a file: 64 hex digits or 32 bytes that are no text are a raw key, other text is a passphrase."""
    place = Path(path).expanduser()
    try:
        content = place.read_bytes()
    except OSError as error:
        raise StorageError(f"the key file {place} can't be read: {error.strerror}") from None
    if len(content) == KEY_BYTES and not _is_text(content):
        return Key(raw=content)
    if not _is_text(content):
        raise KeyRefusedError(f"the key file {place} holds neither text nor {KEY_BYTES} bytes")
    text = content.decode().strip("\r\n")
    found = _RAW.fullmatch(text.strip())
    if found:
        return Key(raw=bytes.fromhex(found[1]))
    if not text.strip():
        raise KeyRefusedError(f"the key file {place} is empty")
    return Key(passphrase=text)


def _is_text(content: bytes) -> bool:
    try:
        return content.decode().replace("\n", "").replace("\r", "").replace("\t", "").isprintable()
    except UnicodeDecodeError:
        return False


def write_new(path: str | os.PathLike[str]) -> None:
    """Write a new random key into a file that is not there yet, readable by its owner alone."""
    place = Path(path).expanduser()
    try:
        files.write_new(place, f"raw:{secrets.token_hex(KEY_BYTES)}\n".encode())
    except OSError as error:
        raise StorageError(f"the key file {place} can't be made: {error.strerror}") from None


def from_keychain(name: str) -> Key:
    """The key that the system's keychain has under this name, of the service "localmem"."""
    found = _asked(lambda keyring: keyring.get_password(_SERVICE, name))
    if not found:
        raise KeyRefusedError(f"the keychain has no key {name!r} of localmem; `localmem keygen --keychain` makes one")
    key = key_of(found)
    assert key is not None
    return key


def write_new_to_keychain(name: str) -> None:
    """Put a new random key into the system's keychain. KeyRefusedError when it has one of that name."""
    if _asked(lambda keyring: keyring.get_password(_SERVICE, name)):
        raise KeyRefusedError(f"the keychain has a key {name!r} of localmem already; give another name")
    _asked(lambda keyring: keyring.set_password(_SERVICE, name, f"raw:{secrets.token_hex(KEY_BYTES)}"))


def _asked(question: Any) -> Any:
    try:
        import keyring
        import keyring.errors
    except ImportError:
        raise MissingExtraError("the system's keychain needs: pip install 'localmem[keychain]'") from None
    try:
        return question(keyring)
    except keyring.errors.KeyringError as error:
        raise KeyRefusedError(
            f"the system's keychain did not answer ({type(error).__name__}); unlock it, or use a key file"
        ) from None
