"""If, Loop and Scan: their bodies are programs, which read the values around them.

A kernel here takes those values before its inputs. What Loop and Scan collect is stacked along a new axis.
"""

from typing import Any

import numpy as np

from bnfold.reference.node import Array, Node

Values = dict[str, Any]


def if_(node: Node, outer: Values, condition: Array) -> list[Any]:
    body = node["then_branch"] if bool(np.asarray(condition).reshape(-1)[0]) else node["else_branch"]
    return body.run({}, outer=outer)


def _stacked(values: list[Any], axis: int, body: Any) -> Array:
    if not values:
        raise ValueError(f"it runs {body} no time, so the shape of what it collects is unknown")
    return np.stack(values, axis=axis)


def loop(node: Node, outer: Values, count: Array | None, condition: Array | None, *carried: Any) -> list[Any]:
    """The body maps (iteration, condition, carried…) to (condition, carried…, collected…)."""
    body = node["body"]
    limit = None if count is None else int(np.asarray(count).reshape(-1)[0])
    going = condition is None or bool(np.asarray(condition).reshape(-1)[0])
    state, n = list(carried), len(carried)
    collected: list[list[Any]] = [[] for _ in body.outputs[1 + n :]]
    iteration = 0
    while going and (limit is None or iteration < limit):
        fed = [np.array(iteration, dtype=np.int64), np.array(going), *state]
        going_, *results = body.run(dict(zip(body.inputs, fed, strict=True)), outer=outer)
        going = bool(np.asarray(going_).reshape(-1)[0])
        state = results[:n]
        for kept, value in zip(collected, results[n:], strict=True):
            kept.append(value)
        iteration += 1
    return [*state, *(_stacked(kept, 0, "its body") for kept in collected)]


def scan(node: Node, outer: Values, *inputs: Any) -> list[Any]:
    """The body maps (state…, slices…) to (state…, collected…). Opset 8 has a batch axis and is left out."""
    body, scanned = node["body"], node["num_scan_inputs"]
    n = len(inputs) - scanned
    state, sequences = list(inputs[:n]), inputs[n:]
    axes_in = node.get("scan_input_axes") or [0] * scanned
    backwards_in = node.get("scan_input_directions") or [0] * scanned
    outputs = len(body.outputs) - n
    axes_out = node.get("scan_output_axes") or [0] * outputs
    backwards_out = node.get("scan_output_directions") or [0] * outputs
    slices = [np.moveaxis(x, axis, 0) for x, axis in zip(sequences, axes_in, strict=True)]
    slices = [x[::-1] if back else x for x, back in zip(slices, backwards_in, strict=True)]
    collected: list[list[Any]] = [[] for _ in range(outputs)]
    for t in range(len(slices[0])):
        fed = [*state, *(x[t] for x in slices)]
        results = body.run(dict(zip(body.inputs, fed, strict=True)), outer=outer)
        state = results[:n]
        for kept, value in zip(collected, results[n:], strict=True):
            kept.append(value)
    ordered = [kept[::-1] if back else kept for kept, back in zip(collected, backwards_out, strict=True)]
    return [*state, *(_stacked(kept, axis, "its body") for kept, axis in zip(ordered, axes_out, strict=True))]


def refuse_batched_scan(node: Node) -> str | None:
    return "Scan of opset 8 is not evaluated." if node.since == 8 else None


CONTROL = {"If": if_, "Loop": loop, "Scan": scan}
