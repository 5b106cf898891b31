//! The program from outside. The server is tested where its clients are.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

#[test]
fn it_says_where_it_listens_and_ends_with_its_standard_input() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_development-bucket"))
        .arg(folder.path())
        .arg("--until-stdin-ends")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let announced: serde_json::Value = serde_json::from_str(&line).unwrap();
    let address = announced["address"].as_str().unwrap();
    assert!(announced["pars"][0]["url"].as_str().unwrap().starts_with(&format!("http://{address}/p/")), "{line}");
    std::net::TcpStream::connect(address).unwrap();
    drop(child.stdin.take());
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_cannot_be_served_is_said() {
    let output = Command::new(env!("CARGO_BIN_EXE_development-bucket")).arg("/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("development-bucket: "), "{output:?}");
}
