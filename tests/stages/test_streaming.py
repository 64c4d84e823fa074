"""Stage `streaming`: the same bits on every card and in every order, each weight once per token, no fault unnoticed.

Sums of mlp_down and of the out projections are split over warps by the last of STEPS, which changes their order and so
their last bits. Another number of warps changes it, too. All other variants, cards, grids and depths of the ring give
the same bits.

Some faults no check here can see, because the virtual GPU runs the lanes of a warp together and has each mbarrier ready
as soon as one lane has made it: no __syncwarp and no fence after the mbarriers are made; a pair of words of which only
one tag is compared, because both are stored by one instruction of a warp. With these sizes they do not see either that
the barrier after a split or before attention's output is staged is missing.
"""

import dataclasses
import functools
import os

import pytest
import torch
from models import UNTIED, make_model
from tensors import left_by

from luce_edu.backends.host import HostBackend
from luce_edu.config import FULL_ATTENTION, LINEAR_ATTENTION
from luce_edu.errors import KernelError, LaunchError
from luce_edu.faults import STREAMING_FAULTS, fault, planted
from luce_edu.machine.cards import find_card
from luce_edu.models import load_model
from luce_edu.stages import decoder
from luce_edu.stages.dims import GRID_BARRIER_PASSED
from luce_edu.stages.sampling import Sampling
from luce_edu.stages.streaming import (
    EMPTY,
    VARIANTS,
    StreamingDecoder,
    distinct_variants,
    order_of_sums,
    streaming_defines,
)
from luce_edu.verification import LIMIT, _states, judge, reference_trace, relative_error, stage_trace, verify

pytestmark = pytest.mark.usefixtures("compiled_quickly")  # other files run the code as it is compiled for use
FULL = os.environ.get("LUCE_FULL") == "1"
# Three slots make a row of mlp_down, so that warps share rows. Blocks have more rows of mlp_up and of the head than a
# batch has.
CONFIG = dataclasses.replace(UNTIED, intermediate_size=1032, vocab_size=1301)
MODEL = make_model(CONFIG, seed=3)
FIRST, MORE = 3, 2  # the token to start with; how many of its own choices a decoder adds in one launch
TOKENS = [3, 100]


def card(name, sm_count, **others):
    """A card with few SMs, so that a token is quick. Without registers_per_sm, nothing asks ptxas, which is slow."""
    return dataclasses.replace(find_card(name), sm_count=sm_count, registers_per_sm=None, **others)


# Each way of the weights to the warps: cp.async, prefetches, bulk copies. A depth of the ring follows from the memory.
CARDS = {
    "laptop": card("laptop", 2), "T4": card("T4", 2), "RTX 3090": card("RTX 3090", 3), "H100": card("H100", 3),
    "one block": card("H100", 1), "a ring of one slot": card("H100", 2, shared_per_block=62 * 1024),
    "many blocks": card("H100", 16),
}  # fmt: skip


def make(name="laptop", model=MODEL, variant=None, **options):
    """On one thread, so that blocks that wait take no time from the others."""
    backend = HostBackend(card=CARDS[name], threads=1, instructions=30_000_000, **options)
    return StreamingDecoder(model, device="host", max_seq_len=8, backend=backend, variant=variant)


def launched(dec) -> dict[str, torch.Tensor]:
    """What a decoder has after one token and a launch of more, with the values of earlier tokens still in memory."""
    dec.step(FIRST)
    chosen = list(dec._stream_choices(MORE))
    return left_by(dec) | {"chosen": torch.tensor(chosen)}


@functools.cache
def by_steps(variant=None) -> dict[str, torch.Tensor]:
    """The same, a launch per token, with poisoned memory."""
    dec, chosen, token = make(variant=variant), [], FIRST
    for _ in range(1 + MORE):
        dec.poison()
        dec.step(token)
        token = dec.choice()
        chosen.append(token)
    return left_by(dec) | {"chosen": torch.tensor(chosen[1:])}


@functools.cache
def reference():
    eager = decoder("eager", MODEL, "host", 8)
    return reference_trace(MODEL, TOKENS, eager.device, lambda _: None), stage_trace(eager, TOKENS)[0]


