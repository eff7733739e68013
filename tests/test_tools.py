"""The tools of a model: what it is shown, what it may send, what it gets back, and whose memory it can reach."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import Opener
from doubles import Listener, texts
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from localmem.config import Limits
from localmem.errors import ClosedError, InvalidInputError, ScopeError
from localmem.memory import BoundMemory, Memory
from localmem.tools import SETS, STYLES, TOOLS

UNKNOWN = "00000000-0000-7000-8000-000000000000"
NAMES = [each.name for each in TOOLS]
CORE = [each.name for each in TOOLS if not each.full]
BY_NAME = {each.name: each for each in TOOLS}


@dataclass(frozen=True)
class Life:
    """A store that ann and bob both use."""

    memory: Memory
    ann: BoundMemory
    tea: str  # ann's, once changed
    boat: str  # ann's
    episode: str  # ann's
    bobs: str
    bobs_episode: str

    def call(self, name: str, /, tools: str = "full", **arguments: Any) -> dict[str, Any]:
        return self.ann.dispatch(name, arguments, tools)

    def error(self, name: str, arguments: Any = None, tools: str = "full") -> dict[str, str]:
        answer = self.ann.dispatch(name, arguments, tools)
        assert set(answer) == {"error"}, answer
        assert set(answer["error"]) == {"type", "message"}
        return answer["error"]

    @property
    def known(self) -> list[str]:
        return texts(self.memory.get_all(user_id="ann"))


@pytest.fixture
def life(story: Memory) -> Life:
    said = {"metadata": {"topic": "drinks"}, "user_id": "ann"}
    tea = story.add("fact: User likes green tea", timestamp="2025-01-10", **said)
    story.add("fact: User likes black tea | changes: tea", timestamp="2025-02-10", user_id="ann")
    boat = story.add("fact: User owns a boat", user_id="ann")
    bobs = story.add("fact: User likes rum", user_id="bob")
    return Life(
        story,
        story.bound(user_id="ann"),
        tea["results"][0]["id"],
        boat["results"][0]["id"],
        boat["episode_id"],
        bobs["results"][0]["id"],
        bobs["episode_id"],
    )


# what each tool is called with, and what a user would see in the answer
CALLS: dict[str, tuple[Callable[[Life], dict[str, Any]], Callable[[Life, dict[str, Any]], bool]]] = {
    "add_memory": (
        lambda life: {"text": "fact: User lives in Porto", "role": "user", "when": "2025-02-01"},
        lambda life, answer: answer["status"] in ("waiting", "done"),
    ),
    "search_memories": (
        lambda life: {"query": "Which tea?", "limit": 5, "threshold": 0, "when": "2025-01-20"},
        lambda life, answer: answer["results"][0]["memory"] == "User likes green tea",
    ),
    "get_memory": (
        lambda life: {"memory_id": life.boat},
        lambda life, answer: (answer["memory"], answer["version"]) == ("User owns a boat", 1),
    ),
    "list_memories": (
        lambda life: {"limit": 1, "offset": 1},
        lambda life, answer: (
            [each["memory"] for each in answer["results"]] == ["User likes black tea"]
            and (answer["total"], answer["more"]) == (2, False)
        ),
    ),
    "update_memory": (
        lambda life: {"memory_id": life.boat, "text": "User owns a ship"},
        lambda life, answer: answer["results"][0]["event"] == "UPDATE" and "User owns a ship" in life.known,
    ),
    "delete_memory": (
        lambda life: {"memory_id": life.boat},
        lambda life, answer: answer["results"][0]["event"] == "DELETE" and "User owns a boat" not in life.known,
    ),
    "memory_history": (
        lambda life: {"memory_id": life.tea, "limit": 10},
        lambda life, answer: (
            [each["memory"] for each in answer["results"]] == ["User likes green tea", "User likes black tea"]
            and answer["results"][0]["quotes"] == ["fact: User likes green tea"]
            and answer["results"][0]["valid_to"] == "2025-02-10T00:00:00Z"
        ),
    ),
    "memory_status": (
        lambda life: {"episode_id": life.episode},
        lambda life, answer: answer["state"] == "done" and answer["results"][0]["memory"] == "User owns a boat",
    ),
    "memory_context": (
        lambda life: {"query": "boat", "max_tokens": 100},
        lambda life, answer: answer["context"].startswith("<memories>") and "User owns a boat" in answer["context"],
    ),
    "explain_search": (
        lambda life: {"query": "boat", "limit": 2},
        lambda life, answer: answer["results"][0]["signals"]["vector_rank"] == 1,
    ),
    "memory_decisions": (
        lambda life: {"episode_id": life.episode, "unsupported": False, "limit": 3},
        lambda life, answer: [each["event"] for each in answer["results"]] == ["ADD"] and answer["total"] == 1,
    ),
    "delete_memories": (
        lambda life: {"memory_ids": f"{life.boat}, {life.tea}"},
        lambda life, answer: len(answer["results"]) == 2 and life.known == [],
    ),
    "delete_all_memories": (
        lambda life: {"confirm": True},
        lambda life, answer: answer == {"deleted": 2} and life.known == [],
    ),
}
CALLS["add_memories"], CALLS["search_memory"] = CALLS["add_memory"], CALLS["search_memories"]


# -------------------------------------------------------------------- what a model is shown


@pytest.mark.parametrize("name", NAMES)
def test_a_tools_schemas_are_flat_and_closed(name: str) -> None:
    tool = BY_NAME[name]
    Draft202012Validator.check_schema(tool.input_schema)
    Draft202012Validator.check_schema(tool.output_schema)
    shape = tool.input_schema
    assert shape["additionalProperties"] is tool.output_schema["additionalProperties"] is False
    assert len(shape["properties"]) <= 5
    assert set(shape["required"]) <= set(shape["properties"])
    for parameter, each in shape["properties"].items():
        assert each["type"] in ("string", "integer", "number", "boolean")
        assert each["description"].endswith(".")
        assert parameter not in ("user_id", "agent_id", "run_id", "session_id")
    assert len(tool.description) <= 250
    for parameter in tool.parameters:  # the example of an error message has to be right itself
        if parameter.required:
            Draft202012Validator(shape["properties"][parameter.name]).validate(parameter.example)


def test_styles_and_sets(life: Life) -> None:
    openai, anthropic = (life.ann.tools_schema(style) for style in STYLES)
    assert [each["function"]["name"] for each in openai] == [each["name"] for each in anthropic] == CORE
    assert {each["type"] for each in openai} == {"function"}
    assert openai[0]["function"]["parameters"] == anthropic[0]["input_schema"] == BY_NAME["add_memory"].input_schema
    assert [each["name"] for each in life.ann.tools_schema("anthropic", "full")] == NAMES
    assert json.loads(json.dumps(openai)) == openai
    assert {"add_memory", "search_memories", "memory_context", "search_memory", "delete_all_memories"} <= set(NAMES)


def test_programmers_mistakes_raise(life: Life, open_memory: Opener) -> None:
    with pytest.raises(InvalidInputError, match="openai, anthropic"):
        life.ann.tools_schema("gemini")
    with pytest.raises(InvalidInputError, match=", ".join(SETS)):
        life.ann.tools_schema("openai", "all")
    with pytest.raises(InvalidInputError, match=", ".join(SETS)):
        life.ann.dispatch("memory_status", {}, "all")
    for call in (life.memory.tools_schema, lambda: life.memory.dispatch("memory_status", {})):
        with pytest.raises(ScopeError, match=r"bound\("):
            call()
    with open_memory("other.db") as other:
        handle = other.bound(user_id="ann")
    with pytest.raises(ClosedError):
        handle.dispatch("list_memories", {})


# -------------------------------------------------------------------- every tool


@pytest.mark.parametrize("name", NAMES)
def test_every_tool_does_its_work_and_answers_in_its_shape(life: Life, name: str) -> None:
    arguments, is_right = CALLS[name]
    given = arguments(life)
    Draft202012Validator(BY_NAME[name].input_schema).validate(given)
    answer = life.ann.dispatch(name, json.dumps(given), "full")
    assert json.loads(json.dumps(answer)) == answer
    Draft202012Validator(BY_NAME[name].output_schema).validate(answer)
    assert is_right(life, answer), answer
    assert texts(life.memory.get_all(user_id="bob")) == ["User likes rum"]


@pytest.mark.parametrize("name", [each.name for each in TOOLS if not each.input_schema["required"]])
def test_tools_without_needs_take_nothing(life: Life, name: str) -> None:
    for nothing in (None, {}, "", "{}", "null"):
        Draft202012Validator(BY_NAME[name].output_schema).validate(life.ann.dispatch(name, nothing, "full"))


def test_what_is_added_is_found_at_once_and_read_later(life: Life) -> None:
    added = life.call("add_memory", text="fact: User plays the cello", when="2025-02-20")
    found = life.call("search_memories", query="cello")["results"][0]
    assert "User plays the cello" in found["memory"]
    assert life.memory.flush(timeout=60)["flushed"]
    status = life.call("memory_status", episode_id=added["episode_id"])
    assert (status["state"], status["said_at"][:10]) == ("done", "2025-02-20")
    assert [each["memory"] for each in status["results"]] == ["User plays the cello"]
    assert "User plays the cello" in life.known
    assert life.call("memory_status")["waiting"] == 0


def test_what_the_model_said_itself_is_the_assistants(life: Life) -> None:
    life.call("add_memory", text="fact: User was shown a recipe", role="AI")
    assert life.memory.flush(timeout=60)["flushed"]
    (found,) = [each for each in life.memory.get_all(user_id="ann")["results"] if "recipe" in each["memory"]]
    assert found["actor"] == "assistant"


def test_a_turn_that_waits_is_marked(open_memory: Opener) -> None:
    memory = open_memory(generator=Listener(fail=True))
    ann = memory.bound(user_id="ann")
    added = ann.dispatch("add_memory", {"text": "I play the cello"})
    (found,) = ann.dispatch("search_memories", {"query": "cello"})["results"]
    assert (found["id"], found["turn"], found["memory"]) == (None, True, "I play the cello")
    Draft202012Validator(BY_NAME["search_memories"].output_schema).validate({"results": [found]})
    status = ann.dispatch("memory_status", {"episode_id": added["episode_id"]})
    assert status["state"] == "waiting"
    assert added["hint"].startswith("Recorded, and found by search_memories at once.")
    whole = ann.dispatch("memory_status")
    assert whole["waiting"] == 1
    for answer in (status, whole):
        Draft202012Validator(BY_NAME["memory_status"].output_schema).validate(answer)
        assert answer["hint"]


def test_without_a_model_words_are_kept_and_the_user_is_told_why(open_memory: Opener, tmp_path: Path) -> None:
    memory = open_memory(generator=tmp_path / ("a" * 200) / "none.gguf")  # a long way to the cure at its end
    ann = memory.bound(user_id="ann")
    ann.dispatch("add_memory", {"text": "I play the cello"})
    began = time.monotonic()
    while "can't be read now" not in (told := ann.dispatch("memory_status"))["hint"]:
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    assert "none.gguf" in told["hint"]
    assert len(told["hint"]) > 300
    assert told["hint"].endswith("install the default with: localmem models install, or give another path")
    assert told["waiting"] == 1
    assert texts(ann.dispatch("search_memories", {"query": "cello"})) == ["I play the cello"]
    Draft202012Validator(BY_NAME["memory_status"].output_schema).validate(told)
    again = ann.dispatch("add_memory", {"text": "Please forget the cello"})
    assert again["hint"].startswith("Recorded, and found by search_memories at once. It can't be read now.")
    status = ann.dispatch("memory_status", {"episode_id": again["episode_id"]})
    for answer in (again, status):
        assert told["hint"].partition("Tell the user: ")[2] in answer["hint"]
    assert status["error"] in (None, "The model's file is not there.")
    ann.delete_all()  # what waits is not read any more, and the model is missing all the same
    whole = ann.dispatch("memory_status")
    assert (whole["waiting"], "Nothing waits, but" in whole["hint"], "none.gguf" in whole["hint"]) == (0, True, True)


def test_a_paused_reading_is_told(memory: Memory) -> None:
    ann = memory.bound(user_id="ann")
    memory.pause_worker()
    added = ann.dispatch("add_memory", {"text": "I play the cello"})
    status = ann.dispatch("memory_status", {"episode_id": added["episode_id"]})
    for answer in (added, status, ann.dispatch("memory_status")):
        assert "paused" in answer["hint"]


def test_what_added_nothing_is_told_as_that(life: Life) -> None:
    for text in ("fact: User owns a boat", "What day is it?"):
        added = life.call("add_memory", text=text)
        assert life.memory.flush(timeout=60)["flushed"]
        status = life.call("memory_status", episode_id=added["episode_id"])
        assert (status["state"], status["results"]) == ("done", [])
        assert status["hint"].startswith("Nothing new was kept of it")


def test_a_failure_is_told_as_a_sentence(open_memory: Opener) -> None:
    ann = open_memory(generator=Listener(fail=True)).bound(user_id="ann")
    added = ann.dispatch("add_memory", {"text": "I play the cello"})
    began = time.monotonic()
    while (told := ann.dispatch("memory_status", {"episode_id": added["episode_id"]}))["error"] is None:
        assert time.monotonic() - began < 60
        time.sleep(0.05)
    assert told["error"].endswith(".")
    assert " " in told["error"]


def test_a_search_that_finds_nothing_of_use_says_so(life: Life) -> None:
    nobody = life.memory.bound(user_id="nobody")
    shape = Draft202012Validator(BY_NAME["search_memories"].output_schema)
    for answer, hint in (
        (nobody.dispatch("search_memories", {"query": "boat"}), "Nothing that is remembered fits this well."),
        (life.call("search_memories", query="zebra", threshold=1), "Nothing that is remembered fits this well."),
        (
            life.call("search_memories", query="tea", when="2024-12-01"),
            "Nothing was known to be true on 2024-12-01 that fits.",
        ),
    ):
        shape.validate(answer)
        assert (answer["results"], answer["hint"]) == ([], hint)
    assert "hint" not in life.call("search_memories", query="User owns a boat")
    poor = life.call("search_memories", query="xylophone")
    assert 0 <= max(each["score"] for each in poor["results"]) < 0.05
    assert poor["hint"] == "Nothing that is remembered fits this well."


def test_what_is_told_of_a_lock_is_for_a_model(open_memory: Opener) -> None:
    memory = open_memory(limits=Limits(lock_wait_s=0.2))
    memory_id = memory.add("tea", infer=False, user_id="ann")["results"][0]["id"]
    with open_memory()._engine.store.write():
        answer = memory.bound(user_id="ann").dispatch("delete_memory", {"memory_id": memory_id})
    assert answer["error"]["type"] == "LockedError"
    assert answer["error"]["message"].endswith("; try again")


def test_pages_show_each_memory_once_newest_first(memory: Memory) -> None:
    for number in range(45):
        memory.add(f"note {number}", infer=False, user_id="ann")
    ann, seen, offset = memory.bound(user_id="ann"), list[str](), 0
    while True:
        page = ann.dispatch("list_memories", {"offset": offset})
        assert page["total"] == 45
        seen += [each["memory"] for each in page["results"]]
        if not page["more"]:
            break
        assert page["next_offset"] == len(seen) == offset + 20
        offset = page["next_offset"]
    assert seen == [f"note {number}" for number in reversed(range(45))]
    beyond = ann.dispatch("list_memories", {"offset": 100})
    assert (beyond["results"], beyond["total"], beyond["more"]) == ([], 45, False)


def test_page_of_a_memory_goes_either_way(memory: Memory) -> None:
    for number in range(3):
        memory.add(f"note {number}", infer=False, user_id="ann")
    assert texts(memory.page(user_id="ann", limit=2)) == ["note 0", "note 1"]
    assert texts(memory.page(user_id="ann", limit=2, newest_first=True)) == ["note 2", "note 1"]
    assert memory.page(user_id="ben") == {"results": [], "total": 0, "offset": 0, "more": False}
    for wrong in ({"limit": -1}, {"offset": -1}, {"offset": "1"}):
        with pytest.raises(InvalidInputError):
            memory.page(user_id="ann", **wrong)


def test_long_texts_are_cut_in_lists_and_whole_by_id(memory: Memory) -> None:
    text = "cello " * 2_000
    memory_id = memory.add(text, infer=False, user_id="ann")["results"][0]["id"]
    ann = memory.bound(user_id="ann")
    for name in ("search_memories", "list_memories"):
        (shown,) = ann.dispatch(name, {"query": "cello"} if name == "search_memories" else {})["results"]
        assert len(shown["memory"]) == 2_000
        assert shown["memory"].endswith("[…]")
    assert ann.dispatch("get_memory", {"memory_id": memory_id})["memory"] == text


def test_long_histories_show_their_end(life: Life) -> None:
    for number in range(30):
        life.ann.update(life.boat, f"User owns {number} boats")
    told = life.call("memory_history", memory_id=life.boat, limit=3)
    assert told["total"] == 31
    assert [each["memory"] for each in told["results"]] == [f"User owns {number} boats" for number in (27, 28, 29)]


def test_what_a_page_showed_is_in_the_audit_chain(open_memory: Opener) -> None:
    memory = open_memory(audit_reads=True)
    memory_id = memory.add("tea", infer=False, user_id="ann")["results"][0]["id"]
    memory.bound(user_id="ann", actor="model").dispatch("list_memories")
    entry = memory.audit_log(memory_id=memory_id)[-1]
    assert (entry["op"], entry["actor"]) == ("page", "model")


# -------------------------------------------------------------------- whose memory


TAKES_IDS = [
    (each.name, parameter.name) for each in TOOLS for parameter in each.parameters if parameter.kind in ("id", "ids")
]


@pytest.mark.parametrize(("name", "parameter"), TAKES_IDS)
def test_a_foreign_id_is_answered_like_an_unknown_one(life: Life, name: str, parameter: str) -> None:
    foreign = life.bobs_episode if parameter == "episode_id" else life.bobs
    before = life.memory.history(life.bobs)
    more = {"text": "User likes gin"} if name == "update_memory" else {}
    answers = [life.ann.dispatch(name, {parameter: each, **more}, "full") for each in (foreign, UNKNOWN)]
    told = [json.dumps(each).replace(foreign, "ID").replace(UNKNOWN, "ID") for each in answers]
    assert told[0] == told[1]
    assert "rum" not in told[0]
    if name != "memory_decisions":  # which lists what there is, here nothing
        assert answers[0]["error"]["type"] == "NotFoundError"
    assert life.memory.history(life.bobs) == before


def test_some_foreign_among_several_deletes_none(life: Life) -> None:
    error = life.error("delete_memories", {"memory_ids": f"{life.tea},{life.bobs}"})
    assert (error["type"], "nothing was deleted" in error["message"]) == ("NotFoundError", True)
    assert len(life.known) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scope", ["user_id", "agent_id", "run_id", "session_id", "userId", "user", "app_id"])
def test_the_scope_is_not_the_models_to_choose(life: Life, name: str, scope: str) -> None:
    given = {**CALLS[name][0](life), scope: "bob"}
    error = life.error(name, given)
    assert error["type"] == "ScopeError"
    assert scope in error["message"]
    assert "ann" not in error["message"]
    assert len(life.known) == 2


def test_the_handles_own_scope_may_be_said(life: Life) -> None:
    found = life.call("search_memories", query="boat", user_id="ann")
    assert found["results"][0]["memory"] == "User owns a boat"
    assert "ignored_arguments" not in found


def test_read_only_handles_have_nothing_that_writes(life: Life) -> None:
    reader = life.memory.bound(user_id="ann", read_only=True)
    writing = [each.name for each in TOOLS if each.writes]
    shown = {each["name"] for each in reader.tools_schema("anthropic", "full")}
    assert shown == set(NAMES) - set(writing)
    assert len(writing) == 6
    for name in writing:
        answer = reader.dispatch(name, CALLS[name][0](life), "full")
        assert answer["error"]["type"] == "ReadOnlyError"
        assert answer["error"]["message"].startswith("this memory is read-only")
        assert "add_memory" not in answer["error"]["message"]
    assert sorted(life.known) == ["User likes black tea", "User owns a boat"]
    for name in shown:
        arguments, is_right = CALLS[name]
        assert is_right(life, reader.dispatch(name, arguments(life), "full"))


def test_tools_that_were_not_shown_are_not_there(life: Life) -> None:
    """What tools_schema() offers when it is not told of a set is what dispatch() runs when it is not."""
    reader = life.memory.bound(user_id="ann", read_only=True)
    for handle, shown in ((life.ann, CORE), (reader, [name for name in CORE if not BY_NAME[name].writes])):
        for name in set(NAMES) - set(CORE):
            error = handle.dispatch(name, CALLS[name][0](life))["error"]
            assert error["type"] == "UnknownToolError"
            assert error["message"].split("The tools are: ")[1].split(", ") == shown
    assert len(life.known) == 2


@pytest.mark.parametrize(
    "arguments",
    [None, {}, "{}", *({"confirm": each} for each in (False, None, "", "no", "yes", 1, [True], {}, "of course", "1"))],
    ids=str,
)
def test_all_is_deleted_on_a_plain_yes_alone(life: Life, arguments: Any) -> None:
    error = life.error("delete_all_memories", arguments)
    assert error["type"] == "InvalidInputError"
    assert error["message"].startswith("this would delete all 2 memories; nothing was deleted. Only if the user asked")
    assert len(life.known) == 2


@pytest.mark.parametrize("arguments", [{"confirm": "true"}, '{"confirm": true}', {"arguments": {"confirm": True}}])
def test_all_is_deleted_once_it_is_confirmed(life: Life, arguments: Any) -> None:
    assert life.ann.dispatch("delete_all_memories", arguments, "full") == {"deleted": 2}
    assert life.known == []


@pytest.mark.parametrize("name", [each.name for each in TOOLS if each.destructive])
def test_no_error_shows_a_call_that_deletes(life: Life, name: str) -> None:
    for wrong in ({"topic": "tea", **CALLS[name][0](life)}, {"topic": "tea"}, "no JSON", ["x"], 7):
        message = life.error(name, wrong)["message"]
        assert "Call it like this" not in message
        assert "{}" not in message
        assert '{"confirm": true}' not in message
        for known in (life.tea, life.boat):
            assert known not in message
    assert len(life.known) == 2


@pytest.mark.parametrize("name", ["search", "searchMemories", "", "SEARCH_MEMORIES", None, 7, ["search_memories"]])
def test_a_wrong_name_is_answered_with_the_right_ones(life: Life, name: Any) -> None:
    message = life.error(name, {})["message"]
    assert all(each in message for each in NAMES)
    shown = life.error(name, {}, "core")["message"].split("The tools are: ")[1]
    assert shown.split(", ") == CORE


@pytest.mark.parametrize("prefix", ["functions.", "localmem.", "localmem__", "functions.localmem__", "mcp__localmem__"])
def test_what_stands_before_a_name_is_taken_off(life: Life, prefix: str) -> None:
    found = life.ann.dispatch(f"{prefix}search_memories", {"query": "boat", "limit": 1})
    assert texts(found) == ["User owns a boat"]
    error = life.ann.dispatch(f"{prefix}delete_all_memories", {"confirm": True})["error"]
    assert error["type"] == "UnknownToolError"
    assert len(life.known) == 2


# -------------------------------------------------------------------- what models send

REPAIRED: list[tuple[str, Any]] = [
    ("numbers as strings", {"query": "boat", "limit": "1"}),
    ("a whole number with a point", {"query": "boat", "limit": 1.0}),
    ("null for what is left out", {"query": "boat", "limit": 1, "threshold": None, "when": None}),
    ("words for what is left out", {"query": "boat", "limit": 1, "threshold": "none", "when": ""}),
    ("JSON text", '{"query": "boat", "limit": 1}'),
    ("JSON text in JSON text", json.dumps('{"query": "boat", "limit": 1}')),
    ("a wrapping", {"arguments": {"query": "boat", "limit": 1}}),
    ("another wrapping", {"name": "search_memories", "parameters": {"query": "boat", "limit": 1}}),
    ("another name", {"question": "boat", "top_k": 1}),
    ("a misspelt name", {"qurey": "boat", "limit": 1}),
    ("another way to write a name", {"Query": "boat", "max-results": 1}),
    ("a list of one", {"query": ["boat"], "limit": [1]}),
    ("a date in words", {"query": "boat", "limit": 1, "when": "20 March 2025"}),
    ("a wrapping beside whose memory it is", {"arguments": {"query": "boat", "limit": 1}, "user_id": "ann"}),
    ("blanks around", {"query": " boat\n", "limit": " 1 "}),
    ("a fence", '```json\n{"query": "boat", "limit": 1}\n```'),
    ("a fence without a name", ' ```\n{"query": "boat", "limit": 1}```\n'),
    ("as Python writes it", "{'query': 'boat', 'limit': 1, 'threshold': None}"),
    ("as Python writes it, in a fence", "```python\n{'query': 'boat', 'limit': (1,)}\n```"),
    ("as Python writes it, in JSON text", json.dumps("{'query': 'boat', 'limit': 1}")),
]


@pytest.mark.parametrize(("what", "arguments"), REPAIRED, ids=[what for what, _ in REPAIRED])
def test_what_can_mean_one_thing_only_is_repaired(life: Life, what: str, arguments: Any) -> None:
    found = life.ann.dispatch("search_memories", arguments)
    assert [each["memory"] for each in found["results"]] == ["User owns a boat"]
    assert "ignored_arguments" not in found


def test_more_than_there_can_be_means_all(life: Life) -> None:
    for limit in (1_000_000, "1e300", 10**400):
        assert len(life.call("search_memories", query="User", limit=limit)["results"]) == 2
    assert life.call("list_memories", offset=10**400)["results"] == []


def test_what_is_of_no_use_is_left_out_and_said(life: Life) -> None:
    found = life.call("search_memories", query="boat", limit=1, filters={"a": 1}, reason="curious", note=None)
    assert sorted(found["ignored_arguments"]) == ["filters", "reason"]
    odd = life.call("list_memories", **{"\ud800": 1})
    assert json.dumps(odd, ensure_ascii=False).encode()
    Draft202012Validator(BY_NAME["search_memories"].output_schema).validate(found)


@pytest.mark.parametrize(
    "arguments",
    [
        {"query": "tea"},
        {"memory_ids": "x"},
        {"confirm": True, "topic": "tea"},
        {"confirm": True, "user_id": "bob"},
        {"memory_id": UNKNOWN},
        {"arguments": {"query": "tea"}},
        {"arguments": {}, "query": "tea"},
        {"arguments": {}, "user_id": "bob"},
        '{"args": {"user_id": "bob"}}',
    ],
    ids=str,
)
def test_what_deletes_is_never_widened(life: Life, arguments: Any) -> None:
    assert life.error("delete_all_memories", arguments)["type"] in ("InvalidInputError", "ScopeError")
    assert len(life.known) == 2


@pytest.mark.parametrize("sent", ["`{}`", "<{}>", '"{}"', "[{}]", " {} ", "{}\n"])
def test_an_id_may_be_dressed(life: Life, sent: str) -> None:
    assert life.call("get_memory", memory_id=sent.format(life.boat.upper()))["memory"] == "User owns a boat"
    assert len(life.call("delete_memories", memory_ids=[life.boat, life.tea])["results"]) == 2


REFUSED: list[tuple[str, Any, tuple[str, ...]]] = [
    ("search_memories", {}, ("query is missing", '{"query": ')),
    ("search_memories", {"query": "  "}, ("query is empty", '{"query": ')),
    ("search_memories", {"limit": 3}, ("query is missing",)),
    ("search_memories", {"query": "x", "limit": "many"}, ("limit", "a whole number", "'many'", '{"limit": 10}')),
    ("search_memories", {"query": "x", "limit": 2.5}, ("limit", "a whole number", "2.5")),
    ("search_memories", {"query": "x", "limit": True}, ("limit", "a whole number", "true or false")),
    ("search_memories", {"query": "x", "limit": 0}, ("limit must be between 1 and 50, not 0",)),
    ("search_memories", {"query": "x", "limit": [1, 2]}, ("limit", "a list")),
    ("search_memories", {"query": "x", "limit": "1e999"}, ("limit", "a whole number")),
    ("search_memories", {"query": "x", "threshold": 30}, ("threshold must be between 0 and 1, not 30",)),
    ("search_memories", {"query": "x", "when": "last week"}, ("when is 'last week'", "2025-03-01")),
    ("search_memories", {"query": {"a": 1}}, ("query", "a string", "an object")),
    ("search_memories", {"query": "a\0b"}, ("query holds a NUL",)),
    ("search_memories", '{"query": "x"', ("not JSON", '{"query": ')),
    ("search_memories", ["x"], ("a list", '{"query": ')),
    ("search_memories", "[" * 100_000, ("not JSON",)),
    ("search_memories", "{" * 1_000, ("not JSON",)),
    ("search_memories", "{'query': " + "-" * 9_000 + "1}", ("not JSON",)),
    ("search_memories", "{'query', 'boat'}", ("not JSON",)),
    ("search_memories", "{'query': {1j}}", ("not JSON",)),
    ("search_memories", "{'query': open('x')}", ("not JSON",)),
    ("search_memories", r"{'query': 'C:\Users\dora'}", ("not JSON",)),
    ("search_memories", {"query": "x" * 100_001}, ("query has 100,001 characters", "send less text")),
    ("add_memory", {"text": "x", "role": "robot"}, ("role is 'robot'", "user, assistant")),
    ("add_memory", {"text": "\ud800"}, ("text holds a lone surrogate",)),
    ("add_memory", {"text": "x" * 2_000_000}, ("text has 2,000,000 bytes", "1,000,000; send less text")),
    ("add_memory", {"text": "x", "when": "2025-04-01"}, ("the date on which it was said, not", "leave it out")),
    ("list_memories", {"offset": -1}, ("offset must be between 0 and 1,000,000,000, not -1",)),
    ("memory_decisions", {"unsupported": "perhaps"}, ("unsupported must be true or false",)),
    ("delete_memory", {"memory_id": "a, b"}, ("memory_id must be one id, not 2",)),
    ("delete_memory", {"memory_id": "memory"}, ("no memory has the id 'memory'", "search_memories")),
    ("delete_memory", {"memory_id": UNKNOWN, "why": "wrong"}, ("no parameter 'why'", "memory_id")),
    ("delete_memory", {"memory_id": None}, ("a result without an id is a text that is not read yet; wait",)),
    ("delete_memories", {"memory_ids": f"{UNKNOWN}, null"}, ("a result without an id", "Please forget")),
    ("update_memory", {"memory_id": "None", "text": "x"}, ("a result without an id",)),
    ("get_memory", {"memory_id": "null"}, ("a result without an id",)),
    ("get_memory", {"memory_id": "Harbour-KEY"}, ("no memory has the id 'Harbour-KEY'",)),
    ("update_memory", {"memory_id": "Harbour-KEY", "text": "x"}, ("no memory has the id 'Harbour-KEY'",)),
    ("delete_memory", {"memory_id": "Harbour-KEY"}, ("no memory has the id 'Harbour-KEY'",)),
    ("memory_history", {"memory_id": "Harbour-KEY" * 9}, ("no memory has the id 'Harbour-KEYHarbour",)),
    ("delete_all_memories", {"confirm": "maybe"}, ("all 2 memories", "nothing was deleted")),
    ("delete_memories", {"memory_ids": " , "}, ("memory_ids is empty", "for example")),
    ("get_memory", {"memory_id": UNKNOWN}, (f"no memory has the id '{UNKNOWN}'", "list_memories")),
]


@pytest.mark.parametrize(("name", "arguments", "parts"), REFUSED, ids=[f"{n} {a!r:.40}" for n, a, _ in REFUSED])
def test_what_can_not_be_repaired_is_explained(life: Life, name: str, arguments: Any, parts: tuple[str, ...]) -> None:
    message = life.error(name, arguments)["message"]
    for part in parts:
        assert part in message
    assert len(message) < 400
    assert "Limits" not in message
    assert len(life.known) == 2


def test_an_error_does_not_repeat_what_was_said(life: Life) -> None:
    secret = "the harbour master keeps the red key under the third plank"
    for name, arguments in (
        ("add_memory", {"text": f"{secret}\0"}),
        ("add_memory", {"text": {"said": secret}}),
        ("search_memories", {"query": "x", "limit": secret}),
        ("search_memories", f'{{"query": "{secret}'),
        ("search_memories", f"{{'query': '{secret}'"),
        ("search_memories", f"```\n{{'query': [{secret}]}}\n```"),
    ):
        assert "harbour" not in life.error(name, arguments)["message"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)
PARAMETERS = sorted({parameter.name for each in TOOLS for parameter in each.parameters})


@settings(max_examples=200)
@given(
    st.sampled_from(NAMES), st.dictionaries(st.sampled_from(PARAMETERS) | st.text(max_size=10), JSON_VALUES, max_size=5)
)
def test_whatever_a_model_sends_is_answered(life: Life, name: str, arguments: dict[str, Any]) -> None:
    answer = life.ann.dispatch(name, arguments, "full")
    if "error" in answer:
        assert answer["error"]["message"]
    else:
        Draft202012Validator(BY_NAME[name].output_schema).validate(answer)
    json.dumps(answer)
    assert texts(life.memory.get_all(user_id="bob")) == ["User likes rum"]
