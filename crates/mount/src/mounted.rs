//! A mount in use, and its end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::runtime::{Handle, Runtime};
use tokio_util::sync::CancellationToken;

use super::direct::DirectFiles;
use super::error::Error;
use super::filesystem::FileSystem;
use super::kernel_mount::KernelMount;
use super::location::MadeDirectories;
use super::passthrough::Passthrough;
use super::source::Fault;

/// Method by which an input became files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// FUSE: read from the bucket as needed.
    Fuse,
    /// FUSE in a mount namespace that only this process and its children see.
    FuseNamespace,
    /// FUSE through a descriptor that another process has mounted.
    FuseDescriptor,
    /// Downloaded before the job starts.
    Copy,
    /// Present before the job started.
    Existing,
}

impl Method {
    /// Name of the method in logs and results.
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
    /// Directory of the files.
    pub location: PathBuf,
    /// Method by which they got there.
    pub method: Method,
    /// Reason for the method, in one sentence.
    pub reason: String,
    served: Option<Served>,
    // After `served` in drop order: a directory can be removed only once nothing is mounted on it.
    _made: MadeDirectories,
}

/// The parts of a FUSE mount.
pub(super) struct Served {
    pub(super) kernel_mount: KernelMount,
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

    /// Unmounts. Files that were copied or present stay.
    pub fn unmount(mut self) -> Result<(), Error> {
        self.end()
    }

    fn end(&mut self) -> Result<(), Error> {
        let Some(mut served) = self.served.take() else { return Ok(()) };
        // The kernel's side first: readers must not see errors that only the shutdown causes.
        let result = served.kernel_mount.detach();
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

    /// Files for reading without the kernel. `None` where they are ordinary files: open those by their paths.
    pub fn direct(&self) -> Option<DirectFiles> {
        Some(DirectFiles::new(self.location.clone(), self.served.as_ref()?.files.clone()))
    }

    /// Number of opens that the kernel serves by itself from whole files of the disk cache (passthrough).
    pub fn passed_through(&self) -> Option<u64> {
        Some(self.served.as_ref()?.passthrough.as_ref()?.opens())
    }

    /// Memory of the blocks, now and at the peak, in bytes.
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

/// Threads that fetch and reply. A runtime of their own, so that files can be read whatever the process does with its
/// own runtime, and from inside it.
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

    /// Runs `work` on these threads; may be called from any runtime.
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
                // Awaited after the abort: the task owns temporary files, which it removes when it is dropped.
                let _ = task.await;
                Err(Error::Cancelled)
            }
        }
    }

    /// Ends all tasks. Does not wait, so that a task may call it.
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
