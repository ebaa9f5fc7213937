"""Fine-tuning and its scores: GLUE and SQuAD (paper: "Datasets and metrics", App. C and D.2, Tables 2 to 5).

A copy of a pre-trained encoder gets one linear map on top and learns from labelled rows for a few epochs.

    GLUE     read_task -> encode -> fit -> predictions -> score
    SQuAD    read_squad -> squad_windows -> fit -> outputs_of -> decode -> squad_scores

    B rows of a batch, n tokens of a row, d hidden size, m tokens of a stretch of a passage
    gold: the right label or answer; window: a question with a stretch of its passage
    null: "no answer", read at [CLS]; tau: how far null must lead

    python glue.py finetune --task CoLA RTE --save tuned    # from model.pt
    python glue.py predict --model tuned                    # files for the GLUE leaderboard
    python glue.py squad

Read after supernet.py; then opnas.py.
"""
import copy
import json
import math
import re
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import autobert
import data
from data import UserError, flag

# ---- Metrics (App. C) ----
def accuracy(gold, predicted):
    """Share of rows that agree, 0..1. Example: [0, 1, 1, 1], [0, 1, 0, 1] -> 0.75"""
    return float(np.mean(np.equal(gold, predicted)))

def f1(gold, predicted):
    """F1 of class 1, 0..1; 0 if there is no true positive. Example: [1, 1, 0], [1, 0, 0] -> 0.667"""
    gold, predicted = np.equal(gold, 1), np.equal(predicted, 1)
    return float(2 * (gold & predicted).sum() / max(1, gold.sum() + predicted.sum()))

def pearson(x, y):
    """Pearson correlation, -1..1; 0 if x or y is constant. Example: [1, 2, 3], [1, 2, 4] -> 0.982"""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = x - x.mean(), y - y.mean()
    return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1, 1))

matthews = pearson  # of two vectors of 0 and 1 Pearson's correlation is Matthews'

def spearman(x, y):
    """Pearson correlation of the ranks; equal values share their mean rank. Example: [1, 2, 9], [1, 5, 4] -> 0.5"""
    return pearson(*(sum(np.searchsorted(np.sort(v), v, side) for side in ("left", "right")) / 2 for v in (x, y)))

def kendall_tau(x, y):
    """(tau-b, p) of Kendall's rank correlation (Fig. 8); (0, 1) if x or y is constant. p: two-sided, by the normal
    approximation with ties, rough below n = 10. Example: [1, 2, 3], [1, 3, 2] -> (0.333, 0.602)"""
    a, b = (np.sign(np.subtract.outer(v, v)) for v in (x, y))  # (n, n): -1, 1, or 0 for a tie
    n, a2, b2 = len(a), (a * a).sum(), (b * b).sum()
    if not a2 * b2:
        return 0.0, 1.0
    triples = ((a.sum(1) ** 2).sum() - a2) * ((b.sum(1) ** 2).sum() - b2) / max(1, n - 2)
    s, variance = (a * b).sum() / 2, (triples + a2 * b2 / 2) / (n * (n - 1))  # s: concordant minus discordant pairs
    return float(np.clip(2 * s / math.sqrt(a2 * b2), -1, 1)), math.erfc(abs(s) / math.sqrt(2 * variance))

def interval(x):
    """(mean, half width of its 95 % interval) by Student's t; inf for one number."""
    v = len(x) - 1
    if not v:
        return x[0], math.inf
    # t from the normal quantile (Cornish-Fisher), good to .3 % from v = 4 on
    t = {1: 12.706, 2: 4.303, 3: 3.182}.get(v) or 1.960 + 2.372 / v + 2.823 / v**2 + 2.556 / v**3
    return np.mean(x), t * np.std(x, ddof=1) / math.sqrt(v + 1)

