//! `flashjob verify`: agreement is shown with numbers.

use std::path::Path;

use serde_json::Value;

use super::tiny_model;
use crate::support::Flashjob as _;
use crate::support::process::{Finished, Process};

fn verify(model: &Path, more: &[&str]) -> Finished {
    let results = tempfile::tempdir().unwrap();
    Process::flashjob()
        .args(["verify", "--input-len=40", "--device=cpu", "--results-dir"])
        .args([results.path()])
        .args(["--model".as_ref(), model.as_os_str()])
        .args(more)
        .run()
}

#[test]
fn ranks_and_formats_of_the_cpu_agree_with_single_precision() {
    for (more, dtype, ranks) in [
        (&["--dtype=float32"][..], "float32", 1),
        (&["--dtype=float32", "--tensor-parallel-size=2"], "float32", 2),
        (&["--dtype=bfloat16"], "bfloat16", 1),
    ] {
        let finished = verify(&tiny_model(), more).expect_code(0);
        let line: Value = serde_json::from_str(&finished.stdout).unwrap();
        assert_eq!((&line["agrees"], &line["dtype"]), (&true.into(), &dtype.into()), "{line}");
        assert_eq!((&line["tensor_parallel_size"], &line["positions"]), (&ranks.into(), &192.into()), "{line}");
        let units = |key: &str| line[key].as_f64().unwrap();
        assert!(units("typical_error_units") < 4.0 && units("largest_error_units") < 16.0, "{line}");
        assert!(line["same_choice_share"].as_f64().unwrap() > 0.9, "{line}");
    }
}

#[test]
fn what_is_not_on_the_disk_is_a_model_that_cannot_be_loaded() {
    let finished = verify(Path::new("/no/such/model"), &[]).expect_code(4);
    assert!(
        finished.stderr.contains("/no/such/model") && finished.stderr.contains("mounts nothing"),
        "{}",
        finished.stderr
    );
}
