"""Deciding once, before a weight is read: which backend, which kernels, which dtype, and why not the others."""

from .choice import Choice, Plan, Refusal, Want
from .resolve import resolve
from .survey import choose_backend

__all__ = ["Choice", "Plan", "Refusal", "Want", "choose_backend", "resolve"]
