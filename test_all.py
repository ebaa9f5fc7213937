"""The specification as tests, in the order of the files, then whole runs, command lines and README.

Every hand-written part has an oracle that shares no code with it: torch's own modules, a naive loop, numbers worked
by hand, Python's own grammar, and `numpy_model`, the whole model in NumPy alone. Run: python -m pytest -q test_all.py
"""
import ast
import gc
import gzip
import itertools
import json
import lzma
import math
import random
import re
import runpy
import shlex
import subprocess
import sys
import weakref
from collections import Counter
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest import mock
import numpy as np
import pytest
import sentencepiece
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import autobert
import data
import glue
import opnas
import ops
import supernet

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
TINY = autobert.ModelConfig(2, 16, 2, 16, vocab=50, positions=40, dropout=0.0, init_std=0.2)
BERT = ops.ATTENTIONS["bert"]
CPU = torch.device("cpu")

def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))

@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """The first 60 documents of the toy text, as a file."""
    path = tmp_path_factory.mktemp("text") / "corpus.txt"
    path.write_text("\n\n".join((HERE / "toy/corpus.txt").read_text().split("\n\n")[:60]) + "\n")
    return path

@pytest.fixture(scope="session")
def corpus(text):
    """The same, prepared for training."""
    data.prepare((str(text),), str(text.with_name("corpus")), 300)
    return data.Corpus(text.with_name("corpus"))

@pytest.fixture(scope="session")
def tokenizer(corpus):
    return corpus.tokenizer

# ---- ops.py: the ten primitives (Table 1) ----
def test_every_op_computes_its_definition():
    x, y = gaussian(2, 3, 5, 4).double(), gaussian(2, 3, 5, 4, seed=1).double()
    a, b = x.numpy(), y.numpy()
    rows_a, rows_b, norm = a[..., :, None, :], b[..., None, :, :], lambda v: np.sqrt((v * v).sum(-1) + 1e-6)
    one = {"neg": -a, "transpose": np.swapaxes(a, -1, -2), "scale": a / math.sqrt(7), "softsign": a / (1 + np.abs(a)),
           "softmax": np.exp(a) / np.exp(a).sum(-1, keepdims=True), "logsigmoid": np.log(1 / (1 + np.exp(-a)))}
    two = {"add": a + b, "matmul": np.einsum("...ik,...kj->...ij", a, np.swapaxes(b, -1, -2)),
           "cos": (rows_a * rows_b).sum(-1) / (norm(rows_a) * norm(rows_b)),
           "dist": np.sqrt(((rows_a - rows_b) ** 2).sum(-1) + 1e-6)}
    assert set(ops.OPS) == {*one, *two}
    for op, expected in {**one, **two}.items():
        ours = ops.OPS[op].value(7, *([x] if op in one else [x, y.mT] if op == "matmul" else [x, y]))  # d_h = 7
        np.testing.assert_allclose(ours.numpy(), expected, rtol=1e-7, atol=1e-7, err_msg=op)

def test_type_rules():
    for op, rules in {"neg": "dn=dn", "transpose": "nd=dn nn=nn", "softmax": "dd=dd", "add": "nd,nd=nd nd,dn= nn,dd=",
                      "matmul": "nd,dn=nn dn,nd=dd nd,nd= nn,nd=nd", "cos": "nd,nd=nn nd,dd=nd nd,dn=",
                      "dist": "dn,nn=dn nn,dn=nd"}.items():
        for operands, result in (rule.split("=") for rule in rules.split()):
            assert ops.OPS[op].type(*operands.split(",")) == (result or None), (op, operands)

@pytest.mark.parametrize("graph, reason", [
    ("Q @ K", "step 1: matmul"), ("T(K) + Q", "step 2: add"), ("Q @ T(K)", "output"), ("cos(Q, Q) @ Q", "only Q"),
    ("cos(Q, T(T(V) @ Q)) @ Q", "matmul does not take"), ("Q + softsign(K)", "no op mixes tokens"),
    ("softmax(Q) + K", "no op mixes tokens"), ("Q + " * 17 + "K @ (T(K) @ K)", "ops; expected 1 to 16")])
def test_every_illegal_graph_has_its_reason(graph, reason):
    dag = ops.parse(graph)
    assert reason in ops.why_illegal(dag) and reason in ops.describe(graph)
    assert (ops.why_illegal(dag, require_mixing=False) is None) == ("mixes" in reason)

def test_published_attentions_are_their_equations_with_and_without_padding():
    """Written out by hand; L2 and L12 as the paper prints them, log(1 + e^x) and all."""
    (q, k, v, _), mask = gaussian(4, 4, 2, 7, 4), torch.arange(7) < torch.tensor([[7], [4], [1], [6]])
    half, sign, log1pexp = k / 2, lambda x: x / (1 + x.abs()), lambda x: torch.log(1 + torch.exp(x))  # √d_h = 2
    key_and_value = {  # in the place of BERT's K and V
        "bert": (k, v), "L2": (log1pexp(k), k + q), "L6": (log1pexp(-k), q), "L8": (log1pexp(-k), q),
        "L4": (log1pexp(-(torch.log(1 / (1 + torch.exp(-q))) + (k + q))), q),
        "L10": (half + (sign(sign(k) / 2) + v), v), "L12": (half + v, v)}
    for name, formula in ops.ATTENTIONS.items():
        dag = ops.parse(formula)
        assert ops.why_illegal(dag) is None and ops.formula(dag) == formula
        for real, keep in ((None, None), (mask, mask[:, None, None])):
            theirs = F.scaled_dot_product_attention(q, *key_and_value[name], attn_mask=keep)
            torch.testing.assert_close(ops.evaluate(dag, (q, k, v, None), real), theirs)

# ---- ops.py: one graph, one form, one notation ----
def test_canonical_form_prunes_merges_and_sorts_and_a_shared_node_is_named_once():
    assert ops.canonical((("neg", 0), ("softmax", 3), ("neg", 0), ("add", 1, 6))) == (("neg", 0), ("add", 4, 1))
    assert ops.parse("Q + K") == ops.parse("K + Q") == (("add", 1, 0),)
    assert ops.parse("(-Q) @ (T(-Q) @ K)") == ops.parse("a = -Q; a @ (T(a) @ K)")
    assert ops.parse("Q @ (T(K) @ V)") != ops.parse("(Q @ T(K)) @ V")
    assert ops.parse(BERT) == (("transpose", 1), ("matmul", 0, 4), ("scale", 5), ("softmax", 6), ("matmul", 7, 2))
    shared = "a = softsign(K); softmax(Q @ T(a)) @ (a + V)"
    assert ops.formula(ops.parse(shared)) == shared
    doubled = "".join(f"{y} = {x} + {x}; " for x, y in itertools.pairwise("abcdefghijklmnop"))  # 2^15 ops written out
    assert len(dag := ops.parse(f"a = Q + K; {doubled}p")) == 16 and ops.parse(ops.formula(dag)) == dag

def row_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)

def python_formula(text, inputs, d_h):
    """A formula's value by Python's own grammar and NumPy; inputs: letter -> (n, d_h) array."""
    unit = lambda x: x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)  # noqa: E731
    space = {"T": lambda x: x.T, "scale": lambda x: x / math.sqrt(d_h), "softsign": lambda x: x / (1 + np.abs(x)),
             "logsigmoid": lambda x: -np.logaddexp(0, -x), "softmax": row_softmax,
             "cos": lambda x, y: unit(x) @ unit(y).T,
             "dist": lambda x, y: np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1) + 1e-6), **inputs}
    *statements, output = text.split("; ")
    for statement in statements:
        exec(statement, space)
    return eval(output, space)

def test_a_formula_means_what_python_computes_and_reads_back():
    """Python's own eval of the text, on matrices, is the oracle of parser and printer."""
    rng, inputs = random.Random(2), gaussian(4, 1, 1, 6, 4).double()
    for _ in range(300):
        dag = ops.random_dag(rng)
        assert ops.why_illegal(dag) is None and ops.parse(ops.formula(dag)) == ops.canonical(dag) == dag
        theirs = python_formula(ops.formula(dag), {x: v[0, 0].numpy() for x, v in zip("QKVP", inputs)}, 4)
        np.testing.assert_allclose(ops.evaluate(dag, list(inputs))[0, 0].numpy(), theirs, rtol=1e-6, atol=1e-6,
                                   err_msg=ops.formula(dag))

@pytest.mark.parametrize("formula", ["", "Q", "foo(Q) @ K", "Q * K", "T(Q, K)", "a = -Q; a = -K; a", "Q = K; Q @ T(K)",
                                     "(" * 300 + "Q" + ")" * 300])
def test_malformed_text_raises_one_clear_error(formula):
    with pytest.raises(ValueError, match="formula"):
        ops.parse(formula)

# ---- ops.py: what a graph computes ----
def test_dropout_falls_on_softmaxes_of_type_nn_only():
    x, one = gaussian(1, 1, 60, 60), torch.eye(60)[None, None]  # V = 1: the output are the weights, Q = 0: all alike
    weights = ops.evaluate(ops.parse("softmax(Q @ T(K)) @ V"), (0 * x, x, one, None), dropout=0.3)
    assert set(weights.mul(60 * 0.7).round(decimals=4).unique().tolist()) == {0.0, 1.0}
    assert (weights == 0).float().mean().item() == pytest.approx(0.3, abs=0.04)  # five standard errors
    dag = ops.parse("Q @ (T(K) @ softmax(V)) @ softmax(T(K) @ Q)")  # of types (n,d) and (d,d)
    assert torch.equal(ops.evaluate(dag, (x, x, x, None), dropout=0.9), ops.evaluate(dag, (x, x, x, None)))

@pytest.mark.parametrize("n, d_h", [(6, 4), (4, 4)])  # n == d_h: types must be symbolic
def test_padding_never_changes_real_tokens(n, d_h):
    """Three real tokens alone, and before n - 3 padded positions of any content, for random legal graphs."""
    rng, leaks, mask = random.Random(n), 0, torch.arange(n).expand(2, n) < 3
    for trial in range(300):
        dag, alone = ops.random_dag(rng), gaussian(4, 2, 2, 3, d_h, seed=trial).double()
        content = 9 * gaussian(4, 2, 2, n - 3, d_h, seed=trial + 1).double() / min(1, trial % 3)  # a third is infinite
        padded = torch.cat([alone, content], -2)
        expected, ours = ops.evaluate(dag, list(alone)), ops.evaluate(dag, list(padded), mask)[..., :3, :]
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9, msg=ops.formula(dag))
        if not any(op == "softmax" for op, *_ in dag):  # there a mask in the softmax alone would do nothing
            leaks += not torch.allclose(ops.evaluate(dag, list(padded))[..., :3, :], expected)
    assert leaks > 50

def test_a_row_without_a_real_token_stays_finite_gradients_too():  # it counts as all real
    rng = random.Random(5)
    for dag in [ops.parse("dist(Q, Q) @ K"), *(ops.random_dag(rng) for _ in range(60))]:  # dist: a root at 0
        x = gaussian(4, 2, 1, 5, 3).requires_grad_()
        y = ops.evaluate(dag, list(x), torch.tensor([[True] * 5, [False] * 5]))
        y.sum().backward()
        assert torch.isfinite(x.grad).all() and torch.allclose(y[1], ops.evaluate(dag, list(x))[1], 1e-4)

