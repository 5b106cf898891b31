//! Random buckets, random operations and random faults against a model that is too simple to be wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use flashjob_mount::FaultKind;
use flashjob_mount::blocks::{BlockMap, Limits};
use flashjob_mount::cache::DiskCache;
use flashjob_mount::filesystem::FileSystem;
use flashjob_mount::source::BlockSource;
use flashjob_mount::tree::{Inode, Tree};
use proptest::prelude::*;
use rustix::io::Errno;

use super::caching::{cache_files, used_bytes};
use super::mount_fuse;
use super::scripted_source::{Behaviour, ScriptedSource, content};

/// Components that meet, shadow each other and must be hidden.
fn component() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => prop::sample::select(vec!["a", "b", "blue", "blue-x", "ü", "sp ace", "%41", "a+b&#?", "...", "z\u{1}"]),
        2 => prop::sample::select(vec!["", ".", ".."]),
    ]
    .prop_map(str::to_owned)
    .boxed()
    .prop_union(prop::sample::select(vec![255, 256]).prop_map(|len| "x".repeat(len)).boxed())
}

fn name() -> impl Strategy<Value = String> {
    (prop::collection::vec(component(), 1..4), any::<bool>())
        .prop_map(|(components, marker)| components.join("/") + if marker { "/" } else { "" })
        .prop_filter("the service has no empty names", |name| !name.is_empty())
}

#[derive(Clone, Debug)]
enum Operation {
    /// Index of a visible file, offset and length.
    Read {
        file: prop::sample::Index,
        offset: u64,
        len: u64,
    },
    ReadDirect {
        file: prop::sample::Index,
        offset: u64,
        len: u64,
    },
    /// Said beforehand, whether it comes true or not.
    WillRead {
        file: prop::sample::Index,
        offset: u64,
        len: u64,
    },
    /// Closed and opened again.
    Reopen {
        file: prop::sample::Index,
    },
    /// Something happens to a file of the disk cache.
    Damage {
        entry: prop::sample::Index,
        damage: Damage,
    },
    /// The next fetches end like this.
    Break {
        fetches: u32,
        after: usize,
        kind: FaultKind,
    },
}

#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index),
    Cut(u64),
    Remove,
}

