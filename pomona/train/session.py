"""What one process knows of a run in progress, and how it says what happens."""

import collections
import dataclasses
import time
from typing import Any

import jax
from jax.sharding import Mesh

from pomona.checkpoint.courier import Courier
from pomona.checkpoint.store import Store
from pomona.core.run_folder import RunFolder, record_event
from pomona.data.prepare import Prepared
from pomona.metrics import tensorboard
from pomona.metrics.goodput import Account, StepClock
from pomona.metrics.live import Live
from pomona.metrics.rates import Meter
from pomona.metrics.records import append_record
from pomona.train.config import Run
from pomona.train.corruption import describe
from pomona.train.rollback import LossWatch, Rollback, to_json
from pomona.train.signals import StopRequest
from pomona.train.stragglers import Comparison, HostTimes, compare
from pomona.train.watchdog import Watchdog


@dataclasses.dataclass(frozen=True)
class Place:
    """What stays the same while a run goes on in this process, rollbacks included."""

    run: Run  # decided
    asked: Run  # as it was typed
    folder: RunFolder
    meshes: tuple[Mesh, ...]  # of the stages
    prepared: Prepared
    live: Live
    watchdog: Watchdog
    stop: StopRequest
    hosts: tuple[str, ...]  # the host's name of every process
    corruptions: collections.Counter[str]  # steps that differed when they were repeated

    @property
    def leads(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return jax.process_index() == 0

    def event(self, name: str, **details: Any) -> None:
        """A line in events.jsonl."""
        if self.leads:
            record_event(self.folder, name, **details)

    def tell(self, text: str, name: str, **details: Any) -> None:
        """A line in events.jsonl and one on the screen."""
        self.event(name, **details)
        self.live.message(text)

    def report_deliveries(self, courier: Courier | None) -> None:
        """Says what the courier has brought to the remote tier, or could not bring."""
        for each in courier.ended() if courier else ():
            details = {"step": each.step, "seconds": round(each.seconds, 3)}
            if each.problem is None:
                self.event("remote_checkpoint", **details, size_bytes=each.size_bytes)
            else:
                text = f"the checkpoint of step {each.step} could not be copied to {self.run.checkpoint.remote}"
                self.tell(f"{text}: {each.problem}", "remote_failed", step=each.step, problem=each.problem)


@dataclasses.dataclass(frozen=True)
class Session(Place):
    """From one start, or one rollback, to the next."""

    store: Store
    courier: Courier | None  # of the first process, where there is a remote tier
    writer: Any  # a TensorBoard writer, or None
    rollbacks: tuple[Rollback, ...]
    watch: LossWatch
    account: Account
    clock: StepClock = dataclasses.field(default_factory=StepClock)
    host_times: HostTimes = dataclasses.field(default_factory=HostTimes)
    fleet: dict[str, Any] = dataclasses.field(default_factory=dict)  # what the last comparison of hosts showed

    def record(self, record: dict[str, Any]) -> None:
        """A line in metrics.jsonl, on the screen and in TensorBoard."""
        if self.leads:
            append_record(self.folder.metrics, record)
            self.live.step(record)
            if self.writer is not None:
                tensorboard.write(self.writer, record)

    def poll(self) -> None:
        """Between steps: seals what was saved meanwhile, and says what reached the remote tier."""
        self.store.poll()
        self.report_deliveries(self.courier)

    def no_step(self, meter: Meter) -> None:
        """What went on until now is no part of a step: neither of the rates nor of the goodput."""
        self.watchdog.progress()
        meter.start()
        self.clock.restart()

    def about(self, step: int, stage: str) -> dict[str, Any]:
        """What a checkpoint holds besides its arrays."""
        return {
            "stage": stage,
            "corpus": self.prepared.folder.name,
            "step": step,
            "rollbacks": to_json(self.rollbacks),
            "trend": self.watch.trend.to_json(),
            "began_seconds": self.account.began_seconds,
            "kept_seconds": self.account.kept_seconds + self.clock.seconds,
        }

    def measured(self) -> dict[str, Any]:
        """What the session adds to a log line."""
        goodput = self.account.goodput(self.clock.seconds, time.time())
        return {"goodput": goodput, **{k: v for k, v in self.fleet.items() if k != "slow"}}

    def compare_hosts(self, step: int, host_seconds: list[float], step_seconds: float) -> None:
        """Keeps who is the slowest, and says it when another host begins to keep the others waiting."""
        found: Comparison = compare(host_seconds, step_seconds, self.run.faults.slow_ratio)
        for process in set(found.slow) - self.fleet.get("slow", set()):
            seconds, host = host_seconds[process], self.hosts[process]
            self.tell(
                f"process {process} on host {host} keeps the others waiting: {seconds:.3g} s of a step of "
                f"{step_seconds:.3g} s for its own part",
                "slow_host",
                **{"step": step, "process": process, "host": host, "host_seconds": seconds},
                step_seconds=step_seconds,
            )
        self.fleet.update(
            slow=set(found.slow), slowest_process=found.slowest_process, slowest_ratio=found.slowest_ratio
        )

    def report_corruption(self, step: int, devices: list[dict[str, Any]], found_by: str, kept: bool) -> None:
        """A step that was computed twice had two results."""
        count, most = self.corruptions["steps"], self.run.faults.max_corruptions
        self.tell(
            f"silent data corruption at step {step} ({count} of {most} borne): {describe(devices)}; "
            + ("its result was thrown away" if kept else "no two results agree"),
            "silent_corruption",
            **{"step": step, "devices": devices, "found_by": found_by, "kept": kept},
        )
