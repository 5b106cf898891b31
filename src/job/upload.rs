//! Result files go to the bucket that `output_object_storage` names, if there is one.

use std::path::PathBuf;
use std::time::Duration;

use flashjob_bucket::{Bucket, Error, RetryPolicy};
use flashjob_config::OutputStorage;
use flashjob_event::Events;

use crate::report::ResultsDirectory;

/// Puts `files` of `directory` under the output's prefix, by their names, and gives those names. What an earlier try
/// left there is not sent again, nor parts of a file that it had sent.
///
/// # Errors
/// The first file that the bucket does not take within `patience`.
pub async fn upload(
    output: &OutputStorage,
    directory: &ResultsDirectory,
    files: Vec<PathBuf>,
    patience: Duration,
    events: &Events,
) -> Result<Vec<String>, Error> {
    let policy = RetryPolicy { deadline: patience, ..RetryPolicy::default() };
    let bucket = Bucket::open(output.par.clone(), policy, events.clone())?;
    let mut names = Vec::new();
    for path in files {
        let within = path.strip_prefix(directory.path()).unwrap_or(&path).display();
        let name = format!("{}{within}", output.prefix);
        let folder = path.parent().unwrap_or(directory.path());
        // Noted before it begins, so that the next job in this directory finds an upload that was broken off. The folder of answers is
        // not tidied up.
        if folder == directory.path()
            && let Err(error) = directory.expect_upload(&bucket.record_name(&name))
        {
            tracing::warn!(%error, "an upload that is broken off will not be found by the next job");
        }
        // Each file by itself: `publish` may be called again after some of them have arrived.
        if !bucket.holds(&name, &path, folder).await? {
            bucket.put_file(&name, &path, folder).await?;
        }
        names.push(name);
    }
    Ok(names)
}
