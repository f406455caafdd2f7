"""Moments against numpy in extended precision: offsets, sizes of batches, order, masks, types and memory formats."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from bnfold import BnfoldError  # noqa: E402 - without torch the tests skip before they would need it
from bnfold.train import moments as module  # noqa: E402
from bnfold.train.ledger import Ledger, Shards  # noqa: E402
from bnfold.train.moments import Moments, merged  # noqa: E402


def exact(x):
    """Mean and biased variance a channel, in numpy's longest float, of a torch tensor [N, C, ...]."""
    values = x.double().numpy().astype(np.longdouble)
    axes = tuple(axis for axis in range(values.ndim) if axis != 1)
    return values.mean(axes), values.var(axes)


def close(moments: Moments, x, tolerance: float = 1e-10):
    mean, var = exact(x)
    assert float(moments.n) == x.numel() / x.shape[1]
    scale = np.sqrt(var) + np.abs(mean)
    assert (np.abs(moments.mean.numpy() - mean) <= tolerance * scale).all()
    assert (np.abs(moments.var.numpy() - var) <= tolerance * var).all()


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e6])
@pytest.mark.parametrize("shape", [(1, 3), (9, 4), (5, 3, 7), (6, 2, 5, 3), (3, 2, 4, 3, 5), (300, 8, 12, 12)])
def test_any_shape_and_offset(shape: tuple[int, ...], offset: float):
    torch.manual_seed(0)
    x = torch.randn(shape) + offset
    close(Moments.of(x), x)


@pytest.mark.parametrize("chunk", [1, 50, 1000])
def test_chunks_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(module.CHUNK, "cpu", chunk)
    torch.manual_seed(0)
    x = torch.cat([torch.randn(5, 3, 4) * 1e-3, torch.randn(40, 3, 4) + 1e4])  # the first chunk is no guide
    close(Moments.of(x), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_types_and_memory_formats(dtype, layout: str):
    torch.manual_seed(0)
    x = (torch.randn(6, 5, 8, 8) * 20 + 100).to(dtype)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    elif layout == "strided":
        x = x[::2, :, ::3, 1:]
    before = x.clone()
    close(Moments.of(x), x)
    assert torch.equal(x, before), "the values were changed"


def test_masked_values_do_not_count():
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6)
    mask = torch.rand(4, 6) < 0.6
    close(Moments.of(x.masked_fill(~mask[:, None], torch.nan), mask), x.movedim(1, -1)[mask])
    nothing = Moments.of(x, torch.zeros(4, 6, dtype=torch.bool))
    assert float(nothing.n) == 0 and (nothing.mean == 0).all() and (nothing.var == 0).all()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_shows_in_its_channel_alone(bad: float):
    x = torch.randn(8, 4, 3)
    x[5, 2, 1] = bad
    found = Moments.of(x)
    assert torch.isfinite(found.m2).tolist() == [True, True, False, True]


@pytest.mark.parametrize("sizes", [[1] * 40, [7, 1, 30, 2], [39, 1]])
@pytest.mark.parametrize("ordered", [False, True])
def test_merging_is_the_statistics_of_the_whole(sizes: list[int], ordered: bool):
    torch.manual_seed(0)
    x = torch.randn(40, 3, 5) + 1e4
    if ordered:
        x += torch.arange(40).reshape(-1, 1, 1)  # batches differ: the variance of the means counts
    parts = [Moments.of(part) for part in x.split(sizes)]
    close(merged(parts), x)
    shards = Shards(3)
    for part in parts:
        shards.add(part)
    close(shards.total(), x)
    shards.compact(2)
    assert len(shards.parts) <= 2
    close(shards.total(), x)


def test_many_batches_are_compacted_and_stay_exact():
    torch.manual_seed(0)
    x = torch.randn(1000, 2) + torch.arange(1000).reshape(-1, 1) / 100
    shards = Shards(2)
    for part in x.split(2):
        shards.add(Moments.of(part))
    assert len(shards.parts) <= 128
    close(shards.total(), x)
    expected = torch.stack([part.double().var(0) for part in x.split(2)]).mean(0)
    assert torch.allclose(shards.algorithm2()[1], expected, rtol=1e-12)


def test_what_the_mean_of_batch_variances_misses():
    """Two batches, each of one class: the mean of the variances is one class's; Chan's is that of the data."""
    x = torch.cat([torch.full((50, 1), -1.0), torch.full((50, 1), 1.0)])
    shards = Shards(1)
    for part in x.split(50):
        shards.add(Moments.of(part))
    assert float(shards.algorithm2()[1]) == 0
    assert float(shards.total().var) == 1


