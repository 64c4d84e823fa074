"""Show a piece of source in a notebook, read from the file that runs, so that no copy can go out of date.

    show_source(rms_norm)                                   a Python function, class or method
    show_source("csrc/delta_rule.cuh", "delta_rule_tile")   a function, struct or constant of a CUDA file
    show_source("csrc/weight_stream.cuh", "WeightStream.take")             a member of a struct
    show_source("luce_edu/stages/per_op.py", "PerOpDecoder._matvec")
    show_source("csrc/delta_rule.cuh", "<load>")            the lines between the comments <load> and </load>
    show_source("csrc/megakernel.cu")                       the comment (or docstring) that opens a file

`show_ptx` shows under each source line the instructions that NVIDIA's compiler made from it:

    show_ptx("csrc/rms_norm.cuh", line=24)                          one line, in the first kernel that contains it
    show_ptx("csrc/block.cuh", "<warp_sum>", kernel="rms_norm")     a region, in the kernel that you name
    show_ptx(verdict, line=5)                                       a line of a %%kernel cell whose verdict --as keeps
"""

from __future__ import annotations

import ast
import html
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from luce_edu.errors import check_int
from luce_edu.paths import csrc_dir

PACKAGE = Path(__file__).resolve().parent
MOST_INSTRUCTIONS = 32  # shown per line; an unrolled loop, or a function that is inlined often, has hundreds

# JupyterLab's editor colours, which follow its theme. Other viewers get the second value, readable on white and black.
_COLOURS = {
    "Comment": "var(--jp-mirror-editor-comment-color, #5f8787)",
    "String.Doc": "var(--jp-mirror-editor-comment-color, #5f8787)",
    "String": "var(--jp-mirror-editor-string-color, #c0504d)",
    "Number": "var(--jp-mirror-editor-number-color, #2e8b57)",
    "Keyword": "var(--jp-mirror-editor-keyword-color, #2f8f2f)",
    "Name.Builtin": "var(--jp-mirror-editor-keyword-color, #2f8f2f)",
    "Name.Function": "var(--jp-mirror-editor-def-color, #3b7dd8)",
    "Name.Class": "var(--jp-mirror-editor-def-color, #3b7dd8)",
}


@dataclass(frozen=True)
class Source:
    """Consecutive lines of one file: its path from the top of the repository, the first line's number, the text."""

    path: str
    first_line: int
    text: str

    @property
    def heading(self) -> str:
        last = self.first_line + self.text.count("\n")
        lines = f"lines {self.first_line} to {last}" if last > self.first_line else f"line {last}"
        return f"{self.path}, {lines}"

    def numbered(self, lines: list[str]) -> list[tuple[str, str]]:
        """Pair each of the lines, as plain text or HTML, with its line number."""
        numbers = range(self.first_line, self.first_line + len(lines))
        return [(f"{number:4d}", line) for number, line in zip(numbers, lines, strict=True)]

    def __repr__(self) -> str:
        lines = [f"{number}  {line}".rstrip() for number, line in self.numbered(self.text.split("\n"))]
        return "\n".join([self.heading, *lines])

    def _repr_html_(self) -> str:
        lines = self.numbered(coloured(self.text, self.path))
        numbered = [f'<span style="opacity: 0.5; user-select: none">{number}  </span>{line}' for number, line in lines]
        return as_html(self.heading, numbered)


def as_html(heading: str, lines: list[str]) -> str:
    """Put a heading over lines of code that are HTML already."""
    body = "\n".join(lines)
    return (
        f"<div><code>{html.escape(heading)}</code></div>"
        '<pre style="font: var(--jp-code-font-size, 13px)/1.35 var(--jp-code-font-family, monospace); '
        f'overflow-x: auto; white-space: pre">{body}</pre>'
    )


@dataclass(frozen=True)
class Listing:
    """Lines of one file with the PTX instructions made from each, in a kernel compiled for an architecture."""

    source: Source
    instructions: tuple[tuple[str, ...], ...]
    kernel: str
    arch: str

    @property
    def heading(self) -> str:
        return f"{self.source.heading}, in the kernel {self.kernel}, as PTX for {self.arch}"

    @property
    def _shown(self) -> list[list[str]]:
        shown = []
        for made in self.instructions:
            more = [f"... and {len(made) - MOST_INSTRUCTIONS} more"] if len(made) > MOST_INSTRUCTIONS else []
            shown.append([*made[:MOST_INSTRUCTIONS], *more])
        return shown

    def __repr__(self) -> str:
        lines = self.source.numbered(self.source.text.split("\n"))
        rows = [self.heading]
        for (number, line), made in zip(lines, self._shown, strict=True):
            rows += [f"{number}  {line}".rstrip(), *(f"{'':12}{text}" for text in made)]
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        rows = []
        lines = self.source.numbered(coloured(self.source.text, self.source.path))
        for (number, line), made in zip(lines, self._shown, strict=True):
            rows.append(f'<span style="opacity: 0.5; user-select: none">{number}  </span>{line}')
            rows += [f'<span style="opacity: 0.75">{"":12}{html.escape(text)}</span>' for text in made]
        return as_html(self.heading, rows)


