"""The cuda backend: csrc/ compiled at run time by NVRTC, for the GPU that is there or for any other.

Compiling needs neither a GPU nor a driver, so the resource report (registers, spills, shared memory) of every
kernel can be had on a laptop. Launching goes through cuda-core onto PyTorch's current stream.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import io
import json
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from luce_edu.backends import OLDEST_CAPABILITY, cache_dir, csrc_dir
from luce_edu.backends.ledger import PRODUCT, Launch, Ledger, check_product, graph_launch
from luce_edu.backends.module import Module, unusable_cache
from luce_edu.errors import CaptureError, CompileError, LaunchError
from luce_edu.weights import as_one_matrix

# Turing to Blackwell. What an architecture lacks is refused by name, never silently emulated.
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120")
DEPENDENT_LAUNCH_CAPABILITY = (9, 0)  # Hopper: a kernel may start while the one before it ends
MAX_DYNAMIC_SHARED = 48 * 1024  # bytes a block may have without opting in to more


@dataclass(frozen=True)
class Resources:
    """What ptxas says of one kernel: registers a thread; stack and spills in bytes a thread; static shared bytes."""

    registers: int
    stack_bytes: int
    spill_store_bytes: int
    spill_load_bytes: int
    shared_bytes: int


@dataclass(frozen=True)
class Binary:
    """Machine code for one architecture, and its resource report by kernel."""

    arch: str
    cubin: bytes
    resources: dict[str, Resources]


def compile_cubin(
    source: str, kernels: Sequence[str], defines: Mapping[str, object], arch: str, *, csrc: Path | None = None
) -> Binary:
    """Compile csrc/`source` for `arch` (such as 'sm_86') with NVRTC; needs no GPU. Cached on disk.

    Raises CompileError with the compiler's log, or when a kernel named in `kernels` is not in the source.
    """
    csrc = csrc_dir() if csrc is None else Path(csrc)
    cached = cache_dir() / "cuda" / (_key(csrc, source, defines, arch) + ".json")
    try:
        stored = json.loads(cached.read_text())
        resources = {name: Resources(**fields) for name, fields in stored["resources"].items()}
        binary = Binary(arch, bytes.fromhex(stored["cubin"]), resources)
    except (OSError, ValueError, KeyError, TypeError):  # no entry, or a damaged one: compile again
        binary = _nvrtc(csrc, source, defines, arch)
        _store(cached, binary)
    missing = [name for name in kernels if name not in binary.resources]
    if missing:
        raise CompileError(
            f"{source}: no kernel named {', '.join(missing)}; it has {', '.join(binary.resources)}"
        )
    return binary


def _nvrtc(csrc: Path, source: str, defines: Mapping[str, object], arch: str) -> Binary:
    try:
        from cuda.core import Program, ProgramOptions
    except ImportError as error:
        raise CompileError(f"cuda-core is not installed ({error}); pip install 'cuda-core[cu13]'") from None
    path = csrc / source
    if not path.is_file():
        raise CompileError(f"{source}: no such file in {csrc.name}/")
    log = io.StringIO()
    options = ProgramOptions(
        name=source,
        arch=arch,
        std="c++17",
        include_path=[str(csrc)],
        define_macro=[(name, str(value)) for name, value in defines.items()] or None,
        ptxas_options=["-v"],
        lineinfo=True,
    )
    try:
        program = Program(path.read_text(encoding="utf-8"), "c++", options)
        code = program.compile("cubin", logs=log)
    except Exception as error:  # cuda-core keeps its NVRTCError in a private module
        text = f"{log.getvalue()}\n{error}".replace(f"{csrc}{os.sep}", "")
        text = text.strip(" \n\0")  # NVRTC ends its log with a zero
        raise CompileError(f"{source}: NVRTC refused it for {arch}", text) from None
    return Binary(arch, bytes(code.code), parse_ptxas(log.getvalue()))


def parse_ptxas(log: str) -> dict[str, Resources]:
    """Read the report of `ptxas -v`: one Resources for each kernel it compiled."""
    report: dict[str, Resources] = {}
    pattern = re.compile(
        r"Function properties for (\w+)\n[^\n]*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        # A device function that is not inlined has properties too, and no registers of its own.
        r"(\d+) bytes spill loads(?:(?!Function properties).)*?Used (\d+) registers([^\n]*)",
        re.DOTALL,
    )
    for name, stack, stores, loads, registers, rest in pattern.findall(log):
        shared = re.search(r"(\d+) bytes smem", rest)
        report[name] = Resources(
            int(registers), int(stack), int(stores), int(loads), int(shared[1]) if shared else 0
        )
    return report


def _key(csrc: Path, source: str, defines: Mapping[str, object], arch: str) -> str:
    """A hash of all that decides the machine code: every source that could be included, options, compiler."""
    from importlib.metadata import PackageNotFoundError, version

    digest = hashlib.sha256(repr((source, sorted(defines.items()), arch)).encode())
    for package in ("cuda-core", "nvidia-cuda-nvrtc", "nvidia-cuda-nvrtc-cu12"):
        try:
            digest.update(f"{package} {version(package)}".encode())
        except PackageNotFoundError:
            continue
    for path in sorted(csrc.rglob("*")):
        if not path.is_file() or path.relative_to(csrc).parts[0] == "host":  # of the emulator alone
            continue
        digest.update(str(path.relative_to(csrc)).encode() + path.read_bytes())
    return digest.hexdigest()[:32]


def _store(path: Path, binary: Binary) -> None:
    """Write a cache entry so that no reader ever sees half of it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unusable_cache(error) from None
    resources = {name: asdict(fields) for name, fields in binary.resources.items()}
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump({"cubin": binary.cubin.hex(), "resources": resources}, file)
    os.replace(file.name, path)


