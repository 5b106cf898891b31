//! Answers that Object Storage never gives: proxies, wrong hosts, and worse.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flashjob_bucket::{Bucket, ErrorKind, Object};
use flashjob_event::Events;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{Seen, TOKEN, impatient, open_with, shown};

/// A host that says the same to everyone, whatever is asked, and how often it did.
async fn stranger(answer: impl Into<String>) -> (Bucket, Arc<AtomicUsize>) {
    stranger_with(answer, Events::default()).await
}

async fn stranger_with(answer: impl Into<String>, events: Events) -> (Bucket, Arc<AtomicUsize>) {
    let answer = answer.into();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/p/{TOKEN}/n/ns/b/bucket/o/", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    (open_with(&url, impatient(), events), asked)
}

fn page(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_listing_must_be_one() {
    let entry = |name: &str| format!(r#"{{"name":"{name}","size":1}}"#);
    for body in [
        "<html>Welcome to the hotel's network</html>".to_owned(),
        "{}".to_owned(),
        r#"{"objects":null}"#.to_owned(),
        r#"{"objects":[{"name":"a"}]}"#.to_owned(),
        r#"{"objects":[{"name":"a","size":-1}]}"#.to_owned(),
        r#"{"objects":[{"size":1}]}"#.to_owned(),
        r#"{"objects":[]"#.to_owned(),
        format!(r#"{{"objects":[{},{}]}}"#, entry("b"), entry("a")),
        format!(r#"{{"objects":[{},{}]}}"#, entry("a"), entry("a")),
        format!(r#"{{"objects":[{}],"nextStartWith":"a"}}"#, entry("a")),
        format!(r#"{{"objects":[{}],"nextStartWith":"Z"}}"#, entry("a")),
        // Each page says that there is one more, which is the same one.
        format!(r#"{{"objects":[{}],"nextStartWith":"b"}}"#, entry("a")),
        r#"{"objects":[],"nextStartWith":"b"}"#.to_owned(),
    ] {
        let (bucket, asked) = stranger(page("200 OK", &body)).await;
        let error = bucket.list("").await.expect_err(&body);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{body}: {}", shown(&error));
        assert!(asked.load(Ordering::SeqCst) <= 5, "{body}");
    }
    let (bucket, _) = stranger(page("200 OK", &format!(r#"{{"objects":[{}]}}"#, entry("a")))).await;
    assert_eq!(bucket.list("b").await.unwrap_err().kind(), ErrorKind::Protocol, "a name that was not asked for");
}

#[tokio::test]
async fn a_range_must_be_the_one_asked_for() {
    let object = Object { name: "a".to_owned(), size_bytes: 100, etag: None, modified: None, md5: None };
    for (answer, kind) in [
        ("HTTP/1.1 206 Partial Content\r\ncontent-length: 5\r\n\r\nabcde", ErrorKind::Protocol),
        (
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes */100\r\ncontent-length: 5\r\n\r\nabcde",
            ErrorKind::Protocol,
        ),
        (
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-5/100\r\ncontent-length: 6\r\n\r\nabcdef",
            ErrorKind::Protocol,
        ),
        (
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-3/100\r\ncontent-length: 4\r\n\r\nabcd",
            ErrorKind::Protocol,
        ),
        (
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/100\r\ncontent-length: 6\r\n\r\nabcdef",
            ErrorKind::Protocol,
        ),
        // Without a length, until the connection ends.
        ("HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/100\r\n\r\nabcdef", ErrorKind::Protocol),
        (
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/99\r\ncontent-length: 5\r\n\r\nabcde",
            ErrorKind::Changed,
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nabcde", ErrorKind::Protocol),
        ("HTTP/1.1 204 No Content\r\n\r\n", ErrorKind::Protocol),
        ("HTTP/1.1 301 Moved\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", ErrorKind::Protocol),
        ("this is not HTTP\r\n\r\n", ErrorKind::Unreachable),
        ("", ErrorKind::Unreachable),
    ] {
        let (bucket, _) = stranger(answer).await;
        let error = bucket.get(&object, 0..5).await.expect_err(answer);
        assert_eq!(error.kind(), kind, "{answer:?}: {}", shown(&error));
    }
    for answer in [
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/100\r\n\r\nabcde",
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/*\r\ncontent-length: 5\r\n\r\nabcde",
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes 0-4/100\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n3\r\ncde\r\n0\r\n\r\n",
    ] {
        let (bucket, _) = stranger(answer).await;
        assert_eq!(bucket.get(&object, 0..5).await.unwrap(), "abcde", "{answer:?}");
    }
}

#[tokio::test]
async fn a_look_up_must_tell_the_size() {
    for answer in
        ["HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n", "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"]
    {
        let (bucket, _) = stranger(answer).await;
        let error = bucket.head("a").await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Unreachable), "{}", shown(&error));
    }
}

#[tokio::test]
async fn a_proxys_page_is_told_by_its_status() {
    for (status, kind) in [
        ("502 Bad Gateway", ErrorKind::ServerFailed),
        ("504 Gateway Timeout", ErrorKind::ServerFailed),
        ("403 Forbidden", ErrorKind::ParNoLongerWorks),
        ("407 Proxy Authentication Required", ErrorKind::InvalidRequest),
        ("404 Not Found", ErrorKind::NotFound),
    ] {
        let (bucket, _) = stranger(page(status, "<html>no</html>")).await;
        let error = bucket.list("").await.unwrap_err();
        assert_eq!(error.kind(), kind, "{}", shown(&error));
        assert!(error.to_string().contains(&status[..3]), "{error}");
        assert_eq!(error.request_id(), None);
    }
}

#[tokio::test]
async fn tokens_in_answers_are_not_repeated() {
    let body = format!(r#"{{"code":"{TOKEN}","message":"GET /p/{TOKEN}/n/x and /p/an0ther/n/x"}}"#);
    let answer = format!("HTTP/1.1 400 Bad\r\nopc-request-id: {TOKEN}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    let (bucket, _) = stranger(answer).await;
    let error = bucket.list("").await.unwrap_err();
    assert!(!shown(&error).contains("an0ther"), "{error}");
    assert!(!error.request_id().unwrap().contains(TOKEN));
}

#[tokio::test]
async fn an_upload_goes_nowhere_else() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let host = elsewhere.local_addr().unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, [0; 10]).unwrap();
    for uri in [
        format!("@{host}/p/x/"),
        format!("http://{host}/p/x/"),
        format!("//{host}/p/x/"),
        "/elsewhere/".to_owned(),
        "/p/x/../../elsewhere/".to_owned(),
        "/p/x/?query=".to_owned(),
        String::new(),
    ] {
        let (bucket, asked) = stranger(page("200 OK", &serde_json::json!({ "accessUri": uri }).to_string())).await;
        let error = bucket.with_part_bytes(4).put_file("a", &path, folder.path()).await.expect_err(&uri);
        assert_eq!(error.kind(), ErrorKind::Protocol, "{uri}: {}", shown(&error));
        assert_eq!(asked.load(Ordering::SeqCst), 4, "{uri}: asked to open an upload, and nothing more");
    }
    let nobody = tokio::time::timeout(std::time::Duration::from_millis(50), elsewhere.accept()).await;
    assert!(nobody.is_err(), "somebody came");
}

/// The service may give an upload a token of its own: it is sent there, and kept nowhere.
#[tokio::test]
async fn an_upload_with_a_token_of_its_own_is_not_recorded() {
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("file");
    std::fs::write(&path, [0; 10]).unwrap();
    let answer = page("200 OK", &serde_json::json!({ "accessUri": "/p/an0ther/n/ns/b/bucket/u/a/id/1/" }).to_string());
    let (seen, events) = Seen::listen();
    let (bucket, _) = stranger_with(answer, events).await;
    bucket.with_part_bytes(4).put_file("a", &path, folder.path()).await.unwrap();
    let [(3, 0, Some(reason))] = seen.uploads()[..] else { panic!("{:?}", seen.uploads()) };
    assert!(reason.contains("token of its own"), "{reason}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}
