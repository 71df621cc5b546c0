"""Two hosts made of network namespaces: one is cut off in mid-run, and the job ends and resumes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[3]))

from benchmarks.tiny_inputs import make_tiny_inputs
from benchmarks.two_hosts import Bench, cut_far, cut_near, whole_run
from benchmarks.two_namespaces import two_hosts, why_not


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_host_that_is_cut_off_ends_the_job_and_the_restart_gives_the_same_losses(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(reason)
    model_dir, corpus_dir = make_tiny_inputs(tmp_path)
    with two_hosts(tmp_path) as hosts:
        bench = Bench(hosts, tmp_path, model_dir, corpus_dir)
        assert whole_run(bench)["exit_code"] == 0, bench.said("whole", 50)
        for case in (cut_far, cut_near):
            result = case(bench)
            assert result["exit_codes"] == [1]
            assert all(seconds is not None and seconds < 60 for seconds in result["seconds_to_end"].values()), result
            assert result["last_line"].startswith("error: 10.77.0.2 has not been heard of for 20 s")
            assert result["resumed_exit_code"] == 0
            assert result["losses_equal"]
