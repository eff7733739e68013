"""Programs of their own that have a store open, told what to do line by line: to be killed, stopped and let go on.

`Program` is one of them as a test sees it; run as a script, this file is the program itself. What it answers goes to a
file, so that nothing of it is lost with the program, and what it says on stderr to another.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from doubles import Listener, following_scripts

from localmem import worker
from localmem.memory import Memory
from localmem.testing import FixedClock, HashEmbedder
from localmem.types import Prompt

ANSWER_S = 120.0  # until a program that gives no answer is taken for hung


class Program:
    """A process with a Memory on ``path``.

    ``options``: Memory's, as JSON has them; besides, "start_s" sets its clock (seconds since 1970; None is the real
    one), and "hasty" lets it beat faster and take over sooner, so that a test takes less time. Its extraction follows
    the ``fact:`` lines of the messages.
    """

    def __init__(self, path: Path, *, name: str = "program", **options: Any) -> None:
        folder = path.parent
        self._said, self._errors = folder / f"{name}.out", folder / f"{name}.err"
        self._read = self._said.stat().st_size if self._said.exists() else 0
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in sys.path if each)}
        with self._said.open("ab") as out, self._errors.open("ab") as err:
            self._child = subprocess.Popen(
                [sys.executable, __file__, str(path), json.dumps(options)],
                stdin=subprocess.PIPE, stdout=out, stderr=err, env=environment,
            )  # fmt: skip
        self.answer()  # it has opened the file

    @property
    def pid(self) -> int:
        return self._child.pid

    @property
    def errors(self) -> str:
        """What it wrote on stderr, and whatever was written there by earlier programs of its name."""
        return self._errors.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Every whole line that programs of this name have answered."""
        whole = self._said.read_bytes().rpartition(b"\n")[0]
        return [json.loads(line) for line in whole.splitlines()]

    def call(self, name: str, *args: Any, **options: Any) -> Any:
        """A call of the Memory, and what it returned."""
        self.tell(name, *args, **options)
        return self.answer()

    def tell(self, name: str, *args: Any, **options: Any) -> None:
        """As call(), without waiting for the answer."""
        assert self._child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it was killed
            self._child.stdin.write(json.dumps([name, args, options]).encode() + b"\n")
            self._child.stdin.flush()

    def answer(self) -> Any:
        """The next answer. AssertionError where it failed, or ended."""
        deadline = time.monotonic() + ANSWER_S
        while time.monotonic() < deadline:
            with self._said.open("rb") as file:
                file.seek(self._read)
                line = file.readline()
            if line.endswith(b"\n"):
                self._read += len(line)
                answer = json.loads(line)
                assert "error" not in answer, answer["error"]
                return answer.get("answer")
            assert self._child.poll() is None, f"the program ended with {self._child.returncode}: {self.errors}"
            time.sleep(0.01)
        raise AssertionError(f"no answer for {ANSWER_S:g} s")

    def send(self, number: signal.Signals) -> None:
        """SIGSTOP, SIGCONT, SIGTERM…"""
        self._child.send_signal(number)

    def kill(self) -> None:
        """As `kill -9`."""
        self._child.kill()
        self._child.wait()

    def end(self) -> int:
        """Let it end by itself, without a close() if none was called; its exit status."""
        if self._child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
        return self._child.wait(ANSWER_S)


@contextlib.contextmanager
def programs() -> Iterator[list[Program]]:
    """A list to put programs in: those that still run afterwards are killed."""
    running: list[Program] = []
    try:
        yield running
    finally:
        for each in running:
            each.kill()


# -------------------------------------------------------------------- in the program itself


class Held(Listener):
    """A generator that answers while it is not held, after ``pause_s``; it remembers who asked."""

    def __init__(self) -> None:
        super().__init__()
        self.free, self.pause_s = threading.Event(), 0.0
        self.free.set()

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        said = super().generate(prompt, grammar=grammar, tokens_max=tokens_max)
        assert self.free.wait(ANSWER_S)
        time.sleep(self.pause_s)
        return said


class _Told:
    """What a program can be told besides Memory's own calls."""

    def __init__(self, memory: Memory, model: Held, clock: FixedClock | None) -> None:
        self.memory, self.model, self.clock = memory, model, clock

    def hold(self) -> None:
        """Let the model answer nothing from now on."""
        self.model.free.clear()

    def let_go(self, pause_s: float = 0.0) -> None:
        """Let it answer, each time after so many seconds."""
        self.model.pause_s = pause_s
        self.model.free.set()

    def asked(self) -> list[str]:
        """What the model was shown."""
        return list(self.model.prompts)

    def advance(self, seconds: float) -> None:
        """Set the clock."""
        assert self.clock is not None
        self.clock.advance(seconds)

    def add_each(self, texts: list[str], **ids: Any) -> None:
        """add(wait=False) of each, and a line {"added", "text"} as soon as it was promised."""
        for text in texts:
            _say({"added": self.memory.add(text, wait=False, **ids)["episode_id"], "text": text})

    def fork_and_add(self, text: str, **ids: Any) -> int:
        """A forked child adds, waits until it is read, and closes. Its exit status."""
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException):
                signal.alarm(60)
                self.memory.add(text, wait=False, **ids)
                status = 0 if self.memory.flush(timeout=50)["flushed"] else 2
                self.memory.close()
            os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _say(line: dict[str, Any]) -> None:
    os.write(1, json.dumps(line).encode() + b"\n")


def main(path: str, given: str) -> None:
    """Do what each line of stdin says, and answer each."""
    options, model = json.loads(given), Held()
    start_s = options.pop("start_s", None)
    if options.pop("hasty", False):
        worker.BEAT_S, worker.STALE_S, worker.POLL_S = 0.4, 2.0, 0.3
    clock = None if start_s is None else FixedClock(start_s * 1_000_000)
    defaults = {"embedder": HashEmbedder(), "generator": model, "durability": "process", "clock": clock}
    memory = Memory(Path(path), **{**defaults, **options})
    told = _Told(memory, model, clock)
    _say({})
    for line in sys.stdin:
        name, args, named = json.loads(line)
        try:
            _say({"answer": getattr(told if hasattr(told, name) else memory, name)(*args, **named)})
        except Exception as error:
            _say({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    scripts = contextlib.ExitStack()  # never closed: the worker reads until the interpreter has ended
    scripts.enter_context(following_scripts())
    main(*sys.argv[1:])
