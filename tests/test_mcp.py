"""The MCP server as clients meet it: real processes, the official client, and requests made by hand."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from doubles import Moody, following_scripts
from jsonschema import Draft202012Validator

from localmem.errors import InvalidInputError
from localmem.mcp_server import access
from localmem.memory import Memory
from localmem.testing import ScriptedGenerator
from localmem.tools import TOOLS

pytest.importorskip("mcp")

from anyio.from_thread import BlockingPortal, start_blocking_portal
from mcp import StdioServerParameters, stdio_client
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared._httpx_utils import create_mcp_http_client
from mcp.shared.exceptions import MCPError

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, str(ROOT / "tests" / "doubles.py")]
UNKNOWN = "00000000-0000-7000-8000-000000000000"
TOKEN = "a-token-for-the-tests-of-localmem"
BY_NAME = {each.name: each for each in TOOLS}
CORE = [each.name for each in TOOLS if not each.full]
DEADLINE_S = 60


# -------------------------------------------------------------------- processes


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LOCALMEM_")}
    return {**kept, "LOCALMEM_HOME": str(home), "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", **more}


def open_store(path: Path) -> Memory:
    return Memory(path, embedder=Moody(), generator=ScriptedGenerator())


@dataclass(frozen=True)
class Store:
    """A file that ann and bob have memories in."""

    path: Path
    home: Path
    tea: str
    bobs: str
    bobs_episode: str

    def words(self, *words: str) -> list[str]:
        """The command that serves it to ann."""
        return [*COMMAND, "mcp", "--file", str(self.path), "--user", "ann", *words]


def make_store(folder: Path) -> Store:
    with following_scripts(), open_store(folder / "memory.db") as memory:
        tea = memory.add("fact: User likes tea", user_id="ann")["results"][0]["id"]
        memory.add("fact: User owns a boat", user_id="ann")
        bobs = memory.add("fact: User likes rum", user_id="bob")
    return Store(folder / "memory.db", folder, tea, bobs["results"][0]["id"], bobs["episode_id"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    made = make_store(tmp_path_factory.mktemp("mcp"))
    yield made
    with open_store(made.path) as memory:
        assert memory.check() == []
        assert memory.verify_audit()["problems"] == []


@pytest.fixture
def own_store(tmp_path: Path) -> Store:
    """For tests that change or harm it."""
    return make_store(tmp_path)


@dataclass(frozen=True)
class Web:
    """A server over HTTP."""

    port: int
    said: list[str]  # on stderr until it served
    process: subprocess.Popen[str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/mcp"


@contextlib.contextmanager
def serving(store: Store, *words: str, token: str | None = TOKEN, **more: str) -> Iterator[Web]:
    """A server over HTTP at any free port, ended with an interrupt."""
    known = {} if token is None else {"LOCALMEM_MCP_TOKEN": token}
    process = subprocess.Popen(
        store.words("--http", "--port", "0", *words),
        env=environment(store.home, **known, **more),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    said: list[str] = []
    try:
        while not said or not said[-1].startswith("serving"):
            line = process.stderr.readline()
            assert line, f"it ended: {said}"
            said.append(line.rstrip())
        yield Web(int(said[-1].rsplit(":", 1)[1].split("/")[0]), said, process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=DEADLINE_S)
        assert (out, err.strip()) == ("", "interrupted")
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def web(store: Store) -> Iterator[Web]:
    with serving(store) as server:
        yield server


# -------------------------------------------------------------------- the official client


class Session:
    """The official client, to be used without asyncio."""

    def __init__(self, portal: BlockingPortal, client: Client) -> None:
        self._portal = portal
        self.client = client

    def ask(self, call: Callable[..., Any], *args: Any) -> Any:
        return self._portal.call(call, *args)

    def call(self, name: str, **arguments: Any) -> dict[str, Any]:
        """The structured answer, which must be what the text says, and fit."""
        result = self.ask(self.client.call_tool, name, arguments)
        assert not result.is_error, result.content
        answer: dict[str, Any] = result.structured_content
        Draft202012Validator(BY_NAME[name].output_schema).validate(answer)
        assert json.loads(result.content[0].text) == answer
        return answer

    def error(self, name: str, **arguments: Any) -> str:
        result = self.ask(self.client.call_tool, name, arguments)
        assert result.is_error
        assert "Traceback" not in result.content[0].text
        return str(result.content[0].text)

    def texts(self, name: str = "list_memories", **arguments: Any) -> list[str]:
        return [each["memory"] for each in self.call(name, **arguments)["results"]]


@contextlib.contextmanager
def session(transport: Any, mode: str = "legacy") -> Iterator[Session]:
    with start_blocking_portal() as portal:
        client = portal.call(make_client, transport, mode)
        with portal.wrap_async_context_manager(client):
            yield Session(portal, client)


async def make_client(transport: Callable[[], Any], mode: str) -> Client:
    return Client(transport(), mode=mode)


def over_stdio(store: Store, *words: str, **more: str) -> Callable[[], Any]:
    command, *arguments = store.words(*words)
    parameters = StdioServerParameters(command=command, args=arguments, env=environment(store.home, **more))
    return lambda: stdio_client(parameters)


def over_http(web: Web, token: str = TOKEN) -> Callable[[], Any]:
    headers = {"Authorization": f"Bearer {token}"}
    return lambda: streamable_http_client(web.url, http_client=create_mcp_http_client(headers=headers))


WAYS = [("stdio", "legacy"), ("stdio", "auto"), ("http", "legacy"), ("http", "auto")]


@pytest.fixture(scope="module", params=WAYS, ids=" ".join)
def client(request: pytest.FixtureRequest, store: Store) -> Iterator[Session]:
    """A client of the core tools, over each transport and in each era of the protocol."""
    way, mode = request.param
    transport = over_stdio(store) if way == "stdio" else over_http(request.getfixturevalue("web"))
    with session(transport, mode) as made:
        yield made


# -------------------------------------------------------------------- what is there


def test_it_says_what_it_is_and_when_to_use_it(client: Session) -> None:
    assert client.client.server_info.name == "localmem"
    for tool in ("search_memories", "add_memory"):
        assert tool in client.client.instructions
    assert client.client.server_capabilities.tools is not None


def test_tools_are_annotated_and_have_both_schemas(client: Session) -> None:
    tools = client.ask(client.client.list_tools).tools
    assert [each.name for each in tools] == CORE
    for tool in tools:
        known = BY_NAME[tool.name]
        assert tool.input_schema == known.input_schema
        assert tool.output_schema == known.output_schema
        assert tool.title == tool.annotations.title == known.title
        assert tool.annotations.read_only_hint is not known.writes
        assert tool.annotations.open_world_hint is False
    hints = {each.name: each.annotations for each in tools}
    assert [name for name, hint in hints.items() if hint.destructive_hint] == ["update_memory", "delete_memory"]
    assert [name for name, hint in hints.items() if not hint.idempotent_hint] == ["add_memory", "update_memory"]


def test_every_core_tool(client: Session) -> None:
    added = client.call("add_memory", text="fact: User plays the cello", when="2025-02-01")
    assert "cello" in client.texts("search_memories", query="cello", limit=1)[0]
    began = time.monotonic()
    while client.call("memory_status", episode_id=added["episode_id"])["state"] != "done":
        assert time.monotonic() - began < DEADLINE_S
        time.sleep(0.05)
    (found,) = [each for each in client.call("list_memories")["results"] if each["memory"] == "User plays the cello"]
    memory_id = found["id"]
    assert client.call("get_memory", memory_id=memory_id)["memory"] == "User plays the cello"
    changed = client.call("update_memory", memory_id=memory_id, text="User plays the viola")
    assert changed["results"][0]["previous_memory"] == "User plays the cello"
    told = client.call("memory_history", memory_id=memory_id)
    assert [each["memory"] for each in told["results"]] == ["User plays the cello", "User plays the viola"]
    client.call("delete_memory", memory_id=memory_id)
    assert "User plays the viola" not in client.texts()
    assert client.call("memory_status")["waiting"] == 0


def test_errors_are_for_the_model_to_act_on(client: Session) -> None:
    assert "query is missing" in client.error("search_memories")
    assert "limit must be a whole number" in client.error("search_memories", query="x", limit="many")
    assert f"no memory has the id '{UNKNOWN}'; take an id from" in client.error("get_memory", memory_id=UNKNOWN)
    message = client.error("delete_all_memories", confirm=True)
    assert all(name in message for name in CORE)
    assert len(client.texts()) == 2


@pytest.mark.parametrize("name", [each.name for each in TOOLS if any(p.kind in ("id", "ids") for p in each.parameters)])
def test_another_ones_ids_are_unknown(full: Session, store: Store, name: str) -> None:
    (parameter,) = [each for each in BY_NAME[name].parameters if each.kind in ("id", "ids")]
    foreign = store.bobs_episode if parameter.name == "episode_id" else store.bobs
    more = {"text": "User likes gin"} if name == "update_memory" else {}
    told = []
    for each in (foreign, UNKNOWN):
        result = full.ask(full.client.call_tool, name, {parameter.name: each, **more})
        told.append((result.is_error, result.content[0].text.replace(each, "ID")))
    assert told[0] == told[1]
    assert "rum" not in told[0][1]
    with open_store(store.path) as memory:
        assert [each["memory"] for each in memory.get_all(user_id="bob")["results"]] == ["User likes rum"]


def test_another_one_can_not_be_asked_for(client: Session) -> None:
    assert "can't be chosen" in client.error("search_memories", query="rum", user_id="bob")
    assert client.texts("search_memories", query="rum", user_id="ann") == client.texts("search_memories", query="rum")
    assert "User likes rum" not in client.texts("search_memories", query="rum")


def test_resources(client: Session) -> None:
    resources = client.ask(client.client.list_resources).resources
    assert [str(each.uri) for each in resources] == ["memory://profile", "memory://recent"]
    (profile,) = client.ask(client.client.read_resource, "memory://profile").contents
    assert "User likes tea" in profile.text
    assert "rum" not in profile.text
    (recent,) = client.ask(client.client.read_resource, "memory://recent").contents
    assert recent.mime_type == "application/json"
    assert [each["memory"] for each in json.loads(recent.text)["results"]] == ["User owns a boat", "User likes tea"]
    with pytest.raises(MCPError, match="memory://profile or memory://recent"):
        client.ask(client.client.read_resource, "memory://bob")


def test_the_prompt_brings_what_is_remembered(client: Session) -> None:
    (recall,) = client.ask(client.client.list_prompts).prompts
    assert (recall.name, recall.arguments[0].name, recall.arguments[0].required) == ("recall", "question", True)
    found = client.ask(client.client.get_prompt, "recall", {"question": "Which boat do I own?"})
    text = found.messages[0].content.text
    assert "<memories>" in text
    assert "User owns a boat" in text
    assert text.endswith("Which boat do I own?")
    for name, arguments in (("recall", {}), ("recall", {"question": " "}), ("other", {"question": "x"})):
        with pytest.raises(MCPError, match="question is missing|there is recall"):
            client.ask(client.client.get_prompt, name, arguments)


@pytest.fixture(scope="module")
def full(store: Store) -> Iterator[Session]:
    with session(over_stdio(store, "--tools", "full")) as made:
        yield made


def test_the_full_set(full: Session) -> None:
    assert [each.name for each in full.ask(full.client.list_tools).tools] == list(BY_NAME)
    assert "User owns a boat" in full.call("memory_context", query="boat")["context"]
    assert full.call("explain_search", query="boat", limit=1)["results"][0]["signals"]
    assert full.call("memory_decisions", limit=1)["total"] >= 2
    assert full.texts("search_memory", query="boat", limit=1) == ["User owns a boat"]


def test_the_full_set_deletes(own_store: Store) -> None:
    with session(over_stdio(own_store, "--tools", "full")) as full:
        ids = [each["id"] for each in full.call("list_memories")["results"]]
        assert len(full.call("delete_memories", memory_ids=ids[0])["results"]) == 1
        assert "no parameter" in full.error("delete_all_memories", query="tea")
        assert "would delete all 1 memories; nothing was deleted" in full.error("delete_all_memories")
        assert full.call("delete_all_memories", confirm=True) == {"deleted": 1}
        full.call("add_memories", text="I like gin")
    with open_store(own_store.path) as memory:
        left = [each["memory"] for each in memory.get_all(user_id="ann")["results"]]
        assert left in ([], ["User likes gin"])  # read before the server ended, or not
        assert len(memory.get_all(user_id="bob")["results"]) == 1
        actors = {each["actor"] for each in memory.audit_log(user_id="ann") if each["op"] == "delete"}
        assert actors == {"mcp"}


def test_read_only(own_store: Store) -> None:
    before = own_store.path.read_bytes()
    with session(over_stdio(own_store, "--read-only", "--tools", "full")) as reader:
        names = [each.name for each in reader.ask(reader.client.list_tools).tools]
        assert names == [each.name for each in TOOLS if not each.writes]
        assert_read_only(reader)
    assert own_store.path.read_bytes() == before


def assert_read_only(reader: Session) -> None:
    """What it says of itself, what it answers to what writes, and that it can be read."""
    for tool in ("add_memory", "delete_memory"):
        assert tool not in reader.client.instructions
        assert tool not in [each.name for each in reader.ask(reader.client.list_tools).tools]
    assert "search_memories" in reader.client.instructions
    assert "this memory is read-only" in reader.error("add_memory", text="I like gin")
    assert "User likes tea" in reader.texts()


LOCKED_UP = """
import os, sys
import doubles
real = os.access  # as for somebody who may not write there, which chmod can't bring about for the superuser
os.access = lambda path, mode, **more: not mode & os.W_OK and real(path, mode, **more)
doubles.main()
"""


def test_a_store_that_can_not_be_written_to_is_served_read_only(own_store: Store) -> None:
    before = own_store.path.read_bytes()
    words = ["-c", LOCKED_UP, *own_store.words("--tools", "core")[2:]]
    parameters = StdioServerParameters(command=sys.executable, args=words, env=environment(own_store.home))
    with session(lambda: stdio_client(parameters)) as reader:
        assert_read_only(reader)
    done = subprocess.run(
        [sys.executable, *words], env=environment(own_store.home), input="", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
    assert f"{own_store.path} or its folder can't be written to" in done.stderr
    assert own_store.path.read_bytes() == before


def test_two_sessions_on_one_file(store: Store, web: Web) -> None:
    with session(over_stdio(store)) as one, session(over_http(web), "auto") as other, session(over_http(web)) as third:
        memory_id = one.call("list_memories")["results"][0]["id"]
        one.call("update_memory", memory_id=memory_id, text="User owns a ship")
        assert other.texts() == third.texts() == ["User owns a ship", "User likes tea"]
        other.call("update_memory", memory_id=memory_id, text="User owns a boat")
        assert one.texts() == ["User owns a boat", "User likes tea"]


def test_a_slow_call_holds_up_no_other(full: Session) -> None:
    ended: list[str] = []

    async def both() -> None:
        import anyio

        async def asked(name: str, arguments: dict[str, Any]) -> None:
            await full.client.call_tool(name, arguments)
            ended.append(name)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(asked, "search_memories", {"query": "read this slowly"})
            await anyio.sleep(0.2)
            tasks.start_soon(asked, "list_memories", {})

    full.ask(both)
    assert ended == ["list_memories", "search_memories"]


# -------------------------------------------------------------------- by hand over stdin and stdout


def request(number: int, method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": number, "method": method, "params": params}) + "\n"


HELLO = (
    request(
        0, "initialize", protocolVersion="2025-06-18", capabilities={}, clientInfo={"name": "by hand", "version": "1"}
    )
    + json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"})
    + "\n"
)


@contextlib.contextmanager
def by_hand(store: Store, *words: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        store.words(*words),
        env=environment(store.home, **more),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def answered(process: subprocess.Popen[str], *requests: str) -> list[dict[str, Any]]:
    """Send, and read as many lines as there are ids in it."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("".join(requests))
    process.stdin.flush()
    count = "".join(requests).count('"id"')
    return [json.loads(process.stdout.readline()) for _ in range(count)]


