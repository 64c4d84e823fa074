"""Time two tasks on a GPU, RMSNorm and a matrix-vector product: our kernels, cuBLAS, and what torch.compile makes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from luce_edu.backends import make_backend
from luce_edu.config import ModelConfig
from luce_edu.measure.bench.bench import reason
from luce_edu.measure.latency import l2_emptier, time_rounds
from luce_edu.measure.records.rows import TaskRow, Tasks
from luce_edu.models import RANDOM_CONFIG
from luce_edu.reference.rms_norm import rms_norm
from luce_edu.stages.dims import BLOCK_THREADS, kernel_defines
from luce_edu.verification import relative_error

SOURCE, KERNELS = "per_op.cu", ("rms_norm", "matvec")
OURS, CUBLAS, COMPILED = "ours", "cuBLAS", "torch.compile"
LIMITS = {OURS: 1e-5, CUBLAS: 1e-2, COMPILED: 1e-4}  # cuBLAS gets x in bf16, and rounds the result to bf16


def measure_tasks(backend=None) -> Tasks:
    """Check each system against PyTorch in fp32, then time it.

    Another system than ours that fails, such as torch.compile without a compiler, becomes a row with its reason.
    Raises ValueError without a GPU that runs our kernels, and AssertionError if one of ours is wrong.
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
        if not error <= LIMITS[system]:
            raise AssertionError(f"{task} by {system} is off by {error:.1e}, more than {LIMITS[system]:.0e}")
        return TaskRow(task, system, time_rounds(enqueue, before=before))
    except Exception as error:
        if system == OURS:
            raise
        return TaskRow(task, system, None, reason(error))


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
            OURS: lambda: ours("rms_norm", normed, 1, 0, (x, weight, normed)),
            COMPILED: lambda: compiled(lambda x, weight: rms_norm(x, weight, eps=eps), x, weight),
        }),
        "matvec": (W.float() @ x, {
            OURS: lambda: ours("matvec", y, -(-rows // (BLOCK_THREADS // 32)), 4 * cols, (W, x, y, rows, cols)),
            CUBLAS: lambda: lambda: torch.mv(W, x_bf16),
            COMPILED: lambda: compiled(lambda W, x: W.float() @ x, W, x),
        }),
    }  # fmt: skip
