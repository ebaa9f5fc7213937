"""Text in, arrays out: tokenizer, corpus, BERT's sentence pairs and masks; the command line of all scripts.

The paper (Sec. 4.1) pre-trains as BERT does: masked language modelling (MLM) and next-sentence prediction (NSP).
A corpus is text with one sentence per line and a blank line between documents.

    text files -> prepare -> Corpus -> make_pairs (NSP) -> pack, collate -> mask_tokens (MLM) -> a batch

    D documents, S sentences, T tokens of a corpus; B rows of a batch, n tokens a row, P places for masked tokens
    python data.py show      # two training pairs, from raw text to arrays
    python data.py prepare --text wiki.txt.xz books.txt --out corpus --vocab 30000

Read after ops.py; nothing here needs torch.
"""
import argparse
import array
import bisect
import dataclasses
import gzip
import inspect
import io
import itertools
import json
import lzma
import os
import random
import re
import sys
import tempfile
import typing
from pathlib import Path

import numpy as np
import sentencepiece

# ---- Command lines and files, for all scripts ----
class UserError(Exception):
    """What a user can get wrong, in one line: the value, its place, what was expected."""

def flag(default, text, **how):
    """A field of a settings dataclass with its flag's help; how: more for argparse."""
    return dataclasses.field(default=default, metadata={"help": text, **how})

def add_flag(parser, name, kind, default, help="", **how):
    """One flag. kind bool: present or not; tuple[kind, ...]: one or more words; a tuple of str: one of these."""
    if several := typing.get_origin(kind) is tuple:
        how, kind = {"nargs": "+", **how}, typing.get_args(kind)[0]
    if isinstance(kind, tuple):
        how, kind = {"choices": kind}, str
    how = {"action": "store_true"} if kind is bool else {"type": kind, **how}
    if default:
        help += f" (default: {' '.join(map(str, default)) if several else default})"
    parser.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, help=help, **how)

def call(function, argv, prog):
    """Call a function with flags from argv: each parameter is one, its help a line `name: help` of the docstring. Of a
    parameter whose type is a dataclass each field is one, and those given arrive as a dict."""
    def fail(message):
        raise UserError(f"{message}; see {prog} --help")

    text, settings = inspect.getdoc(function), {}
    helps = dict(re.findall(r"^(\w+): (.+)$", text, re.M))
    parser = argparse.ArgumentParser(prog=prog, description=re.sub(r"\n(\w+): .+", "", text), allow_abbrev=False)
    parser.error = fail
    for name, p in inspect.signature(function).parameters.items():
        if dataclasses.is_dataclass(p.annotation):
            settings[name] = [f for f in dataclasses.fields(p.annotation) if f.metadata]
            for f in settings[name]:
                add_flag(parser, f.name, f.type, f.default, **f.metadata)
        else:
            add_flag(parser, name, p.annotation, p.default, helps.get(name, ""))
    given = vars(parser.parse_args(argv))
    for name, fields in settings.items():
        given[name] = {f.name: given.pop(f.name) for f in fields if f.name in given}
    return function(**given)

def run(doc, *functions, usual=None):
    """The command line of a script: `script.py COMMAND --flags`, or the function `usual` where no command is named.
    A user's mistake ends in one line on stderr and exit code 2."""
    commands, (script, *argv) = {f.__name__: f for f in functions}, sys.argv
    try:
        if argv and argv[0] in commands:
            return call(commands[argv[0]], argv[1:], f"{script} {argv[0]}")
        if usual:
            return call(usual, argv, script)
        if not argv or argv[0] in ("-h", "--help"):
            return print(doc.strip(), "\n\ncommands, each with --help:", *commands)
        raise UserError(f"{argv[0]!r}: no command; expected one of {', '.join(commands)}")
    except BrokenPipeError:  # `| head` has seen enough
        os._exit(0)
    except KeyboardInterrupt:
        message = "interrupted; the same command again goes on"
    except (UserError, OSError) as error:
        message = f"{error.filename}: {error.strerror}" if getattr(error, "filename", None) else error
    except (MemoryError, RuntimeError) as error:
        if "memory" not in repr(error).lower():  # torch's is a RuntimeError
            raise
        message = "out of memory; try a smaller batch or model, or fewer workers"
    print("error:", message, file=sys.stderr)
    sys.exit(2)

