//! Results of runs, as a job of this version writes them, for the tests of what reads them.

use std::path::Path;

use serde_json::Value;

/// `result.json` of a run that has finished: 16 requests of 128 and 128 tokens on a CPU.
pub fn finished() -> Value {
    serde_json::from_str(include_str!("result_files/finished.json")).expect("the fixture is JSON")
}

/// Sets the value under a path of keys, such as `metrics.output_tokens_per_second`, whose objects are made where they are missing.
pub fn set(document: &mut Value, path: &[&str], value: impl Into<Value>) {
    let place = path.iter().fold(document, |place, key| &mut place[*key]);
    *place = value.into();
}

/// Writes `document` as the result of the directory `directory`, which is made.
pub fn write(directory: &Path, document: &Value) {
    std::fs::create_dir_all(directory).unwrap();
    std::fs::write(directory.join("result.json"), document.to_string()).unwrap();
}
