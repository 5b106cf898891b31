//! The table of everything that can go wrong between a reader and the bucket, and what the reader sees of it.
//!
//! Each row happens to a real mount of the development bucket server. Faults that pass leave the right bytes and no
//! trace; those that stay are one errno, one sentence, and never a wrong byte.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flashjob_config::MountMode;
use flashjob_mount::{Error, FaultKind, Mounted};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::bucket::{input_of, mount_as, serve};
use super::mounts_at;
use super::scripted_source::content;
use crate::support::bucket_server::BucketServer;
use crate::support::process::{Process, installed, skip};

/// Three blocks, the last one cut.
const BYTES: usize = 20_000_000;
const BLOCK: usize = 8 << 20;
/// Long enough for everything that passes on a busy machine; what does not pass is given up after `IMPATIENT`.
const PATIENT: Duration = Duration::from_secs(40);
const IMPATIENT: Duration = Duration::from_secs(4);
/// A connection that stands still is given up after a quarter of it.
const UNTIL_STALLED: Duration = Duration::from_secs(12);
/// Rows of the table at a time: they wait more than they work, and must not slow each other to a timeout.
const ROWS_AT_A_TIME: usize = 6;

/// When it begins.
#[derive(Clone, Copy)]
enum When {
    /// Before the bucket is listed.
    Listing,
    /// Once the mount is there.
    Mounted,
    /// Once the first block was read.
    Reading,
}

