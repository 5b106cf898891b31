//! Machines with no certificates of their own, or broken ones: a bucket opens all the same.

use std::path::Path;
use std::process::Command;

use flashjob_bucket::ErrorKind;
use flashjob_event::Events;

use super::{TOKEN, impatient, noise, open_with, shown};

/// Runs in a process of its own, whose environment names the certificates.
#[test]
#[ignore = "started by the tests below"]
fn opens_here() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bucket = open_with(&format!("http://127.0.0.1:1/p/{TOKEN}/n/ns/b/bucket/o/"), impatient(), Events::default());
    let error = runtime.block_on(bucket.list("")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error}");
}

fn assert_opens_with(certificates: &Path) {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "bucket::trust::opens_here", "--ignored", "--nocapture"])
        .env("SSL_CERT_FILE", certificates)
        .env_remove("SSL_CERT_DIR")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{}: {said}", certificates.display());
}

#[test]
fn without_certificates_or_with_broken_ones_a_bucket_opens() {
    let folder = tempfile::TempDir::new().unwrap();
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    assert_opens_with(&folder.path().join("missing"));
    assert_opens_with(&write("empty", b""));
    assert_opens_with(&write("noise", &noise(1000)));
    // A frame that is right around what is no certificate.
    assert_opens_with(&write("frame", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"));
}

#[tokio::test]
async fn a_host_that_does_not_speak_tls_is_unreachable() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/p/{TOKEN}/n/ns/b/bucket/o/", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, b"HTTP/1.1 400 plain\r\n\r\n").await;
        }
    });
    let error = open_with(&url, impatient(), Events::default()).list("").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{}", shown(&error));
}
