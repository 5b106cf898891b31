//! A development tool: serves a folder as Pre-Authenticated Requests of OCI Object Storage, with switchable faults.
//!
//! It answers as Oracle's documentation and SDK say that the service does, so that tests, demos and benchmarks
//! need no cloud. It is not part of the production image, has no access control beyond its PARs, and lets
//! anyone who reaches it use `/admin`: keep it on loopback or in a private network.
//!
//! As a program it prints one line of JSON to standard output: `{"address", "admin", "pars": [{"url", …}]}`. Tests have a
//! [`Server`] of their own process.

mod access;
mod admin;
mod answer;
mod conditions;
mod content;
mod faults;
mod line;
mod listing;
mod read;
mod requests;
mod service;
mod spoil;
mod store;
mod target;
mod upload;
mod write;

use std::ffi::OsString;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use clap::Parser;
use serde_json::Value;
use tokio::sync::oneshot;

use access::Grant;
use faults::Fault;
use store::Store;

/// Time for a server in this process to end: what still reads a file then goes on without it.
const END: Duration = Duration::from_secs(5);

/// Serves a folder as Pre-Authenticated Requests of OCI Object Storage, for development and tests.
#[derive(Parser)]
#[command(name = "development-bucket")]
struct Arguments {
    /// The folder whose files are the objects; what is PUT is stored there.
    folder: PathBuf,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    address: SocketAddr,
    /// How clients reach this server, for the URLs it prints [default: http://ADDRESS].
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// The namespace in URLs.
    #[arg(long, default_value = "development")]
    namespace: String,
    /// The bucket's name in URLs.
    #[arg(long, default_value = "models")]
    bucket: String,
    /// A PAR as JSON, may be repeated: {"token": "…", "access": "AnyObjectRead", "listing": true, "prefix": "…"} or
    /// {"object": "…", "access": "ObjectRead"}; every key may be left out [default: one that may do everything].
    #[arg(long = "par", value_name = "JSON", value_parser = parse_json::<Grant>)]
    pars: Vec<Grant>,
    /// A JSON file that lists objects beside those in the folder:
    /// [{"name": "dir/", "text": ""}, {"name": "b", "base64": "…"}, {"name": "c", "size_bytes": 9, "seed": 1}].
    #[arg(long, value_name = "FILE")]
    objects: Option<PathBuf>,
    /// A fault as JSON, may be repeated: {"kind": "latency", "seconds": 0.03}; see `tools/development-bucket/src/faults.rs`.
    #[arg(long = "fault", value_name = "JSON", value_parser = parse_json::<Fault>)]
    faults: Vec<Fault>,
    /// Objects above this size have no MD5, as if uploaded in parts; hashing a large folder takes long.
    #[arg(long, value_name = "BYTES", default_value_t = u64::MAX, hide_default_value = true)]
    md5_up_to_bytes: u64,
    /// Read all objects into memory at the start: benchmarks on one machine then measure readers more than this server.
    #[arg(long)]
    in_memory: bool,
    /// Exit when standard input ends: the server then never outlives the test that started it.
    #[arg(long)]
    until_stdin_ends: bool,
}

fn parse_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_str(text).map_err(|error| error.to_string())
}

/// Serves as the program's arguments say, until it is interrupted or standard input ends.
pub async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let until_stdin_ends = arguments.until_stdin_ends;
    let announce =
        |announcement: Value| writeln!(std::io::stdout(), "{announcement}").map_err(|error| error.to_string());
    let stop = async move {
        if until_stdin_ends {
            // A thread of its own: a blocking read on the runtime would keep it from ending.
            let (ended, end) = oneshot::channel();
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                let _ = ended.send(());
            });
            let _ = end.await;
        } else {
            let _ = tokio::signal::ctrl_c().await;
        }
    };
    match run(arguments, announce, stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "development-bucket: {message}");
            ExitCode::FAILURE
        }
    }
}

/// A server on threads of this process, with a state of its own. Dropped, it ends as a process that is killed: its port is free
/// again and all of its connections are closed, whatever they were about to send.
pub struct Server {
    announcement: Value,
    /// `None` once it was told to stop.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts one with the program's arguments.
    ///
    /// # Errors
    /// The sentence that the program would fail with.
    pub fn start<A: Into<OsString>>(arguments: impl IntoIterator<Item = A>) -> Result<Self, String> {
        let words = std::iter::once("development-bucket".into()).chain(arguments.into_iter().map(Into::into));
        let arguments = Arguments::try_parse_from(words).map_err(|error| error.to_string())?;
        let (stop, stopped) = oneshot::channel();
        let (announce, announced) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().expect("a runtime starts");
            let first = announce.clone();
            let announce_start = move |announcement| first.send(Ok(announcement)).map_err(|error| error.to_string());
            let stop = async move { drop(stopped.await) };
            if let Err(message) = runtime.block_on(run(arguments, announce_start, stop)) {
                // The receiver is dropped once the server has started.
                let _ = announce.send(Err(message));
            }
            // Shutting down the runtime closes all connections.
            runtime.shutdown_timeout(END);
        });
        let announcement = announced.recv().map_err(|_| "it ended without a word".to_owned())??;
        Ok(Self { announcement, stop: Some(stop), thread: Some(thread) })
    }

    /// The line that the program prints once it listens: `{"address", "admin", "pars": [{"url", …}]}`.
    pub fn announcement(&self) -> &Value {
        &self.announcement
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves until `stop`, after `announce` was told where.
async fn run(
    arguments: Arguments,
    announce: impl FnOnce(Value) -> Result<(), String>,
    stop: impl Future<Output = ()>,
) -> Result<(), String> {
    let Arguments { folder, address, public_url, namespace, bucket, pars, objects, faults, .. } = arguments;
    let store = Store::open(folder, arguments.md5_up_to_bytes)?;
    if let Some(path) = objects {
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        let objects = parse_json(&text).map_err(|error| format!("{}: {error}", path.display()))?;
        store.add(objects).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if arguments.in_memory {
        store.keep_in_memory().map_err(|error| format!("the objects cannot be read: {error}"))?;
    }
    let listener = line::listen(address).map_err(|error| format!("cannot listen on {address}: {error}"))?;
    let address = listener.local_addr().map_err(|error| error.to_string())?;
    let base = public_url.unwrap_or_else(|| format!("http://{address}"));

    let pars = if pars.is_empty() { vec![Grant::default()] } else { pars };
    let server = service::Service::new(base.trim_end_matches('/').to_owned(), namespace, bucket, store);
    let pars: Vec<_> = pars.into_iter().map(|grant| server.grant(grant)).collect();
    server.faults.add(faults);

    announce(serde_json::json!({ "address": address, "admin": format!("{base}/admin"), "pars": pars }))?;
    tokio::select! {
        served = service::serve(listener, server) => served.map_err(|error| error.to_string()),
        () = stop => Ok(()),
    }
}
