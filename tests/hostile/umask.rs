//! Modes of files: nobody else may write them, whatever the umask, and who could read them still can.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use tempfile::TempDir;

use super::everything_in;
use crate::job::whole::{bucket_folder, mounting};
use crate::support::bucket_server::BucketServer;

#[test]
fn files_are_written_by_their_owner_alone() {
    for (umask, file_mode, directory_mode) in [("000", 0o644, 0o755), ("022", 0o644, 0o755), ("027", 0o640, 0o750)] {
        let (bucket, folder) = (bucket_folder(), TempDir::new().unwrap());
        let server = BucketServer::start(bucket.path());
        // Made beforehand, as a directory that a container gets is.
        fs::create_dir(folder.path().join("out")).unwrap();
        let script = format!("umask {umask}; exec \"$@\"");
        mounting(&folder, server.url())
            .args(["--mount-mode=copy", "--num-prompts=1", "--input-len=2", "--output-len=2"])
            .through(["sh", "-c", &script, "sh"])
            .run()
            .expect_code(0);
        let made = everything_in(folder.path());
        for name in ["out/result.json", "out/flashjob.log", "out/.flashjob-run.jsonl", "models/tiny/llama/config.json"]
        {
            assert!(made.contains_key(&folder.path().join(name)), "no {name} among {:?}", made.keys());
        }
        for (path, (mode, ..)) in made.iter().filter(|(path, _)| **path != folder.path().join("out")) {
            let expected = if path.is_dir() { directory_mode } else { file_mode };
            let mode = fs::Permissions::from_mode(*mode).mode() & 0o777;
            assert_eq!(mode, expected, "umask {umask}: {} has {mode:o}", path.display());
        }
    }
}
