"""The Arm kernels under emulation: against the generic kernel, the property tests, and executed instructions.

`make test-arm` runs it; elsewhere it is skipped, for it downloads some 250 MB and compiles everything again.
"""

from __future__ import annotations

import os
import subprocess

import pytest

if not os.environ.get("EDGEC_TEST_ARM"):
    pytest.skip("set EDGEC_TEST_ARM=1 (make test-arm) to test Arm under emulation", allow_module_level=True)

import count_instructions
import environment

pytestmark = pytest.mark.usefixtures("arm")
# Executed instructions per 32 multiply-accumulates: (kernel, format, M, N, K, limit). The limits are what was reached,
# rounded up; bench/arm.md says where they go.
LIMITS = [
    ("linear_f32_s8b32_s4n16k4_2x16_dotprod", "s4g32n16k4", 1, 4096, 4096, 5.7),
    ("linear_f32_s8b32_u4n16k4_2x16_dotprod", "u4g32n16k4", 1, 4096, 4096, 6.01),
    ("linear_f32_s8b32_t4n16k4_2x16_dotprod", "t4g32n16k4", 1, 4096, 4096, 7.84),
    ("linear_f32_s8b32_s6n16k4_2x16_dotprod", "s6g64n16k4", 1, 4096, 4096, 7.08),
    ("linear_f32_s8b32_s8n16k4_2x16_dotprod", "s8g128n16k4", 1, 4096, 4096, 4.0),
    ("linear_f32_s8p2b32x4_s6n16k4_12x16_i8mm", "s6g64n16k4", 128, 1024, 1024, 2.09),
    ("linear_f32_s8b32x4_s6n16k4_12x16_dotprod", "s6g64n16k4", 128, 1024, 1024, 2.98),
    ("linear_f32_s8p2b32x4_s4n16k4_12x16_i8mm", "s4g32n16k4", 128, 1024, 1024, 2.0),
    ("linear_f32_s8p2b32x4_u4n16k4_12x16_i8mm", "u4g32n16k4", 128, 1024, 1024, 2.08),
    ("linear_f32_s8p2b32x4_t4n16k4_12x16_i8mm", "t4g32n16k4", 128, 1024, 1024, 2.01),
    ("linear_f32_s8b32x4_s4n16k4_12x16_dotprod", "s4g32n16k4", 128, 1024, 1024, 2.9),
    ("linear_f32_s8b32x4_u4n16k4_12x16_dotprod", "u4g32n16k4", 128, 1024, 1024, 2.94),
    ("linear_f32_s8b32x4_t4n16k4_12x16_dotprod", "t4g32n16k4", 128, 1024, 1024, 2.93),
    ("linear_f32_s8b32_s4n32k4_1x128_sme2", "s4g32n32k4", 1, 4096, 4096, 0.8),
    ("linear_f32_s8b32_u4n32k4_1x128_sme2", "u4g32n32k4", 1, 4096, 4096, 0.88),
    ("linear_f32_s8q16b32_s4n32k4_16x32_sme2", "s4g32n32k4", 128, 1024, 1024, 0.195),
    ("linear_f32_s8q16b32_u4n32k4_16x32_sme2", "u4g32n32k4", 128, 1024, 1024, 0.21),
    ("linear_f32_s8b32_s4n32k1_2x32_dotprod", "s4g32n32k1", 1, 4096, 4096, 9.2),
    ("linear_f32_s8b32_u4n32k1_2x32_dotprod", "u4g32n32k1", 1, 4096, 4096, 10),
    ("linear_f32_f16k32_s4n32k1_32x32_amx", "s4g32n32k1", 128, 1024, 1024, 0.111),
    ("linear_f32_f16k32_s4n32k1_32x32_amx2", "s4g32n32k1", 128, 1024, 1024, 0.0785),
    ("linear_f32_f16k32_u4n32k1_32x32_amx2", "u4g32n32k1", 128, 1024, 1024, 0.08),
]


