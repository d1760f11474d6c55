"""The conformance kit, judged: a correct device passes all of it, every planted fault is found by the test that is
named after it, and nothing of the kit can be left out without saying so."""

from __future__ import annotations

import json
import os
import pkgutil
import re
from importlib import import_module
from pathlib import Path

import pytest
from command import cosmos3

from cosmos3_core import testing
from cosmos3_core.contract import OPS
from cosmos3_core.quant import FORMATS
from cosmos3_core.reference import build_ops
from cosmos3_core.testing import suite
from cosmos3_core.testing.cases import Here
from cosmos3_core.testing.suite.composites import FINISHES, PROJECTS

ROOT = Path(__file__).parents[1]


@pytest.fixture
def kit(tmp_path):
    """Runs the kit, or one test of it, in this process and returns its record: `exit_status`, and the outcome of every
    test by name."""

    def run(backend: str, keyword: str = "", test: str = "") -> dict:
        file = tmp_path / "record.json"
        # Without the collections that pytest makes at the end, to warn of what is thrown away with an error in it.
        alone = [
            "-c",
            str(testing.ALONE),
            "--noconftest",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:unraisableexception",
            "-q",
        ]
        options = ["--tb=line", "-p", "cosmos3_core.testing.plugin", "--backend", backend, "--record", str(file)]
        pytest.main([f"{suite.__file__}::{test}" if test else suite.__file__, *alone, *options, "-k", keyword])
        return json.loads(file.read_text())

    return run


def outcomes(record: dict, outcome: str) -> dict[str, str]:
    return {name: test.get("reason", "") for name, test in record["tests"].items() if test["outcome"] == outcome}


def test_a_correct_device_passes_everything(acme, kit):
    record = kit("acme")
    assert not outcomes(record, "failed") and record["exit_status"] == 0
    assert {name.partition("[")[0] for name in record["tests"]} == set(suite.TESTS)
    assert all(outcomes(record, "skipped").values()), "a skip has its reason"
    assert "test_attention_parity[online_softmax-bfloat16-gqa32_8-ragged]" in outcomes(record, "passed")
    assert "test_linear_parity[transposed-bfloat16-int8-o256_i256-bias]" in outcomes(record, "passed")
    measured = record["tests"]["test_deterministic_rows_are_across_processes[gate-exp_gate]"]["measured"]
    assert measured == {"bit_equal": True}

    fingerprint = record["fingerprint"]
    assert fingerprint["backend"]["package"] == "cosmos3-acme" and len(fingerprint["backend"]["sources"]) == 64
    assert fingerprint["device"]["versions"] == {"driver": "3.1"} and fingerprint["versions"]["torch"]
    assert [row["name"] for row in fingerprint["rows"]][:2] == ["online_softmax", "few_queries"]
    assert record["selected"] is None and record["started"] <= record["finished"]


def test_the_kit_has_a_case_for_every_op_and_hides_no_test():
    """A test of the same name in two of its modules would hide one of them from whoever star-imports the kit."""
    assert set(suite.CASES) == set(OPS)
    modules = [import_module(f"{suite.__name__}.{found.name}") for found in pkgutil.iter_modules(suite.__path__)]
    assert sorted(suite.TESTS) == sorted(name for module in modules for name in vars(module) if name[:5] == "test_")


def test_the_reference_passes_its_own_kit(kit):
    few = "".join(f" and not {name}" for name in ("fp8", "fp4", "nf4", "q4_0", "q5_1", "q6_k", "q8_0", "w4a8", "asym"))
    record = kit("reference", f"((parity and not transformer) or comm or memory or fuse or tensors or fresh){few}")
    assert not outcomes(record, "failed") and len(outcomes(record, "passed")) > 200
    assert "test_comm_between_processes[torch-exchange]" in outcomes(record, "passed")


@pytest.mark.parametrize("format", [name for name, format in FORMATS.items() if not format.static])
@pytest.mark.parametrize("case", [PROJECTS[3], FINISHES[0], FINISHES[2]], ids=lambda case: case.id)
def test_eager_torch_in_a_format_is_within_the_composites_bounds(format, case):
    """Whose products lose what the format's reference numerics lose, and which do all else in bf16."""
    ops = build_ops()
    here = Here("bfloat16", "cpu", (format,), lambda format, activation: ops)
    half = "project" if case in PROJECTS else "finish"
    given = {
        "kernel": None,
        "dtype": "bfloat16",
        "format": format,
        "op": getattr(ops, half),
        "here": here,
        "case": case,
    }
    getattr(suite, f"test_{half}_parity")(**given)