def verdict(gaps):
    """In words; gaps: (seeds,), the winner minus bert, in points."""
    if len(gaps) == 1:
        return f"The winner ended {gaps[0]:+.1f} from bert. One training of each is no evidence; try --final-seeds 5."
    mean, error = interval(gaps)
    where = "above" if mean > error else "below" if mean < -error else "level with"
    return f"The winner is {where} bert: {mean:+.1f} ± {error:.1f} (95 %, {len(gaps)} trainings of each)."

# ---- The eight tasks (App. C.1) ----
class Task(NamedTuple):
    """How a task is read and scored."""
    text: tuple           # header names of its texts
    label: str            # header name of the label
    labels: tuple | None  # in the order of their ids; None: numbers 0..5
    metric: callable      # (gold, predicted) -> score
    dev: tuple = ("dev",)  # files, without .tsv
    test: tuple = ("test",)

_01, _ENTAIL, _12 = ("0", "1"), ("entailment", "not_entailment"), ("sentence1", "sentence2")
TASKS = {
    "CoLA": Task(("sentence",), "label", _01, matthews),
    "SST-2": Task(("sentence",), "label", _01, accuracy),
    "MRPC": Task(("#1 String", "#2 String"), "Quality", _01, f1),
    # DEVIATION: App. C.1 calls STS-B five classes; its labels are decimals, so regression, as in BERT
    "STS-B": Task(_12, "score", None, spearman),
    "QQP": Task(("question1", "question2"), "is_duplicate", _01, f1),
    "MNLI": Task(_12, "gold_label", ("contradiction", "entailment", "neutral"), accuracy,
                 ("dev_matched", "dev_mismatched"), ("test_matched", "test_mismatched")),
    "QNLI": Task(("question", "sentence"), "label", _ENTAIL, accuracy),
    "RTE": Task(_12, "label", _ENTAIL, accuracy),
}

def read_task(folder, task, split):
    """folder/TASK/SPLIT.tsv -> [(text_a, text_b or None, label or None)]; label: its id, for STS-B a float.
    split: "train", or one of Task.dev or .test; "dev" is the first. UserError for a wrong row.
    Example: "RTE", "dev" -> [("It rains.", "It is wet.", 0)]"""
    t = TASKS[task]
    split = t.dev[0] if split == "dev" else split
    path, test = Path(folder) / task / f"{split}.tsv", split in t.test  # test rows have no label
    # subtle: csv would swallow rows behind a `"`, splitlines cut at U+2028. CoLA's train and dev have no header
    lines = ((number, line.rstrip("\r\n").split("\t")) for number, line in data.read_lines(path))
    number, row = (1, ["", "label", "", "sentence"]) if task == "CoLA" and not test else next(lines, (1, [""]))
    header, names, examples, skipped = row, t.text if test else (*t.text, t.label), [], 0
    to_label = t.labels.index if t.labels else float
    try:
        columns = [header.index(name) for name in names]
        for number, row in lines:
            if len(row) < len(header) and (task, split) == ("QQP", "train"):  # as in BERT's reader
                skipped += 1
                continue
            cells = [row[i] for i in columns]
            label = None if test else to_label(cells.pop())
            if len(row) != len(header) or not 0 <= (label or 0) <= 5:
                raise ValueError
            examples.append((cells[0], cells[1] if len(cells) > 1 else None, label))
    except (ValueError, IndexError):
        raise UserError(f"{path}:{number}: {str(row)[:99]}; expected {len(header)} columns, with {', '.join(names)}; "
                        f"labels {t.labels or '0..5'}") from None
    if skipped:
        print(f"{path}: {skipped} short rows skipped")
    return examples

def encode(examples, tokenizer, n):
    """Examples -> (rows, labels): [(ids, segments)] of at most n tokens; an array, -1 for None."""
    rows = [data.pack(tokenizer.encode(a), None if b is None else tokenizer.encode(b), n) for a, b, _ in examples]
    return rows, np.array([-1 if label is None else label for *_, label in examples])

