"""One stage's real training step, compiled for a fleet that is not here; kept on disk by fingerprint.

What is compiled is what `pomona train` compiles there: the same step, shardings, donation and compiler options. The
fingerprint covers the run, the fleet, the versions of JAX and libtpu, and the source of everything that is traced.
"""

import dataclasses
import functools
import gzip
import hashlib
import importlib.metadata
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pomona.core.config import fingerprint, to_json
from pomona.core.errors import UserError
from pomona.core.files import write_bytes
from pomona.core.fleet import Fleet, cloud_name
from pomona.parallel.compiler import compiler_options
from pomona.parallel.config import check_divides
from pomona.plan.collectives import Places
from pomona.plan.topology import places, topology_devices
from pomona.train.config import Run, at_stage

TRACED = ("model", "ops", "optim", "parallel", "train", "core")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A program and what the compiler says of it. Bytes are those of one device."""

    text: str
    places: Places
    mesh: dict[str, int]
    argument_bytes: int
    output_bytes: int
    alias_bytes: int
    temporary_bytes: int
    code_bytes: int
    compile_seconds: float

    @property
    def hbm_bytes(self) -> int:
        """What one device holds while the step runs: donated arguments and results are the same memory."""
        return self.argument_bytes + self.output_bytes - self.alias_bytes + self.temporary_bytes + self.code_bytes


def compile_stage(run: Run, index: int, fleet: Fleet, cache: Path | None = None) -> Compiled:
    """The step of a stage for a fleet, from the cache or compiled now: a minute or two on two cores.

    Args:
        cache: the folder of compiled programs; the user's cache folder by default.

    Raises:
        UserError: the fleet cannot be compiled for, the mesh is impossible on it, or the compiler finds no program
            that fits into on-chip memory.
    """
    described = {"run": to_json(dataclasses.replace(at_stage(run, index), stages=(run.stages[index],)))}
    name = f"{run.name}-{run.stages[index].name}"
    return kept_or_made(name, described, fleet, lambda: _compile(run, index, fleet), TRACED, cache)


def kept_or_made(
    name: str,
    described: dict[str, Any],
    fleet: Fleet,
    make: Callable[[], Compiled],
    traced: Sequence[str],
    cache: Path | None = None,
) -> Compiled:
    """A program that was compiled before from the same description, versions and source, or one that is made now.

    Args:
        traced: the folders whose source is in the program.
        cache: the folder of compiled programs; the user's cache folder by default.
    """
    described = described | {
        "fleet": [cloud_name(fleet), *fleet.topology, fleet.slices],
        "versions": [importlib.metadata.version(name) for name in ("jax", "jaxlib")] + [_libtpu_version()],
        "source": _source_fingerprint(tuple(traced)),
    }
    key = hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()[:16]
    kept = (cache or default_cache()) / f"{name}-{fleet.chip.name}-{key}.json.gz"
    if kept.exists() and (found := _read(kept, fleet)) is not None:
        return found
    compiled = make()
    content = dataclasses.asdict(compiled) | {"places": compiled.places.table.tolist()}
    write_bytes(kept, gzip.compress(json.dumps(content).encode(), compresslevel=6))
    return compiled


def default_cache() -> Path:
    """`$XDG_CACHE_HOME/pomona/programs`, or the same under `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pomona" / "programs"


def _read(path: Path, fleet: Fleet) -> Compiled | None:
    """A kept program, or None where the file is damaged: it is made again."""
    try:
        content = json.loads(gzip.decompress(path.read_bytes()))
        return Compiled(**content | {"places": Places(fleet, np.array(content["places"]))})
    except (OSError, EOFError, ValueError, KeyError, TypeError, zlib.error):
        return None


def _compile(run: Run, index: int, fleet: Fleet) -> Compiled:
    devices = topology_devices(fleet)
    import jax

    from pomona.model.objective import TokenBatch
    from pomona.parallel import rules
    from pomona.parallel.mesh import build_mesh
    from pomona.train.config import decide
    from pomona.train.feed import BATCH_AXES
    from pomona.train.objectives import objective_of
    from pomona.train.state import abstract_state, state_shardings
    from pomona.train.step import train_step

    mesh = build_mesh(at_stage(run, index).mesh, devices)
    run = at_stage(decide(run, "tpu", len(devices)), index)
    stage = run.stages[index]
    state, shardings = abstract_state(run, mesh), state_shardings(run, mesh)
    assert stage.micro_batches
    shape = (stage.micro_batches, stage.batch_size // stage.micro_batches, stage.sequence_length)
    check_divides("the batch", shape, BATCH_AXES, mesh.shape)
    rows: Any = jax.ShapeDtypeStruct(shape, np.int32, sharding=rules.sharding(mesh, BATCH_AXES))
    options = compiler_options(devices[0].device_kind, fleet.slices, run.faults.compiler_checks)
    with jax.set_mesh(mesh):
        outputs = (shardings, rules.sharding(mesh, ()))
        step = jax.jit(train_step(run, index), donate_argnums=0, out_shardings=outputs)
        labels = rows if objective_of(run).labels else None
        lowered = step.lower(state, TokenBatch(rows, rows, rows, rows, labels))
        try:
            return compile_lowered(lowered, fleet, mesh, options)
        except jax.errors.JaxRuntimeError as error:
            raise _too_large(run, error) from error


def compile_lowered(lowered: Any, fleet: Fleet, mesh: Any, options: Any) -> Compiled:
    """A program that was lowered for the devices of a mesh, compiled."""
    began = time.perf_counter()
    with _without_jax_cache():
        program = lowered.compile(compiler_options=options)
    memory = program.memory_analysis()
    return Compiled(
        text=program.as_text(),
        places=places(fleet, list(mesh.devices.flat)),
        mesh=dict(mesh.shape),
        argument_bytes=memory.argument_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        alias_bytes=memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        compile_seconds=time.perf_counter() - began,
    )


@contextmanager
def _without_jax_cache() -> Iterator[None]:
    """JAX's own cache of programs, where one is set up, can keep a program for absent devices but not read it again."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # it asks the setting only once
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def _too_large(run: Run, error: Exception) -> UserError:
    said = next((line for line in str(error).splitlines() if "memory" in line.lower()), str(error).splitlines()[0])
    return UserError(
        f"the compiler refuses the step: {said[:300]}",
        "a step's arrays fit into HBM, and each kernel's blocks into on-chip memory.",
        "a policy that keeps less (--execution.remat full), more shards (--mesh.fsdp N), or smaller blocks "
        f"(--execution.attention-block-tokens {max(128, run.execution.attention_block_tokens // 2)})",
    )


@functools.cache
def _source_fingerprint(folders: tuple[str, ...]) -> str:
    package = Path(__file__).parents[1]
    files = sorted(path for folder in folders for path in (package / folder).glob("*.py"))
    return fingerprint([hashlib.sha256(path.read_bytes()).hexdigest() for path in files])


def _libtpu_version() -> str:
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return "none"
