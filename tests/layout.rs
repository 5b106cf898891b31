//! The shape of the house: which room may import which, and the manners of its files.
//!
//! The table here is the rule; `ARCHITECTURE.md` explains it to people.

mod documentation;
mod imports;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

use imports::{Import, Target, imports};

/// Each room and the rooms that it may import. `job` alone sees all.
const ROOMS: [(&str, &[&str]); 17] = [
    ("cgroup", &[]),
    ("gpus", &[]),
    ("config", &[]),
    ("deploy", &["config"]),
    ("event", &[]),
    ("kernels", &[]),
    ("retry_after", &[]),
    ("bucket", &["config", "event", "retry_after"]),
    ("mount", &["bucket", "cgroup", "config", "event"]),
    ("model", &["config", "event"]),
    ("engine", &["model", "kernels", "cgroup", "config", "event"]),
    ("backend", &["engine", "model", "config", "event"]),
    ("bench", &["backend", "config", "event", "model"]),
    ("report", &["backend", "bench", "config", "event"]),
    ("mlflow", &["config", "retry_after"]),
    ("telemetry", &["cgroup", "config", "event", "gpus"]),
    (
        "job",
        &[
            "backend",
            "bench",
            "bucket",
            "cgroup",
            "config",
            "deploy",
            "engine",
            "event",
            "gpus",
            "kernels",
            "mlflow",
            "model",
            "mount",
            "report",
            "telemetry",
        ],
    ),
];

/// What the programs may import of the library.
const PROGRAMS: [(&str, &[&str]); 2] = [("src/main.rs", &["job"]), ("src/bin/development_bucket/", &["config"])];

/// The only files, or folders where the name ends in `/`, that may hold `unsafe`, each with a reason that no safe crate
/// covers.
const UNSAFE_FILES: [(&str, &str); 13] = [
    ("src/engine/cuda.rs", "a device whose work is on one stream"),
    ("src/engine/cuda/", "launches, and copies between a host and a GPU"),
    ("src/engine/communicator/nccl.rs", "calls of NCCL"),
    ("src/kernels/", "vector instructions, and buffers that tasks share in disjoint parts"),
    ("src/mount/blocks/buffer.rs", "blocks that are read while they are filled"),
    ("tests/support/allocations.rs", "an allocator that counts"),
    ("src/model/texts_process/confinement.rs", "descriptors that the process was started with"),
    ("src/job/supervisor.rs", "fork, while there is one thread"),
    ("src/mount/kernel.rs", "an ioctl that fuser does not offer"),
    ("src/mount/passthrough.rs", "numbers of backing files that another process registered"),
    ("src/mount/descriptor.rs", "a descriptor that the process was started with"),
    ("src/mount/namespace.rs", "unshare, for which rustix has no safe call"),
    ("tests/support/process.rs", "prctl in a child before exec, kill"),
];

const MEANINGLESS_NAMES: [&str; 8] = ["util", "utils", "helper", "helpers", "common", "manager", "misc", "shared"];

