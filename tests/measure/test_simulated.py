"""The simulated GPU takes the given times, and the functions of `latency` measure them."""

import statistics

import pytest
import torch

from luce_edu.measure import latency
from luce_edu.measure.simulated import SimulatedGPU


def test_the_cpu_has_launched_everything_before_the_gpu_is_done():
    gpu = SimulatedGPU(ask_us=2.0)
    for _ in range(10):
        gpu.launch(50.0)
    assert (gpu.now(), gpu.gpu) == (20.0, 502.0)
    gpu.wait()
    assert gpu.now() == 502.0
    gpu.wait()
    assert gpu.now() == 502.0


def test_a_full_queue_holds_the_cpu_back_until_the_oldest_launch_has_ended():
    gpu = SimulatedGPU(ask_us=1.0, depth=4)
    for _ in range(4):
        gpu.launch(100.0)
    assert gpu.now() == 4.0
    gpu.launch(100.0)
    assert gpu.now() == 102.0  # the first ended at 101
    gpu.wait()
    gpu.launch(100.0)
    assert gpu.now() == 502.0  # the queue is empty


def test_a_gpu_that_is_faster_waits_for_its_cpu():
    gpu = SimulatedGPU(ask_us=5.0)
    for _ in range(100):
        gpu.launch(1.0)
    gpu.wait()
    assert gpu.now() == 501.0


def test_each_kernel_is_loaded_once():
    gpu = SimulatedGPU(ask_us=1.0, load_us=1000.0)
    for kernel in ("a", "a", "b", "a"):
        gpu.launch(1.0, kernel)
    assert gpu.now() == 2004.0


def test_the_pace_is_that_of_the_time_at_which_a_launch_starts():
    gpu = SimulatedGPU(ask_us=1.0, pace=lambda us: 2.0 if us < 10 else 1.0)
    gpu.launch(20.0)
    gpu.launch(20.0)
    assert gpu.gpu == 1.0 + 40.0 + 20.0


@pytest.mark.parametrize("launch_us, step_us", [(15.0, 1830.0), (1.0, 183.0)])
def test_time_steps_finds_what_the_gpu_takes_and_what_the_cpu_asks(launch_us, step_us):
    gpu = SimulatedGPU(ask_us=1.5, load_us=30_000.0)
    with gpu.as_cuda():
        between, asked = latency.time_steps(lambda: [gpu.launch(launch_us) for _ in range(122)])
    assert statistics.median(between) == pytest.approx(step_us)
    assert asked == pytest.approx(183.0)


def test_time_rounds_does_not_count_the_rounds_that_warm_up():
    gpu = SimulatedGPU(ask_us=1.0, load_us=30_000.0, pace=lambda us: 3.0 if us < 30_500 else 1.0)
    with gpu.as_cuda():
        quartiles = latency.time_rounds(lambda: gpu.launch(200.0))
    assert (quartiles.q1, quartiles.median, quartiles.q3) == pytest.approx((201.0, 201.0, 201.0))


def test_outside_its_context_torch_is_as_it_was():
    event, synchronize, clock = torch.cuda.Event, torch.cuda.synchronize, latency.time
    with pytest.raises(RuntimeError), SimulatedGPU().as_cuda():
        assert torch.cuda.Event is not event
        raise RuntimeError
    assert (torch.cuda.Event, torch.cuda.synchronize, latency.time) == (event, synchronize, clock)
