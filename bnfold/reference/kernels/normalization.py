"""Normalisations: y = scale·(x − mean)/√(variance + ε) + bias; they differ in whose mean and variance they take.

BatchNormalization takes the stored ones, or in training mode (opset 14 on) the batch's, and then updates the stored.
"""

import numpy as np

from bnfold.reference.node import Array, Kernel, Node


def refuse_training(node: Node) -> str | None:
    """Before opset 14, is_test = 0 or reading the statistics means training, and runtimes differ in what it gives."""
    if node.since <= 6 and not node["is_test"]:
        return "it is in training mode (is_test is 0), which is not evaluated before opset 14."
    if node.since < 14 and any(node.outputs[1:]):
        return "its statistics are read, which puts it in training mode; that is not evaluated before opset 14."
    return None


def batch_normalization(
    node: Node, x: Array, scale: Array, bias: Array, mean: Array, variance: Array
) -> tuple[Array, ...]:
    """x [N, C, *], parameters [C], or with `spatial` 0 (before opset 9) of one sample's shape; at rank 1, C = 1."""
    epsilon = node["epsilon"]
    if x.ndim == 1:
        shape: tuple[int, ...] = (1,)
    elif node.get("spatial", 1):
        shape = (1, -1, *[1] * (x.ndim - 2))
    else:
        shape = (1, *x.shape[1:])
    if not node.get("training_mode"):
        factor = scale.reshape(shape) / np.sqrt(variance.reshape(shape) + epsilon)
        return ((x - mean.reshape(shape)) * factor + bias.reshape(shape),)
    axes = tuple(i for i in range(x.ndim) if i != 1)
    own_mean, own_variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    y = (x - own_mean) / np.sqrt(own_variance + epsilon) * scale.reshape(shape) + bias.reshape(shape)
    momentum = node["momentum"]
    running_mean = mean * momentum + own_mean.reshape(mean.shape) * (1 - momentum)
    running_variance = variance * momentum + own_variance.reshape(variance.shape) * (1 - momentum)
    return y, running_mean, running_variance


def _standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    mean = x.mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(np.square(x - mean).mean(axis=axes, keepdims=True) + epsilon)
    return (x - mean) * inverse, mean, inverse


def instance_normalization(node: Node, x: Array, scale: Array, bias: Array) -> tuple[Array]:
    shape = (1, -1, *[1] * (x.ndim - 2))
    y, _, _ = _standardized(x, tuple(range(2, x.ndim)), node["epsilon"])
    return (y * scale.reshape(shape) + bias.reshape(shape),)


def layer_normalization(node: Node, x: Array, scale: Array, bias: Array | None = None) -> tuple[Array, ...]:
    axis = node["axis"] % x.ndim
    y, mean, inverse = _standardized(x, tuple(range(axis, x.ndim)), node["epsilon"])
    y = y * scale
    return (y if bias is None else y + bias), mean, inverse


def group_normalization(node: Node, x: Array, scale: Array, bias: Array) -> tuple[Array]:
    """Before opset 21 scale and bias belong to the groups, from then on to the channels."""
    groups, ones = node["num_groups"], [1] * (x.ndim - 2)
    y, _, _ = _standardized(x.reshape(x.shape[0], groups, -1), (2,), node["epsilon"])
    y = y.reshape(x.shape)
    each = 1 if node.since >= 21 else x.shape[1] // groups
    return (y * np.repeat(scale, each).reshape(1, -1, *ones) + np.repeat(bias, each).reshape(1, -1, *ones),)


def rms_normalization(node: Node, x: Array, scale: Array) -> tuple[Array]:
    axes = tuple(range(node["axis"] % x.ndim, x.ndim))
    return (x / np.sqrt(np.square(x).mean(axis=axes, keepdims=True) + node["epsilon"]) * scale,)


def mean_variance_normalization(node: Node, x: Array) -> tuple[Array]:
    """The specification adds 1e-9 to the standard deviation."""
    axes = tuple(node["axes"])
    centred = x - x.mean(axis=axes, keepdims=True)
    return (centred / (np.sqrt(np.square(centred).mean(axis=axes, keepdims=True)) + 1e-9),)


def lp_normalization(node: Node, x: Array) -> tuple[Array]:
    axis = node["axis"]
    if node["p"] == 1:
        norm = np.abs(x).sum(axis=axis, keepdims=True)
    else:
        norm = np.sqrt(np.square(x).sum(axis=axis, keepdims=True))
    return (np.divide(x, norm, out=np.zeros_like(x), where=norm != 0),)


def lrn(node: Node, x: Array) -> tuple[Array]:
    """The sum of squares over `size` neighbouring channels, the longer half on the right when size is even."""
    size, channels = node["size"], x.shape[1]
    padded = np.zeros((x.shape[0], channels + size - 1, *x.shape[2:]), dtype=x.dtype)
    first = (size - 1) // 2
    padded[:, first : first + channels] = np.square(x)
    squares = sum((padded[:, i : i + channels] for i in range(1, size)), start=padded[:, :channels])
    return (x / (node["bias"] + node["alpha"] / size * squares) ** node["beta"],)


KERNELS: dict[str, Kernel] = {
    "BatchNormalization": batch_normalization,
    "InstanceNormalization": instance_normalization,
    "LayerNormalization": layer_normalization,
    "GroupNormalization": group_normalization,
    "RMSNormalization": rms_normalization,
    "MeanVarianceNormalization": mean_variance_normalization,
    "LpNormalization": lp_normalization,
    "LRN": lrn,
}
