"""Kill at random, round after round, and say at the end what was killed and what came of it.

    PYTHONPATH=. python tests/support/hostile_rounds.py [--rounds 20] [--seed 0] [--ray]

A round is a pipeline that its seed draws, run until it ends well: on the way the program, one of
its processes or, with `--ray`, a node of a cluster of two is killed, three times at most, and the
same program is started again. Then all rows are compared with plain DuckDB's, and no temporary
file, process or port may be left. The first round that fails ends it, with its seed.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from contextlib import nullcontext
from pathlib import Path

sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from ray_cluster import cluster

from tests.faults.test_hostile import Hostile, node_or_worker
from tests.support.sessions import write_events


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first round; then one more")
    parser.add_argument("--ray", action="store_true", help="on a cluster of two nodes")
    told = parser.parse_args()
    killed, began_s, runs = Counter[str](), time.monotonic(), 0
    with cluster(2) if told.ray else nullcontext() as nodes:
        for seed in range(told.seed, told.seed + told.rounds):
            start_s = time.monotonic()
            with tempfile.TemporaryDirectory(prefix="hostile-") as folder:
                path = write_events(Path(folder))
                hostile = Hostile(path, Path(folder), seed, nodes.address if nodes else "")
                hostile.run(node_or_worker(nodes) if nodes else None)
                rows = hostile.check(path, seed)
            killed.update(hostile.kills)
            runs += hostile.runs
            seconds = time.monotonic() - start_s
            what = ", ".join(hostile.kills) or "nothing"
            print(f"seed {seed}: {rows:,} rows as they should be; killed {what}; "
                  f"{hostile.runs} runs, {seconds:.1f} s", flush=True)  # fmt: skip
    what = ", ".join(f"{kind} {n}" for kind, n in sorted(killed.items())) or "nothing"
    print(f"{told.rounds} rounds, {runs} runs, killed: {what}; no row wrong, nothing left; "
          f"{time.monotonic() - began_s:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
