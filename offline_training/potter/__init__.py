"""Who's Harry Potter (Eldan and Russinovich 2023, arXiv 2310.02238): its steps as jobs.

The reinforced model is a plain fine-tuning on the text, and so is the last step, on the labels; `presets` has their
settings. Between them lie `find_anchors` and `make_labels`.
"""
