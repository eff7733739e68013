"""The ONNX models: text to unit vectors, the judge of how two texts stand to each other, the tagger.

The only importer of onnxruntime and tokenizers, both loaded at the first text. A result never depends on the texts
beside it: the graphs scale each token's activations on their own (scripts/minilm_onnx.py), and a batch holds only
texts of equal token count, so there is no padding.
"""

from __future__ import annotations

import base64
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from localmem import artifacts
from localmem.errors import ClosedError, InstallationError, InvalidInputError, InvalidTypeError, ModelFileError
from localmem.types import STANCES, TAGGED_KINDS, Relation, TaggedWord

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from localmem.types import Vector, Vectors

    Scores = NDArray[np.float64]

BATCH_TOKENS = 512  # 256 to 2048 are equally fast on 2 cores; this one adds some 30 MB while it runs
THREADS_MAX = 4
_CHARS_FIRST = 4_000  # of a long text: mostly enough to fill the 256 tokens
PASSAGES_MAX = 128  # of one text, some 14,000 tokens; what follows is found by its words
PASSAGE_OVERLAP = 32  # tokens that two passages share, so that a fact stands whole in one of them
_WORD_CHARS_MAX = 100  # tokenizer.json, max_input_chars_per_word: a longer word is one token
# Processors without VNNI add pairs of products in saturating 16 bits: 255 * 64 * 2 fits.
QUERY_LEVEL_MAX = 64
# An ONNX file of one node: MatMulInteger(rows, query, 128), opset 17.
_PRODUCTS = (
    "CAgSADqXAQosCgRyb3dzCgVxdWVyeQoEemVybxIIcHJvZHVjdHMiDU1hdE11bEludGVnZXISCHByb2R1Y3RzKgwQAioCgAFCBHplcm9aGAoEcm93"
    "cxIQCg4IAhIKCgMSAW4KAxIBZFoYCgVxdWVyeRIPCg0IAxIJCgMSAWQKAggBYhsKCHByb2R1Y3RzEg8KDQgGEgkKAxIBbgoCCAFCBAoAEBE="
)
_TALKATIVE = (1, 29)  # onnxruntime from this version on sends telemetry from native code


@dataclass(frozen=True, slots=True)
class _Loaded:
    session: Any
    tokenizer: Any


class _OnnxModel:
    """A graph with its tokenizer: loaded at the first use, thread-safe, loaded again in a forked child."""

    def __init__(self, files: artifacts.OnnxFiles, threads: int | None) -> None:
        if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
            raise InvalidInputError(f"threads must be a whole number of at least 1 or None, not {threads!r}")
        self._files = files
        self._threads = threads or _cores()
        self._lock = threading.Lock()
        self._loaded: _Loaded | None = None
        self._closed = False

    def close(self) -> None:
        """Free the model. Later calls raise ClosedError; closing twice is fine."""
        with self._lock:
            self._closed = True
            self._loaded = None

    def _model(self) -> _Loaded:
        loaded = self._loaded
        if loaded is not None:
            return loaded
        with self._lock:
            if self._closed:
                raise ClosedError(f"the {self._files.entry.name} model was closed; make a new one")
            if self._loaded is None:
                _watch_forks()
                _loaded_here.add(self)
                self._loaded = self._load()
            return self._loaded

    def _leave_parent(self) -> None:
        """In a forked child: load again when needed. The threads of the parent's session are not here, so that
        running it, and even freeing it, would wait for them forever: it is never freed."""
        self._lock = threading.Lock()  # a thread of the parent may have held it
        if self._loaded is not None:
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._loaded))
            self._loaded = None

    def _load(self) -> _Loaded:
        ort = _onnxruntime()
        from tokenizers import Tokenizer

        self._files.check()
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        options.enable_cpu_mem_arena = False
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = ort.InferenceSession(str(self._files.model), options, providers=["CPUExecutionProvider"])
            tokenizer = Tokenizer.from_file(str(self._files.tokenizer))
        except Exception as error:  # both raise bare exceptions of their own
            raise ModelFileError(f"{self._files.model.parent} can't be loaded ({error}); reinstall localmem") from error
        tokenizer.no_padding()
        # The published file says 128 tokens and pads to that. The stride is for what overflows.
        tokenizer.enable_truncation(self._files.entry.tokens_max, stride=PASSAGE_OVERLAP)
        return _Loaded(session, tokenizer)


