"""The calls of mem0_calls.py made on the real mem0ai, in an environment of its own that has no localmem.

``python mem0_driver.py calls`` prints {"version", "outcomes"} as JSON; ``python mem0_driver.py store FOLDER`` leaves a
store as mem0 writes it, for the tests of importing. The model is a script, see FakeModel; nothing is sent anywhere.
"""

from __future__ import annotations

import ast
import asyncio
import hashlib
import json
import math
import os
import re
import shutil
import sys
import tempfile
import warnings
from pathlib import Path

DIM = 64


class FakeEmbedder:
    """Bags of hashed words as unit vectors."""

    def __init__(self):
        self.config = type("Config", (), {"embedding_dims": DIM})()

    def embed(self, text, memory_action=None):
        row = [0.0] * DIM
        for word in text.casefold().split():
            digest = hashlib.blake2b(word.strip(".,!?;:").encode(), digest_size=8).digest()
            row[digest[0] % DIM] += 1.0 if digest[1] % 2 else -1.0
            row[digest[2] % DIM] += 0.5
        row[0] += 1e-3
        norm = math.sqrt(sum(x * x for x in row))
        return [x / norm for x in row]

    def embed_batch(self, texts, memory_action=None):
        return [self.embed(text) for text in texts]


class FakeModel:
    """Follows the ``fact:`` lines of the messages, as tests/doubles.py says, in mem0's own reply formats."""

    def __init__(self):
        self.config = type("Config", (), {"enable_vision": False})()
        self.directives = {}

    def generate_response(self, messages, response_format=None, tools=None, tool_choice="auto", **_):
        last = messages[-1]["content"]
        if "the model fails" in last:
            raise RuntimeError("the scripted model was told to fail")
        if last.startswith("Create procedural memory"):
            return "What was done, as a summary"
        if "The new retrieved facts are mentioned" in last:
            return json.dumps({"memory": self._decide(last)})
        section = re.search(r"## New Messages\n(.*?)\n\n## ", last, re.S)
        facts = self._facts(section[1] if section else last)
        if section:
            return json.dumps(
                {"memory": [{"id": str(i), "text": f, "attributed_to": "user"} for i, f in enumerate(facts)]}
            )
        return json.dumps({"facts": facts})

    def _facts(self, said):
        found = []
        for line in said.replace("\\n", "\n").split("\n"):
            match = re.search(r"fact: ([^|\"]+?)\s*(?:\| ([a-z]+)(?:: ([^|\"]+))?)?\s*\"?,?$", line)
            if match:
                found.append(match[1])
                self.directives[match[1]] = (match[2], set((match[3] or "").split()))
        return found

    def _decide(self, prompt):
        blocks = re.findall(r"```\s*(\[.*?\])\s*```", prompt, re.S)
        known = ast.literal_eval(blocks[-2]) if "Below is the current content of my memory" in prompt else []
        decided = []
        for number, fact in enumerate(ast.literal_eval(blocks[-1])):
            verb, words = self.directives.get(fact, (None, set()))
            same = [old for old in known if old["text"] == fact]
            meant = [old for old in known if words and words <= set(old["text"].split())]
            if same:
                decided.append({"id": same[0]["id"], "text": fact, "event": "NONE"})
            elif verb == "changes" and meant:
                old = meant[0]
                decided.append({"id": old["id"], "text": fact, "event": "UPDATE", "old_memory": old["text"]})
            elif verb == "retracts" and meant:
                decided += [{"id": old["id"], "text": old["text"], "event": "DELETE"} for old in meant]
            elif verb != "retracts":
                decided.append({"id": str(len(known) + number), "text": fact, "event": "ADD"})
        return decided


def prepare(home):
    """Import mem0 with its models replaced and its data under ``home``."""
    os.environ.update(MEM0_TELEMETRY="False", MEM0_DIR=str(home), HOME=str(home), OPENAI_API_KEY="none")
    os.environ["HF_HUB_OFFLINE"] = "1"
    warnings.simplefilter("ignore")
    import logging

    logging.disable(logging.CRITICAL)
    import mem0
    import mem0.memory.main as main

    main.EmbedderFactory.create = staticmethod(lambda *_, **__: FakeEmbedder())
    main.LlmFactory.create = staticmethod(lambda *_, **__: FakeModel())
    return mem0


def config(folder):
    """What mem0 needs to keep everything under a folder."""
    store = {"path": str(folder / "qdrant"), "embedding_model_dims": DIM, "on_disk": True}
    return {"vector_store": {"provider": "qdrant", "config": store}, "history_db_path": str(folder / "history.db")}


def calls():
    """Every scenario on a fresh store."""
    from mem0_calls import SCENARIOS, play

    home = Path(tempfile.mkdtemp(prefix="mem0-peer-"))
    try:
        mem0 = prepare(home)
        outcomes = {}
        for name, steps in SCENARIOS.items():
            folder = home / re.sub(r"\W", "-", name)
            folder.mkdir()
            kind = mem0.AsyncMemory if name.startswith("async") else mem0.Memory
            memory = kind.from_config(config(folder))
            if asyncio.iscoroutine(memory):
                memory = asyncio.run(memory)
            outcomes[name] = play(memory, steps)
        return {"version": mem0.__version__, "outcomes": outcomes}
    finally:
        shutil.rmtree(home, ignore_errors=True)


def store(folder):
    """A small store: two users, an agent, a run, an update, a deletion, text of other scripts."""
    folder.mkdir(parents=True)
    home = Path(tempfile.mkdtemp(prefix="mem0-peer-"))
    memory = prepare(home).Memory.from_config(config(folder))
    memory.add("fact: User lives in Porto", user_id="ann", metadata={"topic": "home"})
    first = memory.add("I drink coffee", user_id="ann", infer=False, metadata={"topic": "drinks"})["results"][0]["id"]
    memory.update(first, "I drink tea", metadata={"topic": "drinks", "sure": True})
    memory.update(first, "I drink green tea")
    gone = memory.add("I have a boat", user_id="ann", infer=False)["results"][0]["id"]
    memory.delete(gone)
    memory.add([{"role": "user", "content": "Я люблю борщ 🍲", "name": "Олег"}], user_id="oleg", infer=False)
    memory.add("The customer wants invoices as PDF", agent_id="desk", infer=False)
    memory.add("fact: User is called 王小明", user_id="ann", agent_id="desk", run_id="r1")
    memory.close()
    memory.vector_store.client.close()
    shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    real_stdout, sys.stdout = sys.stdout, sys.stderr  # mem0 prints notices
    if sys.argv[1] == "calls":
        json.dump(calls(), real_stdout, ensure_ascii=False, indent=1)
    else:
        store(Path(sys.argv[2]))