@pytest.fixture(scope="module")
def kernels_test():
    source = environment.PROJECT / "tests/cpp/kernels_test.cpp"
    return environment.build("kernels_test", [*environment.kernel_sources(), source])


VECTOR_BITS = (128, 256, 512)  # of SME2's streaming mode; Apple's M4 has 512


@pytest.mark.parametrize(("disabled", "bits"), [("", b) for b in VECTOR_BITS] + [("sme2,i8mm,dotprod", 512)])
def test_kernels_match_generic(kernels_test, disabled, bits):
    """Every kernel of the table over random shapes, on buffers of exactly the documented size."""
    command = [*environment.emulator(bits), str(kernels_test), "10"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={"EDGEC_DISABLE": disabled})
    assert done.returncode == 0 and "kernels: ok" in done.stdout, done.stdout + done.stderr


@pytest.fixture(scope="module")
def package():
    return environment.build_extension()


@pytest.fixture(scope="module")
def sgemm():
    """A library with cblas_sgemm in the place of Accelerate."""
    source = environment.PROJECT / "tests/cpp/sgemm.cpp"
    return str(environment.build("libsgemm.so", [source], link_flags=("-shared",)))


def test_every_unit_is_there(package):
    """What the property tests go through: kernels that are not available would be skipped."""
    found = "from edgec import kernels as ek; print(*{k.name.rsplit('_', 1)[1] for k in ek.list() if k.available})"
    done = environment.python(["-c", found], package)
    assert {"neon", "dotprod", "i8mm", "sme2", "amx", "amx2"} <= set(done.stdout.split()), done.stdout + done.stderr


@pytest.mark.parametrize(("bits", "chosen"), [(512, ""), (256, "sme2"), (128, "sme2")])
def test_properties(package, sgemm, bits, chosen):
    """The kernels' Hypothesis tests in an arm64 Python; nothing of the Arm table may be skipped."""
    tests = [
        str(environment.PROJECT / "tests/property" / name)
        for name in ("test_kernels.py", "test_kernels_ops.py", "test_accelerate.py")
    ]
    options = ["-q", "-p", "no:cacheprovider", "--noconftest", "-rs", "-c", os.devnull, "-k", chosen]
    done = environment.python(
        ["-m", "pytest", *options, *tests], package, bits, EDGEC_TEST_ARM="", EDGEC_TEST_SGEMM=sgemm
    )
    assert done.returncode == 0 and " passed" in done.stdout and "skipped" not in done.stdout, (
        done.stdout[-3000:] + done.stderr[-2000:]
    )


@pytest.fixture(scope="module")
def run_linear():
    source = environment.PROJECT / "tests/arm/run_linear.cpp"
    return environment.build("run_linear", [*environment.kernel_sources(), source])


@pytest.mark.parametrize(
    ("kernel", "fmt", "m", "n", "k", "limit"), LIMITS, ids=lambda v: v if isinstance(v, str) else ""
)
def test_executed_instructions(run_linear, kernel, fmt, m, n, k, limit):
    """The whole product but the activations' quantization: unpacking, scaling and the store are within."""
    isa = kernel.rsplit("_", 1)[1]
    # AMX's namespace has its activations' preparation too, and the products with known answers
    functions = rf"{kernel}|kernels3amxL?\d+(amx|store)_" if isa[:3] == "amx" else rf"{kernel}|kernels{len(isa)}{isa}"
    arguments = [kernel, fmt, *map(str, (m, n, k))]
    counted, mix = count_instructions.count(environment.emulator(), run_linear, arguments, functions)
    per_unit = counted.total() / (m * n * k / 32)
    print(f"\n{kernel} {fmt} {m}x{n}x{k}: {per_unit:.3f} instructions per 32 multiply-accumulates")
    if isa in {"i8mm", "dotprod"}:
        assert mix["smmla" if isa == "i8mm" else "sdot"] * 32 >= m * n * k, "the kernel did not do the work"
    assert per_unit <= limit
