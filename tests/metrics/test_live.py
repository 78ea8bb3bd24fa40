"""What the screen shows, as text: on terminals of several widths, and in a log file."""

import io

import pytest
from rich.console import Console

from pomona.metrics.live import PLAIN_SECONDS, Live, describe, duration, picture

RECORD = {
    "step": 1200,
    "stage": "core",
    "loss": 3.4123,
    "bits_per_byte": 1.6234,
    "tokens_per_second": 12345.6,
    "mfu_causal": 0.412,
    "eta_seconds": 192.0,
    "gradient_norm": 0.4,
}


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def log_file() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=200)


def lines(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (
            132,
            "core  1200/5000  ━━━━━╸━━━━━━━━━━━━━━━━━━  loss 3.412  1.623 bits/byte  12,346 tokens/s"
            "  3 min 12 s left  MFU 41.2 % (causal)",
        ),
        (80, "core  1200/5000  loss 3.412  1.623 bits/byte  12,346 tokens/s  3 min 12 s left"),
        (60, "core  1200/5000  ━━━╺━━━━━━━━━━  loss 3.412  1.623 bits/byte"),
        (20, "core  1200/5000"),
    ],
)
def test_one_line_at_every_width(width, expected):
    console = Console(record=True, file=io.StringIO(), force_terminal=True, width=width)
    console.print(picture(RECORD, 5000, width))
    assert console.export_text().rstrip() == expected


def test_a_terminal_keeps_messages_above_the_line():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with Live(5000, console) as live:
        assert "compiling the first step" in console.file.getvalue()
        live.step(RECORD)
        live.message("resuming after step 1200 [and this is no markup]")
        live.step({"step": 1300, "stage": "core", "bits_per_byte": 1.5})
    text = console.file.getvalue()
    assert "resuming after step 1200 [and this is no markup]\n" in text.replace("\x1b[0m", "").replace("\r", "")
    last = text.splitlines()[-2]  # the very last gives the cursor back
    # An evaluation's record brings its own number and keeps the others in sight.
    for part in ("1300/5000", "1.500", "3.412", "12,346"):
        assert part in last


def test_a_log_file_gets_a_line_per_half_minute_and_both_ends():
    console, clock = log_file(), Clock()
    with Live(100, console, clock=clock) as live:
        live.step({"step": 0, "bits_per_byte": 3.0})
        for step in range(1, 101):
            clock.seconds += 1.0
            live.step({"step": step, "stage": "core", "loss": 100.0 - step})
    steps = [line.split("step ")[1].split("/")[0] for line in lines(console)]
    # Step 0, the first loss, then every PLAIN_SECONDS, and what was newest at the end.
    assert steps == ["0", "1", "31", "61", "91", "100"] and PLAIN_SECONDS == 30
    assert lines(console)[-1] == "core  step 100/100  loss 0.000  3.000 bits/byte"


def test_a_log_file_has_no_escape_codes_and_says_nothing_twice():
    console, clock = log_file(), Clock()
    with Live(5000, console, clock=clock) as live:
        live.message("tokenizing")
        live.step(RECORD)
    assert lines(console) == ["tokenizing", describe(RECORD, 5000)]
    assert "\x1b" not in console.file.getvalue()


@pytest.mark.parametrize("terminal", [True, False])
def test_other_processes_are_silent(terminal):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    with Live(5000, console, silent=True) as live:
        live.message("tokenizing")
        live.step(RECORD)
    assert console.file.getvalue() == ""


def test_the_screen_is_given_back_after_an_error():
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    with pytest.raises(KeyError), Live(5000, console) as live:
        live.step(RECORD)
        raise KeyError
    assert console.file.getvalue().count("\x1b[?25l") == console.file.getvalue().count("\x1b[?25h") == 1


def test_what_is_unknown_is_not_shown():
    assert describe({"step": 3, "stage": "core", "loss": 2.0}, 9) == "core  step 3/9  loss 2.000"
    assert describe({"step": 3, "loss": None}, 9) == "step 3/9  loss not finite"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (18120, "5 h 2 min"),
        (1e6, "11 d 13 h"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
