"""What XLA is told for each kind of chip: options of `jax.jit(..., compiler_options=...)`. No JAX.

Names and first values are those that MaxText (benchmarks/xla_flags_library.py) and AXLearn (common/compiler_options.py)
publish, those of `V4_ROOM` libtpu's own; what they do to our own programs stands in docs/benchmarks/fleet.md.
"""

OVERLAP = {
    "xla_tpu_enable_async_collective_fusion": "true",
    "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
    "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
    "xla_tpu_overlap_compute_collective_tc": "true",
    "xla_enable_async_all_gather": "true",
    # A reduce-scatter is an all-reduce whose result is cut; these let XLA choose a layout in which the cut is free.
    "xla_tpu_assign_all_reduce_scatter_layout": "true",
    "xla_tpu_use_minor_sharding_for_major_trivial_input": "true",
    "xla_tpu_relayout_group_size_threshold_for_reduce_scatter": "1",
}
"""Gathers of weights run behind the products before them."""

SCATTER_OVERLAP = {
    "xla_tpu_enable_async_collective_fusion_fuse_reduce_scatter": "true",
    "xla_enable_async_reduce_scatter_fusion": "true",
}
"""Gradients are scattered behind products too. It takes on-chip memory beside the products'."""

V4_ROOM = {
    "xla_tpu_scoped_cmem_for_all_reduce": "16384",
    "xla_tpu_max_cmem_used_by_memory_space_assignment": "65536",
}
"""For that on v4, where a product takes all of a core's 16 MiB of VMEM: KiB of the 128 MiB that a chip's cores have in
common (CMEM), for sums that are under way, and for arrays that are kept there."""

V5P_ROOM = {"xla_tpu_scoped_vmem_limit_kib": "32768"}
"""For that on v5p: a product and a sum share VMEM."""

SLICES = {
    "xla_tpu_enable_data_parallel_all_reduce_opt": "true",
    "xla_tpu_data_parallel_opt_different_sized_ops": "true",
}
"""Sums over slices run behind the computation of other layers' gradients."""

CORRUPTION_CHECKS = {
    "xla_tpu_enable_sdc_checker": "true",
    "xla_tpu_sdc_check_repeat_count": "1",
    "xla_tpu_sdc_check_halt_on_detection": "true",
    "xla_tpu_sdc_checker_alternate_megacore_cores": "true",
}
"""XLA's own search for silent data corruption, as AXLearn sets it. Compiling takes several times as long."""

BY_KIND = {
    "TPU v4": OVERLAP | SCATTER_OVERLAP | V4_ROOM,
    "TPU v5": OVERLAP | SCATTER_OVERLAP | V5P_ROOM,
    "TPU v5p": OVERLAP | SCATTER_OVERLAP | V5P_ROOM,
}


def compiler_options(device_kind: str, slices: int = 1, check_corruption: bool = False) -> dict[str, str]:
    """The options for a device as JAX names it; empty for what was never tried."""
    chosen = BY_KIND.get(device_kind, {})
    across = SLICES if chosen and slices > 1 else {}
    checks = CORRUPTION_CHECKS if check_corruption and device_kind.startswith("TPU") else {}
    return chosen | across | checks
