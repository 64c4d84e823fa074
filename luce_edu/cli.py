"""The command `luce-edu`. Heavy imports are inside the commands, so that --help answers at once.

Exit status: 0 success; 1 a check failed; 2 bad input; 3 something could not be measured, and the output says why;
130 interrupted; 141 the reader of a pipe closed it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from luce_edu.errors import NotMeasured

if TYPE_CHECKING:
    from luce_edu.measure.records.rows import NotRun

HOLDS, DOES_NOT_HOLD, BAD_INPUT, NOT_MEASURED, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    args = _parser().parse_args(argv)
    try:
        return args.run(args)
    except ValueError as error:
        print(f"luce-edu: {error}", file=sys.stderr)
        return BAD_INPUT
    except BrokenPipeError:  # the program that read our output has ended, such as head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"luce-edu: {error}", file=sys.stderr)
        return BAD_INPUT
    except NotMeasured as error:
        print(f"luce-edu: {args.command}: {error}", file=sys.stderr)
        return NOT_MEASURED
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    import luce_edu

    parser = argparse.ArgumentParser(
        prog="luce-edu",
        description="From plain PyTorch to one launch per token, every stage checked against the one before.",
    )
    parser.add_argument("--version", action="version", version=luce_edu.__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="show what this machine has, and how to get what is missing")
    doctor.add_argument("--json", action="store_true", help="print JSON in place of a table")
    doctor.set_defaults(run=_doctor)

    cards = commands.add_parser("cards", help="list the cards that the virtual GPU models, with sources")
    cards.set_defaults(run=_cards)

    walkthrough = commands.add_parser("walkthrough", help="run the notebooks; after all of them, show the stage table")
    walkthrough.add_argument("--only", type=_names, default=(), metavar="NN,NN", help="run only these, such as 00,01")
    walkthrough.add_argument("--in-place", action="store_true", help="run the solutions too, and store all outputs")
    walkthrough.set_defaults(run=_walkthrough)

    verify = commands.add_parser("verify", help="check every stage against the fp32 reference")
    verify.add_argument("--model", help=f"{_MODELS} (default: tiny, then random-odd for other paths)")
    _add_device(verify)
    verify.add_argument("--stages", type=_names, metavar="NAME,NAME", help="only these stages (default: all)")
    verify.add_argument("--steps", type=int, help="tokens to decode, 2 or more (default: 24; after a prompt 64)")
    verify.add_argument("--prefill", action="store_true", help="check prompts, and the tokens decoded after them")
    verify.add_argument("--prompts", type=_sizes, metavar="N,N", help="their lengths (default: nine from 1 to 1000)")
    verify.add_argument("--seed", type=int, help="seed of the tokens (default: a new one, shown in the table)")
    verify.add_argument("--json", action="store_true", help="print JSON in place of a table")
    verify.set_defaults(run=_verify)

    bench = commands.add_parser("bench", help="time every stage and the baselines that are installed, on the GPU")
    bench.add_argument("--model", default="random-0.8b", help="as for verify (default: %(default)s)")
    bench.add_argument("--stages", type=_names, metavar="NAME,NAME", help="only these stages (default: all)")
    bench.add_argument("--contexts", type=_sizes, metavar="N,N", help="tokens in the cache (default: 1 to 32768)")
    bench.add_argument("--prompts", type=_sizes, metavar="N,N", help="prompt lengths (default: 520,4096)")
    bench.add_argument("--no-baselines", action="store_true", help="time only our stages")
    bench.add_argument("--gguf", metavar="FILE", help="a GGUF file of the same model, for llama.cpp")
    bench.add_argument("--json", action="store_true", help="print JSON in place of a table")
    bench.set_defaults(run=_bench)

    profile = commands.add_parser("profile", help="model where a stage's microseconds go on a card")
    profile.add_argument("what", metavar="STAGE|KERNEL|prompt", help="a stage's token, a kernel or a prompt")
    profile.add_argument("--card", metavar="NAME", help="one that `cards` lists (default: LUCE_CARD, or an RTX 3090)")
    profile.add_argument("--model", default="tiny", help=f"{_MODELS} (default: %(default)s)")
    profile.add_argument("--position", type=int, metavar="N", help="position of the token (default: 520)")
    profile.add_argument("--tokens", type=int, metavar="N", help="length of the prompt (default: 128)")
    profile.add_argument("--json", action="store_true", help="print JSON in place of tables")
    profile.add_argument("--trace", metavar="FILE", help="write a trace for ui.perfetto.dev")
    profile.set_defaults(run=_profile)

    sanitize = commands.add_parser("sanitize", help="report the rules that a kernel breaks: races, bounds, barriers")
    sanitize.add_argument("what", metavar="STAGE|KERNEL|prompt", help="a stage's token, a kernel or a prompt, on tiny")
    sanitize.add_argument("--tool", metavar="TOOL", help="race, mem, init, sync or order (default: all)")
    sanitize.add_argument("--card", metavar="NAME", help="one that `cards` lists (default: LUCE_CARD, or the laptop)")
    sanitize.set_defaults(run=_sanitize)

    progress = commands.add_parser("progress", help="list the exercises that you have solved")
    progress.set_defaults(run=_progress)

    validate = commands.add_parser("validate", help="compare modelled with published times, and write the page")
    validate.add_argument(
        "--only", nargs="+", default=(), metavar="PICK|ID", help="print only these comparisons or rows; write nothing"
    )
    validate.add_argument("--page", action="store_true", help="write the page from stored figures, and run nothing")
    validate.add_argument("--out", metavar="DIR", help="folder for figures, page and picture (default: the checkout)")
    validate.add_argument("--json", action="store_true", help="print JSON in place of a table")
    validate.set_defaults(run=_validate)

    evidence = commands.add_parser("evidence", help="measure everything once, and write a record and its figures")
    evidence.add_argument("--out", required=True, metavar="DIR", help="folder for record and figures")
    evidence.add_argument("--model", default="random-0.8b", help="as for verify (default: %(default)s)")
    evidence.add_argument("--only", type=_names, default=(), metavar="PART,PART", help="add these parts to the record")
    evidence.add_argument("--gguf", metavar="FILE", help="a GGUF file of the same model, for llama.cpp")
    evidence.set_defaults(run=_evidence)

    gpu = commands.add_parser("gpu", help="test and measure on a GPU in six minutes, most valuable first")
    gpu.add_argument("--out", default="gpu", metavar="DIR", help="folder of the record (default: %(default)s)")
    gpu.add_argument("--model", default="random-0.8b", help="as for verify (default: %(default)s)")
    gpu.set_defaults(run=_gpu, only=(), gguf=None)

    sweep = commands.add_parser("sweep", help="decode at one power limit after another, and write a record")
    sweep.add_argument("--limits", type=_watts, metavar="W,W", help="power limits in watts, in order: 150,200,250")
    sweep.add_argument("--allow-power-limit", action="store_true", help="set the limits (default: only print the plan)")
    sweep.add_argument("--out", default="sweep", metavar="DIR", help="folder for the record (default: %(default)s)")
    sweep.add_argument("--model", default="random-0.8b", help="as for verify (default: %(default)s)")
    sweep.add_argument("--stage", default="megakernel", help="stage that decodes (default: %(default)s)")
    sweep.add_argument("--restore", action="store_true", help="restore the limits after a sweep that was killed")
    sweep.set_defaults(run=_sweep)

    figures = commands.add_parser("figures", help="draw the figures of the records, and write the table in docs/")
    figures.add_argument("--records", metavar="DIR", help="folder of the records (default: the project's)")
    figures.add_argument("--out", default="figures", metavar="DIR", help="folder for figures (default: %(default)s)")
    figures.add_argument(
        "--modelled", action="store_true",
        help="write the README's stage table, timeline.png and the tables of docs/streaming.md instead, modelled "
        "(minutes)",
    )  # fmt: skip
    figures.set_defaults(run=_figures)

    generate = commands.add_parser("generate", help="continue a prompt, and print the text as it is generated")
    generate.add_argument("prompt", metavar="PROMPT", help='such as "ROMEO:"')
    _add_model(generate)
    generate.add_argument("--stage", default="megakernel", help="stage that decodes (default: %(default)s)")
    generate.add_argument("--max-new-tokens", type=int, default=200, metavar="N", help="tokens (default: %(default)s)")
    generate.add_argument(
        "--temperature", type=float, default=0.6, metavar="T", help="0 is greedy (default: %(default)s)"
    )
    generate.add_argument("--top-k", type=int, metavar="K", help="draw among the K likeliest tokens (default: all)")
    generate.add_argument(
        "--top-p", type=float, metavar="P",
        help="draw among the likeliest tokens that have P of the probability together (default: all)",
    )  # fmt: skip
    generate.add_argument("--seed", type=int, default=0, help="seed of the random choices (default: %(default)s)")
    generate.set_defaults(run=_generate)
    return parser


_MODELS = "tiny, random-0.8b, -2b, -4b or -9b, a checkpoint folder or a hub id"


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="tiny", help=f"{_MODELS} (default: %(default)s)")
    _add_device(parser)


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cuda or host (default: the best there is)")


def _console(stderr: bool = False):
    """Return the console for tables and progress: as wide as the terminal; in a file or pipe, as the widest table."""
    stream = sys.stderr if stderr else sys.stdout
    try:
        from rich.console import Console
    except ImportError:  # on a machine that is only rented to measure, rich may be missing
        return _PlainConsole(stream)
    return Console(file=stream, width=None if stream.isatty() else 120)


class _PlainConsole:
    """A console in plain text, with those methods of rich's Console that are used here."""

    def __init__(self, stream):
        self._stream = stream

    def print(self, what, **_) -> None:
        print(what, file=self._stream)

    @contextmanager
    def status(self, line: str):
        self.update(line)
        yield self
        self.update("")

    def update(self, line: str) -> None:
        """Show a line of progress, if the output is a terminal."""
        if self._stream.isatty():
            print(f"\r{line[:78]:<78}", end="\r", file=self._stream, flush=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _sizes(text: str) -> list[int]:
    sizes = _names(text)
    if not sizes or not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise argparse.ArgumentTypeError(f"expected positive numbers such as 1,512, got {text!r}")
    return [int(size) for size in sizes]


def _watts(text: str) -> list[float]:
    try:
        watts = [float(name) for name in _names(text)]
    except ValueError:
        watts = []
    if not watts or not all(0 < limit < math.inf for limit in watts):
        raise argparse.ArgumentTypeError(f"expected watts such as 150,200, got {text!r}")
    return watts


def _doctor(args) -> int:
    from luce_edu.doctor import diagnose, ready, table, to_dict

    findings = diagnose()
    if args.json:
        print(json.dumps(to_dict(findings), indent=2))
        return HOLDS if ready(findings) else DOES_NOT_HOLD
    try:
        shown = table(findings)
    except ImportError:  # rich is missing
        to_do = [f"\n  to do: {finding.remedy}" if finding.remedy else "" for finding in findings]
        shown = "\n".join(f"{f.name}: {f.status}: {f.detail}{rest}" for f, rest in zip(findings, to_do, strict=True))
    _console().print(shown)
    return HOLDS if ready(findings) else DOES_NOT_HOLD


def _cards(args) -> int:
    from luce_edu.machine.cards import CARDS, LIMITS_SOURCE, CardTable, find_card

    console = _console()
    console.print(CardTable(find_card()))
    console.print(f"\nSources. Threads, blocks, registers and shared memory: {LIMITS_SOURCE}.", highlight=False)
    for card in CARDS:
        console.print(f"{card.name}: {card.source}.", highlight=False)
    return HOLDS


def _walkthrough(args) -> int:
    import luce_edu
    from luce_edu.walkthrough import NotebookError, find_notebooks, walkthrough

    console = _console()
    try:
        walkthrough(find_notebooks(args.only), in_place=args.in_place, console=console)
    except NotebookError as error:
        print(f"luce-edu: {error}", file=sys.stderr)
        return DOES_NOT_HOLD
    if args.only:  # for a single notebook, the table would take longer than the run
        return HOLDS
    with console.status("verifying the stages") as status:
        table = luce_edu.stage_table(luce_edu.load_model("tiny"), progress=status.update)
    console.print(table)
    return HOLDS if table.report.passed else DOES_NOT_HOLD


def _verify(args) -> int:
    import luce_edu

    options = {"stages": args.stages, "device": args.device, "seed": args.seed}
    options |= {} if args.steps is None else {"steps": args.steps}
    check = luce_edu.verify
    if args.prefill:
        check = luce_edu.verify_prefill
        options |= {} if args.prompts is None else {"prompts": args.prompts}
    elif args.prompts:
        raise ValueError("--prompts needs --prefill")
    model = luce_edu.load_model(args.model or "tiny")
    reports = []
    with _console(stderr=True).status(f"verifying {model.name}") as status:
        reports.append(check(model, progress=status.update, **options))
        if args.model is None:
            reports.append(luce_edu.verify_paths(prefill=args.prefill, progress=status.update, **options))
    passed = all(report.passed for report in reports)
    if args.json:
        print(json.dumps({"passed": passed, "reports": [report.to_dict() for report in reports]}, indent=2))
    else:
        for report in reports:
            _console().print(report)
    return HOLDS if passed else DOES_NOT_HOLD


def _bench(args) -> int:
    import torch

    import luce_edu
    from luce_edu.measure.bench.bench import CONTEXTS, PROMPTS, STEPS, bench
    from luce_edu.measure.bench.systems import make_systems
    from luce_edu.measure.constants import datasheet_bandwidth
    from luce_edu.measure.schema import as_json

    model = luce_edu.load_model(args.model)
    most = model.config.max_position_embeddings - 4 * STEPS
    contexts = args.contexts or [context for context in CONTEXTS if context <= most]
    prompts = args.prompts or [prompt for prompt in PROMPTS if prompt <= most]
    if max(contexts + prompts) > most:
        raise ValueError(f"--contexts, --prompts: {args.model} has room for {most} tokens and a timing loop")
    makers = make_systems(
        model, max_seq_len=max(contexts + prompts) + 4 * STEPS, stages=args.stages,
        baselines=not args.no_baselines, gguf=args.gguf,
    )  # fmt: skip
    if not torch.cuda.is_available():
        raise NotMeasured("no CUDA GPU found, and the virtual GPU cannot be timed")
    where = f"{torch.cuda.get_device_name()}, {args.model} (measured now)"
    with _console(stderr=True).status("measuring") as status:
        result = bench(
            model, makers, contexts=contexts, prompts=prompts, where=where,
            datasheet_gb_per_s=datasheet_bandwidth(), progress=status.update,
        )  # fmt: skip
    if args.json:
        parts = {name: as_json(getattr(result, name)) for name in ("decode", "prefill", "not_run")}
        print(json.dumps({"kind": "measured", "where": result.where} | parts, indent=2))
    else:
        _console().print(result)
    return _status(result.not_run, bool(result.decode), args)


def _status(not_run: Sequence[NotRun], has_all: bool, args) -> int:
    """Return the exit status of a measurement: whether it has results, and the rows that were not run."""
    from luce_edu.stages import STAGES

    if any(row.kind == "wrong" and row.system in STAGES for row in not_run):
        return DOES_NOT_HOLD
    asked_for = {*STAGES, *(["llama.cpp"] if args.gguf else [])}
    # A baseline that is not installed counts as missing only if it was asked for by --gguf.
    missing = [row for row in not_run if row.kind != "absent" or row.system in asked_for]
    return HOLDS if has_all and not missing else NOT_MEASURED


def _profile(args) -> int:
    import luce_edu
    from luce_edu.measure.profile import find_profiled, find_profiled_card, profiled_kernels

    stage, kernel = find_profiled(args.what)
    card = find_profiled_card(args.card)
    if args.trace:
        from luce_edu.measure.trace import check_writable, write_trace

        check_writable(args.trace)
    with _console(stderr=True).status(f"{args.what} on a virtual {card.name}"):
        found = luce_edu.profile(
            args.what, card=card, model=args.model, position=args.position, tokens=args.tokens
        )  # fmt: skip
    others = [name for name, kernels in profiled_kernels().items() if kernel in kernels and name != stage]
    if kernel == args.what and others:
        named = " and ".join(f"{name}.{kernel}" for name in others)
        print(f"luce-edu: {kernel}: this is the one of {stage}; {named} has the name too", file=sys.stderr)
    if args.trace:
        write_trace(found, args.trace)
    if args.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _console().print(found)
    return HOLDS


def _sanitize(args) -> int:
    from luce_edu.lab import TOOLS, sanitize

    if args.tool is not None and args.tool not in TOOLS:
        raise ValueError(f"--tool: unknown tool {args.tool!r}; expected one of {', '.join(TOOLS)}")
    with _console(stderr=True).status(f"{args.what} under {args.tool or 'all tools'}"):
        found = sanitize(args.what, args.tool, card=args.card)
    print(found)
    return HOLDS if found.clean else DOES_NOT_HOLD


def _progress(args) -> int:
    import luce_edu
    from luce_edu.paths import progress_file

    print(luce_edu.progress())
    print(f"\nKept in {progress_file() or 'no file'}; nothing is sent anywhere.")
    return HOLDS


def _validate(args) -> int:
    from luce_edu.measure.records.validated import of_rows, rows_named, run_all, stored
    from luce_edu.measure.records.validation_page import check_writable, row_table, summary
    from luce_edu.plots.validation import write_page

    writes = bool(args.out or not args.only)
    rows = rows_named(args.only)
    if writes:
        check_writable(args.out)
    if args.page:
        found = stored()
    else:
        with _console(stderr=True).status("comparing the clock with published measurements") as status:
            found = of_rows(rows, progress=status.update) if args.only else run_all(progress=status.update)
    if args.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        _console().print(row_table(found.rows) if args.only else summary(found))
    for path in write_page(found, args.out) if writes else ():
        print(f"wrote {path}", file=sys.stderr)
    return HOLDS


def _evidence(args) -> int:
    from luce_edu.measure.bench.evidence import gather

    with _console(stderr=True).status("measuring") as status:
        record = gather(args.out, model_name=args.model, only=args.only, gguf=args.gguf, progress=status.update)
        status.update("drawing")
        drawn = _draw(record, args.out)
    return _recorded(record, drawn, args)


def _draw(record, out) -> list[Path]:
    from luce_edu.plots.records import draw

    return draw([record], out)


def _gpu(args) -> int:
    try:
        import torch  # noqa: F401
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        raise NotMeasured(f"PyTorch cannot be imported ({error}); type: pip install torch") from None
    from luce_edu.measure.bench.gpu import run

    return _recorded(*run(args.out, draw=_draw, model_name=args.model, say=partial(print, flush=True)), args)


def _recorded(record, drawn: Sequence[Path], args) -> int:
    """Show what a record holds and what is missing; return the exit status."""
    from luce_edu.measure.bench.evidence import PARTS, VERIFIED, bench_table

    console = _console()
    if record.parts.get("decode"):
        console.print(bench_table(record))
    if record.parts.get("ablations"):
        console.print(bench_table(record, "ablations"))
    for row in record.not_run:
        console.print(f"not run: {row}", highlight=False)
    wrong = list(record.parts["tests"].failed) if "tests" in record.parts else []
    for part in VERIFIED:
        report = record.parts.get(part)
        if report and not report.passed:
            rows = [f"{row.stage}: {'; '.join(row.problems)}" for row in report.rows if not row.passed]
            wrong += [f"{part}: {row}" for row in rows or ["the check failed"]]
    for line in wrong:
        console.print(f"wrong: {line}", highlight=False)
    console.print(f"{args.out}: record.json{''.join(', ' + path.name for path in drawn)}", highlight=False)
    if wrong:
        return DOES_NOT_HOLD
    return _status(record.not_run, set(args.only or PARTS) <= set(record.parts), args)


def _sweep(args) -> int:
    from luce_edu.measure.bench.bench import WrongChoice

    if args.restore:
        return _restore_settings()
    if args.limits is None:
        raise ValueError("sweep: expected --limits in watts, such as 150,200,250, or --restore")
    try:
        return _sweep_limits(args)
    except WrongChoice as error:
        print(f"luce-edu: sweep: {args.stage}: {error}", file=sys.stderr)
        return DOES_NOT_HOLD


def _sweep_limits(args) -> int:
    from luce_edu.measure.bench.bench import PROMPT, STEPS, check_system
    from luce_edu.measure.bench.evidence import begin_record
    from luce_edu.measure.bench.systems import StageSystem
    from luce_edu.measure.nvml import Sensors
    from luce_edu.measure.power.sweep import check_limits, decode_run, plan, sweep
    from luce_edu.measure.records.record import Record
    from luce_edu.models import load_model
    from luce_edu.stages import STAGES

    if args.stage not in STAGES:
        raise ValueError(f"unknown stage {args.stage!r}; expected one of {', '.join(STAGES)}")
    sensors = Sensors.open()
    if not args.allow_power_limit:
        print(f"luce-edu: sweep: {plan(sensors, args.limits)}", file=sys.stderr)
        return NOT_MEASURED
    check_limits(args.limits, sensors)
    content, path = begin_record(args.out, args.model)
    model = load_model(args.model)
    room = model.config.max_position_embeddings
    if room < PROMPT + STEPS + 1:
        raise ValueError(f"{args.model} has room for {room} tokens; a sweep decodes {STEPS} from {PROMPT} on")
    system = StageSystem(args.stage, model, max_seq_len=PROMPT + STEPS + 1)
    check_system(system, model)

    def save(row) -> None:
        others = [other for other in content.parts.get("sweep", []) if other.system != args.stage]
        content.parts["sweep"] = [*others, row]
        Record(path.stem, content).save(path)

    with _console(stderr=True).status("decoding") as status:
        row = sweep(
            decode_run(system, PROMPT, STEPS), sensors, args.limits, system=args.stage, context=PROMPT, allow=True,
            progress=status.update, save=save,
        )  # fmt: skip
    for point in row.points:
        print(
            f"{point.limit_w:g} W: {point.clock_mhz:.0f} MHz, {point.draw_w:.0f} W drawn, "
            f"{point.tokens_per_s:.0f} tok/s, {point.tokens_per_joule:.2f} tok/J"
            + ("" if point.settled else " (had not settled)")
        )
    print(f"wrote {path}")
    return HOLDS if all(point.settled for point in row.points) else NOT_MEASURED


def _restore_settings() -> int:
    """Restore the settings that a killed sweep has left, for `sweep --restore`."""
    from luce_edu.measure.power.limits import restore_leftovers

    found = restore_leftovers()
    for leftover in found:
        print(leftover.said)
    if not found:
        print("nothing to put back")
    return HOLDS if all(leftover.done for leftover in found) else NOT_MEASURED


def _figures(args) -> int:
    from luce_edu.measure.records.record import load_records
    from luce_edu.plots.records import draw, results_table, write_table

    checkout = Path(args.out).resolve().parent  # README.md and docs/ are beside figures/
    if args.modelled:
        return _modelled_figures(checkout, args)
    records = load_records(args.records)
    for path in draw(records, args.out):
        print(path)
    page = checkout / "docs" / "measuring.md"
    if args.records is None and write_table("results", results_table(records), page):
        print(page)
    return HOLDS


def _modelled_figures(checkout: Path, args) -> int:
    from luce_edu.measure.records.steps import ablations_table, steps_table
    from luce_edu.models import load_model
    from luce_edu.plots.records import write_table
    from luce_edu.plots.timeline import first_layers
    from luce_edu.scoreboard import modelled_table, profile_once

    model, cards = load_model("random-0.8b"), ("RTX 3090", "H200")
    with _console(stderr=True).status("modelling") as status:
        tables = {
            ("modelled", "README.md"): modelled_table(model, cards, progress=status.update),
            ("modelled steps", "docs/streaming.md"): steps_table(progress=status.update),
            ("modelled ablations", "docs/streaming.md"): ablations_table(),
        }
    path = Path(args.out) / "timeline.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(first_layers(profile_once(model, "megakernel", cards[0]))._repr_png_())
    print(path)
    for (name, page), table in tables.items():
        print(checkout / page if write_table(name, table, checkout / page) else table)
    return HOLDS


def _generate(args) -> int:
    import luce_edu
    from luce_edu.models import TextStream
    from luce_edu.stages.sampling import Sampling

    if args.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens: expected 1 or more, got {args.max_new_tokens}")
    how = Sampling(args.temperature, args.top_k, args.top_p, args.seed)
    model = luce_edu.load_model(args.model)
    if model.tokenizer is None:
        raise ValueError(f"model {args.model!r} has no tokenizer.json, which text needs; try --model tiny")
    prompt = model.tokenizer.encode(args.prompt)
    with _console(stderr=True).status(f"{args.stage}: compiling what is not in the cache, reading the prompt"):
        decoder = luce_edu.decoder(
            args.stage, model, device=args.device, max_seq_len=len(prompt) + args.max_new_tokens
        )
        tokens = decoder.stream(prompt, args.max_new_tokens, **vars(how))
        first = list(islice(tokens, 1))
    text = TextStream(model.tokenizer)
    print(args.prompt, end="", flush=True)
    for token in chain(first, tokens):
        print(text.feed(token), end="", flush=True)
    print(text.flush())
    return HOLDS
