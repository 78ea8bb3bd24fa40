"""Configurations through JSON and back, fingerprints, differences."""

import dataclasses

import pytest

from pomona.checkpoint.config import CheckpointConfig
from pomona.core.config import differences, fingerprint, flatten, from_json, to_json
from pomona.core.errors import UserError
from pomona.optim.config import AdamW
from pomona.recipes.registry import RECIPES
from pomona.train.config import Run, check_run


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_json_and_is_sound(name):
    run = RECIPES[name]()
    check_run(run)
    assert from_json(Run, to_json(run)) == run


def test_a_union_is_told_apart_by_its_kind():
    run = dataclasses.replace(RECIPES["tiny"](), optimizer=AdamW(epsilon=1e-6))
    assert from_json(Run, to_json(run)).optimizer == AdamW(epsilon=1e-6)


def test_the_fingerprint_sees_every_leaf():
    run = RECIPES["tiny"]()
    integers = {path: value for path, value in flatten(from_json(Run, to_json(run))).items() if type(value) is int}
    seen = {fingerprint(run)}
    for path, value in integers.items():
        changed = to_json(run)
        *parents, last = path.split(".")
        node = changed
        for parent in parents:
            node = node[int(parent) if parent.isdigit() else parent]
        node[last] = value + 1
        seen.add(fingerprint(from_json(Run, changed)))
        assert differences(run, from_json(Run, changed)) == [f"{path}: {value} -> {value + 1}"]
    assert len(seen) == 1 + len(integers) > 20


def test_an_int_in_a_float_field_does_not_change_the_fingerprint():
    assert fingerprint(CheckpointConfig(every_seconds=120)) == fingerprint(CheckpointConfig(every_seconds=120.0))


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("seeed",), 1, "did you mean seed?"),
        (("seed",), "one", "config.seed is 'one'"),
        (("execution", "remat"), "some", "one of 'none', 'products', 'ffn', 'gate', 'qkv', 'attention', 'full'"),
        (("architecture", "vocab_size"), True, "config.architecture.vocab_size is True"),
        (("optimizer",), {"kind": "sgd"}, "AdaStar or AdamW"),
    ],
)
def test_a_wrong_value_names_its_place(path, value, word):
    wrong = to_json(RECIPES["tiny"]())
    node = wrong
    for part in path[:-1]:
        node = node[part]
    node[path[-1]] = value
    with pytest.raises(UserError) as caught:
        from_json(Run, wrong)
    assert word in str(caught.value)
