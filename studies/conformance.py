"""Vectors that a port must meet, and the proof that they find its mistakes.

README's section Porting says what a port computes; this writes what comes out. With --mutate the NumPy twin of
test_all.py makes each of MISTAKES; all must be seen. A minute: python studies/conformance.py --out conformance --mutate
"""
import inspect
import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import opnas  # noqa: E402
import ops  # noqa: E402
import supernet  # noqa: E402
import test_all  # noqa: E402

FORMULAS = ("-Q", "T(Q)", "scale(Q)", "softmax(P)", "logsigmoid(P)", "softsign(P)", "Q + K", "Q @ T(K)", "cos(Q, K)",
            "dist(Q, K)", "softmax(T(Q))", "T(Q) @ K", "cos(T(Q), T(K))", "dist(T(Q), T(K))", "scale(Q @ T(K))",
            "cos(Q @ T(K), T(V))", "dist(T(V), Q @ T(K))", "-Q + K", "Q @ T(K) @ V + P", "a = -K; a @ (T(a) @ V)")
MODELS = {  # folder: layers, hidden, heads, embedding, vocab, positions, dropout; backbone. Reference rows have n = 32
    "heads_of_8": (autobert.ModelConfig(8, 32, 4, 16, 50, 40, 0.0), (
        "conv 3", "Q @ T(K) @ V + P", "a = softsign(K); softmax(scale(Q @ T(a))) @ (a + V)", "conv 65",
        "softmax(Q) @ (T(K) @ V)", "Q @ softmax(scale(T(K) @ V)) + P", "V @ cos(T(Q), T(K)) + softmax(-dist(Q, P)) @ K",
        "logsigmoid(Q) @ (softmax(T(K)) @ V)")),
    "heads_of_32": (autobert.ModelConfig(2, 64, 2, 64, 50, 40, 0.0), (
        "softmax(scale(Q @ T(K)) + dist(V, P)) @ V + Q", "a = T(K) @ V; -Q @ softmax(scale(a)) + cos(Q, a)")),
    "training": (autobert.ModelConfig(2, 16, 2, 8, 50, 40, 0.0), ("conv 5", "a = -K; softmax(Q @ T(a)) @ (a + V)"))}
LOG = (  # a search's backbones and scores; None: trained, then rejected
    (("conv 3", ops.ATTENTIONS["bert"]), 0.31), (("conv 7", ops.ATTENTIONS["L12"]), 0.45), (("conv 3", "conv 5"), 0.4),
    (("a = softsign(K); Q @ (T(V) @ K) @ (T(a) @ a)", "conv 3"), 0.52), (("dist(Q, K) @ V", "conv 65"), None))
EDITS = (  # edit, position, new op, operands, argument; and what mutate_dag's random generator must give it for that
    ("replace", 0, "add", (1, 3), None, ([1], 3, 0)), ("rewire", 3, None, (5,), 0, (5, 1)), ("delete", 1, None, (4,),
    None, (4,)), ("insert", 3, "softsign", (6,), 1, (6, 0, 2)), ("insert", 7, "neg", (10,), None, (0, 0)))

# ---- What is written, by the code itself ----
def formulas(n, d):
    """Formulas by themselves; the second row has padding. gradient_X: of sum(weight * output), which leaves it out."""
    x, mask = test_all.gaussian(4, 2, 1, n, d).mul(8).round() / 8, torch.arange(n) < torch.tensor([[n], [n - 2]])
    x[:2, :, :, 1] = x[0, :, :, 1] / 256  # equal rows, and so small that epsilons count; then large numbers
    x[3, :, :, 0, :2] = torch.tensor([1000.0, -1000.0])
    found = {"mask": mask, **dict(zip("QKVP", x))}
    for text in FORMULAS:
        dag, inputs = ops.parse(text), [v.clone().requires_grad_() for v in x]
        y = ops.evaluate(dag, inputs, mask)
        rows, columns = (mask if kind == "n" else mask[:, :1].expand(-1, d) for kind in ops.slot_types(dag)[-1])
        weight = test_all.gaussian(*y.shape, seed=len(found)) * rows[:, None, :, None] * columns[:, None, None]
        (y * weight).sum().backward()
        found |= {f"output of {text}": y.detach(), f"weight of {text}": weight}
        found |= {f"gradient_{letter} of {text}": v.grad for letter, v in zip("QKVP", inputs) if v.grad is not None}
    return found

