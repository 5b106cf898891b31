//! Files out of a bucket: the file system driven directly, through the kernel, and as a copy.

mod blocks;
mod bucket;
mod caching;
mod copying;
mod ending;
mod faults;
mod kernel;
mod passthrough;
mod reference;
pub(crate) mod scripted_source;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use flashjob_bucket::Object;
use flashjob_config::{InputStorage, MountConfig, MountMode};
use flashjob_mount::source::BlockSource;
use flashjob_mount::{Error, Mounted, mount_source};
use tokio_util::sync::CancellationToken;

pub(crate) use crate::support::mount_table::mounts_at;
use crate::support::process::skip;

pub(crate) fn input(location: &Path) -> InputStorage {
    InputStorage { par: None, location: location.to_owned(), volume_bytes: None, include: vec![], exclude: vec![] }
}

pub(crate) fn config(mode: MountMode) -> MountConfig {
    MountConfig {
        mode,
        memory_bytes: Some(64 << 20),
        cache_directory: None,
        descriptor: None,
        storage_timeout: Duration::from_secs(5),
    }
}

/// Runs a future on this thread.
pub(crate) fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// Mounts through FUSE. `None`, said so, where this machine refuses FUSE; under `CI` that is a failure.
fn mount_fuse(location: &Path, objects: &[Object], source: Arc<dyn BlockSource>) -> Option<Mounted> {
    let never = CancellationToken::new();
    match wait(mount_source(&input(location), &config(MountMode::Fuse), objects, source, &never)) {
        Ok(mounted) => Some(mounted),
        Err(error @ Error::FuseRefused { .. }) => {
            skip(&error.to_string());
            None
        }
        Err(error) => panic!("{error}"),
    }
}
