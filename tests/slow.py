"""Tests that `pytest -m "not slow"` leaves out, with the CPU seconds that they take (a test runs on one core or two).

Numbers of e2e, families, gpu_code, opencl, ranks, windows and window_kernels were measured on 2026-12-01; those of
browser, cluster and matrix are estimates from earlier runs, before kernels were compiled once.
"""

from __future__ import annotations

from collections.abc import Mapping

SLOW: Mapping[str, int] = {  # start of a test's id -> CPU seconds of all tests that it stands for
    "tests/browser/": 300,  # Chromium compiles shaders for most of that time
    "tests/cluster/test_ray.py": 60,
    "tests/docs/test_commands.py": 40,
    "tests/e2e/test_advice.py": 45,
    "tests/e2e/test_bad_input.py::test_bad_checkpoint_is_refused_and_nothing_is_damaged[missing shard]": 23,
    "tests/e2e/test_bad_input.py::test_damaged_blob_is_found_named_and_rebuilt": 19,
    "tests/e2e/test_bad_input.py::test_full_disk_fails_clearly_and_goes_on_with_room": 23,
    "tests/e2e/test_bench.py": 17,
    "tests/e2e/test_budget.py": 64,
    "tests/e2e/test_families.py": 29,
    "tests/e2e/test_imported.py": 55,
    "tests/e2e/test_kill.py": 84,
    "tests/e2e/test_main_job.py::test_changing_the_scheme_keeps_fetch_and_convert": 21,
    "tests/e2e/test_main_job.py::test_two_folders_and_two_stores_give_the_same_bytes": 17,
    "tests/e2e/test_methods.py": 41,
    "tests/e2e/test_own_scheme.py": 21,
    "tests/e2e/test_processes.py": 79,
    "tests/e2e/test_quality.py": 23,
    "tests/e2e/test_real_model.py": 65,  # and a download of 98 MB
    "tests/e2e/test_verify.py": 37,
    "tests/fuzz/test_fuzz.py::test_a_minute_of_all_kinds": 120,
    "tests/matrix/": 255,
    "tests/ranks/test_cells.py": 136,
    "tests/ranks/test_ranks.py::test_two_ranks_agree_with_transformers": 32,
    "tests/targets/test_opencl.py": 70,
    "tests/targets/test_products.py": 20,
    "tests/tvm/test_families.py::test_every_path_agrees_with_transformers": 50,
    "tests/tvm/test_flash_attention.py": 30,
    "tests/tvm/test_gpu_code.py::test_a_cuda_library_holds_machine_code_for_each_architecture_and_no_source": 16,
    "tests/tvm/test_gpu_code.py::test_from_sm_90_on_each_kernel_starts_early_and_waits": 10,
    "tests/tvm/test_gpu_code.py::test_products_of_two_gpus_send_what_they_make": 11,
    "tests/tvm/test_gpu_code.py::test_products_that_cannot_send_leave_the_sum_to_a_call": 11,
    "tests/tvm/test_window_kernels.py::test_attention_through_a_window": 15,
    "tests/tvm/test_windows.py": 52,
}


LONG: Mapping[str, int] = {  # units of many tests, none of which is slow -> their CPU seconds
    "tests/targets/": 80,  # beside what SLOW has of it
    "tests/tvm/test_kernels.py": 60,
}
TOGETHER = ("tests/targets/",)  # folders whose files share what a session builds once


def entry_of(test: str) -> str:
    """The entry that a test's id belongs to; "": it is not slow."""
    return next((start for start in SLOW if test.startswith(start)), "")


def unit_of(test: str) -> str:
    """What one process runs from beginning to end: the test's file, or a folder of ``TOGETHER``."""
    return next((folder for folder in TOGETHER if test.startswith(folder)), test.partition("::")[0])