def test_standard_errors_are_those_that_replicates_show():
    """400 sets of 32 uneven batches: the errors predicted from one set against the spread over the sets."""
    torch.manual_seed(0)
    sizes = [16, 8, 24, 16] * 8
    means, variances, predicted = [], [], []
    for _ in range(400):
        x = torch.randn(sum(sizes), 2, dtype=torch.float64) * torch.tensor([1.0, 3.0])
        shards = Shards(2)
        for part in x.split(sizes):
            shards.add(Moments.of(part))
        means.append(shards.total().mean)
        variances.append(shards.total().var)
        predicted.append(torch.stack(shards.standard_errors()))
    spread = torch.stack([torch.stack(means).std(0), torch.stack(variances).std(0)])
    ratio = torch.stack(predicted).square().mean(0).sqrt() / spread
    assert ((ratio > 0.85) & (ratio < 1.15)).all(), ratio


def ledger(seed: int = 0, batches: int = 3) -> Ledger:
    torch.manual_seed(seed)
    made = Ledger(batches=batches)
    for _ in range(batches):
        made.add("stem.bn", Moments.of(torch.randn(5, 4)))
        made.add("", Moments.of(torch.randn(3, 2, 6)))
    return made


def test_a_ledger_is_saved_loaded_and_merged_without_the_data(tmp_path):
    one, two = ledger(0), ledger(1)
    one.save(tmp_path / "one.safetensors")
    two.save(tmp_path / "two.safetensors")
    loaded = Ledger.load(tmp_path / "one.safetensors").merge(Ledger.load(tmp_path / "two.safetensors"))
    one.merge(two)
    assert loaded.batches == one.batches == 6
    assert {k: v.tolist() for k, v in loaded.state_dict().items()} == {
        k: v.tolist() for k, v in one.state_dict().items()
    }
    assert float(loaded["stem.bn"].n) == 30 and float(loaded[""].n) == 108


def test_the_safetensors_library_reads_it(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    made = ledger()
    made.save(tmp_path / "s.safetensors")
    read = safetensors.load_file(tmp_path / "s.safetensors")
    assert {k: v.tolist() for k, v in read.items()} == {k: v.tolist() for k, v in made.state_dict().items()}
    safetensors.save_file(made.state_dict(), tmp_path / "t.safetensors", {"format": "bnfold-statistics"})
    assert Ledger.load(tmp_path / "t.safetensors").state_dict().keys() == made.state_dict().keys()


@pytest.mark.parametrize(
    "content", [b"", b"\x00" * 5, b"\xff" * 40, (9).to_bytes(8, "little") + b'{"a": {}}', b"[]" * 9]
)
def test_another_file_is_an_error_in_a_sentence(content: bytes, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(BnfoldError, match=r"no ledger|not a safetensors"):
        Ledger.load(tmp_path / "x")
    with pytest.raises(BnfoldError, match="could not be read"):
        Ledger.load(tmp_path / "absent")
    with pytest.raises(BnfoldError, match="could not be written"):
        ledger().save(tmp_path / "absent" / "y")


def test_a_damaged_ledger_is_an_error(tmp_path):
    ledger().save(tmp_path / "x")
    whole = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(whole[:-1])
    with pytest.raises(BnfoldError, match="damaged"):
        Ledger.load(tmp_path / "x")
    state = ledger().state_dict()
    del state["stem.bn.m2"]
    with pytest.raises(BnfoldError, match=r"stem\.bn\.m2"):
        Ledger().load_state_dict(state)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_other_channels_do_not_merge():
    other = Ledger()
    other.add("stem.bn", Moments.of(torch.randn(5, 3)))
    one = ledger()
    before = {k: v.tolist() for k, v in one.state_dict().items()}
    with pytest.raises(BnfoldError, match="4 channels in one ledger, 3 in the other"):
        one.merge(other)
    assert {k: v.tolist() for k, v in one.state_dict().items()} == before
    with pytest.raises(BnfoldError, match="3 channels"):
        one.add("stem.bn", Moments.of(torch.randn(5, 3)))
    with pytest.raises(BnfoldError):
        merged([])
    with pytest.raises(BnfoldError):
        Moments.of(torch.randn(5, 3)).merge(Moments.of(torch.randn(5, 2)))
