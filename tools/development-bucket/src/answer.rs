//! Refusals in the service's words: status, code, message.

use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use serde::{Deserialize, Serialize};

/// An answer that is not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Refusal {
    pub status: u16,
    pub code: String,
    pub message: String,
    /// Sent as `Content-Range`, with 416.
    #[serde(skip)]
    pub content_range: Option<String>,
}

impl Refusal {
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), content_range: None }
    }

    pub fn unknown_par() -> Self {
        Self::new(401, "NotAuthenticated", "PAR does not exist")
    }

    pub fn outside_prefix() -> Self {
        let message = "The prefix from the request and the prefix from PAR are not compatible";
        Self::new(401, "NotAuthenticated", message)
    }

    pub fn denied(namespace: &str, bucket: &str) -> Self {
        let message = format!(
            "Either the bucket named '{bucket}' does not exist in the namespace '{namespace}' or you are not authorized to access it"
        );
        Self::new(404, "BucketNotFound", message)
    }

    pub fn missing(name: &str, bucket: &str) -> Self {
        let message = format!("The object '{name}' was not found in the bucket '{bucket}'");
        Self::new(404, "ObjectNotFound", message)
    }

    pub fn missing_upload() -> Self {
        Self::new(404, "NoSuchUpload", "The specified upload does not exist")
    }

    pub fn precondition(header: &str) -> Self {
        let message = format!("The {header} condition of the request does not hold");
        Self::new(412, &format!("{}Failed", header.replace('-', "")), message)
    }

    pub fn range(size_bytes: u64) -> Self {
        let refusal = Self::new(416, "InvalidRange", "The requested range is not satisfiable");
        Self { content_range: Some(format!("bytes */{size_bytes}")), ..refusal }
    }

    pub fn invalid(code: &str, message: impl Into<String>) -> Self {
        Self::new(400, code, message)
    }

    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(500, "InternalServerError", error.to_string())
    }

    /// The service's body for `status` without further details.
    pub fn of_status(status: u16) -> Self {
        match status {
            401 => Self::unknown_par(),
            404 => Self::new(404, "ObjectNotFound", "The object was not found in the bucket"),
            429 => Self::new(429, "TooManyRequests", "User-rate limit exceeded"),
            503 => Self::new(503, "ServiceUnavailable", "The service is currently unavailable"),
            500..=599 => Self::new(status, "InternalServerError", "Internal error"),
            _ => Self::new(status, "Refused", "A fault was asked for"),
        }
    }

    /// The refusal as a response; HEAD has no body.
    pub fn into_response(self, head: bool) -> Response<Body> {
        let body = serde_json::json!({ "code": self.code, "message": self.message }).to_string();
        let mut response = Response::new(if head { Body::empty() } else { Body::from(body) });
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(value) = self.content_range.and_then(|range| HeaderValue::try_from(range).ok()) {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        response
    }
}
