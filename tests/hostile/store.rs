//! A store that is slow without standing still, or lists without an end.

use std::io::Write as _;
use std::net::TcpStream;
use std::time::Duration;

use tempfile::TempDir;

use super::memory::run_within_limit;
use super::stranger::{endless, start, whole};
use crate::job::job_without_model;

/// A page of `objects`, and where the next one starts.
fn page(stream: &mut TcpStream, objects: impl Iterator<Item = String>, next: Option<&str>) -> std::io::Result<()> {
    let objects: Vec<String> = objects.map(|name| format!(r#"{{"name":"{name}","size":100000}}"#)).collect();
    let next = next.map(|next| format!(r#","nextStartWith":"{next}""#)).unwrap_or_default();
    whole(stream, 200, "", format!(r#"{{"objects":[{}]{next}}}"#, objects.join(",")).as_bytes())
}

/// The number at which the page that is asked for starts.
fn start_of(line: &str) -> usize {
    let start = line.split("start=").nth(1).and_then(|rest| rest.split(['&', ' ']).next());
    start.map_or(0, |start| start.trim_start_matches('n').parse().unwrap())
}

/// A byte every fifth of a second, for as long as somebody listens.
fn trickle(stream: &mut TcpStream, head: &str) -> std::io::Result<()> {
    write!(stream, "{head}\r\n\r\n")?;
    loop {
        stream.write_all(b" ")?;
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn is_listing(line: &str) -> bool {
    line.contains("/o/?")
}

/// `count` objects from `first` on, each below 500 directories of its own.
fn deep(stream: &mut TcpStream, first: usize, count: usize, all: usize) -> std::io::Result<()> {
    let last = first + count;
    let next = (last < all).then(|| format!("n{last:08}"));
    page(stream, (first..last).map(|number| format!("n{number:08}{}", "/d".repeat(500))), next.as_deref())
}

type Case = (&'static str, fn(&str, &mut TcpStream) -> std::io::Result<()>, i32, &'static str);

const CASES: [Case; 12] = [
    ("a listing, byte by byte", |_, stream| trickle(stream, "HTTP/1.1 200 X"), 3, "bytes of the body came in"),
    (
        "an object, byte by byte",
        |line, stream| match is_listing(line) {
            true => page(stream, ["tiny/llama/config.json".to_owned()].into_iter(), None),
            // From where the one before broke off.
            false => {
                let range = line
                    .to_ascii_lowercase()
                    .split("bytes=")
                    .nth(1)
                    .and_then(|rest| Some(rest.lines().next()?.to_owned()));
                let range = range.unwrap_or_else(|| "0-99999".to_owned());
                trickle(stream, &format!("HTTP/1.1 206 X\r\nContent-Range: bytes {range}/100000"))
            }
        },
        3,
        "bytes of the body came in",
    ),
    ("an error, byte by byte", |_, stream| trickle(stream, "HTTP/1.1 404 X"), 3, "answered 404"),
    ("a page without an end", |_, stream| endless(stream, 200, "{\"objects\":[", " "), 3, "longer than"),
    ("an error without an end", |_, stream| endless(stream, 404, "", "not found "), 3, "answered 404"),
    (
        "empty pages without an end",
        |line, stream| {
            let next = format!("n{:08}", start_of(line) + 1);
            page(stream, std::iter::empty(), Some(&next))
        },
        3,
        "include",
    ),
    (
        "full pages without an end",
        |line, stream| {
            let first = start_of(line);
            let next = format!("n{:08}", first + 1000);
            page(stream, (first..first + 1000).map(|number| format!("n{number:08}")), Some(&next))
        },
        3,
        "include",
    ),
    (
        "long names without an end",
        |line, stream| {
            let first = start_of(line);
            let next = format!("n{:08}", first + 1000);
            let name = |number| format!("n{number:08}{}", "x".repeat(1000));
            page(stream, (first..first + 1000).map(name), Some(&next))
        },
        3,
        "include",
    ),
    (
        "a name of a MiB",
        |_, stream| page(stream, ["x".repeat(1 << 20)].into_iter(), None),
        3,
        "a name of 1048576 bytes",
    ),
    ("10,000 objects 500 levels deep", |line, stream| deep(stream, start_of(line), 1000, 10_000), 3, "include"),
    // Room for every directory; the model is not among them.
    (
        "a million directories",
        |line, stream| deep(stream, start_of(line), 1000, 2000),
        4,
        "model=tiny/llama is not there",
    ),
    (
        "a pause of three thousand years",
        |_, stream| whole(stream, 503, "Retry-After: 99999999999\r\n", b""),
        3,
        "answered 503",
    ),
];

#[test]
fn a_store_is_given_up_where_it_gets_nowhere() {
    std::thread::scope(|scope| {
        for (case, answer, code, message) in CASES {
            scope.spawn(move || {
                let address = start(move |line, _, stream| answer(line, stream));
                let results = TempDir::new().unwrap();
                let location = results.path().join("models").display().to_string();
                let url = format!("http://{address}/p/token/n/ns/b/bucket/o/");
                let job = job_without_model(&results)
                    .args(["--model", "tiny/llama", "--par", &url, "--mount-location", &location])
                    .args(["--storage-timeout=4", "--mount-mode=auto"]);
                let finished = run_within_limit(job);
                assert_eq!(finished.code(), Some(code), "{case}: {finished}");
                assert!(finished.stderr.contains(message), "{case}: {finished}");
                let longest = finished.stderr.lines().map(str::len).max().unwrap_or(0);
                assert!(longest < 4096, "{case}: a line of {longest} bytes");
            });
        }
    });
}
