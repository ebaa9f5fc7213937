"""Is all of it right on this GPU, how fast is it, and how much memory does it take (App. D, Table 7)?

A line a check, `ok` or what is wrong, and a table that is rewritten after each. Three minutes on one GPU, and some more
for the models that torch compiles, which come last. At tiny sizes on a CPU, half a minute:

    python studies/gpu.py --out results/gpu.tsv
    python studies/gpu.py --device cpu --quick

Timed are bench.py's training steps in bf16 at n = 128, one model after the other, medians; also those of transformers'
BertForPreTraining if it is installed. Share of the peak: the layers' operations by those of a large matrix product.
"""
import contextlib
import gc
import importlib.util
import io
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import autobert  # noqa: E402
import bench  # noqa: E402
import data  # noqa: E402
import glue  # noqa: E402
import opnas  # noqa: E402
import ops  # noqa: E402
from draw import tsv  # noqa: E402

PEER = "transformers"

def row(check, figure, bound=None, sign="<="):
    """A line of the table: (check, figure, bound, "ok" or "wrong")."""
    good = bound is None or (figure <= bound if sign == "<=" else figure >= bound)
    return check, f"{figure:.4g}", "-" if bound is None else f"{sign} {bound:.3g}", "ok" if good else "wrong"

# ---- Is it right? A check yields rows; g: device, cuda, quick, folder, corpus, and peak and peer of the last part ----
def hardware(g):
    """Which device, how much memory, and whether it computes in bf16."""
    about = torch.cuda.get_device_properties(g.device) if g.cuda else SimpleNamespace(name="CPU", total_memory=np.nan)
    yield row(f"{about.name}, torch {torch.__version__}: memory, GiB", about.total_memory / 2**30)
    yield row("bf16 in hardware", float(g.cuda and torch.cuda.is_bf16_supported(False)), 1 if g.cuda else None, ">=")

def pretrained(g, precision="auto", compile=False, dropout=0.0):
    """(model, (30,) losses) of 30 steps from one seed."""
    size, shape = ("toy", {"n": 16, "batch": 8}) if g.quick else ("mini", {})
    config = replace(autobert.SIZES[size], vocab=600, dropout=dropout)
    s = replace(autobert.PRETRAIN[size], steps=30, precision=precision, **shape)
    torch.manual_seed(0)
    model, losses = autobert.Pretraining(config, autobert.load_backbone("autobert-zero", config.layers)), []
    if compile:
        model.compile(backend="eager" if g.quick else "inductor")
    batches = data.PretrainingData(g.corpus, data.split_held_out(g.corpus)[0], s.n, s.batch, 0)
    autobert.pretrain(model, batches, s, g.device, lambda step, lr, mlm, nsp: losses.append(mlm + nsp))
    return model, np.array(losses)

def precisions(g):
    """Thirty steps in fp32, in bf16, and compiled."""
    exact = pretrained(g, "fp32")[1]
    yield row("30 steps, fp32: last loss by the first", exact[-1] / exact[0], 0.9)
    for name, compile in (("bf16", False), ("bf16, compiled", True)):
        yield row(f"30 steps, {name}: off fp32's losses by", abs(pretrained(g, "bf16", compile)[1] / exact - 1).max(), 0.02)

def one_seed(g):
    """Two runs with one seed. On a GPU the backward pass of fused attention adds up in any order."""
    (one, losses), (other, again) = (pretrained(g, dropout=0.1) for _ in range(2))
    gap = max((p - q).abs().max().item() for p, q in zip(one.parameters(), other.parameters()))
    yield row("one seed twice: a weight differs by", gap, None if g.cuda else 0)
    yield row("one seed twice: a loss differs by", abs(losses / again - 1).max(), 0.01 if g.cuda else 0)

def outcomes(formula, x, mask, precision, fused):
    """The output and the gradients of an attention."""
    x = [v.clone().requires_grad_() for v in x]
    with autobert.autocast(x[0].device, precision):
        y = ops.evaluate(ops.parse(formula), x, mask, fused=fused)
    (y * torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)).sum().backward()
    return [y.detach(), *(v.grad for v in x if v.grad is not None)]

