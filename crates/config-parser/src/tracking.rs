//! The MLflow server that records the run, and its credentials.
//!
//! The variables are those that MLflow's own client (3.17.2, `mlflow/environment_variables.py`) reads; as there, an
//! empty one counts as not set, and a user name with its password beats the token (`mlflow/utils/rest_utils.py`).

use std::path::PathBuf;

use flashjob_config::{Credentials, Origin, Secret, Tracking, holds_par};
use percent_encoding::percent_decode_str;
use url::Url;

use super::error::ConfigError;
use super::keys::Raw;
use super::parsing;
use super::resolver::Resolver;
use super::slot::{Given, Slot};

/// Default experiment.
const EXPERIMENT: &str = "flashjob";

/// Reads all keys of tracking. `None`: an error was recorded. `Some(None)`: results stay local.
pub(super) fn resolve(resolver: &mut Resolver, raw: &Raw) -> Option<Option<Tracking>> {
    let uri = address(resolver, raw);
    let experiment = experiment(resolver, raw);
    let run_name = resolver.read_open(&raw.run_name, parsing::name, Clone::clone);
    let Some((uri, login)) = uri? else { return Some(None) };
    let credentials = credentials(resolver, raw, login);
    let (insecure_tls, server_cert_path) = certificates(resolver, raw)?;
    let workspace = match set(&raw.mlflow_workspace) {
        None => None,
        Some(given) => match parsing::name(&given.text) {
            Ok(name) => Some(name),
            Err(clause) => {
                resolver.errors.push(ConfigError::value("MLFLOW_WORKSPACE", &given.text, &given.origin, clause));
                return None;
            }
        },
    };
    Some(Some(Tracking {
        uri,
        experiment: experiment?,
        run_name: run_name?,
        credentials: credentials?,
        insecure_tls,
        server_cert_path,
        workspace,
    }))
}

/// Value of one of MLflow's variables, unless empty.
fn set(slot: &Slot) -> Option<&Given> {
    slot.given.as_ref().filter(|given| !given.text.is_empty())
}

type Login = Option<(String, Secret)>;

/// URL of the server without its login. `Some(None)`: there is no server.
fn address(resolver: &mut Resolver, raw: &Raw) -> Option<Option<(Url, Login)>> {
    let slot = &raw.mlflow_uri;
    let (key, given) = match (&slot.given, set(&raw.mlflow_tracking_uri)) {
        (Some(given), _) => (slot.key(), given),
        (None, Some(given)) => ("MLFLOW_TRACKING_URI".to_owned(), given),
        (None, None) => {
            resolver.note(slot, "none".to_owned(), Origin::Default);
            return Some(None);
        }
    };
    if given.text == "none" {
        resolver.note(slot, "none".to_owned(), given.origin.clone());
        return Some(None);
    }
    if !resolver.check_reference(slot, given) {
        return None;
    }
    match parse(&given.text) {
        Ok((url, login)) => {
            resolver.note(slot, url.to_string(), given.origin.clone());
            Some(Some((url, login)))
        }
        Err(clause) => {
            resolver.errors.push(ConfigError::value(&key, &given.text, &given.origin, clause));
            None
        }
    }
}

/// Parses the address of an MLflow server into URL and login.
fn parse(text: &str) -> Result<(Url, Login), String> {
    if text.is_empty() {
        return Err("it must be the address of an MLflow server, or none".to_owned());
    }
    if text.contains(['<', '>']) {
        return Err("it is a placeholder; put the address of your MLflow server there".to_owned());
    }
    if holds_par(text) {
        return Err("it is a Pre-Authenticated Request; that belongs into par, and here the MLflow server".to_owned());
    }
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err("it has no scheme; write http:// or https:// before it".to_owned());
    };
    if !matches!(scheme.to_ascii_lowercase().as_str(), "http" | "https") {
        return Err(
            "it must begin with http:// or https://: flashjob records runs on a tracking server only".to_owned()
        );
    }
    // The URL parser would take `https:///path` for the host `path`.
    let mut url = match Url::parse(text) {
        Ok(url) if !rest.starts_with('/') => url,
        Ok(_) => return Err("it names no host".to_owned()),
        Err(error) => return Err(format!("it is not a URL ({error})")),
    };
    if url.fragment().is_some() || url.query().is_some() {
        return Err("it has a query or a fragment; give the server's address alone, not that of a page".to_owned());
    }
    let login = match (url.username(), url.password()) {
        ("", None) => None,
        ("", Some(_)) => return Err("it has a password without a user name".to_owned()),
        (_, None) => return Err("it has a user name without a password".to_owned()),
        (username, Some(password)) => {
            let decode = |part: &str| percent_decode_str(part).decode_utf8().map(|text| text.into_owned());
            let (Ok(username), Ok(password)) = (decode(username), decode(password)) else {
                return Err("its login is not UTF-8".to_owned());
            };
            Some((username, Secret::new(password)))
        }
    };
    // Neither fails on a URL with a host.
    if url.set_username("").is_err() || url.set_password(None).is_err() {
        return Err("its login cannot be taken out".to_owned());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    Ok((url, login))
}

