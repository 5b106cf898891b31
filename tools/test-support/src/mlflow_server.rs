//! A real MLflow tracking server, started once for all tests and read back through its own REST API.
//!
//! `scripts/venv mlflow` installs it. The whole process group ends with the test process: the server starts
//! children of its own, which a signal to it alone would leave behind.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::process;
use super::venv::venv;
use super::workplace::Workplace;

/// Starting takes ten seconds on an idle machine.
const START: Duration = Duration::from_secs(180);

/// The administrator of [`with_login`]. Not one letter beyond ASCII: MLflow 3.17.2 takes such a password for runs, but
/// not for artifacts.
pub const ADMIN: (&str, &str) = ("admin", "a long-enough pass:word %&/");

/// A running server.
pub struct MlflowServer {
    uri: String,
    login: Option<(&'static str, &'static str)>,
    child: Child,
    /// Directory of the server's files. The server's process group ends with it.
    _place: Workplace,
}

/// The server that needs no login; `None` where MLflow cannot be installed (and the test says so).
pub fn shared() -> Option<&'static MlflowServer> {
    static SERVER: OnceLock<Option<MlflowServer>> = OnceLock::new();
    server(&SERVER, None)
}

/// A server with MLflow's own basic authentication.
pub fn with_login() -> Option<&'static MlflowServer> {
    static SERVER: OnceLock<Option<MlflowServer>> = OnceLock::new();
    server(&SERVER, Some(ADMIN))
}

fn server(
    once: &'static OnceLock<Option<MlflowServer>>,
    login: Option<(&'static str, &'static str)>,
) -> Option<&'static MlflowServer> {
    let server = once.get_or_init(|| Some(MlflowServer::start(&environment()?, login))).as_ref();
    if server.is_none() {
        process::skip("scripts/venv mlflow cannot install MLflow here");
    }
    server
}

/// The Python environment with MLflow in it.
pub fn environment() -> Option<PathBuf> {
    static ENVIRONMENT: OnceLock<Option<PathBuf>> = OnceLock::new();
    ENVIRONMENT.get_or_init(|| venv("mlflow")).clone()
}

