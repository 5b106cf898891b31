//! Jobs that share a disk cache: what one of them fetched, the next one has.

use std::fs;

use tempfile::TempDir;

use super::result;
use super::whole::{bucket_folder, mounting};
use crate::support::bucket_server::BucketServer;

#[test]
fn a_second_job_fetches_nothing_and_a_damaged_cache_changes_nothing() {
    let (folder, cache, results) = (bucket_folder(), TempDir::new().unwrap(), TempDir::new().unwrap());
    let server = BucketServer::start(folder.path());
    let url = server.url().to_owned();
    let run = || {
        server.forget_requests();
        let finished = mounting(&results, &url)
            .args(["--cache-dir".as_ref(), cache.path().as_os_str()])
            .args(["--input-len=8", "--output-len=8", "--num-prompts=2"])
            .run()
            .expect_code(0);
        (finished, result(&results)["inputs"][0]["method"].clone(), server.count("get"))
    };
    let (_, method, fetched) = run();
    assert!(fetched > 0);
    if method == "copy" {
        // A copy has no use for a cache; said in CI, where there must be FUSE.
        crate::support::process::skip("FUSE is refused here, and a copy does not use the cache");
        return;
    }
    let (finished, _, again) = run();
    assert_eq!(again, 0, "{}", finished.stderr);
    assert!(finished.stderr.contains("blocks from the disk cache"), "{}", finished.stderr);

    for entry in fs::read_dir(cache.path().join("flashjob-files")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
            fs::write(&path, bytes).unwrap();
        }
    }
    let (finished, _, refetched) = run();
    assert!(refetched > 0 && finished.stderr.contains("a cached block is damaged"), "{}", finished.stderr);
    assert_eq!(run().2, 0, "what was fetched again is kept");
}
