"""Two ways to run the kernels in csrc/: `cuda` on an NVIDIA GPU, `host` on the virtual GPU (luce_edu/machine).

Both have the same members:
    compile(source, kernels, defines) -> Module; module[name] -> Kernel
    launch(kernel, grid, block, smem, args, cooperative=False, dependent=False), which adds a line to the ledger
    matmul(x, weights, out), a library's matrix product, which adds a line too
    prepare(enqueue) -> launches, run(launches): check what `enqueue` launches once, then start it many times
    start(enqueue) -> started: launches that the host follows; started.is_set() and started.wait()
    shared_with_host(count): int32 that a kernel and the host can access at the same time
    capture(enqueue) -> graph, replay(graph): start many launches as one
    dependent_launch: whether the device supports programmatic dependent launch
    lazy_loading: whether the device may load a kernel only when it first runs, which a capture does not allow
    max_resident_blocks(kernel, block, smem), sm_count, synchronize(), device, name, ledger
    capability: the compute capability, such as (8, 6)
    shared_memory_per_block: bytes that a block may have, static and dynamic together
    name_tensors(tensors): the tensors that kernels reach through pointers in memory, by name
"""

from __future__ import annotations

from luce_edu.backends.devices import default_device

DEVICES = ("cuda", "host")


def make_backend(device: str | None = None, **options):
    """Make a backend with a new ledger. None takes the GPU if there is one, else the virtual GPU.

    options: csrc_dir (another source tree, such as one with a planted fault); for host also those of HostBackend.
    Raises ValueError for an unknown device, or for 'cuda' if there is no GPU that can be used.
    """
    device = default_device() if device is None else device
    if device == "host":
        from luce_edu.backends.host import HostBackend

        return HostBackend(**options)
    if device == "cuda":
        if options.pop("card", None) is not None:
            raise ValueError("card: only the virtual GPU can model another card; add device='host'")
        from luce_edu.backends.cuda import CudaBackend

        return CudaBackend(**options)
    raise ValueError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}, or None for the best")