class OnnxEmbedder(_OnnxModel):
    """A MiniLM in int8; reads the first 256 tokens of a text. Thread-safe; loads again in a forked child.

    ``files``: of an embedder that comes with localmem, the default one's if None. ``threads``: within one batch; None:
    the cores this process may use, at most 4. Making one is cheap; it raises ModelNotFoundError or ModelFileError when
    the model's files are not right.
    """

    def __init__(self, files: artifacts.EmbedderFiles | None = None, *, threads: int | None = None) -> None:
        self._entry = (files := files or artifacts.embedder_files()).entry
        super().__init__(files, threads)

    @property
    def id(self) -> str:
        return self._entry.name

    @property
    def dim(self) -> int:
        return self._entry.dim

    @property
    def sha256(self) -> str:
        return self._entry.whole_sha256

    def embed_query(self, text: str) -> Vector:
        """The unit vector of one text, float32, shape (dim,). Blank text: InvalidInputError."""
        _check_text(text, "text")
        vector: Vector = self._vectors([text])[0]
        return vector

    def embed_passages(self, texts: Sequence[str]) -> Vectors:
        """One float32 row per text in the order given, shape (len(texts), dim), unit length.

        Blank text: InvalidInputError, naming its position. No texts: shape (0, dim).
        """
        if isinstance(texts, str | bytes):
            raise InvalidTypeError(f"texts must be a sequence of str, not one {type(texts).__name__}")
        texts = list(texts)
        for position, text in enumerate(texts):
            _check_text(text, f"texts[{position}]")
        return self._vectors(texts)

    def later_passages(self, text: str) -> list[str]:
        """The text beyond its first 256 tokens in passages of about half as many; [] for a shorter text.

        At most PASSAGES_MAX; a text has at least as many characters as tokens, so short ones are not even tokenised.
        """
        tokens_max = self._files.entry.tokens_max
        if len(text) <= tokens_max - 2:
            return []
        code = self._model().tokenizer.encode(text[: tokens_max * PASSAGES_MAX * 4])
        halves = [half for part in code.overflowing for half in _halves(part.offsets[1:-1])]  # no [CLS] and [SEP]
        return [text[half[0][0] : half[-1][1]] for half in halves[:PASSAGES_MAX]]

    def _vectors(self, texts: list[str]) -> Vectors:
        import numpy as np

        vectors = np.empty((len(texts), self.dim), np.float32)
        if not texts:
            return vectors
        loaded = self._model()
        tokens = [_token_ids(loaded.tokenizer, text) for text in texts]
        for batch in _batches([len(ids) for ids in tokens]):
            rows = np.array([tokens[position] for position in batch], np.int64)
            vectors[batch] = loaded.session.run(None, {"input_ids": rows})[0]
        return vectors


class _OnnxPairs(_OnnxModel):
    """A cross-encoder: one MiniLM reads two texts together. ``threads``: as of the embedder."""

    def __init__(self, files: artifacts.OnnxFiles, *, threads: int | None = None) -> None:
        self._entry = files.entry
        super().__init__(files, threads)

    @property
    def id(self) -> str:
        return self._entry.name

    def _outputs(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Any, Scores]]:
        """(the tokenised pair, its row of the graph's output) for each pair."""
        import numpy as np

        if not pairs:
            return []
        loaded = self._model()
        codes = [loaded.tokenizer.encode(*pair) for pair in pairs]
        found: dict[int, Scores] = {}
        for batch in _batches([len(code.ids) for code in codes]):
            given = {
                "input_ids": np.array([codes[position].ids for position in batch], np.int64),
                "token_type_ids": np.array([codes[position].type_ids for position in batch], np.int64),
            }
            found.update(zip(batch, loaded.session.run(None, given)[0].astype(np.float64), strict=True))
        return [(code, found[position]) for position, code in enumerate(codes)]


class OnnxJudge(_OnnxPairs):
    """Reads a new text and a known one together and says how they stand.

    Trained by scripts/train/train_judge.py; reads the first 128 tokens of both.
    """

    def relations(self, pairs: Sequence[tuple[str, str]]) -> list[Mapping[Relation, float]]:
        """The log-probability of each relation for each (new text, known text); their exponentials sum to 1."""
        import numpy as np

        return [
            dict(zip(STANCES, (scores - np.logaddexp.reduce(scores)).tolist(), strict=True))
            for _, scores in self._outputs(pairs)
        ]


class OnnxTagger(_OnnxPairs):
    """Marks the words of a text that are worth keeping.

    Trained by scripts/train/train_tagger.py; reads the first 256 tokens of both texts.
    """

    def tag(self, pairs: Sequence[tuple[str, str]]) -> list[list[TaggedWord]]:
        """The words of the second text of each (what stands around it, text), in order; those not read are left out.

        A word's chances to be kept are the means of its tokens', its chance to begin a fact their largest.
        """
        return [_tagged(code, _chances(scores)) for code, scores in self._outputs(pairs)]


