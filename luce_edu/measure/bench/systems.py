"""The systems that a benchmark compares, behind one interface: our stages, transformers and llama.cpp."""

from __future__ import annotations

import gc
import importlib.util
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch

from luce_edu.errors import NotMeasured
from luce_edu.measure.latency import time_steps
from luce_edu.measure.launches import profiled_launches
from luce_edu.stages import STAGES, decoder
from luce_edu.stages.streaming import StreamingDecoder

READER = "cuBLAS and chunked kernels"  # how every stage except eager reads a prompt


class System(ABC):
    """A program that decodes one sequence greedily.

    launches, kernels, barriers  per step; None if they cannot be counted
    reader  a name for how this system reads a prompt; of the systems with the same reader, one is timed
    """

    name: str
    launches: int | None = None
    kernels: int | None = None
    barriers: int | None = None

    @property
    def reader(self) -> str:
        return self.name

    @abstractmethod
    def prefill(self, tokens: Sequence[int]) -> None:
        """Read a prompt from a fresh state."""

    def ways_to_read(self) -> Sequence[Callable[[Sequence[int]], None]]:
        """All functions that must read a prompt correctly before this system is timed."""
        return (self.prefill,)

    @abstractmethod
    def step(self) -> None:
        """Enqueue the decoding of this system's own last choice, without waiting for it if possible."""

    @abstractmethod
    def choice(self) -> int:
        """Wait, and return the greedy next token."""

    @abstractmethod
    def pretend(self, context: int) -> None:
        """Go to the state after `context` tokens of any content, with room for a timing loop."""

    def rewind(self, context: int) -> None:  # noqa: B027
        """Go back to the position after `pretend` if that takes no time; otherwise do nothing."""

    def time_decode(self, *, steps: int) -> tuple[list[float], float | None]:
        """Return (GPU microseconds of each step, CPU microseconds to enqueue one)."""
        return time_steps(self.step, steps=steps)

    def count_launches(self) -> int | None:
        """Return the launches per step; runs a profiler if nothing else counts them, and may raise NotMeasured."""
        return self.launches

    def wait(self) -> None:
        """Wait until all enqueued work is done."""
        torch.cuda.synchronize()

    def close(self) -> None:
        """Free the memory."""
        gc.collect()
        torch.cuda.empty_cache()


