"""The virtual GPU: runs the PTX of NVIDIA's compiler on any machine, warp by warp, and checks and counts what it does.

    nvrtc      compile CUDA C++ to PTX       ptx               parse PTX
    table      the PTX instructions          lower, slots, fuse, assemble   turn PTX into a program for the core
    core       build csrc/machine/ in C++    kernels           load, launch, run
    cards      the cards and their limits    report, counters  errors of a launch, and its counts
    clock      timing constants of cards, each with its source
    schedule, timed   launches with modelled times             step    one instruction after another
"""

from luce_edu.machine.kernels import Kernel, Prepared, load, run
from luce_edu.machine.step import Step, Steps, step

__all__ = ["Kernel", "Prepared", "Step", "Steps", "load", "run", "step"]
