//! Addresses, names and other short texts that people write: no text does more harm than to be refused, and what is read is shown so that
//! it is read as the same again.

use std::io;
use std::str::FromStr;
use std::sync::Arc;

use tlog::settings::{ListenAddress, Size, TimeSpan, show_size};
use tlog_client::{Client, ClientOptions, ConnectError, Connecting, Connector};
use tlog_codec::MarkName;
use tlog_config::{DocumentKey, RedisServer, SourceAddress, StoreAddress, is_host_name};
use tlog_proto::{AggregationId, VdiskId, Version};
use tlog_server::{PermissionRule, Permissions};
use tlog_store::slave::SlavePoint;

use crate::Target;
use crate::input::Input;
use crate::time::runtime;

/// The first byte says what the rest is read as.
pub const TARGET: Target = Target { name: "addresses", memory: 1 << 20, check, seeds };

fn check(input: &[u8]) {
    let mut input = Input::new(input);
    let kind = input.below(10);
    let Ok(text) = std::str::from_utf8(input.rest()) else { return };
    match kind {
        0 => store(text),
        1 => source(text),
        2 => again::<ListenAddress>(text),
        3 => {
            if let Ok(Size(bytes)) = text.parse() {
                assert!(bytes > 0 && !show_size(bytes).is_empty());
            }
            if let Ok(TimeSpan(span)) = text.parse() {
                assert!(!span.is_zero());
            }
        }
        4 => {
            if let Ok(vdisk) = VdiskId::new(text) {
                assert_eq!(vdisk.as_str(), text);
            }
            assert_eq!(VdiskId::from_bytes(text.as_bytes()).is_ok(), VdiskId::new(text).is_ok());
            if let Ok(name) = MarkName::new(text) {
                assert_eq!(name.as_str(), text);
            }
            let _ = is_host_name(text);
        }
        5 => {
            if let Some(key) = DocumentKey::parse(text) {
                assert_eq!(key.to_string(), text);
            }
        }
        6 => again::<Version>(text),
        7 => permissions(text),
        8 => {
            again::<SlavePoint>(text);
            if let Some(id) = AggregationId::parse(text) {
                assert_eq!(AggregationId::parse(&id.to_string()), Some(id));
            }
        }
        _ => servers(text),
    }
}

/// What is read is read again as it is shown.
fn again<T: FromStr + ToString + PartialEq>(text: &str) {
    if let Ok(value) = text.parse::<T>() {
        let shown = value.to_string();
        assert!(shown.parse::<T>().is_ok_and(|again| again == value), "{text:?} is shown as {shown:?}");
    }
}

/// As it is shown, it is the same but for user and password.
fn store(text: &str) {
    let Ok(address) = StoreAddress::parse(text) else { return };
    let shown = address.to_string();
    let expected = match address {
        StoreAddress::Redis(server) => {
            StoreAddress::Redis(RedisServer { user: None, password: None, ..server })
        }
        other => other,
    };
    assert_eq!(StoreAddress::parse(&shown), Ok(expected), "{text:?} is shown as {shown:?}");
}

fn source(text: &str) {
    let Ok(address) = SourceAddress::parse(text) else { return };
    let shown = address.to_string();
    if let SourceAddress::Etcd(_) = address {
        assert_eq!(SourceAddress::parse(&shown), Ok(address), "{text:?} is shown as {shown:?}");
    }
}

/// Lines of rules, and behind an empty one names.
fn permissions(text: &str) {
    let (rules, names) = text.split_once("\n\n").unwrap_or((text, ""));
    let rules: Vec<PermissionRule> = rules.lines().filter_map(|line| line.parse().ok()).collect();
    let permissions = Permissions::new(rules);
    for vdisk in names.lines().filter_map(|name| VdiskId::new(name).ok()) {
        let permitted = permissions.permit(names.lines(), &vdisk);
        assert!(permitted || !permissions.is_empty());
    }
}

/// Nobody is there.
struct Refusing;

impl Connector for Refusing {
    fn connect(&self, _: &str) -> Connecting {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }
}

/// A list of servers: each is an address, or the list is refused.
fn servers(text: &str) {
    let vdisk = VdiskId::new("v").unwrap();
    let list: Vec<&str> = text.split(',').collect();
    let connected = Client::connect_over(Arc::new(Refusing), list, vdisk, ClientOptions::default());
    match runtime().block_on(connected) {
        Ok(_) => panic!("nobody is there"),
        Err(ConnectError::NotAnAddress { server }) => assert!(text.contains(&server)),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let texts = [
        (0, "127.0.0.1:16379@2"),
        (0, "redis://user:p%40ss@host.example:6379/3"),
        (0, "rediss://:secret@[::1]:6380"),
        (0, "file:///srv/tlog/store-0"),
        (0, "memory:"),
        (1, "http://etcd-1:2379,https://[::1]:2379"),
        (1, "file:./a:b.yaml"),
        (2, "[::1]:11211"),
        (2, "localhost:11211"),
        (3, "16MiB"),
        (3, "1h30m"),
        (4, "myimg_1.2:3@4+5"),
        (5, "myimg:vdisk:conf:storage:tlog"),
        (6, "1.1.0-alpha"),
        (7, "backup.example.org=vm-*\n*.example=*a*b*\n\nbackup.example.org\nvm-1"),
        (8, "17:3:a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5"),
        (9, "tlog-1:11211,[::1]:11211,127.0.0.1:1"),
    ];
    texts.into_iter().map(|(kind, text): (u8, &str)| [&[kind], text.as_bytes()].concat()).collect()
}
