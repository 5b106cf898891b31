//! A tracking server that says what a test wants it to say, and writes down what it is asked.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, Response, Uri};
use serde_json::{Value, json};

/// A request: method, path, body, header of the login.
pub type Asked = (String, String, Value, String);

/// Answer of a test instead of the server, given what was asked.
pub type Answer = dyn Fn(&Asked) -> Option<Response<Body>> + Send + Sync;

/// A server with one experiment, whose runs begin with those that are handed over.
pub struct MlflowStub {
    address: SocketAddr,
    state: Arc<Stub>,
    _runtime: tokio::runtime::Runtime,
}

struct Stub {
    runs: Mutex<Vec<Value>>,
    asked: Mutex<Vec<Asked>>,
    artifact_uri: String,
    answer: Box<Answer>,
}

/// A run as the server tells of it.
pub fn run(id: &str, experiment: &str, tags: &[(&str, &str)]) -> Value {
    let tags: Vec<Value> = tags.iter().map(|(key, value)| json!({"key": key, "value": value})).collect();
    json!({
        "info": {
            "run_id": id,
            "experiment_id": experiment,
            "artifact_uri": "mlflow-artifacts:/1/x/artifacts",
            "lifecycle_stage": "active",
            "status": "RUNNING",
            "start_time": 1,
        },
        "data": {"tags": tags},
    })
}

/// An answer of `status`.
pub fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response<Body> {
    let response = headers
        .iter()
        .fold(Response::builder().status(status), |response, (name, value)| response.header(*name, *value));
    response.body(body.into()).unwrap()
}

impl MlflowStub {
    pub fn start(
        runs: Vec<Value>,
        artifact_uri: &str,
        answer: impl Fn(&Asked) -> Option<Response<Body>> + Send + Sync + 'static,
    ) -> Self {
        let state = Arc::new(Stub {
            runs: Mutex::new(runs),
            asked: Mutex::default(),
            artifact_uri: artifact_uri.to_owned(),
            answer: Box::new(answer),
        });
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().fallback(serve).with_state(state.clone());
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { address, state, _runtime: runtime }
    }

    /// Its address, with `login` in it.
    pub fn uri(&self, login: &str) -> String {
        format!("http://{login}{}", self.address)
    }

    /// Everything that it was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.state.asked.lock().unwrap().clone()
    }

    /// The runs that it has now.
    pub fn runs(&self) -> Vec<Value> {
        self.state.runs.lock().unwrap().clone()
    }
}

async fn serve(
    State(stub): State<Arc<Stub>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let login = headers.get("authorization").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let asked: Asked =
        (method.to_string(), uri.path().to_owned(), serde_json::from_slice(&body).unwrap_or_default(), login);
    stub.asked.lock().unwrap().push(asked.clone());
    if let Some(answer) = (stub.answer)(&asked) {
        return answer;
    }
    let body = asked.2;
    let said = match asked.1.strip_prefix("/api/2.0/mlflow/").unwrap_or_default() {
        "experiments/get-by-name" => {
            let name = uri.query().and_then(|query| query.strip_prefix("experiment_name=")).unwrap_or_default();
            json!({"experiment": {"experiment_id": "1", "name": name, "lifecycle_stage": "active"}})
        }
        // All runs, whatever the filter.
        "runs/search" => json!({"runs": *stub.runs.lock().unwrap()}),
        "runs/create" => {
            let mut run = run("own", "1", &[]);
            run["data"]["tags"] = body["tags"].clone();
            run["info"]["artifact_uri"] = json!(stub.artifact_uri);
            stub.runs.lock().unwrap().push(run.clone());
            json!({"run": run})
        }
        _ => json!({}),
    };
    answer(200, &[("content-type", "application/json")], said.to_string())
}
