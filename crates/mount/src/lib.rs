//! A bucket becomes files at a path: through FUSE, or by a parallel download where FUSE is refused.
//!
//! Read-only and listed once. From the outside in: [`mount()`] chooses the method; `kernel_mount` holds an entry of the
//! kernel's mount table; `fuse` translates the kernel's calls to [`filesystem`], which has names from [`tree`]
//! and bytes from [`blocks`]; those come through the interface [`source`] from the bucket, with the disk [`cache`] in
//! between where one is configured.
//! `docs/SEMANTICS.md` describes what programs see. This crate knows nothing of models or of the use of results.

pub mod blocks;
mod broker;
pub mod cache;
mod copy;
mod descriptor;
mod direct;
mod error;
pub mod filesystem;
mod fuse;
mod kernel;
mod kernel_mount;
mod location;
mod memory;
mod mounted;
mod mounter;
pub mod names;
mod namespace;
mod passthrough;
pub mod selection;
pub mod source;
mod stale;
pub mod tree;

use std::sync::Arc;
use std::time::Instant;

use tokio_util::sync::CancellationToken;

use flashjob_bucket::{Bucket, Object, RetryPolicy};
use flashjob_config::{InputStorage, MountConfig, MountMode, Par, ParTarget};
use flashjob_event::Events;

use self::blocks::{BlockMap, Limits};
use self::cache::DiskCache;
use self::filesystem::FileSystem;
use self::fuse::Adapter;
use self::kernel_mount::KernelMount;
use self::mounted::{Served, Workers};
use self::passthrough::Passthrough;
use self::selection::Selection;
use self::source::BlockSource;
use self::tree::Tree;

pub use self::broker::MountBroker;
pub use self::direct::{DirectFile, DirectFiles};
pub use self::error::Error;
pub use self::location::{MadeDirectories, preflight};
pub use self::mounted::{Method, Mounted};
pub use self::mounter::Mounter;
pub use self::namespace::{enter_if_needed, may_mount};
pub use self::source::{Fault, FaultKind};
pub use self::stale::clear_stale;

