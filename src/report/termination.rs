//! The termination message: what `kubectl describe pod` shows of a run, in at most 4 KiB.

use serde_json::{Map, Value, json};

use super::result::JobResult;

/// Kubernetes keeps no more of a termination message
/// (kubernetes.io, "Determine the Reason for Pod Failure": 4096 bytes).
const LONGEST_BYTES: usize = 4096;

/// The result or the error as one line of JSON of at most 4 KiB: figures are left out from the last one on, and a
/// long error is cut, until it fits.
pub fn termination_message(result: &JobResult, run_url: Option<&str>) -> String {
    let mut figures = result.figures.clone();
    let mut error = result.error.clone();
    loop {
        let mut document = Map::new();
        document.insert("status".to_owned(), json!(result.status));
        document.insert("exit_code".to_owned(), json!(result.exit_code));
        if let Some(error) = &error {
            document.insert("error".to_owned(), json!(error));
        }
        if let Some(url) = run_url {
            document.insert("mlflow_run".to_owned(), json!(url));
        }
        let named: Map<String, Value> = figures.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
        if !named.is_empty() {
            document.insert("metrics".to_owned(), Value::Object(named));
        }
        let text = Value::Object(document).to_string();
        if text.len() <= LONGEST_BYTES {
            return text;
        }
        if figures.pop().is_none() {
            error = error.map(|error| {
                let kept = error.chars().count() * 3 / 4;
                error.chars().take(kept).chain(['…']).collect()
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    fn result(error: Option<String>, figures: usize) -> JobResult {
        JobResult {
            status: Status::Failed,
            exit_code: 3,
            error,
            started_at: String::new(),
            ended_at: String::new(),
            settings: Value::Null,
            inputs: Vec::new(),
            skipped_inputs: 0,
            disturbances: Vec::new(),
            backend: None,
            environment: Value::Null,
            phases: Vec::new(),
            measurement: None,
            figures: (0..figures).map(|number| (format!("figure_number_{number}"), number as f64)).collect(),
        }
    }

    #[test]
    fn it_fits_whatever_it_is_given() {
        for (error, figures) in [(None, 0), (Some("x".repeat(100_000)), 500), (Some("ü\"\n".repeat(5_000)), 3)] {
            let text = termination_message(&result(error.clone(), figures), Some("http://mlflow/#/runs/1"));
            assert!(text.len() <= LONGEST_BYTES, "{} bytes", text.len());
            let document: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(document["exit_code"], 3);
            assert_eq!(document.get("error").is_some(), error.is_some());
        }
    }

    #[test]
    fn the_first_figures_are_the_last_to_go() {
        let text = termination_message(&result(None, 500), None);
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["metrics"]["figure_number_0"], 0.0);
        assert!(document["metrics"].get("figure_number_499").is_none());
    }
}
