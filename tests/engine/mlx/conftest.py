"""MLX on whatever device is there. Fused kernels are off: on CPUs MLX runs a C++ compiler for each of them, which takes minutes."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

if find_spec("mlx") is None or find_spec("mlx_lm") is None:
    collect_ignore_glob = ["test_*.py"]  # an extra on Linux; the tests of this folder are about nothing else
else:
    import mlx.core as mx

    @pytest.fixture(autouse=True)
    def uncompiled() -> None:
        mx.disable_compile()
