"""The cuda backend: compile csrc/ at run time for this machine's GPU, and launch by cuda-core on PyTorch's stream."""

from __future__ import annotations

import ctypes
import functools
import importlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy
import torch

from luce_edu.backends.devices import OLDEST_CAPABILITY, torch_lacks
from luce_edu.backends.ledger import PRODUCT, Launch, Ledger, check_product, graph_launch
from luce_edu.errors import CaptureError, CompileError, KernelError, LaunchError
from luce_edu.machine.cubin import Resources, compile_cubin
from luce_edu.machine.module import Module
from luce_edu.weights import as_one_matrix

DEPENDENT_LAUNCH_CAPABILITY = (9, 0)  # from Hopper on, a kernel may start before the one before it has ended
UNASKED_SHARED = 48 * 1024  # bytes of shared memory per block; a kernel must ask the driver for more


@dataclass(frozen=True, eq=False)
class CudaKernel:
    """A kernel on the GPU; `resources` is the compiler's report, `arguments` the size of each parameter in bytes."""

    name: str
    resources: Resources
    handle: object
    arguments: tuple[int, ...] | None  # None if the driver is too old to report them


@dataclass(frozen=True)
class CudaGraph:
    """A captured graph, and the launches of one replay."""

    graph: object
    launches: tuple[Launch, ...]


