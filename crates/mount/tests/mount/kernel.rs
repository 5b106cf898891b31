//! The file system as programs see it, through the kernel.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flashjob_mount::FaultKind;
use flashjob_mount::tree::Tree;
use md5::{Digest, Md5};

use super::mount_fuse;
use super::scripted_source::{Behaviour, ScriptedSource, content, object};
use crate::support::process::{Process, installed};

const MIB: usize = 1 << 20;

/// Every path below `root`, as a program finds it.
pub(super) fn walk(root: &Path) -> BTreeMap<PathBuf, fs::Metadata> {
    let mut found = BTreeMap::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            assert_eq!(std::os::unix::fs::DirEntryExt::ino(&entry), metadata.ino());
            if metadata.is_dir() {
                directories.push(entry.path());
            }
            found.insert(entry.path().strip_prefix(root).unwrap().to_owned(), metadata);
        }
    }
    found
}

#[test]
fn names_sizes_and_times_are_those_of_the_objects() {
    let root = tempfile::tempdir().unwrap();
    let longest = "x".repeat(255);
    let names =
        ["a/zero", "a/b/config.json", "blue", "blue-x", "ü/sp ace+&#?%41", "dir/", "bad//name", "../up", &longest];
    let (source, objects) =
        ScriptedSource::new(names.iter().zip(0..).map(|(&name, n)| (name, content(n, 99 * n as usize))));
    let Some(mounted) = mount_fuse(root.path(), &objects, Arc::new(source)) else { return };
    let found = walk(root.path());
    let expected = ["a", "a/b", "a/b/config.json", "a/zero", "blue", "blue-x", "dir", &longest, "ü", "ü/sp ace+&#?%41"];
    assert_eq!(found.keys().map(|path| path.to_str().unwrap()).collect::<Vec<_>>(), expected);
    for object in objects.iter().filter(|object| !object.name.ends_with('/')) {
        let Some(metadata) = found.get(Path::new(&object.name)) else { continue };
        assert_eq!((metadata.len(), metadata.modified().ok()), (object.size_bytes, object.modified), "{}", object.name);
        assert_eq!((metadata.mode() & 0o7777, metadata.nlink()), (0o444, 1));
        let read = fs::read(root.path().join(&object.name)).unwrap();
        assert_eq!(read.len() as u64, object.size_bytes);
    }
    assert_eq!((found[Path::new("a")].mode() & 0o7777, found[Path::new("a")].nlink()), (0o555, 3));
    // The numbers stay, and no two are the same.
    let numbers: BTreeMap<u64, PathBuf> = found.iter().map(|(path, metadata)| (metadata.ino(), path.clone())).collect();
    assert_eq!(numbers.len(), found.len());
    assert!(walk(root.path()).iter().all(|(path, metadata)| numbers[&metadata.ino()] == *path));

    let listing = Process::new("ls").args(["-lR", root.path().to_str().unwrap()]).run().expect_code(0);
    assert_eq!(listing.stdout.matches("-r--r--r--").count(), 6);
    for (path, errno) in [("a/none", 2), ("none/x", 2), ("a/zero/x", 20), (&*"y".repeat(256), 36)] {
        let error = fs::metadata(root.path().join(path)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno), "{path}");
    }
    mounted.unmount().unwrap();
}

#[test]
fn nothing_can_be_written() {
    let root = tempfile::tempdir().unwrap();
    let (source, objects) = ScriptedSource::new([("dir/file", content(1, 10)), ("other", vec![])]);
    let Some(mounted) = mount_fuse(root.path(), &objects, Arc::new(source)) else { return };
    let (file, new) = (root.path().join("dir/file"), root.path().join("new"));
    let permissions = fs::metadata(&file).unwrap().permissions();
    type Attempt<'a> = (&'a str, Box<dyn Fn() -> std::io::Result<()> + 'a>);
    let attempts: [Attempt<'_>; 11] = [
        ("write", Box::new(|| fs::write(&file, "x"))),
        ("append", Box::new(|| File::options().append(true).open(&file).map(drop))),
        ("read and write", Box::new(|| File::options().read(true).write(true).open(&file).map(drop))),
        ("truncate", Box::new(|| File::options().write(true).custom_flags(libc::O_TRUNC).open(&file).map(drop))),
        ("create", Box::new(|| File::create_new(&new).map(drop))),
        ("remove", Box::new(|| fs::remove_file(&file))),
        ("remove directory", Box::new(|| fs::remove_dir(root.path().join("dir")))),
        ("make directory", Box::new(|| fs::create_dir(&new))),
        ("rename", Box::new(|| fs::rename(&file, &new))),
        ("link", Box::new(|| symlink("other", &new))),
        ("change mode", Box::new(|| fs::set_permissions(&file, permissions.clone()))),
    ];
    for (name, attempt) in &attempts {
        assert_eq!(attempt().unwrap_err().raw_os_error(), Some(libc::EROFS), "{name}");
    }
    assert_eq!(fs::read(&file).unwrap(), content(1, 10));
    mounted.unmount().unwrap();
}

