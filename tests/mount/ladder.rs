//! The rungs of the ladder from FUSE to a copy: which one a job stands on, and that it says so.

use std::fs::File;
use std::os::fd::AsRawFd as _;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::Value;
use tempfile::TempDir;

use crate::job::{job_without_model, result, tiny_model};
use crate::support::bucket_server::BucketServer;
use crate::support::process::{Process, installed, skip};

/// A bucket of the tiny model.
fn bucket() -> (TempDir, BucketServer) {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("llama");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(tiny_model()).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let server = BucketServer::start(folder.path());
    (folder, server)
}

/// A job that mounts the bucket below `results`.
fn job(results: &TempDir, server: &BucketServer) -> Process {
    let location = results.path().join("models");
    job_without_model(results).args(["--model=llama", "--num-prompts=2", "--input-len=4", "--output-len=2"]).args([
        "--par",
        server.url(),
        "--mount-location",
        &location.display().to_string(),
    ])
}

fn input(results: &TempDir) -> Value {
    result(results)["inputs"][0].clone()
}

fn has_fuse() -> bool {
    let has = File::options().read(true).write(true).open("/dev/fuse").is_ok();
    if !has {
        skip("/dev/fuse cannot be opened");
    }
    has
}

#[test]
fn with_the_right_to_mount_it_is_fuse_and_weights_come_from_the_block_map() {
    if !has_fuse() {
        return;
    }
    let (_folder, server) = bucket();
    let results = TempDir::new().unwrap();
    let finished = job(&results, &server).args(["--mount-mode=fuse"]).run().expect_code(0);
    assert_eq!(input(&results)["method"], "fuse");
    assert!(finished.stderr.contains("weights are read from the mount's block map"), "{finished}");
}

#[test]
fn without_rights_it_is_fuse_in_namespaces_of_its_own() {
    let Some(_) = installed("setpriv", "util-linux") else { return };
    // Root may open /dev/fuse everywhere; without this one right it may not be mapped into a namespace (since Linux 5.12).
    let few_rights = ["--inh-caps=-all", "--bounding-set=-all,+setfcap"];
    let allowed = Process::new("setpriv").args(few_rights).args(["unshare", "-Urm", "true"]).run();
    if !has_fuse() || allowed.code() != Some(0) {
        return skip("this machine allows no user namespaces");
    }
    let (_folder, server) = bucket();
    let results = TempDir::new().unwrap();
    let finished = job(&results, &server).through(["setpriv"].into_iter().chain(few_rights)).run();
    let finished = finished.expect_code(0);
    let input = input(&results);
    assert_eq!(input["method"], "fuse-namespace", "{input} {finished}");
    assert!(input["reason"].as_str().unwrap().contains("of this process's own"), "{input}");
    assert!(finished.stderr.contains("of this process's own"), "{finished}");
    // Nobody else has seen it.
    assert!(!std::fs::read_to_string("/proc/mounts").unwrap().contains(results.path().to_str().unwrap()));
}

/// Twice with one cache; what the second job says.
fn second_with_a_cache(before: &[&str]) -> Option<crate::support::process::Finished> {
    let cache = TempDir::new().unwrap();
    let (_folder, server) = bucket();
    let mut finished = None;
    for _ in 0..2 {
        let results = TempDir::new().unwrap();
        let job = job(&results, &server).args(["--cache-dir".as_ref(), cache.path().as_os_str()]);
        let job = if before.is_empty() { job } else { job.through(before) };
        server.forget_requests();
        finished = Some(job.run().expect_code(0));
        if input(&results)["method"] == "copy" {
            skip("FUSE is refused here, and a copy does not use the cache");
            return None;
        }
    }
    assert_eq!(server.count("get"), 0);
    finished
}

#[test]
fn a_second_job_reads_whole_cached_files_and_so_does_the_kernel_where_it_may() {
    if !has_fuse() {
        return;
    }
    let refused = "files of the disk cache are read through this process, not by the kernel itself";
    let Some(finished) = second_with_a_cache(&[]) else { return };
    assert!(finished.stderr.contains("weights are read from a whole file of the disk cache"), "{finished}");
    assert_eq!(finished.stderr.matches(refused).count(), 0, "{finished}");
    // In a user namespace the kernel takes no files, and is asked once.
    let Some(_) = installed("setpriv", "util-linux") else { return };
    let words = ["setpriv", "--inh-caps=-all", "--bounding-set=-all,+setfcap"];
    if Process::new(words[0]).args(&words[1..]).args(["unshare", "-Urm", "true"]).run().code() != Some(0) {
        return skip("this machine allows no user namespaces");
    }
    let Some(finished) = second_with_a_cache(&words) else { return };
    assert!(finished.stderr.contains("of this process's own"), "{finished}");
    assert!(finished.stderr.contains("weights are read from a whole file of the disk cache"), "{finished}");
    assert_eq!(finished.stderr.matches(refused).count(), 1, "{finished}");
}

#[test]
fn a_descriptor_that_was_passed_in_is_served() {
    if !has_fuse() {
        return;
    }
    let (_folder, server) = bucket();
    let results = TempDir::new().unwrap();
    let location = results.path().join("models");
    std::fs::create_dir(&location).unwrap();
    let device = File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
    let options = std::ffi::CString::new(options).unwrap();
    mount("passed", &location, "fuse.passed", MountFlags::RDONLY, Some(options.as_c_str())).unwrap();
    rustix::io::fcntl_setfd(&device, rustix::io::FdFlags::empty()).unwrap();
    let number = device.as_raw_fd().to_string();
    // Serving takes no rights at all.
    let mut process = job(&results, &server).args(["--mount-descriptor", &number]);
    if installed("setpriv", "util-linux").is_some() {
        process = process.through(["setpriv", "--inh-caps=-all", "--bounding-set=-all"]);
    }
    let finished = process.run();
    unmount(&location, UnmountFlags::DETACH).unwrap();
    let finished = finished.expect_code(0);
    let input = input(&results);
    assert_eq!(input["method"], "fuse-descriptor", "{input} {finished}");
    assert!(input["reason"].as_str().unwrap().contains("passed in"), "{input}");
}

#[test]
fn a_descriptor_that_is_none_ends_with_3() {
    let (_folder, server) = bucket();
    let results = TempDir::new().unwrap();
    let finished = job(&results, &server).args(["--mount-descriptor=900"]).run().expect_code(3);
    assert!(finished.stderr.contains("descriptor 900 is not open"), "{finished}");
}

#[test]
fn where_fuse_is_refused_it_is_a_copy_that_says_why() {
    let Some(_) = installed("setpriv", "util-linux") else { return };
    let (_folder, server) = bucket();
    let results = TempDir::new().unwrap();
    let without = ["setpriv", "--inh-caps=-sys_admin", "--bounding-set=-sys_admin"];
    job(&results, &server).through(without).run().expect_code(0);
    let input = input(&results);
    assert_eq!(input["method"], "copy");
    assert!(input["reason"].as_str().unwrap().starts_with("FUSE is refused: "), "{input}");
}
