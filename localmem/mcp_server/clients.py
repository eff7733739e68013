"""What to paste into the settings of an MCP client so that it starts this server: JSON or TOML, and where it goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from localmem.types import JSON

NAME = "localmem"  # of the server, in a client's list


@dataclass(frozen=True, slots=True)
class Launch:
    """How the server is started: absolute path of the command, its arguments, and what the environment must say."""

    command: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is reached over HTTP, and the token that it was started with."""

    url: str
    token: str

    @property
    def headers(self) -> dict[str, JSON]:
        """What each request carries."""
        return {"Authorization": f"Bearer {self.token}"}


@dataclass(frozen=True, slots=True)
class Client:
    """A client, the file that its servers stand in, and what stands there: for one that it starts, and for one that
    runs at an address, where the client can reach one."""

    file: str
    snippet: Callable[[Launch], str]
    remote: Callable[[Address], str] | None = None


def _as_json(*path: str, more: Mapping[str, JSON] | None = None) -> Callable[[Launch], str]:
    """Command, args and env below the keys of a path."""

    def snippet(launch: Launch) -> str:
        shape: dict[str, JSON] = {**(more or {}), "command": launch.command, "args": list(launch.arguments)}
        if launch.environment:
            shape["env"] = dict(launch.environment)
        return _nested(shape, path)

    return snippet


def _remote(*path: str, url: str = "url", more: Mapping[str, JSON] | None = None) -> Callable[[Address], str]:
    """The URL under the name that a client has for it, and the headers, below the keys of a path."""

    def snippet(address: Address) -> str:
        return _nested({**(more or {}), url: address.url, "headers": address.headers}, path)

    return snippet


def _nested(shape: dict[str, JSON], path: Sequence[str]) -> str:
    whole: dict[str, JSON] = {NAME: shape}
    for key in reversed(path):
        whole = {key: whole}
    return json.dumps(whole, ensure_ascii=False, indent=2)


def _opencode(launch: Launch) -> str:
    shape: dict[str, JSON] = {"type": "local", "command": [launch.command, *launch.arguments], "enabled": True}
    if launch.environment:
        shape["environment"] = dict(launch.environment)
    return _nested(shape, ["mcp"])


def _codex(launch: Launch) -> str:
    """TOML, whose basic strings are JSON's but for characters beyond ASCII."""
    lines = [
        f"[mcp_servers.{NAME}]",
        f"command = {_toml(launch.command)}",
        f"args = [{', '.join(map(_toml, launch.arguments))}]",
    ]
    if launch.environment:
        lines += ["", f"[mcp_servers.{NAME}.env]"]
        lines += [f"{name} = {_toml(value)}" for name, value in launch.environment.items()]
    return "\n".join(lines)


def _codex_remote(address: Address) -> str:
    headers = ", ".join(f"{name} = {_toml(str(value))}" for name, value in address.headers.items())
    return f"[mcp_servers.{NAME}]\nurl = {_toml(address.url)}\nhttp_headers = {{ {headers} }}"


def _toml(text: str) -> str:
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


_SERVERS = _as_json("mcpServers")
CLIENTS: dict[str, Client] = {
    "claude": Client(
        "claude_desktop_config.json (macOS: ~/Library/Application Support/Claude, Linux: ~/.config/Claude, "
        "Windows: %APPDATA%\\Claude)",
        _SERVERS,
    ),
    "claude-code": Client(
        ".mcp.json in the project, or ~/.claude.json",
        _as_json("mcpServers", more={"type": "stdio"}),
        _remote("mcpServers", more={"type": "http"}),
    ),
    "cline": Client(
        "cline_mcp_settings.json (MCP Servers, Configure)",
        _SERVERS,
        _remote("mcpServers", more={"type": "streamableHttp"}),
    ),
    "codex": Client("~/.codex/config.toml", _codex, _codex_remote),
    "cursor": Client("~/.cursor/mcp.json, or .cursor/mcp.json in the project", _SERVERS, _remote("mcpServers")),
    "gemini": Client("~/.gemini/settings.json", _SERVERS, _remote("mcpServers", url="httpUrl")),
    "lmstudio": Client("~/.lmstudio/mcp.json (Program, Install, Edit mcp.json)", _SERVERS, _remote("mcpServers")),
    "opencode": Client(
        "~/.config/opencode/opencode.json, or opencode.json in the project",
        _opencode,
        _remote("mcp", more={"type": "remote", "enabled": True}),
    ),
    "vscode": Client(
        ".vscode/mcp.json in the project",
        _as_json("servers", more={"type": "stdio"}),
        _remote("servers", more={"type": "http"}),
    ),
    "windsurf": Client("~/.codeium/windsurf/mcp_config.json", _SERVERS, _remote("mcpServers", url="serverUrl")),
    "zed": Client(
        "settings.json of Zed (~/.config/zed/settings.json)", _as_json("context_servers"), _remote("context_servers")
    ),
}

__all__ = ["CLIENTS", "Address", "Client", "Launch"]
