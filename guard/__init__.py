"""Policies, segments, verdicts, and the guard itself. No vLLM, no HTTP."""

from guard.bundle import ClassifierConfig, ModelConfig, PolicyBundle, PolicyConfig, load_bundle, write_bundle
from guard.errors import (
    BundleError,
    ClassificationError,
    CorruptionFailedError,
    GuardError,
    PolicyMismatchError,
    SecretError,
)
from guard.guard import Explanation, Guard, LoadedPolicy, ProtectedPrompt, RowSource, check_model, load_policy
from guard.secret import load_or_create_secret, row_seeds
from guard.segments import Template, decoder_of, template_of
from guard.verdicts import Verdict, Verdicts

__all__ = [
    "BundleError",
    "ClassificationError",
    "ClassifierConfig",
    "CorruptionFailedError",
    "Explanation",
    "Guard",
    "GuardError",
    "LoadedPolicy",
    "ModelConfig",
    "PolicyBundle",
    "PolicyConfig",
    "PolicyMismatchError",
    "ProtectedPrompt",
    "RowSource",
    "SecretError",
    "Template",
    "Verdict",
    "Verdicts",
    "check_model",
    "decoder_of",
    "load_bundle",
    "load_or_create_secret",
    "load_policy",
    "row_seeds",
    "template_of",
    "write_bundle",
]
