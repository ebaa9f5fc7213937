"""Fine-tuning and its scores: GLUE and SQuAD (paper: "Datasets and metrics", App. C and D.2, Tables 2 to 5).

A copy of a pre-trained encoder gets one linear map on top, all its weights are trained on labelled rows for a few
epochs, and a metric compares what it then says of the dev file with what that file says itself. The search takes the
mean of such scores as fitness; the tables of the paper are such scores.

    GLUE     read_task -> encode -> fit -> predictions -> score
    SQuAD    read_squad -> squad_windows -> fit -> outputs_of -> decode -> squad_scores

    B rows of a batch, n tokens of a row, d hidden size, m tokens of a stretch of a passage
    gold: what the file says; dev: the labelled file that a task is scored on (MNLI has two, matched and mismatched)
    window: a question with a stretch of its passage; null: "no answer", read at [CLS]; tau: how far null must lead

    python glue.py finetune --task CoLA RTE --save tuned    # fine-tune model.pt, score on dev
    python glue.py predict --model tuned                    # the GLUE leaderboard's files
    python glue.py squad                                    # answers to questions on passages

Read after autobert.py; opnas.py compares backbones by such scores.
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

matthews = pearson  # of two vectors of 0 and 1 Pearson's correlation is Matthews'; also 0 where a margin is 0

def spearman(x, y):
    """Pearson correlation of the ranks; equal values share their mean rank. Example: [1, 2, 9], [1, 5, 4] -> 0.5"""
    return pearson(*(sum(np.searchsorted(np.sort(v), v, side) for side in ("left", "right")) / 2 for v in (x, y)))

def kendall_tau(x, y):
    """(tau-b, p) of Kendall's rank correlation (Fig. 8), ties allowed. Example: [1, 2, 3], [1, 3, 2] -> (.333, .602)
    p: two-sided, by the normal approximation with the variance over all orders of y (Daniels 1944), which corrects for
    ties; rough below n = 10. (0, 1) if all of x or all of y are equal. Memory for n * n numbers."""
    a, b = (np.sign(np.subtract.outer(v, v)) for v in (x, y))  # (n, n): -1, 1, or 0 for a tie
    n, a2, b2 = len(a), (a * a).sum(), (b * b).sum()
    if not a2 * b2:
        return 0.0, 1.0
    triples = ((a.sum(1) ** 2).sum() - a2) * ((b.sum(1) ** 2).sum() - b2) / max(1, n - 2)
    s, variance = (a * b).sum() / 2, (triples + a2 * b2 / 2) / (n * (n - 1))  # s: concordant minus discordant pairs
    return float(np.clip(2 * s / math.sqrt(a2 * b2), -1, 1)), math.erfc(abs(s) / math.sqrt(2 * variance))

def unit_score(score):
    """A score as the search's fitness, 0..1. Example: -0.1 -> 0.0"""
    return max(0.0, float(score))

# ---- The eight tasks (App. C.1) ----
class Task(NamedTuple):
    """How the files of a task are read, and how it is scored. Columns are found by their names in the header."""
    text: tuple           # columns of its one or two texts
    label: str            # column of the label
    labels: tuple | None  # what stands there, in the order of the ids; None: a number 0..5
    metric: callable      # (gold, predicted) -> score
    dev: tuple = ("dev",)  # files, without .tsv
    test: tuple = ("test",)

_01, _ENTAIL, _12 = ("0", "1"), ("entailment", "not_entailment"), ("sentence1", "sentence2")
TASKS = {
    "CoLA": Task(("sentence",), "label", _01, matthews),
    "SST-2": Task(("sentence",), "label", _01, accuracy),
    "MRPC": Task(("#1 String", "#2 String"), "Quality", _01, f1),
    # DEVIATION: App. C.1 calls STS-B a choice among five classes; its labels are decimals, so regression, as in BERT
    "STS-B": Task(_12, "score", None, spearman),
    "QQP": Task(("question1", "question2"), "is_duplicate", _01, f1),
    "MNLI": Task(_12, "gold_label", ("contradiction", "entailment", "neutral"), accuracy,
                 ("dev_matched", "dev_mismatched"), ("test_matched", "test_mismatched")),
    "QNLI": Task(("question", "sentence"), "label", _ENTAIL, accuracy),
    "RTE": Task(_12, "label", _ENTAIL, accuracy),
}

