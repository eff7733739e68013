"""Chat models. The only importer of llama_cpp: GGUF, adapter, grammar, label scoring, prefix reuse.

All native work of one generator runs on one thread of its own. Calls are thereby serialised; OpenMP keeps one pool
of threads instead of one for each caller; and a forked child can go on: an OpenMP pool does not survive fork in the
thread that used it (the child hangs, measured with libgomp), but a thread started in the child has a new one.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from localmem import config, gbnf, prompts
from localmem.errors import (
    ClosedError,
    InvalidInputError,
    InvalidTypeError,
    MissingExtraError,
    ModelFileError,
    ModelNotFoundError,
)
from localmem.llm_model import Library, NativeLog, NativeModel, check_gguf
from localmem.types import Generator, Prompt

CONTEXT_TOKENS_MIN = 256
THREADS_MAX = 8  # more gain nothing on models of this size
_INSTALL = "add(infer=True) needs llama.cpp: pip install 'localmem[llm]'"

_NATIVE_LOG = NativeLog()

T = TypeVar("T")


def open_generator(
    spec: str | Path | Generator | None = None, *, allow_remote: bool = False, threads: int | None = None
) -> Generator | None:
    """The generator named by ``spec``; cheap, and a missing model shows at the first use, not here.

    None: LOCALMEM_GENERATOR, else the installed default. "none": no generator. "http(s)://…": a server on this
    machine, ``#name`` at the end chooses its model (other machines only with ``allow_remote``). A path: that GGUF.
    A Generator: itself. Raises InvalidInputError for anything else.
    """
    settings = config.settings()
    threads = threads if threads is not None else settings.generator_threads
    if spec is None:
        spec = settings.generator
    if spec is None:
        return LlamaGenerator(_default_path, adapter=_default_adapter, threads=threads)
    if isinstance(spec, str):
        if not spec.strip():
            raise InvalidInputError("generator is empty; give a GGUF path, a server's URL, or leave it out")
        if spec == "none":
            return None
        if "://" in spec:
            from localmem.llm_server import ServerGenerator

            url, _, model = spec.partition("#")
            return ServerGenerator(url, model=model or None, allow_remote=allow_remote)
    if isinstance(spec, str | Path):
        return LlamaGenerator(Path(spec).expanduser(), threads=threads)
    if isinstance(spec, Generator):
        return spec
    raise InvalidTypeError(
        f"generator must be a GGUF path, a server's URL or an object with the methods of localmem.types.Generator, "
        f"not {type(spec).__name__}"
    )


def _default_path() -> Path:
    from localmem import artifacts

    return artifacts.generator_path()


def _default_adapter() -> Path | None:
    from localmem import artifacts

    return artifacts.adapter_path()


class LlamaGenerator:
    """A chat GGUF in this process. Loaded at the first call, thread-safe, reloaded in a forked child.

    ``path``: the file, or a function giving it (asked at first use). ``threads``: 1 or more; None for the physical
    cores this process may use, at most 8. ``context_tokens``: prompt and reply together. ``adapter``: a LoRA GGUF
    made for this model, a folder of them (`adapter_files`), or a function giving one or None.
    ``prefix_reuse=False`` evaluates each prompt whole; replies are the same, only slower.
    """

    def __init__(
        self,
        path: Path | str | Callable[[], Path],
        *,
        threads: int | None = None,
        context_tokens: int = 2048,
        seed: int = 1,
        adapter: Path | str | Callable[[], Path | None] | None = None,
        prefix_reuse: bool = True,
    ) -> None:
        if threads is not None and threads < 1:
            raise InvalidInputError(f"threads must be at least 1, not {threads}")
        if context_tokens < CONTEXT_TOKENS_MIN:
            raise InvalidInputError(f"context_tokens must be at least {CONTEXT_TOKENS_MIN}, not {context_tokens}")
        self._path: Path | Callable[[], Path] = path if callable(path) else Path(path)
        self._threads = threads or default_threads()
        self._context_tokens = context_tokens
        self._seed = seed
        self._adapter: Path | Callable[[], Path | None] | None = (
            adapter if adapter is None or callable(adapter) else Path(adapter)
        )
        self._prefix_reuse = prefix_reuse
        self._closed = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._worker: ThreadPoolExecutor | None = None
        self._model: NativeModel | None = None
        _FORKED.add(self)

    @property
    def id(self) -> str:
        """``llama:NAME``, the file's name without its suffix; with ``+ADAPTER`` where there is one."""
        try:
            name = self._file().stem
        except ModelNotFoundError:
            name = "default"
        adapter = self._adapter_file()
        return f"llama:{name}" + (f"+{adapter.stem}" if adapter else "")

    def fingerprint(self) -> Mapping[str, str]:
        """What a reply depends on besides the prompt. Reads the files, does not load the model."""
        adapter = self._adapter_file()
        return {
            "generator": self.id,
            "model_sha256": _sha256(self._file()),
            "adapter": adapter_sha256(adapter) if adapter else "",
            "llama_cpp": _llama_cpp_version(),
            "seed": str(self._seed),
            "threads": str(self._threads),
            "context": str(self._context_tokens),
            "prefix_reuse": "on" if self._prefix_reuse else "off",
        }

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        """The greedy reply under the GBNF grammar; the same prompt gives the same reply.

        A reply that runs into ``tokens_max`` (or repeats itself) is cut to its complete lines; without any that
        match the grammar: GeneratorError. Also GeneratorError when prompt and reply don't fit the context.
        """
        if tokens_max < 1:
            raise InvalidInputError(f"tokens_max must be at least 1, not {tokens_max}")
        parsed = gbnf.parse(grammar)
        return self._call(lambda model: model.generate(prompt, grammar, parsed, tokens_max))

    def score_labels(self, prompt: Prompt, labels: Sequence[str]) -> tuple[float, ...]:
        """One log-probability for each label as the first token of the reply; their exponentials sum to 1.

        GeneratorError when a label is not one token of this model.
        """
        return self.score_labels_many([prompt], labels)[0]

    def score_labels_many(self, asked: Sequence[Prompt], labels: Sequence[str]) -> list[tuple[float, ...]]:
        """`score_labels` for several prompts. Those that share their first part are evaluated side by side.

        Measured with 8 of them: 1.3 to 1.6 times as fast as one by one. Rounding in a 4-bit model then depends on
        what stands beside a prompt: probabilities moved by 0.02 (median), at most 0.07.
        """
        if not labels or len(set(labels)) != len(labels):
            raise InvalidInputError(f"labels must be one or more different texts, not {list(labels)!r}")
        return self._call(lambda model: model.score(asked, labels))

    def count_tokens(self, text: str) -> int:
        """How many tokens the text takes inside a prompt."""
        return self._call(lambda model: len(model.tokenise(text, special=False)))

    def close(self) -> None:
        """Give the memory back. Later calls raise ClosedError; closing again does nothing."""
        with self._lock:
            self._closed = True
            if self._worker is not None:
                self._worker.submit(self._unload).result()
                self._worker.shutdown()
                self._worker = None

    def _call(self, work: Callable[[NativeModel], T]) -> T:
        with self._lock:
            if self._closed:
                raise ClosedError("the generator was closed with its Memory; open another one")
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="localmem-llama")
            future = self._worker.submit(self._on_worker, work)
            try:
                return future.result()
            except BaseException:  # a KeyboardInterrupt reaches the waiting thread only: stop the other one too
                self._stop.set()
                raise

    def _on_worker(self, work: Callable[[NativeModel], T]) -> T:
        self._stop.clear()
        if self._model is None:
            self._model = NativeModel(
                _load_library(),
                self._file(),
                adapters=adapter_files(adapter) if (adapter := self._adapter_file()) else {},
                threads=self._threads,
                context_tokens=self._context_tokens,
                prefix_reuse=self._prefix_reuse,
                stop=self._stop,
            )
            weakref.finalize(self, self._model.free).atexit = False
        return work(self._model)

    def _unload(self) -> None:
        if self._model is not None:
            self._model.free()
            self._model = None

    def _start_over(self) -> None:
        """In a forked child: the parent's thread, lock and KV cache are of no use there."""
        if self._model is not None:
            self._model.abandon()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._worker = None
        self._model = None

    def _file(self) -> Path:
        if not isinstance(self._path, Path):
            self._path = self._path()  # asked again until it is there, then never: the model stays the same
        return self._path

    def _adapter_file(self) -> Path | None:
        if callable(self._adapter):
            self._adapter = self._adapter()
        return self._adapter


