//! Nodes that share one model: how they find each other, and how they part.
//!
//! The leader listens, the others call it; each says what it means to compute, and what is not alike ends all of them with a
//! sentence. A link from each worker to the leader then carries steps there and numbers back (`links`).
//! Nothing on these links is encrypted, and no peer has to prove its identity: they belong into a network of their own.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::frame::Kind;
use super::handshake::Handshake;
use super::link::Link;
use super::links::Links;
use flashjob_config::NodesConfig;
use flashjob_engine::{End, Error, NodeSettings, Nodes, RendezvousHandler};
use flashjob_model::Model;

/// Version of the frames and their contents. A change of either is another number.
const PROTOCOL: u32 = 1;

/// Time for a caller to send its hello. A stranger is forgotten then.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Callers that are listened to at a time.
const MAX_CALLERS: usize = 64;

/// Between two looks, and two calls.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Time for one attempt to connect.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A worker's first word.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Hello {
    protocol: u32,
    index: usize,
    count: usize,
    #[serde(rename = "terms")]
    handshake: Handshake,
}

/// Connections between the nodes of one job. It outlives the engine: whatever ends the job, the others are told.
pub struct Rendezvous {
    nodes: NodesConfig,
    cancel: CancellationToken,
    /// Links by node rank.
    met: Mutex<BTreeMap<usize, Arc<Link>>>,
}

impl Rendezvous {
    /// For this node; `cancel` ends every wait.
    pub fn new(nodes: NodesConfig, cancel: CancellationToken) -> Self {
        Self { nodes, cancel, met: Mutex::default() }
    }

    /// Tells all who have been met how this node ends, and waits a moment until they have heard it.
    pub fn end(&self, code: u8, sentence: &str) {
        let end = End { code, sentence: sentence.to_owned() };
        let met = std::mem::take(&mut *self.lock());
        std::thread::scope(|scope| {
            for link in met.values() {
                scope.spawn(|| link.end(&end));
            }
        });
    }