def test_fused_attention_is_the_plain_one_gradients_too(monkeypatch):
    calls, real, rng = [], F.scaled_dot_product_attention, random.Random(11)
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or real(*a, **k))
    dags = [*ops.ATTENTIONS.values(), "a = softmax(scale(Q @ T(K))); a @ (a @ V)",  # one over channels, one of tokens:
            "a = T(K) @ V; softmax(scale(Q @ a)) @ a", "softmax(scale((Q @ T(K)) @ (V @ T(P)))) @ V",
            *(ops.formula(ops.random_dag(rng)) for _ in range(20))]
    for dag, mask in itertools.product(map(ops.parse, dags), (None, torch.arange(6) < torch.tensor([[6], [2], [0]]))):
        results = []
        for fused in (False, True):
            x = [v.requires_grad_() for v in gaussian(4, 3, 2, 6, 4)]
            y = ops.evaluate(dag, x, mask, fused=fused)
            y.sum().backward()
            results.append([y, *(v.grad for v in x if v.grad is not None)])
        for plain, fused in zip(*results):
            torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5 * max(1, plain.abs().max().item()))
    assert len(calls) >= 2 * len(ops.ATTENTIONS)  # the published ones at least take it

def test_a_graph_leaves_no_tensor_behind():
    """Neither inputs nor values wait for the garbage collector: they would fill a GPU."""
    x = list(gaussian(4, 1, 1, 5, 3))
    held = [weakref.ref(v) for v in x]
    gc.disable()
    ops.evaluate(ops.parse(BERT), x, torch.ones(1, 5, dtype=torch.bool))
    del x
    left = [ref() for ref in held]
    gc.enable()
    assert left == [None] * 4

# ---- ops.py: random graphs ----
def test_random_draws_reach_the_whole_space_are_mostly_legal_and_follow_weights():
    draws = [ops.draw(random.Random(i)) for i in range(600)]
    legal = [dag for dag in draws if ops.why_illegal(dag, require_mixing=False) is None]
    mixing = sum(ops.why_illegal(dag) is None for dag in legal)
    assert len(legal) >= 0.4 * len(draws) and mixing >= 0.8 * len(legal)
    assert {len(dag) for dag in legal} >= set(range(4, 15)) and max(map(len, legal)) <= 14
    assert {len({a for _, *args in dag for a in args if a < 4}) for dag in legal} == {2, 3, 4}
    repeated = sum(any(op in ("add", "cos", "dist") and a[0] == a[1] for op, *a in dag) for dag in legal)
    counts = Counter(op for dag in draws for op, *_ in dag)
    assert repeated < 0.15 * len(legal) and set(counts) == set(ops.OPS)
    weights = {op: 50.0 if op == "softsign" else 1.0 for op in ops.OPS}
    heavy = [ops.draw(random.Random(i), lambda position: weights) for i in range(100)]
    assert sum(op == "softsign" for dag in heavy for op, *_ in dag) > 2 * counts["softsign"] / 6

# ---- data.py: files, documents, tokenizer ----
def test_documents_are_read_plain_or_packed_with_any_blank_lines(tmp_path):
    content = "\ufeff\n\nOne two.\r\nThree\u2028four.\n\n\n  \nFive.\n".encode()
    for name, packed in (("a", content), ("a.gz", gzip.compress(content)), ("a.xz", lzma.compress(content))):
        (tmp_path / name).write_bytes(packed)
        assert list(data.read_documents([tmp_path / name])) == [["One two.", "Three\u2028four."], ["Five."]]

def test_the_tokenizer_is_the_same_every_time_and_text_never_becomes_a_special_piece(text, tokenizer):
    assert data.Tokenizer.train([text], 300).proto == tokenizer.proto and tokenizer.vocab_size == 300
    assert tokenizer.pieces(range(5)) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    assert not {data.PAD, data.CLS, data.SEP, data.MASK} & set(tokenizer.encode("A [MASK] <pad> [SEP] [CLS]"))
    assert tokenizer.encode("THE HENS") == tokenizer.encode("the hens")  # case-folded

PARTS = [*"éＡ１猫ßİŉẞ½㎏Ⅷﷺ한…™ﬁﬄﾞ▁$.a\u0301\t\u00a0\u200b\u3000\u2028\ufeff\u200d\x01    ", "e\u0301", "o\u0323\u0302",
         "カ゛", "ｶﾞ", "日本", "\u1112\u1161\u11ab", "👩\u200d🚀", "👍🏽", "❤\ufe0f", "🇩🇪", "10", "the", "The", "hens"]

def test_offsets_never_shift_a_character(tokenizer):
    """Any mixture of scripts, marks, blanks and emoji: spans in order, over all that is visible, and nothing else."""
    rng, normal = random.Random(0), sentencepiece.SentencePieceProcessor(model_proto=tokenizer.proto).normalize
    for _ in range(1500):
        words = "".join(rng.choices(PARTS, k=rng.randint(1, 12)))
        ids, spans = tokenizer.encode_with_offsets(words)
        assert ids == tokenizer.encode(words) and spans == sorted(spans, key=lambda span: span[1]) == sorted(spans)
        hidden = set(range(len(words))).difference(*(range(a, b) for a, b in spans))
        assert all(words[i].isspace() or not normal(words[i]) for i in hidden), ascii(words)
        for (a, b), piece in zip(spans, tokenizer.pieces(ids)):
            assert a < b <= len(words) or piece == "▁", ascii(words)
            shown = normal(words[a:b]).strip("▁ ")  # subtle: one character may become several pieces
            assert piece in ("<unk>", "▁" + shown, shown) or any(len(normal(x)) > 2 for x in words[a:b + 2])

def test_a_prepared_corpus_reads_back(tmp_path):
    texts = [["The hens feed.", "A goat."], ["The boats."], ["The cook bakes a pie."], ["A song."]]
    (tmp_path / "a.txt").write_text("The hens feed.\n\u200b\nA goat.\n\n\n\u200b\n\nThe boats.\n")  # \u200b: no token
    (tmp_path / "b.txt").write_text("The cook bakes a pie.\n\nA song.\n\n")
    data.prepare([str(tmp_path / f"{x}.txt") for x in "ab"], str(tmp_path / "c"), 40)
    found = data.Corpus(tmp_path / "c")
    documents = [[found.tokens[found.sentences[s]:found.sentences[s + 1]].tolist() for s in range(first, last)]
                 for first, last in itertools.pairwise(found.documents)]
    assert documents == [[found.tokenizer.encode(line) for line in lines] for lines in texts] and len(found) == 4

# ---- data.py: pairs, masks, batches ----
def corpus_of(documents):
    """The Corpus of lists of lists of ids."""
    corpus, sentences = data.Corpus.__new__(data.Corpus), [ids for document in documents for ids in document]
    corpus.tokens = np.array([x for ids in sentences for x in ids], np.int32)
    corpus.sentences = np.cumsum([0] + [len(ids) for ids in sentences])
    corpus.documents = np.cumsum([0] + [len(document) for document in documents])
    corpus.tokenizer = SimpleNamespace(vocab_size=90_000)
    return corpus

def test_held_out_documents_are_no_training_documents():
    for count in (4, 5, 40, 100):
        train, held = (part.tolist() for part in data.split_held_out(corpus_of([[[5]]] * count)))
        assert sorted(train + held) == list(range(count)) and min(len(train), len(held)) >= 2
        assert count < 100 or held == [10, 30, 50, 70, 90]

def test_packing_cuts_the_longer_side_at_its_end_or_front_and_back_by_a_coin():
    assert data.pack([10, 11, 12], None, 4)[0].tolist() == [data.CLS, 10, 11, data.SEP]
    fronts = []
    for size_a, size_b, seed in itertools.product((3, 9, 30), (1, 8, 29), range(40)):
        a, b = [*range(100, 100 + size_a)], [*range(200, 200 + size_b)]
        ids, segments = data.pack(a, b, 16, np.random.default_rng(seed) if seed else None)
        while len(a) + len(b) > 13:
            (a if len(a) > len(b) else b).pop()
        front, back = ids[1] - 100, ids[len(a) + 2] - 200
        assert ids.tolist() == [data.CLS, *(x + front for x in a), data.SEP, *(x + back for x in b), data.SEP]
        assert segments.tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert seed or front == back == 0
        fronts += [front] * (size_a == 30 and size_b == 29 and seed > 0)
    assert abs(np.mean(fronts) - 12) < 2 and 2 < np.var(fronts) < 14  # a binomial number: 24 tokens were cut

def test_pairs_are_cut_from_documents_as_berts():
    """The rules of BERT's own script, checked pair by pair, for sentences and documents of any length."""
    rng = random.Random(0)
    corpus = corpus_of([[[5] * rng.choice((1, 2, 7, 12, 40)) for _ in range(rng.randint(1, 12))] for _ in range(30)])
    tokens = lambda first, last: corpus.sentences[last] - corpus.sentences[first]  # noqa: E731
    documents, full, labels = list(range(0, 30, 2)), [], []
    for n, seed in itertools.product((8, 24, 64), range(20)):
        place = {i: corpus.documents[i] for i in documents}
        for a, a_end, b, b_end, label in data.make_pairs(corpus, np.array(documents), n, random.Random(seed)):
            own, other = np.searchsorted(corpus.documents, (a, b), side="right") - 1
            assert a == place[own] < a_end <= corpus.documents[own + 1] and b < b_end <= corpus.documents[other + 1]
            assert label == 0 and own == other and b == a_end or label == 1 and own != other and other in place
            place[own] = a_end if label else b_end  # sentences that b replaced are put back
            room = n - 3 - tokens(a, a_end)
            assert tokens(a, a_end - 1) < n - 3 and tokens(b, b_end - 1) < max(1, room)  # no sentence more than needed
            if n == 64:
                full.append(b_end == corpus.documents[other + 1] or tokens(b, b_end) >= room)
                labels += [label] if a_end < corpus.documents[own + 1] else []  # the last sentence has no choice
        assert all(place[i] == corpus.documents[i + 1] for i in documents)  # every document to its end
    assert 0.93 < np.mean(full) < 0.99 and abs(np.mean(labels) - 0.5) < 0.06  # CHOICE: one in ten is cut short

def test_masking_is_80_10_10_of_15_percent_and_never_special():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 1000, (4000, 40))
    ids[:, [0, 21, 38, 39]] = data.CLS, data.SEP, data.SEP, data.PAD
    masked, positions, targets = data.mask_tokens(ids, 1000, rng, 20)
    rows, columns = np.nonzero(targets != data.IGNORED)[0], positions[targets != data.IGNORED]
    old, now = ids[rows, columns], masked[rows, columns]
    assert np.array_equal(np.bincount(rows), np.full(4000, 6)) and len({*zip(rows, columns)}) == 24_000  # 6 = .15 * 39
    assert np.array_equal(old, targets[targets != data.IGNORED]) and old.min() >= 5 and now.min() >= data.MASK
    masked[rows, columns] = old
    assert np.array_equal(masked, ids)  # nothing else was touched
    swapped = now[(now != data.MASK) & (now != old)]
    shares = [np.mean(now == data.MASK), len(swapped) / len(now), np.mean(now == old)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.008)
    assert swapped.min() < 20 and swapped.max() > 985 and abs(np.mean(swapped) - 502) < 25  # 995 ordinary tokens
    assert sum((np.bincount(columns)[ids[0, :38] >= 5] - 24_000 / 36) ** 2) * 36 / 24_000 < 75  # chi-square, 35 degrees
    for length, count in ((3, 0), (4, 1), (10, 2), (30, 4), (50, 8), (512, 20)):  # round(.15 * length), 4.5 is 4; <= 20
        ids = np.array([[data.CLS, data.SEP, *range(5, 2 + length), data.SEP] + [data.PAD] * (600 - length)])
        assert (data.mask_tokens(ids, 600, rng, 20)[2] != data.IGNORED).sum() == count

