//! A mount in use, and its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;

use super::attached::Attached;
use super::direct::DirectFiles;
use super::error::Error;
use super::filesystem::FileSystem;
use super::location::MadeDirectories;
use super::passthrough::Passthrough;
use super::source::Fault;

/// How an input became files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Read from the bucket as they are needed.
    Fuse,
    /// The same, seen by this process and its children alone.
    FuseNamespace,
    /// The same, through a descriptor that was mounted by somebody else.
    FuseDescriptor,
    /// Downloaded before anything else.
    Copy,
    /// They were there already.
    Existing,
}

impl Method {
    /// The word for logs and results.
    pub fn name(self) -> &'static str {
        match self {
            Method::Fuse => "fuse",
            Method::FuseNamespace => "fuse-namespace",
            Method::FuseDescriptor => "fuse-descriptor",
            Method::Copy => "copy",
            Method::Existing => "existing",
        }
    }
}

/// Files at a path. A FUSE mount comes down when this is dropped, also while a panic unwinds.
pub struct Mounted {
    /// Where the files are.
    pub location: PathBuf,
    /// How they got there.
    pub method: Method,
    /// Why this method, in one sentence.
    pub reason: String,
    served: Option<Served>,
    // After `served`: a directory goes once nothing is mounted on it.
    _made: MadeDirectories,
}

/// What a FUSE mount is made of.
pub(super) struct Served {
    pub(super) attached: Attached,
    pub(super) files: FileSystem,
    pub(super) passthrough: Option<Arc<Passthrough>>,
    pub(super) workers: Workers,
}

impl Mounted {
    pub(super) fn new(location: &Path, method: Method, reason: String) -> Self {
        Self { location: location.to_owned(), method, reason, served: None, _made: MadeDirectories::default() }
    }

    pub(super) fn served(mut self, served: Served, made: MadeDirectories) -> Self {
        self.served = Some(served);
        self._made = made;
        self
    }

    /// Takes the mount away. What was copied or was there already stays.
    ///
    /// # Errors
    /// Where the kernel refuses it, with the command to do it by hand.
    pub fn unmount(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(mut served) = self.served.take() else { return Ok(()) };
        // The kernel lets go first, so that no reader is told of an error that is none.
        let result = served.attached.detach();
        served.files.blocks().shut();
        served.workers.stop();
        if let Some(passthrough) = &served.passthrough {
            tracing::info!(opens = passthrough.opens(), "passed through to files of the disk cache");
        }
        result
    }

    /// The first fault that a reader got, such as a PAR that expired: the errno that the reader saw says less.
    pub fn health(&self) -> Option<Fault> {
        self.served.as_ref()?.files.blocks().health()
    }

    /// Its files, to be read without the kernel. `None` where they are ordinary ones: open those by their paths.
    pub fn direct(&self) -> Option<DirectFiles> {
        Some(DirectFiles::new(self.location.clone(), self.served.as_ref()?.files.clone()))
    }

    /// How many opens the kernel has answered by itself so far, from whole files of the disk cache.
    pub fn passed_through(&self) -> Option<u64> {
        Some(self.served.as_ref()?.passthrough.as_ref()?.opens())
    }

    /// Memory that its blocks take now, and the most that they ever took, in bytes.
    pub fn memory_bytes(&self) -> Option<(usize, usize)> {
        Some(self.served.as_ref()?.files.blocks().memory_bytes())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::error!("{error}");
        }
    }
}

/// The threads that fetch and reply. Their own, so that files can be read whatever the rest of the process
/// does with its runtime, and from inside it.
pub(super) struct Workers {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Workers {
    pub(super) fn start() -> Result<Self, Error> {
        let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("mount")
            .enable_all()
            .build()
            .map_err(Error::Threads)?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Runs `work` on these threads, from whatever runtime this is called on.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        cancel: &CancellationToken,
        work: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let mut task = self.handle.spawn(work);
        tokio::select! {
            result = &mut task => match result {
                Ok(result) => result,
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => Err(Error::Cancelled),
            },
            () = cancel.cancelled() => {
                task.abort();
                // It holds files that it removes when it ends.
                let _ = task.await;
                Err(Error::Cancelled)
            }
        }
    }

    /// Ends all tasks. Does not wait, so that it may be called from a task.
    pub(super) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop();
    }
}
