"""RNN, GRU and LSTM: one driver for directions, layout and sequence_lens, and one cell each.

X [T, N, I] (layout 1: [N, T, I]); a direction at a time; a sequence that has ended keeps its state and gives 0.
RNN H = f(XW + HR)     GRU H = (1−z)∘g(…) + z∘H     LSTM C = f∘C + i∘g(…), H = o∘h(C)
"""

from collections.abc import Callable, Iterator

import numpy as np

from bnfold.reference.kernels.elementwise import sigmoid
from bnfold.reference.node import Array, Kernel, Node

Activation = Callable[[Array], Array]
State = tuple[Array, ...]


def _activation(name: str, alphas: Iterator[float], betas: Iterator[float]) -> Activation:
    """The activation, which takes its alpha and beta from the lists only if it has such parameters."""
    match name.lower():
        case "sigmoid":
            return sigmoid
        case "tanh":
            return np.tanh
        case "relu":
            return lambda x: np.maximum(x, 0)
        case "softsign":
            return lambda x: x / (1 + np.abs(x))
        case "softplus":
            return lambda x: np.logaddexp(x, np.zeros_like(x))
        case "leakyrelu":
            alpha = next(alphas, 0.01)
            return lambda x: np.where(x >= 0, x, alpha * x)
        case "thresholdedrelu":
            alpha = next(alphas, 1.0)
            return lambda x: np.where(x > alpha, x, np.zeros_like(x))
        case "elu":
            alpha = next(alphas, 1.0)
            return lambda x: np.where(x >= 0, x, alpha * np.expm1(x))
        case "hardsigmoid":
            alpha, beta = next(alphas, 0.2), next(betas, 0.5)
            return lambda x: np.clip(alpha * x + beta, 0, 1)
        case "affine":
            alpha, beta = next(alphas, 1.0), next(betas, 0.0)
            return lambda x: alpha * x + beta
        case "scaledtanh":
            alpha, beta = next(alphas, 1.0), next(betas, 1.0)
            return lambda x: alpha * np.tanh(beta * x)
        case _:
            raise ValueError(f"the activation {name!r} is unknown")


def _activations(node: Node, defaults: tuple[str, ...], directions: int) -> list[list[Activation]]:
    names: list[str] = list(node.get("activations") or defaults * directions)
    alphas, betas = iter(node.get("activation_alpha") or ()), iter(node.get("activation_beta") or ())
    each = len(defaults)
    if len(names) < each * directions:
        raise ValueError(f"{len(names)} activations for {directions} directions")
    found = [
        _activation(name, alphas, betas) for name in names[: each * directions]
    ]  # RNN's default names one too many
    return [found[i * each : (i + 1) * each] for i in range(directions)]


def _clipped(node: Node) -> Activation:
    clip = node.get("clip")
    return (lambda x: np.clip(x, -clip, clip)) if clip else (lambda x: x)


Cell = Callable[[Array, State], State]  # what X contributes to the gates at one step, the state -> the new state


def _run(
    node: Node,
    x: Array,
    w: Array,
    lens: Array | None,
    initial: tuple[Array | None, ...],
    cells: Callable[[int], tuple[Cell, Array]],
) -> tuple[Array, list[Array]]:
    """Y and the final states, in the node's layout. `cells(d)` gives a direction's cell and its gates' bias."""
    batch_first = bool(node.get("layout"))
    if batch_first:
        x = x.swapaxes(0, 1)
        initial = tuple(None if state is None else state.swapaxes(0, 1) for state in initial)
    directions, hidden = w.shape[0], node.get("hidden_size")
    steps, batch = x.shape[:2]
    lengths = np.full(batch, steps) if lens is None else lens.astype(np.int64)
    index = np.arange(steps, dtype=np.int64)[:, None]
    backwards = np.where(
        index < lengths, lengths - 1 - index, index
    )  # [T, N]: each sequence reversed within its length
    names = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    reverse = names[str(node.get("direction", "forward")).lower()]
    if len(reverse) != directions:
        raise ValueError(f"{directions} directions of weights for direction {node['direction']!r}")
    Y = np.zeros((steps, directions, batch, hidden), dtype=x.dtype)
    finals: list[list[Array]] = [[] for _ in initial]
    for d in range(directions):
        cell, bias = cells(d)
        gates = x @ w[d].T + bias
        if reverse[d]:
            gates = np.take_along_axis(gates, backwards[:, :, None], axis=0)
        state: State = tuple(np.zeros((batch, hidden), dtype=x.dtype) if s is None else s[d] for s in initial)
        out = np.zeros((steps, batch, hidden), dtype=x.dtype)
        for t in range(steps):
            active = (t < lengths)[:, None]
            state = tuple(np.where(active, new, old) for new, old in zip(cell(gates[t], state), state, strict=True))
            out[t] = np.where(active, state[0], 0)
        Y[:, d] = np.take_along_axis(out, backwards[:, :, None], axis=0) if reverse[d] else out
        for kept, final in zip(finals, state, strict=True):
            kept.append(final)
    last = [np.stack(kept) for kept in finals]  # [D, N, H]
    if batch_first:
        return Y.transpose(2, 0, 1, 3), [final.swapaxes(0, 1) for final in last]
    return Y, last


