"""The tables: short however large the model is, complete when asked, never wider than the terminal."""

import dataclasses

import pytest

from bnfold.report import Alternative, Folded, FoldReport, Kept, Target
from bnfold.report.text import explanation, fold_table, kind_of


def folded(
    name: str, direction: str = "up", into: tuple[str, ...] = ("Conv",), through: tuple[str, ...] = ()
) -> Folded:
    targets = tuple(Target(f"{op.lower()}_{name}", op) for op in into)
    return Folded((name,), "BatchNormalization", direction, targets, through)


def kept(name: str, *, normal: bool = True, op: str = "BatchNormalization", hint: str = "Move it.") -> Kept:
    tried = (
        Alternative("up", ("concat_1",), "NONLINEAR", "tanh_1", "Tanh is no affine map."),
        Alternative("down", (), "GRAPH_BOUNDARY", "y", "It is an output."),
    )
    return Kept((name,), op, "NONLINEAR", "tanh_1", "Tanh is no affine map.", hint, tried, normal)


def report(folds: tuple[Folded, ...] = (), stays: tuple[Kept, ...] = (), *notes: str) -> FoldReport:
    sources = len(folds) + len(stays)
    return FoldReport(folds, stays, sources, sources, 100, 100 - len(folds), 17, 0, notes)


def test_equal_folds_are_one_line_with_their_number():
    folds = (
        *(folded(f"bn_{i}") for i in range(58)),
        folded("last", "down", ("Gemm",), ("flatten",)),
        folded("both", "both", ("Conv", "Conv", "Gemm")),
    )
    lines = fold_table(report(folds)).splitlines()
    assert len(lines) < 10
    assert "  Conv <- BatchNormalization           x 58" in lines
    assert "  BatchNormalization -> Gemm           x 1   through 1 node" in lines
    assert "  BatchNormalization <-> 2 Conv, Gemm  x 1" in lines
    assert "folded  60 of 60 sources" in lines


def test_verbose_lists_each_fold_with_its_way():
    text = fold_table(report((folded("bn", through=("pool", "relu")),)), verbose=True)
    assert "  bn  (BatchNormalization)\n      up into conv_bn (Conv), through pool, relu" in text


def test_a_fold_into_nothing_is_the_identity():
    assert kind_of(folded("bn", into=())) == "BatchNormalization, the identity"
    assert "the identity" in fold_table(report((folded("bn", into=()),)), verbose=True)


def test_what_stays_has_its_reason_and_a_hint_once():
    text = fold_table(report((), (kept("one"), kept("two"), kept("three", hint="Prune it."))))
    assert text.count("NONLINEAR at tanh_1: Tanh is no affine map.") == 3
    assert text.count("hint: Move it.") == 1
    assert text.count("hint: Prune it.") == 1
    assert "GRAPH_BOUNDARY" not in text


def test_many_that_stay_are_cut_off_and_counted():
    stays = tuple(kept(f"bn_{i}") for i in range(50))
    text = fold_table(report((), stays))
    assert "and 30 more; -v lists them all" in text
    assert "bn_49" not in text
    assert "bn_49" in fold_table(report((), stays), verbose=True)


def test_arithmetic_that_is_no_normalization_is_counted_by_reason():
    stays = tuple(kept(f"mul_{i}", normal=False, op="Mul") for i in range(40))
    text = fold_table(report((), stays))
    assert "  Mul  NONLINEAR  x 40  mul_0, mul_1, mul_2 and 37 more" in text
    assert len(text.splitlines()) < 8
    assert "mul_39" in fold_table(report((), stays), verbose=True)


def test_an_explanation_names_every_refusal():
    text = explanation(
        report((folded("bn", "down", ("Gemm",), ("flatten",)),), (kept("stuck"), kept("mul", normal=False)))
    )
    assert "down into gemm_bn (Gemm), through flatten" in text
    assert text.count("up through concat_1: NONLINEAR at tanh_1: Tanh is no affine map.") == 2
    assert text.count("down: GRAPH_BOUNDARY at y: It is an output.") == 2
    assert "stays, no normalization  1 of 3 sources" in text


def test_a_reason_that_no_alternative_gives_is_said_first():
    stays = kept("bn")._replace(reason="TRAINING_MODE", at="bn", message="It is in training mode.")
    assert "      TRAINING_MODE: It is in training mode.\n      up through" in explanation(report((), (stays,)))


@pytest.mark.parametrize("width", [40, 60, 100, 200])
def test_no_line_is_wider_than_the_terminal(width: int):
    stays = tuple(kept(f"bn_{i}", hint="a hint " * 30) for i in range(3))
    folds = (folded("bn", through=tuple(f"layer_{i}" for i in range(40))),)
    for text in (
        fold_table(report(folds, stays, "a note " * 40), verbose=True, width=width),
        explanation(report(folds, stays), width=width),
    ):
        assert max(map(len, text.splitlines())) <= width
        assert all(line == line.rstrip() for line in text.splitlines())


def test_notes_growth_and_an_empty_report():
    whole = dataclasses.replace(report((folded("bn"),), (), "12 weights left."), growth_bytes=3 << 20)
    assert "the weights grow by 3.0 MiB" in str(whole)
    assert "note: 12 weights left." in str(whole)
    assert str(report()) == "opset 17, 100 nodes; 0 BatchNormalizations, 0 affine sources"


def test_counts_and_unfolded():
    whole = report((folded("bn"),), (kept("a"), kept("b", normal=False)))
    assert whole.counts == {"sources": 3, "batch_normalizations": 3, "folded": 1, "kept": 2}
    assert [each.nodes for each in whole.unfolded] == [("a",)]