_FORKED: weakref.WeakSet[LlamaGenerator] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for generator in list(_FORKED):
        generator._start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


def default_threads() -> int:
    """The physical cores this process may run on, at most 8: siblings of one core slow each other down."""
    if not hasattr(os, "sched_getaffinity"):
        return min(os.cpu_count() or 1, THREADS_MAX)
    cpus = os.sched_getaffinity(0)
    cores = {_siblings(cpu) for cpu in cpus}
    return max(1, min(len(cores), _quota_cpus(), THREADS_MAX))


def _siblings(cpu: int) -> str:
    try:
        return Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)


def _quota_cpus() -> int:
    """Processors the container may use by its time quota; more threads than that stall each other."""
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, int(quota) // int(period))
    except (OSError, ValueError):  # no cgroup v2, or "max"
        return THREADS_MAX


def requantise_q4_0(source: Path, target: Path) -> None:
    """Write ``source`` to ``target`` with its 4-bit weights as Q4_0, which CPUs evaluate fastest.

    Whole or not at all. ModelFileError when the source is no GGUF or llama.cpp refuses it.
    """
    check_gguf(source)
    library = _load_library()
    lib = library.api
    settings = lib.llama_model_quantize_default_params()
    settings.ftype = lib.LLAMA_FTYPE_MOSTLY_Q4_0
    settings.allow_requantize = True
    settings.nthread = default_threads()
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with library.log.errors() as said:
            code = lib.llama_model_quantize(os.fsencode(source), os.fsencode(part), ctypes.byref(settings))
        if code != 0:
            raise ModelFileError(f"llama.cpp could not requantise {source}{said()}; use the file as it is")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _load_library() -> Library:
    try:
        with _patient_openmp():
            import llama_cpp
            from llama_cpp.llama_chat_format import Jinja2ChatFormatter
    except ImportError as error:
        raise MissingExtraError(_INSTALL) from error
    _NATIVE_LOG.silence(llama_cpp)  # importing it installs a callback that prints
    llama_cpp.llama_backend_init()
    return Library(llama_cpp, Jinja2ChatFormatter, _NATIVE_LOG)


