"""Times of Pallas kernels: splash by a count of blocks under the causal mask, others by what they were written with."""

import numpy as np
import pytest

from pomona.core.chips import CHIPS
from pomona.plan.hlo import parse
from pomona.plan.kernels import kernel_seconds, splash_work


def kernel(name, operands, text="", result="bf16[8]{0}"):
    """A custom call with these operands as parameters: (the instruction, its operands' arrays)."""
    lines = [f"  %p.{n} = {shape} parameter({n})\n" for n, shape in enumerate(operands)]
    called = ", ".join(f"%p.{n}" for n in range(len(operands)))
    lines.append(f'  ROOT %{name} = {result} custom-call({called}), custom_call_target="tpu_custom_call"{text}\n')
    program = parse("HloModule m\n\nENTRY %e (a: f32[]) -> f32[] {\n" + "".join(lines) + "}\n")
    instruction = program.computations["e"][-1]
    return instruction, program.operand_arrays("e", instruction)


def splash(name, heads, queries, keys, head_dim, block_q, block_kv, batch=None, tables="s8[1,4,4]{2,1,0}", scope=""):
    """A call of splash attention as XLA writes it, grouped keys with a quarter of the heads."""
    b = f"{batch}," if batch else ""
    q = f"bf16[{b}{heads},{queries},{head_dim}]{{2,1,0}}"
    k = f"bf16[{b}{heads // 4},{keys},{head_dim}]{{2,1,0}}"
    part = "" if "fwd" in name else "_dkv"
    sizes = rf"{{\"block_q{part}\": {block_q}, \"block_kv{part}\": {block_kv}, \"use_fused_bwd_kernel\": true}}"
    text = f', frontend_attributes={{kernel_metadata={{\n"xprof_metadata":"{sizes}"\n}}}}'
    text += f', metadata={{op_name="jit(step)/{scope}/pallas_call"}}'
    return kernel(name, [tables, "s32[8,128]{1,0}", q, k, k], text, result=q)


