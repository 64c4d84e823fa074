"""`graph` gives the bits of `per_layer` with one launch per token; no stage reads an old token or position."""

import dataclasses
import random

import pytest
import torch
from models import UNTIED, make_model
from tensors import assert_same_bits, left_by

from luce_edu.backends.host import HostBackend
from luce_edu.errors import KernelError
from luce_edu.machine import Prepared
from luce_edu.machine.cards import find_card
from luce_edu.stages import KERNEL_STAGES, STAGES, decoder
from luce_edu.stages.graph import GraphDecoder
from luce_edu.stages.per_layer import PerLayerDecoder
from luce_edu.state import DecodeState
from luce_edu.verification import verify

MODEL = make_model(UNTIED)
ROOM = 40  # tokens; the cache's second split begins at 32


def make(stage, room=ROOM, backend=None):
    return decoder(stage, MODEL, "host", room, backend=backend)


def step_through(dec, tokens) -> torch.Tensor:
    for token in tokens:
        logits = dec.step(token)
    return logits


def assert_alike(one, other) -> None:
    """Two decoders hold the same bits, all of them finite."""
    found = left_by(one)
    assert_same_bits(found, left_by(other))
    assert all(tensor.isfinite().all() for tensor in found.values())


# ---- The same function, launched once ----


@pytest.mark.parametrize("seed", range(2))
def test_random_tokens_give_per_layers_bits_in_pieces_of_any_size(seed):
    draw = random.Random(seed)
    tokens = [draw.randrange(MODEL.config.vocab_size) for _ in range(20)]
    graph, per_layer = make("graph"), make("per_layer")
    for dec in (graph, per_layer):
        dec.poison()
    left = list(tokens)
    while left:
        piece = [left.pop(0) for _ in range(min(len(left), draw.randint(1, 6)))]
        step_through(graph, piece)
    step_through(per_layer, tokens)
    assert_alike(graph, per_layer)
    assert graph._next_token() == per_layer._next_token() == int(graph.logits.argmax())


@pytest.mark.parametrize("how", [{}, {"temperature": 0.9, "seed": 5}])
def test_text_is_that_of_per_layer_greedy_and_drawn(how):
    texts = [list(make(stage).stream([1, 2, 3], 12, **how)) for stage in ("graph", "per_layer")]
    assert texts[0] == texts[1] and len(texts[0]) == 12


def test_a_reset_in_the_middle_and_a_refused_token_leave_no_trace():
    used, fresh = make("graph"), make("graph")
    step_through(used, [5, 6, 7])
    used.reset()
    step_through(used, [8, 9])
    for bad in (131, -1, 1.5, True, [1]):
        with pytest.raises(ValueError, match="tokens: "):
            used.step(bad)
    used.poison()
    used.step(10)
    step_through(fresh, [8, 9, 10])
    assert_alike(used, fresh)


def test_a_token_is_one_graph_launch_of_as_many_kernels_as_per_layer_launches():
    graph, per_layer = make("graph"), make("per_layer")
    for dec in (graph, per_layer):
        step_through(dec, [1, 2])
    (launch,) = graph.ledger.entries
    assert graph.launches == 1 and launch.kernel == "graph"
    assert [plain(kernel) for kernel in launch.captured] == [plain(kernel) for kernel in per_layer.ledger.entries]
    assert len(graph.ledger.kernels()) == per_layer.launches == 2 + 5 * MODEL.config.num_hidden_layers


def plain(launch):
    return dataclasses.replace(launch, traffic=None, barriers_a_block=None, counters=None)


class Counting(HostBackend):
    """Counts the kernels that would have run."""

    ran = 0

    def _run(self, steps, record, graph=False):
        self.ran += len(steps)


class RunsWhileCapturing(Counting):
    def capture(self, enqueue):
        graph = super().capture(enqueue)
        self.replay(graph)
        return graph


def launched_by_making(backend) -> int:
    """Kernels that making a decoder ran or wrote into the ledger."""
    dec = make("graph", backend=backend)
    assert dec.launches == len(backend.ledger)
    return backend.ran + dec.launches


