//! `/admin`: switches and readings for tests, as JSON.
//!
//! | | |
//! |---|---|
//! | `GET`, `POST`, `DELETE /admin/faults` | the faults that are on; add one or a list; switch all off |
//! | `POST /admin/pars`, `DELETE /admin/pars/TOKEN` | make a PAR, answered with its URL; end one |
//! | `POST /admin/objects`, `DELETE /admin/objects?name=` | add objects beside the folder's; take one away |
//! | `GET`, `DELETE /admin/requests` | what was asked since the last `DELETE` |
//! | `GET /admin/uploads` | names of objects whose upload in parts is open |

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::{delete, get, post};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::access::Grant;
use crate::faults::Fault;
use crate::service::Service;
use crate::store::Listed;

type Shared = State<Arc<Service>>;

pub fn router() -> Router<Arc<Service>> {
    Router::new()
        .route("/faults", get(list_faults).post(add_faults).delete(clear_faults))
        .route("/pars", post(add_par))
        .route("/pars/{token}", delete(revoke_par))
        .route("/objects", post(add_objects).delete(remove_object))
        .route("/requests", get(show_requests).delete(reset_requests))
        .route("/uploads", get(list_uploads))
}

async fn list_faults(State(server): Shared) -> Response<Body> {
    answer(StatusCode::OK, json!(server.faults.list()))
}

async fn add_faults(State(server): Shared, body: Bytes) -> Response<Body> {
    match one_or_many::<Fault>(&body) {
        Ok(faults) => {
            server.faults.add(faults);
            list_faults(State(server)).await
        }
        Err(message) => refuse(message),
    }
}

async fn clear_faults(State(server): Shared) -> Response<Body> {
    server.faults.clear();
    list_faults(State(server)).await
}

async fn add_par(State(server): Shared, body: Bytes) -> Response<Body> {
    match serde_json::from_slice::<Grant>(&body) {
        Ok(grant) => answer(StatusCode::OK, server.grant(grant)),
        Err(error) => refuse(error.to_string()),
    }
}

async fn revoke_par(State(server): Shared, Path(token): Path<String>) -> Response<Body> {
    answer(StatusCode::OK, json!({ "revoked": server.grants.revoke(&token) }))
}

async fn add_objects(State(server): Shared, body: Bytes) -> Response<Body> {
    match one_or_many::<Listed>(&body).and_then(|objects| server.store.add(objects)) {
        Ok(()) => answer(StatusCode::OK, json!({})),
        Err(message) => refuse(message),
    }
}

async fn remove_object(State(server): Shared, RawQuery(query): RawQuery) -> Response<Body> {
    let query = query.unwrap_or_default();
    let name = url::form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == "name").map(|(_, name)| name);
    match name {
        Some(name) => answer(StatusCode::OK, json!({ "removed": server.store.remove(&name) })),
        None => refuse("say which: ?name=".to_owned()),
    }
}

async fn show_requests(State(server): Shared) -> Response<Body> {
    answer(StatusCode::OK, json!(server.requests.show()))
}

async fn reset_requests(State(server): Shared) -> Response<Body> {
    server.requests.reset();
    show_requests(State(server)).await
}

async fn list_uploads(State(server): Shared) -> Response<Body> {
    answer(StatusCode::OK, json!(server.uploads.list()))
}

/// A JSON list, or one of its entries alone.
fn one_or_many<T: DeserializeOwned>(body: &[u8]) -> Result<Vec<T>, String> {
    let value: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let values = if value.is_array() { value } else { json!([value]) };
    serde_json::from_value(values).map_err(|error| error.to_string())
}

fn answer(status: StatusCode, value: Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn refuse(message: String) -> Response<Body> {
    answer(StatusCode::BAD_REQUEST, json!({ "message": message }))
}
