"""The MCP server: the tools of tools.py, what is remembered as resources, and a prompt, over stdio or loopback HTTP.

The only importer of mcp and of what it brings (anyio, starlette, uvicorn), extra "mcp". server.py is the protocol,
serving.py the two ways to be reached, access.py who may, clients.py what to paste into a client's settings.
"""

from __future__ import annotations

from types import ModuleType

from localmem.errors import MissingExtraError


def load() -> ModuleType:
    """The module that serves. MissingExtraError where the SDK is not there, or of another major version."""
    try:
        from localmem.mcp_server import serving as module
    except ImportError as error:
        if (error.name or "").startswith("localmem"):
            raise
        raise MissingExtraError("the MCP server needs: pip install 'localmem[mcp]'") from error
    return module


__all__ = ["load"]
