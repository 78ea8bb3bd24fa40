"""Serving by arithmetic, against the sums written out; and what is refused."""

import json

import pytest

from pomona.cli.main import main
from pomona.core.errors import UserError
from pomona.core.fleet import parse_fleet
from pomona.model.presets import AFM_DEVICE, AFM_SERVER
from pomona.plan.serving import Serving, plan_serving

L, D, V, N, K, H, F = 80, 8192, 102_400, 64, 8, 128, 28_672
LAYER = D * N * H + 2 * D * K * H + N * H * D + 3 * D * F
WEIGHTS = L * LAYER + V * D


def test_the_server_model_on_eight_chips():
    plan = plan_serving("afm_server", AFM_SERVER, parse_fleet("v5p-16"), Serving(64, 4096, 1024))
    norms = L * (2 * D + 2 * H) + D
    assert plan.weight_bytes == pytest.approx(2 * (WEIGHTS / 8 + norms), rel=1e-6)
    assert plan.cache_bytes == 64 * 4096 * L * K * H * 2 * 2 / 8
    read = (plan.weight_bytes + plan.cache_bytes) / 2.765e12
    ring = plan.step_seconds - read / 0.7
    vectors = 2 * 64 * D
    assert 2 * L * 8e-6 < ring < 2 * L * (8e-6 + 2 * vectors / 90e9), "two sums a layer, each around eight chips"
    assert plan.tokens_per_second == pytest.approx(64 / plan.step_seconds)
    flops = 1024 * (2 * (WEIGHTS + norms) + 4 * N * H * 512 * L)
    assert plan.first_token_seconds > flops / (8 * 459e12) / 0.7
    assert plan.fits and plan.memory_bytes < plan.limit_bytes


def test_one_device_waits_for_nobody_and_int8_halves_the_cache():
    fleet = parse_fleet("v5litepod-1")
    wide, narrow = (plan_serving("x", AFM_DEVICE, fleet, Serving(8, 4096, 256, kind)) for kind in ("bfloat16", "int8"))
    assert narrow.cache_bytes / wide.cache_bytes == pytest.approx((128 + 4) / 256)
    assert wide.step_seconds == pytest.approx((wide.weight_bytes + wide.cache_bytes) / 819e9 / 0.7)
    assert not plan_serving("x", AFM_SERVER, fleet, Serving()).fits


def test_more_slots_are_more_tokens_a_second_and_fewer_for_each():
    fleet = parse_fleet("v5p-8")
    few, many = (plan_serving("x", AFM_SERVER, fleet, Serving(slots)) for slots in (8, 64))
    assert many.tokens_per_second > few.tokens_per_second and many.step_seconds > few.step_seconds


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--serve", "--chips", "v5p-256"], "key-value heads"),
        (["--serve", "--slots", "0"], "--slots 0"),
        (["--slots", "4"], "--slots without --serve"),
        (["--serve", "--search"], "--serve is alone"),
        (["--serve", "--cache", "int4"], "--cache int4"),
    ],
)
def test_mistakes(options, problem, capsys):
    assert main(["plan", "afm_device", *options]) == 2
    assert problem in capsys.readouterr().err


def test_the_verb_answers_and_gives_json(capsys):
    words = ["plan", "afm_server", "--serve", "--chips", "v5p-16", "--slots", "32"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "fits" in said and "32 users at a time" in said and "the first answer after" in said
    assert main([*words, "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["slots"] == 32 and found["fits"] and found["tokens_per_second"] > 1000


def test_several_slices_are_several_servers():
    with pytest.raises(UserError, match="2 slices"):
        plan_serving("x", AFM_SERVER, parse_fleet("v5p-16", 2), Serving())


@pytest.mark.tpu
def test_both_programs_compile_for_a_slice():
    """A narrow model of the server's kind, on 4 chips: what is compiled is sharded, and takes what was planned."""
    import dataclasses

    from pomona.plan.serving_programs import compile_serving

    small = dataclasses.replace(AFM_SERVER, num_layers=2, model_dim=1024, ffn_dim=2048, vocab_size=4096)
    plan = plan_serving("small", small, parse_fleet("v5p-8"), Serving(8, 512, 256))
    decode, read = compile_serving(plan, 5e5)
    for each in (decode, read):
        planned = plan.weight_bytes + plan.cache_bytes
        assert each.compiled.argument_bytes == pytest.approx(planned, rel=0.02)
        assert each.compiled.alias_bytes == pytest.approx(plan.cache_bytes, rel=0.02), "the cache is changed in place"
        assert each.compiled.temporary_bytes < 0.5 * planned and each.seconds > 0
        assert "cached_attention" in each.compiled.text
