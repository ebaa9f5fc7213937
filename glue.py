"""Fine-tuning and its scores: GLUE and SQuAD (paper: "Datasets and metrics", Appendix C, Tables 2 to 5).

A pre-trained encoder is judged by what it learns from labelled rows: a copy of it gets one linear map on top, all
weights are trained for a few epochs, and a metric compares its predictions with the gold labels of the dev file.
The search uses the mean of such scores as its fitness; the tables of the paper are such scores.

Glossary: B rows in a batch, n tokens in a row, d hidden size; gold = the file's label, predicted = the model's;
dev = the labelled rows a task is judged on (MNLI has two: matched, and mismatched, "mm"); window = a stretch of a
long passage that fits n tokens; null = "the passage has no answer", read at [CLS]; tau = the null threshold.

    python glue.py                                               what the tasks are, and what their metrics say
    python glue.py finetune --checkpoint C --glue FOLDER --task all --mnli auto --save models
    python glue.py grid --checkpoint C --glue FOLDER --task RTE  learning rates x weight decays
    python glue.py predict --checkpoint models --glue FOLDER --out leaderboard
    python glue.py baseline --glue FOLDER                        what a linear model of the words scores
    python glue.py squad --checkpoint C --train train-v2.0.json --dev dev-v2.0.json --v2
    python glue.py squad --check --preset paper --tokenizer tokenizer.model --dev dev-v1.1.json     gold spans fed in
    python glue.py pays                                          does pre-training pay? at toy size, in minutes

Read after autobert.py.
"""
import argparse
import copy
import hashlib
import json
import math
import os
import re
import string
import sys
import tempfile
import zipfile
import zlib
from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import chain, islice, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import autobert
import data
from autobert import Diverged
from data import UserError



def log(**pairs):
    """One line of progress, key=value, on stderr."""
    print(*(f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in pairs.items()), file=sys.stderr)


# ---- metrics (Appendix C), from their definitions ----------------------------------------------------------------


def _pair(x, y):
    """Two sequences -> two float vectors of one length. ValueError if empty, of unequal length, or not finite."""
    x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if x.ndim != 1 or x.shape != y.shape or x.size == 0:
        raise ValueError(f"shapes {x.shape} and {y.shape}: expected two non-empty vectors of one length")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError("NaN or infinity: expected finite numbers")
    return x, y


def accuracy(gold, predicted):
    """Share of rows that agree. Example: [0, 1, 1, 1], [0, 1, 0, 1] -> 0.75"""
    gold, predicted = _pair(gold, predicted)
    return float((gold == predicted).mean())


def _confusion(gold, predicted):
    gold, predicted = _pair(gold, predicted)
    g, p = gold == 1, predicted == 1                                # class 1 is the positive one
    return int((g & p).sum()), int((~g & p).sum()), int((g & ~p).sum()), int((~g & ~p).sum())   # tp fp fn tn


def matthews(gold, predicted):
    """Matthews correlation of two binary vectors, -1..1; 0 if a margin is 0. Example: [1, 1, 0], [1, 0, 0] -> 0.5"""
    tp, fp, fn, tn = _confusion(gold, predicted)
    margins = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)         # Python integers: no overflow
    return (tp * tn - fp * fn) / math.sqrt(margins) if margins else 0.0


def f1(gold, predicted):
    """F1 of class 1; 0 if there is no true positive. Example: [1, 1, 0], [1, 0, 0] -> 0.667"""
    tp, fp, fn, _ = _confusion(gold, predicted)
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def pearson(x, y):
    """Pearson correlation; 0 if x or y is constant. Example: [1, 2, 3], [1, 2, 4] -> 0.982"""
    x, y = _pair(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = (v / np.abs(v).max() - (v / np.abs(v).max()).mean() for v in (x, y))
    return float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1, 1))


