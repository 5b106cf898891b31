//! Whether this image and this build hold what a job asks for, told before anything is mounted or read.

use std::path::PathBuf;

use crate::config::{BackendKind, DeviceChoice, JobConfig};

/// Ranks that a CPU may have however few processors it has: to try out what will run on GPUs.
const LEAST_CPU_RANKS: usize = 16;

/// Says why `config`'s backend or device cannot be had here.
///
/// # Errors
/// One sentence that names what is missing and what has it.
pub fn check(config: &JobConfig) -> Result<(), String> {
    match config.backend {
        BackendKind::Candle => device(config),
        BackendKind::Vllm => Err(child_engine("vllm", "vLLM")),
        BackendKind::Sglang => Err(child_engine("sglang", "SGLang")),
    }
}

fn device(config: &JobConfig) -> Result<(), String> {
    if config.device == DeviceChoice::Cuda && !cfg!(feature = "cuda") {
        return Err(
            "device=cuda cannot be had: this binary was built without the feature `cuda`; use an image that was \
                    built with it, or device=cpu"
                .to_owned(),
        );
    }
    let ranks = config.engine.tensor_parallel_size.map_or(1, usize::from);
    let processors = std::thread::available_parallelism().map_or(1, usize::from).max(LEAST_CPU_RANKS);
    if ranks > processors {
        return Err(format!(
            "tensor-parallel-size={ranks} is above the {processors} ranks that there can be here: on the CPU a rank is a \
             thread; set tensor-parallel-size to {processors} or less"
        ));
    }
    Ok(())
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
