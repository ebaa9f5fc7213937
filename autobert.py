"""The model: backbones of attention graphs and light convolutions, BERT's embeddings and heads, pre-training.

Paper Sec. 3.1 (inter-layer search space), Fig. 1 and 7, Table 6, App. D. A backbone is a tuple of genes, one a layer:
a formula of ops.py for an attention, or "conv K" for a convolution of K taps. Everything around them is BERT.

    n tokens, d hidden size, H heads, d_h = d/H head size, k kernel taps, L layers, B rows, P masked places, V pieces

    python autobert.py summary     # parameters and FLOPs
    python autobert.py train       # MLM + NSP; the same command again goes on
    python autobert.py export      # for a port
Read after ops.py and data.py; then supernet.py. The model ends where "Training" begins.
"""
import functools
import json
import math
import os
import pickle
import time
from dataclasses import asdict, dataclass, replace
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import data
import ops
from data import UserError, flag

# ---- Sizes (Table 6) ----
@dataclass(frozen=True)
class ModelConfig:
    """A model without its backbone."""
    layers: int
    hidden: int
    heads: int
    embedding: int
    vocab: int = 30_000  # App. D.2
    positions: int = 512
    dropout: float = 0.1
    init_std: float = 0.02

SIZES = {
    "toy": ModelConfig(4, 64, 2, 64, vocab=650, positions=128, dropout=0.0, init_std=0.05),  # toy, mini: ours
    "mini": ModelConfig(4, 128, 2, 128, vocab=8000, dropout=0.0),
    # DEVIATION: Table 6 prints 256-dimensional embeddings, but the 13M parameters of Table 4 fit only 128
    "small": ModelConfig(12, 256, 4, 128),
    "base": ModelConfig(12, 768, 12, 768),
    "large": ModelConfig(24, 1024, 16, 1024),
}
PRECISION = flag("auto", "auto: bf16 on CUDA that has it, else fp32", choices=("auto", "fp32", "bf16"))

@dataclass(frozen=True)
class PretrainSettings:
    """One pre-training run."""
    steps: int = flag(1000, "steps in all")
    batch: int = flag(32, "rows a step, pairs of texts")
    n: int = flag(24, "tokens a row")
    lr: float = flag(3e-3, "peak learning rate")
    warmup: float = flag(0.1, "share of steps in which it rises")
    beta2: float = flag(0.98, "of Adam")
    accumulate: int = flag(1, "pieces of a batch; saves memory")
    precision: str = PRECISION
    seed: int = flag(0, "of all that is random")

# Table 6. CHOICE: BERT's million steps for the paper's 40 epochs
PRETRAIN = {
    "toy": PretrainSettings(),
    "mini": PretrainSettings(20_000, 16, 128, 1e-3, 0.05),
    "small": PretrainSettings(1_000_000, 320, 128, 1e-4, 0.01, 0.999),
    "base": PretrainSettings(1_000_000, 160, 128, 1e-4, 0.01, 0.999),
    "large": PretrainSettings(1_000_000, 80, 128, 1e-4, 0.02, 0.999),
}

# ---- Backbones (Fig. 7, Table 5, App. D.2) ----
KERNELS = (3, 5, 7, 9, 15, 31, 65)  # Sec. 3.1
CONVOLUTIONS = [f"conv {kernel}" for kernel in KERNELS]
_ZERO = tuple(gene for layer, kernel in zip((2, 4, 6, 8, 10, 12), (65, 9, 3, 7, 7, 3))  # of the layer before it
              for gene in (f"conv {kernel}", ops.ATTENTIONS[f"L{layer}"]))
BACKBONES = {
    "bert": (ops.ATTENTIONS["bert"],) * 12,
    "autobert-zero": _ZERO,
    "att-only": tuple(_ZERO[i | 1] for i in range(12)),  # each convolution is the attention behind it
    "conv-only": tuple(_ZERO[i & ~1] for i in range(12)),  # each attention is the convolution before it
}

