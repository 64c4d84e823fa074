"""Checks of what the cuda backend hands to the driver. Run with the fake driver on LD_LIBRARY_PATH; prints JSON.

Each function `check_…` is one check. Its arguments are a FakeGpu and a function that makes a backend.
`python checks.py FAULTS` runs all checks on luce_edu's own backends/cuda.py, then on a copy with each fault. FAULTS is
JSON: {fault: [text, text in its place]}. The output is {"checks": [all names], "right": {check that failed: its error},
"faults": {fault: {the first check that failed: its error}}}.
"""

from __future__ import annotations

import functools
import json
import struct
import sys
import traceback
import warnings
from pathlib import Path
from types import ModuleType

import torch
from gpu import FakeGpu

import luce_edu.backends.cuda
from luce_edu.errors import CaptureError, KernelError, LaunchError
from luce_edu.models import load_model
from luce_edu.stages.dims import BLOCK_THREADS
from luce_edu.stages.graph import GraphDecoder
from luce_edu.stages.megakernel import MegakernelDecoder
from luce_edu.stages.per_layer import PerLayerDecoder
from luce_edu.stages.per_op import PerOpDecoder

MODEL = load_model("tiny")
KERNELS = Path(__file__).parent / "kernels"  # a source tree of its own
INT, FLOAT, POINTER = "<i", "<f", "<Q"


def bytes_of(*values) -> list[str]:
    """The bytes of a kernel's arguments in hex, from (format, value) of each."""
    return [struct.pack(*value).hex() for value in values]


def kernel(backend, name="mixed"):
    return backend.compile("arguments.cu", ["mixed", "none", "shared"], {})[name]


def tensors(count, dtype=torch.float32):
    return [torch.zeros(8, dtype=dtype, device="cuda") for _ in range(count)]


def raises(kind, call) -> str:
    """The message of the error that `call` must raise."""
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def check_a_plain_launch_has_its_sizes_and_no_attributes(gpu, make):
    make().launch(kernel(make(), "none"), (4, 3), (32, 2, 2), 640, ())
    (launch,) = gpu.launches()
    assert (launch.kernel, launch.grid, launch.block, launch.smem) == ("none", [4, 3, 1], [32, 2, 2], 640)
    assert (launch.cooperative, launch.dependent, launch.other_attributes, launch.arguments) == (0, 0, 0, [])


def check_attributes_are_those_asked_for_in_any_order(gpu, make):
    backend = make()
    none = kernel(backend, "none")
    wanted = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 0), (0, 1), (1, 0)]
    for cooperative, dependent in wanted:
        backend.launch(none, 4, 64, 0, (), cooperative=bool(cooperative), dependent=bool(dependent))
    assert [(launch.cooperative, launch.dependent) for launch in gpu.launches()] == wanted
    assert not any(launch.other_attributes for launch in gpu.launches())


def check_arguments_are_the_kernels_own_bytes_in_its_order(gpu, make):
    backend = make()
    a, b = tensors(2)
    backend.launch(kernel(backend), 1, 32, 0, (a, -7, 0.1, b, 2**31 - 1))
    want = bytes_of((POINTER, a.data_ptr()), (INT, -7), (FLOAT, 0.1), (POINTER, b.data_ptr()), (INT, 2**31 - 1))
    assert gpu.launches()[0].arguments == want


def check_extreme_numbers_arrive_bit_for_bit(gpu, make):
    backend = make()
    a, b = tensors(2)
    infinity = float("inf")
    for integer, number, single in (
        (-(2**31), float("nan"), float("nan")), (0, -infinity, -infinity), (2**31, -0.0, -0.0),
        (2**32 - 1, 1e300, infinity),
    ):  # fmt: skip
        gpu.clear()
        backend.launch(kernel(backend), 1, 32, 0, (a, integer, number, b, -1))
        assert gpu.launches()[0].arguments[1:3] == bytes_of(("<I", integer % 2**32), (FLOAT, single))


