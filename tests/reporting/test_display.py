"""What people see of a run: what is being done, how far it is, and what it has left."""

import io

import pytest

from mlpt.reporting.display import Display
from mlpt.reporting.summary import print_summary
from mlpt.reporting.text import plain_console

STEP = {
    "event": "step",
    "step": 10,
    "steps": 100,
    "tokens_per_second": 1234.0,
    "loss": {"mlm[a]": 2.5},
    "mixture": {"mlm[a]": 1.0},
    "meta_stall_seconds": 0.0,
}
SUMMARY = {
    "steps": 100,
    "tokens": 3200,
    "tokens_per_second": 1234.0,
    "held_out_before": {"mlm": 5.0},
    "held_out": {"mlm": 4.0},
    "unigram_entropy": 4.5,
    "first_mixture": {"mlm": 1.0},
    "mixture": {"mlm": 1.0},
    "policy_version": 3,
    "meta": {"stall": 0.0, "launch": 0.0, "learner": 1.0},
}


def shown(mode, *events, width=100):
    file = io.StringIO()
    console = plain_console(file=file, width=width, force_terminal=mode == "bar", color_system=None)
    with Display(mode, console) as display:
        for event in events:
            display.handle(event)
    return file.getvalue()


@pytest.mark.parametrize("mode", ["bar", "lines"])
def test_what_is_being_done_is_said(mode):
    assert "measuring held-out losses" in shown(mode, {"event": "doing", "text": "measuring held-out losses"})


def test_what_is_done_before_the_first_step_is_not_left_standing():
    output = shown("bar", {"event": "doing", "text": "starting Ray"})
    assert output.rstrip().endswith("\x1b[2K") or output.rindex("\x1b[2K") > output.rindex("starting Ray")


def test_the_time_left_is_called_so():
    later = {**STEP, "step": 20}
    assert "left 0:0" in shown("bar", STEP, later)
    assert "left 0:0" in shown("lines", STEP, {**later, "step": 100})


def test_names_of_objectives_are_no_markup():
    for mode in ("bar", "lines"):
        assert "mlm[a]" in shown(mode, STEP)


def test_the_panel_fits_a_terminal_of_100_columns():
    assert all(len(line) <= 100 for line in shown("bar", STEP).split("\n") if "\x1b" not in line)


def summary_of(**more):
    file = io.StringIO()
    print_summary({**SUMMARY, **more}, "/runs/a [b]", plain_console(file=file, width=100))
    return file.getvalue()


def test_the_summary_names_the_run_as_it_is_called():
    assert "model:  /runs/a [b]/model\n" in summary_of()


def test_the_summary_of_a_masked_run_says_what_is_left():
    masks = {"method": "tamt", "sparsity": 0.7, "kept": {"the weights of 14 matrices": 0.3}}
    assert "30.00 % of the weights of 14 matrices kept (method tamt, target sparsity 0.7)" in summary_of(masks=masks)
    assert "masks" not in summary_of()


def test_a_loss_whose_perplexity_is_beyond_all_floats_is_told():
    said = " ".join(summary_of(held_out_before={"mlm": 8.0}, held_out={"mlm": 2500.0}).split())
    assert "held-out mlm loss 2500.000 (perplexity 1.01e+304) is not below it" in said