def test_nothing_but_the_protocol_is_on_stdout(own_store: Store) -> None:
    with by_hand(own_store, LOUD="1") as process:
        answers = answered(
            process,
            HELLO,
            request(1, "tools/call", name="search_memories", arguments={"query": "tea"}),
            request(2, "tools/call", name="update_memory", arguments={"memory_id": own_store.tea, "text": "Likes rum"}),
        )
        out, err = process.communicate(timeout=DEADLINE_S)
    assert sorted(each["id"] for each in answers) == [0, 1, 2]
    assert all("result" in each for each in answers)
    assert out == ""
    for noise in ("noise on opening", "noise from below", "noise from Python"):
        assert noise in err
    assert "rum" not in err
    assert "tea" not in err
    assert process.returncode == 0


def test_lines_that_are_no_protocol_end_nothing_and_show_nothing(own_store: Store) -> None:
    nonsense = ["the red key\n", "[]\n", '{"jsonrpc": "2.0"}\n', "\x00\n"]
    wrong = request(1, "tools/call", name="search_memories", arguments="the red key")
    with by_hand(own_store) as process:
        answers = answered(process, HELLO, *nonsense, wrong, request(2, "ping"))
        _, err = process.communicate(timeout=DEADLINE_S)
    assert {each["id"]: "error" in each for each in answers} == {0: False, 1: True, 2: False}
    assert "key" not in json.dumps(answers)
    assert err == ""
    assert process.returncode == 0


