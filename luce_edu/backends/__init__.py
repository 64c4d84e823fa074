"""Two ways to run the kernels in csrc/: `cuda` on an NVIDIA GPU, `host` on the virtual GPU (luce_edu/machine).

Both have the same few members:
    compile(source, kernels, defines) -> Module; module[name] -> Kernel
    launch(kernel, grid, block, smem, args, cooperative=False, dependent=False), which writes the ledger
    matmul(x, weights, out), a library's product, which does so too
    prepare(enqueue) -> launches, run(launches): what `enqueue` launches, checked once and started again and again
    capture(enqueue) -> graph, replay(graph): many launches as one; dependent_launch: whether the device has it
    lazy_loading: whether the device may load a kernel only when it first runs, which a capture does not allow
    max_resident_blocks(kernel, block, smem), sm_count, synchronize(), device, name, ledger
    name_tensors(tensors): what kernels reach through pointers in memory, by name
"""

from __future__ import annotations

from luce_edu.backends.devices import default_device

DEVICES = ("cuda", "host")


def make_backend(device: str | None = None, **options):
    """A new backend with a ledger of its own; None takes the best there is.

    options: csrc_dir (another source tree, such as one with a planted fault); for host also what HostBackend takes.
    Raises ValueError for an unknown device, or for 'cuda' where there is no GPU that can serve.
    """
    device = default_device() if device is None else device
    if device == "host":
        from luce_edu.backends.host import HostBackend

        return HostBackend(**options)
    if device == "cuda":
        if options.pop("card", None) is not None:
            raise ValueError("card: a GPU that is there is the one it is; a card is imitated with device='host'")
        from luce_edu.backends.cuda import CudaBackend

        return CudaBackend(**options)
    raise ValueError(f"unknown device {device!r}; expected one of {', '.join(DEVICES)}, or None for the best")
