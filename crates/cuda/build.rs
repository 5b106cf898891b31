//! Compiles the GPU's kernels to fat binaries: machine code for the GPUs that are built for, and PTX, which the driver turns into code
//! for later ones; and holds the declaration of FlashAttention's C entry point to its source. Without the feature `cuda` there is nothing
//! to do.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    {
        if let Err(error) = kernels::compile() {
            println!("cargo::error=kernels were not compiled: {error}");
        }
        if let Err(sentence) = entry_point::check() {
            println!("cargo::error=src/run_mha.rs does not declare the entry point of candle-flash-attn: {sentence}");
        }
    }
}

#[cfg(feature = "cuda")]
mod kernels {
    use std::error::Error;
    use std::path::PathBuf;
    use std::process::Command;

    /// Sources, and the names of their fat binaries in `OUT_DIR`.
    const SOURCES: [(&str, &str); 4] = [
        ("src/kernels.cu", "kernels.fatbin"),
        ("src/kernels/adjust_logits.cu", "adjust_logits.fatbin"),
        ("src/kernels/log_probabilities.cu", "log_probabilities.fatbin"),
        ("src/kernels/sampling.cu", "sampling.fatbin"),
    ];

    const HEADERS: [&str; 3] = ["src/kernels/adjustments.cuh", "src/kernels/block.cuh", "src/kernels/token_weight.cuh"];

    /// Ampere and Ada run the code for 8.0, Hopper that for 9.0a; everything later compiles the PTX when it first starts.
    const TARGETS: [&str; 3] = [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_80,code=compute_80",
    ];

    pub fn compile() -> Result<(), Box<dyn Error>> {
        for header in HEADERS {
            println!("cargo::rerun-if-changed={header}");
        }
        println!("cargo::rerun-if-env-changed=NVCC");
        let nvcc = cudaforge::CudaToolkit::detect()?.nvcc_path;
        let folder = PathBuf::from(std::env::var("OUT_DIR")?);
        for (source, name) in SOURCES {
            println!("cargo::rerun-if-changed={source}");
            let compiled = Command::new(&nvcc)
                .args(["--fatbin", "-std=c++17", "-O3"])
                .args(TARGETS)
                .arg("-o")
                .arg(folder.join(name))
                .arg(source)
                .output()?;
            if !compiled.status.success() {
                return Err(format!("{source}: {}", String::from_utf8_lossy(&compiled.stderr)).into());
            }
        }
        Ok(())
    }
}

/// The C entry point of candle-flash-attn: 45 parameters, most of them of one type, that no compiler compares with a declaration by
/// hand.
#[cfg(feature = "cuda")]
mod entry_point {
    use std::path::{Path, PathBuf};
    use std::process::Command;

    use regex::Regex;

    const OURS: &str = "src/run_mha.rs";

    /// Holds `src/run_mha.rs` to the source of the entry point.
    ///
    /// # Errors
    /// A sentence: the source is not found, or has other parameters.
    pub fn check() -> Result<(), String> {
        let source = package("candle-flash-attn")?.join("kernels/flash_api.cu");
        println!("cargo::rerun-if-changed={}", source.display());
        let text = std::fs::read_to_string(&source).map_err(|error| format!("{}: {error}", source.display()))?;
        let ours = std::fs::read_to_string(OURS).map_err(|error| format!("{OURS}: {error}"))?;
        println!("cargo::rerun-if-changed={OURS}");
        let parameters = parameters(&text)?;
        match is_declared(&parameters, &ours) {
            true => Ok(()),
            false => Err(format!("its parameters are {parameters:?}")),
        }
    }

    /// The folder of a package that this build uses, wherever cargo keeps it.
    fn package(name: &str) -> Result<PathBuf, String> {
        let cargo = std::env::var_os("CARGO").ok_or("cargo does not tell its path")?;
        let output =
            Command::new(cargo).args(["metadata", "--format-version=1", "--locked", "--all-features"]).output();
        let output = output.map_err(|error| format!("cargo metadata: {error}"))?;
        if !output.status.success() {
            return Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        let packages = metadata["packages"].as_array().ok_or("cargo metadata lists no packages")?;
        let manifest =
            packages.iter().find(|package| package["name"] == name).and_then(|found| found["manifest_path"].as_str());
        let folder = manifest.and_then(|manifest| Path::new(manifest).parent());
        folder.map(Path::to_owned).ok_or_else(|| format!("no package {name} is in use"))
    }

    /// Names and Rust types of the parameters of `run_mha`.
    fn parameters(text: &str) -> Result<Vec<(String, &'static str)>, String> {
        let list = Regex::new(r#"extern "C" void run_mha\(([^)]*)\)\s*\{"#).map_err(|error| error.to_string())?;
        let parameter = Regex::new(r"^(.+?)\s*(\*?)\s*(\w+)$").map_err(|error| error.to_string())?;
        let found = list.captures(text).ok_or(r#"its source has no `extern "C" void run_mha(…) {`"#)?;
        let rust = |declared: &str| {
            let parts = parameter.captures(declared).ok_or_else(|| format!("`{declared}` is no parameter"))?;
            let kind = match (&parts[1], &parts[2]) {
                ("void", "*") => "*mut c_void",
                ("int32_t", "*") => "*mut i32",
                ("uint32_t", "") => "u32",
                ("float", "") => "f32",
                ("int", "") => "c_int",
                _ => return Err(format!("`{declared}` has a type that has no counterpart here")),
            };
            Ok((parts[3].to_owned(), kind))
        };
        found[1].split(',').map(|declared| rust(declared.trim())).collect()
    }

    /// Parameters as `src/run_mha.rs` declares them, in its struct, its declaration and its call, each in this order.
    fn is_declared(parameters: &[(String, &str)], ours: &str) -> bool {
        let lines =
            |line: fn(&str, &str) -> String| parameters.iter().map(|(name, kind)| line(name, kind)).collect::<String>();
        let all = [
            lines(|name, kind| format!("    pub {name}: {kind},\n")),
            lines(|name, kind| format!("        {name}: {kind},\n")),
            lines(|name, _| format!("                self.{name},\n")),
        ];
        let bounds = [
            ("pub struct RunMha {\n", "}\n"),
            ("    fn run_mha(\n", "    );\n"),
            ("            run_mha(\n", "            )\n"),
        ];
        all.iter().zip(bounds).all(|(list, (before, after))| ours.contains(&format!("{before}{list}{after}")))
    }
}
