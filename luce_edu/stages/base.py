"""The base of all stages: their interface, their state, and the checks before anything runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch

from luce_edu.backends import make_backend
from luce_edu.errors import KernelError, check_int
from luce_edu.paths import csrc_dir
from luce_edu.reference.rope import rope_tables
from luce_edu.stages.dims import BLOCK_THREADS, check_kernels_serve, kernel_defines, max_groups, max_splits
from luce_edu.stages.prefill import Prefill
from luce_edu.stages.sampling import Sampling, SamplingKernel
from luce_edu.stages.tokens import check_tokens
from luce_edu.state import DecodeState


class Decoder(ABC):
    """Decode one sequence (batch 1), one token at a time. A subclass launches a token's kernels in `_step`.

    state          DecodeState, advanced by every token
    hidden_states  [num_hidden_layers + 1, hidden_size] fp32 of the last token: after the embedding and each layer
    logits         [vocab_size] fp32 of the last token; overwritten by the next
    ledger         the launches of the last token
    """

    stage: str  # its name
    words: str  # what runs for a token, in a few words
    colour: str  # in pictures; a name from luce_edu/plots/style.py
    starts: str | None = None  # what its kernels or phases wait for: "plain" launch, "graph" launch, "barrier"; or None
    activations = torch.float32  # the dtype it computes in, which decides how exactly it is judged

    def __init__(self, model, *, device: str | None, max_seq_len: int, backend=None):
        if not hasattr(model, "weights_on"):
            raise ValueError(f"model: expected what luce_edu.load_model returns, got {type(model).__name__}")
        config = model.config
        check_int("max_seq_len", max_seq_len, 1)
        if max_seq_len > config.max_position_embeddings:
            raise ValueError(
                f"max_seq_len: the model was made for {config.max_position_embeddings} positions, got {max_seq_len}"
            )
        self.model, self.config = model, config
        self.backend = make_backend(device) if backend is None else backend
        self.device = self.backend.device
        self.ledger = self.backend.ledger
        self.weights = model.weights_on(self.device)
        self.state = DecodeState.empty(config, max_seq_len, device=self.device)
        self.hidden_states = self._buffer(config.num_hidden_layers + 1, config.hidden_size)
        self.logits = self._buffer(config.vocab_size)
        self._failed = False
        self._has_choice = False  # whether the next token, chosen after the last one, is where kernels read it
        self._has_drawn = False  # whether that choice is a draw
        self._runs = 0  # counts calls, so that a stream notices when another call has advanced the state

    @abstractmethod
    def _step(self, token: int | None) -> None:
        """Enqueue one token at state.position, which writes hidden_states, logits and the tensors of state.

        token  None: the model's own choice after the last token, which the host need not know
        """

    @abstractmethod
    def _read_prompt(self, tokens: list[int]) -> None:
        """Enqueue a prompt from state.position on, which leaves what `_step` would leave after its last token."""

    @abstractmethod
    def _next_token(self) -> int:
        """Return the choice after the last token: its largest logit's index, or the one drawn.

        It is outside the vocabulary if all logits are NaN.
        """

    @abstractmethod
    def _draw(self, sampling: Sampling) -> None:
        """Enqueue a draw from the logits at state.position, which replaces the choice."""

    def _buffer(self, *shape: int, dtype=torch.float32) -> torch.Tensor:
        """Allocate device memory for intermediate results, which kernels must write before they read it."""
        return torch.empty(shape, dtype=dtype, device=self.device)

    def _scratch(self) -> list[torch.Tensor]:
        """List all buffers that a token writes before it reads them."""
        return [self.hidden_states, self.logits]

    @property
    def position(self) -> int:
        """Number of tokens since the last reset."""
        return self.state.position

    @property
    def launches(self) -> int:
        """Number of launches of the last token, counted in the ledger."""
        return len(self.ledger)

    @property
    def barriers(self) -> int:
        """Number of grid barriers that the last token passed."""
        return 0

    def reset(self) -> None:
        """Go back to the state before the first token."""
        self.state.reset()
        self.ledger.clear()
        self._runs += 1
        self._failed = False
        self._has_choice = self._has_drawn = False

    def poison(self) -> None:
        """Fill every scratch buffer with NaN and the unused cache with large noise, so that a stale read shows.

        The choice after the last token is lost too.
        """
        self._has_choice = False
        for tensor in self._scratch():
            # 0xFF bytes are NaN in every float format, and -1 in an integer.
            tensor.view(torch.uint8).fill_(0xFF)
        for unused in self._unused_cache():
            unused.copy_(1e4 * torch.randn(unused.shape, device=self.device))

    def unwritten(self) -> list[torch.Tensor]:
        """What the next token must write before it reads it, as tensors and views: what `poison` fills."""
        return [*self._scratch(), *self._unused_cache()]

    def _unused_cache(self) -> list[torch.Tensor]:
        return [cache[:, :, self.position :] for cache in (self.state.k_cache, self.state.v_cache)]

    def step(self, token: int | None = None) -> torch.Tensor | None:
        """Decode one token; return a copy of the logits for the next, fp32 [vocab_size].

        token  None: the model's own choice after the last token, for timing loops. Its launches are enqueued without
               waiting, and None is returned
        Raises ValueError, with the state unchanged, for a token that is not an integer in range, for None without a
        choice (before the first token and after poison()), and if the sequence is full. If all logits were NaN, there
        is no choice either; choice() then raises, until a token is given.
        """
        result = None
        if token is not None:
            [token] = self._check_tokens([token])
            result = torch.empty_like(self.logits)
        elif not self._has_choice and not self._failed:
            raise ValueError(f"{self.stage}: no token has been chosen yet; call prefill or step(token) first")
        elif self.position >= self.state.max_seq_len:
            raise ValueError(f"{self.stage}: the sequence is full (max_seq_len {self.state.max_seq_len})")
        with self._moving_on(1):
            self._step(token)
        return None if result is None else result.copy_(self.logits)

    def prefill(self, tokens: Iterable[int]) -> torch.Tensor:
        """Read a prompt, continuing from the present state; return the logits after its last token, as `step` does.

        Its tokens go through each layer together, up to SEGMENT at a time (prefill.py, eager.py). The ledger holds
        the launches of the whole prompt.
        Raises, with the state unchanged, ValueError for an empty prompt, a token that is not an integer in range, or
        more tokens than there is room for; and torch.OutOfMemoryError.
        """
        tokens = self._check_tokens(tokens)
        result = torch.empty_like(self.logits)  # first, so that running out of memory leaves the state unchanged
        with self._moving_on(len(tokens)):
            self._read_or_restore(tokens)
        return result.copy_(self.logits)

    def pretend(self, position: int, seed: int = 0) -> None:
        """Fill the state with noise, as if `position` tokens had been decoded, to time the tokens that follow.

        Raises ValueError for a position after which no token fits.
        """
        check_int("position", position, 1, self.state.max_seq_len - 1)
        self.reset()
        generator = torch.Generator(self.device).manual_seed(seed)
        for name in DecodeState.TENSORS:
            getattr(self.state, name).normal_(std=0.5, generator=generator)
        self.state.position = position - 1
        self.step(0)

    def choice(self) -> int:
        """Wait for the model's choice after the last token, and return it.

        Raises KernelError if all logits were NaN, after the last token or after an earlier one that step() chose from.
        """
        return self._checked(self._next_token())

    def _checked(self, choice: int | None) -> int:
        if choice is None or not 0 <= choice < self.config.vocab_size:
            raise KernelError(f"{self.stage}: all logits are NaN, so there is no next token")
        return choice

    def draw(
        self, temperature: float = 1.0, *, top_k: int | None = None, top_p: float | None = None, seed: int = 0
    ) -> None:
        """Replace the choice after the last token by a token drawn from its logits, as `Sampling` says.

        The draw is one launch more in the ledger, and is not waited for. choice() then returns the token, and step()
        decodes it. The random numbers depend on seed and position only, so an earlier draw from these logits changes
        nothing.
        Raises, with nothing changed, ValueError for an argument out of range, a temperature of 0 (the choice is greedy
        without a draw), and without logits to draw from.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        if temperature == 0:
            raise ValueError("temperature: expected a number above 0; without a draw, the largest logit is the choice")
        if self._failed or not self._has_choice:
            raise ValueError(f"{self.stage}: there are no logits to draw from; call prefill or step(token) first")
        self._failed = True  # until it is enqueued
        self._draw(sampling)
        self._failed, self._has_drawn = False, True

    def generate(self, prompt_ids: Iterable[int], max_new_tokens: int = 64, **sampling) -> list[int]:
        """Continue a prompt from a fresh state; stop early at the model's end-of-text token. See `stream`."""
        return list(self.stream(prompt_ids, max_new_tokens, **sampling))

    def stream(
        self, prompt_ids: Iterable[int], max_new_tokens: int = 64, *, temperature: float = 0.0,
        top_k: int | None = None, top_p: float | None = None, seed: int = 0,
    ) -> Iterator[int]:  # fmt: skip
        """Continue a prompt as `generate` does, but yield each token as it is decoded.

        The arguments are checked at once, before the first token. Another call on this decoder ends the stream, and
        its next token raises ValueError.
        temperature  0: greedy. Above 0: each token is drawn, as `Sampling` says for this and the other arguments
        """
        check_int("max_new_tokens", max_new_tokens, 1)
        how = {"top_k": top_k, "top_p": top_p, "seed": seed}
        Sampling(temperature, **how)  # checks them
        tokens = self._check_tokens(prompt_ids, room=self.state.max_seq_len - max_new_tokens + 1)
        return self._stream(tokens, max_new_tokens, temperature, how)

    def _stream(self, tokens: list[int], max_new_tokens: int, temperature: float, how: dict) -> Iterator[int]:
        self.reset()
        self.prefill(tokens)
        for left in reversed(range(max_new_tokens)):
            runs = self._runs
            if temperature > 0:
                self.draw(temperature, **how)
            token = self.choice()
            yield token
            if token in self.config.eos_token_ids:
                return
            self._check_runs(runs)
            if left:
                self.step(token)

    def _check_runs(self, runs: int) -> None:
        if self._runs != runs:
            raise ValueError(f"{self.stage}: another call has advanced this decoder, so this stream has ended")

    def _read_or_restore(self, tokens: list[int]) -> None:
        """Read a prompt; if memory runs out, restore the state. The cache needs no copy, as a prompt appends to it."""
        position, recurrent = self.state.position, self._recurrent_tensors()
        before: list[torch.Tensor] = []
        try:
            if position > 0:
                before = [tensor.clone() for tensor in recurrent]
            self._read_prompt(tokens)
        except torch.OutOfMemoryError:
            for i, tensor in enumerate(recurrent):
                if position == 0:
                    tensor.zero_()
                elif before:  # empty if memory ran out while these copies were made
                    tensor.copy_(before[i])
            self.state.position = position
            self._failed = self._has_choice = False
            raise torch.OutOfMemoryError(
                f"{self.stage}: out of memory on {self.device} for a prompt of {len(tokens)} tokens; "
                "the state is as before"
            ) from None

    def _recurrent_tensors(self) -> tuple[torch.Tensor, ...]:
        return self.state.conv_state, self.state.recurrent_state

    @contextmanager
    def _moving_on(self, tokens: int):
        """Advance the position by `tokens` after the body. If the body fails, refuse further calls until reset().

        A kernel that failed leaves the state undefined.
        """
        if self._failed:
            raise ValueError(f"{self.stage}: a kernel failed and left the state undefined; call reset() first")
        self._failed = True  # until everything is enqueued
        self._runs += 1
        self.ledger.clear()
        position = self.state.position
        yield
        self.state.position = position + tokens
        self._failed = self._has_drawn = False
        self._has_choice = True

    def _check_tokens(self, tokens: Iterable[int], room: int | None = None) -> list[int]:
        """Return `tokens` as a list of ints, checked. room: how many fit; None for the rest of the state."""
        left = self.state.max_seq_len - self.position
        return check_tokens(tokens, vocab_size=self.config.vocab_size, room=left if room is None else room)


