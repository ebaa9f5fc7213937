"""Does full training gain from a winner's shared weights? Its checkpoint with them, to train on.

The second AutoBERT-Zero row of Table 2 begins its pre-training so. A second, then the usual training:

    python studies/child.py --run runs/search --out child.pt
    python autobert.py train --init child.pt --backbone runs/search/best.json
"""
import sys
from pathlib import Path

import torch
from torch.nn import ParameterDict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import autobert  # noqa: E402
import data  # noqa: E402
import supernet  # noqa: E402

def child(run: str = "runs/search", out: str = "child.pt"):
    """Does full training gain from a winner's shared weights? Write a checkpoint that has them, in a second.

    run: the search's folder
    out: the checkpoint, for `autobert.py train --init`"""
    state = torch.load(f"{run}/state.pt", weights_only=True)
    net = supernet.SuperNet(autobert.ModelConfig(**state["config"]), slots=state["slots"])
    model = net.child(autobert.load_backbone(f"{run}/best.json", net.config.layers))
    for layer in model.encoder.layers:
        if layer.kind == "convolution":  # as its own k taps
            convolution = layer.convolution
            convolution.kernel.data, convolution.transforms = convolution.taps().data, ParameterDict()
    autobert.save_checkpoint(out, model, data.Corpus(state["corpus"]).tokenizer)
    print(f"{out}: {' | '.join(model.encoder.backbone)}")

if __name__ == "__main__":
    data.run(__doc__, usual=child)
