//! Documents: their length, links, paths and decision records, and the tables in them that repeat what the code says.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use flashjob_config_parser as config_parser;

use super::{root, sources};

const LONGEST: [(&str, usize); 2] = [("README.md", 120), ("ARCHITECTURE.md", 150)];

/// Documents in which everything in backticks that looks like a path of the repository is one.
const STRICT: [&str; 2] = ["ARCHITECTURE.md", "CONTRIBUTING.md"];

/// Folders that documents name with their contents, wherever they do.
const NAMED_FOLDERS: [&str; 8] = [".ci/", "compose/", "docs/", "fuzz/", "k8s/", "samples/", "scripts/", "tests/"];

/// Words that stand for a name in a path.
const PLACEHOLDERS: [&str; 4] = ["FILE", "FILTER", "NAME", "ROOM"];

const RECORD_LINES: RangeInclusive<usize> = 10..=40;

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Every Markdown file of the project, by its path from the root.
fn documents() -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() && !name.starts_with('.') && !["target", "results"].contains(&name) {
                walk(&path, found);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(root(), &mut found);
    let mut names: Vec<String> =
        found.iter().map(|path| path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

/// The text outside of fenced blocks, and the text within them.
fn unfenced(text: &str) -> (String, String) {
    let (mut outside, mut inside, mut fenced) = (String::new(), String::new(), false);
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            continue;
        }
        let side = if fenced { &mut inside } else { &mut outside };
        side.push_str(line);
        side.push('\n');
    }
    (outside, inside)
}

/// Splits `text`, which has no fenced blocks, into its code spans and its prose.
fn spans(text: &str) -> (Vec<String>, String) {
    let (mut code, mut prose) = (Vec::new(), String::new());
    for (index, piece) in text.split('`').enumerate() {
        if index % 2 == 1 { code.push(piece.replace('\n', " ")) } else { prose.push_str(piece) }
    }
    (code, prose)
}

