"""Fine-tuning and its scores: GLUE and SQuAD (paper: "Datasets and metrics", Appendix C, Tables 2 to 5).

A pre-trained encoder is judged by what it learns from labelled rows: a copy of it gets one linear map on top, all
weights are trained for a few epochs, and a metric compares its predictions with the gold labels of the dev file.
The search uses the mean of such scores as its fitness; the tables of the paper are such scores.

Glossary: B rows in a batch, n tokens in a row, d hidden size; gold = the file's label, predicted = the model's;
dev = the labelled rows a task is judged on (MNLI has two: matched, and mismatched, "mm"); window = a stretch of a
long passage that fits n tokens; null = "the passage has no answer", read at [CLS]; tau = the null threshold.

    python glue.py                                               what the tasks are, and what their metrics say
    python glue.py finetune --checkpoint C --glue FOLDER --task all
    python glue.py squad --checkpoint C --train train-v2.0.json --dev dev-v2.0.json --v2
    python glue.py squad --check --preset paper --tokenizer tokenizer.model --dev dev-v1.1.json     gold spans fed in
    python glue.py pays                                          does pre-training pay? at toy size, in minutes

Read after autobert.py.
"""
import copy
import json
import math
import re
import string
import sys
import tempfile
from array import array
from collections import Counter
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import chain
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
    """Pairs i < j with r[i] > r[j], r integers >= 0. Example: [2, 0, 1] -> 2

    Such a pair agrees in its upper bits and then has 1 before 0: count the ones before each zero, bit by bit. r stands
    in groups of equal upper bits, each in first order; a bit takes linear time."""
    r, total, at = r.copy(), 0, np.arange(len(r))
    for bit in reversed(range(int(r.max()).bit_length())):
        one = r >> bit & 1
        start = np.maximum.accumulate(np.where(np.diff(r >> bit + 1, prepend=-1), at, 0))       # of the own group
        ones_before = np.cumsum(one) - one
        ones_before -= ones_before[start]
        total += int(ones_before[one == 0].sum())
        zeros = np.bincount(start, 1 - one)[start].astype(np.int64)                             # in the own group
        to = start + np.where(one, zeros + ones_before, at - start - ones_before)
        r[to] = r.copy()                                            # zeros first, else in the order they stand
    return total


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
        label = task.labels.index(text) if task.labels else float(text)
    except ValueError:
        return None
    return label if 0 <= label <= 5 else None                       # NaN fails both comparisons


def read_task(folder, task, split):
    """folder/<TASK>/<file of split> -> [(text_a, text_b or None, label or None)]; label = id, or a float for STS-B.

    A train row of QQP that is too short is skipped and counted, as in BERT's reader; all else that is wrong is a
    UserError: no such task, split or file, a short row, an unknown label, no rows."""
    task = find_task(task)
    if split not in task.files:
        raise UserError(f"split {split!r} of {task.name}: expected one of {', '.join(task.files)}")
    path, test, examples, skipped = Path(folder) / task.name / task.files[split], split.startswith("test"), [], 0
    columns, header = (task.test_columns, True) if test else (task.columns, task.header)
    # not csv, which swallows rows after a `"`; nor splitlines, for which U+2028 within a text ends a line
    rows = [(number, line.rstrip("\r\n").split("\t")) for number, line in data.read_lines(path)]
    needed = 1 + max(columns + (() if test else (task.label,)))
    width = max(needed, len(rows[0][1])) if header and rows else needed         # a header also tells where -1 is
    for number, row in rows[header:]:
        if len(row) < width:
            if (task.name, split) == ("QQP", "train"):
                skipped += 1
                continue
            raise UserError(f"{len(row)} columns, {path}:{number}, expected {width}")
        label = None if test else _label(row[task.label], task)
        if label is None and not test:
            raise UserError(f"label {row[task.label]!r}, {path}:{number}, expected "
                            + ("a number 0 to 5" if task.labels is None else " or ".join(task.labels)))
        examples.append((row[columns[0]], row[columns[1]] if len(columns) > 1 else None, label))
    if skipped:
        log(task=task.name, file=path, short_rows_skipped=skipped)
    if not examples:
        raise UserError(f"0 rows, {path}, expected at least one")
    return examples


