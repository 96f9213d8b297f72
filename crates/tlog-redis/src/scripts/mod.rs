//! The scripts that the server runs, one for each operation, and how they are called.
//!
//! Each is `head.lua`, what it is itself (a function `act`), and `foot.lua`, which makes errors come out the same on every
//! version. A script is called by its digest. A server that does not know it, because it was restarted or told to forget, is
//! sent the whole text once.

use std::sync::LazyLock;
use std::sync::atomic::AtomicU64;

use redis::{Cmd, RedisError, ToRedisArgs, Value};

use crate::request::Request;
use crate::{Link, layout};

/// A script, and the digest that names it.
pub(crate) struct Script {
    digest: String,
    text: String,
}

macro_rules! scripts {
    ($($name:ident = $($part:literal)+;)*) => {
        $(pub(crate) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(&[$(include_str!($part)),+]));)*

        #[cfg(test)]
        pub(crate) static ALL: &[(&str, &LazyLock<Script>)] = &[$((stringify!($name), &$name)),*];
    };
}

scripts! {
    STATUS = "head.lua" "status.lua" "foot.lua";
    PROMISE = "head.lua" "promise.lua" "foot.lua";
    START = "head.lua" "hold.lua" "start.lua" "foot.lua";
    APPEND = "head.lua" "hold.lua" "append.lua" "foot.lua";
    APPEND_NEXT = "append_next.lua";
    PUBLISH = "head.lua" "publish.lua" "foot.lua";
    FILL = "head.lua" "hold.lua" "fill.lua" "foot.lua";
    PRUNE = "head.lua" "prune.lua" "foot.lua";
    SWEEP = "head.lua" "hold.lua" "sweep.lua" "foot.lua";
    DELETE = "head.lua" "delete.lua" "foot.lua";
    SWEEP_DELETED = "head.lua" "sweep_deleted.lua" "foot.lua";
    UNLIST = "unlist.lua" "foot.lua";
    HEADS = "head.lua" "heads.lua" "foot.lua";
    SHARD = "head.lua" "shard.lua" "foot.lua";
    PARTS = "head.lua" "parts.lua" "foot.lua";
    EXISTING = "existing.lua";
    LINK = "link.lua" "foot.lua";
    SLAVE_PART = "slave_head.lua" "slave_part.lua" "foot.lua";
    SLAVE_RAISE = "slave_head.lua" "slave_raise.lua" "foot.lua";
    SLAVE_BEGIN = "slave_head.lua" "slave_begin.lua" "foot.lua";
    SLAVE_CLEAR = "slave_head.lua" "slave_clear.lua" "foot.lua";
    SLAVE_APPLY = "slave_head.lua" "slave_apply.lua" "foot.lua";
    SLAVE_RECORD = "slave_head.lua" "slave_record.lua" "foot.lua";
    SLAVE_KEEP = "slave_head.lua" "slave_keep.lua" "foot.lua";
}

impl Script {
    fn new(parts: &[&str]) -> Self {
        let text = parts.concat();
        Self { digest: redis::Script::new(&text).get_hash().to_owned(), text }
    }

    /// A call with these keys; its arguments are added by [`Call::arg`].
    pub(crate) fn call<K: ToRedisArgs>(&self, keys: &[K]) -> Call<'_> {
        let mut command = redis::cmd("EVALSHA");
        command.arg(&self.digest).arg(keys.len()).arg(keys);
        Call { script: self, command }
    }
}

/// A script with what it is called with.
pub(crate) struct Call<'a> {
    script: &'a Script,
    command: Cmd,
}

impl Call<'_> {
    pub(crate) fn arg(mut self, arg: impl ToRedisArgs) -> Self {
        self.command.arg(arg);
        self
    }

    /// Runs it on the server. It ran once, or not at all, or - where the error is one of the connection - perhaps.
    pub(crate) async fn run(self, link: &Link) -> Result<Value, RedisError> {
        let answer = link.run(&self.command).await;
        self.again(link, answer).await
    }

    /// The same with [`Link::run_on_same`].
    pub(crate) async fn run_on_same(self, link: &Link, run: &AtomicU64) -> Result<Value, RedisError> {
        let answer = link.run_on_same(Request::of(&self.command), run).await;
        self.again(link, answer).await
    }

    /// The same right behind a command that puts a value under a key, for so long; nobody looks at the answer of that.
    pub(crate) async fn run_behind(
        self,
        (key, value, lifetime_ms): (&str, &layout::Value<'_>, u64),
        link: &Link,
        run: &AtomicU64,
    ) -> Result<Value, RedisError> {
        let request = Request::put(key, value, lifetime_ms, &self.command);
        let answer = link.run_on_same(request, run).await;
        self.again(link, answer).await
    }

    async fn again(self, link: &Link, answer: Result<Value, RedisError>) -> Result<Value, RedisError> {
        match answer {
            Err(error) if error.code() == Some("NOSCRIPT") => {}
            answered => return answered,
        }
        tracing::debug!(store = %link.address(), digest = self.script.digest, "the server does not know the script yet");
        metrics::counter!("tlog_redis_scripts_sent_total", "store" => link.address()).increment(1);
        // Another client can tell the server to forget it again at any time: with its whole text the call cannot miss it.
        link.run(&self.in_full()).await
    }

    /// The same call, with the script's text in place of its digest. The server keeps it from then on.
    fn in_full(&self) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(&self.script.text);
        for arg in self.command.args_iter().skip(2) {
            if let redis::Arg::Simple(arg) = arg {
                command.arg(arg);
            }
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_use_only_what_every_server_has_and_leave_no_globals() {
        for (name, script) in ALL {
            for word in
                ["struct.", "cmsgpack", "cjson", "bit.", "redis.log", "TIME", "RANDOM", "#!lua", "setresp"]
            {
                assert!(!script.text.contains(word), "{name}: {word}");
            }
        }
    }

    #[test]
    fn a_call_in_full_has_the_same_keys_and_arguments() {
        let call = APPEND.call(&["a", "b"]).arg(1).arg(b"\0\xff".as_slice());
        let all = |command: &Cmd| -> Vec<Vec<u8>> {
            let bytes = |arg: redis::Arg<&[u8]>| match arg {
                redis::Arg::Simple(bytes) => bytes.to_vec(),
                redis::Arg::Cursor => Vec::new(),
                _ => panic!("another kind of argument"),
            };
            command.args_iter().map(bytes).collect()
        };
        let (short, long) = (all(&call.command), all(&call.in_full()));
        assert_eq!(short[2..], long[2..]);
        assert_eq!(long[0], b"EVAL");
        assert_eq!(long[1], APPEND.text.as_bytes());
    }
}
