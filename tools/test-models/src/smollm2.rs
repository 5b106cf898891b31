//! Real weights: SmolLM2-135M-Instruct as a quantised GGUF file.

use std::path::PathBuf;

use flashjob_test_support::process::skip;

/// The file where `scripts/smollm2` keeps it; `None` where it was not fetched.
pub fn file() -> Option<PathBuf> {
    let tools = std::env::var_os("FLASHJOB_TOOLS").map(PathBuf::from);
    let tools = tools.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache/flashjob")))?;
    let path = Some(tools.join("weights/SmolLM2-135M-Instruct.Q4_1.gguf")).filter(|path| path.exists());
    if path.is_none() {
        skip("SmolLM2's weights are not here (scripts/smollm2 fetches them)");
    }
    path
}