/// Expected result of a read.
#[derive(Clone, Copy)]
enum Seen {
    /// The right bytes.
    Nothing,
    Errno(i32, FaultKind),
    /// There is no mount, and the reason has this in it.
    NoMount(&'static str),
}

/// Through FUSE where this machine has it.
fn mount_fuse(url: &str, location: &Path, timeout: Duration) -> Result<Option<Mounted>, Error> {
    match mount_as(&input_of(url, location, &[], &[]), MountMode::Fuse, timeout) {
        Err(error @ Error::FuseRefused { .. }) => {
            skip(&error.to_string());
            Ok(None)
        }
        result => result.map(Some),
    }
}

/// One fault of the server.
fn meet(name: &str, when: When, fault: &Value, seen: Seen) {
    let bytes = content(1, BYTES);
    let (_folder, server) = serve(&[("a", &bytes)]);
    let root = TempDir::new().unwrap();
    let timeout = match seen {
        Seen::Nothing if fault["kind"] == "stall" => UNTIL_STALLED,
        Seen::Nothing => PATIENT,
        Seen::Errno(..) | Seen::NoMount(_) => IMPATIENT,
    };
    if matches!(when, When::Listing) {
        server.fault(fault.clone());
    }
    let mounted = match (mount_fuse(server.url(), root.path(), timeout), seen) {
        (Ok(Some(mounted)), _) => mounted,
        (Ok(None), _) => return,
        (Err(error), Seen::NoMount(part)) => {
            assert!(error.to_string().contains(part), "{name}: {error}");
            assert_eq!(mounts_at(root.path()), 0, "{name}");
            return;
        }
        (Err(error), _) => panic!("{name}: {error}"),
    };
    let path = root.path().join("a");
    if matches!(when, When::Reading) {
        // As random reads do: nothing is fetched ahead that the fault should meet.
        let mut first = vec![0; 1000];
        File::open(&path).unwrap().read_exact_at(&mut first, 5000).unwrap();
        assert!(first == bytes[5000..6000], "{name}");
    }
    if !matches!(when, When::Listing) {
        server.fault(fault.clone());
    }
    read_as(name, &path, &bytes, seen, &mounted);
    mounted.unmount().unwrap();
    assert_eq!(mounts_at(root.path()), 0, "{name}");
}

/// Reads to the end or to the errno: no byte may be wrong on the way.
fn read_as(name: &str, path: &Path, bytes: &[u8], seen: Seen, mounted: &Mounted) {
    let mut read = Vec::new();
    let result = File::open(path).and_then(|mut file| file.read_to_end(&mut read));
    assert!(read == bytes[..read.len()], "{name}: wrong bytes");
    match (result, seen) {
        (Ok(_), Seen::Nothing) => {
            assert_eq!(read.len(), bytes.len(), "{name}");
            assert_eq!(mounted.health(), None, "{name}");
        }
        (Err(error), Seen::Errno(errno, kind)) => {
            assert_eq!(error.raw_os_error(), Some(errno), "{name}: {:?}", mounted.health());
            let fault = mounted.health().unwrap_or_else(|| panic!("{name}: no sentence"));
            assert_eq!(fault.kind(), kind, "{name}: {fault}");
            assert!(fault.to_string().contains("`a`"), "{name}: {fault}");
            assert!(!fault.to_string().contains("/p/") || fault.to_string().contains("<redacted>"), "{name}: {fault}");
        }
        (Ok(_), _) => panic!("{name}: nothing was seen of it"),
        (Err(error), _) => panic!("{name}: {error}, {:?}", mounted.health()),
    }
}

#[test]
fn what_the_server_does() {
    use Seen::{Errno, NoMount, Nothing};
    use When::{Listing, Mounted, Reading};
    let stale = Errno(libc::ESTALE, FaultKind::Changed);
    let gone = Errno(libc::ESTALE, FaultKind::Missing);
    let denied = Errno(libc::EACCES, FaultKind::Denied);
    let unreachable = Errno(libc::EIO, FaultKind::Unreachable);
    let on_get = |mut fault: Value| {
        fault["operation"] = json!("get");
        fault
    };
    let on_list = |mut fault: Value| {
        fault["operation"] = json!("list");
        fault
    };
    let rows: [(&str, When, Value, Seen); 27] = [
        ("a burst of 429", Mounted, on_get(json!({"kind": "status", "status": 429, "count": 4})), Nothing),
        (
            "503 with Retry-After",
            Mounted,
            on_get(json!({"kind": "status", "status": 503, "retry_after": "1", "count": 2})),
            Nothing,
        ),
        ("a burst of 500", Mounted, on_get(json!({"kind": "status", "status": 500, "count": 2})), Nothing),
        ("429 for ever", Mounted, on_get(json!({"kind": "status", "status": 429})), unreachable),
        ("500 for ever", Mounted, on_get(json!({"kind": "status", "status": 500})), unreachable),
        ("reset in the body", Mounted, on_get(json!({"kind": "reset", "after_bytes": 1_000_000, "count": 3})), Nothing),
        ("short body", Mounted, on_get(json!({"kind": "short_body", "after_bytes": 1_000_000, "count": 3})), Nothing),
        ("reset at once, for ever", Mounted, on_get(json!({"kind": "reset", "after_bytes": 0})), unreachable),
        ("stall", Mounted, on_get(json!({"kind": "stall", "after_bytes": 100_000, "count": 1})), Nothing),
        ("stall for ever", Mounted, on_get(json!({"kind": "stall", "after_bytes": 100})), unreachable),
        ("answer lost", Mounted, on_get(json!({"kind": "lost_answer", "count": 2})), Nothing),
        ("wrong Content-Range once", Mounted, on_get(json!({"kind": "wrong_content_range", "count": 1})), Nothing),
        ("wrong Content-Range for ever", Mounted, on_get(json!({"kind": "wrong_content_range"})), unreachable),
        ("wrong length once", Mounted, on_get(json!({"kind": "wrong_length", "count": 1})), Nothing),
        ("wrong length for ever", Mounted, on_get(json!({"kind": "wrong_length"})), unreachable),
        ("another ETag", Mounted, on_get(json!({"kind": "changed_etag"})), stale),
        ("another ETag in mid-read", Reading, on_get(json!({"kind": "changed_etag"})), stale),
        (
            "another ETag by a server that ignores If-Match",
            Reading,
            on_get(json!({"kind": "changed_etag", "ignores_if_match": true})),
            stale,
        ),
        ("401 in mid-run", Reading, on_get(json!({"kind": "status", "status": 401})), denied),
        (
            "404 of the bucket in mid-run",
            Reading,
            on_get(json!({"kind": "status", "status": 404, "code": "BucketNotFound"})),
            denied,
        ),
        (
            "404 of the object in mid-run",
            Reading,
            on_get(json!({"kind": "status", "status": 404, "code": "ObjectNotFound"})),
            gone,
        ),
        ("slow listing", Listing, on_list(json!({"kind": "latency", "seconds": 1.0})), Nothing),
        ("half a listing once", Listing, json!({"kind": "half_listing", "count": 1}), Nothing),
        ("half a listing for ever", Listing, json!({"kind": "half_listing"}), NoMount("the listing is not whole")),
        ("a listing in circles", Listing, json!({"kind": "circular_listing"}), NoMount("circles")),
        ("503 in a listing", Listing, on_list(json!({"kind": "status", "status": 503, "count": 2})), Nothing),
        ("401 at the listing", Listing, on_list(json!({"kind": "status", "status": 401})), NoMount("PAR")),
    ];
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..ROWS_AT_A_TIME {
            scope.spawn(|| {
                while let Some((name, when, fault, seen)) = rows.get(next.fetch_add(1, Ordering::Relaxed)) {
                    meet(name, *when, fault, *seen);
                }
            });
        }
    });
}

