"""What XLA is told for each chip."""

import pytest

from pomona.parallel.compiler import BY_KIND, CORRUPTION_CHECKS, SLICES, compiler_options


@pytest.mark.parametrize("kind", ["cpu", "NVIDIA H100 80GB HBM3", "TPU v9"])
def test_what_was_never_tried_gets_nothing(kind):
    assert compiler_options(kind, slices=8) == {}


@pytest.mark.parametrize("kind", BY_KIND)
def test_slices_and_checks_add_to_a_chips_own(kind):
    alone = compiler_options(kind)
    assert compiler_options(kind, slices=2) == alone | SLICES
    assert compiler_options(kind, 1, True) == alone | CORRUPTION_CHECKS
    assert not alone.keys() & (SLICES.keys() | CORRUPTION_CHECKS.keys())


def test_corruption_checks_are_for_tpus():
    assert compiler_options("cpu", 1, True) == {}


@pytest.mark.tpu
@pytest.mark.parametrize("chip", ["v4:2x2x1", "v5p:2x2x1"])
def test_the_compiler_knows_every_name(chip):
    from pomona.core.fleet import parse_fleet
    from pomona.plan.topology import topology_devices

    device = topology_devices(parse_fleet(chip))[0]
    import jax
    import jax.numpy as jnp

    x = jax.ShapeDtypeStruct((256, 256), jnp.bfloat16, sharding=jax.sharding.SingleDeviceSharding(device))
    options = compiler_options(device.device_kind, slices=2, check_corruption=True)
    assert len(options) > len(SLICES | CORRUPTION_CHECKS)
    assert "ENTRY" in jax.jit(lambda x: x @ x).lower(x).compile(compiler_options=options).as_text()
