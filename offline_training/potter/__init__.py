"""Who's Harry Potter (Eldan and Russinovich 2023, arXiv 2310.02238): its three steps as jobs.

The reinforced model is a plain fine-tuning on the text, and so is the last step, on the labels; `preset` has their
settings. Between them lie `find_anchors` and `make_labels`.
"""

from offline_training.potter.anchors import AnchorOptions, find_anchors, load_anchors
from offline_training.potter.labelling import generic_logits
from offline_training.potter.labels import LabelOptions, load_labels, make_labels
from offline_training.potter.presets import PRESETS, preset

__all__ = [
    "PRESETS",
    "AnchorOptions",
    "LabelOptions",
    "find_anchors",
    "generic_logits",
    "load_anchors",
    "load_labels",
    "make_labels",
    "preset",
]
