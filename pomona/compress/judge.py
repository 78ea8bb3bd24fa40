"""What a stage that compresses asks of a model before and after: its loss on held-out text, and whether it is sound."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from pomona.core.errors import UserError
from pomona.data.prepare import Prepared, heldout_batches
from pomona.data.tokenizer import load_tokenizer
from pomona.model.decoder import Decoder
from pomona.model.objective import TokenBatch, next_token_loss
from pomona.train.config import Run, at_stage
from pomona.train.evaluate import HeldOut, evaluate
from pomona.train.feed import Feed
from pomona.train.state import TrainState


def judge(run: Run, params: Decoder, mesh: Mesh, prepared: Prepared) -> dict[str, float]:
    """heldout_loss and bits_per_byte of a decoder, on the batches of the first stage of a decided run."""
    stage, run = run.stages[0], at_stage(run, 0)

    def nats(state: TrainState, batch: TokenBatch, _: None) -> jax.Array:
        one = partial(_nats, run, stage.rope_base, state.params)
        return jnp.sum(jax.lax.map(one, batch))

    batches = heldout_batches(prepared, stage.sequence_length, stage.batch_size, run.evaluation.max_batches)
    token_bytes = load_tokenizer(prepared.tokenizer).token_bytes()
    with jax.set_mesh(mesh):
        return evaluate(TrainState(params, None), HeldOut(batches, token_bytes, Feed(mesh, stage), jax.jit(nats)))


def check_finite(params: Any, where: str) -> None:
    """Raises `UserError` where a weight is NaN or infinite; `where` says whose they are."""
    finite = jax.jit(lambda tree: jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), tree))(params)
    wrong = [
        jax.tree_util.keystr(path) for path, each in jax.tree_util.tree_flatten_with_path(finite)[0] if not bool(each)
    ]
    if wrong:
        raise UserError(
            f"{where} has weights that are not finite, in {', '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} more." if len(wrong) > 3 else "."),
            "only a sound model can be compressed.",
            "an earlier checkpoint of the run, with --step N.",
        )


def _nats(run: Run, rope_base: float, params: Decoder, batch: TokenBatch) -> jax.Array:
    return next_token_loss(params, batch, run.architecture, run.execution, rope_base).nll
