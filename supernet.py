"""Bi-branch weight sharing, BIWS (paper Sec. 3.2, Fig. 3): one super-net lends its weights to every candidate.

A super-net keeps, for every layer, one set of weights for each thing the layer may become: an attention branch with all
four inputs and a convolution branch with the 65-tap kernel. A candidate takes copies, trains, and gives them back.

    slot    a named tensor of the super-net; a candidate's parameter of that name is a copy of it, or of its centre
    round   candidates that start from the same super-net and write back, worst first, so the best wins
    chain   65 -> 31 -> 15 -> 9 -> 7 -> 5 -> 3: a smaller kernel is T times the centre of the next larger one

    python supernet.py    # who shares what with whom

Read after autobert.py; then glue.py and opnas.py.
"""
import torch
import torch.nn as nn
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

# ---- Kernels from shared ones ----
def chain(kernel):
    """The kernels on the way from 65 taps to `kernel`. Example: 9 -> [31, 15, 9]; 65 -> []"""
    return [size for size in reversed(autobert.KERNELS[:-1]) if size >= kernel]

class ChainedConv(autobert.LightConv):
    """A light convolution whose taps are the centre of the next larger kernel times a matrix T, step by step from 65.
    T is shared by all heads. Of the 65 taps a smaller kernel needs the 31 that its first T mixes."""
    def __init__(self, config, kernel):
        super().__init__(config, (chain(kernel) or [kernel])[0])
        self.transforms = nn.ParameterDict({str(size): torch.eye(size) for size in chain(kernel)})

    def taps(self):
        taps = self.kernel
        for matrix in sorted(self.transforms.values(), key=len, reverse=True):
            taps = window(taps, matrix.shape) @ matrix.T
        return taps

def model_of(config, backbone):
    """A Pretraining with ChainedConvs: its parameters' names are slots."""
    model = autobert.Pretraining(config, backbone)
    for gene, layer in zip(model.encoder.backbone, model.encoder.layers):
        if kernel := autobert.kernel_of(gene):
            layer.convolution = ChainedConv(config, kernel)
            autobert.init_weights(layer.convolution, config.init_std)
    return model

# ---- The super-net ----
class SuperNet:
    """The largest candidate in both branches, as a dict of slots: name -> tensor; no module, no forward pass.
    config: the candidates' size. slots: those of an earlier super-net, else they are drawn from `seed`."""
    def __init__(self, config, seed=0, slots=None):
        self.config, self.slots = config, slots or {}
        torch.manual_seed(seed)
        # every name: the smallest kernel has all transforms, the largest all taps
        for gene in () if slots else ("conv 3", "conv 65", "cos(Q, K) @ (V + P)"):
            self.slots.update(model_of(config, (gene,) * config.layers).state_dict())

    def child(self, backbone):
        """A model of its own with copies of its slots (Alg. 1 l.8)."""
        with torch.device("meta"):
            model = model_of(self.config, backbone)
        state = {name: window(self.slots[name], p.shape).clone() for name, p in model.state_dict().items()}
        model.load_state_dict(state, assign=True)
        return model

    def absorb(self, state):
        """Copy a child's state_dict back; of the 65 taps only those it holds."""
        for name, value in state.items():
            window(self.slots[name], value.shape).copy_(value)

def write_order(scores):
    """Indices of a round's children as they write back: ascending score, so the best with a slot wins it; of equals the
    earlier. CHOICE: the paper only says "updated after each round". With the mean of the children, or one after the
    other, a collapsed child could spoil what all later ones start from. Example: [0.5, 0.7, 0.5] -> [2, 0, 1]"""
    return sorted(range(len(scores)), key=lambda i: (scores[i], -i))

# ---- Commands ----
def show(backbone: tuple[str, ...] = ("autobert-zero", "bert"), size: tuple(autobert.SIZES) = "toy"):
    """Count the parameters of a super-net, of backbones in it, and those in common. backbone: names or files."""
    net = SuperNet(autobert.SIZES[size])
    models = [net.child(autobert.load_backbone(name, net.config.layers)) for name in backbone]
    held = [{name: p.numel() for name, p in model.named_parameters()} for model in models]
    shared = {name: min(counts[name] for counts in held) for name in set.intersection(*map(set, held))}
    columns = [{name: slot.numel() for name, slot in net.slots.items()}, *held, shared]
    print("".join(f"{title[-13:]:>14}" for title in ("super-net", *backbone, "in common")) + "   what, who shares it")
    for _, what, who in SHARING:
        counts = (sum(count for name, count in column.items() if kind(name) == what) for column in columns)
        print("".join(f"{count:>14,}" for count in counts) + f"   {what}: {who}")

if __name__ == "__main__":
    data.run(__doc__, usual=show)
