"""Train the demo model, or a teacher for it.

    python training/train.py TEXT_FOLDER OUT_FOLDER [setting=value ...] [teachers=FOLDER,FOLDER,...]

TEXT_FOLDER holds what prepare.py and tokenizer.py wrote. The weights of the evaluation with the lowest validation loss
are saved to OUT_FOLDER with result.json; the held-out text is not read here. Needs torch, transformers and,
to end this hour, a GPU.
With teachers, the target is `distill` parts the mean of the teachers' probabilities and the rest the text itself.
"""

from __future__ import annotations

import copy
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from checkpoint import build_model, save_checkpoint
from prepare import DOCUMENT_END
from tokenizer import BOS_ID, CONTEXT_TOKENS, EOS_ID
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass(frozen=True)
class Settings:
    """One training run. `dropout` is on embeddings and both residual branches; batch counts windows of the context."""

    seed: int = 1
    epochs: int = 40
    batch: int = 16
    lr: float = 2e-3
    weight_decay: float = 0.3
    dropout: float = 0.15
    warmup_steps: int = 100
    evaluations: int = 12
    ema: float = 0.995
    hidden: int = 256
    layers: int = 4
    distill: float = 0.7
    teachers: str = ""


def parse(words: list[str]) -> Settings:
    """Settings from `name=value` words; an unknown name is an error."""
    kinds = {field.name: type(field.default) for field in fields(Settings)}
    pairs = dict(word.split("=", 1) for word in words)
    unknown = sorted(set(pairs) - set(kinds))
    if unknown:
        sys.exit(f"unknown settings {unknown}; there are {sorted(kinds)}")
    return replace(Settings(), **{name: kinds[name](value) for name, value in pairs.items()})


def encode(tokenizer: Tokenizer, text: str) -> torch.Tensor:
    """One stream of token ids [N]: `<s> document </s>` for every document."""
    encoded = tokenizer.encode_batch(text.split(DOCUMENT_END))
    return torch.tensor([token for document in encoded for token in [*document.ids, EOS_ID]])


def windows(stream: torch.Tensor, offset: int) -> torch.Tensor:
    """[W, CONTEXT_TOKENS]: BOS and then consecutive pieces of the stream from `offset`; the tail is left out."""
    size = CONTEXT_TOKENS - 1
    count = (len(stream) - offset) // size
    body = stream[offset : offset + count * size].view(count, size)
    return torch.cat([torch.full((count, 1), BOS_ID, dtype=stream.dtype, device=stream.device), body], dim=1)


