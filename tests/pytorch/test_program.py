"""fold_program: what the form of a module cannot express, an exported program can; it runs and saves as before."""

import copy
import io
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from bnfold import pytorch  # noqa: E402
from bnfold.errors import UsageError  # noqa: E402

from .nets import rough  # noqa: E402
from .test_module import Block, TwoSites, image  # noqa: E402
from .test_peers import Tokens  # noqa: E402


def exported(net: nn.Module, *args: Any, **options: Any) -> Any:
    return torch.export.export(net, args, strict=False, **options)


def folded(net: nn.Module, *args: Any, left: int = 0, **options: Any) -> pytorch.ProgramFold:
    program = exported(net.double(), *args, **options)
    result = pytorch.fold_exported(program)
    assert len(result.report.unfolded) == left, result.report
    with torch.no_grad():
        ours, theirs = result.program.module()(*args), net(*args)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-12
    calls = [str(node.target) for node in result.program.graph.nodes]
    assert sum("batch_norm" in call for call in calls) == left
    return result


def wide(*shape: int) -> Any:
    return image(*shape).double()


def test_residual_blocks():
    result = folded(rough(nn.Sequential(Block(4), Block(4))), wide())
    assert not any("running" in name or "bn" in name for name in result.program.state_dict)
    assert "0.conv1.bias" in result.program.state_dict


def test_a_convolution_at_two_sites_gets_two_weights():
    result = folded(rough(TwoSites()), wide())
    assert sum(name.startswith("conv.weight") for name in result.program.state_dict) == 2


def test_calls_of_functions():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Any) -> Any:
            n = self.norm
            y = functional.conv2d(x, self.conv.weight * 2)
            y = functional.batch_norm(y, n.running_mean, n.running_var, n.weight, n.bias, False)
            return (y * 3 + 1).relu()

    result = folded(rough(Net()), wide())
    assert not result.report.kept


def test_a_product_of_matrices_gets_a_sum():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.norm = nn.Parameter(torch.randn(4, 6)), nn.BatchNorm1d(6)

        def forward(self, x: Any) -> Any:
            return self.norm(x @ self.weight).relu()

    folded(rough(Net()), wide(5, 4))


def test_bounds_move():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.conv = nn.BatchNorm1d(1), nn.Conv1d(1, 1, 3)

        def forward(self, x: Any) -> Any:
            return self.norm(functional.relu6(self.conv(x))).sigmoid()

    net = rough(Net())
    net.norm.weight.data.fill_(0.7)
    folded(net, wide(2, 1, 9))


def test_a_dynamic_batch():
    result = folded(rough(nn.Sequential(Block(4))), wide(), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert result.program.module()(wide(5, 4, 7, 6)).shape[0] == 5


@pytest.mark.filterwarnings("ignore")
def test_after_decomposition():
    net = rough(nn.Sequential(Block(4), nn.Flatten(), nn.Linear(168, 3))).double()
    program = exported(net, wide()).run_decompositions()
    result = pytorch.fold_exported(program)
    assert not result.report.unfolded
    assert torch.allclose(result.program.module()(wide()), net(wide()))


def test_a_trap_stays():
    folded(rough(Tokens()), wide(3, 6, 4), left=1)


@pytest.mark.filterwarnings("ignore")
def test_it_can_be_saved_and_loaded_and_folded_again():
    net = rough(nn.Sequential(Block(4)))
    program = pytorch.fold_program(exported(net, image()))
    held = io.BytesIO()
    torch.export.save(program, held)
    held.seek(0)
    again = torch.export.load(held)
    assert torch.allclose(again.module()(image()), net(image()), atol=1e-4)
    assert pytorch.fold_program(program) is program  # nothing is left to fold


def test_the_argument_is_not_changed():
    net = rough(nn.Sequential(Block(4)))
    program = exported(net, image())
    before = {name: value.clone() for name, value in program.state_dict.items()}
    code = program.graph_module.code
    pytorch.fold_program(program)
    assert program.graph_module.code == code
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict.items())


def test_only_programs():
    with pytest.raises(UsageError, match="not a Sequential"):
        pytorch.fold_program(nn.Sequential())  # pyright: ignore[reportArgumentType] -- that is the test


def test_a_number_in_a_padding_changes():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.last = nn.BatchNorm2d(1), nn.Conv2d(1, 2, 3)

        def forward(self, x: Any) -> Any:
            return self.last(functional.pad(self.norm(x.relu()), (1, 1, 1, 1), value=0.3))

    net = rough(Net())
    folded(net, wide(2, 1, 5, 6))
    assert pytorch.fold_exported(exported(net.float(), image(2, 1, 5, 6))).check()


def test_it_is_judged_with_its_weights_before_they_were_rounded():
    """Two layers that are alike, bit for bit, have parameters of their own."""
    block = Block(4)
    net = rough(nn.Sequential(block, copy.deepcopy(block), nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4)))
    net[1].load_state_dict(net[0].state_dict())
    result = pytorch.fold_exported(exported(net, image()))
    check = result.check()
    assert check and check.figures["same_function"]["exact_share"] < 1e-12


def test_a_weight_that_is_used_twice_and_changed_once():
    result = pytorch.fold_exported(exported(rough(TwoSites()), image()))
    check = result.check()
    assert check and check.figures["same_function"]["exact_share"] < 1e-12
    assert check.gate2 is not None and check.gate2.passed


def test_a_double_program_that_keeps_a_normalization_is_what_the_fold_left():
    net = rough(nn.Sequential(Block(4), nn.Sigmoid(), nn.BatchNorm2d(4), nn.Sigmoid())).double()
    result = pytorch.fold_exported(exported(net, wide()))
    assert len(result.report.unfolded) == 1
    check = result.check()
    assert check, str(check)
