"""Every picture has a caption with the provenance of its numbers, and an image for a notebook."""

import base64
from importlib import import_module
from pathlib import Path

import pytest

from luce_edu import plots
from luce_edu.config import ModelConfig
from luce_edu.models import RANDOM_CONFIG
from luce_edu.plots.style import picture as empty

TESTS = {path.stem for path in Path(__file__).parent.glob("test_*_pictures.py")} - {"test_records_pictures"}
PICTURES = {
    f"{test[5:-9]}-{name}": picture
    for test in sorted(TESTS)
    for name, picture in import_module(test).PICTURES.items()
}


def test_every_picture_of_the_notebooks_is_drawn_here():
    assert set(plots.__all__) <= {name for picture in PICTURES.values() for name in picture.__code__.co_names}


@pytest.mark.parametrize("picture", PICTURES.values(), ids=PICTURES)
def test_a_picture_shows_itself_and_only_with_provenance(picture):
    assert picture("modelled from the config")._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="provenance"):
        picture("numbers from somewhere")


@pytest.mark.parametrize("provenance", ["", "   ", "drawn"])
def test_a_caption_that_names_no_kind_is_refused(provenance):
    with pytest.raises(ValueError, match="provenance"):
        empty(4, 3, provenance)


def test_a_picture_carries_its_titles_axes_and_caption_as_alt_text():
    data, metadata = PICTURES["bytes_are_time-in flight"]("modelled here")._repr_mimebundle_()
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")
    words = metadata["image/png"]["alt"]
    for said in ("in turn: 1,024 bytes in 20 ns", "horizontal axis: ns", "vertical axis: bytes in flight", "here."):
        assert said in words
    assert "L2: 6 MiB" in PICTURES["first_kernel-levels"]("modelled").alt, "without axes, the texts inside"


def test_provenance_has_no_default_that_passes():
    with pytest.raises(ValueError, match="provenance"):
        plots.state_against_kv(ModelConfig.from_file(RANDOM_CONFIG))
