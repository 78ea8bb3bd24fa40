"""`pomona plan RECIPE [--chips NAME] [--search | --compare] [--part.field VALUE ...]`."""

import dataclasses
import json
import math
from pathlib import Path

from pomona.cli.parse import configure, parse, print_stdout, take_fields
from pomona.cli.plan_tables import show_answers, show_comparison, show_search, show_serving
from pomona.core.chips import GIB
from pomona.core.config import did_you_mean
from pomona.core.errors import UserError
from pomona.core.files import write_text
from pomona.core.fleet import Fleet, parse_fleet
from pomona.plan.answer import Answer, answer
from pomona.plan.compare import compare
from pomona.plan.estimate import list_price, to_record
from pomona.plan.page import comparison_page
from pomona.plan.search import least_memory, search
from pomona.recipes.registry import HARDWARE, recipe
from pomona.train.config import Run, Stage, check_run

USAGE = """\
usage: pomona plan RECIPE [options] [--part.field VALUE ...]

How much memory, time, money and energy a recipe takes on given chips, by arithmetic: docs/plan.md says which.

  --chips NAME     v5p-4096, v4-16384, v5litepod-256, v6e-256, tpu7x-128, h100-256, or one slice's torus as in
                   v4:8x8x16; the recipe's own chips by default. v4, v5p and tpu7x names count TensorCores, two a chip
  --slices N       slices the chips come in
  --price USD      per chip and hour; the list price by default, where one is public
  --stage NAME     one stage instead of all
  --search         the best mesh, remat policy and micro-batches for these chips, and the runners-up
  --verify         compiles the real step for these TPU chips and reads the program: memory, time, what is exposed
  --serve          serving the model on one slice, all of whose chips share every layer: memory, tokens a second,
                   the time to a first token; with --slots N, --context N, --prompt N, --cache int8, and --verify
  --compare        the same run on every chip that Pomona knows, and on fewer chips, and with half the batch
  --html FILE      with --compare: a page with charts
  --json           for programs

Every setting of the recipe can be changed as in `pomona train`: --mesh.fsdp 256, --execution.remat full.
"""

DESCRIPTION = """\
{what}
Beside these settings: --chips NAME, --slices N, --price USD, --stage NAME, --search, --verify, --compare, --html FILE,
--json, --serve; `pomona plan --help` explains them.
"""


def _example(text: str) -> dict[str, str]:
    return {"example": text}


@dataclasses.dataclass(frozen=True)
class PlanOptions:
    """What is asked of a plan."""

    chips: str | None = dataclasses.field(default=None, metadata=_example("v5p-4096"))
    """the chips, as the clouds name them."""
    slices: int | None = dataclasses.field(default=None, metadata=_example("8"))
    """slices the chips come in."""
    price: float | None = dataclasses.field(default=None, metadata=_example("2.50"))
    """USD per chip and hour."""
    stage: str | None = dataclasses.field(default=None, metadata=_example("core"))
    """one stage instead of all."""
    search: bool = False
    """find the best mesh."""
    verify: bool = False
    """compile the step for these chips."""
    compare: bool = False
    """the same run on every chip."""
    html: Path | None = dataclasses.field(default=None, metadata=_example("plan.html"))
    """where the comparison's page is written."""
    json: bool = False
    """for programs."""
    serve: bool = False
    """serve the model on these chips."""
    slots: int = dataclasses.field(default=64, metadata=_example("64"))
    """with --serve: sequences computed at a time."""
    context: int = dataclasses.field(default=4096, metadata=_example("4096"))
    """with --serve: tokens of each."""
    prompt: int = dataclasses.field(default=1024, metadata=_example("1024"))
    """with --serve: tokens before a first answer."""
    cache: str = dataclasses.field(default="bfloat16", metadata=_example("int8"))
    """with --serve: the type of keys and values, bfloat16 or int8."""


