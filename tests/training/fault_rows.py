"""The faults that a training must survive, what happens here, and the tests that show it."""

from __future__ import annotations

from typing import NamedTuple


class Row(NamedTuple):
    """tests: "path::name", below tests/."""

    fault: str
    outcome: str
    tests: tuple[str, ...]


def of(path: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{path}::test_{name}" for name in names)


SESSION = "training/test_session_transaction.py"
CONFIG = "training/test_session_config.py"
FAULTS = "training/test_faults.py"
OTHER = "training/test_other_models.py"
VERSIONS = "training/test_saved_versions.py"
GUARD = "training/test_guard.py"
STORE = "training/checkpoint/test_checkpoint_store.py"
CRASH = "training/checkpoint/test_checkpoint_crash.py"
DAMAGE = "training/checkpoint/test_checkpoint_damage.py"
VALIDATION = "optimizer/test_optimizer_validation.py"
SAVED = "optimizer/test_optimizer_saved.py"
STATE = "optimizer/test_optimizer_state.py"
ROUTES = "optimizer/test_optimizer_routes.py"
RANKS = "training/test_ranks_faults.py"
LAUNCH = "training/test_ranks_launch.py"
NUMBERS = "training/test_ranks_numbers.py"
SHARDS = "engines/test_shards.py"

ROWS: dict[int, Row] = {
    1: Row(
        "NaN in one element of one gradient",
        "No rank takes the step; no bit of parameters, state, rate or guard moves; tensor and rank are "
        "named.",
        of(SESSION, "nothing_moves_in_a_step_that_is_not_finite")
        + of("optimizer/test_optimizer_transaction.py", "a_non_finite_gradient_moves_not_one_bit")
        + of("engines/test_prepass.py", "one_bad_element_is_seen_wherever_it_is")
        + of(RANKS, "a_gradient_that_is_not_finite_on_one_rank_is_vetoed_on_all"),
    ),
    2: Row(
        "The loss is NaN or infinite, its gradients are not",
        "The same: the step is not taken, and is counted; the rank is named.",
        of(SESSION, "nothing_moves_in_a_step_that_is_not_finite")
        + of(RANKS, "a_loss_that_is_not_finite_names_rank_and_micro_batch"),
    ),
    3: Row(
        "NaN in saved moments or weights",
        "The run is not continued from there; the sentence names the tensors.",
        of(FAULTS, "moments_that_are_not_finite_are_not_continued")
        + of(CONFIG, "weights_that_are_not_finite_are_not_continued")
        + of(STORE, "norms_and_what_is_not_finite_are_told"),
    ),
    4: Row(
        "NaN reaches the statistics of a guard",
        "What is not finite never enters one.",
        of(GUARD, "no_stream_poisons_a_guard", "zclip_survives_a_nan", "a_vetoed_step_enters_no_statistic")
        + of("training/test_health.py", "nothing_poisons_health_and_what_is_restored_goes_on_bitwise"),
    ),
    5: Row(
        "Step after step is vetoed, or spike after spike rolled back",
        "After a limit the run ends in a sentence that says where to look.",
        of(SESSION, "too_many_vetoes_end_the_run_in_a_sentence")
        + of("optimizer/test_optimizer_transaction.py", "too_many_skips_in_a_row_raise")
        + of("training/test_rollback.py", "rollbacks_are_few"),
    ),
    6: Row(
        "A clipping threshold of 0, below 0, or NaN",
        "Refused when the config is read, or the optimizer made.",
        of(FAULTS, "a_clip_that_cannot_be_is_a_sentence")
        + of(VALIDATION, "the_options_beside_the_rule_are_checked"),
    ),
    7: Row(
        "A hyperparameter out of range in one group",
        "Refused with the group's name, at construction, at load and at the step. An eps of 0 "
        "is one, wherever a rule divides by it.",
        of(
            VALIDATION,
            "a_wrong_value_in_a_group_names_the_group",
            "a_value_set_from_outside_is_checked_at_the_step",
        )
        + of(STATE, "a_saved_hyperparameter_out_of_range_is_refused_at_load")
        + of("training/test_run_config.py", "a_mistake_in_the_file_is_one_sentence")
        + of(FAULTS, "an_eps_of_zero_is_a_sentence_that_names_its_group"),
    ),
    8: Row(
        "An unknown key in a config or a group",
        "Refused with its place and the nearest key.",
        of("training/test_run_config.py", "a_mistake_in_the_file_is_one_sentence")
        + of(VALIDATION, "a_misspelt_key_of_a_group_is_offered_its_nearest_name"),
    ),
    9: Row(
        "A parameter that no route claims, or two; a route that claims nothing; tied weights",
        "The first match wins, and a tied weight counts once; the rest is refused with the names.",
        of(
            ROUTES,
            "the_first_match_wins_and_tied_weights_count_once",
            "a_trainable_parameter_that_no_route_claims_is_named",
            "a_route_that_matches_nothing_is_an_error",
            "a_route_hidden_behind_another_matches_nothing",
        ),
    ),
    10: Row(
        "A parameter without gradient, or frozen and trained later",
        "It has state when it is trained, and counts its own steps.",
        of(STATE, "a_frozen_parameter_gets_its_state_when_it_is_trained")
        + of(
            "optimizer/test_optimizer_dropin.py",
            "a_parameter_without_gradient_counts_its_own_steps_as_in_torch",
        )
        + of(GUARD, "adagc_a_tensor_without_gradient_at_first_is_not_held_at_zero"),
    ),
    11: Row(
        "Tensors without dimensions, without elements, of odd sizes; uneven and empty shards",
        "The numbers of the reference, and stored to the bit.",
        of("engines/test_fused.py", "odd_tensors")
        + of("laws/test_law_engines.py", "engine_equals_the_reference_on_any_shapes")
        + of(SHARDS, "parts_equal_the_whole")
        + of(STORE, "every_type_and_shape_is_the_same_bit_by_bit"),
    ),
    12: Row(
        "Parameters in another order",
        "State is matched by name.",
        of(SAVED, "another_order_is_matched_by_name_and_another_naming_by_place")
        + of(
            STATE, "a_permutation_of_names_is_matched_by_name", "a_changed_order_keeps_each_parameter_s_state"
        ),
    ),
    13: Row(
        "Renamed modules, wrapped models",
        "At a border wrappers' names are seen through; a run that is continued refuses other names, unless "
        "`rename` maps them. torch.compile changes none.",
        of("optimizer/test_optimizer_border.py", "wrappers_names_are_seen_through")
        + of(OTHER, "a_save_goes_on_under_new_names", "a_map_that_makes_one_name_of_two_is_a_sentence")
        + of(FAULTS, "another_model_is_refused_when_it_is_loaded")
        + of("models/test_names.py", "a_wrapped_model_has_the_names_of_the_plain_one")
        + of("models/test_model_compile.py", "names_and_class_stay"),
    ),
    14: Row(
        "Another shape, such as a larger vocabulary",
        "Refused when it is loaded, with both shapes; at a border such state begins anew, and is told. A "
        "model folder with fewer tokens than the tokenizer is given rows where `pad_vocab` asks for it.",
        of(FAULTS, "another_model_is_refused_when_it_is_loaded")
        + of(OTHER, "a_folder_with_fewer_tokens_is_given_rows")
        + of(SAVED, "a_mismatch_names_both_sides_and_changes_nothing")
        + of("optimizer/test_optimizer_border.py", "new_ones_reshaped_ones_and_dropped_ones_are_told"),
    ),
    15: Row(
        "State of another optimizer",
        "Refused at load; at a border converted as stated, with a report.",
        of(SAVED, "a_mismatch_names_both_sides_and_changes_nothing")
        + of("optimizer/test_optimizer_border.py", "what_is_converted_is_what_the_new_rule_would_hold_itself")
        + of("optimizer/test_optimizer_torch_state.py", "a_state_that_does_not_fit_is_refused_whole"),
    ),
    16: Row(
        "State of another number format",
        "Refused with both named; state of low precision from torch is widened.",
        of(SAVED, "another_codec_is_a_mismatch")
        + of(
            "optimizer/test_optimizer_codecs.py",
            "a_state_under_other_codecs_is_refused_with_both_named",
            "a_state_of_bfloat16_parameters_is_refused_by_float32_ones",
        )
        + of(
            "optimizer/test_optimizer_torch_state.py",
            "low_precision_state_is_widened_when_taken_and_narrowed_when_given",
        ),
    ),
    17: Row(
        "State missing for some parameters, or of parameters that are not there",
        "Refused with the name.",
        of(FAULTS, "a_state_with_something_missing_or_foreign_is_refused")
        + of(STATE, "a_state_that_lost_a_parameter_is_refused"),
    ),
    18: Row(
        "A run goes on with another number of processes",
        "What was cut is put together and cut anew, its norm compared with the saved one; the numbers are "
        "the run's, to rounding.",
        of(LAUNCH, "a_run_of_two_ranks_is_continued_by_one_and_then_by_three"),
    ),
    19: Row(
        "Killed in the middle of a save",
        "The last whole generation is loaded; what is left of another is told, and removed by the next save. "
        "Every open, write, sync, rename and unlink is tried.",
        of(
            CRASH,
            "killed_at_any_operation",
            "what_is_synced_before_what",
            "leftovers_are_told_and_removed_by_the_next_save",
            "killed_by_the_system_at_any_time",
        )
        + of("training/test_session_resume.py", "killed_again_and_again", "killed_at_every_moment"),
    ),
    20: Row(
        "The same step saved again",
        "Another generation; none is written over.",
        of(CRASH, "the_same_step_again_is_another_generation", "the_last_good_one_is_never_removed"),
    ),
    21: Row(
        "A file cut short",
        "Noticed before anything is changed; the generation before it is used, and that is said.",
        of(DAMAGE, "a_damaged_file_is_refused")
        + of(CONFIG, "a_damaged_generation_is_passed_over_and_told_of"),
    ),
    22: Row(
        "A bit flipped on the disk",
        "The same, by checksums.",
        of(DAMAGE, "any_bit_flip_is_noticed")
        + of(CONFIG, "a_damaged_generation_is_passed_over_and_told_of")
        + of(STORE, "a_disk_that_lies_is_found_out_by_reading_back"),
    ),
    23: Row(
        "A file missing, of another save, or of another rank",
        "Refused, with all that is wrong listed.",
        of(
            DAMAGE,
            "a_damaged_file_is_refused",
            "a_strangers_file_and_a_linked_generation_are_refused",
            "nothing_good_left_lists_everything",
        )
        + of(
            "training/checkpoint/test_checkpoint_ranks_damage.py",
            "damage_is_refused_and_the_one_before_loaded",
        ),
    ),
    24: Row(
        "The disk is full, read-only or broken while saving",
        "Known before anything is written where it can be; the generation before stays, nothing half written "
        "does, training goes on and says so.",
        of(CRASH, "refused_at_any_operation")
        + of(
            STORE,
            "a_full_disk_is_known_before_anything_is_written",
            "a_folder_that_cannot_be_written_is_a_sentence",
        )
        + of("training/test_journal.py", "a_full_disk_is_counted_and_told_once")
        + of("training/test_signals.py", "a_disk_that_is_full_when_the_signal_comes_is_told"),
    ),
    25: Row(
        "A disk that hangs",
        "One save at a time; the next one waits for a stated time, then counts as failed.",
        of(STORE, "one_save_at_a_time_and_no_longer_than_patience"),
    ),
    26: Row(
        "Parameters change while they are saved",
        "A copy is written, and its checksum from before is that of the file.",
        of(
            STORE,
            "what_changes_after_save_is_not_what_is_written",
            "a_copy_that_changes_before_it_is_written_is_found_out",
        ),
    ),
    27: Row(
        "The saving thread fails, or there is no memory",
        "A failed save, told at the next one, which is made all the same.",
        of(
            STORE,
            "a_failure_is_heard_once_at_the_next_save_which_is_made_all_the_same",
            "whatever_goes_wrong_in_the_thread_is_a_failed_save",
            "no_memory_for_the_copy_is_a_sentence",
            "no_thread_is_a_sentence_and_the_next_save_is_made",
        ),
    ),
    28: Row(
        "A checkpoint made to harm: pickles, bombs, names that leave the folder, links",
        "Nothing is unpickled; names and sizes are checked, links are not followed.",
        of(
            DAMAGE,
            "nothing_that_is_read_is_ever_unpickled",
            "a_poisoned_manifest_is_refused",
            "json_bombs_are_refused",
            "too_much_json_is_neither_read_nor_written",
            "a_strangers_file_and_a_linked_generation_are_refused",
        ),
    ),
    29: Row(
        "Names of runs and tensors that are markup",
        "Text on every page and in the terminal. Pages are files: there is no server.",
        of("lab/test_report.py", "hostile_names_stay_text", "hostile_names_do_nothing_in_a_browser")
        + of("lab/test_run_page.py", "hostile_names_do_nothing_in_a_browser")
        + of("training/doctor/test_doctor_reading.py", "the_picture_marks_causes_and_lets_no_markup_through")
        + of("cli/test_cli.py", "names_with_brackets_are_printed_as_they_are"),
    ),
    30: Row(
        "The clock is set back or forward",
        "The time of day is written down and otherwise not used.",
        of(
            FAULTS, "a_clock_that_is_set_back_changes_nothing", "durations_are_of_clocks_that_only_go_forward"
        ),
    ),
    31: Row(
        "A rank dies or hangs",
        "The others end in a sentence that names it, within a stated time; what was saved goes on to the "
        "bit, by itself where restarts are asked for.",
        of(RANKS, "a_rank_that_is_lost_is_named_and_nobody_waits_for_ever")
        + of(LAUNCH, "a_killed_rank_is_started_again_and_the_run_is_the_one_that_was_not_killed"),
    ),
    32: Row(
        "SIGTERM or Ctrl-C, and a second one",
        "Saved once, left, continued to the bit; the second leaves at once, the last generation intact.",
        of(
            "training/test_signals.py",
            "a_signal_saves_once_and_the_run_goes_on_from_there",
            "a_signal_in_a_stages_last_step_stops_at_the_border",
            "processes_are_stopped_and_killed_and_the_run_is_the_same",
        )
        + of(RANKS, "a_signal_to_one_rank_saves_once_and_stops_all"),
    ),
    33: Row(
        "A rank computes something else",
        "At the next look at the run's health copies are compared; the run stops and names rank and tensor.",
        of(
            RANKS,
            "a_copy_that_differs_ends_the_run_and_is_named",
            "most_ranks_are_right",
            "one_flipped_bit_changes_a_checksum",
        ),
    ),
    34: Row(
        "Two runs in one folder",
        "The second gets a sentence with the first one's process; the lock of a dead one is free.",
        of(
            "training/test_signals.py",
            "a_folder_has_one_owner_and_a_dead_owner_is_none",
            "a_folder_is_locked_within_a_process_too",
        )
        + of("training/test_files.py", "a_locked_folder_names_its_holder_and_is_free_afterwards"),
    ),
    35: Row(
        "A schedule and the steps disagree: vetoes, accumulation, restarts, steps past its end",
        "The rate is a function of the committed step; past the end it holds.",
        of(FAULTS, "a_schedule_that_is_stepped_past_its_end_holds")
        + of("schedules/test_schedules.py", "holds_past_the_end")
        + of(SESSION, "nothing_moves_in_a_step_that_is_not_finite")
        + of(SAVED, "a_schedule_goes_on_where_it_was"),
    ),
    36: Row(
        "A save without its loss scale",
        "Refused: a new one would be another run's.",
        of(FAULTS, "a_loss_scale_that_is_missing_is_not_begun_anew")
        + of("training/test_precision.py", "formats_are_continued_to_the_last_bit"),
    ),
    37: Row(
        "Random streams: other draws, other numbers of workers, restarts",
        "Every stream is a function of the seed, its name and a counter.",
        of(FAULTS, "streams_are_named_and_counted_whatever_else_draws")
        + of("data/test_batches.py", "any_step_in_any_order_is_the_same")
        + of("lab/test_study.py", "the_number_of_workers_changes_no_bit")
        + of("engines/test_fused.py", "the_number_of_threads_changes_no_bit")
        + of(NUMBERS, "two_ranks_train_what_one_process_does"),
    ),
    38: Row(
        "Data read twice or not at all, after a restart or a rollback",
        "The same data in the same order; a ledger says what was trained on, passed over and vetoed.",
        of("training/test_session_resume.py", "killed_again_and_again")
        + of(
            "training/test_rollback.py",
            "back_to_before_the_spike_and_past_its_batches",
            "resume_around_a_rollback_is_the_same_run",
        )
        + of(CONFIG, "a_ledger_tells_everything_once"),
    ),
    39: Row(
        "A reward or a KL that is NaN, groups of equal rewards, moments of the stage before",
        "Nothing learns from a NaN: the run stops and names the row, a controller holds. Equal rewards "
        "move nothing and are counted. At a border moments follow a stated policy and guards begin anew.",
        of(
            FAULTS,
            "a_reward_that_is_nan_stops_before_anything_has_learnt_from_it",
            "groups_of_equal_rewards_move_nothing_and_are_counted",
        )
        + of("training/test_control.py", "a_signal_that_cannot_be_changes_nothing_and_says_so")
        + of("objectives/test_policy.py", "the_estimate_is_the_divergence_on_average")
        + of(GUARD, "rearming_forgets_all_but_the_step")
        + of("training/test_session_stages.py", "the_first_step_after_a_border_is_foreseen"),
    ),
    40: Row(
        "A config edited before a run is continued",
        "Refused with old and new values, but for keys that change no number; those are noted.",
        of(
            CONFIG,
            "other_keys_may_not_and_both_values_are_shown",
            "free_keys_may_change_and_the_difference_is_journaled",
            "an_edited_stage_is_named_to_the_key",
        )
        + of(SAVED, "edited_hyperparameters_stay_and_are_told"),
    ),
    41: Row(
        "A save of an older or newer version",
        "Older ones are read, as files from then show; newer ones are refused, with what is newer.",
        of(
            DAMAGE,
            "a_checkpoint_of_the_first_format_can_be_read",
            "a_newer_format_is_an_error_and_no_fallback",
        )
        + of(VERSIONS, "a_save_of_this_version_goes_on", "what_a_newer_version_has_saved_is_refused")
        + of(
            FAULTS,
            "a_key_that_a_config_did_not_have_yet_is_no_difference",
            "a_state_with_something_missing_or_foreign_is_refused",
        )
        + of(STATE, "a_newer_format_is_refused"),
    ),
    42: Row(
        "A tracker that is down, slow or full; figures of many ranks",
        "It gets what fits into a bounded queue, the rest is counted; training does not wait. Every figure "
        "is of all ranks together.",
        of(
            "integrations/test_sinks.py",
            "a_sink_that_hangs_never_holds_training_up",
            "a_sink_that_fails_is_switched_off_with_one_line_and_the_others_go_on",
            "a_sink_that_cannot_be_opened_or_takes_for_ever_is_the_same",
        )
        + of(
            NUMBERS,
            "three_ranks_whose_parts_are_uneven",
            "one_rank_writes_the_diaries_and_says_how_many_there_are",
        ),
    ),
}
