"""Einsum of a value and a constant, in both orders, with letters summed, kept and carried."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from bnfold.affine import Affine
from bnfold.fold import fold
from bnfold.gauge import Answer, Carry, Law, Op, Refusal
from bnfold.laws import LAWS
from tests.graphs import Builder, difference, folded, refused


@pytest.mark.parametrize("equation", ["bihw,io->bohw", "io,bihw->bohw", "bihw, io -> bohw"])
@pytest.mark.parametrize("shift", [True, False])
def test_a_layer_written_as_einsum(equation: str, shift: bool) -> None:
    constant_first = equation.startswith("io")
    b = Builder()
    x, w = b.input("x", "N", 6, 6, 6), b.weight(6, 6)
    y = b.op("Einsum", *((w, x) if constant_first else (x, w)), equation=equation)
    result = folded(b.model(b.norm(y, 6, shift=shift)))
    kinds = [n.op_type for n in result.model.graph.node]
    assert kinds == (["Einsum", "Add"] if shift else ["Einsum"])
    b = Builder()
    x = b.norm(b.op("Tanh", b.input("x", "N", 6, 6, 6)), 6, shift=shift)
    w = b.weight(6, 6)
    y = b.op("Einsum", *((w, x) if constant_first else (x, w)), equation=equation)
    folded(b.model(b.op("Conv", y, b.weight(4, 6, 1, 1), b.weight(4))))


def test_letters_that_are_summed_or_carried() -> None:
    b = Builder()  # h is summed and not in the constant, w only in the data
    x = b.norm(b.op("Tanh", b.input("x", "N", 6, 5, 7)), 6)
    y = b.op("Einsum", x, b.weight(6, 3), equation="bihw,io->bow")
    folded(b.model(b.op("Conv", y, b.weight(4, 3, 1), b.weight(4))))
    b = Builder()  # the channels are carried past the product; a shift would vary along o as well
    x = b.norm(b.op("Tanh", b.input("x", "N", 6, 5, 7)), 6, shift=False)
    y = b.op("Einsum", x, b.weight(7, 6), equation="bihw,wo->biho")
    folded(b.model(b.op("Conv", y, b.weight(4, 6, 1, 1), b.weight(4))))


def test_implicit_output() -> None:
    b = Builder()
    y = b.op("Einsum", b.input("x", "N", 6), b.weight(6, 6), equation="bi,ij")
    folded(b.model(b.norm(y, 6, shift=False)))


def test_what_has_no_law_stays() -> None:
    for equation, shape in (("...i,io->...o", (6, 6)), ("bii,io->bo", (6, 6))):
        b = Builder()
        x = b.input("x", "N", 6, 6)
        y = b.op("Einsum", x, b.weight(*shape), equation=equation)
        y = b.op("Flatten", y)
        result = fold(b.model(b.op("Mul", y, b.weight(values=np.asarray(2, np.float32)))))
        (kept,) = result.report.kept
        assert "UNKNOWN_OP" in {kept.reason, *(a.reason for a in kept.alternatives)}, result.report


def test_a_scale_along_a_summed_letter_of_the_data_alone_stays() -> None:
    b = Builder()
    x = b.norm(b.op("Tanh", b.input("x", "N", 6, 5, 7)), 6)
    y = b.op("Einsum", x, b.weight(7, 3), equation="bihw,wo->bho")
    refused(b.model(y), "WRONG_AXIS")


def test_a_shift_summed_over_an_unknown_size_stays() -> None:
    b = Builder()
    x = b.norm(b.op("Tanh", b.input("x", "N", 6, "H", 7)), 6)
    y = b.op("Einsum", x, b.weight(6, 3), equation="bihw,io->bow")
    model = b.model(b.op("Conv", y, b.weight(4, 3, 1), b.weight(4)))
    assert len([k for k in fold(model).report.kept if k.is_normalization]) == 1


@pytest.mark.parametrize("equation", ["bi,bi->", "bi,ib"])
def test_a_product_without_axes_keeps_none(equation: str) -> None:
    b = Builder()
    x = b.norm(b.op("Tanh", b.input("x", 6, 6)), 6)
    result = folded(b.model(b.op("Einsum", x, b.weight(6, 6), equation=equation)))
    (bias,) = (t for t in result.model.graph.initializer if t.name.endswith("_bias"))
    assert not bias.dims


def test_three_operands() -> None:
    for shift in (True, False):
        b = Builder()
        x = b.norm(b.op("Tanh", b.input("x", "N", 6, 6)), 6, shift=shift)
        y = b.op("Einsum", b.weight(6, 3), x, b.weight(6, 5), equation="io,bih,hp->bop")
        folded(b.model(b.op("Conv", y, b.weight(4, 3, 1), b.weight(4))))
        b = Builder()
        y = b.op("Einsum", b.weight(6, 3), b.input("x", "N", 6, 6), b.weight(6, 6), equation="io,bih,hp->bpo")
        folded(b.model(b.norm(y, 6, shift=shift)))


@pytest.mark.parametrize("shift", [True, False])
def test_one_operand(shift: bool) -> None:
    for equation in ("bchw->bwc", "bchw->bc"):
        b = Builder()
        x = b.norm(b.op("Tanh", b.input("x", "N", 6, 5, 7)), 6, shift=shift)
        y = b.op("Einsum", x, equation=equation)
        folded(b.model(b.op("MatMul", y, b.weight(6, 4))))
        b = Builder()
        x = b.op("Conv", b.input("x", "N", 6, 5, 6), b.weight(6, 6, 1, 1))
        folded(b.model(b.norm(b.op("Einsum", x, equation="bchw->bch"), 6, shift=shift)))


@pytest.mark.parametrize("data, weight", [((2, 6, 1), (3, 4)), ((2, 6, 3), (1, 4)), ((2, 6, 1), (3, 6))])
def test_a_length_of_one_that_is_broadcast_stays(data: tuple[int, ...], weight: tuple[int, ...]) -> None:
    for equation in ("bch,ho->bco", "bch,ho->bch"):
        b = Builder()
        x = b.norm(b.op("Tanh", b.input("x", *data)), 6)
        y = b.op("Einsum", x, b.weight(*weight), equation=equation)
        refused(b.model(y), "WRONG_AXIS")
        b = Builder()
        y = b.op("Einsum", b.input("x", *data), b.weight(*weight), equation=equation)
        refused(b.model(b.norm(y, 6)), "WRONG_AXIS")


def test_an_operand_that_may_have_length_one_takes_no_scale_that_varies() -> None:
    b = Builder()
    y = b.op("Mul", b.op("Tanh", b.input("x", "N", "C")), b.op("Exp", b.input("z", "N", "C")))
    y = b.op("Einsum", y, b.op("Tanh", b.input("u", "N", 6)), equation="bc,bc->bc")
    (kept,) = fold(b.model(b.norm(y, 6, shift=False))).report.unfolded
    assert "UNKNOWN_SHAPE" in {kept.reason, *(a.reason for a in kept.alternatives)}


def test_letters_of_both_cases_have_no_order_without_an_arrow() -> None:
    b = Builder()
    y = b.op("Einsum", b.input("x", 2, 6), b.weight(6, 6), equation="Ai,ic")
    refused(b.model(b.norm(y, 6)), "UNKNOWN_OP")


def test_a_mutant_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    law = LAWS["", "Einsum"]

    def down(op: Op, given: Mapping[int, Affine]) -> Answer:
        answer = law.down(op, given)
        assert not isinstance(answer, Refusal)
        first = answer[0]
        assert not isinstance(first, Refusal)
        return [(*first[:-1], Carry(given[0].only_shift()))]  # the shift as it was before the product

    wrong = Law(law.up, down, law.attributes)
    monkeypatch.setitem(LAWS, ("", "Einsum"), wrong)
    b = Builder()
    x = b.norm(b.op("Tanh", b.input("x", "N", 6, 6, 6)), 6)
    y = b.op("Einsum", x, b.weight(6, 6), equation="bihw,io->bohw")
    model = b.model(b.op("Conv", y, b.weight(4, 6, 1, 1), b.weight(4)))
    result = fold(model)
    assert result.changed and difference(model, result) > 1e-3
