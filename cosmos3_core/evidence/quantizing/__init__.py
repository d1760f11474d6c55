"""Quantizing by measurement: statistics of what a model's matrices are multiplied by, and what each group of them costs
in bits saved."""
