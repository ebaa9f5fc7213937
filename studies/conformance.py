"""Vectors that a port must meet, and the proof that they find its mistakes.

README's section Porting says what a port computes. This writes what comes out, as npz and json files that need NumPy
alone; models have biases that are not 0, gains that are not 1, and padding. Then the NumPy twin of test_all.py computes
them again; with --mutate once more with each of MISTAKES in it, and all must be seen. Some seconds, with it a minute:

    python studies/conformance.py --out conformance --mutate
"""
import inspect
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
import autobert  # noqa: E402
import data  # noqa: E402
import opnas  # noqa: E402
import ops  # noqa: E402
import supernet  # noqa: E402
import test_all  # noqa: E402

# ---- What is written, by the code itself ----
MODELS = {  # folder: hidden, heads, embedding, backbone; a reference row has 32 tokens
    "heads_of_8": (32, 4, 16, (
        "conv 3", "Q @ T(K) @ V + P", "a = softsign(K); softmax(scale(Q @ T(a))) @ (a + V)", "conv 65",
        "softmax(Q) @ (T(K) @ V)", "Q @ softmax(scale(T(K) @ V)) + P", "V @ cos(T(Q), T(K)) + softmax(-dist(Q, P)) @ K",
        "logsigmoid(Q) @ (softmax(T(K)) @ V)")),
    "heads_of_32": (64, 2, 64, ("softmax(scale(Q @ T(K)) + dist(V, P)) @ V + Q",
                                "a = T(K) @ V; -Q @ softmax(scale(a)) + cos(Q, a)")),
    "training": (16, 2, 8, ("conv 5", "a = softsign(K); softmax(scale(Q @ T(a))) @ (a + V)"))}
LOG = (  # backbones of a search and their scores; None: trained, then rejected
    (("conv 3", ops.ATTENTIONS["bert"]), 0.31), (("conv 7", ops.ATTENTIONS["L12"]), 0.45),
    (("a = softsign(K); (T(Q) + T(a)) @ (softmax(V) @ T(a)) @ V", "conv 3"), 0.52), (("conv 3", "conv 5"), 0.4),
    ((ops.ATTENTIONS["L10"], "conv 65"), None), ((ops.ATTENTIONS["bert"], "dist(Q, K) @ V"), 0.38))
EDITS = (  # edit, position, new op, operands, argument; then what mutate_dag's random generator must give it for that
    ("replace", 0, "add", (1, 3), None, ([1], 3, 0)), ("rewire", 3, None, (5,), 0, (5, 1)),
    ("delete", 1, None, (4,), None, (4,)), ("insert", 3, "softsign", (6,), 1, (6, 0, 2)),
    ("insert", 7, "neg", (10,), None, (0, 0)))

def new_model(hidden, heads, embedding, genes):
    """A model with noise on all weights; small embeddings, so that LayerNorm's epsilon counts."""
    config = autobert.ModelConfig(len(genes), hidden, heads, embedding, vocab=50, positions=40, dropout=0.0)
    model = test_all.new_model(config, genes, noise=0.3)
    for table in (model.encoder.tokens, model.encoder.positions, model.encoder.segments):
        table.weight.data /= 20
    return model

