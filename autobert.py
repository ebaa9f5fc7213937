"""The model: backbones of attention graphs and light convolutions, BERT's embeddings and heads, pre-training.

Paper Sec. 3.1 (inter-layer search space), Fig. 1 and 7, Table 6, App. D. A backbone is a tuple of genes, one a layer:
a formula of ops.py for an attention layer, or "conv K" for a convolution layer with a kernel of K taps. Everything
around the genes is BERT: embeddings, residual + LayerNorm after each part, a feed-forward part of width 4d, a pooler,
and the two pre-training tasks, masked language modelling (MLM) and next sentence prediction (NSP).

    n tokens, d hidden size, H heads, d_h = d/H head size, k kernel taps, L layers, B batch, M masked, V vocabulary

    python autobert.py summary                      # parameters and FLOPs of the published backbones
    python autobert.py pretrain --corpus FILE ...   # MLM + NSP; writes a checkpoint for glue.py
    python autobert.py pretrain --resume model.pt   # goes on where that run stopped
    python autobert.py bench                        # how fast, and with how much memory
    python autobert.py analyse uniformity           # do tokens grow alike from layer to layer? (Fig. 5)
    python autobert.py analyse cost                 # what backbones cost beside bert (Table 7)
    python autobert.py analyse ablations RUN        # att-only, conv-only and others, trained alike (Table 5)
    python autobert.py analyse kendall RUN          # search scores beside those of full training (Fig. 8)
    torchrun --standalone --nproc-per-node 8 -- autobert.py pretrain ...    # many devices; without the -- torchrun
                                                                            # takes --n for an option of its own

Read after ops.py and data.py; then supernet.py or glue.py.
"""
import argparse
import contextlib
import ctypes
import html
import importlib
import json
import math
import os
import pickle
import re
import shutil
import sys
import tempfile
import time
import zipfile
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as distributed
import torch.nn as nn
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import data
import ops
from data import UserError


class Diverged(Exception):
    """Training met a loss or gradient that is not finite."""


# ---- Sizes (Table 6) ----


@dataclass(frozen=True)
class ModelConfig:
    """What a model is apart from its backbone.

    kernel_chain: convolutions hold what BIWS shares (supernet.py). fast: "auto" takes fused attention and conv1d
    where they were measured faster, "never" the plain definitions, "always" the other ones. checkpointing: keep only
    each layer's input for the backward pass and compute the rest again (slower, less memory).
    """
    layers: int
    hidden: int
    heads: int
    embedding: int
    vocab: int = 30_000  # App. D.2
    positions: int = 512
    dropout: float = 0.1
    init_std: float = 0.02
    kernel_chain: bool = False
    fast: str = "auto"
    checkpointing: bool = False


SIZES = {
    "toy": ModelConfig(4, 64, 2, 64, vocab=data.TOY_VOCAB, positions=128, dropout=0.0, init_std=0.05),
    # DEVIATION: Table 6 prints 256-dimensional embeddings, but the 13M parameters of Table 4 fit only 128
    "mini": ModelConfig(4, 128, 2, 128, vocab=8000, dropout=0.0),  # what two CPU cores train in half an hour
    "small": ModelConfig(12, 256, 4, 128),
    "base": ModelConfig(12, 768, 12, 768),
    "large": ModelConfig(24, 1024, 16, 1024),
}


PRECISIONS = ("fp32", "medium", "bf16")
FAST = ("auto", "always", "never")


@dataclass(frozen=True)
class PretrainSettings:
    """One pre-training run. warmup: share of the steps; n: tokens a sequence; weight decay, clipping: BERT's.

    accumulate: pieces that a process works through a batch in, one after another; they cost time and save memory.
    precision: "fp32" exact; "medium" fp32 whose products may round to bf16; "bf16" by autocast.
    """
    steps: int = 2000
    batch: int = 16
    n: int = 40
    lr: float = 2e-3
    warmup: float = 0.1
    beta2: float = 0.98
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    accumulate: int = 1
    precision: str = "fp32"


# Table 6. CHOICE: BERT's million steps; the paper trains 40 epochs, whatever that is in steps for the corpus at hand
PRETRAIN = {
    "toy": PretrainSettings(),
    "mini": PretrainSettings(20_000, 16, 128, 1e-3, 0.05, 0.98),
    "small": PretrainSettings(1_000_000, 320, 128, 1e-4, 0.01, 0.999),
    "base": PretrainSettings(1_000_000, 160, 128, 1e-4, 0.01, 0.999),
    "large": PretrainSettings(1_000_000, 80, 128, 1e-4, 0.02, 0.999),
}


# ---- Backbones (Fig. 7, Table 5, App. D.2) ----

KERNELS = (3, 5, 7, 9, 15, 31, 65)  # Sec. 3.1
_CONVOLUTIONS = (65, 9, 3, 7, 7, 3)  # layers 1, 3, .. 11 of Fig. 7
_ZERO = tuple(gene for kernel, layer in zip(_CONVOLUTIONS, (2, 4, 6, 8, 10, 12))
              for gene in (f"conv {kernel}", ops.ATTENTIONS[f"L{layer}"]))
BACKBONES = {
    "bert": (ops.ATTENTIONS["bert"],) * 12,
    "autobert-zero": _ZERO,
    "att-only": tuple(_ZERO[i | 1] for i in range(12)),  # each convolution replaced by the attention behind it
    "conv-only": tuple(_ZERO[i & ~1] for i in range(12)),  # each attention by the convolution before it
}


def kernel_of(gene):
    """The kernel size of a convolution gene, None for an attention. Example: "conv 65" -> 65"""
    return int(gene[5:]) if gene.startswith("conv ") else None


def check_backbone(backbone, layers=None, where="backbone"):
    """The backbone with every gene in its canonical form; UserError with layer and reason if one is not legal."""
    if not isinstance(backbone, (list, tuple)) or not all(isinstance(gene, str) for gene in backbone) or not backbone:
        raise UserError(f'{where}: expected a list of genes such as "conv 9" or "{ops.ATTENTIONS["bert"]}"')
    if layers is not None and len(backbone) != layers:
        raise UserError(f"{where}: {len(backbone)} layers; this size has {layers}")
    genes = []
    for number, gene in enumerate(backbone, 1):
        if gene.startswith("conv"):
            if gene not in [f"conv {kernel}" for kernel in KERNELS]:
                raise UserError(f"{where}, layer {number}: {gene[:40]!r}; kernels are {', '.join(map(str, KERNELS))}")
            genes.append(gene)
            continue
        try:
            dag = ops.parse(gene)
        except ValueError as error:
            raise UserError(f"{where}, layer {number}: {error}") from None
        if why := ops.why_illegal(dag):
            raise UserError(f"{where}, layer {number}: {gene[:120]!r} is illegal: {why}")
        genes.append(ops.formula(dag))
    return tuple(genes)


def to_large(backbone):
    """App. D.2: pairs of layers are blocks, each inserted again after itself: 1 2 1 2 3 4 3 4 ... Structure only."""
    return tuple(gene for i in range(0, len(backbone), 2) for gene in backbone[i:i + 2] * 2)


