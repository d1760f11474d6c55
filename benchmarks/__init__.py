"""Measurements side by side with a peer, in one process on the same weights and inputs. See benchmarks/README.md."""
