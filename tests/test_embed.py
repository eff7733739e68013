"""The real embedder: true to the published weights, the same vector in any company, quiet, small, safe to share."""

from __future__ import annotations

import base64
import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from localmem import artifacts, embed
from localmem.embed import (
    OnnxEmbedder,
    OnnxJudge,
    OnnxTagger,
    default_embedder,
    default_judge,
    default_tagger,
    packaged_embedder,
)
from localmem.errors import (
    ClosedError,
    InstallationError,
    InvalidInputError,
    InvalidTypeError,
    ModelFileError,
    ModelNotFoundError,
)
from localmem.manifest import MANIFEST, EmbedderEntry
from localmem.types import STANCES, TAGGED_KINDS, Embedder, Judge, Kind, Relation, Tagger

ROOT = Path(__file__).resolve().parent.parent
REFERENCES = {"minilm/original.onnx": "embedder_original.json", "minilm/tuned.onnx": "embedder_tuned.json"}
TEXTS = (
    "User likes green tea",
    "User likes green tea a lot",
    "The flight to Nairobi was moved from Monday to Wednesday because of a strike",
    "猫を二匹飼っています",
    "ok",
    "word " * 400,
)


@pytest.fixture(scope="module")
def embedder() -> OnnxEmbedder:
    return default_embedder()