def training(model):
    """Four steps: each one's batch, rate, losses, gradients before clipping, their norms, weights behind it."""
    s, gradients = autobert.PretrainSettings(4, 12, lr=1e-2, warmup=0.5), {}
    found = {"steps": s.steps, "peak": s.lr, "warmup": s.warmup, "beta1": 0.9, "beta2": s.beta2, "weight_decay": 0.01}
    for name, p in model.named_parameters():
        p.register_post_accumulate_grad_hook(lambda p, name=name: gradients.update({name: p.grad.clone()}))

    def report(done, rate, *losses):
        parts = {"batch": test_all.Batches.batch(done - 1), "gradient": gradients,
                 "gradient_norm": {name: x.norm() for name, x in gradients.items()},
                 "weight_after": {name: p.detach().clone() for name, p in model.named_parameters()}}
        found.update({f"{done - 1}.rate": rate, f"{done - 1}.losses": losses})
        found.update({f"{done - 1}.{what}.{name}": x for what, part in parts.items() for name, x in part.items()})

    autobert.pretrain(model, test_all.Batches, s, torch.device("cpu"), report)
    return found

def kernels():
    """The 65 raw taps of two heads, the matrices T (not the identity), and the kernels on the way down to 3."""
    net, at = supernet.SuperNet(autobert.ModelConfig(1, 8, 2, 8, vocab=50)), "encoder.layers.0.convolution."
    chain = {f"T_{size}": net.slots[f"{at}transforms.{size}"] for size in autobert.KERNELS[:-1]}
    for slot in (net.slots[f"{at}kernel"], *chain.values()):
        slot += test_all.gaussian(*slot.shape, seed=len(slot)) / 4
    layers = {size: net.child((f"conv {size}",)).encoder.layers[0] for size in autobert.KERNELS}
    return chain | {f"kernel_{size}": layer.convolution.taps().detach() for size, layer in layers.items()}

def tables(alpha, tau):
    """The scores met, u and p of every choice at every place."""
    ucb = opnas.OperationPriority([opnas.Candidate(i, 0, None, *row) for i, row in enumerate(LOG)], alpha, tau)
    return {"alpha": alpha, "tau": tau, "places": [
        {"place": at, "scores": scores, "u": ucb.ucb(at), "p": ucb.p(at)} for at, scores in ucb.tables.items()]}

def edits():
    """A graph before and after each edit."""
    before = ops.parse(ops.ATTENTIONS["L12"])
    for *edit, script in EDITS:
        give = iter([edit[:1], edit[1], *script])
        rng = SimpleNamespace(**dict.fromkeys(("choices", "choice", "randrange", "sample"), lambda *_: next(give)))
        after = opnas.mutate_dag(before, SimpleNamespace(draw=lambda *_: edit[2]), rng)
        yield dict(zip(("edit", "position", "op", "operands", "argument"), edit)) | {
            "before": ops.formula(before), "before_nodes": before, "after": ops.formula(after), "after_nodes": after}

def write(out):
    """All files."""
    for name, (config, genes) in MODELS.items():
        model = test_all.new_model(config, genes)
        for i, p in enumerate(model.parameters()):
            noise = 0.05 if i in (1, 2, 3) else 0.5  # embeddings are small: LayerNorm's epsilon counts beside them
            p.data += noise / config.hidden ** 0.5 * test_all.gaussian(*p.shape, seed=i)
        autobert.save_checkpoint(out / "m.pt", model, data.Tokenizer.train([test_all.HERE / "toy/held-out.txt"], 400))
        autobert.export(str(out / "m.pt"), str(out / name))
    (out / "m.pt").unlink()
    for name, arrays in (("formulas_n6_d4", formulas(6, 4)), ("formulas_n5_d5", formulas(5, 5)),
                         ("kernels", kernels()), ("training/steps", training(model))):  # the last model
        np.savez(out / f"{name}.npz", **arrays)
    search = {"log": LOG, "tables": [tables(0.1, 0.05), tables(None, None)], "edits": [*edits()]}
    data.write_beside(out / "search.json", json.dumps(search, indent=1))

# ---- The twin, and mistakes in it ----
def formula_value(text, inputs, d, mask):
    """python_formula op by op, with padding hidden where one sums or normalises over tokens (n), not channels (d)."""
    def apply(op, *values):
        row, arrays = ops.OPS[op], []
        for (x, kinds), axis in zip(values, row.reduces):
            hide = {-1: ~mask, -2: ~mask[:, None]}[axis] if axis and kinds[axis] == "n" else False
            arrays.append(np.where(hide, row.hide, x))
        return python_formula(row.text.format(*"QK"), dict(zip("QK", arrays)), d), row.type(*[v[1] for v in values])

    return ops.fold(ops.parse(text), [(inputs.get(letter), "nd") for letter in "QKVP"], apply)[-1][0]