def test_capturing_launches_nothing():
    assert launched_by_making(Counting()) == 0


@pytest.mark.planted
def test_a_capture_that_runs_what_it_captures_is_seen():
    assert launched_by_making(RunsWhileCapturing()) == 2 + 5 * MODEL.config.num_hidden_layers + 1


def test_what_a_graph_has_captured_stays_in_its_place():
    """A replay uses the addresses of the capture, so no method of a decoder may move a tensor."""
    dec = make("graph")
    before = addresses(dec)
    step_through(dec, [1, 2])
    dec.poison()
    dec.reset()
    dec.generate([3], 3)
    dec.pretend(7)
    dec.step()
    assert addresses(dec) == before


def addresses(dec) -> dict[str, int]:
    found = {name: value.data_ptr() for name, value in vars(dec).items() if isinstance(value, torch.Tensor)}
    return found | {name: getattr(dec.state, name).data_ptr() for name in DecodeState.TENSORS}


# ---- Captured arguments must not depend on the step ----


class CapturesWhatChanges(GraphDecoder):
    """Gives `kernel` a copy of the tensor `name`, with `value` in it for ever, in place of the tensor."""

    kernel: str
    name: str
    value: int

    def _fused(self, kernel, *args):
        if kernel == self.kernel:
            self._captured = torch.full_like(getattr(self, self.name), self.value)
            args = [self._captured if arg is getattr(self, self.name) else arg for arg in args]
        super()._fused(kernel, *args)


@pytest.mark.planted
@pytest.mark.parametrize(
    "kernel, name, value",
    [("attention", "device_position", 0), ("embed", "next_token", 17), ("lm_head", "next_token", 0)],
)
def test_verification_catches_a_captured_argument_that_should_change(kernel, name, value):
    kind = type("Stale", (CapturesWhatChanges,), {"kernel": kernel, "name": name, "value": value})
    assert problems(kind), f"{kernel} passed with {name} always {value}"


@pytest.mark.planted
def test_verification_catches_layers_that_were_captured_in_another_order():
    class Swapped(GraphDecoder):
        def _enqueue(self):
            launches = []
            self._fused_later, self._fused = self._fused, lambda *launch: launches.append(launch)
            super()._enqueue()
            del self._fused
            launches[-3], launches[-2] = launches[-2], launches[-3]
            for launch in launches:
                self._fused(*launch)

    assert problems(Swapped)


def test_without_the_plant_the_same_verification_passes():
    assert problems(GraphDecoder) == []


def problems(kind) -> list[str]:
    made = kind(MODEL, device="host", max_seq_len=6)
    return verify(MODEL, stages=["graph"], device="host", steps=6, seed=1, make=lambda _: made).rows[0].problems


# ---- Steps by the decoder's own choice, and pretend ----


@pytest.mark.parametrize("position", [1, 2, 31, 32, 33, ROOM - 1])
@pytest.mark.parametrize("stage", STAGES)
def test_a_step_by_the_own_choice_equals_one_that_names_it_wherever_one_stands(stage, position):
    own, told = make(stage), make(stage)
    for dec in (own, told):
        dec.pretend(position, seed=3)
        assert dec.position == position
    steps = min(3, ROOM - position)
    for _ in range(steps):
        own.step()
        told.step(int(told.logits.argmax()))
        assert_alike(own, told)
    assert own.position == position + steps


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_without_a_token_is_refused_where_there_is_no_choice_and_where_it_is_full(stage):
    dec = make(stage, room=3)
    no_choice = f"{stage}: no token has been chosen yet"
    with pytest.raises(ValueError, match=no_choice):
        dec.step()
    dec.step(1)
    dec.poison()  # the token is now -1, which must not be looked up
    with pytest.raises(ValueError, match=no_choice):
        dec.step()
    step_through(dec, [2, 3])
    logits = dec.logits.clone()
    with pytest.raises(ValueError, match=rf"{stage}: the sequence is full \(max_seq_len 3\)"):
        dec.step()
    assert dec.position == 3 and torch.equal(dec.logits, logits)
    dec.reset()
    with pytest.raises(ValueError, match=no_choice):
        dec.step()
    dec.state.position = 1  # as a benchmark may set it; there is still no choice
    with pytest.raises(ValueError, match=no_choice):
        dec.step()


