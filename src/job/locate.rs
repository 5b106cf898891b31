//! Search for a model, a tokenizer or a dataset: the first existing one of the paths that its name may mean.

use std::path::{Path, PathBuf};

use flashjob_config::{InputStorage, ModelPath};

/// The place of what `key` names: the first of those that it may be at which something is there.
///
/// # Errors
/// A clause that says where it was looked for.
pub fn locate(
    named: &ModelPath,
    inputs: &[InputStorage],
    key: &str,
    is_there: &dyn Fn(&Path) -> bool,
) -> Result<PathBuf, String> {
    let candidates = named.candidates(inputs);
    if let Some(found) = candidates.iter().find(|candidate| is_there(candidate)) {
        return Ok(found.clone());
    }
    let tried: Vec<String> = candidates.iter().map(|candidate| candidate.display().to_string()).collect();
    Err(format!("{key}={} is not there: looked for {}", named.0.display(), tried.join(", ")))
}