def _biases(node: Node, b: Array | None, w: Array, gates: int) -> Array:
    """[directions, 2, gates·hidden]: of W and of R."""
    shape = (w.shape[0], 2, gates * node["hidden_size"])
    return np.zeros(shape, dtype=w.dtype) if b is None else b.reshape(shape)


def rnn(
    node: Node,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lens: Array | None = None,
    initial_h: Array | None = None,
) -> tuple[Array, ...]:
    functions, bias, clip = _activations(node, ("Tanh",), w.shape[0]), _biases(node, b, w, 1), _clipped(node)

    def cells(d: int) -> tuple[Cell, Array]:
        (f,) = functions[d]
        return (lambda gates, state: (f(clip(gates + state[0] @ r[d].T)),)), bias[d].sum(axis=0)

    y, (final,) = _run(node, x, w, lens, (initial_h,), cells)
    return y, final


def gru(
    node: Node,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lens: Array | None = None,
    initial_h: Array | None = None,
) -> tuple[Array, ...]:
    """Gates in the order z, r, h. linear_before_reset: the reset gate acts on the product with R and its bias."""
    functions, bias, clip = _activations(node, ("Sigmoid", "Tanh"), w.shape[0]), _biases(node, b, w, 3), _clipped(node)
    hidden, after = node["hidden_size"], bool(node.get("linear_before_reset"))

    def cells(d: int) -> tuple[Cell, Array]:
        f, g = functions[d]
        recurrent = r[d].T
        inside = bias[d, 1, 2 * hidden :] if after else 0  # R's bias of the hidden gate lies inside the reset
        outside = bias[d].sum(axis=0)
        outside[2 * hidden :] = bias[d, 0, 2 * hidden :] if after else outside[2 * hidden :]

        def cell(gates: Array, state: State) -> State:
            (h,) = state
            both = f(clip(gates[:, : 2 * hidden] + h @ recurrent[:, : 2 * hidden]))
            update, reset = both[:, :hidden], both[:, hidden:]
            if after:
                past = reset * (h @ recurrent[:, 2 * hidden :] + inside)
            else:
                past = (reset * h) @ recurrent[:, 2 * hidden :]
            candidate = g(clip(gates[:, 2 * hidden :] + past))
            return ((1 - update) * candidate + update * h,)

        return cell, outside

    y, (final,) = _run(node, x, w, lens, (initial_h,), cells)
    return y, final


def lstm(
    node: Node,
    x: Array,
    w: Array,
    r: Array,
    b: Array | None = None,
    lens: Array | None = None,
    initial_h: Array | None = None,
    initial_c: Array | None = None,
    p: Array | None = None,
) -> tuple[Array, ...]:
    """Gates in the order i, o, f, c; peepholes i, o, f, of which o sees the new cell."""
    functions = _activations(node, ("Sigmoid", "Tanh", "Tanh"), w.shape[0])
    bias, clip, hidden = _biases(node, b, w, 4), _clipped(node), node["hidden_size"]
    peepholes = np.zeros((w.shape[0], 3 * hidden), dtype=x.dtype) if p is None else p
    coupled = bool(node.get("input_forget"))

    def cells(d: int) -> tuple[Cell, Array]:
        f, g, h = functions[d]
        recurrent = r[d].T
        peep_i, peep_o, peep_f = np.split(peepholes[d], 3)

        def cell(gates: Array, state: State) -> State:
            past, c = state
            i, o, forget, candidate = np.split(gates + past @ recurrent, 4, axis=1)
            i = f(clip(i + peep_i * c))
            forget = 1 - i if coupled else f(clip(forget + peep_f * c))
            c = forget * c + i * g(clip(candidate))
            return f(clip(o + peep_o * c)) * h(c), c

        return cell, bias[d].sum(axis=0)

    y, (final, cell) = _run(node, x, w, lens, (initial_h, initial_c), cells)
    return y, final, cell


KERNELS: dict[str, Kernel] = {"RNN": rnn, "GRU": gru, "LSTM": lstm}
