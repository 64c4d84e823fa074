"""What a launch carries and what it costs: bytes counted on the virtual GPU, times from CUDA events on a GPU."""

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

VOCABULARY = 4096  # rows of the head that are counted; all of them would take ten seconds
# CPU's time for an operation of PyTorch called from Python, without a launch: about 2 µs for `x * x`, half of it
# Python's. Published by a developer of PyTorch in github.com/pytorch/pytorch/issues/41383.
PYTORCH_US = 2.0


@dataclass(frozen=True)
class LaunchBytes:
    """`launches` of one kernel that each touch `bytes` bytes of memory, read and written, everything once."""

    kernel: str
    launches: int
    bytes: int

    def us(self, gb_per_s: float) -> float:
        """Microseconds that these bytes take at a bandwidth in GB/s (10^9 bytes)."""
        return self.bytes / (gb_per_s * 1e3)


def count_launch_bytes(config: ModelConfig, *, position: int = 520) -> list[LaunchBytes]:
    """What each launch of one token of stage `per_op` touches, in the order in which kernel and size first come.

    One layer of each kind runs at full width on the virtual GPU, at `position`, and stands for all of its kind.
    The head is counted on VOCABULARY rows and scaled to all of them.
    Raises what `luce_edu.decoder` raises for a config that kernels cannot serve.
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
    """The ledger of one token of a model that is this one layer, with a narrow vocabulary."""
    from luce_edu.models import Model
    from luce_edu.stages import decoder
    from luce_edu.weights import random_weights

    vocab_size = min(VOCABULARY, config.vocab_size)
    one = replace(config, num_hidden_layers=1, layer_types=(kind,), vocab_size=vocab_size, eos_token_ids=())
    model = Model("one layer", one, random_weights(one), tokenizer=None, folder=None)
    backend = make_backend("host")
    dec = decoder("per_op", model, max_seq_len=position + 1, backend=backend)
    dec.state.position = position  # of a text of zeros: what is in the cache does not change how much is read
    dec.step(0)
    return dec.ledger.entries


def _size(entry: Launch, scale: float = 1) -> tuple[str, int]:
    total = sum(entry.traffic.values(), Traffic())
    return entry.kernel, round(scale * (total.distinct_read + total.distinct_write))


def eager_us(operations: int, clock: Clock) -> float:
    """Microseconds of so many operations of PyTorch that each launch one short kernel; modelled.

    The CPU asks for one after another and sets the pace. What a kernel itself takes is taken to hide behind that.
    """
    return operations * (PYTORCH_US + clock.launch_us)


@dataclass(frozen=True)
class LaunchTime:
    """Microseconds a launch.

    what  the kernel
    how   many, "one by one" from Python or "as a graph", recorded once and replayed as one request; or one "alone",
          with "warm L2", where it has just run, or "cold L2", which was filled with something else
    """

    what: str
    how: str
    us: Quartiles


@dataclass(repr=False)
class LaunchTimes(Tabular):
    """Result of `measure_launches`."""

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
            f"{self.gpu}: measured now, with CUDA events around {self.launches} launches back to back, all data in "
            "cache, or around one alone; median of rounds"
        )


def measure_launches(config: ModelConfig, *, launches: int = 500, rounds: int = 15) -> LaunchTimes:
    """Time a kernel that has nothing to do, and one RMSNorm of hidden_size floats, on the GPU that is there.

    The first is stage `per_op`'s `add` of no elements: it starts, sees that there is none for it, and ends. Alone, it
    shows how much of a time is the events' and the start's; a cold L2 has to fetch code as well as data.
    Raises ValueError where there is no GPU that can serve.
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

        one_by_one()  # loads the kernel, which a capture must not
        graph = backend.capture(one_by_one)
        for how, enqueue in (("one by one", one_by_one), ("as a graph", lambda graph=graph: backend.replay(graph))):
            # Behind itself: while the GPU is at it the CPU asks for the graph that is timed.
            us = time_rounds(enqueue, rounds=rounds, each=launches, before=enqueue)
            times.append(LaunchTime(what, how, us))

        def empty_and_run(launch=launch):
            empty_l2()
            launch()

        # Both empty L2 first, so that they differ in nothing but what it holds when the launch comes.
        for how, before in (("alone, warm L2", empty_and_run), ("alone, cold L2", empty_l2)):
            times.append(LaunchTime(what, how, time_rounds(launch, rounds=rounds, before=before)))
    return LaunchTimes(torch.cuda.get_device_name(), launches, times)
