//! The shape of the house: the packages and their dependencies, the imports of the entrypoint's rooms, and the manners of files.
//!
//! The table here is the rule; `ARCHITECTURE.md` explains it to people.

mod cycles;
mod documentation;
mod imports;
mod language;
mod packages;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};

use imports::{Import, Target, imports};
use packages::folders;

/// Each room of the entrypoint, the package `flashjob`, and the rooms and packages that it may import: `flashjob_NAME` stands
/// there as `NAME`. `job` alone sees all. Of packages their manifests say what they may import.
const ROOMS: [(&str, &[&str]); 5] = [
    ("backend", &["cluster", "config", "cuda", "engine", "event", "guidance", "host", "model"]),
    ("prepare", &["backend", "config", "dataset", "event", "guidance", "model"]),
    ("bench", &["backend", "config", "event", "prepare", "results"]),
    ("report", &["backend", "batch", "bench", "config", "event", "model", "pages", "prepare", "results"]),
    (
        "job",
        &[
            "backend",
            "batch",
            "bench",
            "bucket",
            "compare",
            "config",
            "config_parser",
            "cpu",
            "dataset",
            "deploy",
            "engine",
            "event",
            "host",
            "mlflow",
            "model",
            "mount",
            "pages",
            "prepare",
            "report",
            "results",
            "telemetry",
            "timeline",
        ],
    ),
];

/// Modules of the library that the program may import.
const PROGRAMS: [(&str, &[&str]); 1] = [("src/main.rs", &["job"])];

/// The only files, or folders where the name ends in `/`, that may hold `unsafe`, each with a reason that no safe crate
/// covers.
const UNSAFE_FILES: [(&str, &str); 11] = [
    ("crates/cuda/src/", "launches, copies between a host and a GPU, and calls of NCCL"),
    ("crates/cpu/src/", "vector instructions, and buffers that tasks share in disjoint parts"),
    ("crates/mount/src/blocks/buffer.rs", "blocks that are read while they are filled"),
    ("crates/engine/tests/allocations.rs", "an allocator that counts"),
    ("crates/model/src/texts_process/confinement.rs", "descriptors that the process was started with"),
    ("src/job/supervisor.rs", "fork, while there is one thread"),
    ("crates/mount/src/kernel.rs", "an ioctl that fuser does not offer"),
    ("crates/mount/src/passthrough.rs", "numbers of backing files that another process registered"),
    ("crates/mount/src/descriptor.rs", "a descriptor that the process was started with"),
    ("crates/mount/src/namespace.rs", "unshare, for which rustix has no safe call"),
    ("tools/test-support/src/process.rs", "prctl in a child before exec, kill"),
];

const MEANINGLESS_NAMES: [&str; 8] = ["util", "utils", "helper", "helpers", "common", "manager", "misc", "shared"];

const LONGEST_MAIN_LINES: usize = 20;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file under `directory`, which may be one file or missing: its path from the project's root, and its text.
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
    let start = root().join(directory);
    if start.is_dir() {
        walk(&start, &mut found);
    } else if start.is_file() {
        found.push(start);
    }
    let name = |path: &Path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
    found.into_iter().map(|path| (name(&path), fs::read_to_string(&path).unwrap())).collect()
}

/// Every Rust file of these folders of all packages.
fn of_all_packages(names: &[&str]) -> BTreeMap<String, String> {
    let folders = folders().into_iter().chain([String::new()]);
    let paths = folders.flat_map(|folder| names.iter().map(move |name| format!("{folder}{name}")));
    paths.flat_map(|path| sources(&path)).collect()
}

/// The module that a file is, and the rooms that it may import: `None` for files that are no room's.
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
        let is_room = |name: &str| ROOMS.iter().any(|(room, _)| *room == name);
        for Import { line, target } in imports(text, &module) {
            match target {
                // `crate` is a program's own crate, and says nothing about the library.
                Target::Crate(_) | Target::Hidden(_) if is_program => {}
                Target::Crate(room) | Target::Library(room) if allowed.contains(&room.as_str()) && is_room(&room) => {}
                Target::Package(package) if allowed.contains(&package.as_str()) && !is_room(&package) => {}
                Target::Crate(room) | Target::Library(room) | Target::Package(room) => {
                    found.push(format!("{path}:{line} imports `{room}`; it may import {}", allowed.join(", ")));
                }
                Target::Hidden(how) => found.push(format!("{path}:{line} hides what it imports: {how}")),
            }
        }
    }
    found
}

/// Every place in a package where a file takes in what is not its own, as one line each.
fn hidden(files: &BTreeMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (path, text) in files {
        for Import { line, target } in imports(text, &["the package".to_owned()]) {
            if let Target::Hidden(how @ ("extern crate" | "#[path]" | "include!")) = target {
                found.push(format!("{path}:{line} hides what it imports: {how}"));
            }
        }
    }
    found
}