def kernel_of(gene):
    """The kernel size of a convolution gene, None for an attention. Example: "conv 65" -> 65"""
    return int(gene[5:]) if gene.startswith("conv ") else None

def check_backbone(backbone, layers=None, where="backbone"):
    """The backbone with its genes in canonical form; UserError with layer and reason if one is illegal."""
    if layers not in (None, len(backbone)):
        raise UserError(f"{where}: {len(backbone)} layers; this size has {layers}")
    genes = []
    for number, gene in enumerate(backbone, 1):
        try:
            dag = None if gene in CONVOLUTIONS else ops.parse(gene)
            why = dag and ops.why_illegal(dag)
        except ValueError as error:
            why = f"{error}; or one of {', '.join(CONVOLUTIONS)}"
        if why:
            raise UserError(f"{where}, layer {number}: {gene[:120]!r}: {why}")
        genes.append(ops.formula(dag) if dag else gene)
    return tuple(genes)

def to_large(backbone):
    """App. D.2: pairs of layers are blocks, each inserted again after itself: 1 2 1 2 3 4 3 4 ... Structure only."""
    return tuple(gene for i in range(0, len(backbone), 2) for gene in backbone[i:i + 2] * 2)

def at_depth(backbone, layers):
    """A published backbone at another depth. CHOICE: pairs taken evenly from first to last; at twice it is to_large.
    Example: at_depth(range(12), 4) -> (0, 1, 10, 11)"""
    pairs, steps = [backbone[i:i + 2] for i in range(0, len(backbone), 2)], max(1, layers // 2 - 1)
    return tuple(gene for i in range(layers // 2) for gene in pairs[round(i * (len(pairs) - 1) / steps)])

def load_backbone(name_or_path, layers=None):
    """One of BACKBONES at the depth `layers`, or a saved one of that depth or half of it."""
    if name_or_path in BACKBONES:
        return at_depth(BACKBONES[name_or_path], layers) if layers else BACKBONES[name_or_path]
    try:
        genes = json.load(open(name_or_path, encoding="utf-8"))["backbone"]
    except (OSError, ValueError, LookupError, TypeError):
        raise UserError(f"backbone {name_or_path!r}: none of {', '.join(BACKBONES)}, no best.json") from None
    return check_backbone(to_large(genes) if 2 * len(genes) == layers else genes, layers, name_or_path)

def save_backbone(path, backbone):
    """Write {"backbone": genes}."""
    data.write_beside(path, json.dumps({"backbone": list(backbone)}, indent=1) + "\n")

# ---- The two kinds of layer (Sec. 3.1, Fig. 1) ----
LayerNorm = functools.partial(nn.LayerNorm, eps=1e-12)

class DagAttention(nn.Module):
    """Multi-head attention (Eq. 1, 2) by any graph, the same in every head; only inputs that it reads have weights."""
    def __init__(self, config, formula):
        super().__init__()
        d, self.heads, self.dropout = config.hidden, config.heads, config.dropout
        self.dag = ops.parse(formula)
        self.inputs = nn.ModuleDict({x: nn.Linear(d, d) for x in ops.used(self.dag)})
        self.out, self.norm = nn.Linear(d, d), LayerNorm(d)  # out: W_O

    def forward(self, x, mask):
        B, n, d = x.shape
        maps, drop = self.inputs.values(), self.dropout if self.training else 0.0
        x = F.linear(x, torch.cat([f.weight for f in maps]), torch.cat([f.bias for f in maps]))  # one product for all
        heads = x.view(B, n, len(maps), self.heads, -1).permute(2, 0, 3, 1, 4)  # Q = X W_Q, K, V, P (Eq. 1)
        heads = dict(zip(self.inputs, heads))  # each (B, H, n, d_h)
        fused = x.is_cuda or x.dtype == torch.float32 and not drop  # else slower
        y = ops.evaluate(self.dag, [heads.get(name) for name in ops.INPUTS], mask, drop, fused)
        return self.out(y.transpose(1, 2).reshape(B, n, d))  # .. W_O (Eq. 2)

def band(kernel, n):
    """A convolution as a matrix: (H, k) taps -> (H, n, n), row i holding the taps centred on column i.
    'Same' zero padding of k//2, and cut off at n. Example: taps a b c, n = 3 -> [[b, c, 0], [a, b, c], [0, a, b]]"""
    margin = n - 1 - kernel.shape[-1] // 2
    line = F.pad(kernel, (margin, margin))  # (H, 2n - 1), the centre tap in the middle; a negative margin crops
    return line.unfold(-1, n, 1).flip(-2)  # row i = line[n-1-i : 2n-1-i]

class LightConv(nn.Module):
    """Linear d -> 2d, GLU, lightweight convolution, linear d -> d.
    Head h has a kernel, normalised by softmax, for its channels [h d/H, (h+1) d/H)."""
    def __init__(self, config, kernel):
        super().__init__()
        d, self.heads, self.dropout = config.hidden, config.heads, config.dropout
        self.glu = nn.Linear(d, 2 * d)
        self.kernel = nn.Parameter(torch.empty(self.heads, kernel))
        self.out, self.norm = nn.Linear(d, d), LayerNorm(d)

    def taps(self):
        """The raw kernel, (H, k); supernet.py makes it of shared ones."""
        return self.kernel

    def forward(self, x, mask):
        (B, n, d), x = x.shape, F.glu(self.glu(x))
        if mask is not None:  # after the GLU: before the linear its bias would undo it
            x = x.masked_fill(~mask[..., None], 0.0)
        kernel = F.dropout(self.taps().softmax(-1), self.dropout, self.training)  # (H, k), DropConnect
        x = x.view(B, n, self.heads, -1).permute(2, 1, 0, 3).reshape(self.heads, n, -1)  # (H, n, B d_h)
        y = torch.bmm(band(kernel, n).to(x.dtype), x).view(self.heads, n, B, -1)  # no copy of the band for each row
        return self.out(y.permute(2, 1, 0, 3).reshape(B, n, d))

class Layer(nn.Module):
    """Attention or convolution, then feed-forward; after each dropout, residual, LayerNorm.
    The first part is named by its kind, so that a parameter's name is its slot in the super-net."""
    def __init__(self, config, gene):
        super().__init__()
        kernel = kernel_of(gene)
        self.kind = "convolution" if kernel else "attention"
        self.add_module(self.kind, LightConv(config, kernel) if kernel else DagAttention(config, gene))
        d, self.dropout = config.hidden, nn.Dropout(config.dropout)
        self.feedforward = nn.ModuleDict({"up": nn.Linear(d, 4 * d), "down": nn.Linear(4 * d, d), "norm": LayerNorm(d)})

    def forward(self, x, mask):
        mixer, (up, down, norm) = getattr(self, self.kind), self.feedforward.values()
        x = mixer.norm(x + self.dropout(mixer(x, mask)))
        return norm(x + self.dropout(down(F.gelu(up(x)))))

# ---- The encoder and the pre-training heads (BERT) ----
class AutoBert(nn.Module):
    """Embeddings and L layers: ids, segments, mask (B, n) -> hidden (B, n, d). mask: True = a real token; None: all."""
    def __init__(self, config, backbone):
        super().__init__()
        self.config, self.backbone = config, check_backbone(backbone, config.layers)
        d, e = config.hidden, config.embedding
        self.tokens = nn.Embedding(config.vocab, e)
        self.positions = nn.Embedding(config.positions, e)
        self.segments = nn.Embedding(2, e)
        self.norm, self.dropout = LayerNorm(e), nn.Dropout(config.dropout)
        self.projection = nn.Identity() if e == d else nn.Linear(e, d)
        self.layers = nn.ModuleList(Layer(config, gene) for gene in self.backbone)
        self.pooler = nn.Linear(d, d)
        init_weights(self, config.init_std)

    def embed(self, ids, segments):
        """Token + position + segment, LayerNorm, dropout, and up to the hidden size: (B, n, d)."""
        n = ids.shape[1]
        if n > self.config.positions:
            raise UserError(f"{n} tokens a row; the model has {self.config.positions} positions")
        x = self.tokens(ids) + self.positions.weight[:n] + self.segments(segments)
        return self.projection(self.dropout(self.norm(x)))

    def forward(self, ids, segments, mask=None, every=False):
        """every: all L + 1 states, behind the embeddings and behind each layer, in place of the last."""
        states = [self.embed(ids, segments)]
        for layer in self.layers:
            states = [*states * every, layer(states[-1], mask)]
        return states if every else states[-1]

    def pool(self, hidden):
        """(B, n, d) -> (B, d): a tanh layer on [CLS], trained by NSP."""
        return torch.tanh(self.pooler(hidden[:, 0]))

class Pretraining(nn.Module):
    """The encoder with BERT's two heads."""
    def __init__(self, config, backbone):
        super().__init__()
        self.encoder = AutoBert(config, backbone)
        self.transform, self.norm = nn.Linear(config.hidden, config.embedding), LayerNorm(config.embedding)
        self.bias, self.next = nn.Parameter(torch.zeros(config.vocab)), nn.Linear(config.hidden, 2)
        for head in (self.transform, self.next):
            init_weights(head, config.init_std)

    def mlm_logits(self, hidden):
        """(.., d) -> (.., V); the output matrix is the token embedding's (tied)."""
        x = self.norm(F.gelu(self.transform(hidden)))
        return F.linear(x, self.encoder.tokens.weight, self.bias)

    def forward(self, batch):
        """A `piece` of a batch -> (2,): its share of the batch's mean MLM and NSP losses; their sum is the loss."""
        hidden = self.encoder(batch["ids"], batch["segments"], batch["mask"])  # (B, n, d)
        places = batch["positions"][..., None].expand(-1, -1, hidden.shape[-1])
        logits = self.mlm_logits(hidden.gather(1, places))  # (B, P, V)
        mlm = F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="sum")  # without IGNORED
        nsp = F.cross_entropy(self.next(self.encoder.pool(hidden)), batch["next"], reduction="sum")
        return torch.stack([mlm / batch["masked"], nsp / batch["rows"]])

def init_weights(module, std):
    """BERT's: weights N(0, std) cut at 2 std, biases 0, LayerNorm 1 and 0. CHOICE: raw kernels as weights, T = 1."""
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif "norm" not in name and "transforms" not in name:
            nn.init.trunc_normal_(parameter, std=std, a=-2 * std, b=2 * std)

# ---- Size and cost (Tables 2 to 5) ----
def count_parameters(config, backbone):
    """Parameters: {"total": encoder with pooler, "att": input projections (the paper's #Params of Att)}."""
    with torch.device("meta"):
        model = AutoBert(config, backbone)
    count = {name: p.numel() for name, p in model.named_parameters()}
    att = sum(size for name, size in count.items() if ".inputs." in name or ".glu." in name)
    return {"total": sum(count.values()), "att": att}

def count_flops(config, backbone, n):
    """{"total", "layers"} of a forward pass of one sequence of n tokens, as ELECTRA counts: multiply-add 2, LayerNorm
    5, softmax 5, GELU 8, dropout 4 an element; the token embedding a dense product."""
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
    embeddings = n * (2 * e * config.vocab + 2 * e * (n + 2) + 2 * e + 5 * e + 4 * e) + (linear(e, d) if e != d else 0)
    pooler = linear(d, d)  # subtle: at every token, as in the published figures
    return {"total": embeddings + sum(layers) + pooler, "layers": layers}

def summary(size: tuple(SIZES) = "base"):
    """Parameters, input projections' ("att"), and FLOPs (n = 128) of the published backbones."""
    config = replace(SIZES[size], vocab=30_522)
    for name in BACKBONES:
        backbone = load_backbone(name, config.layers)
        count, flops = count_parameters(config, backbone), count_flops(config, backbone, 128)["total"]
        print(f"{name:14} {count['total'] / 1e6:.1f}M parameters, {count['att'] / 1e6:.2f}M att, {flops:.3g} FLOPs")

# ---- Training (App. D) ----
class Diverged(UserError):
    """A loss is not finite."""

def lr_at(step, steps, peak, warmup):
    """The rate of step 0, 1, .. steps - 1: linear up over the first `warmup` share, then down towards 0.
    Example: lr_at(0, 10, 1.0, 0.2) -> 0.5; lr_at(1, ...) -> 1.0; lr_at(9, ...) -> 0.125"""
    rising = max(1, round(warmup * steps))
    return peak * min((step + 1) / rising, (steps - step) / max(1, steps - rising + 1))

def make_optimizer(model, lr, weight_decay=0.01, betas=(0.9, 0.999)):
    """AdamW; no decay on biases, LayerNorms, kernels and transforms (it would shrink those without a gradient).
    DEVIATION: BERT's Adam has no bias correction; torch's has."""
    groups = [{"params": [], "weight_decay": weight_decay}, {"params": [], "weight_decay": 0.0}]
    for name, parameter in model.named_parameters():
        exempt = any(part in name for part in ("bias", "norm", "kernel", "transforms"))
        groups[exempt]["params"].append(parameter)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-6, fused=True)

def find_device(name="auto", rank=0):
    """The torch device of a --device flag. "auto": CUDA, of several this rank's, else the CPU."""
    if name == "auto":
        name = f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device

def autocast(device, precision):
    """torch's bf16 autocast, if that is the precision."""
    auto = precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=auto or precision == "bf16")

