"""Every kernel compiles to machine code for every GPU that we name, without spills."""

import io

import pytest
from models import CONFIGS, FULL_SIZE

from luce_edu.errors import CompileError
from luce_edu.family import FAMILY, family_config
from luce_edu.machine.cards import LIMITS
from luce_edu.machine.cubin import ARCHITECTURES, Binary, Resources, compile_cubin, parse_ptxas
from luce_edu.paths import csrc_dir
from luce_edu.stages import KERNEL_STAGES, prefill, sampling, stage_class
from luce_edu.stages.dims import kernel_defines
from luce_edu.stages.streaming import VARIANTS, streaming_defines

STAGES = {kind.source: (kind.kernels, kernel_defines) for kind in map(stage_class, KERNEL_STAGES)} | {
    "prefill.cu": (prefill.KERNELS, prefill.prefill_defines), sampling.SOURCE: (sampling.KERNELS, kernel_defines),
}
# Of the larger shapes, what `make test` compiles; LUCE_FULL adds the rest.
MAIN, QUICK = ("sm_75", "sm_90a", "sm_120"), {("9b", "megakernel.cu"), ("9b", "per_layer.cu"), ("4b", "per_op.cu")}
SHIPPED = {"tiny": CONFIGS["tiny"], "0.8b": FULL_SIZE}
# The full size needs more registers. For tiny, three kinds of code are enough: without bf16, with bf16, for Hopper.
BUILDS = [("0.8b", arch) for arch in ARCHITECTURES] + [
    pytest.param("tiny", arch, marks=() if arch in ("sm_75", "sm_86", "sm_90a") else pytest.mark.full)
    for arch in ARCHITECTURES
]


# Of the larger shapes, these keep up to so many bytes of some architectures' registers in local memory: the megakernel
# what lives across attention (stored once per token, loaded once per attention layer), streaming a pointer or two.
FEW_BYTES = {"megakernel": 32, "streaming": 8}
LARGER = [
    pytest.param(size, arch, source, marks=() if (size, source) in QUICK and arch in MAIN else pytest.mark.full)
    for size in FAMILY[1:] for arch in ARCHITECTURES for source in STAGES
]  # fmt: skip


@pytest.mark.parametrize("size, arch, source", LARGER)
def test_the_kernels_of_larger_shapes_compile_and_keep_to_their_registers(size, arch, source):
    kernels, _ = STAGES[source]
    binary = compile_cubin(source, kernels, defines_of(source, family_config(size), arch), arch)
    assert set(spilling(binary)) <= set(FEW_BYTES)
    for name, resources in binary.resources.items():
        assert resources.spill_store_bytes <= FEW_BYTES.get(name, 0), name
        assert resources.shared_bytes <= 48 * 1024, name


def defines_of(source: str, config, arch: str) -> dict[str, int]:
    """The macros of a source; those of streaming depend on the architecture's shared memory."""
    if source != "streaming.cu":
        return STAGES[source][1](config)
    capability = divmod(int(arch.strip("sm_a")), 10)
    return streaming_defines(config, LIMITS[arch].shared_per_block, capability)


def spilling(binary: Binary) -> list[str]:
    return [name for name, r in binary.resources.items() if r.spill_store_bytes or r.spill_load_bytes or r.stack_bytes]


@pytest.mark.parametrize("config, arch", BUILDS)
@pytest.mark.parametrize("source", STAGES)
def test_every_kernel_compiles_without_spills(arch, source, config):
    kernels, _ = STAGES[source]
    defines = defines_of(source, SHIPPED[config], arch)
    binary = compile_cubin(source, kernels, defines, arch)
    assert binary.cubin[:4] == b"\x7fELF"
    assert set(binary.resources) == set(kernels), "a stage lists the kernels of its source"
    assert spilling(binary) == []
    for name, resources in binary.resources.items():
        assert 0 < resources.registers <= 65536 // defines["BLOCK_THREADS"], f"{name} cannot be launched"
        assert resources.shared_bytes <= 48 * 1024


@pytest.mark.parametrize(
    "arch", [pytest.param(arch, marks=[pytest.mark.full] * (arch not in ("sm_86", "sm_90a"))) for arch in ARCHITECTURES]
)
def test_streaming_draws_without_spills(arch):
    defines = defines_of("streaming.cu", FULL_SIZE, arch) | {"DRAWS": 1}
    assert spilling(compile_cubin("streaming.cu", ["streaming"], defines, arch)) == []


