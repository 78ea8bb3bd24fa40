"""`pomona recipes [NAME]`."""

import json

from rich.console import Console
from rich.table import Table

from pomona.core.config import to_json
from pomona.core.errors import UserError
from pomona.core.wording import amount
from pomona.model.count import count_parameters
from pomona.recipes.registry import HARDWARE, LIVES, RECIPES, recipe
from pomona.train.config import total_tokens


def run(arguments: list[str]) -> None:
    """Prints the tables of recipes and lives, or one recipe's whole configuration as JSON."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(
            "usage: pomona recipes [NAME]\n\nLists the recipes and lives; with a name, prints a recipe's configuration."
        )
        return
    if len(arguments) > 1:
        raise UserError(
            f"`pomona recipes` shows one recipe, not {len(arguments)}.",
            "without a name it lists them all.",
            f"pomona recipes {arguments[0]}",
        )
    if arguments:
        print(json.dumps(to_json(recipe(arguments[0])()), indent=2))
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("recipe", no_wrap=True)
    for column in ("parameters", "tokens", "chips"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for name, make in RECIPES.items():
        run = make()
        table.add_row(
            name,
            amount(count_parameters(run.architecture).total),
            amount(total_tokens(run)),
            HARDWARE[name].text,
            (make.__doc__ or "").split(":")[0],
        )
    lives = Table(box=None, pad_edge=False)
    for column in ("life", "chapters"):
        lives.add_column(column, no_wrap=True)
    lives.add_column("what it is", overflow="fold")
    for name, life in LIVES.items():
        lives.add_row(name, str(len(life.chapters)), life.what)
    console = Console(highlight=False)
    console.print(table)
    console.print()
    console.print(lives)
