//! Whether this image and this build hold what a job asks for, told before anything is mounted or read.

use std::path::PathBuf;

use crate::config::{BackendKind, DeviceChoice, JobConfig};
use crate::engine::Placement;

/// Ranks that a CPU may have however few processors it has: to try out what will run on GPUs.
const LEAST_CPU_RANKS: usize = 16;

/// Where `config`'s engine computes, or why its backend or device cannot be had here.
///
/// # Errors
/// One sentence that names what is missing and what has it.
pub fn check(config: &JobConfig) -> Result<Placement, String> {
    match config.backend {
        BackendKind::Candle => placement(config),
        BackendKind::Vllm => Err(child_engine("vllm", "vLLM")),
        BackendKind::Sglang => Err(child_engine("sglang", "SGLang")),
    }
}

/// Where our own engine computes: what was asked for, or with `auto` the GPUs if there are any.
fn placement(config: &JobConfig) -> Result<Placement, String> {
    let ranks = config.engine.tensor_parallel_size.map_or(1, usize::from);
    match config.device {
        DeviceChoice::Cpu => on_the_cpu(ranks),
        DeviceChoice::Cuda => on_gpus(ranks),
        DeviceChoice::Auto => on_gpus_if_there_are(ranks),
    }
}

fn on_the_cpu(ranks: usize) -> Result<Placement, String> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from).max(LEAST_CPU_RANKS);
    if ranks > processors {
        return Err(format!(
            "tensor-parallel-size={ranks} is above the {processors} ranks that there can be here: on the CPU a rank is a \
             thread; set tensor-parallel-size to {processors} or less"
        ));
    }
    Ok(Placement::Cpu)
}

#[cfg(not(feature = "cuda"))]
fn on_gpus(_ranks: usize) -> Result<Placement, String> {
    Err("device=cuda cannot be had: this binary was built without the feature `cuda`; use an image that was built with it, or \
         device=cpu"
        .to_owned())
}

#[cfg(not(feature = "cuda"))]
fn on_gpus_if_there_are(ranks: usize) -> Result<Placement, String> {
    on_the_cpu(ranks)
}

#[cfg(feature = "cuda")]
fn on_gpus(ranks: usize) -> Result<Placement, String> {
    let visible = crate::engine::visible_gpus().map_err(|reason| format!("device=cuda cannot be had: {reason}"))?;
    if visible == 0 {
        return Err(
            "device=cuda cannot be had: the CUDA driver shows this process no GPU; see whether CUDA_VISIBLE_DEVICES \
                    hides them, or set device=cpu"
                .to_owned(),
        );
    }
    if ranks > visible {
        return Err(format!(
            "tensor-parallel-size={ranks} is above the {visible} GPUs that this process sees: give it more, or set \
             tensor-parallel-size to {visible} or less"
        ));
    }
    Ok(Placement::Gpus)
}

#[cfg(feature = "cuda")]
fn on_gpus_if_there_are(ranks: usize) -> Result<Placement, String> {
    match crate::engine::visible_gpus() {
        Ok(visible) if visible > 0 => on_gpus(ranks),
        // Without a driver or a GPU. The log and the result name the device.
        _ => on_the_cpu(ranks),
    }
}

fn child_engine(program: &str, name: &str) -> String {
    match find_program(program) {
        Some(path) => format!(
            "backend={program} was asked for and {name} is installed ({}), but this version of flashjob cannot drive it \
             yet; use backend=candle",
            path.display()
        ),
        None => format!(
            "backend={program} was asked for, but this image has no {name} (no program `{program}` in PATH), and no other \
             engine is run in its place; use an image that has {name}, or backend=candle"
        ),
    }
}

fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|candidate| candidate.is_file())
}
