"""Text in, tensors out: tokenizer, a toy language, documents, BERT's sentence pairs and masks.

The paper (AutoBERT-Zero, Sec. 4.1) pre-trains as BERT does: masked language modelling (MLM) plus
next-sentence prediction (NSP). A corpus holds one sentence per line and a blank line between documents.

    raw lines -> read_sentences -> Tokenizer -> Corpus -> make_pairs (NSP) -> assemble -> mask_tokens (MLM) -> a batch

Letters: D documents, S sentences, T tokens of a corpus; B rows of a batch, n tokens of a row, M masked ones of a batch.
The toy language at the end of the file stands in for Wikipedia, GLUE and SQuAD where only minutes are at hand.

    python data.py show            # one training pair, from raw text to arrays
    python data.py toy FOLDER      # the toy corpus, its eight GLUE tasks and its SQuAD files
    python data.py prepare --corpus FILES --out FOLDER     # a token cache of any size of corpus

Read after ops.py; nothing here needs torch.
"""
import argparse
import collections
import contextlib
import fcntl
import glob
import gzip
import hashlib
import io
import json
import lzma
import math
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import zlib
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np
import sentencepiece

# ---- Errors, command lines, files: shared by all scripts ----


class UserError(Exception):
    """Anything a user can get wrong. One line: the value, its place, and what was expected."""


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default in (None, False) else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse with defaults in --help, no abbreviated flags, and one-line errors."""

    def __init__(self, **settings):
        settings.setdefault("formatter_class", _Help)
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message):
        """Raise UserError, where argparse prints its usage and exits."""
        raise UserError(f"{message} (see {self.prog} --help)")


SEEDS = 2**32 - 1  # the largest seed that every generator takes


def number(kind, least=-math.inf, most=math.inf):
    """For argparse: reads a finite int or float from `least` to `most`."""
    def read(text):
        with contextlib.suppress(ValueError):
            if least <= kind(text) <= most and abs(kind(text)) < math.inf:
                return kind(text)
        what = "an integer" if kind is int else "a number"
        limits = f" from {least}" * (least > -math.inf) + f" to {most}" * (most < math.inf)
        raise argparse.ArgumentTypeError(f"{text!r}, expected {what}{limits}")
    return read


def run_cli(main):
    """Run main(); what a user can cause ends in one line on stderr and exit code 2, never in a traceback."""
    for stream in filter(None, (sys.stdout, sys.stderr)):
        stream.reconfigure(errors="backslashreplace")  # a path may hold what the terminal cannot show
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()
        return
    except UserError as error:
        message, code = str(error), 2
    except KeyboardInterrupt:
        message, code = "interrupted", 130
    except BrokenPipeError:  # the reader, e.g. `head`, has left: no error of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    except OSError as error:
        message, code = f"{error.filename or 'input or output'}: {error.strerror or error}", 2
    except MemoryError:
        message, code = "out of memory; try a smaller batch, model or corpus", 2
    except RuntimeError as error:
        if "can't allocate memory" not in str(error):  # as torch says it
            raise
        message, code = "out of memory; try a smaller batch, model or corpus", 2
    message = " ".join(message.split())
    if len(message) > 1000:  # a file's one line may be all of the file; the place is at the beginning or at the end
        message = f"{message[:500]} .. {message[-400:]}"
    print("error:", message, file=sys.stderr)
    sys.exit(code)


def write_beside(path, content):
    """Write str, or what content(file) writes, to a temporary neighbour and rename it: never a half-written file."""
    path = Path(path)
    if path.exists() and not path.is_file():                        # never take the place of a device
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'no ordinary file'}; expected a file to write")
    sweep(path)
    neighbour = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(neighbour, "wb") as file:
            content(file) if callable(content) else file.write(content.encode(errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(neighbour, path)
        sync(path.parent)
    except (OSError, RuntimeError) as error:  # torch.save raises the latter on a full disk
        raise UserError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None
    finally:
        with contextlib.suppress(OSError):
            neighbour.unlink(missing_ok=True)


def sync(path):
    """Have a file, or a folder's list of names, on the disk itself: or a power cut could undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def sweep(path):
    """Remove temporary neighbours of `path` that killed processes left: those gone, and an hour without a change."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = left.name[len(path.name) + 2:-4]
        with contextlib.suppress(OSError):
            changed = max(file.stat().st_mtime for file in (left, *left.glob("*")))
            if re.fullmatch("[0-9]{1,9}", pid) and changed < time.time() - 3600 and not alive(int(pid)):
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def alive(pid):
    """Whether a process of this machine has that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def check_out(path, flag="--out", folder=False):
    """UserError unless a file can be written there; or a folder, which and whose parents need not be there yet."""
    path, whole = Path(path), Path(os.path.abspath(path))
    if folder:
        there = next(place for place in (whole, *whole.parents) if place.exists())
        if not path.name or not there.is_dir() or not os.access(there, os.W_OK):
            raise UserError(f"{flag} {str(path)!r}: a file, or not writable; expected a folder, or a place for one")
        return
    if not path.name or path.is_dir():
        raise UserError(f"{flag} {str(path)!r}: a folder; expected a file to write")
    if path.exists() and not path.is_file():
        raise UserError(f"{flag} {str(path)!r}: a device or the like; expected an ordinary file")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"{flag} {str(path)!r}: its folder is not there, or not writable")
    if len(os.fsencode(path.name)) > 200:
        raise UserError(f"{flag} {str(path)!r}: a name of more than 200 bytes")


