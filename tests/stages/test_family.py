"""The larger dense Qwen3.5 shapes: one full-size layer of each kind, what a T4 has room for, and the untied head."""

import dataclasses
import math

import pytest
import torch
from models import UNTIED, make_model

from luce_edu.backends.host import HostBackend
from luce_edu.config import FULL_ATTENTION
from luce_edu.family import FAMILY, family_config, one_of_each
from luce_edu.stages import STAGES, decoder
from luce_edu.stages.dims import (
    BLOCK_THREADS,
    MAX_LAYERS,
    STATIC_SHARED,
    check_kernels_serve,
    kernel_defines,
)
from luce_edu.stages.megakernel import MegakernelDecoder, table_bytes
from luce_edu.verification import verify, verify_prefill
from luce_edu.weights import expected_tensors

LARGER = FAMILY[1:]


def test_the_shapes_have_the_published_numbers_of_parameters():
    """In billions, of the text model: 0.75, 1.88, 4.2 and 8.95; with 24, 24, 32 and 32 layers."""
    configs = [family_config(size) for size in FAMILY]
    parameters = [sum(map(math.prod, expected_tensors(config).values())) for config in configs]
    assert [round(n / 1e9, 2) for n in parameters] == [0.75, 1.88, 4.21, 8.95]
    assert [config.layer_types.count(FULL_ATTENTION) for config in configs] == [6, 6, 8, 8]
    assert [config.linear_num_value_heads // config.linear_num_key_heads for config in configs] == [1, 1, 2, 2]
    assert [config.tie_word_embeddings for config in configs] == [True, True, True, False]
    for config in configs:
        check_kernels_serve(config)


def test_a_full_size_layer_of_each_kind_verifies_in_the_megakernel():
    """With the longest vector, value heads in groups, and a head of its own."""
    model = make_model(one_of_each(family_config("9b"), vocab_size=101))
    report = verify(model, device="host", steps=2, stages=["megakernel"])
    assert report.passed, str(report)


@pytest.mark.full
@pytest.mark.parametrize("size", LARGER)
def test_a_full_size_layer_of_each_kind_verifies_in_every_stage_and_prompt(size):
    model = make_model(one_of_each(family_config(size)))
    reports = [
        verify(model, device="host", steps=2, stages=STAGES),
        verify_prefill(model, device="host", stages=["per_layer"], prompts=(3, 65), steps=1),
    ]
    assert all(report.passed for report in reports), "\n".join(map(str, reports))


def test_on_a_t4_as_many_layers_fit_beside_the_longest_vector_as_are_allowed():
    left = HostBackend(card="T4").shared_memory_per_block - STATIC_SHARED
    most, one_more = (dataclasses.replace(UNTIED, num_hidden_layers=n) for n in (MAX_LAYERS, MAX_LAYERS + 1))
    assert table_bytes(most) <= left < table_bytes(one_more)


def test_the_megakernel_of_the_longest_vector_is_resident_once_per_sm_of_a_t4():
    backend, config = HostBackend(card="T4"), family_config("9b")
    kernel = backend.compile("megakernel.cu", ["megakernel"], kernel_defines(config))["megakernel"]
    smem = table_bytes(config)
    assert STATIC_SHARED < kernel.program.shared_bytes + smem <= backend.shared_memory_per_block
    assert kernel.resident_blocks(BLOCK_THREADS, smem, registers=128) == backend.sm_count


def test_a_decoder_launches_with_its_tables_in_dynamic_memory():
    dec = MegakernelDecoder(make_model(UNTIED), device="host", max_seq_len=4)
    dec.step(1)
    assert dec.ledger.entries[0].smem == table_bytes(UNTIED)


@pytest.mark.planted
def test_a_head_that_is_the_embedding_where_it_should_not_be_is_seen():
    model = make_model(UNTIED)
    tied = dataclasses.replace(model, weights=dataclasses.replace(model.weights, lm_head=model.weights.embed_tokens))

    def verified(made_of):
        return verify(
            model, device="host", steps=2, stages=["megakernel"],
            make=lambda stage: decoder(stage, made_of, "host", max_seq_len=2),
        ).passed  # fmt: skip

    assert verified(model) and not verified(tied)
    assert not torch.equal(model.weights.lm_head, model.weights.embed_tokens)
