"""What loaders are made of: a dataset, or a mixture of some, asked in the same words."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from millpond.errors import OptionError
from millpond.loader.batches import Format
from millpond.loader.loader import Loader, OnError, Settings
from millpond.loader.order import Shuffle
from millpond.loader.plan import Choice
from millpond.loader.steps import Geometry


class Feed(ABC):
    """Gives loaders. A subclass opens the one that values describe."""

    seed = 0

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: Shuffle = False,
        seed: int | None = None,
        rank: int = 0,
        world: int = 1,
        epochs: int | None = 1,
        columns: Sequence[str] | None = None,
        filter: str | None = None,
        drop_last: bool = False,
        pad: bool = False,
        format: Format = "numpy",
        prefetch: int = 2,
        pack: int | None = None,
        tokens: str | None = None,
        on_error: OnError = "raise",
        pin_memory: bool = False,
        block_rows: int | None = None,
        window_blocks: int | None = None,
    ) -> Loader:
        """Batches in an exact global order, for one of `world` ranks.

        Step s takes the next `world * batch_size` rows of the order, this rank the
        `rank`-th slice. `filter` is SQL, evaluated once and kept beside the data.
        `pack` and `tokens` (a list column) give packed sequences instead of rows.
        `seed` is 0, or that of the mixture, where it is not given. In a mixture, `columns`
        must be in all sources, with equal types; by default those that are.
        `format` is `"numpy"`, `"torch"`, `"arrow"`, or `"views"`: large samples as read-only
        arrays that look into the stored shards. `pin_memory` puts tensors into page-locked memory.
        """
        if pack is not None and format == "views":
            raise OptionError(
                "loader(pack=…, format='views'): packs are laid out anew, and views look into "
                "stored rows. Leave format out."
            )
        seed = self.seed if seed is None else seed
        columns = [columns] if isinstance(columns, str) else columns
        choice = Choice(shuffle, seed, columns, filter, pack, tokens, block_rows, window_blocks)
        geometry = Geometry(batch_size, rank, world, drop_last, pad)
        settings = Settings(geometry, epochs, format, prefetch, on_error, pin_memory)
        return self._open(choice, settings)

    @abstractmethod
    def _open(self, choice: Choice, settings: Settings) -> Loader:
        """The loader that these values describe, at the beginning of its sequence."""
