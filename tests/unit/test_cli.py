"""The command line: what it prints, what it writes, and its exit codes."""

from pathlib import Path

import pytest

import millpond
from millpond.cli import main


@pytest.fixture(scope="module")
def prices(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("prices")
    with millpond.init(progress=False) as sp:
        rows = [{"ticker": f"T{i % 3}", "price": i} for i in range(12)]
        sp.from_items(rows).write_parquet(str(folder))
    return str(next(folder.glob("*.parquet")))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_sql_reads_a_file_by_its_path(prices: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "sql", f"SELECT sum(price)::INT AS s FROM '{prices}'")

    assert (code, out.split()[-1]) == (0, "66")


def test_sql_of_a_folder_says_how_to_read_it(
    prices: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(Path(prices).parent)
    code, _, said = run(capsys, "sql", f"FROM '{folder}/'")

    assert code == 1
    assert f"is a folder: read its files, FROM '{folder}/**/*.parquet'." in said
    assert run(capsys, "sql", f"FROM '{folder}/**/*.parquet'")[0] == 0
    # A text that happens to be a folder's name is not what is wrong.
    _, _, said = run(capsys, "sql", f"SELECT nope('{folder}')")
    assert "is a folder" not in said


def test_sql_says_that_there_are_more_rows(prices: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "sql", f"FROM '{prices}'", "-n", "5")

    assert code == 0
    assert len(out.splitlines()) == 2 + 5 + 1
    assert "The first 5 rows" in out


@pytest.mark.parametrize(
    "name", ["out.parquet", "out.csv", "out.jsonl", "out.arrow", "out.tsv.gz", "folder"]
)
def test_sql_writes_one_file_or_a_folder(
    name: str, prices: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / name)
    code, out, _ = run(capsys, "sql", f"FROM '{prices}' WHERE price > 1", "--to", target)
    assert (code, out.startswith("10 rows, ")) == (0, True)
    assert [path.name for path in tmp_path.iterdir()] == [name]

    assert run(capsys, "count", target)[:2] == (0, "10\n")


def test_a_target_that_exists_is_replaced_only_when_asked(
    prices: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = str(tmp_path / "out.parquet")
    query = ("sql", f"FROM '{prices}' LIMIT 1", "--to", target)
    assert run(capsys, *query)[0] == 0

    code, _, said = run(capsys, *query)
    assert code == 1
    assert said == f"millpond: {target!r} exists; --overwrite replaces it.\n"
    assert run(capsys, *query, "--overwrite")[0] == 0


def test_head_schema_and_count(prices: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "schema", prices)[1] == "ticker  VARCHAR\nprice   BIGINT\n"
    assert run(capsys, "count", prices)[1] == "12\n"
    assert len(run(capsys, "head", prices, "-n", "2")[1].splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["sql", "SELECT * FROM nope"], 1, "nope does not exist"),
        (["sql", "selec"], 1, "syntax error"),
        (["count", "nope.parquet"], 1, "no file at 'nope.parquet'"),
        (["sql", "SELECT 1", "--to", "out.xyz"], 2, "the ending must be one of"),
        (["run", "nope.py"], 2, "no script at 'nope.py'"),
        (["count", "x.csv", "--threads", "none"], 2, "threads: 'none' is no whole number"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, err = run(capsys, *arguments)

    assert got == code
    assert said in err
    assert err.startswith("millpond: ")
    assert err.count("\n") == 1


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Traceback" in run(capsys, "sql", "selec", "--debug")[2]


@pytest.mark.parametrize("arguments", [[], ["blah"], ["sql"], ["head", "x", "-n", "-1"]])
def test_a_wrong_command_exits_with_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out == f"millpond {millpond.__version__}\n"


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.argv", ["before"])
    monkeypatch.setattr("sys.path", ["before"])
    monkeypatch.setenv("MILLPOND_THREADS", "1")
    return tmp_path / "script.py"


def test_run_gives_a_script_its_arguments_and_options(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.write_text(
        "import sys, millpond\nprint(__name__, sys.argv[1:], millpond.init().options.threads)\n"
    )

    code, out, _ = run(capsys, "run", "--threads", "3", str(script), "a", "--debug")

    assert (code, out) == (0, "__main__ ['a', '--debug'] 3\n")


def test_our_error_in_a_script_is_one_line_with_its_place(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.write_text("import millpond\nsp = millpond.init()\nsp.sql('selec')\n")

    code, _, err = run(capsys, "run", str(script))

    assert code == 1
    assert err == f'{script}:3: sql(): syntax error at or near "selec", at character 1.\n'


def test_a_scripts_own_error_begins_at_its_own_line(
    script: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script.write_text("def f():\n    raise ValueError('mine')\nf()\n")

    code, _, err = run(capsys, "run", str(script))

    assert code == 1
    assert err.splitlines()[1].startswith(f'  File "{script}", line 3')
    assert err.splitlines()[-1] == "ValueError: mine"