#[test]
fn packages_hide_nothing() {
    let mut files = of_all_packages(&["src"]);
    files.retain(|path, _| !path.starts_with("src/"));
    let found = hidden(&files);
    assert!(found.is_empty(), "{}", found.join("\n"));
    let planted = hidden(&BTreeMap::from([("a".to_owned(), "#[path = \"../../b.rs\"] mod b;".to_owned())]));
    assert_eq!(planted, ["a:1 hides what it imports: #[path]"]);
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
            let is_package = folders().contains(&format!("crates/{}/", import.replace('_', "-")));
            let is_room = ROOMS.iter().any(|(known, _)| known == import);
            assert!(is_room != is_package, "{room} may import {import}, which is not one room or package");
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
        for package in folders().iter().filter_map(|folder| folder.strip_prefix("crates/")) {
            let package = package.trim_end_matches('/');
            assert!(text.contains(&format!("`{package}`")), "ARCHITECTURE.md does not name the package `{package}`");
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
    for (path, text) in of_all_packages(&["src", "tests", "benches", "examples"]) {
        if !text.starts_with("//!") {
            found.push(format!("{path} does not open with `//!` and what it is for"));
        }
        if Path::new(&path).iter().any(|part| MEANINGLESS_NAMES.iter().any(|name| part == *name))
            || MEANINGLESS_NAMES.iter().any(|name| path.ends_with(&format!("/{name}.rs")))
        {
            found.push(format!("{path} has a name that says nothing about what it holds"));
        }
        if path.ends_with("/mod.rs") {
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
    let found: Vec<String> = of_all_packages(&["src", "tests", "benches", "examples", "build.rs"])
        .into_iter()
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
        ("src/report.rs", "use crate::job::Exit;", "src/report.rs:1 imports `job`"),
        ("src/report.rs", "\nfn f() { flashjob_engine::Engine::load() }", "src/report.rs:2 imports `engine`"),
        ("src/report.rs", "use flashjob_mount as mount;", "imports `mount`"),
        ("src/report.rs", "use crate::{bench::Measurement, job::{Exit, Phase}};", "imports `job`"),
        ("src/report.rs", "use super::job;", "imports `job`"),
        ("src/backend/child.rs", "use super::super::bench;", "imports `bench`"),
        ("src/backend/child.rs", "use super::{Error, super::report::Report};", "imports `report`"),
        ("src/backend/child.rs", "mod tests { use super::super::super::report::Report; }", "imports `report`"),
        ("src/backend/child.rs", "mod tests { fn f() { self::super::super::super::bench::run() } }", "imports `bench`"),
        ("src/backend.rs", "macro_rules! m { () => { $crate::bench::Recorder }; }", "imports `bench`"),
        ("src/backend.rs", "macro_rules! m { () => { ::flashjob_mlflow::Client }; }", "imports `mlflow`"),
        ("src/backend.rs", "fn f() { format!(\"{}\", crate::report::NAME) }", "imports `report`"),
        ("src/backend.rs", "pub(in crate::job) fn f() {}", "imports `job`"),
        ("src/backend.rs", "type T = <flashjob_cpu::Pool as Clone>::Owned;", "imports `cpu`"),
        ("src/backend.rs", "use crate::config::Par;", "imports `config`"),
        ("src/backend.rs", "use crate::*;", "hides"),
        ("src/backend.rs", "use crate as house;", "hides"),
        ("src/backend.rs", "use super::{self as house};", "hides"),
        ("src/backend/child.rs", "use super::super as house;", "hides"),
        ("src/backend.rs", "extern crate self as house;", "hides"),
        ("src/backend.rs", "#[path = \"../report.rs\"] mod stolen;", "hides"),
        ("src/backend.rs", "include!(\"report.rs\");", "hides"),
        ("src/main.rs", "use flashjob::backend::Backend;", "imports `backend`"),
        ("src/main.rs", "use flashjob_engine::Engine;", "imports `engine`"),
        ("src/parlour.rs", "", "belongs to no room"),
        ("src/backend.rs", "#[cfg(test)] mod tests { use crate::report::Report; }", "imports `report`"),
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
        ("src/bench.rs", "use flashjob_config::{self, Par}; use crate::backend::*; pub(crate) fn f() {}"),
        ("src/bench/client.rs", "use super::*; use super::Error; use crate::bench::Object; pub(super) struct X;"),
        ("src/bench/client.rs", "mod tests { use super::super::Error; use super::{self, super::Object}; }"),
        ("src/bench.rs", "//! Like [`crate::job`].\n// crate::job\nconst S: &str = \"crate::job\";"),
        ("src/bench.rs", "fn f() { let x = Y { crate_: mount::engine }; other::crate_::job() }"),
        (
            "src/job/phases.rs",
            "use flashjob_telemetry::Registry; use super::super::report; use flashjob_mount as mount;",
        ),
        ("src/main.rs", "fn main() -> ExitCode { flashjob::job::main() }"),
    ] {
        let found = violations(&BTreeMap::from([(path.to_owned(), text.to_owned())]));
        assert!(found.is_empty(), "{text}: {found:?}");
    }
}
