"""The text of a compiled, scheduled XLA program as data: computations, instructions, loops and their trip counts.

Only what a cost model asks is read: an instruction's opcode, its arrays, its operands, the computations it calls, the
compiler's own estimate of its cycles, and where in our source it comes from. The grammar is that of
`jax.stages.Compiled.as_text()` for TPUs, from JAX 0.10 with the libtpu that it pins.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

from pomona.core.errors import UserError

ITEM_BYTES = {
    **dict.fromkeys(("pred", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
    **dict.fromkeys(("s16", "u16", "f16", "bf16"), 2),
    **dict.fromkeys(("s32", "u32", "f32"), 4),
    **dict.fromkeys(("s64", "u64", "f64", "c64"), 8),
    **dict.fromkeys(("s4", "u4"), 0.5),
}


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of an instruction's result; a tuple has several."""

    dtype: str
    shape: tuple[int, ...]
    layout: str
    """What stands in braces: minor-to-major order, tiles, memory space: `S(5)` is the host's, others are on chip."""

    @property
    def on_chip(self) -> bool:
        return re.search(r"S\((?!0\)|5\))\d+\)", self.layout) is not None

    @property
    def size_bytes(self) -> int:
        """Bytes of the elements, without the padding of tiles."""
        return int(math.prod(self.shape) * ITEM_BYTES.get(self.dtype, 0))


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation. `text` is the line itself, for what is rarely asked."""

    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    text: str

    @property
    def result_bytes(self) -> int:
        return sum(array.size_bytes for array in self.arrays)

    @functools.cached_property
    def cycles(self) -> int | None:
        """The compiler's estimate for one run of this instruction, or None: loops, kernels, collectives have none."""
        found = re.search(r'"estimated_cycles":"(\d+)"', self.text)
        return int(found[1]) if found else None

    @property
    def op_name(self) -> str:
        """The path of the JAX operation it was made from, or an empty text."""
        found = re.search(r'op_name="([^"]*)"', self.text)
        return found[1] if found else ""

    @property
    def frame(self) -> int | None:
        found = re.search(r"stack_frame_id=(\d+)", self.text)
        return int(found[1]) if found else None

    @property
    def target(self) -> str:
        """What a custom call calls, or an empty text."""
        found = re.search(r'custom_call_target="([^"]*)"', self.text)
        return found[1] if found else ""

    def calls(self, role: str) -> str | None:
        """The computation in a role: `body`, `condition`, `calls`, `to_apply`, ..."""
        found = re.search(rf"\b{role}=%([\w.\-]+)", self.text)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Program:
    """A module. Computations hold their instructions in the order in which they are scheduled."""

    entry: str
    computations: Mapping[str, tuple[Instruction, ...]]
    frames: Mapping[int, str]
    """Stack frames by number: `file.py:line`, the innermost."""

    def operand_arrays(self, computation: str, instruction: Instruction) -> list[Array]:
        """The arrays that an instruction reads."""
        by_name = self._names[computation]
        return [a for name in instruction.operands if name in by_name for a in by_name[name].arrays]

    def operand(self, computation: str, instruction: Instruction, index: int = 0) -> Instruction | None:
        """The instruction behind an operand."""
        return self._names[computation].get(instruction.operands[index]) if instruction.operands else None

    def trips(self, loop: Instruction) -> int:
        """How often a `while` runs its body: what its condition compares the counter with.

        Raises:
            UserError: the condition is not the comparison of a counter with a constant.
        """
        condition = self.computations[loop.calls("condition") or ""]
        constants = [
            m[1] for i in condition if i.opcode == "constant" and (m := re.search(r"constant\((\d+)\)", i.text))
        ]
        if not constants:
            raise UserError(
                f"the loop {loop.name} of the compiled program has no constant trip count.",
                "a step's loops run a fixed number of times (layers, micro-batches, chunks).",
                "report this program: its time cannot be predicted.",
            )
        return max(int(c) for c in constants)

    @functools.cached_property
    def _names(self) -> dict[str, dict[str, Instruction]]:
        return {name: {i.name: i for i in lines} for name, lines in self.computations.items()}


