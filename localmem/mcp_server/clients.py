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
class Client:
    """A client, the file that its servers stand in, and what stands there."""

    file: str
    snippet: Callable[[Launch], str]


def _as_json(*path: str, more: Mapping[str, JSON] | None = None) -> Callable[[Launch], str]:
    """Command, args and env below the keys of a path."""

    def snippet(launch: Launch) -> str:
        shape: dict[str, JSON] = {**(more or {}), "command": launch.command, "args": list(launch.arguments)}
        if launch.environment:
            shape["env"] = dict(launch.environment)
        return _nested(shape, path)

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
        ".mcp.json in the project, or ~/.claude.json", _as_json("mcpServers", more={"type": "stdio"})
    ),
    "cline": Client("cline_mcp_settings.json (MCP Servers, Configure)", _SERVERS),
    "codex": Client("~/.codex/config.toml", _codex),
    "cursor": Client("~/.cursor/mcp.json, or .cursor/mcp.json in the project", _SERVERS),
    "gemini": Client("~/.gemini/settings.json", _SERVERS),
    "lmstudio": Client("~/.lmstudio/mcp.json (Program, Install, Edit mcp.json)", _SERVERS),
    "opencode": Client("~/.config/opencode/opencode.json, or opencode.json in the project", _opencode),
    "vscode": Client(".vscode/mcp.json in the project", _as_json("servers", more={"type": "stdio"})),
    "windsurf": Client("~/.codeium/windsurf/mcp_config.json", _SERVERS),
    "zed": Client("settings.json of Zed (~/.config/zed/settings.json)", _as_json("context_servers")),
}

__all__ = ["CLIENTS", "Client", "Launch"]
