# ruff: noqa: E501 (a pipeline and its SQL side by side)
"""Pipelines as data: in Millpond's words, and in plain SQL."""

from tests.oracle.harness import Case

K = "k, count(*) AS n, sum(price) AS p, min(id) AS first, max(x) AS most"

EVERY = (
    "id, big * 7 AS h, [big, NULL] AS hs, id::UHUGEINT AS u, md5(s)::UUID AS uid, flag, [flag] AS fs, "
    "('{\"a\":' || id || '}')::JSON AS js, id::INTEGER::BIT::VARCHAR AS bits, ts::TIMESTAMPTZ::VARCHAR AS tz, "
    "ts::TIMESTAMP_NS AS ns, ts::TIME AS tm, to_months(id::INTEGER)::VARCHAR AS iv, encode(s) AS bl, "
    "MAP {id: flag} AS m, {'h': big, 'u HUGEINT': md5(s)::UUID} AS st, x::FLOAT AS f4"
)

CASES = (
    # ---- row by row ----
    Case("read", lambda sp, f: f["t"], "FROM t", ordered=True),
    Case("map", lambda sp, f: f["t"].map("id * 2 AS a, s || '!' AS b, tags[1] AS c, pair.a AS d"),
         "SELECT id * 2 AS a, s || '!' AS b, tags[1] AS c, pair.a AS d FROM t", ordered=True),
    Case("map comment", lambda sp, f: f["t"].map("id, s -- the end"), "SELECT id, s FROM t",
         ordered=True),
    Case("map star", lambda sp, f: f["t"].map("* EXCLUDE (x), -x AS y"),
         "SELECT * EXCLUDE (x), -x AS y FROM t", ordered=True),
    Case("filter", lambda sp, f: f["t"].filter("k > 1 AND s <> 'it''s'"),
         "FROM t WHERE k > 1 AND s <> 'it''s'", ordered=True),
    Case("filter or", lambda sp, f: f["t"].filter("(id = 1) OR (k = 1)"),
         "FROM t WHERE (id = 1) OR (k = 1)", ordered=True),
    Case("filter comment", lambda sp, f: f["t"].filter("k > 1 -- or not"), "FROM t WHERE k > 1",
         ordered=True),
    Case("filter none", lambda sp, f: f["t"].filter("false"), "FROM t WHERE false", cut=False),
    Case("filter nan", lambda sp, f: f["t"].filter("x > 0"), "FROM t WHERE x > 0", ordered=True),
    Case("flat map", lambda sp, f: f["t"].flat_map("id, unnest(tags) AS tag"),
         "SELECT id, unnest(tags) AS tag FROM t", ordered=True),
    Case("select", lambda sp, f: f["t"].select("S", "k + 1 AS k"), "SELECT s, k + 1 AS k FROM t",
         ordered=True),
    Case("with columns", lambda sp, f: f["t"].with_columns(k="k * 2", y="x + 1"),
         "SELECT * REPLACE (k * 2 AS k), x + 1 AS y FROM t", ordered=True),
    Case("rename drop", lambda sp, f: f["t"].drop("tags", "pair", "x").rename({"id": 'a "b"'}),
         'SELECT * EXCLUDE (tags, pair, x) RENAME (id AS "a ""b""") FROM t', ordered=True),
    Case("chain", lambda sp, f: f["t"].filter("k IS NOT NULL").map("id, k * 2 AS k").filter("k > 4")
         .with_columns(z="id + k").filter("z % 2 = 0"),
         "SELECT id, k * 2 AS k, id + k * 2 AS z FROM t WHERE k * 2 > 4 AND (id + k * 2) % 2 = 0",
         ordered=True),
    Case("empty", lambda sp, f: f["e"].map("id, s").filter("id > 0"), "SELECT id, s FROM e",
         cut=False),
    # ---- order ----
    Case("sort", lambda sp, f: f["t"].sort("k, id desc"), "FROM t ORDER BY k, id DESC",
         ordered=True),
    Case("sort nulls", lambda sp, f: f["t"].sort(["k desc nulls first", "s", "id"]),
         "FROM t ORDER BY k DESC NULLS FIRST, s, id", ordered=True),
    Case("sort ties", lambda sp, f: f["t"].sort("k"), "FROM t ORDER BY k, id", ordered=True),
    Case("sort heavy tie", lambda sp, f: f["t"].sort("id < 0"), "FROM t ORDER BY id", ordered=True),
    Case("sort float ties", lambda sp, f: f["t"].sort("x"), "FROM t ORDER BY x, id", ordered=True),
    Case("sort text", lambda sp, f: f["t"].sort("s desc, day"),
         "FROM t ORDER BY s DESC, day, id", ordered=True),
    Case("sort nested", lambda sp, f: f["t"].sort("tags, pair, id"),
         "FROM t ORDER BY tags, pair, id", ordered=True),
    Case("sort huge", lambda sp, f: f["t"].map("id, big").sort("big desc"),
         "SELECT id, big FROM t ORDER BY id DESC", ordered=True),
    Case("enum", lambda sp, f: f["t"].map("id, mood::ENUM('a \"b\" c', 'plain', 'it''s') AS e")
         .sort("e, id").filter("e > 'plain'"),
         "SELECT id, mood::ENUM('a \"b\" c', 'plain', 'it''s') AS e FROM t WHERE e > 'plain' "
         "ORDER BY e, id", ordered=True),
    Case("enum group", lambda sp, f: f["t"].map("id, mood::ENUM('a \"b\" c', 'plain', 'it''s') AS e")
         .group_by("e").agg("max(id) AS m", "max(e) AS me"),
         "SELECT e, max(id) AS m, max(e) AS me FROM "
         "(SELECT *, mood::ENUM('a \"b\" c', 'plain', 'it''s') AS e FROM t) GROUP BY e"),
    Case("every type", lambda sp, f: f["t"].map(EVERY).repartition(3, hash_by="id").sort("id"),
         f"SELECT {EVERY} FROM t ORDER BY id", ordered=True),
    Case("sort then filter", lambda sp, f: f["t"].sort("price, id").filter("flag").map("id, price"),
         "SELECT id, price FROM t WHERE flag ORDER BY price, id", ordered=True),
    Case("sort then limit", lambda sp, f: f["t"].sort("price desc, id").limit(9),
         "FROM t ORDER BY price DESC, id LIMIT 9", ordered=True),
    Case("sort one partition then limit", lambda sp, f: f["t"].repartition(1).sort("id desc")
         .limit(3), "FROM t ORDER BY id DESC LIMIT 3", ordered=True, cut=False),
    Case("first of ties", lambda sp, f: f["t"].sort("k").limit(60), "FROM t ORDER BY k, id LIMIT 60",
         ordered=True),
    Case("limit of a function of sorted", lambda sp, f: f["t"].sort("x desc, id").map("id").limit(5),
         "SELECT id FROM t ORDER BY x DESC, id LIMIT 5", ordered=True),
    Case("sort nothing", lambda sp, f: f["e"].sort("k"), "FROM e", cut=False),
    Case("limit", lambda sp, f: f["t"].limit(100), "FROM t LIMIT 100", ordered=True),
    Case("limit map", lambda sp, f: f["t"].limit(10).map("id"), "SELECT id FROM t LIMIT 10",
         ordered=True),
    Case("limit filter", lambda sp, f: f["t"].limit(50).filter("flag"),
         "FROM (FROM t LIMIT 50) WHERE flag", ordered=True),
    Case("limit more", lambda sp, f: f["t"].limit(999), "FROM t", ordered=True),
    Case("limit nothing", lambda sp, f: f["t"].limit(0), "FROM t LIMIT 0", cut=False),
    Case("by rows", lambda sp, f: f["t"].repartition(4, by_rows=True).map("id"),
         "SELECT id FROM t", ordered=True),
    # ---- groups ----
    Case("group", lambda sp, f: f["t"].group_by("k").agg(
         "count(*) AS n, sum(price) AS p, min(id) AS first, max(x) AS most"),
         f"SELECT {K} FROM t GROUP BY k"),
    Case("group float", lambda sp, f: f["t"].group_by("x").agg("count(*) AS n", "sum(id) AS s"),
         "SELECT x, count(*) AS n, sum(id) AS s FROM t GROUP BY x"),
    Case("group two", lambda sp, f: f["t"].group_by("k", "s").agg("count(*) AS n"),
         "SELECT k, s, count(*) AS n FROM t GROUP BY k, s"),
    Case("group nested", lambda sp, f: f["t"].group_by("pair").agg("avg(price) AS m"),
         "SELECT pair, avg(price) AS m FROM t GROUP BY pair"),
    Case("group distinct", lambda sp, f: f["t"].group_by("flag").agg("count(DISTINCT s) AS n"),
         "SELECT flag, count(DISTINCT s) AS n FROM t GROUP BY flag"),
    Case("total", lambda sp, f: f["t"].group_by().agg("sum(price) AS p, count(x) AS n"),
         "SELECT sum(price) AS p, count(x) AS n FROM t"),
    Case("total of nothing", lambda sp, f: f["e"].group_by().agg("sum(price) AS p, count(*) AS n"),
         "SELECT sum(price) AS p, count(*) AS n FROM e", cut=False),
    Case("group of nothing", lambda sp, f: f["e"].group_by("k").agg("count(*) AS n"),
         "SELECT k, count(*) AS n FROM e GROUP BY k", cut=False),
    Case("group twice", lambda sp, f: f["t"].group_by("k", "flag").agg("count(*) AS n")
         .group_by("k").agg("max(n) AS m").sort("k"),
         "SELECT k, max(n) AS m FROM (SELECT k, flag, count(*) AS n FROM t GROUP BY ALL) "
         "GROUP BY k ORDER BY k", ordered=True),
    Case("group renamed", lambda sp, f: f["t"].repartition(3, hash_by="k").map("id AS k, k AS j")
         .group_by("k").agg("count(*) AS n"), "SELECT id AS k, count(*) AS n FROM t GROUP BY id"),
    Case("group then filter", lambda sp, f: f["t"].group_by("k").agg("sum(id) AS s")
         .filter("s > 4000"), "SELECT k, sum(id) AS s FROM t GROUP BY k HAVING sum(id) > 4000"),
    Case("distinct", lambda sp, f: f["t"].select("k", "flag").distinct(),
         "SELECT DISTINCT k, flag FROM t"),
    Case("distinct first", lambda sp, f: f["t"].distinct("k", "flag").select("id", "k", "flag"),
         "SELECT id, k, flag FROM t QUALIFY row_number() OVER (PARTITION BY k, flag ORDER BY id)=1"),
    # ---- joins ----
    *(Case(f"join {how}", lambda sp, f, how=how: f["t"].select("id", "k", "s")
           .join(f["u"], "id", how),
           f"SELECT {'coalesce(t.id, u.id)' if how in ('right', 'full') else 't.id'} AS id, t.k, "
           f"t.s, u.k AS k_right, u.name, u.w FROM t {how} JOIN u ON t.id = u.id")
      for how in ("inner", "left", "right", "full")),
    *(Case(f"join {how}", lambda sp, f, how=how: f["t"].join(f["u"], "id", how),
           f"FROM t {how} JOIN u USING (id)") for how in ("semi", "anti")),
    Case("join of two types", lambda sp, f: f["t"].select("id", "k").join(f["u"], "k"),
         "SELECT t.id, t.k, u.id AS id_right, u.name, u.w FROM t JOIN u ON t.k = u.k"),
    Case("join on sql", lambda sp, f: f["t"].select("id", "k").join(
         f["u"].select("k AS j", "w"), "l.k = r.j AND l.id > r.w * 5"),
         "SELECT t.id, t.k, u.k AS j, u.w FROM t JOIN u ON t.k = u.k AND t.id > u.w * 5"),
    Case("join on unequal", lambda sp, f: f["t"].select("id").join(
         f["v"].select("k", "letter"), "l.id < r.k"),
         "SELECT id, v.k, letter FROM t JOIN v ON t.id < v.k"),
    Case("join cross", lambda sp, f: f["t"].select("id").join(f["v"].select("letter"), how="cross"),
         "SELECT id, letter FROM t, v"),
    Case("join left unequal", lambda sp, f: f["t"].select("id", "k").join(
         f["v"].select("k AS j", "letter"), "l.k = r.j AND r.letter <> 'b'", "left"),
         "SELECT id, t.k, v.k AS j, letter FROM t LEFT JOIN v ON t.k = v.k AND letter <> 'b'"),
    Case("join decimal", lambda sp, f: f["t"].map("id, price * 2 AS w").join(f["u"].select("w", "name"),
         "w"), "SELECT t.id, price * 2 AS w, name FROM t JOIN u ON price * 2 = u.w"),
    Case("join itself", lambda sp, f: (lambda g: g.join(g.select("id AS k", "flag AS other"), "k"))(
         f["t"].filter("k IS NOT NULL").select("id", "k", "flag")),
         "SELECT a.id, a.k, a.flag, b.flag AS other FROM t a JOIN t b ON a.k = b.id "
         "WHERE a.k IS NOT NULL AND b.k IS NOT NULL"),
    Case("join with nothing", lambda sp, f: f["t"].select("id").join(f["e"].select("id", "s"), "id",
         "left"), "SELECT id, NULL::VARCHAR AS s FROM t"),
    Case("join then group", lambda sp, f: f["t"].join(f["v"], "k").group_by("letter")
         .agg("count(*) AS n").sort("letter"),
         "SELECT letter, count(*) AS n FROM t JOIN v USING (k) GROUP BY letter ORDER BY letter",
         ordered=True),
    Case("three", lambda sp, f: f["t"].select("id", "k").join(f["u"].select("id", "w"), "id")
         .join(f["v"], "k"), "SELECT t.id, t.k, w, letter FROM t JOIN u USING (id) "
         "JOIN v ON t.k = v.k"),
    # ---- sets and sql ----
    Case("union", lambda sp, f: f["t"].select("id", "k").union(f["u"].select("k", "id")),
         "SELECT id, k::BIGINT AS k FROM t UNION ALL SELECT id, k FROM u", ordered=True),
    Case("union of types", lambda sp, f: f["v"].select("k").union(
         f["t"].select("price AS k"), f["e"].select("x AS k")),
         "SELECT k::DOUBLE AS k FROM v UNION ALL SELECT price FROM t", ordered=True),
    Case("union itself", lambda sp, f: f["v"].union(f["v"]).group_by("k").agg("count(*) AS n"),
         "SELECT k, 2::BIGINT AS n FROM v"),
    Case("sql", lambda sp, f: sp.sql(
         "WITH a AS (SELECT k, sum(x) AS x FROM t WHERE x < 1e9 GROUP BY k) "
         "SELECT * FROM a JOIN v USING (k) WHERE x > (SELECT min(w) FROM u) -- done",
         t=f["t"], u=f["u"], v=f["v"]),
         "WITH a AS (SELECT k, sum(x) AS x FROM t WHERE x < 1e9 GROUP BY k) "
         "SELECT * FROM a JOIN v USING (k) WHERE x > (SELECT min(w) FROM u)"),
    Case("sql window", lambda sp, f: sp.sql(
         "SELECT id, row_number() OVER (PARTITION BY k ORDER BY id) AS r FROM a", a=f["t"]),
         "SELECT id, row_number() OVER (PARTITION BY k ORDER BY id) AS r FROM t"),
    Case("sql without frames", lambda sp, f: sp.sql("SELECT 42 AS answer, [] AS l"),
         "SELECT 42 AS answer, [] AS l", cut=False),
    Case("sql order", lambda sp, f: sp.sql("FROM a ORDER BY id DESC LIMIT 20", a=f["t"]),
         "FROM t ORDER BY id DESC LIMIT 20", ordered=True),
    # ---- partitions ----
    Case("hash", lambda sp, f: f["t"].repartition(5, hash_by="s"), "FROM t"),
    Case("hash of all", lambda sp, f: f["t"].repartition(3, hash_by=["k", "x", "tags", "pair"]),
         "FROM t"),
    Case("given", lambda sp, f: f["t"].repartition(3, by="id % 3").map("id"), "SELECT id FROM t"),
    Case("partial group", lambda sp, f: sp.partial_sql(
         "SELECT k, count(*) AS n FROM {0} GROUP BY k", f["t"].repartition(3, hash_by="k")),
         "SELECT k, count(*) AS n FROM t GROUP BY k"),
    Case("partial join", lambda sp, f: sp.partial_sql(
         "SELECT a.id, b.name FROM {0} a JOIN {1} b USING (id)",
         f["t"].repartition(3, hash_by="id"), f["u"].repartition(3, hash_by="id")),
         "SELECT t.id, name FROM t JOIN u USING (id)"),
    Case("partial broadcast", lambda sp, f: sp.partial_sql(
         "SELECT id, letter, '{0}' = '{2}' AS b FROM {0} JOIN {1} USING (k)",
         f["t"].repartition(3), f["v"].repartition(1)),
         "SELECT id, letter, false AS b FROM t JOIN v USING (k)"),
    Case("partial sort", lambda sp, f: f["t"].repartition(1).partial_sort("k, id"),
         "FROM t ORDER BY k, id", ordered=True, cut=False),
    Case("partial of sorted", lambda sp, f: sp.partial_sql(
         "SELECT id FROM {0}", f["t"].repartition(4, by_rows=True)), "SELECT id FROM t",
         ordered=True),
    Case("hash hash", lambda sp, f: f["t"].repartition(3, hash_by="k").repartition(
         5, hash_by="id").filter("k = 1").map("id"), "SELECT id FROM t WHERE k = 1"),
    Case("repartition sort", lambda sp, f: f["t"].repartition(5, hash_by="k").sort("id desc")
         .repartition(2).map("id"), "SELECT id FROM t ORDER BY id DESC", ordered=True),
    Case("shared", lambda sp, f: (lambda g: g.filter("n > 40").union(g.filter("n <= 40")))(
         f["t"].group_by("k").agg("count(*) AS n")), "SELECT k, count(*) AS n FROM t GROUP BY k"),
)  # fmt: skip
