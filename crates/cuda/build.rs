//! Compiles the GPU's kernels to PTX, which the driver turns into code for whatever GPU it finds. Without the feature
//! `cuda` there is nothing to do.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    #[cfg(feature = "cuda")]
    kernels();
}

#[cfg(feature = "cuda")]
fn kernels() {
    let source = "src/kernels.cu";
    println!("cargo::rerun-if-changed={source}");
    let built = cudaforge::KernelBuilder::new().source_files([source]).arg("-std=c++17").arg("-O3").build_ptx();
    if let Err(error) = built {
        println!("cargo::error=the kernels in {source} were not compiled: {error}");
    }
}