def check_same(stored, given, out):
    """UserError, naming what differs, unless two dicts of settings agree."""
    if differ := [key for key in given if stored.get(key) != given[key]]:
        what = ", ".join(f"{key} {stored.get(key)}, not {given[key]}" for key in differ[:3])
        raise UserError(f"--out {out}: a run with other settings ({what}); name another")

def span(seconds):
    """A time in words. Example: 192 -> "3m12s" """
    return "%dm%02ds" % divmod(round(seconds), 60)

def write_beside(path, content):
    """Write str, or what content(file) writes, to a neighbour and rename it: whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(neighbour, "wb") as file:
        content(file) if callable(content) else file.write(content.encode())
    os.replace(neighbour, path)

# ---- Reading text ----
def read_lines(path):
    """Yield (line number, text) of a UTF-8 file, plain, .gz or .xz."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(Path(path).suffix, open)
    with opener(path, "rb") as file:
        for number, line in enumerate(file, 1):  # subtle: bytes break at \n only, never at U+2028
            try:
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise UserError(f"{path}:{number}: not UTF-8") from None

def read_documents(paths):
    """Yield documents, each a list of sentences (str); a blank line or the end of a file ends one."""
    for path in paths:
        document = []
        for _, line in itertools.chain(read_lines(path), [(0, "")]):
            if line.strip():
                document.append(line.strip())
            elif document:
                yield document
                document = []

# ---- Tokenizer ----
PAD, UNK, CLS, SEP, MASK = range(5)  # the first pieces: <pad>, <unk>, [CLS], [SEP], [MASK]
FIRST_WORD = 5  # every id from here on is an ordinary piece
IGNORED = -100  # a target without loss, as in torch

class Tokenizer:
    """Text <-> ids by a sentencepiece model, whose bytes are proto.

    DEVIATION: the paper takes BERT's WordPiece vocabulary; sentencepiece learns one from any corpus in one call.
    CHOICE: BPE, which comes closest to WordPiece; case-folded, as BERT-base."""
    def __init__(self, proto):
        self.proto, self.model = proto, sentencepiece.SentencePieceProcessor(model_proto=proto)
        self.space, self.vocab_size = self.model.piece_to_id("▁"), self.model.get_piece_size()

    @classmethod
    def train(cls, paths, vocab, seed=0):
        """Learn `vocab` pieces from text files; UserError if the text does not allow so many, or so few."""
        sentencepiece.set_random_generator_seed(seed)  # it samples a very large corpus
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=itertools.chain.from_iterable(read_documents(paths)), model_writer=model,
                vocab_size=vocab, model_type="bpe", normalization_rule_name="nmt_nfkc_cf", num_threads=1, minloglevel=2,
                max_sentence_length=1 << 24, input_sentence_size=1_000_000, shuffle_input_sentence=True, pad_id=PAD,
                unk_id=UNK, bos_id=-1, eos_id=-1, control_symbols=["[CLS]", "[SEP]", "[MASK]"])  # of no text's pieces
        except (RuntimeError, OSError) as error:
            list(read_documents(paths))  # if a file is wrong, says so; sentencepiece buries it
            raise UserError(f"--vocab {vocab}: {str(error).split('] ')[-1].split(' Increase')[0].strip()}") from None
        return cls(model.getvalue())

    def encode(self, text):
        """The ids of a text, without [CLS] and [SEP]."""
        return self.model.encode(text)

    def encode_with_offsets(self, text):
        """(ids, spans) of a text: text[start:end] of a span is what its piece covers, without blanks at its ends.
        A character that becomes several pieces (the ligature fi) is the span of each that begins in it. A "▁" alone
        is empty."""
        mapping, spans = self.model.encode(text, return_type="offset_mapping"), []
        blank = {c for c in set(text) if c.isspace() or not self.model.normalize(c)}  # also zero-width ones
        for i, (start, end) in zip(mapping["ids"], mapping["offsets"]):  # characters of the text, not as normalised
            while start < end and text[start] in blank:
                start += 1
            while start < end and text[end - 1] in blank:
                end -= 1
            inside = i != self.space or (spans and spans[-1][1] > start)
            if start == end < len(text) and inside:  # sentencepiece gives the character to its last piece
                end += 1
            spans.append((start, end))
        return mapping["ids"], spans

    def pieces(self, ids):
        """The pieces of ids. Example: [2, 31, 57] -> ['[CLS]', '▁the', '▁hen']"""
        return [self.model.id_to_piece(int(i)) for i in ids]