def check_a_view_passes_its_own_address(gpu, make):
    backend = make()
    a, b = tensors(2)
    backend.launch(kernel(backend), 1, 32, 0, (a[2:6], 1, 0.0, b[4:], 1))
    first, *_, second, _ = gpu.launches()[0].arguments
    assert [first, second] == bytes_of((POINTER, a.data_ptr() + 8), (POINTER, b.data_ptr() + 16))


def check_launches_go_onto_the_current_stream_at_the_time(gpu, make):
    backend = make()
    none = kernel(backend, "none")
    handles = [0, 0x7000, 0x7000, 0x8000, 0, 0x8000]
    for gpu.stream in handles:
        backend.launch(none, 1, 32, 0, ())
    assert [launch.stream for launch in gpu.launches()] == handles


def check_the_largest_cooperative_grid_is_what_the_occupancy_query_says(gpu, make):
    backend = make()
    none = kernel(backend, "none")
    most = backend.max_resident_blocks(none, 512, 0)
    assert most == 132 * 4
    backend.launch(none, most, 512, 0, (), cooperative=True)
    assert gpu.launches()[0].cooperative
    message = raises(LaunchError, lambda: backend.launch(none, most + 1, 512, 0, (), cooperative=True))
    assert message.startswith("none: ") and str(most) in message
    assert len(gpu.launches()) == len(backend.ledger) == 1


def check_a_block_may_have_all_the_shared_memory_of_the_device_and_no_more(gpu, make):
    backend = make()
    most, fixed = backend.shared_memory_per_block, 2048
    assert most == 227 * 1024
    (a,) = tensors(1)
    shared, none = kernel(backend, "shared"), kernel(backend, "none")
    gpu.clear()
    for smem in (0, 46 * 1024):  # what any block may have
        backend.launch(shared, 1, 8, smem, (a,))
    assert "cuKernelSetAttribute" not in gpu.calls()
    for smem in (46 * 1024 + 16, most - fixed, most - fixed, 60 * 1024):
        for grid in (1, 2):
            backend.launch(shared, grid, 8, smem, (a,))
    assert gpu.calls().count("cuKernelSetAttribute") == 2  # once for each larger size
    assert backend.max_resident_blocks(none, 512, most) == 132  # asks for it too
    assert backend.max_resident_blocks(none, 512, 75 * 1024) == 3 * 132
    backend.launch(none, 132, 512, most, (), cooperative=True)
    launches = len(gpu.launches())
    refused = [
        raises(LaunchError, lambda: backend.launch(shared, 1, 8, most - fixed + 1, (a,))),
        raises(LaunchError, lambda: backend.max_resident_blocks(shared, 8, most - fixed + 1)),
    ]
    assert len(gpu.launches()) == launches
    for message in refused:
        assert message.startswith("shared: ") and all(str(n) in message for n in (most + 1, fixed, most)), message
    raises(LaunchError, lambda: backend.launch(none, 1, 8, -1, ()))
    again = make()
    gpu.set("cuKernelSetAttribute", 701)
    message = raises(KernelError, lambda: again.launch(kernel(again, "none"), 1, 8, most, ()))
    assert message == f"none: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES for {most} bytes of dynamic shared memory"


def check_wrong_arguments_are_refused_before_any_call_of_the_driver(gpu, make):
    backend = make()
    mixed = kernel(backend)
    a, b = tensors(2)
    wrong = [
        (), (a, 1, 0.5, b), (a, 1, 0.5, b, 1, 1), (a, 1, 0.5, 1, b), (1, a, 0.5, b, 1), (a, 1, 0.5, b, None),
        (a, 1, 0.5, b, True), (a, 1, 0.5, torch.zeros(8), 1), (a, 1, 0.5, b[::2], 1), (a, 2**32, 0.5, b, 1),
        (a, -(2**31) - 1, 0.5, b, 1), (a, 1, 0.5, 2**40, 1), (a, b, 0.5, b, 1), (a, 1, a, b, 1), (a, 1, 0.5, 7, 1),
        (0.5, 1, 0.5, b, 1),
    ]  # fmt: skip
    gpu.clear()
    for args in wrong:
        assert raises(LaunchError, lambda args=args: backend.launch(mixed, 1, 32, 0, args)).startswith("mixed: ")
    right = (a, 1, 0.5, b, 1)
    for how in ((0, 32, 0), (1, (32, -1), 0), (1, 32, 2**20), (1.5, 32, 0), ((1, 1, 1, 1), 32, 0)):
        message = raises(LaunchError, lambda how=how: backend.launch(mixed, *how, right))
        assert message.startswith("mixed: ")
    assert gpu.calls() == [] and len(backend.ledger) == 0


