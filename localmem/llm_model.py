"""The native model behind `localmem.llm.LlamaGenerator`: tokens, evaluation, label scores, replies.

Works on the library handed in (only `localmem.llm` imports it), on one thread only. A reply depends on the prompt
alone, not on earlier calls: a prompt is always evaluated in the same two pieces, the part shared between calls (all
before the text of the last turn) and the rest, and exactly the first is reused, never more.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from localmem import gbnf, llm_chat
from localmem.errors import GeneratorError, InvalidInputError, ModelFileError, ModelNotFoundError
from localmem.types import Prompt

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Logits: TypeAlias = NDArray[np.float32]  # shape (vocabulary,)

REPLY_TOKENS_MIN = 16  # a prompt that leaves less room than this is refused
_BATCH_TOKENS = 512
_COMMON_TOKENS_MIN = 16  # fewer are not worth a decode of their own
_PARALLEL = 8  # prompts scored in one decode
_PREFIXES_MAX = 4  # kept KV states of shared prompt parts
_PREFIX_BYTES_MAX = 256 * 2**20  # all of them together
_PREFIX_TOKENS_MIN = 32  # shorter ones cost less to evaluate than to keep
_FRAMES_MAX = 32
_LOOP_LINES_MAX = 4  # a run of up to this many lines, said three times in a row, is a loop


_Held: TypeAlias = "tuple[Path | None, tuple[int, ...]]"  # an adapter and the prefix evaluated with it


@dataclass(frozen=True, slots=True)
class _Frame:
    """The model's chat template around the turns before the last one, as tokens."""

    prefix: tuple[int, ...]  # all before the text of the last turn
    tail: tuple[int, ...]  # all after it: end of turn, header of the reply


@dataclass(frozen=True, slots=True)
class _Encoded:
    adapter: Path | None  # what it is evaluated with
    prefix: tuple[int, ...]  # shared between calls
    rest: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.prefix) + len(self.rest)