def in_child(code: str, **env: str) -> str:
    """Run Python in a fresh process; its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


# -------------------------------------------------------------------- the vectors


@pytest.mark.parametrize("entry", artifacts.manifest().embedders, ids=lambda entry: entry.name)
def test_vectors_are_those_of_the_float_weights(entry: EmbedderEntry) -> None:
    """Of scripts/build_embedder.py, which wrote the references."""
    embedder = packaged_embedder(entry.name)
    table = json.loads((ROOT / "tests" / "data" / REFERENCES[entry.model.path]).read_text(encoding="utf-8"))
    sentences = table["sentences"]
    wanted = np.frombuffer(base64.b64decode(table["vectors_float16_base64"]), "<f2").reshape(-1, table["dim"])
    assert len(sentences) == len(wanted) >= 40
    cosines = (embedder.embed_passages(sentences) * wanted.astype(np.float32)).sum(1)
    assert {text[:40]: float(cosine) for text, cosine in zip(sentences, cosines, strict=True) if cosine <= 0.99} == {}
    assert cosines.mean() > 0.998


def test_shapes_and_identity(embedder: OnnxEmbedder) -> None:
    assert isinstance(embedder, Embedder)
    assert (embedder.id, embedder.dim) == (artifacts.manifest().embedder.name, 384)
    assert embedder.sha256 == artifacts.manifest().embedder.whole_sha256
    query, rows = embedder.embed_query("tea"), embedder.embed_passages(["tea", "coffee"])
    assert query.shape == (384,)
    assert rows.shape == (2, 384)
    assert query.dtype == rows.dtype == np.float32
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert embedder.embed_passages([]).shape == (0, 384)


def test_near_texts_are_nearer(embedder: OnnxEmbedder) -> None:
    tea, green_tea, moved = embedder.embed_passages(["User likes tea", "User enjoys green tea", "Ann moved to Oslo"])
    assert tea @ green_tea > 0.6 > 0.3 > tea @ moved


def test_a_vector_does_not_depend_on_the_texts_beside_it(embedder: OnnxEmbedder) -> None:
    alone = np.stack([embedder.embed_query(text) for text in TEXTS])
    assert np.array_equal(embedder.embed_passages(TEXTS), alone)
    assert np.array_equal(embedder.embed_passages(TEXTS[::-1]), alone[::-1])
    many = [text for text in TEXTS for _ in range(9)]
    assert np.array_equal(embedder.embed_passages(many), np.repeat(alone, 9, axis=0))


def test_the_first_256_tokens_are_read(embedder: OnnxEmbedder) -> None:
    same = "tea " * 128  # with [CLS] and [SEP]: 254 words fit
    sea, tax = embedder.embed_passages([same + "the sea is calm today", same + "pay the tax in April"])
    assert sea @ tax < 0.999
    full = "tea " * 254
    sea, tax = embedder.embed_passages([full + "the sea is calm today", full + "pay the tax in April"])
    assert np.array_equal(sea, tax)
    assert not np.array_equal(embedder.embed_query("tea " * 253 + "tax"), embedder.embed_query(full))


@pytest.mark.parametrize(
    "text",
    [
        "word " * 5_000,
        "x" * 9_000,
        " " * 9_000 + "tea",
        "é̂" * 5_000,
        ("y" * 99 + " ") * 60,
        "a, " * 3_000,
        "終" * 6_000,
    ],
)
def test_long_texts_are_cut_without_changing_a_token(embedder: OnnxEmbedder, text: str) -> None:
    tokenizer = embedder._model().tokenizer
    assert embed._token_ids(tokenizer, text) == tokenizer.encode(text).ids


def test_batches_hold_one_length_and_few_tokens() -> None:
    lengths = [7, 256, 7, 12, *[256] * 9, 7, 3, *[3] * 2_000]
    batches = list(embed._batches(lengths))
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))
    for batch in batches:
        (length,) = {lengths[position] for position in batch}
        assert len(batch) * length <= embed.BATCH_TOKENS


# -------------------------------------------------------------------- bad input


@pytest.mark.parametrize("text", ["", "   ", "\n\t\u3000"])
def test_blank_text_is_refused(embedder: OnnxEmbedder, text: str) -> None:
    with pytest.raises(InvalidInputError, match="text is blank"):
        embedder.embed_query(text)
    with pytest.raises(InvalidInputError, match=r"texts\[1\] is blank"):
        embedder.embed_passages(["tea", text])


def test_what_is_no_text_is_refused(embedder: OnnxEmbedder) -> None:
    wrong: Any = "tea"
    with pytest.raises(InvalidTypeError, match="sequence of str"):
        embedder.embed_passages(wrong)
    wrong = [None]
    with pytest.raises(InvalidTypeError, match=r"texts\[0\] must be a str, not NoneType"):
        embedder.embed_passages(wrong)
    with pytest.raises(InvalidInputError, match="lone surrogate at character 3"):
        embedder.embed_query("tea\ud800")
    with pytest.raises(InvalidInputError, match="threads"):
        OnnxEmbedder(threads=0)


# -------------------------------------------------------------------- sharing


def test_threads_share_one_embedder(embedder: OnnxEmbedder) -> None:
    fresh, wanted = OnnxEmbedder(threads=2), embedder.embed_passages(TEXTS)
    equal: list[bool] = []

    def work() -> None:
        for _ in range(4):
            equal.append(np.array_equal(fresh.embed_passages(TEXTS), wanted))

    workers = [threading.Thread(target=work) for _ in range(6)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert equal == [True] * 24
    fresh.close()


def test_thread_count_does_not_change_vectors(embedder: OnnxEmbedder) -> None:
    single, more = OnnxEmbedder(threads=1), OnnxEmbedder(threads=3)
    assert np.array_equal(single.embed_passages(TEXTS), more.embed_passages(TEXTS))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_embeds_too() -> None:
    """In its own process: forking the one of the test suite would carry along whatever threads it has."""
    code = """
    import os, signal, threading, warnings
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork with threads
    from localmem.embed import OnnxEmbedder
    embedder = OnnxEmbedder(threads=2)
    before = embedder.embed_query("tea").tobytes()
    with embedder._lock:  # as another thread might hold it, just then
        child = os.fork()
    if child == 0:
        signal.alarm(60)
        assert embedder.embed_query("tea").tobytes() == before
        embedder.close()
        raise SystemExit
    idle = os.fork()
    if idle == 0:
        signal.alarm(60)
        raise SystemExit  # ends although it never used, and frees, what it inherited
    ends = [os.waitpid(pid, 0)[1] for pid in (child, idle)]
    print(ends, embedder.embed_query("tea").tobytes() == before)
    """
    assert in_child(code) == "[0, 0] True"


def test_closed_embedder_says_so() -> None:
    embedder = OnnxEmbedder()
    embedder.embed_query("tea")
    embedder.close()
    embedder.close()
    gc.collect()
    with pytest.raises(ClosedError):
        embedder.embed_query("tea")


# -------------------------------------------------------------------- a light and quiet guest


def test_import_is_light() -> None:
    code = """
    import sys, localmem.embed
    print(sorted({"numpy", "onnxruntime", "tokenizers", "apsw", "llama_cpp"} & set(sys.modules)))
    """
    assert in_child(code) == "[]"


def test_telemetry_is_off_before_onnxruntime_is_imported() -> None:
    code = """
    import os, sys
    os.environ.pop("ORT_DISABLE_TELEMETRY", None)
    seen = []
    class Watch:
        def find_spec(self, name, path=None, target=None):
            if name == "onnxruntime":
                seen.append(os.environ.get("ORT_DISABLE_TELEMETRY"))
    sys.meta_path.insert(0, Watch())
    from localmem.embed import OnnxEmbedder
    OnnxEmbedder().embed_query("tea")
    print(seen)
    """
    assert in_child(code) == "['1']"


def test_newer_onnxruntime_is_warned_about(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.29.1"))  # type: ignore[arg-type]
    with pytest.warns(RuntimeWarning, match=r"onnxruntime 1\.29\.1 sends telemetry"):
        embed._onnxruntime()
    monkeypatch.setitem(sys.modules, "onnxruntime", SimpleNamespace(__version__="1.28.0"))  # type: ignore[arg-type]
    embed._onnxruntime()  # warnings are not errors here, so look at the count

    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # type: ignore[arg-type]
    with pytest.raises(InstallationError, match="pip install"):
        embed._onnxruntime()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_memory_stays_small() -> None:
    """40 full-length texts at once; a 32 x 256 batch with padding and float activations once took 618 MB."""
    code = """
    def peak_mb():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))
    import numpy
    from localmem.embed import OnnxEmbedder
    before = peak_mb()
    OnnxEmbedder(threads=2).embed_passages([f"sentence {i} " * 200 for i in range(40)])
    print(peak_mb() - before)
    """
    assert int(in_child(code)) < 250


# -------------------------------------------------------------------- files that are not right


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A models folder of its own, for damaging."""
    known = artifacts.manifest()
    for name in (known.embedder.model.path, known.words.path, known.tokenizer.path, MANIFEST):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((known.folder / name).read_bytes())
    return tmp_path


