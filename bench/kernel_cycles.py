"""How busy the matrix units are in a block of the splash kernel: counted in the code that libtpu generates.

    make bench-kernel-cycles

Compiles forward and backward of the attention of AFM-on-device for one chip and lets libtpu write out the VLIW schedule
of each kernel ("static per-bundle utilization"). One row is a cycle and says how many of the units work. The share is
busy cycles of the four matrix units over all cycles from the first product of a block to its last; `around_cycles` is
the rest of the loop over blocks. Stalls while the chip runs are not in it. `pomona/plan/kernels.py` uses these numbers.
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


def compile_kernels(chip, block):
    """The child: compiles, with libtpu writing into the folder that its arguments name."""
    from pomona.core.fleet import parse_fleet
    from pomona.plan.topology import topology_devices

    device = topology_devices(parse_fleet(CHIPS[chip]))[0]
    import jax
    import jax.numpy as jnp

    from pomona.ops import attention_splash

    here = jax.sharding.SingleDeviceSharding(device)
    array = lambda heads: jax.ShapeDtypeStruct(
        (1, SHAPE["sequence"], heads, SHAPE["head_dim"]), jnp.bfloat16, sharding=here
    )
    segments = jax.ShapeDtypeStruct((1, SHAPE["sequence"]), jnp.int32, sharding=here)

    def loss(q, k, v, s):
        return jnp.sum(attention_splash.attend(q, k, v, s, s, block=block).astype(jnp.float32))

    k = array(SHAPE["kv_heads"])
    jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(array(SHAPE["heads"]), k, k, segments).compile()


def count(folder, kernel, block):
    """The row of one kernel: its matrix units' busy cycles and all cycles of a block."""
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
        "matrix_cycles_by_shape": KERNELS[kernel] * block * block * SHAPE["head_dim"] / (UNITS * 128 * 128),
    }


def main():
    """Counts both kernels of every chip and block size, one process each, since libtpu reads its flags once."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--blocks", nargs="+", type=int, default=[512, 1024])
    arguments = parser.parse_args()
    if arguments.child:
        return compile_kernels(arguments.child[0], int(arguments.child[1]))
    rows = []
    for chip in CHIPS:
        for block in arguments.blocks:
            with tempfile.TemporaryDirectory() as folder:
                flags = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
                command = [sys.executable, __file__, "--child", chip, str(block)]
                subprocess.run(command, check=True, env=os.environ | {"LIBTPU_INIT_ARGS": flags})
                rows += [{"chip": chip, "block": block, "kernel": k, **count(folder, k, block)} for k in KERNELS]
                print(json.dumps(rows[-2:]), file=sys.stderr)
    print(json.dumps({"rows": rows}))


if __name__ == "__main__":
    main()
