"""What a model or a server still knows of what it was to forget, and what forgetting cost.

A suite (`evaluation.suite`) asks a target (`evaluation.replies`) through a run (`evaluation.runs`), which keeps
replies, and says what each example is worth; `evaluation.report` puts runs side by side.
Importing the package imports nothing.
"""