def parse(text: str) -> Program:
    """Reads a module's text.

    Raises:
        UserError: it has no entry computation, or ends within it.
    """
    entry, current, computations = "", "", {}
    lines: list[Instruction] = []
    for line in _logical_lines(text):
        header = re.match(r"(ENTRY )?%([\w.\-]+) \(.*\{$", line)
        if header:
            current, lines = header[2], []
            entry = current if header[1] else entry
        elif line == "}":
            computations[current] = tuple(lines)
        elif line.startswith("  ") and (found := _instruction(line)) is not None:
            lines.append(found)
    if entry not in computations:
        raise UserError(
            "this text is no compiled program: it has no whole ENTRY computation.",
            "the cost model reads what `compiled.as_text()` returns.",
            "pomona plan RECIPE --verify",
        )
    return Program(entry, computations, _frames(text))


def _logical_lines(text: str) -> Iterator[str]:
    """Lines, with the attributes that hold line breaks of their own joined to their instruction."""
    begun = ""
    for line in text.splitlines():
        starts = line.startswith(("  %", "  ROOT ", "%", "ENTRY ")) or line in ("}", "")
        if starts:
            if begun:
                yield begun
            begun = line
        elif begun:
            begun += line
    if begun:
        yield begun


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"  (?:ROOT )?%([\w.\-]+) = ", line)
    if not found:
        return None
    rest = line[found.end() :]
    shape, rest = _cut_shape(rest)
    call = re.match(r" ?([a-z][\w\-]*)\(", rest)
    if not call:
        return None
    arguments = _balanced(rest, call.end() - 1)
    return Instruction(found[1], call[1], _arrays(shape), tuple(re.findall(r"%([\w.\-]+)", arguments)), line)


def _cut_shape(text: str) -> tuple[str, str]:
    """A result's shape, which may be a tuple in parentheses, and what follows."""
    if text.startswith("("):
        shape = _balanced(text, 0)
        return shape, text[len(shape) :]
    shape, _, rest = text.partition(" ")
    return shape, " " + rest


def _balanced(text: str, start: int) -> str:
    """From an opening parenthesis to the one that closes it."""
    depth = 0
    for match in re.finditer(r"[()]", text[start:]):
        depth += 1 if match[0] == "(" else -1
        if depth == 0:
            return text[start : start + match.end()]
    return text[start:]


def _arrays(shape: str) -> tuple[Array, ...]:
    pieces = re.findall(r"\b([a-z]\w*)\[([\d,<=]*)\](?:\{([^{}]*)\})?", shape)
    return tuple(
        Array(dtype, tuple(int(n.lstrip("<=")) for n in sizes.split(",") if n), layout)
        for dtype, sizes, layout in pieces
    )


def _frames(text: str) -> dict[int, str]:
    """The tables at the head of the text that say which source line a frame is."""
    tables: dict[str, dict[int, str]] = {}
    table: dict[int, str] = {}
    for line in text.splitlines():
        if line in ("FileNames", "FunctionNames", "FileLocations", "StackFrames"):
            table = tables.setdefault(line, {})
        elif found := re.match(r"(\d+) (.*)$", line):
            table[int(found[1])] = found[2]
        elif line.startswith(("%", "ENTRY")):
            break

    def number(row: str, field: str) -> int:
        found = re.search(rf"{field}=(\d+)", row)
        return int(found[1]) if found else 0

    files, locations = tables.get("FileNames", {}), tables.get("FileLocations", {})
    frames = {}
    for key, row in tables.get("StackFrames", {}).items():
        location = locations.get(number(row, "file_location_id"), "")
        name = files.get(number(location, "file_name_id"), "").strip('"')
        frames[key] = f"{name.rsplit('/', 1)[-1]}:{number(location, 'line')}" if name else ""
    return frames
