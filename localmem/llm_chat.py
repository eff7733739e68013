"""A model's own chat template, taken apart so that what a user says can never steer the chat."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeAlias

from localmem.errors import ModelFileError

Format: TypeAlias = Callable[[Sequence[tuple[str, str]]], str]
_MARK = re.compile("\ue000(\\d+)\ue001")  # stands for the text of a turn while the template is rendered
_CHATML = (
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def pieces(roles: Sequence[str], render: Format, path: Path) -> list[str | int]:
    """The rendered template, taken apart: template text (str) and places of turns (int), each turn once, in order.

    So template text alone is read for control tokens, and "<|im_end|>" said by a user stays text. A template without
    a system role gets the system text in front of the first user text.
    """
    marks = [f"\ue000{place}\ue001" for place in range(len(roles))]
    attempts = [list(zip(roles, marks, strict=True))]
    if list(roles[:2]) == ["system", "user"]:
        attempts.append([("user", f"{marks[0]}\n\n{marks[1]}"), *attempts[0][2:]])
    for turns in attempts:
        try:
            parts = _MARK.split(render(turns))
        except Exception:  # templates raise what they like, e.g. "System role not supported"
            continue
        found = [int(part) if place % 2 else part for place, part in enumerate(parts)]
        if [piece for piece in found if isinstance(piece, int)] == list(range(len(roles))):
            return [piece for piece in found if piece != ""]
    raise ModelFileError(f"the chat template of {path} can't render {len(roles)} turns; give another chat model")


def template(lib: Any, formatter: Any, model: Any, vocab: Any, path: Path) -> Format:
    """A function that renders (role, text) turns by the model's own template, or ChatML where the model knows it."""
    source = lib.llama_model_chat_template(model, None)
    if source is None:
        buffer = (ctypes.c_int32 * 16)()
        if lib.llama_tokenize(vocab, b"<|im_start|>", 12, buffer, len(buffer), False, True) != 1:
            raise ModelFileError(f"{path} has no chat template; give an instruction-tuned (chat) model")
        source = _CHATML.encode()
    names = [lib.llama_vocab_bos(vocab), lib.llama_vocab_eos(vocab)]
    first, end = ("" if token < 0 else (lib.llama_vocab_get_text(vocab, token) or b"").decode() for token in names)
    try:
        rendering = formatter(source.decode(), eos_token=end, bos_token=first)
    except Exception as error:  # jinja2's own tree of errors
        raise ModelFileError(f"the chat template of {path} can't be read ({type(error).__name__})") from error
    # A template that prints today's date would give another reply tomorrow.
    rendering.strftime_now = lambda pattern: datetime(2024, 7, 26).strftime(pattern)

    def render(turns: Sequence[tuple[str, str]]) -> str:
        messages = [{"role": role, "content": text} for role, text in turns]
        prompt: str = rendering(messages=messages, enable_thinking=False).prompt
        return prompt

    return render
