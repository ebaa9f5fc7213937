"""The specification as tests, in the order of the files, then whole runs, command lines and README.

Every hand-written part has an oracle that shares no code with it: torch's own modules, a naive loop, numbers worked
by hand.

    python -m pytest -q test_all.py
"""
import contextlib
import copy
import fcntl
import gzip
import itertools
import json
import lzma
import math
import os
import pickle
import random
import re
import resource
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
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
from data import UserError

torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs, and theirs, ignore it
SCRIPTS = {module.__name__: module for module in (ops, data, autobert, supernet, glue, opnas)}
TINY = autobert.ModelConfig(2, 16, 2, 16, vocab=50, positions=32, dropout=0.0, init_std=0.2)
BERT = ops.ATTENTIONS["bert"]


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def copies(tensors):
    """A dict of tensors as it is now."""
    return {name: tensor.clone() for name, tensor in tensors.items()}


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """The toy corpus, GLUE and SQuAD."""
    return data.write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="session")
def tokenizer(toy):
    return data.Tokenizer.train([toy / "corpus.txt"], data.TOY_VOCAB)


# ---- ops.py: the ten primitives ----


def test_table_1_has_ten_ops_six_unary_and_four_binary():
    assert [row.arity for row in ops.OPS.values()] == [1] * 6 + [2] * 4


def test_every_op_computes_its_definition():
    x, y, d_h = gaussian(2, 3, 5, 4).double(), gaussian(2, 3, 5, 4, seed=1).double(), 7
    a, b = x.numpy(), y.numpy()
    rows_a, rows_b = a[..., :, None, :], b[..., None, :, :]
    norm = lambda v: np.sqrt((v * v).sum(-1) + 1e-6)  # noqa: E731
    expected = {
        "neg": -a, "transpose": np.swapaxes(a, -1, -2), "scale": a / math.sqrt(7),
        "softmax": np.exp(a) / np.exp(a).sum(-1, keepdims=True), "logsigmoid": np.log(1 / (1 + np.exp(-a))),
        "softsign": a / (1 + np.abs(a)), "add": a + b, "matmul": np.einsum("...ik,...jk->...ij", a, b),
        "cos": (rows_a * rows_b).sum(-1) / (norm(rows_a) * norm(rows_b)),
        "dist": np.sqrt(((rows_a - rows_b) ** 2).sum(-1) + 1e-6)}
    for op, row in ops.OPS.items():
        arguments = [x] if row.arity == 1 else [x, y.mT if op == "matmul" else y]
        np.testing.assert_allclose(row.value(d_h, *arguments).numpy(), expected[op], rtol=1e-7, atol=1e-7, err_msg=op)


@pytest.mark.parametrize("op, operands, result", [
    ("neg", ("dn",), "dn"), ("transpose", ("nd",), "dn"), ("transpose", ("nn",), "nn"), ("softmax", ("dd",), "dd"),
    ("add", ("nd", "nd"), "nd"), ("add", ("nd", "dn"), None), ("add", ("nn", "dd"), None),
    ("matmul", ("nd", "dn"), "nn"), ("matmul", ("dn", "nd"), "dd"), ("matmul", ("nd", "nd"), None),
    ("matmul", ("nn", "nd"), "nd"), ("cos", ("nd", "nd"), "nn"), ("cos", ("nd", "dd"), "nd"),
    ("cos", ("nd", "dn"), None), ("dist", ("dn", "nn"), "dn"), ("dist", ("nn", "dn"), "nd")])
def test_type_rules(op, operands, result):
    assert ops.OPS[op].type(*operands) == result


@pytest.mark.parametrize("formula, reason", [
    ("Q @ K", "step 1: matmul does not take (n,d) and (n,d)"),
    ("T(K) + Q", "step 2: add does not take (d,n) and (n,d)"),
    ("Q @ T(K)", "the output is (n,n)"),
    ("cos(Q, T(T(V) @ Q)) @ Q", "matmul does not take (n,d) and (n,d)"),
    ("softmax(scale(Q @ T(Q))) @ Q", "reads only Q"),
    ("Q + softsign(K)", "no op mixes tokens"),
    ("softmax(Q) + K", "no op mixes tokens"),
    ("Q + " * 17 + "K @ (T(K) @ K)", "ops; expected 1 to 16")])
def test_every_illegal_graph_has_its_reason(formula, reason):
    assert reason in ops.why_illegal(ops.parse(formula))


def test_malformed_genomes_are_illegal_too():
    assert "no op of Table 1" in ops.why_illegal((("cube", 0),))
    assert "no op of Table 1" in ops.why_illegal((("add", 0),))
    assert "not filled" in ops.why_illegal((("add", 0, 5),))
    assert "0 ops" in ops.why_illegal(())


def test_mixing_can_be_switched_off():
    dag = ops.parse("Q + softsign(K)")
    assert ops.why_illegal(dag) and ops.why_illegal(dag, require_mixing=False) is None


@pytest.mark.parametrize("name", ops.ATTENTIONS)
def test_published_attentions_are_legal_and_print_as_published(name):
    dag = ops.parse(ops.ATTENTIONS[name])
    assert ops.why_illegal(dag) is None and ops.formula(dag) == ops.ATTENTIONS[name]


def test_bert_has_path_length_5():
    assert ops.parse(BERT) == (("transpose", 1), ("matmul", 0, 4), ("scale", 5), ("softmax", 6), ("matmul", 7, 2))


def test_canonical_form_prunes_merges_and_sorts():
    dead_and_double = (("neg", 0), ("softmax", 3), ("neg", 0), ("add", 1, 6))
    assert ops.canonical(dead_and_double) == (("neg", 0), ("add", 4, 1))
    assert ops.parse("Q + K") == ops.parse("K + Q") == (("add", 1, 0),)
    assert ops.parse("(-Q) @ (T(-Q) @ K)") == ops.parse("a = -Q; a @ (T(a) @ K)")
    assert ops.parse("Q @ (T(K) @ V)") != ops.parse("(Q @ T(K)) @ V")


def test_a_shared_node_is_named_once():
    text = "a = softsign(K); softmax(Q @ T(a)) @ (a + V)"
    assert ops.formula(ops.parse(text)) == text


def test_formula_and_graph_are_one_notation():
    rng = random.Random(1)
    for _ in range(500):
        dag = ops.canonical(ops.draw(rng)) or ops.parse(BERT)
        assert ops.parse(ops.formula(dag)) == dag


def row_softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def unit_rows(x):
    return x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)


def python_formula(text, inputs, d_h):
    """A formula's value by Python's own grammar and NumPy; inputs: letter -> (n, d_h) array."""
    space = {"T": lambda x: x.T, "scale": lambda x: x / math.sqrt(d_h), "softsign": lambda x: x / (1 + np.abs(x)),
             "logsigmoid": lambda x: -np.logaddexp(0, -x), "softmax": row_softmax,
             "cos": lambda x, y: unit_rows(x) @ unit_rows(y).T,
             "dist": lambda x, y: np.sqrt(((x[:, None] - y[None]) ** 2).sum(-1) + 1e-6), **inputs}
    *statements, output = text.split("; ")
    for statement in statements:
        exec(statement, space)
    return eval(output, space)


def test_a_formula_means_what_python_computes():
    """Python's own eval of the text, on matrices, is the oracle of parser and printer."""
    rng, inputs = random.Random(2), gaussian(4, 1, 1, 6, 4).double()
    for _ in range(200):
        dag = ops.random_dag(rng)
        theirs = python_formula(ops.formula(dag), {x: v[0, 0].numpy() for x, v in zip("QKVP", inputs)}, 4)
        np.testing.assert_allclose(ops.evaluate(dag, list(inputs))[0, 0].numpy(), theirs, rtol=1e-6, atol=1e-6,
                                   err_msg=ops.formula(dag))


@pytest.mark.parametrize("text", [
    "", "Q", "Q +", "foo(Q)", "a = Q", "Q * K", "Q.x", "1", "x", "T(Q, K)", "T()", "cos(Q)", "Q = K; Q @ T(K) @ K",
    "a = -Q; a = -K; a", "(" * 300 + "Q" + ")" * 300, "-" * 5000 + "Q", "\0", "import os", "T(*Q)", "a = b = -Q; a",
    "+Q", "T(x=Q)", "Q if K else V", "Q\n;", "é(Q)", "-" * 201 + "Q", "a.b = Q; Q", "-Q; -K"])
def test_malformed_text_raises_one_clear_error(text):
    with pytest.raises(ValueError, match="formula"):
        ops.parse(text)


def test_shared_nodes_do_not_blow_up():
    text = "a = Q + K; " + "".join(f"{y} = {x} + {x}; " for x, y in zip("abcdefghijklmno", "bcdefghijklmnop")) + "p"
    dag = ops.parse(text)
    assert len(dag) == 16 and ops.parse(ops.formula(dag)) == dag


# ---- ops.py: what a graph computes ----


@pytest.mark.parametrize("padded", [False, True])
def test_bert_is_scaled_dot_product_attention(padded):
    q, k, v = gaussian(3, 4, 2, 7, 8)
    mask = torch.arange(7) < torch.tensor([[7], [4], [1], [6]]) if padded else None
    ours = ops.evaluate(ops.parse(BERT), (q, k, v, None), mask)
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :] if padded else None)
    torch.testing.assert_close(ours, theirs)


def test_published_attentions_are_their_equations():
    """Written out by hand; L2 and L12 as the paper prints them, log(1 + e^x) and all."""
    q, k, v, _ = inputs = gaussian(4, 1, 1, 5, 4)

    def log1pexp(x):
        return torch.log(1 + torch.exp(x))

    def attend(score, value):
        return torch.exp(score / 2) / torch.exp(score / 2).sum(-1, keepdim=True) @ value
    half, sign = k / 2, lambda x: x / (1 + x.abs())  # √d_h = 2
    by_hand = {
        "bert": attend(q @ k.mT, v), "L2": attend(q @ log1pexp(k.mT), k + q),
        "L4": attend(q @ log1pexp(-(torch.log(1 / (1 + torch.exp(-q))) + (k + q))).mT, q),
        "L6": attend(q @ log1pexp(-k).mT, q), "L8": attend(q @ log1pexp(-k).mT, q),
        "L10": attend(q @ (half + (sign(sign(k) / 2) + v)).mT, v), "L12": attend(q @ (half + v).mT, v)}
    for name, expected in by_hand.items():
        torch.testing.assert_close(ops.evaluate(ops.parse(ops.ATTENTIONS[name]), inputs), expected)


def test_scale_divides_by_the_head_size_whatever_the_operand():
    x = gaussian(1, 1, 9, 4)
    dag = ops.parse("V @ scale(T(K) @ Q)")
    torch.testing.assert_close(ops.evaluate(dag, (x, x, x, None)), x @ (x.mT @ x) / 2)


