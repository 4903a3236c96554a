"""Feed JAX: batches go to the device through DLPack, and training goes on from a state.

    pip install millpond jax
    python examples/jax_feed.py

A line is fitted to rows of a training set. One run goes through; another one stops half
way, keeps the loader's state as JSON beside the weights, and a new loader goes on with
another batch queue. Both end with the same weights.
"""

import json
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa

import millpond
from millpond.loader import Loader

STEPS = 60


def write(path: str) -> None:
    draw = np.random.default_rng(0)
    x = draw.normal(size=(20_000, 16)).astype(np.float32)
    y = x @ np.arange(16, dtype=np.float32) + draw.normal(size=20_000).astype(np.float32)
    rows = pa.table({"x": pa.FixedSizeListArray.from_arrays(x.reshape(-1), 16), "y": y})
    with millpond.init(progress=False) as sp:
        sp.from_arrow(rows).random_shuffle(seed=1).write_dataset(path)


def on_device(batch: dict[str, Any]) -> dict[str, jax.Array]:
    """Each column as a JAX array; on a CPU the memory of the batch itself, where aligned."""
    return {name: jax.dlpack.from_dlpack(column) for name, column in batch.items()}


@jax.jit
def step(weights: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
    def loss(w: jax.Array) -> jax.Array:
        return jnp.mean((batch["x"] @ w - batch["y"]) ** 2)

    return weights - 0.05 * jax.grad(loss)(weights)


def train(loader: Loader, weights: jax.Array, steps: int) -> jax.Array:
    for _, batch in zip(range(steps), loader, strict=False):
        weights = step(weights, on_device(batch))
    return weights


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        write(f"{folder}/rows")
        ds = millpond.open_dataset(f"{folder}/rows")

        def loader(prefetch: int = 2) -> Loader:
            return ds.loader(256, shuffle="global", seed=3, drop_last=True, prefetch=prefetch)

        through = train(loader(), jnp.zeros(16), STEPS)
        first = loader()
        half = train(first, jnp.zeros(16), STEPS // 2)
        kept = json.dumps(first.state_dict())
        second = loader(prefetch=0)
        second.load_state_dict(json.loads(kept))
        resumed = train(second, half, STEPS // 2)
        print(f"largest error of a weight: {abs(through - jnp.arange(16)).max():.3f}")
        assert (through == resumed).all(), "the resumed run is another one"
        print(f"resumed from {len(kept)} bytes of state: the same weights, to the last bit")


if __name__ == "__main__":
    main()