@dataclass(frozen=True)
class CudaKernel:
    """A kernel loaded on the GPU; `resources` is the compiler's report, `arguments` how many it takes."""

    name: str
    resources: Resources
    handle: object
    arguments: int | None  # None where the driver cannot say


@dataclass(frozen=True)
class CudaGraph:
    """A captured graph, and what one replay of it launches."""

    graph: object
    launches: tuple[Launch, ...]


class CudaBackend:
    """Runs kernels on PyTorch's current CUDA device and stream.

    Raises ValueError when there is no GPU, or one older than Turing.
    """

    name = "cuda"

    def __init__(self, *, csrc_dir: Path | None = None):
        import torch

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
        try:
            from cuda.core import Device, LaunchConfig
        except ImportError as error:
            raise CompileError(f"cuda-core is not installed ({error}); pip install 'cuda-core[cu13]'") from None

        self.device = torch.device("cuda", torch.cuda.current_device())
        torch.zeros(1, device=self.device)  # PyTorch makes the primary context; cuda-core then shares it
        self._device = Device(self.device.index)
        self._device.set_current()
        major, minor = capability
        suffix = "a" if major in (9, 10) else ""
        self.arch = f"sm_{major}{minor}{suffix}"
        # cuda-core can ask for it from 1.2 on; without it all else works.
        able = hasattr(LaunchConfig, "programmatic_stream_serialization")
        self.dependent_launch = able and capability >= DEPENDENT_LAUNCH_CAPABILITY
        self.csrc_dir = csrc_dir
        self.ledger = Ledger()

    def compile(self, source: str, kernels: Sequence[str], defines: Mapping[str, object]) -> Module[CudaKernel]:
        """Compile csrc/`source` for this GPU and load it; see `compile_cubin` for errors."""
        from cuda.core import ObjectCode

        binary = compile_cubin(source, kernels, defines, self.arch, csrc=self.csrc_dir)
        code = ObjectCode.from_cubin(binary.cubin)
        loaded = {}
        for name in kernels:
            handle = code.get_kernel(name)
            try:  # asked once, not at every launch: the answer takes a driver call for each argument
                arguments = handle.num_arguments
            except NotImplementedError:  # drivers before CUDA 12.4
                arguments = None
            loaded[name] = CudaKernel(name, binary.resources[name], handle, arguments)
        return Module(source, loaded)

    def launch(
        self, kernel: CudaKernel, grid, block, smem: int, args, cooperative: bool = False, dependent: bool = False
    ) -> None:
        """Enqueue `kernel` on the current stream. Tensors pass as pointers, ints as int32, floats as float.

        dependent: it may start while the kernel before it ends, and waits for it by wait_for_predecessor().
        Raises LaunchError before anything runs: wrong argument count, a tensor on another device or not contiguous.
        """
        from cuda.core import LaunchConfig, launch

        if kernel.arguments is not None and len(args) != kernel.arguments:
            raise LaunchError(f"{kernel.name}: expected {kernel.arguments} arguments, got {len(args)}")
        values = [_argument(kernel.name, i, value, self.device) for i, value in enumerate(args)]
        grid, block = _triple(grid), _triple(block)
        if smem > MAX_DYNAMIC_SHARED:
            raise LaunchError(
                f"{kernel.name}: {smem} bytes of dynamic shared memory; at most {MAX_DYNAMIC_SHARED}"
            )
        how = {"programmatic_stream_serialization": True} if dependent else {}
        config = LaunchConfig(grid=grid, block=block, shmem_size=smem, is_cooperative=cooperative, **how)
        launch(_CurrentStream(self.device), config, kernel.handle, *values)
        self.ledger.record(Launch(kernel.name, grid, block, smem, cooperative))

    def matmul(self, x, weights: Sequence, out) -> None:
        """Enqueue out = x @ weights^T by cuBLAS, the weights' outputs side by side: bf16 in and out, sums in fp32.

        x [rows, inputs], each of weights [outputs, inputs], out [rows, all outputs], contiguous. One product where the
        weights stand side by side in memory, as those on a GPU do. Raises LaunchError before anything runs.
        """
        import torch

        check_product(x, weights, out)
        together = as_one_matrix(weights)
        parts = [(together, out)] if together is not None else zip(
            weights, out.split([len(weight) for weight in weights], dim=1), strict=True
        )  # fmt: skip
        with _sums_in_fp32():
            for weight, part in parts:
                torch.mm(x, weight.T, out=part)
                self.ledger.record(PRODUCT)

    def capture(self, enqueue: Callable[[], None]) -> CudaGraph:
        """What `enqueue` launches, unrun, to be replayed as one launch with these very arguments.

        Kernels must have been loaded before, by the occupancy query or a launch: loading is not allowed during capture.
        Nor may `enqueue` allocate what it uses: graphs are replayed in any order, and share one pool of memory, which
        holds cuBLAS's workspace. Raises CaptureError, with PyTorch's stream and the ledger as they were.
        """
        import torch

        current = torch.cuda.current_stream(self.device)
        before, self.ledger = self.ledger, Ledger()
        try:
            graph = torch.cuda.CUDAGraph()
            # On this device's own stream; and what other threads do meanwhile, such as to allocate, is their affair.
            stream = torch.cuda.Stream(self.device)
            with torch.cuda.graph(graph, pool=_graph_pool(), stream=stream, capture_error_mode="thread_local"):
                enqueue()
            return CudaGraph(graph, tuple(self.ledger.entries))
        except RuntimeError as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise CaptureError(f"a CUDA graph could not be captured: {reason}") from error
        finally:
            torch.cuda.set_stream(current)  # where a capture fails at its end, PyTorch stays on the other one
            self.ledger = before

    def replay(self, graph: CudaGraph) -> None:
        """Enqueue a graph on the current stream. The ledger gets one line."""
        graph.graph.replay()
        self.ledger.record(graph_launch(graph.launches))

    @property
    def sm_count(self) -> int:
        """Multiprocessors of this GPU."""
        return self._device.properties.multiprocessor_count

    def max_resident_blocks(self, kernel: CudaKernel, block: int, smem: int) -> int:
        """Blocks that can be on the GPU at the same time: the largest cooperative grid."""
        per_sm = kernel.handle.occupancy.max_active_blocks_per_multiprocessor(block, smem)
        return per_sm * self._device.properties.multiprocessor_count

    def synchronize(self) -> None:
        import torch

        torch.cuda.synchronize(self.device)


