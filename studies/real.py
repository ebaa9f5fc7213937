"""Does a search on real text find what beats BERT? Toy width, 4,000 pieces, books and Wikipedia, no shared weights.

The paper scores a candidate after 40,000 steps of 160 rows (App. D.1). Two cores have two hours, so a candidate gets
2,000 steps of 32 rows. That is enough to learn next-sentence prediction, and by then some backbones have left the plateau
of word frequencies. `tasks` shows which GLUE tasks tell backbones apart after so little; `search` searches with those.
Winner, bert and autobert-zero are then trained with twice the steps. The same command again goes on:

    python data.py prepare --text wiki.txt.xz books.txt.xz --out corpus --vocab 4000
    python studies/real.py tasks --corpus corpus --glue glue
    python studies/real.py search --corpus corpus --glue glue
"""
import itertools
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import glue as tasks_of  # noqa: E402
import opnas  # noqa: E402
from draw import begin, measured  # noqa: E402

REAL = replace(opnas.EVENING, tasks=("STS-B", "MNLI"), population=24, parents=3, children=3, rounds=6, finalists=4,
               steps=2000, final_steps=4000, pretrain=replace(autobert.PRETRAIN["toy"], n=48, precision="bf16"),
               tune=replace(tasks_of.PRESETS["toy"], epochs=3, n=48, precision="bf16"))

def search(corpus: str = "corpus", glue: str = "glue", out: str = "runs/real", workers: int = 2):
    """Search on real text, then train the winner, bert and autobert-zero; two and a half hours on two cores.

    corpus: a folder that `data.py prepare` wrote
    glue: the folder with STS-B and MNLI"""
    opnas.search(vars(REAL), corpus=corpus, glue=glue, out=out, workers=workers)

if __name__ == "__main__":
    data.run(__doc__, search)
