"""What a person sees while a run goes: one live line on a terminal, a plain line every 30 seconds elsewhere."""

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pomona.metrics.records import Record

PLAIN_SECONDS = 30.0


class Live:
    """The display of one run; silent on all processes but the first. Use as a context manager."""

    def __init__(self, total_steps: int, console: Console | None = None, silent: bool = False):
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._total, self._silent = total_steps, silent
        self._printed_at: float | None = None
        self._progress: Progress | None = None
        self._task: Any = None
        if self._console.is_terminal and not silent:
            self._progress = Progress(
                TextColumn("{task.description}"), BarColumn(bar_width=20), _Facts(), console=self._console
            )
            self._task = self._progress.add_task("starting", total=total_steps, record={})

    def __enter__(self) -> "Live":
        if self._progress:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress:
            self._progress.stop()

    def message(self, text: str) -> None:
        """Prints a line of its own."""
        if not self._silent:
            self._console.print(Text(text))

    def step(self, record: Record) -> None:
        """Shows a record of `metrics.jsonl`."""
        if self._silent:
            return
        if self._progress:
            self._progress.update(
                self._task, completed=record["step"], record=record, description=str(record["stage"])
            )
            return
        now = time.monotonic()
        edge = self._printed_at is None or record["step"] >= self._total
        if edge or now - (self._printed_at or 0.0) >= PLAIN_SECONDS:
            self._printed_at = now
            self._console.print(Text(f"{record['stage']}  {describe(record, self._total)}"))


def describe(record: Record, total: int) -> str:
    """`step 120/900  loss 3.456  12,345 tokens/s  MFU 41.2 % (causal)  1 min 20 s left`."""
    parts = [f"step {record['step']}/{total}"]
    if record.get("loss") is not None:
        parts.append(f"loss {record['loss']:.3f}")
    if record.get("bits_per_byte") is not None:
        parts.append(f"{record['bits_per_byte']:.3f} bits/byte")
    if "tokens_per_second" in record:
        parts.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if "mfu_causal" in record:
        parts.append(f"MFU {100 * record['mfu_causal']:.1f} % (causal)")
    if record.get("eta_seconds"):
        parts.append(f"{duration(record['eta_seconds'])} left")
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `5 h 2 min`, `12 d 4 h`."""
    whole = int(seconds + 0.5)
    for unit, smaller, size, small_size in (("d", "h", 86400, 3600), ("h", "min", 3600, 60), ("min", "s", 60, 1)):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small_size} {smaller}"
    return f"{whole} s"


class _Facts(ProgressColumn):
    def render(self, task: Task) -> Text:
        record = task.fields["record"]
        return Text(describe(record, int(task.total or 0)) if record else "compiling the first step")
