//! GPUs of this build: those of NVIDIA where it has the feature `cuda`, and none otherwise.

use flashjob_engine::Platform;
use flashjob_host::gpus::Gpus;

/// A build's way to GPUs.
pub struct GpuSupport {
    /// The platform on which ranks compute.
    pub platform: &'static dyn Platform,
    /// Number of GPUs that this process may use, or one sentence on what is missing.
    pub visible: fn() -> Result<usize, String>,
    /// Tells whether the driver and so many GPUs can run this build, or one sentence on what is too old.
    pub check: fn(usize) -> Result<(), String>,
    /// Starts sampling them, or one sentence on what is missing.
    watch: fn() -> Result<Gpus, String>,
    /// Shows a phase to a profiler that is attached.
    show_phase: fn(&str),
}

/// The way to GPUs of this build, if it has one. No other file of the entrypoint depends on the feature.
pub fn support() -> Option<GpuSupport> {
    #[cfg(feature = "cuda")]
    return Some(GpuSupport {
        platform: &flashjob_cuda::Cuda,
        visible: flashjob_cuda::visible_gpus,
        check: flashjob_cuda::check_gpus,
        watch: flashjob_cuda::watch_gpus,
        show_phase: flashjob_cuda::show_phase,
    });
    #[cfg(not(feature = "cuda"))]
    None
}

/// The GPUs that this process may use, to be sampled; none where there are none.
///
/// # Errors
/// One sentence: there are GPUs, and they cannot be sampled.
pub fn watch() -> Result<Gpus, String> {
    support().map_or_else(|| Ok(Gpus::default()), |gpus| (gpus.watch)())
}

/// Shows to a profiler of GPUs, if one is attached, that the phase `name` begins and the one before has ended.
pub fn show_phase(name: &str) {
    if let Some(gpus) = support() {
        (gpus.show_phase)(name);
    }
}
