//! Figures, not verdicts: `cargo test --release --test behaviour -- --ignored --nocapture mount::speed`.

use std::fs::File;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use flashjob::bucket::{Bucket, RetryPolicy};
use flashjob::config::{InputStorage, MountConfig, MountMode, Par};
use flashjob::event::Events;
use flashjob::mount::{Mounted, mount};
use futures_util::StreamExt;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::{config, input};
use crate::support::bucket_server::BucketServer;

const BYTES: u64 = 1 << 30;
const CONNECTIONS: usize = 32;
const ROUNDS: usize = 3;

fn mounted(url: &str, location: &std::path::Path) -> Mounted {
    let input = InputStorage { par: Some(Par::parse(url).unwrap()), ..input(location) };
    let config = MountConfig { memory_bytes: Some(1 << 30), ..config(MountMode::Fuse) };
    super::wait(mount(&input, &config, &Events::default(), &CancellationToken::new())).unwrap()
}

/// MB/s of a straight parallel download into memory that is thrown away.
fn straight(url: &str) -> f64 {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bucket = Bucket::open(Par::parse(url).unwrap(), RetryPolicy::default(), Events::default()).unwrap();
    let object = runtime.block_on(bucket.list("")).unwrap().remove(0);
    let start = Instant::now();
    let block = 8 << 20;
    let tasks = futures_util::stream::iter(0..BYTES / block)
        .map(|index| {
            let (bucket, object) = (bucket.clone(), object.clone());
            runtime.spawn(async move { bucket.get(&object, index * block..(index + 1) * block).await.unwrap().len() })
        })
        .buffer_unordered(CONNECTIONS);
    let read: usize = runtime.block_on(tasks.map(Result::unwrap).fold(0, |sum, len| async move { sum + len }));
    assert_eq!(read as u64, BYTES);
    rate(start)
}

/// MB/s of `read(2)` from the start to the end of a file in a fresh mount.
fn through_fuse(url: &str) -> f64 {
    let root = tempfile::tempdir().unwrap();
    let mounted = mounted(url, root.path());
    let start = Instant::now();
    let mut file = File::open(root.path().join("weights")).unwrap();
    let mut buffer = vec![0; 4 << 20];
    let mut read = 0;
    while let count @ 1.. = file.read(&mut buffer).unwrap() {
        read += count as u64;
    }
    assert_eq!(read, BYTES);
    let rate = rate(start);
    drop(file);
    mounted.unmount().unwrap();
    rate
}

/// MB/s of the block map alone, as the model loader reads it: pieces of 100 MB.
fn direct(url: &str) -> f64 {
    let root = tempfile::tempdir().unwrap();
    let mounted = mounted(url, root.path());
    let start = Instant::now();
    let file = mounted.open_direct("weights".as_ref()).unwrap();
    let mut buffer = vec![0; 100 << 20];
    let mut offset = 0;
    while offset < BYTES {
        let piece = buffer.len().min((BYTES - offset) as usize);
        file.read_exact_at(&mut buffer[..piece], offset).unwrap();
        offset += piece as u64;
    }
    let rate = rate(start);
    drop(file);
    mounted.unmount().unwrap();
    rate
}

fn rate(start: Instant) -> f64 {
    BYTES as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// User and system time of this process so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

#[test]
#[ignore = "a measurement of a minute or two"]
fn one_gibibyte_beside_a_straight_download() {
    let folder = tempfile::tempdir().unwrap();
    let server = BucketServer::start_with(folder.path(), &["--md5-up-to-bytes", "0"]);
    server.add(json!([{"name": "weights", "size_bytes": BYTES, "seed": 1}]));
    let mut out = std::io::stderr();
    for (network, faults) in [
        ("loopback", json!([])),
        (
            "30 ms, 100 MB/s each",
            json!([{"kind": "latency", "seconds": 0.03, "operation": "get"},
                   {"kind": "bandwidth", "bytes_per_second": 100e6, "operation": "get"}]),
        ),
    ] {
        server.fault(faults);
        type Way = fn(&str) -> f64;
        let ways: [(&str, Way); 3] =
            [("straight GETs", straight), ("FUSE read(2)", through_fuse), ("block map", direct)];
        let mut rates = [const { Vec::new() }; 3];
        let mut cpu = [0.0; 3];
        for _ in 0..ROUNDS {
            for (way, (_, measure)) in ways.iter().enumerate() {
                let before = cpu_seconds();
                rates[way].push(measure(server.url()));
                cpu[way] += cpu_seconds() - before;
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        let median = |way: usize| {
            let mut sorted = rates[way].clone();
            sorted.sort_by(f64::total_cmp);
            sorted[ROUNDS / 2]
        };
        for (way, (name, _)) in ways.iter().enumerate() {
            let (rate, cpu) = (median(way), cpu[way] / ROUNDS as f64);
            let ratio = rate / median(0);
            let _ =
                writeln!(out, "{network:>20} {name:>14} {rate:7.0} MB/s {ratio:5.2} of straight, {cpu:.2} CPU s/GiB");
        }
        server.no_faults();
    }
}