def one_op(op, kinds, size, mask, seed):
    """An op alone on operands of these types, with the padding rule; and the gradient of sum(weight * output)."""
    rng, row = np.random.default_rng(seed), ops.OPS[op]
    x = [np.round(8 * rng.normal(size=(2, size[a], size[b]))) / 8 for a, b in kinds]  # eighths: exact sums
    x[0][:, 1] /= 1024  # a row beside which epsilons count, equal rows, and large numbers
    if op in ("cos", "dist"):
        x[1][:, 0] = x[0][:, 0]
    elif len(x) == 1:
        x[0][:, 0, :2] = 1000, -1000
    x = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in x]
    padding, result = {-1: ~mask[:, None, :], -2: ~mask[:, :, None]}, row.type(*kinds)
    seen = [v.masked_fill(padding[axis], row.hide) if axis and kind[axis] == "n" else v
            for v, kind, axis in zip(x, kinds, row.reduces)]
    y = row.value(size["d"], *seen)
    weight = torch.tensor(rng.normal(size=y.shape), dtype=torch.float32)
    for axis in {-1, -2} - {i for i in (-1, -2) if result[i] != "n"}:
        weight = weight.masked_fill(padding[axis], 0.0)
    (y * weight).sum().backward()
    found = {"weight": weight, "output": y, **dict(zip("xy", x)), **{f"gradient_{i}": v.grad for i, v in zip("xy", x)}}
    return {f"{op}.{'.'.join(kinds)}.{name}": v.detach().numpy() for name, v in found.items()}

def each_op(n, d):
    """Every op with operands of all types that fit it, two rows of which the second has padding."""
    mask, found = torch.arange(n) < torch.tensor([[n], [n - 2]]), {"head_size": d}
    for op, row in ops.OPS.items():
        for kinds in itertools.product(("nd", "dn", "nn", "dd"), repeat=row.text.count("{}")):
            found |= one_op(op, kinds, {"n": n, "d": d}, mask, len(found)) if row.type(*kinds) else {}
    return found | {"mask": mask.numpy()}

def training(model):
    """Four steps: each one's batch, losses, gradients before clipping, and weights behind it; the settings and norms."""
    s, gradients, found, norms, rates = autobert.PretrainSettings(4, 4, lr=1e-2, warmup=0.5), {}, {}, [], []
    batches = SimpleNamespace(batch=lambda step: test_all.a_batch(4, 12, step))
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: gradients.update({name: p.grad.numpy().copy()}))

    def report(done, rate, *losses):
        step = {"batch": batches.batch(done - 1), "gradient": gradients, "losses": {"mlm_nsp": losses},
                "weight_after": {name: p.detach().numpy().copy() for name, p in model.named_parameters()}}
        found.update({f"{done - 1}.{what}.{name}": x for what, part in step.items() for name, x in part.items()})
        norms.append({name: float(np.linalg.norm(x)) for name, x in gradients.items()})
        rates.append(rate)

    optimizer = autobert.make_optimizer(model, s.lr, 0.1, (0.9, s.beta2))
    autobert.pretrain(model, batches, s, torch.device("cpu"), report, 0, optimizer)
    return found, {"steps": 4, "peak": s.lr, "warmup": s.warmup, "betas": [0.9, s.beta2], "epsilon": 1e-6,
                   "weight_decay": 0.1, "clip": 1.0, "rates": rates, "gradient_norms": norms}

def tables(alpha, tau):
    """UCB scores and probabilities at every place."""
    log = [opnas.Candidate(i, 0, None, genes, score) for i, (genes, score) in enumerate(LOG)]
    priority = opnas.OperationPriority(log, alpha, tau)
    return {"alpha": alpha, "tau": tau, "places": {str(place): {
        str(i): {"scores": priority.tables[place].get(i, []), "u": u, "p": priority.p(place)[i]}
        for i, u in priority.ucb(place).items()} for place in sorted(priority.tables, key=str)}}

class Script(list):
    """A random generator that gives what stands in it, in order."""
    choices = choice = randrange = sample = lambda self, *_: self.pop(0)

def edits(before=ops.parse(ops.ATTENTIONS["L12"])):
    """A graph before and after each edit."""
    for edit, position, op, operands, argument, script in EDITS:
        rng = Script([[edit], position, *script])
        after = opnas.mutate_dag(before, SimpleNamespace(draw=lambda *_, op=op: op), rng)
        yield {"before": ops.formula(before), "before_nodes": before, "edit": edit, "position": position, "op": op,
               "operands": operands, "argument": argument, "after": ops.formula(after), "after_nodes": after}