@contextlib.contextmanager
def _patient_openmp() -> Iterator[None]:
    """While libgomp is loaded (it reads its settings then), let its threads spin briefly before they sleep.

    By default they spin long at every barrier (several in each layer), and stall where other programs use the
    processors: on 2 busy cores a reply took 1.9 s, with 1,000 turns of spinning 0.9 s; undisturbed 0.17 and 0.18 s.
    What the user set is left alone.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "1000"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


def _llama_cpp_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("llama-cpp-python")
    except PackageNotFoundError:
        raise MissingExtraError(_INSTALL) from None


def adapter_files(path: Path) -> dict[str, Path]:
    """The adapter file of each prompt. A file is for all of them, which stands under "".

    In a folder each file is for the prompts in its name, with hyphens between: "stance-reword.gguf". Other prompts
    are asked without an adapter. Raises ModelFileError when a folder holds none, one for no prompt, or two for one.
    """
    if not path.is_dir():
        return {"": path}
    files: dict[str, Path] = {}
    for file in sorted(path.glob("*.gguf")):
        for prompt in file.stem.split("-"):
            if not (prompts.FOLDER / f"{prompt}.toml").is_file():
                raise ModelFileError(
                    f"{file} is for no prompt of localmem; name it by prompts, like stance-reword.gguf"
                )
            if prompt in files:
                raise ModelFileError(f"{files[prompt]} and {file} are both for the prompt {prompt}; keep one of them")
            files[prompt] = file
    if not files:
        raise ModelFileError(f"the folder {path} holds no adapter; give one with files like stance-reword.gguf")
    return files


def adapter_sha256(path: Path) -> str:
    """The hash of an adapter file; of a folder, that of the lines "sha256  name" of its files."""
    if not path.is_dir():
        return _sha256(path)
    files = dict.fromkeys(adapter_files(path).values())
    return hashlib.sha256("".join(f"{_sha256(file)}  {file.name}\n" for file in files).encode()).hexdigest()


def _sha256(path: Path) -> str:
    try:
        facts = path.stat()
    except FileNotFoundError:
        check_gguf(path)  # raises the error that says what to do
        raise
    return _sha256_of(path, facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=16)
def _sha256_of(path: Path, size_bytes: int, changed_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
