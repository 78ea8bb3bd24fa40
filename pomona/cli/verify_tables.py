"""How `pomona plan --verify` answers on a terminal."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from pomona.core.chips import GIB
from pomona.core.fleet import describe
from pomona.core.wording import duration, percent, seconds, usd
from pomona.plan.timeline import Cost
from pomona.plan.verify import Verified, communications

TOP_OPERATIONS = 10
KINDS = {
    "product": "products",
    "kernel": "attention and other kernels",
    "elementwise": "elementwise loops",
    "collective": "waiting for collectives",
    "copy": "copies to another layout",
    "prefetch": "waiting for memory",
}


def show_verified(found: Sequence[Verified]) -> None:
    """Each stage: does it fit, where its time goes, what moves between chips, its longest operations."""
    console = Console(highlight=False)
    console.print(describe(found[0].fleet), soft_wrap=True)
    for verified in found:
        console.print()
        _say_stage(console, verified)
        console.print(_kinds_table(verified))
        console.print(_collectives_table(verified))
        console.print(_operations_table(verified))
    if len(found) > 1:
        total = sum(verified.days for verified in found)
        prices = [verified.usd for verified in found]
        money = usd(sum(price for price in prices if price is not None)) if None not in prices else "no public price"
        console.print(f"\nall stages: {duration(total)}, {money}")


def _say_stage(console: Console, v: Verified) -> None:
    causal, full = v.mfu()
    mesh = ", ".join(f"{axis} {size}" for axis, size in v.compiled.mesh.items())
    room = f"{v.hbm_bytes / GIB:.1f} of {v.hbm_limit_bytes / GIB:.1f} GiB"
    parts = f"arguments {v.compiled.argument_bytes / GIB:.1f}, temporaries {v.compiled.temporary_bytes / GIB:.1f}"
    if v.checked_copy_bytes:
        parts += f", a checked step's copy {v.checked_copy_bytes / GIB:.1f}"
    console.print(
        f"{v.stage.name}: compiled in {v.compiled.compile_seconds:.0f} s for the mesh ({mesh})", soft_wrap=True
    )
    console.print(f"  {'fits' if v.fits else 'DOES NOT FIT'}: {room} a device ({parts})", soft_wrap=True)
    if not v.fits:
        console.print("  a policy that keeps less: --execution.remat full; or a mesh with more shards: --search")
    console.print(
        f"  predicted step {seconds(v.step_seconds)}, MFU {percent(causal)} causal, {percent(full)} full, "
        f"{duration(v.days)}, {usd(v.usd)}",
        soft_wrap=True,
    )


def _kinds_table(v: Verified) -> Table:
    table = _table("where the time goes", "seconds", "share")
    for kind, spent in v.prediction.by_kind().items():
        table.add_row(KINDS[kind], f"{spent:.4f}", percent(spent / v.step_seconds))
    return table


def _collectives_table(v: Verified) -> Table:
    table = _table("collectives", "along", "times", "bytes", "seconds", "exposed")
    for row in communications(v):
        size = f"{row.size_bytes / 1e9:.2f} GB"
        table.add_row(
            row.kind, " ".join(row.axes), str(row.times), size, f"{row.seconds:.4f}", f"{row.exposed_seconds:.4f}"
        )
    return table


def _operations_table(v: Verified) -> Table:
    table = _table("longest operations", "source", "times", "seconds", "share")
    for cost in longest(v)[:TOP_OPERATIONS]:
        share = percent(cost.seconds / v.step_seconds)
        table.add_row(cost.name[-60:], cost.source, str(cost.trips), f"{cost.seconds:.4f}", share)
    return table


def longest(v: Verified) -> list[Cost]:
    """The operations by the time they take, the longest first."""
    return sorted(v.prediction.costs, key=lambda cost: -cost.seconds)


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(name, justify="right" if name not in ("along", "source") else "left", no_wrap=True)
    return table