def show_source(what: object, name: str | None = None) -> None:
    """Display source with its file and line numbers, and with the comment directly above it.

    what  a Python function, class or module, or a path that starts with "csrc/" or "luce_edu/"
    name  with a path: a function, struct, class, "Class.method" or constant; "<region>" for lines between two marking
          comments; None for the comment or docstring that opens the file
    Raises ValueError, naming file and region, if there is no such file, or not exactly one such region in it.
    """
    display(find_source(what, name))


def show_ptx(what: object, name: str | None = None, *, line: int | None = None, kernel: str | None = None) -> None:
    """Display source lines, and under each the PTX instructions that NVRTC made from it for the default card.

    what    a path that starts with "csrc/", or the verdict of a %%kernel cell, kept with --as
    name    with a path: a region, as for `show_source`
    line    in place of a name: one line, counted from 1. For a verdict, None shows the whole cell
    kernel  the kernel to look in; None takes the first one, in the order of the stages, that has instructions from
            these lines. Kernels are compiled with the dimensions of tiny
    An instruction of an inlined function is shown at the function's line, not at the call.
    Raises ValueError as `show_source` does, and if no kernel has an instruction from these lines; CompileError.
    """
    display(find_ptx(what, name, line=line, kernel=kernel))


def display(shown: object) -> None:
    """Display an object in a notebook; print it in plain Python."""
    try:
        from IPython import display as ipython
    except ImportError:  # plain Python, without IPython
        print(shown)
    else:
        ipython.display(shown)


def find_ptx(what: object, name: str | None = None, *, line: int | None = None, kernel: str | None = None) -> Listing:
    """Make the listing that `show_ptx` displays, with its arguments and errors."""
    if not isinstance(what, str | Path):
        return _of_cell(what, name, line, kernel)
    path = Path(what).as_posix()
    if not path.startswith("csrc/"):
        raise ValueError(f"{path}: expected a path that starts with csrc/, whose kernels NVRTC compiles")
    if (name is None) == (line is None):
        raise ValueError(f"{path}: give either a name, such as a function's, or line=, the number of one line")
    source = find_source(path, name) if line is None else _line(path, line)
    looked_in = []
    for file, text, arch in _compiled(path.removeprefix("csrc/")):
        listing, kernels = _listing(source, path.removeprefix("csrc/"), text, kernel, arch, file)
        if listing:
            return listing
        looked_in += kernels
    if kernel is not None and kernel not in looked_in:
        there = ", ".join(dict.fromkeys(looked_in)) or "none"
        raise ValueError(f"{path}: no kernel named {kernel} includes it; expected one of {there}")
    raise ValueError(
        f"{source.heading}: NVRTC made no instruction from it in {kernel or 'any kernel'}; constants, declarations and "
        "unused code become no instruction"
    )


def _compiled(path: str):
    """Yield name, PTX and architecture of each file of kernels that includes csrc/`path`."""
    from luce_edu.config import ModelConfig
    from luce_edu.machine.cards import find_card
    from luce_edu.machine.nvrtc import compile_ptx, read_sources
    from luce_edu.models import DATA
    from luce_edu.stages import KERNEL_STAGES, stage_class
    from luce_edu.stages.dims import kernel_defines
    from luce_edu.stages.prefill import prefill_defines
    from luce_edu.stages.streaming import streaming_defines

    config = ModelConfig.from_file(DATA / "tiny" / "config.json")
    card = find_card(None)
    files = {stage_class(stage).source: kernel_defines(config) for stage in KERNEL_STAGES}
    files |= {
        "streaming.cu": streaming_defines(config, card.shared_per_block, card.capability),
        "prefill.cu": prefill_defines(config),
    }
    for file, defines in files.items():
        if path in read_sources(file, csrc=csrc_dir()):
            yield file, compile_ptx(file, None, [], defines, card.arch, csrc=csrc_dir()), card.arch


def _listing(
    source: Source, file: str, text: str, kernel: str | None, arch: str, where: str
) -> tuple[Listing | None, list[str]]:
    """Return the listing of the first kernel (or of `kernel`) with instructions from `source`, and all kernels' names.
    """
    from luce_edu.machine import ptx

    module = ptx.parse(text)
    entries = [name for name, function in module.functions.items() if function.entry]
    lines = text.split("\n")
    for name in entries if kernel is None else [name for name in entries if name == kernel]:
        made = [[] for _ in source.text.split("\n")]
        for part in module.functions[name].body:
            loc = part.loc if isinstance(part, ptx.Instruction) else None
            if loc and loc.file == file and 0 <= loc.line - source.first_line < len(made):
                made[loc.line - source.first_line].append(" ".join(lines[part.line - 1].split()))
        if any(made):
            return Listing(source, tuple(map(tuple, made)), f"{name} of {where}", arch), entries
    return None, entries


