"""Mistakes that were made in real kernels, each as a change to one correct op."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import wraps

import torch

from cosmos3_core.contract import Bytes
from cosmos3_core.testing.subject import live_bytes

from . import kernels, kinds


def plant(fault, op, kernel):
    """The kernel, or its faulty form where the fault is about this op."""
    about, change = (FAULTS | kinds.FAULTS).get(fault, (None, None))
    return change(kernel) if about == op else kernel


def attending(change):
    """A fault inside the 16-bit attention; the other rows stay as they are."""

    def faulty(kernel):
        def attention(q_BSHD, segments, *, causal=False, want_lse=False):
            return change(q_BSHD, segments, causal, want_lse)

        return attention if kernel is kernels.online_softmax else kernel

    return faulty


def base_2_lse(q, segments, causal, want_lse):
    out, lse = kernels.attend(q, segments, causal, want_lse)
    return out, lse / 0.6931471805599453 if want_lse else None


def no_maximum(q, segments, causal, want_lse):
    """exp(score) as it is: fine until scores pass 88."""
    joined = (torch.cat(parts, dim=1).float() for parts in zip(*segments, strict=True))
    k, v = (t.repeat_interleave(q.shape[2] // t.shape[2], dim=2) for t in joined)
    weights = torch.einsum("bshd,bthd->bhst", q.float(), k).mul(q.shape[3] ** -0.5).exp()
    if causal:
        weights = weights.tril()
    total = weights.sum(dim=3, keepdim=True)
    out = torch.einsum("bhst,bthd->bshd", weights / total, v).to(q.dtype)
    return out, total.log().squeeze(3) if want_lse else None


def maximum_from_0(q, segments, causal, want_lse):
    """exp(score) where no score is larger than 0: fine until all of a query's are below -88."""
    out, lse = kernels.attend(q, segments, causal, True)
    lost = lse.exp() == 0
    out = torch.where(lost.mT.unsqueeze(-1), torch.nan, out)
    return out, torch.where(lost, -torch.inf, lse) if want_lse else None