def test_a_bug_is_told_without_words_or_trace(own_store: Store) -> None:
    break_it = "import doubles, localmem.surface as s; s.Surface.search = lambda self, q, **k: {}[q]; doubles.main()"
    command = [sys.executable, "-c", break_it, *own_store.words()[2:]]
    requests = HELLO + request(1, "tools/call", name="search_memories", arguments={"query": "the red key"})
    process = subprocess.Popen(
        command,
        env=environment(own_store.home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        (_, answer) = answered(process, requests)
        _, err = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    assert answer["result"]["isError"] is True
    assert "KeyError" in answer["result"]["content"][0]["text"]
    assert "red key" not in json.dumps(answer) + err
    assert "Traceback" not in err
    assert err.startswith("KeyError in ")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_it_with_stdin_still_open(own_store: Store, number: int, code: int) -> None:
    with by_hand(own_store) as process:
        answered(process, HELLO)
        process.send_signal(number)
        assert process.wait(timeout=DEADLINE_S) == code


VANISHING = """
import os, subprocess, sys, time
to_server, request = int(sys.argv[1]), sys.argv[2]
os.write(to_server, request.encode())
print("sent", flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("text", ["User likes coffee, slowly", "User likes coffee for ever"])
def test_a_client_that_is_killed_during_a_call(own_store: Store, text: str) -> None:
    """The server is this test's child, its pipes lead to a client that is killed while the server works for it."""
    arguments = {"memory_id": own_store.tea, "text": text}
    requests = HELLO + request(1, "tools/call", name="update_memory", arguments=arguments)
    server_in, to_server = os.pipe()
    from_server, server_out = os.pipe()
    environ = environment(own_store.home, LOUD="1")  # to hear when it has begun
    server = subprocess.Popen(own_store.words(), env=environ, stdin=server_in, stdout=server_out, stderr=-1, text=True)
    client = subprocess.Popen(
        [sys.executable, "-c", VANISHING, str(to_server), requests],
        pass_fds=(to_server, from_server),
        stdout=subprocess.PIPE,
        text=True,
    )
    for end in (server_in, to_server, server_out):
        os.close(end)
    try:
        assert client.stdout is not None
        assert client.stdout.readline() == "sent\n"
        assert server.stderr is not None
        while server.stderr.readline() != "noise from Python\n":
            pass
        os.close(from_server)
        client.kill()
        client.wait()
        _, err = server.communicate(timeout=DEADLINE_S)
    finally:
        server.kill()
        client.kill()
    assert (server.returncode, err) == (0, "")
    with open_store(own_store.path) as memory:
        assert memory.check() == []
        assert memory.verify_audit()["problems"] == []
        versions = [each["new_memory"] for each in memory.history(own_store.tea)]
        assert versions == (["User likes tea", text] if "slowly" in text else ["User likes tea"])


# -------------------------------------------------------------------- by hand over HTTP

INITIALIZE = json.loads(HELLO.splitlines()[0])
OWN = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "Authorization": f"Bearer {TOKEN}",
}


def sent(web: Web, method: str = "POST", path: str = "/mcp", body: Any = INITIALIZE, **headers: str | None) -> Any:
    """One request; ``headers`` replace or leave out those of a client in order. Returns (status, body)."""
    chosen = {**OWN, **{name.replace("_", "-"): value for name, value in headers.items()}}
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=DEADLINE_S)
    try:
        content = body if isinstance(body, bytes) else json.dumps(body)
        connection.request(method, path, content, {name: value for name, value in chosen.items() if value is not None})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def test_who_knows_the_token_is_let_in(web: Web) -> None:
    status, body = sent(web)
    assert status == 200
    assert json.loads(body)["result"]["serverInfo"]["name"] == "localmem"
    for host in ("localhost", "[::1]"):
        assert sent(web, Host=f"{host}:{web.port}")[0] == 200
    assert sent(web, Origin=f"http://localhost:{web.port}")[0] == 200
    assert sent(web, Authorization=f"bearer {TOKEN}")[0] == 200


