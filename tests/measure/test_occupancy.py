"""Blocks an SM holds at once: each limit decides in its turn, the shipped kernels fit, and a GPU's driver agrees."""

import pytest

from luce_edu.config import ModelConfig
from luce_edu.machine.cards import LIMITS
from luce_edu.machine.cubin import ARCHITECTURES, Resources, compile_cubin
from luce_edu.measure.occupancy import blocks_per_sm, registers_allowed
from luce_edu.models import RANDOM_CONFIG
from luce_edu.stages.dims import BLOCK_THREADS, kernel_defines
from luce_edu.stages.per_layer import PerLayerDecoder


def report(registers=16, shared_bytes=0):
    return Resources(registers, 0, 0, 0, shared_bytes)


# The rows of NVIDIA's occupancy calculator: the limit that decides, and the blocks per SM on compute capability 8.6.
CASES = {
    "threads": (report(16), 512, 0, 3),
    "threads, blocks of 1024": (report(16), 1024, 0, 1),
    "registers": (report(41), 512, 0, 2),
    "registers, at the edge": (report(40), 512, 0, 3),
    "registers, one block": (report(65), 512, 0, 1),
    "registers, the most": (report(128), 512, 0, 1),
    "registers of 255": (report(255), 256, 0, 1),
    "too many registers for the block": (report(136), 512, 0, 0),
    "shared memory": (report(16, 30 * 1024), 128, 0, 3),
    "dynamic shared memory": (report(16, 10 * 1024), 128, 20 * 1024, 3),
    "the kilobyte that a block costs besides": (report(16, 50 * 1024), 128, 0, 1),
    "blocks": (report(16), 32, 0, 16),
}


@pytest.mark.parametrize("resources, threads, dynamic, blocks", CASES.values(), ids=CASES)
def test_the_tightest_limit_decides(resources, threads, dynamic, blocks):
    assert blocks_per_sm(resources, threads, arch="sm_86", dynamic_bytes=dynamic) == blocks


def test_limits_are_there_for_every_architecture_and_no_other():
    assert set(LIMITS) == set(ARCHITECTURES)
    with pytest.raises(ValueError, match="'sm_60'.*sm_75, "):
        blocks_per_sm(report(), 512, arch="sm_60")


@pytest.mark.parametrize("threads, most", [(128, 255), (256, 255), (512, 128), (1024, 64), (320, 168)])
def test_a_larger_block_leaves_each_thread_fewer_registers(threads, most):
    assert registers_allowed(threads) == most
    assert blocks_per_sm(report(most), threads, arch="sm_86") >= 1
    if most < 255:
        assert blocks_per_sm(report(most + 1), threads, arch="sm_86") == 0


def shipped(arch):
    """The kernels of stage per_layer for the 0.8B model."""
    defines = kernel_defines(ModelConfig.from_file(RANDOM_CONFIG))
    return compile_cubin(PerLayerDecoder.source, PerLayerDecoder.kernels, defines, arch).resources


@pytest.mark.parametrize("arch", ["sm_75", "sm_86"])
def test_every_shipped_kernel_fits(arch):
    blocks = {name: blocks_per_sm(resources, BLOCK_THREADS, arch=arch) for name, resources in shipped(arch).items()}
    assert all(1 <= count <= LIMITS[arch].threads_per_sm // BLOCK_THREADS for count in blocks.values()), blocks


@pytest.mark.gpu
def test_the_driver_gives_the_same_number():
    from luce_edu.backends import make_backend

    backend = make_backend("cuda")
    defines = kernel_defines(ModelConfig.from_file(RANDOM_CONFIG))
    module = backend.compile(PerLayerDecoder.source, PerLayerDecoder.kernels, defines)
    for name, resources in shipped(backend.arch).items():
        asked = module[name].handle.occupancy.max_active_blocks_per_multiprocessor(BLOCK_THREADS, 0)
        assert asked == blocks_per_sm(resources, BLOCK_THREADS, arch=backend.arch), name
