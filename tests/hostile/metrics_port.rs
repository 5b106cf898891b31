//! Strangers at the metrics port: crowds, those who never finish a sentence, and those who ask too often.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use flashjob_telemetry::{LingerEnd, Live, Registry, Server};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use crate::job::{LONG, job_at, result};
use crate::support::process::free_port;

/// Never reached where things are as they should be.
const PATIENCE: Duration = Duration::from_secs(60);

fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// All that comes until the other side closes.
fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("it is not closed: {error}"),
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn get(address: SocketAddr, path: &str, headers: &str) -> String {
    let mut stream = connect(address);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n").unwrap();
    rest(&mut stream)
}

#[test]
fn a_crowd_of_idle_connections_takes_nothing_from_the_job() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let (results, port) = (TempDir::new().unwrap(), free_port());
    let mut running = job_at(&results, port).args(LONG).through(["prlimit", "--nofile=1024:1024"]).start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let crowd: Vec<TcpStream> = (0..1020).map(|_| connect(address)).collect();
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert!(get(address, path, "").starts_with("HTTP/1.1 200 OK\r\n"), "{path}");
    }
    let open = std::fs::read_dir(format!("/proc/{}/fd", running.id())).unwrap().count();
    assert!(open < 200, "{open} descriptors are open");
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    assert!(result(&results)["metrics"]["total_output_tokens"].as_f64().unwrap() > 0.0);
    drop(crowd);
}