def counted(queries, keys, block_q, block_kv):
    """Blocks in which some query sees some key, of the shard of the queries that has the most."""
    seen = np.tril(np.ones((keys, keys), bool))
    shards = [seen[start : start + queries] for start in range(0, keys, queries)]
    cut = [s.reshape(queries // block_q, block_q, keys // block_kv, block_kv).any(axis=(1, 3)).sum() for s in shards]
    return int(max(cut))


@pytest.mark.parametrize(
    ("queries", "keys", "block_q", "block_kv"),
    [
        *((512, 512, 128, 128), (512, 512, 256, 128), (512, 512, 128, 256), (512, 512, 512, 512)),
        *((128, 512, 128, 128), (256, 1024, 128, 128), (256, 1024, 64, 256), (512, 1024, 128, 512)),
    ],
)
@pytest.mark.parametrize("batch", [None, 3])
def test_blocks_of_splash_are_those_under_the_diagonal(queries, keys, block_q, block_kv, batch):
    for name, products in (("splash_mha_fwd_segmented_residuals.2", 2), ("splash_mha_dkv_segmented.1", 5)):
        call, operands = splash(name, 8, queries, keys, 64, block_q, block_kv, batch)
        flops, blocks = splash_work(call, operands, products)
        assert blocks == 8 * (batch or 1) * counted(queries, keys, block_q, block_kv)
        assert flops == blocks * products * 2 * block_q * block_kv * 64


@pytest.mark.parametrize(("shards", "block_q", "block_kv"), [(2, 128, 128), (4, 64, 128), (4, 128, 64), (8, 64, 64)])
def test_blocks_of_both_parts_of_a_shard_are_those_of_every_shard(shards, block_q, block_kv):
    length = 256 * shards
    part = length // (2 * shards)
    seen = np.tril(np.ones((length, length), bool))
    of_part = lambda i: seen[i * part : (i + 1) * part].reshape(part // block_q, block_q, length // block_kv, block_kv)
    blocks = [int(of_part(i).any(axis=(1, 3)).sum()) for i in range(2 * shards)]
    both = {blocks[i] + blocks[-1 - i] for i in range(shards)}
    counted_ones = 0
    for scope, keys in (("first_part", length // 2), ("last_part", length)):
        call, operands = splash("splash_mha_fwd.1", 8, part, keys, 64, block_q, block_kv, scope=scope)
        counted_ones += splash_work(call, operands, 2)[1]
    assert counted_ones == pytest.approx(8 * sum(both) / len(both))
    assert max(both) - min(both) <= max(1, block_kv // block_q), "all have as much to do, to a block"


def test_blocks_are_never_larger_than_the_sequence():
    call, operands = splash("splash_mha_fwd.1", 4, 256, 256, 128, 1024, 1024)
    assert splash_work(call, operands, 2) == (4 * 2 * 2 * 256 * 256 * 128, 4)


@pytest.mark.parametrize("chip", ["v4", "v5p", "v5e"])
def test_splash_is_slower_than_its_products_at_peak_and_than_its_bytes(chip):
    chip = CHIPS[chip]
    for name, products in (("splash_mha_fwd.1", 2), ("splash_mha_dkv.1", 5)):
        call, operands = splash(name, 24, 4096, 4096, 128, 1024, 1024)
        flops = 24 * 10 * products * 2 * 1024 * 1024 * 128
        assert (
            flops / chip.flops_per_second < kernel_seconds(call, operands, chip) < 2.5 * flops / chip.flops_per_second
        )
        twice = kernel_seconds(*splash(name, 48, 4096, 4096, 128, 1024, 1024), chip)
        assert twice == pytest.approx(2 * kernel_seconds(call, operands, chip))
    smaller = kernel_seconds(*splash("splash_mha_fwd.1", 24, 4096, 4096, 128, 512, 512), chip)
    assert smaller > kernel_seconds(*splash("splash_mha_fwd.1", 24, 4096, 4096, 128, 1024, 1024), chip) * 36 / 40
    far = "s8[1,40000,40000]{2,1,0}"  # 1.6 GB beside little to multiply
    call, operands = splash("splash_mha_fwd.1", 4, 128, 128, 128, 128, 128, tables=far)
    assert kernel_seconds(call, operands, chip) == pytest.approx(
        1.6e9 / (0.85 * chip.memory_bytes_per_second), rel=1e-3
    )


def test_another_kernel_takes_its_bytes_without_an_estimate():
    call, operands = kernel("mine.1", ["f32[1000000]{0}", "f32[1000000]{0:S(1)}"], result="f32[500000]{0}")
    assert kernel_seconds(call, operands, CHIPS["v5p"]) == pytest.approx(6e6 / (0.85 * 2.765e12))


@pytest.mark.parametrize(
    ("name", "flops", "touched", "seconds"),
    [
        ("mine.1", 459e9, 1000, 1e-3),
        ("mine.1", 1, 2.765e9, 1e-3 / 0.85),
        ("mine.1", 1, 2.765e3, 1e-9 / 0.85),  # of large operands it may read a little
        ("cached_attention.1", 459e9, 1000, 1e-3 / 0.51),
    ],
    ids=["products", "bytes", "few bytes", "a part of the peak"],
)
def test_another_kernel_takes_what_it_was_written_with(name, flops, touched, seconds):
    estimate = f'{{"flops":"{flops:.0f}","transcendentals":"0","bytes_accessed":"{touched:.0f}"}}'
    text = f', backend_config={{"custom_call_config":{{"body":"TUz","cost_estimate":{estimate}}}}}'
    call, operands = kernel(name, ["f32[1000000]{0}"], text, result="f32[1000000]{0}")
    assert kernel_seconds(call, operands, CHIPS["v5p"]) == pytest.approx(seconds)
