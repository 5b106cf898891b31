//! The contents of folders, for tests that compare them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Everything below `folder` but for access times: kind, owner, and content or where a link leads.
pub fn everything_in(folder: &Path) -> BTreeMap<PathBuf, (u32, u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            // Links are not followed: they may lead outside, or in a circle.
            let there = path.symlink_metadata().unwrap();
            let content = if there.is_symlink() {
                path.read_link().unwrap().into_os_string().into_encoded_bytes()
            } else if there.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            if there.is_dir() {
                folders.push(path.clone());
            }
            found.insert(path, (there.mode(), there.uid(), content));
        }
    }
    found
}
