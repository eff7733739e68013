"""Imports point down only, heavy libraries have one home, SQL has one floor, files stay readable.

The rules of the design, read from the source with ast: imports inside functions and under TYPE_CHECKING count too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "localmem"
LINES_MAX = 650  # of one file: beyond that a reader cannot hold it

LAYERS = (  # top to bottom; a module may import its own layer and those below
    {"__main__", "cli", "mcp_server", "inspector", "testing"},
    {"compat", "doctor", "feed", "mem0_import", "report", "terminal"},
    {
        "aio",
        "custody",
        "handle",
        "mem0_files",
        "memory",
        "queued",
        "shapes",
        "surface",
        "tool_arguments",
        "tool_words",
        "tools",
        "transcripts",
        "transcript_json",
        "transcript_parts",
        "transcript_text",
    },
    {"embedders", "encryption", "salvaging"},
    {"inputs"},
    {"worker"},
    {"ingest", "profile", "purge", "search"},
    {
        "store",
        "store_apply",
        "store_audit",
        "store_check",
        "store_export",
        "store_forgetting",
        "store_matrix",
        "store_mem0",
        "store_mending",
        "store_passages",
        "store_pools",
        "store_purge",
        "store_queue",
        "store_read",
        "store_salvage",
        "store_turns",
        "store_vectors",
        "store_verify",
        "store_waiting",
        "store_words",
        "embed",
        "llm",
        "llm_chat",
        "llm_model",
        "llm_server",
        "extract",
        "notes",
        "decide",
        "probe",
        "wishes",
    },
    {
        "db",
        "artifacts",
        "manifest",
        "probe",
        "prompts",
        "rank",
        "relate",
        "retell",
        "config",
        "clauses",
        "clock",
        "dates",
        "files",
        "filters",
        "forget",
        "gbnf",
        "ids",
        "keys",
        "mem0_points",
        "marks",
        "needles",
        "rules",
        "secrets",
        "support",
        "timing",
        "tuned",
        "words",
    },
    {"types", "errors"},
)
LEVEL = {module: depth for depth, layer in enumerate(LAYERS) for module in layer}

HOMES = {  # library -> the only modules that may import it
    "apsw": {"db"},
    "sqlite_vec": {"db"},
    "sqlite3": set(),
    "onnxruntime": {"embed"},
    "tokenizers": {"embed"},
    "llama_cpp": {"llm"},
    "dateparser": {"dates"},
    "click": {"cli", "feed", "terminal"},
    "rich": {"cli", "feed", "terminal"},
    "platformdirs": {"config"},
    "keyring": {"keys"},
    "psutil": {"worker"},
    "pickle": set(),  # what is read of pickles is read without running them: mem0_points
    # what could open a socket: towards a server on loopback, or as one, and nothing else
    "http": {"llm_server"},
    "socket": {"llm_server", "mcp_server"},
    "ssl": {"llm_server"},
    "urllib": {"llm_server"},  # urllib.parse; urllib.request is refused below
    "asyncio": {"aio"},
    "mcp": {"mcp_server"},  # listens on loopback alone: access.py
    "mcp_types": {"mcp_server"},
    "starlette": {"mcp_server"},
    "uvicorn": {"mcp_server"},
    "anyio": {"mcp_server"},
    "ftplib": set(),
    "smtplib": set(),
    "socketserver": set(),
    "xmlrpc": set(),
    "requests": set(),
    "httpx": set(),
    "httpx2": set(),
    "aiohttp": set(),
    "huggingface_hub": set(),
    # pip, only inside `localmem models install`; what is watched, or might be killed, only inside `localmem doctor`
    "subprocess": {"artifacts", "doctor"},
}
SQL_MODULES = ("db", "filters", "store")  # and what begins with store_
SQL_STARTS = (
    "select ",
    "insert into",
    "insert or",
    "update ",
    "delete from",
    "create table",
    "create virtual",
    "drop table",
    "alter table",
    "pragma ",
    "begin immediate",
    "savepoint ",
)
HEAVY = (
    "numpy",
    "onnxruntime",
    "tokenizers",
    "llama_cpp",
    "apsw",
    "sqlite_vec",
    "click",
    "rich",
    "dateparser",
    "mcp",
    "anyio",
)


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The module's name under localmem: "db", "prompts", "inspector"; "" for the package itself."""
    first = path.relative_to(PACKAGE).parts[0]
    return "" if first == "__init__.py" else first.removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every imported dotted name of a file with its line, relative ones made absolute."""
    here = ["localmem", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(here[: -node.level]) if node.level else ""
            stem = ".".join(part for part in (base, node.module) if part)
            for alias in node.names:  # "from localmem import db" names a module, "from localmem.db import X" does not
                yield (f"{stem}.{alias.name}" if stem == "localmem" else stem), node.lineno
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name | ast.Attribute)
            and (node.func.id if isinstance(node.func, ast.Name) else node.func.attr) in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            yield str(node.args[0].value), node.lineno


def docstrings(tree: ast.AST) -> set[int]:
    """The ids of the constants that are docstrings."""
    found = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            found.add(id(first.value))
    return found


def test_every_module_has_a_layer() -> None:
    unplaced = {module_of(path) for path in sources()} - set(LEVEL) - {""}
    assert not unplaced, f"give these modules a layer in tests/test_layers.py: {sorted(unplaced)}"


def test_imports_point_down() -> None:
    wrong = []
    for path in sources():
        here = module_of(path)
        for name, line in imports(path):
            parts = name.split(".")
            if parts[0] != "localmem" or len(parts) < 2 or here == "" or parts[1] not in LEVEL:
                continue
            if LEVEL[parts[1]] < LEVEL.get(here, 0):
                wrong.append(f"{path.name}:{line} {here} imports {parts[1]}, which stands above it")
    assert not wrong, "\n".join(wrong)


def test_modules_of_one_layer_do_not_go_in_circles() -> None:
    below: dict[str, set[str]] = {}
    for path in sources():
        here = module_of(path)
        if here:
            named = {name.split(".")[1] for name, _ in imports(path) if name.startswith("localmem.")}
            below.setdefault(here, set()).update((named & set(LEVEL)) - {here})

    def reaches(start: str, goal: str) -> bool:
        seen, open_ = set(), [start]
        while open_:
            here = open_.pop()
            for other in below.get(here, ()):
                if other == goal:
                    return True
                if other not in seen:
                    seen.add(other)
                    open_.append(other)
        return False

    circles = sorted(module for module in below if reaches(module, module))
    assert not circles, f"these import each other: {circles}"


def test_heavy_libraries_have_one_home() -> None:
    wrong = []
    for path in sources():
        here = module_of(path)
        for name, line in imports(path):
            library = name.split(".")[0]
            if library in HOMES and here not in HOMES[library]:
                wrong.append(f"{path.name}:{line} imports {name}; its home: {sorted(HOMES[library]) or 'nowhere'}")
            if name.startswith("urllib.request"):
                wrong.append(f"{path.name}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_sql_stays_on_its_floor() -> None:
    wrong = []
    for path in sources():
        if module_of(path).split("_")[0] in SQL_MODULES:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        skip = docstrings(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skip:
                text = " ".join(node.value.lower().split())
                if text.startswith(SQL_STARTS) and _looks_like_sql(text):
                    wrong.append(f"{path.name}:{node.lineno} {text[:60]}")
    assert not wrong, "\n".join(wrong)


def _looks_like_sql(text: str) -> bool:
    """Whether text that begins like a statement goes on like one: "update " also begins an English sentence."""
    needs = {"select ": " from ", "update ": " set ", "pragma ": "", "begin immediate": "", "savepoint ": ""}
    start = next(start for start in SQL_STARTS if text.startswith(start))
    return needs.get(start, "") in text


def test_files_are_readable_in_one_go() -> None:
    long = {path.name: count for path in sources() if (count := len(path.read_text("utf-8").splitlines())) > LINES_MAX}
    assert not long, f"longer than {LINES_MAX} lines: {long}"


@pytest.mark.parametrize("statement", ["import localmem", "import localmem.types, localmem.errors, localmem.config"])
def test_import_is_light(statement: str) -> None:
    code = f"{statement}; import sys; print(*sorted({set(HEAVY)!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert done.stdout.split() == []


def test_no_text_reaches_a_log() -> None:
    """Nothing in the library prints: data goes to stdout in cli only, words to stderr in cli only."""
    wrong = [
        f"{path.name}:{node.lineno}"
        for path in sources()
        if module_of(path) not in ("cli", "terminal", "__main__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not wrong, "print() outside the command line:\n" + "\n".join(wrong)
