"""A stand-in for a GPU where PyTorch is a CPU build: tensors in the CPU's memory whose device is "cuda:0".

With the fake driver in place of NVIDIA's, the cuda backend and the stages then make the same calls of the driver as on
a GPU. No kernel runs.
"""

from __future__ import annotations

import ctypes
import json
from contextlib import contextmanager
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

DEVICE = torch.device("cuda", 0)


class OnGpu(torch.Tensor):
    """A tensor whose device is the GPU; its address is in the CPU's memory."""

    device = property(lambda self: DEVICE)

    def cpu(self):
        return self.as_subclass(torch.Tensor)


class _PlaceOnGpu(TorchFunctionMode):
    """A tensor that is created on a CUDA device, or moved to one, becomes an OnGpu."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        to_gpu = any(map(_is_cuda, [*args, kwargs.get("device")]))
        if function is torch.device or not to_gpu:
            return function(*args, **kwargs)
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        made = function(*("cpu" if _is_cuda(arg) else arg for arg in args), **kwargs)
        return made.as_subclass(OnGpu)


def _is_cuda(value) -> bool:
    return isinstance(value, (str, torch.device)) and str(value).startswith("cuda")


class FakeGpu:
    """Replaces functions of torch.cuda for the rest of the process. As a context, it also makes tensors OnGpu.

    The driver is the one in LD_LIBRARY_PATH.
    stream    the handle of PyTorch's current stream
    captured  the handles of the captures' streams since the last clear();  replayed  the number of replays since then
    """

    def __init__(self):
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.driver.fake_log.restype = self.driver.fake_calls.restype = ctypes.c_char_p
        self.streams = 0  # made so far
        self.clear()
        self._mode = _PlaceOnGpu()

    def set(self, name: str, value: int) -> None:
        """What the device can do, or what the next call of a driver's function returns (driver.cc)."""
        self.driver.fake_set(name.encode(), value)

    def clear(self) -> None:
        """Forget what was launched, captured and replayed; the stream is the first again."""
        self.driver.fake_clear()
        self.stream, self.captured, self.replayed = 0x5000, [], 0

    def launches(self) -> list[SimpleNamespace]:
        lines = self.driver.fake_log().decode().splitlines()
        return [SimpleNamespace(**json.loads(line)) for line in lines]

    def calls(self) -> list[str]:
        return self.driver.fake_calls().decode().split()

    def __enter__(self):
        torch.cuda.is_available = lambda: True
        torch.cuda.current_device = lambda: 0
        torch.cuda.get_device_capability = lambda *_: (9, 0)
        torch.cuda.get_device_name = lambda *_: "Fake GPU"
        torch.cuda.current_stream = lambda *_: SimpleNamespace(cuda_stream=self.stream)
        torch.cuda.set_stream = lambda stream: setattr(self, "stream", stream.cuda_stream)
        torch.cuda.Stream = self._new_stream
        torch.cuda.graph_pool_handle = lambda: (0, 1)
        torch.cuda.CUDAGraph = lambda: SimpleNamespace(replay=self._replay)
        torch.cuda.graph = self._capture
        self._mode.__enter__()
        return self

    def _new_stream(self, device):
        self.streams += 1
        return SimpleNamespace(cuda_stream=0x100000 * self.streams)

    @contextmanager
    def _capture(self, graph, *, pool, stream, capture_error_mode):
        """As in PyTorch: where the end of a capture fails, its stream stays current, and this error is raised."""
        self.captured.append(stream.cuda_stream)
        self.stream, before = stream.cuda_stream, self.stream
        self.set("capturing", 1)
        try:
            yield
        except Exception:
            raise RuntimeError("operation failed due to a previous error during capture")  # noqa: B904
        finally:
            self.set("capturing", 0)
        self.stream = before

    def _replay(self):
        self.replayed += 1

    def __exit__(self, *error):
        self._mode.__exit__(*error)