def test_dist_needs_no_third_axis_and_has_a_gradient_at_zero():
    x = torch.zeros(1, 1, 3, 2, requires_grad=True)
    y = ops.evaluate(ops.parse("dist(Q, K) @ K"), (x, x, None, None))
    y.sum().backward()
    assert torch.isfinite(x.grad).all()
    big = torch.zeros(1, 1, 4000, 64)  # n x n x d would take 4 GB
    assert ops.OPS["dist"].value(64, big, big).shape == (1, 1, 4000, 4000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cheap_dropout_drops_what_torchs_does(dtype):
    torch.manual_seed(0)
    x = torch.ones(401, 1003, dtype=dtype, requires_grad=True)  # a count that four does not divide
    y = ops.drop(x, 0.1)
    y.backward(torch.full_like(y, 2))
    kept = torch.tensor(1 / 0.9, dtype=dtype)
    assert set(y.flatten().tolist()) == {0.0, kept.item()} and torch.equal(x.grad, 2 * y)
    gone = (y == 0).double()
    spread = 5 * (0.1 * 0.9 / gone.numel()) ** 0.5  # five standard errors
    assert abs(gone.mean() - 0.1) < spread
    for shift in (1, 2, 3, 4, 1003):  # draws share 64 bits, yet are independent
        line = gone.flatten()
        assert abs((line[shift:] * line[:-shift]).mean() - 0.01) < spread
    torch.manual_seed(0)
    assert torch.equal(ops.drop(x, 0.1), y) and ops.drop(x, 0.0) is x
    assert torch.equal(ops.drop(x, 1.0), torch.zeros_like(x))


def test_dropout_falls_on_softmaxes_of_type_nn_only(monkeypatch):
    x, shapes = gaussian(1, 1, 5, 3), []
    dag = ops.parse("softmax(Q @ T(K)) @ softmax(V) @ softmax(T(K) @ Q)")
    monkeypatch.setattr(ops, "drop", lambda weights, rate: shapes.append((weights.shape, rate)) or weights)
    ops.evaluate(dag, (x, x, x, None), dropout=0.3)
    assert shapes == [((1, 1, 5, 5), 0.3)]


@pytest.mark.parametrize("n, d_h", [(6, 4), (4, 4)])  # n == d_h: types must be symbolic
def test_padding_never_changes_real_tokens(n, d_h):
    """Three real tokens alone, and before n - 3 padded positions of any content, for random legal graphs."""
    rng = random.Random(n)
    for trial in range(300):
        dag = ops.random_dag(rng)
        alone = gaussian(4, 2, 2, 3, d_h, seed=trial).double()
        padded = torch.cat([alone, 9 * gaussian(4, 2, 2, n - 3, d_h, seed=trial + 1).double()], -2)
        mask = torch.arange(n).expand(2, n) < 3
        torch.testing.assert_close(ops.evaluate(dag, list(padded), mask)[..., :3, :], ops.evaluate(dag, list(alone)),
                                   rtol=1e-9, atol=1e-9, msg=ops.formula(dag))


def test_a_mask_in_the_softmax_alone_would_leak():
    """The property above can fail: without the padding rule the sums over tokens see the padding."""
    x = gaussian(3, 1, 1, 4, 2)
    dag, mask = ops.parse("Q @ (T(K) @ V)"), torch.tensor([[True, True, False, False]])
    seen, hidden = ops.evaluate(dag, (*x, None)), ops.evaluate(dag, (*x, None), mask)
    assert not torch.allclose(seen[..., :2, :], hidden[..., :2, :])


def test_a_row_without_a_real_token_stays_finite():
    rng = random.Random(5)
    for _ in range(100):
        x = gaussian(4, 2, 1, 5, 3).requires_grad_()
        y = ops.evaluate(ops.random_dag(rng), list(x), torch.tensor([[True] * 5, [False] * 5]))
        y.sum().backward()
        assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()


def test_fusing_finds_the_pattern_and_only_it():
    assert ops.fuse(ops.parse(BERT)) == (("transpose", 1), ("attend", 0, 4, 2))
    assert ops.fuse(ops.parse("softmax(Q @ T(K)) @ V")) == (("transpose", 1), ("attend unscaled", 0, 4, 2))
    assert all("attend" in [op for op, *_ in ops.fuse(ops.parse(text))] for text in ops.ATTENTIONS.values())
    for other, count in (("softmax(scale(Q @ T(K))) @ V @ (T(K) @ Q)", 1), ("cos(Q, K) @ V", 0),
                         ("V @ (softmax(T(Q) @ K) @ (T(K) @ Q))", 0), ("a = softmax(Q @ T(K)); a @ (a @ V)", 0)):
        assert ops.why_illegal(ops.parse(other)) is None
        assert sum(node[0].startswith("attend") for node in ops.fuse(ops.parse(other))) == count, other


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_fused_attention_is_the_plain_one_gradients_too(dtype, tolerance):
    rng = random.Random(11)
    dags = [ops.parse(text) for text in ops.ATTENTIONS.values()]
    dags += [dag for dag in (ops.random_dag(rng) for _ in range(6000)) if ops.fuse(dag) != dag][:25]
    assert len(dags) > 12
    for dag in dags:
        for mask in (None, torch.arange(6) < torch.tensor([[6], [2], [0]])):
            results = []
            for graph in (dag, ops.fuse(dag)):
                x = [v.to(dtype).requires_grad_() for v in gaussian(4, 3, 2, 6, 4)]
                y = ops.evaluate(graph, x, mask)
                y.sum().backward()
                results.append([y, *(v.grad for v in x if v.grad is not None)])
            for plain, fused in zip(*results):
                torch.testing.assert_close(fused, plain, rtol=tolerance, msg=ops.formula(dag),
                                           atol=tolerance * max(1, plain.abs().max().item()))


def test_cost_of_bert_by_hand():
    n, d = 10, 4  # two products of 2 n n d, scale n n, softmax 5 n n, transpose nothing
    assert ops.flops(ops.parse(BERT), n, d) == 2 * 2 * n * n * d + n * n + 5 * n * n


# ---- ops.py: random graphs ----


def test_random_draws_reach_the_whole_space_and_are_mostly_legal():
    draws = [ops.draw(random.Random(i)) for i in range(2000)]
    legal = [dag for dag in draws if ops.why_illegal(dag, require_mixing=False) is None]
    assert len(legal) >= 0.4 * len(draws)
    assert sum(map(ops.mixes, legal)) >= 0.8 * len(legal)
    assert {len(dag) for dag in legal} >= set(range(4, 15)) and max(map(len, legal)) <= 14
    assert {op for dag in legal for op, *_ in dag} == set(ops.OPS)
    assert {len(ops.used(dag)) for dag in legal} == {2, 3, 4}
    repeated = sum(any(op in ("add", "cos", "dist") and a[0] == a[1] for op, *a in dag) for dag in legal)
    assert repeated < 0.15 * len(legal)


def test_random_dag_is_always_legal_and_its_own_canonical_form():
    rng = random.Random(0)
    for _ in range(300):
        dag = ops.random_dag(rng)
        assert ops.why_illegal(dag) is None and ops.canonical(dag) == dag


def test_weights_steer_the_growth():
    heavy = Counter(op for i in range(200) for op, *_ in ops.draw(random.Random(i), lambda position: {
        op: 50.0 if op == "softsign" else 1.0 for op in ops.OPS}))
    even = Counter(op for i in range(200) for op, *_ in ops.draw(random.Random(i)))
    assert heavy["softsign"] > 2 * even["softsign"]


def test_exact_counts_are_those_of_brute_force():
    """All pairs of nodes, legal and canonical."""
    first = [(op, *args) for op, row in ops.OPS.items() for args in itertools.product(range(4), repeat=row.arity)]
    second = [(op, *args) for op, row in ops.OPS.items() for args in itertools.product(range(5), repeat=row.arity)]
    found = {ops.canonical(dag) for dag in itertools.product(first, second) if ops.why_illegal(dag) is None}
    assert ops.count_legal(2) == sum(len(dag) == 2 for dag in found) == 120
    assert ops.count_legal(1) == 0 and all(ops.mixes(dag) for dag in found)


def test_the_estimate_of_the_count_is_unbiased():
    mean, error = ops.estimate_legal(3, 6000, random.Random(1))
    assert error < 0.05 * 6444 and abs(mean - 6444) < 4 * error
    assert ops.count_legal(3) == 6444


def test_random_graphs_stay_finite_at_full_size():
    for dtype in (torch.float32, torch.bfloat16):
        assert ops.count_failures(60, random.Random(0), dtype) == {"finite": 60}


# ---- data.py: documents, tokenizer ----


def test_documents_are_read_plain_or_packed_with_any_blank_lines(tmp_path):
    text = "\ufeff\n\nOne two.\r\nThree\u2028four.\n\n\n  \nFive.\n"
    for name, opener in (("a.txt", open), ("a.txt.gz", gzip.open), ("a.txt.xz", lzma.open)):
        with opener(tmp_path / name, "wb") as file:
            file.write(text.encode())
        assert list(data.read_documents([tmp_path / name])) == [["One two.", "Three\u2028four."], ["Five."]]


@pytest.mark.parametrize("content, says", [(None, "no such file"), (b"", "no text"), (b"\n \n", "no text"),
                                           (b"ok.\nbad \xff.\n", "c.txt:2"), (b"One.\nTwo.\n", "two documents")])
def test_a_bad_corpus_is_one_clear_error(tmp_path, tokenizer, content, says):
    if content is not None:
        (tmp_path / "c.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        data.load_corpus([tmp_path / "c.txt"], tokenizer)


def test_truncated_packed_corpora_are_one_clear_error(tmp_path):
    for name, opener in (("a.gz", gzip.open), ("a.xz", lzma.open)):
        with opener(tmp_path / name, "wb") as file:
            file.write(b"One two three.\n" * 1000)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
        with pytest.raises(UserError, match=name):
            list(data.read_documents([tmp_path / name]))


def corpus_of(documents):
    """The Corpus of lists of lists of ids."""
    sentences = [sentence for document in documents for sentence in document]
    last = np.cumsum([len(document) for document in documents])
    return data.Corpus(np.array([x for sentence in sentences for x in sentence], np.int32),
                       np.cumsum([0] + [len(sentence) for sentence in sentences]),
                       np.array([last - [len(document) for document in documents], last]).T)


def documents_of(corpus):
    """The way back, by the words of Corpus' docstring."""
    return [[corpus.tokens[corpus.sentences[s]:corpus.sentences[s + 1]].tolist() for s in range(first, last)]
            for first, last in corpus.documents]


@pytest.mark.parametrize("chunk", [1, 60, 1 << 20])
def test_a_corpus_is_what_the_tokenizer_makes_of_each_sentence(tmp_path, tokenizer, monkeypatch, chunk):
    monkeypatch.setattr(data, "CHUNK", chunk)  # so that a document spans many chunks, or a chunk many documents
    (tmp_path / "a.txt").write_text("The hens feed.\n\u200b\nA goat.\n\n\n\u200b\n\nThe boats.\n")
    (tmp_path / "b.txt").write_text("The cook bakes a pie.\n\nA song.\n\n")
    corpus = data.load_corpus([tmp_path / "a.txt", tmp_path / "b.txt"], tokenizer)
    assert tokenizer.encode("\u200b") == [] and corpus.tokens.dtype == np.uint16  # no token, so no sentence
    assert documents_of(corpus) == [[tokenizer.encode(text) for text in document] for document in (
        ["The hens feed.", "A goat."], ["The boats."], ["The cook bakes a pie."], ["A song."])]


def test_held_out_documents_are_no_training_documents():
    for count in (4, 5, 40, 100):
        parts = data.split_held_out(corpus_of([[[i]] for i in range(count)]))
        numbers = [[document[0][0] for document in documents_of(part)] for part in parts]
        assert sorted(numbers[0] + numbers[1]) == list(range(count)) and min(map(len, numbers)) >= 2
    train, held = data.split_held_out(corpus_of([[[1, 2], [3], [4, 5]], [[6]]]))  # too few: the tail of each
    assert documents_of(train) == [[[1, 2], [3]], [[6]]] and documents_of(held) == [[[4, 5]], [[6]]]


def test_special_ids_and_offsets(tokenizer):
    assert tokenizer.pieces(range(5)) == ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    text = "  The hens [MASK] <pad> [SEP]  ﬁne\u00a0éclair 猫."
    ids, spans = tokenizer.encode_with_offsets(text)
    assert ids == tokenizer.encode(text) and not {data.PAD, data.CLS, data.SEP, data.MASK} & set(ids)
    assert all(0 <= start <= end <= len(text) for start, end in spans)
    ids, spans = tokenizer.encode_with_offsets("The hens feed the goat.")
    assert "".join("The hens feed the goat."[a:b] for a, b in spans) == "Thehensfeedthegoat."
    assert tokenizer.encode("THE HENS") == tokenizer.encode("the hens")  # case-folded


PARTS = [*"éＡ１猫ßİŉẞ½㎏Ⅷﷺ한…™ﬁﬄﾞ▁$.a", "e\u0301", "o\u0323\u0302", "日本", "カ゛", "ｶﾞ", "ﾊﾟ", "\u1112\u1161\u11ab", "\u0301",
         *"\t\u00a0\u200b\u3000\u2028\ufeff\u200d\x01", "👩\u200d🚀", "👍🏽", "❤\ufe0f", "🇩🇪",
         "10", "the", "The", "hens", *"    "]


def test_offsets_never_shift_a_character(tokenizer):
    """Any mixture of scripts, marks, blanks and emoji: spans in order, over all that is visible, and nothing else."""
    rng, normal = random.Random(0), tokenizer.model.normalize
    for _ in range(3000):
        text = "".join(rng.choices(PARTS, k=rng.randint(1, 12)))
        ids, spans = tokenizer.encode_with_offsets(text)
        assert ids == tokenizer.encode(text) and spans == sorted(spans), ascii(text)
        assert [end for _, end in spans] == sorted(end for _, end in spans) and all(a <= b for a, b in spans)
        covered = {i for a, b in spans for i in range(a, b)}
        assert not covered - set(range(len(text)))
        for i in set(range(len(text))) - covered:
            assert text[i].isspace() or not normal(text[i]), (ascii(text), i)
        for (a, b), (c, d), piece in zip(spans, [*spans[1:], (len(text),) * 2], tokenizer.pieces(ids)):
            assert b <= c or len(normal(text[c:b])) > 2, ascii(text)  # two share a character that becomes several
            assert a < b or piece == "▁", ascii(text)
            visible, shown = piece.strip("▁"), normal(text[a:b]).strip("▁ ")
            if piece != "<unk>":  # subtle: a piece may begin or end within a character that becomes several
                assert visible == shown or any(len(normal(x)) > 2 for x in text[a:b + 1]), (ascii(text), piece)
            assert a == b or not (text[a].isspace() or text[b - 1].isspace())


def test_an_answer_beside_any_neighbours_is_cut_to_the_character(tokenizer):
    rng = random.Random(1)
    for _ in range(1000):
        left, right = ("".join(rng.choices(PARTS, k=5)) for _ in range(2))
        answer = rng.choice(["The hens", "l'été ﬁne", "10 ½", "猫 日本", "👩\u200d🚀 team", "e\u0301te\u0301"])
        context = left + " " + answer + rng.choice(" \t\u00a0\u200b\u3000") + right
        _, spans = tokenizer.encode_with_offsets(context)
        first, last = glue.token_span([(answer, len(left) + 1)], np.array(spans))
        assert context[spans[first][0]:spans[last][1]] == answer, ascii(context)


def test_the_tokenizer_is_the_same_every_time(toy, tokenizer):
    assert data.Tokenizer.train([toy / "corpus.txt"], data.TOY_VOCAB).proto == tokenizer.proto


# ---- data.py: pairs and masks ----


def numbered_corpus(count=40, sentences=6):
    """Documents whose tokens tell document and place: 1000 * document + running number."""
    return corpus_of([[[1000 * (i + 1) + 5 * s + t for t in range(5)] for s in range(sentences)] for i in range(count)])


class Recorder:
    """A generator that keeps what it drew."""

    def __init__(self, seed):
        self.rng, self.drawn = np.random.default_rng(seed), []

    def __getattr__(self, name):
        def draw(*args, **kwargs):
            self.drawn.append(getattr(self.rng, name)(*args, **kwargs))
            return self.drawn[-1]
        return draw


def pairs_by_hand(documents, n, width, drawn):
    """make_pairs from the same draws, on lists, a token and a sentence at a time: [(a, b, label)]."""
    def run(document, start, target):
        end = start + 1
        while sum(map(len, document[start:end])) < target and end < len(document):
            end += 1
        return end

    drawn, cursor, active, waiting, pairs = iter(drawn), [0] * len(documents), [], list(range(len(documents))), []
    while active or waiting:
        while waiting and len(active) < width:
            active.append(waiting.pop(0))
        draws = zip(*(next(drawn) for _ in range(8)))
        for i, (coin, short, inside, random_next, step, foreign, front_a, front_b) in zip(active, draws):
            document, start = documents[i], cursor[i]
            target = short if coin < 0.1 else n - 3
            end = run(document, start, target)
            split = start + 1 + inside if end > start + 1 else end
            assert split < end or end == start + 1
            a = sum(document[start:split], [])
            label = int(split == end or random_next < 0.5)
            if label:
                other = documents[(i + step) % len(documents)]
                foreign -= sum(map(len, documents[:(i + step) % len(documents)]))  # counted through the corpus
                b, cursor[i] = sum(other[foreign:run(other, foreign, target - len(a))], []), split
            else:
                b, cursor[i] = sum(document[split:end], []), end
            while len(a) + len(b) > n - 3:
                side, front = (a, front_a) if len(a) > len(b) else (b, front_b)
                side.pop(0 if front > 0 else -1)
                front_a, front_b = front_a - (side is a), front_b - (side is b)
            assert front_a <= 0 and front_b <= 0  # no more at the front than were cut at all
            pairs.append((a, b, label))
        active = [i for i in active if cursor[i] < len(documents[i])]
    return pairs


def sides_of(corpus, pairs):
    """[(a, b, label)] of an array of PAIR."""
    return [(corpus.tokens[a:a + a_length].tolist(), corpus.tokens[b:b + b_length].tolist(), label)
            for a, b, a_length, b_length, label in pairs.tolist()]


@pytest.mark.parametrize("n, width", [(5, 3), (24, 1), (24, 7), (64, 1 << 16)])
def test_pairs_are_those_of_a_plain_loop(n, width, monkeypatch):
    monkeypatch.setattr(data, "LOCKSTEP", width)
    rng, ids = random.Random(n), itertools.count(5)
    documents = [[[next(ids) for _ in range(rng.choice((1, 2, 7, 12, 40)))] for _ in range(rng.randint(1, 12))]
                 for _ in range(30)]
    corpus, recorder = corpus_of(documents), Recorder(0)
    pairs = sides_of(corpus, data.make_pairs(corpus, n, recorder))
    assert pairs == pairs_by_hand(documents, n, width, recorder.drawn)
    assert len(pairs) > 50 and {label for *_, label in pairs} == {0, 1}


def test_nsp_half_is_random_and_the_random_half_comes_from_another_document():
    corpus, others, labels = numbered_corpus(), Counter(), Counter()
    for seed in range(20):
        for a, b, label in sides_of(corpus, data.make_pairs(corpus, 40, np.random.default_rng(seed))):
            labels[label] += 1
            assert a and b and len(a) + len(b) <= 37 and len({x // 1000 for x in a}) == len({x // 1000 for x in b}) == 1
            assert (a[0] // 1000 != b[0] // 1000) == bool(label)
            others[(b[0] // 1000 - a[0] // 1000) % 40] += label
            assert label or b[0] > a[-1]
    assert 0.45 < labels[1] / labels.total() < 0.75  # a last sentence alone can only get a random partner
    expected = labels[1] / 39  # chi-square with 38 degrees of freedom: 75 is passed by chance once in 3,000 times
    assert not others[0] and sum((others[i] - expected) ** 2 / expected for i in range(1, 40)) < 75


def test_unused_segments_are_put_back():
    """Every sentence of every document is in an a or in the b that follows it, in order and once."""
    corpus = numbered_corpus()
    sides = sides_of(corpus, data.make_pairs(corpus, 64, np.random.default_rng(0)))
    ids = [x for a, b, label in sides for x in a + b * (1 - label)]
    for i in range(1, 41):
        own = [x for x in ids if x // 1000 == i]
        assert own == sorted(set(own)) and len(own) > 0.5 * 30
    assert len(ids) > 0.95 * len(corpus.tokens)  # the rest is what truncation cut off


def test_the_longer_side_is_cut():
    for room, first, second in itertools.product(range(2, 12), range(1, 15), range(1, 15)):
        a, b = first, second
        while a + b > room:
            a, b = (a - 1, b) if a > b else (a, b - 1)
        assert tuple(map(int, data.truncated(np.array(first), np.array(second), room))) == (a, b)


def test_each_token_is_cut_at_the_front_or_back_by_a_coin():
    corpus = corpus_of([[list(range(100))], [list(range(1000, 1100))]])  # 200 tokens into 37: 82 and 81 are cut
    cut = [pair["a"] % 100 for seed in range(1000) for pair in data.make_pairs(corpus, 40, np.random.default_rng(seed))
           if pair["a_length"] == 19]
    assert len(cut) > 1500 and abs(np.mean(cut) - 40.5) < 0.5 and abs(np.var(cut) - 81 / 4) < 2.5


def test_a_batch_is_assembled_as_by_pack_and_collate():
    corpus = numbered_corpus()
    for n in (5, 24, 64):
        pairs = data.make_pairs(corpus, n, np.random.default_rng(0))
        rows = [data.pack(a, b, n) for a, b, _ in sides_of(corpus, pairs)]
        batch, plain = data.assemble(corpus.tokens, pairs, n), data.collate(rows, n)
        assert all(np.array_equal(batch[key], plain[key]) for key in plain)
        assert batch["next"].tolist() == pairs["label"].tolist()


def test_masking_is_80_10_10_of_15_percent_and_never_special():
    rng = np.random.default_rng(0)
    ids = rng.integers(5, 1000, (4000, 40))
    ids[:, [0, 21, 38, 39]] = data.CLS, data.SEP, data.SEP, data.PAD
    masked, positions, targets = data.mask_tokens(ids, 1000, rng)
    rows, columns = np.divmod(positions, 40)
    assert np.array_equal(np.bincount(rows), np.full(4000, round(0.15 * 39))) and (np.diff(positions) > 0).all()
    assert np.array_equal(ids.reshape(-1)[positions], targets) and targets.min() >= 5  # never special
    left = np.ones(ids.shape, bool)
    left[rows, columns] = False
    assert np.array_equal(masked[left], ids[left]) and masked[~left].min() >= data.MASK
    now = masked[rows, columns]
    shares = [np.mean(kind) for kind in (now == data.MASK, (now != data.MASK) & (now != targets), now == targets)]
    assert shares == pytest.approx([0.8, 0.1, 0.1], abs=0.008)
    swapped = now[(now != data.MASK) & (now != targets)]
    assert swapped.min() < 20 and swapped.max() > 985 and abs(np.mean(swapped) - 502) < 25  # 995 ordinary tokens
    expected = len(positions) / 36  # each place alike: chi-square with 35 degrees of freedom
    assert sum((np.bincount(columns, minlength=40)[ids[0] >= 5] - expected) ** 2 / expected) < 75


@pytest.mark.parametrize("length, count", [(3, 0), (4, 1), (10, 2), (30, 4), (40, 6), (50, 8), (128, 19), (512, 20)])
def test_the_number_of_masked_positions(length, count):
    """round(0.15 * length), where 4.5 is 4 and 7.5 is 8; and no place is free in [CLS] [SEP] [SEP]."""
    ids = np.full((3, 600), data.PAD)
    ids[1, :length] = [data.CLS, data.SEP, *range(5, 2 + length), data.SEP]
    ids[::2, :30] = [data.CLS, *range(5, 33), data.SEP]  # other rows change nothing
    positions = data.mask_tokens(ids, 600, np.random.default_rng(0), 20)[1]
    assert np.bincount(positions // 600, minlength=3).tolist() == [4, count, 4]


def test_a_batch_is_a_function_of_seed_and_step():
    one, two, other = (data.PretrainingData(numbered_corpus(), 32, 4, 90_000, seed) for seed in (3, 3, 4))
    late = two.batch(one.steps_per_epoch * 2 + 1)  # out of order and in another epoch
    for step in (0, 1, one.steps_per_epoch * 2 + 1):
        a, b = one.batch(step), late if step > 1 else two.batch(step)
        assert all(np.array_equal(a[key], b[key]) for key in a)
    assert not np.array_equal(one.batch(0)["ids"], other.batch(0)["ids"])
    batch = one.batch(0)
    assert {key: value.shape for key, value in batch.items() if key in ("ids", "segments", "mask", "next")} == {
        "ids": (4, 32), "segments": (4, 32), "mask": (4, 32), "next": (4,)}
    assert {key for key, value in batch.items() if value.dtype == np.int64} == {
        "ids", "segments", "next", "positions", "targets"} and batch["mask"].dtype == bool
    assert np.array_equal(batch["mask"], batch["ids"] != data.PAD)
    assert batch["mask"].reshape(-1)[batch["positions"]].all() and len(batch["positions"]) == len(batch["targets"])


def test_packing_cuts_the_longer_side_at_its_end():
    assert data.pack([10, 11, 12], [20], 6) == ([data.CLS, 10, 11, data.SEP, 20, data.SEP], [0, 0, 0, 0, 1, 1])
    assert data.pack([10, 11, 12], None, 4) == ([data.CLS, 10, 11, data.SEP], [0] * 4)
    batch = data.collate([([1, 2, 3], [0, 0, 1]), ([4], [0])])
    assert batch["ids"].tolist() == [[1, 2, 3], [4, 0, 0]]
    assert batch["mask"].tolist() == [[True] * 3, [True, False, False]]


# ---- data.py: the token cache ----


def cached(toy, tokenizer, tmp_path, workers=2):
    """A token cache of two copied toy files; (its folder, the files)."""
    files = [shutil.copy(toy / "held-out.txt", tmp_path / name) for name in ("a.txt", "b.txt")]
    tokenizer.save(tmp_path / "words.model")
    data.prepare(files, tmp_path / "cache", None, 0, workers, tmp_path / "words.model")
    return tmp_path / "cache", files


def test_a_cache_holds_what_text_files_do(toy, tokenizer, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "CHUNK", 5000)
    folder, files = cached(toy, tokenizer, tmp_path)
    monkeypatch.setattr(data, "CHUNK", 1 << 20)
    read, words = data.load_corpus(files, tokenizer), data.tokenizer_for([folder], None, 0)
    corpus = data.open_corpus([folder], words)
    for name in ("tokens", "sentences", "documents"):
        one, two = getattr(corpus, name), getattr(read, name)
        assert np.array_equal(one, two) and one.dtype == two.dtype and isinstance(one.base, np.memmap)
    assert words.proto == tokenizer.proto and not list(tmp_path.glob(".*"))
    one, two = (data.PretrainingData(part, 32, 4, words.vocab_size, 0).batch(9) for part in (corpus, read))
    assert all(np.array_equal(one[key], two[key]) for key in two)
    last = f"tokens={len(read.tokens)} sentences={len(read.sentences) - 1} documents=400 tokenizer_s="
    assert re.search(last + r"\S+ seconds=\S+ MB/s=\S+ peak_MB=\d+\n$", capsys.readouterr().out)


def test_any_number_of_workers_writes_the_same_cache(toy, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "CHUNK", 5000)
    found = []
    for workers in (1, 2, 3):
        folder, files = cached(toy, tokenizer, tmp_path, workers)
        found.append({path.name: path.read_bytes() for path in folder.iterdir() if path.name != "meta.json"})
        shutil.rmtree(folder)
    assert found[0] == found[1] == found[2] and len(found[0]) == 4


def written(path, mode, content):
    with open(path, mode) as file:
        file.write(content)


def edited(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new))


def one_document(cache):
    """As if the cache had been written from one document, which prepare refuses."""
    edited(cache / "meta.json", b'"documents": 400', b'"documents": 1')
    np.array([0, data.read_meta(cache / "meta.json")["sentences"]]).tofile(cache / "documents.bin")


def overwritten(path, at, content):
    """Put bytes in the middle of a file."""
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize("damage, says", [
    (lambda cache: os.truncate(cache / "tokens.bin", 1000), "tokens.bin: 1,000 bytes, expected "),
    (lambda cache: written(cache / "sentences.bin", "ab", bytes(8)), "sentences.bin: "),
    (lambda cache: os.remove(cache / "documents.bin"), "documents.bin: 0 bytes"),
    (lambda cache: written(cache / "sentences.bin", "r+b", b"\1"), "sentences.bin: from 1 to"),
    (lambda cache: written(cache / "documents.bin", "r+b", b"\1"), "documents.bin: from 1 to"),
    (lambda cache: edited(cache / "tokenizer.model", b"hens", b"hons"), "not the one that the tokens were made with"),
    (lambda cache: os.remove(cache / "tokenizer.model"), "tokenizer.model"),
    (lambda cache: os.remove(cache / "meta.json"), "not a token cache"),
    (lambda cache: edited(cache / "meta.json", b'"format": 1', b'"format": 9'), "not of format 1"),
    (lambda cache: edited(cache / "meta.json", b'"tokens": ', b'"tokens": "x'), "meta.json: not of format 1"),
    (lambda cache: edited(cache / "meta.json", b'"uint16"', b'"uint99"'), "meta.json: not of format 1"),
    (lambda cache: edited(cache / "meta.json", b'"path"', b'"way"'), "meta.json: not of format 1"),
    (lambda cache: (cache / "meta.json").write_text("[]"), "meta.json: not of format 1"),
    (lambda cache: written(cache.parent / "b.txt", "ab", b"One.\n"), "b.txt has changed since"),
    (lambda cache: os.utime(cache.parent / "b.txt", (1, 1)), "b.txt has changed since"),
    (lambda cache: edited(cache / "meta.json", b'"tokens": ', b'"tokens": -'), "meta.json: not of format 1"),
    (lambda cache: one_document(cache), "cache: one document"),
    (lambda cache: overwritten(cache / "tokens.bin", 100, b"\xff\xff"), "tokens.bin: damaged"),  # no such piece
    (lambda cache: overwritten(cache / "sentences.bin", 80, b"\xff"), "sentences.bin: damaged"),  # goes back behind it
    (lambda cache: overwritten(cache / "documents.bin", 85, b"\x01"), "documents.bin: damaged"),  # beyond the end
    (lambda cache: shutil.rmtree(cache), "not a token cache"),
    (lambda cache: os.remove(cache.parent / "b.txt"), None)])  # the text may go
def test_a_stale_or_damaged_cache_is_noticed(toy, tokenizer, tmp_path_factory, tmp_path, damage, says):
    folder, _ = cached(toy, tokenizer, tmp_path, 1)
    damage(folder)
    with pytest.raises(UserError, match=re.escape(says)) if says else contextlib.nullcontext():
        data.open_cache(folder)


def test_a_caches_vocabulary_is_its_own(toy, tokenizer, tmp_path):
    folder, files = cached(toy, tokenizer, tmp_path, 1)
    assert {data.tokenizer_for([folder], vocab, 0).proto for vocab in (None, data.TOY_VOCAB)} == {tokenizer.proto}
    other = data.tokenizer_for(files, None, 0, usual=300)
    assert other.vocab_size == 300 and len(data.open_corpus(files, other)) == 400
    with pytest.raises(UserError, match="vocabulary of 600, not 300"):
        data.tokenizer_for([folder], 300, 0)
    with pytest.raises(UserError, match="another tokenizer than the model's"):
        data.open_corpus([folder], other)


def test_a_cache_is_replaced_only_on_demand(toy, tokenizer, tmp_path):
    folder, files = cached(toy, tokenizer, tmp_path, 1)
    with pytest.raises(UserError, match="exists; give another or --overwrite"):
        cached(toy, tokenizer, tmp_path, 1)
    data.prepare(files[:1], folder, 400, 0, 1, overwrite=True)
    assert data.open_cache(folder)[1].vocab_size == 400 and not list(tmp_path.glob(".*"))
    (folder / "thesis.txt").write_text("precious")
    (tmp_path / "link").symlink_to(folder)
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "meta.json").write_text("{}")
    for other in (toy, folder, tmp_path / "link", tmp_path / "foreign"):
        with pytest.raises(UserError, match="exists, and is not a cache and nothing else; give another$"):
            data.prepare(files, other, 400, 0, 1, overwrite=True)
    with pytest.raises(UserError, match="--out '': expected the name of a new folder"):
        data.prepare(files, "", 400, 0, 1, overwrite=True)
    assert (folder / "thesis.txt").exists() and (tmp_path / "foreign" / "meta.json").exists()


def test_only_what_the_dead_left_long_ago_is_swept_away(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = [f".model.pt.{dead.pid}.tmp", f".model.pt.{os.getpid()}.tmp", f".model.pt.x.{dead.pid}.tmp",
             ".model.pt.notes.tmp", f".model.pt.{dead.pid}0.tmp/tokens.bin"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (1, 1))
    data.sweep(tmp_path / "model.pt")
    assert not (tmp_path / names[0]).exists() and all((tmp_path / name).exists() for name in names[1:])
    (tmp_path / names[0]).write_text("young")
    data.sweep(tmp_path / "model.pt")
    assert (tmp_path / names[0]).exists()


def test_a_full_disk_is_noticed_before_and_while_a_cache_is_written(toy, tokenizer, tmp_path, monkeypatch):
    line = f"{sys.executable} data.py prepare --corpus {toy}/corpus.txt --vocab 300 --out {tmp_path}/c"
    result = subprocess.run(line.split(), cwd=HERE, capture_output=True, text=True, timeout=100, preexec_fn=lambda:
                            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)))
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())
    assert "/c: cannot be written (File too large)" in result.stderr
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 30_000))
    with pytest.raises(UserError, match="0 MB free on its disk; about 0 MB needed"):
        cached(toy, tokenizer, tmp_path)
    assert not (tmp_path / "cache").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_prepare_leaves_no_cache_and_no_process(toy, tokenizer, tmp_path, number):
    (tmp_path / "long.txt").write_bytes((toy / "corpus.txt").read_bytes() * 20)
    tokenizer.save(tmp_path / "words.model")
    line = f"{sys.executable} data.py prepare --corpus {tmp_path}/long.txt --tokenizer {tmp_path}/words.model " \
           f"--out {tmp_path}/cache --workers 2"
    started = subprocess.Popen(line.split(), cwd=HERE, stderr=subprocess.PIPE)
    while not any(path.stat().st_size for path in tmp_path.glob(".cache.*.tmp/tokens.bin")):
        assert started.poll() is None
        time.sleep(0.005)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    os.kill(started.pid, number)
    error = started.communicate()[1]
    assert len(children) >= 2 and not (tmp_path / "cache").exists()
    late = time.time() + 20
    while any(Path(f"/proc/{child}").exists() for child in children) and time.time() < late:
        time.sleep(0.01)
    assert time.time() < late
    if number == signal.SIGINT:
        assert started.returncode == 130 and error == b"error: interrupted\n" and not list(tmp_path.glob(".*"))


def test_an_encoder_that_dies_is_one_clear_error(tokenizer):
    def chunks():
        yield from [["One."]] * 5
        for child in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split():
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
        yield from [["One."]] * 5
    with pytest.raises(UserError, match="has ended"), data.encoders(2) as pipes:
        list(data.encoded(pipes, tokenizer, chunks()))


# ---- data.py: the toy language ----


def test_toy_files_are_the_same_every_time(toy, tmp_path):
    data.write_toy(tmp_path)
    names = [p.relative_to(toy) for p in sorted(toy.rglob("*")) if p.is_file()]
    assert len(names) == 2 + 8 * 3 + 2 + 4
    for name in names:
        assert (toy / name).read_bytes() == (tmp_path / name).read_bytes()


@pytest.mark.parametrize("name", glue.TASKS)
def test_toy_tasks_share_no_row_and_leak_nothing_through_length(toy, tokenizer, name):
    task = glue.TASKS[name]
    splits = {split: glue.read_task(toy / "glue", task, split) for split in ("train", *task.dev)}
    texts = {split: {(a, b) for a, b, _ in rows} for split, rows in splits.items()}
    assert all(not texts["train"] & texts[split] for split in task.dev)
    assert all(label is None for _, _, label in glue.read_task(toy / "glue", task, "test"))
    train, dev = glue.load_task(toy / "glue", task, tokenizer, 40)
    labels, gold = (part.labels if task.labels else (part.labels > 2.5).astype(int) for part in (train, dev["dev"]))
    lengths, asked = ([tuple(np.bincount(s, minlength=2)) for _, s in part.rows] for part in (train, dev["dev"]))
    (most, count), = Counter(labels.tolist()).most_common(1)
    assert count < 0.75 * len(labels)
    half = len(labels) // 2  # nor through the row's place in the file
    assert abs(np.mean(labels[:half]) - np.mean(labels[half:])) < 0.12
    by_length = {}  # the best guess from the two lengths alone, learned on train
    for key, label in zip(lengths, labels):
        by_length.setdefault(key, Counter())[int(label)] += 1
    guess = np.array([by_length[key].most_common(1)[0][0] if key in by_length else most for key in asked])
    assert (guess == gold).mean() < max(Counter(gold.tolist()).values()) / len(gold) + 0.1


# ---- autobert.py: backbones ----


def test_published_backbone_is_fig_7():
    assert [autobert.kernel_of(gene) for gene in autobert.BACKBONES["autobert-zero"][::2]] == [65, 9, 3, 7, 7, 3]
    assert autobert.BACKBONES["autobert-zero"][1::2] == tuple(ops.ATTENTIONS[f"L{i}"] for i in (2, 4, 6, 8, 10, 12))
    assert autobert.BACKBONES["bert"] == (BERT,) * 12
    assert autobert.BACKBONES["att-only"][:4] == tuple(ops.ATTENTIONS[i] for i in ("L2", "L2", "L4", "L4"))
    assert autobert.BACKBONES["conv-only"][:4] == ("conv 65", "conv 65", "conv 9", "conv 9")


def test_large_repeats_each_pair_after_itself_and_small_depths_take_even_pairs():
    assert autobert.to_large((1, 2, 3, 4)) == (1, 2, 1, 2, 3, 4, 3, 4)
    assert autobert.at_depth(tuple(range(12)), 4) == (0, 1, 10, 11)
    assert autobert.at_depth(tuple(range(12)), 12) == tuple(range(12))
    assert autobert.at_depth(tuple(range(12)), 24) == autobert.to_large(tuple(range(12)))


def test_a_backbone_file_reads_back(tmp_path):
    autobert.save_backbone(tmp_path / "b.json", autobert.BACKBONES["autobert-zero"])
    assert autobert.load_backbone(str(tmp_path / "b.json")) == autobert.BACKBONES["autobert-zero"]


# ---- autobert.py: the two kinds of layer ----


def test_a_bert_layer_is_torchs_transformer_encoder_layer():
    config = replace(TINY, layers=1)
    layer = autobert.Layer(config, BERT).eval()
    autobert.init_weights(layer, 0.3)
    for p in layer.parameters():
        p.data += 0.1 * gaussian(*p.shape, seed=p.numel())
    theirs = nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True).eval()
    attention = layer.attention
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([attention.inputs[x].weight for x in "QKV"]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([attention.inputs[x].bias for x in "QKV"]))
    for mine, other in ((attention.out, theirs.self_attn.out_proj), (attention.norm, theirs.norm1),
                        (layer.feedforward.up, theirs.linear1), (layer.feedforward.down, theirs.linear2),
                        (layer.feedforward.norm, theirs.norm2)):
        other.load_state_dict(mine.state_dict())
    x, mask = gaussian(3, 9, 16), torch.arange(9) < torch.tensor([[9], [5], [1]])
    ours, expected = layer(x, mask), theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours[mask], expected[mask], rtol=1e-5, atol=1e-5)


def lightconv_by_hand(conv, x, mask):
    """Token by token, channel by channel, tap by tap."""
    B, n, d = x.shape
    u = conv.glu(x)
    u = u[..., :d] * torch.sigmoid(u[..., d:]) * mask[..., None]
    weights = [[math.exp(v) for v in row] for row in conv.kernel.tolist()]
    y = torch.zeros(B, n, d)
    for b in range(B):
        for i in range(n):
            for c in range(d):
                taps = weights[c * conv.heads // d]
                for j, tap in enumerate(taps):
                    if 0 <= i + j - len(taps) // 2 < n:
                        y[b, i, c] += tap / sum(taps) * u[b, i + j - len(taps) // 2, c]
    return conv.out(y)


@pytest.mark.parametrize("kernel", [3, 9, 65])  # 65: wider than the text on both sides
def test_the_convolution_is_a_naive_loop(kernel):
    conv = autobert.LightConv(replace(TINY, hidden=6), kernel).eval()
    autobert.init_weights(conv, 0.5)
    nn.init.normal_(conv.glu.bias)
    x, mask = gaussian(2, 7, 6), torch.arange(7) < torch.tensor([[7], [4]])
    torch.testing.assert_close(conv(x, mask), lightconv_by_hand(conv, x, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel, n", [(3, 8), (9, 3), (65, 40), (31, 31)])
def test_the_band_matrix_is_conv1d(kernel, n):
    taps, x = gaussian(2, kernel).double(), gaussian(3, 2, n, 5).double()  # (H, k), (B, H, n, d_h)
    ours = autobert.band(taps, n) @ x
    channels = x.permute(0, 1, 3, 2).reshape(3, 10, n)
    theirs = F.conv1d(channels, taps.repeat_interleave(5, 0)[:, None], padding=kernel // 2, groups=10)
    torch.testing.assert_close(ours, theirs.view(3, 2, 5, n).permute(0, 1, 3, 2))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("backbone", ["autobert-zero", "conv-only"])
def test_the_fast_model_is_the_plain_one_gradients_too(dtype, tolerance, backbone):
    results = []
    for fast in ("never", "always", "auto"):
        with autobert.seeded(3):
            config = replace(TINY, layers=4, fast=fast)
            model = autobert.AutoBert(config, autobert.load_backbone(backbone, 4)).to(dtype)
            ids = torch.randint(5, 50, (3, 12))
        y = model(ids, 0 * ids, torch.arange(12) < torch.tensor([[12], [7], [1]]))
        y.square().mean().backward()
        results.append([y] + [p.grad for p in model.parameters() if p.grad is not None])
    for other in results[1:]:
        for plain, fast in zip(results[0], other):
            torch.testing.assert_close(fast, plain, rtol=tolerance, atol=tolerance)


def test_checkpointing_changes_no_gradient():
    gradients = []
    for again in (False, True):
        with autobert.seeded(3):
            model = autobert.AutoBert(replace(TINY, layers=4, checkpointing=again, dropout=0.1),
                                      autobert.load_backbone("autobert-zero", 4)).train()
            ids = torch.randint(5, 50, (3, 12))
            model(ids, 0 * ids, None).square().mean().backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


def test_padding_never_changes_real_tokens_of_a_whole_model():
    rng = random.Random(3)
    for trial in range(40):
        backbone = opnas.random_backbone(2, rng)
        with autobert.seeded(trial):
            model = autobert.Pretraining(TINY, backbone).double().eval()
            for p in model.parameters():  # biases too: they are what a mask at the wrong place lets through
                p.data += 0.1 * torch.randn_like(p)
            ids = torch.randint(5, 50, (2, 9))
        mask = torch.arange(9).expand(2, 9) < 5
        hidden = model.encoder(ids, torch.zeros_like(ids), mask)
        alone = model.encoder(ids[:, :5], torch.zeros_like(ids[:, :5]), None)
        torch.testing.assert_close(hidden[:, :5], alone, rtol=1e-7, atol=1e-7, msg=str(backbone))


def numpy_model(w, heads, backbone, ids, segments):
    """The whole model on one text without padding, in NumPy alone: ([embeddings, hidden after each layer], MLM, NSP).

    What a port to another framework must compute, and an example of one. w: {name: array}, as autobert.folded gives.
    """
    n, d = len(ids), len(w["encoder.pooler.bias"])

    def linear(x, name):
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    def gelu(x):
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    def attention(x, at, formula):
        d_h = d // heads
        inputs = {k: linear(x, f"{at}.inputs.{k}") for k in "QKVP" if f"{at}.inputs.{k}.weight" in w}
        parts = [{k: v[:, h * d_h:(h + 1) * d_h] for k, v in inputs.items()} for h in range(heads)]
        return np.concatenate([python_formula(formula, part, d_h) for part in parts], -1)

    def convolution(x, at):
        a, b = np.split(linear(x, at + ".glu"), 2, -1)
        x, kernel = a / (1 + np.exp(-b)), row_softmax(w[at + ".kernel"])  # (n, d), (H, k)
        reach = kernel.shape[1] // 2
        taps = np.repeat(kernel, d // heads, 0)  # (d, k): channel c has the kernel of head c // d_h
        padded = np.pad(x, ((reach, reach), (0, 0)))
        return np.stack([(padded[i:i + kernel.shape[1]].T * taps).sum(-1) for i in range(n)])

    x = w["encoder.tokens.weight"][ids] + w["encoder.positions.weight"][:n] + w["encoder.segments.weight"][segments]
    x = norm(x, "encoder.norm")
    if "encoder.projection.weight" in w:
        x = linear(x, "encoder.projection")
    states = [x]
    for i, gene in enumerate(backbone):
        at = f"encoder.layers.{i}." + ("convolution" if gene.startswith("conv") else "attention")
        y = convolution(x, at) if gene.startswith("conv") else attention(x, at, gene)
        x = norm(x + linear(y, at + ".out"), at + ".norm")
        at = f"encoder.layers.{i}.feedforward"
        x = norm(x + linear(gelu(linear(x, at + ".up")), at + ".down"), at + ".norm")
        states.append(x)
    mlm = norm(gelu(linear(x, "transform")), "norm") @ w["encoder.tokens.weight"].T + w["bias"]
    return states, mlm, linear(np.tanh(linear(x[0], "encoder.pooler")), "next")


@pytest.mark.parametrize("backbone", ["autobert-zero", "bert", "random"])
def test_the_whole_model_is_its_numpy_twin(backbone):
    """The published backbone with padding in torch, against NumPy on each text alone."""
    config = replace(TINY, layers=12, embedding=8)
    genes = autobert.BACKBONES.get(backbone) or opnas.random_backbone(12, random.Random(7))
    with autobert.seeded(2):
        model = autobert.Pretraining(config, genes).eval()
        for p in model.parameters():
            p.data += 0.05 * torch.randn_like(p)
        ids, segments = torch.randint(5, 50, (3, 11)), torch.randint(0, 2, (3, 11))
    mask = torch.arange(11) < torch.tensor([[11], [6], [1]])
    with torch.no_grad():
        hidden = model.encoder(ids, segments, mask)
        mlm, nsp = model.mlm_logits(hidden), model.next(model.encoder.pool(hidden))
    for row, length in enumerate((11, 6, 1)):
        states, logits, next_ = numpy_model(autobert.folded(model), 2, genes, ids[row, :length].numpy(),
                                            segments[row, :length].numpy())
        np.testing.assert_allclose(hidden[row, :length].numpy(), states[-1], rtol=0, atol=1e-5)
        np.testing.assert_allclose(mlm[row, :length].numpy(), logits, rtol=0, atol=1e-5)
        np.testing.assert_allclose(nsp[row].numpy(), next_, rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", ["bert", "autobert-zero"])
def test_the_loss_is_what_numpy_computes(backbone):
    """In fp32 to 1e-6 of it, in bf16 to 1e-3; the twin works in float64."""
    config = autobert.ModelConfig(4, 64, 2, 32, vocab=500, positions=40)
    genes = autobert.load_backbone(backbone, 4)
    with autobert.seeded(3):
        model = autobert.Pretraining(config, genes).eval()
    batch = autobert.one_batch(config, 33, 6, 1)
    weights = {name: array.astype(np.float64) for name, array in autobert.folded(model).items()}
    mlm, nsp = [], []
    for row in range(6):
        _, logits, next_ = numpy_model(weights, 2, genes, batch["ids"][row], batch["segments"][row])
        nsp.append(-np.log(row_softmax(next_)[batch["next"][row]]))
        for place, target in zip(batch["positions"], batch["targets"]):
            if place // 33 == row:
                mlm.append(-np.log(row_softmax(logits[place % 33])[target]))
    assert len(mlm) == 6 * 5
    expected, tensors = np.mean(mlm) + np.mean(nsp), autobert.to_device(batch, "cpu")
    with torch.no_grad():
        assert model(tensors)[0].item() == pytest.approx(expected, rel=1e-6)
        for precision in ("medium", "bf16"):
            with autobert.matmul_precision(precision), autobert.autocast("cpu", precision):
                assert model(tensors)[0].item() == pytest.approx(expected, rel=1e-3), precision


def test_an_export_is_enough_for_a_port(tmp_path, tokenizer):
    """NumPy reproduces the reference vectors from the exported files alone; a super-net's child comes folded."""
    child = supernet.SuperNet(replace(TINY, vocab=tokenizer.vocab_size)).child(("conv 9", "Q @ (T(K) @ softmax(V))"))
    for p in child.parameters():
        p.data += 0.1 * gaussian(*p.shape, seed=p.numel())
    autobert.save_checkpoint(tmp_path / "child.pt", child, tokenizer)
    autobert.main(["export", "--checkpoint", str(tmp_path / "child.pt"), "--out", str(tmp_path / "a")])
    autobert.main(["export", "--size", "toy", "--seed", "3", "--out", str(tmp_path / "b")])
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]
    for folder in (tmp_path / "a", tmp_path / "b"):
        w, ref = (dict(np.load(folder / f"{name}.npz")) for name in ("weights", "reference"))
        config = json.loads((folder / "config.json").read_text())
        backbone = json.loads((folder / "backbone.json").read_text())["backbone"]
        kernels = [autobert.kernel_of(gene) for gene in backbone]
        for i, k in enumerate(kernels):
            assert k is None or w[f"encoder.layers.{i}.convolution.kernel"].shape == (config["heads"], k)
        losses, mlm, n = [], {}, ref["ids"].shape[1]
        for row, length in enumerate(ref["mask"].sum(1)):
            states, logits, next_ = numpy_model(w, config["heads"], backbone, ref["ids"][row, :length],
                                                ref["segments"][row, :length])
            for i, state in enumerate(states):
                np.testing.assert_allclose(ref[f"hidden_{i}"][row, :length], state, rtol=0, atol=2e-5)
            np.testing.assert_allclose(ref["next_logits"][row], next_, rtol=0, atol=2e-5)
            losses.append(-np.log(row_softmax(next_))[ref["next"][row]])
            mlm |= {row * n + i: logits[i] for i in range(length)}
        chosen = [mlm[p] for p in ref["positions"]]
        np.testing.assert_allclose(ref["mlm_logits"], chosen, rtol=0, atol=2e-5)
        loss = np.mean([-np.log(row_softmax(x))[t] for x, t in zip(chosen, ref["targets"])])
        assert ref["mlm"] == pytest.approx(loss, abs=1e-5) and ref["nsp"] == pytest.approx(np.mean(losses), abs=1e-5)
        assert ref["loss"] == pytest.approx(loss + np.mean(losses), abs=1e-5)


def test_bert_is_an_independent_bert_of_torchs_own_modules():
    config = replace(TINY, layers=3)
    with autobert.seeded(0):
        model = autobert.AutoBert(config, (BERT,) * 3).eval()
        ids, segments = torch.randint(5, 50, (2, 10)), torch.randint(0, 2, (2, 10))
    layer = nn.TransformerEncoderLayer(16, 2, 64, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True)
    theirs = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False).eval()
    with torch.no_grad():
        for mine, other in zip(model.layers, theirs.layers):
            for kind in ("weight", "bias"):
                getattr(other.self_attn, f"in_proj_{kind}").copy_(
                    torch.cat([getattr(mine.attention.inputs[x], kind) for x in "QKV"]))
            for a, b in ((mine.attention.out, other.self_attn.out_proj), (mine.attention.norm, other.norm1),
                         (mine.feedforward.up, other.linear1), (mine.feedforward.down, other.linear2),
                         (mine.feedforward.norm, other.norm2)):
                b.load_state_dict(a.state_dict())
        embedded = F.embedding(ids, model.tokens.weight) + F.embedding(segments, model.segments.weight)
        embedded = embedded + model.positions.weight[:10]
        embedded = F.layer_norm(embedded, (16,), model.norm.weight, model.norm.bias, 1e-12)
        mask = torch.arange(10) < torch.tensor([[10], [6]])
        ours, expected = model(ids, segments, mask), theirs(embedded, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours[mask], expected[mask], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backbone, fast", [("bert", "never"), ("conv-only", "always"), ("autobert-zero", "never")])
def test_flops_are_torchs_own_count_of_the_products_and_little_more(backbone, fast):
    config = autobert.ModelConfig(4, 128, 2, 128, vocab=1000, dropout=0.0, fast=fast)
    genes = autobert.load_backbone(backbone, 4)
    ids = torch.ones(1, 128, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        autobert.AutoBert(config, genes).eval()(ids, ids, None)
    # a band is counted by torch with its zeros: n columns in place of k taps
    bands = sum(2 * 128 * 128 * (128 - autobert.kernel_of(gene)) for gene in genes if gene.startswith("conv"))
    products = counter.get_total_flops() - (bands if fast == "never" else 0)
    ours = sum(autobert.count_flops(config, genes, 128)["layers"])
    assert products < ours < 1.06 * products


def test_the_picture_shows_every_op_and_no_box_hides_another():
    rng = random.Random(4)
    for backbone in (autobert.BACKBONES["autobert-zero"], opnas.random_backbone(12, rng)):
        svg = ElementTree.fromstring(autobert.picture(backbone))
        rects = [e for e in svg.iter() if e.tag.endswith("rect")]
        boxes = [tuple(float(e.get(side)) for side in ("x", "y", "width", "height")) for e in rects]
        dags = [ops.parse(gene) for gene in backbone if not gene.startswith("conv")]
        assert len(boxes) == 12 - len(dags) + sum(len(dag) + len(ops.used(dag)) for dag in dags)
        edges = sum(e.tag.endswith("path") for e in svg.iter())
        assert edges == sum(len(node) - 1 for dag in dags for node in dag)
        for i, (x, y, w, h) in enumerate(boxes):
            assert x + w <= float(svg.get("width")) and y + h <= float(svg.get("height"))
            assert not any(abs(x - x2) < w and abs(y - y2) < h for x2, y2, _, _ in boxes[:i])


def test_a_charts_line_runs_through_its_points():
    """By hand: x from 0 to 10 with a pad of .4 on 624 pixels from 80, y from 2 to 4 with .08 on 240 from 64 down."""
    series = {"loss": ([0, 5, 10], [2.0, 4.0, 3.0]), "band": ([0, 10], [3, 3], [2, 2], [4, 4])}
    svg = ElementTree.fromstring(autobert.chart("a < b & c", "step", "nats", series, [(5, None, "off", "<rejected>")]))
    paths = [(e.get("class"), e.get("d")) for e in svg.iter() if e.tag.endswith("path")]
    assert ("line s0", "M103.1,295.1 392.0,72.9 680.9,184.0") in paths
    assert ("band s1", "M103.1,295.1 680.9,295.1 680.9,72.9 103.1,72.9Z") in paths
    ring = next(e for e in svg.iter() if e.tag.endswith("circle"))
    assert (ring.get("cx"), ring.get("cy"), ring[0].text) == ("392.0", "304.0", "<rejected>")
    texts = [e.text for e in svg.iter() if e.tag.endswith("text")]
    assert {"a < b & c", "step", "nats", "loss", "band", "0", "2", "4", "10", "2.5"} <= set(texts)
    logarithmic = autobert.chart("t", "x", "y", {"a": ([1, 10, 100], [0, 1, 0])}, log=True)
    assert " 392.0,72.9 " in logarithmic  # 10 is half way from 1 to 100
    assert all(f">{x}</text>" in logarithmic for x in (1, 10, 100))
    scores = autobert.chart("t", "x", "y", {"none": ((), ())}, [(0.2, 0.5, "s0", ""), (0.7, 0.9, "s0", "")])
    assert all(f'anchor="middle">{x}</text>' in scores for x in (0.2, 0.4, 0.6))  # of whole steps there is none


@pytest.mark.parametrize("series", [
    {}, {"a": ([], [])}, {"a": ([3], [2.0])}, {"a": ([1, 2], [0, 0])}, {"a": ([1, 2], [5.0, 5.0])},
    {"a": ([1, 2, 3], [1.0, math.nan, math.inf])}, {"a": ([-1, 0], [1, 2])}, {"a": ([1e-99, 1e99], [-1e99, 5e-324])}])
@pytest.mark.parametrize("log", [False, True])
def test_a_chart_stands_any_numbers(series, log):
    text = autobert.chart("t", "x", "y", series, log=log)
    svg = ElementTree.fromstring(text)
    assert not re.search(r"\b(nan|inf)\b", text.split("</style>")[1])
    for e in svg.iter():
        if e.tag.endswith("}path") and e.get("class", "").startswith("line s") and "h" not in e.get("d"):
            for x, y in (point.split(",") for point in e.get("d")[1:].split()):
                assert 80 <= float(x) <= 704 and 0 <= float(y) <= 310


def test_dropout_is_on_in_training_only():
    config = replace(TINY, dropout=0.5)
    for gene in (BERT, "conv 9"):
        model = autobert.AutoBert(config, (gene, gene))
        ids = torch.arange(5, 13)[None]
        one, two = (model.train()(ids, 0 * ids, None) for _ in range(2))
        assert not torch.equal(one, two)
        one, two = (model.eval()(ids, 0 * ids, None) for _ in range(2))
        assert torch.equal(one, two)


# ---- autobert.py: heads, cost, training ----


def test_the_loss_is_mean_mlm_over_masked_plus_mean_nsp():
    model = autobert.Pretraining(TINY, (BERT, "conv 3")).eval()
    batch = {"ids": torch.randint(5, 50, (2, 6)), "segments": torch.tensor([[0, 0, 0, 1, 1, 1]] * 2),
             "mask": torch.tensor([[True] * 6, [True] * 4 + [False] * 2]), "positions": torch.tensor([1, 4, 8]),
             "targets": torch.tensor([7, 20, 49]), "next": torch.tensor([0, 1])}
    loss, parts = model(batch)
    hidden = model.encoder(batch["ids"], batch["segments"], batch["mask"]).detach()
    by_hand = 0.0
    for flat, target in zip((1, 4, 8), (7, 20, 49)):
        x = F.layer_norm(F.gelu(model.transform(hidden[flat // 6, flat % 6])), (16,), eps=1e-12)
        scores = (model.encoder.tokens.weight @ x).tolist()
        by_hand += (math.log(sum(map(math.exp, scores))) - scores[target]) / 3
    for row, target in enumerate((0, 1)):
        a, b = model.next(torch.tanh(model.encoder.pooler(hidden[row, 0]))).tolist()
        by_hand += (math.log(math.exp(a) + math.exp(b)) - (a, b)[target]) / 2
    assert loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert (parts["mlm"] + parts["nsp"]).item() == pytest.approx(loss.item())


@pytest.mark.parametrize("size, backbone, total, att, flops", [
    # millions of parameters, FLOPs at n = 128; the paper prints 110M 21.3M 2.9e10, 104M 15.4M, 16.5M, 318M
    ("base", "bert", 109.5, 21.26, 2.86e10), ("base", "autobert-zero", 103.6, 15.36, 2.68e10),
    ("base", "att-only", 104.8, 16.54, None), ("small", "autobert-zero", 12.9, None, 3.41e9),
    ("small", "bert", 13.5, None, 3.68e9), ("large", "bert", 335.1, None, 8.75e10),
    ("large", "autobert-zero", 314.2, None, 8.13e10)])
def test_size_and_cost_of_the_published_models(size, backbone, total, att, flops):
    config = replace(autobert.SIZES[size], vocab=30_522)
    genes = autobert.at_depth(autobert.BACKBONES[backbone], config.layers)
    count = autobert.count_parameters(config, genes)
    assert round(count["total"] / 1e6, 1) == total
    if size == "small":
        real = autobert.AutoBert(config, genes)
        assert count["total"] == sum(p.numel() for p in real.parameters())
    assert att is None or round(count["att"] / 1e6, 2) == att
    assert flops is None or autobert.count_flops(config, genes, 128)["total"] == pytest.approx(flops, rel=2e-3)


def test_the_schedule_by_hand():
    assert [autobert.lr_at(step, 10, 1.0, 0.2) for step in range(10)] == pytest.approx(
        [1 / 2, 1, 8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9])
    assert autobert.lr_at(0, 1, 3.0, 0.0) == 3.0


def test_nothing_without_need_is_decayed():
    model = autobert.Pretraining(replace(TINY, kernel_chain=True), (BERT, "conv 3"))
    groups = autobert.make_optimizer(model, 1e-3, 0.01).param_groups
    plain = {id(p) for p in groups[1]["params"]}
    assert groups[0]["weight_decay"] == 0.01 and groups[1]["weight_decay"] == 0.0
    for name, p in model.named_parameters():
        exempt = name.endswith("bias") or "norm" in name or "kernel" in name or "transforms" in name
        assert (id(p) in plain) == exempt, name


def test_pretraining_learns_and_repeats_itself(toy, tokenizer):
    documents = data.load_corpus([toy / "held-out.txt"], tokenizer)
    config = replace(TINY, vocab=tokenizer.vocab_size, positions=64)
    batches = data.PretrainingData(documents, 40, 8, config.vocab, 0)
    states = []
    for _ in range(2):
        with autobert.seeded(1):
            model = autobert.Pretraining(config, ("conv 3", BERT))
        before = autobert.held_out_loss(model, batches, 4, "cpu")
        autobert.pretrain(model, batches, autobert.PretrainSettings(steps=40, lr=5e-3), "cpu")
        after = autobert.held_out_loss(model, batches, 4, "cpu")
        assert after["mlm"] < before["mlm"] - 0.5
        states.append(model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def a_batch(rows=8, n=40, seed=0):
    """A batch of random tokens whose third row has no masked one, and the rest one to three."""
    rng = np.random.default_rng(seed)
    masked = [sorted(rng.choice(n, 0 if row == 2 else rng.integers(1, 4), replace=False)) for row in range(rows)]
    positions = np.array([row * n + place for row, places in enumerate(masked) for place in places])
    return {"ids": rng.integers(5, 50, (rows, n)), "segments": rng.integers(0, 2, (rows, n)),
            "mask": np.arange(n) < rng.integers(n // 2, n + 1, (rows, 1)), "positions": positions,
            "targets": rng.integers(5, 50, len(positions)), "next": rng.integers(0, 2, rows)}


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 8])  # the third of 8 pieces has no masked token
def test_the_pieces_of_a_batch_add_up_to_it(pieces):
    with autobert.seeded(0):
        model = autobert.Pretraining(replace(TINY, positions=40), ("conv 3", BERT)).double()
    batch, results = a_batch(), []
    for parts in ([batch], [autobert.cut(batch, i, pieces) for i in range(pieces)]):
        model.zero_grad()
        losses = [model(autobert.to_device(part, "cpu")) for part in parts]
        sum(loss for loss, _ in losses).backward()
        summed = [sum(found[key] for _, found in losses) for key in losses[0][1]]
        results.append([sum(loss for loss, _ in losses), *summed, *(p.grad.clone() for p in model.parameters())])
    assert sum(len(autobert.cut(batch, i, pieces)["ids"]) for i in range(pieces)) == 8
    for whole, added in zip(*results):
        torch.testing.assert_close(added, whole, rtol=1e-6, atol=1e-6)


def test_accumulated_steps_equal_steps_of_one_big_batch():
    class Batches:
        def batch(self, step):
            return a_batch(rows=12, seed=step)
    found = []
    for accumulate in (1, 3, 12):
        with autobert.seeded(0):
            model = autobert.Pretraining(replace(TINY, positions=40), ("conv 3", BERT))
        model.double()  # the gradient of a key's bias is nothing but rounding, which Adam would blow up
        settings, log = autobert.PretrainSettings(steps=6, batch=12, lr=1e-2, accumulate=accumulate), []
        autobert.pretrain(model, Batches(), settings, "cpu", lambda step, lr, parts: log.append([lr, *parts.values()]))
        found.append((log, list(model.parameters())))
    for log, weights in found[1:]:
        assert np.array(log) == pytest.approx(np.array(found[0][0]), rel=1e-5)
        for weight, expected in zip(weights, found[0][1]):
            torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)


def test_training_from_any_step_is_the_same_training():
    class Batches:
        def batch(self, step):
            return a_batch(seed=step)
    settings, ends = autobert.PretrainSettings(steps=8, lr=1e-2), []
    for stops in ((), (3,), (1, 6)):
        torch.manual_seed(len(stops))  # what others drew before makes no difference
        with autobert.seeded(0):
            model = autobert.Pretraining(replace(TINY, positions=40, dropout=0.3), ("conv 3", BERT))
        first, optimizer = 0, autobert.make_optimizer(model, settings.lr, settings.weight_decay, (0.9, settings.beta2))
        for stop in stops:
            def log(step, lr, parts):
                if step + 1 == stop:
                    raise KeyboardInterrupt
            with pytest.raises(KeyboardInterrupt):
                autobert.pretrain(model, Batches(), settings, "cpu", log, optimizer=optimizer, first=first)
            first = stop
        autobert.pretrain(model, Batches(), settings, "cpu", optimizer=optimizer, first=first)
        ends.append(copies(model.state_dict()))
    assert all(torch.equal(end[name], ends[0][name]) for end in ends for name in end)
    without = autobert.Pretraining(replace(TINY, positions=40), ("conv 3", BERT))
    assert any(not torch.equal(without.state_dict()[name], ends[0][name]) for name in ends[0])


@pytest.mark.parametrize("precision, products, dtype", [
    ("fp32", "highest", torch.float32), ("medium", "medium", torch.float32), ("bf16", "highest", torch.bfloat16)])
def test_precision_holds_while_training_and_no_longer(precision, products, dtype):
    class Batches:
        def batch(self, step):
            return a_batch(seed=step)
    model, seen = autobert.Pretraining(replace(TINY, positions=40), ("conv 3", BERT)), []
    model.transform.register_forward_hook(
        lambda module, inputs, output: seen.append((torch.get_float32_matmul_precision(), output.dtype)))
    settings = autobert.PretrainSettings(steps=12, lr=1e-2, precision=precision)
    log = []
    autobert.pretrain(model, Batches(), settings, "cpu", lambda step, lr, parts: log.append(parts["mlm"]))
    assert seen == [(products, dtype)] * 12 and all(p.dtype == torch.float32 for p in model.parameters())
    assert all(map(math.isfinite, log)) and torch.get_float32_matmul_precision() == "highest"
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(ZeroDivisionError):
        autobert.pretrain(model, Batches(), settings, "cpu", lambda *_: 1 / 0)
    assert torch.get_float32_matmul_precision() == "highest"


def test_batches_are_made_ahead_in_their_order():
    made = []

    def make(step):
        made.append(step)
        return step * step
    assert list(autobert.ahead(make, range(3, 9), "cuda")) == [(step, step * step) for step in range(3, 9)]
    made.clear()
    coming = autobert.ahead(make, range(9), "cuda")
    assert next(coming) == (0, 0) and next(coming) == (1, 1)
    coming.close()
    assert made == [0, 1, 2, 3]  # two more than were taken
    assert list(autobert.ahead(make, range(2), "cpu")) == [(0, 0), (1, 1)]

    def broken(step):
        raise UserError("no batch")
    with pytest.raises(UserError, match="no batch"):
        list(autobert.ahead(broken, range(2), "cuda"))


def test_a_non_finite_loss_stops_training():
    class Batches:
        def batch(self, step):
            return {"ids": np.full((1, 4), 7), "segments": np.zeros((1, 4), int), "mask": np.ones((1, 4), bool),
                    "positions": np.array([1]), "targets": np.array([7]), "next": np.array([0])}
    model = autobert.Pretraining(TINY, (BERT, BERT))
    model.encoder.tokens.weight.data[7, 0] = math.inf
    with pytest.raises(autobert.Diverged, match="in step 1$"):
        autobert.pretrain(model, Batches(), autobert.PretrainSettings(steps=3), "cpu")

    class Later(Batches):
        def batch(self, step):
            return super().batch(step) | {"ids": np.full((1, 4), 7 if step == 12 else 8)}
    with autobert.seeded(0):
        model = autobert.Pretraining(TINY, (BERT, BERT))
    model.encoder.tokens.weight.data[7, 0] = math.inf
    model.encoder.tokens.weight.requires_grad_(False)  # tied to the output: else the first step would meet it
    model.mlm_logits = lambda hidden: model.transform(hidden)  # (1, 16)
    with pytest.raises(autobert.Diverged, match="in step 13$"):  # by name, though it looks only at the 17th
        autobert.pretrain(model, Later(), autobert.PretrainSettings(steps=20), "cpu", due=lambda step: step == 16)


def test_a_checkpoint_holds_all_that_is_needed(tmp_path, tokenizer):
    model = autobert.Pretraining(replace(TINY, vocab=tokenizer.vocab_size), (BERT, "conv 31"))
    autobert.save_checkpoint(tmp_path / "m.pt", model, tokenizer)
    loaded, words = autobert.load_checkpoint(tmp_path / "m.pt")
    assert loaded.encoder.config == model.encoder.config and loaded.encoder.backbone == model.encoder.backbone
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), loaded.state_dict().values()))
    assert words.encode("The hens feed.") == tokenizer.encode("The hens feed.")
    assert os.listdir(tmp_path) == ["m.pt"]


def test_broken_checkpoints_are_one_clear_error(tmp_path, tokenizer):
    path, model = tmp_path / "m.pt", autobert.Pretraining(replace(TINY, vocab=tokenizer.vocab_size), (BERT, BERT))
    autobert.save_checkpoint(path, model, tokenizer)
    whole = path.read_bytes()
    for content in (b"", whole[:1000], whole[:-100], b"PK" + whole[2:500], b"text"):
        path.write_bytes(content)
        with pytest.raises(UserError, match="m.pt"):
            autobert.load_checkpoint(path)
    for content in ({"a": 1}, [1], {"config": {}, "backbone": [], "state": {}, "tokenizer": torch.zeros(3)}):
        torch.save(content, path)
        with pytest.raises(UserError, match="m.pt"):
            autobert.load_checkpoint(path)
    torch.save({"run": subprocess.run}, path)  # code in a checkpoint is never run
    with pytest.raises(UserError, match="m.pt"):
        autobert.load_checkpoint(path)


# ---- supernet.py: who shares what ----

MIXED = ("conv 9", "softmax(scale(Q @ T(K))) @ (K + P)")


def perturbed(child, by):
    with torch.no_grad():
        for p in child.parameters():
            p += by
    return child


def test_a_child_is_a_copy_of_its_slots():
    net = supernet.SuperNet(TINY)
    child = net.child(MIXED)
    for name, p in child.named_parameters():
        slot = net.slots[name]
        if name == "encoder.layers.0.convolution.kernel":
            assert p.shape == (2, 31) and torch.equal(p, slot[:, 17:48])  # 17 + 31 + 17 = 65
        else:
            assert torch.equal(p, slot), name
    before = copies(net.slots)
    perturbed(child, 1.0)
    assert all(torch.equal(before[name], net.slots[name]) for name in before)  # a copy, not a view


def test_small_kernels_are_transformed_centres():
    net = supernet.SuperNet(TINY)
    taps = {k: net.child((f"conv {k}", BERT)).encoder.layers[0].convolution.taps().detach() for k in autobert.KERNELS}
    full = net.slots["encoder.layers.0.convolution.kernel"]
    for k in autobert.KERNELS:  # T is the identity at the start
        assert torch.equal(taps[k], full[:, 32 - k // 2:33 + k // 2])
    for size in autobert.KERNELS[:-1]:
        net.slots[f"encoder.layers.0.convolution.transforms.{size}"].copy_(gaussian(size, size, seed=size))
    by_hand = full
    for size in (31, 15, 9):  # each head's kernel, a column vector, becomes T times its centre
        middle = by_hand.shape[1] // 2
        by_hand = torch.stack([gaussian(size, size, seed=size) @ row[middle - size // 2:middle + size // 2 + 1]
                               for row in by_hand])
    torch.testing.assert_close(net.child(("conv 9", BERT)).encoder.layers[0].convolution.taps(), by_hand)
    assert torch.equal(net.child(("conv 65", BERT)).encoder.layers[0].convolution.taps(), full)


def test_absorbing_one_branch_leaves_the_other():
    net = supernet.SuperNet(TINY)
    before = copies(net.slots)
    net.absorb(perturbed(net.child(("conv 65", "conv 65")), 1.0), ("conv 65", "conv 65"))
    for name, slot in net.slots.items():
        touched = ".attention." not in name and "transforms" not in name
        assert torch.equal(slot, before[name] + 1.0 if touched else before[name]), name


def test_absorbing_writes_only_what_the_child_holds():
    net = supernet.SuperNet(TINY)
    before = copies(net.slots)
    child = perturbed(net.child(MIXED), 1.0)
    net.absorb(child, MIXED)
    kernel, old = (slots["encoder.layers.0.convolution.kernel"] for slots in (net.slots, before))
    assert torch.equal(kernel[:, 17:48], old[:, 17:48] + 1) and torch.equal(kernel[:, :17], old[:, :17])
    assert torch.equal(kernel[:, 48:], old[:, 48:])
    for size, changed in ((31, True), (15, True), (9, True), (7, False), (3, False)):
        name = f"encoder.layers.0.convolution.transforms.{size}"
        assert torch.equal(net.slots[name], before[name]) != changed
    for x, changed in (("Q", True), ("K", True), ("V", False), ("P", True)):
        name = f"encoder.layers.1.attention.inputs.{x}.weight"
        assert torch.equal(net.slots[name], before[name]) != changed
    again = net.child(MIXED)  # nothing is lost on the way: the same child comes out
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), child.state_dict().values()))


def test_the_best_child_writes_last_and_ties_go_to_the_earlier():
    assert supernet.write_order([0.5, 0.7, 0.5, 0.1]) == [3, 2, 0, 1]


def test_the_mean_of_the_children_can_be_written_back_instead():
    net = supernet.SuperNet(TINY)
    before = copies(net.slots)
    a, b = net.child((BERT, "conv 65")).state_dict(), net.child((BERT, "conv 3")).state_dict()
    for child, value in ((a, 1.0), (b, 3.0)):
        for tensor in child.values():
            tensor.fill_(value)
    supernet.write_back(net, [(0.9, lambda: a), (0.1, lambda: b)], "mean")
    assert (net.slots["encoder.layers.0.attention.inputs.Q.weight"] == 2).all()
    kernel, old = (slots["encoder.layers.1.convolution.kernel"] for slots in (net.slots, before))
    assert (kernel[:, 17:48] == 2).all() and (kernel[:, :17] == 1).all() and (kernel[:, 48:] == 1).all()  # 31 of 65
    assert all((net.slots[name] == before[name]).all() for name in net.slots if ".0.convolution." in name)
    supernet.write_back(net, [(0.9, lambda: a), (0.1, lambda: b)])
    assert (kernel == 1).all() and not (old == 1).any()


def test_a_super_net_without_transforms_lends_bare_centres():
    net = supernet.SuperNet(TINY, transforms=False)
    child = net.child(("conv 5", "conv 65")).state_dict()
    assert not [name for name in net.slots if "transforms" in name]
    bare = net.slots["encoder.layers.0.convolution.kernel"]
    assert torch.equal(child["encoder.layers.0.convolution.kernel"], bare[:, 30:35]) and bare.shape == (2, 65)


def test_absorb_refuses_another_backbone():
    net = supernet.SuperNet(TINY)
    with pytest.raises(ValueError, match="another backbone"):
        net.absorb(net.child(MIXED), ("conv 3", "conv 3"))


def test_a_child_trains_like_the_model_it_stands_for():
    """With T = identity a chained convolution and a plain one with the same taps give the same output."""
    net = supernet.SuperNet(TINY)
    child = net.child(("conv 7", "conv 65")).eval()
    plain = autobert.Pretraining(TINY, ("conv 7", "conv 65")).eval()
    state = {k: v for k, v in child.state_dict().items() if "transforms" not in k}
    state["encoder.layers.0.convolution.kernel"] = child.encoder.layers[0].convolution.taps().detach()
    plain.load_state_dict(state)
    ids = torch.arange(5, 25)[None]
    assert torch.equal(child.encoder(ids, 0 * ids, None), plain.encoder(ids, 0 * ids, None))


# ---- glue.py: metrics by hand ----


def test_metrics_by_hand():
    gold, said = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 0, 1, 0, 0, 0, 0]  # tp 2, fp 1, fn 2, tn 3
    assert glue.accuracy(gold, said) == 5 / 8
    assert glue.f1(gold, said) == pytest.approx(2 * (2 / 3) * (1 / 2) / (2 / 3 + 1 / 2))
    assert glue.matthews(gold, said) == pytest.approx((2 * 3 - 1 * 2) / math.sqrt(3 * 4 * 4 * 5))
    assert glue.f1([1, 1, 0], [1, 0, 0]) == glue.f1([1, 0, 0], [1, 1, 0]) == pytest.approx(2 / 3)  # symmetric
    assert glue.pearson([1, 2, 3], [2, 4, 7]) == pytest.approx(5 / math.sqrt(2 * 38 / 3))
    # ranks 1 2.5 2.5 4
    assert glue.spearman([10, 20, 20, 40], [1, 3, 2, 4]) == pytest.approx(4.5 / math.sqrt(4.5 * 5))


def test_kendall_counts_pairs():
    rng = np.random.default_rng(0)
    for n in (2, 3, 8, 30, 200):
        x, y = rng.integers(0, 10, n), rng.integers(0, 12, n)
        concordant = sum(np.sign(x[i] - x[j]) * np.sign(y[i] - y[j]) for i in range(n) for j in range(i))
        both = math.sqrt(sum(x[i] != x[j] for i in range(n) for j in range(i))
                         * sum(y[i] != y[j] for i in range(n) for j in range(i)))
        assert glue.kendall_tau(x, y)[0] == pytest.approx(concordant / both if both else 0.0)
    n = 40  # no ties: variance of S is n(n-1)(2n+5)/18
    x, y = np.arange(n), rng.permutation(n)
    s = sum(np.sign(y[i] - y[j]) for i in range(n) for j in range(i))
    p = math.erfc(abs(s) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18) / math.sqrt(2))
    assert glue.kendall_tau(x, y) == (pytest.approx(s / (n * (n - 1) / 2)), pytest.approx(p))


def test_kendalls_p_is_of_the_variance_over_all_orders():
    x, y = np.array([1, 1, 2, 3, 3, 3]), np.array([2, 5, 5, 5, 7, 9])
    pairs = list(itertools.combinations(range(6), 2))
    s = [sum(np.sign(x[i] - x[j]) * np.sign(order[i] - order[j]) for i, j in pairs)
         for order in itertools.permutations(y)]  # the first order is y's own
    p = math.erfc(abs(s[0]) / math.sqrt(2 * np.mean(np.square(s))))
    assert np.mean(s) == 0 and glue.kendall_tau(x, y)[1] == pytest.approx(p)


def test_kendall_takes_more_points_than_pairs_could_be_counted():
    n = 200_000
    x = np.arange(n)
    assert glue.kendall_tau(x, -x)[0] == pytest.approx(-1, abs=1e-15)
    assert glue.kendall_tau(x, x ^ 1)[0] == pytest.approx(1 - 4 * (n / 2) / (n * (n - 1)), abs=1e-15)  # neighbours swap
    assert glue.kendall_tau(x, x % 2)[0] == pytest.approx((n / 2) / math.sqrt(n * (n - 1) / 2 * n * n / 4))


@pytest.mark.parametrize("metric", ["matthews", "pearson", "spearman", "f1"])
def test_a_constant_prediction_scores_0(metric):
    assert glue.METRICS[metric]([0, 1, 0, 1], [0, 0, 0, 0]) == 0.0
    assert glue.kendall_tau([0, 1, 2], [5, 5, 5]) == (0.0, 1.0)


def test_degenerate_input_is_0_or_an_error_never_nan():
    one_class = {"accuracy": 1.0, "f1": 1.0, "matthews": 0.0, "pearson": 0.0, "spearman": 0.0, "kendall": 0.0}
    for name, metric in {**glue.METRICS, "kendall": lambda x, y: glue.kendall_tau(x, y)[0]}.items():
        assert metric([1, 1, 1], [1, 1, 1]) == one_class[name] and metric([1], [1]) == one_class[name], name
        assert metric([1, 1, 0], [0, 0, 1]) <= 0.0 and metric([1, 1], [0, 0]) == 0.0, name
        for x, y in (([], []), ([1, 2], [1]), ([1, math.nan], [1, 2]), ([1, 2], [math.inf, 2]), ([[1]], [[1]])):
            with pytest.raises(ValueError):
                metric(x, y)


def test_metrics_stay_in_their_ranges():
    rng = np.random.default_rng(0)
    for n in [*range(1, 9)] * 20 + [100, 999]:
        gold, said = rng.integers(0, 2, n), rng.integers(0, 2, n)
        x, y = rng.normal(size=n).round(rng.integers(0, 3)) * 10.0 ** rng.integers(-9, 9), rng.normal(size=n)
        for low, values in ((0, [glue.accuracy(gold, said), glue.f1(gold, said), glue.kendall_tau(x, y)[1]]),
                            (-1, [glue.matthews(gold, said), *(metric(a, b) for a, b in ((x, y), (x, x), (x, -x))
                                  for metric in (glue.pearson, glue.spearman, lambda *v: glue.kendall_tau(*v)[0]))])):
            assert all(low <= value <= 1 for value in values), (n, values)
        assert glue.matthews(gold, gold) in (0, 1) and glue.matthews(gold, 1 - gold) in (0, -1)


# ---- glue.py: reading and fine-tuning ----


def write_rows(path, *rows, header="index\tsentence1\tsentence2\tlabel"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(("\n".join((header, *rows)) + "\n").encode())


def test_rows_are_split_at_tabs_and_line_feeds_only(tmp_path):
    write_rows(tmp_path / "RTE/train.tsv",
               '0\t"He said.\tYes\u2028no\x85.\tentailment', '1\ta "b"\tc"\tnot_entailment\r')
    assert glue.read_task(tmp_path, "RTE", "train") == [('"He said.', "Yes\u2028no\x85.", 0), ('a "b"', 'c"', 1)]
    (tmp_path / "RTE/train.tsv").write_bytes(
        b"\xef\xbb\xbfindex\tsentence1\tsentence2\tlabel\r\n0\tx\ty\tentailment\r\n")
    assert glue.read_task(tmp_path, "RTE", "train") == [("x", "y", 0)]


def test_every_task_reads_its_own_columns(toy):
    first = {name: glue.read_task(toy / "glue", name, "train")[0] for name in glue.TASKS}
    assert all((b is None) == (name in ("CoLA", "SST-2")) for name, (_, b, _) in first.items())
    assert {glue.TASKS[name].labels for name in ("CoLA", "SST-2", "MRPC", "QQP")} == {("0", "1")}
    assert glue.TASKS["MNLI"].labels == ("contradiction", "entailment", "neutral")
    assert glue.TASKS["RTE"].labels == glue.TASKS["QNLI"].labels == ("entailment", "not_entailment")
    assert 0 <= first["STS-B"][2] <= 5 and glue.TASKS["MNLI"].dev == ["dev", "dev_mm"]


STSB_HEADER = "\t".join((data.STSB + "|score").split("|"))
QQP_HEADER = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"


@pytest.mark.parametrize("task, row, says", [
    ("RTE", "0\tone\tentailment", "3 columns, .*train.tsv:2, expected 4"),
    ("RTE", "0\ta\tb\tx\tentailment", "5 columns, .*train.tsv:2, expected 4"),
    ("CoLA", "gj04\t1\t\tone\ttwo", "5 columns, .*train.tsv:2, expected 4"),
    ("QQP", "0\t1\t2\ta\tb\tc\t1", "7 columns, .*train.tsv:2, expected 6"),
    ("RTE", "0\ta\tb\tmaybe", "'maybe', .*train.tsv:2, expected entailment or not_entailment"),
    ("RTE", "0\ta\tb\t", "label '', .*train.tsv:2"), ("SST-2", "fine\t1 ", "'1 ', .*train.tsv:2, expected 0 or 1"),
    *(("STS-B", "0" + "\tx" * 8 + "\t" + score, f"label '{score}', .*train.tsv:2, expected a number 0 to 5")
      for score in ("nan", "inf", "5.5", "-0.1", "high"))])
def test_a_bad_row_is_named_by_file_and_line(tmp_path, task, row, says):
    headers = {"RTE": "index\tsentence1\tsentence2\tlabel", "CoLA": "gj04\t1\t\tone", "QQP": QQP_HEADER,
               "STS-B": STSB_HEADER, "SST-2": "sentence\tlabel"}
    write_rows(tmp_path / task / "train.tsv", row, header=headers[task])
    with pytest.raises(UserError, match=says):
        glue.read_task(tmp_path, task, "train")


@pytest.mark.parametrize("task, split, header", [
    ("RTE", "train", "0\tA hen.\tA bird.\tentailment"), ("RTE", "dev", "index\tsentence2\tsentence1\tlabel"),
    ("STS-B", "train", STSB_HEADER.removesuffix("\tscore")), ("QQP", "test", QQP_HEADER), ("RTE", "train", ""),
    ("CoLA", "test", "0\tThe hen."), ("MRPC", "train", "Quality\t#1 ID\t#2 ID\t#1 String")])
def test_another_header_is_an_error_in_line_1(tmp_path, task, split, header):
    write_rows(tmp_path / task / f"{split}.tsv", "0\ta\tb\tentailment", header=header)
    with pytest.raises(UserError, match=rf"header .*{split}.tsv:1, expected columns \d '"):
        glue.read_task(tmp_path, task, split)


def test_a_short_qqp_training_row_is_skipped_and_counted_a_dev_or_test_row_never(tmp_path, capsys):
    for split in ("train", "dev"):
        write_rows(tmp_path / f"QQP/{split}.tsv", "0\t1\t2\ta\tb\t1", "1\t1\t2\ta", header=QQP_HEADER)
    write_rows(tmp_path / "QQP/test.tsv", "0\ta\tb", "1\ta", header="id\tquestion1\tquestion2")
    assert glue.read_task(tmp_path, "QQP", "train") == [("a", "b", 1)]
    assert "short_rows_skipped=1" in capsys.readouterr().err
    for split in ("dev", "test"):
        with pytest.raises(UserError, match=f"{split}.tsv:3"):
            glue.read_task(tmp_path, "QQP", split)


def test_an_empty_or_missing_task_file_is_one_clear_error(tmp_path):
    write_rows(tmp_path / "RTE/train.tsv")
    write_rows(tmp_path / "QQP/train.tsv", "0\t1\t2\ta", header=QQP_HEADER)  # none is left
    (tmp_path / "MRPC").mkdir()
    (tmp_path / "MRPC/dev.tsv").write_bytes(b"")
    for task, split, says in (("RTE", "train", "0 rows, .*train.tsv:1"), ("RTE", "dev", "dev.tsv"),
                              ("RTE", "all", "'all'"), ("QQP", "train", "0 rows, .*train.tsv:2"),
                              ("MRPC", "dev", "0 rows, .*dev.tsv:1"), ("WNLI", "train", "'WNLI'")):
        with pytest.raises(UserError, match=says):
            glue.read_task(tmp_path, task, split)


@pytest.mark.parametrize("task", ["CoLA", "MNLI", "STS-B"])
def test_rows_are_packed_into_one_array_and_come_out_as_pack_makes_them(toy, tokenizer, task):
    examples = glue.read_task(toy / "glue", task, "dev")
    for n in (40, 9):
        encoded = glue.encode_task(iter(examples), task, tokenizer, n)
        assert encoded.rows.tokens.nbytes == 2 * sum(len(ids) for ids, _ in encoded.rows) and len(encoded.rows) == 400
        for (a, b, label), (ids, segments), found in zip(examples, encoded.rows, encoded.labels, strict=True):
            assert found == label and len(ids) <= n
            expected = data.pack(tokenizer.encode(a), None if b is None else tokenizer.encode(b), n)
            assert (ids.tolist(), segments.tolist()) == expected


def test_encoded_rows_are_cached_and_a_stale_or_broken_cache_is_rebuilt_in_one_line(tmp_path, toy, tokenizer, capsys,
                                                                                    monkeypatch):
    folder, cache = shutil.copytree(toy / "glue/RTE", tmp_path / "glue/RTE").parent, tmp_path / "cache"

    def load():
        train, dev = glue.load_task(folder, "RTE", tokenizer, 40, cache)
        parts = [([ids.tolist() for ids, _ in part.rows], part.labels.tolist()) for part in (train, dev["dev"])]
        return parts, capsys.readouterr().err.splitlines()
    first, said = load()
    assert not said and sorted(p.name for p in cache.iterdir()) == ["RTE-dev-40.npz", "RTE-train-40.npz"]
    with monkeypatch.context() as patch:
        patch.setattr(glue, "examples_of", None)  # nothing is read again
        assert load() == (first, [])
    (cache / "RTE-dev-40.npz").write_bytes((cache / "RTE-dev-40.npz").read_bytes()[:-300])
    again, said = load()
    assert again == first and len(said) == 1 and "rebuilt=broken" in said[0]
    with open(folder / "RTE/train.tsv", "a") as file:
        file.write("9\tone\ttwo\tentailment\n")
    again, said = load()
    assert len(again[0][1]) == 1601 and again[1] == first[1] and len(said) == 1 and "rebuilt=stale" in said[0]
    assert load() == (again, [])


def test_finetuning_learns_repeats_itself_and_leaves_the_encoder_alone():
    """A task of one word: label 1 if token 7 stands in the row."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 120)
    texts = [[*rng.integers(8, 50, 4), 7 if label else 8] for label in labels]
    train = glue.Encoded([tuple(map(np.int32, data.pack(text, None, 12))) for text in texts], labels.astype(np.int64))
    with autobert.seeded(0):
        encoder = autobert.AutoBert(TINY, ("conv 3", BERT))
    before = copies(encoder.state_dict())
    settings = glue.FinetuneSettings(epochs=8, lr=5e-3)
    results = []
    for noise in (1, 2):
        torch.manual_seed(noise)  # whatever was drawn before must not matter
        results.append(glue.finetune(encoder, "CoLA", train, {"dev": train}, settings, seed=5))
    assert results[0] == results[1] and results[0]["score"] > 0.9
    assert all(torch.equal(before[name], p) for name, p in encoder.state_dict().items())


@pytest.fixture(scope="module")
def unequal():
    """Rows of 4 to 31 tokens, the label is whether token 7 stands in them; and an encoder."""
    rng = np.random.default_rng(1)
    texts = [[7 + i % 2, *rng.integers(9, 50, rng.integers(1, 29)).tolist()] for i in range(150)]
    rows = [tuple(map(np.int32, data.pack(text, None, 32))) for text in texts]
    with autobert.seeded(2):
        return glue.Encoded(rows, np.array([text[0] == 7 for text in texts], np.int64)), \
            autobert.AutoBert(TINY, ("conv 3", BERT))


def test_an_epoch_in_buckets_has_every_row_once_and_hardly_pads(unequal):
    lengths = np.array([len(ids) for ids, _ in unequal[0].rows])
    assert glue.lengths_of(unequal[0].rows).tolist() == lengths.tolist()
    padded = {}
    for bucket in (50, 3, 1):
        epochs = [glue.batches_of(lengths, 8, bucket, np.random.default_rng(seed)) for seed in (0, 0, 1)]
        for batches in epochs:
            assert len(batches) == 19 and sorted(np.concatenate(batches)) == list(range(150))
            assert sorted(map(len, batches)) == [6] + [8] * 18
        assert np.concatenate(epochs[0]).tolist() == np.concatenate(epochs[1]).tolist()
        assert np.concatenate(epochs[0]).tolist() != np.concatenate(epochs[2]).tolist()
        padded[bucket] = sum(len(rows) * lengths[rows].max() for rows in epochs[0]) / lengths.sum()
    assert padded[50] < 1.1 < padded[3] < padded[1] and padded[1] > 1.5
    firsts = [lengths[rows[0]] for rows in glue.batches_of(lengths, 8, 50, np.random.default_rng(0))]
    assert firsts != sorted(firsts)  # short and long batches in turn


def test_a_row_gets_the_same_output_in_any_batch(unequal):
    (rows, labels), encoder = unequal
    model = glue.Finetuned(encoder, 2, False).eval()
    with torch.no_grad():
        expected = [model(autobert.to_device(data.collate([row], 32), "cpu"))[0].numpy() for row in rows]
    for eval_batch in (1, 7, 128):
        found = glue.outputs_of(model, rows, glue.FinetuneSettings(eval_batch=eval_batch), "cpu")
        np.testing.assert_allclose(np.stack(found), np.stack(expected), atol=1e-5)
    assert np.ptp(np.stack(expected), axis=0).min() > 1e-3


def test_the_best_evaluation_is_kept_the_earlier_on_a_tie_and_evaluating_changes_nothing(unequal, capsys):
    train, encoder = unequal
    settings = glue.FinetuneSettings(epochs=2, batch=16, lr=3e-3)  # 20 steps
    best, seen = {}, []
    for every, at in ((0, [10, 20]), (7, [7, 14, 20]), (30, [20])):
        given, states = iter([0.5, 0.7, 0.7]), []

        def judge(model):
            states.append(copies(model.state_dict()))
            return next(given)
        model = glue.fit(encoder, 2, F.cross_entropy, train, replace(settings, eval_every=every), 3, "cpu", judge=judge)
        assert re.findall(r"step=(\d+) ", capsys.readouterr().err) == [str(step) for step in at]
        kept = states[min(1, len(at) - 1)]
        assert all(torch.equal(kept[name], x) for name, x in model.state_dict().items())
        seen.append(states[-1])
    last = glue.fit(encoder, 2, F.cross_entropy, train, settings, 3, "cpu").state_dict()
    assert all(torch.equal(state[name], x) for state in seen for name, x in last.items())
    dev = {"dev": train._replace(labels=1 - train.labels)}  # the more it learns, the worse
    for keep in ("best", "last"):
        tuned = replace(settings, keep=keep, eval_every=5, epochs=3, lr=2e-2)
        model, best[keep] = glue.train_task(encoder, "CoLA", train, dev, tuned, 3)
        predicted = glue.predict(model, glue.TASKS["CoLA"], train.rows, tuned, "cpu")
        assert best[keep]["matthews"] == glue.matthews(dev["dev"].labels, predicted)
        assert glue.finetune(encoder, "CoLA", train, dev, tuned, 3) == best[keep]
    assert best["last"]["score"] == -1.0 < 0.0 <= best["best"]["score"]


def test_rows_without_labels_are_never_scored(toy, tokenizer):
    test = glue.encode_task(glue.read_task(toy / "glue", "RTE", "test"), "RTE", tokenizer, 40)
    assert set(test.labels) == {-1} and "test" not in glue.load_task(toy / "glue", "RTE", tokenizer, 40)[1]
    with pytest.raises(ValueError, match="without labels"):
        glue.scores(glue.TASKS["RTE"], {"dev": test}, {"dev": np.zeros(100)})


@pytest.mark.parametrize("precision", autobert.PRECISIONS)
def test_finetuning_works_in_every_precision(unequal, precision):
    train, encoder = unequal
    settings = glue.FinetuneSettings(epochs=6, lr=1e-2, precision=precision)
    assert glue.finetune(encoder, "CoLA", train, {"dev": train}, settings)["accuracy"] > 0.8
    numbers = train._replace(labels=train.labels * 5.0)
    assert glue.finetune(encoder, "STS-B", numbers, {"dev": numbers}, settings)["spearman"] > 0.4


def test_regression_is_on_fifths():
    output, y = torch.tensor([[0.5], [0.0]]), torch.tensor([5.0, 1.0], dtype=torch.float64)
    assert glue.score_loss(output, y).item() == pytest.approx(((0.5 - 1.0) ** 2 + 0.2 ** 2) / 2)


# ---- glue.py: its commands for GLUE ----


@pytest.fixture(scope="module")
def few(toy, tokenizer, tmp_path_factory):
    """A folder with glue/ (60 rows of each toy task, 20 of dev, all of test) and a checkpoint m.pt."""
    folder = tmp_path_factory.mktemp("few")
    for path in sorted((toy / "glue").rglob("*.tsv")):
        lines = path.read_text().splitlines(keepends=True)
        (folder / path.relative_to(toy)).parent.mkdir(parents=True, exist_ok=True)
        rows = {"train": 61, "test": 101}.get(path.stem.split("_")[0], 21)
        (folder / path.relative_to(toy)).write_text("".join(lines[:rows]))
    config = replace(TINY, vocab=tokenizer.vocab_size, positions=40)
    with autobert.seeded(0):
        autobert.save_checkpoint(folder / "m.pt", autobert.Pretraining(config, ("conv 3", BERT)), tokenizer)
    return folder


def glue_run(folder, command, *more):
    flags = {"predict": ["--device", "cpu"], "baseline": []}
    glue.main([command, "--glue", str(folder / "glue"),
               *flags.get(command, ["--device", "cpu", "--checkpoint", str(folder / "m.pt")]), *more])


@pytest.fixture(scope="module")
def tuned(few):
    """`few`, after `finetune --task all`: t.tsv and save/."""
    glue_run(few, "finetune", "--seeds", "3", "--mnli", "auto", "--save", str(few / "save"), "--out",
             str(few / "t.tsv"), "--eval-every", "2", "--epochs", "1", "--lr", "0.01")
    return few


def test_finetuning_all_gives_a_table_of_nine_and_their_mean(tuned):
    header, *rows, last = [line.split("\t") for line in (tuned / "t.tsv").read_text().splitlines()]
    assert header == ["task", "rows", "metric", "median", "min", "max", "beside it", "majority"]
    assert [(row[0], row[2], row[6].split(" ")[0]) for row in rows] == [
        ("CoLA", "matthews", "accuracy"), ("SST-2", "accuracy", ""), ("MRPC", "f1", "accuracy"),
        ("STS-B", "spearman", "pearson"), ("QQP", "f1", "accuracy"), ("MNLI-m", "accuracy", ""),
        ("MNLI-mm", "accuracy", ""), ("QNLI", "accuracy", ""), ("RTE", "accuracy", "")]
    assert {row[1] for row in rows} == {"20", "21"} and last[0] == "AVG"  # CoLA has no header
    assert all(float(row[4]) <= float(row[3]) <= float(row[5]) for row in rows)
    for column in (3, 7):
        assert float(last[column]) == pytest.approx(np.mean([float(row[column]) for row in rows]), abs=0.11)


def test_a_median_and_a_mean_of_fewer_say_so():
    results = [{"f1": x, "accuracy": 1 - x, "score": x} for x in (0.2, 0.9, 0.4)]
    dev = {"dev": glue.Encoded(None, np.zeros(7))}
    for small, expected in ((False, ["f1", 40.0, 20.0, 90.0, "accuracy 60.0"]),
                            (True, ["accuracy", 60.0, 10.0, 80.0, "f1 40.0"])):
        row, = glue.table_rows("MRPC", dev, results, results[0], small)
        assert row[:2] == ["MRPC", 7] and row[2:7] == [x if isinstance(x, str) else pytest.approx(x) for x in expected]
    assert glue.average_row([row, row])[0] == "AVG of 2"


def test_a_saved_model_scores_what_stands_in_the_table(tuned):
    for name in ("MRPC", "STS-B"):
        model, tokenizer, more = glue.load_finetuned(tuned / f"save/{name}.pt")
        dev = glue.load_task(tuned / "glue", name, tokenizer, more["n"])[1]
        predicted = glue.predict(model, glue.TASKS[name], dev["dev"].rows, glue.FinetuneSettings(), "cpu")
        assert more["task"] == name and glue.scores(glue.TASKS[name], dev, {"dev": predicted}) == more["dev"]
        row = next(line.split("\t") for line in (tuned / "t.tsv").read_text().splitlines() if line.startswith(name))
        assert row[5] == f"{100 * more['dev']['score']:.1f}"  # the best of the seeds


@pytest.fixture
def starts(monkeypatch):
    """[(task, lr, the pooler it starts from)] of each fine-tuning, which gives seed + 100 x lr as every score."""
    seen = []

    def train_task(encoder, task, train, dev, settings, seed, device):
        seen.append((task, settings.lr, encoder.pooler.weight.clone()))
        model = glue.Finetuned(encoder, len(glue.TASKS[task].labels or "1"), False)
        model.encoder.pooler.weight.data += seed + settings.lr
        metrics = [metric + split[3:] for metric in glue.TASKS[task].metrics for split in dev]
        return model, dict.fromkeys([*metrics, "score"], seed + 100 * settings.lr)
    monkeypatch.setattr(glue, "train_task", train_task)
    return seen


def test_rte_stsb_and_mrpc_start_from_the_best_mnli_model(few, tmp_path, starts):
    pooler = autobert.load_checkpoint(few / "m.pt")[0].encoder.pooler.weight
    glue_run(few, "finetune", "--seeds", "2", "--mnli", "auto", "--save", str(tmp_path))
    assert len(starts) == 16 and starts[0][0] == "MNLI"
    best = glue.load_finetuned(tmp_path / "MNLI.pt")[0].encoder.pooler.weight
    assert torch.allclose(best, pooler + 1.001)  # of seed 1, at the toy preset's rate of 0.001
    for task, _, start in starts:
        assert torch.equal(start, best if task in ("RTE", "STS-B", "MRPC") else pooler), task
    starts.clear()
    glue_run(few, "finetune", "--task", "RTE,CoLA,MNLI", "--mnli", "auto")
    assert [task for task, _, _ in starts] == ["MNLI", "CoLA", "RTE"] and not torch.equal(starts[-1][2], pooler)
    starts.clear()
    glue_run(few, "finetune", "--task", "RTE", "--mnli", str(tmp_path / "MNLI.pt"))
    glue_run(few, "finetune", "--task", "QNLI", "--mnli", str(tmp_path / "MNLI.pt"))
    glue_run(few, "finetune", "--task", "RTE")
    assert [torch.equal(start, best) for _, _, start in starts] == [True, False, False]
    for wrong in (tmp_path / "RTE.pt", few / "m.pt"):
        with pytest.raises(UserError, match="RTE, expected MNLI|not fine-tuned"):
            glue_run(few, "finetune", "--task", "RTE", "--mnli", str(wrong))


def test_a_grid_is_methods_and_finished_runs_are_not_repeated(few, tmp_path, starts, capsys):
    out = tmp_path / "grid.tsv"
    flags = ["--mnli", "auto", "--save", str(tmp_path / "save"), "--out", str(out)]
    glue_run(few, "grid", *flags)
    rates = [5e-4, 7.5e-4, 1e-3, 1.5e-3, 2e-3, 2.5e-3]  # around the toy preset's
    assert [lr for task, lr, _ in starts if task == "RTE"] == [lr for lr in rates for _ in range(2)]
    assert len(starts) == 8 * 12 and len(out.read_text().splitlines()) == 8 * 12 + 1
    assert len(re.findall("  best$", capsys.readouterr().out, re.M)) == 8
    best = glue.load_finetuned(tmp_path / "save/MNLI.pt")[0].encoder.pooler.weight
    first, before = autobert.load_checkpoint(few / "m.pt")[0].encoder.pooler.weight, out.read_text()
    assert torch.allclose(best - first, torch.tensor(2.5e-3), atol=1e-7)
    for more, runs in (([], 0), (["--epochs", "2", "--task", "QNLI"], 12),
                       (["--task", "SST-2", "--lrs", "2e-3", "7"], 2)):
        starts.clear()
        glue_run(few, "grid", *(flags[2:] if more else flags), *more)
        assert len(starts) == runs and out.read_text().startswith(before)
    (tmp_path / "save/RTE.pt").unlink()  # of a best model that is not there (SST-2, QNLI: any more) its run alone is
    starts.clear()
    glue_run(few, "grid", *flags)
    assert [run[:2] for run in starts] == [(task, 2.5e-3) for task in ("SST-2", "QNLI", "RTE")]
    assert (tmp_path / "save/RTE.pt").exists()
    starts.clear()
    glue_run(few, "grid", "--preset", "paper", "--n", "40", "--task", "RTE")
    assert [lr for _, lr, _ in starts] == [lr for lr in (1e-5, 1.5e-5, 2e-5, 3e-5, 4e-5, 5e-5) for _ in range(2)]
    out.write_text(before.replace("CoLA\t0.0005", "CoLA\tten"))
    with pytest.raises(UserError, match="grid.tsv:14: |grid.tsv:14,"):
        glue_run(few, "grid", *flags)


def test_two_grids_may_add_to_one_file_and_a_line_cut_short_is_left_out(few, tmp_path, starts, monkeypatch):
    out, other, inner = tmp_path / "grid.tsv", "0\tRTE\t0.1\t0.0\t7\t0.5\t" + '{"score": 0.5}\n', glue.train_task

    def train_task(*args):
        if out.exists():  # another process adds its line while this one trains
            written(out, "ab", other.encode())
        return inner(*args)
    monkeypatch.setattr(glue, "train_task", train_task)
    flags = ["--task", "RTE", "--lrs", "1e-3", "2e-3", "3e-3", "--decays", "0", "--out", str(out)]
    glue_run(few, "grid", *flags)
    assert out.read_text().count(other) == 2 and len(out.read_text().splitlines()) == 1 + 3 + 2
    out.write_text(out.read_text()[:-9])  # the last run's line
    starts.clear()
    glue_run(few, "grid", *flags)
    assert [run[:2] for run in starts] == [("RTE", 3e-3)] and len(glue.read_cells(out)) == 4


def test_all_tasks_are_read_before_the_first_is_trained_and_finished_ones_are_kept(few, tmp_path, starts, monkeypatch):
    shutil.copytree(few / "glue", tmp_path / "glue")
    inner, out = glue.train_task, tmp_path / "t.tsv"

    def train_task(encoder, task, *args):
        if task == "QNLI":
            raise autobert.Diverged("loss nan")
        return inner(encoder, task, *args)
    monkeypatch.setattr(glue, "train_task", train_task)
    run = ["finetune", "--checkpoint", str(few / "m.pt"), "--glue", str(tmp_path / "glue"), "--out", str(out)]
    with pytest.raises(UserError, match="loss nan"):
        glue.main(run)
    assert [line.split("\t")[0] for line in out.read_text().splitlines()[1:]] == [
        "CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "AVG of 7"]
    rows = glue.read_task(tmp_path / "glue", "QNLI", "dev")
    with gzip.open(tmp_path / "glue/QNLI/dev.tsv.gz", "wb") as file:
        file.write((tmp_path / "glue/QNLI/dev.tsv").read_bytes())
    (tmp_path / "glue/QNLI/dev.tsv").unlink()
    assert glue.read_task(tmp_path / "glue", "QNLI", "dev") == rows  # a packed file does as well
    (tmp_path / "glue/RTE/dev.tsv").unlink()
    starts.clear()
    with pytest.raises(UserError, match="RTE/dev.tsv: no such file"):
        glue.main(run)
    assert not starts


@pytest.mark.parametrize("command, says", [
    ("finetune --checkpoint {here}/m.pt --glue {here}/glue --out {here}/m.pt", "--out .*m.pt': the same file"),
    ("finetune --checkpoint {here}/m.pt --glue {here}/glue --out {here}/glue/RTE/dev.tsv", "dev.tsv': the same file"),
    ("baseline --glue {here}/glue --task CoLA --out {here}/glue/CoLA/dev.tsv", "dev.tsv': the same file"),
    ("grid --checkpoint {here}/m.pt --glue {here}/glue --task RTE --save {here}/m.pt", "--save .*m.pt': a file"),
    ("finetune --checkpoint {here}/m.pt --glue {here}/glue --task RTE --out /dev/null", "--out '/dev/null': a device"),
    ("squad --checkpoint {here}/m.pt --train {squad} --dev {squad} --save {squad}", "--save .*: the same file"),
    ("squad --checkpoint {here}/m.pt --train {squad} --dev {squad} --nbest x --predictions x", "'x': the same file")])
def test_outputs_never_take_the_place_of_inputs(few, toy, tmp_path, command, says, monkeypatch):
    for name in ("m.pt", "glue"):
        (shutil.copytree if name == "glue" else shutil.copy)(few / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=says):
        glue.main(shlex.split(command.format(here=tmp_path, squad=toy / "squad/dev-v1.1.json")))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_a_cell_that_diverges_does_not_end_the_grid(few, tmp_path, capsys):
    flags = ["--task", "RTE", "--epochs", "1", "--decays", "0", "--lrs", "1e30", "1e-3", "--out", str(tmp_path / "g")]
    for steps in (True, False):
        glue_run(few, "grid", *flags)
        said = capsys.readouterr()
        assert re.search(r"^1e\+30 +0 +-inf +-inf +-inf$", said.out, re.M)
        assert re.search(r"^0\.001 .* best$", said.out, re.M) and ("step=" in said.err) is steps
    with pytest.raises(UserError, match="smaller --lr"):
        glue_run(few, "finetune", "--task", "RTE", "--lr", "1e30")


def test_size_small_reports_accuracy_for_mrpc_and_qqp(few, tokenizer, tmp_path, starts, capsys):
    config = replace(autobert.SIZES["small"], vocab=tokenizer.vocab_size)
    model = autobert.Pretraining(config, autobert.BACKBONES["conv-only"])
    autobert.save_checkpoint(tmp_path / "small.pt", model, tokenizer)
    small = ["--checkpoint", str(tmp_path / "small.pt")]
    for flags, metric in ((small, "accuracy"), ([], "f1"), (["--small"], "accuracy"), ([*small, "--no-small"], "f1")):
        glue_run(few, "finetune", "--task", "MRPC", *flags)
        assert capsys.readouterr().out.splitlines()[-2].split()[2] == metric


def test_leaderboard_files_have_a_row_for_every_row_of_test_and_lie_flat_in_one_zip(tuned, tmp_path, capsys):
    for _ in range(2):
        glue_run(tuned, "predict", "--checkpoint", str(tuned / "save"), "--out", str(tmp_path / "sub"))
        archive = (tmp_path / "sub/submission.zip").read_bytes()
    assert "WNLI.tsv, AX.tsv" in capsys.readouterr().out
    names = ["CoLA", "MNLI-m", "MNLI-mm", "MRPC", "QNLI", "QQP", "RTE", "SST-2", "STS-B"]
    assert sorted(p.stem for p in (tmp_path / "sub").glob("*.tsv")) == names
    with zipfile.ZipFile(tmp_path / "sub/submission.zip") as packed:
        assert sorted(packed.namelist()) == [f"{name}.tsv" for name in names] and packed.testzip() is None
        assert all(packed.read(f"{name}.tsv") == (tmp_path / f"sub/{name}.tsv").read_bytes() for name in names)
    for name in names:
        header, *rows = [line.split("\t") for line in (tmp_path / f"sub/{name}.tsv").read_text().splitlines()]
        assert header == ["index", "prediction"] and [row[0] for row in rows] == [str(i) for i in range(100)]
        labels = glue.TASKS[name.removesuffix("-mm").removesuffix("-m")].labels
        assert {text for _, text in rows} <= set(labels) if labels else all(
            re.fullmatch(r"[0-5]\.\d{3}", text) and float(text) <= 5 for _, text in rows)
    glue_run(tuned, "predict", "--checkpoint", str(tuned / "save"), "--out", str(tmp_path / "again"))
    assert (tmp_path / "again/submission.zip").read_bytes() == archive


def test_stsb_predictions_are_clipped_and_a_short_test_row_is_an_error(tuned, tmp_path, monkeypatch):
    monkeypatch.setattr(glue, "predict", lambda *_: np.linspace(-1, 6, 100))
    files = glue.submission([tuned / "save/STS-B.pt"], tuned / "glue", glue.FinetuneSettings(), "cpu")
    said = [line.split("\t")[1] for line in files["STS-B.tsv"].splitlines()[1:]]
    assert said[0] == "0.000" and said[-1] == "5.000" and said[50] == "2.535"
    folder = shutil.copytree(tuned / "glue", tmp_path / "glue")
    with open(folder / "QQP/test.tsv", "a") as file:
        file.write("100\tWhat?\n")
    with pytest.raises(UserError, match="2 columns, .*QQP/test.tsv:102, expected 3"):
        glue.submission([tuned / "save/QQP.pt"], folder, glue.FinetuneSettings(), "cpu")
    with pytest.raises(UserError, match="of STS-B, too"):
        glue.submission([tuned / "save/STS-B.pt"] * 2, tuned / "glue", glue.FinetuneSettings(), "cpu")
    with pytest.raises(UserError, match="m.pt.*not fine-tuned"):
        glue_run(tuned, "predict", "--checkpoint", str(tuned / "m.pt"), "--out", str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_glue_takes_a_winner_and_a_child_of_the_super_net(finished, few, tmp_path, capsys):
    supernet.main(["autobert-zero", "--run", str(finished[0]), "--out", str(tmp_path / "child.pt")])
    for checkpoint in (finished[0] / "best.pt", tmp_path / "child.pt"):
        flags = ["--epochs", "1", "--checkpoint", str(checkpoint), "--save", str(tmp_path)]
        glue_run(few, "finetune", "--task", "RTE", *flags)
        assert re.search(r"^RTE +20 +accuracy", capsys.readouterr().out, re.M)
        assert glue.load_finetuned(tmp_path / "RTE.pt")[0].encoder.config.layers == 4


def test_encoding_holds_few_texts_at_a_time(tmp_path, tokenizer):
    peaks, sizes = [], []
    for rows in (8000, 24000):
        write_rows(tmp_path / "RTE/train.tsv", *(f"{i}\tThe hens are neat.\tA hen {i} is neat.\tentailment"
                                                for i in range(rows)), header="index\tsentence1\tsentence2\tlabel")
        tracemalloc.start()
        encoded = glue.load_split(tmp_path, "RTE", "train", tokenizer, 40)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        sizes.append(sum(x.nbytes for x in (*vars(encoded.rows).values(), encoded.labels)))
    assert peaks[1] - peaks[0] < 2.2 * (sizes[1] - sizes[0])  # parts, and the array they are put together in


@pytest.mark.parametrize("task", ["SST-2", "RTE", "STS-B"])
def test_the_linear_baseline_learns_what_words_tell_and_repeats_itself(task):
    rng, rows = np.random.default_rng(0), []
    for _ in range(300):
        label, words = int(rng.integers(2)), [f"w{i}" for i in rng.integers(0, 40, 12)]
        a, b = words[:6], words[:6] if label else words[6:]
        rows.append((" ".join([*a, ("bad", "good")[label]]), None, label) if task == "SST-2" else
                    (" ".join(a), " ".join(b), label * 5.0 if task == "STS-B" else label))
    found = [glue.bag_of_words(task, rows[:200], {"dev": rows[200:]}, seed=3, epochs=40) for _ in range(2)]
    assert found[0] == found[1] and found[0]["score"] > (0.7 if task == "STS-B" else 0.95)


def test_the_baseline_command_prints_the_same_table(few, capsys):
    glue_run(few, "baseline", "--task", "MNLI", "--seeds", "2")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == ["task", "MNLI-m", "MNLI-mm", "AVG"] and len(lines[1]) == 7


# ---- glue.py: SQuAD ----


@pytest.mark.parametrize("text, normal", [("The  Anna, Brown!", "anna brown"), ("a an the", ""), ("Theory", "theory"),
                                          ("$5.00", "500"), ("co-op", "coop"), ("«été»", "«été»")])
def test_answers_are_normalised_as_squad_does(text, normal):
    assert glue.normalize_answer(text) == normal


def test_squad_scores_by_hand():
    dataset = [{"paragraphs": [{"context": "c", "qas": [
        {"id": name, "question": "q", "answers": [{"text": text, "answer_start": 0} for text in texts]}
        for name, texts in (("1", ("Anna Brown", "Brown")), ("2", ("the red hen",)))]}]}]
    scores = glue.squad_scores(dataset, {"1": "brown.", "2": "red cow"})
    assert scores["exact"] == 50.0 and scores["f1"] == pytest.approx(100 * (1 + 0.5) / 2)  # f1 of 2: 1 of 2, 1 of 2


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_gold_spans_fed_in_score_100(toy, tokenizer, version):
    questions = glue.read_squad(toy / "squad" / f"dev-v{version}.json")
    settings = glue.FinetuneSettings()
    windows = glue.squad_windows(questions, tokenizer, settings)
    outputs = []
    for (ids, _), window in zip(windows, windows.table):
        logits = np.full((len(ids), 2), -10.0)
        logits[window["first"], 0] = logits[window["last"], 1] = 10.0
        outputs.append(logits)
    predictions = glue.squad_predictions(questions, glue.decode_squad(questions, windows, outputs, settings))
    scores = glue.squad_scores(questions, predictions)
    assert scores["exact"] == scores["f1"] == 100.0 and set(predictions) == {q.id for q in questions}


def test_squad_scores_all_questions_and_reads_packed_files(toy, tmp_path):
    path = tmp_path / "dev.json.xz"
    path.write_bytes(lzma.compress((toy / "squad/dev-v1.1.json").read_bytes()))
    questions = glue.read_squad(path)
    assert questions == glue.read_squad(toy / "squad/dev-v1.1.json")
    assert glue.squad_scores(questions, {})["f1"] == 0.0 < glue.random_span_scores(questions)["f1"] < 30


def bert_windows(passage, room, stride):
    """BERT's loop: (start, length) of every stretch."""
    start, spans = 0, []
    while True:
        length = min(passage - start, room)
        spans.append((start, length))
        if start + length == passage:
            return spans
        start += min(length, stride)


def test_windows_and_their_best_context_are_berts(tokenizer):
    context = "The hens feed the goat. " * 12
    question = glue.Question("1", "Who feeds the goat and the hens?", context, [("goat", 114)], False)
    ids, asked = tokenizer.encode(context), tokenizer.encode(question.text)
    for n, stride, cut in ((40, 9, 4), (40, 24, 50), (300, 128, 64)):
        settings = glue.FinetuneSettings(n=n, stride=stride, max_question=cut)
        windows = glue.squad_windows([question], tokenizer, settings)
        kept = asked[:min(cut, n - 4)]
        expected = bert_windows(len(ids), n - 3 - len(kept), min(stride, n - 3 - len(kept)))
        owned = glue.owners(windows.table["begin"], windows.table["end"]) == np.arange(len(windows))[:, None]
        assert [(w["begin"], w["end"] - w["begin"]) for w in windows.table] == expected
        for i, (start, length) in enumerate(expected):
            row, segments = windows[i]
            passage = ids[start:start + length]
            assert row.tolist() == [data.CLS, *kept, data.SEP, *passage, data.SEP] and len(row) <= n
            assert segments.tolist() == [0] * (len(kept) + 2) + [1] * (length + 1)
            for at in range(length):
                best = max(range(len(expected)), key=lambda j: (  # noqa: B023
                    min(start + at - expected[j][0], sum(expected[j]) - 1 - start - at) + 0.01 * expected[j][1]
                    if expected[j][0] <= start + at < sum(expected[j]) else -1))
                assert owned[i, start + at] == (best == i)
            first, last = windows.table["first"][i], windows.table["last"][i]
            assert first == 0 or tokenizer.pieces(row[first:last + 1]) == tokenizer.pieces(tokenizer.encode("goat"))
        assert windows.table["first"].any()


def test_the_n_best_are_the_best_texts_of_all_legal_spans_and_null_is_the_least(tokenizer):
    context, rng = "The hens feed. The goat sings, the hens sing.", np.random.default_rng(0)
    for trial in range(20):
        s = glue.FinetuneSettings(n=16, stride=5, max_question=4, max_answer=3)
        question = glue.Question("q", "Who feeds?", context, [], True)
        windows, nbest = glue.squad_windows([question], tokenizer, s), {}
        outputs = [rng.normal(size=(len(ids), 2)).astype(np.float32) for ids, _ in windows]
        found = glue.decode_squad([question], windows, outputs, s, nbest)["q"]
        _, spans = tokenizer.encode_with_offsets(context)
        owned, texts = glue.owners(windows.table["begin"], windows.table["end"]) == np.arange(len(windows))[:, None], {}
        for w, logits, own in zip(windows.table, outputs, owned):
            shift = w["asked_end"] - w["asked"] + 2 - w["begin"]
            for i in range(w["begin"], w["end"]):
                for j in range(i, min(i + 3, w["end"])):
                    text = context[spans[i][0]:spans[j][1]].strip()
                    if own[i] and text:
                        score = float(logits[i + shift, 0]) + float(logits[j + shift, 1])
                        texts[text] = max(score, texts.get(text, -math.inf))
        null = min(float(logits[0, 0]) + float(logits[0, 1]) for logits in outputs)
        best = max(texts, key=texts.get)
        assert found == (best, pytest.approx(null - texts[best]))
        listed = {entry["text"]: entry["start_logit"] + entry["end_logit"] for entry in nbest["q"]}
        assert listed.pop("") == pytest.approx(null) and len(listed) <= glue.NBEST
        assert listed == {text: pytest.approx(texts[text]) for text in listed}
        assert set(sorted(texts, key=texts.get)[-5:]) <= set(listed)
        assert sum(entry["probability"] for entry in nbest["q"]) == pytest.approx(1)


def test_every_question_gets_an_answer_of_an_empty_passage_too(tokenizer):
    questions = [glue.Question(str(i), "Who?", context, [], True) for i, context in enumerate(["", " \u200b ", "hens"])]
    windows, nbest = glue.squad_windows(questions, tokenizer, glue.FinetuneSettings()), {}
    answers = glue.decode_squad(questions, windows, glue.gold_logits(windows), glue.FinetuneSettings(), nbest)
    assert [answers[q.id][0] for q in questions] == ["", "", "hens"] and len(nbest) == 3
    assert glue.squad_predictions(questions, answers) == {"0": "", "1": "", "2": ""}
    assert glue.squad_predictions(questions, answers, glue.best_tau(questions, answers))["2"] == ""


def test_windows_of_one_passage_share_its_tokens(tokenizer):
    context = "The hens feed the goat. " * 50
    question, s = glue.Question("1", "Who?", context, [("hens", 4)], False), glue.FinetuneSettings()
    one, many = (glue.squad_windows([question] * count, tokenizer, s) for count in (1, 100))
    assert len(many) == 100 * len(one) and np.array_equal(many.tokens, one.tokens)
    assert many.table.nbytes == 28 * len(many) and many.tokens.dtype == many.offsets.dtype == np.int32


def test_the_best_threshold_is_no_worse_than_any_other():
    rng = np.random.default_rng(0)
    for trial in range(30):
        questions = [glue.Question(str(i), "q", "a b", [("a", 0)] * int(rng.integers(2)), True) for i in range(8)]
        answers = {q.id: (str(rng.choice(["a", "b"])), float(rng.integers(-3, 4))) for q in questions}
        f1 = lambda tau: glue.squad_scores(questions, glue.squad_predictions(questions, answers, tau))["f1"]  # noqa
        assert f1(glue.best_tau(questions, answers)) == max(map(f1, np.arange(-5, 6) / 1.0)) >= f1(0.0)


def squad_json(*questions, **more):
    """SQuAD's JSON with one passage, "The hens feed."; questions: (id, answers) as (text, answer_start)."""
    asked = [{"id": name, "question": "Who?", "answers": [{"text": text, "answer_start": at} for text, at in answers]}
             | more for name, answers in questions]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [
        {"context": "The hens feed.", "qas": asked}]}]})


@pytest.mark.parametrize("text, says", [
    ("", "bad.json: Expecting value: line 1"), ("{}", "KeyError 'data'"), ("[1]", "bad.json: TypeError"),
    ('{"data": []}', "0 questions"), pytest.param("[" * 99999, "recursion", id="deep"),
    ('{"data": [{"paragraphs": [{"context": "c"}]}]}', "'qas' behind data[0].paragraphs[0]"),
    (squad_json(("7", [("hens", 4)]), ("7", [("hens", 4)])), "question '7', {path}: twice"),
    (squad_json(("7", [("hens", 3)])), "answer 'hens', {path}, question 7: expected at character 3"),
    (squad_json(("7", [("hen", -10)])), "expected at character -10"), (squad_json(("7", [])), "'7', {path}: no answer"),
    (squad_json(("7", [("hens", "4")])), "question '7': expected text, and numbers"),
    (squad_json((7, [("hens", 4)])), "question 7: expected text")])
def test_bad_squad_files_are_named_by_file_and_place(tmp_path, text, says):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        glue.read_squad(path)
    assert says.format(path=path) in str(error.value) and str(path) in str(error.value)
    path.write_text(squad_json(("7", []), is_impossible=True))
    assert glue.read_squad(path)[0].v2


def test_squads_scorers_differ_where_nothing_is_left_of_an_answer():
    """v1.1 counts words in common, so gold "The" can only have F1 0; in v2.0 nothing equals nothing."""
    for more, expected in (({}, (100.0, 0.0)), ({"is_impossible": False}, (100.0, 100.0))):
        dataset = json.loads(squad_json(("1", [("The", 0)]), **more))
        scores = glue.squad_scores(dataset, {"1": "the"})
        assert (scores["exact"], scores["f1"]) == expected
    silent = json.loads(squad_json(("1", []), ("2", []), is_impossible=True))
    scores = glue.squad_scores(silent, {"1": "", "2": "hens"})
    assert scores["exact"] == scores["NoAns_f1"] == 50.0 and "HasAns_f1" not in scores
    with pytest.raises(ValueError):
        glue.squad_scores([], {})


def test_gold_answers_come_back_but_for_those_that_end_inside_a_piece(tokenizer, tmp_path, capsys):
    path = tmp_path / "dev.json"
    path.write_text(squad_json(("1", [("hens", 4), ("The hens feed.", 0)]), ("2", [("en", 5)]), ("3", [("feed", 9)])))
    each = glue.gold_check(glue.read_squad(path), tokenizer, glue.FinetuneSettings(max_answer=3))
    inside = "an end inside a piece" if "▁hens" in tokenizer.pieces(tokenizer.encode("the hens")) else ""
    assert [(text, why) for _, text, why in each][0] == ("hens", "")
    assert [why for *_, why in each] == ["", "over 3 tokens", inside, ""]
    tokenizer.save(tmp_path / "t.model")
    glue.main(["squad", "--check", "--tokenizer", str(tmp_path / "t.model"), "--dev", str(path), "--max-answer", "3"])
    printed = capsys.readouterr().out
    assert "2: 'en' -> 'hens', an end inside a piece" in printed and "2 misses" in printed
    assert re.search(r"begin and end with a piece +2 +50.00 +100.00 +100.00", printed)


REAL = Path(os.environ.get("REAL_DATA", HERE / ".data"))  # a folder with glue/ and squad/, as far as they can be had
OFFICIAL = {"CoLA": (8551, 1043), "SST-2": (67349, 872), "MRPC": (3668, 408), "STS-B": (5749, 1500),
            "RTE": (2490, 277), "QNLI": (104743, 5463), "MNLI": (392702, 9815, 9832), "QQP": (363849, 40430)}


@pytest.mark.skipif(not (REAL / "glue").exists(), reason="REAL_DATA names no folder with glue/")
@pytest.mark.parametrize("task", OFFICIAL)
def test_real_glue_files_parse_to_their_row_counts(task):
    """As many rows as the folder's README states, else as many as GLUE has."""
    stated = REAL / "README.md"
    lines = stated.read_text(encoding="utf-8").splitlines() if stated.exists() else []
    rows = [re.findall(r"\d[\d,]*", line.replace("SST-2", "").replace("STS-B", ""))
            for line in lines if re.match(rf"\| {task}\b.*\|.*\|", line)]  # train, official, dev, official
    counts = [int(row[i].replace(",", "")) for i in (0, 2) for row in rows[:1]]
    counts += [int(row[0].replace(",", "")) for row in rows[1:]]  # MNLI mismatched
    for split, count in zip(("train", *glue.TASKS[task].dev), counts or OFFICIAL[task], strict=True):
        assert len(glue.read_task(REAL / "glue", task, split)) == count, split


@pytest.mark.skipif(not (REAL / "squad").exists(), reason="REAL_DATA names no folder with squad/")
@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_gold_answers_of_the_real_dev_files_come_back(version, tmp_path):
    questions = glue.read_squad(REAL / f"squad/dev-v{version}.json.xz")[::20]
    (tmp_path / "c.txt").write_text("\n".join(dict.fromkeys(q.context for q in questions[::3])), encoding="utf-8")
    tokenizer = data.Tokenizer.train([tmp_path / "c.txt"], 1000)
    each = glue.gold_check(questions, tokenizer, glue.SQUAD_PRESETS["paper"])
    fit = [(q, text, why) for q, text, why in each if not why.startswith("over")]
    assert len(fit) > 0.95 * len(each) and sum(why == "" for *_, why in fit) > 0.99 * len(fit)
    assert all(glue.question_scores(q, text)[0] == 1 for q, text, why in fit if not why)
    assert not [why for *_, why in each if why == "in no window"]


def test_a_saved_squad_model_answers_as_it_did(toy, tokenizer, tmp_path, capsys):
    config = replace(TINY, vocab=tokenizer.vocab_size, positions=64)
    with autobert.seeded(0):
        autobert.save_checkpoint(tmp_path / "p.pt", autobert.Pretraining(config, ("conv 3", BERT)), tokenizer)
    for split in ("train", "dev"):
        content = json.loads((toy / f"squad/{split}-v2.0.json").read_text())
        content["data"] = content["data"][:20]
        (tmp_path / f"{split}.json").write_text(json.dumps(content))
    run = lambda line: glue.main(["squad", "--v2", *shlex.split(line.format(here=tmp_path))])  # noqa: E731
    run("--checkpoint {here}/p.pt --train {here}/train.json --dev {here}/dev.json --epochs 1 --n 48 --out {here}/1.tsv"
        " --save {here}/s.pt --predictions {here}/1.json --null-odds {here}/o.json --nbest {here}/n.json")
    run("--checkpoint {here}/s.pt --dev {here}/dev.json --out {here}/2.tsv --predictions {here}/2.json")
    assert '"n": 48' in capsys.readouterr().out.splitlines()[-6]  # the saved settings
    for first, second in (("1.tsv", "2.tsv"), ("1.json", "2.json")):
        assert (tmp_path / first).read_bytes() == (tmp_path / second).read_bytes()
    said, odds, best = (json.loads((tmp_path / f"{name}.json").read_text()) for name in "1on")
    questions = glue.read_squad(tmp_path / "dev.json")
    assert said.keys() == odds.keys() == best.keys() == {q.id for q in questions}
    texts = {name: next(entry["text"] for entry in best[name] if entry["text"]) for name in said}
    assert said == {name: "" if odds[name] > 0 else texts[name] for name in said}
    header, *rows = [line.split("\t") for line in (tmp_path / "1.tsv").read_text().splitlines()]
    assert header[1:4] == ["tau", "exact", "f1"] and [row[0] for row in rows] == [
        "tau 0", "best tau", "random span", "always silent"]
    assert float(rows[0][3]) == round(glue.squad_scores(questions, said)["f1"], 1) <= float(rows[1][3])
    with pytest.raises(UserError, match="no head for SQuAD"):
        run("--checkpoint {here}/p.pt --dev {here}/dev.json")


# ---- opnas.py: UCB (Eq. 3) ----


def test_ucb_by_hand():
    """Position 0: neg in candidates of 0.6 and 0.8, scale in one of 0.4; N = 3."""
    tables = opnas.OperationPriority(alpha=0.5, tau=0.2)
    for first, score in (("-Q", 0.6), ("-Q", 0.8), ("scale(Q)", 0.4)):
        tables.observe((f"cos({first}, K) @ V",), score)
    u = tables.ucb(0)
    assert u["neg"] == pytest.approx(0.7 + 0.5 * math.sqrt(2 * math.log(3) / 2))
    assert u["scale"] == pytest.approx(0.4 + 0.5 * math.sqrt(2 * math.log(3) / 1))
    assert u["softmax"] == pytest.approx(0.6)  # never sampled: the position's mean, no bonus
    assert tables.ucb(1)["cos"] == pytest.approx(0.6 + 0.5 * math.sqrt(2 * math.log(3) / 3))
    weights = [math.exp(x / 0.2) for x in u.values()]
    assert list(tables.p(0).values()) == pytest.approx([w / sum(weights) for w in weights])


def test_kernels_have_a_table_of_their_own_in_each_layer():
    tables = opnas.OperationPriority(alpha=0.0, tau=0.1)
    tables.observe(("conv 9", "conv 3"), 0.9)
    tables.observe(("conv 5", "conv 3"), 0.1)
    assert tables.ucb(("layer", 0))[9] == pytest.approx(0.9) and tables.ucb(("layer", 0))[5] == pytest.approx(0.1)
    assert tables.ucb(("layer", 0))[3] == pytest.approx(0.5) and tables.ucb(("layer", 1))[3] == pytest.approx(0.5)
    assert list(tables.ucb(0).values()) == [0.0] * 10  # no attention seen: no opinion
    assert tables.p(("layer", 0))[9] > 0.9


def test_tau_and_alpha_default_to_a_tenth_of_the_scores_spread():
    tables = opnas.OperationPriority()
    for kernel, score in ((9, 0.2), (5, 0.6)):
        tables.observe((f"conv {kernel}",), score)
    sd = 0.2
    u9, u5 = (score + 0.1 * sd * math.sqrt(2 * math.log(2)) for score in (0.2, 0.6))
    assert tables.ucb(("layer", 0))[9] == pytest.approx(u9)
    p = tables.p(("layer", 0))
    assert p[5] / p[9] == pytest.approx(math.exp((u5 - u9) / (0.1 * sd)))


def test_literal_temperature_one_is_nearly_uniform():
    tables = opnas.OperationPriority(alpha=0.01, tau=1.0)
    rng = random.Random(0)
    for _ in range(200):
        tables.observe(opnas.random_backbone(4, rng), rng.uniform(0.76, 0.83))
    assert tables.perplexity()[0] > 9.99


def test_rejected_candidates_count_with_the_worst_score():
    tables = opnas.OperationPriority(alpha=0.0)
    for kernel, score in ((9, 0.8), (5, 0.3), (7, None)):
        tables.observe((f"conv {kernel}",), score)
    assert tables.ucb(("layer", 0))[7] == pytest.approx(0.3) and len(tables.scores) == 2


def test_perplexity_counts_every_occurrence():
    tables = opnas.OperationPriority(alpha=0.0, tau=1e9)
    tables.observe((BERT, "conv 3", BERT), 0.5)
    assert tables.perplexity() == (pytest.approx(10.0), 10) and tables.perplexity(tuple) == (pytest.approx(7.0), 1)


# ---- opnas.py: mutation and evolution ----


def filled_tables(seed=0, count=30):
    tables, rng = opnas.OperationPriority(), random.Random(seed)
    for _ in range(count):
        tables.observe(opnas.random_backbone(4, rng), rng.random())
    return tables


def test_every_mutation_is_legal_changed_and_unseen():
    rng, tables, counts, seen = random.Random(0), filled_tables(), Counter(), set()
    parents = [opnas.random_backbone(4, rng) for _ in range(20)] + [("conv 3",) * 4, (BERT,) * 4]
    for parent in parents * 10:
        child = opnas.mutate(parent, tables, rng, seen, counts)
        assert child != parent and child not in seen
        assert autobert.check_backbone(child, 4) == child  # legal and canonical
        assert 1 <= sum(a != b for a, b in zip(parent, child)) <= 2  # one layer between, one within
        seen.add(child)


def test_every_kind_of_edit_reaches_its_neighbours():
    """From BERT's path: other lengths by insertion and deletion, the same length by replacement and rewiring."""
    rng, tables, dag = random.Random(0), opnas.OperationPriority(), ops.parse(BERT)
    lengths, reached = Counter(), set()
    for _ in range(3000):
        child = opnas.mutate_dag(dag, tables, rng)
        lengths[len(child) - len(dag)] += 1
        assert all(a < 4 + t for t, (_, *args) in enumerate(child) for a in args)
        if child and ops.why_illegal(ops.canonical(child)) is None:
            reached.add(ops.formula(ops.canonical(child)))
    assert {k: round(v / 3000, 1) for k, v in lengths.items()} == {0: 0.6, 1: 0.2, -1: 0.2}
    assert reached >= {"softmax(scale(Q @ T(K))) @ K", "softmax(Q @ T(K)) @ V",
                       "softsign(softmax(scale(Q @ T(K))) @ V)"}


def test_new_ops_and_kernels_come_from_the_tables():
    tables, rng = opnas.OperationPriority(alpha=0.0, tau=0.01), random.Random(0)
    for kernel in autobert.KERNELS:
        tables.observe((f"conv {kernel}",) * 2, 0.9 if kernel == 31 else 0.1)
    drawn = Counter(opnas.mutate_intra(("conv 3", "conv 3"), tables, rng, Counter()) for _ in range(50))
    assert set(drawn) == {("conv 31", "conv 3"), ("conv 3", "conv 31")}


def test_inter_layer_mutation_flips_one_layer_half_the_time():
    rng, tables, flips = random.Random(0), filled_tables(), 0
    for _ in range(400):
        child = opnas.mutate_inter(("conv 9", BERT), tables, rng, Counter())
        changed = [i for i in range(2) if child[i] != ("conv 9", BERT)[i]]
        flips += len(changed)
        assert len(changed) <= 1
        for i in changed:
            assert bool(autobert.kernel_of(child[i])) == (i == 1)
    assert 160 <= flips <= 240


def pretend(score):
    """A fitness for evolve that costs nothing."""
    def fitness(batch):
        yield from (replace(c, score=score(c.backbone)) for c in batch)
    return fitness


SETTINGS = replace(opnas.PRESETS["toy"], population=10, parents=2, children=3, rounds=6)


def convolutions(backbone):
    return sum(gene.startswith("conv") for gene in backbone) / len(backbone)


def test_evolution_is_algorithm_1():
    batches = []

    def fitness(batch):
        batches.append(list(batch))
        yield from (replace(c, score=convolutions(c.backbone)) for c in batch)
    history = opnas.evolve(SETTINGS, 6, fitness)
    assert [len(batch) for batch in batches] == [6, 4] + [6] * 6  # M_0 in chunks of a round, then K x children
    assert [c.number for c in history] == list(range(10 + 36)) and len({c.backbone for c in history}) == 46
    for i, batch in enumerate(batches[2:]):  # l.4: the parents are the best two of all before
        before = [c for earlier in batches[:2 + i] for c in earlier]
        scores = {c.number: convolutions(c.backbone) for c in before}
        best = sorted(scores, key=lambda n: (-scores[n], n))[:2]
        assert [c.parent for c in batch] == [best[0]] * 3 + [best[1]] * 3
    assert statistics.fmean(c.score for c in history[-12:]) > statistics.fmean(c.score for c in history[:10])


def test_same_seed_same_history():
    runs = [opnas.evolve(replace(SETTINGS, seed=seed), 4, pretend(convolutions)) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] and runs[0] != runs[2]


def test_what_the_probe_turns_away_is_replaced_and_counted():
    turned = []

    def probe(candidate):
        if convolutions(candidate.backbone) == 0.5:
            turned.append(candidate.backbone)
            return "collapsed"
    history = opnas.evolve(SETTINGS, 4, pretend(convolutions), probe)
    rejected = [c for c in history if c.number is None]
    assert [c.backbone for c in rejected] == turned and turned
    assert all(c.reason == "collapsed" and c.score is None for c in rejected)
    assert sum(c.number is not None for c in history) == 46


def test_the_tables_see_every_candidate_and_the_rejected_as_the_worst():
    seen = []

    def note(event, what, tables):
        if event == "round 1":
            seen.extend(score for table in tables.tables.values() for scores in table.values() for score in scores)
            seen.append(len(tables.scores))
    opnas.evolve(SETTINGS, 4, pretend(lambda backbone: 0.3 + 0.5 * convolutions(backbone)),
                 lambda c: "collapsed" if convolutions(c.backbone) == 0.5 else None, note)
    assert seen[-1] == 10 and 0.3 <= min(seen[:-1]) and max(seen[:-1]) <= 0.8


def test_a_probe_that_turns_everything_away_does_not_hang_the_search():
    settings = replace(SETTINGS, population=6, rounds=1)
    history = opnas.evolve(settings, 4, pretend(convolutions), lambda candidate: "collapsed")
    assert Counter(c.reason for c in history) == {"collapsed": 12 * 99, "": 12}


def test_rejected_candidates_are_no_parents_and_a_search_survives_them():
    def fitness(batch):
        yield from (replace(c, score=None, reason="no learning") if c.number < 12 or c.number % 2 else
                    replace(c, score=0.5) for c in batch)
    history = opnas.evolve(SETTINGS, 4, fitness)
    by_number = {c.number: c for c in history}
    assert all(by_number[c.parent].score is not None for c in history if c.parent is not None)
    assert len(history) == 46
    assert by_number[10].parent is None and by_number[16].parent == 12  # at first there is nobody to mutate


def test_all_strategies_share_the_first_population_and_differ_in_how_they_go_on():
    fitness = pretend(lambda backbone: len("".join(backbone)) % 17 / 17)
    run = lambda strategy: opnas.evolve(replace(SETTINGS, strategy=strategy), 4, fitness)  # noqa: E731
    histories = {strategy: run(strategy) for strategy in opnas.STRATEGIES}
    first = {tuple(c.backbone for c in history[:10]) for history in histories.values()}
    later = {tuple(c.backbone for c in history[10:]) for history in histories.values()}
    assert len(first) == 1 and len(later) == 5  # random and random+ws propose the same and differ in what they train
    assert all(c.parent is None for name in ("random", "random+ws") for c in histories[name])
    assert all(c.parent is not None for name in ("op-nas", "ea+ws", "ea-copy") for c in histories[name][10:])
    assert {len(history) for history in histories.values()} == {46}


def test_plain_evolution_draws_uniformly():
    tables = opnas.tables_of(replace(SETTINGS, strategy="ea+ws"))
    for i, kernel in enumerate(autobert.KERNELS):
        tables.observe((f"conv {kernel}", BERT), i / 7)
    assert set(tables.p(0).values()) == {0.1} and set(tables.p(("layer", 0)).values()) == {1 / 7}


def test_the_control_copies_another_layers_attention():
    rng, counts = random.Random(0), Counter()
    children = {opnas.mutate_inter(("conv 9", BERT), filled_tables(), rng, counts, copy=True) for _ in range(60)}
    assert (BERT, BERT) in children and all(a == BERT for a, b in children if not autobert.kernel_of(a))
    alone = opnas.mutate_inter(("conv 9",), filled_tables(), random.Random(1), counts, copy=True)
    assert opnas.mutate_inter(("conv 9",), filled_tables(), random.Random(1), counts) == alone  # nothing to copy


# ---- opnas.py: comparing strategies ----


def test_a_landscape_is_fixed_and_does_what_its_family_says():
    """Logit is z / 3: by position and by op layers add up; misleading turns every other layer round."""
    def z(family, *backbone):
        f = opnas.landscape(family, 7)(backbone)
        assert 0 < f < 1 and f == opnas.landscape(family, 7)(backbone)
        return 3 * math.log(f / (1 - f)) * math.sqrt(len(backbone))
    a, b = "-Q @ T(K)  @ V", "softsign(K @ T(Q) @ V)"
    for family in ("by position", "by op", "by motif", "op in context"):
        assert z(family, a, b) == pytest.approx(z(family, a) + z(family, b)) == pytest.approx(z(family, b, a))
    assert z("misleading", a, b) == pytest.approx(z("by position", a) - z("by position", b))
    assert z("none", a, b) != pytest.approx(z("none", a) + z("none", b))
    assert opnas.landscape("by op", 7)((a,)) != opnas.landscape("by op", 8)((a,))
    # two nodes of one op in other places: the same by op, not by position; the same ops reading others: in context
    assert z("by op", "T(-Q) @ K @ V") == pytest.approx(z("by op", "-T(Q) @ K @ V"))
    assert z("by position", "T(-Q) @ K @ V") != pytest.approx(z("by position", "-T(Q) @ K @ V"))
    assert z("op in context", "T(-Q) @ K @ V") != pytest.approx(z("op in context", "-T(Q) @ K @ V"))


def test_strategies_on_a_landscape_are_paired_and_cost_no_training():
    settings = replace(SETTINGS, seed=3)
    curves = [opnas.on_landscape(replace(settings, **opnas.ARMS[arm]), "by op", 4, 0.0)
              for arm in ("op-nas", "ea+ws", "op-nas")]
    assert curves[0] == curves[2] != curves[1] and curves[0][:10] == curves[1][:10]
    assert all(a <= b for a, b in zip(curves[0], curves[0][1:])) and len(curves[0]) == 46  # without noise it only rises


def test_intervals_are_students():
    """Quantiles from a printed table of t: .975 at 1, 2, 4, 9 and 59 degrees of freedom."""
    for count, t in ((2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (60, 2.001)):
        values = [float(i) for i in range(count)]
        mean, half = opnas.interval(values)
        assert mean == (count - 1) / 2
        assert half == pytest.approx(t * statistics.stdev(values) / math.sqrt(count), rel=4e-3)
    assert opnas.interval([1.0]) == (1.0, math.inf)


def test_paired_differences_by_hand():
    """Of 1, 3, 0, 4: mean 2, sd 1.826; half 3.182 * 1.826 / 2 = 2.905; above 3.5 of 4; (2.8 * 1.826 / 2)² + 2 = 8.5"""
    mean, _, half, won, _, needed = opnas.against([1, 4, 2, 9], [0, 1, 2, 5], scale=1).split()
    assert (float(mean), int(won), int(needed)) == (2.0, 88, 9) and float(half) == pytest.approx(2.905, abs=0.02)


def test_a_log_line_reads_back_exactly():
    c = opnas.Candidate(3, 1, 0, ("conv 9", BERT), 0.1 + 0.2, "", 3.3, 1.25, 0.5, (("CoLA", 1 / 3), ("STS-B", 0.0)))
    assert opnas.from_row(opnas.to_row(c)) == c
    c = opnas.Candidate(None, 0, None, ("conv 9",), reason="no learning")
    assert opnas.from_row(opnas.to_row(c)) == c


# ---- The whole: a run, its folder, resuming ----

SMALL_RUN = ("--population 4 --parents 1 --children 2 --rounds 2 --rows 48 --steps 15 --final-steps 15 --epochs 1 "
             "--least-gain=-9 --vocab 300 --tasks CoLA,STS-B --device cpu").split()


def command(*arguments):
    """A script run to its end."""
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, cwd=HERE, capture_output=True, text=True, timeout=300)


# ---- The bench ----

# a package like the one a user may name: its BERT is torch's encoder, so that figures of a peer are there to look at
PEER = """import torch, types
class BertConfig(types.SimpleNamespace):
    pass
class BertForPreTraining(torch.nn.Module):
    def __init__(self, c):
        super().__init__()
        self.words = torch.nn.Embedding(c.vocab_size, c.hidden_size)
        self.layer = torch.nn.TransformerEncoderLayer(c.hidden_size, c.num_attention_heads, c.intermediate_size,
                                                      c.hidden_dropout_prob, batch_first=True)
        self.out = torch.nn.Linear(c.hidden_size, c.vocab_size)
    def bert(self, input_ids, token_type_ids, attention_mask):
        return self.layer(self.words(input_ids))
    def forward(self, labels, next_sentence_label, **inputs):
        logits = self.out(self.bert(**inputs)).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, labels.flatten())
        assert (labels != -100).float().mean() < .2 and torch.isfinite(loss)
        return types.SimpleNamespace(loss=loss)
BertTokenizerFast = str
def DataCollatorForLanguageModeling(tokenizer):
    return lambda rows: torch.tensor([row["input_ids"] for row in rows])
"""


def test_the_bench_races_with_a_peer_and_says_what_it_takes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(autobert, "matmul_peak", lambda precision, device: 1e12)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "a_peer.py").write_text(PEER)
    autobert.main(["bench", "--size", "mini", "--turns", "3", "--peer", "a_peer", "--batch", "4", "--device", "cpu",
                   "--n", "16", "--out", str(tmp_path / "bench.tsv")])
    head, *rows = [line.split("\t") for line in (tmp_path / "bench.tsv").read_text().splitlines()]
    assert tuple(head) == autobert.BENCH_COLUMNS and len(rows) == 2 * 3 * 3
    table = [dict(zip(head, row)) for row in rows]
    assert {(row["what"], row["model"], row["precision"]) for row in table} == {
        (what, model, precision) for what in ("train", "infer") for model in ("a_peer", "bert", "autobert-zero")
        for precision in ("fp32", "medium", "bf16")}
    config = autobert.BENCH["mini"].config
    weights = 4 * sum(p.numel() for p in autobert.Pretraining(config, autobert.load_backbone("bert", 4)).parameters())
    for row in table:
        ms, rate = float(row["ms"]), float(row["tokens_per_s"])
        assert rate == pytest.approx(4 * 16 / ms * 1e3, rel=1e-3)
        if row["model"] == "bert":  # 12 d^2 a token and layer, 4 n d for attention, the heads; thrice to train
            d, layers, V = config.hidden, config.layers, config.vocab
            flops = layers * 4 * (2 * 16 * 12 * d * d + 4 * 16 * 16 * d)
            if row["what"] == "train":
                flops = 3 * (flops + 4 * 2 * d * d + 4 * 2 * 2 * d * (d + V))
            assert float(row["of_peak"]) == pytest.approx(flops / ms * 1e3 / 1e12, rel=0.05)  # 0.05: GELU, softmax, ..
        if row["model"] == "a_peer":
            assert float(row["to_peer_same"]) == 1
        assert float(row["low"]) <= float(row["to_peer_fp32"]) <= float(row["high"])
        if row["model"] == "bert" and row["memory_MB"]:
            assert float(row["memory_MB"]) >= (3 if row["what"] == "train" else 1) * weights / 1e6 * 0.999
    printed = capsys.readouterr().out
    assert "to peer's fp32" in printed and "the peer's collator" in printed


def test_the_bench_needs_no_peer(capsys):
    autobert.main("bench --size mini --what infer --turns 1 --batch 2 --n 8 --precision fp32 --device cpu".split())
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  bert ")]
    assert len(table) == 1 and table[0][:2] == ["bert", "fp32"] and table[0][-1] == "1.00"
    with pytest.raises(UserError, match="--peer 'no_such_package': cannot be imported"):
        autobert.main(["bench", "--peer", "no_such_package"])
    with pytest.raises(UserError, match="--peer 'os': has no BertConfig"):
        autobert.main(["bench", "--peer", "os"])


def test_a_peers_turn_is_set_against_the_same_turn_of_ours():
    ours, theirs = (autobert.Contender(None, 0, 0, times) for times in ([1.0, 2.0, 4.0], [3.0, 4.0, 20.0]))
    assert list(autobert.compared(ours, theirs)) == [3.0, 2.5, 4.0]  # of 3, 2, 5
    assert np.isnan(autobert.compared(ours, None)).all()


def test_memory_is_kept_inside_and_only_inside():
    """A large tensor that is made again and again costs no page faults while memory is kept."""
    if sys.platform != "linux":
        pytest.skip("glibc's")

    def faults():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(1 << 24)  # 64 MB
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with autobert.kept_memory():
        torch.ones(1 << 24)
        kept = faults()
    torch.ones(1 << 24)
    assert kept < 100 < 5000 < faults()


# ---- autobert.py analyse: token uniformity (Fig. 5), cost (Table 7) ----


def uniformity_by_hand(X):
    """(relative residual norm, mean cosine) of the real tokens (n, d) of one sequence, by NumPy's norms and loops."""
    def norm(m):
        return math.sqrt(np.linalg.norm(m, 1) * np.linalg.norm(m, np.inf))
    cosines = [X[i] @ X[j] / math.sqrt((X[i] @ X[i]) * (X[j] @ X[j]))
               for i in range(len(X)) for j in range(len(X)) if i != j]
    return norm(X - X.mean(0)) / norm(X), np.mean(cosines)


def test_uniformity_of_two_tokens_by_hand():
    """Tokens (3, 1) and (1, 3): mean (2, 2), residual (1, -1) and (-1, 1) of norm 2 in 4; cosine 6 / 10."""
    residual, cosine = autobert.uniformity(torch.tensor([[[3.0, 1.0], [1.0, 3.0]]]), torch.ones(1, 2, dtype=torch.bool))
    assert (residual.item(), cosine.item()) == pytest.approx((0.5, 0.6))


def test_uniformity_is_what_numpy_computes_and_padding_never_changes_it():
    x, lengths = gaussian(4, 9, 6) + 0.5, [9, 5, 2, 1]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    found = torch.stack(autobert.uniformity(x, mask), -1)
    for row, length in enumerate(lengths[:3]):
        expected = uniformity_by_hand(x[row, :length].double().numpy())
        assert found[row].tolist() == pytest.approx(expected, rel=1e-9)
    again = torch.stack(autobert.uniformity(x.masked_fill(~mask[..., None], math.inf), mask), -1)
    assert torch.equal(found[:3], again[:3]) and 0 < found[0, 0] != found[1, 0]


def test_uniformity_of_equal_tokens_and_of_one():
    mask = torch.tensor([[True, True, True], [True, False, False]])
    residual, cosine = autobert.uniformity(torch.full((2, 3, 4), -2.0), mask)
    assert residual.tolist() == [0, 0] and cosine[0].item() == pytest.approx(1) and math.isnan(cosine[1])


def test_hidden_states_end_with_what_the_encoder_puts_out():
    model = autobert.AutoBert(TINY, (BERT, "conv 3")).eval()
    batch = {"ids": torch.arange(5, 15).view(2, 5), "segments": torch.zeros(2, 5, dtype=torch.long),
             "mask": torch.arange(5) < torch.tensor([[5], [3]])}
    states = list(autobert.hidden_states(model, batch))
    assert len(states) == 3 and torch.equal(states[0], model.embed(batch["ids"], batch["segments"]))
    assert torch.equal(states[-1], model(**batch))


def analysed(kind, folder, *arguments, capsys):
    """(rows of the TSV, pictures by name, last line of the output) of an analysis."""
    capsys.readouterr()
    autobert.main(["analyse", kind, "--device", "cpu", "--out", str(folder), *map(str, arguments)])
    head, *rows = [line.split("\t") for line in (folder / f"{kind}.tsv").read_text().splitlines()]
    pictures = {path.name: ElementTree.fromstring(path.read_text()) for path in folder.glob("*.svg")}
    return [dict(zip(head, row)) for row in rows], pictures, capsys.readouterr().out.splitlines()[-1]


def test_checkpoints_are_compared_layer_by_layer(toy, tokenizer, tmp_path, capsys):
    models = {}
    for name, seed in (("one", 1), ("two", 2)):
        with autobert.seeded(seed):
            models[name] = autobert.Pretraining(replace(TINY, vocab=tokenizer.vocab_size), (BERT, "conv 3"))
        autobert.save_checkpoint(tmp_path / f"{name}.pt", models[name], tokenizer)
    table, pictures, words = analysed(
        "uniformity", tmp_path / "out", "--checkpoint", tmp_path / "one.pt", tmp_path / "two.pt", "--corpus",
        toy / "held-out.txt", "--n", 24, "--rows", 40, capsys=capsys)
    assert [(row["backbone"], row["layer"]) for row in table] == [(b, str(i)) for b in ("one", "two") for i in range(3)]
    held = data.split_held_out(data.load_corpus([toy / "held-out.txt"], tokenizer))[1]
    pairs = data.PretrainingData(held, 24, 32, tokenizer.vocab_size, 0).pairs[:40]
    assert len(pairs) == 40  # more than are measured at once
    batch = data.assemble(held.tokens, pairs, 24)
    with torch.no_grad():
        hidden = models["two"].eval().encoder(*(torch.from_numpy(batch[key]).long() for key in ("ids", "segments")),
                                              torch.from_numpy(batch["mask"]))
    found = [uniformity_by_hand(x[m]) for x, m in zip(hidden.double().numpy(), batch["mask"])]
    last = {row["backbone"]: row for row in table if row["layer"] == "2"}
    figures = [float(last["two"][key]) for key in ("residual", "cosine", "residual_sd", "cosine_sd")]
    assert figures == pytest.approx([*np.mean(found, 0), *np.std(found, 0)], rel=1e-4)
    for column in ("residual", "cosine"):
        values = {name: float(row[column]) for name, row in last.items()}
        most, least = max(values, key=values.get), min(values, key=values.get)
        assert f"{most} has the largest {column}, {values[most]:.3f}, {values[most] - values[least]:.3f} more" in words
        texts = [e.text for e in pictures[f"uniformity-{column}.svg"].iter() if e.tag.endswith("text")]
        assert {"one", "two", column} <= set(texts)


def test_backbones_are_trained_alike_and_the_same_seed_gives_the_same_numbers(toy, tmp_path, capsys, monkeypatch):
    runs, train = [], autobert.pretrain
    monkeypatch.setattr(autobert, "pretrain", lambda model, batches, settings, *more: (
        runs.append((model.encoder.backbone, settings)), train(model, batches, settings, *more)))
    options = ("--corpus", toy / "held-out.txt", "--steps", 3, "--rows", 8)
    for folder in "ab":
        analysed("uniformity", tmp_path / folder, *options, capsys=capsys)
    analysed("uniformity", tmp_path / "c", *options, "--seed", 1, capsys=capsys)
    one, two, other = ((tmp_path / folder / "uniformity.tsv").read_text() for folder in "abc")
    assert one == two != other
    assert [backbone for backbone, _ in runs[:2]] == [
        autobert.load_backbone("bert", 4), autobert.load_backbone("autobert-zero", 4)]
    assert runs[0][1] == runs[1][1] == replace(autobert.PRETRAIN["toy"], steps=3)


def test_a_broken_training_is_one_clear_error(toy, monkeypatch):
    def diverges(*more):
        raise autobert.Diverged("a non-finite gradient in step 7")
    monkeypatch.setattr(autobert, "pretrain", diverges)
    with pytest.raises(UserError, match="bert: a non-finite gradient in step 7 of 2000"):
        autobert.main(["analyse", "uniformity", "--corpus", str(toy / "held-out.txt")])


def test_costs_stand_beside_berts(tmp_path, capsys, monkeypatch):
    """Here bert is made to take three times the time and memory of autobert-zero."""
    monkeypatch.setattr(autobert, "clock", lambda turn, device: turn())
    monkeypatch.setattr(autobert, "peak_memory", lambda turn, model, training, device: 1e6 * turn())

    def pretended(what, s, backbone, arrays, device):
        size = {"infer": 1, "train": 4}[what] * (3 if "conv" not in backbone[0] else 1)
        return None, lambda precision: size
    monkeypatch.setattr(autobert, "our_turns", pretended)
    table, pictures, words = analysed("cost", tmp_path / "out", "--size", "toy", "--backbone", "autobert-zero", "bert",
                                      "--turns", 3, "--n", 16, "--batch", 2, capsys=capsys)
    config = autobert.SIZES["toy"]
    assert [row["backbone"] for row in table] == ["bert", "autobert-zero"]
    for row in table:
        genes, bert = (autobert.load_backbone(name, 4) for name in (row["backbone"], "bert"))
        count, other = (autobert.count_parameters(config, x) for x in (genes, bert))
        flops, flops_other = (autobert.count_flops(config, x, 16)["total"] for x in (genes, bert))
        assert [float(row[key]) for key in ("parameters", "att", "flops")] == pytest.approx(
            [count["total"], count["att"], flops], rel=1e-5)
        assert [float(row[f"{key}_ratio"]) for key in ("parameters", "att", "flops")] == pytest.approx(
            [count["total"] / other["total"], count["att"] / other["att"], flops / flops_other], rel=1e-5)
        assert (row["n"], row["batch"], row["device"], row["torch"]) == ("16", "2", "cpu", torch.__version__)
    zero = {key: float(value) for key, value in table[1].items() if key.startswith(("infer", "train"))}
    assert zero == pytest.approx({"infer_ms": 1e3 / 20, "infer_MB": 1, "train_ms": 4e3 / 20, "train_MB": 4} | {
        f"{what}_{unit}_ratio": 1 / 3 for what in ("infer", "train") for unit in ("ms", "MB")}, rel=1e-5)
    widths = [float(e.get("width")) for e in pictures["cost.svg"].iter() if e.tag.endswith("rect")]
    assert len(widths) == 2 * len(autobert.COSTS)
    assert widths[1::2] == pytest.approx([340 * float(table[1][f"{key}_ratio"]) for key in autobert.COSTS], abs=0.06)
    assert words.startswith("With bert as 1: parameters 0.95 (autobert-zero) to 1.00 (bert), FLOPs")
    assert "inference 0.33 (autobert-zero) to 1.00 (bert)" in words


def test_costs_are_measured(tmp_path, capsys):
    table, _, words = analysed("cost", tmp_path / "out", "--size", "toy", "--backbone", "conv-only", "--turns", 1,
                               "--n", 8, "--batch", 1, capsys=capsys)
    assert len(table) == 1 and float(table[0]["infer_ms"]) > 0 and float(table[0]["train_ms"]) > 0
    assert words.startswith("With conv-only as 1: ") and "training step 1.00 (conv-only) to 1.00" in words


# ---- Whole pre-trainings: records, resuming, many processes ----

# a script like autobert.py, but its toy model is tiny and has the dropout of its first argument, and behind the step of
# its second the first process dies as by kill -9
SMALLER = f"""import os, sys
sys.path.insert(0, {str(HERE)!r})
import autobert, data
autobert.SIZES["toy"] = autobert.replace(autobert.SIZES["toy"], layers=2, hidden=16, embedding=8,
                                         dropout=float(sys.argv[1]))
report = autobert.Run.report
def dying(run, step, lr, parts):
    report(run, step, lr, parts)
    if step + 1 == int(sys.argv[2]):
        os.kill(os.getpid(), {int(signal.SIGKILL)})
autobert.Run.report = dying
if __name__ == "__main__":
    sys.exit(data.run_cli(lambda: autobert.main(sys.argv[3:])))
"""


def pretraining(folder, *arguments, dropout=0.1, killed=0, processes=1):
    """The result of `SMALLER` with arguments in a folder."""
    (folder / "smaller.py").write_text(SMALLER)
    many = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", processes, "--"]
    many *= processes > 1  # "--": else torchrun takes our --n for one of its own
    line = [sys.executable, *many, "smaller.py", dropout, killed, "pretrain", "--device", "cpu", *arguments]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([*map(str, line)], cwd=folder, env=env, text=True, capture_output=True, timeout=300)


def records(path):
    """The rows of a table of records but for the clock's columns: (step, values or None)."""
    head, *rows = [line.split("\t") for line in path.read_text().splitlines()]
    assert tuple(head) == autobert.COLUMNS and all(len(row) == len(head) for row in rows)
    return [(int(row[0]), *(float(cell) if cell else None for cell in row[1:-2])) for row in rows]


LONG_ENOUGH = ("--steps", 300, "--batch", 6, "--n", 32, "--vocab", 300, "--save-every", 40, "--eval-every", 50)


@pytest.fixture(scope="session")
def pretrained(toy, tmp_path_factory):
    """The folder of a finished pre-training, whole.pt, and what it printed."""
    folder = tmp_path_factory.mktemp("pretrained")
    result = pretraining(folder, "--corpus", toy / "held-out.txt", *LONG_ENOUGH, "--out", "whole.pt")
    assert result.returncode == 0, result.stderr
    return folder, result.stdout


def test_a_pretraining_leaves_model_records_and_curve(pretrained):
    folder, printed = pretrained
    first, *lines = printed.splitlines()
    options = json.loads(first)
    assert options["steps"] == 300 and options["precision"] == "fp32" and options["model"]["hidden"] == 16
    assert lines[-1] == "wrote whole.pt"
    progress = [line for line in lines if line.startswith("step=")]
    expected = sorted({1, *range(3, 301, 3), *range(50, 301, 50)})
    assert [int(line[5:].split("/")[0]) for line in progress] == expected
    assert re.fullmatch(r"step=300/300 loss=\S+ mlm=\S+ nsp=\S+ lr=\S+ tokens/s=\d+ left=0s", progress[-1])
    rows = records(folder / "whole.tsv")
    assert [row[0] for row in rows] == expected
    for step, lr, loss, mlm, nsp, accuracy, held, held_accuracy in rows:
        assert lr == pytest.approx(autobert.lr_at(step - 1, 300, 2e-3, 0.1), rel=1e-6)
        assert loss == pytest.approx(mlm + nsp, rel=1e-6) and 0 <= accuracy <= 1
        assert (held is not None) == (held_accuracy is not None) == (step % 50 == 0)
    held = [row[6] for row in rows if row[6]]
    assert held[-1] < held[0] - 0.2
    assert f"held-out mlm={held[-1]:.4f} nsp=" in lines[-2]
    svg = ElementTree.parse(folder / "whole.svg").getroot()
    texts = [element.text for element in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert "Pre-training: autobert-zero, toy" in texts and {"training MLM", "held-out MLM"} <= set(texts)
    content = autobert.load_tensors(folder / "whole.pt")
    assert "training" not in content and content["run"] == options
    model, words = autobert.load_checkpoint(folder / "whole.pt")
    documents = data.load_corpus(options["corpus"], words)
    assert options["tokens"] == sum(
        len(words.encode(line)) for line in Path(options["corpus"][0]).read_text(encoding="utf-8").splitlines())
    batches = data.PretrainingData(data.split_held_out(documents)[1], 32, 6, 300, 0)
    again = autobert.held_out_loss(model, batches, min(20, len(batches.pairs) // 6), "cpu")["mlm"]
    assert again == pytest.approx(held[-1], rel=1e-5)


def test_a_killed_pretraining_goes_on_bit_for_bit(pretrained, toy, tmp_path):
    whole = pretrained[0]
    result = pretraining(tmp_path, "--corpus", toy / "held-out.txt", *LONG_ENOUGH, "--out", "half.pt", killed=51)
    assert result.returncode == -signal.SIGKILL and records(tmp_path / "half.tsv")[-1][0] == 51
    assert autobert.load_tensors(tmp_path / "half.pt")["training"]["step"] == 40
    with open(tmp_path / "half.tsv", "a") as file:
        file.write("5")  # the beginning of a row: cut short
    result = pretraining(tmp_path, "--resume", "half.pt")
    assert result.returncode == 0 and result.stdout.splitlines()[1].startswith("step=42/300")
    assert records(tmp_path / "half.tsv") == records(whole / "whole.tsv")
    one, other = (path.read_text().splitlines() for path in (tmp_path / "half.tsv", whole / "whole.tsv"))
    assert [line.split("\t")[:8] for line in one] == [line.split("\t")[:8] for line in other]
    one, other = (autobert.load_tensors(path) for path in (tmp_path / "half.pt", whole / "whole.pt"))
    assert one.keys() == other.keys() and one["config"]["dropout"] == 0.1
    assert one["state"].keys() == other["state"].keys()
    assert all(torch.equal(value, other["state"][name]) for name, value in one["state"].items())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half.pt", "half.svg", "half.tsv", "smaller.py"]


def test_two_processes_learn_as_one_and_either_goes_on_for_the_other(toy, tmp_path):
    how = ("--corpus", toy / "held-out.txt", *LONG_ENOUGH, "--steps", 90, "--save-every", 30, "--batch", 7)
    assert pretraining(tmp_path, *how, "--out", "one.pt", dropout=0).returncode == 0
    expected = records(tmp_path / "one.tsv")
    for name, before, after in (("down", 2, 1), ("up", 1, 2)):  # of 7 rows one takes 3, the other 4
        assert pretraining(tmp_path, *how, "--out", f"{name}.pt", dropout=0, processes=before, killed=48).returncode
        assert autobert.load_tensors(tmp_path / f"{name}.pt")["training"]["step"] == 30
        result = pretraining(tmp_path, "--resume", f"{name}.pt", dropout=0, processes=after)
        assert result.returncode == 0 and f'"processes": {after}' in result.stdout, result.stderr
        assert result.stdout.count("step=90/90") == result.stdout.count("wrote") == 1
        rows = records(tmp_path / f"{name}.tsv")
        assert [[cell is None for cell in row] for row in rows] == [[cell is None for cell in row] for row in expected]
        for row, right in zip(rows, expected):
            assert [x for x in row if x is not None] == pytest.approx([x for x in right if x is not None], rel=1e-5)


def test_an_error_in_the_middle_of_many_processes_is_one_line_too(toy, tmp_path):
    """Here a disk that is full at the first checkpoint: the first process says so, the other only misses it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))  # a checkpoint has 80 kB
    try:
        how = ("--corpus", toy / "held-out.txt", *LONG_ENOUGH, "--save-every", 5)
        result = pretraining(tmp_path, *how, processes=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert result.returncode and "rank1" not in result.stderr
    assert result.stderr.count("error: ") == result.stderr.count("error: model.pt: cannot be written") == 1
    assert sorted(os.listdir(tmp_path)) == ["model.tsv", "smaller.py"]


@pytest.mark.parametrize("arguments, says", [
    (["--corpus", "none.txt"], "error: none.txt: no such file; expected an ordinary file"),
    (["--corpus", "corpus.txt", "--batch", 2, "--accumulate", 2, "--vocab", 300],
     "error: --batch 2: fewer rows than 2 processes with --accumulate 2")])
def test_an_error_in_many_processes_is_one_line(arguments, says, toy, tmp_path):
    shutil.copy(toy / "held-out.txt", tmp_path / "corpus.txt")
    result = pretraining(tmp_path, *arguments, processes=2)
    assert result.returncode and [x for x in result.stderr.splitlines() if x.startswith("error")] == [says]
    assert not result.stdout and not list(tmp_path.glob("model*"))


def test_what_cannot_be_resumed_is_one_clear_error(pretrained, toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="whole.pt': a finished model; nothing to resume"):
        autobert.main(["pretrain", "--resume", str(pretrained[0] / "whole.pt")])
    text = (toy / "held-out.txt").read_text()
    Path("corpus.txt").write_text(text)
    monkeypatch.setattr(autobert.Run, "save", stop_after(autobert.Run.save))
    with pytest.raises(KeyboardInterrupt):
        autobert.main(["pretrain", "--corpus", "corpus.txt", *map(str, LONG_ENOUGH), "--device", "cpu"])
    whole, rows = Path("model.pt").read_bytes(), Path("model.tsv").read_bytes()
    for change, says in ((text + "A hen eats.\n", "the corpus has changed, .* tokens"), (None, "corpus.txt: no such")):
        Path("corpus.txt").write_text(change) if change else os.remove("corpus.txt")
        with pytest.raises(UserError, match=says):
            autobert.main(["pretrain", "--resume", "model.pt"])
    Path("corpus.txt").write_text(text)
    Path("broken.pt").write_bytes(whole[:-1000])
    for path in ("broken.pt", ""):
        with pytest.raises(UserError, match=f"checkpoint '{path}'"):
            autobert.main(["pretrain", "--resume", path])
    for at, value in itertools.chain(
            ((("run", key), value) for key, value in (
                ("batch", 0), ("accumulate", None), ("accumulate", 4), ("lr", math.nan), ("lr", -1.0), ("seed", "x"),
                ("steps", 2**70), ("corpus", 3), ("precision", None), ("save_every", 0), ("order", 1.5))),
            ((("training", key), value) for key, value in (
                ("step", ""), ("step", 2**70), ("step", 0), ("seconds", []), ("optimizer", []), ("optimizer", {}))),
            [(("run",), 1), (("training",), None), (("training", "optimizer", "state", 0, "exp_avg"), torch.zeros(3)),
             (("training", "optimizer", "state", 0, "exp_avg_sq"), 0), (("training", "optimizer", "state"), {})]):
        content = autobert.load_tensors("model.pt")
        inner = content
        for key in at[:-1]:
            inner = inner[key]
        inner[at[-1]] = value
        autobert.save_tensors("changed.pt", content)
        with pytest.raises(UserError, match="changed.pt': (not written by|its moments|the corpus)"):
            autobert.main(["pretrain", "--resume", "changed.pt"])
    with data.lock("model.tsv"), pytest.raises(UserError, match="model.tsv: another process is at work"):
        autobert.main(["pretrain", "--resume", "model.pt"])
    assert (Path("model.pt").read_bytes(), Path("model.tsv").read_bytes()) == (whole, rows)


def test_held_out_losses_of_several_runs_are_one_picture(pretrained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = (pretrained[0] / "whole.tsv").read_text()
    for name in ("one", "two"):
        os.mkdir(name)
        Path(name, "model.tsv").write_text(table)
    autobert.main(["draw", "--records", "one/model.tsv", "two/model.tsv", "--out", "both.svg"])
    picture = Path("both.svg").read_text()
    assert picture.count('<path class="line s0"') == picture.count('<path class="line s1"') == 2  # legend and line
    assert "one/model.tsv" in picture and "two/model.tsv" in picture  # by their stems they could not be told apart
    Path("other.tsv").write_text(table.replace("held_mlm", "mlm_held"))
    Path("none.tsv").write_text(table.splitlines()[0] + "\n²\t1\t1\t1\t1\t1\t1\t1\t1\t1\n")
    for path, out, says in (("one/model.tsv", "one/model.tsv", "one of the records"), ("none.tsv", "x", "no held-out"),
                            ("other.tsv", "x", "expected its columns step lr"), ("one/model.tsv", "one", "a folder"),
                            ("one/model.tsv", "no/x.svg", "its folder is not there")):
        with pytest.raises(UserError, match=says):
            autobert.main(["draw", "--records", path, "--out", out])
    assert Path("one/model.tsv").read_text() == table and not Path("x").exists()


def stop_after(save):
    """Run.save, then Ctrl-C."""
    def stopping(*arguments):
        save(*arguments)
        raise KeyboardInterrupt
    return stopping


def test_divergence_names_the_step_and_the_last_good_checkpoint(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = ["pretrain", "--corpus", str(toy / "held-out.txt"), *map(str, LONG_ENOUGH), "--steps", "30"]
    with pytest.raises(UserError, match=r"a non-finite gradient in step \d+ of 30, with --lr 1000000000.0, .*no check"):
        autobert.main([*how, "--lr", "1e9"])
    assert not Path("model.pt").exists()
    real = autobert.lr_at
    monkeypatch.setattr(autobert, "lr_at", lambda step, *others: real(step, *others) if step < 23 else 1e30)
    with pytest.raises(UserError, match=r"in step 2[5-9] of 30, .*the last good checkpoint is 'a.pt', of step 20$"):
        autobert.main([*how, "--save-every", "10", "--out", "a.pt"])
    content = autobert.load_tensors("a.pt")
    assert content["training"]["step"] == 20 and all(torch.isfinite(x).all() for x in content["state"].values())
    assert max(int(line.split()[0]) for line in Path("a.tsv").read_text().splitlines()[1:]) < 30
    monkeypatch.setattr(autobert, "lr_at", real)
    autobert.main(["pretrain", "--resume", "a.pt", "--device", "cpu"])
    assert [row[0] for row in records(tmp_path / "a.tsv")] == list(range(1, 31))


def test_too_little_disk_is_said_before_training(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    with pytest.raises(UserError, match=r"model.pt: its folder has 1 MB left; .* take 5 MB"):
        autobert.main(["pretrain", "--corpus", str(toy / "held-out.txt"), "--vocab", "300", "--device", "cpu"])
    assert not list(tmp_path.iterdir()) and not capsys.readouterr().out


def test_too_large_a_batch_for_the_device_is_one_clear_error(toy, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(autobert.Pretraining, "forward", full)
    with pytest.raises(UserError, match="out of memory on cpu with --batch 16 and --accumulate 2; "):
        autobert.main(["pretrain", "--corpus", str(toy / "held-out.txt"), "--vocab", "300", "--accumulate", "2",
                       "--device", "cpu"])


def test_files_beside_the_checkpoint_are_not_replaced_unasked(toy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    how = ["pretrain", "--corpus", str(toy / "held-out.txt"), "--vocab", "300", "--steps", "2", "--device", "cpu"]
    Path("model.svg").write_text("mine")
    with pytest.raises(UserError, match="model.svg' exists"):
        autobert.main(how)
    assert os.listdir() == ["model.svg"]
    autobert.main([*how, "--overwrite"])
    assert sorted(os.listdir()) == ["model.pt", "model.svg", "model.tsv"]


@pytest.mark.parametrize("seconds, words", [
    (0.4, "0s"), (59.6, "1m00s"), (192, "3m12s"), (7260, "2h01m"), (10**6, "277h46m")])
def test_time_left_in_words(seconds, words):
    assert autobert.span(seconds) == words


# ---- Runs of a search ----


def search(toy, run, workers):
    """The arguments of a small search."""
    return ["opnas.py", "--corpus", f"{toy}/held-out.txt", "--glue", f"{toy}/glue", "--out", str(run), *SMALL_RUN,
            "--workers", str(workers)]


def interrupted(toy, run, workers, candidates, number):
    """(exit code, stderr) of a small search that got a signal once so many candidates were logged."""
    process = subprocess.Popen([sys.executable, *search(toy, run, workers)], cwd=HERE, text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    log = run / "candidates.tsv"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > candidates):
        time.sleep(0.02)
    process.send_signal(number)
    error = process.communicate(timeout=60)[1]
    return process.returncode, error


def outcome(run):
    """All of a run that its seed decides: candidates without their seconds, finals, winner, weights."""
    lines = re.sub(r"\t\d+\.\d\d\t\d+\.\d\d\t", "\t", (run / "candidates.tsv").read_text())
    slots = autobert.load_tensors(run / "supernet.pt")["slots"]
    best = autobert.load_tensors(run / "best.pt")["state"]
    return (lines, *((run / name).read_text() for name in ("finals.json", "best.json", "table.txt")),
            {name: tensor.numpy().tobytes() for name, tensor in [*slots.items(), *best.items()]})


@pytest.fixture(scope="session")
def finished(toy, tmp_path_factory):
    """A small search from text files to its table, by two workers."""
    run = tmp_path_factory.mktemp("runs") / "two"
    result = command(*search(toy, run, workers=2))
    assert result.returncode == 0, result.stderr
    return run, result


def test_a_search_takes_a_token_cache_for_its_text(finished, toy, tmp_path):
    """The same candidates, scores and weights as from the text that the cache was made of."""
    arguments = search(toy, tmp_path / "run", workers=1)
    text = arguments[arguments.index("--corpus") + 1]
    data.prepare([text], tmp_path / "cache", 300, 0, 1)
    result = command(*[tmp_path / "cache" if argument == text else argument for argument in arguments])
    assert result.returncode == 0 and outcome(tmp_path / "run") == outcome(finished[0]), result.stderr


def test_a_search_goes_from_text_to_a_table(finished):
    run, result = finished
    progress = r"^cand=\d+ round=\d parent=\S+ score=0\.\d+ best=0\.\d+ rejected=\d+ ppl=\S+ \S+s \| L\d"
    assert len(re.findall(progress, result.stdout, re.M)) == 8
    assert {p.name for p in run.iterdir()} >= {"settings.json", "candidates.tsv", "best.json", "best.pt",
                                               "tokenizer.model", "supernet.pt", "table.txt"}
    settings = json.loads((run / "settings.json").read_text())
    assert settings["settings"]["steps"] == 15 and settings["settings"]["seed"] == 0 and settings["versions"]["torch"]
    table = (run / "table.txt").read_text()
    assert table in result.stdout and all(f"  {name}\n" in table for name in ("best", "bert", "autobert-zero"))
    model, _ = autobert.load_checkpoint(run / "best.pt")
    assert model.encoder.backbone == autobert.load_backbone(str(run / "best.json"))
    assert not list((run / "children").iterdir())  # disk and memory hold no more than a round's children


def test_any_number_of_workers_gives_the_same_result(finished, toy, tmp_path):
    assert command(*search(toy, tmp_path / "one", workers=1)).returncode == 0
    assert outcome(tmp_path / "one") == outcome(finished[0])


def test_a_killed_run_resumes_to_the_same_result(finished, toy, tmp_path):
    run, log = tmp_path / "killed", tmp_path / "killed/candidates.tsv"
    assert interrupted(toy, run, 1, 4, signal.SIGKILL)[0] == -signal.SIGKILL
    assert not (run / "table.txt").exists()
    log.write_text(log.read_text() + "9\t9\tcut short")  # as by a crash in the middle of a write
    result = command("opnas.py", "resume", run, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert outcome(run) == outcome(finished[0])


def test_kill_9_at_any_moment_changes_nothing(finished, toy, tmp_path):
    """Four kills at random moments, four in the middle of a write; then the run ends as if it had never been killed."""
    rng, run, kills = random.Random(time.time_ns()), tmp_path / "killed", Counter()
    for kind in ("any", "write") * 4:
        line = ["opnas.py", "resume", run] if (run / "settings.json").exists() else search(toy, run, 1)
        process = subprocess.Popen([sys.executable, *map(str, line), "--workers", str(rng.choice((1, 2)))], cwd=HERE,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        begun, wait, skip = time.time(), rng.uniform(1, 6), rng.randrange(4)
        seen = set()
        while process.poll() is None and (len(seen) <= skip if kind == "write" else time.time() < begun + wait):
            for folder in (run, run / "children"):
                with contextlib.suppress(OSError):
                    seen.update(name for name in os.listdir(folder) if name.endswith(".tmp"))
            time.sleep(0.0002 if kind == "write" else 0.01)
        kills[kind] += process.poll() is None
        process.kill()
        process.wait()
    assert sum(kills.values()) >= 4, kills
    result = command("opnas.py", "resume", run, "--workers", 2)
    assert result.returncode == 0, result.stderr
    assert outcome(run) == outcome(finished[0]) and not list(run.glob("**/.*.tmp"))


def test_a_full_disk_stops_a_run_and_loses_no_candidate(finished, toy, tmp_path):
    """No file may grow beyond 150 kB, which a model's weights do: as if the disk were full just then."""
    run = tmp_path / "full"
    assert interrupted(toy, run, 1, 5, signal.SIGKILL)[0] == -signal.SIGKILL
    before = (run / "candidates.tsv").read_text()
    result = subprocess.run([sys.executable, "opnas.py", "resume", str(run), "--workers", "1"], cwd=HERE, text=True,
                            capture_output=True, timeout=100, preexec_fn=lambda: resource.setrlimit(
                                resource.RLIMIT_FSIZE, (150_000, 150_000)))
    assert result.returncode == 2 and "cannot be written" in result.stderr and len(result.stderr.splitlines()) == 1
    assert (run / "candidates.tsv").read_text().startswith(before) and not list(run.glob("**/.*.tmp"))
    assert command("opnas.py", "resume", run, "--workers", 1).returncode == 0
    assert outcome(run) == outcome(finished[0])


def test_weights_lost_before_the_write_back_are_judged_again(finished, toy, tmp_path):
    run = tmp_path / "lost"
    interrupted(toy, run, 1, 6, signal.SIGKILL)
    assert (run / "children/0.pt").exists()  # the first candidate is judged, its generation is not over
    shutil.rmtree(run / "children")
    result = command("opnas.py", "resume", run, "--workers", 1)
    assert result.returncode == 0, result.stderr
    assert outcome(run) == outcome(finished[0])


def test_overwrite_leaves_a_run_alone_that_is_at_work(finished, toy, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    with open(run / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = command(*search(toy, run, 1), "--overwrite")
    assert result.returncode == 2 and "another process" in result.stderr and outcome(run) == outcome(finished[0])


def changed(finished, folder, **settings):
    """A copy of the finished run with other settings."""
    shutil.copytree(finished[0], folder)
    saved = json.loads((folder / "settings.json").read_text())
    saved["settings"].update(settings)
    (folder / "settings.json").write_text(json.dumps(saved))
    return folder


def test_a_search_that_selects_on_train_is_judged_on_dev_in_the_end(finished, tmp_path):
    bench = opnas.Bench(changed(finished, tmp_path / "run", select="train"))
    plain = opnas.Bench(finished[0])
    for task in ("CoLA", "STS-B"):
        (train, held), (whole, dev) = bench.tasks[task], bench.final_tasks[task]
        assert (len(train.rows), len(held["dev"].rows), len(whole.rows)) == (44, 4, 48)
        assert str(dev["dev"].rows) == str(plain.tasks[task][1]["dev"].rows) != str(held["dev"].rows)
        assert str(whole.rows) == str(plain.tasks[task][0].rows)


def test_a_super_net_without_transforms_writes_children_too(finished, tmp_path, capsys):
    run = changed(finished, tmp_path / "run", transforms="off")
    config = opnas.Bench(run).config
    slots = supernet.SuperNet(config, 3, transforms=False).slots
    autobert.save_tensors(run / "supernet.pt", {"slots": slots})
    supernet.main(["conv-only", "--run", str(run), "--out", str(tmp_path / "child.pt")])
    state = autobert.load_tensors(tmp_path / "child.pt")["state"]
    name = "encoder.layers.2.convolution.kernel"  # conv 3
    assert state[name].shape[1] == 3 and torch.equal(state[name], slots[name][:, 31:34])


def test_final_results_of_another_backbone_are_not_taken_for_the_winners(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    results = json.loads((run / "finals.json").read_text())
    results[0]["backbone"][0] = "conv 65" if results[0]["backbone"][0] != "conv 65" else "conv 3"
    (run / "finals.json").write_text(json.dumps(results))
    result = command("opnas.py", "resume", run, "--workers", 1)
    assert result.returncode == 0 and result.stdout.count("final=best") == 1 and "final=bert" not in result.stdout
    assert (run / "table.txt").read_text() == (finished[0] / "table.txt").read_text()


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def test_what_processes_tell_each_other_reads_back_exactly():
    c = opnas.Candidate(3, 1, 0, ("conv 9", BERT), 0.1 + 0.2, "", 1 / 3, 1.25, 0.5, (("CoLA", 1 / 3), ("STS-B", 0.0)))
    assert opnas._unpack(opnas._pack([["judge", c, 100, 0], {"mlm": 1 / 3}])) == [["judge", c, 100, 0], {"mlm": 1 / 3}]


def test_torchruns_processes_give_the_same_result(finished, toy, tmp_path):
    line = [*TORCHRUN, *search(toy, tmp_path / "run", 1)[:-2]]
    result = subprocess.run(line, cwd=HERE, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    assert "workers=2" in result.stdout and outcome(tmp_path / "run") == outcome(finished[0])


@pytest.mark.parametrize("launcher", ["torchrun", "--workers"])
def test_a_dead_worker_ends_the_run_clearly_and_it_can_go_on(launcher, finished, toy, tmp_path):
    run = tmp_path / "run"
    line = [*TORCHRUN, *search(toy, run, 1)[:-2]] if launcher == "torchrun" else [sys.executable, *search(toy, run, 2)]
    process = subprocess.Popen(line, cwd=HERE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = run / "candidates.tsv"
    while process.poll() is None and not (log.exists() and len(log.read_text().splitlines()) > 6):
        time.sleep(0.02)
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        if b"\0RANK=1\0" in Path(f"/proc/{child}/environ").read_bytes():
            os.kill(int(child), signal.SIGKILL)
    error = process.communicate(timeout=120)[1]
    said = [line for line in error.splitlines() if line.startswith("error: ")]
    assert process.returncode and len(said) == 1 and f"opnas.py resume {run}" in said[0], error
    assert command("opnas.py", "resume", run, "--workers", 1).returncode == 0
    assert outcome(run) == outcome(finished[0])


def test_a_mapped_file_of_weights_takes_no_memory_until_it_is_used(tmp_path):
    """So a worker that builds a child reads the slots it copies, and no second super-net."""
    autobert.save_tensors(tmp_path / "net.pt", {"slots": {str(i): torch.zeros(10**7) for i in range(8)}})  # 320 MB
    script = """if True:
        import resource, sys, autobert
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1 if sys.platform == "darwin" else 1024)
        before = peak()
        slots = autobert.load_tensors(sys.argv[1], mapped=True)["slots"]
        copy = slots["3"].clone()
        print(peak() - before)"""
    assert float(command("-c", script, tmp_path / "net.pt").stdout) < 150  # MB: the copy and the 40 MB it was read from


def test_a_comparison_goes_from_text_to_fig_6_and_a_second_call_goes_on(toy, tmp_path):
    line = ["opnas.py", "compare", *search(toy, tmp_path, 2)[1:], "--seeds", 2, "--arms", "op-nas,ea+ws,random",
            "--rounds", 1, "--rows", 16, "--final-steps", 2]
    first = command(*line)
    assert first.returncode == 0, first.stderr
    table = (tmp_path / "table.txt").read_text()
    assert "winner, fully trained" in table and all(f"  {arm}  " in table for arm in ("op-nas", "ea+ws", "random"))
    rows = [line.split("\t") for line in (tmp_path / "curves.tsv").read_text().splitlines()]
    assert rows[0] == ["arm", "candidates", "mean", "sd"] and len(rows) == 1 + 3 * 6
    assert [row[1:] for row in rows[1:5]] == [row[1:] for row in rows[7:11]]  # op-nas and ea+ws share M_0
    ElementTree.parse(tmp_path / "curves.svg")
    shutil.rmtree(tmp_path / "ea+ws-1")
    (tmp_path / "table.txt").unlink()
    again = command(*line)
    assert again.returncode == 0 and again.stdout.splitlines()[-12:] == first.stdout.splitlines()[-12:], again.stderr
    assert (tmp_path / "table.txt").read_text() == table
    other = command(*line, "--alpha", 1)
    assert other.returncode == 2 and "other settings" in other.stderr and len(other.stderr.splitlines()) == 1


def test_ctrl_c_says_how_to_go_on(toy, tmp_path):
    run = tmp_path / "stopped"
    code, error = interrupted(toy, run, 2, 1, signal.SIGINT)
    assert code == 2 and len(error.splitlines()) == 1 and f"opnas.py resume {run}" in error


@pytest.mark.parametrize("name, spoil, says", [
    ("candidates.tsv", lambda text: b"".join(text.splitlines(True)[:-1]), "is missing though"),
    ("candidates.tsv", lambda text: text[text.index(b"\n") + 1:], "no header"),
    ("candidates.tsv", lambda text: text.replace(b"conv", b"cnv"), "candidates.tsv:"),
    ("candidates.tsv", lambda text: text.replace(b"\t0.", b"\tnan\t", 1), "candidates.tsv:"),
    ("candidates.tsv", lambda text: text + b"\xff\n", "candidates.tsv:"),
    ("supernet.pt", lambda text: text[:1000], "supernet.pt"),
    ("finals.json", lambda text: b"{}[", "finals.json"),
    ("finals.json", lambda text: b"[5]", "finals.json"),
    ("settings.json", lambda text: text[:50], "settings.json"),
    ("settings.json", lambda text: text.replace(b'"seed": 0', b'"seed": 1'), "is missing though"),
    ("tokenizer.model", lambda text: b"no model", "tokenizer.model")])
def test_a_spoilt_run_folder_is_one_clear_error(name, spoil, says, finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    (run / name).write_bytes(spoil((run / name).read_bytes()))
    with pytest.raises(SystemExit) as stop:
        data.run_cli(lambda: opnas.main(["resume", str(run), "--workers", "1", "--device", "cpu"]))
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1 and says in lines[0], lines


def test_two_processes_on_one_run_the_second_refuses(finished):
    with open(finished[0] / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = command("opnas.py", "resume", finished[0], "--workers", 1)
    assert result.returncode == 2 and "another process" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(os, "fsync", full)
    for write in (lambda path: data.write_beside(path, "text"), lambda path: autobert.save_tensors(path, {"x": 1})):
        with pytest.raises(UserError, match="out.x: cannot be written .No space left"):
            write(tmp_path / "out.x")
    assert not list(tmp_path.iterdir())


def test_the_default_is_the_toy_language_at_no_less_than_24_candidates():
    s = opnas.PRESETS["toy"]
    assert s.population + s.rounds * s.parents * s.children >= 24
    paper = opnas.PRESETS["paper"]
    assert (paper.population, paper.parents, paper.children, paper.rounds) == (100, 5, 5, 27)
    assert (paper.steps, paper.batch, paper.lr, paper.warmup, paper.alpha) == (40_000, 160, 2e-4, 0.02, 0.01)


def test_pretraining_can_begin_from_a_super_net(finished, toy, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    supernet.main(["autobert-zero", "--run", str(finished[0]), "--out", "child.pt"])
    child, words = autobert.load_checkpoint("child.pt")
    slots = autobert.load_tensors(finished[0] / "supernet.pt")["slots"]
    assert child.encoder.config.kernel_chain and words.vocab_size == 300
    assert all(torch.equal(p, supernet.window(slots[name], p.shape)) for name, p in child.state_dict().items())
    autobert.main(["pretrain", "--init", "child.pt", "--corpus", str(toy / "held-out.txt"), "--steps", "2",
                   "--batch", "4", "--out", "warm.pt", "--device", "cpu", "--checkpointing", "--fast", "never"])
    warm, _ = autobert.load_checkpoint("warm.pt")
    assert warm.encoder.backbone == child.encoder.backbone and warm.encoder.config.checkpointing
    moved = sum(not torch.equal(a, b) for a, b in zip(warm.state_dict().values(), child.state_dict().values()))
    assert moved > 10
    for arguments, says in ((["--init", "child.pt", "--size", "small"], "4 layers of 64; size small has 12 of 256"),
                            (["--init", "none.pt"], "none.pt")):
        with pytest.raises(UserError, match=says):
            autobert.main(["pretrain", "--corpus", str(toy / "held-out.txt"), "--out", "x.pt", *arguments])


# ---- opnas.py: report ----


def made_up(folder, candidates, **settings):
    """A run's folder with settings and these candidates in its log, as a search that was stopped leaves it."""
    s = opnas.check_settings(replace(opnas.SearchSettings(), population=3, rounds=2, **settings))
    folder.mkdir()
    saved = {"settings": vars(s), "corpus": ["<b>&.txt"], "glue": "toy/glue", "toy": True, "versions": {"torch": "9.9"}}
    (folder / "settings.json").write_text(json.dumps(saved))
    lines = ["\t".join(opnas.COLUMNS), *map(opnas.to_row, candidates)]
    (folder / "candidates.tsv").write_text("\n".join(lines) + "\n")
    return folder


def told(folder, capsys):
    """(page as XML, printed text) of the report on a run."""
    opnas.main(["report", str(folder)])
    text = (folder / "report.html").read_text(encoding="utf-8")
    return ElementTree.fromstring(text), capsys.readouterr().out


FAMILY = [opnas.Candidate(0, 0, None, ("conv 3", "-Q @ T(K) @ V"), 0.2, seconds=2.0),
          opnas.Candidate(None, 0, None, ("conv 5", "conv 5"), reason="collapsed"),
          opnas.Candidate(1, 0, None, ("conv 3", "conv 9"), 0.5, seconds=4.0),
          opnas.Candidate(2, 0, None, ("conv 7", "conv 9"), reason="no learning", seconds=3.0),
          opnas.Candidate(3, 1, 0, ("conv 3", "conv 65"), 0.4, seconds=9.0),
          opnas.Candidate(4, 1, 1, ("conv 3", BERT), 0.3, seconds=1.0),
          opnas.Candidate(None, 2, 4, ("conv 3", "conv 3"), reason="diverged"),
          opnas.Candidate(5, 2, 4, ("conv 31", BERT), 0.6, seconds=5.0)]


def test_the_report_is_one_page_that_needs_nothing_beside_it_and_shows_every_candidate(tmp_path, capsys):
    run = made_up(tmp_path / "run", FAMILY)
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    page, printed = told(run, capsys)
    text = (run / "report.html").read_text(encoding="utf-8")
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.name != "report.html"} == before
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "") and "url(" not in text and "@import" not in text
    assert not [e.tag for e in page.iter() if e.tag.split("}")[-1] in ("script", "link", "img", "iframe", "object")]
    assert not [key for e in page.iter() for key in e.keys() if key.startswith("on") or key.endswith(("href", "src"))]
    dots = [e[0].text for e in page.iter() if e.tag.endswith("circle")]
    assert len(dots) == len(FAMILY) and sum("rejected" in dot for dot in dots) == 3
    assert all(any(dot.startswith(f"cand={i} ") for dot in dots) for i in range(6))
    assert "['<b>&.txt']" in [e.text for e in page.iter("td")] and "9.9" in printed
    assert "24 s of judging in all, median 3.5 s a candidate, at most 9.0 s" in printed  # of 2, 4, 3, 9, 1 and 5


def test_the_reports_tables_hold_the_means_counts_and_chances_by_hand(tmp_path, capsys):
    """Of layer 1: conv 3 has 0.2, 0.5, 0.4, 0.3 and, diverged in round 2 when 0.2 was the worst, 0.2: in all 1.6 / 5.
    The others: conv 5 and 7 were turned away, 0.2; conv 31 has 0.6. With alpha = 0 and tau = 1 p = softmax(mu), and the
    never seen have the mean of all eight, 2.6 / 8."""
    page, printed = told(made_up(tmp_path / "run", FAMILY, alpha=0.0, tau=1.0), capsys)
    titles = [e.get("title") for e in page.iter("td") if e.get("title")]
    mu = {3: 0.32, 5: 0.2, 7: 0.2, 9: 0.325, 15: 0.325, 31: 0.6, 65: 0.325}
    total = sum(map(math.exp, mu.values()))
    for kernel, n in ((3, 5), (5, 1), (7, 1), (31, 1)):
        p = math.exp(mu[kernel]) / total
        assert f"{kernel} at L1: mu = {mu[kernel]:.4f}, N = {n}, p = {p:.4f}" in titles
    assert f"65 at L1: never yet, p = {math.exp(0.325) / total:.4f}" in titles
    p = math.exp(0.45) / (math.exp(0.45) + math.exp(0.2) + 8 * math.exp(1.1 / 3))  # softmax, matmul and the never seen
    assert f"softmax at 4: mu = 0.4500, N = 2, p = {p:.4f}" in titles
    assert "  L1: 31 p=0.19 mu=0.600 N=1, 9 p=0.14 N=0, 15 p=0.14 N=0" in printed
    assert len(titles) == 7 * 2 + 10 * 5  # two layers; the longest path has five ops


def test_the_reports_family_runs_from_a_random_backbone_to_the_best(tmp_path, capsys):
    page, printed = told(made_up(tmp_path / "run", FAMILY), capsys)
    tree = next(e for e in page.iter("ol") if e.get("class") == "tree")
    assert [li[0].text.split()[0] for li in tree] == ["cand=1", "cand=4", "cand=5"]
    assert [li[0][0].text for li in tree] == ["L1 conv 3 L2 conv 9", f"L2 {BERT}", "L1 conv 31"]
    others = [[e.text for e in li.iter("li")][1:] for li in tree]
    assert others == [[], ["round=2 parent=4 rejected: diverged "], []]
    curve = printed.split("-- search curve")[1].split("\n\n")[0]
    assert re.findall(r"cand=(\d)", curve) == ["0", "1", "5"] and "best: candidate 5 of round 2: score 0.600" in printed


@pytest.mark.parametrize("candidates, says", [
    ([], "0 of 11 judged, 0 with a score; 0 rejected"),
    (FAMILY[1:2], "0 of 11 judged, 0 with a score; 1 rejected"),
    (FAMILY[3:4], "1 of 11 judged, 0 with a score; 1 rejected"),
    (FAMILY[:1], "1 of 11 judged, 1 with a score; 0 rejected")])
def test_a_run_that_has_hardly_begun_has_a_report(candidates, says, tmp_path, capsys):
    run = made_up(tmp_path / "run", candidates)
    page, printed = told(run, capsys)
    assert says in printed and "not finished" in printed and ("no candidate has a score yet" in printed) == (
        "0 with" in says)
    (run / "candidates.tsv").unlink()
    assert "0 of 11 judged" in told(run, capsys)[1] and not (run / "candidates.tsv").exists()


def test_a_report_leaves_the_line_that_a_search_is_writing_alone(tmp_path, capsys):
    log = made_up(tmp_path / "run", FAMILY) / "candidates.tsv"
    log.write_text(log.read_text() + "6\t2\t4\t0.7")
    before = log.read_bytes()
    assert "6 of 11 judged" in told(log.parent, capsys)[1] and log.read_bytes() == before


def test_the_report_on_a_finished_run_has_its_table_and_its_parts_if_that_is_missing(finished, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run)
    page, printed = told(run, capsys)
    table = (run / "table.txt").read_text()
    assert table in [e.text for e in page.iter("pre")] and "state: finished" in printed
    (run / "table.txt").unlink()
    (run / "finals.json").write_text(json.dumps(json.loads((run / "finals.json").read_text())[:1]))
    page, printed = told(run, capsys)
    assert "search over; 1 final trainings done" in printed
    assert re.search(r"^  final=best seed=0 mlm=\d\.\d+ CoLA=0\.\d+ STS-B=0\.\d+$", printed, re.M)


@pytest.mark.parametrize("name, content", [("settings.json", "{"), ("candidates.tsv", "x\n"), ("finals.json", "[5]"),
                                           ("best.json", "{}")])
def test_a_report_on_a_broken_run_is_one_clear_error(name, content, tmp_path):
    run = made_up(tmp_path / "run", FAMILY)
    (run / name).write_text(content)
    with pytest.raises(UserError, match=name):
        opnas.report(run)
    assert not (run / "report.html").exists()
    with pytest.raises(UserError, match="no run"):
        opnas.report(tmp_path / "nowhere")


# ---- opnas.py sharing: does weight sharing pay? (Fig. 8) ----

SHARING_FLAGS = "--architectures 2 --collapsed 1 --warm 2,15 --scratch 1,4 --device cpu".split()


def test_steps_to_reach_a_score_go_by_the_running_maximum_over_log_steps():
    curve = [(400, 0.3), (100, 0.1), (200, 0.05), (1600, 0.7)]  # maximum: .1 .1 .3 .7
    assert opnas.steps_to_reach(curve, 0.1) == opnas.steps_to_reach(curve, 0.0) == 100  # at the first count, at most
    assert opnas.steps_to_reach(curve, 0.2) == pytest.approx(200 * 2**0.5)  # half the way from 200 to 400
    assert opnas.steps_to_reach(curve, 0.4) == pytest.approx(400 * 4**0.25)  # a quarter of that from 400 to 1600
    assert opnas.steps_to_reach(curve, 0.7) == pytest.approx(1600) and opnas.steps_to_reach(curve, 0.71) is None


def test_a_quartile_that_rests_on_a_lower_bound_says_so():
    assert opnas.quartiles([(2, ""), (8, ">="), (4, "")]) == ["4.0", "3.0", ">=6.0"]
    assert opnas.quartiles([(8, ">=")]) == [">=8.0"] * 3
    assert opnas.quartiles([(1, "<="), (3, ""), (5, "")]) == ["3.0", "<=2.0", "4.0"]


def measured(kind, number, warm, *scratch):
    """Points of an architecture from (score, learned) after 10 warm steps, and after 10, 40, 160 .. from scratch."""
    ways = [("warm", 10, warm), *(("scratch", 10 * 4**i, found) for i, found in enumerate(scratch))]
    return [opnas.Point(kind, number, start, steps, 4 - score, score, learned, 1.0, ("conv 3",))
            for start, steps, (score, learned) in ways]


def test_architectures_are_told_apart_by_what_they_need_to_learn():
    no, yes = (0.1, False), (0.3, True)
    assert opnas.told_apart(measured("random", 0, no, no, yes)) == "learn from scratch"
    assert opnas.told_apart(measured("random", 0, yes, no, yes)) == "learn from scratch"
    assert opnas.told_apart(measured("random", 0, yes, no, no)) == "learn warm only"
    assert opnas.told_apart(measured("random", 0, no, no, no)) == "never learn"


def test_the_summary_says_what_the_points_say():
    points = [p for args in (
        ("random", 0, (0.2, True), (0.1, False), (0.3, True), (0.4, True)),      # reached at 10 * 4^.5 = 20: twice
        ("random", 1, (0.5, True), (0.2, False), (0.2, False), (0.2, False)),    # never reached: >= 16 times
        ("mutant", 0, (0.3, True), (0.3, False), (0.5, True), (0.6, True)),      # at once: 1 time
        ("mutant", 1, (0.1, False), (0.0, False), (0.1, False), (0.1, False)),   # never learns: not counted
        ("collapsed", 0, (0.2, True), (0.1, False)), ("collapsed", 1, (0.2, True), (0.1, True)))
        for p in measured(*args)]
    lines = opnas.summary(points, 10).splitlines()
    rows = {tuple(line[:18].split()): line[18:].split() for line in lines}
    assert rows["all", "that", "learn"] == ["3", "2.0", "<=1.5", ">=9.0", "1", "1"]
    assert rows["learn", "from", "scratch"] == ["2", "<=1.5", "<=1.2", "<=1.8", "0", "1"]
    assert rows["learn", "warm", "only"] == ["1", ">=16.0", ">=16.0", ">=16.0", "1", "0"]
    assert rows["of", "them", "mutant"][:2] == ["1", "<=1.0"] and rows["never", "learn"] == ["1"]
    table = [line.split() for line in lines]
    assert ["warm", "10", "0.275", "3.725", "3/4", "1.0"] in table
    assert ["scratch", "160", "0.325", "3.675", "2/4", "1.0"] in table
    # warm .2 .5 .3 .1 against full .4 .2 .6 .1: 4 pairs of 6 agree, tau = (4 - 2) / 6; after 40 steps all but a tie do
    below = table[table.index("start steps score tau p MLM tau p".split()):]
    taus = {tuple(cells[:2]): cells[2] for cells in below if len(cells) == 6}
    assert taus == {("warm", "10"): "0.33", ("scratch", "10"): "0.67", ("scratch", "40"): "1.00"}
    assert "By score, 10 steps from scratch rank the architectures at least as well as 10 warm steps do." in lines
    assert lines[-1] == (
        "Probe: it let 4 pass, of which 2 did not learn in 160 steps from scratch; it turned 2 away as collapsed, of "
        "which 1 did learn, and 2 from the super-net.")
    svg = ElementTree.fromstring(opnas.fidelity([p for p in points if p.kind != "collapsed"], 10))
    texts = [e.text for e in svg.iter() if e.tag.endswith("}text")]
    # 2 of 6 pairs more agree than do not: z = 2 / (4 * 3 * 13 / 18)^.5 = .679, two-sided p = .497
    assert texts[0] == "Fidelity: Kendall's tau-b 0.33, p = 0.497, n = 4" and {"random", "mutant"} <= set(texts)
    assert [(e.get("class"), e[0].text) for e in svg.iter() if e.tag.endswith("circle")] == [
        ("s0", "random 0: 0.200, 0.400"), ("s0", "random 1: 0.500, 0.200"),
        ("s1", "mutant 0: 0.300, 0.600"), ("s1", "mutant 1: 0.100, 0.100")]


def test_recorded_points_give_summary_and_pictures_in_any_order_without_training(tmp_path, capsys):
    recorded = HERE / "results/sharing.tsv"
    opnas.main(["sharing", "--points", str(recorded), "--out", str(tmp_path / "there")])
    assert capsys.readouterr().out == (HERE / "results/sharing.txt").read_text()
    head, *rows = recorded.read_text().splitlines(True)
    random.Random(0).shuffle(rows)
    (tmp_path / "points.tsv").write_text(head + "".join(rows))
    opnas.main(["sharing", f"--points={tmp_path}/points.tsv"])
    for name in ("summary.txt", "sharing.svg", "fidelity.svg"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "there" / name).read_bytes()
    assert (tmp_path / "sharing.svg").read_bytes() == (HERE / "results/sharing.svg").read_bytes()
    assert ">Fidelity: Kendall&#x27;s tau-b 0.45, p = 0.040, n = 12<" in (tmp_path / "fidelity.svg").read_text()


@pytest.mark.parametrize("spoil, says", [
    (lambda rows: rows[:-1], "points.tsv: expected each architecture's points"),
    (lambda rows: [row.replace("scratch", "warm") for row in rows], "points.tsv: expected each architecture's points"),
    (lambda rows: [*rows[:5], "random\t5\n", *rows[5:]], "points.tsv:7: not a row"),
    (lambda rows: [rows[0].replace("\t0.3", "\t1.3"), *rows[1:]], "points.tsv:2: not a row"),
    (lambda rows: [rows[0], rows[1].replace("\tyes\t", "\tyes\t-"), *rows[2:]], "points.tsv:3: not a row"),
    (lambda rows: [row.replace("\t50\t", "\t0\t") for row in rows], "points.tsv:10: not a row"),
    (lambda rows: [rows[0].replace("conv", "cnv"), *rows[1:]], "points.tsv:2: not a row")])
def test_recorded_points_that_are_broken_are_one_clear_error(spoil, says, tmp_path):
    head, *rows = (HERE / "results/sharing.tsv").read_text().splitlines(True)
    rows = [row for row in rows if not row.startswith("collapsed")]
    (tmp_path / "points.tsv").write_text(head + "".join(spoil(rows)))
    with pytest.raises(UserError, match=says):
        opnas.main(["sharing", "--points", str(tmp_path / "points.tsv")])
    assert [path.name for path in tmp_path.iterdir()] == ["points.tsv"]


@pytest.fixture(scope="session")
def shared(finished, tmp_path_factory):
    """A copy of the small search, in which `sharing` has run with two workers; what it printed."""
    run = tmp_path_factory.mktemp("runs") / "shared"
    shutil.copytree(finished[0], run)
    result = command("opnas.py", "sharing", run, *SHARING_FLAGS, "--workers", 2)
    assert result.returncode == 0, result.stderr
    return run, result.stdout


def points_of(folder):
    """The rows of points.tsv without the seconds."""
    lines = (folder / "points.tsv").read_text().splitlines()
    assert lines[0].split("\t") == list(opnas.Point._fields)
    return [opnas.row_of(opnas.Point, line)._replace(seconds=0.0) for line in lines[1:]]


def test_sharing_trains_new_architectures_warm_and_from_scratch(finished, shared):
    run, printed = shared
    points = points_of(run / "sharing")
    ways = [("scratch", 4), ("scratch", 1), ("warm", 15), ("warm", 2)]
    assert [p[:4] for p in points] == [
        *(("random", 0, *way) for way in ways), *(("mutant", 0, *way) for way in ways),
        ("collapsed", 0, "scratch", 4), ("collapsed", 0, "warm", 15)]
    backbones = list(dict.fromkeys(p.backbone for p in points))
    known, bench = opnas.read_log(run / "candidates.tsv"), opnas.Bench(run)
    assert len(backbones) == 3 and not set(backbones) & set(known)
    assert [bench.probe(backbone) for backbone in backbones] == [None, None, "collapsed"]
    best = max((c for c in known.values() if c.score is not None), key=lambda c: (c.score, -c.number))
    assert sum(a != b for a, b in zip(backbones[1], best.backbone)) in (1, 2)  # one inter- and one intra-layer mutation
    assert (run / "sharing/summary.txt").read_text() in printed
    ElementTree.parse(run / "sharing/sharing.svg")
    for name in ("supernet.pt", "candidates.tsv"):
        assert (run / name).read_bytes() == (finished[0] / name).read_bytes()


def test_a_warm_point_is_what_the_search_would_find_next(shared):
    run, _ = shared
    point = next(p for p in points_of(run / "sharing") if p[:4] == ("mutant", 0, "warm", 15))
    offset = autobert.load_tensors(run / "supernet.pt")["offset"]
    judged = opnas.Bench(run).judge(opnas.Candidate(99, 9, None, point.backbone), 15, offset)
    assert (point.mlm, point.score) == (judged.mlm, judged.score) and offset > 0
    bench = opnas.Bench(run)
    mlm = {start: bench.point(point.backbone, start, 15, 0)[0] for start in ("warm", "scratch")}
    assert mlm["warm"] == point.mlm != mlm["scratch"]


def sharing_fails(capsys, *arguments):
    """The one line on stderr of `opnas.py sharing`."""
    with pytest.raises(SystemExit) as stop:
        data.run_cli(lambda: opnas.main(["sharing", *map(str, arguments), "--workers", "1"]))
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(lines) == 1, lines
    return lines[0]


def test_interrupted_sharing_goes_on_to_the_same_points(shared, tmp_path):
    run, _ = shared
    rows = (run / "sharing/points.tsv").read_text().splitlines(True)
    points = tmp_path / "points.tsv"
    points.write_text("".join(rows[:8]) + rows[8][:20])  # as by a crash in the middle of a write
    opnas.main(["sharing", str(run), *SHARING_FLAGS, "--workers", "1", "--out", str(tmp_path)])
    assert points.read_text().startswith("".join(rows[:8]))  # with their seconds: not trained again
    assert points_of(tmp_path) == points_of(run / "sharing")
    opnas.main(["sharing", str(run), *SHARING_FLAGS, "--architectures", "3", "--workers", "1", "--out", str(tmp_path)])
    assert points.read_text().startswith("".join(rows[:8]))  # and more architectures are added to those there
    assert [p[:2] for p in points_of(tmp_path)[10:]] == [("random", 1)] * 4


def test_points_of_other_flags_are_not_mixed(shared, tmp_path, capsys):
    run, _ = shared
    before = (run / "sharing/points.tsv").read_bytes()
    for other in (["--seed", 1], ["--scratch", "1,3"]):
        assert "points.tsv:2: not a row (not a point of this run" in sharing_fails(capsys, run, *SHARING_FLAGS, *other)
    assert (run / "sharing/points.tsv").read_bytes() == before
    (tmp_path / "points.tsv").write_bytes(before.replace(b"\tscratch\t", b"\t", 1))
    assert "points.tsv:2: " in sharing_fails(capsys, run, *SHARING_FLAGS, "--out", tmp_path)


def test_sharing_without_a_finished_search_is_one_clear_error(finished, tmp_path, capsys):
    assert "no run" in sharing_fails(capsys, tmp_path / "none")
    for name in ("best.json", "supernet.pt", "candidates.tsv"):
        run = tmp_path / name
        shutil.copytree(finished[0], run)
        (run / name).unlink()
        says = "no candidate with a score" if name == "candidates.tsv" else f"opnas.py resume {run}"
        assert says in sharing_fails(capsys, run, *SHARING_FLAGS)
        assert not (run / "sharing").exists()
    for flags in (["--warm", "25,x"], ["--scratch", "0"], ["--scratch", ""], ["--architectures", "1"]):
        assert flags[0] in sharing_fails(capsys, finished[0], *flags)


# ---- opnas.py ablations: what matters in a backbone? (Table 5) ----

ABLATION_FLAGS = "--backbones bert,conv-only,best --seeds 2 --device cpu".split()


@pytest.fixture(scope="session")
def ablated(finished, tmp_path_factory):
    """(folder, output) of `ablations` on the small search, called by another program's main, by two workers."""
    folder = tmp_path_factory.mktemp("ablated")
    (folder / "other.py").write_text("import sys\n\nif __name__ == '__main__':\n"
                                     f"    sys.path.insert(0, {str(HERE)!r})\n    import opnas\n"
                                     "    opnas.main(['ablations', *sys.argv[1:]])\n")
    line = [sys.executable, "other.py", str(finished[0]), *ABLATION_FLAGS, "--workers", "2", "--out", "out"]
    result = subprocess.run(line, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return folder / "out", result.stdout


def trainings(folder):
    """The rows of ablations' points.tsv without the seconds."""
    head, *lines = (folder / "points.tsv").read_text().splitlines()
    assert head.split("\t") == list(opnas.Training._fields)
    return [opnas.row_of(opnas.Training, line)._replace(seconds=0.0) for line in lines]


def test_ablations_are_the_final_training_of_a_search_over_more_seeds(finished, ablated):
    (run, _), (out, printed) = finished, ablated
    rows = trainings(out)
    names = ["bert", "conv-only", "best"]
    assert [r[:4] for r in rows] == [(name, seed, 15, "CoLA,STS-B") for seed in (0, 1) for name in names]
    finals = {r["name"]: r for r in json.loads((run / "finals.json").read_text())}
    for r in (rows[0], rows[2]):
        assert (r.mlm, list(zip(("CoLA", "STS-B"), r.scores))) == (
            finals[r.name]["mlm"], [tuple(pair) for pair in finals[r.name]["tasks"]])
        assert list(r.backbone) == finals[r.name]["backbone"]
    assert rows[0].mlm != rows[3].mlm and rows[1].backbone == autobert.load_backbone("conv-only", 4)
    assert (out / "summary.txt").read_text() in printed
    assert len(list(ElementTree.parse(out / "ablations.svg").iter("{http://www.w3.org/2000/svg}circle"))) == 3 * (2 + 1)
    assert not list(out.glob("*.pt")) and not (run / "ablations").exists()


def test_stopped_ablations_go_on_to_the_same_rows_with_any_number_of_workers(finished, ablated, tmp_path, capsys):
    rows = (ablated[0] / "points.tsv").read_text().splitlines(True)
    (tmp_path / "points.tsv").write_text("".join(rows[:4]) + rows[4][:20])  # as by a crash in the middle of a write
    line = ["ablations", str(finished[0]), *ABLATION_FLAGS, "--workers", "1", "--out", str(tmp_path)]
    opnas.main(line)
    assert "-- 6 points, 3 of them in " in capsys.readouterr().out
    assert (tmp_path / "points.tsv").read_text().startswith("".join(rows[:4]))  # not trained again
    assert trainings(tmp_path) == trainings(ablated[0])
    assert (tmp_path / "summary.txt").read_text() == (ablated[0] / "summary.txt").read_text()
    before = (tmp_path / "points.tsv").read_bytes()
    for other, row in ((["--steps", "9"], 2), (["--backbones", "bert,conv-only"], 4), (["--seeds", "1"], 5)):
        with pytest.raises(UserError, match=f"points.tsv:{row}: not a row .not a point of this run and these flags"):
            opnas.main([*line, *other])
    for old, new, row in (("conv 65", "conv 3", 3), ("CoLA,STS-B", "CoLA,RTE", 2), ("\t0.", "\tnan", 2)):
        (tmp_path / "points.tsv").write_text(before.decode().replace(old, new))
        with pytest.raises(UserError, match=f"points.tsv:{row}: not a row"):
            opnas.main(line)


def test_the_evidence_table_by_hand():
    """good is above bert by .1, .12, .14: mean 12, half 4.303 * 2 / 3^.5 = 4.97; odd by .3, -.3 and 0; bad diverges."""
    conv, rows = ("conv 3",) * 4, []
    for name, averages in (("bert", (0.5, 0.6, 0.7)), ("good", (0.6, 0.72, 0.84)), ("odd", (0.8, 0.3, 0.7)),
                           ("bad", (0.0, 0.0, 0.0))):
        rows += [opnas.Training(name, seed, 5, "CoLA,RTE", None if name == "bad" else 2 - average,
                                (average - 0.1 * (name != "bad"), average + 0.1 * (name != "bad")), 1.0, conv)
                 for seed, average in enumerate(averages, 7)]
    backbones = dict.fromkeys(("bert", "good", "odd", "bad"), conv)
    text = opnas.evidence(autobert.SIZES["toy"], 40, backbones, rows, "bert")
    blocks = {block.split(" (")[0]: {line.split()[0]: line.split()[1:] for line in block.splitlines()[1:]}
              for block in text.split("\n\n")}
    assert list(blocks)[:4] == ["average", "CoLA", "RTE", "held-out MLM loss"]
    assert blocks["average"]["bert"] == ["60.00", "8.16"]
    assert blocks["average"]["good"][:7] == ["72.00", "9.80", "+12.00", "+-", "4.97", "100", "%"]
    assert blocks["CoLA"]["bert"][0] == "50.00" and blocks["RTE"]["good"][0] == "82.00"
    assert blocks["held-out MLM loss"]["good"][:5] == ["1.28", "0.10", "-0.12", "+-", "0.05"]
    assert blocks["held-out MLM loss"]["bad"] == ["nan", "nan"]
    cost = autobert.count_flops(autobert.SIZES["toy"], conv, 40)["total"]
    assert text.count(f"{cost:.2e}\n") == 4
    assert text.splitlines()[-1] == (
        "By the average score, each 95 % interval taken for itself: better than bert: good; worse: bad; "
        "cannot be told from bert (seeds: 3): odd.")
    alone = opnas.evidence(autobert.SIZES["toy"], 40, backbones, [r for r in rows if r.seed == 7], "bert")
    assert alone.endswith("better than bert: none; worse: none; cannot be told from bert (seeds: 1): good, odd, bad.")
    svg = ElementTree.fromstring(opnas.spread(backbones, rows))
    dots = [(e.get("class"), e[0].text) for e in svg.iter() if e.tag.endswith("circle")]
    assert dots[4:8] == [("s1", "good, seed 7: 0.600"), ("s1", "good, seed 8: 0.720"), ("s1", "good, seed 9: 0.840"),
                         ("off", "good: mean 0.720 +- 0.298")]  # half: 4.303 * .12 / 3^.5
    assert sum(e.get("class", "").startswith("line s") for e in svg.iter()) == 4 * 2  # in the legend, and an interval


# ---- Bad input: one line, exit 2, nothing half-written ----


# Every command that takes an input, with a slot for each thing that a user hands it; GOOD fills the slots, and in one
# of them at a time stands something of BAD
COMMANDS = """
opnas.py --corpus {text} --glue {glue} --tasks RTE --vocab 40 --out {new} --workers 1 --device cpu
opnas.py compare --corpus {text} --glue {glue} --tasks RTE --vocab 40 --out {place} --workers 1 --device cpu --seeds 1
opnas.py resume {run} --workers 1 --device cpu
opnas.py report {run}
opnas.py sharing {run} --out {place} --workers 1 --device cpu
autobert.py pretrain --corpus {text} --backbone {backbone} --vocab 40 --steps 1 --out {file} --device cpu
autobert.py pretrain --corpus good/text.txt --init {checkpoint} --out good/new.pt --device cpu
autobert.py pretrain --resume {resumable} --device cpu
autobert.py summary --size toy --backbone {backbone}
autobert.py export --checkpoint {checkpoint} --out {new}
autobert.py export --backbone {backbone} --out good/new
autobert.py draw --backbone {backbone} --out {file}
autobert.py draw --records {records} --out good/new.svg
autobert.py bench --backbone {backbone} --size mini --what infer --n 8 --batch 1 --turns 1 --out {file} --device cpu
glue.py finetune --checkpoint {checkpoint} --glue {glue} --task RTE --n 16 --out {file}
glue.py finetune --checkpoint good/pre.pt --glue good/glue --task RTE --n 16 --save {place} --cache {place}
glue.py finetune --checkpoint good/pre.pt --glue good/glue --task RTE --n 16 --mnli {tuned}
glue.py grid --checkpoint {checkpoint} --glue {glue} --task RTE --n 16 --out {cells}
glue.py predict --checkpoint {tuned} --glue {unlabelled} --out {place} --cache {place} --device cpu
glue.py baseline --glue {glue} --task RTE --out {file}
glue.py squad --checkpoint {checkpoint} --train {squad} --dev {squad} --n 16 --out {file} --save good/new.y --device cpu
glue.py squad --checkpoint {squad_model} --n 16 --dev good/squad.json --predictions {file} --nbest good/new.y
glue.py squad --check --tokenizer {tokenizer} --dev {squad} --n 16 --out {file}
glue.py pays --steps 1 --out {place}
data.py toy {empty}
data.py show --corpus {text} --vocab 40
data.py prepare --corpus {text} --out {new} --vocab 40 --workers 1
data.py prepare --corpus good/text.txt --out good/new --tokenizer {tokenizer} --workers 1
supernet.py {backbone} bert --size toy
supernet.py bert --run {net} --out {new}
ops.py {formula}
""".strip().splitlines()
GOOD = {"text": "good/text.txt", "glue": "good/glue", "unlabelled": "good/glue", "new": "good/new", "place": "good/new",
        "file": "good/new.x", "cells": "good/new.x", "empty": "good/new", "run": "good/run", "net": "good/run",
        "backbone": "bert", "checkpoint": "good/pre.pt", "resumable": "good/pre.pt", "tuned": "good/RTE.pt",
        "squad_model": "good/pre.pt", "records": "good/records.tsv", "squad": "good/squad.json",
        "tokenizer": "good/t.model", "formula": BERT}
FILE = ["none", "folder", "empty.txt", "junk.bin", "latin.txt"]  # what may stand for any file, in the folder bad
BELOW = "latin.txt/below"  # a place that cannot be
CHECKPOINT = [*FILE, "cut.pt", "flipped.pt", "code.pt", "code.pickle", "list.pt", "other.pt", "nan.pt", "sizes.pt"]
ROWS = ["none", "latin.txt", *(f"glue-{fault}" for fault in ("missing", "header", "row", "rows", "empty", "latin"))]
BAD = {"text": [*FILE, "one.txt", "cut.txt.gz", "cut.txt.xz", "not.xz"], "glue": [*ROWS, "glue-label", "glue-long"],
       "unlabelled": ROWS, "new": ["folder", BELOW], "place": ["latin.txt", BELOW], "file": ["folder", BELOW],
       "cells": ["folder", "latin.txt", "one.txt", "cells.tsv", BELOW], "empty": ["../bad", "latin.txt", BELOW],
       "run": ["none", "latin.txt", "folder", "run-empty", "run-junk", "run-shape"],
       "net": ["none", "latin.txt", "folder", "net-junk", "net-code", "net-shape", "net-settings"],
       "backbone": [*FILE, "list.json", "shape.json", "short.json", "kernel.json", "parse.json", "illegal.json"],
       "checkpoint": CHECKPOINT, "resumable": [*CHECKPOINT, "../good/pre.pt"],
       "tuned": [*CHECKPOINT, "../good/pre.pt"], "squad_model": [*CHECKPOINT, "squad.pt", "../good/pre.pt"],
       "records": [*FILE, "one.txt", "header.tsv"],
       "squad": [*FILE, "shape.json", "list.json", "cut.json.xz", "start.json", "zero.json", "v2.json"],
       "tokenizer": [*FILE, "cut.model"], "formula": ["Q@K(", "", "Q", "a = Q", "while Q: K", "Q+" * 3000, "9" * 5000]}
CASES = [(line, i, bad) for line in COMMANDS for i, slot in enumerate(re.findall(r"{(\w+)}", line)) for bad in BAD[slot]
         if not (line.startswith("autobert.py draw") and bad == "short.json")]  # a picture takes any number of layers


class Code:
    """What torch.save would have run at loading."""
    def __reduce__(self):
        return os.system, ("touch executed",)


def write_good(folder, toy):
    """The files of GOOD."""
    documents = (toy / "held-out.txt").read_text().split("\n\n")[:20]
    (folder / "text.txt").write_text("\n\n".join(documents) + "\n")
    words = data.Tokenizer.train([folder / "text.txt"], 100)
    words.save(folder / "t.model")
    for path in (toy / "glue/RTE").iterdir():
        write_rows(folder / "glue/RTE" / path.name, *path.read_text().splitlines()[1:9],
                   header=path.read_text().splitlines()[0])
    model = autobert.Pretraining(replace(TINY, vocab=words.vocab_size), ("conv 3", BERT))
    autobert.save_checkpoint(folder / "pre.pt", model, words)
    autobert.save_checkpoint(folder / "RTE.pt", glue.Finetuned(model.encoder, 2, False), words, task="RTE", n=16,
                             dev={"score": 0.5}, key="0")
    glue.save_squad(folder / "squad.pt", model, glue.Finetuned(model.encoder, 2, True), words,
                    glue.FinetuneSettings(n=16, stride=4, max_question=4), "v1.1")
    for version in ("1.1", "2.0"):
        content = json.loads((toy / f"squad/dev-v{version}.json").read_text())
        content["data"] = content["data"][:2]
        (folder / f"squad-{version}.json").write_text(json.dumps(content))
    os.rename(folder / "squad-1.1.json", folder / "squad.json")
    rows = [(i, 0.001, 9.1, 6.3, 0.7, 0.5, 6.2, 0.5, 1234, 1.5) for i in range(1, 5)]
    (folder / "records.tsv").write_text("".join("\t".join(map(str, row)) + "\n" for row in (autobert.COLUMNS, *rows)))
    run = made_up(folder / "run", FAMILY)
    words.save(run / "tokenizer.model")
    net = supernet.SuperNet(replace(autobert.SIZES["toy"], vocab=words.vocab_size))
    autobert.save_tensors(run / "supernet.pt", {"slots": net.slots, "generation": 1, "offset": 5, "warm": True})


def write_bad(folder, good):
    """The files of BAD."""
    (folder / "folder").mkdir()
    texts = {"empty.txt": b"", "junk.bin": bytes(range(256)) * 4, "latin.txt": b"One.\n\ncaf\xe9.\n", "not.xz": b"One.",
             "one.txt": b"One two three four.\nFive six seven eight nine ten.\n", "shape.json": b'{"layers": 3}',
             "list.json": b"[1]", "zero.json": b'{"data": []}', "header.tsv": "\t".join(autobert.COLUMNS).encode(),
             "start.json": squad_json(("7", [("hens", 3)])).encode(), "code.pickle": pickle.dumps(Code()),
             "cells.tsv": ("\t".join(glue.CELL) + "\n0\tRTE\t1\t1\t0\t1\t[5]\n").encode(),
             "v2.json": (good / "squad-2.0.json").read_bytes(), "cut.model": (good / "t.model").read_bytes()[:500],
             "cut.txt.gz": gzip.compress((good / "text.txt").read_bytes())[:-20],
             "cut.txt.xz": lzma.compress((good / "text.txt").read_bytes())[:-20],
             "cut.json.xz": lzma.compress((good / "squad.json").read_bytes())[:-20],
             "cut.pt": (good / "pre.pt").read_bytes()[:-1000]}
    for name, first in (("short", []), ("kernel", ["conv 4"]), ("parse", ["softmax(Q"]), ("illegal", ["Q @ K"])):
        texts[f"{name}.json"] = json.dumps({"backbone": [*first, BERT, "conv 3", BERT]}).encode()
    for name, content in texts.items():
        (folder / name).write_bytes(content)
    content = autobert.load_tensors(good / "pre.pt")
    broken = {"code": {"run": Code()}, "list": [content], "other": {"config": {}}, "nan": content | {
        "state": {name: x * math.nan for name, x in content["state"].items()}}, "sizes": content | {
        "config": content["config"] | {"embedding": 10**9}}}
    for name, wrong in broken.items():
        torch.save(wrong, folder / f"{name}.pt")
    tuned = autobert.load_tensors(good / "squad.pt")
    tuned["squad"]["settings"]["stride"] = 0
    torch.save(tuned, folder / "squad.pt")
    whole = bytearray((good / "pre.pt").read_bytes())
    whole[whole.index(content["state"]["encoder.norm.weight"].numpy().tobytes())] ^= 1
    (folder / "flipped.pt").write_bytes(whole)
    write_bad_folders(folder, good)


def write_bad_folders(folder, good):
    """Tasks and runs, each with one fault."""
    header, row = "index\tsentence1\tsentence2\tlabel", "0\tA hen.\tA bird.\tentailment"
    faults = {"header": (header.replace("2", "3"), row), "row": (header, "0\tA hen."), "rows": (header,), "empty": (),
              "latin": (header, row.replace("hen", "h\xe9n")), "label": (header, row + "s"),
              "long": (header, row + "s" * 9**5)}
    for name, lines in faults.items():
        shutil.copytree(good / "glue", folder / f"glue-{name}")
        for split in ("dev", "test"):
            cut = [line.rpartition("\t")[0] if split == "test" and line.count("\t") > 2 else line for line in lines]
            (folder / f"glue-{name}/RTE/{split}.tsv").write_bytes("".join(x + "\n" for x in cut).encode("latin-1"))
    (folder / "glue-missing").mkdir()
    for name, content in (("empty", ""), ("junk", "\0"), ("shape", '{"settings": {"n": "4"}, "corpus": [1]}')):
        (folder / f"run-{name}").mkdir()
        (folder / f"run-{name}/settings.json").write_text(content)
    for name in ("junk", "code", "shape", "settings"):
        shutil.copytree(good / "run", folder / f"net-{name}")
    (folder / "net-junk/supernet.pt").write_bytes(b"PK")
    torch.save({"slots": Code()}, folder / "net-code/supernet.pt")
    torch.save({"slots": [1]}, folder / "net-shape/supernet.pt")
    (folder / "net-settings/settings.json").write_text("[]")


@pytest.fixture(scope="module")
def good_and_bad(toy, tmp_path_factory):
    """A folder with the files of GOOD and those of BAD."""
    folder = tmp_path_factory.mktemp("input")
    for name in ("good", "bad"):
        (folder / name).mkdir()
    with autobert.seeded(0):
        write_good(folder / "good", toy)
    write_bad(folder / "bad", folder / "good")
    return folder


def everything(folder):
    """All that is in a folder."""
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def failing(arguments, capsys):
    """The error on stderr of a command line that a user got wrong: one line, behind lines of progress if any."""
    script, *rest = arguments
    with pytest.raises(SystemExit) as stop:
        if script == "ops.py":
            sys.exit(ops.main(rest))
        data.run_cli(lambda: SCRIPTS[script.removesuffix(".py")].main(rest))
    *progress, line = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and line.startswith("error: ") and 20 < len(line) < 1010, line
    assert all(re.match(r"\w+=", told) for told in progress), progress
    return line


class NearEncoder:
    """An end of a pipe of data.encoders, without the other process."""
    def send(self, what):
        self.tokenizer, self.lines = (data.Tokenizer(what), None) if isinstance(what, bytes) else (self.tokenizer, what)

    def recv(self):
        return data.encode_lines(self.lines, self.tokenizer)


@pytest.mark.parametrize("line, slot, bad", CASES, ids=[
    f"{line.split(' --')[0]} {slot} {bad[:20]}" for line, slot, bad in CASES])
def test_every_command_with_every_bad_input(line, slot, bad, good_and_bad, capsys, monkeypatch):
    monkeypatch.chdir(good_and_bad)
    monkeypatch.setattr(data, "encoders", lambda count: contextlib.nullcontext([NearEncoder()]))
    monkeypatch.setattr(autobert, "matmul_peak", lambda *_: 1e9)
    slots = iter(enumerate(re.findall(r"{(\w+)}", line)))
    kind = re.findall(r"{(\w+)}", line)[slot]
    value = bad if kind == "formula" else os.path.join("bad", bad)
    fill = lambda match: shlex.quote(value if next(slots)[0] == slot else GOOD[match[1]])  # noqa: E731
    before = everything(good_and_bad)
    said = failing(shlex.split(re.sub(r"{(\w+)}", fill, line)), capsys)
    assert ("formula" if kind == "formula" else "latin.txt" if bad == BELOW else os.path.basename(bad)) in said
    assert everything(good_and_bad) == before


def parser_of(script, *arguments):
    """The parser that a script reads these arguments with, and those of its commands, by name."""
    class Parsed(Exception):
        pass

    def parse(self, *_):
        raise Parsed(self)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Parsed) as found:
        patch.setattr(ops.argparse.ArgumentParser, "parse_args", parse)
        SCRIPTS[script].main(list(arguments))
    parser, = found.value.args
    return parser, next((a.choices for a in parser._actions if type(a) is ops.argparse._SubParsersAction), {})


def parsers():
    """Yield ((script, command), its parser), the command "" for what a script takes without one."""
    for script in SCRIPTS:
        parser, commands = parser_of(script)
        more = {name: parser_of(script, name)[0] for name in opnas.COMMANDS} if script == "opnas" else {}
        yield from (((script, name), one) for name, one in {"": parser, **commands, **more}.items())


PARSERS = dict(parsers())


def wrong_flags(parser):
    """Flags of a parser with values that are none of a choice, no number, or out of range."""
    searching = "--strategy" in parser._option_string_actions
    for action in parser._actions:
        flag = (action.option_strings or [""])[-1]
        of = opnas.SearchSettings.__dataclass_fields__.get(flag[2:].replace("-", "_")) if searching else None
        if flag and (action.choices or of and of.metadata["choices"]):
            yield flag, "nothing"
        elif flag and action.type not in (None, str):
            for value in ("x", "nan", "-1"):
                try:
                    action.type(value)
                except (ops.argparse.ArgumentTypeError, ValueError):
                    yield flag, value
                else:
                    if of and of.metadata["least"] > float(value):
                        yield flag, value


@pytest.mark.parametrize("script, command", PARSERS, ids=[" ".join(key) for key in PARSERS])
def test_every_flag_of_every_command_says_what_it_takes(script, command, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    begin, parser = [f"{script}.py", *([command] if command else [])], PARSERS[script, command]
    assert re.search("--nonsense|required", failing([*begin, "--nonsense"], capsys))
    for flag, value in wrong_flags(parser):
        line = failing([*begin, f"{flag}={value}"], capsys)
        assert flag in line and (value in line or "compare sets it" in line), line
    assert not os.listdir()


# ---- Bad input: what is left when a file is mutated ----

MUTATIONS = int(os.environ.get("MUTATIONS", 100))  # of each file; more of them find more, in more time
JUNK = [b"\t", b"\n", b"\r", b"\0", b"\xff", b'"', b"-", b"[", b"{", b"}", b",", b"null", b"NaN", b"1e999", b"=",
        b"\\ud800", "\u2028".encode(), "\u00b2".encode(), b"9" * 30, b"9" * 5000, b"[" * 3000, b"-1", b"(", b"@"]
ODD = [None, 0, -1, 2**70, 10**400, 1e300, math.nan, math.inf, "x", "", "\ud800", "a\0b", [], {}, [1], {"a": 1},
       True, 0.5]
TENSORS = [torch.zeros(3), torch.tensor(math.nan), torch.zeros(2, dtype=torch.complex64), torch.zeros(3).byte()]


def mutated(content, rng):
    """Bytes with one or a few edits: a bit, a byte, junk, a stretch taken out or doubled, the end cut off."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, how = rng.randrange(len(content) + 1), rng.randrange(20)
        end = at + rng.choice((1, 2, 10, 100, 1000))
        if how < 6 and at < len(content):
            content[at] = content[at] ^ 1 << rng.randrange(8) if how < 3 else rng.randrange(256)
        elif how < 9:
            del content[at:end]
        elif how < 17:
            content[at:end if how < 12 else at] = rng.choice(JUNK)
        elif how < 19:
            content[at:at] = content[at:end] * rng.choice((1, 3))
        else:
            del content[at:]
    return bytes(content)


def altered(tree, rng, odd):
    """A nest of dicts and lists with one or two values that are others, are missing, or lie deeper."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 2))):
        node, key = {"": tree}, ""
        while isinstance(node[key], (dict, list)) and node[key] and rng.random() < 0.9:
            node = node[key]
            key = rng.choice(list(node) if isinstance(node, dict) else range(len(node)))
        how = rng.random()
        if node.__class__ is dict and "" in node:
            return copy.deepcopy(rng.choice(odd))
        if how < 0.15:
            del node[key]
        else:
            node[key] = [node[key]] if how < 0.25 else copy.deepcopy(rng.choice(odd))
    return tree


def task_of(path):
    rows = glue.read_task(path.parent.parent, path.parent.name, path.stem.split("_")[0])
    return glue.label_array(rows, path.parent.name)


def squad_of(path):
    questions = glue.read_squad(path)
    glue.random_span_scores(questions)
    glue.gold_check(questions, data.Tokenizer.load(path.with_name("t.model")), glue.FinetuneSettings(n=24, stride=8))


def corpus_of_file(path):
    words = data.Tokenizer.load(path.with_name("t.model"))
    for part in data.split_held_out(data.open_corpus([path], words)):
        data.PretrainingData(part, 20, 4, words.vocab_size, 0).batch(1)


def cache_of(path):
    corpus, words = data.open_cache(path.parent)
    data.PretrainingData(corpus, 20, 4, words.vocab_size, 0).batch(1)


def words_of(path):
    words = data.Tokenizer.load(path)
    words.encode_with_offsets("The hens [MASK] \u2028 \ufb01ne \u732b.")


def records_of(path):
    autobert.chart("a", "b", "c", {"x": autobert.curve(autobert.read_records(path), "held_mlm")})


def run_of(path):
    findings = opnas.Findings(path.parent)
    opnas.tell(findings), opnas.page(findings).encode(errors="backslashreplace")


def finetuned_of(path):
    model, words, more = glue.load_finetuned(path)
    rows = glue.encode_task([("A hen.", "A bird." if len(glue.TASKS[more["task"]].columns) > 1 else None, None)],
                            more["task"], words, more["n"]).rows
    glue.predict(model, glue.TASKS[more["task"]], rows, glue.FinetuneSettings(), "cpu")


def squad_model_of(path):
    _, words, head = glue.load_squad(path, "cpu")
    if head:
        tuned, settings, _ = head
        questions = [glue.Question("1", "Who?", "The hens feed.", [("hens", 4)], False)]
        glue.judge_squad(questions, glue.answer_squad(tuned, questions, words, settings, "cpu"))


def resumed_of(path):
    autobert.prepare(autobert.argparse.Namespace(resume=str(path), device="cpu", compile=False), 1)


def grid_of(path):
    for run, result in glue.read_cells(path).items():
        json.dumps([*run, 100 * result["score"]])


READERS = {  # file in the folder `prey` -> what reads it, and works a little with what it has read
    **{f"glue/{task}/dev{'_matched' * (task == 'MNLI')}.tsv": task_of for task in glue.TASKS},
    "glue/QQP/train.tsv": task_of, "glue/RTE/test.tsv": task_of, "squad.json": squad_of, "squad-2.0.json": squad_of,
    "text.txt": corpus_of_file, "text.txt.gz": corpus_of_file, "text.txt.xz": corpus_of_file, "t.model": words_of,
    **{f"cache/{name}": cache_of for name in sorted(data.CACHE_FILES)}, "b.json": autobert.load_backbone,
    "records.tsv": records_of, "grid.tsv": grid_of, "run/settings.json": run_of, "run/candidates.tsv": run_of,
    "run/finals.json": run_of, "run/best.json": run_of, "pre.pt": autobert.load_checkpoint, "RTE.pt": finetuned_of,
    "squad.pt": squad_model_of, "stopped.pt": resumed_of}


@pytest.fixture(scope="module")
def prey(toy, good_and_bad, tmp_path_factory):
    """A folder with the files of READERS."""
    folder = tmp_path_factory.mktemp("prey") / "prey"
    shutil.copytree(good_and_bad / "good", folder)
    for path in (toy / "glue").rglob("*.tsv"):
        (folder / path.relative_to(toy)).parent.mkdir(exist_ok=True)
        (folder / path.relative_to(toy)).write_text("".join(path.read_text().splitlines(True)[:9]))
    text = (folder / "text.txt").read_bytes()
    for name, pack in (("gz", gzip.compress), ("xz", lzma.compress)):
        (folder / f"text.txt.{name}").write_bytes(pack(text))
    (folder / "cache").mkdir()
    shutil.copy(folder / "text.txt", folder / "source.txt")  # the cache is stale when it changes
    words = data.Tokenizer.load(folder / "t.model")
    data.write_cache(folder / "cache", words, [data.source_of(str(folder / "source.txt"))], data.indexed(
        [data.encode_lines(list(data.read_sentences(folder / "text.txt")), words)]))
    autobert.save_backbone(folder / "b.json", autobert.BACKBONES["autobert-zero"])
    autobert.save_backbone(folder / "run/best.json", ["conv 3", BERT])
    (folder / "run/finals.json").write_text(json.dumps([{"name": "best", "seed": 0, "backbone": ["conv 3", BERT],
                                                         "mlm": 1.5, "tasks": [["CoLA", 0.5]]}]))
    (folder / "grid.tsv").write_text("\t".join(glue.CELL) + "\n" + "".join(
        f"abc\t{task}\t1e-05\t0.1\t0\t0.5\t" + '{"f1": 0.25, "score": 0.5}\n' for task in glue.TASKS))
    model, words = autobert.load_checkpoint(folder / "pre.pt")
    s = autobert.PretrainSettings(steps=4, batch=2, n=20)
    corpus = data.split_held_out(data.open_corpus([folder / "text.txt"], words))[0]
    optimizer = autobert.make_optimizer(model, s.lr, s.weight_decay)
    batches = data.PretrainingData(corpus, s.n, s.batch, words.vocab_size, 0)
    autobert.pretrain(model, batches, replace(s, steps=1), torch.device("cpu"), due=lambda _: False,
                      optimizer=optimizer)
    options = vars(s) | {"corpus": [str(folder / "text.txt")], "tokens": len(corpus.tokens), "size": "toy", "name": "x",
                         "steps_per_epoch": batches.steps_per_epoch, "order": autobert.zlib.crc32(corpus.sentences),
                         "eval_every": 2, "save_every": 2}
    autobert.save_checkpoint(folder / "stopped.pt", model, words, run=options, training={
        "step": 1, "seconds": 1.0, "optimizer": optimizer.state_dict()})
    return folder


class Late(BaseException):
    """No Exception, which some reader may expect."""


def late(*_):
    raise Late


def read_or_refused(read, *arguments):
    """Whether a reader takes what it is given; else it must have raised UserError, without a warning, in 20 seconds."""
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 20)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(*arguments)
        return True
    except (UserError, autobert.Diverged) as error:
        assert str(error).strip()
        return False
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("name", READERS)
def test_a_mutated_file_is_read_or_refused_in_one_line(name, prey):
    path, read, rng = prey / name, READERS[name], random.Random(name)
    whole, there = path.read_bytes(), set(prey.rglob("*"))
    tree = autobert.load_tensors(path) if name.endswith(".pt") else json.loads(whole) if name.endswith("json") else None
    assert read_or_refused(read, path)
    try:
        for _ in range(MUTATIONS // (4 if name.endswith(".pt") else 1)):  # checkpoints take longer
            if tree is None or rng.random() < 0.5:
                path.write_bytes(mutated(whole, rng))
            elif name.endswith("json"):
                path.write_text(json.dumps(altered(tree, rng, ODD)))
            else:
                key = rng.choice([key for key in tree if key != "tokenizer"])
                torch.save(altered(tree, rng, ODD + TENSORS) if rng.random() < 0.1 else
                           tree | {key: altered(tree[key], rng, ODD + TENSORS)}, path)
            read_or_refused(read, path)
            assert set(prey.rglob("*")) == there
    finally:
        path.write_bytes(whole)


def test_a_mutated_formula_is_read_or_refused_in_one_line():
    def read(text):
        try:
            dag = ops.parse(text)
        except ValueError as error:
            raise UserError(str(error)) from None
        return ops.formula(dag), ops.why_illegal(dag) or ops.describe(text)
    rng, texts = random.Random(0), [*ops.ATTENTIONS.values(), "a = scale(cos(Q, -(K + P))); cos(a, dist(T(Q), a))"]
    done = [read_or_refused(read, mutated(rng.choice(texts).encode(), rng).decode(errors=rng.choice(
        ("replace", "surrogateescape")))) for _ in range(10 * MUTATIONS)]
    assert 0 < sum(done) < len(done)


@pytest.mark.parametrize("arguments, says", [
    ("opnas.py --tasks CoLA,WNLI", "'WNLI'"),
    ("opnas.py --device tpu9", "'tpu9'"),
    ("opnas.py --population 0", "--population 0: expected an integer from 1"),
    ("autobert.py pretrain --corpus {toy}/held-out.txt --batch 0", "--batch: '0'"),
    ("autobert.py pretrain --corpus {toy}/held-out.txt --out {here}/no/m.pt", "not there"),
    ("autobert.py pretrain --corpus {toy}/held-out.txt --batch 10 --accumulate 4", "4 does not divide --batch 10"),
    ("autobert.py pretrain --corpus {toy}/held-out.txt --batch 4 --accumulate 8", "8 does not divide --batch 4"),
    ("autobert.py pretrain --corpus {toy}/held-out.txt --accumulate 0", "--accumulate: '0'"),
    ("autobert.py pretrain --corpus {toy}/held-out.txt --device cuda:77", "'cuda:77'"),
    ("autobert.py pretrain --corpus {toy}/held-out.txt --out {here}/model.tsv", "records"),
    ("autobert.py pretrain --steps 3", "--corpus --resume is required"),
    ("autobert.py pretrain --resume m.pt --corpus {toy}/held-out.txt", "not allowed with"),
    ("autobert.py pretrain --resume m.pt --size toy --save-every 3 --device cpu", "--save-every, --size cannot be"),
    ("glue.py pays --steps 0", "--steps: '0'"),
    ("opnas.py --n 9999", "--n 9999"),
    ("opnas.py --vocab 99999", "99999"),
    ("opnas.py compare --strategy ea+ws", "--strategy: compare sets it"),
    ("opnas.py reprot", "'reprot': no such command; expected one of resume, report"),
    ("opnas.py --alpha 1e300", "--alpha 1e+300: expected a number from 0 to 1000000"),
    ("opnas.py --rows 1 --select train", "at least 2 rows"),
    ("opnas.py compare --landscapes --out {here}/broken", "holds other results"),
    ("opnas.py --strategy greedy", "'greedy': expected one of op-nas, ea+ws"),
    ("opnas.py compare --arms op-nas,greedy", "'greedy': expected each once, of op-nas"),
    ("opnas.py compare --arms op-nas,op-nas", "'op-nas': expected each once"),
    ("opnas.py compare --landscapes --base random --arms op-nas,ea+ws", "--base 'random'"),
    ("opnas.py compare --seeds 0", "--seeds: '0'"),
    ("opnas.py compare --out {here}/one.txt --landscapes", "one.txt"),
    ("opnas.py compare --corpus {toy}/held-out.txt --workers 1", "--glue"),
    ("opnas.py report", "run"),
    ("opnas.py sharing {here} --warm 5,x", "--warm"),
    ("opnas.py sharing", "expected either RUN"),
    ("opnas.py sharing {here}/run --points {here}/one.txt", "expected either RUN"),
    ("opnas.py sharing --points {here}/one.txt", "one.txt:1: not a row (no header)"),
    ("opnas.py sharing --points {here}/none.tsv --out {here}/new", "none.tsv: expected each architecture's points"),
    ("opnas.py ablations {here}/nowhere", "no run"),
    ("opnas.py ablations {here}/run --seeds 0", "--seeds: '0'"),
    ("opnas.py ablations {here}/run --steps 0", "--steps: '0'"),
    ("opnas.py ablations {here}/run --backbones bert,nobody", "'nobody': neither a file nor one of bert"),
    ("opnas.py ablations {here}/run --backbones bert,bert", "'bert': expected each once"),
    ("opnas.py ablations {here}/run --backbones bert,best", "run/best.json: not there yet; leave out 'best'"),
    ("opnas.py ablations {here}/run --backbones bert,{here}/short.json", "short.json: 2 layers; this size has 4"),
    ("opnas.py ablations {here}/run --backbones att-only,conv-only", "--base 'bert': expected one of the backbones"),
    ("opnas.py ablations {here}/run --out {here}/one.txt", "one.txt'"),
    ("opnas.py --workers 0", "--workers: '0'"),
    ("opnas.py --out {here}", "exists"),
    ("opnas.py --out {here}/new/..", "exists"),
    ("opnas.py --tasks RTE,RTE", "twice"),
    ("opnas.py --beta2 1", "--beta2 1.0: expected a number from 0 to 0.999999"),
    ("opnas.py --seed 99999999999999999999", "--seed"),
    ("opnas.py --collapse 2", "--collapse 2.0: expected a number from 0 to 1"),
    ("opnas.py --device meta", "'meta'"),
    ("opnas.py --corpus {toy}/held-out.txt --glue {toy}/glue --vocab 3", "vocabulary of 3"),
    ("autobert.py pretrain --corpus {toy}/held-out.txt --n 129", "128 positions"),
    ("opnas.py --out {here} --overwrite", "exists"),
    ("opnas.py --corpus {toy}/held-out.txt", "--glue"),
    ("autobert.py summary --backbone {here}/foreign.json", "expected a list of genes"),
    ("autobert.py summary --backbone {here}/short.json", "2 layers; this size has 12"),
    ("autobert.py summary --backbone {here}/kernel.json --size toy", "layer 2: 'conv 4'; kernels are 3, 5"),
    ("autobert.py summary --backbone {here}/broken.json --size toy", "layer 1: formula 'softmax(Q' does not parse"),
    ("autobert.py summary --backbone {here}/illegal.json --size toy", "is illegal: step 1: matmul does not take"),
    ("autobert.py export --out {here}/no/where", "not there"),
    ("autobert.py analyse", "analysis"),
    ("autobert.py analyse uniformity --checkpoint {here}/none.pt", "none.pt': no such file"),
    ("autobert.py analyse uniformity --checkpoint {here}/one.txt", "one.txt"),
    ("autobert.py analyse uniformity --checkpoint a.pt --backbone bert --size toy", "--backbone, --size cannot"),
    ("autobert.py analyse uniformity --corpus {here}/none.txt", "none.txt"),
    ("autobert.py analyse uniformity --corpus {toy}/held-out.txt --n 129", "--n 129: bert has 128 positions"),
    ("autobert.py analyse uniformity --corpus {toy}/held-out.txt --backbone bert nobody", "'nobody'"),
    ("autobert.py analyse uniformity --rows 0", "--rows: '0'"),
    ("autobert.py analyse uniformity --out {here}/one.txt", "one.txt': a file"),
    ("autobert.py analyse cost --out {here}/one.txt", "one.txt': a file"),
    ("autobert.py analyse cost --size toy --n 129", "--n 129: size toy has 128 positions"),
    ("autobert.py analyse cost --size toy --backbone bert {here}/short.json", "2 layers"),
    ("autobert.py analyse cost --precision fp16", "'fp16'"),
    ("autobert.py analyse cost --device tpu9", "'tpu9'"),
    ("ops.py --space 3", "--space 3"),
    ("autobert.py pretrain --corpus {toy}/held-out.txt --out {here}/one.txt", "exists"),
    ("autobert.py", "command"),
    ("data.py prepare --out {here}/c", "--corpus"),
    ("data.py prepare --corpus {toy}/held-out.txt --out {here}/c", "vocabulary of 30000"),
    ("data.py prepare --corpus {toy}/held-out.txt --out {here}/c --tokenizer x --vocab 9", "not allowed with"),
    ("glue.py finetune --checkpoint {here}/none.pt --glue {toy}/glue --eval-every -1", "--eval-every: '-1'"),
    ("glue.py finetune --checkpoint {here}/none.pt --glue {toy}/glue --task RTE --mnli auto", "--task all"),
    ("glue.py grid --checkpoint {here}/none.pt --glue {toy}/glue --out {here}/one.txt", "one.txt:1, expected"),
    ("glue.py squad --dev {toy}/squad/dev-v1.1.json", "--checkpoint: expected"),
    ("glue.py squad --check --tokenizer {here}/one.txt --dev {toy}/squad/dev-v2.0.json", "expected a v1.1 file"),
    ("glue.py squad --checkpoint x --tokenizer x --dev {toy}/squad/dev-v1.1.json", "--tokenizer x: only with")])
def test_bad_input_is_one_line_and_exit_code_2(arguments, says, toy, tmp_path, capsys, monkeypatch):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken/settings.json").write_text('{"settings": {"n": "4"}, "corpus": [], "glue": "x", "toy": true}')
    (tmp_path / "run").mkdir()
    (tmp_path / "run/settings.json").write_text('{"settings": {}, "corpus": [], "glue": "x", "toy": true}')
    (tmp_path / "one.txt").write_text("One two three four.\nFive six seven eight nine ten.\n")
    (tmp_path / "foreign.json").write_text('{"layers": 3}')
    for name, first in (("short", []), ("kernel", ["conv 3", "conv 4"]), ("broken", ["softmax(Q", BERT]),
                        ("illegal", ["Q @ K", BERT])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"backbone": [*first, BERT, "conv 3"]}))
    before = sorted(p.name for p in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert says in failing(shlex.split(arguments.format(here=tmp_path, toy=toy)), capsys)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.name != "runs") == before


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_teaches_by_help(script):
    result = command(f"{script}.py", "--help")
    assert result.returncode == 0 and "usage" in result.stdout and not result.stderr


def test_analyses_of_a_run_are_handed_to_opnas():
    for analysis, other in autobert.ABOVE.items():
        result = command("autobert.py", "analyse", analysis, "--help")
        assert result.returncode == 0 and result.stdout == command("opnas.py", other, "--help").stdout
    result = command("autobert.py", "analyse", "kendall", "nowhere")
    assert result.returncode == 2 and re.fullmatch("error: .*nowhere': no run.*\n", result.stderr)


# ---- README ----

README, RESULTS = ((HERE / folder / "README.md").read_text(encoding="utf-8") for folder in ("", "results"))


def test_the_two_commands_are_what_ci_runs():
    setup = "python3 -m venv .venv && .venv/bin/pip install -q -r requirements.txt && .venv/bin/python "
    assert f"\n{setup}opnas.py\n" in README
    assert f"\n{setup}-m pytest -q test_all.py\n" in README
    assert f"\n{setup}-m pytest -q test_all.py\n" in (HERE / ".ci/run").read_text()


def test_every_command_in_readme_parses(monkeypatch):
    class Parsed(Exception):
        pass
    original = ops.argparse.ArgumentParser.parse_args

    def parse(self, argv=None, namespace=None):
        original(self, argv, namespace)
        raise Parsed
    monkeypatch.setattr(ops.argparse.ArgumentParser, "parse_args", parse)
    commands = re.findall(r"(?:^|`)(?:python|torchrun .*--) (\w+)\.py([^`\n]*)", README + RESULTS, re.M)
    assert len(commands) >= 70
    for script, arguments in commands:
        analysis = re.match(r" analyse (ablations|kendall)\b", arguments)
        if analysis:  # opnas.py takes over
            script, arguments = "opnas", autobert.ABOVE[analysis[1]] + arguments[analysis.end():]
        if "--help" not in arguments and "resume" not in arguments:
            with pytest.raises(Parsed):
                SCRIPTS[script].main(shlex.split(arguments))


def test_readmes_quick_start_runs(finished, toy, tmp_path, monkeypatch, capsys):
    """Its first command is `finished`, at less than toy size; here are those behind it, on that run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished[0], "runs/001")
    shutil.copytree(toy, "runs/001/toy")
    quick = README[README.index("## Quick start"):README.index("**On a GPU**")]
    commands = re.findall(r"^python (\w+)\.py (.*)$", quick, re.M)
    assert len(commands) >= 5
    for script, arguments in commands:
        SCRIPTS[script].main(shlex.split(arguments) + ["--epochs", "1"] * ("finetune" in arguments))
    assert {"runs", "best.svg", "export"} <= set(os.listdir()) and Path("runs/001/report.html").exists()
    assert "SST-2" in capsys.readouterr().out


def test_readme_has_its_parts_in_order():
    parts = re.findall(r"^## (.*)$", README, re.M)
    assert parts == ["Status", "Install", "Quick start", "Read the code in this order", "Paper → code",
                     "Choices and deviations", "Results", "Commands, columns and files", "Porting guide", "Limits",
                     "Citation", "Licence"]


def test_every_name_in_readme_exists():
    names = set(re.findall(rf"`({'|'.join(SCRIPTS)})\.(\w+)`", README))
    assert len(names) >= 40
    for module, name in names - {(module, ending) for module in SCRIPTS for ending in ("py", "pt")}:
        assert hasattr(SCRIPTS[module], name), f"{module}.{name}"


def test_readme_collects_every_choice_and_deviation():
    for script in SCRIPTS:
        text = (HERE / f"{script}.py").read_text(encoding="utf-8")
        for tag in ("CHOICE", "DEVIATION"):
            listed = re.findall(rf"^- `{script}\.py` {tag}: ", README, re.M)
            assert len(listed) == len(re.findall(rf"\b{tag}: ", text)), f"{script}.py, {tag}"


def test_readmes_table_of_sizes_is_what_summary_prints(capsys):
    autobert.main(["summary"])
    assert capsys.readouterr().out.rstrip() in RESULTS


def test_readmes_figures_are_the_recorded_ones():
    for name in ("space.txt", "search-toy.txt", "search-real.txt"):
        lines = (HERE / "results" / name).read_text().splitlines()
        figures = r"(M .*e\+\d\d  (best|bert|autobert-zero)|about .* \+-|of \d+,\d+ draws)"
        tables = [line for line in lines if re.search(figures, line)]
        assert tables and all(line in README + RESULTS for line in tables), name
    blocks = re.findall(r"```\n(.*?)```", RESULTS, re.S)
    for name, mark in (("compare-landscapes.txt", "  literal "), ("compare-toy.txt", "  random+ws "),
                       ("compare-parts.txt", "  no-probe "), ("sharing.txt", "start   steps"),
                       ("bench.txt", "training step, base"), ("ablations.txt", "average (x 100)"),
                       ("cost.txt", "memory of training")):
        recorded = (HERE / "results" / name).read_text().splitlines()
        block = next(block for block in blocks if mark in block)
        assert all(line in recorded for line in block.splitlines()), name
    header, *rows = [re.split(r"  +", line) for line in next(b for b in blocks if b.startswith("task")).splitlines()]
    assert len(rows) == 10
    for column, name in list(enumerate(header))[3:]:
        kept = {line.split("\t")[0]: line.split("\t") for line in
                (HERE / f"results/glue-{name}.tsv").read_text().splitlines()}
        for row in rows:
            assert [row[column], row[2]] == [kept[row[0]][3], kept[row[0]][7]], (row[0], name)
    scored = re.findall(r"^(\S+) +(v[12]\.\d) +([\d.]+) +([\d.]+)$", RESULTS, re.M)
    assert len(scored) == 4
    for model, version, exact, f1 in scored:
        line, = [line for line in (HERE / f"results/squad-{version}-{model}.tsv").read_text().splitlines()
                 if line.startswith("tau 0")]
        assert line.split("\t")[2:4] == [exact, f1], (model, version)
    kept = [line.split("\t") for line in (HERE / "results/uniformity.tsv").read_text().splitlines()]
    layers = re.findall(r"^(bert|autobert-zero) +(\d) +(\d\.\d+) +(\d\.\d+)$", RESULTS, re.M)
    assert len(layers) == 10
    for name, layer, residual, cosine in layers:
        row, = [row for row in kept if row[:2] == [name, layer]]
        assert (f"{float(row[2]):.3f}", f"{float(row[4]):.3f}") == (residual, cosine), (name, layer)
    ends = re.findall(r"^(\S+) +held-out mlm=(\S+) nsp=\S+ nsp_accuracy=(\S+)$", RESULTS, re.M)
    assert len(ends) == 2
    for name, loss, accuracy in ends:
        last = autobert.read_records(HERE / f"results/pretrain-{name}.tsv")[-1]
        assert last["step"] == "20000"
        assert (f"{float(last['held_mlm']):.4f}", f"{float(last['held_nsp_accuracy']):.4f}") == (loss, accuracy)
    recorded = (HERE / "results/pays.tsv").read_text().splitlines()
    for line in recorded[1:]:
        name, *figures = line.split("\t")
        assert re.search(rf"^{re.escape(name)}\s+" + r"\s+".join(map(re.escape, figures)) + "$", RESULTS, re.M), name
