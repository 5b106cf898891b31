//! No token or password is shown, wherever a person put it.

use flashjob_config_parser::{Command, Stop};
use serde_json::Value;

use super::{PAR, check, parse_with};

const SECRET: &str = "s3cr3t";

/// Everything that could be printed: settings, and errors in both of their forms.
fn shown(words: &[&str], variables: &[(&str, &str)], files: &[(&str, &[u8])]) -> String {
    match parse_with(words, variables, files) {
        Ok(Command::Check(check)) => {
            let settings: Vec<String> = check.settings.iter().map(ToString::to_string).collect();
            let errors: Vec<String> = check.errors.iter().map(ToString::to_string).collect();
            format!("{settings:?} {errors:?} {:?}", check.errors)
        }
        Err(Stop::Invalid(errors)) => {
            let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
            format!("{said:?} {errors:?}")
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn a_right_configuration_shows_its_shape_and_no_secret() {
    let words = ["--model=m", "--par", PAR, "--output-par", PAR, "--mlflow-uri=https://me:s3cr3t@mlflow.example.com"];
    let check = check(&words, &[]);
    let lines: Vec<String> = check.settings.iter().map(ToString::to_string).collect();
    let par = "https://objectstorage.eu-frankfurt-1.oraclecloud.com/p/<redacted>/n/ns/b/models/o/";
    assert!(lines.contains(&format!("par = {par} (flag)")), "{lines:#?}");
    assert!(lines.contains(&"mlflow-uri = https://mlflow.example.com/ (flag)".to_owned()), "{lines:#?}");
    assert!(lines.contains(&"mlflow-login = basic (flag)".to_owned()), "{lines:#?}");
    assert!(!format!("{check:?} {lines:?}").contains(SECRET));
}

/// A PAR, a login or a list with a PAR, at every key, as a flag, as a variable and in a blueprint.
#[test]
fn a_secret_at_the_wrong_key_stays_hidden() {
    let list = format!(r#"[{{"par": "{PAR}", "mount_location": "x"}}]"#);
    let bad = PAR.replace("/o/", "/");
    let values =
        [PAR, &bad, &list, "https://me:s3cr3t@host/x?token=s3cr3t", "me:s3cr3t@host/x", "$(x)https://h/p/s3cr3t"];
    for key in super::properties::keys() {
        for value in values {
            let flag = format!("--{key}={value}");
            let blueprint: Value = serde_json::json!({
                "recipe_mode": "job",
                "recipe_container_env": [{"key": key, "value": value}, {"key": key.replace('-', "_"), "value": "other"}],
                "recipe_container_command_args": [flag, "--seed=1"],
            });
            let blueprint = blueprint.to_string();
            for text in [
                shown(&["check", &flag], &[], &[]),
                shown(&["check", &flag, &format!("--{key}=other")], &[], &[]),
                shown(&["check", &format!("--{key}"), value, "extra"], &[], &[]),
                shown(&["check"], &[(&key, value), (&key.to_uppercase().replace('-', "_"), "other")], &[]),
                shown(&["check", "--blueprint=b"], &[], &[("b", blueprint.as_bytes())]),
                shown(&["publish", "dir", &flag], &[], &[]),
            ] {
                assert!(!text.contains(SECRET), "{key}={value}: {text}");
            }
        }
    }
}

/// A token alone looks like nothing in particular.
#[test]
fn a_bare_token_at_the_key_of_a_secret_stays_hidden() {
    for words in [
        &["--par=s3cr3t"] as &[&str],
        &["--output-par", "s3cr3t"],
        &["--par=s3cr3t", "--par=s3cr3t2"],
        &["--seed", "--par=s3cr3t"],
        &["--input-object-storage=s3cr3t"],
        &[r#"--input-object-storage=[{"par": "s3cr3t"}]"#],
        &[r#"--output-object-storage=[{"par": "s3cr3t"}]"#],
    ] {
        let words: Vec<&str> = ["check", "--model=m"].iter().chain(words).copied().collect();
        let text = shown(&words, &[], &[]);
        assert!(text.contains("par") || text.contains("object-storage"), "{text}");
        assert!(!text.contains(SECRET), "{words:?}: {text}");
    }
}

#[test]
fn passwords_are_never_compared_aloud() {
    let blueprint = br#"{"recipe_mode": "job", "recipe_container_env": [
        {"key": "MLFLOW_TRACKING_PASSWORD", "value": "s3cr3t"}, {"key": "MLFLOW_TRACKING_PASSWORD", "value": "s3cr3t2"},
        {"key": "PAR", "value": "s3cr3t"}, {"key": "par", "value": "s3cr3t2"}]}"#;
    let outcome = parse_with(&["--blueprint=b", "--model=m"], &[], &[("b", blueprint)]);
    match outcome {
        Err(Stop::Invalid(errors)) => {
            let said: Vec<String> = errors.iter().map(ToString::to_string).collect();
            assert!(
                said.iter().any(|sentence| sentence.starts_with("mlflow-tracking-password is given twice")),
                "{said:#?}"
            );
            assert!(!format!("{said:?} {errors:?}").contains(SECRET), "{said:#?}");
        }
        other => panic!("{other:?}"),
    }
}
