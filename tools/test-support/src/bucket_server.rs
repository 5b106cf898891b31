//! The development bucket server, for as long as a test wants it.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;

use development_bucket::Server;
use serde_json::{Value, json};

/// A running development bucket. Dropped, or when this process dies, it ends, and its connections with it.
pub struct BucketServer {
    _server: Server,
    address: SocketAddr,
    urls: Vec<String>,
}

impl BucketServer {
    /// Serves `folder` on a free port, with one PAR that may do everything.
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[])
    }

    /// The same with further arguments, such as `--address`, `--fault` or `--par`.
    pub fn start_with(folder: &Path, arguments: &[&str]) -> Self {
        let words = arguments.iter().map(OsString::from);
        let server =
            Server::start(std::iter::once(folder.into()).chain(words)).unwrap_or_else(|error| panic!("{error}"));
        let announced = server.announcement();
        let address = announced["address"].as_str().unwrap().parse().unwrap();
        let pars = announced["pars"].as_array().unwrap();
        let urls = pars.iter().map(|par| par["url"].as_str().unwrap().to_owned()).collect();
        Self { _server: server, address, urls }
    }

    /// The first PAR's URL, as a user would be given it.
    pub fn url(&self) -> &str {
        &self.urls[0]
    }

    /// Address of the server, for starting another one in its place.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a PAR: `{"access": "AnyObjectRead", "listing": false, "prefix": "…"}` or `{"object": "…"}`.
    pub fn par(&self, grant: Value) -> String {
        self.admin("POST", "/admin/pars", Some(grant))["url"].as_str().unwrap().to_owned()
    }

    /// Ends the PAR of `url`: it is unknown from now on.
    pub fn revoke(&self, url: &str) {
        // The admin endpoint knows a PAR by its token alone.
        let token = url.split("/p/").nth(1).unwrap().split('/').next().unwrap();
        let answer = self.admin("DELETE", &format!("/admin/pars/{token}"), None);
        assert_eq!(answer["revoked"], true, "there is such a PAR");
    }

    /// Switches faults on: one, or a list.
    pub fn fault(&self, faults: Value) {
        self.admin("POST", "/admin/faults", Some(faults));
    }

    /// Switches all faults off.
    pub fn no_faults(&self) {
        self.admin("DELETE", "/admin/faults", None);
    }

    /// Adds objects that the folder does not hold: `{"name": "dir/", "text": ""}`, or a list.
    pub fn add(&self, objects: Value) {
        self.admin("POST", "/admin/objects", Some(objects));
    }

    /// Requests since the start or [`Self::forget_requests`]: `counts`, `requests`, `connections`, ….
    pub fn requests(&self) -> Value {
        self.admin("GET", "/admin/requests", None)
    }

    /// Number of requests of `operation` (`list`, `get`, `head`, …).
    pub fn count(&self, operation: &str) -> u64 {
        self.requests()["counts"][operation].as_u64().unwrap_or(0)
    }

    /// Counts from zero again.
    pub fn forget_requests(&self) {
        self.admin("DELETE", "/admin/requests", None);
    }

    /// Names of objects whose upload in parts was opened and neither committed nor aborted.
    pub fn open_uploads(&self) -> Value {
        self.admin("GET", "/admin/uploads", None)
    }

    /// One request to the admin endpoint. Works with and without an async runtime.
    pub fn admin(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        // Over a plain socket: clients of HTTP block or need a runtime, and callers are on both sides of one.
        let body = body.unwrap_or(json!(null)).to_string();
        let answer = self.request(method, path, &body);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200"), "{method} {path}: {answer}");
        serde_json::from_str(body).unwrap()
    }

    /// The whole answer to one request.
    pub fn request(&self, method: &str, path: &str, body: &str) -> String {
        // The server closes it, so that the answer ends where the connection does and its length need not be read.
        let mut stream = TcpStream::connect(self.address).unwrap();
        let length = body.len();
        let head = format!("{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\nContent-Length: {length}");
        stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }
}
