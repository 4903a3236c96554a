"""The tables of the oracle: small, with everything in them that values can be."""

from pathlib import Path

import duckdb
import pyarrow.parquet as pq

TRICKY = ["plain", "it's", 'a "b" c', "ünïcödé", "日本", "", "a##b", "x\ty", "new\nline", "%s {0}"]

T = """
SELECT i AS id,
       CASE WHEN i % 7 = 0 THEN NULL ELSE i % 5 END::INTEGER AS k,
       CASE i % 11 WHEN 0 THEN 'nan'::DOUBLE WHEN 1 THEN -0.0 WHEN 2 THEN NULL WHEN 3 THEN 0.0
            WHEN 4 THEN '-inf'::DOUBLE ELSE (i * 37 % 101) / 7 END AS x,
       ((i * 31 % 1000) / 8)::DECIMAL(12, 3) AS price,
       CASE WHEN i % 13 = 0 THEN NULL ELSE tricky[1 + i % 10] END AS s,
       i % 3 = 0 AS flag,
       DATE '2024-02-27' + (i % 9)::INTEGER AS day,
       CASE WHEN i % 17 = 0 THEN NULL
            ELSE TIMESTAMP '2024-01-01 00:00:00' + INTERVAL (i * 977) MINUTE END AS ts,
       CASE WHEN i % 6 = 0 THEN NULL ELSE [i % 4, NULL, i] END AS tags,
       {'a': i % 3, 'b': tricky[1 + i % 4]} AS pair,
       tricky[1 + i % 3]::ENUM('plain', 'it''s', 'a "b" c') AS mood,
       (i::HUGEINT * 10000000000000000) AS big
FROM range(230) r(i), (SELECT $tricky AS tricky)
"""
U = """
SELECT (i * 3) % 240 AS id,
       CASE WHEN i % 5 = 0 THEN NULL ELSE i % 6 END::BIGINT AS k,
       'u' || i AS name, i * 0.25 AS w
FROM range(140) r(i)
"""
V = "SELECT i AS k, chr(97 + i::INTEGER) AS letter FROM range(9) r(i) WHERE i <> 2"
EMPTY = f"SELECT * FROM ({T.replace('$tricky', repr(TRICKY[:1]))}) WHERE false"


def make_tables(folder: Path) -> duckdb.DuckDBPyConnection:
    """The tables as Parquet files of many row groups, and plain DuckDB over the same files."""
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    literal = "[" + ", ".join("'" + text.replace("'", "''") + "'" for text in TRICKY) + "]"
    queries = {"t": T.replace("$tricky", literal), "u": U, "v": V, "e": EMPTY}
    for name, query in queries.items():
        connection.execute(f"CREATE TABLE {name} AS {query}")
        rows = connection.table(name).count("*").fetchall()[0][0]
        (folder / name).mkdir()
        for piece in range(2):
            half = f"FROM {name} LIMIT {rows // 2 + 1} OFFSET {piece * (rows // 2 + 1)}"
            relation = connection.sql(half)
            make = getattr(relation, "to_arrow_table", None) or relation.fetch_arrow_table
            path = folder / name / f"{piece}.parquet"
            pq.write_table(make(), path, row_group_size=30)
        connection.execute(f"DROP TABLE {name}")
        # Enums and huge integers are other types in Parquet: the oracle reads the same files.
        files = [str(folder / name / f"{piece}.parquet") for piece in range(2)]
        connection.execute(f"CREATE TABLE {name} AS FROM read_parquet({files})")
    return connection
