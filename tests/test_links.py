"""Every relative link of texts and notebooks leads to a file of the repository, and the README is at most one page."""

import re
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = [path for folder in ("notebooks", "notebooks/solutions") for path in (ROOT / folder).glob("*.ipynb")]
PAGES = [path for folder in (ROOT, ROOT / "docs", ROOT / "notebooks") for path in folder.glob("*.md")]
TEXTS = [*sorted(PAGES), *sorted(NOTEBOOKS)]
MOST_WORDS = 700  # in the README, with tables and commands


def prose(path: Path) -> str:
    """A Markdown file, or the text cells of a notebook, without code in backticks, where `](` may be an index."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = nbformat.reads(text, as_version=4).cells
        text = "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def broken_links(path: Path, root: Path) -> list[str]:
    """Targets of `](...)` that name no file or folder below root; addresses with a scheme and #anchors are left out."""
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", prose(path))
    relative = [target for target in targets if not re.match(r"[a-z][a-z+.-]*:|#", target)]
    files = {target: (path.parent / unquote(target.partition("#")[0])).resolve() for target in relative}
    return [target for target, file in files.items() if not (file.exists() and file.is_relative_to(root))]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_relative_link_leads_somewhere(path):
    assert broken_links(path, ROOT) == []


def count_words(text: str) -> int:
    """The number of words on the rendered page, with code and tables, without addresses of links."""
    text = re.sub(r"<!--.*?-->|^```|\]\([^)\n]*\)", " ", text, flags=re.MULTILINE | re.DOTALL)
    return len(re.findall(r"[^\s|]*\w[^\s|]*", text))


def test_words_are_those_that_a_reader_sees():
    assert count_words("# [One](a b.md) two\n| | three |\n| --- | --: |\n```\nfour five  # six\n```\n<!-- no -->") == 6


def test_the_readme_is_a_page():
    assert count_words((ROOT / "README.md").read_text(encoding="utf-8")) <= MOST_WORDS


def write(folder: Path, text: str) -> list[Path]:
    """Write the text as a README and as a cell of a notebook, with files for its links and one outside the folder."""
    folder = folder / "repository"
    (folder / "figures").mkdir(parents=True)
    for there in ("00_there.ipynb", "figures/a b.svg", "../outside.md"):
        (folder / there).touch()
    (folder / "README.md").write_text(text, encoding="utf-8")
    cells = [nbformat.v4.new_code_cell("x[0](gone)"), nbformat.v4.new_markdown_cell(text)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), folder / "01_here.ipynb")
    return [folder / "README.md", folder / "01_here.ipynb"]


GOOD = """[there](00_there.ipynb), [a section](00_there.ipynb#Recap), [here](#recap), [figures](figures), `f[i](x)`,
![a picture](figures/a%20b.svg "with a title"), [far](https://example.org/gone.md), [mail](mailto:a@example.org)

```
f[i](gone)
```
"""
BROKEN = {
    "a file that is gone": ("[gone](gone.ipynb)", "gone.ipynb"),
    "a picture that is gone": ("![gone](figures/gone.svg)", "figures/gone.svg"),
    "a file that is gone, with an anchor": ("[gone](gone.ipynb#Recap)", "gone.ipynb#Recap"),
    "the second of two in a line": ("[there](00_there.ipynb) and [gone](00_their.ipynb)", "00_their.ipynb"),
    "in angle brackets": ("[gone](<gone.ipynb>)", "gone.ipynb"),
    "a text in backticks": ("[`gone`](gone.py)", "gone.py"),
    "outside the repository": ("[outside](../outside.md)", "../outside.md"),
    "from the top of the machine": ("[tmp](/tmp)", "/tmp"),
}


def test_links_that_lead_somewhere_pass(tmp_path):
    for path in write(tmp_path, GOOD):
        assert broken_links(path, path.parent) == [], path.name


@pytest.mark.planted
@pytest.mark.parametrize("text, target", BROKEN.values(), ids=BROKEN)
def test_a_broken_link_is_caught(text, target, tmp_path):
    for path in write(tmp_path, GOOD + text):
        assert broken_links(path, path.parent) == [target], path.name