def differing(one, other) -> list[str]:
    return [name for name, tensor in other.items() if not torch.equal(one[name], tensor)]


# ---- Bits ----


def test_it_verifies_where_warps_share_rows():
    report = verify(MODEL, stages=["streaming"], device="host", steps=4, seed=1)
    assert report.passed, str(report)


@pytest.mark.parametrize("name", CARDS)
def test_every_card_and_grid_gives_the_same_bits_in_one_launch_or_many(name):
    dec = make(name)
    assert differing(launched(dec), by_steps()) == []
    dec.reset()
    assert differing(launched(dec), by_steps()) == [], "a second run"


def test_more_splits_than_a_warp_has_lanes_are_merged_as_by_the_megakernel():
    position = 2250  # 36 splits
    found = []
    for stage, name in (("megakernel", "laptop"), ("streaming", "laptop"), ("streaming", "many blocks")):
        dec = decoder(stage, MODEL, backend=HostBackend(card=CARDS[name], threads=1), max_seq_len=position + 1)
        dec.pretend(position)
        dec.step(FIRST)
        found.append(left_by(dec))
    for name in ("hidden_states", "logits"):
        assert relative_error(found[1][name], found[0][name]) <= 1e-5, name  # fp32 in another order
    assert differing(found[1], found[2]) == []


# A variant for each order of sums, by which all others with that order are judged
ORDERS = {order_of_sums(variant): variant for variant in ("8 warps", "words", None)}


@pytest.mark.parametrize("variant", [variant for variant in ORDERS.values() if variant])
def test_a_variant_with_another_order_of_sums_verifies(variant):
    report = verify(
        MODEL, stages=["streaming"], device="host", steps=4, seed=1, make=lambda _: make("H100", variant=variant)
    )
    assert report.passed, str(report)
    assert torch.equal(by_steps(variant)["chosen"], by_steps()["chosen"])


def test_the_last_step_changes_bits():
    assert not torch.equal(by_steps("words")["logits"], by_steps()["logits"])