# ---- A corpus, encoded once and mapped into memory ----
def prepare(text: tuple[str, ...] = ("toy/corpus.txt",), out: str = "corpus", vocab: int = 650, seed: int = 0):
    """Learn a tokenizer from text files, encode them, write the folder OUT that training reads.

    text: files, also .gz or .xz: one sentence per line, a blank line between documents
    out: a new folder
    vocab: pieces of the tokenizer
    seed: of the tokenizer"""
    about = {"text": [os.path.abspath(path) for path in text], "vocab": vocab, "seed": seed}
    folder = Path(out)
    if (folder / "settings.json").exists():
        return check_same(json.loads((folder / "settings.json").read_text()), about, out)
    words = Tokenizer.train(text, vocab, seed)
    folder.mkdir(parents=True, exist_ok=True)
    sentences, documents = array.array("q", [0]), array.array("q", [0])  # where each begins, and the last's end
    with open(folder / "tokens", "wb") as file:
        for document in read_documents(text):
            for row in filter(None, words.model.encode(document, num_threads=-1)):
                file.write(np.array(row, np.int32))
                sentences.append(sentences[-1] + len(row))
            if len(sentences) - 1 > documents[-1]:
                documents.append(len(sentences) - 1)
    for name, starts in (("sentences", sentences), ("documents", documents)):
        write_beside(folder / name, starts.tofile)
    if len(documents) < 5:
        raise UserError(f"{' '.join(text)}: {len(documents) - 1} documents; expected 4 or more, with a "
                        "blank line between them")
    write_beside(folder / "tokenizer.model", lambda file: file.write(words.proto))
    write_beside(folder / "settings.json", json.dumps(about, indent=1) + "\n")
    print(f"{out}: {len(documents) - 1:,} documents, {len(sentences) - 1:,} sentences, {sentences[-1]:,} tokens")

class Corpus:
    """What `prepare` wrote, its tokens mapped into memory. len() is the number of documents.
    tokens (T,) int32. sentences (S + 1,): sentence i is tokens[sentences[i]:sentences[i + 1]].
    documents (D + 1,): document i has the sentences documents[i] to documents[i + 1] - 1."""
    def __init__(self, folder):
        self.folder = folder = Path(folder)
        if not (folder / "settings.json").exists():
            raise UserError(f"{folder}: not a corpus; expected a folder that `data.py prepare` wrote")
        self.tokenizer = Tokenizer((folder / "tokenizer.model").read_bytes())
        self.tokens, self.sentences, self.documents = (
            np.asarray(np.memmap(folder / name, kind, "r"))
            for name, kind in (("tokens", np.int32), ("sentences", np.int64), ("documents", np.int64)))

    def __len__(self):
        return len(self.documents) - 1

    def text(self, first, last):
        """The tokens of the sentences first .. last - 1."""
        return self.tokens[self.sentences[first]:self.sentences[last]]

