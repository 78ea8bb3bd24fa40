"""The recipes by name, the chips that each is made for, and the lives that are made of them."""

import dataclasses
from collections.abc import Callable

from pomona.core.config import did_you_mean
from pomona.core.errors import UserError
from pomona.core.fleet import Fleet, parse_fleet
from pomona.recipes import afm_device as device
from pomona.recipes import afm_server as server
from pomona.recipes import tiny as demo
from pomona.recipes.afm_85m import afm_85m
from pomona.recipes.life import Life
from pomona.train.config import Run

RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__: recipe
    for recipe in (
        *(demo.tiny, demo.tiny_draft, afm_85m, device.afm_device, device.afm_device_parent),
        *(device.afm_device_continued, server.afm_server),
    )
}

LIVES: dict[str, Life] = {life.name: life for life in (demo.LIFE, device.LIFE, server.LIFE)}


@dataclasses.dataclass(frozen=True)
class Hardware:
    """What a recipe is made for: as a table says it, and as a fleet that can be planned."""

    text: str
    fleet: Fleet | None


HARDWARE = {
    "tiny": Hardware("2 CPU cores", None),
    "tiny_draft": Hardware("2 CPU cores", None),
    "afm_85m": Hardware("1 GPU", parse_fleet("h100-1")),
    "afm_device": Hardware("2048 v5p", parse_fleet("v5p:8x16x16")),
    "afm_device_parent": Hardware("2048 v5p", parse_fleet("v5p:8x16x16")),
    "afm_device_continued": Hardware("2048 v5p", parse_fleet("v5p:8x16x16")),
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


def life(name: str) -> Life:
    """The life of a name.

    Raises:
        UserError: there is none.
    """
    if name not in LIVES:
        alone = (
            f"{name} is a recipe without a life: it is one run." if name in RECIPES else f"there is no life {name!r}."
        )
        raise UserError(
            alone,
            "a life is a list of chapters in pomona/recipes.",
            f"pomona train {name}" if name in RECIPES else did_you_mean(name, LIVES),
        )
    return LIVES[name]