@functools.cache
def _graph_pool():
    import torch

    return torch.cuda.graph_pool_handle()


@contextmanager
def _sums_in_fp32():
    """By default cuBLAS may add up in bf16 the parts of a sum that it has split."""
    import torch

    setting = torch.backends.cuda.matmul
    allowed = setting.allow_bf16_reduced_precision_reduction
    # Where PyTorch has two values, one assigned alone would set the other back.
    split_k = getattr(setting, "allow_bf16_reduced_precision_reduction_split_k", None)
    setting.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        setting.allow_bf16_reduced_precision_reduction = allowed if split_k is None else (allowed, split_k)


class _CurrentStream:
    """PyTorch's current stream, through the protocol by which cuda-core takes foreign streams."""

    def __init__(self, device):
        import torch

        self._handle = torch.cuda.current_stream(device).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._handle


def _triple(size) -> tuple[int, int, int]:
    size = (size,) if isinstance(size, int) else tuple(size)
    return size + (1,) * (3 - len(size))


def _argument(kernel: str, index: int, value, device):
    import torch

    if isinstance(value, torch.Tensor):
        if value.device != device or not value.is_contiguous():
            raise LaunchError(
                f"{kernel}: argument {index} must be a contiguous tensor on {device}, got one on {value.device}"
                + ("" if value.is_contiguous() else ", not contiguous")
            )
        return value.data_ptr()  # cuda-core passes a plain int as a pointer
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise LaunchError(
            f"{kernel}: argument {index} must be a tensor, int or float, got {type(value).__name__}"
        )
    return ctypes.c_int32(value) if isinstance(value, int) else ctypes.c_float(value)
