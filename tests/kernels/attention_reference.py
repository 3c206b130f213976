"""Attention over a forest of segments in plain float64, with an explicit mask."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Case:
    """Shapes of one call: segment lengths and parents, heads, head size, which tokens ask."""

    lengths: tuple[int, ...]
    parents: tuple[int, ...]
    heads: int
    kv_heads: int
    head_size: int
    q_rows: tuple[int, ...] | None = None  # None: all
    window: int = 0
    softcap: float = 0.0
    scale: float | None = None

    @property
    def starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)

    @property
    def tokens(self) -> int:
        return int(sum(self.lengths))

    @property
    def rows(self) -> np.ndarray:
        return np.arange(self.tokens, dtype=np.int32) if self.q_rows is None else np.array(self.q_rows, np.int32)

    @property
    def factor(self) -> float:
        return self.head_size**-0.5 if self.scale is None else self.scale


def visible(case: Case) -> np.ndarray:
    """bool (Mq, T): token by token, straight from the definition."""
    starts = case.starts
    segment_of = np.repeat(np.arange(len(case.lengths)), case.lengths)
    path: list[list[int]] = []  # tokens of the ancestors and the segment itself, root first
    for segment, parent in enumerate(case.parents):
        path.append((path[parent] if parent >= 0 else []) + list(range(starts[segment], starts[segment + 1])))
    mask = np.zeros((len(case.rows), case.tokens), bool)
    for i, row in enumerate(case.rows):
        tokens = path[segment_of[row]]
        seen = tokens[: tokens.index(row) + 1]
        mask[i, seen[-case.window :] if case.window else seen] = True
    return mask


def scores_of(case: Case, q: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores (H, Mq, T) with -inf where hidden, and their derivative with respect to scale·q·k."""
    H, K, E = case.heads, case.kv_heads, case.head_size
    q3 = q.reshape(-1, H, E).transpose(1, 0, 2)
    k3 = k.reshape(-1, K, E).transpose(1, 0, 2).repeat(H // K, 0)
    s = case.factor * q3 @ k3.transpose(0, 2, 1)
    slope = np.ones_like(s)
    if case.softcap:
        t = np.tanh(s / case.softcap)
        s, slope = case.softcap * t, 1 - t**2
    return np.where(visible(case), s, -np.inf), slope


def forward(case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """out (Mq, H·E), lse (Mq, H), probabilities (H, Mq, T)."""
    H, K, E = case.heads, case.kv_heads, case.head_size
    s, _ = scores_of(case, q, k)
    m = s.max(-1, keepdims=True)
    lse = m + np.log(np.exp(s - m).sum(-1, keepdims=True))
    p = np.exp(s - lse)
    v3 = v.reshape(-1, K, E).transpose(1, 0, 2).repeat(H // K, 0)
    return (p @ v3).transpose(1, 0, 2).reshape(len(q), H * E), lse[..., 0].T, p


def backward(case: Case, q: np.ndarray, k: np.ndarray, v: np.ndarray, d_out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dq (Mq, H·E), dk and dv (T, K·E)."""
    H, K, E = case.heads, case.kv_heads, case.head_size
    out, _, p = forward(case, q, k, v)
    _, slope = scores_of(case, q, k)

    def by_head(x: np.ndarray, heads: int) -> np.ndarray:
        return x.reshape(-1, heads, E).transpose(1, 0, 2)

    def shared(x: np.ndarray) -> np.ndarray:
        return x.reshape(K, H // K, -1, E).sum(1).transpose(1, 0, 2).reshape(-1, K * E)

    d3, o3, q3 = by_head(d_out, H), by_head(out, H), by_head(q, H)
    k3, v3 = by_head(k, K).repeat(H // K, 0), by_head(v, K).repeat(H // K, 0)
    ds = p * (d3 @ v3.transpose(0, 2, 1) - (d3 * o3).sum(-1, keepdims=True)) * slope * case.factor
    dq = (ds @ k3).transpose(1, 0, 2).reshape(len(q), H * E)
    return dq, shared(ds.transpose(0, 2, 1) @ q3), shared(p.transpose(0, 2, 1) @ d3)