    fn accept_workers(&self, handshake: &Handshake) -> Result<Vec<Arc<Link>>, Error> {
        let NodesConfig { port, num_nodes: count, timeout: patience, .. } = self.nodes;
        let refused = |error| {
            Error::Setting(format!(
                "group-port={port} cannot be listened on: {error}; set it to a free port on all machines"
            ))
        };
        let listener = listen(port).map_err(refused)?;
        // Polled, so that a signal or the deadline ends the wait.
        listener.set_nonblocking(true).map_err(refused)?;
        let deadline = Instant::now() + patience;
        let (said, hellos) = channel();
        let callers = Arc::new(());
        loop {
            for (hello, link) in hellos.try_iter() {
                self.admit(hello, link, handshake)?;
            }
            let met = self.lock();
            if met.len() + 1 == count.get() {
                return Ok(met.values().cloned().collect());
            }
            let missing: Vec<String> =
                (1..count.get()).filter(|index| !met.contains_key(index)).map(|index| index.to_string()).collect();
            drop(met);
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if Instant::now() >= deadline {
                return Err(Error::Machines(format!(
                    "of {count} machines {} did not call at port {port} within group-timeout ({} s); see whether they run, and \
                     whether a NetworkPolicy lets group-port through",
                    missing.join(", "),
                    patience.as_secs_f64()
                )));
            }
            match listener.accept() {
                Ok((stream, address)) if Arc::strong_count(&callers) <= MAX_CALLERS => {
                    let (cancel, said, turn) = (self.cancel.clone(), said.clone(), Arc::clone(&callers));
                    // A thread for each caller: one that sends nothing, such as a port scanner, does not keep workers out.
                    std::thread::spawn(move || {
                        let _turn = turn;
                        receive_hello(stream, address, patience, cancel, &said);
                    });
                }
                // Too many: this one hears nothing.
                Ok(_) => {}
                // Or a caller that has gone again.
                Err(_) => std::thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Takes in a node that has said who it is.
    fn admit(&self, hello: Hello, link: Link, handshake: &Handshake) -> Result<(), Error> {
        let count = self.nodes.num_nodes.get();
        let Hello { protocol, index, count: theirs, handshake: meant } = hello;
        let peer = link.peer().to_owned();
        // It hears why, whatever it is. A node that calls again has forgotten its first call.
        self.lock().insert(index, Arc::new(link));
        let refuse = |what: String| {
            Err(Error::Setting(format!(
                "{peer} does not mean the same job: {what}; start all machines of a group with the same image, model and settings"
            )))
        };
        if protocol != PROTOCOL {
            return refuse(format!(
                "it speaks version {protocol} of the protocol between machines, this one {PROTOCOL}"
            ));
        }
        if theirs != count {
            return refuse(format!("LWS_GROUP_SIZE is {theirs} there and {count} here"));
        }
        if !(1..count).contains(&index) {
            return refuse(format!("its LWS_WORKER_INDEX is {index}, of {count} machines"));
        }
        let differences = handshake.differences(&meant);
        match differences.is_empty() {
            true => Ok(()),
            false => refuse(differences.join(", ")),
        }
    }

    fn connect_to_leader(&self, handshake: &Handshake) -> Result<Arc<Link>, Error> {
        let NodesConfig { leader, port, node_rank: index, num_nodes: count, timeout: patience } = &self.nodes;
        let deadline = Instant::now() + *patience;
        // Pods start in any order: a leader that is not there yet is the usual case, not a failure.
        let stream = loop {
            if self.cancel.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let reason = match connect(leader, *port) {
                Ok(stream) => break stream,
                Err(reason) => reason,
            };
            if Instant::now() >= deadline {
                return Err(Error::Machines(format!(
                    "the leader at {leader}, port {port}, was not there within group-timeout ({} s): {reason}; see whether machine 0 \
                     runs, and whether a NetworkPolicy lets group-port through",
                    patience.as_secs_f64()
                )));
            }
            std::thread::sleep(POLL_INTERVAL);
        };
        let peer = format!("the leader ({leader}, port {port})");
        let link = Link::new(stream, peer, *patience, self.cancel.clone());
        let link = Arc::new(link.map_err(|error| Error::Machines(format!("a connection cannot be set up: {error}")))?);
        // Known before the hello: should this node fail from here on, the leader is told.
        self.lock().insert(0, Arc::clone(&link));
        link.send_json(
            Kind::Hello,
            &Hello { protocol: PROTOCOL, index: *index, count: count.get(), handshake: handshake.clone() },
        )?;
        Ok(link)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<usize, Arc<Link>>> {
        self.met.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RendezvousHandler for Rendezvous {
    fn num_nodes(&self) -> usize {
        self.nodes.num_nodes.get()
    }

    fn node_rank(&self) -> usize {
        self.nodes.node_rank
    }

    /// Waits for all the others, or calls the leader until it answers.
    fn rendezvous(&self, model: &Model, settings: &NodeSettings) -> Result<Arc<dyn Nodes>, Error> {
        let handshake = Handshake::new(model, settings)?;
        Ok(Arc::new(match self.nodes.is_worker() {
            false => Links::Leader(self.accept_workers(&handshake)?.into()),
            true => Links::Worker(self.connect_to_leader(&handshake)?),
        }))
    }
}

/// On all addresses, of both kinds where there are both.
fn listen(port: u16) -> io::Result<TcpListener> {
    let both = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
    both.or_else(|error| match error.kind() {
        ErrorKind::AddrInUse => Err(error),
        _ => TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)),
    })
}

fn connect(leader: &str, port: u16) -> Result<TcpStream, String> {
    // Asked anew each time: a pod that was replaced has another address.
    let addresses = (leader, port).to_socket_addrs().map_err(|error| error.to_string())?;
    let mut reason = "its name has no address".to_owned();
    for address in addresses {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => return Ok(stream),
            Err(error) => reason = format!("{address}: {error}"),
        }
    }
    Err(reason)
}

/// Receives the hello of a caller; a connection that brings something else, or nothing, is closed.
fn receive_hello(
    stream: TcpStream,
    address: SocketAddr,
    patience: Duration,
    cancel: CancellationToken,
    said: &Sender<(Hello, Link)>,
) {
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    let Ok(mut link) = Link::new(stream, address.to_string(), patience, cancel) else { return };
    let Ok(hello) = link.receive_json::<Hello>(Kind::Hello, Instant::now() + HELLO_TIMEOUT) else { return };
    link.rename(format!("machine {} ({address})", hello.index));
    // Nobody waits any more where all have come.
    let _late = said.send((hello, link));
}