class Encoded(NamedTuple):
    """Rows as a model reads them, and what it shall say of each."""
    rows: list           # of (ids, segments), each (at most n,) int32
    labels: np.ndarray   # (rows,) int64 ids, float64 for STS-B; SQuAD: (rows, 2) positions of start and end


def encode_task(examples, task, tokenizer, n):
    """What read_task gives -> Encoded: [CLS] a [SEP] or [CLS] a [SEP] b [SEP], cut to n tokens. No label -> -1."""
    rows = [tuple(map(np.int32, data.pack(tokenizer.encode(a), None if b is None else tokenizer.encode(b), n)))
            for a, b, _ in examples]
    kind = np.float64 if find_task(task).labels is None else np.int64
    return Encoded(rows, np.array([-1 if label is None else label for _, _, label in examples], dtype=kind))


def load_task(folder, task, tokenizer, n):
    """-> (train: Encoded, dev: {split: Encoded}); MNLI has the two dev splits "dev" and "dev_mm"."""
    task = find_task(task)
    read = {split: encode_task(read_task(folder, task, split), task, tokenizer, n) for split in ("train", *task.dev)}
    return read.pop("train"), read


# ---- fine-tuning: one model and one loop for all tasks and SQuAD ---------------------------------------------------


@dataclass(frozen=True)
class FinetuneSettings:
    """Lengths in tokens; the last three are SQuAD's. The defaults suit the toy size."""
    epochs: int = 3
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1        # share of all steps
    batch: int = 16
    eval_batch: int = 128
    n: int = 40                # of a row; SQuAD: of a window
    small: bool = False        # score MRPC and QQP by accuracy, as Table 4 does for the small size
    stride: int = 24           # between the beginnings of two windows
    max_question: int = 16
    max_answer: int = 30


# the search's fast fine-tuning (appendix: "model evaluation phase"); CHOICE: batch 32, which is not given
PAPER = FinetuneSettings(lr=2e-5, warmup=0.01, batch=32, n=128)
PAPER_SQUAD = replace(PAPER, n=384, stride=128, max_question=64)    # v1.1: 3 epochs, batch 32; windows as BERT's
PRESETS = {"toy": FinetuneSettings(), "paper": PAPER}
SQUAD_PRESETS = {("toy", "v1.1"): FinetuneSettings(n=64), ("toy", "v2.0"): FinetuneSettings(n=64),
                 ("paper", "v1.1"): PAPER_SQUAD, ("paper", "v2.0"): replace(PAPER_SQUAD, epochs=2, batch=48)}


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


def fit(encoder, outputs, loss_of, train, settings, seed, device, per_token=False):
    """A fine-tuned copy of the encoder. Draws only from `seed`, whatever was drawn before. Diverged if it does."""
    order, step = np.random.default_rng(seed), 0
    steps = settings.epochs * math.ceil(len(train.rows) / settings.batch)
    with autobert.seeded(seed):                                     # 1. head and dropout from the seed
        model = Finetuned(encoder, outputs, per_token).to(device).train()
        optimizer = autobert.make_optimizer(model, settings.lr, settings.weight_decay)
        for _ in range(settings.epochs):
            shuffled = order.permutation(len(train.rows))           # 2. a new order in every epoch
            for picked in (shuffled[i:i + settings.batch] for i in range(0, len(shuffled), settings.batch)):
                batch = autobert.to_device(data.collate([train.rows[i] for i in picked]), device)
                labels = torch.from_numpy(train.labels[picked]).to(device)
                for group in optimizer.param_groups:                # 3. learning rate of this step
                    group["lr"] = autobert.lr_at(step, steps, settings.lr, settings.warmup)
                loss = loss_of(model(batch), labels)                # 4. forward, loss
                if not torch.isfinite(loss):
                    raise Diverged(f"loss {loss.item()} at step {step} of {steps}")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()                                     # 5. backward, clip, step
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                step += 1
    return model.eval()