# ---- Fine-tuning: one model and one loop for all tasks and SQuAD (App. D.2) ----
@dataclass(frozen=True)
class FinetuneSettings:
    """The defaults suit the toy size."""
    epochs: int = flag(2, "passes over the training rows")
    lr: float = flag(5e-4, "peak learning rate")
    weight_decay: float = flag(0.01, "of all but biases, LayerNorms and kernels")
    warmup: float = flag(0.1, "share of the steps in which the rate rises")
    batch: int = flag(16, "rows a step")
    n: int = flag(32, "tokens a row, at most")
    precision: str = autobert.PRECISION

# App. D.2: 3 epochs. CHOICE: batch 32, n 128 and warm-up .01, not given for GLUE
PRESETS = {"toy": FinetuneSettings(), "paper": FinetuneSettings(3, 2e-5, warmup=0.01, batch=32, n=128)}

class Finetuned(nn.Module):
    """A copy of an encoder and one linear map: on the pooled [CLS] for a GLUE task, on every token for "SQuAD"."""
    def __init__(self, encoder, task):
        super().__init__()
        self.encoder, self.task, config = copy.deepcopy(encoder), task, encoder.config
        outputs = 2 if task == "SQuAD" else len(TASKS[task].labels or [0])
        self.dropout, self.head = nn.Dropout(config.dropout), nn.Linear(config.hidden, outputs)
        autobert.init_weights(self.head, config.init_std)

    def forward(self, batch, precision):
        """A batch on its device -> fp32 (B, classes); STS-B (B, 1); SQuAD (B, n, 2), of start and end."""
        with autobert.autocast(batch["ids"].device, precision):
            x = self.encoder(batch["ids"], batch["segments"], batch["mask"])  # (B, n, d)
            x = x if self.task == "SQuAD" else self.encoder.pool(x)
        x = self.head(self.dropout(x.float()))
        if self.task == "SQuAD" and batch["mask"] is not None:
            # subtle: else padding gets a share of the softmax over positions
            x = x.masked_fill(~batch["mask"][..., None], -1e30)
        return x