def read_task(folder, task, split):
    """folder/TASK/SPLIT.tsv -> [(text_a, text_b or None, label or None)]; label: its id, for STS-B a float.
    split: "train", or a file of Task.dev or .test; "dev" and "test" mean the first one. Labels of test files are not
    read. UserError, with file and line, for a wrong row. Example: "RTE", "dev" -> [("It rains.", "It is wet.", 0)]"""
    if task not in TASKS:
        raise UserError(f"task {task!r}: expected one of {', '.join(TASKS)}")
    t = TASKS[task]
    split = {"dev": t.dev[0], "test": t.test[0]}.get(split, split)
    path, test, number, examples, skipped = Path(folder) / task / f"{split}.tsv", split in t.test, 1, [], 0
    # subtle: csv would swallow rows behind a `"`, splitlines cut at U+2028. CoLA's train and dev have no header
    lines = ((number, line.rstrip("\r\n").split("\t")) for number, line in data.read_lines(path))
    row = header = ["source", "label", "mark", "sentence"] if task == "CoLA" and not test else next(lines, (1, [""]))[1]
    names, labels = t.text if test else (*t.text, t.label), " or ".join(t.labels or ["0..5"])
    try:
        columns = [header.index(name) for name in names]
        for number, row in lines:
            if len(row) < len(header) and (task, split) == ("QQP", "train"):  # as in BERT's reader
                skipped += 1
                continue
            cells = [row[i] for i in columns]
            label = None if test else t.labels.index(cells.pop()) if t.labels else float(cells.pop())
            if len(row) != len(header) or not 0 <= (label or 0) <= 5:
                raise ValueError
            examples.append((cells[0], cells[1] if len(cells) > 1 else None, label))
        if not examples:
            raise ValueError
    except (ValueError, IndexError):
        raise UserError(f"{path}:{number}: {' | '.join(row)[:99]!r}; expected rows of {len(header)} columns, with "
                        f"{', '.join(names)}" + f" ({labels})" * (not test)) from None
    if skipped:
        print(f"{path}: {skipped} short rows skipped")
    return examples

def encode(examples, tokenizer, n):
    """What read_task gives -> (rows, labels): [(ids, segments)] of at most n tokens; ids or floats, -1 for None."""
    rows = [data.pack(tokenizer.encode(a), None if b is None else tokenizer.encode(b), n) for a, b, _ in examples]
    return rows, np.array([-1 if label is None else label for *_, label in examples])

# ---- Fine-tuning: one model and one loop for all tasks and SQuAD (App. D.2) ----
@dataclass(frozen=True)
class FinetuneSettings:
    """One fine-tuning. The defaults suit the toy size."""
    epochs: int = flag(3, "passes over the training rows")
    lr: float = flag(1e-3, "peak learning rate")
    weight_decay: float = flag(0.01, "of all but biases, LayerNorms and kernels")
    warmup: float = flag(0.1, "share of the steps in which the rate rises")
    batch: int = flag(16, "rows a step")
    n: int = flag(40, "tokens a row, at most")
    precision: str = autobert.PRECISION

# App. D.2: 3 epochs. CHOICE: batch 32, n 128 and warm-up .01, which are not given for GLUE
PRESETS = {"toy": FinetuneSettings(), "paper": FinetuneSettings(lr=2e-5, warmup=0.01, batch=32, n=128)}

