"""Attention of one head after another, rotary positions, and the cache that both fill.

Y = softmax(cap(s·Q·Kᵀ) + mask)·V        a row in which everything is masked gives 0
"""

import math

import numpy as np

from bnfold.reference.node import Array, Kernel, Node

_BIASED, _AFTER_SOFTMAX = 2, 3  # qk_matmul_output_mode


def heads(x: Array, count: int) -> Array:
    """[N, T, heads·D] as [N, heads, T, D]."""
    return x.reshape(x.shape[0], x.shape[1], count, -1).transpose(0, 2, 1, 3)


def joined(x: Array) -> Array:
    """[N, heads, T, D] as [N, T, heads·D]."""
    return x.transpose(0, 2, 1, 3).reshape(x.shape[0], x.shape[2], -1)


def probabilities(scores: Array) -> Array:
    """The softmax over the last axis; zeros where every score is −∞."""
    highest = scores.max(axis=-1, keepdims=True)
    e = np.exp(scores - np.where(highest == -np.inf, 0, highest))
    total = e.sum(axis=-1, keepdims=True)
    return e / np.where(total == 0, 1, total)


def _bias(mask: Array | None, length: int, dtype: np.dtype[np.generic]) -> Array:
    """The mask as something to add; keys beyond its end are masked."""
    if mask is None:
        return np.zeros((1, length), dtype=dtype)
    added = np.where(mask, 0.0, -np.inf).astype(dtype) if mask.dtype.kind == "b" else mask.astype(dtype)
    missing = length - added.shape[-1]
    if missing <= 0:
        return added
    return np.pad(added, [(0, 0)] * (added.ndim - 1) + [(0, missing)], constant_values=-np.inf)


def attention(
    node: Node,
    q: Array,
    k: Array,
    v: Array,
    mask: Array | None = None,
    past_key: Array | None = None,
    past_value: Array | None = None,
    lengths: Array | None = None,
) -> tuple[Array, ...]:
    """q, k, v [N, heads, T, D] or [N, T, heads·D]; fewer heads of k and v are each shared by several of q."""
    flat = q.ndim == 3
    if flat:
        q = heads(q, node["q_num_heads"])
        k, v = (heads(x, node["kv_num_heads"]) for x in (k, v))
    if past_key is not None and past_value is not None:
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    present_key, present_value = k, v
    times = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, times, axis=1), np.repeat(v, times, axis=1)
    scale = node.get("scale") or 1 / math.sqrt(q.shape[-1])
    scores = (q @ k.swapaxes(-1, -2)) * q.dtype.type(scale)
    if node.get("softcap"):
        scores = np.tanh(scores / node["softcap"]) * q.dtype.type(node["softcap"])
    shown = scores
    bias = _bias(mask, k.shape[2], q.dtype)
    here: Array = np.arange(q.shape[2], dtype=np.int64).reshape(-1, 1)
    there: Array = np.arange(k.shape[2], dtype=np.int64).reshape(1, -1)
    before: Array = np.array(0 if past_key is None else past_key.shape[2])
    if lengths is not None:
        before = lengths.reshape(-1, 1, 1, 1) - q.shape[2]
        bias = bias + np.where(there < lengths.reshape(-1, 1, 1, 1), 0, -np.inf).astype(q.dtype)
    distance: Array = there - here - before
    left, right = node.get("left_window_size", -1), node.get("right_window_size", -1)
    for masked in (
        distance > 0 if node.get("is_causal") else None,
        distance < -left if left is not None and left >= 0 else None,
        distance > right if right is not None and right >= 0 else None,
    ):
        if masked is not None:
            bias = np.where(masked, q.dtype.type(-np.inf), bias)
    scores = scores + bias
    nothing: Array = bias.max(axis=-1, keepdims=True) == -np.inf
    chances = np.where(nothing, q.dtype.type(0), probabilities(scores))
    mode = node.get("qk_matmul_output_mode", 0)
    shown = scores if mode == _BIASED else chances if mode == _AFTER_SOFTMAX else shown
    if mode == 0 and node.get("softcap"):
        shown = (q @ k.swapaxes(-1, -2)) * q.dtype.type(scale)
    y = chances @ v
    return (joined(y) if flat else y), present_key, present_value, shown


def rotated(x: Array, cos: Array, sin: Array, interleaved: bool) -> Array:
    """x [N, T, heads, D] turned by the angles, [N, T, R/2] each: the first R of D, by pairs or by halves."""
    half = cos.shape[-1]
    cos, sin = cos[:, :, None], sin[:, :, None]
    part, rest = x[..., : 2 * half], x[..., 2 * half :]
    a, b = (part[..., ::2], part[..., 1::2]) if interleaved else (part[..., :half], part[..., half:])
    real, imaginary = cos * a - sin * b, sin * a + cos * b
    if interleaved:
        turned = np.stack([real, imaginary], axis=-1).reshape(part.shape)
    else:
        turned = np.concatenate([real, imaginary], axis=-1)
    return np.concatenate([turned, rest], axis=-1)


def rotary_embedding(node: Node, x: Array, cos: Array, sin: Array, positions: Array | None = None) -> tuple[Array]:
    """x [N, heads, T, D] or [N, T, heads·D]; the caches [P, R/2] are looked up by position, or are [N, T, R/2]."""
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    if x.ndim == 4:
        return (rotated(x.transpose(0, 2, 1, 3), cos, sin, bool(node.get("interleaved"))).transpose(0, 2, 1, 3),)
    split = x.reshape(*x.shape[:2], node["num_heads"], -1)
    return (rotated(split, cos, sin, bool(node.get("interleaved"))).reshape(x.shape),)


def tensor_scatter(node: Node, past: Array, update: Array, begin: Array | None = None) -> tuple[Array]:
    """Each sample's update written into its cache, from where `begin` says; `circular` starts over at the end."""
    axis = node["axis"] % past.ndim
    y = past.copy()
    for n in range(past.shape[0]):
        first = 0 if begin is None else int(begin[n])
        places: Array = np.arange(first, first + update.shape[axis], dtype=np.int64)
        if node["mode"] == "circular":
            places = places % past.shape[axis]
        np.moveaxis(y[n], axis - 1, 0)[places] = np.moveaxis(update[n], axis - 1, 0)
    return (y,)


KERNELS: dict[str, Kernel] = {
    "Attention": attention,
    "RotaryEmbedding": rotary_embedding,
    "TensorScatter": tensor_scatter,
}
