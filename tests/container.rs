//! The image in a real Docker: what it holds, and what it does with and without privileges.
//!
//! Uses the Docker that is there, or starts Debian's `dockerd` for these tests alone. Containers share the host's
//! network, so that they reach the development bucket on loopback.

mod compose;
mod contents;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use crate::support::bucket_server::BucketServer;
use crate::support::process::{free_port, installed, skip};
use crate::support::workplace::Workplace;

/// A Docker daemon and the image built there.
struct Docker {
    host: Option<String>,
    image: &'static str,
    /// The daemon's, where these tests have started it.
    place: Option<Workplace>,
}

/// The daemon, started once; `None` where there is none (and the test says so).
fn docker() -> Option<&'static Docker> {
    static DOCKER: OnceLock<Option<Docker>> = OnceLock::new();
    DOCKER.get_or_init(Docker::start).as_ref()
}

impl Docker {
    fn start() -> Option<Self> {
        installed("docker", "docker.io")?;
        let mut docker = Self { host: None, image: "flashjob:test", place: None };
        if !docker.command(&["info"]).output().is_ok_and(|output| output.status.success()) {
            installed("dockerd", "docker.io")?;
            docker.host = Some(docker.start_daemon()?);
        }
        docker.build("cpu", docker.image, env!("CARGO_BIN_EXE_flashjob")).then_some(docker)
    }

    /// Builds an image from a binary that these tests use. False: it cannot go into one (and the test says so).
    fn build(&self, target: &str, tag: &str, binary: &str) -> bool {
        let place = TempDir::new().unwrap();
        self.build_with(target, tag, binary, &[("SBOM", place.path().join("sbom").to_str().unwrap())])
    }

    /// The same with variables that `scripts/image` knows.
    fn build_with(&self, target: &str, tag: &str, binary: &str, variables: &[(&str, &str)]) -> bool {
        let mut build = Command::new(format!("{}/scripts/image", env!("CARGO_MANIFEST_DIR")));
        build.args([target, tag]).env("BINARY", binary).envs(variables.iter().copied());
        if let Some(host) = &self.host {
            build.env("DOCKER_HOST", host);
        }
        let output = build.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("is linked dynamically") {
            skip("the image takes a static binary: run these tests through scripts/test");
            return false;
        }
        assert!(output.status.success(), "scripts/image: {said}");
        true
    }

