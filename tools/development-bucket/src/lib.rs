//! A development tool: serves a folder as Pre-Authenticated Requests of OCI Object Storage, with switchable faults.
//!
//! It answers as Oracle's documentation and SDK say that the service does, so that tests, demos and benchmarks
//! need no cloud. It is not part of the production image, has no access control beyond its PARs, and lets
//! anyone who reaches it use `/admin`: keep it on loopback or in a private network.
//!
//! On standard output it prints one line of JSON: `{"address", "admin", "pars": [{"url", …}]}`.

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

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use access::Grant;
use faults::Fault;
use service::Server;
use store::Store;

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
    /// A fault as JSON, may be repeated: {"kind": "latency", "seconds": 0.03}; see `src/bin/development_bucket/faults.rs`.
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

#[tokio::main]
async fn main() -> ExitCode {
    match run(Arguments::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            let _ = writeln!(std::io::stderr(), "development-bucket: {message}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), String> {
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
    let server = Server::new(base.trim_end_matches('/').to_owned(), namespace, bucket, store);
    let pars: Vec<_> = pars.into_iter().map(|grant| server.grant(grant)).collect();
    server.faults.add(faults);

    let announcement = serde_json::json!({ "address": address, "admin": format!("{base}/admin"), "pars": pars });
    writeln!(std::io::stdout(), "{announcement}").map_err(|error| error.to_string())?;

    let stop = async move {
        if arguments.until_stdin_ends {
            // A thread of its own: one of the runtime's would keep the runtime from ending.
            let (ended, end) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                let _ = ended.send(());
            });
            let _ = end.await;
        } else {
            let _ = tokio::signal::ctrl_c().await;
        }
    };
    tokio::select! {
        served = service::serve(listener, server) => served.map_err(|error| error.to_string()),
        () = stop => Ok(()),
    }
}