@torch.no_grad()
def outputs_of(model, rows, settings, device):
    """The output for every row, a list of arrays: (outputs,) or (n of its batch, outputs). Diverged if not finite."""
    outputs = []
    for i in range(0, len(rows), settings.eval_batch):
        batch = autobert.to_device(data.collate(rows[i:i + settings.eval_batch]), device)
        outputs.extend(model(batch).float().cpu().numpy())
    if not all(np.isfinite(output).all() for output in outputs):
        raise Diverged("an output that is not finite")
    return outputs


def predict(model, task, rows, settings, device):
    """(rows,) class ids, or for STS-B numbers around 0..5."""
    outputs = np.stack(outputs_of(model, rows, settings, device))   # (rows, outputs)
    return outputs.argmax(1) if task.labels else outputs[:, 0] * 5


def scores(task, dev, predicted, small=False):
    """{split: Encoded}, {split: predictions} -> {"matthews": .., "accuracy": .., "score": ..}, for MNLI also
    "accuracy_mm". "score" is the task's own metric, for MNLI the mean of its two; it may be negative."""
    result = {metric + split.removeprefix("dev"): METRICS[metric](dev[split].labels, predicted[split])
              for split in dev for metric in task.metrics}
    result["score"] = float(np.mean([result[task.metric(small) + split.removeprefix("dev")] for split in dev]))
    return result


def finetune(encoder, task, train, dev, settings=FinetuneSettings(), seed=0, device="cpu"):
    """Train a copy of the encoder on `train` and score it on `dev`, as load_task gives them -> see `scores`."""
    task = find_task(task)
    loss_of, outputs = (F.cross_entropy, len(task.labels)) if task.labels else (score_loss, 1)
    model = fit(encoder, outputs, loss_of, train, settings, seed, device)
    predicted = {split: predict(model, task, dev[split].rows, settings, device) for split in dev}
    return scores(task, dev, predicted, settings.small)


