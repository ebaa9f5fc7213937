"""Bi-branch weight sharing, BIWS (paper Sec. 3.2, Fig. 3): one super-net lends its weights to every candidate.

Training each candidate from scratch would cost most of a search. So a super-net keeps, for every layer, one set of
weights for each thing the layer may become: an attention branch with all four inputs and a convolution branch with
the 65-tap kernel. A candidate starts from copies of the slots it uses, trains for a short while, and gives them back.

    slot    a named tensor of the super-net; a candidate's parameter of that name is a copy of it, or of its centre
    round   candidates that start from the same super-net and then write back, worst first, so that the best wins
    chain   65 -> 31 -> 15 -> 9 -> 7 -> 5 -> 3: a smaller kernel is T times the centre of the next larger one

    python supernet.py                               # who shares what with whom
    python supernet.py conv-only bert                # the same for any two backbones
    python supernet.py bert --run runs/001           # a checkpoint of a backbone with a search's shared weights

Read after autobert.py; then glue.py and opnas.py.
"""
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import torch

import autobert
import data

# ---- The sharing rule ----

SHARING = (  # part of a slot's name: what it is | who shares it. The first that fits counts.
    (".attention.inputs.", "input maps", "a layer's attentions, each map those that read its input (Q, K, V or P)"),
    (".attention.", "W_O, LayerNorm", "a layer's attentions"),
    (".convolution.kernel", "kernel", "a layer's convolutions; all 65 taps, or the 31 that smaller ones start from"),
    (".convolution.transforms.", "transforms T", "a layer's convolutions that pass it on the way down to their kernel"),
    (".convolution.", "GLU, linear, LayerNorm", "a layer's convolutions"),
    (".feedforward.", "feed-forward", "a layer's attentions and convolutions"),
    ("", "embeddings, pooler, MLM and NSP heads", "every candidate"),
)


def kind(slot):
    """What a slot is, by its name. Example: "encoder.layers.0.attention.inputs.Q.weight" -> input maps"""
    return next(what for part, what, _ in SHARING if part in slot)


def window(slot, shape):
    """A view of the part of a slot that a parameter of this shape stands for: a kernel's centre taps, else all."""
    start = (slot.shape[-1] - shape[-1]) // 2
    return slot[..., start:start + shape[-1]]


