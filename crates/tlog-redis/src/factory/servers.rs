//! Which servers a pool needs.

use tlog_config::{RedisServer, StorageCluster, StoreAddress};

use super::RedisPoolFactoryError;
use crate::{Link, Links};

/// The first `needed` of these servers. Where there are fewer and `auto_fill` is on, the missing ones are on the last one's host, at the
/// next ports, with its user, password, database and TLS.
///
/// # Errors
///
/// There are too few, one is there twice, or there are not enough ports.
pub fn fill_up(
    mut servers: Vec<RedisServer>,
    needed: usize,
    auto_fill: bool,
) -> Result<Vec<RedisServer>, RedisPoolFactoryError> {
    if auto_fill && let Some(last) = servers.last().cloned() {
        while servers.len() < needed {
            let next = servers.last().and_then(RedisServer::on_next_port);
            servers.push(next.ok_or_else(|| RedisPoolFactoryError::NoMorePorts {
                last: last.to_string(),
                missing: needed.saturating_sub(servers.len()),
            })?);
        }
    }
    checked("the list of store addresses", servers, needed)
}

/// The servers of the first `needed` data stores of a cluster.
pub(super) fn of_cluster(
    cluster: &StorageCluster,
    needed: usize,
) -> Result<Vec<RedisServer>, RedisPoolFactoryError> {
    let of = format!("storage cluster {}", cluster.id);
    let server = |(index, address): (usize, &StoreAddress)| match address {
        StoreAddress::Redis(server) => Ok(server.clone()),
        StoreAddress::Directory(_) | StoreAddress::Memory => {
            Err(RedisPoolFactoryError::NotRedis { of: of.clone(), index, address: address.to_string() })
        }
    };
    let servers = cluster.data.iter().enumerate().map(server).collect::<Result<_, _>>()?;
    checked(&of, servers, needed)
}

fn checked(
    of: &str,
    mut servers: Vec<RedisServer>,
    needed: usize,
) -> Result<Vec<RedisServer>, RedisPoolFactoryError> {
    let there = servers.len();
    if there < needed {
        return Err(RedisPoolFactoryError::TooFew { of: of.to_owned(), there, needed });
    }
    // More are legal; they are not used.
    servers.truncate(needed);
    match twice(&servers) {
        Some((first, second, server)) => {
            let address = server.to_string();
            Err(RedisPoolFactoryError::Twice { of: of.to_owned(), first, second, address })
        }
        None => Ok(servers),
    }
}

/// The first server that is there twice, behind its two places.
pub(crate) fn twice(servers: &[RedisServer]) -> Option<(usize, usize, &RedisServer)> {
    servers.iter().enumerate().find_map(|(second, server)| {
        let first = servers.iter().take(second).position(|earlier| earlier.place() == server.place());
        first.map(|first| (first, second, server))
    })
}

/// Links to all of them.
pub(super) fn linked(links: &Links, servers: &[RedisServer]) -> Result<Vec<Link>, RedisPoolFactoryError> {
    servers.iter().map(|server| Ok(links.link(server)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(text: &str) -> RedisServer {
        match StoreAddress::parse(text) {
            Ok(StoreAddress::Redis(server)) => server,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn missing_servers_follow_the_last_one_where_that_is_asked_for() {
        let check = |given: &[&str], needed: usize, auto_fill: bool, expected: Result<&[&str], &str>| {
            let given = given.iter().map(|text| server(text)).collect();
            match (fill_up(given, needed, auto_fill), expected) {
                (Ok(found), Ok(expected)) => {
                    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
                    assert_eq!(found, expected);
                }
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                other => panic!("{other:?}"),
            }
        };
        check(&["a:1"], 3, true, Ok(&["redis://a:1/0", "redis://a:2/0", "redis://a:3/0"]));
        check(&["a:1@2", "b:7@3"], 3, true, Ok(&["redis://a:1/2", "redis://b:7/3", "redis://b:8/3"]));
        check(&["a:1", "b:1", "c:1"], 2, true, Ok(&["redis://a:1/0", "redis://b:1/0"]));
        check(&["rediss://:secret@a:1"], 2, true, Ok(&["rediss://a:1/0", "rediss://a:2/0"]));
        check(&["a:1"], 3, false, Err("has 1 data store, and 3 are needed"));
        check(&[], 3, true, Err("has 0 data stores, and 3 are needed"));
        check(&["a:65534"], 3, true, Err("1 more are needed on the ports after redis://a:65534/0"));
        check(
            &["a:2", "A:1"],
            3,
            true,
            Err("data stores 0 and 2 of the list of store addresses are the same"),
        );
        check(&["a:1", "a:1@1"], 2, false, Ok(&["redis://a:1/0", "redis://a:1/1"]));
    }

    #[test]
    fn a_filled_in_server_has_the_password_of_the_last_one() {
        let servers = fill_up(vec![server("redis://anna:secret@a:1")], 2, true).unwrap();
        assert_eq!(servers[1], RedisServer { port: 2, ..servers[0].clone() });
    }

    #[test]
    fn a_cluster_is_refused_where_it_cannot_hold_the_shards() {
        let check = |data: &[&str], needed: usize, expected: Result<usize, &str>| {
            let data = data.iter().map(|text| StoreAddress::parse(text).unwrap()).collect();
            let cluster =
                StorageCluster { id: "main".into(), data, metadata: None, shards: Default::default() };
            match (of_cluster(&cluster, needed), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.len(), expected),
                (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
                other => panic!("{other:?}"),
            }
        };
        check(&["a:1", "a:2", "a:3"], 2, Ok(2));
        check(&["a:1"], 2, Err("storage cluster main has 1 data store, and 2 are needed"));
        check(&["a:1", "file:/srv"], 2, Err("data store 1 of storage cluster main is file:/srv"));
        check(&["memory:", "a:1"], 2, Err("data store 0 of storage cluster main is memory:"));
        check(&["a:1", "redis://x:y@a:1"], 2, Err("are the same, redis://a:1/0"));
        check(&["127.0.0.1:1", "Localhost:1"], 2, Err("are the same, redis://Localhost:1/0"));
    }
}
