//! One request from its path to its answer: what it is for, whether its PAR allows it, what goes wrong with it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderName, HeaderValue, Method, Request, Response, header};
use futures_util::StreamExt as _;
use tokio::net::TcpListener;

use crate::access::{Attempt, Grant, Grants};
use crate::admin;
use crate::answer::Refusal;
use crate::conditions;
use crate::faults::{Faults, Kind};
use crate::line::{Line, Listener};
use crate::listing::{self, Query};
use crate::read;
use crate::requests::{self, Operation, Requests};
use crate::spoil::{Wire, spoil};
use crate::store::Store;
use crate::target::{Resource, Target, encode};
use crate::upload::Uploads;
use crate::write;

/// State that all requests share.
pub struct Service {
    base: String,
    namespace: String,
    bucket: String,
    pub store: Arc<Store>,
    pub grants: Grants,
    pub faults: Faults,
    pub requests: Arc<Requests>,
    pub uploads: Uploads,
    wire: Wire,
}

impl Service {
    pub fn new(base: String, namespace: String, bucket: String, store: Store) -> Arc<Self> {
        Arc::new(Self {
            base,
            namespace,
            bucket,
            store: Arc::new(store),
            grants: Grants::default(),
            faults: Faults::default(),
            requests: Arc::default(),
            uploads: Uploads::default(),
            wire: Wire::default(),
        })
    }

    /// Makes a PAR, and describes it with its URL and its token.
    pub fn grant(&self, mut grant: Grant) -> serde_json::Value {
        let token = self.grants.add(grant.clone());
        let object = grant.object.as_deref().map(encode).unwrap_or_default();
        let url = format!("{}/p/{token}/n/{}/b/{}/o/{object}", self.base, self.namespace, self.bucket);
        grant.token = Some(token);
        serde_json::json!({ "url": url, "grant": grant })
    }
}

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, server: Arc<Service>) -> io::Result<()> {
    let listener = Listener { listener, requests: Arc::clone(&server.requests) };
    let router = Router::new()
        .nest("/admin", admin::router())
        .fallback(answer)
        .with_state(server)
        // Bodies are streamed to files, so they need no limit.
        .layer(axum::extract::DefaultBodyLimit::disable());
    axum::serve(listener, router.into_make_service_with_connect_info::<Line>()).await
}

async fn answer(
    State(server): State<Arc<Service>>,
    ConnectInfo(line): ConnectInfo<Line>,
    request: Request<Body>,
) -> Response<Body> {
    let head = request.method() == Method::HEAD;
    let target = Target::parse(request.uri().path());
    let operation = target.as_ref().map_or(Operation::Other, |target| operation(request.method(), target, &request));
    let query = request.uri().query().unwrap_or("").to_owned();
    let name = match target.as_ref().map(|target| &target.resource) {
        Some(Resource::Object(name) | Resource::Upload { object: name, .. }) => name.clone(),
        Some(Resource::Listing) => Query::parse(&query).map(|query| query.prefix).unwrap_or_default(),
        None => request.uri().path().to_owned(),
    };
    let range = conditions::text(request.headers(), header::RANGE).map(str::to_owned);
    let if_match = conditions::text(request.headers(), header::IF_MATCH).map(str::to_owned);
    let client_request_id = request.headers().get("opc-client-request-id").cloned();

    let number = server.requests.number();
    // Drawn before anything else, so that each request counts exactly once.
    let faults = server.faults.draw(operation, &name);
    server.requests.note(requests::Request { number, operation, name, range, if_match, status: 0 });
    let mut result = refused(&faults).await;
    if result.is_some() {
        // As the service does: a client that is still sending would see a broken connection instead of the answer.
        let mut body = request.into_body().into_data_stream();
        while let Some(Ok(_)) = body.next().await {}
    } else {
        result = Some(match target {
            None => Err(Refusal::new(404, "NotFound", "There is nothing at this path")),
            Some(target) => done(&server, operation, target, &query, request, &faults).await,
        });
    }
    let mut response = match result {
        Some(Ok(response)) => response,
        Some(Err(refusal)) => refusal.into_response(head),
        None => Refusal::internal("no answer").into_response(head),
    };
    if let Some(retry_after) = faults.iter().find_map(|kind| match kind {
        Kind::Status { retry_after, .. } => retry_after.as_deref(),
        _ => None,
    }) {
        read::insert(&mut response, header::RETRY_AFTER, retry_after);
    }
    let request_id = format!("{:032X}", rand::random::<u128>());
    read::insert(&mut response, HeaderName::from_static("opc-request-id"), &request_id);
    if let Some(id) = client_request_id {
        response.headers_mut().insert("opc-client-request-id", id);
    }
    server.requests.answered(number, response.status().as_u16());
    if faults.contains(&Kind::LostAnswer) {
        line.reset_at_end();
        return Response::new(broken());
    }
    let response = if faults.is_empty() { response } else { spoil(response, &faults, &line, &server.wire) };
    counted(response, &server.requests)
}

