//! Whether what a server answers survives its restart, as far as it tells.

use redis::{Cmd, FromRedisValue, RedisError, RedisResult, Value};
use tlog_store::StoreDurability;

use crate::Link;

/// Asks the server on the other end of `link`.
///
/// # Errors
///
/// Where the server cannot be reached. One that answers and does not tell (`CONFIG` is renamed or forbidden) is
/// [`StoreDurability::Unknown`].
pub async fn durability(link: &Link) -> Result<StoreDurability, RedisError> {
    let told = ask(|command| {
        let link = link.clone();
        async move { link.run(&command).await }
    });
    Ok(told.await?.durability())
}

/// The same by any way to have one command answered. The questions go out together.
pub(crate) async fn ask<F>(run: impl Fn(Cmd) -> F) -> RedisResult<Told>
where
    F: Future<Output = RedisResult<Value>>,
{
    let command = |words: &[&str]| {
        let mut command = Cmd::new();
        for word in words {
            command.arg(word);
        }
        run(command)
    };
    // Redis 6 takes one parameter in each call.
    let (info, role, append_only, fsync, not_while, memory, policy, sync) = tokio::join!(
        command(&["INFO", "server"]),
        command(&["INFO", "replication"]),
        command(&["CONFIG", "GET", "appendonly"]),
        command(&["CONFIG", "GET", "appendfsync"]),
        command(&["CONFIG", "GET", "no-appendfsync-on-rewrite"]),
        command(&["CONFIG", "GET", "maxmemory"]),
        command(&["CONFIG", "GET", "maxmemory-policy"]),
        command(&["CONFIG", "GET", "rocksdb.write_options.sync"]),
    );
    Ok(Told {
        // Some services forbid it; what the others say is enough.
        info: answered(info)?.and_then(|info| text(&info)).unwrap_or_default(),
        role: answered(role)?.and_then(|role| text(&role)).unwrap_or_default(),
        append_only: setting(append_only)?,
        no_fsync_on_rewrite: setting(not_while)?,
        fsync: setting(fsync)?,
        max_memory: setting(memory)?,
        policy: setting(policy)?,
        rocksdb_sync: setting(sync)?,
    })
}

/// What a server told of itself. A setting that it does not know, or does not show, is not there.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    info: String,
    role: String,
    append_only: Option<String>,
    no_fsync_on_rewrite: Option<String>,
    fsync: Option<String>,
    max_memory: Option<String>,
    policy: Option<String>,
    rocksdb_sync: Option<String>,
}

impl Told {
    /// What differs after each start of the server; none where it does not tell.
    pub(crate) fn run_id(&self) -> Option<&str> {
        self.info.lines().find_map(|line| line.strip_prefix("run_id:")).map(str::trim)
    }

    pub(crate) fn durability(&self) -> StoreDurability {
        use StoreDurability::{Durable, Unknown, Volatile};

        // KeyDB has more kinds of replicas than one.
        let role = self.role.lines().find_map(|line| line.strip_prefix("role:"));
        if role.is_some_and(|role| role.trim() != "master") {
            return Volatile(
                "it is a replica: what it holds gives way to what its primary has; use the primary".into(),
            );
        }
        if self.info.contains("kvrocks_version:") {
            return match self.rocksdb_sync.as_deref() {
                Some("yes") => Durable,
                Some(_) => {
                    Volatile("Kvrocks syncs no write to disk: set `rocksdb.write_options.sync yes`".into())
                }
                None => {
                    Unknown("Kvrocks does not show `rocksdb.write_options.sync`; it must be `yes`".into())
                }
            };
        }
        if self.info.contains("dragonfly_version:") {
            return Volatile("Dragonfly saves snapshots only: use another server for a log".into());
        }
        let Some(append_only) = self.append_only.as_deref() else {
            return Unknown(
                "the server does not show its settings (`CONFIG GET` is renamed, or not allowed for this user); it needs `appendonly \
                 yes`, `appendfsync always` and `maxmemory-policy noeviction`"
                    .into(),
            );
        };
        if append_only != "yes" {
            return Volatile(
                "it keeps everything in memory alone: set `appendonly yes` and `appendfsync always`".into(),
            );
        }
        match self.fsync.as_deref() {
            Some("always") => {}
            Some("everysec") => {
                return Volatile("a crash takes its last second: set `appendfsync always`".into());
            }
            Some(other) => {
                return Volatile(format!(
                    "it leaves to the system when it writes to disk (`appendfsync {other}`): set `appendfsync always`"
                ));
            }
            None => return Unknown("it does not show `appendfsync`, which must be `always`".into()),
        }
        // Not every server has this setting.
        if self.no_fsync_on_rewrite.as_deref() == Some("yes") {
            return Volatile(
                "while it saves or rewrites its files it syncs nothing to disk: set `no-appendfsync-on-rewrite no`".into(),
            );
        }
        // `volatile-*` takes only keys that expire, and a log has none.
        match (self.max_memory.as_deref(), self.policy.as_deref()) {
            (Some("0"), _) => Durable,
            (_, Some(policy)) if policy == "noeviction" || policy.starts_with("volatile-") => Durable,
            (_, Some(policy)) => Volatile(format!(
                "it throws keys away when its memory is full (`maxmemory-policy {policy}`): set `maxmemory-policy noeviction`"
            )),
            (_, None) => Unknown("it does not show `maxmemory-policy`, which must be `noeviction`".into()),
        }
    }
}

