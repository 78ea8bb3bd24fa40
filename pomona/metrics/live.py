"""What a person sees while a run goes on: one live line on a terminal, a plain line every half minute elsewhere."""

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_SECONDS = 30.0
MINIMUM_BAR_WIDTH = 10


class Console:
    """Shows records as they come. Only the first process of a job may print: give the others `enabled=False`.

    Args:
        total_steps: the last step of the run.
        enabled: whether this process prints at all.
        output: where to; standard output by default.
    """

    def __init__(
        self,
        total_steps: int,
        enabled: bool = True,
        output: RichConsole | None = None,
        now: Callable[[], float] = time.monotonic,
    ):
        self._total_steps, self._enabled, self._now = total_steps, enabled, now
        self._output = output or RichConsole(file=sys.stdout, highlight=False)
        self._live: Live | None = None
        self._pending: Mapping[str, Any] | None = None  # a record that no plain line has shown
        self._last_line_seconds = float("-inf")

    def step(self, record: Mapping[str, Any]) -> None:
        """Shows a record: `step`, and those of `stage`, `loss`, ... that it has. None is shown as a dash."""
        if not self._enabled:
            return
        if self._output.is_terminal:
            if self._live is None:
                self._live = Live(console=self._output, auto_refresh=False)
                self._live.start()
            line = live_line(record, self._total_steps, self._output.width)
            self._live.update(line, refresh=True)
            return
        self._pending = record
        last = record["step"] >= self._total_steps
        if last or self._now() - self._last_line_seconds >= PLAIN_EVERY_SECONDS:
            self._print_pending()

    def message(self, text: str) -> None:
        """Prints a line that stays, above the live one."""
        if self._enabled:
            self._output.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Leaves the last record on the screen and gives the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        self._print_pending()

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _print_pending(self) -> None:
        if self._pending is not None:
            self.message(plain_line(self._pending, self._total_steps))
            self._pending, self._last_line_seconds = None, self._now()


def parts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a line says about a record, most important first, as (label, value); either may be empty."""
    said: list[tuple[str, str]] = []
    if "loss" in record:
        said.append(("loss", _number(record["loss"], ".3f")))
    if record.get("bits_per_byte") is not None:
        said.append(("bits/byte", _number(record["bits_per_byte"], ".3f")))
    if "tokens_per_second" in record:
        said.append(("", f"{quantity(record['tokens_per_second'])} tokens/s"))
    if "mfu_causal" in record:
        said.append(("MFU", f"{100 * record['mfu_causal']:.1f} %"))
    if "eta_seconds" in record:
        said.append(("ETA", duration(record["eta_seconds"])))
    return said


def plain_line(record: Mapping[str, Any], total_steps: int) -> str:
    """The record in one line of text."""
    step = record["step"]
    head = f"step {step:>{len(f'{total_steps:,}')},}/{total_steps:,} ({_percent(step, total_steps)})"
    stage = [record["stage"]] if record.get("stage") else []
    return "  ".join([head, *stage, *(f"{label} {value}".strip() for label, value in parts(record))])


def live_line(record: Mapping[str, Any], total_steps: int, width: int) -> Table:
    """The record with a progress bar as wide as the terminal leaves room for; no bar where that is too little."""
    step = record["step"]
    text = Text(f"{step:,}/{total_steps:,}", style="bold")
    for label, value in parts(record):
        text.append("  ")
        text.append(f"{label} " if label else "", style="dim")
        text.append(value, style="bold cyan" if label == "loss" else "")
    stage = Text(record.get("stage") or "", style="green")
    room = width - text.cell_len - stage.cell_len - 4
    line = Table.grid(padding=(0, 2))
    cells: list[Any] = [stage] if stage.cell_len else []
    if room >= MINIMUM_BAR_WIDTH:
        cells.append(ProgressBar(total=total_steps, completed=step, width=min(room, 40)))
    for _ in (*cells, text):
        line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_row(*cells, text)
    return line


def quantity(number: float) -> str:
    """Three significant digits with a letter: 999, 1.23k, 45.6M."""
    for divisor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * divisor:
            scaled = number / divisor
            digits = 2 if scaled < 9.995 else 1 if scaled < 99.95 else 0
            return f"{scaled:.{digits}f}{letter}"
    return f"{number:.0f}" if number >= 10 else f"{number:.2g}"


def duration(seconds: float) -> str:
    """The two largest units: 42 s, 3 min 12 s, 5 h 04 min, 2 d 06 h."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02d} h"


def _percent(step: int, total_steps: int) -> str:
    return f"{100 * step // max(1, total_steps)} %"  # rounded down: 100 % is the end and nothing before it


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
