"""What score does one get without reading: by a constant, by a linear model of the words, by a random span?

Only above these does a task of GLUE or SQuAD (App. C) measure a text encoder. Ten seconds on the toy language:

    python studies/baselines.py --glue toy/glue --squad toy/squad/dev-v1.1.json toy/squad/dev-v2.0.json
"""
import re
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
from glue import TASKS, read_squad, read_task, score, squad_scores  # noqa: E402

BUCKETS = 1 << 17  # of hashed words

def bag(a, b, _=None):
    """Hashed features of a row as ids: its words; of a pair the side of each, and whether it is on both or on one."""
    a, b = (set(re.findall(r"\w+|[^\w\s]", text.lower())) if text is not None else None for text in (a, b))
    found = {"a" + word for word in a}
    if b is not None:
        found |= {"b" + word for word in b} | {"both" + word for word in a & b} | {"one" + word for word in a ^ b}
        found.add(f"shared {len(a & b) * 10 // max(1, len(a | b))}/10")
    return torch.tensor(sorted({zlib.crc32(word.encode()) % BUCKETS for word in found}))

def bag_of_words(train, y, dev, labels, seed=0, epochs=5):
    """What a linear model of words predicts for dev: one of `labels` ids, as y of train, or if 0 a number 0..5."""
    rng, (weight, bias) = np.random.default_rng(seed), (torch.zeros(rows, labels or 1) for rows in (BUCKETS, 1))
    optimizer = torch.optim.Adagrad([weight.requires_grad_(), bias.requires_grad_()], lr=0.1)
    bags, y = [bag(*row) for row in train], torch.from_numpy(y)

    def outputs(bags):
        starts = torch.tensor(np.cumsum([0] + [len(x) for x in bags[:-1]]))
        scale = torch.cat([torch.full((len(x),), len(x) ** -0.5) for x in bags])
        return F.embedding_bag(torch.cat(bags), weight, starts, mode="sum", per_sample_weights=scale) + bias

    for _ in range(epochs):
        for picked in np.array_split(rng.permutation(len(bags)), len(bags) // 64 + 1):
            x = outputs([bags[i] for i in picked])
            loss = F.cross_entropy(x, y[picked]) if labels else F.mse_loss(x[:, 0], y[picked].float() / 5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    x = outputs([bag(*row) for row in dev]).detach().numpy()
    return x.argmax(1) if labels else x[:, 0] * 5

def random_spans(questions, seed=0):
    """{id: text} of random answers: 1 to 3 neighbouring words of the passage, uniformly drawn."""
    rng, found = np.random.default_rng(seed), {}
    for q in questions:
        words = q["context"].split()
        first, length = rng.integers(len(words)), rng.integers(1, 4)
        found[q["id"]] = " ".join(words[first:first + length])
    return found

def baselines(glue: str = "toy/glue", task: tuple[str, ...] = tuple(TASKS), seed: int = 0,
              squad: tuple[str, ...] = ("toy/squad/dev-v1.1.json", "toy/squad/dev-v2.0.json")):
    """What score does one get without reading: by a constant, words, a random span? Ten seconds on the toy language.

    glue: the folder that holds CoLA, SST-2, ..
    task: one or more of them
    seed: of all that is random
    squad: dev files"""
    for name, split in ((name, split) for name in task for split in TASKS[name].dev):
        train, dev, labels = read_task(glue, name, "train"), read_task(glue, name, split), len(TASKS[name].labels or ())
        y, gold = (np.array([label for *_, label in part]) for part in (train, dev))
        same = np.full(len(dev), np.bincount(y).argmax() if labels else y.mean())
        print(f"{name:6}{split:16}{len(dev):6} rows  constant {100 * score(name, gold, same):5.1f}  "
              f"words {100 * score(name, gold, bag_of_words(train, y, dev, labels, seed)):5.1f}", flush=True)
    for path in squad:
        found = squad_scores(questions := read_squad(path), random_spans(questions, seed))
        print(f"{path}: a random span has exact {found['exact']:.1f}, f1 {found['f1']:.1f}")

if __name__ == "__main__":
    data.run(__doc__, baselines, usual=baselines)
