"""A base model with an adapter's additions in its own weights, to be measured beside the adapter applied at load.

    python scripts/train/merge.py --base BASE.gguf --adapter ADAPTER.gguf --out MERGED-f16.gguf [--q4 MERGED-Q4_0.gguf]

Every weight is written as 16-bit floats; ``--q4`` makes the 4-bit form from that, as the installed base is made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import gguf
import numpy as np
from llama import dequantised, read_adapter

from localmem.llm import requantise_q4_0


def merged(base: gguf.GGUFReader, adapter: Path) -> dict[str, np.ndarray]:
    """Weights by tensor name, (out, in): W + B A alpha / rank."""
    additions = read_adapter(adapter)
    alpha = float(gguf.GGUFReader(adapter).fields["adapter.lora.alpha"].contents())
    weights = {}
    for tensor in base.tensors:
        weights[tensor.name] = weight = dequantised(tensor)
        if (a := additions.get(f"{tensor.name}.lora_a")) is not None:
            b = additions[f"{tensor.name}.lora_b"]
            weight += (b @ a).numpy() * (alpha / a.shape[0])
    return weights


def write(base: gguf.GGUFReader, weights: dict[str, np.ndarray], path: Path) -> None:
    """``base`` with these weights: matrices in 16 bit, vectors in 32 bit."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, field in base.fields.items():
        if name in ("general.architecture", "general.file_type") or name.startswith("GGUF."):  # the writer's own
            continue
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    for name, weight in weights.items():
        writer.add_tensor(name, weight.astype(np.float16 if weight.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True, help="the GGUF that the adapter was trained on")
    parser.add_argument("--adapter", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="the 16-bit form")
    parser.add_argument("--q4", type=Path, help="the 4-bit form")
    given = parser.parse_args()
    base = gguf.GGUFReader(given.base)
    write(base, merged(base, given.adapter), given.out)
    if given.q4:
        requantise_q4_0(given.out, given.q4)


if __name__ == "__main__":
    main()
