"""The weighted mean of several runs' weights as one adapter ("model soup", Wortsman et al. 2022, arXiv:2203.05482).

    python scripts/train/mean.py --base BASE.gguf --out MEAN.gguf RUN/mean.pt=0.6 OTHER/mean.pt=0.4

The runs have to share their beginning: additions trained apart have no mean that means anything. MEAN.pt, beside it, is
what another run of train.py can start from.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from llama import Llama, Lora, write_adapter
from torch import Tensor


def weighted(text: str) -> tuple[Path, float]:
    path, _, share = text.rpartition("=")
    return Path(path), float(share)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=weighted, nargs="+", metavar="STATE.pt=SHARE", help="shares that sum to 1")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=32.0)
    given = parser.parse_args()
    if abs(sum(share for _, share in given.runs) - 1) > 1e-6:
        parser.error("the shares must sum to 1")
    mean: dict[str, Tensor] = {}
    for path, share in given.runs:
        for name, value in torch.load(path, map_location="cpu", weights_only=True)["model"].items():
            mean[name] = mean.get(name, 0) + share * value.float()
    model = Llama(given.base, Lora(given.rank, given.alpha, 0.0))
    model.load_state_dict(mean)
    write_adapter(model, given.out)
    torch.save({"model": model.state_dict()}, given.out.with_suffix(".pt"))


if __name__ == "__main__":
    main()