def fit(encoder, task, train, s, seed, device, report=lambda line: None):
    """A Finetuned copy of the encoder. train: (rows, labels). report: gets ten lines of progress."""
    torch.manual_seed(seed)
    model, rng, (rows, labels) = Finetuned(encoder, task), np.random.default_rng(seed), train
    optimizer = autobert.make_optimizer(model.to(device).train(), s.lr, s.weight_decay)
    orders = [rng.permutation(len(rows)) for _ in range(s.epochs)]
    batches = [order[i:i + s.batch] for order in orders for i in range(0, len(rows), s.batch)]
    begun = time.time()
    for step, picked in enumerate(batches):
        # 1. the rows and the learning rate of this step
        batch = autobert.to_device(data.collate([rows[i] for i in picked]) | {"labels": labels[picked]}, device)
        for group in optimizer.param_groups:
            group["lr"] = autobert.lr_at(step, len(batches), s.lr, s.warmup)
        # 2. the step; the classes of SQuAD are positions: output (B, n, 2), y (B, 2)
        output, y = model(batch, s.precision), batch["labels"]
        loss = F.mse_loss(output[:, 0], y.float() / 5) if task == "STS-B" else F.cross_entropy(output, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # 3. report; only here the host waits
        if (len(batches) - step - 1) % max(1, len(batches) // 10) == 0:
            left = data.span((time.time() - begun) / (step + 1) * (len(batches) - step - 1))
            report(f"step={step + 1}/{len(batches)} loss={loss.item():.3f} left={left}")
    return model.eval()

@torch.no_grad()
def outputs_of(model, rows, s, device):
    """The logits of each row, a list of arrays: (classes,), for SQuAD (n of its batch, 2)."""
    parts = (autobert.to_device(data.collate(rows[i:i + 64]), device) for i in range(0, len(rows), 64))
    outputs = [x for part in parts for x in model(part, s.precision).cpu().numpy()]
    if not all(np.isfinite(x).all() for x in outputs):
        raise autobert.Diverged(f"{model.task}: an output is not finite; try a smaller --lr")
    return outputs

def predictions(model, rows, s, device):
    """(rows,) label ids of a GLUE task, or for STS-B numbers around 0..5."""
    outputs = np.stack(outputs_of(model, rows, s, device))
    return outputs[:, 0] * 5 if model.task == "STS-B" else outputs.argmax(1)

def score(task, gold, predicted, small=False):
    """The task's metric. small: accuracy in place of F1, as in Table 4."""
    metric = TASKS[task].metric
    return (accuracy if small and metric is f1 else metric)(gold, predicted)

def finetune(encoder, task, train, dev, settings, seed, device):
    """(Finetuned copy of the encoder, its score on dev). train, dev: (rows, labels).
    CHOICE: of the last weights; the paper evaluates every 10 or 100 steps."""
    model = fit(encoder, task, train, settings, seed, device)
    return model, score(task, dev[1], predictions(model, dev[0], settings, device))

# ---- The commands for GLUE ----
@dataclass(frozen=True)
class Grid(FinetuneSettings):
    """Flags of finetune: each lr with each weight decay is a cell."""
    lr: tuple[float, ...] = flag((), "peak learning rates")
    weight_decay: tuple[float, ...] = flag((), "one or more")
    task: tuple[str, ...] = flag(tuple(TASKS), "one or more", choices=tuple(TASKS))

def best_cell(encoder, task, parts, cells, seeds, device, small):
    """(medians of the dev files over the seeds, best Finetuned) of the best settings of `cells`.
    parts: (rows, labels) of train and of each dev file."""
    (train, *devs), best = parts, (-math.inf, None)
    for s in cells:
        cell = f"{task} lr={s.lr:g} weight_decay={s.weight_decay:g}"
        models = [fit(encoder, task, train, s, seed, device, lambda x: print(cell, x, flush=True)) for seed in seeds]
        scores = 100 * np.array([[score(task, y, predictions(model, rows, s, device), small) for rows, y in devs]
                                 for model in models])  # (seeds, dev files)
        for name, x in zip(TASKS[task].dev, scores.T):
            print(f"{cell} {name}={np.median(x):.1f} ({x.min():.1f} to {x.max():.1f})", flush=True)
        best = max(best, (np.median(scores, 0), models[scores.sum(1).argmax()]), key=lambda pair: np.sum(pair[0]))
    return best

def finetune_command(s: Grid, checkpoint: str = "model.pt", glue: str = "toy/glue", seeds: int = 1,
                     mnli: bool = False, small: bool = False, save: str = "", preset: tuple(PRESETS) = "toy",
                     device: str = "auto"):
    """Fine-tune a checkpoint on GLUE tasks and score it on dev, x 100: median (least to most) over the seeds for each
    lr and weight decay; AVG, the mean of the nine best medians.
    The paper's grid: --preset paper --lr 1e-5 1.5e-5 2e-5 3e-5 4e-5 5e-5 --weight-decay .1 .01

    checkpoint: a file of autobert.py train, or of --save
    glue: the folder with CoLA, SST-2, ..
    seeds: runs with each
    mnli: MNLI comes first; RTE, STS-B and MRPC start from its best model (App. D.2)
    small: score MRPC and QQP by accuracy (Table 4)
    save: a folder for the best model of each task, TASK.pt"""
    base, device, medians = PRESETS[preset], autobert.find_device(device), []
    names = ["MNLI"] * mnli + [*s.pop("task", TASKS)]
    rates, decays = s.pop("lr", [base.lr]), s.pop("weight_decay", [base.weight_decay])
    cells = [replace(base, lr=lr, weight_decay=decay, **s) for lr in rates for decay in decays]
    model, tokenizer, _ = autobert.load_checkpoint(checkpoint, device)
    n, usual, start = cells[0].n, model.encoder, model.encoder
    tasks = {name: [encode(read_task(glue, name, split), tokenizer, n) for split in ("train", *TASKS[name].dev)]
             for name in names}
    for name, parts in tasks.items():
        encoder = start if name in ("RTE", "STS-B", "MRPC") else usual  # App. D.2
        found, best = best_cell(encoder, name, parts, cells, range(seeds), device, small)
        medians.extend(found)
        if mnli and name == "MNLI":
            start = best.encoder
        if save:  # a checkpoint like any other, with the head
            model.encoder = best.encoder
            autobert.save_checkpoint(f"{save}/{name}.pt", model, tokenizer, task=name, n=n, head=best.head.state_dict())
    if len(tasks) == len(TASKS):
        print(f"AVG {np.mean(medians):.1f}")

def predict(model: str = "tuned", glue: str = "toy/glue", out: str = "submission", device: str = "auto"):
    """Write the GLUE leaderboard's files. It wants a zip of them, WNLI.tsv and AX.tsv.

    model: a file of `finetune --save`, or the folder"""
    device, ends = autobert.find_device(device), {"test_matched": "-m", "test_mismatched": "-mm"}
    for path in sorted(Path(model).glob("*.pt")) or [Path(model)]:
        whole, tokenizer, content = autobert.load_checkpoint(path, device)
        if "head" not in content:
            raise UserError(f"{path}: expected a file of `finetune --save`")
        task = content["task"]
        tuned = Finetuned(whole.encoder, task).to(device).eval()
        tuned.head.load_state_dict(content["head"])
        for split in TASKS[task].test:
            rows, _ = encode(read_task(glue, task, split), tokenizer, content["n"])
            file, lines, labels = f"{out}/{task}{ends.get(split, '')}.tsv", ["index\tprediction\n"], TASKS[task].labels
            for i, x in enumerate(predictions(tuned, rows, FinetuneSettings(), device)):
                lines.append(f"{i}\t{labels[x]}\n" if labels else f"{i}\t{np.clip(x, 0, 5):.3f}\n")
            data.write_beside(file, "".join(lines))
            print(f"{file}: {len(rows)} predictions")

# ---- SQuAD: questions and scores (App. C.2) ----
def questions_of(dataset):
    """SQuAD's parsed JSON, or its "data" -> its questions, {"id", "question", "answers", ..}, with their "context".
    Those of v2.0 have "is_impossible", and may have no answers."""
    articles = dataset["data"] if isinstance(dataset, dict) else dataset
    return [qa | {"context": p["context"]} for article in articles for p in article["paragraphs"] for qa in p["qas"]]

def read_squad(path):
    """The questions of a file, plain, .xz or .gz."""
    return questions_of(json.loads("".join(line for _, line in data.read_lines(path))))

def normalize_answer(text):
    """As in the official scorers. Example: "The  U.S. Army!" -> "us army" """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[!-/:-@[-`{-~]", "", text.lower())).split())

def question_scores(q, text):
    """(exact, F1) of a predicted text, 0..1, each the best over the gold answers."""
    v2, said = "is_impossible" in q, normalize_answer(text).split()
    golds = [normalize_answer(answer["text"]).split() for answer in q["answers"]]
    golds = [gold for gold in golds if gold] or [[]] if v2 else golds  # in v2.0 "no answer" is one empty gold answer
    common = [sum((Counter(gold) & Counter(said)).values()) for gold in golds]
    # subtle: where nothing is left of both, the official scorers differ: F1 is 1 in v2.0, 0 in v1.1
    f = [2 * c / (len(gold) + len(said)) if c else float(v2 and gold == said == []) for c, gold in zip(common, golds)]
    return float(said in golds), max(f, default=0.0)

def squad_scores(dataset, predictions):
    """{"exact", "f1", "total"}, 0..100; for v2.0 also HasAns_.. and NoAns_..: with an answer, without one.
    dataset: parsed JSON, or questions. predictions: {id: text}; CHOICE: a missing one scores 0."""
    questions = dataset if isinstance(dataset, list) and "answers" in dataset[0] else questions_of(dataset)
    each = np.array([question_scores(q, predictions[q["id"]]) if q["id"] in predictions else (0, 0) for q in questions])
    has, v2, scores = np.array([bool(q["answers"]) for q in questions]), "is_impossible" in questions[0], {}
    for name, part in {"": has | True, "HasAns_": has & v2, "NoAns_": ~has & v2}.items():
        if part.any():
            exact, f = 100 * each[part].mean(0)
            scores |= {f"{name}exact": float(exact), f"{name}f1": float(f), f"{name}total": int(part.sum())}
    return scores

# ---- SQuAD: windows and decoding (as BERT's run_squad) ----
@dataclass(frozen=True)
class SquadSettings(FinetuneSettings):
    """The same on SQuAD."""
    n: int = flag(64, "tokens a window, at most")
    stride: int = flag(24, "tokens from window to window")
    max_question: int = flag(16, "tokens a question, at most")
    max_answer: int = flag(30, "tokens an answer, at most")

# For v1.1 and v2.0; epochs and batch of App. D.2. CHOICE: the rest is BERT's
_PAPER = SquadSettings(3, 2e-5, warmup=0.01, batch=32, n=384, stride=128, max_question=64)
SQUAD_PRESETS = {"toy": (SquadSettings(8, 1e-3),) * 2, "paper": (_PAPER, replace(_PAPER, epochs=2, batch=48))}

class Window(NamedTuple):
    """A question with a stretch of its passage: [CLS] question [SEP] stretch [SEP]."""
    question: int      # its number
    row: tuple         # (ids, segments)
    at: int            # where in the row the stretch begins
    spans: np.ndarray  # (m, 2): where in the passage each token begins and ends, in characters
    owned: np.ndarray  # (m,) bool: no other window has more context for the token
    gold: tuple        # where in the row the answer's first and last token are; (0, 0), so [CLS]: not here

def squad_windows(questions, tokenizer, s):
    """Questions -> [Window], one every s.stride tokens of a passage."""
    windows = []
    for number, q in enumerate(questions):
        ids, spans = tokenizer.encode_with_offsets(q["context"])
        spans, place = np.array(spans, np.int32).reshape(-1, 2), np.arange(len(ids))
        asked = tokenizer.encode(q["question"])[:min(s.max_question, s.n - 4)]
        at = len(asked) + 2
        room = s.n - at - 1
        stride = min(s.stride, room)
        begin = np.arange(0, max(1, len(ids) - room + stride), stride)[:, None]  # (windows, 1)
        end = np.minimum(begin + room, len(ids))
        # BERT's maximal context: the fewer of the tokens left and right, then the longer window
        around = np.minimum(place - begin, end - 1 - place)  # (windows, passage), negative outside
        owner = np.where(around >= 0, around + 0.01 * (end - begin), -1).argmax(0)
        gold, *_ = q["answers"] or [{"answer_start": -1, "text": ""}]
        first = np.searchsorted(spans[:, 1], gold["answer_start"], "right")  # the first and the last token it touches
        last = np.searchsorted(spans[:, 0], gold["answer_start"] + len(gold["text"])) - 1
        for w, (i, j) in enumerate(zip(begin[:, 0], end[:, 0])):
            places = (first - i + at, last - i + at) if i <= first <= last < j else (0, 0)
            windows.append(Window(number, data.pack(asked, ids[i:j], s.n), at, spans[i:j], owner[i:j] == w, places))
    return windows

def best_span(w, logits, context, max_answer):
    """(score, text) of a Window's best span, (-inf, "") if it has none. logits: (n, 2). A span begins at an owned token
    with text and has at most max_answer tokens.
    DEVIATION: all of them compete; BERT combines the 20 best starts with the 20 best ends."""
    start, end = logits[w.at:w.at + len(w.spans)].T.astype(float)  # (m,) each
    begins = w.owned & (w.spans[:, 0] < w.spans[:, 1])
    more = np.arange(len(end)) - np.arange(len(end))[:, None]  # (m, m): tokens behind the first
    legal = begins[:, None] & (0 <= more) & (more < max_answer)
    if not legal.any():
        return -math.inf, ""
    total = np.where(legal, start[:, None] + end, -np.inf)
    first, last = np.unravel_index(total.argmax(), total.shape)
    return total[first, last], context[w.spans[first, 0]:w.spans[last, 1]].strip()

def decode(questions, windows, outputs, s):
    """{id: (text, margin)}: a question's best span or ""; null's score - the span's, in v1.1 -inf. Null's score: the
    least sum of the two logits at [CLS] over the windows. outputs: (n, 2) logits of each window."""
    best, null = [(-math.inf, "")] * len(questions), [math.inf] * len(questions)
    for w, logits in zip(windows, outputs):
        span = best_span(w, logits, questions[w.question]["context"], s.max_answer)
        best[w.question] = max(best[w.question], span, key=lambda span: span[0])
        null[w.question] = min(null[w.question], float(logits[0].astype(float).sum()))
    return {q["id"]: (text, zero - total if "is_impossible" in q else -math.inf)
            for q, zero, (total, text) in zip(questions, null, best)}

def squad_predictions(answers, tau=0.0):
    """Answers of decode -> {id: text}; '' where the margin is above tau."""
    return {name: text if margin <= tau else "" for name, (text, margin) in answers.items()}

def best_tau(questions, answers):
    """The tau with the best F1 on these questions."""
    margins = np.array([answers[q["id"]][1] for q in questions])
    gain = np.array([question_scores(q, answers[q["id"]][0])[1] - question_scores(q, "")[1] for q in questions])
    return float(max([margins.min() - 1, *np.unique(margins)], key=lambda tau: gain[margins <= tau].sum()))

def squad(s: SquadSettings, checkpoint: str = "model.pt", train: str = "toy/squad/train-v1.1.json",
          dev: str = "toy/squad/dev-v1.1.json", predictions: str = "", seed: int = 0, preset: tuple(PRESETS) = "toy",
          device: str = "auto"):
    """Fine-tune a checkpoint on SQuAD v1.1 or v2.0 and score its answers on dev, 0 to 100.
    In v2.0 the answer is '' where null leads by more than tau: 0, then the tau that is best on dev.

    train: SQuAD's JSON, plain, .xz or .gz; so is dev
    predictions: a file to write for the official scorer, at tau 0"""
    device, learnt, asked = autobert.find_device(device), read_squad(train), read_squad(dev)
    v2 = "is_impossible" in asked[0]
    s = replace(SQUAD_PRESETS[preset][v2], **s)
    model, tokenizer, _ = autobert.load_checkpoint(checkpoint, device)
    windows = squad_windows(learnt, tokenizer, s)
    rows = [w.row for w in windows], np.array([w.gold for w in windows])  # gold: (windows, 2)
    tuned = fit(model.encoder, "SQuAD", rows, s, seed, device, lambda line: print(line, flush=True))
    windows = squad_windows(asked, tokenizer, s)
    answers = decode(asked, windows, outputs_of(tuned, [w.row for w in windows], s, device), s)
    if predictions:
        data.write_beside(predictions, json.dumps(squad_predictions(answers)) + "\n")
    for tau in [0.0, best_tau(asked, answers)][:1 + v2]:
        scores = squad_scores(asked, squad_predictions(answers, tau))
        print(f"tau={tau:.3f}", *(f"{key}={round(x, 1)}" for key, x in scores.items()))

if __name__ == "__main__":
    finetune_command.__name__ = "finetune"
    data.run(__doc__, finetune_command, predict, squad)