@pytest.mark.parametrize("method", ["GET", "POST", "DELETE", "OPTIONS", "PUT"])
@pytest.mark.parametrize("path", ["/mcp", "/", "/mcp/", "/openapi.json"])
@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", f"Bearer {TOKEN}x", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN[:-1]}"]
)
def test_without_the_token_nobody_is(web: Web, method: str, path: str, given: str | None) -> None:
    status, body = sent(web, method, path, Authorization=given)
    assert status == 401
    assert "Bearer" in body
    assert TOKEN not in body


def test_a_name_that_leads_here_is_no_way_in(web: Web) -> None:
    """DNS rebinding: a page's own name resolves to this machine, so Host is the page's."""
    for host in ("evil.example", f"evil.example:{web.port}", "127.0.0.1", f"127.0.0.1:{web.port + 1}", "", "localhost"):
        assert sent(web, Host=host)[0] == 421, host


def test_web_pages_are_no_way_in(web: Web) -> None:
    for origin in ("https://evil.example", "null", f"https://127.0.0.1:{web.port}", "http://localhost", "file://"):
        assert sent(web, Origin=origin)[0] == 403, origin
    status, body = sent(web, "OPTIONS", Origin="https://evil.example", Access_Control_Request_Method="POST")
    assert (status, "Access-Control" in body) == (403, False)