class NativeModel:
    """The native model and context. Used by one thread only."""

    def __init__(
        self,
        library: Library,
        path: Path,
        *,
        adapters: Mapping[str, Path],
        threads: int,
        context_tokens: int,
        prefix_reuse: bool,
        stop: threading.Event,
    ) -> None:
        check_gguf(path)
        for file in adapters.values():
            check_gguf(file)
        self.lib, self.log = library.api, library.log
        self.path, self.context_tokens, self.prefix_reuse, self.stop = path, context_tokens, prefix_reuse, stop
        self.model = self.context = self.batch = None
        try:
            self._open_model()
            self._open_context(threads)
            self.adapters = adapters  # prompt -> its adapter; "": of all others
            self.loaded = {file: self._open_adapter(file) for file in dict.fromkeys(adapters.values())}
            self.applied: Path | None = None
            self.format = llm_chat.template(self.lib, library.formatter, self.model, self.vocab, path)
        except BaseException:
            self.free()
            raise
        self.controls = self._control_tokens()
        self.frames: OrderedDict[tuple[tuple[str, str], ...], _Frame] = OrderedDict()
        self.label_tokens: dict[str, int] = {}
        self.states: OrderedDict[_Held, Any] = OrderedDict()  # the KV state of each, least recent first
        self.held: _Held | None = None  # what stands at the start of sequence 0

    def _open_model(self) -> None:
        settings = self.lib.llama_model_default_params()
        settings.n_gpu_layers = 0  # replies must not depend on which machine has which GPU
        known = {name for name, *_ in settings._fields_}
        if "use_extra_bufts" in known and b"AMX_INT8 = 1" in self.lib.llama_print_system_info():
            settings.use_extra_bufts = False  # llama.cpp's AMX crashes where a virtual machine lets no tiles be set up
        with self.log.errors() as said:
            self.model = self.lib.llama_model_load_from_file(os.fsencode(self.path), settings)
        if not self.model:
            raise ModelFileError(f"llama.cpp can't load {self.path}{said()}; give a complete chat model in GGUF format")
        self.vocab = self.lib.llama_model_get_vocab(self.model)
        self.vocabulary = self.lib.llama_vocab_n_tokens(self.vocab)
        trained = self.lib.llama_model_n_ctx_train(self.model)
        if self.lib.llama_model_has_encoder(self.model) or not self.lib.llama_model_has_decoder(self.model):
            raise ModelFileError(f"{self.path} is no chat model (it has an encoder); give a decoder-only chat GGUF")
        if trained < self.context_tokens:
            raise ModelFileError(
                f"{self.path} was trained for {trained} tokens of context, localmem asks for {self.context_tokens}; "
                f"give a model with a longer context or LlamaGenerator(context_tokens={trained})"
            )

    def _open_context(self, threads: int) -> None:
        settings = self.lib.llama_context_default_params()
        wanted = {
            "n_ctx": self.context_tokens,
            "n_batch": _BATCH_TOKENS,
            "n_ubatch": _BATCH_TOKENS,
            "n_seq_max": 1 + _PARALLEL,  # sequence 0 and its copies for scoring side by side
            "n_outputs_max": 1 + _PARALLEL,  # else a buffer of 512 rows of logits
            "kv_unified": True,  # copies share the cells of the prefix
            "n_threads": threads,
            "n_threads_batch": threads,
            "offload_kqv": False,
            "op_offload": False,
            "flash_attn": True,  # before it was called flash_attn_type and "auto"
            "no_perf": True,
        }
        known = {name for name, *_ in settings._fields_}
        for name, value in wanted.items():
            if name in known:  # the structure differs between the versions allowed
                setattr(settings, name, value)
        with self.log.errors() as said:
            self.context = self.lib.llama_init_from_model(self.model, settings)
        if not self.context:
            raise ModelFileError(f"llama.cpp can't make a context for {self.path}{said()}; free memory, or use less")
        self.memory = self.lib.llama_get_memory(self.context)
        self.batch = self.lib.llama_batch_init(_BATCH_TOKENS, 0, 1)

    def _open_adapter(self, path: Path) -> Any:
        with self.log.errors() as said:
            adapter = self.lib.llama_adapter_lora_init(self.model, os.fsencode(path))
        if not adapter:
            raise ModelFileError(f"the adapter {path} does not fit {self.path}{said()}; use the model it was made for")
        return adapter

    def _apply(self, path: Path | None) -> None:
        """Evaluate with this adapter from now on, or with none."""
        if path == self.applied:
            return
        chosen = [] if path is None else [self.loaded[path]]
        if hasattr(self.lib, "llama_set_adapters_lora"):
            adapters = (self.lib.llama_adapter_lora_p_ctypes * 1)(*chosen)
            code = self.lib.llama_set_adapters_lora(self.context, adapters, len(chosen), (ctypes.c_float * 1)(1.0))
        else:
            self.lib.llama_clear_adapter_lora(self.context)
            code = self.lib.llama_set_adapter_lora(self.context, chosen[0], 1.0) if chosen else 0
        if code != 0:
            raise ModelFileError(f"llama.cpp refused the adapter {path} (code {code})")
        self.applied = path

    def _control_tokens(self) -> NDArray[np.intp]:
        """Tokens that steer the chat. As reply text they would be read by the grammar as their name, so: never."""
        import numpy as np

        is_control, is_end = self.lib.llama_vocab_is_control, self.lib.llama_vocab_is_eog
        found = [t for t in range(self.vocabulary) if is_control(self.vocab, t) and not is_end(self.vocab, t)]
        return np.array(found, dtype=np.intp)

    def free(self) -> None:
        """Release the native memory, once."""
        if self.batch is not None:
            self.lib.llama_batch_free(self.batch)
        if self.context:
            self.lib.llama_free(self.context)
        if self.model:
            self.lib.llama_model_free(self.model)  # and its adapters
        self.abandon()

    def abandon(self) -> None:
        """Forget the native memory without touching it: in a forked child it belongs to the parent's threads."""
        self.model = self.context = self.batch = None

    # Text to tokens

    def tokenise(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids. Names of control tokens are read as such only where ``special``."""
        data = text.encode(errors="replace")
        buffer = (ctypes.c_int32 * (len(data) + 2))()  # never more tokens than bytes, and a leading one
        count = self.lib.llama_tokenize(self.vocab, data, len(data), buffer, len(buffer), False, special)
        if count < 0:
            raise GeneratorError(f"llama.cpp could not tokenise a text of {len(data)} bytes")
        return tuple(buffer[:count])

    def encode(self, prompt: Prompt) -> _Encoded:
        """The prompt in the model's own chat template, up to where the reply begins."""
        *before, (role, text) = prompt.turns
        if role != "user":
            raise InvalidInputError(f"the last turn of prompt {prompt.name} must be the user's, not {role!r}")
        key = tuple(before)
        frame = self.frames.pop(key, None) or self._frame(key)
        self.frames[key] = frame
        if len(self.frames) > _FRAMES_MAX:
            self.frames.popitem(last=False)
        adapter = self.adapters.get(prompt.name, self.adapters.get(""))
        return _Encoded(adapter, frame.prefix, self.tokenise(text, special=False) + frame.tail)

    def _frame(self, before: tuple[tuple[str, str], ...]) -> _Frame:
        texts = [text for _, text in before]
        pieces = llm_chat.pieces([*(role for role, _ in before), "user"], self.format, self.path)
        tokens: list[int] = []
        for piece in pieces[: pieces.index(len(texts))]:
            if isinstance(piece, int):
                tokens += self.tokenise(texts[piece], special=False)
            else:
                tokens += self.tokenise(piece, special=True)
        first = self.lib.llama_vocab_bos(self.vocab)
        if self.lib.llama_vocab_get_add_bos(self.vocab) and tokens[:1] != [first]:
            tokens.insert(0, first)
        tail = "".join(piece for piece in pieces[pieces.index(len(texts)) + 1 :] if isinstance(piece, str))
        return _Frame(tuple(tokens), self.tokenise(tail, special=True))

    def label_token(self, label: str) -> int:
        """The token that is exactly this label at the start of the reply. GeneratorError when it takes several."""
        if label not in self.label_tokens:
            tokens = self.tokenise(label, special=False)
            if len(tokens) != 1:
                raise GeneratorError(
                    f"the label {label!r} is {len(tokens)} tokens for {self.path.name}; labels must be one token each"
                )
            self.label_tokens[label] = tokens[0]
        return self.label_tokens[label]

    # Evaluation

    def evaluate(self, encoded: _Encoded) -> None:
        """Bring sequence 0 to exactly this prompt; the logits of its last token are then at index -1."""
        self._hold_prefix(encoded.adapter, encoded.prefix)
        self._decode(encoded.rest, len(encoded.prefix))

    def _hold_prefix(self, adapter: Path | None, prefix: tuple[int, ...]) -> None:
        """Sequence 0 becomes this prefix: by cutting what follows it, from its kept state, or by evaluating it."""
        wanted = adapter, prefix
        held, self.held = self.held, None  # whatever fails below, nothing half-done is taken for the prefix
        self._apply(adapter)
        cut = self.prefix_reuse and held == wanted
        if not (cut and self.lib.llama_memory_seq_rm(self.memory, 0, len(prefix), -1)):
            self.lib.llama_memory_clear(self.memory, False)
            if not self._restore(wanted):
                self._decode(prefix, 0)
                self._keep(wanted)
        self.held = wanted

    def _restore(self, wanted: _Held) -> bool:
        state = self.states.get(wanted)
        if state is None:
            return False
        self.states.move_to_end(wanted)
        if self.lib.llama_state_seq_set_data(self.context, state, len(state), 0) == len(state):
            return True
        del self.states[wanted]
        self.lib.llama_memory_clear(self.memory, False)
        return False

    def _keep(self, held: _Held) -> None:
        """Copy the KV state of the prefix just evaluated (7 ms for 500 tokens; putting it back takes 1 ms)."""
        size = self.lib.llama_state_seq_get_size(self.context, 0)
        if not self.prefix_reuse or len(held[1]) < _PREFIX_TOKENS_MIN or size > _PREFIX_BYTES_MAX:
            return
        total = sum(len(state) for state in self.states.values())
        while self.states and (len(self.states) >= _PREFIXES_MAX or total + size > _PREFIX_BYTES_MAX):
            total -= len(self.states.popitem(last=False)[1])
        state = (ctypes.c_uint8 * size)()
        if self.lib.llama_state_seq_get_data(self.context, state, size, 0) == size:
            self.states[held] = state

    def _decode(self, tokens: Sequence[int], start: int) -> None:
        """Evaluate tokens of sequence 0 from position ``start``; logits of the last one only."""
        for offset in range(0, len(tokens), _BATCH_TOKENS):
            part = tokens[offset : offset + _BATCH_TOKENS]
            last = len(tokens) - 1 - offset
            self._submit((token, start + offset + at, 0, at == last) for at, token in enumerate(part))

    def _submit(self, rows: Iterator[tuple[int, int, int, bool]]) -> None:
        """One native decode of (token, position, sequence, whether its logits are wanted); at most 512 rows."""
        if self.stop.is_set():
            raise GeneratorError("the generator was interrupted")
        batch, count = self.batch, 0
        assert batch is not None
        for token, position, sequence, wanted in rows:
            batch.token[count], batch.pos[count] = token, position
            batch.n_seq_id[count], batch.seq_id[count][0], batch.logits[count] = 1, sequence, wanted
            count += 1
        batch.n_tokens = count
        code = self.lib.llama_decode(self.context, batch)
        if code != 0:
            self.held = None
            raise GeneratorError(f"llama.cpp could not evaluate {count} tokens of a prompt (code {code})")

    def logits(self, row: int) -> Logits:
        """A copy of one row of the last decode, by its place in the batch; -1 is the last. Shape (vocabulary,)."""
        import numpy as np

        pointer = self.lib.llama_get_logits_ith(self.context, row)
        values: Logits = np.ctypeslib.as_array(pointer, shape=(self.vocabulary,)).copy()
        if not np.isfinite(values.max()):
            raise GeneratorError(f"{self.path.name} computed no finite numbers; the file is damaged or unsupported")
        return values

    # Labels

    def score(self, prompts: Sequence[Prompt], labels: Sequence[str]) -> list[tuple[float, ...]]:
        tokens = [self.label_token(label) for label in labels]
        encoded = [self.encode(prompt) for prompt in prompts]
        for prompt, code in zip(prompts, encoded, strict=True):
            self._check_room(prompt, code, 1)
        scores: dict[int, tuple[float, ...]] = {}
        for group in _groups(encoded, self.context_tokens):
            for place, row in zip(group, self._last_logits([encoded[place] for place in group]), strict=True):
                scores[place] = _log_softmax(row[tokens])
        return [scores[place] for place in range(len(prompts))]

    def _last_logits(self, encoded: Sequence[_Encoded]) -> list[Logits]:
        """The logits after each prompt. They share adapter and prefix; what else all begin with is evaluated once,
        then the rest of each in a single decode."""
        if len(encoded) == 1:
            self.evaluate(encoded[0])
            return [self.logits(-1)]
        adapter, prefix = encoded[0].adapter, encoded[0].prefix
        common = _common([code.rest for code in encoded])
        self._hold_prefix(adapter, prefix)
        self._decode(common, len(prefix))
        start = len(prefix) + len(common)
        rows: list[tuple[int, int, int, bool]] = []
        ends: list[int] = []
        for sequence, code in enumerate(encoded, start=1):
            self.lib.llama_memory_seq_cp(self.memory, 0, sequence, 0, -1)
            rest = code.rest[len(common) :]
            rows += [(token, start + at, sequence, at == len(rest) - 1) for at, token in enumerate(rest)]
            ends.append(len(rows) - 1)
        try:
            self._submit(iter(rows))
            return [self.logits(end) for end in ends]
        finally:
            for sequence in range(1, len(encoded) + 1):
                self.lib.llama_memory_seq_rm(self.memory, sequence, -1, -1)

    # Replies

    def generate(self, prompt: Prompt, grammar: str, parsed: gbnf.Grammar, tokens_max: int) -> str:
        encoded = self.encode(prompt)
        room = self._check_room(prompt, encoded, min(tokens_max, REPLY_TOKENS_MIN))
        sampler = self.lib.llama_sampler_init_grammar(self.vocab, grammar.encode(), b"root")
        if not sampler:
            raise GeneratorError(f"llama.cpp refused the grammar of prompt {prompt.name}")
        try:
            self.evaluate(encoded)
            text, finished = self._write(sampler, len(encoded), min(tokens_max, room))
        finally:
            self.lib.llama_sampler_free(sampler)
        if finished and parsed.matches(text):
            return text
        lines = parsed.whole_lines(text)
        if lines is None:
            raise GeneratorError(
                f"the reply to prompt {prompt.name} ran into its limit of {min(tokens_max, room)} tokens before any of "
                "its lines was complete; raise the limit or send less text at once"
            )
        return lines

    def _check_room(self, prompt: Prompt, encoded: _Encoded, reply_tokens: int) -> int:
        """Tokens left for the reply. GeneratorError when fewer than asked for."""
        room = self.context_tokens - len(encoded)
        if room < reply_tokens:
            raise GeneratorError(
                f"prompt {prompt.name} takes {len(encoded)} tokens, which leaves no room for a reply in the context of "
                f"{self.context_tokens}; send less text at once or open the model with a larger context_tokens"
            )
        return room

    def _write(self, sampler: Any, position: int, tokens_max: int) -> tuple[str, bool]:
        """Token after token, the likeliest the grammar allows. (text, whether the reply ended by itself)."""
        reply = b""
        for count in range(tokens_max + 1):
            token = self._next(sampler)
            if token is None or self.lib.llama_vocab_is_eog(self.vocab, token):
                return reply.decode(errors="replace"), True
            if count == tokens_max:
                break
            self.lib.llama_sampler_accept(sampler, token)
            piece = self._piece(token)
            reply += piece
            if b"\n" in piece and (kept := _without_loop(reply)) is not None:
                reply = kept
                break
            self._decode((token,), position + count)
        return reply.decode(errors="replace"), False

    def _next(self, sampler: Any) -> int | None:
        """The likeliest token the grammar allows; None when it allows none, so the reply is at its end.

        The grammar is asked about the likeliest token alone, then about the first 64, then about all: asking about
        all 49,152 each time costs more than the model itself.
        """
        import numpy as np

        logits = self.logits(-1)
        logits[self.controls] = -np.inf
        best = np.array([int(logits.argmax())])
        for more in (64, len(logits), 0):
            allowed = self._allowed(sampler, best, logits[best])
            if allowed is not None or not more:
                return allowed
            best = np.argpartition(logits, -more)[-more:] if more < len(logits) else np.arange(len(logits))
            best = best[np.lexsort((best, -logits[best]))]  # likeliest first, the lower id where two are equal
        return None

    def _allowed(self, sampler: Any, tokens: NDArray[np.intp], logits: Logits) -> int | None:
        """The first of the tokens that the grammar lets stand next."""
        import numpy as np

        candidates = np.zeros(len(tokens), dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        candidates["id"], candidates["logit"] = tokens, logits
        data = candidates.ctypes.data_as(ctypes.POINTER(self.lib.llama_token_data))
        array = self.lib.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=True)
        self.lib.llama_sampler_apply(sampler, ctypes.byref(array))
        left = np.flatnonzero(candidates["logit"] > -np.inf)
        return int(candidates["id"][left[0]]) if len(left) else None

    def _piece(self, token: int) -> bytes:
        buffer = ctypes.create_string_buffer(256)
        length = self.lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        if length < 0:
            buffer = ctypes.create_string_buffer(-length)
            length = self.lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, False)
        return buffer.raw[:length]