# Fault: the test that has to find it, and what it says.
FAULTS = {
    "not_causal": ("test_causal_attention_sees_no_later_key[online_softmax-bfloat16]", "changed outputs before"),
    "causal_sees_the_next": ("test_causal_attention_sees_no_later_key[online_softmax-bfloat16]", "keys from 1 on"),
    "causal_misses_itself": ("test_causal_attention_sees_its_own_key[online_softmax-bfloat16]", "last position"),
    "no_scale": ("test_attention_parity[online_softmax-bfloat16-gqa32_8-batch2]", "relative error"),
    "interleaved_heads": ("test_attention_reads_the_key_head_of_its_group[online_softmax-bfloat16]", "[0, 1, 2, 3"),
    "first_segment_only": ("test_attention_reads_every_segment[online_softmax-bfloat16]", "segment 1 of 3"),
    "base_2_lse": ("test_attention_log_sum_exp[online_softmax-bfloat16-gqa32_8-batch2]", "lse is"),
    "softmax_without_maximum": ("test_attention_parity[online_softmax-bfloat16-gqa32_8-keys50x]", "relative error"),
    "one_scale_for_all_segments": ("test_attention_parity[int8_kv-bfloat16-gqa32_8-values50x]", "relative error"),
    "one_causal_prompt": ("test_attention_parity[online_softmax-bfloat16-gqa32_8-causal_batch2]", "relative error"),
    "at_most_2048_keys": ("test_attention_parity[online_softmax-bfloat16-gqa32_8-many_keys]", "relative error"),
    "random_order": ("test_deterministic_rows_are_in_one_process[attention-online_softmax]", "a repetition"),
    "order_by_process": ("test_deterministic_rows_are_across_processes[attention-online_softmax]", "another process"),
    "square_weight_transposed": ("test_linear_weight_is_not_transposed[transposed-bfloat16-none]", "relative error"),
    "dropped_bias": ("test_linear_adds_its_bias[transposed-bfloat16-none]", "gives the bias"),
    "stale_packing": ("test_linear_packing_is_not_stale[transposed-bfloat16-int8]", "relative error"),
    "one_scale_for_the_matrix": ("test_linear_parity[transposed-bfloat16-int8-o256_i256]", "relative error"),
    "fixed_eps": ("test_rms_norm_eps[fused_norm-bfloat16]", "relative error"),
    "sum_not_returned": ("test_rms_norm_parity[fused_norm-bfloat16-residual-round_first]", "x + residual"),
    "prepares_in_place": ("test_attention_prepares_each_segment_by_itself[int8_kv-bfloat16]", "changed its inputs"),
    "prepared_by_shape": ("test_attention_prepares_each_segment_by_itself[int8_kv-bfloat16]", "relative error"),
    "prepared_without_scales": (
        "test_attention_with_a_static_segment[int8_kv-bfloat16-gqa32_8-ragged]",
        "relative error",
    ),
    "anothers_preparation": ("test_attention_prepares_for_no_one_else[few_queries-bfloat16]", "for another row"),
    "one_block_of_queries": ("test_attention_hands_over_smaller_calls[online_softmax-bfloat16]", "relative error"),
    "delegates_nothing": ("test_rows_are_well_formed", "fewer than 0 queries"),
    "one_buffer": ("test_results_are_fresh[rms_norm-fused_norm]", "an earlier result"),
    "unnamed_weight": ("test_tensors_are_all_that_is_held[pack_linear-transposed-bfloat16-int8]", "are named"),
    "names_copies": ("test_tensors_are_what_a_call_reads[pack_linear-transposed-bfloat16-none]", "weight is named"),
    "found_by_address": ("test_tensors_can_be_moved[pack_linear-transposed-bfloat16-int8]", "is not read"),
    "nothing_named": ("test_signature_is_the_protocols[pack_linear-transposed]", "Linear.tensors is missing"),
    "unnamed_norms": ("test_tensors_are_all_that_is_held[project-normed_heads-bfloat16-none]", "are named"),
    "own_eps": ("test_project_parity[normed_heads-bfloat16-none-one_branch-no_delta]", "relative error"),
    "own_order": (
        "test_composites_round_in_the_order_asked[project-normed_heads-bfloat16-none-round_once]",
        "elements differ",
    ),
    "finish_own_order": (
        "test_composites_round_in_the_order_asked[finish-whole_half-bfloat16-none-round_once]",
        "elements differ",
    ),
    "delta_left": ("test_project_leaves_the_sum_in_the_stream[normed_heads-bfloat16-none-two_branches]", "a delta"),
    "delta_lost": (
        "test_project_leaves_the_sum_in_the_stream[normed_heads-bfloat16-int8-two_branches]",
        "not x + delta",
    ),
    "one_table": ("test_project_parity[normed_heads-bfloat16-none-two_branches]", "q_BSHD: relative error"),
    "text_keys_for_gen": ("test_project_parity[normed_heads-bfloat16-none-k_for_gen]", "k_for_gen_BSKD: relative"),
    "own_product": ("test_composites_fuse_what_they_say[project-normed_heads-bfloat16-int8]", "pack_linear itself"),
    "first_sum_lost": ("test_finish_parity[whole_half-bfloat16-none-gated]", "stream: relative error"),
    "up_gates": ("test_finish_parity[whole_half-bfloat16-int8-gated]", "stream: relative error"),
    "not_squared": ("test_finish_parity[whole_half-bfloat16-none-relu2]", "stream: relative error"),
    "others_gate": ("test_composites_fuse_what_they_say[finish-whole_half-bfloat16-none]", "it fuses gate, and asks"),
    "attended_overwritten": ("test_inputs_are_left_alone[finish-whole_half]", "overwritten"),
    "copies_as_it_lies": ("test_memory_copies_arrive[host-torch.bfloat16]", "a view has not arrived"),
    "free_in_kib": ("test_memory_counts_in_bytes[host]", "bytes were free"),
    "nothing_arrives": ("test_memory_copies_arrive[host-torch.bfloat16]", "has arrived"),
    "source_arrives": ("test_memory_copies_arrive[host-torch.uint8]", "not its target"),
    "pins_floats": ("test_memory_pins_what_the_host_can_write[host]", "asked for torch.bfloat16"),
    "more_free_than_there_is": ("test_memory_free_is_part_of_the_total[host]", "bytes are free of"),
    "counts_nothing_as_zero": ("test_memory_counts_what_tensors_take[host]", "bytes are used with a tensor"),
    "no_limit": ("test_signature_is_the_protocols[memory-host]", "Memory.limit is missing"),
    "maximum_is_a_sum": ("test_comm_between_processes[gloo-all_reduce]", "all_reduce by max of"),
    "processes_of_all": ("test_comm_between_processes[gloo-group]", "process 1: "),
    "one_buffer_to_gather": ("test_comm_between_processes[gloo-fresh]", "the first result"),
    "parts_are_equal": ("test_comm_between_processes[gloo-all_to_all_uneven]", "the process ended before it"),
    "one_rounding_order": ("test_rms_norm_rounds_in_the_order_asked[fused_norm-bfloat16-round_once]", "differ"),
    "rows_one_after_another": ("test_rms_norm_of_views[fused_norm-bfloat16-plain]", "a view gives another"),
    "overwrites_its_input": ("test_inputs_are_left_alone[rms_norm-fused_norm]", "overwritten"),
    "rotation_by_pairs": ("test_rope_rotates_halves[complex_rope-bfloat16]", "a quarter turn"),
    "heads_round_first": (
        "test_norm_rope_rounds_in_the_order_asked[complex_rope-bfloat16-round_once]",
        "elements differ",
    ),
    "first_table_for_all": ("test_norm_rope_parity[complex_rope-bfloat16-b2_two_tables-round_once]", "relative error"),
    "swapped_halves": ("test_silu_is_on_the_first_half[exp_gate-bfloat16]", "14.6"),
    "timestep_everywhere": (
        "test_patch_embed_parity[strided_convolution-bfloat16-even-first_clean]",
        "relative error",
    ),
    "clean_frames_first": (
        "test_patch_embed_of_noisy_frames_anywhere[strided_convolution-bfloat16-torch.float32]",
        "relative error",
    ),
    "columns_before_rows": ("test_patch_embed_orders_features[strided_convolution-bfloat16]", "second token"),
    "edge_repeated": ("test_patch_embed_parity[strided_convolution-bfloat16-odd-noisy]", "relative error"),
    "weight_after_silu": ("test_norm_silu_parity[fused_norm_silu-bfloat16-256]", "relative error"),
    "sum_in_the_residual": ("test_norm_silu_adds_first[fused_norm_silu-bfloat16-residual]", "was overwritten"),
    "zeros_divided": ("test_norm_silu_parity[fused_norm_silu-bfloat16-256]", "relative error"),
    "a_tensor_of_its_own": ("test_norm_silu_writes_where_it_is_told[fused_norm_silu-bfloat16]", "is not out_MI"),
    "whole_blocks_written": ("test_norm_silu_writes_where_it_is_told[fused_norm_silu-bfloat16]", "rows around"),
    "bias_after_norm": ("test_norm_silu_adds_first[fused_norm_silu-bfloat16-bias]", "relative error"),
    "sum_kept_to_itself": ("test_norm_silu_adds_first[fused_norm_silu-bfloat16-both]", "x does not hold the sum"),
    "first_inputs_only": ("test_capture_follows_its_inputs[replayed-bfloat16]", "call 2"),
    "only_other_tensors": ("test_capture_follows_its_inputs[replayed-bfloat16]", "changed in place"),
    "into_the_first_tensors": ("test_inputs_are_left_alone[capture-replayed]", "overwritten"),
    "one_recording_for_a_shape": ("test_captures_are_apart[replayed-bfloat16]", "what another should"),
    "stale_after_an_error": ("test_capture_raises_what_its_function_raises[replayed-bfloat16-2]", "LookupError"),
    "recordings_kept": ("test_capture_gives_its_memory_back[replayed-bfloat16]", "outlive"),
    "causal_up_to_512": ("test_causal_attention_of_many_queries[online_softmax-bfloat16-600]", "query 0 of 600"),
    "causal_up_to_1024": ("test_causal_attention_of_many_queries[online_softmax-bfloat16-2100]", "query 0 of 2100"),
    "format_ignored": (
        "test_weights_take_what_their_format_says[pack_linear-transposed-bfloat16-int8]",
        "is the full weight kept?",
    ),
    "eight_bits_in_sixteen": (
        "test_weights_take_what_their_format_says[pack_linear-transposed-bfloat16-int8]",
        "weights in int8 take 66,560",
    ),
    "half_in_full_precision": (
        "test_weights_take_what_their_format_says[finish-whole_half-bfloat16-int8]",
        "is the full weight kept?",
    ),
    "attention_as_a_list": ("test_results_are_what_the_protocol_says[attention-online_softmax]", "a list, not tuple"),
    "attention_alone": ("test_results_are_what_the_protocol_says[attention-online_softmax]", "a Tensor, not tuple"),
    "norm_alone": ("test_results_are_what_the_protocol_says[rms_norm-fused_norm]", "a Tensor, not tuple"),
    "norm_as_a_list": ("test_results_are_what_the_protocol_says[rms_norm-fused_norm]", "a list, not tuple"),
    "heads_as_a_tuple": ("test_results_are_what_the_protocol_says[norm_rope-complex_rope]", "a tuple, not list"),
    "gate_in_a_tuple": ("test_results_are_what_the_protocol_says[gate-exp_gate]", "a tuple, not Tensor"),
    "gate_elsewhere": (
        "test_results_are_what_the_protocol_says[gate-exp_gate]",
        "a tensor on meta, and its inputs are on cpu",
    ),
    "tokens_as_an_array": (
        "test_results_are_what_the_protocol_says[patch_embed-strided_convolution]",
        "a ndarray, not Tensor",
    ),
    "nothing_but_out": ("test_results_are_what_the_protocol_says[norm_silu-fused_norm_silu]", "None, not Tensor"),
    "capture_as_a_tuple": ("test_results_are_what_the_protocol_says[capture-replayed]", "a tuple, not list"),
    "list_of_heads": ("test_results_are_what_the_protocol_says[project-normed_heads]", "a list, not Projected"),
    "stream_returned": ("test_results_are_what_the_protocol_says[finish-whole_half]", "a Tensor, not None"),
    "names_in_a_list": ("test_tensors_can_be_moved[pack_linear-transposed-bfloat16-none]", "tensors() returns a list"),
    "large_values_clamped": ("test_norm_silu_of_large_values[fused_norm_silu-bfloat16-rows]", "relative error"),
    "gate_overflows": ("test_gate_of_large_values[exp_gate-bfloat16-silu]", "is nan"),
    "free_is_the_total": ("test_memory_free_is_part_of_the_total[host]", "a tensor takes"),
    "used_as_a_number": ("test_memory_answers_as_its_protocol_says[host]", "Memory.used returns an int, not Bytes"),
    "copy_at_once": ("test_memory_answers_as_its_protocol_says[host]", "Memory.copy returns a Tensor, not Pending"),
    "peak_never_resets": ("test_memory_counts_what_tensors_take[host]", "after a reset"),
    "peak_for_used": ("test_memory_counts_what_tensors_take[host]", "bytes are used when it is gone"),
    "limit_ignored": ("test_memory_is_limited_or_says_that_it_cannot_be[host]", "limit() was given"),
    "swapped_ring": ("test_comm_between_processes[gloo-exchange]", "exchange from"),
    "leaks": ("test_memory_is_returned_after_a_job[gate-exp_gate]", "bytes of tensors"),
    "second_build_breaks_the_first": ("test_building_twice_is_harmless[gate-exp_gate]", "before the second"),
    "another_signature": ("test_signature_is_the_protocols[gate-exp_gate]", "activation"),
    "sets_environment": ("test_kernels_change_nothing_global[gate-exp_gate]", "OMP_PROC_BIND"),
    "sets_default_dtype": ("test_kernels_change_nothing_global[gate-exp_gate]", "default_dtype"),
    "sets_threads": ("test_kernels_change_nothing_global[gate-exp_gate]", "get_num_threads"),
    "probe_seeds": ("test_probe_changes_nothing_global", "rng_state"),
    "probe_raises": ("test_probe_finds_a_device_or_says_why_not", "libacme.so.3"),
    "imports_torch": ("test_import_has_no_side_effects", "imports torch"),
    "prints": ("test_import_has_no_side_effects", "all rights reserved"),
    "refuses_without_reason": ("test_refusals_give_reasons[attention-online_softmax-head_dim]", "answered ''"),
    "refuse_raises": ("test_refusals_give_reasons[attention-online_softmax-head_dim]", "ValueError"),
    "unknown_dtype": ("test_rows_are_well_formed", "float64"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_found(acme, kit, fault):
    import torch

    threads = torch.get_num_threads()
    acme(fault)
    name, said = FAULTS[fault]
    try:
        record = kit("acme", test=name)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(threads)
    failed = outcomes(record, "failed")
    assert name in failed and record["exit_status"] == 1
    assert said in failed[name]


# A vendor's folder -----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(acme, tmp_path, capsys):
    """Run a vendor's two lines and whatever follows them: (exit status, what was printed)."""

    def run(*lines: str, keyword: str = "silu_is_on") -> tuple[int, str]:
        count = len(list(tmp_path.glob("test_*.py")))
        module = tmp_path / f"test_{tmp_path.name}_{count}.py"  # a name of its own: modules stay imported
        module.write_text("\n".join(["from cosmos3_core.testing.suite import *", 'BACKEND = "acme"', *lines, ""]))
        options = ["-c", str(testing.ALONE), "-p", "no:cacheprovider", "-q", "--import-mode=importlib"]
        capsys.readouterr()
        status = pytest.main([str(module), *options, "-k", keyword])
        captured = capsys.readouterr()
        return int(status), captured.out + captured.err

    return run


SWAPPED = "test_silu_is_on_the_first_half[exp_gate-bfloat16]"
LINK = "https://example.com/issues/12"


def test_two_lines_are_a_vendors_folder(folder):
    status, said = folder()
    assert status == 0 and "passed" in said


def test_a_known_failure_is_expected_by_row_or_by_name(acme, folder):
    acme("swapped_halves")
    assert folder(keyword="silu_is_on")[0] == 1
    entry = f'KNOWN_FAILURES = {{"test_silu_is_on_the_first_half[exp_gate]": "notyet: halves are swapped, {LINK}"}}'
    status, said = folder(entry, keyword="silu_is_on")
    assert status == 0 and "2 xfailed" in said
    status, said = folder(f'KNOWN_FAILURES = {{"{SWAPPED}": "never: no halves, {LINK}"}}', keyword="silu_is_on")
    assert status == 1 and "1 failed" in said and "1 xfailed" in said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([f'KNOWN_FAILURES = {{"{SWAPPED}": "notyet: swapped halves, {LINK}"}}'], "XPASS(strict)"),
        ([f'KNOWN_FAILURES = {{"test_gate[exp_gate]": "notyet: swapped halves, {LINK}"}}'], "there is no such test"),
        ([f'KNOWN_FAILURES = {{"{SWAPPED}": "later"}}'], "notimpl|notyet|never: reason, link"),
        ([f'KNOWN_FAILURES = {{"{SWAPPED}": "notyet: swapped halves"}}'], "notimpl|notyet|never: reason, link"),
        (["del test_gate_parity"], "test_gate_parity is deleted or overridden"),
        (["def test_gate_parity(): pass"], "test_gate_parity is deleted or overridden"),
        (["import pytest", "pytestmark = pytest.mark.skip"], "KNOWN_FAILURES is the only excuse"),
        (['BACKEND = "acmee"'], "Did you mean acme?"),
        (["BACKEND = None"], "names no backend"),
    ],
)
def test_nothing_is_left_out_in_silence(folder, lines, said):
    status, printed = folder(*lines)
    assert status != 0 and said in printed
    assert "Traceback" not in printed and "INTERNALERROR" not in printed