/// What it answered; none where it refused to. An error is one of reaching it, or that it answers nothing at the moment.
fn answered(answer: RedisResult<Value>) -> RedisResult<Option<Value>> {
    match answer {
        Ok(value) => Ok(value.extract_error().ok()),
        Err(error) if error.is_io_error() => Err(error),
        Err(error) if matches!(error.code(), Some("NOAUTH" | "BUSY" | "LOADING")) => Err(error),
        Err(_) => Ok(None),
    }
}

/// The value in the answer to `CONFIG GET name`: name and value, or nothing where it has no such setting.
fn setting(answer: RedisResult<Value>) -> RedisResult<Option<String>> {
    Ok(answered(answer)?.and_then(|value| match value {
        Value::Array(pair) => pair.get(1).and_then(text),
        Value::Map(pairs) => pairs.first().and_then(|(_, value)| text(value)),
        _ => None,
    }))
}

fn text(value: &Value) -> Option<String> {
    String::from_redis_value_ref(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(pairs: &[(&str, &str)]) -> Told {
        let find = |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        Told {
            info: find("info").unwrap_or_default(),
            role: find("role").unwrap_or_default(),
            append_only: find("appendonly"),
            no_fsync_on_rewrite: find("no-appendfsync-on-rewrite"),
            fsync: find("appendfsync"),
            max_memory: find("maxmemory"),
            policy: find("maxmemory-policy"),
            rocksdb_sync: find("rocksdb.write_options.sync"),
        }
    }

    #[test]
    fn only_a_server_that_syncs_every_write_and_evicts_nothing_is_durable() {
        let check = |append_only: &str, fsync: &str, memory: &str, policy: &str, name: &str, hint: &str| {
            let found = told(&[
                ("appendonly", append_only),
                ("appendfsync", fsync),
                ("maxmemory", memory),
                ("maxmemory-policy", policy),
            ])
            .durability();
            assert_eq!(found.name(), name, "{found:?}");
            if let StoreDurability::Volatile(why) = found {
                assert!(why.contains(hint), "{why}");
            }
        };
        check("yes", "always", "0", "noeviction", "durable", "");
        check("yes", "always", "0", "allkeys-lru", "durable", "");
        check("yes", "always", "1000", "noeviction", "durable", "");
        check("yes", "always", "1000", "volatile-lru", "durable", "");
        check("yes", "always", "1000", "allkeys-lru", "volatile", "maxmemory-policy noeviction");
        check("yes", "everysec", "0", "noeviction", "volatile", "appendfsync always");
        check("yes", "no", "0", "noeviction", "volatile", "appendfsync always");
        check("no", "always", "0", "noeviction", "volatile", "appendonly yes");
    }

    #[test]
    fn a_server_that_stops_syncing_now_and_then_or_is_a_replica_is_not_durable() {
        let good = [("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory", "0")];
        let check = |more: (&'static str, &'static str), name: &str| {
            let found = told(&[good.as_slice(), &[more]].concat()).durability();
            assert_eq!(found.name(), name, "{found:?}");
        };
        check(("no-appendfsync-on-rewrite", "no"), "durable");
        check(("no-appendfsync-on-rewrite", "yes"), "volatile");
        check(("role", "# Replication\r\nrole:master\r\nconnected_slaves:0\r\n"), "durable");
        check(("role", "# Replication\r\nrole:slave\r\nmaster_host:10.0.0.1\r\n"), "volatile");
    }

    #[test]
    fn a_server_that_does_not_tell_is_not_called_durable() {
        let check = |pairs: &[(&str, &str)], name: &str| {
            assert_eq!(told(pairs).durability().name(), name, "{pairs:?}");
        };
        check(&[], "unknown");
        check(&[("appendonly", "yes")], "unknown");
        check(&[("appendonly", "yes"), ("appendfsync", "always")], "unknown");
        check(&[("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory", "0")], "durable");
        let kvrocks = ("info", "# Server\r\nredis_version:4.0.0\r\nkvrocks_version:2.9.0\r\n");
        check(&[kvrocks], "unknown");
        check(&[kvrocks, ("rocksdb.write_options.sync", "no")], "volatile");
        check(&[kvrocks, ("rocksdb.write_options.sync", "yes")], "durable");
        check(&[("info", "dragonfly_version:df-v1.2"), ("appendonly", "yes")], "volatile");
    }
}
