//! One measured way of reading a bucket, in a process of its own: what `scripts/bench-mount` is made of.
//!
//! Each way prints one line of JSON. Those that mount say `{"ready": …}` first, and end when standard input does.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::{Parser, Subcommand};
use flashjob_bucket::{Bucket, Object, RetryPolicy};
use flashjob_config::{InputStorage, MountConfig, MountMode, Par};
use flashjob_event::Events;
use flashjob_mount::tree::Tree;
use flashjob_mount::{Mounted, mount_source};
use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo, LockOwner, MountOption,
    OpenFlags, ReplyAttr, ReplyData, ReplyEntry, ReplyOpen, Request,
};
use futures_util::{StreamExt as _, stream};
use serde_json::json;
use tokio_util::sync::CancellationToken;

/// Length of a request of the straight download: that of a block.
const PART_BYTES: u64 = 8 << 20;
/// Length of one read of the block map, in bytes: that of the model loader.
const RUN_BYTES: usize = 1 << 20;
/// Threads that read the block map: as many as the model loader has.
const READERS: usize = 8;

type Failure = Box<dyn std::error::Error>;

#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    way: Way,
}

#[derive(Subcommand)]
enum Way {
    /// Ranged GETs of the largest object, each into memory.
    Straight {
        url: String,
        #[arg(long, default_value_t = 16)]
        connections: usize,
    },
    /// The block map without the kernel, by as many threads and in such pieces as the model loader has.
    Direct {
        url: String,
        #[arg(long, default_value_t = 16)]
        connections: usize,
        #[arg(long, default_value_t = 512)]
        memory_mb: u64,
    },
    /// A mount, until standard input ends.
    Mount {
        url: String,
        location: PathBuf,
        #[arg(long, default_value_t = 16)]
        connections: usize,
        #[arg(long, default_value_t = 512)]
        memory_mb: u64,
    },
    /// A FUSE file whose bytes are in memory, until standard input ends: what the kernel alone costs.
    Memory { location: PathBuf, size_bytes: u64 },
    /// Listing and indexing, without a mount.
    List { url: String },
}

fn main() -> Result<(), Failure> {
    match Arguments::parse().way {
        Way::Straight { url, connections } => straight(&url, connections),
        Way::Direct { url, connections, memory_mb } => direct(&url, connections, memory_mb),
        Way::Mount { url, location, connections, memory_mb } => {
            let mounted = mounted(&url, &location, connections, memory_mb)?;
            say(&json!({"ready": location}));
            until_stdin_ends()?;
            let peak = mounted.memory_bytes().map(|(_, peak)| peak);
            let passed_through = mounted.passed_through();
            let health = mounted.health().map(|fault| fault.to_string());
            mounted.unmount()?;
            say(&json!({"cpu_seconds": cpu_seconds()?, "peak_block_bytes": peak, "passed_through": passed_through,
                         "fault": health}));
            Ok(())
        }
        Way::Memory { location, size_bytes } => memory(&location, size_bytes),
        Way::List { url } => list(&url),
    }
}

fn bucket(url: &str, connections: usize) -> Result<Bucket, Failure> {
    let par = Par::parse(url).map_err(|error| error.to_string())?;
    Ok(Bucket::open(par, RetryPolicy { connections, ..RetryPolicy::default() }, Events::default())?)
}

fn largest(objects: Vec<Object>) -> Result<Object, Failure> {
    Ok(objects.into_iter().max_by_key(|object| object.size_bytes).ok_or("the bucket is empty")?)
}

fn straight(url: &str, connections: usize) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let bucket = bucket(url, connections)?;
    let object = Arc::new(largest(runtime.block_on(bucket.list(""))?)?);
    let free = Arc::new(std::sync::Mutex::new(vec![Vec::new(); connections]));
    let start = Instant::now();
    let parts = stream::iter(0..object.size_bytes.div_ceil(PART_BYTES)).map(|index| {
        let (bucket, object, free) = (bucket.clone(), object.clone(), Arc::clone(&free));
        runtime.spawn(async move {
            let range = index * PART_BYTES..object.size_bytes.min((index + 1) * PART_BYTES);
            // As whoever wants the bytes would: a part whole in memory, which the parts before it have used already.
            let mut buffer: Vec<u8> = free.lock().ok().and_then(|mut free| free.pop()).unwrap_or_default();
            buffer.reserve_exact(PART_BYTES as usize);
            bucket.get_into(&object, range, &mut |piece| buffer.extend_from_slice(piece)).await?;
            let read = buffer.len() as u64;
            buffer.clear();
            if let Ok(mut free) = free.lock() {
                free.push(buffer);
            }
            Ok::<_, flashjob_bucket::Error>(read)
        })
    });
    let mut parts = parts.buffer_unordered(connections);
    let read = runtime.block_on(async {
        let mut read = 0;
        while let Some(part) = parts.next().await {
            read += part??;
        }
        Ok::<_, Failure>(read)
    })?;
    report(read, start)
}

