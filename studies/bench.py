"""How fast, and with how much memory, do models train and infer, beside bert and beside a peer's BERT (Table 7)?

The peer is the BertForPreTraining of a package such as transformers, of the same shape, with fused AdamW. All run in
turns in one process on the same random batch. Two minutes at size mini on two CPU cores, half an hour at base:

    python studies/bench.py --size mini --backbone bert autobert-zero att-only conv-only --peer transformers

params: of the encoder. GFLOPs: of one sequence forward, as ELECTRA counts. ms: of a step, median. TFLOP/s: of the
layers. to_peer: the peer's time in the same turn and precision by ours, median (quartiles); to_bert: our bert's by it.
"""
import ctypes
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
from draw import tsv  # noqa: E402

# ---- What runs ----
def one_batch(config, n, rows):
    """Arrays as PretrainingData.batch gives them: random rows, all of n tokens, 15 % of them masked."""
    rng = np.random.default_rng(0)
    ids = rng.integers(data.FIRST_WORD, config.vocab, (rows, n))
    masked, positions, targets = data.mask_tokens(ids, config.vocab, rng, round(0.15 * n) + 1)
    return {"ids": masked, "segments": np.zeros_like(ids), "mask": np.ones((rows, n), bool), "positions": positions,
            "targets": targets, "next": rng.integers(0, 2, rows)}

def ours(name, config, arrays, device, steps):
    """(encoder, train(precision), infer()) of a backbone; train: some steps of autobert.pretrain itself."""
    model = autobert.Pretraining(config, autobert.load_backbone(name, config.layers)).to(device)
    optimizer, batch = autobert.make_optimizer(model, 1e-4, 0.01), autobert.to_device(arrays, device)

    def train(precision):
        s = autobert.PretrainSettings(10_000, precision=precision)  # the host waits once in a hundred steps
        batches = SimpleNamespace(batch=lambda step: arrays)
        autobert.pretrain(model, batches, s, device, optimizer=optimizer, first=s.steps - steps)

    return model.encoder, train, lambda: model.encoder(batch["ids"], batch["segments"])

def theirs(package, config, arrays, device, steps):
    """The same of the BertForPreTraining in a package, as its users find it."""
    model = package.BertForPreTraining(package.BertConfig(
        vocab_size=config.vocab, hidden_size=config.hidden, num_hidden_layers=config.layers,
        num_attention_heads=config.heads, intermediate_size=4 * config.hidden, max_position_embeddings=config.positions,
        hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout)).to(device)
    optimizer, batch = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True), autobert.to_device(arrays, device)
    labels = torch.full_like(batch["ids"], data.IGNORED).scatter(1, batch["positions"], batch["targets"])
    inputs = {"input_ids": batch["ids"], "token_type_ids": batch["segments"]}

    def train(precision):
        model.train()
        for _ in range(steps):
            with autobert.autocast(device, precision):
                loss = model(**inputs, labels=labels, next_sentence_label=batch["next"]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    return model.bert, train, lambda: model.bert(**inputs)

@torch.no_grad()
def encode(encoder, infer, device, steps, precision):
    """Call an encoder some times, without dropout and gradients."""
    encoder.eval()
    for _ in range(steps):
        with autobert.autocast(device, precision):
            infer()

# ---- What is measured ----
def clock(turn, device):
    """Seconds that a turn takes, on a GPU to its last kernel."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    turn()
    wait()
    return time.perf_counter() - start

def resident(key):
    """Bytes of a line of Linux' /proc/self/status."""
    return next(1024 * int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key))

def peak_memory(turn, held, device):
    """Bytes: those that a model holds, and by how much a turn exceeds what is there before it. CUDA or Linux."""
    turn()  # so that the optimizer's moments are there
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        turn()
        return held + torch.cuda.max_memory_allocated(device) - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier turns left
    Path("/proc/self/clear_refs").write_text("5")  # the peak is what is there now
    before = resident("VmRSS")
    turn()
    return held + resident("VmHWM") - before

def race(names, config, n, rows, precisions, device, turns, peer=None, steps=5):
    """{(what, model, precision): SimpleNamespace(turn, memory, params, times)} after all have run in turns."""
    arrays, found = one_batch(config, n, rows), {}
    for name in [peer] * bool(peer) + names:
        make = partial(ours, name) if name != peer else partial(theirs, __import__(peer))
        encoder, train, infer = make(config, arrays, device, steps)
        params = sum(p.numel() for p in encoder.parameters())
        for what, go in (("train", train), ("infer", partial(encode, encoder, infer, device, steps))):
            for precision in precisions:
                turn = partial(go, precision)
                memory = peak_memory(turn, 4 * params * (3 if what == "train" else 1), device)  # Adam has two moments
                found[what, name, precision] = SimpleNamespace(turn=turn, memory=memory, params=params, times=[])
    for turn in range(turns):
        for row in found.values():
            row.times.append(clock(row.turn, device) / steps)
        print(f"turn={turn + 1}/{turns}", file=sys.stderr, flush=True)
    return found

def beside(row, other):
    """How many times as fast as another row one was, turn by turn: "median (quartiles)"; "-" if there is none."""
    low, median, high = np.quantile(np.divide(other.times, row.times), (0.25, 0.5, 0.75)) if other else (0, 0, 0)
    return f"{median:.2f} ({low:.2f}-{high:.2f})" if other else "-"

def bench(size: tuple(autobert.SIZES) = "mini", backbone: tuple[str, ...] = ("bert", "autobert-zero"), peer: str = "",
          precision: tuple[str, ...] = ("fp32", "bf16"), n: int = 128, batch: int = 8, turns: int = 5,
          device: str = "auto", out: str = "bench.tsv"):
    """How fast, and with how much memory, do models train and infer, beside bert and beside a peer's BERT? It takes two
    minutes at size mini on two CPU cores, half an hour at base.

    backbone: names or files
    peer: a package with a BertForPreTraining, such as transformers
    precision: fp32, bf16 by autocast
    n: tokens a row
    batch: rows
    turns: of each, five steps long, after two to warm up
    device: auto, cpu or cuda"""
    device, hidden = autobert.find_device(device), autobert.SIZES[size].hidden
    config = replace(autobert.SIZES[size], embedding=hidden)  # a peer's embeddings are as wide as its hidden states
    found = race(list(backbone), config, n, batch, precision, device, turns, peer)
    table = ["what model precision params GFLOPs ms tokens/s TFLOP/s MB to_peer to_bert".split()]
    for (what, name, kind), row in found.items():
        genes = autobert.load_backbone("bert" if name == peer else name, config.layers)
        flops, seconds = autobert.count_flops(config, genes, n), np.median(row.times)
        speed = batch * sum(flops["layers"]) * (3 if what == "train" else 1) / seconds / 1e12
        table.append([what, name, kind, f"{row.params / 1e6:.2f}M", f"{flops['total'] / 1e9:.4g}",
                      f"{1e3 * seconds:.1f}", f"{n * batch / seconds:.0f}", f"{speed:.3g}", f"{row.memory / 1e6:.0f}",
                      beside(row, found.get((what, peer, kind))), beside(row, found.get((what, "bert", kind)))])
    print(f"size={size} n={n} batch={batch} dropout={config.dropout} turns={turns} device={device} "
          f"threads={torch.get_num_threads()} torch={torch.__version__}")
    widths = [max(map(len, column)) for column in zip(*table)]
    print("\n".join("  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths)) for row in table))
    data.write_beside(out, tsv(*table))

if __name__ == "__main__":
    data.run(__doc__, bench, usual=bench)