def open_corpus(path, beside, vocab, seed=0):
    """The Corpus in a folder of `prepare`; a text file is first prepared as `beside`."""
    if Path(path).is_dir():
        return Corpus(path)
    prepare((path,), str(beside), vocab, seed=seed)
    return Corpus(beside)

def split_held_out(corpus):
    """(training, held-out) documents, by their numbers: two or more are held out, at even distances."""
    total = len(corpus)
    count = max(2, round(0.05 * total))
    held = (2 * np.arange(count) + 1) * total // (2 * count)
    return np.setdiff1d(np.arange(total), held), held

# ---- Packing rows (BERT, Sec. 3) ----
def pack(a, b, n, rng=None):
    """(ids, segments) of [CLS] a [SEP] (b None) or [CLS] a [SEP] b [SEP], at most n tokens.
    The longer side, b if they are equal, loses one token after the other: at its end, or with rng (np.random.Generator)
    at front or end by a coin. Example: ([7, 8], [9], 6) -> ([2, 7, 8, 3, 9, 3], [0, 0, 0, 0, 1, 1])"""
    room = n - (2 if b is None else 3)
    size_a = min(len(a), room if b is None else max(room - len(b), (room + 1) // 2))
    size_b = 0 if b is None else min(len(b), room - size_a)

    def cut(x, size):
        lost = len(x) - size
        front = rng.binomial(lost, 0.5) if rng and lost else 0
        return x[front:front + size]

    second = () if b is None else (cut(b, size_b), [SEP])
    ids = np.concatenate([[CLS], cut(a, size_a), [SEP], *second]).astype(np.int64)
    return ids, (np.arange(len(ids)) >= size_a + 2).astype(np.int64)

def collate(rows, n=None):
    """Pad (ids, segments) rows to n tokens or to the longest: "ids", "segments" int64 (B, n), "mask" bool (B, n), True
    at real tokens."""
    shape = len(rows), n or max(len(ids) for ids, _ in rows)
    ids, segments, mask = np.full(shape, PAD), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for i, (row, parts) in enumerate(rows):
        ids[i, :len(row)], segments[i, :len(row)], mask[i, :len(row)] = row, parts, True
    return {"ids": ids, "segments": segments, "mask": mask}

# ---- Sentence pairs for NSP (BERT, A.2) ----
def make_pairs(corpus, documents, n, rng):
    """One pass over documents (their numbers): an array (pairs, 5) of a, a_end, b, b_end (sentences) and label.
    Label 0: b follows a. Label 1: b comes from another document; the sentences that it replaced are put back.
    rng: random.Random."""
    pairs, sentences = [], corpus.sentences

    def run(first, last, target):  # the end of the shortest run of sentences with `target` tokens, but at most last
        return bisect.bisect_left(sentences, sentences[first] + target, first + 1, last)

    for place, document in enumerate(documents):
        i, last = corpus.documents[document:document + 2].tolist()
        while i < last:
            # CHOICE: a length per pair, now and then a short one; BERT draws one per document
            target = rng.randint(2, n - 3) if rng.random() < 0.1 else n - 3
            end = run(i, last, target)
            split = i + 1 if end - i < 2 else rng.randrange(i + 1, end)
            label = split == end or rng.random() < 0.5
            b, b_end = split, end
            if label:
                other = documents[(place + rng.randrange(1, len(documents))) % len(documents)]
                b = rng.randrange(*corpus.documents[other:other + 2].tolist())
                b_end = run(b, int(corpus.documents[other + 1]), target - (sentences[split] - sentences[i]))
            pairs.append((i, split, b, b_end, label))
            i = split if label else end
    return np.array(pairs)

# ---- Masking for MLM (BERT, Sec. 3.1) ----
def mask_tokens(ids, vocab, rng, max_pred):
    """(ids, positions, targets) of rows (B, n): a masked copy, P = max_pred columns and what stood there, or IGNORED.
    15 % of a row's tokens are chosen, at least one and at most P, never [CLS], [SEP] or [PAD]; of these 80 % become
    [MASK], 10 % a random ordinary token, 10 % stay. rng: np.random.Generator."""
    masked, real, free = ids.copy(), ids != PAD, (ids != PAD) & (ids != CLS) & (ids != SEP)
    count = np.clip(np.rint(0.15 * real.sum(1)), 1, max_pred)[:, None]  # (B, 1)
    order = np.where(free, rng.random(ids.shape, np.float32), 2.0)  # random, the free ones first
    positions = np.argsort(order, 1)[:, :max_pred]  # (B, P)
    old = np.take_along_axis(ids, positions, 1)
    chosen = (np.arange(positions.shape[1]) < count) & np.take_along_axis(free, positions, 1)
    coin = rng.random(old.shape)  # subtle: one draw decides, not two coins in a row
    new = np.where(coin < 0.8, MASK, np.where(coin < 0.9, rng.integers(FIRST_WORD, vocab, old.shape), old))
    np.put_along_axis(masked, positions, np.where(chosen, new, old), 1)
    return masked, positions, np.where(chosen, old, IGNORED)

class PretrainingData:
    """Batches for MLM + NSP; batch(step) depends on (seed, step) alone, so a stopped run can go on.
    Every epoch draws its pairs anew. CHOICE: an epoch has as many steps as the first one's pairs fill."""
    def __init__(self, corpus, documents, n, batch, seed):
        self.corpus, self.documents, self.n, self.size, self.seed = corpus, documents, n, batch, seed
        self.max_pred, self.epoch = round(0.15 * n) + 1, None
        self.steps_per_epoch = max(1, len(self.pairs_of(0)) // batch)

    def pairs_of(self, epoch):
        """The shuffled pairs of an epoch."""
        if epoch != self.epoch:
            rng = random.Random(f"{self.seed} {epoch}")
            pairs = make_pairs(self.corpus, self.documents, self.n, rng)
            self.epoch, self.pairs = epoch, pairs[rng.sample(range(len(pairs)), len(pairs))]
        return self.pairs

    def batch(self, step):
        """{"ids", "segments" (B, n) int64, "mask" (B, n) bool, "positions", "targets" (B, P), "next" (B,): labels}."""
        epoch, k = divmod(step, self.steps_per_epoch)
        pairs, rng, text = self.pairs_of(epoch), np.random.default_rng([self.seed, step]), self.corpus.text
        rows = pairs[np.arange(k * self.size, (k + 1) * self.size) % len(pairs)]
        batch = collate([pack(text(a, a_end), text(b, b_end), self.n, rng) for a, a_end, b, b_end, _ in rows], self.n)
        ids, positions, targets = mask_tokens(batch["ids"], self.corpus.tokenizer.vocab_size, rng, self.max_pred)
        return batch | {"ids": ids, "positions": positions, "targets": targets, "next": rows[:, 4]}

# ---- To look at ----
def show(corpus: str = "toy/corpus.txt", n: int = 24):
    """Follow two training pairs from raw text to arrays.

    corpus: the file
    n: tokens of a pair"""
    with tempfile.TemporaryDirectory() as folder:
        data = open_corpus(corpus, f"{folder}/corpus", 650)
        batch = PretrainingData(data, np.arange(len(data)), n, batch=2, seed=0).batch(0)
    print("raw text  ", *next(read_documents([corpus]))[:4], sep="\n    ")
    for ids, segments, mask, positions, targets, label in zip(*batch.values()):
        pieces = data.tokenizer.pieces(ids[mask])
        print("\nthe pair  ", *pieces, "\nsegments  ", *segments[mask], "\nnext      ", label)
        print("targets   ", *(f"{place}:{data.tokenizer.pieces([old])[0]}" for place, old in zip(positions, targets)
                              if old != IGNORED))
    print("\na batch   ", {key: x.shape for key, x in batch.items()})

if __name__ == "__main__":
    run(__doc__, show, prepare)