impl MlflowServer {
    fn start(environment: &Path, login: Option<(&'static str, &'static str)>) -> Self {
        // The whole group, as the server has workers of its own; a moment for the kernel to close their files.
        let place = Workplace::ended_by(r#"kill -KILL "-$(cat "$1/pid")"; sleep 1"#);
        let directory = place.path().to_owned();
        let port = process::free_port();
        let log = directory.join("server.log");
        let mut command = Command::new(environment.join("bin/mlflow"));
        command.args(["server", "--host", "127.0.0.1", "--workers", "1", "--port", &port.to_string()]);
        command.arg("--backend-store-uri").arg(format!("sqlite:///{}", directory.join("runs.db").display()));
        command.arg("--artifacts-destination").arg(directory.join("artifacts"));
        command.env("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false").env("HOME", &directory);
        // Many tests are one server's clients, and some hold its connections on purpose.
        command.env("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "50").env("MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW", "50");
        if let Some((name, password)) = login {
            let settings = directory.join("auth.ini");
            let database = directory.join("auth.db");
            std::fs::write(
                &settings,
                format!(
                    "[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{}\nadmin_username = {name}\n\
                     authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n",
                    database.display()
                ),
            )
            .unwrap();
            command.args(["--app-name", "basic-auth"]);
            command.env("MLFLOW_AUTH_CONFIG_PATH", settings).env("MLFLOW_AUTH_ADMIN_PASSWORD", password);
            command.env("MLFLOW_FLASK_SERVER_SECRET_KEY", "of this test only");
        }
        let output = File::create(&log).unwrap();
        command.current_dir(&directory).stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let child = command.process_group(0).spawn().unwrap();
        std::fs::write(directory.join("pid"), child.id().to_string()).unwrap();
        let mut server = Self { uri: format!("http://127.0.0.1:{port}"), login, child, _place: place };
        let deadline = Instant::now() + START;
        // `/health` answers before the server can do anything else.
        while server.try_call("GET", "experiments/get?experiment_id=0", None).is_none_or(|(status, _)| status != 200) {
            let ended = server.child.try_wait().unwrap();
            let said = || std::fs::read_to_string(&log).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "MLflow does not start ({ended:?}):\n{}", said());
            // Python imports for seconds: asking more often would slow it down.
            std::thread::sleep(Duration::from_millis(100));
        }
        server
    }

    /// The tracking URI.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    /// Calls `api/2.0/mlflow/ENDPOINT` and expects success.
    #[track_caller]
    pub fn call(&self, method: &str, endpoint: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.answer(method, endpoint, body);
        assert_eq!(status, 200, "{method} {endpoint}: {}", String::from_utf8_lossy(&answer));
        serde_json::from_slice(&answer).unwrap()
    }

    /// Every run of the experiment that is not deleted; none where there is no such experiment.
    #[track_caller]
    pub fn runs(&self, experiment: &str) -> Vec<Run> {
        self.search(experiment, "ACTIVE_ONLY")
    }

    /// Every deleted run of the experiment.
    #[track_caller]
    pub fn deleted_runs(&self, experiment: &str) -> Vec<Run> {
        self.search(experiment, "DELETED_ONLY")
    }

    #[track_caller]
    fn search(&self, experiment: &str, view: &str) -> Vec<Run> {
        let Some(id) = self.experiment_id(experiment) else { return Vec::new() };
        let body = json!({ "experiment_ids": [id], "run_view_type": view, "max_results": 1000 });
        let answer = self.call("POST", "runs/search", Some(body));
        answer["runs"].as_array().into_iter().flatten().cloned().map(Run).collect()
    }

    /// The id of the experiment called `name`, deleted or not.
    pub fn experiment_id(&self, name: &str) -> Option<String> {
        let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("experiment_name", name).finish();
        let (status, answer) = self.answer("GET", &format!("experiments/get-by-name?{query}"), None);
        assert!([200, 404].contains(&status), "{name}: {status} {}", String::from_utf8_lossy(&answer));
        let answer: Value = (status == 200).then(|| serde_json::from_slice(&answer).unwrap())?;
        answer["experiment"]["experiment_id"].as_str().map(str::to_owned)
    }

    /// All points of a metric: `(step, timestamp in ms, value)`, in the order of steps.
    #[track_caller]
    pub fn history(&self, run: &Run, metric: &str) -> Vec<(i64, i64, f64)> {
        let query = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("run_id", run.id())
            .append_pair("metric_key", metric)
            .finish();
        let answer = self.call("GET", &format!("metrics/get-history?{query}"), None);
        let number = |value: &Value| value.as_i64().unwrap_or_default();
        let mut points: Vec<_> = answer["metrics"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|point| (number(&point["step"]), number(&point["timestamp"]), point["value"].as_f64().unwrap()))
            .collect();
        points.sort_by_key(|point| (point.0, point.1));
        points
    }

    /// The bytes of an artifact, by its path below the run's artifacts.
    pub fn artifact(&self, run: &Run, path: &str) -> Option<Vec<u8>> {
        let mut url = url::Url::parse(&format!("{}/get-artifact", self.uri)).unwrap();
        url.query_pairs_mut().append_pair("path", path).append_pair("run_uuid", run.id());
        let (status, answer) = self.request("GET", url.as_str(), None)?;
        (status == 200).then_some(answer)
    }

    /// Final answer of the server: under the load of all tests it drops a connection or answers 500 now and then.
    fn answer(&self, method: &str, endpoint: &str, body: Option<Value>) -> (u16, Vec<u8>) {
        for _ in 0..20 {
            match self.try_call(method, endpoint, body.clone()) {
                Some((status, answer)) if status < 500 => return (status, answer),
                _ => std::thread::sleep(Duration::from_millis(250)),
            }
        }
        self.try_call(method, endpoint, body).expect("the server answers")
    }

    fn try_call(&self, method: &str, endpoint: &str, body: Option<Value>) -> Option<(u16, Vec<u8>)> {
        self.request(method, &format!("{}/api/2.0/mlflow/{endpoint}", self.uri), body)
    }

    /// On a thread of its own, so that tests can call it from inside a runtime and from outside.
    fn request(&self, method: &str, url: &str, body: Option<Value>) -> Option<(u16, Vec<u8>)> {
        let work = async {
            let mut request = reqwest::Client::new().request(method.parse().unwrap(), url);
            if let Some((name, password)) = self.login {
                request = request.basic_auth(name, Some(password));
            }
            if let Some(body) = &body {
                request = request.json(body);
            }
            let response = request.send().await.ok()?;
            Some((response.status().as_u16(), response.bytes().await.ok()?.to_vec()))
        };
        let on_a_runtime =
            || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work);
        std::thread::scope(|scope| scope.spawn(on_a_runtime).join().unwrap())
    }
}

/// A run as the server tells it.
#[derive(Debug)]
pub struct Run(pub Value);

impl Run {
    /// Its identifier.
    pub fn id(&self) -> &str {
        self.0["info"]["run_id"].as_str().unwrap()
    }

    /// Name of the run.
    pub fn name(&self) -> &str {
        self.0["info"]["run_name"].as_str().unwrap()
    }

    /// `RUNNING`, `FINISHED`, `FAILED` or `KILLED`.
    pub fn status(&self) -> &str {
        self.0["info"]["status"].as_str().unwrap()
    }

    /// Milliseconds since 1970.
    pub fn start_time(&self) -> Option<i64> {
        self.0["info"]["start_time"].as_i64()
    }

    /// Milliseconds since 1970.
    pub fn end_time(&self) -> Option<i64> {
        self.0["info"]["end_time"].as_i64()
    }

    /// The value of a parameter.
    pub fn param(&self, key: &str) -> Option<&str> {
        self.entry("params", key)?.as_str()
    }

    /// The value of a tag.
    pub fn tag(&self, key: &str) -> Option<&str> {
        self.entry("tags", key)?.as_str()
    }

    /// The newest value of a metric.
    pub fn metric(&self, key: &str) -> Option<f64> {
        self.entry("metrics", key)?.as_f64()
    }

    /// The keys of `metrics`, `params` or `tags`.
    pub fn keys(&self, kind: &str) -> Vec<&str> {
        self.0["data"][kind].as_array().into_iter().flatten().filter_map(|entry| entry["key"].as_str()).collect()
    }

    fn entry(&self, kind: &str, key: &str) -> Option<&Value> {
        self.0["data"][kind].as_array()?.iter().find(|entry| entry["key"] == key).map(|entry| &entry["value"])
    }
}
