"""A model's family: its run folder and those it came from, back to the first, as they lie on the disk.

Nothing here loads a model or knows how a stage works: a run folder says what it is by its `config.json`, its events,
its metrics, its samples. An ancestor that is gone is part of the family too, as a name. No JAX.
"""

import dataclasses
from pathlib import Path
from typing import Any

from pomona.core.config import from_json
from pomona.core.errors import UserError
from pomona.core.files import read_json
from pomona.core.run_folder import Origin, RunFolder
from pomona.metrics.records import Record, read_records

LIFE_FILE = "life.jsonl"  # in the folder above the runs: what `pomona life` planned and did
MASKS = "masks"


@dataclasses.dataclass(frozen=True)
class Member:
    """One run folder as it was read. `config` is raw, so that a folder of another version can still be shown."""

    name: str
    """The folder as its child's origin names it, or as it was typed."""
    folder: RunFolder
    config: dict[str, Any] | None
    """None where the folder is gone."""
    events: tuple[Record, ...] = ()
    records: tuple[Record, ...] = ()
    samples: tuple[Record, ...] = ()
    turns: tuple[Record, ...] = ()
    """What the ledger of the life says of the commands that made this run."""
    masks: "Member | None" = None
    """Of a pruned model: the run inside its folder that learned which units stay."""

    @property
    def missing(self) -> bool:
        return self.config is None

    @property
    def trained(self) -> "Member | None":
        """The run by the loop that made this model: itself, or its masks'; None where nothing was trained."""
        if self.masks is not None:
            return self.masks
        by_the_loop = any("devices" in event for event in self.events) or any("loss" in each for each in self.records)
        return self if by_the_loop else None


def family(path: Path) -> list[Member]:
    """The run at `path` and its ancestors, the first ancestor first.

    Raises:
        UserError: `path` is no run folder, or a file of the family is damaged.
    """
    if not RunFolder(path).config.exists():
        raise UserError(
            f"{path} is not a run folder (it has no config.json).",
            "a card is made of a run folder and of those it came from.",
            "pomona card runs/tiny/recovered",
        )
    members = [read_member(str(path), path)]
    seen = {path.resolve()}
    while origin := origin_in(members[-1]):
        found = find(origin.run, members[-1].folder.path)
        if found is None:
            members.append(Member(origin.run, RunFolder(Path(origin.run)), None))
            break
        if found.resolve() in seen:
            raise UserError(
                f"{members[-1].name} comes from {origin.run}, which comes from it.",
                "a run begins at one that was there before it.",
                f"look at origin in {found / 'config.json'}.",
            )
        seen.add(found.resolve())
        members.append(read_member(origin.run, found))
    return members[::-1]


def read_member(name: str, path: Path) -> Member:
    """What a run folder says.

    Raises:
        UserError: its config.json is no JSON object.
    """
    folder = RunFolder(path)
    config = read_json(folder.config)
    if not isinstance(config, dict):
        raise UserError(
            f"{folder.config} holds no configuration.",
            "Pomona writes a run's whole configuration there.",
            "restore it from a copy.",
        )
    ledger = read_records(path.parent / LIFE_FILE)
    turns = tuple(each for each in ledger if each.get("makes") and Path(str(each["run"])).name == path.name)
    events, records, samples = (tuple(read_records(file)) for file in (folder.events, folder.metrics, folder.samples))
    masks = path / MASKS
    inner = read_member(f"{name}/{MASKS}", masks) if RunFolder(masks).config.exists() else None
    return Member(name, folder, config, events, records, samples, turns, inner)


def origin_in(member: Member) -> Origin | None:
    """Where a run began; None where it began from nothing.

    Raises:
        UserError: the origin is written in a way that this version does not know.
    """
    raw = (member.config or {}).get("origin")
    return None if raw is None else from_json(Origin, raw, f"{member.folder.config}: origin")


def find(name: str, child: Path) -> Path | None:
    """The folder that a run names, seen from here, else from the folders above the run, else beside it.

    A life may have been moved, or be looked at from another folder than the one in which it was typed.
    """
    wanted = Path(name)
    above = child.resolve().parents
    places = [wanted, *(folder / wanted for folder in above if not wanted.is_absolute()), above[0] / wanted.name]
    return next((place for place in places if RunFolder(place).config.exists()), None)
