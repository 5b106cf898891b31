//! Stands before a real server and misbehaves on demand.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

/// Fault of one request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It is passed on.
    None,
    /// It is answered in the server's place.
    Answer(u16, &'static [(&'static str, &'static str)], &'static str),
    /// The connection breaks and the server never hears of it.
    Break,
    /// The server does it, but the answer never arrives.
    LoseAnswer,
    /// It is answered with 504 and reaches the server that much later.
    Late(Duration),
    /// It is passed on after a while.
    Slow(Duration),
    /// Nothing happens, ever.
    Hang,
    /// It is passed on with this header changed or, for an empty value, left out.
    Header(&'static str, &'static str),
}

/// One request, as a rule sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Number of requests before it.
    pub number: usize,
    /// Such as `POST /api/2.0/mlflow/runs/create`.
    pub line: String,
    pub headers: HeaderMap,
}

type Rule = Box<dyn Fn(&Seen) -> Fault + Send>;

/// The proxy; gone when dropped.
pub struct FaultProxy {
    pub uri: String,
    shared: Arc<Shared>,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    upstream: String,
    http: reqwest::Client,
    rule: Mutex<Rule>,
    seen: Mutex<Vec<Seen>>,
}

impl FaultProxy {
    /// Listens on a free port; `rule` decides for each request.
    pub async fn before(upstream: &str, rule: impl Fn(&Seen) -> Fault + Send + 'static) -> Self {
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            http: reqwest::Client::new(),
            rule: Mutex::new(Box::new(rule)),
            seen: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(shared.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { uri, shared, task }
    }

    /// From now on another rule.
    pub fn set(&self, rule: impl Fn(&Seen) -> Fault + Send + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// Every request so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// Number of requests so far with `part` in their request line.
    pub fn count(&self, part: &str) -> usize {
        self.seen().iter().filter(|seen| seen.line.contains(part)).count()
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let fault = {
        let mut all = shared.seen.lock().unwrap();
        let line = format!("{} {}", request.method(), request.uri());
        let seen = Seen { number: all.len(), line, headers: request.headers().clone() };
        let fault = shared.rule.lock().unwrap()(&seen);
        all.push(seen);
        fault
    };
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, usize::MAX).await else { return broken() };
    let pass = |shared: Arc<Shared>, header: Option<(&'static str, &'static str)>| {
        let (parts, body) = (parts.clone(), body.clone());
        async move { shared.pass(parts, body, header).await }
    };
    match fault {
        Fault::None => pass(shared, None).await,
        Fault::Header(name, value) => pass(shared, Some((name, value))).await,
        Fault::Answer(status, headers, body) => {
            let response = Response::builder().status(status);
            headers
                .iter()
                .fold(response, |response, (name, value)| response.header(*name, *value))
                .body(body.into())
                .unwrap()
        }
        Fault::Break => broken(),
        Fault::LoseAnswer => {
            pass(shared, None).await;
            broken()
        }
        Fault::Late(delay) => {
            let later = pass(shared, None);
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                later.await
            });
            let mut response = Response::new(Body::from("too late"));
            *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
            response
        }
        Fault::Slow(delay) => {
            tokio::time::sleep(delay).await;
            pass(shared, None).await
        }
        Fault::Hang => std::future::pending().await,
    }
}

impl Shared {
    async fn pass(
        &self,
        parts: axum::http::request::Parts,
        body: Bytes,
        header: Option<(&'static str, &str)>,
    ) -> Response {
        let mut headers = parts.headers;
        headers.remove("host");
        if let Some((name, value)) = header {
            headers.remove(name);
            if !value.is_empty() {
                headers.insert(name, value.parse().unwrap());
            }
        }
        let url = format!("{}{}", self.upstream, parts.uri);
        let answer = self.http.request(parts.method, url).headers(headers).body(body).send().await.unwrap();
        let mut response = Response::new(Body::empty());
        *response.status_mut() = answer.status();
        *response.headers_mut() = answer.headers().clone();
        response.headers_mut().remove("transfer-encoding");
        *response.body_mut() = answer.bytes().await.unwrap().into();
        response
    }
}

/// A response that ends before its body does: the connection is reset under the client.
fn broken() -> Response {
    let error = Err::<Bytes, _>(std::io::Error::other("broken on purpose"));
    Response::new(Body::from_stream(futures_util::stream::iter([error])))
}
