"""Position arithmetic: every position once, whatever the ranks, and equal numbers of steps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.errors import OptionError
from millpond.loader.steps import Geometry


def ranks(world: int, batch: int, **last: bool) -> list[Geometry]:
    return [Geometry(batch, rank, world, **last) for rank in range(world)]


@given(st.integers(0, 500), st.integers(1, 97), st.integers(1, 20))
def test_the_ranks_of_all_steps_cover_an_epoch_in_order(n: int, world: int, batch: int) -> None:
    seen: list[int] = []
    position = steps = 0
    while position < n:
        for geometry in ranks(world, batch):
            seen.extend(range(*geometry.span(n, position)))
        position = Geometry(batch, 0, world).after(n, position)
        steps += 1
    assert seen == list(range(n))
    assert steps == Geometry(batch, 0, world).steps(n)


@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 9))
def test_the_last_step_is_split_evenly(n: int, world: int, batch: int) -> None:
    last = (n - 1) // (world * batch) * (world * batch)
    sizes = [b - a for a, b in (g.span(n, last) for g in ranks(world, batch))]
    assert max(sizes) - min(sizes) <= 1
    assert sum(sizes) == n - last


def test_drop_last_leaves_the_short_step_out_and_pad_fills_it() -> None:
    assert Geometry(4, 0, 2, drop_last=True).steps(23) == 2
    assert Geometry(4, 0, 2).steps(23) == 3
    assert Geometry(4, 1, 2, pad=True).span(23, 16) == (20, 24)


@given(
    st.integers(1, 200), st.integers(1, 7), st.integers(1, 7), st.integers(0, 100), st.booleans()
)
def test_place_finds_what_span_gives(n: int, world: int, batch: int, start: int, pad: bool) -> None:
    start = min(start, n - 1)
    at, step = start, 0
    while at < n:
        for geometry in ranks(world, batch, pad=pad):
            for slot, position in enumerate(range(*geometry.span(n, at))):
                if position < n:
                    assert geometry.place(n, start, position) == (step, geometry.rank, slot)
        at, step = geometry.after(n, at), step + 1


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 1, "world": 0}, "world=0"),
        ({"batch_size": 1, "rank": 4, "world": 4}, "rank=4, world=4"),
        ({"batch_size": 1, "rank": -1}, "rank=-1"),
        ({"batch_size": 1, "drop_last": True, "pad": True}, "drop_last"),
    ],
)
def test_impossible_geometry_is_refused_by_name(options: dict[str, int], names: str) -> None:
    with pytest.raises(OptionError, match=names):
        Geometry(**options)  # type: ignore[arg-type]
