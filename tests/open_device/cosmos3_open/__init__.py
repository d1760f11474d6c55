"""A device that torch does not know: registered as PrivateUse1, without an allocator, pinned memory or generators of
torch's. It computes on the host, and refuses what a device of its own would refuse."""
