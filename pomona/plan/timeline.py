"""The time of one step from its compiled, scheduled program: a walk along the schedule.

The TensorCore works through the instructions in order. Each takes the compiler's own estimate of its cycles; kernels
and collectives, which have none, take the times of `kernels` and `collectives`. A copy between HBM and on-chip memory,
or a collective, that is split into a start and a done runs beside the TensorCore on a resource of its own (DMA, links,
network), one after the other on each; what is not finished at the done is waited for: that is exposed time. A
collective that XLA has fused with work ("async collective fusion") moves only while that work drives it. A loop is its
body, once, times its trips.
"""

import dataclasses
import re
from collections import defaultdict

from pomona.core.chips import Chip
from pomona.plan.collectives import KINDS, Places, Transfer, rendezvous, slice_transfer, transfer
from pomona.plan.hlo import Instruction, Program
from pomona.plan.kernels import MEMORY_SHARE, kernel_seconds

BRANCHES = ("to_apply", "called_computations", "branch_computations", "true_computation", "false_computation")
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}


@dataclasses.dataclass(frozen=True)
class Cost:
    """One instruction of the program, over all its trips."""

    kind: str
    """`product`, `elementwise`, `copy`, `kernel`, `collective`, `prefetch`."""
    name: str
    source: str
    trips: int
    seconds: float
    """Time of the TensorCore, or of waiting."""
    transfer: Transfer | None = None
    """What a collective moves, once."""

    @property
    def hidden_seconds(self) -> float:
        """How much of a collective's time was behind other work."""
        return max(0.0, self.trips * self.transfer.seconds - self.seconds) if self.transfer else 0.0


@dataclasses.dataclass(frozen=True)
class Prediction:
    """A step's time and what it is made of."""

    step_seconds: float
    costs: tuple[Cost, ...]

    def by_kind(self) -> dict[str, float]:
        """Seconds by kind of work, the largest first."""
        sums: dict[str, float] = defaultdict(float)
        for cost in self.costs:
            sums[cost.kind] += cost.seconds
        return dict(sorted(sums.items(), key=lambda item: -item[1]))

    @property
    def exposed_communication_seconds(self) -> float:
        return sum(cost.seconds for cost in self.costs if cost.transfer)


def predict(program: Program, places: Places) -> Prediction:
    """Walks the program once.

    Raises:
        UserError: a loop has no constant trip count.
    """
    walk = _Walk(program, places)
    seconds = walk.run(program.entry, 1)
    return Prediction(seconds, tuple(walk.costs))