const LONGEST_MAIN_LINES: usize = 20;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file under `directory`: its path from the project's root, and its text.
fn sources(directory: &str) -> BTreeMap<String, String> {
    fn walk(path: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            match path.extension() {
                _ if path.is_dir() => walk(&path, found),
                Some(extension) if extension == "rs" => found.push(path),
                _ => {}
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(directory), &mut found);
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.into_iter().map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

/// Which rooms a file may import, and the module that it is: `None` for files that are no room's.
fn rights(path: &str) -> Option<(Vec<String>, Vec<&'static str>)> {
    for (program, allowed) in PROGRAMS {
        if path.starts_with(program) {
            return Some((Vec::new(), allowed.to_vec()));
        }
    }
    let module: Vec<String> = path.strip_prefix("src/")?.strip_suffix(".rs")?.split('/').map(str::to_owned).collect();
    let (room, allowed) = ROOMS.iter().find(|(room, _)| *room == module[0])?;
    Some((module, allowed.iter().copied().chain([*room]).collect()))
}

/// Every import that the table does not allow, as one line each.
fn violations(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files.iter().filter(|(path, _)| *path != "src/lib.rs") {
        let Some((module, allowed)) = rights(path) else {
            found.push(format!("{path} belongs to no room of the table in tests/layout.rs"));
            continue;
        };
        let is_program = module.is_empty();
        for Import { line, target } in imports(text, &module) {
            match target {
                // `crate` is a program's own crate, and says nothing about the library.
                Target::Crate(_) | Target::Hidden(_) if is_program => {}
                Target::Crate(room) | Target::Library(room) if allowed.contains(&room.as_str()) => {}
                Target::Crate(room) | Target::Library(room) => {
                    found.push(format!("{path}:{line} imports `{room}`; it may import {}", allowed.join(", ")));
                }
                Target::Hidden(how) => found.push(format!("{path}:{line} hides what it imports: {how}")),
            }
        }
    }
    found
}

#[test]
fn arrows_run_downwards_only() {
    let found = violations(&sources("src"));
    assert!(found.is_empty(), "imports between rooms that the table does not allow:\n{}", found.join("\n"));
}

#[test]
fn the_table_has_no_cycle() {
    // Kahn: take away rooms that import nothing that is left, until none is left.
    let mut left: BTreeMap<&str, &[&str]> = ROOMS.into_iter().collect();
    assert_eq!(left.len(), ROOMS.len(), "a room stands twice in the table");
    while !left.is_empty() {
        let free: Vec<&str> = left
            .iter()
            .filter(|(_, imports)| !imports.iter().any(|import| left.contains_key(import)))
            .map(|(room, _)| *room)
            .collect();
        assert!(!free.is_empty(), "a cycle among {:?}", left.keys());
        left.retain(|room, _| !free.contains(room));
    }
    for (room, imports) in ROOMS {
        for import in imports {
            assert!(ROOMS.iter().any(|(known, _)| known == import), "{room} may import {import}, which is no room");
        }
        let count = ROOMS.iter().filter(|(_, imports)| imports.contains(&room)).count();
        assert!(room == "job" || count > 0, "nobody may import {room}");
        assert!(room != "job" || count == 0, "job is imported by a room");
    }
}

#[test]
fn the_library_is_a_map_of_the_rooms() {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let words: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with("//") && !line.trim().is_empty())
        .map(|line| line.trim().to_owned())
        .collect();
    let mut expected: Vec<String> = ROOMS.iter().map(|(room, _)| format!("pub mod {room};")).collect();
    expected.sort();
    assert_eq!(words, expected, "src/lib.rs holds its rooms in order and nothing else");
}

#[test]
fn the_architecture_page_names_each_room() {
    let path = root().join("ARCHITECTURE.md");
    // The page comes with the last room; from then on it must keep up.
    if let Ok(text) = fs::read_to_string(path) {
        for (room, _) in ROOMS {
            assert!(text.contains(&format!("`{room}`")), "ARCHITECTURE.md does not name the room `{room}`");
        }
    }
}

#[test]
fn main_is_short() {
    let lines = fs::read_to_string(root().join("src/main.rs")).unwrap().lines().count();
    assert!(lines <= LONGEST_MAIN_LINES, "src/main.rs has {lines} lines, more than {LONGEST_MAIN_LINES}");
}

#[test]
fn files_have_manners() {
    let mut found = Vec::new();
    for (path, text) in sources("src").into_iter().chain(sources("tests")) {
        if !text.starts_with("//!") {
            found.push(format!("{path} does not open with `//!` and what it is for"));
        }
        if Path::new(&path).iter().any(|part| MEANINGLESS_NAMES.iter().any(|name| part == *name))
            || MEANINGLESS_NAMES.iter().any(|name| path.ends_with(&format!("/{name}.rs")))
        {
            found.push(format!("{path} has a name that says nothing about what it holds"));
        }
        if path.starts_with("src/") && path.ends_with("/mod.rs") {
            found.push(format!("{path}: a module is `foo.rs` beside `foo/`"));
        }
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn unsafe_stays_where_it_is_expected() {
    let allowed = |path: &str| {
        UNSAFE_FILES.iter().any(|(known, _)| *known == path || (known.ends_with('/') && path.starts_with(known)))
    };
    let found: Vec<String> = sources("src")
        .into_iter()
        .chain(sources("tests"))
        .filter(|(path, text)| !allowed(path) && holds_unsafe(text.parse().unwrap()))
        .map(|(path, _)| path)
        .collect();
    assert!(found.is_empty(), "`unsafe` in files that tests/layout.rs does not list: {found:?}");
}

fn holds_unsafe(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "unsafe",
        TokenTree::Group(group) => holds_unsafe(group.stream()),
        _ => false,
    })
}

#[test]
fn a_planted_violation_is_caught() {
    for (path, text, expected) in [
        ("src/bucket.rs", "use crate::mount::Mounted;", "src/bucket.rs:1 imports `mount`"),
        ("src/bucket.rs", "\nfn f() { crate::engine::Engine::load() }", "src/bucket.rs:2 imports `engine`"),
        ("src/bucket.rs", "use crate::{config::Par, telemetry::{Registry, Server}};", "imports `telemetry`"),
        ("src/bucket.rs", "use super::job;", "imports `job`"),
        ("src/bucket/client.rs", "use super::super::mount;", "imports `mount`"),
        ("src/bucket/client.rs", "use super::{Error, super::mlflow::Client};", "imports `mlflow`"),
        ("src/bucket/client.rs", "mod tests { use super::super::super::report::Report; }", "imports `report`"),
        ("src/bucket/client.rs", "mod tests { fn f() { self::super::super::super::bench::run() } }", "imports `bench`"),
        ("src/bucket.rs", "macro_rules! m { () => { $crate::backend::Backend }; }", "imports `backend`"),
        ("src/bucket.rs", "fn f() { format!(\"{}\", crate::model::NAME) }", "imports `model`"),
        ("src/bucket.rs", "pub(in crate::mount) fn f() {}", "imports `mount`"),
        ("src/bucket.rs", "type T = <crate::kernels::Pool as Clone>::Owned;", "imports `kernels`"),
        ("src/bucket.rs", "use crate::*;", "hides"),
        ("src/bucket.rs", "use crate as house;", "hides"),
        ("src/bucket.rs", "use super::{self as house};", "hides"),
        ("src/bucket/client.rs", "use super::super as house;", "hides"),
        ("src/bucket.rs", "extern crate self as house;", "hides"),
        ("src/bucket.rs", "#[path = \"../mount.rs\"] mod stolen;", "hides"),
        ("src/bucket.rs", "include!(\"mount.rs\");", "hides"),
        ("src/main.rs", "use flashjob::engine::Engine;", "imports `engine`"),
        ("src/bin/development_bucket/server.rs", "fn f() { flashjob::bucket::open() }", "imports `bucket`"),
        ("src/parlour.rs", "", "belongs to no room"),
        ("src/config.rs", "#[cfg(test)] mod tests { use crate::event::Fact; }", "imports `event`"),
    ] {
        let found = violations(&BTreeMap::from([(path.to_owned(), text.to_owned())]));
        assert_eq!(found.len(), 1, "{path}: {text}: {found:?}");
        assert!(found[0].contains(expected), "{path}: {text}: {found:?}");
    }
    assert!(holds_unsafe("fn f() { g(|| unsafe { 1 }) }".parse().unwrap()));
}

#[test]
fn what_is_allowed_is_not_caught() {
    for (path, text) in [
        ("src/bucket.rs", "use crate::{config::{self, Par}, event::*}; pub(crate) fn f() {}"),
        ("src/bucket/client.rs", "use super::*; use super::Error; use crate::bucket::Object; pub(super) struct X;"),
        ("src/bucket/client.rs", "mod tests { use super::super::Error; use super::{self, super::Object}; }"),
        ("src/bucket.rs", "//! Like [`crate::mount`].\n// crate::engine\nconst S: &str = \"crate::job\";"),
        ("src/bucket.rs", "fn f() { let x = Y { crate_: mount::engine }; other::crate_::job() }"),
        ("src/job/phases.rs", "use crate::{mount, telemetry::Registry}; use super::super::mlflow;"),
        ("src/main.rs", "fn main() -> ExitCode { flashjob::job::main() }"),
        ("src/bin/development_bucket/main.rs", "mod faults; use crate::faults::Fault; use flashjob::config::Par;"),
    ] {
        let found = violations(&BTreeMap::from([(path.to_owned(), text.to_owned())]));
        assert!(found.is_empty(), "{text}: {found:?}");
    }
}