def check_a_driver_that_knows_no_parameters_still_launches(gpu, make):
    gpu.set("driver", 12030)
    try:
        backend = make()
        a, b = tensors(2)
        backend.launch(kernel(backend), 1, 32, 0, (a, 1, 0.5, b, 1))
    finally:
        gpu.set("driver", 13000)
    want = bytes_of((POINTER, a.data_ptr()), (INT, 1), (FLOAT, 0.5), (POINTER, b.data_ptr()), (INT, 1))
    assert gpu.launches()[0].arguments == want


def check_errors_of_the_driver_are_ours_and_name_the_kernel(gpu, make):
    backend = make()
    none = kernel(backend, "none")
    for number, name in ((719, "CUDA_ERROR_LAUNCH_FAILED"), (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"),
                         (720, "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE")):  # fmt: skip
        gpu.set("cuLaunchKernelEx", number)
        message = raises(KernelError, lambda: backend.launch(none, 1, 32, 0, ()))
        assert message.startswith("none: ") and name in message, message
    gpu.set("cuOccupancyMaxActiveBlocksPerMultiprocessor", 700)
    message = raises(KernelError, lambda: backend.max_resident_blocks(none, 512, 0))
    assert message.startswith("none: ")
    gpu.set("cuLibraryLoadData", 209)  # no binary for GPU
    assert "arguments.cu" in raises(KernelError, lambda: kernel(make(), "none"))
    backend.launch(none, 1, 32, 0, ())  # the next launch works
    assert len(gpu.launches()) == len(backend.ledger) == 1


def seen_and_given(gpu, make, kind, run):
    """What the driver received while `run` advanced a stage. It must equal the stage's arguments and its ledger."""
    backend = make()
    given = []
    launch = backend.launch
    backend.launch = lambda kernel, grid, block, smem, args, **how: (
        given.append(args), launch(kernel, grid, block, smem, args, **how),
    )  # fmt: skip
    decoder = kind(MODEL, device="cuda", max_seq_len=32, backend=backend)
    gpu.clear()
    run(decoder)
    seen = gpu.launches()
    entries = [entry for entry in decoder.ledger.entries if entry.kernel != "matmul"]
    assert [(x.kernel, tuple(x.grid), tuple(x.block), x.smem, bool(x.cooperative)) for x in seen] == [
        (entry.kernel, entry.grid, entry.block, entry.smem, entry.cooperative) for entry in entries
    ]
    kinds = {int: INT, float: FLOAT}
    for launched, args in zip(seen, given, strict=True):
        want = [(kinds[type(a)], a) if type(a) in kinds else (POINTER, a.data_ptr()) for a in args]
        assert launched.arguments == bytes_of(*want), launched.kernel
    return seen


def check_a_stages_resident_blocks_follow_from_the_registers_in_ptxas_report(gpu, make):
    backend = make()
    module = PerLayerDecoder(MODEL, device="cuda", max_seq_len=32, backend=backend).module
    found = set()
    for kernel in map(module.__getitem__, PerLayerDecoder.kernels):
        for_a_warp = -(-kernel.resources.registers * 32 // 256) * 256
        blocks = min(64 // (BLOCK_THREADS // 32), 65536 // (for_a_warp * BLOCK_THREADS // 32))
        assert backend.max_resident_blocks(kernel, BLOCK_THREADS, 0) == 132 * blocks, kernel.name
        found.add(blocks)
    assert len(found) > 1


def check_stage_per_layer_launches_what_its_ledger_says(gpu, make):
    seen = seen_and_given(gpu, make, PerLayerDecoder, lambda decoder: decoder.step(3))
    assert len(seen) == 2 + 5 * MODEL.config.num_hidden_layers
    assert {tuple(launched.block) for launched in seen} == {(BLOCK_THREADS, 1, 1)}
    assert not any(launched.cooperative or launched.dependent for launched in seen)


def check_stage_per_op_launches_what_its_ledger_says(gpu, make):
    seen = seen_and_given(gpu, make, PerOpDecoder, lambda decoder: decoder.step(3))
    assert len(seen) > 100 and not any(launched.cooperative for launched in seen)


def check_stage_megakernel_is_one_cooperative_launch(gpu, make):
    (seen,) = seen_and_given(gpu, make, MegakernelDecoder, lambda decoder: decoder.step(3))
    assert seen.kernel == "megakernel" and seen.cooperative


def check_a_stages_draw_is_one_cooperative_launch_after_the_token(gpu, make):
    def draw_one(decoder):
        decoder.step(3)
        decoder.draw(0.8, top_k=20, top_p=0.9)

    seen = seen_and_given(gpu, make, MegakernelDecoder, draw_one)
    assert [launched.kernel for launched in seen] == ["megakernel", "draw"] and seen[1].cooperative


def check_a_prompt_of_a_stage_launches_what_its_ledger_says(gpu, make):
    seen = seen_and_given(gpu, make, PerLayerDecoder, lambda decoder: decoder.prefill([1, 2, 3, 4, 5]))
    assert {"delta_rule_scan", "attention", "lm_head"} <= {launched.kernel for launched in seen}


def graph_decoder(make, **options):
    return GraphDecoder(MODEL, device="cuda", max_seq_len=32, backend=make(), **options)


def check_a_graph_stage_runs_each_kernel_once_and_captures_it_with_dependent_launch(gpu, make):
    with warnings.catch_warnings(record=True) as said:
        decoder = graph_decoder(make)
    first, captured = gpu.launches()[: len(gpu.launches()) // 2], gpu.launches()[len(gpu.launches()) // 2 :]
    count = 2 + 5 * MODEL.config.num_hidden_layers
    assert [launch.stream for launch in first] == [0x5000] * count
    assert [launch.stream for launch in captured] == gpu.captured * count != [0x5000] * count
    for launches in (first, captured):
        assert [launch.dependent for launch in launches] == [launch.kernel != "embed" for launch in launches]
    assert [launch.arguments for launch in first] == [launch.arguments for launch in captured]
    assert decoder.dependent_launch and decoder.dependent_launch_refused is None and said == []
    assert (decoder.position, len(decoder.ledger), gpu.stream) == (0, 0, 0x5000)
    decoder.step(3)
    assert decoder.launches == 1 and len(gpu.launches()) == 2 * count and gpu.replayed == 1


def check_a_graph_stage_goes_on_without_dependent_launch_where_a_capture_refuses_it(gpu, make):
    gpu.set("dependent_in_capture", 0)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            decoder = graph_decoder(make)
        assert "CUDA_ERROR_INVALID_HANDLE" in raises(CaptureError, lambda: graph_decoder(make, dependent_launch=True))
    finally:
        gpu.set("dependent_in_capture", 1)
    assert len(said) == 1 and "without dependent launch" in str(said[0].message)
    assert not decoder.dependent_launch and "deltanet_in: CUDA_ERROR_INVALID_HANDLE" in decoder.dependent_launch_refused
    decoder.step(3)
    assert decoder.launches == 1 and gpu.stream == 0x5000


def check_all_captures_are_on_one_stream_of_their_own(gpu, make):
    backends = [make(), make()]
    for backend in backends * 2:
        none = kernel(backend, "none")
        backend.capture(lambda backend=backend, none=none: backend.launch(none, 1, 32, 0, ()))
    (stream,) = set(gpu.captured)
    assert {launch.stream for launch in gpu.launches()} == {stream} and stream != gpu.stream == 0x5000


def check_a_launch_that_fails_in_a_capture_is_a_capture_error_that_names_it(gpu, make):
    backend = make()
    none = kernel(backend, "none")
    gpu.set("cuLaunchKernelEx", 701)
    message = raises(CaptureError, lambda: backend.capture(lambda: backend.launch(none, 1, 32, 0, ())))
    assert "none: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" in message
    backend.launch(none, 1, 32, 0, ())
    assert gpu.launches()[0].stream == 0x5000 and len(backend.ledger) == 1


def check_prepared_launches_are_those_of_launch_on_the_stream_of_their_run(gpu, make):
    backend = make()
    mixed, none = kernel(backend), kernel(backend, "none")
    a, b = tensors(2)

    def enqueue():
        backend.launch(mixed, (3, 2), 64, 128, (a, -7, 0.1, b, 5))
        backend.launch(none, 4, 512, 0, (), cooperative=True)
        backend.launch(none, 4, 512, 0, (), dependent=True)

    prepared = backend.prepare(enqueue)
    assert gpu.launches() == [] and len(backend.ledger) == 0
    enqueue()
    for gpu.stream in (0x7000, 0x8000):
        backend.run(prepared)
    one_by_one, *runs = (gpu.launches()[i : i + 3] for i in (0, 3, 6))
    assert [launch.stream for run in runs for launch in run] == [0x7000] * 3 + [0x8000] * 3
    for run in runs:
        assert [vars(launch) | {"stream": 0x5000} for launch in run] == list(map(vars, one_by_one))
    assert backend.ledger.entries == backend.ledger.entries[:3] * 3
    gpu.set("cuLaunchKernelEx", 701)
    assert raises(KernelError, lambda: backend.run(prepared)).startswith("mixed: CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES")
    assert len(backend.ledger) == 9
    raises(LaunchError, lambda: backend.prepare(lambda: backend.launch(mixed, 1, 1, 0, ())))
    backend.launch(none, 1, 32, 0, ())
    assert len(gpu.launches()) == len(backend.ledger) == 10


def planted(old: str, new: str) -> ModuleType:
    """backends/cuda.py with one text in another's place."""
    source = Path(luce_edu.backends.cuda.__file__).read_text(encoding="utf-8")
    assert source.count(old) == 1, f"{source.count(old)} times in cuda.py: {old}"
    module = ModuleType("planted")
    sys.modules["planted"] = module  # dataclasses look their module up there
    exec(compile(source.replace(old, new), "planted", "exec"), vars(module))
    return module


def failures(gpu: FakeGpu, module: ModuleType, *, all_of_them: bool) -> dict[str, str]:
    """The checks that fail on a module's backend, or the first of them, with errors. Those of stages take csrc/."""
    failed = {}
    for name, check in CHECKS.items():
        gpu.clear()
        csrc = None if "stage" in name else KERNELS
        try:
            check(gpu, functools.partial(module.CudaBackend, csrc_dir=csrc))
        except Exception:
            failed[name] = traceback.format_exc(limit=-3)
            if not all_of_them:
                break
    return failed


CHECKS = {name.removeprefix("check_"): check for name, check in globals().copy().items() if name.startswith("check_")}

if __name__ == "__main__":
    faults = json.loads(sys.argv[1])
    with FakeGpu() as fake, warnings.catch_warnings():
        warnings.simplefilter("error")  # so that a deprecated call fails
        right = failures(fake, luce_edu.backends.cuda, all_of_them=True)
        with_fault = {name: failures(fake, planted(*fault), all_of_them=False) for name, fault in faults.items()}
    print(json.dumps({"checks": list(CHECKS), "right": right, "faults": with_fault}))