class KernelDecoder(Decoder):
    """The base of stages made of kernels in csrc/: compile them, and hold the buffers that they share.

    Buffers, all fp32: mid [hidden_size], between the two halves of a layer; qkv [conv_dim]; z, o [the larger of
    value_dim and q_dim]; beta, g [linear_num_value_heads]; projected, q with its gate, k and v side by side;
    act [intermediate_size]; partials, the results of splits and of groups of them in csrc/attention.cuh, which blocks
    merge.
    """

    source: str
    kernels: tuple[str, ...]

    def __init__(self, model, *, device, max_seq_len, backend=None):
        if hasattr(model, "config"):
            check_kernels_serve(model.config)
        super().__init__(model, device=device, max_seq_len=max_seq_len, backend=backend)
        config = self.config
        self.module = self.backend.compile(self.source, self.kernels, self._defines())
        q_dim = config.num_attention_heads * config.head_dim
        kv_dim = config.num_key_value_heads * config.head_dim
        self.mid = self._buffer(config.hidden_size)
        self.qkv = self._buffer(config.conv_dim)
        self.z = self._buffer(config.value_dim)
        self.beta = self._buffer(config.linear_num_value_heads)
        self.g = self._buffer(config.linear_num_value_heads)
        self.o = self._buffer(max(config.value_dim, q_dim))
        self.projected = self._buffer(2 * q_dim + 2 * kv_dim)
        self.act = self._buffer(config.intermediate_size)
        results = max_splits(config) + max_groups(config)
        self.partials = self._buffer(config.num_attention_heads, results, config.head_dim + 4)
        # The last kernel of a token writes the next token here, and the first kernel reads it from here.
        self.next_token = self._buffer(1, dtype=torch.int32)
        self._expected: int | None = None  # its value, if the host knows it
        # One Best {value, index} per block of the kernel that ends in the argmax.
        self.block_best = self._buffer(self._argmax_blocks(), 2)
        # Counters; every kernel sets them back to 0.
        self.attention_arrivals = torch.zeros(
            config.num_key_value_heads, 1 + max_groups(config), dtype=torch.int32, device=self.device
        )
        self.argmax_arrivals = torch.zeros(1, dtype=torch.int32, device=self.device)
        cos, sin = rope_tables(
            torch.arange(max_seq_len, device=self.device),
            rotary_dim=config.rotary_dim,
            theta=config.rope_theta,
        )
        half = config.rotary_dim // 2  # because the reference's tables hold each angle twice
        self.rope_cos, self.rope_sin = cos[:, :half].float().contiguous(), sin[:, :half].float().contiguous()
        self._prefill: Prefill | None = None  # made for the first prompt
        # Made for the first draw. But a changed source tree (luce_edu.faults.planted) may be gone by then.
        changed = self.backend.csrc_dir not in (None, csrc_dir())
        self._sampling: SamplingKernel | None = SamplingKernel(self) if changed else None
        self._named = False  # whether the backend knows the tensors by name

    def _defines(self) -> dict[str, object]:
        """Return the -D macros that the kernels are compiled with."""
        return kernel_defines(self.config)

    @abstractmethod
    def _argmax_blocks(self) -> int:
        """Return the number of blocks of the kernel that ends in the argmax."""

    def _resident_blocks(self, kernel: str, smem: int = 0) -> int:
        """Return how many blocks the device holds at once, from the occupancy query."""
        return self.backend.max_resident_blocks(self.module[kernel], BLOCK_THREADS, smem)

    def named_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return every tensor that the kernels may access, by kind ("weights", "state", "activations") and name."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        state = {name: getattr(self.state, name) for name in DecodeState.TENSORS}
        return {"weights": dict(self.weights.named_tensors()), "state": state, "activations": own}

    @contextmanager
    def _moving_on(self, tokens):
        if not self._named:  # here, because by now all buffers exist
            self._named = True
            for tensors in self.named_tensors().values():
                self.backend.name_tensors(tensors)
        with super()._moving_on(tokens):
            yield

    def _launch(self, kernel: str, grid, *args, smem: int = 0, **how: bool) -> None:
        self.backend.launch(self.module[kernel], grid, BLOCK_THREADS, smem, args, **how)

    def _scratch(self) -> list[torch.Tensor]:
        return super()._scratch() + [
            self.mid, self.qkv, self.z, self.beta, self.g, self.o, self.projected, self.act, self.partials,
            self.next_token, self.block_best,
        ] + (self._prefill.scratch() if self._prefill else []) + (
            [self._sampling.block_best] if self._sampling else []
        )  # fmt: skip

    def _read_prompt(self, tokens):
        if self._prefill is None:
            self._prefill = Prefill(self)
        self._place_token(tokens[-1])
        self._prefill.read(tokens)

    def _place_token(self, token: int | None) -> None:
        """Write the token where the kernels read it, unless it is the model's own choice, which is there already.

        It is stored as its complement (csrc/argmax.cuh, token_at), so that a missing write by the argmax is detected.
        """
        if token is not None and token != self._expected:
            self.next_token.fill_(~token)
        self._expected = None

    def _next_token(self) -> int:
        self._expected = int(self.next_token)
        return self._expected

    def _sampler(self) -> SamplingKernel:
        if self._sampling is None:
            self._sampling = SamplingKernel(self)
        return self._sampling

    def _draw(self, sampling):
        self._expected = None
        self._sampler().draw(sampling, redraw=self._has_drawn)

    def poison(self) -> None:
        super().poison()
        self._expected = None

    def reset(self) -> None:
        super().reset()
        self._expected = None
        self.attention_arrivals.zero_()
        self.argmax_arrivals.zero_()
        if self._sampling is not None:
            self._sampling.reset()
