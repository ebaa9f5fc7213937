"""Is all of it right on this GPU, how fast is it, and how much memory does it take (App. D, Table 7)?

A line a check, `ok` or what is wrong, and a table that is rewritten after each. By estimate three minutes on a GPU, and
a few more for the models that torch compiles, which come last. At tiny sizes on a CPU, half a minute:

    python studies/gpu.py --out results/gpu.tsv
    python studies/gpu.py --device cpu --quick

Speed is bench.py's in bf16 at n = 128, beside transformers' BertForPreTraining if it is installed; share of the peak:
the layers' operations by those of a large matrix product in the same time.
"""
import contextlib
import importlib.util
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

def row(check, figure, bound=None, sign="<="):
    """A line of the table: (check, figure, bound, "ok" or "wrong")."""
    good = bound is None or (figure <= bound if sign == "<=" else figure >= bound)
    return check, f"{figure:.4g}", "-" if bound is None else f"{sign} {bound:.3g}", "ok" if good else "wrong"

# ---- Is it right? A check yields rows; g: device, cuda, quick, folder, corpus, peak ----
def hardware(g):
    """Which device, how much memory, how fast it multiplies matrices."""
    about = torch.cuda.get_device_properties(g.device) if g.cuda else SimpleNamespace(name="CPU", total_memory=0)
    yield row(f"{about.name}, torch {torch.__version__}: memory, GiB", about.total_memory / 2**30)
    yield row("bf16 in hardware", float(g.cuda and torch.cuda.is_bf16_supported(False)), 1 if g.cuda else None, ">=")
    a = torch.randn(*[256 if g.quick else 8192] * 2, device=g.device, dtype=torch.bfloat16)
    g.peak = 20 * len(a) ** 3 / np.median([bench.clock(lambda: [a @ a for _ in range(10)], g.device) for _ in range(9)])
    yield row(f"product of matrices of {len(a)} rows in bf16, TFLOP/s", g.peak / 1e12)

def pretrained(g, precision="auto", compile=False, dropout=0.0):
    """(model, (30,) losses) of 30 steps from one seed."""
    size, shape = ("toy", {"n": 16, "batch": 8}) if g.quick else ("mini", {})
    config = replace(autobert.SIZES[size], vocab=600, dropout=dropout)
    s = replace(autobert.PRETRAIN[size], steps=30, precision=precision, **shape)
    torch.manual_seed(0)
    model, losses = autobert.Pretraining(config, autobert.load_backbone("autobert-zero", config.layers)), []
    model.compile(disable=not compile, backend="eager" if g.quick else "inductor")
    batches = data.PretrainingData(g.corpus, data.split_held_out(g.corpus)[0], s.n, s.batch, 0)
    autobert.pretrain(model, batches, s, g.device, lambda step, lr, mlm, nsp: losses.append(mlm + nsp))
    return model, np.array(losses)

def precisions(g):
    """Thirty steps in fp32, in bf16, and compiled; twice with one seed and dropout."""
    exact = pretrained(g, "fp32")[1]
    yield row("30 steps, fp32: last loss by the first", exact[-1] / exact[0], 0.9)
    for name, compile in (("bf16", False), ("bf16, compiled", True)):
        losses = pretrained(g, "bf16", compile)[1]
        yield row(f"30 steps, {name}: a loss differs from fp32's by", abs(losses / exact - 1).max(), 0.005)
    one, other = (pretrained(g, dropout=0.1)[1] for _ in range(2))  # fused attention's gradients add up in any order
    yield row("30 steps, one seed twice: a loss differs by", abs(one / other - 1).max(), 0.005 if g.cuda else 0)

def outcomes(formula, x, mask, precision, fused):
    """The output and the gradients of an attention."""
    x = [v.clone().requires_grad_() for v in x]
    with autobert.autocast(x[0].device, precision):
        y = ops.evaluate(ops.parse(formula), x, mask, fused=fused)
    (y * torch.linspace(-1, 1, y.numel(), device=y.device).view(y.shape)).sum().backward()
    return [y.detach(), *(v.grad for v in x if v.grad is not None)]

def attention(g):
    """Fused attention: its worst error beside fp64, by the largest value, is at most twice that of the plain one."""
    real = torch.arange(83, device=g.device).expand(2, 83) < 61
    for precision, kind, least in (("fp32", torch.float32, 1e-5), ("bf16", torch.bfloat16, 1e-3)):
        worst = [0.0, 0.0]
        for formula, mask in [(formula, mask) for formula in ops.ATTENTIONS.values() for mask in (None, real)]:
            x = torch.randn(4, 2, 2, 83, 64, device=g.device).to(kind)
            exact = outcomes(formula, x.double(), mask, "fp32", False)
            for fused in (False, True):
                pairs = zip(outcomes(formula, x, mask, precision, fused), exact)
                worst[fused] = max(worst[fused], *(((a - b).abs().max() / b.abs().max()).item() for a, b in pairs))
        yield row(f"fused attention, {precision}: error", worst[True], max(least, 2 * worst[False]))

