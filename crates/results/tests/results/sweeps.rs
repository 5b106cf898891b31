//! Sweeps: the list of their combinations, and the result of each.

use std::fs;

use flashjob_results::{CombinationStatus, Stored, Sweep, open};
use serde_json::{Value, json};

use crate::result_files::{finished, write};

fn combination(number: u64, directory: &str, status: &str) -> Value {
    json!({"number": number, "directory": directory, "settings": {"max-num-seqs": "64"}, "status": status, "exit_code": 0,
        "error": null, "output_tokens_per_second": 123.4})
}

#[test]
fn a_sweep_has_its_runs_in_directories_of_their_own() {
    let place = tempfile::tempdir().unwrap();
    let failed =
        json!({"number": 2, "directory": "0002", "settings": {}, "status": "refused", "error": "it cannot be"});
    let document = json!({"schema_version": 1, "combinations": [combination(1, "0001", "finished"), failed]});
    fs::write(place.path().join("sweep.json"), document.to_string()).unwrap();
    write(&place.path().join("0001"), &finished());
    // The file of the last run of a sweep may lie beside its list.
    write(place.path(), &finished());
    for path in [place.path().to_owned(), place.path().join("sweep.json")] {
        let Stored::Sweep(sweep) = open(&path).unwrap() else { panic!("a sweep") };
        assert_eq!(sweep.combinations.len(), 2);
        assert_eq!(sweep.combinations[1].status, CombinationStatus::Refused);
        let measured: Vec<_> = sweep.finished().collect();
        assert_eq!(measured.len(), 1);
        assert_eq!(measured[0].settings, [("max-num-seqs".to_owned(), "64".to_owned())]);
        assert!(sweep.result(measured[0]).unwrap().metrics.output_tokens_per_second().is_some());
    }
}

#[test]
fn a_sweep_that_leads_elsewhere_or_has_no_end_is_refused() {
    let place = tempfile::tempdir().unwrap();
    for directory in ["..", "/etc", "a/b", "", ".", "0001/"] {
        let document = json!({"schema_version": 1, "combinations": [combination(1, directory, "finished")]});
        fs::write(place.path().join("sweep.json"), document.to_string()).unwrap();
        let sentence = Sweep::read(place.path()).unwrap_err().to_string();
        assert!(sentence.contains(&format!("the directory `{directory}`, which is no plain name")), "{sentence}");
    }
    let many: Vec<Value> = (0..10_001).map(|number| combination(number, "0001", "finished")).collect();
    let document = json!({"schema_version": 1, "combinations": many});
    fs::write(place.path().join("sweep.json"), document.to_string()).unwrap();
    let sentence = Sweep::read(place.path()).unwrap_err().to_string();
    assert!(sentence.contains("a list has more than 10000 elements"), "{sentence}");
}