class Finetuned(nn.Module):
    """A copy of an encoder and one linear map: of a GLUE task on the pooled [CLS], of "SQuAD" on every token."""
    def __init__(self, encoder, task):
        super().__init__()
        self.encoder, self.task, config = copy.deepcopy(encoder), task, encoder.config  # the caller's weights stay
        outputs = 2 if task == "SQuAD" else len(TASKS[task].labels or [0])
        self.dropout, self.head = nn.Dropout(config.dropout), nn.Linear(config.hidden, outputs)
        autobert.init_weights(self.head, config.init_std)

    def forward(self, batch, precision="fp32"):
        """A batch on its device -> fp32 (B, classes); STS-B (B, 1); SQuAD (B, n, 2), of start and end."""
        with autobert.autocast(batch["ids"].device, precision):
            x = self.encoder(batch["ids"], batch["segments"], batch["mask"])  # (B, n, d)
            x = x if self.task == "SQuAD" else self.encoder.pool(x)
        x = self.head(self.dropout(x.float()))
        if self.task == "SQuAD" and batch["mask"] is not None:
            # subtle: padding must get no share of the softmax over positions, or a row's loss depends on its batch
            x = x.masked_fill(~batch["mask"][..., None], -1e30)
        return x

def fit(encoder, task, train, s, seed, device, report=lambda line: None):
    """A Finetuned copy of the encoder, the same for the same arguments: it draws from `seed` alone.
    task: of TASKS, or "SQuAD". train: (rows, labels). report(line): takes ten lines of progress, such as
    step=40/400 loss=0.512 left=0m12s. Diverged if the loss is not finite."""
    torch.manual_seed(seed)
    model, rng, start, (rows, labels) = Finetuned(encoder, task), np.random.default_rng(seed), time.time(), train
    optimizer = autobert.make_optimizer(model.to(device).train(), s.lr, s.weight_decay)
    orders = [rng.permutation(len(rows)) for _ in range(s.epochs)]
    batches = [order[i:i + s.batch] for order in orders for i in range(0, len(rows), s.batch)]
    for step, picked in enumerate(batches):
        # 1. the rows and the learning rate of this step
        batch = autobert.to_device(data.collate([rows[i] for i in picked]) | {"labels": labels[picked]}, device)
        for group in optimizer.param_groups:
            group["lr"] = autobert.lr_at(step, len(batches), s.lr, s.warmup)
        # 2. the step. Loss of STS-B: of scores 0..5 as shares; of SQuAD: of two positions, (B, n, 2) and (B, 2)
        output, y = model(batch, s.precision), batch["labels"]
        loss = F.mse_loss(output[:, 0], y.float() / 5) if task == "STS-B" else F.cross_entropy(output, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        # 3. report; only here does the host wait for the device
        left = len(batches) - step - 1
        if left % max(1, len(batches) // 10) == 0:
            if not loss.isfinite():  # weights that were once nan stay so
                raise autobert.Diverged(f"{task}: the loss is {loss.item()} after {step} steps; try a smaller --lr")
            seconds = autobert.span(left * (time.time() - start) / (step + 1))
            report(f"step={step + 1}/{len(batches)} loss={loss.item():.3f} left={seconds}")
    return model.eval()

@torch.no_grad()
def outputs_of(model, rows, s, device):
    """What a Finetuned says of each row, a list of arrays: (classes,), for SQuAD (n of its batch, 2)."""
    parts = (autobert.to_device(data.collate(rows[i:i + 64]), device) for i in range(0, len(rows), 64))
    outputs = [x for part in parts for x in model(part, s.precision).cpu().numpy()]
    if not all(np.isfinite(x).all() for x in outputs):
        raise autobert.Diverged(f"{model.task}: an output is not finite; try a smaller --lr")
    return outputs

def predictions(model, rows, s, device):
    """(rows,) label ids, or for STS-B numbers around 0..5, from a Finetuned for GLUE."""
    outputs = np.stack(outputs_of(model, rows, s, device))
    return outputs[:, 0] * 5 if model.task == "STS-B" else outputs.argmax(1)

def score(task, gold, predicted, small=False):
    """The task's own metric. small: as Table 4 scores the small size, by accuracy in place of F1."""
    metric = TASKS[task].metric
    return (accuracy if small and metric is f1 else metric)(gold, predicted)

def finetune(encoder, task, train, dev, settings, seed, device):
    """Fine-tune a copy of the encoder -> (the Finetuned, its score on dev). train, dev: (rows, labels) of encode.
    The score is in the metric's own unit. CHOICE: of the last weights; the paper evaluates every 10 or 100 steps."""
    model = fit(encoder, task, train, settings, seed, device)
    return model, score(task, dev[1], predictions(model, dev[0], settings, device))

# ---- The commands for GLUE ----
@dataclass(frozen=True)
class Grid(FinetuneSettings):
    """The settings of the command finetune: each learning rate with each weight decay is a cell of the grid."""
    lr: tuple[float, ...] = flag((), "peak learning rates, one or more")
    weight_decay: tuple[float, ...] = flag((), "one or more")
    task: tuple[str, ...] = flag(tuple(TASKS), "one or more", choices=tuple(TASKS))

def best_cell(encoder, task, parts, cells, seeds, device, small):
    """Fine-tune in each cell with each seed; print a line per cell and dev file. -> (medians of the dev files,
    Finetuned) of the best cell. parts: (rows, labels) of train and of each dev file. cells: FinetuneSettings."""
    (train, *devs), best = parts, (-math.inf,)
    constant = np.bincount(train[1]).argmax() if TASKS[task].labels else train[1].mean()  # the commonest, or the mean
    for s in cells:
        cell = f"{task} lr={s.lr:g} weight_decay={s.weight_decay:g}"
        models = [fit(encoder, task, train, s, seed, device, lambda x: print(cell, x, flush=True)) for seed in seeds]
        scores = np.array([[score(task, y, predictions(model, rows, s, device), small) for rows, y in devs]
                           for model in models])  # (seeds, dev files)
        for name, (_, y), x in zip(TASKS[task].dev, devs, 100 * scores.T):
            floor = 100 * score(task, y, y * 0 + constant, small)
            print(f"{cell} {name}={np.median(x):.1f} ({x.min():.1f} to {x.max():.1f}) constant={floor:.1f}", flush=True)
        medians = np.median(scores, 0)
        best = max(best, (medians.sum(), medians, models[scores.sum(1).argmax()]), key=lambda cell: cell[0])
    return best[1:]

def finetune_command(s: Grid, checkpoint: str = "model.pt", glue: str = "toy/glue", seeds: int = 1, seed: int = 0,
                     mnli: bool = False, small: bool = False, save: str = "", preset: tuple(PRESETS) = "toy",
                     device: str = "auto"):
    """Fine-tune a checkpoint on GLUE tasks and score it on their dev files.

    A line per task and cell of the grid: the median over the seeds (least to most) and what a constant would score,
    x 100; after all eight tasks AVG, the mean of the nine best medians. The paper's grid: --preset paper
    --lr 1e-5 1.5e-5 2e-5 3e-5 4e-5 5e-5 --weight-decay .1 .01

    checkpoint: what autobert.py train wrote, or a file of --save
    glue: the folder that holds CoLA, SST-2, ..
    seeds: runs in each cell, with the seeds --seed, --seed + 1, ..
    mnli: RTE, STS-B and MRPC start from the best model for MNLI (App. D.2)
    small: score MRPC and QQP by accuracy, as Table 4 for the small size
    save: a folder for the best model of each task, TASK.pt
    preset: settings for the toy size, or for the paper's sizes"""
    base, names, device, medians = PRESETS[preset], s.pop("task", tuple(TASKS)), autobert.find_device(device), []
    rates, decays = s.pop("lr", [base.lr]), s.pop("weight_decay", [base.weight_decay])
    cells = [replace(base, lr=lr, weight_decay=decay, **s) for lr in rates for decay in decays]
    if mnli and "MNLI" not in names:
        raise UserError("--mnli: expected MNLI in --task, or its saved model as --checkpoint")
    model, tokenizer, _ = autobert.load_checkpoint(checkpoint, device)
    n, start = cells[0].n, model.encoder
    tasks = {name: [encode(read_task(glue, name, split), tokenizer, n) for split in ("train", *TASKS[name].dev)]
             for name in sorted(names, key="MNLI".__ne__)}  # MNLI first
    for name, parts in tasks.items():
        encoder = start if name in ("RTE", "STS-B", "MRPC") else model.encoder  # App. D.2
        found, tuned = best_cell(encoder, name, parts, cells, range(seed, seed + seeds), device, small)
        medians.extend(found)
        start = tuned.encoder if mnli and name == "MNLI" else start
        if save:  # a checkpoint like any other, with the fine-tuned encoder in it and the head beside it
            whole, head = copy.deepcopy(model), tuned.head.state_dict()
            whole.encoder = tuned.encoder
            autobert.save_checkpoint(f"{save}/{name}.pt", whole, tokenizer, task=name, n=n, head=head)
    if len(tasks) == len(TASKS):
        print(f"AVG {100 * np.mean(medians):.1f}")

def predict(model: str = "tuned", glue: str = "toy/glue", out: str = "submission", device: str = "auto"):
    """Write the files for the GLUE leaderboard, one TSV per test file; it wants them zipped, with WNLI.tsv and AX.tsv.

    model: a file that `finetune --save` wrote, or the folder with several
    out: a folder for the files"""
    device, ends = autobert.find_device(device), {"test": "", "test_matched": "-m", "test_mismatched": "-mm"}
    for path in sorted(Path(model).glob("*.pt")) or [Path(model)]:
        whole, tokenizer, content = autobert.load_checkpoint(path, device)
        if "head" not in content:
            raise UserError(f"{path}: not fine-tuned; expected what `glue.py finetune --save` wrote")
        tuned, t = Finetuned(whole.encoder, content["task"]).to(device).eval(), TASKS[content["task"]]
        tuned.head.load_state_dict(content["head"])
        for split in t.test:
            rows, _ = encode(read_task(glue, tuned.task, split), tokenizer, content["n"])
            found, file = predictions(tuned, rows, FinetuneSettings(), device), f"{out}/{tuned.task}{ends[split]}.tsv"
            said = [t.labels[x] if t.labels else f"{min(5, max(0, x)):.3f}" for x in found]
            data.write_beside(file, "\n".join(["index\tprediction", *map("{}\t{}".format, range(len(said)), said), ""]))
            print(f"{file}: {len(said)} predictions")

# ---- SQuAD: questions and scores (App. C.2) ----
def questions_of(dataset):
    """SQuAD's parsed JSON, or its "data" -> its questions as they stand there, {"id", "question", "answers", ..}, with
    the passage as "context" put in. Those of v2.0 have "is_impossible", and may have no answers."""
    articles = dataset["data"] if isinstance(dataset, dict) else dataset
    return [qa | {"context": p["context"]} for article in articles for p in article["paragraphs"] for qa in p["qas"]]

def read_squad(path):
    """The questions of a train or dev file, v1.1 or v2.0, .json, .json.xz or .json.gz."""
    try:
        return questions_of(json.loads("".join(line for _, line in data.read_lines(path))))
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{path}: {type(error).__name__} {error}; expected SQuAD's JSON") from None

def normalize_answer(text):
    """Lower case, no ASCII punctuation, no articles, single spaces. Example: "The  U.S. Army!" -> "us army" """
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", re.sub(r"[!-/:-@[-`{-~]", "", text.lower())).split())

def question_scores(q, text):
    """(exact, F1) of a predicted text, 0..1, each the best over the gold answers, as in the official scorers."""
    v2, said = "is_impossible" in q, normalize_answer(text).split()
    golds = [normalize_answer(answer["text"]).split() for answer in q["answers"]]
    golds = [gold for gold in golds if gold] or [[]] if v2 else golds  # in v2.0 "no answer" is one empty gold answer
    common = [sum((Counter(gold) & Counter(said)).values()) for gold in golds]
    # subtle: where nothing is left of both, the official scorers differ: F1 is 1 in v2.0, 0 in v1.1
    f = [2 * c / (len(gold) + len(said)) if c else float(v2 and gold == said == []) for c, gold in zip(common, golds)]
    return float(said in golds), max(f, default=0.0)

def squad_scores(dataset, predictions):
    """{"exact", "f1", "total"}, 0..100; for v2.0 also HasAns_.. and NoAns_..: with an answer, without one. dataset:
    SQuAD's parsed JSON, or questions. predictions: {id: text}; CHOICE: a missing one scores 0."""
    questions = dataset if isinstance(dataset, list) and "answers" in dataset[0] else questions_of(dataset)
    each = np.array([question_scores(q, predictions[q["id"]]) if q["id"] in predictions else (0, 0) for q in questions])
    has = np.array([bool(q["answers"]) for q in questions])
    parts = {"": has | True} | ({"HasAns_": has, "NoAns_": ~has} if "is_impossible" in questions[0] else {})
    return {name + key: x.item() for name, part in parts.items() if part.any()
            for key, x in zip(("exact", "f1", "total"), (*100 * each[part].mean(0), part.sum()))}

# ---- SQuAD: windows and decoding (as BERT's run_squad) ----
@dataclass(frozen=True)
class SquadSettings(FinetuneSettings):
    """One fine-tuning on SQuAD. The defaults suit the toy size."""
    n: int = flag(64, "tokens a window, at most")
    stride: int = flag(24, "tokens from the beginning of a window to the next one's")
    max_question: int = flag(16, "tokens of a question, at most")
    max_answer: int = flag(30, "tokens of an answer, at most")

# App. D.2: v1.1 3 epochs, batch 32; v2.0 2 epochs, batch 48. CHOICE: the rest is BERT's
_PAPER = SquadSettings(lr=2e-5, warmup=0.01, batch=32, n=384, stride=128, max_question=64)
SQUAD_PRESETS = {"toy": (SquadSettings(),) * 2, "paper": (_PAPER, replace(_PAPER, epochs=2, batch=48))}  # v1.1, v2.0

class Window(NamedTuple):
    """A question with a stretch of its passage: [CLS] question [SEP] stretch [SEP]."""
    question: int      # its number
    row: tuple         # (ids, segments)
    at: int            # where in the row the stretch begins
    spans: np.ndarray  # (m, 2): of each token its first character in the passage, and the one behind its last
    owned: np.ndarray  # (m,) bool: no other window has more context for the token
    gold: tuple        # where in the row the answer's first and last token are; (0, 0), so [CLS]: not in this window

def squad_windows(questions, tokenizer, s):
    """Questions -> [Window], one every s.stride tokens of a passage. Questions are cut to s.max_question tokens."""
    windows, context = [], None
    for number, q in enumerate(questions):
        if q["context"] is not context:  # questions on one passage follow one another
            context = q["context"]
            ids, spans = tokenizer.encode_with_offsets(context)
            spans, place = np.array(spans, np.int32).reshape(-1, 2), np.arange(len(ids))
        asked = tokenizer.encode(q["question"])[:min(s.max_question, s.n - 4)]
        room, at = s.n - len(asked) - 3, len(asked) + 2
        stride = min(s.stride, room)
        begin = np.arange(0, max(1, len(ids) - room + stride), stride)[:, None]  # (windows, 1)
        end = np.minimum(begin + room, len(ids))
        # BERT's maximal context: the smaller of the numbers of tokens left and right of it, then the longer window
        left, right = place - begin, end - 1 - place  # (windows, passage)
        owner = np.where((left >= 0) & (right >= 0), np.minimum(left, right) + 0.01 * (end - begin), -1).argmax(0)
        text, start = (q["answers"][0][key] for key in ("text", "answer_start")) if q["answers"] else ("", -1)
        first = np.searchsorted(spans[:, 1], start, "right")  # the first token that the gold answer touches, the last
        last = np.searchsorted(spans[:, 0], start + len(text), "left") - 1
        for w, (i, j) in enumerate(zip(begin[:, 0], end[:, 0])):
            gold = (first - i + at, last - i + at) if i <= first <= last < j else (0, 0)
            windows.append(Window(number, data.pack(asked, ids[i:j], s.n), at, spans[i:j], owner[i:j] == w, gold))
    return windows

def best_span(w, logits, max_answer):
    """(score, first character, the one behind the last) of a Window's best span; the score is -inf if there is none.
    logits: (n, 2), of start and end. A span begins at an owned token with text, and has at most max_answer tokens.
    DEVIATION: all of them compete; BERT combines the 20 best starts with the 20 best ends."""
    start, end = logits[w.at:w.at + len(w.spans)].T.astype(float)  # (m,) each
    owned = w.owned & (w.spans[:, 0] < w.spans[:, 1])
    if not owned.any():
        return -math.inf, 0, 0
    ends = np.lib.stride_tricks.sliding_window_view(np.append(end, [-np.inf] * (max_answer - 1)), max_answer)
    total = np.where(owned[:, None], start[:, None] + ends, -np.inf)  # (m, max_answer): to the same token, the next, ..
    first, more = np.unravel_index(total.argmax(), total.shape)
    return total[first, more], w.spans[first, 0], w.spans[first + more, 1]

def decode(questions, windows, outputs, s):
    """{id: (text, margin)}, for every question: its best span over all windows, '' if there is none.
    outputs: (n, 2) logits of start and end for each window. margin: null score - the span's score, where the null
    score is the least sum of the two logits at [CLS] over the windows (BERT); v1.1 has no null, so -inf."""
    best, null = [(-math.inf, 0, 0)] * len(questions), [math.inf] * len(questions)
    for w, logits in zip(windows, outputs):
        best[w.question] = max(best[w.question], best_span(w, logits, s.max_answer), key=lambda span: span[0])
        null[w.question] = min(null[w.question], float(logits[0].astype(float).sum()))
    return {q["id"]: (q["context"][i:j].strip(), zero - total if "is_impossible" in q else -math.inf)
            for q, zero, (total, i, j) in zip(questions, null, best)}

def squad_predictions(answers, tau=0.0):
    """What decode gives -> {id: text}; '' where the margin is above tau."""
    return {name: text if margin <= tau else "" for name, (text, margin) in answers.items()}

def best_tau(questions, answers):
    """The threshold with the best F1 on these questions, the least of equals."""
    margins = np.array([answers[q["id"]][1] for q in questions])
    gain = np.array([question_scores(q, answers[q["id"]][0])[1] - question_scores(q, "")[1] for q in questions])
    return float(max([margins.min() - 1, *np.unique(margins)], key=lambda tau: gain[margins <= tau].sum()))

def squad(s: SquadSettings, checkpoint: str = "model.pt", train: str = "toy/squad/train-v1.1.json",
          dev: str = "toy/squad/dev-v1.1.json", predictions: str = "", seed: int = 0, preset: tuple(PRESETS) = "toy",
          device: str = "auto"):
    """Fine-tune a checkpoint on SQuAD v1.1 or v2.0, and score its answers on dev: exact match and F1, 0 to 100.

    In v2.0 a question may have no answer: '' is then predicted where null leads the best span by more than tau.
    Beside tau 0 stands the tau that is best on this very dev file, as is usual.

    checkpoint: what autobert.py train wrote
    train: SQuAD's JSON, plain, .xz or .gz
    dev: another one; if it is v2.0, so are the settings of --preset paper
    predictions: a file to write for the official scorer, the JSON {id: text} at tau 0
    preset: settings for the toy size, or for the paper's sizes"""
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
        data.write_beside(predictions, json.dumps(squad_predictions(answers), ensure_ascii=False) + "\n")
    for tau in [0.0, best_tau(asked, answers)][:1 + v2]:
        scores = squad_scores(asked, squad_predictions(answers, tau))
        print(f"tau={tau:.3f}", *(f"{key}={round(x, 1)}" for key, x in scores.items()))

if __name__ == "__main__":
    finetune_command.__name__ = "finetune"  # as a command; the function of that name is one fine-tuning
    data.run(__doc__, finetune_command, predict, squad)