def test_missing_file_names_it_and_the_cure(copied: Path) -> None:
    (copied / "minilm" / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json is missing; reinstall localmem"):
        artifacts.embedder_files(folder=copied)


def test_truncated_model_is_refused_before_it_is_loaded(copied: Path) -> None:
    model = copied / artifacts.manifest().embedder.model.path
    model.write_bytes(model.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match=r"bytes, expected"):
        artifacts.embedder_files(folder=copied)


def test_altered_model_is_refused_at_the_first_text(copied: Path) -> None:
    model = copied / artifacts.manifest().embedder.model.path
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with pytest.raises(ModelFileError, match="sha256"):
        OnnxEmbedder(artifacts.embedder_files(folder=copied)).embed_query("tea")


def test_the_copy_works(copied: Path, embedder: OnnxEmbedder) -> None:
    own = OnnxEmbedder(artifacts.embedder_files(folder=copied))
    assert np.array_equal(own.embed_query("tea"), embedder.embed_query("tea"))


# -------------------------------------------------------------------- the judge

PAIRS = (
    ("User lives in Porto now", "User lives in Lisbon"),
    ("User no longer has a car", "User has a car, a 2009 Corsa"),
    ("User can't eat peanuts", "User is allergic to peanuts"),
    ("User has a parrot", "User has a dog called Bruno, nine years old"),
    ("User asks: forget my address", "User lives at Kirkegata 4"),
    ("word " * 300, "User lives in Lisbon"),
)


@pytest.fixture(scope="module")
def judge() -> OnnxJudge:
    found = default_judge()
    assert found is not None
    return found


def test_judge_gives_probabilities_of_the_relations(judge: OnnxJudge) -> None:
    assert isinstance(judge, Judge)
    assert judge.relations([]) == []
    for row in judge.relations(PAIRS):
        assert tuple(row) == STANCES
        assert sum(np.exp(list(row.values()))) == pytest.approx(1.0)
    likeliest = [max(row, key=lambda relation: row[relation]) for row in judge.relations(PAIRS[:4])]
    assert likeliest == [Relation.CHANGES, Relation.RETRACTS, Relation.SAME, Relation.COEXISTS]


def test_judge_reads_each_pair_alone(judge: OnnxJudge) -> None:
    alone = [judge.relations([pair])[0] for pair in PAIRS]
    assert judge.relations(PAIRS) == alone
    assert judge.relations(PAIRS[::-1]) == alone[::-1]
    turned = judge.relations([(known, new) for new, known in PAIRS[:1]])
    assert turned != alone[:1]


def test_judge_reloads_in_a_forked_child(judge: OnnxJudge) -> None:
    code = f"""
        import os
        from localmem.embed import default_judge
        judge = default_judge()
        pairs = {PAIRS[:2]!r}
        wanted = judge.relations(pairs)
        pid = os.fork()
        if pid == 0:
            os._exit(0 if judge.relations(pairs) == wanted else 1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """
    assert in_child(code) == "0"


def test_closed_judge_says_so() -> None:
    files = artifacts.judge_files()
    assert files is not None
    mine = OnnxJudge(files, threads=1)
    mine.relations(PAIRS[:1])
    mine.close()
    with pytest.raises(ClosedError):
        mine.relations(PAIRS[:1])


# -------------------------------------------------------------------- the tagger

SAID = "what's the capital of Peru? oh, and I'm allergic to walnuts"
AROUND = "user: assistant: Lima."


def test_tagger_marks_the_words_worth_keeping() -> None:
    tagger = default_tagger()
    assert isinstance(tagger, OnnxTagger)
    assert isinstance(tagger, Tagger)
    assert tagger.tag([]) == []
    [tagged] = tagger.tag([(AROUND, SAID)])
    words = [SAID[word.start : word.end] for word in tagged]
    assert words[:3] == ["what", "'", "s"]
    assert words[-3:] == ["allergic", "to", "walnuts"]
    assert all(set(word.kept) == set(TAGGED_KINDS) for word in tagged)
    assert all(0 <= chance <= 1 for word in tagged for chance in (*word.kept.values(), word.begins))
    kept = [max(word.kept.values()) > 0.5 for word in tagged]
    assert kept[-3:] == [True] * 3
    assert not any(kept[:7])
    assert tagged[-1].kept[Kind.SEMANTIC] == max(tagged[-1].kept.values())


def test_tagger_reads_each_text_alone() -> None:
    tagger = default_tagger()
    assert tagger is not None
    pairs = [(AROUND, SAID), ("user:", "I live in Graz"), ("user:", "word " * 400), ("", "…")]
    alone = [tagger.tag([pair])[0] for pair in pairs]
    assert tagger.tag(pairs) == alone
    assert len(alone[2]) < 260  # what is beyond is not read