def _tagged(code: Any, chances: Scores) -> list[TaggedWord]:
    tokens: dict[int, list[int]] = {}
    for place, (word, segment) in enumerate(zip(code.word_ids, code.type_ids, strict=True)):
        if segment == 1 and word is not None:
            tokens.setdefault(word, []).append(place)
    found = []
    for places in tokens.values():
        *kept, _ = chances[places].mean(axis=0).tolist()
        begins = float(chances[places, -1].max())
        start, end = code.offsets[places[0]][0], code.offsets[places[-1]][1]
        found.append(TaggedWord(start, end, dict(zip(TAGGED_KINDS, kept, strict=True)), begins))
    return found


def _chances(scores: Scores) -> Scores:
    import numpy as np

    return 1.0 / (1.0 + np.exp(-np.clip(scores, -30, 30)))


@cache
def default_judge() -> OnnxJudge | None:
    """The packaged judge, one for all Memory objects of the process; None where the package has none."""
    files = artifacts.judge_files()
    return OnnxJudge(files) if files else None


@cache
def default_tagger() -> OnnxTagger | None:
    """The packaged tagger, one for all Memory objects of the process; None where the package has none."""
    files = artifacts.tagger_files()
    return OnnxTagger(files) if files else None


def default_embedder() -> OnnxEmbedder:
    """The embedder of new stores."""
    return packaged_embedder(artifacts.embedder_files().entry.name)


@cache
def packaged_embedder(name: str) -> OnnxEmbedder:
    """The embedder of that name, one for all Memory objects of the process, so that the model is loaded once.

    Raises InvalidInputError, naming those there are, when none of that name comes with localmem.
    """
    return OnnxEmbedder(artifacts.embedder_files(name))


_loaded_here: weakref.WeakSet[_OnnxModel] = weakref.WeakSet()


@cache  # once for each process
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
        os.register_at_fork(after_in_child=_after_fork_in_child)


def _after_fork_in_child() -> None:
    for model in list(_loaded_here):
        model._leave_parent()


def _onnxruntime() -> Any:
    """The library, told to be silent before it is first imported."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise InstallationError(
            f"onnxruntime can't be imported ({error}); reinstall it: pip install --force-reinstall 'onnxruntime<1.29'"
        ) from error
    version = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if version >= _TALKATIVE:
        warnings.warn(
            f"onnxruntime {onnxruntime.__version__} sends telemetry from native code, which localmem can't prevent "
            "when another part of this program imported it first; use: pip install 'onnxruntime<1.29'",
            RuntimeWarning,
            stacklevel=2,
        )
    return onnxruntime


@cache
def integer_products() -> Callable[[Any, Any], Any]:
    """Products of many rows with one query in whole numbers: 4 million multiplications in 0.2 ms.

    (rows uint8 (n, d), of which 128 stands for zero; query int8 (d,), up to QUERY_LEVEL_MAX either way) -> int32 (n,).
    """
    ort = _onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # no threads: it goes on in a forked child
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False
    session = ort.InferenceSession(base64.b64decode(_PRODUCTS), options, providers=["CPUExecutionProvider"])
    return lambda rows, query: session.run(None, {"rows": rows, "query": query[:, None]})[0][:, 0]


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    """The ids of the text, [CLS] and [SEP] included. Of a long text only as much is tokenised as is needed."""
    if len(text) > _CHARS_FIRST:
        start = tokenizer.encode(text[:_CHARS_FIRST])
        full = start.ids if len(start.ids) == tokenizer.truncation["max_length"] else None
        if full and start.offsets[-2][1] <= _CHARS_FIRST - _WORD_CHARS_MAX:  # [-1] is [SEP]; no token saw the cut
            return list(full)
    return list(tokenizer.encode(text).ids)


def _halves(tokens: Sequence[tuple[int, int]]) -> list[Sequence[tuple[int, int]]]:
    """The tokens of a passage as two that overlap, or as one where they are few."""
    middle, over = len(tokens) // 2, PASSAGE_OVERLAP // 2
    return [tokens] if middle < 2 * PASSAGE_OVERLAP else [tokens[: middle + over], tokens[middle - over :]]


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Positions of equal length together, at most BATCH_TOKENS tokens each."""
    groups: dict[int, list[int]] = {}
    for position, length in enumerate(lengths):
        groups.setdefault(length, []).append(position)
    for length, positions in sorted(groups.items()):
        size = max(1, BATCH_TOKENS // length)
        for start in range(0, len(positions), size):
            yield positions[start : start + size]


def _check_text(text: object, name: str) -> None:
    if not isinstance(text, str):
        raise InvalidTypeError(f"{name} must be a str, not {type(text).__name__}")
    if not text.strip():
        raise InvalidInputError(f"{name} is blank; there is nothing to embed")
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"{name} holds a lone surrogate at character {error.start}") from None


def _cores() -> int:
    try:
        usable = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        usable = os.cpu_count() or 1
    return min(usable, THREADS_MAX)