#[test]
fn the_limit_of_descriptors_is_raised_to_what_is_allowed() {
    let (results, port) = (TempDir::new().unwrap(), free_port());
    let mut running = job_at(&results, port).args(LONG).through(["prlimit", "--nofile=64:1024"]).start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", running.id())).unwrap();
    let files = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().take(2).collect::<Vec<_>>(), ["1024", "1024"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_without_an_end_are_cut_off() {
    let server = Server::start(([127, 0, 0, 1], 0).into(), Arc::new(Registry::new()), Live::default()).await.unwrap();
    let address = server.address();
    let head = "GET /metrics HTTP/1.1\r\nHost: x\r\n";
    let cases = [
        ("nothing at all", String::new(), ""),
        ("half a head", head.to_owned(), ""),
        ("a head above 16 KiB", format!("{head}A: {}\r\n\r\n", "a".repeat(17 << 10)), "HTTP/1.1 431"),
        ("a line without an end", format!("GET /{}", "a".repeat(64 << 10)), "HTTP/1.1 4"),
        ("many headers", format!("{head}{}\r\n", "A: b\r\n".repeat(1000)), "HTTP/1.1 431"),
        ("no HTTP", "\x16\x03\x01\x02\x00\x01\r\n\r\n".to_owned(), "HTTP/1.1 400"),
        ("a body that never comes", "POST / HTTP/1.1\r\nContent-Length: 1000000000\r\n\r\n".to_owned(), "HTTP/1.1 405"),
        // Nobody takes these answers: the last are written when nothing more fits between the two.
        ("a thousand requests at once", format!("{head}\r\n").repeat(1000), "HTTP/1.1 200"),
    ];
    let clients: Vec<_> = cases
        .into_iter()
        .map(|(case, text, answer)| {
            tokio::task::spawn_blocking(move || {
                let mut stream = connect(address);
                // The other side may have closed before it has all.
                let _ = stream.write_all(text.as_bytes());
                if case == "a thousand requests at once" {
                    let mut beginning = [0; 12];
                    stream.read_exact(&mut beginning).unwrap();
                    assert_eq!(beginning, answer.as_bytes());
                    return;
                }
                let said = rest(&mut stream);
                assert!(said.starts_with(answer), "{case}: {said}");
            })
        })
        .collect();
    for client in clients {
        client.await.unwrap();
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_linger_is_for_those_who_scraped_before() {
    for (before, within, end) in [
        (vec![], vec!["curl"], LingerEnd::TimedOut),
        (vec![], vec!["Prometheus", "curl", "Prometheus"], LingerEnd::Scraped),
        (vec!["Prometheus"], vec!["curl", "curl"], LingerEnd::TimedOut),
        (vec!["Prometheus"], vec!["curl", "Prometheus"], LingerEnd::Scraped),
        (vec!["Prometheus", "Prometheus", "curl"], vec!["curl"], LingerEnd::TimedOut),
    ] {
        let server =
            Server::start(([127, 0, 0, 1], 0).into(), Arc::new(Registry::new()), Live::default()).await.unwrap();
        let address = server.address();
        let scrape = move |agents: Vec<&'static str>| {
            tokio::task::spawn_blocking(move || {
                for agent in agents {
                    assert!(
                        get(address, "/metrics", &format!("User-Agent: {agent}\r\n")).contains("flashjob_build_info")
                    );
                }
            })
        };
        scrape(before.clone()).await.unwrap();
        let cancel = CancellationToken::new();
        let patience = if end == LingerEnd::Scraped { PATIENCE } else { Duration::from_millis(500) };
        let (found, scraped) = tokio::join!(server.linger(patience, &cancel), scrape(within.clone()));
        scraped.unwrap();
        assert_eq!(found, end, "{before:?} and then {within:?}");
        server.stop().await;
    }
}

#[test]
fn a_result_says_that_scrapes_disturbed_it() {
    let (results, port) = (TempDir::new().unwrap(), free_port());
    let mut running = job_at(&results, port).args(LONG).start();
    running.wait_for_stderr("\"phase\":\"measure\"");
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..250).for_each(|_| assert!(get(address, "/metrics", "").starts_with("HTTP/1.1 200"))));
        }
    });
    running.signal(libc::SIGTERM);
    running.wait().expect_code(143);
    let said = result(&results)["disturbances"][0].as_str().map(str::to_owned);
    assert!(
        said.as_ref().is_some_and(|said| said.contains("requests per second reached the metrics port")),
        "{said:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_a_few_look_at_the_live_page_at_once() {
    let server = Server::start(([127, 0, 0, 1], 0).into(), Arc::new(Registry::new()), Live::default()).await.unwrap();
    let address = server.address();
    let open = move || {
        let mut stream = connect(address);
        stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut status = [0; 12];
        stream.read_exact(&mut status).unwrap();
        (stream, String::from_utf8_lossy(&status).into_owned())
    };
    tokio::task::spawn_blocking(move || {
        let mut open_ones: Vec<_> = (0..8).map(|_| open()).collect();
        assert!(open_ones.iter().all(|(_, status)| status == "HTTP/1.1 200"));
        assert_eq!(open().1, "HTTP/1.1 503");
        // Probes and scrapers are answered as ever.
        assert!(get(address, "/healthz", "").starts_with("HTTP/1.1 200 OK\r\n"));
        open_ones.pop();
        // The place is free once the server notices, with the next update at the latest.
        let deadline = std::time::Instant::now() + PATIENCE;
        while open().1 != "HTTP/1.1 200" {
            assert!(std::time::Instant::now() < deadline, "the place is not given back");
            std::thread::sleep(Duration::from_millis(100));
        }
    })
    .await
    .unwrap();
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_live_page_allows_one_script_and_nothing_else() {
    let server = Server::start(([127, 0, 0, 1], 0).into(), Arc::new(Registry::new()), Live::default()).await.unwrap();
    let address = server.address();
    let pages = tokio::task::spawn_blocking(move || [get(address, "/", ""), get(address, "/", "")]).await.unwrap();
    let nonce = |page: &str| page.split("script-src 'nonce-").nth(1).unwrap()[..32].to_owned();
    assert_ne!(nonce(&pages[0]), nonce(&pages[1]), "a nonce is for one answer");
    for page in pages {
        for part in ["default-src 'none'", "connect-src 'self'", "frame-ancestors 'none'", "nosniff", "no-store"] {
            assert!(page.to_lowercase().contains(part), "{part}: {page}");
        }
        let body = page.split("\r\n\r\n").nth(1).unwrap();
        assert_eq!(body.matches("<script nonce=").count(), 1);
        assert!(!body.contains("http://") && !body.contains("https://") && !body.contains("src="), "{body}");
    }
    server.stop().await;
}
