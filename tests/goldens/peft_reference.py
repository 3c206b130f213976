"""What the goldens are measured with: a Hugging Face llama, PEFT's LoRA, PyTorch's autograd and AdamW.

Needs the goldens' own environment (see make_goldens.py); the project itself never imports this file.
Arrays leave here under mlx-lm's names and shapes: ``<module>.lora_a`` (in, r) and ``<module>.lora_b`` (r, out).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm, LlamaRotaryEmbedding

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LINEARS = ATTENTION + MLP

BETAS, EPS, WEIGHT_DECAY, MAX_NORM, STEPS = (0.9, 0.999), 1e-8, 0.01, 1.0, 10


@dataclass(frozen=True, slots=True)
class Example:
    """``ids`` int32 (n,), ``weights`` float32 (n,): weight of token i as a target, 0 for token 0."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Forward:
    """One example: ``logits`` (n, V); ``logprobs`` (n,), log p(ids[i] | ids[:i]) with 0 at i = 0; ``loss`` Σ w·CE in float64."""

    logits: torch.Tensor
    logprobs: torch.Tensor
    loss: torch.Tensor


class _ExactNorm(torch.nn.Module):
    """RMSNorm in the dtype of its input; transformers' own drops to float32 whatever it is given."""

    def __init__(self, norm: LlamaRMSNorm) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class _ExactRotary(torch.nn.Module):
    """cos and sin of RoPE in float64; transformers' own drops to float32."""

    def __init__(self, rotary: LlamaRotaryEmbedding) -> None:
        super().__init__()
        config = rotary.config
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        self.frequencies = config.rope_parameters["rope_theta"] ** -exponent

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids[..., None].double() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


def make_float64(model: LlamaForCausalLM) -> None:
    """Make ``model`` compute in float64 throughout, in place."""
    model.double()
    model.model.rotary_emb = _ExactRotary(model.model.rotary_emb)
    model.model.norm = _ExactNorm(model.model.norm)
    for layer in model.model.layers:
        layer.input_layernorm = _ExactNorm(layer.input_layernorm)
        layer.post_attention_layernorm = _ExactNorm(layer.post_attention_layernorm)


def module_names(layers: range | list[int], targets: tuple[str, ...]) -> list[str]:
    """Adapted modules in the order of the goldens: by layer, then q, k, v, o, gate, up, down."""
    return [f"model.layers.{n}.{'self_attn' if t in ATTENTION else 'mlp'}.{t}" for n in layers for t in LINEARS if t in targets]


def with_lora(
    model: LlamaForCausalLM,
    *,
    rank: int,
    alpha: int,
    layers: range | list[int],
    targets: tuple[str, ...],
    initial: dict[str, NDArray],
    dora: bool = False,
) -> PeftModel:
    """``model`` with PEFT LoRA or DoRA on ``targets`` of ``layers``, A, B and m taken from ``initial`` (mlx-lm names and shapes)."""
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(targets),
        layers_to_transform=list(layers),
        bias="none",
        task_type="CAUSAL_LM",
        use_dora=dora,
    )
    peft = get_peft_model(model, config)
    parameters = lora_parameters(peft)
    expected = {f"{m}.{ab}" for m in module_names(layers, targets) for ab in ("lora_a", "lora_b", *(["m"] if dora else []))}
    assert set(parameters) == expected, set(parameters) ^ expected
    for name, parameter in parameters.items():
        parameter.data = torch.from_numpy(initial[name].T.copy()).to(model.lm_head.weight.dtype)
    return peft.eval()


def lora_parameters(peft: PeftModel) -> dict[str, torch.nn.Parameter]:
    """Trainable parameters by mlx-lm name, in PEFT's orientation: lora_a (r, in), lora_b (out, r), m (out,)."""
    found = {}
    for name, parameter in peft.named_parameters():
        if parameter.requires_grad:
            match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(A|B|magnitude_vector)\.default\.weight", name)
            assert match, name
            found[f"{match[1]}.{'m' if len(match[2]) > 1 else f'lora_{match[2].lower()}'}"] = parameter
    return found


def forward(model: torch.nn.Module, example: Example) -> Forward:
    """One example by itself, unpadded, positions from 0. The loss is accumulated in float64."""
    ids = torch.from_numpy(example.ids).long()
    weights = torch.from_numpy(example.weights).double()
    logits = model(input_ids=ids[None], use_cache=False).logits[0]
    logprobs = torch.cat((torch.zeros(1, dtype=torch.float64), -cross_entropy(logits[:-1].double(), ids[1:], reduction="none")))
    return Forward(logits, logprobs, -(weights * logprobs).sum())


def total_weight(examples: list[Example]) -> float:
    """Σ w over all examples, in float64."""
    return float(sum(e.weights.sum(dtype=np.float64) for e in examples))


def backward(model: torch.nn.Module, examples: list[Example]) -> float:
    """Add the gradients of Σ w·CE / Σ w over all ``examples``; returns that loss."""
    weight, loss = total_weight(examples), 0.0
    for example in examples:
        share = forward(model, example).loss / weight
        share.backward()
        loss += share.item()
    return loss


def gradients(peft: PeftModel, examples: list[Example]) -> dict[str, NDArray]:
    """d(Σ w·CE / Σ w)/d(parameter), mlx-lm names and shapes."""
    peft.zero_grad()
    backward(peft, examples)
    return {name: p.grad.numpy().T.copy() for name, p in lora_parameters(peft).items()}


def ten_steps(peft: PeftModel, examples: list[Example], lr: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ten AdamW steps on the same batch: loss before each step (10,), global gradient norm before clipping (10,)."""
    parameters = list(lora_parameters(peft).values())
    optimizer = torch.optim.AdamW(parameters, lr=lr, betas=BETAS, eps=EPS, weight_decay=WEIGHT_DECAY)
    losses, norms = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        losses.append(backward(peft, examples))
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, MAX_NORM)))
        optimizer.step()
    return np.array(losses), np.array(norms)


def values(peft: PeftModel) -> dict[str, NDArray]:
    """Current LoRA parameters, mlx-lm names and shapes."""
    return {name: p.detach().numpy().T.copy() for name, p in lora_parameters(peft).items()}
