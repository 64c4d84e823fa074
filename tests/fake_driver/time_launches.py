"""Microseconds of Python for a launch, on this machine's CPU: the driver is the fake one and returns at once.

python tests/fake_driver/build.py FOLDER; LD_LIBRARY_PATH=FOLDER python tests/fake_driver/time_launches.py
What PyTorch takes to say which stream is current is not in it, since here a stand-in says so.
"""

import statistics
import time

import torch
from gpu import FakeGpu

from luce_edu.backends import make_backend
from luce_edu.models import load_model
from luce_edu.stages.per_layer import PerLayerDecoder
from luce_edu.stages.per_op import PerOpDecoder

torch.set_num_threads(1)
with FakeGpu() as gpu:
    backend = make_backend("cuda")
gpu.driver.fake_quiet(1)
backend.device = torch.device("cpu")  # plain tensors from here on, as the stand-in's are slow
model = load_model("tiny")


def show(what: str, run, launches: int) -> None:
    times = []
    for _ in range(320):
        backend.ledger.clear()
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e6 / launches)
    times = sorted(times[20:])
    print(f"{what:<24} {launches:>4} launches, {statistics.median(times):5.2f} us each, least {times[0]:5.2f}")


per_layer = PerLayerDecoder(model, device="cpu", max_seq_len=64, backend=backend)
per_op = PerOpDecoder(model, device="cpu", max_seq_len=64, backend=backend)
per_op._step(0)
count = 2 + 5 * model.config.num_hidden_layers
show("per_op", lambda: per_op._step(None), len(backend.ledger))
show("per_layer, unprepared", per_layer._enqueue, count)
show("per_layer", per_layer._run_step, count)
