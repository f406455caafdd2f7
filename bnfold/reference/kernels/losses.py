"""Losses, which training graphs end in: −w[t]·log p[t], reduced over all elements.

mean   divides by the sum of the weights that were used
"""

import numpy as np

from bnfold.reference.node import Array, Kernel, Node


def _loss(node: Node, logarithms: Array, target: Array, weight: Array | None) -> Array:
    ignored = node.get("ignore_index")
    keep = np.ones(target.shape, dtype=bool) if ignored is None else target != ignored
    index = np.where(keep, target, 0).astype(np.int64)
    taken = np.take_along_axis(logarithms, index[:, None], axis=1)[:, 0]
    weights = (np.ones(target.shape, logarithms.dtype) if weight is None else weight[index]) * keep
    losses = np.where(keep, -taken * weights, 0).astype(logarithms.dtype)
    if node["reduction"] == "none":
        return losses
    total = losses.sum()
    return np.asarray(total if node["reduction"] == "sum" else total / weights.sum()).astype(logarithms.dtype)


def negative_log_likelihood(node: Node, x: Array, target: Array, weight: Array | None = None) -> tuple[Array]:
    """x [N, C, *] are logarithms of probabilities, target [N, *]."""
    return (_loss(node, x, target, weight),)


def softmax_cross_entropy(node: Node, x: Array, target: Array, weight: Array | None = None) -> tuple[Array, Array]:
    """x [N, C, *] are scores; the second output are the logarithms of their softmax."""
    centred = x - x.max(axis=1, keepdims=True)
    logarithms = centred - np.log(np.exp(centred).sum(axis=1, keepdims=True))
    return _loss(node, logarithms, target, weight), logarithms


KERNELS: dict[str, Kernel] = {
    "NegativeLogLikelihoodLoss": negative_log_likelihood,
    "SoftmaxCrossEntropyLoss": softmax_cross_entropy,
}
