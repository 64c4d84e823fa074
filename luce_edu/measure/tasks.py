"""Time two tasks on a GPU, RMSNorm and a matrix-vector product: our kernels, cuBLAS, and what torch.compile makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from luce_edu.backends import make_backend
from luce_edu.config import ModelConfig
from luce_edu.measure.latency import Quartiles, l2_emptier, time_rounds
from luce_edu.measure.schema import Text
from luce_edu.models import RANDOM_CONFIG
from luce_edu.reference.rms_norm import rms_norm
from luce_edu.stages.dims import BLOCK_THREADS, kernel_defines
from luce_edu.verification import relative_error

SOURCE, KERNELS = "per_op.cu", ("rms_norm", "matvec")
# cuBLAS and torch.compile round the result to bf16, or x before the product.
LIMIT = 1e-2


@dataclass(frozen=True)
class TaskRow:
    """The time of one task in one system, with nothing in L2 before.

    task       rms_norm: of a vector of 1,024;  matvec: gate_proj of Qwen3.5-0.8B, bf16 weights
    system     ours: csrc/per_op.cu; cuBLAS: torch.mv in bf16; torch.compile: of the same line of PyTorch
    latency_us None if it could not run;  reason: why, in one line
    """

    task: Literal["rms_norm", "matvec"]
    system: Text
    latency_us: Quartiles | None
    reason: str = ""


@dataclass(frozen=True)
class Tasks:
    """Every task in every system."""

    rows: tuple[TaskRow, ...]


def measure_tasks(backend=None) -> Tasks:
    """Check each system against PyTorch in fp32, then time it. Raises ValueError without a GPU that runs our kernels.

    A system that fails, such as torch.compile without a compiler, becomes a row with its reason.
    """
    backend = backend or make_backend("cuda")
    before = l2_emptier(backend.device)
    return Tasks(tuple(
        _row(task, system, make, truth, before)
        for task, (truth, systems) in _tasks(backend).items() for system, make in systems.items()
    ))  # fmt: skip


def _row(task: str, system: str, make: Callable, truth: torch.Tensor, before: Callable) -> TaskRow:
    try:
        enqueue = make()
        error = relative_error(enqueue().float(), truth)
        if not error <= LIMIT:
            return TaskRow(task, system, None, f"the result is off by {error:.1e}, more than {LIMIT:.0e}")
        return TaskRow(task, system, time_rounds(enqueue, before=before))
    except Exception as error:  # a compiler that is missing, or that cannot do it
        return TaskRow(task, system, None, (str(error).strip() or type(error).__name__).splitlines()[0])


def _tasks(backend) -> dict[str, tuple[torch.Tensor, dict[str, Callable]]]:
    """Return, by task, the truth and the systems. A system is made only when it is called; it then enqueues the task.

    W [intermediate_size, hidden_size] bf16; x and the weight of the norm [hidden_size] fp32, random
    """
    config, device = ModelConfig.from_file(RANDOM_CONFIG), backend.device
    rows, cols, eps = config.intermediate_size, config.hidden_size, config.rms_norm_eps
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(cols, generator=generator).to(device) for _ in range(2))
    W = torch.randn(rows, cols, generator=generator).to(device, torch.bfloat16)
    x_bf16 = x.to(torch.bfloat16)
    defines = kernel_defines(config)

    def ours(name: str, out: torch.Tensor, blocks: int, smem: int, args: tuple) -> Callable:
        kernel = backend.compile(SOURCE, KERNELS, defines)[name]

        def enqueue() -> torch.Tensor:
            backend.launch(kernel, blocks, BLOCK_THREADS, smem, args)
            return out

        return enqueue

    def compiled(function: Callable, *args) -> Callable:
        fast = torch.compile(function)
        return lambda: fast(*args)

    normed, y = (torch.full((size,), torch.nan, device=device) for size in (cols, rows))
    return {
        "rms_norm": (rms_norm(x, weight, eps=eps), {
            "ours": lambda: ours("rms_norm", normed, 1, 0, (x, weight, normed)),
            "torch.compile": lambda: compiled(lambda x, weight: rms_norm(x, weight, eps=eps), x, weight),
        }),
        "matvec": (W.float() @ x, {
            "ours": lambda: ours("matvec", y, -(-rows // (BLOCK_THREADS // 32)), 4 * cols, (W, x, y, rows, cols)),
            "cuBLAS": lambda: lambda: torch.mv(W, x_bf16),
            "torch.compile": lambda: compiled(lambda W, x: W.float() @ x, W, x),
        }),
    }  # fmt: skip
