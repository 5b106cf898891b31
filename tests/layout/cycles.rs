//! Imports between the files of the engine, which have no cycle: each file can be read after those that it imports.

use std::collections::{BTreeMap, BTreeSet};

use super::imports::crate_paths;
use super::sources;

const ENGINE: &str = "crates/engine/src/";

/// The module that a file is, by the names on the way to it.
fn module(path: &str) -> Vec<String> {
    let path = path.strip_suffix(".rs").unwrap();
    path.split('/').map(str::to_owned).collect()
}

/// Files by the files that they import. A path leads to the file of its longest beginning that is a module.
fn edges(files: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<String>> {
    let modules: BTreeMap<Vec<String>, &String> = files.keys().map(|path| (module(path), path)).collect();
    let mut edges = BTreeMap::new();
    for (path, text) in files {
        let own = if path == "lib.rs" { Vec::new() } else { module(path) };
        let targets = crate_paths(text, &own).into_iter().map(|found| {
            let segments = found.segments;
            let file = (1..=segments.len()).rev().find_map(|count| modules.get(&segments[..count]));
            file.map_or_else(|| "lib.rs".to_owned(), |file| (*file).clone())
        });
        edges.insert(path.clone(), targets.filter(|target| target != path).collect::<BTreeSet<String>>());
    }
    edges
}

/// Files that are left when those are taken away, again and again, that import nothing which is left (Kahn, 1962): none where
/// there is no cycle.
fn on_cycles(mut edges: BTreeMap<String, BTreeSet<String>>) -> BTreeMap<String, BTreeSet<String>> {
    loop {
        let left: BTreeSet<String> = edges.keys().cloned().collect();
        edges.values_mut().for_each(|targets| targets.retain(|target| left.contains(target)));
        let count = edges.len();
        edges.retain(|_, targets| !targets.is_empty());
        if edges.len() == count {
            return edges;
        }
    }
}

fn engine() -> BTreeMap<String, String> {
    let files = sources(ENGINE).into_iter();
    files.map(|(path, text)| (path.strip_prefix(ENGINE).unwrap().to_owned(), text)).collect()
}

#[test]
fn files_of_the_engine_import_each_other_without_cycles() {
    let edges = edges(&engine());
    assert!(edges.values().map(BTreeSet::len).sum::<usize>() > 150, "imports are not found: {edges:?}");
    let found = on_cycles(edges);
    assert!(found.is_empty(), "files on a cycle, and what they import there: {found:#?}");
}

#[test]
fn files_of_the_engine_are_listed_in_the_map_of_their_folder() {
    for (path, text) in engine() {
        let folder = path.strip_suffix(".rs").unwrap();
        let file_in = |other: &String| other.strip_prefix(folder).is_some_and(|rest| rest.starts_with('/'));
        if !folder.contains('/') && engine().keys().any(file_in) {
            let own = text.lines().filter(|line| line.starts_with("//!")).count();
            assert!(own > 1, "{path} does not say what its folder is for");
        }
    }
}

#[test]
fn a_planted_cycle_is_found() {
    let plant = |files: &[(&str, &str)]| {
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        on_cycles(edges(&files)).into_keys().collect::<Vec<_>>()
    };
    let decoder = ("forward/decoder.rs", "use crate::parallel::world::World;");
    let world = ("parallel/world.rs", "use crate::{cost::Cost, error::Error};");
    let lib = ("lib.rs", "mod cost; pub use cost::Cost;");
    let error = ("error.rs", "pub enum Error {}");
    let none: [&str; 0] = [];
    assert_eq!(plant(&[decoder, world, lib, error, ("cost.rs", "fn f() { forward::decoder::x() }")]), none);
    let cost = ("cost.rs", "use crate::forward::decoder::Decoder;");
    let found = plant(&[decoder, world, lib, error, cost]);
    assert_eq!(found, ["cost.rs", "forward/decoder.rs", "lib.rs", "parallel/world.rs"], "lib.rs imports what is on it");
    assert_eq!(plant(&[("a.rs", "mod b; use b::B;"), ("a/b.rs", "use super::A;")]), ["a.rs", "a/b.rs"]);
    for (text, found) in [
        ("use super::cost::Cost;", true),
        ("fn f() { crate::cost::f() }", true),
        ("use crate::Cost;", true),
        ("//! [`crate::cost`]", false),
        ("#[cfg(test)] mod tests { use crate::cost::Cost; }", false),
    ] {
        let files =
            [("error.rs", text), ("lib.rs", "pub use crate::cost::Cost;"), ("cost.rs", "use crate::error::Error;")];
        assert_eq!(!plant(&files).is_empty(), found, "{text}");
    }
}