def run(arguments: list[str]) -> None:
    """Answers on the screen, as JSON, or as a page."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return
    name, *rest = arguments
    options, configured = resolve(name, rest)
    stages = chosen_stages(configured, options.stage)
    fleet = chosen_fleet(name, options)
    price = list_price(fleet.chip) if options.price is None else options.price
    if options.serve:
        _serve(options, configured, fleet)
    elif options.compare:
        _compare(options, configured, stages, fleet)
    elif options.search:
        _search(options, configured, stages, fleet, price)
    elif options.verify:
        _verify(options, configured, stages, fleet, price)
    else:
        answers = [answer(configured, stage, fleet, price) for stage in stages]
        if all(each.problem for each in answers) and answers[0].problem:
            raise answers[0].problem
        if options.json:
            _print_json([_answer_record(each) for each in answers])
        else:
            show_answers(configured, fleet, answers)


def resolve(name: str, arguments: list[str]) -> tuple[PlanOptions, Run]:
    """The plan's options and the recipe with its overrides.

    Raises:
        UserError: an unknown recipe, option, setting or value, or options that exclude each other.
    """
    make = recipe(name)
    own, rest = take_fields(arguments, PlanOptions)
    also = [f"--{field.name}" for field in dataclasses.fields(PlanOptions)]
    configured = configure(name, rest, "plan", DESCRIPTION.format(what=(make.__doc__ or "").strip()), also)
    options = parse(PlanOptions, own, "plan RECIPE")
    _check_options(options)
    check_run(configured)
    return options, configured


def chosen_stages(configured: Run, name: str | None) -> tuple[Stage, ...]:
    """The stages asked for.

    Raises:
        UserError: there is no such stage.
    """
    names = [stage.name for stage in configured.stages]
    if name is not None and name not in names:
        raise UserError(
            f"{configured.name} has no stage {name!r}.",
            f"its stages are {', '.join(names)}.",
            f"{did_you_mean(name, names)} Without --stage all are planned.",
        )
    return tuple(stage for stage in configured.stages if name in (None, stage.name))


def chosen_fleet(name: str, options: PlanOptions) -> Fleet:
    """The chips asked for, or those that the recipe is made for.

    Raises:
        UserError: they name no fleet, or the recipe is made for no chips that can be planned.
    """
    own = HARDWARE[name].fleet
    if options.chips is not None:
        return parse_fleet(options.chips, options.slices or 1)
    if options.slices is not None:
        raise UserError(
            f"--slices {options.slices} without --chips.",
            "slices are parts of the chips that are named.",
            f"--chips v4-16384 --slices {max(1, options.slices)}",
        )
    if own is None:
        raise UserError(
            f"{name} is made for {HARDWARE[name].text}, whose peak is not published.",
            "a plan needs chips with published figures.",
            f"pomona plan {name} --chips v5e-1",
        )
    return own


def _check_options(options: PlanOptions) -> None:
    if options.slices is not None and options.slices < 1:
        raise UserError(f"--slices is {options.slices}.", "a fleet has at least one slice.", "--slices 1")
    if options.price is not None and not (math.isfinite(options.price) and options.price >= 0):
        raise UserError(
            f"--price is {options.price}.", "a price is not negative, in USD per chip and hour.", "--price 2.50"
        )
    excluded = [
        (
            options.compare and options.slices is not None,
            "--slices",
            "each chip is compared in as few slices as can be",
        ),
        (options.compare and options.price is not None, "--price", "each chip is compared at its own list price"),
        (options.compare and options.search, "--search", "each chip is compared with its own best mesh already"),
        (options.compare and options.verify, "--verify", "only one fleet is compiled for at a time"),
    ]
    for wrong, option, rule in excluded:
        if wrong:
            raise UserError(f"--compare is without {option}.", f"{rule}.", "--compare --chips v5p-4096")
    if options.verify and options.search:
        raise UserError(
            "--verify is without --search.",
            "a search looks at many meshes, and each compilation takes minutes.",
            "--search first, then --verify with the options it prints",
        )
    if options.html is not None and not options.compare:
        raise UserError("--html without --compare.", "the page shows a comparison.", f"--compare --html {options.html}")
    served = [
        f"--{name}"
        for name in ("slots", "context", "prompt", "cache")
        if getattr(options, name) != getattr(PlanOptions(), name) and not options.serve
    ]
    if served:
        raise UserError(f"{served[0]} without --serve.", "it says how the model is served.", f"--serve {served[0]} ...")
    if options.serve and (options.compare or options.search or options.stage):
        raise UserError("--serve is alone.", "serving has no stages, and no mesh but one.", "--serve --chips v5p-16")
    if options.cache not in ("bfloat16", "int8"):
        raise UserError(f"--cache {options.cache}.", "keys and values are bfloat16 or int8.", "--cache int8")
    if options.html is not None and options.html.is_dir():
        raise UserError(f"{options.html} is a folder.", "the page is one file.", f"--html {options.html / 'plan.html'}")


def _compare(options: PlanOptions, configured: Run, stages: tuple[Stage, ...], fleet: Fleet) -> None:
    found = compare(configured, stages, fleet.chips)
    if options.html is not None:
        write_text(options.html, comparison_page(configured, stages, fleet.chips, found))
    if options.json:
        _print_json(
            [
                to_record(e)
                for each in found
                for plans in (each.plans, each.half_chips, each.quarter_chips, each.half_batch)
                for e in (plans.stages if plans else ())
                if e
            ]
        )
        return
    show_comparison(configured, stages, fleet.chips, found)
    if options.html is not None:
        print(f"written to {options.html}")


def _search(
    options: PlanOptions, configured: Run, stages: tuple[Stage, ...], fleet: Fleet, price: float | None
) -> None:
    results = {stage.name: search(configured, stage, fleet, price) for stage in stages}
    if options.json:
        _print_json([to_record(e) for found in results.values() for e in found])
        return
    least = {stage.name: least_memory(configured, stage, fleet, price) for stage in stages if not results[stage.name]}
    show_search(configured, stages, fleet, results, least)


def _verify(
    options: PlanOptions, configured: Run, stages: tuple[Stage, ...], fleet: Fleet, price: float | None
) -> None:
    from pomona.plan.topology import prepare_environment

    prepare_environment()  # before anything imports JAX
    from pomona.cli.verify_tables import show_verified
    from pomona.plan import verify

    found = [verify.verify(configured, stage, fleet, price) for stage in stages]
    if options.json:
        _print_json([verify.to_record(each) for each in found])
    else:
        show_verified(found)


def _serve(options: PlanOptions, configured: Run, fleet: Fleet) -> None:
    from pomona.plan.serving import Serving, plan_serving
    from pomona.plan.serving import to_record as served_record

    serving = Serving(options.slots, options.context, options.prompt, options.cache)
    plan, programs = plan_serving(configured.name, configured.architecture, fleet, serving), []
    if options.verify:
        from pomona.plan.topology import prepare_environment

        prepare_environment()  # before anything imports JAX
        from pomona.plan.serving_programs import compile_serving

        programs = compile_serving(plan, configured.stages[-1].rope_base)
    if options.json:
        compiled = {each.name: {"seconds": each.seconds, "hbm_gib": each.compiled.hbm_bytes / GIB} for each in programs}
        _print_json([served_record(plan) | ({"compiled": compiled} if compiled else {})])
    else:
        show_serving(plan, programs)


def _answer_record(each: Answer) -> dict[str, object]:
    problem = {"stage": each.stage.name, "fits": False, "problem": each.problem.what} if each.problem else {}
    changes = [{"what": c.what, "typed": c.typed, **to_record(c.estimate)} for c in each.changes]
    return problem | (to_record(each.estimate) if each.estimate else {}) | {"changes": changes}


def _print_json(value: object) -> None:
    print_stdout(json.dumps(value, indent=1) + "\n")
