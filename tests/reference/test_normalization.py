"""BatchNormalization of every opset, in inference and in training, and the other normalisations."""

import numpy as np
import pytest

from bnfold.reference import UnsupportedOp

from .one_node import U, compare, feeds, judge, normal, one_node

RNG = np.random.default_rng(4)


def parameters(*shape: int) -> list[np.ndarray]:
    return [
        normal(RNG, *shape),
        normal(RNG, *shape),
        normal(RNG, *shape),
        np.abs(normal(RNG, *shape)) + np.float32(0.1),
    ]


def batch_norm(x: np.ndarray, epsilon: float, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, var: np.ndarray):
    shape = (1, -1, *[1] * (x.ndim - 2))
    s, b, m, v = (p.astype(np.float64).reshape(shape) for p in (scale, bias, mean, var))
    return (x - m) / np.sqrt(v + np.float32(epsilon).astype(np.float64)) * s + b


@pytest.mark.parametrize("opset", [6, 7, 8, 9, 12, 13, 14, 15, 17, 22])
@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_batch_normalization(opset: int, rank: int):
    x = normal(RNG, *[4, 3, 5, 2, 3][:rank])
    given = [x, *parameters(3)]
    scale, bias, mean, var = (np.abs(p) for p in given[1:])
    column = [-1, *[1] * (rank - 2)]
    size = (scale / np.sqrt(var)).reshape(column) * (np.abs(x) + mean.reshape(column)) + bias.reshape(column)
    for epsilon in (1e-5, 0.3):
        model = one_node("BatchNormalization", given, opset, epsilon=epsilon, **({"is_test": 1} if opset < 7 else {}))
        (ours,) = judge(model, feeds(given))
        np.testing.assert_allclose(ours, batch_norm(x.astype(np.float64), epsilon, *given[1:]), rtol=0, atol=1e-14 * 50)
        if opset >= 7:
            compare("BatchNormalization", given, opset, 12 * U * size, epsilon=epsilon)


@pytest.mark.parametrize("opset", [9, 12])
def test_stock_batch_normalization_is_not_enough(opset: int):
    """onnx's own reference mixes the batch's statistics in at these opsets; ONNX Runtime does not, nor do we."""
    from onnx.reference import ReferenceEvaluator

    given = [normal(RNG, 4, 3, 5), *parameters(3)]
    model = one_node("BatchNormalization", given, opset)
    truth = batch_norm(given[0].astype(np.float64), 1e-5, *given[1:])
    stock, *_ = ReferenceEvaluator(model).run(None, feeds(given))
    assert isinstance(stock, np.ndarray)
    assert np.abs(stock - truth).max() > 0.1
    assert np.abs(judge(model, feeds(given))[0] - truth).max() < 1e-12


def test_statistics_of_every_element_before_opset_9():
    given = [normal(RNG, 4, 3, 5, 2), *parameters(3, 5, 2)]
    x, scale, bias, mean, var = (p.astype(np.float64) for p in given)
    (ours,) = judge(one_node("BatchNormalization", given, 7, spatial=0), feeds(given))
    np.testing.assert_allclose(
        ours, (x - mean) / np.sqrt(var + np.float64(np.float32(1e-5))) * scale + bias, rtol=1e-12
    )


def test_training_mode_against_torch():
    torch = pytest.importorskip("torch")
    x, scale, bias, mean, var = (p.astype(np.float64) for p in [normal(RNG, 4, 3, 5), *parameters(3)])
    given = [x, scale, bias, mean, var]
    y, new_mean, new_var = judge(
        one_node("BatchNormalization", given, 15, 3, training_mode=1, momentum=0.75), feeds(given)
    )
    running = torch.from_numpy(mean.copy()), torch.from_numpy(var.copy())
    theirs = torch.nn.functional.batch_norm(
        torch.from_numpy(x),
        *running,
        torch.from_numpy(scale),
        torch.from_numpy(bias),
        True,
        0.25,
        float(np.float32(1e-5)),
    )
    np.testing.assert_allclose(y, theirs, rtol=0, atol=1e-13)
    np.testing.assert_allclose(new_mean, running[0], rtol=0, atol=1e-14)
    # ONNX updates by the biased variance, torch by the unbiased one.
    np.testing.assert_allclose(new_var, 0.75 * var + 0.25 * x.var(axis=(0, 2)), rtol=0, atol=1e-14)


