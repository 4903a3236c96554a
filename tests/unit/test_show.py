"""Rows on a terminal: what they hold cannot speak to it."""

import pytest

import millpond


def test_rows_send_nothing_but_text_to_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """A file of somebody else's may hold sequences that move the cursor or set the title."""
    evil = "a\x1b[31mred\x1b]0;title\x07\x9b2J\r\u202eb"
    with millpond.init(progress=False) as sp:
        frame = sp.from_items([{"k\x1b[2J": evil, "t": "tab\tline\nö 🦆"}])
        frame.show()
        page = frame._repr_html_()
    shown = capsys.readouterr().out
    for text in (shown, page):
        assert not set("\x1b\x07\x9b\r\u202e") & set(text)
    assert r"a\x1b[31mred" in shown
    assert r"k\x1b[2J" in shown
    assert "ö 🦆" in shown