// The table's other half: what befalls the server and the readers. What befalls the disk and the processes of the job is in
// `caching.rs`, `passthrough.rs` and `ending.rs`.

#[test]
fn a_name_that_does_not_resolve() {
    let root = TempDir::new().unwrap();
    let url = "http://no-such-host.invalid/p/token/n/ns/b/bucket/o/";
    let error = mount_as(&input_of(url, root.path(), &[], &[]), MountMode::Auto, IMPATIENT).err().unwrap();
    assert!(error.to_string().contains("network"), "{error}");
    assert!(!error.to_string().contains("/p/token"), "{error}");
}

/// Something happens between mounting and reading.
fn between(happen: impl FnOnce(&Path, &mut Option<BucketServer>, &str), seen: Seen) {
    let bytes = content(1, BYTES);
    let (folder, server) = serve(&[("a", &bytes)]);
    let url = server.par(json!({"access": "AnyObjectRead", "listing": true}));
    let root = TempDir::new().unwrap();
    let Some(mounted) = mount_fuse(&url, root.path(), IMPATIENT).unwrap() else { return };
    let mut server = Some(server);
    happen(folder.path(), &mut server, &url);
    read_as("between", &root.path().join("a"), &bytes, seen, &mounted);
    mounted.unmount().unwrap();
}

#[test]
fn an_object_that_is_replaced() {
    let replace = |folder: &Path, _: &mut Option<BucketServer>, _: &str| {
        fs::write(folder.join("a"), content(2, BYTES)).unwrap();
    };
    between(replace, Seen::Errno(libc::ESTALE, FaultKind::Changed));
}

#[test]
fn an_object_that_is_deleted() {
    let delete = |folder: &Path, _: &mut Option<BucketServer>, _: &str| fs::remove_file(folder.join("a")).unwrap();
    between(delete, Seen::Errno(libc::ESTALE, FaultKind::Missing));
}

#[test]
fn a_par_that_is_revoked() {
    let revoke = |_: &Path, server: &mut Option<BucketServer>, url: &str| server.as_ref().unwrap().revoke(url);
    between(revoke, Seen::Errno(libc::EACCES, FaultKind::Denied));
}

#[test]
fn a_server_that_goes_for_good() {
    let go = |_: &Path, server: &mut Option<BucketServer>, _: &str| *server = None;
    between(go, Seen::Errno(libc::EIO, FaultKind::Unreachable));
}