def lock(path):
    """The file, open and locked until it is closed; UserError if another process has locked it."""
    file = open(path, "rb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file
    except BlockingIOError:
        file.close()
        raise UserError(f"{path}: another process is at work on this run") from None


@contextlib.contextmanager
def folder_beside(path, replaced=False):
    """A hidden neighbour to fill, which then becomes `path`, whole or not at all; if `replaced`, for what is there."""
    path = Path(os.path.abspath(path))
    neighbour, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sweep(path)
        shutil.rmtree(neighbour, ignore_errors=True)  # of a killed process that had this one's number
        neighbour.mkdir()
        yield neighbour
        for file in (*neighbour.iterdir(), neighbour):
            sync(file)
        if replaced and path.exists():
            os.rename(path, old)
        if path.exists():
            raise UserError(f"{path} appeared meanwhile; name another")
        os.rename(neighbour, path)
        sync(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.filename or isinstance(error, BrokenPipeError):  # has a name of its own; or stdout's reader has left
            raise
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(neighbour, ignore_errors=True)


# ---- Reading documents ----

OPENERS = {".gz": gzip.open, ".xz": lzma.open}


def read_lines(path):
    """Yield (line number, text) of a UTF-8 file, plain, .gz or .xz; UserError with file:line on bad bytes."""
    path, number = Path(path), 0
    if not path.is_file():
        raise UserError(f"{path}: {'a folder' if path.is_dir() else 'no such file'}; expected an ordinary file")
    try:
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            for number, line in enumerate(file, 1):  # subtle: bytes break at \n only, never at U+2028
                yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 ({error.reason} at byte {error.start} of the line)") from None
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise UserError(f"{path}:{number + 1}: broken {path.suffix} file ({error})") from None


def read_sentences(paths):
    """Yield the sentences (str) of files, one per line, and "" after a document's last, which blank line(s) end."""
    paths, inside, count = [paths] if isinstance(paths, (str, Path)) else list(paths), False, 0
    for path in paths:
        for _, line in chain(read_lines(path), [(0, "")]):  # the end of a file ends its last document
            line = line.strip()
            if line or inside:
                yield line
                inside, count = bool(line), count + 1
    if not count:
        raise UserError(f"{', '.join(map(str, paths))}: no text; expected one sentence per line")


def read_documents(paths):
    """Yield documents, each a list of sentences (str)."""
    document = []
    for line in read_sentences(paths):
        if line:
            document.append(line)
        else:
            yield document
            document = []


# ---- Tokenizer ----

SPECIAL = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
FIRST_WORD = 5  # every id from here on is an ordinary piece


class Tokenizer:
    """Text <-> ids by a sentencepiece model.

    DEVIATION: the paper takes BERT's WordPiece vocabulary; sentencepiece learns one from any corpus in one call.
    Rare words fall into other pieces. CHOICE: BPE, whose merges come closest to WordPiece's (and unigram finds hardly
    300 pieces in a toy corpus); case-folded, for BERT-base is uncased.
    """

    def __init__(self, proto, name="tokenizer model"):
        """proto: bytes of a sentencepiece model; UserError if it is none, or has other special ids."""
        self.proto, self.model = proto, sentencepiece.SentencePieceProcessor()
        try:
            self.model.LoadFromSerializedProto(proto)
            special = [self.model.piece_to_id(piece) for piece in SPECIAL]
            self.pieces(range(self.vocab_size))  # bytes that are no UTF-8 would be met only where a text has them
        except (RuntimeError, TypeError, UnicodeDecodeError):
            raise UserError(f"{name}: not a sentencepiece model") from None
        if special != list(range(5)):
            raise UserError(f"{name}: special pieces have ids {special}, expected {list(range(5))}")
        self.space = self.model.piece_to_id("▁")

    @classmethod
    def train(cls, paths, vocab, seed=0):
        """Learn `vocab` pieces from corpus files; UserError if the text allows no vocabulary of that size."""
        sentencepiece.set_random_generator_seed(seed)  # it samples the sentences of a very large corpus
        model, failed = io.BytesIO(), []

        def sentences():  # subtle: sentencepiece would bury an error of its iterator, and Ctrl-C with it
            try:
                yield from chain.from_iterable(read_documents(paths))
            except (UserError, KeyboardInterrupt) as error:
                failed.append(error)

        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=sentences(), model_writer=model, vocab_size=vocab, model_type="bpe",
                normalization_rule_name="nmt_nfkc_cf", num_threads=1, minloglevel=2, max_sentence_length=1 << 24,
                input_sentence_size=1_000_000, shuffle_input_sentence=True, pad_id=PAD, unk_id=UNK, bos_id=-1,
                eos_id=-1, control_symbols=SPECIAL[2:])  # control: text never becomes one of them
        except (RuntimeError, OSError, ValueError) as error:
            if not failed:
                reason = str(error).split("] ")[-1].split(" Increase")[0].strip() or "not to be had from this text"
                raise UserError(f"--vocab: a vocabulary of {vocab}: {reason}") from None
        if failed:
            raise failed[0]
        return cls(model.getvalue())

    @classmethod
    def load(cls, path):
        """Read what `save` wrote."""
        if not Path(path).is_file():
            raise UserError(f"{path}: no such tokenizer file")
        return cls(Path(path).read_bytes(), path)

    def save(self, path):
        """Write the sentencepiece model file."""
        write_beside(path, lambda file: file.write(self.proto))

    @property
    def vocab_size(self):
        """The number of pieces, with the special ones."""
        return self.model.get_piece_size()

    def encode(self, text):
        """The ids of a text, without [CLS] and [SEP]."""
        return self.model.encode(text)

    def encode_with_offsets(self, text):
        """(ids, spans) of a text: text[start:end] of a span is what its piece covers, without blanks at its ends.

        A character that becomes several pieces (the ligature fi) is the span of each of them, though not of a piece
        that began before it. A "▁" alone is empty.
        """
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
        """The pieces of ids as a list of str, e.g. ['[CLS]', '▁the', '▁hen', 's']."""
        return [self.model.id_to_piece(int(i)) for i in ids]


# ---- A corpus as arrays ----


@dataclass(frozen=True)
class Corpus:
    """Token ids of documents, in memory or memory-mapped. len() is the number of documents."""
    tokens: np.ndarray     # (T,) uint16 or int32: all sentences, one after another
    sentences: np.ndarray  # (S + 1,) int64: sentence s is tokens[sentences[s]:sentences[s + 1]], never empty
    documents: np.ndarray  # (D, 2) int64: the first sentence of a document and the one past its last

    def __len__(self):
        return len(self.documents)


CHUNK = 1 << 20  # characters that are encoded at once


def chunked(sentences):
    """Yield lists of consecutive sentences with about CHUNK characters each; a document may span several."""
    chunk, length = [], 0
    for line in sentences:
        chunk.append(line)
        length += len(line) + 1
        if length >= CHUNK:
            yield chunk
            chunk, length = [], 0
    yield chunk


def encode_lines(lines, tokenizer):
    """(ids uint16 or int32, lengths int32) of read_sentences' lines: -1 is a document's end; empty ones are dropped.

    Example: ["The hens.", "\u200b", ""] -> [31, 57, 6], [3, -1]
    """
    rows = tokenizer.model.encode(lines, num_threads=1)
    lengths = [len(row) if line else -1 for line, row in zip(lines, rows) if row or not line]
    ids = np.fromiter(chain.from_iterable(rows), np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32)
    return ids, np.array(lengths, np.int32)


def indexed(parts):
    """Of encode_lines' results in order, yield Corpus' arrays part by part: ids, ends of sentences, documents."""
    total = sentences = first = 0
    for ids, lengths in parts:
        real = lengths >= 0
        ends = total + np.cumsum(lengths[real], dtype=np.int64)
        bounds = np.unique(np.append(first, sentences + np.cumsum(real)[~real]))  # so that no document is empty
        yield ids, ends, np.stack([bounds[:-1], bounds[1:]], axis=1)
        total, sentences, first = total + len(ids), sentences + len(ends), bounds[-1]


def load_corpus(paths, tokenizer):
    """Corpus files in memory; UserError if they hold fewer than two documents."""
    parts = (encode_lines(lines, tokenizer) for lines in chunked(read_sentences(paths)))
    ids, ends, documents = map(np.concatenate, zip(*indexed(parts)))
    return at_least_two(Corpus(ids, np.append(0, ends), documents), " ".join(map(str, paths)))


def at_least_two(corpus, name):
    """The corpus, or a UserError if NSP cannot be made of so few documents."""
    if len(corpus) < 2:
        raise UserError(f"{name}: one document; NSP needs at least two documents, parted by a blank line")
    return corpus


def split_held_out(corpus, share=0.05):
    """(training, held-out) Corpus of the same tokens, at least two documents each, the same ones every time.

    Held out are documents at even distances; of fewer than four the tail of each instead (a document of one sentence
    is then on both sides).
    """
    total, (first, last) = len(corpus), corpus.documents.T
    if total < 4:
        cut = first + np.maximum(1, (last - first) * 9 // 10)
        rows = np.stack([first, cut], axis=1), np.stack([np.where(cut < last, cut, first), last], axis=1)
    else:
        count = min(max(2, round(share * total)), total - 2)
        held = np.zeros(total, bool)
        held[(2 * np.arange(count) + 1) * total // (2 * count)] = True
        rows = corpus.documents[~held], corpus.documents[held]
    return tuple(replace(corpus, documents=part) for part in rows)


# ---- Packing and batching (BERT, Sec. 3 and A.2) ----


def pack(a, b, n):
    """(ids, segments) of `[CLS] a [SEP]` (b None) or `[CLS] a [SEP] b [SEP]`, at most n tokens.

    Tokens are cut off the end of the longer side, one at a time.
    """
    a, b = list(a), None if b is None else list(b)
    while len(a) + (2 if b is None else 3 + len(b)) > n:
        (a if b is None or len(a) > len(b) else b).pop()
    ids = [CLS, *a, SEP] + ([] if b is None else [*b, SEP])
    return ids, [0] * (len(a) + 2) + [1] * (len(ids) - len(a) - 2)


def collate(rows, n=None):
    """Pad (ids, segments) rows to n tokens or to the longest: "ids", "segments" int64 (B, n), "mask" bool (B, n).

    mask is True at real tokens.
    """
    shape = len(rows), n or max(len(ids) for ids, _ in rows)
    ids, segments, mask = np.full(shape, PAD, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for i, row in enumerate(rows):
        real = i, slice(len(row[0]))
        (ids[real], segments[real]), mask[real] = row, True
    return {"ids": ids, "segments": segments, "mask": mask}


# ---- Sentence pairs for NSP (BERT, A.2) ----

SHORT_PAIRS = 0.1  # so that pre-training sees short inputs too
LOCKSTEP = 1 << 16  # documents that draw at once: enough to hide Python's cost, few enough for the processor's cache
PAIR = np.dtype([("a", np.int64), ("b", np.int64), ("a_length", np.uint16), ("b_length", np.uint16),
                 ("label", np.int8)])  # a and b: where in tokens; 21 bytes, for 10 GB of text make 30 million pairs


def make_pairs(corpus, n, rng):
    """One pass over the documents: an array (pairs,) of PAIR, at most n tokens each when packed, not yet shuffled.

    Label 0: b follows a. Label 1: b comes from another document; the segments it replaced are put back.
    rng: np.random.Generator.
    """
    if not 5 <= n <= 1 << 16:
        raise UserError(f"{n} tokens per pair; 5 to {1 << 16:,} hold [CLS] a [SEP] b [SEP]")
    first, last = corpus.documents.T
    cursor = first.copy()  # (D,): the next sentence of every document
    pairs, count = np.empty((last - first).sum(), PAIR), 0  # a sentence each, or more; a page never touched is free
    active, following = np.arange(0), 0
    while len(active) or following < len(corpus):
        fresh = np.arange(following, min(following + LOCKSTEP - len(active), len(corpus)))
        active, following = np.append(active, fresh), following + len(fresh)
        drawn = pairs[count:count + len(active)]
        cursor[active] = draw_pairs(corpus, active, cursor[active], n, rng, drawn)
        count += len(active)
        active = active[cursor[active] < last[active]]
    return pairs[:count]


def draw_pairs(corpus, index, start, n, rng, pairs):
    """Fill `pairs`, one for each document `index` from sentence `start` on; return where each goes on. All (k,)."""
    room, size, (first, last) = n - 3, len(index), corpus.documents.T
    # CHOICE: a length per pair. BERT draws one per document, which may cut a whole book into tiny pairs.
    target = np.where(rng.random(size) < SHORT_PAIRS, rng.integers(2, room, size, endpoint=True), room)
    end = take(corpus.sentences, start, last[index], target)
    split = start + 1 + rng.integers(0, np.maximum(end - start - 1, 1))  # subtle: = end if there is one sentence
    label = (split == end) | (rng.random(size) < 0.5)
    a, a_end = corpus.sentences[start], corpus.sentences[split]
    other = (index + rng.integers(1, len(corpus), size)) % len(corpus)
    foreign = rng.integers(first[other], last[other])
    foreign_end = take(corpus.sentences, foreign, last[other], target - (a_end - a))
    b = corpus.sentences[np.where(label, foreign, split)]
    b_end = corpus.sentences[np.where(label, foreign_end, end)]
    kept_a, kept_b = truncated(a_end - a, b_end - b, room)
    pairs["a"] = a + rng.binomial(a_end - a - kept_a, 0.5)  # each token goes at the front or back by a coin
    pairs["b"] = b + rng.binomial(b_end - b - kept_b, 0.5)
    pairs["a_length"], pairs["b_length"], pairs["label"] = kept_a, kept_b, label
    return np.where(label, split, end)  # put back what b replaced


def take(sentences, start, last, target):
    """The ends (k,) of the shortest runs of sentences from `start` with `target` tokens or more, but at most `last`."""
    return np.minimum(np.searchsorted(sentences, sentences[start] + np.maximum(target, 1)), last)


def truncated(a, b, room):
    """The lengths of both sides when the longer one, b if they are equal, loses a token until a + b <= room."""
    kept = np.minimum(a, np.maximum(room - b, (room + 1) // 2))
    return kept, np.minimum(b, room - kept)


def assemble(tokens, pairs, n):
    """What pack and collate make of PAIRs, for all rows at once: "ids", "segments", "mask" (B, n), "next" (B,).

    ids are of the tokens' type, which is quicker to mask; the others as collate's.
    """
    a, b, a_length, b_length, label = (pairs[name].astype(np.int64) for name in PAIR.names)
    place = np.arange(n)
    middle = a_length[:, None] + 1             # (B, 1): where a's [SEP] stands
    last = middle + b_length[:, None] + 1      # (B, 1): where b's does
    second = (place > middle) & (place <= last)
    where = place + np.where(second, b[:, None] - middle, a[:, None]) - 1  # (B, n), wrong at special ids
    ids = tokens.take(where, mode="clip")
    mask = place <= last
    ids[:, 0], ids[(place == middle) | (place == last)], ids[~mask] = CLS, SEP, PAD
    return {"ids": ids, "segments": second.astype(np.int64), "mask": mask, "next": label}


# ---- Masking for MLM (BERT, Sec. 3.1) ----


def mask_tokens(ids, vocab_size, rng, max_pred=20):
    """(ids, positions, targets) of rows (B, n): a masked copy, places (M,) in the flat B*n, what stood there (M,).

    15 % of a row's tokens are chosen, at least one and at most max_pred, never [CLS], [SEP] or [PAD]; of these
    80 % become [MASK], 10 % a random ordinary token, 10 % stay. rng: np.random.Generator.
    """
    masked, n = np.array(ids), ids.shape[1]
    real = masked != PAD
    free = real & (masked != CLS) & (masked != SEP)
    count = np.clip(np.rint(0.15 * real.sum(1, np.int32)), 1, max_pred).astype(np.int64)  # (B,)
    # The chosen ones have the smallest keys. No two keys of a row are alike: below the random bits stands the column.
    keys = rng.integers(0, 1 << 64, (len(ids), (n + 1) // 2), np.uint64).view(np.uint32)[:, :n]  # two keys from a draw
    keys <<= (n - 1).bit_length()
    keys |= np.arange(n, dtype=np.uint32)
    keys[~free] = np.iinfo(keys.dtype).max
    limit = np.sort(keys, axis=1)[np.arange(len(keys)), count - 1]  # (B,)
    chosen = free & (keys <= limit[:, None])  # subtle: free, for a row may have fewer free places than count
    positions = np.flatnonzero(chosen)
    flat = masked.reshape(-1)
    targets = flat[positions]
    coin = rng.random(len(positions))  # subtle: one draw decides, not two coins in a row
    flat[positions[coin < 0.8]] = MASK
    swapped = positions[(coin >= 0.8) & (coin < 0.9)]
    flat[swapped] = rng.integers(FIRST_WORD, vocab_size, len(swapped))
    return masked, positions, targets


class PretrainingData:
    """Batches for MLM + NSP; `batch(step)` depends on (seed, step) alone, so a resumed run sees the very next batch.

    Every epoch draws its pairs anew. CHOICE: an epoch has as many steps as the first one's pairs fill; a later
    epoch, a few pairs longer or shorter, is cut or begun again there. CHOICE: every batch is n wide.
    """

    def __init__(self, corpus, n, batch, vocab_size, seed, max_pred=20):
        self.corpus, self.n, self.size, self.seed = corpus, n, batch, seed % 2**32
        self.vocab_size, self.max_pred, self.epoch = vocab_size, max_pred, None
        self.load_epoch(0)
        self.steps_per_epoch = max(1, len(self.pairs) // batch)

    def load_epoch(self, epoch):
        """Draw and shuffle the pairs of one epoch, unless they are at hand."""
        if epoch != self.epoch:
            rng, self.pairs, self.epoch = np.random.default_rng([self.seed, epoch, 1]), None, None  # frees the last
            self.pairs = make_pairs(self.corpus, self.n, rng)
            rng.shuffle(self.pairs)
            self.epoch = epoch

    def batch(self, step):
        """The batch of a step: assemble's arrays, masked, with "positions" (M,) and "targets" (M,), all int64.

        next: 1 = b is from another document. positions count through the flat B*n.
        """
        epoch, k = divmod(step, self.steps_per_epoch)
        self.load_epoch(epoch)
        rng = np.random.default_rng([self.seed, step])
        rows = self.pairs[np.arange(k * self.size, (k + 1) * self.size) % len(self.pairs)]
        batch = assemble(self.corpus.tokens, rows, self.n)
        ids, positions, targets = mask_tokens(batch["ids"], self.vocab_size, rng, self.max_pred)
        return batch | {"ids": ids.astype(np.int64), "positions": positions, "targets": targets.astype(np.int64)}


# ---- The token cache ----

FORMAT = 1  # of the cache's files
META = {"format": int, "tokens": int, "sentences": int, "documents": int, "dtype": str, "tokenizer": str,
        "sources": list}  # tokenizer: its SHA-256
CACHE_FILES = {"meta.json", "tokenizer.model", "tokens.bin", "sentences.bin", "documents.bin"}
AGAIN = "run `data.py prepare` again"


def encode_chunks(pipe):
    """What a process of `encoders` does: a tokenizer comes first, then chunks, to be sent back as ids."""
    with contextlib.suppress(EOFError, OSError, MemoryError):  # the other side is gone, or will notice that this one is
        tokenizer = Tokenizer(pipe.recv())
        while True:
            pipe.send(encode_lines(pipe.recv(), tokenizer))


@contextlib.contextmanager
def encoders(count):
    """Pipes to `count` processes that run encode_chunks. However this process ends, they do: their pipes close."""
    spawn, started = multiprocessing.get_context("spawn"), []  # spawn: a fork would hold its brothers' pipes open
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # which they inherit: Ctrl-C is this process's to handle
    try:
        for _ in range(count):
            ours, theirs = spawn.Pipe()
            process = spawn.Process(target=encode_chunks, args=(theirs,), daemon=True)
            process.start()
            started.append((process, ours))
            theirs.close()
        signal.signal(signal.SIGINT, heard)
        yield [pipe for _, pipe in started]
    finally:
        for process, _ in started:
            process.kill()
            process.join()
        signal.signal(signal.SIGINT, heard)


def encoded(pipes, tokenizer, chunks):
    """Yield encode_lines' results in the order of the chunks; a process has one at a time, which bounds memory."""
    chunks, busy = iter(chunks), collections.deque()
    try:
        for pipe in pipes:
            pipe.send(tokenizer.proto)
        for pipe, chunk in zip(pipes, chunks):
            pipe.send(chunk)
            busy.append(pipe)
        for chunk in chunks:
            result = busy[0].recv()
            busy[0].send(chunk)
            busy.rotate(-1)
            yield result
        for pipe in busy:
            yield pipe.recv()
    except (EOFError, ConnectionError):
        raise UserError("a process that encoded text has ended; out of memory?") from None


def is_our_cache(folder):
    """Whether a folder holds what `prepare` wrote and nothing else, so that it may be replaced."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    with contextlib.suppress(UserError):
        return bool(read_meta(folder / "meta.json")) and {path.name for path in folder.iterdir()} <= CACHE_FILES
    return False


def source_of(path):
    """What tells a source file from a later version of it."""
    if not os.path.exists(path):
        raise UserError(f"{path!r}: no such file; expected text")
    found = os.stat(path)
    return {"path": os.path.abspath(path), "bytes": found.st_size, "mtime": found.st_mtime_ns}


def write_cache(folder, tokenizer, sources, parts):
    """Write what `indexed` yields, the tokenizer and meta.json into a folder, with a line every few seconds."""
    start = told = time.monotonic()
    counts = {"tokens": 0, "sentences": 0, "documents": 0}
    with contextlib.ExitStack() as stack:
        files = [stack.enter_context(open(folder / f"{name}.bin", "wb")) for name in counts]
        files[1].write(bytes(8))  # the first sentence's offset
        for arrays in parts:
            for name, file, array in zip(counts, files, arrays):
                file.write(array)
                counts[name] += len(array)
            if time.monotonic() > told + 5:
                told = time.monotonic()
                print(*(f"{key}={value}" for key, value in counts.items()), f"seconds={told - start:.0f}", flush=True)
    tokenizer.save(folder / "tokenizer.model")
    meta = {"format": FORMAT, **counts, "dtype": arrays[0].dtype.name,
            "tokenizer": hashlib.sha256(tokenizer.proto).hexdigest(), "sources": sources}
    write_beside(folder / "meta.json", json.dumps(meta, indent=1) + "\n")
    return counts


def prepare(corpus, out, vocab, seed, workers, tokenizer=None, overwrite=False):
    """Write the token cache `out` of corpus files. tokenizer: a model file, or None to learn `vocab` pieces."""
    start, sources, read = time.monotonic(), [source_of(path) for path in corpus], 0
    if not Path(out).name:
        raise UserError(f"--out {out!r}: expected the name of a new folder")
    if os.path.lexists(out) and not (overwrite and is_our_cache(Path(out))):
        raise UserError(f"--out {out!r} exists" + (", and is not a cache and nothing else" if overwrite else "")
                        + "; give another" + " or --overwrite" * (not overwrite))

    def chunks():
        nonlocal read
        for lines in chunked(read_sentences(corpus)):
            read += len("\n".join(lines).encode()) + 1
            yield lines

    # subtle: encoders start while this process, and so they, are small
    with folder_beside(out, overwrite) as folder, encoders(workers) as pipes:
        need = sum(source["bytes"] * (3 if Path(source["path"]).suffix in OPENERS else 1) for source in sources) // 2
        free = shutil.disk_usage(folder).free
        if free < need:
            raise UserError(f"--out {out!r}: {free / 1e6:.0f} MB free on its disk; about {need / 1e6:.0f} MB needed")
        words = Tokenizer.load(tokenizer) if tokenizer else Tokenizer.train(corpus, vocab, seed)
        learned = time.monotonic()
        counts = write_cache(folder, words, sources, indexed(encoded(pipes, words, chunks())))
        at_least_two(range(counts["documents"]), " ".join(map(str, corpus)))
    now, unit = time.monotonic(), 1 if sys.platform == "darwin" else 1024
    own, other = (resource.getrusage(who).ru_maxrss * unit / 1e6  # other: of the largest of its processes
                  for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(*(f"{key}={value}" for key, value in counts.items()), f"tokenizer_s={learned - start:.1f}",
          f"seconds={now - start:.1f} MB/s={read / 1e6 / (now - learned):.1f} peak_MB={own + workers * other:.0f}")


def mapped(path, dtype, *shape):
    """A file's array, memory-mapped; UserError if it is not as long as that."""
    expected, found = math.prod(shape) * np.dtype(dtype).itemsize, path.stat().st_size if path.is_file() else 0
    if found != expected:
        raise UserError(f"{path}: {found:,} bytes, expected {expected:,}, as meta.json tells; {AGAIN}")
    return np.asarray(np.memmap(path, dtype, "r", shape=shape))


def read_meta(path):
    """A cache's meta.json; UserError if prepare did not write it, or wrote another format."""
    if not path.is_file():
        raise UserError(f"{path.parent}: not a token cache; expected a folder that `data.py prepare` wrote")
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        good = all(isinstance(meta[key], kind) for key, kind in META.items()) and meta["dtype"] in ("uint16", "int32")
        good = good and all(isinstance(source["path"], str) for source in meta["sources"])
        good = good and min(meta["tokens"], meta["sentences"], meta["documents"]) > 0
    except (ValueError, KeyError, TypeError, RecursionError):
        good = False
    if not good or meta["format"] != FORMAT:
        raise UserError(f"{path}: not of format {FORMAT}, which this version reads; {AGAIN}")
    return meta


def open_cache(folder):
    """(Corpus, Tokenizer) of a folder that `data.py prepare` wrote; UserError if it is stale, damaged or none."""
    folder = Path(folder)
    meta, tokenizer = read_meta(folder / "meta.json"), Tokenizer.load(folder / "tokenizer.model")
    if hashlib.sha256(tokenizer.proto).hexdigest() != meta["tokenizer"]:
        raise UserError(f"{folder / 'tokenizer.model'}: not the one that the tokens were made with; {AGAIN}")
    for source in meta["sources"]:
        if os.path.exists(source["path"]) and source_of(source["path"]) != source:
            raise UserError(f"{folder}: stale, for {source['path']} has changed since; {AGAIN}")
    corpus = Corpus(mapped(folder / "tokens.bin", meta["dtype"], meta["tokens"]),
                    mapped(folder / "sentences.bin", np.int64, meta["sentences"] + 1),
                    mapped(folder / "documents.bin", np.int64, meta["documents"], 2))
    for name, first, last, total in (("sentences", corpus.sentences[0], corpus.sentences[-1], meta["tokens"]),
                                     ("documents", corpus.documents[0, 0], corpus.documents[-1, 1], meta["sentences"])):
        if (first, last) != (0, total):
            raise UserError(f"{folder / name}.bin: from {first} to {last}, expected 0 to {total}; {AGAIN}")
    check_arrays(folder, corpus, tokenizer.vocab_size)
    return at_least_two(corpus, folder), tokenizer


def check_arrays(folder, corpus, vocab):
    """UserError where a cache's arrays cannot be those of a text; a stretch at a time, for memory."""
    first, last = corpus.documents.T
    good = {"documents": bool((first < last).all() and (first[1:] == last[:-1]).all())}
    for name, ok in (("sentences", lambda part: (part[:-1] < part[1:]).all()),
                     ("tokens", lambda part: part.min() >= 0 and part.max() < vocab)):
        array = getattr(corpus, name)
        good[name] = all(ok(array[i:i + (1 << 22) + 1]) for i in range(0, len(array), 1 << 22))
    for name in good:
        if not good[name]:
            raise UserError(f"{folder / name}.bin: damaged; {AGAIN}")


def is_cache(paths):
    """Whether corpus files are one token cache."""
    return len(paths) == 1 and os.path.isdir(paths[0])


def tokenizer_for(paths, vocab, seed, usual=None):
    """The tokenizer of a token cache, or one that learns from text files. vocab None: the cache's, or `usual`."""
    if not is_cache(paths):
        return Tokenizer.train(paths, vocab or usual, seed)
    tokenizer = open_cache(paths[0])[1]
    if vocab not in (None, tokenizer.vocab_size):
        raise UserError(f"{paths[0]}: a token cache with a vocabulary of {tokenizer.vocab_size}, not {vocab}")
    return tokenizer


def open_corpus(paths, tokenizer):
    """The Corpus in text files, or in a token cache that was made with this tokenizer."""
    if not is_cache(paths):
        return load_corpus(paths, tokenizer)
    corpus, own = open_cache(paths[0])
    if own.proto != tokenizer.proto:
        raise UserError(f"{paths[0]}: a token cache made with another tokenizer than the model's")
    return corpus


# ---- The toy language ----
# About 250 words. A document keeps to one topic and one mood. What holds inside a few words (names, collocations,
# order) suits convolutions; agreement behind a distractor, names and facts that return, topic and mood suit
# attention. The tasks need word classes (topic, mood, number, time, ...) that the corpus teaches: there, and only
# there, a hint often stands before a word ("sea boat", "truly neat"), or so small a model would not find the
# classes in 2,000 steps. A task's training rows use every other word of a list, its dev rows all of them.

TOPICS = [dict(zip(("hint", "role", "thing", "kind", "verb", "place"), map(str.split, row.split("|")))) for row in (
    "farm|farmer shepherd rider herder milker hunter|goat hen cow pig horse lamb duck mule|beast|feed guard|"
    "barn field stable pasture",
    "sea|sailor captain diver pirate rower pilot|boat ship raft canoe barge kayak tanker yacht|vessel|steer load|"
    "harbor bay beach pier",
    "dinner|cook baker waiter butcher grocer taster|cake pie stew soup tart roast pudding salad|meal|bake taste|"
    "kitchen tavern bakery cellar",
    "folk|singer drummer piper fiddler dancer harper|song hymn ballad carol jingle anthem chant aria|tune|sing play|"
    "hall stage theater chapel")]
WORDS = {key: words.split() for key, words in {
    "number": "two three four five seven nine", "colour": "red blue green white black brown",
    "time": "dawn noon dusk midnight sunrise sunset", "glad": "happy proud cheerful hopeful",
    "sad": "angry tired gloomy worried",
    "good": "lovely splendid pretty clean neat pleasant perfect superb nice bright solid charming",
    "bad": "horrid terrible shabby dirty grim wretched useless broken poor faulty nasty dreadful"}.items()}
NAMES = [name.split() for name in (
    "Anna Brown she Mrs", "Peter Stone he Mr", "Clara Hill she Mrs", "Thomas Bell he Mr", "Julia Frost she Mrs",
    "Victor Marsh he Mr", "Martha Wood she Mrs", "Henry Clay he Mr", "Helen Lane she Mrs", "Robert King he Mr")]
FACTS = {  # kind of fact: question | statement | answer
    "where": "Where does {asked} {verb} the {thing}s?|{who} {verb}s the {thing}s at the {place}.|the {place}",
    "when": "When does {asked} {verb} the {thing}s?|{who} {verb}s the {thing}s at {time}.|{time}",
    "how many": "How many {thing}s does {asked} {verb}?|{who} {verb}s {number} {thing}s.|{number}",
    "colour": "What colour are the {thing}s of {asked}?|{who} {verb}s the {colour} {thing}s.|{colour}",
    "who": "Who {verb}s the {thing}s?|{first} {last} {verb}s the {thing}s.|{first} {last}"}
TOY_VOCAB = 600  # every word is one piece
TOY_SEARCH_TASKS = ("CoLA", "RTE", "STS-B")  # where pre-training pays most, over seeds


class ToyWriter:
    """A writer of toy sentences. rng: random.Random; view: its slice of each word list; hints: the share of hints."""

    def __init__(self, rng, view=slice(None), hints=0.0):
        self.rng, self.view, self.hints = rng, view, hints

    def coin(self, p=0.5):
        """True with probability p."""
        return self.rng.random() < p

    def pick(self, words):
        """A word of those in view; a list of fewer than four is always in view."""
        return self.rng.choice(words if len(words) < 4 else words[self.view])

    def noun(self, topic, kind, plural, numbered=False, fault=False):
        """E.g. ['many', 'sea', 'boats']; numbered: not 'the'; fault: the determiner shows the other number."""
        determiners = ["these", "many"] if plural != fault else ["this", "every"]
        return [self.rng.choice(determiners if numbered else [*determiners, "the"]),
                *topic["hint"] * self.coin(self.hints), self.pick(topic[kind]) + "s" * plural]

    def distractor(self, topic):
        """[] or e.g. ['near', 'the', 'hens'], to stand between a noun and its verb."""
        words = [self.rng.choice(("near", "behind", "beside")), *self.noun(topic, "thing", self.coin())]
        return words * self.coin(0.3)

    def act(self, topic, fault=None, numbered=False):
        """E.g. 'These farmers near the hen feed the goat.'; fault: "verb", "determiner", "order" or None."""
        plural = self.coin()
        words = self.noun(topic, "role", plural, numbered, fault == "determiner") + self.distractor(topic)
        words += [self.pick(topic["verb"]) + "s" * (plural == (fault == "verb"))]
        words += self.noun(topic, "thing", self.coin())
        if fault == "order":
            i = self.rng.randrange(len(words) - 1)
            words[i:i + 2] = words[i + 1], words[i]
        return sentence(words)

    def judge(self, topic, good, subject="thing"):
        """E.g. 'The hens behind this cow are neat and clean.'; subject: a key of TOPICS."""
        plural, hint = self.coin(), ["truly" if good else "sadly"]
        first, second = self.rng.sample(WORDS["good" if good else "bad"][self.view], 2)
        words = [*self.noun(topic, subject, plural), *self.distractor(topic), "are" if plural else "is"]
        return sentence(words + hint * self.coin(self.hints) + [first] + ["and", second] * self.coin())

    def story(self, topic, good):
        """The words of one document: whose it is, its topic and mood, its facts."""
        first, last, she, title = self.rng.choice(NAMES)
        story = {key: self.pick(words) for key, words in (topic | WORDS).items()}
        the_role, mood, feeling = f"the {story['role']}", *(("good", "glad") if good else ("bad", "sad"))
        return story | {"first": first, "last": last, "she": she, "asked": self.rng.choice((first, the_role)),
                        "who": self.rng.choice((first, f"{title} {last}", she.title(), the_role.capitalize())),
                        "adjective": story[mood], "feeling": story[feeling]}

    def fact(self, kind, story):
        """[question, statement, answer] of a kind of fact in a story."""
        return [part.format(**story) for part in FACTS[kind].split("|")]

    def document(self):
        """One document: a list of sentences."""
        topic, good = self.rng.choice(TOPICS), self.coin()
        story = self.story(topic, good)
        lines = ["{first} {last} is a {role} at the {place}.".format(**story)]
        for _ in range(self.rng.randint(5, 8)):
            form = self.rng.choices(("act", "judge", "feeling", "kind", "fact"), (4, 5, 4, 2, 7))[0]
            question, statement, answer = self.fact(self.rng.choice(list(FACTS)), story)
            lines.append({"act": self.act(topic),
                          "judge": self.judge(topic, good, self.rng.choice(("thing", "thing", "kind"))),
                          "feeling": self.judge(topic, good)[:-1] + " so {first} is {feeling}.".format(**story),
                          "kind": "The {thing} is a {adjective} {kind}.".format(**story),
                          "fact": statement if self.coin() else f"{question} {sentence([answer])}"}[form])
        return lines


def sentence(words):
    """Example: ['the', 'hen', 'is', 'neat'] -> 'The hen is neat.'"""
    text = " ".join(words)
    return text[0].upper() + text[1:] + "."


# ---- Toy GLUE and SQuAD, in the official columns and JSON ----

MNLI = "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|" \
       "sentence1|sentence2"
STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
COLUMNS = {  # task: columns of train and dev | of test | of the text | of the label
    "CoLA": ("source|label|mark|sentence", "index|sentence", "sentence", "label"),
    "SST-2": ("sentence|label", "index|sentence", "sentence", "label"),
    "MRPC": ("Quality|#1 ID|#2 ID|#1 String|#2 String", "index|#1 ID|#2 ID|#1 String|#2 String",
             "#1 String|#2 String", "Quality"),
    "STS-B": (STSB + "|score", STSB, "sentence1|sentence2", "score"),
    "QQP": ("id|qid1|qid2|question1|question2|is_duplicate", "id|question1|question2", "question1|question2",
            "is_duplicate"),
    "MNLI": (MNLI + "|label1|gold_label", MNLI, "sentence1|sentence2", "gold_label"),  # dev has label1 to label5
    "QNLI": ("index|question|sentence|label", "index|question|sentence", "question|sentence", "label"),
    "RTE": ("index|sentence1|sentence2|label", "index|sentence1|sentence2", "sentence1|sentence2", "label")}


def toy_example(task, w):
    """(texts, label): one row of a GLUE task, by the ToyWriter w."""
    topic, other = w.rng.sample(TOPICS, 2)
    good, yes = w.coin(), w.coin(0.65 if task in ("CoLA", "MRPC", "QQP") else 0.5)
    second = topic if yes else other
    if task == "CoLA":
        texts = [w.act(topic, None if yes else w.rng.choice(("verb", "determiner", "order")), numbered=True)]
    elif task == "SST-2":
        texts, yes = [w.judge(topic, good)], good
    elif task == "MRPC":  # what counts as a paraphrase here: the same topic
        texts = [w.act(topic), w.act(second)]
    elif task == "QQP":
        texts = [w.fact(w.rng.choice(list(FACTS)), w.story(about, good))[0] for about in (topic, second)]
    elif task == "STS-B":  # topic weighs 3, mood 2
        same = w.coin()
        score = 3 * yes + 2 * same + w.rng.choice((-0.25, 0, 0.25))
        return [w.judge(topic, good), w.judge(second, good == same)], f"{min(5, max(0, score)):.3f}"
    elif task == "MNLI":  # neutral: another topic; contradiction: the other mood
        label = w.rng.choice(("entailment", "contradiction", "neutral"))
        about, mood = (other, w.coin()) if label == "neutral" else (topic, good == (label == "entailment"))
        return [w.judge(topic, good), w.judge(about, mood)], label
    elif task == "QNLI":  # does the sentence tell what is asked?
        asked, told = w.rng.sample(("where", "when", "how many", "colour"), 2)
        question, off_topic = w.story(topic, good), not yes and w.coin()
        answer = w.story(other, good) if off_topic else question
        texts = [w.fact(asked, question)[0], w.fact(asked if yes or off_topic else told, answer)[1]]
    else:  # RTE: a hen is a beast, a boat is none
        texts = [w.judge(topic, good), "The {kind} is {adjective}.".format(**w.story(second, w.coin()))]
    return texts, (("entailment" if yes else "not_entailment") if task in ("QNLI", "RTE") else str(int(yes)))


def toy_table(task, split, rows, w, seen):
    """The text of one TSV file; no row's texts are in the set `seen`, to which they are added."""
    train, test, text_columns, label_column = COLUMNS[task]
    columns = (test if split == "test" else train).split("|")
    if (task, split) == ("MNLI", "dev"):
        columns[-1:-1] = ["label2", "label3", "label4", "label5"]
    lines = [] if task == "CoLA" and split != "test" else ["\t".join(columns)]
    for number in range(rows):
        texts, label = toy_example(task, w)
        while tuple(texts) in seen:
            texts, label = toy_example(task, w)
        seen.add(tuple(texts))
        cells = dict(zip(text_columns.split("|"), texts)) | {
            label_column: label, "index": number, "id": number, "source": "toy", "mark": "*" * (label == "0")}
        lines.append("\t".join(str(cells.get(column, "")) for column in columns))
    return "\n".join(lines) + "\n"


def toy_squad(version, paragraphs, w):
    """The text of one SQuAD file: 3 questions on each passage; in version 2.0 the last has no answer."""
    articles = []
    for number in range(paragraphs):
        topic, good = w.rng.choice(TOPICS), w.coin()
        story, kinds = w.story(topic, good), w.rng.sample(list(FACTS), 5)
        told, untold = kinds[:3], [kind for kind in kinds[3:] if kind != "who"]
        if "who" in told:  # then no other sentence may give the name
            story["who"] = story["she"].title()
        passage, questions = [w.fact(kind, story)[1] for kind in told] + [w.judge(topic, good)], []
        w.rng.shuffle(passage)
        for kind in told if version == "1.1" else [*told[:2], untold[0]]:
            question, _, answer = w.fact(kind, story)
            found = [{"text": answer, "answer_start": " ".join(passage).index(answer)}] if kind in told else []
            flag = {} if version == "1.1" else {"is_impossible": not found}
            questions.append({"id": f"{number:05d}-{kind}", "question": question, "answers": found} | flag)
        articles.append({"title": f"Toy_{number}", "paragraphs": [{"context": " ".join(passage), "qas": questions}]})
    return json.dumps({"version": "1.1" if version == "1.1" else "v2.0", "data": articles}) + "\n"


def toy_files(seed=0):
    """Yield (relative path, text) of every toy file."""
    def writer(name, view=slice(None), hints=0.0):
        return ToyWriter(random.Random(f"{seed} {name}"), view, hints)

    half, rest, small = slice(0, None, 2), slice(1, None, 2), ("SST-2", "MRPC")
    for name, count in (("corpus.txt", 3000), ("held-out.txt", 200)):
        w = writer(name, hints=0.7)
        yield name, "\n\n".join("\n".join(w.document()) for _ in range(count)) + "\n"
    for task in COLUMNS:
        seen, ends = set(), {"_matched": slice(None), "_mismatched": rest} if task == "MNLI" else {"": slice(None)}
        name = f"glue/{task}/train.tsv"
        yield name, toy_table(task, "train", 1000 if task in small else 1600, writer(name, half), seen)
        for split, rows in (("dev", 400), ("test", 100)):
            for end, view in ends.items():  # mismatched: only words that training rows do not use
                name = f"glue/{task}/{split}{end}.tsv"
                yield name, toy_table(task, split, rows, writer(name, view), seen)
    for version in ("1.1", "2.0"):
        for split, count, view in (("train", 600, half), ("dev", 100, slice(None))):
            name = f"squad/{split}-v{version}.json"
            yield name, toy_squad(version, count, writer(name, view))


def write_toy(folder, seed=0):
    """Write corpus.txt, held-out.txt, glue/<TASK>/*.tsv, squad/*.json; return the folder. Same seed, same bytes."""
    for name, text in toy_files(seed):
        write_beside(Path(folder) / name, text)
    return Path(folder)


# ---- Command line ----


def show(corpus, vocab, n, seed):
    """Print two pairs of a corpus (None: the toy one) on their way from raw text to a batch."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = corpus or [write_toy(folder, seed) / "corpus.txt"]
        tokenizer = Tokenizer.train(corpus, vocab, seed)
        documents, rng = load_corpus(corpus, tokenizer), np.random.default_rng(seed)
        print("raw text  ", *next(read_documents(corpus))[:4], sep="\n    ")
    print("pieces    ", *tokenizer.pieces(documents.tokens[:documents.sentences[min(4, documents.documents[0, 1])]]))
    for pair in make_pairs(documents, n, rng)[:2]:
        packed = assemble(documents.tokens, pair[None], n)
        masked, positions, targets = mask_tokens(packed["ids"], tokenizer.vocab_size, rng)
        real = packed["mask"][0]
        print("\nthe pair  ", *tokenizer.pieces(packed["ids"][0, real]))
        print("segments  ", *packed["segments"][0, real])
        print("next      ", pair["label"], "(b is from another document)" if pair["label"] else "(b follows a)")
        print("masked    ", *tokenizer.pieces(masked[0, real]))
        print("targets   ", *(f"{where}:{piece}" for where, piece in zip(positions, tokenizer.pieces(targets))))
    batches = PretrainingData(documents, n, 16, tokenizer.vocab_size, seed)
    print(f"\n{len(documents)} documents, {batches.steps_per_epoch} steps of 16 pairs an epoch; a batch:")
    for key, value in batches.batch(0).items():
        print(f"    {key:10s} {value.dtype} {value.shape}")


def main(argv=None):
    """The command line; see --help."""
    parser = Parser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    toy = commands.add_parser("toy", help="write the toy corpus, GLUE and SQuAD files")
    toy.add_argument("folder", help="a new or empty folder")
    toy.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    one = commands.add_parser("show", help="follow two training pairs from raw text to arrays")
    one.add_argument("--corpus", nargs="+", help="text files, .gz and .xz too; the toy corpus if not given")
    one.add_argument("--vocab", type=number(int, 1, 10**7), default=TOY_VOCAB, help="pieces of the tokenizer")
    one.add_argument("--n", type=number(int, 5, 1 << 16), default=40, help="tokens of a pair")
    many = commands.add_parser("prepare", help="write a token cache, for training on more text than memory holds",
                               description="Learn a tokenizer from text files, encode them in several processes and "
                               "write a token cache: a folder that training maps into memory in place of reading "
                               "text. The text streams through, so its size does not matter to memory.")
    many.add_argument("--corpus", nargs="+", required=True,
                      help="text files, .gz and .xz too: a sentence per line, a blank line between documents")
    many.add_argument("--out", required=True, help="the cache, a new folder of about half the text's size")
    words = many.add_mutually_exclusive_group()
    words.add_argument("--vocab", type=number(int, 1, 10**7), default=30_000, help="pieces of the tokenizer")
    words.add_argument("--tokenizer", help="a tokenizer.model to take in place of learning one")
    many.add_argument("--workers", type=number(int, 1, 1024), default=os.cpu_count(),
                      help="processes that encode; the result is the same for any number")
    many.add_argument("--overwrite", action="store_true", help="replace a cache that is there")
    for command in (toy, one, many):
        command.add_argument("--seed", type=number(int, 0, SEEDS), default=0, help="of everything random")
    args = parser.parse_args(argv)
    if args.command == "show":
        show(args.corpus, args.vocab, args.n, args.seed)
    elif args.command == "prepare":
        prepare(args.corpus, args.out, args.vocab, args.seed, args.workers, args.tokenizer, args.overwrite)
    elif os.path.isdir(args.folder or ".") and os.listdir(args.folder or ".") and not args.overwrite:
        raise UserError(f"{args.folder}: not empty; name a new folder or add --overwrite")
    else:
        print("wrote", write_toy(args.folder, args.seed))


if __name__ == "__main__":
    run_cli(main)
