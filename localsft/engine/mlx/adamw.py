"""AdamW as torch.optim.AdamW has it: decoupled decay, bias correction, epsilon outside the root. All in float32."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from localsft.config import OptimConfig

Tensors = dict[str, mx.array]


def squared_norm(gradients: Tensors) -> mx.array:
    """Σ g² over all tensors, float32 ()."""
    return mx.stack([mx.square(gradient).sum() for gradient in gradients.values()]).sum()


def adamw(optim: OptimConfig) -> Callable[..., tuple[Tensors, Tensors, Tensors]]:
    """The function of a step: (values, m, v, gradients, factor, lr, c1, c2) -> new values, m, v.

    ``factor`` multiplies the gradients (1/weight and clipping); c1 = 1 - β1ᵗ and c2 = 1 - β2ᵗ undo the moments' bias.
    """
    beta1, beta2 = optim.betas

    def step(
        values: Tensors, m: Tensors, v: Tensors, gradients: Tensors, factor: mx.array, lr: mx.array, c1: mx.array, c2: mx.array
    ) -> tuple[Tensors, Tensors, Tensors]:
        new_values: Tensors = {}
        new_m: Tensors = {}
        new_v: Tensors = {}
        for name, value in values.items():
            gradient = gradients[name] * factor
            new_m[name] = beta1 * m[name] + (1 - beta1) * gradient
            new_v[name] = beta2 * v[name] + (1 - beta2) * mx.square(gradient)
            update = (new_m[name] / c1) / (mx.sqrt(new_v[name] / c2) + optim.eps)
            new_values[name] = value * (1 - lr * optim.weight_decay) - lr * update
        return new_values, new_m, new_v

    return step
