"""The table fault × place: each cell names a test that exists, or says why there is none.

A place is where tasks run: in this thread, on this machine (threads and processes), on Ray.
A test that `test_table.py` holds runs in all three, on a *fixed* and a *varying* stage.
"""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
PLACES = ("thread", "local", "ray")
ONE_NODE = "no: there is one node, and its loss is that of the program (kill of everything)"
SAME = "no: decided by the schedule, which is the same everywhere: "
NO_WORKER = "no: there is no worker but the program itself"

TABLE: dict[str, tuple[str, str, str]] = {
    "worker killed in a map task": ("faults/test_table.py::test_the_worker_is_killed",) * 3,
    "worker killed in a reduce task": ("faults/test_table.py::test_the_worker_is_killed",) * 3,
    "worker really killed (SIGKILL)": (
        NO_WORKER,
        "faults/test_leftovers.py::test_a_task_is_struck_once",
        "faults/test_leftovers.py::test_a_task_is_struck_once",
    ),
    "a task really hangs, and is ended": (
        NO_WORKER,
        "faults/test_leftovers.py::test_a_task_is_struck_once",
        "faults/test_leftovers.py::test_a_task_is_struck_once",
    ),
    "nothing left after a part went bad": (
        SAME + "the local cell",
        "faults/test_leftovers.py::test_a_part_goes_bad",
        "faults/test_leftovers.py::test_a_part_goes_bad",
    ),
    "nothing left after an error or an interruption": (
        SAME + "the local cell",
        "faults/test_leftovers.py::test_a_function_fails "
        "faults/test_leftovers.py::test_the_program_is_interrupted",
        "faults/test_leftovers.py::test_a_function_fails "
        "faults/test_leftovers.py::test_the_program_is_interrupted",
    ),
    "worker killed in the middle of a call of several tasks": (
        NO_WORKER,
        "contract/test_runtime.py::"
        "test_a_worker_killed_in_the_middle_of_a_call_takes_no_rows_with_it",
        "contract/test_runtime.py::"
        "test_a_worker_killed_in_the_middle_of_a_call_takes_no_rows_with_it",
    ),
    "worker killed between part and record": (
        "faults/test_table.py::test_the_worker_is_killed_between_its_part_and_its_result",
    ) * 3,
    "killed while publishing": (
        "no: files are published by the program, wherever tasks run",
        "faults/test_sigkill.py::test_killed_while_files_get_their_names "
        "faults/test_sigkill.py::test_killed_between_the_receipt_of_one_file_and_its_name",
        "faults/test_cluster_lost.py::test_a_new_cluster_goes_on_where_the_lost_one_was",
    ),
    "node lost before its parts are read": (
        ONE_NODE, ONE_NODE, "faults/test_nodes.py::test_a_node_is_lost_before_its_parts_are_read",
    ),
    "node lost while its parts are read, fixed": (
        ONE_NODE, ONE_NODE,
        "faults/test_nodes.py::test_a_node_is_lost_after_half_of_its_fixed_parts_were_read",
    ),
    "node lost while its parts are read, varying": (
        ONE_NODE, ONE_NODE,
        "faults/test_nodes.py::test_a_node_is_lost_after_half_of_its_varying_parts_were_read",
    ),
    "node lost after its parts are read": (
        ONE_NODE, ONE_NODE,
        "faults/test_nodes.py::test_a_node_is_lost_after_all_of_its_parts_were_read",
    ),
    "head lost, then resume": (
        ONE_NODE, ONE_NODE,
        "faults/test_cluster_lost.py::test_a_new_cluster_goes_on_where_the_lost_one_was",
    ),
    "SIGKILL of everything, then rerun": (
        "faults/test_sigkill.py::test_a_rerun_gives_the_oracles_rows_and_reuses_what_was_done",
        "faults/test_sigkill.py::test_a_rerun_gives_the_oracles_rows_and_reuses_what_was_done",
        "faults/test_cluster_lost.py::test_a_new_cluster_goes_on_where_the_lost_one_was",
    ),
    "torn write, flipped bit, part deleted": (
        "faults/test_table.py::test_a_part_goes_bad_after_half_of_its_readers",
    ) * 3,
    "damaged twice": (
        SAME + "the local cell", "faults/test_local.py::"
        "test_a_part_that_is_damaged_twice_is_an_error_that_names_it", SAME + "the local cell",
    ),
    "disk full": (
        "faults/test_full_disk.py::test_a_target_that_fills",
        "faults/test_full_disk.py::test_a_data_root_that_fills",
        "faults/test_nodes.py::test_a_disk_full_on_one_node_sends_its_tasks_elsewhere",
    ),
    "a task hangs beside others": ("faults/test_table.py::test_a_task_hangs",) * 3,
    "a task hangs alone": (
        "faults/test_table.py::test_a_task_hangs_with_no_other_to_tell_it_from",
    ) * 3,
    "a function that fails": (
        "faults/test_table.py::test_a_function_that_fails_once_is_not_tried_again",
    ) * 3,
    "a function that always kills its worker": (
        NO_WORKER,
        "faults/test_local.py::test_a_function_that_always_kills_its_worker_ends_with_the_story "
        "faults/test_leftovers.py::test_a_worker_that_is_killed_each_time_ends_with_the_story",
        SAME + "Ray takes ten seconds to replace a worker",
    ),
    "memory exceeded once": ("faults/test_table.py::test_a_task_runs_out_of_memory_once",) * 3,
    "memory exceeded, also alone": (
        "faults/test_table.py::test_a_task_is_too_large_for_the_memory_and_runs_in_pieces",
    ) * 3,
    "a slow node": (
        ONE_NODE, ONE_NODE, "faults/test_nodes.py::test_a_node_that_is_slow_holds_nothing_up",
    ),
    "late success of an attempt given up": (
        SAME + "unit/test_schedule.py::"
        "test_late_success_of_an_attempt_given_up_is_discarded",
    ) * 3,
    "the clock jumps back": (
        SAME + "unit/test_schedule.py::test_a_clock_that_jumps_back_makes_no_task_younger",
    ) * 3,
    "the clock jumps forward": (
        SAME + "unit/test_run.py::test_a_clock_that_jumps_forward_ends_no_task",
    ) * 3,
    "a full object store": (
        "no: Ray has it", "no: Ray has it",
        "oracle/test_ray.py::test_more_rows_move_than_an_object_store_holds",
    ),
    "two sessions on one data root": (
        "faults/test_races.py::test_two_sessions_that_compute_the_same_neither_corrupt_nor_wait",
        "faults/test_races.py::test_two_sessions_that_compute_the_same_neither_corrupt_nor_wait",
        "faults/test_races.py::test_two_programs_on_one_cluster_and_one_data_root",
    ),
    "the data root is cleared meanwhile": (
        "faults/test_gc.py::test_a_run_that_lives_notices_nothing_not_even_what_it_reuses",
        "faults/test_gc.py::test_a_run_that_lives_notices_nothing_not_even_what_it_reuses",
        "no: what they share is the data root, which is the same code everywhere",
    ),
    "parts on a node's own disk, then rerun": (
        SAME + "the local cell",
        "contract/test_kept_parts.py::test_parts_on_the_disks_of_lost_nodes_are_found_again",
        "contract/test_kept_parts.py::test_parts_on_the_disks_of_lost_nodes_are_found_again",
    ),
    "kept parts gone bad, then rerun": (
        SAME + "the local cell",
        "contract/test_kept_parts.py::test_parts_that_went_bad_meanwhile_are_computed_again",
        SAME + "the local cell",
    ),
}  # fmt: skip


def named(cell: str) -> list[str]:
    """The tests that a cell names."""
    return [word for word in cell.replace(SAME, " ").split() if "::test_" in word]


@pytest.mark.parametrize("fault", TABLE)
def test_each_cell_names_a_test_that_exists_or_a_reason(fault: str) -> None:
    assert len(TABLE[fault]) == len(PLACES)
    for cell in TABLE[fault]:
        tests = named(cell)
        assert tests or cell.startswith("no: "), cell
        for test in tests:
            path, name = test.split("::")
            tree = ast.parse((TESTS / path).read_text())
            assert name in {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}, test
