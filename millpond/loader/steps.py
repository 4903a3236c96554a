"""Which positions a rank reads at a step: arithmetic on positions, and nothing else.

A step at world w takes the next w * batch_size positions of the epoch, rank r the r-th
slice. The state between two steps is one position, so any world, rank or batch size
may carry on from it, and all ranks make the same number of steps.
"""

import operator
from dataclasses import dataclass

from millpond.errors import OptionError


def whole_numbers(given: object, *names: str) -> None:
    """Make these options of a frozen value plain `int`, as JSON needs them.

    None stays. Raises `OptionError` for what is no whole number, such as the text `"0"`.
    """
    for name in names:
        value = getattr(given, name)
        if value is None:
            continue
        try:
            object.__setattr__(given, name, operator.index(value))
        except TypeError:
            raise OptionError(f"loader({name}={value!r}): pass a whole number.") from None


@dataclass(frozen=True, slots=True)
class Geometry:
    """How steps are cut: what may change from one step to the next.

    The last step of an epoch splits what is left as evenly as possible; `drop_last`
    leaves it out, `pad` fills it with rows from the epoch's beginning.
    """

    batch_size: int
    rank: int = 0
    world: int = 1
    drop_last: bool = False
    pad: bool = False

    def __post_init__(self) -> None:
        whole_numbers(self, "batch_size", "rank", "world")
        if self.batch_size < 1:
            raise OptionError(
                f"loader(batch_size={self.batch_size}): a batch has at least 1 row. "
                "Pass a positive number."
            )
        if self.world < 1:
            raise OptionError(f"loader(world={self.world}): at least 1 rank reads. Pass 1 or more.")
        if not 0 <= self.rank < self.world:
            raise OptionError(
                f"loader(rank={self.rank}, world={self.world}): a rank lies in "
                f"0..{self.world - 1}. Pass this process's rank and the number of ranks."
            )
        if self.drop_last and self.pad:
            raise OptionError(
                "loader(drop_last=True, pad=True): the last step is either left out or "
                "filled up. Choose one."
            )

    @property
    def step_rows(self) -> int:
        return self.world * self.batch_size

    def steps(self, n: int, position: int = 0) -> int:
        """Steps from `position` to the end of an epoch of `n` positions."""
        left = max(0, n - position)
        return left // self.step_rows if self.drop_last else -(-left // self.step_rows)

    def span(self, n: int, position: int) -> tuple[int, int]:
        """This rank's positions, first and behind the last, of the step at `position`.

        With `pad` they may pass `n`; the caller wraps them around.
        """
        left = n - position
        if left >= self.step_rows or self.pad:
            first = position + self.rank * self.batch_size
            return first, first + self.batch_size
        return (
            position + left * self.rank // self.world,
            position + left * (self.rank + 1) // self.world,
        )

    def after(self, n: int, position: int) -> int:
        """Where the step at `position` ends."""
        return min(n, position + self.step_rows)

    def place(self, n: int, start: int, position: int) -> tuple[int, int, int]:
        """(steps after the one at `start`, rank, slot) of `position`, read from `start` on."""
        step = (position - start) // self.step_rows
        first = start + step * self.step_rows
        left, offset = n - first, position - first
        if left >= self.step_rows or self.pad:
            return step, offset // self.batch_size, offset % self.batch_size
        # The rank r with left * r // world <= offset < left * (r + 1) // world.
        rank = ((offset + 1) * self.world - 1) // left
        return step, rank, offset - left * rank // self.world
