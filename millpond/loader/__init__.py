"""Training sets for training jobs: rows by number, in an exact global order.

The door of the room. It loads no planner, no runtime and no torch.
"""

from millpond.loader.batches import Batch
from millpond.loader.columns import Ragged
from millpond.loader.loader import Loader, Location
from millpond.loader.mixture import Mixture, mix
from millpond.loader.reader import Dataset, open_dataset
from millpond.loader.selection import Predicate, Select
from millpond.loader.state import Receipt
from millpond.loader.write import write_dataset

__all__ = [
    "Batch",
    "Dataset",
    "Loader",
    "Location",
    "Mixture",
    "Predicate",
    "Ragged",
    "Receipt",
    "Select",
    "mix",
    "open_dataset",
    "write_dataset",
]
