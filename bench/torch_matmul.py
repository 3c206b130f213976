"""Times PyTorch's dense matmul, for gemm.py; runs under an interpreter that has torch.

Reads lines of JSON {"dtype", "M", "N", "K", "repeats"}; answers each with {"forward": [s], "backward": [s]}: seconds of
y = x·Wᵀ and dx = dy·W.
"""

from __future__ import annotations

import json
import sys
import time

import torch


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    tensors: dict[tuple, torch.Tensor] = {}

    def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        if (dtype, shape) not in tensors:
            tensors[dtype, shape] = torch.randn(*shape).to(dtype)
        return tensors[dtype, shape]

    print(json.dumps({"torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        ask = json.loads(line)
        dtype, (M, N, K) = getattr(torch, ask["dtype"]), (ask["M"], ask["N"], ask["K"])
        x, w, dy = tensor(dtype, M, K), tensor(dtype, N, K), tensor(dtype, M, N)
        times: dict[str, list[float]] = {"forward": [], "backward": []}
        with torch.no_grad():
            torch.matmul(x, w.t())
            torch.matmul(dy, w)
            for _ in range(ask["repeats"]):
                for name, a, b in (("forward", x, w.t()), ("backward", dy, w)):
                    started = time.perf_counter()
                    torch.matmul(a, b)
                    times[name].append(time.perf_counter() - started)
        print(json.dumps(times), flush=True)


main()
