"""Ops that runtimes make of several: com.microsoft's fused products, activations and normalisations.

ATTRIBUTES are their defaults, as ONNX Runtime documents them (onnx has no schema of these); None is no default.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from bnfold.errors import UnsupportedOp
from bnfold.reference.kernels.attention import heads, joined, probabilities, rotated
from bnfold.reference.kernels.convolution import conv
from bnfold.reference.kernels.elementwise import erf, sigmoid
from bnfold.reference.kernels.linear import gemm
from bnfold.reference.kernels.sampling import grid_sample
from bnfold.reference.node import Array, Kernel, Node

_MS = "com.microsoft"


def _activated(name: str | None, x: Array, p: list[float]) -> Array:
    functions: dict[str, Callable[[], Array]] = {
        "Relu": lambda: np.maximum(x, 0),
        "Tanh": lambda: np.tanh(x),
        "Sigmoid": lambda: sigmoid(x),
        "LeakyRelu": lambda: np.where(x < 0, (p[0] if p else 0.01) * x, x),
        "Clip": lambda: np.clip(x, p[0], p[1]),
        "HardSigmoid": lambda: np.clip((p[0] if p else 0.2) * x + (p[1] if len(p) > 1 else 0.5), 0, 1),
    }
    if not name:
        return x
    if name not in functions:
        raise UnsupportedOp(f"The activation {name!r} of a fused op is not evaluated.")
    return functions[name]().astype(x.dtype, copy=False)


def fused_conv(node: Node, x: Array, w: Array, b: Array | None = None, z: Array | None = None) -> tuple[Array]:
    (y,) = conv(node, x, w, b)
    return (_activated(node.get("activation"), y if z is None else y + z, node.get("activation_params") or []),)


def fused_gemm(node: Node, a: Array, b: Array, c: Array | None = None) -> tuple[Array]:
    (y,) = gemm(node, a, b, c)
    given = [node.get(f"activation_{letter}") for letter in ("alpha", "beta", "gamma")]
    return (_activated(node.get("activation"), y, [value for value in given if value is not None]),)


def fused_matmul(node: Node, a: Array, b: Array) -> tuple[Array]:
    """transBatch first takes axis 0 to the place before the last."""
    for which in ("A", "B"):
        x = a if which == "A" else b
        if node.get(f"transBatch{which}"):
            x = np.moveaxis(x, 0, -2)
        if node.get(f"trans{which}") and x.ndim > 1:
            x = x.swapaxes(-1, -2)
        a, b = (x, b) if which == "A" else (a, x)
    y = np.asarray(np.matmul(a, b))
    return (y if node["alpha"] == 1 else y * y.dtype.type(node["alpha"]),)


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + erf(x / math.sqrt(2)))


def gelu(_: Node, x: Array, bias: Array | None = None) -> tuple[Array]:
    return (_gelu(x if bias is None else x + bias),)


def fast_gelu(_: Node, x: Array, bias: Array | None = None) -> tuple[Array]:
    x = x if bias is None else x + bias
    return (0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),)


def quick_gelu(node: Node, x: Array) -> tuple[Array]:
    return (x * sigmoid(node["alpha"] * x),)


def _normalized(x: Array, gamma: Array, beta: Array | None, epsilon: float, simple: bool) -> tuple[Array, Array, Array]:
    mean = x.mean(axis=-1, keepdims=True)
    centred = x if simple else x - mean
    inverse = 1 / np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    y = centred * inverse * gamma
    return (y if beta is None else y + beta), mean, inverse


def skip_layer_normalization(
    node: Node, x: Array, skip: Array, gamma: Array, beta: Array | None = None, bias: Array | None = None
) -> tuple[Any, ...]:
    total = x + skip if bias is None else x + skip + bias
    return (*_normalized(total, gamma, beta, node["epsilon"], False), total)


def skip_simplified_layer_normalization(
    node: Node, x: Array, skip: Array, gamma: Array, bias: Array | None = None
) -> tuple[Any, ...]:
    total = x + skip if bias is None else x + skip + bias
    return (*_normalized(total, gamma, None, node["epsilon"], True), total)


def simplified_layer_normalization(node: Node, x: Array, gamma: Array) -> tuple[Any, ...]:
    axes = tuple(range(node["axis"] % x.ndim, x.ndim))
    inverse = 1 / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + node["epsilon"])
    return x * inverse * gamma, inverse


def embed_layer_normalization(
    node: Node,
    ids: Array,
    kinds: Array | None,
    words: Array,
    places: Array,
    types: Array | None,
    gamma: Array,
    beta: Array,
    mask: Array | None = None,
    positions: Array | None = None,
) -> tuple[Any, ...]:
    at: Array = np.arange(ids.shape[1], dtype=np.int64).reshape(1, -1) if positions is None else positions
    total = words[ids] + places[at]
    if kinds is not None and types is not None:
        total = total + types[kinds]
    counts = np.zeros(len(ids), np.int32) if mask is None else (mask != 0).sum(axis=1).astype(np.int32)
    return _normalized(total, gamma, beta, node["epsilon"], False)[0], counts, total


def rotary_embedding(node: Node, x: Array, positions: Array, cos: Array, sin: Array) -> tuple[Array]:
    """positions [N, T], or [1]: the first one's."""
    if node.get("is_packed_batching"):
        raise UnsupportedOp(f"{node}: packed batches are not evaluated.")
    whole = x if x.ndim == 3 else joined(x)
    width = 2 * cos.shape[-1]
    first = int(positions.reshape(-1)[0])
    at: Array = (
        positions if positions.ndim == 2 else np.arange(first, first + whole.shape[1], dtype=np.int64).reshape(1, -1)
    )
    count = node.get("num_heads") or (x.shape[1] if x.ndim == 4 else whole.shape[2] // width)
    split = whole.reshape(*whole.shape[:2], count, -1)
    y = rotated(split, cos[at], sin[at], bool(node.get("interleaved"))).astype(x.dtype, copy=False)
    return (y.reshape(x.shape) if x.ndim == 3 else y.transpose(0, 2, 1, 3),)


def multi_head_attention(node: Node, q: Array, k: Array, v: Array, *more: Array | None) -> tuple[Any, ...]:
    """q, k, v [N, T, heads·D]. more: the bias of all three, a padding mask, a term of the scores, past k and v."""
    bias, mask, added, past_key, past_value = (*more, *[None] * 5)[:5]
    if mask is not None or len(more) > 5 or any(x.ndim != 3 for x in (q, k, v)):
        raise UnsupportedOp(f"{node}: this form of it is not evaluated (padding masks, packed or cached operands).")
    if bias is not None:
        n, m = q.shape[-1], k.shape[-1]
        q, k, v = q + bias[:n], k + bias[n : n + m], v + bias[n + m :]
    q, k, v = (heads(x, node["num_heads"]) for x in (q, k, v))
    if past_key is not None and past_value is not None:
        k, v = np.concatenate([past_key, k], axis=2), np.concatenate([past_value, v], axis=2)
    scores: Array = (q @ k.swapaxes(-1, -2)) * q.dtype.type(node.get("scale") or 1 / math.sqrt(q.shape[-1]))
    scores = scores if added is None else scores + added
    if node.get("unidirectional"):
        here: Array = np.arange(k.shape[2] - q.shape[2], k.shape[2], dtype=np.int64).reshape(-1, 1)
        later: Array = np.arange(k.shape[2], dtype=np.int64).reshape(1, -1) > here
        scores = np.where(later, np.array(-np.inf, q.dtype), scores)
    return joined(probabilities(scores) @ v), k, v


_CONV = {"auto_pad": "NOTSET", "dilations": None, "group": 1, "kernel_shape": None, "pads": None, "strides": None}
_PRODUCT = {"alpha": 1.0, "transA": 0, "transB": 0}
_NORM = {"epsilon": 1e-12}
_FUSED: dict[tuple[str, str], tuple[Kernel, dict[str, Any]]] = {
    (_MS, "FusedConv"): (fused_conv, {**_CONV, "activation": None, "activation_params": None}),
    (_MS, "FusedGemm"): (
        fused_gemm,
        {**_PRODUCT, "beta": 1.0, "activation": None}
        | dict.fromkeys(("activation_alpha", "activation_beta", "activation_gamma")),
    ),
    (_MS, "FusedMatMul"): (fused_matmul, {**_PRODUCT, "transBatchA": 0, "transBatchB": 0}),
    (_MS, "TransposeMatMul"): (fused_matmul, _PRODUCT),
    (_MS, "Gelu"): (gelu, {}),
    (_MS, "BiasGelu"): (gelu, {}),
    (_MS, "FastGelu"): (fast_gelu, {}),
    (_MS, "QuickGelu"): (quick_gelu, {"alpha": 1.702}),
    (_MS, "SkipLayerNormalization"): (skip_layer_normalization, _NORM),
    (_MS, "SkipSimplifiedLayerNormalization"): (skip_simplified_layer_normalization, _NORM),
    (_MS, "EmbedLayerNormalization"): (embed_layer_normalization, {**_NORM, "mask_index_type": None}),
    ("", "SimplifiedLayerNormalization"): (
        simplified_layer_normalization,
        {"axis": -1, "epsilon": 1e-5, "stash_type": 1},
    ),
    (_MS, "RotaryEmbedding"): (
        rotary_embedding,
        {"interleaved": 0, "is_packed_batching": 0, "num_heads": 0, "rotary_embedding_dim": 0, "scale": 1.0},
    ),
    (_MS, "MultiHeadAttention"): (
        multi_head_attention,
        {"num_heads": None, "scale": None, "unidirectional": 0, "mask_filter_value": -10000.0},
    ),
    (_MS, "GridSample"): (grid_sample, {"align_corners": 0, "mode": "bilinear", "padding_mode": "zeros"}),
}
KERNELS: dict[tuple[str, str], Kernel] = {key: kernel for key, (kernel, _) in _FUSED.items()}
ATTRIBUTES: dict[tuple[str, str], dict[str, Any]] = {key: attributes for key, (_, attributes) in _FUSED.items()}