def at_depth(backbone, layers):
    """A published backbone at another depth. CHOICE: pairs taken evenly from the first to the last; twice: to_large.

    Example: at_depth(range(12), 4) -> (0, 1, 10, 11)
    """
    n = len(backbone)
    if layers == 2 * n:
        return to_large(backbone)
    if layers % 2 or not 2 <= layers <= n:
        raise UserError(f"{layers} layers; a backbone of {n} can be cut to an even number from 2, or doubled")
    pairs, steps = [backbone[i:i + 2] for i in range(0, n, 2)], max(1, layers // 2 - 1)
    return tuple(gene for i in range(layers // 2) for gene in pairs[round(i * (len(pairs) - 1) / steps)])


def load_backbone(name_or_path, layers=None):
    """A backbone of BACKBONES by name, or one that save_backbone wrote; UserError if it is neither.

    layers: the depth at which a published one is wanted, and which a file must have.
    """
    if name_or_path in BACKBONES:
        return at_depth(BACKBONES[name_or_path], layers) if layers else BACKBONES[name_or_path]
    try:
        with open(name_or_path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        raise UserError(f"backbone {name_or_path!r}: neither a file nor one of {', '.join(BACKBONES)}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name_or_path}: not a JSON file: {error}") from None
    return check_backbone(content.get("backbone") if isinstance(content, dict) else None, layers, name_or_path)


def save_backbone(path, backbone):
    """Write {"backbone": [gene, ...]}, one gene a line."""
    data.write_beside(path, json.dumps({"backbone": list(backbone)}, indent=1) + "\n")


# ---- The two kinds of layer (Sec. 3.1, Fig. 1) ----


class LayerNorm(nn.LayerNorm):
    """torch's, with BERT's epsilon."""

    def __init__(self, width):
        super().__init__(width, eps=1e-12)


class Dropout(nn.Dropout):
    """torch's, by ops.drop."""

    def forward(self, x):
        return ops.drop(x, self.p if self.training else 0.0)


class DagAttention(nn.Module):
    """Multi-head attention by a graph of primitives, the same in every head; only inputs it reads have weights.

    Eq. 1 and 2 with any formula in the place of softmax(Q K^T / sqrt(d_h)) V.
    """

    def __init__(self, config, formula):
        super().__init__()
        self.dag, self.heads, self.dropout = ops.parse(formula), config.heads, config.dropout
        self.fused, self.fast = ops.fuse(self.dag), config.fast
        self.inputs = nn.ModuleDict({x: nn.Linear(config.hidden, config.hidden) for x in ops.used(self.dag)})
        self.out = nn.Linear(config.hidden, config.hidden)  # W_O
        self.norm = LayerNorm(config.hidden)

    def forward(self, x, mask):
        B, n, d = x.shape
        heads = [self.inputs[name](x).view(B, n, self.heads, -1).transpose(1, 2) if name in self.inputs else None
                 for name in ops.INPUTS]  # Q = X W_Q, K, V, P (Eq. 1), each (B, H, n, d_h)
        drop, like = self.dropout if self.training else 0.0, next(x for x in heads if x is not None)
        # measured on a CPU: the fused kernel takes 0.5 to 0.9 of the plain one's time in fp32, 1 to 4 times it in bf16;
        # with dropout it falls back to plain operations, and to torch's slow draws
        sooner = like.is_cuda or like.dtype == torch.float32 and not drop
        fused = self.fast == "always" or self.fast == "auto" and sooner
        y = ops.evaluate(self.fused if fused else self.dag, heads, mask, drop)  # (B, H, n, d_h)
        return self.out(y.transpose(1, 2).reshape(B, n, d))  # .. W_O (Eq. 2)


def chain(kernel):
    """The kernels on the way from the 65 shared taps to `kernel`. Example: 9 -> [31, 15, 9]; 65 -> []"""
    return [size for size in reversed(KERNELS[:-1]) if size >= kernel]


def band(kernel, n):
    """A convolution as a matrix: (H, k) taps -> (H, n, n), row i holding the taps centred on column i.

    'Same' zero padding of k//2; taps that reach past both ends are cut off.
    Example: taps a b c, n = 3 -> [[b, c, 0], [a, b, c], [0, a, b]]
    """
    margin = n - 1 - kernel.shape[-1] // 2
    line = F.pad(kernel, (margin, margin))  # (H, 2n - 1), the centre tap in the middle; a negative margin crops
    return line.unfold(-1, n, 1).flip(-2)  # row i = line[n-1-i : 2n-1-i]


class LightConv(nn.Module):
    """Linear d -> 2d, GLU, lightweight convolution, linear d -> d.

    One kernel a head, its taps normalised by softmax, over the contiguous channels [h d/H, (h+1) d/H). With
    config.kernel_chain the taps come from the super-net's parameters: centre of the next larger kernel times a
    matrix T, step by step from 65 (Sec. 3.2; T shared by all heads).
    """

    def __init__(self, config, kernel):
        super().__init__()
        self.heads, self.dropout, self.fast = config.heads, config.dropout, config.fast
        self.sizes = chain(kernel) if config.kernel_chain else []
        self.glu = nn.Linear(config.hidden, 2 * config.hidden)
        # of the shared 65 taps a smaller kernel needs the 31 that its first T mixes
        self.kernel = nn.Parameter(torch.empty(config.heads, self.sizes[0] if self.sizes else kernel))
        self.transforms = nn.ParameterDict({str(size): torch.eye(size) for size in self.sizes})
        self.out = nn.Linear(config.hidden, config.hidden)
        self.norm = LayerNorm(config.hidden)

    def taps(self):
        """The raw kernel, (H, k), before the softmax."""
        taps = self.kernel
        for size in self.sizes:
            start = (taps.shape[-1] - size) // 2
            taps = taps[:, start:start + size] @ self.transforms[str(size)].T
        return taps

    def forward(self, x, mask):
        B, n, d = x.shape
        x = F.glu(self.glu(x))
        if mask is not None:  # after the GLU: before the linear its bias would undo it
            x = x.masked_fill(~mask[..., None], 0.0)
        kernel = ops.drop(self.taps().softmax(-1), self.dropout if self.training else 0.0)  # (H, k), DropConnect
        # measured on a CPU: conv1d wins where the band is mostly zeros, and in bf16 only where it nearly all is
        sparse = n > kernel.shape[-1] * (10 if x.dtype == torch.float32 else 40)
        if self.fast == "always" or self.fast == "auto" and sparse and not x.is_cuda:
            taps = kernel.repeat_interleave(d // self.heads, 0)[:, None].to(x.dtype)  # (d, 1, k), a channel at a time
            return self.out(F.conv1d(x.mT, taps, padding=kernel.shape[-1] // 2, groups=d).mT)
        y = band(kernel, n) @ x.view(B, n, self.heads, -1).transpose(1, 2)  # (H, n, n) @ (B, H, n, d_h)
        return self.out(y.transpose(1, 2).reshape(B, n, d))


class FeedForward(nn.Module):
    """d -> 4d, GELU, -> d, and the LayerNorm behind it."""

    def __init__(self, d):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), LayerNorm(d)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Layer(nn.Module):
    """One backbone layer: attention or convolution, then feed-forward; after each dropout, residual, LayerNorm.

    The first part is named by its kind, so that a parameter's name is its slot in the super-net.
    """

    def __init__(self, config, gene):
        super().__init__()
        kernel = kernel_of(gene)
        self.kind = "convolution" if kernel else "attention"
        self.add_module(self.kind, LightConv(config, kernel) if kernel else DagAttention(config, gene))
        self.feedforward = FeedForward(config.hidden)
        self.dropout = Dropout(config.dropout)

    def forward(self, x, mask):
        mixer = getattr(self, self.kind)
        x = mixer.norm(x + self.dropout(mixer(x, mask)))
        return self.feedforward.norm(x + self.dropout(self.feedforward(x)))


# ---- The encoder and the pre-training heads (BERT) ----


class AutoBert(nn.Module):
    """Embeddings and L layers: ids, segments, mask (True = a real token), each (B, n) -> hidden states (B, n, d)."""

    def __init__(self, config, backbone):
        super().__init__()
        self.config, self.backbone = config, check_backbone(backbone, config.layers)
        self.tokens = nn.Embedding(config.vocab, config.embedding)
        self.positions = nn.Embedding(config.positions, config.embedding)
        self.segments = nn.Embedding(2, config.embedding)
        self.norm, self.dropout = LayerNorm(config.embedding), Dropout(config.dropout)
        narrow = config.embedding != config.hidden
        self.projection = nn.Linear(config.embedding, config.hidden) if narrow else nn.Identity()
        self.layers = nn.ModuleList(Layer(config, gene) for gene in self.backbone)
        self.pooler = nn.Linear(config.hidden, config.hidden)
        init_weights(self, config.init_std)

    def embed(self, ids, segments):
        """Token + position + segment, LayerNorm, dropout, and up to the hidden size: (B, n, d)."""
        n = ids.shape[1]
        if n > self.config.positions:
            raise UserError(f"{n} tokens; the position table has {self.config.positions}")
        x = self.tokens(ids) + self.positions.weight[:n] + self.segments(segments)
        return self.projection(self.dropout(self.norm(x)))

    def forward(self, ids, segments, mask):
        x = self.embed(ids, segments)
        for layer in self.layers:
            again = self.config.checkpointing and self.training
            x = checkpoint(layer, x, mask, use_reentrant=False) if again else layer(x, mask)
        return x

    def pool(self, hidden):
        """(B, n, d) -> (B, d): a tanh layer on [CLS], trained by NSP."""
        return torch.tanh(self.pooler(hidden[:, 0]))


class Pretraining(nn.Module):
    """The encoder with BERT's two heads; a batch -> (loss, its parts)."""

    def __init__(self, config, backbone):
        super().__init__()
        self.encoder = AutoBert(config, backbone)
        self.transform, self.norm = nn.Linear(config.hidden, config.embedding), LayerNorm(config.embedding)
        self.bias = nn.Parameter(torch.zeros(config.vocab))
        self.next = nn.Linear(config.hidden, 2)
        for head in (self.transform, self.next):
            init_weights(head, config.init_std)

    def mlm_logits(self, hidden):
        """(M, d) -> (M, V); the output matrix is the token embedding's (tied)."""
        x = self.norm(F.gelu(self.transform(hidden)))
        return F.linear(x, self.encoder.tokens.weight, self.bias)

    def forward(self, batch):
        """batch: data.PretrainingData's tensors. Loss = mean MLM over the masked + mean NSP (BERT).

        A piece from `cut` has "shares": what its two means count in the whole batch's, so that pieces add up.
        """
        of_masked, of_rows = batch.get("shares", (1.0, 1.0))
        hidden = self.encoder(batch["ids"], batch["segments"], batch["mask"])  # (B, n, d)
        masked = hidden.flatten(0, 1)[batch["positions"]]  # (M, d)
        # subtle: the mean over no masked token, as a piece may have, would be nan
        mlm = F.cross_entropy(self.mlm_logits(masked), batch["targets"], reduction="sum") / max(1, len(masked))
        mlm = of_masked * mlm
        next_logits = self.next(self.encoder.pool(hidden))  # (B, 2)
        nsp = of_rows * F.cross_entropy(next_logits, batch["next"])
        correct = of_rows * (next_logits.argmax(-1) == batch["next"]).float().mean()
        return mlm + nsp, {"mlm": mlm.detach(), "nsp": nsp.detach(), "nsp_accuracy": correct}


def init_weights(module, std):
    """BERT's: weights N(0, std) cut at 2 std, biases 0, LayerNorm 1 and 0. CHOICE: raw kernels as weights, T = 1."""
    for name, parameter in module.named_parameters():
        if "norm" in name or "transforms" in name:
            continue
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)


@contextlib.contextmanager
def seeded(seed):
    """torch's generators start from `seed` inside, and are as before after."""
    # subtle: of this GPU only; to ask all for their states takes memory on each, for every process under torchrun
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        torch.manual_seed(seed)
        yield


# ---- Size and cost (Tables 2 to 5) ----


def count_parameters(config, backbone):
    """{"total": encoder with pooler, "att": input projections (the paper's #Params of Att), "heads"}: parameters."""
    with torch.device("meta"):  # the real modules, without memory
        model = Pretraining(config, backbone)
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    total = sum(size for name, size in sizes.items() if name.startswith("encoder."))
    att = sum(size for name, size in sizes.items() if ".inputs." in name or ".glu." in name)
    return {"total": total, "att": att, "heads": sum(sizes.values()) - total}


def count_flops(config, backbone, n):
    """{"total", "embeddings", "layers", "pooler"}: one forward pass of one sequence of n tokens.

    As ELECTRA counts, which the paper follows: a multiply-add is 2, LayerNorm 5, softmax 5, GELU 8, dropout 4 an
    element; the token embedding is a dense product with the vocabulary.
    """
    d, e, H = config.hidden, config.embedding, config.heads
    linear = lambda a, b: n * (2 * a * b + b)  # noqa: E731
    after = n * (4 + 1 + 5) * d  # dropout, residual, LayerNorm
    layers = []
    for gene in backbone:
        if k := kernel_of(gene):  # GLU: sigmoid 4, product 1; softmax of the taps; k multiply-adds a channel
            mixer = linear(d, 2 * d) + n * 5 * d + 5 * H * k + n * 2 * k * d + linear(d, d)
        else:
            dag = ops.parse(gene)
            mixer = len(ops.used(dag)) * linear(d, d) + H * ops.flops(dag, n, d // H) + linear(d, d)
        layers.append(mixer + after + linear(d, 4 * d) + n * 8 * 4 * d + linear(4 * d, d) + after)
    embeddings = n * (2 * e * config.vocab + 2 * e * (n + 2) + 2 * e + 5 * e + 4 * e)
    embeddings += linear(e, d) if e != d else 0
    pooler = linear(d, d)  # subtle: at every token; only so do BERT's three sizes give the published figures
    return {"total": embeddings + sum(layers) + pooler, "embeddings": embeddings, "layers": layers, "pooler": pooler}


# Tables 2, 4, 5, 7: parameters, "#Params of Att" (millions), FLOPs of one sequence of 128 tokens
PAPER = {("small", "bert"): (14, None, 3.7e9), ("small", "autobert-zero"): (13, None, 2.9e9),
         ("base", "bert"): (110, 21.3, 2.9e10), ("base", "autobert-zero"): (104, 15.4, 2.3e10),
         ("base", "att-only"): (None, 16.5, None), ("base", "conv-only"): (None, 15.4, None),
         ("large", "bert"): (340, None, 8.7e10), ("large", "autobert-zero"): (318, None, 6.8e10)}
NOTES = """\
params: encoder and pooler, biases included. of att: the input projections of both kinds of layer; W_O is not among
  them, as the paper's 21.3M for BERT's 36 matrices shows. conv-only has 24; the paper's 15.4M is AutoBERT-Zero's.
FLOPs: as ELECTRA counts them. The paper's for AutoBERT-Zero fit only a count without the convolutions' mixing, W_O
  and one of the attention products. Its 318M parameters for large are what att-only has here."""


def summary(args):
    """Parameters and FLOPs of backbones at a size, with the paper's figure and the difference, one line each."""
    def beside(ours, paper, form):
        return f"{ours:{form}}" + (f" ({paper:g}, {100 * (ours / paper - 1):+.0f} %)" if paper else "")

    for size in args.size:
        config = replace(SIZES[size], vocab=args.vocab or (SIZES[size].vocab if size == "toy" else 30_522))
        print(f"{size}: {config.layers} layers, d {config.hidden}, H {config.heads}, "
              f"vocabulary {config.vocab:,}, n = {args.n}")
        for name in args.backbone:
            backbone = load_backbone(name, config.layers)
            count, cost = count_parameters(config, backbone), count_flops(config, backbone, args.n)
            paper = PAPER.get((size, name), (None,) * 3)
            cells = (beside(count["total"] / 1e6, paper[0], ".1f"), beside(count["att"] / 1e6, paper[1], ".2f"),
                     beside(cost["total"], paper[2] if args.n == 128 else None, ".3g"))
            print(f"  {name:<14} params {cells[0]:<20} M  of att {cells[1]:<19} M  FLOPs {cells[2]}")
    print("in brackets the paper's figure and how far ours is from it\n" + NOTES)


# ---- Training (App. D) ----


def lr_at(step, steps, peak, warmup):
    """The learning rate of step 0, 1, .. steps - 1: linear up over the first `warmup` share, then down towards 0.

    Example: lr_at(0, 10, 1.0, 0.2) -> 0.5; lr_at(1, ...) -> 1.0; lr_at(9, ...) -> 0.125
    """
    rising = max(1, round(warmup * steps))
    return peak * min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))


def make_optimizer(model, lr, weight_decay, betas=(0.9, 0.999)):
    """AdamW; no decay on biases, LayerNorms, kernels and their transforms (AdamW shrinks what has no gradient, too).

    DEVIATION: BERT's Adam has no bias correction; torch's has.
    """
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        exempt = name.endswith("bias") or any(part in name for part in ("norm", "kernel", "transforms"))
        (plain if exempt else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-6, fused=True)


def find_device(name="auto"):
    """The torch device of a --device option: "auto" takes CUDA where there is one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name.split(":")[0] not in ("cpu", "cuda"):
            raise RuntimeError("unknown")
        device = torch.device(name)
        torch.empty(0, device=device)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)
        return device
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"device {name!r}: not to be had here ({why}); expected auto, cpu or cuda") from None


def few_threads(config):
    """One CPU thread for small models: their products are so short that threads mostly wait for one another."""
    if config.hidden < 128:
        torch.set_num_threads(1)


def to_device(batch, device):
    """A dict of numpy arrays as tensors on the device."""
    pin = torch.device(device).type == "cuda"  # only from pinned memory does a copy not wait
    tensors = {key: torch.from_numpy(array) for key, array in batch.items()}
    return {key: (x.pin_memory() if pin else x).to(device, non_blocking=True) for key, x in tensors.items()}


def cut(batch, piece, pieces):
    """Piece number `piece` of a batch cut into `pieces` by rows, as even as they go; losses of the pieces add up."""
    if pieces == 1:
        return batch
    (B, n), masked = batch["ids"].shape, len(batch["positions"])
    start, end = piece * B // pieces, (piece + 1) * B // pieces
    inside = (batch["positions"] >= start * n) & (batch["positions"] < end * n)
    return {key: batch[key][start:end] for key in ("ids", "segments", "mask", "next")} | {
        "positions": batch["positions"][inside] - start * n, "targets": batch["targets"][inside],
        "shares": np.array([inside.sum() / max(1, masked), (end - start) / B], np.float32)}


def ahead(make, steps, device):
    """(step, make(step)) of every step; for a GPU a thread makes the next two while it works on this one."""
    if torch.device(device).type == "cpu":
        yield from ((step, make(step)) for step in steps)
        return
    own = torch.device(device).index is not None  # subtle: a new thread starts on GPU 0, and would take memory there
    with ThreadPoolExecutor(1, initializer=lambda: own and torch.cuda.set_device(device)) as thread:
        coming = deque()
        for step in steps:
            coming.append((step, thread.submit(make, step)))
            if len(coming) > 2:
                step, batch = coming.popleft()
                yield step, batch.result()
        for step, batch in coming:
            yield step, batch.result()


@contextlib.contextmanager
def matmul_precision(precision):
    """fp32 products inside are exact, or of torch's "medium" precision; as before after."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def autocast(device, precision):
    """torch's bf16 autocast, if that is the precision."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def kept_memory():
    """Inside, the process keeps the memory that tensors free: for Linux and its glibc, elsewhere as always.

    subtle: glibc returns every large piece to the system, which clears it page by page when it is asked for again a
    moment later: a fifth of a step at base size on a CPU. Behind it are the limits that glibc comes to by itself.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    mmap_max, trim, mmap_least = -4, -1, -3
    settle = mallopt or (lambda *_: None)
    settle(mmap_max, 0)
    settle(trim, 2**31 - 1)
    try:
        yield
    finally:
        settle(mmap_max, 2**16)
        settle(mmap_least, 2**25)
        settle(trim, 2**26)


def pretrain(model, batches, settings, device, log=None, offset=0, due=None, optimizer=None, first=0, share=(0, 1)):
    """Train in place on batches.batch(offset + step) for step = first .. settings.steps - 1.

    Where due(step) is true (else: about a hundred times) and at the end comes log(step, lr, parts), and before it
    Diverged if a gradient was not finite since. optimizer: as it was after step first - 1, else a new one.
    share: (rank, processes) where `model` is a DistributedDataParallel that learns from one piece of every batch.
    """
    rank, processes = share
    model.train().to(device)
    optimizer = optimizer or make_optimizer(model, settings.lr, settings.weight_decay, (0.9, settings.beta2))
    every = max(1, settings.steps // 100)
    due = due or (lambda step: step % every == 0)
    good = torch.tensor(first, device=device)  # steps before the first gradient that is not finite

    def pieces(step):
        whole, k = batches.batch(offset + step), settings.accumulate
        return [to_device(cut(whole, rank * k + i, processes * k), device) for i in range(k)]

    with seeded(settings.seed), matmul_precision(settings.precision), kept_memory():
        for step, batch in ahead(pieces, range(first, settings.steps), device):
            # 1. the learning rate and the random numbers of this step: functions of it alone, so any step can resume
            lr = lr_at(step, settings.steps, settings.lr, settings.warmup)
            for group in optimizer.param_groups:
                group["lr"] = lr
            mixed = np.random.SeedSequence([settings.seed % 2**32, offset + step, rank]).generate_state(1, np.uint64)
            torch.manual_seed(int(mixed[0]))
            # 2. forward, backward; gradients of the pieces add up, those of processes are averaged behind the last
            found = []
            for piece in batch:
                alone = processes > 1 and len(found) < len(batch) - 1
                with model.no_sync() if alone else contextlib.nullcontext():
                    with autocast(device, settings.precision):
                        loss, parts = model(piece)
                    (loss * processes).backward()
                found.append(parts)
            # 3. clip the gradient and step
            norm = nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
            good += torch.isfinite(norm) & (good == step)
            optimizer.step()
            optimizer.zero_grad()
            # 4. report; only here does the host wait for the device
            if due(step) or step == settings.steps - 1:
                if good.item() <= step:
                    raise Diverged(f"a non-finite gradient in step {good.item() + 1}")
                parts = whole_of(found, processes)
                if log:
                    log(step, lr, parts)
    return model


def whole_of(found, processes):
    """{name: float} of a batch from the parts of its pieces, in this process and in all others."""
    values = torch.stack([sum(parts[key] for parts in found) for key in found[0]])
    if processes > 1:
        distributed.all_reduce(values)
    return dict(zip(found[0], values.tolist()))


@torch.no_grad()
def held_out_loss(model, batches, count, device):
    """{"mlm", "nsp", "nsp_accuracy"}: means over the first `count` batches, without dropout."""
    model.eval()
    parts = [model(to_device(batches.batch(step), device))[1] for step in range(count)]
    return {key: sum(p[key].item() for p in parts) / count for key in parts[0]}


# ---- Checkpoints ----


def save_tensors(path, content):
    """torch.save beside `path`, then rename: a file is there whole or not at all."""
    data.write_beside(path, lambda file: torch.save(content, file))


def load_tensors(path, device="cpu", mapped=False):
    """The dict that save_tensors wrote, else UserError; only tensors and plain values are ever read (weights_only).

    mapped: tensors stay in the file until they are used, and take no memory; their checksums are not looked at.
    """
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {str(path)!r}: no such file")
    try:
        with zipfile.ZipFile(path) as file:  # torch writes checksums, and does not look at them
            if not mapped and (damaged := file.testzip()):
                raise ValueError(f"{damaged} is damaged")
        content = torch.load(path, map_location=device, weights_only=True, mmap=mapped)
        if not isinstance(content, dict):
            raise TypeError(f"a {type(content).__name__}, expected a dict")
        return content
    except (RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, EOFError, OSError,
            OverflowError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error) as error:  # for one or another
        raise UserError(f"checkpoint {str(path)!r}: broken or not a checkpoint ({_brief(error)})") from None


def _brief(error):
    text = str(error).split("WeightsUnpickler error: ")[-1]  # what stands before it is torch's advice to run the code
    return " ".join(f"{type(error).__name__}: {text}".split())[:120]


def save_checkpoint(path, model, tokenizer, **more):
    """One file with config, backbone, weights and tokenizer: all that fine-tuning needs. more: kept beside them."""
    proto = torch.frombuffer(bytearray(tokenizer.proto), dtype=torch.uint8)
    save_tensors(path, {"config": asdict(model.encoder.config), "backbone": list(model.encoder.backbone),
                        "state": model.state_dict(), "tokenizer": proto, **more})


def load_checkpoint(path, device="cpu"):
    """(Pretraining, Tokenizer) of a file that save_checkpoint wrote."""
    return from_content(load_tensors(path, device), path, device)


def from_content(content, path, device="cpu", build=Pretraining):
    """(build(config, backbone), Tokenizer) from what stands in the checkpoint `path`; UserError if that is no such."""
    try:
        known = {f.name for f in fields(ModelConfig)}
        config = ModelConfig(**{key: value for key, value in content["config"].items() if key in known})
        tokenizer = data.Tokenizer(bytes(content["tokenizer"].cpu().numpy()))
        if tokenizer.vocab_size != config.vocab:
            raise ValueError(f"{tokenizer.vocab_size} pieces for a vocabulary of {config.vocab}")
        check_state(config, content["backbone"], content["state"], build)
        model = build(config, content["backbone"]).to(device)
        model.load_state_dict(content["state"])
        return model, tokenizer
    except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint {str(path)!r}: not a model of this program ({_brief(error)})") from None


def check_state(config, backbone, state, build):
    """ValueError or TypeError unless a config is one, and `state` holds the finite weights that it and `build` ask for.

    Before any memory is taken: in a broken file the sizes may be anything.
    """
    for f in fields(config):
        value = getattr(config, f.name)
        if type(value) is not f.type or f.type in (int, float) and not 0 <= value < 2**31:
            raise ValueError(f"{f.name} {value!r}")
    if not min(config.hidden, config.heads, config.embedding, config.init_std) > 0 or config.hidden % config.heads \
            or config.dropout > 1:
        raise ValueError(f"a config of {asdict(config)}")
    with torch.device("meta"):
        wanted = {name: x.shape for name, x in build(config, backbone).state_dict().items()}
    if wrong := [name for name in wanted | state if name not in wanted or name not in state
                 or state[name].shape != wanted[name] or not state[name].is_floating_point()]:
        raise ValueError(f"no, other or unknown weights {wrong[0]!r}")
    if wrong := [name for name in state if not state[name].isfinite().all()]:
        raise ValueError(f"weights {wrong[0]!r} that are not finite")


# ---- Export ----


def folded(model):
    """{name: array}: the weights with every kernel as its k raw taps, whatever it was made from."""
    weights = {name: p for name, p in model.state_dict().items() if ".transforms." not in name}
    for i, layer in enumerate(model.encoder.layers):
        if layer.kind == "convolution":
            weights[f"encoder.layers.{i}.convolution.kernel"] = layer.convolution.taps().detach()
    return {name: p.detach().cpu().numpy() for name, p in weights.items()}


def hidden_states(encoder, batch):
    """Yield the hidden states (B, n, d) of a batch (ids, segments, mask) behind the embeddings and each layer."""
    x = encoder.embed(batch["ids"], batch["segments"])
    yield x
    for layer in encoder.layers:
        x = layer(x, batch["mask"])
        yield x


@torch.no_grad()
def reference(model, seed):
    """Inputs with padding and all that a port must reproduce from them: {name: array}."""
    model, config, rng = model.eval(), model.encoder.config, np.random.default_rng(seed)
    n, lengths = min(32, config.positions), np.array([[32], [20], [5]])
    batch = {"ids": rng.integers(data.FIRST_WORD, config.vocab, (3, n)), "mask": np.arange(n) < lengths,
             "positions": np.array([1, 4, n + 2, 2 * n + 3]), "next": np.array([0, 1, 1])}
    batch["segments"] = ((np.arange(n) >= lengths // 2) & batch["mask"]).astype(np.int64)
    batch["targets"] = batch["ids"].reshape(-1)[batch["positions"]]
    batch["ids"].reshape(-1)[batch["positions"]] = data.MASK
    batch["ids"][~batch["mask"]] = data.PAD
    tensors = to_device(batch, "cpu")
    hidden = list(hidden_states(model.encoder, tensors))
    loss, parts = model(tensors)
    result = {f"hidden_{i}": x for i, x in enumerate(hidden)}  # 0: embeddings, i: after layer i
    result |= {"mlm_logits": model.mlm_logits(hidden[-1].flatten(0, 1)[tensors["positions"]]), "loss": loss,
               "next_logits": model.next(model.encoder.pool(hidden[-1])), "mlm": parts["mlm"], "nsp": parts["nsp"]}
    return batch | {name: value.cpu().numpy() for name, value in result.items()}


def export(args):
    """Write what a port needs: backbone.json, config.json, weights.npz and reference.npz."""
    if os.path.exists(args.out):
        raise UserError(f"--out {args.out!r} exists; name a new folder")
    data.check_out(args.out)
    if args.checkpoint:
        model, tokenizer = load_checkpoint(args.checkpoint)
    else:
        config, tokenizer = SIZES[args.size], None
        config = replace(config, vocab=args.vocab or config.vocab)
        with seeded(args.seed):
            model = Pretraining(config, load_backbone(args.backbone, config.layers))
    vectors = reference(model, args.seed)
    with data.folder_beside(args.out) as beside:
        save_backbone(beside / "backbone.json", model.encoder.backbone)
        ours = ("kernel_chain", "fast", "checkpointing")  # how this program goes about it
        config = {key: value for key, value in asdict(model.encoder.config).items() if key not in ours}
        data.write_beside(beside / "config.json", json.dumps(config, indent=1) + "\n")
        data.write_beside(beside / "weights.npz", lambda file: np.savez(file, **folded(model)))
        data.write_beside(beside / "reference.npz", lambda file: np.savez(file, **vectors))
        if tokenizer:
            tokenizer.save(beside / "tokenizer.model")
    print(f"wrote {', '.join(sorted(os.listdir(args.out)))} to {args.out}")


# ---- Pictures and tables ----

STYLE = """<style>text{font:12px monospace;fill:#222}.b{fill:#eef3fb;stroke:#4a6fa5}.c{fill:#fdf1e3;stroke:#b5762a}
.i{fill:none;stroke:#888}path{fill:none;stroke:#888}.l{font-weight:bold}
@media(prefers-color-scheme:dark){text{fill:#ddd}
.b{fill:#1d2a3f;stroke:#7fa3d8}.c{fill:#3a2a16;stroke:#e0a860}.i,path{stroke:#999}}</style>"""


def picture(backbone):
    """A backbone as SVG, as Fig. 7 draws it: a row a layer, a kernel or a graph from its inputs to its output."""
    parts, y, right = [], 10, 0

    def box(x, y, text, kind):
        parts.append(f'<rect class="{kind}" x="{x}" y="{y}" width="84" height="20" rx="5"/>'
                     f'<text x="{x + 42}" y="{y + 14}" text-anchor="middle">{text}</text>')

    for number, gene in enumerate(backbone, 1):
        parts.append(f'<text class="l" x="8" y="{y + 14}">L{number}</text>')
        if kernel_of(gene):
            box(44, y, gene, "c")
            y, right = y + 34, max(right, 128)
            continue
        dag = ops.parse(gene)
        column = ops.fold(dag, [0] * 4, lambda op, *args: 1 + max(args))  # of every slot
        last, taken, at = dict(enumerate(column)), {}, {}
        for t, (_, *args) in enumerate(dag):
            last |= {a: max(last[a], column[4 + t]) for a in args}  # the column of its last reader
        slots = [ops.INPUTS.index(letter) for letter in ops.used(dag)] + list(range(4, 4 + len(dag)))
        for slot in sorted(slots, key=column.__getitem__):
            row = next(row for row in range(99) if taken.get(row, 0) <= column[slot])  # free until its last reader
            taken[row] = last[slot]
            at[slot] = (44 + 104 * column[slot], y + 28 * row)
            op, *args = dag[slot - 4] if slot >= 4 else (ops.INPUTS[slot],)
            box(*at[slot], op, "b" if slot >= 4 else "i")
            for a in args:
                (x1, y1), (x2, y2) = at[a], at[slot]
                parts.append(f'<path d="M{x1 + 84} {y1 + 10}H{x2 - 18}C{x2 - 8} {y1 + 10} {x2 - 10} {y2 + 10} '
                             f'{x2} {y2 + 10}"/>')
        y, right = y + 28 * len(taken) + 14, max(right, 128 + 104 * max(column))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{right + 16}" height="{y}" role="img" '
            f'aria-label="backbone of {len(backbone)} layers">{STYLE}\n' + "\n".join(parts) + "\n</svg>\n")


# Of each line: its colour in light and in dark, after Okabe and Ito (colour-blind readers see six, too), and its dashes
LINES = (("#0072b2", "#56b4e9", "none"), ("#d55e00", "#ff9d5c", "8 4"), ("#007a5a", "#2fcf9f", "1 5"),
         ("#b2508a", "#e8a0c8", "9 4 1 4"), ("#806000", "#f0e442", "16 5"), ("#555", "#c0c0c0", "4 4"))
_light, _dark = ("".join(f".chart .s{i}{{color:{line[mode]}}}" for i, line in enumerate(LINES)) for mode in (0, 1))
CHART = f"""<style>.chart text{{font:12px system-ui,sans-serif;fill:#222}}.chart .title{{font-weight:bold}}
.chart path{{fill:none;stroke:#ddd}}.chart .line{{stroke:currentColor;stroke-width:2;stroke-linecap:round}}
.chart .band{{fill:currentColor;fill-opacity:.2;stroke:none}}.chart circle{{fill:currentColor;fill-opacity:.75}}
.chart .off{{fill:none;stroke:#777}}{_light}
@media(prefers-color-scheme:dark){{.chart text{{fill:#ddd}}.chart path{{stroke:#3a3f45}}
.chart .off{{stroke:#aaa}}{_dark}}}</style>"""


def axis(values, log=False, whole=False):
    """(low, high, about five round numbers between) of an axis. Example: [0, 10] -> (-0.4, 10.4, [0, 2, .., 10])

    log: low and high are log10 of what they stand for. whole: the round numbers are whole.
    """
    values = [math.log10(v) if log else v for v in values] or [0, 1]
    low, high, size = min(values), max(values), max(map(abs, values))
    pad = 0.04 * (high - low) if high - low > 1e-9 * size + 1e-99 else 0.1 * size if size > 1e-99 else 1  # constant
    low, high = low - pad, high + pad
    if log:
        digits, every = ((1, 2, 5), 1) if high - low < 3 else ((1,), math.ceil((high - low) / 6))
        powers = range(math.floor(low), math.ceil(high) + 1, every)
        marks = [m * 10.0 ** e for e in powers for m in digits if low <= e + math.log10(m) <= high]
        return low, high, marks if len(marks) > 1 else axis([10 ** low, 10 ** high])[2][1:-1]
    power = 10.0 ** math.floor(math.log10((high - low) / 6))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= (high - low) / 6)
    step = max(step, 1) if whole else step
    return low, high, [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def chart(title, across, up, series, dots=(), log=False):
    """Lines as SVG, light or dark as the reader's screen is; no script. What is not finite is left out.

    series: {name: (xs, ys) or (xs, ys, lows, highs)}, the latter with a band behind the line. log: the x axis is.
    dots: (x, y, kind, tooltip); kind "s0" .. "s5" is the colour of that line, "off" a ring; y None: at the bottom.
    """
    def fits(x, *ys):
        return all(abs(v) < 1e100 for v in (x, *ys)) and (not log or x > 1e-100)  # nan is not less

    lines = {name: [row for row in zip(*columns) if fits(*row)] for name, columns in series.items()}
    dots = [dot for dot in dots if fits(dot[0], dot[1] or 0)]
    rows, legend, x, top = [row for line in lines.values() for row in line], [], 80, 44
    for i, name in enumerate(lines):
        if x > 80 and x + 40 + 7 * len(name) > 704:
            x, top = 80, top + 20
        legend.append(f'<path class="line s{i % 6}" stroke-dasharray="{LINES[i % 6][2]}" d="M{x} {top}h32"/>'
                      f'<text x="{x + 40}" y="{top + 4}">{html.escape(name)}</text>')
        x += 64 + 7 * len(name)
    top += 20
    whole = all(float(p[0]).is_integer() for p in rows or dots)  # dots may stand between the numbers of a line
    left, right, columns = axis([p[0] for p in (*rows, *dots)], log, whole)
    low, high, levels = axis([y for row in rows for y in row[1:]] + [dot[1] for dot in dots if dot[1] is not None])

    def px(x):
        return round(80 + 624 * ((math.log10(x) if log else x) - left) / (right - left), 1)

    def py(y):
        return round(top + 240 * (high - y) / (high - low), 1)

    def points(line, column):
        return [f"{px(row[0])},{py(row[column])}" for row in line]

    parts = [f'<path d="M{px(x)} {top}v245"/><text x="{px(x)}" y="{top + 260}" text-anchor="middle">{x:.6g}</text>'
             for x in columns]
    parts += [f'<path d="M75 {py(y)}h629"/><text x="70" y="{py(y) + 4}" text-anchor="end">{y:.6g}</text>'
              for y in levels]
    for i, line in enumerate(lines.values()):
        if line and len(line[0]) == 4:
            parts.append(f'<path class="band s{i % 6}" d="M{" ".join(points(line, 2) + points(line, 3)[::-1])}Z"/>')
        if len(line) > 1:
            parts.append(f'<path class="line s{i % 6}" stroke-dasharray="{LINES[i % 6][2]}" '
                         f'd="M{" ".join(points(line, 1))}"/>')
        dots += [(*line[0][:2], f"s{i % 6}", f"{line[0][0]}, {line[0][1]}")] if len(line) == 1 else []
    parts += [f'<circle class="{kind}" cx="{px(x)}" cy="{py(low if y is None else y)}" r="3.5">'
              f'<title>{html.escape(tooltip)}</title></circle>' for x, y, kind, tooltip in dots]
    names = (f'<text x="392" y="{top + 282}" text-anchor="middle">{html.escape(across)}</text>'
             f'<text transform="translate(16 {top + 120})rotate(-90)" text-anchor="middle">{html.escape(up)}</text>')
    return framed(title, top + 290, [names, *legend, *parts])


def framed(title, height, parts):
    """A picture of SVG parts, 720 wide, under its title and in the style of CHART."""
    return (f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 720 {height}" width="720" role="img" '
            f'aria-label="{html.escape(title)}">{CHART}\n<text class="title" x="80" y="20">{html.escape(title)}</text>'
            + "\n".join(parts) + "\n</svg>\n")


def named(paths):
    """{name: path}: files by their stems, or by their whole paths where two have the same stem."""
    stems = [Path(path).stem for path in paths]
    return dict(zip(stems if len(set(stems)) == len(stems) else paths, paths))


def tsv(*rows):
    """Rows as lines whose cells are parted by tabs."""
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


# ---- Records of a pre-training ----

COLUMNS = ("step", "lr", "loss", "mlm", "nsp", "nsp_accuracy", "held_mlm", "held_nsp_accuracy", "tokens_per_s",
           "seconds")


def read_records(path):
    """The rows of a table of COLUMNS, each a dict of str; one that was cut short in the writing is left out."""
    lines = [line.rstrip("\r\n").split("\t") for _, line in data.read_lines(path)]
    if lines[:1] != [list(COLUMNS)]:
        raise UserError(f"{path}: not the .tsv that `pretrain` writes; expected its columns {' '.join(COLUMNS)}")
    step, number = re.compile("[0-9]{1,12}"), re.compile(r"|nan|-?inf|-?[0-9]+(\.[0-9]+)?(e[+-][0-9]+)?")
    return [dict(zip(COLUMNS, row)) for row in lines[1:] if len(row) == len(COLUMNS)
            and step.fullmatch(row[0]) and all(map(number.fullmatch, row[1:]))]


def curve(rows, column):
    """(steps, values) of a column of records, where it is filled."""
    pairs = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
    return [step for step, _ in pairs], [value for _, value in pairs]


def draw(args):
    """Write the picture of a backbone, or that of held-out losses in the records of pre-trainings."""
    data.check_out(args.out)
    if args.records:
        if any(os.path.exists(args.out) and os.path.samefile(path, args.out) for path in args.records):
            raise UserError(f"--out {args.out!r}: one of the records")
        files = named(args.records)
        curves = {name: curve(read_records(path), "held_mlm") for name, path in files.items()}
        if missing := [path for name, path in files.items() if not curves[name][0]]:
            raise UserError(f"{missing[0]}: no held-out losses; expected the .tsv that `pretrain` wrote")
        svg = chart("Pre-training: MLM loss on held-out documents", "step", "nats", curves)
    else:
        svg = picture(load_backbone(args.backbone))
    data.write_beside(args.out, svg)
    print(f"wrote {args.out}")


# ---- Pre-training from the command line ----

PUBLISHED = "autobert-zero"  # the backbone where none is named
# What `pretrain` takes where nothing else is given; steps, batch, .. are those of the size
USUAL = {"backbone": None, "size": "toy", "init": None, "fast": "auto", "checkpointing": False,
         "precision": "auto", "out": "model.pt", "overwrite": False}
OF_MACHINE = ("device", "compile")  # may differ in a resumed run


def join():
    """(rank, processes): those that torchrun gave this process, which then has joined the others; else (0, 1)."""
    if not distributed.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1":
        return 0, 1
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=timedelta(days=1))  # the others wait while one reads the corpus
    return distributed.get_rank(), distributed.get_world_size()


def in_turn(work, rank, processes):
    """work() of this process, that of rank 0 first; where it fails there, the others end and leave it to say why."""
    failed = torch.ones(())
    try:
        if rank == 0:
            result = work()
            failed.zero_()
    finally:
        if processes > 1:
            distributed.broadcast(failed, 0)
    if rank:
        if failed:
            sys.exit()
        result = work()
    return result


def starting_point(asked, seed):
    """(model, tokenizer, corpus) to begin with: random weights and a new tokenizer, or those of --init."""
    how, size = {"fast": asked["fast"], "checkpointing": asked["checkpointing"]}, SIZES[asked["size"]]
    if asked["init"]:
        loaded, tokenizer = load_checkpoint(asked["init"])
        config = loaded.encoder.config
        if (config.layers, config.hidden) != (size.layers, size.hidden):
            raise UserError(f"--init {asked['init']!r}: {config.layers} layers of {config.hidden}; "
                            f"size {asked['size']} has {size.layers} of {size.hidden}")
        model = Pretraining(replace(config, **how), loaded.encoder.backbone)
        model.load_state_dict(loaded.state_dict())
        return model, tokenizer, data.open_corpus(asked["corpus"], tokenizer)
    backbone = load_backbone(asked["backbone"] or PUBLISHED, size.layers)
    tokenizer = data.tokenizer_for(asked["corpus"], asked.get("vocab"), seed, size.vocab)
    corpus = data.open_corpus(asked["corpus"], tokenizer)
    with seeded(seed):
        return Pretraining(replace(size, vocab=tokenizer.vocab_size, **how), backbone), tokenizer, corpus


def resolve(asked, device):
    """All that a new run goes by, as one flat dict; UserError if its sizes or its files are not to be had."""
    given = {f.name: asked[f.name] for f in fields(PretrainSettings) if f.name in asked}
    if asked["init"] and (asked["backbone"] or "vocab" in asked):
        raise UserError(f"--init {asked['init']!r} brings its backbone and vocabulary; none can be given with it")
    if given["precision"] == "auto":
        given["precision"] = "bf16" if device.type == "cuda" else "fp32"
    s, size, out = replace(PRETRAIN[asked["size"]], **given), SIZES[asked["size"]], asked["out"]
    if Path(out).suffix in (".tsv", ".svg"):
        raise UserError(f"--out {out!r}: the records beside the checkpoint have this ending; expected another")
    data.check_out(out)
    for path in (out, Path(out).with_suffix(".tsv"), Path(out).with_suffix(".svg")):
        data.check_out(path)
        if os.path.exists(path) and not asked["overwrite"]:
            raise UserError(f"--out {out!r}: {str(path)!r} exists; give another or --overwrite")
    if s.n > size.positions:
        raise UserError(f"--n {s.n}: size {asked['size']} has {size.positions} positions")
    if s.batch % s.accumulate:
        raise UserError(f"--accumulate {s.accumulate} does not divide --batch {s.batch}")
    return {**asdict(s), "size": asked["size"], "name": asked["init"] or asked["backbone"] or PUBLISHED,
            "corpus": [os.path.abspath(path) for path in asked["corpus"]],
            "eval_every": asked.get("eval_every", max(100, s.steps // 20)),
            "save_every": asked.get("save_every", max(100, min(2000, s.steps // 10)))}


def resumed(path, given):
    """(model, tokenizer, corpus, options, state) of the unfinished run whose checkpoint `path` is."""
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise UserError(f"--resume {path!r} goes on with the settings stored there; {flags} cannot be given with it")
    content = load_tensors(path)
    model, tokenizer = from_content(content, path)
    if not {"run", "training"} <= content.keys():
        raise UserError(f"--resume {path!r}: a finished model; nothing to resume")
    options, state = content["run"], content["training"]
    of_options = {f.name: f.type for f in fields(PretrainSettings)} | {
        "corpus": list, "tokens": int, "steps_per_epoch": int, "order": int, "eval_every": int, "save_every": int,
        "size": str, "name": str}
    of_state = {"step": int, "seconds": float, "optimizer": dict}
    try:
        good = all(type(values[key]) is kind and (kind not in (int, float) or 0 <= values[key] < 2**63)
                   for values, kinds in ((options, of_options), (state, of_state)) for key, kind in kinds.items())
        good = good and min(options[key] for key in ("batch", "accumulate", "eval_every", "save_every")) > 0
        good = good and options["precision"] in PRECISIONS and options["batch"] % options["accumulate"] == 0
        good = good and all(isinstance(path, str) for path in options["corpus"])
        good = good and 0 < state["step"] < options["steps"]
    except (LookupError, TypeError, AttributeError):
        good = False
    if not good:
        raise UserError(f"--resume {path!r}: not written by `pretrain` of this program")
    return model, tokenizer, data.open_corpus(options["corpus"], tokenizer), options, state


def check_space(path, model):
    """UserError unless the folder of `path` takes a checkpoint and the next one: weights and Adam's two moments."""
    need = 2 * 3 * sum(p.numel() * p.element_size() for p in model.parameters())
    free = shutil.disk_usage(os.path.dirname(path) or ".").free
    free += os.path.getsize(path) if os.path.exists(path) else 0
    if free < need:
        raise UserError(f"{path}: its folder has {free / 1e6:,.0f} MB left; "
                        f"the checkpoint and its replacement take {need / 1e6:,.0f} MB")


def load_moments(optimizer, saved, path):
    """Put Adam's moments of a checkpoint into an optimizer; UserError if they are not of its parameters."""
    try:  # rates, decay and the like are this program's, not the file's
        optimizer.load_state_dict({"state": saved["state"], "param_groups": optimizer.state_dict()["param_groups"]})
        good = all(optimizer.state[p][key].shape == p.shape and optimizer.state[p][key].dtype == p.dtype
                   for group in optimizer.param_groups for p in group["params"] for key in ("exp_avg", "exp_avg_sq"))
        good = good and all(s["step"].shape == () and len(s) == 3 for s in optimizer.state.values())
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError):
        good = False
    if not good:
        raise UserError(f"--resume {path!r}: its moments are not those of the model")


def span(seconds):
    """A time in words. Example: 192 -> "3m12s"; 7260 -> "2h01m"; 8 -> "8s" """
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"


class Run:
    """One pre-training and its files: the checkpoint `out` and, beside it, its records (.tsv) and curve (.svg).

    options: what it goes by, printed and kept in every checkpoint. state: of the checkpoint to go on from, or None.
    """

    def __init__(self, out, options, settings, model, tokenizer, batches, held_out, device, state):
        self.out, self.options, self.settings, self.device = out, options, settings, device
        self.model, self.tokenizer, self.batches, self.held_out = model, tokenizer, batches, held_out
        self.optimizer = make_optimizer(model, settings.lr, settings.weight_decay, (0.9, settings.beta2))
        if state:
            load_moments(self.optimizer, state["optimizer"], out)
        self.first, self.before = (state["step"], state["seconds"]) if state else (0, 0.0)
        self.saved, self.table = self.first, Path(out).with_suffix(".tsv")
        self.log_every = max(1, settings.steps // 100)

    def begin(self):
        """Print what it goes by, and begin its records or cut off those behind the checkpoint; they are locked."""
        if self.table.exists():
            data.lock(self.table).close()
        print(json.dumps(self.options), flush=True)
        rows = read_records(self.table) if self.first and self.table.exists() else []
        data.write_beside(self.table, tsv(COLUMNS, *(row.values() for row in rows if int(row["step"]) <= self.first)))
        self.lock, self.start, self.seen = data.lock(self.table), time.time(), (self.first, time.time())

    def due(self, step):
        """What `report` has to do behind a step: all behind the last, and a row behind the first."""
        every = {"row": self.log_every, "held-out": self.options["eval_every"], "save": self.options["save_every"]}
        last = step + 1 == self.settings.steps
        return {what for what, k in every.items() if last or (step + 1) % k == 0} | ({"row"} if step == 0 else set())

    def report(self, step, lr, parts):
        """Behind a step: a line and a row of progress, held-out loss in it, checkpoint, as they are due."""
        done, now, s, due = step + 1, time.time(), self.settings, self.due(step)
        if due & {"row", "held-out"}:
            rate = (done - self.seen[0]) * s.batch * s.n / max(1e-6, now - self.seen[1])
            left = (s.steps - done) * (now - self.start) / (done - self.first)
            row = {"lr": lr, "loss": parts["mlm"] + parts["nsp"], **parts, "tokens_per_s": rate}
            print(f"step={done}/{s.steps} loss={row['loss']:.3f} mlm={parts['mlm']:.3f} nsp={parts['nsp']:.3f} "
                  f"lr={lr:.2e} tokens/s={rate:.0f} left={span(left)}", flush=True)
            if "held-out" in due:
                row |= {f"held_{key}": value for key, value in self.evaluate().items()}
            row["seconds"] = self.before + time.time() - self.start
            with open(self.table, "a", encoding="utf-8") as file:
                file.write(tsv((done, *(f"{row[key]:.7g}" if key in row else "" for key in COLUMNS[1:]))))
        if "save" in due:
            self.save(done)
        self.seen = done, time.time()

    def evaluate(self):
        """held_out_loss over 20 batches, or as many as the held-out documents fill."""
        found = held_out_loss(self.model, self.held_out, min(20, self.held_out.steps_per_epoch), self.device)
        self.model.train()
        print("held-out " + " ".join(f"{key}={value:.4f}" for key, value in found.items()), flush=True)
        return found

    def save(self, done):
        """Write the checkpoint, until the end with all that --resume needs, and the curve."""
        state = {"step": done, "seconds": self.before + time.time() - self.start,
                 "optimizer": self.optimizer.state_dict()}
        more = {} if done == self.settings.steps else {"training": state}
        save_checkpoint(self.out, self.model, self.tokenizer, run=self.options, **more)
        self.saved, rows = done, read_records(self.table)
        data.write_beside(self.table.with_suffix(".svg"), chart(
            f"Pre-training: {self.options['name']}, {self.options['size']}", "step", "nats",
            {"training MLM": curve(rows, "mlm"), "held-out MLM": curve(rows, "held_mlm")}))


def prepare(args, processes):
    """The Run that the command line asks for: a new one, or with --resume the one that stopped."""
    given = {key: value for key, value in vars(args).items() if key not in ("command", *OF_MACHINE, "resume")}
    device = find_device(args.device)
    if processes > 1 and device.type == "cuda":
        device = find_device(f"cuda:{os.environ['LOCAL_RANK']}")
    if args.resume is not None:
        model, tokenizer, corpus, options, state = resumed(args.resume, given)
        out = args.resume
    else:
        asked = USUAL | given
        options, out, state = resolve(asked, device), asked["out"], None
        model, tokenizer, corpus = starting_point(asked, options["seed"])
    s = PretrainSettings(**{f.name: options[f.name] for f in fields(PretrainSettings)})
    if s.batch < s.accumulate * processes:
        raise UserError(f"--batch {s.batch}: fewer rows than {processes} processes with --accumulate {s.accumulate}")
    check_space(out, model)
    config = model.encoder.config
    few_threads(config)
    learnt, held = data.split_held_out(corpus)
    batches = data.PretrainingData(learnt, s.n, s.batch, config.vocab, s.seed)
    held_out = data.PretrainingData(held, s.n, min(s.batch, 64), config.vocab, s.seed)
    counts = {"tokens": len(corpus.tokens), "steps_per_epoch": batches.steps_per_epoch,
              "order": zlib.crc32(corpus.sentences)}  # of sentences, by their lengths
    if state and any(options[key] != value for key, value in counts.items()):
        raise UserError(f"--resume {out!r}: the corpus has changed, {options['tokens']:,} tokens in "
                        f"{options['steps_per_epoch']:,} batches before, {counts['tokens']:,} in "
                        f"{counts['steps_per_epoch']:,} now ({', '.join(options['corpus'])})")
    options |= counts | {"model": asdict(config), "backbone": list(model.encoder.backbone), "device": str(device),
                         "processes": processes}
    return Run(out, options, s, model.to(device), tokenizer, batches, held_out, device, state)


def train(args):
    """Pre-train one backbone on a corpus, or go on with it; under torchrun all processes together."""
    rank, processes = join()
    run = in_turn(lambda: prepare(args, processes), rank, processes)
    if args.compile:
        run.model.compile()
    model = DistributedDataParallel(run.model) if processes > 1 else run.model
    if rank == 0:
        run.begin()
    try:
        pretrain(model, run.batches, run.settings, run.device, None if rank else run.report, due=run.due,
                 optimizer=run.optimizer, first=run.first, share=(rank, processes))
    except Diverged as error:
        if rank:  # the first one says it
            sys.exit()
        last = f"the last good checkpoint is {run.out!r}, of step {run.saved}"
        raise UserError(f"{error} of {run.settings.steps}, with --lr {run.settings.lr}, a smaller one may help; "
                        f"{last if run.saved else 'no checkpoint was written'}") from None
    except torch.OutOfMemoryError:
        raise UserError(f"out of memory on {run.device} with --batch {run.settings.batch} and --accumulate "
                        f"{run.settings.accumulate}; a larger --accumulate or --checkpointing takes less") from None
    except RuntimeError as error:  # what gloo raises where the first process has ended: that one said why
        if not rank or "by peer" not in str(error):
            raise
        sys.exit()
    finally:
        if rank == 0:
            run.lock.close()
    if rank == 0:
        print(f"wrote {run.out}")
    if processes > 1:
        distributed.destroy_process_group()


# ---- Speed ----

PEER = ("BertConfig", "BertForPreTraining", "BertTokenizerFast", "DataCollatorForLanguageModeling")  # of a package
BENCH_COLUMNS = ("size", "what", "n", "batch", "model", "precision", "ms", "tokens_per_s", "of_peak", "memory_MB",
                 "to_peer_fp32", "low", "high", "to_peer_same", "to_bert_same")


@dataclass(frozen=True)
class BenchSettings:
    """What is measured: a batch of rows of n tokens. steps: of one turn, for what a loop keeps from one to the next."""
    config: ModelConfig
    n: int
    rows: int
    steps: int
    turns: int = 5
    seed: int = 0


# A peer's embeddings are as wide as its hidden states: ours are here, too
BENCH = {
    "mini": BenchSettings(replace(SIZES["mini"], vocab=4000, dropout=0.1), 64, 32, 20),
    "small": BenchSettings(replace(SIZES["small"], embedding=256), 128, 16, 6),
    "base": BenchSettings(SIZES["base"], 128, 8, 4),
    "large": BenchSettings(SIZES["large"], 128, 8, 2),
}


@dataclass(frozen=True)
class Contender:
    """A row of the bench."""
    turn: object  # of no arguments: some training steps or inferences
    flops: float  # of the products that a step cannot do without
    memory: float  # bytes, at the peak of a turn
    times: list  # seconds of each turn


def one_batch(config, n, rows, seed):
    """Arrays as PretrainingData.batch gives them: random rows, all of n tokens, 15 % of them masked."""
    rng, at, masked = np.random.default_rng(seed), np.arange(n), max(1, round(0.15 * n))
    ids = rng.integers(data.FIRST_WORD, config.vocab, (rows, n))
    places = np.sort(rng.permuted(np.tile(at[1:-1], (rows, 1)), axis=1)[:, :masked])
    positions = (places + n * np.arange(rows)[:, None]).ravel()
    targets = ids.reshape(-1)[positions]
    ids.reshape(-1)[positions] = data.MASK
    return {"ids": ids, "segments": np.tile((at >= n // 2).astype(np.int64), (rows, 1)),
            "mask": np.ones((rows, n), bool), "positions": positions, "targets": targets,
            "next": rng.integers(0, 2, rows)}


@torch.no_grad()
def encode(encoder, steps, device, precision):
    """Call an encoder some times, without gradients."""
    with matmul_precision(precision):
        for _ in range(steps):
            with autocast(device, precision):
                encoder()


def our_turns(what, s, backbone, arrays, device):
    """(model, turn(precision)) of a backbone: `pretrain` itself on the same batch at every step, or the encoder."""
    model = Pretraining(s.config, backbone).to(device).train(what == "train")
    optimizer, batch = make_optimizer(model, 1e-4, 0.01), to_device(arrays, device)
    batches, settings = SimpleNamespace(batch=lambda step: arrays), PretrainSettings(steps=s.steps, lr=1e-4)

    def train(precision):
        pretrain(model, batches, replace(settings, precision=precision), device, due=lambda step: False,
                 optimizer=optimizer)

    def infer(precision):
        with kept_memory():
            encode(lambda: model.encoder(batch["ids"], batch["segments"], batch["mask"]), s.steps, device, precision)

    return model, train if what == "train" else infer


def peer_turns(what, s, peer, arrays, device):
    """our_turns of the BertForPreTraining in the package `peer`, as its users find it but for fused AdamW."""
    config = s.config
    model = peer.BertForPreTraining(peer.BertConfig(
        vocab_size=config.vocab, hidden_size=config.hidden, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, intermediate_size=4 * config.hidden, max_position_embeddings=config.positions,
        hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout)).to(device)
    model.train(what == "train")
    optimizer, batch = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), to_device(arrays, device)
    inputs = {"input_ids": batch["ids"], "token_type_ids": batch["segments"], "attention_mask": batch["mask"].long()}
    labels = torch.full_like(batch["ids"], -100)
    labels.view(-1)[batch["positions"]] = batch["targets"]

    def train(precision):
        with matmul_precision(precision):
            for _ in range(s.steps):
                with autocast(device, precision):
                    loss = model(**inputs, labels=labels, next_sentence_label=batch["next"]).loss
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()

    def infer(precision):
        encode(lambda: model.bert(**inputs), s.steps, device, precision)

    return model, train if what == "train" else infer


def clock(turn, device):
    """Seconds that a turn takes, on a GPU to its last kernel."""
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    turn()
    wait()
    return time.perf_counter() - start


def peak_memory(turn, model, training, device):
    """Bytes: weights and Adam's two moments, and by how much a turn exceeds what is there before it; nan if unknown."""
    turn()  # so that the moments are there
    held = (3 if training else 1) * sum(p.numel() * p.element_size() for p in model.parameters())
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        turn()
        return held + torch.cuda.max_memory_allocated(device) - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier turns kept
        Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
        before = resident("VmRSS")
        turn()
        return held + resident("VmHWM") - before
    except (OSError, AttributeError):  # not Linux with glibc
        return math.nan


def resident(key):
    """Bytes of a line of Linux' /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(key))


def matmul_peak(precision, device):
    """FLOP/s of a large square product, the best of ten."""
    size = 2048 if torch.device(device).type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    with matmul_precision(precision):
        return 2 * size**3 / min(clock(lambda: a @ a, device) for _ in range(10))


def needed_flops(what, s, backbone, masked):
    """FLOPs of the products that a training step or an inference cannot do without."""
    d, e = s.config.hidden, s.config.embedding
    flops = s.rows * sum(count_flops(s.config, backbone, s.n)["layers"]) + 2 * s.rows * s.n * e * d * (e != d)
    if what == "infer":
        return flops
    return 3 * (flops + 2 * s.rows * d * d + masked * 2 * e * (d + s.config.vocab))  # the heads; twice to go backward


def race(what, s, names, precisions, device, peer=None):
    """{(name, precision): Contender} of the peer's bert, if there is one, and of backbones, after they ran in turns."""
    arrays, found = one_batch(s.config, s.n, s.rows, s.seed), {}
    for name in ([peer.__name__] if peer else []) + names:
        theirs = peer and name == peer.__name__
        backbone = load_backbone("bert" if theirs else name, s.config.layers)
        flops = needed_flops(what, s, backbone, len(arrays["targets"]))
        model, turn = (peer_turns(what, s, peer, arrays, device) if theirs else
                       our_turns(what, s, backbone, arrays, device))
        for precision in precisions:
            one = partial(turn, precision)
            memory = peak_memory(one, model, what == "train", device)
            found[name, precision] = Contender(one, flops, memory, [])
    for turn in range(s.turns):
        for row in found.values():
            row.times.append(clock(row.turn, device))
        print(f"turn={turn + 1}/{s.turns}", file=sys.stderr, flush=True)
    return found


def compared(row, other):
    """(median, lower, upper quartile) of how many times as fast as `other` a row was in a turn; nan if that is None."""
    return np.quantile(np.divide(other.times, row.times), (0.5, 0.25, 0.75)) if other else np.full(3, np.nan)


def known(x, form):
    """A number in a format, nothing for nan."""
    return f"{x:{form}}" if x == x else ""


def bench_table(what, size, args, peer, device, peaks):
    """Race at one size and print the table; yield its rows of BENCH_COLUMNS."""
    s = BENCH[size]
    n, rows = args.n or s.n, args.batch or (32 if what == "infer" else s.rows)
    config = replace(s.config, positions=max(n, s.config.positions), fast=args.fast)
    s = BenchSettings(config, n, rows, s.steps, args.turns, args.seed)
    rivals, their = race(what, s, args.backbone, args.precision, device, peer), peer and peer.__name__
    print(f"\n{'training step' if what == 'train' else 'inference, encoder'}, {size}: "
          f"{config.layers} x {config.hidden}, n {n}, batch {rows}, vocabulary {config.vocab:,}, "
          f"dropout {config.dropout}; {s.turns} turns of {s.steps}")
    print(f"  {'':24s}{'ms':>9s}{'tokens/s':>10s}{'of peak':>9s}{'memory':>9s}"
          + "   to peer's fp32  same" * bool(peer) + "  to bert")
    for (name, precision), row in rivals.items():
        seconds, megabytes = np.median(row.times) / s.steps, row.memory / 1e6
        rate, share = n * rows / seconds, row.flops / seconds / peaks[precision]
        first, same, bert = (compared(row, rivals.get(other)) for other in (
            (their, "fp32"), (their, precision), ("bert", precision)))
        spread = f"   {first[0]:5.2f} ({first[1]:.2f}-{first[2]:.2f})" if first[0] == first[0] else ""
        print(f"  {name:14s} {precision:9s}{1e3 * seconds:9.1f}{rate:10,.0f}{share:9.0%}{megabytes:6,.0f} MB"
              + f"{spread:18s}{known(same[0], '.2f'):>6s}" * bool(peer)
              + f"{known(bert[0], '.2f'):>{10 if peer else 9}s}", flush=True)
        yield (size, what, n, rows, name, precision, *(
            known(x, ".4g") for x in (1e3 * seconds, rate, share, megabytes, *first, same[0], bert[0])))


def race_batches(turns, seed, peer):
    """Print what PretrainingData.batch takes, and a peer's collator for masking alone, in turns."""
    n, vocab = BENCH["small"].n, data.TOY_VOCAB
    with tempfile.TemporaryDirectory() as folder:
        files = [data.write_toy(folder) / "corpus.txt"]
        tokenizer = data.Tokenizer.train(files, vocab)
        corpus = data.load_corpus(files, tokenizer)
        (words := Path(folder) / "words.txt").write_text(
            "\n".join(["[PAD]", "[UNK]", *data.SPECIAL[2:], *map(str, range(vocab - 5))]))
        mask = peer and peer.DataCollatorForLanguageModeling(peer.BertTokenizerFast(str(words)))
    for rows in (BENCH["small"].rows, PRETRAIN["small"].batch):
        ours, times = data.PretrainingData(corpus, n, rows, vocab, seed), []
        plain = [{"input_ids": row.tolist()} for row in ours.batch(0)["ids"]]
        for step in range(20 * turns):
            times.append((clock(lambda: ours.batch(step), "cpu"), clock(lambda: mask(plain), "cpu") if peer else 0.0))
        own, other, ratio = np.median(np.c_[times, np.divide(*np.transpose(times)[::-1])], axis=0)
        print(f"a batch of {rows} x {n}, pairs and masks: {1e3 * own:.2f} ms"
              + f"; the peer's collator, which only masks: {1e3 * other:.2f} ms, {ratio:.0f} times it" * bool(peer))


def bench(args):
    """Measure training steps and inference, in turns in one process, beside a peer if one is named."""
    device = find_device(args.device)
    try:
        peer = args.peer and importlib.import_module(args.peer)
    except (ImportError, TypeError, ValueError) as error:
        raise UserError(f"--peer {args.peer!r}: cannot be imported here ({error})") from None
    if peer and (missing := [name for name in PEER if not hasattr(peer, name)]):
        raise UserError(f"--peer {args.peer!r}: has no {missing[0]}")
    if args.out:
        data.check_out(args.out)
    if args.threads:
        torch.set_num_threads(args.threads)
    peaks = {precision: matmul_peak(precision, device) for precision in args.precision}
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads; measured peak of matrix products: "
          + ", ".join(f"{precision} {peak / 1e9:,.0f}" for precision, peak in peaks.items()) + " GFLOP/s")
    rows = [row for size in args.size for what in args.what
            for row in bench_table(what, size, args, peer, device, peaks)]
    print()
    race_batches(args.turns, args.seed, peer)
    if args.out:
        data.write_beside(args.out, tsv(BENCH_COLUMNS, *rows))


# ---- Analyses (Fig. 5, Table 7) ----

ABOVE = {"ablations": "ablations", "kendall": "sharing"}  # analyses of a search's run, and the command of opnas.py
FIG_5 = ("residual", "residual_sd", "cosine", "cosine_sd")  # of a layer: means and deviations over sequences


def uniformity(x, mask):
    """How alike the real tokens of hidden states are: x (B, n, d), mask (B, n) -> (residual, cosine), each (B,).

    residual: relative norm of what is left of x without its mean token, norm(m) = sqrt(|m|_1 |m|_inf) of the largest
    sums over columns and rows; 0 where all tokens are the same, as for one. cosine: mean over pairs i != j; of one
    token nan. In float64. Source: Sec. 4.2, Fig. 5.
    """
    padding, count = ~mask[..., None], mask.sum(1)
    x = x.double().masked_fill(padding, 0.0)  # (B, n, d)
    # CHOICE: the residual is what is left without the mean token, which is the nearest in the Frobenius norm
    rest = (x - x.sum(1, keepdim=True) / count[:, None, None]).masked_fill(padding, 0.0)
    whole, left = ((m.abs().sum(1).amax(1) * m.abs().sum(2).amax(1)).sqrt() for m in (x, rest))
    unit = F.normalize(x, dim=-1)
    pairs = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))  # |sum of u_i|^2 holds u_i u_j of all i, j
    return left / whole, pairs / (count * (count - 1))


@torch.no_grad()
def uniformity_by_layer(model, batch, device, precision):
    """uniformity behind the embeddings and each layer, of each row of data.assemble's arrays: array (L + 1, 2, B)."""
    model, found = model.eval().to(device), []
    for start in range(0, len(batch["ids"]), 32):
        part = {key: batch[key][start:start + 32] for key in ("ids", "segments", "mask")}
        part = to_device(part | {"ids": part["ids"].astype(np.int64)}, device)
        with matmul_precision(precision), autocast(device, precision):
            states = hidden_states(model.encoder, part)
            found.append(torch.stack([torch.stack(uniformity(x, part["mask"])) for x in states]))
    return torch.cat(found, -1).cpu().numpy()


def compared_models(args, paths):
    """([(name, Pretraining, Tokenizer, Corpus), ..], n): of the checkpoints, else of backbones with random weights."""
    if args.checkpoint:
        if given := [f"--{flag}" for flag in ("backbone", "size", "steps") if getattr(args, flag)]:
            raise UserError(f"--checkpoint brings trained models; {', '.join(given)} cannot be given with it")
        files = {name: (path, load_tensors(path)) for name, path in named(args.checkpoint).items()}
        found = [(name, *from_content(content, path)) for name, (path, content) in files.items()]
        found = [(*row, data.open_corpus(paths, row[-1])) for row in found]
        runs = [content.get("run") for _, content in files.values()]  # a search's models have none
        known = [run["n"] for run in runs if isinstance(run, dict) and type(run.get("n")) is int and run["n"] > 4]
        n = args.n or min(known, default=PRETRAIN["toy"].n)
    else:
        asked = USUAL | {"corpus": paths, "size": args.size or USUAL["size"]}
        found = [(name, *starting_point(asked | {"backbone": name}, args.seed))
                 for name in dict.fromkeys(args.backbone or ("bert", "autobert-zero"))]
        n = args.n or PRETRAIN[asked["size"]].n
    for name, model, *_ in found:
        if n > model.encoder.config.positions:
            raise UserError(f"--n {n}: {name} has {model.encoder.config.positions} positions")
    return found, n


def extremes(what, values):
    """Who has most and least of something, in words; values: {name: number}."""
    least, most = min(values, key=values.get), max(values, key=values.get)
    other = f", {values[most] - values[least]:.3f} more than {least}, which has the smallest" if len(values) > 1 else ""
    return f"{most} has the largest {what}, {values[most]:.3f}{other}"


def fig_5(name, model, corpus, s, args, device):
    """Train a model, unless it comes from a checkpoint; print and return its table, (L + 1, 4), columns FIG_5."""
    def log(step, lr, parts):
        print(f"backbone={name} step={step + 1}/{s.steps} mlm={parts['mlm']:.3f}", file=sys.stderr, flush=True)

    few_threads(model.encoder.config)
    (learnt, held), vocab = data.split_held_out(corpus), model.encoder.config.vocab
    if not args.checkpoint:
        try:
            pretrain(model, data.PretrainingData(learnt, s.n, s.batch, vocab, s.seed), s, device, log)
        except Diverged as error:
            raise UserError(f"{name}: {error} of {s.steps}; another backbone or seed may train") from None
    batches = data.PretrainingData(held, s.n, 32, vocab, s.seed)
    pairs = data.assemble(held.tokens, batches.pairs[:args.rows], s.n)
    values = uniformity_by_layer(model, pairs, device, s.precision)  # (L + 1, 2, rows)
    table = np.stack([values.mean(-1), values.std(-1)], -1).reshape(-1, 4)
    loss = held_out_loss(model, batches, min(20, batches.steps_per_epoch), device)["mlm"]
    print(f"{name}: {values.shape[-1]} held-out pairs of at most {s.n} tokens; held-out MLM {loss:.3f} nats\n  layer"
          + "".join(f"{column:>13s}" for column in FIG_5))
    for layer, row in enumerate(table):
        print(f"{layer:7d}" + "".join(f"{x:13.4f}" for x in row), flush=True)
    return table


def analyse_uniformity(args):
    """Fig. 5: residual and cosine of every layer, of checkpoints or of backbones trained for it with one budget.

    DEVIATION: measured on sentence pairs of held-out documents; the paper takes 1,280 samples of STS-B.
    """
    if args.out:
        data.check_out(args.out, folder=True)
    device, preset = find_device(args.device), PRETRAIN[args.size or USUAL["size"]]
    with tempfile.TemporaryDirectory() as folder:
        models, n = compared_models(args, args.corpus or [data.write_toy(folder) / "corpus.txt"])
    s = replace(preset, steps=args.steps or preset.steps, n=n, seed=args.seed, precision=args.precision)
    tables = {name: fig_5(name, model, corpus, s, args, device) for name, model, _, corpus in models}
    rows = [(name, layer, *(f"{x:.6g}" for x in row)) for name, t in tables.items() for layer, row in enumerate(t)]
    files, words = {"uniformity.tsv": tsv(("backbone", "layer", *FIG_5), *rows)}, []
    for i, title in ((0, "Relative norm without the mean token"), (2, "Mean cosine of two tokens of a sequence")):
        curves = {name: (range(len(t)), t[:, i], t[:, i] - t[:, i + 1], t[:, i] + t[:, i + 1])
                  for name, t in tables.items()}
        files[f"uniformity-{FIG_5[i]}.svg"] = chart(f"{title}, and its sd", "layer (0: embeddings)", FIG_5[i], curves)
        words.append(extremes(FIG_5[i], {name: t[-1, i] for name, t in tables.items()}))
    for name, content in files.items() if args.out else ():
        data.write_beside(Path(args.out) / name, content)
    print(f"Behind the last layer {'; '.join(words)}.")


COSTS = {"parameters": ("parameters", "M", 1e6), "att": ("of att", "M", 1e6), "flops": ("FLOPs", "G", 1e9),
         "infer_ms": ("inference", "ms", 1), "infer_MB": ("memory of inference", "MB", 1),
         "train_ms": ("training step", "ms", 1), "train_MB": ("memory of training", "MB", 1)}  # words, unit, its size


def costs(s, names, precision, device):
    """{backbone: {measure of COSTS: (value, ratio to the first backbone's)}}; of times the medians over turns."""
    counts = {}
    for name in names:
        backbone = load_backbone(name, s.config.layers)
        count = count_parameters(s.config, backbone)
        counts[name] = count["total"], count["att"], count_flops(s.config, backbone, s.n)["total"]
    found = {name: {key: (x, x / first) for key, x, first in zip(COSTS, counts[name], counts[names[0]])}
             for name in names}
    for what in ("infer", "train"):
        rivals = race(what, s, names, [precision], device)
        first = rivals[names[0], precision]
        for (name, _), row in rivals.items():
            found[name] |= {f"{what}_ms": (1e3 * np.median(row.times) / s.steps, compared(first, row)[0]),
                            f"{what}_MB": (row.memory / 1e6, row.memory / first.memory)}
    return found


def bars(title, table, note):
    """What `costs` found as SVG: of each measure a bar a backbone, as long as its ratio; none where that is nan."""
    longest = max(ratio for row in table.values() for _, ratio in row.values() if ratio == ratio)
    parts, y = [f'<text x="80" y="42">{html.escape(note)}</text>'], 72
    for key, (words, unit, size) in COSTS.items():
        parts.append(f'<text class="title" x="80" y="{y}">{words}</text>')
        for i, (name, row) in enumerate(table.items()):
            y, (value, ratio) = y + 18, row[key]
            width = round(340 * ratio / longest, 1) if ratio == ratio else 0
            parts.append(f'<text x="96" y="{y}">{html.escape(Path(name).stem)}</text><rect class="s{i % 6}" '
                         f'fill="currentColor" x="216" y="{y - 10}" width="{width}" height="12"/>'
                         f'<text x="{224 + width:.6g}" y="{y}">{value / size:.4g} {unit} ({ratio:.2f})</text>')
        y += 30
    return framed(title, y, parts)


def analyse_cost(args):
    """Table 7: parameters, FLOPs, and time and memory of inference and training, measured in turns, beside bert's."""
    if args.out:
        data.check_out(args.out, folder=True)
    config, device, n = SIZES[args.size], find_device(args.device), args.n or PRETRAIN[args.size].n
    if n > config.positions:
        raise UserError(f"--n {n}: size {args.size} has {config.positions} positions")
    few_threads(config)
    about = {"size": args.size, "n": n, "batch": args.batch, "precision": args.precision, "turns": args.turns,
             "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__}
    note = " ".join(f"{key}={value}" for key, value in about.items())
    names = sorted(dict.fromkeys(args.backbone), key=lambda name: name != "bert")  # bert first, where it is asked for
    steps = BENCH.get(args.size, BENCH["mini"]).steps
    table = costs(BenchSettings(config, n, args.batch, steps, args.turns, args.seed), names, args.precision, device)
    print(f"{note}\nin brackets the ratio to {names[0]}\n{'':24s}" + "".join(f"{name:>18s}" for name in names))
    for key, (words, unit, size) in COSTS.items():
        print(f"{words + ', ' + unit:24s}" + "".join(
            f"{f'{row[key][0] / size:.4g} ({row[key][1]:.2f})':>18s}" for row in table.values()))
    if args.out:
        rows = [(*about.values(), name, *(f"{row[key][i]:.6g}" for i in (0, 1) for key in COSTS))
                for name, row in table.items()]
        data.write_beside(Path(args.out) / "cost.tsv", tsv(
            (*about, "backbone", *COSTS, *(f"{key}_ratio" for key in COSTS)), *rows))
        data.write_beside(Path(args.out) / "cost.svg", bars(f"Cost, and its ratio to {names[0]}", table, note))
    found = []
    for key in ("parameters", "flops", "infer_ms", "infer_MB", "train_ms"):
        ratios = {name: row[key][1] for name, row in table.items() if row[key][1] == row[key][1]}  # nan: not known
        ends = [f"{ratios[end]:.2f} ({end})" for end in (min(ratios, key=ratios.get), max(ratios, key=ratios.get))
                ] if ratios else ["not known here"]
        found.append(f"{COSTS[key][0]} {' to '.join(ends)}")
    print(f"With {names[0]} as 1: {', '.join(found)}.")


# ---- Command line ----


def add_pretrain(commands):
    """The options of `pretrain`."""
    parser = commands.add_parser("pretrain", help="MLM + NSP pre-training; writes a checkpoint, its records and curve",
                                 argument_default=argparse.SUPPRESS)  # so that --resume sees what was given
    source, add = parser.add_mutually_exclusive_group(required=True), parser.add_argument
    source.add_argument("--corpus", nargs="+", help="text, .gz or .xz: a sentence a line, blank line between "
                        "documents; or one token cache (data.py prepare)")
    source.add_argument("--resume", default=None, help="checkpoint of a run that stopped, to go on")
    add("--backbone", help=f"a name or a backbone file; default: {PUBLISHED}")
    add("--size", choices=SIZES, help=f"of the model; default: {USUAL['size']}")
    add("--vocab", type=data.number(int, 1, 10**7),
        help=f"sentencepiece vocabulary; default: toy {data.TOY_VOCAB}, mini 8,000, else 30,000")
    for name, least in (("steps", 1), ("batch", 1), ("n", 5), ("lr", 0), ("seed", 0), ("accumulate", 1)):
        kind = data.number(float if name == "lr" else int, least, data.SEEDS)
        values = {size: f"{getattr(preset, name):,}" for size, preset in PRETRAIN.items()}
        usual = ", ".join(f"{size} {value}" for size, value in values.items())
        usual = usual if len(set(values.values())) > 1 else values["toy"]
        more = "pieces a process takes a batch in, to save memory; " if name == "accumulate" else ""
        add(f"--{name}", type=kind, help=f"{more}default: {usual}")
    for name, what in (("save", "the checkpoint and curve are written; default: a tenth of all, 100 to 2,000"),
                       ("eval", "held-out loss is measured; default: a twentieth of all, at least 100")):
        add(f"--{name}-every", type=data.number(int, 1, data.SEEDS), help=f"steps after which {what}")
    add("--precision", choices=("auto", *PRECISIONS),
        help="default: auto, bf16 (autocast) on CUDA and fp32 on CPU; medium: fp32, products may be bf16")
    add("--init", help="checkpoint to start from with its backbone and tokenizer (see supernet.py --run)")
    add("--fast", choices=FAST,
        help="fused attention and conv1d: where measured faster (auto), always, or the plain definitions")
    add("--checkpointing", action="store_true", help="less memory, more time: keep only layers' inputs")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--compile", action="store_true", default=False, help="torch.compile")
    add("--out", help=f"the checkpoint; default: {USUAL['out']}")
    add("--overwrite", action="store_true", help="replace the files of --out")


def add_bench(commands):
    """The options of `bench`."""
    add = commands.add_parser("bench", help="speed and memory of training steps and inference, beside a peer's",
                              description="Measure training steps and inference in turns in one process. `to peer's "
                              "fp32`: median and quartiles over turns of how many times as fast as the peer's in fp32; "
                              "`same`: in the same precision; `to bert`: as our own bert in the same precision."
                              ).add_argument
    add("--size", nargs="+", choices=BENCH, default=["mini", "small"],
        help="with shapes of the bench's own, which it prints")
    add("--what", nargs="+", choices=("train", "infer"), default=["train", "infer"],
        help="training steps, and the encoder alone")
    add("--backbone", nargs="+", default=["bert", "autobert-zero"], help="names or backbone files")
    add("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="as for pretrain")
    add("--n", type=data.number(int, 8, 10**5), help="tokens a sequence; default: 64 (mini), 128")
    add("--batch", type=data.number(int, 1, 10**6), help="default: 32 (mini), 16, 8; inference 32")
    add("--turns", type=data.number(int, 1, 10**5), default=5, help="of each, after two to warm up")
    add("--peer", help="a package with a BertForPreTraining to race with, such as transformers")
    add("--fast", choices=FAST, default="auto", help="as for pretrain")
    add("--threads", type=data.number(int, 1, 1024), help="of the CPU; default: torch's")
    add("--device", default="auto", help="auto, cpu or cuda")
    add("--seed", type=data.number(int, 0, data.SEEDS), default=0, help="of the random batch")
    add("--out", help="write the table as TSV, too")


def add_analyse(commands):
    """The options of `analyse`."""
    kinds = commands.add_parser("analyse", help="token uniformity (Fig. 5), cost (Table 7), ablations (Table 5), "
                                "Kendall's tau (Fig. 8)").add_subparsers(dest="analysis", required=True)
    add = of_uniformity = kinds.add_parser(
        "uniformity", help="how alike tokens are behind each layer", description="Of checkpoints, or of backbones "
        "trained for it with one budget and seed; on pairs of held-out documents.").add_argument
    add("--checkpoint", nargs="+", help="what pretrain or a search wrote; without it train:")
    add("--backbone", nargs="+", help="names or backbone files; default: bert autobert-zero")
    add("--size", choices=SIZES, help=f"of the models to train, by its preset; default: {USUAL['size']}")
    add("--steps", type=data.number(int, 1, data.SEEDS), help="of training; default: the preset's")
    add("--corpus", nargs="+", help="text files or one token cache; default: the toy corpus")
    add("--rows", type=data.number(int, 1, 10**6), default=256, help="pairs to measure on")
    add("--n", type=data.number(int, 5, 10**5), help="tokens a pair; default: as in training")
    add = of_cost = kinds.add_parser(
        "cost", help="parameters, FLOPs, time and memory beside bert's", description="Ratios of time are medians over "
        "turns, in each of which all backbones run.").add_argument
    add("--size", choices=SIZES, default="mini", help="of the models, with random weights")
    add("--backbone", nargs="+", default=list(BACKBONES), help="names or backbone files")
    add("--n", type=data.number(int, 8, 10**5), help="tokens a sequence; default: the size's preset's")
    add("--batch", type=data.number(int, 1, 10**6), default=16, help="sequences at once")
    add("--turns", type=data.number(int, 1, 10**5), default=5, help="of each, after two to warm up")
    for add in (of_uniformity, of_cost):
        add("--precision", choices=PRECISIONS, default="fp32", help="as for pretrain")
        add("--device", default="auto", help="auto, cpu or cuda")
        add("--seed", type=data.number(int, 0, data.SEEDS), default=0, help="of everything random")
        add("--out", help="a folder for the numbers (.tsv) and the pictures (.svg)")
    kinds.add_parser("ablations", help="att-only, conv-only and others, trained alike: opnas.py ablations RUN")
    kinds.add_parser("kendall", help="search scores beside those of full training: opnas.py sharing RUN")


def main(argv=None):
    """The command line; see --help."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if argv[:1] == ["analyse"] and "".join(argv[1:2]) in ABOVE:  # imports go downwards only: opnas.py takes over
        script = Path(__file__).with_name("opnas.py")
        os.execv(sys.executable, [sys.executable, str(script), ABOVE[argv[1]], *argv[2:]])
    parser = data.Parser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    add = commands.add_parser("summary", help="parameters and FLOPs of backbones").add_argument
    add("--size", nargs="+", choices=SIZES, default=["small", "base", "large"])
    add("--backbone", nargs="+", default=list(BACKBONES), help="names or backbone files")
    add("--vocab", type=data.number(int, 1, 10**7), help=f"default: 30,522, BERT's; toy {data.TOY_VOCAB}")
    add("--n", type=data.number(int, 1, 10**7), default=128, help="tokens a sequence")
    add = commands.add_parser("export", help="weights, settings and reference vectors for a port").add_argument
    add("--checkpoint", help="what pretrain or a search wrote; without it random weights of:")
    add("--backbone", default=PUBLISHED, help="a name or a backbone file")
    add("--size", choices=SIZES, default="toy", help="of the model with random weights")
    add("--vocab", type=data.number(int, 6, 10**7), help="default: the size's")
    add("--seed", type=data.number(int, 0, data.SEEDS), default=0, help="of weights and test inputs")
    add("--out", default="export", help="a new folder")
    add = commands.add_parser("draw", help="a backbone, or losses of pre-trainings, as an SVG picture").add_argument
    add("--backbone", default=PUBLISHED, help="a name or a backbone file")
    add("--records", nargs="+", help=".tsv files of pretrain: held-out losses in one picture instead")
    add("--out", default="backbone.svg", help="the picture")
    add_pretrain(commands)
    add_bench(commands)
    add_analyse(commands)
    args = parser.parse_args(argv)
    {"summary": summary, "export": export, "draw": draw, "pretrain": train, "bench": bench,
     "uniformity": analyse_uniformity, "cost": analyse_cost}[getattr(args, "analysis", args.command)](args)


if __name__ == "__main__":
    sys.exit(data.run_cli(main))