/// GitHub's anchors of the headings of a document.
fn anchors(text: &str) -> BTreeSet<String> {
    let (outside, _) = unfenced(text);
    let headings = outside.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    headings
        .map(|heading| {
            let kept = heading.to_lowercase();
            let kept = kept.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// Relative links in `text`, the document at `path`, that lead nowhere; and how many relative links there are.
fn broken_links(path: &str, text: &str) -> (Vec<String>, usize) {
    // Link texts may be in backticks, targets are not.
    let (outside, _) = unfenced(text);
    let targets: Vec<&str> =
        outside.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(to, _)| to).collect();
    let relative: Vec<&str> =
        targets.into_iter().filter(|to| !to.contains("://") && !to.starts_with("mailto:")).collect();
    let folder = root().join(path).parent().unwrap().to_owned();
    let broken = relative.iter().filter(|to| {
        let (file, anchor) = to.split_once('#').map_or((**to, None), |(file, anchor)| (file, Some(anchor)));
        let target = folder.join(file);
        let named = if file.is_empty() { Some(text.to_owned()) } else { fs::read_to_string(&target).ok() };
        let there = file.is_empty() || target.exists();
        !there || anchor.is_some_and(|anchor| !named.is_some_and(|text| anchors(&text).contains(anchor)))
    });
    (broken.map(|to| format!("{path} links to {to}")).collect(), relative.len())
}

/// The path of the repository that `word` claims to be, if it looks like one.
fn claimed_path(word: &str) -> Option<&str> {
    let is_plain = word.chars().all(|c| c.is_ascii_alphanumeric() || "_-./".contains(c));
    let ends_like_a_file = [".rs", ".md", ".toml", ".yml", ".py", ".cu"].iter().any(|end| word.ends_with(end));
    let stem = |part: &str| part.split('.').next().unwrap_or_default().to_owned();
    let is_made = word.starts_with('/') || word.starts_with("target/");
    let is_pattern = word.split('/').any(|part| PLACEHOLDERS.contains(&stem(part).as_str()));
    (is_plain && !is_made && !is_pattern && (word.contains('/') || ends_like_a_file)).then_some(word)
}

/// Tells whether `path` is a file or folder: from the root, or as `room/file.rs`, wherever the rooms are.
fn exists(path: &str) -> bool {
    let (room, rest) = path.split_once('/').unwrap_or((path.strip_suffix(".rs").unwrap_or(path), "lib.rs"));
    let places =
        [root().join(path), root().join("src").join(path), root().join("crates").join(room).join("src").join(rest)];
    places.iter().any(|place| place.exists())
}

/// Paths in backticks of `text` that are not there, and how many there are.
fn missing_paths(text: &str) -> (Vec<String>, usize) {
    let (outside, _) = unfenced(text);
    let words = spans(&outside).0;
    let claimed: Vec<&str> =
        words.iter().filter_map(|span| claimed_path(span.split(' ').next().unwrap_or_default())).collect();
    (claimed.iter().filter(|path| !exists(path)).map(|path| (*path).to_owned()).collect(), claimed.len())
}

#[test]
fn entrances_are_short() {
    for (name, most) in LONGEST {
        let lines = read(name).lines().count();
        assert!(lines <= most, "{name} has {lines} lines, more than {most}: move details to docs/");
    }
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let (mut broken, mut count) = (Vec::new(), 0);
    for path in documents() {
        let (found, of) = broken_links(&path, &read(&path));
        broken.extend(found);
        count += of;
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    assert!(count > 80, "{count}");
}

#[test]
fn every_path_in_architecture_and_contributing_exists() {
    for document in STRICT {
        let (missing, count) = missing_paths(&read(document));
        assert!(missing.is_empty(), "{document} names files that are not there: {missing:?}");
        assert!(count > 50, "{document}: {count}");
    }
}

#[test]
fn scripts_and_folders_that_documents_name_exist() {
    for document in documents() {
        // What was true on a day may be gone.
        if document.starts_with("docs/decisions/0") || document == "CHANGELOG.md" {
            continue;
        }
        let (outside, inside) = unfenced(&read(&document));
        let code = spans(&outside).0.join(" ");
        let words = code.split_whitespace().chain(inside.split_whitespace()).filter_map(claimed_path);
        let missing: Vec<&str> =
            words.filter(|word| NAMED_FOLDERS.iter().any(|folder| word.starts_with(folder)) && !exists(word)).collect();
        assert!(missing.is_empty(), "{document} names what is not there: {missing:?}");
    }
}

#[test]
fn every_decision_record_has_its_form_and_is_in_the_index() {
    let index = read("docs/decisions/README.md");
    let mut names: Vec<String> = fs::read_dir(root().join("docs/decisions"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "README.md")
        .collect();
    names.sort();
    assert!(names.len() >= 52, "{}", names.len());
    assert_eq!(index.matches("\n| [").count(), names.len(), "the index has a row for each record and no other");
    for (position, name) in names.iter().enumerate() {
        let text = read(&format!("docs/decisions/{name}"));
        let number = format!("{:04}", position + 1);
        assert!(
            name.starts_with(&format!("{number}-")) && name.ends_with(".md"),
            "{name}: the next number is {number}"
        );
        let title = text.lines().next().and_then(|line| line.strip_prefix(&format!("# {number}: ")));
        let title = title.unwrap_or_else(|| panic!("{name} does not begin with `# {number}: TITLE`"));
        let field = |key: &str| text.lines().find_map(|line| line.strip_prefix(&format!("- {key}: ")));
        let date = field("Date").unwrap_or_else(|| panic!("{name} has no date"));
        let digits =
            |at: std::ops::Range<usize>| date.get(at).is_some_and(|part| part.bytes().all(|b| b.is_ascii_digit()));
        let is_date = date.len() == 10
            && digits(0..4)
            && &date[4..5] == "-"
            && digits(5..7)
            && &date[7..8] == "-"
            && digits(8..10);
        assert!(is_date, "{name}: `{date}` is no date such as 2026-11-24");
        let status = field("Status").unwrap_or_else(|| panic!("{name} has no status"));
        let successor = status.strip_prefix("superseded by ").map(|number| format!("{number}-"));
        let follows = successor.is_some_and(|number| names.iter().any(|other| other.starts_with(&number)));
        assert!(["proposed", "accepted"].contains(&status) || follows, "{name}: the status is `{status}`");
        let headings: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(headings, ["Context", "Decision", "Consequences"], "{name}");
        let lines = text.lines().count();
        assert!(RECORD_LINES.contains(&lines), "{name} has {lines} lines");
        let row = format!("| [{number}]({name}) | {date} | {title} |");
        assert!(index.contains(&row), "docs/decisions/README.md has no row {row}");
    }
}

#[test]
fn defaults_in_the_readme_are_those_of_the_reference() {
    let manual = config_parser::manual();
    let rows: Vec<Vec<&str>> =
        manual.lines().filter(|line| line.starts_with("| `--")).map(|line| line.split(" | ").collect()).collect();
    let readme = read("README.md");
    let (_, table) = readme.split_once("| Key | Default |").unwrap();
    let mut compared = 0;
    for row in table.lines().skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.split(" | ").collect();
        let key = cells[0].split('`').nth(1).unwrap();
        let flag = format!("| `--{key} ");
        let Some(reference) = rows.iter().find(|cells| cells[0].starts_with(&flag)) else {
            panic!("README.md names the key {key}, which there is not")
        };
        assert_eq!(cells[1], reference[2], "{key}");
        compared += 1;
    }
    assert!(compared >= 10, "{compared}");
}

#[test]
fn identifiers_in_the_glossary_are_in_the_code() {
    let folders = ["src", "crates"].into_iter().filter(|folder| root().join(folder).exists());
    let code: String = folders.flat_map(|folder| sources(folder).into_values()).collect();
    let glossary = read("docs/glossary.md");
    let mut count = 0;
    for row in glossary.lines().filter(|line| line.starts_with("| ")) {
        let last =
            row.trim_end_matches(['|', ' ']).rsplit(" | ").next().filter(|_| !row.ends_with("| |")).unwrap_or_default();
        for identifier in last.split('`').skip(1).step_by(2) {
            assert!(code.contains(identifier), "docs/glossary.md: `{identifier}` is not in the code any more");
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
}

#[test]
fn the_set_up_names_what_the_test_script_installs() {
    let script = read("scripts/test");
    let (_, list) = script.split_once("scripts/system-packages ").unwrap();
    let (list, _) = list.split_once("\"${npm[@]}\"").unwrap();
    let contributing = read("CONTRIBUTING.md");
    let words: BTreeSet<&str> = contributing.split([' ', ',', ';', '\n']).collect();
    // The language itself is named with its version.
    for package in list.split([' ', '\\', '\n']).filter(|word| !word.is_empty() && *word != "python3") {
        assert!(words.contains(package), "CONTRIBUTING.md does not name {package}");
    }
}

#[test]
fn the_compiler_that_is_pinned_is_the_one_that_the_crate_asks_for() {
    let value = |path: &str, key: &str| {
        let text = read(path);
        let line = text.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{path}: {key}"));
        line.trim_matches(['=', ' ', '"']).to_owned()
    };
    let (pinned, asked) = (value("rust-toolchain.toml", "channel"), value("Cargo.toml", "rust-version = "));
    assert!(pinned == asked || pinned.starts_with(&format!("{asked}.")), "{pinned} is pinned, {asked} is asked for");
}

#[test]
fn planted_mistakes_are_found() {
    let links = |text: &str| broken_links("docs/glossary.md", text).0.len();
    assert_eq!(links("[a](METRICS.md) [b](../README.md#keys) [c](https://example.org/none) [d](#here)\n# Here"), 0);
    assert_eq!(links("[a](none.md) [`b`](../README.md#no-such-heading) [c](#there)\n# Here"), 3);
    assert_eq!(links("```\n[a](none.md)\n```"), 0);
    let paths = |text: &str| missing_paths(text).0;
    assert!(
        paths("`tests/layout.rs`, `job/run.rs`, `job.rs`, `scripts/test FILTER`, `tests/ROOM/FILE.rs`, `/proc`")
            .is_empty()
    );
    let missing = ["tests/none.rs", "jobb/run.rs", "none.rs", "scripts/none", "NONE.md"];
    assert_eq!(paths("`tests/none.rs` `jobb/run.rs` `none.rs` `scripts/none FILTER` `NONE.md`"), missing);
}