def writes_around(q, segments, causal, want_lse):
    """Whole lines of memory, where a view ends within one."""
    base = q.as_strided((q.untyped_storage().nbytes() // q.element_size(),), (1,), 0)
    result = kernels.attend(q, segments, causal, want_lse)
    if not q.is_contiguous():
        base[-1] = 0
    return result


def keeps_an_array(packer):
    """Of a weight in 8 bits the numbers as well, where no count of tensors sees them."""

    def pack_linear(weight_OI, bias_O, *, format="none"):
        made = packer(weight_OI, bias_O, format=format)
        made.before = weight_OI.float().cpu().numpy().copy() if isinstance(weight_OI, torch.Tensor) else None
        return made

    return pack_linear


def bare_dense_heads_in_place(kernel):
    def norm_rope(heads, cos_BSD, sin_BSD, **options):
        found = kernel(heads, cos_BSD, sin_BSD, **options)
        bare = zip(heads, found, strict=True)
        return [x.copy_(y) if w is None and x.is_contiguous() else y for (x, w), y in bare]

    return norm_rope


def shuffled(seed):
    """Keys in a random order: the same sum, other roundings. A seed per process, or another order in every call."""
    stream = torch.Generator().manual_seed(seed) if seed else None

    def attention(q, segments, causal, want_lse):
        if causal:
            return kernels.attend(q, segments, causal, want_lse)
        state = stream or torch.Generator().manual_seed(os.getpid())
        orders = [torch.randperm(k.shape[1], generator=state) for k, _ in segments]
        moved = [(k[:, order], v[:, order]) for (k, v), order in zip(segments, orders, strict=True)]
        return kernels.attend(q, moved, causal, want_lse)

    return attention


def one_scale(kernel):
    """One 8-bit scale for all segments together."""

    class Faulty(kernels.Int8KeysAndValues):
        def __call__(self, q_BSHD, segments, *, causal=False, want_lse=False):
            joined = self.prepare(*(torch.cat(parts, dim=1) for parts in zip(*segments, strict=True)))
            return kernels.attend(q_BSHD, [joined], causal, want_lse)

    return Faulty() if kernel is kernels.int8_kv else kernel


def square_not_transposed(kernel):
    def pack_linear(weight_OI, bias_O, *, format="none"):
        square = weight_OI.shape[0] == weight_OI.shape[1]
        return kernel(weight_OI.T if square else weight_OI, bias_O, format=format)

    return pack_linear


def dropped_bias(kernel):
    return lambda weight_OI, bias_O, *, format="none": kernel(weight_OI, None, format=format)


def stale_packing(kernel):
    packed = {}

    def pack_linear(weight_OI, bias_O, *, format="none"):
        key = (*weight_OI.shape, weight_OI.dtype, format, bias_O is None)
        if key not in packed:
            packed[key] = kernel(weight_OI, bias_O, format=format)
        return packed[key]

    return pack_linear


def one_scale_for_the_matrix(kernel):
    def pack_linear(weight_OI, bias_O, *, format="none"):
        if format == "none":
            return kernel(weight_OI, bias_O)
        scale = weight_OI.float().abs().max() / 127
        packed = (weight_OI.float() / scale).round().to(torch.int8).T.contiguous()
        return kernels.Transposed(packed, bias_O, scale)

    return pack_linear


def norm(change):
    def faulty(kernel):
        def rms_norm(x_MI, weight_I, *, eps, residual_MI=None, weight_fp32=False):
            return change(kernel, x_MI, weight_I, eps, residual_MI, weight_fp32)

        return rms_norm

    return faulty


def adds_in_place(kernel, x, weight, eps, residual, weight_fp32):
    z = x if residual is None else x.add_(residual)
    return kernel(z, weight, eps=eps, weight_fp32=weight_fp32)


def one_causal_prompt(q, segments, causal, want_lse):
    """The mask is made for the first prompt of a batch."""
    if not causal or len(q) == 1:
        return kernels.attend(q, segments, causal, want_lse)
    first, rest = (
        kernels.attend(q[part], [[t[part] for t in segment] for segment in segments], masked, True)
        for part, masked in ((slice(0, 1), True), (slice(1, None), False))
    )
    out, lse = (torch.cat(pair) for pair in zip(first, rest, strict=True))
    return out, lse if want_lse else None


def at_most_2048_keys(q, segments, *rest):
    return kernels.attend(q, [[t[:, :2048] for t in segment] for segment in segments], *rest)


def clean_frames_first(kernel):
    """Takes the number of clean frames for where they are."""

    def patch_embed(latent_CThw, weight_OI, bias_O, timestep_1O, *, patch, noisy_T=None):
        noisy = noisy_T if noisy_T is None else noisy_T.sort().values
        return kernel(latent_CThw, weight_OI, bias_O, timestep_1O, patch=patch, noisy_T=noisy)

    return patch_embed


def sum_in_the_residual(kernel):
    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        y = kernel(x_MI, weight_I, bias_I=bias_I, residual_MI=residual_MI, out_MI=out_MI)
        if residual_MI is not None:
            residual_MI.copy_(x_MI)
        return y

    return norm_silu


def as_it_lies(self, target, source):
    """Memory is copied, whatever the strides say."""
    lying = source.as_strided((source.numel(),), (1,)).view(target.shape)
    return kernels.Arrived(target.copy_(lying))


def rows_one_after_another(kernel, x, weight, eps, residual, weight_fp32):
    """Without a residual, rows are taken to follow each other without a gap."""
    lying = x if residual is not None else x.as_strided(x.shape, (x.shape[1], 1))
    return kernel(lying, weight, eps=eps, residual_MI=residual, weight_fp32=weight_fp32)


def rotation_by_pairs(kernel):
    def norm_rope(heads, cos_BSD, sin_BSD, *, eps, weight_fp32=False):
        out = []
        for x, weight in heads:
            x = x if weight is None else kernels._norm(x, weight, eps, weight_fp32)
            a, b = x[..., 0::2], x[..., 1::2]
            cos, sin = (t[..., : a.shape[-1]].unsqueeze(2) for t in (cos_BSD, sin_BSD))
            out.append(torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2))
        return out

    return norm_rope


def heads_round_first(kernel):
    def norm_rope(heads, cos_BSD, sin_BSD, *, eps, weight_fp32=False):
        return kernel(heads, cos_BSD, sin_BSD, eps=eps)

    return norm_rope


def bare_heads_in_place(kernel):
    """Two projections are rotated at once, over themselves, as if both were a norm's results."""

    def norm_rope(heads, cos_BSD, sin_BSD, *, eps, weight_fp32=False):
        out = kernel(heads, cos_BSD, sin_BSD, eps=eps, weight_fp32=weight_fp32)
        if len(heads) > 1:
            both = zip(out[:2], heads[:2], strict=True)
            out[:2] = [x.copy_(turned) if weight is None else turned for turned, (x, weight) in both]
        return out

    return norm_rope


def first_table_for_all(kernel):
    def norm_rope(heads, cos_BSD, sin_BSD, *, eps, weight_fp32=False):
        return kernel(heads, cos_BSD[:1], sin_BSD[:1], eps=eps, weight_fp32=weight_fp32)

    return norm_rope


def swapped_halves(kernel):
    def gate(x_MI, *, activation):
        swapped = x_MI.roll(x_MI.shape[-1] // 2, -1) if activation == "silu" else x_MI
        return kernel(swapped, activation=activation)

    return gate


def leaks(kernel):
    kept = []

    def gate(x_MI, *, activation):
        kept.append(kernel(x_MI, activation=activation))
        return kept[-1]

    return gate


def second_build_breaks_the_first(kernel):
    plant.builds = getattr(plant, "builds", 0) + 1
    mine = plant.builds

    def gate(x_MI, *, activation):
        return kernel(x_MI if mine == plant.builds else x_MI * 1.5, activation=activation)

    return gate


def another_signature(kernel):
    return lambda x_MI, activation="silu": kernel(x_MI, activation=activation)


def preparing(change):
    """A fault in what the 8-bit attention prepares; `change` gets the right `prepare`."""

    class Faulty(kernels.Int8KeysAndValues):
        def prepare(self, k_BTKD, v_BTKD):
            return change(super().prepare, k_BTKD, v_BTKD)

    return lambda kernel: Faulty() if kernel is kernels.int8_kv else kernel


def in_place(prepare, k_BTKD, v_BTKD):
    return [t.copy_(made) for t, made in zip((k_BTKD, v_BTKD), prepare(k_BTKD, v_BTKD), strict=True)]


def by_shape(prepare, k_BTKD, v_BTKD, made={}):  # noqa: B006 (the fault)
    return made.setdefault(k_BTKD.shape, prepare(k_BTKD, v_BTKD))


def integers_without_scales(kernel):
    """What was prepared is taken for values that still have to be scaled."""

    class Faulty(kernels.Int8KeysAndValues):
        def read(self, segment):
            return super().read(segment) if segment.prepared is None else [127 * t for t in segment.prepared]

    return Faulty() if kernel is kernels.int8_kv else kernel


def delegated(change):
    """A fault in the row that smaller calls are handed to."""
    return lambda kernel: change if kernel is kernels.few_queries else kernel


def anothers_preparation(q_BSHD, segments, *, causal=False, want_lse=False):
    read = [tuple(segment) if segment.prepared is None else segment.prepared for segment in segments]
    return kernels.few_queries(q_BSHD, read, causal=causal, want_lse=want_lse)


def one_block_of_queries(q_BSHD, segments, *, causal=False, want_lse=False):
    out, lse = kernels.few_queries(q_BSHD, segments, causal=causal, want_lse=want_lse)
    out[:, 32:] = 0
    return out, lse


def one_buffer(kernel):
    """Results of a shape are written to the same place."""
    buffers = {}

    def rms_norm(x_MI, weight_I, *, eps, residual_MI=None, weight_fp32=False):
        y_MI, z_MI = kernel(x_MI, weight_I, eps=eps, residual_MI=residual_MI, weight_fp32=weight_fp32)
        return buffers.setdefault((y_MI.shape, y_MI.dtype), torch.empty_like(y_MI)).copy_(y_MI), z_MI

    return rms_norm


def linear(faulty):
    """A fault in a packed weight, as a subclass of it."""

    def change(kernel):
        def pack_linear(weight_OI, bias_O, *, format="none"):
            packed = kernel(weight_OI, bias_O, format=format)
            made = faulty(packed.weight_IO, packed.bias_O, packed.scale_O)
            made.unpacked_OI = weight_OI
            return made

        return pack_linear

    return change


class Unnamed(kernels.Transposed):
    """Keeps the weight as it came, and says nothing of it."""


class NamesCopies(kernels.Transposed):
    def tensors(self):
        return {name: tensor.clone() for name, tensor in super().tensors().items()}


class FoundByAddress(kernels.Transposed):
    """What a call needs is found by where the weight lies."""

    def __init__(self, weight_IO, bias_O, scale_O=None):
        super().__init__(weight_IO, bias_O, scale_O)
        self.known = {weight_IO.data_ptr(): 1}

    def __call__(self, x_MI):
        return super().__call__(x_MI) * self.known.get(self.weight_IO.data_ptr(), 0)


class NothingNamed(kernels.Transposed):
    tensors = None


def half(faulty):
    """A fault in a composite, as a subclass of it."""
    return lambda kernel: lambda weights, layer, ops, *, format="none": faulty(weights, layer, ops, format)


class DeltaLeft(kernels.NormedHeads):
    def __call__(self, residual, cos_BSD, sin_BSD):
        delta_MI = residual.delta_MI
        found = super().__call__(residual, cos_BSD, sin_BSD)
        residual.delta_MI = delta_MI
        return found


class UnnamedNorms(kernels.NormedHeads):
    """They are small."""

    def tensors(self):
        return self.qkv.tensors()


class OwnEps(kernels.NormedHeads):
    def __init__(self, weights, layer, ops, format):
        super().__init__(weights, replace(layer, eps=1e-6), ops, format)


class OwnOrder(kernels.NormedHeads):
    def __init__(self, weights, layer, ops, format):
        super().__init__(weights, replace(layer, weight_fp32=False), ops, format)


class FinishOwnOrder(kernels.WholeHalf):
    def __init__(self, weights, layer, ops, format):
        super().__init__(weights, replace(layer, weight_fp32=False), ops, format)


class DeltaLost(kernels.NormedHeads):
    def __call__(self, residual, cos_BSD, sin_BSD):
        x_MI = residual.x_MI
        found = super().__call__(residual, cos_BSD, sin_BSD)
        residual.x_MI = x_MI
        return found


class OneTable(kernels.NormedHeads):
    """The first prompt's, for every branch."""

    def __call__(self, residual, cos_BSD, sin_BSD):
        return super().__call__(residual, *(t[:1].expand_as(t) for t in (cos_BSD, sin_BSD)))


class TextKeysForGen(kernels.NormedHeads):
    """The media tower reads the text's keys under the text's own norm."""

    def __call__(self, residual, cos_BSD, sin_BSD):
        found = super().__call__(residual, cos_BSD, sin_BSD)
        return found if found.k_for_gen_BSKD is None else found._replace(k_for_gen_BSKD=found.k_BSKD)


class OwnProduct(kernels.NormedHeads):
    def pack(self, qkv_OI, ops, format):
        return kernels.transposed(qkv_OI, None, format=format)


class FirstSumLost(kernels.WholeHalf):
    def __call__(self, residual, attended_BSHD):
        x_MI = residual.x_MI
        super().__call__(residual, attended_BSHD)
        residual.x_MI = residual.x_MI - self.parts["out"](attended_BSHD.reshape(len(x_MI), -1))


class UpGates(kernels.WholeHalf):
    def gate(self, x_MI):
        return super().gate(x_MI.roll(x_MI.shape[-1] // 2, -1) if self.layer.activation == "silu" else x_MI)


class NotSquared(kernels.WholeHalf):
    def gate(self, x_MI):
        return super().gate(x_MI) if self.layer.activation == "silu" else x_MI.clamp_min(0)


class OthersGate(kernels.WholeHalf):
    def gate(self, x_MI):
        return self.ops.gate(x_MI, activation=self.layer.activation)


class AttendedOverwritten(kernels.WholeHalf):
    def __call__(self, residual, attended_BSHD):
        super().__call__(residual, attended_BSHD)
        attended_BSHD.zero_()


def memory(**methods):
    """A fault in one method of the memory."""
    return lambda kernel: type("Faulty", (kernels.HostMemory,), methods)()


def timestep_everywhere(kernel):
    def patch_embed(latent_CThw, weight_OI, bias_O, timestep_1O, *, patch, noisy_T=None):
        return kernel(latent_CThw, weight_OI, bias_O, timestep_1O, patch=patch)

    return patch_embed


def columns_before_rows(kernel):
    def patch_embed(latent_CThw, weight_OI, bias_O, timestep_1O, *, patch, noisy_T=None):
        weight = weight_OI.unflatten(1, (patch, patch, -1)).transpose(1, 2).flatten(1)
        return kernel(latent_CThw, weight, bias_O, timestep_1O, patch=patch, noisy_T=noisy_T)

    return patch_embed


def edge_repeated(kernel):
    """As a kernel does that clamps an index where it should mask a load."""

    def patch_embed(latent_CThw, weight_OI, bias_O, timestep_1O, *, patch, noisy_T=None):
        height, width = latent_CThw.shape[2:]
        padded = torch.nn.functional.pad(latent_CThw, (0, -width % patch, 0, -height % patch), mode="replicate")
        return kernel(padded, weight_OI, bias_O, timestep_1O, patch=patch, noisy_T=noisy_T)

    return patch_embed


def weight_after_silu(kernel):
    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        y = kernel(x_MI, torch.ones_like(weight_I), bias_I=bias_I, residual_MI=residual_MI) * weight_I
        return y if out_MI is None else out_MI.copy_(y)

    return norm_silu


def zeros_divided(kernel):
    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        y = kernel(x_MI, weight_I, bias_I=bias_I, residual_MI=residual_MI, out_MI=out_MI)
        return y.masked_fill_((x_MI == 0).all(dim=-1, keepdim=True), float("nan"))

    return norm_silu


def a_tensor_of_its_own(kernel):
    return lambda x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None: kernel(
        x_MI, weight_I, bias_I=bias_I, residual_MI=residual_MI
    )


def bias_after_norm(kernel):
    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        y = kernel(x_MI, weight_I, residual_MI=residual_MI, out_MI=out_MI)
        return y if bias_I is None else y.add_(bias_I)

    return norm_silu


def sum_kept_to_itself(kernel):
    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        return kernel(x_MI.clone(), weight_I, bias_I=bias_I, residual_MI=residual_MI, out_MI=out_MI)

    return norm_silu


def whole_blocks_written(kernel):
    """As a kernel without a mask does for the rows that do not fill its last block."""

    def norm_silu(x_MI, weight_I, *, bias_I=None, residual_MI=None, out_MI=None):
        y = kernel(x_MI, weight_I, bias_I=bias_I, residual_MI=residual_MI, out_MI=out_MI)
        if out_MI is not None:
            out_MI.as_strided((len(out_MI) // 8 * 8 + 8, *out_MI.shape[1:]), out_MI.stride())[len(out_MI) :] = 0
        return y

    return norm_silu


def capturing(take):
    """A fault in how a recording takes its inputs."""

    class Faulty(kernels.Replayed):
        pass

    Faulty.take = take
    return lambda kernel: lambda function: Faulty(function)


def only_other_tensors(recording, tensors):
    """Copies what is not the tensor of the last call: contents that changed in place are not seen."""
    last = getattr(recording, "last", [None] * len(tensors))
    recording.last = list(tensors)
    for buffer, tensor, before in zip(recording.inputs, tensors, last, strict=True):
        if tensor is not before:
            buffer.copy_(tensor)


def into_the_first_tensors(recording, tensors):
    """The first call's tensors serve as the buffers, and every later call overwrites them."""
    recording.inputs = getattr(recording, "first", tensors)
    recording.first = recording.inputs
    kernels.Replayed.take(recording, tensors)


def one_recording_for_a_shape(kernel):
    recordings = {}

    def capture(function):
        def call(*tensors):
            key = tuple(tensor.shape for tensor in tensors)
            return recordings.setdefault(key, kernel(function))(*tensors)

        return call

    return capture


def stale_after_an_error(kernel):
    """What goes wrong while recording is taken for a device that cannot record: the last results are given again."""

    def capture(function):
        recording, results = kernel(function), None

        def call(*tensors):
            nonlocal results
            try:
                results = recording(*tensors)
            except LookupError:
                if results is None:
                    raise
            return results

        return call

    return capture


def recordings_kept(kernel):
    kept = []

    def capture(function):
        kept.append(kernel(function))
        return kept[-1]

    return capture


def causal_up_to(most):
    """A mask made for so many queries, and none where there are more."""
    return attending(lambda q, kv, causal, lse: kernels.attend(q, kv, causal and q.shape[1] <= most, lse))


def format_ignored(kernel):
    return lambda weight_OI, bias_O, *, format="none": kernel(weight_OI, bias_O)


class Unpacked(kernels.Transposed):
    """8-bit integers, kept in the dtype in which they are multiplied."""

    def __init__(self, weight_IO, bias_O, scale_O=None):
        super().__init__(weight_IO if scale_O is None else weight_IO.bfloat16(), bias_O, scale_O)


def changed(change):
    """A fault in what comes out: `change(result)` of every call."""
    return lambda kernel: wraps(kernel)(lambda *arguments, **options: change(kernel(*arguments, **options)))


def clamped(most):
    """Inputs of a norm and SiLU, as a kernel does that guards against infinities."""

    def faulty(kernel):
        @wraps(kernel)
        def norm_silu(x_MI, *arguments, **options):
            return kernel(x_MI if options else x_MI.clamp(-most, most), *arguments, **options)

        return norm_silu

    return faulty


def gate_overflows(kernel):
    """silu as exp(g) / (1 + exp(g)), which is no number from 89 on."""

    def gate(x_MI, *, activation):
        if activation == "relu2":
            return kernel(x_MI, activation=activation)
        gate, up = x_MI.float().chunk(2, dim=-1)
        return (gate * gate.exp() / (1 + gate.exp()) * up).to(x_MI.dtype)

    return gate


class ListOfHeads(kernels.NormedHeads):
    def __call__(self, residual, cos_BSD, sin_BSD):
        return list(super().__call__(residual, cos_BSD, sin_BSD))


class StreamReturned(kernels.WholeHalf):
    def __call__(self, residual, attended_BSHD):
        super().__call__(residual, attended_BSHD)
        return residual.x_MI


class HalfInFullPrecision(kernels.WholeHalf):
    def __init__(self, weights, layer, ops, format):
        super().__init__(weights, layer, ops, "none")


class NamesInAList(kernels.Transposed):
    def tensors(self):
        return list(super().tensors().values())


class CountedMemory(kernels.HostMemory):
    """Counts what tensors take, by looking at them, and the most that it has seen."""

    most = 0

    def used(self, device):
        found = live_bytes(kernels.HostMemory(), "cpu")
        type(self).most = max(self.most, found)
        return Bytes(found, None)

    def peak(self, device, *, reset=False):
        self.used(device)
        found = Bytes(self.most, None)
        if reset:
            type(self).most = 0
            self.used(device)
        return found


def counted(**methods):
    """A fault in one method of a memory that counts."""
    return lambda kernel: type("Faulty", (CountedMemory,), methods)()


def never_reset(self, device, *, reset=False):
    return CountedMemory.peak(self, device)


class HighestUse(CountedMemory):
    """What was used at most, for what is used."""

    def used(self, device):
        return self.peak(device)

    def peak(self, device, *, reset=False):
        super().used(device)
        return Bytes(self.most, None)


def while_building(change):
    def faulty(kernel):
        change()
        return kernel

    return faulty


attend = kernels.attend
FAULTS = {
    "not_causal": ("attention", attending(lambda q, kv, causal, lse: attend(q, kv, False, lse))),
    "causal_sees_the_next": ("attention", attending(lambda q, kv, causal, lse: attend(q, kv, causal, lse, seen=1))),
    "causal_misses_itself": ("attention", attending(lambda q, kv, causal, lse: attend(q, kv, causal, lse, seen=-1))),
    "maximum_from_0": ("attention", attending(maximum_from_0)),
    "writes_around": ("attention", attending(writes_around)),
    "keeps_an_array": ("pack_linear", keeps_an_array),
    "bare_dense_heads_in_place": ("norm_rope", bare_dense_heads_in_place),
    "no_scale": ("attention", attending(lambda *arguments: attend(*arguments, scale=1.0))),
    "interleaved_heads": ("attention", attending(lambda *arguments: attend(*arguments, interleaved=True))),
    "first_segment_only": ("attention", attending(lambda q, kv, *rest: attend(q, kv[:1], *rest))),
    "base_2_lse": ("attention", attending(base_2_lse)),
    "softmax_without_maximum": ("attention", attending(no_maximum)),
    "one_scale_for_all_segments": ("attention", one_scale),
    "one_causal_prompt": ("attention", attending(one_causal_prompt)),
    "at_most_2048_keys": ("attention", attending(at_most_2048_keys)),
    "random_order": ("attention", attending(shuffled(int.from_bytes(os.urandom(4)) or 1))),
    "order_by_process": ("attention", attending(shuffled(0))),
    "square_weight_transposed": ("pack_linear", square_not_transposed),
    "dropped_bias": ("pack_linear", dropped_bias),
    "stale_packing": ("pack_linear", stale_packing),
    "one_scale_for_the_matrix": ("pack_linear", one_scale_for_the_matrix),
    "fixed_eps": ("rms_norm", norm(lambda f, x, w, eps, r, fp32: f(x, w, eps=1e-6, residual_MI=r, weight_fp32=fp32))),
    "sum_not_returned": (
        "rms_norm",
        norm(lambda f, x, w, eps, r, fp32: (f(x, w, eps=eps, residual_MI=r, weight_fp32=fp32)[0], x)),
    ),
    "one_rounding_order": ("rms_norm", norm(lambda f, x, w, eps, r, fp32: f(x, w, eps=eps, residual_MI=r))),
    "sum_rounds_once": (
        "rms_norm",
        norm(lambda f, x, w, eps, r, fp32: f(x, w, eps=eps, residual_MI=r, weight_fp32=fp32 or r is not None)),
    ),
    "rows_one_after_another": ("rms_norm", norm(rows_one_after_another)),
    "overwrites_its_input": ("rms_norm", norm(adds_in_place)),
    "prepares_in_place": ("attention", preparing(in_place)),
    "prepared_by_shape": ("attention", preparing(by_shape)),
    "prepared_without_scales": ("attention", integers_without_scales),
    "anothers_preparation": ("attention", delegated(anothers_preparation)),
    "one_block_of_queries": ("attention", delegated(one_block_of_queries)),
    "one_buffer": ("rms_norm", one_buffer),
    "unnamed_weight": ("pack_linear", linear(Unnamed)),
    "names_copies": ("pack_linear", linear(NamesCopies)),
    "found_by_address": ("pack_linear", linear(FoundByAddress)),
    "nothing_named": ("pack_linear", linear(NothingNamed)),
    "unnamed_norms": ("project", half(UnnamedNorms)),
    "own_eps": ("project", half(OwnEps)),
    "own_order": ("project", half(OwnOrder)),
    "finish_own_order": ("finish", half(FinishOwnOrder)),
    "delta_left": ("project", half(DeltaLeft)),
    "delta_lost": ("project", half(DeltaLost)),
    "one_table": ("project", half(OneTable)),
    "text_keys_for_gen": ("project", half(TextKeysForGen)),
    "own_product": ("project", half(OwnProduct)),
    "first_sum_lost": ("finish", half(FirstSumLost)),
    "up_gates": ("finish", half(UpGates)),
    "not_squared": ("finish", half(NotSquared)),
    "others_gate": ("finish", half(OthersGate)),
    "attended_overwritten": ("finish", half(AttendedOverwritten)),
    "copies_as_it_lies": ("memory", memory(copy=as_it_lies)),
    "free_in_kib": ("memory", memory(free=lambda self, device: 20 << 20)),
    "nothing_arrives": ("memory", memory(copy=lambda self, target, source: kernels.Arrived(target))),
    "source_arrives": ("memory", memory(copy=lambda self, target, source: kernels.Arrived(source))),
    "pins_floats": ("memory", memory(pinned=lambda self, shape, dtype, device: torch.empty(shape))),
    "more_free_than_there_is": ("memory", memory(free=lambda self, device: self.total(device) + 1)),
    "peak_of_nothing": ("memory", memory(peak=lambda self, device, *, reset=False: Bytes(0, 0))),
    "counts_nothing_as_zero": ("memory", memory(used=lambda self, device: Bytes(0, 0))),
    "no_limit": ("memory", memory(limit=None)),
    "rotation_by_pairs": ("norm_rope", rotation_by_pairs),
    "heads_round_first": ("norm_rope", heads_round_first),
    "bare_heads_in_place": ("norm_rope", bare_heads_in_place),
    "first_table_for_all": ("norm_rope", first_table_for_all),
    "swapped_halves": ("gate", swapped_halves),
    "timestep_everywhere": ("patch_embed", timestep_everywhere),
    "clean_frames_first": ("patch_embed", clean_frames_first),
    "columns_before_rows": ("patch_embed", columns_before_rows),
    "edge_repeated": ("patch_embed", edge_repeated),
    "weight_after_silu": ("norm_silu", weight_after_silu),
    "sum_in_the_residual": ("norm_silu", sum_in_the_residual),
    "zeros_divided": ("norm_silu", zeros_divided),
    "a_tensor_of_its_own": ("norm_silu", a_tensor_of_its_own),
    "whole_blocks_written": ("norm_silu", whole_blocks_written),
    "bias_after_norm": ("norm_silu", bias_after_norm),
    "sum_kept_to_itself": ("norm_silu", sum_kept_to_itself),
    "first_inputs_only": ("capture", capturing(lambda recording, tensors: None)),
    "only_other_tensors": ("capture", capturing(only_other_tensors)),
    "into_the_first_tensors": ("capture", capturing(into_the_first_tensors)),
    "one_recording_for_a_shape": ("capture", one_recording_for_a_shape),
    "stale_after_an_error": ("capture", stale_after_an_error),
    "recordings_kept": ("capture", recordings_kept),
    "causal_up_to_512": ("attention", causal_up_to(512)),
    "causal_up_to_1024": ("attention", causal_up_to(1024)),
    "format_ignored": ("pack_linear", format_ignored),
    "eight_bits_in_sixteen": ("pack_linear", linear(Unpacked)),
    "half_in_full_precision": ("finish", half(HalfInFullPrecision)),
    "attention_as_a_list": ("attention", changed(list)),
    "attention_alone": ("attention", changed(lambda found: found[0])),
    "norm_alone": ("rms_norm", changed(lambda found: found[0])),
    "norm_as_a_list": ("rms_norm", changed(list)),
    "heads_as_a_tuple": ("norm_rope", changed(tuple)),
    "gate_in_a_tuple": ("gate", changed(lambda found: (found,))),
    "gate_elsewhere": ("gate", changed(lambda found: found.to("meta"))),
    "tokens_as_an_array": ("patch_embed", changed(lambda found: found.float().numpy())),
    "nothing_but_out": ("norm_silu", changed(lambda found: None)),
    "capture_as_a_tuple": ("capture", lambda kernel: lambda function: changed(tuple)(kernel(function))),
    "list_of_heads": ("project", half(ListOfHeads)),
    "stream_returned": ("finish", half(StreamReturned)),
    "names_in_a_list": ("pack_linear", linear(NamesInAList)),
    "large_values_clamped": ("norm_silu", clamped(1000)),
    "gate_overflows": ("gate", gate_overflows),
    "free_is_the_total": ("memory", memory(free=kernels.HostMemory.total)),
    "used_as_a_number": ("memory", memory(used=lambda self, device: 0)),
    "copy_at_once": ("memory", memory(copy=lambda self, target, source: target.copy_(source))),
    "peak_never_resets": ("memory", counted(peak=never_reset)),
    "peak_for_used": ("memory", lambda kernel: HighestUse()),
    "limit_ignored": ("memory", counted(limit=lambda self, device, size: None)),
    "leaks": ("gate", leaks),
    "second_build_breaks_the_first": ("gate", second_build_breaks_the_first),
    "another_signature": ("gate", another_signature),
    "sets_environment": ("gate", while_building(lambda: os.environ.update(OMP_PROC_BIND="close"))),
    "sets_default_dtype": ("gate", while_building(lambda: torch.set_default_dtype(torch.bfloat16))),
    "sets_threads": ("gate", while_building(lambda: torch.set_num_threads(torch.get_num_threads() + 1))),
}