def _groups(encoded: Sequence[_Encoded], context_tokens: int) -> Iterator[list[int]]:
    """Places of prompts that can be evaluated in one decode: same adapter and prefix, at most 8, and they fit."""
    alike: dict[_Held, list[int]] = {}
    for place, code in enumerate(encoded):
        alike.setdefault((code.adapter, code.prefix), []).append(place)
    for (_, prefix), places in alike.items():
        room = min(_BATCH_TOKENS, context_tokens - len(prefix))
        group: list[int] = []
        for place in places:
            tokens = sum(len(encoded[member].rest) for member in group) + len(encoded[place].rest)
            if group and (len(group) == _PARALLEL or tokens > room):
                yield group
                group = []
            group.append(place)
        yield group


def _common(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """What all begin with, one token short of the shortest; nothing where that would save too little."""
    longest = min(map(len, sequences)) - 1
    first = sequences[0]
    size = next((i for i in range(longest) if len({one[i] for one in sequences}) > 1), longest)
    return first[:size] if size * (len(sequences) - 1) >= _COMMON_TOKENS_MIN else ()


def _log_softmax(values: Logits) -> tuple[float, ...]:
    import numpy as np

    shifted = values.astype(np.float64) - values.max()
    return tuple(float(value) for value in shifted - np.log(np.exp(shifted).sum()))


def _without_loop(reply: bytes) -> bytes | None:
    """The reply without its repetitions when its last lines were said three times in a row; else None."""
    lines = reply.split(b"\n")[:-1]
    for length in range(1, _LOOP_LINES_MAX + 1):
        last = lines[-length:]
        if len(lines) >= 3 * length and last == lines[-2 * length : -length] == lines[-3 * length : -2 * length]:
            return b"\n".join(lines[: -2 * length]) + b"\n"
    return None


class NativeLog:
    """llama.cpp writes to stderr unless told otherwise. Here: nowhere; its errors explain a failed load."""

    def __init__(self) -> None:
        self.callback: Any = None
        self.lines: list[str] | None = None

    def silence(self, lib: Any) -> None:
        if self.callback is None:
            self.callback = lib.llama_log_callback(self._take)  # kept: the native side holds only its address
        lib.llama_log_set(self.callback, None)

    def _take(self, level: int, text: bytes | None, _: Any) -> None:
        if self.lines is not None and level == 4 and text:  # GGML_LOG_LEVEL_ERROR
            self.lines.append(text.decode(errors="replace").strip())

    def errors(self) -> _Collected:
        return _Collected(self)


class _Collected:
    """While entered, native errors are gathered; called, it gives the first as " (…)", or ""."""

    def __init__(self, log: NativeLog) -> None:
        self.log = log
        self.lines: list[str] = []

    def __enter__(self) -> _Collected:
        self.log.lines = self.lines
        return self

    def __exit__(self, *_: object) -> None:
        self.log.lines = None

    def __call__(self) -> str:
        return f" ({self.lines[0]})" if self.lines else ""


@dataclass(frozen=True, slots=True)
class Library:
    """The parts of llama-cpp-python used here."""

    api: Any  # the module llama_cpp: the C functions and structures
    formatter: Any  # its class that renders a chat template
    log: NativeLog


def check_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"no model file at {path}; install the default with: localmem models install, or give another path"
        ) from None
    except OSError as error:
        raise ModelFileError(f"the model file {path} can't be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelFileError(f"{path} is not a GGUF file (it begins with {magic!r}); give a chat model in GGUF format")