@pytest.mark.parametrize("arch", ["sm_86", "sm_90a"])
@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=[pytest.mark.full] * ("blocks" not in name)) for name in VARIANTS]
)
def test_a_variant_of_streaming_compiles_and_only_two_blocks_per_sm_spill(variant, arch):
    capability = divmod(int(arch.strip("sm_a")), 10)
    defines = streaming_defines(FULL_SIZE, LIMITS[arch].shared_per_block, capability, variant)
    binary = compile_cubin("streaming.cu", ["streaming"], defines, arch)
    assert bool(spilling(binary)) == (defines["BLOCKS_PER_SM"] == 2)
    registers = binary.resources["streaming"].registers
    assert registers * defines["BLOCK_THREADS"] * defines["BLOCKS_PER_SM"] <= 65536


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_the_head_after_a_prompt_has_registers_for_as_many_loads_as_the_head_of_a_step(arch):
    """A lane's eight 16-byte loads take 32 registers. Without a hint the compiler uses 40 in all."""
    used = []
    for source in ("per_layer.cu", "prefill.cu"):
        kernels, make_defines = STAGES[source]
        used.append(compile_cubin(source, kernels, make_defines(FULL_SIZE), arch).resources["lm_head"].registers)
    assert used[1] >= 0.85 * used[0], used


def test_a_kernel_that_spills_is_seen(tmp_path):
    (tmp_path / "spill.cu").write_text("""
        extern "C" __global__ void __launch_bounds__(1024) spill(float* x) {
            float a[256];
            for (int i = 0; i < 256; ++i) a[i] = x[i * threadIdx.x];
            for (int i = 0; i < 256; ++i) x[i] = a[(i * 7 + threadIdx.x) % 256];
        }""")
    assert spilling(compile_cubin("spill.cu", ["spill"], {}, "sm_86", csrc=tmp_path)) == ["spill"]


def test_a_compile_error_names_file_and_line_and_no_path(tmp_path):
    (tmp_path / "wrong.cu").write_text('extern "C" __global__ void f(int* a) {\n    a[0] = missing;\n}\n')
    with pytest.raises(CompileError, match=r"wrong\.cu\(2\).*missing") as error:
        compile_cubin("wrong.cu", ["f"], {}, "sm_86", csrc=tmp_path)
    assert str(tmp_path) not in str(error.value)


def test_an_unknown_kernel_or_file_is_named():
    defines = kernel_defines(CONFIGS["tiny"])
    with pytest.raises(CompileError, match="no kernel named no_such"):
        compile_cubin("per_op.cu", ["no_such"], defines, "sm_86")
    with pytest.raises(CompileError, match="none.cu: no such file"):
        compile_cubin("none.cu", [], defines, "sm_86")


def test_a_damaged_cache_entry_is_compiled_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LUCE_CACHE", str(tmp_path))
    defines = kernel_defines(CONFIGS["tiny"])
    first = compile_cubin("per_op.cu", ["embed"], defines, "sm_86")
    (entry,) = (tmp_path / "cuda").iterdir()
    entry.write_text(entry.read_text()[:100])
    assert compile_cubin("per_op.cu", ["embed"], defines, "sm_86") == first


def test_the_report_of_ptxas_is_read():
    log = io.StringIO("""
ptxas info    : Compiling entry function 'f' for 'sm_86'
ptxas info    : Function properties for f
ptxas         .     8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 128 bytes smem, 360 bytes cmem[0]
ptxas info    : Function properties for g
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 0 barriers, 360 bytes cmem[0]
""").getvalue()
    assert parse_ptxas(log) == {"f": Resources(40, 8, 4, 12, 128), "g": Resources(10, 0, 0, 0, 0)}


def test_sources_carry_no_half_precision_hardware_and_no_restrict():
    """Turing has no bf16 arithmetic. With a const __restrict__ pointer to an activation, the compiler may load through
    the non-coherent path, which does not see what other blocks wrote in the same launch."""
    for path in csrc_dir().glob("*.cu*"):
        text = path.read_text()
        assert "__nv_bfloat16" not in text and "__restrict__" not in text, path.name