#[test]
fn a_server_that_restarts() {
    let bytes = content(1, BYTES);
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("a"), &bytes).unwrap();
    let grant = json!({"token": "kept", "access": "AnyObjectRead", "listing": true}).to_string();
    // An address of its own: at 127.0.0.1 another test's server could take the port in between.
    let server = BucketServer::start_with(folder.path(), &["--address", "127.0.0.7:0", "--par", &grant]);
    let root = TempDir::new().unwrap();
    let Some(mounted) = mount_fuse(server.url(), root.path(), PATIENT).unwrap() else { return };
    // Each block stops on its way until the server is gone.
    server.fault(json!({"kind": "stall", "after_bytes": 100_000, "operation": "get"}));
    let address = server.address().to_string();
    let path = root.path().join("a");
    let reader = std::thread::spawn(move || fs::read(path));
    while server.count("get") == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    drop(server);
    let _again = BucketServer::start_with(folder.path(), &["--address", &address, "--par", &grant]);
    assert!(reader.join().unwrap().unwrap() == bytes);
    assert_eq!(mounted.health(), None);
    mounted.unmount().unwrap();
}

#[test]
fn a_reader_that_is_killed() {
    let bytes = content(1, BYTES);
    let (_folder, server) = serve(&[("a", &bytes)]);
    let root = TempDir::new().unwrap();
    let Some(mounted) = mount_fuse(server.url(), root.path(), UNTIL_STALLED).unwrap() else { return };
    let path = root.path().join("a");
    server.fault(json!({"kind": "stall", "after_bytes": 100_000, "count": 1, "operation": "get"}));
    let reader = Process::new("cat").args([&path]).start();
    while server.count("get") == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    reader.signal(libc::SIGKILL);
    assert_eq!(reader.wait().signal(), Some(libc::SIGKILL));
    assert!(fs::read(&path).unwrap() == bytes);
    assert_eq!(mounted.health(), None);
    mounted.unmount().unwrap();
}

#[test]
fn sixty_four_readers_that_map_a_file() {
    let Some(python) = installed("python3", "python3") else { return };
    let bytes = content(1, BYTES);
    let (_folder, server) = serve(&[("a", &bytes)]);
    let root = TempDir::new().unwrap();
    let Some(mounted) = mount_fuse(server.url(), root.path(), PATIENT).unwrap() else { return };
    server.fault(json!({"kind": "reset", "after_bytes": 3_000_000, "probability": 0.3, "operation": "get"}));
    let program = "\
import hashlib, mmap, sys, concurrent.futures as futures
def read(reader):
    with open(sys.argv[1], 'rb') as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        middle = reader * len(view) // 64
        return hashlib.md5(view[middle:]).hexdigest() + hashlib.md5(view[:middle]).hexdigest()
with futures.ThreadPoolExecutor(64) as pool:
    for reader, hash in enumerate(pool.map(read, range(64))):
        print(reader, hash)
";
    let path = root.path().join("a");
    let finished = Process::new(python)
        .args(["-c".as_ref(), program.as_ref(), path.as_os_str()])
        .timeout(Duration::from_secs(120))
        .run()
        .expect_code(0);
    let md5 = |bytes: &[u8]| -> String {
        use md5::Digest as _;
        md5::Md5::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    };
    for (reader, line) in finished.stdout.lines().enumerate() {
        let middle = reader * BYTES / 64;
        assert_eq!(line, format!("{reader} {}{}", md5(&bytes[middle..]), md5(&bytes[..middle])));
    }
    assert_eq!(finished.stdout.lines().count(), 64);
    let (_, peak) = mounted.memory_bytes().unwrap();
    assert!(peak <= 64 << 20, "{peak}");
    mounted.unmount().unwrap();
}

/// A read that fails fails alone: the next one of the same place asks again.
#[test]
fn a_fault_that_is_over_is_forgotten() {
    let bytes = content(1, BLOCK);
    let (_folder, server) = serve(&[("a", &bytes)]);
    let root = TempDir::new().unwrap();
    let Some(mounted) = mount_fuse(server.url(), root.path(), IMPATIENT).unwrap() else { return };
    server.fault(json!({"kind": "status", "status": 401, "operation": "get"}));
    let error = fs::read(root.path().join("a")).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    server.no_faults();
    assert!(fs::read(root.path().join("a")).unwrap() == bytes);
    assert_eq!(mounted.health().map(|fault| fault.kind()), Some(FaultKind::Denied), "the first one is what is told");
    mounted.unmount().unwrap();
}
