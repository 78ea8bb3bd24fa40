"""A palettized run as a Core ML package: a stateful ML program whose weights stay in their tables (iOS 18, macOS 15).

One call computes one token: `token` and `position` in, `logits` out, keys and values in two states. Matrices are
`constexpr_lut_to_dense`, one table for 16 rows as in the run folder, and a row's scale multiplies its product, so the
weights are those of the run, bit for bit. Core ML runs on Apple's machines alone; elsewhere a package can be written
and read back, which the tests do, computing it in NumPy.

Shapes: L layers, D model, N query heads, K key-value heads, G = N / K, H head, F feed-forward, V vocabulary, C context.
"""

import contextlib
import io
import logging
from pathlib import Path
from typing import Any

import numpy as np

from pomona.checkpoint.palettes import REST, stored_tensors, unpack_to_nibbles
from pomona.core.errors import UserError
from pomona.core.files import check_new, new_folder
from pomona.core.run_folder import RunFolder, read_config
from pomona.model.config import NORMS, PLACES, Architecture
from pomona.ops.palette import BALANCED, GROUP, unpack_nibbles
from pomona.train.config import Run, stage_of
from pomona.train.origin import check_palettized

Arrays = dict[str, np.ndarray]


def export_coreml(path: Path, target: Path, context: int = 1024) -> None:
    """Writes a `.mlpackage`, whole or not at all.

    Args:
        context: tokens that the states have room for.

    Raises:
        UserError: the run is not palettized or damaged, the target exists already or is no `.mlpackage`, the disk is
            full, or coremltools is not installed.
    """
    if target.suffix != ".mlpackage" or context < 1:
        raise UserError(
            f"{target} with a context of {context}.",
            "a Core ML package is a folder whose name ends in .mlpackage, with room for a token at least.",
            f"--output {target.with_suffix('.mlpackage')} --context 1024",
        )
    check_new(target)
    run = read_config(RunFolder(path), Run)
    check_palettized(path, "a Core ML package holds palettes.")
    assert run.origin is not None, "a palettized model was made from a run"
    stored = {written.name: (written.bits, arrays) for written, arrays in stored_tensors(RunFolder(path).palettes)}
    ct = package()
    program = build(ct, run.architecture, stage_of(run, run.origin.step).rope_base, stored, context)
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,  # as it was built: products in float16, norms in float32
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    model.short_description = f"{run.name}: one token of a palettized decoder, by pomona export --format coreml"
    with new_folder(target) as folder:
        draft = folder / "model.mlpackage"
        model.save(str(draft))
        for part in draft.iterdir():
            part.rename(folder / part.name)
        draft.rmdir()


def build(ct: Any, a: Architecture, rope_base: float, stored: dict[str, tuple[int, Arrays]], context: int) -> Any:
    """The program."""
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    half, (L, K, H) = a.head_dim // 2, (a.num_layers, a.num_kv_heads, a.head_dim)
    angles = np.arange(context)[:, None] * rope_base ** (-np.arange(half) / half)
    rest = stored[REST][1]
    specs = [mb.TensorSpec((1,), dtype=types.int32) for _ in range(2)]
    specs += [mb.StateTensorSpec((L * K, context, H), dtype=types.fp16) for _ in range(2)]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def decode(token: Any, position: Any, keys: Any, values: Any) -> Any:
        step = _Step(mb, a, stored, context, position, (keys, values))
        scales = rest["embedding_scales"].astype(np.float16)[:, None]
        embedding = mb.constexpr_blockwise_shift_scale(data=rest["embedding"], scale=scales)
        step.turn_by(np.cos(angles), np.sin(angles))
        x = mb.gather(x=embedding, indices=token, axis=0)  # [1, D]
        for layer in range(L):
            x = step.layer(x, layer, {name: rest[name][layer] for name in NORMS})
        x = step.norm(x, rest["final_norm"])
        return mb.matmul(x=x, y=embedding, transpose_y=True, name="logits")

    return decode


