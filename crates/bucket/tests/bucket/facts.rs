//! Facts that the crate emits: bytes received and sent, and retries.

use serde_json::json;

use super::{Seen, Served, noise, open_with, patient};

#[tokio::test]
async fn bytes_are_stated_as_they_arrive_each_once() {
    let content = noise(2_000_000);
    let served = Served::with(&[("a", &content)]);
    let (seen, events) = Seen::listen();
    let bucket = open_with(served.server.url(), patient(), events);
    let object = bucket.list("").await.unwrap().remove(0);
    assert_eq!(seen.bytes_read(), 0, "a listing is not content");
    served.server.fault(json!({"kind": "short_body", "after_bytes": 700_000, "count": 2}));
    bucket.get(&object, 1..2_000_000).await.unwrap();
    assert_eq!(seen.bytes_read(), 1_999_999);
    assert_eq!(seen.retries(), ["short_body"]);
    assert_eq!(seen.bytes_written(), 0);
}
