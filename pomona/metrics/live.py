"""What a person sees while a run goes: a live line on a terminal, a plain line every 30 seconds elsewhere."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.live import Live as RichLive
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pomona.metrics.records import Record

PLAIN_SECONDS = 30.0
BAR_WIDTH = 24
LEAST_BAR_WIDTH = 8


class Live:
    """The display of one run; silent on all processes but the first. Use as a context manager.

    It shows the newest value of everything, so that an evaluation's record does not hide the loss.
    """

    def __init__(
        self,
        total_steps: int,
        console: Console | None = None,
        silent: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._total, self._silent, self._clock = total_steps, silent, clock
        self._shown: Record = {}
        self._printed: Record = {}  # what the last plain line said
        self._printed_at: float | None = None
        self._display: RichLive | None = None
        if self._console.is_terminal and not silent:
            # No thread that redraws: a line changes when a record comes. `get_renderable` follows the width.
            self._display = RichLive(console=self._console, auto_refresh=False, get_renderable=self._render)

    def __enter__(self) -> "Live":
        if self._display:
            self._display.start(refresh=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._display:
            self._display.stop()
        elif self._shown != self._printed:
            self._print()

    def message(self, text: str) -> None:
        """Prints a line of its own, which stays."""
        if not self._silent:
            self._console.print(Text(text))

    def step(self, record: Record) -> None:
        """Shows a record of `metrics.jsonl`."""
        if self._silent:
            return
        first_loss = "loss" in record and "loss" not in self._shown
        self._shown = self._shown | record
        if self._display:
            self._display.refresh()
        elif first_loss or self._printed_at is None or self._clock() - self._printed_at >= PLAIN_SECONDS:
            self._print()

    def _print(self) -> None:
        if not self._silent:
            self._printed_at, self._printed = self._clock(), self._shown
            self._console.print(Text(describe(self._shown, self._total)))

    def _render(self) -> Table:
        return picture(self._shown, self._total, self._console.width)


def facts(record: Record) -> list[tuple[str, str, str]]:
    """What is said of a record, the most important first: (before, value, after), the value to stand out."""
    said = []
    if "loss" in record:
        said.append(("loss ", "not finite" if record["loss"] is None else f"{record['loss']:.3f}", ""))
    if record.get("bits_per_byte") is not None:
        said.append(("", f"{record['bits_per_byte']:.3f}", " bits/byte"))
    if "tokens_per_second" in record:
        said.append(("", f"{record['tokens_per_second']:,.0f}", " tokens/s"))
    if record.get("eta_seconds"):
        said.append(("", duration(record["eta_seconds"]), " left"))
    if "mfu_causal" in record:
        said.append(("MFU ", f"{100 * record['mfu_causal']:.1f} %", " (causal)"))
    return said


def describe(record: Record, total: int) -> str:
    """`core  step 120/900  loss 3.456  12,345 tokens/s  1 min 20 s left  MFU 41.2 % (causal)`."""
    head = [str(record["stage"])] if record.get("stage") else []
    return "  ".join([*head, f"step {record['step']}/{total}", *map("".join, facts(record))])


def picture(record: Record, total: int, width: int) -> Table:
    """The same with colours and a progress bar, on one line of `width` columns.

    Where the line is too narrow, the bar goes first, then the facts from the least important on.
    """
    line = Table.grid(padding=(0, 2))
    if not record:
        line.add_row(Text("compiling the first step", style="dim"))
        return line
    head = Text.assemble((record.get("stage") or "", "green"), "  ", (f"{record['step']}/{total}", "bold"))
    body = Text()
    for before, value, after in facts(record):
        gap = "  " if body else ""
        fact = Text.assemble(gap, (before, "dim"), (value, "bold" if before == "loss " else ""), (after, "dim"))
        if head.cell_len + 2 + body.cell_len + fact.cell_len > width:
            break
        body.append_text(fact)
    room = min(BAR_WIDTH, width - head.cell_len - body.cell_len - 4)
    bar = [ProgressBar(total, record["step"], width=room)] if room >= LEAST_BAR_WIDTH else []
    cells: list[Any] = [head, *bar, body]
    for _ in cells:
        line.add_column(no_wrap=True)
    line.add_row(*cells)
    return line


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `5 h 2 min`, `12 d 4 h`."""
    whole = int(seconds + 0.5)
    for unit, smaller, size, small_size in (
        ("d", "h", 86400, 3600),
        ("h", "min", 3600, 60),
        ("min", "s", 60, 1),
    ):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small_size} {smaller}"
    return f"{whole} s"
