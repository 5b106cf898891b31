//! The commands that judge and render blueprints, through the built binary.

use flashjob_test_support::project;

use crate::support::Flashjob as _;
use crate::support::process::Process;

const HEAD: &str = r#""recipe_mode": "job", "deployment_name": "d", "recipe_image_uri": "i""#;

/// The platform's own files, with another token and another registry.
fn seed(name: &str) -> String {
    std::fs::read_to_string(project().join("crates/deploy/tests/blueprints").join(name)).unwrap()
}

#[test]
fn the_command_prints_the_manifest_and_says_what_it_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("b.json");
    std::fs::write(&file, seed("offline-benchmark-blueprint.json")).unwrap();
    let file = file.display().to_string();
    for (words, expected) in [
        (&["--format=docker"] as &[&str], "exec docker run"),
        (&["--format", "compose"], "services:"),
        (&["--format", "job"], "kind: \"Job\""),
        (&[], "kind: \"Job\""),
    ] {
        let finished = Process::flashjob().args(["render", "--blueprint", &file]).args(words).run().expect_code(0);
        assert!(finished.stdout.contains(expected), "{finished}");
        assert!(finished.stderr.contains("not carried over: recipe_node_pool_size"), "{finished}");
        assert!(!finished.stderr.contains("EXAMPLE-TOKEN"), "{finished}");
    }
    let refused = Process::flashjob().args(["render", "--blueprint", &file, "--format=helm"]).run().expect_code(2);
    assert!(refused.stderr.contains("is not one of job, compose, docker"), "{refused}");
}

#[test]
fn the_command_says_what_it_found_and_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("b.json");
    let run = |text: &str| {
        std::fs::write(&file, text).unwrap();
        Process::flashjob().args(["validate", "--blueprint", &file.display().to_string()]).run()
    };
    let sound = run(&seed("shared_node_pool_a10.json")).expect_code(0);
    assert!(sound.stdout.contains("a shared node pool: the platform makes its nodes"), "{sound}");
    let wrong = run(&format!("{{{HEAD},\n\"nonsense\": 1}}")).expect_code(2);
    assert!(wrong.stderr.contains("b.json: line 2, column 1: nonsense is no key"), "{wrong}");
    let missing = Process::flashjob().args(["validate", "--blueprint=/nonexistent"]).run().expect_code(2);
    assert!(missing.stderr.contains("cannot be read"), "{missing}");
    Process::flashjob().args(["validate"]).run().expect_code(2);
}
