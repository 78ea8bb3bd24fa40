"""A run under Slurm: one sbatch script. One task for each GPU; JAX finds the others by Slurm's own variables.

Sources: the manual pages of sbatch, srun and scontrol (slurm.schedmd.com).
"""

import dataclasses
import re
import shlex

from pomona.core.errors import PREEMPTED, USER_ERROR, UserError
from pomona.core.fleet import Fleet, describe
from pomona.launch.job import check_fits, check_name, train_command
from pomona.train.config import Run

LONGEST_NAME = 63
LONGEST_SIGNAL_SECONDS = 65535  # of sbatch --signal
WAIT_SECONDS = 60  # after the first task has ended: the others wait for one that is gone

TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d{1,2}(:\d\d){0,2}")

BODY = """\
# The first platform is used or it is an error, never a silent CPU.
export JAX_PLATFORMS=cuda,cpu PYTHONUNBUFFERED=1

# All GPUs of a node are visible to each of its tasks, and JAX takes one by its local number. Where one task ends, the
# others get {wait} s, not the blow that --kill-on-bad-exit deals: they may be saving.
srun --kill-on-bad-exit=0 --wait={wait} --cpu-bind=none {command}
code=$?

restarts=${{SLURM_RESTART_COUNT:-0}}
case $code in
  0) exit 0 ;;
  {user_error}) echo "a mistake that the lines above name; not tried again" >&2; exit $code ;;
  {preempted}) echo "stopped with its state saved; queued again" >&2 ;;
  *)
    if [ "$restarts" -ge {max_restarts} ]; then
      echo "exit code $code; the job was started again $restarts times, which is --max-restarts" >&2
      exit $code
    fi
    echo "exit code $code; queued again" >&2 ;;
esac
scontrol requeue "$SLURM_JOB_ID" || exit $code
"""


@dataclasses.dataclass(frozen=True)
class SlurmJob:
    """Everything an sbatch script says."""

    name: str
    fleet: Fleet
    run: str
    recipe: str
    settings: tuple[str, ...] = ()
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    max_restarts: int = 20
    grace_seconds: int = 600

    @property
    def gpus_per_node(self) -> int:
        return min(self.fleet.chip.chips_per_host, self.fleet.chips)


def check_slurm(job: SlurmJob, run: Run) -> None:
    """What can be seen to be wrong without a cluster.

    Raises:
        UserError: TPUs, a name, time or number that Slurm would refuse, or a run that does not fit.
    """
    if job.fleet.chip.torus_dimensions:
        raise UserError(
            f"{job.fleet.chip.title} under Slurm.",
            "Slurm schedules GPUs; TPU slices are started by Kubernetes.",
            f"pomona launch gke {job.recipe} --chips ..., or --chips h100-64",
        )
    check_name(job.name, LONGEST_NAME)
    if job.time is not None and not TIME.fullmatch(job.time):
        raise UserError(
            f"--time {job.time} is no time limit.", "Slurm reads minutes, h:mm:ss or d-hh:mm:ss.", "--time 24:00:00"
        )
    if job.max_restarts < 0 or not 1 <= job.grace_seconds <= LONGEST_SIGNAL_SECONDS:
        raise UserError(
            f"{job.max_restarts} restarts, {job.grace_seconds} s to save.",
            f"restarts are 0 or more; a checkpoint takes time; Slurm warns {LONGEST_SIGNAL_SECONDS} s ahead at most.",
            "--max-restarts 20 --grace-seconds 600",
        )
    check_fits(run, job.fleet.devices, f"--chips {job.fleet.chip.name}-{{devices}}, or {{mesh}}.seq {{seq}}")


def render(job: SlurmJob, file: str) -> str:
    """The script; `file` is what it will be called."""
    whole_nodes = job.gpus_per_node == job.fleet.chip.chips_per_host
    asked = {"time": job.time, "partition": job.partition, "account": job.account}
    options = [
        f"--job-name={job.name}",
        f"--nodes={job.fleet.hosts}",
        f"--ntasks-per-node={job.gpus_per_node}",
        f"--gpus-per-node={job.gpus_per_node}",
        *(["--exclusive"] if whole_nodes else []),
        *(f"--{name}={value}" for name, value in asked.items() if value is not None),
        # To the tasks, not to this script: who ends the script too (scancel) does not want it queued again.
        f"--signal=TERM@{job.grace_seconds}",
        "--requeue",
        f"--output={job.name}-%j.log",
        "--open-mode=append",
    ]
    heading = f"""\
#!/bin/bash
# pomona {job.recipe} on {describe(job.fleet)}
# start:  sbatch {file}
# It is queued again when its time is over ({job.grace_seconds} s before, it saves) or when it breaks, and goes on
# after the newest checkpoint in {job.run}.
"""
    command = shlex.join(["pomona", *train_command(job.recipe, job.run, list(job.settings))])
    body = BODY.format(
        command=command,
        wait=WAIT_SECONDS,
        user_error=USER_ERROR,
        preempted=PREEMPTED,
        max_restarts=job.max_restarts,
    )
    return heading + "".join(f"#SBATCH {option}\n" for option in options) + "\n" + body
