//! Stores that do not say which version of an object their bytes are of.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Response, Uri};
use flashjob_bucket::{Bucket, ErrorKind, RetryPolicy};
use flashjob_config::Par;
use flashjob_event::Events;
use tempfile::TempDir;

use super::expect_said;
use crate::job::job_without_model;

/// Name of a version in an answer, by its number.
type Name = fn(usize) -> Option<String>;

/// A store of one object, of which there is another version from its third answer on; both are as long.
struct Store {
    listed: Option<&'static str>,
    etag: Name,
    modified: Name,
    answers: AtomicUsize,
    asked: Mutex<Vec<Option<String>>>,
}

const LENGTH: usize = 1000;

async fn serve(State(store): State<Arc<Store>>, uri: Uri, headers: HeaderMap) -> Response<Body> {
    if uri.path().ends_with("/o/") {
        let etag = store.listed.map(|etag| format!(r#", "etag": "{etag}""#)).unwrap_or_default();
        return Response::new(Body::from(format!(r#"{{"objects": [{{"name": "a", "size": {LENGTH}{etag}}}]}}"#)));
    }
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    store.asked.lock().unwrap().push(header("if-match"));
    let version = if store.answers.fetch_add(1, Ordering::SeqCst) < 2 { 1 } else { 2 };
    let range = header("range").unwrap();
    let (first, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let length = last.parse::<usize>().unwrap() + 1 - first.parse::<usize>().unwrap();
    let mut response =
        Response::builder().status(206).header("content-range", format!("bytes {first}-{last}/{LENGTH}"));
    for (name, value) in [("etag", (store.etag)(version)), ("last-modified", (store.modified)(version))] {
        if let Some(value) = value {
            response = response.header(name, value);
        }
    }
    response.body(Body::from(vec![version as u8; length])).unwrap()
}

async fn start(listed: Option<&'static str>, etag: Name, modified: Name) -> (Arc<Store>, String) {
    let store = Arc::new(Store { listed, etag, modified, answers: AtomicUsize::new(0), asked: Mutex::default() });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/p/t0ken/n/ns/b/models/o/", listener.local_addr().unwrap());
    let router = Router::new().fallback(serve).with_state(store.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    (store, url)
}

/// The listing, what answers have of ETag and time, how many reads go well, and how the next one fails.
type Case = (Option<&'static str>, Name, Name, usize, ErrorKind, &'static str);

#[tokio::test]
async fn bytes_of_two_versions_are_not_given_out() {
    let none: Name = |_| None;
    let numbered: Name = |version| Some(format!("v{version}"));
    let time: Name = |version| Some(format!("Thu, 01 Jan 1970 00:00:0{version} GMT"));
    let only_at_first: Name = |version| (version == 1).then(|| "v1".to_owned());
    let only_later: Name = |version| (version == 2).then(|| "v2".to_owned());
    let cases: [Case; 9] = [
        (Some("v1"), numbered, none, 2, ErrorKind::Changed, "its ETag is `v2`, not `v1`"),
        (Some("v1"), none, time, 0, ErrorKind::Protocol, "the answer does not say of which one it is"),
        (Some("v1"), only_at_first, time, 2, ErrorKind::Protocol, "the answer does not say of which one it is"),
        (
            Some("v1"),
            |_| Some(String::new()),
            none,
            0,
            ErrorKind::Protocol,
            "the answer does not say of which one it is",
        ),
        (None, numbered, none, 2, ErrorKind::Changed, "its ETag is `v2`, not `v1`"),
        (Some("*"), numbered, none, 2, ErrorKind::Changed, "its ETag is `v2`, not `v1`"),
        (None, only_at_first, none, 2, ErrorKind::Protocol, "the answer does not say of which one it is"),
        (None, only_later, time, 2, ErrorKind::Changed, "its ETag is `v2`, and was none in the first answer"),
        (None, none, time, 2, ErrorKind::Changed, "its time of writing is"),
    ];
    for (number, (listed, etag, modified, read, kind, said)) in cases.into_iter().enumerate() {
        let (store, url) = start(listed, etag, modified).await;
        let policy = RetryPolicy { deadline: std::time::Duration::from_secs(5), ..RetryPolicy::default() };
        let bucket = Bucket::open(Par::parse(&url).unwrap(), policy, Events::default()).unwrap();
        let object = bucket.list("").await.unwrap().remove(0);
        for read in 0..read as u64 {
            let range = read * 100..read * 100 + 50;
            assert_eq!(bucket.get(&object, range).await.unwrap(), vec![1; 50], "case {number}");
        }
        let error = bucket.get(&object, 500..700).await.unwrap_err();
        assert_eq!(error.kind(), kind, "case {number}: {error}");
        assert!(error.to_string().contains(said), "case {number}: {error}");
        if listed.is_none() && etag(1).is_some() {
            assert_eq!(store.asked.lock().unwrap()[..2], [None, Some("v1".to_owned())], "case {number}");
        }
        // Whoever lists again has what is there now.
        if kind == ErrorKind::Changed && listed.is_none() {
            let object = bucket.list("").await.unwrap().remove(0);
            assert_eq!(bucket.get(&object, 0..10).await.unwrap(), vec![2; 10], "case {number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_verified_is_said() {
    for (listed, is_said) in [(None, true), (Some("v1"), false)] {
        let (_store, url) = start(listed, |_| Some("v1".to_owned()), |_| None).await;
        let folder = TempDir::new().unwrap();
        let location = folder.path().join("models").display().to_string();
        let job = job_without_model(&folder).args([
            "--model=missing",
            "--mount-mode=copy",
            "--par",
            &url,
            "--mount-location",
            &location,
        ]);
        let finished = tokio::task::spawn_blocking(move || job.run()).await.unwrap().expect_code(4);
        assert_eq!(finished.stderr.contains("is not verified"), is_said, "{finished}");
        if is_said {
            expect_said(&finished, "objects are listed without an ETag");
        }
        assert_eq!(std::fs::read(folder.path().join("models/a")).unwrap(), vec![1; LENGTH]);
    }
}
