//! Probes, pages and the linger.

use std::time::Duration;

use flashjob_event::Phase;
use flashjob_telemetry::{LingerEnd, Live, Server};
use reqwest::{Client, Method, StatusCode};
use tokio_util::sync::CancellationToken;

use super::job_story::Story;

const AN_HOUR: Duration = Duration::from_secs(3600);

async fn server(story: &Story) -> (Server, String) {
    let server = Server::start(([127, 0, 0, 1], 0).into(), story.registry.clone(), Live::default()).await.unwrap();
    let url = format!("http://{}", server.address());
    (server, url)
}

async fn get(url: &str, path: &str) -> (StatusCode, String) {
    let response = reqwest::get(format!("{url}{path}")).await.unwrap();
    (response.status(), response.text().await.unwrap())
}

#[tokio::test]
async fn readiness_follows_the_phase_and_health_does_not() {
    let story = Story::new();
    let (server, url) = server(&story).await;
    let starting = (StatusCode::SERVICE_UNAVAILABLE, "not ready: starting\n".to_owned());
    assert_eq!(get(&url, "/readyz").await, starting);
    for phase in Phase::ALL {
        story.phase(phase);
        let (status, text) = get(&url, "/readyz").await;
        let serves = matches!(phase, Phase::Follow | Phase::WarmUp | Phase::Measure);
        assert_eq!(status, if serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, "{text}");
        assert!(text.contains(phase.name()), "{text}");
        assert_eq!(get(&url, "/healthz").await.0, StatusCode::OK);
    }
    server.stop().await;
}

#[tokio::test]
async fn pages_are_what_they_say() {
    let story = Story::new();
    let (server, url) = server(&story).await;
    let response = reqwest::get(format!("{url}/metrics")).await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    assert!(response.text().await.unwrap().contains("flashjob_build_info{version="));
    let (status, index) = get(&url, "/").await;
    assert_eq!(status, StatusCode::OK);
    // Relative, as the page may be behind a proxy's path.
    for path in ["metrics", "healthz", "readyz"] {
        assert!(index.contains(&format!("href=\"{path}\"")), "{index}");
    }
    assert_eq!(get(&url, "/nothing").await.0, StatusCode::NOT_FOUND);
    assert_eq!(Client::new().post(format!("{url}/metrics")).send().await.unwrap().status(), 405);
    server.stop().await;
}

#[tokio::test]
async fn an_address_in_use_is_said_plainly() {
    let story = Story::new();
    let (first, _) = server(&story).await;
    let error =
        Server::start(first.address(), story.registry.clone(), Live::default()).await.err().unwrap().to_string();
    let address = first.address();
    assert_eq!(
        error,
        format!(
            "metrics cannot be served at {address}: another process listens there; \
             set metrics-port to a free port (0 lets the system choose)"
        )
    );
    first.stop().await;
    // And free again at once.
    Server::start(address, story.registry.clone(), Live::default()).await.unwrap().stop().await;
}

#[tokio::test]
async fn an_address_that_is_not_ours_is_said_plainly() {
    let error =
        Server::start(([192, 0, 2, 1], 9).into(), Story::new().registry.clone(), Live::default()).await.err().unwrap();
    assert!(error.to_string().starts_with("metrics cannot be served at 192.0.2.1:9: "), "{error}");
}

#[tokio::test]
async fn the_linger_ends_with_a_scrape_that_began_within_it() {
    let story = Story::new();
    let (server, url) = server(&story).await;
    let cancel = CancellationToken::new();
    get(&url, "/metrics").await;
    let (end, ()) = tokio::join!(server.linger(AN_HOUR, &cancel), async {
        get(&url, "/readyz").await;
        Client::new().request(Method::HEAD, format!("{url}/metrics")).send().await.unwrap();
        get(&url, "/metrics").await;
    });
    assert_eq!(end, LingerEnd::Scraped);
    server.stop().await;
}

#[tokio::test]
async fn nothing_else_ends_the_linger() {
    let story = Story::new();
    let (server, url) = server(&story).await;
    get(&url, "/metrics").await;
    let cancel = CancellationToken::new();
    let (end, ()) = tokio::join!(server.linger(Duration::from_millis(300), &cancel), async {
        get(&url, "/healthz").await;
        Client::new().request(Method::HEAD, format!("{url}/metrics")).send().await.unwrap();
    });
    assert_eq!(end, LingerEnd::TimedOut);
    assert_eq!(server.linger(Duration::ZERO, &cancel).await, LingerEnd::TimedOut);
    cancel.cancel();
    assert_eq!(server.linger(AN_HOUR, &cancel).await, LingerEnd::Cancelled);
    server.stop().await;
}

#[tokio::test]
async fn a_stopped_server_answers_nobody() {
    let (server, url) = server(&Story::new()).await;
    // A client that keeps its connection, and one that never sends its request.
    let client = Client::new();
    client.get(format!("{url}/metrics")).send().await.unwrap().text().await.unwrap();
    let silent = std::net::TcpStream::connect(server.address()).unwrap();
    server.stop().await;
    assert!(client.get(format!("{url}/metrics")).send().await.is_err());
    drop(silent);
}
