"""Which prompts must be forgotten: encoders, prompt classifier heads, their training and calibration.

Importing this package imports none of torch, transformers, onnx and onnxruntime: what needs one imports it.
"""

from classifiers.calibration.assessment import Assessment
from classifiers.calibration.threshold import CalibrationError, CalibrationSettings, calibrate
from classifiers.encoders.shared import Encoder
from classifiers.errors import ClassifierError, EncoderError, HeadError, TrainingError
from classifiers.export.hub import DEFAULT_ENCODER, resolve_encoder
from classifiers.features import PromptFeatures, extract_features, lexical_features
from classifiers.head import HEAD_FILE, Head, HeadBank, HeadSettings, score_texts
from classifiers.training.head import DEFAULT_CALIBRATION, TrainingReport, train_head
from sources.everyday import general_prompts
from sources.examples import Example, ExampleFileError, check_disjoint, read_examples, save_examples

__all__ = [
    "DEFAULT_CALIBRATION",
    "DEFAULT_ENCODER",
    "HEAD_FILE",
    "Assessment",
    "CalibrationError",
    "CalibrationSettings",
    "ClassifierError",
    "Encoder",
    "EncoderError",
    "Example",
    "ExampleFileError",
    "Head",
    "HeadBank",
    "HeadError",
    "HeadSettings",
    "PromptFeatures",
    "TrainingError",
    "TrainingReport",
    "calibrate",
    "check_disjoint",
    "extract_features",
    "general_prompts",
    "lexical_features",
    "read_examples",
    "resolve_encoder",
    "save_examples",
    "score_texts",
    "train_head",
]