def add_dropout(model: LlamaForCausalLM, share: float) -> None:
    """Dropout where transformers' Llama has none: after the embedding and after each branch's last projection."""

    def drop(module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return F.dropout(output, share, training=module.training)

    model.model.embed_tokens.register_forward_hook(drop)
    for layer in model.model.layers:
        layer.self_attn.o_proj.register_forward_hook(drop)
        layer.mlp.down_proj.register_forward_hook(drop)


def fresh_model(settings: Settings) -> LlamaForCausalLM:
    """A new model; a branch's last projection starts smaller, by sqrt(2 layers) (GPT-2, section 2.3)."""
    hidden = settings.hidden
    shape = {"hidden_size": hidden, "intermediate_size": hidden * 11 // 4, "num_hidden_layers": settings.layers}
    shape |= {"num_attention_heads": hidden // 32, "num_key_value_heads": hidden // 128}
    model = build_model(shape)
    for layer in model.model.layers:
        for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
            linear.weight.data.div_(math.sqrt(2 * settings.layers))
    return model


def optimizer_of(model: LlamaForCausalLM, settings: Settings) -> torch.optim.AdamW:
    """AdamW that decays matrices and not norms."""
    matrices = [value for value in model.parameters() if value.ndim == 2]
    norms = [value for value in model.parameters() if value.ndim == 1]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": norms, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.95), fused=True)


def rate(step: int, steps: int, settings: Settings) -> float:
    """Learning rate: linear warm-up, then a cosine to zero."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


@torch.no_grad()
def mean_loss(model: LlamaForCausalLM, batch_WT: torch.Tensor) -> float:
    """Mean next-token loss in nats, in float32, dropout off."""
    model.eval()
    total = 0.0
    for part in batch_WT.split(8):
        logits = model(part).logits[:, :-1].float()
        total += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum").item()
    return total / (batch_WT.numel() - len(batch_WT))


class Run:
    """One training run: the model, its moving average, the optimizer and the data."""

    def __init__(self, texts: Path, settings: Settings) -> None:
        torch.manual_seed(settings.seed)
        torch.set_float32_matmul_precision("high")
        tokenizer = Tokenizer.from_file(str(texts / "tokenizer.json"))
        self.settings = settings
        self.train = encode(tokenizer, (texts / "train.txt").read_text()).to(DEVICE)
        self.validation = windows(encode(tokenizer, (texts / "validation.txt").read_text()).to(DEVICE), 1)
        self.model = fresh_model(settings).to(DEVICE)
        self.average = copy.deepcopy(self.model).requires_grad_(False)
        add_dropout(self.model, settings.dropout)
        self.optimizer = optimizer_of(self.model, settings)
        self.teachers = [load_teacher(Path(folder)) for folder in settings.teachers.split(",") if folder]
        self.compiled_loss = torch.compile(self.loss)

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Training loss of one batch [B, T]."""
        with torch.autocast(DEVICE, torch.bfloat16):
            logits = self.model(batch, use_cache=False).logits[:, :-1].flatten(0, 1).float()
            loss = F.cross_entropy(logits, batch[:, 1:].flatten())
            if not self.teachers:
                return loss
            with torch.no_grad():
                parts = [teacher(batch, use_cache=False).logits[:, :-1].float() for teacher in self.teachers]
                target = sum(F.softmax(part, dim=-1) for part in parts).flatten(0, 1) / len(parts)
        soft = F.cross_entropy(logits, target)
        return self.settings.distill * soft + (1 - self.settings.distill) * loss

    def step(self, batch: torch.Tensor, lr: float) -> torch.Tensor:
        """One update of the weights and of their moving average."""
        self.model.train()
        loss = self.compiled_loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), 1 - self.settings.ema)
        return loss.detach()

    def batches(self, epoch: int) -> list[torch.Tensor]:
        """The shuffled windows of one epoch, cut at a new place each time; a last short batch is left out."""
        generator = torch.Generator().manual_seed(self.settings.seed * 1000 + epoch)
        offset = int(torch.randint(CONTEXT_TOKENS, (1,), generator=generator))
        pieces = windows(self.train, offset)
        order = torch.randperm(len(pieces), generator=generator).to(DEVICE)
        parts = pieces[order].split(self.settings.batch)
        return [part for part in parts if len(part) == self.settings.batch]

    def fit(self, out: Path) -> dict[str, object]:
        """Train, evaluate along the way, save the best; returns the record of the run."""
        settings, started = self.settings, time.monotonic()
        steps = settings.epochs * len(self.batches(0))
        history: list[tuple[float, float, float]] = []
        best, step = math.inf, 0
        marks = {round(steps * (i + 1) / settings.evaluations) for i in range(settings.evaluations)}
        for epoch in range(settings.epochs):
            for batch in self.batches(epoch)[: steps - step]:
                loss = self.step(batch, rate(step, steps, settings))
                step += 1
                if step in marks:
                    value = mean_loss(self.average, self.validation)
                    history.append((step / steps * settings.epochs, loss.item(), value))
                    print(f"{out.name}: epoch {history[-1][0]:.1f} train {loss.item():.4f} validation {value:.4f}")
                    if value < best:
                        best, kept = value, copy.deepcopy(self.average)
        save_checkpoint(kept, out)
        rounded = mean_loss(kept.half().float(), self.validation)
        record = {"settings": asdict(settings), "train_tokens": len(self.train), "steps": step, "history": history}
        record |= {
            "validation_loss": best,
            "validation_loss_float16": rounded,
            "device": torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        }
        record |= {"seconds": round(time.monotonic() - started, 1), "torch": torch.__version__}
        (out / "result.json").write_text(json.dumps(record, indent=2) + "\n")
        return record


def device_name() -> str:
    return torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE


def load_teacher(folder: Path) -> LlamaForCausalLM:
    """A trained checkpoint in float32, frozen."""
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).to(DEVICE).eval().requires_grad_(False)


def main(texts: Path, out: Path, settings: Settings) -> None:
    """Train one model and print its losses."""
    record = Run(texts, settings).fit(out)
    print(f"{out.name}: {record['seconds']} s, validation {record['validation_loss']:.4f}", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(f"usage: {sys.argv[0]} TEXT_FOLDER OUT_FOLDER [setting=value ...]")
    main(Path(sys.argv[1]), Path(sys.argv[2]), parse(sys.argv[3:]))
