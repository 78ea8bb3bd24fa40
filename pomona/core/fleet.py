"""A number of chips as one rents them: which chip, in what shape, in how many slices.

Names follow the clouds. `v4-N`, `v5p-N` and `tpu7x-N` count TensorCores, two to a chip; `v5litepod-N`, `v5e-N` and
`v6e-N` count chips; `h100-N` counts GPUs. N is the sum over all slices. `v4:8x8x16` is the exact torus of one slice.

Shapes (Google Cloud's TPU documentation, the page of each version, "Configurations"): three-dimensional slices of up
to 32 chips have one of four shapes; larger ones are built of cubes of 4x4x4 chips. Two-dimensional slices have one of
eight shapes. GPUs are joined by NVLink in hosts of eight, and these by a network in which no two are further apart.
"""

import dataclasses
import math
import re

from pomona.core.chips import CHIPS, Chip
from pomona.core.config import did_you_mean
from pomona.core.errors import UserError

SMALL_CUBES = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
PART_HOSTS = (1, 2, 4)  # GPUs that can be rented of a host of eight
CUBE = 4
WRAPPED_SQUARE = 16  # a two-dimensional slice closes to a ring where it is as long as the pod

CLOUD_NAMES = {name: name for name in CHIPS} | {
    "v5litepod": "v5e",
    "tpu7x": "7x",
    "a100": "a100-80gb",
}


@dataclasses.dataclass(frozen=True)
class Fleet:
    """Chips of one kind in equal slices. A slice is joined by ICI, or is a whole GPU cluster; slices by the network."""

    chip: Chip
    topology: tuple[int, ...]
    """Chips along each dimension of one slice's torus; of GPUs, their number."""
    slices: int = 1

    @property
    def chips_per_slice(self) -> int:
        """Chips of one slice."""
        return math.prod(self.topology)

    @property
    def chips(self) -> int:
        """Chips of all slices."""
        return self.slices * self.chips_per_slice

    @property
    def devices(self) -> int:
        """What JAX counts: `len(jax.devices())`."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        """Machines, each with one process."""
        return self.slices * math.ceil(self.chips_per_slice / self.chip.chips_per_host)

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which dimensions of the torus close to a ring; the others are lines, at half the speed."""
        if self.chip.torus_dimensions == 2:
            return tuple(length == WRAPPED_SQUARE for length in self.topology)
        return tuple(self.chip.torus_dimensions > 0 and min(self.topology) >= CUBE for _ in self.topology)


