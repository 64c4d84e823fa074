"""The pictures of a profile draw its phases, waits and gaps at their times."""

import numpy as np
import pytest
from matplotlib.colors import to_rgb

import luce_edu
from luce_edu.measure.profile import grid_waits
from luce_edu.plots.megakernel import barrier_wait
from luce_edu.plots.timeline import WAITS, _colours, _paint, first_layers, launch_lanes, sm_timeline


@pytest.fixture(scope="module")
def megakernel():
    return luce_edu.profile("megakernel", card="RTX 3090", position=20)  # one block of 16 warps per SM


@pytest.fixture(scope="module")
def per_layer():
    return luce_edu.profile("per_layer", card="laptop", position=20)


def share(image, colour):
    return float((np.abs(image - to_rgb(colour)).sum(axis=2) < 1e-6).mean())


def test_an_sm_is_in_a_phase_or_waits(megakernel):
    colours = _colours(megakernel.order)
    image, shown = _paint(megakernel, 0.0, megakernel.total_us, colours)
    assert set(shown) == set(megakernel.order) and shown[0] == "embed"
    shares = {name: share(image, colours[name]) for name in shown} | {"waits": share(image, WAITS)}
    before = megakernel.spans[0][1] / megakernel.total_us  # the share of time before the first block
    assert sum(shares.values()) == pytest.approx(1 - before, abs=0.03)  # some SMs end earlier
    busy = sum(p.warps_active * p.us for p in megakernel.phases) / 16 / megakernel.total_us
    # In the profile a phase begins when the last block has passed the barrier. The picture also shows earlier blocks.
    assert busy <= sum(shares.values()) - shares["waits"] < busy + 0.1


def test_between_two_launches_nothing_is_drawn(per_layer):
    colours = _colours(name for name, *_ in per_layer.spans)
    image, _ = _paint(per_layer, 0.0, per_layer.total_us, colours)
    empty = float((image == 1).all(axis=(0, 2)).mean())
    assert empty == pytest.approx(per_layer.launch_us / per_layer.total_us, abs=0.05)


def test_the_pictures_say_that_they_are_modelled_and_for_which_card(megakernel, per_layer):
    for picture in (sm_timeline(megakernel), first_layers(megakernel), sm_timeline(per_layer, end_us=20.0),
                    launch_lanes({"per_layer": per_layer, "megakernel": megakernel}, us=30.0)):  # fmt: skip
        said = picture._supxlabel.get_text()
        assert "odelled" in said and ("RTX 3090" in said or "laptop" in said)
        assert picture._repr_png_()[:4] == b"\x89PNG"


def test_lanes_show_each_launch_in_the_window(per_layer):
    axes = launch_lanes({"per_layer": per_layer}, us=30.0).axes[0]
    assert len(axes.patches) == sum(begin < 30.0 for _, begin, _ in per_layer.spans)


def test_an_empty_window_is_refused(megakernel):
    with pytest.raises(ValueError, match="begin_us"):
        sm_timeline(megakernel, begin_us=5.0, end_us=5.0)
    with pytest.raises(ValueError, match="profiles"):
        launch_lanes({}, us=1.0)


def test_at_a_barrier_each_block_waits_from_its_arrival_until_it_goes_on(megakernel):
    phase = megakernel.order[1]
    (axes,) = barrier_wait(megakernel, phase).axes
    work, wait = (container.patches for container in axes.containers)
    waits = np.array([own[1] for own in grid_waits(megakernel.events, megakernel.places).values()])
    assert len(wait) == 82 and sum(bar.get_width() for bar in wait) == pytest.approx(np.ptp(waits, axis=1).sum())
    arrivals = [bar.get_x() for bar in wait]
    assert arrivals == sorted(waits[:, 0])
    assert [bar.get_x() + bar.get_width() for bar in work] == pytest.approx(arrivals)
    last, opens = (line.get_xdata()[0] for line in axes.lines)
    assert last == max(arrivals) < opens == min(bar.get_x() + bar.get_width() for bar in wait)


@pytest.mark.planted
def test_a_phase_with_no_barrier_behind_it_is_refused(megakernel):
    for phase in ("lm_head", "mlp"):
        with pytest.raises(ValueError, match=f"phase: expected .*got '{phase}'"):
            barrier_wait(megakernel, phase)
