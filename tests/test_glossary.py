"""The glossary: terms in order, each with at most two sentences and a link to the notebook that needs it first."""

import re
from pathlib import Path

import pytest

GLOSSARY = (Path(__file__).resolve().parent.parent / "notebooks" / "glossary.md").read_text(encoding="utf-8")


def faults(text: str) -> list[str]:
    """What is wrong with a glossary; test_links.py follows its links."""
    terms = re.findall(r"^### (.+)\n\n(.+)$", text, re.MULTILINE)
    names = [term for term, _ in terms]
    found = [] if names == sorted(set(names), key=str.lower) else ["terms out of order, or twice"]
    if len(names) < text.count("\n### "):
        found.append("a term without a text")
    for term, words in terms:
        words, notebook = re.fullmatch(r"(.*?)(\[\d\d\]\(\d\d_\w+\.ipynb\))?", words).groups()
        if notebook is None:
            found.append(f"{term}: no notebook")
        if len(re.findall(r"[.!?](?= |$)", words)) > 2:
            found.append(f"{term}: more than two sentences")
    return found


def test_the_glossary_is_in_order_and_short():
    assert GLOSSARY.count("\n### ") > 50 and faults(GLOSSARY) == []


@pytest.mark.planted
@pytest.mark.parametrize("old, new, said", [
    ("### acquire", "### zebra", "out of order"), ("### fence", "### deadlock", "out of order"),
    (" [08](08_barriers_races_deadlocks.ipynb)\n\n### arith", "\n\n### arith", "acquire: no notebook"),
    ("### arithmetic", "### lonely\n\n### arithmetic", "a term without a text"),
    ("A load that", "It is short. A load that", "acquire: more than two sentences"),
])  # fmt: skip
def test_a_fault_in_it_is_seen(old, new, said):
    assert old in GLOSSARY and any(said in fault for fault in faults(GLOSSARY.replace(old, new, 1)))