def pairs(out, forgotten="?"):
    """Yield (file, the twin's array, the file's) at real tokens. forgotten: biases that are 0, or gains that are 1."""
    for path, text, b in itertools.product(sorted(out.glob("formulas*")), FORMULAS, range(2)):
        f = np.load(path)
        real, x = f[f"weight of {text}"][b, 0] != 0, {letter: f[letter][b, 0] for letter in "QKVP"}
        yield path.name, formula_value(text, x, len(x["Q"].T), f["mask"][b])[real], f[f"output of {text}"][b, 0][real]
    for name, (config, genes) in MODELS.items():
        w, r = (dict(np.load(out / name / file)) for file in ("weights.npz", "reference.npz"))
        w |= {key: x * 0 + key.endswith("norm.weight") for key, x in w.items() if key.endswith(forgotten)}
        for row, mask in enumerate(r["mask"]):
            states, mlm, nsp = numpy_model(w, config.heads, genes, r["ids"][row], r["segments"][row], mask)
            yield from ((name, x[mask], r[f"hidden_{i}"][row, mask]) for i, x in enumerate(states))
            yield from ((name, mlm[mask], r["mlm_logits"][row, mask]), (name, nsp, r["next_logits"][row]))
        loss = lambda logits, y: -np.log(test_all.row_softmax(logits)[range(len(y)), y]).mean()  # noqa: E731
        used, mlm = r["targets"] != -100, np.take_along_axis(r["mlm_logits"], r["positions"][..., None], 1)
        yield name, np.array([loss(mlm[used], r["targets"][used]), loss(r["next_logits"], r["next"])]), r["losses"]

PADDED = "segments): => segments, mask): ;; (a / (1 => (mask[:, None] * a / (1 ;; " \
         "python_formula(formula, part, d // heads) => formula_value(formula, part, d // heads, mask)"
MISTAKES = """np.vectorize(math.erf)(x / math.sqrt(2)) => np.tanh(0.797885 * (x + 0.044715 * x ** 3)) ;; row.hide => 0.0
gelu(linear(states[-1], "transform")) => linear(states[-1], "transform") ;; norm(x + linear(gelu => norm(linear(gelu
taps = np.repeat => taps = (lambda x, k, _: np.tile(x, (k, 1))) ;; kinds[axis] == "n" => x.shape[axis] == len(mask)
-np.logaddexp(0, -x) => np.log(1 / (1 + np.exp(-x))) ;; row_softmax(w[at + ".kernel"]) => w[at + ".kernel"]
(text) => (text.replace("@ V + P", "@ (V + P)")) ;; w[at + ".kernel"] => w[at + ".kernel"][:, ::-1] ;; ~mask => mask
if axis and => if op != "softmax" and axis and ;; np.split(v, heads, 1)[h] => v[:, h::heads] ;; e.sum(-1, => e.sum(0,
if axis and => if op == "softmax" and ;; math.sqrt(d_h) => math.sqrt(len(x.T)) ;; a, b = np.split => b, a = np.split
s.weight"][:n] => s.weight"][1:n + 1] ;; norm(x + linear(y => norm(linear(y ;; states[-1][0] => states[-1][-1]
[segments] => [1 - segments] ;; r["next"]) => 1 - r["next"]) ;; sum(-1) + 1e-6) => sum(-1)) ;; mask[:, None] * a => a
linear(y, at + ".out") => y ;; 1 + np.abs(x) => 1 + x * x ;; True) + 1e-6) => True)) ;; y]).mean() => y]).sum()
np.tanh => np.asarray ;; + w["bias"] => + 0 ;; 1e-12 => 1e-6 ;; used]) => used]) * used.mean() ;; k // 2, k => k, k"""
FORGOTTEN = "Q.bias attention.out.bias convolution.out.bias glu.bias up.bias norm.bias norm.weight pooler.bias"

def worst(out, *mistakes):
    """(largest difference, its file) of the twin where each mistake, "old => new", stands in its source."""
    parts, found = (test_all.row_softmax, test_all.python_formula, test_all.numpy_model, formula_value, pairs), []
    source, space = "\n".join(map(inspect.getsource, parts)), vars(test_all) | globals()
    for old, new in (mistake.split(" => ") for mistake in (*PADDED.split(" ;; "), *mistakes)):
        assert old in source, old
        source = source.replace(old, new)
    exec(source, space)
    with np.errstate(all="ignore"):
        try:
            for file, ours, theirs in space["pairs"](out):
                gap = np.abs(ours - theirs) / np.maximum(1, np.abs(theirs))
                found.append((np.nan_to_num(gap, nan=np.inf).max(), file))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            found.append((np.inf, f"{file}: {type(error).__name__}"))
    return max(found)

def main(out: str = "conformance", mutate: bool = False):
    """Write the vectors to a folder; compute formulas and models again, with --mutate also with each mistake."""
    write(out := Path(out))
    print("{:.1e} is the twin's largest difference, in {}".format(*worst(out)))
    mistakes = [f'forgotten="?" => forgotten="{name}"' for name in FORGOTTEN.split()]
    mistakes += MISTAKES.replace("\n", " ;; ").split(" ;; ")
    found = {mistake: worst(out, mistake) for mistake in mistakes * mutate}
    print("".join(f"{gap:.1e} in {file:18} {mistake}\n" for mistake, (gap, file) in found.items()), end="")
    if unseen := [mistake for mistake, (gap, _) in found.items() if gap < 1e-4]:
        raise data.UserError(f"not seen: {unseen}")

if __name__ == "__main__":
    data.run(__doc__, main, usual=main)
