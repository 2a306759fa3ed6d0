"""Values on the meta device: results of known values equal a real run's, and all else stays a shape."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from stagemeter.counting.counter import CostCounter
from stagemeter.counting.known_values import KnownValues, known_value

META = torch.device("meta")


def given_on_meta(known, value):
    bare = torch.empty_like(value, device=META)
    known.give(bare, value)
    return bare


def test_what_is_made_of_nothing_is_known():
    with KnownValues():
        assert known_value(torch.arange(3, device=META)).tolist() == [0, 1, 2]
        assert known_value(torch.tensor([[1, 2]], device=META)).tolist() == [[1, 2]]
        assert known_value(torch.full((2,), 7, device=META)).tolist() == [7, 7]
        assert known_value(torch.linspace(0, 1, 3, device=META)).tolist() == [0, 0.5, 1]
        with META:
            assert known_value(torch.zeros(2)).tolist() == [0, 0]
            assert known_value(torch.as_tensor([True, False])).tolist() == [True, False]


def test_what_has_no_values_stays_a_shape():
    with KnownValues():
        for unknown in (torch.empty(3, device=META), torch.rand(3, device=META), nn.Linear(2, 3, device=META).weight):
            assert known_value(unknown) is None
            assert known_value(unknown + 1) is None
        with pytest.raises(RuntimeError, match="meta"):
            torch.empty(1, device=META).item()


def test_memory_that_nobody_wrote_has_no_values():
    known = KnownValues()
    with known:
        kept = given_on_meta(known, torch.ones(2, 3))
        for made in (
            torch.empty_like(kept), kept.new_empty(4), torch.rand_like(kept), torch.bernoulli(kept),
            kept.new_empty_strided((2,), (1,)), nn.functional.dropout(kept, 0.5),
        ):  # fmt: skip
            assert known_value(made) is None
        layer = nn.Linear(3, 2)
        with pytest.raises(RuntimeError, match="meta"):
            layer(kept)  # Weights are never moved to where the rest is.


def test_elements_where_a_mask_is_true_are_as_many_as_it_says():
    with KnownValues():
        mask = torch.tensor([[True, False], [True, True]], device=META)
        chosen = torch.masked_select(torch.empty(2, 2, device=META), mask)
        assert (chosen.shape, chosen.device, known_value(chosen)) == ((3,), META, None)
        assert torch.masked_select(torch.arange(4, device=META).view(2, 2), mask).tolist() == [0, 2, 3]


def test_weights_are_no_zeros():
    known = KnownValues()
    with known, META:
        weights = nn.Parameter(torch.zeros(3))
        assert known_value(weights.detach().view(1, 3)).tolist() == [[0, 0, 0]]
        known.forget([weights])
        assert known_value(weights.detach().view(1, 3)) is None
        assert known_value(weights + torch.zeros(3)) is None


def test_large_masks_stay_shapes_and_pictures_and_assignments_do_not():
    with KnownValues() as known:
        places = torch.arange(3000, device=META)
        assert known_value(places[:, None] >= places[None, :]) is None
        assert known_value(places[:500, None] >= places[None, :500]) is not None
        rows = nn.functional.one_hot(places, 3000)
        assert torch.equal(known_value(rows.argmax(1)), torch.arange(3000))
        assert known_value(nn.functional.one_hot(torch.empty(3, device=META).long(), num_classes=4)) is None
        pixels = given_on_meta(known, torch.ones(2, 3, 800, 800))
        assert known_value((pixels == 0).sum(dim=(1, 2, 3))).tolist() == [0, 0]


def test_nothing_is_known_outside_of_the_block():
    known = KnownValues()
    with known:
        three = torch.tensor(3, device=META)
    assert known_value(three) is None
    with pytest.raises(RuntimeError, match="meta"):
        three.item()
    with known:
        assert three.item() == 3


def test_questions_that_models_ask_are_answered():
    known = KnownValues()
    with known:
        grid = given_on_meta(known, torch.tensor([[1, 4, 6], [1, 2, 2]]))
        assert grid.tolist() == [[1, 4, 6], [1, 2, 2]]
        assert (int(grid[0, 1]), bool((grid > 0).all()), grid.prod(-1).sum().item()) == (4, True, 28)
        assert [tuple(row.tolist()) for row in grid] == [(1, 4, 6), (1, 2, 2)]
        rows = torch.empty(28, 5, device=META)
        assert [tuple(part.shape) for part in torch.split(rows, grid.prod(-1).tolist())] == [(24, 5), (4, 5)]
        mask = torch.arange(28, device=META) % 3 == 0
        assert rows[mask].shape == (10, 5)
        assert mask.nonzero().shape == (10, 1)
        assert torch.where(mask)[0].tolist() == list(range(0, 28, 3))
        assert torch.repeat_interleave(torch.arange(2, device=META), grid[:, 1]).tolist() == [0] * 4 + [1] * 2
        assert torch.unique(grid).tolist() == [1, 2, 4, 6]
        assert torch.equal(grid, grid.clone())
        assert 6 in grid[:, [1, 2]]
        assert grid.cpu().tolist() == grid.tolist()
        assert torch.tensor([grid[0, 1], 5], device=META).tolist() == [4, 5]
        there = torch.zeros(3, dtype=torch.long)
        there[1:] = grid[0, 1:]
        assert there.tolist() == [0, 4, 6]


def test_what_is_written_is_known_through_every_view_and_what_is_unknown_is_forgotten():
    with KnownValues():
        numbers = torch.arange(6, device=META)
        view = numbers.view(2, 3)
        numbers[2:4] = 9
        view[1, 2:] += 1
        assert known_value(numbers).tolist() == [0, 1, 9, 9, 4, 6]
        assert known_value(view).tolist() == [[0, 1, 9], [9, 4, 6]]
        numbers[torch.tensor([0, 5], device=META)] = 7
        assert known_value(view).tolist() == [[7, 1, 9], [9, 4, 7]]
        view[0] = torch.empty(3, device=META).long()
        assert known_value(view) is None
        assert known_value(numbers) is None
        numbers.fill_(3)
        assert known_value(view).tolist() == [[3] * 3] * 2


def test_what_the_cpu_has_no_kernel_for_is_unknown_and_so_is_what_it_wrote_over():
    with torch.library._scoped_library("stagemeter_test", "DEF") as library:
        library.define("double_(Tensor(a!) x) -> Tensor(a!)")
        library.impl("double_", lambda x: x, "Meta")
        with KnownValues():
            numbers = torch.arange(3, device=META)
            view = numbers[1:]
            torch.ops.stagemeter_test.double_(numbers)
            assert known_value(numbers) is None
            assert known_value(view) is None
            bins = torch.histc(torch.arange(4, device=META, dtype=torch.int32), bins=2)
            assert known_value(bins) is None


def test_what_has_no_values_stays_a_shape_wherever_it_is_moved():
    table = torch.arange(10, 18)
    with KnownValues():
        codes = torch.empty(2, 3, device=META).argmin(-1)
        found = table[codes.to("cpu")]
        beside = torch.cat([found, torch.zeros(1, dtype=torch.long)])
        assert (found.device, found.shape, beside.shape) == (META, (2,), (3,))
        assert known_value(found) is None
        # What asks for values there is refused as it is here.
        with pytest.raises(RuntimeError, match="meta"):
            codes.cpu()[0].item()
        with pytest.raises(NotImplementedError):
            torch.zeros(2, dtype=torch.long).copy_(codes)
        kept = torch.arange(8, device=META)
        assert kept.to("cpu").tolist() == list(range(8))


def test_what_is_written_to_an_array_is_seen_to_be_written():
    with KnownValues(), CostCounter() as counter:
        there = torch.empty(3, dtype=torch.long)
        there[:] = torch.arange(3, device=META)
        assert (there + 1).tolist() == [1, 2, 3]
    assert not counter.counts().unsupported_of("")


def test_masks_put_unknown_rows_where_they_belong():
    with KnownValues(), CostCounter() as counter:
        rows, mask = torch.zeros(6, 4, device=META), torch.tensor([True, False] * 3, device=META)
        rows[mask] = torch.empty(3, 4, device=META)
        assert known_value(rows) is None
        rows[mask] @ torch.empty(4, 2, device=META)
    assert counter.counts().of("").macs == 3 * 4 * 2


OPERATIONS = {
    "add": lambda a, b: a + b,
    "compare": lambda a, b: a < b,
    "stack": lambda a, b: torch.stack([a, b], 1).flatten(),
    "transposed": lambda a, b: (a[:, None] * b[None, :]).T,
    "cumulative": lambda a, b: torch.cumsum(a, 0) - b.flip(0),
    "where": lambda a, b: torch.where(a > b, a, -b),
    "chosen": lambda a, b: a[b.abs() % len(a)],
    "masked": lambda a, b: a[a > b],
    "sorted": lambda a, b: torch.sort(a, stable=True).indices,
    "in place": lambda a, b: a.clone().add_(b).mul_(2),
    "counted": lambda a, b: torch.bincount(a.abs()),
    "padded": lambda a, b: nn.functional.pad(a, (1, 2), value=5),
}


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=1, max_size=6), st.data())
def test_what_comes_of_values_is_what_a_real_run_has(pairs, data):
    operations = data.draw(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=3))
    first, second = (torch.tensor(numbers) for numbers in zip(*pairs, strict=True))
    known = KnownValues()
    with known:
        bare, other = given_on_meta(known, first), given_on_meta(known, second)
        for name in operations:
            if first.dim() != 1 or len(first) != len(second) or first.dtype != torch.long:
                break
            first, bare = OPERATIONS[name](first, second), OPERATIONS[name](bare, other)
        assert bare.device == META
        assert bare.shape == first.shape
        assert bare.dtype == first.dtype
        assert torch.equal(known_value(bare), first)


class ByLength(nn.Module):
    """Layers whose work depends on values: as many rows as a tensor says."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
        self.rows = nn.ModuleList(Rows() for _ in range(3))

    def forward(self, x, lengths):
        return [layer(x, length) for layer, length in zip(self.rows, lengths, strict=True)]


class Rows(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 8)

    def forward(self, x, length):
        return self.linear(x[: int(length)])


def test_layers_that_are_alike_are_told_apart_by_values():
    model = ByLength().to(META)
    known = KnownValues()
    with torch.no_grad(), CostCounter(model) as counter, known:
        lengths = [given_on_meta(known, torch.tensor(length)) for length in (2, 5, 2)]
        model(torch.empty(6, 4, device=META), lengths)
    counts = counter.counts()
    assert [counts.of(f"rows.{index}").macs for index in range(3)] == [2 * 32, 5 * 32, 2 * 32]


def test_nothing_is_counted_in_a_pause_and_every_layer_runs():
    model = ByLength().to(META)
    known = KnownValues()
    with torch.no_grad(), CostCounter(model) as counter, known:
        lengths = [given_on_meta(known, torch.tensor(length)) for length in (2, 2, 2)]
        ran = []
        model.rows[1].linear.register_forward_hook(lambda *args: ran.append(args))
        with counter.paused():
            model(torch.empty(6, 4, device=META), lengths)
        assert counter.counts().of("").macs == 0
        assert len(ran) == 1
        model(torch.empty(6, 4, device=META), lengths)
    assert counter.counts().of("").macs == 3 * 2 * 32
