"""A small pipeline that a seed draws, as a program that others kill: `test_hostile.py`.

    python hostile_program.py INPUT DATA_ROOT TARGET SEED [ADDRESS]

Each step is drawn with the SQL that says the same, so plain DuckDB knows the rows.
"""

import random
import sys
from typing import Any

COLUMNS = {"id": "BIGINT", "user_id": "BIGINT", "v": "BIGINT"}
FIRST = "SELECT id, user_id, coalesce(price, 0)::BIGINT AS v FROM events"


def shifted(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "v": (row["v"] * 7 + row["id"]) % 1009}


def doubled(batch: Any) -> Any:
    import pyarrow.compute as pc

    return batch.set_column(2, "v", pc.multiply(batch["v"], 2))


def steps(seed: int) -> list[tuple[str, str]]:
    """Names of steps with what they do to the query before them, `{}`."""
    known = [
        ("filter", "SELECT * FROM ({}) WHERE v % 5 <> 2"),
        ("row", "SELECT id, user_id, (v * 7 + id) % 1009 AS v FROM ({})"),
        ("batch", "SELECT id, user_id, v * 2 AS v FROM ({})"),
        ("hash", "SELECT * FROM ({})"),
        ("even", "SELECT * FROM ({})"),
        ("partial", "SELECT * FROM ({}) WHERE user_id % 7 <> 3"),
        ("sort", "SELECT * FROM ({})"),
        ("join", "SELECT a.* FROM ({}) a SEMI JOIN (SELECT * FROM ({}) WHERE v % 2 = 0) b "
                 "ON a.user_id = b.user_id"),
    ]  # fmt: skip
    drawn = random.Random(seed)
    return drawn.choices(known, k=drawn.randint(2, 5))


def oracle_sql(seed: int) -> str:
    sql = FIRST
    for _, wrap in steps(seed):
        sql = wrap.replace("{}", sql)
    return f"SELECT * FROM ({sql}) ORDER BY v, id"


def frame(sp: Any, path: str, seed: int) -> Any:
    df = sp.read_parquet(path).map("id, user_id, coalesce(price, 0)::BIGINT AS v")
    for name, _ in steps(seed):
        match name:
            case "filter":
                df = df.filter("v % 5 <> 2")
            case "row":
                df = df.map(shifted, schema=COLUMNS)
            case "batch":
                df = df.map_batches(doubled, schema=COLUMNS)
            case "hash":
                df = df.repartition(3, hash_by="user_id")
            case "even":
                df = df.repartition(4, by_rows=True)
            case "partial":
                df = sp.partial_sql("SELECT * FROM {0} WHERE user_id % 7 <> 3", df)
            case "sort":
                df = df.sort("user_id, id")
            case "join":
                df = df.join(df.filter("v % 2 = 0"), on="user_id", how="semi")
    return df.sort("v, id")


def main() -> None:
    from millpond.options import options
    from millpond.session import Session

    path, root, target, seed = sys.argv[1:5]
    given: dict[str, Any] = {"shape": "staged"}
    if sys.argv[5:]:
        given = {"runtime": "ray", "address": sys.argv[5], "allow_insecure": True}
    with Session(options(split_bytes=8192, threads=2, data_root=root, **given)) as sp:
        frame(sp, path, int(seed)).write_parquet(target)


if __name__ == "__main__":
    main()