@pytest.mark.parametrize("name", [pytest.param("laptop", marks=pytest.mark.full), "H100"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_gives_the_bits_of_its_order_of_sums(variant, name):
    dec = make(name, variant=variant)
    assert differing(launched(dec), by_steps(ORDERS[order_of_sums(variant)])) == []
    assert dec.launches == 1
    phases = {LINEAR_ATTENTION: 5, FULL_ATTENTION: 6}  # attention's splits are merged after a barrier of their own
    barriers = sum(phases[kind] for kind in CONFIG.layer_types)
    assert dec.barriers == barriers * (variant in ("no step", "prefetch", "ring", "grid barriers"))


def test_two_blocks_per_sm_are_twice_as_many():
    one, two = (make("H100", variant=name) for name in (None, "8 warps, 2 blocks per SM"))
    assert two._blocks == 2 * CARDS["H100"].sm_count and two._threads == 256
    assert one._threads == 384 and 2 * two._shared < CARDS["H100"].shared_per_sm


@pytest.mark.parametrize("capability", [(7, 5), (8, 6)])
def test_variants_that_are_the_same_on_a_card_are_told(capability):
    where = CONFIG, 99 * 1024, capability
    found = distinct_variants(*where)
    assert list(found) == list(VARIANTS) and found["split"] == "streaming"
    for variant, same in found.items():
        others = [None, *list(VARIANTS)[: list(VARIANTS).index(variant)]]
        alike = [other for other in others if streaming_defines(*where, other) == streaming_defines(*where, variant)]
        assert same == ((alike[0] or "streaming") if alike else None)
    assert (found["ring of 2"] == "streaming") == (capability == (7, 5))  # which has no ring


@pytest.mark.full
def test_a_thousand_tokens_of_one_launch_are_the_references():
    """The reference reads the same tokens. Where bf16's error leaves no doubt, it would have chosen each of them."""
    model = load_model("tiny")
    dec = StreamingDecoder(model, device="host", max_seq_len=1001)
    dec.step(65)
    choices = [dec.choice(), *dec._stream_choices(999)]
    assert dec.position == len(choices) == 1000
    tokens = [65, *choices[:-1]]
    eager = decoder("eager", model, "host", 1001)
    truth = reference_trace(model, tokens, eager.device, lambda _: None)
    baseline, _ = stage_trace(eager, tokens)
    first, second = truth.logits.topk(2).values.T
    decided = first - second > 2 * LIMIT * (baseline.logits - truth.logits).abs().amax(dim=1)
    assert decided.sum() > 500
    assert torch.equal(torch.tensor(choices)[decided], truth.logits.argmax(dim=1)[decided])
    for name, state in _states(dec.state).items():
        of_bf16 = relative_error(baseline.states[name], truth.states[name])
        assert relative_error(state, truth.states[name]) <= LIMIT * of_bf16, name


# ---- Orders and memory ----


@pytest.mark.parametrize("name", ["laptop", "T4", "RTX 3090", "H100"])
def test_hostile_memory_gives_the_same_bits_and_nothing_races(name):
    """Copies land, and blocks see what others publish, as late as they may; tokens follow each other in a launch."""
    for seed in range(100 if FULL else 2):
        assert differing(launched(make(name, seed=seed, hostile=True, races=True)), by_steps()) == [], f"seed {seed}"


@pytest.mark.parametrize("name", ["H100", pytest.param("RTX 3090", marks=pytest.mark.full), "many blocks"])
def test_a_launch_that_ends_early_leaves_no_copy_behind(name):
    """With many blocks, warps have fewer slots than their ring has places, some none."""
    assert ended_early(make, name) == []


def ended_early(make, name):
    end = int(by_steps()["chosen"][0])
    dec = make(name, dataclasses.replace(MODEL, config=dataclasses.replace(CONFIG, eos_token_ids=(end,))))
    dec.step(FIRST)
    chosen = list(dec._stream_choices(MORE))
    dec.step(chosen[-1])  # the decoder goes on after it
    return [] if chosen == [end] and dec.position == 3 and torch.equal(dec.logits, by_steps()["logits"]) else [chosen]


def test_a_nan_is_no_empty_cell():
    dec = make()
    dec.step(FIRST)
    dec.state.recurrent_state.view(torch.int32).fill_(EMPTY)
    dec.step(FIRST)
    assert dec.logits.isnan().all()


# ---- Draws ----

WAYS = [Sampling(3.0, seed=1), Sampling(5.0, top_k=20, top_p=0.6, seed=5), Sampling(4.0, top_p=0.3, seed=2**40)]
KEPT = WAYS[1]  # searches for both


def drawn(dec, how=KEPT) -> dict[str, torch.Tensor]:
    """As `launched`, with draws; and a draw more from the logits of the last token."""
    dec.step(FIRST)
    dec.draw(**vars(how))
    chosen = list(dec._stream_choices(MORE, how))
    return left_by(dec) | {"chosen": torch.tensor(chosen), "again": again(dec)}


@functools.cache
def drawn_by_steps(how=KEPT) -> dict[str, torch.Tensor]:
    """The same, a launch per token and one per draw; and the greedy choices, which the draws replace."""
    dec, chosen, greedy, token = make(), [], [], FIRST
    for _ in range(1 + MORE):
        dec.step(token)
        greedy.append(dec.choice())
        dec.draw(**vars(how))
        token = dec.choice()
        chosen.append(token)
    after = {"chosen": torch.tensor(chosen[1:]), "again": again(dec)}
    return left_by(dec) | after | {"greedy": torch.tensor(greedy[1:])}


def again(dec):
    dec.draw(1e-3)  # nearly greedy
    return torch.tensor(dec.choice())


def differing_draws(one, how=KEPT):
    expected = dict(drawn_by_steps(how))
    del expected["greedy"]
    return differing(one, expected)


@pytest.mark.parametrize("name, how", [("laptop", WAYS[0]), ("laptop", WAYS[2]), *((name, KEPT) for name in CARDS)])
def test_one_launch_draws_the_tokens_of_a_launch_each(name, how):
    dec = make(name)
    assert differing_draws(drawn(dec, how), how) == []
    assert [entry.kernel for entry in dec.ledger.entries] == ["streaming", "draw"]  # the last of them by again()
    dec.reset()
    assert differing_draws(drawn(dec, how), how) == [], "a second run"


def test_a_draw_passes_as_many_barriers_as_its_search_has_steps_and_one_more():
    for how, least, most in ((WAYS[0], 1, 1), (WAYS[1], 3, 9), (WAYS[2], 2, 5)):
        dec = make()
        dec.step(FIRST)
        list(dec._stream_choices(MORE, how))
        passed = int(dec.barrier[GRID_BARRIER_PASSED])
        assert MORE * least <= passed <= MORE * most, how


def test_generate_draws_in_one_launch_after_the_first_token():
    dec, by_hand = make(), make()
    by_hand.prefill([FIRST])
    tokens = []
    for _ in range(3):
        by_hand.draw(**vars(KEPT))
        tokens.append(by_hand.choice())
        if len(tokens) < 3:
            by_hand.step(tokens[-1])
    assert dec.generate([FIRST], 3, **vars(KEPT)) == tokens
    assert [entry.kernel for entry in dec.ledger.entries] == ["streaming"] and dec.position == 3
    assert dec.generate([FIRST], 1, **vars(KEPT)) == tokens[:1]


def draws_ended(make, name):
    """The drawn tokens end a launch, the greedy choices that they replace do not."""
    chosen, greedy = (drawn_by_steps()[what].tolist() for what in ("chosen", "greedy"))
    assert not set(greedy) & set(chosen)
    found = []
    for end, count in ((chosen[0], 1), (greedy[0], MORE)):
        config = dataclasses.replace(CONFIG, eos_token_ids=(end,))
        dec = make(name, dataclasses.replace(MODEL, config=config))
        dec.step(FIRST)
        dec.draw(**vars(KEPT))
        found += [end] if list(dec._stream_choices(MORE, KEPT)) != chosen[:count] else []
        dec.step(chosen[0])  # the decoder goes on after it
    return found


@pytest.mark.parametrize("how", [None, KEPT], ids=["greedy", "drawn"])
def test_tokens_are_seen_as_they_come_and_an_interrupt_leaves_a_usable_decoder(how):
    dec, more = make(), 7
    expected = (drawn_by_steps() if how else by_steps())["chosen"].tolist()
    dec.step(FIRST)
    if how:
        dec.draw(**vars(how))
    stream = dec._stream_choices(more, how)
    assert next(stream) == expected[0]
    assert not dec._running._ended.is_set(), "the launch goes on"
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert 2 <= dec.position <= 1 + more
    decoded = dec.generated[: dec.position - 1].tolist()
    assert decoded[:2] == expected[: len(decoded)] and dec.choice() == decoded[-1]
    twin = make()
    twin.step(FIRST)
    if how:
        twin.draw(**vars(how))
    for token in [twin.choice(), *decoded[:-1]]:
        twin.step(token)
    assert torch.equal(dec.logits, twin.logits)
    dec.reset()
    assert differing(launched(dec), by_steps()) == []


@pytest.mark.parametrize("taken", [1, 2])
def test_a_stream_that_another_call_has_overtaken_ends_with_an_error(taken):
    dec = make()
    stream = dec.stream([FIRST], 5, **vars(KEPT))
    for _ in range(taken):
        next(stream)
    dec.step(FIRST)
    with pytest.raises(ValueError, match="another call has advanced this decoder"):
        next(stream)
    dec.reset()
    assert differing_draws(drawn(dec)) == []


def test_a_launch_ends_where_no_logit_is_a_number():
    for how in (None, KEPT):
        dec = make(model=make_model(CONFIG, seed=3))
        dec.step(FIRST)
        dec.weights.norm.fill_(float("nan"))
        with pytest.raises(KernelError, match="all logits are NaN"):
            list(dec._stream_choices(MORE, how))
        assert dec.position == 2


@pytest.mark.parametrize("name", [pytest.param("laptop", marks=pytest.mark.full), "H100"])
def test_draws_with_hostile_memory_are_the_same_and_nothing_races(name):
    for seed in range(100 if FULL else 1):
        assert differing_draws(drawn(make(name, seed=seed, hostile=True, races=True))) == [], f"seed {seed}"


# ---- Counts ----


@functools.cache
def even_model():
    """All sizes fill whole slots, so that no weight of the stream is padding."""
    return make_model(
        dataclasses.replace(
            UNTIED, vocab_size=256, hidden_size=256, intermediate_size=512, num_attention_heads=16, head_dim=32,
            num_key_value_heads=2, linear_num_key_heads=2, linear_num_value_heads=16, linear_key_head_dim=32,
            linear_value_head_dim=32,
        )
    )  # fmt: skip


@pytest.mark.parametrize("name", ["laptop", "T4", "H100"])
def test_a_launch_reads_every_weight_once_per_token(name):
    assert counted(make, name) == []


def counted(make, name):
    dec = make(name, even_model())
    matrices = sum(
        weight.nbytes for name, weight in dec.weights.named_tensors() if "proj" in name or "lm_head" in name
    )
    found = []
    for tokens in (1, MORE):
        dec.step(FIRST) if tokens == 1 else list(dec._stream_choices(tokens))
        [launch] = dec.ledger.entries
        stream = launch.traffic["packed"]
        if (stream.asked_read, stream.distinct_read, stream.asked_write) != (tokens * matrices, matrices, 0):
            found.append(f"{tokens} tokens: {stream} in place of {matrices} bytes")
        if any("proj" in tensor or "lm_head" in tensor for tensor in launch.traffic):
            found.append("weights are read beside the stream")
    return found + ["grid barriers"] * (dec.barriers != 0)


# ---- Planted faults ----


def verified(make, name):
    return judge(*stage_trace(make(name), TOKENS), *reference())["problems"]


def in_one_launch(make, name):
    return differing(launched(make(name)), by_steps())


def races(make, name):
    return differing(launched(make(name, seed=0, races=True)), by_steps())


def draws(make, name):
    return differing_draws(drawn(make(name)))


def draw_races(make, name):
    return differing_draws(drawn(make(name, seed=0, races=True)))


def hostile(make, name):
    return differing(launched(make(name, seed=0, hostile=True)), by_steps())


CAUGHT = {  # by which check, on which card
    (verified, "laptop"): [
        "a cell not compared", "cells of a vector not compared", "tags of partial results not compared",
        "tags of a split's ends not compared", "ring one place too long", "residual dropped",
        "a part of a row skipped", "sums of a batch overwritten", "squares of the last tile left out",
        "norm of the layer before", "newest k and v not gathered", "row after the vocabulary's last",
        "sine of the position before",
    ],
    (verified, "many blocks"): ["half of four cells not compared"],
    (verified, "one block"): ["norms of a later unit not loaded again"],
    (in_one_launch, "laptop"): [
        "the other copy not emptied", "one copy of the cells", "partial results of the token before accepted",
        "ends of the token before accepted",
        "every token has the tag of the first", "no way back to the first slot",
    ],
    (races, "laptop"): [
        "cells stored without an order", "cells for the own block only", "cells loaded without an order",
        "words stored without an order", "words for the own block only", "words loaded without an order",
        "best published without a release", "best read without an acquire", "early row of block 0",
        "no __syncwarp before the token is stored", "no __syncthreads after the choice",
        "no __syncthreads after a batch", "no __syncthreads before the delta rule", "no __syncthreads after a tile",
        "no __syncthreads before attention", "no __syncthreads before the best of a block",
        "no __syncthreads after the token",
    ],
    (races, "H100"): [
        "no __syncwarp before a slot is requested again", "no __syncwarp after the stream is parked",
        "the next place requested",
    ],
    (draws, "laptop"): [
        "drawn for the position before", "the greedy choice shown to the host", "the greedy choice not kept",
        "a bin below the lowest",
    ],
    (draws_ended, "laptop"): ["the greedy choice ends a launch of draws", "a drawn end ends nothing"],
    (draw_races, "laptop"): ["no grid barrier after a draw"],
    (hostile, "laptop"): ["a group of copies too few waited for"],
    (hostile, "H100"): ["parity does not flip", "parity of the second round first"],
    (ended_early, "many blocks"): ["copies that nobody requested waited for"],
    (counted, "laptop"): ["a slot copied twice", "barriers kept"],
}  # fmt: skip
# These take more seconds than they are worth each time: others of the same kind run.
LONG = {
    "partial results of the token before accepted", "sums of a batch overwritten", "barriers kept",
    "parity does not flip",
    "every token has the tag of the first", "no way back to the first slot",
    "no __syncthreads after a tile", "best read without an acquire",
    "no __syncwarp after the stream is parked",
    "words for the own block only", "words loaded without an order", "no __syncthreads after the choice",
    "no __syncthreads after a batch", "no __syncthreads before the delta rule", "no __syncthreads before attention",
    "no __syncthreads before the best of a block", "no __syncthreads after the token", "the next place requested",
    "ring one place too long", "newest k and v not gathered", "row after the vocabulary's last",
    "tags of partial results not compared", "cells for the own block only", "the greedy choice shown to the host",
    "the greedy choice not kept",
    "the greedy choice ends a launch of draws",
}  # fmt: skip


def problems(way, name, *faults):
    with planted(*faults) as tree:
        try:
            return way(functools.partial(make, csrc_dir=tree), name)
        except KernelError as error:
            return [str(error)]


@pytest.mark.planted
@pytest.mark.parametrize(
    "way, card, name",
    [
        pytest.param(*how, name, id=f"{how[0].__name__}, {how[1]}: {name}", marks=[pytest.mark.full] * (name in LONG))
        for how, names in CAUGHT.items()
        for name in names
    ],
)
def test_fault_is_caught(way, card, name):
    assert problems(way, card, fault(f"streaming: {name}"))


@pytest.mark.parametrize("way, card", CAUGHT, ids=[f"{way.__name__}, {card}" for way, card in CAUGHT])
def test_without_a_fault_the_same_checks_pass(way, card):
    assert problems(way, card) == []


def test_every_fault_has_its_check():
    names = [f"streaming: {name}" for names in CAUGHT.values() for name in names]
    assert sorted(names) == sorted(one.name for one in STREAMING_FAULTS)


# ---- Bad input ----


@pytest.mark.parametrize("variant", ["ring of 3", "", 4])
def test_a_variant_that_there_is_not_is_refused(variant):
    with pytest.raises(ValueError, match=f"variant: unknown name {variant!r}; expected one of no step, prefetch, "):
        make(variant=variant)


def test_a_grid_that_cannot_be_resident_is_refused(monkeypatch):
    with pytest.raises(LaunchError, match="streaming: .* bytes of shared memory"):
        backend = HostBackend(card=card("H100", 2, shared_per_block=4096))
        StreamingDecoder(MODEL, device="host", max_seq_len=8, backend=backend)
    monkeypatch.setattr(HostBackend, "max_resident_blocks", lambda *_: 0)  # as a GPU's driver says it
    with pytest.raises(LaunchError, match="streaming: a block of 384 threads and .* fits on no SM"):
        make()


def test_a_context_beyond_the_memory_is_refused(monkeypatch):
    def empty(*_, **__):
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr("luce_edu.state.DecodeState.empty", empty)
    with pytest.raises(torch.OutOfMemoryError, match="^streaming: .* a context of 8 tokens"):
        decoder("streaming", MODEL, "host", 8)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (([1], 0), "max_new_tokens: .*got 0"), (([1], 9), "do not fit"), (([1301], 2), "0 to 1300, got 1301"),
        (([1], 2, {"temperature": -1.0}), "temperature: .*got -1.0"), (([1], 2, {"top_p": 1.5}), "top_p: .*got 1.5"),
    ],
)
def test_bad_arguments_are_refused_before_the_launch(arguments, message):
    dec = make()
    dec.step(FIRST)
    (prompt, count), how = arguments[:2], arguments[2] if len(arguments) > 2 else {}
    with pytest.raises(ValueError, match=message):
        dec.stream(prompt, count, **how)
    assert dec.position == 1 and dec.launches == 1
