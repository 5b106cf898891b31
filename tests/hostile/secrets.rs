//! Secrets that a server repeats, or that a person has put into the wrong place.

use std::fs;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tempfile::TempDir;

use super::mlflow_stub::{MlflowStub, answer};
use super::short_job;
use crate::support::Flashjob as _;
use crate::support::process::{Finished, Process};

const PASSWORD: &str = "p@ss wörd/\"<1>&'";

/// Everything that a job has said, to whomever.
fn all_said(finished: &Finished, folder: &TempDir) -> String {
    let files = super::everything_in(folder.path());
    let files = files
        .into_iter()
        .map(|(path, (.., content))| format!("{}: {}\n", path.display(), String::from_utf8_lossy(&content)));
    format!("{finished}\n{}", files.collect::<String>())
}

/// `Authorization` in whatever a server answers with.
#[test]
fn a_login_that_a_server_repeats_is_shown_in_no_spelling() {
    let login = format!("me:{}@", utf8_percent_encode(PASSWORD, NON_ALPHANUMERIC));
    let encoded = utf8_percent_encode(PASSWORD, NON_ALPHANUMERIC).to_string();
    let escaped: String = PASSWORD.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    let html = PASSWORD
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;");
    let forms = vec![
        PASSWORD.to_owned(),
        encoded.clone(),
        encoded.to_lowercase(),
        encoded.replace("%20", "+"),
        utf8_percent_encode(&encoded, NON_ALPHANUMERIC).to_string(),
        escaped.clone(),
        html.clone(),
    ];
    type Echo = Box<dyn Fn(&str) -> axum::http::Response<axum::body::Body> + Send + Sync>;
    let mut echoes: Vec<Echo> = vec![
        Box::new(|sent| answer(401, &[], format!("not you: Authorization: {sent}"))),
        Box::new(|sent| answer(400, &[], format!(r#"{{"error_code": "{sent}", "message": "you sent {sent}"}}"#))),
        Box::new(|sent| answer(302, &[("location", &format!("https://other/?auth={sent}"))], "")),
        Box::new(|sent| answer(302, &[("location", &format!("https://other/{}/x", sent.replace("Basic ", "")))], "")),
        Box::new(|sent| answer(302, &[("location", &format!("https://{}@other/x", sent.replace("Basic ", "")))], "")),
        Box::new(|sent| answer(403, &[], format!("<html><body><h1>{sent}</h1></body></html>"))),
        Box::new(|sent| answer(200, &[], format!(r#"{{"experiment": "{sent}"}}"#))),
        Box::new(|sent| {
            answer(401, &[], sent.replace("Basic ", "").replace('+', "-").replace('/', "_").replace('=', ""))
        }),
        Box::new(|sent| answer(401, &[], utf8_percent_encode(sent, NON_ALPHANUMERIC).to_string())),
        Box::new(|sent| answer(401, &[], format!("{}{sent}", "x".repeat(250)))),
    ];
    for form in forms.clone() {
        let message = serde_json::json!({"error_code": "DENIED", "message": format!("not {form} here")}).to_string();
        echoes.push(Box::new(move |_| answer(403, &[], message.clone())));
        echoes.push(Box::new(move |_| answer(403, &[], form.clone())));
    }
    let in_json = format!(r#"{{"error_code": "DENIED", "message": "not {escaped} here"}}"#);
    echoes.push(Box::new(move |_| answer(403, &[], in_json.clone())));
    echoes.push(Box::new(move |_| answer(302, &[("location", &format!("https://me:{encoded}@other/"))], "")));
    for (number, echo) in echoes.into_iter().enumerate() {
        let folder = TempDir::new().unwrap();
        let server = MlflowStub::start(Vec::new(), "", move |(.., sent)| Some(echo(sent)));
        let finished = short_job(&folder).args(["--mlflow-uri", &server.uri(&login)]).run().expect_code(4);
        let sent = server.asked()[0].3.replace("Basic ", "");
        assert!(sent.len() > 20, "{sent}");
        let said = all_said(&finished, &folder);
        let base64 = sent.trim_end_matches('=');
        let shown = forms.iter().map(String::as_str).chain([base64, &base64[..24]]);
        for form in shown {
            assert!(!said.contains(form), "case {number}: {form} in {said}");
        }
        // `<` and `>` are part of this password.
        assert!(said.contains("***") || said.contains("<redacted>"), "case {number}: {said}");
    }
}

const TOKEN: &str = "s3cr3t-t0ken";

/// Right, and wrong in every place; the token is where it should be, or not.
fn pars() -> Vec<String> {
    let host = "https://objectstorage.eu-frankfurt-1.oraclecloud.com";
    let right = format!("{host}/p/{TOKEN}/n/ns/b/models/o/");
    vec![
        right.clone(),
        format!("{right}a/file.gguf"),
        right.replace("/p/", "/P/"),
        right.replace("/p/", "//p//"),
        right.replace("/b/models/o/", "/"),
        right.replace("/n/", "/N/"),
        right.replace("https://", ""),
        right.replace("https://", "https:/"),
        right.replace("https://objectstorage.eu-frankfurt-1.oraclecloud.com/", ""),
        format!("{right}?x={TOKEN}"),
        format!("{host}/p/{TOKEN}"),
        right.replace('/', "%2F"),
        right.replace('/', "%2f").replace(':', "%3a"),
        format!("\"{right}\""),
        format!("  {right}\n"),
    ]
}

#[test]
fn a_malformed_par_does_not_show_its_token() {
    let mut pars = pars();
    pars.extend([
        format!("https://host/{TOKEN}/n/ns/b/models/o/"),
        format!("https://host/p/x/{TOKEN}/n/ns/b/models/o/"),
        format!("https://host/n/{TOKEN}"),
        format!("{TOKEN}://host/p/x/n/ns/b/models/o/"),
        TOKEN.to_owned(),
        format!("https://{TOKEN}/"),
        format!("https://host:{TOKEN}/p/x"),
        format!("https://host/o/{TOKEN}/b/models/n/ns/"),
    ]);
    for key in ["par", "output-par", "input-object-storage", "output-object-storage"] {
        for par in pars.iter().skip(if key == "par" { 2 } else { 0 }) {
            let folder = TempDir::new().unwrap();
            let values = [par.clone(), format!(r#"[{{"par": {par:?}, "mount_location": "relative"}}]"#)];
            for value in values.iter().skip(usize::from(key.ends_with("storage"))) {
                let words = ["check", "--model=/nonexistent/model", "--metrics-port=0", &format!("--{key}={value}")];
                let finished = Process::flashjob().args(words).directory(folder.path()).run();
                assert!(matches!(finished.code(), Some(0 | 2)), "{key}={value}: {finished}");
                assert!(!all_said(&finished, &folder).contains(TOKEN), "{key}={value}: {finished}");
            }
        }
    }
}

#[test]
fn a_par_at_another_key_is_hidden_in_all_that_is_said_and_made() {
    let folder = TempDir::new().unwrap();
    let nothing_of_the_token = |finished: &Finished, what: &str| {
        assert!(!all_said(finished, &folder).contains(TOKEN), "{what}: {}", all_said(finished, &folder));
    };
    for par in pars() {
        for key in [
            "model",
            "tokenizer",
            "dataset-path",
            "results-dir",
            "mlflow-uri",
            "run-name",
            "experiment-name",
            "cache-dir",
            "mount-location",
            "include",
            "termination-message-path",
            "blueprint",
            "device",
            "seed",
            "replica-count",
        ] {
            let finished = Process::flashjob()
                .args(["--metrics-port=0", "--metrics-linger-seconds=0", "--device=cpu"])
                .args((key != "model").then_some("--model=/nonexistent/model"))
                .args([format!("--{key}={par}")])
                .args((key == "dataset-path").then_some("--dataset=jsonl"))
                .directory(folder.path())
                .run();
            nothing_of_the_token(&finished, &format!("--{key}={par}"));
        }
        for command in [&["publish"][..], &["validate", "--blueprint"], &["render", "--blueprint"], &["render"], &[]] {
            let finished = Process::flashjob().args(command).args([&par]).directory(folder.path()).run().expect_code(2);
            nothing_of_the_token(&finished, &format!("{command:?} {par}"));
        }
        for variable in
            ["FLASHJOB_LOG", "MLFLOW_WORKSPACE", "MLFLOW_TRACKING_SERVER_CERT_PATH", "LWS_LEADER_ADDRESS", "JOB_UID"]
        {
            let finished =
                short_job(&folder).env(variable, &par).args(["--mlflow-uri=http://127.0.0.1:1", "--device=none"]).run();
            nothing_of_the_token(&finished, &format!("{variable}={par}"));
        }
        let finished = short_job(&folder).env("FLASHJOB_LOG", &par).run();
        nothing_of_the_token(&finished, "FLASHJOB_LOG");
        for entry in fs::read_dir(folder.path()).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(!name.to_string_lossy().contains(TOKEN), "{name:?}");
        }
    }
}