def average_ranks(x):
    """Ranks from 1, equal values share their mean rank. Example: [10, 30, 10] -> [1.5, 3, 1.5]"""
    _, which, count = np.unique(x, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[which]


def spearman(x, y):
    """Pearson correlation of the average ranks; 0 if x or y is constant. Example: [1, 2, 9], [1, 5, 4] -> 0.5"""
    x, y = _pair(x, y)
    return pearson(average_ranks(x), average_ranks(y))


def _inversions(r):
    """Pairs i < j with r[i] > r[j]: those within each half, and those across, counted in one half sorted.
    Example: [2, 0, 1] -> 2"""
    if len(r) <= 64:
        return int(np.triu(r[:, None] > r, 1).sum())
    left, right = np.array_split(r, 2)
    across = len(left) * len(right) - int(np.searchsorted(np.sort(left), right, side="right").sum())
    return _inversions(left) + _inversions(right) + across


def kendall_tau(x, y):
    """(tau_b, p) of Kendall's rank correlation (Fig. 8), ties allowed. Example: [1, 2, 3], [1, 3, 2] -> (.333, .602)

    p: two-sided, of "no association", by the normal approximation with the tie correction: below n = 10 a rough one.
    Degenerate input (n = 1, or all of x or of y equal) -> (0.0, 1.0). About n log n steps, not n squared."""
    x, y = (np.unique(v, return_inverse=True)[1] for v in _pair(x, y))          # dense ranks from 0
    n, order = len(x), np.lexsort((y, x))                           # by x, ties of x by y: a tie is no inversion
    tx, ty, txy = (np.unique(v, return_counts=True)[1].astype(float) for v in (x, y, x * (int(y.max()) + 1) + y))
    pairs, same_x, same_y, same_both = (float((t * (t - 1) / 2).sum()) for t in (np.array([n]), tx, ty, txy))
    if same_x == pairs or same_y == pairs:
        return 0.0, 1.0
    discordant = _inversions(y[order])
    s = pairs - same_x - same_y + same_both - 2 * discordant        # concordant minus discordant
    v0, vx, vy = (float((t * (t - 1) * (2 * t + 5)).sum()) for t in (np.array([float(n)]), tx, ty))
    variance = (v0 - vx - vy) / 18 + same_x * same_y / pairs
    triples_x, triples_y = (float((t * (t - 1) * (t - 2)).sum()) for t in (tx, ty))
    variance += triples_x * triples_y / (18 * pairs * max(1, n - 2))
    tau = s / math.sqrt(pairs - same_x) / math.sqrt(pairs - same_y)
    return min(1.0, max(-1.0, tau)), math.erfc(abs(s) / math.sqrt(2 * variance))


METRICS = {"accuracy": accuracy, "matthews": matthews, "f1": f1, "pearson": pearson, "spearman": spearman}


def unit_score(score):
    """The score as the search's fitness, clipped to [0, 1]. Example: -0.1 -> 0.0"""
    return min(1.0, max(0.0, float(score)))


# ---- the eight tasks (Appendix C.1) ------------------------------------------------------------------------------

_FILES = {"train": "train.tsv", "dev": "dev.tsv", "test": "test.tsv"}
_MNLI_FILES = {"train": "train.tsv", "dev": "dev_matched.tsv", "dev_mm": "dev_mismatched.tsv",
               "test": "test_matched.tsv", "test_mm": "test_mismatched.tsv"}


@dataclass(frozen=True, eq=False)
class Task:
    """How the files of a task are read, and how it is scored. Columns count from 0; -1 is the last."""
    name: str
    columns: tuple                     # text columns of train and dev
    label: int                         # label column of train and dev
    test_columns: tuple                # text columns of test, which has no label
    labels: tuple | None               # label strings in id order; None: a number 0..5 (regression)
    metrics: tuple                     # the first is the task's score, the others stand beside it
    small_metric: str | None = None    # the score for the small size (Table 4, footnote 2), if another one
    header: bool = True                # train and dev begin with a line of column names; test always does
    files: dict = field(default_factory=lambda: _FILES)             # split -> file name

    @property
    def dev(self):
        return [split for split in self.files if split.startswith("dev")]

    @property
    def test(self):
        return [split for split in self.files if split.startswith("test")]

    def metric(self, small=False):
        return self.small_metric if small and self.small_metric else self.metrics[0]


_01, _ENTAIL, _ACC = ("0", "1"), ("entailment", "not_entailment"), ("accuracy",)
TASKS = {task.name: task for task in (
    Task("CoLA", (3,), 1, (1,), _01, ("matthews", "accuracy"), header=False),
    Task("SST-2", (0,), 1, (1,), _01, _ACC),
    Task("MRPC", (3, 4), 0, (3, 4), _01, ("f1", "accuracy"), "accuracy"),
    Task("STS-B", (7, 8), -1, (7, 8), None, ("spearman", "pearson")),
    Task("QQP", (3, 4), 5, (1, 2), _01, ("f1", "accuracy"), "accuracy"),
    Task("MNLI", (8, 9), -1, (8, 9), ("contradiction", "entailment", "neutral"), _ACC, files=_MNLI_FILES),
    Task("QNLI", (1, 2), -1, (1, 2), _ENTAIL, _ACC),
    Task("RTE", (1, 2), -1, (1, 2), _ENTAIL, _ACC),
)}


def find_task(task):
    """The Task of a name; a Task is given back. UserError for an unknown name."""
    if task not in TASKS and not isinstance(task, Task):
        raise UserError(f"task {task!r}: expected one of {', '.join(TASKS)}")
    return TASKS.get(task, task)


def _label(text, task):
    """The id, or for STS-B the number, of a label as written; None if it is no label of the task."""
    try:
        label = task.labels.index(text) if task.labels else float(text if text.isascii() and "_" not in text else "-")
    except ValueError:
        return None
    return label if 0 <= label <= 5 else None                       # NaN fails both comparisons


def _wrong(what, path, number, expected):
    return UserError(f"{what}, {path}:{number}, expected {expected}")


def task_file(folder, task, split):
    """Path of a task's file, which may be packed as .gz or .xz."""
    plain = Path(folder) / task.name / task.files[split]
    return next((path for path in (plain, *(Path(f"{plain}{packed}") for packed in data.OPENERS)) if path.exists()),
                plain)


def examples_of(folder, task, split):
    """Yield what read_task gives, one row at a time; the file is never in memory as a whole."""
    path, test, skipped, number, width = task_file(folder, task, split), split in task.test, 0, 0, 0
    columns, label = (task.test_columns, None) if test else (task.columns, task.label)
    names = data.COLUMNS[task.name][2].split("|") + ([] if test else [data.COLUMNS[task.name][3]])
    used = [*columns, *([] if test else [label])]
    # not csv, which swallows rows after a `"`; nor splitlines, for which U+2028 within a text ends a line
    for number, line in data.read_lines(path):
        row = line.rstrip("\r\n").split("\t")
        if number == 1 and (test or task.header):
            if len(row) <= max(used) or [row[i] for i in used] != names:
                raise _wrong(f"header {line.strip()[:80]!r}", path, 1, "columns " + ", ".join(
                    f"{i + 1 if i >= 0 else 'last'} {name!r}" for i, name in zip(used, names)))
            width = len(row)                                        # a header also tells where -1 is
            continue
        width = width or 1 + max(used)
        if len(row) < width and (task.name, split) == ("QQP", "train"):
            skipped += 1
            continue
        if len(row) != width:
            raise _wrong(f"{len(row)} columns", path, number, width)
        gold = None if test else _label(row[label], task)
        if gold is None and not test:
            raise _wrong(f"label {row[label][:60]!r}", path, number, " or ".join(task.labels or ["a number 0 to 5"]))
        yield row[columns[0]], row[columns[1]] if len(columns) > 1 else None, gold
    if skipped:
        log(task=task.name, file=path, short_rows_skipped=skipped)
    if number - skipped < 1 + (test or task.header):
        raise _wrong("0 rows", path, max(1, number), "at least one")


def read_task(folder, task, split):
    """folder/<TASK>/<file of split> -> [(text_a, text_b or None, label or None)]; label = id, or a float for STS-B.

    A train row of QQP that is too short is skipped and counted, as in BERT's reader; all else that is wrong is a
    UserError: no such task, split or file, another header, a short or long row, an unknown label, no rows."""
    task = find_task(task)
    if split not in task.files:
        raise UserError(f"split {split!r} of {task.name}: expected one of {', '.join(task.files)}")
    return list(examples_of(folder, task, split))


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows as a model reads them, in one array: rows[i] is the (ids, segments) that data.pack gives for row i."""
    tokens: np.ndarray   # (T,) uint16 or int32: two bytes a token, so that all of GLUE is a hundred megabytes
    ends: np.ndarray     # (rows + 1,) int64: row i is tokens[ends[i]:ends[i + 1]]
    first: np.ndarray    # (rows,) int32: as many of them belong to [CLS] a [SEP]

    def __len__(self):
        return len(self.first)

    def __getitem__(self, i):
        i = range(len(self))[i]                                     # IndexError beyond the end
        ids = self.tokens[self.ends[i]:self.ends[i + 1]]
        return ids, (np.arange(len(ids)) >= self.first[i]).astype(np.int32)


class Encoded(NamedTuple):
    """Rows as a model reads them, and what it shall say of each."""
    rows: object         # Rows, or a list of (ids, segments), each (at most n,) int32
    labels: np.ndarray   # (rows,) int64 ids, float64 for STS-B; SQuAD: (rows, 2) positions of start and end


def label_array(examples, task):
    """(rows,) int64 label ids of examples, float64 for STS-B; -1 where there is no label."""
    kind = np.float64 if find_task(task).labels is None else np.int64
    return np.array([-1 if label is None else label for _, _, label in examples], kind)


def encode_task(examples, task, tokenizer, n):
    """What read_task gives -> Encoded: [CLS] a [SEP] or [CLS] a [SEP] b [SEP], cut to n tokens. No label -> -1."""
    examples, small = iter(examples), np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
    tokens, lengths, labels = [], [], []
    while chunk := list(islice(examples, 4096)):                    # only so many texts are in memory at once
        a, b, _ = zip(*chunk)
        a, b = (side if side[0] is None else tokenizer.model.encode(list(side), num_threads=1) for side in (a, b))
        rows = [data.pack(*pair, n) for pair in zip(a, b)]
        tokens.append(np.fromiter(chain.from_iterable(ids for ids, _ in rows), small))
        lengths.append(np.array([(len(ids), len(ids) - sum(segments)) for ids, segments in rows], np.int32))
        labels.append(label_array(chunk, task))
    length, first = np.concatenate(lengths).T
    rows = Rows(np.concatenate(tokens), np.append(0, np.cumsum(length, dtype=np.int64)), first.copy())
    return Encoded(rows, np.concatenate(labels))


def load_split(folder, task, split, tokenizer, n, cache=None):
    """One split, encoded; from `cache` (a folder) if it was kept there for the same file, tokenizer and n."""
    task = find_task(task)
    path = task_file(folder, task, split)
    if not cache or not path.is_file():                             # a missing one is read_task's to report
        return encode_task(examples_of(folder, task, split), task, tokenizer, n)
    kept, key = Path(cache) / f"{task.name}-{split}-{n}.npz", hashlib.sha256(b"1" + tokenizer.proto)
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            key.update(block)
    if kept.exists():
        try:
            with open(kept, "rb") as file, np.load(file) as found:
                if str(found["key"]) == key.hexdigest():
                    return Encoded(Rows(found["tokens"], found["ends"], found["first"]), found["labels"])
            why = "stale"
        except (OSError, ValueError, TypeError, LookupError, EOFError, zipfile.BadZipFile, zlib.error):
            why = "broken"
        log(cache=kept, rebuilt=why)
    made = encode_task(examples_of(folder, task, split), task, tokenizer, n)
    data.write_beside(kept, lambda file: np.savez(file, key=np.array(key.hexdigest()), tokens=made.rows.tokens,
                                                  ends=made.rows.ends, first=made.rows.first, labels=made.labels))
    return made


def load_task(folder, task, tokenizer, n, cache=None):
    """-> (train: Encoded, dev: {split: Encoded}); MNLI has the two dev splits "dev" and "dev_mm"."""
    splits = ("train", *find_task(task).dev)
    read = {split: load_split(folder, task, split, tokenizer, n, cache) for split in splits}
    return read.pop("train"), read


# ---- fine-tuning: one model and one loop for all tasks and SQuAD ---------------------------------------------------


def option(default, text, least=1, most=math.inf, choices=(), of="finetune grid squad"):
    """A field of settings: the help text of its flag, the values it takes, the commands of this file that have it."""
    return field(default=default, metadata={"help": text, "least": least, "most": most, "choices": choices, "of": of})


@dataclass(frozen=True)
class FinetuneSettings:
    """One fine-tuning; the last three are SQuAD's. The defaults suit the toy size."""
    epochs: int = option(3, "passes over the training rows")
    lr: float = option(1e-3, "peak learning rate", 0, of="finetune squad")
    weight_decay: float = option(0.01, "AdamW's", 0, of="finetune squad")
    warmup: float = option(0.1, "share of all steps with rising learning rate", 0, 1)
    batch: int = option(16, "rows a step")
    eval_batch: int = option(128, "rows of a forward pass without training", of="finetune grid predict squad")
    n: int = option(40, "tokens of a row or, for SQuAD, of a window, at most", 8)
    bucket: int = option(50, "batches whose rows are sorted by length together; 1: no sorting")
    precision: str = option("fp32", "as for autobert.py pretrain; auto: bf16 on cuda, else fp32",
                            choices=("auto", *autobert.PRECISIONS), of="finetune grid predict squad")
    small: bool = option(False, "score MRPC and QQP by accuracy, as Table 4 does for size small: its default",
                         0, of="finetune grid")
    keep: str = option("last", "the model of the best evaluation on dev counts, or the last",
                       choices=("best", "last"), of="finetune grid")
    eval_every: int = option(0, "steps between evaluations; 0: once an epoch", 0, of="finetune grid")
    stride: int = option(24, "tokens between the beginnings of two windows", of="squad")
    max_question: int = option(16, "tokens of a question, at most", of="squad")
    max_answer: int = option(30, "tokens of an answer, at most", of="squad")


# the search's fast fine-tuning (appendix: "model evaluation phase"); CHOICE: batch 32, which is not given
PAPER = FinetuneSettings(lr=2e-5, warmup=0.01, batch=32, n=128)
PRESETS = {"toy": FinetuneSettings(keep="best"), "paper": replace(PAPER, keep="best")}
SQUAD_PRESETS = {"toy": FinetuneSettings(n=64, bucket=1), "paper": replace(PAPER, n=384, stride=128, max_question=64)}
SQUAD_PRESETS["paper v2.0"] = replace(SQUAD_PRESETS["paper"], epochs=2, batch=48)


class Finetuned(nn.Module):
    """An encoder and one linear map: on the pooled [CLS] -> (B, outputs), or on every token -> (B, n, outputs)."""

    def __init__(self, encoder, outputs, per_token):
        super().__init__()
        self.encoder, self.per_token = copy.deepcopy(encoder), per_token        # the caller's weights stay
        self.dropout, self.head = nn.Dropout(encoder.config.dropout), nn.Linear(encoder.config.hidden, outputs)
        autobert.init_weights(self.head, encoder.config.init_std)

    def forward(self, batch):
        hidden = self.encoder(batch["ids"], batch["segments"], batch["mask"])   # (B, n, d)
        if not self.per_token:
            return self.head(self.dropout(self.encoder.pool(hidden)))           # (B, outputs)
        # subtle: padding must get no share of the softmax over positions, or a row's loss depends on its batch
        return self.head(self.dropout(hidden)).masked_fill(~batch["mask"][..., None], -1e30)       # (B, n, outputs)


def score_loss(output, y):
    """STS-B: the squared error of the score as a share, 0..5 -> 0..1. All else, spans too, has F.cross_entropy."""
    return F.mse_loss(output[:, 0], y.to(output.dtype) / 5)


def head_of(task):
    """(loss function, outputs of the linear map) of a Task."""
    return (F.cross_entropy, len(task.labels)) if task.labels else (score_loss, 1)


def as_labels(task, outputs):
    """(rows, outputs) of the linear map -> (rows,) class ids, or for STS-B numbers around 0..5."""
    return outputs.argmax(1) if task.labels else outputs[:, 0] * 5


def lengths_of(rows):
    """(rows,) tokens of each row of an Encoded."""
    return np.diff(rows.ends) if isinstance(rows, Rows) else np.array([len(ids) for ids, _ in rows])


def batches_of(lengths, batch, bucket, order):
    """Arrays of row numbers, the batches of one epoch in a new order. CHOICE: the rows are shuffled and cut into
    stretches of `bucket` batches; a stretch is sorted by length, so that its batches need little padding, and the
    batches are shuffled again. An epoch has every row once, and as many steps as without."""
    rows, stretch = order.permutation(len(lengths)), batch * bucket
    if bucket > 1:
        rows = np.concatenate([part[np.argsort(lengths[part], kind="stable")] for part in (
            rows[i:i + stretch] for i in range(0, len(rows), stretch))])
    batches = [rows[i:i + batch] for i in range(0, len(rows), batch)]
    return [batches[i] for i in order.permutation(len(batches))] if bucket > 1 else batches


def fit(encoder, outputs, loss_of, train, settings, seed, device, per_token=False, judge=None, tell=False):
    """A fine-tuned copy of the encoder. Draws only from `seed`, whatever was drawn before. Diverged if it does.
    tell: a line of progress at every twentieth of the steps.

    judge(model) -> score: its weights are then those with the best score (the earlier on a tie) among evaluations
    every settings.eval_every steps and after the last."""
    order, lengths, step, best, kept = np.random.default_rng(seed), lengths_of(train.rows), 0, -math.inf, None
    an_epoch = math.ceil(len(lengths) / settings.batch)
    steps, every = settings.epochs * an_epoch, settings.eval_every or an_epoch
    with autobert.seeded(seed), autobert.matmul_precision(settings.precision), autobert.kept_memory():
        model = Finetuned(encoder, outputs, per_token).to(device).train()       # 1. head and dropout from the seed
        optimizer = autobert.make_optimizer(model, settings.lr, settings.weight_decay)
        for _ in range(settings.epochs):                            # 2. a new order in every epoch
            for picked in batches_of(lengths, settings.batch, settings.bucket, order):
                batch = autobert.to_device(data.collate([train.rows[i] for i in picked]), device)
                labels = torch.from_numpy(train.labels[picked]).to(device)
                for group in optimizer.param_groups:                # 3. learning rate of this step
                    group["lr"] = autobert.lr_at(step, steps, settings.lr, settings.warmup)
                with autobert.autocast(device, settings.precision):
                    output = model(batch)
                loss = loss_of(output.float(), labels)              # 4. forward, loss
                if not torch.isfinite(loss):
                    raise Diverged(f"loss {loss.item()} at step {step} of {steps}")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()                                     # 5. backward, clip, step
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
                if tell and (step % max(1, steps // 20) == 0 or step == steps):
                    log(step=step, steps=steps, loss=loss.item())
                if judge and (step % every == 0 or step == steps):  # 6. evaluate; this draws nothing
                    score = judge(model.eval())
                    log(step=step, steps=steps, loss=loss.item(), score=score)
                    if score > best:
                        best, kept = score, {name: x.clone() for name, x in model.state_dict().items()}
                    model.train()
    if kept:
        model.load_state_dict(kept)
    return model.eval()


@torch.no_grad()
def outputs_of(model, rows, settings, device):
    """The output for every row, a list of arrays: (outputs,) or (n of its batch, outputs). Diverged if not finite.

    Rows of similar length share a batch; what a row gets does not depend on its company."""
    outputs, order = [None] * len(rows), np.argsort(lengths_of(rows), kind="stable")
    with autobert.matmul_precision(settings.precision), autobert.autocast(device, settings.precision):
        for picked in (order[i:i + settings.eval_batch] for i in range(0, len(rows), settings.eval_batch)):
            batch = autobert.to_device(data.collate([rows[i] for i in picked]), device)
            for i, output in zip(picked, model(batch).float().cpu().numpy()):
                outputs[i] = output
    if not all(np.isfinite(output).all() for output in outputs):
        raise Diverged("an output that is not finite")
    return outputs


def predict(model, task, rows, settings, device):
    """(rows,) class ids, or for STS-B numbers around 0..5."""
    return as_labels(task, np.stack(outputs_of(model, rows, settings, device)))


def scores(task, dev, predicted, small=False):
    """{split: Encoded}, {split: predictions} -> {"matthews": .., "accuracy": .., "score": ..}, for MNLI also
    "accuracy_mm". "score" is the task's own metric, for MNLI the mean of its two; it may be negative."""
    if any((dev[split].labels < 0).any() for split in dev):
        raise ValueError(f"{task.name}: rows without labels, as test files have them, have no score")
    result = {metric + split.removeprefix("dev"): METRICS[metric](dev[split].labels, predicted[split])
              for split in dev for metric in task.metrics}
    result["score"] = float(np.mean([result[task.metric(small) + split.removeprefix("dev")] for split in dev]))
    return result


def train_task(encoder, task, train, dev, settings, seed=0, device="cpu"):
    """Train a copy of the encoder on `train`, as load_task gives it -> (Finetuned, its `scores` on dev).

    CHOICE: where settings.keep is "best" both are of the best evaluation on dev; the paper does not say which of its
    evaluations a dev score is. So dev scores are a little too good; the search takes the last weights."""
    task, found = find_task(task), []

    def judge(model):
        predicted = {split: predict(model, task, dev[split].rows, settings, device) for split in dev}
        found.append(scores(task, dev, predicted, settings.small))
        return found[-1]["score"]

    loss_of, outputs = head_of(task)
    best = settings.keep == "best"
    model = fit(encoder, outputs, loss_of, train, settings, seed, device, judge=judge if best else None)
    if not best:
        judge(model)
    return model, max(found, key=lambda result: result["score"])    # the first of equals, as in fit


def finetune(encoder, task, train, dev, settings=FinetuneSettings(), seed=0, device="cpu"):
    """The scores alone of train_task."""
    return train_task(encoder, task, train, dev, settings, seed, device)[1]


def majority(task, train, dev, small=False):
    """The scores of a constant: the commonest label of train (the smaller id on a tie), or the mean for STS-B."""
    task = find_task(task)
    constant = np.bincount(train.labels).argmax() if task.labels else train.labels.mean()
    return scores(task, dev, {split: np.full(len(dev[split].labels), constant) for split in dev}, small)


def bag(a, b, buckets):
    """Hashed features of a row, a set of ids: its words; of a pair the side of each, and if it is on both or on one."""
    a, b = (set(re.findall(r"\w+|[^\w\s]", text.lower())) if text is not None else None for text in (a, b))
    found = {"a" + word for word in a}
    if b is not None:
        found |= {"b" + word for word in b} | {"both" + word for word in a & b} | {"one" + word for word in a ^ b}
        found.add(f"shared {len(a & b) * 10 // max(1, len(a | b))}/10")
    return torch.tensor(sorted({zlib.crc32(word.encode()) % buckets for word in found}), dtype=torch.int64)


def bag_of_words(task, train, dev, seed=0, epochs=5, buckets=1 << 17):
    """[example] and {split: [example]} of read_task -> the scores on dev of a linear model of the words: what a
    text encoder must beat."""
    task, rng = find_task(task), np.random.default_rng(seed)
    loss_of, outputs = head_of(task)
    model, bias = torch.zeros(buckets, outputs, requires_grad=True), torch.zeros(outputs, requires_grad=True)
    optimizer = torch.optim.Adagrad([model, bias], lr=0.1)

    def of(bags):
        starts = torch.tensor(np.cumsum([0] + [len(x) for x in bags[:-1]]))
        weights = torch.cat([torch.full((len(x),), max(1, len(x)) ** -0.5) for x in bags])
        return F.embedding_bag(torch.cat(bags), model, starts, mode="sum", per_sample_weights=weights) + bias

    bags, y = [bag(*row[:2], buckets) for row in train], torch.from_numpy(label_array(train, task))
    an_epoch = len(bags) // 64 + 1
    for picked in (part for _ in range(epochs) for part in np.array_split(rng.permutation(len(bags)), an_epoch)):
        optimizer.zero_grad()
        loss_of(of([bags[i] for i in picked]), y[picked]).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = {split: as_labels(task, of([bag(*row[:2], buckets) for row in rows]).numpy())
                     for split, rows in dev.items()}
    gold = {split: Encoded(None, label_array(rows, task)) for split, rows in dev.items()}
    return scores(task, gold, predicted)


# ---- GLUE: checkpoints, the table, the grid, the leaderboard's files -----------------------------------------------

LRS, DECAYS = (0.5, 0.75, 1, 1.5, 2, 2.5), (0.1, 0.01)      # App. C.1: the grid, 1e-5 to 5e-5 in units of 2e-5
MNLI_FIRST = ("RTE", "STS-B", "MRPC")   # App. C.1: encoder and pooler start from those fine-tuned on MNLI


def load_finetuned(path, device="cpu"):
    """(Finetuned, Tokenizer, {"task", "n", "dev", "key"}) of what finetune --save wrote; UserError if it is none."""
    content = autobert.load_tensors(path, device)
    kinds = {"task": str, "n": int, "dev": dict, "key": str}
    if not all(type(content.get(key)) is kind for key, kind in kinds.items()) or content["task"] not in TASKS \
            or content["n"] < 8:
        raise UserError(f"checkpoint {str(path)!r}: not fine-tuned; expected what glue.py finetune --save wrote")
    task = TASKS[content["task"]]
    model, tokenizer = autobert.from_content(content, path, device, lambda config, backbone: Finetuned(
        autobert.AutoBert(config, backbone), head_of(task)[1], False))
    return model.eval(), tokenizer, {key: content[key] for key in kinds}


def save_finetuned(path, model, tokenizer, task, settings, result, key):
    """Write what load_finetuned reads; key is the run's fingerprint."""
    autobert.save_checkpoint(path, model, tokenizer, task=task, n=settings.n, dev=result, key=key)


def kept_run(path, key, result, device):
    """The model of a finished run if it is what the file holds, else None."""
    model, _, more = load_finetuned(path, device) if path and path.exists() else (None, None, {})
    return model if (more.get("key"), more.get("dev")) == (key, result) else None


def mnli_encoder(path, encoder, tokenizer, device):
    """The encoder in a checkpoint fine-tuned on MNLI; UserError if it is not of the same model."""
    model, other, more = load_finetuned(path, device)
    found = more["task"], model.encoder.config, model.encoder.backbone, other.proto
    if found != ("MNLI", encoder.config, encoder.backbone, tokenizer.proto):
        raise UserError(f"--mnli {str(path)!r}: {found[0]}, expected MNLI with --checkpoint's model and tokenizer")
    return model.encoder


def shown(task, split):
    """The name of a dev or test split. Example: MNLI, "dev_mm" -> "MNLI-mm"; RTE, "test" -> "RTE" """
    return task.name + ("" if len(task.dev) == 1 else "-mm" if split.endswith("_mm") else "-m")


TABLE = ("task", "rows", "metric", "median", "min", "max", "beside it", "majority")


def table_rows(task, dev, results, constant, small):
    """A row of TABLE per dev split: `results`, one per seed, x 100."""
    task, rows = find_task(task), []
    name = task.metric(small)
    for split in dev:
        end = split.removeprefix("dev")
        values = {metric: [100 * result[metric + end] for result in results] for metric in task.metrics}
        beside = ", ".join(f"{metric} {np.median(x):.1f}" for metric, x in values.items() if metric != name)
        own = values[name]
        rows.append([shown(task, split), len(dev[split].labels), name, float(np.median(own)), min(own), max(own),
                     beside, 100 * constant[name + end]])
    return rows


def average_row(rows):
    """The mean of the medians, and of the majority's scores: "AVG" if all nine are there, else "AVG of" how many."""
    whole = len(rows) == sum(len(task.dev) for task in TASKS.values())
    return ["AVG" if whole else f"AVG of {len(rows)}", sum(row[1] for row in rows), "",
            float(np.mean([row[3] for row in rows])), "", "", "", float(np.mean([row[7] for row in rows]))]


def fingerprint(encoder, train, dev, settings):
    """Twelve hex digits of all that decides a run but its learning rate, weight decay and seed."""
    digest = hashlib.sha256(json.dumps(asdict(replace(settings, lr=0.0, weight_decay=0.0))).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    for part in (train, *dev.values()):
        for array in (part.rows.tokens, part.rows.ends, part.labels):
            digest.update(array.tobytes())
    return digest.hexdigest()[:12]


def submission(checkpoints, folder, settings, device, cache=None):
    """{file name: text} of the leaderboard's files: a prediction for every row of the test files, whose labels, if
    they have any, are never read. UserError if two checkpoints are of one task."""
    files = {}
    for path in checkpoints:
        model, tokenizer, more = load_finetuned(path, device)
        autobert.few_threads(model.encoder.config)
        task = TASKS[more["task"]]
        for split in task.test:
            rows = load_split(folder, task, split, tokenizer, more["n"], cache).rows
            found = predict(model, task, rows, settings, device)
            said = [task.labels[i] for i in found] if task.labels else [f"{min(5, max(0, x)):.3f}" for x in found]
            name = f"{shown(task, split)}.tsv"
            if name in files:
                raise UserError(f"checkpoint {str(path)!r}: another one is of {task.name}, too; expected one a task")
            files[name] = autobert.tsv(("index", "prediction"), *enumerate(said))
    return files


# ---- SQuAD (Appendix C.2): reading and scoring ---------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One question on one passage."""
    id: str
    text: str
    context: str
    answers: list               # of (text, first character); [] if there is none
    v2: bool                    # from a v2.0 file, whose questions may have no answer


def parse_squad(dataset):
    """The parsed official JSON (the whole, or its "data") -> [Question]. ValueError with the place if it is none."""
    place, entries = "", []
    try:
        for a, article in enumerate(dataset["data"] if isinstance(dataset, dict) else dataset):
            for p, paragraph in enumerate(article["paragraphs"]):
                place = f"data[{a}].paragraphs[{p}]"
                context = paragraph["context"]
                for i, qa in enumerate(paragraph["qas"]):
                    place = f"data[{a}].paragraphs[{p}].qas[{i}]"
                    answers = [(answer["text"], answer["answer_start"]) for answer in qa["answers"]]
                    entries.append((qa["id"], qa["question"], context, answers, "is_impossible" in qa))
    except (LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{type(error).__name__} {error} behind {place or 'its beginning'}") from None
    v2 = any(entry[-1] for entry in entries)
    return [Question(*entry[:-1], v2) for entry in entries]


def read_squad(path):
    """train or dev, v1.1 or v2.0, as .json, .json.xz or .json.gz -> [Question]. UserError if anything is wrong."""
    try:
        questions = parse_squad(json.loads("".join(line for _, line in data.read_lines(path))))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: {error}; expected SQuAD's JSON") from None
    seen = set()
    for q in questions:
        kinds = [(x, str) for x in (q.id, q.text, q.context, *(text for text, _ in q.answers))]
        if not all(isinstance(x, kind) for x, kind in kinds + [(start, int) for _, start in q.answers]) \
                or any(isinstance(start, bool) for _, start in q.answers):
            raise UserError(f"{path}, question {repr(q.id)[:60]}: expected text, and numbers for answer_start")
        if any(ord(c) >> 11 == 27 for x, _ in kinds for c in x):
            raise UserError(f"{path}, question {q.id[:60]!r}: half a UTF-16 pair; expected whole characters")
        for text, start in q.answers:
            if not 0 <= start <= len(q.context) or q.context[start:start + len(text)] != text:
                raise UserError(f"answer {text[:60]!r}, {path}, question {q.id[:60]}: expected at character {start}")
        if q.id in seen or not (q.answers or q.v2):
            raise UserError(f"question {q.id[:60]!r}, {path}: " + ("twice; expected every id once" if q.id in seen else
                                                              "no answer; expected one, or is_impossible as in v2.0"))
        seen.add(q.id)
    if not questions:
        raise UserError(f"0 questions, {path}: expected at least one")
    return questions


_ARTICLES, _PUNCTUATION = re.compile(r"\b(a|an|the)\b"), str.maketrans("", "", string.punctuation)


def normalize_answer(text):
    """Lower case, no ASCII punctuation, no articles, single spaces. Example: "The  U.S. Army!" -> "us army" """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def question_scores(question, text):
    """(exact, F1) of one predicted text, each the best over the gold answers, 0..1, as in the official scorers."""
    golds, said = [gold for gold, _ in question.answers], normalize_answer(text).split()
    if question.v2:                                                 # no answer is written as one empty gold
        golds = [gold for gold in golds if normalize_answer(gold)] or [""]
    exact = f = 0.0
    for gold in (normalize_answer(gold).split() for gold in golds):
        common = sum((Counter(gold) & Counter(said)).values())
        exact = max(exact, float(gold == said))
        # the two official scorers differ when both are empty: v2.0 gives F1 1, v1.1 gives 0
        f = max(f, 2 * common / (len(gold) + len(said)) if common else float(question.v2 and not gold and not said))
    return exact, f


def squad_scores(dataset, predictions):
    """{"exact", "f1", "total"} in 0..100, for v2.0 also HasAns_ and NoAns_ of each. dataset: the official JSON (or
    its "data"), or [Question]; predictions: {id: text}. CHOICE: a missing id scores 0, as in the v1.1 scorer."""
    ready = isinstance(dataset, list) and all(isinstance(q, Question) for q in dataset)
    questions = dataset if ready else parse_squad(dataset)
    if not questions:
        raise ValueError("0 questions: expected at least one")
    each = np.array([question_scores(q, predictions[q.id]) if q.id in predictions else (0.0, 0.0) for q in questions])
    has = np.array([bool(q.answers) for q in questions])
    result, parts = {}, {"": has | True, **({"HasAns_": has, "NoAns_": ~has} if questions[0].v2 else {})}
    for name, part in parts.items():
        if part.any():
            exact, f = 100 * each[part].mean(0)
            result |= {name + "exact": float(exact), name + "f1": float(f), name + "total": int(part.sum())}
    return result


def random_span_scores(questions, seed=0):
    """The scores of a random answer: 1 to 3 neighbouring words of the passage, uniformly drawn."""
    rng, predictions = np.random.default_rng(seed), {}
    for q in questions:
        words = q.context.split() or [""]
        first, length = rng.integers(len(words)), rng.integers(1, 4)
        predictions[q.id] = " ".join(words[first:first + length])
    return squad_scores(questions, predictions)


# ---- SQuAD: windows, decoding, fine-tuning -------------------------------------------------------------------------

NBEST = 20
INSIDE = "an end inside a piece"
WINDOW = np.dtype([(name, np.int32) for name in (
    "question",                 # index into the questions
    "asked", "asked_end",       # the question's tokens: Windows.asked[asked:asked_end]
    "begin", "end",             # the stretch of the passage: Windows.tokens[begin:end]
    "first", "last")])          # positions in the row of the gold answer's first and last token; 0, 0 = not in here


@dataclass(frozen=True, eq=False)
class Windows:
    """Every question with every stretch of its passage that fits, in the order of the questions. Compact: a passage is
    held once, and windows[i] makes the row (ids, segments): [CLS] question [SEP] stretch of the passage [SEP]."""
    tokens: np.ndarray          # (T,) int32, of all passages
    offsets: np.ndarray         # (T, 2) int32: characters of a token, begin and end
    asked: np.ndarray           # int32, tokens of all questions
    table: np.ndarray           # (windows,) WINDOW

    def __len__(self):
        return len(self.table)

    def __getitem__(self, i):
        w = self.table[i]
        asked, tokens = self.asked[w["asked"]:w["asked_end"]], self.tokens[w["begin"]:w["end"]]
        ids = np.concatenate([[data.CLS], asked, [data.SEP], tokens, [data.SEP]], dtype=np.int32)
        return ids, (np.arange(len(ids)) > len(asked) + 1).astype(np.int32)


def token_span(answers, offsets):
    """First and last token that the first gold answer touches; (-1, -1) if there is no answer, or no such token."""
    text, start = answers[0] if answers else ("", 0)
    first = int(np.searchsorted(offsets[:, 1], start, side="right"))            # the first that ends behind its start
    last = int(np.searchsorted(offsets[:, 0], start + len(text), side="left")) - 1
    return (first, last) if answers and first <= last else (-1, -1)


def owners(starts, ends):
    """(tokens,) the number of the window with the most context for each token, as in BERT: the smaller of the numbers
    of tokens left and right of it, then the longer window, then the earlier one. Windows overlap and begin at 0."""
    best, owner = np.full(ends[-1], -1.0), np.zeros(ends[-1], np.int64)
    for window, (start, end) in enumerate(zip(starts, ends)):
        at = np.arange(start, end)
        context = np.minimum(at - start, end - 1 - at) + 0.01 * (end - start)
        owner[start:end] = np.where(context > best[start:end], window, owner[start:end])
        best[start:end] = np.maximum(context, best[start:end])
    return owner


def squad_windows(questions, tokenizer, s):
    """[Question] -> Windows."""
    tokens, offsets, all_asked, table, known = array("i"), array("i"), array("i"), array("i"), None
    for index, q in enumerate(questions):
        if q.context is not known:                                  # questions of one paragraph share the string
            known, base, (ids, spans) = q.context, len(tokens), tokenizer.encode_with_offsets(q.context)
            tokens.extend(ids)
            offsets.extend(chain.from_iterable(spans))
            spans = np.array(spans, dtype=np.int32).reshape(-1, 2)
        asked = tokenizer.encode(q.text)[:min(s.max_question, s.n - 4)]
        all_asked.extend(asked)
        room = s.n - len(asked) - 3
        stride = min(s.stride, room)
        first, last = token_span(q.answers, spans)
        for start in range(0, max(1, len(ids) - room + stride), stride):
            end, shift = min(start + room, len(ids)), len(asked) + 2 - start    # passage token -> position in the row
            gold = (first + shift, last + shift) if start <= first and last < end else (0, 0)
            table.extend((index, len(all_asked) - len(asked), len(all_asked), base + start, base + end, *gold))
    flat = [np.array(part, dtype=np.int32) for part in (tokens, offsets, all_asked, table)]
    return Windows(flat[0], flat[1].reshape(-1, 2), flat[2], flat[3].view(WINDOW))


def best_spans(logits, owned, max_answer):
    """(score, start logit, end logit, first, last) of the NBEST best spans, best first; they begin at an owned token.
    logits: (m, 2) of the passage's tokens.

    DEVIATION: BERT combines the 20 best starts with the 20 best ends; here all legal spans compete, which finds the
    same spans or some that the model scores higher, and leaves the list empty only where there is no text."""
    if not owned.any():
        return []
    (start, end), max_answer = logits.astype(np.float64).T, min(max_answer, len(logits))
    ends = np.lib.stride_tricks.sliding_window_view(np.append(end, np.full(max_answer - 1, -np.inf)), max_answer)
    score = np.where(owned[:, None], start[:, None] + ends, -np.inf).ravel()    # [first * max_answer + last - first]
    best = np.argpartition(-score, NBEST)[:NBEST] if score.size > NBEST else np.arange(score.size)
    best = best[np.lexsort((best, -score[best]))]
    first, more = np.divmod(best[score[best] > -np.inf], max_answer)
    return list(zip((start[first] + end[first + more]).tolist(), start[first].tolist(), end[first + more].tolist(),
                    first.tolist(), (first + more).tolist()))


def n_best(context, windows, table, outputs, s):
    """The windows of one question and the iterator of their logits -> ([(score, start logit, end logit, text)] with
    at most NBEST different texts, best first, and the null (score, start logit, end logit), the least of all)."""
    begin, found, null = table["begin"][0], [], (np.inf, 0.0, 0.0)
    owner = owners(table["begin"] - begin, table["end"] - begin)
    for i, w, logits in zip(range(len(table)), table, outputs):     # subtle: outputs last, zip must not eat one more
        m, first = w["end"] - w["begin"], w["asked_end"] - w["asked"] + 2
        null = min(null, (float(logits[0].astype(np.float64).sum()), *logits[0].tolist()))
        own = owner[w["begin"] - begin:w["end"] - begin] == i
        found += [(*scores, *windows.offsets[w["begin"] + [i, j], [0, 1]].tolist())
                  for *scores, i, j in best_spans(logits[first:first + m], own, min(m, s.max_answer))]
    texts = {}
    for *scores, i, j in sorted(found, key=lambda span: -span[0]):
        if len(texts) < NBEST and context[i:j].strip():
            texts.setdefault(context[i:j].strip(), scores)
    return [(*scores, text) for text, scores in texts.items()], null


def decode_squad(questions, windows, outputs, s, nbest=None):
    """outputs: (n, 2) logits of start and end, window by window -> {id: (text, margin)}, one for every question: the
    best span over its windows, '' if there is none; null score - score of that span, so '' is the answer where
    margin > tau. nbest: a dict, takes {id: BERT's list of the NBEST best texts}."""
    answers, outputs = {}, iter(outputs)
    bounds = np.searchsorted(windows.table["question"], np.arange(len(questions) + 1))
    for q, begin, end in zip(questions, bounds, bounds[1:]):
        found, null = n_best(q.context, windows, windows.table[begin:end], outputs, s)
        answers[q.id] = (found[0][3], null[0] - found[0][0]) if found else ("", math.inf)
        if nbest is not None:
            found = sorted(found + [(*null, "")] * (q.v2 or not found), key=lambda span: -span[0])
            shares = np.exp([span[0] - found[0][0] for span in found])
            nbest[q.id] = [{"text": text, "probability": float(share), "start_logit": start, "end_logit": end}
                           for (_, start, end, text), share in zip(found, shares / shares.sum())]
    return answers


def squad_predictions(questions, answers, tau=0.0):
    """What decode_squad gives -> {id: text}; only a v2.0 file's questions can be judged to have no answer."""
    return {q.id: "" if q.v2 and answers[q.id][1] > tau else answers[q.id][0] for q in questions}


def best_tau(questions, answers):
    """The threshold with the best F1 on these questions, the smallest on a tie. One sorted sweep."""
    margins = np.array([answers[q.id][1] for q in questions])
    gain = np.array([question_scores(q, answers[q.id][0])[1] - question_scores(q, "")[1] for q in questions])
    order = np.argsort(margins, kind="stable")
    margins, total = margins[order], np.cumsum(gain[order])         # total[i]: answer all with margin <= margins[i]
    total[np.append(margins[1:] == margins[:-1], False)] = -np.inf  # equal margins are answered together
    i = int(total.argmax())
    return float(margins[i]) if total[i] > 0 else float(margins[0]) - 1.0


def gold_logits(windows):
    """Yield what a model that knows the gold spans would say of each window, (n, 2)."""
    for w in windows.table:
        logits = np.zeros((w["asked_end"] - w["asked"] + w["end"] - w["begin"] + 3, 2), dtype=np.float32)
        logits[w["first"], 0] = logits[w["last"], 1] = 1
        yield logits


def gold_check(questions, tokenizer, s):
    """Every gold answer, and every "no answer", through windows and decoding with its own span fed in ->
    [(Question with this answer alone, text found, reason)]; reason: why the gold text cannot come back, or ""."""
    golds = [replace(q, id=f"{q.id} {k}", answers=answers) for q in questions
             for k, answers in enumerate([[answer] for answer in dict.fromkeys(q.answers)] or [[]])]
    windows, result = squad_windows(golds, tokenizer, s), []
    found = squad_predictions(golds, decode_squad(golds, windows, gold_logits(windows), s))
    whole = {int(w["question"]): w for w in windows.table if w["first"]}
    for index, q in enumerate(golds):
        w, reason = whole.get(index), ""
        if w is None:
            reason = "in no window" if q.answers else ""
        elif w["last"] - w["first"] >= s.max_answer:
            reason = f"over {s.max_answer} tokens"
        else:
            at = w["begin"] - (w["asked_end"] - w["asked"] + 2) + [w["first"], w["last"]]
            cut = q.context[slice(*windows.offsets[at, [0, 1]])]    # the text of the tokens that the answer touches
            reason = "" if question_scores(q, cut)[0] else INSIDE
        result.append((q, found[q.id], reason))
    return result


def fit_squad(encoder, windows, settings, seed, device, tell=False):
    """A copy of the encoder with a head for start and end, fine-tuned on Windows; tell: with lines of progress."""
    gold = np.stack([windows.table["first"], windows.table["last"]], axis=1).astype(np.int64)
    return fit(encoder, 2, F.cross_entropy, Encoded(windows, gold), settings, seed, device, True, tell=tell)


def answer_squad(model, questions, tokenizer, settings, device, nbest=None):
    """Decoded answers of a fine-tuned model, see decode_squad. Only one batch of logits is ever held."""
    windows, step = squad_windows(questions, tokenizer, settings), settings.eval_batch
    batches = ([windows[j] for j in range(i, min(i + step, len(windows)))] for i in range(0, len(windows), step))
    outputs = (output for batch in batches for output in outputs_of(model, batch, settings, device))
    return decode_squad(questions, windows, outputs, settings, nbest)


def judge_squad(questions, answers):
    """Decoded answers -> {"tau 0": squad_scores}, for v2.0 also "best tau", the threshold that is best on these very
    questions; each with "tau"."""
    taus = {"tau 0": 0.0} | ({"best tau": best_tau(questions, answers)} if questions[0].v2 else {})
    return {name: squad_scores(questions, squad_predictions(questions, answers, tau)) | {"tau": tau}
            for name, tau in taus.items()}


def finetune_squad(encoder, tokenizer, train, dev, settings=SQUAD_PRESETS["toy"], seed=0, device="cpu"):
    """[Question], [Question] -> squad_scores on dev at tau = 0, and "score" = F1 / 100."""
    model = fit_squad(encoder, squad_windows(train, tokenizer, settings), settings, seed, device)
    result = judge_squad(dev, answer_squad(model, dev, tokenizer, settings, device))["tau 0"]
    return result | {"score": result["f1"] / 100}


# ---- command line: what the commands share -------------------------------------------------------------------------


def show(header, rows, out=None, printed=True):
    """Print a table, and write it to `out` as TSV."""
    rows = [header, *([f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows * printed:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if out:
        data.write_beside(out, autobert.tsv(*rows))


def teach():
    """The tasks, and what the metrics say of a few predictions."""
    show(["task", "texts", "labels", "scored by"],
         [[t.name, len(t.columns), " ".join(t.labels or ["0..5"]), ", ".join(t.metrics)] for t in TASKS.values()])
    gold = [1, 1, 1, 0, 1, 0, 1, 0]
    print(f"\nWhat metrics say (x 100) where gold is {gold}")
    rows = [[said, *(100 * metric(gold, said) for metric in METRICS.values())] for said in (
        gold, [1, 1, 0, 0, 1, 0, 1, 1], [1] * 8, [0] * 8, [.9, .9, .8, .3, .7, .1, .9, .2], [0, 0, 0, 1, 0, 1, 0, 1])]
    show(["predicted", *METRICS], rows)


def resolved(args, preset, device, config=None):
    """The preset with what was given on the command line put in; printed with the other arguments."""
    given = {f.name: getattr(args, f.name, None) for f in fields(preset)}
    if given["precision"] == "auto":
        given["precision"] = "bf16" if device.type == "cuda" else "fp32"
    if config and "small" in args and args.small is None:           # Table 4 scores this size by accuracy
        small = autobert.SIZES["small"]
        given["small"] = (config.layers, config.hidden) == (small.layers, small.hidden)
    settings = replace(preset, **{key: value for key, value in given.items() if value is not None})
    if config and settings.n > config.positions:
        raise UserError(f"--n {settings.n}: expected at most {config.positions}, the model's positions")
    read = {f.name: getattr(settings, f.name) for f in fields(settings) if args.command in f.metadata["of"]}
    print(json.dumps(vars(args) | read | {"device": str(device)}), flush=True)
    return settings


def check_outputs(args, *inputs):
    """UserError unless everything that args name to write can be written, and is none of the others or the inputs."""
    taken = {os.path.realpath(path) for path in inputs if path and path != "auto"}
    folders = ["cache", {"predict": "out", "pays": "out", "squad": None}.get(args.command, "save")]
    for name in ("out", "save", "cache", "predictions", "null_odds", "nbest"):
        path, flag = getattr(args, name, None), "--" + name.replace("_", "-")
        if path is None:
            continue
        data.check_out(path, flag, folder=name in folders)
        if name not in folders and os.path.realpath(path) in taken:
            raise UserError(f"{flag} {path!r}: the same file as another that is read or written here")
        taken.add(os.path.realpath(path))


# ---- command line: GLUE --------------------------------------------------------------------------------------------


def opened(args):
    """(encoder, Tokenizer, settings, device) that finetune and grid are asked to take."""
    device = autobert.find_device(args.device)
    if args.mnli == "auto" and "MNLI" not in args.task:
        raise UserError("--mnli auto: expected MNLI among the tasks, as with --task all, or an MNLI checkpoint's path")
    content = autobert.load_tensors(args.checkpoint, device)
    tuned = isinstance(content, dict) and "task" in content
    model, tokenizer, *_ = load_finetuned(args.checkpoint, device) if tuned else autobert.from_content(
        content, args.checkpoint, device)
    autobert.few_threads(model.encoder.config)
    return model.encoder, tokenizer, resolved(args, PRESETS[args.preset], device, model.encoder.config), device


def asked_tasks(args, *inputs):
    """The tasks that --task names. UserError if an output would take the place of one of their files or the inputs."""
    tasks = [TASKS[name] for name in args.task]
    check_outputs(args, *inputs, *(task_file(args.glue, task, split) for task in tasks for split in task.files))
    return tasks


def one_run(start, task, train, dev, settings, run, device, several=False):
    """train_task at run = (.., learning rate, weight decay, seed), with a line of progress. If it diverges, an error,
    or for one of several None and the worst of scores: the others are still worth having."""
    *_, lr, decay, seed = run
    try:
        model, result = train_task(start, task, train, dev, replace(settings, lr=lr, weight_decay=decay), seed, device)
    except Diverged:
        if not several:
            raise
        return None, {"score": -math.inf}
    log(task=task, seed=seed, lr=f"{lr:g}", weight_decay=decay, **result)
    return model, result


def judged(args, cells=None, done=None, note=lambda run, result: None):
    """Yield (Task, dev, settings, baseline, {(lr, decay): [result of each seed]}) for each task that is asked for.

    done: {(fingerprint, task, lr, decay, seed): result}, runs that are not repeated; new ones are added and note(run,
    result) called. The best run of a task goes to --save; with --mnli auto those of MNLI_FIRST start from MNLI's. If
    the best was done earlier and --save does not hold its model, it alone is repeated."""
    encoder, tokenizer, settings, device = opened(args)
    done, cells = {} if done is None else done, list(dict.fromkeys(cells or [(settings.lr, settings.weight_decay)]))
    first = mnli_encoder(args.mnli, encoder, tokenizer, device) if args.mnli not in (None, "auto") else None
    tasks = sorted(asked_tasks(args, args.checkpoint, args.mnli), key=lambda task: task.name != "MNLI")
    for task in tasks[1:]:                                          # a bad row of a late task is told before hours pass
        for split in ("train", *task.dev):
            for _ in examples_of(args.glue, task, split):
                pass
    for task in tasks:
        train, dev = load_task(args.glue, task, tokenizer, settings.n, args.cache)
        start = first if first and task.name in MNLI_FIRST else encoder
        path, key = args.save and Path(args.save) / f"{task.name}.pt", fingerprint(start, train, dev, settings)
        train_at = partial(one_run, start, task.name, train, dev, settings, device=device)
        runs = {cell: [(key, task.name, *cell, args.seed + i) for i in range(args.seeds)] for cell in cells}
        best = kept = None
        for run in chain.from_iterable(runs.values()):
            model = None
            if run not in done:
                model, done[run] = train_at(run, several=len(cells) > 1)
                note(run, done[run])
            if best is None or done[run]["score"] > done[best]["score"]:        # the first of equals
                best, kept = run, model
                if path and model:
                    save_finetuned(path, model, tokenizer, task.name, settings, done[run], key)
        leads = args.mnli == "auto" and task.name == "MNLI"
        if (path or leads) and not kept and not (kept := kept_run(path, key, done[best], device)):
            kept, result = train_at(best)
            if path:
                save_finetuned(path, kept, tokenizer, task.name, settings, result, key)
        first = kept.encoder if leads else first
        yield task, dev, settings, majority(task, train, dev, settings.small), {
            cell: [done[run] for run in runs[cell]] for cell in cells}


def finetune_command(args):
    """fine-tune on GLUE tasks and score on dev"""
    found = {}
    for task, dev, settings, baseline, runs in judged(args):
        found[task.name] = table_rows(task, dev, *runs.values(), baseline, settings.small)
        rows = [row for name in TASKS for row in found.get(name, [])]
        last = len(found) == len(args.task)
        show(TABLE, [*rows, average_row(rows)], args.out, printed=last)         # kept, should a later task fail


CELL = ("settings", "task", "lr", "weight_decay", "seed", "score", "scores")


def cell_line(run, result):
    """A finished run (fingerprint, task, learning rate, weight decay, seed) as a line of a grid's --out."""
    return autobert.tsv((*run, result["score"], json.dumps(result)))


def add_cell(path, run, result):
    """Add a finished run to a grid's --out. Nothing else of it is written: two grids may share a file."""
    if not path.exists():
        data.write_beside(path, autobert.tsv(CELL))
    with open(path, "a", encoding="utf-8") as file:
        file.write(cell_line(run, result))


def read_cells(path):
    """What a grid has written to --out, {(settings, task, lr, decay, seed): result}; a line that a killed process
    has not finished is left out."""
    done = {}
    for number, line in data.read_lines(path):
        try:
            key, task, lr, decay, seed, _, result = cells = line.rstrip("\r\n").split("\t")
            if number > 1 and line.endswith("\n"):
                done[key, task, float(lr), float(decay), int(seed)] = result = json.loads(result)
                if math.isnan(result["score"]):
                    raise ValueError
            elif number == 1 and tuple(cells) != CELL:
                raise ValueError
        except (ValueError, TypeError, LookupError, RecursionError):
            if line.endswith("\n"):
                raise _wrong(f"{line.strip()[:60]!r}", path, number, "the columns " + " ".join(CELL)) from None
    return done


def grid_command(args):
    """search learning rates and weight decays; --out keeps what is finished"""
    args.lrs = args.lrs or [float(f"{times * PRESETS[args.preset].lr:.6g}") for times in LRS]
    out = args.out and Path(args.out)
    done = read_cells(out) if out and out.exists() else {}
    if done and not out.read_bytes().endswith(b"\n"):
        data.write_beside(out, autobert.tsv(CELL) + "".join(cell_line(*cell) for cell in done.items()))
    note = {"note": partial(add_cell, out)} if out else {}
    for task, _, settings, baseline, found in judged(args, product(args.lrs, args.decays), done, **note):
        scored = {cell: [100 * result["score"] for result in results] for cell, results in found.items()}
        best = max(scored, key=lambda cell: np.median(scored[cell]))
        learned = max(scored[best]) > -math.inf                     # else every run diverged
        metric = task.metric(settings.small) + " of m and mm" * (len(task.dev) > 1)
        print(f"\n{task.name}, {metric}; the majority has {100 * baseline['score']:.1f}")
        show(["lr", "weight decay", "median", "min", "max", ""], [
            [f"{lr:g}", f"{decay:g}", float(np.median(x)), min(x), max(x), "best" * (learned and (lr, decay) == best)]
            for (lr, decay), x in scored.items()])


def predict_command(args):
    """write the leaderboard's files and their zip"""
    device, out = autobert.find_device(args.device), Path(args.out)
    paths = [path for given in map(Path, args.checkpoint) for path in (
        sorted(given.glob("*.pt")) if given.is_dir() else [given])]
    if not paths:
        raise UserError(f"--checkpoint {' '.join(args.checkpoint)!r}: no .pt file in there")
    check_outputs(args)
    files = submission(paths, args.glue, resolved(args, FinetuneSettings(), device), device, args.cache)

    def pack(file):
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as whole:
            for name, text in files.items():
                whole.writestr(zipfile.ZipInfo(name), text)         # without the time of day: same bytes every time

    for name, text in files.items():
        data.write_beside(out / name, text)
    data.write_beside(out / "submission.zip", pack)
    missing = {f"{shown(task, split)}.tsv" for task in TASKS.values() for split in task.test}
    print(f"wrote {out / 'submission.zip'} with {', '.join(files)}; the leaderboard also wants "
          + ", ".join([*sorted(missing - set(files)), "WNLI.tsv", "AX.tsv"]))


def baseline_command(args):
    """score the commonest label and a linear model of the words on dev"""
    rows = []
    for task in asked_tasks(args):
        splits = {split: read_task(args.glue, task, split) for split in ("train", *task.dev)}
        gold = {split: Encoded(None, label_array(part, task)) for split, part in splits.items()}
        train = splits.pop("train")
        constant = majority(task, gold.pop("train"), gold, args.small)
        results = [bag_of_words(task, train, splits, seed) for seed in range(args.seed, args.seed + args.seeds)]
        log(task=task.name, **results[0])
        rows += table_rows(task, gold, results, constant, args.small)
    show(TABLE, [*rows, average_row(rows)], args.out)


# ---- command line: SQuAD -------------------------------------------------------------------------------------------


def load_squad(path, device):
    """(Pretraining, Tokenizer, None) of a checkpoint, or of one that `squad --save` wrote, which has a head for start
    and end beside, (Pretraining, Tokenizer, (Finetuned, its settings, the version of SQuAD it was trained on))."""
    content = autobert.load_tensors(path, device)
    model, tokenizer = autobert.from_content(content, path, device)
    if "squad" not in content:
        return model, tokenizer, None
    try:
        tuned = Finetuned(model.encoder, 2, True).to(device).eval()
        tuned.head.load_state_dict(content["squad"]["head"])
        settings = FinetuneSettings(**content["squad"]["settings"])
        for f in fields(settings):                                  # what the flags would refuse
            value, of = getattr(settings, f.name), f.metadata
            if type(value) is not f.type or not (
                    value in of["choices"] if of["choices"] else of["least"] <= value <= min(of["most"], 2**31)):
                raise ValueError(f"{f.name} {value!r}")
        return model, tokenizer, (tuned, settings, content["squad"]["version"])
    except (LookupError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        raise UserError(f"checkpoint {str(path)!r}: not a SQuAD head ({' '.join(str(error).split())[:80]})") from None


def save_squad(path, model, tuned, tokenizer, settings, version):
    """The pre-trained model with the fine-tuned encoder in place of its own, and the head: see load_squad."""
    model.encoder.load_state_dict(tuned.encoder.state_dict())
    head = {"head": tuned.head.state_dict(), "settings": asdict(settings), "version": version}
    autobert.save_checkpoint(path, model, tokenizer, squad=head)


def show_check(questions, tokenizer, settings, out):
    """Print what gold_check finds: shares, scores, and the first misses."""
    each, best = gold_check(questions, tokenizer, settings), {}
    reasons, scored = np.array([why for *_, why in each]), np.array([question_scores(q, text) for q, text, _ in each])
    names = [q.id.rsplit(" ", 1)[0] for q, *_ in each]              # of the questions, without the answer's number
    for name, (_, text, _), (exact, _) in zip(names, each, scored):
        if exact or name not in best:                               # an answer that comes back, if there is one
            best[name] = text
    parts = {"gold answers": np.full(len(each), True), "that fit a window": np.isin(reasons, ["", INSIDE]),
             "and begin and end with a piece": reasons == ""}
    parts |= {why: reasons == why for why in sorted(set(reasons)) if why}
    rows = [[name, int(part.sum()), *(f"{100 * share:.2f}" for share in (part.mean(), *scored[part].mean(0)))]
            for name, part in parts.items() if part.any()]
    scores = squad_scores(questions, best)
    rows.append(["questions, by their best", scores["total"], "", *(f"{scores[key]:.2f}" for key in ("exact", "f1"))])
    show(["gold spans fed in", "count", "%", "EM", "F1"], rows, out)
    misses = [(name, *gold) for name, gold, (exact, _) in zip(names, each, scored) if not exact]
    print(f"\n{len(misses)} misses" + (len(misses) > 20) * ", the first 20:")
    for name, q, text, why in misses[:20]:
        print(f"{name}: {q.answers[0][0] if q.answers else ''!r} -> {text!r}, {why or 'not found'}")


def squad_command(args):
    """fine-tune on SQuAD and score on dev"""
    device, version, head = autobert.find_device(args.device), "v2.0" if args.v2 else "v1.1", None
    if not (args.checkpoint or (args.check and args.tokenizer)):
        raise UserError("--checkpoint: expected; only --check can do with --tokenizer alone")
    if args.tokenizer and not args.check:
        raise UserError(f"--tokenizer {args.tokenizer}: only with --check; a checkpoint has its own")
    files = {file: read_squad(file) for file in filter(None, (args.train, args.dev))}
    for file, questions in files.items():
        if args.v2 != questions[0].v2:
            raise UserError(f"{file}: expected a {version} file, or {'no --v2' if args.v2 else '--v2'}")
    dev = files[args.dev]
    if args.checkpoint:
        model, tokenizer, head = load_squad(args.checkpoint, device)
        autobert.few_threads(model.encoder.config)
    tuned, before, trained_on = (None, None, version) if args.train or not head else head
    if trained_on != version:
        raise UserError(f"{args.checkpoint}: a head for SQuAD {trained_on}, {args.dev}: {version}; expected the same")
    check_outputs(args, args.checkpoint, args.train, args.dev, args.tokenizer)
    settings = resolved(args, before or SQUAD_PRESETS.get(f"{args.preset} {version}", SQUAD_PRESETS[args.preset]),
                        device, model.encoder.config if args.checkpoint else None)
    if args.check:
        tokenizer = data.Tokenizer.load(args.tokenizer) if args.tokenizer else tokenizer
        return show_check(dev, tokenizer, settings, args.out)
    if args.train:
        windows = squad_windows(files.pop(args.train), tokenizer, settings)
        tuned = fit_squad(model.encoder, windows, settings, args.seed, device, tell=True)
    elif not tuned:
        raise UserError(f"{args.checkpoint}: no head for SQuAD; expected --train, or what squad --save wrote")
    if args.save:
        save_squad(args.save, model, tuned, tokenizer, settings, version)
    nbest = {} if args.nbest else None
    answers = answer_squad(tuned, dev, tokenizer, settings, device, nbest)
    margins = {name: min(margin, sys.float_info.max) for name, (_, margin) in answers.items()}     # JSON has no inf
    for path, content in ((args.predictions, squad_predictions(dev, answers)), (args.null_odds, margins),
                          (args.nbest, nbest)):
        if path:
            data.write_beside(path, json.dumps(content, ensure_ascii=False) + "\n")
    table = judge_squad(dev, answers) | {"random span": random_span_scores(dev, args.seed)}
    if args.v2:
        table["always silent"] = squad_scores(dev, {q.id: "" for q in dev})
    columns = [key for key in table["random span"] if "total" not in key]
    rows = [[name, f"{scores['tau']:.3f}" if "tau" in scores else "", *(scores[key] for key in columns)]
            for name, scores in table.items()]
    show(["answers", "tau", *columns], rows, args.out)


# ---- command line: does pre-training pay? --------------------------------------------------------------------------


def toy_jobs(folder, tokenizer, device):
    """The toy tasks and SQuADs -> {name: (baseline score, job)}; job(encoder, seed=0)["score"] fine-tunes a copy."""
    jobs = {}
    for name in TASKS:
        train, dev = load_task(folder / "glue", name, tokenizer, FinetuneSettings.n)
        jobs[name] = (majority(name, train, dev)["score"],
                      partial(finetune, task=name, train=train, dev=dev, settings=FinetuneSettings(bucket=1),
                              device=device))
    for version in ("v1.1", "v2.0"):
        train, dev = (read_squad(folder / "squad" / f"{split}-{version}.json") for split in ("train", "dev"))
        silent = squad_scores(dev, {q.id: "" for q in dev})         # for v2.0 the majority
        jobs[f"SQuAD {version}"] = (max(random_span_scores(dev)["f1"], silent["f1"]) / 100, partial(
            finetune_squad, tokenizer=tokenizer, train=train, dev=dev, device=device))
    return jobs


def pays_command(args):
    """show on toy data what fine-tuning gains by pre-training"""
    check_outputs(args)
    device, rows = autobert.find_device(args.device), []
    autobert.few_threads(autobert.SIZES["toy"])                     # the same figures on any number of cores
    with tempfile.TemporaryDirectory() as folder:
        folder = data.write_toy(folder)
        tokenizer = data.Tokenizer.train([folder / "corpus.txt"], data.TOY_VOCAB)
        documents, jobs = data.load_corpus([folder / "corpus.txt"], tokenizer), toy_jobs(folder, tokenizer, device)
    config = replace(autobert.SIZES["toy"], vocab=tokenizer.vocab_size)
    backbone = autobert.at_depth(autobert.BACKBONES["autobert-zero"], config.layers)
    found = {name: [] for name in jobs}                             # per seed: scores from random and trained weights
    for seed in range(args.seed, args.seed + args.seeds):
        settings = replace(autobert.PRETRAIN["toy"], steps=args.steps, seed=seed)
        with autobert.seeded(seed):
            model = autobert.Pretraining(config, backbone)
        start = copy.deepcopy(model.encoder).to(device)
        batches = data.PretrainingData(documents, settings.n, settings.batch, config.vocab, seed)
        autobert.pretrain(model, batches, settings, device, lambda step, _, parts: log(seed=seed, step=step, **parts))
        for name, (_, job) in jobs.items():
            found[name].append([job(encoder, seed=seed)["score"] for encoder in (start, model.encoder)])
            log(seed=seed, task=name, random=found[name][-1][0], trained=found[name][-1][1])
    table = {name: (baseline, np.array(found[name])) for name, (baseline, _) in jobs.items()}
    parts = [table[name] for name in data.TOY_SEARCH_TASKS]         # what the toy search takes as fitness
    table["mean of " + " ".join(data.TOY_SEARCH_TASKS)] = tuple(np.mean([np.clip(x, 0, 1) for x in column], axis=0)
                                                                for column in zip(*parts))
    for name, (baseline, scored) in table.items():
        (random, trained), (sd, sd2) = 100 * scored.mean(axis=0), 100 * scored.std(axis=0)
        rows.append([name, *map(float, (100 * baseline, random, sd, trained, sd2, trained - random))])
    show(["task", "baseline", "random", "sd", "pre-trained", "sd", "gain"], rows,
         args.out and Path(args.out) / "pays.tsv")


# ---- command line: flags, and main ---------------------------------------------------------------------------------

COMMANDS = {"finetune": finetune_command, "grid": grid_command, "predict": predict_command,
            "baseline": baseline_command, "squad": squad_command, "pays": pays_command}
def task_names(text):
    """For argparse: what --task says as a list, in the order of TASKS. Example: "RTE,CoLA" -> ["CoLA", "RTE"]"""
    asked = list(TASKS) if text == "all" else text.split(",")
    if wrong := [name for name in asked if name not in TASKS]:
        raise argparse.ArgumentTypeError(f"{wrong[0]!r}, expected all, or some of {', '.join(TASKS)}, parted by commas")
    return [name for name in TASKS if name in asked]


_SQUAD_FILE = "official JSON, plain, .xz or .gz"
FLAGS = (  # the commands that have it, the flag, its help text, what else argparse shall know; then the settings' flags
    ("finetune grid", "--checkpoint", "what autobert.py pretrain, a search or supernet.py wrote", {"required": True}),
    ("predict", "--checkpoint", "what --save wrote: files or folders", {"required": True, "nargs": "+"}),
    ("squad", "--checkpoint", "what autobert.py pretrain, a search, supernet.py or --save wrote"),
    ("finetune grid predict baseline", "--glue", "the folder that holds CoLA, SST-2, ..", {"required": True}),
    ("finetune grid baseline", "--task", f"all, or some of {', '.join(TASKS)}: e.g. RTE,CoLA",
     {"type": task_names, "default": "all"}),
    ("finetune grid", "--mnli", f"where {', '.join(MNLI_FIRST)} start: MNLI.pt of --save; auto: MNLI's best of "
     "this run"),
    ("squad", "--train", _SQUAD_FILE + "; without it the checkpoint must be one that --save wrote, whose settings then "
     "stand for the preset's"),
    ("squad", "--dev", _SQUAD_FILE, {"required": True}),
    ("squad", "--v2", "the files are v2.0: a question may have no answer", {"action": "store_true"}),
    ("squad", "--check", "no model: feed in the gold spans, show which answers come back and which do not",
     {"action": "store_true"}),
    ("squad", "--tokenizer", "a tokenizer.model, for --check without a checkpoint"),
    ("finetune grid predict", "--cache", "a folder that keeps encoded rows for the next time"),
    ("finetune grid", "--save", "a folder for the best model of each task, TASK.pt"),
    ("squad", "--save", "a checkpoint to write, with the fine-tuned weights and head"),
    ("squad", "--predictions", "JSON to write, as the official scorers take it: id -> text, at tau = 0"),
    ("squad", "--null-odds", "JSON to write, for the v2.0 scorer: id -> null score - best span's"),
    ("squad", "--nbest", f"JSON to write: id -> the {NBEST} best texts"),
    ("finetune baseline squad", "--out", "a file to write"),
    ("grid", "--out", "a file that keeps finished runs; they are not repeated"),
    ("predict", "--out", "a folder for TASK.tsv and submission.zip", {"required": True}),
    ("pays", "--out", "a folder for pays.tsv"),
    ("finetune grid predict squad pays", "--device", "auto, cpu or cuda", {"default": "auto"}),
    ("finetune grid baseline squad pays", "--seed", "the first seed", {"type": data.number(int, 0, data.SEEDS - 10**5),
                                                                      "default": 0}),
    ("finetune grid baseline", "--seeds", "runs, from --seed on", {"type": data.number(int, 1, 10**5), "default": 1}),
    ("pays", "--seeds", "runs, from --seed on", {"type": data.number(int, 1, 10**5), "default": 3}),
    ("pays", "--steps", "of pre-training", {"type": data.number(int, 1), "default": 2000}),
    ("baseline", "--small", "score MRPC and QQP by accuracy", {"action": "store_true"}),
    ("grid", "--lrs", "learning rates; by default six, from half to 2.5 times the preset's",
     {"type": data.number(float, 0), "nargs": "+"}),
    ("grid", "--decays", "weight decays", {"type": data.number(float, 0), "nargs": "+", "default": list(DECAYS)}),
    ("finetune grid squad", "--preset", "settings for the toy size, or those of the paper for its sizes",
     {"choices": list(PRESETS), "default": "toy"}),
)


def setting_flags(parser, command):
    """A flag for each field of FinetuneSettings that the command reads; where not given, the preset's value stands."""
    presets = SQUAD_PRESETS if command == "squad" else PRESETS
    for f in (f for f in fields(FinetuneSettings) if command in f.metadata["of"]):
        values = {name: getattr(preset, f.name) for name, preset in presets.items()}
        usual = ", ".join(f"{name}: {value}" for name, value in values.items())
        usual = usual if len(set(values.values())) > 1 else f"default: {values['toy']}"
        how = {"action": argparse.BooleanOptionalAction} if f.type is bool else \
            {"choices": f.metadata["choices"]} if f.type is str else \
            {"type": data.number(f.type, f.metadata["least"], f.metadata["most"])}
        parser.add_argument("--" + f.name.replace("_", "-"), help=f"{f.metadata['help']} ({usual})", **how)


def main(argv=None):
    """The command line; see --help."""
    parser = data.Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command")
    for command, run in COMMANDS.items():
        one = commands.add_parser(command, help=run.__doc__)
        for of, flag, text, *how in FLAGS:
            if command in of:
                one.add_argument(flag, help=text, **dict(*how))
        setting_flags(one, command)
    args = parser.parse_args(argv)
    try:
        COMMANDS[args.command](args) if args.command else teach()
    except Diverged as error:
        raise UserError(f"{error}; expected finite numbers, a smaller --lr may help") from None


if __name__ == "__main__":
    data.run_cli(main)
