"""A count taken at reduced width is the count of the model itself."""

from dataclasses import replace

import pytest

import luce_edu
from luce_edu.config import ModelConfig
from luce_edu.errors import NotMeasured
from luce_edu.measure.launches import count_launch_calls, count_launches, narrow, profiled_launches
from luce_edu.models import RANDOM_CONFIG, load_model
from luce_edu.stages import KERNEL_STAGES


def test_counts_at_reduced_width_equal_those_of_tiny():
    tiny = load_model("tiny")
    counts = count_launches(tiny.config)
    for stage in luce_edu.STAGES:
        dec = luce_edu.decoder(stage, tiny, "host", max_seq_len=4)
        dec.step(1)
        dec.step(2)
        assert (counts[stage].launches, counts[stage].barriers) == (dec.launches, dec.barriers), stage


def test_counts_follow_the_layers():
    big = ModelConfig.from_file(RANDOM_CONFIG)
    half = replace(big, num_hidden_layers=12, layer_types=big.layer_types[:12])
    counts = [count_launches(config, ["per_layer"])["per_layer"].launches for config in (big, half)]
    assert counts == [2 + 5 * 24, 2 + 5 * 12]


def test_narrow_keeps_layers_and_heads():
    big = ModelConfig.from_file(RANDOM_CONFIG)
    small = narrow(big)
    for name in ("layer_types", "num_attention_heads", "num_key_value_heads", "linear_num_value_heads"):
        assert getattr(small, name) == getattr(big, name)


@pytest.mark.full
def test_counts_at_reduced_width_equal_those_of_random_08b():
    model = load_model("random-0.8b")
    counts = count_launches(model.config, KERNEL_STAGES)
    for stage in KERNEL_STAGES:
        dec = luce_edu.decoder(stage, model, "host", max_seq_len=2)
        dec.step(1)
        assert counts[stage].launches == dec.launches, stage


# Names in PyTorch's profile of a step: operations, calls of CUDA, kernels and copies on the GPU.
PROFILE = (
    "aten::mm", "cudaLaunchKernel", "void gemv_kernel<float>(...)", "cudaMemcpyAsync", "Memcpy HtoD (Pinned -> Device)",
    "cuLaunchKernel", "cuLaunchKernelEx", "cudaLaunchKernelExC", "cudaLaunchCooperativeKernel", "cudaGraphLaunch",
    "cudaStreamSynchronize", "cudaFuncSetAttribute", "cudaLaunchHostFunc", "cudaOccupancyMaxActiveBlocks",
)  # fmt: skip


def test_launches_of_a_profile_are_calls_that_start_kernels_or_graphs():
    assert count_launch_calls(PROFILE) == 6


@pytest.mark.planted
@pytest.mark.parametrize("names", [(), ("aten::mm", "cudaMemcpyAsync"), ("cudaLaunchHostFunc", "my cudaLaunchKernel")])
def test_a_profile_without_a_launch_is_no_count_of_zero(names):
    with pytest.raises(NotMeasured, match="launch"):
        count_launch_calls(names)


def test_a_step_is_profiled_once_and_waited_for_before_and_after(monkeypatch):
    import torch

    done = []

    class Event:
        def __init__(self, name):
            self.name = name

    class Profile:
        def __init__(self, activities):
            assert set(activities) == {torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA}

        def __enter__(self):
            done.append("begin")
            return self

        def __exit__(self, *error):
            done.append("end")

        def events(self):
            return [Event(name) for name in PROFILE]

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("wait"))
    assert profiled_launches(lambda: done.append("step")) == 6
    assert done == ["wait", "begin", "step", "wait", "end"]
