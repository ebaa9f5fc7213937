"""Do tokens grow alike from layer to layer, and less so in AutoBERT-Zero than in BERT (Sec. 4.2, Fig. 5)?

Of pre-trained models, behind each layer: the relative norm of what is left of a text's hidden states without their mean
(0 where all tokens are the same), and the mean cosine of two tokens. As in the paper on 1,280 rows of STS-B. Seconds:

    python autobert.py train --backbone bert --out bert.pt              # and autobert-zero: two minutes each
    python studies/uniformity.py --checkpoint bert.pt autobert-zero.pt --out uniformity
"""
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
from draw import chart, tsv  # noqa: E402
from glue import encode, read_task  # noqa: E402

MEASURES = {"residual": "Relative norm without the mean token", "cosine": "Mean cosine of two tokens of a text"}

def uniformity(x, mask):
    """How alike the real tokens of hidden states are: x (B, n, d), mask (B, n) -> (residual, cosine), each (B,).

    residual: norm of what is left of x without its mean token, by x's; norm(m) = sqrt(|m|_1 |m|_inf), the roots of the
    largest sums over columns and rows. cosine: mean over pairs i != j; nan for a single token. In float64."""
    padding, count = ~mask[..., None], mask.sum(1)
    x = x.double().masked_fill(padding, 0.0)  # (B, n, d)
    # CHOICE: the residual is what is left without the mean token, which is the nearest in the Frobenius norm
    rest = (x - x.sum(1, keepdim=True) / count[:, None, None]).masked_fill(padding, 0.0)
    whole, left = ((m.abs().sum(1).amax(1) * m.abs().sum(2).amax(1)).sqrt() for m in (x, rest))
    unit = F.normalize(x, dim=-1)
    pairs = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))  # |sum of u_i|^2 holds u_i u_j of all i, j
    return left / whole, pairs / (count * (count - 1))

@torch.no_grad()
def by_layer(encoder, rows, device):
    """uniformity behind the embeddings and each layer, of each row (ids, segments): array (L + 1, 2, rows)."""
    found = []
    for i in range(0, len(rows), 32):
        batch = data.collate(rows[i:i + 32])
        ids, segments, mask = (torch.as_tensor(batch[key], device=device) for key in ("ids", "segments", "mask"))
        states = encoder.eval()(ids, segments, mask, every=True)
        found.append(torch.stack([torch.stack(uniformity(x, mask)) for x in states]))
    return torch.cat(found, -1).cpu().numpy()

def main(checkpoint: tuple[str, ...] = ("model.pt",), glue: str = "toy/glue", rows: int = 1280, device: str = "auto",
         out: str = "uniformity"):
    """Do tokens grow alike from layer to layer, and less so in AutoBERT-Zero than in BERT (Fig. 5)? In seconds it gives
    mean and sd over texts, behind the embeddings (layer 0) and each layer.

    checkpoint: pre-trained models, of one budget if they are to be compared
    glue: the folder that holds STS-B
    rows: the first of its training rows
    out: a folder for the table and its pictures"""
    device, table, curves = autobert.find_device(device), [["model", "layer", "residual", "sd", "cosine", "sd"]], {}
    examples = read_task(glue, "STS-B", "train")[:rows]
    for path in checkpoint:
        model, tokenizer, _ = autobert.load_checkpoint(path, device)
        values = by_layer(model.encoder, encode(examples, tokenizer, 128)[0], device)
        mean, sd = values.mean(-1), values.std(-1)  # (L + 1, 2)
        for i, measure in enumerate(MEASURES):
            curves.setdefault(measure, {})[path] = range(len(mean)), mean[:, i], (mean - sd)[:, i], (mean + sd)[:, i]
        figures = np.stack([mean, sd], -1).reshape(-1, 4)
        table += [[path, layer, *(f"{x:.4f}" for x in row)] for layer, row in enumerate(figures)]
    print(tsv(*table), end="")
    data.write_beside(Path(out) / "uniformity.tsv", tsv(*table))
    for measure, title in MEASURES.items():
        picture = chart(f"{title}, and its sd", "layer (0: embeddings)", measure, curves[measure])
        data.write_beside(Path(out) / f"{measure}.svg", picture)

if __name__ == "__main__":
    data.run(__doc__, main, usual=main)