def test_a_test_is_left_out_with_a_reason(folder):
    known = f'KNOWN_FAILURES = {{"test_gate_parity": "never: the device has no gate, {LINK}"}}'
    assert folder("del test_gate_parity", known)[0] == 0


# The command -----------------------------------------------------------------------------------------------------


def test_check_exits_with_what_the_kit_found(acme, capsys, monkeypatch, tmp_path):
    file = tmp_path / "acme.json"
    code, out, _ = cosmos3(capsys, monkeypatch, "check", "--backend", "acme", "-k", "gate", "--record", file)
    assert code == 0 and "passed" in out
    assert json.loads(file.read_text())["selected"] == "gate"
    acme("swapped_halves")
    code, out, _ = cosmos3(capsys, monkeypatch, "check", "--backend", "acme", "-k", "silu_is_on")
    assert code == 1 and "gate 20 and up 1 give 14.6" in out
    failed = [line for line in out.splitlines() if line.startswith("failed ")]
    assert failed and re.search(r"gate-exp_gate +2 failed", out) and "/" not in "".join(failed)


def test_check_names_its_tests(acme, capsys, monkeypatch, tmp_path):
    """Where somebody has written to the null device, too: no tool reads that as its configuration."""
    (tmp_path / "null").write_text("[pytest\n")
    monkeypatch.setattr(os, "devnull", str(tmp_path / "null"))
    code, out, _ = cosmos3(capsys, monkeypatch, "check", "--backend", "acme", "--list", "-k", "silu_is_on")
    assert code == 0 and out.splitlines() == [
        f"test_silu_is_on_the_first_half[exp_gate-{dtype}]" for dtype in ("float32", "bfloat16")
    ]


