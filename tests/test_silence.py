"""Nothing leaves the machine and nothing lies about: whole working days in processes of their own, watched from outside.

One through the library, one through AsyncMemory, one through the command line, one through the MCP server. How they are watched is
localmem/doctor/watch.py's: without any network where the kernel allows that, below strace where it is installed, and
with Python's audit hook inside. Which it was stands in the test's properties and in its output (pytest -rP).
onnxruntime's native telemetry shows in strace only, and hides where CI is set.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from localmem import artifacts
from localmem.doctor.watch import LISTEN, Watched, watch
from localmem.errors import LocalmemError

GENERATOR = """
store, model, report = sys.argv[1:]
if model:
    generator = model
else:
    from localmem.testing import ScriptedGenerator
    generator = ScriptedGenerator({"Miso": ["User has a cat called Miso"]})
user = {"user_id": "ann"}
"""

REPORT = """
with open(report, "w") as file:
    json.dump({
        "heard": heard, "telemetry": telemetry, "found": [hit["memory"] for hit in found], "sound": sound,
        "added": added["results"], "libraries": [n for n in ("onnxruntime", "llama_cpp") if n in sys.modules],
    }, file)
"""

LIBRARY = (
    LISTEN
    + GENERATOR
    + """
from localmem import Memory, encrypt
with Memory(store, generator=generator) as memory:
    memory.add("Ann plays the cello on Tuesdays", infer=False, **user)
    added = memory.add("I moved to Porto last week. I have a cat called Miso.", **user)
    found = memory.search("Which instrument does she play?", **user)["results"]
    told = memory.context("cat", **user)
    first = memory.add("to be forgotten", infer=False, **user)["results"][0]["id"]
    memory.update(first, "to be erased")
    memory.delete(first)
    assert memory.purge(memory_id=first)["complete"]
    sound = memory.check()
encrypt(store, "a passphrase")
with Memory(store, generator=generator, key="a passphrase") as memory:
    found += memory.search("cello", **user)["results"]
    sound += memory.verify_audit()["problems"]
"""
    + REPORT
)

ASYNC = (
    LISTEN
    + GENERATOR
    + """
import asyncio
from localmem import AsyncMemory
async def day():
    async with AsyncMemory(store, generator=generator) as memory:
        await memory.add("Ann plays the cello on Tuesdays", infer=False, **user)
        added = await memory.add("I moved to Porto last week. I have a cat called Miso.", **user)
        both = await asyncio.gather(memory.search("cello", **user), memory.search("cat", **user))
        ann = memory.bound(**user)
        await ann.context("cat")
        await ann.delete((await ann.get_all())["results"][-1]["id"])
        return added, [hit for each in both for hit in each["results"]], await memory.check()
added, found, sound = asyncio.run(day())
"""
    + REPORT
)

# Each command is a process of its own, as `python -m localmem` makes it; what it hears is added to a file.
ONE_COMMAND = (
    LISTEN
    + """
import atexit, runpy
log = sys.argv.pop(1)
def leave():
    with open(log, "a") as file:
        file.write(json.dumps([sys.argv[1], heard, telemetry]) + "\\n")
atexit.register(leave)
runpy.run_module("localmem", run_name="__main__", alter_sys=True)
"""
)
COMMANDS = """
import json, os, pathlib, subprocess, sys
store, model, code, report = sys.argv[1:]
folder, log = pathlib.Path(store).parent, report + ".log"
done = []
def run(*words, key=None):
    keyed = ["--key-file", str(folder / key)] if key else []
    command = [sys.executable, "-c", code, log, *words, "--file", store, "--user", "ann", "--json", *keyed]
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    done.append([words[0], ran.returncode, ran.stderr])
    return json.loads(ran.stdout) if ran.stdout else {}
