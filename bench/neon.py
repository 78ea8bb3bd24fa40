"""The NEON kernels on a machine without an ARM processor: compiled by Zig's clang, run by the emulator Unicorn.

    make bench-neon

Every product of random shapes, widths and numbers of tokens gives the bits that this machine's own library gives, and
so does every instruction set of this machine as clang compiles it. The whole library is also compiled for ARM on Linux
and macOS, which only says that it compiles there. The last line is JSON: products, differing, compiled. Speed is not
measured: an emulator has none.
"""

import ctypes
import json
import platform
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[1]
NATIVE = ROOT / "pomona" / "device" / "native"
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-exceptions", "-fno-rtti", "-fno-sanitize=all", "-Wno-psabi"]
TARGETS = ("aarch64-linux-gnu", "x86_64-linux-gnu", "aarch64-macos", "x86_64-macos")
HARNESS = """
#include "kernels_neon.cpp"
using namespace pomona;
extern "C" void *memcpy(void *to, const void *from, unsigned long n) {
    for (unsigned long i = 0; i < n; i++) ((volatile char *)to)[i] = ((const char *)from)[i];
    return to;
}
extern "C" void *memset(void *to, int value, unsigned long n) {
    for (unsigned long i = 0; i < n; i++) ((volatile char *)to)[i] = (char)value;
    return to;
}
struct Job {
    const uint8_t *packed; const int8_t *tables; const float *factors, *x;
    int8_t *integers; float *scales; int32_t *sums; float *out;
    int32_t bits, size, inputs, outputs, tokens;
};
extern "C" void _start(const Job *job) {
    const Kernels &with = KERNELS;
    const Quantized to = {job->integers, job->scales, job->sums};
    for (int t = 0; t < job->tokens; t++)
        with.quantize(job->x + (int64_t)t * job->size, job->size, job->inputs, to, t, 0, job->inputs / BLOCK);
    const Matrix m = {job->packed, job->tables, job->factors, job->bits, job->inputs, job->outputs};
    for (int group = 0; group < m.outputs / GROUP; group++)
        for (int first = 0; first < job->tokens; first += ROWS)
            with.group(m, group, to, first, job->tokens - first < ROWS ? job->tokens - first : ROWS,
                       job->out + (int64_t)first * m.outputs + group * GROUP, m.outputs);
}
"""
ARENA, STACK, STOP = 0x4000_0000, 0x7000_0000, 0x7F00_0000
SIZE = 16 << 20


def zig(*words):
    """Zig's C++ compiler."""
    subprocess.run([sys.executable, "-m", "ziglang", "c++", *map(str, words)], check=True)


def compile_everywhere(folder):
    """Every source for every target; returns their names."""
    for target in TARGETS:
        for source in sorted(NATIVE.glob("*.cpp")):
            words = ["-target", target, *FLAGS[:3], "-fPIC", "-fvisibility=hidden", "-c", source]
            zig(*words, "-o", folder / f"{target}-{source.stem}.o")
    return list(TARGETS)