def test_check_takes_the_known_failures_of_a_test_module(acme, capsys, monkeypatch, tmp_path):
    acme("swapped_halves")
    module = tmp_path / "test_acme.py"
    module.write_text(
        "from cosmos3_core.testing.suite import *\n"
        f'KNOWN_FAILURES = {{"test_silu_is_on_the_first_half[exp_gate]": "notyet: halves are swapped, {LINK}"}}\n'
    )
    check = ("check", "--backend", "acme", "-k", "silu_is_on", "--module")
    code, out, _ = cosmos3(capsys, monkeypatch, *check, module)
    assert code == 0 and "xfailed" in out
    acme()
    code, out, _ = cosmos3(capsys, monkeypatch, *check, module)
    assert code == 1 and "XPASS(strict)" in out
    code, _, err = cosmos3(capsys, monkeypatch, *check, tmp_path / "none.py")
    assert code == 2 and "there is no such file" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--backend", "acmee"], "Did you mean acme?"),
        (["--backend", "acme", "-k", "no_such_test"], "no test of the kit matches it"),
        (["--backend", "acme", "--record", "/nowhere/at/all.json"], "no file can be written there"),
        (["--backend", "acme", "--record", "pipe"], "it exists and is not an ordinary file"),
        (["--backend", "acme", "--record", "t.py", "--module", "./t.py"], "it is the module of the kit"),
    ],
)
def test_check_refuses_what_it_cannot_do(acme, capsys, monkeypatch, tmp_path, options, said):
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    code, _, err = cosmos3(capsys, monkeypatch, "check", *options)
    assert code == 2 and said in err and "Traceback" not in err


def test_check_without_pytest_names_the_extra(acme, capsys, monkeypatch):
    import importlib.util

    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "pytest" else find(name, *rest)
    )
    code, _, err = cosmos3(capsys, monkeypatch, "check", "--backend", "acme")
    assert code == 2 and "pip install pytest" in err
