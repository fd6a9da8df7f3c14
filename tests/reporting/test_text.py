"""Printing: user text is never markup, lines break between words on a terminal and nowhere else."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlpt.reporting.text import plain_console, printable, say, say_error


def printed(text, width=40, terminal=True, **options):
    file = io.StringIO()
    say(text, plain_console(file=file, width=width, force_terminal=terminal, color_system=None), **options)
    return file.getvalue()


@pytest.mark.parametrize("text", ["[bold]x[/]", "[/]", "a[0]", ":smile:", "[link=x]", "\\[x]", "[red", "x[/red]y"])
def test_nothing_is_read_as_markup(text):
    assert printed(text) == printed(text, terminal=False) == text + "\n"


def test_long_lines_break_between_words_on_a_terminal():
    lines = printed("word " * 20 + "/" + "p" * 60 + " end").splitlines()
    assert all(len(line) <= 40 for line in lines if "p" not in line)
    assert "  /" + "p" * 60 in lines
    assert " ".join(" ".join(lines).split()) == ("word " * 20 + "/" + "p" * 60 + " end")


def test_lines_break_nowhere_in_a_file_and_where_something_is_to_be_copied():
    text = "resume: mlpt pretrain --resume " + "folder/" * 20
    assert printed(text, terminal=False) == text + "\n"
    assert printed(text, whole=True) == text + "\n"


@given(st.text())
def test_any_text_can_be_printed_and_moves_no_cursor(text):
    shown = printable(text)
    shown.encode()
    assert not any(ord(letter) < 32 and letter != "\n" for letter in shown)
    printed(text, terminal=False)


def test_an_error_is_one_line_whatever_a_file_is_called(capsys):
    say_error("cannot read a\nb\x1b[31m\udcff[/]")
    assert capsys.readouterr().err == "mlpt: cannot read a b\\x1b[31m\\udcff[/]\n"