fn experiment(resolver: &mut Resolver, raw: &Raw) -> Option<String> {
    let slot = match (&raw.experiment_name.given, set(&raw.mlflow_experiment_name)) {
        (None, Some(given)) => &Slot { given: Some(given.clone()), ..raw.experiment_name.clone() },
        _ => &raw.experiment_name,
    };
    if slot.given.is_none() {
        resolver.note(slot, EXPERIMENT.to_owned(), Origin::Default);
        return Some(EXPERIMENT.to_owned());
    }
    resolver.read(slot, parsing::name, Clone::clone)
}

fn credentials(resolver: &mut Resolver, raw: &Raw, in_uri: Login) -> Option<Credentials> {
    let username = set(&raw.mlflow_tracking_username);
    let password = set(&raw.mlflow_tracking_password);
    let token = set(&raw.mlflow_tracking_token);
    let in_variables: Login = username.zip(password).map(|(name, word)| (name.text.clone(), Secret::new(&*word.text)));
    let wrong = match (&in_uri, &in_variables) {
        (Some(uri), Some(variables)) if uri != variables => {
            "mlflow-uri holds one login, MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD another; keep one of them"
        }
        (None, None) if token.is_none() && username.is_some() => {
            "MLFLOW_TRACKING_USERNAME is set without MLFLOW_TRACKING_PASSWORD; set both or neither"
        }
        (None, None) if token.is_none() && password.is_some() => {
            "MLFLOW_TRACKING_PASSWORD is set without MLFLOW_TRACKING_USERNAME; set both or neither"
        }
        _ => "",
    };
    if !wrong.is_empty() {
        resolver.errors.push(ConfigError::Together(wrong.to_owned()));
        return None;
    }
    // The login of the address counts even if the token is given, as in MLflow's client.
    let uri_origin = raw.mlflow_uri.given.as_ref().or(set(&raw.mlflow_tracking_uri)).filter(|_| in_uri.is_some());
    let sendable = |text: &str| text.bytes().all(|b| b == b'\t' || (b >= 0x20 && b != 0x7f));
    let (kind, credentials) = match (in_uri.or(in_variables), token) {
        (Some((username, _)), _) if username.contains(':') => {
            let clause = "a user name for basic authentication must not hold a colon";
            resolver.errors.push(ConfigError::Together(format!("the MLflow user name cannot be used: {clause}")));
            return None;
        }
        (Some((username, password)), _) => ("basic", Credentials::Basic { username, password }),
        (None, Some(given)) if !sendable(&given.text) => {
            let clause = "it holds a line break or another character that no HTTP header can carry";
            resolver.errors.push(ConfigError::hidden("MLFLOW_TRACKING_TOKEN", &given.origin, clause));
            return None;
        }
        (None, Some(given)) => ("token", Credentials::Bearer(Secret::new(&*given.text))),
        (None, None) => ("none", Credentials::Anonymous),
    };
    let given = uri_origin.or(username.filter(|_| kind == "basic")).or(token.filter(|_| kind == "token"));
    let origin = given.map_or(Origin::Default, |given| given.origin.clone());
    resolver.note_as(&raw.mlflow_uri, "mlflow-login".to_owned(), kind.to_owned(), origin);
    Some(credentials)
}

fn certificates(resolver: &mut Resolver, raw: &Raw) -> Option<(bool, Option<PathBuf>)> {
    let insecure = match set(&raw.mlflow_tracking_insecure_tls) {
        None => Some(false),
        Some(given) => match parsing::strict_boolean(&given.text) {
            Ok(insecure) => Some(insecure),
            Err(clause) => {
                let key = "MLFLOW_TRACKING_INSECURE_TLS";
                resolver.errors.push(ConfigError::value(key, &given.text, &given.origin, clause));
                None
            }
        },
    };
    let path = set(&raw.mlflow_tracking_server_cert_path).map(|given| PathBuf::from(&given.text));
    if insecure == Some(true) && path.is_some() {
        resolver.errors.push(ConfigError::Together(
            "MLFLOW_TRACKING_INSECURE_TLS and MLFLOW_TRACKING_SERVER_CERT_PATH are both set; a certificate is checked or \
             it is not, so keep one of them"
                .to_owned(),
        ));
        return None;
    }
    Some((insecure?, path))
}