    #[expect(clippy::zombie_processes, reason = "it ends after this process")]
    fn start_daemon(&mut self) -> Option<String> {
        let place = Workplace::ended_by(r#"kill "$(cat "$1/pid")" && tail --follow --pid "$(cat "$1/pid")" /dev/null"#);
        let folder = place.path().to_owned();
        self.place = Some(place);
        let host = format!("unix://{}", folder.join("docker.sock").display());
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let mut daemon = Command::new("dockerd");
        daemon
            .args(["--host", &host, "--bridge=none", "--iptables=false", "--ip6tables=false"])
            .arg(format!("--data-root={}", folder.join("data").display()))
            .arg(format!("--exec-root={}", folder.join("exec").display()))
            .arg(format!("--pidfile={}", folder.join("pid").display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .process_group(0);
        let mut daemon = daemon.spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let info = Command::new("docker").args(["--host", &host, "info"]).output().unwrap();
            if info.status.success() {
                return Some(host);
            }
            if daemon.try_wait().unwrap().is_some() || Instant::now() > deadline {
                let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                skip(&format!("dockerd does not start here: {last:?}"));
                return None;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        if let Some(host) = &self.host {
            command.args(["--host", host]);
        }
        command.args(arguments);
        command
    }

    fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    fn inspect(&self) -> Value {
        let output = self.output(&["image", "inspect", self.image]);
        serde_json::from_slice::<Value>(&output.stdout).unwrap()[0].take()
    }
}

/// A Debian as a tar file; `None` where it cannot be made (and the test says so).
fn base_image() -> Option<PathBuf> {
    installed("mmdebstrap", "mmdebstrap")?;
    let made = Command::new(format!("{}/scripts/base-image", env!("CARGO_MANIFEST_DIR"))).output().unwrap();
    if !made.status.success() {
        skip(&format!("scripts/base-image: {}", String::from_utf8_lossy(&made.stderr)));
        return None;
    }
    Some(PathBuf::from(String::from_utf8_lossy(&made.stdout).trim()))
}

/// The tiny model in a bucket, and a folder for results that any user may write.
fn bucket_and_results() -> (TempDir, BucketServer, TempDir) {
    let folder = TempDir::new().unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/llama-gqa");
    let model = folder.path().join("tiny");
    std::fs::create_dir(&model).unwrap();
    for file in std::fs::read_dir(golden).unwrap() {
        let file = file.unwrap();
        std::fs::copy(file.path(), model.join(file.file_name())).unwrap();
    }
    let server = BucketServer::start(folder.path());
    let results = TempDir::new().unwrap();
    std::fs::set_permissions(results.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    (folder, server, results)
}

/// The built development bucket, beside `flashjob`: its own package's tests have it built.
fn development_bucket() -> String {
    let path = Path::new(env!("CARGO_BIN_EXE_flashjob")).with_file_name("development-bucket");
    assert!(path.exists(), "there is no {}: run these tests with --workspace", path.display());
    path.display().to_string()
}

fn result(results: &TempDir) -> Value {
    serde_json::from_slice(&std::fs::read(results.path().join("result.json")).unwrap()).unwrap()
}

/// `docker run` with what every run here shares; the image's name and its arguments follow.
fn run<'a>(volume: &'a str, url: &'a str) -> Vec<&'a str> {
    vec!["run", "--rm", "--network=host", "--volume", volume, "--env", url, "--env", "metrics_port=0"]
}

const SHORT: [&str; 4] = ["--model=tiny", "--input-len=4", "--output-len=3", "--num-prompts=2"];

#[test]
fn the_image_is_small_and_says_what_it_is() {
    let Some(docker) = docker() else { return };
    let image = docker.inspect();
    let size = image["Size"].as_u64().unwrap();
    assert!(size <= 40_000_000, "{size} bytes");
    assert_eq!(image["Config"]["Entrypoint"], serde_json::json!(["/flashjob"]));
    assert_eq!(image["Config"]["User"], "65532:65532");
    for label in ["title", "version", "revision", "licenses", "created"] {
        let value = image["Config"]["Labels"][format!("org.opencontainers.image.{label}")].as_str().unwrap();
        assert!(!value.is_empty() && value != "unknown", "{label}: {value}");
    }
}

#[test]
fn root_with_dev_fuse_and_sys_admin_alone_mounts() {
    let Some(docker) = docker() else { return };
    let (_folder, server, results) = bucket_and_results();
    let (volume, url) = (format!("{}:/results", results.path().display()), format!("par={}", server.url()));
    let mut arguments = run(&volume, &url);
    arguments.extend(["--user=0", "--cap-drop=ALL", "--cap-add=SYS_ADMIN", "--device=/dev/fuse"]);
    arguments.extend(["--security-opt=no-new-privileges", "--read-only", "--tmpfs=/models", docker.image]);
    arguments.extend(["--mount-mode=fuse", "--metrics-linger-seconds=0"]);
    arguments.extend(SHORT);
    let output = docker.output(&arguments);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(result(&results)["inputs"][0]["method"], "fuse");
}

/// With Docker's own capabilities beside the one that FUSE takes, and with that one alone.
#[test]
fn the_job_has_no_capability_once_it_has_mounted() {
    let Some(docker) = docker() else { return };
    let mounting = ["--cap-drop=ALL", "--cap-add=SYS_ADMIN", "--device=/dev/fuse", "--security-opt=no-new-privileges"];
    let usual = ["--cap-add=SYS_ADMIN", "--device=/dev/fuse"];
    // The second one has none of the rights that becoming another user takes.
    for (name, rights, user) in [("usual", &usual[..], "65532"), ("mounting", &mounting[..], "0")] {
        let (_folder, server, results) = bucket_and_results();
        let (volume, url) = (format!("{}:/results", results.path().display()), format!("par={}", server.url()));
        let container = format!("--name=privileges-{name}");
        let mut arguments = run(&volume, &url);
        arguments.extend([&*container, "--detach", "--user=0", "--read-only", "--tmpfs=/models"]);
        arguments.extend(rights);
        arguments.extend([docker.image, "--mount-mode=fuse", "--model=tiny", "--measure-limits=false"]);
        arguments.extend(["--input-len=8", "--output-len=480", "--num-prompts=20000"]);
        let started = docker.output(&arguments);
        assert!(started.status.success(), "{}", String::from_utf8_lossy(&started.stderr));
        let name = container.trim_start_matches("--name=");
        let measuring =
            || String::from_utf8_lossy(&docker.output(&["logs", name]).stderr).contains("\"phase\":\"measure\"");
        let patience = std::time::Instant::now();
        while !measuring() {
            assert!(
                patience.elapsed().as_secs() < 60,
                "{}",
                String::from_utf8_lossy(&docker.output(&["logs", name]).stderr)
            );
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let inspected = docker.output(&["inspect", "--format={{.State.Pid}}", name]);
        let supervisor = String::from_utf8_lossy(&inspected.stdout).trim().to_owned();
        let read = |path: String| std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let job = crate::support::process::job_of(supervisor.parse().unwrap()).unwrap();
        let status = read(format!("/proc/{job}/status"));
        for line in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert!(status.contains(&format!("{line}:\t0000000000000000\n")), "{name}: {status}");
        }
        assert!(status.contains("NoNewPrivs:\t1\n"), "{name}: {status}");
        assert!(status.contains(&format!("Uid:\t{user}\t{user}\t{user}\t{user}\n")), "{name}: {status}");
        assert!(docker.output(&["stop", name]).status.success());
        let result = result(&results);
        assert_eq!((&result["status"], &result["inputs"][0]["method"]), (&"killed".into(), &"fuse".into()), "{name}");
    }
}

#[test]
fn a_user_without_any_privilege_copies() {
    let Some(docker) = docker() else { return };
    let (_folder, server, results) = bucket_and_results();
    let (volume, url) = (format!("{}:/results", results.path().display()), format!("par={}", server.url()));
    let mut arguments = run(&volume, &url);
    arguments.extend(["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]);
    arguments.extend(["--tmpfs=/models:mode=1777", docker.image, "--metrics-linger-seconds=0"]);
    arguments.extend(SHORT);
    let output = docker.output(&arguments);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let input = &result(&results)["inputs"][0];
    assert_eq!(input["method"], "copy", "{said}");
    assert!(input["reason"].as_str().unwrap().contains("/dev/fuse"), "{input}");
}

/// Who runs, what is allowed, and how inputs come: what comes of each.
#[test]
fn every_user_and_way_to_mount_ends_as_it_should() {
    let Some(docker) = docker() else { return };
    let fuse = ["--device=/dev/fuse", "--cap-add=SYS_ADMIN"];
    for (user, allowed, mode, code, method) in [
        ("0", true, "fuse", 0, "fuse"),
        ("0", true, "auto", 0, "fuse"),
        ("0", true, "copy", 0, "copy"),
        ("0", false, "auto", 0, "copy"),
        ("0", false, "fuse", 3, ""),
        // Capabilities that are added are root's.
        ("65532", true, "fuse", 3, ""),
        ("65532", true, "auto", 0, "copy"),
        ("65532", false, "copy", 0, "copy"),
    ] {
        for read_only in [true, false] {
            let (_folder, server, results) = bucket_and_results();
            let (volume, url) = (format!("{}:/results", results.path().display()), format!("par={}", server.url()));
            let (user, mode) = (format!("--user={user}"), format!("--mount-mode={mode}"));
            let mut arguments = run(&volume, &url);
            arguments.extend([
                &*user,
                "--cap-drop=ALL",
                "--security-opt=no-new-privileges",
                "--tmpfs=/models:mode=1777",
            ]);
            arguments.extend(allowed.then_some(fuse).into_iter().flatten());
            arguments.extend(read_only.then_some("--read-only"));
            arguments.extend([docker.image, &mode, "--metrics-linger-seconds=0", "--measure-limits=false"]);
            arguments.extend(SHORT);
            let output = docker.output(&arguments);
            let case = format!("{user} {mode} allowed: {allowed}, read-only: {read_only}");
            assert_eq!(output.status.code(), Some(code), "{case}: {}", String::from_utf8_lossy(&output.stderr));
            let found = &result(&results)["inputs"][0]["method"];
            assert_eq!(found.as_str().unwrap_or_default(), method, "{case}");
        }
    }
}

/// Measuring them takes memory, which a small container may not have: then it does without, and says so.
#[test]
fn limits_are_measured_with_the_memory_that_is_there() {
    let Some(docker) = docker() else { return };
    let golden = format!("{}/tests/golden:/models:ro", env!("CARGO_MANIFEST_DIR"));
    // A quarter is as much as the largest cache of a server has, twice of which is measured with.
    for (memory, measured) in [("--memory=1g", true), ("--memory=96m", false)] {
        let (_folder, _server, results) = bucket_and_results();
        let volume = format!("{}:/results", results.path().display());
        let mut arguments = run(&volume, "metrics_linger_seconds=0");
        // The model is looked for where the platform puts models, without an input.
        arguments.extend(["--volume", &golden, memory, docker.image, "--model=llama-gqa", "--mount-mode=copy"]);
        arguments.extend(&SHORT[1..]);
        let output = docker.output(&arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(0), "{memory}: {said}");
        let result = result(&results);
        let engine = &result["backend"]["engine"];
        assert_eq!(engine["limits"].is_object(), measured, "{memory}: {engine}");
        let reason = engine["limits_not_measured"].as_str().unwrap_or_default();
        assert_eq!(reason.contains("give the container more memory"), !measured, "{memory}: {engine}");
        assert_eq!(said.contains("there is no roofline"), !measured, "{memory}: {said}");
    }
}

#[test]
fn docker_stop_ends_with_143_and_keeps_what_was_measured() {
    for (user, way) in [("--user=65532", &[][..]), ("--user=0", &["--device=/dev/fuse", "--cap-add=SYS_ADMIN"])] {
        docker_stop_ends_with_143(user, way);
    }
}

fn docker_stop_ends_with_143(user: &str, way: &[&str]) {
    let Some(docker) = docker() else { return };
    let (_folder, server, results) = bucket_and_results();
    let (volume, url) = (format!("{}:/results", results.path().display()), format!("par={}", server.url()));
    let name = format!("flashjob-test-{:08x}", rand::random::<u32>());
    let mut arguments = run(&volume, &url);
    arguments.retain(|argument| *argument != "--rm");
    arguments.push(user);
    arguments.extend(way);
    arguments.extend(["--detach", "--name", &name, "--tmpfs=/models:mode=1777", docker.image, "--model=tiny"]);
    arguments.extend(["--input-len=8", "--output-len=480", "--num-prompts=20000"]);
    assert!(docker.output(&arguments).status.success());
    let measuring = || {
        let logs = docker.output(&["logs", &name]);
        String::from_utf8_lossy(&logs.stderr).contains("\"phase\":\"measure\"")
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while !measuring() {
        assert!(Instant::now() < deadline, "{:?}", docker.output(&["logs", &name]));
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(docker.output(&["stop", "--time=30", &name]).status.success());
    let code = docker.output(&["inspect", "--format={{.State.ExitCode}}", &name]);
    docker.output(&["rm", "--force", &name]);
    assert_eq!(String::from_utf8_lossy(&code.stdout).trim(), "143", "{user}");
    let result = result(&results);
    assert_eq!(result["status"], "killed", "{user}");
    assert_eq!(result["inputs"][0]["method"], if way.is_empty() { "copy" } else { "fuse" }, "{user}");
}

#[test]
fn the_image_holds_one_file() {
    let Some(docker) = docker() else { return };
    let create = docker.output(&["create", docker.image]);
    let id = String::from_utf8_lossy(&create.stdout).trim().to_owned();
    let folder = TempDir::new().unwrap();
    let archive: PathBuf = folder.path().join("image.tar");
    let exported = docker.output(&["export", "--output", &archive.display().to_string(), &id]);
    docker.output(&["rm", &id]);
    assert!(exported.status.success());
    let listing = Command::new("tar").args(["--list", "--file"]).arg(&archive).output().unwrap();
    let files: Vec<String> = String::from_utf8_lossy(&listing.stdout)
        .lines()
        // What Docker itself puts into every container.
        .filter(|name| !["dev/", "proc/", "sys/", "etc/", ".dockerenv"].iter().any(|own| name.starts_with(own)))
        .map(str::to_owned)
        .collect();
    assert_eq!(files, ["flashjob"]);
}

#[test]
fn the_development_bucket_of_the_compose_file_feeds_a_job() {
    let Some(docker) = docker() else { return };
    assert!(docker.build("development", "flashjob:development-test", &development_bucket()));
    let objects = format!("{}/tests/golden:/objects:ro", env!("CARGO_MANIFEST_DIR"));
    let (name, address) = (format!("bucket-test-{}", std::process::id()), format!("127.0.0.1:{}", free_port()));
    let bucket = ["run", "--detach", "--network=host", "--name", &name, "--volume", &objects];
    let arguments =
        ["flashjob:development-test", "/objects", "--address", &address, "--par", r#"{"token": "development"}"#];
    assert!(docker.output(&[bucket.as_slice(), &arguments].concat()).status.success());
    let results = TempDir::new().unwrap();
    std::fs::set_permissions(results.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let volume = format!("{}:/results", results.path().display());
    let par = format!("par=http://{address}/p/development/n/development/b/models/o/");
    let mut job = run(&volume, &par);
    job.extend(["--tmpfs=/models:mode=1777", docker.image, "--metrics-linger-seconds=0", "--model=llama-gqa"]);
    job.extend(&SHORT[1..]);
    let output = docker.output(&job);
    docker.output(&["rm", "--force", &name]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
}