class StageSystem(System):
    """One of our stages, or a variant of `streaming`, as "streaming, no ring"."""

    def __init__(self, name: str, model, *, max_seq_len: int, device: str | None = None):
        self.name = name
        stage, _, variant = name.partition(", ")
        if variant:
            self._decoder = StreamingDecoder(model, device=device, max_seq_len=max_seq_len, variant=variant)
        else:
            self._decoder = decoder(stage, model, device, max_seq_len=max_seq_len)
        self._decoder.step(0)  # the ledger counts the launches of this step
        entries = self._decoder.ledger.entries
        self.launches, self.barriers = self._decoder.launches, self._decoder.barriers
        self.kernels = sum(len(entry.captured) or 1 for entry in entries)
        if stage == "eager":
            self.kernels, self._decoder.counts = None, False  # counting PyTorch's operations slows it down

    @property
    def reader(self):
        return self.name if self.name == "eager" else READER

    def prefill(self, tokens):
        self._decoder.reset()
        self._decoder.prefill(tokens)

    def ways_to_read(self):
        return (self.prefill, self._prefill_by_steps)

    def _prefill_by_steps(self, tokens) -> None:
        """Read the prompt with the decode step, which is what is timed."""
        self._decoder.reset()
        for token in tokens:
            self._decoder.step(token)

    def step(self):
        self._decoder.step()

    def choice(self):
        return self._decoder.choice()

    def pretend(self, context):
        self._decoder.pretend(context)

    def logits_after(self, context: int, tokens: int) -> torch.Tensor:
        """Return the logits of so many tokens after `pretend(context)`, always the same tokens."""
        self.pretend(context)
        vocab_size = self._decoder.config.vocab_size
        return torch.stack([self._decoder.step(number * vocab_size // tokens) for number in range(tokens)])

    def rewind(self, context):
        self._decoder.state.position = context  # the other states stay: a step takes the same time

    def close(self):
        del self._decoder
        super().close()


class TransformersSystem(System):
    """Qwen3.5 of the transformers library with the same weights, in bf16, as its documentation runs it.

    compiled  a static cache and torch.compile(mode="reduce-overhead"), which captures CUDA graphs
    Raises NotMeasured if the library is not installed or has no Qwen3.5.
    """

    def __init__(self, model, *, max_seq_len: int, device: str | torch.device = "cuda", compiled: bool = False):
        try:
            from transformers import AutoModelForCausalLM, Qwen3_5TextConfig
        except ImportError as error:
            raise NotMeasured(f"transformers has no Qwen3.5 here ({error})") from None
        kernels = " + flash-linear-attention" if importlib.util.find_spec("fla") else ""
        self.name = f"transformers{kernels}{', static cache and CUDA graphs' if compiled else ''}"
        self.device, self._room, self._compiled = torch.device(device), max_seq_len, compiled
        config = Qwen3_5TextConfig(**_config_fields(model.config))
        with torch.device(self.device):
            # Converting a whole fp32 model to bf16 would round the angles of RoPE as well.
            self._model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
        self._model.eval().requires_grad_(False)
        weights = dict(model.weights_on(self.device).named_tensors())
        missing, unexpected = self._model.load_state_dict(weights, strict=False)
        if unexpected or [name for name in missing if name != "lm_head.weight"]:
            raise NotMeasured(f"transformers expects other tensors: {sorted({*missing, *unexpected})[:3]}")
        self._cache = None
        self._forward = self._model.forward
        if compiled:
            self._forward = torch.compile(self._model.forward, mode="reduce-overhead", fullgraph=True)

    def _fresh(self) -> None:
        from transformers import DynamicCache, StaticCache

        config = self._model.config
        self._cache = StaticCache(config, max_cache_len=self._room) if self._compiled else DynamicCache(config=config)

    @torch.no_grad()
    def prefill(self, tokens):
        self._fresh()
        self._read(self._model.forward, torch.tensor([list(tokens)], device=self.device))

    @torch.no_grad()
    def step(self):
        if self._compiled:
            torch.compiler.cudagraph_mark_step_begin()
        self._read(self._forward, self._next.clone())

    def _read(self, run: Callable, tokens: torch.Tensor) -> None:
        logits = run(input_ids=tokens, past_key_values=self._cache, use_cache=True, logits_to_keep=1).logits
        self._next = logits[:, -1].argmax(-1, keepdim=True)

    def choice(self):
        return int(self._next)

    def count_launches(self):
        return profiled_launches(self.step) if self.device.type == "cuda" else None

    def pretend(self, context):
        tokens = torch.randint(self._model.config.vocab_size, (context,), generator=torch.Generator().manual_seed(0))
        self.prefill(tokens.tolist())

    def close(self):
        del self._model, self._forward, self._cache
        super().close()


def _config_fields(config) -> dict:
    """Return our config in the field names of transformers."""
    from dataclasses import asdict

    fields = asdict(config)
    fields["eos_token_id"] = list(fields.pop("eos_token_ids")) or None
    fields["layer_types"] = list(config.layer_types)
    fields["rope_parameters"] = {
        "rope_type": "default",
        "rope_theta": fields.pop("rope_theta"),
        "partial_rotary_factor": fields["partial_rotary_factor"],
    }
    return fields


class LlamaCppSystem(System):
    """llama.cpp through llama-cpp-python, with a GGUF file of the same model and all layers on the GPU.

    Raises NotMeasured if the package is not installed or refuses the file.
    """

    name = "llama.cpp"

    def __init__(self, gguf: str, *, max_seq_len: int):
        try:
            from llama_cpp import Llama
        except ImportError:
            raise NotMeasured("llama-cpp-python is not installed") from None
        try:
            self._llama = Llama(gguf, n_gpu_layers=-1, n_ctx=max_seq_len, n_batch=512, flash_attn=True, verbose=False)
        except (ValueError, OSError, RuntimeError) as error:
            raise NotMeasured(f"llama.cpp refuses {gguf}: {error}") from None

    def prefill(self, tokens):
        self._llama.reset()
        self._llama.eval(list(tokens))

    def step(self):
        self._llama.eval([self.choice()])

    def choice(self):
        return int(self._llama.sample(temp=0.0))

    def pretend(self, context):
        generator = torch.Generator().manual_seed(0)
        self.prefill(torch.randint(self._llama.n_vocab(), (context,), generator=generator).tolist())

    def time_decode(self, *, steps):
        """Time with the host's clock: llama.cpp has its own stream, and a step returns when its logits are there."""
        for _ in range(8):
            self.step()
        times = []
        for _ in range(steps):
            started = time.perf_counter()
            self.step()
            times.append(1e6 * (time.perf_counter() - started))
        return times, None

    def wait(self):
        """Nothing to wait for: a step has ended when it returns."""

    def close(self):
        self._llama.close()
        super().close()


def make_systems(
    model, *, max_seq_len: int, stages: Sequence[str] | None = None, baselines: bool = True, gguf: str | None = None
) -> dict[str, Callable[[], System]]:
    """Return a function for each system, by name, that loads it on the GPU and may raise NotMeasured."""
    chosen = STAGES if stages is None else tuple(stages)
    unknown = [stage for stage in chosen if stage not in STAGES]
    if unknown:
        raise ValueError(f"unknown stage {', '.join(map(repr, unknown))}; expected some of {', '.join(STAGES)}")
    makers: dict[str, Callable[[], System]] = {
        stage: (lambda stage=stage: StageSystem(stage, model, max_seq_len=max_seq_len)) for stage in chosen
    }
    if baselines:
        makers["transformers"] = lambda: TransformersSystem(model, max_seq_len=max_seq_len)
        makers["transformers, compiled"] = lambda: TransformersSystem(model, max_seq_len=max_seq_len, compiled=True)
        makers["llama.cpp"] = lambda: _llama_cpp(gguf, max_seq_len)
    return makers


def _llama_cpp(gguf: str | None, max_seq_len: int) -> System:
    if gguf is None:
        raise NotMeasured("no GGUF file was given; --gguf FILE")
    return LlamaCppSystem(gguf, max_seq_len=max_seq_len)