def test_other_paths_lead_to_the_right_one(web: Web) -> None:
    for path in ("/", "/mcpx", "/openapi.json", "/sse"):
        for method in ("GET", "POST"):
            status, body = sent(web, method, path)
            assert (status, "/mcp" in body) == (404, True)
            assert sent(web, method, path, Host="evil.example")[0] == 421
            assert sent(web, method, path, Origin="https://evil.example")[0] == 403


def test_a_body_has_a_limit(web: Web) -> None:
    assert sent(web, body=b"x" * (5 << 20))[0] == 413
    assert sent(web)[0] == 200


def test_a_made_up_session_is_refused(web: Web) -> None:
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    status, _ = sent(web, body=body, Mcp_Session_Id="0" * 32, Mcp_Protocol_Version="2025-06-18")
    assert status == 404


def test_it_listens_on_loopback_only(web: Web, own_store: Store) -> None:
    listening = Path(f"/proc/{web.process.pid}/net/tcp")
    if listening.exists():
        rows = [line.split() for line in listening.read_text().splitlines()[1:]]
        mine = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == web.port}
        assert mine == {"0100007F"}
    done = run(own_store, "--http", "--port", "0", "--host", "0.0.0.0")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this machine alone" in done.stderr


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "192.168.1.1", "8.8.8.8", "example.org", "", "127.0.0.1.example.org"]
)
def test_no_other_address_is_listened_at(host: str) -> None:
    with pytest.raises(InvalidInputError, match="this machine alone"):
        access.listen(host, 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.0.0.2", "::1"])
def test_loopback_addresses_are(host: str) -> None:
    try:
        listening = access.listen(host, 0)
    except InvalidInputError as error:  # a machine without IPv6
        assert host == "::1"
        pytest.skip(str(error))
    with listening:
        assert access.authority(listening) in access.authorities(listening)


def run(store: Store, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        store.words(*words),
        env=environment(store.home, **more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )


def test_tokens_are_made_kept_and_checked(own_store: Store, tmp_path: Path) -> None:
    with serving(own_store, token=None) as web:
        (token,) = [line.removeprefix("token: ") for line in web.said if line.startswith("token: ")]
        assert len(token) >= 43
        assert sent(web, Authorization=f"Bearer {token}")[0] == 200
        assert sent(web)[0] == 401
    place = tmp_path / "token"
    with serving(own_store, "--token-file", str(place), token=None) as web:
        kept = place.read_text().strip()
        assert place.stat().st_mode & 0o777 == 0o600
        assert kept not in "".join(web.said)
        assert sent(web, Authorization=f"Bearer {kept}")[0] == 200
        taken = run(own_store, "--http", "--port", str(web.port), LOCALMEM_MCP_TOKEN=TOKEN)
        assert (taken.returncode, "--port" in taken.stderr) == (1, True)
    place.write_text("short")
    for words, more in ((("--token-file", str(place)), {}), ((), {"LOCALMEM_MCP_TOKEN": "has a blank in its middle"})):
        refused = run(own_store, "--http", "--port", "0", *words, **more)
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "16 ASCII characters" in refused.stderr
        assert "blank in" not in refused.stderr


# -------------------------------------------------------------------- misuse, and what to paste


def test_misuse(own_store: Store) -> None:
    for words in (
        ("--token-file", "x"), ("--port", "9000"), ("--port", "8765"), ("--host", "localhost"),
        ("--port", "9000", "--print-config", "cursor"), ("--ask-key",), ("--tools", "all"), ("--port", "70000", "--http"),
    ):  # fmt: skip
        done = run(own_store, *words)
        assert (done.returncode, done.stdout) == (2, "")
    missing = [*COMMAND, "mcp", "--read-only", "--file", str(own_store.home / "none.db")]
    done = subprocess.run(missing, env=environment(own_store.home), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no file" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="descriptors are closed with the shell's words")
@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_without_a_client_at_the_other_end_it_says_so(own_store: Store, closed: str) -> None:
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *own_store.words()]
    done = subprocess.run(
        command, env=environment(own_store.home), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "there is no stdin or stdout" in line


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("none-such.gguf", "no model file at"),
        ("http://192.0.2.1:8080/v1", "is not this machine"),
        ("ftp://127.0.0.1/v1", "no http(s) host"),
    ],
)
def test_a_generator_that_can_not_be_one_is_refused_at_once(own_store: Store, spec: str, said: str) -> None:
    for words, more in ((("--generator", spec), {}), ((), {"LOCALMEM_GENERATOR": spec})):
        for way in ((), ("--http", "--port", "0")):
            done = run(own_store, *words, *way, **more)
            assert (done.returncode, done.stdout) == (1, "")
            assert len(done.stderr.splitlines()) == 1
            assert said in done.stderr


def test_a_generator_that_can_be_one_is_not_loaded(own_store: Store) -> None:
    model = own_store.home / "model.gguf"
    model.write_bytes(b"GGUF and nothing behind it")
    for spec in (str(model), "http://127.0.0.1:9/v1#any", "none"):
        done = run(own_store, "--generator", spec)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    model.write_bytes(b"no model at all")
    assert "is not a GGUF file" in run(own_store, "--generator", str(model)).stderr


def test_without_the_extra_it_says_what_to_install(own_store: Store) -> None:
    hidden = "import sys; sys.modules['mcp'] = None; import doubles; doubles.main()"
    command = [sys.executable, "-c", hidden, *own_store.words()[2:]]
    environ = environment(own_store.home)
    done = subprocess.run(command, env=environ, stdin=-3, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "pip install 'localmem[mcp]'" in done.stderr


WHERE = {
    "claude": ("mcpServers",),
    "claude-code": ("mcpServers",),
    "cline": ("mcpServers",),
    "codex": ("mcp_servers",),
    "cursor": ("mcpServers",),
    "gemini": ("mcpServers",),
    "lmstudio": ("mcpServers",),
    "opencode": ("mcp",),
    "vscode": ("servers",),
    "windsurf": ("mcpServers",),
    "zed": ("context_servers",),
}


@pytest.mark.parametrize("client_name", WHERE)
def test_what_is_printed_for_a_client_starts_the_server(own_store: Store, client_name: str) -> None:
    done = run(own_store, "--tools", "full", "--read-only", "--print-config", client_name)
    assert done.returncode == 0
    assert done.stderr.startswith("put this into ")
    shape = (tomllib.loads if client_name == "codex" else json.loads)(done.stdout)
    for key in WHERE[client_name]:
        shape = shape[key]
    entry = shape["localmem"]
    whole = entry["command"] if client_name == "opencode" else [entry["command"], *entry["args"]]
    assert os.path.isabs(whole[0])
    assert whole[whole.index("mcp") :] == [
        "mcp", "--file", str(own_store.path), "--user", "ann", "--tools", "full", "--read-only",
    ]  # fmt: skip
    assert entry["environment" if client_name == "opencode" else "env"] == {"LOCALMEM_HOME": str(own_store.home)}
    as_json = json.loads(run(own_store, "--print-config", client_name, "--json").stdout)
    assert as_json["client"] == client_name
    assert as_json["file"] in done.stderr


def test_the_printed_command_is_one_that_runs(own_store: Store) -> None:
    done = run(own_store, "--print-config", "cursor", "--agent", "cook")
    entry = json.loads(done.stdout)["mcpServers"]["localmem"]
    assert entry["args"][-4:] == ["--user", "ann", "--agent", "cook"]
    version = subprocess.run(
        [entry["command"], *entry["args"][: entry["args"].index("mcp")], "--version"],
        env=environment(own_store.home), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert version.stdout.startswith("localmem ")


# -- what a client does not hand on to the server that it starts


def printed(store: Store, *words: str, **more: str) -> list[str]:
    """The arguments that a client is to start the server with."""
    done = run(store, "--print-config", "cursor", *words, **more)
    assert done.returncode == 0, done.stderr
    arguments: list[str] = json.loads(done.stdout)["mcpServers"]["localmem"]["args"]
    return arguments[arguments.index("mcp") + 5 :]  # after the file and the user


def test_what_is_printed_carries_what_the_environment_says(own_store: Store) -> None:
    here = os.getcwd()
    told = printed(
        own_store,
        LOCALMEM_GENERATOR="models/small.gguf",
        LOCALMEM_KEY_FILE="store.key",
        LOCALMEM_AUDIT_KEYCHAIN="audit",
        LOCALMEM_CHECKPOINT="mark",
        LOCALMEM_ACTOR="laptop",
    )
    assert told == [
        "--key-file", f"{here}/store.key", "--checkpoint", f"{here}/mark", "--audit-keychain", "audit",
        "--generator", f"{here}/models/small.gguf", "--actor", "laptop",
    ]  # fmt: skip
    told = printed(own_store, LOCALMEM_KEYCHAIN="store", LOCALMEM_AUDIT_KEY_FILE="audit.key")
    assert told == ["--audit-key-file", f"{here}/audit.key", "--keychain", "store"]
    for spec in ("http://127.0.0.1:8080/v1#small", "none"):
        assert printed(own_store, LOCALMEM_GENERATOR=spec) == ["--generator", spec]


def test_what_is_given_counts_more_than_the_environment(own_store: Store) -> None:
    told = printed(
        own_store, "--keychain", "mine", "--generator", "none",
        LOCALMEM_KEY_FILE="other.key", LOCALMEM_GENERATOR="other.gguf", LOCALMEM_KEY="a passphrase of the shell",
    )  # fmt: skip
    assert told == ["--keychain", "mine", "--generator", "none"]


def test_a_key_that_can_not_be_printed_is_refused(own_store: Store) -> None:
    for words, more in ((("--ask-key",), {}), ((), {"LOCALMEM_KEY": "a passphrase of the shell"})):
        done = run(own_store, "--print-config", "cursor", *words, **more)
        assert (done.returncode, done.stdout) == (2, "")
        assert "--key-file" in done.stderr
        assert "passphrase of" not in done.stderr
    both = run(own_store, "--print-config", "cursor", LOCALMEM_KEY_FILE="a", LOCALMEM_KEYCHAIN="b")
    assert (both.returncode, "only one of LOCALMEM_KEY_FILE and LOCALMEM_KEYCHAIN" in both.stderr) == (2, True)


URL = "http://127.0.0.1:8765/mcp"
HEADERS = {"Authorization": f"Bearer {TOKEN}"}
REMOTE = {
    "claude-code": {"type": "http", "url": URL, "headers": HEADERS},
    "cline": {"type": "streamableHttp", "url": URL, "headers": HEADERS},
    "codex": {"url": URL, "http_headers": HEADERS},
    "cursor": {"url": URL, "headers": HEADERS},
    "gemini": {"httpUrl": URL, "headers": HEADERS},
    "lmstudio": {"url": URL, "headers": HEADERS},
    "opencode": {"type": "remote", "enabled": True, "url": URL, "headers": HEADERS},
    "vscode": {"type": "http", "url": URL, "headers": HEADERS},
    "windsurf": {"serverUrl": URL, "headers": HEADERS},
    "zed": {"url": URL, "headers": HEADERS},
}


@pytest.mark.parametrize("client_name", REMOTE)
def test_what_is_printed_for_a_client_reaches_the_server_over_http(own_store: Store, client_name: str) -> None:
    done = run(own_store, "--http", "--print-config", client_name, LOCALMEM_MCP_TOKEN=TOKEN)
    assert done.returncode == 0
    shape = (tomllib.loads if client_name == "codex" else json.loads)(done.stdout)
    for key in WHERE[client_name]:
        shape = shape[key]
    assert shape["localmem"] == REMOTE[client_name]


def test_the_printed_address_is_one_that_answers(own_store: Store, tmp_path: Path) -> None:
    place = str(tmp_path / "token")
    with serving(own_store, "--token-file", place, token=None) as web:
        words = ("--http", "--token-file", place, "--port", str(web.port), "--host", "localhost")
        entry = json.loads(run(own_store, *words, "--print-config", "vscode").stdout)["servers"]["localmem"]
        assert entry["url"] == f"http://127.0.0.1:{web.port}/mcp"
        assert sent(web, **entry["headers"])[0] == 200


def test_what_can_not_be_reached_over_http_is_not_printed(own_store: Store) -> None:
    known = {"LOCALMEM_MCP_TOKEN": TOKEN}
    for words, more, said in (
        (("claude",), known, "stdio"),
        (("cursor", "--port", "0"), known, "--port 0"),
        (("cursor",), {}, "--token-file"),
    ):
        done = run(own_store, "--http", "--print-config", *words, **more)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    done = run(own_store, "--http", "--print-config", "cursor", "--host", "0.0.0.0", **known)
    assert (done.returncode, "this machine alone" in done.stderr) == (1, True)