def piece(batch, i=0, k=1):
    """Rows i, i + k, .. of a batch (numpy), and the whole one's counts of masked tokens and rows."""
    counts = {"masked": (batch["targets"] != data.IGNORED).sum(), "rows": len(batch["next"])}
    return {key: rows[i::k] for key, rows in batch.items()} | counts

def to_device(batch, device):
    """A dict of numpy arrays as tensors on the device. A mask that hides nothing is None, for speed."""
    tensors = {key: torch.as_tensor(x) for key, x in batch.items() if key != "mask" or not x.all()}
    if device.type == "cuda":  # only from pinned memory does a copy not wait
        tensors = {key: x.pin_memory().to(device, non_blocking=True) for key, x in tensors.items()}
    return {"mask": None} | tensors

def pretrain(model, batches, s, device, report=None, offset=0, optimizer=None, first=0, rank=0, world=1):
    """Train in place on batches.batch(offset + step) for step = first .. s.steps - 1; s: PretrainSettings.
    It calls report(steps done, rate, mlm, nsp) now and then, or raises Diverged. optimizer: as it was before step
    `first`. rank, world: torchrun's."""
    if s.batch < s.accumulate * world:
        raise UserError(f"--batch {s.batch}: fewer rows than --accumulate {s.accumulate} x {world} processes")
    model.to(device).train()
    net = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    optimizer = optimizer or make_optimizer(model, s.lr, betas=(0.9, s.beta2))
    for step in range(first, s.steps):
        # 1. rate, batch and random numbers are functions of the step
        lr = lr_at(step, s.steps, s.lr, s.warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        batch, k, total = batches.batch(offset + step), s.accumulate, torch.zeros(2, device=device)
        torch.manual_seed((s.seed * 1_000_003 + offset + step) * 1024 + rank)
        # 2. forward and backward, piece by piece
        for i in range(k):
            with autocast(device, s.precision):
                losses = net(to_device(piece(batch, rank * k + i, world * k), device))  # (2,): mlm, nsp
            (losses.sum() * world).backward()  # DDP averages over processes
            total += losses.detach()
        # 3. clip the gradient at BERT's 1.0, step
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # 4. report; only here the host waits
        done = step + 1
        if done % max(1, s.steps // 100) == 0 or done == s.steps:
            if world > 1:
                torch.distributed.all_reduce(total)
            if not math.isfinite(total.sum()):  # weights that were once nan stay so
                raise Diverged(f"the loss is {total.sum():.3g} at step {done}; try a smaller --lr")
            if report:
                report(done, lr, *total.tolist())
    return model

@torch.no_grad()
def held_out_loss(model, batches, count, device, precision="fp32"):
    """(mlm, nsp): means over the first `count` batches, without dropout."""
    model.eval()
    with autocast(device, precision):
        losses = [model(to_device(piece(batches.batch(i)), device)) for i in range(count)]
    model.train()
    return tuple(torch.stack(losses).mean(0).tolist())

# ---- Checkpoints ----
def save_checkpoint(path, model, tokenizer, **more):
    """Write config, backbone, weights, tokenizer, and `more`."""
    data.write_beside(path, lambda file: torch.save({
        "config": asdict(model.encoder.config), "backbone": list(model.encoder.backbone), "state": model.state_dict(),
        "tokenizer": tokenizer.proto, **more}, file))

def load_checkpoint(path, device="cpu"):
    """(Pretraining, Tokenizer, all content)."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        model = Pretraining(ModelConfig(**content["config"]), content["backbone"])
        model.load_state_dict(content["state"])
        return model.to(device), data.Tokenizer(content["tokenizer"]), content
    except (OSError, LookupError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {path}: {str(error).splitlines()[0][:120]}") from None

# ---- Commands ----
def start(s, about, out):
    """(model, corpus, {"step", "rows", ..}), at the beginning or where it stopped."""
    corpus = data.open_corpus(about["corpus"], f"{out}.corpus", SIZES[about["size"]].vocab, s.seed)
    if os.path.exists(out):
        model, _, content = load_checkpoint(out)
        data.check_same(content.get("about", {}), about, out)
        return model, corpus, content
    config = replace(SIZES[about["size"]], vocab=corpus.tokenizer.vocab_size)
    torch.manual_seed(s.seed)
    model = Pretraining(config, load_backbone(about["backbone"], config.layers))
    if about["init"]:
        model, tokenizer, _ = load_checkpoint(about["init"])
        if tokenizer.proto != corpus.tokenizer.proto:
            raise UserError(f"--init {about['init']}: its tokenizer is not the corpus's")
    return model, corpus, {"step": 0, "rows": [["step", "lr", "mlm", "nsp", "held_out_mlm", "held_out_nsp"]]}

def train(s: PretrainSettings, corpus: str = "toy/corpus.txt", backbone: str = "autobert-zero", init: str = "",
          size: tuple(SIZES) = "toy", device: str = "auto", compile: bool = False, out: str = "model.pt"):
    """Pre-train with MLM + NSP; writes a checkpoint and its losses, OUT.tsv. The same command again goes on. Under
    torchrun all processes train together, from a prepared corpus.

    corpus: a folder of `data.py prepare`, or a text file
    backbone: bert, autobert-zero, att-only, conv-only, or a search's best.json
    init: a checkpoint to begin with (see studies/child.py)
    size: of the model, with its defaults
    device: auto, cpu, cuda, cuda:1, ..
    compile: by torch.compile
    out: the checkpoint"""
    rank, world, local = (int(os.environ.get(key, k)) for key, k in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0)))
    device, s, begun = find_device(device, local), replace(PRETRAIN[size], **s), time.time()
    if world > 1:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    about = {**asdict(s), "corpus": corpus, "backbone": backbone, "size": size, "init": init}
    model, corpus, at = start(s, about, out)
    optimizer = make_optimizer(model.to(device), s.lr, betas=(0.9, s.beta2))
    if compile:
        model.compile()
    if "optimizer" in at:
        optimizer.load_state_dict(at["optimizer"])
    batches, held = (data.PretrainingData(corpus, part, s.n, s.batch, s.seed) for part in data.split_held_out(corpus))

    def report(done, lr, mlm, nsp):
        row = [done, lr, mlm, nsp, "", ""]
        at["rows"].append(row)
        left = data.span((s.steps - done) * (time.time() - begun) / (done - at["step"]))
        print(f"step={done}/{s.steps} mlm={mlm:.3f} nsp={nsp:.3f} lr={lr:.2e} left={left}", flush=True)
        if len(at["rows"]) % 5 == 1 or done == s.steps:
            row[4:] = held_out_loss(model, held, min(20, held.steps_per_epoch), device, s.precision)
            print("held out: mlm={:.3f} nsp={:.3f}".format(*row[4:]), flush=True)
            more = {"optimizer": optimizer.state_dict()} if done < s.steps else {}
            save_checkpoint(out, model, corpus.tokenizer, about=about, step=done, rows=at["rows"], **more)
            data.write_beside(f"{out}.tsv", "".join("\t".join(map(str, row)) + "\n" for row in at["rows"]))

    pretrain(model, batches, s, device, None if rank else report, 0, optimizer, at["step"], rank, world)
    print(f"{out} holds {s.steps} steps of {backbone}" * (rank == 0))
    if world > 1:  # else gloo may hold tensors when Python ends
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()

@torch.no_grad()
def reference(model):
    """Rows of 32, 20 and 5 tokens, and what a port must compute from them: {name: array}."""
    rng, vocab = np.random.default_rng(0), model.encoder.config.vocab
    words = [rng.integers(data.FIRST_WORD, vocab, count) for count in (15, 14, 9, 8, 1, 1)]
    batch = data.collate([data.pack(a, b, 32) for a, b in zip(words[::2], words[1::2])]) | {"next": np.array([0, 1, 1])}
    batch["ids"], batch["positions"], batch["targets"] = data.mask_tokens(batch["ids"], vocab, rng, max_pred=6)
    tensors = to_device(piece(batch), torch.device("cpu"))
    states = model.eval().encoder(tensors["ids"], tensors["segments"], tensors["mask"], every=True)
    found = {f"hidden_{i}": x for i, x in enumerate(states)}  # 0: behind the embeddings, i: behind layer i
    found |= {"mlm_logits": model.mlm_logits(states[-1]), "next_logits": model.next(model.encoder.pool(states[-1]))}
    found["losses"] = model(tensors)
    return batch | {name: x.numpy() for name, x in found.items()}

def export(checkpoint: str = "model.pt", out: str = "export"):
    """Write what a port needs: README.txt, backbone.json, config.json, weights.npz, reference.npz.

    checkpoint: of train or a search
    out: a folder"""
    model, _, content = load_checkpoint(checkpoint)
    guide = open(__file__.replace("autobert.py", "README.md"), encoding="utf-8").read()
    data.write_beside(f"{out}/README.txt", guide.split("\n## Porting\n\n")[1].split("\n## ")[0])
    save_backbone(f"{out}/backbone.json", content["backbone"])
    data.write_beside(f"{out}/config.json", json.dumps(content["config"], indent=1) + "\n")
    data.write_beside(f"{out}/weights.npz", lambda file: np.savez(file, **model.state_dict()))
    data.write_beside(f"{out}/reference.npz", lambda file: np.savez(file, **reference(model)))
    print(f"{out} holds {checkpoint}")

if __name__ == "__main__":
    data.run(__doc__, train, summary, export)
