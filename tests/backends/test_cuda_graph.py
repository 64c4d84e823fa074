"""Stage `graph` where a kernel loads at its first launch, or dependent launch is refused: a virtual GPU does both."""

import dataclasses
import warnings

import pytest
from models import TINY, make_model

from luce_edu.backends.host import HostBackend
from luce_edu.errors import CaptureError
from luce_edu.machine.cards import find_card
from luce_edu.stages.graph import GraphDecoder
from luce_edu.stages.per_layer import PerLayerDecoder

MODEL = make_model(dataclasses.replace(TINY, num_hidden_layers=2, layer_types=TINY.layer_types[-2:]))
# Two SMs of a card that has dependent launch.
HOPPER = dataclasses.replace(find_card("H100"), sm_count=2)
KERNELS = 2 + 5 * MODEL.config.num_hidden_layers


class LoadsLate(HostBackend):
    """Refuses to capture a kernel that has not run yet; with `refuses`, also dependent launch in a capture."""

    lazy_loading = True

    def __init__(self, refuses=False):
        super().__init__(card=HOPPER)
        self.refuses, self.ran = refuses, []

    def launch(self, kernel, *args, dependent=False, **options):
        if self._capturing is not None:
            if self.refuses and dependent:
                raise CaptureError(f"{kernel.name}: refused")
            if kernel.name not in self.ran:
                raise CaptureError(f"{kernel.name}: not loaded")
        else:
            self.ran.append(kernel.name)
        super().launch(kernel, *args, dependent=dependent, **options)


class NeverWarmed(GraphDecoder):
    def _capture_once(self):
        return self.backend.capture(self._enqueue)


def make(kind=GraphDecoder, backend=None, **options):
    return kind(MODEL, device=None, max_seq_len=16, backend=backend, **options)


def bits_of(dec):
    return [dec.step(token) for token in (1, 2, 3)][-1].tolist()


def test_every_kernel_runs_once_before_the_capture_and_leaves_no_trace():
    backend = LoadsLate()
    dec = make(backend=backend)
    assert len(backend.ran) == KERNELS and len(backend.ledger) == dec.position == 0
    assert dec.dependent_launch and dec.dependent_launch_refused is None
    assert bits_of(dec) == bits_of(make(PerLayerDecoder, HostBackend(card=HOPPER)))
    assert len(backend.ran) == KERNELS


@pytest.mark.planted
def test_a_capture_without_that_step_fails():
    with pytest.raises(CaptureError, match="embed: not loaded"):
        make(NeverWarmed, LoadsLate(), dependent_launch=False)


def test_where_dependent_launch_is_refused_the_stage_warns_once_and_works_without():
    with pytest.warns(RuntimeWarning, match="refused") as said:
        dec = make(backend=LoadsLate(refuses=True))
    assert len(said) == 1 and not dec.dependent_launch and "refused" in dec.dependent_launch_refused
    assert bits_of(dec) == bits_of(make(PerLayerDecoder, HostBackend(card=HOPPER)))


@pytest.mark.parametrize("asked", [True, False])
def test_an_explicit_choice_of_dependent_launch_is_kept_or_fails(asked):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        if asked:
            with pytest.raises(CaptureError, match="refused"):
                make(backend=LoadsLate(refuses=True), dependent_launch=True)
        else:
            assert not make(backend=LoadsLate(refuses=True), dependent_launch=False).dependent_launch


@pytest.mark.planted
def test_a_capture_that_fails_without_dependent_launch_too_is_an_error():
    class Fails(LoadsLate):
        def capture(self, enqueue):
            raise CaptureError("planted")

    with pytest.warns(RuntimeWarning), pytest.raises(CaptureError, match="planted"):
        make(backend=Fails())