def majority(task, train, dev, small=False):
    """The scores of a constant: the commonest label of train (the smaller id on a tie), or the mean for STS-B."""
    task = find_task(task)
    constant = np.bincount(train.labels).argmax() if task.labels else train.labels.mean()
    return scores(task, dev, {split: np.full(len(dev[split].labels), constant) for split in dev}, small)


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
                or any(ord(c) >> 11 == 27 for x, _ in kinds for c in x):  # half a UTF-16 pair
            raise UserError(f"{path}, question {q.id!r}: expected text, and numbers for answer_start")
        for text, start in q.answers:
            if start < 0 or q.context[start:start + len(text)] != text:
                raise UserError(f"answer {text!r}, {path}, question {q.id}: expected at character {start}")
        if q.id in seen or not (q.answers or q.v2):
            raise UserError(f"question {q.id!r}, {path}: " + ("twice; expected every id once" if q.id in seen else
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


def owners(starts, ends, total):
    """(windows, total) bool: True where the token is in the window with the most context for it, as in BERT: the
    smaller of the numbers of tokens left and right of it, then the longer window, then the earlier one."""
    at, starts, ends = np.arange(total), np.array(starts)[:, None], np.array(ends)[:, None]
    context = np.minimum(at - starts, ends - 1 - at)                # (windows, total), < 0 outside
    context = np.where(context < 0, -1, context + 0.01 * (ends - starts))
    return context.argmax(0) == np.arange(len(starts))[:, None]


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
    start, end = logits.astype(np.float64).T
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
    owned = owners(table["begin"] - begin, table["end"] - begin, table["end"][-1] - begin)
    for w, own, logits in zip(table, owned, outputs):               # subtle: outputs last, zip must not eat one more
        m, first = w["end"] - w["begin"], w["asked_end"] - w["asked"] + 2
        null = min(null, (float(logits[0].astype(np.float64).sum()), *logits[0].tolist()))
        own = own[w["begin"] - begin:w["end"] - begin]
        found += [(*scores, *windows.offsets[w["begin"] + [i, j], [0, 1]].tolist())
                  for *scores, i, j in best_spans(logits[first:first + m], own, s.max_answer)]
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


def fit_squad(encoder, windows, settings, seed, device):
    """A copy of the encoder with a head for start and end, fine-tuned on Windows."""
    gold = np.stack([windows.table["first"], windows.table["last"]], axis=1).astype(np.int64)
    return fit(encoder, 2, F.cross_entropy, Encoded(windows, gold), settings, seed, device, per_token=True)


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


def finetune_squad(encoder, tokenizer, train, dev, settings=SQUAD_PRESETS["toy", "v1.1"], seed=0, device="cpu"):
    """[Question], [Question] -> squad_scores on dev at tau = 0, and "score" = F1 / 100."""
    model = fit_squad(encoder, squad_windows(train, tokenizer, settings), settings, seed, device)
    result = judge_squad(dev, answer_squad(model, dev, tokenizer, settings, device))["tau 0"]
    return result | {"score": result["f1"] / 100}


# ---- command line --------------------------------------------------------------------------------------------------


def log(**pairs):
    """One line of progress, key=value, on stderr."""
    print(*(f"{k}={v:.4f}" if isinstance(v, float) else f"{k}={v}" for k, v in pairs.items()), file=sys.stderr)


def show(header, rows, out=None):
    """Print a table, and write it to `out` as TSV."""
    rows = [header, *([f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if out:
        data.write_beside(out, "".join("\t".join(row) + "\n" for row in rows))


def teach(args):
    """The tasks, and what the metrics say of a few predictions."""
    show(["task", "texts", "labels", "scored by"],
         [[t.name, len(t.columns), " ".join(t.labels or ["0..5"]), ", ".join(t.metrics)] for t in TASKS.values()])
    gold = [1, 1, 1, 0, 1, 0, 1, 0]
    print(f"\nWhat metrics say (x 100) where gold is {gold}")
    rows = [[said, *(100 * metric(gold, said) for metric in METRICS.values())] for said in (
        gold, [1, 1, 0, 0, 1, 0, 1, 1], [1] * 8, [0] * 8, [.9, .9, .8, .3, .7, .1, .9, .2], [0, 0, 0, 1, 0, 1, 0, 1])]
    show(["predicted", *METRICS], rows)


def resolved(args, preset, device):
    """The preset with what was given on the command line put in; printed with the other arguments."""
    given = {f.name: getattr(args, f.name) for f in fields(preset) if getattr(args, f.name) is not None}
    settings = replace(preset, **given)
    if settings.n < 8:
        raise UserError(f"--n {settings.n}: expected at least 8 tokens")
    print(json.dumps(vars(args) | asdict(settings) | {"device": str(device), "run": args.run.__name__}))
    return settings


def finetune_command(args):
    """fine-tune on GLUE tasks and score on dev"""
    device, rows, counted = autobert.find_device(args.device), [], []
    model, tokenizer = autobert.load_checkpoint(args.checkpoint, device)
    autobert.few_threads(model.encoder.config)
    settings = resolved(args, PRESETS[args.preset], device)
    for name in TASKS if args.task == "all" else [args.task]:
        train, dev = load_task(args.glue, name, tokenizer, settings.n)
        results, constant = [], majority(name, train, dev, settings.small)
        for seed in range(args.seed, args.seed + args.seeds):
            results.append(finetune(model.encoder, name, train, dev, settings, seed, device))
            log(task=name, seed=seed, **results[-1])
        for metric in list(constant)[:-1]:                          # without "score", which repeats one of them
            values = [100 * result[metric] for result in results]
            rows.append([name, metric, float(np.median(values)), float(np.std(values)), 100 * constant[metric]])
            if metric.removesuffix("_mm") == TASKS[name].metric(settings.small):
                counted.append(rows[-1][2:])
    average = np.mean(counted, axis=0).tolist()                     # m and mm of MNLI count apart: nine numbers
    rows.append(["AVG", f"of {len(counted)}", average[0], "", average[2]])
    show(["task", "metric", "median", "sd", "majority"], rows, args.out)


def load_squad(path, device):
    """(Pretraining, Tokenizer, Finetuned or None, its settings or None) of a checkpoint; a model that `squad --save`
    wrote is a checkpoint like any other, with a head for start and end beside."""
    content = autobert.load_tensors(path, device)
    model, tokenizer = autobert.from_content(content, path, device)
    if "squad" not in content:
        return model, tokenizer, None, None
    try:
        tuned = Finetuned(model.encoder, 2, True).to(device).eval()
        tuned.head.load_state_dict(content["squad"]["head"])
        return model, tokenizer, tuned, FinetuneSettings(**content["squad"]["settings"])
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"checkpoint {str(path)!r}: not a SQuAD head ({' '.join(str(error).split())[:80]})") from None


def save_squad(path, model, tuned, tokenizer, settings):
    """The pre-trained model with the fine-tuned encoder in place of its own, and the head: see load_squad."""
    model.encoder.load_state_dict(tuned.encoder.state_dict())
    head = {"head": tuned.head.state_dict(), "settings": asdict(settings)}
    autobert.save_checkpoint(path, model, tokenizer, squad=head)


def show_check(questions, tokenizer, settings, out):
    """Print what gold_check finds: shares, scores, and the first misses."""
    each, best = gold_check(questions, tokenizer, settings), {}
    reasons, scored = np.array([why for *_, why in each]), np.array([question_scores(q, text) for q, text, _ in each])
    for (q, text, _), (exact, _) in zip(each, scored):              # of a question: an answer that comes back
        if exact or q.id.rsplit(" ", 1)[0] not in best:
            best[q.id.rsplit(" ", 1)[0]] = text
    parts = {"gold answers": reasons != "-", "that fit a window": np.isin(reasons, ["", INSIDE]),
             "and begin and end with a piece": reasons == ""}
    parts |= {why: reasons == why for why in sorted(set(reasons)) if why}
    rows = [[name, int(part.sum()), *(f"{100 * share:.2f}" for share in (part.mean(), *scored[part].mean(0)))]
            for name, part in parts.items() if part.any()]
    scores = squad_scores(questions, best)
    rows.append(["questions, by their best", scores["total"], "", *(f"{scores[key]:.2f}" for key in ("exact", "f1"))])
    show(["gold spans fed in", "count", "%", "EM", "F1"], rows, out)
    misses = [gold for gold, (exact, _) in zip(each, scored) if not exact]
    print(f"\n{len(misses)} misses" + (len(misses) > 20) * ", the first 20:")
    for q, text, why in misses[:20]:
        print(f"{q.id.rsplit(' ', 1)[0]}: {q.answers[0][0] if q.answers else ''!r} -> {text!r}, {why or 'not found'}")


def squad_command(args):
    """fine-tune on SQuAD and score on dev"""
    device, version, tuned, before = autobert.find_device(args.device), "v2.0" if args.v2 else "v1.1", None, None
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
        model, tokenizer, tuned, before = load_squad(args.checkpoint, device)
        autobert.few_threads(model.encoder.config)
    settings = resolved(args, (not args.train and before) or SQUAD_PRESETS[args.preset, version], device)
    if args.checkpoint and settings.n > model.encoder.config.positions:
        raise UserError(f"--n {settings.n}: expected at most {model.encoder.config.positions}, the model's positions")
    if args.check:
        tokenizer = data.Tokenizer.load(args.tokenizer) if args.tokenizer else tokenizer
        return show_check(dev, tokenizer, settings, args.out)
    if args.train:
        windows = squad_windows(files.pop(args.train), tokenizer, settings)
        tuned = fit_squad(model.encoder, windows, settings, args.seed, device)
    elif not tuned:
        raise UserError(f"{args.checkpoint}: no head for SQuAD; expected --train, or what squad --save wrote")
    if args.save:
        save_squad(args.save, model, tuned, tokenizer, settings)
    nbest = {} if args.nbest else None
    answers = answer_squad(tuned, dev, tokenizer, settings, device, nbest)
    margins = {name: margin for name, (_, margin) in answers.items()}
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


def toy_jobs(folder, tokenizer, device):
    """The toy tasks and SQuADs -> {name: (baseline score, job)}; job(encoder, seed=0)["score"] fine-tunes a copy."""
    jobs = {}
    for name in TASKS:
        train, dev = load_task(folder / "glue", name, tokenizer, FinetuneSettings.n)
        jobs[name] = (majority(name, train, dev)["score"],
                      partial(finetune, task=name, train=train, dev=dev, device=device))
    for version in ("v1.1", "v2.0"):
        train, dev = (read_squad(folder / "squad" / f"{split}-{version}.json") for split in ("train", "dev"))
        silent = squad_scores(dev, {q.id: "" for q in dev})         # for v2.0 the majority
        jobs[f"SQuAD {version}"] = (max(random_span_scores(dev)["f1"], silent["f1"]) / 100, partial(
            finetune_squad, tokenizer=tokenizer, train=train, dev=dev, device=device))
    return jobs


def pays_command(args):
    """show on toy data what fine-tuning gains by pre-training"""
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


def main(argv=None):
    """The command line; see --help."""
    parser = data.Parser(description=__doc__.splitlines()[0])
    parser.set_defaults(run=teach)
    commands, parts = parser.add_subparsers(), {}
    for name, run in (("finetune", finetune_command), ("squad", squad_command), ("pays", pays_command)):
        one = parts[name] = commands.add_parser(name, help=run.__doc__)
        one.set_defaults(run=run)
        one.add_argument("--device", default="auto", help="auto, cpu or cuda")
        one.add_argument("--seed", type=data.number(int, 0, data.SEEDS), default=0, help="the first seed")
        one.add_argument("--out", help="a folder for pays.tsv" if name == "pays" else "a file to write")
    for name, count in (("finetune", 1), ("pays", 3)):
        parts[name].add_argument("--seeds", type=data.number(int, 1), default=count, help="runs, from --seed on")
    for name in ("finetune", "squad"):
        parts[name].add_argument("--checkpoint", required=name == "finetune", help="what autobert.py pretrain wrote")
        parts[name].add_argument("--preset", choices=list(PRESETS), default="toy")
        for f in fields(FinetuneSettings):
            number = data.number(f.type, int(f.type is int))
            how = {"action": "store_true", "default": None} if f.type is bool else {"type": number}
            parts[name].add_argument("--" + f.name.replace("_", "-"), **how, help="instead of the preset's")
    parts["finetune"].add_argument("--glue", required=True, help="the folder that holds CoLA, SST-2, ..")
    parts["finetune"].add_argument("--task", choices=["all", *TASKS], default="all")
    parts["squad"].add_argument("--train", help="official JSON, plain, .xz or .gz; without it the checkpoint must be "
                                "one that --save wrote, whose settings then stand for the preset's")
    parts["squad"].add_argument("--dev", required=True, help="official JSON, plain, .xz or .gz")
    for flag, what in (("v2", "the files are v2.0: a question may have no answer"),
                       ("check", "no model: feed in the gold spans, show which answers come back and which do not")):
        parts["squad"].add_argument("--" + flag, action="store_true", help=what)
    for flag, what in (("tokenizer", "a tokenizer.model, for --check without a checkpoint"),
                       ("save", "a checkpoint to write, with the fine-tuned weights and head"),
                       ("predictions", "JSON to write, as the official scorers take it: id -> text, at tau = 0"),
                       ("null-odds", "JSON to write, for the v2.0 scorer: id -> null score - best span's"),
                       ("nbest", f"JSON to write: id -> the {NBEST} best texts")):
        parts["squad"].add_argument("--" + flag, help=what)
    parts["pays"].add_argument("--steps", type=data.number(int, 1), default=2000, help="of pre-training")
    args = parser.parse_args(argv)
    try:
        args.run(args)
    except Diverged as error:
        raise UserError(f"{error}; expected finite numbers, a smaller --lr may help") from None


if __name__ == "__main__":
    data.run_cli(main)
