"""Noise, schedules, solvers and guidance: what happens between two forward passes."""