def _line(path: str, line: int) -> Source:
    """Return one line of a file of csrc/, without its indent."""
    file = csrc_dir() / path.removeprefix("csrc/")
    if not file.is_file():
        raise ValueError(f"{path}: no such file")
    lines = file.read_text(encoding="utf-8").split("\n")
    check_int(f"{path}: line", line, 1, len(lines))
    return _plain(path, lines, line, line)


def _of_cell(verdict: object, name: str | None, line: int | None, kernel: str | None) -> Listing:
    from luce_edu.inline.trial import CELL, Verdict
    from luce_edu.machine.cards import find_card

    if not isinstance(verdict, Verdict):
        raise ValueError(f"expected a path or the verdict of a %%kernel cell, got {verdict!r}")
    if name is not None or kernel not in (None, verdict.kernel):
        raise ValueError(f"a verdict shows one kernel, {verdict.kernel}, in one cell; give only line=")
    source = cell_source(verdict.attempt.text)
    last = source.first_line + source.text.count("\n")
    if line is not None:
        check_int(f"{verdict.kernel}: line, with %%kernel as line 1", line, source.first_line, last)
        source = _plain(CELL, ["", *source.text.split("\n")], line, line)
    listing, _ = _listing(source, CELL, verdict.ptx, verdict.kernel, find_card(None).arch, "the cell")
    if listing is None:
        raise ValueError(f"{source.heading}: NVRTC made no instruction from it in {verdict.kernel}")
    return listing


def cell_source(text: str) -> Source:
    """Return the text of a %%kernel cell as a Source; the line of the magic is line 1."""
    from luce_edu.inline.trial import CELL

    lines = ["", *text.rstrip().split("\n")]
    return _plain(CELL, lines, 2, len(lines))


def whole_file(path: str | Path) -> Source:
    """Return all lines of a file. Raises ValueError if there is no such file."""
    path, file = _file(path)
    lines = file.read_text(encoding="utf-8").rstrip().split("\n")
    return _plain(path, lines, 1, len(lines))


def _file(path: str | Path) -> tuple[str, Path]:
    """Return a path from the top of the repository as text, and the file that it names."""
    path = Path(path).as_posix()
    top, _, rest = path.partition("/")
    roots = {"csrc": csrc_dir(), "luce_edu": PACKAGE}
    if top not in roots:
        raise ValueError(f"{path}: expected a path that starts with csrc/ or luce_edu/")
    if not (roots[top] / rest).is_file():
        raise ValueError(f"{path}: no such file")
    return path, roots[top] / rest


def find_source(what: object, name: str | None = None) -> Source:
    """Find the source that `show_source` displays, with its arguments and errors."""
    if not isinstance(what, str | Path):
        if name is not None:
            raise ValueError(f"a name goes with a path, not with {what!r}")
        return _of_object(what)
    path, file = _file(what)
    text = file.read_text(encoding="utf-8")
    if name is not None and name.startswith("<"):
        regions = _marked_regions(text, name)
    else:
        regions = _python_regions(text, name) if path.endswith(".py") else _cuda_regions(text, name)
    if len(regions) != 1:
        raise ValueError(f"{path}: expected exactly one {name or 'opening comment'}, found {len(regions)}")
    lines = text.split("\n")
    show = _plain if name and name.startswith("<") else _with_comment
    return show(path, lines, *regions[0])


def _of_object(what: object) -> Source:
    try:
        lines, first = inspect.getsourcelines(what)
        file = Path(inspect.getsourcefile(what))
    except (TypeError, OSError) as error:
        raise ValueError(f"expected a function, class, module or path, got {what!r} ({error})") from None
    inside = file.resolve().is_relative_to(PACKAGE)
    path = f"luce_edu/{file.resolve().relative_to(PACKAGE).as_posix()}" if inside else file.name
    if inspect.ismodule(what):
        return find_source(path)
    last = first + len(lines) - 1
    return _with_comment(path, "".join(inspect.findsource(what)[0]).split("\n"), first, last)


def _with_comment(path: str, lines: list[str], first: int, last: int) -> Source:
    """Return lines first to last, counted from 1, and the comment directly above them, without their indent."""
    while first > 1 and lines[first - 2].lstrip().startswith(("//", "# ")):
        first -= 1
    return _plain(path, lines, first, last)