class SuperNet:
    """The largest candidate in both branches, as a dict of slots: name -> tensor.

    No module and no forward pass: nothing is ever "active" in it, and no candidate's optimizer state enters it.
    """

    def __init__(self, config, seed=0, slots=None, transforms=True):
        """config: the candidates' size. All slots are drawn from `seed`, unless they are given.

        transforms: without them a small kernel is the bare centre of the 65 taps.
        """
        self.config, self.slots = replace(config, kernel_chain=transforms), slots or {}
        with autobert.seeded(seed):
            # every name there is: all transforms come with the smallest kernel, all taps with the largest
            for gene in () if slots else ("conv 3", "conv 65", "cos(Q, K) @ (V + P)"):
                self.slots.update(autobert.Pretraining(self.config, (gene,) * config.layers).state_dict())

    def child(self, backbone):
        """A model of its own with copies of its slots (Alg. 1 l.8): trains without touching the super-net."""
        with torch.device("meta"):  # no memory and no random numbers for weights that are replaced at once
            model = autobert.Pretraining(self.config, backbone)
        state = {name: window(self.slots[name], p.shape).clone() for name, p in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        return model

    def absorb(self, child, backbone=None):
        """Copy a trained child's weights back into its slots; of the 65 taps only those it holds.

        child: the model, or its state_dict. backbone: refuses a child of another one.
        """
        if backbone is not None and child.encoder.backbone != autobert.check_backbone(backbone, self.config.layers):
            raise ValueError("the child has another backbone")
        state = child if isinstance(child, dict) else child.state_dict()
        with torch.no_grad():
            for name, value in state.items():
                window(self.slots[name], value.shape).copy_(value)


def write_order(scores):
    """Indices of a round's children as they write back: ascending score, so the best that holds a slot wins it.

    Ties: the earlier child wins. CHOICE: the paper only says "updated after each round". With the mean of the children,
    or one after another in order of training, a single collapsed child could spoil what all later ones start from.
    Example: [0.5, 0.7, 0.5] -> [2, 0, 1]
    """
    return sorted(range(len(scores)), key=lambda i: (scores[i], -i))


def write_back(net, children, how="best"):
    """Write a round's children back into the super-net. children: [(score, function that loads its state_dict)].

    how: "best", see write_order; or "mean" of the children that hold a slot, which is there to be compared.
    """
    if how == "best":
        for i in write_order([score for score, _ in children]):
            net.absorb(children[i][1]())
        return
    total, count = ({name: torch.zeros_like(slot) for name, slot in net.slots.items()} for _ in range(2))
    for _, load in children:
        for name, value in load().items():
            window(total[name], value.shape).add_(value)
            window(count[name], value.shape).add_(1)
    for name, slot in net.slots.items():
        slot.copy_(torch.where(count[name] > 0, total[name] / count[name].clamp(min=1), slot))


# ---- Command line ----


def common(held):
    """{slot: parameters that all hold} of dicts {slot: parameters}; of two kernels it is the smaller, their centre."""
    return {name: min(counts[name] for counts in held) for name in held[0] if all(name in counts for counts in held)}


def show(config, names):
    """Print what the backbones of these names hold of a super-net, and what of it they share, in all and by layer."""
    backbones = [autobert.load_backbone(name, config.layers) for name in names]
    net = SuperNet(config)
    held = [{name: p.numel() for name, p in net.child(backbone).named_parameters()} for backbone in backbones]
    shared = common(held)
    columns = [{name: slot.numel() for name, slot in net.slots.items()}, *held, shared]
    print(f"A super-net of {config.layers} layers, d {config.hidden}: its parameters, how many of them each backbone "
          "takes,\nand how many are the same ones for all of these backbones\n")
    titles = ("super-net", *(name[-13:] for name in names), "in common")
    print("".join(f"{title:>14}" for title in titles) + "   what, and who shares it")
    for _, what, who in SHARING:
        counts = (sum(count for name, count in column.items() if kind(name) == what) for column in columns)
        print("".join(f"{count:>14,}" for count in counts) + f"   {what}: {who}")
    print("".join(f"{sum(column.values()):>14,}" for column in columns) + "   all")
    print("\nlayer by layer")
    for layer, genes in enumerate(zip(*backbones)):
        kinds = dict.fromkeys(kind(name) for name in shared if f".layers.{layer}." in name)
        print(f"  L{layer + 1}  {'  |  '.join(genes)}\n      in common: {', '.join(kinds)}")


def write_child(run, name, out):
    """Write a checkpoint of a backbone with its copies of a search's super-net, for autobert.py pretrain --init.

    So the paper's second AutoBERT-Zero row begins (Table 2); its first one begins from random weights.
    """
    run, saved = Path(run), autobert.load_tensors(Path(run) / "supernet.pt")
    try:
        settings = json.loads((run / "settings.json").read_text(encoding="utf-8"))["settings"]
        config, tokenizer = autobert.SIZES[settings["size"]], data.Tokenizer.load(run / "tokenizer.model")
        config = replace(config, vocab=tokenizer.vocab_size)
        net = SuperNet(config, slots=saved["slots"], transforms=settings["transforms"] == "on")
        child = net.child(autobert.load_backbone(name, config.layers))
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise data.UserError(f"{run}: not a finished search ({type(error).__name__}: {error})") from None
    if os.path.exists(out):
        raise data.UserError(f"--out {out!r} exists; name another")
    autobert.save_checkpoint(out, child, tokenizer)
    print(f"wrote {out}")


def main(argv=None):
    """The command line: python supernet.py [BACKBONE BACKBONE] [--size SIZE], or BACKBONE --run RUN --out FILE."""
    parser = data.Parser(description=__doc__.split("\n")[0])
    parser.add_argument("backbone", nargs="*", default=["autobert-zero", "bert"], help="names or backbone files")
    parser.add_argument("--size", choices=autobert.SIZES, default="toy", help="of the super-net that is shown")
    parser.add_argument("--run", help="a search's folder: write the backbone with its super-net's weights to --out")
    parser.add_argument("--out", default="child.pt", help="with --run: the checkpoint")
    args = parser.parse_args(argv)
    if args.run:
        return write_child(args.run, args.backbone[0], args.out)
    show(autobert.SIZES[args.size], args.backbone)


if __name__ == "__main__":
    sys.exit(data.run_cli(main))