class _Step:
    """The parts of one token's computation."""

    def __init__(self, mb: Any, a: Architecture, stored: Any, context: int, position: Any, states: Any) -> None:
        self.mb, self.a, self.stored, self.context = mb, a, stored, context
        self.position, self.states = position, states

    def turn_by(self, cos: np.ndarray, sin: np.ndarray) -> None:
        """Takes the rotation of this position out of tables [C, H / 2]."""
        pick = lambda table: self.mb.gather(x=table.astype(np.float32), indices=self.position, axis=0)
        self.cos, self.sin = pick(cos), pick(sin)
        later = self.mb.greater(x=np.arange(self.context, dtype=np.int32), y=self.position)
        every = lambda number: np.full(self.context, number, np.float16)
        self.hidden = self.mb.select(cond=later, a=every(-1e4), b=every(0))  # [C]

    def norm(self, x: Any, weight: np.ndarray) -> Any:
        """RMSNorm over the last dimension, in float32."""
        mb, wide = self.mb, self.mb.cast(x=x, dtype="fp32")
        mean = mb.reduce_mean(x=mb.mul(x=wide, y=wide), axes=[-1], keep_dims=True)
        scaled = mb.mul(x=wide, y=mb.rsqrt(x=mean, epsilon=np.float32(self.a.norm_epsilon)))
        return mb.cast(x=mb.mul(x=scaled, y=weight.astype(np.float32)), dtype="fp16")

    def product(self, x: Any, layer: int, name: str) -> Any:
        """x [1, I] times a palettized matrix: [1, O]."""
        mb, (bits, arrays) = self.mb, self.stored[f"layers.{layer:02}.{PLACES[name]}"]
        indices_OI = unpack_nibbles(unpack_to_nibbles(arrays["indices"], bits))
        groups = len(indices_OI) // GROUP
        tables = arrays.get("tables", np.tile(np.array(BALANCED, np.float16), (groups, 1)))
        assert tables.shape == (groups, 2**bits), "one table for 16 rows"
        weight = mb.constexpr_lut_to_dense(indices=_narrow(indices_OI, bits), lut=tables[:, None, :, None])
        return mb.mul(x=mb.matmul(x=x, y=weight, transpose_y=True), y=arrays["scales"])

    def heads(self, x: Any, weight: np.ndarray, count: int) -> Any:
        """Heads [count, H] of a product, normalised and turned."""
        mb, half = self.mb, self.a.head_dim // 2
        normed = self.norm(mb.reshape(x=x, shape=[count, self.a.head_dim]), weight)
        wide = mb.cast(x=normed, dtype="fp32")
        one = mb.slice_by_size(x=wide, begin=[0, 0], size=[count, half])
        other = mb.slice_by_size(x=wide, begin=[0, half], size=[count, half])
        first = mb.sub(x=mb.mul(x=one, y=self.cos), y=mb.mul(x=other, y=self.sin))
        second = mb.add(x=mb.mul(x=other, y=self.cos), y=mb.mul(x=one, y=self.sin))
        return mb.cast(x=mb.concat(values=[first, second], axis=-1), dtype="fp16")

    def keep(self, state: Any, layer: int, new: Any) -> Any:
        """Writes [K, H] to this position; returns the layer's [K, C, H]."""
        mb, (K, H) = self.mb, (self.a.num_kv_heads, self.a.head_dim)
        begin = mb.concat(values=[np.array([layer * K], np.int32), self.position, np.array([0], np.int32)], axis=0)
        end = mb.concat(
            values=[
                np.array([(layer + 1) * K], np.int32),
                mb.add(x=self.position, y=np.array([1], np.int32)),
                np.array([H], np.int32),
            ],
            axis=0,
        )
        update = mb.reshape(x=new, shape=[K, 1, H])
        written = mb.slice_update(x=mb.read_state(input=state), update=update, begin=begin, end=end)
        kept = mb.coreml_update_state(state=state, value=written)
        return mb.slice_by_size(x=kept, begin=[layer * K, 0, 0], size=[K, self.context, H])

    def layer(self, x: Any, layer: int, norms: Arrays) -> Any:
        """One layer on [1, D]."""
        mb, a = self.mb, self.a
        K, G, H = a.num_kv_heads, a.num_heads // a.num_kv_heads, a.head_dim
        h = self.norm(x, norms["attention_norm"])
        query = self.heads(self.product(h, layer, "query"), norms["attention.query_norm"], a.num_heads)
        key = self.heads(self.product(h, layer, "key"), norms["attention.key_norm"], K)
        value = mb.reshape(x=self.product(h, layer, "value"), shape=[K, H])
        keys, values = (self.keep(state, layer, new) for state, new in zip(self.states, (key, value)))
        small = mb.mul(x=mb.reshape(x=query, shape=[K, G, H]), y=np.float16(H**-0.5))
        scores = mb.add(x=mb.matmul(x=small, y=keys, transpose_y=True), y=self.hidden)
        mixed = mb.matmul(x=mb.softmax(x=scores, axis=-1), y=values)
        x = mb.add(x=x, y=self.product(mb.reshape(x=mixed, shape=[1, a.num_heads * H]), layer, "output"))
        h = self.norm(x, norms["ffn_norm"])
        gated = mb.mul(x=mb.silu(x=self.product(h, layer, "gate")), y=self.product(h, layer, "up"))
        return mb.add(x=x, y=self.product(gated, layer, "down"))


def _narrow(indices_OI: np.ndarray, bits: int) -> np.ndarray:
    """Indices in the type of so many bits that coremltools packs."""
    from coremltools.converters.mil.mil import types

    return indices_OI.astype(types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}")))


def package() -> Any:
    """coremltools.

    Raises:
        UserError: it is not installed.
    """
    logging.getLogger("coremltools").setLevel(logging.ERROR)  # it warns of what only a Mac has
    try:
        import coremltools
    except ImportError as error:
        raise UserError(
            "the package coremltools is not installed.",
            "a Core ML package is written by Apple's own Python package.",
            "pip install 'pomona[coreml]'",
        ) from error
    return coremltools