class Emulator:
    """A program without an operating system in an emulated processor."""

    def __init__(self, image):
        import unicorn
        from unicorn import arm64_const

        self.registers = arm64_const
        self.machine = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
        self.machine.ctl_set_cpu_model(arm64_const.UC_CPU_ARM64_MAX)
        content = image.read_bytes()
        (self.entry, table) = struct.unpack_from("<QQ", content, 24)
        count = struct.unpack_from("<H", content, 56)[0]
        for index in range(count):
            kind, _, offset, address, _, filled, size, _ = struct.unpack_from("<IIQQQQQQ", content, table + 56 * index)
            if kind == 1 and size:
                first, last = address & ~0xFFF, (address + size + 0xFFF) & ~0xFFF
                self.machine.mem_map(first, last - first)
                self.machine.mem_write(address, content[offset : offset + filled])
        for address, length in ((ARENA, SIZE), (STACK, 1 << 20), (STOP, 0x1000)):
            self.machine.mem_map(address, length)
        self.machine.reg_write(arm64_const.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # vectors are not trapped

    def call(self, job):
        """Runs the program's one function until it returns."""
        self.machine.mem_write(ARENA, bytes(job))
        for register, value in (("X0", ARENA), ("SP", STACK + (1 << 20) - 64), ("LR", STOP)):
            self.machine.reg_write(getattr(self.registers, f"UC_ARM64_REG_{register}"), value)
        self.machine.emu_start(self.entry, STOP)


class Job(ctypes.Structure):
    """HARNESS has it."""

    _fields_ = (
        *((name, ctypes.c_uint64) for name in ("packed", "tables", "factors", "x")),
        *((name, ctypes.c_uint64) for name in ("integers", "scales", "sums", "out")),
        *((name, ctypes.c_int32) for name in ("bits", "size", "inputs", "outputs", "tokens")),
    )


def product(emulator, matrix, x_TI):
    """float32 [T, O], by the emulated kernels."""
    from pomona.device.layout import padded

    place, places = ARENA + 4096, {}
    inputs = padded(matrix.inputs)
    room = {"integers": len(x_TI) * inputs, "scales": len(x_TI) * inputs // 16, "sums": len(x_TI) * inputs // 16}
    room["out"] = 4 * len(x_TI) * matrix.outputs
    given = {"packed": matrix.packed, "factors": matrix.factors, "x": x_TI}
    if matrix.tables is not None:
        given["tables"] = matrix.tables
    for name, array in given.items():
        emulator.machine.mem_write(place, np.ascontiguousarray(array).tobytes())
        places[name], place = place, place + -(-array.nbytes // 64) * 64
    for name, size in room.items():
        places[name], place = place, place + -(-size // 64) * 64
    assert place < ARENA + SIZE
    sizes = {"bits": matrix.bits, "size": x_TI.shape[1], "inputs": inputs, "outputs": matrix.outputs}
    emulator.call(Job(**{"tables": 0} | places, **sizes, tokens=len(x_TI)))
    found = emulator.machine.mem_read(places["out"], room["out"])
    return np.frombuffer(bytes(found), np.float32).reshape(len(x_TI), -1)


def drawn(rng, bits):
    """A matrix and vectors of random sizes."""
    from pomona.device.layout import from_integers, from_palette

    groups, sixteens, tokens = (int(rng.integers(1, most)) for most in (4, 20, 20))
    indices = rng.integers(0, 2 ** min(bits, 7), (groups * 16, sixteens * 16))
    x = (rng.standard_t(2, (tokens, sixteens * 16)) * 10.0 ** rng.integers(-4, 4)).astype(np.float32)
    if bits == 8:
        return from_integers(indices - 64, rng.random(groups * 16)), x
    tables = rng.standard_t(3, (groups, 2**bits)).astype(np.float16)
    return from_palette(indices.astype(np.uint8), tables, rng.random(groups * 16).astype(np.float16), bits), x


def main():
    """Compiles, then compares."""
    from pomona.device import library

    rng = np.random.default_rng(0)
    cases = [drawn(rng, bits) for bits in (2, 4, 8) for _ in range(20)]
    expected = [library.product(*case) for case in cases]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compiled = compile_everywhere(folder)
        (folder / "harness.cpp").write_text(HARNESS)
        words = ["-target", "aarch64-freestanding", "-nostdlib", "-static", *FLAGS, "-I", NATIVE]
        zig(*words, folder / "harness.cpp", "-o", folder / "harness")
        emulator = Emulator(folder / "harness")
        found = {"neon": [product(emulator, *case) for case in cases]}
        if "x86_64" in platform.machine():
            zig("-shared", "-O2", *sorted(folder.glob("x86_64-linux-gnu-*.o")), "-o", folder / "_native.so")
            library.FOLDER = folder
            library._library.cache_clear()
            for own in library.instruction_sets():
                found[f"{own} by clang"] = [library.product(*case, own) for case in cases]
    differing = {
        name: sum(not np.array_equal(one, other) for one, other in zip(each, expected)) for name, each in found.items()
    }
    print(json.dumps({"products": len(cases), "differing": differing, "compiled": compiled}))
    sys.exit(1 if any(differing.values()) else 0)


if __name__ == "__main__":
    main()
