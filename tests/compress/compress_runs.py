"""Short stages as commands, so that they can be killed: in processes of their own, whose programs compile fast."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

CODE = """
import os, sys
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={devices}"
from pathlib import Path
import compress_runs
from pomona.parallel.config import MeshConfig
from pomona.train.objective_config import SoftTopK
import pomona.train.loop as loop
import pomona.compress.prune as stage
{hook}
compress_runs.{kind}(Path({parent!r}), Path({out!r}){changes})
"""
ALL_AXES = "mesh=MeshConfig(1, 2, 2, 2)"


def masks(parent, ffn, **changes):
    """A run of 10 steps that learns masks."""
    from pomona.compress.prune import masks_run

    run = masks_run(parent, ffn)
    stage = dataclasses.replace(run.stages[0], steps=10)
    evaluation = dataclasses.replace(run.evaluation, every_steps=4)
    return dataclasses.replace(run, **({"stages": (stage,), "evaluation": evaluation} | changes))


def grid(parent, **changes):
    """A run of 24 steps on the 2-bit grid."""
    from pomona.compress.qat import grid_run

    run = grid_run(parent)
    stage = dataclasses.replace(run.stages[0], steps=24)
    return dataclasses.replace(run, **({"stages": (stage,)} | changes))


def prune(parent, out, ffn, **changes):
    from pomona.compress.prune import prune

    prune(masks(parent, ffn, **changes), out)


def qat(parent, out, **changes):
    from pomona.train.loop import train

    train(grid(parent, **changes), out)


def palettize(parent, out):
    from pomona.compress.palettize import Settings, palettize_run

    palettize_run(parent, out, Settings(3.7, samples=4), None, print)


def recover(palettized, out):
    """A recovery of 12 steps."""
    from pomona.compress.recover import recovery_run
    from pomona.train.loop import train

    run = recovery_run(palettized)
    evaluation = dataclasses.replace(run.evaluation, every_steps=12)
    checkpoint = dataclasses.replace(run.checkpoint, every_steps=3)
    stages = (dataclasses.replace(run.stages[0], steps=12),)
    train(dataclasses.replace(run, stages=stages, evaluation=evaluation, checkpoint=checkpoint), out)


def killed_at(step):
    """A hook: the process dies right after the log line of a step."""
    log = "loop._log = lambda session, stage, step, *rest, log=loop._log: (log(session, stage, step, *rest), "
    return log + f"os.kill(os.getpid(), 9) if step == {step} else None)\n"


def start(kind, parent, out, changes="", hook="", devices=1):
    """Runs one of the stages above to its end; `changes` are further arguments as text, a hook is Python before it."""
    fields = {"kind": kind, "parent": str(parent), "out": str(out), "hook": hook, "devices": devices}
    code = CODE.format(**fields, changes=", " + changes if changes else "")
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