def search(g):
    """A search of two candidates and its final trainings, in two processes; the probe of collapse."""
    s = {"tasks": ("CoLA",), "warm": 0 if g.quick else 200, "population": 2, "parents": 1,
         "rounds": 0, "finalists": 1, "rows": 100, **dict.fromkeys(("steps", "final_steps"), 10 if g.quick else 200)}
    out = g.folder / "search"
    with contextlib.redirect_stdout(sys.stderr):
        opnas.search(s, "toy", f"{g.folder}/corpus", f"{ROOT}/toy/glue", out, 1 if g.quick else 2, str(g.device))
    scored = {c.number for c in opnas.Run(out, map).log if c.score is not None}
    yield row("search: candidates with a score", len(scored), 2, ">=")
    let, turned = (opnas.PROXY.probe((formula,) * 4) for formula in (ops.ATTENTIONS["bert"], "dist(Q, K) @ V"))
    yield row("the probe lets bert pass, dist(Q, K) @ V not", not let and turned == "collapsed", 1, ">=")

def tuning(g):
    """Fine-tuning on a task, and on ten questions until they are known by heart."""
    encoder, words, s, folder = pretrained(g)[0].encoder, g.corpus.tokenizer, glue.PRESETS["toy"], f"{ROOT}/toy/glue"
    train, dev = (glue.encode(glue.read_task(folder, "SST-2", part), words, s.n) for part in ("train", "dev"))
    yield row("SST-2: accuracy", glue.finetune(encoder, "SST-2", train, dev, s, 0, g.device)[1], 0.6, ">=")
    asked, s = glue.read_squad(f"{ROOT}/toy/squad/dev-v1.1.json")[:10], glue.SquadSettings(epochs=100)
    windows = glue.squad_windows(asked, words, s)
    rows, gold = [w.row for w in windows], np.array([w.gold for w in windows])
    model = glue.fit(encoder, "SQuAD", (rows, gold), s, 0, g.device)
    found = glue.squad_predictions(glue.decode(asked, windows, glue.outputs_of(model, rows, s, g.device), s))
    yield row("SQuAD, ten questions: F1", glue.squad_scores(asked, found)["f1"], 60, ">=")

# ---- How fast is it? ----
def speed(size, rows, compile, g):
    """Training and inference of the peer, bert and autobert-zero; or their training, compiled."""
    peers = ["transformers"] * bool(importlib.util.find_spec("transformers"))
    kinds = [autobert.Pretraining, *(importlib.import_module(name).BertForPreTraining for name in peers)]
    n, turns, out = (16, 2, g.folder / "bench") if g.quick else (128, 5, g.folder / "bench")
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as stack:
        for kind in kinds * compile:
            stack.enter_context(mock.patch.object(kind, "forward", torch.compile(kind.forward)))
        bench.bench(size, ("bert", "autobert-zero"), "".join(peers), ("bf16",), n, rows, turns, str(g.device), out)
    head, *lines = (line.rstrip("\n").split("\t") for _, line in data.read_lines(out))
    for r in (dict(zip(head, line)) for line in lines if line[0] == "train" or not compile):
        what = f"{size} {rows} {r['model']} {r['what']}{' compiled' * compile}"
        yield row(f"{what}: tokens/s", float(r["tokens/s"]))
        if peers and r["model"] not in peers:
            yield row(f"{what}: times the peer's speed", float(r["to_peer"].split()[0]))
        if r["what"] == "train":
            yield row(f"{what}: share of the peak", float(r["TFLOP/s"]) * 1e12 / g.peak)
            used = (float(r["MB"]) - 12 * float(r["params"][:-1])) * 1e6 / 2**30
            # 38 bytes a channel, token and layer are 6.7 GiB, the logits .9; plain attention would add 2
            yield row(f"{what}: GiB beside weights", used, 9.5 if g.cuda and what == "base 160 bert train" else None)

# ---- All of them ----
def rows_of(check, g):
    """The rows of a check; if it raises, the last one says so."""
    try:
        yield from check(g)
    except Exception as error:
        name, why = check.func.__name__, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        yield " ".join(map(str, (name, *check.args))), "-", "-", f"failed: {why}"
    torch.compiler.reset()  # it compiles a function for a few models only

def gpu(device: str = "auto", quick: bool = False, out: str = "gpu.tsv"):
    """Check in three minutes all that runs on a GPU: a line for each check, ok or what is wrong, and a table.

    device: auto, cuda, cuda:1, .., cpu
    quick: tiny sizes
    out: the table"""
    device, table = autobert.find_device(device), [("check", "figure", "bound", "ok")]
    shapes = [(size, rows, False) for size in ("small", "base") for rows in (160, 320)]
    shapes = [("toy", 2, False)] if quick else [*shapes, ("small", 320, True), ("base", 160, True)]
    checks = [*map(partial, (hardware, precisions, attention, search, tuning)), *(partial(speed, *x) for x in shapes)]
    with tempfile.TemporaryDirectory() as folder:
        corpus = data.open_corpus(ROOT / "toy/held-out.txt", f"{folder}/corpus", 600)
        g = SimpleNamespace(device=device, cuda=device.type == "cuda", quick=quick, folder=Path(folder), corpus=corpus)
        for line in (line for check in checks for line in rows_of(check, g)):
            table.append(line)
            print("{3:6} {0}: {1} ({2})".format(*line), flush=True)
            data.write_beside(out, tsv(*table))
    if wrong := sum(line[3] != "ok" for line in table[1:]):
        raise data.UserError(f"{wrong} of {len(table) - 1} lines are not ok; see {out}")

if __name__ == "__main__":
    data.run(__doc__, usual=gpu)