chat = folder / "chat.txt"
chat.write_text("2024-05-01\\nAnn: The harbour is Vigo.\\n")
first = run("add", "--no-infer", "Ann plays the cello on Tuesdays")["results"][0]["id"]
run("add", "I moved to Porto last week. I have a cat called Miso.")
run("resume")
run("ingest", str(chat), "--no-infer")
found = run("search", "Which instrument does she play?")["results"]
run("list")
run("show", first)
run("update", first, "Ann plays the viola on Tuesdays")
run("history", first)
run("delete", first)
run("retention", "evidence", "--yes")
run("export", str(folder / "export.jsonl"))
run("purge", first, "--yes")
run("audit", "verify")
run("audit", "list")
run("check")
run("reindex")
run("keygen", str(folder / "key"))
run("keygen", str(folder / "key 2"))
run("encrypt", "--new-key-file", str(folder / "key"))
run("rekey", "--new-key-file", str(folder / "key 2"), key="key")
run("search", "cat", key="key 2")
run("doctor", key="key 2")
run("salvage", str(folder / "salvaged.db"), key="key 2")
run("decrypt", "--yes", key="key 2")
run("models", "list")
heard = [json.loads(line) for line in open(log)]
os.unlink(log)
with open(report, "w") as file:
    json.dump({
        "heard": [each for _, each, _ in heard if each], "telemetry": [each for *_, each in heard if each],
        "commands": done, "processes": len(heard), "found": [hit["memory"] for hit in found],
    }, file)
"""
# The MCP server is a process too, with a client that writes the protocol by hand.
MCP = """
import json, os, pathlib, subprocess, sys
store, model, code, report = sys.argv[1:]
log = report + ".log"
command = [sys.executable, "-c", code, log, "mcp", "--file", store, "--user", "ann", "--tools", "full"]
pipe = subprocess.PIPE
server = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True)
def ask(number, method, **params):
    asked = {"jsonrpc": "2.0", "id": number, "method": method, "params": params}
    server.stdin.write(json.dumps(asked) + "\\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())["result"]
def call(number, name, **arguments):
    done = ask(number, "tools/call", name=name, arguments=arguments)
    assert not done.get("isError"), done
    return done["structuredContent"]
ask(0, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "x", "version": "1"})
server.stdin.write(json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}) + "\\n")
call(1, "add_memory", text="Ann plays the cello on Tuesdays")
found = call(2, "search_memories", query="Which instrument does she play?")["results"]
call(3, "memory_context", query="cello")
ask(4, "resources/read", uri="memory://recent")
ask(5, "prompts/get", name="recall", arguments={"question": "cello"})
call(6, "memory_status")
rest, words = server.communicate()
heard = [json.loads(line) for line in open(log)]
os.unlink(log)
with open(report, "w") as file:
    json.dump({
        "heard": [each for _, each, _ in heard if each], "telemetry": [each for *_, each in heard if each],
        "commands": [["mcp", server.returncode, rest + words]], "processes": len(heard),
        "found": [hit["memory"] for hit in found],
    }, file)