def attention(g):
    """Plain and fused attention: the worst error of the published ones beside fp64, by the largest value."""
    for precision, kind, least in (("fp32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 1e-3)):
        worst = [0.0, 0.0]
        for case in range(2 * len(ops.ATTENTIONS)):  # each without padding, and with, at a length like any other
            formula, n = list(ops.ATTENTIONS.values())[case // 2], (128, 83)[case % 2]
            mask = torch.arange(n, device=g.device).expand(2, n) < 61 if case % 2 else None
            x = torch.randn(4, 2, 2, n, 64, generator=torch.Generator().manual_seed(case)).to(g.device, kind)
            exact = outcomes(formula, x.double(), mask, "fp32", False)
            for fused in (False, True):
                pairs = zip(outcomes(formula, x, mask, precision, fused), exact)
                worst[fused] = max(worst[fused], *(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs))
        yield row(f"plain attention, {precision}: error", worst[False])
        yield row(f"fused attention, {precision}: error", worst[True], max(least, 2 * worst[False]))

def search(g):
    """A search of two candidates and its final trainings, in two processes; the probe of collapse."""
    steps, out = 10 if g.quick else 200, g.folder / "search"
    s = {"tasks": ("CoLA",), "strategy": "random" if g.quick else "op-nas", "warm": 0, "population": 2, "parents": 1,
         "rounds": 0, "finalists": 1, "rows": 100, "steps": steps, "final_steps": steps}
    with contextlib.redirect_stdout(io.StringIO()):
        opnas.search(s, "toy", f"{g.folder}/corpus", f"{ROOT}/toy/glue", out, 1 if g.quick else 2, str(g.device))
    scored = {c.number for c in opnas.Run(out, map).log if c.score is not None}
    yield row("search: candidates with a score", len(scored), 2, ">=")
    let, turned = (opnas.PROXY.probe((formula,) * 4) for formula in (ops.ATTENTIONS["bert"], "dist(Q, K) @ V"))
    yield row("the probe lets bert pass, dist(Q, K) @ V not", not let and turned == "collapsed", 1, ">=")

def tuning(g):
    """Fine-tuning on a task, and on ten questions until they are known by heart."""
    encoder, words, s = pretrained(g)[0].encoder, g.corpus.tokenizer, glue.PRESETS["toy"]
    train, dev = (glue.encode(glue.read_task(f"{ROOT}/toy/glue", "SST-2", part)[:600], words, s.n)
                  for part in ("train", "dev"))
    yield row("SST-2: accuracy", glue.finetune(encoder, "SST-2", train, dev, s, 0, g.device)[1], 0.6, ">=")
    asked, s = glue.read_squad(f"{ROOT}/toy/squad/dev-v1.1.json")[:10], glue.SquadSettings(epochs=40)
    windows = glue.squad_windows(asked, words, s)
    rows, gold = [w.row for w in windows], np.array([w.gold for w in windows])
    model = glue.fit(encoder, "SQuAD", (rows, gold), s, 0, g.device)
    found = glue.squad_predictions(glue.decode(asked, windows, glue.outputs_of(model, rows, s, g.device), s))
    yield row("SQuAD, ten questions: F1", glue.squad_scores(asked, found)["f1"], 60, ">=")

# ---- How fast is it? ----
def matrix_peak(g):
    """Operations a second of a large matrix product."""
    n = 256 if g.quick else 8192
    a = torch.randn(n, n, device=g.device, dtype=torch.bfloat16)
    g.peak = 20 * n**3 / np.median([bench.clock(lambda: [a @ a for _ in range(10)], g.device) for _ in range(9)])
    yield row(f"matrices of {n} rows multiplied in bf16, TFLOP/s", g.peak / 1e12)

def trainer(name, config, arrays, device, steps, compile):
    """train(precision) of bench.py for a backbone or the peer."""
    def made(*about):
        model = original(*about)
        if compile:
            model.compile()
        return model

    package, kind = (importlib.import_module(PEER), "BertForPreTraining") if name == PEER else (autobert, "Pretraining")
    original, make = getattr(package, kind), partial(bench.theirs, package) if name == PEER else partial(bench.ours, name)
    with mock.patch.object(package, kind, made):
        return make(config, arrays, device, steps)[1]

def activations(config, n, rows):
    """Bytes that a step of bert in bf16 needs beside weights and moments. In a layer 38 d a token: what linear maps read
    14, Q, K, V 6, GELU's input 8, LayerNorms' 8, dropout's masks 2. A masked place: 10 for each piece of the vocabulary."""
    return rows * (n * config.layers * 38 * config.hidden + (round(0.15 * n) + 1) * 10 * config.vocab)

def speed(g, size, rows, name, compile=False):
    """Training steps of one model."""
    n, steps = (16, 1) if g.quick else (128, 10)
    config = replace(autobert.SIZES[size], embedding=autobert.SIZES[size].hidden, dropout=0.1)  # the peer's are so
    train = partial(trainer(name, config, bench.one_batch(config, n, rows), g.device, steps, compile), "bf16")
    grown = bench.peak_memory(train, 0, g.device) / 2**30  # also warms up
    speed = n * rows * steps / np.median([bench.clock(train, g.device) for _ in range(5)])
    genes = autobert.load_backbone("bert" if name == PEER else name, config.layers)
    share = 3 * sum(autobert.count_flops(config, genes, n)["layers"]) / n * speed / g.peak
    what = f"{size} {rows} {name}{' compiled' * compile}"
    yield row(f"{what}: tokens/s", speed)
    yield row(f"{what}: share of the peak", share, 0.45 if compile and (size, name) == ("base", "bert") else None, ">=")
    yield row(f"{what}: GiB beside weights and moments", grown,
              1.2 * activations(config, n, rows) / 2**30 if g.cuda and (name, compile) == ("bert", False) else None)
    if name == PEER:
        g.peer[size] = max(speed, g.peer.get(size, 0))
    elif size in g.peer:
        yield row(f"{what}: by the best of {PEER} so far", speed / g.peer[size], 1.5 if compile else None, ">=")

# ---- All of them ----
def rows_of(name, check, g):
    """The rows of a check; if it raises, the last one says so."""
    try:
        yield from check(g)
    except Exception as error:
        yield name, "-", "-", f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    gc.collect()  # the check's models
    torch.compiler.reset()  # it compiles a function for a few models only
    torch.cuda.empty_cache()

def gpu(device: str = "auto", quick: bool = False, out: str = "gpu.tsv"):
    """Check all that runs on a GPU.

    device: auto, cuda, cuda:1, .., cpu
    quick: tiny sizes
    out: the table"""
    models = [PEER] * bool(importlib.util.find_spec(PEER)) + ["bert", "autobert-zero"]
    shapes = [("toy", 2)] if quick else [("small", 160), ("small", 320), ("base", 160), ("base", 320)]
    shapes = [(*shape, name) for shape in shapes for name in models]
    shapes += [] if quick else [(*shape, name, True) for shape in (("small", 320), ("base", 160)) for name in models]
    checks = {f.__name__: f for f in (hardware, precisions, one_seed, attention, search, tuning, matrix_peak)}
    checks |= {" ".join(map(str, shape)): lambda g, shape=shape: speed(g, *shape) for shape in shapes}
    table, device = [("check", "figure", "bound", "ok")], autobert.find_device(device)
    with tempfile.TemporaryDirectory() as folder:
        corpus = data.open_corpus(ROOT / "toy/corpus.txt", f"{folder}/corpus", 600)
        g = SimpleNamespace(device=device, cuda=device.type == "cuda", quick=quick, folder=Path(folder), corpus=corpus,
                            peak=np.nan, peer={})
        for name, check in checks.items():
            for line in rows_of(name, check, g):
                table.append(line)
                print("{3:6} {0}: {1} ({2})".format(*line), flush=True)
                data.write_beside(out, tsv(*table))
    if wrong := sum(line[3] != "ok" for line in table[1:]):
        raise data.UserError(f"{wrong} of {len(table) - 1} lines are not ok; see {out}")

if __name__ == "__main__":
    data.run(__doc__, usual=gpu)
