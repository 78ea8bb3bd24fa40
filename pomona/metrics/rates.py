"""How fast training goes: tokens per second, the share of the chips' peak it uses, the wait for data, what is
left.

A `Window` is the steps between two records. Time that is not training does not count: start the first window
after the step that compiled, and `pause` one for an evaluation or a checkpoint.
"""

import dataclasses

from pomona.core.chips import Chip


@dataclasses.dataclass(frozen=True)
class Window:
    """Steps since `started_seconds`, on the clock of `time.perf_counter`."""

    started_seconds: float
    steps: int = 0
    tokens: int = 0
    data_wait_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Work:
    """What a token costs (from `model.count`), and what it runs on."""

    flops_per_token_causal: float
    """Forward and backward; attention counted for the half of the scores that a causal mask keeps."""
    flops_per_token_full: float
    """The same with attention counted for all scores, as some systems report."""
    num_chips: float
    chip: Chip | None
    """None where the peak is not known: then there is no MFU."""


def num_chips(chip: Chip | None, num_devices: int) -> float:
    """The chips behind `num_devices` JAX devices; a device is a chip where the chip is not known."""
    return num_devices / (chip.devices_per_chip if chip else 1)


def add_step(window: Window, tokens: int, data_wait_seconds: float) -> Window:
    """The window with one more step, all tokens of its global batch counted."""
    return dataclasses.replace(
        window,
        steps=window.steps + 1,
        tokens=window.tokens + tokens,
        data_wait_seconds=window.data_wait_seconds + data_wait_seconds,
    )


def pause(window: Window, seconds: float) -> Window:
    """The window with `seconds` of something that is not training left out."""
    return dataclasses.replace(window, started_seconds=window.started_seconds + seconds)


def rates(window: Window, now_seconds: float, work: Work) -> dict[str, float]:
    """The rates of a window that ends now; call it when the result of its last step has arrived.

    Returns:
        step_seconds, tokens_per_second, tokens_per_second_per_chip, data_wait_share (0 to 1), and mfu_causal
        and mfu_full (0 to 1) where the chip's peak is known. Nothing for a window without steps.
    """
    seconds = now_seconds - window.started_seconds
    if window.steps == 0 or seconds <= 0:
        return {}
    per_second = window.tokens / seconds
    measured = {
        "step_seconds": seconds / window.steps,
        "tokens_per_second": per_second,
        "tokens_per_second_per_chip": per_second / work.num_chips,
        "data_wait_share": window.data_wait_seconds / seconds,
    }
    if work.chip is not None:
        peak = work.chip.peak_flops_per_second * work.num_chips
        measured["mfu_causal"] = per_second * work.flops_per_token_causal / peak
        measured["mfu_full"] = per_second * work.flops_per_token_full / peak
    return measured


def eta_seconds(since_start: Window, now_seconds: float, tokens_left: int) -> dict[str, float]:
    """`eta_seconds`, the time that `tokens_left` will take at the pace of `since_start`; nothing before a
    step.

    Use a window of the whole process here, evaluations and checkpoints included, since the rest will have
    them too.
    """
    seconds = now_seconds - since_start.started_seconds
    if since_start.tokens == 0 or seconds <= 0:
        return {}
    return {"eta_seconds": tokens_left * seconds / since_start.tokens}
