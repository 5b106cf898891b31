//! Keys that a sweep may have: those of the engine and of the workload. Others belong to the whole job.

use crate::arguments::nearest;
use crate::keys::{KEYS, MODEL, WORKLOAD, heading, shown};
use crate::quoting::quoted;

/// Keys of engine and workload that are the same for the whole job all the same.
const OF_THE_JOB: [&str; 6] =
    ["group_port", "group_timeout", "replica_count", "measure_limits", "step_timeout_seconds", "repeats"];

fn may_be_swept(field: &str) -> bool {
    heading(field).is_some_and(|heading| [MODEL, WORKLOAD].contains(&heading)) && !OF_THE_JOB.contains(&field)
}

/// The field of the key that is written as `name`.
///
/// # Errors
/// The reason why there is none, as the rest of a sentence.
pub(super) fn field(name: &str) -> Result<&'static str, String> {
    let name = name.trim();
    let field = name.replace('-', "_");
    match KEYS.iter().find(|(known, ..)| *known == field) {
        Some((known, ..)) if may_be_swept(known) => Ok(known),
        Some((known, ..)) => Err(format!("{} is the same for the whole job and cannot be swept", shown(known))),
        None => {
            let known: Vec<String> =
                KEYS.iter().map(|(known, ..)| *known).filter(|known| may_be_swept(known)).map(shown).collect();
            let hint = nearest(&shown(&field), known.iter().map(String::as_str))
                .map_or_else(|| "see --help".to_owned(), |near| format!("did you mean {near}?"));
            Err(format!("{} is not a key of flashjob; {hint}", quoted(name)))
        }
    }
}

/// The fields of keys that are written as `names`, separated by commas: they change together.
///
/// # Errors
/// As of [`field`].
pub(super) fn fields(names: &str) -> Result<Vec<&'static str>, String> {
    names.split(',').map(field).collect()
}