class CudaBackend:
    """Run kernels on PyTorch's current CUDA device and stream.

    Raises ValueError if there is no GPU, or if it is older than Turing or too new for this PyTorch; CompileError if
    cuda-core is missing or older than 1.0.
    """

    name = "cuda"
    lazy_loading = True

    def __init__(self, *, csrc_dir: Path | None = None):
        if not torch.cuda.is_available():
            raise ValueError(
                "device 'cuda': PyTorch sees no GPU here; use device='host', or see `luce-edu doctor`"
            )
        capability = torch.cuda.get_device_capability()
        if capability < OLDEST_CAPABILITY:
            raise ValueError(
                f"device 'cuda': {torch.cuda.get_device_name()} has compute capability "
                f"{capability[0]}.{capability[1]}; Turing (7.5) or newer is needed"
            )
        if problem := torch_lacks(capability):
            raise ValueError(f"device 'cuda': {torch.cuda.get_device_name()}: {problem}")
        try:
            core = importlib.import_module("cuda.core")
        except ImportError as error:
            raise CompileError(f"cuda-core is not installed ({error}); pip install 'cuda-core[cu13]'") from None

        if not hasattr(getattr(core, "LaunchConfig", None), "is_cooperative"):  # named cooperative_launch before
            raise CompileError(
                f"cuda-core {version('cuda-core')} is too old; 1.0 or newer is needed: "
                "pip install 'cuda-core[cu13]>=1.0'"
            )
        self.device = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=self.device)  # makes PyTorch create the primary context, which cuda-core then shares
        self._core = core
        self._device = core.Device(self.device.index)
        self._device.set_current()
        self.capability = major, minor = capability
        suffix = "a" if major in (9, 10) else ""
        self.arch = f"sm_{major}{minor}{suffix}"
        # cuda-core supports dependent launch from 1.2 on; everything else works without it.
        able = hasattr(core.LaunchConfig, "programmatic_stream_serialization")
        self.dependent_launch = able and capability >= DEPENDENT_LAUNCH_CAPABILITY
        self.shared_memory_per_block = self._device.properties.max_shared_memory_per_block_optin
        self.csrc_dir = csrc_dir
        self.ledger = Ledger()
        self._streams: dict[int, object] = {}  # cuda-core's, by their handle
        self._configs: dict[tuple, tuple[object, Launch]] = {}
        self._asked_shared: dict[CudaKernel, int] = {}
        self._preparing: list[tuple] | None = None

    def compile(self, source: str, kernels: Sequence[str], defines: Mapping[str, object]) -> Module[CudaKernel]:
        """Compile csrc/`source` for this GPU and load it; see `compile_cubin` for errors.

        Raises KernelError if the driver cannot load it.
        """
        binary = compile_cubin(source, kernels, defines, self.arch, csrc=self.csrc_dir)
        loaded = {}
        with _naming(source):
            code = self._core.ObjectCode.from_cubin(binary.cubin)
            for name in kernels:
                handle = code.get_kernel(name)
                try:  # once, and not at every launch, because it takes a driver call per argument
                    arguments = tuple(argument.size for argument in handle.arguments_info)
                except NotImplementedError:  # drivers before CUDA 12.4
                    arguments = None
                loaded[name] = CudaKernel(name, binary.resources[name], handle, arguments)
        return Module(source, loaded)

    def name_tensors(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Do nothing: a GPU does not check which memory a kernel accesses."""

    def launch(
        self, kernel: CudaKernel, grid, block, smem: int, args, cooperative: bool = False, dependent: bool = False
    ) -> None:
        """Enqueue `kernel` on the current stream. Tensors are passed as pointers, ints as 32 bits, floats as float.

        smem       dynamic shared memory, bytes; with the kernel's static memory at most `shared_memory_per_block`
        dependent  the kernel may start before the one before it has ended; it calls wait_for_predecessor()
        Raises LaunchError, before anything runs, for sizes or arguments that do not fit and for a tensor that is on
        another device or not contiguous; KernelError if the driver refuses, for instance after a kernel that failed.
        """
        device, sizes = self.device, kernel.arguments
        if sizes is None:
            sizes = (None,) * len(args)
        elif len(args) != len(sizes):
            raise LaunchError(f"{kernel.name}: expected {len(sizes)} arguments, got {len(args)}")
        # cuda-core passes a plain int as a pointer. This line takes most of Python's time in a launch.
        values = [
            value.data_ptr()
            if isinstance(value, torch.Tensor) and size != 4 and value.device == device and value.is_contiguous()
            else _number(kernel.name, i, value, size, device)
            for i, (value, size) in enumerate(zip(args, sizes, strict=True))
        ]
        config, entry = self._configured(kernel, _triple(grid), _triple(block), smem, cooperative, dependent)
        if self._preparing is not None:
            self._preparing.append((config, kernel, values, entry))
        else:
            self._start(self._current_stream(), config, kernel, values, entry)

    def shared_with_host(self, count: int) -> torch.Tensor:
        """Return int32 zeros in pinned memory, which a kernel and the host can read and write at the same time."""
        return torch.zeros(count, dtype=torch.int32, pin_memory=True)

    def start(self, enqueue: Callable[[], None]) -> _Started:
        """Enqueue launches, and return at once, so that the host can follow them."""
        enqueue()
        return _Started(torch.cuda.current_stream(self.device).record_event())

    def prepare(self, enqueue: Callable[[], None]) -> tuple:
        """Check and convert the launches of `enqueue` once, without running them, for `run` to start them many times.

        `enqueue` may launch kernels only. Arguments stay the same, and the tensors must keep their addresses.
        """
        self._preparing = []
        try:
            enqueue()
            return tuple(self._preparing)
        finally:
            self._preparing = None

    def run(self, prepared: tuple) -> None:
        """Enqueue prepared launches on the current stream, one by one. Errors of the driver are those of `launch`."""
        stream = self._current_stream()
        for launch in prepared:
            self._start(stream, *launch)

    def _start(self, stream, config, kernel: CudaKernel, values: list, entry: Launch) -> None:
        try:
            self._core.launch(stream, config, kernel.handle, *values)
        except ValueError as error:  # a cooperative grid that is too large
            raise LaunchError(f"{kernel.name}: {error}") from None
        except Exception as error:  # cuda-core keeps its CUDAError in a private module
            raise _driver_error(kernel.name, error) from error
        self.ledger.record(entry)

    def _configured(self, *how):
        """Return cuda-core's configuration and the ledger's line for a kernel, grid, block, smem and flags."""
        if how not in self._configs:
            kernel, grid, block, smem, cooperative, dependent = how
            name = kernel.name
            self._ask_for_shared(kernel, smem)
            flags = {"programmatic_stream_serialization": True} if dependent else {}
            try:
                config = self._core.LaunchConfig(
                    grid=grid, block=block, shmem_size=smem, is_cooperative=cooperative, **flags
                )
            except (TypeError, ValueError) as error:
                raise LaunchError(f"{name}: {error}") from None
            self._configs[how] = config, Launch(name, grid, block, smem, cooperative)
        return self._configs[how]

    def _ask_for_shared(self, kernel: CudaKernel, smem: int) -> None:
        """Let blocks of `kernel` have `smem` bytes of dynamic shared memory. Raises LaunchError beyond the limit."""
        static = kernel.resources.shared_bytes
        if not 0 <= smem <= self.shared_memory_per_block - static:
            raise LaunchError(
                f"{kernel.name}: {smem + static} bytes of shared memory per block ({static} static, {smem} dynamic); "
                f"this GPU has {self.shared_memory_per_block}"
            )
        if smem + static > UNASKED_SHARED and smem > self._asked_shared.get(kernel, 0):
            from cuda.bindings import driver  # cuda-core 1.2 reads this attribute but cannot set it

            attribute = driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            (refused,) = driver.cuKernelSetAttribute(attribute, smem, kernel.handle.handle, self.device.index)
            if refused:
                raise KernelError(f"{kernel.name}: {refused.name} for {smem} bytes of dynamic shared memory")
            self._asked_shared[kernel] = smem

    def _current_stream(self):
        """Return PyTorch's current stream as a stream of cuda-core."""
        handle = torch.cuda.current_stream(self.device).cuda_stream
        if handle not in self._streams:
            self._streams[handle] = self._core.Stream.from_handle(handle)
        return self._streams[handle]

    def matmul(self, x, weights: Sequence, out) -> None:
        """Enqueue out = x @ weights^T by cuBLAS, for several weights with their outputs side by side.

        x [rows, inputs], each of weights [outputs, inputs], out [rows, all outputs]; bf16, contiguous; sums in fp32.
        It is one product if the weights are side by side in memory, as they are on a GPU. Raises LaunchError before
        anything runs.
        """
        check_product(x, weights, out)
        if self._preparing is not None:
            raise LaunchError("matmul: only kernels can be prepared")
        together = as_one_matrix(weights)
        parts = [(together, out)] if together is not None else zip(
            weights, out.split([len(weight) for weight in weights], dim=1), strict=True
        )  # fmt: skip
        with _sums_in_fp32():
            for weight, part in parts:
                torch.mm(x, weight.T, out=part)
                self.ledger.record(PRODUCT)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """Capture the launches of `enqueue`, without running them, to be replayed as one launch with these arguments.

        Kernels must have been loaded before, by the occupancy query or a launch, because a capture does not allow
        loading. `enqueue` must not allocate memory for its results: graphs are replayed in any order, and share one
        pool of memory, which holds cuBLAS's workspace. Raises CaptureError; PyTorch's stream and the ledger are then
        as before.
        """
        current, failed = torch.cuda.current_stream(self.device), None
        before, self.ledger = self.ledger, Ledger()
        try:
            graph = torch.cuda.CUDAGraph()
            stream = _capture_stream(self.device)
            # "thread_local": other threads may allocate memory meanwhile.
            with torch.cuda.graph(graph, pool=_graph_pool(), stream=stream, capture_error_mode="thread_local"):
                try:
                    enqueue()
                except RuntimeError as error:
                    failed = error
                    raise
            _kept_graph(self.device).append(graph)
            return CudaGraph(graph, tuple(self.ledger.entries))
        except RuntimeError as error:
            first = failed or error  # if a launch failed, the end of the capture raises an error of its own
            reason = (str(first) or type(first).__name__).splitlines()[0]
            raise CaptureError(f"a CUDA graph could not be captured: {reason}") from error
        finally:
            torch.cuda.set_stream(current)  # if a capture fails at its end, PyTorch stays on the capture's stream
            self.ledger = before

    def replay(self, graph: CudaGraph) -> None:
        """Enqueue a graph on the current stream, as one line of the ledger."""
        graph.graph.replay()
        self.ledger.record(graph_launch(graph.launches))

    @property
    def sm_count(self) -> int:
        """Multiprocessors of this GPU."""
        return self._device.properties.multiprocessor_count

    def max_resident_blocks(self, kernel: CudaKernel, block: int, smem: int) -> int:
        """Return how many blocks can be on the GPU at the same time, which is the largest cooperative grid."""
        self._ask_for_shared(kernel, smem)
        with _naming(kernel.name):
            per_sm = kernel.handle.occupancy.max_active_blocks_per_multiprocessor(block, smem)
            return per_sm * self._device.properties.multiprocessor_count

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class _Started:
    """Launches under way: `is_set()` says whether they have ended, `wait()` waits for them."""

    event: object

    def is_set(self) -> bool:
        return self.event.query()

    def wait(self) -> None:
        self.event.synchronize()


@functools.cache
def _capture_stream(device):
    """Return the stream of all captures on a device. It is one, because cuBLAS keeps a workspace for every stream."""
    return torch.cuda.Stream(device)


@functools.cache
def _kept_graph(device) -> deque:
    """Keep the newest graph alive, because PyTorch refuses captures into a pool whose graphs have all been freed.

    The pool lives longer, as it holds cuBLAS's workspace for the stream of all captures.
    """
    return deque(maxlen=1)


@functools.cache
def _graph_pool():
    return torch.cuda.graph_pool_handle()


@contextmanager
def _sums_in_fp32():
    """Make cuBLAS add the parts of a split sum in fp32; by default it may add them in bf16."""
    setting = torch.backends.cuda.matmul
    allowed = setting.allow_bf16_reduced_precision_reduction
    # Newer PyTorch has two values, and assigning only one would reset the other.
    split_k = getattr(setting, "allow_bf16_reduced_precision_reduction_split_k", None)
    setting.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        setting.allow_bf16_reduced_precision_reduction = allowed if split_k is None else (allowed, split_k)


def _driver_error(what: str, error: Exception) -> KernelError:
    """Make an error from the driver's first sentence, with what it was about."""
    said = str(error).partition(". ")[0].splitlines()[0] if str(error) else type(error).__name__
    lost = "process must be terminated" in str(error)  # cuda-core's text if an earlier kernel broke the context
    hint = "; an earlier kernel failed, and Python must be restarted before the GPU can be used again" if lost else ""
    return KernelError(f"{what}: {said}{hint}")


@contextmanager
def _naming(what: str):
    """Turn errors of cuda-core into ours, with what they are about."""
    try:
        yield
    except Exception as error:
        raise _driver_error(what, error) from error


def _triple(size) -> tuple[int, int, int]:
    if isinstance(size, int):
        return size, 1, 1
    size = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    return size + (1,) * (3 - len(size))


def _number(kernel: str, index: int, value, size: int | None, device):
    """Convert an argument that is not a pointer, or raise LaunchError."""
    where = f"{kernel}: argument {index} must be"
    if isinstance(value, torch.Tensor) and size != 4:
        raise LaunchError(
            f"{where} a contiguous tensor on {device}, got one on {value.device}"
            + ("" if value.is_contiguous() else ", not contiguous")
        )
    if size == 8:
        raise LaunchError(f"{where} a contiguous tensor on {device}, got {type(value).__name__}")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise LaunchError(f"{where} {'an' if size == 4 else 'a tensor,'} int or float, got {type(value).__name__}")
    if isinstance(value, float):
        return ctypes.c_float(value)
    if not -(2**31) <= value < 2**32:
        raise LaunchError(f"{where} an int of 32 bits, got {value}")
    # cuda-core checks for NumPy's numbers first, which saves half a microsecond compared with ctypes.
    return numpy.int32(value) if value < 2**31 else numpy.uint32(value)
