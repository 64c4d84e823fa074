"""The bytes of each launch, counted on the virtual GPU, and the time of a launch, by CUDA events on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from luce_edu.backends import make_backend
from luce_edu.backends.ledger import Launch
from luce_edu.config import ModelConfig
from luce_edu.machine.clock import Clock
from luce_edu.machine.counters import Traffic
from luce_edu.measure.latency import Quartiles, l2_emptier, time_rounds
from luce_edu.stages.dims import BLOCK_THREADS, kernel_defines
from luce_edu.tables import Tabular

VOCABULARY = 4096  # rows of the head that are run and counted; all of them would take ten seconds
# CPU µs for a PyTorch operation called from Python, without the launch: about 2 for `x * x`, half of it in Python.
# Published by a developer of PyTorch in github.com/pytorch/pytorch/issues/41383.
PYTORCH_US = 2.0


@dataclass(frozen=True)
class LaunchBytes:
    """`launches` launches of one kernel, each of which reads and writes `bytes` bytes, each counted once."""

    kernel: str
    launches: int
    bytes: int

    def us(self, gb_per_s: float) -> float:
        """Return the µs to move these bytes at a bandwidth in GB/s (10^9 bytes)."""
        return self.bytes / (gb_per_s * 1e3)


def count_launch_bytes(config: ModelConfig, *, position: int = 520) -> list[LaunchBytes]:
    """Return the bytes of each launch of one token of stage `per_op`, in order of the first launch of its kind.

    One layer of each kind runs at full width on the virtual GPU, at `position`, and is counted for all of its kind.
    The head is counted on VOCABULARY rows and scaled to all rows.
    Raises what `luce_edu.decoder` raises for a config that the kernels do not support.
    """
    counted = {kind: _count_one_layer(config, kind, position) for kind in dict.fromkeys(config.layer_types)}
    embed, *_, norm, head, argmax = next(iter(counted.values()))
    rows = min(VOCABULARY, config.vocab_size)
    launches = [_size(embed)]
    for kind in config.layer_types:
        launches += [_size(entry) for entry in counted[kind][1:-3]]
    launches += [_size(norm), *(_size(entry, config.vocab_size / rows) for entry in (head, argmax))]
    return [LaunchBytes(kernel, times, size) for (kernel, size), times in Counter(launches).items()]


def _count_one_layer(config: ModelConfig, kind: str, position: int) -> Sequence[Launch]:
    """Return the ledger of one token of a model of one layer with a small vocabulary."""
    from luce_edu.models import Model
    from luce_edu.stages import decoder
    from luce_edu.weights import random_weights

    vocab_size = min(VOCABULARY, config.vocab_size)
    one = replace(config, num_hidden_layers=1, layer_types=(kind,), vocab_size=vocab_size, eos_token_ids=())
    model = Model("one layer", one, random_weights(one), tokenizer=None, folder=None)
    backend = make_backend("host")
    dec = decoder("per_op", model, max_seq_len=position + 1, backend=backend)
    dec.state.position = position  # the cache holds zeros, which does not change the bytes
    dec.step(0)
    return dec.ledger.entries


def _size(entry: Launch, scale: float = 1) -> tuple[str, int]:
    total = sum(entry.traffic.values(), Traffic())
    return entry.kernel, round(scale * (total.distinct_read + total.distinct_write))


def eager_us(operations: int, clock: Clock) -> float:
    """Return the modelled µs of `operations` PyTorch operations that each launch one short kernel.

    The CPU enqueues one after another, and each kernel is assumed to be shorter than that.
    """
    return operations * (PYTORCH_US + clock.launch_us)


@dataclass(frozen=True)
class LaunchTime:
    """µs per launch.

    what  the kernel
    how   of many: "one by one" from Python, or "as a graph" that is replayed; of one: "alone, warm L2" after the same
          launch, or "alone, cold L2" after a write of other data
    """

    what: str
    how: str
    us: Quartiles


@dataclass(repr=False)
class LaunchTimes(Tabular):
    """The result of `measure_launches`, as a table."""

    gpu: str
    launches: int
    times: Sequence[LaunchTime]

    header = ("kernel", "launched", "µs each", "quartiles")

    @property
    def body(self) -> list[list[str]]:
        return [[t.what, t.how, f"{t.us.median:.2f}", f"{t.us.q1:.2f} to {t.us.q3:.2f}"] for t in self.times]

    @property
    def caption(self) -> str:
        return (
            f"{self.gpu}: measured now, by CUDA events around {self.launches} launches back to back with all data in "
            "cache, or around a single launch; median of rounds"
        )


def measure_launches(config: ModelConfig, *, launches: int = 500, rounds: int = 15) -> LaunchTimes:
    """Time a kernel without work, and an RMSNorm of hidden_size floats, on the current GPU.

    The first is `add` of stage `per_op` with no elements. Timed alone, it shows the cost of events and start. With a
    cold L2, code has to be fetched as well as data. Raises ValueError without a GPU that can run our kernels.
    """
    backend = make_backend("cuda")
    module = backend.compile("per_op.cu", ["add", "rms_norm"], kernel_defines(config))
    x, weight, y = (torch.randn(config.hidden_size, device=backend.device) for _ in range(3))
    kernels = {
        "nothing": lambda: backend.launch(module["add"], 1, 32, 0, [x, x, y, 0]),
        f"RMSNorm of {config.hidden_size:,}": lambda: backend.launch(
            module["rms_norm"], 1, BLOCK_THREADS, 0, [x, weight, y]
        ),
    }
    empty_l2 = l2_emptier(backend.device)
    times = []
    for what, launch in kernels.items():

        def one_by_one(launch=launch):
            for _ in range(launches):
                launch()

        one_by_one()  # loads the kernel, as a capture must not load one
        graph = backend.capture(one_by_one)
        for how, enqueue in (("one by one", one_by_one), ("as a graph", lambda graph=graph: backend.replay(graph))):
            # The same work goes before it, so that the GPU is busy while the CPU enqueues the work that is timed.
            us = time_rounds(enqueue, rounds=rounds, each=launches, before=enqueue)
            times.append(LaunchTime(what, how, us))

        def empty_and_run(launch=launch):
            empty_l2()
            launch()

        # Both first empty the L2, so that they differ only in what it holds at the launch.
        for how, before in (("alone, warm L2", empty_and_run), ("alone, cold L2", empty_l2)):
            times.append(LaunchTime(what, how, time_rounds(launch, rounds=rounds, before=before)))
    return LaunchTimes(torch.cuda.get_device_name(), launches, times)
