//! Check that this image and this build hold what a job asks for, before anything is mounted or read.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use flashjob_config::{BackendKind, DeviceChoice, JobConfig};
use flashjob_engine::{Cpu, Platform, instructions};

use super::child_engine::{self, Product};
use super::gpus::{self, GpuSupport};
use super::sglang::SGLANG;
use super::vllm::VLLM;

/// Ranks that a CPU may have however few processors it has: to try out what will run on GPUs.
const LEAST_CPU_RANKS: usize = 16;

/// An engine that this image has.
#[derive(Clone, Debug)]
pub enum Found {
    /// Our own engine, and its kind of devices.
    Candle(&'static dyn Platform),
    /// vLLM, and the interpreter that imports it.
    Vllm(Interpreter),
    /// SGLang, and the interpreter that imports it.
    Sglang(Interpreter),
}

/// A Python that can import an engine.
#[derive(Clone, Debug)]
pub struct Interpreter(PathBuf);

impl Interpreter {
    /// The interpreter at `path`.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Path of the executable.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

/// Exits with 0 where the named package can be imported, without importing it: that takes vLLM ten seconds. A package in the
/// working directory does not count.
const CAN_IMPORT: &str = "import sys; sys.path = [p for p in sys.path if p]; import importlib.util as u; sys.exit(not u.find_spec(sys.argv[1]))";

/// Finds the engine that runs `config`.
///
/// # Errors
/// One sentence that names the missing backend or device, and an image or setting that has it.
pub fn check(config: &JobConfig) -> Result<Found, String> {
    match config.backend {
        BackendKind::Candle => {
            instructions(config.engine.instruction_set).map_err(|error| error.to_string())?;
            placement(config).map(Found::Candle)
        }
        BackendKind::Vllm => child(&VLLM, config).map(Found::Vllm),
        BackendKind::Sglang => child(&SGLANG, config).map(Found::Sglang),
    }
}

/// The interpreter of an engine that can do what `config` asks for.
fn child(product: &Product, config: &JobConfig) -> Result<Interpreter, String> {
    let (Product { name, backend, .. }, refused) = (product, child_engine::refused(product, config));
    refused.map_or(Ok(()), Err)?;
    interpreter(backend).ok_or_else(|| {
        format!(
            "backend={backend} was asked for, but this image has no {name} (no `python3` in PATH that finds a package \
             `{backend}`), and no other engine is run in its place; use an image that has it (scripts/image {backend}), or \
             backend=candle"
        )
    })
}

/// Device of our own engine: the configured one, or with `auto` the GPUs if there are any.
fn placement(config: &JobConfig) -> Result<&'static dyn Platform, String> {
    let (all, num_nodes) = (config.engine.tensor_parallel_size.map_or(1, usize::from), config.num_nodes());
    let asked = match num_nodes {
        1 => format!("tensor-parallel-size={all}"),
        _ => format!("tensor-parallel-size={all} on {num_nodes} nodes"),
    };
    // Rounded up: a number that nodes cannot share evenly is refused by the engine, which knows the model.
    let ranks = Ranks { here: all.div_ceil(num_nodes), asked };
    match config.device {
        DeviceChoice::Cpu => on_the_cpu(&ranks),
        DeviceChoice::Cuda => match gpus::support() {
            Some(support) => on_gpus(&support, &ranks),
            None => Err(
                "device=cuda cannot be had: this binary was built without the feature `cuda`; use an image that was \
                         built with it, or device=cpu"
                    .to_owned(),
            ),
        },
        DeviceChoice::Auto => match gpus::support() {
            // The log and the result name the device.
            Some(support) if (support.visible)().is_ok_and(|visible| visible > 0) => on_gpus(&support, &ranks),
            Some(_) | None => on_the_cpu(&ranks),
        },
    }
}

/// Ranks that this node must have room for.
struct Ranks {
    here: usize,
    /// The setting that asks for them, for messages.
    asked: String,
}

fn on_the_cpu(Ranks { here, asked }: &Ranks) -> Result<&'static dyn Platform, String> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from).max(LEAST_CPU_RANKS);
    if *here > processors {
        return Err(format!(
            "{asked} is above the {processors} ranks that there can be here: on the CPU a rank is a \
             thread; set tensor-parallel-size to {processors} or less"
        ));
    }
    Ok(&Cpu)
}

fn on_gpus(gpus: &GpuSupport, Ranks { here, asked }: &Ranks) -> Result<&'static dyn Platform, String> {
    let visible = (gpus.visible)().map_err(|reason| format!("device=cuda cannot be had: {reason}"))?;
    if visible == 0 {
        return Err(
            "device=cuda cannot be had: the CUDA driver shows this process no GPU; see whether CUDA_VISIBLE_DEVICES \
                    hides them, or set device=cpu"
                .to_owned(),
        );
    }
    if *here > visible {
        return Err(format!(
            "{asked} is above the {visible} GPUs that this process sees: give it more, or set \
             tensor-parallel-size to {visible} or less"
        ));
    }
    Ok(gpus.platform)
}

/// The `python3` of PATH, if it finds `package`.
fn interpreter(package: &str) -> Option<Interpreter> {
    let python = find_program("python3")?;
    let mut probe = child_engine::command(&python);
    // It shares nothing with the job's own streams: a warning of Python in the log would look like the job's.
    probe.args(["-c", CAN_IMPORT, package]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().is_ok_and(|status| status.success()).then(|| Interpreter::at(python))
}

fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}