def test_training_mode_against_the_provider():
    given = [normal(RNG, 4, 3, 5), *parameters(3)]
    compare("BatchNormalization", given, 15, 60 * U * 4, 3, training_mode=1, momentum=0.75)


@pytest.mark.parametrize(("opset", "outputs", "attributes"), [(6, 1, {}), (9, 5, {}), (13, 2, {})])
def test_training_before_opset_14_is_refused(opset: int, outputs: int, attributes: dict[str, int]):
    given = [normal(RNG, 4, 3, 5), *parameters(3)]
    with pytest.raises(UnsupportedOp, match="training"):
        judge(one_node("BatchNormalization", given, opset, outputs, **attributes), feeds(given))


def test_trailing_outputs_without_a_name_are_inference():
    given = [normal(RNG, 4, 3, 5), *parameters(3)]
    model = one_node("BatchNormalization", given, 9)
    model.graph.node[0].output.extend(["", "", "", ""])
    (ours,) = judge(model, feeds(given))
    np.testing.assert_allclose(ours, batch_norm(given[0].astype(np.float64), 1e-5, *given[1:]), rtol=0, atol=1e-12)


def test_half_data_with_float_parameters():
    x = normal(RNG, 2, 3, 4).astype(np.float16)
    given = [x, *parameters(3)]
    model = one_node("BatchNormalization", given, 15)
    (native,) = judge(model, feeds(given), dtype=None)
    (exact,) = judge(model, feeds(given))
    assert native.dtype == np.float16
    assert (np.abs(native - exact) <= 2.0**-11 * np.abs(exact) * 1.01 + 1e-6).all()


def test_other_normalizations():
    x = normal(RNG, 2, 6, 5, 4)
    # x - mean cancels: the error is that of sums of up to 120 terms of at most 4, over a deviation of about 1.
    tolerance = 240 * U * 4
    compare("InstanceNormalization", [x, normal(RNG, 6), normal(RNG, 6)], 6, tolerance, epsilon=1e-3)
    compare("InstanceNormalization", [x[:, :, 0], normal(RNG, 6), normal(RNG, 6)], 6, tolerance)
    for axis in (-1, 1, 2):
        shape = x.shape[axis:]
        given = [x, normal(RNG, *shape), normal(RNG, *shape)]
        compare("LayerNormalization", given, 17, tolerance, axis=axis, epsilon=1e-3)
        compare("LayerNormalization", given[:2], 17, tolerance, 3, axis=axis)
    compare("GroupNormalization", [x, normal(RNG, 6), normal(RNG, 6)], 21, tolerance, num_groups=3)
    compare("MeanVarianceNormalization", [x], 13, tolerance)
    for p in (1, 2):
        compare("LpNormalization", [x], 1, tolerance, p=p, axis=1)
    for size in (1, 3, 5):
        compare("LRN", [x], 13, tolerance, size=size, alpha=0.3, beta=0.6, bias=1.5)


def test_group_normalization_of_groups():
    x, scale, bias = RNG.standard_normal((2, 6, 5)), RNG.standard_normal(3), RNG.standard_normal(3)
    (ours,) = judge(one_node("GroupNormalization", [x, scale, bias], 18, num_groups=3), feeds([x, scale, bias]))
    grouped = x.reshape(2, 3, 2, 5)
    mean, var = grouped.mean(axis=(2, 3), keepdims=True), grouped.var(axis=(2, 3), keepdims=True)
    expected = (grouped - mean) / np.sqrt(var + np.float64(np.float32(1e-5)))
    expected = expected * scale[:, None, None] + bias[:, None, None]
    np.testing.assert_allclose(ours, expected.reshape(x.shape), rtol=0, atol=1e-12)
