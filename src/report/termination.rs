//! The termination message: what `kubectl describe pod` shows of a run, in at most 4 KiB.

use serde::Serialize;
use serde_json::{Map, Value, json};

use flashjob_results::Status;

use super::figures::to_object;
use super::result::JobResult;

/// Kubernetes keeps no more of a termination message
/// (kubernetes.io, "Determine the Reason for Pod Failure": 4096 bytes).
const LONGEST_BYTES: usize = 4096;

/// The termination message of one run.
#[derive(Serialize)]
struct Message<'a> {
    status: Status,
    exit_code: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mlflow_run: Option<&'a str>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    metrics: Map<String, Value>,
}

/// The result or the error as one line of JSON of at most 4 KiB: figures are left out from the last one on, and a
/// long error is cut, until it fits.
pub fn termination_message(result: &JobResult, run_url: Option<&str>) -> String {
    let message = Message {
        status: result.status,
        exit_code: result.exit_code,
        error: result.error.clone(),
        mlflow_run: run_url,
        metrics: result.figures.as_ref().map(to_object).unwrap_or_default(),
    };
    fitted(message)
}

fn fitted(mut message: Message<'_>) -> String {
    loop {
        let text = json!(message).to_string();
        if text.len() <= LONGEST_BYTES {
            return text;
        }
        // Figures are in the order in which a person reads them: the last one is missed least.
        match message.metrics.keys().next_back().cloned() {
            Some(last) => drop(message.metrics.remove(&last)),
            None => {
                message.error = message.error.map(|error| {
                    let kept = error.chars().count() * 3 / 4;
                    error.chars().take(kept).chain(['…']).collect()
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(error: Option<String>, figures: usize) -> Message<'static> {
        Message {
            status: Status::Failed,
            exit_code: 3,
            error,
            mlflow_run: Some("http://mlflow/#/runs/1"),
            metrics: (0..figures).map(|number| (format!("figure_number_{number}"), json!(number as f64))).collect(),
        }
    }

    #[test]
    fn it_fits_whatever_it_is_given() {
        for (error, figures) in [(None, 0), (Some("x".repeat(100_000)), 500), (Some("ü\"\n".repeat(5_000)), 3)] {
            let text = fitted(message(error.clone(), figures));
            assert!(text.len() <= LONGEST_BYTES, "{} bytes", text.len());
            let document: Value = serde_json::from_str(&text).unwrap();
            assert_eq!(document["exit_code"], 3);
            assert_eq!(document.get("error").is_some(), error.is_some());
        }
    }

    #[test]
    fn the_first_figures_are_the_last_to_go() {
        let text = fitted(message(None, 500));
        let document: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(document["metrics"]["figure_number_0"], 0.0);
        assert!(document["metrics"].get("figure_number_499").is_none());
    }
}
