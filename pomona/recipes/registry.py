"""The recipes by name, and the chips that each is made for."""

import dataclasses
from collections.abc import Callable

from pomona.core.config import did_you_mean
from pomona.core.errors import UserError
from pomona.core.fleet import Fleet, parse_fleet
from pomona.recipes.afm import afm_85m, afm_device, afm_device_parent, afm_server
from pomona.recipes.tiny import tiny
from pomona.train.config import Run

RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__: recipe for recipe in (tiny, afm_85m, afm_device, afm_device_parent, afm_server)
}


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a recipe is made for: as a table says it, and as a fleet that can be planned."""

    text: str
    fleet: Fleet | None


HARDWARE = {
    "tiny": Hardware("2 CPU cores", None),
    "afm_85m": Hardware("1 GPU", parse_fleet("h100-1")),
    "afm_device": Hardware("2048 v5p", parse_fleet("v5p:8x16x16")),
    "afm_device_parent": Hardware("2048 v5p", parse_fleet("v5p:8x16x16")),
    "afm_server": Hardware("8192 v4", parse_fleet("v4:8x8x16", slices=8)),
}


def recipe(name: str) -> Callable[[], Run]:
    """The recipe of a name.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        raise UserError(
            f"there is no recipe {name!r}.",
            "a recipe is a Python function in pomona/recipes.",
            f"{did_you_mean(name, RECIPES)} `pomona recipes` lists them.",
        )
    return RECIPES[name]
