"""Stage `graph`: the kernels of `per_layer`, captured once in a CUDA graph and replayed for each token."""

from __future__ import annotations

import warnings

from luce_edu.errors import CaptureError, KernelError
from luce_edu.stages.per_layer import PerLayerDecoder


class GraphDecoder(PerLayerDecoder):
    """One graph launch per token, with the kernels of `per_layer`.

    dependent_launch  whether a kernel may start before the one before it has ended (programmatic dependent launch,
                      from Hopper on); it then prefetches weights before it waits. None: if device and driver support
                      it; `dependent_launch_refused` holds the driver's reason if not
    Raises ValueError for dependent_launch=True on a device without it, before anything is compiled.
    """

    stage = "graph"
    words = "the same, replayed as a graph"
    colour = "purple"
    starts = "graph"

    def __init__(self, model, *, device, max_seq_len, backend=None, dependent_launch: bool | None = None):
        self._requested = dependent_launch
        self.dependent_launch_refused: str | None = None
        super().__init__(model, device=device, max_seq_len=max_seq_len, backend=backend)
        self._graph = self._capture()

    @property
    def dependent_launch(self) -> bool:
        return self.backend.dependent_launch if self._requested is None else self._requested

    def _defines(self):
        if self.dependent_launch and not self.backend.dependent_launch:
            raise ValueError(
                f"{self.stage}: dependent_launch needs a GPU of Hopper (9.0) or newer, and cuda-core 1.2 or newer; "
                f"device {self.device} does not support it"
            )
        return super()._defines() | ({"DEPENDENT_LAUNCH": 1} if self.dependent_launch else {})

    def _capture(self):
        """Capture the graph of one token; if the driver refuses dependent launch, and it is optional, without it."""
        try:
            return self._capture_once()
        except (CaptureError, KernelError) as error:
            if self._requested or not self.dependent_launch:
                raise
            self.dependent_launch_refused, self._requested = str(error), False
        said = f"{self.stage}: runs without dependent launch, which was refused: {self.dependent_launch_refused}"
        warnings.warn(said, RuntimeWarning, stacklevel=3)
        self.module = self.backend.compile(self.source, self.kernels, self._defines())
        self._grid = {name: self._blocks(name) for name in self.kernels}
        self.block_best = self._buffer(self._argmax_blocks(), 2)
        return self._capture_once()

    def _capture_once(self):
        if self.backend.lazy_loading:  # then every kernel must run once before the capture, to be loaded
            self._place_token(0)
            self.device_position.fill_(-1)
            self._enqueue()
            self.reset()
        return self.backend.capture(self._enqueue)

    def _blocks(self, kernel):
        # One block per SM leaves room for blocks of the next kernel, which prefetch weights before this one has ended.
        most = super()._blocks(kernel)
        return min(self.backend.sm_count, most) if self.dependent_launch else most

    def _run_step(self) -> None:
        self.backend.replay(self._graph)

    def _fused(self, kernel: str, *args) -> None:
        # The first kernel of a graph has no predecessor to wait for.
        self._launch(kernel, self._grid[kernel], *args, dependent=self.dependent_launch and kernel != "embed")
