"""The recipes by name."""

from collections.abc import Callable

from pomona.core.config import did_you_mean
from pomona.core.errors import UserError
from pomona.recipes.afm import afm_85m, afm_device, afm_device_parent, afm_server
from pomona.recipes.tiny import tiny
from pomona.train.config import Run

RECIPES: dict[str, Callable[[], Run]] = {
    recipe.__name__: recipe for recipe in (tiny, afm_85m, afm_device, afm_device_parent, afm_server)
}

CHIPS = {
    "tiny": "2 CPU cores",
    "afm_85m": "1 GPU",
    "afm_device": "2048 v5p",
    "afm_device_parent": "2048 v5p",
    "afm_server": "8192 v4",
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
