"""How busy the matrix units are in a block of the attention kernels: counted in the code that libtpu generates.

    make bench-kernel-cycles

Compiles forward and backward of the attention of AFM-on-device for one chip, and attention over a cache for a step of
64 sequences and for a prompt of 1024 tokens, and lets libtpu write out the VLIW schedule of each kernel ("static
per-bundle utilization"). One row is a cycle and says how many of the units work. The share is busy cycles of the four
matrix units over all cycles from the first product of a block to its last; `around_cycles` is the rest of the loop
over blocks. Stalls while the chip runs are not in it. `pomona/plan/kernels.py` uses these numbers. Attention over a
cache has the code for cached and for new columns one after the other; a block that has columns of one kind alone leaves
out the other's.
The last line is JSON.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

KERNELS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
UNITS = 4
CHIPS = {"v4": "v4:2x2x1", "v5p": "v5p:2x2x1"}
SHAPE = {"sequence": 4096, "heads": 8, "kv_heads": 8, "head_dim": 128}


CACHED = "cached_attention"
CALLS = {"step": (64, 1), "prompt": (1, 1024)}
"""Sequences and new tokens of attention over a cache of 4096 columns, with eight heads to one of keys and values."""


def compile_kernel(chip, call):
    """The child: compiles, with libtpu writing into the folder that its flags name. `call` is a block size of splash,
    or one of `CALLS`."""
    from pomona.core.fleet import parse_fleet
    from pomona.plan.topology import topology_devices

    device = topology_devices(parse_fleet(CHIPS[chip]))[0]
    import jax

    here = jax.sharding.SingleDeviceSharding(device)
    compile_cached(here, *CALLS[call]) if call in CALLS else compile_splash(here, int(call))


def compile_cached(here, sequences, tokens):
    import jax
    import jax.numpy as jnp

    from pomona.ops.attention_cached import Columns, attend

    columns, heads, H = SHAPE["sequence"], SHAPE["heads"], SHAPE["head_dim"]
    array = lambda *shape, dtype=jnp.bfloat16: jax.ShapeDtypeStruct(shape, dtype, sharding=here)
    cached, own = array(2, sequences, 1, columns, H), array(sequences, 1, tokens, H)
    number = lambda *shape: array(*shape, dtype=jnp.int32)
    data = array(sequences, tokens, heads, H), Columns(cached, cached), Columns(own, own)
    call = jax.jit(lambda *data: attend(*data, columns))
    call.lower(*data, number(), number(sequences), number(sequences)).compile()


def compile_splash(here, block):
    import jax
    import jax.numpy as jnp

    from pomona.ops import attention_splash

    array = lambda heads: jax.ShapeDtypeStruct(
        (1, SHAPE["sequence"], heads, SHAPE["head_dim"]), jnp.bfloat16, sharding=here
    )
    segments = jax.ShapeDtypeStruct((1, SHAPE["sequence"]), jnp.int32, sharding=here)

    def loss(q, k, v, s):
        return jnp.sum(attention_splash.attend(q, k, v, s, s, block=block).astype(jnp.float32))

    k = array(SHAPE["kv_heads"])
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(array(SHAPE["heads"]), k, k, segments).compile()


def count(folder, kernel):
    """Of one kernel: its matrix units' busy cycles and all cycles of a block."""
    (path,) = glob.glob(f"{folder}/*{kernel}*pre-delay_hlo-static-per-bundle-utilization.txt")
    with open(path) as file:
        rows = [[int(n) for n in line.split()] for line in file if line[:1].isdigit() and len(line.split()) == 10]
    busy = [index for index, row in enumerate(rows) if row[0]]
    span = busy[-1] - busy[0] + 1
    worked = sum(row[0] for row in rows) / UNITS
    return {
        "block_cycles": span,
        "matrix_cycles": worked,
        "share": round(worked / span, 3),
        "around_cycles": len(rows) - span,
    }


def by_shape(kernel, block):
    """The busy cycles that a block of splash has by its products alone."""
    return KERNELS[kernel] * block * block * SHAPE["head_dim"] / (UNITS * 128 * 128)


def main():
    """Counts all kernels for every chip, one process each, since libtpu reads its flags once."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", nargs="+", type=int, default=[512, 1024])
    arguments = parser.parse_args()
    if arguments.child:
        return compile_kernel(*arguments.child)
    rows = []
    for chip in CHIPS:
        for call in (*arguments.blocks, *CALLS):
            with tempfile.TemporaryDirectory() as folder:
                flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
                command = [sys.executable, __file__, "--child", chip, str(call)]
                subprocess.run(command, check=True, env=os.environ | {"LIBTPU_INIT_ARGS": flags})
                for kernel in [CACHED] if call in CALLS else KERNELS:
                    row = {"chip": chip, "call": call, "kernel": kernel, **count(folder, kernel)}
                    rows.append(row if call in CALLS else row | {"matrix_cycles_by_shape": by_shape(kernel, call)})
                    print(json.dumps(rows[-1]), file=sys.stderr)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
