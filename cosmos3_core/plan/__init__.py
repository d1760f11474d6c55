"""Deciding once, before a weight is read: which backend, which kernels, which dtype, and why not the others."""

from .resolve import Choice, Plan, Refusal, Want, choose_backend, resolve

__all__ = ["Choice", "Plan", "Refusal", "Want", "choose_backend", "resolve"]
