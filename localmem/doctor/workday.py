"""What a store goes through in its life, at one go: the job that `doctor --airgap` has watched."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localmem.types import Generator

CODE = "from localmem.doctor import workday; workday.main(heard, telemetry)"
# Which of them is at home in a program is its own business; localmem brings none.
TALKATIVE = (
    "requests", "urllib3", "httpx", "aiohttp", "websockets", "huggingface_hub", "sentry_sdk", "posthog", "ddtrace",
    "newrelic", "opentelemetry", "segment", "mixpanel",
)  # fmt: skip
_WHO = "doctor"


def main(heard: Sequence[Any], telemetry: Sequence[Any]) -> None:
    """Arguments of the process: a folder for the store, the model's file ("" for none), the report's file."""
    folder, model, report = sys.argv[1:]
    told = work(Path(folder) / "memory.db", _generator(model))
    told |= {"heard": list(heard), "telemetry": list(telemetry), "talkative": talkative()}
    Path(report).write_text(json.dumps(told))


def talkative() -> list[str]:
    """Libraries for the network that were imported into this process."""
    return [name for name in TALKATIVE if name in sys.modules]


def _generator(model: str) -> Generator | None:
    if not model:
        return None
    from localmem import artifacts
    from localmem.llm import LlamaGenerator

    return LlamaGenerator(Path(model), adapter=artifacts.adapter_path())


def work(store: Path, generator: Generator | None) -> dict[str, Any]:
    """{"steps", "wrong"}: what was done, and what did not come out as it should."""
    from localmem.encryption import encrypt
    from localmem.memory import Memory

    wrong = []
    steps = ["open", "add", "search", "context", "update", "delete", "purge", "encrypt", "audit verify", "check"]
    with Memory(store, generator=generator or "none") as memory:
        first = memory.add("Ann plays the cello on Tuesdays", infer=False, user_id=_WHO)["results"][0]["id"]
        memory.add("Ann keeps bees behind the house", infer=False, user_id=_WHO)
        if generator is not None:
            steps[2:2] = ["add with the model", "forget"]
            memory.add("I moved to Porto last week. I have a cat called Miso.", user_id=_WHO)
            memory.add("Please forget what I said about my cat.", user_id=_WHO)
        if "cello" not in str(memory.search("Which instrument does she play?", user_id=_WHO)["results"]):
            wrong.append("a search did not find what was added")
        memory.context("Tuesday", user_id=_WHO)
        memory.update(first, "Ann plays the viola on Tuesdays")
        memory.delete(first)
        if not memory.purge(memory_id=first)["complete"]:
            wrong.append("a purge was not complete")
    encrypt(store, "a passphrase for one moment")
    with Memory(store, key="a passphrase for one moment", generator="none") as memory:
        wrong += memory.verify_audit()["problems"] + memory.check()
    return {"steps": steps, "wrong": wrong}