#[test]
fn another_process_maps_a_file() {
    let Some(python) = installed("python3", "python3") else { return };
    let root = tempfile::tempdir().unwrap();
    let bytes = content(7, 40 * MIB + 123);
    let (source, objects) = ScriptedSource::new([("weights.safetensors", bytes.clone())]);
    let Some(mounted) = mount_fuse(root.path(), &objects, Arc::new(source)) else { return };
    // Eight threads fault pages in all over the file.
    let program = "\
import hashlib, mmap, sys, concurrent.futures as futures
with open(sys.argv[1], 'rb') as file:
    view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
step = len(view) // 8
def touch(part):
    return sum(view[place] for place in range(part * step, (part + 1) * step, 4096))
with futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(touch, range(8)))
print(hashlib.md5(view).hexdigest())
";
    let path = root.path().join("weights.safetensors");
    let child = Process::new(python).args(["-c".as_ref(), program.as_ref(), path.as_os_str()]).run().expect_code(0);
    let expected: String = Md5::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(child.stdout.trim(), expected);
    let (_, peak) = mounted.memory_bytes().unwrap();
    assert!(peak <= 64 * MIB, "{peak}");
    mounted.unmount().unwrap();
}

#[test]
fn many_readers_at_once_get_their_bytes() {
    let root = tempfile::tempdir().unwrap();
    let files: Vec<(String, Vec<u8>)> = (0..3).map(|file| (format!("f{file}"), content(file, 24 * MIB + 7))).collect();
    let (source, objects) = ScriptedSource::new(files.clone());
    let Some(mounted) = mount_fuse(root.path(), &objects, Arc::new(source)) else { return };
    std::thread::scope(|scope| {
        for reader in 0..64_usize {
            let (name, bytes) = &files[reader % 3];
            let path = root.path().join(name);
            scope.spawn(move || {
                let file = File::open(path).unwrap();
                let mut buffer = vec![0; 300_000];
                for step in 0..8 {
                    let offset = (reader * 1_234_567 + step * 3_456_789) % (24 * MIB - buffer.len());
                    file.read_exact_at(&mut buffer, offset as u64).unwrap();
                    assert!(buffer == bytes[offset..offset + buffer.len()], "reader {reader} at {offset}");
                }
            });
        }
    });
    mounted.unmount().unwrap();
}

#[test]
fn what_was_read_stays_in_the_page_cache() {
    let root = tempfile::tempdir().unwrap();
    let bytes = content(3, 3 * MIB);
    let (source, objects) = ScriptedSource::new([("a", bytes.clone())]);
    let source = Arc::new(source);
    let Some(mounted) = mount_fuse(root.path(), &objects, source.clone()) else { return };
    for _ in 0..3 {
        assert!(fs::read(root.path().join("a")).unwrap() == bytes);
    }
    assert_eq!(source.reads().len(), 1);
    mounted.unmount().unwrap();
}

#[test]
fn faults_become_errnos_and_pass() {
    let root = tempfile::tempdir().unwrap();
    let kinds = [
        ("denied", FaultKind::Denied, libc::EACCES),
        ("missing", FaultKind::Missing, libc::ESTALE),
        ("changed", FaultKind::Changed, libc::ESTALE),
        ("unreachable", FaultKind::Unreachable, libc::EIO),
    ];
    let (source, objects) = ScriptedSource::new(kinds.map(|(name, ..)| (name, content(1, 100))));
    let source = Arc::new(source);
    let Some(mounted) = mount_fuse(root.path(), &objects, source.clone()) else { return };
    assert_eq!(mounted.health(), None);
    for (name, kind, errno) in kinds {
        source.behave(move |_, _| Behaviour::FailAfter(10, kind));
        let path = root.path().join(name);
        let error = File::open(&path).unwrap().read(&mut [0; 100]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(errno), "{name}");
        source.behave(|_, _| Behaviour::Serve);
        assert_eq!(fs::read(&path).unwrap(), content(1, 100), "{name}");
    }
    assert_eq!(mounted.health().map(|fault| fault.kind()), Some(FaultKind::Denied));
    mounted.unmount().unwrap();
}

#[test]
fn a_hundred_thousand_objects_are_listed() {
    let root = tempfile::tempdir().unwrap();
    let name = |number: usize| format!("org-{}/model-{}/shard-{number:06}.safetensors", number % 10, number % 500);
    let objects: Vec<_> = (0..100_000).map(|number| object(&name(number), number as u64)).collect();
    let (tree, hidden) = Tree::new(&objects);
    assert_eq!((tree.files(), tree.nodes(), hidden.count()), (100_000, 100_511, 0));
    assert!(tree.memory_bytes() < 40_000_000, "{}", tree.memory_bytes());
    let (source, _) = ScriptedSource::new(Vec::<(String, Vec<u8>)>::new());
    let Some(mounted) = mount_fuse(root.path(), &objects, Arc::new(source)) else { return };
    let listing = Process::new("ls").args(["-lR", root.path().to_str().unwrap()]).run().expect_code(0);
    assert_eq!(listing.stdout.matches(".safetensors\n").count(), 100_000);
    mounted.unmount().unwrap();
}
