//! Pages in Debian's Chromium, through `scripts/browser.js`.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use super::process::{Process, installed, skip};
use super::project;

/// Starting Chromium takes seconds on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(180);

/// Folder for screenshots, which people look at.
pub fn screenshots() -> PathBuf {
    let folder = project().join("target/screenshots");
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// Opens a page as `order` says and gives what is on it; `None` where there is no Chromium (and the test says so). The script
/// describes both.
#[track_caller]
pub fn look(mut order: Value) -> Option<Value> {
    let chromium = installed("chromium", "chromium")?;
    let node = installed("node", "npm")?;
    order["chromium"] = chromium.to_str().unwrap().into();
    let mut browser = Process::new(node).args([project().join("scripts/browser.js")]).args([order.to_string()]);
    for key in ["HOME", "TMPDIR"] {
        browser = std::env::var_os(key).into_iter().fold(browser, |browser, value| browser.env(key, value));
    }
    let seen = browser.env("NODE_PATH", modules()?.join("node_modules")).timeout(PATIENCE).run().expect_code(0);
    Some(serde_json::from_str(&seen.stdout).unwrap())
}

/// The folder with the driver.
fn modules() -> Option<PathBuf> {
    static MODULES: OnceLock<Option<PathBuf>> = OnceLock::new();
    let install = || {
        let mut script = Process::new(project().join("scripts/node-modules")).args(["browser"]).timeout(PATIENCE);
        // npm finds its settings, proxies and caches there.
        for (key, value) in std::env::vars_os() {
            script = script.env(key, value);
        }
        let finished = script.run();
        if finished.code() != Some(0) {
            skip(&format!("scripts/node-modules browser failed: {finished}"));
            return None;
        }
        Some(PathBuf::from(finished.stdout.trim()))
    };
    MODULES.get_or_init(install).clone()
}
