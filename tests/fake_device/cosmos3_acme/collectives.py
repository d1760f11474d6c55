"""Mistakes in collectives. Without a fault the device leaves them to torch."""

from __future__ import annotations

from cosmos3_core.reference.comm import TorchComm


class maximum_is_a_sum(TorchComm):
    def all_reduce(self, x, group=None, *, op="sum"):
        return super().all_reduce(x, group)


class processes_of_all(TorchComm):
    """Counts the source among all processes, not within the group."""

    def broadcast(self, x, source, group=None):
        import torch.distributed as dist

        work = dist.broadcast(x.view(dtype=x.dtype), source, group=group, async_op=True)
        return type("Work", (), {"wait": lambda self: [work.wait(), x][1]})()


class one_buffer_to_gather(TorchComm):
    """For every call with a result of this size."""

    buffers: dict = {}

    def all_gather(self, x, group=None):
        found = super().all_gather(x, group).wait()
        buffer = self.buffers.setdefault((found.shape, found.dtype), found)
        return type("Work", (), {"wait": lambda self: buffer.copy_(found)})()


class parts_are_equal(TorchComm):
    def all_to_all(self, x, group=None, *, sent=None, received=None):
        return super().all_to_all(x, group)


class swapped_ring(TorchComm):
    """Sends to where it should receive from."""

    def exchange(self, x, target, source, group=None):
        return super().exchange(x, source, target, group)


class part_of_all(TorchComm):
    """Counts this process among all, not within the group."""

    def reduce_scatter(self, x, group=None):
        import torch.distributed as dist

        total = super().all_reduce(x.clone(), group).wait()
        return type("Work", (), {"wait": lambda self: total[dist.get_rank() % len(x)]})()
