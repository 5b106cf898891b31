//! Result files go to the bucket that `output_object_storage` names, if there is one.

use std::path::Path;
use std::time::Duration;

use flashjob_bucket::{Bucket, Error, RetryPolicy};
use flashjob_config::OutputStorage;
use flashjob_event::Events;

use crate::report::ResultsDirectory;

/// Puts the files of `directory` under the output's prefix, by their names, and gives those names. What an earlier try
/// left there is not sent again, nor parts of a file that it had sent.
///
/// # Errors
/// The first file that the bucket does not take within `patience`.
pub async fn upload(
    output: &OutputStorage,
    directory: &ResultsDirectory,
    patience: Duration,
    events: &Events,
) -> Result<Vec<String>, Error> {
    let policy = RetryPolicy { deadline: patience, ..RetryPolicy::default() };
    let bucket = Bucket::open(output.par.clone(), policy, events.clone())?;
    let mut names = Vec::new();
    for path in directory.files() {
        let name = format!("{}{}", output.prefix, file_name(&path));
        // Noted before it begins, so that the next job in this directory finds an upload that was broken off.
        if let Err(error) = directory.expect_upload(&bucket.record_name(&name)) {
            tracing::warn!(%error, "an upload that is broken off will not be found by the next job");
        }
        // Each file by itself: `publish` may be called again after some of them have arrived.
        if !bucket.holds(&name, &path, directory.path()).await? {
            bucket.put_file(&name, &path, directory.path()).await?;
        }
        names.push(name);
    }
    Ok(names)
}

fn file_name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