/// Makes the objects of `input` files at its location, for as long as the returned value lives.
///
/// # Errors
/// See [`Error`]. Whatever was begun is undone, except files that a copy has completed.
pub async fn mount(
    input: &InputStorage,
    config: &MountConfig,
    mounter: &Mounter,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<Mounted, Error> {
    // A mount that was passed in serves no request yet: a check for stale mounts would hang in it.
    if config.descriptor.is_none() || input.par.is_none() {
        mounter.clear_stale(&input.location);
        let faults = preflight(input);
        if !faults.is_empty() {
            return Err(Error::Location(faults));
        }
    }
    let Some(par) = &input.par else {
        let reason = "no PAR is given: the files are those that the platform has put there".to_owned();
        tracing::info!(location = %input.location.display(), "using the files at the mount location: {reason}");
        return Ok(Mounted::new(&input.location, Method::Existing, reason));
    };
    let workers = Workers::start()?;
    // A connection without progress is abandoned early enough for others to be tried within the timeout.
    let progress_timeout = RetryPolicy::default().progress_timeout.min(config.storage_timeout / 4);
    let retry = RetryPolicy { deadline: config.storage_timeout, progress_timeout, ..RetryPolicy::default() };
    let bucket = Bucket::open(par.clone(), retry, events.clone())?;
    let selection = Selection::new(&input.include, &input.exclude);
    let start = Instant::now();
    // On the mount's own threads: the connections belong to the runtime that opened them.
    let listing = workers.run(cancel, {
        let (bucket, selection) = (bucket.clone(), selection.clone());
        async move { list(&bucket, &selection).await }
    });
    let objects = listing.await?;
    let tree = index(par, &objects)?;
    drop(objects);
    tracing::info!(
        bucket = par.bucket(),
        files = tree.files(),
        bytes = tree.file_bytes(),
        seconds = start.elapsed().as_secs_f64(),
        "listed the bucket"
    );
    present(input, config, mounter, tree, Arc::new(bucket), workers, cancel).await
}

/// Like [`mount()`], with this process's own rights, and with a listing and a source of any kind. For tests and tools.
///
/// # Errors
/// As [`mount()`].
pub async fn mount_source(
    input: &InputStorage,
    config: &MountConfig,
    objects: &[Object],
    source: Arc<dyn BlockSource>,
    cancel: &CancellationToken,
) -> Result<Mounted, Error> {
    let mounter = Mounter::this_process();
    mounter.clear_stale(&input.location);
    let workers = Workers::start()?;
    let (tree, _) = Tree::new(objects);
    present(input, config, &mounter, tree, source, workers, cancel).await
}

/// Most files and directories of one mount. A node takes about 150 bytes, and one name of 1024 bytes can stand for 500
/// directories.
const MOST_NODES: usize = 2_000_000;

/// All selected objects. Only included paths are listed, so that a large bucket is not listed whole.
async fn list(bucket: &Bucket, selection: &Selection) -> Result<Vec<Object>, Error> {
    let mut objects = Vec::new();
    if selection.paths().is_empty() {
        objects = bucket.list("").await?;
    }
    for path in selection.paths() {
        let mut found = bucket.list(&format!("{path}/")).await?;
        // No directory of this name: perhaps one object, among others with the same prefix.
        if found.is_empty() {
            // Not a directory: perhaps an object, in front of others that begin alike.
            found = bucket.list(path).await?;
            found.retain(|object| object.name == *path);
        }
        if found.is_empty() {
            return Err(Error::NothingIncluded(path.clone()));
        }
        objects.append(&mut found);
        if objects.len() > MOST_NODES {
            return Err(Error::TooManyFiles { needed: objects.len(), limit: MOST_NODES });
        }
    }
    objects.retain(|object| selection.takes(&object.name));
    let needed = Tree::nodes_needed(&objects);
    match needed > MOST_NODES {
        true => Err(Error::TooManyFiles { needed, limit: MOST_NODES }),
        false => Ok(objects),
    }
}

/// Builds the tree of a listing and logs hidden objects.
fn index(par: &Par, objects: &[Object]) -> Result<Tree, Error> {
    // An object PAR has one object; a name that ends in `/` is a prefix.
    let (tree, hidden) = match (par.target(), objects) {
        // The PAR of one object. One that ends in `/` is a prefix.
        (ParTarget::Object(name), [object]) if !name.ends_with('/') => Tree::of_one_object(object),
        _ => Tree::new(objects),
    };
    if hidden.count() > 0 {
        tracing::warn!(objects = hidden.count(), "objects that cannot be files are hidden: {hidden}");
    }
    let unversioned = objects.iter().filter(|object| object.etag.is_none()).count();
    if unversioned > 0 {
        tracing::warn!(
            objects = unversioned,
            "objects are listed without an ETag: all bytes of one are held to the ETag of its first answer, and where answers have \
             none to its length and its time of writing; that it has not changed since the listing or within a second is not verified"
        );
    }
    match par.target() {
        ParTarget::Object(name) if !name.ends_with('/') && tree.files() == 0 => Err(Error::NoFile(hidden)),
        _ => Ok(tree),
    }
}

/// The method of a FUSE mount, with its reason.
fn rung(config: &MountConfig) -> (Method, String) {
    match config.descriptor {
        Some(number) => (Method::FuseDescriptor, format!("descriptor {number} was passed in, mounted already")),
        None if namespace::is_own() => {
            let why = "FUSE is allowed in a user and mount namespace of this process's own, whose children see it too";
            (Method::FuseNamespace, why.to_owned())
        }
        None => (Method::Fuse, "FUSE is allowed".to_owned()),
    }
}

/// `source` behind the disk cache, if one is configured and usable.
fn cached(input: &InputStorage, config: &MountConfig, source: &Arc<dyn BlockSource>) -> Arc<dyn BlockSource> {
    let Some(directory) = &config.cache_directory else { return Arc::clone(source) };
    match DiskCache::open(directory, input.volume_bytes, cache::PIECE_BYTES, Arc::clone(source)) {
        Ok(cache) => {
            tracing::info!(directory = %directory.display(), limit_bytes = input.volume_bytes, "blocks are kept on disk");
            Arc::new(cache)
        }
        Err(error) => {
            let directory = directory.display();
            tracing::warn!(%directory, %error, "cache-dir cannot be used: nothing is kept on disk");
            Arc::clone(source)
        }
    }
}

/// Makes the files of `tree` visible through FUSE, or by a copy.
async fn present(
    input: &InputStorage,
    config: &MountConfig,
    mounter: &Mounter,
    tree: Tree,
    source: Arc<dyn BlockSource>,
    workers: Workers,
    cancel: &CancellationToken,
) -> Result<Mounted, Error> {
    let location = &input.location;
    let mut made = match config.descriptor {
        Some(_) => MadeDirectories::default(),
        None => MadeDirectories::make(location)?,
    };
    let tree = Arc::new(tree);
    let reason = if config.mode == MountMode::Copy && config.descriptor.is_none() {
        "mount-mode=copy asks for it".to_owned()
    } else {
        let source = cached(input, config, &source);
        let budget_bytes = config.memory_bytes.unwrap_or_else(memory::default_budget_bytes);
        let limits = Limits::within(budget_bytes);
        let blocks = BlockMap::new(source, limits, workers.handle());
        let files = FileSystem::new(Arc::clone(&tree), blocks);
        let attach = || {
            let mut kernel_mount = KernelMount::new(location, mounter, config.descriptor)?;
            let backing =
                config.cache_directory.as_ref().map(|_| kernel_mount.connection(mounter)).transpose()?.flatten();
            let passthrough = backing.map(Passthrough::new);
            kernel_mount.serve(Adapter::new(files.clone(), workers.handle(), passthrough.clone()))?;
            Ok((kernel_mount, passthrough))
        };
        match attach() {
            Ok((kernel_mount, passthrough)) => {
                let (method, why) = rung(config);
                let reason = format!("{why}: files are read from the bucket as they are needed");
                tracing::info!(
                    location = %location.display(),
                    memory_bytes = limits.memory_bytes,
                    block_bytes = limits.block_bytes,
                    "mounted: {reason}"
                );
                let mounted = Mounted::new(location, method, reason);
                return Ok(mounted.served(Served { kernel_mount, files, passthrough, workers }, made));
            }
            // A copy cannot go where something is mounted.
            Err(reason) if config.mode == MountMode::Fuse || config.descriptor.is_some() => {
                return Err(Error::FuseRefused { location: location.clone(), reason });
            }
            Err(reason) => {
                let own = namespace::refusal().map(|refusal| format!("; {refusal}")).unwrap_or_default();
                format!("FUSE is refused: {reason}{own}")
            }
        }
    };
    tracing::warn!(location = %location.display(), bytes = tree.file_bytes(), "copying all files: {reason}");
    let start = Instant::now();
    let work = {
        let (location, volume_bytes, cancel) = (location.clone(), input.volume_bytes, cancel.clone());
        async move { copy::copy(&tree, &*source, &location, volume_bytes, &cancel).await }
    };
    let copied = workers.run(cancel, work).await?;
    made.keep();
    tracing::info!(
        location = %location.display(),
        files = copied.files,
        bytes = copied.bytes,
        kept_files = copied.kept_files,
        seconds = start.elapsed().as_secs_f64(),
        "copied all files"
    );
    Ok(Mounted::new(location, Method::Copy, reason))
}
