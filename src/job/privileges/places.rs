//! Directories and files that a job writes, and those that it must be able to read.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};

use flashjob_config::{BackendKind, JobConfig, MountMode};
use flashjob_mount::{self as mount, MadeDirectories};

/// Device files that a computation opens for writing: of NVIDIA's and AMD's GPUs, and of their networks.
const DEVICES: [&str; 5] = ["nvidia", "gdrdrv", "kfd", "dri", "infiniband"];

/// Device files of no hardware that any library may write to.
const PSEUDO_DEVICES: [&str; 3] = ["/dev/null", "/dev/zero", "/dev/full"];

/// Variables that name a directory for temporary files or a cache of an engine that runs in a process of its own.
const CACHE_VARIABLES: [&str; 9] = [
    "TMPDIR",
    "XDG_CACHE_HOME",
    "VLLM_CACHE_ROOT",
    "VLLM_RPC_BASE_PATH",
    "TRITON_CACHE_DIR",
    "TORCHINDUCTOR_CACHE_DIR",
    "HF_HOME",
    "CUDA_CACHE_PATH",
    "FLASHINFER_WORKSPACE_BASE",
];

/// Caches below a home directory, made where they are missing.
const HOME_CACHES: [&str; 2] = [".cache", ".triton"];

/// The same, used where they are there.
const HOME_SETTINGS: [&str; 2] = [".config", ".nv"];

/// Places of one job, by what it does there.
#[derive(Debug, Default)]
pub struct Places {
    /// Results first, then the cache: made where they are missing, and kept.
    pub kept: Vec<PathBuf>,
    /// Mount locations that may be filled by a copy.
    pub copies: Vec<PathBuf>,
    /// All mount locations: made where they are missing, and removed once they are empty.
    pub locations: Vec<PathBuf>,
    /// Single files, such as the termination message.
    pub files: Vec<PathBuf>,
    /// Temporary directories and caches of an engine that runs in a process of its own.
    pub engine: Vec<PathBuf>,
    /// The home directory that such an engine expects to be its own.
    pub home: Option<PathBuf>,
    /// Device files that a computation opens.
    pub devices: Vec<PathBuf>,
    /// Files and directories that are read where they are.
    pub read: Vec<PathBuf>,
}

/// Directories that were made for a job. Mount locations among them that are empty go when this goes.
#[derive(Default)]
pub struct Made {
    locations: Vec<MadeDirectories>,
}

impl Made {
    /// Leaves all of them: another process removes them.
    pub fn keep(mut self) {
        self.locations.iter_mut().for_each(MadeDirectories::keep);
    }
}

impl Places {
    /// The places of `job`.
    pub fn of(job: &JobConfig) -> Self {
        let is_passed_in = job.mount.descriptor.is_some();
        let with_par = || job.inputs.iter().filter(|input| input.par.is_some()).map(|input| input.location.clone());
        let copies = match job.mount.mode {
            MountMode::Fuse => Vec::new(),
            // A copy is what is left where FUSE is refused.
            MountMode::Auto if is_passed_in || mount::may_mount() => Vec::new(),
            MountMode::Auto | MountMode::Copy => with_par().collect(),
        };
        let without_par = job.inputs.iter().filter(|input| input.par.is_none()).map(|input| input.location.clone());
        let named = [&job.model, &job.tokenizer].into_iter().flat_map(|named| named.candidates(&job.inputs));
        let dataset = job.workload.dataset.path().map(Path::to_owned);
        let certificates = job.tracking.as_ref().and_then(|tracking| tracking.server_cert_path.clone());
        let is_another_engine = job.backend != BackendKind::Candle;
        let interpreters = if is_another_engine { interpreters() } else { Vec::new() };
        let read = without_par.chain(named).chain(dataset).chain(certificates).chain(interpreters);
        // A mount that was passed in answers no request before the job serves it.
        let is_mounted = |path: &PathBuf| with_par().any(|location| path.starts_with(location));
        Self {
            kept: [Some(job.results_dir.clone()), job.mount.cache_directory.clone()].into_iter().flatten().collect(),
            copies,
            locations: if is_passed_in { Vec::new() } else { with_par().collect() },
            files: job.telemetry.termination_message.iter().cloned().collect(),
            engine: if is_another_engine { engine_directories() } else { gpu_caches() },
            home: if is_another_engine { home() } else { None },
            devices: devices(),
            read: read.filter(|path| !is_mounted(path) && path.exists()).collect(),
        }
    }

    /// Makes what is missing, as the property of `owner` where that is another user. What cannot be made the job finds out, and
    /// says.
    pub fn make(&self, owner: Option<(u32, u32)>) -> Made {
        let hand_over = |directory: &Path| {
            if let Some((user, group)) = owner {
                let _ = chown(directory, Some(user), Some(group));
            }
        };
        for directory in self.kept.iter().chain(&self.engine).filter(|directory| !directory.exists()) {
            if fs::create_dir_all(directory).is_ok() {
                hand_over(directory);
            }
        }
        let mut made = Made::default();
        for location in self.locations.iter().filter(|location| !location.exists()) {
            if let Ok(directories) = MadeDirectories::make(location) {
                hand_over(location);
                made.locations.push(directories);
            }
        }
        made
    }

    /// Everything that the job may write to.
    pub fn writable(&self) -> Vec<&Path> {
        let groups = [&self.kept, &self.copies, &self.files, &self.engine, &self.devices];
        groups.into_iter().flatten().map(PathBuf::as_path).collect()
    }
}

fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

/// Pythons of `PATH`, and what belongs to them: a virtual environment lies in the directory above.
fn interpreters() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).filter(|directory| directory.join("python3").exists());
    let with_environment = directories.flat_map(|directory| {
        let above = directory.parent().map(Path::to_owned);
        [Some(directory.join("python3")), Some(directory), above].into_iter().flatten()
    });
    with_environment.collect()
}

fn devices() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev").into_iter().flatten().flatten();
    let names_one = |name: &str| DEVICES.iter().any(|device| name.starts_with(device));
    let of_hardware =
        entries.filter(|entry| entry.file_name().to_str().is_some_and(names_one)).map(|entry| entry.path());
    PSEUDO_DEVICES.iter().map(PathBuf::from).chain(of_hardware).collect()
}

/// Caches of the CUDA driver, which compiles kernels for GPUs that it finds none for.
fn gpu_caches() -> Vec<PathBuf> {
    let named = std::env::var_os("CUDA_CACHE_PATH").map(PathBuf::from);
    named.into_iter().chain(home().map(|home| home.join(".nv"))).filter(|path| path.exists()).collect()
}

fn engine_directories() -> Vec<PathBuf> {
    let named = CACHE_VARIABLES.iter().filter_map(std::env::var_os).filter(|value| !value.is_empty());
    let in_home = home().into_iter().flat_map(|home| {
        let settings =
            HOME_SETTINGS.iter().map(|name| home.join(name)).filter(|path| path.exists()).collect::<Vec<_>>();
        HOME_CACHES.iter().map(|name| home.join(name)).chain(settings).collect::<Vec<_>>()
    });
    let shared = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
    named.map(PathBuf::from).chain(in_home).chain(shared).collect()
}