def parse_fleet(text: str, slices: int = 1) -> Fleet:
    """The fleet of a cloud's name, `v5p-4096`, or of one slice's exact torus, `v4:8x8x16`, times `slices`.

    Raises:
        UserError: an unknown chip, a shape that is not sold, slices that do not divide, or more than a slice can hold.
    """
    if slices < 1:
        raise UserError(f"{slices} slices.", "a fleet has at least one slice.", "--slices 1")
    exact = re.fullmatch(r"([\w-]+):(\d{1,5}(?:x\d{1,5})*)", text.lower())
    counted = re.fullmatch(r"([\w-]+?)-(\d{1,7})", text.lower())
    found = None if text.lower() in CLOUD_NAMES else exact or counted  # a100-80gb is a name without a number
    name, size = found.groups() if found else (text.lower(), "")
    if name not in CLOUD_NAMES:
        near = did_you_mean(name, CLOUD_NAMES)
        raise UserError(
            f"there is no chip {name!r}.",
            f"Pomona knows {', '.join(CHIPS)}; a number or a torus follows the name.",
            f"{near} " * near.startswith("did") + "For instance --chips v5p-4096, v4:8x8x16 or h100-256.",
        )
    chip = CHIPS[CLOUD_NAMES[name]]
    if exact:
        return _check_topology(Fleet(chip, _in_order(tuple(map(int, size.split("x")))), slices))
    whole = chip.tensor_cores * slices
    if not size or int(size) == 0 or int(size) % whole:
        raise UserError(
            f"{text} does not divide into {slices} slice{'s' * (slices > 1)} of whole chips."
            if size
            else f"{text} is one chip's name.",
            f"the number after it counts {_counted(chip)} over all slices"
            + (f", {chip.tensor_cores} to a chip." if chip.tensor_cores > 1 else "."),
            _alternatives(chip, max(1, int(size or 8) // chip.tensor_cores), slices),
        )
    return fleet_of(chip, int(size) // chip.tensor_cores, slices)


def fleet_of(chip: Chip, chips: int, slices: int | None = None) -> Fleet:
    """So many chips in slices of the standard shape; in as few slices as can be where `slices` is None.

    Raises:
        UserError: no slice has that many chips.
    """
    if slices is None:
        slices = fewest_slices(chip, chips) or 1
    each = chips // slices
    topology = standard_topology(chip, each)
    if topology is None:
        raise UserError(
            f"{each} {chip.title} chips are no {_whole(chip)}.", _rule(chip), _alternatives(chip, chips, slices)
        )
    return _check_topology(Fleet(chip, topology, slices))


def fewest_slices(chip: Chip, chips: int) -> int | None:
    """In how few slices so many chips come, or None where they do not."""
    numbers = range(1, chips + 1) if chip.torus_dimensions else (1,)
    return next((n for n in numbers if chips % n == 0 and standard_topology(chip, chips // n)), None)


def standard_topology(chip: Chip, chips: int) -> tuple[int, ...] | None:
    """The most compact shape of one slice with that many chips, or None where none is sold."""
    if chip.torus_dimensions == 0:
        return (chips,) if chips in PART_HOSTS or (chips > 0 and chips % chip.chips_per_host == 0) else None
    if chips > chip.largest_slice_chips:
        return None
    if chip.torus_dimensions == 2:
        return next((shape for shape in SQUARES if math.prod(shape) == chips), None)
    cubes, rest = divmod(chips, CUBE**3)
    if rest or not cubes:
        return next((shape for shape in SMALL_CUBES if math.prod(shape) == chips), None)
    shapes = [
        (a, b, cubes // (a * b))
        for a in range(1, cubes + 1)
        if cubes % a == 0
        for b in range(a, cubes // a + 1)
        if cubes // a % b == 0 and cubes // (a * b) >= b
    ]
    return tuple(CUBE * side for side in min(shapes, key=sum))


def cloud_prefix(chip: Chip) -> str:
    """How the cloud begins a name of this chip: `v5p`, `tpu7x`, `h100`."""
    return {"7x": "tpu7x", "a100-80gb": "a100"}.get(chip.name, chip.name)


def cloud_name(fleet: Fleet) -> str:
    """`v5p-4096`: what `parse_fleet` reads, together with the number of slices, unless the shape is an odd one."""
    return f"{cloud_prefix(fleet.chip)}-{fleet.chips * fleet.chip.tensor_cores}"


def describe(fleet: Fleet) -> str:
    """How the name counts: `v5p-4096 = 4096 TensorCores = 2048 chips, one slice of 8x16x16`."""
    cores, noun = fleet.chip.tensor_cores, "chip" if fleet.chip.torus_dimensions else "GPU"
    counts = [f"{fleet.chips * cores} TensorCores"] if cores > 1 else []
    counts.append(f"{fleet.chips} {noun}{'s' if fleet.chips > 1 else ''}")
    return f"{cloud_name(fleet)} = {' = '.join(counts)}, {describe_shape(fleet)}"


def describe_shape(fleet: Fleet) -> str:
    """`one slice of 8x16x16`, `8 slices of 8x8x16`, `32 hosts of 8 by NVLink`."""
    if fleet.chip.torus_dimensions == 0:
        joined = f" of {min(fleet.chips, fleet.chip.chips_per_host)} by NVLink" if fleet.chips > 1 else ""
        return ("one host" if fleet.hosts == 1 else f"{fleet.hosts} hosts") + joined
    slices = "one slice" if fleet.slices == 1 else f"{fleet.slices} slices"
    return f"{slices} of {'x'.join(map(str, fleet.topology))}"


def _in_order(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape as the documentation writes it: ascending, but 2x2x1."""
    known = {tuple(sorted(small)): small for small in SMALL_CUBES}
    return known.get(tuple(sorted(shape)), tuple(sorted(shape)))


def _check_topology(fleet: Fleet) -> Fleet:
    """The same fleet.

    Raises:
        UserError: its shape is not sold.
    """
    chip, shape = fleet.chip, fleet.topology
    if chip.torus_dimensions == 0:
        if fleet.slices > 1:
            raise UserError(
                f"{fleet.slices} slices of {chip.title}.",
                "slices are a matter of TPUs; the hosts of a GPU cluster are equally far from each other.",
                f"--chips {cloud_prefix(chip)}-{fleet.chips} --slices 1",
            )
        sold = len(shape) == 1 and standard_topology(chip, shape[0]) is not None
    elif chip.torus_dimensions == 2:
        sold = shape in SQUARES
    else:
        cubes = len(shape) == 3 and min(shape) > 0 and all(side % CUBE == 0 for side in shape)
        sold = shape in SMALL_CUBES or (cubes and math.prod(shape) <= chip.largest_slice_chips)
    if not sold:
        raise UserError(
            f"{'x'.join(map(str, shape))} is no {_whole(chip)} of {chip.title}.",
            _rule(chip),
            _alternatives(chip, max(1, fleet.chips), fleet.slices),
        )
    return fleet


def _rule(chip: Chip) -> str:
    if chip.torus_dimensions == 0:
        return "GPUs come 1, 2 or 4 to a part of a host, or in whole hosts of 8."
    if chip.torus_dimensions == 2:
        return "its slices are " + ", ".join("x".join(map(str, shape)) for shape in SQUARES) + "."
    small = ", ".join("x".join(map(str, shape)) for shape in SMALL_CUBES)
    return (
        f"its slices are {small}, or three multiples of 4, and {chip.largest_slice_chips} chips at most. "
        "Several slices are joined by the data-centre network."
    )


def _alternatives(chip: Chip, chips: int, slices: int) -> str:
    """What to type instead: the same chips in other slices, or the next smaller number that is sold."""
    if not chip.torus_dimensions:
        slices = 1
    fewest = max(1, math.ceil(chips / chip.largest_slice_chips)) if chip.torus_dimensions else 1
    for other in range(fewest, 4 * max(fewest, slices) + 1):
        if chip.torus_dimensions and chips % other == 0 and standard_topology(chip, chips // other):
            return _typed(chip, chips, other)
    slices = max(slices, fewest)
    each = max(1, chips // slices)
    near = next(n for n in (*range(each, 0, -1), *range(each, each + 9)) if standard_topology(chip, n))
    return _typed(chip, slices * near, slices)


def _typed(chip: Chip, chips: int, slices: int) -> str:
    option = f" --slices {slices}" if slices > 1 else ""
    return f"--chips {cloud_prefix(chip)}-{chips * chip.tensor_cores}{option}"


def _counted(chip: Chip) -> str:
    return "TensorCores" if chip.tensor_cores > 1 else ("chips" if chip.torus_dimensions else "GPUs")


def _whole(chip: Chip) -> str:
    return "slice" if chip.torus_dimensions else "cluster"