def test_a_batch_is_a_function_of_seed_and_step_and_its_rows_are_packed_pairs():
    corpus = corpus_of([[[1000 * (i + 1) + 5 * s + t for t in range(5)] for s in range(6)] for i in range(40)])
    one, two, other = (data.PretrainingData(corpus, np.arange(40), 32, 4, seed) for seed in (3, 3, 4))
    steps, starts = [2 * one.steps_per_epoch + 1, *range(one.steps_per_epoch)], set()  # another epoch comes first
    for batch, again in zip([one.batch(step) for step in steps], [two.batch(step) for step in reversed(steps)][::-1]):
        assert all(np.array_equal(batch[key], again[key]) and len(batch[key]) == 4 for key in batch)
        used = batch["targets"] != data.IGNORED
        batch["ids"][np.nonzero(used)[0], batch["positions"][used]] = batch["targets"][used]  # as before masking
        for row in range(4):
            ids, real = batch["ids"][row], batch["mask"][row].sum()
            middle = ids.tolist().index(data.SEP)
            a, b = ids[1:middle], ids[middle + 1:real - 1]
            packed = data.collate([data.pack(a, b, 32)], 32)
            assert all(np.array_equal(packed[key][0], batch[key][row]) for key in packed)
            assert {*np.diff(a), *np.diff(b)} <= {1} and batch["next"][row] == (a[0] // 1000 != b[0] // 1000)
            starts.add(a[0] // 1000)
    assert starts == {*range(1, 41)} and not np.array_equal(one.batch(0)["ids"], other.batch(0)["ids"])
    assert one.batch(0)["positions"].shape == (4, 6) and one.batch(0)["mask"].dtype == bool  # round(0.15 * 32) + 1

# ---- autobert.py: backbones and layers ----
def new_model(config, genes, noise=0.0, chained=False):
    """A model from seed 0; noise on all its weights: then no bias is 0 and no gain 1. chained: one of a super-net."""
    torch.manual_seed(0)
    model = supernet.SuperNet(config).child(genes) if chained else autobert.Pretraining(config, genes)
    for name, p in model.named_parameters():
        p.data += noise * gaussian(*p.shape, seed=len(name) + p.numel())
    return model

def test_published_backbones_are_fig_7_and_table_5_and_large_repeats_pairs(tmp_path):
    zero, attentions = autobert.BACKBONES["autobert-zero"], [ops.ATTENTIONS[f"L{i}"] for i in (2, 4, 6, 8, 10, 12)]
    convolutions = [f"conv {kernel}" for kernel in (65, 9, 3, 7, 7, 3)]
    assert zero == tuple(gene for pair in zip(convolutions, attentions) for gene in pair)
    assert autobert.BACKBONES["att-only"] == tuple(gene for gene in attentions for _ in "12")
    assert autobert.BACKBONES["conv-only"] == tuple(gene for gene in convolutions for _ in "12")
    assert autobert.BACKBONES["bert"] == (BERT,) * 12 and autobert.to_large((1, 2, 3, 4)) == (1, 2, 1, 2, 3, 4, 3, 4)
    assert autobert.load_backbone("autobert-zero", 4) == zero[:2] + zero[10:]  # CHOICE: pairs taken evenly
    autobert.save_backbone(tmp_path / "b.json", zero)
    assert autobert.load_backbone(str(tmp_path / "b.json")) == zero

def test_a_bert_layer_is_torchs_transformer_encoder_layer():
    layer = new_model(TINY, (BERT,) * 2, noise=0.1).eval().encoder.layers[0]
    theirs = nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True).eval()
    ours, other = layer.attention, theirs.self_attn
    other.in_proj_weight.data = torch.cat([ours.inputs[x].weight for x in "QKV"])
    other.in_proj_bias.data = torch.cat([ours.inputs[x].bias for x in "QKV"])
    for a, b in ((ours.out, other.out_proj), (ours.norm, theirs.norm1), (layer.feedforward.up, theirs.linear1),
                 (layer.feedforward.down, theirs.linear2), (layer.feedforward.norm, theirs.norm2)):
        b.load_state_dict(a.state_dict())
    x, mask = gaussian(3, 9, 16), torch.arange(9) < torch.tensor([[9], [5], [1]])
    torch.testing.assert_close(layer(x, mask)[mask], theirs(x, src_key_padding_mask=~mask)[mask], rtol=1e-5, atol=1e-5)

@pytest.mark.parametrize("kernel", [3, 9, 65])  # 65: wider than the text on both sides
def test_the_convolution_is_a_naive_loop(kernel):  # head h has the channels [3 h, 3 h + 3)
    conv = new_model(replace(TINY, hidden=6), (f"conv {kernel}",) * 2, noise=0.3).eval().encoder.layers[0].convolution
    x, mask, y = gaussian(2, 7, 6), torch.arange(7) < torch.tensor([[7], [4]]), torch.zeros(2, 7, 6)
    u = conv.glu(x)
    u = (u[..., :6] * torch.sigmoid(u[..., 6:]) * mask[..., None]).tolist()
    weights = [[math.exp(v) for v in row] for row in conv.kernel.tolist()]
    for b, i, c, j in itertools.product(range(2), range(7), range(6), range(kernel)):
        if 0 <= (at := i + j - kernel // 2) < 7:
            y[b, i, c] += weights[c // 3][j] / sum(weights[c // 3]) * u[b][at][c]
    torch.testing.assert_close(conv(x, mask), conv.out(y), rtol=1e-5, atol=1e-5)

def test_the_band_matrix_is_conv1d():
    for kernel, n in ((3, 8), (9, 3), (65, 40), (31, 31)):
        taps, x = gaussian(2, kernel).double(), gaussian(3, 2, n, 5).double()  # (H, k), (B, H, n, d_h)
        theirs = F.conv1d(x.mT.reshape(3, 10, n), taps.repeat_interleave(5, 0)[:, None], padding=kernel // 2, groups=10)
        torch.testing.assert_close(autobert.band(taps, n) @ x, theirs.view(3, 2, 5, n).mT)

# ---- autobert.py: the whole model ----
def test_padding_never_changes_real_tokens_of_a_whole_model():
    rng, ids, mask = random.Random(3), torch.arange(5, 23).view(2, 9), torch.arange(9).expand(2, 9) < 5
    for _ in range(30):
        backbone = opnas.random_backbone(2, rng)
        encoder = new_model(TINY, backbone, noise=0.1).double().eval().encoder  # biases are what a wrong mask lets in
        torch.testing.assert_close(encoder(ids, 0 * ids, mask)[:, :5], encoder(ids[:, :5], 0 * ids[:, :5], None),
                                   rtol=1e-7, atol=1e-7, msg=str(backbone))

def arrays_of(model):
    """{name: array} of a model; of a kernel made from the super-net's the taps, worked out by its rule (Sec. 3.2)."""
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    for name, size in itertools.product([name for name in w if name.endswith(".kernel")], (31, 15, 9, 7, 5, 3)):
        if (t := w.pop(name.replace("kernel", f"transforms.{size}"), None)) is not None:
            w[name] = w[name][:, (margin := (w[name].shape[1] - size) // 2):margin + size] @ t.T
    return w

def numpy_model(w, heads, backbone, ids, segments):
    """The whole model on one text without padding, in NumPy alone: ([embeddings, hidden after each layer], MLM, NSP).

    What a port to another framework must compute, and an example of one. w: {name: array}, a kernel as its k taps."""
    n, d = len(ids), len(w["encoder.pooler.bias"])
    linear = lambda x, name: x @ w[name + ".weight"].T + w[name + ".bias"]  # noqa: E731
    gelu = lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))  # noqa: E731

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    def attention(x, at, formula):
        inputs = {k: linear(x, f"{at}.inputs.{k}") for k in "QKVP" if f"{at}.inputs.{k}.weight" in w}
        parts = [{k: np.split(v, heads, 1)[h] for k, v in inputs.items()} for h in range(heads)]
        return np.concatenate([python_formula(formula, part, d // heads) for part in parts], -1)

    def convolution(x, at):
        a, b = np.split(linear(x, at + ".glu"), 2, -1)
        taps = np.repeat(row_softmax(w[at + ".kernel"]), d // heads, 0)  # (d, k): channel c has its head's kernel
        k = taps.shape[1]
        padded = np.pad(a / (1 + np.exp(-b)), ((k // 2, k // 2), (0, 0)))
        return np.stack([(padded[i:i + k].T * taps).sum(-1) for i in range(n)])

    x = w["encoder.tokens.weight"][ids] + w["encoder.positions.weight"][:n] + w["encoder.segments.weight"][segments]
    x = norm(x, "encoder.norm")
    states = [linear(x, "encoder.projection") if "encoder.projection.weight" in w else x]
    for i, gene in enumerate(backbone):
        at, x = f"encoder.layers.{i}." + ("convolution" if gene.startswith("conv") else "attention"), states[-1]
        y = convolution(x, at) if gene.startswith("conv") else attention(x, at, gene)
        x = norm(x + linear(y, at + ".out"), at + ".norm")
        at = f"encoder.layers.{i}.feedforward"
        states.append(norm(x + linear(gelu(linear(x, at + ".up")), at + ".down"), at + ".norm"))
    mlm = norm(gelu(linear(states[-1], "transform")), "norm") @ w["encoder.tokens.weight"].T + w["bias"]
    return states, mlm, linear(np.tanh(linear(states[-1][0], "encoder.pooler")), "next")

def a_batch(rows=8, n=40, seed=0):
    """A batch of random tokens and lengths, whose third row has no masked token, the others one to three."""
    rng = np.random.default_rng(seed)
    counts = np.where(np.arange(rows) == 2, 0, rng.integers(1, 4, rows))
    return {"ids": rng.integers(5, 50, (rows, n)), "segments": rng.integers(0, 2, (rows, n)),
            "mask": np.arange(n) < rng.integers(n // 2, n + 1, (rows, 1)), "next": rng.integers(0, 2, rows),
            "positions": rng.integers(0, n // 2, (rows, 4)),
            "targets": np.where(np.arange(4) < counts[:, None], rng.integers(5, 50, (rows, 4)), data.IGNORED)}

Batches = SimpleNamespace(batch=lambda step: a_batch(rows=12, seed=step))  # as training takes them

def losses(model, batch, pieces=1):
    """The two losses of a batch, each the sum over its pieces."""
    return sum(model(autobert.to_device(autobert.piece(batch, i, pieces), CPU)) for i in range(pieces))

@pytest.mark.parametrize("backbone", ["bert", "autobert-zero", "random", "chain"])
def test_the_whole_model_and_its_loss_are_its_numpy_twins(backbone):
    """A batch with padding in torch, against NumPy on each text alone; chain: with kernels as in the super-net."""
    genes = autobert.BACKBONES.get(backbone) or opnas.random_backbone(12, random.Random(7))
    model = new_model(replace(TINY, layers=12, embedding=8), genes, 0.05, backbone == "chain").double().eval()
    batch, mlm, nsp = a_batch(4), [], []
    ids, segments, mask = (torch.tensor(batch[key]) for key in ("ids", "segments", "mask"))
    states = [*itertools.accumulate(model.encoder.layers, lambda x, layer: layer(x, mask),  # behind each layer
                                    initial=model.encoder.embed(ids, segments))]
    for row, length in enumerate(batch["mask"].sum(1)):
        text = ids[row, :length].numpy(), segments[row, :length].numpy()
        ours, logits, next_ = numpy_model(arrays_of(model), 2, genes, *text)
        for state, expected in zip(states, ours, strict=True):
            np.testing.assert_allclose(state[row, :length].detach().numpy(), expected, rtol=0, atol=1e-9)
        nsp.append(-np.log(row_softmax(next_)[batch["next"][row]]))
        mlm += [-np.log(row_softmax(logits[place])[target])
                for place, target in zip(batch["positions"][row], batch["targets"][row]) if target != data.IGNORED]
    assert losses(model, batch).tolist() == pytest.approx([np.mean(mlm), np.mean(nsp)], rel=1e-9)

@pytest.mark.parametrize("size, backbone, total, att, flops", [
    # millions of parameters, FLOPs at n = 128; the paper prints 110M 21.3M 2.9e10, 104M 15.4M, 16.5M, 318M
    ("base", "bert", 109.5, 21.26, 2.86e10), ("base", "autobert-zero", 103.6, 15.36, 2.68e10),
    ("base", "att-only", 104.8, 16.54, None), ("small", "autobert-zero", 12.9, None, 3.41e9),
    ("small", "bert", 13.5, None, 3.68e9), ("large", "bert", 335.1, None, 8.75e10),
    ("large", "autobert-zero", 314.2, None, 8.13e10)])
def test_size_and_cost_of_the_published_models(size, backbone, total, att, flops):
    config = replace(autobert.SIZES[size], vocab=30_522)
    genes = autobert.load_backbone(backbone, config.layers)
    count = autobert.count_parameters(config, genes)
    assert round(count["total"] / 1e6, 1) == total and att in (None, round(count["att"] / 1e6, 2))
    assert flops is None or autobert.count_flops(config, genes, 128)["total"] == pytest.approx(flops, rel=2e-3)

def test_counted_flops_are_torchs_own_count_of_the_products_and_little_more():
    config, ids = autobert.ModelConfig(4, 128, 2, 128, vocab=1000, dropout=0.0), torch.ones(1, 128, dtype=torch.long)
    for genes in (autobert.load_backbone(name, 4) for name in ("bert", "conv-only", "autobert-zero")):
        encoder = autobert.AutoBert(config, genes).double().eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            encoder(ids, ids, None)
        # torch counts a band with its zeros: n columns in place of k taps
        zeros = sum(2 * 128 * 128 * (128 - autobert.kernel_of(gene)) for gene in genes if gene.startswith("conv"))
        assert 1 < sum(autobert.count_flops(config, genes, 128)["layers"]) / (counter.get_total_flops() - zeros) < 1.06

# ---- autobert.py: training ----
def test_the_schedule_by_hand_and_nothing_without_need_is_decayed():
    falling = [8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9]
    assert [autobert.lr_at(step, 10, 1.0, 0.2) for step in range(10)] == pytest.approx([1 / 2, 1, *falling])
    model = new_model(TINY, (BERT, "conv 3"), chained=True)
    decayed, plain = autobert.make_optimizer(model, 1e-3, 0.01).param_groups
    exempt = [p for name, p in model.named_parameters() if re.search("bias$|norm|kernel|transforms", name)]
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0.0)
    assert [*map(id, exempt)] == [*map(id, plain["params"])]
    assert len(exempt) + len(decayed["params"]) == len([*model.parameters()])

def test_the_pieces_of_a_batch_add_up_to_it_and_so_do_accumulated_steps():
    batch, found, ends = a_batch(), [], []  # float64: the gradient of a key's bias is rounding, which Adam blows up
    for pieces in (1, 2, 3, 8):  # the third of 8 pieces has no masked token
        model = new_model(TINY, ("conv 3", BERT)).double()
        losses(model, batch, pieces).sum().backward()
        found.append([losses(model, batch, pieces), *(p.grad for p in model.parameters())])
        s = autobert.PretrainSettings(steps=3, batch=12, lr=1e-2, accumulate=pieces)
        ends.append(autobert.pretrain(new_model(TINY, ("conv 3", BERT)).double(), Batches, s, CPU).parameters())
    for whole, *added in [*zip(*found), *zip(*ends)]:
        for part in added:
            torch.testing.assert_close(part, whole, rtol=1e-7, atol=1e-7)

def test_training_from_any_step_is_the_same_training():
    s, ends = autobert.PretrainSettings(steps=8, batch=12, lr=1e-2), []
    for stops in ((), (3,), (1, 6)):
        model = new_model(replace(TINY, dropout=0.3), ("conv 3", BERT))
        first, optimizer = 0, autobert.make_optimizer(model, s.lr, betas=(0.9, s.beta2))
        for stop in stops:
            with pytest.raises(ZeroDivisionError):  # stopped behind that step
                autobert.pretrain(model, Batches, s, CPU, lambda done, *_: 1 / (stop - done), 0, optimizer, first)
            first = stop
            torch.manual_seed(99)  # what others draw meanwhile makes no difference
        ends.append(autobert.pretrain(model, Batches, s, CPU, optimizer=optimizer, first=first).state_dict())
    assert all(torch.equal(end[name], ends[0][name]) for end in ends for name in end)
    plain = autobert.pretrain(new_model(TINY, ("conv 3", BERT)), Batches, s, CPU).state_dict()
    assert not torch.equal(plain["bias"], ends[0]["bias"])  # it had dropout

def test_a_loss_that_is_not_finite_stops_training():
    model = new_model(TINY, (BERT, BERT))
    model.encoder.tokens.weight.data[7, 0] = math.inf
    with pytest.raises(autobert.Diverged, match="step 1"):
        autobert.pretrain(model, Batches, autobert.PretrainSettings(steps=3, batch=12), CPU)

def test_a_checkpoint_holds_all_that_is_needed_and_weights_begin_as_berts(tmp_path, tokenizer):
    model = new_model(replace(TINY, vocab=300), (BERT, "conv 31"))
    autobert.save_checkpoint(tmp_path / "m.pt", model, tokenizer, step=7)
    loaded, words, content = autobert.load_checkpoint(tmp_path / "m.pt")
    assert loaded.encoder.config == model.encoder.config and loaded.encoder.backbone == model.encoder.backbone
    assert words.proto == tokenizer.proto and content["step"] == 7
    for name, p in model.named_parameters():
        assert torch.equal(p, loaded.state_dict()[name]) and (p.abs().max() <= 0.4 or "norm" in name), name  # 0.4: 2 sd

# ---- supernet.py: who shares what (Sec. 3.2) ----
KERNEL, T = "encoder.layers.0.convolution.kernel", "encoder.layers.0.convolution.transforms."

@pytest.mark.parametrize("backbone, chain, inputs", [
    (("conv 9", "softmax(scale(Q @ T(K))) @ (K + P)"), {31, 15, 9}, "QKP"), (("conv 65", "conv 65"), set(), "")])
def test_a_child_is_a_copy_and_absorbing_it_writes_only_what_it_holds(backbone, chain, inputs):
    net = supernet.SuperNet(TINY)
    before, child = {name: slot.clone() for name, slot in net.slots.items()}, net.child(backbone)
    held = dict(child.named_parameters())
    assert {size for size in autobert.KERNELS if T + str(size) in held} == chain
    assert "".join(x for x in "QKVP" if f"encoder.layers.1.attention.inputs.{x}.weight" in held) == inputs
    assert held[KERNEL].shape == (2, 31 if chain else 65) and "encoder.layers.0.attention.out.weight" not in held
    for p in child.parameters():
        p.data += 1.0
    assert all(torch.equal(slot, before[name]) for name, slot in net.slots.items())  # a copy, not a view
    net.absorb(child.state_dict())
    for name, slot in net.slots.items():
        centre = slice(17, 48) if name == KERNEL and chain else slice(None)  # 17 + 31 + 17 = 65
        before[name][..., centre] += name in held
        assert torch.equal(slot, before[name]), name
        assert name not in held or torch.equal(held[name], slot[..., centre]), name

def test_small_kernels_are_transformed_centres_and_a_child_computes_as_a_model_of_its_own():
    net = supernet.SuperNet(TINY)
    for size in autobert.KERNELS[:-1]:
        assert torch.equal(net.slots[T + str(size)], torch.eye(size))  # at the start
        net.slots[T + str(size)].copy_(gaussian(size, size, seed=size))
    for kernel in autobert.KERNELS:
        child, plain = net.child((f"conv {kernel}", BERT)), new_model(TINY, (f"conv {kernel}", BERT))
        plain.load_state_dict({name: torch.tensor(x) for name, x in arrays_of(child).items()})
        assert plain.state_dict()[KERNEL].shape == (2, kernel)
        torch.testing.assert_close(losses(child, a_batch()), losses(plain, a_batch()))

def test_the_best_child_that_holds_a_slot_wins_it_and_ties_go_to_the_earlier():
    net, scores = supernet.SuperNet(TINY), [0.2, 0.9, 0.9]
    children = [net.child(genes).state_dict() for genes in ((BERT, BERT), ("conv 3", BERT), (BERT, "conv 65"))]
    for i in supernet.write_order(scores):
        net.absorb({name: torch.full_like(x, i) for name, x in children[i].items()})
    found = {name: set(slot.unique().tolist()) for name, slot in net.slots.items()}
    assert found["encoder.tokens.weight"] == found["encoder.layers.1.attention.out.weight"] == found[T + "3"] == {1}
    assert found["encoder.layers.0.attention.out.weight"] == {2}

# ---- The size and the shape of the code (DESIGN) ----
CAPS = {"ops.py": 330, "data.py": 400, "autobert.py": 500, "supernet.py": 130, "glue.py": 460, "opnas.py": 500}
OTHERS = {"test_all.py": 1200, "README.md": 200, "results/README.md": 160, "studies/test_studies.py": 450}
CORE = [name.removesuffix(".py") for name in CAPS]  # in the order in which they are read and may import one another

def test_every_file_is_within_its_cap_and_the_six_are_an_evenings_reading():
    for name, cap in {**CAPS, **OTHERS}.items():
        lines = (HERE / name).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= cap and (name.endswith("md") or max(map(len, lines)) <= 120), (name, len(lines))
    sources = [(HERE / name).read_bytes() for name in CAPS]
    assert sum(source.count(b"\n") for source in sources) <= 2300 and sum(map(len, sources)) <= 125_000
    spans = [node.end_lineno - node.lineno + 1 for source in sources for node in ast.walk(ast.parse(source))
             if isinstance(node, ast.FunctionDef)]
    assert np.median(spans) <= 12 and max(spans) <= 45

@pytest.mark.parametrize("name", CORE)
def test_imports_go_downwards_and_packages_are_three(name):
    nodes = [*ast.walk(ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8")))]
    imported = {alias.name.split(".")[0] for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module.split(".")[0] for node in nodes if isinstance(node, ast.ImportFrom)}
    above = {"ops": [], "data": [], "glue": CORE[:3]}.get(name, CORE[:CORE.index(name)])
    assert imported - sys.stdlib_module_names <= {"torch", "numpy", "sentencepiece", *above}

def test_the_names_that_others_lean_on_exist():
    for module, names in {
            ops: "OPS ATTENTIONS parse formula canonical random_dag why_illegal evaluate", opnas: "evolve",
            autobert: "SIZES BACKBONES load_backbone save_backbone to_large AutoBert Pretraining count_parameters "
                      "count_flops", supernet.SuperNet: "child absorb", data: "Tokenizer Corpus",
            glue: "matthews f1 accuracy pearson spearman kendall_tau squad_scores TASKS read_task finetune"}.items():
        assert not [name for name in names.split() if not hasattr(module, name)], module

# ---- glue.py: metrics ----
def test_metrics_by_hand_and_a_constant_prediction_scores_0():
    gold, said = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0, 0, 0]  # tp 2, fp 1, fn 2, tn 3
    assert glue.accuracy(gold, said) == 5 / 8
    assert glue.f1(gold, said) == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert glue.matthews(gold, said) == pytest.approx((2 * 3 - 1 * 2) / math.sqrt(3 * 4 * 4 * 5))
    assert glue.pearson([1, 2, 3], [2, 4, 7]) == pytest.approx(5 / math.sqrt(2 * 38 / 3))
    assert glue.spearman([10, 20, 20, 40], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))  # ranks 1 2.5 2.5 4
    for metric in (glue.matthews, glue.pearson, glue.spearman, glue.f1, lambda x, y: glue.kendall_tau(x, y)[0]):
        assert metric([0, 1, 0, 1], [0, 0, 0, 0]) == metric([0, 0, 0, 0], [0, 1, 0, 1]) == 0.0

def test_kendalls_tau_counts_pairs_and_its_p_is_of_the_variance_over_all_orders():
    for x, y in (([1, 1, 2, 3, 3, 3], [2, 5, 5, 5, 7, 9]), ([4, 3, 2, 1], [1, 2, 3, 9]), ([3, 1, 2, 9], [1, 1, 2, 3])):
        a, *orders = (np.array([np.sign(v[i] - v[j]) for i, j in itertools.combinations(range(len(x)), 2)])
                      for v in (x, *itertools.permutations(y)))  # the first order is y's own
        tau = a @ orders[0] / math.sqrt((a * a).sum() * (orders[0] ** 2).sum())
        p = math.erfc(abs(a @ orders[0]) / math.sqrt(2 * np.mean([(a @ b) ** 2 for b in orders])))
        assert glue.kendall_tau(x, y) == (pytest.approx(tau), pytest.approx(p))

# ---- glue.py: tasks, fine-tuning ----
TOY, BINARY, ENTAILED = HERE / "toy", ["0", "1"], ["entailment", "not_entailment"]
COLUMNS = {  # by number: texts and label of train and dev, texts of test; the labels in the order of their ids
    "CoLA": ([3], 1, [1], BINARY), "SST-2": ([0], 1, [1], BINARY), "MRPC": ([3, 4], 0, [3, 4], BINARY),
    "STS-B": ([7, 8], -1, [7, 8], None), "QQP": ([3, 4], 5, [1, 2], BINARY), "RTE": ([1, 2], -1, [1, 2], ENTAILED),
    "MNLI": ([8, 9], -1, [8, 9], ["contradiction", "entailment", "neutral"]), "QNLI": ([1, 2], -1, [1, 2], ENTAILED)}

@pytest.mark.parametrize("task", COLUMNS)
def test_every_task_reads_its_own_columns_and_labels(task):
    texts, label, test_texts, labels = COLUMNS[task]
    for path in (TOY / "glue" / task).glob("*.tsv"):
        test, expected = "test" in path.stem, []
        for line in path.read_text().splitlines()[task != "CoLA" or test:]:
            row = line.split("\t")
            a, b = [*(row[i] for i in (test_texts if test else texts)), None][:2]
            expected.append((a, b, None if test else labels.index(row[label]) if labels else float(row[label])))
        for split in {path.stem, path.stem.replace("dev_matched", "dev")}:
            assert glue.read_task(TOY / "glue", task, split) == expected and len(expected) > 99

def write_rows(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join(rows) + "\n").encode())

RTE, QQP = "index\tsentence1\tsentence2\tlabel", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
def test_rows_are_split_at_tabs_and_line_feeds_only_and_a_wrong_one_is_named(tmp_path, tokenizer, capsys):
    write_rows(tmp_path / "RTE/train.tsv", "\ufeff" + RTE, '0\t"He said.\tYes\u2028no\x85.\tentailment',
               '1\ta "b"\tc"\tnot_entailment\r')
    examples = glue.read_task(tmp_path, "RTE", "train")
    assert examples == [('"He said.', "Yes\u2028no\x85.", 0), ('a "b"', 'c"', 1)]
    rows, labels = glue.encode([*examples, ("hens", None, None)], tokenizer, 8)
    assert labels.tolist() == [0, 1, -1] and rows[2][0].tolist() == [data.CLS, *tokenizer.encode("hens"), data.SEP]
    write_rows(tmp_path / "QQP/train.tsv", QQP, "0\t1\t2\ta\tb\t1", "1\t1\t2\ta")  # here a short row is only counted
    assert glue.read_task(tmp_path, "QQP", "train") == [("a", "b", 1)] and "1 short" in capsys.readouterr().out
    for task, *rows in (("QQP", QQP, "1\t1\t2\ta"), ("RTE", RTE, "0\ta\tentailment"), ("RTE", RTE, "0\ta\tb\tmaybe"),
                        ("RTE", RTE, "0\ta\tb\tc\tentailment"), ("RTE", RTE.replace("sentence2", "text")), ("RTE", ""),
                        ("STS-B", "sentence1\tsentence2\tscore", "a\tb\t5.5"), ("RTE", RTE, "0\ta\tb\tentailment ")):
        write_rows(tmp_path / f"{task}/dev.tsv", *rows)
        with pytest.raises(data.UserError, match=rf"{task}/dev.tsv:{len(rows)}: .*expected .*columns"):
            glue.read_task(tmp_path, task, "dev")

@pytest.mark.parametrize("task", ["CoLA", "STS-B", "SQuAD"])
def test_finetuning_learns_repeats_itself_and_leaves_the_encoder_alone(task):
    """Token 7 decides: whether it is there (STS-B: 5 or 0), or where."""
    encoder, untouched = (new_model(TINY, ("conv 3", BERT)).encoder for _ in "12")
    rng, s = np.random.default_rng(0), glue.FinetuneSettings(8, 5e-3)
    texts, there, place = rng.integers(8, 50, (120, 7)), rng.integers(0, 2, 120), rng.integers(0, 4, 120)
    texts[np.arange(120), place] = 7 if task == "SQuAD" else 8 - there
    labels = {"CoLA": there, "STS-B": 5.0 * there, "SQuAD": np.stack([place + 1] * 2, 1)}[task]
    rows, found, said = [data.pack(row[:4 + i % 4], None, 12) for i, row in enumerate(texts)], [], []
    for noise in (1, 2):
        torch.manual_seed(noise)  # what others draw makes no difference
        model = glue.fit(encoder, task, (rows, labels), s, 5, CPU, said.append)
        found.append(np.stack(glue.outputs_of(model, rows, s, CPU)[:60]))
    assert np.array_equal(*found) and all(map(torch.equal, encoder.parameters(), untouched.parameters()))
    assert len(said) >= 20 and re.fullmatch(r"step=64/64 loss=\d\.\d{3} left=0m00s", said[-1])
    alone, = glue.outputs_of(model, rows[:1], s, CPU)  # among longer rows it was padded: no share of the softmax
    np.testing.assert_allclose(row_softmax(found[0][0].T)[..., :len(alone)], row_softmax(alone.T), atol=1e-6)
    if task == "SQuAD":
        assert np.mean(found[0].argmax(1) == labels[:60]) > 0.95
    else:
        predicted = glue.predictions(model, rows, s, CPU)
        score = glue.finetune(encoder, task, (rows, labels), (rows, labels), s, 5, CPU)[1]
        assert score == glue.TASKS[task].metric(labels, predicted) > 0.8 and abs(labels - predicted).mean() < 1

def lines_of(capsys, function, *argv):
    data.call(function, [*map(str, argv), "--device", "cpu"], "script.py command")
    return capsys.readouterr().out.splitlines()

def small_checkpoint(path, tokenizer):
    model = new_model(autobert.ModelConfig(2, 16, 2, 16, vocab=300, positions=64, dropout=0.0), ("conv 5", BERT))
    autobert.save_checkpoint(path, model, tokenizer)
    return path

def test_all_tasks_are_finetuned_on_a_grid_and_give_the_leaderboards_files(tokenizer, tmp_path, monkeypatch, capsys):
    starts, fit, read, start = {}, glue.fit, glue.read_task, small_checkpoint(tmp_path / "model.pt", tokenizer)
    monkeypatch.setattr(glue, "read_task", lambda *about: read(*about)[:100])
    monkeypatch.setattr(glue, "fit", lambda encoder, task, *rest: starts.update(
        {task: encoder.pooler.weight}) or fit(encoder, task, *rest))
    lines = lines_of(capsys, glue.finetune_command, "--checkpoint", start, "--glue", TOY / "glue", "--epochs", 1,
                     "--lr", 1e-3, 1e-2, "--mnli", "--save", tmp_path / "saved")
    best = {}  # task -> rate -> score of each dev file
    for task, rate, score in re.findall(r"^(\S+) lr=(\S+) weight_decay=0.01 dev\w*=(\S+) \(", "\n".join(lines), re.M):
        best.setdefault(task, {}).setdefault(rate, []).append(float(score))
    nine = [x for rates in best.values() for x in max(rates.values(), key=sum)]
    assert [*best][0] == "MNLI" and all([*rates] == ["0.001", "0.01"] for rates in best.values())
    assert len(nine) == 9 and float(lines[-1].removeprefix("AVG ")) == pytest.approx(np.mean(nine), abs=0.1)
    original, mnli = (autobert.load_checkpoint(path)[0].encoder for path in (start, tmp_path / "saved/MNLI.pt"))
    for task, weight in starts.items():
        assert torch.equal(weight, (mnli if task in ("RTE", "STS-B", "MRPC") else original).pooler.weight), task
    said = {1: np.linspace(-1, 6, 100), 2: np.arange(100) % 2, 3: np.arange(100) % 3}  # by classes; STS-B leaves 0..5
    monkeypatch.setattr(glue, "predictions", lambda model, *_: said[model.head.out_features])
    lines_of(capsys, glue.predict, "--model", tmp_path / "saved", "--glue", TOY / "glue", "--out", tmp_path / "out")
    assert {path.stem for path in (tmp_path / "out").iterdir()} == COLUMNS.keys() - {"MNLI"} | {"MNLI-m", "MNLI-mm"}
    for path in (tmp_path / "out").iterdir():
        labels = COLUMNS[re.sub("-mm?$", "", path.stem)][3]
        rows = [labels[x] for x in said[len(labels)]] if labels else [f"{min(5, max(0, x)):.3f}" for x in said[1]]
        assert path.read_text() == "index\tprediction\n" + "".join(f"{i}\t{x}\n" for i, x in enumerate(rows))

# ---- glue.py: SQuAD ----
def ask(name, question, context, *golds, **more):  # as SQuAD does; golds: (text, answer_start)
    answers = [{"text": text, "answer_start": at} for text, at in golds]
    return {"id": name, "question": question, "context": context, "answers": answers} | more

def test_squad_normalises_and_scores_by_hand():
    for text, normal in (("The  Anna, Brown!", "anna brown"), ("a an the", ""), ("Theory", "theory"), ("$5", "5")):
        assert glue.normalize_answer(text) == normal
    golds = [("Anna Brown", 0), ("Brown", 5)], [("the red hen", 0)], [("a", 0)]
    paragraph = {"context": "c", "qas": [ask(str(i), "q", "", *gold) for i, gold in enumerate(golds)]}
    scores = glue.squad_scores({"data": [{"paragraphs": [paragraph]}]}, {"0": "brown.", "1": "red cow"})  # 2 is missing
    assert scores == {"exact": pytest.approx(100 / 3), "f1": pytest.approx(100 * 1.5 / 3), "total": 3}
    for more, f1 in (({}, 0), ({"is_impossible": False}, 100)):  # v1.1 counts words in common
        assert glue.squad_scores([ask("1", "q", "", ("The", 0), **more)], {"1": "the"})["f1"] == f1
    scores = glue.squad_scores([ask(x, "q", "", is_impossible=True) for x in "12"], {"1": "", "2": "hens"})
    assert scores["exact"] == scores["NoAns_f1"] == 50 and "HasAns_f1" not in scores

@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_gold_spans_fed_in_score_100(version, tokenizer):
    questions, s, outputs = glue.read_squad(TOY / f"squad/dev-v{version}.json"), glue.SquadSettings(), []
    for w in (windows := glue.squad_windows(questions, tokenizer, s)):
        outputs.append(np.full((len(w.row[0]), 2), -10.0))
        outputs[-1][w.gold, [0, 1]] = 10.0
    scores = glue.squad_scores(questions, glue.squad_predictions(glue.decode(questions, windows, outputs, s)))
    assert scores["exact"] == scores["f1"] == 100 and scores["total"] == len(questions)

def test_windows_and_their_best_context_are_berts(tokenizer):
    context, asked = "The hens feed the goat. " * 12, "Who feeds the goat and the hens?"
    ids, goat = tokenizer.encode(context), tokenizer.encode("goat")
    for n, stride, cut in ((300, 128, 64), (40, 9, 4), *((n, 24, 50) for n in range(36, 60))):
        windows = glue.squad_windows([ask("1", asked, context, ("goat", 114))], tokenizer,
                                     glue.SquadSettings(n=n, stride=stride, max_question=cut))
        kept, start, expected = tokenizer.encode(asked)[:min(cut, n - 4)], 0, []
        while not expected or sum(expected[-1]) < len(ids):  # as run_squad.py does it: (start, length)
            expected.append((start, min(len(ids) - start, n - 3 - len(kept))))
            start += min(expected[-1][1], stride)
        for i, ((start, length), w) in enumerate(zip(expected, windows, strict=True)):
            row = [data.CLS, *kept, data.SEP, *ids[start:start + length], data.SEP]
            assert w.row[0].tolist() == row and w.row[1].tolist() == [0] * (len(kept) + 2) + [1] * (length + 1)
            for at in range(start, start + length):  # its score: the lesser context, and .01 of the length
                scores = [min(at - a, a + m - 1 - at) + 0.01 * m if a <= at < a + m else -1 for a, m in expected]
                assert w.owned[at - start] == (scores.index(max(scores)) == i)
            assert w.gold == (0, 0) or row[w.gold[0]:w.gold[1] + 1] == goat
        assert any(w.gold != (0, 0) for w in windows)

def test_an_answer_is_the_best_of_all_legal_spans_and_null_the_least_of_the_windows(tokenizer):
    context, s = "The hens feed. The goat sings, a hen sings too.", glue.SquadSettings(n=16, stride=5, max_answer=3)
    rng, (_, spans) = np.random.default_rng(0), tokenizer.encode_with_offsets(context)
    for more in [{"is_impossible": True}] * 20 + [{}]:
        questions, texts = [ask("q", "Who?", context, **more)], {}
        windows = glue.squad_windows(questions, tokenizer, s)
        outputs = [rng.normal(size=(len(w.row[0]), 2)).astype(np.float32) for w in windows]
        for k, (w, logits) in enumerate(zip(windows, outputs)):  # window k begins at token 5 k
            for i, j in itertools.combinations_with_replacement(range(len(w.spans)), 2):
                text = context[spans[5 * k + i][0]:spans[5 * k + j][1]].strip()
                if w.owned[i] and j < i + 3 and text:
                    score = float(logits[w.at + i, 0]) + float(logits[w.at + j, 1])
                    texts[text] = max(score, texts.get(text, -math.inf))
        best, null = max(texts, key=texts.get), min(float(x[0, 0]) + float(x[0, 1]) for x in outputs)
        margin = pytest.approx(null - texts[best]) if more else -math.inf
        assert len(windows) > 2 and glue.decode(questions, windows, outputs, s) == {"q": (best, margin)}
    questions = [ask(x, "Who?", text, is_impossible=True) for x, text in zip("012", ["", " \u200b ", "hens"])]
    windows = glue.squad_windows(questions, tokenizer, s)  # an answer for every question, on an empty passage, too
    answers = glue.decode(questions, windows, [np.zeros((len(w.row[0]), 2)) for w in windows], s)
    assert answers["0"][0] == answers["1"][0] == "" and "hens".startswith(answers["2"][0] or "?")
    assert glue.squad_predictions(answers, -1.0) == {"0": "", "1": "", "2": ""} != glue.squad_predictions(answers, 0.0)

def test_the_best_threshold_is_no_worse_than_any_other():
    rng = np.random.default_rng(0)
    for _ in range(30):
        questions = [ask(str(i), "q", "hen cow", *[("hen", 0)] * rng.integers(2), is_impossible=True) for i in range(8)]
        answers = {q["id"]: (str(rng.choice(["hen", "cow"])), float(rng.integers(-3, 4))) for q in questions}
        f1 = lambda tau: glue.squad_scores(questions, glue.squad_predictions(answers, tau))["f1"]  # noqa: B023, E731
        assert f1(glue.best_tau(questions, answers)) == max(map(f1, np.arange(-5.0, 6.0))) >= f1(0.0)

def test_squad_goes_from_files_to_scores_and_predictions(tokenizer, tmp_path, capsys):
    (packed := tmp_path / "v2.json.xz").write_bytes(lzma.compress((TOY / "squad/dev-v2.0.json").read_bytes()))
    lines = lines_of(capsys, glue.squad, "--checkpoint", small_checkpoint(tmp_path / "m.pt", tokenizer), "--epochs", 1,
                     "--train", packed, "--dev", packed, "--predictions", tmp_path / "p.json")
    scores = glue.squad_scores(glue.read_squad(packed), json.loads((tmp_path / "p.json").read_text()))
    assert re.search(rf"^tau=0.000 .* f1={scores['f1']:.1f} ", lines[-2]) and scores["total"] > 100

# ---- opnas.py: UCB (Eq. 3) ----
def scored(*pairs):  # (backbone, score)
    return [opnas.Candidate(i, 0, None, backbone, score) for i, (backbone, score) in enumerate(pairs)]

def test_ucb_and_p_by_hand_and_literal_temperature_one_is_nearly_uniform():
    """Position 0: neg in candidates of 0.6 and 0.8, scale in one of 0.4; N = 3."""
    M = scored((("cos(-Q, K) @ V",), 0.6), (("cos(-Q, K) @ V",), 0.8), (("cos(scale(Q), K) @ V",), 0.4))
    tables, rng = opnas.OperationPriority(M, alpha=0.5, tau=0.2), random.Random(0)
    u, drawn = tables.ucb(0), Counter(tables.draw(0, rng) for _ in range(4000))
    assert u["neg"] == pytest.approx(0.7 + 0.5 * math.sqrt(2 * math.log(3) / 2))
    assert u["scale"] == pytest.approx(0.4 + 0.5 * math.sqrt(2 * math.log(3) / 1))
    assert u["softmax"] == pytest.approx(0.6)  # never sampled: the position's mean, no bonus
    assert tables.ucb(1)["cos"] == pytest.approx(0.6 + 0.5 * math.sqrt(2 * math.log(3) / 3))
    weights = {op: math.exp(x / 0.2) for op, x in u.items()}
    assert tables.p(0) == pytest.approx({op: w / sum(weights.values()) for op, w in weights.items()})
    assert all(drawn[op] / 4000 == pytest.approx(p, abs=0.04) for op, p in tables.p(0).items())  # five standard errors
    assert opnas.OperationPriority().p(0) == pytest.approx(dict.fromkeys(ops.OPS, 0.1))  # nothing seen: no opinion
    M = scored(*((opnas.random_backbone(4, rng), rng.uniform(0.76, 0.83)) for _ in range(60)))
    assert opnas.OperationPriority(M, 0.01, 1).perplexity()[0] > 9.98 and opnas.OperationPriority(M).perplexity()[0] < 8

def test_each_layer_has_a_table_of_kernels_unseen_ones_count_once_with_its_mean_rejected_ones_as_the_worst():
    tables = opnas.OperationPriority(scored((("conv 9", "conv 3"), 0.9), (("conv 9", "conv 3"), 0.7),
                                            (("conv 5", BERT), 0.1)), alpha=0.5, tau=0.1)
    first, second, log = tables.ucb(("layer", 0)), tables.ucb(("layer", 1)), math.log(3 + 5)  # 5 kernels are unseen
    assert first[9] == pytest.approx(0.8 + 0.5 * math.sqrt(2 * log / 2))
    assert first[5] == pytest.approx(0.1 + 0.5 * math.sqrt(2 * log)) and {*first} == {*autobert.KERNELS}
    assert first[65] == pytest.approx(1.7 / 3 + 0.5 * math.sqrt(2 * log)) and second[65] > second[3] > 0.8
    assert tables.perplexity(tuple)[1] == 5 and tables.perplexity()[1] == 5  # three and two kernels; BERT has five ops
    tables = opnas.OperationPriority(scored((("conv 9",), 0.2), (("conv 5",), 0.6), (("conv 7",), None)))
    sd, bonus = 0.2, math.sqrt(2 * math.log(3 + 4))  # alpha and tau are a tenth of the spread of 0.2 and 0.6
    u, p = {9: 0.2, 5: 0.6, 7: 0.2} | dict.fromkeys((3, 15, 31, 65), 1 / 3), tables.p(("layer", 0))
    assert tables.ucb(("layer", 0)) == pytest.approx({k: x + 0.1 * sd * bonus for k, x in u.items()})
    assert p[5] / p[9] == pytest.approx(math.exp(0.4 / (0.1 * sd))) and p[7] == p[9]

# ---- opnas.py: mutation (Alg. 1 l.6, l.7) ----
def test_every_mutation_is_legal_changed_and_unseen():
    rng, tables, counts, seen = random.Random(0), opnas.OperationPriority(), Counter(), set()
    for parent in ([opnas.random_backbone(4, rng) for _ in range(8)] + [("conv 3",) * 4, (BERT,) * 4]) * 10:
        child = opnas.mutate(parent, tables, rng, seen, counts)
        assert child != parent and child not in seen and autobert.check_backbone(child, 4) == child  # canonical, too
        assert 1 <= sum(a != b for a, b in zip(parent, child)) <= 2  # one layer between, one within
        seen.add(child)
    convolutions = {(f"conv {kernel}",) for kernel in autobert.KERNELS}  # all seen: a layer grows anew
    assert autobert.kernel_of(opnas.mutate(("conv 3",), tables, rng, convolutions, counts)[0]) is None

ODDS = {"replace": 0.5, "insert": 0.2, "delete": 0.2, "rewire": 0.1}
@pytest.mark.parametrize("edit, reached", [
    ("replace", ["softsign(scale(Q @ T(K))) @ V", "softmax(-(Q @ T(K))) @ V", "softmax(scale(Q @ T(K))) + V", "-V"]),
    ("insert", ["softmax(softsign(scale(Q @ T(K)))) @ V", "softmax(scale(Q @ T(K))) @ -V",
                "-(softmax(scale(Q @ T(K))) @ V)", "softmax(scale(-Q @ T(K))) @ V"]),
    ("delete", ["softmax(scale(Q @ K)) @ V", "softmax(scale(Q)) @ V", "softmax(scale(T(K))) @ V",
                "softmax(Q @ T(K)) @ V", "scale(Q @ T(K)) @ V", "softmax(scale(Q @ T(K)))"]),
    ("rewire", ["softmax(scale(P @ T(K))) @ V", "softmax(scale(Q @ T(V))) @ V", "Q @ V", "softmax(T(K)) @ V"])])
def test_every_edit_reaches_its_neighbours_in_canonical_form(edit, reached):
    rng, dag, draw = random.Random(0), ops.parse(BERT), random.Random(1).choices
    rng.choices = lambda names, odds: [edit] if dict(zip(names, odds)) == ODDS else draw(names, odds)
    found = {opnas.mutate_dag(dag, opnas.OperationPriority(), rng) for _ in range(4000)}
    assert {ops.parse(formula) for formula in reached} - found == set()
    assert all(ops.canonical(child) == child and len(child) <= 5 + (edit == "insert") for child in found)
    one_off = {ops.canonical([*dag[:t], (op, *args[:i], slot, *args[i + 1:]), *dag[t + 1:]])
               for t, (op, *args) in enumerate(dag) for i in range(len(args)) for slot in range(4 + t)}
    assert found == one_off if edit == "rewire" else edit != "delete" or len(found) == len(reached)

def test_new_ops_and_kernels_come_from_the_tables_of_their_place():
    better, rng, dag, drawn = BERT.replace("softmax", "softsign"), random.Random(0), ops.parse(BERT), Counter()
    M = scored((("conv 31", better), 0.9), (("conv 5", BERT), 0.1), (("conv 3", BERT), 0.1))
    tables = opnas.OperationPriority(M, alpha=0.0, tau=0.01)  # softsign at position 3, 31 in the first layer
    for child in (opnas.mutate_dag(dag, tables, rng) for _ in range(1000)):
        drawn[child[3:4]] += len(child) == 5 and child[:3] == dag[:3] and child[3][1] == 6 and child[3] != dag[3]
    assert drawn[(("softsign", 6),)] > 0.95 * sum(drawn.values()) > 50  # an inserted op may look like a replaced one
    found = Counter(opnas.mutate_intra(("conv 3", "conv 3"), tables, rng) for _ in range(140))
    assert found["conv 31", "conv 3"] > 50 and len(found) == 1 + 7  # the second layer has no table yet

def test_inter_layer_mutation_flips_one_layer_half_the_time():
    rng, backbone, flips = random.Random(0), ("conv 9", BERT), Counter()
    for _ in range(300):
        child = opnas.mutate_inter(backbone, opnas.OperationPriority(), rng, Counter())
        changed = [i for i in range(2) if child[i] != backbone[i]]
        flips[tuple(changed)] += 1
        assert all(bool(autobert.kernel_of(child[i])) == (i == 1) for i in changed)
    assert {*flips} == {(), (0,), (1,)} and flips[()] == pytest.approx(150, abs=35) and min(flips.values()) > 45

# ---- opnas.py: the evolution (Algorithm 1) ----
SETTINGS = replace(opnas.PRESETS["toy"], population=10, parents=2, children=3, rounds=4, finalists=3)
no_conv_3 = lambda backbone: "collapsed" if "conv 3" in backbone else None  # noqa: E731

def any_score(number, c, log=()):  # the same backbone scores differently in another round
    return replace(c, score=random.Random(f"{number} {c.backbone}").random())

def history_of(s, judge=any_score, probe=lambda backbone: None, log=(), layers=3, note=lambda *_: None):
    return opnas.evolve(s, layers, lambda number, batch, log: [judge(number, c, log) for c in batch], probe, log, note)

def test_a_search_takes_the_population_a_round_at_a_time_and_judges_again():
    toy = opnas.SearchSettings(population=8, parents=2, children=2, rounds=2, finalists=3)
    two, later, last = [("random", 4, 0)] * 2, [("mutants", 4, 2)] * 2, [("last", 0, 3)]  # new ones, old
    assert opnas.plan(toy) == opnas.plan(replace(toy, strategy="ea")) == two + later + last
    assert opnas.plan(replace(toy, strategy="random")) == two * 2 + last
    assert opnas.plan(replace(toy, population=5, finalists=0)) == [two[0], ("random", 1, 0), *later]

def test_evolution_is_algorithm_1():
    rounds = []
    history = opnas.evolve(SETTINGS, 3, lambda number, batch, log: rounds.append((number, batch, [*log])) or [
        any_score(number, c) for c in batch])
    assert [len({c.number for c in b} - {c.number for c in log}) for _, b, log in rounds] == [6, 4, 6, 6, 6, 6, 0]
    assert [len(batch) for _, batch, _ in rounds] == [6, 4, 8, 8, 8, 8, 3] and len(history) == 45
    for i, (number, batch, log) in enumerate(rounds):
        assert number == i and log == history[:len(log)] and {c.round for c in batch} == {number}
        last, backbones = {c.number: c.score for c in log}, {c.number: c.backbone for c in log}
        best = sorted(last, key=lambda i: -last[i])  # l.4: of all that was ever judged, by the last judgement
        again = best[:2] if 2 <= number <= 5 else best[:3] if number == 6 else []
        assert [c.number for c in batch[:len(again)]] == again
        for i, c in enumerate(batch[len(again):]):
            assert c.number == len(last) + i and c.backbone not in backbones.values()
            assert c.parent == (best[i % 2] if 2 <= number <= 5 else None)  # l.5
            assert c.parent is None or sum(a != b for a, b in zip(c.backbone, backbones[c.parent])) in (1, 2)

def test_the_same_seed_gives_the_same_history_and_a_prefix_of_whole_rounds_its_rest():
    judge = lambda number, c, log: any_score(number, c) if c.number % 3 else replace(c, reason="diverged")  # noqa: E731
    for s in (SETTINGS, replace(SETTINGS, seed=1), replace(SETTINGS, strategy="random", rounds=1)):
        history = history_of(s, judge, no_conv_3)
        assert history == history_of(s, judge, no_conv_3) != history_of(replace(s, seed=2), judge, no_conv_3)
        for rounds in range(len({c.round for c in history}) + 1):
            assert history_of(s, judge, no_conv_3, [c for c in history if c.round < rounds]) == history

def test_the_tables_hold_the_last_judgements_and_rejected_ones_are_no_parents():
    tables = []  # what the probe turned away counts in none

    def judge(number, c, log):
        M = {x.number: x for x in log if x.number is not None}
        assert tables[-1].tables == opnas.OperationPriority(M.values()).tables
        assert c.parent is None or M[c.parent].score is not None
        return any_score(number, c) if c.number % 3 == 1 else replace(c, reason="diverged")
    history = history_of(SETTINGS, judge, no_conv_3, note=lambda *about: tables.append(about[-1]))
    away = {c.backbone for c in history if c.number is None}
    assert away and all("conv 3" in backbone for backbone in away) and len(opnas.last_of(history)) == 34
    history_of(replace(SETTINGS, strategy="ea"), note=lambda *about: tables.append(about[-1]))
    assert tables[-1].p(0) == pytest.approx(dict.fromkeys(ops.OPS, 0.1))  # plain evolution draws uniformly
    nobody = history_of(SETTINGS, lambda number, c, log: replace(c, reason="diverged"))
    assert {c.parent for c in nobody} == {None} and len(opnas.last_of(nobody)) == 34

def test_a_probe_that_turns_everything_away_cannot_hang_the_search():
    s = replace(SETTINGS, population=2, parents=1, children=1, rounds=1, finalists=0)
    history = history_of(s, probe=lambda backbone: "collapsed", layers=1)
    assert Counter(c.reason for c in history) == {"collapsed": 297, "": 4} and len({c.backbone for c in history}) == 300

def test_evolution_makes_no_torch_call_itself(monkeypatch):
    for name in ("opnas.torch", "opnas.autobert", "opnas.glue", "opnas.supernet", "ops.torch", "ops.F"):
        monkeypatch.setattr(name, None)
    assert len(history_of(SETTINGS)) == 45

# ---- Whole runs ----
def script(patch, line):
    """A script's command line, in this process."""
    patch.setattr(sys, "argv", shlex.split(line))
    runpy.run_path(str(HERE / sys.argv[0]), run_name="__main__")

def process(line):
    """The same in one of its own, whose output ends when it and all its children have ended."""
    return subprocess.Popen([sys.executable, *shlex.split(line)], cwd=HERE, text=True, stdout=-1, stderr=-1)  # -1: PIPE

@pytest.fixture(scope="session")
def common(tmp_path_factory):
    """A small corpus, and a task of few rows."""
    folder, documents = tmp_path_factory.mktemp("common"), (TOY / "corpus.txt").read_text().split("\n\n")
    write_rows(folder / "text.txt", "\n\n".join(documents[:60]))
    data.prepare((str(folder / "text.txt"),), str(folder / "corpus"), 300)
    for split in ("train", "dev"):
        write_rows(folder / f"glue/RTE/{split}.tsv", *(TOY / f"glue/RTE/{split}.tsv").read_text().splitlines()[:100])
    return folder / "corpus"

@pytest.fixture(scope="session")
def search(common):
    """The command line of a small search, to which --workers and --out are missing."""
    return (f"opnas.py --corpus {common} --glue {common}/../glue --tasks RTE --rows 30 --warm 8 --parents 1 "
            "--population 3 --children 2 --rounds 1 --finalists 1 --steps 8 --final-steps 6 --device cpu "
            "--workers {} --out {}")

@pytest.fixture(scope="session")
def finished(search, tmp_path_factory):
    """A small search by two workers: its folder, and what it printed."""
    run = tmp_path_factory.mktemp("runs") / "two"
    out, err = (whole := process(search.format(2, run))).communicate(timeout=300)
    assert whole.returncode == 0 and "Traceback" not in err, err
    return run, out.splitlines()

def outcome(run):
    """All that a search's seed decides: the log without seconds, offset, weights, winner, table."""
    state, final = (torch.load(run / name, weights_only=True) for name in ("state.pt", "best-0.pt"))
    return ([replace(opnas.Candidate(*c), seconds=0.0) for c in state["log"]], state["offset"],
            [x.numpy().tobytes() for x in [*state["slots"].values(), *final["state"].values()]],
            *((run / name).read_text() for name in ("best.json", "table.txt")))

def test_a_search_goes_from_text_to_a_table_and_says_how_far_it_is(finished, search, monkeypatch, capsys):
    (run, lines), (history, *_, winner, table) = finished, outcome(finished[0])
    judged = [c for c in history if c.number is not None]
    assert [c.round for c in judged] == [0, 0, 1, 2, 2, 2, 3] and sum(c.score is not None for c in judged) > 5
    assert lines[0] == f"toy preset, seed 0, 2 workers; all settings in {run}/settings.json"
    for line, c in zip([line for line in lines if line.startswith("cand=")], judged, strict=True):
        score = c.reason if c.score is None else f"{c.score:.3f}"
        pattern = rf"cand={c.number}/5 round={c.round} score={score} best=\d\.\d{{3}} left=\d+m\d\ds \| .*"
        assert re.fullmatch(pattern, line) and len(line) <= 120, line
    head, *rows = [row.split("\t") for row in (run / "candidates.tsv").read_text().splitlines()]
    assert "RTE" in head and [row[-1] for row in rows] == [" | ".join(c.backbone) for c in history]
    assert [line.split()[0] for line in table.splitlines()[1:4]] == ["best", "bert", "autobert-zero"]
    assert json.loads(winner)["backbone"] == [*(judged[-1] if judged[-1].score else judged[0]).backbone]
    assert "\n".join(lines).endswith(table.strip()) and "from bert" in lines[-1] and not [*run.glob("round-*")]
    script(monkeypatch, search.format(1, run))  # the same command again shows the result
    assert "cand=" not in (said := capsys.readouterr().out) and said.endswith(table)

def test_one_worker_gives_the_same_and_other_settings_are_refused(finished, search, tmp_path, monkeypatch, capsys):
    script(monkeypatch, search.format(1, tmp_path / "one"))
    assert outcome(tmp_path / "one") == outcome(finished[0])
    with pytest.raises(SystemExit, match="2"):
        script(monkeypatch, search.format(1, tmp_path / "one") + " --rounds 2 --seed 1")
    assert re.fullmatch("error: .*other settings .rounds 1, not 2, seed 0, not 1.*\n", capsys.readouterr().err)

def test_a_search_killed_at_once_goes_on_to_the_same_end_and_leaves_no_process(finished, search, tmp_path, monkeypatch):
    victim, run = process(search.format(2, tmp_path / "killed")), tmp_path / "killed"
    next(line for line in victim.stdout if " round=2 " in line)  # the first mutant's
    victim.kill()  # by signal 9
    victim.communicate(timeout=60)  # its workers have ended, too
    assert victim.returncode == -9 and not (run / "table.txt").exists()
    script(monkeypatch, search.format(1, run))
    assert outcome(run) == outcome(finished[0])

@pytest.mark.parametrize("name, error, says", [
    ("evolve", KeyboardInterrupt, "interrupted; the same command again goes on"),
    ("evolve", torch.OutOfMemoryError("CUDA: out of memory"), "out of memory; .*fewer workers"),
    ("evolve", BrokenProcessPool, "a worker .*died.*; the same command again goes on"),
    ("Proxy.scores", autobert.Diverged("nan"), "all candidates were rejected: .*'diverged': 5")])
def test_what_stops_a_search_is_one_line(name, error, says, search, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(f"opnas.{name}", mock.Mock(side_effect=error))
    monkeypatch.setattr(sys, "argv", shlex.split(search.format(1, tmp_path / "run")))
    with pytest.raises(SystemExit, match="2"):
        data.run("", usual=opnas.search)
    assert re.fullmatch(f"error: {says}.*\n", capsys.readouterr().err)

def test_a_task_that_tells_a_round_nothing_is_named(monkeypatch, capsys, tasks=("CoLA", "QNLI", "RTE")):
    monkeypatch.setattr(opnas, "PROXY", mock.Mock(tasks=dict.fromkeys(tasks, ((None, np.array([0, 0, 1])), None))))
    for scores, named in (([(0.04, 0.73, 0.99), (0, 0.5, 0.96), ()], ["CoLA", "RTE"]), ([(0, 0.5, 0.99)], [])):
        opnas.tell_useless([opnas.Candidate(0, 0, None, (), tasks=tuple(zip(tasks, x))) for x in scores])
        assert re.findall(r"-- (\S+) told nothing", capsys.readouterr().out) == named
    assert "below bert: -2.0 ± 1.3 (95 %, 4" in glue.verdict(np.array([-1.0, -2, -2, -3]))

def test_a_search_begins_with_both_branches_of_every_layer_warm(finished, tmp_path):
    opnas.start_worker(finished[0], "cpu")
    opnas.PROXY.warm(tmp_path / "state.pt")
    cold, warm = supernet.SuperNet(opnas.PROXY.config, 0).slots, opnas.load(tmp_path / "state.pt")["slots"]
    assert {x for x in warm if torch.equal(warm[x], cold[x])} == {x for x in warm if ".transforms." in x or ".P." in x}

def losses_in(path):
    return [[float(x) for x in line.split("\t") if x] for line in path.read_text().splitlines()[1:]]  # step, rate, ..

def test_a_killed_pretraining_goes_on_bit_for_bit(text, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(autobert.SIZES, "toy", replace(TINY, vocab=300, dropout=0.2))
    train = lambda name: autobert.train(  # noqa: E731
        {"steps": 20, "batch": 4, "n": 32}, str(text), device="cpu", out=f"{tmp_path}/{name}.pt")
    train("whole")
    with monkeypatch.context() as patch:  # dies behind step 10, before it is saved
        save = autobert.save_checkpoint
        patch.setattr(autobert, "save_checkpoint", lambda *a, step, **b: save(*a, step=step, x=1 // (10 - step), **b))
        with pytest.raises(ZeroDivisionError):
            train("half")
    torch.manual_seed(99)  # what others draw meanwhile makes no difference
    train("half")
    steps = re.findall(r"^step=(\d+)/20 mlm=\S+ nsp=\S+ lr=\S+ left=\d+m\d\ds$", capsys.readouterr().out, re.M)
    assert [*map(int, steps)] == [*range(1, 21), *range(1, 11), *range(6, 21)]
    whole, half = (autobert.load_checkpoint(tmp_path / f"{x}.pt")[2]["state"] for x in ("whole", "half"))
    assert all(torch.equal(x, half[name]) for name, x in whole.items())
    assert (tmp_path / "half.pt.tsv").read_text() == (tmp_path / "whole.pt.tsv").read_text()

def test_two_processes_learn_as_one(common, tmp_path):
    line = f"autobert.py train --steps 10 --batch 7 --n 32 --corpus {common} --device cpu --out {tmp_path}/two.pt"
    many = process(f"-m torch.distributed.run --standalone --nproc-per-node 2 -- {line}")  # one of them takes four rows
    out, err = many.communicate(timeout=300)
    assert many.returncode == 0 and out.count("step=10/10") == 1, err
    autobert.train({"steps": 10, "batch": 7, "n": 32}, str(common), device="cpu", out=f"{tmp_path}/one.pt")
    two, one = (sum(losses_in(tmp_path / f"{x}.pt.tsv"), []) for x in ("two", "one"))
    assert len(two) == 10 * 4 + 2 * 2 and two == pytest.approx(one, rel=1e-5)

# ---- Everyday mistakes: one line on stderr, exit code 2 ----
@pytest.fixture(scope="session")
def shelf(text, corpus, tokenizer, tmp_path_factory):
    """A folder of good and bad files."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, genes in (("kernel", [BERT, "conv 4"]), ("illegal", ["Q @ K", BERT]), ("odd", ["Q @", BERT])):
        autobert.save_backbone(folder / f"{name}.json", [*genes, BERT, "conv 3"])
    write_rows(folder / "one.txt", "One two three four.", *["Five six seven eight nine ten."] * 9)
    (folder / "latin.txt").write_bytes("Good.\n\nCafé.\n".encode("latin-1"))
    write_rows(folder / "RTE/train.tsv", RTE.replace("sentence1", "premise"), "0\ta\tb\tentailment")
    small_checkpoint(folder / "m.pt", tokenizer)
    (folder / "toy").symlink_to(TOY)
    (folder / "corpus").symlink_to(text.with_name("corpus"))
    return folder

@pytest.mark.parametrize("line, says", [
    ("opnas.py --corpus none.txt", "none.txt: no such file"), ("opnas.py resume", "unrecognized arguments: resume"),
    ("opnas.py --corpus corpus --glue none --out a", "none/QNLI/train.tsv: no such file"),
    ("opnas.py --corpus corpus --out b --device tpu9", "--device tpu9"), ("opnas.py --tasks WNLI", "choice: 'WNLI'"),
    ("autobert.py trian", "'trian': no command; expected one of train, summary, export"),
    ("autobert.py train --lr fast", "--lr: invalid float value: 'fast'"), ("autobert.py train --stpes 3", "--stpes"),
    ("autobert.py train --corpus latin.txt", "latin.txt:3: not UTF-8"), ("train --corpus toy", "toy: not a corpus"),
    ("data.py prepare --text one.txt --vocab 50 --out d", "one.txt: 1 documents; expected 4"),
    ("data.py prepare --text one.txt --vocab 99999 --out e", "--vocab 99999: Vocabulary size"),
    ("train --corpus corpus --n 129", "129 tokens a row; the model has 128 positions"),
    ("train --corpus corpus --batch 2 --accumulate 4", "--batch 2: fewer rows than --accumulate 4"),
    ("train --corpus corpus --backbone nobody", "backbone 'nobody': none of bert, autobert-zero"),
    ("train --corpus corpus --backbone kernel.json", "kernel.json, layer 2: 'conv 4': .* one of conv 3"),
    ("train --corpus corpus --backbone illegal.json", "illegal.json, layer 1: 'Q @ K': step 1: matmul"),
    ("train --corpus corpus --backbone odd.json", "odd.json, layer 1: 'Q @': formula"),
    ("train --corpus corpus --init one.txt", "checkpoint one"), ("autobert.py export --checkpoint m", "m: .*No such"),
    ("glue.py finetune --checkpoint m.pt --glue . --task RTE", "RTE/train.tsv:1: .*columns.* sentence1, "),
    ("glue.py predict --model m.pt", "m.pt: .*finetune --save"), ("glue.py squad --dev no.json", "no.json: no such"),
    ("ops.py 'Q @ foo(K)'", "formula .*foo")])
def test_everyday_mistakes_end_in_one_line_and_exit_code_2(line, says, shelf, capsys, monkeypatch):
    monkeypatch.chdir(shelf)
    with pytest.raises(SystemExit, match="2"):
        script(monkeypatch, re.sub("^train", "autobert.py train", line))
    assert re.fullmatch(f"error: .*{says}.*\n", capsys.readouterr().err) and not (shelf / "a/state.pt").exists()

# ---- README ----
README = (HERE / "README.md").read_text(encoding="utf-8")
COMMAND = re.compile(r"^ *(?:python|torchrun .*--) ((?:studies/)?\w+\.py.*?)(?:  +#.*)?$", re.M)

def test_every_command_in_readme_and_docstrings_parses(monkeypatch, capsys):
    Parsed = type("Parsed", (BaseException,), {})
    def parse(self, argv=None, namespace=None):
        original(self, argv, namespace)
        raise Parsed
    original, lines = data.argparse.ArgumentParser.parse_args, COMMAND.findall(README)
    monkeypatch.setattr(data.argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.syspath_prepend(HERE / "studies")
    assert len(lines) >= 8
    for line in lines + [line for name in CORE for line in COMMAND.findall(sys.modules[name].__doc__)]:
        if not line.startswith("ops.py"):  # its words are formulas
            with pytest.raises(Parsed):
                script(monkeypatch, line)
    assert not ops.main("--help") and "step by step" in capsys.readouterr().out

def test_every_name_in_readme_exists_and_its_two_commands_are_what_ci_runs():
    names = {*re.findall(rf"`({'|'.join(CORE)})\.(?!py\b|pt\b)(\w+)", README)}
    assert len(names) >= 15 and not [f"{x}.{name}" for x, name in names if not hasattr(sys.modules[x], name)]
    setup = "\npython3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/python "
    assert f"{setup}opnas.py\n" in README and all(
        f"{setup}-m pytest -q\n" in text for text in (README, (HERE / ".ci/run").read_text()))

@pytest.mark.parametrize("name", CORE)
def test_readme_lists_every_choice_and_deviation_and_no_other(name):
    listed = README.split("<!-- choices -->")[1].split("<!-- /choices -->")[0]
    listed = re.search(rf"^- \*\*{name}\.py\*\* (.*)$", listed, re.M)[1]
    found = re.findall(r"(?:CHOICE|DEVIATION): (.*)", (HERE / f"{name}.py").read_text(encoding="utf-8"))
    assert [words for words in found if " ".join(words.split()[:4]).rstrip('.,;"') not in listed] == []
    assert len(re.findall("(?:CHOICE|DEVIATION): ", listed)) == len(found) > 0
