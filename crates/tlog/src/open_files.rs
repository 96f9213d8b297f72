//! How many files and connections a process may have open at once.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tlog_server::ServerSettings;

/// Files that a server has open beside the connections of its clients: those of its stores, connections to stores, its admin endpoint, ...
const OTHERS: u64 = 256;

/// Raises what this process may have open to what the system lets it ask for, and answers that; none where there is no bound.
///
/// Systems let processes have 1024 unless they ask for more, as some programs of old fail with more. With too few of them, whoever
/// connects often enough would leave none for the stores.
pub(crate) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return limit.current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, "the limit of open files cannot be raised");
            limit.current
        }
    }
}

/// Fewer connections where that many files may not be open. Newcomers are the first to be fewer.
pub(crate) fn fitting(settings: ServerSettings, allowed: Option<u64>) -> ServerSettings {
    let Some(allowed) = allowed else { return settings };
    let (clients, newcomers) = (settings.max_connections as u64, settings.max_newcomers as u64);
    if clients.saturating_add(newcomers).saturating_add(OTHERS) <= allowed {
        return settings;
    }
    let room = allowed.saturating_sub(OTHERS).max(2);
    let newcomers = newcomers.min(room.saturating_sub(clients).max(room / 8)).max(1);
    let clients = clients.min(room - newcomers);
    tracing::warn!(
        allowed,
        max_connections = clients,
        max_newcomers = newcomers,
        "the system lets this process have too few files open for max-connections and max-newcomers: raise the limit (ulimit -Hn, \
         LimitNOFILE); until then fewer connections are taken"
    );
    let as_usize = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    ServerSettings { max_connections: as_usize(clients), max_newcomers: as_usize(newcomers), ..settings }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_files_for_everything_else() {
        let check = |(clients, newcomers), allowed, fit: (usize, usize)| {
            let settings = ServerSettings {
                max_connections: clients,
                max_newcomers: newcomers,
                ..ServerSettings::default()
            };
            let fitted = fitting(settings, allowed);
            assert_eq!((fitted.max_connections, fitted.max_newcomers), fit);
            assert_eq!(fitted.validate(), Ok(()));
        };
        check((1024, 1024), None, (1024, 1024));
        check((1024, 1024), Some(20_000), (1024, 1024));
        check((1024, 1024), Some(2000), (1024, 720));
        check((1024, 1024), Some(1024), (672, 96));
        check((5000, 10), Some(1024), (758, 10));
        check((1024, 1024), Some(10), (1, 1));
    }

    #[test]
    fn the_limit_is_what_the_system_lets_it_be() {
        assert_eq!(raise_limit(), getrlimit(Resource::Nofile).maximum);
    }
}