fn direct(url: &str, connections: usize, memory_mb: u64) -> Result<(), Failure> {
    let location = std::env::temp_dir().join(format!("mount-speed-{}", std::process::id()));
    let mounted = mounted(url, &location, connections, memory_mb)?;
    let start = Instant::now();
    let name = std::fs::read_dir(&location)?
        .flatten()
        .max_by_key(|entry| entry.metadata().map_or(0, |metadata| metadata.len()))
        .ok_or("the bucket is empty")?
        .file_name();
    let file = mounted.direct().and_then(|files| files.open(Path::new(&name))).ok_or("no such file")?;
    file.will_read(0..file.size_bytes());
    let next = std::sync::atomic::AtomicU64::new(0);
    let work = || -> std::io::Result<u64> {
        let (mut buffer, mut read) = (vec![0; RUN_BYTES], 0);
        loop {
            let offset = next.fetch_add(RUN_BYTES as u64, std::sync::atomic::Ordering::Relaxed);
            if offset >= file.size_bytes() {
                return Ok(read);
            }
            let length = (file.size_bytes() - offset).min(RUN_BYTES as u64);
            file.read_exact_at(&mut buffer[..length as usize], offset)?;
            read += length;
        }
    };
    let read = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..READERS).map(|_| scope.spawn(work)).collect();
        let join = |reader: std::thread::ScopedJoinHandle<'_, std::io::Result<u64>>| match reader.join() {
            Ok(read) => read,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        readers.into_iter().map(join).sum::<std::io::Result<u64>>()
    })?;
    report(read, start)?;
    drop(file);
    mounted.unmount()?;
    Ok(())
}

fn mounted(url: &str, location: &Path, connections: usize, memory_mb: u64) -> Result<Mounted, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let par = Par::parse(url).map_err(|error| error.to_string())?;
    // Connections belong to the threads that make them: listing has some of its own.
    let objects = runtime.block_on(bucket(url, 4)?.list(""))?;
    let input = InputStorage {
        par: Some(par),
        location: location.to_owned(),
        volume_bytes: std::env::var("CACHE_MB").ok().and_then(|mb| Some(mb.parse::<u64>().ok()? * 1_000_000)),
        include: vec![],
        exclude: vec![],
    };
    let config = MountConfig {
        mode: MountMode::Fuse,
        memory_bytes: Some(memory_mb * 1_000_000),
        cache_directory: std::env::var_os("CACHE_DIR").map(Into::into),
        descriptor: None,
        storage_timeout: Duration::from_secs(60),
    };
    let source = Arc::new(bucket(url, connections)?);
    Ok(runtime.block_on(mount_source(&input, &config, &objects, source, &CancellationToken::new()))?)
}

fn list(url: &str) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let start = Instant::now();
    let objects = runtime.block_on(bucket(url, 4)?.list(""))?;
    let listed = start.elapsed().as_secs_f64();
    let start = Instant::now();
    let (tree, hidden) = Tree::new(&objects);
    let indexed = start.elapsed().as_secs_f64();
    say(&json!({
        "list_seconds": listed,
        "index_seconds": indexed,
        "files": tree.files(),
        "hidden": hidden.count(),
        "index_bytes": tree.memory_bytes(),
        "cpu_seconds": cpu_seconds()?,
    }));
    Ok(())
}

fn report(read: u64, start: Instant) -> Result<(), Failure> {
    let seconds = start.elapsed().as_secs_f64();
    say(&json!({"bytes": read, "seconds": seconds, "cpu_seconds": cpu_seconds()?}));
    Ok(())
}

fn say(line: &serde_json::Value) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn until_stdin_ends() -> std::io::Result<()> {
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).map(drop)
}

/// User and system time of this process so far.
fn cpu_seconds() -> Result<f64, Failure> {
    let mut stat = String::new();
    std::fs::File::open("/proc/self/stat")?.read_to_string(&mut stat)?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|field| field.parse::<f64>().ok());
    Ok((ticks(11).ok_or("no user time")? + ticks(12).ok_or("no system time")?) / 100.0)
}

/// One file called `weights`, from one buffer.
struct InMemory {
    size_bytes: u64,
    bytes: Vec<u8>,
}

impl InMemory {
    fn attributes(&self, inode: u64) -> FileAttr {
        let (kind, perm, size) = match inode {
            1 => (FileType::Directory, 0o555, 0),
            _ => (FileType::RegularFile, 0o444, self.size_bytes),
        };
        let time = SystemTime::UNIX_EPOCH;
        FileAttr {
            ino: INodeNo(inode),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: time,
            ctime: time,
            crtime: time,
            kind,
            perm,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 1 << 20,
            flags: 0,
        }
    }
}

const LONG: Duration = Duration::from_secs(3600);

impl Filesystem for InMemory {
    fn lookup(&self, _: &Request, _: INodeNo, name: &std::ffi::OsStr, reply: ReplyEntry) {
        match name == "weights" {
            true => reply.entry(&LONG, &self.attributes(2), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&LONG, &self.attributes(inode.0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        // One window of memory stands for all of the file: larger than a cache, as blocks are.
        let length = u64::from(size).min(self.size_bytes.saturating_sub(offset)) as usize;
        let start = (offset as usize) % (self.bytes.len() - (1 << 20)).max(1);
        reply.data(&self.bytes[start..start + length.min(1 << 20)]);
    }
}

fn memory(location: &Path, size_bytes: u64) -> Result<(), Failure> {
    std::fs::create_dir_all(location)?;
    let mut config = fuser::Config::default();
    config.mount_options = vec![MountOption::RO, MountOption::FSName("memory".to_owned())];
    config.n_threads = Some(std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 4));
    let bytes: Vec<u8> = (0..256_usize << 20).map(|place| place as u8).collect();
    let session = fuser::spawn_mount(InMemory { size_bytes, bytes }, location, &config)?;
    let device = device_at(location)?;
    std::fs::write(format!("/sys/class/bdi/{device}/read_ahead_kb"), "4096")?;
    say(&json!({"ready": location}));
    until_stdin_ends()?;
    drop(session);
    say(&json!({"cpu_seconds": cpu_seconds()?}));
    Ok(())
}

/// `MAJOR:MINOR` of what is mounted at `location`.
fn device_at(location: &Path) -> Result<String, Failure> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let wanted = location.canonicalize()?;
    let line = table.lines().rfind(|line| line.split(' ').nth(4).map(Path::new) == Some(&wanted));
    Ok(line.and_then(|line| line.split(' ').nth(2)).ok_or("it is not mounted")?.to_owned())
}