impl Damage {
    fn happen(&self, path: &Path) {
        match self {
            Damage::Flip(place) => {
                let Ok(file) = fs::File::options().read(true).write(true).open(path) else { return };
                let place = place.index(file.metadata().unwrap().len().max(1) as usize) as u64;
                let mut byte = [0];
                if file.read_exact_at(&mut byte, place).is_ok() {
                    file.write_all_at(&[byte[0] ^ 0x40], place).unwrap();
                }
            }
            Damage::Cut(len) => {
                let Ok(file) = fs::File::options().write(true).open(path) else { return };
                file.set_len(file.metadata().unwrap().len().min(*len)).unwrap();
            }
            Damage::Remove => {
                let _gone = fs::remove_file(path);
            }
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        3 => any::<prop::sample::Index>().prop_map(Damage::Flip),
        1 => (0..200_u64).prop_map(Damage::Cut),
        1 => Just(Damage::Remove),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let file = any::<prop::sample::Index>;
    let kind = prop::sample::select(vec![FaultKind::Denied, FaultKind::Changed, FaultKind::Unreachable]);
    prop_oneof![
        6 => (file(), 0..700_u64, 0..400_u64).prop_map(|(file, offset, len)| Operation::Read { file, offset, len }),
        3 => (file(), 0..600_u64, 0..200_u64)
            .prop_map(|(file, offset, len)| Operation::ReadDirect { file, offset, len }),
        2 => (file(), 0..600_u64, 0..900_u64).prop_map(|(file, offset, len)| Operation::WillRead { file, offset, len }),
        1 => file().prop_map(|file| Operation::Reopen { file }),
        2 => (file(), damage()).prop_map(|(entry, damage)| Operation::Damage { entry, damage }),
        1 => (1..4_u32, 0..80_usize, kind).prop_map(|(fetches, after, kind)| Operation::Break { fetches, after, kind }),
    ]
}

/// The paths that should be seen: files and directories, worked out name by name.
fn model(names: &BTreeMap<String, usize>) -> (BTreeSet<String>, BTreeSet<String>) {
    let is_fine = |component: &str| !matches!(component, "" | "." | "..") && component.len() <= 255;
    let visible = |name: &&String| name.strip_suffix('/').unwrap_or(name).split('/').all(is_fine);
    let mut directories = BTreeSet::new();
    for name in names.keys().filter(visible) {
        directories.extend(name.match_indices('/').map(|(end, _)| name[..end].to_owned()));
    }
    let is_file = |name: &&String| !name.ends_with('/') && !directories.contains(*name);
    let files = names.keys().filter(visible).filter(is_file).cloned().collect();
    (files, directories)
}

/// Every path below `directory`, found as a program finds them.
fn walk(files: &FileSystem, directory: Inode, path: &str, found: &mut BTreeMap<String, Inode>) {
    let entries: Vec<_> = files.entries(directory, 0).unwrap().map(|(entry, name)| (entry, name.to_owned())).collect();
    assert_eq!((entries[0].1.as_str(), entries[1].1.as_str()), (".", ".."));
    assert_eq!(entries[0].0.inode, directory);
    let mut previous = None;
    for (entry, name) in &entries[2..] {
        assert!(previous < Some(name), "sorted, and no name twice");
        previous = Some(name);
        assert_eq!(files.lookup(directory, name.as_bytes()), Ok(*entry));
        let path = if path.is_empty() { name.clone() } else { format!("{path}/{name}") };
        assert!(found.insert(path.clone(), entry.inode).is_none());
        if entry.is_directory {
            walk(files, entry.inode, &path, found);
        }
    }
    // Read in two halves it is the same.
    let half = entries.len() / 2;
    let rest: Vec<_> = files.entries(directory, half).unwrap().map(|(entry, _)| entry.inode).collect();
    assert_eq!(rest, entries[half..].iter().map(|(entry, _)| entry.inode).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mount_is_what_the_bucket_holds(
        names in prop::collection::btree_map(name(), 0..600_usize, 0..12),
        operations in prop::collection::vec(operation(), 0..40),
        block_bytes in prop::sample::select(vec![16_usize, 64, 100]),
        memory_blocks in 1..6_usize,
        piece_bytes in 1..70_usize,
        // Without a cache, with one, and with one of so many bytes.
        cache in prop::option::of(prop::option::of(0..100_000_u64)),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let bytes: BTreeMap<String, Vec<u8>> =
            names.iter().zip(0..).map(|((name, &size), seed)| (name.clone(), content(seed, size))).collect();
        let (mut source, mut objects) = ScriptedSource::new(bytes.clone());
        source.piece_bytes = piece_bytes;
        let source = Arc::new(source);
        objects.reverse();
        let (tree, hidden) = Tree::new(&objects);
        let limits = Limits { block_bytes, memory_bytes: memory_blocks * block_bytes, fetches: 3, window_blocks: 4 };
        let directory = tempfile::tempdir().unwrap();
        let behind: Arc<dyn BlockSource> = match cache {
            Some(limit) => Arc::new(DiskCache::open(directory.path(), limit, block_bytes as u64, source.clone()).unwrap()),
            None => source.clone(),
        };
        let blocks = BlockMap::new(behind, limits, runtime.handle().clone());
        let files = FileSystem::new(Arc::new(tree), blocks);

        // The names, from both ends.
        let (expected_files, expected_directories) = model(&names);
        let mut found = BTreeMap::new();
        walk(&files, Inode::ROOT, "", &mut found);
        let is_directory = |inode: Inode| files.attributes(inode).unwrap().is_directory;
        let (directories, plain): (BTreeSet<_>, BTreeSet<_>) =
            found.iter().map(|(path, &inode)| (path.clone(), inode)).partition(|&(_, inode)| is_directory(inode));
        let paths = |set: BTreeSet<(String, Inode)>| set.into_iter().map(|(path, _)| path).collect::<BTreeSet<_>>();
        prop_assert_eq!(paths(plain), expected_files.clone());
        prop_assert_eq!(paths(directories), expected_directories.clone());
        let inodes: BTreeSet<u64> = found.values().map(|inode| inode.number()).collect();
        prop_assert_eq!(inodes.len(), found.len());
        let markers = names.iter().filter(|&(name, &size)| {
            name.strip_suffix('/').is_some_and(|path| size == 0 && expected_directories.contains(path))
        });
        prop_assert_eq!(hidden.count() + expected_files.len() + markers.count(), names.len());

        // The bytes.
        let visible: Vec<&String> = expected_files.iter().collect();
        for path in &visible {
            files.open(found[*path], false).unwrap();
            prop_assert_eq!(files.open(found[*path], true), Err(Errno::ROFS));
            prop_assert_eq!(files.attributes(found[*path]).unwrap().size_bytes as usize, names[*path]);
        }
        let broken = Arc::new(std::sync::atomic::AtomicU32::new(0));
        // A fetch that is under way fails later than it was counted: once broken, any read may meet it.
        let mut faults_before = false;
        for operation in operations {
            if visible.is_empty() {
                break;
            }
            let expected = |path: &String, offset: u64, len: u64| {
                let content = &bytes[path];
                content[content.len().min(offset as usize)..content.len().min((offset + len) as usize)].to_vec()
            };
            match operation {
                Operation::Read { file, offset, len } => {
                    let path = file.get(&visible);
                    match runtime.block_on(files.read(found[*path], offset, len).finish()) {
                        Ok(read) => prop_assert_eq!(&*read, &expected(path, offset, len)),
                        Err(fault) => prop_assert!(faults_before, "{}", fault),
                    }
                }
                Operation::ReadDirect { file, offset, len } => {
                    let path = file.get(&visible);
                    let direct = files.open_direct(path.as_ref()).unwrap();
                    let mut buffer = vec![0; len as usize];
                    match direct.read_exact_at(&mut buffer, offset) {
                        Ok(()) => prop_assert_eq!(buffer, expected(path, offset, len)),
                        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                            prop_assert!(offset + len > names[*path] as u64);
                        }
                        Err(error) => prop_assert!(faults_before, "{}", error),
                    }
                }
                Operation::WillRead { file, offset, len } => {
                    files.blocks().will_read(found[*file.get(&visible)], offset..offset + len);
                }
                Operation::Damage { entry, damage } if cache.is_some() => {
                    let entries = cache_files(directory.path());
                    if !entries.is_empty() {
                        damage.happen(&entries[entry.index(entries.len())]);
                    }
                }
                Operation::Damage { .. } => {}
                Operation::Reopen { file } => {
                    let inode = found[*file.get(&visible)];
                    files.close(inode);
                    files.open(inode, false).unwrap();
                }
                Operation::Break { fetches, after, kind } => {
                    faults_before = true;
                    broken.store(fetches, std::sync::atomic::Ordering::SeqCst);
                    let broken = broken.clone();
                    source.behave(move |_, _| {
                        let left = broken.fetch_update(
                            std::sync::atomic::Ordering::SeqCst,
                            std::sync::atomic::Ordering::SeqCst,
                            |left| left.checked_sub(1),
                        );
                        if left.is_ok() { Behaviour::FailAfter(after, kind) } else { Behaviour::Serve }
                    });
                }
            }
        }
        let (_, peak) = files.blocks().memory_bytes();
        prop_assert!(peak <= limits.memory_bytes);
        if let Some(Some(limit)) = cache {
            let used = used_bytes(directory.path());
            prop_assert!(used <= limit, "{} bytes of {}", used, limit);
        }
        // Once nothing fails any more, everything is readable.
        source.behave(|_, _| Behaviour::Serve);
        for path in &visible {
            // A fetch that was under way when the fault was lifted may still bring it.
            let read = (0..10).find_map(|_| runtime.block_on(files.read(found[*path], 0, 1000).finish()).ok());
            prop_assert_eq!(&*read.expect("nothing fails any more"), &bytes[*path]);
        }
    }

    /// Fewer and smaller: each is mounted.
    #[test]
    fn the_kernel_shows_what_the_model_says(
        names in prop::collection::btree_map(name(), 0..70_000_usize, 0..8),
        reads in prop::collection::vec((any::<prop::sample::Index>(), 0..80_000_u64, 0..40_000_usize, any::<bool>()), 0..12),
    ) {
        let bytes: BTreeMap<String, Vec<u8>> =
            names.iter().zip(0..).map(|((name, &size), seed)| (name.clone(), content(seed, size))).collect();
        let (source, objects) = ScriptedSource::new(bytes.clone());
        let source = Arc::new(source);
        let root = tempfile::tempdir().unwrap();
        let Some(mounted) = mount_fuse(root.path(), &objects, source.clone()) else { return Ok(()) };
        let (expected_files, expected_directories) = model(&names);
        let (mut files, mut directories) = (BTreeSet::new(), BTreeSet::new());
        for (path, metadata) in super::kernel::walk(root.path()) {
            let path = path.to_str().unwrap().to_owned();
            if metadata.is_dir() { directories.insert(path) } else { files.insert(path) };
        }
        prop_assert_eq!(&files, &expected_files);
        prop_assert_eq!(&directories, &expected_directories);
        let files: Vec<String> = files.into_iter().collect();
        // A fetch of the kernel's own may still be failing.
        let mut faults_before = false;
        for (file, offset, len, fails) in reads {
            if files.is_empty() {
                break;
            }
            let path = file.get(&files);
            let content = &bytes[path];
            let expected = &content[content.len().min(offset as usize)..content.len().min(offset as usize + len)];
            if fails {
                faults_before = true;
                source.behave(|_, _| Behaviour::FailAfter(0, FaultKind::Denied));
            }
            let mut read = vec![0; len];
            // What the kernel or the map has already is there whatever the bucket says now.
            match fs::File::open(root.path().join(path)).unwrap().read_at(&mut read, offset) {
                Ok(length) => {
                    prop_assert!(length <= expected.len() && read[..length] == expected[..length]);
                    prop_assert!(faults_before || length == expected.len());
                }
                Err(error) => prop_assert!(faults_before && error.kind() == std::io::ErrorKind::PermissionDenied, "{}", error),
            }
            source.behave(|_, _| Behaviour::Serve);
        }
        for path in &files {
            let read = (0..10).find_map(|_| fs::read(root.path().join(path)).ok());
            prop_assert_eq!(&read.expect("nothing fails any more"), &bytes[path]);
        }
        mounted.unmount().unwrap();
        prop_assert_eq!(super::mounts_at(root.path()), 0);
    }
}
