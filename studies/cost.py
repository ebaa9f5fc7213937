"""Do our counts of parameters and FLOPs agree with the paper's (Tables 2, 4, 5 and 7)? It takes seconds.

    python studies/cost.py

params: encoder and pooler, biases included. of att: the input projections of both kinds of layer. W_O is not among
them, as the paper's 21.3M for BERT's 36 matrices shows; conv-only has 24, and the paper's 15.4M is AutoBERT-Zero's.
FLOPs: as ELECTRA counts them. The paper's for AutoBERT-Zero fit only a count without the convolutions' mixing, W_O and
one of the attention products. Its 318M parameters for large are what att-only has here.
"""
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
from data import run  # noqa: E402

# parameters and "#Params of Att" in millions, FLOPs of one sequence of 128 tokens
PAPER = {("small", "bert"): (14, None, 3.7e9), ("small", "autobert-zero"): (13, None, 2.9e9),
         ("base", "bert"): (110, 21.3, 2.9e10), ("base", "autobert-zero"): (104, 15.4, 2.3e10),
         ("base", "att-only"): (None, 16.5, None), ("base", "conv-only"): (None, 15.4, None),
         ("large", "bert"): (340, None, 8.7e10), ("large", "autobert-zero"): (318, None, 6.8e10),
         ("large", "att-only"): (None, None, None)}

def beside(ours, paper, form):
    """Our figure, the paper's, and how far ours is from it. Example: 26.8, 23, ".1f" -> "26.8 (23, +17 %)" """
    return f"{ours:{form}}" + (f" ({paper:g}, {ours / paper - 1:+.0%})".replace("%", " %") if paper else "")

def cost():
    """Do our counts of parameters and FLOPs agree with the paper's (Tables 2, 4, 5 and 7)? In seconds it prints
    ours and, in brackets, the paper's and the difference."""
    for (size, name), paper in PAPER.items():
        config = replace(autobert.SIZES[size], vocab=30_522)  # BERT's
        backbone = autobert.load_backbone(name, config.layers)
        count = autobert.count_parameters(config, backbone)
        flops = autobert.count_flops(config, backbone, 128)["total"]
        print(f"{size:6}{name:14} params {beside(count['total'] / 1e6, paper[0], '.1f'):19} M  "
              f"of att {beside(count['att'] / 1e6, paper[1], '.2f'):19} M  FLOPs {beside(flops, paper[2], '.3g')}")

if __name__ == "__main__":
    run(__doc__, cost, usual=cost)
