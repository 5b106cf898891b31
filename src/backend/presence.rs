//! Check that this image and this build hold what a job asks for, before anything is mounted or read.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use flashjob_config::{BackendKind, DeviceChoice, JobConfig};
use flashjob_engine::{Cpu, Platform, instructions};
use flashjob_host::given_gpus::given_gpus;

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

/// Device of our own engine: the configured one, or with `auto` the GPUs if there are any. A container that was given GPUs which
/// cannot be used is refused: its CPU would compute, slowly and at the price of the GPUs.
fn placement(config: &JobConfig) -> Result<&'static dyn Platform, String> {
    let ranks = Ranks::of(config);
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
        // The log and the result name the device.
        DeviceChoice::Auto => match usable() {
            Ok(support) => on_gpus(&support, &ranks),
            Err(reason) => match given_gpus(|name| std::env::var_os(name), Path::new("/dev")) {
                Some(sign) => Err(format!(
                    "device=auto takes no CPU where a GPU was given, and none can be used: {sign}, but {reason}"
                )),
                None => on_the_cpu(&ranks),
            },
        },
    }
}

/// This build's way to GPUs, of which this process sees one at least.
///
/// # Errors
/// The reason why none can be used.
fn usable() -> Result<GpuSupport, String> {
    let without =
        "this binary was built without GPU support; use the image `cuda` (scripts/image cuda), or set device=cpu";
    let support = gpus::support().ok_or(without)?;
    match (support.visible)()? {
        0 => Err(NONE_SHOWN.to_owned()),
        _ => Ok(support),
    }
}

/// Ranks of all engines that this node must have room for.
struct Ranks {
    here: usize,
    /// The settings that ask for them, for messages.
    asked: String,
    /// A change of settings that helps, where there is room for so many.
    remedy: fn(usize) -> String,
}

impl Ranks {
    fn of(config: &JobConfig) -> Self {
        let (ranks, engines) = (config.engine.tensor_parallel_size, config.engine.data_parallel_size);
        let (all, num_nodes) = (ranks.map_or(1, usize::from), config.num_nodes());
        // Rounded up: a number that nodes cannot share evenly is refused by the engine, which knows the model.
        let of_an_engine = all.div_ceil(num_nodes);
        let of_nodes = |most| format!("set tensor-parallel-size to {most} or less");
        match (num_nodes, engines.map(usize::from)) {
            (1, None) => Self { here: of_an_engine, asked: format!("tensor-parallel-size={all}"), remedy: of_nodes },
            (1, Some(engines)) => Self {
                here: of_an_engine.saturating_mul(engines),
                asked: match ranks {
                    Some(ranks) => format!("data-parallel-size={engines} times tensor-parallel-size={ranks}"),
                    None => format!("data-parallel-size={engines}"),
                },
                remedy: |most| format!("lower them, so that their product is {most} or less"),
            },
            _ => Self {
                here: of_an_engine,
                asked: format!("tensor-parallel-size={all} on {num_nodes} nodes"),
                remedy: of_nodes,
            },
        }
    }
}

fn on_the_cpu(Ranks { here, asked, remedy }: &Ranks) -> Result<&'static dyn Platform, String> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from).max(LEAST_CPU_RANKS);
    if *here > processors {
        return Err(format!(
            "{asked} is above the {processors} ranks that there can be here: on the CPU a rank is a \
             thread; {}",
            remedy(processors)
        ));
    }
    Ok(&Cpu)
}

/// A driver without devices.
const NONE_SHOWN: &str =
    "the CUDA driver shows this process no GPU; see whether CUDA_VISIBLE_DEVICES hides them, or set device=cpu";

fn on_gpus(gpus: &GpuSupport, Ranks { here, asked, remedy }: &Ranks) -> Result<&'static dyn Platform, String> {
    let visible = (gpus.visible)().map_err(|reason| format!("device=cuda cannot be had: {reason}"))?;
    if visible == 0 {
        return Err(format!("device=cuda cannot be had: {NONE_SHOWN}"));
    }
    if *here > visible {
        return Err(format!(
            "{asked} is above the {visible} GPUs that this process sees: give it more, or {}",
            remedy(visible)
        ));
    }
    (gpus.check)(*here)?;
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
