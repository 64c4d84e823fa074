"""The virtual GPU: NVIDIA's own compiler output, run on any machine, a warp at a time, checked and counted.

    ptx        reads the text          table, assemble   know the instructions and make a program of them
    core       builds csrc/machine/    kernels           load, launch, run
    cards      the GPUs there are      report, counters  what a launch says
    clock      their timing constants, each with its source
    nvrtc      CUDA C++ to PTX         step              one instruction after another
"""

from luce_edu.machine.kernels import Kernel, Prepared, load, run
from luce_edu.machine.step import Step, Steps, step

__all__ = ["Kernel", "Prepared", "Step", "Steps", "load", "run", "step"]
