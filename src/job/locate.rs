//! Search for a model, a tokenizer or a dataset: the first existing one of the paths that its name may mean.

use std::path::PathBuf;

use flashjob_config::{InputStorage, ModelPath};

/// The place of what `key` names.
///
/// # Errors
/// A clause that says where it was looked for.
pub fn locate(named: &ModelPath, inputs: &[InputStorage], key: &str) -> Result<PathBuf, String> {
    let candidates = named.candidates(inputs);
    if let Some(found) = candidates.iter().find(|candidate| candidate.exists()) {
        return Ok(found.clone());
    }
    let tried: Vec<String> = candidates.iter().map(|candidate| candidate.display().to_string()).collect();
    Err(format!("{key}={} is not there: looked for {}", named.0.display(), tried.join(", ")))
}
