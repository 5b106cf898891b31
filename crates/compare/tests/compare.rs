//! Runs side by side: what is compared, what is refused, and how it is shown.

mod figures;
mod formats;
mod refusals;
mod statistics;

use flashjob_compare::Run;
use flashjob_results::RunResult;
use serde_json::{Value, json};

use crate::result_files::{finished, set};

/// The run called `name` with `changes` to a finished one.
fn run(name: &str, changes: &[(&[&str], Value)]) -> Run {
    let mut document = finished();
    changes.iter().for_each(|(path, value)| set(&mut document, path, value.clone()));
    Run::new(name.to_owned(), RunResult::parse(document.to_string().as_bytes(), name).unwrap())
}

/// A run whose regions have these rates of output tokens.
fn repeated(name: &str, rates: &[f64]) -> Run {
    let mean = rates.iter().sum::<f64>() / rates.len() as f64;
    let regions: Vec<Value> =
        rates.iter().map(|rate| json!({"seed": 0, "metrics": {"output_tokens_per_second": rate}})).collect();
    let repeats = json!({"confidence": 0.95, "stopped_by": "count", "regions": regions, "summary": {}});
    let requests = json!(16 * rates.len());
    let changes = [
        (&["repeats"][..], repeats),
        (&["metrics", "output_tokens_per_second"], json!(mean)),
        // Those of all regions.
        (&["num_requests"], requests),
    ];
    run(name, &changes)
}