"""
SURFACES = {"library": LIBRARY, "async": ASYNC, "command line": COMMANDS, "mcp": MCP}
PROCESSES = ("command line", "mcp")  # whose working day is that of processes below the watched one


# -- the days


@dataclass(frozen=True)
class Day:
    """A working day on one surface."""

    surface: str
    seen: Watched
    store: Path  # its folder
    model: str  # the GGUF, or "" for the scripted generator


def _model() -> str:
    """The installed GGUF, or "" where there is none or nothing to run it with."""
    if find_spec("llama_cpp") is None:
        return ""
    try:
        return str(artifacts.generator_path())
    except LocalmemError:
        return ""


@pytest.fixture(scope="module", params=SURFACES)
def day(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Day:
    """Once for all tests here."""
    surface, model = request.param, _model()
    if surface == "mcp":
        pytest.importorskip("mcp")
    folder, store = tmp_path_factory.mktemp("watched"), tmp_path_factory.mktemp("store")
    more = [ONE_COMMAND] if surface in PROCESSES else []
    environment = {"LOCALMEM_GENERATOR": model} if model and more else {}
    arguments = [str(store / "memory.db"), model, *more]
    return Day(surface, watch(folder, SURFACES[surface], *arguments, environment=environment), store, model)


@pytest.fixture(autouse=True)
def said_how(request: pytest.FixtureRequest, record_property: Any) -> None:
    if "day" not in request.fixturenames:
        return
    day: Day = request.getfixturevalue("day")
    generator = Path(day.model).name if day.model else "scripted generator"
    record_property("watched_by", day.seen.by)
    record_property("generator", generator)
    print(f"{day.surface}, watched by {day.seen.by}; {generator}")


def test_the_day_was_a_real_one(day: Day) -> None:
    assert day.seen.done.returncode == 0, day.seen.done.stderr
    report = day.seen.report
    assert "Ann plays the cello on Tuesdays" in report["found"]
    if day.surface in PROCESSES:
        failed = [each for each in report["commands"] if each[1] != 0]
        missing_model = [] if day.model else ["add", "resume"]
        assert [each for each in failed if each[0] not in missing_model] == []
        assert report["processes"] == len(report["commands"])
        return
    assert report["sound"] == []
    assert "onnxruntime" in report["libraries"]
    assert ("llama_cpp" in report["libraries"]) == bool(day.model)
    if not day.model:
        assert [change["memory"] for change in report["added"]] == ["User has a cat called Miso"]


def test_no_call_to_the_network(day: Day) -> None:
    assert day.seen.calls_to_the_network == []
    assert bool(day.seen.trace) == ("strace" in day.seen.how)


def test_python_hears_no_socket(day: Day) -> None:
    assert day.seen.report["heard"] == []


def test_telemetry_is_off_before_onnxruntime_is_imported(day: Day) -> None:
    told = day.seen.report["telemetry"]
    if day.surface in PROCESSES:
        assert len(told) > (5 if day.surface == "command line" else 0)  # each command that embeds something
        assert all(each == ["1"] for each in told)
    else:
        assert told == ["1"]


def test_nothing_is_printed(day: Day) -> None:
    assert (day.seen.done.stdout, day.seen.done.stderr) == ("", "")


def test_no_file_outside_the_stores_folder(day: Day) -> None:
    assert day.seen.after == day.seen.before == {"home": [], "tmp": [], "cwd": []}
    made = ["chat.txt", "export.jsonl", "key", "key 2", "salvaged.db"] if day.surface == "command line" else []
    assert sorted(path.name for path in day.store.iterdir()) == sorted(["memory.db", *made])
    report = Path(day.seen.done.args[-1])
    assert day.seen.written_outside(day.store, report, Path(f"{report}.log")) == []


# -- would it have been seen?

TALKATIVE = (
    LISTEN
    + """
import ctypes, pathlib, socket, tempfile
native = ctypes.CDLL(None)
if sys.argv[1] == "native":  # as onnxruntime does it: no audit event
    native.socket(2, 2, 0)
else:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        try:
            asked.connect(("127.0.0.1", 9))
        except OSError:  # no network here
            pass
pathlib.Path(tempfile.gettempdir(), "left behind").write_text("")
print("noise")
json.dump({"heard": heard}, open(sys.argv[2], "w"))
"""
)


@pytest.mark.parametrize("way", ["python", "native"])
def test_what_is_not_silent_is_seen(tmp_path: Path, way: str) -> None:
    seen = watch(tmp_path, TALKATIVE, way)
    assert seen.done.stdout == "noise\n", seen.done.stderr
    assert seen.after["tmp"] == ["left behind"]
    assert bool(seen.report["heard"]) == (way == "python")
    if "strace" in seen.how:
        assert seen.calls_to_the_network
        assert any("left behind" in line for line in seen.written_outside(tmp_path / "report.json"))
    elif way == "native":
        pytest.skip("without strace a native call to the network is not seen")


def test_sockets_of_this_machine_alone_are_harmless(tmp_path: Path) -> None:
    code = "import json, socket, sys; socket.socketpair(); socket.socket(socket.AF_UNIX).close()"
    seen = watch(tmp_path, f"{LISTEN}{code}; json.dump({{'heard': heard}}, open(sys.argv[1], 'w'))")
    assert seen.done.returncode == 0, seen.done.stderr
    assert (seen.report, seen.calls_to_the_network) == ({"heard": []}, [])