@pytest.mark.parametrize("position", [0, -1, 3, 1.0, True, None])
def test_a_position_from_which_no_token_fits_is_refused(position):
    dec = make("graph", room=3)
    dec.step(1)
    with pytest.raises(ValueError, match="position: .*1 to 2, got"):
        dec.pretend(position)
    assert dec.position == 1


# ---- Token and position in memory never go stale ----


def forget(dec) -> None:
    """Make a decoder write token and position into memory again, whether or not they are there already."""
    dec._expected = dec._position_there = None


CALLS = ("own", "other", "kept", "untold", "many", "position", "pretend", "generate", "reset", "bad")


def hostile_sequence(dec, twin, seed: int, length: int = 16):
    """Make random calls on both and yield the name of each; `twin` forgets token and position before each call."""
    draw = random.Random(seed)

    def both(method: str, *args, **options):
        forget(twin)
        one, other = (getattr(d, method)(*args, **options) for d in (dec, twin))
        return one, other

    def choice() -> int:
        """The decoder's choice. After this read it takes the token in its memory as known."""
        one, other = both("_next_token")
        assert one == other == int(twin.logits.argmax())
        return one

    def own() -> None:
        """A step by the decoder's own choice; the twin is given the token."""
        token = int(twin.logits.argmax())
        forget(twin)
        dec.step()
        twin.step(token)

    kept = 0  # an old choice
    # at_once: the last "many" was a prompt.
    # by_prompt: the last move was a prompt, after which the next token writes the position into memory.
    by_prompt = at_once = False
    for _ in range(length):
        name, before = draw.choice(CALLS), dec.position
        if name == "reset" or dec.position > ROOM - 4:
            both("reset")
        elif name == "own" and dec._has_choice:
            both("step", choice())
        elif name == "kept" and dec._has_choice:  # the memory holds this choice, then another one
            kept = choice()
            own()
            both("step", kept)
        elif name == "untold" and dec._has_choice:
            own()
        elif name == "many":
            at_once = draw.random() < 0.5
            some = [draw.randrange(131) for _ in range(3)]
            if at_once:
                both("prefill", some)
            for token in () if at_once else some:
                both("step", token)
        elif name == "position" and dec._has_choice:
            dec.state.position = twin.state.position = draw.randint(1, dec.position)
            both("step", kept)
        elif name == "pretend":
            both("pretend", draw.randint(1, ROOM - 1), seed=seed)
        elif name == "generate":
            one, other = both("generate", [7], 3)
            assert one == other
        elif name == "bad":
            for d in (dec, twin):
                with pytest.raises(ValueError):
                    d.step(131)
        else:
            both("poison")
            both("step", draw.randrange(131))
        yield name
        by_prompt = name == "many" and at_once or by_prompt and dec.position == before
        if dec.position:
            assert_alike(dec, twin)
            if hasattr(dec, "device_position") and dec._position_there is not None:
                assert int(dec.device_position) == dec._position_there - 1
                assert dec._position_there == dec.position or by_prompt


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("stage", KERNEL_STAGES)
def test_no_sequence_of_calls_reads_an_old_token_or_position(stage, seed):
    twin = make("per_layer" if stage == "graph" else stage)
    names = list(hostile_sequence(make(stage), twin, seed))
    assert len(set(names)) >= 5


class NeverForgetsItsToken(GraphDecoder):
    def _place_token(self, token):
        before = self._expected
        super()._place_token(token)
        self._expected = before


class NeverSetsThePosition(GraphDecoder):
    def _step(self, token):
        self._position_there = self.state.position if self.position else None
        super()._step(token)


class KeepsItsTokenAfterPoison(GraphDecoder):
    def poison(self):
        before = self._expected
        super().poison()
        self._expected = before


class ReplaysTwice(GraphDecoder):
    def _run_step(self):
        super()._run_step()
        if self.position == 5:
            super()._run_step()


