"""Policies in service: which are active, on what they act, and how they come and go without a restart."""

from gateway.policies.activation import Activation

__all__ = ["Activation"]
