"""The device file: what it holds, and that no damage ends in anything but one clear error."""

import json

import numpy as np
import pytest
from safetensors import safe_open

from pomona.core.errors import UserError
from pomona.device.engine import load
from pomona.device.file import read_file, verify, write_file
from pomona.device.session import instruction_sets


def parts(path):
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + size]), content[8 + size :]


def joined(header, data):
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_it_is_a_safetensors_file_whose_data_is_aligned(pom):
    ours = read_file(pom)
    with safe_open(pom, framework="numpy") as theirs:
        assert set(theirs.keys()) == set(ours.arrays)
        for name in ours.arrays:
            np.testing.assert_array_equal(theirs.get_tensor(name), ours.arrays[name])
    for name, matrix in ours.matrices.items():
        assert matrix.packed.ctypes.data % 64 == 0, name
    assert {matrix.bits for matrix in ours.matrices.values()} == {2, 4, 8}
    verify(ours)


def test_opening_reads_no_weights(pom, tmp_path):
    """Weights with other bytes open: only `verify` reads them, and names the tensor."""
    header, data = parts(pom)
    first, last = header["layers.01.ffn.up.packed"]["data_offsets"]
    data = bytearray(data)
    data[(first + last) // 2] ^= 16
    (tmp_path / "flipped.pom").write_bytes(joined(header, bytes(data)))
    file = read_file(tmp_path / "flipped.pom")
    with pytest.raises(UserError, match=r"damaged: layers\.01\.ffn\.up\.packed\."):
        verify(file)
    with pytest.raises(UserError, match="damaged"):
        load(tmp_path / "flipped.pom", check=True)


def changed(name, field, value):
    def change(header):
        header[name][field] = value

    return change


def about(**changes):
    def change(header):
        told = json.loads(header["__metadata__"]["pomona"])
        header["__metadata__"]["pomona"] = json.dumps(told | changes)

    return change


def remove(name):
    return lambda header: header.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (about(format=2), "format 2"),
        (about(architecture={"vocab_size": 5}), "architecture"),
        (about(bits={}), "None bits"),
        (about(fingerprint=None), "fingerprint is None"),
        (about(crc32={}), "tokenizer is damaged"),
        (about(rope_base=float("nan")), "rotary base"),
        (about(rope_base="x"), "could not convert"),
        (remove("__metadata__"), "__metadata__"),
        (remove("tokenizer"), "goes on after its last tensor"),
        (changed("final_norm", "dtype", "F64"), "F64"),
        (changed("final_norm", "shape", [65]), "wrong place or size"),
        (changed("final_norm", "data_offsets", [0, 256]), "wrong place or size"),
        (changed("final_norm", "data_offsets", [-8, 248]), "wrong place or size"),
        (changed("layers.00.ffn.up.packed", "shape", [1, 2**70]), "wrong place or size"),
    ],
)
def test_a_header_that_is_wrong_is_named(pom, tmp_path, change, said):
    header, data = parts(pom)
    change(header)
    (tmp_path / "bad.pom").write_bytes(joined(header, data))
    with pytest.raises(UserError, match=said):
        load(tmp_path / "bad.pom")


def test_a_model_of_other_sizes_than_its_tensors_is_refused(pom, tmp_path):
    header, data = parts(pom)
    told = json.loads(header["__metadata__"]["pomona"])["architecture"]
    for name, size in (
        ("num_layers", 3),
        ("num_layers", 2**40),
        ("ffn_dim", 144),
        ("head_dim", 24),
        ("vocab_size", 500),
        ("num_heads", 2**40),
    ):
        header, data = parts(pom)
        about(architecture=told | {name: size})(header)
        (tmp_path / "bad.pom").write_bytes(joined(header, data))
        with pytest.raises(UserError):
            load(tmp_path / "bad.pom")


def test_cut_short_at_any_place_or_something_else(pom, tmp_path):
    content = pom.read_bytes()
    bad = tmp_path / "bad.pom"
    for size in (0, 3, 8, 20, 1000, len(content) // 2, len(content) - 1):
        bad.write_bytes(content[:size])
        with pytest.raises(UserError, match="no device file that can be read"):
            load(bad)
    for other in (b"GGUF" + bytes(100), b"\xff" * 64, content + b"x", b"PK\x03\x04" + bytes(64)):
        bad.write_bytes(other)
        with pytest.raises(UserError, match="no device file that can be read"):
            load(bad)
    for missing in (tmp_path / "none.pom", tmp_path):
        with pytest.raises(UserError, match="no device file"):
            load(missing)


def test_two_thousand_mutated_headers(pom, tmp_path):
    """Whatever opens and passes `verify` computes finite or clearly refused logits; nothing else than `UserError`."""
    content, rng = pom.read_bytes(), np.random.default_rng(0)
    used = 8 + len(content[8 : 8 + int.from_bytes(content[:8], "little")].rstrip())
    bad, opened = tmp_path / "bad.pom", 0
    for _ in range(2000):
        changed = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, used))
            changed[at] = rng.integers(0, 256) if rng.random() < 0.5 else ord(rng.choice(list('0123456789{}[]",:-e')))
        bad.write_bytes(changed)
        try:
            model = load(bad, check=True)
            opened += 1
            model.open(context=4, threads=1).advance([1, 2, 3])
        except UserError:
            pass
    assert opened < 1000, "most mutations are noticed"


def test_numbers_that_are_not_finite_are_refused(pom, tmp_path):
    header, data = parts(pom)
    first = header["layers.00.ffn.down.factors"]["data_offsets"][0]
    data = data[:first] + np.float32(np.nan).tobytes() + data[first + 4 :]
    (tmp_path / "bad.pom").write_bytes(joined(header, data))
    with pytest.raises(UserError, match=r"layers\.00\.ffn\.down is not finite"):
        load(tmp_path / "bad.pom")


@pytest.mark.parametrize("name", instruction_sets())
@pytest.mark.parametrize("place", ["layers.00.attention.value", "layers.00.ffn.down", "layers.01.attention.key"])
def test_numbers_that_grow_beyond_all_bounds_are_told_and_leave_the_session_as_it_was(pom, tmp_path, name, place):
    """Finite factors whose products are not: a comparison that loses a NaN would make text of it."""
    header, data = parts(pom)
    first, last = header[f"{place}.factors"]["data_offsets"]
    data = data[:first] + np.full((last - first) // 4, 3e38, np.float32).tobytes() + data[last:]
    (tmp_path / "bad.pom").write_bytes(joined(header, data))
    session = load(tmp_path / "bad.pom").open(context=8, threads=2, instruction_set=name)
    with np.errstate(all="ignore"), pytest.raises(UserError, match="not finite numbers"):
        session.advance([1, 5, 9])
    assert session.length == 0


def test_what_cannot_be_written_leaves_nothing(pom, tmp_path):
    told = read_file(pom).about

    def dies():
        yield "final_norm", np.zeros(64, np.float32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_file(tmp_path / "new.pom", {key: told[key] for key in ("name", "bits")}, dies())
    assert not list(tmp_path.iterdir())