def _plain(path: str, lines: list[str], first: int, last: int) -> Source:
    indent = len(lines[first - 1]) - len(lines[first - 1].lstrip())
    shown = [line if line[:indent].strip() else line[indent:] for line in lines[first - 1 : last]]  # #pragma has none
    return Source(path, first, "\n".join(line.rstrip() for line in shown))


def _marked_regions(text: str, mark: str) -> list[tuple[int, int]]:
    """Find the first and last line between the comments `// <name>` and `// </name>` (or with #), for every pair."""
    lines = [line.strip() for line in text.split("\n")]
    begins, ends = (
        [number for number, line in enumerate(lines, 1) if line in (f"// {comment}", f"# {comment}")]
        for comment in (mark, mark.replace("<", "</"))
    )
    return [(begin + 1, end - 1) for begin in begins for end in ends if begin + 1 < end]


def _python_regions(text: str, name: str | None) -> list[tuple[int, int]]:
    """Find the first and last line of each definition of `name`, a dotted path; None: of the module's docstring."""
    nodes: list[ast.AST] = [ast.parse(text)]
    if name is None:
        first = nodes[0].body[0] if ast.get_docstring(nodes[0]) else None
        return [(first.lineno, first.end_lineno)] if first else []
    for part in name.split("."):
        inside = [child for node in nodes for child in getattr(node, "body", ())]
        nodes = [child for child in inside if part in _python_names(child)]
    regions = []
    for node in nodes:
        decorators = getattr(node, "decorator_list", [])
        regions.append((min(part.lineno for part in [*decorators, node]), node.end_lineno))
    return regions


def _python_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [target.id for target in targets if isinstance(target, ast.Name)]
    return [node.name] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else []


def _cuda_regions(text: str, name: str | None) -> list[tuple[int, int]]:
    """Find the first and last line of each definition of `name`; None: of the comment that opens the file.

    "Struct.name" is a member of a struct.
    """
    if name is None:
        opening = re.match(r"(?://[^\n]*\n)+", text)
        return [(1, opening[0].count("\n"))] if opening else []
    # Comments, strings and preprocessor lines become blanks, so that only the code's own braces count.
    code = re.sub(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|^[ \t]*#(?:[^\n]*\\\n)*[^\n]*',
        lambda match: re.sub(r"[^\n]", " ", match[0]),
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    *structs, name = name.split(".")
    for struct in structs:  # leave only what is inside the struct's braces
        (first, last), *_ = *_named(code, struct), (0, 0)
        first = code.find("{", first, last) + 1
        code = re.sub(r"[^\n]", " ", code[:first]) + code[first:last] if first else ""
    return [(code.count("\n", 0, first) + 1, code.count("\n", 0, last) + 1) for first, last in _named(code, name)]


def _named(code: str, name: str) -> Iterator[tuple[int, int]]:
    """Yield where each definition of `name` begins and ends, in code without comments."""
    for first, last in _declarations(code):
        head = re.split(r"[{=]", code[first:last], maxsplit=1)[0].strip()
        is_type = re.search(rf"\b(?:struct|union|class|enum)\b.*\b{re.escape(name)}$", head)
        is_function = re.search(rf"\b{re.escape(name)}\s*\(", head) and not head.startswith("static_assert")
        is_constant = re.search(rf"\b{re.escape(name)}$", head) and "=" in code[first:last]
        if is_type or is_function or is_constant:
            yield first, last


def _declarations(code: str):
    """Yield where each declaration of a file begins and ends: at a ';', or at the brace that closes a function."""
    depth = first = 0
    for match in re.finditer(r"[{}();]", code):
        mark, at = match[0], match.start()
        depth += (mark in "{(") - (mark in "})")
        ends = depth == 0 and (mark == ";" or mark == "}" and not code[at + 1 :].lstrip().startswith(";"))
        if ends:
            first += len(code[first:]) - len(code[first:].lstrip())
            yield first, at
            first = at + 1


def coloured(text: str, path: str) -> list[str]:
    """Return the lines as coloured HTML. Without pygments they are only escaped."""
    try:
        from pygments import lex
        from pygments.lexers import get_lexer_by_name
    except ImportError:
        return html.escape(text).split("\n")
    lexer = get_lexer_by_name("python" if path.endswith(".py") else "cuda", stripnl=False)
    pieces = []
    for kind, value in lex(text, lexer):
        name = ".".join(part for part in kind if part != "Literal") + "."
        colour = next((colour for key, colour in _COLOURS.items() if name.startswith(f"{key}.")), None)
        escaped = html.escape(value)
        if colour and value.strip():  # a token may span several lines, and each line needs a span of its own
            lines = escaped.split("\n")
            escaped = "\n".join(f'<span style="color: {colour}">{line}</span>' for line in lines)
        pieces.append(escaped)
    return "".join(pieces).removesuffix("\n").split("\n")  # the lexer appends a newline