class _Walk:
    """The state of the walk: what each resource is busy with until when, in seconds since the loop body began."""

    def __init__(self, program: Program, places: Places):
        self.program, self.places = program, places
        self.chip: Chip = places.fleet.chip
        self.costs: list[Cost] = []
        self._now = 0.0
        self._busy: dict[str, float] = defaultdict(float)
        self._flying: dict[str, tuple[float, Transfer | None]] = {}
        self._driven: dict[str, float] = {}  # seconds left of collectives that only move while fused work drives them

    def run(self, computation: str, trips: int) -> float:
        """Seconds of one pass through a computation."""
        began = self._now
        for instruction in self.program.computations[computation]:
            self._step(computation, instruction, trips)
        return self._now - began

    def _step(self, computation: str, instruction: Instruction, trips: int) -> None:
        opcode = instruction.opcode
        if opcode in FREE:
            return
        if opcode == "while":
            self._loop(instruction, trips)
        elif opcode in ("call", "conditional"):
            self._branches(instruction, trips)
        elif opcode in ("copy-start", "slice-start"):
            size = min(a.size_bytes for a in instruction.arrays[:2])  # source and target; a slice takes a part
            self._flying[instruction.name] = (self._occupy("memory", size / self.chip.memory_bytes_per_second), None)
        elif opcode in ("copy-done", "slice-done"):
            self._land(instruction, instruction.operands[0], "prefetch", trips)
        elif opcode in ("send", "recv", "send-done", "recv-done"):
            self._between_slices(computation, instruction, trips)
        elif (collective := self._collective(computation, instruction)) is not None:
            self._communicate(computation, instruction, collective, trips)
        elif opcode == "custom-call":
            if instruction.target == "tpu_custom_call":
                operands = self.program.operand_arrays(computation, instruction)
                self._work("kernel", instruction, kernel_seconds(instruction, operands, self.chip), trips)
        else:
            self._work(self._kind(instruction), instruction, self._compute_seconds(computation, instruction), trips)

    def _loop(self, loop: Instruction, trips: int) -> None:
        count = self.program.trips(loop)
        began = self._now
        seconds = self.run(loop.calls("body") or "", trips * count)
        self._now = began + seconds * count
        self._busy = defaultdict(float, {k: t + seconds * (count - 1) for k, t in self._busy.items() if t > began})

    def _branches(self, instruction: Instruction, trips: int) -> None:
        groups = re.findall(rf"\b(?:{'|'.join(BRANCHES)})=(\{{[^}}]*\}}|%[\w.\-]+)", instruction.text)
        branches = [n for group in groups for n in re.findall(r"%([\w.\-]+)", group) if n in self.program.computations]
        began, kept, busy = self._now, self.costs, self._busy
        best = (-1.0, began, kept, busy)
        for branch in branches:
            self.costs, self._now, self._busy = [], began, busy.copy()
            seconds = self.run(branch, trips)
            if seconds > best[0]:
                best = (seconds, self._now, kept + self.costs, self._busy)
        _, self._now, self.costs, self._busy = best

    def _collective(self, computation: str, instruction: Instruction) -> tuple[Instruction, int] | None:
        """The collective that an instruction is, or that the fusion it calls holds, and the bytes that go in."""
        if instruction.opcode.startswith(KINDS):
            operands = self.program.operand_arrays(computation, instruction)
            return instruction, sum(a.size_bytes for a in operands)
        inner = instruction.calls("calls") if instruction.opcode in ("fusion", "async-start", "async-done") else None
        for candidate in self.program.computations.get(inner or "", ()):
            if candidate.opcode.startswith(KINDS):
                return candidate, sum(a.size_bytes for a in self.program.operand_arrays(inner or "", candidate))
        return None

    def _communicate(
        self, computation: str, instruction: Instruction, found: tuple[Instruction, int], trips: int
    ) -> None:
        collective, operand_bytes = found
        fused = instruction is not collective
        channel = re.search(r"channel_id=(\d+)", collective.text) if fused else None
        key = f"channel {channel[1]}" if channel else instruction.name
        starts = instruction.opcode.endswith("-start") or (fused and "-start" in instruction.name)
        ends = instruction.opcode.endswith("-done") or (fused and "-done" in instruction.name)
        if ends:
            key = key if key in self._flying else instruction.operands[0]
            if left := self._driven.pop(key, 0.0):
                self._flying[key] = (self._occupy("links", left), self._flying[key][1])
            self._land(instruction, key, "collective", trips)
            return
        if fused and not starts and key in self._driven:  # work that drives a collective that was started before
            seconds = self._compute_seconds(computation, instruction)
            left = self._driven[key]
            self._driven[key] = max(0.0, left - seconds)
            self._occupy("links", min(left, seconds))
            self._work(self._kind(instruction), instruction, seconds, trips)
            return
        scatters = "all-reduce-scatter" in (instruction.calls("calls") or "")
        moved = transfer(collective, operand_bytes, self.places, scatters)
        if starts and fused:  # the links are free for others until work drives it
            self._driven[key], self._flying[key] = moved.seconds, (self._now, moved)
            return
        done = self._occupy("links", moved.link_seconds)
        if moved.network_seconds:
            done = self._occupy("network", moved.network_seconds, after=done)
        self._flying[key] = (done, moved)
        if not starts:
            self._land(instruction, key, "collective", trips)

    def _between_slices(self, computation: str, instruction: Instruction, trips: int) -> None:
        """A sum over slices: the hosts' runtime takes the `send`, adds, and answers with the `recv`'s done."""
        if instruction.opcode == "send":
            moved = slice_transfer(instruction, self.places)
            self._flying[rendezvous(instruction)] = (self._occupy("network", moved.seconds), moved)
        elif instruction.opcode == "recv-done" and (begun := self.program.operand(computation, instruction)):
            self._land(instruction, rendezvous(begun), "collective", trips)

    def _land(self, instruction: Instruction, key: str, kind: str, trips: int) -> None:
        done, moved = self._flying.pop(key, (self._now, None))
        waited = max(0.0, done - self._now)
        self._now += waited
        if waited or moved:
            self._note(kind, instruction, waited, trips, moved)

    def _work(self, kind: str, instruction: Instruction, seconds: float, trips: int) -> None:
        self._now += seconds
        if seconds:
            self._note(kind, instruction, seconds, trips)

    def _note(
        self, kind: str, instruction: Instruction, seconds: float, trips: int, moved: Transfer | None = None
    ) -> None:
        source = self.program.frames.get(instruction.frame or -1, "")
        label = "/".join(instruction.op_name.split("/")[-2:]) or instruction.name
        self.costs.append(Cost(kind, f"{label} ({instruction.name})", source, trips, seconds * trips, moved))

    def _occupy(self, resource: str, seconds: float, after: float = 0.0) -> float:
        """Puts work on a resource; returns when it is finished."""
        self._busy[resource] = max(self._now, self._busy[resource], after) + seconds
        return self._busy[resource]

    def _compute_seconds(self, computation: str, instruction: Instruction) -> float:
        if instruction.cycles is not None:
            assert self.chip.clock_hz, f"the clock of {self.chip.name} is not public"
            return instruction.cycles / self.chip.clock_hz
        touched = [*self.program.operand_arrays(computation, instruction), *instruction.arrays]
        if instruction.opcode == "dynamic-update-slice":  # in place: only the slice moves
            buffer, update = touched[:2]
            touched = [update, dataclasses.replace(update, layout=buffer.layout)]
        traffic = sum(a.size_bytes for a in touched if not a.on_chip)
        return traffic / (self.chip.memory_bytes_per_second * MEMORY_SHARE)

    def _kind(self, instruction: Instruction) -> str:
        if instruction.opcode in ("copy", "transpose"):
            return "copy"
        if instruction.opcode in ("convolution", "dot"):
            return "product"
        inner = instruction.calls("calls")
        return "product" if inner and self._multiplies(inner) else "elementwise"

    def _multiplies(self, computation: str) -> bool:
        for instruction in self.program.computations.get(computation, ()):
            nested = instruction.calls("calls")
            if instruction.opcode in ("convolution", "dot") or (nested and self._multiplies(nested)):
                return True
        return False