/// Purpose of a request by method and target.
fn operation(method: &Method, target: &Target, request: &Request<Body>) -> Operation {
    match (method, &target.resource) {
        (&Method::GET, Resource::Listing) => Operation::List,
        (&Method::GET, Resource::Object(_)) => Operation::Get,
        (&Method::HEAD, Resource::Object(_)) => Operation::Head,
        (&Method::PUT, Resource::Object(_)) if is_multipart(request) => Operation::OpenUpload,
        (&Method::PUT, Resource::Object(_)) => Operation::Put,
        (&Method::PUT, Resource::Upload { part: Some(_), .. }) => Operation::PutPart,
        (&Method::POST, Resource::Upload { part: None, .. }) => Operation::CommitUpload,
        (&Method::DELETE, Resource::Upload { part: None, .. }) => Operation::AbortUpload,
        _ => Operation::Other,
    }
}

fn is_multipart(request: &Request<Body>) -> bool {
    request.headers().get("opc-multipart").is_some_and(|value: &HeaderValue| value == "true")
}

/// Waits where a fault says so, and refuses where one does.
async fn refused(faults: &[Kind]) -> Option<Result<Response<Body>, Refusal>> {
    let mut refusal = None;
    for kind in faults {
        match kind {
            Kind::Latency { seconds } => {
                tokio::time::sleep(Duration::try_from_secs_f64(*seconds).unwrap_or_default()).await;
            }
            Kind::Status { status, code, message, .. } if refusal.is_none() => {
                let mut said = Refusal::of_status(*status);
                said.code = code.clone().unwrap_or(said.code);
                said.message = message.clone().unwrap_or(said.message);
                refusal = Some(Err(said));
            }
            _ => {}
        }
    }
    refusal
}

/// Does what is asked, if the PAR allows it.
async fn done(
    server: &Service,
    operation: Operation,
    target: Target,
    query: &str,
    request: Request<Body>,
    faults: &[Kind],
) -> Result<Response<Body>, Refusal> {
    let Service { namespace, bucket, store, uploads, .. } = server;
    let Target { token, resource, .. } = &target;
    let may = |attempt: Attempt<'_>| {
        // Access first: an unauthorised client learns nothing about names.
        server.grants.check(token, attempt, namespace, bucket)?;
        let here = target.namespace == *namespace && target.bucket == *bucket;
        if here { Ok(()) } else { Err(Refusal::denied(&target.namespace, &target.bucket)) }
    };
    let (parts, body) = request.into_parts();
    let headers = &parts.headers;
    match (operation, resource) {
        (Operation::List, _) => {
            let query = Query::parse(query)?;
            may(Attempt::List(&query.prefix))?;
            let (store, circular) = (Arc::clone(store), faults.contains(&Kind::CircularListing));
            let page = tokio::task::spawn_blocking(move || listing::page(&store, &query, circular));
            page.await.map_err(Refusal::internal)
        }
        (Operation::Get | Operation::Head, Resource::Object(name)) => {
            may(Attempt::Read(name))?;
            read::answer(store, bucket, name, headers, operation == Operation::Head, faults).await
        }
        (Operation::Put, Resource::Object(name)) => {
            may(Attempt::Write(name))?;
            write::answer(store, name, headers, body).await
        }
        (Operation::OpenUpload, Resource::Object(name)) => {
            may(Attempt::Write(name))?;
            uploads.open(name, &format!("/p/{token}/n/{namespace}/b/{bucket}"))
        }
        (Operation::PutPart, Resource::Upload { object, id, part: Some(number) }) => {
            may(Attempt::Write(object))?;
            uploads.put(store, object, id, *number, headers, body).await
        }
        (Operation::CommitUpload, Resource::Upload { object, id, .. }) => {
            may(Attempt::Write(object))?;
            uploads.commit(store, object, id, headers)
        }
        (Operation::AbortUpload, Resource::Upload { object, id, .. }) => {
            may(Attempt::Write(object))?;
            uploads.abort(object, id)
        }
        _ => {
            may(Attempt::Delete)?;
            Err(Refusal::denied(namespace, bucket))
        }
    }
}

/// A body that breaks before its first byte.
fn broken() -> Body {
    let error = io::Error::other("a fault was asked for");
    Body::from_stream(futures_util::stream::iter([Err::<bytes::Bytes, _>(error)]))
}

/// Counts what is sent.
fn counted(response: Response<Body>, requests: &Arc<Requests>) -> Response<Body> {
    use futures_util::StreamExt as _;
    let requests = Arc::clone(requests);
    response.map(|body| {
        // Bodies of known length are small answers, not content.
        if axum::body::HttpBody::size_hint(&body).exact().is_some() {
            return body;
        }
        Body::from_stream(body.into_data_stream().inspect(move |piece| {
            requests.sent(piece.as_ref().map_or(0, |piece| piece.len() as u64));
        }))
    })
}
