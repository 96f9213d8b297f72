//! What can go wrong.

use std::fmt;
use std::time::Duration;

/// What goes wrong, and with whom. Everything is numbered from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Something happens to a process.
    Process(Who, Blow),
    /// The disk of a store has no room any more.
    DiskFull(usize),
    /// A store loses everything it has, for good.
    StoreWiped(usize),
    /// A server and some stores of the log do not reach each other as they should.
    StoresCut { server: usize, stores: Vec<usize>, how: Cut },
    /// The same with all stores of the slave.
    SlaveCut { server: usize, how: Cut },
    /// The same with the clients.
    ClientsCut { server: usize, how: Cut },
    /// Every process but the clients is killed at once.
    PowerFails,
}

/// A process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Who {
    Server(usize),
    Client(usize),
    /// A store of the log.
    Store(usize),
    /// A store of the slave.
    SlaveStore(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Blow {
    /// SIGKILL, and started again.
    Killed,
    /// SIGSTOP, and SIGCONT.
    Stopped,
    /// SIGTERM, and started again.
    Terminated,
}

/// What is wrong with connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    /// They are reset, and new ones are refused.
    Refused,
    /// Nothing arrives, and nobody is told; later everything that was held back does.
    Silent,
    /// Only what one side sends arrives: that of the side which connected, or that of the other.
    OneWay { answers: bool },
    /// Everything takes so much longer.
    Slow(Duration),
}

/// What can suffer from one thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Target {
    Process(Who),
    /// Connections of a server to stores of the log.
    StoreLinks(usize),
    /// Connections of a server to stores of the slave.
    SlaveLinks(usize),
    /// Connections of clients to a server.
    ClientLinks(usize),
}

impl Fault {
    /// Its name in tables.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Fault::Process(Who::Server(_), Blow::Killed) => "server killed",
            Fault::Process(Who::Server(_), Blow::Stopped) => "server stopped",
            Fault::Process(Who::Server(_), Blow::Terminated) => "server terminated",
            Fault::Process(Who::Client(_), Blow::Stopped) => "client stopped",
            Fault::Process(Who::Client(_), _) => "client killed",
            Fault::Process(Who::Store(_), Blow::Stopped) => "store stopped",
            Fault::Process(Who::Store(_), _) => "store killed",
            Fault::Process(Who::SlaveStore(_), Blow::Stopped) => "store of the slave stopped",
            Fault::Process(Who::SlaveStore(_), _) => "store of the slave killed",
            Fault::DiskFull(_) => "disk of a store full",
            Fault::StoreWiped(_) => "store wiped",
            Fault::StoresCut { .. } => "server cut off from stores",
            Fault::SlaveCut { .. } => "server cut off from the slave",
            Fault::ClientsCut { .. } => "clients cut off from a server",
            Fault::PowerFails => "everything killed at once",
        }
    }

    /// What suffers from it, in a site of this shape.
    pub(crate) fn targets(&self, shape: &Shape) -> Vec<Target> {
        match self {
            Fault::Process(who, _) => vec![Target::Process(*who)],
            Fault::DiskFull(store) | Fault::StoreWiped(store) => vec![Target::Process(Who::Store(*store))],
            Fault::StoresCut { server, .. } => vec![Target::StoreLinks(*server)],
            Fault::SlaveCut { server, .. } => vec![Target::SlaveLinks(*server)],
            Fault::ClientsCut { server, .. } => vec![Target::ClientLinks(*server)],
            Fault::PowerFails => shape.machines().map(Target::Process).collect(),
        }
    }
}

/// How many there are of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) servers: usize,
    pub(crate) clients: usize,
    pub(crate) stores: usize,
    pub(crate) slave_stores: usize,
    /// The stores whose disks can be filled.
    pub(crate) small_disks: Vec<usize>,
}

impl Shape {
    /// Every process but the clients.
    pub(crate) fn machines(&self) -> impl Iterator<Item = Who> {
        let servers = (0..self.servers).map(Who::Server);
        let stores = (0..self.stores).map(Who::Store);
        servers.chain(stores).chain((0..self.slave_stores).map(Who::SlaveStore))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Process(who, Blow::Killed) => write!(f, "{who} is killed"),
            Fault::Process(who, Blow::Stopped) => write!(f, "{who} is stopped"),
            Fault::Process(who, Blow::Terminated) => write!(f, "{who} is terminated"),
            Fault::DiskFull(store) => write!(f, "the disk of store {store} is full"),
            Fault::StoreWiped(store) => write!(f, "store {store} loses everything"),
            Fault::StoresCut { server, stores, how } => {
                write!(f, "server {server} and stores {stores:?}: {how}")
            }
            Fault::SlaveCut { server, how } => write!(f, "server {server} and the slave: {how}"),
            Fault::ClientsCut { server, how } => write!(f, "clients and server {server}: {how}"),
            Fault::PowerFails => f.write_str("everything but the clients is killed at once"),
        }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Who::Server(number) => write!(f, "server {number}"),
            Who::Client(number) => write!(f, "client {number}"),
            Who::Store(number) => write!(f, "store {number}"),
            Who::SlaveStore(number) => write!(f, "store {number} of the slave"),
        }
    }
}

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cut::Refused => f.write_str("connections are reset and refused"),
            Cut::Silent => f.write_str("nothing arrives"),
            Cut::OneWay { answers: true } => f.write_str("only answers arrive"),
            Cut::OneWay { answers: false } => f.write_str("no answers arrive"),
            Cut::Slow(by) => write!(f, "everything takes {by:?} longer"),
        }
    }
}