@pytest.mark.planted
@pytest.mark.parametrize("kind", [NeverForgetsItsToken, NeverSetsThePosition, ReplaysTwice])
def test_the_hostile_sequences_catch(kind):
    def survives(seed) -> bool:
        dec = kind(MODEL, device="host", max_seq_len=ROOM)
        try:
            return bool(list(hostile_sequence(dec, make("per_layer"), seed)))
        except AssertionError:
            return False

    assert not all(survives(seed) for seed in range(3))


@pytest.mark.planted
def test_after_poison_the_token_in_memory_is_not_known():
    """`poison` overwrites the choice in memory with -1, and the next step names that choice."""
    dec = KeepsItsTokenAfterPoison(MODEL, device="host", max_seq_len=ROOM)
    good = make("graph")
    for d in (dec, good):
        step_through(d, [1, 2])
        token = d._next_token()
        d.poison()
    assert good._expected is None
    assert dec._expected == token and int(dec.next_token) == -1  # a step would look -1 up


@pytest.mark.parametrize("stage", ["per_layer", "graph"])
@pytest.mark.parametrize("kernel", ["embed", "mlp_down"])
def test_after_a_kernel_that_failed_reset_forgets_the_position_too(stage, kernel, monkeypatch):
    dec, fresh = make(stage), make(stage)
    step_through(dec, [1, 2])
    run = HostBackend._run

    def fail(self, steps, record, **how):
        if any(isinstance(step, Prepared) and step.kernel.name == kernel for step in steps):
            raise KernelError(f"{kernel}: planted")
        run(self, steps, record, **how)

    with monkeypatch.context() as patch:
        patch.setattr(HostBackend, "_run", fail)
        with pytest.raises(KernelError, match="planted"):
            dec.step(3)
    for refused in (lambda: dec.step(4), dec.step):
        with pytest.raises(ValueError, match=r"call reset\(\) first"):
            refused()
    dec.reset()
    for d in (dec, fresh):
        d.state.position = 3  # where the failed step would have ended
        d.step(5)
    assert_alike(dec, fresh)


# ---- Dependent launch, as far as a virtual GPU shows it ----


class Hopper(HostBackend):
    """A virtual GPU with dependent launch that records the options of each launch."""

    def __init__(self):
        super().__init__(card=dataclasses.replace(find_card("laptop"), capability=(9, 0), arch="compute_90"))
        self.defines, self.dependent = None, {}

    def compile(self, source, kernels, defines):
        self.defines = defines
        return super().compile(source, kernels, defines)

    def launch(self, kernel, *args, dependent=False, **options):
        self.dependent.setdefault(kernel.name, set()).add(dependent)
        super().launch(kernel, *args, dependent=dependent, **options)


@pytest.mark.parametrize("asked, given", [(None, True), (True, True), (False, False)])
def test_where_there_is_dependent_launch_all_but_the_first_kernel_have_it_unless_told_otherwise(asked, given):
    backend = Hopper()
    dec = GraphDecoder(MODEL, device=None, max_seq_len=ROOM, backend=backend, dependent_launch=asked)
    assert dec.dependent_launch is given
    assert backend.dependent == {kernel: {given and kernel != "embed"} for kernel in PerLayerDecoder.kernels}
    assert ("DEPENDENT_LAUNCH" in backend.defines) is given
    per_layer = make("per_layer", backend=HostBackend(card=backend.card))
    for d in (dec, per_layer):
        step_through(d, [1, 2, 3])
    assert_alike(dec, per_layer)
    grids = {kernel.grid for kernel in dec.ledger.kernels()}
    assert grids == {(backend.sm_count * (1 if given else 2), 1, 1)}, "half the blocks, with room for the next kernel's"


class CompilesNothing(HostBackend):
    def compile(self, *args):
        raise AssertionError("compiled")


def test_dependent_launch_on_a_device_without_it_is_refused_before_anything_is_compiled():
    refused = r"graph: dependent_launch needs a GPU of Hopper \(9.0\) or newer, .*; device cpu does not support it"
    with pytest.raises(ValueError, match=refused):
        GraphDecoder(MODEL, device=None, max_seq_len=8, backend=CompilesNothing(), dependent_launch=True)
    assert not make("graph").dependent_launch
